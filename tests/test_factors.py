"""QR, eigenvalues, singular values and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.backends import registry
from kernelforge.testing import check_grads

RNG = np.random.default_rng(8)
SHAPES = [(1, 1), (3, 3), (6, 4), (4, 6), (2, 5, 3), (2, 7, 7), (5, 1)]


def close(found: Any, expected: Any, tol: float = 1e-9) -> None:
    for f, e in zip(optree.tree_leaves(found), optree.tree_leaves(expected), strict=True):
        assert (f.shape, np.dtype(f.dtype)) == (np.shape(e), np.asarray(e).dtype)
        np.testing.assert_allclose(np.asarray(f), e, rtol=tol, atol=tol)


PLACES = [*(("cpu", s) for s in SHAPES), ("opencl", (6, 4)), ("opencl", (2, 5, 3))]


@pytest.fixture
def where(place: tuple[str, Any]) -> Iterator[Any]:
    """Compute on a device, and give what the test is about."""
    try:
        registry.backend(place[0])
    except errors.DeviceUnavailable as error:
        pytest.skip(str(error))
    with kf.default_device(place[0]):
        yield place[1]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("mode", ["reduced", "complete", "r"])
def test_qr(where: tuple[int, ...], mode: Any) -> None:
    a = RNG.standard_normal(where)
    found, expected = kf.jit(lambda a: np.linalg.qr(a, mode))(a), np.linalg.qr(a, mode)
    assert type(found) is type(expected) or mode == "r"
    close(found, expected)


def test_qr_of_dependent_columns() -> None:
    a = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0]])
    q, r = (np.asarray(x) for x in kf.jit(np.linalg.qr)(a))
    np.testing.assert_allclose(q @ r, a, atol=1e-14)
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-14)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_svd(where: tuple[int, ...], dtype: str) -> None:
    a = RNG.standard_normal(where).astype(dtype)
    tol = 1e-4 if dtype == "f4" else 1e-10
    values, *both = kf.jit(lambda a: (np.linalg.svdvals(a), np.linalg.svd(a, False), np.linalg.svd(a, True)))(a)
    close(values, np.linalg.svdvals(a), tol)
    for full, found in zip((False, True), both, strict=True):
        u, s, vh = (np.asarray(x) for x in found)
        assert (u.shape, vh.shape) == tuple(x.shape for x in np.linalg.svd(a, full)[::2])
        k = s.shape[-1]
        np.testing.assert_allclose(u[..., :k] * s[..., None, :] @ vh[..., :k, :], a, atol=tol)
        for q in (u, vh.mT):
            np.testing.assert_allclose(
                q.mT @ q, np.broadcast_to(np.eye(q.shape[-1]), q.mT.shape[:-1] + q.shape[-1:]), atol=tol
            )


@pytest.mark.parametrize("place", [*(("cpu", n) for n in (1, 2, 3, 8, 13)), ("opencl", 5)], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_eigh(where: int, dtype: str) -> None:
    a = RNG.standard_normal((2, where, where)).astype(dtype)
    tol = 1e-4 if dtype == "f4" else 1e-10
    both = kf.jit(lambda a: (np.linalg.eigh(a, "L"), np.linalg.eigh(a, "U")))(a)
    for side, found in zip(("L", "U"), both, strict=True):
        w, v = (np.asarray(x) for x in found)
        close(w, np.linalg.eigvalsh(a, side), tol)
        whole = np.tril(a) + np.tril(a, -1).mT if side == "L" else np.triu(a) + np.triu(a, 1).mT
        np.testing.assert_allclose(v * w[:, None, :] @ v.mT, whole, atol=tol)


@pytest.mark.parametrize("values", [[1.0, 1, 1, 1], [0.0, 0, 0, 0], [1e-12, 1.0, -1.0, 1e12], [2.0, 2, -2, 0]])
def test_hard_spectra(values: list[float]) -> None:
    q = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    a = q * np.array(values) @ q.T
    most = max(np.abs(values).max(), 1e-300)
    np.testing.assert_allclose(np.asarray(kf.jit(np.linalg.eigvalsh)(a)) / most, np.sort(values) / most, atol=1e-13)
    found = np.asarray(kf.jit(np.linalg.svdvals)(a)) / most
    np.testing.assert_allclose(found, np.sort(np.abs(values))[::-1] / most, atol=1e-13)
    u, _, vh = (np.asarray(x) for x in kf.jit(np.linalg.svd)(a))
    for x in (u, vh):
        np.testing.assert_allclose(x @ x.T, np.eye(4), atol=1e-12)


def test_least_squares_and_inverses() -> None:
    a, b = RNG.standard_normal((7, 3)), RNG.standard_normal((7, 2))
    low = a @ np.diag([1.0, 1.0, 0.0])
    for x, y in ((a, b), (a, b[:, 0]), (a.T, b[:3])):
        close(kf.jit(np.linalg.lstsq)(x, y)[0], np.linalg.lstsq(x, y)[0])
    for found, expected in zip(kf.jit(np.linalg.lstsq)(a, b), np.linalg.lstsq(a, b), strict=True):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-9)
        assert found.dtype == np.asarray(expected).dtype
    close(kf.jit(lambda x: np.linalg.pinv(x, rcond=1e-9))(low), np.linalg.pinv(low, rcond=1e-9))
    ranks = kf.jit(lambda x, y: (np.linalg.matrix_rank(x), np.linalg.matrix_rank(y)))(a, low)
    assert [int(x) for x in ranks] == [3, 2]
    square = a[:3]
    for p in (None, 2, -2, 1, np.inf, "fro"):
        close(kf.jit(lambda x, p=p: np.linalg.cond(x, p))(square), np.linalg.cond(square, p))


def test_hermitian_matrices_are_their_lower_triangles() -> None:
    a = RNG.standard_normal((5, 4, 4))
    s, r = a + a.mT, a @ np.diag([1.0, 1, 0, 0])
    for x in (a, s, r):
        close(
            kf.jit(lambda x: np.linalg.svd(x, compute_uv=False, hermitian=True))(x), np.linalg.svd(x, hermitian=True)[1]
        )
        close(kf.jit(lambda x: np.linalg.pinv(x, 0.1, hermitian=True))(x), np.linalg.pinv(x, 0.1, hermitian=True))
        for options in ({"hermitian": True}, {"tol": 0.7}, {"tol": np.linspace(0.1, 3, 5)}, {"rtol": np.full(5, 0.3)}):
            found = kf.jit(lambda x, options=options: np.linalg.matrix_rank(x, **options))(x)
            np.testing.assert_array_equal(found, np.linalg.matrix_rank(x, **options))


def test_no_rows() -> None:
    for shape in ((0, 0), (2, 0, 0), (0, 3, 3)):
        values, vectors = kf.jit(np.linalg.eigh)(np.zeros(shape))
        assert (values.shape, vectors.shape) == (shape[:-1], shape)


def test_norms_by_singular_values() -> None:
    a = RNG.standard_normal((3, 2, 4))
    for ord in (2, -2, "nuc"):
        for axis in ((1, 2), (2, 0)):
            for keep in (False, True):
                close(
                    kf.jit(lambda a, o=ord, ax=axis, k=keep: np.linalg.norm(a, o, ax, keepdims=k))(a),
                    np.linalg.norm(a, ord, axis, keepdims=keep),
                )


A = RNG.standard_normal((4, 3))
S = RNG.standard_normal((4, 4))


@pytest.mark.parametrize(
    ("fn", "a"),
    [
        (np.linalg.qr, A),
        (lambda a: np.linalg.qr(a, "complete")[1], A),
        (np.linalg.qr, A.T),
        (np.linalg.eigvalsh, S),
        (lambda a: np.linalg.eigh(a)[1] ** 2, S),
        (lambda a: np.linalg.svd(a, False)[1], A),
        (lambda a: np.linalg.svd(a, False)[0] ** 2, A),
        (lambda a: np.linalg.svd(a, False)[2] ** 2, A),
        (lambda a: np.linalg.svd(a, False)[0] ** 2, A.T),
        (np.linalg.pinv, A),
        (lambda a: np.linalg.lstsq(a, A[:, 0])[0], A + 1),
    ],
)
def test_derivatives(fn: Callable[..., Any], a: Any) -> None:
    check_grads(fn, (a,), order=1, devices=["cpu"])


def test_derivatives_at_equal_eigenvalues() -> None:
    found = kf.jit(kf.grad(lambda a: (np.linalg.eigvalsh(a) ** 3).sum()))(2 * np.eye(3))
    np.testing.assert_allclose(np.asarray(found), 12 * np.eye(3), atol=1e-12)


def test_refusals() -> None:
    for call, text in (
        (np.linalg.eig, "np.linalg.eig is not supported.*complex; linalg.eigh"),
        (lambda a: np.linalg.eigh(a[:2]), "np.linalg.eigh: shapes"),
        (lambda a: np.linalg.lstsq(a, a[0, :2]), "np.linalg.lstsq: shapes"),
    ):
        with pytest.raises(errors.KernelforgeError, match=text):
            kf.jit(call)(np.eye(3))
