"""Random elements with special ones among them, for the tests of several backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES, INTEGERS

Array = np.ndarray[Any, Any]


def drawn(dtype: str, n: int, seed: int, special: Sequence[float], share: float) -> Array:
    """Return random elements: this share of floats is special, and half of the integers are near zero."""
    rng = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    if dtype == "bool":
        return rng.integers(0, 2, n).astype(bool)
    if dtype in INTEGERS:
        info = np.iinfo(kind)
        found = rng.integers(info.min, info.max, n, dtype=kind, endpoint=True)
        small = rng.integers(max(-4, info.min), 5, n).astype(kind)
        found = np.where(rng.random(n) < 0.5, found, small)
        found[: min(n, 2)] = (info.min, info.max)[: min(n, 2)]
        return found
    with np.errstate(over="ignore"):
        found = (rng.standard_normal(n) * 10).astype(kind)
        return np.where(rng.random(n) < share, rng.choice(special, n).astype(kind), found)
