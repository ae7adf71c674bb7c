"""Cut control flow down to what is used: results nobody reads, carries that only feed themselves, inputs of dead code.

Reverse derivatives of loops rely on it. They make a second scan that saves the carries, which here becomes one with the
scan it repeats, and they accumulate the gradients of all captured arrays, of which few may be asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from kernelforge.ir.graph import Graph, Kind, Node, Value


def prune(graph: Graph) -> Graph:
    """Rewrite the opaque nodes of a graph, and drop nodes that are then dead."""
    if not any(n.prim.kind is Kind.OPAQUE for n in graph.nodes):
        return graph
    merged = _merge_scans(graph)
    live = set(merged.outputs)
    kept: list[Node] = []
    for node in reversed(merged.nodes):
        if live.isdisjoint(node.outputs):
            continue
        used = [v in live for v in node.outputs]
        new = _RULES[node.prim.name](node, used) if node.prim.name in _RULES else node
        live.update(new.inputs)
        kept.append(new)
    nodes = tuple(reversed(kept))
    if nodes == graph.nodes:
        return graph
    return Graph(graph.inputs, nodes, merged.outputs, tuple(c for c in graph.consts if c[0] in live))


def _pick(mask: Sequence[bool], xs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(x for x, m in zip(xs, mask, strict=True) if m)


def _needed(body: Graph, outputs: Sequence[Value]) -> set[Value]:
    """Return all values that ``outputs`` depend on."""
    live = set(outputs)
    for node in reversed(body.nodes):
        if not live.isdisjoint(node.outputs):
            live.update(node.inputs)
    return live


def _cut(body: Graph, inputs: Sequence[bool], outputs: Sequence[bool]) -> Graph:
    return prune_body(Graph(_pick(inputs, body.inputs), body.nodes, _pick(outputs, body.outputs), body.consts))


def prune_body(body: Graph) -> Graph:
    """Drop dead nodes of an inner graph, and prune what it holds."""
    live = _needed(body, body.outputs)
    nodes = tuple(n for n in body.nodes if not live.isdisjoint(n.outputs))
    return prune(Graph(body.inputs, nodes, body.outputs, tuple(c for c in body.consts if c[0] in live)))


def _scan(node: Node, used: Sequence[bool]) -> Node:
    body, c, k = node.params["body"], node.params["consts"], node.params["carry"]
    keep = list(used)
    while True:
        live = _needed(body, _pick(keep, body.outputs))
        fed = [keep[i] or body.inputs[c + i] in live for i in range(k)]
        if fed == keep[:k]:
            break
        keep[:k] = fed
    inputs = [*(v in live for v in body.inputs[:c]), *keep[:k], *(v in live for v in body.inputs[c + k :])]
    if all(keep) and all(inputs):
        return node
    counts = {"consts": sum(inputs[:c]), "carry": sum(keep[:k])}
    params = MappingProxyType({**node.params, "body": _cut(body, inputs, keep), **counts})
    kept = _pick(inputs, node.inputs)
    return dataclasses.replace(node, inputs=kept, params=params, outputs=_pick(keep, node.outputs))


def _cond(node: Node, used: Sequence[bool]) -> Node:
    true, false = node.params["true"], node.params["false"]
    live = _needed(true, _pick(used, true.outputs)) | _needed(false, _pick(used, false.outputs))
    inputs = [t in live or f in live for t, f in zip(true.inputs, false.inputs, strict=True)]
    if all(used) and all(inputs):
        return node
    params = MappingProxyType({"true": _cut(true, inputs, used), "false": _cut(false, inputs, used)})
    kept = (node.inputs[0], *_pick(inputs, node.inputs[1:]))
    return dataclasses.replace(node, inputs=kept, params=params, outputs=_pick(used, node.outputs))


def _while(node: Node, used: Sequence[bool]) -> Node:
    cond, body, n, m = (node.params[p] for p in ("cond", "body", "cond_consts", "body_consts"))
    tested = _needed(cond, cond.outputs)
    keep = [u or v in tested for u, v in zip(used, cond.inputs[n:], strict=True)]
    while True:
        live = _needed(body, _pick(keep, body.outputs))
        fed = [a or v in live for a, v in zip(keep, body.inputs[m:], strict=True)]
        if fed == keep:
            break
        keep = fed
    cond_inputs = [*(v in tested for v in cond.inputs[:n]), *keep]
    body_inputs = [*(v in live for v in body.inputs[:m]), *keep]
    if all(cond_inputs) and all(body_inputs):
        return node
    params = MappingProxyType(
        {
            "cond": _cut(cond, cond_inputs, [True]),
            "body": _cut(body, body_inputs, keep),
            "cond_consts": sum(cond_inputs[:n]),
            "body_consts": sum(body_inputs[:m]),
        }
    )
    inputs = _pick([*cond_inputs[:n], *body_inputs[:m], *keep], node.inputs)
    return dataclasses.replace(node, inputs=inputs, params=params, outputs=_pick(keep, node.outputs))


_RULES = {"scan": _scan, "cond": _cond, "while_loop": _while}


def _merge_scans(graph: Graph) -> Graph:
    """Make one scan of those that run the same nodes over the same inputs and differ in what they stack."""
    groups: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if node.prim.name == "scan":
            groups.setdefault(_same_run(node), []).append(node)
    replaced: dict[Value, Value] = {}
    merged: dict[Node, Node | None] = {}
    for group in groups.values():
        if len(group) < 2:
            continue
        first = group[0]
        body, k = first.params["body"], first.params["carry"]
        stacked: dict[Value, Value] = {}
        for node in group:
            replaced.update(zip(node.outputs[:k], first.outputs[:k], strict=True))
            for inner, out in zip(node.params["body"].outputs[k:], node.outputs[k:], strict=True):
                replaced[out] = stacked.setdefault(inner, out)
            merged[node] = None
        whole = Graph(body.inputs, body.nodes, (*body.outputs[:k], *stacked), body.consts)
        outputs = (*first.outputs[:k], *stacked.values())
        params = MappingProxyType({**first.params, "body": whole})
        merged[first] = dataclasses.replace(first, params=params, outputs=outputs)
    if not merged:
        return graph
    nodes = []
    for node in graph.nodes:
        new = merged.get(node, node)
        if new is not None:
            nodes.append(dataclasses.replace(new, inputs=tuple(replaced.get(v, v) for v in new.inputs)))
    return Graph(graph.inputs, tuple(nodes), tuple(replaced.get(v, v) for v in graph.outputs), graph.consts)


def _same_run(node: Node) -> Any:
    """Return what two scans share that carry the same state: by identity of the body's nodes, for replays keep them."""
    body, k = node.params["body"], node.params["carry"]
    return node.inputs, body.inputs, body.nodes, body.outputs[:k], node.params["length"], node.params["reverse"]
