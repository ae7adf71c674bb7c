"""Every primitive on every device: values, first and second derivatives, against the NumPy rules."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest

from kernelforge.backends.registry import available
from kernelforge.compile import compile_graph
from kernelforge.config import Config
from kernelforge.dtypes import is_float
from kernelforge.errors import NotDifferentiable, UnsupportedOnDevice
from kernelforge.ir import autodiff
from kernelforge.ir.build import Builder, Sym, apply, build, full
from kernelforge.ir.graph import Graph, Kind, Value
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.types import Type
from kernelforge.runtime.memory import download, upload
from tests import further
from tests.ir.cases import Arrays, close, dtypes, names, samples, tolerance

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
WITH_KERNEL = [n for n in names() if PRIMITIVES[n].kind is not Kind.OPAQUE]
DIFFERENTIABLE = [n for n in WITH_KERNEL if not isinstance(PRIMITIVES[n].vjp, str)]


@functools.cache
def devices() -> dict[str, object]:
    found = available()
    return {n: d for n, d in found.items() if n.startswith("cuda") == SIMULATED}


NAMES = [n for n, d in devices().items() if not isinstance(d, str)]


def run(graph: Graph, inputs: Arrays, device: str) -> Arrays:
    backend = devices()[device]
    plan = compile_graph(graph, backend, Config())  # type: ignore[arg-type]
    buffers = [upload(backend, np.ascontiguousarray(a).reshape(a.shape)) for a in inputs]  # type: ignore[arg-type]
    made = plan.run(buffers)
    return [download(b, 0, v.type.shape, v.type.dtype) for b, v in zip(made, graph.outputs, strict=True)]


class Case(NamedTuple):
    graph: Graph
    inputs: Arrays
    dtype: str
    rtol: float


def check(cases: Sequence[Case], device: str) -> None:
    """Compute all cases in one plan, where maps share a launch and one program has all kernels; in halves where the
    device refuses some of them.
    """
    try:
        made = run(together([c.graph for c in cases]), [a for c in cases for a in c.inputs], device)
    except UnsupportedOnDevice as refused:
        half = len(cases) // 2
        if not half:
            assert cases[0].dtype in str(refused)  # noqa: PT017
            return
        check(cases[:half], device)
        check(cases[half:], device)
        return
    wanted = [(want, c.rtol) for c in cases for want in run_graph(c.graph, c.inputs)]
    for got, (want, rtol) in zip(made, wanted, strict=True):
        close(np.asarray(got), want, rtol)


def together(graphs: list[Graph]) -> Graph:
    b = Builder()
    outputs: list[Value] = []
    with b.active():
        for graph in graphs:
            values = b.replay(graph, [b.input(v.type) for v in graph.inputs])
            outputs += [values[v] for v in graph.outputs]
    return Graph(tuple(b.inputs), tuple(b.nodes), tuple(outputs), tuple(b.consts))


@pytest.mark.parametrize("device", NAMES)
@pytest.mark.parametrize("name", WITH_KERNEL)
def test_values(name: str, device: str) -> None:
    prim = PRIMITIVES[name]
    chosen = dtypes(prim) if not SIMULATED else dtypes(prim)[-1:]
    if further.is_further(device):
        chosen = [d for d in chosen if d in further.DTYPES] or chosen
    check([Case(*sample, d, tolerance(prim, d)) for d in chosen for sample in samples(prim, d)], device)


def gradient(graph: Graph) -> Graph | None:
    """Make the graph of a fixed cotangent pulled back to the float inputs, or None where there are none."""
    wrt = [k for k, v in enumerate(graph.inputs) if is_float(v.type.dtype)]
    if not wrt or not is_float(graph.outputs[0].type.dtype):
        return None

    def fn(*syms: Sym) -> list[Sym]:
        outputs, pull = autodiff.vjp(graph, syms, wrt)
        weights = [o * 0.5 + 1.0 for o in outputs]
        return pull(weights)

    return build(fn, [v.type for v in graph.inputs])


def smooth(inputs: Arrays) -> bool:
    return all(a.dtype.kind != "f" or (np.isfinite(a).all() and (np.abs(a) < 50).all()) for a in inputs)


GRADIENTS = [
    (n, d, order) for n in DIFFERENTIABLE for d in NAMES for order in (1, 2)
    if not further.is_further(d) or (n in further.PRIMITIVES and order == 1)
]  # fmt: skip


@pytest.mark.parametrize(("name", "device", "order"), GRADIENTS)
def test_gradients(name: str, device: str, order: int) -> None:
    prim = PRIMITIVES[name]
    chosen = ("f32",) if further.is_further(device) else ("f64",) if SIMULATED else ("f64", "f32")
    cases = []
    for dtype in (d for d in chosen if d in dtypes(prim)):
        for graph, inputs in samples(prim, dtype):
            if not smooth(inputs):
                continue
            made: Graph | None = graph
            try:
                for _ in range(order):
                    made = gradient(made) if made is not None and made.outputs else None
            except NotDifferentiable as refused:
                assert "mode" in str(refused)  # noqa: PT017 - one mode of a primitive whose others have derivatives
                continue
            if made is not None and made.outputs:
                cases.append(Case(made, inputs, dtype, 100 * tolerance(prim, dtype)))
    check(cases, device)


def test_what_a_further_runtime_runs_is_there() -> None:
    assert set(further.PRIMITIVES) <= set(DIFFERENTIABLE)


@pytest.mark.skipif(SIMULATED, reason="this is the child that the test starts")
def test_the_table_under_the_cuda_simulator() -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", __file__],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-4000:]


@pytest.mark.parametrize("device", NAMES)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_whole_powers(dtype: str, device: str) -> None:
    """Exponents that the compiler knows are products, whose values are those of powers; so are derivatives."""
    kinds = {"f32": np.float32, "f64": np.float64}
    x = np.random.default_rng(0).normal(size=301).astype(kinds[dtype])
    x[:5] = 0, -0.0, np.inf, -np.inf, np.nan

    def fn(x: Sym) -> list[Sym]:
        return [apply("power", x, full(float(n), x)) for n in (4, 6, 7, 12, -2, -3, -6)]

    graph = build(fn, [Type(x.shape, x.dtype)])
    with np.errstate(all="ignore"):
        for g in (graph, gradient(graph)):
            assert g is not None
            for got, want in zip(run(g, [x], device), run_graph(g, [x]), strict=True):
                np.testing.assert_allclose(got, want, rtol=64 * np.finfo(x.dtype).eps)
