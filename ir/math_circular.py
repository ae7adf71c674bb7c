"""Circular functions and their inverses, as expansions of ``kernelforge.ir.math``."""

from __future__ import annotations

import itertools
import math

from kernelforge.ir.coefficients import PIECES, TWO_OVER_PI, TWO_OVER_PI_BITS
from kernelforge.ir.kernel import Const, Expr, op, select, unlikely
from kernelforge.ir.math_base import FORMATS, INF, NAN, bits_of, nearest, poly, to_float, with_sign


def _asin_tail(a: Expr) -> Expr:
    """Asin of sqrt((1 - a)/2), half of acos(a), for a from 1/2 to 1."""
    z = (1 - a) * 0.5
    s = op("sqrt", z)
    return s + s * z * poly("asin", z)


def asin(a: Expr) -> Expr:
    high, low = PIECES["half_pi_near", a.dtype]
    z = a * a
    return select(a <= 0.5, a + a * z * poly("asin", z), high - (2 * _asin_tail(a) - low))


def acos(x: Expr) -> Expr:
    high, low = PIECES["half_pi_near", x.dtype]
    a = op("abs", x)
    z = x * x
    middle = high - (x - (low - x * z * poly("asin", z)))
    tail = _asin_tail(a)
    return select(a <= 0.5, middle, 2 * select(x > 0, tail, high - (tail - low)))


def _atan_core(t: Expr) -> Expr:
    z = t * t
    return t + t * z * poly("atan", z)


def atan(a: Expr) -> Expr:
    high, low = PIECES["half_pi_near", a.dtype]
    inner = _atan_core(select(a > 1, 1 / a, a))
    return select(a > 1, high - (inner - low), inner)


def atan2(y: Expr, x: Expr) -> Expr:
    high, low = PIECES["half_pi_near", x.dtype]
    a, b = op("abs", y), op("abs", x)
    steep = a > b
    above, below = select(steep, b, a), select(steep, a, b)
    ratio = select(a.eq(b), select(a.eq(0), a, Const(1, x.dtype)), above / below)  # 0/0 and inf/inf
    inner = _atan_core(ratio)
    right = select(steep, high - (inner - low), inner)
    left = select(steep, high + (inner + low), 2 * high - (inner - 2 * low))
    angle = with_sign(select(bits_of(x) < 0, left, right), y)
    return select(x.ne(x) | y.ne(y), x + y, angle)


def _reduce_medium(a: Expr) -> tuple[Expr, Expr, Expr]:
    """A = q*pi/2 + r + tail with |r| <= pi/4, by four pieces of pi/2 (Cody and Waite); q in the low bits."""
    first, second, third, fourth = PIECES["half_pi", a.dtype]
    n, q = nearest(a * (2 / math.pi))
    exact = a - n * first
    near = exact - n * second
    lost = ((exact - near) - n * second) - (n * third + n * fourth)
    r = near + lost
    return r, (near - r) + lost, q


def _reduce_large(a: Expr) -> tuple[Expr, Expr]:
    """The same for any a of at least 1, exactly (Payne and Hanek 1983).

    The fraction as a whole number times the bits of 2/pi that matter: those before give multiples of 4 quadrants, those
    after lie below the result's last bit. Words are of 32 bits, products of 64.
    """
    f = FORMATS[a.dtype]
    bits = a.bitcast(f.unsigned)
    m = (bits & ((1 << f.fraction) - 1)) | (1 << f.fraction)
    # the window starts with the bit of 2/pi that weighs 2 in the product with m; 64 zeros stand before the first bit
    start = ((bits >> f.fraction) - (f.bias + f.fraction + 2 - 64)).cast("u32")
    words = [(TWO_OVER_PI >> max(TWO_OVER_PI_BITS - 32 * k, 0)) & 0xFFFFFFFF if k else 0 for k in range(39)]
    table: list[Expr] = [Const(0, "u32"), *(Const(w, "u32") for w in words)]
    count = 4 if f.fraction == 23 else 7
    levels = 3 if f.fraction == 23 else 6
    window = _shift_words(table, start >> 5, levels, count)
    by = start & 31
    window = [(x << by) | ((y >> 1) >> (31 - by)) for x, y in itertools.pairwise(window)]
    return _quadrant_f32(m, window) if f.fraction == 23 else _quadrant_f64(m, window)


def _shift_words(words: list[Expr], by: Expr, levels: int, count: int) -> list[Expr]:
    """words[by : by + count] by a barrel shifter."""
    zero = Const(0, "u32")
    for level in reversed(range(levels)):
        keep = count + (1 << level) - 1
        step = 1 << level
        padded = words + [zero] * (keep + step)
        odd = (by & step).ne(0)
        words = [select(odd, padded[k + step], padded[k]) for k in range(keep)]
    return words


def _quadrant_f32(m: Expr, window: list[Expr]) -> tuple[Expr, Expr]:
    m64 = m.cast("u64")
    product = ((m * window[0]).cast("u64") << 32) + m64 * window[1].cast("u64") + ((m64 * window[2].cast("u64")) >> 32)
    q = (product + (1 << 61)) >> 62
    rest = (product - (q << 62)).bitcast("i64")
    # rounded to the nearest, the first part never cancels the others; its product with the short piece is exact
    first = (rest + (1 << 51)) >> 52
    left = rest - (first << 52)
    high, middle, low = (
        part.cast("i32").cast("f32") * scale
        for part, scale in ((first, 2.0**-10), (left >> 28, 2.0**-34), ((left >> 4) & 0xFFFFFF, 2.0**-58))
    )
    short, *others = PIECES["half_pi", "f32"]
    return high * short + (high * sum(others) + (middle + low) * (math.pi / 2)), q.cast("i32")


def _quadrant_f64(m: Expr, window: list[Expr]) -> tuple[Expr, Expr]:
    low, high = m & 0xFFFFFFFF, m >> 32
    mask = 0xFFFFFFFF
    wide = [w.cast("u64") for w in window]
    # columns of 32 bits, the last word's weight first; each column's sum fits in 64 bits
    columns: list[Expr] = [Const(0, "u64") for _ in range(7)]
    for k, w in enumerate(wide):
        for part, column in ((low, k), (high, k - 1)):
            product = part * w
            if column >= 0:
                columns[column] = columns[column] + (product & mask)
            if column >= 1:
                columns[column - 1] = columns[column - 1] + (product >> 32)
    carry: Expr = Const(0, "u64")
    digits: list[Expr] = []
    for column_sum in reversed(columns[:6]):
        total = column_sum + carry
        digits.append(total & mask)
        carry = total >> 32
    digits.reverse()
    top, middle = (digits[0] << 32) | digits[1], (digits[2] << 32) | digits[3]
    q = (top + (1 << 61)) >> 62
    rest = (top - (q << 62)).bitcast("i64")
    # 62 bits of fraction in ``rest``, 64 more in ``middle``: summed as floats in four exact parts
    parts = ((rest >> 32), (rest & mask), (middle >> 32).bitcast("i64"), (middle & mask).bitcast("i64"))
    scales = (2.0**-30, 2.0**-62, 2.0**-94, 2.0**-126)
    a, b, c, d = (to_float(p, "f64") * s for p, s in zip(parts, scales, strict=True))
    near, rest_of_pi = PIECES["half_pi_near", "f64"]
    return a * near + (a * rest_of_pi + (b + (c + d)) * near), q.bitcast("i64")


def _sin_cos(a: Expr) -> tuple[Expr, Expr, Expr]:
    """sin(r), cos(r) and q for a = q*pi/2 + r, a >= 0; infinities give NaN."""
    f = FORMATS[a.dtype]
    medium, tail, q = _reduce_medium(a)
    large, large_q = _reduce_large(a)
    far = unlikely(a > f.medium)
    r = select(far, select(a < INF, large, NAN), medium)
    tail = select(far, 0, tail)
    z = r * r
    s = r + (r * z * poly("sin", z) + tail)
    c = 1 - (0.5 * z - (z * z * poly("cos", z) - r * tail))
    return s, c, select(far, large_q, q)


def _flip(x: Expr, bit: Expr) -> Expr:
    """Negate where bit 1 of ``bit`` is set."""
    f = FORMATS[x.dtype]
    return (bits_of(x) ^ ((bit << (f.fraction + f.bias.bit_length())) & f.sign)).bitcast(x.dtype)


def sin(x: Expr) -> Expr:
    a = op("abs", x)
    s, c, q = _sin_cos(a)
    return (bits_of(_flip(select((q & 1).eq(0), s, c), q)) ^ (bits_of(x) & FORMATS[x.dtype].sign)).bitcast(x.dtype)


def cos(x: Expr) -> Expr:
    s, c, q = _sin_cos(op("abs", x))
    return _flip(select((q & 1).eq(0), c, s), q + (q & 1))


def tan(x: Expr) -> Expr:
    s, c, q = _sin_cos(op("abs", x))
    even = (q & 1).eq(0)
    t = select(even, s, -c) / select(even, c, s)
    return (bits_of(t) ^ (bits_of(x) & FORMATS[x.dtype].sign)).bitcast(x.dtype)
