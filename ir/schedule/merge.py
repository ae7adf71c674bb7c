"""One pass over memory instead of several: loops of the same extent that do not depend on each other become one.

So do neighbours under one condition, or each would compute again what they share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

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


@dataclasses.dataclass(frozen=True, slots=True)
class _Touched:
    """The buffers that statements read, and those they write or allocate, at any depth; Lets count as buffers."""

    read: frozenset[str]
    written: frozenset[str]

    def __or__(self, other: _Touched) -> _Touched:
        return _Touched(self.read | other.read, self.written | other.written)

    def independent(self, other: _Touched) -> bool:
        return self.written.isdisjoint(other.read | other.written) and other.written.isdisjoint(self.read)


def _touched(stmt: Stmt) -> _Touched:
    read: set[str] = set()
    written: set[str] = set()
    for s in stmts((stmt,)):
        for root in exprs(s):
            read |= reads(root)
        if isinstance(s, Store | Alloc):
            written.add(s.buffer)
            if isinstance(s, Store) and s.op:
                read.add(s.buffer)
        elif isinstance(s, Let):
            written.add(s.name)
    return _Touched(frozenset(read), frozenset(written))


class _Row:
    """A statement of a list that others may join; what they may not touch is kept up to date, as a list grows long."""

    def __init__(self, stmt: Stmt) -> None:
        self.stmt = stmt
        self.touched = _touched(stmt)
        self.registers = _registers(stmt.body) if isinstance(stmt, For) else (0, 0)
        self.body: _Forwarded | None = None

    def join(self, other: _Row) -> None:
        """Let another loop's iterations follow those of this one, one by one."""
        first, second = self.stmt, other.stmt
        assert isinstance(first, For)
        assert isinstance(second, For)
        if self.body is None:
            self.body = _Forwarded(first.extent)
            self.body.extend(first.body)
        replace: dict[Expr, Expr] = {second.var: first.var}
        memo: dict[Expr, Expr] = {}
        self.body.extend(map_exprs(s, lambda e: normalize(substitute(e, replace, memo))) for s in second.body)
        kind = first.kind if first.kind == second.kind else "serial"
        self.stmt = For(first.var, first.extent, kind, tuple(self.body.out))
        self.touched = self.body.touched
        self.registers = _together(self.registers, other.registers)


def _registers(body: Sequence[Stmt]) -> tuple[int, int]:
    """Return the bytes of registers that a list holds, and the most that one of its statements holds besides."""
    own = [s for s in body if isinstance(s, Alloc) and s.space == "register"]
    held = sum(math.prod(int(n.value) for n in s.shape if isinstance(n, Const)) * DTYPES[s.dtype].itemsize for s in own)
    return held, max((sum(_registers(s.body)) for s in body if isinstance(s, For | If)), default=0)


def _together(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], max(a[1], b[1])


def _merged(body: Sequence[Stmt], room: float) -> tuple[Stmt, ...]:
    out: list[_Row] = []
    for stmt in _begun(body):
        row = _Row(stmt)
        if isinstance(stmt, For):
            place = _place(out, stmt, row, room)
            if place is None:
                out.append(row)
            else:
                out[place].join(row)
        elif isinstance(stmt, If) and out and _same_condition(out[-1], stmt):
            out[-1] = _Row(If(stmt.cond, (*out[-1].stmt.body, *stmt.body)))  # type: ignore[union-attr]
        else:
            out.append(row)
    made = [r.stmt for r in out]
    return tuple(dataclasses.replace(s, body=_merged(s.body, room)) if isinstance(s, For | If) else s for s in made)


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
        if fresh and not isinstance(s, Alloc):
            fresh -= _touched(s).written
    return [*first, *rest]


def _place(out: Sequence[_Row], loop: For, row: _Row, room: float) -> int | None:
    """Return where the first loop is that ``loop`` may join."""
    place = None
    for k in range(len(out) - 1, -1, -1):
        first = out[k].stmt
        independent = out[k].touched.independent(row.touched)
        if isinstance(first, For) and first.extent is loop.extent and _alike(first.kind, loop.kind):
            fits = sum(_together(out[k].registers, row.registers)) <= room
            if fits and (independent or _aligned(out[k], row)) and not _binds(loop.body, first):
                place = k
        if isinstance(first, Let) or not independent:
            break
    return place


def _binds(body: Sequence[Stmt], loop: For) -> bool:
    """Whether a loop inside would hide the variable of ``loop``."""
    return any(isinstance(s, For) and s.var.name == loop.var.name for s in stmts(body))


def _alike(first: str, second: str) -> bool:
    return first == second or {first, second} == {"serial", "parallel"}


def _aligned(first: _Row, second: _Row) -> bool:
    """Whether the loops share written buffers only at elements that belong to one iteration."""
    a, b = first.touched, second.touched
    shared = (a.written & (b.read | b.written)) | (b.written & a.read)
    return all(_at(first.stmt, s) is not None and _at(first.stmt, s) == _at(second.stmt, s) for s in shared)


def _at(loop: Stmt, buffer: str) -> int | None:
    """Return the axis at which every access in the loop to the buffer has the loop's variable as its index."""
    assert isinstance(loop, For)
    indices = [s.index for s in stmts(loop.body) if isinstance(s, Store) and s.buffer == buffer]
    for s in stmts(loop.body):
        for r in exprs(s):
            if buffer in reads(r):
                indices += [e.index for e in walk(r) if isinstance(e, Load) and e.buffer == buffer]
    axes = [{k for k, i in enumerate(index) if i is loop.var} for index in indices]
    return min(set.intersection(*axes), default=None) if axes else None


class _Forwarded:
    """Statements that take what one of them stored from the expression, as long as nothing that it loads changes."""

    def __init__(self, extent: Expr) -> None:
        self.out: list[Stmt] = []
        self.touched = _Touched(reads(extent), frozenset())
        self.known: dict[Expr, Expr] = {}

    def extend(self, body: Iterable[Stmt]) -> None:
        read, written = set(self.touched.read), set(self.touched.written)
        for s in body:
            if self.known:
                memo: dict[Expr, Expr] = {}
                s = map_exprs(s, lambda e: substitute(e, self.known, memo))  # noqa: B023
            self.out.append(s)
            touched = _touched(s)
            read |= touched.read
            written |= touched.written
            for load, value in list(self.known.items()):
                if not touched.written.isdisjoint(reads(load) | reads(value)):
                    del self.known[load]
            if isinstance(s, Store) and not s.op and s.buffer not in touched.read:
                self.known[Load(s.buffer, s.index, s.value.dtype)] = s.value
        self.touched = _Touched(frozenset(read), frozenset(written))


def _same_condition(first: _Row, second: If) -> bool:
    """Whether both hang on one condition, which the first does not change."""
    if not isinstance(first.stmt, If) or first.stmt.cond is not second.cond:
        return False
    return first.touched.written.isdisjoint(reads(second.cond))
