"""How the arguments of a call reach a device."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernelforge.array import GONE, Array, ready
from kernelforge.backends.base import Backend
from kernelforge.dtypes import as_dtype
from kernelforge.errors import CannotDonate, NumberOutOfRange
from kernelforge.ir.types import Type
from kernelforge.runtime.memory import Buffer, Owned, allocate, download, upload

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


def _later(backend: Backend, x: Array) -> Buffer:
    """Leave a donated array as it is until all else is loaded; see ``given``."""
    return GONE


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


IN_PLACE = {_share, _buffer, _later, *(number(kind.dtype) for kind in NUMBERS.values())}
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


def donated(leaf: Leaf) -> bool:
    """Let an argument be taken; say whether that is any use: numbers have no memory."""
    if leaf.load is _buffer:
        leaf.load = _later
    return leaf.load in (_later, _share, _copy)


def _references() -> int:
    only = object()
    return sys.getrefcount(only)


ALONE = _references()
"""What ``sys.getrefcount`` counts for an object that one variable has."""


def given(x: Array) -> Buffer:
    """Take the memory of a donated array; a copy where something else sees it or is reading it.

    Raises:
        DonatedArray: when it was donated before.
    """
    buffer = x.give()
    if isinstance(buffer, Owned) and sys.getrefcount(buffer) == ALONE:
        return buffer
    array = download(buffer, 0, x.shape, x.dtype)
    if not buffer.backend.limits.host:
        return upload(buffer.backend, array)
    copy = allocate(buffer.backend, x.nbytes)
    download(copy, 0, x.shape, x.dtype)[...] = array
    return copy


def check_donated(leaves: Sequence[Any], given: Mapping[int, str]) -> None:
    """Check that donated arguments may be written to, and that no other argument shares their memory.

    Args:
        given: names of the donated ones.

    Raises:
        CannotDonate: where one may not, or another does.
    """
    spans = sorted((*_span(x), k) for k, x in enumerate(leaves) if isinstance(x, Array | np.ndarray) and x.size)
    reach, farthest = 0, -1
    for low, high, k in spans:
        if low < reach and (k in given or farthest in given):
            one, other = (k, farthest) if k in given else (farthest, k)
            raise CannotDonate(name=given[one], problem=f"shares memory with {given.get(other, 'another argument')}")
        if high > reach:
            reach, farthest = high, k
    for k in given:
        if isinstance(leaves[k], np.ndarray) and not leaves[k].flags.writeable:
            raise CannotDonate(name=given[k], problem="is read-only")


def _span(x: Array | np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return the addresses of an array's memory; on another device than the host, something as unique."""
    if isinstance(x, Array):
        if not x._buffer.backend.limits.host:
            return id(x._buffer), id(x._buffer) + 1
        x = download(x._buffer, 0, x.shape, x.dtype)
    return np.lib.array_utils.byte_bounds(x)
