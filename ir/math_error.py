"""The error function and what it leaves of 1."""

from __future__ import annotations

from kernelforge.ir.kernel import Expr, op, select
from kernelforge.ir.math_base import (
    FORMATS,
    LOG2_E,
    at_most,
    bits_of,
    clamp,
    less_log2,
    near_exp,
    near_power,
    nearest,
    nearest_part,
    nearest_power,
    poly,
    two_product,
)
from kernelforge.ir.tables import DEGREE, ERF_PARTS, ERFC_SHIFT, table

ERF_FLAT = 3.925
"""From where on erf rounds to 1 in f32, and before the end of its last table's last piece."""


def erf(a: Expr) -> Expr:
    flat = FORMATS[a.dtype].flat[1]
    tail = -poly("erf_tail", at_most(a, flat))
    n, power = nearest_power(tail * LOG2_E)
    return select(a < 1, a + a * poly("erf", a * a), 1 - near_exp(less_log2(tail, n)) * power)


def erf_looked_up(x: Expr) -> Expr:
    x = clamp(x, -ERF_FLAT, ERF_FLAT)
    a = op("abs", x)
    n, shifted = nearest_part(a, ERF_PARTS)
    return x * _piece("erf", a - n, shifted)


def _piece(name: str, t: Expr, which: Expr) -> Expr:
    """The polynomial in t whose coefficients the low bits of ``which`` find in tables."""
    first, *lower = (op(f"{name}_{power}", which) for power in reversed(range(DEGREE[name] + 1)))
    result: Expr = first
    for coefficient in lower:
        result = result * t + coefficient
    return result


def erfc(x: Expr) -> Expr:
    f = FORMATS[x.dtype]
    a = op("abs", x)
    a = at_most(a, f.erfc_zero)
    square, lost = two_product(a, a)
    n, _ = nearest(-square * LOG2_E)
    p = near_exp(less_log2(-square, n) - lost)
    k = f.erfc_center
    factor = poly("erfc", (a - k) / (a + k)) / (2 * a + 1)
    right = op("scaleb", p * factor, n)
    near = 1 - (x + x * poly("erf", x * x))
    return select(op("abs", x) < 0.5, near, select(x < 0, 2 - right, right))


def erfc_looked_up(x: Expr) -> Expr:
    f = FORMATS[x.dtype]
    a = at_most(op("abs", x), f.erfc_zero)
    piece = bits_of(a + 1) >> ERFC_SHIFT
    factor = _piece("erfc", a - ((piece << ERFC_SHIFT).bitcast(x.dtype) - 1), piece.bitcast(x.dtype))
    square, lost = two_product(a, a)
    n, shifted = nearest_part(-square * LOG2_E, len(table("exp2_low", x.dtype)))
    r = less_log2(-square, n) - lost
    p = near_power(1 + r * poly("exp_low", r), r, shifted)
    right = op("scaleb", p * factor, n)
    return select(x < 0, 2 - right, right)
