"""What the test programs share: the record of one, and inputs that are the same on every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function as a user of NumPy writes it, with arguments for it.

    Attributes:
        args: float64 arrays, which the tests also cast to float32, and anything else as it is.
        wrt: the arguments to differentiate by.
        kernels: how many it becomes, where that is obvious.
        static: names of the static parameters.
        loose: by how much the float32 result may be further off than usual.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    wrt: tuple[int, ...] = ()
    kernels: int | None = None
    static: tuple[str, ...] = ()
    loose: float = 1.0

    @property
    def name(self) -> str:
        return self.fn.__name__


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def uniform(*shape: int, seed: int = 0, low: float = 0.2, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).uniform(low, high, size=shape)


def integers(high: int, *shape: int, seed: int = 0, dtype: Any = np.int64) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, high, shape).astype(dtype)
