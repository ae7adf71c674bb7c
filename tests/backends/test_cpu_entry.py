"""Calls of compiled functions on the CPU, by the entry in machine code and without it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import tracemalloc
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.backends import registry
from kernelforge.backends.cpu import entry
from kernelforge.runtime.memory import Pool

X = np.linspace(-1.0, 2.0, 16, dtype=np.float32)
M = np.arange(24.0).reshape(4, 6)


@pytest.fixture(autouse=True)
def cpu() -> Iterator[None]:
    with kf.default_device("cpu"):
        yield


@pytest.fixture(params=["entry", "python"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Call by machine code, and as where there can be none."""
    if request.param == "python":
        monkeypatch.setattr(entry, "_world", lambda *classes: None)
    return str(request.param)


def direct(f: Any) -> bool:
    return isinstance(f._entry, types.BuiltinFunctionType)


@kf.jit
def line(x: Any) -> Any:
    return x * 2 + 1


UNALIGNED = np.zeros(8 * 24 + 1, np.uint8)[1:].view("f8")

ARRAYS = {
    "vector": X, "matrix": M, "transposed": M.T, "strided": M[::2, 1::2], "backward": M[:, ::-1],
    "broadcast": np.broadcast_to(X, (3, 16)), "of rank 0": np.array(2.5), "empty": np.zeros((0, 3)),
    "unaligned": UNALIGNED, "swapped": M.astype(">f8"), "integers": np.arange(7), "flags": np.array([True, False]),
    "large": np.arange(100_000.0), "read-only": np.frombuffer(M.tobytes()),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name: str, path: str) -> None:
    f, x = kf.jit(line.__wrapped__), ARRAYS[name]
    for _ in range(4):
        y = f(x)
        want = x * 2 + 1
        assert isinstance(y, kf.Array)
        assert (y.shape, y.dtype) == (want.shape, want.dtype)
        np.testing.assert_array_equal(y, want)
    assert direct(f) == (path == "entry" and name not in ("empty", "unaligned", "swapped"))


def test_numbers(path: str) -> None:
    f = kf.jit(lambda x, a, b, c: x * a + b * c)
    for a, b, c in ((2.5, 3, True), (-0.5, 2**40, False), (1e30, -7, True), (0.0, 0, False)):
        want = X * a + b * c
        np.testing.assert_allclose(f(X, a, b, c), want, rtol=1e-6, atol=1e-6)
    for _ in range(2):
        with pytest.raises(errors.NumberOutOfRange):
            f(X, 1.0, 2**70, True)
    np.testing.assert_allclose(f(X, 1.0, 1, True), X + 1, atol=1e-6)
    assert direct(f) == (path == "entry")


def test_arrays_of_the_device(path: str) -> None:
    f = kf.jit(lambda x, y: x - y)
    x = kf.asarray(X)
    for _ in range(3):
        x = f(x, X)
    np.testing.assert_allclose(x, X - X - X - X, rtol=1e-6)
    np.testing.assert_array_equal(f(kf.asarray(M), M), M - M)
    np.testing.assert_array_equal(f(kf.asarray(M), kf.asarray(M[0])), M - M[0])
    assert direct(f) == (path == "entry")


def test_arrays_of_any_origin_are_of_one_kind() -> None:
    f = kf.jit(lambda x: x * 2)
    x = kf.asarray(X)
    for _ in range(2):
        f(x)
    held = f._entry
    for other in (
        kf.asarray(X),
        line(X),
        kf.jit(lambda x: x.astype("f4"))(M.ravel()[:16]),
        kf.asarray(X.astype(">f4")),
    ):
        assert other.dtype is x.dtype
        f(other)
    assert f._entry is held


def test_large_results_feed_calls(path: str) -> None:
    x = np.arange(50_000.0)
    for _ in range(3):
        np.testing.assert_array_equal(line(line(x)), (x * 2 + 1) * 2 + 1)


def test_trees_and_keywords(path: str) -> None:
    f = kf.jit(lambda p, x, scale=1.0: {"sum": p["w"] * x * scale, "rest": (x, [p["b"], None])})
    for k in range(4):
        out = f({"w": X, "b": X + k}, X, scale=2.0)
        np.testing.assert_array_equal(out["sum"], X * X * 2)
        np.testing.assert_array_equal(out["rest"][1][0], X + k)
    g = kf.jit(lambda x, y: x - y)
    for _ in range(3):
        np.testing.assert_array_equal(g(X, y=X + 1), X - (X + 1))
        np.testing.assert_array_equal(g(y=X + 1, x=X), X - (X + 1))
        np.testing.assert_array_equal(g(X, X + 1), X - (X + 1))
    with pytest.raises(TypeError):
        g(X)


def test_results(path: str) -> None:
    for made, kind in (
        (lambda x: (x, x + 1), tuple),
        (lambda x: [x + 1], list),
        (lambda x: (x + 1,), tuple),
        (lambda x: (x, (x + 1, x)), tuple),
        (lambda x: (), tuple),
    ):
        f = kf.jit(made)
        first, *others = (f(X) for _ in range(4))
        for other in others:
            assert type(other) is kind
            assert repr(other) == repr(first)


def test_results_have_memory_of_their_own(path: str) -> None:
    f = kf.jit(lambda x: (x * 1, x * 2))
    alive = [f(X + k) for k in range(50)]
    for k, (a, b) in enumerate(alive):
        np.testing.assert_array_equal(a, X + k)
        np.testing.assert_array_equal(b, (X + k) * 2)
        assert not np.asarray(a).flags.writeable
        assert not np.shares_memory(np.asarray(a), np.asarray(b))
    views = [np.asarray(line(X + k))[::2] for k in range(50)]
    for k, view in enumerate(views):
        np.testing.assert_array_equal(view, ((X + k) * 2 + 1)[::2])


def test_several_kernels(path: str) -> None:
    def f(x: Any, w: Any) -> Any:
        y = np.tanh(x @ w) @ w.T
        e = np.exp(y - y.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True), y.sum(axis=0) @ w

    g = kf.jit(f)
    assert len(g.lower(M, M.T).kernels) > 2
    for k in range(3):
        for found, want in zip(g(M / 10 + k, M.T / 9), f(M / 10 + k, M.T / 9), strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-12)
    assert direct(g) == (path == "entry")


def test_many_arguments(path: str) -> None:
    f = kf.jit(lambda *xs: sum(xs[1:], xs[0]))
    xs = [X + k for k in range(100)]
    for _ in range(3):
        np.testing.assert_allclose(f(*xs), sum(xs), rtol=1e-5)
    with pytest.raises(errors.KernelforgeError):
        f(*xs[:99], M)


def test_control_flow(path: str) -> None:
    """What the plan runs step by step goes without."""

    def total(x: Any) -> Any:
        return kf.scan(lambda c, v: (c + v, c * v), np.float32(0), x)[0]

    one, apart = kf.jit(total), kf.jit(total)
    for _ in range(3):
        np.testing.assert_allclose(one(X), X.sum(), rtol=1e-5)
        with kf.config(fusion=False):
            np.testing.assert_allclose(apart(X), X.sum(), rtol=1e-5)
    assert direct(one) == (path == "entry")
    with kf.config(fusion=False):
        assert not direct(apart)


def test_how_long_a_loop_takes_is_known_where_its_turns_are() -> None:
    """Few turns are not worth releasing the GIL."""

    def sums(x: Any) -> Any:
        return kf.scan(lambda c, v: (c + v, c * v), np.float32(0), x)

    def halved(x: Any) -> Any:
        return kf.while_loop(lambda s: (s > 1).any(), lambda s: s / 2, x)

    def work(f: Any, x: Any) -> float:
        return float(max(k.work for k in kf.jit(f).lower(x).kernels))

    assert work(sums, X) < entry.HEAVY < work(sums, np.zeros(8000, np.float32)) < np.inf
    assert work(halved, X) == np.inf
    assert work(lambda x: kf.scan(lambda c, v: (c + halved(v), c), np.float32(0), x), X) == np.inf


def test_a_small_arena_is_not_the_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def take(self: Pool, size: int, found: Any = Pool.take) -> Any:
        taken.append(size)
        return found(self, size)

    monkeypatch.setattr(Pool, "take", take)
    f = kf.jit(lambda x: kf.scan(lambda c, v: (c * 2 + v, c.sum()), x, x[:3])[1])
    for n, times in ((4, 0), (100_000, 1)):
        x = np.ones(n, np.float32)
        f(x)
        f(x)
        taken.clear()
        f(x)
        assert len(taken) == times


def test_more_kinds_than_are_tried(path: str) -> None:
    f = kf.jit(line.__wrapped__)
    for n in (*range(1, 30), *range(30, 0, -1), 3, 3, 3):
        np.testing.assert_array_equal(f(X[:n]), X[:n] * 2 + 1)
        assert f._depth <= 8


def test_config_and_device_are_watched(path: str) -> None:
    f = kf.jit(lambda x, y: np.exp(x) * y + x)
    for _ in range(3):
        assert f(X, X).device == "cpu"
        with kf.default_device("reference"):
            assert f(X, X).device == "reference"
            np.testing.assert_allclose(f(X, kf.asarray(X)), f(X, X), rtol=1e-6)
        with kf.config(fusion=False):
            np.testing.assert_allclose(f(X, X), np.exp(X) * X + X, rtol=1e-6)
    here, there = kf.asarray(X), kf.asarray(X, device="reference")
    for _ in range(3):
        assert f(there, there).device == "reference"
        assert f(here, here).device == "cpu"
        with pytest.raises(errors.MixedDevices):
            f(here, there)


def test_calls_while_tracing(path: str) -> None:
    for _ in range(3):
        line(X)
    outer = kf.jit(lambda x: line(x) + line(X))
    for _ in range(3):
        np.testing.assert_array_equal(outer(X), (X * 2 + 1) * 2)
    assert len(outer.lower(X).kernels) == 1
    np.testing.assert_array_equal(kf.grad(lambda x: line(x).sum())(X), np.full_like(X, 2))
    kept: list[Any] = []
    kf.jit(lambda x: kept.append(x) or x)(X)
    with pytest.raises(errors.KernelforgeError):
        line(kept[0])


def test_methods(path: str) -> None:
    class Scale:
        @kf.jit
        def __call__(self, x: Any) -> Any:
            return x * 3

    with pytest.raises(errors.InvalidArgument):
        Scale()(X)


def test_errors_do_not_stay(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f, x = kf.jit(line.__wrapped__), np.arange(1_000_003.0)
    for _ in range(3):
        f(x)

    def full(nbytes: int) -> Any:
        raise errors.DeviceOutOfMemory(device="cpu", nbytes=nbytes)

    backend = registry.backend("cpu")
    held = [f(x) for _ in range(6)]
    with monkeypatch.context() as m:
        m.setattr(backend, "allocate", full, raising=False)
        with pytest.raises(errors.DeviceOutOfMemory):
            held += [f(x) for _ in range(6)]
    np.testing.assert_array_equal(f(x), x * 2 + 1)


def test_nothing_leaks(path: str) -> None:
    f = kf.jit(lambda x, y, a: (x * a + y, (x - y).sum()))
    turns = kf.jit(lambda x: kf.scan(lambda c, v: (c + v, c * v), np.float32(0), x))
    x, y, shape = X.copy(), kf.asarray(X), X.shape

    def calls(n: int) -> None:
        for _ in range(n):
            f(x, y, 2.0)
            f(x, x, 2.0)
            turns(x)

    calls(200)
    watched = (x, y, x.dtype, shape, y.shape, y._buffer, y._buffer.backend, None, True, np.empty, f, ())
    gc.collect()
    before = [sys.getrefcount(w) for w in watched]
    tracemalloc.start()
    calls(100)
    start = tracemalloc.get_traced_memory()[0]
    calls(5_000)
    grown = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    after = [sys.getrefcount(w) for w in watched]
    assert grown < 20_000
    assert [abs(a - b) < 100 for a, b in zip(after, before, strict=True)] == [True] * len(watched)


def test_memory_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(lambda size: None)
    known = entry._world

    def without(*classes: type) -> Any:
        world = known(*classes)
        if world is None:
            pytest.skip("calls do not go by the entry")
        world = type(world)(*world)
        world[entry.WORLD.index("PyMem_RawMalloc")] = ctypes.cast(allocate, ctypes.c_void_p).value
        return world

    monkeypatch.setattr(entry, "_world", without)
    f = kf.jit(lambda x: kf.scan(lambda c, v: (c * 2 + v, c.sum()), x, x[:3])[1])  # the state is in a small arena
    x = np.ones(4, np.float32)
    f(x)
    with pytest.raises(MemoryError):
        f(x)


def test_a_function_can_go(path: str) -> None:
    f = kf.jit(lambda x: x + 1)
    for k in range(1, 20):
        f(X[:k])
        f(X[:k])
    gone = weakref.ref(f)
    del f
    gc.collect()
    assert gone() is None


def test_threads(path: str) -> None:
    f = kf.jit(lambda x, a: (np.tanh(x) * a, x.sum()))
    wrong: list[Any] = []

    def work(k: int) -> None:
        for i in range(300):
            x = np.full(17 + (i + k) % 12 * 2000 * (i % 7 == 0), k, np.float64)
            y, s = f(x, float(i))
            if not (np.allclose(y, np.tanh(x) * i) and np.allclose(s, x.sum())):
                wrong.append((k, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("heavy", [True, False])
def test_long_kernels_release_the_gil(heavy: bool) -> None:
    x = np.linspace(0.1, 1.0, 4_000_000 if heavy else 16)
    f = kf.jit(lambda x: np.sum(np.sin(x) ** 3.3 + np.cos(x) ** 2.7))
    for _ in range(3):
        f(x)
    assert direct(f)
    go, done, seen = threading.Event(), [], []

    def work() -> None:
        go.set()
        done.append(f(x))

    switching = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    try:
        sys.setswitchinterval(100)  # seconds: it changes hands only where it is released
        thread.start()
        go.wait()
        seen.append(len(done))
    finally:
        sys.setswitchinterval(switching)
        thread.join()
    assert seen == [0 if heavy else 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks(path: str) -> None:
    f, x = kf.jit(line.__wrapped__), np.arange(200_000.0)
    for _ in range(3):
        f(X), f(x)
    child = os.fork()
    if not child:
        right = all(np.array_equal(f(v), v * 2 + 1) for v in (X, x, X, x))
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(f(X), X * 2 + 1)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: m.setattr(sys.implementation, "name", "other"),
        lambda m: m.setitem(entry.NDARRAY, "data", 24),
        lambda m: m.setitem(entry.NDARRAY, "descr", 48),
        lambda m: m.setitem(entry.NDARRAY, "flags", 72),
        lambda m: m.setattr(entry, "TYPE", 24),
        lambda m: m.setattr(entry, "FUNCTIONS", (*entry.FUNCTIONS, "PyNot_There")),
    ],
)
def test_another_interpreter_has_no_entries(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entry.supported()
    break_it(monkeypatch)
    entry._world.cache_clear()
    try:
        assert not entry.supported()
        f = kf.jit(line.__wrapped__)
        for _ in range(3):
            np.testing.assert_array_equal(f(X), X * 2 + 1)
        assert not direct(f)
    finally:
        entry._world.cache_clear()
