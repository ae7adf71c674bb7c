"""Stores and combinations to LLVM IR."""

from __future__ import annotations

import math

from kernelforge.backends.cpu.exprs import Exprs
from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.values import MEMORY, Buffer, NotVectorError, Val, identity, suffix, typed
from kernelforge.dtypes import DTYPES
from kernelforge.ir.cost import Streamed
from kernelforge.ir.index import poly
from kernelforge.ir.interleaved import windows
from kernelforge.ir.kernel import Expr, Op, Store, Var
from kernelforge.ir.schedule.limits import LINE, NEAR


class Stores(Exprs):
    """Emits stores; those to ``streamed`` buffers past the cache where they can.

    Attributes:
        aligned: whether streamed buffers begin at a multiple of 64 bytes, where each store asks; None where they do.
    """

    def __init__(self, kernel: str, host: Host, declared: dict[str, str], streamed: Streamed) -> None:
        super().__init__(kernel, host, declared)
        self.streamed = streamed
        self.aligned: Val | None = None

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
            self.write(buffer, stmt.buffer, pointer, step, new, whole, self.past_cache(stmt, step))
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

    def past_cache(self, stmt: Store, step: int | None) -> bool:
        """Whether to store past the cache: the buffer is streamed, and whole vectors go to multiples of their size.

        That streamed buffers begin at a multiple of 64 bytes is asked by ``run`` or by each store.
        """
        if step != 1 or self.mask is not None or self.lane is None:
            return False
        return self.may_pass(stmt, self.lane, self.lanes)

    def may_pass(self, stmt: Store, lane: Var, lanes: int) -> bool:
        """Whether what lanes store one after the other may go past the cache."""
        width = DTYPES[stmt.value.dtype].itemsize
        if stmt.op or lanes * width < self.streamed.get(stmt.buffer, math.inf):
            return False
        unit = min(lanes, LINE // width)
        return lanes % unit == 0 and all(c % unit == 0 for m, c in poly(stmt.index[0]).items() if m != (lane,))

    def write(
        self,
        buffer: Buffer,
        name: str,
        pointer: Val,
        step: int | None,
        v: Val,
        whole: bool = False,
        stream: bool = False,
    ) -> None:
        """Store a value, or the lanes of it that the mask lets through.

        Args:
            whole: whether the lanes that the mask turns off may be written back as they are.
            stream: whether to store past the cache, see ``past_cache``; if ``aligned``, where that is asked.
        """
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
        if step is not None and 1 < step <= NEAR:
            before = self.mask
            on = self.splat(self.const(True, "bool") if before is None else before, lanes)
            for first, places in windows(step, lanes):
                self.mask = self.spread(on, places)
                self.write(buffer, name, self.ahead(pointer, first, scalar), 1, self.spread(v, places))
            self.mask = before
            return
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
            through = f"store {kind} {byte.ref}, ptr {pointer.ref}, align {align}"
            past = f"store {kind} {byte.ref}, ptr {pointer.ref}, align {min(align * lanes, 64)}, !nontemporal !0"
            if stream and self.aligned is not None:
                self.either(self.aligned, past, through)
            else:
                self.put(past if stream else through)
        elif step in (1, -1):
            assert mask is not None
            if scalar in ("i8", "i16"):
                # LLVM stores 32 bits where it knows that one lane is on and narrows the value itself
                some = self.splat(self.ins("icmp sgt i64 %low, -1", "bool", 0), lanes)
                mask = self.ins(f"and {mask.type} {mask.ref}, {some.ref}", "bool", lanes, mask)
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

    def either(self, aligned: Val, past: str, through: str) -> None:
        """Store past the cache if ``aligned``, which is likely, else through it."""
        n = self.fresh("")[1:]
        self.put(f"br i1 {aligned.ref}, label %past{n}, label %through{n}, !prof !1")
        for label, line in ((f"past{n}", past), (f"through{n}", through)):
            self.put(f"{label}:")
            self.put(line)
            self.put(f"br label %stored{n}")
        self.put(f"stored{n}:")
        self.block = f"stored{n}"

    def memory(self, v: Val) -> Val:
        """Turn a value into what is stored: a bool's bit into a byte."""
        return (
            self.ins(f"zext {v.type} {v.ref} to {typed('i8', v.lanes)}", "u8", v.lanes, v) if v.dtype == "bool" else v
        )
