"""The type of a value in the graph IR: shape and dtype."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from kernelforge.dtypes import short


@dataclasses.dataclass(frozen=True, slots=True)
class Type:
    """Shape, in elements, and dtype of an array.

    ``weak`` marks the type of a Python number: in promotion it counts by its kind only, as in NumPy 2.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    weak: bool = False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def name(self) -> str:
        """Short name of the dtype (``f32``)."""
        return short(self.dtype)

    def __str__(self) -> str:
        weak = "~" if self.weak else ""
        return f"{weak}{self.name}[{','.join(map(str, self.shape))}]"


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous array."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that arrays of these shapes broadcast to; unlike NumPy's, of any rank and number of elements.

    Raises:
        ValueError: when they do not broadcast.
    """
    ndim = max(map(len, shapes), default=0)
    shape = []
    for extents in zip(*((1,) * (ndim - len(s)) + tuple(s) for s in shapes), strict=True):
        wanted = {n for n in extents if n != 1} or {1}
        if len(wanted) > 1:
            raise ValueError(f"shapes {shapes} do not broadcast")
        shape.append(wanted.pop())
    return tuple(shape)
