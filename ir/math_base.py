"""What the expansions of ``kernelforge.ir.math`` share: the layout of floats, polynomials, and work on bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from kernelforge.ir.coefficients import PIECES, POLYNOMIALS
from kernelforge.ir.kernel import Const, Expr, op, select

INF = math.inf
NAN = math.nan
LOG2_E = 1 / math.log(2)


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """The layout of a float and where its functions saturate.

    Attributes:
        integer: signed integer of the same size.
        unsigned: unsigned integer of the same size.
        fraction: bits of the fraction.
        bias: of the exponent.
        exp: below the first exp(x) is 0, above the second it is infinite; likewise for exp2.
        exp2: the same for exp2.
        flat: where tanh, erf and expm1(-x) have reached their limit.
        medium: up to here four pieces of pi/2 reduce an angle well enough.
        erfc_center: the k of the erfc polynomial's variable.
    """

    integer: str
    unsigned: str
    fraction: int
    bias: int
    exp: tuple[float, float]
    exp2: tuple[float, float]
    flat: tuple[float, float, float]
    medium: float
    erfc_center: float
    erfc_zero: float

    @property
    def sign(self) -> int:
        return -(1 << (self.fraction + self.bias.bit_length() + 1))

    @property
    def least(self) -> float:
        """The least normal number."""
        return 2.0 ** (1 - self.bias)

    def bits(self, value: float) -> int:
        """The bits of a number that is a power of two, or infinite."""
        exponent = 2 * self.bias + 1 if math.isinf(value) else int(math.log2(value)) + self.bias
        return exponent << self.fraction

    @property
    def magic(self) -> float:
        """Adding it rounds to a whole number, which then stands in the low bits."""
        return 1.5 * 2.0**self.fraction

    @property
    def half_root(self) -> int:
        """The bits of sqrt(1/2), from where on the logarithm's argument starts."""
        return 0x3F3504F3 if self.fraction == 23 else 0x3FE6A09E667F3BCD


FORMATS = {
    "f32": Format("i32", "u32", 23, 127, (-104, 89), (-150, 128), (10, 3.95, 18), 1024.0, 2, 10.1),
    "f64": Format("i64", "u64", 52, 1023, (-746, 710), (-1075, 1024), (20, 6, 38), 2.0**19, 4, 27.3),
}


def poly(name: str, x: Expr) -> Expr:
    *lower, last = POLYNOMIALS[name, x.dtype]
    result: Expr = Const(last, x.dtype)
    for coefficient in reversed(lower):
        result = result * x + coefficient
    return result


def bits_of(x: Expr) -> Expr:
    return x.bitcast(FORMATS[x.dtype].integer)


def with_sign(magnitude: Expr, x: Expr) -> Expr:
    """Give a result that is not negative the sign of ``x``."""
    f = FORMATS[x.dtype]
    return (bits_of(magnitude) | (bits_of(x) & f.sign)).bitcast(x.dtype)


def odd(fn: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    return lambda x: with_sign(fn(op("abs", x)), x)


def clamp(x: Expr, low: float, high: float) -> Expr:
    """Unlike min and max, one instruction each; NaN passes."""
    return at_most(select(x < low, low, x), high)


def at_most(x: Expr, high: float) -> Expr:
    return select(x > high, high, x)


def power_of_two(i: Expr, dtype: str) -> Expr:
    """2**i, where the low bits of ``i`` are a whole number in [1 - bias, bias]."""
    f = FORMATS[dtype]
    return ((i << f.fraction) + (f.bias << f.fraction)).bitcast(dtype)


def scaleb(x: Expr, n: Expr) -> Expr:
    """X * 2**n for a whole number n, in two steps, so that a subnormal result is rounded once and overflow gives
    infinity.
    """
    f = FORMATS[x.dtype]
    i = bits_of(n + (f.magic + 2 * f.bias))  # the low bits of either half are then a power's exponent
    half = i >> 1
    return x * (half << f.fraction).bitcast(x.dtype) * ((i - half) << f.fraction).bitcast(x.dtype)


def nearest(x: Expr) -> tuple[Expr, Expr]:
    """The nearest whole number, as a float and in the low bits of an integer."""
    n, shifted = nearest_part(x, 1)
    return n, bits_of(shifted)


def nearest_part(x: Expr, parts: int) -> tuple[Expr, Expr]:
    """The nearest multiple of ``1 / parts``, and a number whose low bits say which one; ``parts`` is a power of 2."""
    magic = FORMATS[x.dtype].magic / parts
    shifted = x + magic
    return shifted - magic, shifted


def nearest_power(x: Expr, offset: int = 0) -> tuple[Expr, Expr]:
    """The nearest whole number n, and 2**(n + offset), which must be normal."""
    f = FORMATS[x.dtype]
    magic = f.magic + f.bias + offset  # the low bits are the power's exponent as the format has it
    shifted = x + magic
    return shifted - magic, (bits_of(shifted) << f.fraction).bitcast(x.dtype)


def to_float(i: Expr, dtype: str) -> Expr:
    """Convert a small integer without the conversion that vector units lack for 64 bits."""
    f = FORMATS[dtype]
    magic = (f.bias + f.fraction) << f.fraction | 1 << (f.fraction - 1)
    return (i + magic).bitcast(dtype) - f.magic


def halves(x: Expr) -> tuple[Expr, Expr]:
    """X as a sum of two floats of half its bits, whose products are exact."""
    f = FORMATS[x.dtype]
    high = (bits_of(x) & -(1 << (f.fraction // 2 + 1))).bitcast(x.dtype)
    return high, x - high


def mul_error(a: Expr, b: Expr) -> Expr:
    """Return what rounding a * b loses (Dekker 1971, with halves by masking)."""
    (a1, a0), (b1, b0) = halves(a), halves(b)
    return ((a1 * b1 - a * b) + a1 * b0 + a0 * b1) + a0 * b0


def two_product(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """A * b and what its rounding lost."""
    return a * b, op("mul_error", a, b)


def two_sum(a: Expr | float, b: Expr) -> tuple[Expr, Expr]:
    """A + b and what its rounding lost, where a is 0 or not the smaller of the two in magnitude."""
    s = b + a
    return s, b - (s - a)


def less_log2(x: Expr, n: Expr) -> Expr:
    """X - n*log(2) for a short whole number n (Cody and Waite)."""
    high, low = PIECES["log2", x.dtype]
    return (x - n * high) - n * low


def near_exp(r: Expr) -> Expr:
    """exp(r) for |r| <= log(2)/2."""
    return 1 + r * (1 + r * poly("exp", r))


def near_power(slope: Expr, r: Expr, shifted: Expr) -> Expr:
    """(1 + r * slope) * 2**f, where the low bits of ``shifted`` say what f is behind the point."""
    power = op("exp2_low", shifted)
    return power + power * r * slope
