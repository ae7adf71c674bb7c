"""Derivatives: every primitive against central differences, reverse against forward, once and twice; refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from kernelforge.errors import MalformedGraph, NotDifferentiable
from kernelforge.ir import autodiff
from kernelforge.ir.build import Sym, apply, apply_many, build, full
from kernelforge.ir.graph import Graph, Kind, Sample
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.types import Type
from kernelforge.ir.verify import verify_graph

Array = np.ndarray[Any, Any]
F64 = np.dtype(np.float64)


def types(arrays: Sequence[Array]) -> list[Type]:
    return [Type(a.shape, a.dtype) for a in arrays]


def floats(arrays: Sequence[Array]) -> list[int]:
    return [i for i, a in enumerate(arrays) if a.dtype == F64]


def trace(fn: Callable[..., Any], arrays: Sequence[Array]) -> Graph:
    def outputs(*xs: Sym) -> Sequence[Sym]:
        made = fn(*xs)
        return (made,) if isinstance(made, Sym) else made

    graph = build(outputs, types(arrays))
    verify_graph(graph)
    return graph


def gradient(graph: Graph, arrays: Sequence[Array]) -> Graph:
    """The graph of (inputs, cotangents of float outputs) -> cotangents of float inputs."""
    wrt = floats(arrays)
    real = [v for v in graph.outputs if v.type.dtype == F64]

    def fn(*xs: Sym) -> list[Sym]:
        _, pullback = autodiff.vjp(graph, xs[: len(arrays)], wrt)
        given = iter(xs[len(arrays) :])
        return pullback([next(given) if v.type.dtype == F64 else None for v in graph.outputs])

    return trace(fn, [*arrays, *(np.zeros(v.type.shape) for v in real)])


def pushed(graph: Graph, arrays: Sequence[Array]) -> Graph:
    """The graph of (inputs, tangents of float inputs) -> tangents of the outputs."""
    wrt = floats(arrays)

    def fn(*xs: Sym) -> list[Sym]:
        given = dict(zip(wrt, xs[len(arrays) :], strict=True))
        _, tangents = autodiff.jvp(graph, xs[: len(arrays)], [given.get(i) for i in range(len(arrays))])
        return tangents

    return trace(fn, [*arrays, *(arrays[i] for i in wrt)])


def differences(graph: Graph, arrays: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
    def at(step: float) -> list[Array]:
        moved = list(arrays)
        for i, t in zip(floats(arrays), tangents, strict=True):
            moved[i] = moved[i] + step * t
        return run_graph(graph, moved)

    h = 1e-5
    return [(b - a) / (2 * h) if a.dtype == F64 else np.zeros(a.shape) for a, b in zip(at(-h), at(h), strict=True)]


def check(graph: Graph, arrays: Sequence[Array]) -> tuple[Graph, list[Array]]:
    """Compare jvp with differences and vjp with jvp; return the gradient's graph and inputs."""
    rng = np.random.default_rng(3)
    tangents = [rng.standard_normal(arrays[i].shape) for i in floats(arrays)]
    forward = run_graph(pushed(graph, arrays), [*arrays, *tangents])
    for got, want in zip(forward, differences(graph, arrays, tangents), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5 * max(1.0, np.abs(want).max(initial=0.0)))
    real = [t for t, v in zip(forward, graph.outputs, strict=True) if v.type.dtype == F64]
    cotangents = [rng.standard_normal(t.shape) for t in real]
    reverse = gradient(graph, arrays)
    pulled = run_graph(reverse, [*arrays, *cotangents])
    left = sum(float((a * b).sum()) for a, b in zip(real, cotangents, strict=True))
    right = sum(float((a * b).sum()) for a, b in zip(pulled, tangents, strict=True))
    assert left == pytest.approx(right, rel=1e-8, abs=1e-9)
    return reverse, [*arrays, *cotangents]


def cases() -> list[tuple[str, int, Sample]]:
    """Samples with float inputs, finite and away from kinks: of a map the first."""
    found = []
    for prim in PRIMITIVES.values():
        if ("f64" not in prim.dtypes and prim.name not in ("where", "cond")) or prim.name == "stop_gradient":
            continue
        samples = prim.sample()[:1] if prim.kind is Kind.MAP else prim.sample()
        for k, sample in enumerate(samples):
            if not isinstance(prim.vjp, str) and any(np.asarray(a).dtype == F64 for a in sample.inputs):
                found.append((prim.name, k, sample))
    return found


CASES = cases()


@pytest.mark.parametrize(("name", "k", "sample"), CASES, ids=[f"{n}-{k}" for n, k, _ in CASES])
def test_every_primitive_once_and_twice(name: str, k: int, sample: Sample) -> None:
    arrays = [np.asarray(a) for a in sample.inputs]
    if name == "where":
        arrays[0] = arrays[0].astype(bool)
    graph = trace(lambda *xs: apply_many(name, *xs, **sample.params), arrays)
    if sample.params.get("mode") == "mul":
        with pytest.raises(NotDifferentiable, match="divided out again"):
            gradient(graph, arrays)
        return
    check(*check(graph, arrays))


def test_every_reason_is_a_sentence() -> None:
    for prim in PRIMITIVES.values():
        for rule in (prim.vjp, prim.jvp):
            assert not isinstance(rule, str) or len(rule.split()) > 4, prim.name


def value_and_grad(fn: Callable[..., Sym], *arrays: Array) -> tuple[Array, list[Array]]:
    graph = trace(fn, arrays)
    made = run_graph(gradient(graph, arrays), [*arrays, *(np.ones(v.type.shape) for v in graph.outputs)])
    return run_graph(graph, arrays)[0], made


def test_products_with_zeros() -> None:
    for zeros in ([], [1], [1, 3]):
        x = np.array([2.0, -3.0, 0.5, 4.0])
        x[zeros] = 0.0
        _, (dx,) = value_and_grad(lambda x: apply("prod", x, axes=(0,)), x)
        np.testing.assert_array_equal(dx, [np.prod(np.delete(x, i)) for i in range(4)])
        check(*check(trace(lambda x: apply("cumprod", x, axis=0, reverse=False), [x]), [x]))
        check(*check(trace(lambda x: apply("prod", x, axes=(0,)), [x]), [x]))


def test_ties_share() -> None:
    x = np.array([[3.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    _, (dx,) = value_and_grad(lambda x: apply("max", x, axes=(1,)), x)
    np.testing.assert_allclose(dx, [[0.5, 0, 0.5], [1 / 3] * 3])
    _, (dx,) = value_and_grad(lambda x: apply("min", x, axes=(1,)), -x)
    np.testing.assert_allclose(dx, [[0.5, 0, 0.5], [1 / 3] * 3])


def test_the_extremum_of_nan_comes_from_the_elements_that_are() -> None:
    _, (dx,) = value_and_grad(lambda x: apply("max", x, axes=(0,)), np.array([1.0, np.nan, 2.0]))
    np.testing.assert_array_equal(dx, [0, 1, 0])


def test_written_elements_lose_what_they_held() -> None:
    x, v, index = np.ones(4), np.arange(3.0), np.array([1, 1, 9])
    graph = trace(lambda x, v, i: apply("scatter", x, v, i, axes=(0,), mode="set"), [x, v, index])
    dx, dv = run_graph(gradient(graph, [x, v, index]), [x, v, index, np.array([10.0, 20.0, 30.0, 40.0])])
    np.testing.assert_array_equal(dx, [10, 0, 30, 40])
    np.testing.assert_array_equal(dv, [0, 20, 0])


def convolution(x: Sym, w: Sym, strides: tuple[int, ...], dilations: tuple[int, ...]) -> Sym:
    """x of shape (n, h, w, c), weights of shape (o, c, kh, kw)."""
    windows = apply("window", x, axes=(1, 2), sizes=w.shape[2:], strides=strides, dilations=dilations)
    return apply(  # type: ignore[no-any-return]
        "contract", windows, w, x_axes=(0, 1, 2, 3, 4, 5), y_axes=(6, 3, 4, 5), out_axes=(0, 6, 1, 2)
    )


@pytest.mark.parametrize(("strides", "dilations"), [((1, 1), (1, 1)), ((2, 1), (1, 2)), ((3, 2), (2, 1))])
def test_the_gradient_of_a_convolution_is_a_convolution(strides: tuple[int, ...], dilations: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal((2, 7, 8, 3)), rng.standard_normal((4, 3, 3, 2))]
    graph = trace(lambda x, w: convolution(x, w, strides, dilations), arrays)
    reverse, given = check(graph, arrays)
    in_turn = {"reshape", "transpose", "slice"}  # the results of residue classes, one or several
    assert {n.prim.name for n in reverse.nodes} - in_turn == {"window", "contract", "pad", "flip", "full"}
    check(reverse, given)


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (2, 2, 1), (2, 5, 3), (1, 1, 1), (3, 3, 2)]
)
def test_pooling(size: int, stride: int, dilation: int) -> None:
    params = {"axes": (0, 1), "sizes": (size, 2), "strides": (stride, 2), "dilations": (dilation, 1)}
    x = np.random.default_rng(6).random((11, 9))
    graph = trace(lambda x: apply("max", apply("window", x, **params), axes=(2, 3)), [x])
    check(*check(graph, [x]))


def test_zeros_where_nothing_arrives() -> None:
    x, n = np.ones(3), np.arange(3)
    graph = trace(lambda x, y, n: (x + 1.0, n + n), [x, x, n])

    def fn(x: Sym, y: Sym, n: Sym) -> list[Sym]:
        _, pullback = autodiff.vjp(graph, [x, y, n], [0, 1, 2])
        return pullback([None, None])

    made = run_graph(trace(fn, [x, x, n]), [x, x, n])
    for got, like in zip(made, [x, x, n], strict=True):
        np.testing.assert_array_equal(got, np.zeros_like(like))
        assert got.dtype == like.dtype


def test_only_the_way_to_the_outputs_needs_rules() -> None:
    def fn(x: Sym, y: Sym) -> Sym:
        apply("nextafter", x, y)
        return apply("sin", x) * apply("nextafter", y, full(2.0, y))

    arrays = [np.ones(2), np.ones(2)]
    graph = trace(fn, arrays)
    for differentiate in (gradient, pushed):
        with pytest.raises(NotDifferentiable, match=r"(?s)nextafter has no derivative: .*test_autodiff.py:\d+ in fn"):
            differentiate(graph, arrays)

    def only_x(x: Sym, y: Sym) -> list[Sym]:
        return autodiff.vjp(graph, [x, y], [0])[1]([full(1.0, x)])

    (made,) = run_graph(trace(only_x, arrays), arrays)
    np.testing.assert_allclose(made, np.cos(1.0))


def test_stop_gradient() -> None:
    _, (dx,) = value_and_grad(lambda x: x * apply("stop_gradient", x * x), np.array([2.0, 3.0]))
    np.testing.assert_array_equal(dx, [4, 9])


def test_derivatives_stand_on_the_line_of_what_they_derive() -> None:
    def fn(x: Sym) -> Sym:
        return apply("exp", apply("sin", x))

    graph = trace(fn, [np.ones(2)])
    locs = {n.loc for n in graph.nodes}
    assert {n.loc for n in gradient(graph, [np.ones(2)]).nodes} <= locs | {loc.pulled_back() for loc in locs}


def test_wrong_numbers_and_types_are_refused() -> None:
    graph = trace(lambda x: apply("sin", x), [np.ones(2)])

    def count(x: Sym) -> list[Sym]:
        return autodiff.vjp(graph, [x], [0])[1]([x, x])

    def shape(x: Sym) -> list[Sym]:
        return autodiff.vjp(graph, [x], [0])[1]([x.sum((0,))])

    def tangent(x: Sym) -> list[Sym]:
        return autodiff.jvp(graph, [x], [x.astype("f32")])[1]

    for fn, text in ((count, "2 cotangents"), (shape, "a cotangent of"), (tangent, "a tangent of")):
        with pytest.raises(MalformedGraph, match=text):
            trace(fn, [np.ones(2)])


def test_third_derivative() -> None:
    x = np.linspace(0.1, 1.0, 4)
    graph = trace(lambda x: apply("tanh", x) * x, [x])
    for _ in range(2):
        inner = graph

        def derivative(x: Sym, inner: Graph = inner) -> Sym:
            _, tangents = autodiff.jvp(inner, [x], [full(1.0, x)])
            return tangents[0]

        graph = trace(derivative, [x])
    check(graph, [x])
