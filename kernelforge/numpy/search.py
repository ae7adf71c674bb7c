"""Choosing among arrays, and places in sorted arrays, which are found by halving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernelforge.dtypes import is_float, promote
from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Operand, Sym, apply, as_sym
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
        raise ShapeMismatch(op="np.select", found=found, expected="as many of both, at least one")
    for condition in condlist:
        if kindred(condition) != np.dtype(np.bool_):
            raise InvalidParameter(op="np.select", name="condlist", found=condition, expected="conditions of bool")
    kind = common_dtype([*choicelist, default])
    chosen = as_sym(default).astype(kind)
    for condition, choice in zip(reversed(condlist), reversed(choicelist), strict=True):
        chosen = where(condition, as_sym(choice).astype(kind), chosen)
    return chosen.broadcast(broadcast_shapes(*(as_sym(x).shape for x in (*condlist, *choicelist, default))))


@array_function("arr", "values")
def append(arr: Sym, values: Sym, axis: int | None = None) -> Sym:
    return concatenate([arr, values], axis)


@array_function("a", "v", "sorter")
def searchsorted(a: Sym, v: Sym, side: str = "left", sorter: Sym | None = None) -> Sym:
    """``numpy.searchsorted``: halves what is left of ``a``, which must be sorted, for all of ``v`` at once."""
    if a.ndim != 1:
        raise ShapeMismatch(op="np.searchsorted", found=a.shape, expected="a of one axis")
    if side not in ("left", "right"):
        raise InvalidParameter(op="np.searchsorted", name="side", found=side, expected="'left' or 'right'")
    take = FUNCTIONS["take"]
    if sorter is not None:
        if sorter.shape != a.shape or sorter.dtype.kind not in "iu":
            raise ShapeMismatch(op="np.searchsorted", found=sorter.type, expected=f"a sorter of {a.size} integers")
        a = take(a, sorter)
    kind = promote([a.dtype, v.dtype], [])
    a, v = a.astype(kind), v.astype(kind)
    place = apply("full", value=0, shape=v.shape, dtype="u32" if a.size < 1 << 31 else "u64")
    for step in (1 << k for k in reversed(range(a.size.bit_length()))):
        last = place + (step - 1)  # is it before v, so are those in front of it
        found = apply("gather", a, last, axes=(0,))
        before = ufunc("less" if side == "left" else "less_equal", found, v)
        if is_float(kind):  # NaN stands behind all numbers
            nan = ufunc("isnan", v)
            before = before | (nan if side == "right" else nan & ufunc("invert", ufunc("isnan", found)))
        place = place + (before & ufunc("less", last, a.size)).astype(place.dtype) * step
    return place.astype(np.int64)


@array_function("x", "xp", "fp", "left", "right")
def interp(
    x: Sym, xp: Sym, fp: Sym, left: Sym | None = None, right: Sym | None = None, period: float | None = None
) -> Sym:
    """``numpy.interp``: linear interpolation in float64, as NumPy does whatever it is given."""
    if xp.ndim != 1 or fp.shape != xp.shape or not xp.size:
        found = f"{xp.shape} and {fp.shape}"
        raise ShapeMismatch(op="np.interp", found=found, expected="xp and fp of one axis of one extent")
    x, xp, fp = (s.astype(np.float64) for s in (x, xp, fp))
    if period is not None:
        if period == 0:
            raise InvalidParameter(op="np.interp", name="period", found=period, expected="another number than 0")
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
        (x0, x1), (y0, y1) = ((take(s, i), take(s, j)) for s in (xp, fp))
        slope = ufunc("divide", ufunc("subtract", y1, y0), ufunc("subtract", x1, x0))
        inside, back = (slope * ufunc("subtract", x, at) + y for at, y in ((x0, y0), (x1, y1)))
        # beside an infinity the end that is finite tells, and what is known stays known
        back = where(ufunc("isnan", back) & ufunc("equal", y0, y1), y0, back)
        inside = where(ufunc("isnan", inside), back, inside)
        inside = where(ufunc("equal", x, x0) & ufunc("invert", ufunc("isfinite", slope)), y0, inside)
        inside = where(ufunc("equal", x, high), last, inside)
    made = where(ufunc("less", x, low), left, where(ufunc("greater", x, high), right, inside))
    return where(ufunc("isnan", x), x, made) if xp.size > 1 else made  # of one place NumPy looks at nothing else
