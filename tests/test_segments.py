"""Divisors, histograms of several axes, functions along an axis, reductions of runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge import errors

RNG = np.random.default_rng(3)
POINTS = RNG.standard_normal((40, 3))
WEIGHTS = RNG.random(40)


def agree(fn: Callable[..., Any], *args: Any, tol: float = 1e-12) -> None:
    for found, expected in zip(
        optree.tree_leaves(kf.jit(fn)(*args)), optree.tree_leaves(fn(*args)), strict=True
    ):  # fmt: skip
        expected = np.asarray(expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(np.asarray(found), expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i4", "u4", "i8", "u8"])
def test_divisors(dtype: str, device: str) -> None:
    ends = np.iinfo(dtype)
    x = np.concatenate([RNG.integers(ends.min, ends.max, 30, dtype), np.array([0, 0, ends.min, ends.max, 6], dtype)])
    y = np.concatenate([RNG.integers(ends.min, ends.max, 30, dtype), np.array([0, 5, 6, ends.max, ends.min], dtype)])
    with np.errstate(all="ignore"):
        agree(lambda x, y: (np.gcd(x, y), np.lcm(x, y)), x, y)


def test_divisors_take_integers_and_broadcast() -> None:
    agree(lambda x: np.gcd(x[:, None], x), np.arange(-4, 9))
    agree(lambda x: np.lcm(x, 4), np.zeros((0, 2), int))
    with pytest.raises(errors.DtypeMismatch, match="gcd"):
        kf.jit(lambda x: np.gcd(x, 2))(1.5)


@pytest.mark.parametrize(
    "given",
    [
        {}, {"bins": (2, 3, 4)}, {"bins": [np.array([-1, 0, 0.5]), 3, np.linspace(-2, 2, 6)]},
        {"bins": 3, "range": [(-1, 1), None, (0, 2)], "density": True}, {"weights": WEIGHTS, "bins": 2},
    ],
)  # fmt: skip
def test_histograms_of_points(given: dict[str, Any], device: str) -> None:
    points = POINTS.copy()
    points[3] = points.max(0)  # on the last edge of each axis
    agree(lambda x: np.histogramdd(x, **given), points)


@pytest.mark.parametrize("bins", [4, (2, 3), np.linspace(-2, 2, 6), [np.array([-1, 0, 0.5]), 3]])
def test_histograms_of_pairs(bins: Any) -> None:
    agree(lambda x, y, w: np.histogram2d(x, y, bins, weights=w, density=True), *POINTS.T[:2], WEIGHTS)
    agree(lambda x: np.histogram2d(x, x, bins), np.zeros(0))


def test_what_histograms_of_points_do_not_take() -> None:
    for call, text in (
        (lambda: kf.numpy.histogramdd(POINTS, bins=(2, 3)), "one for each of 3 axes"),
        (lambda: kf.numpy.histogramdd(POINTS, bins=0), "at least one"),
        (lambda: kf.numpy.histogramdd(POINTS, weights=WEIGHTS[:3]), "a weight for each point"),
        (lambda: kf.numpy.histogram2d(*POINTS.T[:2], bins=[[1, 0, 2], 3]), "edges along one axis that ascend"),
    ):
        with pytest.raises(errors.KernelforgeError, match=text):
            call()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_functions_along_an_axis(axis: int) -> None:
    x = RNG.standard_normal((3, 4, 5))
    for fn in (np.sum, np.sort, lambda v: np.outer(v, v), lambda v: v[:2]):
        agree(lambda x, fn=fn: np.apply_along_axis(fn, axis, x), x)
    agree(lambda x: np.apply_along_axis(lambda v, a, b=0.0: v * a + b, axis, x, 2.0, b=1.0), x)


def test_no_vectors_along_an_axis() -> None:
    with pytest.raises(errors.ShapeMismatch, match="apply_along_axis"):
        kf.numpy.apply_along_axis(np.sum, 0, np.ones((2, 0)))


@pytest.mark.parametrize("name", ["add", "multiply", "maximum", "minimum"])
@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "f4", "f8"])
def test_reductions_of_runs(name: str, dtype: str, device: str) -> None:
    x = (3 * RNG.standard_normal((7, 3))).astype(dtype)
    fn = getattr(np, name).reduceat
    agree(lambda x: (fn(x, [0, 3, 5]), fn(x, [2, 1, 6, 6, 0]), fn(x, [1, 2], axis=1)), x, tol=1e-6)


def test_no_runs() -> None:
    found = kf.jit(lambda x: np.add.reduceat(x, []))(np.ones((3, 2)))
    assert found.shape == np.add.reduceat(np.ones((3, 2)), []).shape


def test_the_derivative_of_sums_of_runs() -> None:
    found = kf.grad(lambda x: (np.add.reduceat(x, [0, 2, 2]) ** 2).sum())(np.arange(5.0))
    np.testing.assert_allclose(found, [2, 2, 4 + 18, 18, 18])


def test_what_reductions_of_runs_do_not_take() -> None:
    x, places = np.ones(3), np.array([0])
    for fn, error in (
        (lambda x, i: np.add.reduceat(x, [9]), errors.InvalidParameter),
        (lambda x, i: np.add.reduceat(x, [[0, 1]]), errors.ShapeMismatch),
        (np.add.reduceat, errors.UnsupportedArgument),
    ):
        with pytest.raises(error, match="reduceat"):
            kf.jit(fn)(x, places)
