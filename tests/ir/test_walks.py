"""Walks through blocks of columns: the meaning stays, memory is linear, and what is no walk is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.errors import IllegalSchedule
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import Alloc, Const, For, Kernel, stmts
from kernelforge.ir.schedule.nests import perfect
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.schedule.walks import walked
from kernelforge.ir.verify import verify_kernel
from tests.ir.naive import GPU, TINY, gemm
from tests.test_chains import attention, biased, causal, exact, grouped, heads, masked, normal, pulled, softmax

LARGE = dataclasses.replace(GPU, group=256)
SMALL = dataclasses.replace(GPU, group=64, local_bytes=12 << 10)


def naive(fn: Callable[..., Any], *args: Any) -> Kernel:
    """The one nest that defines a chain, as GPUs take it."""
    (kernel,) = kf.jit(fn).lower(*args, target="opencl:gfx90a").kernels
    return kernel.naive


def run(kernel: Kernel, args: tuple[np.ndarray, ...], shape: tuple[int, ...], shuffle: int | None = None) -> np.ndarray:
    buffers = {a.name: np.full(int(np.prod([1, *shape])), 7, np.float32) for a in kernel.args if a.mode == "out"}
    # a kernel takes its arguments in the order in which it reads them: values after masks
    given = (np.ascontiguousarray(a).reshape(-1) for a in (*args[:2], *args[3:], args[2]))
    buffers |= dict(zip((a.name for a in kernel.args if a.mode == "in"), given, strict=True))
    run_kernel(kernel, buffers, {}, shuffle=shuffle)
    (out,) = (buffers[a.name] for a in kernel.args if a.mode == "out")
    return out.reshape(shape)


MASK = normal(9, 21, seed=9) > 0
MASK[4] = False
CASES: list[tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = [
    (attention, heads(7, 19, 5, 1, 2)),
    (causal, heads(21, 21, 4, 1, 1)),
    (causal, heads(70, 130, 3, 1, 1)),
    (masked, (*heads(9, 21, 4, 1, 2), MASK)),
    (biased, (*heads(6, 16, 8, 1, 1), normal(6, 16, seed=5))),
    (grouped, (normal(1, 4, 6, 4), normal(1, 2, 10, 4, seed=1), normal(1, 2, 10, 4, seed=2))),
]


@pytest.mark.parametrize("size", [4, 16, 64])
@pytest.mark.parametrize(("fn", "args"), CASES)
def test_columns_are_walked_block_by_block(fn: Any, args: Any, size: int) -> None:
    kernel = naive(fn, *args)
    nest = kernel.body[0]
    assert isinstance(nest, For)
    row = perfect(nest)[0][-1].var.name
    made = walked(kernel, row, size)
    verify_kernel(made)
    want = exact(fn, *args)
    np.testing.assert_allclose(run(kernel, args, want.shape), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(made, args, want.shape), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limits", [TINY, SMALL, LARGE], ids=["tiny", "small", "large"])
@pytest.mark.parametrize(("fn", "args"), CASES)
def test_the_recipe_keeps_the_meaning_and_fits(fn: Any, args: Any, limits: Any) -> None:
    made = schedule(naive(fn, *args), limits)
    verify_kernel(made)
    want = exact(fn, *args)
    np.testing.assert_allclose(run(made, args, want.shape, shuffle=1), want, rtol=1e-4, atol=1e-5)
    held = {s.buffer: s for s in stmts(made.body) if isinstance(s, Alloc) and s.space == "local"}
    shapes = [[int(n.value) for n in s.shape if isinstance(n, Const)] for s in held.values()]
    assert 4 * sum(int(np.prod(s)) for s in shapes) <= limits.local_bytes


@pytest.mark.parametrize("fn", [attention, causal])
def test_gradients_keep_the_meaning(fn: Any) -> None:
    """Values with the gradient of queries, then those of keys and values, which walk queries."""
    args = heads(70, 70, 5, 1, 1)
    lowered = kf.jit(lambda ct, *args: pulled(fn, ct, *args)).lower(args[0], *args, target="opencl:gfx90a")
    assert len(lowered.kernels) == 3
    for kernel in lowered.kernels:
        first = {a.name: normal(int(a.size.value), seed=k) for k, a in enumerate(kernel.naive.args)}
        second = {name: a.copy() for name, a in first.items()}
        run_kernel(kernel.naive, first, {})
        run_kernel(schedule(kernel.naive, LARGE), second, {}, shuffle=1)
        for name, want in first.items():
            np.testing.assert_allclose(second[name], want, rtol=1e-3, atol=1e-4)


def test_blocks_that_a_triangle_hides_are_not_walked() -> None:
    made = schedule(naive(causal, *heads(300, 300, 8, 1, 1)), LARGE)
    walked_ = [s for s in stmts(made.body) if isinstance(s, For) and s.var.name.startswith("i2w")]
    assert len(walked_) == 3
    assert all(s.static is None for s in walked_)


def test_no_buffer_grows_with_the_columns() -> None:
    few, many = (schedule(naive(attention, *heads(64, n, 16, 1, 1)), LARGE) for n in (128, 8192))
    shapes = [[s.shape for s in stmts(k.body) if isinstance(s, Alloc)] for k in (few, many)]
    assert shapes[0] == shapes[1]
    assert not [a for a in many.args if a.mode == "scratch"]


def test_what_is_no_walk_is_refused() -> None:
    row = perfect(gemm(4, 8, 8).body[0])[0][-1].var.name  # type: ignore[arg-type]
    with pytest.raises(IllegalSchedule, match="nothing reduces what it makes of a row"):
        walked(gemm(4, 8, 8), row, 4)
    x, w = normal(64, 300), normal(300, 40, seed=1)
    for fn, reason in (
        (lambda x, w: softmax(x @ w), "a long contraction would be computed again"),
        (lambda x, w: np.tanh(np.tanh(x @ w) @ w.T) @ w, "a row holds 300 elements besides its columns"),
    ):
        assert reason in kf.jit(fn).explain(x, w, target="opencl:gfx90a").text(sources=False)
