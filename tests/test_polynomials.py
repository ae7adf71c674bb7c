"""Polynomials, spaces of numbers and further functions made of others, beside NumPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.testing import check_grads

RNG = np.random.default_rng(6)
P, Q, X = RNG.standard_normal(5), RNG.standard_normal(3), RNG.standard_normal(9)
M, T = RNG.standard_normal((4, 4)), RNG.standard_normal((2, 3, 6))

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "polyadd": (lambda p, q: (np.polyadd(p, q), np.polysub(q, p), np.polyadd(p, 2)), (P, Q)),
    "polymul": (lambda p, q: (np.polymul(p, q), np.polymul(q, 2.0)), (P, Q)),
    "polyder": (lambda p: (np.polyder(p), np.polyder(p, 3), np.polyder(p, 0)), (P,)),
    "polyint": (lambda p: (np.polyint(p), np.polyint(p, 2, [1.0, 2.0]), np.polyint(p, 2, 3.0)), (P,)),
    "poly": (lambda p: (np.poly(p), np.poly(p[:1])), (P,)),
    "polydiv": (lambda p, q: (*np.polydiv(p, q), *np.polydiv(p, q[:1])), (P, Q)),
    "polyfit": (lambda x, y: (np.polyfit(x, y, 2), np.polyfit(x, np.stack([y, -y], 1), 1)), (X, X**2)),
    "polyfit, weights": (lambda x, y, w: np.polyfit(x, y, 1, w=w), (X, np.cos(X), 1 + X * X)),
    "logspace": (lambda a, b: (np.logspace(a, b, 5), np.logspace(a, b, 4, False, 2.0)), (0.5, 2.0)),
    "logspace, arrays": (lambda a, b: np.logspace(a, b, 3, axis=1), (Q, Q + 1)),
    "geomspace": (lambda a, b: (np.geomspace(a, b, 5), np.geomspace(-a, -b, 4, endpoint=False)), (0.5, 200.0)),
    "geomspace, arrays": (lambda a, b: np.geomspace(a, b, 3, axis=-1), (np.array([1.0, -2]), np.array([9.0, -1]))),
    "interp, period": (lambda x, a: np.interp(x, a, a * a, period=1.5), (3 * X, P)),
    "histogram_bin_edges": (lambda x: (np.histogram_bin_edges(x, 3), np.histogram_bin_edges(x, 3, (0, 1))), (X,)),
    "compress": (lambda x: (np.compress([True, False, True], x, 1), np.extract(np.eye(4) > 0, x)), (M,)),
    "indices": (
        lambda x: (x[np.diag_indices_from(x)], x[np.tril_indices_from(x)], x[np.triu_indices_from(x, 1)]),
        (M,),
    ),
    "apply_over_axes": (lambda x: np.apply_over_axes(np.sum, x, [0, -1]), (T,)),
    "tensorsolve": (np.linalg.tensorsolve, (T.reshape(6, 6).reshape(2, 3, 2, 3), T[:, :, 0])),
    "tensorinv": (lambda a: np.linalg.tensorinv(a, 1), (M.reshape(4, 2, 2),)),
    "norms": (
        lambda x: (np.linalg.vector_norm(x), np.linalg.vector_norm(x, axis=1, ord=3), np.linalg.matrix_norm(x, ord=1)),
        (T,),
    ),
    "norms, kept": (lambda x: (np.linalg.vector_norm(x, keepdims=True), np.linalg.matrix_norm(x, keepdims=True)), (T,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_beside_numpy(name: str, device: str) -> None:
    fn, args = CASES[name]
    found, expected = kf.jit(fn)(*args), fn(*args)
    for f, e in zip(optree.tree_leaves(found), optree.tree_leaves(expected), strict=True):
        assert (f.shape, f.dtype) == (e.shape, e.dtype)
        np.testing.assert_allclose(np.asarray(f), e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("histogram_bin_edges", "logspace", "geomspace")])
def test_derivatives(name: str) -> None:
    fn, args = CASES[name]
    check_grads(fn, args, order=1, devices=["cpu"])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: np.polyfit(x[0], x[1], 1, cov=True), "np.polyfit: full or cov=True is not valid"),
        (lambda x: np.polyder(x[0], -1), "np.polyder: m=-1 is not valid"),
        (lambda x: np.polyint(x[0], 3, [1.0, 2]), "expected 3 constants, or one"),
        (lambda x: np.polyadd(x, x), "expected coefficients along one axis"),
        (lambda x: np.compress(x[0] > 0, x[0]), "conditions along one axis that are known; use np.where"),
        (lambda x: np.compress([False] * 9 + [True], x), "index 9 is out of range"),
        (lambda x: np.tril_indices_from(x[0]), "expected a matrix"),
        (np.diag_indices_from, "axes of one extent"),
        (lambda x: np.interp(x, x[0], x[0], period=0), "np.interp: period=0 is not valid"),
    ],
)
def test_refusals(call: Callable[..., Any], text: str) -> None:
    with pytest.raises(errors.KernelforgeError, match=text):
        kf.jit(call)(np.arange(6.0).reshape(2, 3))
