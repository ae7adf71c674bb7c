"""Make an output where an input was: for arguments whose memory the caller gives away."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from kernelforge.ir.accesses import redirected
from kernelforge.ir.index import bounds, conjuncts, free_vars, normalize
from kernelforge.ir.kernel import (
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Op,
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


class Overwriting:
    """Makes outputs of a kernel in the memory of inputs, pair by pair.

    Legal is it where each element is last read in the iteration that stores the output's element at the same place,
    before or by what stores it. An output's element is stored once.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._sizes = {a.name: a.size for a in kernel.args}
        self._lets = _computed(kernel)
        self._loads: dict[str, list[tuple[Expr, _Access]]] = {}
        self._stores: dict[str, list[tuple[Expr, _Access]]] = {}
        for a in _accesses(kernel.body, self._sizes):
            found = self._stores if isinstance(a.access, Store) else self._loads
            found.setdefault(a.access.buffer, []).append((self._index(a), a))
        self._pairs: dict[str, str] = {}

    def tried(self, output: str, given: str) -> bool:
        """Make ``output`` in the memory of the input ``given``, of as many elements, if that is legal; say whether."""
        if self._legal(output, given):
            self._pairs[output] = given
            return True
        return False

    def made(self) -> Kernel:
        """Return the kernel, in which inputs whose memory is taken hold outputs in the end."""
        if not self._pairs:
            return self._kernel
        taken = frozenset(self._pairs.values())
        body = redirected(self._kernel.body, self._pairs, lambda name, index: (self._pairs[name], index))
        args = [a for a in self._kernel.args if a.name not in self._pairs]
        args = [dataclasses.replace(a, mode="inout") if a.name in taken else a for a in args]
        return dataclasses.replace(self._kernel, body=body, args=tuple(args))

    def _legal(self, output: str, given: str) -> bool:
        stored, read = self._stores.get(output, []), self._loads.get(given, [])
        if self._sizes[output] != self._sizes[given] or output in self._loads or given in self._stores:
            return False
        if any(isinstance(a.access, Store) and a.access.op for _, a in stored):
            return False
        if not all(_once(at, a) for at, a in stored):
            return False
        for at, load in read:
            if not any(at == there and _follows(store, load) for there, store in stored):
                return False
            if any(store.loops == load.loops and at == there and store.place < load.place for there, store in stored):
                return False
        # stores that read no such element: what they make first, others may make again
        blind = [
            (at, store)
            for at, store in stored
            if not any(at == there and _follows(store, load) for there, load in read)
        ]
        return not any(
            store.place < load.place and not _apart(at, there) for at, load in read for there, store in blind
        )

    def _index(self, a: _Access) -> Expr:
        (index,) = a.access.index
        while True:
            named: dict[Expr, Expr] = {v: self._lets[v.name] for v in free_vars(index) if v.name in self._lets}
            if not named:
                return normalize(index)
            index = substitute(index, named)


def _computed(kernel: Kernel) -> dict[str, Expr]:
    """Return the Lets without data in them: a place that data finds is never one that is stored at, and may be long."""
    made: dict[str, Expr] = {}
    found: set[str] = set()
    for s in stmts(kernel.body):
        if isinstance(s, Let):
            if any(isinstance(e, Load) or (isinstance(e, Var) and e.name in found) for e in walk(s.value)):
                found.add(s.name)
            else:
                made[s.name] = s.value
    return made


def _once(at: Expr, store: _Access) -> bool:
    """Whether each iteration that stores has an element of its own: its loops are in the index, or happen once."""
    return all(var in free_vars(at) or _single(var, store.conditions) for _, var in store.loops)


def _single(var: Var, conditions: Sequence[Expr]) -> bool:
    """Whether conditions leave one value of a variable."""
    low, high = 0, math.inf if var.bound is None else var.bound
    for c in itertools.chain.from_iterable(map(conjuncts, conditions)):
        if isinstance(c, Op) and c.parts[0] == var and isinstance(c.parts[-1], Const):
            limit = int(c.parts[-1].value)
            low = max(low, limit) if c.op == "ge" else low
            high = min(high, limit) if c.op == "lt" else high
    return high - low <= 1


def _follows(store: _Access, load: _Access) -> bool:
    """Whether the store happens wherever the Load does, and not before it."""
    same = store.loops == load.loops and load.conditions[: len(store.conditions)] == store.conditions
    return same and load.place <= store.place


def _apart(one: Expr, other: Expr) -> bool:
    """Whether two indices of one iteration are seen to differ."""
    low, high = bounds(normalize(one - other))
    return (low is not None and low > 0) or (high is not None and high < 0)


def _accesses(body: Sequence[Stmt], buffers: Collection[str]) -> Iterator[_Access]:
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
