"""Naive kernels as lowering makes them, the devices that tests schedule for, and whether two kernels do the same."""

from __future__ import annotations

import math

import numpy as np

from kernelforge.dtypes import DTYPES
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import Alloc, Arg, Const, For, Kernel, Load, Store, Var, i64, op
from kernelforge.ir.schedule.limits import Limits

ALL = frozenset(DTYPES)
AVX512 = Limits("vector", 64, 32, 2, 1, 32 << 10, 1 << 20, ALL, True, 64, "", frozenset({"stream"}))
SSE = Limits("vector", 16, 16, 4, 1, 32 << 10, 1 << 18, ALL, True, 64, "")
GPU = Limits("group", 16, 0, 4096, 64, 48 << 10, 1 << 20, ALL, False, 64, "")
TINY = Limits("group", 16, 0, 32, 8, 4 << 10, 1 << 16, ALL, False, 64, "")
DEVICES = {"avx512": AVX512, "sse": SSE, "gpu": GPU, "tiny": TINY}


def gemm(m: int, n: int, k: int, transposed: bool = False) -> Kernel:
    """relu(x @ y + b), x of shape (m, k), or (k, m) if it is read ``transposed``, y of shape (k, n)."""
    i, j, r = Var("i0", "i64", m), Var("i1", "i64", n), Var("r", "i64", k)
    product = Load("x", (i + r * m if transposed else i * k + r,), "f32") * Load("y", (r * n + j,), "f32")
    out = op("max", Load("a", (), "f32") + Load("b", (j,), "f32"), 0.0)
    body = (
        Alloc("a", "f32", (), "register"),
        Store("a", (), Const(0, "f32")),
        For(r, i64(k), "serial", (Store("a", (), product, "add"),)),
        Store("o", (i * n + j,), out),
    )
    args = (("x", m * k), ("y", k * n), ("b", n))
    return kernel("gemm", args, m * n, For(i, i64(m), "parallel", (For(j, i64(n), "parallel", body),)))


def softmax(rows: int, n: int) -> Kernel:
    """Softmax of each row of x, of shape (rows, n)."""
    i, a, b, c = Var("i", "i64", rows), Var("ra", "i64", n), Var("rb", "i64", n), Var("rc", "i64", n)

    def e(v: Var):  # type: ignore[no-untyped-def]
        return op("exp", Load("x", (i * n + v,), "f32") - Load("m", (), "f32"))

    body = (
        Alloc("m", "f32", (), "register"),
        Store("m", (), Const(-math.inf, "f32")),
        For(a, i64(n), "serial", (Store("m", (), Load("x", (i * n + a,), "f32"), "max"),)),
        Alloc("s", "f32", (), "register"),
        Store("s", (), Const(0, "f32")),
        For(b, i64(n), "serial", (Store("s", (), e(b), "add"),)),
        For(c, i64(n), "parallel", (Store("o", (i * n + c,), e(c) / Load("s", (), "f32")),)),
    )
    return kernel("softmax", (("x", rows * n),), rows * n, For(i, i64(rows), "parallel", body))


def running(rows: int, n: int, backwards: bool = False) -> Kernel:
    """The sums of x, of shape (rows, n), up to each element of a row, from its start or its end."""
    i, r = Var("i", "i64", rows), Var("r", "i64", n)
    at = i * n + (n - 1 - r if backwards else r)
    held = Load("a", (), "f32")
    step = (Store("a", (), held + Load("x", (at,), "f32")), Store("o", (at,), held))
    body = (
        Alloc("a", "f32", (), "register"),
        Store("a", (), Const(-0.0, "f32")),
        For(r, i64(n), "serial", step),
    )
    return kernel("running", (("x", rows * n),), rows * n, For(i, i64(rows), "parallel", body))


def planes(rows: int, n: int) -> Kernel:
    """n planes of rows elements, multiplied by their numbers and put side by side."""
    i, k = Var("i", "i64", rows), Var("k", "i64", n)
    value = op("select", k < 1, Load("x", (i,), "f32"), Load("x", (k * rows + i,), "f32") * k.cast("f32"))
    inner = For(k, i64(n), "parallel", (Store("o", (i * n + k,), value),))
    return kernel("planes", (("x", rows * n),), rows * n, For(i, i64(rows), "parallel", (inner,)))


def columns(rows: int, n: int) -> Kernel:
    """Twice the sum over the rows of x, of shape (rows, n)."""
    i, r = Var("i", "i64", n), Var("r", "i64", rows)
    body = (
        Alloc("a", "f32", (), "register"),
        Store("a", (), Const(0, "f32")),
        For(r, i64(rows), "serial", (Store("a", (), Load("x", (r * n + i,), "f32"), "add"),)),
        Store("o", (i,), Load("a", (), "f32") * 2.0),
    )
    return kernel("columns", (("x", rows * n),), n, For(i, i64(n), "parallel", body))


def double(n: int) -> Kernel:
    """2 * x."""
    i = Var("i", "i64", n)
    return kernel(
        "double", (("x", n),), n, For(i, i64(n), "parallel", (Store("o", (i,), Load("x", (i,), "f32") * 2.0),))
    )


def kernel(name: str, args: tuple[tuple[str, int], ...], out: int, nest: For) -> Kernel:
    made = (*(Arg(a, "f32", i64(n), "in") for a, n in args), Arg("o", "f32", i64(out), "out"))
    return Kernel(name, made, (), (nest,))


def arrays(k: Kernel, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for arg in k.args:
        n = int(arg.size.value)  # type: ignore[attr-defined]
        if arg.dtype in ("i32", "i64"):
            out[arg.name] = rng.integers(-1, 5, n).astype(f"i{int(arg.dtype[1:]) // 8}")
            continue
        out[arg.name] = (
            rng.uniform(0.5, 1.5, n).astype(np.float32) if arg.mode == "in" else np.full(n, np.nan, np.float32)
        )
    return out


def same(before: Kernel, after: Kernel, tolerance: float = 1e-3, **options: int) -> None:
    first, second = arrays(before), arrays(after)
    run_kernel(before, first, {})
    run_kernel(after, second, {}, **options)
    for name in (a.name for a in before.args if a.mode == "out"):
        np.testing.assert_allclose(second[name], first[name], rtol=tolerance, atol=tolerance)
