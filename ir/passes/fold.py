"""Compute at compile time what depends on small constants only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernelforge.ir.build import Sym, apply
from kernelforge.ir.graph import Graph, Kind, Node, Value
from kernelforge.ir.passes.rewrite import Rewriter, rewrite

LARGEST = 64
"""Arrays with more elements are left to the device."""

Array = np.ndarray[Any, Any]


def _literal(array: Array) -> bool | int | float | None:
    """Return the element of an array that has the same bits everywhere."""
    if array.size == 0:
        return None
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
    if (raw != raw[0]).any():
        return None
    first = array.reshape(-1)[0]
    if array.dtype.kind == "b":
        return bool(first)
    return int(first) if array.dtype.kind in "iu" else float(first)


def _known(r: Rewriter, value: Value) -> Array | None:
    if value.type.size > LARGEST:
        return None
    c = r.uniform(value)
    if c is not None:
        with np.errstate(over="ignore"):
            return np.full(value.type.shape, c, value.type.dtype)
    return r.arrays.get(value)


def _compute(node: Node, arrays: list[Array]) -> Array:
    with np.errstate(all="ignore"):
        (made,) = node.prim.numpy(arrays, node.params)
    return made


def _uniform_map(r: Rewriter, node: Node) -> Sym | None:
    """A map of uniform inputs is uniform, whatever its size."""
    out = node.output.type
    if node.prim.kind is not Kind.MAP or any(v.type.shape != out.shape for v in node.inputs):
        return None
    values = [r.uniform(v) for v in node.inputs]
    if any(v is None for v in values):
        return None
    with np.errstate(over="ignore"):
        elements = [np.full((), c, v.type.dtype) for c, v in zip(values, node.inputs, strict=True)]
    return apply("full", value=_literal(_compute(node, elements)), shape=out.shape, dtype=out.name)


def _small(r: Rewriter, node: Node) -> Sym | None:
    """A node of small constants becomes a constant, if that is not larger than they are, or a ``full``."""
    out = node.output.type
    arrays = [_known(r, v) for v in node.inputs]
    if out.size > LARGEST or any(a is None for a in arrays):
        return None
    made = _compute(node, [a for a in arrays if a is not None])
    value = _literal(made)
    if value is not None:
        return apply("full", value=value, shape=out.shape, dtype=out.name)
    if made.size > max(
        (a.size for v, a in zip(node.inputs, arrays, strict=True) if a is not None and v in r.arrays), default=0
    ):
        return None
    bound = np.array(made, out.dtype, order="C")
    bound.flags.writeable = False
    return r.bind(bound)


def _counter(r: Rewriter, node: Node) -> Sym | None:
    """A constant that counts, or says where one counter has reached another, need not be read from memory."""
    if node.prim.kind not in (Kind.MAP, Kind.VIEW):
        return None
    found = {v: made for v in node.inputs if v in r.arrays and (made := _counted(r.arrays[v])) is not None}
    return apply(node.prim.name, *(found.get(v, r.sym(v)) for v in node.inputs), **node.params) if found else None


def _counted(array: Array) -> Sym | None:
    shape = array.shape
    if array.dtype == np.int64:
        walked = [a for a, n in enumerate(shape) if n > 1]
        if len(walked) != 1 or not array.size:
            return None
        flat = array.reshape(-1)
        steps = np.diff(flat)  # modulo 2**64, as the counter counts
        if (steps != steps[0]).any():
            return None
        start, step = int(flat[0]), int(steps[0])
        return apply("iota", shape=shape, axis=walked[0], dtype="i64") * step + start
    if array.dtype == np.bool_ and array.ndim >= 2 and min(shape[-2:]) > 1 and math.prod(shape[:-2]) == 1:
        square = array.reshape(shape[-2:])
        reached = int(square[0].sum()) - 1 if square[0].any() else -int(square.any(axis=1).argmax())
        if (
            not square.any()
            or square.all()
            or not np.array_equal(square, np.tri(array.shape[-2], array.shape[-1], reached, dtype=bool))
        ):
            return None
        axes = [apply("iota", shape=shape, axis=array.ndim - 2 + k, dtype="i64") for k in (0, 1)]
        return apply("greater_equal", axes[0] + reached, axes[1])
    return None


def _fold(r: Rewriter, node: Node) -> Sym | None:
    if node.prim.kind is Kind.OPAQUE or not node.inputs or node.prim.name == "barrier":
        return None
    for rule in (_uniform_map, _small, _counter):
        made = rule(r, node)
        if made is not None:
            return made
    return None


def fold(graph: Graph) -> Graph:
    """Replace nodes whose inputs are ``full`` or small constants by what they compute."""
    return rewrite(graph, {"": (_fold,)})
