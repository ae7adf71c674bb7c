"""What a backend must do: memory, launches, the primitive table, errors. A third party's device proves itself here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kernelforge.backends import registry
from kernelforge.backends.base import Backend
from kernelforge.compile import compile_graph
from kernelforge.config import current
from kernelforge.dtypes import BFLOAT16, DTYPES, FLOATS, is_float
from kernelforge.errors import (
    BackendFailed,
    DeviceOutOfMemory,
    KernelforgeError,
    NotDifferentiable,
    UnsupportedOnDevice,
)
from kernelforge.ir import autodiff
from kernelforge.ir.build import Builder, apply_many
from kernelforge.ir.graph import Graph, Kind, Primitive, Sample
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.kernel import Arg, Const, For, Kernel, Load, Store, Var, i64
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.types import Type
from kernelforge.runtime.memory import download, upload

Array = np.ndarray[Any, Any]
Check = Callable[[], str]
"""Returns what is wrong, or an empty text."""


def check_backend(backend: Backend | str) -> int:
    """Run every check on a device; return how many there were.

    Raises:
        BackendFailed: listing each check that failed and how.
    """
    device = registry.backend(backend) if isinstance(backend, str) else backend
    count, failures = 0, []
    for name, check in _checks(device):
        count += 1
        try:
            problem = check()
        except (KernelforgeError, ArithmeticError, TypeError, ValueError, LookupError, RuntimeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failures.append(f"{name}: {problem}")
    if failures:
        raise BackendFailed(device=device.name, failed=len(failures), count=count, failures="\n  ".join(failures))
    return count


def _checks(device: Backend) -> Iterator[tuple[str, Check]]:
    for dtype in sorted(device.limits.dtypes):
        yield f"round trip of {dtype}", functools.partial(_round_trip, device, dtype)
    yield "upload of a strided view", functools.partial(_strided, device)
    yield "download from an offset", functools.partial(_offset_download, device)
    for n in (0, 1, 7, 1000):
        yield f"launch over {n} elements", functools.partial(_launch, device, n)
    yield "launch at offsets", functools.partial(_launch_at_offsets, device)
    yield "launches in order", functools.partial(_in_order, device)
    yield "more memory than there is", functools.partial(_exhaust, device)
    yield "dtypes it lacks", functools.partial(_lacking, device)
    for prim in PRIMITIVES.values():
        for k, sample in enumerate(prim.sample()):
            for dtype in sorted(prim.dtypes & device.limits.dtypes):
                yield f"{prim.name}, sample {k}, {dtype}", functools.partial(_primitive, device, prim, sample, dtype)
                if dtype in ("f32", "f64") or prim.kind is Kind.OPAQUE:
                    yield (
                        f"gradient of {prim.name}, sample {k}, {dtype}",
                        functools.partial(_gradient, device, prim, sample, dtype),
                    )


def _round_trip(device: Backend, dtype: str) -> str:
    array = np.arange(15).reshape(3, 5).astype(DTYPES[dtype])
    return _differ(_back(device, device.upload(array), 0, array.shape, array.dtype), array, exact=True)


def _strided(device: Backend) -> str:
    if device.limits.host:
        return ""
    array = np.arange(24, dtype=np.int32).reshape(4, 6)[::-1, ::2].T
    return _differ(_back(device, device.upload(array), 0, array.shape, array.dtype), array, exact=True)


def _offset_download(device: Backend) -> str:
    array = np.arange(20, dtype=np.int32)
    return _differ(_back(device, device.upload(array), 28, (3,), array.dtype), array[7:10], exact=True)


def _back(device: Backend, handle: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    found = device.download(handle, offset, shape, dtype).copy()
    device.free(handle)
    return found


def _affine(n: int) -> Kernel:
    """Make the kernel y[i] = 2 x[i] + 1 over ``n`` elements of i32."""
    i = Var("i", "i64", n)
    body = Store("y", (i,), Load("x", (i,), "i32") * 2 + 1)
    args = (Arg("x", "i32", i64(n), "in"), Arg("y", "i32", i64(n), "out"))
    return Kernel("affine", args, (), (For(i, Const(n, "i64"), "parallel", (body,)),))


def _launch(device: Backend, n: int) -> str:
    array = np.arange(n, dtype=np.int32)
    x, y = device.upload(np.resize(array, max(n, 1))), device.allocate(max(4 * n, 1))
    device.launch(device.compile(_affine(n)), [(x, 0), (y, 0)], ())
    found = _back(device, y, 0, (n,), array.dtype)
    device.free(x)
    return _differ(found, array * 2 + 1, exact=True)


def _launch_at_offsets(device: Backend) -> str:
    array = np.arange(16, dtype=np.int32)
    x, y = device.upload(array), device.upload(np.zeros(16, np.int32))
    device.launch(device.compile(_affine(5)), [(x, 12), (y, 32)], ())
    expected = np.zeros(16, np.int32)
    expected[8:13] = array[3:8] * 2 + 1
    found = _back(device, y, 0, (16,), array.dtype)
    device.free(x)
    return _differ(found, expected, exact=True)


def _in_order(device: Backend) -> str:
    """Each launch reads what the one before it wrote."""
    n, rounds = 257, 20
    kernel = device.compile(_affine(n))
    a, b = device.upload(np.zeros(n, np.int32)), device.upload(np.zeros(n, np.int32))
    for _ in range(rounds):
        device.launch(kernel, [(a, 0), (b, 0)], ())
        a, b = b, a
    device.synchronize()
    found = _back(device, a, 0, (n,), np.dtype(np.int32))
    device.free(b)
    return _differ(found, np.full(n, 2**rounds - 1, np.int32), exact=True)


def _exhaust(device: Backend) -> str:
    try:
        device.free(device.allocate(1 << 60))
    except DeviceOutOfMemory:
        return ""
    return "allocating 2**60 bytes did not raise DeviceOutOfMemory"


def _lacking(device: Backend) -> str:
    for dtype in sorted(FLOATS - device.limits.dtypes):
        try:
            _run(device, _graph(PRIMITIVES["negative"], [Type((3,), DTYPES[dtype])], {}), [np.zeros(3, DTYPES[dtype])])
        except UnsupportedOnDevice:
            continue
        return f"{dtype} is not among its dtypes, and was not refused"
    return ""


def _graph(prim: Primitive, types: Sequence[Type], params: dict[str, Any]) -> Graph:
    b = Builder()
    with b.active():
        outputs = apply_many(prim.name, *[b.input(t) for t in types], **params)
        return b.finish(outputs)


def _inputs(prim: Primitive, sample: Sample, dtype: str) -> list[Array]:
    """Cast what stands for any dtype in a sample: float64 arrays, and of maps int64 ones too."""
    arrays = [np.asarray(x) for x in sample.inputs]
    if prim.kind is Kind.OPAQUE:
        return arrays
    kinds = "fi" if prim.kind is Kind.MAP else "f"
    return [_as(x, dtype) if x.dtype.kind in kinds else x for x in arrays]


def _as(array: Array, dtype: str) -> Array:
    """Cast values that may be outside of the dtype, or nothing in it, to some that are."""
    if dtype in FLOATS or array.dtype.kind == "i":
        with np.errstate(all="ignore"):
            return array.astype(DTYPES[dtype])
    finite = np.nan_to_num(array, nan=0.0, posinf=3.0, neginf=-3.0)
    if dtype == "bool":
        return np.asarray(finite > 0.0)
    return np.clip(4.0 * (np.abs(finite) if dtype[0] == "u" else finite), -100.0, 100.0).astype(DTYPES[dtype])


def _run(device: Backend, graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    plan = compile_graph(graph, device, current())
    buffers = plan.run([upload(device, np.ascontiguousarray(a)) for a in arrays])
    return [download(b, 0, v.type.shape, v.type.dtype) for b, v in zip(buffers, graph.outputs, strict=True)]


def _compare(device: Backend, graph: Graph, arrays: Sequence[Array], ulps: float) -> str:
    for found, expected in zip(_run(device, graph, arrays), run_graph(graph, arrays), strict=True):
        problem = _differ(found, expected, ulps=ulps)
        if problem:
            return problem
    return ""


def _primitive(device: Backend, prim: Primitive, sample: Sample, dtype: str) -> str:
    arrays = _inputs(prim, sample, dtype)
    return _compare(
        device, _graph(prim, [Type(a.shape, a.dtype) for a in arrays], sample.params), arrays, 4.0 + 2.0 * prim.bound
    )


def _gradient(device: Backend, prim: Primitive, sample: Sample, dtype: str) -> str:
    arrays = _inputs(prim, sample, dtype)
    wrt = [i for i, a in enumerate(arrays) if is_float(a.dtype)]
    forward = _graph(prim, [Type(a.shape, a.dtype) for a in arrays], sample.params)
    if isinstance(prim.vjp, str) or not wrt or not any(is_float(v.type.dtype) for v in forward.outputs):
        return ""
    b = Builder()
    with b.active():
        outputs, pullback = autodiff.vjp(forward, [b.input(Type(a.shape, a.dtype)) for a in arrays], wrt)
        try:
            graph = b.finish(pullback([b.input(o.type) if is_float(o.dtype) else None for o in outputs]))
        except NotDifferentiable:
            return ""
    cotangents = [
        np.linspace(0.5, 1.5, v.type.size).reshape(v.type.shape).astype(v.type.dtype)
        for v in graph.inputs[len(arrays) :]
    ]
    return _compare(device, graph, [*arrays, *cotangents], 32.0 + 8.0 * prim.bound)


def _differ(found: Array, expected: Array, ulps: float = 0.0, exact: bool = False) -> str:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"found {found.dtype}{found.shape}, expected {expected.dtype}{expected.shape}"
    wide, right = found.astype(np.float64), expected.astype(np.float64)
    wrong = ~((wide == right) | (np.isnan(wide) & np.isnan(right)))
    if not exact and is_float(found.dtype):
        epsilon = 2.0**-8 if found.dtype == BFLOAT16 else float(np.finfo(found.dtype).eps) / 2.0
        scale = np.abs(right[np.isfinite(right)]).max(initial=0.0)
        with np.errstate(invalid="ignore"):
            wrong &= ~(np.abs(wide - right) <= ulps * epsilon * np.maximum(np.abs(right), scale))
    if not wrong.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {wrong.size} elements are wrong; at {at} found {found[at]!s}, expected {expected[at]!s}"
    )
