"""The text that the OpenCL backend prints."""

from __future__ import annotations

import re

import pytest

from kernelforge.backends.opencl.lib import literal
from kernelforge.backends.opencl.phases import Source
from kernelforge.backends.opencl.printer import print_opencl
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    Var,
    i64,
    op,
    select,
)
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.passes.finish import finish
from tests.backends.on_opencl import K, R, V, X, Y, f32, lanes, over


def printed(*body: Stmt, workers: int = 8) -> Source:
    return print_opencl(Kernel("k", (X, K, Y), (), body), workers, 1 << 15)


def test_traps_are_not_printed() -> None:
    """PoCL's wheel runs these forty times slower, or Intel's does not vectorise them."""
    v = Load("x", (R * 8 + V,), "f32")
    value = op("max", op("floor", v), op("rint", v)) * op("trunc", v) + op("ceil", op("abs", v))
    text = printed(over(lanes(Store("y", (R * 8 + V,), value), Store("y", (V,), v * v, "add")))).text
    for trap in (
        "clamp(",
        "rint(a",
        " rint(",
        "vload",
        "vstore",
        "mad(a",
        "fmax(",
        "floor(a",
        "int r =",
        "int v =",
        "size_t",
    ):
        assert trap not in text
    assert "*(__global const kf_float8*)(x + " in text
    assert "typedef float8 kf_float8 __attribute__((aligned(4)));" in text
    assert "const long r = kf_at;" in text


def test_instructions_stand_beside_plain_arithmetic() -> None:
    v = Load("x", (R * 8 + V,), "f32")
    text = printed(over(lanes(Store("y", (R * 8 + V,), op("max", op("scaleb", v, v), v))))).text
    assert SCALED in text
    assert 'float8 kf_max_f32x8_at(float8 a, float8 b) __asm("llvm.x86.avx.max.ps.256");' in text
    assert "as_uint8(kf_max_f32x8_at(a, b)) | as_uint8(kf_max_f32x8_at(b, a))" in text
    few = printed(over(lanes(Store("y", (R * 8 + V,), op("max", v, v)), n=2))).text
    assert "__asm" not in few


SCALED = """\
#ifdef KF_AVX512
float8 kf_scaleb_f32x8_at(float8 a, float8 b, float8 other, uchar chosen) __asm("llvm.x86.avx512.mask.scalef.ps.256");
static float8 kf_scaleb_f32x8(float8 a, float8 b) {
    return kf_scaleb_f32x8_at(a, b, a, -1);
}
#else
static float8 kf_scaleb_f32x8(float8 a, float8 b) {
    uint8 i = as_uint8(kf_floor_f32x8(b) + (float8)12583166.0f), h = i >> 1;
    return a * as_float8(h << 23) * as_float8((i - h) << 23);
}
#endif
"""


def test_tables_are_looked_up_in_registers_by_whatever_lanes() -> None:
    """The instruction takes a whole register, of which shorter vectors are a part and longer ones are two."""

    def found(lanes_: int, dtype: str, name: str = "exp2_low") -> str:
        v = Load("x", (R * lanes_ + V,), dtype)
        return printed(over(lanes(Store("y", (R * lanes_ + V,), op(name, v)), n=lanes_))).text

    whole = found(16, "f32")
    assert 'kf_exp2_low_f32x16_at(float16 low, int16 at) __asm("llvm.x86.avx512.permvar.sf.512");' in whole
    assert "(float16)(1.0e+00f, 1.0442737" in whole
    assert "{ return kf_exp2_low_f32x16((float16)(a, a, a, a)).lo.lo; }" in found(4, "f32")
    assert "{ return kf_exp2_low_f32x16((float16)(a, a)).lo; }" in found(8, "f32")
    assert "{ return kf_exp2_low_f64x8((double8)(a, a)).lo; }" in found(4, "f64")
    assert "{ return (double16)(kf_exp2_low_f64x8(a.lo), kf_exp2_low_f64x8(a.hi)); }" in found(16, "f64")
    two = found(16, "f32", "erf_0")
    assert 'float16 low, int16 at, float16 high) __asm("llvm.x86.avx512.vpermi2var.ps.512");' in two
    assert "return kf_erf_0_f32x16_at((float16)(1.1283" in two


def test_products_of_bf16_are_added_in_pairs() -> None:
    text = print_opencl(parse_kernel(PAIRS), 8, 1 << 15).text
    place = "*(__global kf_float16*)(y + 0L)"
    a, b = "(uint16)((*(__global const kf_uint_at2*)(a + 0L)))", "(*(__global const kf_uint16_at2*)(b + 0L))"
    assert f"{place} = kf_dot(({a}), {b}, {place});" in text
    assert '__asm("llvm.x86.avx512bf16.dpbf16ps.512")' in text
    apart = print_opencl(parse_kernel(PAIRS.replace("v * 2 + p", "v + p * 16")), 8, 1 << 15).text
    assert "kf_dot" not in apart


PAIRS = """\
kernel dots(in a: u16[2], in b: u16[32], inout y: f32[16]) {
  for grid i < 1 {
    for vector v < 16 {
      for unroll p < 2 {
        y[v] += bitcast@f32(u32(a[p]) << 16u32) * bitcast@f32(u32(b[v * 2 + p]) << 16u32)
      }
    }
  }
}
"""


APART = """kernel apart(in x: f32[320], inout y: f32[640]) {{
  for grid i < 4 {{
    for vector v < 8 {{
      {body}
    }}
  }}
}}"""


@pytest.mark.parametrize(("body", "loads", "picks", "stores"), [
    ("y[i * 8 + v] = x[i * 16 + v * 2]", 2, ["0_2_4_6_9_11_13_15"], 1),
    ("y[i * 8 + v] = x[i * -16 - v * 2 + 79]", 2, ["15_13_11_9_6_4_2_0"], 1),
    ("y[i * 16 + v * 2 + 1] = x[i * 8 + v]\ny[i * 16 + v * 2] = x[i * 8 + v + 1]", 2,
     ["0_8_1_9_2_10_3_11", "4_12_5_13_6_14_7_15"], 2),
])  # fmt: skip
def test_what_lies_a_few_elements_apart_is_shuffled(body: str, loads: int, picks: list[str], stores: int) -> None:
    text = print_opencl(parse_kernel(APART.format(body=body)), 8, 1 << 15).text
    assert text.count("*(__global const kf_float8*)") == loads
    assert text.count("*(__global kf_float8*)") == stores
    for pick in picks:
        assert f"float8 kf_pick_float8_{pick}(float8 a, float8 b)" in text
        assert f"__builtin_shufflevector(a, b, {pick.replace('_', ', ')})" in text
    for body in ("y[i * 8 + v] = x[i * 72 + v * 9]", "y[i * 16 + v * 2] = x[i * 8 + v]"):
        assert "kf_pick" not in print_opencl(parse_kernel(APART.format(body=body)), 8, 1 << 15).text


def test_a_tile_is_transposed_in_registers() -> None:
    turned = """kernel turned(in x: f32[64], out y: f32[64]) {
      for grid i < 1 {
        local t: f32[8, 8]
        for unroll k < 8 {
          for vector v < 8 {
            t[v, k] = x[k * 8 + v]
          }
        }
        for parallel j < 8 {
          for vector v < 8 {
            y[j * 8 + v] = t[j, v]
          }
        }
      }
    }"""
    text = print_opencl(parse_kernel(turned), 8, 1 << 15).text
    for pick in ("kf_pick_float8_0_8_1_9_2_10_3_11", "kf_pick_float8_4_12_5_13_6_14_7_15"):
        assert text.count(f"{pick}(kf") == 12
    assert text.count("*(__local kf_float8*)(t + ") == 8 or text.count("*(kf_float8*)(t + ") == 8


def test_only_whole_parts_of_lines_are_stored_past_the_cache() -> None:
    def streamed(*body: Stmt, least: int = 32) -> str:
        return print_opencl(Kernel("k", (X, K, Y), (), body), 8, 1 << 15, {"y": least}).text.split("__kernel")[2]

    v = Load("x", (R * 8 + V,), "f32")
    assert "kf_stream(" in streamed(over(lanes(Store("y", (R * 8 + V,), v))))
    for other in (Store("y", (R * 8 + V + 1,), v), Store("y", (R + V,), v), Store("y", (R * 8 + V,), v, "add")):
        assert "kf_stream(" not in streamed(over(lanes(other)))
    assert "kf_stream(" not in streamed(over(lanes(Store("y", (R * 8 + V,), v))), least=64)
    half = """kernel half(in x: u16[256], out y: u16[256]) {
      for grid i < 4 {
        for vector v < 64 {
          y[i * 64 + v] = x[i * 64 + v]
        }
      }
    }"""
    _, through, past = print_opencl(parse_kernel(half), 8, 1 << 15, {"y": 64}).text.split("__kernel")
    assert "kf_stream(" in past  # in vectors of 16, half a line
    assert "kf_stream(" not in through


def test_longer_loops_are_vectors_side_by_side() -> None:
    at = Var("v", bound=32)
    a = Var("a", "f32")
    body = (Let("a", f32("x", at)), Store("y", (at,), a * a))
    lines = [line.strip() for line in printed(over(lanes(*body, n=32))).text.splitlines() if "float16" in line]
    assert lines[-4:] == [
        "const float16 a_0 = (*(__global const kf_float16*)(x + 0L));",
        "const float16 a_1 = (*(__global const kf_float16*)(x + 16L));",
        "*(__global kf_float16*)(y + 0L) = (a_0 * a_0);",
        "*(__global kf_float16*)(y + 16L) = (a_1 * a_1);",
    ]
    one_by_one = printed(over(lanes(Store("y", (R,), f32("x", at), "max"), n=32))).text
    assert "float16" not in one_by_one.split("__kernel")[1].split("{")[1]


def test_only_a_sum_of_products_is_contracted() -> None:
    plain = printed(over(Store("y", (R,), f32("x", R) * f32("x", R + 1) + f32("x", 3)))).text
    assert plain.startswith("#pragma OPENCL FP_CONTRACT OFF")
    assert "FP_CONTRACT ON" not in plain
    total = printed(over(Store("y", (R,), f32("x", R) * f32("x", R + 1), "add"))).text
    assert total.count("FP_CONTRACT ON") == 1
    assert "kf_mad_f32(x[r], x[(r + 1L)], (y[r]))" in total


def test_a_lazy_arm_is_not_named_ahead() -> None:
    far = f32("x", V * (1 << 40))
    text = printed(over(lanes(Store("y", (V,), select(V < 1, far + far, 0.0)))), workers=0).text
    assert "kf_t" not in text
    assert text.count("? (x[") >= 8


def test_some_lanes_are_read_and_written_by_masks() -> None:
    lane = V + R % 3 * 4
    far = f32("x", R * 8 + V + (1 << 40))
    value = far + select(lane < 7, f32("x", R * 8 + V + (1 << 30)), 0.0)
    text = printed(over(lanes(If(lane < 8, (Store("y", (R * 8 + V,), value),))))).text
    body = text.split("__kernel")[1]
    # one where all lanes are wanted, of those that the select wants; both in the others
    assert body.count("kf_load_global_f32x8(") == 3
    assert "kf_store_global_f32x8(" in body
    assert "x[" not in body


def test_lanes_that_lie_apart_are_distances_from_one_index() -> None:
    """Vectors of indices, element by element, took compilers twice as long."""
    text = printed(over(lanes(Store("y", (R + V * 8,), Load("x", (V * 9,), "f32"))))).text
    assert "long8" not in text
    assert "+ 56L] = " in text
    assert "+ 63L]" in text


def test_barriers_stand_between_phases_that_touch_the_same_local_memory() -> None:
    def t(n: int) -> Var:
        return Var(f"t{n}", bound=n)

    def items(n: int, *body: Stmt) -> Stmt:
        return For(t(n), i64(n), "group", body)

    body = over(
        Alloc("a", "f32", (i64(32),), "local"),
        Alloc("b", "f32", (i64(32),), "local"),
        items(32, Store("a", (t(32),), f32("x", t(32)))),
        items(16, Store("b", (t(16),), f32("x", t(16)))),
        items(8, Store("y", (t(8),), f32("a", t(8) + 8) + f32("b", t(8)))),
        items(4, Store("y", (t(4) + 40,), f32("a", t(4)))),
        items(2, Store("b", (t(2),), Const(0.0, "f32"))),
    )
    text = printed(body, workers=0).text
    lines = [line.strip() for line in text.splitlines()]
    assert [k for k in lines if k.startswith("barrier")] == [
        "barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);",
        "barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);",
    ]
    first, second = (k for k, line in enumerate(lines) if line.startswith("barrier"))
    assert lines.index("if (kf_item < 16u) {") < first < lines.index("if (kf_item < 8u) {")
    assert lines.index("if (kf_item < 8u) {") < second < lines.index("if (kf_item < 4u) {")
    assert "reqd_work_group_size(32, 1, 1)" in text
    assert "if (kf_item < 32u)" not in text
    assert "vec_type_hint" not in text
    alone = printed(over(lanes(Store("y", (R * 8 + V,), f32("x", R * 8 + V))))).text
    assert "reqd_work_group_size(1, 1, 1), vec_type_hint(float16)" in alone


REPEATED = """\
kernel k(in x: f32[32], out y: f32[32], scratch on: bool[1]) {
  for grid i < 1 {
    for parallel j < 1 {
      on[0] = true
    }
  }
  for serial turn < select(on[0], 8, 0) {
    for grid i < 2 {
      for parallel j < 16 {
        y[i * 16 + j] = x[i * 16 + j] + y[31 - i * 16 - j]
      }
    }
    for parallel i < 1 {
      on[0] = y[0] < 9.0f32
    }
  }
}
"""


def test_one_worker_repeats_phases() -> None:
    """One work-item needs no barrier before it asks whether there is another turn."""
    source = print_opencl(parse_kernel(REPEATED), 8, 1 << 15)
    (phase,) = source.phases
    assert (phase.count, phase.items, phase.grouped) == (i64(1), 1, False)
    marks = ("barrier", "for (", "if (", "on[0L] =", "y[")
    lines = [t.strip().split(" = ")[0] for t in source.text.split("__kernel")[1].splitlines()]
    assert [t for t in lines if t.startswith(marks) or t == "on[0L]"] == [
        "for (long kf_at",
        *("for (long i", "for (long j", "on[0L]"),
        "for (long turn",
        *("for (long i", "for (long j", "y[kf_t2]"),
        *("for (long i", "on[0L]"),
    ]


def test_literals_are_exact() -> None:
    assert literal(0.1, "f32") == "1.0e-01f"
    assert literal(-0.0, "f32") == "(-0.0e+00f)"
    assert literal(float("inf"), "f64") == "as_double(0x7ff0000000000000UL)"
    assert literal(1e300, "f32") == "INFINITY"
    assert literal(-(2**63), "i64") == "(-9223372036854775807L - 1)"
    assert literal(2**64 - 1, "u64") == "18446744073709551615UL"


def test_names_that_opencl_knows_are_changed() -> None:
    half = Arg("half", "f32", i64(8), "in")
    body = over(Let("float4", Load("half", (R,), "f32")), Store("kernel", (R,), Var("float4", "f32")))
    text = print_opencl(Kernel("exp", (half, Arg("kernel", "f32", i64(8), "out")), (), (body,)), 8, 1 << 15).text
    assert "const float float4_ = half_[r];" in text
    assert "kernel_[r] = float4_;" in text


def test_a_walk_asks_memory_for_what_it_reads_later() -> None:
    body = (over(lanes(Store("y", (R * 8 + V,), f32("x", R * 8 + V)))),)
    kernel = Kernel("k", (X, K, Y), (), body)
    assert "kf_fetch(x + (r * 8L), 14336, 2);" in print_opencl(kernel, 8, 1 << 15, caches=(32 << 10, 1 << 20)).text
    assert "kf_fetch(x + (r * 8L), 14336, 3);" in print_opencl(kernel, 8, 1 << 15, caches=(48 << 10, 1 << 20)).text
    assert "kf_fetch(x" not in print_opencl(kernel, 0, 1 << 15).text


def test_what_is_rare_is_a_function_and_asked_for_once() -> None:
    """Of vectors side by side, each would wait for what was asked of the one before."""
    native, at = frozenset({"calls"}), R * 32 + Var("w", bound=32)
    logs = For(Var("w", bound=32), i64(32), "vector", (Store("y", (at,), op("log", f32("x", at))),))
    kernel = Kernel("k", (X, K, Y), (), (over(logs),))
    text = print_opencl(finish(kernel, native), 8, 1 << 15, native=native).text
    assert text.count("static __attribute__((noinline)) float16 kf_log_f32x16(float16 x0) {") == 1
    first = text.index("if (kf_seldom(kf_any_intx16((c1_0 | c1_1))))")
    calls = [m.start() for m in re.finditer(r"kf_log_f32x16\(t", text)]
    assert len(calls) == 2
    assert first < calls[0]
    assert "kf_log_f32x16" not in print_opencl(finish(kernel, frozenset()), 8, 1 << 15).text
