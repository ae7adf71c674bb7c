"""Plans that are kept on disk: who finds one neither fuses nor lowers, and computes the same."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge.backends import registry
from kernelforge.compile import forget
from kernelforge.ir.graph import Graph
from kernelforge.runtime import cache, kept

compiling = sys.modules["kernelforge.compile"]
KEPT = {name: getattr(compiling, name) for name in ("_found", "_keep")}

RNG = np.random.default_rng(11)
X = RNG.normal(size=(9, 12)).astype(np.float32)
W = RNG.normal(size=(12, 12)).astype(np.float32)
DEVICES = [n for n, d in registry.available().items() if not isinstance(d, str) and n != "reference"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KERNELFORGE_CACHE_DIR", str(tmp_path))
    for name, fn in KEPT.items():  # which other tests do without
        monkeypatch.setattr(compiling, name, fn)
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Return the graphs that are compiled and not found."""
    made: list[Graph] = []
    fused = compiling._fused

    def noted(graph: Graph, *args: Any) -> Any:
        made.append(graph)
        return fused(graph, *args)

    monkeypatch.setattr(compiling, "_fused", noted)
    return made


def again(fn: Callable[..., Any], *args: Any) -> Any:
    """Call a function as a process does that has not compiled it."""
    forget()
    return kf.jit(fn)(*args)


def layers(x: Any, w: Any) -> Any:
    for _ in range(2):
        x = np.tanh(x @ w)
    return x - x.mean(1, keepdims=True)


def running(x: Any, w: Any) -> Any:
    def step(h: Any, row: Any) -> Any:
        h = np.tanh(h @ w + row)
        return h, h * 2

    return kf.scan(step, np.zeros(12, np.float32), x)


def until(x: Any) -> Any:
    return kf.while_loop(lambda c: np.abs(c).sum() < 100, lambda c: c * 1.5 + 1, x)


def either(x: Any) -> Any:
    return kf.cond(x.sum() > 0, np.sin, lambda y: y @ y.T @ y, x)


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "map": (lambda x: np.tanh(x) * 2 + 1, (X,)),
    "layers": (layers, (X, W)),
    "gradient": (kf.grad(lambda x, w: layers(x, w).sum(), argnums=(0, 1)), (X, W)),
    "constant": (lambda x: x @ W + np.arange(12), (X,)),
    "scan": (running, (X, W)),
    "gradient of a scan": (kf.grad(lambda w: running(X, w)[1].sum()), (W,)),
    "while": (until, (X,)),
    "cond": (either, (X,)),
    "random": (lambda x: kf.random.normal(kf.random.key(3), x.shape) + x, (X,)),
    "strided": (lambda x: np.cumsum(x, 0), (X[::-2, ::3],)),
    "vmap": (kf.vmap(np.sort), (X,)),
    "nothing": (lambda x: (x, x[:0]), (X,)),
}


STEPS = ("scan", "while", "cond", "gradient of a scan", "constant")
"""Unfused, the plan runs loops itself: plans within plans."""


@pytest.mark.parametrize(("name", "fusion"), [*((n, True) for n in FUNCTIONS), *((n, False) for n in STEPS)])
@pytest.mark.parametrize("device", DEVICES)
def test_what_was_kept_computes_the_same(device: str, name: str, fusion: bool, compiled: list[Graph]) -> None:
    fn, args = FUNCTIONS[name]
    with kf.default_device(device), kf.config(fusion=fusion):
        wanted = again(fn, *args)
        assert compiled
        compiled.clear()
        made = kf.jit(fn)
        forget()
        for found in (made(*args), made(*args), made(*args)):  # by Python, and by machine code where there is some
            for a, b in zip(optree.tree_leaves(found), optree.tree_leaves(wanted), strict=True):
                np.testing.assert_array_equal(a, b)
        assert not compiled


def test_another_process_finds_it(own_folder: Path) -> None:
    code = (
        "import sys, numpy as np, kernelforge as kf\n"
        "compiling, made = sys.modules['kernelforge.compile'], []\n"
        "fused = compiling._fused\n"
        "compiling._fused = lambda *given: made.append(given) or fused(*given)\n"
        "f = kf.jit(kf.grad(lambda w: np.tanh(np.ones((5, 7), np.float32) @ w).sum()))\n"
        "print(len(made), np.asarray(f(np.full((7, 3), .25, np.float32))).tobytes().hex(), len(made))\n"
    )
    env = {**os.environ, "KERNELFORGE_CACHE_DIR": str(own_folder)}

    def said(seed: str) -> list[str]:
        command = [sys.executable, "-c", code]
        given = {**env, "PYTHONHASHSEED": seed}
        return subprocess.run(
            command, env=given, capture_output=True, text=True, timeout=120, check=True
        ).stdout.split()

    _, wanted, compiled = said("1")
    assert compiled == "1"
    assert said("2") == ["0", wanted, "0"]


def test_what_changes_the_result_is_another_plan(compiled: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(change: Callable[[], Any]) -> int:
        compiled.clear()
        change()
        return len(compiled)

    table = np.arange(12, dtype=np.float32)

    def fn(x: Any) -> Any:
        return x * table + 1

    assert counted(lambda: again(fn, X)) == 1
    assert counted(lambda: again(fn, X)) == 0
    assert counted(lambda: again(fn, X[:5])) == 1
    assert counted(lambda: again(fn, X.astype(np.float64))) == 1
    assert counted(lambda: again(fn, X.T.copy().T)) == 1
    assert counted(lambda: again(lambda x: x * table + 2, X)) == 1
    with kf.config(rounding="fast"):
        assert counted(lambda: again(fn, X)) == 1
    table[3] = -0.0
    assert counted(lambda: np.testing.assert_array_equal(again(fn, X), fn(X))) == 1
    assert counted(lambda: again(fn, X)) == 0
    monkeypatch.setattr(kept, "VERSIONS", ("3.99",))
    assert counted(lambda: again(fn, X)) == 1
    monkeypatch.setattr(cache, "sources", lambda: "other sources")
    assert counted(lambda: again(fn, X)) == 1


def test_what_is_damaged_is_made_again(
    own_folder: Path, compiled: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fn(x: Any) -> Any:
        return np.cumsum(x, 0) * 3

    names: list[str] = []
    key = kept.key

    def noted(*args: Any) -> str:
        names.append(key(*args))
        return names[-1]

    monkeypatch.setattr(kept, "key", noted)
    wanted = again(fn, X)
    file = own_folder / f"{names[0]}{cache.SUFFIX}"
    whole = file.read_bytes()
    cut = [b"", whole[:-1], whole[: len(whole) // 2], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]]
    for content in (*cut, pickle.dumps(3), b"no pickle", pickle.dumps(({}, b"no plan"))):
        if content in cut:
            file.write_bytes(content)
        else:
            cache.store(names[0], content)  # as if it had been kept so
        compiled.clear()
        np.testing.assert_array_equal(again(fn, X), wanted)
        assert len(compiled) == 1
        np.testing.assert_array_equal(again(fn, X), wanted)
        assert len(compiled) == 1


def test_machine_code_that_is_gone_is_made_of_the_kept_kernel(own_folder: Path, compiled: list[Graph]) -> None:
    wanted = again(layers, X, W)
    plans = [p for p in cache.files() if b"kernelforge.runtime.plan" in p.read_bytes()]
    assert len(plans) == 1
    for file in set(cache.files()) - set(plans):
        file.unlink()
    compiled.clear()
    np.testing.assert_array_equal(again(layers, X, W), wanted)
    assert not compiled


def test_large_constants_are_not_written(own_folder: Path) -> None:
    table = RNG.normal(size=1 << 16).astype(np.float32)
    again(lambda x: x + table, table)
    assert sum(f.stat().st_size for f in cache.files()) < table.nbytes // 4


def test_donated_arguments(compiled: list[Graph]) -> None:
    def step(w: Any, x: Any) -> Any:
        return w - 0.1 * np.tanh(x), (w * x).sum()

    wanted = kf.jit(step, donate_argnums=0)(kf.asarray(W.copy()), W)
    forget()
    compiled.clear()
    given = kf.asarray(W.copy())
    made = kf.jit(step, donate_argnums=0)(given, W)
    assert not compiled
    for a, b in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(kf.errors.DonatedArray):
        np.asarray(given)
    again(step, W, W.copy())  # without donation it is another plan
    assert len(compiled) == 1


def test_people_see_what_is_made_again(compiled: list[Graph]) -> None:
    fn = kf.jit(layers)
    fn(X, W)
    text = str(fn.explain(X, W))
    forget()
    compiled.clear()
    fn = kf.jit(layers)
    fn(X, W)
    assert not compiled
    assert str(fn.explain(X, W)) == text
    assert fn.lower(X, W).kernels[0].source
    assert len(compiled) == 1


def test_the_reference_device_keeps_nothing(own_folder: Path, compiled: list[Graph]) -> None:
    with kf.default_device("reference"):
        for _ in range(2):
            again(layers, X, W)
    assert len(compiled) == 2
    assert not cache.files()
