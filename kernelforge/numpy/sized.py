"""Results whose shapes depend on values: as in JAX, ``size`` says how many elements there are, and fills in the last.

Without it the values have to be known: outside of compiled functions, or where NumPy alone made them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch, UnsupportedFunction
from kernelforge.ir.build import Sym, apply, as_sym, full, tracing
from kernelforge.ir.ops.control import emit_scan
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import iota
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.places import unravel_index
from kernelforge.numpy.shapes import part
from kernelforge.numpy.sorting import order_of
from kernelforge.numpy.ufuncs import ufunc, where
from kernelforge.told import telling
from kernelforge.trace import TRACED, concrete


def known_values(name: str, x: Any, keyword: str) -> np.ndarray[Any, Any]:
    """Return values that are known.

    Raises:
        UnsupportedFunction: when they are traced.
    """
    known = concrete(x)
    if known is TRACED:
        reason = (
            ": the shape of its result depends on values; use np.where(mask, x, y), or "
            f"kernelforge.numpy.{name}(..., {keyword}=), which says how many elements there are"
        )
        raise UnsupportedFunction(name=f"np.{name}", reason=reason)
    return np.asarray(known)


def count_of(name: str, keyword: str, given: Any) -> int:
    """Return a number of elements that was asked for.

    Raises:
        InvalidParameter: for what is not an integer of 0 or more.
    """
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 0:
        expected = "an integer that is known, 0 or more"
        raise InvalidParameter(op=f"np.{name}", name=keyword, found=given, expected=expected)
    return int(given)


def places_of(mask: Sym, size: int) -> tuple[Sym, Sym]:
    """Return the first ``size`` places where a vector holds, then zeros, and which of these are places."""
    ranks = FUNCTIONS["cumsum"](mask.astype(np.int64), 0)
    start = apply("full", value=0, shape=(size,), dtype="i64")
    to = where(mask, ranks - 1, full(size, ranks))
    found = apply("scatter", start, iota(mask.shape, 0), to, axes=(0,), mode="set")
    return found, ufunc("less", iota((size,), 0), mask.astype(np.int64).sum((0,)))


@array_function("a", table={})
def _nonzero(a: Sym, size: int, fill_value: Any) -> tuple[Sym, ...]:
    mask = a if a.dtype.kind == "b" else ufunc("not_equal", a, 0)
    found, real = places_of(mask.reshape((mask.size,)), size)
    fills = fill_value if isinstance(fill_value, tuple) else (fill_value,) * a.ndim
    axes = unravel_index(found, a.shape)
    return tuple(where(real, i, full(int(fill), i)) for i, fill in zip(axes, fills, strict=True))


def nonzero(a: Any, *, size: int | None = None, fill_value: Any = 0) -> Any:
    """``numpy.nonzero``; with ``size`` as ``jax.numpy.nonzero``, of which ``fill_value`` is a number or one an axis."""
    if not np.ndim(a):
        raise ShapeMismatch(op="np.nonzero", found=np.shape(a), expected="at least one axis")
    if size is None:
        known = known_values("nonzero", a, "size")
        if tracing():
            return np.nonzero(known)
        size = int(np.count_nonzero(known))
    size = count_of("nonzero", "size", size)
    return _nonzero(a, size, fill_value)


def flatnonzero(a: Any, *, size: int | None = None, fill_value: int = 0) -> Any:
    """``numpy.flatnonzero``; see ``nonzero``."""
    if size is None:
        known = known_values("flatnonzero", a, "size")
        if tracing():
            return np.flatnonzero(known)
        size = int(np.count_nonzero(known))
    size = count_of("flatnonzero", "size", size)
    return _nonzero(FUNCTIONS["ravel"](a), size, fill_value)[0]


def argwhere(a: Any, *, size: int | None = None, fill_value: Any = 0) -> Any:
    """``numpy.argwhere``; see ``nonzero``."""
    if size is None:
        known = known_values("argwhere", a, "size")
        if tracing():
            return np.argwhere(known)
        size = int(np.count_nonzero(known))
    size = count_of("argwhere", "size", size)
    if not np.ndim(a):
        return FUNCTIONS["zeros"]((size, 0), np.int64)
    return FUNCTIONS["stack"](_nonzero(a, size, fill_value), -1)


def _row_order(rows: Sym) -> Sym:
    """Return the places of rows in lexicographic order: sorted by the last column, then by the one before it."""

    def by_column(order: Sym, column: Sym) -> list[Sym]:
        return [FUNCTIONS["take"](order, order_of(FUNCTIONS["take"](column, order)))]

    start = iota(rows.shape[:1], 0)
    return emit_scan(by_column, [start], [rows.transpose([1, 0])], rows.shape[1], reverse=True)[0]


@array_function("ar", table={})
def _unique(ar: Sym, axis: int | None, size: int, fill_value: Any, equal_nan: bool, wanted: tuple[bool, ...]) -> Any:
    x = ar.reshape((ar.size,)) if axis is None else FUNCTIONS["moveaxis"](ar, axis, 0)
    n = x.shape[0]
    rows = x.reshape((n, x.size // n))
    order = order_of(rows.reshape((n,))) if axis is None else _row_order(rows)
    ordered = FUNCTIONS["take"](rows, order, 0)
    before, after = part(ordered, 0, 0, n - 1), part(ordered, 0, 1, n)
    differs = ufunc("not_equal", before, after)
    if equal_nan and axis is None and x.dtype.kind == "f":
        differs = differs & ufunc("invert", ufunc("isnan", before))
    new = FUNCTIONS["concatenate"]([as_sym(np.ones(1, np.bool_)), FUNCTIONS["any"](differs, 1)], 0)
    starts, real = places_of(new, size + 1)
    found, kept = part(starts, 0, 0, size), part(real, 0, 0, size)
    values = FUNCTIONS["take"](ordered, found, 0)
    if fill_value is not None:
        values = where(kept.reshape((size, 1)), values, full(fill_value, values))
    values = values.reshape((size, *x.shape[1:]))
    values = values if axis is None else FUNCTIONS["moveaxis"](values, 0, axis)
    ranks = FUNCTIONS["cumsum"](new.astype(np.int64), 0) - 1
    inverse = apply("scatter", full(0, ranks), ranks, order, axes=(0,), mode="set")
    inverse = inverse.reshape(ar.shape) if axis is None else inverse
    counts = FUNCTIONS["diff"](where(real, starts, full(n, starts)))
    return [values, *(v for v, w in zip((FUNCTIONS["take"](order, found), inverse, counts), wanted, strict=True) if w)]


def unique(
    ar: Any, return_index: bool = False, return_inverse: bool = False, return_counts: bool = False,
    axis: int | None = None, *, equal_nan: bool = True, sorted: bool = True, size: int | None = None,
    fill_value: Any = None,
) -> Any:  # fmt: skip
    """``numpy.unique``; with ``size`` as ``jax.numpy.unique``: the least and counts of 0 fill it up."""
    on = None if axis is None else normalize_axis_index(axis, np.ndim(ar))
    on = None if np.ndim(ar) == 1 else on
    if size is None:
        known = known_values("unique", ar, "size")
        found = np.unique(known, axis=on, equal_nan=equal_nan)
        if tracing():
            plain: Any = np.unique
            return plain(known, return_index, return_inverse, return_counts, axis=on, equal_nan=equal_nan)
        size = found.size if on is None else found.shape[on]
    size = count_of("unique", "size", size)
    wanted = (return_index, return_inverse, return_counts)
    if not np.size(ar):
        if size or on is not None:
            raise ShapeMismatch(op="np.unique", found=np.shape(ar), expected="at least one element")
        x, none = FUNCTIONS["asarray"](ar), FUNCTIONS["zeros"](0, np.int64)
        made = [
            FUNCTIONS["ravel"](x),
            *(v for v, w in zip((none, FUNCTIONS["zeros"](x.shape, int), none), wanted, strict=True) if w),
        ]
    else:
        made = _unique(ar, on, size, fill_value, equal_nan, wanted)
    return tuple(made) if len(made) > 1 else made[0]


class UniqueAll(NamedTuple):
    values: Any
    indices: Any
    inverse_indices: Any
    counts: Any


class UniqueCounts(NamedTuple):
    values: Any
    counts: Any


class UniqueInverse(NamedTuple):
    values: Any
    inverse_indices: Any


def unique_all(x: Any, *, size: int | None = None, fill_value: Any = None) -> UniqueAll:
    """``numpy.unique_all``; see ``unique``, but that each NaN stands for itself."""
    return UniqueAll(*unique(x, True, True, True, equal_nan=False, size=size, fill_value=fill_value))


def unique_counts(x: Any, *, size: int | None = None, fill_value: Any = None) -> UniqueCounts:
    """``numpy.unique_counts``; see ``unique_all``."""
    return UniqueCounts(*unique(x, return_counts=True, equal_nan=False, size=size, fill_value=fill_value))


def unique_inverse(x: Any, *, size: int | None = None, fill_value: Any = None) -> UniqueInverse:
    """``numpy.unique_inverse``; see ``unique_all``."""
    return UniqueInverse(*unique(x, return_inverse=True, equal_nan=False, size=size, fill_value=fill_value))


def unique_values(x: Any, *, size: int | None = None, fill_value: Any = None) -> Any:
    """``numpy.unique_values``, sorted; see ``unique_all``."""
    return unique(x, equal_nan=False, size=size, fill_value=fill_value)


@array_function("x", "weights", table={})
def _bincount(x: Sym, weights: Sym | None = None, *, length: int) -> Sym:
    added = full(1, x.astype(np.int64)) if weights is None else weights.astype(np.float64)
    start = apply("full", value=0, shape=(length,), dtype=added.type.name)
    to = x.astype(np.int64)
    to = where(ufunc("less", to, 0), full(length, to), to)
    return apply("scatter", start, added, to, axes=(0,), mode="add")


def bincount(x: Any, weights: Any = None, minlength: int = 0, *, length: int | None = None) -> Any:
    """``numpy.bincount``; with ``length``, as in ``jax.numpy``, numbers outside of it or below 0 are not counted."""
    op = "np.bincount"
    found = FUNCTIONS["asarray"](x)
    if found.ndim != 1 or (weights is not None and np.shape(weights) != found.shape):
        shapes = f"{found.shape}" if weights is None else f"{found.shape} and {np.shape(weights)}"
        raise ShapeMismatch(op=op, found=shapes, expected="a vector, and weights of its shape")
    given_list = isinstance(x, list | tuple) and not found.size  # NumPy takes a list of nothing
    if found.dtype.kind not in "iub" and not given_list:
        raise DtypeMismatch(op=op, found=found.dtype, expected="integers")
    if minlength < 0:
        raise InvalidParameter(op=op, name="minlength", found=minlength, expected="0 or more")
    if length is None:
        known = known_values("bincount", x, "length")
        if known.size and known.min() < 0:
            raise InvalidParameter(op=op, name="x", found=int(known.min()), expected="no number below zero")
        if tracing() and weights is None:
            return np.bincount(known, minlength=minlength)
        length = int(known.max()) + 1 if known.size else 0
    length = count_of("bincount", "length", length)
    return _bincount(found, weights, length=max(length, minlength))


for _fn in (nonzero, flatnonzero, argwhere, unique, unique_all, unique_counts, unique_inverse, unique_values, bincount):
    FUNCTIONS[_fn.__name__] = telling(_fn)
