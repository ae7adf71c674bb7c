"""The normal form of index expressions: the same values, one form for what is equal, bounds that hold."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from kernelforge.ir.index import affine, bounds, depends, flatten, free_vars, from_poly, normalize, poly, unflatten
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import Arg, Const, Expr, For, Kernel, Load, Op, Store, Var, i64, op, select
from kernelforge.ir.types import row_major

VARS = tuple(Var(name, "i64", bound) for name, bound in (("i", 3), ("j", 4), ("k", 5)))
X, Y, Z = VARS

Draw = Any


@st.composite
def indices(draw: Draw, depth: int = 4) -> Expr:
    """Draw index arithmetic of which every value is defined: divisors are positive constants."""
    kind = draw(
        st.sampled_from(["var", "const", *(["add", "sub", "mul", "divide", "extremum", "select"] if depth else [])])
    )
    if kind == "var":
        return draw(st.sampled_from(VARS))  # type: ignore[no-any-return]
    if kind == "const":
        return i64(draw(st.integers(-7, 13)))
    a = draw(indices(depth - 1))
    if kind == "divide":
        return Op(draw(st.sampled_from(["floordiv", "mod"])), (a, i64(draw(st.integers(1, 9)))), "i64")
    if kind == "mul":
        return Op("mul", (a, i64(draw(st.integers(-4, 12)))), "i64")
    b = draw(indices(depth - 1))
    if kind == "extremum":
        return Op(draw(st.sampled_from(["min", "max"])), (a, b), "i64")
    if kind == "select":
        return Op("select", (draw(conditions(depth - 1)), a, b), "i64")
    return Op(kind, (a, b), "i64")


@st.composite
def conditions(draw: Draw, depth: int) -> Expr:
    compare = draw(st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]))
    made = Op(compare, (draw(indices(depth)), draw(indices(depth))), "bool")
    if not depth or draw(st.booleans()):
        return made
    other = draw(conditions(depth - 1))
    return (
        Op("not", (made,), "bool")
        if draw(st.booleans())
        else Op(draw(st.sampled_from(["and", "or"])), (made, other), "bool")
    )


def values(expr: Expr) -> np.ndarray[Any, Any]:
    """Evaluate at every point of the three loops."""
    body = Store("o", ((X * 4 + Y) * 5 + Z,), expr)
    nest = For(X, i64(3), "serial", (For(Y, i64(4), "serial", (For(Z, i64(5), "serial", (body,)),)),))
    out = np.zeros(60, np.int64 if expr.dtype == "i64" else np.bool_)
    run_kernel(Kernel("k", (Arg("o", expr.dtype, i64(60), "out"),), (), (nest,)), {"o": out}, {})
    return out


@settings(max_examples=150, deadline=None)
@given(indices())
def test_normal_form_keeps_every_value(expr: Expr) -> None:
    normal = normalize(expr)
    np.testing.assert_array_equal(values(normal), values(expr))
    assert normalize(normal) is normal


@settings(max_examples=60, deadline=None)
@given(conditions(3))
def test_conditions_keep_every_value(expr: Expr) -> None:
    np.testing.assert_array_equal(values(normalize(expr)), values(expr))


@settings(max_examples=150, deadline=None)
@given(indices())
def test_bounds_hold(expr: Expr) -> None:
    low, high = bounds(expr)
    found = values(expr)
    assert low is None or low <= found.min()
    assert high is None or high >= found.max()


@settings(max_examples=60, deadline=None)
@given(indices(3), st.sampled_from(VARS))
def test_affine_coefficient_is_the_difference(expr: Expr, var: Var) -> None:
    step = affine(expr, var)
    if step is None:
        return
    table = values(expr).reshape(3, 4, 5)
    assert (np.diff(table, axis=VARS.index(var)) == step).all()


@settings(max_examples=60, deadline=None)
@given(indices(3))
def test_polynomial_is_the_expression(expr: Expr) -> None:
    np.testing.assert_array_equal(values(from_poly(poly(expr))), values(expr))


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ((X * 4 + Y) // 4, X),
        ((X * 4 + Y) % 4, Y),
        ((X * 4 + Y) // 4 * 4 + (X * 4 + Y) % 4, X * 4 + Y),
        (((X * 4 + Y) * 5 + Z) // 20, X),
        (((X * 4 + Y) * 5 + Z) // 5 % 4, Y),
        (X + Y - X, Y),
        (op("min", X, i64(5)), X),
        (op("max", X * 2 + 1, i64(0)), X * 2 + 1),
        (Y % 4, Y),
        (Y // 4, i64(0)),
        (select(X < 3, X, Y), X),
        (select((X < 3) & (Y >= 1), X, Y), select(Y >= 1, X, Y)),
    ],
)
def test_what_is_equal_has_one_form(expr: Expr, expected: Expr) -> None:
    assert normalize(expr) is normalize(expected)


def test_bounds_of_what_may_be_negative() -> None:
    worker, block = Var("w", "i64", 8), Var("b", "i64", 3)
    left = op("min", i64(30), op("min", i64(65), 513 - worker * 65) - block * 30)
    assert bounds(left) == (-2, 30)
    assert bounds((left + 5) // 6) == (0, 5)


def test_unknown_bounds_are_not_made_up() -> None:
    n = Var("n")
    assert bounds(n) == (None, None)
    assert normalize(op("lt", X, n)) is op("lt", X, n)
    assert bounds(Load("x", (X,), "i64")) == (None, None)


@given(st.lists(st.integers(2, 5), min_size=0, max_size=4))
def test_flatten_and_unflatten_are_inverse(shape: list[int]) -> None:
    index = tuple(Var(f"a{k}", "i64", n) for k, n in enumerate(shape))
    flat = flatten(index, row_major(tuple(shape)))
    assert unflatten(flat, tuple(shape)) == index
    for point in itertools.islice(itertools.product(*map(range, shape)), 8):
        expected = int(np.ravel_multi_index(point, shape)) if shape else 0
        assert normalize(flatten(tuple(map(i64, point)), row_major(tuple(shape)))) is i64(expected)


def test_variables_of_an_expression() -> None:
    e = X * 4 + Load("x", (Y,), "i64")
    assert free_vars(e) == {X, Y}
    assert depends(e, Y)
    assert not depends(e, Z)
    assert isinstance(normalize(i64(2) + 3), Const)
