"""The spelling of types, literals and the functions that OpenCL C lacks.

The functions are plain arithmetic: PoCL's wheel inlines no ``fma``, ``rint``, ``clamp`` or ``vload`` on a processor
newer than itself, and then runs forty times slower. Each works on scalars and on vectors, since OpenCL's ``?:`` takes
both the 0 and 1 of a scalar comparison and the 0 and -1 of a vector one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from kernelforge.dtypes import DTYPES, FLOATS, SIGNED, UNSIGNED
from kernelforge.ir.tables import LANES, TABLES, table

NAMES = {
    "bool": "uchar", "i8": "char", "i16": "short", "i32": "int", "i64": "long",
    "u8": "uchar", "u16": "ushort", "u32": "uint", "u64": "ulong", "f32": "float", "f64": "double",
}  # fmt: skip
"""dtype to the OpenCL C type that stores it."""

MASKS = {1: "char", 2: "short", 4: "int", 8: "long"}
"""Bytes of an element to the element type of a vector comparison's result."""

WIDTHS = (2, 4, 8, 16)
"""Extents of vector loops that are vectors; a vector of 3 has the size of one of 4."""


def ctype(dtype: str, lanes: int = 1) -> str:
    """Name the type that stores ``lanes`` elements."""
    return NAMES[dtype] + (str(lanes) if lanes > 1 else "")


def unsigned(dtype: str, lanes: int = 1) -> str:
    """Name the unsigned type of a dtype's width."""
    return ctype(f"u{size(dtype) * 8}", lanes)


def size(dtype: str) -> int:
    """Return the bytes of an element."""
    return DTYPES[dtype].itemsize


def literal(value: float, dtype: str) -> str:
    """Spell a scalar constant, exactly."""
    if dtype == "bool":
        return "true" if value else "false"
    if dtype in FLOATS:
        return _float(float(value), dtype)
    value = int(value)
    suffix = {"i64": "L", "u64": "UL", "u32": "u"}.get(dtype, "")
    if dtype in SIGNED and value == np.iinfo(DTYPES[dtype]).min:
        return f"(-{-(value + 1)}{suffix} - 1)"
    return f"{value}{suffix}" if value >= 0 else f"({value}{suffix})"


def _float(value: float, dtype: str) -> str:
    if math.isnan(value):
        return "as_float(0x7fc00000u)" if dtype == "f32" else "as_double(0x7ff8000000000000UL)"
    with np.errstate(over="ignore"):
        rounded = np.float32(value) if dtype == "f32" else np.float64(value)
    if np.isinf(rounded):
        text = "INFINITY" if dtype == "f32" else "as_double(0x7ff0000000000000UL)"
        return text if rounded > 0 else f"(-{text})"
    text = repr(rounded.item()) if dtype == "f64" else np.format_float_scientific(rounded, unique=True, trim="0")
    text += "f" if dtype == "f32" else ""
    return f"({text})" if text.startswith("-") else text


# oclgrind, an older compiler for SPIR, runs no prefetches
PREAMBLE = """\
#pragma OPENCL FP_CONTRACT OFF
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
#if defined(__has_builtin)
#if __has_builtin(__builtin_convertvector)
#define kf_convert(x, to) __builtin_convertvector(x, to)
#endif
#if __has_builtin(__builtin_shufflevector)
#define KF_PICKS
#endif
#if __has_builtin(__builtin_reduce_or)
#define KF_REDUCES
#endif
#if __has_builtin(__builtin_expect)
#define kf_seldom(x) __builtin_expect(x, 0)
#endif
#if __has_builtin(__builtin_nontemporal_store)
#define kf_stream(value, place) __builtin_nontemporal_store(value, place)
#endif
#if __has_builtin(__builtin_masked_load)
#define KF_MASKS
#endif
#if __has_builtin(__builtin_prefetch) && (defined(KF_MASKS) || !defined(__SPIR__))
#define kf_fetch(place, ahead, near) __builtin_prefetch((const void*)((ulong)(place) + ahead), 0, near)
#endif
#endif
#if defined(__AVX512VL__) && !defined(KF_AVX512)
#define KF_AVX512
#endif
#ifndef kf_seldom
#define kf_seldom(x) (x)
#endif
#ifndef kf_stream
#define kf_stream(value, place) (*(place) = (value))
#endif
#ifndef kf_fetch
#define kf_fetch(place, ahead, near)
#endif
#ifndef kf_convert
#define kf_convert(x, to) convert_##to(x)
#endif
"""

_CONTRACT = """{{
#pragma OPENCL FP_CONTRACT ON
    return a * b + c;
}}"""

# magnitudes from ``whole`` on have no fraction; adding it rounds a smaller one to an integer, to nearest even
_RINT = """{{
    {T} m = as_{T}(as_{U}(a) & ({U}){magnitude});
    m = m < ({T}){whole} ? (m + ({T}){whole}) - ({T}){whole} : m;
    return as_{T}(as_{U}(m) | (as_{U}(a) & ({U}){sign}));
}}"""

_FLOOR = "{{ {T} r = {rint}(a); return r > a ? r - ({T})1 : r; }}"
_CEIL = """{{
    {T} r = {rint}(a);
    r = r < a ? r + ({T})1 : r;
    return as_{T}(as_{U}(r) | (as_{U}(a) & ({U}){sign}));
}}"""
_TRUNC = """{{
    {T} m = as_{T}(as_{U}(a) & ({U}){magnitude}), r = {rint}(m);
    r = r > m ? r - ({T})1 : r;
    return as_{T}(as_{U}(r) | (as_{U}(a) & ({U}){sign}));
}}"""
_FMA = """{{
#ifdef {fast}
    return {mad}(a, b, c);
#else
    return fma(a, b, c);
#endif
}}"""

# the least integer divided by -1 overflows, which some processors trap
_FLOORDIV = """{{
    if (b == -1) return ({T})(({U})0 - ({U})a);
    {T} q = a / b;
    return q * b != a && (a ^ b) < 0 ? q - 1 : q;
}}"""
_MOD = """{{
    if (b == -1) return 0;
    {T} r = a % b;
    return r != 0 && (r ^ b) < 0 ? r + b : r;
}}"""

# a name that begins with llvm. is LLVM's own: compilers that make SPIR know no processor's functions by another
_INSTRUCTION = """\
#ifdef KF_AVX512
{T} {own}_at({declared}) __asm("llvm.x86.{symbol}");
static {T} {own}({T} a, {T} b) {{
    return {given};
}}
#else
static {T} {own}({T} a, {T} b) {general}
#endif
"""
"""A function where x86 has an instruction for it."""

_LOOK_UP = """\
#ifdef KF_AVX512
{T} {own}_at({params}) __asm("llvm.x86.avx512.{instruction}.512");
static {T} {own}({T} a) {{
    return {own}_at({numbers});
}}
#endif
"""

_SCALEB = """{{
    {U} i = as_{U}({floor}(b) + ({T}){twice}), h = i >> 1;
    return a * as_{T}(h << {fraction}) * as_{T}((i - h) << {fraction});
}}"""

_DOT = """\
#ifdef KF_BF16DOT
typedef __bf16 kf_bf16x32 __attribute__((ext_vector_type(32)));
float16 kf_dot_at(float16 sum, kf_bf16x32 a, kf_bf16x32 b) __asm("llvm.x86.avx512bf16.dpbf16ps.512");
static float16 kf_dot(uint16 a, uint16 b, float16 sum) {
    return kf_dot_at(sum, __builtin_astype(a, kf_bf16x32), __builtin_astype(b, kf_bf16x32));
}
#else
static float16 kf_dot(uint16 a, uint16 b, float16 sum) {
    sum = kf_mad_f32x16(as_float16(a << 16), as_float16(b << 16), sum);
    return kf_mad_f32x16(as_float16(a >> 16 << 16), as_float16(b >> 16 << 16), sum);
}
#endif
"""

_PICK = """static {T} {own}({T} a, {T} b) {{
#ifdef KF_PICKS
    return __builtin_shufflevector(a, b, {order});
#else
    return ({T})({each});
#endif
}}
"""
"""Compilers make one instruction of a shuffle sooner than of a vector of single elements."""

_READ = """{{
#if defined(__AVX512DQ__) && {known}
    return as_{T}(__builtin_ia32_load{name}_mask((const void*)(ulong)p, ({X})(0), {chosen}));
#else
    {M} m[{lanes}] __attribute__((aligned(64)));
    {E} r[{lanes}] __attribute__((aligned(64)));
    *({M}{lanes}*)m = mask;
{loop}
    for (long k = 0; k < {lanes}; ++k) r[k] = m[k] ? p[k] : 0;
    return *({T}*)r;
#endif
}}"""
_WRITE = """{{
#if defined(__AVX512DQ__) && {known}
    __builtin_ia32_store{name}_mask((void*)(ulong)p, as_{X}(value), {chosen});
#else
    {M} m[{lanes}] __attribute__((aligned(64)));
    {E} v[{lanes}] __attribute__((aligned(64)));
    *({M}{lanes}*)m = mask;
    *({T}*)v = value;
{loop}
    for (long k = 0; k < {lanes}; ++k) if (m[k]) p[k] = v[k];
#endif
}}"""
# compilers that know masks make them of such a loop; PoCL 3.1, which is older, fails when asked to
_LOOP = """\
#ifdef KF_MASKS
#pragma clang loop vectorize(enable) vectorize_width({lanes}) interleave_count(1) unroll(disable)
#endif"""

_WIDE = {
    (4, 16): ("ups512", "float16", "d2mask512"),
    (8, 8): ("upd512", "double8", "q2mask512"),
    (1, 16): ("dquqi128", "char16", "b2mask128"),
}
"""Bytes of an element and lanes to what x86 calls a move of some lanes, its vector, and what makes its mask."""

_FUNCTIONS: dict[tuple[str, str], tuple[str, str]] = {
    ("abs", "float"): ("a", "{{ return as_{T}(as_{U}(a) & ({U}){magnitude}); }}"),
    ("min", "float"): ("a, b", "{{ {T} m = b < a ? b : a; return b != b ? b : m; }}"),
    ("max", "float"): ("a, b", "{{ {T} m = b > a ? b : a; return b != b ? b : m; }}"),
    ("rint", "float"): ("a", _RINT),
    ("floor", "float"): ("a", _FLOOR),
    ("ceil", "float"): ("a", _CEIL),
    ("trunc", "float"): ("a", _TRUNC),
    ("scaleb", "float"): ("a, b", _SCALEB),
    **{(name, "float"): ("a", _LOOK_UP) for name in TABLES},
    ("mad", "float"): ("a, b, c", _CONTRACT),
    ("fma", "float"): ("a, b, c", _FMA),
    ("min", "integer"): ("a, b", "{{ return a < b ? a : b; }}"),
    ("max", "integer"): ("a, b", "{{ return a > b ? a : b; }}"),
    ("floordiv", "signed"): ("a, b", _FLOORDIV),
    ("mod", "signed"): ("a, b", _MOD),
}
"""Operation and kind of dtype to the parameters and the body of its function; the divisions are for scalars."""

_NEEDS = {"floor": "rint", "ceil": "rint", "trunc": "rint", "scaleb": "floor", "fma": "mad"}


# one instruction of AVX-512, which compilers do not make of halves
_ANY = """#ifdef KF_REDUCES
static bool {own}({T} a) {{ return __builtin_reduce_or(a) != 0; }}
#else
static bool {own}({T} a) {{ return {halves}; }}
#endif
"""


def kinds(dtype: str) -> tuple[str, ...]:
    """Return the kinds of dtype, as ``_FUNCTIONS`` is keyed, that ``dtype`` is of."""
    if dtype in FLOATS:
        return ("float",)
    return ("signed", "integer") if dtype in SIGNED else ("integer",) if dtype in UNSIGNED else ()


def has_function(name: str, dtype: str) -> bool:
    return any((name, kind) in _FUNCTIONS for kind in kinds(dtype))


def _instruction(own: str, name: str, dtype: str, lanes: int, general: str) -> str:
    """Define a function by an instruction of AVX-512, where that may be what compilers make; "" where there is none.

    The least and the greatest are the second operand where one is NaN: the bits of both orders together have the NaN.
    """
    nbytes = lanes * size(dtype)
    if name not in ("scaleb", "min", "max") or dtype not in FLOATS or nbytes not in (16, 32, 64):
        return ""
    value, letter, bits = ctype(dtype, lanes), "d" if dtype == "f64" else "s", nbytes * 8
    declared, rounding = f"{value} a, {value} b", ", 4" if nbytes == 64 else ""
    if name == "scaleb":
        symbol = f"avx512.mask.scalef.p{letter}.{bits}"
        declared += f", {value} other, {'ushort' if lanes == 16 else 'uchar'} chosen"
        given = f"{own}_at(a, b, a, -1{rounding})"
    else:
        sse = "sse2" if dtype == "f64" else "sse"
        symbol = {16: f"{sse}.{name}.p{letter}", 32: f"avx.{name}.p{letter}.256", 64: f"avx512.{name}.p{letter}.512"}[
            nbytes
        ]
        each = (f"as_{unsigned(dtype, lanes)}({own}_at({x}{rounding}))" for x in ("a, b", "b, a"))
        given = f"as_{value}({' | '.join(each)})"
    declared += ", int rounding" if rounding else ""
    return _INSTRUCTION.format(T=value, own=own, declared=declared, symbol=symbol, given=given, general=general)


class Functions:
    """Collects the functions and vector types that a source uses, each after those that it uses itself.

    Attributes:
        native: see ``Limits``; with ``calls``, functions that are left in a kernel are functions of the source.
    """

    def __init__(self, native: frozenset[str] = frozenset()) -> None:
        self.native = native
        self._text: dict[str, str] = {}

    def define(self, own: str, text: Callable[[], str]) -> str:
        """Return a C name of which ``text`` makes the definition, where there is none."""
        if own not in self._text:
            made = text()  # what it uses is defined before it
            self._text[own] = made
        return own

    def call(self, name: str, dtype: str, lanes: int) -> str:
        """Return the C name of an operation's function, defining it."""
        own = f"kf_{name}_{dtype}" + (f"x{lanes}" if lanes > 1 else "")
        if own in self._text:
            return own
        if name in TABLES:
            return self._look_up(own, name, dtype, lanes)
        if name in _NEEDS:
            self.call(_NEEDS[name], dtype, lanes)
        params, body = next(_FUNCTIONS[name, kind] for kind in kinds(dtype) if (name, kind) in _FUNCTIONS)
        double, value = dtype == "f64", ctype(dtype, lanes)
        body = body.format(
            magnitude="0x7fffffffffffffffUL" if double else "0x7fffffffu",
            sign="0x8000000000000000UL" if double else "0x80000000u",
            whole="4503599627370496.0" if double else "8388608.0f",
            fast="FP_FAST_FMA" if double else "FP_FAST_FMAF",
            rint=own.replace(name, "rint"),
            floor=own.replace(name, "floor"),
            mad=own.replace(name, "mad"),
            twice="6755399441057790.0" if double else "12583166.0f",
            fraction=52 if double else 23,
            T=value,
            U=unsigned(dtype, lanes),
        )
        arguments = ", ".join(f"{value} {p}" for p in params.split(", "))
        self._text[own] = _instruction(own, name, dtype, lanes, body) or f"static {value} {own}({arguments}) {body}\n"
        return own

    def _look_up(self, own: str, name: str, dtype: str, lanes: int) -> str:
        """Define an operation of ``tables``, which AVX-512 has an instruction for, of as many lanes as a register."""
        count, value = LANES[dtype], ctype(dtype, lanes)
        if lanes == count:
            numbers = [literal(v, dtype) for v in table(name, dtype)]
            low, *high = [f"({value})({', '.join(numbers[k : k + count])})" for k in range(0, len(numbers), count)]
            letter, whole = ("d", "long8") if dtype == "f64" else ("s", "int16")
            self._text[own] = _LOOK_UP.format(
                T=value,
                own=own,
                params=", ".join([f"{value} low", f"{whole} at", *(f"{value} high" for _ in high)]),
                instruction=f"vpermi2var.p{letter}" if high else f"permvar.{letter}f",
                numbers=", ".join([low, f"as_{whole}(a)", *high]),
            )
            return own
        of = self.call(name, dtype, count)
        if lanes > count:
            body = f"({value})({of}(a.lo), {of}(a.hi))"
        else:
            times = count // lanes
            part = ".s0" if lanes == 1 else ".lo" * (times.bit_length() - 1)
            body = f"{of}(({ctype(dtype, count)})({', '.join('a' * times)})){part}"
        self._text[own] = f"#ifdef KF_AVX512\nstatic {value} {own}({value} a) {{ return {body}; }}\n#endif\n"
        return own

    def any(self, mask: int, lanes: int) -> str:
        """Return the C name of a function that says whether a mask has any lane, defining it."""
        kind, own = f"{MASKS[mask]}{lanes}", f"kf_any_{MASKS[mask]}x{lanes}"
        inner = f"{self.any(mask, lanes // 2)}(a.lo | a.hi)" if lanes > 2 else "(a.lo | a.hi) != 0"
        self._text.setdefault(own, _ANY.format(own=own, T=kind, halves=inner))
        return own

    def dot(self) -> str:
        """Return the C name of a function that adds products of 32 bf16, in pairs, to the lanes of 16 f32, defining
        it.
        """
        self.call("mad", "f32", 16)
        self._text.setdefault("kf_dot", _DOT)
        return "kf_dot"

    def masked(self, what: Literal["load", "store"], dtype: str, lanes: int, space: str) -> str:
        """Return the C name of a function that reads or writes some lanes of a vector, defining it; what is not read
        is zero.
        """
        own = f"kf_{what}_{space.strip('_ ')}_{dtype}x{lanes}"
        if own not in self._text:
            value, mask = ctype(dtype, lanes), f"{MASKS[size(dtype)]}{lanes}"
            name, wide, chosen = _WIDE.get((size(dtype), lanes), ("", "", ""))
            body = (_READ if what == "load" else _WRITE).format(
                known=int(bool(name)),
                name=name,
                X=wide,
                chosen=f"__builtin_ia32_cvt{chosen}(mask)",
                M=MASKS[size(dtype)],
                E=ctype(dtype),
                T=value,
                lanes=lanes,
                loop=_LOOP.format(lanes=lanes),
            )
            place = f"{space}{'const ' if what == 'load' else ''}{ctype(dtype)}* p"
            head = (
                f"{value} {own}({mask} mask, {place})"
                if what == "load"
                else f"void {own}({mask} mask, {place}, {value} value)"
            )
            self._text[own] = f"static {head} {body}\n"
        return own

    def shuffle(self, dtype: str, lanes: int, order: Sequence[int]) -> str:
        """Return the C name of a function that picks elements of two vectors, which count on, defining it."""
        kind = ctype(dtype, lanes)
        own = f"kf_pick_{kind}_{'_'.join(map(str, order))}"
        each = (f"a.s{k:x}" if k < lanes else f"b.s{k - lanes:x}" for k in order)
        self._text.setdefault(
            own, _PICK.format(own=own, T=kind, order=", ".join(map(str, order)), each=", ".join(each))
        )
        return own

    def vector(self, dtype: str, lanes: int, align: int = 0) -> str:
        """Return the name of a vector type that starts at multiples of ``align`` bytes, or at any element."""
        own = f"kf_{ctype(dtype, lanes)}" + (f"_at{align}" if align else "")
        bytes_ = align or size(dtype)
        self._text.setdefault(own, f"typedef {ctype(dtype, lanes)} {own} __attribute__((aligned({bytes_})));\n")
        return own

    def texts(self) -> tuple[str, ...]:
        """Return the definitions; one of a name is the same in all sources."""
        return tuple(self._text.values())
