"""A kernel as OpenCL C 1.2: one ``__kernel`` for each phase, that is each nest at the top level.

The grid loops of a phase are numbered as one; a work-item (or, where the phase has ``group`` loops, a work-group)
takes one iteration. Group loops are run by as many work-items as they have iterations, and a barrier stands between
two statements of which one writes local or global memory that the other touches. A vector loop of 2, 4, 8 or 16
becomes OpenCL's vectors, one of some times 16 several side by side; lanes are combined by adding the upper half to the
lower one until one is left. Every other loop is a loop, which is its meaning.

Buffers are followed by an offset in elements. The source is the same on every device of one type.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence

from kernelforge.backends.cpu import ahead
from kernelforge.backends.cpu.abreast import narrowed
from kernelforge.backends.opencl.exprs import Buffer, divides, total
from kernelforge.backends.opencl.groups import Groups
from kernelforge.backends.opencl.lib import WIDTHS, Functions, ctype, literal, size
from kernelforge.backends.opencl.operations import Code
from kernelforge.backends.opencl.phases import Phase, Source, chain_of, owned, strides_of, touched_buffers
from kernelforge.ir.cost import NOTHING, Streamed
from kernelforge.ir.index import free_vars
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    op,
    select,
    stmts,
    walk,
)
from kernelforge.ir.repeat import repeats
from kernelforge.ir.schedule.limits import LINE
from kernelforge.ir.schedule.nests import loads

ITEMS = 64
"""Work-items of a work-group where the program does not say: a multiple of every GPU's width."""

WIDEST = max(WIDTHS)
"""Lanes of the widest vector; longer loops hold several."""

_BUILT_IN = re.compile(
    r"(bool|u?char|u?short|u?int|u?long|half|float|double|size_t|void)(2|3|4|8|16)?|s[0-9a-f]+|"
    r"[a-z]*(sin|cos|tan|exp|log|pow|sqrt|abs|min|max|mod|fma|floor|ceil|trunc|rint|erf|cbrt)[a-z0-9]*|"
    r"auto|break|case|const|continue|default|do|else|enum|extern|for|goto|if|inline|register|restrict|return|signed|sizeof|static|"
    r"struct|switch|typedef|union|unsigned|volatile|while|kernel|global|local|constant|private|image\w*|event_t|sampler_t|read_only|"
    r"write_only|read_write|pipe|uniform|vec_step|as_\w+|convert_\w+|get_\w+|barrier|kf_\w*|[A-Z_]+|_\w*"
)
"""Names that OpenCL C or this package's sources give a meaning."""


def print_opencl(
    kernel: Kernel,
    workers: int,
    local_bytes: int,
    streamed: Streamed = NOTHING,
    caches: Sequence[int] = (),
    native: frozenset[str] = frozenset(),
) -> Source:
    """Print a kernel for a CPU, where a work-item that loops is a work-group of its own, or for a GPU.

    Args:
        workers: most work-items that share the iterations of a launch on a CPU; 0 for a GPU.
        local_bytes: local memory of a work-group; what does not fit on a CPU becomes global scratch of each worker.
        streamed: outputs to store past the cache.
        caches: bytes of a CPU's, by their level, whose loops then ask memory for what they will read.
        native: see ``Limits``.
    """
    functions = Functions(native)
    scratch = tuple(s for s in kernel.body if isinstance(s, Alloc) and s.space == "global")
    rest = [s for s in kernel.body if s not in scratch]
    repeated = any(isinstance(s, For) and repeats(s) for s in rest)
    assert workers or not repeated, f"{kernel.name} repeats phases, which no GPU asks for"
    apart = not repeated and all(isinstance(s, For) for s in rest)
    bodies = [(s,) for s in rest] if apart else [tuple(rest)]
    texts, phases, spilled = [], [], list(scratch)
    for k, body in enumerate(bodies):
        name = f"{_identifier(kernel.name)}_{k}"
        printer = _Printer(kernel, scratch, functions, workers, local_bytes, caches)
        text, phase = printer.phase(name, body)
        texts.append(text)
        spilled += printer.spilled
        if streamed.keys() & {s.buffer for s in stmts(body) if isinstance(s, Store)}:
            phase = dataclasses.replace(phase, stream=f"{name}_stream")
            printer = _Printer(kernel, scratch, functions, workers, local_bytes, caches, streamed)
            texts.append(printer.phase(name, body, "_stream")[0])
        phases.append(phase)
    return Source(functions.texts(), "\n".join(texts), tuple(phases), tuple(spilled), frozenset(streamed))


def _identifier(name: str) -> str:
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"{name}_" if _BUILT_IN.fullmatch(name) or name[0].isdigit() else name


class _Printer(Groups):
    """Prints one phase."""

    def __init__(
        self,
        kernel: Kernel,
        scratch: Sequence[Alloc],
        functions: Functions,
        workers: int,
        local_bytes: int,
        caches: Sequence[int],
        streamed: Streamed = NOTHING,
    ) -> None:
        super().__init__(functions, streamed)
        self.kernel = kernel
        self.workers = workers
        self.scope.masks = workers > 0
        self.local_bytes = local_bytes
        self.caches = caches
        self.distances: ahead.Distances = {}
        self.walked: Var | None = None
        self.spilled: list[Alloc] = []
        self.taken = 0
        self.count: Expr = i64(1)
        self.name = ""
        self.shared: dict[str, str] = {}
        self.outer = {a.name: (a.dtype, a.mode == "in") for a in kernel.args}
        self.outer |= {s.buffer: (s.dtype, False) for s in scratch}
        sizes = {a.name: int(a.size.value) for a in kernel.args if isinstance(a.size, Const)}
        for name, (dtype, _) in self.outer.items():
            shape = next((s.shape for s in scratch if s.buffer == name), (i64(1),))
            self.scope.buffers[name] = Buffer(
                _identifier(name), dtype, "__global ", strides_of(shape), sizes.get(name, 0)
            )
        for param in kernel.params:
            self.scope.names[param] = Code(_identifier(param), "i64")
            self.scope.counters.add(param)

    # phases

    def phase(self, name: str, body: Sequence[Stmt], suffix: str = "") -> tuple[str, Phase]:
        """Print statements of the top level as one ``__kernel``."""
        self.name = name
        inside = list(stmts(body))
        nests = [chain_of(s) for s in inside if isinstance(s, For) and s.kind == "group"]
        self.grouped = bool(nests)
        grid: list[For] = []
        while len(body) == 1 and isinstance(body[0], For) and body[0].kind in ("grid", "parallel"):
            loop = body[0]
            # a parallel loop inside of the grid was left to the work-item by the schedule
            if free_vars(loop.extent) & {g.var for g in grid} or (grid and loop.kind != grid[0].kind):
                break
            grid.append(loop)
            self.count = self.count * loop.extent
            body = loop.body
        if self.grouped:
            self.items = max(math.prod(g.static or 0 for g in chain) for chain in nests)
            self.owned = owned(inside)
        else:
            heavy = any(isinstance(s, For) and s.kind != "unroll" for s in stmts(body))
            self.items = 1 if self.workers and heavy else ITEMS
        used = touched_buffers(inside, self.outer)
        for buffer in used:
            own = self.scope.buffers[buffer].name
            self.emit(f"{own} += {own}_offset;")
        mark = len(self.lines)
        extents = self.extents(grid)
        with self.block(self.share(extents)) if self.items == 1 and not self.grouped else contextlib.nullcontext():
            self.iteration(grid, extents)
            if self.caches and not self.grouped:
                self.distances = ahead.distances(grid, body, self.caches[1])
                self.walked = grid[-1].var if grid and ahead.vectors(body) else None
            self.uniform(body)
        self.lines[mark:mark] = self.shared.values()
        arguments = []
        for buffer in used:
            dtype, const = self.outer[buffer]
            own = self.scope.buffers[buffer].name
            kind = f"{'const ' if const else ''}{ctype(dtype)}"
            arguments.append(f"__global {kind}* restrict {own}, const long {own}_offset")
        spills = tuple(s.buffer for s in self.spilled)
        arguments += [
            f"__global {ctype(s.dtype)}* restrict {s.buffer}, const long {s.buffer}_offset" for s in self.spilled
        ]
        arguments += [f"const long {_identifier(p)}" for p in self.kernel.params]
        # nothing to vectorise over where a group is one item: Intel's compiler takes twice as long to find that out
        hint = ", vec_type_hint(float16)" if self.items == 1 else ""
        group = f"__attribute__((reqd_work_group_size({self.items}, 1, 1){hint}))"
        head = f"__kernel {group}\nvoid {name}{suffix}({', '.join(arguments)})"
        text = "\n".join((f"{head} {{", *self.lines, "}", ""))
        return text, Phase(
            name, (*used, *spills), self.count, self.items, self.grouped, self.items == 1 and not self.grouped
        )

    def extents(self, grid: Sequence[For]) -> list[str]:
        extents = []
        for loop in grid:
            self.scope.begin([loop.extent])
            extents.append(self.scope.value(loop.extent, index=True).text)
        return extents

    def share(self, extents: Sequence[str]) -> str:
        """Print the loop over a work-item's part of the iterations: starting one costs as much as a short row."""
        self.emit(f"const long kf_all = {' * '.join(extents) or '1'}, kf_parts = get_global_size(0);")
        self.emit("const long kf_end = ((long)get_global_id(0) + 1) * kf_all / kf_parts;")
        self.emit("#pragma clang loop vectorize(disable)")
        return "for (long kf_at = (long)get_global_id(0) * kf_all / kf_parts; kf_at < kf_end; ++kf_at)"

    def iteration(self, grid: Sequence[For], extents: Sequence[str]) -> None:
        """Find the iteration of the grid loops, which are numbered with the last one running fastest."""
        if self.grouped:
            self.emit("const long kf_at = get_group_id(0);")
            self.emit("const uint kf_item = (uint)get_local_id(0);")
        elif self.items > 1:
            self.emit("const long kf_at = get_global_id(0);")
            self.emit(f"if (kf_at >= {' * '.join(extents) or '1'}) return;")
        for k, loop in enumerate(grid):
            inner = " * ".join(extents[k + 1 :])
            text = f"kf_at / ({inner})" if inner else "kf_at"
            self.emit(f"const long {self.counter(loop.var)} = {f'{text} % {extents[k]}' if k else text};")

    def counter(self, var: Var) -> str:
        name = _identifier(var.name)
        self.scope.names[var.name] = Code(name, "i64")
        self.scope.counters.add(var.name)
        return name

    # statements

    def body(self, body: Sequence[Stmt]) -> None:
        for stmt in body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Let():
                self.let(stmt)
            case Store():
                self.store(stmt)
            case Alloc():
                self.alloc(stmt)
            case If(_, body):
                with self.block(self.head(stmt)), self.inner():
                    self.body(body)
            case For(kind="unroll") if self.tile(stmt):
                pass
            case For(kind="unroll"):
                self.unroll(stmt, self.body)
            case For(kind="vector") if self.fits(stmt):
                wide = (stmt.static or 0) > WIDEST
                self.vector(narrowed(stmt, WIDEST) if wide else stmt)
            case For(var, _, _, body):
                with self.block(self.head(stmt)):
                    before, self.walked = self.walked, var if ahead.vectors(body) else None
                    self.body(body)
                    self.walked = before

    def head(self, stmt: For | If) -> str:
        (e,) = exprs(stmt)
        self.scope.begin([e])
        if isinstance(stmt, If):
            return f"if ({self.scope.value(e).text})"
        extent = self.scope.value(e, index=True).text
        name = self.counter(stmt.var)
        if not self.grouped:
            # lanes are explicit already; and in loops that Intel's runtime 2026.2 vectorises itself, a division that a
            # choice may skip spoils results
            self.emit("#pragma clang loop vectorize(disable)")
        return f"for (long {name} = 0; {name} < {extent}; ++{name})"

    def let(self, stmt: Let) -> None:
        self.scope.begin([stmt.value])
        code = self.scope.value(stmt.value)
        name = _identifier(stmt.name)
        self.scope.declare(name, code)
        self.scope.names[stmt.name] = code._replace(text=name)
        if code.lanes > 1:
            self.scope.vectors.add(stmt.name)
            if stmt.value.dtype == "i64" and total(stmt.value):
                self.scope.indices[Var(stmt.name, "i64")] = self.scope.resolved(stmt.value)

    def alloc(self, stmt: Alloc) -> None:
        dropped = self.owned.get(stmt.buffer, 0)
        shape = stmt.shape[dropped:]
        count = math.prod(int(n.value) for n in shape if isinstance(n, Const))
        name = _identifier(stmt.buffer)
        # the memory of a work-group of one is its own, and is not on the stack
        local = stmt.space == "local" and (self.grouped or self.items == 1) and not self.groups
        kind, extent = ctype(stmt.dtype), f"[{max(count, 1)}] __attribute__((aligned(64)));"
        self.taken += size(stmt.dtype) * count if local else 0
        spill = local and not self.grouped and self.taken > self.local_bytes
        if spill:
            self.taken -= size(stmt.dtype) * count
            each = op("min", self.count, i64(self.workers)), i64(count)
            whole = Alloc(f"kf_spill_{self.name}_{len(self.spilled)}", stmt.dtype, each, "global")
            self.spilled.append(whole)
            own = f"{whole.buffer}_offset + (long)get_global_id(0) * {count}L"
            self.emit(f"__global {kind}* {name} = {whole.buffer} + {own};")
        elif local:
            # two statement lists may each have a buffer of one name
            while (
                self.shared.setdefault(name, f"    __local {kind} {name}{extent}")
                != f"    __local {kind} {name}{extent}"
            ):
                name += "_"
        else:
            self.emit(f"{kind} {name}{extent}")
        self.scope.buffers[stmt.buffer] = Buffer(
            name, stmt.dtype, "__global " if spill else "__local " if local else "", strides_of(shape), count, dropped
        )

    def unroll(self, stmt: For, run: Callable[[Sequence[Stmt]], None]) -> None:
        for k in range(stmt.static or 0):
            self.scope.names[stmt.var.name] = Code(literal(k, "i64"), "i64")
            self.scope.counters.add(stmt.var.name)
            with self.block():
                run(stmt.body)

    # vector loops

    def fits(self, stmt: For) -> bool:
        """Whether a vector loop can be run as OpenCL vectors."""
        inner = list(stmts(stmt.body))
        known = all(isinstance(s, Let | Store | If) or (isinstance(s, For) and s.kind == "unroll") for s in inner)
        if known and (stmt.static or 0) > WIDEST:
            # iterations are independent but for what they combine
            return (stmt.static or 0) % WIDEST == 0 and not any(
                isinstance(s, For) or (isinstance(s, Store) and s.op) for s in inner
            )
        return known and stmt.static in WIDTHS

    def vector(self, stmt: For) -> None:
        self.begin_lanes(stmt.var, stmt.static or 1)
        with self.block():
            self.fetch(stmt)
            self.in_lanes(self.together(stmt.body))
        self.end_lanes()

    def together(self, body: Sequence[Stmt]) -> list[Stmt]:
        """Ask once for choices behind each other, those of vectors side by side: what one of them holds apart from the
        rest would be computed one after the other.
        """
        out: list[Stmt] = []
        for alone, found in itertools.groupby(body, self.own):
            tests = list(found)
            if alone and len(tests) > 1:
                cond = functools.reduce(lambda a, b: a | b, (s.cond for s in tests if isinstance(s, If)))
                tests = [If(cond, tuple(tests))]
            out += tests
        return out

    def own(self, stmt: Stmt) -> bool:
        """Whether a statement is an If that changes memory of its own alone, none of which decides it."""
        stored = {s.buffer for s in stmts((stmt,)) if isinstance(s, Store)}
        return (
            isinstance(stmt, If)
            and stored.isdisjoint(self.outer)
            and not any(isinstance(e, Load) for e in walk(stmt.cond))
        )

    def fetch(self, loop: For) -> None:
        """Ask for lines that the loop around reads later; they need not exist."""
        scope, places = self.scope, set()
        named = {s.name if isinstance(s, Let) else s.var.name for s in stmts(loop.body) if isinstance(s, Let | For)}
        for e in loads(loop.body):
            further = 0 if self.walked is None else self.distances.get((self.walked, e.buffer), 0)
            flat = scope.buffers[e.buffer].flat(e.index) if further else i64(0)
            if scope.step(flat) == 1 and named.isdisjoint(v.name for v in free_vars(flat)):
                scope.begin([flat])
                place = f"{scope.buffers[e.buffer].name} + {scope.first(flat)}"
                lines = range(0, scope.lanes * size(e.dtype), LINE) if place not in places else ()
                places.add(place)
                for line in lines:
                    self.emit(f"kf_fetch({place}, {further + line}, {ahead.locality(self.caches[0])});")

    def in_lanes(self, body: Sequence[Stmt]) -> None:
        turns = self.turns(body)
        for stmt in body:
            if isinstance(stmt, Store) and stmt in turns:
                self.take_turn(stmt, turns[stmt])
            elif isinstance(stmt, For):
                if not self.dot(stmt):
                    self.unroll(stmt, self.in_lanes)
            elif isinstance(stmt, If):
                self.choice(stmt)
            else:
                self.statement(stmt)

    def choice(self, stmt: If) -> None:
        """Print an If: as vectors where it holds for all lanes, or where lanes may keep what they have; else lane by
        lane.
        """
        scope, var = self.scope, self.scope.var
        assert var is not None
        guard = scope.whole(stmt.cond)
        blended = self.blended(stmt.body, stmt.cond) if guard is None else None
        if blended is not None:
            scope.begin([stmt.cond])
            with self.block(f"if (kf_seldom({scope.any_lane(scope.value(stmt.cond))}))"), self.inner():
                self.in_lanes(blended)
            return
        if guard is not None:
            scope.begin([guard])
            with self.block(f"if ({scope.value(guard).text})"), self.inner():
                self.in_lanes(stmt.body)
            if not scope.varies(stmt.cond):
                return
        with self.block("else" if guard is not None else ""):
            scope.begin([stmt.cond])
            if scope.masks and self.maskable(stmt.body):
                with (
                    scope.within(scope.value(stmt.cond)) as mask,
                    self.block(f"if ({scope.any_lane(mask)})"),
                    self.inner(),
                ):
                    self.in_lanes(stmt.body)
                return
            if scope.vectors == {var.name} and scope.guard is None:
                self.scalar(stmt, var)
                return
            for k in range(scope.lanes):
                with self.block("" if scope.guard is None else f"if ({scope.in_lane(k)})"):
                    scope.lane = k
                    with self.block(self.head(stmt)):
                        self.body(stmt.body)
                    scope.lane = None

    @contextlib.contextmanager
    def inner(self) -> Iterator[None]:
        """Print what is under a condition; forget afterwards which names it gave a value for each lane."""
        scope = self.scope
        kept = set(scope.vectors), dict(scope.indices), scope.branch
        scope.branch = True
        yield
        scope.vectors, scope.indices, scope.branch = kept

    def maskable(self, body: Sequence[Stmt]) -> bool:
        """Whether masks keep statements from doing in other lanes what they may not."""
        scope, inside = self.scope, list(stmts(body))
        within = {s.name for s in inside if isinstance(s, Let)}
        flats = [scope.buffers[s.buffer].flat(s.index) for s in inside if isinstance(s, Store)]
        return all(scope.step(f) == 1 and not any(v.name in within for v in free_vars(f)) for f in flats) and not any(
            divides(e) for s in inside for r in exprs(s) for e in walk(r)
        )

    def blended(self, body: Sequence[Stmt], cond: Expr) -> list[Stmt] | None:
        """Return what does for all lanes what ``body`` does for those where ``cond`` holds: Lets, and Stores to
        elements of their own, which the others write back; None for anything else.
        """
        scope = self.scope
        out: list[Stmt] = []
        scope.begin([])
        for stmt in body:
            if not all(map(scope.may, exprs(stmt))):
                return None
            match stmt:
                case Let():
                    out.append(stmt)
                case Store(name, (index,), value, "") if name not in self.outer and scope.step(index) == 1:
                    out.append(Store(name, (index,), select(cond, value, Load(name, (index,), value.dtype))))
                case If(inner, within):
                    deeper = self.blended(within, cond & inner)
                    if deeper is None:
                        return None
                    out.append(If(cond & inner, tuple(deeper)))
                case _:
                    return None
        return out

    def scalar(self, stmt: Stmt, var: Var) -> None:
        """Print one statement of a vector loop as a loop over its lanes."""
        scope = self.scope
        kept = scope.names[var.name], scope.lanes, scope.vectors
        scope.var, scope.vectors = None, set()
        lanes, scope.lanes = scope.lanes, 1
        self.statement(For(var, i64(lanes), "serial", (stmt,)))
        scope.names[var.name], scope.lanes, scope.vectors = kept
        scope.var = var
