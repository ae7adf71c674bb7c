"""Kernels read nothing outside of arrays: each here lies right before or right behind a page that may not be read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf

PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="protects pages by Linux's mprotect")


def guarded(shape: tuple[int, ...], dtype: Any, end: bool) -> np.ndarray:
    """Make an array of drawn numbers that ends (or begins) where a page that may not be read begins (or ends)."""
    protect = ctypes.CDLL(None).mprotect
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = -(-nbytes // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert protect(ctypes.c_void_p(base + page * PAGE), ctypes.c_size_t(PAGE), 0) == 0
    first = PAGE + (pages * PAGE - nbytes if end else 0)
    array = np.frombuffer(memory, dtype, int(np.prod(shape)), first).reshape(shape)
    array[:] = np.random.default_rng(0).uniform(0, 100, shape)
    return array


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("columns", [1, 2, 5, 8, 20])
@pytest.mark.parametrize("fn", [
    lambda x: np.pad(x, ((0, 0), (3, 3))).sum(1), lambda x: np.pad(x, ((0, 0), (3, 3))).max(1),
    lambda x: np.pad(x, ((2, 2), (2, 2))).sum(0), lambda x: np.pad(x[:, ::-2], ((0, 0), (1, 1))),
    lambda x: x[:, ::-1] * 2, lambda x: x[::-3].T * 2, lambda x: np.roll(x, 1, 1), lambda x: np.tanh(x + x[0]),
])  # fmt: skip
def test_what_is_padded_flipped_or_turned(fn: Callable[[Any], Any], columns: int, end: bool) -> None:
    for dtype in (np.int16, np.float32, np.float64):
        x = guarded((300, columns), dtype, end)
        if np.issubdtype(dtype, np.integer) and fn(x).dtype.kind == "f":
            continue
        np.testing.assert_allclose(np.asarray(kf.jit(fn)(x)), fn(x), rtol=1e-5)
