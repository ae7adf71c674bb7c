"""Elementwise arithmetic: sums, products, quotients, powers, rounding, extrema, and what works on the bits of a float.

Every rule agrees with NumPy on all values: integers wrap, division of an integer by zero gives 0, quotients round down,
maximum and minimum propagate NaN. One case is defined here because NumPy raises: an integer to a negative power is the
exact result rounded toward zero (0 ** -1 is 0).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelforge.dtypes import FLOATS, INTEGERS, NARROW_FLOATS, SIGNED, UNSIGNED
from kernelforge.ir.build import Sym, full
from kernelforge.ir.graph import Primitive
from kernelforge.ir.kernel import Const, Expr, op, select, unlikely
from kernelforge.ir.ops.elementwise import ALL, NUMBERS, Array, call, elementwise, where

INF = float("inf")
WIDTH = {"i8": 8, "i16": 16, "i32": 32, "i64": 64, "u8": 8, "u16": 16, "u32": 32, "u64": 64}
SIGNED_BITS = {"f16": "i16", "bf16": "i16", "f32": "i32", "f64": "i64"}
"""The signed integer that holds a float's bits."""

WHOLE = 32
"""The largest whole exponent of which a float's power is made of products."""

PRODUCTS = {"f32": (2.0**-126, 2.0**100), "f64": (2.0**-1022, 2.0**960)}
"""The range of powers for which products tell what rounding lost: halves of larger ones would overflow."""


def _pass(t: Sym, *_: Sym) -> Sym:
    return t


def _minus(t: Sym, *_: Sym) -> Sym:
    return -t


def _logical(on_bool: str, on_numbers: str) -> Any:
    return lambda x, y: op(on_bool if x.dtype == "bool" else on_numbers, x, y)


def _divisor(x: Expr, y: Expr) -> Expr:
    """A divisor that neither traps nor overflows: 1 in place of 0 and -1."""
    trap = y.eq(0) | y.eq(-1) if x.dtype in SIGNED else y.eq(0)
    return select(trap, 1, y)


def _divmod(x: Expr, y: Expr) -> tuple[Expr, Expr]:
    """Quotient rounded down and remainder of floats, as NumPy computes them from fmod; the divisor is not zero."""
    m = op("fmod", x, y)
    away = m.ne(0) & ((y < 0) ^ (m < 0))
    exact = (x - m) / y
    quotient = select(away, exact - 1, exact)
    down = op("floor", quotient)
    nearest = select(quotient - down > 0.5, down + 1, down)
    return (
        select(quotient.ne(0), nearest, copysign(Const(0, x.dtype), x / y)),
        select(m.ne(0), select(away, m + y, m), copysign(Const(0, x.dtype), y)),
    )


def _floor_divide(x: Expr, y: Expr) -> Expr:
    if x.dtype in FLOATS:
        return select(y.eq(0), x / y, _divmod(x, y)[0])
    quotient = select(y.eq(0), 0, op("floordiv", x, _divisor(x, y)))
    return select(y.eq(-1), -x, quotient) if x.dtype in SIGNED else quotient


def _remainder(x: Expr, y: Expr) -> Expr:
    if x.dtype in FLOATS:
        return select(y.eq(0), float("nan"), _divmod(x, y)[1])
    return select(y.eq(0), 0, op("mod", x, _divisor(x, y)))


def _fmod(x: Expr, y: Expr) -> Expr:
    if x.dtype in FLOATS:
        return op("fmod", x, y)
    rest = _remainder(x, y)
    if x.dtype in UNSIGNED:
        return rest
    return select(rest.ne(0) & ((x < 0) ^ (y < 0)), rest - y, rest)


def _integer_power(x: Array, y: Array) -> Array:
    if y.dtype.kind != "i":
        return np.power(x, y)
    negative = np.where(x == 1, 1, np.where(x == -1, 1 - 2 * (y & 1), 0))
    return np.where(y < 0, negative.astype(x.dtype), np.power(x, np.maximum(y, 0)))


def _power(x: Expr, y: Expr) -> Expr:
    if x.dtype in FLOATS:
        return _float_power(x, y)
    one = Const(1, x.dtype)
    known = int(y.value) if isinstance(y, Const) else None
    steps = max(known, 0).bit_length() if known is not None else WIDTH[x.dtype] - (x.dtype in SIGNED)
    result: Expr = one
    square = x
    for bit in range(steps):
        if known is None:
            result = result * select((y & (1 << bit)).ne(0), square, one)
        elif known >> bit & 1:
            result = result * square
        square = square * square
    if x.dtype in UNSIGNED or (known is not None and known >= 0):
        return result
    inverse = select(x.eq(1), 1, select(x.eq(-1), 1 - ((y & 1) << 1), Const(0, x.dtype)))
    return select(y < 0, inverse, result)


def _float_power(x: Expr, y: Expr) -> Expr:
    """Constant exponents that need no logarithm, exact or nearly so, with pow's results for zeros and infinities."""
    match y.value if isinstance(y, Const) else None:
        case 0.0:
            return Const(1, x.dtype)
        case 1.0:
            return x
        case 2.0:
            return x * x
        case 3.0:
            return x * x * x
        case -1.0:
            return 1 / x
        case 0.5:
            return select(x.eq(-INF), INF, op("sqrt", x + 0.0))
        case 1.5:
            return select(x.eq(-INF), INF, (x + 0.0) * op("sqrt", x + 0.0))
        case -0.5:
            return select(x.eq(-INF), 0.0, 1 / op("sqrt", x + 0.0))
        case -1.5:
            return select(x.eq(-INF), 0.0, 1 / (x + 0.0) * (1 / op("sqrt", x + 0.0)))
        case float(n) if n.is_integer() and abs(n) <= WHOLE:
            return _products(x, y, int(n))
        case _:
            return op("pow", x, y)


def _products(x: Expr, y: Expr, n: int) -> Expr:
    """A power by squaring, along with what roundings lost, so that it is as near as pow; f16 and bf16 in f32."""
    if x.dtype in NARROW_FLOATS:
        return _products(x.cast("f32"), y.cast("f32"), n).cast(x.dtype)
    least, most = PRODUCTS[x.dtype]
    high, low = x, None
    for bit in f"{abs(n):b}"[1:]:
        lost = op("mul_error", high, high)
        high, low = high * high, lost if low is None else lost + 2 * high * low
        if bit == "1":
            high, low = high * x, op("mul_error", high, x) + low * x
    assert low is not None
    size = op("abs", high)
    result = select(size >= least, high + low, high)
    # subnormal products have lost more than they tell; zeros are as they should be
    far = ~(size <= most) | ((size < least) & (size > 0))
    if n < 0:
        result = 1 / result
    return select(unlikely(far), op("pow", x, y), result)


def _power_dx(t: Sym, _: Sym, x: Sym, y: Sym) -> Sym:
    # y * x**(y - 1) is 0 * inf where both are zero, so there the exponent is replaced
    return t * (y * call("power", x, where(y.eq(0), 1.0, y - 1)))


def _power_dy(t: Sym, z: Sym, x: Sym, _: Sym) -> Sym:
    return t * (call("log", where(x.eq(0), 1.0, x)) * z)


def copysign(x: Expr, y: Expr) -> Expr:
    """The magnitude of ``x`` with the sign bit of ``y``."""
    bits = SIGNED_BITS[x.dtype]
    sign = -(1 << (WIDTH[bits] - 1))
    return (op("abs", x).bitcast(bits) | (y.bitcast(bits) & sign)).bitcast(x.dtype)


def _nextafter(x: Expr, y: Expr) -> Expr:
    bits = SIGNED_BITS[x.dtype]
    b = x.bitcast(bits)
    xf, yf = (v.cast("f32") if v.dtype in NARROW_FLOATS else v for v in (x, y))
    least = (y.bitcast(bits) & -(1 << (WIDTH[bits] - 1))) | 1
    step = select(xf.eq(0), least, select((xf < yf) ^ (xf < 0), b + 1, b - 1)).bitcast(x.dtype)
    unordered = xf.ne(xf) | yf.ne(yf)
    return select(unordered, Const(float("nan"), x.dtype), select(xf.eq(yf), y, step))


def _hypot(x: Expr, y: Expr) -> Expr:
    """Scaled by a power of two, so that neither square overflows nor loses bits to underflow."""
    a, b = op("abs", x), op("abs", y)
    most = op("max", a, b)
    large, small, shrink, grow = (62, -42, -66, 100) if x.dtype == "f32" else (510, -450, -600, 600)
    one = Const(1, x.dtype)
    scale = select(most > 2.0**large, 2.0**shrink, select(most < 2.0**small, 2.0**grow, one))
    back = select(most > 2.0**large, 2.0**-shrink, select(most < 2.0**small, 2.0**-grow, one))
    a, b = a * scale, b * scale
    return select(op("abs", x).eq(INF) | op("abs", y).eq(INF), INF, op("sqrt", a * a + b * b) * back)


def _hypot_partial(t: Sym, z: Sym, x: Sym) -> Sym:
    return t * (x / where(z.eq(0), 1.0, z))


def _logaddexp(x: Expr, y: Expr) -> Expr:
    most = op("max", x, y)
    distance = select(x.eq(y), 0, op("abs", x - y))  # equal infinities are at no distance
    return most + op("log1p", op("exp", -distance))


def _logaddexp_partial(t: Sym, x: Sym, y: Sym) -> Sym:
    """The weight 1 / (1 + exp(y - x)); two equal infinities share it."""
    apart = where(x.eq(y) & call("isinf", x), 0.0, y - x)
    behind = apart > 0
    # exp of what is not positive: neither it nor a derivative of the weight overflows
    small = call("exp", where(behind, -apart, apart))
    return t * (where(behind, small, 1.0) / (small + 1))


def _extremum_partial(t: Sym, beaten: Sym, tie: Sym) -> Sym:
    return where(beaten, 0.0, where(tie, t * 0.5, t))


def _sign(x: Expr) -> Expr:
    zero = Const(0, x.dtype)
    if x.dtype in UNSIGNED:
        return select(x.eq(0), zero, 1)
    tail = select(x.eq(0), zero, x) if x.dtype in FLOATS else zero
    return select(x > 0, 1, select(x < 0, Const(-1, x.dtype), tail))


def _keep_integers(name: str, kept: frozenset[str]) -> Any:
    return lambda x: x if x.dtype in kept else op(name, x)


def _round_to(name: str, direction: str) -> Primitive:
    whole = INTEGERS | {"bool"}
    numpy, doc = getattr(np, name), f"The nearest whole number {direction}."
    return elementwise(name, doc, numpy=numpy, lower=_keep_integers(name, whole), partials=None, dtypes=ALL)


PRIMITIVES: tuple[Primitive, ...] = (
    elementwise(
        "add",
        "The sum; of bools the logical or.",
        numpy=np.add,
        lower=_logical("or", "add"),
        partials=(_pass, _pass),
        dtypes=ALL,
        arity=2,
    ),
    elementwise(
        "subtract",
        "The difference.",
        numpy=np.subtract,
        lower=lambda x, y: x - y,
        partials=(_pass, _minus),
        dtypes=NUMBERS,
        arity=2,
    ),
    elementwise(
        "multiply",
        "The product; of bools the logical and.",
        numpy=np.multiply,
        lower=_logical("and", "mul"),
        partials=(lambda t, z, x, y: t * y, lambda t, z, x, y: t * x),
        dtypes=ALL,
        arity=2,
    ),
    elementwise(
        "divide",
        "The quotient of floats.",
        numpy=np.divide,
        lower=lambda x, y: x / y,
        # the second takes the quotient that the first makes
        partials=(lambda t, z, x, y: t / y, lambda t, z, x, y: -((t / y) * z)),
        arity=2,
        domain=(0.25, 4.0),
    ),
    elementwise(
        "floor_divide",
        "The quotient rounded down; 0 where an integer is divided by 0.",
        numpy=np.floor_divide,
        lower=_floor_divide,
        partials=None,
        dtypes=NUMBERS,
        arity=2,
    ),
    elementwise(
        "remainder",
        "What floor_divide leaves; it has the divisor's sign.",
        numpy=np.remainder,
        lower=_remainder,
        partials=(_pass, lambda t, z, x, y: t * ((z - x) / y)),
        dtypes=NUMBERS,
        arity=2,
    ),
    elementwise(
        "fmod",
        "What a quotient truncated toward zero leaves; it has the dividend's sign.",
        numpy=np.fmod,
        lower=_fmod,
        partials=(_pass, lambda t, z, x, y: t * ((z - x) / y)),
        dtypes=NUMBERS,
        arity=2,
    ),
    elementwise(
        "power",
        "x to the power of y; an integer to a negative power is rounded toward zero.",
        numpy=lambda x, y: np.power(x, y) if x.dtype.kind == "f" else _integer_power(x, y),
        lower=_power,
        partials=(_power_dx, _power_dy),
        dtypes=NUMBERS,
        arity=2,
        bound=4,
    ),
    elementwise(
        "maximum",
        "The larger; NaN if either is.",
        numpy=np.maximum,
        lower=_logical("or", "max"),
        partials=(
            lambda t, z, x, y: _extremum_partial(t, x < y, x.eq(y)),
            lambda t, z, x, y: _extremum_partial(t, y < x, x.eq(y)),
        ),
        dtypes=ALL,
        arity=2,
    ),
    elementwise(
        "minimum",
        "The smaller; NaN if either is.",
        numpy=np.minimum,
        lower=_logical("and", "min"),
        partials=(
            lambda t, z, x, y: _extremum_partial(t, y < x, x.eq(y)),
            lambda t, z, x, y: _extremum_partial(t, x < y, x.eq(y)),
        ),
        dtypes=ALL,
        arity=2,
    ),
    elementwise(
        "copysign",
        "The magnitude of x with the sign of y.",
        numpy=np.copysign,
        lower=copysign,
        partials=(lambda t, z, x, y: t * (call("sign", x) * call("copysign", full(1.0, y), y)), None),
        arity=2,
    ),
    elementwise(
        "nextafter",
        "The float next to x in the direction of y.",
        numpy=np.nextafter,
        lower=_nextafter,
        partials="a step to the neighbouring float is not a smooth function",
        arity=2,
        narrow=True,
    ),
    elementwise(
        "hypot",
        "The square root of x*x + y*y, without overflow.",
        numpy=np.hypot,
        lower=_hypot,
        partials=(lambda t, z, x, y: _hypot_partial(t, z, x), lambda t, z, x, y: _hypot_partial(t, z, y)),
        arity=2,
        bound=2,
    ),
    elementwise(
        "logaddexp",
        "log(exp(x) + exp(y)), without overflow.",
        numpy=np.logaddexp,
        lower=_logaddexp,
        partials=(lambda t, z, x, y: _logaddexp_partial(t, x, y), lambda t, z, x, y: _logaddexp_partial(t, y, x)),
        arity=2,
        domain=(0.25, 4.0),
        bound=4,
    ),
    elementwise(
        "negative",
        "The negated value; integers wrap.",
        numpy=np.negative,
        lower=lambda x: -x,
        partials=(_minus,),
        dtypes=NUMBERS,
    ),
    elementwise(
        "absolute",
        "The magnitude; the least integer stays as it is.",
        numpy=np.absolute,
        lower=_keep_integers("abs", UNSIGNED | {"bool"}),
        partials=(lambda t, y, x: t * call("sign", x),),
        dtypes=ALL,
    ),
    elementwise(
        "sign",
        "-1, 0 or 1; NaN for NaN.",
        numpy=np.sign,
        lower=_sign,
        partials=None,
        dtypes=NUMBERS,
    ),
    _round_to("floor", "below"),
    _round_to("ceil", "above"),
    _round_to("trunc", "toward zero"),
    elementwise(
        "rint",
        "The nearest whole number, halves to the even one.",
        numpy=np.rint,
        lower=lambda x: op("rint", x),
        partials=None,
    ),
)
