"""Bits, and what is evenly spread: integers, floats, bools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.dtypes import as_dtype, short
from kernelforge.errors import InvalidParameter
from kernelforge.ir.build import Operand, Sym, apply, as_sym
from kernelforge.numpy.creation import shape_of
from kernelforge.numpy.ufuncs import operand, ufunc, where
from kernelforge.random.keys import SPACE, checked, drawn, rows, whole, words
from kernelforge.trace import TRACED, concrete

Shape = int | Sequence[int]

BITS = {"f16": (np.uint16, 16, 11), "bf16": (np.uint16, 16, 8), "f32": (np.uint32, 32, 24), "f64": (np.uint64, 64, 53)}
"""For each float: the integer that holds its random bits, their number, and how many of them its significand takes."""


@drawn()
def bits(key: Operand, shape: Shape = (), dtype: Any = np.uint32) -> Sym:
    """Make unsigned integers, all of whose bits are random."""
    kind = as_dtype(dtype)
    extents = shape_of(shape, "random.bits")
    if kind.kind != "u":
        raise InvalidParameter(op="random.bits", name="dtype", found=str(kind), expected="an unsigned integer dtype")
    if kind.itemsize < 8:
        return words(key, extents).astype(kind)
    high, low = rows(words(key, (2, *extents)).astype(np.uint64))
    return ufunc("bitwise_or", ufunc("left_shift", high, 32), low)


@checked()
def uniform(key: Any, shape: Shape = (), dtype: Any = np.float32, minval: Any = 0.0, maxval: Any = 1.0) -> Any:
    """Make floats in [minval, maxval), evenly spread; ``minval`` where the two are equal.

    Raises:
        InvalidParameter: for bounds in the wrong order, or too large or too far apart for ``dtype``, where they are
            known while the function is compiled.
    """
    kind = floating("uniform", dtype)
    ends = [concrete(x) for x in (minval, maxval)]
    if not any(x is TRACED for x in ends):
        low, high = (np.asarray(x, np.float64) for x in ends)
        with np.errstate(all="ignore"):
            wrong = ~np.isfinite(high.astype(kind) - low.astype(kind)) | (low > high)
        if np.any(wrong):
            least, found = (np.broadcast_to(x, wrong.shape)[wrong].flat[0].item() for x in (low, high))
            expected = f"minval, {least}, or more, and bounds and a difference that {short(kind)} holds"
            raise InvalidParameter(op="random.uniform", name="maxval", found=found, expected=expected)
    return _uniform(key, shape, kind, minval, maxval)


@drawn("minval", "maxval", name="uniform")
def _uniform(key: Operand, shape: Shape, kind: np.dtype[Any], minval: Operand, maxval: Operand) -> Sym:
    extents = shape_of(shape, "random.uniform")
    low, high = (operand(v, kind, extents, "uniform") for v in (minval, maxval))
    made = unit(as_sym(key), extents, kind)
    # rounding may reach the upper end, which is not included
    value = made * (high - low) + low
    return where(value < high, value, low)


def floating(op: str, dtype: Any) -> np.dtype[Any]:
    """Return the dtype of a function's numbers, which must be floats."""
    kind = as_dtype(dtype)
    if short(kind) not in BITS:
        raise InvalidParameter(op=f"{SPACE}.{op}", name="dtype", found=str(kind), expected="a float dtype")
    return kind


def unit(key: Sym, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Sym:
    """Make multiples of the least spacing below 1: all that are in [0, 1) are as likely."""
    return fraction(bits(key, shape, BITS[short(dtype)][0]), dtype)


def fraction(drawn: Sym, dtype: np.dtype[Any]) -> Sym:
    """Take the high bits of random words as what stands behind the point."""
    _, width, kept = BITS[short(dtype)]
    whole = ufunc("right_shift", drawn, width - kept)
    wide = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
    return (whole.astype(wide) * 2.0**-kept).astype(dtype)


@drawn("p")
def bernoulli(key: Operand, p: Operand = 0.5, shape: Shape | None = None) -> Sym:
    """Make bools that are true with probability ``p``; of its shape where ``shape`` is not given."""
    extents = full_shape("bernoulli", shape, p)
    made = words(key, extents, 4)
    if isinstance(p, Sym):
        return ufunc("less", fraction(made, np.dtype(np.float32)), p)
    # the same comparison on integers: the float is the word's high bits, scaled
    _, width, kept = BITS["f32"]
    exact = float(np.float32(p))
    count = math.ceil(min(exact, 1.0) * (1 << kept)) if exact > 0 else 0
    if count == 1 << kept:
        return apply("full", value=True, shape=extents, dtype="bool")
    return ufunc("less", made, count << (width - kept))


@drawn()
def rademacher(key: Operand, shape: Shape = (), dtype: Any = np.int32) -> Sym:
    """Make numbers that are -1 or 1, as likely."""
    heads = bernoulli(key, 0.5, shape_of(shape, "random.rademacher"))
    return where(heads, np.int8(1), np.int8(-1)).astype(as_dtype(dtype))


@checked()
def randint(key: Any, shape: Shape, minval: Any, maxval: Any, dtype: Any = np.int32) -> Any:
    """Make integers in [minval, maxval), by the high half of a product; the bias is below 2**-32 times the range.

    Ranges of more than 2**32, and bounds of 64 bits that are not known while a function is compiled, take the remainder
    of 64 random bits. Where such bounds leave no integer, ``minval`` is what is made.

    Raises:
        InvalidParameter: for bounds that are no integers, that leave none, or that ``dtype`` does not hold.
    """
    kind = as_dtype(dtype)
    held = np.iinfo(kind) if kind.kind in "iu" else None
    ends = [concrete(x) for x in (minval, maxval)]
    if any(x is TRACED or np.ndim(x) for x in ends):
        if held is None:
            raise InvalidParameter(op="random.randint", name="dtype", found=str(kind), expected="an integer dtype")
        return _within(key, shape, minval, maxval, kind)
    low, high = (whole("randint", name, x) for name, x in zip(("minval", "maxval"), ends, strict=True))
    if low >= high:
        raise InvalidParameter(op="random.randint", name="maxval", found=high, expected=f"one above minval, {low}")
    if held is None or not held.min <= low < high <= held.max + 1:
        expected = f"an integer dtype that holds {low} to {high - 1}"
        raise InvalidParameter(op="random.randint", name="dtype", found=str(kind), expected=expected)
    return _between(key, shape, low, high, kind)


@drawn(name="randint")
def _between(key: Operand, shape: Shape, low: int, high: int, dtype: np.dtype[Any]) -> Sym:
    extents = shape_of(shape, "random.randint")
    if high - low == 1 << 64:
        return bits(key, extents, np.uint64).astype(dtype)
    start, count = (as_sym(np.uint64(x % (1 << 64))) for x in (low, high - low))
    return _offset(key, extents, start, count, high - low > 1 << 32).astype(dtype)


@drawn("low", "high", numbers=False, name="randint")
def _within(key: Operand, shape: Shape, low: Sym, high: Sym, dtype: np.dtype[Any]) -> Sym:
    for name, x in (("minval", low), ("maxval", high)):
        if x.dtype.kind not in "iub":
            raise InvalidParameter(op="random.randint", name=name, found=f"a {short(x.dtype)}", expected="integers")
    # by way of i64, as a negative Python number has no place in u64
    start, end = ((x.astype(np.int64) if x.type.weak else x).astype(np.uint64) for x in (low, high))
    count = where(ufunc("less", low, high), ufunc("subtract", end, start), np.uint64(1))
    large = any(x.dtype.itemsize == 8 and not x.type.weak for x in (low, high))
    return _offset(key, shape_of(shape, "random.randint"), start, count, large).astype(dtype)


def _offset(key: Operand, shape: tuple[int, ...], start: Sym, count: Sym, large: bool) -> Sym:
    """Make the sum, without its carry, of ``start`` and of integers below ``count``, which is ``large`` above 2**32."""
    if large:
        made = ufunc("remainder", bits(key, shape, np.uint64), count)
    else:
        made = ufunc("right_shift", ufunc("multiply", words(key, shape).astype(np.uint64), count), 32)
    return ufunc("add", made, start).broadcast(shape)


def widened(dtype: Any) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return a float dtype and the one its numbers are computed in."""
    kind = as_dtype(dtype)
    return kind, np.dtype(np.float32) if kind.itemsize == 2 else kind


def inside(key: Sym, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Sym:
    """Make floats in (0, 1), evenly spaced and neither end included."""
    word, width, kept = BITS[short(dtype)]
    whole = ufunc("right_shift", bits(key, shape, word), width - kept + 1).astype(dtype)
    return (whole + 0.5) * 2.0 ** (1 - kept)


def full_shape(op: str, shape: Shape | None, *parameters: Operand) -> tuple[int, ...]:
    """Return the shape asked for, or else the one the parameters broadcast to."""
    if shape is not None:
        return shape_of(shape, f"{SPACE}.{op}")
    return np.broadcast_shapes(*(p.shape for p in parameters if isinstance(p, Sym | np.generic)))


Laid = tuple[np.dtype[Any], np.dtype[Any], tuple[int, ...], list[Sym]]


def laid(op: str, dtype: Any, shape: Shape | None, *parameters: Operand) -> Laid:
    """Return a float dtype, the one its numbers are computed in, the shape, and the parameters in both."""
    kind, wide = widened(floating(op, dtype))
    extents = full_shape(op, shape, *parameters)
    return kind, wide, extents, [operand(x, wide, extents, op) for x in parameters]
