"""Local rewrites by the tables of ``algebra`` and ``shapes``."""

from __future__ import annotations

from kernelforge.ir.graph import Graph
from kernelforge.ir.passes import algebra, shapes
from kernelforge.ir.passes.rewrite import Rules, rewrite

RULES: Rules = {
    name: (*algebra.RULES.get(name, ()), *shapes.RULES.get(name, ())) for name in {**algebra.RULES, **shapes.RULES}
}


def simplify(graph: Graph) -> Graph:
    """Apply the rules once to each node; what is left unused is for ``dce``."""
    return rewrite(graph, RULES)
