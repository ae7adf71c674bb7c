"""Sliding windows: convolution is a window and a contraction, pooling a window and a reduction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from kernelforge.errors import InvalidParameter
from kernelforge.ir.build import Sym, apply
from kernelforge.ir.graph import Node, Params, Primitive
from kernelforge.ir.kernel import Expr
from kernelforge.ir.ops.rules import Array, axes, cut, ints, padded
from kernelforge.ir.ops.view import sample, strided, view


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


def _window_adjoint(ct: Sym, x: Sym, params: Params) -> Sym:
    """Sum, for each element, the cotangents of the windows that hold it.

    - Where ``ct`` is a contraction of g, which has the positions, with weights, which have the offsets, the sum moves
      into it: the gradient of a convolution is a convolution.
    - Windows that do not overlap need no sum.
    - Else the sum runs over the offsets, each a padded slice.
    """
    node = _producer(ct)
    if node is not None and node.prim.name == "contract":
        for g, w in ((0, 1), (1, 0)):
            made = _exchanged(ct, x, params, node, g, w)
            if made is not None:
                return made
    sized = list(zip(*(params[n] for n in ("axes", "sizes", "strides", "dilations")), strict=True))
    if all((size - 1) * dilation < stride for _, size, stride, dilation in sized):
        return _disjoint(ct, x, params)
    total: Sym | None = None
    for offset in itertools.product(*(range(s) for s in params["sizes"])):
        low, high, interior = [0] * x.ndim, [0] * x.ndim, [0] * x.ndim
        for (a, _, stride, dilation), i in zip(sized, offset, strict=True):
            low[a] = i * dilation
            high[a] = x.shape[a] - low[a] - ((ct.shape[a] - 1) * stride + 1)
            interior[a] = stride - 1
        counts = (*ct.shape[: x.ndim], *(1 for _ in sized))
        part = strided(ct, (*(0 for _ in x.shape), *offset), (1,) * ct.ndim, counts).reshape(ct.shape[: x.ndim])
        made = padded(part, 0.0, low, high, interior)
        total = made if total is None else total + made
    assert total is not None
    return total


def _exchanged(ct: Sym, x: Sym, params: Params, node: Node, g: int, w: int) -> Sym | None:
    """Move the sum over offsets into the contraction that made ``ct``; None where its names do not allow it.

    Along an axis with a stride, an element is reached through the offsets of one residue class alone. Each class is a
    convolution without a stride, they are channels of one contraction, and their results lie in turn. Offsets are
    filled up with zeros to as many in each class.
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
    w_names, classes = list(operand[w]), [max(map(max, operand)) + 1 + k for k in range(len(offsets))]
    inner: dict[str, list[int]] = {"sizes": [], "strides": [], "dilations": []}
    outer: dict[str, list[int]] = {"axes": list(params["axes"]), "sizes": [], "strides": [], "dilations": []}
    extents = []
    for a, o, c, size, stride, dilation in zip(
        params["axes"], offsets, classes, *(params[p] for p in ("sizes", "strides", "dilations")), strict=True
    ):
        common = math.gcd(stride, dilation)
        count = min(stride // common, size)
        each = -(-size // count)
        if (count - 1) * dilation >= stride:  # classes would reach over each other: zeros between the elements
            count, each, common = 1, size, 1
            step, apart, extent = stride, dilation, x.shape[a]
        else:
            step, apart = 1, dilation // common if each > 1 else 1
            extent = ct.shape[a] + (each - 1) * apart
        k = w_names.index(o)
        on = [int(b == k) for b in range(weights.ndim)]
        weights = padded(weights, 0.0, [0] * weights.ndim, [(count * each - size) * b for b in on])
        weights = weights.reshape((*weights.shape[:k], each, count, *weights.shape[k + 1 :]))
        w_names.insert(k + 1, c)
        extents.append(extent)
        for kept, values in ((inner, (each, step, apart)), (outer, (count, stride // step, dilation))):
            for p, value in zip(("sizes", "strides", "dilations"), values, strict=True):
                kept[p].append(value)
    spread = _from_elements(held, at, extents, {p: tuple(v) for p, v in inner.items()})
    turned = apply("flip", weights, axes=tuple(sorted(w_names.index(o) for o in offsets)))
    made = apply(
        "contract", spread, turned, x_axes=(*operand[g], *offsets), y_axes=tuple(w_names),
        out_axes=(*names[: x.ndim], *classes),
    )  # fmt: skip
    return _disjoint(made, x, {p: tuple(v) for p, v in outer.items()})


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
        lambda: [
            sample(2, 8, 7, axes=(1, 2), sizes=(3, 2), strides=(2, 1), dilations=(1, 3)),
            sample(7, axes=(0,), sizes=(2,), strides=(3,), dilations=(2,)),
        ],
    ),
)
