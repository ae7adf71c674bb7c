"""What numbers are made of: exponents and spacings of floats, bits in bytes; and a Bessel function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge.dtypes import NARROW_FLOATS, is_float, short
from kernelforge.errors import DtypeMismatch, InvalidParameter
from kernelforge.ir.build import Operand, Sym, apply, as_sym, full
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.shapes import part
from kernelforge.numpy.ufuncs import elementwise, floating, ufunc, where


@elementwise("x")
def frexp(x: Operand, /) -> tuple[Sym, Sym]:
    """``numpy.frexp``; the derivative is the mantissa's, the exponent has none."""
    given = floating(x)
    value = given.astype(np.float32) if given.type.name in NARROW_FLOATS else given
    info = np.finfo(value.dtype)
    size = 8 * value.dtype.itemsize
    still = apply("stop_gradient", value)
    small = ufunc("less", ufunc("absolute", still), info.smallest_normal)
    scale = info.nmant + 1  # makes subnormal numbers normal
    bits = apply("bitcast", where(small, still * 2.0**scale, still), dtype=f"i{size}")
    biased = ufunc("bitwise_and", ufunc("right_shift", bits, info.nmant), (1 << info.nexp) - 1)
    exponent = biased - (1 << (info.nexp - 1)) + 2 - where(small, scale, 0)
    plain = ufunc("isfinite", still) & ufunc("not_equal", still, 0)
    exponent = where(plain, exponent, 0).astype(np.int32)
    mantissa = where(plain, FUNCTIONS["ldexp"](value, ufunc("negative", exponent)), value)
    return mantissa.astype(given.dtype), exponent


@elementwise("x")
def spacing(x: Operand, /) -> Sym:
    value = apply("stop_gradient", floating(x))
    down = ufunc("less", value, -math.inf if value.dtype == np.float16 else 0)  # NumPy's goes up for all of f16
    away = where(down | ufunc("isinf", value), ufunc("copysign", full(math.inf, value), value), math.inf)
    return ufunc("nextafter", value, away) - value


@elementwise("val")
def imag(val: Operand) -> Sym:
    return full(0, as_sym(val))


@elementwise("a")
def real_if_close(a: Operand, tol: float = 100) -> Sym:
    return as_sym(a)


NODES = 240
"""Of the trapezoidal rule, whose error for i0(x) is about exp(-NODES**2 / 2x): less than rounding up to where i0 is
inf."""


@array_function("x")
def i0(x: Sym) -> Sym:
    """``numpy.i0``: exp(x cos t) on average; Abramowitz and Stegun 9.6.16, Trefethen and Weideman 2014."""
    kind = x.dtype if is_float(x.dtype) else np.dtype(np.float64)
    value = x.astype(np.float32 if short(kind) in NARROW_FLOATS else kind)
    cosines = np.cos(2 * math.pi * (np.arange(NODES // 2) + 0.5) / NODES)  # of half a circle; the other has the same
    size = apply("stop_gradient", ufunc("absolute", value))  # exp(x cos t - |x|) does not overflow
    wide = (*value.shape, 1)
    scaled = ufunc("exp", value.reshape(wide) * as_sym(cosines.astype(value.dtype)) - size.reshape(wide))
    average = ufunc("maximum", FUNCTIONS["mean"](scaled, -1), 1e-30)  # of large x, 0 times inf would be NaN
    return (average * ufunc("exp", size)).astype(kind)


def _shifts(op: str, bitorder: str) -> np.ndarray[Any, Any]:
    if bitorder not in ("big", "little"):
        raise InvalidParameter(op=op, name="bitorder", found=bitorder, expected="'big' or 'little'")
    return np.arange(8, dtype=np.uint8)[:: 1 if bitorder == "little" else -1]


def _along(a: Sym, axis: int | None) -> tuple[Sym, int]:
    """Return ``a`` with the axis that bits are along at the end, and where that was."""
    if axis is None:
        return a.reshape((a.size,)), 0
    on = normalize_axis_index(axis, a.ndim)
    return FUNCTIONS["moveaxis"](a, on, -1), on


@array_function("a")
def packbits(a: Sym, axis: int | None = None, bitorder: str = "big") -> Sym:
    if a.dtype.kind not in "iub":
        raise DtypeMismatch(op="np.packbits", found=a.dtype, expected="integers or bools")
    shifts = _shifts("np.packbits", bitorder)
    x, on = _along(ufunc("not_equal", a, 0), axis)
    n = x.shape[-1]
    none = (0,) * x.ndim
    x = apply("pad", x, as_sym(np.False_), low=none, high=(*none[1:], -n % 8), interior=none)
    bits = x.reshape((*x.shape[:-1], x.shape[-1] // 8, 8)).astype(np.uint8)
    made = ufunc("left_shift", bits, as_sym(shifts)).sum((bits.ndim - 1,))
    return FUNCTIONS["moveaxis"](made, -1, on)  # type: ignore[no-any-return]


@array_function("a")
def unpackbits(a: Sym, axis: int | None = None, count: int | None = None, bitorder: str = "big") -> Sym:
    if a.dtype != np.uint8:
        raise DtypeMismatch(op="np.unpackbits", found=a.dtype, expected="bytes (uint8)")
    shifts = _shifts("np.unpackbits", bitorder)
    x, on = _along(a, axis)
    bits = ufunc("bitwise_and", ufunc("right_shift", x.reshape((*x.shape, 1)), as_sym(shifts)), 1)
    made = bits.reshape((*x.shape[:-1], 8 * x.shape[-1]))
    n = made.shape[-1]
    kept = n if count is None else count if count >= 0 else max(n + count, 0)
    made = part(made, made.ndim - 1, 0, min(kept, n))
    none = (0,) * made.ndim
    zero = as_sym(0).astype(np.uint8)
    made = apply("pad", made, zero, low=none, high=(*none[1:], max(kept - n, 0)), interior=none)
    return FUNCTIONS["moveaxis"](made, -1, on)  # type: ignore[no-any-return]
