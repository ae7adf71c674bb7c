"""Learning rates as functions of the number of updates before, which may be traced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.errors import InvalidParameter

Schedule = Callable[[Any], Any]


def rate_at(rate: float | Schedule, count: Any) -> Any:
    """Return a number as it is, and what a schedule says after ``count`` updates."""
    return rate(count) if callable(rate) else rate


def _along(count: Any, steps: int) -> Any:
    """How far ``count`` is on its way to ``steps``: from 0 to 1, in f32."""
    if steps < 1:
        raise InvalidParameter(op="a schedule", name="steps", found=steps, expected="1 or more")
    return knp.clip(knp.asarray(count).astype(np.float32) / np.float32(steps), 0, 1)


def constant(rate: float) -> Schedule:
    return lambda count: rate


def step(rate: float, size: int, gamma: float = 0.1) -> Schedule:
    """Multiply by ``gamma`` every ``size`` updates."""
    return lambda count: rate * np.float32(gamma) ** knp.floor(knp.asarray(count).astype(np.float32) / size)


def piecewise(rate: float, boundaries: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Multiply by ``gamma`` at each number of updates in ``boundaries``."""

    def at(count: Any) -> Any:
        passed = sum((knp.asarray(count) >= b).astype(np.float32) for b in boundaries)
        return rate * np.float32(gamma) ** passed

    return at


def exponential(rate: float, gamma: float) -> Schedule:
    """Multiply by ``gamma`` at each update."""
    return lambda count: rate * np.float32(gamma) ** knp.asarray(count).astype(np.float32)


def cosine(rate: float, steps: int, end: float = 0.0) -> Schedule:
    """Go from ``rate`` to ``end`` along half a cosine, then stay; Loshchilov and Hutter 2017, equation 5."""
    return lambda count: end + (rate - end) * 0.5 * (1 + knp.cos(_along(count, steps) * math.pi))


def warmup(after: float | Schedule, steps: int, start: float = 0.0) -> Schedule:
    """Rise from ``start`` times the rate to the rate in a line over ``steps`` updates; then go on with ``after``."""

    def at(count: Any) -> Any:
        later = knp.maximum(knp.asarray(count) - steps, 0)
        return rate_at(after, later) * (start + (1 - start) * _along(count, steps))

    return at


def one_cycle(rate: float, steps: int, rising: float = 0.3, start: float = 1 / 25, end: float = 1 / 25e4) -> Schedule:
    """Rise from ``start * rate`` to ``rate`` and fall to ``end * rate``, both along half a cosine; Smith 2018.

    Args:
        rising: the share of the ``steps`` updates that the rise takes. The defaults are PyTorch's.
    """
    top = rising * steps - 1

    def at(count: Any) -> Any:
        t = knp.asarray(count).astype(np.float32)
        up = 0.5 * (1 - knp.cos(knp.clip(t / np.float32(max(top, 1)), 0, 1) * math.pi))
        down = 0.5 * (
            1 + knp.cos(knp.clip((t - np.float32(top)) / np.float32(max(steps - 1 - top, 1)), 0, 1) * math.pi)
        )
        return knp.where(t <= top, rate * (start + (1 - start) * up), rate * (end + (1 - end) * down))

    return at
