"""What each operation and cast of the kernel IR becomes in LLVM IR."""

from __future__ import annotations

from kernelforge.backends.cpu.values import REGISTER, Val, Values, literal, suffix, typed
from kernelforge.dtypes import DTYPES, FLOATS, NARROW_FLOATS, SIGNED
from kernelforge.ir.kernel import COMPARE, MATH_BINARY, MATH_UNARY
from kernelforge.ir.math_base import FORMATS
from kernelforge.ir.tables import LANES, TABLES, table

LIBRARY = {name: name for name in MATH_UNARY + MATH_BINARY}
"""Names in the C library, for f64; those for f32 end in ``f``."""

_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "fmod": "frem"}
_INT_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor", "shl": "shl"}
_COMPARE_SIGNED = {"lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge", "eq": "eq", "ne": "ne"}
_COMPARE_UNSIGNED = {"lt": "ult", "le": "ule", "gt": "ugt", "ge": "uge", "eq": "eq", "ne": "ne"}
_COMPARE_FLOAT = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_FLOAT_INTRINSIC = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"}
_EXTREMUM = {
    ("f32", 16): "sse.{}.ps", ("f32", 32): "avx.{}.ps.256", ("f32", 64): "avx512.{}.ps.512",
    ("f64", 16): "sse2.{}.pd", ("f64", 32): "avx.{}.pd.256", ("f64", 64): "avx512.{}.pd.512",
}  # fmt: skip
"""LLVM's names for x86's own min and max, by dtype and bytes of a vector."""


class Arithmetic(Values):
    """Emits operations on values, scalars and vectors alike."""

    def apply(self, name: str, args: list[Val]) -> Val:
        """Apply an operation other than select, cast, bitcast and integer division."""
        dtype = args[0].dtype
        if dtype in NARROW_FLOATS:
            wide = self.apply(name, [self.cast(a, "f32") for a in args])
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
        if name == "div":
            lanes, (a, b) = self.same(*args)
            # LLVM takes 0/0 for 0 in lanes where it knows both to be 0, as where a mask left them out
            return self.binary("fdiv", a, self.call("arithmetic.fence", b.dtype, b) if lanes else b)
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
        if name == "scaleb":
            return self.scaleb(*args)
        if name in TABLES:
            return self.look_up(name, a)
        return self.library(name, args) if name in LIBRARY else None

    def scaleb(self, x: Val, n: Val) -> Val:
        """Scale by the instruction of AVX-512, which takes the exponent as a float."""
        lanes, (x, n) = self.same(x, n)
        bits = lanes * DTYPES[x.dtype].itemsize * 8
        if bits > 512 and not bits % 1024:
            parts = [self.scaleb(self.half(x, k), self.half(n, k)) for k in (0, 1)]
            return self.joined(*parts)
        if bits not in (128, 256, 512):
            scalar, whole = REGISTER[x.dtype], typed("i32", lanes)
            n = self.call("floor", n.dtype, n)
            i = self.ins(f"fptosi {n.type} {n.ref} to {whole}", "i32", lanes, n)
            name = f"llvm.ldexp.{suffix(scalar, lanes)}.{suffix('i32', lanes)}"
            self.declare(name, x.type, f"{x.type}, {whole}")
            return self.ins(f"call {x.type} @{name}({x.type} {x.ref}, {whole} {i.ref})", x.dtype, lanes, x, i)
        name = f"llvm.x86.avx512.mask.scalef.p{'s' if x.dtype == 'f32' else 'd'}.{bits}"
        mask, rounding = f"i{max(lanes, 8)}", bits == 512
        self.declare(name, x.type, f"{x.type}, {x.type}, {x.type}, {mask}" + ", i32" * rounding)
        rest = f"{x.type} zeroinitializer, {mask} -1" + ", i32 4" * rounding
        return self.ins(f"call {x.type} @{name}({x.type} {x.ref}, {n.type} {n.ref}, {rest})", x.dtype, lanes, x, n)

    def look_up(self, name: str, x: Val) -> Val:
        """Find numbers of a table by the instruction of AVX-512 that permutes the lanes of one or two registers."""
        numbers, count = table(name, x.dtype), LANES[x.dtype]
        if x.lanes > count and x.lanes % 2 == 0:
            return self.joined(*(self.look_up(name, self.half(x, k)) for k in (0, 1)))
        if x.lanes != count:
            return self.resized(self.look_up(name, self.resized(x, count)), x.lanes)
        whole, scalar = FORMATS[x.dtype].integer, REGISTER[x.dtype]
        kind = typed(REGISTER[whole], count)
        at = self.ins(f"bitcast {x.type} {x.ref} to {kind}", whole, count, x)
        low, *high = [
            f"{x.type} <{', '.join(f'{scalar} {literal(v, x.dtype)}' for v in numbers[k : k + count])}>"
            for k in range(0, len(numbers), count)
        ]
        letter = "s" if x.dtype == "f32" else "d"
        called = f"llvm.x86.avx512.vpermi2var.p{letter}.512" if high else f"llvm.x86.avx512.permvar.{letter}f.512"
        self.declare(called, x.type, ", ".join([x.type, kind, *(x.type for _ in high)]))
        return self.ins(f"call {x.type} @{called}({', '.join([low, f'{kind} {at.ref}', *high])})", x.dtype, count, x)

    def half(self, v: Val, which: int) -> Val:
        """Take the lower or upper half of a vector's lanes."""
        lanes = v.lanes // 2
        order = ", ".join(f"i32 {k + which * lanes}" for k in range(lanes))
        return self.ins(
            f"shufflevector {v.type} {v.ref}, {v.type} poison, <{lanes} x i32> <{order}>", v.dtype, lanes, v
        )

    def joined(self, low: Val, high: Val) -> Val:
        lanes = low.lanes * 2
        order = ", ".join(f"i32 {k}" for k in range(lanes))
        rhs = f"shufflevector {low.type} {low.ref}, {low.type} {high.ref}, <{lanes} x i32> <{order}>"
        return self.ins(rhs, low.dtype, lanes, low, high)

    def extremum(self, name: str, a: Val, b: Val) -> Val:
        """Take the smaller or greater; a NaN in either operand makes a NaN, and either of two zeros may be the result.

        The instruction of x86 returns its second operand where one is NaN. So one of its two orders has the NaN, and
        all bits of both together are one: in three cycles, where LLVM's test and blend by a mask take ten.
        """
        lanes, (a, b) = self.same(a, b)
        size = DTYPES[a.dtype].itemsize
        if self.host.arch != "x86_64" or not (a.ref.startswith("%") and b.ref.startswith("%")):
            return self.call("minimum" if name == "min" else "maximum", a.dtype, a, b, fast="nsz ")
        nbytes = max(16, 1 << (max(lanes, 1) * size - 1).bit_length())
        if nbytes != lanes * size:
            wide = [self.resized(v, nbytes // size) for v in (a, b)]
            return self.resized(self.extremum(name, *wide), lanes)
        if nbytes > self.host.vector_bytes:
            return self.joined(*(self.extremum(name, self.half(a, k), self.half(b, k)) for k in (0, 1)))
        symbol, rounding = "llvm.x86." + _EXTREMUM[a.dtype, nbytes].format(name), nbytes == 64
        self.declare(symbol, a.type, f"{a.type}, {a.type}" + ", i32" * rounding)
        whole = FORMATS[a.dtype].integer
        kind, found = typed(REGISTER[whole], lanes), []
        for x, y in ((a, b), (b, a)):
            call = f"call {a.type} @{symbol}({a.type} {x.ref}, {a.type} {y.ref}{', i32 4' * rounding})"
            v = self.ins(call, a.dtype, lanes, x, y)
            found.append(self.ins(f"bitcast {v.type} {v.ref} to {kind}", whole, lanes, v))
        bits = self.binary("or", found[0], found[1])
        return self.ins(f"bitcast {kind} {bits.ref} to {a.type}", a.dtype, lanes, bits)

    def resized(self, v: Val, lanes: int) -> Val:
        """Take the first lanes, or add lanes that may hold anything; 0 is a scalar."""
        if not lanes:
            return self.ins(f"extractelement {v.type} {v.ref}, i64 0", v.dtype, 0, v)
        if not v.lanes:
            kind = typed(REGISTER[v.dtype], lanes)
            return self.ins(f"insertelement {kind} poison, {v.type} {v.ref}, i64 0", v.dtype, lanes, v)
        order = ", ".join(f"i32 {k if k < v.lanes else 'poison'}" for k in range(lanes))
        rhs = f"shufflevector {v.type} {v.ref}, {v.type} poison, <{lanes} x i32> <{order}>"
        return self.ins(rhs, v.dtype, lanes, v)

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

    def divide(self, name: str, n: Val, d: Val, constant: int | None, natural: bool) -> Val:
        """Divide integers rounding down.

        The divisor is made harmless where it may be 0, or -1 with the least dividend: an arm of ``select`` that is
        not chosen is evaluated all the same, and must not trap.

        Args:
            name: ``floordiv`` or ``mod``.
            n: the dividend.
            d: the divisor.
            constant: the divisor where it is a constant other than 0.
            natural: whether the dividend is known not to be negative.
        """
        dtype, signed, quotient = n.dtype, n.dtype in SIGNED, name == "floordiv"
        if n.literal is not None and constant is not None:
            known = n.literal // constant if quotient else n.literal % constant
            return n._replace(ref=str(known), bind=max(n.bind, d.bind))
        if constant is None:
            d = self.ins(f"freeze {d.type} {d.ref}", dtype, d.lanes, d)
            d = self.choose(self.binary("icmp eq", d, self.const(0, dtype), "bool"), self.const(1, dtype), d)
        if not signed or (natural and constant is not None and constant > 0):
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

    def cast(self, v: Val, to: str) -> Val:
        if v.dtype == to:
            return v
        if "f16" in (v.dtype, to) and not self.host.half:
            raise self.refuse("this processor does not convert f16; the pass widen does it in integer arithmetic")
        if (
            "bf16" in (v.dtype, to)
            or (v.dtype == "f16" and to != "f32")
            or (to == "f16" and v.dtype not in ("f32", "f64"))
        ):
            return self.cast_narrow(v, to)
        source, target = REGISTER[v.dtype], REGISTER[to]
        if to == "bool":
            zero = self.const(0, v.dtype, v.lanes)
            return self.ins(
                f"{'fcmp une' if v.dtype in FLOATS else 'icmp ne'} {v.type} {v.ref}, {zero.ref}", "bool", v.lanes, v
            )
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
        made = self.ins(f"{word} {typed(source, v.lanes)} {v.ref} to {typed(target, v.lanes)}", to, v.lanes, v)
        if word == "trunc" and not v.lanes and v.ref[0] == "%":
            # hides a counter that is hashed from loop strength reduction, which takes seconds over chains of sums
            return self.call("expect", to, made, self.const(0, to))
        return made

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
