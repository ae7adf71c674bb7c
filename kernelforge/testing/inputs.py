"""Hypothesis strategies for arguments: shapes, strides, dtypes and values that find bugs, and code for them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kernelforge.dtypes import BFLOAT16, is_float
from kernelforge.errors import InvalidParameter

Array = np.ndarray[Any, Any]
Shape = tuple[str | int, ...]
"""The extents of an argument: a name that is shared between arguments, or a number."""

EXTENTS = (1, 2, 3, 4, 0, 5, 7, 8, 9, 15, 17, 31, 33, 64, 65, 127, 130)
"""Extents around the sizes of vectors and tiles; the first ones are what a failure shrinks to."""

MOST_ELEMENTS = 1 << 14

LAYOUTS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "row-major": (lambda a: a, "{}"),
    "column-major": (np.asfortranarray, "np.asfortranarray({})"),
    "reversed": (lambda a: a[::-1].copy()[::-1], "{}[::-1].copy()[::-1]"),
    "every second": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], "np.repeat({}, 2, axis=-1)[..., ::2]"),
    "offset": (lambda a: np.concatenate([a[:1], a])[1:], "(lambda a: np.concatenate([a[:1], a])[1:])({})"),
    "broadcast": (lambda a: np.broadcast_to(a[:1], a.shape), "(lambda a: np.broadcast_to(a[:1], a.shape))({})"),
}
"""Memory layouts by name: how to make one from a row-major array, and the code for it."""


def parse_shapes(spec: str) -> list[Shape]:
    """Parse ``"(m,k) (k,n) (n,)"``: one tuple for each argument, of names and numbers.

    Raises:
        InvalidParameter: when the text is something else.
    """
    groups = re.findall(r"\(([^()]*)\)", spec)
    extents = [[e.strip() for e in g.split(",") if e.strip()] for g in groups]
    if (
        not groups
        or re.sub(r"\([^()]*\)|[\s,]", "", spec)
        or not all(e.isidentifier() or e.isdigit() for g in extents for e in g)
    ):
        raise InvalidParameter(op="check", name="shapes", found=spec, expected='for example "(m,k) (k,n) (n,)"')
    return [tuple(int(e) if e.isdigit() else e for e in g) for g in extents]


@dataclasses.dataclass(frozen=True)
class Example:
    """One array argument, drawn: regular values from ``seed`` with a few others put in."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seed: int
    scale: float
    specials: tuple[tuple[int, float], ...]
    layout: str
    low: int = 0
    high: int = 0
    unit: bool = False

    def base(self) -> Array:
        size = int(np.prod(self.shape, dtype=np.int64))
        values: Array
        if not is_float(self.dtype):
            values = np.random.default_rng(self.seed).integers(self.low, self.high + 1, size)
        elif self.unit:
            values = np.random.default_rng(self.seed).uniform(0.1, 0.9, size)
        elif self.seed == 0:
            values = np.arange(1, size + 1) * 0.5
        else:
            values = np.random.default_rng(self.seed).normal(size=size) * self.scale
        with np.errstate(over="ignore"):
            array = values.astype(self.dtype)
            for position, value in self.specials:
                array[position] = value
        return array.reshape(self.shape)

    def array(self) -> Array:
        return LAYOUTS[self.layout][0](self.base())

    def code(self) -> str:
        """Return an expression that makes the array."""
        return literal(self.base(), self.layout)

    def smooth(self, unit: bool) -> Example:
        """Return an argument of the same shape for derivatives: no specials, no ties; ``unit`` is between 0 and 1."""
        if not is_float(self.dtype):
            return self
        return dataclasses.replace(self, seed=self.seed + 1, scale=1.0, specials=(), unit=unit)


def literal(array: Array, layout: str = "row-major") -> str:
    """Return an expression that makes ``array`` exactly, in a layout."""
    name = "ml_dtypes.bfloat16" if array.dtype == BFLOAT16 else f"np.{array.dtype}"
    values = re.sub(r"\bnan\b", "np.nan", re.sub(r"\binf\b", "np.inf", repr(array.tolist())))
    shaped = f"np.array({values}, {name})"
    if array.size == 0:
        shaped = f"np.empty({array.shape}, {name})"
    return LAYOUTS[layout][1].format(shaped)


def _specials(dtype: np.dtype[Any]) -> list[float]:
    limits = np.finfo(np.float32) if dtype == BFLOAT16 else np.finfo(dtype)
    return [
        float("nan"),
        float("inf"),
        -float("inf"),
        -0.0,
        float(limits.max) * 0.99,
        float(limits.tiny),
        0.0,
        1.0,
        -1.0,
    ]


@st.composite
def extents(draw: st.DrawFn, shapes: Sequence[Shape]) -> dict[str, int]:
    """Draw an extent for each name, so that no argument grows over ``MOST_ELEMENTS``."""
    names = sorted({e for s in shapes for e in s if isinstance(e, str)})
    sizes: dict[str, int] = {}
    for name in names:
        sizes[name] = draw(st.sampled_from(EXTENTS))
    if names and draw(st.integers(0, 5)) == 5:  # nothing is what is most often forgotten
        sizes[draw(st.sampled_from(names))] = 0
    while any(np.prod(sized(s, sizes), dtype=np.int64) > MOST_ELEMENTS for s in shapes):
        largest = max(sizes, key=lambda n: sizes[n])
        sizes[largest] //= 2
    return sizes


def sized(shape: Shape, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[e] if isinstance(e, str) else e for e in shape)


@st.composite
def arrays(
    draw: st.DrawFn, shape: tuple[int, ...], dtype: np.dtype[Any], low: int, high: int, special: bool
) -> Example:
    """Draw one argument."""
    size = int(np.prod(shape, dtype=np.int64))
    seed = draw(st.integers(0, 1000))
    scale = draw(st.sampled_from((1.0, 1e-3, 30.0)))
    put: tuple[tuple[int, float], ...] = ()
    if special and size and is_float(dtype):
        values = _specials(dtype)
        entry = st.tuples(st.integers(0, size - 1), st.sampled_from(values))
        if draw(st.booleans()):  # few examples are to meet all of them
            start = draw(st.integers(0, len(values) - 1))
            put = tuple((i, values[(start + i) % len(values)]) for i in range(min(size, len(values))))
        else:
            put = tuple(draw(st.lists(entry, min_size=1, max_size=3)))
    layout = draw(st.sampled_from(tuple(LAYOUTS))) if shape else "row-major"
    return Example(shape, dtype, seed, scale, put, layout, low, high)
