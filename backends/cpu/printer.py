"""Kernels to LLVM IR.

Each phase of a kernel is a function over a range of its leading parallel loops' iterations, counted in row-major
order; ``run(frame, pool)`` runs the phases in order, each by the ``fork`` of ``kernelforge.backends.cpu.threads``.
``frame`` is an array of 8-byte words: the addresses of the buffers, then the params.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kernelforge.backends.cpu.exprs import DUMMY, DUMMY_BYTES, WIDEST, Exprs
from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.threads import FORK
from kernelforge.backends.cpu.values import MEMORY, Buffer, NotVectorError, Scope, Val, identity, suffix, typed
from kernelforge.backends.cpu.work import work
from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import free_vars
from kernelforge.ir.kernel import Alloc, Const, Expr, For, If, Kernel, Let, Op, Stmt, Store, Var, stmts

STACK_BYTES = 16 << 10
"""Buffers up to this size are on the stack; larger ones come from malloc for each range."""


class Phase(NamedTuple):
    """A nest of independent iterations: the loops that are split among threads, and what they run."""

    loops: tuple[For, ...]
    body: tuple[Stmt, ...]


def phases(kernel: Kernel) -> list[Phase]:
    """Cut a kernel's body into phases; a Let or an Alloc at the top makes one serial phase of all that follows it."""
    out: list[Phase] = []
    for k, stmt in enumerate(kernel.body):
        if isinstance(stmt, Let | Alloc):
            return [*out, Phase((), kernel.body[k:])]
        out.append(_nest(stmt))
    return out


def _nest(stmt: Stmt) -> Phase:
    loops: list[For] = []
    body: tuple[Stmt, ...] = (stmt,)
    while len(body) == 1 and isinstance(body[0], For) and body[0].kind in ("parallel", "grid"):
        loop = body[0]
        if any(outer.var in free_vars(loop.extent) for outer in loops):
            break
        loops.append(loop)
        body = loop.body
    return Phase(tuple(loops), body)


def stored(body: Sequence[Stmt]) -> set[str]:
    """Return the buffers that statements write."""
    return {s.buffer for s in stmts(body) if isinstance(s, Store)}


def print_kernel(kernel: Kernel, host: Host) -> str:
    """Return the text of an LLVM module that defines ``run``.

    Raises:
        CompilationFailed: for what the IR does not allow.
    """
    declared: dict[str, str] = {}
    parts = phases(kernel)
    functions = [_Function(kernel, host, declared).phase(f"phase{k}", part) for k, part in enumerate(parts)]
    functions.append(_Function(kernel, host, declared).entry(parts))
    wide = (
        f'"min-legal-vector-width"="{host.vector_bytes * 8}" "prefer-vector-width"="{host.vector_bytes * 8}" '
        if host.arch == "x86_64"
        else ""
    )
    attributes = f'attributes #0 = {{ nounwind {wide}"no-stack-arg-probe" "no-builtins" }}'
    return "\n".join([f"; {kernel.name}", *sorted(declared.values()), *functions, attributes, ""])


class _Function(Exprs):
    """Emits the statements of one function."""

    def __init__(self, kernel: Kernel, host: Host, declared: dict[str, str]) -> None:
        super().__init__(kernel.name, host, declared)
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

    def phase(self, name: str, phase: Phase) -> str:
        """Print ``name(frame, low, high)``, which unpacks the frame, and the function it calls."""
        for loop in phase.loops:
            self.env.pop(loop.var.name, None)
        if not phase.loops:
            self.body(phase.body)
        elif len(phase.loops) == 1:
            with self.loop(phase.loops[0].var, "%low", "%high", stored(phase.body), nonempty=True):
                self.body(phase.body)
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
        body = [*self.allocas, *lines, *self.frees, "ret void"]
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
                self.body(phase.body)
            row.step = length.ref

    def entry(self, parts: Sequence[Phase]) -> str:
        """Print ``run(frame, pool)``."""
        for k, part in enumerate(parts):
            if not part.loops:
                self.put(f"call void @phase{k}(ptr %frame, i64 0, i64 1)")
                continue
            total = Val("1", "i64")
            for loop in part.loops:
                total = self.index_op("mul", total, self.emit(loop.extent))
            each = self.emit(work(part.loops, part.body, self.params, self.host.vector_bytes))
            self.put(f"call void %fork(ptr %pool, ptr @phase{k}, ptr %frame, i64 {total.ref}, i64 {each.ref})")
        fork = [f"%fork.at = getelementptr i8, ptr %pool, i64 {FORK}", "%fork = load ptr, ptr %fork.at, align 8"]
        return "\n".join(
            [
                "define void @run(ptr %frame, ptr %pool) #0 {",
                *self.unpack(),
                *fork,
                *self.scopes[0].lines,
                "ret void",
                "}",
            ]
        )

    # Control flow

    @contextlib.contextmanager
    def scope(self, fixed: set[str] | None) -> Iterator[Scope]:
        """Collect instructions in a scope of their own; the caller places its lines."""
        env = dict(self.env)
        buffers = dict(self.buffers)
        scope = Scope(fixed)
        self.scopes.append(scope)
        depth = len(self.scopes)
        try:
            yield scope
        finally:
            del self.scopes[depth - 1 :]
            self.env, self.buffers = env, buffers

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
            with self.scope(set(writes)) as inside:
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
        with self.scope(None) as inside:
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
        for stmt in body:
            match stmt:
                case Let(name, value):
                    if name in self.env:
                        self.scopes[-1].memo.clear()
                    v = self.emit(value)
                    self.env[name] = v._replace(bind=len(self.scopes) - 1, reads=frozenset())
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
            for k in range(static):
                self.once(loop, Val(str(k), "i64"))
        elif loop.kind == "vector" and self.lane is None and static is not None and static <= WIDEST:
            self.vector(loop, static)
        else:
            self.serial(loop)

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
            self.body(loop.body)

    def vector(self, loop: For, lanes: int) -> None:
        block, depth = self.block, len(self.scopes)
        start = len(self.scopes[-1].lines)
        self.lane, self.lanes = loop.var, lanes
        try:
            self.once(loop, Val("<" + ", ".join(f"i64 {k}" for k in range(lanes)) + ">", "i64", lanes))
        except NotVectorError:
            # what was hoisted stays, unused; what control flow was finished here has to go
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

    # Stores

    def forget(self, buffer: str) -> None:
        """Let no value read from ``buffer`` outlive a store to it."""
        for scope in self.scopes:
            scope.forget(buffer)
            if scope.fixed is not None:
                scope.fixed.add(buffer)

    def store(self, stmt: Store) -> None:
        pointer, step = self.address(stmt.buffer, stmt.index)
        buffer = self.buffers[stmt.buffer]
        whole = self.whole(buffer, stmt.index, step)
        if step == 0 and self.lanes:
            self.store_uniform(stmt, pointer)
        elif step is None and stmt.op:
            self.combine_lanes(stmt, pointer, buffer)
        else:
            if stmt.op:
                old = self.load_at(stmt.buffer, pointer, step, None if whole else self.mask)
                new = self.combine(stmt.op, old, stmt.value)
            else:
                new = self.emit(stmt.value)
            self.write(buffer, stmt.buffer, pointer, step, new, whole)
        self.forget(stmt.buffer)

    def combine(self, op: str, old: Val, value: Expr) -> Val:
        """Return ``old op value``; a product is added with one rounding where the host has the instruction."""
        fused = op == "add" and old.dtype in ("f32", "f64") and self.host.fma
        if fused and isinstance(value, Op) and value.op == "mul":
            a, b = (self.emit(x) for x in value.args)
            return self.call("fma", old.dtype, a, b, old)
        return self.apply(op, [old, self.emit(value)])

    def store_uniform(self, stmt: Store, pointer: Val) -> None:
        """Combine all lanes into one element: lane k with lane k + n/2, and so on by halves, then with the element."""
        if not stmt.op or self.lanes & (self.lanes - 1):
            raise NotVectorError
        v = self.splat(self.emit(stmt.value), self.lanes)
        if self.mask is not None:
            neutral = self.splat(Val(identity(stmt.op, v.dtype), v.dtype), self.lanes)
            v = self.choose(self.mask, v, neutral)
        half = self.lanes // 2
        while half:
            low, high = (
                self.ins(
                    f"shufflevector {v.type} {v.ref}, {v.type} poison, <{half} x i32> <"
                    + ", ".join(f"i32 {k}" for k in range(first, first + half))
                    + ">",
                    v.dtype,
                    half,
                    v,
                )
                for first in (0, half)
            )
            v = self.apply(stmt.op, [low, high])
            half //= 2
        v = self.ins(f"extractelement {v.type} {v.ref}, i64 0", v.dtype, 0, v)
        mask, self.mask = self.mask, None
        old = self.load_at(stmt.buffer, pointer, 0, None)
        self.write(self.buffers[stmt.buffer], stmt.buffer, pointer, 0, self.apply(stmt.op, [old, v]))
        self.mask = mask

    def combine_lanes(self, stmt: Store, pointers: Val, buffer: Buffer) -> None:
        """Combine lane after lane, since two may meet in one element."""
        if self.mask is not None:
            raise NotVectorError
        v = self.splat(self.emit(stmt.value), self.lanes)
        for k in range(self.lanes):
            at = self.ins(f"extractelement {pointers.type} {pointers.ref}, i64 {k}", "ptr", 0, pointers)
            one = self.ins(f"extractelement {v.type} {v.ref}, i64 {k}", v.dtype, 0, v)
            old = self.load_at(stmt.buffer, at, 0, None)
            self.write(buffer, stmt.buffer, at, 0, self.apply(stmt.op, [old, one]))
            self.forget(stmt.buffer)

    def write(self, buffer: Buffer, name: str, pointer: Val, step: int | None, v: Val, whole: bool = False) -> None:
        """Store a value, or the lanes of it that the mask lets through."""
        scalar, align, lanes = MEMORY[buffer.dtype], DTYPES[buffer.dtype].itemsize, self.lanes
        if v.dtype != buffer.dtype:
            raise self.refuse(f"a value of {v.dtype} is stored to {name!r}, which holds {buffer.dtype}")
        if step == 0:
            if v.lanes:
                raise NotVectorError
            byte = self.memory(v)
            self.put(f"store {scalar} {byte.ref}, ptr {pointer.ref}, align {align}")
            return
        v = self.splat(v, lanes)
        mask = self.splat(self.mask, lanes) if self.mask is not None else None
        if step == -1:
            v, mask = self.reversed(v), self.reversed(mask) if mask is not None else None
            pointer = self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, i64 {1 - lanes}", "ptr", 0, pointer)
        kind = typed(scalar, lanes)
        if mask is not None and whole:
            # a blend, which SROA turns into registers
            old = self.loaded(
                self.read(name, f"load {kind}, ptr {pointer.ref}, align {align}", buffer.dtype, lanes, pointer)
            )
            v, mask = self.choose(mask, v, old), None
        byte = self.memory(v)
        if step in (1, -1) and mask is None:
            self.put(f"store {kind} {byte.ref}, ptr {pointer.ref}, align {align}")
        elif step in (1, -1):
            assert mask is not None
            fn = f"llvm.masked.store.{suffix(scalar, lanes)}.p0"
            self.declare(fn, "void", f"{kind}, ptr, i32, <{lanes} x i1>")
            self.put(f"call void @{fn}({kind} {byte.ref}, ptr {pointer.ref}, i32 {align}, <{lanes} x i1> {mask.ref})")
        else:
            ptrs = pointer if step is None else self.lane_pointers(pointer, step, scalar)
            on = mask if mask is not None else self.splat(self.const(True, "bool"), lanes)
            fn = f"llvm.masked.scatter.{suffix(scalar, lanes)}.{suffix('ptr', lanes)}"
            self.declare(fn, "void", f"{kind}, <{lanes} x ptr>, i32, <{lanes} x i1>")
            self.put(
                f"call void @{fn}({kind} {byte.ref}, <{lanes} x ptr> {ptrs.ref}, i32 {align}, <{lanes} x i1> {on.ref})"
            )

    def memory(self, v: Val) -> Val:
        """Turn a value into what is stored: a bool's bit into a byte."""
        return (
            self.ins(f"zext {v.type} {v.ref} to {typed('i8', v.lanes)}", "u8", v.lanes, v) if v.dtype == "bool" else v
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
