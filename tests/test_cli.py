"""The command line, run in this process; the demo trained briefly."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kernelforge
from kernelforge.cli import main
from kernelforge.demo import model
from kernelforge.demo.digits import load
from kernelforge.runtime import cache

ROOT = Path(__file__).resolve().parent.parent

MODULE = """
import numpy as np
import kernelforge as kf

@kf.jit
def double(x):
    return x * 2

def double_args():
    return (np.ones(3, np.float32),)

@kf.jit
def bare(x):
    return x

def plain(x):
    return x

def tree(params, x):
    return x * params["w"] + params["b"]

def total(x):
    return np.tanh(x).sum()

def several(x):
    return 2.0, np.tanh(x)
"""


def test_devices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("reference: serial form, 1 threads") for line in lines)
    assert {line.split(":")[0] for line in lines} >= {"cpu", "opencl", "cuda", "reference"}


def test_cache_is_described_and_emptied(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELFORGE_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"0 files, 0 bytes of at most 268,435,456, in {tmp_path / 'cache'}\n"
    cache.store("a" * 64, b"12345")
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"removed 1 files, 21 bytes, from {tmp_path / 'cache'}\n"
    assert cache.files() == []


def test_explain(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explained.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "explained", raising=False)
    monkeypatch.setattr("kernelforge.explain.LONG", 0)
    assert main(["explain", "explained:double"]) == 0
    out = capsys.readouterr().out
    assert "1 kernel on cpu" in out
    assert "lines, with text(sources=True) or --sources" in out
    assert main(["explain", "explained:double", "--sources"]) == 0
    assert "kernel 1, source:\n" in capsys.readouterr().out
    assert main(["explain", "explained:plain", "f32[3,4]"]) == 0
    assert "plain(x: f32[3,4]) on cpu" in capsys.readouterr().out
    assert main(["explain", "explained:tree", "{'w': f32[3], 'b': 0.5}", "f64[2, 3]", "--device", "reference"]) == 0
    assert "tree(params['b']: ~f64[], params['w']: f32[3], x: f64[2,3]) on reference" in capsys.readouterr().out
    assert main(["explain", "explained:tree", "{'w': f32[3], 'b': 0.5}", "f32[2,3]", "--grad"]) == 0
    assert "adjoint: " in capsys.readouterr().out
    assert main(["explain", "explained:several", "bf16[3]", "--grad"]) == 0
    assert "adjoint: " in capsys.readouterr().out
    assert main(["explain", "explained:total", "f32[64]", "--grad", "--measure"]) == 0
    out = capsys.readouterr().out
    assert "adjoint" in out
    assert "measured" in out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["explained"], "'explained' names no function; write module:name"),
        (["explained:plain", "1", "2", "3", "4", "5"], "'explained:plain' cannot be called with 5 arguments: too many"),
        ([":f"], "':f' names no function; write module:name"),
        (["nowhere:f"], "there is no module 'nowhere'; run this beside it, or install it"),
        (["explained:fn"], "explained has no function 'fn'; it has double, double_args, bare, plain, tree, total"),
        (
            ["explained:bare"],
            """nothing says with what 'bare' is called; write them, as "f32[4096,64]" or 0.5, or define bare_args() """,
        ),
        (
            ["explained:bare", "f31[2]"],
            "'f31' in 'f31[2]' is no dtype; use one of bool, i8, i16, i32, i64, u8, u16, u32, u64, f16, bf16, f32, f64",
        ),
        (
            ["explained:bare", "f32[2"],
            """'f32[2' is no argument; write an array as "f32[4096,64]", a number as 0.5, a tree as "{'w': f32[8]}\"""",
        ),
        (
            ["explained:bare", "f32[2]", "--html", "nowhere/out.html"],
            "nowhere/out.html cannot be written: No such file",
        ),
    ],
)
def test_what_cannot_be_explained(
    given: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "explained.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "explained", raising=False)
    assert main(["explain", *given]) == 1
    assert f"kernelforge: {message}" in capsys.readouterr().err


def test_unknown_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--device", "abacus"]) == 1
    assert "no device is named 'abacus'" in capsys.readouterr().err


def test_digits() -> None:
    training, held_out = load()
    assert training.images.shape == (1437, 64)
    assert held_out.images.shape == (360, 64)
    assert sorted(set(training.labels)) == list(range(10))
    assert training.images.min() == 0
    assert training.images.max() == 1


def test_hand_written_gradient_is_right() -> None:
    """The baseline of the demo: its update follows the slope of the loss."""
    training, _ = load()
    images, labels = training.images[:16].astype(np.float64), training.labels[:16]
    state = model.init(5)
    state["params"] = {name: p.astype(np.float64) for name, p in state["params"].items()}
    made, _ = model.numpy_step(state, images, labels)
    for name, p in state["params"].items():
        at = (0,) * p.ndim if name == "b1" else (20, 2)[: p.ndim] if p.shape[0] > 20 else (2,) * p.ndim
        losses = []
        for side in (1e-6, -1e-6):
            moved = p.copy()
            moved[at] += side
            losses.append(float(model.loss(state["params"] | {name: moved}, images, labels)))
        slope = (losses[0] - losses[1]) / 2e-6
        np.testing.assert_allclose(made["mean"][name][at], (1 - model.DECAY) * slope, rtol=1e-5)


def test_compiled_step_is_numpys() -> None:
    training, _ = load()
    images, labels = training.images[:32], training.labels[:32]
    state = model.init(16)
    made, value = model.step(state, images, labels)
    expected, expected_value = model.numpy_step(state, images, labels)
    np.testing.assert_allclose(np.asarray(value), expected_value, rtol=1e-5)
    for part in ("params", "mean", "square"):
        for name in expected[part]:
            np.testing.assert_allclose(np.asarray(made[part][name]), expected[part][name], rtol=2e-3, atol=2e-6)
    assert float(made["count"]) == 1


def test_demo_learns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--epochs", "3"]) == 0
    out = capsys.readouterr().out
    assert "digits it never saw are recognised" in out
    assert "NumPy, its gradient written by hand" in out
    assert float(out.split("%")[0].split()[-1]) > 85


def test_module_is_runnable() -> None:
    done = subprocess.run([sys.executable, "-m", "kernelforge", "--help"], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout


def test_a_reader_who_has_seen_enough(tmp_path: Path) -> None:
    (tmp_path / "explained.py").write_text(MODULE)
    command = [sys.executable, "-m", "kernelforge", "explain", "explained:double", "f32[9]"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


def test_the_package_says_its_version() -> None:
    assert kernelforge.__version__ == importlib.metadata.version("kernelforge")


def test_a_terminal_that_knows_ascii_alone() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(
        [sys.executable, "-m", "kernelforge", "bench", "--list"], env=env, capture_output=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, b"")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"kernelforge {kernelforge.__version__}\n"
