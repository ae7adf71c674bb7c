"""Loops, memory and phases on the CPU backend, against the interpreter and NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from kernelforge.backends.cpu.abreast import abreast, narrowed
from kernelforge.dtypes import DTYPES, FLOATS
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    LoopKind,
    Stmt,
    Store,
    Var,
    i64,
    select,
)
from kernelforge.ir.verify import verify_kernel
from tests.backends.on_cpu import CPU, buffer, compare, execute, values
from tests.backends.random_kernels import RandomKernel

N = Var("n")
V = Var("v", bound=8)
U = Var("u", bound=4)


def f32(name: str, *index: Expr | int) -> Expr:
    return Load(name, tuple(x if isinstance(x, Expr) else i64(x) for x in index), "f32")


def nest(kind: LoopKind, *body: Stmt) -> tuple[Stmt, ...]:
    return (For(V, i64(8), kind, body),)


def over(*body: Stmt, rows: int = 5) -> tuple[Stmt, ...]:
    """A grid of rows, each a statement list."""
    return (For(Var("r", bound=rows), i64(rows), "grid", body),)


R = Var("r", bound=5)
X = Arg("x", "f32", i64(64), "in")
Y = Arg("y", "f32", i64(64), "out")


def check(
    name: str, body: tuple[Stmt, ...], *extra: Arg, rtol: float = 0.0, params: dict[str, int] | None = None
) -> None:
    kernel = Kernel(name, (X, *extra, Y), tuple(params or ()), body)
    arrays = {"x": values("f32", 64, 3), "y": np.full(64, 7, np.float32)}
    arrays["x"][:] = np.where(np.isfinite(arrays["x"]), arrays["x"], 2.0).clip(-100, 100)
    rng = np.random.default_rng(5)
    for arg in extra:
        arrays[arg.name] = rng.integers(0, 8, 64).astype(DTYPES[arg.dtype])
    compare(kernel, arrays, params, rtol)


INDEX = Arg("k", "i64", i64(64), "in")
AT = Load("k", (V,), "i64")


@pytest.mark.parametrize("kind", ["vector", "serial", "unroll", "group", "parallel"])
@pytest.mark.parametrize(
    "index",
    [V, 7 - V, V * 3 + 2, 23 - V * 2, (V + 3) % 8, V // 2, V * V, i64(5), AT, V + AT, AT * 2, V * 2 + R * 0],
    ids=lambda e: str(e)[:40],
)
def test_loads_at_every_kind_of_index(kind: LoopKind, index: Expr) -> None:
    check("load", over(*nest(kind, Store("y", (R * 8 + V,), f32("x", index)))), INDEX)


@pytest.mark.parametrize("kind", ["vector", "serial", "unroll"])
@pytest.mark.parametrize("index", [V, 7 - V, V * 3 + 2, 23 - V * 2, (V + 3) % 8])
@pytest.mark.parametrize("combine", ["", "add", "mul", "min", "max"])
def test_stores_at_every_kind_of_index(kind: LoopKind, index: Expr, combine: str) -> None:
    check("store", nest(kind, Store("y", (index,), f32("x", V + 2), combine)))
    masked = If(V.ne(3) & (f32("x", V) > 0.0), (Store("y", (index,), f32("x", V + 2), combine),))
    check("masked", nest(kind, masked))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("step", [1, -1, 2])
def test_masked_memory_of_every_dtype(dtype: str, step: int) -> None:
    at = V * step + (15 if step < 0 else 0)
    body = nest("vector", If(V.ne(2) & (V < 7), (Store("y", (at,), Load("x", (at,), dtype)),)))
    kernel = Kernel("masked", (buffer("x", dtype, 64), buffer("y", dtype, 64, "out")), (), body)
    compare(kernel, {"x": values(dtype, 64), "y": values(dtype, 64, 9)})


@pytest.mark.parametrize(
    ("dtype", "combine"),
    [
        (d, c)
        for d in ("f32", "f64", "i32", "u8", "bool")
        for c in ("add", "mul", "min", "max")
        if d != "bool" or c in ("min", "max")
    ],
)
def test_horizontal_combination(dtype: str, combine: str) -> None:
    body = nest("vector", Store("y", (i64(1),), Load("x", (V,), dtype), combine))
    masked = nest("vector", If(V > 2, (Store("y", (i64(1),), Load("x", (V,), dtype), combine),)))
    uniform = nest("vector", Store("y", (i64(1),), Load("x", (i64(3),), dtype), combine))
    for part in (body, masked, uniform):
        kernel = Kernel("combine", (buffer("x", dtype, 64), buffer("y", dtype, 8, "out")), (), part)
        x = values(dtype, 64) if dtype not in FLOATS else np.linspace(0.5, 1.5, 64).astype(DTYPES[dtype])
        compare(kernel, {"x": x, "y": np.ones(8, DTYPES[dtype])}, rtol=1e-6 if dtype in FLOATS else 0)


def test_horizontal_sum_is_a_tree_of_halves() -> None:
    x = np.array([1e8, 1, -1e8, 1, 3, 5, 7, 11], np.float32)
    kernel = Kernel("tree", (X, Y), (), nest("vector", Store("y", (i64(0),), f32("x", V), "add")))
    y = execute(kernel, {"x": x, "y": np.zeros(1, np.float32)})["y"]
    half = x[:4] + x[4:]
    quarter = half[:2] + half[2:]
    assert y[0] == np.float32(0) + (quarter[0] + quarter[1])


def test_widths_that_are_no_power_of_two() -> None:
    v = Var("v", bound=7)
    total = For(v, i64(7), "vector", (Store("y", (i64(0),), f32("x", v), "add"),))
    copy = For(v, i64(7), "vector", (Store("y", (v + 1,), f32("x", v) * 2.0),))
    check("seven", (total, copy), rtol=1e-6)
    wide = Var("v", bound=60)
    check("sixty", (For(wide, i64(60), "vector", (Store("y", (wide,), f32("x", wide)),)),))
    long = Var("v", bound=64)
    check(
        "long",
        (
            For(
                Var("q", bound=2),
                i64(2),
                "grid",
                (For(long, i64(64), "vector", (Store("y", (long,), f32("x", long)),)),),
            ),
        ),
    )


def test_lazy_select_does_not_load_out_of_range() -> None:
    far = i64(1 << 50)
    for kind in ("serial", "vector"):
        body = nest(
            kind,
            Store("y", (V,), select(V < 1, f32("x", V * far + 1), f32("x", 3))),
            Store("y", (V,), select(V < 5, Const(1.0, "f32"), select(f32("x", V) < 1e9, 2.0, f32("x", far))), "add"),
            Store("y", (V + 8,), select((V >= 2) & (V < 7), f32("x", V - 2), 0.0)),
            Store("y", (V + 16,), select(i64(3) > 4, f32("x", far * V), f32("x", 2))),
            Store("y", (V + 24,), select(f32("x", 0) > 1e9, f32("x", far), f32("x", 7 - V))),
            Store(
                "y",
                (V + 32,),
                select(V < 4, select(V > 1, f32("x", V - 2), -1.0), select(V > 8, f32("x", far - V), 3.0) * 2.0),
            ),
        )
        kernel = Kernel("lazy", (X, Y), (), body)
        x = np.arange(64, dtype=np.float32)
        y = execute(kernel, {"x": x, "y": np.zeros(64, np.float32)})["y"]
        v = np.arange(8)
        np.testing.assert_array_equal(y[:8], np.where(v < 1, 1, 3) + np.where(v < 5, 1, 2))
        np.testing.assert_array_equal(y[8:16], np.where((v >= 2) & (v < 7), v - 2, 0))
        np.testing.assert_array_equal(y[16:24], 2)
        np.testing.assert_array_equal(y[24:32], 7 - v)
        np.testing.assert_array_equal(y[32:40], np.where(v < 4, np.where(v > 1, v - 2, -1), 6))


def test_a_branch_guards_its_loads() -> None:
    far = i64(1 << 50)
    for kind in ("serial", "vector"):
        body = nest(
            kind,
            If(V > 8, (Store("y", (V,), f32("x", far)),)),
            If(i64(3).eq(R), (Store("y", (V,), f32("x", far + V)),)),
            If(V < 3, (Store("y", (V,), f32("x", 9 - V) + select(V > 5, f32("x", far), 1.0)),)),
            If(V > 4, (If(f32("x", V) > 1e6, (Store("y", (V,), f32("x", far)),)), Store("y", (V,), f32("x", 1)))),
        )
        check("guard", (For(Var("r", bound=5), i64(3), "grid", body),))


def test_statements_see_the_stores_before_them() -> None:
    y = Load("y", (V,), "f32")
    for kind in ("serial", "vector", "unroll"):
        check(
            "order",
            over(
                *nest(
                    kind,
                    Store("y", (V,), f32("x", V)),
                    Let("t", y * 2.0),
                    Store("y", (V,), y + 1.0),
                    Store("y", (V + 8,), Var("t", "f32") + y),
                    For(Var("s", bound=3), i64(3), "serial", (Store("y", (V,), y * 0.5), Store("y", (V + 16,), y))),
                    If(V > 3, (Store("y", (V,), y - 4.0),)),
                    Store("y", (V + 24,), y),
                ),
                rows=1,
            ),
        )


def test_registers_of_a_tile() -> None:
    a, b, k = Var("a", bound=3), Var("b", bound=2), Var("k", bound=6)
    tile = Load("s", (a, b * 8 + V), "f32")

    def loops(*body: Stmt) -> Stmt:
        return For(a, i64(3), "unroll", (For(b, i64(2), "unroll", (For(V, i64(8), "vector", body),)),))

    body = (
        Alloc("s", "f32", (i64(3), i64(16)), "register"),
        loops(Store("s", (a, b * 8 + V), Const(0.0, "f32"))),
        For(
            k,
            i64(6),
            "serial",
            (loops(Store("s", (a, b * 8 + V), f32("x", a * 6 + k) * f32("x", k * 8 + b * 8 + V), "add")),),
        ),
        loops(If((a * 16 + b * 8 + V) < 45, (Store("y", (a * 16 + b * 8 + V,), tile + 1.0),))),
    )
    check("tile", (For(Var("r", bound=1), i64(1), "grid", body),), rtol=1e-4)


def chains(units: int, *body: Stmt) -> tuple[Stmt, ...]:
    return (For(U, i64(units), "unroll", (For(V, i64(8), "vector", body),)),)


def test_chains_run_side_by_side() -> None:
    at = U * 8 + V
    a, b = Let("a", f32("x", at) * 3.0), Let("b", Var("a", "f32") + f32("x", at))
    body = (a, b, Store("s", (at,), Var("b", "f32")), Store("y", (at,), Var("b", "f32") - Var("a", "f32"), "add"))
    loop = chains(4, *body)[0]
    assert isinstance(loop, For)
    (made,) = abreast(loop)
    assert isinstance(made, For)
    assert [s.name if isinstance(s, Let) else s.buffer for s in made.body] == [
        *(f"{name}_{k}" for name in "ab" for k in range(4)), *"ssssyyyy",
    ]  # fmt: skip
    check("chains", over(Alloc("s", "f32", (i64(32),), "register"), loop, rows=1))


def test_a_wide_loop_is_a_narrow_one_over_its_parts() -> None:
    """Statement by statement, with what stands under a condition part by part."""
    lane = Var("v", bound=32)
    a = Var("a", "f32")
    wide = For(lane, i64(32), "vector", (
        Let("a", f32("x", lane)),
        Store("s", (lane,), a * 2.0),
        If(a < 0.5, (Let("b", a + 3.0), Store("s", (lane,), Var("b", "f32")))),
        Store("y", (lane + 32,), f32("s", lane)),
    ))  # fmt: skip
    made = narrowed(wide, 8)
    assert made.static == 8
    assert [type(s).__name__ for s in made.body] == [name for name in ("Let", "Store", "If", "Store") for _ in range(4)]
    register = Alloc("s", "f32", (i64(32),), "register")
    found = []
    for loop in (wide, made):
        arrays = {"x": np.linspace(-3, 5, 64, dtype=np.float32), "y": np.zeros(64, np.float32)}
        kernel = Kernel("wide", (X, Y), (), over(register, loop, rows=1))
        verify_kernel(kernel)
        run_kernel(kernel, arrays, {})
        found.append(arrays["y"])
    np.testing.assert_array_equal(*found)
    check("narrowed", over(register, made, rows=1))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param((Store("y", (U * 8 + V,), f32("x", V)),), id="no chain"),
        pytest.param((Let("a", f32("s", V)), Store("s", (V,), Var("a", "f32") + 1.0)), id="reads what it stores"),
        pytest.param(
            (Let("a", f32("x", V)), Store("s", (V,), Var("a", "f32")), Store("s", (V,), Var("a", "f32") * 2.0, "add")),
            id="stores twice",
        ),
        pytest.param((Let("a", f32("x", V)), If(V < 3, (Store("y", (V,), Var("a", "f32")),))), id="under a condition"),
    ],
)
def test_iterations_whose_order_may_matter_stay_in_order(body: tuple[Stmt, ...]) -> None:
    loop = chains(3, *body)[0]
    assert isinstance(loop, For)
    assert not abreast(loop)
    check(
        "ordered",
        over(
            Alloc("s", "f32", (i64(8),), "register"),
            *nest("vector", Store("s", (V,), Const(0.0, "f32"))),
            loop,
            *nest("vector", Store("y", (V + 32,), f32("s", V))),
            rows=1,
        ),
    )


def test_masked_registers() -> None:
    a = Var("a", bound=3)
    s = Load("s", (a * 8 + V,), "f32")
    body = (
        Alloc("s", "f32", (i64(20),), "register"),
        For(a, i64(3), "unroll", nest("vector", If(a * 8 + V < 20, (Store("s", (a * 8 + V,), f32("x", a * 8 + V)),)))),
        For(a, i64(3), "unroll", nest("vector", If(a * 8 + V < 20, (Store("s", (a * 8 + V,), f32("x", V), "add"),)))),
        For(a, i64(3), "serial", nest("vector", Store("y", (a * 8 + V,), select(a * 8 + V < 20, s, -1.0)))),
    )
    check("masked_registers", over(*body, rows=1))


def test_buffers_of_a_lane() -> None:
    k = Var("k", bound=4)
    body = nest(
        "vector",
        Alloc("own", "f32", (i64(2), i64(4)), "register"),
        For(k, i64(4), "serial", (Store("own", (i64(1), k), f32("x", V * 4 + k)),)),
        For(k, i64(4), "serial", (Store("own", (i64(0), k), Load("own", (i64(1), 3 - k), "f32") * 2.0),)),
        Alloc("sum", "f32", (), "register"),
        Store("sum", (), Const(0.0, "f32")),
        For(k, i64(4), "serial", (If(k < V, (Store("sum", (), Load("own", (i64(0), k), "f32"), "add"),)),)),
        Store("y", (V,), Load("sum", (), "f32")),
        Store("y", (V + 8,), Load("own", (i64(0), V % 4), "f32")),
    )
    check("own", body, rtol=1e-6)


def test_local_buffers_small_and_large() -> None:
    for size in (16, 40_000):
        j = Var("j", bound=size)
        body = (
            Alloc("t", "f32", (i64(size),), "local"),
            For(j, i64(size), "serial", (Store("t", (j,), j.cast("f32")),)),
            Store("y", (R,), Load("t", (R + size - 6,), "f32")),
        )
        check("local", over(*body))


def test_a_vector_loop_without_a_vector_form_runs_serially() -> None:
    k = Var("k", bound=8)
    ragged = nest("vector", For(k, V + 1, "serial", (Store("y", (V,), f32("x", k), "add"),)))
    check("ragged", ragged, rtol=1e-6)
    check("last", nest("vector", If(V.eq(3), (Store("y", (i64(2),), f32("x", V)),))))
    colliding = nest("vector", Store("y", (Load("k", (V,), "i64"),), f32("x", V), "add"))
    check("histogram", colliding, INDEX, rtol=1e-6)


@pytest.mark.parametrize("kind", ["parallel", "grid"])
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (5, 1, 3), (2, 3, 4), (1, 60, 1)])
def test_nests_of_run_time_extents(kind: LoopKind, shape: tuple[int, ...]) -> None:
    names = ("a", "b", "c")
    loops = [Var(f"i{n}") for n in names]
    a, b, c = (Var(n) for n in names)
    at = (loops[0] * b + loops[1]) * c + loops[2]
    body: tuple[Stmt, ...] = (Store("y", (at,), f32("x", at) * 2.0 + loops[1].cast("f32")),)
    for var, extent in zip(reversed(loops), (c, b, a), strict=True):
        body = (For(var, extent, kind, body),)
    check("nest", body, params=dict(zip(names, shape, strict=True)))


def test_many_iterations_are_covered_once() -> None:
    a, b = Var("a"), Var("b")
    i, j = Var("i"), Var("j")
    body = (For(i, a, "parallel", (For(j, b, "parallel", (Store("y", (i * b + j,), Const(1.0, "f32"), "add"),)),)),)
    kernel = Kernel("count", (buffer("y", "f32", a * b, "out"),), ("a", "b"), body)
    for shape in ((1, 1_000_003), (1_000_003, 1), (997, 1009), (3, 400_000)):
        y = execute(kernel, {"y": np.zeros(shape[0] * shape[1], np.float32)}, dict(zip("ab", shape, strict=True)))["y"]
        assert (y == 1).all()


def test_phases_run_in_order() -> None:
    i = Var("i")
    n = 200_000
    up = For(i, N, "parallel", (Store("t", (i,), f32("x", i) + 1.0),))
    across = For(i, N, "parallel", (Store("y", (i,), f32("t", N - 1 - i) * 2.0),))
    total = (
        Store("s", (i64(0),), Const(0.0, "f32")),
        For(i, N, "serial", (Store("s", (i64(0),), f32("y", i), "add"),)),
    )
    args = (
        buffer("x", "f32", N),
        buffer("t", "f32", N, "scratch"),
        buffer("y", "f32", N, "out"),
        buffer("s", "f32", 1, "out"),
    )
    kernel = Kernel("phases", args, ("n",), (up, across, *total))
    x = np.arange(n, dtype=np.float32)
    found = execute(
        kernel, {"x": x, "t": np.zeros_like(x), "y": np.zeros_like(x), "s": np.zeros(1, np.float32)}, {"n": n}
    )
    np.testing.assert_array_equal(found["y"], (x[::-1] + 1) * 2)
    assert found["s"][0] == pytest.approx(float(found["y"].sum(dtype=np.float64)), rel=1e-2)


def test_top_level_of_a_scalar_kernel() -> None:
    k = Var("k", bound=64)
    body: tuple[Stmt, ...] = (
        Alloc("s", "f32", (), "register"),
        Store("s", (), Const(1.0, "f32")),
        For(k, i64(64), "serial", (Store("s", (), f32("x", k), "max"),)),
        Let("m", Load("s", (), "f32")),
        Store("y", (i64(0),), Var("m", "f32")),
    )
    check("scalar", body)


def test_strided_views_are_read_in_place() -> None:
    i, j = Var("i", bound=6), Var("j", bound=5)
    base = np.arange(60, dtype=np.float64).reshape(6, 10)
    for view in (base[:, ::2], base[::-1, 9::-2], base[:, ::-2], np.broadcast_to(base[:1, :5], (6, 5))):
        s, t = (k // 8 for k in view.strides)
        for kind in ("serial", "vector"):
            inner = For(j, i64(5), kind, (Store("y", (i * 5 + j,), Load("x", (i * s + j * t,), "f64")),))
            kernel = Kernel(
                "view", (buffer("x", "f64", 60), buffer("y", "f64", 30, "out")), (), (For(i, i64(6), "grid", (inner,)),)
            )
            y = np.zeros(30)
            CPU.launch(CPU.compile(kernel), [(CPU.upload(view), 0), (CPU.upload(y), 0)], [])
            np.testing.assert_array_equal(y.reshape(6, 5), view)


@pytest.mark.parametrize("block", range(4))
def test_random_kernels(block: int) -> None:
    for seed in range(8 * block, 8 * block + 8):
        made = RandomKernel(seed)
        compare(made.kernel, made.arrays, made.params)
