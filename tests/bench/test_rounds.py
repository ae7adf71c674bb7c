"""Candidates with known times: the right ratios, a rotating order, nothing wrong is timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelforge.bench.candidates import Entrant
from kernelforge.bench.process import Crew, Worker, WorkerFailed
from kernelforge.bench.rounds import (
    FEWEST,
    Effort,
    Prepared,
    Problem,
    Turn,
    interleave,
    measure,
    order,
    prepare,
    slowest_bound,
)
from tests.bench import fake


def entrant(name: str, module: str = "tests.bench.fake") -> Entrant:
    return Entrant(name, name, module)


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew("cpu", 1, "tests.bench.fake", 20.0)
    yield crew
    crew.close()


def test_ratios_are_right_and_only_right_results_are_timed(crew: Crew) -> None:
    who = [entrant(name) for name in ("kernelforge", "double", "wrong", "picky", "raises")]
    row = measure(Problem.of(fake.TABLE["second"], 0), who, [], crew, Effort(5, 5.0))
    samples = {s.candidate: s for s in row.samples}
    assert [samples[n].status for n in samples] == ["measured", "measured", "wrong", "skipped", "failed"]
    ratio = row.ratio(samples["kernelforge"])
    assert ratio is not None
    stats, slower = samples["kernelforge"].stats, samples["double"].stats
    assert stats is not None
    assert slower is not None
    assert ratio == slower.over(stats)
    assert stats.least >= 0.004
    assert slower.least >= 0.008
    assert samples["kernelforge"].error is not None
    assert samples["kernelforge"].error < 1e-6
    assert samples["wrong"].stats is None
    assert samples["wrong"].reason == "its result is 5.0e-03 from NumPy's in float64"
    assert samples["picky"].reason == "nobody wrote second for picky"
    assert samples["raises"].reason == "ValueError: no such\nluck"


def test_a_dead_worker_is_started_again(crew: Crew) -> None:
    first = prepare(Problem.of(fake.TABLE["first"], 0), entrant("dies"), crew)
    assert not isinstance(first, Prepared)
    assert (first.status, first.reason) == ("failed", "its process ended with status 3")
    assert isinstance(prepare(Problem.of(fake.TABLE["second"], 0), entrant("dies"), crew), Prepared)


def test_patience_ends(crew: Crew) -> None:
    crew.patience = 2.0
    stuck = prepare(Problem.of(fake.TABLE["first"], 0), entrant("stuck"), crew)
    assert not isinstance(stuck, Prepared)
    assert (stuck.status, stuck.reason) == ("failed", "it took more than 2 s")


def test_what_is_not_installed_says_so(crew: Crew) -> None:
    with pytest.raises(WorkerFailed, match=r"tests\.bench\.nowhere is not installed in"):
        crew.worker(entrant("nowhere", "tests.bench.nowhere"))


def test_a_candidate_has_its_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    Worker(entrant("double"), "cpu", 1, "tests.bench.fake", 20.0, extra={"PYTHONPYCACHEPREFIX": str(tmp_path)}).close()
    assert list(tmp_path.rglob("record.*.pyc"))


def test_a_turn_ends_when_no_thread_spins_any_more(crew: Crew) -> None:
    prepared = prepare(Problem.of(fake.TABLE["first"], 0), entrant("spins"), crew)
    assert isinstance(prepared, Prepared)
    begun = time.perf_counter()
    (seconds,) = crew.worker(entrant("spins")).ask("run", warm=0, count=1, batch=1)["seconds"]
    assert time.perf_counter() - begun > fake.SPIN_S > seconds


class Watched:
    """Answers at once, and writes down who was asked."""

    def __init__(self, name: str, log: list[str], fails: bool = False) -> None:
        self.name = name
        self.log = log
        self.fails = fails

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.log.append(self.name)
        if self.fails:
            raise WorkerFailed("gone")
        return {"seconds": [1.0] * arguments["count"]}


def test_order_rotates() -> None:
    assert [order(3, n) for n in range(4)] == [[0, 1, 2], [0, 2, 1], [2, 0, 1], [2, 1, 0]]
    log: list[str] = []
    turns = [Turn(name, Watched(name, log), 1e-3, 1) for name in "abc"]
    interleave(turns, Effort(6, 60.0))
    rounds = [log[k : k + 3] for k in range(0, 18, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    for place in (0, 2):
        assert len({r[place] for r in rounds}) == 3
    assert all(len(t.rounds) == 6 and t.stats and t.stats.count == 60 for t in turns)


def test_who_fails_takes_no_more_turns_and_who_is_slow_fewer() -> None:
    log: list[str] = []
    broken, slow, quick = (Turn(n, Watched(n, log, n == "broken"), 1.0, 1) for n in ("broken", "slow", "quick"))
    slow.spent = 1e9
    interleave([broken, slow, quick], Effort(8, 60.0))
    assert [log.count(n) for n in ("broken", "slow", "quick")] == [1, FEWEST, 8]
    assert broken.failed == "gone"


def test_the_limit_is_the_slower_of_the_quickest_move_and_the_flops() -> None:
    def turn(name: str, *rounds: list[float]) -> Turn:
        return Turn(name, Watched(name, []), 1.0, 1, [*rounds])

    plain, streaming = turn("limit:plain", [3.0, 2.0], [5.0, 4.0], [2.0]), turn("limit:streaming", [4.0], [3.5], [9.0])
    quick, slow = turn("limit:arithmetic", [1.0], [2.0], [9.0]), turn("limit:arithmetic", [4.0, 8.0], [3.5], [3.0])
    limit, bound = slowest_bound([plain, streaming, quick])
    assert (bound, limit) == ("memory", plain.stats)
    assert limit is not None
    assert limit.rounds == (2.5, 4.5, 2.0)
    limit, bound = slowest_bound([plain, streaming, slow])
    assert (bound, limit) == ("arithmetic", slow.stats)
    assert slowest_bound([]) == (None, None)


def test_results_are_judged_by_norm() -> None:
    problem = Problem.of(fake.TABLE["first"], 0)
    right = problem.expected[0]
    assert problem.error([right]) == 0
    assert problem.error([np.full_like(right, np.nan)]) == np.inf
    assert problem.error([right[:-1]]) == np.inf
    assert problem.error([right, right]) == np.inf
    assert problem.error([right * 1.5]) == pytest.approx(0.5)
