"""Joins of long graphs look at few items more than once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.ir import fuse


def test_chains_are_seldom_collected_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    part = fuse._Fuser.part

    def counted(self: Any, items: Any) -> Any:
        sizes.append(len(items))
        return part(self, items)

    def chain(x: Any) -> Any:
        for k in range(1000):
            x = x * np.float32(1 + k) + np.float32(k)
        return x

    monkeypatch.setattr(fuse._Fuser, "part", counted)
    assert len(kf.jit(chain).lower(np.ones(7, np.float32)).kernels) == 1
    assert sum(sizes) < 10 * 2000


def test_maps_that_follow_a_reduction_are_lowered_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would do, but a trial takes as long as all of the group before."""
    tried: list[int] = []
    sizes: list[int] = []
    buffers_of, part = fuse.buffers_of, fuse._Fuser.part

    def counted(found: Any) -> int:
        tried.append(len(found.nodes))
        return buffers_of(found)

    def collected(self: Any, items: Any) -> Any:
        sizes.append(len(items))
        return part(self, items)

    def chain(x: Any) -> Any:
        x = x.sum(-1)
        for k in range(40):
            x = np.float32(k) - x * np.float32(1 + k)
        return x

    monkeypatch.setattr(fuse, "buffers_of", counted)
    monkeypatch.setattr(fuse._Fuser, "part", collected)
    assert len(kf.jit(chain).lower(np.ones((20, 7), np.float32)).kernels) == 1
    assert sum(tried) < 100
    assert sum(sizes) < 10 * 80


@pytest.mark.parametrize("kept", [False, True])
def test_a_map_follows_one_result_that_nothing_else_needs(kept: bool) -> None:
    """``s[i]`` and ``s[j]`` are results of one reduction in two orders, which no nest makes for one element."""
    x = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)

    def both(x: Any) -> Any:
        s = x.sum(-1)
        rows, columns = s[:, None] * np.ones_like(x), s[None, :] * np.ones_like(x)
        made = np.exp(rows - columns * np.float32(0.5))
        return (made, rows, columns) if kept else made

    found = kf.jit(both)(x)
    for got, expected in zip(found if kept else [found], both(x) if kept else [both(x)], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4)
