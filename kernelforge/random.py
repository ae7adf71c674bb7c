"""Random numbers by key: the same key and shape give the same numbers on every device, however the work is split.

A key is an array ``u32[2]``. Use each one once: ``split`` makes new ones. Bits are those of Threefry-2x32 with 20
rounds (Salmon et al. 2011) on counters: in row-major order, elements 32*k + j and 32*k + 16 + j, for j below 16, are
the first and the second word of block 16*k + j. Floats take the high bits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.dtypes import as_dtype, short
from kernelforge.errors import InvalidParameter
from kernelforge.ir.build import Operand, Sym, apply, as_sym
from kernelforge.numpy.creation import shape_of
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.ufuncs import operand, ufunc, where

Fn = Any
_TABLE: dict[str, Fn] = {}

Shape = int | Sequence[int]

BITS = {"f16": (np.uint16, 16, 11), "bf16": (np.uint16, 16, 8), "f32": (np.uint32, 32, 24), "f64": (np.uint64, 64, 53)}
"""For each float: the integer that holds its random bits, their number, and how many of them its significand takes."""


def key(seed: int) -> np.ndarray[Any, Any]:
    """Make a key from an integer; it is a NumPy array, which every device takes.

    Raises:
        InvalidParameter: when the seed is negative or has more than 64 bits.
    """
    number = operator.index(seed)
    if not 0 <= number < 1 << 64:
        raise InvalidParameter(op="random.key", name="seed", found=seed, expected="an integer from 0 to 2**64 - 1")
    return np.array([number >> 32, number & 0xFFFFFFFF], np.uint32)


def _bits(k: Operand, shape: tuple[int, ...]) -> Sym:
    return apply("random_bits", as_sym(k), shape=shape)


@array_function("key", table=_TABLE)
def split(key: Sym, num: int = 2) -> Sym:
    """Make ``num`` keys, of shape ``(num, 2)``, that are independent of each other and of ``key``."""
    return _bits(key, (num, 2))


@array_function("key", "data", table=_TABLE, numbers=True)
def fold_in(key: Operand, data: Operand) -> Sym:
    """Make a key from a key and an integer: one for each step of a loop."""
    words = ufunc("bitwise_and", data, 0xFFFFFFFF).astype(np.uint32) if not isinstance(data, int) else data & 0xFFFFFFFF
    mixed = ufunc("bitwise_xor", _bits(key, (2,)), words)
    return _bits(mixed, (2,))


@array_function("key", table=_TABLE)
def bits(key: Sym, shape: Shape = (), dtype: Any = np.uint32) -> Sym:
    """Make unsigned integers, all of whose bits are random."""
    kind = as_dtype(dtype)
    extents = shape_of(shape)
    if kind.kind != "u":
        raise InvalidParameter(op="random.bits", name="dtype", found=str(kind), expected="an unsigned integer dtype")
    if kind.itemsize < 8:
        return _bits(key, extents).astype(kind)
    halves = _bits(key, (2, *extents)).astype(np.uint64)
    high, low = (
        apply(
            "slice", halves, starts=(i, *(0,) * len(extents)), stops=(i + 1, *extents), steps=(1,) * halves.ndim
        ).reshape(extents)
        for i in range(2)
    )
    return ufunc("bitwise_or", ufunc("left_shift", high, 32), low)


@array_function("key", "minval", "maxval", table=_TABLE, numbers=True)
def uniform(
    key: Operand, shape: Shape = (), dtype: Any = np.float32, minval: Operand = 0.0, maxval: Operand = 1.0
) -> Sym:
    """Make floats in [minval, maxval), evenly spread."""
    kind, extents = as_dtype(dtype), shape_of(shape)
    low, high = (operand(v, kind, extents, "uniform") for v in (minval, maxval))
    made = _unit(as_sym(key), extents, kind)
    # rounding may reach the upper end, which is not included
    value = made * (high - low) + low
    return where(value < high, value, low)


def _unit(key: Sym, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Sym:
    """Make multiples of the least spacing below 1: all that are in [0, 1) are as likely."""
    if short(dtype) not in BITS:
        raise InvalidParameter(op="random.uniform", name="dtype", found=str(dtype), expected="a float dtype")
    word, width, kept = BITS[short(dtype)]
    whole = ufunc("right_shift", bits(key, shape, word), width - kept)
    wide = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
    return (whole.astype(wide) * 2.0**-kept).astype(dtype)


@array_function("key", table=_TABLE)
def normal(key: Sym, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make floats of the standard normal distribution, by the transform of Box and Muller."""
    kind, extents = as_dtype(dtype), shape_of(shape)
    wide = np.dtype(np.float32) if kind.itemsize == 2 else kind
    pair = split(key)
    first, second = (
        apply("slice", pair, starts=(i, 0), stops=(i + 1, 2), steps=(1, 1)).reshape((2,)) for i in range(2)
    )
    # 1 - u is in (0, 1], so the logarithm is finite
    radius = ufunc("sqrt", ufunc("log1p", -_unit(first, extents, wide)) * -2.0)
    return (radius * ufunc("cos", _unit(second, extents, wide) * (2 * math.pi))).astype(kind)


@array_function("key", "p", table=_TABLE, numbers=True)
def bernoulli(key: Operand, p: Operand = 0.5, shape: Shape | None = None) -> Sym:
    """Make bools that are true with probability ``p``; of its shape where ``shape`` is not given."""
    extents = (p.shape if isinstance(p, Sym | np.generic) else ()) if shape is None else shape_of(shape)
    if isinstance(p, Sym):
        return ufunc("less", _unit(as_sym(key), extents, np.dtype(np.float32)), p)
    # the same comparison on integers: the float is the word's high bits, scaled
    _, width, kept = BITS["f32"]
    exact = float(np.float32(p))
    count = math.ceil(min(exact, 1.0) * (1 << kept)) if exact > 0 else 0
    if count == 1 << kept:
        return apply("full", value=True, shape=extents, dtype="bool")
    return ufunc("less", _bits(key, extents), count << (width - kept))


@array_function("key", table=_TABLE)
def randint(key: Sym, shape: Shape, minval: int, maxval: int, dtype: Any = np.int32) -> Sym:
    """Make integers in [minval, maxval), by the high half of a product; the bias is below 2**-32 times the range."""
    if not 0 < maxval - minval <= 1 << 32:
        raise InvalidParameter(
            op="random.randint", name="maxval", found=maxval, expected="one above minval, by at most 2**32"
        )
    wide = _bits(key, shape_of(shape)).astype(np.uint64)
    offset = ufunc("right_shift", ufunc("multiply", wide, maxval - minval), 32)
    return ufunc("add", offset.astype(np.int64), minval).astype(as_dtype(dtype))


__all__ = ["bernoulli", "bits", "fold_in", "key", "normal", "randint", "split", "uniform"]
