"""What is the same in each turn of a loop is made once: same values, fewer nodes in the body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.ir.build import Builder, Sym, apply, full
from kernelforge.ir.graph import Graph, Node
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops.control import emit_scan, emit_while
from kernelforge.ir.passes import invariants as module
from kernelforge.ir.passes.invariants import invariants
from kernelforge.ir.text import print_graph
from kernelforge.ir.types import Type
from kernelforge.ir.verify import verify_graph

SCALAR, VECTOR, MATRIX, STACK = (Type(s, np.dtype(np.float64)) for s in ((), (3,), (3, 3), (4, 3)))
RNG = np.random.default_rng(0)
W, X, XS = RNG.standard_normal((3, 3)), RNG.standard_normal(3), RNG.standard_normal((4, 3))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let launches cost nothing, so that small samples are worth moving."""
    monkeypatch.setattr(module, "LAUNCH_BYTES", 0)


def graph_of(fn: Callable[..., Sequence[Sym]], *types: Type) -> Graph:
    b = Builder()
    with b.active():
        return b.finish(fn(*[b.input(t) for t in types]))


def moved(before: Graph, *arrays: Any) -> Graph:
    """Run the pass, whose result computes the same."""
    after = invariants(before)
    verify_graph(after)
    assert invariants(after) is after
    for b, a in zip(run_graph(before, list(arrays)), run_graph(after, list(arrays)), strict=True):
        np.testing.assert_array_equal(b, a)
    return after


def loop(graph: Graph) -> Node:
    (node,) = [n for n in graph.nodes if n.prim.name in ("scan", "while_loop")]
    return node


def names(graph: Graph) -> list[str]:
    return [n.prim.name for n in graph.nodes]


def product(w: Sym, x: Sym) -> Sym:
    return apply("contract", w, x, x_axes=(0, 1), y_axes=(1,), out_axes=(0,))


def squared(w: Sym, x: Sym, xs: Sym, length: int = 4) -> Sequence[Sym]:
    """Multiply the carry by the square of a matrix, made in each turn."""

    def step(c: Sym, x: Sym) -> list[Sym]:
        square = apply("contract", w, w, x_axes=(0, 1), y_axes=(1, 2), out_axes=(0, 2))
        return [product(square, c) + x, c]

    return emit_scan(step, [x], [xs], length, False)


@pytest.mark.usefixtures("eager")
def test_golden() -> None:
    after = moved(graph_of(squared, MATRIX, VECTOR, STACK), W, X, XS)
    text = "\n".join(line.split("  #")[0] for line in print_graph(after).splitlines())
    assert text == GOLDEN


GOLDEN = """\
graph (%0: f64[3,3], %1: f64[3], %2: f64[4,3]) {
  %5: f64[3,3] = contract(%0, %0) {x_axes=(0, 1), y_axes=(1, 2), out_axes=(0, 2)}
  %6: f64[3], %7: f64[4,3] = scan(%5, %0, %1, %2) {body=graph (%3: f64[3,3], %2: f64[3,3], %0: f64[3], %1: f64[3]) {
    %4: f64[3] = contract(%3, %0) {x_axes=(0, 1), y_axes=(1,), out_axes=(0,)}
    %5: f64[3] = add(%4, %1)
    return %5, %0
  }, consts=2, carry=1, length=4, reverse=False}
  return %6, %7
}"""


@pytest.mark.usefixtures("eager")
def test_out_of_a_loop_that_has_no_turn_and_out_of_its_test() -> None:
    def fn(w: Sym, x: Sym, top: Sym) -> Sequence[Sym]:
        return emit_while(
            lambda c: [c.sum((0,)) < top + apply("exp", x).sum((0,))],
            lambda c: [c + apply("exp", w).sum((0,)) + 1.0],
            [x],
        )

    before = graph_of(fn, MATRIX, VECTOR, SCALAR)
    for top in (-1e9, 10.0):
        after = moved(before, W, X, np.array(top))
    assert [n for n in names(after) if n in ("exp", "sum", "while_loop")] == ["exp", "sum", "exp", "sum", "while_loop"]
    assert "exp" not in names(loop(after).params["cond"]) + names(loop(after).params["body"])


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_turn_alone_saves_nothing(length: int) -> None:
    stack = Type((length, 3), np.dtype(np.float64))
    before = graph_of(lambda w, x, xs: squared(w, x, xs, length), MATRIX, VECTOR, stack)
    assert (moved(before, W, X, XS[:length]) is before) == (length < 2)


def test_what_costs_less_than_a_launch_stays() -> None:
    before = graph_of(squared, MATRIX, VECTOR, STACK)
    assert moved(before, W, X, XS) is before


@pytest.mark.usefixtures("eager")
def test_what_takes_more_memory_than_it_is_made_of_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)

    def fn(x: Sym, xs: Sym) -> Sequence[Sym]:
        def step(c: Sym, y: Sym) -> list[Sym]:
            outer = apply("exp", x.reshape((3, 1)).broadcast((3, 3)) * x.broadcast((3, 3)))
            return [c + product(outer, y)]

        return emit_scan(step, [x], [xs], 4, False)

    before = graph_of(fn, VECTOR, STACK)
    assert moved(before, X, XS) is before


@pytest.mark.usefixtures("eager")
def test_views_barriers_and_loops_that_may_not_end_stay() -> None:
    def fn(w: Sym, x: Sym, xs: Sym) -> Sequence[Sym]:
        def step(c: Sym, y: Sym) -> list[Sym]:
            again = apply("exp", apply("barrier", x))
            (found,) = emit_while(lambda d: [d.sum((0,)) < 1.0], lambda d: [d + 1.0], [apply("exp", x)])
            return [c + y + again + found + apply("exp", w).transpose((1, 0)).sum((0,)) + w.transpose((1, 0)).sum((0,))]

        return emit_scan(step, [x], [xs], 4, False)

    after = moved(graph_of(fn, MATRIX, VECTOR, STACK), W, X, XS)
    kept = names(loop(after).params["body"])
    assert [kept.count(k) for k in ("barrier", "while_loop", "exp", "sum")] == [1, 1, 1, 0]


def test_what_is_handed_on_and_what_repeats_are_constants() -> None:
    def fn(w: Sym, x: Sym) -> Sequence[Sym]:
        def step(c: Sym, held: Sym, same: Sym, ones: Sym) -> list[Sym]:
            return [product(held, c) + same + ones, held, held, c]

        rows = x.broadcast((4, 3))
        return emit_scan(step, [x, w], [rows, full(1.0, rows)], 4, False)

    after = moved(graph_of(fn, MATRIX, VECTOR), W, X)
    node = loop(after)
    assert (node.params["consts"], node.params["carry"], len(node.inputs), len(node.outputs)) == (2, 1, 3, 2)
    assert after.outputs[:2] == (node.outputs[0], after.inputs[0])
    assert names(after)[-1] == "broadcast"


def test_a_while_loop_hands_on() -> None:
    def fn(w: Sym, x: Sym) -> Sequence[Sym]:
        return emit_while(
            lambda held, c: [c.sum((0,)) < held.sum((0, 1)) + 5.0],
            lambda held, c: [held, c + 1.0 + held.sum((0,))],
            [apply("absolute", w), x],
        )

    after = moved(graph_of(fn, MATRIX, VECTOR), W, X)
    node = loop(after)
    assert [node.params[p] for p in ("cond_consts", "body_consts")] == [1, 1]
    assert len(node.outputs) == 1


def implicit(a: Any, x: Any) -> Any:
    """Backward Euler steps, whose matrix is the same in all."""
    n = x.shape[0]
    return kf.scan(lambda x, _: (np.linalg.solve(np.eye(n) + 0.1 * a, x), None), x, length=40)[0]


def by_hand(a: Any, x: Any) -> Any:
    for _ in range(40):
        x = np.linalg.solve(np.eye(len(x)) + 0.1 * a, x)
    return x


def test_a_system_is_factored_once_for_all_steps(device: str) -> None:
    a, x = RNG.standard_normal((12, 12)), RNG.standard_normal(12)
    compiled = kf.jit(implicit)
    np.testing.assert_allclose(compiled(a, x), by_hand(a, x), rtol=1e-9, atol=1e-12)
    scans = [n for n in compiled.lower(a, x).graph.nodes if n.prim.name == "scan"]
    assert [n.params["length"] for n in scans] == [12, 40]
    assert [n.prim.name for n in scans[1].params["body"].nodes].count("scan") == 1  # the substitution

    slope = kf.jit(kf.grad(lambda a: implicit(a, x).sum()))
    along, step = RNG.standard_normal(a.shape), 1e-6
    expected = (by_hand(a + step * along, x).sum() - by_hand(a - step * along, x).sum()) / (2 * step)
    np.testing.assert_allclose((np.asarray(slope(a)) * along).sum(), expected, rtol=1e-6)
    scans = [n for n in slope.lower(a).graph.nodes if n.prim.name == "scan"]
    assert [n.params["length"] for n in scans] == [12, 40, 40]
