"""All of NumPy's functions: there, refused with a reason, or not for arrays; and those that read bits."""

from __future__ import annotations

import pydoc
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import optree
import pytest

import kernelforge as kf
import kernelforge.numpy as knp
from kernelforge.errors import InvalidParameter, ShapeMismatch, UnsupportedArgument, UnsupportedFunction
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.refused import WHY

NAMES = (
    "base_repr binary_repr datetime_data format_float_positional format_float_scientific frompyfunc fromfile fromregex "
    "fromstring genfromtxt get_include get_printoptions getbufsize geterr geterrcall info iterable load loadtxt "
    "mintypecode printoptions set_printoptions setbufsize seterr seterrcall show_config show_runtime test typename "
    "linalg.test"
)
WITHOUT_ARRAYS = set(NAMES.split())
"""Functions that take no array, or make one of text and files."""


@pytest.mark.parametrize("module", ["", "linalg."])
def test_each_function_is_there_or_refused(module: str) -> None:
    owner = getattr(np, module[:-1]) if module else np
    names = [n for n in dir(owner) if callable(getattr(owner, n)) and not isinstance(getattr(owner, n), type)]
    refused = {name for names in WHY.values() for name in names.split()}
    known = WITHOUT_ARRAYS | set(dir(knp))
    missing = [n for n in names if n[0] != "_" and module + n not in FUNCTIONS and module + n not in refused | known]
    assert missing == []
    assert refused & FUNCTIONS.keys() == {"intersect1d", "setdiff1d", "setxor1d"}  # which there are with size=


X = np.linspace(-2, 3, 12).reshape(3, 4)
CALLS: dict[str, Callable[..., Any]] = {
    "array_repr": np.array_repr, "bmat": lambda x: np.bmat([[x]]), "isnat": np.isnat, "roots": lambda x: np.roots(x[0]),
    "trim_zeros": lambda x: np.trim_zeros(x[0]), "save": lambda x: np.save("x.npy", x), "fft.fft": np.fft.fft,
    "shares_memory": lambda x: np.shares_memory(x, x), "asarray_chkfinite": lambda x: np.asarray_chkfinite(x, "f8"),
    "scimath.sqrt": np.emath.sqrt, "fromiter": lambda x: np.fromiter([x[0, 0]], float),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_refusal_says_why(name: str) -> None:
    (reason,) = [reason for reason, names in WHY.items() if name in names.split()]
    with pytest.raises(UnsupportedFunction) as error:
        kf.jit(CALLS[name])(X)
    assert f"np.{name} is not supported in compiled functions: {reason}" in str(error.value)


def same(fn: Callable[..., Any], *args: Any, rtol: float = 0.0) -> None:
    with np.errstate(all="ignore"):
        wanted = optree.tree_leaves(fn(*args))
    found = optree.tree_leaves(kf.jit(fn)(*args))
    for f, w in zip(found, wanted, strict=True):
        assert (f.shape, f.dtype) == (np.shape(w), np.asarray(w).dtype)
        np.testing.assert_allclose(np.asarray(f), w, rtol=rtol)


ODD = [0.0, -0.0, 1, -1, 0.5, 3, 1e-3, -6.1e-5, 6e-8, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_exponents_and_spacings(dtype: Any) -> None:
    info = np.finfo(dtype)
    edges = [info.max, -info.max, info.smallest_normal, info.smallest_subnormal, -info.smallest_subnormal * 3]
    x = np.array([*ODD, *edges], dtype)
    same(lambda x: (*np.frexp(x), np.spacing(x)), x)
    assert np.signbit(kf.jit(lambda x: np.frexp(x)[0])(x[1:2]))[0]
    same(lambda x: (*np.frexp(x), np.spacing(x)), np.arange(-3, 4))


def test_a_mantissa_has_a_slope() -> None:
    x = np.array([0.3, 5.0, -100.0])
    np.testing.assert_array_equal(kf.grad(lambda x: knp.frexp(x)[0].sum())(x), 0.5 ** np.frexp(x)[1].astype(float))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_powers_of_two_beyond_the_range(dtype: str, device: str) -> None:
    """Zero times any power of two is zero, infinity infinity, and what ends subnormal is rounded once."""
    x = np.array([0, -0.0, np.inf, np.nan, 1, -1.7, 5e-324, 1.1e-300], dtype)
    with np.errstate(all="ignore"):
        for n in (2**31 - 1, -(2**31), 5000, -5000, 2097, 2098, -1074, -1075, -75, -27, 1024, -1023):
            expected = np.ldexp(x, n)
            found = np.asarray(kf.jit(np.ldexp)(x, np.int32(n)))
            np.testing.assert_array_equal(found, expected, err_msg=str(n), strict=True)
            np.testing.assert_array_equal(np.signbit(found), np.signbit(expected), err_msg=str(n))


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "bool"])
def test_powers_of_two_scale_bfloat16(dtype: str) -> None:
    x = np.array([1, -3, 0.5, np.inf, np.nan, 1e38, 1e-38, -0.0], ml_dtypes.bfloat16)
    n = np.array([1, -3, 7, 2, 0, -100, -3, 5]).astype(dtype)
    found, expected = kf.jit(np.ldexp)(x, n), np.ldexp(x, n)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(found).astype(float), expected.astype(float))
    assert kf.jit(lambda x: np.ldexp(x, 3))(x).dtype == x.dtype


def test_a_bessel_function() -> None:
    x = np.array([-700, -30, -8.5, -1, -1e-9, 0, 0.5, 7.9, 8.1, 100, 713, 800, np.inf, -np.inf, np.nan])
    same(np.i0, x[:11], rtol=2e-13)
    assert np.isinf(kf.jit(np.i0)(x[11:])[0])
    for dtype in (np.float32, np.float64):
        huge = np.array([1e4, -1e7, 3e38], dtype)
        np.testing.assert_array_equal(kf.jit(np.i0)(huge), np.full(3, np.inf, dtype))
    small = np.linspace(-3, 3, 7)
    near = (np.i0(small + 1e-6) - np.i0(small - 1e-6)) / 2e-6
    np.testing.assert_allclose(kf.grad(lambda x: np.i0(x).sum())(small), near, rtol=1e-8, atol=1e-9)
    same(np.i0, small.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("order", ["big", "little"])
def test_bits_of_bytes(order: Any) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 5)).astype(np.uint8)
    same(lambda x: (np.packbits(x > 99, bitorder=order), np.packbits(x, 0, order), np.packbits(x, -1, order)), x)
    same(lambda x: (np.unpackbits(x, bitorder=order), np.unpackbits(x, 1, 7, order), np.unpackbits(x, 0, -3)), x)
    same(lambda x: (np.unpackbits(x, 1, 99, order), np.unpackbits(x[:0], 0)), x)
    with pytest.raises(InvalidParameter, match="'big' or 'little'"):
        kf.jit(lambda x: np.packbits(x, bitorder="middle"))(x)


def test_parts_of_numbers_that_are_real() -> None:
    same(lambda x: (np.imag(x), np.real(x), np.real_if_close(x), np.asfortranarray(x), np.require(x, np.float32)), X)
    same(lambda x: x.astype(np.common_type(x, x.astype(np.float32))), X)
    assert kf.jit(lambda x: x * len(np.einsum_path("ij,kj,kl", x, x, x)[0]))(X)[0, 0] == -6


ROWS, COLUMNS = np.array([0.0, 1, 3]), np.array([0.5, 0.6, 2, 7])


@pytest.mark.parametrize("order", [1, 2])
def test_slopes_of_uneven_samples(order: Any) -> None:
    rows, columns = ROWS, COLUMNS
    same(lambda x: np.gradient(x, rows, columns, edge_order=order), X**2, rtol=1e-12)
    same(lambda x: np.gradient(x, 0.5, columns, edge_order=order), X**2, rtol=1e-12)
    same(lambda x: np.gradient(x, columns, axis=1, edge_order=order), X**2, rtol=1e-12)
    same(lambda x, c: np.gradient(x[0], c, edge_order=order), X.astype(np.float32), columns, rtol=1e-6)
    same(lambda x: np.gradient(x, edge_order=order), X**2, rtol=1e-12)


def test_refused_slopes() -> None:
    rows, columns = ROWS, COLUMNS
    for call, match in (
        (lambda x: np.gradient(x, columns), "a number, or for each axis"),
        (lambda x: np.gradient(x, rows, rows), "a number, or for each axis"),
        (lambda x: np.gradient(x[:2], edge_order=2), "at least 3 elements"),
    ):
        with pytest.raises(ShapeMismatch, match=match):
            kf.jit(call)(X)
    with pytest.raises(InvalidParameter, match="1 or 2"):
        kf.jit(lambda x: np.gradient(x, edge_order=3))(X)


def test_insertions_at_several_places() -> None:
    same(lambda x: np.insert(x[0], [3, 1, 1], [9, 8, 7]), X)
    same(
        lambda x: (np.insert(x, [0, -1], 5, axis=1), np.insert(x, [1, 3], x[:, :2], 1), np.insert(x, [2, 0], x[0], 0)),
        X,
    )
    same(lambda x: (np.insert(x, slice(0, 3, 2), 1, 0), np.insert(x, [1], [[7], [8], [9]], 1), np.insert(x, [], 1)), X)
    same(lambda x: (np.insert(x, 1, [7, 8, 9], 1), np.insert(x[0], 2, [1, 2, 3]), np.insert(x, 1, x[:2], 0)), X)


def test_writes_at_places_and_where_a_mask_is() -> None:
    def put(x: Any, i: Any) -> Any:
        made = x.copy()
        np.put(made, i, [1, 2], mode="clip")
        np.put(made, i + 1, 5, mode="wrap")
        return made

    def place(x: Any) -> Any:
        made = x.copy()
        np.place(made, made > 0, [10, 20, 30])
        return made

    same(put, X, np.array([99, -99, 3]))
    same(place, X)
    same(place, X.astype(np.int32))


def test_arrays_side_by_side() -> None:
    same(lambda x: (np.r_[x[0], 1, x[1, 0], 0:3], np.c_[x, x[:, 0]], np.c_[x[0], x[1]], np.r_[x, x]), X)
    same(lambda x: (np.r_[x[0], 0.5], np.c_[x[0], 1:5]), X.astype(np.float32))
    assert np.r_[1:3, 7].tolist() == [1, 2, 7]
    with pytest.raises(UnsupportedArgument, match=r"use np\.concatenate"):
        kf.jit(lambda x: np.r_["0,2", x])(X)


def test_unique_elements_of_a_size() -> None:
    x = np.array([3.0, 1, np.nan, 1, np.nan, 7])
    for name in ("unique_all", "unique_counts", "unique_inverse"):
        wanted, found = getattr(np, name)(x), kf.jit(lambda x, name=name: tuple(getattr(knp, name)(x, size=5)))(x)
        for f, w in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(f), w)
        assert getattr(knp, name)(x)._fields == wanted._fields
    np.testing.assert_array_equal(kf.jit(lambda x: knp.unique_values(x, size=5))(x), np.unique(x, equal_nan=False))


@pytest.mark.parametrize("method", ["inverted_cdf", "averaged_inverted_cdf", "closest_observation"])
def test_quantiles_that_step(method: Any) -> None:
    for n in range(1, 9):
        x, q = np.sqrt(np.arange(n) + 1.0), np.arange(0, 17) / 16
        same(lambda x, q: np.quantile(x, q, method=method), x, q, rtol=1e-15)
    same(lambda x: np.nanquantile(x, 0.25, axis=0, method=method), np.where(X > 2, np.nan, X), rtol=1e-15)
    same(lambda x: np.percentile(x, 40, method=method), np.arange(5))


def test_slopes_of_even_samples_do_not_read_the_one_in_the_middle() -> None:
    x = np.array([1, np.nan, 3, np.inf, 2, 4, 5], np.float32)
    for order in (1, 2):
        with np.errstate(invalid="ignore"):
            expected = np.gradient(x, 0.5, edge_order=order)
        np.testing.assert_array_equal(kf.jit(lambda x, o=order: np.gradient(x, 0.5, edge_order=o))(x), expected)


@pytest.mark.parametrize("module", [kf, kf.nn, kf.optim, kf.random])
def test_modules_list_what_is_public_and_each_says_what_it_is(module: Any) -> None:
    assert [n for n in dir(module) if n != "__version__"] == sorted(module.__all__)
    assert [n for n in module.__all__ if not getattr(module, n).__doc__] == []


@pytest.mark.parametrize("fn", [knp.any, knp.take, knp.add, kf.nn.conv2d])
def test_help_on_a_function_is_about_that_function(fn: Any) -> None:
    assert fn.__doc__.splitlines()[0] in pydoc.render_doc(fn, renderer=pydoc.plaintext)


def layer(x: Any) -> Any:
    return x + 1


def test_compiled_functions_print_what_they_are_of() -> None:
    assert repr(kf.jit(layer)) == "<kernelforge.jit of tests.test_namespace.layer>"
    assert repr(kf.grad(layer)) == "<kernelforge.grad of tests.test_namespace.layer>"
    assert repr(kf.vmap(kf.jit(layer))) == "<kernelforge.vmap of tests.test_namespace.layer>"
    assert repr(kf.custom_vjp(layer)) == "<kernelforge.custom_vjp of tests.test_namespace.layer>"
    assert repr(kf.nn.gelu) == "<kernelforge.jit of kernelforge.nn.activations.gelu>"
