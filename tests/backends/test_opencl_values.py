"""What single operations compute on OpenCL devices, on every runtime that is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS, SIGNED
from kernelforge.ir import math
from kernelforge.ir.kernel import (
    COMPARE,
    MATH_BINARY,
    MATH_UNARY,
    Arg,
    Const,
    For,
    Kernel,
    Load,
    LoopKind,
    Op,
    Store,
    Var,
    i64,
    op,
    select,
)
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.passes.finish import finish
from tests.backends.on_cpu import uses
from tests.backends.on_opencl import (
    COMPUTED,
    Array,
    check_elementwise,
    compare,
    each_device,
    elementwise,
    launched,
    values,
)
from tests.backends.test_opencl_text import PAIRS


@each_device
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_float_operations(device: Any, dtype: str) -> None:
    unary = [
        (dtype, lambda x, name=name: op(name, x)) for name in ("neg", "abs", "sqrt", "floor", "ceil", "trunc", "rint")
    ]
    check_elementwise(device, unary, (dtype,))
    binary = [(dtype, lambda x, y, name=name: op(name, x, y)) for name in ("add", "sub", "mul", "div")]
    tests = [("bool", lambda x, y, name=name: op(name, x, y)) for name in COMPARE]
    check_elementwise(device, binary + tests, (dtype, dtype))
    check_elementwise(device, [(dtype, lambda x, y, z: op("fma", x, y, z))], (dtype, dtype, dtype))


@each_device
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_fmod_of_integral_floats(device: Any, dtype: str) -> None:
    kernel = elementwise("integral", [(dtype, lambda x, y: op("fmod", x, y))], (dtype, dtype), "vector")
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, y = rng.integers(-200, 200, 64), rng.choice([-9, -7, -4, -2, 1, 2, 3, 8], 64)
        arrays = {name: a.astype(DTYPES[dtype]) for name, a in (("x0", x), ("x1", y), ("y0", 0 * x))}
        compare(device, kernel, arrays)


@each_device
@pytest.mark.parametrize("kind", ["vector", "serial"])
def test_a_deep_expression(device: Any, kind: LoopKind) -> None:
    def deep(x: Any, y: Any) -> Any:
        for k in range(150):
            x = x * y if k % 2 else x - k
        return x

    x = np.arange(64, dtype=np.int64)
    arrays = {"x0": x, "x1": x[::-1].copy(), "y0": np.zeros_like(x)}
    compare(device, elementwise("deep", [("i64", deep)], ("i64", "i64"), kind), arrays)


@each_device
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_scaleb_rounds_once(device: Any, dtype: str, lanes: int) -> None:
    """Also where a result is subnormal, zero or infinite."""
    info, n = np.finfo(DTYPES[dtype]), 64 * 16
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0.5, 2, n - 4), [np.nan, np.inf, -0.0, -1.0]]).astype(DTYPES[dtype])
    i, v = Var("i", bound=n // lanes), Var("v", bound=lanes)
    index = (i * lanes + v,)
    store = Store("y0", index, op("scaleb", Load("x0", index, dtype), Load("x1", index, dtype)))
    args = tuple(Arg(f, dtype, i64(n), "out" if f == "y0" else "in") for f in ("x0", "x1", "y0"))
    body = For(i, i64(n // lanes), "grid", (For(v, i64(lanes), "vector", (store,)),))
    lowest, highest = int(info.minexp) - int(info.nmant) - 2, int(info.maxexp) + 2
    k = np.linspace(lowest, highest, n).round().astype(DTYPES[dtype])
    compare(device, Kernel("scaled", args, (), (body,)), {"x0": x, "x1": k, "y0": np.zeros_like(x)})


@each_device
def test_products_of_bf16_in_pairs(device: Any) -> None:
    """By one instruction where the processor has it, which rounds twice, else as they are written."""
    rng = np.random.default_rng(0)
    narrow = {n: (rng.standard_normal(k).astype(np.float32).view(np.uint32) >> 16) for n, k in (("a", 2), ("b", 32))}
    arrays = {n: x.astype(np.uint16) for n, x in narrow.items()} | {"y": rng.standard_normal(16).astype(np.float32)}
    compare(device, parse_kernel(PAIRS), arrays, rtol=1e-6, atol=1e-6)


@each_device
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_min_and_max_keep_nan(device: Any, dtype: str) -> None:
    x = np.array([1, np.nan, 2, np.nan, np.inf, -np.inf, 3, 0] * 8, DTYPES[dtype])
    y = np.array([2, 1, np.nan, np.nan, 1, 1, 3, -1] * 8, DTYPES[dtype])
    for kind in ("vector", "serial"):
        outputs = [(dtype, lambda a, b, name=name: op(name, a, b)) for name in ("min", "max")]
        kernel = elementwise("extrema", outputs, (dtype, dtype), kind)  # type: ignore[arg-type]
        compare(device, kernel, {"x0": x, "x1": y, "y0": np.zeros_like(x), "y1": np.zeros_like(x)})


@each_device
@pytest.mark.parametrize("dtype", sorted(INTEGERS))
def test_integer_operations(device: Any, dtype: str) -> None:
    names = ("add", "sub", "mul", "min", "max", "and", "or", "xor")
    both: list[tuple[str, Any]] = [(dtype, lambda x, y, name=name: op(name, x, y)) for name in names]
    both += [("bool", lambda x, y, name=name: op(name, x, y)) for name in COMPARE]
    check_elementwise(device, both, (dtype, dtype))
    bits = DTYPES[dtype].itemsize * 8
    more: list[tuple[str, Any]] = [
        (dtype, lambda x, y, name=name: op(name, x, y & (bits - 1))) for name in ("shl", "shr")
    ]
    more += [(dtype, lambda x, y, name=name: op(name, x)) for name in ("neg", "abs", "not")]
    for name in ("floordiv", "mod"):
        more.append((dtype, lambda x, y, name=name: select(y.eq(0), Const(0, dtype), op(name, x, y))))
        for d in (3, 64, *((-1, -3) if dtype in SIGNED else ())):
            more.append((dtype, lambda x, y, name=name, d=d: Op(name, (x, Const(d, dtype)), dtype)))
    check_elementwise(device, more, (dtype, dtype))


@each_device
def test_bool_operations(device: Any) -> None:
    names = ("and", "or", "xor", "min", "max", *COMPARE)
    both: list[tuple[str, Any]] = [("bool", lambda x, y, name=name: op(name, x, y)) for name in names]
    both += [("bool", lambda x, y: op("not", x)), ("bool", lambda x, y: select(x, y, op("not", y)))]
    check_elementwise(device, both, ("bool", "bool"))
    wide = [("bool", lambda a, b: (a < b.cast("f32")) & (b.cast("f64") > 0.5))]
    wide += [("f64", lambda a, b: select(a < 1.0, b.cast("f64"), 2.0))]
    check_elementwise(device, wide, ("f32", "i8"))


@each_device
@pytest.mark.parametrize("source", COMPUTED)
def test_casts(device: Any, source: str) -> None:
    targets = COMPUTED if source not in FLOATS else ["bool", "f32", "f64"]
    check_elementwise(device, [(t, lambda x, t=t: x.cast(t)) for t in targets], (source,))
    if source in FLOATS:
        small = np.linspace(0, 100.9, 64).astype(DTYPES[source])
        outputs = [(t, lambda x, t=t: x.cast(t)) for t in sorted(INTEGERS)]
        arrays = {"x0": small, **{f"y{k}": np.zeros(64, DTYPES[t]) for k, (t, _) in enumerate(outputs)}}
        for kind in ("vector", "serial"):
            compare(device, elementwise("to_int", outputs, (source,), kind), arrays)  # type: ignore[arg-type]
    same = [t for t in COMPUTED if DTYPES[t].itemsize == DTYPES[source].itemsize and "bool" not in (t, source)]
    check_elementwise(device, [(t, lambda x, t=t: x.bitcast(t)) for t in same], (source,))


@each_device
def test_functions_that_are_left_in_a_kernel(device: Any) -> None:
    """On a CPU they are functions of the source, elsewhere those of the device's library."""
    x = np.linspace(0.1, 0.9, 64, dtype=np.float32)
    outputs = [("f32", lambda a, b, name=name: op(name, a)) for name in MATH_UNARY if name != "acosh"]
    outputs += [("f32", lambda a, b, name=name: op(name, a, b)) for name in MATH_BINARY]
    outputs += [("f32", lambda a, b: op("acosh", a + 1.0))]
    for kind in ("vector", "serial"):
        arrays = {"x0": x, "x1": x[::-1].copy(), **{f"y{k}": np.zeros_like(x) for k in range(len(outputs))}}
        compare(device, elementwise("library", outputs, ("f32", "f32"), kind), arrays, rtol=2e-6, atol=1e-7)  # type: ignore[arg-type]


@each_device
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_a_function_of_many_uses_is_what_it_is_in_line(
    device: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of which something is rare, all in one program: by one lane, and by several vectors."""
    native = device.limits.native
    kernels = [uses(name, dtype, 3, 64, lanes) for name in ("log", "pow", "sin") for lanes in (32, 1)]
    made = []
    for most in (2, 3):
        monkeypatch.setattr(math, "MANY", most)
        finished = [finish(k, native) for k in kernels]
        built = device.build(finished, [device.printed(k) for k in finished])
        made.append([launched(device, e, operands(e.kernel, dtype))["y"] for e in built])
    for kernel, *both in zip(kernels, *made, strict=True):
        np.testing.assert_array_equal(*both, err_msg=kernel.name)


def operands(kernel: Kernel, dtype: str) -> dict[str, Array]:
    """Draw what a function of up to two arguments takes."""
    arrays = {a.name: np.roll(values(dtype), 5 * k) for k, a in enumerate(kernel.args[:-1])}
    return {**arrays, "y": np.zeros(64, DTYPES[dtype])}
