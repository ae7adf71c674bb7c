"""Constants of control flow become its inputs: same values, and none left inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernelforge.ir.build import Builder, Sym, apply_many
from kernelforge.ir.graph import Graph
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.passes.hoist import hoist
from kernelforge.ir.passes.prune import prune
from kernelforge.ir.text import print_graph
from kernelforge.ir.types import Type
from kernelforge.ir.verify import verify_graph

VECTOR = Type((3,), np.dtype(np.float64))
STACK = Type((4, 3), np.dtype(np.float64))
X, XS = np.array([0.5, -1.0, 0.25]), np.linspace(-1.0, 1.0, 12).reshape(4, 3)
P, Q = np.array([1.0, 3.0, 2.0]), np.array([-2.0, 0.5, 4.0])


def graph_of(fn: Callable[..., Any], *types: Type) -> Graph:
    b = Builder()
    with b.active():
        return b.finish(fn(b, *[b.input(t) for t in types]))


def step(b: Builder, w: Sym, carry: Sym, x: Sym) -> list[Sym]:
    made = carry * b.constant(P) + w * x
    return [made, made - b.constant(Q)]


def scanned(body: Graph, w: Sym, first: Sym, xs: Sym) -> tuple[Sym, ...]:
    return apply_many("scan", w, first, xs, body=body, consts=1, carry=1, length=4, reverse=False)


def loop() -> Graph:
    body = graph_of(step, VECTOR, VECTOR, VECTOR)
    return graph_of(lambda b, w, x, xs: scanned(body, w, x, xs), VECTOR, VECTOR, STACK)


def loop_until() -> Graph:
    test = graph_of(lambda b, limit, x: [(x * b.constant(P)).sum((0,)) < limit], Type((), VECTOR.dtype), VECTOR)
    body = graph_of(lambda b, w, x: [x + w * w + b.constant(Q) * b.constant(Q)], VECTOR, VECTOR)
    counts = {"cond_consts": 1, "body_consts": 1}
    return graph_of(
        lambda b, w, x, xs: apply_many("while_loop", xs.sum((0, 1)) + 40.0, w, x, cond=test, body=body, **counts),
        VECTOR, VECTOR, STACK,
    )  # fmt: skip


def branch() -> Graph:
    true = graph_of(lambda b, x, y: [x * b.constant(P) - y], VECTOR, VECTOR)
    false = graph_of(lambda b, x, y: [y * b.constant(Q) + b.constant(P)], VECTOR, VECTOR)
    return graph_of(
        lambda b, w, x, xs: [
            *apply_many("cond", w.sum((0,)) < 0.0, w, x, true=true, false=false),
            *apply_many("cond", w.sum((0,)) >= 0.0, w, x, true=true, false=false),
        ],
        VECTOR, VECTOR, STACK,
    )  # fmt: skip


@pytest.mark.parametrize("make", [loop, loop_until, branch])
def test_constants_are_inputs(make: Callable[[], Graph]) -> None:
    before = make()
    after = hoist(before)
    verify_graph(after)
    assert all(inner.consts for n in before.nodes for inner in n.graphs.values())
    assert not any(inner.consts for n in after.nodes for inner in n.graphs.values())
    assert hoist(after) is after
    for b, a in zip(run_graph(before, [P, X, XS]), run_graph(after, [P, X, XS]), strict=True):
        np.testing.assert_array_equal(b, a)


def test_scans_that_repeat_each_other_still_become_one() -> None:
    body = graph_of(step, VECTOR, VECTOR, VECTOR)
    saving = Graph(body.inputs, body.nodes, (*body.outputs[:1], body.inputs[1]), body.consts)
    before = graph_of(lambda b, w, x, xs: [*scanned(body, w, x, xs), *scanned(saving, w, x, xs)], VECTOR, VECTOR, STACK)
    after = prune(hoist(before))
    assert [n.prim.name for n in before.nodes] == ["scan", "scan"]
    assert [n.prim.name for n in after.nodes] == ["scan"]
    assert len(after.consts) == 2
    for b, a in zip(run_graph(before, [P, X, XS]), run_graph(after, [P, X, XS]), strict=True):
        np.testing.assert_array_equal(b, a)


def test_golden() -> None:
    text = "\n".join(line.split("  #")[0] for line in print_graph(hoist(loop())).splitlines())
    assert text == GOLDEN


GOLDEN = """\
graph (%0: f64[3], %1: f64[3], %2: f64[4,3]) {
  const %5: f64[3] = [1.0, 3.0, 2.0]
  const %6: f64[3] = [-2.0, 0.5, 4.0]
  %3: f64[3], %4: f64[4,3] = scan(%5, %6, %0, %1, %2) {body=graph (%3: f64[3], %7: f64[3], %0: f64[3], %1: f64[3], %2: f64[3]) {
    %4: f64[3] = multiply(%1, %3)
    %5: f64[3] = multiply(%0, %2)
    %6: f64[3] = add(%4, %5)
    %8: f64[3] = subtract(%6, %7)
    return %6, %8
  }, consts=3, carry=1, length=4, reverse=False}
  return %3, %4
}"""  # noqa: E501
