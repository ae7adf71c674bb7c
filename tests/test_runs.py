"""Unrolled steps, which read other rows of one array, share their kernels: arguments begin where a kernel reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.compile import forget
from kernelforge.ir import runs

Array = np.ndarray[Any, Any]


def draw(*shape: int) -> Array:
    return (np.random.default_rng(len(shape)).normal(size=shape) * 0.3).astype(np.float32)


def lstm(w: Any, u: Any, b: Any, xs: Any) -> Any:
    h = c = np.zeros((xs.shape[1], u.shape[0]), np.float32)
    out = []
    for x in xs:
        i, f, g, o = np.split(x @ w + h @ u + b, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        out.append(h)
    return np.stack(out)


def weights(width: int, hidden: int) -> tuple[Array, Array, Array]:
    return draw(width, 4 * hidden), draw(hidden, 4 * hidden), draw(4 * hidden)


@pytest.mark.parametrize("derived", [False, True], ids=["forward", "gradient"])
def test_steps_that_read_other_rows_share_their_kernels(derived: bool) -> None:
    """An unrolled LSTM has as many kernels to compile for 20 steps as for 12; its gradient had three times as many."""
    given = weights(64, 128)

    def compiled(steps: int) -> int:
        fn = kf.jit(kf.grad(lambda *a: (lstm(*a) ** 2).sum(), (0, 1, 2)) if derived else lstm)
        with kf.default_device("cpu"):
            found = fn.lower(*given, draw(steps, 32, 64))
        assert len(found.kernels) > 2 * steps
        return len({k.executable for k in found.kernels})

    few, many = compiled(12), compiled(20)
    assert few == many < 20


def test_rows_are_read_where_they_are(device: str) -> None:
    given = weights(16, 32)
    for batch in (4, 3, 1):  # 256 bytes, and less, a step
        xs = draw(7, batch, 16)
        fn = kf.jit(lstm)
        for _ in range(3):  # later calls on the CPU go another way
            np.testing.assert_allclose(fn(*given, xs), lstm(*given, xs), atol=2e-6)
        taken = kf.jit(lstm)(*given, kf.asarray(xs))
        np.testing.assert_allclose(taken, lstm(*given, xs), atol=2e-6)
        np.testing.assert_allclose(fn(*given, xs[::-1]), lstm(*given, xs[::-1]), atol=2e-6)


def test_rows_of_what_another_kernel_made(device: str) -> None:
    def fn(x: Any, y: Any) -> Any:
        s = np.cumsum(x, axis=0)
        rows = [np.cumsum(s[k] * y, axis=0) for k in range(4)]
        return rows[0] + rows[3], s[2:5].max(), np.cumsum(s[1:3], axis=1) @ rows[1], rows[2][:0]

    x, y = draw(6, 64), draw(64)
    made = kf.jit(fn)
    for _ in range(3):
        for got, expected in zip(made(x, y), fn(x, y), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_what_a_loop_holds(device: str) -> None:
    def fn(x: Any, xs: Any) -> Any:
        def step(c: Any, v: Any) -> Any:
            return np.cumsum(c + v[1], axis=0), np.cumsum(v[2] * x[3], axis=0)

        return kf.scan(step, x[0] * 2, xs)

    x, xs = draw(4, 64), draw(5, 3, 64)
    c, ys = x[0] * 2, []
    for v in xs:
        c, y = np.cumsum(c + v[1]), np.cumsum(v[2] * x[3])
        ys.append(y)
    got = kf.jit(fn)(x, xs)
    np.testing.assert_allclose(got[0], c, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], np.stack(ys), rtol=1e-4, atol=1e-5)


def test_rows_of_what_is_donated() -> None:
    def fn(x: Any, y: Any) -> Any:
        z = np.cumsum(x[2:6], axis=0)
        return z * 2, y + x[1] * 3

    x, y = draw(8, 4096), draw(4096)
    expected = fn(x, y)
    step = kf.jit(fn, donate_argnums=(0, 1))
    with kf.default_device("cpu"):
        for _ in range(3):
            for got, wanted in zip(step(kf.asarray(x), kf.asarray(y)), expected, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_runs_begin_at_multiples() -> None:
    """A device may load vectors that begin at a multiple of their size."""
    forget()
    for width, first in ((64, 5), (16, 4), (3, 0), (65, 0), (128, 5)):
        graph = kf.jit(lambda x: x[5] * x[6:7, 1:2]).lower(draw(9, width)).graph
        slices = [n for n in graph.nodes if n.prim.name == "slice"]
        part = runs.Part(tuple(graph.nodes), graph.outputs)
        found, starts = runs.begun(part, ())
        ((run, (value, elements)),) = starts.items()
        assert value is graph.inputs[0]
        assert elements == range(first * width, 7 * width)
        assert elements.start * 4 % runs.ALIGNMENT == 0
        assert run.type.shape == (7 - first, width)
        assert {n.inputs for n in found.nodes if n.prim.name == "slice"} == {(run,)}
        assert runs.begun(part, graph.inputs) == (part, {})
        assert len(slices) == 2


def test_what_nothing_reads_is_no_argument() -> None:
    """An element of a row of what is put together comes from one of the parts."""
    xs = [draw(40, 30) + k for k in range(5)]

    def fn(xs: Any) -> Any:
        whole = np.float32(2) * np.concatenate(xs)
        return [np.cumsum(whole[40 * k : 40 * k + 40], axis=1) for k in range(5)]

    made = kf.jit(fn)
    with kf.default_device("cpu"):
        kernels = made.lower(xs).kernels
        assert [len(k.naive.args) for k in kernels] == [2] * 5
        assert len({k.executable for k in kernels}) == 1
        for got, x in zip(made(xs), xs, strict=True):
            np.testing.assert_allclose(got, np.cumsum(2 * x, axis=1), rtol=1e-5)
