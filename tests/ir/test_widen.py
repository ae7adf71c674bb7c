"""float16 and bfloat16 by way of f32, against NumPy and ml_dtypes bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from kernelforge.dtypes import DTYPES
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    Expr,
    For,
    Kernel,
    Let,
    Load,
    Store,
    Var,
    exprs,
    i64,
    op,
    select,
    stmts,
    walk,
)
from kernelforge.ir.passes.widen import from_bits, round_to, round_to_odd, to_bits, widen
from tests.ir.evaluate import evaluate

NARROW = ["f16", "bf16"]
INDEX = Var("i", "i64", 65536)


def patterns(dtype: str) -> np.ndarray:
    return np.arange(65536, dtype=np.uint16).view(DTYPES[dtype])


def bits(x: np.ndarray) -> np.ndarray:
    """The bits, with one pattern for all NaNs."""
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize]
    return np.where(np.isnan(x), unsigned(0xFFFF), np.ascontiguousarray(x).view(unsigned))


def around_ties(dtype: str) -> np.ndarray:
    """f32 values at, just below and just above the midpoints of neighbouring narrow values, and random patterns."""
    grid = patterns(dtype).astype(np.float32)
    grid = np.sort(grid[np.isfinite(grid)])
    middle = grid[:-1] / 2 + grid[1:] / 2
    random = np.random.default_rng(0).integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    edge = np.array([65519.99, 65520.0, 65536.0, 1e10, 3.4e38, np.inf, -np.inf, np.nan, -0.0, 0.0], np.float32)
    with np.errstate(over="ignore"):
        return np.concatenate(
            [middle, np.nextafter(middle, np.float32(9e9)), np.nextafter(middle, np.float32(-9e9)), random, edge]
        )


@pytest.mark.parametrize("dtype", NARROW)
def test_every_pattern_widens(dtype: str) -> None:
    x = Var("x", "u16")
    got = evaluate(from_bits(x, dtype), {x: np.arange(65536, dtype=np.uint16)})
    np.testing.assert_array_equal(bits(got), bits(patterns(dtype).astype(np.float32)))


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_at_ties_and_limits(dtype: str) -> None:
    values = around_ties(dtype)
    x = Var("x", "f32")
    with np.errstate(over="ignore", invalid="ignore"):
        want = values.astype(DTYPES[dtype])
    got = evaluate(to_bits(x, dtype), {x: values}).view(DTYPES[dtype])
    np.testing.assert_array_equal(bits(got), bits(want))
    grid = evaluate(round_to(x, dtype), {x: values})
    np.testing.assert_array_equal(bits(grid), bits(want.astype(np.float32)))


def test_float64_rounds_once() -> None:
    narrow = patterns("f16").astype(np.float64)
    narrow = np.sort(narrow[np.isfinite(narrow)])
    middle = (narrow[:-1] + narrow[1:]) / 2
    values = np.concatenate(
        [middle, middle * (1 + 2**-40), middle * (1 - 2**-40), [1e300, -1e300, np.inf, np.nan, 65520.0, 1e-300]]
    )
    x = Var("x", "f64")
    got = evaluate(to_bits(round_to_odd(x), "f16"), {x: values}).view(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(bits(got), bits(values.astype(np.float16)))


def run(kernel: Kernel, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Evaluate the value stored by the kernel's last statement, for all elements at once."""
    env: dict[Expr, np.ndarray] = {}
    for stmt in stmts(kernel.body):
        for e in exprs(stmt):
            for part in walk(e):
                if isinstance(part, Load):
                    env[part] = inputs[part.buffer].view(DTYPES[part.dtype])
        if isinstance(stmt, Let):
            env[Var(stmt.name, stmt.value.dtype)] = evaluate(stmt.value, env)
        if isinstance(stmt, Store):
            result = evaluate(stmt.value, env)
    return result


def loop(dtype: str, value: Expr, *lets: Let) -> Kernel:
    args = (
        Arg("x", dtype, i64(65536), "in"),
        Arg("y", dtype, i64(65536), "in"),
        Arg("z", value.dtype, i64(65536), "out"),
    )
    return Kernel("k", args, (), (For(INDEX, i64(65536), "parallel", (*lets, Store("z", (INDEX,), value))),))


@pytest.mark.parametrize("native", [frozenset(), frozenset(NARROW)], ids=["bits", "casts"])
@pytest.mark.parametrize("dtype", NARROW)
@np.errstate(all="ignore")
def test_operations_round_as_numpy(dtype: str, native: frozenset[str]) -> None:
    kind = DTYPES[dtype]
    xs, ys = patterns(dtype), np.random.default_rng(1).permutation(patterns(dtype))
    x, y = Load("x", (INDEX,), dtype), Load("y", (INDEX,), dtype)
    named = Var("t", dtype)
    cases = [
        (loop(dtype, x + y), xs + ys),
        (loop(dtype, x * y + 0.1), xs * ys + kind.type(0.1)),
        (loop(dtype, x / y), xs / ys if dtype == "f16" else (xs.astype("f4") / ys.astype("f4")).astype(kind)),
        (loop(dtype, select(x < y, -x, op("abs", y))), np.where(xs < ys, -xs, np.abs(ys))),
        (loop(dtype, op("max", x, y)), np.maximum(xs, ys)),
        (loop(dtype, op("rint", x)), np.rint(xs.astype("f4")).astype(kind)),
        (loop(dtype, named * named, Let("t", x - y)), (xs - ys) * (xs - ys)),
        (loop(dtype, x.cast("f64").cast(dtype)), xs),
        (loop(dtype, (x.bitcast("u16") ^ 0x8000).bitcast(dtype)), -xs),
        (loop(dtype, Const(float("inf"), dtype)), np.full(1, np.inf).astype(kind)),
    ]
    for kernel, want in cases:
        wide = widen(kernel, native)
        got = run(wide, {"x": xs, "y": ys}).view(kind)
        np.testing.assert_array_equal(bits(got), bits(np.asarray(want)))
        narrow_ops = [
            part.op
            for stmt in stmts(wide.body)
            for e in exprs(stmt)
            for part in walk(e)
            if getattr(part, "op", "") and any(a.dtype in NARROW for a in (part, *part.args))  # type: ignore[attr-defined]
        ]
        assert set(narrow_ops) <= ({"cast", "bitcast"} if native else set())
        assert all(a.dtype == (dtype if native else "u16") for a in wide.args)


def test_buffers_and_combining_stores() -> None:
    acc = Store("z", (i64(0),), Load("x", (INDEX,), "bf16"), "add")
    local = Alloc("s", "f16", (i64(4),), "register")
    kernel = Kernel(
        "k",
        (Arg("x", "bf16", i64(8), "in"), Arg("z", "bf16", i64(1), "out")),
        (),
        (local, For(INDEX, i64(8), "serial", (acc,))),
    )
    wide = widen(kernel, frozenset())
    assert [a.dtype for a in wide.args] == ["u16", "u16"]
    assert isinstance(wide.body[0], Alloc)
    assert wide.body[0].dtype == "u16"
    (store,) = wide.body[1].body  # type: ignore[union-attr]
    assert isinstance(store, Store)
    assert store.op == ""
    assert store.value.dtype == "u16"
    assert widen(wide, frozenset()) == wide


def test_a_rounding_before_a_store_is_made_once() -> None:
    x, y = Load("x", (INDEX,), "bf16"), Load("y", (INDEX,), "bf16")
    wide = widen(loop("bf16", x + y), frozenset({"bf16"}))
    (store,) = wide.body[0].body  # type: ignore[union-attr]
    assert store.value is (x.cast("f32") + y.cast("f32")).cast("bf16")
