"""Random numbers by key: the same key and shape give the same numbers on every device, however the work is split.

A key is an array ``u32[2]``. Use each one once: ``split`` makes new ones. Bits are those of Threefry-2x32 with 20
rounds (Salmon et al. 2011) on counters: in row-major order, elements 32*k + j and 32*k + 16 + j, for j below 16, are
the first and the second word of block 16*k + j. Floats take the high bits. ``bernoulli``, and with it dropout, makes 4
elements of a block, of which any two are independent, and of 13 rounds (``kernelforge.ir.ops.random`` says why).

For eager convenience ``next_key`` draws keys from a default stream that each thread of each process has for itself: it
starts from the operating system's entropy, or from ``seed``, and a forked child starts anew. A compiled function never
touches it, as what it drew would be the same at every call: there ``next_key`` raises, and keys are arguments.
"""

from __future__ import annotations

from kernelforge.random.continuous import (
    cauchy,
    exponential,
    gumbel,
    laplace,
    logistic,
    lognormal,
    normal,
    pareto,
    rayleigh,
    triangular,
    weibull_min,
)
from kernelforge.random.counts import binomial, geometric, poisson
from kernelforge.random.gammas import beta, chisquare, dirichlet, gamma, loggamma, t
from kernelforge.random.keys import fold_in, key, next_key, seed, split
from kernelforge.random.orders import categorical, choice, permutation
from kernelforge.random.truncated import truncated_normal
from kernelforge.random.uniforms import bernoulli, bits, rademacher, randint, uniform
from kernelforge.random.vectors import multivariate_normal, orthogonal

__all__ = [
    "bernoulli",
    "beta",
    "binomial",
    "bits",
    "categorical",
    "cauchy",
    "chisquare",
    "choice",
    "dirichlet",
    "exponential",
    "fold_in",
    "gamma",
    "geometric",
    "gumbel",
    "key",
    "laplace",
    "loggamma",
    "logistic",
    "lognormal",
    "multivariate_normal",
    "next_key",
    "normal",
    "orthogonal",
    "pareto",
    "permutation",
    "poisson",
    "rademacher",
    "randint",
    "rayleigh",
    "seed",
    "split",
    "t",
    "triangular",
    "truncated_normal",
    "uniform",
    "weibull_min",
]


def __dir__() -> list[str]:
    return __all__
