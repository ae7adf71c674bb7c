"""Reading and writing by index agrees with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import optree
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kernelforge as kf
from kernelforge import errors

X = np.arange(60.0).reshape(3, 4, 5)
R = np.array([2, 0, -1])
B = X[:, :, 0] % 3 == 0


pytestmark = pytest.mark.usefixtures("reference")


BASIC: list[Any] = [
    0,
    -1,
    (1, 2),
    (1, 2, 3),
    slice(None),
    slice(1, None),
    slice(None, None, -1),
    slice(None, None, 2),
    slice(5, 1, -2),
    slice(9, 20),
    slice(2, 0),
    (slice(None), slice(3, 0, -1)),
    (Ellipsis, 2),
    (0, Ellipsis),
    (Ellipsis, slice(1, 4)),
    None,
    (None, 1),
    (1, None, Ellipsis, None),
    (slice(1, 3), 2, slice(-1, -4, -1)),
    (Ellipsis, None),
    (),
    Ellipsis,
    (np.int64(1), slice(None, None, -2)),
    np.array(2),
    (slice(0, 0), 1),
]
ADVANCED: list[Any] = [
    R,
    [0, 2],
    (R, 1),
    (slice(None), R),
    (R, [0, 1, 2]),
    (R[:, None], [[0, 1]]),
    (slice(None), R, R),
    (R, slice(None), R),
    (0, slice(None), R),
    (slice(None), 1, R),
    (Ellipsis, R),
    (None, R),
    (R, None, R),
    (slice(1, None), [0, 3], slice(None, None, -2)),
    (R, slice(1, 3), None),
    (1, R, R),
    (R[:0],),
    [],
    np.array([[0, 1], [2, 2]], np.uint8),
    (slice(None, None, -1), R, slice(1, 3)),
    (slice(2), slice(None), [1, 1]),
]
MASKS: list[Any] = [
    B,
    X > 20,
    (B, 1),
    (slice(None), B[0]),
    np.array([True, False, True]),
    (slice(None), slice(None), np.ones(5, bool)),
    B & False,
    (B, None),
]


@pytest.mark.parametrize("key", BASIC + ADVANCED + MASKS, ids=repr)
class TestIndex:
    def test_read(self, key: Any) -> None:
        for found in (kf.jit(lambda x: x[key])(X), kf.asarray(X)[key], kf.numpy.asarray(X).at[key].get()):
            assert np.asarray(found).shape == X[key].shape
            np.testing.assert_array_equal(found, X[key])

    @pytest.mark.parametrize("op", ["set", "iadd", "row"])
    def test_write(self, key: Any, op: str) -> None:
        def f(x: Any, v: Any) -> Any:
            x = x.copy()
            if op == "iadd":
                x[key] += v
            else:
                x[key] = v
            return x

        shape = X[key].shape
        value = np.float64(7.5) if op == "set" else -1 - np.arange(np.prod(shape, dtype=int)).reshape(shape)
        if op == "row":
            value = value[-1:] if shape else value
        np.testing.assert_array_equal(kf.jit(f)(X, value), f(X, value))

    def test_traced_arrays(self, key: Any) -> None:
        parts = key if isinstance(key, tuple) else (key,)
        arrays = [
            np.asarray(p)
            for p in parts
            if isinstance(p, list | np.ndarray) and np.size(p) and np.asarray(p).dtype != bool
        ]

        def f(x: Any, arrays: list[Any]) -> Any:
            left = iter(arrays)
            index = tuple(
                next(left) if isinstance(p, list | np.ndarray) and np.size(p) and np.asarray(p).dtype != bool else p
                for p in parts
            )
            y = x.copy()
            y[index] = 3.0
            return x[index], y

        for found, expected in zip(kf.jit(f)(X, arrays), f(X, arrays), strict=True):
            np.testing.assert_array_equal(found, expected)


keys = hnp.basic_indices((3, 4, 5), allow_newaxis=True) | hnp.integer_array_indices((3, 4, 5))


@hypothesis.settings(max_examples=60)
@hypothesis.given(key=keys, data=st.data())
def test_any_index(key: Any, data: st.DataObject) -> None:
    np.testing.assert_array_equal(kf.jit(lambda x: x[key])(X), X[key])
    shape = X[key].shape
    value = data.draw(
        hnp.arrays(
            np.float64,
            data.draw(
                hnp.broadcastable_shapes(shape, max_dims=max(len(shape), 1), max_side=6).filter(
                    lambda s: np.broadcast_shapes(s, shape) == shape
                )
            ),
        )
    )
    expected = X.copy()
    expected[key] = value

    def f(x: Any) -> Any:
        x = x.copy()
        x[key] = value
        return x

    np.testing.assert_array_equal(kf.jit(f)(X), expected)


@pytest.mark.parametrize("wrong", [True, np.True_, np.array(True), np.array(1.0), 1.0])
def test_not_an_integer(wrong: Any) -> None:
    given = kf.asarray(wrong) if isinstance(wrong, np.ndarray) else wrong
    for fn in (lambda x: x[wrong], lambda x: x[given], lambda x: x.at[given].set(1)):
        with pytest.raises(IndexError):
            kf.jit(fn)(X)
        with pytest.raises(IndexError):
            fn(kf.asarray(X))


def test_arrays_as_bounds() -> None:
    i = kf.asarray(1)
    x = kf.asarray(X)
    np.testing.assert_array_equal(x[i:, :i], X[1:, :1])
    np.testing.assert_array_equal(x.at[:, i :: kf.asarray(2)].set(0)[0], np.where(np.arange(4)[:, None] % 2, 0, X[0]))


@pytest.mark.parametrize("key", [(..., B[0]), (slice(None), B[0]), (..., [True] * 4, 0), (0, ..., X[0] > 9)])
def test_mask_beside_other_indices(key: Any) -> None:
    try:
        expected = X[key]
    except IndexError:
        with pytest.raises(errors.InvalidIndex, match="a mask of the extents it selects from"):
            kf.jit(lambda x: x[key])(X)
    else:
        np.testing.assert_array_equal(kf.jit(lambda x: x[key])(X), expected)


def test_lists_are_written() -> None:
    def fill(x: Any, y: Any) -> Any:
        out = np.zeros((3, 2))
        out[0] = x, y
        out[:, 1] = [y, x, 1]
        out[1:] = [[x, 2], [y, x]]
        return out

    np.testing.assert_array_equal(kf.jit(fill)(3.0, 4.0), fill(3.0, 4.0))


def test_values_that_another_dtype_holds() -> None:
    def count(v: Any) -> Any:
        a = np.full(3, 250, np.uint8)
        np.add.at(a, np.array([0, 0, 1]), v)
        return a

    v = np.array([3, -1, 300])
    np.testing.assert_array_equal(kf.jit(count)(v), count(v))


def test_numpy_scalars_are_written_as_numpy_packs_them() -> None:
    """By an index without arrays it refuses what does not fit; by others it casts."""

    def write(key: Any, value: Any) -> Callable[[Any], Any]:
        def fn(x: Any) -> Any:
            y = x.copy()
            y[key] = value
            return y

        return fn

    x, mask = np.arange(3, dtype=np.int8), np.array([True, False, True])
    for value in (np.int64(300), np.uint8(200), np.float32(300.5), np.float32(np.nan), np.float64(np.inf)):
        for key in (1, slice(1, None), ...):
            with pytest.raises((OverflowError, ValueError)):
                write(key, value)(x)
            with pytest.raises(errors.NumberOutOfRange, match="does not fit int8"):
                kf.jit(write(key, value))(x)
    for key, value in ((1, np.float32(5.5)), (..., np.int64(-128)), (mask, np.int64(300)), ([0, 1], np.int64(300))):
        np.testing.assert_array_equal(kf.jit(write(key, value))(x), write(key, value)(x))
    np.testing.assert_array_equal(kf.jit(write(1, np.int64(300)))(x.view("u1")), write(1, np.int64(300))(x.view("u1")))
    np.testing.assert_array_equal(kf.jit(write(1, np.float64(0.1)))(x.astype("f2")), write(1, 0.1)(x.astype("f2")))


def casts_without_a_copy(x: Any) -> Any:
    a = x.copy()
    same, other = a.astype(x.dtype, copy=False), a.astype(np.float32, copy=False)
    same[0] = 7
    other[0] = 8
    again, another = np.astype(a, x.dtype, copy=False), np.astype(a, np.float32, copy=False)
    again[1] = 9
    another[1] = 10
    return a, same, other, again, another


def methods_with_out(x: Any) -> Any:
    a, total, b = x.copy(), np.empty(()), np.empty_like(x)
    a.clip(0, 1, out=a)
    x.sum(out=total)
    x.cumsum(0, out=b[:])
    return a, total, b


@pytest.mark.parametrize("fn", [casts_without_a_copy, methods_with_out])
def test_methods_that_write(fn: Callable[[Any], Any], device: str) -> None:
    x = np.array([-1.5, 0.5, 2.5])
    for found, expected in zip(kf.jit(fn)(x), fn(x), strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)


WRITES: list[Callable[[Any, Any], Any]] = [
    lambda y, v: y.__setitem__(0, v), lambda y, v: y.__setitem__([0, 2], v), lambda y, v: y.__setitem__(y > 1, v),
    lambda y, v: y.__setitem__(..., v), lambda y, v: y.__setitem__([0, 2], [v, 1]), lambda y, v: y.fill(v),
    lambda y, v: np.put(y, [1], v), lambda y, v: np.place(y, y > 0, [v]), lambda y, v: np.putmask(y, y > 0, v),
    lambda y, v: np.put_along_axis(y, np.array([1]), v, 0),
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_numbers_that_another_dtype_does_not_hold(write: Callable[[Any, Any], Any]) -> None:
    """NumPy refuses Python numbers that it would have to wrap, and so is it here; others it casts."""

    def written(x: Any, v: Any) -> Any:
        y = x.copy()
        write(y, v)
        return y

    x = np.array([1, 2, 0])
    for dtype, value in ((np.int8, 300), (np.uint32, -3), (np.uint8, float("nan")), (np.int64, 2**63)):
        with pytest.raises((OverflowError, ValueError)):
            written(x.astype(dtype), value)
        with pytest.raises((errors.NumberOutOfRange, ValueError)):
            kf.jit(lambda x, v=value: written(x, v))(x.astype(dtype))
    for dtype, value in (
        (np.int8, -128),
        (np.int8, 1.75),
        (np.int8, -128.5),
        (np.uint8, 255.9),
        (np.uint8, True),
        (np.float32, 2**63),
        (np.bool_, 3),
    ):
        given = x.astype(dtype)
        found = kf.jit(lambda x, v=value: written(x, v))(given)
        np.testing.assert_array_equal(found, written(given, value))


def test_bounds_of_clip_beyond_the_dtype() -> None:
    x = np.array([1, 2, 250], np.uint8)
    for low, high in ((0, 300), (-10, 2), (-10, None), (None, 2**70), (2, 255)):
        found = kf.jit(lambda x, a=low, b=high: np.clip(x, a, b))(x)
        np.testing.assert_array_equal(found, np.clip(x, low, high), strict=True)
    with pytest.raises(errors.NumberOutOfRange, match="300 does not fit uint8"):
        kf.jit(lambda x: np.clip(x, 300, 400))(x)


def test_what_sums_start_from_is_of_their_dtype() -> None:
    x = np.array([-3, 1])
    same = (lambda x: x.sum(initial=1.5), lambda x: x.max(initial=1.5), lambda x: x.prod(initial=-1.5))
    for fn in same:
        np.testing.assert_array_equal(kf.jit(fn)(x), fn(x), strict=True)


def rows_in_place(a: Any, i: Any) -> Any:
    row = a[i]
    row += 1
    row[1:] *= 2
    np.add(row, 1, out=row)
    a[i, 0] = 7
    row.sort()
    return row + a[i]


def views_of_views(a: Any, i: Any) -> Any:
    inner = a[1:, 1:]
    first = inner[0]
    first[...] = -1
    a[1] += 10
    inner *= 2
    first[first > 5] = 0
    a[:2] = inner[0, :2, None]
    return first, inner


def swapped(a: Any, i: Any) -> Any:
    a[0], a[i] = a[i], a[0]
    taken = a[i, 0]
    a[i, 0] = 50
    return taken, a[i : i + 1] if isinstance(i, int) else a[i]


def every_row(a: Any, i: Any) -> Any:
    for r in a:
        r /= r.sum()
    return a[i]


def what_is_known(a: Any, i: Any) -> Any:
    b = np.zeros((3, 4))
    v = b[1:]
    v[0, 0] = 2
    n = b[1, 0]
    v[1] += 1
    v[0] = a[0]
    b[2, 1] = 9
    return v, n, v[1]


@pytest.mark.parametrize("fn", [rows_in_place, views_of_views, swapped, every_row, what_is_known])
def test_views_share_what_is_written(fn: Any) -> None:
    def both(x: Any, i: Any) -> Any:
        a = x.copy()
        return fn(a, i), a

    x = np.arange(12.0).reshape(3, 4) + 1
    for known in (False, True):
        run: Any = kf.jit(both, static_argnames="i" if known else ())
        expected = both(x, 1 if known else np.int64(1))
        for found, value in zip(optree.tree_leaves(run(x, 1)), optree.tree_leaves(expected), strict=True):
            np.testing.assert_array_equal(found, value)


def test_views_inside_of_a_scan() -> None:
    def f(x: Any) -> Any:
        a = x.copy()
        v = a[1]
        a[1, 0] = 5

        def body(c: Any, r: Any) -> Any:
            b = r.copy()
            w = b[1:]
            w += c + v[0]
            return b.sum(), w

        last, parts = kf.scan(body, x[0, 0], x)
        return last, parts, v

    def g(x: Any) -> Any:
        c, parts = x[0, 0], []
        for r in x:
            b = r.copy()
            b[1:] += c + 5
            c = b.sum()
            parts.append(b[1:])
        return c, np.stack(parts), np.array([5, *x[1, 1:]])

    x = np.arange(12.0).reshape(3, 4)
    for found, value in zip(kf.jit(f)(x), g(x), strict=True):
        np.testing.assert_array_equal(found, value)


def test_derivative_of_writes_through_views() -> None:
    def f(x: Any) -> Any:
        a = x.copy()
        v = a[1:]
        v *= x[:-1]
        v[0] += v[1]
        return (a * a).sum()

    kf.testing.check_grads(f, [np.array([1.0, 2.0, 3.0])], devices=["reference"])


def test_duplicates() -> None:
    at = np.array([0, 2, 0, 0])
    v = np.array([1.0, 2.0, 3.0, 4.0])

    def f(x: Any, at: Any, v: Any) -> Any:
        y = x.copy()
        y[at] += v
        return [getattr(x.at[at], name)(v) for name in ("set", "add", "multiply", "min", "max")] + [y]

    x = np.array([0.5, 1.5, 2.5])
    found = kf.jit(f)(x, at, v)
    expected = [x.copy() for _ in range(6)]
    expected[0][at] = v
    for i, ufunc in enumerate((np.add, np.multiply, np.minimum, np.maximum), 1):
        ufunc.at(expected[i], at, v)
    expected[5][at] += v
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(kf.asarray(x).at[at].add(v), expected[1])
    np.testing.assert_array_equal(kf.asarray(x).at[1:].multiply(2), [0.5, 3.0, 5.0])


def test_traced_scalars() -> None:
    def f(x: Any, i: Any, j: Any) -> Any:
        y = x.copy()
        y[i, 1:] = 0
        y[:, j] += 1
        return x[i], x[i, :, j], x[..., j], x[:, i, ::-1], x[i, [0, 1], j], y

    for i, j in ((1, 2), (-1, -2), (np.int32(0), np.uint8(3))):
        for found, expected in zip(kf.jit(f)(X, i, j), f(X, i, j), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_out_of_range() -> None:
    with pytest.raises(IndexError, match="index 3 is out of range for axis 0 of 3 elements"):
        kf.jit(lambda x: x[3])(X)
    with pytest.raises(IndexError, match="index -6 is out of range for axis 2 of 5 elements"):
        kf.jit(lambda x: x[..., [0, -6]])(X)
    with pytest.raises(IndexError, match="index 4 is out of range for axis 1"):
        kf.jit(lambda x: np.take(x, [4], 1))(X)
    with pytest.raises(IndexError):
        kf.asarray(X)[[3]]
    assert np.isnan(kf.jit(lambda x, i: x[i])(X, 3)).all()
    with pytest.raises(
        errors.InvalidIndex, match=r"an index of 4 axes is not a valid index for an array of shape \(3, 4, 5\)"
    ):
        kf.jit(lambda x: x[0, 0, 0, 0])(X)
    with pytest.raises(errors.InvalidIndex, match="slices have Python integers as bounds"):
        kf.jit(lambda x, i: x[i:])(X, 1)
    with pytest.raises(errors.InvalidIndex, match="index arrays are of integers or bools"):
        kf.jit(lambda x: x[x])(X)
    with pytest.raises(errors.InvalidIndex, match="use integers"):
        kf.jit(lambda x: x["a"])(X)
    with pytest.raises(errors.InvalidIndex, match=r"a mask of shape \(2,\)"):
        kf.jit(lambda x: x[np.ones(2, bool)])(X)
    with pytest.raises(errors.ShapeMismatch, match="index arrays that broadcast to one shape"):
        kf.jit(lambda x: x[[0, 1], [0, 1, 2]])(X)
    with pytest.raises(errors.ShapeMismatch, match="a value that broadcasts to"):
        kf.jit(lambda x: x.at[0].set(np.ones(3)))(X)


def test_casts_to_the_array() -> None:
    def f(x: Any) -> Any:
        y = np.zeros(3, np.int32)
        y[:2] = x[:2]
        y[2:] = 2.9
        return y

    x = np.array([1.9, -1.9])
    found = kf.jit(f)(x)
    np.testing.assert_array_equal(found, f(x))
    assert found.dtype == np.int32


@pytest.mark.parametrize(
    ("index", "table"),
    [
        ([0, 0, 1, 1, 2, 2, 3, 3], False),
        ([1, 3], False),
        ([-1, -2, -3], False),
        ([3, 3, 1, 1], False),
        ([3, 2, 1, 0], False),
        ([2, 2, 2], False),
        ([-2], False),
        ([0, 0, 1], True),
        ([0, 1, 1, 2], True),
        ([[0, 1], [2, 3]], True),
    ],
)
def test_indices_that_are_known_and_even_are_views(index: Any, table: bool) -> None:
    x, ct = np.arange(12.0).reshape(3, 4), np.arange(3.0 * np.size(index)).reshape(3, *np.shape(index))
    fn = kf.jit(lambda x: np.take(x, index, 1) + 1)
    np.testing.assert_array_equal(fn(x), np.take(x, index, 1) + 1)
    assert ("gather" in str(fn.lower(x).graph)) == table
    wanted = np.zeros_like(x)
    for row, values in zip(wanted, ct, strict=True):
        np.add.at(row, index, values)
    (slope,) = kf.vjp(fn, x)[1](ct)
    np.testing.assert_array_equal(slope, wanted)


def test_take_from_an_array_that_is_not_traced() -> None:
    """NumPy's own take asks its first argument alone; errors about ``table[i]`` say to call it."""
    table = np.arange(15.0).reshape(5, 3)
    np.testing.assert_array_equal(kf.jit(lambda i: np.take(table, i, 0))(3), table[3])
    found = kf.jit(lambda i: kf.scan(lambda c, k: (c + np.take(table, k, 0), None), np.zeros(3), i)[0])
    np.testing.assert_array_equal(found(np.arange(5)), table.sum(0))
