"""Elementwise roots, exponentials, logarithms, trigonometric and hyperbolic functions, and the error function."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from kernelforge.ir.build import Sym, full
from kernelforge.ir.graph import Primitive
from kernelforge.ir.kernel import Expr, op
from kernelforge.ir.ops.elementwise import Array, call, elementwise, where

POSITIVE = (0.25, 4.0)
INSIDE = (-0.9, 0.9)


def _unary(
    name: str,
    doc: str,
    partial: Callable[[Sym, Sym, Sym], Sym],
    *,
    operation: str = "",
    numpy: Callable[[Array], Array] | None = None,
    domain: tuple[float, float] | None = None,
    bound: float = 4,
) -> Primitive:
    def lower(x: Expr) -> Expr:
        return op(operation or name, x)

    return elementwise(
        name,
        doc,
        numpy=numpy or getattr(np, name),
        lower=lower,
        partials=(partial,),
        domain=domain,
        bound=bound,
    )


def _each(fn: Callable[[float], float]) -> Callable[[Array], Array]:
    """Spread a function of Python floats over an array; NumPy has no error function."""
    return np.vectorize(fn, otypes=[np.float64])


def _erf_slope(t: Sym, x: Sym) -> Sym:
    return t * (call("exp", -(x * x)) * (2 / math.sqrt(math.pi)))


def _arctan2_partial(t: Sym, side: Sym, other: Sym) -> Sym:
    """``t * side / (side**2 + other**2)``, 0 at the origin."""
    h = call("hypot", side, other)
    h = where(h.eq(0), 1.0, h)
    return t * (side / h / h)


def _sqrt(x: Sym) -> Sym:
    return call("sqrt", x)


PRIMITIVES: tuple[Primitive, ...] = (
    _unary("sqrt", "The square root.", lambda t, y, x: t * (0.5 / y), domain=POSITIVE, bound=0.5),
    _unary("cbrt", "The cube root.", lambda t, y, x: t / (y * y * 3), domain=POSITIVE),
    _unary("exp", "e to the power of x.", lambda t, y, x: t * y, bound=1),
    _unary("exp2", "2 to the power of x.", lambda t, y, x: t * (y * math.log(2))),
    _unary("expm1", "exp(x) - 1, also near 0.", lambda t, y, x: t * call("exp", x)),
    _unary("log", "The natural logarithm.", lambda t, y, x: t / x, domain=POSITIVE),
    _unary("log2", "The logarithm to base 2.", lambda t, y, x: t / (x * math.log(2)), domain=POSITIVE),
    _unary("log10", "The logarithm to base 10.", lambda t, y, x: t / (x * math.log(10)), domain=POSITIVE),
    _unary("log1p", "log(1 + x), also near 0.", lambda t, y, x: t / (x + 1), domain=(-0.5, 4.0)),
    _unary("sin", "The sine.", lambda t, y, x: t * call("cos", x)),
    _unary("cos", "The cosine.", lambda t, y, x: -(t * call("sin", x))),
    _unary("tan", "The tangent.", lambda t, y, x: t * (y * y + 1), domain=(-1.2, 1.2)),
    _unary(
        "arcsin", "The inverse of sin.", lambda t, y, x: t / _sqrt((1 - x) * (x + 1)), operation="asin", domain=INSIDE
    ),
    _unary(
        "arccos",
        "The inverse of cos.",
        lambda t, y, x: -(t / _sqrt((1 - x) * (x + 1))),
        operation="acos",
        domain=INSIDE,
    ),
    _unary("arctan", "The inverse of tan.", lambda t, y, x: t / (x * x + 1), operation="atan"),
    _unary("sinh", "The hyperbolic sine.", lambda t, y, x: t * call("cosh", x)),
    _unary("cosh", "The hyperbolic cosine.", lambda t, y, x: t * call("sinh", x)),
    _unary("tanh", "The hyperbolic tangent.", lambda t, y, x: t * (1 - y * y), bound=2),
    _unary(
        "arcsinh",
        "The inverse of sinh.",
        lambda t, y, x: t / call("hypot", x, full(1.0, x)),
        operation="asinh",
    ),
    _unary(
        "arccosh",
        "The inverse of cosh.",
        lambda t, y, x: t / (_sqrt(x - 1) * _sqrt(x + 1)),
        operation="acosh",
        domain=(1.25, 4.0),
    ),
    _unary(
        "arctanh",
        "The inverse of tanh.",
        lambda t, y, x: t / ((1 - x) * (x + 1)),
        operation="atanh",
        domain=INSIDE,
    ),
    _unary("erf", "The error function.", lambda t, y, x: _erf_slope(t, x), numpy=_each(math.erf)),
    _unary("erfc", "1 - erf(x), also where that is tiny.", lambda t, y, x: -_erf_slope(t, x), numpy=_each(math.erfc)),
    elementwise(
        "arctan2",
        "The angle of the point (second, first), in (-pi, pi].",
        numpy=np.arctan2,
        lower=lambda y, x: op("atan2", y, x),
        partials=(
            lambda t, z, y, x: _arctan2_partial(t, x, y),
            lambda t, z, y, x: -_arctan2_partial(t, y, x),
        ),
        arity=2,
        bound=4,
    ),
)
