"""What is measured in fresh processes: import, first calls with empty and filled caches, peak memory."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kernelforge.bench.candidates import Entrant
from kernelforge.bench.process import Worker, WorkerFailed
from kernelforge.bench.rounds import Problem, row
from kernelforge.bench.schema import Measure, Row, Sample, Stats, Status
from kernelforge.bench.workloads.record import TOLERANCE

FIRST_CALLS = ("gelu", "mlp_step")
"""Workloads whose first call is timed."""
PEAKS = ("gelu.bwd", "softmax_4096x1024.bwd", "attention.bwd", "mlp_step")
"""Workloads whose peak memory is taken."""
CACHE_VARIABLES = (
    "KERNELFORGE_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR",
    "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "POCL_CACHE_DIR", "CUDA_CACHE_PATH",
)  # fmt: skip
FILLS: tuple[Measure, Measure] = ("cold", "warm")
KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
RETURNING = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536"}
"""glibc's policy for memory: what is freed goes back to the system, so that the peak is what a call holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fresh:
    """Starts workers of one device that live for one question."""

    device: str
    threads: int
    table: str
    patience: float

    def start(self, entrant: Entrant, extra: dict[str, str], recycling: bool = True) -> Worker:
        return Worker(entrant, self.device, self.threads, self.table, self.patience, recycling, extra)


def first_calls(
    problem: Problem, entrants: Sequence[Entrant], fresh: Fresh, repeats: int, tick: Callable[[], Any]
) -> Iterator[Row]:
    """Time the first call in fresh processes, with empty caches and then with the caches it filled.

    Import is apart from it, and a row of its own.
    """
    found: dict[Measure, list[Sample]] = {"cold": [], "warm": [], "import": []}
    for entrant in entrants:
        seconds: dict[Measure, list[float]] = {measure: [] for measure in found}
        lost: WorkerFailed | None = None
        for _ in range(repeats):
            try:
                _first_calls(problem, entrant, fresh, seconds)
            except WorkerFailed as failure:
                lost = failure
                break
        for measure, samples in found.items():
            samples.append(_sample(entrant, seconds[measure], None if measure == "import" else lost))
        tick()
    for measure, samples in found.items():
        yield row(problem.work, fresh.device, measure, tuple(samples))


def _first_calls(problem: Problem, entrant: Entrant, fresh: Fresh, seconds: dict[Measure, list[float]]) -> None:
    """Time one first call with empty caches and one with those filled.

    Raises:
        WorkerFailed: when a call fails or its result is wrong.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        caches = {**dict.fromkeys(CACHE_VARIABLES, folder), "CACHEDB": f"{folder}/tinygrad.db", **KEEP_ALL}
        for measure in FILLS:
            worker = fresh.start(entrant, caches)
            try:
                seconds["import"].append(imported(worker))
                header, got = worker.fetch(
                    "prepare", workload=problem.work.name, seed=problem.seed, moved=problem.moved
                )
                if not problem.error(got) <= TOLERANCE[problem.work.dtype]:
                    raise WorkerFailed("its result is wrong")
                seconds[measure].append(header["compile_s"])
            finally:
                worker.close()


def imported(worker: Worker) -> float:
    """Return the seconds of a worker's imports.

    Raises:
        WorkerFailed: when it could not start.
    """
    if "missing" in worker.hello:
        raise WorkerFailed(worker.hello["missing"], unsupported=True)
    return float(worker.hello["import_s"])


def _sample(entrant: Entrant, values: list[float], lost: WorkerFailed | None) -> Sample:
    if values and lost is None:
        return Sample(entrant.name, "measured", Stats.of(values))
    status: Status = "skipped" if lost is None or lost.unsupported else "failed"
    return Sample(entrant.name, status, reason=str(lost or "it did not start"))


def peaks(problem: Problem, entrants: Sequence[Entrant], fresh: Fresh, tick: Callable[[], Any]) -> Row:
    """Take the peak of a call's memory above its inputs, outputs included."""
    return row(
        problem.work,
        fresh.device,
        "memory",
        tuple(_peak(problem, e, fresh, tick) for e in entrants),
        sum(problem.moved),
    )


def _peak(problem: Problem, entrant: Entrant, fresh: Fresh, tick: Callable[[], Any]) -> Sample:
    if sys.platform != "linux":
        return Sample(entrant.name, "skipped", reason="only Linux tells a process's peak and lets it be reset")
    worker = fresh.start(entrant, RETURNING, recycling=False)
    values: list[float] = []
    lost: WorkerFailed | None = None
    try:
        imported(worker)
        worker.ask("prepare", workload=problem.work.name, seed=problem.seed, moved=problem.moved)
        values = [float(worker.ask("memory")["bytes"]) for _ in range(3)]
    except WorkerFailed as failure:
        lost = failure
    finally:
        worker.close()
        tick()
    return _sample(entrant, values, lost)
