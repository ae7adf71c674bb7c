"""What is compiled once, what is compiled at once, and when it is gone."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.backends import registry
from kernelforge.backends.cpu import compiler
from kernelforge.compile import forget
from kernelforge.forks import UNFORKED
from kernelforge.ir import demand, index, memo
from kernelforge.ir.kernel import Expr
from kernelforge.ir.passes import share

compiling = sys.modules["kernelforge.compile"]
planning = sys.modules["kernelforge.runtime.plan"]

X = np.random.default_rng(5).normal(size=(33, 20)).astype(np.float32)


def test_equal_kernels_are_compiled_once() -> None:
    def layers(x: Any, weights: Any) -> Any:
        for w in weights:
            x = np.tanh(x @ w)
        return x

    weights = [np.eye(1024, dtype=np.float32) * k for k in range(1, 6)]
    kernels = kf.jit(layers).lower(np.ones((40, 1024), np.float32), weights).kernels
    assert len(kernels) == 5
    assert len({k.executable for k in kernels}) == 1


def test_values_share_the_arena_while_they_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    planners: list[Any] = []
    places = planning.Planner.places

    def watched(planner: Any) -> Any:
        planners.append(planner)
        return places(planner)

    monkeypatch.setattr(planning.Planner, "places", watched)

    def layers(x: Any, w: Any, v: Any) -> Any:
        for k in range(3):
            x = np.tanh(x @ w).cumsum(1) @ v * k
        return x

    kf.jit(layers).lower(np.ones((40, 1024), np.float32), np.ones((1024, 700)), np.ones((700, 1024)))
    for planner in planners:
        found, size = places(planner)
        offsets, wanted = [offset for _, offset in found], list(planner._wanted.values())
        assert len(offsets) == len(wanted)
        for k, (turns, nbytes) in enumerate(wanted):
            assert offsets[k] % planning.ALIGNMENT == 0
            assert offsets[k] + nbytes <= size
            for j, (others, n) in enumerate(wanted[:k]):
                apart = offsets[k] >= offsets[j] + n or offsets[j] >= offsets[k] + nbytes
                assert apart or set(turns).isdisjoint(others)
        together = max(sum(n for turns, n in wanted if k in turns) for k in range(max(t.stop for t, _ in wanted)))
        assert together <= size <= 1.5 * together < sum(n for _, n in wanted)
    assert len(planners) == 1


def test_kernels_are_compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = registry.backend("cpu")
    together, met = threading.Barrier(2), []
    build = type(device).build

    def meet(self: Any, *args: Any) -> Any:
        met.append(together.wait(timeout=20))  # breaks where no other thread comes
        return build(self, *args)

    monkeypatch.setattr(device, "limits", dataclasses.replace(device.limits, compilers=2, fingerprint="at once"))
    monkeypatch.setattr(type(device), "build", meet)
    with kf.default_device("cpu"):
        fn = kf.jit(lambda x: (x.cumsum(0), x.cumsum(1)))
        assert len(fn.lower(X).kernels) == len(met) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_waits_for_compilers() -> None:
    inside, left = threading.Event(), threading.Event()

    def compile_() -> None:
        with UNFORKED:
            inside.set()
            threading.Event().wait(0.2)
            left.set()

    thread = threading.Thread(target=compile_)
    thread.start()
    inside.wait()
    pid = os.fork()
    if not pid:
        os._exit(0 if left.is_set() else 1)
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize(
    "hold",
    [
        "    with ffi.lib._lock:\n        slow()\n",
        "    intercept._replaced = slow\n    with intercept.intercepted():\n        pass\n",
    ],
)
def test_a_child_compiles_whatever_a_thread_was_at(hold: str) -> None:
    code = (
        "import os, threading, time\n"
        "import numpy as np\n"
        "import kernelforge as kf\n"
        "from kernelforge import intercept\n"
        "from llvmlite.binding import ffi\n"
        "with kf.default_device('cpu'):\n"
        "    kf.jit(np.sinh)(np.ones(3))\n"
        "began, replaced = threading.Event(), intercept._replaced\n"
        "def slow():\n"
        "    began.set()\n"
        "    time.sleep(1)\n"
        "    intercept._replaced = replaced\n"
        "    return replaced()\n"
        f"def hold():\n{hold}"
        "threading.Thread(target=hold).start()\n"
        "began.wait()\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    intercept._replaced = replaced\n"
        "    with kf.default_device('cpu'):\n"
        "        kf.jit(lambda x: np.cosh(x) * time.time())(np.ones(3))\n"
        "    os._exit(0)\n"
        "for _ in range(200):\n"
        "    done, status = os.waitpid(pid, os.WNOHANG)\n"
        "    if done:\n"
        "        os._exit(status != 0)\n"
        "    time.sleep(0.1)\n"
        "os.kill(pid, 9)\n"
        "os._exit(1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_threads_that_end_free_no_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child forked meanwhile would wait for the lock that llvmlite holds while it frees one."""
    made = []
    monkeypatch.setattr(compiler, "_COMPILERS", compiler._Compilers())
    monkeypatch.setattr(
        compiler, "_compiler", lambda level, make=compiler._compiler: made.append(make(level)) or made[-1]
    )
    for _ in range(3):
        thread = threading.Thread(target=compiler.compile_ir, args=("define void @f() { ret void }", "f", ()))
        thread.start()
        thread.join()
    assert len(made) == 1


def test_a_gate_made_while_a_fork_begins() -> None:
    code = (
        "import os\n"
        "from kernelforge.forks import Gate\n"
        "made = []\n"
        "os.register_at_fork(before=lambda: made.append(Gate()))\n"
        "for _ in range(2):\n"
        "    pid = os.fork()\n"
        "    with made[0]:\n"
        "        if not pid:\n"
        "            os._exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_an_interrupted_fork_leaves_the_gate_open() -> None:
    code = (
        "import os, signal, threading, time\n"
        "from kernelforge.forks import UNFORKED\n"
        "def hold():\n"
        "    with UNFORKED:\n"
        "        time.sleep(1)\n"
        "thread = threading.Thread(target=hold)\n"
        "thread.start()\n"
        "time.sleep(0.2)\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "if not os.fork():\n"
        "    os._exit(0)\n"
        "thread.join(5)\n"
        "os._exit(thread.is_alive())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60).returncode == 0


def test_plans_go_with_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "RECENT", 2)
    fn = kf.jit(lambda x: np.tanh(x * 3 + 1).sum(0))
    for _ in range(3):
        fn(X)
    (kernel,) = fn.lower(X).kernels
    code = weakref.ref(kernel.executable)
    del kernel
    for k in range(3):
        kf.jit(lambda x, k=k: x + k)(X)
    gc.collect()
    assert code() is not None
    del fn
    gc.collect()
    assert code() is None


def test_plans_of_functions_made_anew_are_kept() -> None:
    def plan() -> Any:
        return weakref.ref(kf.jit(lambda x: np.cosh(x) * 2).lower(X).plan)

    first = plan()
    gc.collect()
    assert first() is not None
    # lambdas of one line are one program
    assert plan()() is first()


def test_names_are_looked_up_by_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming shared expressions takes work that grows with the kernel, not with its square."""
    calls = [0]

    def counted(e: Any) -> Any:
        calls[0] += 1
        return index.reads(e)

    def chain(n: int) -> int:
        def fn(x: Any) -> Any:
            found = []
            for k in range(n):
                e = np.exp(x + np.float32(k))
                found.append(e / (e + 1))
            return found

        calls[0] = 0
        kf.jit(fn).lower(X)
        return calls[0]

    monkeypatch.setattr(share, "reads", counted)
    with kf.default_device("cpu"):
        few, many = chain(20), chain(80)
    assert 0 < many < 6 * few


def test_maps_behind_each_other_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of them: in trials, too, a map costs as much in a long chain as in a short one."""
    looked = [0]
    before = demand.Lowering._before

    def counted(*args: Any) -> Any:
        looked[0] += 1
        return before(*args)

    def chain(n: int) -> float:
        def fn(x: Any) -> Any:
            for k in range(n):
                x = np.tanh(x) + np.float32(k)
                x = x[::-1] if k % 5 == 1 else x - x.mean(1, keepdims=True) if k % 11 == 3 else x
            return x

        looked[0] = 0
        kf.jit(fn).lower(X)
        return looked[0] / n

    monkeypatch.setattr(demand.Lowering, "_before", counted)
    with kf.default_device("cpu"):
        assert 0 < chain(30) < 50
        assert 0 < chain(120) < 50


def test_one_thread_prints_and_others_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printing takes Python's lock, as scheduling does; LLVM does not."""
    threads: dict[str, list[int]] = {"printed": [], "build": []}

    device = registry.backend("cpu")

    def seen(name: str) -> Any:
        of = getattr(device, name)

        def noted(*args: Any) -> Any:
            threads[name].append(threading.get_ident())
            return of(*args)

        return noted

    for name in threads:
        monkeypatch.setattr(device, name, seen(name))
    monkeypatch.setattr(device, "limits", dataclasses.replace(device.limits, compilers=2, fingerprint="printed first"))
    with kf.default_device("cpu"):
        kf.jit(lambda x: (np.cumsum(np.sinh(x), 0), np.cumprod(np.cosh(x), 1)))(X)
    assert set(threads["printed"]) == {threading.get_ident()}
    assert len(threads["build"]) == len(threads["printed"]) > 1


def test_garbage_waits_for_a_compilation_and_is_collected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    optimize = compiling.optimize

    def look(*args: Any) -> Any:
        seen.append(gc.isenabled())
        return optimize(*args)

    monkeypatch.setattr(compiling, "optimize", look)
    kf.jit(lambda x: np.tanh(x * 3 + 7))(X)
    assert gc.isenabled()
    gc.disable()
    try:
        kf.jit(lambda x: np.tanh(x * 3 + 8))(X)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert seen == [False, False]


def test_garbage_waits_for_the_outer_of_nested_compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    planner = compiling.Planner

    def look(*args: Any) -> Any:
        seen.append(gc.isenabled())
        return planner(*args)

    monkeypatch.setattr(compiling, "Planner", look)
    with kf.config(fusion=False):  # the plan runs loops step by step, and has plans for what they hold
        kf.jit(lambda x: kf.while_loop(lambda c: c.sum() < 9, lambda c: c * c + np.cosh(c), x[0] * 5))(X)
    assert len(seen) > 1
    assert not any(seen)
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_of_a_compiling_process_collects_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[int] = []
    optimize = compiling.optimize

    def fork(*args: Any) -> Any:
        if not (pid := os.fork()):
            os._exit(0 if gc.isenabled() else 1)
        children.append(pid)
        return optimize(*args)

    monkeypatch.setattr(compiling, "optimize", fork)
    kf.jit(lambda x: np.tanh(x * 3 + 9))(X)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0]


def test_a_compilation_lets_go_of_what_served_it() -> None:
    np.asarray(kf.jit(lambda x: np.cumsum(np.sin(x).T.reshape(-1)[::-1]))(np.ones((6, 10), np.float32)))
    forget()
    assert sum(fn.cache_info().misses for fn in memo._MADE) == 0
    before = len(Expr._table)
    for n in range(4, 9):
        kf.jit(lambda x: np.cumsum(np.sin(x).T.reshape(-1)[::-1])).lower(np.ones((6, n), np.float32))
        forget()
    gc.collect()
    assert len(Expr._table) <= before


def test_a_compilation_leaves_little_to_the_collector() -> None:
    """Functions inside of others that call themselves are cycles; finding them took a quarter of long compilations."""
    found: list[int] = []

    def collected(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            found.append(info["collected"])

    def loss(x: Any, w: Any) -> Any:
        return (np.tanh(x @ w + 1) @ w).sum()

    x = np.ones((48, 48), np.float32)
    gc.collect()
    gc.callbacks.append(collected)
    try:
        assert kf.jit(kf.grad(loss, (0, 1))).lower(x, x).kernels
        gc.collect()
    finally:
        gc.callbacks.remove(collected)
    assert sum(found) < 9000
