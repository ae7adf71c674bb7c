"""Walks through blocks of columns: the meaning stays, memory is linear, and what is no walk is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.dtypes import DTYPES
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
    buffers = {a.name: np.full(int(np.prod([1, *shape])), 7, DTYPES[a.dtype]) for a in kernel.args if a.mode == "out"}
    # a kernel takes its arguments in the order in which it reads them: values after masks
    given = (np.ascontiguousarray(a).reshape(-1) for a in (*args[:2], *args[3:], args[2]))
    buffers |= dict(zip((a.name for a in kernel.args if a.mode == "in"), given, strict=True))
    run_kernel(kernel, buffers, {}, shuffle=shuffle)
    (out,) = (buffers[a.name] for a in kernel.args if a.mode == "out")
    return out.reshape(shape)


GOLDEN = [
    "a1_was[] = a1[]",
    "a1[] max= a0[r1_0] * 0.25f32",
    "a1_base0[] = select(a1[] == -inff32, 0.0f32, a1[])",
    "a1_by0[] = select(a1_was[] == a1[], 1.0f32, select(a1_was[] == -inff32, 0.0f32, exp(a1_was[] - a1[])))",
    "a0[h3_3] = exp(a0[h3_3] * 0.25f32 - a1_base0[])",
    "a2[] = a2[] * a1_by0[]",
    "a2[] += a0[r2_0]",
    "a4[c4_3] = a4[c4_3] * a1_by0[] + a4_s[]",
]


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
    assert len(walked_) == 1
    assert all(s.static is None for s in walked_)


def hidden(q: Any, k: Any, v: Any) -> Any:
    """A triangle that hides all columns of the first rows."""
    s = q @ np.swapaxes(k, -1, -2)
    return softmax(np.where(np.arange(s.shape[-2])[:, None] - 9 >= np.arange(s.shape[-1]), s, -np.inf)) @ v


def finite(q: Any, k: Any, v: Any) -> Any:
    """The same with a number in place of -inf, which softmax takes for what it is where there is nothing else."""
    s = q @ np.swapaxes(k, -1, -2)
    return softmax(np.where(np.arange(s.shape[-2])[:, None] - 9 >= np.arange(s.shape[-1]), s, np.float32(-1e9))) @ v


LATE = np.ones((37, 150), bool)
LATE[:, :64] = False
LATE[3] = False
LATE[5, :149] = False


def special(case: str) -> tuple[np.ndarray, ...]:
    q, k, v = heads(37, 150, 5, 1, 1)
    if case == "special":
        q[0, 0, 7, 2], k[0, 0, 100, 0], k[0, 0, 20, 1] = np.nan, np.inf, -np.inf
    return {"large": (q * np.float32(1e3), k * np.float32(1e3), v)}.get(case, (q, k, v))


@pytest.mark.parametrize("limits", [TINY, SMALL, LARGE], ids=["tiny", "small", "large"])
@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (masked, (*special("late"), LATE)),
        (masked, (*special("special"), LATE)),
        (attention, special("large")),
        (hidden, heads(150, 150, 5, 1, 1)),
        (finite, heads(150, 150, 5, 1, 1)),
    ],
    ids=["first columns hidden", "infinities and NaN", "large", "rows hidden", "finite"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_running_maximum_gives_what_the_maximum_gives(fn: Any, args: Any, limits: Any) -> None:
    kernel = naive(fn, *args)
    made = schedule(kernel, limits)
    assert [s for s in stmts(made.body) if isinstance(s, For) and "w1" in s.var.name]
    assert not [s for s in stmts(made.body) if isinstance(s, For) and "w2" in s.var.name]
    shape = fn(*args).shape
    want, found = run(kernel, args, shape), run(made, args, shape, shuffle=1)
    assert (np.isnan(found) == np.isnan(want)).all()
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 2e-3), ("bf16", 2e-2), ("f64", 1e-14)])
def test_casts_commute_with_scaling(dtype: str, tolerance: float) -> None:
    args = tuple(a.astype(DTYPES[dtype]) for a in heads(21, 150, 5, 1, 1))
    kernel = naive(attention, *args)
    made = schedule(kernel, LARGE)
    assert not [s for s in stmts(made.body) if isinstance(s, For) and "w2" in s.var.name]
    want, found = (run(k, args, (1, 1, 21, 5)).astype(np.float64) for k in (kernel, made))
    np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)


AMPERE = dataclasses.replace(GPU, group=1024, local_bytes=48 << 10, native=frozenset({"async", "mma", "f16", "bf16"}))


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 2e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (attention, heads(70, 150, 5, 1, 1)),
        (attention, heads(130, 67, 72, 1, 1)),
        (causal, heads(90, 90, 40, 1, 1)),
        (hidden, heads(90, 90, 16, 1, 1)),
        (grouped, (normal(1, 4, 33, 24), normal(1, 2, 65, 24, seed=1), normal(1, 2, 65, 24, seed=2))),
    ],
    ids=["odd", "wide", "causal", "rows hidden", "grouped"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tiles_for_tensor_cores_keep_the_meaning(fn: Any, args: Any, dtype: str, tolerance: float) -> None:
    shape = fn(*args).shape
    args = tuple(a.astype(DTYPES[dtype]) for a in args)
    kernel = naive(fn, *args)
    made = schedule(kernel, AMPERE)
    staged = {s.buffer: s.dtype for s in stmts(made.body) if isinstance(s, Alloc) and s.buffer in ("rows", "columns")}
    assert staged == {"rows": dtype, "columns": dtype}
    want, found = (run(k, args, shape).astype(np.float64) for k in (kernel, made))
    assert (np.isnan(found) == np.isnan(want)).all()
    np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)


def test_what_does_not_scale_waits_for_the_maximum() -> None:
    """What is relative to another row's maximum, and powers of what is; the sum of those is scaled by the square."""

    def levels(weights: Callable[[Any], Any]) -> int:
        def fn(q: Any, k: Any, v: Any) -> Any:
            s = q @ np.swapaxes(k, -1, -2)
            return weights(s) @ v

        made = schedule(naive(fn, *heads(9, 70, 4, 1, 1)), LARGE)
        return len([s for s in stmts(made.body) if isinstance(s, For) and s.var.name.startswith("i2w")])

    def relative(s: Any) -> Any:
        return np.exp(s - s.max(axis=-1, keepdims=True))

    assert levels(relative) == 1
    assert levels(lambda s: relative(s) * relative(s)) == 1
    assert levels(lambda s: relative(s) / relative(s).sum(axis=-1, keepdims=True) * s) == 1
    assert levels(lambda s: relative(s) + 1) == 2
    assert levels(lambda s: np.exp(2 * s - s.max(axis=-1, keepdims=True))) == 2
    assert levels(lambda s: np.tanh(s - s.max(axis=-1, keepdims=True))) == 2
    assert levels(lambda s: relative(s) / (relative(s).sum(axis=-1, keepdims=True) + s * s)) == 2


def test_a_walk_with_a_running_maximum_in_text() -> None:
    kernel = naive(attention, *heads(7, 32, 5, 1, 1))
    row = perfect(kernel.body[0])[0][-1].var.name  # type: ignore[arg-type]
    (walk,) = (s for s in stmts(walked(kernel, row, 16).body) if isinstance(s, For) and s.var.name == f"{row}w1")
    text = str(dataclasses.replace(kernel, body=(walk,)))
    assert [line.strip() for line in text.splitlines() if "a1" in line or "a2" in line] == GOLDEN


def test_no_buffer_grows_with_the_columns() -> None:
    few, many = (schedule(naive(attention, *heads(64, n, 16, 1, 1)), LARGE) for n in (128, 8192))
    shapes = [[s.shape for s in stmts(k.body) if isinstance(s, Alloc)] for k in (few, many)]
    assert shapes[0] == shapes[1]
    assert not [a for a in many.args if a.mode == "scratch"]


def compared(fn: Any, args: Any, tolerance: float = 1e-5) -> None:
    """Run each kernel on drawn arguments, as it is defined and as it is scheduled."""
    for kernel in kf.jit(fn).lower(*args, target="opencl:gfx90a").kernels:
        drawn = {
            a.name: normal(int(a.size.value), seed=k).astype(DTYPES[a.dtype]) for k, a in enumerate(kernel.naive.args)
        }
        for limits in (TINY, SMALL, LARGE):
            want, found = ({name: a.copy() for name, a in drawn.items()} for _ in range(2))
            run_kernel(kernel.naive, want, {})
            made = schedule(kernel.naive, limits)
            verify_kernel(made)
            run_kernel(made, found, {}, shuffle=1)
            for name in drawn:
                np.testing.assert_allclose(found[name], want[name], rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_minimum_sees_the_columns_that_are_left_out() -> None:
    def fn(q: Any, k: Any, v: Any) -> Any:
        s = q @ np.swapaxes(k, -1, -2)
        s = np.where(np.arange(s.shape[-2])[:, None] >= np.arange(s.shape[-1]), s, -np.inf)
        return softmax(s) @ v, s.min(axis=-1)

    compared(fn, heads(70, 70, 5, 1, 1))


def test_columns_of_another_dtype_have_a_buffer_of_their_own() -> None:
    def fn(q: Any, k: Any, v: Any) -> Any:
        s = q @ np.swapaxes(k, -1, -2)
        return softmax(s - (np.arange(s.shape[-2])[:, None] - np.arange(s.shape[-1])) * 0.1) @ v

    compared(fn, heads(20, 70, 5, 1, 1))


def test_classes_that_work_items_cannot_share_evenly() -> None:
    def fn(x: Any, w: Any, v: Any) -> Any:
        return softmax(np.maximum(x @ w, 0) @ v)

    args = normal(70, 24), normal(24, 40, seed=1), normal(40, 10, seed=2)
    kernel = naive(fn, *args)
    for limits in (TINY, SMALL, LARGE):
        np.testing.assert_allclose(run(schedule(kernel, limits), args, (70, 10)), fn(*args), rtol=1e-4, atol=1e-5)


def test_what_is_no_walk_is_refused() -> None:
    row = perfect(gemm(4, 8, 8).body[0])[0][-1].var.name  # type: ignore[arg-type]
    with pytest.raises(IllegalSchedule, match="nothing reduces what it makes of a row"):
        walked(gemm(4, 8, 8), row, 4)
    x, w = normal(64, 300), normal(300, 40, seed=1)
    for fn, reason in (
        (lambda x, w: softmax(x @ w), "a long contraction keeps more work-groups busy"),
        (lambda x, w: np.tanh(np.tanh(x @ w) @ w.T) @ w, "a row holds 300 elements besides its columns"),
    ):
        assert reason in kf.jit(fn).explain(x, w, target="opencl:gfx90a").words()
