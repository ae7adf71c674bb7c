"""Linear systems, inverses, determinants and Cholesky's factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

RNG = np.random.default_rng(3)
A, B, WEIGHT = RNG.standard_normal((4, 4)) + 4 * np.eye(4), RNG.standard_normal(4), RNG.standard_normal((4, 4))


def agree(fn: Callable[..., Any], *args: Any, tol: float = 1e-9) -> None:
    for k, (found, expected) in enumerate(zip(kf.jit(fn)(*args), fn(*args), strict=True)):
        expected = np.asarray(expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), k
        np.testing.assert_allclose(np.asarray(found), expected, rtol=tol, atol=tol, err_msg=str(k))


def several(a: Any, b: Any) -> Any:
    return (
        np.linalg.solve(a, b), np.linalg.inv(a), np.linalg.det(a), *np.linalg.slogdet(a),
        np.linalg.cholesky(a @ a.mT + np.eye(a.shape[-1], dtype=a.dtype)),
    )  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8"])
def test_systems(dtype: str, device: str) -> None:
    a, b = ((RNG.standard_normal(s) * 4).astype(dtype) for s in ((5, 5), (5, 3)))
    with kf.default_device(device):
        agree(several, a, b, tol=1e-3 if dtype == "f4" else 1e-9)


@pytest.mark.parametrize(("matrices", "systems"), [((2,), (2,)), ((), (2,)), ((3, 1), (2,)), ((1,), ())])
def test_many_systems(matrices: tuple[int, ...], systems: tuple[int, ...], device: str) -> None:
    a, b = RNG.standard_normal((*matrices, 16, 16)), RNG.standard_normal((*systems, 16, 2))
    agree(lambda a, b: (np.linalg.solve(a, b),), a, b)

    def grads(solve: Callable[[Any, Any], Any]) -> Any:
        return kf.grad(lambda a, b: (solve(a, b) ** 2).sum(), (0, 1))(a, b)

    for found, expected in zip(grads(np.linalg.solve), grads(lambda a, b: np.linalg.inv(a) @ b), strict=True):
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-6, atol=1e-8)


def test_batches_vectors_and_powers() -> None:
    agree(several, RNG.standard_normal((2, 3, 4, 4)), RNG.standard_normal((3, 4, 2)))
    agree(several, np.eye(4)[[2, 0, 3, 1]], np.eye(4))
    agree(several, np.zeros((2, 0, 0)), np.zeros((2, 0, 3)))
    agree(
        lambda a, b: (
            np.linalg.solve(a, b), *(np.linalg.matrix_power(a, n) for n in (-2, 0, 3)), np.linalg.multi_dot([a, a, b]),
            np.linalg.cholesky(a @ a.T, upper=True), np.linalg.det(np.ones((3, 3)) * a[0, 0]),
        ),
        A, B,
    )  # fmt: skip
    agree(lambda n: (np.linalg.matrix_power(n, 5),), np.array([[1, 1], [1, 0]]))


def test_hessian_of_a_marginal_likelihood() -> None:
    x = np.linspace(0, 3, 7)[:, None]
    y = np.sin(2 * x[:, 0])

    def likelihood(p: Any) -> Any:
        k = np.exp(p[0] - 0.5 * np.exp(p[1]) * (x - x.T) ** 2) + np.exp(p[2]) * np.eye(7)
        factor = np.linalg.cholesky(k)
        a = np.linalg.solve(factor.T, np.linalg.solve(factor, y))
        return 0.5 * y @ a + np.log(np.diag(factor)).sum()

    p, step = np.array([0.1, -0.5, -2.0]), 1e-5
    slope = kf.jit(kf.grad(likelihood))
    expected = [(np.asarray(slope(p + e)) - np.asarray(slope(p - e))) / (2 * step) for e in step * np.eye(3)]
    hessian = kf.jit(kf.hessian(likelihood))
    np.testing.assert_allclose(np.asarray(hessian(p)), expected, rtol=1e-6)
    scans = [n for n in hessian.lower(p).graph.nodes if n.prim.name == "scan"]
    # a factor, two eliminations, and otherwise but right sides: two of the function, three of each derivative
    assert sum(len(n.outputs) > 2 for n in scans) <= 2, [n.outputs for n in scans]


def gaussian_process(x: Any) -> Any:
    k = x @ x.T + np.eye(4)
    return B @ np.linalg.solve(k, B) + np.linalg.slogdet(k)[1]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (np.linalg.inv(x) * WEIGHT).sum(),
        lambda x: (np.linalg.solve(x, B) * B).sum(),
        np.linalg.det,
        lambda x: (np.linalg.cholesky(x @ x.T + np.eye(4)) * WEIGHT).sum(),
        gaussian_process,
    ],
    ids=["inv", "solve", "det", "cholesky", "gp"],
)
def test_derivatives(fn: Callable[[Any], Any]) -> None:
    def along(x: Any) -> Any:
        return (kf.grad(fn)(x) * WEIGHT).sum()

    step = 1e-5 * RNG.standard_normal(A.shape)
    for f in (fn, along):
        slope = (np.asarray(kf.grad(f)(A)) * step).sum()
        np.testing.assert_allclose(slope, (f(A + step) - f(A - step)) / 2, rtol=1e-6)
        np.testing.assert_allclose(kf.jvp(f, (A,), (step,))[1], slope, rtol=1e-9)


def test_what_is_singular_or_not_positive_is_nan() -> None:
    assert np.isnan(kf.jit(np.linalg.inv)(np.ones((3, 3)))).all()
    assert np.isnan(kf.jit(np.linalg.solve)(np.zeros((2, 2)), np.ones(2))).all()
    assert np.isnan(kf.jit(np.linalg.cholesky)(np.diag([1.0, -1]))).all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: np.linalg.inv(x[0]), r"np.linalg.inv: shapes \(4,\) do not fit; expected square matrices"),
        (lambda x: np.linalg.solve(x, x[:3]), r"np.linalg.solve: .* expected 4 rows in the second"),
        (lambda x: np.linalg.det(x.astype(np.float16)), "np.linalg.det: dtypes float16 do not fit; expected float32"),
        (np.linalg.eig, "np.linalg.eig is not supported in compiled functions: its results may be complex"),
    ],
)
def test_refusals(call: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(errors.KernelforgeError, match=text):
        kf.jit(call)(A)


def test_derivatives_inside_of_a_scan() -> None:
    def step(total: Any, row: Any) -> Any:
        return total, np.linalg.det(np.diag(row))

    def fn(x: Any) -> Any:
        return kf.scan(step, np.ones(4), x)[1].sum()

    x = np.arange(1.0, 13).reshape(3, 4)
    np.testing.assert_allclose(kf.grad(fn)(x), x.prod(axis=1, keepdims=True) / x)


def test_products_with_ones_in_chains() -> None:
    f, k = np.random.default_rng(2).standard_normal((2, 4, 4))
    agree(lambda f, k: [k.T @ np.tril(f.T @ np.ones_like(f)) @ k], f, k)


def cofactors(a: Any) -> Any:
    n = a.shape[0]
    minors = [[np.linalg.det(np.delete(np.delete(a, i, 0), j, 1)) for j in range(n)] for i in range(n)]
    return np.array(minors) * (-1.0) ** np.add.outer(np.arange(n), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_gradient_of_the_determinant_of_singular_matrices(n: int, device: str) -> None:
    stack = [
        RNG.integers(-3, 4, (n, rank)).astype(float) @ RNG.integers(-3, 4, (rank, n))
        for rank in {n, max(n - 1, 0), max(n - 2, 0), 0}
    ]
    found = np.asarray(kf.jit(kf.grad(lambda a: np.linalg.det(a).sum()))(np.stack(stack)))
    for a, gradient in zip(stack, found, strict=True):
        np.testing.assert_allclose(gradient, cofactors(a), rtol=1e-9, atol=1e-9 * max(1, np.abs(a).max()) ** n)


def test_second_derivatives_of_the_determinant() -> None:
    found = np.asarray(kf.jit(kf.hessian(np.linalg.det))(np.array([[1.0, 2.0], [2.0, 4.0]])))
    np.testing.assert_allclose(found.reshape(4, 4), [[0, 0, 0, 1], [0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0]])
    assert np.isnan(np.asarray(kf.jit(kf.hessian(np.linalg.det))(np.zeros((2, 2))))).any()
