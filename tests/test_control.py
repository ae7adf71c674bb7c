"""Loops and branches: values against the Python loop they stand for, derivatives against differences, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

XS = np.linspace(-1.0, 1.0, 12).reshape(4, 3)


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=tolerance, atol=tolerance)


def both(fn: Callable[..., Any], *args: Any) -> Any:
    """Run compiled and under NumPy; they must agree. Returns the compiled result."""
    compiled, plain = kf.jit(fn)(*args), fn(*args)
    close_tree(compiled, plain)
    return compiled


def close_tree(found: Any, expected: Any) -> None:
    import optree

    found_leaves, found_tree = optree.tree_flatten(found)
    expected_leaves, expected_tree = optree.tree_flatten(expected)
    assert found_tree == expected_tree
    for f, e in zip(found_leaves, expected_leaves, strict=True):
        close(f, e)


def rnn(w: Any, h: Any, xs: Any, reverse: bool = False) -> Any:
    return kf.scan(lambda h, x: (np.tanh(h * w + x), h * x), h, xs, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse: bool) -> None:
    final, ys = both(lambda w, h, xs: rnn(w, h, xs, reverse), XS[0], XS[1], XS)
    assert final.shape == (3,)
    assert ys.shape == (4, 3)


def test_scan_over_pytrees_without_ys() -> None:
    def f(a: Any, b: Any) -> Any:
        return kf.scan(lambda c, x: ({"s": c["s"] + x[0] * x[1]}, None), {"s": np.zeros(3)}, (a, b))

    carry, ys = both(f, XS, XS[::-1])
    assert ys is None
    close(carry["s"], np.sum(XS * XS[::-1], axis=0))


def test_scan_over_strided_inputs() -> None:
    both(lambda xs: rnn(0.5, np.ones(3), xs), np.arange(24.0).reshape(3, 8).T[::-2])


def test_scan_of_length_zero_and_one() -> None:
    carry, ys = kf.jit(lambda h, xs: rnn(1.0, h, xs))(XS[0], np.zeros((0, 3)))
    close(carry, XS[0])
    assert ys.shape == (0, 3)
    both(lambda h, xs: rnn(1.0, h, xs), XS[0], XS[:1])


def test_scan_by_length_alone() -> None:
    carry, ys = both(lambda x: kf.scan(lambda c, _: (c * x, c), 1.0, length=3), 2.0)
    close(carry, 8.0)
    close(ys, [1.0, 2.0, 4.0])


def test_scan_returns_its_carry_unchanged() -> None:
    carry, ys = both(lambda x: kf.scan(lambda c, _: (c, c), x, length=3), XS[0])
    close(carry, XS[0])
    close(ys, np.stack([XS[0]] * 3))


def test_scan_swaps_its_carry() -> None:
    both(lambda a, b: kf.scan(lambda c, x: ((c[1], c[0] + x), None), (a, b), XS), XS[0], XS[1])


def test_nested_scans() -> None:
    def f(xs: Any) -> Any:
        def row(c: Any, x: Any) -> Any:
            return kf.scan(lambda d, y: (d * 0.5 + y * c, d), 1.0, x)[0], c

        return kf.scan(row, 1.0, xs)

    both(f, XS)
    check_derivatives(lambda xs: f(xs)[0], XS)


def check_derivatives(f: Callable[..., Any], x: Any) -> None:
    """Compare first derivatives both ways and the second with central differences."""
    v = np.random.default_rng(0).normal(size=np.shape(x))
    h = 1e-5

    def at(t: float) -> float:
        return float(np.asarray(f(x + t * v)))

    slope = (at(h) - at(-h)) / (2.0 * h)
    close(np.sum(np.asarray(kf.grad(f)(x)) * v), slope, 1e-6)
    close(kf.jvp(f, (x,), (v,))[1], slope, 1e-6)
    k = 1e-3
    curvature = (at(k) - 2.0 * at(0.0) + at(-k)) / (k * k)
    close(np.sum(np.asarray(kf.jvp(kf.grad(f), (x,), (v,))[1]) * v), curvature, 1e-4)
    close(np.sum(np.asarray(kf.grad(lambda y: np.sum(kf.grad(f)(y) * v))(x)) * v), curvature, 1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_derivatives_of_scan_by_xs_init_and_closure(reverse: bool) -> None:
    def total(w: Any, h: Any, xs: Any) -> Any:
        final, ys = rnn(w, h, xs, reverse)
        return np.sum(final * final) + np.sum(ys * np.cos(ys))

    check_derivatives(lambda xs: total(XS[0], XS[1], xs), XS)
    check_derivatives(lambda h: total(XS[0], h, XS), XS[1])
    check_derivatives(lambda w: total(w, XS[1], XS), XS[0])


def test_derivative_of_scan_with_an_integer_carry() -> None:
    def f(x: Any) -> Any:
        (_, total), _ = kf.scan(lambda c, y: ((c[0] + 1, c[1] + y * c[0]), None), (0, 0.0), x)
        return total

    close(kf.grad(f)(np.ones(4)), [0.0, 1.0, 2.0, 3.0])


def test_cond_runs_one_branch() -> None:
    def f(p: Any, x: Any) -> Any:
        return kf.cond(p, lambda x: x * 2.0, np.sin, x)

    close(kf.jit(f)(True, XS), XS * 2.0)
    close(kf.jit(f)(False, XS), np.sin(XS))


def test_cond_on_a_traced_value_with_closures() -> None:
    def f(x: Any, y: Any) -> Any:
        return kf.cond(np.sum(x) > 0.0, lambda: x * y, lambda: y)

    both(f, XS[3], XS[1])
    both(f, XS[0], XS[1])


def test_derivatives_of_cond() -> None:
    def f(x: Any) -> Any:
        return kf.cond(x > 1.0, lambda x: x * x * x, np.sin, x)

    check_derivatives(f, np.float64(2.0))
    check_derivatives(f, np.float64(0.5))


def test_a_weak_branch_takes_the_other_dtype() -> None:
    found = kf.jit(lambda x: kf.cond(x > 1.0, lambda: 1.0, lambda: x))(np.float32(3.0))
    assert found.dtype == np.float32
    close(found, 1.0)


def test_while_loop() -> None:
    close(both(lambda x: kf.while_loop(lambda c: c < 100.0, lambda c: c * x, 1.0), 3.0), 243.0)


def test_while_loop_that_does_not_run() -> None:
    close(both(lambda x: kf.while_loop(lambda c: c < 0.0, lambda c: c * x, x), 3.0), 3.0)


def test_while_loop_has_a_forward_derivative() -> None:
    close(kf.jvp(lambda x: kf.while_loop(lambda c: c < 100.0, lambda c: c * x, 1.0), (3.0,), (1.0,))[1], 5.0 * 81.0)


def test_while_loop_refuses_a_reverse_derivative() -> None:
    with pytest.raises(
        errors.NotDifferentiable, match=r"while_loop has no derivative: the number of iterations.*fori_loop"
    ):
        kf.grad(lambda x: kf.while_loop(lambda c: c < 100.0, lambda c: c * 2.0, x))(3.0)


def test_fori_loop_with_static_bounds_is_differentiable() -> None:
    check_derivatives(lambda x: kf.fori_loop(1, 4, lambda i, c: c * x + i, 1.0), np.float64(1.5))
    both(lambda x: kf.fori_loop(1, 4, lambda i, c: c * x + i, 1.0), 2.0)


def test_fori_loop_with_a_traced_bound() -> None:
    loop = kf.jit(lambda n, x: kf.fori_loop(0, n, lambda i, c: c + x * i, 0.0))
    close(loop(np.int64(4), 2.0), 12.0)
    close(loop(np.int64(0), 2.0), 0.0)


def test_fori_loop_without_steps() -> None:
    close(both(lambda x: kf.fori_loop(3, 1, lambda i, c: c * 2.0, x), XS), XS)


def test_the_counter_does_not_widen_floats() -> None:
    found = kf.jit(lambda x: kf.fori_loop(0, 3, lambda i, c: c * x + i, x))(np.float32(2.0))
    assert found.dtype == np.float32


def test_a_weak_carry_takes_the_dtype_of_the_body() -> None:
    carry, _ = kf.jit(lambda x: kf.scan(lambda c, _: (c * x, None), 1.0, length=3))(np.float32(3.0))
    assert carry.dtype == np.float32
    close(carry, 27.0)


def test_device_arrays_run_compiled() -> None:
    carry, ys = rnn(0.5, kf.asarray(XS[0]), kf.asarray(XS))
    assert isinstance(carry, kf.Array)
    expected = rnn(0.5, XS[0], XS)
    close(carry, expected[0])
    close(ys, expected[1])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda x: kf.scan(lambda c, _: ({"h": c["h"] > 0.0}, None), {"h": x}, length=3),
            errors.CarryMismatch,
            r"scan: carry\['h'\] goes in as f64\[3\] and comes out of the body as bool\[3\]; cast it",
        ),
        (
            lambda x: kf.scan(lambda c, _: (np.sum(c), None), x, length=3),
            errors.CarryMismatch,
            r"scan: carry goes in as f64\[3\] and comes out of the body as f64\[\]",
        ),
        (
            lambda x: kf.scan(lambda c, _: ((c, c), None), x, length=3),
            errors.TreeMismatch,
            r"scan: carry has the structure",
        ),
        (lambda x: kf.scan(lambda c, _: c, x, length=3), errors.ExpectedPair, r"expected a tuple of two: \(carry, y\)"),
        (
            lambda x: kf.scan(lambda c, y: (c, y), x),
            errors.LengthMismatch,
            r"xs=None has no extent along axis 0; expected length=",
        ),
        (
            lambda x: kf.scan(lambda c, y: (c, None), x, {"a": x, "b": x[:2]}),
            errors.LengthMismatch,
            r"scan: xs\['b'\] has 2 along axis 0; expected 3",
        ),
        (
            lambda x: kf.scan(lambda c, y: (c, None), x, x, length=4),
            errors.LengthMismatch,
            r"scan: xs has 3 along axis 0; expected 4",
        ),
        (
            lambda x: kf.cond(x, lambda: x, lambda: x),
            errors.NotAPredicate,
            r"cond: pred is f64\[3\]; expected one bool of shape \(\)",
        ),
        (
            lambda x: kf.cond(x[0] > 0.0, lambda: {"a": x}, lambda: {"a": x > 0.0}),
            errors.BranchMismatch,
            r"cond: result\['a'\] is bool\[3\] from false_fun and f64\[3\] from true_fun",
        ),
        (
            lambda x: kf.cond(x[0] > 0.0, lambda: x, lambda: (x,)),
            errors.TreeMismatch,
            r"cond: the result of false_fun has the structure",
        ),
        (
            lambda x: kf.while_loop(lambda c: c, lambda c: c, x),
            errors.NotAPredicate,
            r"while_loop: what .* returned is f64\[3\]",
        ),
        (
            lambda x: kf.while_loop(lambda c: c[0] > 0.0, lambda c: c[:2], x),
            errors.CarryMismatch,
            r"while_loop: carry goes in as f64\[3\]",
        ),
    ],
)
def test_refusals(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        kf.jit(call)(np.array([1.0, -1.0, 2.0]))
