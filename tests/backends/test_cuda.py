"""The CUDA backend: kernels against the interpreter, on a GPU or in numba's simulator.

The simulator must be chosen before numba is imported: ``test_in_the_simulator`` runs this file in a child process.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")

from kernelforge.backends.cuda.lib import SIMULATED
from kernelforge.backends.cuda.printer import print_kernel
from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS
from kernelforge.ir.interpret import evaluate, run_kernel
from kernelforge.ir.kernel import (
    BINARY,
    COMPARE,
    MATH_BINARY,
    MATH_UNARY,
    UNARY,
    Alloc,
    Arg,
    Const,
    Expr,
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
)  # fmt: skip
from kernelforge.ir.passes.finish import finish
from kernelforge.ir.schedule.recipes import schedule
from tests.backends.on_cuda import (
    SCALARS,
    agree,
    check_pointwise,
    device,
    inputs,
    kernel,
    loop,
    pairs,
    rows,
    run,
    values,
)
from tests.ir import naive


@pytest.mark.parametrize("dtype", SCALARS)
def test_arithmetic(dtype: str) -> None:
    a, b = pairs(dtype)
    if dtype in FLOATS:
        names = [n for n in (*UNARY, *BINARY) if n not in ("not", "floordiv", "mod", "and", "or", "xor", "shl", "shr")]
    elif dtype == "bool":
        names = ["not", "and", "or", "xor", "min", "max"]
    else:
        names = ["neg", "abs", "not", "add", "sub", "mul", "min", "max", "and", "or", "xor"]
    outs = {n: (lambda x, y, n=n: op(n, x) if n in UNARY else op(n, x, y)) for n in names}
    outs |= {n: (lambda x, y, n=n: op(n, x, y)) for n in (COMPARE if dtype != "bool" else ("eq", "ne"))}
    check_pointwise(f"arithmetic_{dtype}", outs, dtype, a, b)


@pytest.mark.parametrize("dtype", sorted(INTEGERS))
def test_division_and_shifts(dtype: str) -> None:
    a, b = pairs(dtype)
    keep = b != 0
    check_pointwise(
        f"divide_{dtype}", {n: (lambda x, y, n=n: op(n, x, y)) for n in ("floordiv", "mod")}, dtype, a[keep], b[keep]
    )
    bits = DTYPES[dtype].itemsize * 8
    amounts = np.resize(np.array([0, 1, bits // 2, bits - 1]), len(a))
    check_pointwise(f"shift_{dtype}", {n: (lambda x, y, n=n: op(n, x, y)) for n in ("shl", "shr")}, dtype, a, amounts)


@pytest.mark.parametrize("dtype", SCALARS)
def test_casts(dtype: str) -> None:
    a, _ = pairs(dtype)
    if dtype in FLOATS:
        a = np.array([0.0, -0.0, 1.9, 2.5, 100.0, 0.3], DTYPES[dtype])
    outs = {d: (lambda x, y, d=d: x.cast(d)) for d in SCALARS if d != dtype}
    size = DTYPES[dtype].itemsize
    outs |= {
        f"bits_{d}": (lambda x, y, d=d: x.bitcast(d))
        for d in SCALARS
        if "bool" not in (d, dtype) and DTYPES[d].itemsize == size and d != dtype
    }
    check_pointwise(f"cast_{dtype}", outs, dtype, a, a)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_rounds_once_an_operation(dtype: str) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=200), rng.normal(size=200)
    outs = {
        "separate": lambda x, y: x * y + x,
        "fused": lambda x, y: op("fma", x, y, -x * 0.5),
        "third": lambda x, y: x / 3.0 + 0.1,
    }
    check_pointwise(f"rounding_{dtype}", outs, dtype, a, b)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_library_functions(dtype: str) -> None:
    inside = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    outs = {n: (lambda x, y, n=n: op(n, x)) for n in MATH_UNARY if n != "acosh"}
    outs |= {"acosh": lambda x, y: op("acosh", x + 1.0)}
    outs |= {n: (lambda x, y, n=n: op(n, x, y)) for n in MATH_BINARY}
    check_pointwise(f"library_{dtype}", outs, dtype, inside, inside[::-1], ulps=4)


def test_constants_and_selects() -> None:
    def table(x: Expr, y: Expr) -> Expr:
        return select(x < 0.0, select(y.eq(y), x - 1.0, math.nan), select(x > 2.0, Const(math.inf, "f32"), -0.0))

    a, b = pairs("f32")
    outs: dict[str, Callable[[Expr, Expr], Expr]] = {
        "table": table,
        "least": lambda x, y: select(x < y, Const(-(2**63), "i64"), Const(2**63 - 1, "i64")),
        "wide": lambda x, y: select(x < y, Const(2**64 - 1, "u64"), Const(0, "u64")),
        "both": lambda x, y: (x < y) & ~(y < 1.0) | x.eq(2.5),
    }
    check_pointwise("constants", outs, "f32", a, b)


def test_a_lazy_select_guards_loads_and_division() -> None:
    def padded(i: Expr) -> Expr:
        return select((i >= 2) & (i < 7), Load("x", (i - 2,), "f32"), -1.0)

    def quotient(i: Expr) -> Expr:
        d = Load("d", (i,), "i32")
        return select(d.eq(0), 0, op("floordiv", Const(100, "i32"), d))

    body = loop("i", 9, "serial", lambda i: [Store("y", (i,), padded(i)), Store("q", (i,), quotient(i))])
    k = kernel("lazy", "x:f32[5] d:i32[9] y:f32[9]! q:i32[9]!", [body])
    arrays = inputs(k, {})
    arrays["d"] = np.array([0, 1, -3, 7, 0, 9, 100, -1, 0], np.int32)
    agree(k, arrays)


def test_an_expression_deeper_than_python_parses() -> None:
    def deep(x: Expr, y: Expr) -> Expr:
        for n in range(120):
            x = op("fma", x, y, float(n % 7)) * 0.5 if n % 50 else select(y < 1.0, x + Load("y", (i64(0),), "f32"), y)
        return x

    check_pointwise("deep", {"deep": deep}, "f32", np.linspace(-1, 1, 5), np.linspace(0.1, 0.9, 5))


@pytest.mark.parametrize("n", [0, 1, 5, 8, 19])
def test_grid_with_run_time_extents(n: int) -> None:
    """Two grid digits, a guard, a Let, and an extent of zero."""
    size = Var("n")
    groups = (size + 3) // 4

    def body(r: Var, g: Var, t: Var) -> list[Stmt]:
        i = Var("i")
        return [
            Let("i", g * 4 + t),
            If(i < size, (Store("y", (r * size + i,), Load("x", (r * size + i,), "f32") * 2.0, "add"),)),
        ]

    nest = loop(
        "r",
        2,
        "grid",
        lambda r: [loop("g", groups, "grid", lambda g: [loop("t", 4, "group", lambda t: body(r, g, t))])],
    )
    k = Kernel("grid", (Arg("x", "f32", 2 * size, "in"), Arg("y", "f32", 2 * size, "out")), ("n",), (nest,))  # type: ignore[operator]
    if n:
        agree(k, params={"n": n})
        return
    d = device()
    handles = [d.allocate(1), d.allocate(1)]
    d.launch(d.compile(k), [(h, 0) for h in handles], [0])


@pytest.mark.parametrize("dtype", ["f32", "i32", "f64"])
def test_tree_reduction(dtype: str) -> None:
    agree(rows(2, 21, 8, dtype))


@pytest.mark.parametrize("dtype", ["f32", "i32", "u32", "f64", "i64"])
@pytest.mark.parametrize("threads", [32, 128])
def test_a_tree_within_a_warp(dtype: str, threads: int) -> None:
    if device().limits.group < threads:
        pytest.skip("the simulator has no warps")
    agree(rows(3, 300, threads, dtype))


def test_barriers_in_loops() -> None:
    """Neighbours exchange through local memory in every round: a missing barrier in the loop's back edge shows."""
    t = 8

    def round_(_: Var) -> list[Stmt]:
        left = loop("t", t, "group", lambda v: [Store("b", (v,), Load("a", ((v + 1) % t,), "i32"))])
        right = loop(
            "t", t, "group", lambda v: [Store("a", (v,), Load("b", (v,), "i32") + Load("b", ((v + 3) % t,), "i32"))]
        )
        return [left, right]

    body: list[Stmt] = [
        Alloc("a", "i32", (i64(t),), "local"),
        Alloc("b", "i32", (i64(t),), "local"),
        loop("t", t, "group", lambda v: [Store("a", (v,), Load("x", (v,), "i32"))]),
        loop("k", 3, "serial", round_),
        loop("t", t, "group", lambda v: [Store("y", (v,), Load("a", (v,), "i32"))]),
    ]
    k = kernel("rounds", "x:i32[8] y:i32[8]!", [loop("g", 1, "grid", lambda _: body)])
    agree(k)
    (phase,) = print_kernel(k)
    lines = [line.strip() for line in phase.source.splitlines()]
    first = lines.index("for k in range(3):")
    inside = [line for line in phase.source.splitlines()[first + 1 :] if line.startswith("        ")]
    assert sum("syncthreads" in line for line in inside) == 2


def test_register_tiles_and_exchanged_registers() -> None:
    """A tile each thread owns, a uniform register, and one that other threads read, which goes to shared memory."""
    body: list[Stmt] = [
        Alloc("tile", "f32", (i64(2), i64(3), i64(4)), "register"),
        Alloc("swap", "f32", (i64(6),), "register"),
        Alloc("scale", "f32", (), "register"),
        Store("scale", (), Load("x", (i64(0),), "f32")),
        loop("a", 2, "group", lambda a: [loop("b", 3, "group", lambda b: [
            loop("j", 4, "unroll", lambda j: [
                Store("tile", (a, b, j), Load("x", ((a * 3 + b) * 4 + j,), "f32") * Load("scale", (), "f32")),
            ]),
            Store("swap", (a * 3 + b,), Load("tile", (a, b, i64(2)), "f32")),
        ])]),
        loop("a", 2, "group", lambda a: [loop("b", 3, "group", lambda b: [
            loop("j", 4, "unroll", lambda j: [Store("y", ((a * 3 + b) * 4 + j,), Load("tile", (a, b, j), "f32"))]),
            Store("z", (a * 3 + b,), Load("swap", (5 - (a * 3 + b),), "f32")),  # type: ignore[operator]
        ])]),
    ]  # fmt: skip
    k = kernel("tiles", "x:f32[24] y:f32[24]! z:f32[6]!", [loop("g", 1, "grid", lambda _: body)])
    agree(k)
    (phase,) = print_kernel(k)
    assert "tile = pointer(cuda.local.array(4" in phase.source
    assert "swap = pointer(cuda.shared.array(6" in phase.source


def test_phases_share_scratch() -> None:
    n = Var("n")
    first = loop(
        "g",
        n,
        "grid",
        lambda g: [loop("t", 4, "group", lambda t: [Store("s", (t, g), Load("x", (g * 4 + t,), "f32") * 2.0)])],
    )
    second = loop("g", 4, "grid", lambda g: [
        Alloc("acc", "f32", (), "register"), Store("acc", (), Const(0, "f32")),
        loop("i", n, "serial", lambda i: [Store("acc", (), Load("s", (g, i), "f32"), "add")]),
        Store("y", (g,), Load("acc", (), "f32")),
    ])  # fmt: skip
    k = Kernel(
        "phases", (Arg("x", "f32", n * 4, "in"), Arg("y", "f32", i64(4), "out")), ("n",),
        (Alloc("s", "f32", (i64(4), n), "global"), first, second),
    )  # fmt: skip
    assert [p.threads for p in print_kernel(k)] == [4, 1]
    agree(k, params={"n": 5})


@pytest.mark.parametrize("combine", ["add", "mul", "min", "max"])
@pytest.mark.parametrize("dtype", ["f32", "i8", "u16", "u64"])
def test_combining_stores(combine: str, dtype: str) -> None:
    body = loop("i", 12, "serial", lambda i: [Store("y", (i % 3,), Load("x", (i,), dtype), combine)])
    agree(kernel("combine", f"x:{dtype}[12] y:{dtype}[3]!", [body]))


@pytest.mark.parametrize("dtype", ["bool", "u8", "i16", "f32", "f64"])
def test_vector_loops_with_and_without_alignment(dtype: str) -> None:
    lanes = {"bool": 16, "u8": 8, "i16": 4, "f32": 4, "f64": 2}[dtype]
    count = lanes * 4 * 2

    def lane(g: Var, t: Var, v: Var) -> list[Stmt]:
        i = (g * 4 + t) * lanes + v
        x = Load("x", (i,), dtype)
        kept = Load("x", (i64(count - 1) - i,), dtype)
        return [Let("a", x), Store("y", (i,), select(kept.eq(kept), Var("a", dtype), x)), Store("z", (i,), kept)]

    nest = loop(
        "g",
        2,
        "grid",
        lambda g: [loop("t", 4, "group", lambda t: [loop("v", lanes, "vector", lambda v: lane(g, t, v))])],
    )
    k = kernel("vector", f"x:{dtype}[{count}] y:{dtype}[{count}]! z:{dtype}[{count}]!", [nest])
    (phase,) = print_kernel(k)
    assert f"ld{lanes}(x" in phase.source
    assert phase.aligned == {"x", "y", "z"}
    agree(k)
    d = device()
    size = DTYPES[dtype].itemsize
    x = values(dtype, count + 1)
    handles = [d.upload(x), d.upload(x), d.upload(x)]
    d.launch(d.compile(k), [(h, size) for h in handles], [])
    np.testing.assert_array_equal(d.download(handles[1], size, (count,), x.dtype), x[1:])
    np.testing.assert_array_equal(d.download(handles[2], size, (count,), x.dtype), x[1:][::-1])


def test_reversed_views_reach_backwards() -> None:
    body = loop("i", 4, "serial", lambda i: [Store("y", (i,), Load("x", (-i,), "f32"))])
    k = kernel("backwards", "x:f32[4] y:f32[4]!", [body])
    d = device()
    x = values("f32", 4)
    source, target = d.upload(x), d.allocate(16)
    d.launch(d.compile(k), [(source, 12), (target, 0)], [])
    np.testing.assert_array_equal(d.download(target, 0, (4,), x.dtype), x[::-1])


def test_names_that_python_reserves() -> None:
    body = loop(
        "for",
        3,
        "serial",
        lambda i: [Let("lambda", Load("f32", (i,), "f32")), Store("thread.0", (i,), Var("lambda", "f32") + 1.0)],
    )
    agree(kernel("def", "f32:f32[3] thread.0:f32[3]!", [body]))


def test_transfers() -> None:
    d = device()
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for array in (base[:, ::2], base.T, base[::-1], base[:0], base[0, 0], np.array([True, False])):
        np.testing.assert_array_equal(d.download(d.upload(array), 0, array.shape, array.dtype), array)
    np.testing.assert_array_equal(
        d.download(d.upload(base), 8, (2, 2), base.dtype), base.reshape(-1)[2:6].reshape(2, 2)
    )
    d.free(d.allocate(1))
    d.synchronize()


@pytest.mark.parametrize(
    "made",
    [
        naive.softmax(3, 21),
        naive.softmax(2, 64),
        naive.gemm(5, 7, 9),
        naive.columns(6, 10),
        naive.double(13),
        naive.double(64),
    ],
    ids=lambda k: k.name,
)
def test_recipes(made: Kernel) -> None:
    k = finish(schedule(made, device().limits), device().limits.native)
    arrays = inputs(made, {})
    want = {name: a.copy() for name, a in arrays.items()}
    run_kernel(made, want, {})
    got = run(k, {a.name: arrays.get(a.name, np.zeros(evaluate(a.size, {}), DTYPES[a.dtype])) for a in k.args}, {})
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(SIMULATED, reason="this is the child process")
def test_in_the_simulator() -> None:
    """Run the tests that need a device in a child process, on numba's simulator."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
