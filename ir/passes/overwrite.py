"""Make an output where an input was: for arguments whose memory the caller gives away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kernelforge.ir.accesses import redirected
from kernelforge.ir.index import bounds, free_vars, normalize
from kernelforge.ir.kernel import (
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    Var,
    exprs,
    stmts,
    substitute,
    walk,
)


class _Access(NamedTuple):
    """A Load or a Store.

    Attributes:
        loops: around it, the places and variables of those that run more than once.
        conditions: of the Ifs around it.
        place: of its statement, in the order of the text.
    """

    loops: tuple[tuple[int, Var], ...]
    conditions: tuple[Expr, ...]
    place: int
    access: Load | Store


def overwrite(kernel: Kernel, output: str, given: str) -> Kernel | None:
    """Store ``output`` in the memory of the input ``given``, of as many elements; None where that is not legal.

    Legal is it where each element is last read in the iteration that stores the output's element at the same place,
    before or by what stores it. An output's element is stored once.
    """
    size = {a.name: a.size for a in kernel.args}
    if size[output] != size[given]:
        return None
    lets = {s.name: s.value for s in stmts(kernel.body) if isinstance(s, Let)}
    found = list(_accesses(kernel.body, {output, given}))
    stores = [a for a in found if isinstance(a.access, Store)]
    loads = [a for a in found if isinstance(a.access, Load)]
    if any(a.access.buffer != output or a.access.op for a in stores if isinstance(a.access, Store)):
        return None
    if any(a.access.buffer != given for a in loads):
        return None
    stored = [(_index(a, lets), a) for a in stores]
    if not all({var for _, var in a.loops} <= free_vars(at) for at, a in stored):
        return None
    read = [(_index(a, lets), a) for a in loads]
    # stores that read no such element: what they make first, others may make again
    blind = [
        (at, store) for at, store in stored if not any(at == there and _follows(store, load) for there, load in read)
    ]
    for at, load in read:
        if not any(at == there and _follows(store, load) for there, store in stored):
            return None
        if any(store.loops == load.loops and at == there and store.place < load.place for there, store in stored):
            return None
        if any(store.place < load.place and not _apart(at, there) for there, store in blind):
            return None
    body = redirected(kernel.body, {output}, lambda _, index: (given, index))
    args = tuple(dataclasses.replace(a, mode="inout") if a.name == given else a for a in kernel.args)
    return dataclasses.replace(kernel, body=body, args=tuple(a for a in args if a.name != output))


def _follows(store: _Access, load: _Access) -> bool:
    """Whether the store happens wherever the Load does, and not before it."""
    same = store.loops == load.loops and load.conditions[: len(store.conditions)] == store.conditions
    return same and load.place <= store.place


def _apart(one: Expr, other: Expr) -> bool:
    """Whether two indices of one iteration are seen to differ."""
    low, high = bounds(normalize(one - other))
    return (low is not None and low > 0) or (high is not None and high < 0)


def _index(a: _Access, lets: dict[str, Expr]) -> Expr:
    (index,) = a.access.index
    while True:
        named: dict[Expr, Expr] = {v: lets[v.name] for v in free_vars(index) if v.name in lets}
        if not named:
            return normalize(index)
        index = substitute(index, named)


def _accesses(body: Sequence[Stmt], buffers: set[str]) -> Iterator[_Access]:
    place = 0

    def visit(
        body: Sequence[Stmt], loops: tuple[tuple[int, Var], ...], conditions: tuple[Expr, ...]
    ) -> Iterator[_Access]:
        nonlocal place
        for s in body:
            place += 1
            for top in exprs(s):
                for e in walk(top):
                    if isinstance(e, Load) and e.buffer in buffers:
                        yield _Access(loops, conditions, place, e)
            if isinstance(s, For):
                once = isinstance(s.extent, Const) and s.extent.value == 1
                yield from visit(s.body, loops if once else (*loops, (place, s.var)), conditions)
            elif isinstance(s, If):
                yield from visit(s.body, loops, (*conditions, s.cond))
            elif isinstance(s, Store) and s.buffer in buffers:
                yield _Access(loops, conditions, place, s)

    yield from visit(body, (), ())
