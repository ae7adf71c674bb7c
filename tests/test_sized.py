"""Results whose shapes depend on values: NumPy's where these are known, JAX's with a size."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge import numpy as knp

RNG = np.random.default_rng(5)
X = RNG.integers(-3, 4, (4, 5))
ODD = np.array([2.0, np.nan, -0.0, 0.0, np.inf, np.nan, 2.0, -1.0])


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) or not isinstance(expected, tuple)
    for f, e in zip(optree.tree_leaves(found), optree.tree_leaves(expected), strict=True):
        assert (f.shape, f.dtype) == (e.shape, e.dtype)
        np.testing.assert_array_equal(np.asarray(f), e)


KNOWN = {
    "nonzero": (lambda n, x: n.nonzero(x), (X,)),
    "nonzero of floats": (lambda n, x: n.nonzero(x), (ODD,)),
    "nonzero of nothing": (lambda n, x: n.nonzero(x), (X[:0],)),
    "flatnonzero": (lambda n, x: n.flatnonzero(x), (X,)),
    "argwhere": (lambda n, x: n.argwhere(x), (X,)),
    "argwhere of a number": (lambda n, x: n.argwhere(x), (np.array(3),)),
    "unique": (lambda n, x: n.unique(x), (X,)),
    "unique with all": (lambda n, x: n.unique(x, True, True, True), (X,)),
    "unique of NaN": (lambda n, x: n.unique(x, return_counts=True), (ODD,)),
    "unique of each NaN": (lambda n, x: n.unique(x, return_counts=True, equal_nan=False), (ODD,)),
    "unique of one": (lambda n, x: n.unique(x, True, True, True), (X[:1, :1],)),
    "unique of none": (lambda n, x: n.unique(x, True, True, True), (X[:0],)),
    "union1d": (lambda n, x, y: n.union1d(x, y), (X, np.arange(3))),
    "union1d of nothing": (lambda n, x: n.union1d(x, x), (X[0, :0],)),
    "intersect1d": (lambda n, x, y: n.intersect1d(x, y), (X, np.arange(3))),
    "intersect1d with places": (lambda n, x, y: n.intersect1d(x, y, return_indices=True), (X, np.arange(2, -9, -1))),
    "intersect1d of NaN": (lambda n, x, y: n.intersect1d(x, y), (ODD, ODD[::-1])),
    "intersect1d with nothing": (lambda n, x, y: n.intersect1d(x, y, return_indices=True), (X, X[0, :0])),
    "setdiff1d": (lambda n, x, y: n.setdiff1d(x, y), (X, np.arange(3))),
    "setdiff1d of NaN": (lambda n, x, y: n.setdiff1d(x, y), (ODD, ODD[:3])),
    "setdiff1d in order": (lambda n, x, y: n.setdiff1d(x, y, True), (np.array([5, 2, 9, 1]), np.arange(3))),
    "setdiff1d with nothing": (lambda n, x, y: n.setdiff1d(x, y), (X, X[0, :0])),
    "setdiff1d of nothing": (lambda n, x, y: n.setdiff1d(x, y), (X[0, :0], X)),
    "setxor1d": (lambda n, x, y: n.setxor1d(x, y), (X, np.arange(9.0))),
    "setxor1d of NaN": (lambda n, x, y: n.setxor1d(x, y), (ODD, ODD[:3])),
    "setxor1d with nothing": (lambda n, x, y: n.setxor1d(x, y), (X[0, :0], X)),
    "unique rows": (lambda n, x: n.unique(x, True, True, True, axis=0), (X[:, :2] // 2,)),
    "unique columns": (lambda n, x: n.unique(x, True, True, True, axis=-1), (X[:1] // 2,)),
    "unique matrices": (lambda n, x: n.unique(x, axis=1), (RNG.integers(0, 2, (2, 9, 2)),)),
    "unique rows of NaN": (lambda n, x: n.unique(x, return_counts=True, axis=0), (ODD[[[1, 0], [0, 0], [1, 0]]],)),
    "unique axis of a vector": (lambda n, x: n.unique(x, return_counts=True, axis=0), (ODD,)),
    "bincount": (lambda n, x: n.bincount(x), (X.ravel() + 3,)),
    "bincount with weights": (lambda n, x, w: n.bincount(x, w, 9), (X.ravel() + 3, RNG.integers(0, 9, 20) / 4)),
    "bincount of none": (lambda n, x: n.bincount(x), (X[0, :0],)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known(name: str, device: str) -> None:
    fn, args = KNOWN[name]
    expected = fn(np, *args)
    same(fn(knp, *args), expected)
    given = [kf.asarray(a) for a in args]
    same(fn(np, *given), expected)


def first(x: Any, size: int, fill: Any) -> Any:
    return np.concatenate([x[:size], np.full(max(size - len(x), 0), fill, x.dtype)])


@pytest.mark.parametrize("size", [0, 3, 11, 25])
def test_sizes_of_nonzero(size: int, device: str) -> None:
    places = np.nonzero(X)
    found = kf.jit(lambda x: knp.nonzero(x, size=size, fill_value=(7, -1)))(X)
    same(found, tuple(first(p, size, f) for p, f in zip(places, (7, -1), strict=True)))
    same(kf.jit(lambda x: knp.flatnonzero(x, size=size))(X), first(np.flatnonzero(X), size, 0))
    found = kf.jit(lambda x: knp.argwhere(x, size=size))(X)
    same(found, np.stack([first(p, size, 0) for p in places], -1))


@pytest.mark.parametrize("size", [1, 3, 7, 9])
def test_sizes_of_unique(size: int, device: str) -> None:
    values, index, inverse, counts = np.unique(X, True, True, True)
    found = kf.jit(lambda x: knp.unique(x, True, True, True, size=size))(X)
    expected = first(values, size, values[0]), first(index, size, index[0]), inverse, first(counts, size, 0)
    same(found, expected)
    same(kf.jit(lambda x: knp.unique(x, size=size, fill_value=99))(X), first(values, size, 99))


def test_lengths_of_bincount(device: str) -> None:
    found = kf.jit(lambda x, w: knp.bincount(x, w, length=3))(X.ravel(), ODD[0] * np.ones(20))
    same(found, 2.0 * np.array([(i == X).sum() for i in range(3)]))
    slopes = kf.jit(kf.grad(lambda w, x: (knp.bincount(x, w, length=3) * np.arange(3.0)).sum()))(np.ones(20), X.ravel())
    same(slopes, np.where((X.ravel() >= 0) & (X.ravel() < 3), X.ravel(), 0).astype(float))


def test_slopes_of_unique() -> None:
    x = np.array([3.0, 1.0, 3.0, 2.0])
    found = kf.jit(kf.grad(lambda x: (knp.unique(x, size=3) * np.array([1.0, 10.0, 100.0])).sum()))(x)
    same(found, np.array([100.0, 1.0, 0.0, 10.0]))


def test_known_inside() -> None:
    def fn(x: Any) -> Any:
        mask = np.arange(6) % 2 == 1
        return (
            x[np.nonzero(mask)[0]],
            knp.flatnonzero(mask) + 0,
            np.unique(np.arange(6) // 2),
            np.bincount(np.ones(2, int)),
        )

    same(kf.jit(fn)(np.arange(6.0)), fn(np.arange(6.0)))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (np.nonzero, errors.UnsupportedFunction, r"kernelforge.numpy.nonzero\(..., size=\)"),
        (np.unique, errors.UnsupportedFunction, r"kernelforge.numpy.unique\(..., size=\)"),
        (np.bincount, errors.UnsupportedFunction, r"kernelforge.numpy.bincount\(..., length=\)"),
        (lambda x: np.bincount(x * 1.5), errors.DtypeMismatch, "dtypes float64 do not fit; expected integers"),
        (lambda x: np.bincount(x, x[:2]), errors.ShapeMismatch, "a vector, and weights of its shape"),
        (lambda x: np.bincount(x, None, -1), errors.InvalidParameter, "minlength=-1 is not valid; expected 0 or more"),
        (lambda x: knp.nonzero(x[0], size=2), errors.ShapeMismatch, "at least one axis"),
    ],
)  # fmt: skip
def test_refusals(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        kf.jit(call)(np.arange(3))
    with pytest.raises(
        errors.InvalidParameter, match=r"np\.bincount: x=-1 is not valid; expected no number below zero"
    ):
        np.bincount(kf.asarray([-1]))


@pytest.mark.parametrize("name", ["intersect1d", "setdiff1d", "setxor1d", "union1d"])
@pytest.mark.parametrize("size", [1, 4, 20])
def test_sets_of_a_size(name: str, size: int) -> None:
    x, y = RNG.integers(0, 9, 8), RNG.integers(4, 12, (2, 4))
    found = kf.jit(lambda x, y: getattr(knp, name)(x, y, size=size, fill_value=77))(x, y)
    same(found, first(getattr(np, name)(x, y), size, 77))


def test_rows_of_a_size() -> None:
    rows = np.array([[2, 1], [0, 5], [2, 1], [0, 3]])
    found = kf.jit(lambda x: knp.unique(x, return_counts=True, axis=0, size=4))(rows)
    same(found, (np.array([[0, 3], [0, 5], [2, 1], [0, 3]]), np.array([1, 1, 2, 0])))


@pytest.mark.parametrize("wrong", [-1, 2.5, True])
def test_a_size_that_is_none(wrong: Any) -> None:
    for name in ("nonzero", "flatnonzero", "argwhere", "unique"):
        with pytest.raises(errors.InvalidParameter, match=rf"np\.{name}: size={wrong} is not valid"):
            getattr(knp, name)(X, size=wrong)
    for name in ("intersect1d", "setdiff1d", "setxor1d", "union1d"):
        with pytest.raises(errors.InvalidParameter, match=rf"np\.{name}: size={wrong} is not valid"):
            getattr(knp, name)(X, X, size=wrong)
    with pytest.raises(errors.InvalidParameter, match=rf"np\.bincount: length={wrong} is not valid"):
        knp.bincount(np.arange(3), length=wrong)


def test_no_floats_are_counted_even_none() -> None:
    with pytest.raises(errors.DtypeMismatch, match=r"np\.bincount"):
        knp.bincount(np.zeros(0))
    same(knp.bincount([]), np.bincount([]))
