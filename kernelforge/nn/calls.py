"""How a function of this package takes its arguments: floats in which it computes, and reductions of losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.dtypes import NARROW_FLOATS, as_dtype, short
from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.ir.build import user_line
from kernelforge.jit import Jit, jit

Fn = Callable[..., Any]
Ints = int | Sequence[int]

REDUCTIONS = ("mean", "sum", "none")


def wide(x: Any) -> Any:
    """Return ``x`` as an array of the dtype to compute in: f32 for f16 and bf16, float64 for integers and bools."""
    x = knp.asarray(x)
    dtype = as_dtype(x.dtype)
    if short(dtype) in NARROW_FLOATS:
        return x.astype(np.float32)
    return x.astype(np.float64) if dtype.kind in "biu" else x


def narrow(made: Any, like: Any) -> Any:
    """Return ``made`` in the dtype of ``like``, where that is a float."""
    dtype = as_dtype(like.dtype)
    return made if dtype.kind in "biu" else made.astype(dtype)


def elementwise(*static: str) -> Callable[[Fn], Jit]:
    """Compile a function whose first argument is an array: it is computed in a wide dtype and rounded once."""

    def decorate(fn: Fn) -> Jit:
        @functools.wraps(fn)
        def rounded(input: Any, *args: Any, **kwargs: Any) -> Any:
            x = knp.asarray(input)
            return narrow(fn(wide(x), *args, **kwargs), x)

        return jit(rounded, static_argnames=static)

    return decorate


def reduced(losses: Any, reduction: str, op: str, count: Any = None) -> Any:
    """Reduce the losses of elements as a loss is asked to; ``count`` is what a mean divides by, all of them if None.

    Raises:
        InvalidParameter: when ``reduction`` is none of ``REDUCTIONS``.
    """
    if reduction not in REDUCTIONS:
        raise InvalidParameter(op=op, name="reduction", found=reduction, expected="mean, sum or none", loc=user_line())
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if count is None else losses.sum() / count


def require(fits: bool, op: str, found: object, expected: str) -> None:
    """Raise ShapeMismatch, with the user's line, where shapes do not fit."""
    if not fits:
        raise ShapeMismatch(op=op, found=found, expected=expected, loc=user_line())


def valid(holds: bool, op: str, name: str, found: object, expected: str) -> None:
    """Raise InvalidParameter, with the user's line, where a parameter is not valid."""
    if not holds:
        raise InvalidParameter(op=op, name=name, found=found, expected=expected, loc=user_line())


def each(value: Ints, count: int, op: str, name: str) -> tuple[int, ...]:
    """Return a parameter as one integer for each of ``count`` axes."""
    values = (int(value),) * count if isinstance(value, int | np.integer) else tuple(int(v) for v in value)
    valid(len(values) == count, op, name, value, f"an integer, or {count} of them")
    return values
