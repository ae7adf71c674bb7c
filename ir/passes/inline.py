"""Put the graphs of calls in their place."""

from __future__ import annotations

from kernelforge.ir.build import Sym
from kernelforge.ir.graph import Graph, Node
from kernelforge.ir.passes.rewrite import Rewriter, rewrite


def _call(r: Rewriter, node: Node) -> list[Sym]:
    return r.inline(node.params["graph"], [r.sym(v) for v in node.inputs])


def inline(graph: Graph) -> Graph:
    """Replace every ``call`` by the nodes of its graph; a custom derivative is lost, so differentiate first."""
    return rewrite(graph, {"call": (_call,)})
