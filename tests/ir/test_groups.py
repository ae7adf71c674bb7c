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
