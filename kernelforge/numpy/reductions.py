"""Sums, extrema and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from kernelforge.dtypes import BFLOAT16, NARROW_FLOATS, as_dtype, promote, short
from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Operand, Sym, apply, as_sym, written
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.ufuncs import boolean, floating, ufunc, where

Axis = int | Sequence[int] | None


def axes_of(x: Sym, axis: Axis) -> tuple[int, ...]:
    """Return the axes a reduction is over, non-negative and in order.

    Raises:
        numpy.exceptions.AxisError: when one is out of range.
    """
    return tuple(range(x.ndim)) if axis is None else tuple(sorted(normalize_axis_tuple(axis, x.ndim)))


def _ufunc_axes(x: Sym, axis: Axis) -> tuple[int, ...]:
    """Return the axes that ``reduce`` of a ufunc is over: to it a scalar has one, which NumPy's mean does not see."""
    return () if x.ndim == 0 and axis in (0, -1) else axes_of(x, axis)


def count_of(x: Sym, axes: Sequence[int]) -> int:
    return math.prod(x.shape[a] for a in axes)


def keep(x: Sym, like: Sym, axes: Sequence[int]) -> Sym:
    """Put the reduced axes back, of extent 1."""
    return x.reshape(tuple(1 if a in axes else n for a, n in enumerate(like.shape)))


def _finish(x: Sym, like: Sym, axes: Sequence[int], keepdims: bool) -> Sym:
    return keep(x, like, axes) if keepdims else x


def _masked(x: Sym, mask: Operand | None, instead: float) -> Sym:
    return x if mask is None else where(mask, x, instead).astype(x.dtype)


def _summed_in(x: Sym, dtype: Any) -> Sym:
    """Cast to the dtype NumPy adds up in: small integers and bools as long ones."""
    if dtype is not None:
        return x.astype(as_dtype(dtype))
    wide = {"b": np.int64, "i": np.int64, "u": np.uint64}.get(x.dtype.kind)
    return x if wide is None else x.astype(wide)


def _accumulated(name: str, x: Sym, axes: Sequence[int]) -> Sym:
    return apply(name, x, axes=tuple(axes)) if axes else x


@array_function("a", "where", "initial", numbers=True)
def sum(
    a: Operand,
    axis: Axis = None,
    dtype: Any = None,
    *,
    keepdims: bool = False,
    initial: Operand | None = None,
    where: Operand | None = None,
) -> Sym:
    return _combined("sum", "add", 0, _summed_in(as_sym(a), dtype), axis, keepdims, initial, where)


def _masked_whole(x: Sym, mask: Operand | None, instead: float) -> Sym:
    return _masked(x, mask, instead).broadcast(x.shape)


def _combined(
    name: str,
    op: str,
    neutral: float,
    x: Sym,
    axis: Axis,
    keepdims: bool,
    initial: Operand | None,
    mask: Operand | None,
) -> Sym:
    axes = _ufunc_axes(x, axis)
    result = _finish(_accumulated(name, _masked_whole(x, mask, neutral), axes), x, axes, keepdims)
    return result if initial is None else ufunc(op, result, written(initial, x.dtype, f"np.{name}"))


@array_function("a", "where", "initial", numbers=True)
def prod(
    a: Operand,
    axis: Axis = None,
    dtype: Any = None,
    *,
    keepdims: bool = False,
    initial: Operand | None = None,
    where: Operand | None = None,
) -> Sym:
    return _combined("prod", "multiply", 1, _summed_in(as_sym(a), dtype), axis, keepdims, initial, where)


def least(dtype: np.dtype[Any]) -> bool | int | float:
    """Return what is at most any element."""
    return False if dtype.kind == "b" else int(np.iinfo(dtype).min) if dtype.kind in "iu" else -math.inf


def greatest(dtype: np.dtype[Any]) -> bool | int | float:
    """Return what is at least any element."""
    return True if dtype.kind == "b" else int(np.iinfo(dtype).max) if dtype.kind in "iu" else math.inf


def _extremum(name: str, x: Sym, axis: Axis, keepdims: bool, initial: Operand | None, mask: Operand | None) -> Sym:
    axes = _ufunc_axes(x, axis)
    instead = least(x.dtype) if name == "max" else greatest(x.dtype)
    if mask is not None and initial is None:
        raise ShapeMismatch(op=f"np.{name}", found="where= alone", expected="initial= with it, as NumPy asks")
    if initial is None and count_of(x, axes) == 0 and axes:
        raise ShapeMismatch(op=f"np.{name}", found=x.shape, expected="at least one element along the axis, or initial=")
    x = _masked_whole(x, mask, instead)
    if count_of(x, axes):
        result = _accumulated(name, x, axes)
    else:
        result = apply(
            "full", value=instead, shape=tuple(n for i, n in enumerate(x.shape) if i not in axes), dtype=short(x.dtype)
        )
    result = _finish(result, x, axes, keepdims)
    if initial is None:
        return result
    return ufunc("maximum" if name == "max" else "minimum", result, written(initial, x.dtype, f"np.{name}"))


@array_function("a", "where", "initial", numbers=True)
def max(
    a: Operand,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    initial: Operand | None = None,
    where: Operand | None = None,
) -> Sym:
    return _extremum("max", as_sym(a), axis, keepdims, initial, where)


@array_function("a", "where", "initial", numbers=True)
def min(
    a: Operand,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    initial: Operand | None = None,
    where: Operand | None = None,
) -> Sym:
    return _extremum("min", as_sym(a), axis, keepdims, initial, where)


@array_function("a", "where", numbers=True)
def any(a: Operand, axis: Axis = None, *, keepdims: bool = False, where: Operand | None = None) -> Sym:
    return _extremum("max", boolean(a), axis, keepdims, False, where)


@array_function("a", "where", numbers=True)
def all(a: Operand, axis: Axis = None, *, keepdims: bool = False, where: Operand | None = None) -> Sym:
    return _extremum("min", boolean(a), axis, keepdims, True, where)


def _averaged_in(x: Sym, dtype: Any) -> tuple[Sym, np.dtype[Any]]:
    """Return ``x`` in the dtype in which averages are computed, and the dtype of the result."""
    result = (
        as_dtype(dtype)
        if dtype is not None
        else x.dtype
        if x.dtype.kind == "f" or x.dtype == BFLOAT16
        else np.dtype(np.float64)
    )
    return x.astype(np.float32 if short(result) in NARROW_FLOATS else result), result


def _count(x: Sym, axes: Sequence[int], mask: Operand | None) -> Operand:
    """Count the elements that are averaged; an array of extent 1 along ``axes`` where a mask says."""
    if mask is None:
        return count_of(x, axes)
    chosen = boolean(mask).broadcast(x.shape).astype(np.int64)
    return keep(_accumulated("sum", chosen, axes), x, axes).astype(x.dtype)


def _mean(x: Sym, axes: Sequence[int], mask: Operand | None) -> Sym:
    return ufunc(
        "divide", keep(_accumulated("sum", _masked_whole(x, mask, 0), axes), x, axes), _as_float(_count(x, axes, mask))
    )


def _as_float(n: Operand) -> Operand:
    return float(n) if isinstance(n, int) else n


@array_function("a", "where", numbers=True)
def mean(
    a: Operand, axis: Axis = None, dtype: Any = None, *, keepdims: bool = False, where: Operand | None = None
) -> Sym:
    x, result = _averaged_in(as_sym(a), dtype)
    axes = axes_of(x, axis)
    made = _mean(x, axes, where).astype(result)
    return made if keepdims else drop(made, axes)


def drop(x: Sym, axes: Sequence[int]) -> Sym:
    """Take out axes of extent 1."""
    return x.reshape(tuple(n for a, n in enumerate(x.shape) if a not in axes))


def _variance(x: Sym, axes: Sequence[int], ddof: float, mask: Operand | None) -> Sym:
    """Compute in two passes: the mean first, as the mean of squares loses what the mean has."""
    apart = x - _mean(x, axes, mask)
    total = keep(_accumulated("sum", _masked_whole(apart * apart, mask, 0), axes), x, axes)
    count = _count(x, axes, mask)
    degrees = (
        float(np.maximum(count - ddof, 0))
        if isinstance(count, int)
        else ufunc("maximum", ufunc("subtract", count, ddof), 0.0)
    )
    return ufunc("divide", total, degrees)


@array_function("a", "where", numbers=True)
def var(
    a: Operand,
    axis: Axis = None,
    dtype: Any = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    where: Operand | None = None,
    correction: float | None = None,
) -> Sym:
    x, result = _averaged_in(as_sym(a), dtype)
    axes = axes_of(x, axis)
    made = _variance(x, axes, ddof if correction is None else correction, where).astype(result)
    return made if keepdims else drop(made, axes)


@array_function("a", "where", numbers=True)
def std(
    a: Operand,
    axis: Axis = None,
    dtype: Any = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    where: Operand | None = None,
    correction: float | None = None,
) -> Sym:
    x, result = _averaged_in(as_sym(a), dtype)
    axes = axes_of(x, axis)
    made = ufunc("sqrt", _variance(x, axes, ddof if correction is None else correction, where)).astype(result)
    return made if keepdims else drop(made, axes)


@array_function("a", "weights", numbers=True)
def average(a: Operand, axis: Axis = None, weights: Operand | None = None, *, keepdims: bool = False) -> Sym:
    x = as_sym(a)
    if weights is None:
        return mean(x, axis, keepdims=keepdims)
    kind = promote([x.dtype, as_sym(weights).dtype, *([np.dtype(np.float64)] if x.dtype.kind in "iub" else [])], [])
    x, w, axes = x.astype(kind), as_sym(weights).astype(kind), axes_of(x, axis)
    if w.shape != x.shape:
        if w.ndim != 1 or len(axes) != 1 or w.shape[0] != x.shape[axes[0]]:
            expected = f"weights of shape {x.shape}, or of one axis as long as the one averaged over"
            raise ShapeMismatch(op="np.average", found=w.shape, expected=expected)
        w = w.reshape(tuple(w.size if i == axes[0] else 1 for i in range(x.ndim)))
    total = sum(ufunc("multiply", x, w), axis, keepdims=keepdims)
    return ufunc("divide", total, sum(w.broadcast(x.shape), axis, keepdims=keepdims))


def _arg(name: str, x: Sym, axis: int | None, keepdims: bool) -> Sym:
    """Find the first of the elements that equal the extremum; NaN counts as one."""
    ndim = x.ndim
    if axis is None or ndim == 0:
        x = x.reshape((x.size,))
    on = 0 if axis is None else normalize_axis_index(axis, x.ndim)
    n = x.shape[on]
    if n == 0:
        raise ShapeMismatch(op=f"np.arg{name}", found=x.shape, expected="at least one element along the axis")
    best = keep(_accumulated(name, x, (on,)), x, (on,))
    chosen = ufunc("equal", x, best)
    if x.dtype.kind == "f" or x.dtype == BFLOAT16:
        chosen = chosen | apply("isnan", x)
    # a vector holds twice as many narrow numbers
    index = apply("iota", shape=x.shape, axis=on, dtype="i32" if n < 1 << 31 else "i64")
    first = apply("min", where(chosen, index, n), axes=(on,)).astype(np.int64)
    if not keepdims:
        return first
    return first.reshape((1,) * ndim) if axis is None or ndim == 0 else keep(first, x, (on,))


@array_function("a", numbers=True)
def argmax(a: Operand, axis: int | None = None, *, keepdims: bool = False) -> Sym:
    return _arg("max", as_sym(a), axis, keepdims)


@array_function("a", numbers=True)
def argmin(a: Operand, axis: int | None = None, *, keepdims: bool = False) -> Sym:
    return _arg("min", as_sym(a), axis, keepdims)


@array_function("a", "where", numbers=True)
def logsumexp(a: Operand, axis: Axis = None, *, keepdims: bool = False, where: Operand | None = None) -> Sym:
    """The logarithm of the sum of exponentials, without overflow; -inf of no elements."""
    x = _masked_whole(floating(a, "exp"), where, -math.inf)
    axes = _ufunc_axes(x, axis)
    top = _extremum("max", x, axis, True, -math.inf, None)
    shift = _finite_or_zero(top)
    total = keep(_accumulated("sum", ufunc("exp", x - shift), axes), x, axes)
    made = ufunc("log", total) + shift
    return made if keepdims else drop(made, axes)


def _finite_or_zero(x: Sym) -> Sym:
    return where(ufunc("isfinite", x), x, 0)


@array_function("a", numbers=True)
def count_nonzero(a: Operand, axis: Axis = None, *, keepdims: bool = False) -> Sym:
    return sum(boolean(a), axis, keepdims=keepdims)


def _bitwise(name: str, combine: str, neutral: int) -> None:
    """Enter what ``reduce`` of a ufunc on bits is, as ``name_all``: bit by bit, each by a reduction that there is."""

    def fn(
        a: Operand, axis: Axis = None, *, keepdims: bool = False, initial: Operand | None = None, where: Any = None
    ) -> Sym:
        x = as_sym(a)
        if x.dtype.kind == "b":
            started = None if initial is None else boolean(initial).astype(np.uint8)
            return boolean(fn(x.astype(np.uint8), axis, keepdims=keepdims, initial=started, where=where))
        if x.dtype.kind not in "iu":
            raise DtypeMismatch(op=f"np.{name}", found=short(x.dtype), expected="integers or bools")
        axes = _ufunc_axes(x, axis)
        x = _masked_whole(x, where, int(np.array(neutral).astype(x.dtype)))
        place = apply("iota", shape=(8 * x.dtype.itemsize,), axis=0, dtype=x.type.name)
        bits = ufunc("bitwise_and", ufunc("right_shift", x.reshape((*x.shape, 1)), place), 1)
        made = _accumulated(combine, bits, axes) if count_of(x, axes) else bits.sum(axes) + (neutral & 1)
        whole = ufunc("left_shift", ufunc("bitwise_and", made, 1), place).sum((made.ndim - 1,))
        whole = _finish(whole, x, axes, keepdims)
        return whole if initial is None else ufunc(name, whole, written(initial, x.dtype, f"np.{name}"))

    fn.__name__ = fn.__qualname__ = f"{name}_all"
    array_function("a", "where", "initial", numbers=True)(fn)


for _name, _how, _start in (
    ("bitwise_and", "min", -1),
    ("bitwise_or", "max", 0),
    ("bitwise_xor", "sum", 0),
):
    _bitwise(_name, _how, _start)


@array_function("a", "where", "initial", numbers=True)
def logical_xor_all(
    a: Operand,
    axis: Axis = None,
    *,
    keepdims: bool = False,
    initial: Operand | None = None,
    where: Operand | None = None,
) -> Sym:
    """Whether an odd number of elements is true: ``np.logical_xor.reduce``."""
    odd = sum(boolean(a), axis, keepdims=keepdims, where=where)
    return boolean(ufunc("bitwise_and", odd if initial is None else odd + boolean(initial).astype(odd.dtype), 1))


@array_function("a", numbers=True)
def ptp(a: Operand, axis: Axis = None, keepdims: bool = False) -> Sym:
    return ufunc("subtract", max(a, axis, keepdims=keepdims), min(a, axis, keepdims=keepdims))


@array_function("a", numbers=True)
def nansum(a: Operand, axis: Axis = None, dtype: Any = None, *, keepdims: bool = False) -> Sym:
    return sum(_without_nan(as_sym(a), 0), axis, dtype, keepdims=keepdims)


@array_function("a", numbers=True)
def nanprod(a: Operand, axis: Axis = None, dtype: Any = None, *, keepdims: bool = False) -> Sym:
    return prod(_without_nan(as_sym(a), 1), axis, dtype, keepdims=keepdims)


def _without_nan(x: Sym, instead: float) -> Sym:
    return where(ufunc("isnan", x), instead, x).astype(x.dtype)


def _number(x: Sym) -> Sym:
    """Say which elements are numbers."""
    return ufunc("invert", ufunc("isnan", x))


def _nan_extremum(name: str, x: Sym, axis: Axis, keepdims: bool) -> Sym:
    instead = least(x.dtype) if name == "max" else greatest(x.dtype)
    best = _extremum(name, _without_nan(x, instead), axis, keepdims, None, None)
    if x.dtype.kind in "iub":
        return best
    return where(_extremum("min", ufunc("isnan", x), axis, keepdims, None, None), math.nan, best).astype(x.dtype)


@array_function("a", numbers=True)
def nanmax(a: Operand, axis: Axis = None, *, keepdims: bool = False) -> Sym:
    return _nan_extremum("max", as_sym(a), axis, keepdims)


@array_function("a", numbers=True)
def nanmin(a: Operand, axis: Axis = None, *, keepdims: bool = False) -> Sym:
    return _nan_extremum("min", as_sym(a), axis, keepdims)


@array_function("a", numbers=True)
def nanmean(a: Operand, axis: Axis = None, dtype: Any = None, *, keepdims: bool = False) -> Sym:
    x = as_sym(a)
    return mean(x, axis, dtype, keepdims=keepdims, where=_number(x))


@array_function("a", numbers=True)
def nanvar(a: Operand, axis: Axis = None, dtype: Any = None, *, ddof: float = 0, keepdims: bool = False) -> Sym:
    x = as_sym(a)
    made = var(x, axis, dtype, ddof=ddof, keepdims=keepdims, where=_number(x))
    enough = ufunc("greater", sum(_number(x), axis, keepdims=keepdims), ddof)
    return where(enough, made, math.nan).astype(made.dtype)


@array_function("a", numbers=True)
def nanstd(a: Operand, axis: Axis = None, dtype: Any = None, *, ddof: float = 0, keepdims: bool = False) -> Sym:
    return ufunc("sqrt", nanvar(as_sym(a), axis, dtype, ddof=ddof, keepdims=keepdims))


def _cumulated(name: str, x: Sym, axis: int | None) -> Sym:
    if axis is None or x.ndim == 0:
        x, axis = x.reshape((x.size,)), axis or 0
    return apply(name, x, axis=normalize_axis_index(axis, x.ndim), reverse=False)


@array_function("a", numbers=True)
def cumsum(a: Operand, axis: int | None = None, dtype: Any = None) -> Sym:
    return _cumulated("cumsum", _summed_in(as_sym(a), dtype), axis)


@array_function("a", numbers=True)
def cumprod(a: Operand, axis: int | None = None, dtype: Any = None) -> Sym:
    return _cumulated("cumprod", _summed_in(as_sym(a), dtype), axis)


@array_function("x", numbers=True)
def cumulative_sum(x: Operand, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Sym:
    return _begun("sum", as_sym(x), axis, dtype, 0 if include_initial else None)


@array_function("x", numbers=True)
def cumulative_prod(x: Operand, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Sym:
    return _begun("prod", as_sym(x), axis, dtype, 1 if include_initial else None)


def _begun(name: str, x: Sym, axis: int | None, dtype: Any, first: int | None) -> Sym:
    """Cumulate along an axis, which may be left out where there is one alone, from ``first`` on."""
    if axis is None and x.ndim > 1:
        raise InvalidParameter(op=f"np.cumulative_{name}", name="axis", found=axis, expected="an axis")
    made = _cumulated(f"cum{name}", _summed_in(x, dtype), axis)
    if first is None:
        return made
    on = normalize_axis_index(axis or 0, made.ndim)
    begin = as_sym(first).astype(made.dtype).broadcast(tuple(1 if i == on else n for i, n in enumerate(made.shape)))
    return FUNCTIONS["concatenate"]([begin, made], on)  # type: ignore[no-any-return]


@array_function("a", numbers=True)
def nancumsum(a: Operand, axis: int | None = None, dtype: Any = None) -> Sym:
    return cumsum(_without_nan(as_sym(a), 0), axis, dtype)


@array_function("a", numbers=True)
def cummax(a: Operand, axis: int | None = None) -> Sym:
    """The running maximum: ``np.maximum.accumulate``."""
    return _cumulated("cummax", as_sym(a), axis)


@array_function("a", numbers=True)
def cummin(a: Operand, axis: int | None = None) -> Sym:
    """The running minimum: ``np.minimum.accumulate``."""
    return _cumulated("cummin", as_sym(a), axis)


@array_function("a", "b", "rtol", "atol", numbers=True)
def allclose(a: Operand, b: Operand, rtol: Operand = 1e-5, atol: Operand = 1e-8, equal_nan: bool = False) -> Sym:
    from kernelforge.numpy.ufuncs import isclose

    return all(isclose(as_sym(a), b, rtol, atol, equal_nan))


@array_function("a1", "a2", numbers=True)
def array_equal(a1: Operand, a2: Operand, equal_nan: bool = False) -> Sym:
    x, y = as_sym(a1), as_sym(a2)
    if x.shape != y.shape:
        return apply("full", value=False, shape=(), dtype="bool")
    same = ufunc("equal", x, y)
    return all(same | (ufunc("isnan", x) & ufunc("isnan", y)) if equal_nan else same)


ALIASES = {"amax": "max", "amin": "min"}
