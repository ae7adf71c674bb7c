"""Derivatives against central differences of the undecorated function under NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from kernelforge.backends import registry
from kernelforge.devices import default_device
from kernelforge.dtypes import epsilon, is_float
from kernelforge.errors import CheckFailed
from kernelforge.jit import name_of
from kernelforge.testing.oracle import Array, Fn, plain, widened
from kernelforge.transforms import grad, jvp

DIFFERENCES = "central differences of NumPy in float64"
STEPS = {1: 1e-5, 2: 1e-3}
"""Steps of the differences by order of the derivative: their error and float64's rounding are then both below 1e-7."""


def devices_or_all(devices: Sequence[str] | None) -> list[str]:
    """Return the names given, or those of every device there is."""
    if devices is not None:
        return list(devices)
    return [name for name, found in registry.available().items() if not isinstance(found, str)]


def check_grads(fn: Fn, args: Sequence[Any], order: int = 2, devices: Sequence[str] | None = None) -> None:
    """Compare reverse and forward derivatives of ``fn`` at ``args`` with differences along a random direction.

    Arguments that are not arrays of floats are held fixed. At a kink, where the differences themselves do not settle,
    there is nothing to compare.

    Args:
        order: 1, or 2 for second derivatives too: forward over reverse.

    Raises:
        CheckFailed: naming the derivative, what was found and what was expected.
    """
    for device in devices_or_all(devices):
        with default_device(device):
            problem = compare(fn, args, order)
        if problem:
            raise CheckFailed(function=name_of(plain(fn)), device=device, problem=problem, code=f"args = {args!r}")


def scalarized(fn: Fn, args: Sequence[Any], picked: Sequence[int]) -> Callable[..., Any]:
    """Make a scalar function of the ``picked`` arguments: the float outputs of ``fn``, weighted and summed."""

    def phi(*values: Any) -> Any:
        given = list(args)
        for i, value in zip(picked, values, strict=True):
            given[i] = value
        total: Any = 0.0
        for k, out in enumerate(optree.tree_leaves(fn(*given))):
            if is_float(np.dtype(out.dtype)):
                weights = np.random.default_rng(k).uniform(0.5, 1.5, out.shape).astype(out.dtype)
                total = total + np.sum(out * weights)
        return total

    return phi


def compare(fn: Fn, args: Sequence[Any], order: int) -> str:
    """Return what is wrong with the derivatives on the default device, or an empty text."""
    picked = [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and is_float(a.dtype)]
    primals = [args[i] for i in picked]
    if not sum(p.size for p in primals):
        return ""
    rng = np.random.default_rng(7)
    directions = [
        np.asarray(rng.uniform(0.5, 1.5, p.shape) * rng.choice([-1.0, 1.0], p.shape)).astype(p.dtype) for p in primals
    ]
    numpy_phi = scalarized(plain(fn), widened(args), picked)
    phi = scalarized(fn, args, picked)
    coarsest = max(epsilon(p.dtype) for p in primals)
    along = _Line(numpy_phi, widened(primals), widened(directions))
    expected = along.settled(1)
    if expected is None:
        return ""
    gradient = grad(phi, argnums=tuple(range(len(primals))))
    found = [np.asarray(g) for g in gradient(*primals)]
    dots = [_dot(g, d) for g, d in zip(found, directions, strict=True)]
    scale = sum(float(np.sum(np.abs(np.asarray(g, np.float64) * d))) for g, d in zip(found, directions, strict=True))
    allowed = max(1e-6, 64.0 * coarsest * np.sqrt(sum(p.size for p in primals))) * (abs(expected) + scale)
    if not abs(sum(dots) - expected) <= allowed:
        single = [_Line(numpy_phi, widened(primals), _only(k, directions)).settled(1) for k in range(len(primals))]
        parts = [
            f"argument {i}: {d:.9g} where {s:.9g} is right"
            for i, d, s in zip(picked, dots, single, strict=True)
            if s is not None
        ]
        total = f"the gradient along a direction is {sum(dots):.9g}; {DIFFERENCES} give {expected:.9g}"
        return f"{total} ({'; '.join(parts)})"
    forward = float(np.asarray(jvp(phi, primals, directions)[1]))
    if not abs(forward - expected) <= allowed:
        return f"the jvp along a direction is {forward:.9g}; {DIFFERENCES} give {expected:.9g}"
    return _second(gradient, primals, directions, along, coarsest) if order > 1 else ""


def _second(gradient: Fn, primals: Sequence[Array], directions: Sequence[Array], along: _Line, coarsest: float) -> str:
    expected = along.settled(2)
    if expected is None:
        return ""
    columns = [np.asarray(h) for h in jvp(gradient, primals, directions)[1]]
    found = sum(_dot(h, d) for h, d in zip(columns, directions, strict=True))
    scale = sum(float(np.sum(np.abs(np.asarray(h, np.float64) * d))) for h, d in zip(columns, directions, strict=True))
    size = sum(p.size for p in primals)
    allowed = max(1e-4, 64.0 * coarsest * np.sqrt(size)) * (abs(expected) + scale + abs(along.at(0.0)))
    if not abs(found - expected) <= allowed:
        return f"the second derivative along a direction is {found:.9g}; {DIFFERENCES} give {expected:.9g}"
    return ""


def _dot(x: Array, y: Array) -> float:
    return float(np.sum(x.astype(np.float64) * y.astype(np.float64)))


def _only(k: int, directions: Sequence[Array]) -> list[Array]:
    return [d.astype(np.float64) * (i == k) for i, d in enumerate(directions)]


class _Line:
    """A scalar function along a line through its argument."""

    def __init__(self, phi: Fn, primals: Sequence[Array], directions: Sequence[Array]) -> None:
        self.phi, self.primals, self.directions = phi, primals, directions

    def at(self, t: float) -> float:
        with np.errstate(all="ignore"):
            return float(self.phi(*(p + t * d for p, d in zip(self.primals, self.directions, strict=True))))

    def difference(self, order: int, h: float) -> float:
        if order == 1:
            return (self.at(h) - self.at(-h)) / (2.0 * h)
        return (self.at(h) - 2.0 * self.at(0.0) + self.at(-h)) / (h * h)

    def settled(self, order: int) -> float | None:
        """Return the derivative, or None where two steps disagree: at a kink, a pole, outside of the domain."""
        wide, narrow = (self.difference(order, s * STEPS[order]) for s in (1.0, 0.5))
        tolerance = {1: 1e-6, 2: 1e-4}[order] * (abs(wide) + abs(narrow) + abs(self.at(0.0)))
        return narrow if abs(wide - narrow) <= tolerance else None
