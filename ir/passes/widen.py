"""Compute on float16 and bfloat16 in f32: each operation is done in f32 and rounded back, as NumPy does.

An expression of a narrow dtype becomes an f32 expression whose values lie on the narrow dtype's grid. Where the device
converts a narrow dtype itself, rounding is a pair of casts and its buffers stay; elsewhere its buffers hold u16 and
the conversions are integer arithmetic, right for ties, subnormals, infinities and NaN.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kernelforge.dtypes import DTYPES, NARROW_FLOATS
from kernelforge.ir.kernel import Alloc, Const, Expr, For, If, Kernel, Let, Load, Op, Stmt, Store, Var, op, select

EXACT = frozenset({"neg", "abs", "floor", "ceil", "trunc", "rint", "min", "max", "select", "fmod"})
"""Operations whose f32 result on narrow operands is on the narrow grid already."""

SIGN = 0x80000000
F16_LEAST = 2.0**-14  # the least normal number
F16_OVERFLOW = 65520.0  # from here on values round to infinity
F16_REBIAS = 112 << 23  # between the exponents of f32 and f16
HALF_BITS = 0x3F000000  # of 0.5f, whose last place is float16's least subnormal, 2**-24


def widen(kernel: Kernel, native: frozenset[str]) -> Kernel:
    """Leave no operation on a narrow float but casts, and those only of the dtypes in ``native``.

    A Store that combines into a narrow buffer becomes a load, the operation and a store; such a Store must not stand
    in a ``vector`` loop that combines lanes (lowering accumulates in f32, so there is none).
    """
    rewriter = _Widener(native)
    args = tuple(dataclasses.replace(a, dtype=rewriter.storage(a.dtype)) for a in kernel.args)
    return dataclasses.replace(kernel, args=args, body=rewriter.body(kernel.body))


def from_bits(bits: Expr, dtype: str) -> Expr:
    """The f32 value of a narrow float held in a u16."""
    wide = bits.cast("u32")
    if dtype == "bf16":
        return (wide << 16).bitcast("f32")
    magnitude = (wide & 0x7FFF) << 13
    # a subnormal f32 never appears: devices may flush those
    subnormal = (magnitude + (F16_REBIAS + (1 << 23))).bitcast("f32") - F16_LEAST
    special = magnitude + 2 * F16_REBIAS
    normal = select(magnitude >= 0x0F800000, special, magnitude + F16_REBIAS)
    value = select(magnitude < 0x00800000, subnormal.bitcast("u32"), normal)
    return (value | ((wide & 0x8000) << 16)).bitcast("f32")


def to_bits(x: Expr, dtype: str) -> Expr:
    """Round an f32 to a narrow float, held in a u16."""
    u = x.bitcast("u32")
    if dtype == "bf16":
        return select(x.ne(x), (u >> 16) | 0x40, (u + 0x7FFF + ((u >> 16) & 1)) >> 16).cast("u16")
    a = op("abs", x)
    v = a.bitcast("u32")
    subnormal = (a + 0.5).bitcast("u32") - HALF_BITS
    normal = (v + 0xFFF + ((v >> 13) & 1) - F16_REBIAS) >> 13
    special = select(x.ne(x), Const(0x7E00, "u32"), 0x7C00)
    value = select(a < F16_LEAST, subnormal, select(a < F16_OVERFLOW, normal, special))
    return (value | ((u & SIGN) >> 16)).cast("u16")


def round_to(x: Expr, dtype: str) -> Expr:
    """Round an f32 to the grid of a narrow float, without leaving f32."""
    u = x.bitcast("u32")
    if dtype == "bf16":
        return select(x.ne(x), x, ((u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000).bitcast("f32"))
    a = op("abs", x)
    v = a.bitcast("u32")
    subnormal = (a + 0.5) - 0.5
    normal = ((v + 0xFFF + ((v >> 13) & 1)) & 0xFFFFE000).bitcast("f32")
    value = select(a < F16_LEAST, subnormal, select(a < F16_OVERFLOW, normal, a + float("inf")))
    return (value.bitcast("u32") | (u & SIGN)).bitcast("f32")


def round_to_odd(x: Expr) -> Expr:
    """Round an f64 to f32 so that rounding the result to float16 rounds once.

    An inexact result is truncated and its last bit set (Boldo and Melquiond, 2008).
    """
    nearest = x.cast("f32")
    back = nearest.cast("f64")
    away = (op("abs", back) > op("abs", x)).cast("u32")
    return ((nearest.bitcast("u32") - away) | back.ne(x).cast("u32")).bitcast("f32")


class _Widener:
    """``visit`` maps an expression to its wide form: f32 for a narrow dtype, the same dtype otherwise."""

    def __init__(self, native: frozenset[str]) -> None:
        self.native = native
        self.memo: dict[Expr, Expr] = {}
        self.unrounded: dict[Expr, Expr] = {}

    def storage(self, dtype: str) -> str:
        return "u16" if dtype in NARROW_FLOATS - self.native else dtype

    def body(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        return tuple(self.statement(s) for s in body)

    def statement(self, stmt: Stmt) -> Stmt:
        match stmt:
            case Let(name, value):
                return Let(name, self.visit(value))
            case Store(buffer, index, value, combine):
                at = tuple(self.visit(i) for i in index)
                bits = None if combine else self.moved(value)
                if bits is not None:
                    return Store(buffer, at, bits)
                wide = self.visit(value)
                if value.dtype not in NARROW_FLOATS:
                    return Store(buffer, at, wide, combine)
                if combine:
                    wide = op(combine, self.visit(Load(buffer, index, value.dtype)), wide)
                return Store(buffer, at, self.narrow(wide, value.dtype))
            case For(var, extent, kind, body):
                return For(var, self.visit(extent), kind, self.body(body))
            case If(cond, body):
                return If(self.visit(cond), self.body(body))
            case Alloc(buffer, dtype, shape, space):
                return Alloc(buffer, self.storage(dtype), tuple(self.visit(n) for n in shape), space)

    def narrow(self, wide: Expr, dtype: str) -> Expr:
        """The stored form; a rounding just made is not made twice."""
        wide = self.unrounded.get(wide, wide)
        return wide.cast(dtype) if dtype in self.native else to_bits(wide, dtype)

    def moved(self, e: Expr) -> Expr | None:
        """Return the stored form of elements held in a u16 that are only chosen: they keep their bits."""
        if self.storage(e.dtype) == e.dtype:
            return None
        if isinstance(e, Load):
            return Load(e.buffer, tuple(self.visit(i) for i in e.index), "u16")
        if isinstance(e, Const):
            with np.errstate(over="ignore"):
                return Const(int(np.asarray(e.value, DTYPES[e.dtype]).view(np.uint16)), "u16")
        if not isinstance(e, Op) or e.op != "select":
            return None
        first, second = self.moved(e.args[1]), self.moved(e.args[2])
        return None if first is None or second is None else select(self.visit(e.args[0]), first, second)

    def round(self, wide: Expr, dtype: str) -> Expr:
        rounded = wide.cast(dtype).cast("f32") if dtype in self.native else round_to(wide, dtype)
        self.unrounded[rounded] = wide
        return rounded

    def visit(self, e: Expr) -> Expr:
        done = self.memo.get(e)
        if done is None:
            done = self.memo[e] = self.rebuild(e)
        return done

    def rebuild(self, e: Expr) -> Expr:
        narrow = e.dtype in NARROW_FLOATS
        if isinstance(e, Op):
            return self.operation(e, tuple(self.visit(a) for a in e.args), narrow)
        if isinstance(e, Load):
            load = Load(e.buffer, tuple(self.visit(i) for i in e.index), self.storage(e.dtype))
            if not narrow:
                return load
            return load.cast("f32") if e.dtype in self.native else from_bits(load, e.dtype)
        if not narrow:
            return e
        if isinstance(e, Const):
            with np.errstate(over="ignore"):  # beyond the largest it is inf, as an array's element would be
                return Const(float(np.asarray(e.value, DTYPES[e.dtype])), "f32")
        assert isinstance(e, Var)
        return Var(e.name, "f32", e.bound)

    def operation(self, e: Op, args: tuple[Expr, ...], narrow: bool) -> Expr:
        source = e.args[0].dtype
        if e.op == "bitcast" and source in NARROW_FLOATS:
            bits = self.narrow(args[0], source).bitcast("u16")
            return from_bits(bits, e.dtype) if narrow else bits.bitcast(e.dtype)
        if e.op == "bitcast" and narrow:
            bits = args[0].bitcast("u16")
            return bits.bitcast(e.dtype).cast("f32") if e.dtype in self.native else from_bits(bits, e.dtype)
        if e.op == "cast" and narrow:
            wide = round_to_odd(args[0]) if (source, e.dtype) == ("f64", "f16") else args[0].cast("f32")
            return self.round(wide, e.dtype)
        result = op(e.op, *args, dtype=e.dtype)
        return self.round(result, e.dtype) if narrow and e.op not in EXACT else result
