"""LLVM IR of the limits: loops that only move bytes, and chains of multiply-adds that stay in registers."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm

from kernelforge.bench.peers.limit import UNROLL

Fn = Callable[..., Any]
LANES = {"f32": ("float", 4), "f64": ("double", 8)}
CHAINS = {16: 12, 32: 24}
"""Independent chains by number of vector registers: enough to hide the latency of two units."""


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What the loops are written for: bytes of a vector, how many registers, whether bf16 dots are instructions."""

    width: int
    registers: int
    bf16: bool

    @staticmethod
    @functools.cache
    def here() -> Host:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
        wide, x86 = features.get("avx512f", False), platform.machine().lower() in {"x86_64", "amd64"}
        width = 64 if wide else 32 if features.get("avx2", False) else 16
        return Host(width, 32 if wide or not x86 else 16, wide and features.get("avx512bf16", False))

    def mover(self, reads: int, writes: int, streaming: bool, ahead: int = 0) -> Fn:
        """Return f(source, target, each, low, high, repeat).

        It reads bytes low to high, multiples of UNROLL vectors, of each of the source's streams, which lie ``each``
        bytes apart, and writes the same of the target's, ``repeat`` times. It asks for lines ``ahead`` bytes before.
        """
        name = f"move{reads}{writes}{'s' * streaming}{'a' * (ahead > 0)}"
        text = _mover(name, self.width, reads, writes, streaming, ahead)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        return ctypes.CFUNCTYPE(None, pointer, pointer, number, number, number, number)(_load(name, text, self.width))

    def chains(self, dtype: str) -> tuple[Fn, float]:
        """Return f(sink, turns), and the flops of a turn."""
        chains = CHAINS[self.registers]
        if dtype == "bf16" and self.bf16:
            kind, lanes, flops = "float", self.width // 4, self.width
        else:
            kind, size = LANES.get(dtype, LANES["f32"])
            lanes = self.width // size
            flops = 2 * lanes
        text = _chains(lanes, kind, chains, dtype == "bf16" and self.bf16)
        fn = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(_load("chains", text, self.width))
        return fn, float(flops * chains)


def _mover(name: str, width: int, reads: int, writes: int, streaming: bool, ahead: int) -> str:
    vector = f"<{width // 4} x float>"
    where = f"align {width}" + (", !nontemporal !0" if streaming else "")
    slots = [(s, u) for s in range(reads) for u in range(UNROLL)] if not writes else []
    lines = [
        f"define void @{name}(ptr %source, ptr %target, i64 %each, i64 %low, i64 %high, i64 %repeat) #0 {{",
        "entry:\n br label %round",
        "round:",
        " %r = phi i64 [0, %entry], [%r.next, %last]",
        *(f" %first.{s}.{u} = phi {vector} [zeroinitializer, %entry], [%sum.{s}.{u}, %last]" for s, u in slots),
        " br label %loop",
        "loop:",
        " %i = phi i64 [%low, %round], [%i.next, %loop]",
        *(f" %acc.{s}.{u} = phi {vector} [%first.{s}.{u}, %round], [%sum.{s}.{u}, %loop]" for s, u in slots),
    ]
    for side, count in (("source", reads), ("target", writes)):
        for s in range(count):
            lines += [
                f" %{side}.{s}.off = mul i64 %each, {s}",
                f" %{side}.{s}.at = add i64 %{side}.{s}.off, %i",
                f" %{side}.{s} = getelementptr i8, ptr %{side}, i64 %{side}.{s}.at",
            ]
    for u in range(UNROLL):
        value = "splat (float 1.0)"
        for s in range(reads):
            lines += [
                f" %p.{s}.{u} = getelementptr i8, ptr %source.{s}, i64 {u * width}",
                f" %x.{s}.{u} = load {vector}, ptr %p.{s}.{u}, align {width}",
            ]
            if ahead:
                lines += [
                    f" %ahead.{s}.{u} = getelementptr i8, ptr %source.{s}, i64 {u * width + ahead}",
                    f" call void @llvm.prefetch.p0(ptr %ahead.{s}.{u}, i32 0, i32 3, i32 1)",
                ]
            if not writes:
                lines.append(f" %sum.{s}.{u} = fadd {vector} %acc.{s}.{u}, %x.{s}.{u}")
            elif s:
                lines.append(f" %v.{s}.{u} = fadd {vector} {value}, %x.{s}.{u}")
                value = f"%v.{s}.{u}"
            else:
                value = f"%x.{s}.{u}"
        for s in range(writes):
            lines += [
                f" %q.{s}.{u} = getelementptr i8, ptr %target.{s}, i64 {u * width}",
                f" store {vector} {value}, ptr %q.{s}.{u}, {where}",
            ]
    lines += [
        f" %i.next = add i64 %i, {UNROLL * width}",
        " %more = icmp slt i64 %i.next, %high",
        " br i1 %more, label %loop, label %last",
        "last:",
        " %r.next = add i64 %r, 1",
        " %again = icmp slt i64 %r.next, %repeat",
        " br i1 %again, label %round, label %done",
        "done:",
        *(f" store {vector} %sum.{s}.{u}, ptr %target, align {width}" for s, u in slots),
        " ret void\n}",
    ]
    return "\n".join([*lines, "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)", "!0 = !{i32 1}"])


def _chains(lanes: int, kind: str, chains: int, dots: bool) -> str:
    vector = f"<{lanes} x {kind}>"
    if dots:
        call, pair = "@llvm.x86.avx512bf16.dpbf16ps.512", "<32 x bfloat>"
        declared = f"declare {vector} {call}({vector}, {pair}, {pair})"
        step = f"call {vector} {call}({vector} %a.{{c}}, {pair} %x, {pair} %x)"
        given = f" %x = load {pair}, ptr %sink, align 1"
    else:
        call = f"@llvm.fma.v{lanes}f{64 if kind == 'double' else 32}"
        declared = f"declare {vector} {call}({vector}, {vector}, {vector})"
        step = f"call {vector} {call}({vector} %a.{{c}}, {vector} %x, {vector} %x)"
        given = f" %x = load {vector}, ptr %sink, align 1"
    return "\n".join([
        declared,
        "define void @chains(ptr %sink, i64 %turns) #0 {\nentry:",
        given,
        " br label %loop\nloop:",
        " %i = phi i64 [0, %entry], [%i.next, %loop]",
        *(f" %a.{c} = phi {vector} [zeroinitializer, %entry], [%b.{c}, %loop]" for c in range(chains)),
        *(f" %b.{c} = {step.format(c=c)}" for c in range(chains)),
        " %i.next = add i64 %i, 1",
        " %more = icmp slt i64 %i.next, %turns",
        " br i1 %more, label %loop, label %done\ndone:",
        *(f" %at.{c} = getelementptr {vector}, ptr %sink, i64 {c + 1}" for c in range(chains)),
        *(f" store {vector} %b.{c}, ptr %at.{c}, align 1" for c in range(chains)),
        " ret void\n}",
    ])  # fmt: skip


_KEPT: list[Any] = []


def _load(name: str, text: str, width: int) -> int:
    """Compile a module as it stands and return the address of its function."""
    bits = width * 8
    attributes = f'"min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}"'
    module = llvm.parse_assembly(f"{text}\nattributes #0 = {{ nounwind {attributes} }}\n")
    module.verify()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _KEPT.append(engine)
    return int(engine.get_function_address(name))
