"""Convolutions: sliding windows and a contraction; transposed ones are the adjoint. Unfold and fold are the same pair.

As in PyTorch, what is called a convolution is a correlation: the kernel is not flipped, but with ``flip=True`` it is,
which is convolution as mathematics has it.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from typing import Any

import kernelforge.numpy as knp
from kernelforge.nn.calls import Function, Ints, each, function, require, valid
from kernelforge.nn.windows import Sliding, padded, unbatched
from kernelforge.transforms import vjp

Fn = Callable[..., Any]
STATIC = ("stride", "padding", "dilation", "groups", "flip")


def _weights(weight: Any, flip: bool, count: int, op: str) -> Any:
    w = knp.asarray(weight)
    require(w.ndim == count + 2, op, w.shape, f"a weight of {count + 2} axes: two for channels and {count} more")
    return knp.flip(w, tuple(range(2, w.ndim))) if flip else w


def _correlated(x: Any, w: Any, sliding: Sliding, padding: Ints | str, groups: int) -> Any:
    """Contract the windows of ``x`` (batch, channels, ...) with ``w`` (outputs, channels of a group, ...)."""
    op, count = sliding.op, sliding.count
    valid(groups > 0 and w.shape[0] % groups == 0, op, "groups", groups, f"a divisor of the {w.shape[0]} outputs")
    expected = f"{w.shape[1] * groups} channels in the input, axis 1: {groups} times those of the weight"
    require(x.shape[1] == w.shape[1] * groups, op, f"{x.shape} and {w.shape}", expected)
    x = padded(x, sliding.widths(padding))
    reached = all(n >= r for n, r in zip(x.shape[2:], sliding.reach, strict=True))
    require(reached, op, f"{x.shape} and {w.shape}", "an input, padded, that the kernel fits in")
    places, offsets = string.ascii_uppercase[:count], string.ascii_uppercase[count : 2 * count]
    if groups == 1:
        return knp.einsum(f"nc{places}{offsets},oc{offsets}->no{places}", sliding.of(x), w)
    apart = x.reshape((x.shape[0], groups, w.shape[1], *x.shape[2:]))
    kernels = w.reshape((groups, w.shape[0] // groups, *w.shape[1:]))
    made = knp.einsum(f"ngc{places}{offsets},goc{offsets}->ngo{places}", sliding.of(apart), kernels)
    return made.reshape((x.shape[0], w.shape[0], *made.shape[3:]))


def _finished(made: Any, bias: Any, single: bool) -> Any:
    if bias is not None:
        made = made + knp.asarray(bias).reshape((-1, *(1,) * (made.ndim - 2)))
    return made[0] if single else made


def _conv(count: int) -> Fn:
    op = f"conv{count}d"

    def conv(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        flip: bool = False,
    ) -> Any:
        x, single = unbatched(input, count, op)
        w = _weights(weight, flip, count, op)
        sliding = Sliding(op, count, w.shape[2:], stride, dilation)
        return _finished(_correlated(x, w, sliding, padding, groups), bias, single)

    conv.__name__ = conv.__qualname__ = op
    conv.__doc__ = f"""Correlate with a kernel over the last axes, {count} of them.

    Args:
        input: of shape (batch, channels, ...), or without the batch.
        weight: of shape (outputs, channels // groups, ...).
        bias: of shape (outputs,).
        padding: numbers of zeros on both sides; or ``"valid"``, none, or ``"same"``, which keeps extents.
        groups: input and outputs are split in as many groups, each of which sees its own channels only.
        flip: flip the kernel: convolution as mathematics has it.
    """
    return Function(conv, STATIC, None)


def _conv_transpose(count: int) -> Fn:
    op = f"conv_transpose{count}d"

    def conv_transpose(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        dilation: Ints = 1,
        flip: bool = False,
    ) -> Any:
        x, single = unbatched(input, count, op)
        w = _weights(weight, flip, count, op)
        sliding = Sliding(op, count, w.shape[2:], stride, dilation)
        extra = each(output_padding, count, op, "output_padding")
        small = all(0 <= e < max(s, d) for e, s, d in zip(extra, sliding.strides, sliding.dilations, strict=True))
        valid(small, op, "output_padding", output_padding, "less than stride or dilation")
        pads = [low + high for low, high in sliding.widths(padding)]
        numbers = zip(x.shape[2:], sliding.strides, pads, sliding.reach, extra, strict=True)
        extents = tuple((n - 1) * s - p + r + e for n, s, p, r, e in numbers)
        require(x.shape[1] == w.shape[0], op, f"{x.shape} and {w.shape}", "as many channels in both, axes 1 and 0")
        require(min(extents, default=1) > 0, op, f"{x.shape} and {w.shape}", "an output of at least one element")
        kept = (..., *(slice(n) for n in x.shape[2:]))
        zeros = knp.zeros((x.shape[0], w.shape[1] * groups, *extents), x.dtype)
        _, pull = vjp(lambda z: _correlated(z, w, sliding, padding, groups)[kept], zeros)
        return _finished(pull(x)[0], bias, single)

    conv_transpose.__name__ = conv_transpose.__qualname__ = op
    conv_transpose.__doc__ = f"""The adjoint of ``conv{count}d`` of the same parameters: what its backward pass does.

    Args:
        input: of shape (batch, channels, ...), or without the batch.
        weight: of shape (channels, outputs // groups, ...).
        bias: of shape (outputs,).
        output_padding: how much longer the output is than the least that gives the input's extents.
        flip: flip the kernel.
    """
    return Function(conv_transpose, (*STATIC, "output_padding"), None)


conv1d, conv2d, conv3d = (_conv(count) for count in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (_conv_transpose(count) for count in (1, 2, 3))


@function("pad")
def conv_tbc(input: Any, weight: Any, bias: Any, pad: int = 0) -> Any:
    """``conv1d`` of sequences whose axes are (time, batch, channels), with a weight (offsets, channels, outputs)."""
    x, w = knp.asarray(input), knp.asarray(weight)
    require(x.ndim == w.ndim == 3, "conv_tbc", f"{x.shape} and {w.shape}", "three axes in both")
    made = conv1d(x.transpose((1, 2, 0)), w.transpose((2, 1, 0)), bias, padding=pad)
    return made.transpose((2, 0, 1))


def _blocks(x: Any, sliding: Sliding, padding: Ints) -> Any:
    """Lay the windows of (batch, channels, ...) out as columns (batch, channels * window, positions)."""
    count = sliding.count
    seen = sliding.of(padded(x, sliding.widths(padding)))
    lead, places, offsets = ([*range(a, b)] for a, b in ((0, 2), (2, 2 + count), (2 + count, 2 + 2 * count)))
    moved = seen.transpose([*lead, *offsets, *places])
    return moved.reshape((x.shape[0], x.shape[1] * math.prod(sliding.sizes), math.prod(moved.shape[2 + count :])))


@function("kernel_size", "dilation", "padding", "stride")
def unfold(input: Any, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1) -> Any:
    """Lay out the blocks of images (batch, channels, height, width) as columns: (batch, channels * block, blocks)."""
    x, single = unbatched(input, 2, "unfold")
    made = _blocks(x, Sliding("unfold", 2, kernel_size, stride, dilation), padding)
    return made[0] if single else made


@function("output_size", "kernel_size", "dilation", "padding", "stride")
def fold(
    input: Any, output_size: Ints, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1
) -> Any:
    """Add the columns of ``unfold`` up where their blocks lie in images of ``output_size``: its adjoint."""
    x = knp.asarray(input)
    columns = x if x.ndim == 3 else x[None]
    sliding = Sliding("fold", 2, kernel_size, stride, dilation)
    block = math.prod(sliding.sizes)
    fits = columns.ndim == 3 and columns.shape[1] % block == 0
    require(fits, "fold", x.shape, f"(batch, channels * {block}, blocks), or without the batch")
    size = each(output_size, 2, "fold", "output_size")
    zeros = knp.zeros((columns.shape[0], columns.shape[1] // block, *size), x.dtype)
    blocks, pull = vjp(lambda z: _blocks(z, sliding, padding), zeros)
    require(blocks.shape == columns.shape, "fold", x.shape, f"{blocks.shape[1:]} after the batch, as unfold gives")
    made = pull(columns)[0]
    return made if x.ndim == 3 else made[0]
