"""``kernelforge bench``: what its options mean, a run from them, and where runs are kept."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import importlib
import os
import pathlib
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kernelforge.backends.registry import available, backend
from kernelforge.bench import candidates, page, probes
from kernelforge.bench.arguments import MEASURES, measuring
from kernelforge.bench.candidates import Entrant
from kernelforge.bench.compare import compare
from kernelforge.bench.environments import entrant as version_of
from kernelforge.bench.process import Crew
from kernelforge.bench.report import show
from kernelforge.bench.rounds import Effort, Problem, measure
from kernelforge.bench.schema import Candidate, Machine, Row, Run, Stats, bandwidth_of, peak_of, read
from kernelforge.bench.workloads.record import Workload
from kernelforge.errors import CommandFailed

TABLE = "kernelforge.bench.workloads"
STREAMED = 64 << 20
"""Bytes from which on a workload's limit tells the bandwidth of memory and not of a cache."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What to measure. None means all there are.

    Attributes:
        filter: a regular expression that is searched in the names of workloads.
        pythons: interpreters of peers by name.
        versions: further candidates, such as ``torch==2.1``.
        measures: of MEASURES; ``time`` has the overhead of a call too, ``first`` is first calls and imports.
        seconds: for all rounds together; None for as long as the rounds take.
        patience: seconds until a candidate's answer is given up.
        recycling: whether glibc keeps what is freed, for all candidates; see ``process.RECYCLING``.
        table: the module of the workloads.
    """

    filter: str = ""
    devices: tuple[str, ...] | None = None
    peers: tuple[str, ...] | None = None
    pythons: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: tuple[str, ...] = ()
    measures: tuple[str, ...] = MEASURES
    quick: bool = False
    seconds: float | None = None
    threads: int = 0
    patience: float = 180.0
    recycling: bool = True
    seed: int = 0
    table: str = TABLE


def chosen(options: Options) -> list[Workload]:
    """Return the workloads that the filter lets through.

    Raises:
        CommandFailed: when it lets none through, or is no regular expression.
    """
    table: dict[str, Workload] = importlib.import_module(options.table).TABLE
    try:
        found = [w for name, w in table.items() if re.search(options.filter, name)]
    except re.error as error:
        problem = f"{options.filter!r} is no regular expression: {error}"
        raise CommandFailed(problem=problem, advice="see Python's re module") from None
    if not found:
        raise CommandFailed(problem=f"no workload matches {options.filter!r}", advice=f"choose from {', '.join(table)}")
    return found


class Bench:
    """A run in the making: rows are kept as they come, so that an interrupt loses none."""

    def __init__(self, options: Options, progress: Progress | None = None) -> None:
        self.options = options
        self.rows: list[Row] = []
        self.candidates: dict[str, Candidate] = {}
        self._progress = progress or Progress(console=Console(quiet=True), disable=True)
        self._task = self._progress.add_task("", total=None)
        self._threads = options.threads or _threads()
        if options.devices is None:
            self._devices = [n for n, d in available().items() if not isinstance(d, str) and n != "reference"]
        else:
            self._devices = [backend(name).name for name in options.devices]
        versions = [version_of(v) for v in options.versions]
        self._entrants = {
            d: [*candidates.entrants(d, options.peers, options.pythons), *versions] for d in self._devices
        }

    def run(self) -> Run:
        """Measure everything; after an interrupt, return what there is."""
        works = chosen(self.options)
        started, begun = dt.datetime.now(dt.UTC), time.perf_counter()
        complete = True
        with contextlib.ExitStack() as stack:
            crews = [self._crew(d) for d in self._devices]
            for crew in crews:
                stack.callback(crew.close)
            try:
                for step in self._steps(works, crews):
                    step()
            except KeyboardInterrupt:
                complete = False
            for crew in crews:
                self._note(crew)
        options: dict[str, Any] = dataclasses.asdict(self.options) | {"threads": self._threads}
        options["pythons"] = sorted(self.options.pythons)  # their paths are nobody's business
        return Run(
            started=started.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - begun,
            complete=complete,
            machine=machine(self._devices, self._threads),
            candidates=tuple(self.candidates.values()),
            config=options,
            limits=_rates(self.rows),
            rows=tuple(self.rows),
        )

    def _crew(self, device: str) -> Crew:
        options = self.options
        return Crew(device, self._threads, options.table, options.patience, options.recycling)

    def _steps(self, works: Sequence[Workload], crews: Sequence[Crew]) -> Iterator[Callable[[], None]]:
        """Yield what there is to do, the same workload on all devices before the next."""
        options = self.options
        names = {w.name: w for w in works}
        timed = list(works) if "time" in options.measures else []
        first = [names[n] for n in probes.FIRST_CALLS if n in names] if "first" in options.measures else []
        peaked = [names[n] for n in probes.PEAKS if n in names] if "memory" in options.measures else []
        total = (len(timed) + len(first) + len(peaked)) * len(crews)
        self._progress.update(self._task, total=total)
        effort = Effort(5, 2.0) if options.quick else Effort()
        if options.seconds is not None and timed:
            effort = Effort(effort.rounds, options.seconds / (len(timed) * len(crews)))
        for work in timed:
            problem = Problem.of(work, options.seed)
            for crew in crews:
                yield lambda p=problem, c=crew: self._time(p, c, effort)  # type: ignore[misc]
        for work in first:
            problem = Problem.of(work, options.seed)
            for crew in crews:
                yield lambda p=problem, c=crew: self._first(p, c)  # type: ignore[misc]
        for work in peaked:
            problem = Problem.of(work, options.seed)
            for crew in crews:
                yield lambda p=problem, c=crew: self._peak(p, c)  # type: ignore[misc]

    def _time(self, problem: Problem, crew: Crew, effort: Effort) -> None:
        with self._shown(problem, crew):
            entrants = self._entrants[crew.device]
            limits = [] if problem.work.group == "overhead" else candidates.limits()
            self.rows.append(measure(problem, entrants, limits, crew, effort))

    def _first(self, problem: Problem, crew: Crew) -> None:
        with self._shown(problem, crew, "first call"):
            repeats = 1 if self.options.quick else 3
            found = probes.first_calls(problem, self._entrants[crew.device], self._fresh(crew), repeats, int)
            known = {r.device for r in self.rows if r.measure == "import"}
            self.rows += [r for r in found if r.measure != "import" or r.device not in known]

    def _peak(self, problem: Problem, crew: Crew) -> None:
        with self._shown(problem, crew, "memory"):
            self.rows.append(probes.peaks(problem, self._entrants[crew.device], self._fresh(crew), int))

    def _fresh(self, crew: Crew) -> probes.Fresh:
        return probes.Fresh(crew.device, crew.threads, crew.table, crew.patience)

    @contextlib.contextmanager
    def _shown(self, problem: Problem, crew: Crew, what: str = "") -> Iterator[None]:
        self._progress.update(self._task, description=f"{problem.work.name} {what} on {crew.device}")
        begun = time.perf_counter()
        yield
        self._progress.advance(self._task)
        if not self._progress.console.is_terminal:
            told = " ".join(filter(None, (problem.work.name, what, "on", crew.device)))
            self._progress.console.print(f"{told}: {time.perf_counter() - begun:.1f} s", highlight=False)

    def _note(self, crew: Crew) -> None:
        """Remember who the candidates are; one that a device lacks may be there on another."""
        for entrant in self._entrants[crew.device]:
            worker = crew.workers.get(entrant.name)
            hello: dict[str, Any] = worker.hello if worker else {}
            known = self.candidates.get(entrant.name)
            if known is None or (known.missing and "versions" in hello):
                self.candidates[entrant.name] = _candidate(entrant, hello)


def _candidate(entrant: Entrant, hello: dict[str, Any]) -> Candidate:
    return Candidate(entrant.name, hello.get("versions", {}), hello.get("python", ""), hello.get("missing", ""))


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(devices: Sequence[str], threads: int) -> Machine:
    """Describe this machine by kind; nothing here tells which one it is."""
    found = available()
    named = {d: f"{found[d].limits.form} form" for d in devices if d in found and not isinstance(found[d], str)}  # type: ignore[union-attr]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Machine(_cpu(), threads, memory, f"{platform.system()} {platform.machine()}", named)


def _cpu() -> str:
    """Return the processor's family, without the model's number."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*([A-Za-z() ]+)", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.machine()


def _rates(rows: Sequence[Row]) -> dict[str, Stats]:
    """Return what the limits of the rows say of the machine, over the whole run."""
    found: dict[str, list[float]] = {}
    for r in rows:
        if r.limit and r.bound == "memory" and r.nbytes >= STREAMED:
            found.setdefault(bandwidth_of(r.device), []).append(r.nbytes / r.limit.median)
        if r.limit and r.bound == "arithmetic":
            found.setdefault(peak_of(r.device, r.dtype), []).append(r.flops / r.limit.median)
    return {name: Stats.of(values) for name, values in found.items()}


def history() -> pathlib.Path:
    """Return the folder that keeps runs."""
    return pathlib.Path(platformdirs.user_data_path("kernelforge")) / "bench"


def save(run: Run) -> pathlib.Path:
    """Keep a run in the history."""
    folder = history()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^0-9T]', '', run.started.partition('+')[0])}.json"
    file.write_text(run.to_json())
    return file


def kept(out: Console) -> list[Run]:
    """Return the runs of the history; those that this version cannot read are named and left out."""
    found: list[Run] = []
    for file in sorted(history().glob("*.json")):
        try:
            found.append(read(file))
        except CommandFailed as error:
            out.print(f"left out: {error}", highlight=False, markup=False, soft_wrap=True)
    return found


def write_page(path: str, runs: Sequence[Run], out: Console) -> None:
    """Write a page of the last of the runs, with all of them as its history.

    Args:
        path: of the page.
        runs: the oldest first.
        out: where to say what was written.

    Raises:
        CommandFailed: when there is no run, or the page cannot be written.
    """
    if not runs:
        raise CommandFailed(problem=f"no run is kept in {history()}", advice="make one, or name files with --runs")
    text = page.write(runs)
    try:
        pathlib.Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandFailed(problem=f"{path} cannot be written: {error.strerror}", advice="name another") from None
    number = f"{len(runs)} run" + "s" * (len(runs) > 1)
    out.print(f"{path}: {number}, {len(text):,} characters", highlight=False, markup=False, soft_wrap=True)


def options_of(args: argparse.Namespace) -> Options:
    """Return what the command line asks for.

    Raises:
        CommandFailed: for an interpreter without its peer, or a measure that there is not.
    """
    pythons = dict(text.partition("=")[::2] for text in args.python)
    for peer, path in pythons.items():
        if not pathlib.Path(path).is_file():
            raise CommandFailed(problem=f"there is no interpreter {path!r} for {peer!r}", advice="write PEER=PATH")
    measures = args.measure or (MEASURES if not args.quick else MEASURES[:1])
    for name in measures:
        if name not in MEASURES:
            raise CommandFailed(problem=f"there is no measure {name!r}", advice=f"choose from {', '.join(MEASURES)}")
    return Options(
        filter=args.filter,
        devices=tuple(args.device) if args.device else None,
        peers=args.peers,
        pythons=pythons,
        versions=args.versions or (),
        measures=measures,
        quick=args.quick,
        seconds=args.seconds,
        threads=args.threads or 0,
        recycling=not args.stock_allocator,
    )


def command(args: argparse.Namespace, console: Console | None = None) -> int:
    """Do what the command line asks for; return the exit status."""
    out = console or Console()
    _refuse(args)
    if args.compare:
        old, new = args.compare
        return int(compare(old, new, args.threshold, out))
    if args.html and not measuring(args):
        write_page(args.html, [read(file) for file in args.runs] if args.runs else kept(out), out)
        return 0
    options = options_of(args)
    works = chosen(options)
    if args.list:
        for work in works:
            out.print(f"{work.name:24} {work.title}", highlight=False)
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    told = Console(stderr=True)
    with Progress(*columns, console=told, transient=True, disable=not told.is_terminal) as progress:
        run = Bench(options, progress).run()
    show(run, out)
    if args.json:
        pathlib.Path(args.json).write_text(run.to_json() + "\n")
    before = kept(out) if args.html else []
    if not args.no_save:
        out.print(f"kept in {save(run)}", highlight=False, soft_wrap=True)
    if args.html:
        write_page(args.html, [*before, run], out)
    return 0 if run.complete else 130


def _refuse(args: argparse.Namespace) -> None:
    """Raise CommandFailed for options that do not go together, and for amounts that are none."""
    given = measuring(args)
    if args.compare and (others := [*given, *["--html"] * bool(args.html), *["--list"] * args.list]):
        raise CommandFailed(problem="--compare measures nothing", advice=f"leave out {', '.join(others)}")
    if args.runs and not args.html:
        raise CommandFailed(problem="--runs names the runs of a page", advice="give --html, too")
    if args.runs and given:
        raise CommandFailed(problem="a page of --runs measures nothing", advice=f"leave out {', '.join(given)}")
    if (args.threads is not None and args.threads < 1) or (args.seconds is not None and args.seconds <= 0):
        raise CommandFailed(problem="--threads and --seconds are amounts", advice="give positive numbers")
