"""How a function of this package takes its arguments: floats in which it computes, and reductions of losses."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.dtypes import NARROW_FLOATS, as_dtype, short
from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch
from kernelforge.jit import Jit
from kernelforge.random import next_key
from kernelforge.told import Told
from kernelforge.trace import TRACED, Tracer, concrete
from kernelforge.transforms import stop_gradient

Fn = Callable[..., Any]
Ints = int | Sequence[int]
Given = dict[str, Any]

REDUCTIONS = ("mean", "sum", "none")


def wide(x: Any) -> Any:
    """Return ``x`` as an array of the dtype to compute in: f32 for f16 and bf16, float64 for integers and bools."""
    x = knp.asarray(x)
    dtype = as_dtype(x.dtype)
    if short(dtype) in NARROW_FLOATS:
        return x.astype(np.float32)
    return x.astype(np.float64) if dtype.kind in "biu" else x


def together(*xs: Any) -> list[Any]:
    """Return arrays to compute with each other, as ``wide`` does; integers and bools take the dtype of the floats."""
    arrays = [knp.asarray(x) for x in xs]
    floats = [wide(x).dtype for x in arrays if as_dtype(x.dtype).kind not in "biu"]
    common = np.result_type(*floats) if floats else np.dtype(np.float64)
    return [x.astype(common) if as_dtype(x.dtype).kind in "biu" else wide(x) for x in arrays]


def narrow(made: Any, like: Any) -> Any:
    """Return ``made`` in the dtype of ``like``, where that is a float."""
    dtype = as_dtype(like.dtype)
    return made if dtype.kind in "biu" else made.astype(dtype)


def _frozen(x: Any) -> Any:
    return tuple(_frozen(v) for v in x) if isinstance(x, list) else x


class Function(Jit):
    """A compiled function of this package.

    Sizes are static and often written as lists, which are taken for tuples.

    Attributes:
        before: is given the arguments by name, before they are traced, and may change them: it checks what is known and
            draws keys. Inside of a compiled function it sees what is known there.
    """

    def __init__(self, fn: Fn, static: Sequence[str], before: Callable[[Given], None] | None) -> None:
        super().__init__(fn, static, ())
        self.before = before
        self._signature: inspect.Signature | None = None
        self._static = self._static or before is not None

    def _taken(self, args: tuple[Any, ...], kwargs: Given) -> tuple[tuple[Any, ...], Given]:
        if self.before is not None:
            if self._signature is None:
                self._signature = inspect.signature(self.__wrapped__)
            try:
                given: Given = dict(self._signature.bind(*args, **kwargs).arguments)
            except TypeError as error:
                raise TypeError(f"{self.__name__}(): {error}") from None
            self.before(given)
            args, kwargs = (), given
        positional = tuple(_frozen(x) if i in self._static_nums else x for i, x in enumerate(args))
        return positional, {k: _frozen(x) if k in self._static_names else x for k, x in kwargs.items()}

    def _prepare(self, args: tuple[Any, ...], kwargs: Given) -> Any:
        with self._told(args, kwargs):
            key, body, leaves = super()._prepare(*self._taken(args, kwargs))

        def telling(values: list[Tracer]) -> Any:
            with self._told(args, kwargs):
                return body(values)

        return key, telling, leaves

    def _inline(self, args: tuple[Any, ...], kwargs: Given) -> Any:
        with self._told(args, kwargs):
            return super()._inline(*self._taken(args, kwargs))

    def _told(self, args: tuple[Any, ...], kwargs: Given) -> Told:
        return Told(self.__name__, self, args, kwargs)


def function(*static: str, before: Callable[[Given], None] | None = None) -> Callable[[Fn], Function]:
    """Compile a function, of which ``static`` names the parameters whose values are known while compiling."""
    return lambda fn: Function(fn, static, before)


def elementwise(*static: str, before: Callable[[Given], None] | None = None) -> Callable[[Fn], Function]:
    """Compile a function whose first argument is an array: it is computed in a wide dtype and rounded once."""

    def decorate(fn: Fn) -> Function:
        @functools.wraps(fn)
        def rounded(input: Any, *args: Any, **kwargs: Any) -> Any:
            x = knp.asarray(input)
            return narrow(fn(wide(x), *args, **kwargs), x)

        return Function(rounded, static, before)

    return decorate


def passing(value: Any, slope: Any) -> Any:
    """Return ``value``, bit by bit, with the derivative that ``slope`` has, 0 where that is not finite."""
    return stop_gradient(value) + knp.where(knp.isfinite(slope), slope - stop_gradient(slope), 0)


def known(x: Any) -> np.ndarray[Any, Any] | None:
    """Return the values of an argument, None where they are not known while a function is compiled."""
    found = concrete(x)
    return None if found is TRACED else np.asarray(found)


def within(given: Given, op: str, name: str, low: float, high: float, expected: str) -> None:
    """Raise InvalidParameter where numbers are known and not from ``low`` to ``high``; NaN is let through."""
    if given.get(name) is None:
        return
    numbers = known(given[name])
    if numbers is None:
        return
    wrong = numbers[(numbers < low) | (numbers > high)]
    if wrong.size:
        valid(False, op, name, wrong.flat[0].item(), expected)


def names_classes(given: Given, op: str, name: str, count: int, ignored: int | None = None) -> None:
    """Raise InvalidParameter where known integers are not from 0 to below ``count``, nor ``ignored``."""
    ids = known(given[name])
    if ids is None or ids.dtype.kind not in "iu":
        return
    wrong = ids[((ids < 0) | (ids >= count)) & (ids != ignored)]
    if wrong.size:
        rest = "" if ignored is None else f", or {ignored} to be ignored"
        valid(False, op, name, int(wrong.flat[0]), f"integers from 0 to {count - 1}{rest}")


def draws_key(given: Given, name: str = "key") -> None:
    """Put in a key of the thread's default stream, where none is given; compiled functions refuse that."""
    if given.get(name) is None:
        given[name] = next_key()


def floating(op: str, x: Any) -> None:
    """Raise DtypeMismatch, with the user's line, for what is not an array of floats."""
    dtype = as_dtype(x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype)
    if dtype.kind in "biuc":
        raise DtypeMismatch(op=op, found=str(dtype), expected="floats")


def reduced(losses: Any, reduction: str, op: str, count: Any = None) -> Any:
    """Reduce the losses of elements as a loss is asked to; ``count`` is what a mean divides by, all of them if None.

    Raises:
        InvalidParameter: when ``reduction`` is none of ``REDUCTIONS``.
    """
    if reduction not in REDUCTIONS:
        raise InvalidParameter(op=op, name="reduction", found=reduction, expected="mean, sum or none")
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if count is None else losses.sum() / count


def require(fits: bool, op: str, found: object, expected: str) -> None:
    """Raise ShapeMismatch, with the user's line, where shapes do not fit."""
    if not fits:
        raise ShapeMismatch(op=op, found=found, expected=expected)


def valid(holds: bool, op: str, name: str, found: object, expected: str) -> None:
    """Raise InvalidParameter, with the user's line, where a parameter is not valid."""
    if not holds:
        raise InvalidParameter(op=op, name=name, found=found, expected=expected)


def each(value: Ints, count: int, op: str, name: str) -> tuple[int, ...]:
    """Return a parameter as one integer for each of ``count`` axes."""
    values = (int(value),) * count if isinstance(value, int | np.integer) else tuple(int(v) for v in value)
    valid(len(values) == count, op, name, value, f"an integer, or {count} of them")
    return values
