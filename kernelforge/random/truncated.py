"""The normal distribution between two ends."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from kernelforge.errors import InvalidParameter
from kernelforge.ir.build import Operand, Sym, apply, as_sym
from kernelforge.numpy.ufuncs import ufunc, where
from kernelforge.random.keys import checked, drawn
from kernelforge.random.uniforms import Shape, inside, laid
from kernelforge.trace import TRACED, concrete

_NEAR = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3, 2.1213794301586595867e4,
     3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_FAR = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1, 1.48103976427480074590e-1,
     1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_FARTHEST = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2, 7.86869131145613259100e-4,
     1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip
"""Numerators and denominators, the constant term first; Wichura 1988, algorithm AS 241, PPND16."""


def _ratio(x: Sym, of: tuple[tuple[float, ...], tuple[float, ...]]) -> Sym:
    high, low = (functools.reduce(lambda y, c: y * x + c, reversed(c[:-1]), as_sym(c[-1])) for c in of)
    return ufunc("divide", high, low)


def normal_quantile(p: Sym) -> Sym:
    """Invert the cumulated density of the standard normal distribution; relative error about 1e-16 in f64."""
    q = p - 0.5
    near = ufunc("absolute", q) <= 0.425
    tail = ufunc("minimum", p, 1.0 - p)
    r = ufunc("sqrt", -ufunc("log", where(near, 0.25, tail)))
    far = where(r <= 5, _ratio(r - 1.6, _FAR), _ratio(r - 5.0, _FARTHEST))
    square = where(near, q * q, 0.0)
    return where(near, q * _ratio(0.180625 - square, _NEAR), ufunc("copysign", far, q))


FAR = 12.0
"""Where a truncated normal distribution counts as far out: f32 holds the density's integral up to 12.9."""


def _beyond(v: Sym, a: Sym, b: Sym) -> Sym:
    """Return how far above ``a``, which is ``FAR`` or more, a normal number in [a, b] is, whose rank there is ``v``.

    The integral of the density above x is exp(-x**2 / 2) / x times a series (Abramowitz and Stegun 26.2.12); the
    equation for the distance is solved by iteration, each step of which divides the error by about a**2.
    """

    def series(x: Sym) -> Sym:
        s = 1.0 / (x * x)
        return 1.0 - s * (1.0 - s * (3.0 - s * (15.0 - s * 105.0)))

    def slowly(t: Sym) -> Sym:
        return ufunc("log1p", t / a) + ufunc("log", series(a) / series(a + t))

    width = b - a
    share = -ufunc("expm1", -(width * (a + width * 0.5)) - slowly(width))
    whole = -ufunc("log1p", -v * share)
    t = whole / a
    for _ in range(4):
        rest = 2.0 * (whole - slowly(t))
        t = rest / (a + ufunc("sqrt", a * a + rest))
    return t


@checked()
def truncated_normal(key: Any, lower: Any, upper: Any, shape: Shape | None = None, dtype: Any = np.float32) -> Any:
    """Make floats of the standard normal distribution where it is within [lower, upper], by inversion.

    Raises:
        InvalidParameter: where ``lower`` is above ``upper``; NaN where that is not known while a function is compiled.
    """
    ends = concrete((lower, upper))
    if ends is not TRACED and np.any(np.asarray(ends[0]) > ends[1]):
        raise InvalidParameter(
            op="random.truncated_normal", name="lower", found=ends[0], expected=f"at most upper, {ends[1]}"
        )  # fmt: skip
    far = ends is TRACED or np.any(np.maximum(ends[0], np.negative(ends[1])) > FAR)
    return _truncated_normal(key, lower, upper, shape, dtype, bool(far))


@drawn("lower", "upper", name="truncated_normal")
def _truncated_normal(
    key: Operand, lower: Operand, upper: Operand, shape: Shape | None, dtype: Any, may_be_far: bool
) -> Sym:
    kind, wide, extents, (low, high) = laid("truncated_normal", dtype, shape, lower, upper)
    # below 0 the cumulated density has full relative precision, so the other side is drawn as its mirror image
    mirrored = low > 0
    first, last = where(mirrored, -high, low), where(mirrored, -low, high)
    v = inside(as_sym(key), extents, wide)
    far = last < -FAR
    near = [where(far, end, v) for end, v in ((-1.0, first), (1.0, last))] if may_be_far else (first, last)
    below, above = (apply("erfc", v * -math.sqrt(0.5)) * 0.5 for v in near)
    made = normal_quantile(v * (above - below) + below)
    if may_be_far:
        start, end = (where(far, -v, FAR) for v in (last, first))
        made = where(far, -(start + _beyond(v, start, end)), made)
    kept = ufunc("minimum", ufunc("maximum", made, first), last)
    return where(low <= high, where(mirrored, -kept, kept), math.nan).astype(kind)
