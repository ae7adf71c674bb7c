"""Dtypes of results, where NumPy's rule is another one than a function's usual one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf

RNG = np.random.default_rng(5)


def agree(fn: Callable[..., Any], *args: Any) -> None:
    """Compare values, shapes and dtypes of a function that returns a tuple with NumPy's."""
    for k, (found, expected) in enumerate(zip(kf.jit(fn)(*args), fn(*args), strict=True)):
        expected = np.asarray(expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), k
        np.testing.assert_array_equal(np.asarray(found), expected, err_msg=str(k))


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i8", "u8"])
def test_integers_and_bools(dtype: str) -> None:
    low, high = (0, 2) if dtype == "?" else (0, 100) if dtype[0] == "u" else (-100, 100)
    x = RNG.integers(low, high, (5, 4)).astype(dtype)

    def added(x: Any) -> Any:
        y = x.copy()
        np.add.at(y, np.array([0, 0]), 1)
        return y

    agree(
        lambda x: (
            np.tril(x), np.triu(x), np.diag(x[0]), np.diagflat(x[0]),
            *(ufunc.reduce(x, axis) for axis in (0, 1) for ufunc in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)),
            np.bitwise_or.reduce(x, axis=None), np.bitwise_and.reduce(x[:0]), np.logical_xor.reduce(x),
            np.bitwise_and.reduce(x, where=x > 0, axis=1, keepdims=True), np.bitwise_xor.reduce(x, initial=1),
            np.maximum.reduce(x, axis=None), np.add.reduce(x, axis=None), x.max(where=x > 0, initial=0),
            np.einsum("ij->j", x), np.vecdot(x, x), np.convolve(x[0], x[1]), added(x), np.round(x), np.angle(x[0] > 0),
        ),
        x,
    )  # fmt: skip


def test_choices_and_lines_are_as_narrow_as_their_operands() -> None:
    for dtype in ("f2", "f4", "f8"):
        x = np.array([-1.0, 0, 2]).astype(dtype)
        agree(lambda x: (np.select([x > 0, x < 0], [x, 1.5], 2), np.linspace(0, x, 3), np.linspace(x, 1, 2)), x)
    agree(lambda n: (np.linspace(n, 3, 3),), np.int32(1))
    made = kf.jit(lambda x: (np.geomspace(x, 8, 4), np.geomspace(x, 8, 4, dtype=np.float32)))(np.float32(1))
    assert [x.dtype for x in made] == [np.float64, np.float32]


def test_types_of_traced_arrays() -> None:
    def fn(x: Any, y: Any) -> Any:
        return np.zeros(2, np.result_type(x, y)), np.zeros(2, np.result_type(x, 1.0)), np.zeros(2, np.result_type(y, 1))

    agree(fn, np.ones(2, "f4"), np.ones(2, "i8"))


LAST = np.int64(2**63 - 1)
WRAPPING: dict[str, Callable[[Any, Any], tuple[Any, ...]]] = {
    "compared": lambda x, k: (np.where(k + LAST < 0, x, -x), np.where(k + LAST == -(2**63), x, -x)),
    "beside data": lambda x, k: (np.where((LAST - 3 * k)[:, None] + np.arange(40) < 0, x[:, None], -x[:, None]),),
    "powers": lambda x, k: (np.where(k**15 < 0, x, -x), x[k] * (k * LAST * 3 < 0)),
    "negative": lambda x, k: (np.where(-(k - LAST - 2) > 0, x, -x),),
    "twice": lambda x, k: ((k + LAST) + LAST, x),
    "divided": lambda x, k: ((k + LAST) * 2 // 4, (k * LAST * 5) % 11),
    "parts": lambda x, k: tuple(part * np.int64(2**62) // 4 for part in (k % 7, k & 7, k // 7, k ^ 5, k | 9, x > 3)),
    "bounded": lambda x, k: (np.maximum(k + LAST, 5), np.minimum(k + LAST, 5), abs(k - LAST - 1)),
    "summed": lambda x, k: (np.sum(np.where(k + LAST < 0, x, 0)),),
}
"""Functions of floats and their places, of integers beyond the last one."""


@pytest.mark.parametrize("name", WRAPPING)
def test_counters_wrap(name: str, device: str) -> None:
    with kf.default_device(device), np.errstate(over="ignore"):
        agree(lambda x: WRAPPING[name](x, np.arange(40)), np.arange(1.0, 41.0))


@pytest.mark.parametrize("base", [2, -2, 3, 0, 1, -1])
def test_powers_of_a_constant_wrap(base: int) -> None:
    agree(lambda n: (base**n, np.full(70, base) ** n), np.arange(70))


@pytest.mark.parametrize("signed", ["i1", "i4", "i8"])
def test_unsigned_and_narrow_signed_compare(signed: str) -> None:
    x, y = np.array([-1, 0, 1, 2], signed), np.array([2**64 - 1, 0, 2, 1], np.uint64)
    agree(lambda x, y: (x < y, y < x, x >= y, x == y, x != y), x, y)


def test_nothing_is_read_of_empty_arrays() -> None:
    with kf.default_device("reference"):
        agree(
            lambda x: (x.sum(0, keepdims=True).mean(0), (x.sum(0) * 0.5).astype("f8").sum()), np.zeros((4, 3, 0), "f4")
        )


@kf.jit
def doubled(x: Any) -> Any:
    return 2 * x


def plain(x: Any, n: int) -> Any:
    return x + n


def square(x: Any) -> Any:
    return (x * x).sum()


@kf.grad
def twice(x: Any) -> Any:
    return (x * x).sum()


@kf.custom_vjp
def ruled(x: Any) -> Any:
    return x * x


def ruled_fwd(x: Any) -> Any:
    return x * x, x


def ruled_bwd(x: Any, ct: Any) -> Any:
    return (3 * ct * x,)


ruled.defvjp(ruled_fwd, ruled_bwd)


@pytest.mark.parametrize(
    "made",
    [
        kf.jit(kf.value_and_grad(square)), kf.grad(square, has_aux=False), kf.jacfwd(square), kf.jacrev(square, (0,)),
        kf.hessian(square), kf.checkpoint(square), kf.jit(kf.grad(kf.checkpoint(square))), twice, ruled,
    ],
)  # fmt: skip
def test_transforms_are_pickled_and_copied(made: Any) -> None:
    x = np.array([1.0, 2.0, 3.0])
    expected = optree.tree_leaves(made(x))
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        for found, wanted in zip(optree.tree_leaves(other(x)), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def test_rules_are_pickled() -> None:
    made = kf.custom_vjp(square)
    made.defvjp(ruled_fwd, ruled_bwd)
    other = pickle.loads(pickle.dumps(made))
    assert other._rules == (ruled_fwd, ruled_bwd)
    assert pickle.loads(pickle.dumps(ruled)) is ruled
    assert pickle.loads(pickle.dumps(twice)) is twice


class Model:
    scale = 2.0

    @kf.checkpoint
    def kept(self, x: Any) -> Any:
        return self.scale * x


def test_transforms_of_methods() -> None:
    assert float(np.asarray(Model().kept(2.0))) == 4
    assert Model.kept(Model(), 2.0) == 4


def test_jitted_functions_are_pickled_and_copied() -> None:
    assert pickle.loads(pickle.dumps(doubled)) is doubled
    assert copy.copy(doubled) is copy.deepcopy(doubled) is doubled
    made = pickle.loads(pickle.dumps(kf.jit(plain, static_argnums=1)))
    assert float(made(1.0, 2)) == 3
    assert made.__wrapped__ is plain


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: x * 1j, TypeError, "dtype complex128 is not supported"),
        (lambda x: x.nonzero(), AttributeError, "Tracer has no nonzero, which NumPy's arrays have: "),
        (lambda x: x.strides, AttributeError, "Tracer has no strides, which NumPy's arrays have: compute it outside"),
        (lambda x: x.colour + 1, AttributeError, "'Tracer' object has no attribute 'colour'"),
        (lambda x: np.fft.fft(x, 3), TypeError, r"(?s)np.fft.fft is not supported.*test_numpy_dtypes.py"),
        (lambda x: kf.scan(lambda c, _: (c, c), x, None, x[0]), TypeError, "needs the value of a traced array"),
        (lambda x: kf.scan(lambda c, _: (c, c), x, None, -1), ValueError, "xs=None has length=-1"),
        (lambda x: kf.grad(np.sum, "x")(x * 2), ValueError, "grad: argnums='x' is not valid"),
        (lambda x: kf.jit(3 if x.ndim else 4), ValueError, "jit: fn=3 is not valid; expected a function"),
    ],
)  # fmt: skip
def test_errors(call: Callable[..., Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        kf.jit(call)(np.arange(3.0))


def test_parts_that_only_complex_numbers_have() -> None:
    agree(lambda x: (x.imag, x.real, x.flat[2], np.sum(list(x.flat))), np.arange(4.0).reshape(2, 2))


@pytest.mark.parametrize("device", kf.devices())
def test_narrow_sums_of_powers_keep_what_is_small(device: str) -> None:
    x, y = np.array([-1.199, -1, 3], np.float16), np.array([-0.8076, -1, 2], np.float16)
    with kf.default_device(device):
        found = np.asarray(kf.jit(np.logaddexp2)(x, y))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, np.logaddexp2(x, y), rtol=1e-3, atol=1e-6)


def test_every_ufunc_takes_a_dtype() -> None:
    def fn(x: Any, n: Any) -> Any:
        return (
            np.square(x, dtype=np.float64), np.reciprocal(n, dtype=np.float32), np.fabs(n, dtype="f8"),
            np.deg2rad(x, dtype=float), np.positive(n, dtype=np.int64), np.conjugate(n, dtype="f4"),
            np.heaviside(x, 0.5, dtype="f8"), np.fmax(n, 2, dtype=np.float64), np.gcd(n, 4, dtype="i8"),
            np.spacing(x, dtype="f8"), *np.divmod(n, 2, dtype="f4"), *np.modf(x, dtype="f8"), np.bitwise_count(n),
            np.fmin.outer(x, n, dtype="f8"), np.logical_and(x, n, dtype=bool),
        )  # fmt: skip

    agree(fn, np.array([0.1, -2.5, 3], np.float32), np.array([3, 5, -6], np.int16))
    with pytest.raises(TypeError):
        kf.jit(lambda x: np.square(x, dtype=np.int32))(np.ones(3))


def test_out_is_cast_to_as_casting_says() -> None:
    def fn(x: Any) -> Any:
        a, b, c, d = (x.copy() for _ in range(4))
        np.multiply(a, 0.5, out=a, casting="unsafe")
        np.clip(b * 1.75, 0, 20.5, out=b, casting="unsafe")
        np.copyto(c, x * 0.75, casting="unsafe", where=x > 3)
        np.add(d, 1.5, d, casting="unsafe", where=x > 3)
        return a, b, c, d

    x = np.array([1, 2, 30, 7], np.uint8)
    agree(fn, x)
    for casting in ("same_kind", "safe", "no"):
        with pytest.raises(TypeError):
            kf.jit(lambda x, casting=casting: np.multiply(x, 0.5, out=np.zeros(4, np.uint8), casting=casting))(x)
