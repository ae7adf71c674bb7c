"""Derivatives of Python functions: values against formulas, nesting, pytrees, and the text of every refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

X = np.array([0.5, 1.25, 2.0])


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=tolerance, atol=tolerance)


def cube(x: Any) -> Any:
    return x * x * x


def test_grad_of_a_python_float() -> None:
    close(kf.grad(cube)(2.0), 12.0)


def test_second_and_third_derivatives() -> None:
    close(kf.grad(kf.grad(cube))(2.0), 12.0)
    close(kf.grad(kf.grad(kf.grad(cube)))(2.0), 6.0)


def test_grad_of_an_array() -> None:
    close(kf.grad(lambda x: np.sum(np.sin(x) * x))(X), np.cos(X) * X + np.sin(X))


def test_grad_keeps_the_dtype() -> None:
    found = kf.grad(lambda x: np.sum(x * 2.0))(X.astype(np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize("count", [127, 128, 129, 300])
def test_jacobians_of_more_rows_than_are_made_at_once(count: int) -> None:
    a = np.random.default_rng(0).standard_normal((count, 3))
    close(kf.jacrev(lambda x: np.sin(a @ x))(X), np.cos(a @ X)[:, None] * a)
    x = np.linspace(0.5, 1.0, count)
    close(kf.jacfwd(lambda x: np.sin(x) @ a)(x), (np.cos(x)[:, None] * a).T)


def test_value_and_grad_with_aux_and_pytrees() -> None:
    def f(p: Any, k: int) -> Any:
        return np.sum(p["a"] * p["b"][0]) * k, {"double": p["a"] * 2.0, "name": "f"}

    (value, aux), gradient = kf.value_and_grad(f, has_aux=True)({"a": X, "b": [X + 1.0]}, 3)
    close(value, 3.0 * np.sum(X * (X + 1.0)))
    close(aux["double"], 2.0 * X)
    assert aux["name"] == "f"
    close(gradient["a"], 3.0 * (X + 1.0))
    close(gradient["b"][0], 3.0 * X)


def test_grad_with_aux_gives_gradient_and_aux() -> None:
    gradient, aux = kf.grad(lambda x: (np.sum(x * x), x + 1.0), has_aux=True)(X)
    close(gradient, 2.0 * X)
    close(aux, X + 1.0)


def test_several_argnums_give_a_tuple() -> None:
    first, last = kf.grad(lambda a, b: np.sum(a * b), argnums=(0, -1))(X, 2.0 * X)
    close(first, 2.0 * X)
    close(last, X)
    (only,) = kf.grad(np.sum, argnums=(0,))(X)
    close(only, np.ones(3))


def test_an_unused_argument_has_a_zero_gradient() -> None:
    _, second = kf.grad(lambda a, b: np.sum(a), argnums=(0, 1))(X, X)
    close(second, np.zeros(3))


def test_integer_arguments_stay_python_integers() -> None:
    def power(x: Any, n: int) -> Any:
        for _ in range(n):
            x = x * x
        return np.sum(x)

    close(kf.grad(power)(X, 2), 4.0 * X**3)


def test_keyword_arguments() -> None:
    close(kf.grad(lambda x, *, scale: np.sum(x * scale))(X, scale=X), X)


def test_closures_over_outer_tracers() -> None:
    # d/dx of x * (d/dy of x y^2 at y=x) = d/dx of 2 x^3
    close(kf.grad(lambda x: x * kf.grad(lambda y: x * y * y)(x))(3.0), 54.0)


def test_a_closed_over_array_is_read_at_each_call() -> None:
    scale = np.array([1.0, 2.0, 3.0])
    gradient = kf.grad(lambda x: np.sum(x * scale))
    close(gradient(X), [1.0, 2.0, 3.0])
    scale[:] = 7.0
    close(gradient(X), [7.0, 7.0, 7.0])


def test_grad_inside_jit_and_jit_inside_grad() -> None:
    inner = kf.jit(lambda x: np.sum(np.exp(x) * x))
    expected = np.exp(X) * (1.0 + X)
    close(kf.jit(kf.grad(inner))(X), expected)
    close(kf.grad(kf.jit(kf.jit(inner)))(X), expected)


def test_grad_through_mutation() -> None:
    def f(x: Any) -> Any:
        y = np.zeros(3)
        y[0] = x[1] * x[1]
        y[1:] = x[:2]
        y *= 3.0
        return np.sum(y * x)

    x0, x1, x2 = X
    close(kf.grad(f)(X), [3.0 * x1 * x1 + 3.0 * x1, 6.0 * x0 * x1 + 3.0 * x0 + 3.0 * x2, 3.0 * x1])


def test_vjp() -> None:
    (product, sine), pullback = kf.vjp(lambda a, b: (a * b, np.sin(a)), X, X + 1.0)
    close(product, X * (X + 1.0))
    close(sine, np.sin(X))
    first, second = pullback((X, np.ones(3)))
    close(first, X * (X + 1.0) + np.cos(X))
    close(second, X * X)


def test_vjp_with_aux_and_twice_the_pullback() -> None:
    value, pullback, aux = kf.vjp(lambda a: (a * a, a + 1.0), X, has_aux=True)
    close(value, X * X)
    close(aux, X + 1.0)
    close(pullback(X)[0], 2.0 * X * X)
    close(pullback(2.0 * X)[0], 4.0 * X * X)


def test_vjp_calls_the_function_once() -> None:
    calls = []

    def f(x: Any) -> Any:
        calls.append(1)
        return x * x

    _, pullback = kf.vjp(f, X)
    pullback(X)
    assert len(calls) == 1


def test_jvp() -> None:
    value, tangent = kf.jvp(lambda a, b: np.exp(a) * b, (X, X), (np.ones(3), 2.0 * np.ones(3)))
    close(value, np.exp(X) * X)
    close(tangent, np.exp(X) * (X + 2.0))


def test_forward_over_reverse_and_reverse_over_forward() -> None:
    def f(x: Any) -> Any:
        return np.sum(np.sin(x))

    close(kf.jvp(kf.grad(f), (X,), (X,))[1], -np.sin(X) * X)
    close(kf.grad(lambda x: kf.jvp(f, (x,), (X,))[1])(X), -np.sin(X) * X)


def test_jacobians() -> None:
    def f(x: Any) -> Any:
        return {"a": x[:2] * x[2], "b": np.sum(x)}

    expected = np.array([[X[2], 0.0, X[0]], [0.0, X[2], X[1]]])
    for jacobian in (kf.jacfwd, kf.jacrev):
        found = jacobian(f)(X)
        close(found["a"], expected)
        close(found["b"], np.ones(3))


def test_hessian() -> None:
    def f(x: Any) -> Any:
        return np.sum(x[1:] ** 3 * x[:-1])

    a, b, c = X
    expected = [[0.0, 3 * b * b, 0.0], [3 * b * b, 6 * a * b, 3 * c * c], [0.0, 3 * c * c, 6 * b * c]]
    close(kf.hessian(f)(X), expected)


def test_jacobian_of_no_elements() -> None:
    assert kf.jacrev(lambda x: x * x)(np.zeros(0)).shape == (0, 0)


def test_stop_gradient() -> None:
    close(kf.grad(lambda x: np.sum(x * kf.stop_gradient(x)))(X), X)
    assert kf.stop_gradient({"a": X})["a"] is X


def test_checkpoint_has_the_same_derivatives() -> None:
    def f(x: Any) -> Any:
        return np.sum(np.sin(np.sin(x)))

    kept = kf.checkpoint(f)
    close(kept(X), f(X))
    close(kf.grad(kept)(X), kf.grad(f)(X))
    close(kf.hessian(kept)(X), kf.hessian(f)(X))
    close(kf.jvp(kept, (X,), (X,))[1], kf.jvp(f, (X,), (X,))[1])


def test_checkpoint_differentiates_by_what_it_closes_over() -> None:
    close(kf.grad(lambda w: np.sum(kf.checkpoint(lambda x: np.sin(x * w))(X)))(2.0), np.sum(np.cos(2.0 * X) * X))


class TestCustomVjp:
    def make(self) -> Any:
        @kf.custom_vjp
        def f(x: Any, y: Any) -> Any:
            return x * y

        f.defvjp(lambda x, y: (x * y, (x, y)), lambda residuals, ct: (ct * residuals[1] * 10.0, None))
        return f

    def test_the_rule_is_used(self) -> None:
        first, second = kf.grad(self.make(), (0, 1))(2.0, 3.0)
        close(first, 30.0)
        close(second, 0.0)

    def test_the_function_runs_as_it_is_outside_of_a_trace(self) -> None:
        assert self.make()(2.0, 3.0) == 6.0

    def test_second_derivatives_differentiate_the_rule(self) -> None:
        f = self.make()
        close(kf.grad(lambda x: kf.grad(f)(x, x))(2.0), 10.0)

    def test_forward_derivatives_are_the_transpose_of_the_rule(self) -> None:
        value, tangent = kf.jvp(self.make(), (2.0, 3.0), (1.0, 1.0))
        close(value, 6.0)
        close(tangent, 30.0)

    def test_nondiff_arguments_come_first_in_bwd(self) -> None:
        def apply(f: Any, x: Any) -> Any:
            return f(x)

        wrapped = kf.custom_vjp(apply, nondiff_argnums=(0,))
        wrapped.defvjp(lambda f, x: (f(x), x), lambda f, x, ct: (ct * f(x) * 7.0,))
        close(kf.grad(lambda x: wrapped(np.sin, x))(1.0), 7.0 * np.sin(1.0))

    def test_inside_a_loop_body(self) -> None:
        f = self.make()
        # each step multiplies the value by 2 and the cotangent by 20
        close(kf.grad(lambda x: kf.fori_loop(0, 3, lambda i, c: f(c, 2.0), x))(1.5), 8000.0)

    def test_no_rule(self) -> None:
        f = kf.custom_vjp(cube)
        with pytest.raises(
            errors.RuleMissing, match=r"custom_vjp function cube has no derivative rule; give it one with cube.defvjp"
        ):
            kf.grad(f)(2.0)

    def test_a_closure_that_is_differentiated_is_refused(self) -> None:
        def outer(z: Any) -> Any:
            f = kf.custom_vjp(lambda x: x * z)
            f.defvjp(lambda x: (x * z, None), lambda _, ct: (ct * z,))
            return f(1.0)

        with pytest.raises(
            errors.NotDifferentiable, match=r"closes over an array that is being differentiated; make that array"
        ):
            kf.grad(outer)(3.0)

    @pytest.mark.parametrize("bwd", [lambda x, ct: (ct * ct * x,), lambda x, ct: (np.clip(ct, -1, 1),)])
    def test_a_bwd_that_is_not_linear_has_no_forward_derivative(self, bwd: Any) -> None:
        f = kf.custom_vjp(cube)
        f.defvjp(lambda x: (cube(x), x), bwd)
        kf.grad(f)(2.0)
        with pytest.raises(
            errors.NotDifferentiable,
            match=r"custom_vjp function cube has no derivative: its bwd is not linear in the cotangent, so there",
        ):
            kf.jvp(f, (2.0,), (1.0,))

    def test_a_bwd_that_loops_over_its_cotangent_is_transposed(self) -> None:
        f = kf.custom_vjp(cube)
        f.defvjp(
            lambda x: (cube(x), x),
            lambda x, ct: (kf.scan(lambda c, v: (c, v[0] * 3 * v[1] ** 2), 0.0, (ct, x))[1],),
        )
        close(kf.jvp(f, (X,), (X,))[1], 3 * X**3)

    def test_bwd_of_a_wrong_shape(self) -> None:
        f = kf.custom_vjp(cube)
        f.defvjp(lambda x: (cube(x), x), lambda x, ct: (np.sum(ct * x),))
        with pytest.raises(errors.LeafMismatch, match=r"bwd of cube: result\[0\] is f64\[\]; expected f64\[3\]"):
            kf.grad(lambda x: np.sum(f(x)))(X)

    def test_fwd_of_a_wrong_shape(self) -> None:
        f = kf.custom_vjp(cube)
        f.defvjp(lambda x: (np.sum(x), x), lambda x, ct: (x,))
        with pytest.raises(errors.LeafMismatch, match=r"fwd of cube: result\[0\] is f64\[\]; expected f64\[3\]"):
            kf.grad(lambda x: np.sum(f(x)))(X)

    def test_fwd_without_residuals(self) -> None:
        f = kf.custom_vjp(cube)
        f.defvjp(cube, lambda x, ct: (x,))
        with pytest.raises(
            errors.ExpectedPair,
            match=r"custom_vjp: cube returned .*; expected a tuple of two: \(what cube returns, resid",
        ):
            kf.grad(f)(2.0)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: kf.grad(lambda x: x * 2.0)(X),
            errors.NotScalar,
            r"returned f64\[3\]; expected one float of shape \(\): sum it",
        ),
        (lambda: kf.grad(lambda x: (np.sum(x), x))(X), errors.NotScalar, r"returned f64\[\], f64\[3\]; .*has_aux=True"),
        (lambda: kf.grad(lambda x: np.sum(x) > 0.0)(X), errors.NotScalar, r"returned bool\[\]; expected one float"),
        (
            lambda: kf.grad(np.sum)(np.arange(3)),
            errors.NotFloat,
            r"grad: argument 0 is i64\[3\]; expected an array of floats",
        ),
        (
            lambda: kf.grad(lambda a, p: a, 1)(1.0, {"w": [X, np.arange(2)]}),
            errors.NotFloat,
            r"grad: argument 1\['w'\]\[1\] is i64\[2\]; expected an array of floats",
        ),
        (
            lambda: kf.grad(cube, 1)(2.0),
            errors.ArgnumsOutOfRange,
            r"argnums=1 names no argument of a call with 1 pos",
        ),
        (
            lambda: kf.grad(cube, has_aux=True)(2.0),
            errors.ExpectedPair,
            r"cube returned one array; expected a tuple of two: \(value, aux\)",
        ),
        (
            lambda: kf.jvp(cube, (X,), (X[:2],)),
            errors.LeafMismatch,
            r"jvp: tangents\[0\] is f64\[2\]; expected f64\[3\]",
        ),
        (
            lambda: kf.jvp(cube, (X,), (X.astype(np.float32),)),
            errors.LeafMismatch,
            r"tangents\[0\] is f32\[3\]; expected f64\[3\]",
        ),
        (lambda: kf.jvp(cube, (X,), (X, X)), errors.TreeMismatch, r"jvp: tangents has the structure .*; expected"),
        (
            lambda: kf.jvp(cube, (np.arange(3),), (X,)),
            errors.NotFloat,
            r"jvp: primals\[0\] is i64\[3\]; expected an array of floats",
        ),
        (lambda: kf.vjp(cube, X)[1](X[:2]), errors.LeafMismatch, r"pullback: cotangent is f64\[2\]; expected f64\[3\]"),
        (lambda: kf.vjp(cube, np.arange(3)), errors.NotFloat, r"vjp: primals\[0\] is i64\[3\]"),
    ],
)
def test_refusals_are_type_errors_that_say_what_to_do(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as raised:
        call()
    assert isinstance(raised.value, TypeError)


def test_an_argument_is_named_once() -> None:
    with pytest.raises(errors.RepeatedArgnums, match=r"grad: argnums=\(0, 0\) names an argument twice"):
        kf.grad(lambda a, b: (a * b).sum(), argnums=(0, 0))(np.ones(2), np.ones(2))


def test_custom_vjp_whose_forward_rule_calls_the_function_itself() -> None:
    @kf.custom_vjp
    def silu(x: Any) -> Any:
        return x / (1 + np.exp(-x))

    def bwd(x: Any, ct: Any) -> Any:
        s = 1 / (1 + np.exp(-x))
        return (ct * s * (1 + x * (1 - s)),)

    silu.defvjp(lambda x: (silu(x), x), bwd)
    x = np.linspace(-3, 3, 7).astype(np.float32)
    np.testing.assert_allclose(kf.jit(silu)(x), silu(x), rtol=1e-6)
    found = kf.grad(lambda x: silu(x).sum())(x)
    np.testing.assert_allclose(found, bwd(x, np.ones_like(x))[0], rtol=1e-5)


SCALE = np.array([1.0, 2.0, 3.0])


def scaled_sine() -> Any:
    """Make a function whose rule uses an array of floats."""

    @kf.custom_vjp
    def f(x: Any) -> Any:
        return np.sin(x) * SCALE

    f.defvjp(lambda x: (f(x), x * 1.0), lambda x, ct: (np.cos(x) * SCALE * ct,))
    return f


@pytest.mark.parametrize(
    "around",
    [
        lambda f, x: kf.scan(lambda c, _: (f(c), None), x, None, length=2)[0],
        lambda f, x: kf.cond(x[0] > 0, lambda x: f(f(x)), lambda x: x, x),
        lambda f, x: kf.fori_loop(0, 2, lambda i, c: f(c), x),
        lambda f, x: kf.checkpoint(lambda x: f(f(x)))(x),
    ],
    ids=["scan", "cond", "fori_loop", "checkpoint"],
)
def test_custom_vjp_with_constants_inside_of_control_flow(around: Any) -> None:
    x, f = np.array([0.1, 0.2, 0.3]), scaled_sine()
    plain = kf.jit(kf.grad(lambda x: (np.sin(np.sin(x) * SCALE) * SCALE).sum()))(x)
    np.testing.assert_allclose(kf.jit(kf.grad(lambda x: around(f, x).sum()))(x), plain, rtol=1e-12)
    once = kf.jit(lambda x: kf.jvp(lambda x: around(f, x), (x,), (x * 0 + 1,))[1])(x)
    np.testing.assert_allclose(once, plain, rtol=1e-12)


def test_custom_vjp_with_constants_inside_of_while_loop() -> None:
    x, f = np.array([0.1, 0.2, 0.3]), scaled_sine()
    found = kf.jit(
        lambda x: kf.jvp(lambda x: kf.while_loop(lambda c: c[0] < 1, lambda c: f(c) + 1, x), (x,), (x * 0 + 1,))[1]
    )(x)
    np.testing.assert_allclose(found, np.cos(x) * SCALE, rtol=1e-12)


def test_bwd_that_calls_its_function() -> None:
    @kf.custom_vjp
    def f(x: Any) -> Any:
        return np.exp(x)

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (2 * ct * f(x),))  # twice what it is, to tell the rule from f's own
    x = np.array([0.1, 0.2])
    np.testing.assert_allclose(kf.jit(kf.grad(lambda x: f(x).sum()))(x), 2 * np.exp(x), rtol=1e-12)
    found = kf.jit(kf.hessian(lambda x: f(x).sum()))(x)
    np.testing.assert_allclose(found, np.diag(4 * np.exp(x)), rtol=1e-12)


def test_bwd_that_calls_its_function_on_less_and_less() -> None:
    @kf.custom_vjp
    def f(x: Any) -> Any:
        return np.exp(x)

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (ct * (f(x[:-1]).sum() if x.size > 1 else 1.0),))
    x = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(kf.jit(kf.grad(lambda x: f(x).sum()))(x), np.exp(x[:2]).sum().repeat(3), rtol=1e-12)


@pytest.mark.parametrize(
    ("bwd", "text"),
    [
        (lambda f, x, ct: ct * f(np.concatenate([x, x]))[: x.size], "calls it, again and again, now on f64"),
        (lambda f, x, ct: ct * kf.grad(lambda y: f(y).sum())(x), "calls it and differentiates that"),
    ],
)
def test_bwd_that_calls_its_function_without_end(bwd: Any, text: str) -> None:
    @kf.custom_vjp
    def f(x: Any) -> Any:
        return np.exp(x)

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (bwd(f, x, ct),))
    with pytest.raises(errors.NotDifferentiable, match=text):
        kf.jit(kf.grad(lambda x: f(x).sum()))(np.array([0.1, 0.2]))


def test_what_bounds_decide_is_kept_once() -> None:
    """Scheduling did not end: a select that bounds decide was counted as a twin of what it selects."""

    def banded(x: Any) -> Any:
        i, j = np.arange(5)[:, None], np.arange(4)
        w = np.where((i - j < 5) & (j - i < 6), x * 0.5 - 0.1 * abs(i - j), -np.inf)
        e = np.exp(w - w.max(-1, keepdims=True))
        return (e / e.sum(-1, keepdims=True) * np.cos(np.arange(20.0).reshape(5, 4))).sum()

    x, step = np.random.default_rng(0).standard_normal((5, 4)), 1e-6
    found = kf.jit(lambda x, t: kf.jvp(banded, (x,), (t,))[1])(x, x)
    np.testing.assert_allclose(found, (banded(x + step * x) - banded(x - step * x)) / (2 * step), rtol=1e-6)
