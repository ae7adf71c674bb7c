"""Which nodes of a graph belong to no kernel, as every reader computes them: views, and what is made of nothing."""

from __future__ import annotations

import math

from kernelforge.ir.cost import COSTLY, FREE_NODES, RECOMPUTE
from kernelforge.ir.graph import Graph, Kind, Node, Value


def free_nodes(graph: Graph) -> dict[Node, int]:
    """Return the nodes that every reader repeats, with how many nodes each stands for.

    They are views of one value, and what ``FREE_NODES`` at most make of constants, counters, scalars and random bits;
    but for functions whose results are used for many more elements than they have.
    """
    free: dict[Node, int] = {}
    weight: dict[Value, int] = {v: 0 for v in graph.inputs if v.type.size == 1}
    # views that choose among several values, behind a value, as far as free nodes go
    choices: dict[Value, int] = {}
    used = _used(graph)
    for node in graph.nodes:
        if node.prim.name == "random_bits":
            weight[node.output] = free[node] = 1
        elif node.prim.kind is Kind.MAP and all(v in weight for v in node.inputs):
            total = 1 + sum(weight[v] for v in node.inputs)
            size = node.output.type.size
            dear = node.prim.name in COSTLY and 1 < size < used.get(node.output, 0) // RECOMPUTE
            if total <= FREE_NODES and not dear:
                weight[node.output] = free[node] = total
        elif node.prim.kind is Kind.VIEW and sum(v.type.size > 1 for v in node.inputs) <= 1:
            behind = sum(choices.get(v, 0) for v in node.inputs) + (len(node.inputs) > 1)
            if behind > FREE_NODES:
                continue
            free[node], choices[node.output] = 0, behind
            if all(v in weight for v in node.inputs):
                weight[node.output] = sum(weight[v] for v in node.inputs)
    return free


def repeats(node: Node) -> int:
    """Return in how many rows of its result a view repeats what it reads, of which the last axis is another one."""
    if node.prim.name != "broadcast":
        return 1
    (source,), target = node.inputs, node.output.type.shape
    shape = (*(1,) * (len(target) - source.type.ndim), *source.type.shape)
    last = max((k for k, n in enumerate(shape) if n > 1), default=0)
    return math.prod(n for n, own in zip(target[:last], shape[:last], strict=True) if own == 1)


def _used(graph: Graph) -> dict[Value, int]:
    """Return of how many elements the largest array is that views and maps make of each value."""
    used: dict[Value, int] = {}
    for node in reversed(graph.nodes):
        if node.prim.kind in (Kind.MAP, Kind.VIEW):
            most = max(max(v.type.size, used.get(v, 0)) for v in node.outputs)
            used.update({v: max(most, used.get(v, 0)) for v in node.inputs})
    return used
