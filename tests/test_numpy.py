"""The array namespace agrees with NumPy: values, shapes and dtypes, of traced and of concrete arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.methods import FUNCTIONS

RNG = np.random.default_rng(7)
X = RNG.uniform(-2, 2, (3, 4, 5)).astype(np.float32)
Y = RNG.uniform(0.25, 2, (3, 4, 5)).astype(np.float32)
M = RNG.uniform(-1, 1, (4, 5))
N = RNG.uniform(-1, 1, (5, 3))
V = RNG.uniform(-1, 1, 5)
K = RNG.integers(-5, 9, (4, 5))
B = RNG.integers(0, 2, (4, 5)).astype(bool)
S8 = np.array([100, 100, 100, -7], np.int8)
U8 = np.array([250, 3, 0], np.uint8)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5])
NANS = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan], [0.5, -2.0, 8.0]])
EMPTY = np.zeros((0, 3))


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    with kf.default_device("reference"):
        yield


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
        with pytest.raises(
            errors.UnsupportedFunction, match=r"np.hypot.reduce is not supported .* those that are: add"
        ):
            kf.jit(np.hypot.reduce)(V)


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "sum": (lambda x: (np.sum(x), np.sum(x, 1), x.sum((0, 2), keepdims=True), x.sum(-1, np.float64)), (X,)),
    "sum of small": (lambda x, u, b: (x.sum(), u.sum(), b.sum(0), x.cumsum(), u.prod()), (S8, U8, B)),
    "sum where": (
        lambda x: (
            np.sum(x, where=x > 0, initial=3.0),
            np.mean(x, 1, where=x > -0.9),
            np.max(x, initial=0, where=x < 0),
        ),
        (M,),
    ),
    "sum f16": (lambda x: (x.sum(), x.mean(), x.var()), (np.full(3000, 10, np.float16),)),
    "prod": (lambda x: (np.prod(x), x.prod(0)), (Y,)),
    "extrema": (lambda x: (x.max(), x.min(1), np.max(x, (0, 1)), np.ptp(x, 2), np.amax(x)), (X,)),
    "any all": (lambda x: (x.any(), (x > 0).all(1), np.any(x > 5, axis=(0, 1))), (X,)),
    "mean": (lambda x, i: (x.mean(), np.mean(x, (0, 1)), i.mean(0), np.average(x, 1)), (X, K)),
    "average": (lambda x, w: np.average(x, 1, w), (M, Y[0, 0])),
    "var": (lambda x: (x.var(), x.std(1), np.var(x, 2, ddof=1), np.std(x, keepdims=True)), (X,)),
    "var offset": (lambda x: x.var(), (np.float32(4096) + X,)),
    "arg": (lambda x: (x.argmax(), np.argmin(x, 1), np.argmax(x, 2, keepdims=True)), (X,)),
    "arg ties": (
        lambda x, n: (x.argmax(1), x.argmin(), n.argmax(1), n.argmin()),
        (np.array([[1, 3, 3], [2, 2, 0]]), NANS),
    ),
    "nan": (
        lambda x: (
            np.nansum(x, 1),
            np.nanprod(x),
            np.nanmax(x, 1),
            np.nanmin(x),
            np.nanmean(x, 0),
            np.nanvar(x),
            np.nanstd(x, 0),
        ),
        (NANS,),
    ),
    "count": (lambda x: (np.count_nonzero(x), np.count_nonzero(x, axis=1)), (K,)),
    "cumulate": (lambda x: (x.cumsum(), np.cumsum(x, 1), np.cumprod(x, -1), np.maximum.accumulate(x, 1)), (X,)),
    "empty": (
        lambda x: (x.sum(0), x.sum(1), x.prod(), np.any(x), x * 2, np.concatenate([x, x]), x.mean(1), x.T),
        (EMPTY,),
    ),
    "reshape": (
        lambda x: (x.reshape(12, 5), x.reshape(-1), x.reshape((2, -1)), x.ravel(), x.flatten(), np.reshape(x, (5, 12))),
        (X,),
    ),
    "transpose": (
        lambda x: (x.T, x.transpose(1, 0, 2), np.swapaxes(x, 0, -1), np.moveaxis(x, 0, -1), x.swapaxes(1, 2), x.mT),
        (X,),
    ),
    "axes": (
        lambda x: (
            np.expand_dims(x, (0, 2)),
            x[None].squeeze(0),
            np.squeeze(x[:, :1]),
            np.atleast_3d(x),
            np.rollaxis(x, 1),
        ),
        (M,),
    ),
    "broadcast": (lambda x, v: (np.broadcast_to(v, (2, 5)), np.broadcast_arrays(x, v)), (M, V)),
    "join": (
        lambda x, i: (
            np.concatenate([x, i]),
            np.concatenate([x, x], 1),
            np.concatenate([x, i], None),
            np.stack([x, x], 1),
            np.hstack([x, x]),
        ),
        (M, K),
    ),
    "join more": (
        lambda v: (
            np.vstack([v, v]),
            np.dstack([v, v]),
            np.column_stack([v, v]),
            np.hstack([v, v]),
            np.stack([v, v], -1),
        ),
        (V,),
    ),
    "split": (
        lambda x: (
            np.split(x, 2),
            np.array_split(x, 3, 1),
            np.split(x, [1, 3]),
            np.hsplit(x, 5),
            np.array_split(x, [2, 9], 0),
        ),
        (M,),
    ),
    "tile": (
        lambda x: (
            np.tile(x, 2),
            np.tile(x, (2, 1, 3)),
            np.repeat(x, 2),
            np.repeat(x, 3, 1),
            np.repeat(x, [1, 0, 2, 1], 0),
        ),
        (M,),
    ),
    "flip": (
        lambda x: (np.flip(x), np.flip(x, 1), np.fliplr(x), np.flipud(x), np.rot90(x), np.rot90(x, 2), np.rot90(x, 3)),
        (M,),
    ),
    "roll": (lambda x: (np.roll(x, 3), np.roll(x, -2, 1), np.roll(x, (1, 2), (0, 1)), np.roll(x, 1, (0, 1))), (M,)),
    "pad": (
        lambda x: (
            [np.pad(x, ((1, 2), (0, 3)), mode=m) for m in ("constant", "edge", "reflect", "wrap", "symmetric")]
            + [np.pad(x, 7, mode="reflect"), np.pad(x, (1, 9), mode="wrap"), np.pad(x, 1, constant_values=2.5)]
        ),
        (M,),
    ),
    "triangles": (lambda x: (np.tril(x), np.triu(x, 1), np.tril(x, -1), np.triu(x[0]), np.tril(x, 2)), (M,)),
    "diagonal": (
        lambda x, v: (
            np.diag(x),
            np.diagonal(x, 1),
            np.diag(v),
            np.diag(v, -2),
            np.trace(x),
            np.diagonal(x, -3),
            np.diagonal(x, 9),
        ),
        (M, V),
    ),
    "diagonal 3": (lambda x: (np.diagonal(x, 0, 0, 2), np.trace(x, 1, 1, 2), x.diagonal(-1, 2, 1)), (X,)),
    "meshgrid": (
        lambda v, w: (np.meshgrid(v, w), np.meshgrid(v, w, indexing="ij"), np.meshgrid(v, w, sparse=True)),
        (V, Y[0, :3, 0]),
    ),
    "windows": (
        lambda x: (
            np.lib.stride_tricks.sliding_window_view(x, 3, 1),
            np.lib.stride_tricks.sliding_window_view(x, (2, 2)),
        ),
        (M,),
    ),
    "like": (
        lambda x: (np.zeros_like(x), np.ones_like(x, dtype=np.int32), np.full_like(x, 3), np.ones_like(x, shape=(2,))),
        (M,),
    ),
    "take": (
        lambda x, i: (
            np.take(x, i, 0),
            np.take(x, [1, 2], axis=1),
            x.take(3),
            np.take(x, i, 1, mode="wrap"),
            np.take(x, i, 1, mode="clip"),
        ),
        (M, K % 4),
    ),
    "along": (lambda x, i: (np.take_along_axis(x, i, 1), np.take_along_axis(x, i[:1], 0)), (M, K % 4)),
    "where": (lambda x, i: (np.where(x > 0, x, 0), np.where(i > 2, i, x), np.where(x[0] > 0, 1, 2.5)), (M, K)),
    "clip": (lambda x, i: (np.clip(x, -0.5, 0.5), x.clip(0), np.clip(i, None, 3), np.clip(x, x[0], 1)), (M, K)),
    "round": (lambda x, i: (np.round(x, 2), x.round(), np.round(i, -1), np.around(x * 100, -1)), (M, K)),
    "close": (
        lambda x: (np.allclose(x, x + 1e-9), np.isclose(x, x + 1e-3), np.array_equal(x, x), np.array_equal(x, x[0])),
        (M,),
    ),
    "diff": (
        lambda x: (
            np.diff(x),
            np.diff(x, 2, 0),
            np.diff(x > 0),
            np.diff(x, prepend=0.0),
            np.gradient(x),
            np.gradient(x, 0.5, axis=1),
        ),
        (M,),
    ),
    "trapezoid": (lambda x, v: (np.trapezoid(x), np.trapezoid(x, v), np.trapezoid(x, dx=0.5, axis=0)), (M, np.sort(V))),
    "convolve": (
        lambda v, w: [np.convolve(a, b, m) for m in ("full", "same", "valid") for a, b in ((v, w), (w, v), (v, v))],
        (V, Y[0, :2, 0]),
    ),
    "correlate": (
        lambda v, w: [np.correlate(a, b, m) for m in ("full", "same", "valid") for a, b in ((v, w), (w, v))],
        (V, Y[0, :2, 0]),
    ),
    "matmul": (lambda m, n, v: (m @ n, v @ n, m @ v, v @ v, np.matmul(m, n), m[None] @ n[None, None]), (M, N, V)),
    "matmul batch": (lambda x, n: (x @ n, x @ x.mT, x[:1] @ x.mT, n.T @ x.mT), (X, N)),
    "matmul ints": (lambda i, b: (i @ i.T, b @ b.T, (i.astype(np.int8) @ i.T.astype(np.int8))), (K, B)),
    "dot": (
        lambda m, n, v, x: (
            np.dot(m, n),
            v.dot(v),
            np.dot(x, n),
            np.dot(m, 2.0),
            np.vdot(m, m),
            np.inner(m, m),
            np.outer(v, v),
        ),
        (M, N, V, X),
    ),
    "tensordot": (
        lambda x, m: (
            np.tensordot(x, m, ([1, 2], [0, 1])),
            np.tensordot(x, m.T, 1),
            np.tensordot(m, m, 0),
            np.tensordot(x, x, 3),
        ),
        (X, M),
    ),
    "einsum": (
        lambda x, m, n, v: [
            np.einsum("ij,jk->ik", m, n),
            np.einsum("ij,jk", m, n),
            np.einsum("...ij,jk->...ik", x, n),
            np.einsum("bij->b", x),
            np.einsum("ij->ji", m),
            np.einsum("ij,ij->", m, m),
            np.einsum("i,j->ij", v, v),
            np.einsum("ij,jk,k->i", m, n, n[0]),
            np.einsum("bij,bkj->bik", x, x),
            np.einsum("ii->i", n[:3]),
            np.einsum("ii", n[:3]),
            np.einsum("iij->j", x[:, :3]),
            np.einsum("bij,ij,j->bi", x, m, v),
            np.einsum("i...->...", m),
            np.einsum("ba", m),
            np.einsum("ij,kl->", m, n),
        ],
        (X, M, N, V),
    ),
    "kron cross": (
        lambda m, n: (np.kron(m, n), np.kron(m[0], n), np.cross(n, n[::-1]), np.cross(n.T, n.T[::-1], axis=0)),
        (M, N),
    ),
    "norm": (
        lambda x, v: (
            [
                np.linalg.norm(x),
                *(np.linalg.norm(v, o) for o in (1, 2, 0, 3, np.inf, -np.inf)),
                np.linalg.norm(x, axis=1),
            ]
            + [np.linalg.norm(x, o) for o in ("fro", 1, -1, np.inf, -np.inf)]
            + [np.linalg.norm(x, axis=(0, 1), keepdims=True)]
        ),
        (M, V),
    ),
    "made": (
        lambda x: (
            np.array([x[0], x[1] * 2, 3.0]),
            np.array([[x[0], 1], [2, x[1]]]),
            np.asarray(x),
            np.stack([x[0], x[2]]),
        ),
        (V,),
    ),
    "questions": (
        lambda x: (np.zeros(np.shape(x)), np.full(2, np.ndim(x)), np.full(2, np.size(x, 0)), np.ones(len(x))),
        (M,),
    ),
    "more ufuncs": (
        lambda x, i: (
            np.bitwise_xor(i, 3),
            ~i,
            i << 2,
            i >> 1,
            i // 3,
            i % 3,
            -7 // (i + 20),
            divmod(i, 4),
            2.0**x,
            abs(x),
        ),
        (M, K),
    ),
}


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
        errors.UnsupportedFunction, match=r"np\.median is not supported in compiled functions: it needs a sort"
    ):
        kf.jit(np.median)(X)
    with pytest.raises(errors.UnsupportedFunction, match=r"np.nonzero .*depends on values; use np.where"):
        kf.jit(np.nonzero)(X)
    with pytest.raises(errors.UnsupportedFunction, match=r"np.nanargmax .*the nearest that is: np\."):
        kf.jit(np.nanargmax)(X)
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


def test_subtract_at() -> None:
    def fn(x):  # type: ignore[no-untyped-def]
        y = x.copy()
        np.subtract.at(y, np.array([0, 0]), 1.0)
        return y

    np.testing.assert_array_equal(kf.jit(fn)(np.ones(2)), fn(np.ones(2)))
