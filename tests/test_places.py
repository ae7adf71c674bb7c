"""Places, bins, sets, moments and polynomials: what NumPy composes of other functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

RNG = np.random.default_rng(9)
X, Y = RNG.standard_normal((3, 20)), RNG.standard_normal((20, 3))
SOME = np.array([1.0, np.nan, -np.inf, np.inf, 3, -2, 3])


def agree(fn: Callable[..., Any], *args: Any) -> None:
    for k, (found, expected) in enumerate(zip(kf.jit(fn)(*args), fn(*args), strict=True)):
        expected = np.asarray(expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), k
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-6, atol=1e-12, err_msg=str(k))


def test_moments() -> None:
    agree(
        lambda x, y: (
            np.cov(x), np.cov(y, rowvar=False, bias=True), np.cov(x[0]), np.cov(x[0], x[1], ddof=0), np.corrcoef(x),
            np.corrcoef(x[0], x[2]), np.corrcoef(x[0]), np.cov(x.astype("f4").astype(int)),
        ),
        X, Y,
    )  # fmt: skip
    agree(lambda x: (np.nanargmax(x), np.nanargmin(x), np.nancumprod(x), np.isposinf(x), np.isneginf(x)), SOME)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1"])
def test_bins(dtype: str) -> None:
    x = (RNG.random(50) * 9).astype(dtype)
    edges = np.array([0.0, 1, 2.5, 7, 8])
    agree(
        lambda x, edges: (
            *np.histogram(x), *np.histogram(x, 5, (0, 8)), *np.histogram(x, edges), *np.histogram(x, 4, density=True),
            *np.histogram(x, edges, weights=x * 0.5), np.digitize(x, edges), np.digitize(x, edges, right=True),
            *np.histogram(x[:0], 3), *np.histogram(x * 0, 3),
        ),
        x, edges,
    )  # fmt: skip
    agree(lambda x: (np.digitize(x, [7, 2.5, 1]), np.digitize(x, np.array([7, 2.5, 1]), right=True)), x)


def test_indices() -> None:
    def fn(x: Any, i: Any, j: Any) -> Any:
        a, b = np.unravel_index(i * 5 + j, (4, 5))
        return (
            a, b, np.ravel_multi_index((i, j), (4, 5)),
            np.ravel_multi_index((i + 9, j), (4, 5), mode="wrap"),
            x[np.ix_(i, j)], np.isin(i, [0, 3]), np.isin(i, j, invert=True), np.choose(i % 3, [i, j * 0.5, 7]),
            np.resize(x, (3, 9)), np.array_equiv(x, x[:1]), np.array_equiv(x, x),
            np.unravel_index(x.argmax(), x.shape)[1],
        )  # fmt: skip

    agree(fn, RNG.standard_normal((4, 5)), np.array([0, 2, 3, 3]), np.array([1, 0, 4, 2]))


def test_pieces() -> None:
    def written(x: Any) -> Any:
        a, b = x.copy(), x.copy()
        np.put(a, [1, -1], [7, 8])
        np.putmask(b, b < 0, [0.5, 1.5])
        return a, b

    agree(
        lambda x: (
            np.piecewise(x[0], [x[0] < 0, x[0] > 1], [lambda v: -v, 3, np.exp]),
            np.delete(x, 1, 0), np.delete(x, [0, -1]),
            np.delete(x, slice(0, 4, 2), 1), np.insert(x, 1, 9, 1), np.insert(x[0], -1, 4.0), np.insert(x, 0, x[1], 0),
            np.block([[x, x * 2], [x[:1], x[:1]]]), np.block([x[0], 1.0]), np.ediff1d(x, to_begin=0, to_end=[1, 2]),
            np.unwrap(x * 9), np.unwrap(x, period=1.5, axis=0), *np.dsplit(x.reshape(2, 5, 6), 2), *written(x),
        ),
        X,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "u8", "?"])
def test_bits_are_counted(dtype: str) -> None:
    x = RNG.integers(0, 2 if dtype == "?" else 120, 30).astype(dtype)
    if dtype != "?":
        x[:2] = np.iinfo(dtype).max, np.iinfo(dtype).min
    agree(lambda x: (np.bitwise_count(x), np.bitwise_count(~x)), x)


def test_polynomials() -> None:
    agree(
        lambda p, x: (np.polyval(p, x), np.polyval([1, 2], x), np.vander(x, 3), np.vander(x, increasing=True)),
        np.array([0.5, -1, 2]), np.linspace(-1, 1, 5),
    )  # fmt: skip
    agree(lambda n: (np.vander(n), np.polyval([1, 2, 3], n)), np.arange(4))


def test_derivatives() -> None:
    weight = np.arange(9.0).reshape(3, 3)
    for fn in (lambda x: (np.cov(x) * weight).sum(), lambda x: np.polyval(x[0, :4], x[1]).sum()):
        slope = kf.grad(fn)(X)
        step = 1e-6 * RNG.standard_normal(X.shape)
        np.testing.assert_allclose((np.asarray(slope) * step).sum(), (fn(X + step) - fn(X - step)) / 2, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: np.histogram(x, "auto"), "np.histogram: bins='auto' is not valid; expected a number or edges"),
        (
            lambda x: np.delete(x, x.argmax()),
            "np.delete: obj='a traced array' is not valid; expected places that are known",
        ),
        (lambda x: np.put(x, 0, 1), "was not made in this function"),
        (lambda x: np.insert(x.astype(np.int8), 1, 300), "the Python number 300 does not fit int8"),
        (lambda x: np.piecewise(x, [x > 0], []), "1 conditions and 0 functions"),
    ],
)
def test_refusals(call: Callable[..., Any], text: str) -> None:
    with pytest.raises(errors.KernelforgeError, match=text):
        kf.jit(call)(X[0])


def test_shapes_of_choices_and_of_what_is_inserted() -> None:
    a = np.arange(60.0).reshape(6, 10)
    agree(lambda i, a: (np.choose(i, [5]), np.insert(a, [1], np.arange(6.0), axis=1)), np.zeros(3, int), a)
    small = np.array([1, 2, 3], np.int8)
    agree(lambda x: (np.insert(x, 1, 2.9), np.insert(x, [0, 2], [7, 8]), np.insert(x, 0, x * 2)), small)
    with pytest.raises(errors.InvalidParameter, match=r"np\.cumulative_sum: axis=None"):
        kf.jit(np.cumulative_sum)(a)
    with pytest.raises(errors.UnsupportedArgument, match="mode"):
        kf.jit(lambda i: np.ravel_multi_index((i, i), (3, 3), mode=("wrap", "clip")))(np.arange(2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: np.histogram(x, 3, (2, 1)), r"range=\(2, 1\) is not valid; expected finite numbers"),
        (lambda x: np.histogram(x, 3, (np.nan, 1)), "range="),
        (lambda x: np.histogram(x, [3, 1, 2]), "expected edges along one axis that ascend\n"),
        (lambda x: np.histogram(x, [3, 2, 1]), "np.histogram: bins="),
        (lambda x: np.histogram(x, [[1, 2]]), "np.histogram: bins="),
        (lambda x: np.histogram(x, 0), "expected at least one"),
        (lambda x: np.histogram(x, 2.5), "dtypes float64 do not fit; expected an integer, or edges, as bins"),
        (lambda x: np.histogram(x, 2, weights=np.ones(3)), "expected a weight for each element"),
        (lambda x: np.digitize(x, [1, 3, 2]), "expected edges along one axis that ascend or descend"),
        (lambda x: np.partition(x, 5), "np.partition: kth=5 is not valid; expected places from -5 to 4"),
        (lambda x: np.partition(x, [0, -6]), "np.partition: kth="),
        (lambda x: np.partition(x, 1.5), "np.partition: dtypes float64 do not fit; expected integers as kth"),
        (lambda x: np.argpartition(x.reshape(1, 5), 1, axis=0), "np.argpartition: kth=1"),
        (lambda x: np.delete(x, [True, False]), r"expected bools of shape \(5,\)"),
        (lambda x: np.delete(x, np.ones((2, 2), bool)), r"bools of shape \(2, 2\)"),
        (lambda x: np.delete(x, True), "np.delete: obj="),
        (lambda x: np.delete(x, 1.0), "integers or bools"),
    ],
)
def test_what_numpy_refuses(call: Callable[..., Any], text: str) -> None:
    x = np.arange(5.0)
    with pytest.raises((ValueError, TypeError, IndexError)) as theirs:
        call(x)
    with pytest.raises(errors.KernelforgeError, match=text) as ours:
        kf.jit(call)(x)
    assert isinstance(ours.value, theirs.type)
    with pytest.raises(theirs.type):
        call(kf.asarray(x))


def test_ranges_of_what_is_not_finite() -> None:
    with pytest.raises(errors.InvalidParameter, match=r"np\.histogram: range='what a holds' is not valid"):
        np.histogram(kf.asarray([1.0, np.nan]), 2)
    agree(
        lambda x: (np.partition(x[:0], 3), np.delete(x, []), np.delete(x, np.array([True, False, True]))),
        np.arange(3.0),
    )
