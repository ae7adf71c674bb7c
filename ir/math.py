"""Transcendental functions as arithmetic, bit operations and selects: one expansion for all devices.

``EXPANSIONS`` is the table. Each function is straight-line code over f32 or f64, the same for both: coefficients and
the layout of the format differ. Reductions need no fused multiply-add and no table look-ups; ``LOOKED_UP`` has what is
quicker by tables that registers hold. Reassociation would break them; contracting a product and a sum does no harm.
Results for zeros, infinities, NaN and subnormals are those of IEEE 754; ``BOUNDS`` states the largest error.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from kernelforge.ir.coefficients import PIECES
from kernelforge.ir.interpret import folded
from kernelforge.ir.kernel import (
    ARITY,
    Const,
    Expr,
    Kernel,
    Op,
    Stmt,
    Var,
    exprs,
    map_exprs,
    op,
    rebuild,
    select,
    stmts,
    substitute,
    unlikely,
    walk,
    with_parts,
)
from kernelforge.ir.math_base import (
    FORMATS,
    INF,
    LOG2_E,
    NAN,
    at_most,
    bits_of,
    clamp,
    less_log2,
    mul_error,
    near_exp,
    near_power,
    nearest,
    nearest_part,
    nearest_power,
    odd,
    poly,
    power_of_two,
    scaleb,
    to_float,
    two_product,
    two_sum,
    with_sign,
)
from kernelforge.ir.math_circular import acos, asin, atan, atan2, cos, sin, tan
from kernelforge.ir.math_error import erf, erf_looked_up, erfc, erfc_looked_up
from kernelforge.ir.passes.contract import Contraction
from kernelforge.ir.tables import table


def _exp(x: Expr) -> Expr:
    x = clamp(x, *FORMATS[x.dtype].exp)
    n, _ = nearest(x * LOG2_E)
    return op("scaleb", near_exp(less_log2(x, n)), n)


def _exp2(x: Expr) -> Expr:
    x = clamp(x, *FORMATS[x.dtype].exp2)
    n, _ = nearest(x)
    f = x - n
    return op("scaleb", 1 + f * poly("exp2", f), n)


def _exp_looked_up(x: Expr) -> Expr:
    x = clamp(x, *FORMATS[x.dtype].exp)
    n, shifted = nearest_part(x * LOG2_E, len(table("exp2_low", x.dtype)))
    r = less_log2(x, n)
    return _times_power(1 + r * poly("exp_low", r), r, n, shifted)


def _exp2_looked_up(x: Expr) -> Expr:
    x = clamp(x, *FORMATS[x.dtype].exp2)
    n, shifted = nearest_part(x, len(table("exp2_low", x.dtype)))
    f = x - n
    return _times_power(poly("exp2_low", f), f, n, shifted)


def _times_power(slope: Expr, r: Expr, n: Expr, shifted: Expr) -> Expr:
    """(1 + r * slope) * 2**n, where the low bits of ``shifted`` say what is behind the point of n."""
    return op("scaleb", near_power(slope, r, shifted), n)


def _tiny(x: Expr) -> float:
    """Below it, f(x) = x + x*x/2 or x - x*x/2 rounds to x."""
    return 2.0 ** -(FORMATS[x.dtype].fraction + 2)


def _expm1(x: Expr) -> Expr:
    f = FORMATS[x.dtype]
    a = clamp(x, -f.flat[2], f.exp[1])
    n, half = nearest_power(a * LOG2_E, -1)  # 2**n may overflow where the result does not
    r = less_log2(a, n)
    q = r + r * r * poly("exp", r)
    result = 2 * (half * q + (half - 0.5))
    return select(op("abs", x) < _tiny(x), x, result)


def _half_exp(a: Expr) -> Expr:
    """exp(a) / 2 for a >= 0."""
    a = at_most(a, FORMATS[a.dtype].exp[1] + 1)
    n, _ = nearest(a * LOG2_E)
    return op("scaleb", near_exp(less_log2(a, n)), n - 1)


def _sinh(a: Expr) -> Expr:
    h = _half_exp(a)
    z = a * a
    return select(a < 1, a + a * z * poly("sinh", z), h - 0.25 / h)


def _cosh(x: Expr) -> Expr:
    h = _half_exp(op("abs", x))
    return h + 0.25 / h


def _tanh(x: Expr) -> Expr:
    """tanh(a + b) = (tanh a + tanh b) / (1 + tanh a * tanh b) at a = n*log(2)/2, where tanh a = (2**n - 1)/(2**n + 1).

    Where n is not small, tanh is so flat that one piece of log(2) will do.
    """
    flat = FORMATS[x.dtype].flat[0]
    x = clamp(x, -flat, flat)
    n, power = nearest_power(x * (2 * LOG2_E))
    b = x - n * (0.5 * math.log(2))
    z = b * b
    t = b * (z * poly("tanh", z) + 1)
    less, more = 1 - power, power + 1
    return (t * more - less) / (more - t * less)  # a zero keeps its sign


def _split_log(x: Expr) -> tuple[Expr, Expr, Expr]:
    """X = m * 2**e for normal x > 0, with m from sqrt(1/2) to sqrt(2): m, e as a float and as an integer."""
    f = FORMATS[x.dtype]
    offset = bits_of(x) - f.half_root
    e = offset >> f.fraction
    m = ((offset & ((1 << f.fraction) - 1)) + f.half_root).bitcast(x.dtype)
    return m, to_float(e, x.dtype), e


def _log1p_small(f: Expr, low: Expr | float = 0.0) -> Expr:
    """log(1 + f) + low, for 1 + f from sqrt(1/2) to sqrt(2)."""
    square = f * f * 0.5
    if f.dtype == "f32":
        return f + ((f * f * f * poly("log", f) + low) - square)
    s = f / (f + 2)
    z = s * s
    return f - (square - (s * (square + z * poly("log_s", z)) + low))


def _normal_parts(x: Expr) -> tuple[Expr, Expr]:
    """M and e of x = m * 2**e, also for subnormal x."""
    f = FORMATS[x.dtype]
    lift = f.fraction + 1
    m, e, _ = _split_log(select(x < f.least, x * 2.0**lift, x))
    return m, select(x < f.least, e - lift, e)


def _log_limits(x: Expr, zero: Expr, result: Expr) -> Expr:
    """What a logarithm is at and beyond the ends of its domain; ``zero`` tells where its argument is 0 or less."""
    inside = select(x < INF, result, x)
    return select(zero > 0, inside, select(zero.eq(0), -INF, Const(NAN, x.dtype)))


def _logarithm(x: Expr, of: Callable[[Expr, Expr], Expr]) -> Expr:
    """Compute ``of(m, e)`` for x = m * 2**e, and what a logarithm is where x is not that."""
    f = FORMATS[x.dtype]
    least, end = f.bits(f.least), f.bits(INF)
    special = (bits_of(x) - least).bitcast(f.unsigned) >= end - least
    m, e, _ = _split_log(x)
    return select(unlikely(special), _log_limits(x, x, of(*_normal_parts(x))), of(m, e))


def _log(x: Expr) -> Expr:
    high, low = PIECES["log2", x.dtype]
    return _logarithm(x, lambda m, e: e * high + _log1p_small(m - 1, e * low))


def _log2(x: Expr) -> Expr:
    return _logarithm(x, lambda m, e: e + _log1p_small(m - 1) * (1 / math.log(2)))


def _log10(x: Expr) -> Expr:
    high, low = PIECES["log10_2", x.dtype]
    return _logarithm(x, lambda m, e: e * high + (_log1p_small(m - 1) * (1 / math.log(10)) + e * low))


def _log1p(x: Expr) -> Expr:
    u = x + 1
    lost = select(x > 1, 1 - (u - x), x - (u - 1))
    m, e, i = _split_log(u)
    high, low = PIECES["log2", x.dtype]
    result = e * high + _log1p_small((m - 1) + lost * (0.5 * power_of_two(1 - i, x.dtype)), e * low)
    result = (bits_of(result) | (bits_of(x) & FORMATS[x.dtype].sign)).bitcast(x.dtype)  # of -0
    inside = (x > -1) & (x < INF)
    return select(unlikely(~inside), _log_limits(x, u, result), result)


def _asinh(a: Expr) -> Expr:
    huge = a > 2.0 ** (FORMATS[a.dtype].fraction + 5)
    square = a * a
    w = a + square / (1 + op("sqrt", square + 1))
    return _log1p(select(huge, a, w)) + select(huge, math.log(2), Const(0, a.dtype))


def _acosh(x: Expr) -> Expr:
    huge = x > 2.0 ** (FORMATS[x.dtype].fraction + 5)
    t = x - 1
    w = t + op("sqrt", 2 * t + t * t)
    result = _log1p(select(huge, x, w)) + select(huge, math.log(2), Const(0, x.dtype))
    return select(x < 1, NAN, result)


def _atanh(a: Expr) -> Expr:
    return 0.5 * _log1p(2 * a / (1 - a))


def _cbrt(a: Expr) -> Expr:
    f = FORMATS[a.dtype]
    lift = 3 * ((f.fraction + 3) // 3)
    small = a < 16 * f.least
    normal = select(small, a * 2.0**lift, a)
    # a third of the exponent and fraction bits is within 6 % of the root (Kahan)
    bias = int((f.bias - f.bias / 3 - 0.03306235651) * (1 << f.fraction))
    t = ((normal.bitcast(f.unsigned) // 3) + bias).bitcast(a.dtype)
    for _ in range(2 if f.fraction == 23 else 3):
        cube = t * t * (t * 0.125)  # a fraction, so that nothing overflows
        t = t - t * ((cube - normal * 0.125) / (2 * cube + normal * 0.125))  # Halley
    root = select(small, t * 2.0 ** (-lift // 3), t)
    return select(a.eq(0) | a.eq(INF) | a.ne(a), a, root)


def _log2_pair(a: Expr) -> tuple[Expr, Expr]:
    """log2 of a normal or subnormal number as an unevaluated sum, half as many bits again and more.

    With a = m * 2**e and s = (m - 1)/(m + 1), log(m) is 2*s + s**3 * P(s**2); only the tail of P is a plain float.
    """
    m, e = _normal_parts(a)
    f = m - 1
    g, g_low = m + 1, m - ((m + 1) - 1)
    inverse = 1 / g
    s = f * inverse
    product, lost = two_product(s, g)
    s_low = (((f - product) - lost) - s * g_low) * inverse
    z, z_low = two_product(s, s)
    z_low = z_low + 2 * s * s_low
    third, third_low = PIECES["two_thirds", a.dtype]
    p, p_low = two_sum(third, z * poly("log_pair", z))
    cube, cube_low = two_product(s, z)
    cube_low = cube_low + (s * z_low + s_low * z)
    t, t_low = two_product(cube, p)
    t_low = t_low + (cube * (p_low + third_low) + cube_low * p)
    log, log_low = two_sum(2 * s, t)
    log_low = log_low + (2 * s_low + t_low)
    unit, unit_low = PIECES["log2_e", a.dtype]
    high, lost = two_product(log, Const(unit, a.dtype))
    total, rest = two_sum(e, high)
    return total, rest + (lost + (log * unit_low + log_low * unit))


def _pow(x: Expr, y: Expr) -> Expr:
    f = FORMATS[x.dtype]
    a = op("abs", x)
    high, low = _log2_pair(a)
    w, lost = two_product(y, high)
    least, most = f.exp2
    within = (w >= least) & (w <= most)
    n, _ = nearest(clamp(w, least, most))
    rest = select(within, (w - n) + (lost + y * low), 0)
    result = op("scaleb", 1 + rest * poly("exp2", rest), n)
    special = ((bits_of(x) - 1).bitcast(f.unsigned) >= f.bits(INF) - 1) | (op("abs", y).eq(INF))
    return select(unlikely(special | y.ne(y)), _pow_limits(x, y, result), result)


def _pow_limits(x: Expr, y: Expr, result: Expr) -> Expr:
    """What a power is of any numbers, given that of the magnitude of x where that is finite and not 0."""
    a = op("abs", x)
    zero, endless = Const(0, x.dtype), Const(INF, x.dtype)
    result = select(a.eq(0), select(y < 0, endless, zero), result)
    result = select(a.eq(INF), select(y < 0, zero, endless), result)
    whole = op("floor", y).eq(y)
    half = y * 0.5
    negative = (bits_of(x) < 0) & whole & op("floor", half).ne(half)
    result = select(negative, -result, result)
    result = select((x < 0) & (x > -INF) & ~whole, NAN, result)
    result = select(x.ne(x) | y.ne(y), x + y, result)
    return select(x.eq(1) | y.eq(0) | (x.eq(-1) & op("abs", y).eq(INF)), 1, result)


def _fmod(x: Expr, y: Expr) -> Expr:
    """X - q*y for the nearest whole number q to x/y: exact where q is short, since at most half of y is left.

    Where it is not, the device's library divides bit by bit.
    """
    f = FORMATS[x.dtype]
    a, b = op("abs", x), op("abs", y)
    q = op("rint", a / b)
    product, lost = two_product(q, b)
    r = (a - product) - lost
    r = select(r < 0, r + b, r)
    scale = 2.0 ** (2 * f.fraction)
    simple = (a < b * 2.0 ** (f.fraction - 3)) & (b > f.least * scale) & (b < 2.0**f.bias / scale)
    return select(unlikely(~simple), op("fmod", x, y), with_sign(r, x))


EXPANSIONS: dict[str, Callable[..., Expr]] = {
    "exp": _exp,
    "exp2": _exp2,
    "expm1": _expm1,
    "log": _log,
    "log2": _log2,
    "log10": _log10,
    "log1p": _log1p,
    "sin": sin,
    "cos": cos,
    "tan": tan,
    "asin": odd(asin),
    "acos": acos,
    "atan": odd(atan),
    "sinh": odd(_sinh),
    "cosh": _cosh,
    "tanh": _tanh,
    "asinh": odd(_asinh),
    "acosh": _acosh,
    "atanh": odd(_atanh),
    "erf": odd(erf),
    "erfc": erfc,
    "cbrt": odd(_cbrt),
    "atan2": atan2,
    "pow": _pow,
    "fmod": _fmod,
    "scaleb": scaleb,
}
"""How each function is computed. ``scaleb`` is here for the devices that have no instruction for it; the printer calls
the device's library where ``fmod`` is left."""

LOOKED_UP: dict[tuple[str, str], Callable[..., Expr]] = {
    **{("exp", dtype): _exp_looked_up for dtype in FORMATS},
    **{("exp2", dtype): _exp2_looked_up for dtype in FORMATS},
    ("erf", "f32"): erf_looked_up,
    ("erfc", "f32"): erfc_looked_up,
}
"""How functions are computed by ``tables``, where that is quicker."""

BOUNDS: dict[tuple[str, str], float] = {
    **{(name, dtype): 4.0 for name in EXPANSIONS for dtype in FORMATS},
    ("exp", "f32"): 1.1,
    ("tanh", "f32"): 2.5,
    **{("fmod", dtype): 0.0 for dtype in FORMATS},
}
"""The largest error in units in the last place, for every operation and dtype that is expanded."""


MANY = 16
"""Up to so many uses a function is computed in each of them by itself: a compiler takes milliseconds for one."""


class Function(NamedTuple):
    """How a function is computed.

    Attributes:
        arguments: its variables.
        value: what computes it from them, anywhere.
        rare: a condition that is unlikely to hold.
        usual: what computes it in less where ``rare`` does not hold; None where nothing does.
    """

    arguments: tuple[Var, ...]
    value: Expr
    rare: Expr = Const(False, "bool")
    usual: Expr | None = None


@functools.lru_cache(maxsize=1 << 10)
def _hinted(name: str, dtype: str, native: frozenset[str]) -> tuple[Function, list[Op]]:
    """Return how a function is computed, and the hints in it where that is ``unlikely``."""
    arguments = tuple(Var(f"x{k}", dtype) for k in range(ARITY[name]))
    made = (LOOKED_UP.get((name, dtype)) if "tables" in native else None) or EXPANSIONS[name]
    expr = expand(made(*arguments), native=native | {name})
    fused = next((name for name in ("fma", "mad") if name in native), None)
    value = Contraction((expr,), fused)(expr) if fused else expr
    return Function(arguments, value), [e for e in walk(value) if isinstance(e, Op) and _hint(e)]


@functools.lru_cache(maxsize=1 << 10)
def function(name: str, dtype: str, native: frozenset[str]) -> Function | None:
    """Return how a function of ``BOUNDS`` that is left in a kernel is computed; None where the library has to."""
    if name in native:
        return None
    (arguments, value, *_), hints = _hinted(name, dtype, native)
    plain = substitute(value, {hint: hint.args[0] for hint in hints})
    if any(isinstance(e, Op) and e.op == name for e in walk(plain)):
        return None
    if len(hints) != 1:
        return Function(arguments, plain)
    return Function(arguments, plain, hints[0].args[0], substitute(value, {hints[0]: Const(False, "bool")}))


@functools.lru_cache(maxsize=1 << 10)
def _inlined(name: str, dtype: str, native: frozenset[str]) -> Function:
    """Return what stands for a function in a kernel: with ``calls``, itself where its arguments are unlikely."""
    (arguments, value, *_), hints = _hinted(name, dtype, native)
    if "calls" not in native or len(hints) != 1:
        return Function(arguments, value)
    usual = substitute(value, {hints[0]: Const(False, "bool")})
    return Function(arguments, select(hints[0], Op(name, arguments, dtype), usual))


def expand(
    expr: Expr,
    memo: dict[Expr, Expr] | None = None,
    native: frozenset[str] = frozenset(),
    called: frozenset[tuple[str, str]] = frozenset(),
) -> Expr:
    """Replace the functions in an expression by arithmetic.

    Args:
        memo: pass one to share work between calls.
        native: what the device has instructions for: ``scaleb`` then stays, ``tables`` are used, and with ``fma`` or
            ``mad`` a product and a sum become one; nothing outside of the functions does. With ``calls``, a function
            stays where it is rare.
        called: the functions that stay everywhere, with their dtypes.
    """

    def change(e: Expr) -> Expr:
        if isinstance(e, Op) and e.op == "mul_error":
            return op("fma", *e.args, -(e.args[0] * e.args[1])) if "fma" in native else mul_error(*e.args)
        if isinstance(e, Op) and (e.op, e.dtype) in BOUNDS and e.op not in native and (e.op, e.dtype) not in called:
            made = _inlined(e.op, e.dtype, native)
            given: dict[Expr, Expr] = dict(zip(made.arguments, e.args, strict=True))
            if any(isinstance(x, Const) for x in e.args):
                return rebuild(made.value, lambda x: folded(given.get(x, x)), {})
            return substitute(made.value, given)
        return e

    memo = {} if memo is None else memo
    if "calls" in native:
        for e in walk(expr):
            if isinstance(e, Op) and e.op == "select" and _hint(e.args[0]) and _is_function(e.args[1], native):
                arm = e.args[1]
                memo[arm] = with_parts(arm, tuple(rebuild(x, change, memo) for x in arm.parts))
    return rebuild(expr, change, memo)


def _hint(e: Expr) -> bool:
    return isinstance(e, Op) and e.op == "unlikely"


def _is_function(e: Expr, native: frozenset[str]) -> bool:
    """Whether an expression is a function that may be called."""
    return isinstance(e, Op) and (e.op, e.dtype) in BOUNDS and function(e.op, e.dtype, native) is not None


def expand_math(kernel: Kernel, native: frozenset[str] = frozenset()) -> Kernel:
    """Replace the functions in a kernel; see ``expand``. With ``calls``, one of more than ``MANY`` uses stays."""
    memo: dict[Expr, Expr] = {}
    called = _repeated(kernel, native) if "calls" in native else frozenset()

    def rewrite(stmt: Stmt) -> Stmt:
        return map_exprs(stmt, lambda e: expand(e, memo, native, called))

    return dataclasses.replace(kernel, body=tuple(rewrite(s) for s in kernel.body))


def _repeated(kernel: Kernel, native: frozenset[str]) -> frozenset[tuple[str, str]]:
    """Return the functions that a kernel uses more than ``MANY`` times, and their dtypes."""
    seen: set[Expr] = set()
    found = (e for s in stmts(kernel.body) for root in exprs(s) for e in walk(root, seen))
    uses = collections.Counter((e.op, e.dtype) for e in found if isinstance(e, Op) and (e.op, e.dtype) in BOUNDS)
    # a library's function takes one lane at a time
    return frozenset(
        (name, dtype) for (name, dtype), n in uses.items() if n > MANY and function(name, dtype, native) is not None
    )
