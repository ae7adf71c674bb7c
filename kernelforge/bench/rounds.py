"""Measuring: candidates take turns in rounds, and a result is checked before its candidate may be timed."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kernelforge.bench.candidates import ARITHMETIC, Entrant
from kernelforge.bench.process import Crew, WorkerFailed
from kernelforge.bench.schema import Bound, Row, Sample, Stats
from kernelforge.bench.workloads.record import TOLERANCE, Array, Workload, distance

TURN_S = 0.02
"""How long a turn lasts about, so that a quick call is measured several times in it."""
MOST_CALLS = 10
SHORT_S = 5e-3
"""Calls shorter than this are made twice, untimed, before a turn's first timed one; longer ones once."""
LONG_S = 0.1
"""Calls longer than this are not made untimed: what the turn before left behind does not show in them."""
FEWEST = 3
"""Rounds that a candidate takes part in, however slow it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: at most.
        seconds: for the rounds of one workload, about; a candidate stays away from the later ones when the time that
            it has taken passes its share.
    """

    rounds: int = 15
    seconds: float = 12.0


class Timed(Protocol):
    """What takes turns."""

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]: ...


@dataclasses.dataclass
class Turn:
    """A prepared candidate and what it measured so far.

    Attributes:
        call: about how many seconds a call takes.
        batch: calls that are timed at once.
        rounds: seconds of a call, the samples of each turn.
    """

    name: str
    worker: Timed
    call: float
    batch: int
    rounds: list[list[float]] = dataclasses.field(default_factory=list)
    spent: float = 0.0
    failed: str = ""

    @property
    def stats(self) -> Stats | None:
        """The statistics of all calls, None before the first."""
        if not self.rounds:
            return None
        return Stats.of([s for r in self.rounds for s in r], [statistics.median(r) for r in self.rounds])

    def take(self) -> None:
        """Make untimed calls, then timed ones."""
        count = max(1, min(MOST_CALLS, int(TURN_S / (self.call * self.batch))))
        begun = time.perf_counter()
        try:
            answer = self.worker.ask(
                "run", warm=(self.call < SHORT_S) + (self.call < LONG_S), count=count, batch=self.batch
            )
            self.rounds.append(answer["seconds"])
        except WorkerFailed as error:
            self.failed = str(error)
        self.spent += time.perf_counter() - begun


def order(count: int, number: int) -> list[int]:
    """Return who comes when in round ``number``: the start rotates, and every other round runs backwards."""
    forwards = [(number + k) % count for k in range(count)]
    return forwards[::-1] if number % 2 else forwards


def interleave(turns: Sequence[Turn], effort: Effort, tick: Callable[[], Any] = int) -> None:
    """Measure all in turn, each when the one before is idle; ``tick`` is called after each round."""
    share = effort.seconds / max(1, len(turns))
    begun = time.perf_counter()
    for number in range(effort.rounds):
        if number >= FEWEST and time.perf_counter() - begun > effort.seconds:
            break
        for k in order(len(turns), number):
            turn = turns[k]
            if turn.failed or (number >= FEWEST and turn.spent > share):
                continue
            turn.take()
        tick()


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A workload with its inputs and what is right, as the parent holds them."""

    work: Workload
    seed: int
    inputs: Sequence[Array]
    expected: Sequence[Array]
    moved: tuple[float, float]

    @staticmethod
    def of(work: Workload, seed: int) -> Problem:
        inputs = work.inputs(seed)
        expected = work.expected(inputs)
        return Problem(work, seed, inputs, expected, work.traffic(inputs, expected))

    def error(self, got: Sequence[Array]) -> float:
        """Return the distance of a result from what is right."""
        return self.work.check(self.inputs, got) if self.work.check else distance(got, self.expected)


def prepare(problem: Problem, entrant: Entrant, crew: Crew, checked: bool = True) -> Sample | Prepared:
    """Have a candidate compile and run a workload; return it as prepared, or why it may not be timed."""
    work = problem.work
    try:
        worker = crew.worker(entrant)
        header, got = worker.fetch("prepare", workload=work.name, seed=problem.seed, moved=problem.moved)
        error = problem.error(got) if checked else None
        if error is not None and not error <= TOLERANCE[work.dtype]:
            worker.ask("release")
            return Sample(
                entrant.name, "wrong", None, _finite(error), f"its result is {error:.1e} from NumPy's in float64"
            )
        pace = worker.ask("pace")
    except WorkerFailed as failure:
        return Sample(entrant.name, "skipped" if failure.unsupported else "failed", reason=str(failure))
    return Prepared(entrant.name, worker, pace["call"], pace["batch"], error=error, compile_s=header["compile_s"])


@dataclasses.dataclass
class Prepared(Turn):
    """A turn with what became known when it was prepared."""

    error: float | None = None
    compile_s: float = 0.0

    def sample(self) -> Sample:
        if self.failed or not self.rounds:
            return Sample(self.name, "failed", None, self.error, self.failed or "interrupted", self.compile_s)
        return Sample(self.name, "measured", self.stats, self.error, "", self.compile_s)


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def measure(
    problem: Problem,
    entrants: Sequence[Entrant],
    limits: Sequence[Entrant],
    crew: Crew,
    effort: Effort,
    tick: Callable[[], Any] = int,
) -> Row:
    """Return the row of a workload: all candidates and the machine's limits, in the same rounds."""
    prepared = [prepare(problem, e, crew) for e in entrants]
    bounds = [p for e in limits if isinstance(p := prepare(problem, e, crew, checked=False), Prepared)]
    turns = [p for p in prepared if isinstance(p, Prepared)]
    try:
        interleave([*bounds, *turns], effort, tick=tick)
    finally:
        for turn in [*bounds, *turns]:
            _release(turn)
    limit, bound = slowest_bound(bounds)
    samples = tuple(p.sample() if isinstance(p, Prepared) else p for p in prepared)
    return row(problem.work, crew.device, "time" if problem.work.group != "overhead" else "overhead", samples,
               moved=sum(problem.moved), limit=limit, bound=bound)  # fmt: skip


def _release(turn: Turn) -> None:
    try:
        turn.worker.ask("release")
    except WorkerFailed:
        return


def slowest_bound(bounds: Sequence[Turn]) -> tuple[Stats | None, Bound | None]:
    """Return the slower of the quickest way to move the bytes and of the flops, by medians as for any candidate."""
    moves = [t.stats for t in bounds if t.stats and t.name != ARITHMETIC]
    flops = [t.stats for t in bounds if t.stats and t.name == ARITHMETIC]
    found: dict[Bound, Stats] = {"arithmetic": flops[0]} if flops else {}
    if moves:
        found["memory"] = min(moves, key=_median)
    bound = max(found, key=lambda b: found[b].median, default=None)
    return (found[bound], bound) if bound else (None, None)


def _median(stats: Stats) -> float:
    return stats.median


def row(
    work: Workload,
    device: str,
    measure: Any,
    samples: tuple[Sample, ...],
    moved: float = 0.0,
    limit: Stats | None = None,
    bound: Bound | None = None,
) -> Row:
    """Return a row about a workload."""
    return Row(
        work.name, work.group, work.title, device, work.dtype, measure, moved, work.flops, limit, bound, samples
    )  # fmt: skip
