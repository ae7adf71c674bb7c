"""How the arguments of a call reach a device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kernelforge.array import Array, ready
from kernelforge.backends.base import Backend
from kernelforge.dtypes import as_dtype
from kernelforge.errors import NumberOutOfRange
from kernelforge.ir.types import Type
from kernelforge.runtime.memory import Buffer, allocate, upload

BOOL, INT, FLOAT = np.dtype(np.bool_), np.dtype(np.int64), np.dtype(np.float64)
NUMBERS: dict[type, Type] = {bool: Type((), BOOL), int: Type((), INT, weak=True), float: Type((), FLOAT, weak=True)}
"""The types of Python numbers, whose values are not part of what is compiled."""


class Leaf:
    """How one argument reaches the device.

    Attributes:
        type: of the graph's input.
        strides: in elements; None for row-major.
        load: makes a buffer from the argument.
    """

    __slots__ = ("load", "strides", "type")

    def __init__(self, type: Type, strides: tuple[int, ...] | None, load: Callable[[Backend, Any], Buffer]) -> None:
        self.type = type
        self.strides = strides
        self.load = load


def _share(backend: Backend, x: np.ndarray[Any, Any]) -> Buffer:
    return upload(backend, x)


def _copy(backend: Backend, x: np.ndarray[Any, Any]) -> Buffer:
    array = np.array(ready(x), order="C")
    return upload(backend, array.astype(as_dtype(array.dtype), copy=False))


def _nothing(backend: Backend, x: Any) -> Buffer:
    return allocate(backend, 1)


def _buffer(backend: Backend, x: Array) -> Buffer:
    return x._buffer


@functools.cache
def number(dtype: np.dtype[Any], into: tuple[np.dtype[Any], ...] = ()) -> Callable[[Backend, Any], Buffer]:
    """Load a Python number that the function casts to each of ``into``, which must hold it."""

    def load(backend: Backend, x: Any) -> Buffer:
        for each in (dtype, *into):
            try:
                array = np.array(x, each)
            except OverflowError:
                raise NumberOutOfRange(op="call", found=x, dtype=each) from None
        return upload(backend, np.array(x, dtype) if into else array)

    return load


IN_PLACE = {_share, _buffer, *(number(kind.dtype) for kind in NUMBERS.values())}
"""The ways to reach a device that an entry goes too."""


def leaf_of(x: Any, backend: Backend) -> Leaf:
    """Say how an argument reaches the device."""
    if type(x) in NUMBERS:
        found = NUMBERS[type(x)]
        return Leaf(found, None, number(found.dtype))
    if isinstance(x, Array):
        return Leaf(Type(x.shape, x.dtype), None, _buffer)
    dtype = as_dtype(x.dtype)
    kind = Type(x.shape, dtype)
    if not x.size:
        return Leaf(kind, None, _nothing)
    if ready(x) is not x or (not x.flags.c_contiguous and not backend.limits.host):
        return Leaf(kind, None, _copy)
    strides = None if x.flags.c_contiguous else tuple(s // dtype.itemsize for s in x.strides)
    return Leaf(kind, strides, _share)
