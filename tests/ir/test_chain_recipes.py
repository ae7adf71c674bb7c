"""Chains whose rows are the axis along memory: what a block of rows reads and stores is read and stored along it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.ir.index import affine
from kernelforge.ir.kernel import Alloc, For, Kernel, Load, Store, Var, i64, stmts
from kernelforge.ir.passes.guard import guard
from kernelforge.ir.passes.share import share
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.nests import loads
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.verify import verify_kernel
from tests.ir.naive import AVX512, kernel, same


def mixed(x: Any, w: Any, v: Any) -> Any:
    """Two layers along the channels of ``x``, of shape (batch, channels, positions), beside what they start from."""
    hidden = np.tanh(np.einsum("bct,ck->bkt", x, w))
    return np.maximum(x + np.einsum("bkt,kc->bct", hidden, v), 0)


def chain(batch: int, channels: int, width: int, positions: int) -> Kernel:
    shapes = (batch, channels, positions), (channels, width), (width, channels)
    (found,) = kf.jit(mixed).lower(*(np.ones(s, np.float32) for s in shapes)).kernels
    return found.naive


def across(made: Kernel) -> list[str]:
    """The arguments of a kernel that lanes read or write apart."""
    known = {a.name for a in made.args if a.mode != "scratch"}
    lanes = [s for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"]
    return [
        e.buffer
        for lane in lanes
        for e in (*loads((lane,)), *(s for s in stmts(lane.body) if isinstance(s, Store)))
        if e.buffer in known and affine(e.index[0], lane.var) not in (0, 1)
    ]


@pytest.mark.parametrize("shape", [(2, 40, 24, 320), (3, 33, 50, 129), (1, 64, 8, 24), (40, 16, 16, 9)])
def test_rows_along_memory(shape: tuple[int, int, int, int]) -> None:
    naive = chain(*shape)
    made = schedule(naive, AVX512)
    verify_kernel(made)
    same(naive, made, shuffle=1)
    same(naive, share(guard(made)))
    assert not across(made)
    assert {"x0", "y0"} <= {e.buffer for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"
                            for e in (*loads((s,)), *(t for t in stmts(s.body) if isinstance(t, Store)))}  # fmt: skip


def test_what_blocks_add_to_sums_is_packed_along_memory() -> None:
    """A gradient of the weights: the cotangent of a row lies along rows, too."""

    def loss(w: Any, v: Any, x: Any) -> Any:
        return (mixed(x, w, v) ** 2).sum()

    args = [np.ones(s, np.float32) for s in ((32, 32), (32, 32), (4, 32, 2048))]
    chained = [k.naive for k in kf.jit(kf.grad(loss, argnums=(0, 1))).lower(*args).kernels if "local" in str(k.naive)]
    assert chained
    for naive in chained:
        assert not across(schedule(naive, AVX512))


def test_what_rows_add_is_stored_along_memory() -> None:
    """Lanes are those of the result's last axis, whichever operand of a sum over rows the kernel makes."""

    def loss(w: Any, x: Any) -> Any:
        hidden = np.tanh(x @ w)
        return ((hidden @ w.T - x) ** 2).sum()

    args = [np.ones(s, np.float32) for s in ((16, 24), (4096, 16))]
    sums = [k.naive for k in kf.jit(kf.grad(loss)).lower(*args).kernels if "global" in str(k.naive)]
    assert sums
    for naive in sums:
        made = schedule(naive, AVX512)
        verify_kernel(made)
        partial = {s.buffer for s in stmts(naive.body) if isinstance(s, Alloc) and s.space == "global"}
        lanes = [s for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"]
        added = [(s, t) for s in lanes for t in s.body if isinstance(t, Store) and t.buffer in partial]
        assert {t.buffer for _, t in added} == partial
        assert all(affine(t.index[-1], s.var) == 1 for s, t in added)
        same(naive, made, shuffle=1)


def test_a_batch_of_sums_over_rows_is_tiled() -> None:
    """Experts: what a row adds for each of them is a tile of registers, too."""

    def loss(w: Any, v: Any, x: Any) -> Any:
        hidden = np.tanh(np.einsum("td,edh->teh", x, w))
        return (np.einsum("teh,ehd->td", hidden, v) ** 2).sum()

    args = [np.ones(s, np.float32) for s in ((4, 64, 128), (4, 128, 64), (512, 64))]
    kernels = [k.naive for k in kf.jit(kf.grad(loss)).lower(*args).kernels if "global" in str(k.naive)]
    partial = [s.buffer for k in kernels for s in stmts(k.body) if isinstance(s, Alloc) and s.space == "global"]
    made = [s.buffer for k in kernels for s in stmts(schedule(k, AVX512).body) if isinstance(s, Alloc)]
    assert partial
    assert {f"{p}_s" for p in partial} <= set(made)


def test_reductions_across_a_row_own_columns() -> None:
    """The maximum of points, for each channel, before a product: lanes are the channels."""

    def pooled(x: Any, w: Any) -> Any:
        scores = np.maximum(x, 0).max(1) @ w
        return scores - scores.max(1, keepdims=True)

    (found,) = kf.jit(pooled).lower(np.ones((6, 50, 37), np.float32), np.ones((37, 10), np.float32)).kernels
    made = schedule(found.naive, AVX512)
    verify_kernel(made)
    same(found.naive, made, shuffle=1)
    same(found.naive, share(guard(made)))
    lanes = [s for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"]
    assert any(e.buffer == "x0" for s in lanes for e in loads((s,)))
    assert not across(made)


def test_elements_of_a_row_are_walked_along_memory_beside_one_of_each_column() -> None:
    """Squeeze and excitation: what is stored for each channel joins the walk through the channel's elements."""

    def excited(x: Any, w: Any) -> Any:
        squeezed = x.mean(2)
        gates = np.maximum(squeezed @ w, 0) @ w.T
        return squeezed, x * gates[:, :, None]

    (found,) = kf.jit(excited).lower(np.ones((8, 32, 70), np.float32), np.ones((32, 10), np.float32)).kernels
    made = schedule(found.naive, AVX512)
    verify_kernel(made)
    same(found.naive, made, shuffle=1)
    assert {"x0", "y0", "y1"}.isdisjoint(across(made))


def test_merging_loops_hides_no_variable() -> None:
    """Loops join only where one takes the other's variable throughout."""
    i, j, n = Var("i", "i64", 8), Var("j", "i64", 8), i64(8)
    x = Load("x", (i * 8 + j,), "f32")
    first = For(i, n, "parallel", (Store("t", (i,), Load("x", (i,), "f32")),))
    second = For(j, n, "parallel", (For(i, n, "parallel", (Store("o", (i * 8 + j,), x),)),))
    body = (Alloc("t", "f32", (n,), "local"), first, second)
    k = kernel("hidden", (("x", 64),), 64, For(Var("w", "i64", 1), i64(1), "grid", body))
    same(k, merge(k))
    assert merge(k) == k
