"""The gamma distribution, and what is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelforge.ir.build import Operand, Sym, apply, as_sym
from kernelforge.ir.ops.control import emit_scan
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import shape_of
from kernelforge.numpy.ufuncs import ufunc, where
from kernelforge.random.continuous import NOT_NEGATIVE, POSITIVE, normal
from kernelforge.random.keys import checked, drawn, rows, split
from kernelforge.random.uniforms import Shape, inside, laid

TRIES = 16
"""Candidates of a gamma variate. Each is taken with probability above 0.95, so all fail once in 10**20 times."""


def _variate(key: Operand, alpha: Sym) -> tuple[Sym, Sym]:
    """Make gamma variates; return them and logarithms of what they are to be multiplied by. Marsaglia and Tsang 2000.

    Of a fixed number of candidates one that is accepted is taken. There is no derivative by ``alpha``.
    """
    extents, wide = alpha.shape, alpha.dtype
    alpha = apply("stop_gradient", alpha)
    raised = alpha < 1
    d = where(raised, alpha + 1.0, alpha) - 1 / 3
    c = 1.0 / ufunc("sqrt", d * 9.0)
    boost, tries = rows(split(as_sym(key)))

    def attempt(made: Sym, key: Sym) -> list[Sym]:
        first, second = rows(split(key))
        x = normal(first, extents, wide)
        root = 1.0 + c * x
        v = root * root * root
        limit = x * x * 0.5 + d * (1.0 - v + ufunc("log", where(v > 0, v, 1.0)))
        taken = (v > 0) & ufunc("less", ufunc("log", inside(second, extents, wide)), limit)
        return [where(taken, d * v, made)]

    # the last one that is taken: which of them the loop starts with is all the same
    (made,) = emit_scan(attempt, [d], [split(tries, TRIES)], TRIES, False)
    # a variate of a + 1 times u ** (1 / a) is one of a
    scale = ufunc("log", inside(boost, extents, wide)) / where(raised, alpha, 1.0)
    return made, where(raised, scale, 0.0)


@checked(a=NOT_NEGATIVE)
@drawn("a")
def gamma(key: Operand, a: Operand, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make floats of the gamma distribution of shape parameter ``a`` and scale 1.

    There is no derivative by ``a``.

    Raises:
        InvalidParameter: where ``a`` is negative; NaN where that is not known while a function is compiled.
    """
    kind, _, _, (alpha,) = laid("gamma", dtype, shape, a)
    made, scale = _variate(key, alpha)
    return where(alpha >= 0, where(alpha < 1, made * ufunc("exp", scale), made), np.nan).astype(kind)


def _logarithm(key: Operand, alpha: Sym) -> Sym:
    made, scale = _variate(key, alpha)
    return where(alpha >= 0, ufunc("log", made) + scale, np.nan)


@checked(a=NOT_NEGATIVE)
@drawn("a")
def loggamma(key: Operand, a: Operand, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make logarithms of what ``gamma`` makes; finite for small ``a``, where that is rounded to 0."""
    kind, _, _, (alpha,) = laid("loggamma", dtype, shape, a)
    return _logarithm(key, alpha).astype(kind)


@checked(a=POSITIVE, b=POSITIVE)
@drawn("a", "b")
def beta(key: Operand, a: Operand, b: Operand, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make floats of the beta distribution: x / (x + y) of two gamma variates."""
    kind, _, _, both = laid("beta", dtype, shape, a, b)
    (x, first), (y, second) = (_variate(k, alpha) for k, alpha in zip(rows(split(as_sym(key))), both, strict=True))
    most = ufunc("maximum", first, second)
    x, y = x * ufunc("exp", first - most), y * ufunc("exp", second - most)
    return where((both[0] >= 0) & (both[1] >= 0), x / (x + y), np.nan).astype(kind)


@checked(alpha=POSITIVE)
@drawn("alpha")
def dirichlet(key: Operand, alpha: Operand, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make probabilities that sum to 1 along the last axis: gamma variates over their sum.

    Args:
        alpha: of shape ``(..., n)``.
        shape: of the result without its last axis; by default that of ``alpha`` without it.
    """
    given = as_sym(alpha)
    full = None if shape is None else (*shape_of(shape, "random.dirichlet"), *given.shape[-1:])
    kind, _, _, (wide,) = laid("dirichlet", dtype, full, given)
    x, scale = _variate(key, wide)
    most = FUNCTIONS["max"](scale, -1, keepdims=True, initial=-np.inf)
    made = where(wide >= 0, x * ufunc("exp", scale - most), np.nan)
    total: Sym = FUNCTIONS["sum"](made, -1, keepdims=True)
    return (made / total).astype(kind)


@checked(df=POSITIVE)
@drawn("df")
def chisquare(key: Operand, df: Operand, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make floats of the chi-square distribution: sums of ``df`` squares of normal numbers."""
    kind, wide, extents, (degrees,) = laid("chisquare", dtype, shape, df)
    return (gamma(as_sym(key), degrees * 0.5, extents, wide) * 2.0).astype(kind)


@checked(df=POSITIVE)
@drawn("df")
def t(key: Operand, df: Operand, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make floats of Student's t distribution with ``df`` degrees of freedom, by which there is no derivative."""
    kind, wide, extents, (degrees,) = laid("t", dtype, shape, df)
    degrees = apply("stop_gradient", degrees)
    first, second = rows(split(as_sym(key)))
    # in logarithms: the root of what few degrees make may be smaller than any float
    spread = (_logarithm(second, degrees * 0.5) + np.log(2.0) - ufunc("log", degrees)) * -0.5
    return (normal(first, extents, wide) * ufunc("exp", spread)).astype(kind)
