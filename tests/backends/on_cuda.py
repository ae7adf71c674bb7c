"""Kernels built, run on the CUDA device and compared with the interpreter, for the tests of that backend."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernelforge.backends.base import Backend
from kernelforge.backends.cuda import devices
from kernelforge.dtypes import DTYPES, FLOATS, SIGNED
from kernelforge.errors import DeviceUnavailable
from kernelforge.ir.interpret import evaluate, run_kernel
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    LoopKind,
    Stmt,
    Store,
    Var,
    i64,
)  # fmt: skip

SCALARS = tuple(d for d in DTYPES if d not in ("f16", "bf16"))
SPECIAL = (0.0, -0.0, 1.0, -1.5, 2.5, 0.5, -2.5, 3e10, -7.25, math.inf, -math.inf, math.nan, 1e-40, 0.1)


@functools.cache
def device() -> Backend:
    try:
        return devices()["cuda:0"]
    except DeviceUnavailable as error:
        pytest.skip(str(error).splitlines()[0])


def loop(name: str, extent: Expr | int, kind: LoopKind, body: Callable[[Var], list[Stmt]]) -> For:
    static = extent if isinstance(extent, int) else None
    var = Var(name, "i64", static)
    return For(var, i64(extent) if isinstance(extent, int) else extent, kind, tuple(body(var)))


def kernel(name: str, args: str, body: list[Stmt], params: tuple[str, ...] = ()) -> Kernel:
    """A kernel with arguments written as ``"x:f32[8] y:f32[8]!"``, where ``!`` marks outputs."""
    made = []
    for text in args.split():
        buffer, _, rest = text.partition(":")
        dtype, _, size = rest.rstrip("!]").partition("[")
        made.append(Arg(buffer, dtype, i64(int(size.rstrip("]"))), "out" if text.endswith("!") else "in"))
    return Kernel(name, tuple(made), params, tuple(body))


def values(dtype: str, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype in FLOATS:
        return rng.normal(size=count).astype(DTYPES[dtype])
    if dtype == "bool":
        return rng.integers(0, 2, count).astype(bool)
    return rng.integers(-60 if dtype in SIGNED else 0, 61, count).astype(DTYPES[dtype])


def inputs(k: Kernel, params: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    return {a.name: values(a.dtype, evaluate(a.size, params), seed + n) for n, a in enumerate(k.args)}


def run(k: Kernel, arrays: dict[str, np.ndarray], params: dict[str, int]) -> dict[str, np.ndarray]:
    """Run on the device, from copies of ``arrays``."""
    d = device()
    handles = [d.upload(arrays[a.name]) for a in k.args]
    d.launch(d.compile(k), [(h, 0) for h in handles], [params[p] for p in k.params])
    return {
        a.name: d.download(h, 0, arrays[a.name].shape, arrays[a.name].dtype)
        for a, h in zip(k.args, handles, strict=True)
    }


def agree(
    k: Kernel, arrays: dict[str, np.ndarray] | None = None, params: dict[str, int] | None = None, ulps: float = 0
) -> dict[str, np.ndarray]:
    """Compare with the interpreter: bit for bit (but for NaN's), or within some units in the last place."""
    params = params or {}
    arrays = arrays or inputs(k, params)
    want = {name: a.copy() for name, a in arrays.items()}
    run_kernel(k, want, params)
    got = run(k, arrays, params)
    for name, expected in want.items():
        if ulps and expected.dtype.kind == "f":
            np.testing.assert_array_max_ulp(got[name], expected, maxulp=ulps)
        else:
            np.testing.assert_array_equal(got[name], expected, err_msg=name)
        if expected.dtype.kind == "f" and not ulps:
            number = ~np.isnan(expected)
            np.testing.assert_array_equal(np.signbit(got[name])[number], np.signbit(expected)[number], err_msg=name)
    return got


def pointwise(name: str, outs: dict[str, Callable[[Expr, Expr], Expr]], dtype: str, a: Any, b: Any) -> Kernel:
    """One serial loop that stores each of ``outs`` of ``x[i]`` and ``y[i]``."""
    count = len(a)
    x, y = (lambda i: Load("x", (i,), dtype)), (lambda i: Load("y", (i,), dtype))
    made = {key: fn(x(Var("i", "i64", count)), y(Var("i", "i64", count))) for key, fn in outs.items()}
    args = [Arg("x", dtype, i64(count), "in"), Arg("y", dtype, i64(count), "in")]
    args += [Arg(f"o_{key}", e.dtype, i64(count), "out") for key, e in made.items()]
    body = loop("i", count, "serial", lambda i: [Store(f"o_{key}", (i,), e) for key, e in made.items()])
    return Kernel(name, tuple(args), (), (body,))


def check_pointwise(
    name: str, outs: dict[str, Callable[[Expr, Expr], Expr]], dtype: str, a: Any, b: Any, ulps: float = 0
) -> None:
    k = pointwise(name, outs, dtype, a, b)
    arrays = {arg.name: np.zeros(len(a), DTYPES[arg.dtype]) for arg in k.args}
    arrays |= {"x": np.asarray(a, DTYPES[dtype]), "y": np.asarray(b, DTYPES[dtype])}
    agree(k, arrays, ulps=ulps)


def pairs(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    if dtype in FLOATS:
        a = np.array(SPECIAL, np.float64)
        grid = np.array(np.meshgrid(a, a)).reshape(2, -1)
        with np.errstate(over="ignore"):
            return grid[0].astype(DTYPES[dtype]), grid[1].astype(DTYPES[dtype])
    if dtype == "bool":
        return np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    info = np.iinfo(DTYPES[dtype])
    some = sorted({info.min, info.max, 0, 1, 3, info.max // 3, info.min // 3, *((-1, -7) if info.min else (5, 6))})
    a, b = (np.array(side, DTYPES[dtype]) for side in zip(*((p, q) for p in some for q in some), strict=True))
    return a, b


def rows(r: int, c: int, t: int, dtype: str = "f32") -> Kernel:
    """Row sums by a tree in local memory, then the row less its sum."""

    def row(r_: Var) -> list[Stmt]:
        def x(i: Expr) -> Expr:
            return Load("x", (r_ * c + i,), dtype)

        out: list[Stmt] = [
            Alloc("p", dtype, (i64(t),), "register"),
            loop("t", t, "group", lambda v: [
                Store("p", (v,), Const(0, dtype)),
                loop("o", -(-c // t), "serial", lambda o: [
                    If(o * t + v < c, (Store("p", (v,), x(o * t + v), "add"),)),
                ]),
            ]),
            Alloc("l", dtype, (i64(t),), "local"),
            loop("t", t, "group", lambda v: [Store("l", (v,), Load("p", (v,), dtype))]),
        ]  # fmt: skip
        half = t // 2
        while half:
            out.append(
                loop("t", half, "group", lambda v, h=half: [Store("l", (v,), Load("l", (v + h,), dtype), "add")])
            )
            half //= 2
        out += [
            Alloc("s", dtype, (), "register"),
            Store("s", (), Load("l", (i64(0),), dtype)),
            Store("z", (r_,), Load("s", (), dtype)),
        ]
        return [*out, loop("t", t, "group", lambda v: [
            loop("o", -(-c // t), "serial", lambda o: [
                If(o * t + v < c, (Store("y", (r_ * c + o * t + v,), x(o * t + v) - Load("s", (), dtype)),)),
            ]),
        ])]  # fmt: skip

    return kernel("rows", f"x:{dtype}[{r * c}] y:{dtype}[{r * c}]! z:{dtype}[{r}]!", [loop("r", r, "grid", row)])
