"""From a graph to a plan: the only caller of all passes, and the memory of what was compiled already."""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import hashlib
import os
import pathlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kernelforge.at_once import at_once
from kernelforge.backends.base import Backend, Executable, Printing
from kernelforge.config import Config
from kernelforge.donations import Donations
from kernelforge.errors import DamagedBinary, DamagedTuning, IllegalSchedule, UnsupportedOnDevice
from kernelforge.forks import Lock
from kernelforge.ir import memo
from kernelforge.ir.applied import Applied, to_kernel
from kernelforge.ir.build import Builder, primitive
from kernelforge.ir.cost import cost, nbytes
from kernelforge.ir.demand import Chains
from kernelforge.ir.fuse import Fusion, Region, fuse
from kernelforge.ir.graph import Graph, Kind, Node, Value
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.passes.finish import finish
from kernelforge.ir.passes.pipeline import optimize
from kernelforge.ir.repeat import Piece, repeated, stepped
from kernelforge.ir.residuals import plan_residuals
from kernelforge.ir.schedule.choices import Choices
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.recipes import schedule, scratch
from kernelforge.ir.schedule.slices import sliced
from kernelforge.ir.structure import structure
from kernelforge.ir.text import print_kernel
from kernelforge.ir.types import Type
from kernelforge.ir.verify import verify_kernel
from kernelforge.runtime import cache, kept, tuned
from kernelforge.runtime.memory import pool, size_class
from kernelforge.runtime.plan import Code, Compiled, Detailed, Launch, Plan, Planner, Step, identity

Strides = Sequence[tuple[int, ...] | None]

REPEATED = 20
"""Kernels, at most, of control flow that become one: they are compiled one after the other."""

ALONE = 1 << 18
"""What a kernel may cost, as ``ir/cost.py`` has it, for one worker to repeat it by itself: some 5 microseconds of a
core, as long as one of many launches takes."""

Parameters = tuple[tuple[str, int], ...]
Known = dict[Kernel, tuple[Kernel, Parameters]]
"""For naive kernels the scheduled ones, and the parameters that tuning found."""

RECENT = 128
"""Plans that are kept though nobody has them: those of functions run once, or made anew for each call."""

# whoever runs a plan keeps it, and with it its kernels
_plans: weakref.WeakValueDictionary[tuple[Any, ...], Plan] = weakref.WeakValueDictionary()
_recent: collections.OrderedDict[Plan, None] = collections.OrderedDict()
_kernels: weakref.WeakValueDictionary[tuple[str, Backend], Executable] = weakref.WeakValueDictionary()
_lock = Lock()


class _Uncollected:
    """Collects no garbage: what a compilation makes lives, and looking at it takes a tenth of the time. At the end it
    lets go of what served the compilation alone.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._paused = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._resume)

    def __enter__(self) -> None:
        self._depth += 1
        if gc.isenabled():
            gc.disable()
            self._paused = True

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth <= 0:  # below it in a child, which has resumed before
            memo.forget()
            self._resume()

    def _resume(self) -> None:
        self._depth = 0
        if self._paused:
            self._paused = False
            gc.enable()


_UNCOLLECTED = _Uncollected()


def compile_graph(
    graph: Graph,
    backend: Backend,
    config: Config,
    strides: Strides | None = None,
    located: bool = False,
    given: frozenset[int] = frozenset(),
) -> Plan:
    """Compile for a device; graphs of the same structure share one plan, as long as anyone has it or it is among
    the recent ones, and find it on disk afterwards.

    Args:
        strides: for each input of the graph its strides in elements, or None where it is row-major; only host devices
            take others.
        located: for people to look at: the plan is ``Detailed``, made in this process, and shared only with graphs
            whose nodes stand on the same lines.
        given: the inputs in whose memory outputs may be made.

    Raises:
        UnsupportedOnDevice: when the graph has a dtype that the device lacks.
        CompilationFailed: when the device's compiler does.
    """
    layout = tuple(strides) if strides is not None else (None,) * len(graph.inputs)
    places = tuple(n.loc for n in graph.nodes) if located else None
    made_of = structure(graph), layout, tuple(sorted(given)), config, tuned.state(backend)
    key = (made_of, places, backend)
    with _lock:
        found = _plans.get(key)
        if found is None:
            with _UNCOLLECTED:
                if located:
                    found = _compile(graph, backend, config, layout, True, given)
                else:
                    name = kept.key(made_of, backend)
                    found = _found(name, graph, backend)
                    if found is None:
                        found = _keep(name, _compile(graph, backend, config, layout, False, given), graph)
                _plans[key] = found
        _recent[found] = None
        _recent.move_to_end(found)
        while len(_recent) > RECENT:
            _recent.popitem(last=False)
        return found


def _found(name: str, graph: Graph, backend: Backend) -> Plan | None:
    """Return the plan that an earlier process kept under a name."""
    content = cache.load(name)
    if content is None:
        return None
    return kept.loads(
        content, backend, [a for _, a in graph.consts], lambda k, key: _executable(k, key, _Build(backend))()
    )


def _keep(name: str, made: Detailed, graph: Graph) -> Plan:
    """Keep a plan of a graph under a name; return what runs of it."""
    plan = made.plan()
    content = kept.dumps(plan, [a for _, a in made.graph.consts], [a for _, a in graph.consts])
    if content is not None:
        cache.store(name, content)
    return plan


def _compile(
    graph: Graph,
    backend: Backend,
    config: Config,
    layout: tuple[tuple[int, ...] | None, ...],
    located: bool,
    given: frozenset[int],
) -> Detailed:
    optimized, fusion = _fused(graph, backend, config, layout)
    strides = {v: s for v, s in zip(optimized.inputs, layout, strict=True) if s is not None}
    steps: list[Step] = []
    kernels: list[Compiled] = []
    turns = [k for k, r in enumerate(fusion.regions) if _makes(r)]
    regions = [fusion.regions[k] for k in turns]
    free = [v for i, v in enumerate(optimized.inputs) if i in given and v not in strides]
    donations = Donations(optimized, regions, free)
    orders = _ordered(regions, strides, backend, config, donations)
    planner = Planner(optimized, fusion.regions, backend, donations.taken)
    for k, region, order in zip(turns, regions, orders, strict=True):
        if order is None:
            assert region.opaque is not None
            step, inner = planner.opaque(region.opaque, lambda g: compile_graph(g, backend, config, located=located))
            steps.append(step)
            kernels += (k for plan in inner if isinstance(plan, Detailed) for k in plan.kernels)
        else:
            compiled = order.compiled(region)
            named = zip(compiled.ir.args, order.applied.values, strict=False)
            slots = [planner.at(v, order.applied.starts.get(a.name, 0)) for a, v in named]
            slots += [planner.scratch(k, nbytes(a)) for a in compiled.ir.args if a.mode == "scratch"]
            steps.append(Launch(compiled.code, tuple(slots), ()))
            kernels.append(compiled)
    places, arena = planner.places()
    return Detailed(
        backend, tuple(steps), planner.consts, places, arena, pool(backend),
        tuple(size_class(v.type.nbytes) for v in optimized.outputs),
        tuple(planner.slots[v] if v in donations.taken else None for v in optimized.outputs),
        sum(k.work for k in kernels), optimized, fusion, tuple(dict.fromkeys(kernels)),
    )  # fmt: skip


def _fused(
    graph: Graph, backend: Backend, config: Config, layout: Sequence[tuple[int, ...] | None]
) -> tuple[Graph, Fusion]:
    """Rewrite a graph for a device and group its nodes."""
    optimized = row_major_inside(distinct(optimize(graph, config.verify)), layout)
    limits = backend.limits
    for value in [*optimized.inputs, *(v for n in optimized.nodes for v in n.outputs)]:
        if value.type.name not in limits.dtypes:
            raise UnsupportedOnDevice(
                device=backend.name, dtype=value.type.name, supported=", ".join(sorted(limits.dtypes))
            )
    chains: Chains = "blocks" if limits.form == "group" else "rows"
    fusion = fuse(optimized, config.fusion, limits.max_args, limits.form == "vector", chains)
    if config.fusion:
        fusion = plan_residuals(optimized, fusion, limits.max_args)
    return optimized, fusion


def _makes(region: Region) -> bool:
    return any(v.type.size for v in region.outputs)


def distinct(graph: Graph) -> Graph:
    """Give an output that stands twice, or is an input, a value of its own: each is written to a place of its own."""
    taken = {*graph.inputs, *(v for v, _ in graph.consts)}
    if len(taken.union(graph.outputs)) == len(taken) + len(graph.outputs):
        return graph
    b = Builder()
    with b.active():
        values = b.replay(graph, [b.input(v.type) for v in graph.inputs])
        outputs: list[Value] = []
        for value in graph.outputs:
            made = values[value]
            if value in taken:
                (made,) = b.emit(primitive("barrier"), [made], {})
            taken.add(value)
            outputs.append(made)
    return Graph(tuple(b.inputs), tuple(b.nodes), tuple(outputs), tuple(b.consts))


def row_major_inside(graph: Graph, layout: Sequence[tuple[int, ...] | None]) -> Graph:
    """Copy the strided inputs that control flow reads: the plans inside of it take row-major ones."""
    read = {v for n in graph.nodes if n.prim.kind is Kind.OPAQUE for v in n.inputs}
    strided = [v for v, s in zip(graph.inputs, layout, strict=True) if s is not None and v in read]
    if not strided:
        return graph
    first = graph.unused
    copies = {v: Value(first + k, Type(v.type.shape, v.type.dtype)) for k, v in enumerate(strided)}
    nodes = [Node(primitive("barrier"), (v,), {}, (copy,)) for v, copy in copies.items()]
    for node in graph.nodes:
        opaque = node.prim.kind is Kind.OPAQUE
        nodes.append(dataclasses.replace(node, inputs=tuple(copies.get(v, v) for v in node.inputs)) if opaque else node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


class _Order(NamedTuple):
    """A kernel that is being compiled.

    Attributes:
        naive: before its schedule.
        applied: after it.
        parameters: that tuning found.
        key: of the machine code.
        wait: returns the executable.
    """

    naive: Kernel
    applied: Applied
    parameters: Parameters
    key: str
    wait: Callable[[], Executable]

    def compiled(self, region: Region) -> Compiled:
        found, kernel = cost(self.naive), self.applied.kernel
        code = Code(self.key, kernel, self.wait())
        return Compiled(kernel.name, code, self.naive, found.bytes, found.flops, region, self.parameters)


def _ordered(
    regions: Sequence[Region],
    strides: dict[Value, tuple[int, ...]],
    backend: Backend,
    config: Config,
    donations: Donations,
) -> list[_Order | None]:
    """Lower and schedule the kernels of regions; the device's compiler is at one while the next is prepared."""
    orders: list[_Order | None] = []
    known: Known = {}
    started: dict[Kernel, tuple[str, Callable[[], Executable]]] = {}
    alone = backend.limits.compilers > 1
    build = _Build(backend)
    with at_once(min(backend.limits.compilers, len(regions))) as start:
        for k, region in enumerate(regions):
            made = _kernel(region, strides, backend, config, known)
            if region.opaque is not None:
                donations.settle(k)
            if made is None:
                orders.append(None)
                continue
            naive, applied, parameters = made
            if region.opaque is None:
                applied = donations.settled(k, applied)
            kernel = applied.kernel
            if kernel not in started:
                key = cache.key(print_kernel(kernel), backend.limits.fingerprint)
                started[kernel] = key, start(_executable(kernel, key, _Build(backend) if alone else build))
            orders.append(_Order(naive.kernel, applied, parameters, *started[kernel]))
    return orders


def _kernel(
    region: Region, strides: dict[Value, tuple[int, ...]], backend: Backend, config: Config, known: Known
) -> tuple[Applied, Applied, Parameters] | None:
    """Lower and schedule a region; None where the plan runs it.

    Returns it before and after its schedule, and what tuning found for it.
    """
    if region.opaque is not None:
        pair = _repeated(region.opaque, backend, config, known)
        return pair and (*pair, ())
    tf32 = config.precision == "high" and "tf32" in backend.limits.native
    parts = [p for p in region.parts if any(v.type.size for v in p.outputs)]
    applied = to_kernel(_name(region), parts, strides, tf32)
    naive = applied.kernel
    if naive not in known:
        found = tuned.parameters(naive, backend)
        known[naive] = _tuned(naive, found, backend, config), tuple(found.items())
    kernel, parameters = known[naive]
    return applied, applied.with_kernel(kernel), parameters


def _repeated(node: Node, backend: Backend, config: Config, known: Known) -> tuple[Applied, Applied] | None:
    """Make one kernel of control flow, naive and scheduled: of a scan whose step is a map, and where the device repeats
    phases and they are few.
    """
    limits = backend.limits
    if config.fusion and _of_maps(node):
        body = _pieces(node.graphs["body"], backend, config, known)
        one = stepped(node, body[0]) if body is not None else None
        if one is not None and len(one.kernel.args) <= limits.max_args:
            return one, one.with_kernel(_tuned(one.kernel, {}, backend, config))
    if limits.native.isdisjoint(("repeat", "repeat_alone")) or not config.fusion:
        return None
    graphs = node.graphs
    if "body" in graphs:
        graphs["copy"] = identity(graphs["body"].outputs[: node.params.get("carry")])
    found = {name: _pieces(graph, backend, config, known) for name, graph in graphs.items()}
    pairs = {name: pair for name, pair in found.items() if pair is not None}
    if len(pairs) < len(graphs) or sum(len(naive.kernels) for naive, _ in pairs.values()) > REPEATED:
        return None
    naive, kernel = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    whole = repeated(node, naive)
    one_by_one = sliced(whole.kernel, limits)
    if one_by_one is not None and len(whole.kernel.args) <= limits.max_args:
        return whole, whole.with_kernel(_finished(one_by_one, limits, config))
    if "repeat" not in limits.native and not all(map(_little, naive.values())):
        return None
    made = whole, repeated(node, kernel)
    return made if len(made[1].kernel.args) <= limits.max_args else None


def _of_maps(node: Node) -> bool:
    """Whether this is a scan that may be one map: it has a state, and a step of maps alone."""
    if node.prim.name != "scan":
        return False
    made = {n.prim.kind for n in node.graphs["body"].nodes}
    return node.params["carry"] > 0 and node.params["length"] > 0 and made <= {Kind.MAP, Kind.VIEW}


def _little(piece: Piece) -> bool:
    """Whether one worker computes a graph sooner than its kernels are launched."""
    return sum(cost(k.kernel).price for k in piece.kernels) <= ALONE * len(piece.kernels)


def _pieces(graph: Graph, backend: Backend, config: Config, known: Known) -> tuple[Piece, Piece] | None:
    """Return a graph as its naive and its scheduled kernels compute it; None where the plan has to run it."""
    graph, fusion = _fused(graph, backend, config, (None,) * len(graph.inputs))
    naive: list[Applied] = []
    kernels: list[Applied] = []
    for region in filter(_makes, fusion.regions):
        made = _kernel(region, {}, backend, config, known)
        if made is None or graph.consts:
            return None
        before, after, _ = made
        naive.append(before.with_kernel(scratch(before.kernel)))
        kernels.append(after)
    return Piece(graph, naive), Piece(graph, kernels)


def _tuned(naive: Kernel, parameters: dict[str, int], backend: Backend, config: Config) -> Kernel:
    """Schedule a kernel with what tuning found for it."""
    try:
        return scheduled(naive, backend.limits, config, Choices(parameters) if parameters else None)
    except IllegalSchedule as error:
        if not parameters:
            raise
        raise DamagedTuning(file=tuned.path(backend), problem=f"for {naive.name}, {error}") from error


def scheduled(naive: Kernel, limits: Limits, config: Config, choices: Choices | None = None) -> Kernel:
    """Rewrite a naive kernel to what is printed for a device."""
    return _finished(schedule(naive, dataclasses.replace(limits, choices=choices)), limits, config)


def _finished(kernel: Kernel, limits: Limits, config: Config) -> Kernel:
    """Rewrite a scheduled kernel to what is printed."""
    kernel = finish(kernel, limits.native, config.rounding == "fast")
    if config.verify:
        verify_kernel(kernel)
    return kernel


class _Build:
    """Kernels that are compiled together, when the first of them is waited for."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._wanted: dict[str, tuple[Kernel, Any]] = {}
        self._made: dict[str, Executable] = {}

    def add(self, kernel: Kernel, name: str) -> Callable[[], Executable]:
        """Print a kernel, whose key is ``name``; return what gets its executable, in one thread at a time."""
        self._wanted[name] = kernel, self.backend.printed(kernel) if isinstance(self.backend, Printing) else None
        return functools.partial(self._get, name)

    def _get(self, name: str) -> Executable:
        if not self._made:
            self._make()
        return self._made[name]

    def _make(self) -> None:
        backend = self.backend
        kernels, printed = zip(*self._wanted.values(), strict=True)
        made = backend.build(kernels, printed) if isinstance(backend, Printing) else map(backend.compile, kernels)
        self._made = dict(zip(self._wanted, made, strict=True))
        holders: dict[int, str] = {}
        for name, executable in self._made.items():
            if executable.binary is not None:
                holder = holders.setdefault(id(executable.binary), name)
                if holder == name:
                    cache.store(name, executable.binary)
                else:
                    cache.share(name, holder)


def _executable(kernel: Kernel, name: str, build: _Build) -> Callable[[], Executable]:
    """Find a kernel's executable in memory or on disk, where ``name`` is its key, or add it to what is built; return
    what gets it.
    """
    backend = build.backend
    found = _kernels.get((name, backend))
    if found is not None:
        return lambda: found
    binary = cache.load(name)
    compiled = build.add(kernel, name) if binary is None else functools.partial(_load, kernel, name, backend, binary)

    def make() -> Executable:
        executable = _kernels[name, backend] = compiled()
        dump = os.environ.get("KERNELFORGE_DUMP_DIR")
        if dump:
            _dump(pathlib.Path(dump), kernel, backend.name, executable.source)
        return executable

    return make


def _load(kernel: Kernel, name: str, backend: Backend, binary: bytes) -> Executable:
    try:
        return backend.compile(kernel, binary)
    except DamagedBinary:
        cache.discard(name)
        return _Build(backend).add(kernel, name)()


def _dump(where: pathlib.Path, kernel: Kernel, device: str, source: str) -> None:
    where.mkdir(parents=True, exist_ok=True)
    text = print_kernel(kernel)
    stem = f"{kernel.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{device.replace(':', '')}"
    (where / f"{stem}.kernel").write_text(text)
    (where / f"{stem}.source").write_text(source)


def _name(region: Region) -> str:
    names = [n.prim.name for n in region.nodes if n.prim.kind.value != "view" and n.prim.name != "full"]
    return "_".join(list(dict.fromkeys(names))[:5]) or "copy"


def forget() -> None:
    """Know no plan or kernel any more (tests)."""
    with _lock:
        _plans.clear()
        _kernels.clear()
        _recent.clear()


__all__ = ["Compiled", "Detailed", "Plan", "compile_graph", "distinct", "forget"]
