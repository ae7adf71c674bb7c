"""NumPy called inside of a compiled function, where NumPy itself does not notice traced arrays."""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernelforge as kf

X = np.array([3.0, -1.0, 2.0])


def agree(fn: Callable[..., Any], *args: Any) -> None:
    want = fn(*(a.copy() for a in args))
    got = np.asarray(kf.jit(fn)(*args))
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: np.sum([x, x * 2]),
        lambda x: np.max([x[0], x[2]]),
        lambda x: np.mean([x, [1, 2, 3]], axis=0),
        lambda x: np.dot([x[0], x[1], 1], x),
        lambda x: np.clip([x[0], 0.5, x[1]], 0, 1),
        lambda x: np.array([x, [1, 2, 3]]),
        lambda x: np.stack([x, [1, 2, 3]]),
        lambda x: np.add([x, x], x),
    ],
)
def test_lists_of_traced_arrays(fn: Callable[..., Any]) -> None:
    agree(fn, X)


@pytest.mark.parametrize("make", [lambda a: np.zeros_like(a, float), lambda a: np.full_like(a, 7)])
def test_arrays_like_others_are_written_to(make: Callable[..., Any]) -> None:
    def fn(x: Any) -> Any:
        y = make(X)
        y[1] = x[0]
        return y

    agree(fn, X)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(3.0),
        lambda: np.arange(1, 7, 2),
        lambda: np.linspace(0, 1, 3),
        lambda: np.eye(3),
        lambda: np.identity(3) * 2,
        lambda: np.tri(3, k=-1),
    ],
)
def test_arrays_made_are_written_to_and_known(make: Callable[..., Any]) -> None:
    def fn(x: Any) -> Any:
        y = make()
        half = float(y.sum()) / 2
        y = y * 1.0
        y[1] = x[0] * half
        return y + half

    agree(fn, X)


def test_lists_and_known_arrays_are_joined() -> None:
    def f(x: Any) -> Any:
        knots = np.concatenate([[0] * 3, np.linspace(0, 4, 7), [4] * 3])
        return x * knots[5] if knots[5] > 1 else x, np.hstack([x, [3], np.zeros(2)])

    x = np.arange(4.0)
    for found, expected in zip(kf.jit(f)(x), f(x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_known_values_choose() -> None:
    def fn(x: Any) -> Any:
        steps = np.arange(6)
        odd = steps % 2 == 1
        total = x * 0 if odd.all() else x
        for i in np.nonzero(odd)[0]:
            total = total + int(steps[i]) * x
        return total + np.tile(x, 2)[odd] * float(np.ones(3).sum()) + np.unique(steps // 2)

    agree(fn, X)


def test_what_is_written_to_is_not_what_it_was_made_from() -> None:
    def fn(x: Any) -> Any:
        a = np.arange(3.0)
        b, c = np.ravel(a).copy(), a + 0
        a[0] = 5.0
        c[1] = x[1]
        return a + 10 * b + 100 * c

    agree(fn, X)


@pytest.mark.parametrize("draw", ["normal", "permutation", "default_rng"])
def test_random_numbers_are_refused(draw: str) -> None:
    def fn(x: Any) -> Any:
        return x + getattr(np.random, draw)(3)

    with pytest.raises(kf.errors.UnsupportedFunction) as caught:
        kf.jit(fn)(X)
    text = (
        f"np.random.{draw} is not supported in compiled functions: its numbers would be the same at each call; "
        "use kf.random, by a key that is an argument"
    )
    assert str(caught.value).splitlines()[0] == text
    assert "test_numpy_inside.py" in str(caught.value)
    getattr(np.random, draw)(3)


def test_a_module_that_is_imported_has_numpy_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
    import numpy as np

    def table():
        return np.zeros(3)

    TABLE = table()
    TABLE[0] = np.random.default_rng(0).integers(1, 2)
    """
    tmp_path.joinpath("imported_inside.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))

    def fn(x: Any) -> Any:
        import imported_inside  # type: ignore[import-not-found]

        return x + imported_inside.TABLE + imported_inside.table()

    np.testing.assert_array_equal(kf.jit(fn)(X), X + [1, 0, 0])
    assert type(sys.modules.pop("imported_inside").TABLE) is np.ndarray


@pytest.mark.parametrize("compare", [np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal])
def test_signed_and_unsigned_compare_exactly(compare: Callable[..., Any]) -> None:
    low, high = np.iinfo(np.int64).min, np.iinfo(np.uint64).max
    signed = np.array([low, -1, 0, 5, 2**63 - 1, 2**53 + 1], np.int64)
    unsigned = np.array([0, 5, 2**53, 2**53 + 1, 2**63 - 1, 2**63, high - 1, high], np.uint64)
    agree(lambda a, b: compare(a[:, None], b), signed, unsigned)
    agree(lambda a, b: compare(b, a[:, None]), signed, unsigned)


def test_numbers_out_of_range() -> None:
    small = np.ones(3, np.int8)
    for fn in (lambda x: x + 300, lambda x: np.full_like(x, 300), lambda x: np.maximum(x, -129)):
        with pytest.raises(OverflowError):
            fn(small)
        with pytest.raises(OverflowError):
            kf.jit(fn)(small)
    agree(lambda x: x < 300, small)


def sinc_series(x: np.ndarray, order: int) -> np.ndarray:
    """A derivative of sin(pi x) / (pi x) with respect to x, by more terms than are needed."""
    terms = range(order + order % 2, 40, 2)
    total = np.zeros_like(x)
    for n in terms:
        factor = np.prod(np.arange(n - order + 1, n + 1, dtype=float))
        total += (
            (-1) ** (n // 2) * np.pi**n / float(np.prod(np.arange(1, n + 2, dtype=float))) * factor * x ** (n - order)
        )
    return total


def test_sinc_near_zero() -> None:
    x = np.array([0.0, 1e-300, 1e-160, 1e-12, -1e-8, 1e-5, 1e-3, 0.1, -0.3, 0.32])
    np.testing.assert_allclose(kf.jit(np.sinc)(x), np.sinc(x), rtol=4e-16)
    first = kf.grad(lambda x: np.sinc(x).sum())
    second = kf.grad(lambda x: first(x).sum())
    np.testing.assert_allclose(first(x), sinc_series(x, 1), rtol=1e-14)
    np.testing.assert_allclose(second(x), sinc_series(x, 2), rtol=1e-13)


RNG = np.random.default_rng(0)


class Noise:
    def __init__(self) -> None:
        self.rng = np.random.RandomState(0)

    def add(self, x: Any) -> Any:
        return x + self.rng.normal(size=x.shape)


class Layer:
    def __init__(self) -> None:
        self.noise = Noise()

    def __call__(self, x: Any) -> Any:
        return self.noise.add(x)


def noisy(x: Any) -> Any:
    return x + RNG.normal(size=x.shape)


def test_a_generator_from_outside_is_refused() -> None:
    """Its draw would be part of what is compiled: the same noise at each call, where NumPy's changes."""
    own, x = np.random.default_rng(1), np.zeros(3)

    def inner(x: Any, scale: float = 2.0) -> Any:
        return x * own.uniform() * scale

    calls: list[Any] = [noisy, kf.jit(noisy), lambda x: noisy(x) + 1, inner, functools.partial(inner, scale=3.0)]
    calls += [Noise().add, kf.grad(lambda x: kf.jit(noisy)(x).sum()), Layer()]
    for held, key in (([own], 0), ((own,), 0), ({"a": [own]}, "a")):
        calls.append(lambda x, held=held, key=key: x + np.ravel(held[key])[0].normal(size=x.shape))
    for fn in calls:
        with pytest.raises(kf.errors.UnsupportedFunction, match=r"the same at each call; use kf\.random") as info:
            kf.jit(fn)(x)
        assert "np.random." in str(info.value)
        assert "test_numpy_inside.py" in str(info.value)
    drawn = RNG.normal(size=3)
    np.testing.assert_array_equal(kf.jit(lambda x: x + drawn if RNG else x)(x), drawn)


@pytest.mark.parametrize(
    "constant", [np.array([-(2**63), 2**63 - 1]), np.zeros((0, 3), np.int64), np.zeros((1, 0, 3, 3), bool)],
    ids=["far apart", "empty", "empty masks"],
)  # fmt: skip
def test_constants_that_hardly_count(constant: Any) -> None:
    x = np.ones(constant.shape, np.int64)
    np.testing.assert_array_equal(kf.jit(lambda x: x + constant)(x), x + constant)
