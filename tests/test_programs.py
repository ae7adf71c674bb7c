"""Programs as users of NumPy write them: values on every device, gradients, text forms, numbers of kernels."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge.ir.parse import parse_graph, parse_kernel
from kernelforge.ir.text import print_graph, print_kernel
from tests.programs import PROGRAMS, TRAINING, Program

DEVICES = list(kf.devices())
GRADIENT_DEVICES = [d for d in DEVICES if d == "cpu" or d.startswith("opencl")][:2]
TOLERANCE = {np.float64: 1e-11, np.float32: 2e-5}

programs = pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
everything = pytest.mark.parametrize("program", [*PROGRAMS, *TRAINING], ids=lambda p: p.name)


def cast(tree: Any, dtype: Any) -> Any:
    return optree.tree_map(
        lambda x: x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x, tree
    )


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in optree.tree_leaves(tree)]


@functools.cache
def expected(program: Program) -> tuple[list[np.ndarray], list[np.dtype], Any]:
    """Return NumPy's results from float64, the dtypes it gives from float32, and the tree."""
    with np.errstate(all="ignore"):
        out = program.fn(*program.args)
        return (
            arrays(out),
            [x.dtype for x in arrays(program.fn(*cast(program.args, np.float32)))],
            optree.tree_structure(out),
        )


def compare(program: Program, dtype: Any, device: str) -> None:
    want, narrow, tree = expected(program)
    with kf.default_device(device):
        result = kf.jit(program.fn, static_argnames=program.static)(*cast(program.args, dtype))
    assert optree.tree_structure(result) == tree
    tolerance = TOLERANCE[dtype] * (program.loose if dtype is np.float32 else 1)
    for got, w, n in zip(arrays(result), want, narrow, strict=True):
        assert got.dtype == (w.dtype if dtype is np.float64 else n)
        scale = np.abs(w[np.isfinite(w)]).max(initial=0) if w.dtype.kind == "f" else 0
        np.testing.assert_allclose(got, w, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("device", DEVICES)
@everything
def test_float64(program: Program, device: str) -> None:
    compare(program, np.float64, device)


@pytest.mark.parametrize("device", DEVICES)
@everything
def test_float32(program: Program, device: str) -> None:
    compare(program, np.float32, device)


def loss_of(program: Program) -> Any:
    """Make the function of the arguments to differentiate by: a weighted sum of all results that are floats."""

    def loss(*floats: Any) -> Any:
        given = list(program.args)
        for i, x in zip(program.wrt, floats, strict=True):
            given[i] = x
        leaves = [x for x in optree.tree_leaves(program.fn(*given)) if np.dtype(x.dtype).kind == "f"]
        return sum((x * (0.3 + x)).sum() for x in leaves)

    return loss


@pytest.mark.parametrize("device", GRADIENT_DEVICES)
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.wrt], ids=lambda p: p.name)
def test_gradients(program: Program, device: str) -> None:
    loss = loss_of(program)
    floats = [program.args[i] for i in program.wrt]
    with kf.default_device(device):
        gradients = arrays(kf.jit(kf.grad(loss, argnums=tuple(range(len(floats)))))(*floats))
    for i, g in enumerate(gradients):
        direction = np.random.default_rng(i).normal(size=floats[i].shape)

        def along(h: float, i: int = i, direction: np.ndarray = direction) -> Any:
            return loss(*floats[:i], floats[i] + h * direction, *floats[i + 1 :])

        slope = float(along(1e-6) - along(-1e-6)) / 2e-6
        assert g.dtype == np.float64
        assert (g * direction).sum() == pytest.approx(slope, rel=2e-5, abs=2e-5)


@everything
def test_text_and_kernels(program: Program) -> None:
    """What it is compiled to reads back from its text, in few kernels."""
    lowered = kf.jit(program.fn, static_argnames=program.static).lower(*program.args)
    for kernel in lowered.kernels:
        assert parse_kernel(print_kernel(kernel.ir)) == kernel.ir
    text = print_graph(lowered.graph)
    assert print_graph(parse_graph(text)) == text
    if program.kernels is not None:
        assert len(lowered.kernels) == program.kernels


SIMULATED = ["wave", "embedding", "layer_norm", "hash32"]

CUDA = """
import numpy as np
import kernelforge as kf
from tests.test_programs import PROGRAMS, compare
assert any(d.startswith("cuda") for d in kf.devices()), kf.devices()
for program in PROGRAMS:
    if program.name in {names}:
        compare(program, np.float32, "cuda")
        print(program.name)
"""


def test_cuda_simulator() -> None:
    pytest.importorskip("numba.cuda")
    done = subprocess.run(
        [sys.executable, "-c", CUDA.format(names=SIMULATED)],
        env={**__import__("os").environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(SIMULATED)
