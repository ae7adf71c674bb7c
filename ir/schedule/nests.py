"""What the recipes ask of a nest, and binding its outer loops."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import (
    MATH_BINARY,
    MATH_UNARY,
    Alloc,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    stmts,
    walk,
)
from kernelforge.ir.schedule.limits import NEAR, SHORTEST, Limits

COSTS = {"div": 4, "sqrt": 6} | dict.fromkeys(MATH_UNARY + MATH_BINARY, 16)
"""Operations, on SIMD lanes, that take the time of so many additions."""

LOAD, STORE = 2, 4
"""The same for an element in the cache."""


def perfect(nest: For) -> tuple[list[For], tuple[Stmt, ...]]:
    """Return the parallel loops that stand directly in each other, outermost first, and what the last one holds."""
    found = [nest]
    while len(found[-1].body) == 1 and isinstance(found[-1].body[0], For) and found[-1].body[0].kind == "parallel":
        found.append(found[-1].body[0])
    return found, found[-1].body


def row_of_block(body: Sequence[Stmt]) -> For | None:
    """Return the loop over the rows of a block, where a nest has blocks: the one around loops that do not combine."""
    rows = body[-1]
    while isinstance(rows, For) and rows.kind == "serial":
        if any(isinstance(s, For) and s.kind == "parallel" for s in rows.body):
            return rows
        rows = rows.body[0]
    return None


def filled(body: Sequence[Stmt]) -> Store | None:
    """Return the store of what a nest makes by sums of products, if it does nothing else."""
    return None if summed(body) is None else next(s for s in stmts(body) if isinstance(s, Store) and s.index[1:])


def summed(body: Sequence[Stmt]) -> Store | None:
    """Return the store that sums products, where a nest makes elements by sums of products and nothing else."""
    while len(body) == 1 and isinstance(body[0], For) and body[0].kind == "parallel":
        body = body[0].body
    if not body or not isinstance(body[0], Alloc):
        return None
    store = next((s for s in stmts(body) if isinstance(s, Store) and s.op), None)
    product = store is not None and store.op == "add" and isinstance(store.value, Op) and store.value.op == "mul"
    return store if product else None


def size(loops_: Sequence[For]) -> int:
    return math.prod(p.static or 1 for p in loops_)


def allocated(alloc: Alloc) -> int:
    """Return the bytes of a buffer whose extents are constants; others count as 1."""
    shape = [int(n.value) if isinstance(n, Const) else 1 for n in alloc.shape]
    return math.prod(shape) * DTYPES[alloc.dtype].itemsize


def loads(body: Sequence[Stmt]) -> list[Load]:
    """Return the distinct Loads of flat buffers below."""
    found = {
        e: None for s in stmts(body) for r in exprs(s) for e in walk(r) if isinstance(e, Load) and len(e.index) == 1
    }
    return list(found)


def lanes(body: Sequence[Stmt], limits: Limits, along: Collection[Var] = ()) -> int:
    """Return how many elements of the widest dtype that is touched fill a SIMD register, 16 at most; of what some loops
    walk ``along``, if given.
    """
    widths = [1]
    for s in stmts(body):
        for r in exprs(s):
            read = [e for e in walk(r) if e.dtype != "bool" and isinstance(e, Load)]
            read = [e for e in read if not along or any(not free_vars(i).isdisjoint(along) for i in e.index)]
            widths += [int(e.dtype.strip("bfiu")) // 8 for e in read]
        if isinstance(s, Store) and s.value.dtype != "bool":
            widths.append(int(s.value.dtype.strip("bfiu")) // 8)
    return max(1, min(16, limits.vector_bytes // max(widths)))


def reduction_loops(body: Sequence[Stmt]) -> list[For]:
    """Return the innermost serial loops of a nest, those that combine."""
    return [
        s
        for s in stmts(body)
        if isinstance(s, For) and s.kind == "serial" and all(isinstance(t, Store) for t in s.body)
    ]


def rowwise(body: Sequence[Stmt], last: For) -> bool:
    """Whether the reductions walk memory element by element, rather than the parallel axis ``last`` does.

    Where both do, as over windows, the longer one.
    """
    votes = longest = 0
    for loop in reduction_loops(body):
        for load in loads((loop,)):
            across, along = affine(load.index[0], last.var), affine(load.index[0], loop.var)
            if across != 0 and along != 0:  # what every result, or every step of one, reads says nothing
                votes += (along == 1) - (across == 1)
        longest = max(longest, loop.static or loop.var.bound or 0)
    return votes > 0 or (votes == 0 and longest >= (last.static or 0))


def few(body: Sequence[Stmt], last: For, width: int) -> bool:
    """Whether each reduction is of few elements, and lanes that own results find theirs near each other.

    Where a function of each result is all that follows, more of them, gathered, pay: lanes share the function.
    """
    found = reduction_loops(body)
    most, apart = (4 * NEAR, 4 * NEAR) if _worked_out(body) else (width - 1, NEAR)
    steps = [affine(e.index[0], last.var) for loop in found for e in loads((loop,))]
    near = all(c is not None and 0 <= c <= apart for c in steps) and any(steps)
    return near and (last.static or 0) >= SHORTEST and all((loop.static or most + 1) <= most for loop in found)


def _worked_out(body: Sequence[Stmt]) -> bool:
    """Whether a nest takes a function of what it reduces, and stores nothing else."""
    inner = [s for s in stmts(body) if isinstance(s, For)]
    every = {e for s in stmts(body) for r in exprs(s) for e in walk(r) if isinstance(e, Op) and e.op in MATH_UNARY}
    counters = {s.var for s in inner}
    return all(s.kind != "parallel" for s in inner) and any(counters.isdisjoint(free_vars(e)) for e in every)


def operations(expr: Expr, inner: Collection[Var] = ()) -> int:
    """Estimate what an element of ``expr`` costs, in arithmetic operations; of what depends on ``inner`` if given."""
    seen = [e for e in walk(expr) if e.dtype != "i64" or isinstance(e, Load)]
    if inner:
        seen = [e for e in seen if not free_vars(e).isdisjoint(inner)]
    return sum(COSTS.get(e.op, 1) if isinstance(e, Op) else LOAD * isinstance(e, Load) for e in seen)


def _free(indices: Sequence[Expr]) -> set[Var]:
    return {v for i in indices for v in free_vars(i)}


def unit(loop: For, near: int = 1) -> bool:
    """Whether most of what a loop touches lies side by side for consecutive iterations, or at most ``near`` elements
    apart, where that is more than 1 also backwards; but for what is found by data: lanes wait for all of that at once,
    and a loop for one after the other.
    """
    found = dict.fromkeys(e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if isinstance(e, Load))
    plain = [e for e in found if not any(isinstance(part, Load) for i in e.index for part in walk(i))]
    steps = [affine(e.index[-1], loop.var) for e in plain if e.index and loop.var not in _free(e.index[:-1])]
    stored = [affine(s.index[0], loop.var) for s in stmts(loop.body) if isinstance(s, Store) and len(s.index) == 1]
    least = -near if near > 1 else 0
    inside = sum(c is not None and least <= c <= near for c in steps)
    return all(c is not None and 0 < c <= near for c in stored) and 2 * inside >= len(steps)


def grid(kernel: Kernel, allowed: Sequence[str], enough: int) -> Kernel:
    """Bind the outermost loops of each nest until there are ``enough`` iterations; the others stay with the thread.

    Only loops named in ``allowed``, and the outermost one in any case, as long as they stand directly in each other.
    """

    def bound(loop: For, total: int) -> For:
        total *= loop.static or 1
        body = loop.body
        inner = body[0] if len(body) == 1 else None
        if total < enough and isinstance(inner, For) and inner.kind == "parallel" and inner.var.name in allowed:
            body = (bound(inner, total),)
        return dataclasses.replace(loop, kind="grid", body=body)

    made = [bound(s, 1) if isinstance(s, For) and s.kind == "parallel" else s for s in kernel.body]
    return dataclasses.replace(kernel, body=tuple(made))
