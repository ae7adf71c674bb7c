"""Compute at compile time what depends on small constants only."""

from __future__ import annotations

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


def _fold(r: Rewriter, node: Node) -> Sym | None:
    if node.prim.kind is Kind.OPAQUE or not node.inputs or node.prim.name == "barrier":
        return None
    return _uniform_map(r, node) or _small(r, node)


def fold(graph: Graph) -> Graph:
    """Replace nodes whose inputs are ``full`` or small constants by what they compute."""
    return rewrite(graph, {"": (_fold,)})
