"""The passes over graphs, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

from kernelforge.ir.graph import Graph, Kind, Node
from kernelforge.ir.passes.cse import cse
from kernelforge.ir.passes.dce import dce
from kernelforge.ir.passes.fold import fold
from kernelforge.ir.passes.hoist import hoist
from kernelforge.ir.passes.inline import inline
from kernelforge.ir.passes.invariants import invariants
from kernelforge.ir.passes.prune import prune
from kernelforge.ir.passes.simplify import simplify
from kernelforge.ir.verify import verify_graph

ROUNDS = 8
"""Passes are repeated until nothing changes, at most so often."""


class Pass(NamedTuple):
    """A rewrite of a graph, which returns the same object when it changes nothing, and why it stands where it does."""

    run: Callable[[Graph], Graph]
    reason: str


GRAPH_PASSES: tuple[Pass, ...] = (
    Pass(inline, "first: nothing can be seen through a call"),
    Pass(dce, "derivative rules make more than is asked for; no rule should spend time on it"),
    Pass(prune, "control flow keeps whole graphs alive, and loops that repeat each other become one"),
    Pass(simplify, "makes more nodes equal and more inputs constant"),
    Pass(fold, "after simplify has turned views of constants into constants"),
    Pass(cse, "after the rewrites, which write the same thing in one way"),
    Pass(dce, "what the rewrites left behind must not count as a use in the next round"),
)


def optimize(graph: Graph, verify: bool) -> Graph:
    """Run the passes until nothing changes, also on the graphs inside; ``verify`` checks the graph after each pass.

    The result is for lowering: custom derivatives and ``stop_gradient`` are gone.
    """
    for _ in range(ROUNDS):
        before = graph
        for step in GRAPH_PASSES:
            after = step.run(graph)
            if verify and after is not graph:
                verify_graph(after)
            graph = after
        graph = invariants(hoist(_inside(graph, verify)))
        if graph is before:
            break
    return graph


def _inside(graph: Graph, verify: bool) -> Graph:
    """Optimize the graphs that nodes hold."""
    done: dict[Graph, Graph] = {}  # one result for a graph that several nodes hold, or they would not be equal any more
    nodes = tuple(_held(n, verify, done) if n.prim.kind is Kind.OPAQUE else n for n in graph.nodes)
    return graph if nodes == graph.nodes else dataclasses.replace(graph, nodes=nodes)


def _held(node: Node, verify: bool, done: dict[Graph, Graph]) -> Node:
    inner: dict[str, Graph] = {}
    for name, graph in node.graphs.items():
        inner[name] = done[graph] if graph in done else done.setdefault(graph, optimize(graph, verify))
    if all(v is node.params[k] for k, v in inner.items()):
        return node
    return dataclasses.replace(node, params=MappingProxyType({**node.params, **inner}))
