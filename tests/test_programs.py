"""Programs as users of NumPy write them: values on every device, gradients, text forms, numbers of kernels."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge.ir.parse import parse_graph, parse_kernel
from kernelforge.ir.text import print_graph, print_kernel
from tests import further
from tests.programs import PROGRAMS, TRAINING, Program

DEVICES = list(kf.devices())
MAIN_DEVICES = [d for d in DEVICES if not further.is_further(d)]
TOLERANCE = {np.float64: 1e-11, np.float32: 2e-5}


def on_devices(programs: list[Program], devices: list[str]) -> Any:
    """Mark a test to run programs on devices; a further OpenCL runtime runs a part of them."""
    pairs = [(p, d) for p in programs for d in devices if not further.is_further(d) or p.name in further.PROGRAMS]
    return pytest.mark.parametrize(("program", "device"), pairs, ids=lambda x: getattr(x, "name", x))


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
    for got, w, n in zip(arrays(result), want, narrow, strict=True):
        assert got.dtype == (w.dtype if dtype is np.float64 else n)
        made = np.float32 if got.dtype == np.float32 else dtype  # f32 are those that a program asks for in any case
        tolerance = TOLERANCE[made] * (program.loose if made is np.float32 else 1)
        scale = np.abs(w[np.isfinite(w)]).max(initial=0) if w.dtype.kind == "f" else 0
        np.testing.assert_allclose(got, w, rtol=tolerance, atol=tolerance * scale)


@everything
def test_text_and_kernels(program: Program) -> None:
    """What it is compiled to reads back from its text, in few kernels.

    It stands before the tests that leave compiled kernels in the cache.
    """
    lowered = kf.jit(program.fn, static_argnames=program.static).lower(*program.args)
    for kernel in lowered.kernels:
        assert parse_kernel(print_kernel(kernel.ir)) == kernel.ir
    text = print_graph(lowered.graph)
    assert print_graph(parse_graph(text)) == text
    if program.kernels is not None:
        assert len(lowered.kernels) == program.kernels


@on_devices([*PROGRAMS, *TRAINING], MAIN_DEVICES)
def test_float64(program: Program, device: str) -> None:
    compare(program, np.float64, device)


@on_devices([*PROGRAMS, *TRAINING], DEVICES)
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


@on_devices([p for p in PROGRAMS if p.wrt], [d for d in DEVICES if d == "cpu" or d.startswith("opencl")])
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


def test_what_a_further_runtime_runs_is_there() -> None:
    assert set(further.PROGRAMS) <= {p.name for p in (*PROGRAMS, *TRAINING)}


@pytest.mark.parametrize("device", DEVICES)
def test_updates(device: str) -> None:
    """``x.at`` is no NumPy: what it stands for is."""
    x, i, v = np.arange(12.0).reshape(4, 3), np.array([1, 3, 1]), np.ones((3, 3))

    def fn(x: Any, i: Any, v: Any) -> Any:
        return x.at[i].add(v).at[0].set(7).at[:, ::2].multiply(2).at[2, 1].min(-1.0)

    want = x.copy()
    np.add.at(want, i, v)
    want[0] = 7
    want[:, ::2] *= 2
    want[2, 1] = -1
    with kf.default_device(device):
        np.testing.assert_array_equal(np.asarray(kf.jit(fn)(x, i, v)), want)
        dx, dv = kf.jit(kf.grad(lambda x, v: fn(x, i, v).sum(), argnums=(0, 1)))(x, v)
    np.testing.assert_array_equal(np.asarray(dx), [[0, 0, 0], [2, 1, 2], [2, 0, 2], [2, 1, 2]])
    np.testing.assert_array_equal(np.asarray(dv), [[2, 1, 2]] * 3)


@pytest.mark.parametrize("device", DEVICES)
def test_closures_static_and_default_arguments(device: str) -> None:
    scale = np.linspace(1, 2, 5)

    @kf.jit(static_argnames=("how", "power"))
    def fn(x: Any, *, how: str = "sum", power: int = 2, shift: float = 0.5) -> Any:
        y = (x * scale + shift) ** power
        return {"sum": y.sum, "max": y.max}[how]()

    x = np.linspace(-1, 1, 5)
    with kf.default_device(device):
        for kwargs in ({}, {"how": "max"}, {"power": 3, "shift": -1.0}, {"shift": 2.0}):
            assert float(fn(x, **kwargs)) == pytest.approx(float(fn.__wrapped__(x, **kwargs)), rel=1e-12)


SIMULATED = ["wave", "embedding", "layer_norm", "hash32", "attention"]

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
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(SIMULATED)


def long_chain(x: Any) -> Any:
    for _ in range(60):
        x = np.tanh(x) * 1.25 + 0.125
    return x


WEIGHTS = np.linspace(-0.1, 0.1, 400, dtype=np.float32).reshape(20, 20)


@pytest.mark.parametrize("device", MAIN_DEVICES)
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: long_chain(x).sum(1),
        lambda x: long_chain(x).sum(0),
        lambda x: long_chain(x.sum(1)),
        lambda x: long_chain(x - x.sum(1, keepdims=True)),
        lambda x: long_chain(x @ WEIGHTS),
        lambda x: long_chain(x) @ WEIGHTS,
        lambda x: np.cumsum(long_chain(x), 1),
        lambda x: np.take(long_chain(x), np.array([3, 1]), 0),
    ],
    ids=["row sum", "column sum", "of a sum", "beside a sum", "of a product", "in a product", "running", "taken"],
)
def test_steps_unrolled_by_the_hundred(fn: Any, device: str) -> None:
    x = np.random.default_rng(0).standard_normal((80, 20)).astype(np.float32)
    with kf.default_device(device):
        np.testing.assert_allclose(np.asarray(kf.jit(fn)(x)), fn(x.astype(np.float64)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "move", [lambda x: x[::-1], lambda x: x.T, lambda x: np.roll(x, 1, 0)], ids=["flip", "T", "roll"]
)
def test_steps_unrolled_between_views(move: Any) -> None:
    def steps(x: Any) -> Any:
        for _ in range(40):
            x = np.tanh(move(x) * 0.5) * 2
        return (x**2).sum()

    x = np.random.default_rng(0).standard_normal((12, 12)).astype(np.float32)
    with kf.default_device("cpu"):
        value, gradient = kf.jit(kf.value_and_grad(steps))(x)
    np.testing.assert_allclose(value, steps(x.astype(np.float64)), rtol=1e-5)
    ahead, behind = (steps(x.astype(np.float64) + d * np.eye(12)) for d in (1e-6, -1e-6))
    np.testing.assert_allclose(np.trace(gradient), (ahead - behind) / 2e-6, rtol=1e-3)


@pytest.mark.parametrize("device", MAIN_DEVICES)
def test_an_array_is_filled_by_the_hundred(device: str) -> None:
    """Each write of one element was repeated by all that read the array after it, until Python's stack was full."""

    def fill(x: Any) -> Any:
        made = np.zeros((x.shape[0] + 1, 3), x.dtype)
        for i in range(x.shape[0]):
            made[i, 0] = x[i] * made[i - 1, 0] if i else x[i]
            made[i + 1, 1] = made[i, 0] - x[i]
        return made, made.sum(0)

    x = np.random.default_rng(0).uniform(0.8, 1.2, 150)
    with kf.default_device(device):
        for got, want in zip(kf.jit(fill)(x), fill(x), strict=True):
            np.testing.assert_allclose(np.asarray(got), want, rtol=1e-12)
