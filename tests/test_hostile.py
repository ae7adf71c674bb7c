"""Bad input: the right answer or an error that says what to do, on every device."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)


def same(fn: Callable[..., Any], *args: Any, tol: float = 1e-6) -> None:
    """Compare a compiled function that returns a tuple with what NumPy makes of it, the signs of zeros included."""
    with np.errstate(all="ignore"):
        expected = fn(*args)
    found = kf.jit(fn)(*args)
    assert len(found) == len(expected)
    for k, (f, e) in enumerate(zip(found, expected, strict=True)):
        f, e = np.asarray(f), np.asarray(e)
        assert (f.shape, f.dtype) == (e.shape, e.dtype.newbyteorder("=")), k
        if e.dtype.kind in "iub":
            np.testing.assert_array_equal(f, e, err_msg=str(k))
        else:
            f, e = f.astype(np.float64), e.astype(np.float64)
            np.testing.assert_allclose(f, e, rtol=tol, atol=tol * (tol > 1e-5), err_msg=str(k))
            np.testing.assert_array_equal(np.signbit(f[e == 0]), np.signbit(e[e == 0]), err_msg=str(k))


# Shapes


def softmax(x: Any) -> Any:
    e = np.exp(x - np.max(x, axis=-1, keepdims=True, initial=-np.inf))
    return e / e.sum(-1, keepdims=True)


def many(x: Any, i: Any) -> Any:
    """Do a bit of everything with an array of three columns."""
    return (
        softmax(x), x @ x.T, x.T @ x, np.cumsum(x, 0), np.cumprod(x, 1),
        np.concatenate([x, x, np.ones((2, 3), np.float32)]),
        np.concatenate([x, x], 1), np.stack([x, x], -1), np.take(x, i, axis=0), x[i, 1], x[::-1], x.T.reshape(-1),
        np.pad(x, 1),
        x.sum(), x.sum(0), x.sum(1), x.prod(0), x.any(1), x.all(), x.max(1), x.argmax(1), x.mean(1), x[5:],
        np.roll(x, 1),
        np.where(x > 0, x, -x), np.diff(x), np.einsum("ij,kj->ik", x, x), x.reshape(3, -1), x[..., :0],
        np.tile(x, (2, 1)),
    )  # fmt: skip


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(device: str, rows: int) -> None:
    same(many, RNG.uniform(0.5, 2, (rows, 3)).astype(np.float32), np.zeros((rows, 2), np.int64))


def test_products_of_nothing_are_zeros(device: str) -> None:
    same(lambda x, y: (x @ y, y @ x, (x @ y) + 1, np.dot(x[0], x[0])), np.ones((3, 0)), np.ones((0, 3)))
    same(lambda x, y: (x @ y,), np.ones((0, 4, 3)), np.ones((3, 5)))


def test_reductions_of_nothing(device: str) -> None:
    same(
        lambda x: (x.sum(), x.prod(), x.any(), x.all(), x.sum(0), x.cumsum(), x.max(1), x.max(0, initial=3.0)),
        np.zeros((0, 3)),
    )
    for fn in (np.max, np.min, np.argmax, np.argmin):
        with pytest.raises(ValueError, match="at least one element"):
            kf.jit(fn)(np.zeros((0, 3)))


def test_size_one_axes_everywhere(device: str) -> None:
    x = RNG.uniform(0.5, 2, (1, 3, 1, 1)).astype(np.float32)
    y = RNG.uniform(0.5, 2, (2, 1, 1, 4)).astype(np.float32)
    same(
        lambda x, y: (
            x + y, (x * y).sum((0, 2)), softmax(x), np.squeeze(x), x.cumsum(0), x @ y, x.argmax(2), x.T + 1,
            np.concatenate([x, x], 3),
        ),
        x, y,
    )  # fmt: skip
    same(lambda x: (x + 1, x @ x, softmax(x), np.cumsum(x), x.sum(), x.T, x[0], x[-1, 0]), np.ones((1, 1), np.float32))


def test_arrays_without_axes(device: str) -> None:
    same(
        lambda x: (
            x + 1, np.sum(x), x.reshape(1), x[None], x[()], x[...], np.cumsum(x), x.T, np.argmax(x), np.max(x),
            np.stack([x, x]),
            np.where(x > 1, x, 0), np.squeeze(x), np.broadcast_to(x, (3, 2)),
        ),
        np.array(2.5, np.float32),
    )  # fmt: skip
    scalar = np.array(2.5)
    for fn in (lambda x: x @ x, lambda x: np.concatenate([x, x]), lambda x: x[0], len):
        with pytest.raises((ValueError, IndexError, TypeError)):
            kf.jit(fn)(scalar)


def test_many_axes(device: str) -> None:
    same(lambda x: (x.T + 1, x.sum(), (x[..., None] * 2)), np.ones((1,) * 40 + (2, 1, 3)))
    same(lambda x: ((x + x.T).sum(0), x.max((1, 3, 5))), RNG.standard_normal((2,) * 8))


def test_more_arrays_than_a_kernel_takes() -> None:
    xs = [np.full(3, float(k)) for k in range(530)]
    np.testing.assert_array_equal(kf.jit(lambda *xs: sum(xs))(*xs), sum(xs))
    scale = kf.jit(lambda x: [x * k for k in range(530)])
    np.testing.assert_array_equal(scale(xs[1]), [xs[1] * k for k in range(530)])
    assert len(scale.lower(xs[1]).kernels) == 2


MISFITS: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]] = {
    "add": (lambda x, y: x + y, (3,), (4,)),
    "where": (lambda x, y: np.where(x > 0, x, y), (3, 2), (3,)),
    "matmul": (lambda x, y: x @ y, (3, 2), (3, 2)),
    "matmul batch": (lambda x, y: x @ y, (2, 3, 3), (4, 3, 3)),
    "concatenate": (lambda x, y: np.concatenate([x, y]), (3, 2), (3, 3)),
    "stack": (lambda x, y: np.stack([x, y]), (3,), (4,)),
    "dot": (np.dot, (3,), (4,)),
    "broadcast_to": (lambda x, y: np.broadcast_to(x, (5,)), (3,), (4,)),
    "reshape": (lambda x, y: x.reshape(7), (6,), (1,)),
    "reshape unknown": (lambda x, y: x.reshape(4, -1), (6,), (1,)),
    "einsum": (lambda x, y: np.einsum("ij,jk->ik", x, y), (2, 3), (2, 3)),
}


@pytest.mark.parametrize("name", MISFITS)
def test_shapes_that_do_not_fit(name: str) -> None:
    fn, a, b = MISFITS[name]
    with pytest.raises(ValueError, match=str(a).replace("(", r"\(").replace(")", r"\)")) as caught:
        kf.jit(fn)(np.ones(a), np.ones(b))
    assert isinstance(caught.value, errors.KernelforgeError)
    assert "test_hostile.py:" in str(caught.value)


# Dtypes and values


@pytest.mark.parametrize(
    "array",
    [
        np.ones(3, complex), np.array([1, None], object), np.array(["a", "b"]), np.array([b"a"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.ones(2, np.longdouble), np.zeros(2, [("a", "f4")]), np.ones(3, ml_dtypes.float8_e4m3fn),
        np.zeros((0,), object),
    ],
    ids=lambda a: str(a.dtype),
)  # fmt: skip
def test_dtypes_that_are_refused(array: Array) -> None:
    if array.dtype.itemsize == 8 and array.dtype.kind == "f":
        pytest.skip("long double is double here")
    for call in (kf.jit(lambda x: x + 1), kf.asarray):
        with pytest.raises(errors.UnsupportedDtype, match=r"dtype .* is not supported; use one of bool, i8"):
            call(array)


class Level(enum.IntEnum):
    HIGH = 3


class Metres(float):
    pass


def test_arguments_that_are_no_arrays() -> None:
    plus = kf.jit(lambda x: x + 1)
    for bad in (
        "abc",
        b"abc",
        1 + 2j,
        {1},
        range(3),
        object(),
        np.ma.masked_array([1.0, 2.0], [True, False]),
        np.eye(2).view(np.matrix),
    ):
        with pytest.raises(TypeError, match=r"x is .*; expected arrays, numbers and pytrees"):
            plus(bad)
    with pytest.raises(errors.NumberOutOfRange, match="does not fit int64"):
        plus(2**70)
    with pytest.raises(ValueError, match="inhomogeneous"):
        kf.asarray([[1, 2], [3]])
    assert int(plus(Level.HIGH)) == 4
    assert float(plus(Metres(2.5))) == 3.5
    assert int(plus(-(2**63))) == 1 - 2**63


def test_arrays_with_operators_of_their_own_are_not_mistaken() -> None:
    masked, matrix = np.ma.masked_array([1.0, 2.0], [True, False]), np.eye(2).view(np.matrix)
    for fn in (lambda x: x * masked, lambda x: np.where(x > 0, x, masked), lambda x: x * matrix, lambda x: masked):
        with pytest.raises(errors.InvalidArgument, match="whose operators and functions are not those of arrays"):
            kf.jit(fn)(np.ones(2))
    for bad in (masked, matrix):
        with pytest.raises(errors.InvalidArgument):
            kf.asarray(bad)


DTYPES = [
    np.float16,
    ml_dtypes.bfloat16,
    np.float32,
    np.float64,
    np.int8,
    np.uint8,
    np.int16,
    np.int64,
    np.uint64,
    np.bool_,
]


def layouts(dtype: Any) -> dict[str, Array]:
    """Return arrays of values that every dtype adds up exactly, laid out in memory in all ways there are."""
    base = RNG.integers(0, 2 if dtype is np.bool_ else 4, (6, 8)).astype(dtype)
    field = np.zeros((6, 8), [("byte", "u1"), ("value", dtype)])["value"]
    field[...] = base
    shifted = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(dtype).reshape(6, 8)
    fixed = base.copy()
    fixed.flags.writeable = False
    found = {
        "transposed": base.T, "fortran": np.asfortranarray(base), "reversed": base[::-1, ::-1],
        "stepped": base[::2, 1::3],
        "reversed columns": base.T[::-1, ::2], "broadcast": np.broadcast_to(base[:1], (5, 8)),
        "one element": np.broadcast_to(base[2, 3], (5, 4)),
        "unaligned": shifted, "field": field, "read-only": fixed, "none": base[:, ::-1][:0],
    }  # fmt: skip
    if np.dtype(dtype).kind != "V":
        found["byte-swapped"] = base.astype(np.dtype(dtype).newbyteorder())
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_layouts(device: str, dtype: Any) -> None:
    exact = ml_dtypes.bfloat16 if dtype is ml_dtypes.bfloat16 else np.dtype(dtype).newbyteorder("=")
    fn = kf.jit(lambda x: (x, x + x, x.T.reshape(-1), x.max(1), x @ x.T, x[::-1, 1:]))
    for name, x in layouts(dtype).items():
        y = x.astype(np.float64)
        expected = (y, y + y, y.T.reshape(-1), y.max(1) if y.size else y[:, 0], y @ y.T, y[::-1, 1:])
        for k, (f, e) in enumerate(zip(fn(x), expected, strict=True)):
            assert f.dtype == exact, (name, k)
            np.testing.assert_array_equal(
                np.asarray(f).astype(np.float64), e.astype(exact).astype(np.float64), err_msg=f"{name} {k}"
            )


def test_integers_wrap(device: str) -> None:
    i8, u64 = np.array([100, 127, -128, 0, -1], np.int8), np.array([2**63 + 5, 2**64 - 1, 0, 7], np.uint64)
    three, least = np.array(3, np.uint64), np.array([-(2**63)])
    same(
        lambda x: (
            x * x + x,
            -x,
            abs(x),
            x - np.int8(1),
            x << np.int8(1),
            x**3,
            x.sum(dtype=np.int8),
            x.cumsum(dtype=np.int8),
        ),
        i8,
    )
    same(
        lambda x, n: (x * x, x - n, x // n, x % n, x >> np.uint64(1), ~x, x.max(), x > 2**63, x.astype(np.float64)),
        u64,
        three,
    )
    same(lambda x, y, z: (x // y, x % y, x // z, x % z, -x, abs(x), x * y), least, np.array([-1]), np.array([0]))
    same(lambda x, n: (x << n, x >> n), np.array([1, -1, 5, -5]), np.array([63, 64, 100, 1]))


def test_arithmetic_of_bools(device: str) -> None:
    b = np.array([True, False, True])
    same(
        lambda x: (
            x + x,
            x * x,
            x / True,
            x & ~x,
            x.sum(),
            x.mean(),
            x.cumsum(),
            x @ x,
            x > False,
            x.astype(np.int8) - 1,
            x.max(),
        ),
        b,
    )
    for fn in (lambda x: x - x, lambda x: -x):
        with pytest.raises(TypeError, match=r"cast with \.astype"):
            kf.jit(fn)(b)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_special_values(device: str, dtype: Any) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5, tiny, -tiny, np.finfo(dtype).max, np.finfo(dtype).tiny]
    x, y = (v.astype(dtype) for v in np.meshgrid(values, values))
    same(
        lambda x, y: (
            x + y, x - y, x * y, np.maximum(x, y) + 0, np.minimum(x, y) + 0, x < y, x == y, x != y, np.copysign(x, y),
            np.where(x > y, x, y),
            -x, abs(x), np.sign(x), np.floor(x), np.rint(x), np.isnan(x), np.isfinite(x), np.signbit(x), np.sqrt(x),
            x + 0.0, x * 1.0,
            x.max(0) + 0, x.min(1) + 0, x[:, 3:8].max(1) + 0, np.argmax(x, 1), np.exp(-x * x) * 0 + 1, np.tanh(x * 0),
        ),
        x, y,
        tol=1e-3 if dtype is np.float16 else 1e-6,
    )  # fmt: skip
    same(lambda x: (x.sum(), x.mean(1), softmax(x), x @ x), np.array([[np.nan, 1.0], [np.inf, -np.inf]], dtype))


# Indices and gradients


def test_indices_out_of_range(device: str) -> None:
    x = np.arange(5, dtype=np.float32)
    for at in (5, -6, np.array([1, 7])):
        with pytest.raises(
            errors.IndexOutOfRange, match=r"is out of range for axis 0 of 5 elements\n  at .*test_hostile\.py:\d+"
        ):
            kf.jit(lambda x, at=at: x[at])(x)
    take = kf.jit(lambda x, i: x[i])
    np.testing.assert_array_equal(take(x, np.array([5, -6, 2**40, -5, 4])), [np.nan, np.nan, np.nan, 0, 4])
    np.testing.assert_array_equal(take(x, np.array([2**64 - 1, 3], np.uint64)), [np.nan, 3])
    np.testing.assert_array_equal(take(x.astype(np.int16), np.array([9, 1])), [-(2**15), 1])
    for at in (np.array([1.5]), "a", np.array([True, False])):
        with pytest.raises(IndexError, match="is not a valid index for an array of shape"):
            kf.jit(lambda x, at=at: x[at])(x)


def test_gradients_through_indices(device: str) -> None:
    x, at = np.arange(5.0), np.array([1, 1, 2, 9, -9, -1])
    np.testing.assert_array_equal(kf.grad(lambda x, i: x[i].sum())(x, at), [0, 2, 1, 0, 1])
    with pytest.raises(errors.NotFloat, match=r"argument 1 is i64\[6\]; expected an array of floats"):
        kf.grad(lambda x, i: x[i].sum(), argnums=1)(x, at)
    with pytest.raises(errors.NotFloat):
        kf.grad(lambda i: (i * 2.0).sum())(at)
    assert kf.grad(lambda x: softmax(x).sum())(np.zeros((0, 3))).shape == (0, 3)
    assert kf.grad(lambda x: x.max(1).sum())(np.zeros((0, 3))).shape == (0, 3)


def test_devices_do_not_mix() -> None:
    x = np.arange(3.0)
    here, there = kf.asarray(x, device="cpu"), kf.asarray(x, device="reference")
    for call in (kf.jit(lambda x, y: x + y), lambda x, y: x + y, lambda x, y: np.concatenate([x, y])):
        with pytest.raises(errors.MixedDevices, match=r"arrays of cpu and of reference meet in one call; .*to_device"):
            call(here, there)
    assert (here + there.to_device("cpu")).device == "cpu"
    with kf.default_device("reference"):
        assert (here + x).device == "cpu"


def test_static_arguments_that_compare_equal_are_told_apart() -> None:
    scale = kf.jit(lambda x, s: x * s, static_argnames="s")
    assert not np.signbit(scale(np.ones(2), 0.0)).any()
    assert np.signbit(scale(np.ones(2), -0.0)).all()
    first = kf.jit(lambda x, s: x * s[0], static_argnames="s")
    x = np.ones(2, np.int8)
    assert [first(x, s).dtype for s in ((1,), (1.0,), (True,))] == [np.int8, np.float64, np.int8]
    traced = []
    count = kf.jit(lambda x, s: traced.append(s) or x, static_argnames="s")
    for _ in range(3):
        count(x, float("nan"))
    assert len(traced) == 1


def test_settings_are_checked() -> None:
    with (
        pytest.raises(errors.InvalidParameter, match="rounding='sloppy' is not valid; expected strict or fast"),
        kf.config(rounding="sloppy"),
    ):
        pass
    with (
        pytest.raises(errors.InvalidParameter, match="precision='low' is not valid; expected highest or high"),
        kf.config(precision="low"),
    ):
        pass
