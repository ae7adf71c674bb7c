"""The interpreter: every operation, every statement, lanes against one iteration at a time."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS
from kernelforge.errors import MalformedGraph, MalformedKernel, OutOfRange
from kernelforge.ir import ops
from kernelforge.ir.build import apply, build
from kernelforge.ir.interpret import MEANING, evaluate, run_graph, run_kernel
from kernelforge.ir.kernel import (
    ARITY,
    COMPARE,
    Alloc,
    Arg,
    Const,
    Expr,
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
from kernelforge.ir.types import Type

i, j, k, n = Var("i"), Var("j"), Var("k"), Var("n")


def load(buffer: str, *index: Expr, dtype: str = "f32") -> Expr:
    return Load(buffer, index, dtype)


def kernel(*body: Stmt, dtype: str = "f32", args: tuple[str, ...] = ("x",)) -> Kernel:
    ins = tuple(Arg(a, dtype, n, "in") for a in args)
    return Kernel("k", (*ins, Arg("y", dtype, n, "out")), ("n",), body)


def run(
    made: Kernel, size: int, *inputs: np.ndarray[Any, Any], out: int | None = None, **flags: Any
) -> np.ndarray[Any, Any]:
    names = [a.name for a in made.args]
    y = np.zeros(size if out is None else out, DTYPES[made.args[-1].dtype])
    run_kernel(made, dict(zip(names, (*inputs, y), strict=True)), {"n": size}, **flags)
    return y


def both(made: Kernel, size: int, *inputs: np.ndarray[Any, Any], out: int | None = None) -> np.ndarray[Any, Any]:
    """Run with lanes and by the definition; they must agree in every bit."""
    fast, slow = (run(made, size, *inputs, out=out, lanes=lanes) for lanes in (True, False))
    assert fast.tobytes() == slow.tobytes()
    return fast


def test_table_is_complete() -> None:
    assert set(MEANING) | {"select", "cast", "bitcast"} == set(ARITY)


@pytest.mark.parametrize("size", [0, 1, 7, 40_000])
@pytest.mark.parametrize("kind", ["serial", "parallel", "grid", "group", "vector", "unroll"])
def test_map(size: int, kind: Any) -> None:
    x = np.linspace(-3, 3, size, dtype=np.float32)
    made = kernel(For(i, n, kind, (Store("y", (i,), load("x", i) * 2 + 1),)))
    np.testing.assert_array_equal(run(made, size, x), x * np.float32(2) + np.float32(1))


@pytest.mark.parametrize("name", sorted(set(ARITY) - {"select", "cast", "bitcast", "fma"}))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_operation_has_its_dtype(name: str, dtype: str) -> None:
    logical = name in ("and", "or", "xor", "not")
    numbers, bits = FLOATS | INTEGERS, INTEGERS | {"bool"}
    allowed = {
        **dict.fromkeys(("shl", "shr", "mod", "floordiv"), INTEGERS),
        **dict.fromkeys(("and", "or", "xor", "not"), bits),
        **dict.fromkeys(("neg", "abs", "add", "sub", "mul", "min", "max"), numbers),
        **dict.fromkeys(COMPARE, frozenset(DTYPES)),
        "tf32": frozenset({"f32"}),
    }.get(name, FLOATS)
    if dtype not in allowed:
        return
    values = np.array([1, 0, 1, 1] if logical or dtype == "bool" else [1, 2, 1, 3]).astype(DTYPES[dtype])
    out = "bool" if name in COMPARE else dtype
    made = Kernel(
        "k",
        (Arg("x", dtype, n, "in"), Arg("y", out, n, "out")),
        ("n",),
        (For(i, n, "parallel", (Store("y", (i,), op(name, *[load("x", i, dtype=dtype)] * ARITY[name])),)),),
    )
    got = run(made, 4, values)
    wide = values.astype(np.float32) if dtype in ("f16", "bf16") else values
    with np.errstate(all="ignore"):
        expected = np.asarray(MEANING[name](*[wide] * ARITY[name])).astype(DTYPES[out])
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got.astype(np.float64), expected.astype(np.float64))


def test_minimum_propagates_nan_and_negative_zero_stays() -> None:
    x = np.array([np.nan, 1.0, -0.0], np.float32)
    y = run(kernel(For(i, n, "parallel", (Store("y", (i,), op("min", load("x", i), 2.0)),))), 3, x)
    assert math.isnan(y[0])
    assert y[1] == 1
    assert np.signbit(y[2])


def test_narrow_floats_round_every_operation() -> None:
    x = np.array([1.0078125, 3.140625], ml_dtypes.bfloat16)
    a = load("x", i, dtype="bf16")
    got = run(kernel(For(i, n, "parallel", (Store("y", (i,), a * a + a),)), dtype="bf16"), 2, x)
    wide = x.astype(np.float32)
    expected = ((wide * wide).astype(ml_dtypes.bfloat16).astype(np.float32) + wide).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_fma_rounds_once(dtype: str) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(200).astype(DTYPES[dtype]) for _ in range(2))
    c = (-(a.astype(np.float64) * b.astype(np.float64))).astype(DTYPES[dtype])
    c[::2] += DTYPES[dtype].type(1)
    made = kernel(
        For(i, n, "parallel", (Store("y", (i,), op("fma", *(load(v, i, dtype=dtype) for v in "abc"))),)),
        dtype=dtype,
        args=("a", "b", "c"),
    )
    exact = [Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)) for p, q, r in zip(a, b, c, strict=True)]
    got = run(made, 200, a, b, c)
    for value, want in zip(got, exact, strict=True):
        near = [float(np.nextafter(value, DTYPES[dtype].type(s * np.inf))) for s in (-1, 1)]
        assert all(abs(Fraction(float(value)) - want) <= abs(Fraction(o) - want) for o in near)


def test_tf32_has_ten_bits() -> None:
    step = 2.0**-10
    given = [
        1.0,
        1 + step / 4,
        1 + step / 2,
        -1 - step / 2,
        1 + step,
        2 - step / 2,
        3e38,
        np.inf,
        -np.inf,
        np.nan,
        -0.0,
    ]
    nan = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    got = MEANING["tf32"](np.concatenate([np.array(given, np.float32), nan]))
    want = [1.0, 1.0, 1 + step, -1 - step, 1 + step, 2.0, 3e38, np.inf, -np.inf, np.nan, -0.0, np.nan, np.nan]
    np.testing.assert_allclose(got, want, rtol=2.0**-11)
    np.testing.assert_array_equal(got[[0, 1, 2, 3, 4, 5, 10]], np.array(want, np.float32)[[0, 1, 2, 3, 4, 5, 10]])
    assert np.signbit(got[10])
    spread = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    mantissa, exponent = np.frexp(spread.astype(np.float64))
    nearest = np.copysign(np.floor(np.abs(mantissa) * 2**11 + 0.5), mantissa) * 2.0**-11
    np.testing.assert_array_equal(MEANING["tf32"](spread), np.ldexp(nearest, exponent))


def test_fma_special_values() -> None:
    inf, nan = np.inf, np.nan
    a, b, c = (
        np.array(v) for v in ([inf, 1e300, 0.0, nan, -1.0], [0.0, 1e300, -1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0, 1.0])
    )
    made = kernel(
        For(i, n, "parallel", (Store("y", (i,), op("fma", *(load(v, i, dtype="f64") for v in "abc"))),)),
        dtype="f64",
        args=("a", "b", "c"),
    )
    np.testing.assert_array_equal(run(made, 5, a, b, c), [nan, inf, 0.0, nan, 0.0])


def test_erf_is_accurate_in_every_float() -> None:
    x = np.linspace(-4, 4, 101)
    made = kernel(For(i, n, "parallel", (Store("y", (i,), op("erf", load("x", i, dtype="f64"))),)), dtype="f64")
    np.testing.assert_array_equal(run(made, 101, x), [math.erf(v) for v in x])


def test_row_reduction_with_local_buffer() -> None:
    rows, cols = 5, 33
    x = np.random.default_rng(0).standard_normal(rows * cols).astype(np.float32)
    body = (
        Alloc("s", "f32", (), "register"),
        Store("s", (), Const(0.0, "f32")),
        For(k, i64(cols), "serial", (Store("s", (), load("x", i * cols + k), "add"),)),
        Store("y", (i,), load("s")),
    )
    for kind in ("serial", "parallel"):
        got = both(kernel(For(i, i64(rows), kind, body)), rows, x, out=rows)  # type: ignore[arg-type]
        expected = np.zeros(rows, np.float32)
        for column in x.reshape(rows, cols).T:
            expected += column
        np.testing.assert_array_equal(got, expected)


def test_recurrence_is_run_in_order() -> None:
    x = np.arange(1, 9, dtype=np.float32)
    body = (
        Alloc("h", "f32", (i64(1),), "register"),
        Store("h", (i64(0),), Const(0.0, "f32")),
        For(
            i,
            n,
            "serial",
            (Store("h", (i64(0),), load("h", i64(0)) * 0.5 + load("x", i)), Store("y", (i,), load("h", i64(0)))),
        ),
    )
    got = both(kernel(*body), 8, x)
    h, expected = 0.0, []
    for v in x:
        h = h * 0.5 + float(v)
        expected.append(h)
    np.testing.assert_array_equal(got, np.array(expected, np.float32))


def test_serial_scatter_keeps_the_last_and_adds_in_order() -> None:
    x = np.array([1e8, 1.0, -1e8, 1.0, 3.0], np.float32)
    added = kernel(For(i, n, "serial", (Store("y", (i64(0),), load("x", i), "add"),)))
    total = np.float32(0)
    for v in x:
        total += v
    assert both(added, 5, x, out=1)[0] == total
    assert both(kernel(For(i, n, "serial", (Store("y", (i % 2,), load("x", i)),))), 5, x, out=2).tolist() == [3.0, 1.0]


def test_outer_lanes_are_split_in_order() -> None:
    # 300 * 300 iterations are more than are run together, and all combine into three elements
    x = np.random.default_rng(2).standard_normal(300 * 300).astype(np.float32)
    made = kernel(
        For(
            i,
            i64(300),
            "serial",
            (For(j, i64(300), "serial", (Store("y", ((i + j) % 3,), load("x", i * 300 + j), "add"),)),),
        )
    )
    expected = np.zeros(3, np.float32)
    a, b = np.divmod(np.arange(300 * 300), 300)
    np.add.at(expected, (a + b) % 3, x)
    np.testing.assert_array_equal(run(made, 300 * 300, x, out=3), expected)


def test_ragged_extents_and_guards() -> None:
    x = np.arange(12, dtype=np.float32)
    inner = For(
        j,
        op("min", i64(4), n - i * 4),
        "serial",
        (If((i * 4 + j).ne(5), (Store("y", (i * 4 + j,), load("x", i * 4 + j) + 1),)),),
    )
    expected = np.where(np.arange(10) == 5, 0, np.arange(10) + 1)
    np.testing.assert_array_equal(both(kernel(For(i, (n + 3) // 4, "grid", (inner,))), 10, x[:10]), expected)


def test_let_and_lazy_select() -> None:
    x = np.arange(6, dtype=np.float32)
    shifted = select((i - 1) >= 0, load("x", i - 1), -1.0)
    nested = select(i < 4, select(i >= 2, load("x", i - 2), 7.0), shifted)
    made = kernel(For(i, n, "parallel", (Let("t", shifted), Store("y", (i,), Var("t", "f32") + nested))))
    expected = [-1 + 7, 0 + 7, 1 + 0, 2 + 1, 3 + 3, 4 + 4]
    np.testing.assert_array_equal(both(made, 6, x), expected)


@pytest.mark.parametrize("index", [i + 1, i - 1])
@pytest.mark.parametrize("lanes", [True, False])
def test_out_of_range_is_refused(index: Expr, lanes: bool) -> None:
    x = np.zeros(4, np.float32)
    with pytest.raises(OutOfRange, match=r"kernel k: load of x\[(-1|4)\]"):
        run(kernel(For(i, n, "parallel", (Store("y", (i,), load("x", index)),))), 4, x, lanes=lanes)
    with pytest.raises(OutOfRange, match="store to y"):
        run(kernel(For(i, n, "parallel", (Store("y", (index,), load("x", i)),))), 4, x, lanes=lanes)


def test_uninitialised_memory_is_not_zero() -> None:
    made = kernel(Alloc("s", "f32", (i64(3),), "local"), For(i, n, "parallel", (Store("y", (i,), load("s", i)),)))
    assert np.isnan(run(made, 3, np.zeros(3, np.float32))).all()


def test_shuffle_finds_a_false_claim_of_independence() -> None:
    x = np.arange(50, dtype=np.float32)
    false = kernel(For(i, n, "parallel", (Store("y", (i64(0),), load("x", i)),)))
    assert {float(run(false, 50, x, shuffle=s)[0]) for s in range(5)} != {49.0}
    true = kernel(For(i, n, "parallel", (Store("y", (i,), load("x", i)),)))
    for lanes in (True, False):
        np.testing.assert_array_equal(run(true, 50, x, shuffle=3, lanes=lanes), x)


def test_phases_share_local_memory() -> None:
    # a work-group reverses its eight elements through local memory: two phases, a barrier between them
    body = (
        Alloc("t", "f32", (i64(8),), "local"),
        For(j, i64(8), "group", (Store("t", (j,), load("x", i * 8 + j)),)),
        For(k, i64(8), "group", (Store("y", (i * 8 + k,), load("t", i64(7) - k)),)),
    )
    x = np.arange(24, dtype=np.float32)
    np.testing.assert_array_equal(both(kernel(For(i, n // 8, "grid", body)), 24, x), x.reshape(3, 8)[:, ::-1].ravel())


def test_vector_loop_may_combine_into_one_element() -> None:
    body = (
        Alloc("s", "i32", (), "register"),
        Store("s", (), Const(0, "i32")),
        For(j, i64(4), "vector", (Store("s", (), load("x", i * 4 + j, dtype="i32"), "add"),)),
        Store("y", (i,), load("s", dtype="i32")),
    )
    x = np.arange(12, dtype=np.int32)
    made = kernel(For(i, i64(3), "grid", body), dtype="i32")
    np.testing.assert_array_equal(both(made, 3, x, out=3), x.reshape(3, 4).sum(1))
    np.testing.assert_array_equal(run(made, 3, x, out=3, shuffle=1), x.reshape(3, 4).sum(1))


def test_uniform_combining_store_counts_every_lane() -> None:
    made = kernel(For(i, n, "vector", (Store("y", (i64(0),), Const(1.0, "f32"), "add"),)))
    assert both(made, 9, np.zeros(9, np.float32), out=1)[0] == 9


def test_bad_arguments_are_refused() -> None:
    made = kernel(For(i, n, "parallel", (Store("y", (i,), load("x", i)),)))
    y = np.zeros(3, np.float32)
    with pytest.raises(MalformedKernel, match="argument x is missing"):
        run_kernel(made, {"y": y}, {"n": 3})
    with pytest.raises(MalformedKernel, match="argument x is float64"):
        run_kernel(made, {"x": np.zeros(3), "y": y}, {"n": 3})
    with pytest.raises(MalformedKernel, match="parameter n"):
        run_kernel(made, {"x": y, "y": y}, {})


def test_evaluate_sizes() -> None:
    assert evaluate((n + 3) // 4 * 4, {"n": 9}) == 12


def test_graph_is_run_by_the_numpy_rules() -> None:
    assert "add" in ops.PRIMITIVES
    f32 = np.dtype(np.float32)
    graph = build(lambda a, b: [apply("tanh", a * b), a + a], [Type((3,), f32), Type((3,), f32)])
    a, b = np.array([1, -2, np.inf], f32), np.array([0.5, 1, 0], f32)
    first, second = run_graph(graph, [a, b])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(first, np.tanh(a * b))
    np.testing.assert_array_equal(second, a + a)
    assert first.dtype == second.dtype == f32
    with pytest.raises(MalformedGraph, match=r"inputs are f64\[3\]"):
        run_graph(graph, [a.astype(np.float64), b])
