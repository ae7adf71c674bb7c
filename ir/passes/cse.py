"""Merge nodes that compute the same values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.structure import exact, structure

COMMUTATIVE = frozenset({"add", "multiply", "equal", "not_equal", "bitwise_and", "bitwise_or", "bitwise_xor"})
"""Where the order of operands is of no consequence to the bit. (For maximum it is: of -0.0 and 0.0.)"""


def _key(node: Node, inputs: tuple[Value, ...]) -> Hashable:
    order = sorted(inputs, key=lambda v: v.id) if node.prim.name in COMMUTATIVE else inputs
    types = tuple(v.type for v in node.outputs)
    params = ((k, structure(v) if isinstance(v, Graph) else exact(v)) for k, v in sorted(node.params.items()))
    return (node.prim.name, tuple(order), types, *params)


def _equal_constants(graph: Graph) -> dict[Value, Value]:
    """Map constants to the first one with their bits: what is made of an array anew at each use of it is one."""
    many = Counter(value.type for value, _ in graph.consts)
    known: dict[Hashable, Value] = {}
    pairs = [(v, known.setdefault((v.type, a.tobytes()), v)) for v, a in graph.consts if many[v.type] > 1]
    return {value: first for value, first in pairs if first is not value}


def cse(graph: Graph) -> Graph:
    """Use the first of several equal nodes, and of equal constants, for all; a ``barrier`` is equal to none."""
    known: dict[Hashable, Node] = {}
    merged = _equal_constants(graph)
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
