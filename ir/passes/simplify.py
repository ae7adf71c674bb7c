"""Local rewrites by the tables of ``algebra``, ``shapes`` and ``sums``."""

from __future__ import annotations

from kernelforge.ir.graph import Graph
from kernelforge.ir.passes import algebra, shapes, sums
from kernelforge.ir.passes.rewrite import Rules, rewrite

TABLES = (algebra.RULES, shapes.RULES, sums.RULES)
RULES: Rules = {
    name: tuple(rule for t in TABLES for rule in t.get(name, ())) for name in {k: 0 for t in TABLES for k in t}
}


def simplify(graph: Graph) -> Graph:
    """Apply the rules once to each node; what is left unused is for ``dce``."""
    return rewrite(graph, RULES)
