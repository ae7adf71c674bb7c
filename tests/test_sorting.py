"""Sorted arrays and what is read off them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

RNG = np.random.default_rng(8)


def agree(fn: Callable[..., Any], *args: Any, tol: float = 1e-6) -> None:
    for k, (found, expected) in enumerate(zip(kf.jit(fn)(*args), fn(*args), strict=True)):
        expected = np.asarray(expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), k
        np.testing.assert_allclose(np.asarray(found), expected, rtol=tol, err_msg=str(k))


@pytest.mark.parametrize("device", kf.devices())
@pytest.mark.parametrize("dtype", ["u4", "i8", "u8", "f4", "f8"])
def test_sort_in_columns(dtype: str, device: str) -> None:
    """From 64 elements on there are several columns; keys of 64 bits that agree in one half differ in the other."""
    with kf.default_device(device):
        for shape in ((64,), (3, 130), (1000,)):
            x = RNG.integers(-3, 3, shape).astype("f8") * 2.0**29 + RNG.integers(0, 3, shape) / 4
            x = (np.abs(x) if dtype[0] == "u" else x).astype(dtype)
            if dtype == "i8":
                x *= 8
            agree(lambda x: (np.sort(x), np.argsort(x, kind="stable")), x)


@pytest.mark.parametrize("device", kf.devices())
def test_rows_side_by_side(device: str) -> None:
    """From eight rows on they are columns of blocks, which have up to 32 and may be filled up."""
    with kf.default_device(device):
        for shape in ((8, 2), (9, 3), (33, 20), (2, 35, 70), (100, 64)):
            x = RNG.integers(-9, 9, shape).astype("f4")
            agree(lambda x: (np.sort(x), np.argsort(x, kind="stable"), np.sort(x, 0)), x)


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", ["?", "i1", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_sort(dtype: str, device: str) -> None:
    with kf.default_device(device):
        for shape in ((9,), (5, 8), (1,), (0,), (2, 3, 5)):
            x = RNG.integers(0, 2 if dtype == "?" else 100, shape).astype(dtype)
            if x.dtype.kind == "f" and x.size > 5:
                x.flat[:6] = [-0.0, np.nan, np.inf, -np.inf, 0.0, -3]
            if x.dtype.kind in "iu" and x.size > 5:
                x.flat[:2] = np.iinfo(dtype).max, np.iinfo(dtype).min
            agree(
                lambda x: (
                    np.sort(x), np.argsort(x, kind="stable"), np.sort(x, 0), np.argsort(x, axis=None, kind="stable"),
                ),
                x,
            )  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, 40, 300, 5000])
def test_order_of_every_dtype(count: int) -> None:
    """Of equal elements, zeros of both signs among them, the first one is first."""

    def rows(x: Any) -> Any:
        return np.argsort(x[None].repeat(17, 0), 1, kind="stable")

    for dtype in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        x = RNG.integers(0, 2 if dtype == "?" else 30, count).astype(dtype)
        if x.dtype.kind == "f" and count > 5:
            x[:6] = [0, -0.0, np.nan, -np.inf, 0, np.inf]
        agree(lambda x: (np.argsort(x, kind="stable"), np.sort(x), rows(x)), x)


@pytest.mark.parametrize("dtype", ["i1", "u8", "f2", "f4", "f8"])
def test_quantiles(dtype: str) -> None:
    x = RNG.integers(0, 50, (5, 8)).astype(dtype)
    if x.dtype.kind == "f":
        x[0, :3], x[3] = [np.nan, np.inf, -np.inf], np.inf
    with np.errstate(invalid="ignore"):
        agree(
            lambda x: (
                np.median(x), np.median(x, axis=0), np.median(x, axis=1, keepdims=True), np.nanmedian(x, axis=1),
                np.quantile(x, 0.3), np.percentile(x, [0, 10, 100], axis=1), np.nanquantile(x, 0.7, axis=0),
                np.nanpercentile(x, [30, 40], axis=(0, 1), keepdims=True),
            ),
            x, tol=1e-3 if dtype == "f2" else 1e-6,
        )  # fmt: skip


def test_methods_of_quantiles() -> None:
    x, q = RNG.standard_normal((4, 11)), np.array([[0.0, 0.13], [0.5, 1]])
    for method in (
        "linear", "lower", "higher", "midpoint", "nearest", "interpolated_inverted_cdf", "hazen", "weibull",
        "median_unbiased", "normal_unbiased",
    ):  # fmt: skip
        agree(lambda x, q, m=method: (np.quantile(x, q, axis=1, method=m),), x, q)


def test_order_by_several_keys_and_in_place() -> None:
    def fn(a: Any, b: Any, x: Any) -> Any:
        y = x.copy()
        y.sort()
        return np.lexsort((a, b)), y, x[x.argsort()], np.partition(x, 3)[3]

    agree(fn, RNG.integers(0, 3, 20), RNG.integers(0, 3, 20), RNG.standard_normal(20))


def test_derivatives_go_to_where_elements_came_from() -> None:
    x = np.array([3.0, 1, 2, 9])
    np.testing.assert_array_equal(kf.grad(lambda x: (np.sort(x) * np.arange(4)).sum())(x), [2, 0, 1, 3])
    np.testing.assert_array_equal(kf.grad(np.median)(x), [0.5, 0, 0.5, 0])
    np.testing.assert_allclose(kf.grad(lambda x: np.quantile(x, 0.3))(x), [0, 0.1, 0.9, 0])


def test_places_that_are_whole_are_found_so() -> None:
    for n in (11, 101):
        x = np.arange(float(n))
        for method in ("lower", "higher", "nearest", "midpoint", "linear"):
            found = kf.jit(lambda x, method=method: np.quantile(x, list(x / (len(x) - 1)), method=method))(x)
            np.testing.assert_array_equal(found, np.quantile(x, x / (n - 1), method=method), err_msg=method)
    huge = np.array([2**62 + 1, 2**62 + 3, 5])
    assert int(kf.jit(lambda x: np.quantile(x, 0.5, method="nearest"))(huge)) == 2**62 + 1


def test_refusals() -> None:
    for fn, message in (
        (lambda x: np.quantile(x, 1.5), r"np.quantile: q=1.5 is not valid; expected 0 to 1"),
        (lambda x: np.percentile(x, -1), r"np.percentile: q=-1 is not valid; expected 0 to 100"),
    ):
        with pytest.raises(errors.InvalidParameter, match=message):
            kf.jit(fn)(np.ones(3))
    for order in (lambda x: np.sort(x, order="x"), lambda x: np.reshape(x, (3, 1), order="A")):
        with pytest.raises(errors.UnsupportedArgument, match="order"):
            kf.jit(order)(np.ones(3))
    with pytest.raises(errors.InvalidParameter, match=r"np.quantile: method=.median. is not valid; expected linear"):
        kf.jit(lambda x: np.quantile(x, 0.5, method="median"))(np.ones(3))
    with pytest.raises(
        errors.ShapeMismatch, match=r"np.median: shapes \(0,\) do not fit; expected at least one element"
    ):
        kf.jit(np.median)(np.ones(0))
    with pytest.raises(errors.ImmutableArray):
        kf.asarray([2.0, 1.0]).sort()
