"""The gate: a slower run fails it, noise does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kernelforge.bench.compare import changes, side
from kernelforge.bench.schema import Run, Sample, Stats
from kernelforge.cli import main
from tests.bench.test_schema import run


def timed(low: float, median: float, high: float, limit: Stats | None = None, other: Stats | None = None) -> Run:
    base = run()
    ours = dataclasses.replace(base.rows[0].samples[0], stats=Stats(median, low, high, low, 9))
    samples: tuple[Sample, ...] = (ours,)
    who = base.candidates[:1]
    if other:
        samples += (Sample("kernelforge@old", "measured", other, 1e-7),)
        who += (dataclasses.replace(who[0], name="kernelforge@old"),)
    return dataclasses.replace(
        base, candidates=who, rows=(dataclasses.replace(base.rows[0], limit=limit, samples=samples),)
    )


def gate(folder: Path, old: Run, new: Run, *options: str) -> int:
    for name, one in (("old", old), ("new", new)):
        (folder / f"{name}.json").write_text(one.to_json())
    return main(["bench", "--compare", str(folder / "old.json"), str(folder / "new.json"), *options])


def test_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = timed(0.9, 1.0, 1.1)
    assert gate(tmp_path, old, timed(1.2, 1.3, 1.4)) == 1
    assert "slower" in capsys.readouterr().out
    assert gate(tmp_path, old, timed(1.2, 1.3, 1.4), "--threshold", "1.5") == 0
    assert gate(tmp_path, old, timed(1.0, 1.3, 1.6)) == 0, "quartiles overlap"
    assert "within noise" in capsys.readouterr().out
    assert gate(tmp_path, old, timed(0.5, 0.6, 0.7)) == 0


def test_times_count_as_multiples_of_the_limit(tmp_path: Path) -> None:
    def limit(t: float) -> Stats:
        return Stats(t, t, t, t, 9)

    slow_machine = timed(1.9, 2.0, 2.1, limit(0.5))
    assert gate(tmp_path, timed(0.9, 1.0, 1.1, limit(0.25)), slow_machine) == 0
    assert gate(tmp_path, timed(0.9, 1.0, 1.1, limit(0.5)), slow_machine) == 1
    noisy = timed(1.9, 2.0, 2.1, Stats(0.5, 0.2, 1.5, 0.2, 9))
    assert gate(tmp_path, timed(0.9, 1.0, 1.1, limit(0.5)), noisy) == 0


def test_two_candidates_of_one_run(tmp_path: Path) -> None:
    one = timed(1.9, 2.0, 2.1, Stats(0.1, 0.01, 1.0, 0.01, 9), other=Stats(1.0, 0.9, 1.1, 0.9, 9))
    (tmp_path / "run.json").write_text(one.to_json())
    file = str(tmp_path / "run.json")
    assert main(["bench", "--compare", f"{file}#kernelforge@old", file]) == 1
    assert main(["bench", "--compare", file, f"{file}#kernelforge@old"]) == 0
    (change,) = changes(side(f"{file}#kernelforge@old"), side(file), 1.1)
    assert change.ratio == 2.0


def test_what_went_wrong_since_is_a_regression(tmp_path: Path) -> None:
    old = timed(0.9, 1.0, 1.1)
    wrong = dataclasses.replace(old.rows[0].samples[0], status="wrong", stats=None, reason="far off")
    assert (
        gate(tmp_path, old, dataclasses.replace(old, rows=(dataclasses.replace(old.rows[0], samples=(wrong,)),))) == 1
    )


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(run().to_json())
    a = str(tmp_path / "a.json")
    (tmp_path / "empty.json").write_text(dataclasses.replace(run(), rows=()).to_json())
    for old, message in (
        (str(tmp_path / "b.json"), "b.json: No such file or directory; give a run's JSON"),
        (f"{a}#tpu", "has no candidate 'tpu'; it has kernelforge, torch, jax, numba"),
        (str(tmp_path / "empty.json"), "nothing in common; compare runs with workloads"),
    ):
        assert main(["bench", "--compare", old, a]) == 1
        assert message in capsys.readouterr().err
