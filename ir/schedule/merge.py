"""One pass over memory instead of several: loops of the same extent that do not depend on each other become one.

So do neighbours under one condition, or each would compute again what they share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import normalize, reads
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    exprs,
    map_exprs,
    stmts,
    substitute,
    walk,
)


def merge(kernel: Kernel, room: float = math.inf) -> Kernel:
    """Merge sibling loops inside every grid loop.

    A loop joins the first one of its extent and kind that it may: neither touches what the other one writes, or both
    only at the element of their own iteration, and it depends on nothing that stands between them. A parallel loop
    that joins a serial one becomes serial. What an iteration has stored, the rest of it takes from the expression.
    Two loops whose registers do not fit ``room`` bytes together, as those of two tiles of products, stay apart.
    """
    body = tuple(dataclasses.replace(s, body=_merged(s.body, room)) if isinstance(s, For) else s for s in kernel.body)
    return dataclasses.replace(kernel, body=body)


def _touched(body: Sequence[Stmt]) -> tuple[set[str], set[str]]:
    """Return the buffers that are read, and those written or allocated, at any depth; Lets count as buffers."""
    read: set[str] = set()
    writes: set[str] = set()
    for s in stmts(body):
        for root in exprs(s):
            read |= reads(root)
        if isinstance(s, Store | Alloc):
            writes.add(s.buffer)
            if isinstance(s, Store) and s.op:
                read.add(s.buffer)
        elif isinstance(s, Let):
            writes.add(s.name)
    return read, writes


def _independent(a: Sequence[Stmt], b: Sequence[Stmt]) -> bool:
    first, second = _touched(a), _touched(b)
    return not (first[1] & (second[0] | second[1])) and not (second[1] & first[0])


def _registers(body: Sequence[Stmt]) -> int:
    """Return the most bytes of registers that are held at once."""
    own = [s for s in body if isinstance(s, Alloc) and s.space == "register"]
    held = sum(math.prod(int(n.value) for n in s.shape if isinstance(n, Const)) * DTYPES[s.dtype].itemsize for s in own)
    return held + max((_registers(s.body) for s in body if isinstance(s, For | If)), default=0)


def _merged(body: Sequence[Stmt], room: float) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for stmt in _begun(body):
        if isinstance(stmt, For):
            place = _place(out, stmt, room)
            if place is None:
                out.append(stmt)
            else:
                first = out[place]
                assert isinstance(first, For)
                replace: dict[Expr, Expr] = {stmt.var: first.var}
                memo: dict[Expr, Expr] = {}
                added = [map_exprs(s, lambda e: normalize(substitute(e, replace, memo))) for s in stmt.body]  # noqa: B023
                kind = first.kind if first.kind == stmt.kind else "serial"
                out[place] = For(first.var, first.extent, kind, _forwarded((*first.body, *added)))
        elif isinstance(stmt, If) and out and _same_condition(out[-1], stmt):
            out[-1] = If(stmt.cond, (*out[-1].body, *stmt.body))  # type: ignore[union-attr]
        else:
            out.append(stmt)
    return tuple(dataclasses.replace(s, body=_merged(s.body, room)) if isinstance(s, For | If) else s for s in out)


def _begun(body: Sequence[Stmt]) -> list[Stmt]:
    """Let the Allocs of a list and the constants that are first stored in them stand before all else."""
    first: list[Stmt] = []
    rest: list[Stmt] = []
    fresh: set[str] = set()
    for s in body:
        if isinstance(s, Alloc):
            fresh.add(s.buffer)
        start = isinstance(s, Store) and s.buffer in fresh and not s.op and not s.index and isinstance(s.value, Const)
        (first if start or isinstance(s, Alloc) else rest).append(s)
        if not isinstance(s, Alloc):
            fresh -= _touched((s,))[1]
    return [*first, *rest]


def _place(out: Sequence[Stmt], loop: For, room: float) -> int | None:
    """Return where the first loop is that ``loop`` may join."""
    place = None
    for k in range(len(out) - 1, -1, -1):
        first = out[k]
        if isinstance(first, For) and first.extent is loop.extent and _alike(first.kind, loop.kind):
            fits = _registers((*first.body, *loop.body)) <= room
            if fits and (_independent((first,), (loop,)) or _aligned(first, loop)):
                place = k
        if isinstance(first, Let) or not _independent((first,), (loop,)):
            break
    return place


def _alike(first: str, second: str) -> bool:
    return first == second or {first, second} == {"serial", "parallel"}


def _aligned(first: For, second: For) -> bool:
    """Whether the loops share written buffers only at elements that belong to one iteration."""
    (_, written), (_, writes) = _touched((first,)), _touched((second,))
    shared = (written & set().union(*_touched((second,)))) | (writes & _touched((first,))[0])
    return all(_at(first, b) is not None and _at(first, b) == _at(second, b) for b in shared)


def _at(loop: For, buffer: str) -> int | None:
    """Return the axis at which every access in the loop to the buffer has the loop's variable as its index."""
    indices = [s.index for s in stmts(loop.body) if isinstance(s, Store) and s.buffer == buffer]
    for s in stmts(loop.body):
        indices += [e.index for r in exprs(s) for e in walk(r) if isinstance(e, Load) and e.buffer == buffer]
    axes = [{k for k, i in enumerate(index) if i is loop.var} for index in indices]
    return min(set.intersection(*axes), default=None) if axes else None


def _forwarded(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Take what a statement of the list has stored from the expression, as long as nothing that it loads changes."""
    out: list[Stmt] = []
    known: dict[Expr, Expr] = {}
    for s in body:
        if known:
            memo: dict[Expr, Expr] = {}
            s = map_exprs(s, lambda e: substitute(e, known, memo))  # noqa: B023
        out.append(s)
        _, changed = _touched((s,))
        for load, value in list(known.items()):
            if changed & {e.buffer for e in (*walk(load), *walk(value)) if isinstance(e, Load)}:
                del known[load]
        if isinstance(s, Store) and not s.op and s.buffer not in _touched((s,))[0]:
            known[Load(s.buffer, s.index, s.value.dtype)] = s.value
    return tuple(out)


def _same_condition(first: Stmt, second: If) -> bool:
    """Whether both hang on one condition, which the first does not change."""
    if not isinstance(first, If) or first.cond is not second.cond:
        return False
    return not any(isinstance(e, Load) and e.buffer in _touched(first.body)[1] for e in walk(first.cond))
