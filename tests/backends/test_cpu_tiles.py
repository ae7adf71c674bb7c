"""Tiles of stores that are transposed in registers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.backends.cpu.printer import print_kernel
from kernelforge.dtypes import DTYPES
from kernelforge.ir.kernel import Const, For, If, Kernel, Let, Load, Op, Stmt, Store, Var, i64, op, stmts
from tests.backends.on_cpu import CPU, buffer, compare

LANES = 8


def tile(count: int, step: int, dtype: str, guarded: bool = False) -> Kernel:
    """Build ``y[v * step + u] = x[u * 8 + v]`` for u < count, v < 8, in each of 3 blocks."""
    u, v, g = Var("u", bound=count), Var("v", bound=LANES), Var("g", bound=3)
    value = Load("x", ((g * count + u) * LANES + v,), dtype)
    lets: tuple[Stmt, ...] = ()
    if guarded:
        lets = (Let("t", g * count + u < 3 * count - 1),)
        value = op("select", Var("t", "bool"), value, Const(7, dtype))
    store = Store("y", (g * (LANES * step) + v * step + u,), value)
    body = For(u, i64(count), "unroll", (*lets, For(v, i64(LANES), "vector", (store,))))
    args = (buffer("x", dtype, 3 * count * LANES), buffer("y", dtype, 3 * step * LANES, "out"))
    return Kernel("tile", args, (), (For(g, i64(3), "grid", (body,)),))


@pytest.mark.parametrize("dtype", ["f32", "f64", "i8", "u16", "f16", "bool"])
@pytest.mark.parametrize(("count", "step"), [(2, 2), (3, 3), (4, 4), (6, 6), (8, 8), (8, 11), (8, 40)])
def test_a_transposed_tile_is_stored_in_whole_vectors(count: int, step: int, dtype: str) -> None:
    for guarded in (False, True):
        kernel = tile(count, step, dtype, guarded)
        x = np.arange(3 * count * LANES).astype(DTYPES[dtype])
        compare(kernel, {"x": x, "y": np.zeros(3 * step * LANES, DTYPES[dtype])})
        assert "masked" not in print_kernel(kernel, CPU.host)


@pytest.mark.parametrize("most", [5, Var("g", bound=3) * 4, 8])
@pytest.mark.parametrize("dtype", ["f32", "f64", "i8", "f16", "bool"])
@pytest.mark.parametrize(("count", "step"), [(2, 2), (3, 3), (4, 4), (8, 8), (8, 11)])
def test_a_part_of_a_tile_touches_nothing_else(count: int, step: int, dtype: str, most: Any) -> None:
    """Lanes beyond the end are neither read nor written: the arrays end there."""
    u, v, g = Var("u", bound=count), Var("v", bound=LANES), Var("g", bound=3)
    last = 8 if isinstance(most, Var | Op) else most
    size_x = (2 * count + count - 1) * LANES + last
    size_y = 2 * LANES * step + (last - 1) * step + count
    store = Store("y", (g * (LANES * step) + v * step + u,), Load("x", ((g * count + u) * LANES + v,), dtype))
    body = For(u, i64(count), "unroll", (For(v, i64(LANES), "vector", (If(v < most, (store,)),)),))
    args = (buffer("x", dtype, size_x), buffer("y", dtype, size_y, "out"))
    kernel = Kernel("tile", args, (), (For(g, i64(3), "grid", (body,)),))
    x = np.arange(size_x).astype(DTYPES[dtype])
    compare(kernel, {"x": x, "y": np.zeros(size_y, DTYPES[dtype])})
    assert dtype == "bool" or "scatter" not in print_kernel(kernel, CPU.host)


@pytest.mark.parametrize("second", ["z", "y"])
def test_two_stores_make_two_tiles(second: str) -> None:
    """Unless both go to one buffer, where their order counts."""
    u, v, t = Var("u", bound=4), Var("v", bound=LANES), Var("t", "f32")
    stores = Store("y", (v * 4 + u,), t + 1.0), Store(second, (v * 4 + 3 - u if second == "y" else v * 4 + u,), t * 2.0)
    body = For(
        u, i64(4), "unroll", (For(v, i64(LANES), "vector", (Let("t", Load("x", (u * LANES + v,), "f32")), *stores)),)
    )
    args = (buffer("x", "f32", 32), buffer("y", "f32", 32, "out"), buffer("z", "f32", 32, "out"))
    kernel = Kernel("tiles", args, (), (body,))
    x = np.arange(32, dtype=np.float32)
    compare(kernel, {"x": x, "y": np.zeros(32, np.float32), "z": np.zeros(32, np.float32)})
    assert ("masked" in print_kernel(kernel, CPU.host)) == (second == "y")


@pytest.mark.parametrize(("count", "step"), [(6, 9), (4, 16), (8, 7), (8, -1), (8, 0)])
def test_other_tiles_are_stored_lane_by_lane(count: int, step: int) -> None:
    u, v = Var("u", bound=count), Var("v", bound=LANES)
    at = (v * step + u) if step > 0 else (u - v * -step + 8 if step else u)
    body = For(
        u,
        i64(count),
        "unroll",
        (For(v, i64(LANES), "vector", (Store("y", (at,), Load("x", (u * LANES + v,), "f32")),)),),
    )
    kernel = Kernel("tile", (buffer("x", "f32", 64), buffer("y", "f32", 160, "out")), (), (body,))
    compare(kernel, {"x": np.arange(64, dtype=np.float32), "y": np.zeros(160, np.float32)})


def test_a_tile_under_a_mask_keeps_to_it() -> None:
    u, v, g = Var("u", bound=4), Var("v", bound=4), Var("g", bound=2)
    store = Store("y", (g * 16 + v * 4 + u,), Load("x", (g * 16 + u * 4 + v,), "f32"))
    body = If(g < 1, (For(u, i64(4), "unroll", (For(v, i64(4), "vector", (store,)),)),))
    kernel = Kernel(
        "tile", (buffer("x", "f32", 32), buffer("y", "f32", 32, "out")), (), (For(g, i64(2), "grid", (body,)),)
    )
    compare(kernel, {"x": np.arange(32, dtype=np.float32), "y": np.zeros(32, np.float32)})


@pytest.mark.parametrize("axes", [(1, 0, 2), (0, 2, 1), (2, 1, 0), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("shape", [(16, 16, 16), (33, 17, 70), (5, 100, 31), (64, 1, 48), (2, 3, 4)])
def test_transposing_maps(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    @kf.jit
    def fn(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.transpose(x, axes) * 2 + y

    y = np.ascontiguousarray(x.transpose(axes))
    np.testing.assert_array_equal(fn(x, y), fn.__wrapped__(x, y))


def test_a_transposing_map_reads_and_stores_whole_vectors() -> None:
    fn = kf.jit(lambda x, y: x.T + y)
    x = np.ones((64, 64), np.float32)
    source = fn.lower(x, x).kernels[0].source
    assert "gather" not in source
    assert "scatter" not in source


def test_packing_reads_and_stores_whole_vectors() -> None:
    x = np.ones((192, 192), np.float32)
    for product in (lambda a, b: a @ b, lambda a, b: a @ b.T):
        source = kf.jit(product).lower(x, x).kernels[0].source
        assert "gather" not in source
        assert "scatter" not in source


def test_panels_of_padded_windows_hold_what_was_stored():
    """LLVM's NewGVN lost stores to the panel of rows once the loop over four of them was unrolled."""

    def gradient(x, ct):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (1, 4), axis=(1, 2))
        return np.einsum("nhwcij,nhwo->ocij", windows, ct)

    rng = np.random.default_rng(0)
    x, ct = rng.normal(size=(1, 20, 8, 3)).astype(np.float32), rng.normal(size=(1, 22, 7, 9)).astype(np.float32)
    with kf.default_device("cpu"):
        made = np.asarray(kf.jit(gradient)(x, ct))
    np.testing.assert_allclose(made, gradient(x, ct), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "i8", "bool"])
@pytest.mark.parametrize("kept", [LANES, 5, 1, 0])
@pytest.mark.parametrize("step", [2, 3, 8, 9])
def test_lanes_near_each_other_go_in_whole_vectors(step: int, kept: int, dtype: str) -> None:
    """No element between them is touched, and none beyond the last one."""
    k, v = Var("k", bound=3), Var("v", bound=LANES)
    size = (3 * LANES - 1) * step + 1
    at = (k * LANES + v) * step
    store: Stmt = Store("y", (at,), Load("x", (at,), dtype))
    store = If(v + k < kept, (store,)) if kept < LANES else store
    body = For(k, i64(3), "serial", (For(v, i64(LANES), "vector", (store,)),))
    kernel = Kernel("near", (buffer("x", dtype, size), buffer("y", dtype, size, "out")), (), (body,))
    x = (np.arange(size) % 7 % 5 % 2 if dtype == "bool" else np.arange(size) % 100).astype(DTYPES[dtype])
    compare(kernel, {"x": x, "y": np.ones(size, DTYPES[dtype])})
    text = print_kernel(kernel, CPU.host)
    assert ("scatter" in text) == ("gather" in text) == (step == 9)


def rows(count: int, dtype: str, order: Any = None, most: int = LANES, read: str = "x") -> Kernel:
    """Build ``y[v * count + k] = x[k * 8 + v]`` for k < count in the same lanes v < 8, in each of 3 blocks."""
    v, g = Var("v", bound=LANES), Var("g", bound=3)
    stores: tuple[Stmt, ...] = tuple(
        Store("y", ((g * LANES + v) * count + k,), Load(read, ((g * count + k) * LANES + v,), dtype))
        for k in (order or range(count))
    )
    if most < LANES:
        stores = (If(v < most, stores),)
    args = (buffer("x", dtype, 3 * count * LANES), buffer("y", dtype, 3 * LANES * count, "out"))
    return Kernel("rows", args, (), (For(g, i64(3), "grid", (For(v, i64(LANES), "vector", stores),)),))


@pytest.mark.parametrize("dtype", ["f32", "f64", "i8", "u16", "f16", "bool"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("most", [LANES, 5])
def test_stores_in_turn_are_whole_vectors(count: int, dtype: str, most: int) -> None:
    for order in (range(count), range(count)[::-1]):
        kernel = rows(count, dtype, order, most)
        x = np.arange(3 * count * LANES).astype(DTYPES[dtype])
        compare(kernel, {"x": x, "y": np.zeros(3 * LANES * count, DTYPES[dtype])})
        text = print_kernel(kernel, CPU.host)
        assert "scatter" not in text
        assert text.count("masked.store.") - text.count("declare void @llvm.masked.store") == count * (most < LANES)


def test_stores_in_turn_that_miss_one_or_read_each_other_stay_in_order() -> None:
    size = 3 * LANES * 3
    x = np.arange(size, dtype=np.float32)
    for order in ([0, 2], [0, 1, 1], [0, 0, 1, 2], [0, 1, 2, 0]):
        compare(rows(3, "f32", order), {"x": x, "y": np.zeros(size, np.float32)})
    v = Var("v", bound=LANES)
    first = Store("y", (v * 2,), Load("x", (v,), "f32"))
    seen = Let("seen", Load("y", (v * 2,), "f32"))
    second = Store("y", (v * 2 + 1,), Var("seen", "f32") + 1.0)
    loop = For(v, i64(LANES), "vector", (first, seen, second))
    args = (buffer("x", "f32", LANES), buffer("y", "f32", 2 * LANES, "out"))
    kernel = Kernel("seen", args, (), (For(Var("g", bound=1), i64(1), "grid", (loop,)),))
    compare(kernel, {"x": x[:LANES], "y": np.zeros(2 * LANES, np.float32)})


@pytest.mark.parametrize("size", [1, 15, 16, 1000, 70001])
@pytest.mark.parametrize("columns", [2, 3, 4, 8])
def test_columns_of_rows_are_made_in_lanes_of_rows(size: int, columns: int) -> None:
    def turned(x: Any) -> Any:
        parts = [x[:, k] * x[:, k - 1] + k for k in range(columns)]
        return np.stack(parts, -1) - x

    x = np.random.default_rng(0).normal(size=(size, columns)).astype(np.float32)
    made = kf.jit(turned)
    assert len(made.lower(x).kernels) == 1
    np.testing.assert_array_equal(made(x), turned(x))
    if size > LANES * 2:
        assert "select" not in str(made.lower(x).kernels[0].ir)


@pytest.mark.parametrize("shape", [(5, 17), (16, 16), (33, 100), (40, 3, 37)])
@pytest.mark.parametrize("dtype", ["f32", "f64", "i8", "u16", "bool"])
def test_running_reductions_of_rows_are_those_of_numpy(shape: tuple[int, ...], dtype: str) -> None:
    x = (np.random.default_rng(0).normal(size=shape) * 3).astype(DTYPES[dtype])
    for fn in (
        lambda x: np.cumsum(x, -1),
        lambda x: np.cumprod(x[..., ::-1], -1)[..., ::-1],
        lambda x: np.maximum.accumulate(x[..., 1::2], -1),
        lambda x: np.minimum.accumulate(x, -1),
    ):
        expected = fn(x)
        np.testing.assert_array_equal(kf.jit(fn)(x), expected)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 14, 16])
def test_what_lies_in_turn_in_short_rows_has_a_loop_for_each_kind(size: int) -> None:
    x = np.random.default_rng(0).normal(size=(40, size, size)).astype(np.float32)

    def enlarged(x: Any) -> Any:
        return np.repeat(np.repeat(x, 2, 1), 2, 2) * 2

    def woven(x: Any) -> Any:
        return np.stack([x, x * 2, x + 1], -1).reshape(len(x), -1, 3 * size) + 1

    for fn in (enlarged, woven):
        made = kf.jit(fn)
        np.testing.assert_array_equal(made(x), fn(x))
        (kernel,) = made.lower(x).kernels
        assert size < 4 or "%" not in str(kernel.ir)


@pytest.mark.parametrize("size", [7, 31, 32, 100])
def test_what_lies_in_turn_is_stored_in_whole_vectors(size: int) -> None:
    """Doubled images: of one channel, and of three, whose six elements in turn stand in the same lanes."""

    def doubled(x: Any) -> Any:
        middle = (x[:, :-1] + x[:, 1:]) * 0.5
        return np.stack([x[:, :-1], middle], 2).reshape(x.shape[0], -1, *x.shape[2:])

    rng = np.random.default_rng(0)
    for shape in ((9, size), (9, size, 3), (size, size, 3)):
        x = rng.integers(0, 200, shape).astype(np.float32)
        made = kf.jit(doubled)
        np.testing.assert_array_equal(made(x), doubled(x))
        if size == 100:
            (kernel,) = made.lower(x).kernels
            lanes = [s for s in stmts(kernel.ir.body) if isinstance(s, For) and s.kind == "vector"]
            assert sum(isinstance(s, Store) for s in lanes[0].body) == 2 * (x.size // (len(x) * size))
            assert "%" not in str(kernel.ir)
    x = rng.normal(size=(3, 5, size)).astype(np.float32)
    for fn in (lambda x: np.repeat(np.repeat(x, 2, 1), 3, 2), lambda x: np.repeat(x.reshape(-1), 2)):
        np.testing.assert_array_equal(kf.jit(fn)(x), fn(x))
