"""What is kept between kernels and what is computed again, and that both compute the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.compile import distinct, forget
from kernelforge.ir.cost import cost
from kernelforge.ir.fuse import Fusion, Region, Residual, fuse, inputs
from kernelforge.ir.graph import Graph, Value
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.lower import buffers_of
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.passes.pipeline import optimize
from kernelforge.ir.residuals import plan_residuals
from kernelforge.runtime.plan import Plan
from tests.ir.passes.random_graphs import random_graph

F32 = np.float32


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(F32)


def planned(fn: Callable[..., Any], *args: Any) -> Plan:
    return kf.jit(fn).lower(*args).plan


def between(plan: Plan) -> dict[str, str]:
    """Return the values that one kernel stores for others: primitive and dtype."""
    made = {v: n.prim.name for n in plan.graph.nodes for v in n.outputs}
    stored = {v for r in plan.regions for v in r.outputs} - set(plan.graph.outputs)
    return {made[v]: v.type.name for v in stored}


def names(plan: Plan, residual: Residual) -> list[str]:
    made = {v: n.prim.name for n in plan.graph.nodes for v in n.outputs}
    return [made[v] for v in residual.values]


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v):
    return softmax(q @ k.transpose(0, 2, 1) * 0.125) @ v


def backward(fn: Callable[..., Any]) -> Callable[..., Any]:
    def both(ct: Any, *args: Any) -> Any:
        out, pull = kf.vjp(fn, *args)
        return out, pull(ct)

    return both


def cross_entropy(w, x, labels):
    scores = x @ w
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_likelihood = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -np.where(labels[:, None] == np.arange(10), log_likelihood, F32(0)).sum(axis=1).mean()


def normalized(x, steps: int):
    """A map that the sum of all of it stands between: it is stored, or computed twice."""
    for _ in range(steps):
        x = np.tanh(x)
    y = x * 2
    return y / y.sum()


def test_what_is_read_after_a_contraction_is_computed_again() -> None:
    """The slope of gelu times what a product makes: each element of it is used once."""

    def layer(x, w, v):
        h = x @ w
        return (h * F32(0.5) * (1 + np.tanh(h + F32(0.04) * h * h * h))) @ v

    args = normal(700, 400), normal(400, 600, seed=1) * F32(0.05), normal(600, 500, seed=2) * F32(0.05)
    ct = normal(700, 500)
    plan = planned(backward(layer), ct, *args)
    assert len(plan.kernels) == 6
    made = [n.prim.name for r in plan.regions for v in r.outputs for n in plan.graph.nodes if v in n.outputs]
    assert sorted(made) == ["add", *["contract"] * 5, "multiply"]  # the gradient by h; h and four results; gelu of h
    for got, want in zip(kf.jit(backward(layer))(ct, *args)[1], kf.vjp(layer, *args)[1](ct), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["silu", "gelu", "mish", "softplus", "hardswish", "selu", "softsign"])
def test_activations_between_products_keep_products_alone(name: str) -> None:
    """Neither exponentials nor where they were cut off: all of it is made of what the convolution was."""
    args = normal(8, 4, 3, 3), normal(4, 8, 3, 3, seed=1), normal(4, 4, 32, 32)
    act, conv = getattr(kf.nn, name), kf.nn.conv2d
    plan = planned(
        backward(lambda w, v, x: conv(act(conv(x, w, padding=1)), v, padding=1)), normal(4, 4, 32, 32), *args
    )
    stored = {v for r in plan.regions for v in r.outputs} - set(plan.graph.outputs)
    assert len(stored) <= 3, between(plan)  # h, what it was activated to, the gradient by it
    assert {v.type.name for v in stored} == {"f32"}
    assert "exp" not in between(plan)


def test_ties_of_a_maximum_are_not_stored() -> None:
    plan = planned(kf.grad(cross_entropy), normal(20, 10), normal(64, 20), np.arange(64) % 10)
    assert "bool" not in between(plan).values()


def test_attention_stores_neither_ties_nor_exponentials() -> None:
    args = [normal(4, 64, 32, seed=k) for k in range(3)]
    plan = planned(backward(attention), normal(4, 64, 32, seed=5), *args)
    found = between(plan)
    assert "bool" not in found.values()
    assert "exp" not in found
    ours = kf.jit(backward(attention))(np.ones((4, 64, 32), F32), *args)
    with kf.config(fusion=False):
        plain = kf.jit(backward(attention))(np.ones((4, 64, 32), F32), *args)
    np.testing.assert_array_equal(ours[0], plain[0])
    for a, b in zip(ours[1], plain[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "again"), [(0, True), (1, True), (8, False)])
def test_cheap_maps_are_computed_again(steps: int, again: bool) -> None:
    x = normal(1024, 512)
    fn = functools.partial(normalized, steps=steps)
    plan = planned(fn, x)
    assert len(plan.kernels) == (2 if again else 3)
    (residual,) = [r for r in plan.fusion.residuals if r.values[0].type.size == x.size]
    assert residual.kept is not again
    assert names(plan, residual) == ["multiply"]
    assert ("multiply" in between(plan)) is not again
    if again:
        assert residual.bytes == 2 * x.nbytes
        assert residual.work == (steps * 16 + 1) * x.size
        assert sum(k.bytes for k in plan.kernels) < 3.1 * x.nbytes
    else:
        assert residual.reason == f"recomputing it takes {129 * x.size:,} operations to save {2 * x.nbytes:,} bytes"
    np.testing.assert_allclose(kf.jit(fn)(x), fn(x), rtol=1e-3)


def test_a_kernel_that_nobody_needs_is_dropped() -> None:
    def fn(x, i):
        at = (i * 2).astype(np.int64)
        return np.take_along_axis(x, at[:, None], axis=1).sum() + np.take(x[0] * x[1], at).sum()

    x, i = normal(512, 64), np.arange(512, dtype=np.int32) % 32
    plan = planned(fn, x, i)
    assert "cast" not in between(plan)
    np.testing.assert_allclose(kf.jit(fn)(x, i), fn(x, i), rtol=1e-3)


def test_reasons_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelforge.ir.chains.FEW_ROWS", 1 << 40)  # so that contractions keep kernels of their own
    forget()
    plan = planned(backward(attention), *[normal(4, 64, 32, seed=k) for k in range(4)])
    reasons = {(name, r.reason) for r in plan.fusion.residuals if r.kept for name in names(plan, r)}
    assert ("divide", "a contraction would compute it again for each use of an element") in reasons
    assert all(reason for _, reason in reasons)
    forget()


def test_checkpoint_keeps_inputs_alone() -> None:
    """Two products: what the first layer makes is kept without, and made again with a checkpoint."""

    def layers(w, x):
        h = np.tanh(x @ w)
        return np.tanh(h @ w)

    def loss(wrap: Callable[..., Any]) -> Callable[..., Any]:
        return lambda w, x: wrap(layers)(w, x).sum()

    w, x = normal(32, 32) * F32(0.1), normal(64, 32)
    plain, again = (planned(kf.value_and_grad(loss(wrap)), w, x) for wrap in (lambda f: f, kf.checkpoint))
    products = [sum(n.prim.name == "contract" for n in plan.graph.nodes) for plan in (plain, again)]
    assert products == [5, 7]
    for a, b in zip(
        *(kf.jit(kf.value_and_grad(loss(wrap)))(w, x) for wrap in (lambda f: f, kf.checkpoint)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_work_that_a_loop_does_not_change_is_counted_outside() -> None:
    text = """kernel k(in x: f32[24], in s: f32[6], out y: f32[24]) {
  for parallel i < 6 {
    for parallel j < 4 {
      y[i * 4 + j] = x[i * 4 + j] * log(s[i]) + 1.0f32 / s[i]
    }
  }
}"""
    kernel = parse_kernel(text)
    assert cost(kernel).flops == 24 * 4
    assert cost(kernel).work == 6 * (16 + 4) + 24 * 2


def test_work_that_rows_repeat_is_counted_in_each_but_for_factors_of_products() -> None:
    rows = """kernel k(in x: f32[24], in s: f32[4], out y: f32[24]) {
  for parallel i < 6 {
    for parallel j < 4 {
      y[i * 4 + j] = x[i * 4 + j] * log(s[j])
    }
  }
}"""
    assert cost(parse_kernel(rows)).work == 24 * (16 + 1)
    product = """kernel k(in a: f32[24], in b: f32[20], out y: f32[30]) {
  for parallel i < 6 {
    for parallel j < 5 {
      register s: f32[]
      s[] = 0.0f32
      for serial k < 4 {
        s[] += log(a[i * 4 + k]) * exp(b[j * 4 + k])
      }
      y[i * 5 + j] = s[]
    }
  }
}"""
    assert cost(parse_kernel(product)).work == 24 * 16 + 20 * 16 + 120 * 2


def run_regions(graph: Graph, regions: tuple[Region, ...], arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Run one region after another, each from what stands in memory by then."""
    memory = dict(zip(graph.inputs, arrays, strict=True)) | dict(graph.consts)
    for region in regions:
        made: dict[Value, np.ndarray] = {}
        for part in region.parts:
            given = inputs(part)
            results = run_graph(Graph(tuple(given), part.nodes, part.outputs), [memory[v] for v in given])
            made.update(zip(part.outputs, results, strict=True))
        memory |= made
    return [memory[v] for v in graph.outputs]


def test_random_graphs_compute_the_same() -> None:
    again = kept = 0
    for seed in range(0, 800, 2):
        graph, arrays = random_graph(seed, nodes=40)
        graph = distinct(optimize(graph, verify=False))
        with np.errstate(all="ignore"):
            before = fuse(graph)
            after = plan_residuals(graph, before)
            results = run_graph(graph, arrays), run_regions(graph, after.regions, arrays)
        for want, got in zip(*results, strict=True):
            np.testing.assert_array_equal(got, want)
        again += sum(not r.kept for r in after.residuals)
        kept += sum(r.kept for r in after.residuals)
        assert len(after.regions) <= len(before.regions)
        stored = {v for r in after.regions for v in r.outputs} - set(graph.outputs)
        assert {v for r in after.residuals if r.kept for v in r.values} == stored
    assert again > 20
    assert kept > 20


def test_a_launch_of_several_parts_takes_no_more_buffers_than_the_device_has():
    def fn(a, b, c, qs):
        e = a * b + a * c
        sums = np.cumsum(e, axis=0)
        return sums + e, e.sum(), e.sum(axis=1), [q * sums[0, 0] for q in qs]

    a, b, c = normal(64, 1), normal(1, 48), normal(1, 48, seed=1)
    graph = kf.jit(fn).lower(a, b, c, [normal(5 + k) for k in range(4)]).graph

    def most(fusion: Fusion) -> int:
        return max(sum(buffers_of(part) for part in r.parts) for r in fusion.regions)

    fused = fuse(graph, max_args=64)
    room = most(fused)
    assert most(plan_residuals(graph, fused, 64)) > room
    assert most(plan_residuals(graph, fused, room)) <= room
