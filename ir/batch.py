"""Graphs over a batch, as graphs: each node on one more axis, by the rules in the primitives' records.

What depends on no input with a batch is computed once, for all. The batch is the leading axis of whatever has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge.ir.build import Sym, apply_many, builder
from kernelforge.ir.graph import Graph, Value


def batch(graph: Graph, inputs: Sequence[Sym], has: Sequence[bool], size: int) -> list[Sym]:
    """Repeat ``graph`` in the active builder for each of ``size`` examples.

    Args:
        inputs: those that ``has`` marks are of shape ``(size, *shape)`` where the graph's are of ``shape``.

    Returns:
        Its outputs; which of them have a batch is what ``marks`` says.
    """
    b = builder()
    syms = dict(zip(graph.inputs, inputs, strict=True))
    for value, array in graph.consts:
        syms[value] = b.bound(value.type, array)
    having = _having(graph, has)
    for node in graph.nodes:
        given = [syms[v] for v in node.inputs]
        with b.at(node.loc):
            if any(having[v] for v in node.inputs):
                made = node.prim.batch(size, given, [having[v] for v in node.inputs], node.params)
            else:
                made = apply_many(node.prim.name, *given, **node.params)
        syms.update(zip(node.outputs, made, strict=True))
    return [syms[v] for v in graph.outputs]


def every(graph: Graph, inputs: Sequence[Sym], has: Sequence[bool], size: int) -> list[Sym]:
    """``batch``, with a batch in all outputs."""
    outs = batch(graph, inputs, has, size)
    return [leading(size, y, h) for y, h in zip(outs, marks(graph, has), strict=True)]


def marks(graph: Graph, has: Sequence[bool]) -> list[bool]:
    """Say which outputs of a graph have a batch where ``has`` says it of its inputs."""
    having = _having(graph, has)
    return [having[v] for v in graph.outputs]


def _having(graph: Graph, has: Sequence[bool]) -> dict[Value, bool]:
    having = dict(zip(graph.inputs, has, strict=True)) | {value: False for value, _ in graph.consts}
    for node in graph.nodes:
        having.update(dict.fromkeys(node.outputs, any(having[v] for v in node.inputs)))
    return having


def leading(size: int, x: Sym, has: bool) -> Sym:
    """Give a value a batch, all examples the same, where it has none."""
    return x if has else x.broadcast((size, *x.shape))
