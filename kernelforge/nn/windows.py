"""Sliding windows: where they lie, with stride, dilation and padding, and the arrays of their elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import kernelforge.numpy as knp
from kernelforge.functions import result
from kernelforge.ir.build import apply
from kernelforge.nn.calls import Ints, each, require, valid
from kernelforge.trace import to_sym

Pairs = Sequence[tuple[int, int]]


def windows(
    x: Any,
    axes: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
) -> Any:
    """View ``x`` by windows: each of ``axes`` holds the positions, and one axis of a window's extent each is added."""
    ones = (1,) * len(axes)
    made = apply(
        "window", to_sym(x), axes=tuple(axes), sizes=tuple(sizes), strides=tuple(strides or ones),
        dilations=tuple(dilations or ones),
    )  # fmt: skip
    return result(made)


def padded(x: Any, pairs: Pairs, value: Any = 0) -> Any:
    """Pad the last axes by ``pairs`` of widths, of which negative ones take elements away."""
    lead = x.ndim - len(pairs)
    cut = tuple(slice(max(-low, 0), n - max(-high, 0)) for (low, high), n in zip(pairs, x.shape[lead:], strict=True))
    x = x[(..., *cut)]
    widths = [(0, 0)] * lead + [(max(low, 0), max(high, 0)) for low, high in pairs]
    return knp.pad(x, widths, constant_values=value)


class Sliding:
    """Windows over the last ``count`` axes, as the parameters of a convolution or pooling say.

    Attributes:
        sizes, strides, dilations: one for each axis.
        reach: extents from the first to the last element of a window.
    """

    def __init__(self, op: str, count: int, sizes: Ints, strides: Ints, dilations: Ints = 1) -> None:
        self.op, self.count = op, count
        self.sizes = each(sizes, count, op, "kernel_size")
        self.strides = each(strides, count, op, "stride")
        self.dilations = each(dilations, count, op, "dilation")
        valid(min(self.sizes, default=1) > 0, op, "kernel_size", sizes, "1 or more")
        valid(min(self.strides, default=1) > 0, op, "stride", strides, "1 or more")
        valid(min(self.dilations, default=1) > 0, op, "dilation", dilations, "1 or more")
        self.reach = tuple((size - 1) * d + 1 for size, d in zip(self.sizes, self.dilations, strict=True))

    def widths(self, padding: Ints | str) -> list[tuple[int, int]]:
        """Return the padding of each axis: a number is for both sides, ``"same"`` keeps extents, ``"valid"`` is 0."""
        if isinstance(padding, str):
            valid(padding in ("same", "valid"), self.op, "padding", padding, "numbers, same or valid")
            if padding == "valid":
                return [(0, 0)] * self.count
            strided = any(s != 1 for s in self.strides)
            valid(not strided, self.op, "padding", padding, "numbers where a stride is not 1")
            return [((r - 1) // 2, r // 2) for r in self.reach]
        pads = each(padding, self.count, self.op, "padding")
        valid(min(pads, default=0) >= 0, self.op, "padding", padding, "0 or more")
        return [(p, p) for p in pads]

    def of(self, x: Any) -> Any:
        """View ``x``, padded, by its windows."""
        axes = range(x.ndim - self.count, x.ndim)
        return windows(x, axes, self.sizes, self.strides, self.dilations)


def unbatched(x: Any, count: int, op: str) -> tuple[Any, bool]:
    """Return ``x`` with axes for batch, channels and ``count`` more, and whether that of the batch was put there."""
    x = knp.asarray(x)
    if x.ndim == count + 1:
        return x[None], True
    expected = f"{count + 2} axes: batch, channels and {count} more; or these without the batch"
    require(x.ndim == count + 2, op, x.shape, expected)
    return x, False
