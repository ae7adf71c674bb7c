"""Merge nodes that compute the same values."""

from __future__ import annotations

from collections.abc import Hashable

from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.structure import exact

COMMUTATIVE = frozenset({"add", "multiply", "equal", "not_equal", "bitwise_and", "bitwise_or", "bitwise_xor"})
"""Where the order of operands is of no consequence to the bit. (For maximum it is: of -0.0 and 0.0.)"""


def _key(node: Node, inputs: tuple[Value, ...]) -> Hashable:
    order = sorted(inputs, key=lambda v: v.id) if node.prim.name in COMMUTATIVE else inputs
    types = tuple(v.type for v in node.outputs)
    return (node.prim.name, tuple(order), types, *((k, exact(v)) for k, v in sorted(node.params.items())))


def cse(graph: Graph) -> Graph:
    """Use the first of several equal nodes for all; a ``barrier`` is equal to none."""
    known: dict[Hashable, Node] = {}
    merged: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(merged.get(v, v) for v in node.inputs)
        if inputs != node.inputs:
            node = Node(node.prim, inputs, node.params, node.outputs, node.loc)
        first = node if node.prim.name == "barrier" else known.setdefault(_key(node, inputs), node)
        if first is node:
            nodes.append(node)
        else:
            merged.update(zip(node.outputs, first.outputs, strict=True))
    if not merged:
        return graph
    return Graph(graph.inputs, tuple(nodes), tuple(merged.get(v, v) for v in graph.outputs), graph.consts)
