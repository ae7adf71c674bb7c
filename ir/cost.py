"""What work costs, in bytes and operations: the constants behind fusion, recomputation and the words of ``explain``.

Time is counted in bytes of memory traffic: ``work / OPERATIONS_PER_BYTE`` more for arithmetic, ``LAUNCH_BYTES`` for a
kernel. The figures are of no device: what is kept and what is fused must be the same on all, as results are.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import free_vars
from kernelforge.ir.kernel import (
    ARITY,
    COMPARE,
    MATH_BINARY,
    MATH_UNARY,
    Alloc,
    Arg,
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
    walk,
)
from kernelforge.ir.schedule.limits import LINE

OPERATIONS_PER_BYTE = 4
"""Simple operations that take as long as moving a byte: between a CPU's 6 and a tenth of a large GPU's 15, so that
arithmetic counted as free is."""

LAUNCH_BYTES = 1 << 16
"""Bytes that could be moved while a kernel is launched: 2 microseconds at 30 GB/s."""

TRANSCENDENTAL, POWER, DIVISION = 16, 96, 4
"""Simple operations that a transcendental function, a power (in twice the precision), and a division or a root stand
for."""

COSTLY = frozenset({
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh",
    "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "erf", "erfc", "power", "arctan2", "logaddexp",
})  # fmt: skip
"""Primitives of many operations: a nest counts by themselves how often it evaluates them."""

EXPENSIVE = COSTLY | {"cbrt", "hypot", "divide", "sqrt", "fmod", "remainder", "floor_divide", "random_bits"}
"""Primitives not worth repeating for each use of an element in a contraction."""


def weight(name: str) -> int:
    """Return how many simple operations an element of a primitive stands for."""
    if name in EXPENSIVE:
        return POWER if name == "power" else TRANSCENDENTAL if name in COSTLY else DIVISION
    return 1


RECOMPUTE = 3
"""A nest may evaluate each of its nodes this many times on average; above, its values are better stored."""

FREE_NODES = 48
"""A value made of so many nodes from constants, counters and scalars alone is computed again by each reader."""

BRANCH = 6
"""Simple operations that take as long as asking whether any lane wants an arm of a select."""

_WEIGHT = (
    dict.fromkeys((*MATH_UNARY, *MATH_BINARY), TRANSCENDENTAL)
    | dict.fromkeys(("div", "sqrt"), DIVISION)
    | {"pow": POWER}
)
_FREE = frozenset({"cast", "bitcast", "select", "tf32"})


class Cost(NamedTuple):
    """Of one kernel.

    Attributes:
        bytes: the least that must be moved: each buffer once, scratch not counted.
        flops: floating-point operations as they are written, a transcendental counted once.
        work: simple operations that they, comparisons and selections stand for.
    """

    bytes: int
    flops: int
    work: int

    @property
    def price(self) -> float:
        """All of it in bytes."""
        return self.bytes + self.work / OPERATIONS_PER_BYTE


def cost(kernel: Kernel) -> Cost:
    """Count a naive kernel."""
    flops, work = operations(kernel.body)
    return Cost(sum(nbytes(a) for a in kernel.args if a.mode != "scratch"), flops, work)


def nbytes(arg: Arg) -> int:
    """Return the bytes of a buffer of constant size."""
    assert isinstance(arg.size, Const)
    return int(arg.size.value) * DTYPES[arg.dtype].itemsize


Streamed: TypeAlias = Mapping[str, int]
"""Buffers to store past the cache, and the bytes that a store has at least which does so."""
NOTHING: Streamed = types.MappingProxyType({})


def streamed(kernel: Kernel, cache_bytes: tuple[int, int, int]) -> Streamed:
    """Return the outputs of which little is left in the cache when the next kernel reads them.

    Storing them past the cache saves reading each line before it is overwritten, and keeps the next kernel from finding
    them there. Where inputs and outputs fill three quarters of the last level at most, storing through it is quicker,
    even if the caller holds the last results while new ones are made: on a Zen 4 with 32 MB, a product with a number
    takes 0.21 ms for 12 MB through the cache (held 0.31) and 0.45 past it, on a Zen 5 a copy of 8 MB 0.09 and 0.20. Of
    16 MB, a softmax takes as long either way on the first, and a layer norm on the second 0.56 and 0.32 ms, others at
    work beside.

    Stores of less than a line that are shorter than others to the same output, as at the ends of rows, go through the
    cache: where the others do, as they begin within lines, a line of which part goes past it takes 20 times as long.

    Args:
        cache_bytes: sizes of the caches for data of levels 1, 2 and 3.
    """
    sizes = {a.name: nbytes(a) for a in kernel.args if isinstance(a.size, Const)}
    if 4 * sum(sizes.get(a.name, 0) for a in kernel.args) <= 3 * cache_bytes[2]:
        return NOTHING
    large = {a.name for a in kernel.args if a.mode == "out" and sizes.get(a.name, 0) >= cache_bytes[1]}
    read = {e.buffer for s in stmts(kernel.body) for top in exprs(s) for e in walk(top) if isinstance(e, Load)}
    return {name: min(_longest(kernel.body, name), LINE) for name in sorted(large - read)}


def _longest(body: Sequence[Stmt], name: str, lanes: int = 1) -> int:
    """Return the bytes of the longest store to a buffer."""
    most = 0
    for stmt in body:
        if isinstance(stmt, Store) and stmt.buffer == name:
            most = max(most, lanes * DTYPES[stmt.value.dtype].itemsize)
        elif isinstance(stmt, For | If):
            vector = isinstance(stmt, For) and stmt.kind == "vector" and stmt.static
            most = max(most, _longest(stmt.body, name, vector or lanes))
    return most


def operations(body: Sequence[Stmt]) -> tuple[int, int]:
    """Return the floating-point operations of statements and the work they stand for.

    Work is counted in all loops around it down to the last one that it changes in: inside, it stays the same. Factors
    of products, which are packed, are counted only in the loops that they change in.
    """
    return _flops(body), _Work().count(body, {})


def _flops(body: Sequence[Stmt]) -> int:
    total = 0
    for stmt in body:
        times = (stmt.static or 1) if isinstance(stmt, For) else 1
        own = [x for e in exprs(stmt) for x in walk(e) if isinstance(x, Op) and x.op in ARITY]
        total += sum(_is_float(x) and x.op not in _FREE for x in own) + (isinstance(stmt, Store) and bool(stmt.op))
        total += times * _flops(stmt.body) if isinstance(stmt, For | If) else 0
    return total


def effort(found: Iterable[Expr]) -> int:
    """Weigh the operations among distinct expressions, those on integers too."""
    return sum(_WEIGHT.get(e.op, 1) for e in found if isinstance(e, Op))


class _Work:
    def __init__(self) -> None:
        self.depends: dict[str, frozenset[Var]] = {}
        """The loops around the place where a buffer or name is made: what is read from it may change in each."""
        self.memo: dict[Expr, frozenset[Var]] = {}

    def loops(self, e: Expr) -> frozenset[Var]:
        """Return the loops that an expression may change in."""
        found = self.memo.get(e)
        if found is None:
            if isinstance(e, Var):
                found = self.depends.get(e.name, frozenset({e}))
            elif isinstance(e, Load):
                found = self.depends.get(e.buffer, frozenset()).union(*map(self.loops, e.index))
            else:
                found = frozenset().union(*map(self.loops, e.args)) if isinstance(e, Op) else frozenset()
            self.memo[e] = found
        return found

    def count(self, body: Sequence[Stmt], around: dict[Var, int], product: bool = False) -> int:
        total = 0
        for stmt in body:
            for x in {x for e in exprs(stmt) for x in walk(e) if isinstance(x, Op)}:
                total += _weight(x) * self.times(x, around, product) if _weight(x) else 0
            match stmt:
                case Let(name, _) | Alloc(name):
                    self.depends[name] = frozenset(around)
                case Store(op=op) if op:
                    total += math.prod(around.values())
                case For():
                    inside = {**around, stmt.var: stmt.static or 1}
                    total += self.count(stmt.body, inside, product or self.multiplies(stmt, frozenset(inside)))
                case If():
                    total += self.count(stmt.body, around, product)
        return total

    def times(self, e: Expr, around: dict[Var, int], product: bool) -> int:
        """Return how often an expression is computed in the loops around it."""
        changing = self.loops(e)
        last = max((k for k, var in enumerate(around) if var in changing), default=-1)
        return math.prod(
            n for k, (var, n) in enumerate(around.items()) if k <= last and (var in changing or not product)
        )

    def multiplies(self, loop: For, around: frozenset[Var]) -> bool:
        """Whether a loop sums over what changes in different loops around it, as the factors of a product do."""
        if loop.kind != "serial":
            return False
        read = {x for s in stmts((loop,)) for e in exprs(s) for x in walk(e) if isinstance(x, Load)}
        changing = {found for x in read if loop.var in (found := around & free_vars(x))}
        return any(not (a <= b or b <= a) for a in changing for b in changing)


def _is_float(x: Expr) -> bool:
    return x.dtype[0] in "fb" and x.dtype != "bool"


def _weight(x: Op) -> int:
    """Weigh an operation; arithmetic of indices is hidden behind that of elements."""
    counts = _is_float(x) or (x.op in COMPARE and _is_float(x.args[0])) or x.dtype == "bool"
    return _WEIGHT.get(x.op, 1) if counts else 0
