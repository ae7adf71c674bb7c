"""Kernels built, run on the CPU backend and compared with the interpreter, for the tests of that backend."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kernelforge.backends.cpu import CpuBackend
from kernelforge.dtypes import DTYPES
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import (
    ARITY,
    Arg,
    Expr,
    For,
    Kernel,
    Load,
    LoopKind,
    Mode,
    Stmt,
    Store,
    Var,
    i64,
    op,
    select,
)
from tests.backends.drawn import drawn

Array = np.ndarray[Any, Any]
CPU = CpuBackend()
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.5, np.inf, -np.inf, np.nan, 1e-40, 3e38, -7.25, 65504.0, 1e-7, 12345.678)


def execute(kernel: Kernel, arrays: dict[str, Array], params: dict[str, int] | None = None) -> dict[str, Array]:
    """Compile and launch; return copies of the arrays as the kernel left them."""
    params = params or {}
    done = {name: a.copy() for name, a in arrays.items()}
    CPU.launch(
        CPU.compile(kernel), [(CPU.upload(done[a.name]), 0) for a in kernel.args], [params[p] for p in kernel.params]
    )
    return done


def compare(kernel: Kernel, arrays: dict[str, Array], params: dict[str, int] | None = None, rtol: float = 0.0) -> None:
    """Check that the interpreter leaves the same in every array."""
    params = params or {}
    expected = {name: a.copy() for name, a in arrays.items()}
    run_kernel(kernel, expected, params)
    found = execute(kernel, arrays, params)
    for arg in kernel.args:
        a, b = (x[arg.name] for x in (found, expected))
        if arg.dtype == "bf16":
            a, b = a.astype(np.float32), b.astype(np.float32)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=0, err_msg=f"{kernel.name}.{arg.name}")
        if a.dtype.kind == "f" and kernel.name not in ("min", "max"):
            number = ~np.isnan(a)
            np.testing.assert_array_equal(
                np.signbit(a[number]), np.signbit(b[number]), err_msg=f"zeros of {kernel.name}"
            )


def buffer(name: str, dtype: str, size: Expr | int, mode: Mode = "in") -> Arg:
    return Arg(name, dtype, size if isinstance(size, Expr) else i64(size), mode)


def values(dtype: str, n: int, seed: int = 0) -> Array:
    return drawn(dtype, n, seed, SPECIAL, 0.4)


def each(n: int, kind: LoopKind, body: Any, lanes: int = 16) -> tuple[Stmt, ...]:
    """Loop over n elements; a vector loop has a serial one around it and no tail."""
    i = Var("i", bound=n)
    if kind != "vector":
        return (For(i, i64(n), kind, body(i)),)
    o, v = Var("o", bound=n // lanes), Var("v", bound=lanes)
    return (For(o, i64(n // lanes), "grid", (For(v, i64(lanes), "vector", body(o * lanes + v)),)),)


def mapped(
    name: str, dtypes: tuple[str, ...], out: str, fn: Any, kind: LoopKind, n: int = 64, lanes: int = 16
) -> Kernel:
    args = tuple(buffer(f"x{k}", d, n) for k, d in enumerate(dtypes))

    def body(i: Expr) -> tuple[Stmt, ...]:
        return (Store("y", (i,), fn(*[Load(a.name, (i,), a.dtype) for a in args])),)

    return Kernel(name, (*args, buffer("y", out, n, "out")), (), each(n, kind, body, lanes))


def uses(name: str, dtype: str, count: int, n: int = 64, lanes: int = 64) -> Kernel:
    """Make a kernel that uses a function so many times."""

    def summed(*x: Expr) -> Expr:
        parts = [op(name, *(v * (1 + k / 64) for v in x)) for k in range(count)]
        return functools.reduce(lambda a, b: select(b.ne(b), 2 * a + 1, a + b), parts)

    return mapped(name, (dtype,) * ARITY[name], dtype, summed, "vector", n, lanes)


def check_map(name: str, dtypes: tuple[str, ...], out: str, fn: Any, rtol: float = 0.0, n: int = 64) -> None:
    arrays = {f"x{k}": values(d, n, k) for k, d in enumerate(dtypes)}
    for kind in ("parallel", "vector"):
        compare(mapped(name, dtypes, out, fn, kind, n), {**arrays, "y": np.zeros(n, DTYPES[out])}, rtol=rtol)
