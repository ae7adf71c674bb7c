"""Operations on values of every dtype on the CPU backend, against the interpreter and NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kernelforge.backends.cpu.host import host
from kernelforge.backends.cpu.printer import print_kernel
from kernelforge.devices import default_device
from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS, NARROW_FLOATS, SIGNED
from kernelforge.ir import math
from kernelforge.ir.kernel import ARITY, Arg, Const, Expr, For, Kernel, Load, Op, Store, Var, i64, op, select
from kernelforge.ir.math import EXPANSIONS, MANY
from kernelforge.ir.passes.finish import finish
from kernelforge.jit import jit
from tests.backends.on_cpu import CPU, SPECIAL, Array, check_map, compare, execute, mapped, uses, values

FLOAT_UNARY = ("neg", "abs", "sqrt", "floor", "ceil", "trunc", "rint")
FLOAT_BINARY = ("add", "sub", "mul", "div", "min", "max")
INT_BINARY = ("add", "sub", "mul", "min", "max", "and", "or", "xor")


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_float_operations(dtype: str) -> None:
    for name in FLOAT_UNARY:
        check_map(name, (dtype,), dtype, lambda x, name=name: op(name, x))
    for name in FLOAT_BINARY:
        check_map(name, (dtype, dtype), dtype, lambda x, y, name=name: op(name, x, y))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        check_map(name, (dtype, dtype), "bool", lambda x, y, name=name: op(name, x, y))


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("lanes", [1, 2, 4, 12, 16, 64])
def test_a_nan_stays_in_an_extremum_whichever_operand_has_it(dtype: str, name: str, lanes: int) -> None:
    kernel = mapped(name, (dtype, dtype), dtype, lambda x, y: op(name, x, y), "vector", 64, lanes)
    pairs = list(itertools.product((np.nan, -np.nan, np.inf, -np.inf, 1.0, -2.0, 0.0, 5.0), repeat=2))
    x, y = (np.array(part, DTYPES[dtype]) for part in zip(*pairs, strict=True))
    compare(kernel, {"x0": x, "x1": y, "y": np.zeros(64, DTYPES[dtype])})
    if lanes & (lanes - 1):
        return  # such lanes are not folded
    rows = lanes + 1  # the first without a NaN, the others with one each
    row, lane = Var("r", bound=rows), Var("v", bound=lanes)
    total = (Store("y", (row,), Load("x0", (row * lanes + lane,), dtype), name),)
    nest = For(row, i64(rows), "serial", (For(lane, i64(lanes), "vector", total),))
    args = (Arg("x0", dtype, i64(rows * lanes), "in"), Arg("y", dtype, i64(rows), "out"))
    x = np.tile(np.linspace(-3, 2, lanes), (rows, 1)).astype(DTYPES[dtype])
    x[np.arange(1, rows), np.arange(lanes)] = np.nan
    compare(Kernel(name, args, (), (nest,)), {"x0": x.ravel(), "y": np.ones(rows, DTYPES[dtype])})


def test_what_iterations_written_out_have_in_common_is_printed_once() -> None:
    unit, lane = Var("u", bound=8), Var("v", bound=16)
    at = unit * 16 + lane
    value = (Load("x", (unit // 4 * 16 + lane,), "i32") ^ Const(77, "i32")) + (unit % 4).cast("i32")
    body = For(unit, i64(8), "unroll", (For(lane, i64(16), "vector", (Store("y", (at,), value),)),))
    kernel = Kernel("shared", (Arg("x", "i32", i64(32), "in"), Arg("y", "i32", i64(128), "out")), (), (body,))
    compare(kernel, {"x": np.arange(32, dtype=np.int32), "y": np.zeros(128, np.int32)})
    text = print_kernel(kernel, CPU.host)
    assert text.count(" xor ") == 2
    assert "udiv" not in text
    assert "urem" not in text


@pytest.mark.parametrize("dtype", sorted(INTEGERS))
def test_integer_operations(dtype: str) -> None:
    for name in INT_BINARY:
        check_map(name, (dtype, dtype), dtype, lambda x, y, name=name: op(name, x, y))
    for name in ("neg", "abs", "not"):
        check_map(name, (dtype,), dtype, lambda x, name=name: op(name, x))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        check_map(name, (dtype, dtype), "bool", lambda x, y, name=name: op(name, x, y))
    bits = DTYPES[dtype].itemsize * 8
    for name in ("shl", "shr"):
        check_map(name, (dtype, dtype), dtype, lambda x, y, name=name: op(name, x, y & (bits - 1)))


@pytest.mark.parametrize("dtype", sorted(INTEGERS))
@pytest.mark.parametrize("name", ["floordiv", "mod"])
def test_integer_division(dtype: str, name: str) -> None:
    check_map(name, (dtype, dtype), dtype, lambda x, y: select(y.eq(0), Const(0, dtype), op(name, x, y)))
    divisors = (1, 3, 7, 64, 100) + ((-1, -3, -64) if dtype in SIGNED else ())
    for d in divisors:
        check_map(name, (dtype,), dtype, lambda x, d=d: divided(name, x, d))


def divided(name: str, x: Expr, d: int) -> Expr:
    """Divide by a constant without folding."""
    return Op(name, (x, Const(d, x.dtype)), x.dtype)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(DTYPES, 2)))
def test_casts(source: str, target: str) -> None:
    n = 64
    x = values(source, n)
    if source in FLOATS and target in INTEGERS:
        info = np.iinfo(DTYPES[target])
        with np.errstate(invalid="ignore"):
            wide = np.nan_to_num(x.astype(np.float64), posinf=0, neginf=0)
        x = np.where((wide > float(info.min)) & (wide < min(float(info.max), 2.0**62)), wide, 1.0).astype(
            DTYPES[source]
        )
    with np.errstate(over="ignore", invalid="ignore"):
        if target == "bool":
            expected = x.astype(np.float64) != 0 if source in FLOATS else x != 0
        elif target == "bf16" and source == "f64":
            expected = _nearest_bf16(x)
        elif source == "bf16" or (target in NARROW_FLOATS and source in INTEGERS | {"bool"}):
            expected = x.astype(np.float32).astype(DTYPES[target])
        else:
            expected = x.astype(DTYPES[target])
    for kind in ("parallel", "vector"):
        kernel = mapped("cast", (source,), target, lambda x: x.cast(target), kind, n)
        y = execute(kernel, {"x0": x, "y": np.zeros(n, DTYPES[target])})["y"]
        exact = DTYPES["f32" if target == "bf16" else target]
        np.testing.assert_array_equal(y.astype(exact), expected.astype(exact))


def _nearest_bf16(x: Array) -> Array:
    """Round float64 to bfloat16 once."""
    out = x.astype(DTYPES["bf16"])
    bits = out.view(np.uint16)
    best = out.copy()
    for d in (-1, 1):
        near = (bits + np.uint16(d % 65536)).view(DTYPES["bf16"]).astype(np.float64)
        with np.errstate(invalid="ignore"):
            closer = np.abs(near - x) < np.abs(best.astype(np.float64) - x)
        best = np.where(closer, near.astype(DTYPES["bf16"]), best)
    return best


def test_bool_in_memory_is_one_byte_and_any_nonzero_byte_is_true() -> None:
    for kind in ("parallel", "vector"):
        kernel = mapped("flip", ("bool",), "bool", lambda x: ~x, kind)
        raw = np.array([0, 1, 2, 255] * 16, np.uint8)
        y = execute(kernel, {"x0": raw.view(bool), "y": np.zeros(64, bool)})["y"]
        np.testing.assert_array_equal(y.view(np.uint8), (raw == 0).astype(np.uint8))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_library_functions(dtype: str) -> None:
    for name in ("exp", "log", "sin", "tanh", "erf", "cbrt", "expm1"):
        check_map(name, (dtype,), dtype, lambda x, name=name: op(name, x), rtol=1e-6 if dtype == "f32" else 1e-14)
    for name in ("atan2", "pow", "fmod"):
        check_map(
            name, (dtype, dtype), dtype, lambda x, y, name=name: op(name, x, y), rtol=1e-6 if dtype == "f32" else 1e-14
        )


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_fma_rounds_once(dtype: str) -> None:
    check_map("fma", (dtype, dtype, dtype), dtype, lambda x, y, z: op("fma", x, y, z))


@pytest.mark.skipif("scaleb" not in host().native, reason="the processor has no such instruction")
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_scaleb_over_the_whole_range(dtype: str) -> None:
    check_map(
        "scaleb", (dtype, dtype), dtype, lambda x, n: op("scaleb", x, select(op("abs", n) < 5000, op("rint", n), 3))
    )


def test_no_contraction_outside_of_fma() -> None:
    check_map("mul_add", ("f32", "f32", "f32"), "f32", lambda x, y, z: x * y + z)


def test_bitcasts() -> None:
    for a, b in (
        ("f32", "u32"),
        ("f32", "i32"),
        ("f64", "i64"),
        ("u16", "f16"),
        ("u64", "f64"),
        ("i8", "u8"),
        ("bf16", "u16"),
    ):
        check_map("bitcast", (a,), b, lambda x, b=b: x.bitcast(b))
        if "bf16" not in (a, b):
            check_map("bitcast", (b,), a, lambda x, a=a: x.bitcast(a))


def test_constants() -> None:
    for dtype in sorted(FLOATS):
        for value in SPECIAL:
            check_map(
                "const",
                (dtype,),
                dtype,
                lambda x, value=value, dtype=dtype: select(x.eq(x), Const(value, dtype), x),
                n=16,
            )
    check_map("ints", ("u64",), "u64", lambda x: x ^ Const(2**64 - 1, "u64"), n=16)
    check_map("ints", ("i64",), "i64", lambda x: x ^ Const(-(2**63), "i64"), n=16)


def test_what_is_rare_in_a_function_stands_in_a_module_once() -> None:
    """A far angle's reduction takes five times as many operations as a near one's."""

    def printed(count: int) -> list[str]:
        def chain(x: Expr) -> Expr:
            for k in range(count):
                x = op("sin", x * (1 + k / 8))
            return x

        made = finish(mapped("sin", ("f32",), "f32", chain, "vector"), CPU.host.native)
        return print_kernel(made, CPU.host).splitlines()

    one, few, many = printed(1), printed(MANY // 2), printed(MANY)
    for lines in (one, few, many):
        (start,) = (k for k, line in enumerate(lines) if line.startswith("define") and "@sin." in line)
        calls = [k for k, line in enumerate(lines) if "call" in line and "@sin." in line]
        assert calls
        assert min(calls) > next(k for k, line in enumerate(lines) if line.startswith("then"))
    whole = lines.index("}", start) - start
    assert len(many) - len(few) < (MANY - MANY // 2) * whole / 2


def test_a_function_of_many_uses_stands_in_a_module_once() -> None:
    """Each use of it takes LLVM milliseconds: 300 of sin took 8 s."""

    def printed(count: int) -> list[str]:
        return print_kernel(finish(uses("sin", "f32", count), CPU.host.native), CPU.host).splitlines()

    few, many = printed(MANY + 1), printed(4 * MANY)
    for lines, count in ((few, MANY + 1), (many, 4 * MANY)):
        assert sum(line.startswith("define") and "@sin.usual." in line for line in lines) == 1
        assert sum(line.startswith("define") and "@sin.v" in line for line in lines) == 1
        called = sum("call" in line and "@sin.usual." in line for line in lines)
        assert called == count * -(-4 * 64 // (CPU.host.vector_bytes * CPU.host.side))
    assert len(many) - len(few) < 12 * (3 * MANY - 1)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", sorted(EXPANSIONS))
def test_a_function_of_many_uses_is_what_it_is_in_line(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {f"x{k}": np.roll(values(dtype, 64, k), 5 * k) for k in range(ARITY[name])}
    if name == "scaleb":
        arrays["x1"] = np.rint(arrays["x0"].clip(-9, 9))
    for lanes in (64, 16, 4):
        kernel, made = uses(name, dtype, 3, 64, lanes), []
        for most in (2, 3):
            monkeypatch.setattr(math, "MANY", most)
            made.append(execute(finish(kernel, CPU.host.native), {**arrays, "y": np.zeros(64, DTYPES[dtype])})["y"])
        np.testing.assert_array_equal(*made)


def test_what_is_rare_stays_in_its_branch() -> None:
    """Division bit by bit costs fifty times as much as where the quotient is short."""
    made = finish(mapped("fmod", ("f32", "f32"), "f32", lambda x, y: op("fmod", x, y), "vector"), CPU.host.native)
    lines = print_kernel(made, CPU.host).splitlines()
    calls = [k for k, line in enumerate(lines) if "call float @fmodf" in line]
    inside = next(k for k, line in enumerate(lines) if line.startswith("then"))
    assert calls
    assert calls[0] > inside


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_lanes_that_a_mask_leaves_out_of_a_quotient_stay_out(dtype: str) -> None:
    """LLVM 22 takes 0/0 for 0 where it knows both, and then drops the mask: these were NaN."""

    def padded(a: Array, p: Array, q: Array) -> Array:
        return np.pad(np.where(a[:2] == 0, p[:2] / q[:2], 0.0), (0, 2))

    x = np.array([3, 2, 5, 7], dtype)
    with default_device("cpu"):
        np.testing.assert_array_equal(jit(padded)(0 * x, x, x), [1, 1, 0, 0])


@pytest.mark.parametrize("step", [1, 3, -1, -2])
@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_indices_of_lanes_are_compared_in_32_bits(name: str, step: int) -> None:
    row, lane = Var("r", "i64", 40), Var("v", "i64", 16)
    index = row * 16 + lane
    picked = select(op(name, lane * step + 7, row * 3 - 40), Load("x", (index,), "f32"), Const(-1.0, "f32"))
    inner = For(lane, i64(16), "vector", (Store("y", (index,), picked),))
    args = (Arg("x", "f32", i64(640), "in"), Arg("y", "f32", i64(640), "out"))
    kernel = Kernel("edges", args, (), (For(row, i64(40), "serial", (inner,)),))
    compare(kernel, {"x": values("f32", 640), "y": np.zeros(640, np.float32)})
    text = print_kernel(kernel, host())
    assert "<16 x i32> <i32 0, " in text
    assert "icmp" not in "".join(line for line in text.splitlines() if "<16 x i64>" in line)


def test_indices_that_are_data_are_compared_as_they_are() -> None:
    row, lane = Var("r", "i64", 4), Var("v", "i64", 16)
    index = row * 16 + lane
    picked = select(lane < Load("n", (row,), "i64"), Const(1.0, "f32"), Const(0.0, "f32"))
    inner = For(lane, i64(16), "vector", (Store("y", (index,), picked),))
    args = (Arg("n", "i64", i64(4), "in"), Arg("y", "f32", i64(64), "out"))
    kernel = Kernel("ends", args, (), (For(row, i64(4), "serial", (inner,)),))
    info = np.iinfo(np.int64)
    compare(kernel, {"n": np.array([info.min, info.max, 5, -1]), "y": np.zeros(64, np.float32)})
