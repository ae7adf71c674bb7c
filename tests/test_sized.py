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
        (lambda x: knp.unique(x[:, None], axis=0, size=2), errors.UnsupportedArgument, "axis"),
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
