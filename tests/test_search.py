"""Choosing among arrays and finding places in sorted ones, as NumPy does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge.errors import InvalidParameter, ShapeMismatch

V = np.random.default_rng(0).normal(size=9)
SORTED = np.sort(V)
M = V.reshape(3, 3)
ODD = np.array([-np.inf, 0.0, 0.0, np.inf, np.nan, np.nan])
SQUARES = np.array([0, 1, 4, 9, 16], np.int32)


def same(fn: Callable[..., Any], *args: Any) -> None:
    want = fn(*args)
    for got, w in zip(optree.tree_leaves(kf.jit(fn)(*args)), optree.tree_leaves(want), strict=True):
        assert got.dtype == w.dtype
        np.testing.assert_allclose(got, w, rtol=1e-13)


def test_select_and_append() -> None:
    same(lambda x: np.select([x < -1, x < 0, x < 1], [x, 2, x * x], 5), M)
    same(lambda x: np.select([x > 0], [1], default=0), M)
    same(lambda x: np.select([x > 0, x > 1], [np.float32(1), x]), M.astype(np.float32))
    same(lambda x: (np.append(x, x, 0), np.append(x, 1.0)), M)


@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted(side: Any) -> None:
    same(
        lambda a, v: (np.searchsorted(a, v, side), np.searchsorted(a, a, side), np.searchsorted(a, 0.25, side)),
        SORTED,
        3 * M,
    )
    same(lambda a: np.searchsorted(a, a, side), ODD)
    same(lambda a, v: (np.searchsorted(a, v, side), np.searchsorted(a, 4, side)), SQUARES, SQUARES[::-1])
    same(lambda a, v: np.searchsorted(a, v, side), np.zeros(0), V)
    same(lambda a: np.searchsorted(a, 0.1, side), np.array([0.1], np.float32))  # compared in f64, as NumPy does


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 33])
def test_every_place_is_found(size: int, side: Any) -> None:
    rng = np.random.default_rng(size)
    for dtype in (bool, np.int8, np.uint16, np.int64, np.uint64, np.float16, np.float32, np.float64):
        a = np.sort(rng.integers(0, 9, size)).astype(dtype)
        if a.dtype.kind == "f":
            a[a == 8] = np.nan
        v = np.concatenate([a, np.nextafter(a, np.array(9, dtype)) if a.dtype.kind == "f" else a + (a < 8)])
        same(lambda a, v: np.searchsorted(a, v.reshape(2, -1), side), a, v)
        same(lambda a, v: np.searchsorted(a, v, side), a, np.array([0.5, 3, -1, 9, np.inf, np.nan]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_places_by_a_sorter(side: Any) -> None:
    order = np.argsort(V).astype(np.int32)
    same(lambda a, v, order: np.searchsorted(a, v, side, sorter=order), V, 2 * M, order)
    same(lambda a, v: a.searchsorted(v, side, np.argsort(a)), V, M)


def test_a_search_halves() -> None:
    a, v = np.arange(1000.0), np.linspace(0, 1000, 4096)
    (kernel,) = kf.jit(np.searchsorted).lower(a, v).kernels
    text = str(kernel.ir)
    assert "vector" in text
    assert text.count("x0[") < 40  # ten steps, in each of three loops at most


def test_interp() -> None:
    same(lambda x, a: (np.interp(x, a, a * a), np.interp(a, a, a), np.interp(x, a[:1], a[:1])), 3 * M, SORTED)
    same(lambda x, a: np.interp(x, a, a * a, left=-1.0, right=2), ODD, SORTED)
    same(lambda x: np.interp(x, SQUARES, SQUARES), np.float32(V))


def test_refusals() -> None:
    with pytest.raises(InvalidParameter, match="conditions of bool"):
        kf.jit(lambda x: np.select([x], [x]))(V)
    with pytest.raises(ShapeMismatch, match="2 conditions and 1 choices"):
        kf.jit(lambda x: np.select([x > 0, x > 1], [x]))(V)
    with pytest.raises(ShapeMismatch, match="a sorter of 9 integers"):
        kf.jit(lambda x: np.searchsorted(x, x, sorter=np.arange(8)))(V)
    with pytest.raises(ShapeMismatch, match="a sorter of 9 integers"):
        kf.jit(lambda x: np.searchsorted(x, x, sorter=x))(V)
    with pytest.raises(InvalidParameter, match="'left' or 'right'"):
        kf.jit(lambda x: np.searchsorted(x, x, "middle"))(V)
    with pytest.raises(ShapeMismatch, match="one extent"):
        kf.jit(lambda x: np.interp(x, x, x[1:]))(V)


@pytest.mark.parametrize(
    "dtypes", [(np.int64, np.int64), (np.float32, np.float32), (np.uint8, np.int16), (np.int32, np.float64)]
)
def test_membership_of_many_among_many(dtypes: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(0)
    x, others = rng.integers(0, 5000, (30, 20)).astype(dtypes[0]), rng.integers(0, 5000, 600).astype(dtypes[1])
    for a in (x, others):
        if a.dtype.kind == "f":
            a.reshape(-1)[:3] = np.nan, -0.0, np.inf
    same(lambda x, others: (np.isin(x, others), np.isin(x, others, invert=True)), x, others)


def test_isin_of_large_integers_of_both_kinds_is_exact() -> None:
    x, others = np.full(600, 2**53 + 1), np.full(600, 2**53, np.uint64)
    assert not np.asarray(kf.jit(np.isin)(x, others)).any()
    assert np.asarray(kf.jit(np.isin)(x, others + np.uint64(1))).all()
