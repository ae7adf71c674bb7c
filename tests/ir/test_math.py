"""The expansions against float64 (for f32) and mpmath (for f64): errors in units in the last place."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest

from kernelforge.ir.kernel import (
    ARITY,
    Arg,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    Op,
    Store,
    Var,
    i64,
    op,
    select,
    substitute,
    unlikely,
    walk,
)  # fmt: skip
from kernelforge.ir.math import BOUNDS, EXPANSIONS, Function, expand, expand_math, function
from tests.ir.evaluate import evaluate

Array = np.ndarray[Any, Any]

NUMPY: dict[str, Any] = {
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "atan2": np.arctan2, "pow": np.power,
    "erf": np.vectorize(math.erf, otypes=[float]), "erfc": np.vectorize(math.erfc, otypes=[float]),
    "scaleb": lambda x, n: np.ldexp(x, n.astype(int)),
}  # fmt: skip
MPMATH: dict[str, Any] = {
    "exp2": lambda x: mpmath.power(2, x), "log2": lambda x: mpmath.log(x, 2), "pow": mpmath.power,
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)),
    "scaleb": lambda x, n: mpmath.ldexp(x, int(n)),
    "fmod": lambda x, y: mpmath.mpf(math.fmod(x, y)),
}  # fmt: skip
PLAIN: frozenset[str] = frozenset()
RICH = frozenset({"fma", "scaleb"})
AVX512 = RICH | {"tables"}
"""What the expansions may use: only plain arithmetic, or also instructions that some devices have."""
X, Y = Var("x", "f32"), Var("y", "f32")
SPECIAL = [0.0, 1.0, np.inf, np.nan, 0.5, 2.0, 3.0, 10.0, 100.0, 1e-30]


def inputs(dtype: Any, count: int, arity: int) -> list[Array]:
    """All exponents, ordinary values, values around 1, and special ones."""
    rng = np.random.default_rng(0)
    bits = {4: np.uint32, 8: np.uint64}[np.dtype(dtype).itemsize]
    limits = np.finfo(dtype)
    edge = [*SPECIAL, float(limits.max), float(limits.tiny), float(limits.smallest_subnormal)]
    columns = []
    for _ in range(arity):
        anything = rng.integers(0, np.iinfo(bits).max, count, dtype=bits).view(dtype)
        ordinary = (rng.normal(size=count) * rng.choice([0.1, 1, 5, 20, 100], count)).astype(dtype)
        unit = rng.uniform(-1.3, 1.3, count // 2).astype(dtype)
        columns.append(
            np.concatenate([anything, ordinary, unit, np.array([s * v for v in edge for s in (1, -1)], dtype)])
        )
    if arity == 2:
        pairs = np.meshgrid(columns[0][-26:], columns[1][-26:])
        columns = [np.concatenate([c[:-26], p.ravel()]) for c, p in zip(columns, pairs, strict=True)]
    return columns


def arity(name: str) -> int:
    return ARITY[name]


def whole(name: str, xs: list[Array]) -> list[Array]:
    """Give ``scaleb`` exponents that its two steps reach."""
    if name != "scaleb":
        return xs
    most = 3 * (np.finfo(xs[1].dtype).maxexp - 1) // 2
    return [xs[0], np.rint(np.clip(np.nan_to_num(xs[1]), -most, most))]


def run(name: str, dtype: str, xs: list[Array], native: frozenset[str] = PLAIN) -> Array:
    names = [Var(f"x{i}", dtype) for i in range(len(xs))]
    expr = expand(op(name, *names), native=native - {name})
    assert not any(isinstance(e, Op) and e.op in EXPANSIONS and e.op not in native | {"fmod"} for e in walk(expr))
    return evaluate(expr, dict(zip(names, xs, strict=True)))


def check_specials(got: Array, want: Array) -> Array:
    """Compare what is NaN, infinite or zero (with its sign); return where the wanted value is none of these."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    for special in (want == 0, np.isinf(want)):
        np.testing.assert_array_equal(got[special], want[special])
        np.testing.assert_array_equal(np.signbit(got[special]), np.signbit(want[special]))
    return np.isfinite(want) & (want != 0)


@pytest.mark.parametrize("native", [PLAIN, RICH, AVX512], ids=["plain", "fma", "avx512"])
@pytest.mark.parametrize("name", EXPANSIONS)
def test_f32_within_its_bound(name: str, native: frozenset[str]) -> None:
    xs = whole(name, inputs(np.float32, 40_000, arity(name)))
    if name == "pow":
        xs[0] = np.where(np.arange(xs[0].size) % 3 == 0, xs[0], abs(xs[0]))
    if name in ("sin", "cos", "tan"):  # also close to the zeros
        multiples = np.random.default_rng(1).integers(1, 1 << 20, 40_000) * (math.pi / 2)
        xs = [np.concatenate([xs[0], multiples.astype(np.float32)])]
    got = run(name, "f32", xs, native)
    with np.errstate(all="ignore"):
        exact = NUMPY.get(name, getattr(np, name, None))(*(x.astype(np.float64) for x in xs))
    ordinary = check_specials(got, exact)
    exact = exact[ordinary]
    value = np.clip(
        got[ordinary].astype(np.float64), -(2.0**128), 2.0**128
    )  # an overflow counts as the next power of two
    error = abs(value - exact) / np.ldexp(1.0, np.maximum(np.frexp(exact)[1] - 24, -149))
    error[(abs(exact) >= 2.0**128) & np.isinf(got[ordinary])] = 0
    worst = int(error.argmax())
    assert error[worst] <= BOUNDS[name, "f32"], [x[ordinary][worst] for x in xs]


@pytest.mark.parametrize("native", [PLAIN, RICH, AVX512], ids=["plain", "fma", "avx512"])
@pytest.mark.parametrize("name", EXPANSIONS)
def test_f64_within_its_bound(name: str, native: frozenset[str]) -> None:
    xs = whole(name, inputs(np.float64, 250, arity(name)))
    if name == "pow":
        xs[0] = np.where(np.arange(xs[0].size) % 3 == 0, xs[0], abs(xs[0]))
        xs[1] = np.where(np.arange(xs[0].size) % 2 == 0, xs[1], np.clip(xs[1], -300, 300))
    got = run(name, "f64", xs, native)
    with np.errstate(all="ignore"):
        rounded = NUMPY.get(name, getattr(np, name, None))(*xs)
    ordinary = check_specials(got, rounded)
    np.testing.assert_allclose(got[ordinary], rounded[ordinary], rtol=1e-14)
    if arity(name) == 2:  # mpmath has no -0.0 and leaves the reals for negative bases; NumPy was right on their signs
        ordinary &= (xs[0] > 0) | ((name != "pow") & (xs[0] < 0))
    real = MPMATH.get(name, getattr(mpmath, name, None))
    worst = 0.0
    with mpmath.workprec(1200 if name in ("sin", "cos", "tan") else 120):
        for *point, value in zip(*(x[ordinary] for x in xs), got[ordinary], strict=True):
            exact = real(*(mpmath.mpf(float(x)) for x in point))
            exponent = max(int(mpmath.frexp(exact)[1]) - 53, -1074)
            worst = max(worst, float(abs(mpmath.mpf(float(value)) - exact) / mpmath.mpf(2) ** exponent))
    assert worst <= BOUNDS[name, "f64"]


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_angles_nearest_to_a_multiple_of_half_pi(name: str, dtype: str) -> None:
    """Muller, Elementary Functions, 2nd edition, table 11.1: the hardest arguments of the two formats."""
    x = np.array([16367173.0 * 2.0**72], np.float32) if dtype == "f32" else np.array([6381956970095103.0 * 2.0**797])
    with mpmath.workprec(1500):
        exact = float(getattr(mpmath, name)(mpmath.mpf(float(x[0]))))
    got = float(run(name, dtype, [x])[0])
    assert abs(got - exact) <= 4 * np.spacing(np.array(abs(exact), x.dtype))


def test_a_kernel_is_expanded_with_shared_parts() -> None:
    i = Var("i", "i64", 8)
    x = Load("x", (i,), "f32")
    value = op("exp", x) + op("exp", x) * op("floor", x)
    args = (Arg("x", "f32", i64(8), "in"), Arg("y", "f32", i64(8), "out"))
    kernel = Kernel("k", args, (), (For(i, i64(8), "parallel", (Store("y", (i,), value),)),))
    loop = expand_math(kernel).body[0]
    assert isinstance(loop, For)
    store = loop.body[0]
    assert isinstance(store, Store)
    assert isinstance(store.value, Op)
    product = store.value.args[1]
    assert isinstance(product, Op)
    assert product.args[0] is store.value.args[0]
    assert product.args[1] is op("floor", x)


def test_expansion_is_only_of_f32_and_f64_and_is_short() -> None:
    half = op("exp", Var("h", "f16"))
    assert expand(half) is half
    counts = {name: _operations(expand(op(name, Var("x", "f32")))) for name in ("exp", "log", "tanh", "erf")}
    assert counts["exp"] <= 36
    assert counts["log"] <= 50
    assert counts["tanh"] <= 52
    assert counts["erf"] <= 68


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", sorted(EXPANSIONS))
def test_a_device_that_calls_functions_does_where_they_are_rare(name: str, dtype: str) -> None:
    arguments = tuple(Var(f"x{k}", dtype) for k in range(ARITY[name]))
    whole, inline = Op(name, arguments, dtype), expand(Op(name, arguments, dtype))
    called = expand(whole, native=frozenset({"calls"}))
    hints = [e for e in walk(inline) if isinstance(e, Op) and e.op == "unlikely"]
    of = function(name, dtype, frozenset())
    if not hints:
        assert called is inline
        assert of == Function(arguments, inline)
    else:
        assert isinstance(called, Op)
        assert called.args[:2] == (hints[0], whole)
        assert called.args[2] is substitute(inline, {hints[0]: Const(False, "bool")})
        assert (of is None) == (name == "fmod")
        assert of is None or of.value is substitute(inline, {hints[0]: hints[0].args[0]})


def test_what_is_known_of_an_exponent_is_computed_once() -> None:
    made = expand(op("pow", X, Const(2.5, "f32")))
    known = [e for e in walk(made) if isinstance(e, Op) and e.op != "mad" and all(isinstance(x, Const) for x in e.args)]
    assert known == []
    assert len(walk(made)) < len(walk(expand(op("pow", X, Y)))) - 20
    x = np.array([0.3, 7.0, -1.0, 0.0, np.inf, np.nan], np.float32)
    both = (evaluate(e, {X: x, Y: np.full_like(x, 2.5)}) for e in (made, expand(op("pow", X, Y))))
    np.testing.assert_array_equal(*both)


def test_a_function_in_a_rare_arm_is_called_there() -> None:
    arm, common = op("pow", op("exp", X), Y), X * 2
    made = expand(select(unlikely(X > 100), arm, common), native=frozenset({"calls"}))
    assert isinstance(made, Op)
    assert made.args[1] is op("pow", expand(op("exp", X), native=frozenset({"calls"})), Y)
    beside = expand(select(X > 100, arm, common), native=frozenset({"calls"}))
    assert isinstance(beside, Op)
    assert made.args[1] is not beside.args[1]


@pytest.mark.parametrize("name", ["fma", "mad"])
def test_products_and_sums_become_what_the_device_has(name: str) -> None:
    found = {e.op for e in walk(expand(op("pow", X, Y), native=frozenset({name}))) if isinstance(e, Op)}
    assert found & {"fma", "mad"} == {name}


@pytest.mark.parametrize("native", [PLAIN, RICH], ids=["plain", "fma"])
def test_what_a_product_loses(native: frozenset[str]) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 1000)).astype(np.float32)
    got = evaluate(expand(op("mul_error", X, Y), native=native), {X: x, Y: y})
    np.testing.assert_array_equal(got, x.astype(float) * y - x * y)


def _operations(expr: Expr) -> int:
    """Count what the usual arguments need."""
    if isinstance(expr, Op) and expr.op == "select":
        cond, _, other = expr.args
        if isinstance(cond, Op) and cond.op == "unlikely":
            seen: set[Expr] = set()
            return sum(isinstance(e, Op) for part in (cond, other) for e in walk(part, seen)) + 1
    return sum(isinstance(e, Op) for e in walk(expr))
