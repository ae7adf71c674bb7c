"""Tuning: what is slow is found out, what is wrong is refused, and what was found serves later programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import compile as compiling
from kernelforge import tuner
from kernelforge.backends.base import Limits
from kernelforge.cli import main
from kernelforge.config import Config
from kernelforge.errors import DamagedTuning, DeviceOutOfMemory, IllegalSchedule, InvalidParameter
from kernelforge.ir.kernel import For, If, Kernel, Stmt, Store
from kernelforge.ir.schedule.choices import Choices
from kernelforge.runtime import tuned


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNELFORGE_CACHE_DIR", str(tmp_path))
    compiling.forget()
    return tmp_path


def pair(n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, n), np.float32), rng.standard_normal((n, n), np.float32)


def slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bad formula: tiles of one row and one register."""
    take = Choices.take

    def bad(self: Choices, name: str, default: int, others: Sequence[int]) -> int:
        return take(self, name, 1 if name in ("rows", "columns") else default, (*others, default))

    monkeypatch.setattr(Choices, "take", bad)
    monkeypatch.setattr(Limits, "choose", lambda self, *what: (self.choices or Choices({})).take(*what))


@pytest.mark.parametrize("device", ["cpu", "opencl:0"])
def test_a_slow_formula_is_improved(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch)
    a, b = pair(192)

    @kf.jit
    def product(a: Any, b: Any) -> Any:
        return np.tanh(a @ b)

    with kf.default_device(device):
        first = np.asarray(product(a, b))
        for _ in range(3):  # where others take the processors, nothing may be seen to be faster in one search
            (found,) = kf.tune(product, a, b, seconds=5).kernels
            if found.parameters:
                break
        assert found.after < 0.7 * found.before
        assert set(found.parameters) & {"rows", "columns"}
        np.testing.assert_allclose(np.asarray(product(a, b)), first, rtol=1e-5, atol=1e-5)
        (kernel,) = product.lower(a, b).kernels
        assert dict(kernel.tuned) == found.parameters
        assert "tuned: " in product.explain(a, b).text()
        (other,) = kf.jit(lambda x, y: np.tanh(x @ y)).lower(a, b).kernels
        assert other.tuned == kernel.tuned


def test_a_wrong_candidate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = compiling.schedule

    def wrong(kernel: Kernel, limits: Limits) -> Kernel:
        made = schedule(kernel, limits)
        (out,) = (a.name for a in kernel.args if a.mode == "out")
        if not limits.choices or limits.choices.given.get("chunk") != 4096:
            return made

        def doubled(stmt: Stmt) -> Stmt:
            if isinstance(stmt, For | If):
                return dataclasses.replace(stmt, body=tuple(map(doubled, stmt.body)))
            changed = isinstance(stmt, Store) and stmt.buffer == out
            return dataclasses.replace(stmt, value=stmt.value * 1.001) if changed else stmt

        return dataclasses.replace(made, body=tuple(map(doubled, made.body)))

    monkeypatch.setattr(compiling, "schedule", wrong)
    x = np.ones(1 << 16, np.float32)
    (found,) = kf.tune(np.sin, x, seconds=5).kernels
    refused = {tuple(parameters.items()): why for parameters, why in found.refused}
    assert "elements differ from the untuned result" in refused[("chunk", 4096),]
    assert found.parameters.get("chunk") != 4096


def test_a_candidate_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes on without it, and closes it."""
    closed, made, run, close = list[str](), tuner.scheduled, tuner._Made.run, tuner._Made.close

    def planted(naive: Kernel, limits: Limits, config: Config, choices: Choices) -> Kernel:
        kernel = made(naive, limits, config, choices)
        return dataclasses.replace(kernel, name="planted") if choices.given.get("chunk") == 4096 else kernel

    def failing(candidate: Any, memory: Any) -> None:
        if candidate.ir.name == "planted":
            raise DeviceOutOfMemory(device="cpu", nbytes=1 << 40)
        run(candidate, memory)

    def noted(candidate: Any) -> None:
        closed.append(candidate.ir.name)
        close(candidate)

    monkeypatch.setattr(tuner, "scheduled", planted)
    monkeypatch.setattr(tuner._Made, "run", failing)
    monkeypatch.setattr(tuner._Made, "close", noted)
    (found,) = kf.tune(np.sin, np.ones(1 << 16, np.float32), seconds=2).kernels
    refused = {tuple(parameters.items()): why for parameters, why in found.refused}
    assert "no room" in refused[("chunk", 4096),]
    assert closed.count("planted") == 1


def test_a_damaged_file_is_refused() -> None:
    x = np.ones(8, np.float32)
    file = Path(kf.tune(np.sin, x, seconds=0.1).file)
    for content in ("{", "[]", '{"kernels": {"a": {"parameters": {"rows": "many"}}}}', '{"kernels": {"a": 1}}'):
        file.write_text(content)
        for run in (lambda: kf.jit(np.cos)(x), lambda: kf.tune(np.cos, x, seconds=0.1)):
            with pytest.raises(DamagedTuning, match=r"what kf\.tune writes: .*; remove it, and tune again"):
                run()
        assert file.read_text() == content
    file.unlink()
    assert kf.jit(np.cos)(x)[0] == np.float32(np.cos(np.float32(1)))


def test_values_that_no_recipe_offers_are_refused() -> None:
    choices = Choices({"rows": 7})
    with pytest.raises(IllegalSchedule, match=r"choose\(rows\) is not legal: 7 is none of \(6, 4, 8\)"):
        choices.take("rows", 6, (4, 8))
    assert choices.take("columns", 2, (1, 2)) == 2
    assert choices.offered == {"rows": (6, 4, 8), "columns": (2, 1)}


def test_a_kept_value_that_no_recipe_offers_is_refused_with_its_file() -> None:
    x = np.ones(1 << 16, np.float32)
    plan = kf.jit(np.sin).lower(x).plan
    (kernel,) = plan.kernels
    file = tuned.store(plan.backend, {tuned.name_of(kernel.naive): {"parameters": {"chunk": 999}}})
    with pytest.raises(DamagedTuning, match=r"for sin, .* 999 is none of .*; remove it, and tune again") as info:
        kf.jit(np.sin)(x)
    assert str(file) in str(info.value)


def test_programs_compiled_before_and_after_do_not_share_plans() -> None:
    a, b = pair(64)
    fn = kf.jit(lambda a, b: a @ b)
    fn(a, b)
    backend = fn.lower(a, b).plan.backend
    (kernel,) = fn.lower(a, b).kernels
    entry = {tuned.name_of(kernel.naive): {"parameters": {"columns": 1}}}
    tuned.store(backend, entry)
    (changed,) = fn.lower(a, b).kernels
    assert changed.tuned == (("columns", 1),)
    assert changed.ir != kernel.ir
    tuned.store(backend, {name: {"parameters": {}} for name in entry})
    assert fn.lower(a, b).kernels[0].ir == kernel.ir


def test_results_of_other_kinds_are_compared_exactly() -> None:
    ones = np.ones(4, np.int32)
    assert tuner._different(ones, ones, 4) == 0
    assert tuner._different(ones, ones + np.arange(4, dtype=np.int32), 4) == 3
    special = np.array([np.nan, np.inf, 1.0], np.float32)
    assert tuner._different(special, special, 3) == 0
    assert tuner._different(special, np.array([0.0, -np.inf, 1.01], np.float32), 3) == 3


def test_seconds_are_checked() -> None:
    with pytest.raises(InvalidParameter, match="tune: seconds=0 is not valid; expected a number above 0"):
        kf.tune(np.sin, np.ones(3), seconds=0)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tuned_module.py").write_text("import numpy as np\n\ndef f(x):\n    return np.tanh(x).sum()\n")
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "tuned_module:f", "f32[64,64]", "--grad", "--seconds", "1", "--device", "cpu"]) == 0
    *kernels, last = capsys.readouterr().out.splitlines()
    assert kernels
    assert all("tried" in line for line in kernels)
    assert last.startswith("kept in ")
