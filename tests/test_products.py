"""Products of matrices of random shapes, layouts and dtypes against float64, and how errors grow with their depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kernelforge as kf
from kernelforge.ir.kernel import Alloc

BF16 = np.dtype(ml_dtypes.bfloat16)
UNIT = {np.dtype(np.float64): 2.0**-53, np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11, BF16: 2.0**-8}
"""The rounding unit of each dtype. Sums of narrow floats are made in float32 and rounded once."""

EDGES = [0, 1, 2, 3, 5, 7, 15, 16, 17, 31, 47, 48, 49, 64, 65, 97, 130]
DEVICES = [d for d in kf.devices() if d != "reference"]


def _laid_out(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Make an array in one of the layouts that NumPy's views have."""
    match rng.integers(5):
        case 0:
            return rng.normal(size=shape).astype(dtype)
        case 1:
            return np.swapaxes(rng.normal(size=(*shape[:-2], shape[-1], shape[-2])).astype(dtype), -1, -2)
        case 2:
            wide = rng.normal(size=(*shape[:-1], 2 * shape[-1] + 1)).astype(dtype)
            return wide[..., 1::2] if shape[-1] else wide[..., :0]
        case 3:
            return rng.normal(size=shape).astype(dtype)[..., ::-1]
        case _:
            return np.broadcast_to(rng.normal(size=(*shape[:-2], 1, shape[-1])).astype(dtype), shape)


def _close(found: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Hold a product against float64: each sum of k products may be off by 2 k units of what it adds up, and is rounded
    to its dtype.
    """
    unit = UNIT[x.dtype]
    a, b = x.astype(np.float64), y.astype(np.float64)
    inner = unit if x.dtype.itemsize > 2 else UNIT[np.dtype(np.float32)]
    bound = 2 * x.shape[-1] * inner * (np.abs(a) @ np.abs(b)) + 2 * unit * np.abs(a @ b) + 1e-7 * (inner != unit)
    assert found.dtype == x.dtype
    error = np.abs(np.asarray(found).astype(np.float64) - a @ b)
    assert error.shape == bound.shape
    assert np.all(error <= bound + 1e-300), float((error - bound).max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_and_layouts(seed: int, device: str) -> None:
    rng = np.random.default_rng(seed)
    dtype = [np.dtype(np.float32), np.dtype(np.float64), BF16, np.dtype(np.float16)][seed % 4]
    m, k, n = (int(rng.choice(EDGES)) for _ in range(3))
    lead = ((), (3,), (2, 2))[int(rng.integers(3))]
    x, y = _laid_out(rng, (*lead, m, k), dtype), _laid_out(rng, (*lead[: int(rng.integers(3))], k, n), dtype)
    if y.ndim > x.ndim or y.shape[:-2] != x.shape[:-2]:
        y = y.reshape((-1, k, n))[0] if y.size else np.zeros((k, n), dtype)
    try:
        with kf.default_device(device):
            found = kf.jit(lambda x, y: x @ y)(x, y)
    except kf.errors.UnsupportedOnDevice:
        pytest.skip(f"{device} has no {dtype}")
    _close(found, x, y)


PRODUCTS: list[tuple[Callable[[Any, Any], Any], str]] = [
    (lambda x, y: x @ y, "nn"),
    (lambda x, y: x.T @ y, "tn"),
    (lambda x, y: x @ y.T, "nt"),
    (lambda x, y: x.T @ y.T, "tt"),
]


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BF16], ids=str)
@pytest.mark.parametrize(("fn", "order"), PRODUCTS, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize(
    "size",
    [(37, 65, 70), (70, 300, 2), (300, 3, 3), (9, 8, 8), (64, 64, 64), (5, 33, 130), (100, 2050, 40), (8, 3, 128)],
)
def test_transposed_operands(fn: Any, order: str, size: tuple[int, int, int], dtype: Any) -> None:
    m, k, n = size
    rng = np.random.default_rng(size)
    x, y = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    given = [np.ascontiguousarray(a.T) if t == "t" else a for a, t in zip((x, y), order, strict=True)]
    _close(kf.jit(fn)(*given), x, y)


@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 70), (70, 33)),
        ((33, 70), (70, 1)),
        ((70,), (70, 33)),
        ((300, 4), (4, 5)),
        ((1500,), (1500, 2100)),
        ((8, 300), (300, 5000)),
        ((5000, 300), (300, 8)),
        ((2, 1000), (1000, 1030)),
    ],
)
def test_vectors_and_thin_matrices(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=s).astype(np.float32) for s in shapes)
    _close(kf.jit(lambda x, y: x @ y)(x, y), x, y)


def test_error_grows_slowly_with_depth() -> None:
    """Sums are made in blocks: their errors are below those of one sum after another, by the root of the blocks."""
    rng = np.random.default_rng(6)
    for depth in (1 << 10, 1 << 13, 1 << 16):
        x, y = (rng.uniform(0, 1, s).astype(np.float32) for s in ((12, depth), (depth, 64)))
        exact = x.astype(np.float64) @ y
        error = np.abs(np.asarray(kf.jit(lambda x, y: x @ y)(x, y)) - exact) / exact
        assert error.max() < 2.0**-24 * 40, depth


def test_special_values() -> None:
    x = np.array([[np.nan, 1.0, 2.0], [np.inf, 1.0, 0.0], [1.0, -0.0, 0.0]] * 8, np.float32)
    y = np.ones((3, 64), np.float32)
    np.testing.assert_array_equal(kf.jit(lambda x, y: x @ y)(x, y), x @ y)
    big = x.astype(BF16), y.astype(BF16)
    np.testing.assert_array_equal(np.asarray(kf.jit(lambda x, y: x @ y)(*big)).astype("f"), x @ y)


def test_products_of_booleans_do_not_count_modulo_256() -> None:
    x, y = np.ones((5, 512), bool), np.ones((512, 7), bool)
    assert np.asarray(kf.jit(lambda x, y: x @ y)(x, y)).all()


@pytest.mark.parametrize(
    ("spec", "left", "right"),
    [
        ("btm,btn->mn", (1001, 17, 8), (1001, 17, 9)),
        ("btm,tbn->mn", (5003, 5, 8), (5, 5003, 8)),
        ("bmt,btn->mn", (5003, 8, 5), (5003, 5, 8)),
        ("mk,kn->mn", (8, 16385), (16385, 8)),
        ("km,kn->mn", (16385, 3), (16385, 7)),
    ],
)
@pytest.mark.parametrize("same", [False, True])
def test_threads_share_long_sums_unevenly(spec: str, left: tuple[int, ...], right: tuple[int, ...], same: bool) -> None:
    """Over one axis or two, also of what is the ``same`` along the longest."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in (left, right))
    if same:
        axis = left.index(max(left))
        x = np.broadcast_to(np.take(x, [0], axis), left)
    got = kf.jit(lambda x, y: np.einsum(spec, x, y))(x, y)
    np.testing.assert_allclose(got, np.einsum(spec, x.astype(float), y.astype(float)), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_threads_read_whole_rows_of_a_long_matrix(device: str) -> None:
    """A vector times a matrix, and the transposed matrix times a vector, as in the gradient of a linear model."""
    rng = np.random.default_rng(3)
    for rows, columns, whole in ((2600, 230, True), (20000, 32, False), (600, 900, False)):
        m, v, b = rng.normal(size=(rows, columns)), rng.normal(size=rows), rng.normal(size=columns)
        for fn in (lambda m, v, b: np.tanh(v @ m * 0.01 + b), lambda m, v, b: m.T @ v + b):
            with kf.default_device(device):
                made = kf.jit(fn)
                (kernel,) = made.lower(m, v, b).kernels
                np.testing.assert_allclose(np.asarray(made(m, v, b)), fn(m, v, b), rtol=1e-12, atol=1e-11)
            if device == "cpu":
                assert isinstance(kernel.naive.body[0], Alloc) == whole, "rows of partial results"
