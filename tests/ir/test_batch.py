"""Batches of every primitive: the table's samples, with each choice of inputs that have a batch, example by example."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from kernelforge.ir.batch import every
from kernelforge.ir.build import Sym, apply, apply_many, build
from kernelforge.ir.graph import Graph, Kind
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.types import Type
from tests.ir.cases import Arrays, close, dtypes, names, samples

SIZE = 3


def batched(graph: Graph, has: tuple[bool, ...]) -> Graph:
    def fn(*syms: Sym) -> list[Sym]:
        return every(graph, syms, has, SIZE)

    types = [v.type for v in graph.inputs]
    return build(fn, [Type((SIZE, *t.shape), t.dtype) if h else t for t, h in zip(types, has, strict=True)])


def varied(x: np.ndarray, name: str) -> np.ndarray:  # type: ignore[type-arg]
    """Examples that differ: along the elements, so that indices stay indices and predicates differ, too."""
    if x.dtype == bool and not x.ndim:
        return np.array([bool(x), not x, bool(x)])
    if x.ndim and x.size > 1:
        return np.stack([np.roll(x, k) for k in range(SIZE)])
    if x.dtype.kind == "f" and name != "while_loop":
        return np.stack([x * np.asarray(k + 1, x.dtype) for k in range(SIZE)])
    return np.stack([x] * SIZE)


def cases(name: str) -> Iterator[tuple[Graph, Arrays]]:
    prim = PRIMITIVES[name]
    if prim.kind is not Kind.OPAQUE:
        yield from samples(prim, dtypes(prim)[-1])
        return
    for s in prim.sample():  # their dtypes are those of the graphs inside
        types = [Type(x.shape, x.dtype) for x in s.inputs]
        yield build(lambda *syms, s=s: apply_many(name, *syms, **s.params), types), s.inputs


@pytest.mark.parametrize("name", names())
def test_a_batch_is_its_examples(name: str) -> None:
    for graph, inputs in cases(name):
        some: Arrays = [varied(np.asarray(x), name) for x in inputs]
        for has in itertools.product((False, True), repeat=len(inputs)):
            if not any(has):
                continue
            given = [s if h else x for s, x, h in zip(some, inputs, has, strict=True)]
            found = run_graph(batched(graph, has), given)
            each = [run_graph(graph, [g[k] if h else g for g, h in zip(given, has, strict=True)]) for k in range(SIZE)]
            for got, *wanted in zip(found, *each, strict=True):
                close(np.asarray(got), np.stack(wanted), 1e-12 if got.dtype == np.float64 else 1e-5)


def test_what_has_no_batch_is_computed_once() -> None:
    graph = build(lambda x, y: [x * apply("sin", y)], [Type((4,), np.dtype("f4"))] * 2)
    made = batched(graph, (True, False))
    (sine,) = (n for n in made.nodes if n.prim.name == "sin")
    assert sine.output.type.shape == (4,)
