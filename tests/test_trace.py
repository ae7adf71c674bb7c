"""Functions of NumPy as they are traced: values, what is refused and in which words, and the call itself."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.trace import Tracer

X = np.linspace(-1.0, 2.0, 6)
M = X.reshape(2, 3)


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    with kf.default_device("reference"):
        yield


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
        }.items():
            refused(errors.TracedNumber, f"{what}.* needs the value of a traced array", fn, 1.0)
        refused(errors.TracedNumber, "np.sqrt in place of math.sqrt", math.sqrt, 2.0)

    def test_arrays(self) -> None:
        def into_numpy(x: Any) -> Any:
            a = np.arange(3.0)
            a[0] = x[0]
            return a

        with pytest.raises(ValueError, match="array element") as raised:
            kf.jit(into_numpy)(X)
        assert "or an element of a NumPy array needs the value of a traced array" in str(raised.value.__cause__)
        refused(errors.TracedArray, "cannot become a NumPy array", lambda x: np.ndarray.sum(x.__array__()), X)
        refused(
            errors.UnsupportedArgument,
            "np.add: out=a NumPy array is not supported",
            lambda x: np.add(x, 1, out=np.arange(6.0)),
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
        def through(x: Any) -> Any:
            a = x * 1.0
            v = a[1:]
            v[0] = 3
            return a

        def reshaped(x: Any) -> Any:
            a = x * 1.0
            v = a.reshape(2, 3)
            v += 1
            return a

        def nested(x: Any) -> Any:
            a = x.reshape(2, 3) * 1.0
            a[0][1:] += 1
            return a

        for fn in (through, reshaped, nested):
            refused(
                errors.WriteThroughView, r"is a view, and writing to it would change another array.*\.copy\(\)", fn, X
            )

    def test_stale_view(self) -> None:
        def stale(x: Any) -> Any:
            a = x * 1.0
            v = a[1:]
            a[0] = 5
            return v

        def row(x: Any) -> Any:
            a = x.reshape(2, 3) * 1.0
            v = a.T
            a *= 2
            return v + 1

        for fn in (stale, row):
            refused(errors.StaleView, "is a view of an array that was written to since", fn, X)

    def test_unresolved_write(self) -> None:
        def unused(x: Any) -> Any:
            a = x * 1.0
            v = a[1:]
            v += 1
            return x

        def used(x: Any) -> Any:
            a = x * 1.0
            v = a[1:]
            v += 1
            return a

        def elsewhere(x: Any) -> Any:
            a = x * 1.0
            v = a[1:]
            v += 1
            a[:5] = v
            return a

        for fn in (unused, used, elsewhere):
            refused(errors.UnresolvedWrite, r"an in-place operator wrote to a part of f64\[6\] through a view", fn, X)

        def rows(x: Any) -> Any:
            a = x.reshape(2, 3) * 1.0
            for i in range(2):
                a[i] += i
                a[i, 1:] *= 2
            return a

        agrees(rows, X)

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
        refused(errors.InvalidArgument, "an operand is builtins.str", lambda x: np.add(x, "a"), X)
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


class TestJit:
    def test_trees(self) -> None:
        @kf.jit
        def f(p: dict[str, Any], xs: tuple[Any, ...], *, scale: Any = 2.0, bias: Any = None) -> Any:
            return {"out": p["w"] * xs[0] * scale, "rest": [xs[1], None, bias], "n": 3}

        out = f({"w": X}, (X, M), scale=3)
        assert isinstance(out["out"], kf.Array)
        np.testing.assert_allclose(out["out"], X * X * 3)
        assert out["rest"][1:] == [None, None]
        np.testing.assert_array_equal(out["rest"][0], M)
        assert int(out["n"]) == 3

    def test_compiles_once_per_type(self) -> None:
        traces: list[Any] = []

        @kf.jit
        def f(x: Any, s: Any) -> Any:
            traces.append(x.shape)
            return x * s

        for x, s in (
            (X, 2.0),
            (X, 3.5),
            (X + 1, -1.0),
            (X, 2),
            (X, 7),
            (X[::2], 2.0),
            (X[:3], 2.0),
            (X.astype("f4"), 2.0),
            (M, 2.0),
        ):
            np.testing.assert_allclose(f(x, s), x * s)
        assert len(traces) == 6

    def test_static(self) -> None:
        @kf.jit(static_argnames=("mode", "n"))
        def f(x: Any, n: int, mode: str = "add") -> Any:
            for _ in range(n):
                x = x + 1 if mode == "add" else x * 2
            return x

        np.testing.assert_allclose(f(X, 2), X + 2)
        np.testing.assert_allclose(f(X, n=3, mode="mul"), X * 8)
        np.testing.assert_allclose(f(X, 1, "mul"), X * 2)
        g = kf.jit(f.__wrapped__, static_argnums=(1, -1))
        np.testing.assert_allclose(g(X, 2, "mul"), X * 4)
        with pytest.raises(errors.UnhashableStatic, match="the static argument mode is list, which cannot be hashed"):
            f(X, 1, mode=[])
        with pytest.raises(errors.UnknownStatic, match="static argument 'nope' is no parameter"):
            kf.jit(lambda x: x, static_argnames="nope")

    def test_static_types_differ(self) -> None:
        f = kf.jit(lambda x, s: x + s, static_argnums=1)
        assert f(np.arange(3), 1).dtype == np.int64
        assert f(np.arange(3), 1.0).dtype == np.float64
        assert f(np.ones(1, bool), True).dtype == np.bool_

    def test_inputs(self) -> None:
        f = kf.jit(lambda x: x * 2)
        base = np.arange(24, dtype=np.float32).reshape(4, 6)
        odd = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(np.float32)
        record = np.zeros(3, [("a", "i1"), ("b", "<f4")])
        record["b"] = 1.5
        for x in (
            base[::-1],
            base[:, ::2],
            base.T,
            np.broadcast_to(base[0], (3, 6)),
            base[:0],
            base.astype(">f4"),
            odd,
            record["b"],
            np.float32(2),
            np.array(3.0),
            np.asfortranarray(base),
            np.int8(3),
            np.array(3, np.longlong),
            np.bool_(True),
        ):
            found = f(x)
            np.testing.assert_array_equal(found, x * 2)
            assert found.dtype == np.asarray(x * 2).dtype

        class Lends:
            def __init__(self, a: np.ndarray) -> None:
                self.a = a

            def __dlpack__(self, **options: Any) -> Any:
                return self.a.__dlpack__(**options)

            def __dlpack_device__(self) -> Any:
                return self.a.__dlpack_device__()

        np.testing.assert_array_equal(f(Lends(base)), base * 2)
        np.testing.assert_array_equal(f(kf.asarray(base)), base * 2)
        with pytest.raises(errors.InvalidArgument, match=r"argument \[0\]\['a'\] is builtins.str; expected arrays"):
            f({"a": "text"})
        with pytest.raises(errors.UnsupportedDtype, match="object"):
            f(np.array([None]))
        with pytest.raises(OverflowError, match="does not fit int64"):
            f(2**70)

    def test_lower(self) -> None:
        f = kf.jit(lambda x: np.tanh(x) + 1)
        lowered = f.lower(X)
        assert len(lowered.kernels) == len(lowered.regions) == 1
        assert "tanh" in lowered.text()
        assert lowered.kernels[0].bytes == 96
        assert "1 kernel" in f.explain(X)

    def test_wraps(self) -> None:
        @kf.jit
        def named(x: Any) -> Any:
            """Say so."""
            return x

        assert named.__name__ == "named"
        assert named.__doc__ == "Say so."
        assert named.__wrapped__(3) == 3

        class Model:
            scale = 2.0

            @kf.jit
            def free(x: Any) -> Any:  # noqa: N805
                return x * 2

        np.testing.assert_array_equal(Model.free(X), X * 2)

    def test_methods(self) -> None:
        class Model:
            def __init__(self, scale: float) -> None:
                self.scale = scale

            @kf.jit(static_argnums=0)
            def call(self, x: Any) -> Any:
                return x * self.scale

        np.testing.assert_array_equal(Model(3.0).call(X), X * 3)
        np.testing.assert_array_equal(Model(4.0).call(X), X * 4)

    def test_nested(self) -> None:
        inner = kf.jit(lambda x, n: x * n + np.zeros(6))
        agrees_once = kf.jit(lambda x: inner(x, 2) + inner(x + 1, 3))
        np.testing.assert_allclose(agrees_once(X), X * 2 + (X + 1) * 3)
        assert len(agrees_once.lower(X).kernels) == 1

    def test_closure(self) -> None:
        table = np.arange(6.0)
        device = kf.asarray(table) + 1
        np.testing.assert_allclose(kf.jit(lambda x: x * table + device)(X), X * table + table + 1)

    def test_config_is_part_of_the_key(self) -> None:
        f = kf.jit(lambda x: np.sin(x) + np.cos(x))
        assert len(f.lower(X).kernels) == 1
        with kf.config(fusion=False):
            assert len(f.lower(X).kernels) == 3

    def test_outputs_that_are_inputs(self) -> None:
        a, b, c = kf.jit(lambda x: (x, x, 1.5))(X)
        np.testing.assert_array_equal(a, X)
        np.testing.assert_array_equal(b, X)
        assert float(c) == 1.5

    def test_threads(self) -> None:
        f = kf.jit(lambda x: (x * 2).sum())
        found: list[float] = []
        threads = [threading.Thread(target=lambda k=k: found.append(float(f(np.full(k + 1, 1.0))))) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # other threads use the default device
        assert sorted(found) == [2.0 * (k + 1) for k in range(8)]
