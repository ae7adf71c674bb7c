"""Keys, and the words they make; the default stream of a thread."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from kernelforge.dtypes import as_dtype, short
from kernelforge.errors import DtypeMismatch, InvalidParameter, NumberOutOfRange, TracedStream
from kernelforge.ir.build import Operand, Sym, apply, as_sym, tracing
from kernelforge.ir.types import Type
from kernelforge.methods import FUNCTIONS, is_array
from kernelforge.numpy.creation import shape_of
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.shapes import part
from kernelforge.numpy.ufuncs import ufunc
from kernelforge.told import telling
from kernelforge.trace import TRACED, concrete

F = TypeVar("F", bound=Callable[..., Any])

SPACE = "random"

_WORD = 0xFFFFFFFF


def drawn(*arrays: str, numbers: bool = True, name: str | None = None) -> Callable[[F], F]:
    """Let a function of a key and of the arrays named, whose body works on symbols, be called with arrays.

    Args:
        numbers: whether the body takes Python numbers as they are.
        name: what users call it, where that is another name.
    """

    def decorate(fn: F) -> F:
        title = name or fn.__name__

        @functools.wraps(fn)
        def body(key: Any, *args: Any, **kwargs: Any) -> Any:
            _one_key(title, key)
            return fn(key, *args, **kwargs)

        entered = array_function("key", *arrays, numbers=numbers, name=title, table={}, space=SPACE)
        return cast(F, entered(body))

    return decorate


def _one_key(op: str, key: Any) -> None:
    """Refuse arrays and numbers that are not one key."""
    if not isinstance(key, Sym) and not is_array(key):
        return
    shape, dtype = np.shape(key), as_dtype(getattr(key, "dtype", np.result_type(key)))
    if shape != (2,) or dtype != np.uint32:
        more = "take one for each example with vmap" if len(shape) > 1 else "make one with kf.random.key(seed)"
        expected = f"one key, of type u32[2]; {more}"
        raise DtypeMismatch(op=f"{SPACE}.{op}", found=str(Type(shape, dtype)), expected=expected)


def checked(**conditions: tuple[Callable[[Any], Any], str]) -> Callable[[F], F]:
    """Make a function refuse parameters that make no distribution, where they are known while it is compiled.

    Args:
        conditions: for a parameter what tells which values are wrong, and what is expected.
    """

    def decorate(fn: F) -> F:
        signature = inspect.signature(fn)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(*error.args) from None  # of this frame: beyond it ``telling`` takes it for the user's
            for name, (wrong, expected) in conditions.items():
                value = concrete(given.get(name, signature.parameters[name].default))
                if value is not None and value is not TRACED and np.any(mask := wrong(np.asarray(value))):
                    found = np.asarray(value)[mask].flat[0].item()
                    raise InvalidParameter(op=f"{SPACE}.{fn.__name__}", name=name, found=found, expected=expected)
            _one_key(fn.__name__, given["key"])
            return fn(*args, **kwargs)

        return cast(F, telling(call, space=SPACE))

    return decorate


def whole(op: str, name: str, x: Any) -> int:
    """Return an argument that must be an integer as a Python one.

    Raises:
        InvalidParameter: for anything else.
    """
    try:
        return operator.index(x)
    except TypeError:
        raise InvalidParameter(op=f"{SPACE}.{op}", name=name, found=x, expected="an integer") from None


def key(seed: int) -> np.ndarray[Any, Any]:
    """Make a key from an integer; it is a NumPy array, which every device takes.

    Raises:
        InvalidParameter: for what is no integer, is negative or has more than 64 bits.
    """
    number = whole("key", "seed", seed)
    if not 0 <= number < 1 << 64:
        raise InvalidParameter(op="random.key", name="seed", found=seed, expected="an integer from 0 to 2**64 - 1")
    return np.array([number >> 32, number & 0xFFFFFFFF], np.uint32)


class _Stream(threading.local):
    """Where the default stream of this thread is: what it started from and how many keys it gave."""

    def __init__(self) -> None:
        self.start()

    def start(self, number: int | None = None) -> None:
        self.entropy = np.random.SeedSequence(number).entropy
        self.count = itertools.count()


_STREAM = _Stream()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_STREAM.start)


def seed(number: int | None = None) -> None:
    """Start the default stream of this thread anew, from a non-negative integer or from fresh entropy.

    Raises:
        InvalidParameter: for what is no such integer.
    """
    if number is not None and whole("seed", "number", number) < 0:
        raise InvalidParameter(op="random.seed", name="number", found=number, expected="0 or more, or None")
    _STREAM.start(number)


def next_key() -> np.ndarray[Any, Any]:
    """Draw a key from the default stream of this thread.

    Raises:
        TracedStream: while a function is compiled.
    """
    if tracing():
        raise TracedStream
    sequence = np.random.SeedSequence(_STREAM.entropy, spawn_key=(next(_STREAM.count),))
    return sequence.generate_state(2, np.uint32)


def words(k: Operand, shape: tuple[int, ...], share: int = 2) -> Sym:
    """Make random words of ``shape``; see ``kernelforge.ir.ops.random`` for ``share``."""
    return apply("random_bits", as_sym(k), shape=shape, share=share)


@drawn()
def split(key: Operand, num: int | Sequence[int] = 2) -> Sym:
    """Make ``num`` keys, of shape ``(num, 2)``, that are independent of each other and of ``key``.

    Args:
        num: how many, or the shape of an array of keys, which has an axis of 2 besides.
    """
    return words(key, (*shape_of(num, "random.split"), 2))


@drawn("data")
def fold_in(key: Operand, data: Operand) -> Sym:
    """Make a key from a key and an integer of up to 64 bits: one for each step of a loop.

    Raises:
        InvalidParameter: for what is no integer.
        NumberOutOfRange: for a Python integer that int64 does not hold.
    """
    if isinstance(data, Sym):
        if data.dtype.kind not in "iub":
            found = f"a {short(data.dtype)}"
            raise InvalidParameter(op="random.fold_in", name="data", found=found, expected="an integer")
        wide = data if data.dtype == np.uint64 else data.astype(np.int64)
        low, high = (ufunc("bitwise_and", ufunc("right_shift", wide, s), _WORD).astype(np.uint32) for s in (0, 32))
    else:
        number = whole("fold_in", "data", data)
        if not -(1 << 63) <= number < 1 << 63:
            raise NumberOutOfRange(op="random.fold_in", found=number, dtype="int64")
        low, high = (as_sym(np.uint32(number >> s & _WORD)) for s in (0, 32))
    # each pair of words gives another one
    first, second = rows(words(key, (2,)))
    mixed = [ufunc("bitwise_xor", first, ufunc("bitwise_xor", low, high)), ufunc("bitwise_xor", second, low)]
    return words(FUNCTIONS["stack"](mixed), (2,))


def rows(x: Sym) -> list[Sym]:
    """Take an array apart along axis 0."""
    return [part(x, 0, i, i + 1).reshape(x.shape[1:]) for i in range(x.shape[0])]
