"""What graphs and parts of them are, whatever their values are called: what is equal computes the same in the same way.

Repeated layers and unrolled steps are equal parts, so what is found out about one is known of all.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from kernelforge.ir.build import Sym
from kernelforge.ir.demand import Part
from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.memo import memo


def exact(value: Any) -> Any:
    """Return a key for a hashable value: 0.0 == -0.0 == False, which compute other things, and nan != nan."""
    if isinstance(value, float):
        return type(value), value.hex()
    if isinstance(value, tuple | frozenset):
        return type(value), (tuple if isinstance(value, tuple) else frozenset)(exact(v) for v in value)
    return type(value), value


def same(a: Sym, b: Sym) -> bool:
    """Whether two symbols of a trace are one value, or made in the same way of the same values."""
    if a.builder is not b.builder:
        return False
    if a.value is b.value:
        return True
    made = {v: n for n in a.builder.nodes for v in n.outputs}
    consts = dict(a.builder.consts)
    pairs, seen = [(a.value, b.value)], set[tuple[Value, Value]]()
    while pairs:
        pair = x, y = pairs.pop()
        if x is y or pair in seen:
            continue
        seen.add(pair)
        if x in consts and y in consts and x.type == y.type and consts[x].tobytes() == consts[y].tobytes():
            continue
        m, n = made.get(x), made.get(y)
        if m is None or n is None or m.prim is not n.prim or m.prim.name == "barrier":
            return False
        ways = [
            (k.outputs.index(v), len(k.inputs), exact(tuple(sorted(k.params.items())))) for k, v in ((m, x), (n, y))
        ]
        if ways[0] != ways[1]:
            return False
        pairs += zip(m.inputs, n.inputs, strict=True)
    return True


def structure(graph: Graph) -> tuple[Any, ...]:
    """Return a hashable that two graphs share when they compute the same in the same way."""
    number: dict[Value, int] = {}
    for value in graph.inputs:
        number[value] = len(number)
    consts = []
    for value, array in graph.consts:
        number[value] = len(number)
        consts.append((value.type, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()))
    nodes = []
    for node in graph.nodes:
        for value in node.outputs:
            number[value] = len(number)
        # how a call would be differentiated says nothing of what it computes
        given = [(k, v) for k, v in node.params.items() if k != "rule"]
        params = tuple((k, structure(v) if isinstance(v, Graph) else exact(v)) for k, v in given)
        nodes.append((node.prim.name, tuple(number[v] for v in node.inputs), params))
    return (
        tuple(v.type for v in graph.inputs),
        tuple(consts),
        tuple(nodes),
        tuple(number[v] for v in graph.outputs),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Pattern:
    """A part, equal to those that compute the same in the same way from inputs of the same types and strides.

    Attributes:
        part: the one it was made of.
        values: its values; those of an equal pattern stand at the same places.
        strides: of inputs that are not row-major.
    """

    key: tuple[Any, ...]
    part: Part = dataclasses.field(compare=False)
    values: tuple[Value, ...] = dataclasses.field(compare=False)
    strides: dict[Value, tuple[int, ...]] = dataclasses.field(compare=False)


def pattern(part: Part, strides: dict[Value, tuple[int, ...]]) -> Pattern:
    """Tell what a part is."""
    number: dict[Value, int] = {}
    given: list[object] = []
    nodes: list[object] = []

    def known(value: Value) -> int:
        if value not in number:
            number[value] = len(number)
            given.append((value.type, strides.get(value)))
        return number[value]

    for node in part.nodes:
        nodes.append((_sign(node), *[known(v) for v in node.inputs]))
        for value in node.outputs:
            number[value] = len(number)
    outputs = tuple([known(v) for v in part.outputs])
    return Pattern((tuple(nodes), tuple(given), outputs, part.columns, part.chains), part, tuple(number), strides)


@memo
def _sign(node: Node) -> object:
    return _one(node.prim, exact(tuple(node.params.items())))


@memo
def _one(*what: object) -> object:
    """Return an object for what is equal: comparing these is quick."""
    return object()
