"""Functions of NumPy as they are traced: values, and what is refused and in which words."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.trace import Tracer

X = np.linspace(-1.0, 2.0, 6)
M = X.reshape(2, 3)


pytestmark = pytest.mark.usefixtures("reference")


def agrees(fn: Callable[..., Any], *args: Any) -> None:
    """Compare a function of the arrays it is given with NumPy; it gets copies, so that it may write to them."""
    found, expected = kf.jit(fn)(*args), fn(*args)
    for f, e in zip(*((v if isinstance(v, list | tuple) else [v]) for v in (found, expected)), strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12)
        assert f.dtype == np.asarray(e).dtype


class TestWrites:
    def test_slices(self) -> None:
        def f(x: Any) -> Any:
            a = x * 1.0
            a[1:] += x[:-1]
            a[0] = 5
            a[::2] *= 2
            a[-1] -= a[1]
            b = a
            b += 1
            return a, b

        agrees(f, X)

    def test_stencil(self) -> None:
        def f(u: Any) -> Any:
            u = u.copy()
            for _ in range(3):
                new = u.copy()
                new[1:-1, 1:-1] += 0.25 * (u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4 * u[1:-1, 1:-1])
                u = new
            return u

        agrees(f, np.random.default_rng(1).uniform(size=(6, 7)))

    def test_all_operators(self) -> None:
        def f(x: Any, i: Any) -> Any:
            a, k = x + 0.0, i + 0
            a += 2
            a -= x
            a *= x
            a /= 3
            a //= 0.25
            a %= 1.7
            a **= 2
            k &= 6
            k |= 9
            k ^= 3
            k <<= 2
            k >>= 1
            a[1:3] /= 2
            k[:] //= 2
            return a, k

        agrees(f, X, np.arange(6))

    def test_scalars_are_values(self) -> None:
        def f(x: Any, s: Any) -> Any:
            total = x.sum()
            first = total
            total += 1
            t = s
            s *= 2
            acc = np.zeros(())
            acc += total
            return total, first, s, t, acc

        agrees(f, X, 3.0)

    def test_made_inside(self) -> None:
        def f(x: Any) -> Any:
            a = np.zeros((2, 3))
            a[0] = x[:3]
            b = np.empty(3)
            b[:] = x[3:]
            c = np.full(2, 7, np.int32)
            d = np.ones_like(x)
            d[1] = x[0]
            e = np.array([x[0], 2.0, x[1]])
            e[1] = 9
            return a, b, c, d, e

        agrees(f, X)

    def test_known_until_written(self) -> None:
        def f(x: Any) -> Any:
            n = np.zeros(3, int)
            n[1] = 2
            for i in range(n[1]):
                x = x + i
            if n.sum is not None and bool(n[0]) is False and float(np.ones(1)[0]) == 1.0 and len(n) == 3:
                x = x * 2
            table = np.zeros(6)
            for i in range(6):
                table[i] = i * i
            assert list(np.asarray(table).tolist()) == [0, 1, 4, 9, 16, 25]
            return x * table

        agrees(f, X)
        with pytest.raises(errors.TracedTruth):
            kf.jit(lambda x: bool(_written(x)[0]))(X)

    def test_ufunc_out_and_copyto(self) -> None:
        def f(x: Any) -> Any:
            a = np.empty(6)
            np.multiply(x, 2, out=a)
            b = np.zeros(6)
            np.copyto(b, a, where=a > 0)
            c = x.reshape(2, 3).copy()
            np.fill_diagonal(c, 0)
            d = x.copy()
            np.put_along_axis(d, np.array([1, 3]), 8.0, 0)
            return a, b, c, d

        agrees(f, X)

    def test_float_into_int(self) -> None:
        def f(x: Any) -> Any:
            a = np.zeros(6, int)
            a += x
            return a

        with pytest.raises(
            TypeError, match=r"np.add|add: f64\[6\] cannot be written into an array of i64\[6\] in place"
        ):
            kf.jit(f)(X)


def _written(x: Any) -> Any:
    a = np.zeros(2)
    a[0] = x[0]
    return a


def refused(error: type[Exception], match: str, fn: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(error, match=match):
        kf.jit(fn)(*args)


class TestRefusals:
    def test_truth(self) -> None:
        refused(
            errors.TracedTruth,
            r"the truth of a traced array \(bool\[\]\) is not known .* np.where, .* with kf.cond.*static_arg(.|\n)*"
            r"test_trace.py:\d+",
            lambda x: x if x[0] > 0 else -x,
            X,
        )
        refused(TypeError, "truth", lambda x: x[0] > 0 and x[1] > 0, X)

    def test_numbers(self) -> None:
        for what, fn in {
            r"int\(\)": int,
            r"float\(\)": float,
            "an index, a shape or range": lambda x: range(x.astype(int)),
            r"item\(\)": lambda x: x.item(),
            r"tolist\(\)": lambda x: x.tolist(),
            r"complex\(\)": complex,
            "a format": lambda x: f"{x:.2f}",
        }.items():
            refused(errors.TracedNumber, f"{what}.* needs the value of a traced array", fn, 1.0)
        refused(errors.TracedNumber, "np.sqrt in place of math.sqrt", math.sqrt, 2.0)

    def test_lines_are_the_users(self) -> None:
        """Also where NumPy's own Python stands between."""
        refused(errors.TracedArray, "test_trace.py", lambda x: np.vectorize(lambda v: v + 1)(x), X)  # noqa: PLW0108 - a Python function, not one of ours

    def test_arrays(self) -> None:
        def into_numpy(x: Any) -> Any:
            a = np.logspace(0, 1, 3)
            a[0] = x[0]
            return a

        with pytest.raises(ValueError, match="array element") as raised:
            kf.jit(into_numpy)(X)
        assert "or an element of a NumPy array needs the value of a traced array" in str(raised.value.__cause__)
        refused(errors.TracedArray, r"np.take\(table, i, 0\)", lambda i: np.logspace(0, 1, 3)[i], np.array([1, 2]))
        refused(errors.TracedArray, r"x.astype\(np.uint8\) in place of np.uint8\(x\)", np.uint8, X)
        refused(errors.TracedNumber, r"np.take\(table, i, 0\)", lambda i: [1, 2, 3][i], 1)
        refused(
            errors.TracedNumber, "an axis.*name the argument in static_argnames", lambda n: np.ones((2, 3)).sum(n), 1
        )
        refused(errors.TracedArray, "cannot become a NumPy array", lambda x: np.ndarray.sum(x.__array__()), X)
        refused(
            errors.UnsupportedArgument,
            "np.add: out=a NumPy array is not supported",
            lambda x: np.add(x, 1, out=np.logspace(0, 1, 6)),
            X,
        )

    def test_argument_is_read_only(self) -> None:
        def store(x: Any) -> Any:
            x[0] = 1
            return x

        def add(x: Any) -> Any:
            x += 1
            return x

        def part(x: Any) -> Any:
            x[1:] += 1
            return x

        for fn in (store, add, part):
            refused(
                errors.ReadOnlyArray,
                r"f64\[6\] was not made in this function.*x = x.copy\(\) first, or x = x.at\[index\]",
                fn,
                X,
            )

    def test_inlined_argument_is_read_only(self) -> None:
        @kf.jit
        def store(x: Any) -> Any:
            x[0] = 1
            return x

        refused(errors.ReadOnlyArray, "was not made in this function", lambda x: store(x * 1.0), X)

    def test_view(self) -> None:
        def reshaped(x: Any) -> Any:
            a = x * 1.0
            v = a.reshape(2, 3)
            v += 1
            return a

        def column(x: Any) -> Any:
            a = x.reshape(2, 3) * 1.0
            a.T[0] += 1
            return a

        for fn in (reshaped, column):
            refused(
                errors.WriteThroughView, r"is a view, and writing to it would change another array.*\.copy\(\)", fn, X
            )

    def test_stale_view(self) -> None:
        def transposed(x: Any) -> Any:
            a = x.reshape(2, 3) * 1.0
            v = a.T
            a *= 2
            return v + 1

        refused(errors.StaleView, "is a view of an array that was written to since", transposed, X)

    def test_leak(self) -> None:
        kept: list[Any] = []
        kf.jit(lambda x: kept.append(x * 2) or x)(X)
        with pytest.raises(errors.LeakedTracer, match=r"a traced array \(f64\[6\]\) is used after the function"):
            kept[0] + 1
        refused(errors.LeakedTracer, "return it from the function", lambda x: x + kept[0], X)
        assert "Tracer(f64[6])" in repr(kept[0])

    def test_write_to_an_outer_array(self) -> None:
        def f(x: Any) -> Any:
            a = x * 1.0

            def body(c: Any, v: Any) -> Any:
                a[0] = v
                return c, v

            return kf.scan(body, 0.0, x)[0], a

        refused(errors.ReadOnlyArray, "was not made in this function", f, X)

    def test_results(self) -> None:
        refused(errors.InvalidResult, r"returned str at result\['a'\]", lambda x: {"a": "text"}, X)

    def test_operands(self) -> None:
        refused(TypeError, "unsupported operand", lambda x: x + "a", X)
        refused(errors.InvalidArgument, "x2 is builtins.str", lambda x: np.add(x, "a"), X)
        with pytest.raises(TypeError):
            kf.jit(lambda x: {x: 1})(X)


class TestInterception:
    def test_only_while_tracing(self) -> None:
        before = {name: getattr(np, name) for name in ("zeros", "ones", "empty", "full", "array", "asarray")}
        seen: list[type] = []
        kf.jit(lambda x: seen.append(type(np.zeros(2))) or x)(X)
        assert seen == [Tracer]
        assert {name: getattr(np, name) for name in before} == before
        with pytest.raises(ZeroDivisionError):
            kf.jit(lambda x: 1 / 0)(X)
        assert {name: getattr(np, name) for name in before} == before
        assert type(np.zeros(2)) is np.ndarray

    def test_other_threads_see_numpy(self) -> None:
        seen: list[Any] = []
        inside, done = threading.Event(), threading.Event()

        def other() -> None:
            assert inside.wait(10)
            seen.extend([type(np.zeros(2)), np.array([1, 2]).sum(), type(np.full(1, 2))])
            done.set()

        def f(x: Any) -> Any:
            inside.set()
            assert done.wait(10)
            assert type(np.zeros(1)) is Tracer
            return x

        thread = threading.Thread(target=other)
        thread.start()
        kf.jit(f)(X)
        thread.join()
        assert seen == [np.ndarray, 3, np.ndarray]

    def test_many_threads(self) -> None:
        wrong: list[Any] = []

        def work(k: int) -> None:
            for n in range(3):
                found = kf.jit(lambda x, k=k, n=n: np.array([x[0], k]) + np.zeros(2) + n)(X)
                if not np.array_equal(found, [X[0] + n, k + n]) or type(np.ones(1)) is not np.ndarray:
                    wrong.append((k, n))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert np.zeros.__module__ == "numpy"
