"""The command from end to end, quickly, and what it refuses."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from kernelforge.bench import command, environments
from kernelforge.bench.arguments import add_arguments
from kernelforge.bench.report import notes
from kernelforge.bench.schema import from_json
from kernelforge.cli import main
from kernelforge.errors import CommandFailed

ROOT = Path(__file__).resolve().parents[2]


def test_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    file = tmp_path / "run.json"
    given = ["--device", "cpu", "--quick", "--filter", "^(call_16|sgemm_256)$", "--peers", "numpy,torch"]
    page = tmp_path / "page.html"
    assert main(["bench", *given, "--seconds", "2", "--json", str(file), "--html", str(page)]) == 0
    out, told = capsys.readouterr()
    assert re.fullmatch(r"call_16 on cpu: [\d.]+ s\nsgemm_256 on cpu: [\d.]+ s\n", told), "times only, by lines"
    assert "sgemm_256" in page.read_text()
    run = from_json(file.read_text())
    (kept,) = command.history().glob("*.json")
    assert from_json(kept.read_text()) == run
    assert run.complete
    assert [r.key for r in run.rows] == [("call_16", "cpu", "overhead"), ("sgemm_256", "cpu", "time")]
    call, product = run.rows
    assert call.limit is None
    assert product.bound == "arithmetic"
    assert product.limit
    for row in run.rows:
        assert [s.status for s in row.samples[:2]] == ["measured", "measured"]
    fraction = product.fraction(product.samples[0])
    assert fraction
    assert fraction > 0
    assert {c.name: bool(c.versions) for c in run.candidates[:2]} == {"kernelforge": True, "numpy": True}
    assert "sgemm_256" in out
    assert any("torch" in line for line in notes(run)) or run.rows[1].samples[2].stats


def test_first_calls_and_memory() -> None:
    options = command.Options("^(mlp_step)$", ("cpu",), (), measures=("first", "memory"), quick=True)
    run = command.Bench(options).run()
    found = {r.measure: r.samples[0] for r in run.rows}
    assert set(found) == {"cold", "warm", "import", "memory"}
    medians = {m: s.stats.median for m, s in found.items() if s.stats}
    assert len(medians) == 4, found
    assert min(medians.values()) > 0
    assert 1 << 20 < medians["memory"] < 200 << 20


def test_an_interrupt_leaves_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = command.measure, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(command, "measure", interrupted)
    options = command.Options(
        "^(first|second)$", ("cpu",), (), measures=("time",), quick=True, table="tests.bench.fake"
    )
    run = command.Bench(options).run()
    assert not run.complete
    assert [r.workload for r in run.rows] == ["first"]
    assert "the run was interrupted; this is what was measured before" in notes(run)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--filter", "gelus"], "no workload matches 'gelus'; choose from tanh_exp, tanh_exp.bwd, gelu,"),
        (["--runs", "a.json"], "--runs names the runs of a page; give --html, too"),
        (["--runs", "a.json", "--html", "a.html", "--quick"], "a page of --runs measures nothing; leave out --quick"),
        (
            ["--compare", "a", "b", "--html", "c", "--device", "cpu"],
            "--compare measures nothing; leave out --device, --html",
        ),
        (["--threads", "0"], "--threads and --seconds are amounts; give positive numbers"),
        (["--seconds", "-1"], "--threads and --seconds are amounts; give positive numbers"),
        (["--filter", "("], "'(' is no regular expression"),
        (["--peers", "abacus"], "there is no peer 'abacus'; choose from numpy, numexpr, numba, torch,"),
        (["--python", "torch=/nowhere"], "there is no interpreter '/nowhere' for 'torch'; write PEER=PATH"),
        (["--measure", "speed"], "there is no measure 'speed'; choose from time, first, memory"),
        (["--device", "abacus"], "no device is named 'abacus'"),
        (["--versions", "torch@HEAD"], "'torch@HEAD' names no version of a candidate; write torch==VERSION,"),
        (["--versions", "kernelforge@no-such-ref"], "git rev-parse refused"),
    ],
)
def test_errors(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--no-save", *given]) == 1
    assert message in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--filter", "^soft"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "softmax_4096x1024",
        "softmax_4096x1024.bwd",
        "softmax_64x65536",
        "softmax_64x65536.bwd",
    ]


def test_versions_are_candidates_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[list[str], str]] = []

    def environment(install: list[str], key: str) -> Path:
        made.append((install, key))
        return tmp_path / "python"

    monkeypatch.setattr(environments, "_environment", environment)
    (tmp_path / "pyproject.toml").write_text("")
    torch = environments.entrant("torch==2.1")
    assert (torch.name, torch.variant, torch.isolated) == ("torch==2.1", "torch", True)
    assert made[0] == (["torch==2.1", "numpy"], "torch==2.1")
    path = f"kernelforge@{tmp_path}"
    assert environments.entrant(path).ours
    (tmp_path / "module.py").write_text("x = 1")
    environments.entrant(path)
    assert made[1][1] != made[2][1], "changed sources are another environment"
    with pytest.raises(CommandFailed):
        environments.entrant("kernelforge")


def test_the_machine_is_named_by_its_family() -> None:
    cpu = command.machine(["cpu"], 2).cpu
    assert cpu
    assert cpu == cpu.strip()
    assert "\n" not in cpu
    assert not any(c.isdigit() for c in cpu.replace("x86_64", "").replace("aarch64", ""))


def test_every_option_is_documented() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = (ROOT / "docs" / "benchmarking.md").read_text()
    for action in parser._actions:
        if action.option_strings[-1] != "--help":
            assert f"`{action.option_strings[-1]}" in text, action.option_strings
