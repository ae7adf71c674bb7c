"""Steps for loops that slide over each other, as the positions of a window and the elements in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.accesses import reallocated, redirected
from kernelforge.ir.index import affine, bounds, flatten, free_vars, normalize
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Op,
    Stmt,
    Var,
    exprs,
    i64,
    map_exprs,
    select,
    stmts,
    substitute,
    walk,
)
from kernelforge.ir.schedule.steps import each
from kernelforge.ir.types import row_major


class Axis(NamedTuple):
    """An axis of a buffer: what counts it, how far, and the index at which it is read."""

    var: Var
    extent: Expr
    read: Expr


class Slide(NamedTuple):
    """Two loops that an expression depends on by ``outer * step + inner * stride`` alone, of which one factor is 1."""

    outer: For
    inner: For
    step: int
    stride: int

    def axes(self, expr: Expr, name: str) -> tuple[Expr, list[Axis]]:
        """Write ``expr`` in terms of the sum; return it with the axes that the sum has in a buffer, from outside in.

        With a step above 1 there are two: elements a step apart lie side by side, as consecutive iterations of
        ``outer`` read them.
        """
        a, b = self.outer, self.inner
        over, most = None, None
        if a.var.bound is not None and b.var.bound is not None:
            over, most = a.var.bound, b.var.bound - 1
        extent = normalize((a.extent - 1) * self.step + (b.extent - 1) * self.stride + 1)
        last = None if over is None or most is None else (over - 1) * self.step + most * self.stride + 1
        name = f"{name}_{a.var.name}"
        if self.step == 1:
            total = Var(name, "i64", last)
            return self.at(expr, total), [Axis(total, extent, normalize(a.var + b.var * self.stride))]
        phase = Var(f"{name}p", "i64", self.step)
        row = Var(name, "i64", None if over is None or most is None else over + most // self.step)
        made = row * self.step + phase
        axes = [
            Axis(phase, i64(self.step), normalize(b.var % self.step)),
            Axis(row, normalize(a.extent + (b.extent - 1) // self.step), normalize(a.var + b.var // self.step)),
        ]
        return select(normalize(made < extent), self.at(expr, made), 0), axes

    def at(self, expr: Expr, total: Expr) -> Expr:
        """Write ``expr`` in terms of the sum."""
        a, b = self.outer.var, self.inner.var
        replace: dict[Expr, Expr] = {a: total - b * self.stride} if self.step == 1 else {b: total - a * self.step}
        return normalize(substitute(expr, replace))


def slides(expr: Expr, outer: For, inner: For) -> Slide | None:
    """Return how two loops slide over each other in ``expr``: it depends on one sum of them alone, and several of their
    iterations have the same one. None where they do not.
    """
    n, m = outer.var.bound or 0, inner.var.bound or 0
    for load in walk(expr):
        if isinstance(load, Load) and {outer.var, inner.var} <= free_vars(load) and len(load.index) == 1:
            a, b = (affine(load.index[0], v.var) or 0 for v in (outer, inner))
            common = math.gcd(a, b)
            if a <= 0 or b <= 0 or common not in (a, b) or ((n - 1) * a + (m - 1) * b) // common >= n * m - 1:
                return None
            found = Slide(outer, inner, a // common, b // common)
            left = free_vars(found.at(expr, Var("sum", "i64", 1 << 40)))
            return None if {outer.var, inner.var} & left else found
    return None


def lengthen(kernel: Kernel, name: str, extent: int) -> Kernel:
    """Let a loop run on to ``extent``, doing nothing. Always legal."""

    def change(loop: For) -> Sequence[Stmt]:
        if loop.static is None or loop.static > extent:
            raise IllegalSchedule(step="lengthen", target=name, reason=f"its extent is not known to be under {extent}")
        if loop.static == extent:
            return (loop,)
        var = Var(name, "i64", extent)
        body = tuple(map_exprs(s, lambda e: substitute(e, {loop.var: var})) for s in loop.body)
        return (For(var, i64(extent), loop.kind, (If(var < loop.extent, body),)),)

    return each(kernel, "lengthen", name, change)


def flat(kernel: Kernel, buffer: str, count: int) -> Kernel:
    """Make one axis of the last ``count`` axes of an allocated buffer, with room for what its indices reach where no
    guard keeps them back. Legal because buffers are row-major.
    """
    made = next(s for s in stmts(kernel.body) if isinstance(s, Alloc) and s.buffer == buffer)
    shape = tuple(int(n.value) for n in made.shape[-count:] if isinstance(n, Const))
    if len(shape) != count:
        raise IllegalSchedule(step="flat", target=buffer, reason="its extents are not constants")
    size = math.prod(shape)

    def whole(_: str, given: tuple[Expr, ...]) -> tuple[str, tuple[Expr, ...]]:
        nonlocal size
        at = flatten(given[-count:], row_major(shape))
        size = max(size, (bounds(at)[1] or 0) + 1)
        return buffer, (*given[:-count], at)

    body = redirected(kernel.body, {buffer}, whole)
    return dataclasses.replace(kernel, body=reallocated(body, buffer, shape=(*made.shape[:-count], i64(size))))


def cross(kernel: Kernel, name: str) -> Kernel:
    """Let the iterations of a short loop that lie in one row, and those in the next one, each have the row as a number.

    A row is what quotients by constants that are not less than the extent of the loop count. Lanes then store side by
    side. Always legal.
    """

    def change(loop: For) -> Sequence[Stmt]:
        every = {e for s in loop.body for t in stmts((s,)) for r in exprs(t) for e in walk(r) if isinstance(e, Op)}
        rows: dict[Op, int] = {}
        for e in every:
            if e.op in ("floordiv", "mod") and e.dtype == "i64" and affine(e.args[0], loop.var) == 1:
                rows[e] = int(e.args[1].value) if isinstance(e.args[1], Const) else 0
        places = {e.args[0] for e in rows}
        n = min(rows.values(), default=0)
        if len(places) != 1 or n < (loop.static or n + 1) or any(divisor % n for divisor in rows.values()):
            return (loop,)
        (place,) = places
        first = substitute(place, {loop.var: i64(0)})
        at = normalize(first % n + loop.var)
        ends = {e: int(e.args[1].value) for e in every if _ends_row(e, place, n)}  # type: ignore[attr-defined]
        body: list[Stmt] = []
        for inside, row, column in ((at < n, first // n, at), (at >= n, first // n + 1, at - n)):
            replace: dict[Expr, Expr] = {e: normalize(row < end // n) for e, end in ends.items()}
            for e, divisor in rows.items():
                times = divisor // n
                replace[e] = row // times if e.op == "floordiv" else column + (row % times) * n
            memo: dict[Expr, Expr] = {}
            made = (map_exprs(s, lambda e: normalize(substitute(e, replace, memo))) for s in loop.body)  # noqa: B023
            body.append(If(normalize(inside), tuple(made)))
        return (dataclasses.replace(loop, body=tuple(body)),)

    return each(kernel, "cross", name, change)


def _ends_row(e: Op, place: Expr, n: int) -> bool:
    """Whether a comparison with the end of a row asks for rows."""
    return e.op == "lt" and e.args[0] is place and isinstance(e.args[1], Const) and int(e.args[1].value) % n == 0
