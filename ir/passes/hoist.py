"""Make the constants of control flow its inputs: a body that holds none may be one kernel with what repeats it.

They come from calls in a body, as of ``np.linalg.solve``, which nothing sees through while it is traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from kernelforge.ir.graph import Graph, Node, Value

Lift = Callable[[Graph], list[Value]]


def hoist(graph: Graph) -> Graph:
    """Give the constants of the graphs that nodes hold to ``graph`` itself."""
    if not any(inner.consts for n in graph.nodes for inner in n.graphs.values()):
        return graph
    number = graph.unused
    consts: dict[Value, tuple[Value, np.ndarray[Any, Any]]] = {}

    def lift(inner: Graph) -> list[Value]:
        for value, array in inner.consts:
            # one for all nodes that hold it, or scans that repeat each other would not be equal any more
            consts.setdefault(value, (Value(number + len(consts), value.type), array))
        return [consts[value][0] for value, _ in inner.consts]

    nodes = tuple(_RULES[n.prim.name](n, lift) if n.prim.name in _RULES else n for n in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes, consts=(*graph.consts, *consts.values()))


def _given(graph: Graph, before: Sequence[Value] = (), after: Sequence[Value] = ()) -> Graph:
    """Put the constants of a graph before its inputs, between those that it ignores."""
    inputs = (*before, *(v for v, _ in graph.consts), *after, *graph.inputs)
    return Graph(inputs, graph.nodes, graph.outputs)


def _with(node: Node, inputs: Sequence[Value], **params: object) -> Node:
    return dataclasses.replace(node, inputs=tuple(inputs), params=MappingProxyType({**node.params, **params}))


def _scan(node: Node, lift: Lift) -> Node:
    body = node.params["body"]
    lifted = lift(body)
    return _with(node, [*lifted, *node.inputs], body=_given(body), consts=node.params["consts"] + len(lifted))


def _while(node: Node, lift: Lift) -> Node:
    cond, body, n, m = (node.params[p] for p in ("cond", "body", "cond_consts", "body_consts"))
    tested, used = lift(cond), lift(body)
    inputs = [*tested, *node.inputs[:n], *used, *node.inputs[n:]]
    counts = {"cond_consts": n + len(tested), "body_consts": m + len(used)}
    return _with(node, inputs, cond=_given(cond), body=_given(body), **counts)


def _cond(node: Node, lift: Lift) -> Node:
    true, false = node.params["true"], node.params["false"]
    inputs = [node.inputs[0], *lift(true), *lift(false), *node.inputs[1:]]
    return _with(node, inputs, true=_given(true, (), _unread(false, true)), false=_given(false, _unread(true, false)))


def _unread(other: Graph, graph: Graph) -> list[Value]:
    """Return new values of ``graph`` for the constants of the other branch."""
    first = graph.unused
    return [Value(first + k, v.type) for k, (v, _) in enumerate(other.consts)]


_RULES: dict[str, Callable[[Node, Lift], Node]] = {"scan": _scan, "cond": _cond, "while_loop": _while}
