"""Kernels built, run on the OpenCL devices and compared with the interpreter, for the tests of that backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernelforge.dtypes import DTYPES
from kernelforge.errors import (
    DeviceUnavailable,
)
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import (
    Arg,
    Expr,
    For,
    Kernel,
    Load,
    LoopKind,
    Stmt,
    Store,
    Var,
    i64,
)
from tests.backends.drawn import drawn

Array = np.ndarray[Any, Any]
SPECIAL = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    -2.5,
    3.5,
    np.inf,
    -np.inf,
    np.nan,
    3e38,
    -7.25,
    1e-7,
    12345.678,
    8388609.0,
)


COMPUTED = [d for d in DTYPES if d not in ("f16", "bf16")]


def _opened() -> tuple[list[Any], str]:
    try:
        from kernelforge.backends.opencl import devices

        return list(devices().values()), ""
    except (DeviceUnavailable, ImportError) as error:
        return [], str(error)


DEVICES, REASON = _opened()
DEVICE = DEVICES[0] if DEVICES else None
needs_device = pytest.mark.skipif(DEVICE is None, reason=REASON or "there is no device")
each_device = pytest.mark.parametrize("device", DEVICES or [pytest.param(None, marks=needs_device)], ids=str)


def execute(
    device: Any, kernel: Kernel, arrays: dict[str, Array], params: dict[str, int] | None = None
) -> dict[str, Array]:
    """Compile and launch; return the arrays as the kernel left them."""
    return launched(device, device.compile(kernel), arrays, params)


def launched(
    device: Any, executable: Any, arrays: dict[str, Array], params: dict[str, int] | None = None
) -> dict[str, Array]:
    """Launch what is compiled; return the arrays as it left them."""
    kernel = executable.kernel
    handles = [device.upload(arrays[a.name]) for a in kernel.args]
    device.launch(executable, [(h, 0) for h in handles], [(params or {})[p] for p in kernel.params])
    return {
        a.name: device.download(h, 0, arrays[a.name].shape, arrays[a.name].dtype)
        for a, h in zip(kernel.args, handles, strict=True)
    }  # fmt: skip


def compare(
    device: Any,
    kernel: Kernel,
    arrays: dict[str, Array],
    params: dict[str, int] | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Check that the interpreter leaves the same in every array, down to the signs of zeros."""
    expected = {name: a.copy() for name, a in arrays.items()}
    with np.errstate(all="ignore"):
        run_kernel(kernel, expected, params or {})
    found = execute(device, kernel, arrays, params)
    for name, a in found.items():
        np.testing.assert_allclose(a, expected[name], rtol=rtol, atol=atol, err_msg=f"{kernel.name}.{name}")
        if a.dtype.kind == "f" and not rtol:
            number = ~np.isnan(a)
            np.testing.assert_array_equal(
                np.signbit(a[number]), np.signbit(expected[name][number]), err_msg=kernel.name
            )


def values(dtype: str, n: int = 64, seed: int = 0) -> Array:
    return drawn(dtype, n, seed, SPECIAL, 0.5)


def elementwise(name: str, outputs: list[tuple[str, Any]], dtypes: tuple[str, ...], kind: LoopKind) -> Kernel:
    """Make a kernel over 64 elements: several outputs, each a dtype and a function of the inputs' elements."""
    o, v = Var("o", bound=4), Var("v", bound=16)
    i = o * 16 + v
    x = [Load(f"x{k}", (i,), d) for k, d in enumerate(dtypes)]
    stores = tuple(Store(f"y{k}", (i,), fn(*x)) for k, (_, fn) in enumerate(outputs))
    args = [Arg(f"x{k}", d, i64(64), "in") for k, d in enumerate(dtypes)]
    args += [Arg(f"y{k}", d, i64(64), "out") for k, (d, _) in enumerate(outputs)]
    return Kernel(name, tuple(args), (), (For(o, i64(4), "grid", (For(v, i64(16), kind, stores),)),))


def check_elementwise(
    device: Any, outputs: list[tuple[str, Any]], dtypes: tuple[str, ...], rtol: float = 0.0, atol: float = 0.0
) -> None:
    for kind in ("vector", "serial", "group"):
        kernel = elementwise(f"each_{kind}", outputs, dtypes, kind)
        arrays = {f"x{k}": values(d, 64, k) for k, d in enumerate(dtypes)}
        arrays |= {f"y{k}": np.zeros(64, DTYPES[d]) for k, (d, _) in enumerate(outputs)}
        compare(device, kernel, arrays, rtol=rtol, atol=atol)


V, R = Var("v", bound=8), Var("r", bound=5)
X, Y, K = Arg("x", "f32", i64(64), "in"), Arg("y", "f32", i64(64), "out"), Arg("k", "i64", i64(64), "in")


def f32(name: str, *index: Expr | int) -> Expr:
    return Load(name, tuple(x if isinstance(x, Expr) else i64(x) for x in index), "f32")


def check(device: Any, name: str, *body: Stmt, rtol: float = 0.0, params: dict[str, int] | None = None) -> None:
    arrays = {
        "x": np.linspace(-3, 5, 64, dtype=np.float32),
        "k": np.arange(64)[::-1] % 8,
        "y": np.full(64, 7, np.float32),
    }
    compare(device, Kernel(name, (X, K, Y), tuple(params or ()), body), arrays, params, rtol)


def over(*body: Stmt, rows: int = 5, kind: LoopKind = "grid") -> Stmt:
    return For(Var("r", bound=rows), i64(rows), kind, body)


def lanes(*body: Stmt, kind: LoopKind = "vector", n: int = 8) -> Stmt:
    return For(Var("v", bound=n), i64(n), kind, body)
