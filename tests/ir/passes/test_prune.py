"""Control flow cut down to what is used: same values, less work."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from kernelforge.ir import autodiff
from kernelforge.ir.build import Builder, apply, apply_many
from kernelforge.ir.graph import Graph
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.ops.control import emit_scan, emit_while
from kernelforge.ir.passes.prune import prune
from kernelforge.ir.types import Type

VECTOR = Type((3,), np.dtype(np.float64))
STACK = Type((4, 3), np.dtype(np.float64))
X, Y, XS = np.array([0.5, -1.0, 0.25]), np.array([1.0, 2.0, -0.5]), np.linspace(-1.0, 1.0, 12).reshape(4, 3)


def count(graph: Graph, name: str) -> int:
    inner = [v for n in graph.nodes for v in n.params.values() if isinstance(v, Graph)]
    return sum(n.prim.name == name for n in graph.nodes) + sum(count(g, name) for g in inner)


def same(before: Graph, after: Graph, arrays: list[Any]) -> None:
    for b, a in zip(run_graph(before, arrays), run_graph(after, arrays), strict=True):
        np.testing.assert_array_equal(b, a)


def selections(graph: Graph) -> list[Graph]:
    outputs = graph.outputs
    masks = [m for m in itertools.product([True, False], repeat=len(outputs)) if any(m)]
    return [Graph(graph.inputs, graph.nodes, tuple(itertools.compress(outputs, m)), graph.consts) for m in masks]


def value_and_gradient(name: str, k: int) -> tuple[Graph, list[Any]]:
    """Make the graph of a sample's outputs and of the gradient of their sum."""
    sample = PRIMITIVES[name].sample()[k]
    arrays = [np.asarray(a) for a in sample.inputs]
    forward = Builder()
    with forward.active():
        graph = forward.finish(
            apply_many(name, *[forward.input(Type(a.shape, a.dtype)) for a in arrays], **sample.params)
        )
    b = Builder()
    with b.active():
        inputs = [b.input(v.type) for v in graph.inputs]
        if isinstance(PRIMITIVES[name].vjp, str):
            return graph, arrays
        wrt = [i for i, a in enumerate(arrays) if a.dtype == np.float64]
        outputs, pullback = autodiff.vjp(graph, inputs, wrt)
        return b.finish([*outputs, *pullback([o * 0.0 + 1.0 for o in outputs])]), arrays


@pytest.mark.parametrize(("name", "k"), [("scan", 0), ("scan", 1), ("cond", 0), ("cond", 1), ("while_loop", 0)])
def test_any_selection_of_results_keeps_its_values(name: str, k: int) -> None:
    graph, arrays = value_and_gradient(name, k)
    for chosen in selections(graph):
        same(chosen, prune(chosen), arrays)


def test_the_forward_scan_runs_once_for_value_and_gradient() -> None:
    graph, arrays = value_and_gradient("scan", 0)
    pruned = prune(graph)
    assert count(graph, "scan") == 3
    assert count(pruned, "scan") == 2
    same(graph, pruned, arrays)


def scan_of_three() -> Graph:
    """Carry a sum that is used, a product that nobody reads, and an energy that only feeds itself."""
    b = Builder()
    with b.active():
        w, xs = b.input(VECTOR), b.input(STACK)
        zero = apply("full", value=0.0, shape=(3,), dtype="f64")

        def step(total: Any, product: Any, energy: Any, x: Any) -> list[Any]:
            return [total + x, product * w, energy + apply("exp", x), apply("sin", x)]

        outs = emit_scan(step, [zero, zero, zero], [xs], 4, False)
        return b.finish(outs[:1])


def test_unused_carries_and_outputs_go() -> None:
    graph = scan_of_three()
    pruned = prune(graph)
    (scan,) = [n for n in pruned.nodes if n.prim.name == "scan"]
    assert (scan.params["consts"], scan.params["carry"], len(scan.outputs)) == (0, 1, 1)
    assert count(pruned, "exp") == count(pruned, "sin") == 0
    same(graph, pruned, [X, XS])


def test_a_carry_that_feeds_a_used_one_stays() -> None:
    b = Builder()
    with b.active():
        x, xs = b.input(VECTOR), b.input(STACK)
        outs = emit_scan(lambda a, c, t: [a + c, c * t], [x, x], [xs], 4, False)
        graph = b.finish(outs[:1])
    assert prune(graph) is graph


def test_while_keeps_what_its_test_reads() -> None:
    b = Builder()
    with b.active():
        x, y = b.input(VECTOR), b.input(VECTOR)
        outs = emit_while(lambda a, c, d: [c.sum((0,)) < 5.0], lambda a, c, d: [a * 2.0, c + y * y, d - 1.0], [x, x, x])
        graph = b.finish(outs[:1])
    pruned = prune(graph)
    (loop,) = [n for n in pruned.nodes if n.prim.name == "while_loop"]
    assert len(loop.outputs) == 2
    same(graph, pruned, [X, Y])


def test_a_graph_without_control_flow_is_returned_as_it_is() -> None:
    b = Builder()
    with b.active():
        x = b.input(VECTOR)
        graph = b.finish([x + x])
    assert prune(graph) is graph
