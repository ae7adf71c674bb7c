"""A compiled graph: launches over the caller's buffers, the results, and one arena for everything in between."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from kernelforge.backends.base import Argument, Backend, Executable
from kernelforge.ir.fuse import Fusion, Region
from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.kernel import For, Kernel, Stmt
from kernelforge.ir.repeat import repeats
from kernelforge.ir.runs import ALIGNMENT
from kernelforge.runtime.memory import Buffer, Pool, allocate, upload

Memory = list[Argument]


class Step(Protocol):
    """Something a plan does in order: a launch, or a loop of another plan."""

    def run(self, backend: Backend, memory: Memory) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Code:
    """What a launch runs.

    Attributes:
        key: under which the disk cache keeps its machine code.
        ir: the scheduled kernel; ``str`` gives its text.
    """

    key: str
    ir: Kernel
    executable: Executable


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """One kernel of a plan, for people to look at.

    Attributes:
        name: of the kernel.
        code: what is launched of it.
        naive: the loop nest that defines it, before any schedule.
        bytes: the least that must be moved: each buffer once.
        flops: floating-point operations of the naive nest.
        region: the nodes it computes.
        tuned: the parameters of its recipe that tuning found.
    """

    name: str
    code: Code
    naive: Kernel
    bytes: int
    flops: int
    region: Region
    tuned: tuple[tuple[str, int], ...] = ()

    def __repr__(self) -> str:
        return f"<kernel {self.name}: {self.bytes} bytes, {self.flops} flops>"

    @property
    def ir(self) -> Kernel:
        """The scheduled kernel; ``str`` gives its text."""
        return self.code.ir

    @property
    def executable(self) -> Executable:
        return self.code.executable

    @property
    def source(self) -> str:
        return self.executable.source

    @property
    def work(self) -> float:
        """Bytes and operations, for a guess of how long a launch takes: as many as if a loop's turns each had all of
        them; of loops that go on as long as data say nobody knows.
        """
        return (self.bytes + self.flops) * max(map(_turns, self.ir.body), default=1)


def _turns(stmt: Stmt) -> float:
    """Return how often phases in a statement at the top of a kernel are run at most."""
    if not isinstance(stmt, For) or not repeats(stmt):
        return 1
    return (math.inf if stmt.static is None else stmt.static) * max(map(_turns, stmt.body))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One kernel over slots of the plan's memory."""

    code: Code
    slots: tuple[int, ...]
    params: tuple[int, ...]

    def run(self, backend: Backend, memory: Memory) -> None:
        backend.launch(self.code.executable, [memory[s] for s in self.slots], self.params)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A plan run once for each element of the leading axis of its last inputs.

    Attributes:
        state, row, made: bytes of each value of the carry, of each ``xs`` at one step, and of each ``ys``.
    """

    body: Plan
    consts: tuple[int, ...]
    init: tuple[int, ...]
    xs: tuple[int, ...]
    carry: tuple[int, ...]
    ys: tuple[int, ...]
    length: int
    reverse: bool
    copy: Plan
    state: tuple[int, ...]
    row: tuple[int, ...]
    made: tuple[int, ...]

    def run(self, backend: Backend, memory: Memory) -> None:
        carry = [memory[s] for s in self.init]
        final = [memory[s] for s in self.carry]
        if self.length == 0:
            self.copy.execute(carry, final)
            return
        consts = [memory[s] for s in self.consts]
        spare = _ping_pong(backend, self.state)
        for t in range(self.length):
            k = self.length - 1 - t if self.reverse else t
            xs = [(memory[s][0], memory[s][1] + k * n) for s, n in zip(self.xs, self.row, strict=True)]
            ys = [(memory[s][0], memory[s][1] + k * n) for s, n in zip(self.ys, self.made, strict=True)]
            following = final if t == self.length - 1 else [(b.handle, 0) for b in spare[t % 2]]
            self.body.execute([*consts, *carry, *xs], [*following, *ys])
            carry = following


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Cond:
    """One of two plans, by a flag read from the device."""

    flag: int
    true: Plan
    false: Plan
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self, backend: Backend, memory: Memory) -> None:
        chosen = self.true if _flag(backend, memory[self.flag]) else self.false
        chosen.execute([memory[s] for s in self.inputs], [memory[s] for s in self.outputs])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class While:
    """A plan run as long as another one says so.

    Attributes:
        state: bytes of each value of the carry.
    """

    cond: Plan
    body: Plan
    cond_consts: tuple[int, ...]
    body_consts: tuple[int, ...]
    init: tuple[int, ...]
    outputs: tuple[int, ...]
    copy: Plan
    state: tuple[int, ...]

    def run(self, backend: Backend, memory: Memory) -> None:
        carry = [memory[s] for s in self.init]
        cond_consts = [memory[s] for s in self.cond_consts]
        body_consts = [memory[s] for s in self.body_consts]
        spare = _ping_pong(backend, self.state)
        flag = allocate(backend, 1)
        turn = 0
        while True:
            self.cond.execute([*cond_consts, *carry], [(flag.handle, 0)])
            if not _flag(backend, (flag.handle, 0)):
                break
            following = [(b.handle, 0) for b in spare[turn]]
            self.body.execute([*body_consts, *carry], following)
            carry, turn = following, 1 - turn
        self.copy.execute(carry, [memory[s] for s in self.outputs])


def _ping_pong(backend: Backend, sizes: Sequence[int]) -> tuple[list[Buffer], list[Buffer]]:
    first, second = ([allocate(backend, max(n, 1)) for n in sizes] for _ in range(2))
    return first, second


def _flag(backend: Backend, argument: Argument) -> bool:
    return bool(backend.download(*argument, (), np.dtype(np.bool_)))


@dataclasses.dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Plan:
    """A graph ready to run on one device: all that a call needs.

    Memory is a list of slots: the graph's inputs, its constants, its outputs, the arena, then places in these: what
    only the plan needs lies in the arena, and launches may read what is anywhere from an element on.

    Attributes:
        places: the slot that each is in, and how many bytes from its beginning.
        arena: bytes needed besides inputs and outputs.
        pool: of the device.
        sizes: size class of each output, in bytes.
        taken: for each output the input in whose memory it is made, None where it has its own.
        work: bytes moved and operations done by its launches, as ``Compiled`` has it.
    """

    backend: Backend
    steps: tuple[Step, ...]
    consts: tuple[Buffer, ...]
    places: tuple[tuple[int, int], ...]
    arena: int
    pool: Pool
    sizes: tuple[int, ...]
    taken: tuple[int | None, ...]
    work: float

    def launches(self) -> tuple[tuple[Executable, tuple[int, ...]], ...] | None:
        """Return the executables and the slots each takes; None where there is more to do than to launch them."""
        steps = [s for s in self.steps if isinstance(s, Launch) and not s.params]
        return tuple((s.code.executable, s.slots) for s in steps) if len(steps) == len(self.steps) else None

    def __repr__(self) -> str:
        return f"<Plan: {len(self.steps)} steps on {self.backend.name}>"

    def run(self, inputs: Sequence[Buffer]) -> list[Buffer]:
        """Run on row-major buffers, or strided ones of a host; return a row-major buffer for each output: one of
        those where ``taken`` says so.
        """
        take = self.pool.take
        made = [take(n) if k is None else inputs[k] for n, k in zip(self.sizes, self.taken)]  # noqa: B905 - of one length
        self.execute([(b.handle, 0) for b in inputs], [(b.handle, 0) for b in made])
        return made

    def execute(self, inputs: Sequence[Argument], outputs: Sequence[Argument]) -> None:
        """Run on handles, writing the results where the caller says."""
        arena = allocate(self.backend, self.arena) if self.arena else None
        memory: Memory = [
            *inputs,
            *[(b.handle, 0) for b in self.consts],
            *outputs,
            (None if arena is None else arena.handle, 0),
        ]
        for slot, offset in self.places:
            handle, start = memory[slot]
            memory.append((handle, start + offset))
        for step in self.steps:
            step.run(self.backend, memory)


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Detailed(Plan):
    """A plan, with what people look at; those that run within it have it, too.

    Attributes:
        graph: after the passes, as it was compiled.
        fusion: its regions in the order they run, and why they are what they are.
        kernels: in the order of their first launch, those of inner plans included.
    """

    graph: Graph
    fusion: Fusion
    kernels: tuple[Compiled, ...]

    @property
    def regions(self) -> tuple[Region, ...]:
        return self.fusion.regions

    def plan(self) -> Plan:
        """Return what runs alone."""
        return Plan(*[getattr(self, f.name) for f in dataclasses.fields(Plan)])


class Planner:
    """Gives every value of a graph a slot, and those that live only inside a place in the arena.

    Args:
        graph: distinct outputs, none of them an input.
        regions: in the order they run.
        taken: values and those in whose memory they are made, which were made before.
    """

    def __init__(self, graph: Graph, regions: Sequence[Region], backend: Backend, taken: Mapping[Value, Value]) -> None:
        self.graph = graph
        self.backend = backend
        self.consts = tuple(upload(backend, a) for _, a in graph.consts)
        known = [*graph.inputs, *(v for v, _ in graph.consts), *graph.outputs]
        self.slots: dict[Value, int] = {v: k for k, v in enumerate(known)}
        first: dict[Value, Value] = {}
        last: dict[Value, int] = {}
        for k, region in enumerate(regions):
            for value in region.outputs:
                first[value] = first.get(taken.get(value, value), taken.get(value, value))
            # also what is written and never read, as some of what a loop makes
            for value in (*region.outputs, *(v for node in region.nodes for v in node.inputs)):
                last[first.get(value, value)] = k
        self._arena = len(known)
        self._places: list[tuple[int, int]] = []
        self._wanted: dict[int, tuple[range, int]] = {}  # by number of the place
        for k, region in enumerate(regions):
            for value in region.outputs:
                if value in taken:
                    self.slots[value] = self.slots[taken[value]]
                elif value not in self.slots:
                    self.slots[value] = self._slot(range(k, last[value] + 1), value.type.nbytes)

    def scratch(self, k: int, nbytes: int) -> int:
        """Give the kernel of region ``k`` memory while it runs; returns its slot."""
        return self._slot(range(k, k + 1), nbytes)

    def at(self, value: Value, element: int) -> int:
        """Return the slot of a value from an element on."""
        slot = self.slots[value]
        return self._place(slot, element * value.type.dtype.itemsize) if element else slot

    def _slot(self, turns: range, nbytes: int) -> int:
        """Ask for a place in the arena while the regions ``turns`` run; returns its slot."""
        self._wanted[len(self._places)] = turns, -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        return self._place(self._arena, 0)

    def _place(self, slot: int, offset: int) -> int:
        self._places.append((slot, offset))
        return self._arena + len(self._places)

    def places(self) -> tuple[tuple[tuple[int, int], ...], int]:
        """Return where all places are, and the size of the arena.

        What is large for long comes first: the rest finds room beside it.
        """
        placed: dict[int, tuple[range, int, int]] = {}
        order = sorted(self._wanted.items(), key=lambda w: (-w[1][1] * len(w[1][0]), w[0]))
        for k, (turns, size) in order:
            meanwhile = [(o, n) for t, o, n in placed.values() if t.start < turns.stop and turns.start < t.stop]
            placed[k] = turns, _first_fit(meanwhile, size), size
        found = (placed[k][1] if k in placed else offset for k, (_, offset) in enumerate(self._places))
        places = tuple((slot, offset) for (slot, _), offset in zip(self._places, found, strict=True))
        return places, max((o + n for _, o, n in placed.values()), default=0)

    def opaque(self, node: Node, compile_graph: Callable[[Graph], Plan]) -> tuple[Step, tuple[Plan, ...]]:
        """Make the step of a node that holds graphs; return it with the plans whose kernels it runs."""
        slots = [self.slots[v] for v in node.inputs]
        outs = tuple(self.slots[v] for v in node.outputs)
        p = node.params
        match node.prim.name:
            case "scan":
                body = compile_graph(p["body"])
                a, b = p["consts"], p["consts"] + p["carry"]
                copy_of = p["body"].outputs[: p["carry"]]
                copy = compile_graph(identity(copy_of))
                step: Step = Scan(
                    body, tuple(slots[:a]), tuple(slots[a:b]), tuple(slots[b:]), outs[: p["carry"]], outs[p["carry"] :],
                    p["length"], p["reverse"], copy,
                    _sizes(copy_of), _sizes(p["body"].inputs[b:]), _sizes(p["body"].outputs[p["carry"] :]),
                )  # fmt: skip
                return step, (body,)
            case "cond":
                true, false = compile_graph(p["true"]), compile_graph(p["false"])
                return Cond(slots[0], true, false, tuple(slots[1:]), outs), (true, false)
            case _:
                cond, body = compile_graph(p["cond"]), compile_graph(p["body"])
                a, b = p["cond_consts"], p["cond_consts"] + p["body_consts"]
                copy = compile_graph(identity(p["body"].outputs))
                state = _sizes(p["body"].outputs)
                step = While(cond, body, tuple(slots[:a]), tuple(slots[a:b]), tuple(slots[b:]), outs, copy, state)
                return step, (cond, body)


def _sizes(values: Sequence[Value]) -> tuple[int, ...]:
    return tuple(v.type.nbytes for v in values)


def identity(values: Sequence[Value]) -> Graph:
    """Make the graph that copies values of these types."""
    inputs = tuple(Value(k, v.type) for k, v in enumerate(values))
    return Graph(inputs, (), inputs)


def _first_fit(taken: Sequence[tuple[int, int]], size: int) -> int:
    offset = 0
    for start, length in sorted(taken):
        if start - offset >= size:
            break
        offset = max(offset, start + length)
    return offset
