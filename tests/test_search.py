"""Choosing among arrays and finding places in sorted ones, as NumPy does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge.errors import InvalidParameter, ShapeMismatch, UnsupportedArgument

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


def test_interp() -> None:
    same(lambda x, a: (np.interp(x, a, a * a), np.interp(a, a, a), np.interp(x, a[:1], a[:1])), 3 * M, SORTED)
    same(lambda x, a: np.interp(x, a, a * a, left=-1.0, right=2), ODD, SORTED)
    same(lambda x: np.interp(x, SQUARES, SQUARES), np.float32(V))


def test_refusals() -> None:
    with pytest.raises(InvalidParameter, match="conditions of bool"):
        kf.jit(lambda x: np.select([x], [x]))(V)
    with pytest.raises(ShapeMismatch, match="2 conditions and 1 choices"):
        kf.jit(lambda x: np.select([x > 0, x > 1], [x]))(V)
    with pytest.raises(UnsupportedArgument, match="sort a before"):
        kf.jit(lambda x: np.searchsorted(x, x, sorter=np.arange(9)))(V)
    with pytest.raises(InvalidParameter, match="'left' or 'right'"):
        kf.jit(lambda x: np.searchsorted(x, x, "middle"))(V)
    with pytest.raises(ShapeMismatch, match="one extent"):
        kf.jit(lambda x: np.interp(x, x, x[1:]))(V)
