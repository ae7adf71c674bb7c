"""The elementwise records: the lowering against the NumPy rule on every dtype and on special values."""

from __future__ import annotations

import itertools
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS, NARROW_FLOATS
from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch
from kernelforge.ir.build import REGISTRY, Builder, Sym
from kernelforge.ir.graph import Kind, Primitive
from kernelforge.ir.kernel import Const, Expr, Op, Var, substitute, walk
from kernelforge.ir.ops import PRIMITIVES, arithmetic, compare, transcendental
from kernelforge.ir.types import Type
from tests.ir.evaluate import evaluate

COMPUTED = (*arithmetic.PRIMITIVES, *compare.PRIMITIVES, *transcendental.PRIMITIVES)
PLAIN = [p for p in COMPUTED if p.name != "power"]
LOOSE = {p.name for p in COMPUTED if p.bound > 0.5}


def lowered(prim: Primitive, arrays: list[np.ndarray], params: dict[str, Any] | None = None) -> np.ndarray:
    """Evaluate the lowered expression of ``prim`` on arrays."""
    params = params or {}
    types = [Type(a.shape, a.dtype) for a in arrays]
    (out,) = prim.typing(types, params)
    names = [Var(f"x{i}", t.name) for i, t in enumerate(types)]
    assert prim.lower is not None
    expr = prim.lower(lambda i, index: names[i], (), types, out, params)
    assert expr.dtype == out.name
    return np.broadcast_to(evaluate(expr, dict(zip(names, arrays, strict=True))), out.shape)


def specials(dtype: str) -> np.ndarray:
    if dtype == "bool":
        return np.array([False, True])
    if dtype in INTEGERS:
        info = np.iinfo(DTYPES[dtype])
        edge = {info.min, info.min + 1, info.max, info.max - 1, 0, 1, 2, 3, 5, 7, 8, 31, 63}
        return np.array(sorted(edge | ({-1, -2, -3, -7} if info.min else set())), DTYPES[dtype])
    kind = DTYPES[dtype]
    info = np.finfo(np.float16 if dtype == "f16" else kind) if dtype != "bf16" else np.finfo(np.float32)
    values = [
        0.0,
        0.5,
        1.0,
        1.5,
        2.5,
        3.0,
        7.25,
        100.0,
        float(info.tiny),
        float(info.tiny) / 4,
        float(info.max),
        np.inf,
    ]
    with np.errstate(over="ignore"):
        return np.array([s * v for v in values for s in (1, -1)] + [np.nan]).astype(kind)


def operands(dtype: str, arity: int) -> list[np.ndarray]:
    return [np.array(x) for x in zip(*itertools.product(specials(dtype), repeat=arity), strict=True)]


def bits_of(x: np.ndarray) -> np.ndarray:
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


def arity(prim: Primitive) -> int:
    return len(prim.sample()[0].inputs)


CASES = [(p, d) for p in PLAIN for d in DTYPES if d in p.dtypes]


@pytest.mark.parametrize(("prim", "dtype"), CASES, ids=[f"{p.name}-{d}" for p, d in CASES])
def test_lowering_agrees_with_numpy_on_special_values(prim: Primitive, dtype: str) -> None:
    arrays = operands(dtype, arity(prim))
    (want,) = prim.numpy(arrays, {})
    got = lowered(prim, arrays)
    assert got.dtype == want.dtype
    if want.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want)
        return
    got, want = got.astype(np.float64), want.astype(np.float64)
    if prim.name in LOOSE:
        eps = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23, "f64": 2.0**-52}[dtype]
        np.testing.assert_allclose(got, want, rtol=4 * eps, atol=1e-40 if dtype != "f64" else 0)
    else:
        np.testing.assert_array_equal(got, want)
    if prim.name not in ("maximum", "minimum", "nextafter"):  # NumPy leaves the sign of a zero open there
        zero = want == 0
        np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]))


def _unlikely(condition: Expr) -> bool:
    return isinstance(condition, Op) and condition.op == "unlikely"


def constant_power(x: np.ndarray, exponent: float) -> np.ndarray:
    """Evaluate ``power`` lowered with an exponent known to the compiler."""
    type = Type(x.shape, x.dtype)
    names: list[Expr] = [Var("x", type.name), Const(exponent, type.name)]
    assert PRIMITIVES["power"].lower is not None
    expr = PRIMITIVES["power"].lower(lambda i, _: names[i], (), [type, type], type, {})
    seldom = [e for e in walk(expr) if isinstance(e, Op) and e.op == "select" and _unlikely(e.args[0])]
    often = substitute(expr, {e: e.args[2] for e in seldom})
    assert not any(isinstance(e, Op) and e.op == "pow" for e in walk(often))
    return np.broadcast_to(evaluate(expr, {names[0]: x}), x.shape)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_float_power(dtype: str) -> None:
    power = PRIMITIVES["power"]
    arrays = operands(dtype, 2)
    np.testing.assert_array_equal(lowered(power, arrays).astype(float), power.numpy(arrays, {})[0].astype(float))
    for exponent in (0.0, 1.0, 2.0, 3.0, -1.0, 0.5, 1.5, -0.5, -1.5):
        x = specials(dtype)
        (want,) = power.numpy([x, np.full_like(x, exponent)], {})
        got = constant_power(x, exponent)
        eps = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23, "f64": 2.0**-52}[dtype]
        np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=2 * eps)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("n", [4, 5, 6, 7, 12, 15, 31, 32, -2, -3, -6, -12, -31])
def test_powers_of_whole_numbers_are_products(n: int, dtype: str) -> None:
    """As near as pow, at the ends of the range and for zeros, infinities and NaN, too."""
    type = DTYPES[dtype]
    drawn = [np.random.default_rng(0).normal(size=3000), np.geomspace(2.0**-40, 2.0**40, 3000)]
    with np.errstate(all="ignore"):
        x = np.concatenate(drawn).astype(type)
        x = np.concatenate([x, -x, specials(dtype)])
        want = x.astype(np.longdouble) ** n
        got, rounded = constant_power(x, float(n)), want.astype(type)
    np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(want[got == 0]))
    eps = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23, "f64": 2.0**-52}[dtype]
    least = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149, "f64": 5e-324}[dtype]
    ordinary = np.isfinite(rounded) & np.isfinite(got)
    assert (np.abs(got[ordinary] - want[ordinary]) <= eps * np.abs(want[ordinary]) + least).all()
    np.testing.assert_array_equal(got[~ordinary].astype(float), rounded[~ordinary].astype(float))


@pytest.mark.parametrize("dtype", sorted(INTEGERS))
def test_integer_power_wraps_and_rounds_toward_zero(dtype: str) -> None:
    power = PRIMITIVES["power"]
    arrays = operands(dtype, 2)
    width = DTYPES[dtype].itemsize * 8
    want = []
    for x, y in zip(*(a.tolist() for a in arrays), strict=True):
        if y < 0:
            want.append(1 if x == 1 else -1 if x == -1 and y % 2 else 1 if x == -1 else 0)
        else:
            want.append(pow(x, y, 1 << width))
    exact = np.array([w % (1 << width) for w in want], np.uint64).astype(f"u{width // 8}").view(DTYPES[dtype])
    np.testing.assert_array_equal(power.numpy(arrays, {})[0], exact)
    np.testing.assert_array_equal(lowered(power, arrays), exact)
    for exponent in (-3, 0, 1, 5):
        if exponent < 0 and dtype.startswith("u"):
            continue
        x = specials(dtype)
        (expected,) = power.numpy([x, np.full_like(x, exponent)], {})
        np.testing.assert_array_equal(constant_power(x, exponent), expected)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_where_and_cast_of_every_dtype(dtype: str) -> None:
    where, cast = PRIMITIVES["where"], PRIMITIVES["cast"]
    x = specials(dtype)
    arrays = [np.arange(x.size) % 2 == 0, x, x[::-1].copy()]
    np.testing.assert_array_equal(bits_of(lowered(where, arrays)), bits_of(where.numpy(arrays, {})[0]))
    for target in DTYPES:
        source = x
        if dtype in FLOATS and target in INTEGERS:
            source = np.array([0, 0.75, 1, 2.5, 100]).astype(DTYPES[dtype])
        (want,) = cast.numpy([source], {"dtype": target})
        got = lowered(cast, [source], {"dtype": target})
        assert got.dtype == want.dtype
        if target in FLOATS:
            got, want = got.astype(float), want.astype(float)
        np.testing.assert_array_equal(got, want)


def test_samples_fit_the_type_rules_and_lower_as_numpy() -> None:
    for prim in PRIMITIVES.values():
        if prim.kind is not Kind.MAP or prim.name in ("iota", "random_bits", "where"):
            continue
        for sample, dtype in itertools.product(prim.sample(), prim.dtypes):
            arrays = [x.astype(DTYPES[dtype]) if x.dtype.kind in "fiu" else x for x in sample.inputs]
            types = prim.typing([Type(a.shape, a.dtype) for a in arrays], sample.params)
            (want,) = prim.numpy(arrays, sample.params)
            assert (want.shape, want.dtype) == (types[0].shape, types[0].dtype), prim.name
            got = lowered(prim, arrays, sample.params)
            if want.dtype == DTYPES["bf16"]:
                got, want = got.astype(np.float32), want.astype(np.float32)
            if prim.name not in LOOSE:
                np.testing.assert_array_equal(got, want, err_msg=prim.name)


def test_type_rules_refuse_with_found_and_expected() -> None:
    add, subtract, full = PRIMITIVES["add"], PRIMITIVES["subtract"], PRIMITIVES["full"]
    f, i, b = (Type((3,), DTYPES[d]) for d in ("f32", "i64", "bool"))
    with pytest.raises(DtypeMismatch, match="add: dtypes f32 and i64 do not fit; expected one dtype of"):
        add.typing([f, i], {})
    with pytest.raises(DtypeMismatch, match="subtract: dtypes bool and bool"):
        subtract.typing([b, b], {})
    with pytest.raises(ShapeMismatch, match=r"\(3,\) and \(4,\) do not fit; expected 2 of one shape"):
        add.typing([f, Type((4,), f.dtype)], {})
    with pytest.raises(DtypeMismatch, match="sqrt: dtypes i64 do not fit; expected f16, bf16, f32, f64; cast first"):
        PRIMITIVES["sqrt"].typing([i], {})
    with pytest.raises(InvalidParameter, match=r"full: value=300 is not valid; expected a whole number in \[0, 255\]"):
        full.typing([], {"value": 300, "shape": (), "dtype": "u8"})
    with pytest.raises(DtypeMismatch, match="bitcast: dtypes f32 to i64"):
        PRIMITIVES["bitcast"].typing([f], {"dtype": "i64"})


def test_numbers_stay_weak_only_together() -> None:
    weak, strong = Type((), DTYPES["f64"], weak=True), Type((), DTYPES["f64"])
    add = PRIMITIVES["add"]
    assert add.typing([weak, weak], {})[0].weak
    assert not add.typing([weak, strong], {})[0].weak
    assert not PRIMITIVES["less"].typing([weak, weak], {})[0].weak


def test_the_table_is_read_only_and_is_the_registry() -> None:
    assert isinstance(PRIMITIVES, MappingProxyType)
    assert dict(PRIMITIVES) == REGISTRY


def run(builder: Builder, env: dict[Any, np.ndarray], outputs: list[Sym]) -> list[np.ndarray]:
    """Evaluate the builder's nodes by their NumPy rules; broadcasts too, whose record is another's."""
    for node in builder.nodes:
        arrays = [env[v] for v in node.inputs]
        if node.prim.name == "broadcast":
            env[node.output] = np.broadcast_to(arrays[0], node.params["shape"])
        else:
            (env[node.output],) = node.prim.numpy(arrays, node.params)
    return [env[o.value] for o in outputs]


SMOOTH = [p for p in COMPUTED if not isinstance(p.vjp, str)]


@pytest.mark.parametrize("prim", [p for p in SMOOTH if "f64" in p.dtypes], ids=lambda p: p.name)
def test_derivatives_agree_with_finite_differences(prim: Primitive) -> None:
    xs = [x.astype(np.float64) for x in prim.sample()[0].inputs]
    builder = Builder()
    with builder.active():
        syms = tuple(builder.input(Type(x.shape, x.dtype)) for x in xs)
        (out,) = (Sym(builder, v) for v in builder.emit(prim, [s.value for s in syms], {}))
        if out.type.name != "f64":
            return
        ct = builder.input(out.type)
        assert callable(prim.vjp)
        assert callable(prim.jvp)
        pulled = prim.vjp((ct,), syms, (out,), {})
        pushed = [
            prim.jvp(tuple(ct if j == i else None for j in range(len(xs))), syms, (out,), {})[0] for i in range(len(xs))
        ]
    env = {s.value: x for s, x in zip(syms, xs, strict=True)} | {ct.value: np.full(out.shape, 1.5)}
    for i, (back, fore) in enumerate(zip(pulled, pushed, strict=True)):
        step = [x + 1e-6 * (i == j) for j, x in enumerate(xs)], [x - 1e-6 * (i == j) for j, x in enumerate(xs)]
        high, low = (prim.numpy(s, {})[0] for s in step)
        slope = 1.5 * (high - low) / 2e-6
        for got in (back, fore):
            value = np.zeros(out.shape) if got is None else run(builder, dict(env), [got])[0]
            np.testing.assert_allclose(value, slope, rtol=1e-6, atol=1e-7)


def derivative(name: str, *xs: float, t: float = 1.0) -> tuple[float, ...]:
    """The partial derivatives of a primitive at one point, times ``t``."""
    builder = Builder()
    with builder.active():
        syms = tuple(builder.input(Type((), np.dtype(np.float64))) for _ in xs)
        out = Sym(builder, builder.emit(PRIMITIVES[name], [s.value for s in syms], {})[0])
        ct = builder.input(out.type)
        rule = PRIMITIVES[name].vjp
        assert callable(rule)
        pulled = rule((ct,), syms, (out,), {})
    env = {s.value: np.float64(x) for s, x in zip(syms, xs, strict=True)} | {ct.value: np.float64(t)}
    return tuple(0.0 if p is None else float(run(builder, dict(env), [p])[0]) for p in pulled)


def test_derivatives_at_kinks_and_limits() -> None:
    inf = np.inf
    assert derivative("maximum", 2.0, 2.0) == (0.5, 0.5)
    assert derivative("maximum", 1.0, 2.0, t=inf) == (0.0, inf)
    assert derivative("absolute", 0.0) == (0.0,)
    assert derivative("sign", 3.0) == (0.0,)
    assert derivative("sqrt", 0.0) == (inf,)
    assert derivative("hypot", 0.0, 0.0) == (0.0, 0.0)
    assert derivative("arctan2", 0.0, 0.0) == (0.0, 0.0)
    assert derivative("power", 0.0, 0.0) == (0.0, 0.0)
    assert derivative("power", 0.0, 2.0) == (0.0, 0.0)
    assert derivative("power", -2.0, 3.0)[0] == 12.0
    assert derivative("logaddexp", -inf, -inf) == (0.5, 0.5)
    assert derivative("logaddexp", inf, 1.0) == (1.0, 0.0)
    assert derivative("logaddexp", -inf, inf) == (0.0, 1.0)
    assert derivative("exp", 1000.0) == (inf,)
    assert derivative("tanh", inf) == (0.0,)


@pytest.mark.parametrize("dtype", sorted(NARROW_FLOATS))
def test_narrow_floats_compute_in_float32(dtype: str) -> None:
    expr = PRIMITIVES["add"].lower(
        lambda i, _: Var(f"x{i}", dtype), (), [Type((), DTYPES[dtype])] * 2, Type((), DTYPES[dtype]), {}
    )  # type: ignore[misc]
    assert expr.op == "cast"
    assert expr.args[0].dtype == "f32"
