"""Distributions of counts.

Counts of small mean are found by adding up probabilities until they pass a random number; those of large mean by
rejection from the same shape of hat: W. Hoermann, "The transformed rejection method for generating Poisson random
variables" (1993), algorithm PTRS, and "The generation of binomial random variates" (1993), algorithm BTRS.
Probabilities are of the form of C. Loader, "Fast and accurate computation of binomial probabilities" (2000), whose
terms are as small as the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kernelforge.dtypes import as_dtype
from kernelforge.ir.build import Operand, Sym, apply, as_sym
from kernelforge.ir.ops.control import emit_scan
from kernelforge.numpy.ufuncs import operand, ufunc, where
from kernelforge.random.keys import checked, drawn, rows, split
from kernelforge.random.uniforms import BITS, Shape, full_shape, inside
from kernelforge.trace import TRACED, concrete

SMALL = 10.0
"""Below this mean the hats do not fit."""

STEPS = 48
"""A count of mean ``SMALL`` is above this with probability 1e-17."""

TRIES = 24
"""Candidates of a count. The hats take one of four or more, so all fail once in 10**14 times."""

COUNT = (lambda x: ~((x >= 0) & (x < np.inf)), "0 or more, and finite")
PROBABILITY = (lambda p: ~((p >= 0) & (p <= 1)), "a probability, from 0 to 1")


def _laid(op: str, shape: Shape | None, *parameters: Operand) -> tuple[tuple[int, ...], list[Sym]]:
    """Return the shape, and the parameters in it, in f64 where one of them is that and else in f32."""
    wide = np.dtype(np.float64 if any(isinstance(x, Sym) and x.dtype == np.float64 for x in parameters) else np.float32)
    extents = full_shape(op, shape, *parameters)
    return extents, [apply("stop_gradient", operand(x, wide, extents, op)) for x in parameters]


def _searched(u: Sym, first: Sym, ratio: Callable[[Sym], Sym]) -> Sym:
    """Count the probabilities, from ``first`` on, whose sum stays below ``u``; ``ratio(k)`` is that of (k + 1) to k."""
    # probabilities below the spacing of u come last, and what they leave of it is rounding
    least = 2.0 ** -BITS["f64" if u.dtype.itemsize == 8 else "f32"][2]

    def step(rest: Sym, p: Sym, k: Sym) -> list[Sym]:
        left = rest - p
        return [left, p * ratio(k), where((left > 0) & (p >= least), k + 1.0, k)]

    return emit_scan(step, [u, first, u * 0.0], [], STEPS, False)[2]


Hat = tuple[Sym, Sym, Sym, Sym]
"""Of transformed rejection: a, b, what is taken at once, and what scales the rest."""


def _rejected(key: Sym, centre: Sym, hat: Hat, log_probability: Callable[[Sym], Sym]) -> Sym:
    """Draw by transformed rejection; of a fixed number of candidates one that is accepted is taken."""
    a, b, at_once, scale = hat

    def attempt(made: Sym, key: Sym) -> list[Sym]:
        first, second = rows(split(key))
        u = inside(first, centre.shape, centre.dtype) - 0.5
        v = inside(second, centre.shape, centre.dtype)
        us = 0.5 - ufunc("absolute", u)
        k = ufunc("floor", (a * 2.0 / us + b) * u + centre)
        below = ufunc("log", v * scale / (a / (us * us) + b)) <= log_probability(k)
        return [where(((us >= 0.07) & (v <= at_once)) | below, k, made)]

    return emit_scan(attempt, [ufunc("floor", centre)], [split(key, TRIES)], TRIES, False)[0]


def _deviance(x: Sym) -> Sym:
    """(1 + x) log(1 + x) - x, from -1 on."""
    return where(x > -1, (1.0 + x) * ufunc("log1p", where(x > -1, x, 0.0)) - x, 1.0)


def _stirling(k: Sym) -> Sym:
    """log(k!) - k log(k) + k, which is 0 at 0; Abramowitz and Stegun 6.1.41."""
    x = 1.0 / ufunc("maximum", k, 1.0)
    s = x * x
    series = x * (1 / 12 - s * (1 / 360 - s * (1 / 1260)))
    return where(k > 0, series - ufunc("log", x * (0.5 / math.pi)) * 0.5, 0.0)


def _counted(k: Sym, valid: Sym, dtype: np.dtype[Any]) -> Sym:
    """Turn floats into counts: those that the dtype does not hold into its largest, invalid ones into -1."""
    if dtype.kind in "iu":
        most = k.dtype.type(np.iinfo(dtype).max)
        if int(most) > np.iinfo(dtype).max:
            most = np.nextafter(most, k.dtype.type(0))
        k = ufunc("minimum", k, float(most))
    return where(valid, k, -1.0).astype(dtype)


def _sizes(mean: Any) -> tuple[bool, bool]:
    """Tell whether means may be small, and whether they may be large."""
    if mean is TRACED:
        return True, True
    small = np.asarray(mean) < SMALL
    return bool(np.any(small)), bool(np.any(~small))


def _joined(mean: Sym, sizes: tuple[bool, bool], small: Callable[[], Sym], large: Callable[[], Sym]) -> Sym:
    if not all(sizes):
        return small() if sizes[0] else large()
    return where(mean < SMALL, small(), large())


@checked(lam=COUNT)
def poisson(key: Any, lam: Any, shape: Shape | None = None, dtype: Any = np.int32) -> Any:
    """Make counts of events of which ``lam`` are expected.

    Computed in f32, which tells whole numbers apart up to 2**24, unless ``lam`` is f64.

    Raises:
        InvalidParameter: where ``lam`` is negative or not finite; -1 where a compiled function finds that.
    """
    return _poisson(key, lam, shape, as_dtype(dtype), _sizes(concrete(lam)))


@drawn("lam", name="poisson")
def _poisson(key: Operand, lam: Operand, shape: Shape | None, dtype: np.dtype[Any], sizes: tuple[bool, bool]) -> Sym:
    _, (mu,) = _laid("poisson", shape, lam)

    def small() -> Sym:
        low = ufunc("minimum", mu, SMALL) if sizes[1] else mu
        return _searched(inside(as_sym(key), mu.shape, mu.dtype), ufunc("exp", -low), lambda k: low / (k + 1.0))

    def large() -> Sym:
        high = ufunc("maximum", mu, SMALL) if sizes[0] else mu
        b = ufunc("sqrt", high) * 2.53 + 0.931
        hat = (b * 0.02483 - 0.059, b, 0.9277 - 3.6224 / (b - 2.0), 1.1239 + 1.1328 / (b - 3.4))

        def log_probability(k: Sym) -> Sym:
            return where(k >= 0, -high * _deviance((k - high) / high) - _stirling(k), -np.inf)

        return _rejected(as_sym(key), high + 0.43, hat, log_probability)

    return _counted(_joined(mu, sizes, small, large), (mu >= 0) & (mu < np.inf), dtype)


@checked(n=COUNT, p=PROBABILITY)
def binomial(key: Any, n: Any, p: Any, shape: Shape | None = None, dtype: Any = np.int32) -> Any:
    """Make counts of successes in ``n`` trials, each of which succeeds with probability ``p``.

    Computed in f32, which tells whole numbers apart up to 2**24, unless ``n`` or ``p`` is f64.

    Raises:
        InvalidParameter: where ``n`` is negative or not finite, or ``p`` no probability; -1 where a compiled function
            finds that.
    """
    known = concrete((n, p))
    mean = TRACED if known is TRACED else np.asarray(known[0]) * np.minimum(known[1], 1 - np.asarray(known[1]))
    return _binomial(key, n, p, shape, as_dtype(dtype), _sizes(mean))


@drawn("n", "p", name="binomial")
def _binomial(
    key: Operand, n: Operand, p: Operand, shape: Shape | None, dtype: np.dtype[Any], sizes: tuple[bool, bool]
) -> Sym:
    _, (trials, chance) = _laid("binomial", shape, n, p)
    mirrored = chance > 0.5
    less = where(mirrored, 1.0 - chance, chance)
    mean = trials * less

    def small() -> Sym:
        low = where(mean < SMALL, less, 0.0) if sizes[1] else less
        odds = low / (1.0 - low)
        first = ufunc("exp", trials * ufunc("log1p", -low))
        u = inside(as_sym(key), mean.shape, mean.dtype)
        return _searched(u, first, lambda k: odds * (trials - k) / (k + 1.0))

    def large() -> Sym:
        q, m = (where(mean < SMALL, x, y) if sizes[0] else y for x, y in ((0.5, less), (4 * SMALL, trials)))
        centre, rest = m * q, m * (1.0 - q)
        spread = ufunc("sqrt", centre * (1.0 - q))
        b = spread * 2.53 + 1.15

        def log_probability(k: Sym) -> Sym:
            off = k - centre
            surprise = centre * _deviance(off / centre) + rest * _deviance(-off / rest)
            made = _stirling(m) - _stirling(k) - _stirling(m - k) - surprise
            return where((k >= 0) & (k <= m), made, -np.inf)

        mode = log_probability(ufunc("floor", (m + 1.0) * q))
        hat = (b * 0.0248 - 0.0873 + q * 0.01, b, 0.92 - 4.2 / b, (2.83 + 5.1 / b) * spread)
        return _rejected(as_sym(key), centre + 0.5, hat, lambda k: log_probability(k) - mode)

    made = ufunc("minimum", _joined(mean, sizes, small, large), trials)
    valid = (trials >= 0) & (trials < np.inf) & (chance >= 0) & (chance <= 1)
    return _counted(where(mirrored, trials - made, made), valid, dtype)


@checked(p=(lambda p: ~((p > 0) & (p <= 1)), "a probability above 0, at most 1"))
@drawn("p")
def geometric(key: Operand, p: Operand, shape: Shape | None = None, dtype: Any = np.int32) -> Sym:
    """Make numbers of trials up to the first success, of probability ``p``; from 1 on."""
    _, (chance,) = _laid("geometric", shape, p)
    u = inside(as_sym(key), chance.shape, chance.dtype)
    failures = ufunc("floor", ufunc("log", u) / ufunc("log1p", -chance))
    return _counted(failures + 1.0, (chance > 0) & (chance <= 1), as_dtype(dtype))
