"""The array namespace agrees with NumPy: values, shapes and dtypes, of traced and of concrete arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.methods import FUNCTIONS
from tests.numpy_calls import CASES, EMPTY, S8, SPECIAL, U8, B, K, M, V, X, Y

pytestmark = pytest.mark.usefixtures("reference")


def same(found: Any, expected: Any, rtol: float | None = None) -> None:
    """Compare trees of arrays, dtypes and shapes included."""
    if isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for f, e in zip(found, expected, strict=True):
            same(f, e, rtol)
        return
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if rtol is None:
        rtol = 2e-3 if expected.dtype == np.float16 else 1e-5 if expected.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=rtol)
    if expected.dtype.kind == "f" and np.size(expected):
        zero = (expected == 0) & (np.asarray(found) == 0)
        assert (np.signbit(np.asarray(found)) == np.signbit(expected))[zero].all()


UNARY_NAMES = (
    "absolute negative positive square sqrt cbrt exp exp2 expm1 log log2 log10 log1p sin cos tan arcsin arccos arctan "
    "sinh cosh tanh arcsinh arccosh arctanh floor ceil trunc rint sign isnan isinf isfinite signbit reciprocal deg2rad "
    "rad2deg radians degrees fabs logical_not sinc nan_to_num modf conjugate fix"
)
BINARY_NAMES = (
    "add subtract multiply divide true_divide floor_divide remainder fmod power maximum minimum fmax fmin arctan2 "
    "hypot copysign logaddexp logaddexp2 heaviside float_power equal not_equal less less_equal greater greater_equal "
    "logical_and logical_or logical_xor nextafter divmod isclose"
)
UNARY, BINARY = UNARY_NAMES.split(), BINARY_NAMES.split()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
class TestUfuncs:
    @pytest.mark.parametrize("name", UNARY)
    def test_unary(self, name: str) -> None:
        fn = getattr(np, name)
        same(kf.jit(fn)(Y), fn(Y))
        same(kf.jit(fn)(SPECIAL), fn(SPECIAL))
        same(kf.jit(lambda x: fn(x * 0.25))(X[::2, :, ::-1]), fn(X[::2, :, ::-1] * 0.25))

    @pytest.mark.parametrize("name", UNARY)
    @pytest.mark.parametrize(
        "x", [K, B, S8, U8, np.float16(0.5) + np.zeros(3, np.float16)], ids=["i64", "bool", "i8", "u8", "f16"]
    )
    def test_unary_dtypes(self, name: str, x: np.ndarray) -> None:
        fn = getattr(np, name)
        x = np.where(x == 0, 2, x).astype(x.dtype) if name == "reciprocal" and x.dtype.kind in "iu" else x
        try:
            expected = fn(x)
        except TypeError:
            with pytest.raises(TypeError):
                kf.jit(fn)(x)
            return
        same(kf.jit(fn)(x), expected, 2e-3 if x.dtype.itemsize < 4 else None)

    @pytest.mark.parametrize("name", BINARY)
    def test_binary(self, name: str) -> None:
        fn = getattr(np, name)
        same(kf.jit(fn)(Y, Y[:, ::-1]), fn(Y, Y[:, ::-1]))
        same(kf.jit(fn)(X, Y[0, 0]), fn(X, Y[0, 0]))
        x, y = np.meshgrid(SPECIAL, SPECIAL)
        if name not in ("power", "float_power"):
            same(kf.jit(fn)(x, y), fn(x, y))
        same(kf.jit(fn)(M, 0.5), fn(M, 0.5))
        same(kf.jit(lambda v: fn(2, v))(Y), fn(2, Y))

    @pytest.mark.parametrize(
        "name", [n for n in BINARY if n not in ("power", "isclose")] + ["bitwise_and", "left_shift", "ldexp"]
    )
    @pytest.mark.parametrize(
        "pair",
        [
            (K, 3),
            (S8, np.int16(3)),
            (U8, U8[::-1]),
            (K, np.float32(2)),
            (B, B[::-1]),
            (B, 2),
            (K.astype(np.int32), 2.0),
        ],
    )
    def test_binary_dtypes(self, name: str, pair: tuple[Any, Any]) -> None:
        fn = getattr(np, name)
        try:
            expected = fn(*pair)
        except TypeError:
            with pytest.raises(TypeError):
                kf.jit(fn)(*pair)
            return
        same(kf.jit(lambda x: fn(x, pair[1]))(pair[0]), expected, 2e-3)

    def test_python_numbers_are_weak(self) -> None:
        for number in (2, 2.5):
            same(kf.jit(lambda x, s: x * s + 1)(X, number), X * number + 1)
            same(kf.jit(lambda x, s: x + (s * 2 + 1))(X, number), X + (number * 2 + 1))
        same(kf.jit(lambda x, s: x + s * 2.5)(X, 2), X + 2 * 2.5)
        same(kf.jit(lambda x, s: x + np.sqrt(s))(X, 2.0), X + np.sqrt(2.0))
        same(kf.jit(lambda x, s: x + s)(U8, 2), U8 + 2)
        same(kf.jit(lambda x: x + np.float64(1))(X), X + np.float64(1))

    def test_number_out_of_range(self) -> None:
        with pytest.raises(OverflowError, match="the Python number 300 does not fit uint8"):
            kf.jit(lambda x: x + 300)(U8)
        same(
            kf.jit(lambda x: (x < 300, x == -1, x > -1, x > 300, x != 999))(U8),
            (U8 < 300, U8 == -1, U8 > -1, U8 > 300, U8 != 999),
        )
        with pytest.raises(ValueError, match="non-negative"):
            kf.jit(lambda x: x**-1)(K)

    def test_out_where_dtype(self) -> None:
        def f(x: Any) -> Any:
            out = np.zeros(5)
            np.add(x, 1, out=out)
            np.sqrt(np.abs(x), out=out, where=x > 0)
            return out, np.add(x, x, dtype=np.float32)

        expected = V + 1
        np.sqrt(np.abs(V), out=expected, where=V > 0)
        same(kf.jit(f)(V), (expected, np.add(V, V, dtype=np.float32)))
        with pytest.raises(errors.UnsupportedArgument, match=r"give out=, or use np\.where"):
            kf.jit(lambda x: np.sqrt(x, where=x > 0))(V)

    def test_methods(self) -> None:
        def f(x: Any) -> Any:
            a = np.zeros(3)
            np.add.at(a, np.array([0, 0, 2]), x[:3])
            return (
                np.add.reduce(x),
                np.multiply.accumulate(x),
                np.subtract.outer(x, x[:2]),
                np.maximum.reduce(x, axis=0, keepdims=True),
                a,
            )

        same(kf.jit(f)(V), f(V))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
def test_agrees(name: str) -> None:
    fn, args = CASES[name]
    same(kf.jit(fn)(*args), fn(*args))


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0), ()])
def test_eager(order: tuple[int, ...]) -> None:
    a = kf.asarray(X)
    found = kf.numpy.sum(a, axis=order)
    assert isinstance(found, kf.Array)
    same(found, X.sum(order))
    same(np.concatenate([a, a + 1]), np.concatenate([X, X + 1]))
    same(kf.numpy.add([1, 2], 3), np.add([1, 2], 3))
    same(np.stack([a, a], axis=1), np.stack([X, X], axis=1))
    same(kf.numpy.where(a > 0, a, 0.0), np.where(X > 0, X, 0.0))
    same(kf.numpy.logsumexp(a, axis=1), np.log(np.exp(X).sum(1)), 1e-5)


def test_logsumexp() -> None:
    big = np.array([[1e4, 1e4], [-np.inf, -np.inf], [np.inf, 1.0]])
    same(kf.numpy.logsumexp(big, axis=1), [1e4 + np.log(2), -np.inf, np.inf])


def test_creation() -> None:
    n = kf.numpy
    for name, args in {
        "arange": [(5,), (2, 9, 3), (0.5, 3, 0.5), (5, 0, -2), (0,), (10, 3)],
        "linspace": [(0, 1, 5), (2.0, 3.0, 4, False), (0, 1, 1), (0, 10, 3, True, False, int)],
        "eye": [(3,), (3, 4, 1), (2, 3, -1, np.int32)],
        "tri": [(3,), (3, 4, 1)],
        "identity": [(3,)],
        "zeros": [(3,), ((2, 3), np.int8)],
        "ones": [((2, 1),)],
        "full": [((2,), 7), (3, 2.5)],
    }.items():
        for a in args:
            same(getattr(n, name)(*a), getattr(np, name)(*a))
            same(kf.jit(lambda a=a, name=name: getattr(n, name)(*a))(), getattr(np, name)(*a))
    same(kf.jit(lambda a, b: n.linspace(a, b, 4))(V, V + 1), np.linspace(V, V + 1, 4))


def test_refusals() -> None:
    with pytest.raises(
        errors.UnsupportedFunction, match=r"np\.linalg\.eig is not supported in compiled functions: its results may"
    ):
        kf.jit(np.linalg.eig)(M)
    with pytest.raises(errors.UnsupportedFunction, match=r"np.nonzero .*depends on values; use np.where"):
        kf.jit(np.nonzero)(X)
    with pytest.raises(errors.UnsupportedFunction, match=r"np.fft.fftshift .*nearest that is: np\.left_shift"):
        kf.jit(np.fft.fftshift)(V)
    with pytest.raises(errors.ShapeMismatch, match=r"np.matmul: shapes \(4, 5\) and \(4, 5\)"):
        kf.jit(np.matmul)(M, M)
    with pytest.raises(errors.ShapeMismatch, match="at least one element along the axis"):
        kf.jit(np.max)(EMPTY)
    with pytest.raises(np.exceptions.AxisError):
        kf.jit(lambda x: x.sum(3))(X)
    with pytest.raises(errors.UnsupportedDtype, match="complex128"):
        kf.jit(np.exp)(np.ones(2, complex))
    with pytest.raises(TypeError, match="unexpected keyword"):
        kf.numpy.sum(X, axes=1)


def test_namespace() -> None:
    assert kf.numpy.pi == np.pi
    assert kf.numpy.newaxis is None
    assert kf.numpy.float32 is np.float32
    assert kf.numpy.finfo(np.float32).eps == np.finfo(np.float32).eps
    assert set(FUNCTIONS) <= set(dir(kf.numpy)) | {n for n in FUNCTIONS if "." in n}
    same(kf.numpy.linalg.norm(kf.asarray(V)), np.linalg.norm(V))
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = kf.numpy.no_such_thing


def test_sigmoid_is_stable_with_its_derivative() -> None:
    x = np.array([-100, -3, 0, 3, 100], np.float32)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(kf.jit(kf.numpy.sigmoid)(x), exact, rtol=1e-6, atol=1e-44)
    slope = kf.grad(lambda x: kf.numpy.sigmoid(x).sum())(x)
    np.testing.assert_allclose(slope, exact * (1 - exact), rtol=1e-5, atol=1e-43)


def test_dtype_strings_mean_what_numpy_says() -> None:
    assert kf.jit(lambda x: x.astype("i8"))(np.array([300.0])).dtype == np.int64
    assert kf.asarray([1], dtype="u8").dtype == np.uint64
    assert kf.asarray([1], dtype="f32").dtype == np.float32


def test_integers_are_added_to_bools_as_integers(device: str) -> None:
    def fn(x: Any, v: Any) -> Any:
        y = x.copy()
        np.add.at(y, np.array([0, 1, 1]), v)
        return y

    x = np.array([True, True, False])
    for v in (np.int8(-1), np.array([-1, 1, -1]), 2, True):
        np.testing.assert_array_equal(kf.jit(fn)(x, v), fn(x, v))


@pytest.mark.parametrize("value", [1, 1.5, True, np.uint8(3), np.array([-128, 5], np.int8), np.float32(2.5)], ids=str)
def test_subtract_at(value: Any, device: str) -> None:
    def fn(x: Any, v: Any) -> Any:
        y = x.copy()
        np.subtract.at(y, np.array([0, 0]), v)
        return y

    for x in (np.ones(2), *(np.ones(2, d) for d in (np.int64, np.int8) if np.asarray(value).dtype.kind != "f")):
        np.testing.assert_array_equal(kf.jit(fn)(x, value), fn(x, value))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.ravel("F"),
        lambda x: x.flatten("F"),
        lambda x: x.reshape(6, 4, order="F"),
        lambda x: np.reshape(x, (-1, 2), order="F"),
        lambda x: np.ravel(x.T, order="F"),
    ],
)
def test_first_axes_first(fn: Any) -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(kf.jit(fn)(x), fn(x))
    np.testing.assert_array_equal(kf.grad(lambda x: (fn(x) ** 2).sum())(x), 2 * x)
