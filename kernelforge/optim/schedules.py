"""Learning rates as functions of the number of updates before, which may be traced."""

from __future__ import annotations

import dataclasses
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


def constant(rate: float, factor: float = 1.0, steps: int = 0) -> Schedule:
    """Multiply by ``factor`` for the first ``steps`` updates."""
    return lambda count: rate * knp.where(knp.asarray(count) < steps, np.float32(factor), 1)


def linear(rate: float, steps: int, start: float = 1 / 3, end: float = 1.0) -> Schedule:
    """Go from ``start`` times the rate to ``end`` times it in a line, then stay."""
    return lambda count: rate * (start + (end - start) * _along(count, steps))


def polynomial(rate: float, steps: int, power: float = 1.0) -> Schedule:
    """Fall to 0 over ``steps`` updates, as a power of what is left of them."""
    return lambda count: rate * (1 - _along(count, steps)) ** power


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


def cosine_restarts(rate: float, steps: int, growth: int = 1, end: float = 0.0) -> Schedule:
    """``cosine`` again and again, each time over ``growth`` times as many updates; Loshchilov and Hutter 2017."""

    def at(count: Any) -> Any:
        t, length = knp.asarray(count).astype(np.float32), np.float32(steps)
        if growth > 1:
            # rounds before this one; a power of two that is off by a rounding would be in the wrong round
            done = knp.floor(knp.log1p(t * (growth - 1) / steps) / math.log(growth) + 1e-6)
            length = steps * knp.rint(np.float32(growth) ** done)
            t = t - (length - steps) / (growth - 1)
        return end + (rate - end) * 0.5 * (1 + knp.cos(t % length / length * math.pi))

    return at


CYCLES: dict[str, Callable[[float, Any, Any], Any]] = {
    "triangular": lambda gamma, cycle, count: 1.0,
    "triangular2": lambda gamma, cycle, count: np.float32(0.5) ** cycle,
    "exp_range": lambda gamma, cycle, count: np.float32(gamma) ** count,
}
"""By what the height of a cycle is multiplied; Smith 2017."""


def cyclic(
    rate: float, top: float, rising: int = 2000, falling: int | None = None, mode: str = "triangular",
    gamma: float = 1.0,
) -> Schedule:  # fmt: skip
    """Go from ``rate`` to ``top`` and back in lines, again and again; Smith 2017.

    Args:
        rising, falling: numbers of updates; as many for both by default.
        mode: ``"triangular2"`` halves the height after each cycle, ``"exp_range"`` multiplies it by ``gamma`` at each
            update.
    """
    if mode not in CYCLES:
        raise InvalidParameter(op="cyclic", name="mode", found=mode, expected=", ".join(CYCLES))
    down = rising if falling is None else falling

    def at(count: Any) -> Any:
        t = knp.asarray(count).astype(np.float32)
        cycle = knp.floor(t / (rising + down))
        t_in = t - cycle * (rising + down)
        height = knp.where(t_in <= rising, t_in / rising, (rising + down - t_in) / down)
        return rate + (top - rate) * height * CYCLES[mode](gamma, cycle, t)

    return at


def sequential(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Follow a schedule up to each number of updates in ``boundaries``, then the next one, from its beginning.

    Raises:
        InvalidParameter: when there is not one schedule more than boundaries.
    """
    if len(schedules) != len(boundaries) + 1:
        expected = f"{len(schedules) - 1} of them, one less than schedules"
        raise InvalidParameter(op="sequential", name="boundaries", found=tuple(boundaries), expected=expected)

    def at(count: Any) -> Any:
        found = schedules[0](count)
        for begin, schedule in zip(boundaries, schedules[1:], strict=True):
            after = knp.asarray(count) >= begin
            found = knp.where(after, schedule(knp.maximum(knp.asarray(count) - begin, 0)), found)
        return found

    return at


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


@dataclasses.dataclass(frozen=True)
class Plateau:
    """A rate that falls where a measure stops to get better; see ``plateau``, whose arguments these are."""

    rate: float
    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    min_lr: float
    eps: float

    def init(self) -> dict[str, Any]:
        """Make the state, of which ``"rate"`` is what optimisers are to be given."""
        worst = math.inf if self.mode == "min" else -math.inf
        state = {"rate": np.float32(self.rate), "best": np.float32(worst), "bad": np.int32(0), "cooling": np.int32(0)}
        return {name: np.asarray(x) for name, x in state.items()}

    def update(self, state: dict[str, Any], metric: Any) -> dict[str, Any]:
        """Return the state after another measure; in a compiled function, or by itself."""
        rate, best, bad, cooling = (knp.asarray(state[name]) for name in ("rate", "best", "bad", "cooling"))
        now = knp.asarray(metric).astype(np.float32)
        sign = -1 if self.mode == "min" else 1
        by = sign * self.threshold
        better = now * sign > (best * (1 + by) if self.threshold_mode == "rel" else best + by) * sign
        bad = knp.where(better | (cooling > 0), 0, bad + 1)
        falls = bad > self.patience
        lower = knp.maximum(rate * self.factor, np.float32(self.min_lr))
        return {
            "rate": knp.where(falls & (rate - lower > self.eps), lower, rate).astype(np.float32),
            "best": knp.where(better, now, best),
            "bad": knp.where(falls, 0, bad).astype(np.int32),
            "cooling": knp.where(falls, self.cooldown, knp.maximum(cooling - 1, 0)).astype(np.int32),
        }


def plateau(
    rate: float, mode: str = "min", factor: float = 0.1, patience: int = 10, threshold: float = 1e-4,
    threshold_mode: str = "rel", cooldown: int = 0, min_lr: float = 0.0, eps: float = 1e-8,
) -> Plateau:  # fmt: skip
    """Multiply the rate by ``factor`` where a measure, as the loss of an epoch, has not got better for a while.

    It depends on more than the number of updates, and so has a state of its own: ``init()`` makes it,
    ``update(state, metric)`` makes the next one, and an optimiser takes ``state["rate"]``.

    Args:
        mode: ``"min"`` where less is better, or ``"max"``.
        patience: measures without a better one that are let pass.
        threshold, threshold_mode: by what a better one is better: a share (``"rel"``) or a difference (``"abs"``).
        cooldown: measures after a fall that do not count.
        min_lr, eps: the least rate, and the least fall.
    """
    for name, given, expected in (("mode", mode, ("min", "max")), ("threshold_mode", threshold_mode, ("rel", "abs"))):
        if given not in expected:
            raise InvalidParameter(op="plateau", name=name, found=given, expected=" or ".join(expected))
    return Plateau(rate, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps)
