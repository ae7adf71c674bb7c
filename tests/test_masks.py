"""Reading and writing by masks agrees with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

X = np.arange(60.0).reshape(3, 4, 5)
R = np.array([2, 0, -1])
B = X[:, :, 0] % 3 == 0


pytestmark = pytest.mark.usefixtures("reference")


def test_masks() -> None:
    def f(x: Any, row: Any) -> Any:
        a = x.copy()
        a[x > 30] = 0
        b = x.copy()
        b[x[:, :, 0] > 25] = row
        a[a < 5] = -a[0, 0, 1]
        return a, b

    for found, expected in zip(kf.jit(f)(X, X[0, 0]), f(X, X[0, 0]), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(errors.ShapeMismatch, match="one element for all places the mask selects"):
        kf.jit(lambda x: f(x, x[0]))(X)


def test_selected_by_a_traced_mask() -> None:
    def f(x: Any, y: Any) -> Any:
        a, m = x.copy(), x > 0
        a[m] *= 0.5
        a[m] += y[m] ** 2
        b = y.copy()
        b[y < 0] = -b[0]
        b[m] = np.sqrt(x[m]) + 1
        c = x[m]
        d = c
        c += 1
        rows = x.reshape(2, 5).copy()
        r = rows[:, 0] < 0
        rows[r] += rows[0]
        rows[r] = np.where(rows[r] > 0, rows[r], 7)
        return a, b, x[m].sum(), x[m].mean(), np.var(y[m]), d.sum(), rows, x[x > 50].sum(), (x[m] > 1).any()

    x = np.linspace(-2, 2, 10)
    for found, expected in zip(kf.jit(f)(x, x[::-1]), f(x, x[::-1]), strict=True):
        np.testing.assert_allclose(found, expected)

    def root(x: Any) -> Any:
        a = np.zeros(10)
        m = x > 0
        a[m] = np.sqrt(x[m])
        return a.sum()

    gradient = np.zeros(10)
    gradient[x > 0] = 0.5 / np.sqrt(x[x > 0])
    np.testing.assert_allclose(kf.grad(root)(x), gradient)


def test_a_mask_that_is_made_again_is_the_same() -> None:
    def f(x: Any, limit: Any) -> Any:
        a = x.copy()
        a[a > 0] = a[a > 0] ** -1.5
        a[np.isnan(a) | (a < limit)] = limit
        b = x.copy()
        b[np.abs(x - np.arange(10.0)) > 2] -= x[np.abs(x - np.arange(10.0)) > 2] * 3
        return a, b, (x[x > 0] * a[x > 0]).sum()

    x = np.linspace(-2, 2, 10)
    for found, expected in zip(kf.jit(f)(x, 0.5), f(x, 0.5), strict=True):
        np.testing.assert_allclose(found, expected)

    def changed(x: Any) -> Any:
        x = x.copy()
        old = x[x > 0]
        x[0] = -x[0]
        x[x > 0] = old
        return x

    with pytest.raises(errors.TracedMask, match="by the same mask alone"):
        kf.jit(changed)(x)


WRITES: dict[str, Callable[[Any, Any], None]] = {
    "column": lambda y, m: y.__setitem__((slice(None), m), 0.0),
    "of a row": lambda y, m: y.__setitem__((1, m), y[1, m] + 3),
    "of the last axis": lambda y, m: y.__setitem__((Ellipsis, m), y[..., m] * 2),
    "rows of a column": lambda y, m: y.__setitem__((m[:4], 2), 7.0),
    "rows of columns": lambda y, m: y.__setitem__((m[:4], slice(1, None, 2)), [5.0, 6.0, 7.0]),
    "a value for each row": lambda y, m: y.__setitem__((slice(None), m), np.arange(4.0)[:, None]),
    "backwards": lambda y, m: y.__setitem__((slice(None, None, -1), m), np.arange(4.0)[:, None]),
    "of a view": lambda y, m: y[1:, 1:].__setitem__((0, m[1:]), -1.0),
    "at": lambda y, m: np.add.at(y, (slice(1, 3), m), 2.0),
}


@pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1"])
@pytest.mark.parametrize("how", WRITES)
def test_traced_masks_beside_slices_and_integers(how: str, device: str) -> None:
    if device not in kf.devices():
        pytest.skip(f"no {device} here")

    def write(x: Any, m: Any) -> Any:
        y = x.copy()
        WRITES[how](y, m)
        powers = (y[:, m] ** 2).sum(), (abs(y)[:, m] ** 0.5).sum(), ((y > 1)[:, m] ** 2).sum()
        return y, *powers, y[2, m].mean()

    x, m = np.arange(24.0).reshape(4, 6) / 7, np.array([False, True, True, False, True, False])
    with kf.default_device(device):
        found = kf.jit(write)(x, m)
    for got, want in zip(found, write(x, m), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-14)


def test_traced_masks_apart_from_integers() -> None:
    """NumPy puts what is selected first then: one number goes everywhere, and values of rows are refused."""

    def write(x: Any, m: Any, v: Any) -> Any:
        y = x.copy()
        y[1, :, m] = v
        return y

    x, m = np.arange(24.0).reshape(2, 3, 4), np.array([True, False, False, True])
    np.testing.assert_array_equal(kf.jit(write)(x, m, -1.0), write(x, m, -1.0))
    with pytest.raises(errors.ShapeMismatch, match=r"one element for all places the mask selects"):
        kf.jit(write)(x, m, np.arange(3.0))


def test_traced_masks_that_do_not_fit() -> None:
    x, m = np.zeros((4, 6)), np.ones(6, bool)
    with pytest.raises(
        errors.InvalidIndex, match=r"a mask of shape \(6,\) .* one of the extents it selects from, \(4,\)"
    ):
        kf.jit(lambda x, m: x.at[m, 0].set(1.0))(x, m)
    with pytest.raises(errors.InvalidIndex, match=r"a traced mask beside an array .* no more than slices and integers"):
        kf.jit(lambda x, m: x.at[np.array([0, 1]), m].set(1.0))(x, m)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x[x > 0],
        lambda x: x[x > np.ones(5)] + x[x > np.zeros(5)],
        lambda x: x[x > 0] + x,
        lambda x: x[x > 0] + x[x > 1],
        lambda x: x[x > 0].max(),
        lambda x: x[x > 0].sum(axis=0),
        lambda x: x[x > 0][0],
        lambda x: len(x[x > 0]),
        lambda x: np.concatenate([x[x > 0], x]),
        lambda x: x.at[x > 0].set(x[x < 0]),
    ],
)
def test_number_of_selected_is_not_known(fn: Any) -> None:
    message = (
        r"x\[mask\] has a shape that depends on the values .* write np.where\(mask, x, 0\), or np.max\(x, where=mask"
    )
    with pytest.raises(errors.TracedMask, match=message):
        kf.jit(fn)(X[0, 0])
