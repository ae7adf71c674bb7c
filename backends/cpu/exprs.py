"""Expressions to LLVM IR: values, where their instructions are put, and what each operation becomes.

An instruction is put into the outermost open scope that has its operands, and one that is there already is
not written again. So loop-invariant code and common subexpressions cost no passes of the compiler.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from typing import NamedTuple

import numpy as np

from kernelforge.backends.cpu.host import Host
from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS, NARROW_FLOATS, SIGNED
from kernelforge.errors import CompilationFailed
from kernelforge.ir.index import affine, bounds, free_vars, poly
from kernelforge.ir.kernel import COMPARE, MATH_BINARY, MATH_UNARY, Const, Expr, Load, Op, Var, i64

REGISTER = {
    "bool": "i1", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64", "u8": "i8", "u16": "i16", "u32": "i32", "u64": "i64",
    "f16": "half", "bf16": "i16", "f32": "float", "f64": "double", "ptr": "ptr",
}  # fmt: skip
"""The LLVM type of a value of each dtype."""
MEMORY = REGISTER | {"bool": "i8"}
"""The LLVM type of an element in memory; a bfloat16 is its bits in both."""
_SUFFIX = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}
DUMMY = "%dummy"
"""Zeros on the stack: what a load that must not happen reads instead. Wide enough for the widest vector."""
DUMMY_BYTES = 512
WIDEST = 64
"""Most lanes of a vector loop that is printed as vectors; more are run as a serial loop."""

LIBRARY = {name: name for name in MATH_UNARY + MATH_BINARY}
"""Names in the C library, for f64; those for f32 end in ``f``."""

_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv", "fmod": "frem"}
_INT_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor", "shl": "shl"}
_COMPARE_SIGNED = {"lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge", "eq": "eq", "ne": "ne"}
_COMPARE_UNSIGNED = {"lt": "ult", "le": "ule", "gt": "ugt", "ge": "uge", "eq": "eq", "ne": "ne"}
_COMPARE_FLOAT = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_FLOAT_INTRINSIC = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"}


class NotVector(Exception):
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


class Scope:
    """Instructions being collected: a body of statements, or an arm of a ``select``.

    ``fixed`` names the buffers whose loads must stay inside; None stands for every buffer.
    """

    __slots__ = ("fixed", "lines", "loaded", "memo", "readers", "values")

    def __init__(self, fixed: set[str] | None) -> None:
        self.fixed = fixed
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
    """``strides`` in elements; an argument has no ``shape``; ``private``: each lane has its own elements, side by side."""

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


@functools.lru_cache(maxsize=1 << 16)
def loads(expr: Expr) -> bool:
    """Whether evaluating ``expr`` reads memory."""
    if isinstance(expr, Op):
        return any(loads(a) for a in expr.args)
    return isinstance(expr, Load)


class Exprs:
    """Emits the expressions of one function into its open scopes."""

    def __init__(self, kernel: str, host: Host, declared: dict[str, str]) -> None:
        self.kernel = kernel
        self.host = host
        self.declared = declared
        self.scopes: list[Scope] = [Scope(None)]
        self.env: dict[str, Val] = {}
        self.buffers: dict[str, Buffer] = {}
        self.lane: Var | None = None
        self.lanes = 0
        self.mask: Val | None = None
        self.live = True  # whether at least one lane of the mask is known to be on
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

    # Values

    def ins(self, rhs: str, dtype: str, lanes: int, *operands: Val) -> Val:
        """Return the value of a pure instruction, written where its operands are known."""
        level = max((o.level for o in operands), default=0)
        bind = max((o.bind for o in operands), default=0)
        scope = self.scopes[level]
        ref = scope.values.get(rhs)
        if ref is None:
            ref = scope.values[rhs] = self.fresh()
            scope.lines.append(f"{ref} = {rhs}")
        reads = frozenset().union(*(o.reads for o in operands if o.reads))
        return Val(ref, dtype, lanes, level, bind, reads)

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
        return self.ins(f"shufflevector {shape} {one.ref}, {shape} poison, <{lanes} x i32> zeroinitializer", v.dtype, lanes, one)

    def same(self, *values: Val) -> tuple[int, list[Val]]:
        """Bring operands to one number of lanes."""
        lanes = max(v.lanes for v in values)
        return lanes, [self.splat(v, lanes) for v in values]

    def call(self, intrinsic: str, dtype: str, *values: Val, flag: str = "") -> Val:
        """Call an LLVM intrinsic overloaded on its one operand type; ``flag`` is a last i1 operand."""
        lanes, vs = self.same(*values)
        kind = typed(REGISTER[values[0].dtype], lanes)
        name = f"llvm.{intrinsic}.{suffix(REGISTER[values[0].dtype], lanes)}"
        self.declare(name, kind, ", ".join([kind] * len(vs) + ["i1"] * bool(flag)))
        args = ", ".join([f"{kind} {v.ref}" for v in vs] + ([f"i1 {flag}"] if flag else []))
        return self.ins(f"call {kind} @{name}({args})", dtype, lanes, *vs)

    def binary(self, instruction: str, a: Val, b: Val, dtype: str | None = None) -> Val:
        lanes, (x, y) = self.same(a, b)
        return self.ins(f"{instruction} {x.type} {x.ref}, {y.ref}", dtype or a.dtype, lanes, x, y)

    def choose(self, cond: Val, a: Val, b: Val) -> Val:
        lanes = max(cond.lanes, a.lanes, b.lanes)
        x, y = self.splat(a, lanes), self.splat(b, lanes)
        return self.ins(f"select {cond.type} {cond.ref}, {x.type} {x.ref}, {y.type} {y.ref}", a.dtype, lanes, cond, x, y)

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

    # Expressions

    def emit(self, e: Expr) -> Val:
        if isinstance(e, Const):
            return self.const(e.value, e.dtype)
        if isinstance(e, Var):
            return self.variable(e)
        for scope in reversed(self.scopes):
            known = scope.memo.get(e)
            if known is not None:
                return known
        v = self.load(e) if isinstance(e, Load) else self.operation(e) if isinstance(e, Op) else None
        assert v is not None
        scope = self.scopes[v.bind]
        scope.memo[e] = v
        for buffer in v.reads:
            scope.readers.setdefault(buffer, []).append(e)
        return v

    def variable(self, e: Var) -> Val:
        found = self.env.get(e.name)
        if found is None:
            raise self.refuse(f"variable {e.name!r} is not defined where it is used")
        return found

    def operation(self, e: Op) -> Val:
        if e.op == "select":
            return self.select(e)
        if e.op == "cast":
            return self.cast(self.emit(e.args[0]), e.dtype)
        if e.op == "bitcast":
            v = self.emit(e.args[0])
            if REGISTER[v.dtype] == REGISTER[e.dtype]:
                return v._replace(dtype=e.dtype)
            if "bool" in (v.dtype, e.dtype):
                return self.cast(v, e.dtype)
            return self.ins(f"bitcast {v.type} {v.ref} to {typed(REGISTER[e.dtype], v.lanes)}", e.dtype, v.lanes, v)
        if e.op in ("floordiv", "mod") and e.dtype in INTEGERS:
            return self.divide(e)
        return self.apply(e.op, [self.emit(a) for a in e.args], e.args)

    def apply(self, name: str, args: list[Val], exprs: tuple[Expr, ...] = ()) -> Val:
        """Apply an operation other than select, cast, bitcast and integer division."""
        dtype = args[0].dtype
        if dtype in NARROW_FLOATS:
            wide = self.apply(name, [self.cast(a, "f32") for a in args], exprs)
            return wide if name in COMPARE else self.cast(wide, dtype)
        if name in COMPARE:
            table = _COMPARE_FLOAT if dtype in FLOATS else _COMPARE_SIGNED if dtype in SIGNED else _COMPARE_UNSIGNED
            return self.binary(f"{'fcmp' if dtype in FLOATS else 'icmp'} {table[name]}", args[0], args[1], "bool")
        v = self.float_op(name, args) if dtype in FLOATS else self.int_op(name, args)
        if v is None:
            raise self.refuse(f"operation {name!r} is not defined for {dtype}")
        return v

    def float_op(self, name: str, args: list[Val]) -> Val | None:
        a = args[0]
        if name in _FLOAT_BINARY:
            return self.binary(_FLOAT_BINARY[name], a, args[1]) if name != "fmod" else self.library(name, args)
        if name in _FLOAT_INTRINSIC:
            return self.call(_FLOAT_INTRINSIC[name], a.dtype, a)
        if name == "neg":
            return self.ins(f"fneg {a.type} {a.ref}", a.dtype, a.lanes, a)
        if name in ("min", "max"):
            return self.extremum(name, a, args[1])
        if name == "fma":
            return self.call("fma", a.dtype, *args)
        return self.library(name, args) if name in LIBRARY else None

    def extremum(self, name: str, a: Val, b: Val) -> Val:
        """Take the smaller or greater; a NaN in either operand is the result.

        ``a < b ? a : b`` is one x86 instruction and gives ``b`` for a NaN in either, so a constant goes first and needs no repair.
        """
        if self.host.arch == "aarch64":
            return self.call("minimum" if name == "min" else "maximum", a.dtype, a, b)
        if not b.ref.startswith("%"):
            a, b = b, a
        known = not a.ref.startswith("%") and a.ref != literal(math.nan, a.dtype)
        picked = self.choose(self.binary(f"fcmp {'olt' if name == 'min' else 'ogt'}", a, b, "bool"), a, b)
        return picked if known else self.choose(self.binary("fcmp uno", a, a, "bool"), a, picked)

    def library(self, name: str, args: list[Val]) -> Val:
        """Call the C library, lane by lane."""
        dtype, scalar = args[0].dtype, REGISTER[args[0].dtype]
        symbol = LIBRARY[name] + ("f" if dtype == "f32" else "")
        self.declare(symbol, scalar, ", ".join([scalar] * len(args)), " nounwind nobuiltin memory(none)")
        lanes, vs = self.same(*args)
        if not lanes:
            return self.ins(f"call {scalar} @{symbol}({', '.join(f'{scalar} {v.ref}' for v in vs)})", dtype, 0, *vs)
        out = Val("poison", dtype, lanes)
        for k in range(lanes):
            one = [self.ins(f"extractelement {v.type} {v.ref}, i64 {k}", dtype, 0, v) for v in vs]
            y = self.ins(f"call {scalar} @{symbol}({', '.join(f'{scalar} {v.ref}' for v in one)})", dtype, 0, *one)
            out = self.ins(f"insertelement {out.type} {out.ref}, {scalar} {y.ref}, i64 {k}", dtype, lanes, out, y)
        return out

    def int_op(self, name: str, args: list[Val]) -> Val | None:
        a, dtype, signed = args[0], args[0].dtype, args[0].dtype in SIGNED
        if dtype == "bool":
            name = {"min": "and", "max": "or"}.get(name, name)
            if name not in ("and", "or", "xor", "not"):
                return None
        if name in ("add", "mul") and dtype == "i64" and not a.lanes and not args[1].lanes:
            return self.index_op(name, a, args[1])
        if name in _INT_BINARY:
            return self.binary(_INT_BINARY[name], a, args[1])
        if name == "shr":
            return self.binary("ashr" if signed else "lshr", a, args[1])
        if name in ("min", "max"):
            return self.call(("s" if signed else "u") + name, dtype, a, args[1])
        if name == "neg":
            return self.binary("sub", self.const(0, dtype), a)
        if name == "not":
            return self.binary("xor", a, self.const(1, "bool") if dtype == "bool" else self.const(-1, dtype))
        if name == "abs":
            return self.call("abs", dtype, a, flag="false") if signed else a
        return None

    def divide(self, e: Op) -> Val:
        """Divide rounding down.

        The divisor is made harmless where it may be 0, or -1 with the least dividend: an arm of ``select`` that is not chosen
        is evaluated all the same, and must not trap.
        """
        n, d = self.emit(e.args[0]), self.emit(e.args[1])
        dtype, signed, divisor = e.dtype, e.dtype in SIGNED, e.args[1]
        quotient = e.op == "floordiv"
        constant = int(divisor.value) if isinstance(divisor, Const) and divisor.value else None
        if constant is None:
            d = self.ins(f"freeze {d.type} {d.ref}", dtype, d.lanes, d)
            d = self.choose(self.binary("icmp eq", d, self.const(0, dtype), "bool"), self.const(1, dtype), d)
        low = bounds(e.args[0])[0] if dtype == "i64" else None
        if not signed or (low is not None and low >= 0 and constant is not None and constant > 0):
            return self.binary(("udiv" if quotient else "urem"), n, d)
        minus = self.binary("icmp eq", d, self.const(-1, dtype), "bool")
        safe = d if constant not in (None, -1) else self.choose(minus, self.const(1, dtype), d)
        q, r = self.binary("sdiv", n, safe), self.binary("srem", n, safe)
        zero = self.const(0, dtype)
        # the remainder has the sign of the dividend; rounding down gives it that of the divisor
        wrong = self.binary(
            "and",
            self.binary("icmp ne", r, zero, "bool"),
            self.binary("icmp slt", self.binary("xor", r, safe), zero, "bool"),
            "bool",
        )
        if quotient:
            down = self.choose(wrong, self.binary("sub", q, self.const(1, dtype)), q)
            return down if safe is d else self.choose(minus, self.binary("sub", zero, n), down)
        return self.choose(wrong, self.binary("add", r, safe), r)

    def select(self, e: Op) -> Val:
        cond = self.emit(e.args[0])
        arms = []
        for arm, taken in ((e.args[1], True), (e.args[2], False)):
            if loads(arm):
                arms.append(self.arm(arm, cond if taken else self.binary("xor", cond, self.const(1, "bool"))))
            else:
                arms.append(self.emit(arm))
        return self.choose(cond, arms[0], arms[1])

    def arm(self, e: Expr, cond: Val) -> Val:
        """Evaluate ``e`` with its loads done only in the lanes where ``cond`` holds."""
        before = self.mask, self.live
        self.mask, self.live = self.narrow(cond), False
        scope = Scope(set())
        self.scopes.append(scope)
        depth = len(self.scopes) - 1
        self.mask = self.mask._replace(bind=depth)
        v = self.emit(e)
        self.scopes.pop()
        self.put_all(scope)
        self.mask, self.live = before
        outer = depth - 1
        return v._replace(level=min(v.level, outer), bind=min(v.bind, outer))

    def put_all(self, scope: Scope) -> None:
        """Append the instructions of a scope without control flow to the one around it."""
        self.scopes[-1].lines.extend(scope.lines)

    def narrow(self, cond: Val) -> Val:
        """And a condition to the mask in force."""
        return cond if self.mask is None else self.binary("and", self.mask, cond)

    def any_lane(self, mask: Val) -> Val:
        if not mask.lanes:
            return mask
        bits = self.ins(f"bitcast <{mask.lanes} x i1> {mask.ref} to i{mask.lanes}", "bool", 0, mask)
        return self.ins(f"icmp ne i{mask.lanes} {bits.ref}, 0", "bool", 0, bits)

    # Casts

    def cast(self, v: Val, to: str) -> Val:
        if v.dtype == to:
            return v
        if "bf16" in (v.dtype, to) or (v.dtype == "f16" and to != "f32") or (to == "f16" and v.dtype not in ("f32", "f64")):
            return self.cast_narrow(v, to)
        source, target = REGISTER[v.dtype], REGISTER[to]
        if to == "bool":
            zero = self.const(0, v.dtype, v.lanes)
            return self.ins(f"{'fcmp une' if v.dtype in FLOATS else 'icmp ne'} {v.type} {v.ref}, {zero.ref}", "bool", v.lanes, v)
        if v.dtype in FLOATS and to in FLOATS:
            if (v.dtype, to) == ("f64", "f16"):
                v, source = self.round_to_odd(v), "float"
            word = "fpext" if DTYPES[v.dtype].itemsize < DTYPES[to].itemsize else "fptrunc"
        elif v.dtype in FLOATS:
            return self.float_to_int(v, to)
        elif to in FLOATS:
            word = "sitofp" if v.dtype in SIGNED else "uitofp"
        else:
            if source == target:
                return v._replace(dtype=to)
            wider = DTYPES[v.dtype].itemsize < DTYPES[to].itemsize or v.dtype == "bool"
            word = ("sext" if v.dtype in SIGNED else "zext") if wider else "trunc"
        return self.ins(f"{word} {typed(source, v.lanes)} {v.ref} to {typed(target, v.lanes)}", to, v.lanes, v)

    def float_to_int(self, v: Val, to: str) -> Val:
        """Truncate; ``freeze`` makes any value of the undefined one that a float out of range gives."""
        small = DTYPES[to].itemsize < 4
        word, wide = ("fptosi", "i32") if small else ("fptosi" if to in SIGNED else "fptoui", to)
        kind = typed(REGISTER[wide], v.lanes)
        raw = self.ins(f"{word} {v.type} {v.ref} to {kind}", wide, v.lanes, v)
        whole = self.ins(f"freeze {kind} {raw.ref}", wide, v.lanes, raw)
        return self.cast(whole, to)

    def cast_narrow(self, v: Val, to: str) -> Val:
        """Cast to or from bf16 (in integer arithmetic), or from an integer to f16, by way of f32."""
        if v.dtype == "bf16":
            wide = self.ins(f"zext {v.type} {v.ref} to {typed('i32', v.lanes)}", "u32", v.lanes, v)
            bits = self.binary("shl", wide, self.const(16, "u32"))
            f32 = self.ins(f"bitcast {bits.type} {bits.ref} to {typed('float', v.lanes)}", "f32", v.lanes, bits)
            return self.cast(f32, to)
        if to == "bf16":
            f32 = self.round_to_odd(v) if v.dtype == "f64" else self.cast(v, "f32")
            bits = self.ins(f"bitcast {f32.type} {f32.ref} to {typed('i32', f32.lanes)}", "u32", f32.lanes, f32)
            tie = self.binary("and", self.binary("lshr", bits, self.const(16, "u32")), self.const(1, "u32"))
            rounded = self.binary("add", bits, self.binary("add", tie, self.const(0x7FFF, "u32")))
            nan = self.binary("or", bits, self.const(0x400000, "u32"))
            kept = self.choose(self.binary("fcmp uno", f32, f32, "bool"), nan, rounded)
            return self.cast(self.binary("lshr", kept, self.const(16, "u32")), "u16")._replace(dtype="bf16")
        return self.cast(self.cast(v, "f32"), to)

    def round_to_odd(self, v: Val) -> Val:
        """Round f64 to f32 so that rounding again to 16 bits is as if done once (Boldo and Melquiond 2008)."""
        near = self.cast(v, "f32")
        back = self.cast(near, "f64")
        bits = self.ins(f"bitcast {near.type} {near.ref} to {typed('i32', v.lanes)}", "u32", v.lanes, near)
        beyond = self.binary("fcmp ogt", self.call("fabs", "f64", back), self.call("fabs", "f64", v), "bool")
        cut = self.choose(beyond, self.binary("sub", bits, self.const(1, "u32")), bits)
        inexact = self.binary("fcmp one", back, v, "bool")
        odd = self.choose(inexact, self.binary("or", cut, self.const(1, "u32")), cut)
        return self.ins(f"bitcast {odd.type} {odd.ref} to {typed('float', v.lanes)}", "f32", v.lanes, odd)

    # Memory

    def address(self, name: str, index: tuple[Expr, ...]) -> tuple[Val, int | None]:
        """Return where an element is, and how many elements further that of the next lane is.

        None stands for no fixed distance; the address then is a vector of pointers.
        """
        buffer = self.buffers.get(name)
        if buffer is None or len(index) != len(buffer.strides):
            raise self.refuse(f"buffer {name!r} is not defined with {len(index)} indices where it is used")
        lane, step = self.lane, 0
        terms: dict[int, list[Val]] = {}
        fixed = bind = 0
        for i, stride in zip(index, buffer.strides, strict=True):
            if lane is not None and lane in free_vars(i):
                c = affine(i, lane)
                if c is None:
                    return self.scattered(buffer, index), None
                step += c * stride
            for mono, c in poly(i).items():
                if mono == (lane,):
                    continue
                term = self.const(c * stride, "i64")
                for atom in mono:
                    v = self.emit(atom)
                    if v.lanes:
                        return self.scattered(buffer, index), None
                    term = self.index_op("mul", v, term)
                bind = max(bind, term.bind)
                if term.literal is not None:
                    fixed += term.literal
                else:
                    terms.setdefault(term.level, []).append(term)
        scalar = MEMORY[buffer.dtype]
        pointer = Val(buffer.ptr, "ptr")
        for level in sorted(terms):
            offset = terms[level][0]
            for term in terms[level][1:]:
                offset = self.index_op("add", offset, term)
            pointer = self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, i64 {offset.ref}", "ptr", 0, pointer, offset)
        if fixed:
            pointer = self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, i64 {fixed}", "ptr", 0, pointer)
        if buffer.private:
            step += 1
        return pointer._replace(bind=max(pointer.bind, bind)), step

    def scattered(self, buffer: Buffer, index: tuple[Expr, ...]) -> Val:
        """Return a vector of the addresses of each lane's element."""
        total: Expr = i64(0)
        for i, stride in zip(index, buffer.strides, strict=True):
            total = total + i * stride
        offset = self.splat(self.emit(total), self.lanes)
        if buffer.private:
            lane = Val("<" + ", ".join(f"i64 {k}" for k in range(self.lanes)) + ">", "i64", self.lanes)
            offset = self.binary("add", offset, lane)
        base = Val(buffer.ptr, "ptr")
        rhs = f"getelementptr {MEMORY[buffer.dtype]}, ptr {base.ref}, {offset.type} {offset.ref}"
        return self.ins(rhs, "ptr", self.lanes, base, offset)

    def read(self, buffer: str, rhs: str, kind: str, lanes: int, *operands: Val) -> Val:
        """Write a load as far out as its operands and the stores before it allow."""
        least = max(o.level for o in operands)
        level = len(self.scopes) - 1
        while level > least:
            fixed = self.scopes[level].fixed
            if fixed is None or buffer in fixed:
                break
            level -= 1
        scope = self.scopes[level]
        known = scope.loaded.setdefault(buffer, {})
        ref = known.get(rhs)
        if ref is None:
            ref = known[rhs] = self.fresh()
            scope.lines.append(f"{ref} = {rhs}")
        bind = max(level, *(o.bind for o in operands))
        reads = frozenset((buffer,)).union(*(o.reads for o in operands))
        return Val(ref, kind, lanes, level, bind, reads)

    def load(self, e: Load) -> Val:
        pointer, step = self.address(e.buffer, e.index)
        whole = self.whole(self.buffers[e.buffer], e.index, step)
        return self.load_at(e.buffer, pointer, step, None if whole else self.mask)

    def whole(self, buffer: Buffer, index: tuple[Expr, ...], step: int | None) -> bool:
        """Whether the elements of all lanes may be touched, also of those that a mask turns off.

        So masks stay away from buffers that should become registers.
        """
        if buffer.shape is None or step not in (0, 1):
            return False
        ranges = [bounds(i) for i in index]
        if all(lo is not None and lo >= 0 for lo, _ in ranges) and self.live:
            return True
        return all(lo is not None and lo >= 0 and hi is not None and hi < n for (lo, hi), n in zip(ranges, buffer.shape, strict=True))

    def load_at(self, name: str, pointer: Val, step: int | None, mask: Val | None) -> Val:
        buffer, lanes = self.buffers[name], self.lanes
        dtype, scalar, align = buffer.dtype, MEMORY[buffer.dtype], DTYPES[buffer.dtype].itemsize
        extra = () if mask is None else (mask,)
        if step is None or (step not in (0, 1, -1)):
            ptrs = pointer if step is None else self.lane_pointers(pointer, step, scalar)
            on = self.splat(mask or self.const(True, "bool"), lanes)
            vector = typed(scalar, lanes)
            fn = f"llvm.masked.gather.{suffix(scalar, lanes)}.{suffix('ptr', lanes)}"
            self.declare(fn, vector, f"<{lanes} x ptr>, i32, <{lanes} x i1>, {vector}")
            rhs = f"call {vector} @{fn}(<{lanes} x ptr> {ptrs.ref}, i32 {align}, <{lanes} x i1> {on.ref}, {vector} zeroinitializer)"
            return self.loaded(self.read(name, rhs, dtype, lanes, ptrs, on, *extra))
        wide = lanes if step else 0
        kind = typed(scalar, wide)
        if step == -1:
            pointer = self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, i64 {1 - lanes}", "ptr", 0, pointer)
        if mask is not None and mask.lanes and wide:
            on = self.reversed(mask) if step == -1 else mask
            fn = f"llvm.masked.load.{suffix(scalar, lanes)}.p0"
            self.declare(fn, kind, f"ptr, i32, <{lanes} x i1>, {kind}")
            rhs = f"call {kind} @{fn}(ptr {pointer.ref}, i32 {align}, <{lanes} x i1> {on.ref}, {kind} zeroinitializer)"
            v = self.read(name, rhs, dtype, wide, pointer, on, *extra)
        else:
            if mask is not None and not (self.live and mask.lanes):
                some = self.any_lane(mask)
                pointer = self.ins(f"select i1 {some.ref}, ptr {pointer.ref}, ptr {DUMMY}", "ptr", 0, pointer, some)
            v = self.read(name, f"load {kind}, ptr {pointer.ref}, align {align}", dtype, wide, pointer, *extra)
        v = self.loaded(v)
        return self.reversed(v) if step == -1 else v

    def loaded(self, v: Val) -> Val:
        """Turn what is in memory into a value: a bool's byte into a bit."""
        if v.dtype != "bool":
            return v
        return self.ins(f"icmp ne {typed('i8', v.lanes)} {v.ref}, {'zeroinitializer' if v.lanes else 0}", "bool", v.lanes, v)

    def lane_pointers(self, pointer: Val, step: int, scalar: str) -> Val:
        offsets = "<" + ", ".join(f"i64 {k * step}" for k in range(self.lanes)) + ">"
        return self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, <{self.lanes} x i64> {offsets}", "ptr", self.lanes, pointer)

    def reversed(self, v: Val) -> Val:
        order = ", ".join(f"i32 {k}" for k in range(v.lanes - 1, -1, -1))
        return self.ins(f"shufflevector {v.type} {v.ref}, {v.type} poison, <{v.lanes} x i32> <{order}>", v.dtype, v.lanes, v)
