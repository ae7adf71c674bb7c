"""Kernels to LLVM IR.

Each phase of a kernel is a function over a range of its leading parallel loops' iterations, counted in row-major
order; ``run(frame, pool)`` runs the phases in order, each by the ``fork`` of ``kernelforge.backends.cpu.threads``.
``frame`` is an array of 8-byte words: the addresses of the buffers, then the params. Phases that a loop repeats get a
frame of the call's own, which has the loop's counter behind these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from kernelforge.backends.cpu import ahead, alignment, meanwhile
from kernelforge.backends.cpu.abreast import abreast
from kernelforge.backends.cpu.dots import Dots
from kernelforge.backends.cpu.exprs import DUMMY, DUMMY_BYTES, WIDEST
from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.phases import Phase, Repetition, every, phases
from kernelforge.backends.cpu.threads import FORK
from kernelforge.backends.cpu.values import MEMORY, Buffer, NotVectorError, Val, typed
from kernelforge.backends.cpu.work import work
from kernelforge.dtypes import DTYPES
from kernelforge.ir.cost import NOTHING, Streamed, streamed
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Stmt,
    Store,
    Var,
    stmts,
)  # fmt: skip
from kernelforge.ir.passes.in_place import in_place

STACK_BYTES = 16 << 10
"""Buffers up to this size are on the stack; larger ones come from malloc for each range."""


def stored(body: Sequence[Stmt]) -> set[str]:
    """Return the buffers that statements write."""
    return {s.buffer for s in stmts(body) if isinstance(s, Store)}


def print_kernel(kernel: Kernel, host: Host) -> str:
    """Return the text of an LLVM module that defines ``run``.

    Raises:
        CompilationFailed: for what the IR does not allow.
    """
    declared: dict[str, str] = {}
    large = streamed(kernel, host.cache_bytes)
    kernel = in_place(kernel, {a.name for a in kernel.args if a.mode == "out"} - large.keys())
    parts = phases(kernel.body)
    functions = []
    for part in every(parts):
        within = dataclasses.replace(kernel, params=(*kernel.params, *(loop.var.name for loop in part.turns)))
        past = {name: large[name] for name in large.keys() & stored(part.body)}
        if past and _asks(part):
            functions.append(_Function(within, host, declared, past).phase(part.name, part, asks=True))
            continue
        functions.append(_Function(within, host, declared).phase(part.name, part))
        if past:
            functions.append(_Function(within, host, declared, large).phase(f"{part.name}.stream", part))
    functions.append(_Function(kernel, host, declared, large).entry(parts))
    wide = (
        f'"min-legal-vector-width"="{host.vector_bytes * 8}" "prefer-vector-width"="{host.vector_bytes * 8}" '
        if host.arch == "x86_64"
        else ""
    )
    attributes = f'attributes #0 = {{ nounwind {wide}"no-stack-arg-probe" "no-builtins" }}'
    marks = "!0 = !{i32 1}", '!1 = !{!"branch_weights", i32 1000, i32 1}'
    return "\n".join([f"; {kernel.name}", *sorted(declared.values()), *functions, attributes, *marks, ""])


def _asks(phase: Phase) -> bool:
    """Whether each store past the cache asks if it may.

    A phase of several passes takes half as long to compile so, and no longer to run. A map, which does little but to
    store, has a function of each kind.
    """
    return any(isinstance(s, For) and s.kind == "serial" for s in stmts(phase.body))


class _Function(Dots):
    """Emits the statements of one function."""

    def __init__(self, kernel: Kernel, host: Host, declared: dict[str, str], streamed: Streamed = NOTHING) -> None:
        super().__init__(kernel.name, host, declared, streamed)
        self.args = kernel.args
        self.params = kernel.params
        self.block = "entry"
        self.allocas: list[str] = []
        self.frees: list[str] = []
        for arg in kernel.args:
            self.buffers[arg.name] = Buffer(f"%{_safe(arg.name)}", arg.dtype, (1,), None)
        for name in kernel.params:
            self.env[name] = Val(f"%{_safe(name)}", "i64")

    # Functions

    def phase(self, name: str, phase: Phase, asks: bool = False) -> str:
        """Print ``name(frame, low, high)``, which unpacks the frame, and the function it calls.

        Args:
            asks: whether streamed buffers may begin anywhere.
        """
        if asks:
            self.aligned = self.all_aligned()
        for loop in phase.loops:
            self.env.pop(loop.var.name, None)
        self.distances = ahead.distances(phase.loops, phase.body, self.host.cache_bytes[1])
        self.requests = meanwhile.requests(phase.loops, phase.body, self.host.cache_bytes[1])
        asked = {request.buffer for r in self.requests for request in r.wanted}
        self.distances = {at: n for at, n in self.distances.items() if at[1] not in asked}
        self.halved = alignment.halved(phase.loops, phase.body, self.distances, self.host.cache_bytes[0])
        for arg, rows in alignment.copied(phase.loops, phase.body, self.args) if self.halved else ():
            self.copy(arg, rows)
        if not phase.loops:
            self.body(phase.body)
        elif len(phase.loops) == 1:
            with self.loop(phase.loops[0].var, "%low", "%high", stored(phase.body), nonempty=True):
                self.walk(phase.loops[0])
        else:
            self.rows(phase)
        pointers = [(f"%{_safe(a.name)}", "ptr" + " noalias" * (a.mode != "in")) for a in self.args]
        words = [*pointers, *((f"%{_safe(p)}", "i64") for p in self.params)]
        takes = ", ".join([f"{kind} {ref}" for ref, kind in words] + ["i64 %low", "i64 %high"])
        passes = ", ".join([f"{kind} {ref}" for ref, kind in words] + ["i64 %low", "i64 %high"])
        dummy = f"{DUMMY} = alloca [{DUMMY_BYTES} x i8], align 64"
        zero = f"call void @llvm.memset.p0.i64(ptr {DUMMY}, i8 0, i64 {DUMMY_BYTES}, i1 false)"
        lines = self.scopes[0].lines
        if any(DUMMY in line for line in lines):
            self.declare("llvm.memset.p0.i64", "void", "ptr, i8, i64, i1")
            self.allocas += [dummy, zero]
        # stores past the cache are not ordered with those that tell other threads that the work is done
        fence = ["fence seq_cst"] if self.streamed else []
        body = [*self.allocas, *lines, *self.frees, *fence, "ret void"]
        return "\n".join(
            [
                f"define internal void @{name}.body({takes}) noinline #0 {{",
                "entry:",
                *body,
                "}",
                f"define internal void @{name}(ptr %frame, i64 %low, i64 %high) #0 {{",
                *self.unpack(),
                f"call void @{name}.body({passes})",
                "ret void",
                "}",
            ]
        )

    def copy(self, arg: Arg, rows: int) -> None:
        """Read an argument from a copy that begins at a line, if the argument does not and the range has rows enough.

        Args:
            rows: of each iteration of the phase.
        """
        assert isinstance(arg.size, Const)
        size, itemsize = int(arg.size.value), DTYPES[arg.dtype].itemsize
        lanes = min(size, self.host.vector_bytes // itemsize)
        given, made, kind = self.buffers[arg.name].ptr, self.fresh("m"), typed(MEMORY[arg.dtype], lanes)
        self.allocas.append(f"{made} = alloca [{size} x {MEMORY[arg.dtype]}], align 64")
        address = self.ins(f"ptrtoint ptr {given} to i64", "i64", 0)
        off = self.binary("and", address, self.const(self.host.vector_bytes - 1, "i64"))
        between = self.binary("icmp ne", off, self.const(0, "i64"), "bool")
        length = self.binary("sub", Val("%high", "i64"), Val("%low", "i64"))
        enough = self.binary("icmp sge", length, self.const(-(-alignment.ROWS // rows), "i64"), "bool")
        wanted = self.binary("and", between, enough)
        # the last vector may begin before the one before it ends
        count = self.choose(wanted, self.const(-(-size // lanes), "i64"), self.const(0, "i64"))
        self.declare("llvm.smin.i64", "i64", "i64, i64")
        with self.loop(None, "0", count.ref, set()) as row:
            at = self.fresh()
            ends = [self.fresh(), self.fresh()]
            self.put(f"{at}.all = mul i64 {row.ref}, {lanes}")
            self.put(f"{at} = call i64 @llvm.smin.i64(i64 {size - lanes}, i64 {at}.all)")
            for end, base in zip(ends, (given, made), strict=True):
                self.put(f"{end} = getelementptr {MEMORY[arg.dtype]}, ptr {base}, i64 {at}")
            self.put(f"{at}.v = load {kind}, ptr {ends[0]}, align {itemsize}")
            self.put(f"store {kind} {at}.v, ptr {ends[1]}, align {itemsize}")
        chosen = self.choose(wanted, Val(made, "ptr"), Val(given, "ptr"))
        self.buffers[arg.name] = Buffer(chosen.ref, arg.dtype, (1,), None)

    def unpack(self) -> list[str]:
        names = [(f"%{_safe(a.name)}", "ptr") for a in self.args] + [(f"%{_safe(p)}", "i64") for p in self.params]
        lines = []
        for k, (ref, kind) in enumerate(names):
            lines.append(f"{ref}.at = getelementptr i64, ptr %frame, i64 {k}")
            lines.append(f"{ref} = load {kind}, ptr {ref}.at, align 8")
        return lines

    def rows(self, phase: Phase) -> None:
        """Run the innermost loop over the part of each row that is in the range, dividing once a row."""
        *outer, inner = phase.loops
        extents = [self.emit(loop.extent) for loop in phase.loops]
        with self.loop(None, "%low", "%high", stored(phase.body), nonempty=True) as row:
            at = Val(row.ref, "i64", 0, len(self.scopes) - 1, len(self.scopes) - 1)
            rest = self.binary("udiv", at, extents[-1])
            first = self.binary("urem", at, extents[-1])
            self.declare("llvm.smin.i64", "i64", "i64, i64")
            left = self.binary("sub", Val("%high", "i64"), at)
            length = self.call("smin", "i64", self.binary("sub", extents[-1], first), left)
            for loop, extent in list(zip(outer, extents, strict=False))[:0:-1]:
                self.env[loop.var.name] = self.binary("urem", rest, extent)
                rest = self.binary("udiv", rest, extent)
            self.env[outer[0].var.name] = rest
            last = self.binary("add", first, length)
            with self.loop(inner.var, first.ref, last.ref, stored(phase.body), nonempty=True):
                self.walk(inner)
            row.step = length.ref

    def entry(self, parts: Sequence[Phase | Repetition]) -> str:
        """Print ``run(frame, pool)``."""
        words = len(self.args) + len(self.params)
        turns = max((len(part.turns) for part in every(parts)), default=0)
        frame = "%frame"
        if turns:
            # calls of one kernel may run at once: what counts the turns is each one's own
            frame = "%own"
            self.declare("llvm.memcpy.p0.p0.i64", "void", "ptr, ptr, i64, i1")
            self.put(f"%own = alloca [{words + turns} x i64], align 8")
            self.put(f"call void @llvm.memcpy.p0.p0.i64(ptr %own, ptr %frame, i64 {8 * words}, i1 false)")
        self.run(parts, frame, words)
        fork = [f"%fork.at = getelementptr i8, ptr %pool, i64 {FORK}", "%fork = load ptr, ptr %fork.at, align 8"]
        return "\n".join(
            [
                "define void @run(ptr %frame, ptr %pool) #0 {",
                "entry:",
                *self.unpack(),
                *fork,
                *self.scopes[0].lines,
                "ret void",
                "}",
            ]
        )

    def run(self, parts: Sequence[Phase | Repetition], frame: str, words: int) -> None:
        """Run phases in order; ``words`` of the frame are in use."""
        for part in parts:
            if isinstance(part, Repetition):
                self.again(part, frame, words)
                continue
            if not part.loops:
                self.put(f"call void @{part.name}(ptr {frame}, i64 0, i64 1)")
                continue
            total = Val("1", "i64")
            for loop in part.loops:
                total = self.index_op("mul", total, self.emit(loop.extent))
            params = (*self.params, *(loop.var.name for loop in part.turns))
            each = self.emit(work(part.loops, part.body, params, self.host.vector_bytes))
            function = f"@{part.name}"
            if self.streamed.keys() & stored(part.body) and not _asks(part):
                function = self.fresh("phase")
                self.put(f"{function} = select i1 {self.all_aligned().ref}, ptr @{part.name}.stream, ptr @{part.name}")
            self.put(f"call void %fork(ptr %pool, ptr {function}, ptr {frame}, i64 {total.ref}, i64 {each.ref})")

    def again(self, part: Repetition, frame: str, words: int) -> None:
        """Run what a loop repeats; its extent is read again before each turn."""
        loop, extent = part.loop, self.emit(part.loop.extent)
        with self.branch(self.binary("icmp sgt", extent, self.const(0, "i64"), "bool")):
            high = f"{self.fresh()}.high"
            with self.loop(loop.var, "0", high, stored(loop.body), nonempty=True) as row:
                at = self.fresh()
                self.put(f"{at} = getelementptr i64, ptr {frame}, i64 {words}")
                self.put(f"store i64 {row.ref}, ptr {at}, align 8")
                self.run(part.parts, frame, words + 1)
                self.put(f"{high} = add i64 {self.emit(loop.extent).ref}, 0")

    def all_aligned(self) -> Val:
        """Return whether all streamed buffers begin at a multiple of 64 bytes."""
        low = self.const(0, "i64")
        for name in sorted(self.streamed):
            address = self.ins(f"ptrtoint ptr {self.buffers[name].ptr} to i64", "i64", 0)
            low = self.binary("or", low, address)
        return self.binary("icmp eq", self.binary("and", low, self.const(63, "i64")), self.const(0, "i64"), "bool")

    # Control flow

    @contextlib.contextmanager
    def loop(self, var: Var | None, low: str, high: str, writes: set[str], nonempty: bool = False) -> Iterator[_Row]:
        """Loop over low .. high-1; the test is at the end, so what comes before the body runs only if the body does."""
        for buffer in writes:
            self.forget(buffer)
        n = self.fresh("")[1:]
        head, out, counter = f"loop{n}", f"done{n}", f"%i{n}"
        row = _Row(counter)
        entered = self.block
        with self.scope(None) as before:
            ahead = f"ahead{n}" if not nonempty else entered
            with self.scope(set(writes), "loop") as inside:
                depth = len(self.scopes) - 1
                if var is not None:
                    self.env[var.name] = Val(counter, "i64", 0, depth, depth)
                self.block = head
                yield row
            latch = self.block
        if not nonempty:
            self.put(f"%enter{n} = icmp slt i64 {low}, {high}")
            self.put(f"br i1 %enter{n}, label %{ahead}, label %{out}")
            self.put(f"{ahead}:")
        self.put_all(before)
        for line in (
            f"br label %{head}",
            f"{head}:",
            f"{counter} = phi i64 [ {low}, %{ahead} ], [ {counter}.next, %{latch} ]",
            *inside.lines,
            f"{counter}.next = add nuw nsw i64 {counter}, {row.step}",
            f"%again{n} = icmp slt i64 {counter}.next, {high}",
            f"br i1 %again{n}, label %{head}, label %{out}",
            f"{out}:",
        ):
            self.put(line)
        self.block = out

    @contextlib.contextmanager
    def branch(self, cond: Val) -> Iterator[None]:
        n = self.fresh("")[1:]
        with self.scope(None, "branch") as inside:
            self.block = f"then{n}"
            yield
        self.put(f"br i1 {cond.ref}, label %then{n}, label %end{n}")
        self.put(f"then{n}:")
        self.put_all(inside)
        self.put(f"br label %end{n}")
        self.put(f"end{n}:")
        self.block = f"end{n}"

    # Statements

    def body(self, body: Sequence[Stmt]) -> None:
        turns = self.turns(body)
        for stmt in body:
            match stmt:
                case Store() if stmt in turns:
                    self.take_turn(stmt, turns[stmt])
                case Let():
                    self.let(stmt)
                case Store():
                    self.store(stmt)
                case For():
                    self.loop_stmt(stmt)
                case If(cond, inner):
                    self.if_stmt(cond, inner)
                case Alloc():
                    self.alloc(stmt)

    def if_stmt(self, cond: Expr, body: tuple[Stmt, ...]) -> None:
        v = self.emit(cond)
        if v.ref == "true" or v.ref == "false":
            if v.ref == "true":
                self.body(body)
            return
        if not v.lanes:
            with self.branch(v):
                self.body(body)
            return
        before = self.mask, self.live
        mask = self.narrow(v)
        with self.branch(self.any_lane(mask)):
            self.mask, self.live = mask._replace(bind=len(self.scopes) - 1), True
            self.body(body)
        self.mask, self.live = before

    def loop_stmt(self, loop: For) -> None:
        static = loop.static
        if static is not None and static <= 0:
            return
        if loop.kind == "unroll" or static == 1:
            if static is None:
                raise self.refuse(f"the extent of unroll loop {loop.var.name!r} is not a constant")
            if self.tile(loop) or self.dot(loop):
                return
            together = abreast(loop) if self.lane is None else ()
            if together:
                self.body(together)
                return
            for k in range(static):
                self.once(loop, Val(str(k), "i64"))
        elif loop.kind == "vector" and self.lane is None and static is not None and static <= WIDEST:
            self.vector(loop, static)
        elif self.aligned is not None and ahead.vectors(loop.body) and self.passing(loop):
            self.either_loop(loop, self.aligned)
        else:
            self.serial(loop)

    def passing(self, loop: For) -> bool:
        """Whether lanes in a loop store past the cache."""
        lanes = [s for s in stmts(loop.body) if isinstance(s, For) and s.kind == "vector"]
        return any(isinstance(s, Store) and self.may_pass(s, v.var, v.static or 0) for v in lanes for s in v.body)

    def either_loop(self, loop: For, aligned: Val) -> None:
        """Ask once before a loop of vectors, which may be made together: stores that ask would part them."""
        before = self.aligned, self.streamed
        self.aligned = None
        with self.branch(aligned):
            self.serial(loop)
        self.streamed = NOTHING
        with self.branch(self.ins(f"xor i1 {aligned.ref}, true", "bool", 0, aligned)):
            self.serial(loop)
        self.aligned, self.streamed = before

    def once(self, loop: For, value: Val) -> None:
        """Run a loop's body in line for one value of its variable."""
        with self.scope(set()) as scope:
            self.env[loop.var.name] = value._replace(bind=len(self.scopes) - 1)
            self.body(loop.body)
        self.put_all(scope)

    def serial(self, loop: For) -> None:
        high = self.emit(loop.extent)
        if high.lanes:
            raise NotVectorError
        with self.loop(loop.var, "0", high.ref, stored(loop.body), nonempty=loop.static is not None):
            self.walk(loop)

    def walk(self, loop: For) -> None:
        """Emit the body of a loop, which may ask for what will be read."""
        for request in (r for asked in self.requests if asked.loop is loop for r in asked.wanted):
            pointer, _ = self.address(request.buffer, (request.at,))
            self.fetch(pointer, 0)
        before, self.walked = self.walked, loop.var if ahead.vectors(loop.body) else None
        self.body(loop.body)
        self.walked = before

    def vector(self, loop: For, lanes: int) -> None:
        block, depth = self.block, len(self.scopes)
        start = len(self.scopes[-1].lines)
        self.lane, self.lanes = loop.var, lanes
        try:
            self.once(loop, Val("<" + ", ".join(f"i64 {k}" for k in range(lanes)) + ">", "i64", lanes))
        except NotVectorError:
            # what was hoisted stays, unused; what control flow was finished here has to go
            self.waiting.clear()
            del self.scopes[depth:]
            self.block, self.lane, self.lanes, self.mask, self.live = block, None, 0, None, True
            self.discard(start)
            self.serial(loop)
        self.lane, self.lanes = None, 0

    def discard(self, start: int) -> None:
        """Forget the innermost scope's lines from ``start`` on."""
        scope = self.scopes[-1]
        del scope.lines[start:]
        scope.memo.clear()
        scope.values.clear()
        scope.loaded.clear()
        scope.readers.clear()

    def alloc(self, stmt: Alloc) -> None:
        if stmt.space == "global":
            raise self.refuse(f"global buffer {stmt.buffer!r} has to be an argument of mode 'scratch'")
        shape = []
        for e in stmt.shape:
            if not isinstance(e, Const):
                raise self.refuse(f"the shape of {stmt.space} buffer {stmt.buffer!r} is not constant")
            shape.append(int(e.value))
        lanes = self.lanes or 1
        strides = [lanes]
        for extent in reversed(shape[1:]):
            strides.append(strides[-1] * extent)
        # a vector that starts inside may end outside, in lanes that a mask turns off
        count = (max(1, math.prod(shape)) + (WIDEST if shape else 0)) * lanes
        nbytes = count * DTYPES[stmt.dtype].itemsize
        ref = self.fresh("m")
        if nbytes <= STACK_BYTES:
            self.allocas.append(f"{ref} = alloca [{count} x {MEMORY[stmt.dtype]}], align 64")
        else:
            self.declare("malloc", "ptr", "i64", " nounwind")
            self.declare("free", "void", "ptr", " nounwind")
            self.allocas += [
                f"{ref}.raw = call ptr @malloc(i64 {nbytes + 64})",
                f"{ref}.int = ptrtoint ptr {ref}.raw to i64",
                f"{ref}.up = add i64 {ref}.int, 63",
                f"{ref}.round = and i64 {ref}.up, -64",
                f"{ref} = inttoptr i64 {ref}.round to ptr",
            ]
            self.frees.append(f"call void @free(ptr {ref}.raw)")
        self.forget(stmt.buffer)
        self.buffers[stmt.buffer] = Buffer(
            ref, stmt.dtype, tuple(reversed(strides))[: len(shape)], tuple(shape), bool(self.lanes)
        )


class _Row:
    """A loop being emitted: its counter, and what is added to it each time."""

    __slots__ = ("ref", "step")

    def __init__(self, ref: str) -> None:
        self.ref = ref
        self.step = "1"


def _safe(name: str) -> str:
    """Spell a name of the kernel as LLVM allows, apart from the names made here."""
    return "k." + re.sub(r"[^A-Za-z0-9_]", lambda m: f"${ord(m[0]):x}.", name)
