"""Tables of so few numbers that registers hold them, which the operations of their names look numbers up in.

``name(x)`` is number k of a table, where k is what the low bits of ``x`` count, below the table's length. A table is as
long as one or two of AVX-512's registers, whose permutations find any 16 (f64: 8) of its numbers in one instruction.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

LANES = {"f32": 16, "f64": 8}
"""How many numbers a register holds."""

ERF_PARTS = 8
"""Pieces of erf(x)/x from a whole x to the next: piece k has what is nearest to its origin, k/ERF_PARTS."""
ERFC_SHIFT = 20
"""Piece k of exp(x**2)*erfc(x) begins at its origin, where the bits of x + 1, shifted by so many, begin to count k:
two bits of the exponent and three of the fraction."""
DEGREE = {"erf": 4, "erfc": 5}
"""Of a piece's polynomial in t, which is x less the origin; the coefficients of t**j are in the table ``erf_j``."""

_PIECES = 32


def _powers(dtype: str) -> list[float]:
    """2**(k/n) for all k below n."""
    n = LANES[dtype]
    return [2 ** (k / n) for k in range(n)]


def _erf(x: float) -> float:
    return math.erf(x) / x if x else 2 / math.sqrt(math.pi)


def _erf_piece(k: int) -> tuple[float, float, float]:
    half = 0.5 / ERF_PARTS
    return k / ERF_PARTS, -half, half


def _erfc(x: float) -> float:
    return math.exp(x * x) * math.erfc(x)


def _erfc_piece(k: int) -> tuple[float, float, float]:
    power = 2.0 ** ((k // 8 + 1) % 4)  # the exponent of 1 ends in 11
    return power * (1 + k % 8 / 8) - 1, 0, power / 8


@functools.cache
def _polynomials(name: str) -> list[list[float]]:
    """Return, for each power of t, its coefficients in the pieces of ``erf`` or ``erfc``.

    They interpolate at Chebyshev's points, which errs by little more than the best polynomials would: 2**-26 of the
    value.
    """
    value, piece = {"erf": (_erf, _erf_piece), "erfc": (_erfc, _erfc_piece)}[name]
    n = DEGREE[name] + 1
    points = np.cos(np.pi * (np.arange(n) + 0.5) / n)
    found = []
    for origin, low, high in map(piece, range(_PIECES)):
        t = (low + high) / 2 + (high - low) / 2 * points
        found.append(np.linalg.solve(np.vander(t, increasing=True), [value(v) for v in origin + t]))
    return [list(map(float, column)) for column in zip(*found, strict=True)]


def _coefficients(name: str, power: int, _dtype: str) -> list[float]:
    return _polynomials(name)[power]


TABLES: dict[str, Callable[[str], list[float]]] = {
    "exp2_low": _powers,
    **{f"{f}_{j}": functools.partial(_coefficients, f, j) for f in DEGREE for j in range(DEGREE[f] + 1)},
}
"""Name to what computes a table's numbers for a dtype; those of polynomials are for f32."""


@functools.cache
def table(name: str, dtype: str) -> tuple[float, ...]:
    """Return the numbers of a table, to be rounded to ``dtype``."""
    return tuple(TABLES[name](dtype))
