"""What a run of the bench is, in memory and as JSON. Nothing else in the package reads or writes that JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kernelforge.errors import CommandFailed

VERSION = 1
"""Of the JSON; a reader refuses another one."""

Measure = Literal["time", "cold", "warm", "import", "overhead", "memory"]
"""What the numbers of a row are: seconds of one call; seconds of the first call in a fresh process with empty and with
filled disk caches, its import apart; seconds of the import; seconds of a call on 16 elements; bytes at the peak beyond
the inputs."""
Status = Literal["measured", "wrong", "skipped", "failed"]
Bound = Literal["memory", "arithmetic"]

OURS = "kernelforge"


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """Order statistics of repeated measurements, in the unit of the row: seconds or bytes.

    Attributes:
        rounds: the median of each round, from the first one on; empty where there are no rounds.
    """

    median: float
    low: float
    high: float
    least: float
    count: int
    rounds: tuple[float, ...] = ()

    @staticmethod
    def of(values: Sequence[float], rounds: Sequence[float] = ()) -> Stats:
        """Return the statistics of at least one value; ``low`` and ``high`` are the quartiles."""
        low, median, high = statistics.quantiles(values if len(values) > 1 else [*values] * 2, n=4, method="inclusive")
        return Stats(median, low, high, min(values), len(values), tuple(rounds))

    def over(self, other: Stats) -> float:
        """Return these times over others.

        It is the median over the rounds of one's time in a round over the other's: a machine may change its clock or
        its memory's pace between rounds, which is then in both. Without rounds the medians are compared.
        """
        pairs = [a / b for a, b in zip(self.rounds, other.rounds, strict=False) if b]
        return statistics.median(pairs) if pairs else self.median / other.median

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a fraction of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One candidate in one row.

    Attributes:
        candidate: its name in ``Run.candidates``.
        status: only ``measured`` has ``stats``.
        error: the largest norm-relative distance of an output from float64 NumPy; None where nothing was checked.
        reason: why there are no figures, in words; empty when there are.
        compile_s: seconds until its first result was there, in a process that may have been warm.
    """

    candidate: str
    status: Status
    stats: Stats | None = None
    error: float | None = None
    reason: str = ""
    compile_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One workload on one device, by one measure.

    Attributes:
        workload: its name in the table of workloads, such as ``gelu.bwd``.
        group: its family there, such as ``maps``.
        title: the formula and the sizes, for people.
        device: as ``kernelforge devices`` names it.
        dtype: of the inputs, such as ``f32``.
        nbytes: the least bytes that must be moved: inputs and outputs once.
        flops: of the products alone; 0 where there are none.
        limit: of the machine for those bytes and flops, measured in the same rounds; None where none applies.
        bound: which of the two the limit is.
        samples: one for each candidate, kernelforge first.
    """

    workload: str
    group: str
    title: str
    device: str
    dtype: str
    measure: Measure
    nbytes: float
    flops: float
    limit: Stats | None
    bound: Bound | None
    samples: tuple[Sample, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes a row the same row in another run."""
        return self.workload, self.device, self.measure

    @property
    def unit(self) -> Literal["s", "B"]:
        return "B" if self.measure == "memory" else "s"

    def fraction(self, sample: Sample) -> float | None:
        """Return the limit's time over the sample's, 1 at the limit; None without either."""
        return self.limit.over(sample.stats) if self.limit and sample.stats else None

    def best_peer(self) -> Sample | None:
        """Return the fastest that is not kernelforge; None when no peer was measured."""
        peers = [s for s in self.samples if s.stats and not is_ours(s.candidate)]
        return min(peers, key=lambda s: s.stats.median if s.stats else 0.0, default=None)

    def ratio(self, sample: Sample) -> float | None:
        """Return the best peer's time over the sample's: above 1 where the sample is faster, None without."""
        best = self.best_peer()
        if not (best and best.stats and sample.stats and sample.stats.median):
            return None
        return best.stats.over(sample.stats)


def is_ours(candidate: str) -> bool:
    """Tell kernelforge, in any version, from its peers."""
    return candidate == OURS or candidate.startswith((f"{OURS}=", f"{OURS}@", f"{OURS} "))


def bandwidth_of(device: str) -> str:
    """Return the name of a device's bandwidth among the limits of a run."""
    return f"memory bandwidth of {device}, bytes"


def peak_of(device: str, dtype: str) -> str:
    """Return the name of a device's rate of multiply-adds among the limits of a run."""
    return f"{dtype} multiply-adds of {device}, flops"


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """Who took part.

    Attributes:
        name: such as ``torch-compile`` or ``kernelforge@HEAD~5``.
        versions: of the distributions it stands on.
        python: the interpreter's version.
        missing: why it took no part, in words; empty when it did.
    """

    name: str
    versions: dict[str, str]
    python: str
    missing: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """Where a run was made: no host's name, no user's.

    Attributes:
        cpu: the processor's family as the system names it.
        cores: hardware threads the run could use.
        memory: bytes.
        system: such as ``Linux x86_64``.
        devices: description by kernelforge's name of the device.
    """

    cpu: str
    cores: int
    memory: int
    system: str
    devices: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A whole run.

    Attributes:
        started: UTC, ISO 8601.
        seconds: how long it took.
        complete: False when it was interrupted.
        config: the options it was started with, by name.
        limits: figures of the machine, in bytes or flops per second, over the whole run; ``bandwidth_of`` and
            ``peak_of`` name them.
    """

    started: str
    seconds: float
    complete: bool
    machine: Machine
    candidates: tuple[Candidate, ...]
    config: dict[str, Any]
    limits: dict[str, Stats]
    rows: tuple[Row, ...]
    version: int = VERSION

    def to_json(self) -> str:
        """Return the run as JSON that ``from_json`` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def read(path: str | Path) -> Run:
    """Return the run that a file holds.

    Raises:
        CommandFailed: when the file cannot be read or holds none.
    """
    try:
        return from_json(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise CommandFailed(problem=f"cannot read {path}: {error.strerror}", advice="give a run's JSON") from None


def from_json(text: str, name: str = "the file") -> Run:
    """Return the run that ``to_json`` wrote.

    Args:
        text: JSON.
        name: where it came from, for the error.

    Raises:
        CommandFailed: when it is no run, or one of another version of the schema.
    """
    try:
        record = json.loads(text)
        found = record["version"]
    except (ValueError, KeyError, TypeError):
        advice = "give one that kernelforge bench --json wrote"
        raise CommandFailed(problem=f"{name} holds no run of the bench", advice=advice) from None
    if found != VERSION:
        problem = f"{name} has version {found} of the bench's schema, this is version {VERSION}"
        raise CommandFailed(problem=problem, advice="make that run again")
    rows = tuple(
        Row(**{**row, "limit": _stats(row["limit"]), "samples": tuple(_sample(s) for s in row["samples"])})
        for row in record["rows"]
    )
    return Run(
        **{
            **record,
            "machine": Machine(**record["machine"]),
            "candidates": tuple(Candidate(**c) for c in record["candidates"]),
            "limits": {name: found for name, stats in record["limits"].items() if (found := _stats(stats))},
            "rows": rows,
        }
    )


def _stats(record: dict[str, Any] | None) -> Stats | None:
    return None if record is None else Stats(**{**record, "rounds": tuple(record.get("rounds", ()))})


def _sample(record: dict[str, Any]) -> Sample:
    return Sample(**{**record, "stats": _stats(record["stats"])})
