"""Distributions of one number, most by inversion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernelforge.ir.build import Operand, Sym, as_sym
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.ufuncs import ufunc, where
from kernelforge.random.keys import checked, drawn, rows, split
from kernelforge.random.uniforms import Shape, inside, laid, unit

POSITIVE = (lambda x: x <= 0, "a positive number")
NOT_NEGATIVE = (lambda x: x < 0, "0 or more")


@drawn()
def normal(key: Operand, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make floats of the standard normal distribution, by the transform of Box and Muller."""
    kind, wide, extents, _ = laid("normal", dtype, shape)
    first, second = rows(split(as_sym(key)))
    # 1 - u is in (0, 1], so the logarithm is finite
    radius = ufunc("sqrt", ufunc("log1p", -unit(first, extents, wide)) * -2.0)
    return (radius * ufunc("cos", unit(second, extents, wide) * (2 * math.pi))).astype(kind)


@checked(sigma=NOT_NEGATIVE)
@drawn("sigma")
def lognormal(key: Operand, sigma: Operand = 1.0, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make floats whose logarithm is normal, with mean 0 and deviation ``sigma``."""
    kind, wide, extents, (scale,) = laid("lognormal", dtype, shape, sigma)
    return ufunc("exp", scale * normal(key, extents, wide)).astype(kind)


def _exponential(key: Operand, shape: tuple[int, ...], wide: np.dtype[Any]) -> Sym:
    return -ufunc("log", inside(as_sym(key), shape, wide))


@drawn()
def exponential(key: Operand, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make positive floats of the exponential distribution of mean 1."""
    kind, wide, extents, _ = laid("exponential", dtype, shape)
    return _exponential(key, extents, wide).astype(kind)


@drawn()
def gumbel(key: Operand, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make floats of the standard Gumbel distribution."""
    kind, wide, extents, _ = laid("gumbel", dtype, shape)
    return (-ufunc("log", _exponential(key, extents, wide))).astype(kind)


@drawn()
def laplace(key: Operand, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make floats of the Laplace distribution of mean 0 and scale 1."""
    kind, wide, extents, _ = laid("laplace", dtype, shape)
    centred = inside(as_sym(key), extents, wide) * 2.0 - 1.0
    return ufunc("copysign", ufunc("log1p", -ufunc("absolute", centred)), -centred).astype(kind)


@drawn()
def logistic(key: Operand, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make floats of the standard logistic distribution."""
    kind, wide, extents, _ = laid("logistic", dtype, shape)
    u = inside(as_sym(key), extents, wide)
    return (ufunc("log", u) - ufunc("log1p", -u)).astype(kind)


@drawn()
def cauchy(key: Operand, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make floats of the standard Cauchy distribution."""
    kind, wide, extents, _ = laid("cauchy", dtype, shape)
    return FUNCTIONS["tan"]((inside(as_sym(key), extents, wide) - 0.5) * math.pi).astype(kind)  # type: ignore[no-any-return]


@checked(b=POSITIVE)
@drawn("b")
def pareto(key: Operand, b: Operand, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make floats of at least 1 that are larger than x with probability x**-b."""
    kind, wide, extents, (power,) = laid("pareto", dtype, shape, b)
    return ufunc("exp", _exponential(key, extents, wide) / power).astype(kind)


@checked(scale=NOT_NEGATIVE)
@drawn("scale")
def rayleigh(key: Operand, scale: Operand = 1.0, shape: Shape | None = None, dtype: Any = np.float32) -> Sym:
    """Make lengths of vectors in the plane, whose parts are normal with deviation ``scale``."""
    kind, wide, extents, (factor,) = laid("rayleigh", dtype, shape, scale)
    return (factor * ufunc("sqrt", _exponential(key, extents, wide) * 2.0)).astype(kind)


@checked(scale=NOT_NEGATIVE, concentration=POSITIVE)
@drawn("scale", "concentration")
def weibull_min(
    key: Operand, scale: Operand, concentration: Operand, shape: Shape | None = None, dtype: Any = np.float32
) -> Sym:
    """Make floats of the Weibull distribution: ``scale`` times exponential ones to the power 1 / ``concentration``."""
    kind, wide, extents, (factor, power) = laid("weibull_min", dtype, shape, scale, concentration)
    return (factor * ufunc("power", _exponential(key, extents, wide), 1.0 / power)).astype(kind)


@drawn("left", "mode", "right")
def triangular(
    key: Operand, left: Operand, mode: Operand, right: Operand, shape: Shape | None = None, dtype: Any = np.float32
) -> Sym:
    """Make floats from ``left`` to ``right``, as likely as their place below a triangle with its peak at ``mode``.

    NaN where the three are not in order.
    """
    kind, wide, extents, (low, peak, high) = laid("triangular", dtype, shape, left, mode, right)
    u = inside(as_sym(key), extents, wide)
    width = high - low
    rising = low + ufunc("sqrt", u * width * (peak - low))
    falling = high - ufunc("sqrt", (1.0 - u) * width * (high - peak))
    ordered = (low <= peak) & (peak <= high)
    return where(ordered, where(u * width < peak - low, rising, falling), math.nan).astype(kind)
