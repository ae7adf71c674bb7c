"""Sorting by Batcher's bitonic network (1968), and what is read off sorted arrays.

Elements become integers that order as NumPy orders them, NaN behind all; ties go by place, so every sort is stable. A
key of 32 bits and a place are one word; keys of 64 bits are sorted by their lower halves, then by their upper ones. n
words take log2(n) * (log2(n) + 1) / 2 stages, two in a turn of a loop. They lie in columns, each of them a row to be
sorted or a part of one, so that whole vectors meet whole vectors in nearly all stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch, UnsupportedArgument
from kernelforge.ir.build import Operand, Sym, apply, as_sym, full
from kernelforge.ir.ops.call import Instead, called
from kernelforge.ir.ops.control import emit_scan
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import iota
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.reductions import Axis, axes_of, count_of
from kernelforge.numpy.shapes import part
from kernelforge.numpy.ufuncs import common_dtype, ufunc, where
from kernelforge.trace import TRACED, concrete

Number = tuple[Sym, Sym]
"""A power of two, or 0, as the part of a place that is a row and the one that is a column."""

LANES = 16
"""Columns that are sorted side by side, a vector or two of words; where there are fewer rows, these are cut."""


def network(words: Sym) -> Sym:
    """Sort integers along the last axis, whose extent is a power of two; equal ones are not to be told apart."""
    whole, batch = words.shape[-1], math.prod(words.shape[:-1])
    if whole == 1:
        return words
    many = batch >= LANES
    lanes = LANES if many or whole >= LANES * LANES else 1
    rows = whole if many else whole // lanes
    kind = np.dtype(f"i{words.dtype.itemsize}")
    across, along = ([1 << k for k in reversed(range(n.bit_length() - 1))] for n in (whole // rows, rows))

    def without(number: Number) -> Sym:
        """Whether places, of which those of a column follow each other, have not the bit that is a power of two."""
        row, column = (iota((rows, lanes), axis) for axis in range(2))
        found = ufunc("equal", ufunc("bitwise_and", row, number[0]), 0)
        if not across:
            return found
        return ufunc("equal", found, ufunc("equal", ufunc("bitwise_and", column.astype(kind), number[1]), 0))

    def stage(x: Sym, size: Number, apart: Number, axis: int) -> Sym:
        """Of two places ``apart`` the lesser goes first, or last in every other run of ``size``."""
        extent, distance = (rows, apart[0]) if axis == 1 else (lanes, apart[1])
        met = ufunc("bitwise_xor", iota((extent,), 0), distance)
        # the last step says to compilers that all are in range
        other = FUNCTIONS["take"](x, ufunc("bitwise_and", met, extent - 1), axis)
        forward = ufunc("equal", without(apart), without(size))
        return where(forward, ufunc("minimum", x, other), ufunc("maximum", x, other))

    def numbers(of: Sequence[int]) -> Number:
        """Return powers of two as a row's and a column's part of a place."""
        given = np.array(of)
        return as_sym(given % rows), as_sym((given // rows if across else given * 0).astype(kind))

    def halves(of: Sequence[int]) -> list[Sym]:
        """Return the numbers of each first and each second stage; one over is 0: there a place meets itself."""
        padded = [*of, *[0] * (len(of) % 2)]
        return [x for k in range(2) for x in numbers(padded[k::2])]

    def pairwise(given: Sequence[Sym]) -> list[Number]:
        return list(zip(given[::2], given[1::2], strict=True))

    def sorted_runs(x: Sym, *given: Sym) -> list[Sym]:
        size, next_size, apart, next_apart = pairwise(given)
        return [stage(stage(x, size, apart, 1), next_size, next_apart, 1)]

    def merge(x: Sym, *given: Sym) -> list[Sym]:
        """Join runs of several columns to one of a size."""
        (size,) = pairwise(given)

        def columns_meet(x: Sym, *given: Sym) -> list[Sym]:
            (apart,) = pairwise(given)
            return [where(ufunc("less", apart[1], size[1]), stage(x, size, apart, -1), x)]

        def rows_meet(x: Sym, *given: Sym) -> list[Sym]:
            apart, next_apart = pairwise(given)
            return [stage(stage(x, size, apart, 1), size, next_apart, 1)]

        x = _each(columns_meet, x, [*numbers([rows * k for k in across])])
        return [_each(rows_meet, x, halves(along))]

    made = words.reshape((batch, whole))
    if many:
        made = apply("pad", made, as_sym(0).astype(made.dtype), low=(0, 0), high=(-batch % lanes, 0), interior=(0, 0))
        made = made.reshape((made.shape[0] // lanes, lanes, whole)).transpose((0, 2, 1))
    else:
        made = made.reshape((batch, rows, lanes))
    stages = [(2 * n, k) for n in reversed(along) for k in along if k <= n]
    sizes, distances = zip(*stages, strict=True)
    made = _each(sorted_runs, made, [*halves(sizes), *halves(distances)])
    if across:
        made = _each(merge, made, [*numbers([2 * rows * k for k in reversed(across)])])
    made = made.transpose((0, 2, 1)).reshape((made.size // whole, whole))
    return part(made, 0, 0, batch).reshape(words.shape)


def _each(step: Callable[..., list[Sym]], x: Sym, given: list[Sym]) -> Sym:
    """Take ``x`` through a step for each element of what is given."""
    (made,) = emit_scan(step, [x], given, given[0].shape[0], False)
    return made


def _folded(bits: Sym) -> Sym:
    """Return the bits of floats as integers that order as these do, and the other way round."""
    sign = ufunc("right_shift", bits, 8 * bits.dtype.itemsize - 1)
    return ufunc("bitwise_xor", bits, ufunc("bitwise_and", sign, int(np.iinfo(bits.dtype).max)))


def _ordered(x: Sym) -> Sym:
    """Return signed integers, i32 where they fit, that order as the elements do, -0 before 0; NaN is the greatest."""
    if x.dtype.kind == "u" and x.dtype.itemsize >= 4:
        top = x.dtype.type(1 << (8 * x.dtype.itemsize - 1))
        return apply("bitcast", ufunc("bitwise_xor", x, top), dtype=f"i{8 * x.dtype.itemsize}")
    if x.dtype.kind in "iub":
        return x.astype(np.int64 if x.dtype.itemsize == 8 else np.int32)
    x = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    folded = _folded(apply("bitcast", x, dtype=f"i{8 * x.dtype.itemsize}"))
    return where(ufunc("isnan", x), full(int(np.iinfo(folded.dtype).max), folded), folded)


def _elements(keys: Sym, dtype: np.dtype[Any]) -> Sym:
    """Return the elements that ``_ordered`` made keys of."""
    if dtype.kind == "u" and dtype.itemsize >= 4:
        bits = apply("bitcast", keys, dtype=f"u{8 * dtype.itemsize}")
        return ufunc("bitwise_xor", bits, dtype.type(1 << (8 * dtype.itemsize - 1)))
    if dtype.kind in "iub":
        return keys.astype(dtype)
    return apply("bitcast", _folded(keys), dtype=f"f{8 * keys.dtype.itemsize}").astype(dtype)


def _padded(keys: Sym) -> Sym:
    """Make the last extent a power of two, by what is behind all others."""
    n = keys.shape[-1]
    last = as_sym(np.iinfo(keys.dtype).max).astype(keys.dtype)
    low, high = (0,) * keys.ndim, (*(0,) * (keys.ndim - 1), (1 << (n - 1).bit_length()) - n)
    return apply("pad", keys, last, low=low, high=high, interior=low)


def _by_half(keys: Sym) -> Sym:
    """Return the places in the order of the lower halves of i64, read as i32; those of equal ones stay in order."""
    place = iota(keys.shape, keys.ndim - 1)
    words = network(ufunc("bitwise_or", ufunc("left_shift", keys, 32), place))
    return ufunc("bitwise_and", words, (1 << 32) - 1)


def order_of(x: Sym) -> Sym:
    """Return the places, as i64, of the elements along the last axis in ascending order.

    Raises:
        ShapeMismatch: for more than 2**32 of them: a place is half a word.
    """
    n = x.shape[-1]
    if x.size == 0 or n == 1:
        return iota(x.shape, x.ndim - 1)
    if n > 1 << 32:
        raise ShapeMismatch(op="sort", found=x.shape, expected="at most 2**32 elements to sort")
    if x.dtype.kind not in "iub":
        x = apply("stop_gradient", x)
        x = where(ufunc("equal", x, 0), full(0.0, x), x)
    keys = _padded(_ordered(x))
    if keys.dtype == np.int32:
        found = _by_half(keys.astype(np.int64))
    else:
        take = FUNCTIONS["take_along_axis"]
        found = _by_half(ufunc("bitwise_xor", keys, 1 << 31))
        found = take(found, _by_half(ufunc("right_shift", take(keys, found, -1), 32)), -1)
    return part(found, found.ndim - 1, 0, n)


def _last(a: Operand, axis: int | None) -> tuple[Sym, int]:
    """Return ``a`` with the axis to sort by at the end, and where that was; all axes are one where it is None."""
    x = as_sym(a)
    if axis is None:
        return x.reshape((x.size,)), 0
    on = normalize_axis_index(axis, x.ndim)
    return FUNCTIONS["moveaxis"](x, on, -1), on


def _plain(op: str, order: Any) -> None:
    if order is not None:
        raise UnsupportedArgument(op=f"np.{op}", name="order", found=order, expected="leave it out")


@array_function("a")
def argsort(a: Sym, axis: int | None = -1, kind: str | None = None, order: Any = None, *, stable: Any = None) -> Sym:
    """``numpy.argsort``, stable whatever ``kind`` says."""
    _plain("argsort", order)
    x, on = _last(a if a.ndim else a.reshape((1,)), axis)
    return FUNCTIONS["moveaxis"](order_of(x), -1, on)  # type: ignore[no-any-return]


def ascending(x: Sym) -> Sym:
    """Sort along the last axis by values alone; only derivatives have to know where elements came from."""
    if x.size == 0 or x.shape[-1] == 1:
        return x

    def values(x: Sym) -> list[Sym]:
        words = network(_padded(_ordered(x)))
        return [_elements(part(words, words.ndim - 1, 0, x.shape[-1]), x.dtype)]

    rule = Instead(lambda x: [FUNCTIONS["take_along_axis"](x, order_of(x), -1)])
    (made,) = called("sort", values, [x], rule)
    return made


@array_function("a", name="sort")
def _sort(a: Sym, axis: int | None = -1, kind: str | None = None, order: Any = None, *, stable: Any = None) -> Sym:
    """``numpy.sort``; -0 goes before 0, and every NaN behind all numbers."""
    _plain("sort", order)
    x, on = _last(a, axis)
    return FUNCTIONS["moveaxis"](ascending(x), -1, on)  # type: ignore[no-any-return]


def _require_places(op: str, a: Sym, kth: Any, axis: int | None) -> None:
    """Look at the places to partition at, where they are known while tracing."""
    n = _last(a, axis)[0].shape[-1]
    known = concrete(kth)
    if known is TRACED or not a.size:
        return
    places = np.asarray(known)
    if places.dtype.kind not in "iu":
        raise DtypeMismatch(op=op, found=places.dtype, expected="integers as kth")
    if ((places < -n) | (places >= n)).any():
        raise InvalidParameter(op=op, name="kth", found=known, expected=f"places from {-n} to {n - 1}")


@array_function("a")
def partition(a: Sym, kth: Any, axis: int | None = -1, kind: str | None = None, order: Any = None) -> Sym:
    """``numpy.partition``, sorted altogether."""
    _require_places("np.partition", a, kth, axis)
    return _sort(a, axis, kind, order)


@array_function("a")
def argpartition(a: Sym, kth: Any, axis: int | None = -1, kind: str | None = None, order: Any = None) -> Sym:
    """``numpy.argpartition``, sorted altogether."""
    _require_places("np.argpartition", a, kth, axis)
    return argsort(a, axis, kind, order)


@array_function("*keys")
def lexsort(keys: Sequence[Sym], axis: int = -1) -> Sym:
    rows = [_last(k, axis)[0] for k in keys]
    found = order_of(rows[0])
    for row in rows[1:]:
        again = order_of(FUNCTIONS["take_along_axis"](row, found, -1))
        found = FUNCTIONS["take_along_axis"](found, again, -1)
    return FUNCTIONS["moveaxis"](found, -1, axis)  # type: ignore[no-any-return]


METHODS = {
    "linear": (1.0, 1.0), "lower": (1.0, 1.0), "higher": (1.0, 1.0), "midpoint": (1.0, 1.0), "nearest": (1.0, 1.0),
    "interpolated_inverted_cdf": (0.0, 1.0), "hazen": (0.5, 0.5), "weibull": (0.0, 0.0),
    "median_unbiased": (1 / 3, 1 / 3), "normal_unbiased": (3 / 8, 3 / 8),
    "inverted_cdf": (0.0, 1.0), "averaged_inverted_cdf": (0.0, 1.0), "closest_observation": (-0.5, 1.5),
}  # fmt: skip
"""Alpha and beta of quantiles between elements (Hyndman and Fan 1996, table 1)."""

TAKEN = frozenset({"lower", "higher", "nearest", "inverted_cdf", "closest_observation"})
"""Those that are elements."""


def _quantiles(op: str, a: Operand, q: Operand, axis: Axis, method: str, keepdims: bool, skips: bool) -> Sym:
    x, share = as_sym(a), as_sym(q)
    if method == "linear" and share.dtype.kind in "biu":
        method = "lower"  # an end of the row, which NumPy leaves in its dtype
    kind = common_dtype((x, 1.0)) if isinstance(q, int | float) else common_dtype((x, share, 1.0))
    axes = axes_of(x, axis)
    kept = [i for i in range(x.ndim) if i not in axes]
    rows = x.transpose([*kept, *axes]).reshape((*(x.shape[i] for i in kept), count_of(x, axes)))
    n = rows.shape[-1]
    if n == 0:
        raise ShapeMismatch(op=f"np.{op}", found=x.shape, expected="at least one element")
    rows = ascending(rows)
    nan = ufunc("isnan", rows)
    numbers = ufunc("invert", nan) if skips else full(True, nan)
    count = numbers.astype(np.float64).sum((nan.ndim - 1,)).reshape((*(1,) * share.ndim, *rows.shape[:-1]))
    share = share.astype(np.float64).reshape((*share.shape, *(1,) * (rows.ndim - 1)))
    alpha, beta = METHODS.get(method, (1.0, 1.0))
    last = ufunc("maximum", count - 1.0, 0.0)
    if alpha == beta == 1.0:  # as NumPy rounds it: a place that is whole is to be found so
        place = ufunc("multiply", last, share)
    else:
        place = ufunc("add", ufunc("multiply", count, share), share * (1.0 - alpha - beta) + (alpha - 1.0))
    floor = ufunc("floor", place)
    weight = place - floor
    low, high = (ufunc("maximum", ufunc("minimum", i, last), 0.0) for i in (floor, floor + 1.0))
    lead = low.shape[: low.ndim - rows.ndim + 1]
    wide = rows.reshape((*(1,) * len(lead), *rows.shape)).broadcast((*lead, *rows.shape))
    below, above = (
        FUNCTIONS["take_along_axis"](wide, i.astype(np.int64).reshape((*i.shape, 1)), -1)
        .reshape(i.shape)
        .astype(x.dtype if method in TAKEN else kind)
        for i in (low, high)
    )
    made = _between(method, below, above, weight.astype(kind), rounded=ufunc("rint", place), low=low)
    if not skips and x.dtype.kind == "f":
        bad = part(nan, nan.ndim - 1, n - 1, n).reshape(rows.shape[:-1])
        made = where(bad, full(float("nan"), made), made)
    return made.reshape((*lead, *(1 if i in axes else m for i, m in enumerate(x.shape)))) if keepdims else made


def _between(method: str, below: Sym, above: Sym, t: Sym, rounded: Sym, low: Sym) -> Sym:
    """Return what a quantile is by the elements below and above its place, ``t`` of the way from one to the other."""
    match method:
        case "median":
            mean = ufunc("divide", ufunc("add", below.astype(np.float64), above), 2.0)
            return where(ufunc("equal", t, 0), below, mean).astype(below.dtype)
        case "lower":
            return below
        case "higher" | "inverted_cdf":
            return where(t > 0, above, below)
        case "closest_observation":
            return where((t > 0) | ufunc("equal", ufunc("remainder", low, 2.0), 0.0), above, below)
        case "averaged_inverted_cdf":
            t = where(t > 0, 1.0, 0.5)
        case "nearest":
            return where(ufunc("equal", rounded, low), below, above)
        case "midpoint":
            t = where(t > 0, 0.5, t)
    apart = ufunc("subtract", above, below)
    # from the nearer end, as NumPy does
    return where(t >= 0.5, above - apart * (1 - t), below + apart * t)


def _enter(name: str, scale: float | None, skips: bool) -> None:
    if scale is None:

        def median(a: Operand, axis: Axis = None, overwrite_input: bool = False, keepdims: bool = False) -> Sym:
            return _quantiles(name, a, 0.5, axis, "median", keepdims, skips)

        fn: Any = median
    else:

        def quantile(
            a: Operand, q: Operand, axis: Axis = None, overwrite_input: bool = False, method: str = "linear",
            keepdims: bool = False, *, weights: Any = None,
        ) -> Sym:  # fmt: skip
            if weights is not None:
                raise UnsupportedArgument(op=f"np.{name}", name="weights", found="an array", expected="leave it out")
            if method not in METHODS:
                names = ", ".join(METHODS)
                raise InvalidParameter(op=f"np.{name}", name="method", found=method, expected=names)
            if isinstance(q, int | float) and not 0 <= q <= scale:
                expected = f"0 to {scale:g}"
                raise InvalidParameter(op=f"np.{name}", name="q", found=q, expected=expected)
            share = q if scale == 1 else q / scale if isinstance(q, int | float) else ufunc("divide", q, scale)
            return _quantiles(name, a, share, axis, method, keepdims, skips)

        fn = quantile
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"``numpy.{name}``."
    array_function("a", *([] if scale is None else ["q"]), numbers=True)(fn)


for _skips in (False, True):
    for _name, _scale in (("median", None), ("quantile", 1.0), ("percentile", 100.0)):
        _enter(f"nan{_name}" if _skips else _name, _scale, _skips)
