"""Kernels compiled for processors that are not there."""

from __future__ import annotations

import functools
import re
import sys
import types
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.backends.target import Report
from kernelforge.backends.targets import GPUS, target
from kernelforge.cli import main
from kernelforge.dtypes import DTYPES
from kernelforge.errors import DeviceUnavailable, UnknownTarget
from kernelforge.ir.kernel import Alloc, Arg, For, Kernel, Load, Store, Var, i64
from tests.representative import programs, softmax

pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")

PROCESSORS = ("cpu:x86-64", "cpu:znver4", "cpu:neoverse-v2", "cpu:aarch64")
EXPECTED = {
    "cuda": r"ld\.global\.v4\.[bf]32.*bar\.sync",
    "opencl:gfx": "global_load_(dwordx4|b128).*s_barrier",
    "cpu:znver4": "zmm",
    "cpu:neoverse": r"fmul\tv",
}
PROGRAMS = programs(1024, 1024)
ATTENTION = ("attention", "causal", "attention.bwd", "causal.bwd")
X = np.ones((64, 1024), np.float32)


def reports(name: str, fn: Any, args: Any) -> list[Report]:
    """What the target's compiler says of each kernel; skips where it is not installed."""
    found = [k.executable.report for k in kf.jit(fn).lower(*args, target=name).kernels]  # type: ignore[attr-defined]
    for report in found:
        if report.missing:
            pytest.skip(report.missing)
    return found


@pytest.mark.parametrize("name", [*GPUS, *PROCESSORS])
def test_every_target_compiles(name: str) -> None:
    (report,) = reports(name, softmax, [X])
    assert report.target == name
    assert report.source
    for start, text in EXPECTED.items():
        assert re.search(text, report.assembly, re.DOTALL) or not name.startswith(start)
    for usage in report.usage:
        assert usage.spills == 0 or name.startswith("cpu")
        if not name.startswith("cpu"):
            assert usage.registers
            assert usage.local_bytes
            assert usage.occupancy
            assert 0 < usage.occupancy <= 1


@pytest.mark.parametrize("name", ["cuda:sm_80", "cuda:sm_90", "opencl:gfx90a"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_spills(program: str, name: str) -> None:
    """Nor does attention take so many registers that only one work-group, of 256 work-items, fits a unit of 65536."""
    fits = 128 if name.startswith("cuda") and program in ATTENTION else 255
    for report in reports(name, *PROGRAMS[program]):
        assert [u for u in report.usage if u.spills] == []
        assert "ld.local" not in report.assembly
        assert ".private_segment_fixed_size: 0" in report.assembly or not name.startswith("opencl")
        assert all(u.registers is not None and u.registers <= fits for u in report.usage) or not name.startswith("cuda")


@pytest.mark.parametrize("name", ["cuda:sm_80", "cuda:sm_90"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_attention_multiplies_by_tensor_cores(dtype: str, name: str) -> None:
    fn, args = PROGRAMS["attention"]
    (report,) = reports(name, fn, [a.astype(DTYPES[dtype]) for a in args])
    assert report.assembly.count(f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32") >= 16
    assert "ld.local" not in report.assembly
    (usage,) = report.usage
    assert not usage.spills
    assert usage.registers is not None
    assert usage.registers <= 96


@pytest.mark.parametrize("name", ["cuda:sm_80", "cuda:sm_90"])
def test_attention_of_high_precision_multiplies_tf32(name: str) -> None:
    with kf.config(precision="high"):
        (report,) = reports(name, *PROGRAMS["attention"])
    assert report.assembly.count("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") >= 16
    assert "ld.local" not in report.assembly
    assert not any(u.spills for u in report.usage)


@pytest.mark.parametrize("name", ["cuda:sm_90", "opencl:gfx90a"])
def test_what_is_kept_in_memory_counts_as_spilled(name: str) -> None:
    """An array of registers, read where the data says."""
    g, t, i = Var("g", bound=8), Var("t", bound=64), Var("i", bound=96)
    at = g * 64 + t
    made = (
        Alloc("r", "f32", (i64(96),), "register"),
        For(i, i64(96), "serial", (Store("r", (i,), Load("x", (at + i * 512,), "f32")),)),
        Store("y", (at,), Load("r", (Load("k", (at,), "i64"),), "f32")),
    )
    nest = For(g, i64(8), "grid", (For(t, i64(64), "group", made),))
    args = (Arg("x", "f32", i64(49152), "in"), Arg("k", "i64", i64(512), "in"), Arg("y", "f32", i64(512), "out"))
    report = target(name).compile(Kernel("array", args, (), (nest,))).report
    if report.missing:
        pytest.skip(report.missing)
    (usage,) = report.usage
    assert usage.spills >= 96 * 4


def test_widths_are_those_of_the_processor() -> None:
    from kernelforge.backends.cpu.offline import described

    found = {
        cpu: described(arch, cpu)
        for arch, cpu in [
            ("x86_64", "x86-64"),
            ("x86_64", "haswell"),
            ("x86_64", "knl"),
            ("x86_64", "skylake-avx512"),
            ("aarch64", "neoverse-v2"),
        ]
    }
    assert [h.vector_bytes for h in found.values()] == [16, 32, 32, 64, 16]
    assert [h.vector_registers for h in found.values()] == [16, 16, 16, 32, 32]
    assert [h.fma for h in found.values()] == [False, True, True, True, True]
    assert [h.half for h in found.values()] == [False, True, True, True, True]


def test_occupancy_is_that_of_the_calculator() -> None:
    from kernelforge.backends.cuda.occupancy import occupancy

    assert occupancy("sm_80", 256, 32, 0) == 1
    assert occupancy("sm_80", 256, 64, 0) == 0.5
    assert occupancy("sm_80", 256, 255, 0) == 0.125
    assert occupancy("sm_86", 1024, 32, 0) == pytest.approx(2 / 3)
    assert occupancy("sm_90", 128, 32, 100 << 10) == 0.125
    assert occupancy("sm_75", 64, 32, 0) == 1
    assert occupancy("sm_80", 32, 16, 0) == 0.5


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(UnknownTarget) as error:
        target("opencl:gfx90b")
    assert str(error.value).startswith("no target is named 'opencl:gfx90b'; there are cuda:sm_75, ")
    assert str(error.value).endswith("cpu: followed by any processor that LLVM knows (cpu:znver4, cpu:neoverse-v2); "
                                     "did you mean 'opencl:gfx90a'?")  # fmt: skip
    with pytest.raises(
        UnknownTarget, match=r"'cpu:neoverse-v9'; there are \d+ processors .*, among them cpu:neoverse-"
    ):
        target("cpu:neoverse-v9")


@pytest.mark.parametrize(("name", "compiler"), [("opencl:gfx90a", "clang 14 or later"), ("opencl:pvc", "ocloc")])
def test_a_missing_compiler_is_named(name: str, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    text = str(kf.jit(softmax).explain(X[:3], target=name))
    assert f"not compiled for {name}: {compiler}" in text
    assert "is needed: it is not installed; apt-get install" in text
    assert "__kernel" in text


def test_what_needs_a_library_is_named() -> None:
    (kernel,) = kf.jit(lambda x: np.fmod(x, 2.5)).lower(X.astype(np.float64), target="opencl:gfx90a").kernels
    report = kernel.executable.report  # type: ignore[attr-defined]
    if "which" not in report.missing:
        pytest.skip(report.missing)
    assert "AMD's device libraries is needed: the kernel calls fmod, which these define" in report.missing


def test_a_target_runs_nothing() -> None:
    plan = kf.jit(softmax).lower(X, target="cpu:znver4").plan
    with pytest.raises(DeviceUnavailable, match="cpu:znver4 is a target to compile for; kernels run on devices only"):
        plan.backend.allocate(1)


def test_a_functions_own_target_stays_its_own() -> None:
    @kf.jit
    def loss(x: Any, target: Any) -> Any:
        return ((x - target) ** 2).sum()

    @functools.partial(kf.jit, static_argnames="target")
    def chosen(x: Any, target: str) -> Any:
        return x * 2 if target == "twice" else x

    assert " on cpu\n" in str(loss.explain(X, target=X))
    assert "loss(x: f32[64,1024], target: f32[64,1024]) on cpu:znver4" in str(loss.explain(X, X, target="cpu:znver4"))
    assert "2.0" in chosen.lower(X, target="twice").text()
    assert chosen.lower(X, target="twice").plan.backend.name == "cpu"
    assert loss.lower(X, X, target="cpu:znver4").plan.backend.name == "cpu:znver4"


def test_explain_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType("wanted")
    vars(module).update(fn=kf.jit(softmax), fn_args=lambda: (X,))
    monkeypatch.setitem(sys.modules, "wanted", module)
    assert main(["explain", "wanted:fn", "--target", "cpu:neoverse-v2", "--asm"]) == 0
    shown = capsys.readouterr().out
    assert "1 kernel on cpu:neoverse-v2" in shown
    assert "spilled" in shown
    assert "fmul\tv" in shown
    assert main(["explain", "wanted:fn", "--target", "cpu:none"]) == 1
    assert "no target is named 'cpu:none'" in capsys.readouterr().err
    assert main(["explain", "wanted:fn", "--asm"]) == 1
    assert "--asm shows the assembly of a target; give --target, too" in capsys.readouterr().err
