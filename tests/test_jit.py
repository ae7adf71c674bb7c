"""Calls of compiled functions: arguments, results, keys, and what can be looked at."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

X = np.linspace(-1.0, 2.0, 6)
M = X.reshape(2, 3)


pytestmark = pytest.mark.usefixtures("reference")


def test_trees() -> None:
    @kf.jit
    def f(p: dict[str, Any], xs: tuple[Any, ...], *, scale: Any = 2.0, bias: Any = None) -> Any:
        return {"out": p["w"] * xs[0] * scale, "rest": [xs[1], None, bias], "n": 3}

    out = f({"w": X}, (X, M), scale=3)
    assert isinstance(out["out"], kf.Array)
    np.testing.assert_allclose(out["out"], X * X * 3)
    assert out["rest"][1:] == [None, None]
    np.testing.assert_array_equal(out["rest"][0], M)
    assert int(out["n"]) == 3


def test_compiles_once_per_type() -> None:
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


def test_static() -> None:
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
    with pytest.raises(
        errors.UnhashableStatic, match="the static argument mode is of the type list, which cannot be hashed"
    ):
        f(X, 1, mode=[])
    with pytest.raises(errors.UnknownParameter, match="static argument 'nope' is no parameter"):
        kf.jit(lambda x: x, static_argnames="nope")


def test_static_types_differ() -> None:
    f = kf.jit(lambda x, s: x + s, static_argnums=1)
    assert f(np.arange(3), 1).dtype == np.int64
    assert f(np.arange(3), 1.0).dtype == np.float64
    assert f(np.ones(1, bool), True).dtype == np.bool_


def test_inputs() -> None:
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
    with pytest.raises(errors.InvalidArgument, match=r"x\['a'\] is builtins.str; expected arrays"):
        f({"a": "text"})
    with pytest.raises(errors.UnsupportedDtype, match="object"):
        f(np.array([None]))
    with pytest.raises(OverflowError, match="does not fit int64"):
        f(2**70)


def test_a_python_integer_that_does_not_fit_is_refused_as_by_numpy() -> None:
    f = kf.jit(lambda x, k: x + k)
    x = np.array([1, -3], np.int8)
    for _ in range(3):  # the third call goes by the device's entry where it has one
        np.testing.assert_array_equal(f(x, 100), x + 100)
        for k in (300, -129):
            with pytest.raises(OverflowError):
                x + k
            with pytest.raises(
                errors.NumberOutOfRange, match=f"the Python number {k} does not fit int8; cast the array"
            ):
                f(x, k)
    with pytest.raises(errors.NumberOutOfRange, match="the Python number -1 does not fit uint8"):
        f(x.view(np.uint8), -1)
    np.testing.assert_array_equal(f(x.astype(np.int64), 300), [301, 297])


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u8", "i8"])
def test_a_comparison_takes_any_python_integer(dtype: str) -> None:
    """As NumPy answers ``np.uint8(3) < 300``, for numbers that are known while compiling and those that are not."""

    def compared(x: Any, k: Any) -> Any:
        return x < k, x <= k, x == k, x != k, k < x, x >= k

    f, x = kf.jit(compared), np.array([0, 3, 100], dtype)
    for k in (300, -129, 3, -1, 2**40, -(2**40)):
        for got, want in zip(f(x, k), compared(x, k), strict=True):
            np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(kf.jit(lambda x, k: x * (x < k) + k)(x, 3), x * (x < 3) + 3)


def test_lower() -> None:
    f = kf.jit(lambda x: np.tanh(x) + 1)
    lowered = f.lower(X)
    assert len(lowered.kernels) == len(lowered.regions) == 1
    assert "tanh" in lowered.text()
    assert lowered.kernels[0].bytes == 96
    assert "1 kernel" in str(f.explain(X))


def test_wraps() -> None:
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


def test_methods() -> None:
    class Model:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        @kf.jit(static_argnums=0)
        def call(self, x: Any) -> Any:
            return x * self.scale

    np.testing.assert_array_equal(Model(3.0).call(X), X * 3)
    np.testing.assert_array_equal(Model(4.0).call(X), X * 4)


def test_nested() -> None:
    inner = kf.jit(lambda x, n: x * n + np.zeros(6))
    agrees_once = kf.jit(lambda x: inner(x, 2) + inner(x + 1, 3))
    np.testing.assert_allclose(agrees_once(X), X * 2 + (X + 1) * 3)
    assert len(agrees_once.lower(X).kernels) == 1


def test_closure() -> None:
    table = np.arange(6.0)
    device = kf.asarray(table) + 1
    np.testing.assert_allclose(kf.jit(lambda x: x * table + device)(X), X * table + table + 1)


def test_config_is_part_of_the_key() -> None:
    f = kf.jit(lambda x: np.sin(x) + np.cos(x))
    assert len(f.lower(X).kernels) == 1
    with kf.config(fusion=False):
        assert len(f.lower(X).kernels) == 3


def test_outputs_that_are_inputs() -> None:
    a, b, c = kf.jit(lambda x: (x, x, 1.5))(X)
    np.testing.assert_array_equal(a, X)
    np.testing.assert_array_equal(b, X)
    assert float(c) == 1.5


def test_threads() -> None:
    f = kf.jit(lambda x: (x * 2).sum())
    found: list[float] = []
    threads = [threading.Thread(target=lambda k=k: found.append(float(f(np.full(k + 1, 1.0))))) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # other threads use the default device
    assert sorted(found) == [2.0 * (k + 1) for k in range(8)]


def test_what_is_lowered_is_shown_in_a_line() -> None:
    lowered = kf.jit(lambda x: (x + 1).sum()).lower(np.ones(3))
    assert repr(lowered) == f"<Lowered to 1 kernels: {lowered.kernels[0].name}>"
    assert repr(lowered.kernels[0]) == f"<kernel {lowered.kernels[0].name}: 32 bytes, 6 flops>"
    assert repr(lowered.graph).startswith("<Graph: 1 inputs, ")
    assert max(len(repr(x)) for x in (lowered.plan, lowered.regions)) < 300
