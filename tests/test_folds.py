"""What ufuncs make of many elements, one after the other: ``reduce``, ``accumulate``, ``reduceat`` and ``at``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge import errors

RNG = np.random.default_rng(9)
FLOATS = "subtract divide hypot logaddexp2 copysign fmod remainder heaviside float_power nextafter fmax logaddexp"
INTEGERS = "subtract floor_divide remainder gcd lcm left_shift power bitwise_xor minimum logical_and multiply"
X = RNG.uniform(0.3, 2, (3, 2, 4))
MASK = RNG.integers(0, 2, X.shape).astype(bool)


def agree(fn: Callable[..., Any], *args: Any) -> None:
    with np.errstate(all="ignore"):
        expected = optree.tree_leaves(fn(*args))
    for k, (found, wanted) in enumerate(zip(optree.tree_leaves(kf.jit(fn)(*args)), expected, strict=True)):
        wanted = np.asarray(wanted)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), k
        tol = {2: 4e-3, 4: 1e-5}.get(wanted.dtype.itemsize, 1e-12) if wanted.dtype.kind == "f" else 0
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=tol, atol=tol, err_msg=str(k))


def folds(ufunc: np.ufunc, x: Any, most: int = 1) -> Any:
    """Call what folds elements with the arguments that there are."""

    def at(*values: Any) -> Any:
        y = x.copy()
        ufunc.at(y, ([0, 2, 0, 0], slice(None), [1, 1, 0, 1]), *values)
        return y

    return (
        ufunc.reduce(x), ufunc.reduce(x, 1), ufunc.reduce(x, -1, keepdims=True), ufunc.reduce(x, 0, initial=1),
        ufunc.reduce(x[:1]), ufunc.reduce(x, 0, where=MASK, initial=1), ufunc.reduce(x[0, 0]), ufunc.reduce(x, ()),
        ufunc.accumulate(x), ufunc.accumulate(x, -1), ufunc.accumulate(x[:0]), ufunc.accumulate(x[:1]),
        ufunc.reduceat(x, [0, 2, 1]), ufunc.reduceat(x, [3, 0, 0, 2], axis=2), ufunc.reduceat(x, []),
        at(most), at(x[1, 0, :2]),
    )  # fmt: skip


@pytest.mark.parametrize("name", FLOATS.split())
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_of_floats(name: str, dtype: str) -> None:
    with kf.default_device("reference"):
        agree(lambda x: folds(getattr(np, name), x), X.astype(dtype))


@pytest.mark.parametrize("name", INTEGERS.split())
@pytest.mark.parametrize("dtype", ["u1", "i4"])
def test_of_integers(name: str, dtype: str) -> None:
    with kf.default_device("reference"):
        agree(lambda x: folds(getattr(np, name), x), (3 * X + 1).astype(dtype))


def test_of_bools_and_in_other_dtypes() -> None:
    def fn(x: Any, b: Any) -> Any:
        return (
            np.equal.reduce(b), np.not_equal.accumulate(b, 1), np.greater.reduceat(b, [0, 1], 2),
            np.maximum.accumulate(x, dtype=np.float64), np.hypot.reduce(x, (0, 2), float), np.hypot.reduce(x, None),
            np.logical_and.reduce(x, initial=0), np.logical_or.reduce(b, 1, where=b, initial=False),
            np.bitwise_or.reduce(b, dtype=bool), np.subtract.reduce(b, dtype=np.int16), np.hypot.reduce(x[:0]),
        )  # fmt: skip

    agree(fn, X.astype(np.float32), MASK)


def test_on_devices(device: str) -> None:
    agree(lambda x: folds(np.hypot, x), X)


def test_at_computes_in_the_dtype_of_both() -> None:
    def fn(u: Any, v: Any, i: Any) -> Any:
        made = []
        for ufunc, value in ((np.maximum, -3), (np.minimum, 300), (np.multiply, 1.5), (np.maximum, v), (np.add, v)):
            y = u.copy()
            ufunc.at(y, i, value)
            made.append(y)
        y, z, b = u.copy(), np.ones(3), u > 3
        np.negative.at(y, [0, 0, 1])
        np.divide.at(z, i, 2.0)
        np.subtract.at(b, [0, 0], 1)
        return made, y, z, b

    agree(fn, np.array([7, 100, 3], np.uint8), np.array([-1, 200, 300, 5]), np.array([0, 1, -1, 0]))


def test_their_derivatives() -> None:
    x = X[:, 0]
    for fn, expected in (
        (lambda x: np.hypot.reduce(x, 0).sum(), x / np.sqrt((x * x).sum(0))),
        (lambda x: np.subtract.reduceat(x, [0, 1], 0)[1].sum(), np.array([[0.0], [1], [-1]]) + 0 * x),
        (lambda x: np.divide.accumulate(x)[1].sum(), np.array([1 / x[1], -x[0] / x[1] ** 2, 0 * x[0]])),
    ):
        np.testing.assert_allclose(kf.grad(fn)(x), expected, rtol=1e-12)


def test_what_numpy_refuses() -> None:
    for fn in (
        lambda x: np.subtract.reduce(x, (0, 1)),
        lambda x: np.subtract.reduce(x[:0]),
        lambda x: np.subtract.reduce(x, where=x > 1),
        np.greater.reduce,
        np.left_shift.accumulate,
    ):
        with pytest.raises(errors.KernelforgeError, match=r"np\.ufunc"):
            kf.jit(fn)(X)
