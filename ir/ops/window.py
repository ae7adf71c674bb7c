"""Sliding windows: convolution is a window and a contraction, pooling a window and a reduction."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from kernelforge.errors import InvalidParameter
from kernelforge.ir.build import Sym, apply
from kernelforge.ir.graph import Node, Params, Primitive
from kernelforge.ir.kernel import Expr
from kernelforge.ir.ops.rules import Array, axes, behind, cut, ints, padded
from kernelforge.ir.ops.view import sample, strided, view

FILLED = 1.25
"""How many times the offsets of a window there are with zeros between them, from which on classes are apart."""

CHANNELS = 32
"""Channels that each class must have then, to fill tiles of its own."""


def _window_shape(shape: tuple[int, ...], params: Params) -> tuple[int, ...]:
    listed = axes("window", params, len(shape), ordered=False)
    sizes, strides, dilations = (
        ints("window", params, name, len(listed), least=1) for name in ("sizes", "strides", "dilations")
    )
    out = list(shape)
    for a, size, stride, dilation in zip(listed, sizes, strides, dilations, strict=True):
        out[a] = (shape[a] - (size - 1) * dilation - 1) // stride + 1
        if shape[a] < (size - 1) * dilation + 1:
            expected = f"windows within the extent {shape[a]} of axis {a}; pad first"
            raise InvalidParameter(op="window", name="sizes", found=sizes, expected=expected)
    return (*out, *sizes)


def _window_index(index: Sequence[Expr], shape: tuple[int, ...], out: tuple[int, ...], params: Params) -> list[Expr]:
    at = list(index[: len(shape)])
    for k, a in enumerate(params["axes"]):
        at[a] = at[a] * params["strides"][k] + index[len(shape) + k] * params["dilations"][k]
    return at


def _window_numpy(x: Array, params: Params) -> Array:
    out = _window_shape(x.shape, params)
    strides = list(x.strides)
    for k, a in enumerate(params["axes"]):
        strides[a] *= params["strides"][k]
    within = [x.strides[a] * d for a, d in zip(params["axes"], params["dilations"], strict=True)]
    return np.lib.stride_tricks.as_strided(x, out, [*strides, *within], writeable=False)


def _from_elements(g: Sym, at: Sequence[int], extents: Sequence[int], params: Params) -> Sym:
    """View ``g``, whose axes ``at`` are the window's positions, from the elements' side.

    Element j reads, for offset i, g[(j - i*dilation) / stride], or 0 where no position reaches. The axes ``at`` get
    ``extents``; the offsets stand at the end and run backwards: entry size-1-i belongs to offset i.
    """
    low, high, interior = [0] * g.ndim, [0] * g.ndim, [0] * g.ndim
    for a, n, size, stride, dilation in zip(
        at, extents, *(params[p] for p in ("sizes", "strides", "dilations")), strict=True
    ):
        low[a] = (size - 1) * dilation
        high[a] = n - 1 - (g.shape[a] - 1) * stride
        interior[a] = stride - 1
    made = padded(g, 0.0, low, high, interior)
    rest = {"sizes": params["sizes"], "strides": (1,) * len(at), "dilations": params["dilations"]}
    return apply("window", made, axes=tuple(at), **rest)


def _producer(x: Sym) -> Node | None:
    return next((n for n in reversed(x.builder.nodes) if x.value in n.outputs), None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Classes:
    """The offsets of a window along one axis, by the remainder that they leave to the stride.

    An element is reached through the offsets of one class alone: for these the window has no stride.

    Attributes:
        count: how many classes there are; 1 where they would reach over each other, with zeros put between positions.
        each: offsets in each, where the last ones are filled up.
        step: the stride left inside a class.
        apart: positions from one offset of a class to the next.
        extent: elements that a class reaches.
        stride: elements from one that a class reaches to the next.
    """

    count: int
    each: int
    step: int
    apart: int
    extent: int
    stride: int


def _classes(positions: int, extent: int, size: int, stride: int, dilation: int) -> _Classes:
    common = math.gcd(stride, dilation)
    count = min(stride // common, size)
    each = -(-size // count)
    if (count - 1) * dilation >= stride:
        return _Classes(1, size, stride, dilation, extent, 1)
    apart = dilation // common if each > 1 else 1
    return _Classes(count, each, 1, apart, positions + (each - 1) * apart, stride)


def _split_offsets(x: Sym, axis: int, size: int, c: _Classes) -> Sym:
    """Make two axes of an axis of offsets: those of a class, and the classes."""
    none, on = [0] * x.ndim, [int(b == axis) for b in range(x.ndim)]
    x = padded(x, 0.0, none, [(c.count * c.each - size) * b for b in on])
    return x.reshape((*x.shape[:axis], c.each, c.count, *x.shape[axis + 1 :]))


def _window_adjoint(ct: Sym, x: Sym, params: Params) -> Sym:
    """Sum, for each element, the cotangents of the windows that hold it.

    - Where ``ct`` is a contraction of g, which has the positions, with weights, which have the offsets, the sum moves
      into it: the gradient of a convolution is a convolution.
    - Windows that do not overlap need no sum.
    - Else the sum runs over the offsets of a class, each a padded slice.
    """
    axes_ = params["axes"]
    sized = [params[n] for n in ("sizes", "strides", "dilations")]
    found = [_classes(ct.shape[a], x.shape[a], *given) for a, *given in zip(axes_, *sized, strict=True)]
    outer = {"axes": axes_, "sizes": [c.count for c in found], "strides": [c.stride for c in found]}
    outer["dilations"] = [d if c.count > 1 else 1 for c, d in zip(found, sized[2], strict=True)]
    node = _producer(ct)
    if node is not None and node.prim.name == "contract":
        for g, w in ((0, 1), (1, 0)):
            made = _exchanged(ct, x, params, found, node, g, w)
            if made is not None:
                return _disjoint(made, x, outer)
    for k, (size, c) in enumerate(zip(params["sizes"], found, strict=True)):
        ct = _split_offsets(ct, x.ndim + 2 * k, size, c)
    lead, classes = ct.shape[: x.ndim], tuple(c.count for c in found)
    total: Sym | None = None
    for offset in itertools.product(*(range(c.each) for c in found)):
        starts = [0] * x.ndim + [n for i in offset for n in (i, 0)]
        counts = (*lead, *(n for c in classes for n in (1, c)))
        part = strided(ct, starts, (1,) * ct.ndim, counts).reshape((*lead, *classes))
        low, high, interior = [0] * part.ndim, [0] * part.ndim, [0] * part.ndim
        for a, c, i in zip(axes_, found, offset, strict=True):
            low[a] = i * c.apart
            high[a] = c.extent - low[a] - ((lead[a] - 1) * c.step + 1)
            interior[a] = c.step - 1
        made = padded(part, 0.0, low, high, interior)
        total = made if total is None else total + made
    assert total is not None
    return _disjoint(total, x, outer)


def _exchanged(ct: Sym, x: Sym, params: Params, found: Sequence[_Classes], node: Node, g: int, w: int) -> Sym | None:
    """Move the sum over offsets into the contraction that made ``ct``; None where its names do not allow it.

    Each class is a convolution without a stride. They are channels of one contraction, in which zeros fill up offsets;
    or each has its own, where that saves much and there are channels enough.
    """
    names = node.params["out_axes"]
    operand = (node.params["x_axes"], node.params["y_axes"])
    positions = [names[a] for a in params["axes"]]
    offsets = list(names[x.ndim :])
    if any(p not in operand[g] or p in operand[w] for p in positions):
        return None
    if any(o in operand[g] or o not in operand[w] for o in offsets):
        return None
    held, weights = (Sym(ct.builder, node.inputs[i]) for i in (g, w))
    at = [operand[g].index(p) for p in positions]

    def contracted(weights: Sym, w_names: Sequence[int], classes: Sequence[int], each: Sequence[int]) -> Sym:
        """Contract ``each`` offsets of a class."""
        inner = {"sizes": tuple(each), "strides": tuple(c.step for c in found)}
        inner["dilations"] = tuple(c.apart for c in found)
        extents = [c.extent - (c.each - count) * c.apart for c, count in zip(found, each, strict=True)]
        spread = _from_elements(held, at, extents, inner)
        turned = apply("flip", weights, axes=tuple(sorted(w_names.index(o) for o in offsets)))
        return apply(
            "contract", spread, turned, x_axes=(*operand[g], *offsets), y_axes=tuple(w_names),
            out_axes=(*names[: x.ndim], *classes),
        )  # fmt: skip

    def apart(*chosen: int) -> Sym:
        """Contract the classes that begin with those ``chosen``, and stack them."""
        if len(chosen) < len(found):
            parts = [apart(*chosen, k) for k in range(found[len(chosen)].count)]
            return parts[0] if len(parts) == 1 else apply("concatenate", *parts, axis=x.ndim + len(chosen))
        each = [-(-(size - k) // c.count) for size, k, c in zip(params["sizes"], chosen, found, strict=True)]
        starts, steps, counts = [0] * weights.ndim, [1] * weights.ndim, list(weights.shape)
        missing = [0] * x.ndim
        for o, a, k, c, count in zip(offsets, params["axes"], chosen, found, each, strict=True):
            on = operand[w].index(o)
            starts[on], steps[on], counts[on] = k, c.count, count
            missing[a] = (c.each - count) * c.apart
        made = contracted(strided(weights, starts, steps, counts), operand[w], (), each)
        made = padded(made, 0.0, [0] * x.ndim, missing)
        return made.reshape((*made.shape, *[1] * len(found)))

    free = set(names[: x.ndim]) - set(operand[g])
    channels = math.prod(n for n, name in zip(weights.shape, operand[w], strict=True) if name in free)
    filled = math.prod(c.count * c.each for c in found)
    if channels >= CHANNELS and filled >= FILLED * math.prod(params["sizes"]):
        return apart()
    w_names, classes = list(operand[w]), [max(map(max, operand)) + 1 + k for k in range(len(offsets))]
    for o, new, size, c in zip(offsets, classes, params["sizes"], found, strict=True):
        k = w_names.index(o)
        weights = _split_offsets(weights, k, size, c)
        w_names.insert(k + 1, new)
    return contracted(weights, w_names, classes, [c.each for c in found])


def _disjoint(ct: Sym, x: Sym, params: Params) -> Sym:
    """Put windows that do not overlap back in their places."""
    for a, size, stride, dilation in zip(*(params[p] for p in ("axes", "sizes", "strides", "dilations")), strict=True):
        count, last = ct.shape[a], x.ndim  # the first of the axes of offsets still there
        order = [b for b in range(ct.ndim) if b != last]
        order.insert(a + 1, last)
        ct = ct.transpose(order)
        none, on = [0] * ct.ndim, [int(b == a + 1) for b in range(ct.ndim)]
        spread = (size - 1) * dilation + 1
        ct = padded(ct, 0.0, none, [(stride - spread) * o for o in on], [(dilation - 1) * o for o in on])
        ct = ct.reshape((*ct.shape[:a], count * stride, *ct.shape[a + 2 :]))
        over = max(0, count * stride - x.shape[a])
        ct = cut(ct, a, 0, count * stride - over)
        none, on = [0] * ct.ndim, [int(b == a) for b in range(ct.ndim)]
        ct = padded(ct, 0.0, none, [(x.shape[a] - ct.shape[a]) * o for o in on])
    return ct


PRIMITIVES: tuple[Primitive, ...] = (
    view(
        "window",
        "Sliding windows over the listed axes; the offsets within a window are new axes at the end.",
        ("axes", "sizes", "strides", "dilations"),
        _window_shape,
        _window_numpy,
        _window_index,
        _window_adjoint,
        lambda x, p: apply("window", x, **{**p, "axes": behind(p["axes"])}),
        lambda: [
            sample(2, 8, 7, axes=(1, 2), sizes=(3, 2), strides=(2, 1), dilations=(1, 3)),
            sample(7, axes=(0,), sizes=(2,), strides=(3,), dilations=(2,)),
        ],
    ),
)
