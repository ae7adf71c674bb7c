"""What generated kernels call beyond plain arithmetic: a table of intrinsics and their stand-ins for the simulator.

Each entry of ``TABLE`` says how to emit LLVM instructions (NVVM takes the dialect of LLVM 7) and how NumPy computes the
same, so a kernel's source reads the same on hardware and under ``NUMBA_ENABLE_CUDASIM=1``. Buffers are pointers: they
index without a shape, also backwards from their first element.
"""

# numba and NVIDIA's packages fill their modules when they load
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import cgutils, types
from numba.cuda.core import config
from numba.cuda.extending import intrinsic

from kernelforge.backends.cuda.mma import NARROW, PACK
from kernelforge.dtypes import DTYPES
from kernelforge.ir.interpret import tf32
from kernelforge.ir.kernel import MATH_BINARY, MATH_UNARY

SIMULATED: bool = bool(config.ENABLE_CUDASIM)
"""Whether numba was imported with ``NUMBA_ENABLE_CUDASIM=1``."""

SCALARS = tuple(name for name in DTYPES if name not in ("bool", "f16", "bf16"))
STORED = {name: getattr(types, DTYPES[name].name) for name in SCALARS}
STORED |= {"bool": types.uint8, "f16": types.uint16, "bf16": types.uint16}
"""The numba type of an element in memory: a bool is one byte, and a narrow float the bits of it."""

LANES = (2, 4, 8, 16)
WIDEST = 16
"""Bytes of the widest load, store or copy."""
LIBDEVICE = {
    **{name: name for name in (*MATH_UNARY, *MATH_BINARY, "sqrt", "floor", "ceil", "trunc", "rint")},
    "absolute": "fabs",
}
"""Our name of a function to NVIDIA's, less the prefix ``__nv_`` and the suffix ``f`` of f32."""


class Pointer:
    """A buffer in the simulator: ``array`` from element ``base`` on; it refuses what lies outside."""

    def __init__(self, array: np.ndarray[Any, Any], base: int = 0) -> None:
        self.array, self.base = array, base

    def _at(self, index: int) -> int:
        at = self.base + int(index)
        if not 0 <= at < len(self.array):
            raise IndexError(f"element {int(index)} of {len(self.array) - self.base}, {self.base} before the first")
        return at

    def __getitem__(self, index: int) -> Any:
        return self.array[self._at(index)]

    def __setitem__(self, index: int, value: Any) -> None:
        self.array[self._at(index)] = value


def _emit_copy(nbytes: int) -> Callable[[Any, Any, Any, Any], Any]:
    """Start a copy from memory to shared memory that goes by registers (PTX ISA, ``cp.async``): ``nbytes`` from one
    element to another, or zeros in their place.
    """
    # past the first-level cache where it can, as nobody else on this multiprocessor reads the same soon
    cached = "cg" if nbytes == WIDEST else "ca"

    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        shared, at, memory, start, present = values
        target = builder.addrspacecast(builder.gep(shared, [at]), shared.type.pointee.as_pointer(3))
        source = builder.addrspacecast(builder.gep(memory, [start]), memory.type.pointee.as_pointer(1))
        word = ir.IntType(32)
        taken = builder.select(present, word(nbytes), word(0))
        text = f"cp.async.{cached}.shared.global [$0], [$1], {nbytes}, $2;"
        operands = [builder.ptrtoint(target, word), builder.ptrtoint(source, ir.IntType(64)), taken]
        kind = ir.FunctionType(ir.VoidType(), [o.type for o in operands])
        builder.call(ir.InlineAsm(kind, text, "r,l,r,~{memory}", side_effect=True), operands)
        return context.get_dummy_value()

    return emit


def _copy_lanes(nbytes: int) -> Callable[[Pointer, int, Pointer, int, bool], None]:
    def run(shared: Pointer, at: int, memory: Pointer, start: int, present: bool) -> None:
        for k in range(nbytes // memory.array.dtype.itemsize):
            shared[at + k] = memory[start + k] if present else 0

    return run


def _emit_copies_done(context: Any, builder: Any, typed: Any, values: Any) -> Any:
    kind = ir.FunctionType(ir.VoidType(), [])
    builder.call(ir.InlineAsm(kind, "cp.async.wait_all;", "~{memory}", side_effect=True), [])
    return context.get_dummy_value()


def _emit_from_narrow(dtype: str) -> Callable[[Any, Any, Any, Any], Any]:
    """Widen the bits of a narrow float to f32."""

    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        if dtype == "f16":
            return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(values[0], word), word(16)), ir.FloatType())

    return emit


def _emit_to_narrow(dtype: str) -> Callable[[Any, Any, Any, Any], Any]:
    """Round an f32 to the bits of a narrow float, to nearest even (PTX ISA, ``cvt``)."""

    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(16), [ir.FloatType()])
        return builder.call(ir.InlineAsm(kind, f"cvt.rn.{dtype}.f32 $0, $1;", "=h,f"), values)

    return emit


def _emit_pair(context: Any, builder: Any, typed: Any, values: Any) -> Any:
    """Load two neighbours of 16 bits, the first of which has an even index, as one word."""
    memory, index = values
    return builder.load(builder.bitcast(builder.gep(memory, [index]), ir.IntType(32).as_pointer()), align=4)


def _emit_packed(context: Any, builder: Any, typed: Any, values: Any) -> Any:
    """Put two numbers of 16 bits into one word, the first one in its lower half."""
    word = ir.IntType(32)
    low, high = (builder.zext(v, word) for v in values)
    return builder.or_(low, builder.shl(high, word(16)))


def _rounded_bits(builder: Any, value: Any) -> Any:
    """Round f32 to tf32; the result's low bits are zero."""
    kind = ir.FunctionType(ir.IntType(32), [ir.FloatType()])
    return builder.call(ir.InlineAsm(kind, "cvt.rna.tf32.f32 $0, $1;", "=r,f"), [value], attrs=("readnone",))


def _emit_tf32(context: Any, builder: Any, typed: Any, values: Any) -> Any:
    return builder.bitcast(_rounded_bits(builder, values[0]), ir.FloatType())


def _emit_mma(form: str) -> Callable[[Any, Any, Any, Any], Any]:
    """Add a product of a warp, 16 x k by k x 8, to four accumulators of each lane (PTX ISA, ``mma.sync``): k is 16 for
    factors of 16 bits, which come in pairs, and 8 for those of 32, which are rounded here.
    """

    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        registers, at, *operands = values
        word, number = ir.IntType(64), ir.FloatType()
        places = [builder.gep(registers, [builder.add(at, word(k))]) for k in range(4)]
        kind = ir.FunctionType(ir.LiteralStructType([number] * 4), [ir.IntType(32)] * 6 + [number] * 4)
        text = (
            f"mma.sync.aligned.m16n8k{8 * PACK[form]}.row.col.f32.{form}.{form}.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        assembly = ir.InlineAsm(kind, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", side_effect=False)
        if form == "tf32":
            operands = [_rounded_bits(builder, x) for x in operands]
        made = builder.call(assembly, [*operands, *(builder.load(p) for p in places)])
        for k, place in enumerate(places):
            builder.store(builder.extract_value(made, k), place)
        return context.get_dummy_value()

    return emit


def _no_warp(*operands: Any) -> None:
    raise NotImplementedError("the simulator has no warps")


class Entry(NamedTuple):
    """One function of generated kernels.

    Attributes:
        arity: the number of operands.
        result: the numba type of the result from the operands' types.
        emit: ``emit(context, builder, types, values)`` emits instructions and returns the LLVM value.
        numpy: the stand-in, on NumPy scalars and ``Pointer``.
    """

    arity: int
    result: Callable[[Any], Any]
    emit: Callable[[Any, Any, Any, Any], Any]
    numpy: Callable[..., Any]


def _first(args: Any) -> Any:
    return args[0]


def _second(args: Any) -> Any:
    return args[1]


def _void(args: Any) -> Any:
    return types.void


def _always(type: Any) -> Callable[[Any], Any]:
    return lambda args: type


def _viewed_as(dtype: np.dtype[Any]) -> Callable[[Any], Any]:
    return lambda x: x.view(dtype)


def _is_float(type: Any) -> bool:
    return isinstance(type, types.Float)


def _vector_pointer(builder: Any, elements: ir.Type, count: int, base: Any, index: Any) -> Any:
    address = builder.gep(base, [index])
    return builder.bitcast(address, ir.VectorType(elements, count).as_pointer())


def _move(lanes: int, into: bool) -> Callable[[Any, Any, Any, Any], Any]:
    """Emit loads of ``lanes`` elements at an index into a register array, or their stores, 16 bytes at a time."""

    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        memory, index, registers = values
        size = typed[0].dtype.bitwidth // 8
        elements = context.get_data_type(typed[0].dtype)
        step = min(lanes, WIDEST // size)
        word = ir.IntType(64)
        for k in range(0, lanes, step):
            wide = _vector_pointer(builder, elements, step, memory, builder.add(index, word(k)))
            if into:
                vector = builder.load(wide, align=step * size)
            else:
                vector = ir.Constant(ir.VectorType(elements, step), ir.Undefined)
            for lane in range(step):
                one = builder.gep(registers, [word(k + lane)])
                if into:
                    builder.store(builder.extract_element(vector, ir.IntType(32)(lane)), one)
                else:
                    vector = builder.insert_element(vector, builder.load(one), ir.IntType(32)(lane))
            if not into:
                builder.store(vector, wide, align=step * size)
        return context.get_dummy_value()

    return emit


def _load_lanes(lanes: int) -> Callable[[Pointer, int, Pointer], None]:
    def run(memory: Pointer, index: int, registers: Pointer) -> None:
        for k in range(lanes):
            registers[k] = memory[index + k]

    return run


def _store_lanes(lanes: int) -> Callable[[Pointer, int, Pointer], None]:
    def run(memory: Pointer, index: int, registers: Pointer) -> None:
        for k in range(lanes):
            memory[index + k] = registers[k]

    return run


def _emit_pointer(context: Any, builder: Any, typed: Any, values: Any) -> Any:
    return context.make_array(typed[0])(context, builder, values[0]).data


def _emit_libdevice(name: str) -> Callable[[Any, Any, Any, Any], Any]:
    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        if not _is_float(typed[0]):
            assert name == "fabs"
            negative = builder.icmp_signed("<", values[0], values[0].type(0))
            return builder.select(negative, builder.neg(values[0]), values[0])
        suffix = "f" if typed[0] == types.float32 else ""
        kind = values[0].type
        callee = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * len(values)), f"__nv_{name}{suffix}"
        )
        return builder.call(callee, values)

    return emit


def _emit_extremum(sign: str) -> Callable[[Any, Any, Any, Any], Any]:
    """NaN in either operand wins, as in NumPy."""

    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        a, b = values
        if _is_float(typed[0]):
            chosen = builder.or_(builder.fcmp_ordered(sign, a, b), builder.fcmp_unordered("uno", a, a))
        else:
            compare = builder.icmp_signed if typed[0].signed else builder.icmp_unsigned
            chosen = compare(sign, a, b)
        return builder.select(chosen, a, b)

    return emit


def _emit_division(remainder: bool) -> Callable[[Any, Any, Any, Any], Any]:
    """Round down; the divisor is not zero."""

    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        a, b = values
        if not typed[0].signed:
            return builder.urem(a, b) if remainder else builder.udiv(a, b)
        zero, minus = a.type(0), builder.icmp_signed("==", b, a.type(-1))
        divisor = builder.select(minus, a.type(1), b)  # the least integer by -1 wraps, where LLVM leaves it open
        dividend = builder.select(minus, builder.neg(a), a)
        quotient, rest = builder.sdiv(dividend, divisor), builder.srem(dividend, divisor)
        signs_differ = builder.icmp_signed("<", builder.xor(rest, b), zero)
        adjust = builder.and_(signs_differ, builder.icmp_signed("!=", rest, zero))
        if remainder:
            return builder.add(rest, builder.select(adjust, b, zero))
        return builder.sub(quotient, builder.zext(adjust, a.type))

    return emit


def _emit_small_division(remainder: bool) -> Callable[[Any, Any, Any, Any], Any]:
    """Divide in 32 bits, for operands in [0, 2**31): four times cheaper than 64 bits on a GPU."""

    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        word = ir.IntType(32)
        a, b = (builder.trunc(v, word) for v in values)
        return builder.zext(builder.urem(a, b) if remainder else builder.udiv(a, b), values[0].type)

    return emit


def _emit_choose(context: Any, builder: Any, typed: Any, values: Any) -> Any:
    return builder.select(*values)


def _emit_bitcast(target: str) -> Callable[[Any, Any, Any, Any], Any]:
    def emit(context: Any, builder: Any, typed: Any, values: Any) -> Any:
        return builder.bitcast(values[0], context.get_value_type(STORED[target]))

    return emit


def _exact_fma(a: Any, b: Any, c: Any) -> Any:
    """Compute in rationals and round once."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0 or abs(exact) > sys.float_info.max:
        return a * b + c
    near = float(exact)
    if type(a) is np.float32 and Fraction(near) != exact and not np.float64(near).view(np.int64) & 1:
        # rounded to odd, the double still shows the second rounding on which side of a tie the exact value lies
        near = math.nextafter(near, math.inf if exact > near else -math.inf)
    return type(a)(near)


def _from_bits(dtype: str) -> Callable[[Any], Any]:
    return lambda bits: bits.view(DTYPES[dtype]).astype(np.float32)


def _to_bits(dtype: str) -> Callable[[Any], Any]:
    return lambda x: x.astype(DTYPES[dtype]).view(np.uint16)


_STAND_INS: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in MATH_UNARY if hasattr(np, name) and name not in ("erf", "erfc")},
    **{f"a{name}": getattr(np, f"arc{name}") for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{name: getattr(np, name) for name in ("sqrt", "floor", "ceil", "trunc", "rint", "absolute", "fmod")},
    "erf": lambda x: type(x)(math.erf(x)),
    "erfc": lambda x: type(x)(math.erfc(x)),
    "atan2": np.arctan2,
    "pow": np.power,
}

COPIES = (4, 8, 16)
"""Bytes that one asynchronous copy moves."""

TABLE: dict[str, Entry] = {
    **{f"copy{n}": Entry(5, _void, _emit_copy(n), _copy_lanes(n)) for n in COPIES},
    **{f"from_{name}": Entry(1, _always(types.float32), _emit_from_narrow(name), _from_bits(name)) for name in NARROW},
    **{f"to_{name}": Entry(1, _always(types.uint16), _emit_to_narrow(name), _to_bits(name)) for name in NARROW},
    "pair": Entry(2, _always(types.uint32), _emit_pair, _no_warp),
    "packed": Entry(2, _always(types.uint32), _emit_packed, _no_warp),
    **{f"mma_{name}": Entry(8, _void, _emit_mma(name), _no_warp) for name in PACK},
    "tf32": Entry(1, _always(types.float32), _emit_tf32, tf32),
    "copies_done": Entry(0, _void, _emit_copies_done, lambda: None),
    **{f"ld{n}": Entry(3, _void, _move(n, into=True), _load_lanes(n)) for n in LANES},
    **{f"st{n}": Entry(3, _void, _move(n, into=False), _store_lanes(n)) for n in LANES},
    "pointer": Entry(1, lambda args: types.CPointer(args[0].dtype), _emit_pointer, Pointer),
    **{
        name: Entry(2 if name in MATH_BINARY else 1, _first, _emit_libdevice(theirs), _STAND_INS[name])
        for name, theirs in LIBDEVICE.items()
    },
    "fma": Entry(3, _first, _emit_libdevice("fma"), _exact_fma),
    "minimum": Entry(2, _first, _emit_extremum("<"), np.minimum),
    "maximum": Entry(2, _first, _emit_extremum(">"), np.maximum),
    "floordiv": Entry(2, _first, _emit_division(remainder=False), lambda a, b: a // b),
    "mod": Entry(2, _first, _emit_division(remainder=True), lambda a, b: a % b),
    "small_div": Entry(2, _first, _emit_small_division(remainder=False), lambda a, b: a // b),
    "small_mod": Entry(2, _first, _emit_small_division(remainder=True), lambda a, b: a % b),
    "choose": Entry(3, _second, _emit_choose, lambda c, a, b: a if c else b),
    **{
        f"as_{name}": Entry(1, _always(STORED[name]), _emit_bitcast(name), _viewed_as(DTYPES[name])) for name in SCALARS
    },
}


def _as_intrinsic(name: str, entry: Entry) -> Any:
    """Wrap an entry for numba, which reads the number of operands off the signature."""

    def typing(*args: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return entry.emit(context, builder, signature.args, values)

        operands = tuple(types.unliteral(a) for a in args)
        return entry.result(operands)(*operands), emit

    by_arity: dict[int, Callable[..., Any]] = {
        0: lambda context: typing(),
        1: lambda context, a: typing(a),
        2: lambda context, a, b: typing(a, b),
        3: lambda context, a, b, c: typing(a, b, c),
        5: lambda context, a, b, c, d, e: typing(a, b, c, d, e),
        8: lambda context, a, b, c, d, e, f, g, h: typing(a, b, c, d, e, f, g, h),
    }
    function = by_arity[entry.arity]
    function.__name__ = function.__qualname__ = name
    return intrinsic(function)


def _counted(*bounds: Any) -> Iterator[Any]:
    """``range`` of the simulator: loop variables wrap as they do on hardware."""
    return map(np.int64, range(*bounds))


def _make_namespace() -> dict[str, Any]:
    shared: dict[str, Any] = {"cuda": cuda, "inf": math.inf, "nan": math.nan}
    shared |= {name: DTYPES[name].type for name in SCALARS}
    shared |= {f"t_{name}": typed for name, typed in STORED.items()}
    if SIMULATED:
        return shared | {name: entry.numpy for name, entry in TABLE.items()} | {"range": _counted}
    return shared | {name: _as_intrinsic(name, entry) for name, entry in TABLE.items()}


_NAMESPACE = _make_namespace()
RESERVED: frozenset[str] = frozenset(_NAMESPACE) | {"range", "block", "thread", "lane"}
"""Names that a kernel's own buffers and variables must not take."""


def namespace() -> dict[str, Any]:
    """Return fresh globals for the source of a kernel."""
    return dict(_NAMESPACE)
