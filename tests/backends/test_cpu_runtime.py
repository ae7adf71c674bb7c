"""The CPU backend's loader, threads and memory."""

from __future__ import annotations

import dataclasses
import gc
import mmap
import os
import pathlib
import re
import struct
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

from kernelforge.backends.cpu import CpuBackend, loader
from kernelforge.backends.cpu.ahead import AHEAD, distances
from kernelforge.backends.cpu.printer import print_kernel
from kernelforge.backends.cpu.threads import POOL
from kernelforge.dtypes import DTYPES
from kernelforge.errors import CompilationFailed, DamagedBinary, DeviceOutOfMemory
from kernelforge.ir.kernel import Alloc, Arg, Const, Expr, For, Kernel, Let, Load, Stmt, Store, Var, i64, op, select

Array = np.ndarray[Any, Any]
CPU = CpuBackend()
N, AT = Var("n"), Var("i")


def scaled(factor: float = 2.0, library: bool = False) -> Kernel:
    """y = factor * x, by way of the C library's fmod on request."""
    x: Expr = Load("x", (AT,), "f64")
    if library:
        x = op("fmod", x, 2.0**60)
    body = (For(AT, N, "parallel", (Store("y", (AT,), x * factor),)),)
    return Kernel("scaled", (Arg("x", "f64", N, "in"), Arg("y", "f64", N, "out")), ("n",), body)


def launch(executable: Any, x: Array) -> Array:
    y = np.full_like(x, np.nan)
    CPU.launch(executable, [(CPU.upload(x), 0), (CPU.upload(y), 0)], [len(x)])
    return y


BIG = np.arange(400_000, dtype=np.float64) + 1


def test_launch_at_an_offset() -> None:
    executable = CPU.compile(scaled())
    handle = CPU.allocate(800)
    CPU.download(handle, 0, (100,), np.dtype(np.float64))[:] = 1.0
    x = np.arange(100, dtype=np.float64)
    CPU.launch(executable, [(CPU.upload(x), 80), (handle, 160)], [20])
    y = CPU.download(handle, 0, (100,), np.dtype(np.float64))
    np.testing.assert_array_equal(y[20:40], 2 * x[10:30])
    assert (np.delete(y, np.s_[20:40]) == 1).all()


def test_what_is_stored_lies_apart_from_what_is_loaded() -> None:
    """A load just behind a store of the same place in another page waits for it."""
    y = CPU.allocate(1 << 20).address % 4096
    for x in (0, 16, y):
        for ahead in (*range(0, 4096, 256), *range(AHEAD, AHEAD + 256, 64)):
            if (x, ahead) != (y, 0):
                assert (y - x - ahead) % 4096 not in range(1, 128)
    assert CPU.allocate(1 << 15).owner.nbytes == (1 << 15) + 63


def test_allocations_are_aligned_and_views_keep_them() -> None:
    for nbytes in (1, 63, 64, 1000, 1 << 20):
        handle = CPU.allocate(nbytes)
        assert (handle.address % 64, handle.nbytes) == (0, nbytes)
    owner = weakref.ref(handle.owner)
    view = CPU.download(handle, 64, (2, 3), np.dtype(np.int32))
    view[:] = 5
    CPU.free(handle)
    del handle
    gc.collect()
    assert owner() is not None
    assert (view == 5).all()
    assert view.flags.writeable
    del view
    gc.collect()
    assert owner() is None


def test_uploads_share_memory_and_keep_it() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (x, x[::-1], x[:, ::2], x[1:, 1:]):
        assert CPU.upload(view).address == view.ctypes.data
    handle = CPU.upload(x)
    down = CPU.download(handle, 16, (4,), np.dtype(np.float32))
    x[1] = 9
    assert (down == 9).all()
    assert np.shares_memory(down, x)
    fixed = np.broadcast_to(np.float32(3), (4,))
    assert not CPU.download(CPU.upload(fixed), 0, (1,), np.dtype(np.float32)).flags.writeable
    assert CPU.download(CPU.upload(np.zeros((0, 3))), 0, (0, 3), np.dtype(np.float64)).shape == (0, 3)


def test_no_room() -> None:
    with pytest.raises(DeviceOutOfMemory, match="cpu has no room for 1152921504606846976 bytes"):
        CPU.allocate(1 << 60)


def test_errors_of_compilation_name_the_kernel_and_the_problem() -> None:
    bad = Kernel("bad", (Arg("y", "f32", N, "out"),), (), (Store("y", (Var("lost"),), Const(1, "f32")),))
    with pytest.raises(CompilationFailed, match=r"kernel bad does not compile for cpu: variable 'lost' is not defined"):
        CPU.compile(bad)
    with pytest.raises(CompilationFailed, match="global buffer 't' has to be an argument"):
        CPU.compile(Kernel("g", (), (), (Alloc("t", "f32", (i64(4),), "global"),)))
    with pytest.raises(CompilationFailed, match="a value of f32 is stored to 'y', which holds f64"):
        CPU.compile(Kernel("d", (Arg("y", "f64", N, "out"),), (), (Store("y", (i64(0),), Const(1, "f32")),)))


@pytest.mark.parametrize("dtype", ["f32", "f64", "u8", "bool"])
@pytest.mark.parametrize("lanes", [4, 16, 32])
def test_large_outputs_are_stored_past_the_cache(dtype: str, lanes: int) -> None:
    tiny = CpuBackend()
    tiny.host = dataclasses.replace(CPU.host, cache_bytes=(256, 512, 1024))
    n = 4096 + lanes
    out, lane = Var("o", bound=n // lanes), Var("v", bound=lanes)
    at = out * lanes + lane
    loop = For(lane, i64(lanes), "vector", (Store("y", (at,), Load("x", (at,), dtype)),))
    tail = For(AT, i64(n % lanes), "serial", (Store("y", (AT + n // lanes * lanes,), Const(1, dtype)),))
    args = (Arg("x", dtype, i64(n), "in"), Arg("y", dtype, i64(n), "out"))
    kernel = Kernel("large", args, (), (For(out, i64(n // lanes), "grid", (loop,)), tail))
    executable = tiny.compile(kernel)
    assert "!nontemporal" in executable.source
    assert "!nontemporal" not in CPU.compile(kernel).source
    np_dtype = DTYPES[dtype]
    x = np.random.default_rng(0).integers(0, 2, n).astype(np_dtype)
    handle = tiny.allocate((n + 8) * np_dtype.itemsize)
    for offset in (0, 1, 4):  # also where the output begins at no multiple of 64 bytes
        tiny.launch(executable, [(tiny.upload(x), 0), (handle, offset * np_dtype.itemsize)], [])
        np.testing.assert_array_equal(tiny.download(handle, offset * np_dtype.itemsize, (n,), np_dtype), x)


@pytest.mark.parametrize("dtype", ["f32", "f64", "u8", "bool"])
def test_a_phase_of_several_passes_is_one_function_wherever_its_output_begins(dtype: str) -> None:
    """Two outputs, of which one or both begin at no multiple of 64 bytes."""
    tiny = CpuBackend()
    tiny.host = dataclasses.replace(CPU.host, cache_bytes=(256, 512, 1024))
    lanes, columns, rows = 64, 1024, 5
    row, o, lane, r = (
        Var("i", bound=rows),
        Var("o", bound=columns // lanes),
        Var("v", bound=lanes),
        Var("r", bound=columns),
    )
    at = row * columns + o * lanes + lane
    most = Store("a", (), Load("x", (row * columns + r,), dtype), "max")
    value = Load("x", (at,), dtype)
    stores = (Store("y", (at,), value), Store("z", (at,), op("max", value, Load("a", (), dtype))))
    body = (
        Alloc("a", dtype, (), "register"),
        Store("a", (), Const(0, dtype)),
        For(r, i64(columns), "serial", (most,)),
        For(o, i64(columns // lanes), "parallel", (For(lane, i64(lanes), "vector", stores),)),
    )
    args = tuple(Arg(name, dtype, i64(rows * columns), "in" if name == "x" else "out") for name in "xyz")
    executable = tiny.compile(Kernel("passes", args, (), (For(row, i64(rows), "grid", body),)))
    assert "!nontemporal" in executable.source
    assert ".stream" not in executable.source
    np_dtype = DTYPES[dtype]
    x = np.random.default_rng(0).integers(0, 2, rows * columns).astype(np_dtype)
    z = np.broadcast_to(x.reshape(rows, columns).max(1, keepdims=True), (rows, columns)).reshape(-1)
    y_at, z_at = (tiny.allocate((rows * columns + 8) * np_dtype.itemsize) for _ in range(2))
    for first, second in ((0, 0), (0, 1), (4, 0), (1, 4)):
        places = [(y_at, first * np_dtype.itemsize), (z_at, second * np_dtype.itemsize)]
        tiny.launch(executable, [(tiny.upload(x), 0), *places], [])
        for (handle, offset), want in zip(places, (x, z), strict=True):
            np.testing.assert_array_equal(tiny.download(handle, offset, (rows * columns,), np_dtype), want)


@pytest.mark.parametrize(("columns", "copies"), [(1024, 2), (1000, 1)])
def test_only_loops_that_store_past_the_cache_ask_if_they_may(columns: int, copies: int) -> None:
    host = dataclasses.replace(CPU.host, cache_bytes=(256, 512, 1024))
    row, step, lane = Var("i", bound=5), Var("o", bound=columns // 16), Var("v", bound=16)
    at = row * columns + step * 16 + lane
    vectors = For(lane, i64(16), "vector", (Store("y", (at,), Load("x", (at,), "f32") * 3.0),))
    body = (For(row, i64(5), "grid", (For(step, i64(columns // 16), "serial", (vectors,)),)),)
    args = tuple(Arg(name, "f32", i64(5 * columns), mode) for name, mode in (("x", "in"), ("y", "out")))
    assert print_kernel(Kernel("rows", args, (), body), host).count("fmul") == copies


@pytest.mark.parametrize(("columns", "past"), [(56, False), (64, True), (8, True)])
def test_no_line_is_stored_partly_past_the_cache(columns: int, past: bool) -> None:
    """Vectors that begin within lines go through it, and what is shorter at the end of a row then does, too."""
    host = dataclasses.replace(CPU.host, cache_bytes=(256, 512, 1024))
    row, step = Var("i", bound=64), Var("o", bound=columns // 16 or 1)

    def lanes(n: int, first: Expr) -> For:
        v = Var(f"v{n}", bound=n)
        return For(v, i64(n), "vector", (Store("y", (row * columns + first + v,), Load("x", (v,), "f32")),))

    whole = (For(step, i64(columns // 16), "serial", (lanes(16, step * 16),)),) if columns > 16 else ()
    rest = (lanes(8, i64(columns // 16 * 16)),) if columns % 16 else ()
    args = (Arg("x", "f32", i64(16), "in"), Arg("y", "f32", i64(64 * columns), "out"))
    kernel = Kernel("rows", args, (), (For(row, i64(64), "grid", (*whole, *rest)),))
    assert ("!nontemporal" in print_kernel(kernel, host)) == past


def test_outputs_stay_in_a_cache_of_which_they_and_inputs_leave_a_quarter() -> None:
    tiny = CpuBackend()
    lane, out = Var("v", bound=16), Var("o", bound=64)
    store = Store("y", (out * 16 + lane,), Load("x", (out * 16 + lane,), "f32"))
    body = (For(out, i64(64), "grid", (For(lane, i64(16), "vector", (store,)),)),)
    kernel = Kernel("copy", (Arg("x", "f32", i64(1024), "in"), Arg("y", "f32", i64(1024), "out")), (), body)
    for last, past in ((16384, False), (10923, False), (10922, True), (8192, True)):
        tiny.host = dataclasses.replace(CPU.host, cache_bytes=(256, 512, last))
        assert ("!nontemporal" in tiny.compile(kernel).source) == past


def test_outputs_that_are_read_again_stay_in_the_cache() -> None:
    tiny = CpuBackend()
    tiny.host = dataclasses.replace(CPU.host, cache_bytes=(256, 512, 1024))
    lane = Var("v", bound=16)
    store = Store("y", (lane,), Load("x", (lane,), "f32"))
    again = Store("y", (lane,), Load("y", (lane,), "f32") * 2.0)
    body = (For(lane, i64(16), "vector", (store,)), For(lane, i64(16), "vector", (again,)))
    kernel = Kernel("read", (Arg("x", "f32", i64(4096), "in"), Arg("y", "f32", i64(4096), "out")), (), body)
    assert "!nontemporal" not in tiny.compile(kernel).source


@pytest.mark.parametrize(
    ("elements", "ahead"),
    [
        (1 << 10, [AHEAD]),  # that is beyond the next row
        (1 << 16, [1 << 18]),
        (1 << 17, [AHEAD]),  # two rows and what is kept of them are more than the cache holds
        (1 << 18, [AHEAD, AHEAD, AHEAD]),  # one row is
    ],
)
def test_the_last_pass_over_a_row_fetches_the_next_one(elements: int, ahead: list[int]) -> None:
    host = dataclasses.replace(CPU.host, cache_bytes=(32 << 10, 1 << 20, 32 << 20))
    row = Var("r", bound=4)
    passes: list[Stmt] = []
    for k in range(3):
        step, lane = Var(f"s{k}", bound=elements // 16), Var(f"v{k}", bound=16)
        store = Store("y", (lane,), Load("x", (row * elements + step * 16 + lane,), "f32"), "add")
        vectors = For(lane, i64(16), "vector", (store,))
        passes.append(
            For(step, i64(elements // 16), "serial", (For(Var(f"u{k}", bound=1), i64(1), "unroll", (vectors,)),))
        )
    args = (Arg("x", "f32", i64(4 * elements), "in"), Arg("y", "f32", i64(16), "out"))
    text = print_kernel(Kernel("walks", args, (), (For(row, i64(4), "grid", tuple(passes)),)), host)
    asked = re.findall(r"i64 (\d+)\n *call void @llvm.prefetch", text)
    assert [int(a) for a in asked] == ahead


@pytest.mark.parametrize("dtype", ["bool", "u8", "f32"])
def test_rows_that_begin_between_lines_are_read_by_halves(dtype: str) -> None:
    """In the first of two passes, of whatever dtype: a bool is a byte in memory and a bit in a register."""
    lanes = 64 // DTYPES[dtype].itemsize
    row = Var("r", bound=64)
    body: list[Stmt] = []
    for k in range(2):
        step, lane = Var(f"s{k}", bound=8), Var(f"v{k}", bound=lanes)
        at = row * 8 * lanes + step * lanes + lane
        value = select(Load("x", (at,), dtype).cast("bool"), Const(1.0, "f32"), Const(2.0, "f32"))
        store = Store("y", (at,), value, "" if k == 0 else "add")
        body.append(For(step, i64(8), "serial", (For(lane, i64(lanes), "vector", (store,)),)))
    n = 64 * 8 * lanes
    args = (Arg("x", dtype, i64(n), "in"), Arg("y", "f32", i64(n), "out"))
    made = CPU.compile(Kernel("twice", args, (), (For(row, i64(64), "grid", tuple(body)),)))
    assert "load volatile" in made.source
    x = (np.arange(n) % 3).astype(DTYPES[dtype])
    y = np.full(n, np.nan, np.float32)
    CPU.launch(made, [(CPU.upload(x), 0), (CPU.upload(y), 0)], [])
    np.testing.assert_array_equal(y, np.where(x, 2, 4))


@pytest.mark.parametrize(("first", "near"), [(32 << 10, 2), (48 << 10, 3)])
def test_lines_come_into_the_first_cache_where_it_holds_those_of_several_arrays(first: int, near: int) -> None:
    host = dataclasses.replace(CPU.host, cache_bytes=(first, 1 << 20, 32 << 20))
    step, lane = Var("s", bound=1 << 16), Var("v", bound=16)
    store = Store("y", (step * 16 + lane,), Load("x", (step * 16 + lane,), "f32"))
    walk = For(step, i64(1 << 16), "grid", (For(lane, i64(16), "vector", (store,)),))
    args = (Arg("x", "f32", i64(1 << 20), "in"), Arg("y", "f32", i64(1 << 20), "out"))
    text = print_kernel(Kernel("copy", args, (), (walk,)), host)
    assert {int(k) for k in re.findall(r"llvm.prefetch.p0\(ptr %[^,]*, i32 0, i32 (\d)", text)} == {near}


def test_rows_in_pieces_are_fetched_whole() -> None:
    """A channel of a batch of images: 32 pieces of 12.5 KB, which are 400 KB; the next channel's lie behind each."""
    channel, x, g = Var("c", bound=64), "x", "g"
    passes: list[Stmt] = []
    for k in range(2):
        image, step, lane = Var(f"n{k}", bound=32), Var(f"s{k}", bound=196), Var(f"v{k}", bound=16)
        at = image * 200704 + channel * 3136 + step * 16 + lane
        value = Load(x, (at,), "f32") * Load(g, (step * 16 + lane,), "f32")
        named = Let(f"t{k}", Const(0.5, "f32"))
        vectors = For(lane, i64(16), "vector", (Store("y", (lane,), value, "add"),))
        inner = For(step, i64(196), "serial", (named, vectors))
        passes.append(For(image, i64(32), "serial", (inner,)))
    channels = [For(channel, i64(64), "grid", tuple(passes))]
    last = Var("s1", bound=196), x
    assert distances(channels, passes, 1 << 20) == {last: 4 * 3136}  # what each channel reads again is in the cache
    assert not distances(channels, passes, 1 << 19)  # a little further is a piece of another channel
    once = [For(channel, i64(64), "grid", (passes[1],))]
    assert distances(once, passes[1:], 1 << 20) == {last: 4 * 200704}  # the next piece


def test_rows_that_are_read_side_by_side_ask_for_those_behind_them_all() -> None:
    row, column, lane = Var("r", bound=64), Var("c", bound=256), Var("v", bound=16)
    again = Var("a", bound=2)
    for few, between, ahead in ((8, 4096, 1 << 17), (2, 4100, 2 * 4100 * 4), (16, 4096, AHEAD), (8, 8192, AHEAD)):
        k = Var("f", bound=few)
        value = Load("x", ((row * few + k) * between + column * 16 + lane,), "f32")
        added = For(k, i64(few), "unroll", (Store("p", (column * 16 + lane,), value, "add"),))
        body = (For(column, i64(256), "serial", (For(lane, i64(16), "vector", (added,)),)),)
        rows = For(row, i64(64), "grid", body)
        assert distances([rows], body, 1 << 20) == {(column, "x"): ahead}
        twice = distances([For(again, i64(2), "grid", (rows,)), rows], body, 1 << 20)
        assert bool(twice) == (between == 8192)  # rows that are read again are near, or come by themselves


# Binaries


def test_a_binary_loads_without_the_compiler() -> None:
    for library in (False, True):
        kernel = scaled(library=library)
        first = CPU.compile(kernel)
        again = CPU.compile(kernel, first.binary)
        assert again.source == first.source == print_kernel(kernel, CPU.host)
        np.testing.assert_allclose(launch(again, BIG), 2 * BIG, rtol=1e-12)


def test_a_warm_start_imports_no_compiler(tmp_path: Any) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(CPU.compile(scaled(library=True)).binary)
    code = (
        "import sys; from tests.backends.test_cpu_runtime import *\n"
        f"e = CPU.compile(scaled(library=True), open({str(path)!r}, 'rb').read())\n"
        "np.testing.assert_allclose(launch(e, BIG), 2 * BIG, rtol=1e-12)\n"
        "assert sys.platform != 'linux' or 'llvmlite.binding' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_damaged_byte_is_found() -> None:
    binary = CPU.compile(scaled()).binary
    rng = np.random.default_rng(0)
    for at in {*range(40), *rng.integers(0, len(binary), 200).tolist()}:
        damaged = bytearray(binary)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(DamagedBinary):
            CPU.compile(scaled(), bytes(damaged))
    for size in (0, 1, 8, 23, 24, 25, 100, len(binary) - 1):
        with pytest.raises(DamagedBinary):
            CPU.compile(scaled(), binary[:size])
    with pytest.raises(DamagedBinary):
        CPU.compile(scaled(), binary + b"\0")
    with pytest.raises(DamagedBinary, match="this machine"):
        CPU.compile(scaled(), loader.pack(loader.unpack(binary, "k", CPU.limits.fingerprint), "another machine"))


def test_an_object_that_is_cut_is_refused_even_with_a_right_checksum() -> None:
    pool, obj = loader.unpack(CPU.compile(scaled(library=True)).binary, "k", CPU.limits.fingerprint)
    for size in range(0, len(obj) - 64, 101):
        with pytest.raises(DamagedBinary):
            CPU.compile(scaled(), loader.pack((pool, obj[:size]), CPU.limits.fingerprint))


def test_what_this_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = CpuBackend()
    old.host = dataclasses.replace(CPU.host, half=False)
    half = Store("y", (i64(0),), Load("x", (i64(0),), "f16").cast("f32"))
    kernel = Kernel("half", (Arg("x", "f16", i64(1), "in"), Arg("y", "f32", i64(1), "out")), (), (half,))
    with pytest.raises(CompilationFailed, match="this processor does not convert f16; the pass widen"):
        old.compile(kernel)
    monkeypatch.setattr(loader, "_libraries", tuple)
    if sys.platform == "linux":
        with pytest.raises(CompilationFailed, match=r"kernel scaled .* the C library here has no function fmod"):
            CPU.compile(scaled(library=True))


@pytest.mark.parametrize("library", [False, True])
def test_the_compilers_loader_agrees(library: bool) -> None:
    from kernelforge.backends.cpu.backend import _RUN

    executable = CPU.compile(scaled(library=library))
    pool, own = (loader._load_llvm(o) for o in loader.unpack(executable.binary, "k", CPU.limits.fingerprint))
    assert pool.symbols.keys() == {"enter", "fork", "worker"}
    x = BIG[:100]
    y = np.zeros_like(x)
    _RUN(own.symbols["run"])(executable.pack(x.ctypes.data, y.ctypes.data, len(x)), POOL.start())
    np.testing.assert_allclose(y, 2 * x, rtol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF is relocated here on Linux only")
def test_code_is_not_writable() -> None:
    executable = CPU.compile(scaled())
    address = executable._code.symbols["run"]
    rights = []
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if low <= address < high:
            rights.append(line.split()[1])
    assert rights == ["r-xp"]


def test_relocations_of_aarch64() -> None:
    """Words before and after, by the instruction encodings of the Arm architecture reference manual."""
    base, target, slot = 0x7F0000010000, 0x7F0000023458, 0x7F0000034568
    cases = [
        (275, 0x90000000, 0x90000080 | 3 << 29, target),  # adrp x0: 0x13 pages on
        (277, 0x91000000, 0x91116000, target),  # add x0, x0, #0x458
        (286, 0xF9400000, 0xF9422C00, target),  # ldr x0, [x0, #0x458]
        (299, 0x3DC00000, 0x3DC11400, target - 8),  # ldr q0, [x0, #0x450]
        (283, 0x94000000, 0x94004D16, target),  # bl: 0x13458 bytes on
        (312, 0xF9400000, 0xF942B400, target),  # ldr x0, [x0, #0x568], the slot's
        (261, 0, 0x13458, target),
    ]
    for kind, before, after, to in cases:
        memory = mmap.mmap(-1, 64)
        memory[0:4] = struct.pack("<I", before)
        loader._aarch64(memory, 0, kind, base, to, 0, slot)
        assert memory[0:4] == struct.pack("<I", after), kind


# Threads


def test_ranges_are_shared_among_threads() -> None:
    if CPU.limits.threads < 2:
        pytest.skip("one hardware thread")
    executable = CPU.compile(scaled(library=True))
    x = np.ones(3_000_000)
    launch(executable, x)
    before = time.process_time(), time.thread_time()
    for _ in range(100):  # another thread may have to wait for a processor
        launch(executable, x)
        used, own = time.process_time() - before[0], time.thread_time() - before[1]
        if used > 1.2 * own:
            return
    raise AssertionError("no other thread did any of the work")


def test_launches_from_many_threads() -> None:
    executables = [CPU.compile(scaled(float(k))) for k in range(1, 5)]
    failures: list[str] = []

    def work(k: int) -> None:
        rng = np.random.default_rng(k)
        for _ in range(60):
            x = BIG[: int(rng.integers(1, len(BIG)))]
            if not np.array_equal(launch(executables[k], x), x * (k + 1)):
                failures.append(f"thread {k}, {len(x)} elements")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not failures
    assert not any(t.is_alive() for t in threads)


def test_launches_after_the_threads_went_to_sleep() -> None:
    executable = CPU.compile(scaled())
    for pause in (0.0, 0.0005, 0.005, 0.05) * 3:
        time.sleep(pause)
        np.testing.assert_array_equal(launch(executable, BIG), 2 * BIG)


@pytest.mark.skipif(sys.platform != "linux" or CPU.host.threads < 2, reason="threads are placed on Linux only")
def test_threads_keep_off_the_processor_of_a_launch() -> None:
    executable = CPU.compile(scaled())
    before = os.sched_getaffinity(0)
    try:
        for own in sorted(before)[:2] * 2:
            os.sched_setaffinity(0, {own})
            deadline = time.monotonic() + 30
            while len(names := POOL.names) < CPU.host.threads - 1 and time.monotonic() < deadline:
                launch(executable, BIG)
            launch(executable, BIG)
            assert [os.sched_getaffinity(name) for name in names] == [before - {own}] * (CPU.host.threads - 1)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_launches() -> None:
    executable = CPU.compile(scaled())
    launch(executable, BIG)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            ok = all(np.array_equal(launch(executable, BIG), 2 * BIG) for _ in range(5))
            os._exit(0 if ok else 1)
        children.append(child)
    np.testing.assert_array_equal(launch(executable, BIG), 2 * BIG)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_interpreter_ends_cleanly_with_threads_asleep_and_awake() -> None:
    code = (
        "import threading; from tests.backends.test_cpu_runtime import *\n"
        "e = CPU.compile(scaled()); launch(e, BIG)\n"
        "threading.Thread(target=lambda: [launch(e, BIG) for _ in range(400)], daemon=True).start()\n"
        "launch(e, BIG)\n"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], check=True, timeout=60)


def test_the_gil_is_released() -> None:
    executable = CPU.compile(scaled(library=True))
    x = np.ones(2_000_000)
    stop = threading.Event()

    def work() -> None:
        for _ in range(10):
            launch(executable, x)
        stop.set()

    thread = threading.Thread(target=work)
    thread.start()
    ticks = 0
    while not stop.is_set():
        ticks += 1
        time.sleep(0.001)
    thread.join()
    assert ticks > 20


@pytest.mark.skipif(sys.platform != "linux", reason="ELF is relocated here on Linux only")
def test_code_is_freed_with_its_executable() -> None:
    executable = CPU.compile(scaled(3.0))
    launch(executable, BIG)
    memory = weakref.ref(executable._code.owner[0])
    del executable
    gc.collect()
    assert memory() is None
