"""Every primitive through fusion, lowering and both kinds of schedule, in the interpreter, against its NumPy rule."""

from __future__ import annotations

import numpy as np
import pytest

from kernelforge.dtypes import DTYPES
from kernelforge.ir import demand
from kernelforge.ir.applied import to_kernel
from kernelforge.ir.build import apply, build
from kernelforge.ir.demand import Part, Refused
from kernelforge.ir.fuse import fuse
from kernelforge.ir.graph import Graph, Kind
from kernelforge.ir.interpret import run_graph, run_kernel
from kernelforge.ir.kernel import Alloc
from kernelforge.ir.lower import buffers_of, lower
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.passes.finish import finish
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.types import Type
from kernelforge.ir.verify import verify_kernel
from tests.ir.cases import close, dtypes, names, samples, tolerance
from tests.ir.naive import AVX512, TINY

F32 = np.dtype(np.float32)
WITH_KERNEL = [n for n in names() if PRIMITIVES[n].kind is not Kind.OPAQUE]


def run(graph: Graph, inputs: list[np.ndarray], limits, columns: bool = False) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    values = dict(zip(graph.inputs, inputs, strict=True)) | dict(graph.consts)
    for region in fuse(graph, columns=columns).regions:
        applied = to_kernel("k", region.parts, {})
        kernel, held = applied.kernel, applied.values
        if limits is not None:
            kernel = finish(schedule(kernel, limits), frozenset())
        verify_kernel(kernel)
        arrays = {a.name: np.zeros(a.size.value, DTYPES[a.dtype]) for a in kernel.args}  # type: ignore[attr-defined]
        for arg, value in zip(kernel.args, held, strict=False):
            if arg.mode == "in":
                arrays[arg.name] = np.ascontiguousarray(values[value]).reshape(-1).view(DTYPES[arg.dtype])
        run_kernel(kernel, arrays, {})
        for arg, value in zip(kernel.args, held, strict=False):
            if arg.mode == "out":
                values[value] = arrays[arg.name].view(value.type.dtype).reshape(value.type.shape)
    return [values[v] for v in graph.outputs]


@pytest.mark.parametrize("form", ["naive", "vector", "group"])
@pytest.mark.parametrize("name", WITH_KERNEL)
def test_every_primitive(name: str, form: str) -> None:
    prim = PRIMITIVES[name]
    limits = {"naive": None, "vector": AVX512, "group": TINY}[form]
    some = [d for d in dtypes(prim) if d in ("f16", dtypes(prim)[-1])]
    for dtype in dtypes(prim) if form == "naive" else some:
        for graph, inputs in samples(prim, dtype):
            if not graph.outputs[0].type.size:
                continue
            for got, want in zip(run(graph, inputs, limits), run_graph(graph, inputs), strict=True):
                close(got, want, tolerance(prim, dtype))


def part(fn, *shapes: tuple[int, ...]) -> Part:  # type: ignore[no-untyped-def]
    graph = build(fn, [Type(s, F32) for s in shapes])
    return Part(graph.nodes, graph.outputs)


def bias_gradient(x, g):  # type: ignore[no-untyped-def]
    y = apply("exp", x) * g
    return y, y.sum((0,)) * y.sum((0,)), apply("max", x, axes=(0,))


def norm_gradient(x, g):  # type: ignore[no-untyped-def]
    mean = apply("broadcast", (x.sum((2,)) * (1 / x.shape[2])).reshape((*x.shape[:2], 1)), shape=x.shape)
    y = (x - mean) * g
    return y, x.sum((2,)), y.sum((0, 1)), g.sum((0, 1))


@pytest.mark.parametrize("form", ["naive", "vector"])
@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        *((bias_gradient, s) for s in [(32, 64), (33, 70), (300, 81), (17000, 64), (40, 8, 9)]),
        *((norm_gradient, s) for s in [(4, 8, 64), (5, 7, 100), (1, 700, 65)]),
    ],
)
def test_columns_are_made_beside_the_rows(fn, shape: tuple[int, ...], form: str) -> None:  # type: ignore[no-untyped-def]
    graph = build(fn, [Type(shape, F32)] * 2)
    (region,) = fuse(graph, columns=True).regions
    kernel = to_kernel("k", region.parts, {}).kernel
    assert {s.space for s in kernel.body if isinstance(s, Alloc)} == {"global"}
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=shape).astype(F32) for _ in range(2)]
    exact = run_graph(graph, inputs)
    for got, want in zip(run(graph, inputs, AVX512 if form == "vector" else None, columns=True), exact, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_columns_that_the_rows_need_come_first() -> None:
    def centred(x):  # type: ignore[no-untyped-def]
        return (x - apply("broadcast", x.sum((0,)), shape=x.shape), apply("max", x, axes=(0,)))

    graph = build(centred, [Type((64, 80), F32)])
    inputs = [np.random.default_rng(2).normal(size=(64, 80)).astype(F32)]
    for got, want in zip(run(graph, inputs, AVX512, columns=True), run_graph(graph, inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_columns_and_rows_of_a_square_do_not_make_an_output_together() -> None:
    """Its element k takes the sum over all rows of column k, and that along row k."""

    def both(x, y):  # type: ignore[no-untyped-def]
        return (x.sum((0,)) + apply("exp", y).sum((1,)),)

    for shape in ((64, 33), (64, 64)):
        graph = build(both, [Type((64, 64), F32), Type(shape, F32)])
        assert len(fuse(graph, columns=True).regions) == 2
        inputs = [np.random.default_rng(2).normal(size=s).astype(F32) for s in ((64, 64), shape)]
        for got, want in zip(run(graph, inputs, AVX512, columns=True), run_graph(graph, inputs), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def product_and_sum(x, y):  # type: ignore[no-untyped-def]
    return apply("contract", x, y, x_axes=(0, 1), y_axes=(1, 2), out_axes=(0, 2)), x.sum((1,))


def test_refusals_say_why() -> None:
    def stencil(x):  # type: ignore[no-untyped-def]
        for _ in range(8):
            y = apply("exp", x)
            x = apply("slice", y, starts=(0,), stops=(y.shape[0] - 1,), steps=(1,)) + apply(
                "slice", y, starts=(1,), stops=(y.shape[0],), steps=(1,)
            )
        return (x, y)

    with pytest.raises(Refused, match=r"outputs of shapes|computed again"):
        buffers_of(part(stencil, (40,)))
    with pytest.raises(Refused, match="different numbers of results"):
        buffers_of(part(lambda x: (x.sum((0,)), x.sum((1,))), (4, 6)))
    with pytest.raises(Refused, match="from several rows"):
        buffers_of(part(lambda x: (x.sum((1,)) + apply("flip", x.sum((1,)), axes=(0,)),), (4, 6)))
    with pytest.raises(Refused, match="a contraction shares its kernel"):
        buffers_of(part(product_and_sum, (4, 6), (6, 1)))


def test_what_a_view_asks_for_is_found_once() -> None:
    """Fusion tries a group again for each node that may join it; what lowering reads in the end is what trials say."""

    def steps(x):  # type: ignore[no-untyped-def]
        for _ in range(3):
            x = apply("exp", x)
            ends = (apply("slice", x, starts=(k,), stops=(n,), steps=(1,)) for k, n in ((2, 7), (0, 2)))
            x = apply("concatenate", *ends, axis=0)
        return x

    graph = build(lambda x: (steps(x),), [Type((7,), F32)])
    grown = [Part(graph.nodes[k:], graph.outputs) for k in (8, 4, 0)]
    demand._asked.cache_clear()
    found = [buffers_of(p) for p in grown[:1]]
    first = demand._asked.cache_info().misses
    found += [buffers_of(p) for p in grown[1:]]
    assert demand._asked.cache_info().hits > first > 0
    for p, buffers in zip(grown, found, strict=True):
        nest = lower(p)
        assert buffers == len(nest.inputs) + len(nest.outputs)
