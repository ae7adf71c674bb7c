"""Choosing among arrays, and places in sorted arrays, which are found by comparing with every element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.errors import InvalidParameter, ShapeMismatch, UnsupportedArgument
from kernelforge.ir.build import Operand, Sym, apply, as_sym, user_line
from kernelforge.ir.types import broadcast_shapes
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.joins import concatenate
from kernelforge.numpy.shapes import part
from kernelforge.numpy.ufuncs import common_dtype, kindred, ufunc, where


@array_function("*condlist", "*choicelist", "default", numbers=True)
def select(condlist: Sequence[Sym], choicelist: Sequence[Operand], default: Operand = 0) -> Sym:
    """``numpy.select``: of each element the choice whose condition is the first to hold."""
    if len(condlist) != len(choicelist) or not condlist:
        found = f"{len(condlist)} conditions and {len(choicelist)} choices"
        raise ShapeMismatch(op="np.select", found=found, expected="as many of both, at least one", loc=user_line())
    for condition in condlist:
        if kindred(condition) != np.dtype(np.bool_):
            raise InvalidParameter(
                op="np.select", name="condlist", found=condition, expected="conditions of bool", loc=user_line()
            )
    kind = common_dtype([*choicelist, default])
    chosen = as_sym(default).astype(kind)
    for condition, choice in zip(reversed(condlist), reversed(choicelist), strict=True):
        chosen = where(condition, as_sym(choice).astype(kind), chosen)
    return chosen.broadcast(broadcast_shapes(*(as_sym(x).shape for x in (*condlist, *choicelist, default))))


@array_function("arr", "values")
def append(arr: Sym, values: Sym, axis: int | None = None) -> Sym:
    return concatenate([arr, values], axis)


@array_function("a", "v")
def searchsorted(a: Sym, v: Sym, side: str = "left", sorter: Any = None) -> Sym:
    """``numpy.searchsorted``: ``a`` must be sorted, and is compared with ``v`` element by element."""
    if sorter is not None:
        raise UnsupportedArgument(
            op="np.searchsorted", name="sorter", found=type(sorter).__name__, expected="sort a before", loc=user_line()
        )
    if a.ndim != 1:
        raise ShapeMismatch(op="np.searchsorted", found=a.shape, expected="a of one axis", loc=user_line())
    if side not in ("left", "right"):
        raise InvalidParameter(
            op="np.searchsorted", name="side", found=side, expected="'left' or 'right'", loc=user_line()
        )
    wanted = v.reshape((*v.shape, 1))
    before = ufunc("less" if side == "left" else "less_equal", a, wanted)
    if v.dtype.kind == "f":
        # NaN stands behind all numbers
        last = ufunc("isnan", wanted)
        if side == "left" and a.dtype.kind == "f":
            last = ufunc("bitwise_and", last, ufunc("invert", ufunc("isnan", a)))
        before = ufunc("bitwise_or", before, last)
    return before.astype(np.int64).sum((before.ndim - 1,))


@array_function("x", "xp", "fp", "left", "right")
def interp(
    x: Sym, xp: Sym, fp: Sym, left: Sym | None = None, right: Sym | None = None, period: float | None = None
) -> Sym:
    """``numpy.interp``: linear interpolation in float64, as NumPy does whatever it is given."""
    if xp.ndim != 1 or fp.shape != xp.shape or not xp.size:
        found = f"{xp.shape} and {fp.shape}"
        raise ShapeMismatch(
            op="np.interp", found=found, expected="xp and fp of one axis of one extent", loc=user_line()
        )
    x, xp, fp = (s.astype(np.float64) for s in (x, xp, fp))
    if period is not None:
        if period == 0:
            raise InvalidParameter(
                op="np.interp", name="period", found=period, expected="another number than 0", loc=user_line()
            )
        period = abs(period)
        x, xp = (ufunc("remainder", s, period) for s in (x, xp))
        order = FUNCTIONS["argsort"](xp)
        xp, fp = FUNCTIONS["take"](xp, order), FUNCTIONS["take"](fp, order)
        n = xp.size
        ends = [part(xp, 0, n - 1, n) - period, xp, part(xp, 0, 0, 1) + period]
        xp, fp = concatenate(ends, 0), concatenate([part(fp, 0, n - 1, n), fp, part(fp, 0, 0, 1)], 0)
        left = right = None
    first, last = (apply("slice", fp, starts=(i,), stops=(i + 1,), steps=(1,)).reshape(()) for i in (0, fp.size - 1))
    low, high = (apply("slice", xp, starts=(i,), stops=(i + 1,), steps=(1,)).reshape(()) for i in (0, xp.size - 1))
    left = first if left is None else left.astype(np.float64)
    right = last if right is None else right.astype(np.float64)
    inside = last
    if xp.size > 1:
        take = FUNCTIONS["take"]
        i = FUNCTIONS["clip"](ufunc("subtract", searchsorted(xp, x, "right"), 1), 0, xp.size - 2)
        j = ufunc("add", i, 1)
        slope = ufunc(
            "divide", ufunc("subtract", take(fp, j), take(fp, i)), ufunc("subtract", take(xp, j), take(xp, i))
        )
        inside = ufunc("add", ufunc("multiply", slope, ufunc("subtract", x, take(xp, i))), take(fp, i))
        inside = where(ufunc("equal", x, high), last, inside)
    made = where(ufunc("less", x, low), left, where(ufunc("greater", x, high), right, inside))
    return where(ufunc("isnan", x), x, made)
