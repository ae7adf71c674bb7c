"""The undecorated function under NumPy in float64, and how far from it a device's result may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optree

from kernelforge.dtypes import BFLOAT16, epsilon, is_float

Array = np.ndarray[Any, Any]
Fn = Callable[..., Any]

REFUSALS = (ValueError, TypeError, IndexError, ZeroDivisionError, ArithmeticError)
"""What NumPy raises for shapes and values a function is not made for."""

FACTOR = 16.0
"""How many times the error of NumPy in the same dtype, or of rounded inputs, a device may make."""


def plain(fn: Fn) -> Fn:
    """Return the function as the user wrote it."""
    wrapped: Fn = getattr(fn, "__wrapped__", fn)
    return wrapped


def leaves(tree: Any) -> list[Array]:
    """Return the arrays and numbers of a result as NumPy arrays."""
    return [np.asarray(x) for x in optree.tree_leaves(tree)]


def widened(args: Sequence[Any]) -> list[Any]:
    """Return the arguments with floats in float64."""
    return [a.astype(np.float64) if isinstance(a, np.ndarray) and is_float(a.dtype) else a for a in args]


class Expected(NamedTuple):
    """One output: its values in float64 (or exact), the error allowed, and where both are defined.

    ``settled`` is False where NumPy itself does not agree between precisions, or under rounding of the inputs, on what
    kind of value stands there: there a device may give anything.
    """

    value: Array
    allowed: Array
    settled: Array

    def wrong(self, found: Array) -> Array:
        """Mark the elements of ``found`` that are not what NumPy says."""
        value, got = self.value.astype(np.float64), found.astype(np.float64)
        same = (value == got) | (np.isnan(value) & np.isnan(got))
        with np.errstate(invalid="ignore"):
            near = np.abs(value - got) <= self.allowed
        return np.asarray(self.settled & ~same & ~near)


def expected(fn: Fn, args: Sequence[Any], found: Sequence[Array]) -> list[Expected]:
    """Evaluate the function under NumPy and bound the error of ``found``, one entry for each output.

    The bound is a few roundings of the result (growing with the square root of the number of input elements, as errors
    of sums do), plus ``FACTOR`` times what NumPy loses in the dtype itself and what rounding the inputs changes.
    """
    size = max([a.size for a in args if isinstance(a, np.ndarray)], default=1)
    made = []
    with np.errstate(all="ignore"):
        exact = leaves(fn(*widened(args)))
        native = leaves(fn(*args))
        nudged = [leaves(fn(*_nudged(args, seed))) for seed in (0, 1)]
        for i, value in enumerate(exact):
            dtype = found[i].dtype if i < len(found) else value.dtype
            made.append(_bounded(value, native[i], [n[i] for n in nudged], dtype, size))
    return made


def _nudged(args: Sequence[Any], seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    wide = []
    for a, original in zip(widened(args), args, strict=True):
        if isinstance(a, np.ndarray) and a.dtype == np.float64:
            a = np.asarray(a * (1.0 + epsilon(original.dtype) * rng.uniform(-1.0, 1.0, a.shape)))
        wide.append(a)
    return wide


def _bounded(value: Array, native: Array, nudged: Sequence[Array], dtype: np.dtype[Any], size: int) -> Expected:
    if not is_float(dtype):
        agree = np.logical_and.reduce([value == other for other in (native, *nudged)])
        return Expected(value, np.zeros(value.shape), np.asarray(agree))
    limits = np.finfo(np.float32) if dtype == BFLOAT16 else np.finfo(dtype)
    wide = value.astype(np.float64)
    others = [np.asarray(o).astype(np.float64) for o in (native, *nudged)]
    wide = np.where(np.abs(wide) > float(limits.max), np.copysign(np.inf, wide), wide)
    settled = np.logical_and.reduce([_kind(wide) == _kind(o) for o in others])
    finite = np.isfinite(wide)
    loss = np.max([np.abs(np.where(finite & settled, o - wide, 0.0)) for o in others], axis=0)
    magnitude = np.abs(np.where(finite, wide, 0.0))
    typical = float(magnitude.mean()) if magnitude.size else 0.0
    rounding = 4.0 * epsilon(dtype) * np.sqrt(max(size, 1)) * (magnitude + typical)
    return Expected(wide, rounding + FACTOR * (loss + _typical(loss)) + float(limits.tiny), np.asarray(settled))


def _typical(loss: Array) -> float:
    return float(np.median(loss)) if loss.size else 0.0


def _kind(x: Array) -> Array:
    """Tell finite values, each infinity and NaN apart."""
    return np.where(np.isnan(x), 2.0, np.where(np.isinf(x), np.sign(x), 0.0))
