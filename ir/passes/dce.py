"""Drop what no output depends on."""

from __future__ import annotations

from kernelforge.ir.graph import Graph, Node


def dce(graph: Graph) -> Graph:
    """Keep the nodes and constants that outputs depend on, and all inputs."""
    live = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not live.isdisjoint(node.outputs):
            kept.append(node)
            live.update(node.inputs)
    consts = tuple(c for c in graph.consts if c[0] in live)
    if len(kept) == len(graph.nodes) and len(consts) == len(graph.consts):
        return graph
    return Graph(graph.inputs, tuple(reversed(kept)), graph.outputs, consts)
