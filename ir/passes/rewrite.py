"""The rule engine of graph passes: one walk from inputs to outputs that offers each node to rules.

A rule sees a node whose inputs are rewritten already, and what it makes is offered to the rules in turn. Nodes that no
rule takes are kept, the same object if their inputs are the same, so a walk that changes nothing costs little.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernelforge.ir.build import Builder, Sym
from kernelforge.ir.graph import Graph, Node, Params, Primitive, Value
from kernelforge.ir.types import Type

Rule = Callable[["Rewriter", Node], Sym | Sequence[Sym] | None]
"""``rule(rewriter, node)`` gives what to use in place of the node's output or outputs, of the same types, or None.

It makes nodes with ``apply`` and the operators of ``Sym``, and only after it has decided.
"""
Rules = Mapping[str, Sequence[Rule]]
"""Rules by the name of the primitive; those under ``""`` are offered every node after its own."""


class Rewriter(Builder):
    """A builder that offers each node to rules before it makes it."""

    def __init__(self, graph: Graph, rules: Rules) -> None:
        super().__init__()
        self.graph = graph
        self.rules = rules
        self.inputs = list(graph.inputs)
        self.consts = list(graph.consts)
        self.arrays = dict(graph.consts)
        self.producers: dict[Value, Node] = {}
        self._next = graph.unused

    @functools.cached_property
    def _uses(self) -> collections.Counter[Value]:
        used = [v for n in self.graph.nodes for v in n.inputs]
        return collections.Counter([*used, *self.graph.outputs])

    def once(self, value: Value) -> bool:
        """Whether the graph used this value once; one that a rule made has no count yet and is not."""
        return self._uses[value] == 1

    def producer(self, value: Value, name: str = "") -> Node | None:
        """Return the node that made ``value``, if there is one and it is of the primitive ``name``."""
        node = self.producers.get(value)
        return node if node is not None and name in ("", node.prim.name) else None

    def uniform(self, value: Value) -> bool | int | float | None:
        """Return the element of a ``full``."""
        node = self.producers.get(value)
        return node.params["value"] if node is not None and node.prim.name == "full" else None

    def sym(self, value: Value) -> Sym:
        return Sym(self, value)

    def bind(self, array: np.ndarray[Any, Any]) -> Sym:
        """Add a constant array."""
        value = self._value(Type(array.shape, array.dtype))
        self.consts.append((value, array))
        self.arrays[value] = array
        return Sym(self, value)

    def emit(self, prim: Primitive, inputs: Sequence[Value], params: Params) -> tuple[Value, ...]:
        outputs = tuple(self._value(t) for t in prim.typing([v.type for v in inputs], params))
        node = Node(prim, tuple(inputs), params, outputs, self.loc)
        found = self._offer(node)
        return outputs if found is None else found

    def _offer(self, node: Node) -> tuple[Value, ...] | None:
        """Return what a rule puts in the node's place; else append it."""
        for rule in (*self.rules.get(node.prim.name, ()), *self.rules.get("", ())):
            made = rule(self, node)
            if made is not None:
                return tuple(map(self.lift, [made] if isinstance(made, Sym) else made))
        self.nodes.append(node)
        for value in node.outputs:
            self.producers[value] = node
        return None

    def run(self) -> Graph:
        """Rewrite; the same graph if no rule applied."""
        replaced: dict[Value, Value] = {}
        with self.active():
            for node in self.graph.nodes:
                inputs = tuple(replaced.get(v, v) for v in node.inputs)
                if inputs != node.inputs:
                    node = Node(node.prim, inputs, node.params, node.outputs, node.loc)
                self.loc = node.loc
                found = self._offer(node)
                if found is not None:
                    replaced.update(zip(node.outputs, found, strict=True))
        if not replaced:
            return self.graph
        outputs = tuple(replaced.get(v, v) for v in self.graph.outputs)
        return Graph(self.graph.inputs, tuple(self.nodes), outputs, tuple(self.consts))


def rewrite(graph: Graph, rules: Rules) -> Graph:
    """Apply rules to each node once, from inputs to outputs; the same graph if none applied."""
    return Rewriter(graph, rules).run()
