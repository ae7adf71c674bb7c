"""What became of a function, in words: its kernels, what each moves and computes, why neighbours did or did not fuse,
and what a backward pass keeps and computes again.

``explain`` gathers it from a plan; ``kernelforge.explain_page`` makes it a page.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import linecache
import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kernelforge.backends.base import Backend
from kernelforge.compile import compile_graph
from kernelforge.config import current as current_config
from kernelforge.dtypes import DTYPES
from kernelforge.ir.cost import Cost, cost, nbytes
from kernelforge.ir.fuse import Residual
from kernelforge.ir.graph import Graph, Kind, Node, Value
from kernelforge.ir.text import print_graph, print_kernel
from kernelforge.ir.types import Type
from kernelforge.runtime.plan import Code, Compiled, Cond, Detailed, Launch, Plan, Scan, Step, While, identity
from kernelforge.words import assembly_of, count, duration, label, reported, schedule_words, size

LAUNCH_SECONDS = 2e-6
"""What a launch takes besides the work, for predictions."""

COPIED = 1 << 24
"""Elements of f32 that are copied to measure a device's memory: more than caches hold."""

LONG = 200
"""Lines of a source that a text shows unasked; LLVM's are longer, and few read them."""

SPENT = 0.05
"""Seconds of measuring for each kernel."""


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """One kernel of an explanation.

    Attributes:
        number: its place among the kernels, from 1.
        role: ``forward``, ``backward``, ``forward and backward``, or nothing where there is no derivative.
        lines: the user's lines, each with the primitives that came of it; the text of a line may be unknown.
        reads: what it reads and writes, in words.
        schedule: how it is spread over the device, a sentence for each phase.
        predicted: seconds, by the device's limits; None where they do not tell.
        measured: seconds; None where it was not measured.
        bound: what takes longer by the prediction: ``memory`` or ``arithmetic``.
        runs: how often a call launches it, where a loop whose number of turns is not known has one.
        within: the control flow it stands in, in words.
        assumed: what the figures count, in words, of control flow inside of it that data decide.
    """

    number: int
    kernel: Compiled
    role: str
    lines: tuple[tuple[str, str, str], ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    schedule: tuple[str, ...]
    cost: Cost
    scratch: int
    predicted: float | None
    measured: float | None
    bound: str
    runs: int
    within: str
    assumed: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        return self.predicted if self.measured is None else self.measured


@dataclasses.dataclass(frozen=True, eq=False)
class Apart:
    """Two kernels, by number, that share data and were not fused: what one gives the other, and why."""

    first: int
    second: int
    shared: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What a function was compiled to; ``str`` and ``text`` write it out, ``html`` makes a page of it.

    Attributes:
        name: of the function.
        names: of the graph's inputs, as the user wrote them.
        bandwidth: bytes a second of the device's memory and ``rate``, operations on f32 a second: as the device says or
            as measured; 0 where unknown.
    """

    name: str
    plan: Detailed
    names: tuple[str, ...]
    kernels: tuple[Facts, ...]
    apart: tuple[Apart, ...]
    bandwidth: float
    rate: float
    measured: bool

    @functools.cached_property
    def least(self) -> int:
        """Bytes of inputs and outputs, each once: no way of computing the function moves less."""
        graph = self.plan.graph
        read = {v for n in graph.nodes for v in n.inputs} | set(graph.outputs)
        return sum(v.type.nbytes for v in (*(v for v in graph.inputs if v in read), *graph.outputs))

    @property
    def moved(self) -> int:
        return sum(k.runs * (k.cost.bytes + 2 * k.scratch) for k in self.kernels)

    @property
    def flops(self) -> int:
        return sum(k.runs * k.kernel.flops for k in self.kernels)

    @property
    def seconds(self) -> float | None:
        """Of all kernels, as measured or else predicted; None where that is not known."""
        times = [None if k.seconds is None else k.runs * k.seconds for k in self.kernels]
        return None if None in times or not times else math.fsum(t for t in times if t)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        from kernelforge.explain_page import frame

        return frame(self)

    def html(self, beside: Sequence[Explanation] = ()) -> str:
        """Return a page of one file; kernels of ``beside``, for other devices, stand beside those of the same name."""
        from kernelforge.explain_page import write

        return write(self, beside)

    def text(self, sources: bool = False, assembly: bool = False) -> str:
        """Write it for a terminal: in words, the graph, and the loops of each kernel as they were scheduled, with the
        source that they were printed as for the device's compiler.

        Args:
            sources: whether sources stand there that are longer than ``LONG``, too.
            assembly: whether a target's assembly does.
        """
        lines = [self.words(), "", "Graph:", print_graph(self.plan.graph)]
        for k in self.kernels:
            below = assembly_of(k.kernel) if assembly else ""
            listings = ("loops", print_kernel(k.kernel.ir)), ("source", k.kernel.source), ("assembly", below)
            for what, text in listings:
                listed = text.splitlines()
                if what == "source" and len(listed) > LONG and not sources:
                    lines += [
                        "",
                        f"kernel {k.number}, source: {len(listed)} lines, with text(sources=True) or --sources",
                    ]
                elif listed:
                    lines += ["", f"kernel {k.number}, {what}:", *("    " + line for line in listed)]
        return "\n".join(lines)

    def words(self) -> str:
        """Write what became of the function, and why, without any listing."""
        lines = [*self.summary(), ""]
        for k in self.kernels:
            lines += [*describe(k), *(f"  {line}" for line in reported(k.kernel)), ""]
        for title, found in (("Why not fewer kernels:", self.refusals()), (self.heading, self.residuals())):
            if found:
                lines += [title, *(f"  - {line}" for line in found), ""]
        return "\n".join(lines[:-1])

    def summary(self) -> list[str]:
        """Say the whole in a few sentences."""
        plan = self.plan
        views = sum(n.prim.kind is Kind.VIEW for n in plan.graph.nodes)
        numbers = sum(n.prim.kind is Kind.MAP and not n.inputs for n in plan.graph.nodes)
        computing = len(plan.graph.nodes) - views - numbers
        ratio = f", {self.moved / self.least:.2f} times the least" if self.least else ""
        given = ", ".join(f"{n}: {v.type}" for n, v in zip(self.names, plan.graph.inputs, strict=True))
        lines = [
            f"{self.name}({given}) on {plan.backend.name}",
            (
                f"{count(len(self.kernels), 'kernel')} on {plan.backend.name} for {count(computing, 'operation')} and "
                f"{count(views, 'view')}; "
                f"{count(sum(k.runs for k in self.kernels), 'launch', 'launches')} a call, arena {size(plan.arena)}"
            ),
            f"moves {size(self.moved)}{ratio}: inputs and outputs once are {size(self.least)}",
            f"{self.flops:,} floating-point operations",
            *(f"these figures count {words}" for words in _assumed(_decided(plan))),
        ]
        taken = [(k, self.names[given]) for k, given in enumerate(plan.taken, 1) if given is not None]
        if taken:
            lines.append(
                "in the memory of donated arguments: " + ", ".join(f"result {k} in {name}" for k, name in taken)
            )
        total = self.seconds
        if total is not None:
            how = "measured" if self.measured else "predicted"
            lines.append(
                f"{how} {duration(total)}; memory gives {self.bandwidth / 1e9:.3g} GB/s"
                f"{' as measured by a copy' if self.measured else ' by the estimate of the device'}"
            )
        return lines

    @property
    def heading(self) -> str:
        backward = any("backward" in k.role for k in self.kernels)
        return f"What {'the backward pass keeps and recomputes' if backward else 'later kernels keep and recompute'}:"

    def refusals(self) -> list[str]:
        """Say why neighbours were not fused."""
        return [
            f"kernel {a.first} and kernel {a.second}, sharing {', '.join(a.shared)}: {a.reason}" for a in self.apart
        ]

    def residuals(self) -> list[str]:
        """Say what is kept between kernels and what is computed again, with the numbers."""
        made = _makers(self.plan)
        lines = [_residual(r, made) for p in _plans(self.plan) for r in p.fusion.residuals]
        again = checkpointed(self.plan.graph)
        if again:
            lines.append(f"recomputes {', '.join(again)}: it stands under checkpoint, which keeps inputs alone")
        if not lines and any(k.role == "forward and backward" for k in self.kernels):
            lines.append("keeps nothing: one kernel goes forward and backward, and what it needs never leaves it")
        return lines


def _residual(residual: Residual, made: Mapping[Value, Node]) -> str:
    values = ", ".join(label(v, made) for v in residual.values)
    if residual.kept:
        return f"keeps {values} ({size(residual.values[0].type.nbytes)}): {residual.reason}"
    elements = max(v.type.size for v in residual.values)
    work = f"{residual.work / elements:.3g} operations an element" if residual.work > 0 else "no more operations"
    instead = ", ".join(f"{label(v, made)} ({size(v.type.nbytes)})" for v in residual.instead)
    return f"recomputes {values}: {work} against {residual.bytes / elements:.3g} bytes an element" + (
        f"; keeps {instead} for it" if instead else ""
    )


def checkpointed(graph: Graph) -> list[str]:
    """Return what of the forward pass is computed again behind the barriers of a checkpoint."""
    behind: set[Value] = set()
    found: dict[str, None] = {}
    for node in graph.nodes:
        order = node.loc.order if node.loc else 0
        if node.prim.name == "barrier" and order:
            behind.update(node.outputs)
        elif not order and any(v in behind for v in node.inputs):
            behind.update(node.outputs)
            if node.prim.kind is not Kind.VIEW:
                found[node.prim.name] = None
    return list(found)


def explain(plan: Detailed, name: str = "function", names: Sequence[str] = (), measure: bool = False) -> Explanation:
    """Gather what is known of a plan.

    Args:
        names: of its inputs; they are numbered where there are none.
        measure: run each kernel by itself, on random data, and a copy.
    """
    backend, limits = plan.backend, plan.backend.limits
    given = tuple(names) or tuple(f"argument {k}" for k in range(1, 1 + len(plan.graph.inputs)))
    bandwidth = _copying(backend) if measure else limits.bandwidth
    called = {v: "an argument of the loop" for p in _plans(plan) for v in p.graph.inputs}
    called |= dict(zip(plan.graph.inputs, given, strict=True))
    launched = _launched(plan)
    derived = any(n.loc and n.loc.order for p in _plans(plan) for n in p.graph.nodes)
    facts = []
    for number, kernel in enumerate(plan.kernels, 1):
        found = cost(kernel.naive)
        predicted, bound = None, ""
        if bandwidth and limits.rate:
            moving, computing = found.bytes / bandwidth, found.work / limits.rate
            predicted = max(moving, computing) + LAUNCH_SECONDS
            bound = "memory" if moving >= computing else "arithmetic"
        facts.append(
            Facts(
                number,
                kernel,
                _role(kernel) if derived else "",
                tuple(_lines(kernel)),
                *_traffic(kernel, called, plan),
                tuple(schedule_words(kernel.ir.body)),
                found,
                sum(nbytes(a) for a in kernel.ir.args if a.mode == "scratch"),
                predicted,
                timed(kernel, backend) if measure else None,
                bound,
                *launched[kernel.code],
                _assumed(_nodes(kernel)),
            )
        )
    return Explanation(name, plan, given, tuple(facts), tuple(_apart(plan)), bandwidth, limits.rate, measure)


def _inner(step: Step) -> list[tuple[Plan, int, str]]:
    """Return the plans that a step runs, how often, and where they stand in words."""
    match step:
        case Scan():
            return [(step.body, step.length, f"in each of {count(step.length, 'step')} of a scan")]
        case Cond():
            return [(step.true, 1, "if a condition holds"), (step.false, 1, "unless a condition holds")]
        case While():
            return [(step.cond, 1, "before each turn of a while_loop"), (step.body, 1, "in each turn of a while_loop")]
    return []


ASSUMED = {
    "while_loop": "one turn of a while_loop: the data say how many there are",
    "cond": "both branches of a condition: the data say which one runs",
}
"""What figures count of control flow that data decide, by its primitive."""


def _assumed(nodes: Iterable[Node]) -> tuple[str, ...]:
    names = {n.prim.name for n in nodes}
    return tuple(words for name, words in ASSUMED.items() if name in names)


def _decided(plan: Detailed) -> Iterator[Node]:
    """Yield what kernels compute and what stands around them."""
    for inner in _plans(plan):
        for region in inner.regions:
            yield from _within(region.nodes)


def _plans(plan: Plan) -> Iterator[Detailed]:
    """Yield a plan and those inside of it."""
    assert isinstance(plan, Detailed)
    yield plan
    for step in plan.steps:
        for inner, _, _ in _inner(step):
            yield from _plans(inner)


def _launched(plan: Plan) -> dict[Code, tuple[int, str]]:
    """Return how often a call launches each kernel, and the control flow it stands in."""
    found: dict[Code, tuple[int, str]] = {}
    for step in plan.steps:
        if isinstance(step, Launch):
            found[step.code] = (1 + found.get(step.code, (0, ""))[0], "")
        for inner, times, where in _inner(step):
            for code, (runs, deeper) in _launched(inner).items():
                before = found.get(code, (0, ""))[0]
                found[code] = before + times * runs, ", ".join(filter(None, (where, deeper)))
    return found


def _makers(plan: Detailed) -> dict[Value, Node]:
    return {v: n for p in _plans(plan) for n in p.graph.nodes for v in n.outputs}


def _nodes(kernel: Compiled) -> Iterator[Node]:
    """Yield what a kernel computes, what its steps repeat and its branches choose, too."""
    return _within(kernel.region.nodes)


def _within(nodes: Sequence[Node]) -> Iterator[Node]:
    """Yield nodes, each with those of the graphs it holds."""
    stack = list(nodes[::-1])
    while stack:
        node = stack.pop()
        yield node
        stack += [n for held in node.graphs.values() for n in held.nodes[::-1]]


def _role(kernel: Compiled) -> str:
    """Say whether a kernel belongs to the function or to its derivative, by all that does work in it."""
    orders = {bool(n.loc and n.loc.order) for n in _nodes(kernel) if n.prim.kind is not Kind.VIEW and n.inputs}
    return {frozenset({False}): "forward", frozenset({True}): "backward"}.get(frozenset(orders), "forward and backward")


def _lines(kernel: Compiled) -> Iterator[tuple[str, str, str]]:
    """Yield the places in the user's code, the text there, and what came of it."""
    made: dict[tuple[str, int], dict[str, None]] = collections.defaultdict(dict)
    nodes = list(_nodes(kernel))
    moves = all(n.prim.kind is Kind.VIEW for n in nodes)
    for node in nodes:
        if node.loc and node.inputs and (node.prim.kind is not Kind.VIEW or moves):
            adjoint = "adjoint: " if node.loc.order else ""
            made[_here(node.loc.file), node.loc.line][adjoint + node.prim.name] = None
    for (file, line), names in sorted(made.items()):
        yield f"{file}:{line}", linecache.getline(file, line).strip(), ", ".join(names)


def _here(file: str) -> str:
    """Write a path from the working directory on, where it lies below."""
    below = os.path.relpath(file)
    return file if below.startswith("..") else below


def _traffic(kernel: Compiled, called: Mapping[Value, str], plan: Detailed) -> tuple[tuple[str, ...], tuple[str, ...]]:
    made = _makers(plan)
    results = {v: k for k, v in enumerate(plan.graph.outputs, 1)}
    reads = kernel.region.inputs

    def read(v: Value) -> str:
        return f"{called.get(v) or label(v, made)} ({size(v.type.nbytes)})"

    def written(v: Value) -> str:
        return f"result {results[v]} ({size(v.type.nbytes)})" if v in results else read(v)

    return tuple(map(read, reads)), tuple(map(written, kernel.region.outputs))


def _apart(plan: Detailed) -> Iterator[Apart]:
    """Yield the kernels that share data, with the last reason why they were not fused."""
    made = _makers(plan)
    plans = list(_plans(plan))
    inside = [{v for n in k.region.nodes for v in n.outputs} | set(k.region.outputs) for k in plan.kernels]
    moved = {v: r.home for p in plans for r in p.fusion.residuals for v in r.values if r.home}
    for i, first in enumerate(plan.kernels):
        for j, second in enumerate(plan.kernels):
            wanted = set(second.region.inputs)
            shared = [v for v in first.region.outputs if v in wanted]
            if i == j or not shared:
                continue
            tried = [
                d
                for p in plans
                for d in p.fusion.decisions
                if not d.fused and moved.get(d.producer, d.producer) in inside[i] and d.consumer in inside[j]
            ]
            reason = tried[-1].reason if tried else "each had joined others before"
            yield Apart(i + 1, j + 1, tuple(f"{label(v, made)} ({size(v.type.nbytes)})" for v in shared), reason)


def describe(k: Facts) -> list[str]:
    """Describe one kernel in a few lines."""
    lines = [f"kernel {k.number}: {k.kernel.name}" + (f" ({k.role})" if k.role else "")]
    for place, text, names in k.lines:
        lines.append(f"  {place}  {text}" if text else f"  {place}")
        lines.append(f"      {names}")
    flops = k.kernel.flops
    per = f", {flops / k.cost.bytes:.2f} per byte" if k.cost.bytes else ""
    lines += [
        f"  reads {', '.join(k.reads) or 'nothing'}; writes {', '.join(k.writes)}",
        f"  moves {size(k.cost.bytes)}, {flops:,} floating-point operations{per}",
        *(f"  {'' if 'phase' in words else 'runs in '}{words}" for words in k.schedule),
    ]
    if k.within:
        lines.append(f"  runs {k.within}")
    lines += [f"  its figures count {words}" for words in k.assumed]
    if k.kernel.tuned:
        lines.append(f"  tuned: {', '.join(f'{name}={value}' for name, value in k.kernel.tuned)}")
    if k.scratch:
        lines.append(f"  partial results between its phases: {size(k.scratch)}")
    times = [
        f"{how} {duration(t)}" for how, t in (("predicted", k.predicted), ("measured", k.measured)) if t is not None
    ]
    if times:
        lines.append(f"  {', '.join(times)}" + (f"; bound by {k.bound}" if k.bound else ""))
    return lines


def timed(kernel: Compiled, backend: Backend) -> float:
    """Return the median time of a launch, in seconds, on random data."""
    rng = np.random.default_rng(0)
    handles = []
    for arg in kernel.ir.args:
        elements = nbytes(arg) // np.dtype(DTYPES[arg.dtype]).itemsize
        handles.append(backend.upload(random(rng, (elements,), arg.dtype)))
    times: list[float] = []
    end = time.perf_counter() + SPENT
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        backend.launch(kernel.executable, [(h, 0) for h in handles], ())
        backend.synchronize()
        times.append(time.perf_counter() - start)
    for handle in handles:
        backend.free(handle)
    return statistics.median(times[2:])


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """Make an array of a short dtype: normal floats; zeros and ones else, which index whatever is there."""
    floats = dtype[0] in "fb" and dtype != "bool"
    made = rng.standard_normal(shape, np.float32) if floats else rng.integers(0, 2, shape)
    return np.asarray(made, DTYPES[dtype])


def _copying(backend: Backend) -> float:
    """Measure how many bytes a second a device copies."""
    graph = identity([Value(0, Type((COPIED,), np.dtype(np.float32)))])
    plan = compile_graph(graph, backend, current_config(), located=True)
    assert isinstance(plan, Detailed)
    (kernel,) = plan.kernels
    return kernel.bytes / timed(kernel, backend)
