"""SSA values and scopes: where instructions are put, and the ones that arithmetic and memory share.

An instruction is put into the outermost open scope that has its operands, and one that is there already is
not written again. So loop-invariant code and common subexpressions cost no passes of the compiler.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Literal, NamedTuple

import numpy as np

from kernelforge.backends.cpu.host import Host
from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS
from kernelforge.errors import CompilationFailed
from kernelforge.ir.kernel import Expr

REGISTER = {
    "bool": "i1", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64", "u8": "i8", "u16": "i16", "u32": "i32",
    "u64": "i64", "f16": "half", "bf16": "i16", "f32": "float", "f64": "double", "ptr": "ptr",
}  # fmt: skip
"""The LLVM type of a value of each dtype."""
MEMORY = REGISTER | {"bool": "i8"}
"""The LLVM type of an element in memory; a bfloat16 is its bits in both."""
_SUFFIX = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}


class NotVectorError(Exception):
    """Raised inside a vector loop that has no vector form; it is then printed as the serial loop that it means."""


class Val(NamedTuple):
    """An SSA value or a literal.

    Attributes:
        ref: its name or spelling.
        lanes: 0 for a scalar.
        level: depth of the scope that defines it.
        bind: depth of the innermost scope whose variables or memory it depends on.
        reads: the buffers whose elements went into it.
    """

    ref: str
    dtype: str
    lanes: int = 0
    level: int = 0
    bind: int = 0
    reads: frozenset[str] = frozenset()

    @property
    def literal(self) -> int | None:
        return int(self.ref) if self.dtype == "i64" and self.ref.lstrip("-").isdigit() else None

    @property
    def type(self) -> str:
        return typed(REGISTER[self.dtype], self.lanes)


ScopeKind = Literal["", "loop", "branch"]


class Scope:
    """Instructions being collected: a body of statements, or an arm of a ``select``.

    ``fixed`` names the buffers whose loads must stay inside; None stands for every buffer. ``kind`` tells what runs the
    instructions more or less often than those around: out of a loop goes what it does not change, out of a branch
    nothing else.
    """

    __slots__ = ("fixed", "kind", "lines", "loaded", "memo", "readers", "values")

    def __init__(self, fixed: set[str] | None, kind: ScopeKind = "") -> None:
        self.fixed = fixed
        self.kind = kind
        self.lines: list[str] = []
        self.memo: dict[Expr, Val] = {}
        self.values: dict[str, str] = {}
        self.loaded: dict[str, dict[str, str]] = {}
        self.readers: dict[str, list[Expr]] = {}

    def forget(self, buffer: str) -> None:
        """Drop what was read from ``buffer``, which is about to change."""
        self.loaded.pop(buffer, None)
        for expr in self.readers.pop(buffer, ()):
            self.memo.pop(expr, None)


@dataclasses.dataclass(frozen=True, slots=True)
class Buffer:
    """``strides`` in elements; an argument has no ``shape``; ``private``: each lane has its own elements."""

    ptr: str
    dtype: str
    strides: tuple[int, ...]
    shape: tuple[int, ...] | None
    private: bool = False


def typed(scalar: str, lanes: int) -> str:
    return f"<{lanes} x {scalar}>" if lanes else scalar


def suffix(scalar: str, lanes: int) -> str:
    """Spell a type as intrinsic names do."""
    return (f"v{lanes}" if lanes else "") + _SUFFIX.get(scalar, scalar)


def literal(value: float, dtype: str) -> str:
    """Spell a constant."""
    if dtype == "bool":
        return "true" if value else "false"
    if dtype in INTEGERS:
        return str(int(value))
    if dtype == "bf16":
        return str(int(DTYPES["bf16"].type(value).view(np.uint16)))
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return f"0xH{int(np.float16(value).view(np.uint16)):04X}"
    with np.errstate(over="ignore"):
        exact = float(np.float32(value)) if dtype == "f32" else float(value)
    return f"0x{struct.pack('>d', exact).hex().upper()}"


def identity(op: str, dtype: str) -> str:
    """Spell the element that combining with ``op`` leaves as it is."""
    if op in ("add", "mul"):
        return literal((-0.0 if op == "add" else 1.0) if dtype in FLOATS else (0 if op == "add" else 1), dtype)
    low = op == "max"
    if dtype in FLOATS:
        return literal(-math.inf if low else math.inf, dtype)
    if dtype == "bool":
        return literal(not low, dtype)
    info = np.iinfo(DTYPES[dtype])
    return literal(int(info.min if low else info.max), dtype)


class Values:
    """Emits instructions of one function into its open scopes."""

    def __init__(self, kernel: str, host: Host, declared: dict[str, str]) -> None:
        self.kernel = kernel
        self.host = host
        self.declared = declared
        self.scopes: list[Scope] = [Scope(None)]
        self.names = 0

    def refuse(self, problem: str) -> CompilationFailed:
        return CompilationFailed(kernel=self.kernel, device="cpu", log=problem, source="")

    def fresh(self, stem: str = "v") -> str:
        self.names += 1
        return f"%{stem}{self.names}"

    def put(self, line: str) -> None:
        self.scopes[-1].lines.append(line)

    def declare(self, name: str, result: str, args: str, attributes: str = "") -> None:
        self.declared.setdefault(name, f"declare {result} @{name}({args}){attributes}")

    def ins(self, rhs: str, dtype: str, lanes: int, *operands: Val) -> Val:
        """Return the value of a pure instruction, written where its operands are known."""
        level = bind = 0
        reads: frozenset[str] = frozenset()
        for o in operands:
            if o.level > level:
                level = o.level
            if o.bind > bind:
                bind = o.bind
            reads = reads | o.reads if o.reads else reads
        level = self.inside(level, rhs)
        scope = self.scopes[level]
        ref = scope.values.get(rhs)
        if ref is None:
            ref = scope.values[rhs] = self.fresh()
            scope.lines.append(f"{ref} = {rhs}")
        bind = max(bind, level) if scope.kind == "branch" else bind
        return Val(ref, dtype, lanes, level, bind, reads)

    def inside(self, level: int, rhs: str) -> int:
        """Return where to put an instruction whose operands are known in the scope ``level``: there, or in the
        innermost branch inside of it, unless a loop is between or the instruction is there already.
        """
        place = level
        for k in range(level, len(self.scopes)):
            scope = self.scopes[k]
            if rhs in scope.values:
                return k
            if k > level and scope.kind == "loop":
                break
            if scope.kind == "branch":
                place = k
        return place

    def const(self, value: float, dtype: str, lanes: int = 0) -> Val:
        ref = literal(value, dtype)
        return Val(f"splat ({REGISTER[dtype]} {ref})" if lanes else ref, dtype, lanes)

    def splat(self, v: Val, lanes: int) -> Val:
        """Give every lane the value; a vector stays as it is."""
        if v.lanes or not lanes:
            return v
        scalar = REGISTER[v.dtype]
        if not v.ref.startswith("%"):
            return v._replace(ref=f"splat ({scalar} {v.ref})", lanes=lanes)
        one = self.ins(f"insertelement <{lanes} x {scalar}> poison, {scalar} {v.ref}, i64 0", v.dtype, lanes, v)
        shape = f"<{lanes} x {scalar}>"
        return self.ins(
            f"shufflevector {shape} {one.ref}, {shape} poison, <{lanes} x i32> zeroinitializer", v.dtype, lanes, one
        )

    def same(self, *values: Val) -> tuple[int, list[Val]]:
        """Bring operands to one number of lanes."""
        lanes = max(v.lanes for v in values)
        return lanes, [self.splat(v, lanes) for v in values]

    def call(self, intrinsic: str, dtype: str, *values: Val, flag: str = "", fast: str = "") -> Val:
        """Call an LLVM intrinsic overloaded on its one operand type.

        ``flag`` is a last i1 operand, ``fast`` are fast-math flags.
        """
        lanes, vs = self.same(*values)
        kind = typed(REGISTER[values[0].dtype], lanes)
        name = f"llvm.{intrinsic}.{suffix(REGISTER[values[0].dtype], lanes)}"
        self.declare(name, kind, ", ".join([kind] * len(vs) + ["i1"] * bool(flag)))
        args = ", ".join([f"{kind} {v.ref}" for v in vs] + ([f"i1 {flag}"] if flag else []))
        return self.ins(f"call {fast}{kind} @{name}({args})", dtype, lanes, *vs)

    def binary(self, instruction: str, a: Val, b: Val, dtype: str | None = None) -> Val:
        lanes, (x, y) = self.same(a, b)
        return self.ins(f"{instruction} {x.type} {x.ref}, {y.ref}", dtype or a.dtype, lanes, x, y)

    def choose(self, cond: Val, a: Val, b: Val) -> Val:
        lanes = max(cond.lanes, a.lanes, b.lanes)
        x, y = self.splat(a, lanes), self.splat(b, lanes)
        return self.ins(
            f"select {cond.type} {cond.ref}, {x.type} {x.ref}, {y.type} {y.ref}", a.dtype, lanes, cond, x, y
        )

    def index_op(self, name: str, a: Val, b: Val) -> Val:
        """Add or multiply two i64 scalars, folding literals."""
        x, y = a.literal, b.literal
        if x is not None and y is not None:
            bind = max(a.bind, b.bind)
            return Val(str(x + y if name == "add" else x * y), "i64", bind=bind)
        neutral = 0 if name == "add" else 1
        if x == neutral or y == neutral:
            keep, gone = (b, a) if x == neutral else (a, b)
            return keep._replace(bind=max(keep.bind, gone.bind))
        return self.binary(name, a, b)

    def reversed(self, v: Val) -> Val:
        order = ", ".join(f"i32 {k}" for k in range(v.lanes - 1, -1, -1))
        return self.ins(
            f"shufflevector {v.type} {v.ref}, {v.type} poison, <{v.lanes} x i32> <{order}>", v.dtype, v.lanes, v
        )

    def put_all(self, scope: Scope) -> None:
        """Append the instructions of a scope without control flow to the one around it."""
        self.scopes[-1].lines.extend(scope.lines)
