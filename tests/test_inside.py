"""Kernels read and write nothing outside of their arrays: values alone do not show it, the interpreter does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kernelforge as kf
from kernelforge import nn
from kernelforge.ir.interpret import evaluate, run_kernel
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.passes.finish import finish
from kernelforge.ir.schedule.recipes import schedule
from tests.ir.naive import DEVICES, DTYPES

RNG = np.random.default_rng(3)
BF16 = np.dtype(ml_dtypes.bfloat16)


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.standard_normal(shape).astype(dtype)


def long(x: Any) -> Any:
    y = x
    for i in range(20):
        y = y * 1.5 + x * i
    return np.pad(y, ((0, 8), (8, 0)))


def fold(g: Any) -> Any:
    return nn.fold(g, (18, 22), (6, 6), stride=(3, 3), padding=(3, 1), dilation=(2, 3))


def causal(q: Any, k: Any, v: Any) -> Any:
    return kf.grad(lambda q: nn.scaled_dot_product_attention(q, k, v, is_causal=True).astype(np.float32).sum())(q)


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "filter of height 1": (
        lambda x, w: nn.conv2d(x, w, padding=(1, 0)),
        (normal(1, 3, 8, 14), normal(1, 3, 1, 2)),
    ),
    "filter of height 1, channels": (
        lambda x, w: nn.conv2d(x, w, padding=(2, 1)),
        (normal(1, 3, 8, 14), normal(16, 3, 1, 3)),
    ),
    "shares of the filters of rows of whole vectors": (
        lambda x, w: nn.conv2d(x, w, padding=1),
        (np.ones((1, 8, 11, 16), np.float32), np.ones((40, 8, 3, 3), np.float32)),
    ),
    "long and padded": (long, (normal(4, 64),)),
    "fold": (fold, (normal(2, 36, 15),)),
    "narrow": (lambda x, w: (x @ w).sum(-1), (normal(4, 1, dtype=BF16), normal(1, 300, dtype=BF16))),
    "narrow attention": (causal, tuple(normal(1, 1, n, m, dtype=np.float16) for n, m in ((17, 4), (2, 4), (2, 1)))),
}


def run(kernel: Kernel) -> None:
    arrays = {a.name: np.zeros(evaluate(a.size, {}), DTYPES[a.dtype]) for a in kernel.args}
    run_kernel(kernel, arrays, {})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_nothing_outside(name: str, device: str) -> None:
    fn, args = CASES[name]
    lowered = kf.jit(fn).lower(*args)
    for kernel in lowered.kernels:
        run(kernel.ir)
        run(finish(schedule(kernel.naive, DEVICES[device]), frozenset()))


def relative(power: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    def fn(q: Any, k: Any, v: Any) -> Any:
        x = q @ np.swapaxes(k, -1, -2)
        most = x.max(axis=-1, keepdims=True)
        return power(np.exp(x - most), x - most, v)

    return fn


@pytest.mark.parametrize(
    "power",
    [
        lambda e, d, v: (e * (d * d).sum(axis=-1, keepdims=True)) @ v,
        lambda e, d, v: (e / np.abs(d).max(axis=-1, keepdims=True)) @ v,
        lambda e, d, v: (e * np.cos(d).sum(axis=-1, keepdims=True)).sum(axis=-1),
    ],
)
@pytest.mark.parametrize("device", ["gpu", "tiny"])
def test_factors_that_are_known_after_another_walk(power: Callable[..., Any], device: str) -> None:
    args = normal(9, 8), normal(70, 8), normal(70, 5)
    fn = relative(power)
    (kernel,) = kf.jit(fn).lower(*args).kernels
    made = finish(schedule(kernel.naive, DEVICES[device]), frozenset())
    expected = np.asarray(fn(*(a.astype(np.float64) for a in args)))
    out = np.zeros(expected.size, np.float32)
    given = [*(a.reshape(-1) for a in args[: len(made.args) - 1]), out]
    run_kernel(made, {a.name: g for a, g in zip(made.args, given, strict=True)}, {})
    np.testing.assert_allclose(out.reshape(expected.shape), expected, rtol=2e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [4, 64, 70])
def test_long_chains_before_sums(n: int, device: str) -> None:
    """The names that a chain of over sixteen maps gets stand in the loop of the sum, which goes in lanes."""

    def fn(x: Any, c: Any) -> Any:
        y = x
        for i in range(20):
            y = y * 1.5 + c * i
        return y.sum(-1, keepdims=True) * x

    x, c = normal(3, n), normal(3, 1)
    (kernel,) = kf.jit(fn).lower(x, c).kernels
    made = finish(schedule(kernel.naive, DEVICES[device]), frozenset())
    out = np.zeros(x.size, np.float32)
    first, second = (x, c) if evaluate(made.args[0].size, {}) == x.size else (c, x)
    arrays = dict(zip([a.name for a in made.args], (first.reshape(-1), second.reshape(-1), out), strict=True))
    run_kernel(made, arrays, {})
    np.testing.assert_allclose(out.reshape(x.shape), fn(x.astype(np.float64), c.astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize("device", ["avx512", "sse"])
def test_sums_over_rows_of_several_columns(device: str) -> None:
    """Each expert's gradient is a sum over rows with a loop over experts around its tiles, which end within the row."""

    def loss(first: Any, second: Any, x: Any) -> Any:
        h = np.tanh(np.einsum("td,edh->teh", x, first))
        return ((np.einsum("teh,ehd->td", h, second) - x) ** 2).mean()

    fn = kf.jit(kf.grad(loss, (0, 1)))
    (kernel,) = fn.lower(normal(16, 8, 3), normal(16, 3, 8), normal(1400, 8)).kernels
    run(finish(schedule(kernel.naive, DEVICES[device]), frozenset()))
