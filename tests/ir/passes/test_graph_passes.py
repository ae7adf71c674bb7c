"""Each pass keeps the meaning to the bit, on random graphs, and does what it says, on small ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernelforge.dtypes import DTYPES
from kernelforge.ir import autodiff
from kernelforge.ir.build import Builder, Sym, apply, apply_many, build, builder, full
from kernelforge.ir.graph import Graph
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops.control import emit_scan
from kernelforge.ir.passes.algebra import exact
from kernelforge.ir.passes.cse import cse
from kernelforge.ir.passes.dce import dce
from kernelforge.ir.passes.fold import fold
from kernelforge.ir.passes.inline import inline
from kernelforge.ir.passes.pipeline import GRAPH_PASSES, optimize
from kernelforge.ir.passes.simplify import simplify
from kernelforge.ir.types import Type
from kernelforge.ir.verify import verify_graph
from tests.ir.passes.random_graphs import array, random_graph, same_bits
from tests.ir.passes.test_rewrites import F, constant, contract, show, types

PASSES = {step.run.__name__: step.run for step in GRAPH_PASSES}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_keeps_the_meaning(name: str) -> None:
    for seed in range(60):
        graph, inputs = random_graph(seed)
        after = PASSES[name](graph)
        verify_graph(after)
        same_bits(graph, after, inputs)
        if after is graph:
            continue
        assert [v.type for v in after.inputs] == [v.type for v in graph.inputs]
        assert {n.loc for n in after.nodes} <= {n.loc for n in graph.nodes}


def test_the_pipeline_keeps_the_meaning_and_comes_to_rest() -> None:
    for seed in range(100, 220):
        graph, inputs = random_graph(seed)
        after = optimize(graph, verify=True)
        same_bits(graph, after, inputs)
        assert optimize(after, verify=False) is after
        assert len(after.nodes) <= len(graph.nodes)


@pytest.mark.parametrize("source", sorted(DTYPES))
@pytest.mark.parametrize("target", sorted(DTYPES))
def test_exact_casts_keep_every_value(source: str, target: str) -> None:
    dtype = DTYPES[source]
    if source == "bool":
        values = np.array([False, True])
    elif dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = np.array([info.min, 0, 1, info.max // 3, info.max - 1, info.max], dtype)
    else:
        whole = np.array([1, 3, 2.0**-14, 2.0**-15 + 2.0**-20, 65504, 0.1, -1.5, 1e-30, 1e38, 1e300, 2049])
        with np.errstate(over="ignore"):
            values = whole.astype(dtype)
    with np.errstate(all="ignore"):
        kept = values.astype(DTYPES[target]).astype(dtype) == values
    ranges = np.array(kept).all() and not (dtype.kind == "i" and DTYPES[target].kind == "u") and target != "bool"
    if exact(source, target):
        assert np.array(kept).all()
    else:
        assert not ranges or target[0] in "iu", "the table misses an exact cast"


def test_cse_tells_zeros_apart_and_joins_equal_work() -> None:
    def fn(x: Sym, y: Sym) -> list[Sym]:
        zeros = [apply("full", value=v, shape=(3,), dtype="f32") for v in (0.0, -0.0, 0.0)]
        return [*zeros, x + y, y + x, x - y, y - x, apply("barrier", x), apply("barrier", x)]

    after = cse(build(fn, types("f32:3", "f32:3")))
    assert [after.outputs.index(v) for v in after.outputs] == [0, 1, 0, 3, 3, 5, 6, 7, 8]


def test_cse_does_not_join_numbers_of_different_kinds() -> None:
    def fn(x: Sym) -> list[Sym]:
        return [
            apply("full", value=v, shape=(), dtype=d) for v, d in ((1, "i32"), (1, "f32"), (True, "bool"), (1, "i32"))
        ]

    after = cse(build(fn, types("f32:3")))
    assert [after.outputs.index(v) for v in after.outputs] == [0, 1, 2, 0]


def test_cse_joins_constants_of_the_same_bits() -> None:
    def fn(x: Sym) -> list[Sym]:
        arrays = [np.array(a, t) for a, t in (([0, 1], "f4"), ([0, 1], "f4"), ([-0.0, 1], "f4"), ([0, 1], "i4"))]
        return [builder().constant(a) for a in (*arrays, arrays[0].reshape(2, 1))]

    after = cse(build(fn, types("f32:3")))
    assert [after.outputs.index(v) for v in after.outputs] == [0, 0, 2, 3, 4]
    kept = dce(after)
    assert len(kept.consts) == 4
    assert cse(kept) is kept


def test_dce_keeps_inputs_and_drops_the_rest() -> None:
    b = Builder()
    with b.active():
        x, y = (b.input(t) for t in types("f32:3", "f32:3"))
        b.constant(np.arange(3.0, dtype=np.float32))
        apply("exp", y)
        graph = b.finish([-x])
    after = dce(graph)
    assert (len(after.inputs), len(after.nodes), len(after.consts)) == (2, 1, 0)
    assert dce(after) is after


def test_fold_computes_small_constants_and_leaves_large_ones() -> None:
    small, large = np.arange(4.0, dtype=np.float32), np.arange(100.0, dtype=np.float32)

    def fold_of(array: np.ndarray[Any, Any], fn: Callable[[Sym], Sym]) -> Graph:
        b = Builder()
        with b.active():
            return dce(fold(b.finish([fn(b.constant(array))])))

    after = fold_of(small, lambda c: c * c)
    assert not after.nodes
    np.testing.assert_array_equal(after.consts[0][1], small * small)
    assert show(fold_of(small, lambda c: c.sum((0,)))) == "6.0"
    assert show(fold_of(small, lambda c: c.broadcast((2, 4)))) == "broadcast(const)"
    assert show(fold_of(large, lambda c: c.sum((0,)))) == "sum(const)"


def test_inline_opens_nested_calls() -> None:
    inner = build(lambda x: (x * x,), types("f32:3"))
    outer = build(
        lambda x: apply_many(
            "call", *apply_many("call", x, graph=inner, name="f", rule=None), graph=inner, name="g", rule=None
        ),
        types("f32:3"),
    )
    after = inline(build(lambda x: apply_many("call", x, graph=outer, name="h", rule=None), types("f32:3")))
    assert show(after) == "multiply(multiply(x, x), multiply(x, x))"
    verify_graph(after)
    assert inline(after) is after


def test_graphs_inside_are_optimized_too() -> None:
    def fn(x: Sym, xs: Sym) -> list[Sym]:
        return list(
            emit_scan(lambda c, v: [c * constant(1.0, c) + v, apply("negative", -v)], [x], [xs], 4, reverse=False)
        )

    graph = build(fn, types("f32:3", "f32:4x3"))
    after = optimize(graph, verify=True)
    (scan,) = [n for n in after.nodes if n.prim.name == "scan"]
    assert [n.prim.name for n in scan.params["body"].nodes] == ["add"]
    rng = np.random.default_rng(0)
    same_bits(graph, after, [rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs])


def test_nothing_to_do_gives_the_same_object() -> None:
    graph = build(lambda x, y: (x * y + x,), types(F, F))
    for step in GRAPH_PASSES:
        assert step.run(graph) is graph
    assert optimize(graph, verify=False) is graph
    assert all(step.reason for step in GRAPH_PASSES)


def deep(x: Sym, *weights: Sym) -> Sym:
    h = x
    for w in weights:
        h = apply("tanh", contract(h, w, "ij,jk->ik"))
        h = h - (h.sum((1,)).reshape((h.shape[0], 1)) / 6.0)
    return h.sum((0, 1))


def test_the_pipeline_is_fast() -> None:
    graph = build(lambda *xs: (deep(*xs),), types("f32:4x6", *["f32:6x6"] * 20))

    def gradient(*xs: Sym) -> list[Sym]:
        outputs, pullback = autodiff.vjp(graph, xs, range(len(xs)))
        return pullback([full(1.0, outputs[0])])

    whole = build(gradient, [v.type for v in graph.inputs])
    assert len(whole.nodes) > 400
    times = []
    for _ in range(5):
        start = time.perf_counter()
        optimize(whole, verify=False)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1  # some 5 ms where nothing else runs


def test_simplify_reaches_a_rest_in_one_walk_on_chains() -> None:
    def fn(x: Sym) -> list[Sym]:
        for _ in range(50):
            x = -x.transpose((1, 0))
        return [x]

    assert show(dce(simplify(build(fn, types(F))))).count("transpose") <= 50
    assert show(optimize(build(fn, types("f32:3x3")), verify=False)).count("(") <= 100


def test_slices_move_into_windows() -> None:
    x = Type((4, 15), DTYPES["f32"])
    for starts, stops, steps in [
        ((0, 1, 0), (4, 5, 3), (1, 1, 1)),
        ((1, 0, 1), (3, 6, 3), (2, 2, 1)),
        ((0, 4, 2), (4, 5, 3), (1, 1, 1)),
    ]:

        def fn(x: Sym, at: Any = (starts, stops, steps)) -> list[Sym]:
            seen = apply("window", x, axes=(1,), sizes=(3,), strides=(2,), dilations=(2,))
            return [apply("slice", seen, starts=at[0], stops=at[1], steps=at[2])]

        graph = build(fn, [x])
        after = simplify(graph)
        assert after.nodes[-1].prim.name == "window"
        same_bits(graph, after, [array(np.random.default_rng(1), x.shape, "f32")])


def test_slices_move_into_padding_and_products() -> None:
    x, w = Type((5, 6), DTYPES["f64"]), Type((7, 8), DTYPES["f64"])

    def fn(x: Sym, w: Sym) -> list[Sym]:
        fill = full(0.0, x)
        zero = apply("slice", fill, starts=(0, 0), stops=(1, 1), steps=(1, 1)).reshape(())
        wide = apply("pad", x, zero, low=(2, 1), high=(3, 0), interior=(0, 0))
        made = apply("contract", wide, w, x_axes=(0, 1), y_axes=(1, 2), out_axes=(0, 2))
        return [apply("slice", made, starts=(1, 2), stops=(6, 8), steps=(1, 3))]

    graph = build(fn, [x, w])
    after = optimize(graph, verify=True)
    (contract,) = (n for n in after.nodes if n.prim.name == "contract")
    assert after.outputs == contract.outputs
    (pad,) = (n for n in after.nodes if n.prim.name == "pad")
    assert (pad.params["low"], pad.params["high"]) == ((1, 1), (0, 0))
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=t.shape) for t in (x, w)]
    for mine, other in zip(run_graph(after, inputs), run_graph(graph, inputs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-14)


def test_slices_look_through_what_was_written_elsewhere() -> None:
    def fn(x: Sym) -> list[Sym]:
        made = apply("full", value=0.0, shape=(6, 9), dtype="f32")
        for k in range(5):
            row = apply("slice", x, starts=(k, 0), stops=(k + 1, 9), steps=(1, 1))
            made = apply("place", made, row, starts=(k, 0), steps=(1, 1))
        kept = apply("place", x, -row, starts=(2, 0), steps=(1, 1))
        cut = [((1, 2), (2, 7), (1, 2)), ((5, 0), (6, 9), (1, 1))]
        parts = [apply("slice", made, starts=a, stops=b, steps=s) for a, b, s in cut]
        return [*parts, apply("slice", kept, starts=(3, 0), stops=(6, 9), steps=(2, 1))]

    graph = build(fn, types("f32:6x9"))
    assert show(simplify(graph)) == "slice(x); 0.0; slice(x)"
    same_bits(graph, simplify(graph), [array(np.random.default_rng(1), (6, 9), "f32")])


def test_slices_of_places_keep_the_meaning() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)

        def ranges(n: int, rng: np.random.Generator = rng) -> tuple[int, int, int]:
            step, count = rng.integers(1, 4), rng.integers(1, 4)
            count = min(count, 1 + (n - 1) // step)
            start = rng.integers(0, n - (count - 1) * step)
            return int(start), int(start + (count - 1) * step + 1), int(step)

        def fn(x: Sym, ranges: Callable[[int], tuple[int, int, int]] = ranges) -> list[Sym]:
            made, out = x, []
            for k in range(5):
                at = [ranges(n) for n in x.shape]
                value = apply("full", value=float(k), shape=tuple(len(range(*a)) for a in at), dtype="f32")
                made = apply("place", made, value, starts=tuple(a[0] for a in at), steps=tuple(a[2] for a in at))
                starts, stops, steps = zip(*(ranges(n) for n in x.shape), strict=True)
                out.append(apply("slice", made, starts=starts, stops=stops, steps=steps))
            return out

        graph = build(fn, types("f32:7x5"))
        same_bits(graph, simplify(graph), [array(rng, (7, 5), "f32")])


def test_weighted_deviations_vanish_along_their_own_axis_alone() -> None:
    """The gradient of a softmax by the maximum is zero; sums that only look like it, on square arrays, are kept."""

    def fn(x: Sym, g: Sym, turned: Any) -> list[Sym]:
        def repeated(y: Sym, turn: bool = False) -> Sym:
            return apply("broadcast", y.reshape((1, 3) if turn else (3, 1)), shape=(3, 3))

        def summed(y: Sym) -> Sym:
            return apply("sum", y, axes=(1,))

        top = repeated(apply("max", x, axes=(1,)))
        e = apply("exp", x - top)
        z = repeated(summed(e), turned == "weights")
        a = g / z
        d = e * (a - repeated(summed(a * (e / z)), turned == "mean"))
        cond = apply("equal", x, top)
        share = summed(-d) / summed(cond.astype("f64"))
        return [d + apply("where", cond, repeated(share, turned == "share"), full(0.0, x))]

    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(3, 3)) for _ in range(2)]
    for turned, sums in (("", 2), ("weights", 4), ("mean", 4), ("share", 4)):
        graph = build(lambda x, g, turned=turned: fn(x, g, turned), types("f64:3x3", "f64:3x3"))
        after = optimize(graph, verify=True)
        assert sum(n.prim.name == "sum" for n in after.nodes) == sums, turned
        np.testing.assert_allclose(run_graph(after, inputs)[0], run_graph(graph, inputs)[0], atol=1e-14)


@pytest.mark.parametrize(
    "case", ["", "subtract", "divided", "scaled", "other axis", "changing", "not the mean", "of others"]
)
def test_deviations_from_a_mean_add_nothing_to_a_sum(case: str) -> None:
    """Where their factors do not change along the sum, and it is theirs; a factor or mean of inf or NaN shows."""
    mean_axis = 0 if case == "other axis" else 1

    def fn(x: Sym, y: Sym, s: Sym) -> list[Sym]:
        def repeated(v: Sym, axis: int = 1) -> Sym:
            return apply("broadcast", v.reshape((1, 4) if axis == 0 else (4, 1)), shape=(4, 4))

        total = apply("sum", x * x if case == "of others" else x, axes=(mean_axis,))
        count = full(5.0 if case == "not the mean" else 4.0, total)
        apart = x - repeated(total * full(0.25, total) if case == "scaled" else total / count, mean_axis)
        factor = repeated(s, 0 if case == "changing" else 1)
        term = apart / factor if case == "divided" else full(2.0, x) * apart * factor
        both = term - y if case == "subtract" else y + term
        return [apply("sum", -both, axes=(1,)), both]

    graph = build(fn, types("f64:4x4", "f64:4x4", "f64:4"))
    after = optimize(graph, verify=True)
    summed = [n.inputs[0] for n in after.nodes if n.prim.name == "sum"]
    left_out = after.inputs[1] in summed
    assert left_out == (case in ("", "subtract", "divided", "scaled"))
    rng = np.random.default_rng(0)
    x, y, s = rng.normal(size=(4, 4)), rng.normal(size=(4, 4)), rng.normal(size=4)
    for k, at in enumerate([None, *((a, v) for v in (np.inf, np.nan) for a in (x, s))]):
        if at is not None:
            at[0].flat[k % 4] = at[1]
        for mine, other in zip(run_graph(after, [x, y, s]), run_graph(graph, [x, y, s]), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-14)


@pytest.mark.parametrize(
    ("shape", "dtype", "divisor", "count", "left_out"),
    [
        ((2, 4), "f64", 2.0, 4.0, True),
        ((2, 4), "f64", np.inf, 4.0, False),
        ((2, 4), "f64", np.nan, 4.0, False),
        ((2, 4), "f64", 0.0, 4.0, False),
        ((2, 0), "f64", 2.0, 0.0, False),
        ((2, 2 * 10**6), "f32", 2.0, 2e6 - 1, False),
        ((2, 2 * 10**6), "f64", 2.0, 2e6 - 1, False),
        ((2, 2 * 10**6), "f32", 2.0, 2e6, True),
    ],
)
def test_deviations_are_left_out_where_they_sum_to_zero(
    shape: tuple[int, ...], dtype: str, divisor: float, count: float, left_out: bool
) -> None:
    """Not where they are scaled by inf or NaN, or divided by 0, are of nothing, or from what is nearly the mean."""

    def fn(x: Sym, y: Sym) -> list[Sym]:
        total = apply("sum", x, axes=(1,))
        mean = apply("broadcast", (total / full(count, total)).reshape((2, 1)), shape=shape)
        return [apply("sum", y + (x - mean) / full(divisor, x), axes=(1,))]

    graph = build(fn, [Type(shape, DTYPES[dtype]) for _ in range(2)])
    after = optimize(graph, verify=True)
    assert (after.inputs[1] in [n.inputs[0] for n in after.nodes if n.prim.name == "sum"]) == left_out


@pytest.mark.parametrize(
    ("case", "late"),
    [("", True), ("out", True), *((c, False) for c in ("turned", "absolute", "wide", "read", "f16"))],
)
def test_a_softmax_is_divided_after_what_it_weighs(case: str, late: bool) -> None:
    """Where that is smaller, and what is weighed is relative to the maximum that the weights are summed along."""
    dtype = "f16" if case == "f16" else "f64"
    out = (2, 0) if case == "out" else (0, 2)

    def fn(x: Sym, y: Sym) -> list[Sym]:
        def repeated(y: Sym, turn: bool = False) -> Sym:
            return apply("broadcast", y.reshape((1, 4) if turn else (4, 1)), shape=(4, 4))

        e = apply("exp", x if case == "absolute" else x - repeated(apply("max", x, axes=(1,))))
        p = e / repeated(apply("sum", e, axes=(1,)), case == "turned")
        weighed = apply("contract", p, y, x_axes=(0, 1), y_axes=(1, 2), out_axes=out)
        return [weighed, p] if case == "read" else [weighed]

    shape = (4, 4 if case == "wide" else 2)
    graph = build(fn, types(f"{dtype}:4x4", f"{dtype}:{shape[0]}x{shape[1]}"))
    after = optimize(graph, verify=True)
    names = [n.prim.name for n in after.nodes]
    assert (names.index("divide") > names.index("contract")) == late
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=s).astype(DTYPES[dtype]) for s in ((4, 4), shape)]
    for mine, other in zip(run_graph(after, inputs), run_graph(graph, inputs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-14 if dtype == "f64" else 1e-2)


def test_fold_counts_modulo_the_width_of_integers() -> None:
    far = np.array([-(2**63), 2**63 - 1])
    graph = build(lambda x: [x + x.builder.constant(far)], types("i64:2"))
    same_bits(graph, optimize(graph, verify=True), [np.array([5, -7])])
