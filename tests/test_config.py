"""Both values of every setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.ir.interpret import run_kernel, tf32
from kernelforge.ir.kernel import Op, exprs, stmts, walk


def operations(lowered) -> set[str]:  # type: ignore[no-untyped-def]
    kernels = lowered.kernels
    return {e.op for k in kernels for s in stmts(k.ir.body) for r in exprs(s) for e in walk(r) if isinstance(e, Op)}


def axpy(x, y):  # type: ignore[no-untyped-def]
    return 3 * x + y


X, Y = np.linspace(-1, 1, 50, dtype=np.float32), np.linspace(2, 3, 50, dtype=np.float32)


def test_rounding() -> None:
    with kf.config(rounding="strict"):
        assert "fma" not in operations(kf.jit(axpy).lower(X, Y))
        np.testing.assert_array_equal(kf.jit(axpy)(X, Y), axpy(X, Y))
    with kf.config(rounding="fast"):
        assert "fma" in operations(kf.jit(axpy).lower(X, Y))
        np.testing.assert_allclose(kf.jit(axpy)(X, Y), axpy(X, Y), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(kf.jit(np.tanh)(X), np.tanh(X.astype(np.float64)), rtol=1e-6)


M = np.random.default_rng(0).standard_normal((64, 64), np.float32)


def test_precision() -> None:
    """What may be rounded is, where tensor cores take it, and the same bits come from all other devices."""
    product = kf.jit(lambda x, y: x @ y)
    with kf.config(precision="highest"):
        want = product(M, M)
        assert "tf32" not in operations(product.lower(M, M, target="cuda:sm_90"))
    with kf.config(precision="high"):
        np.testing.assert_array_equal(product(M, M), want)
        lowered = product.lower(M, M, target="cuda:sm_90")
        assert "tf32" in operations(lowered)
        assert "tf32" not in operations(product.lower(M, M, target="opencl:gfx90a"))
        assert "tf32" not in operations(product.lower(M.astype(np.float64), M.astype(np.float64), target="cuda:sm_90"))
    (kernel,) = lowered.kernels
    held = {"x": M.ravel(), "y": M.ravel(), "o": np.zeros(M.size, np.float32)}
    held = dict(zip([a.name for a in kernel.naive.args], held.values(), strict=True))
    run_kernel(kernel.naive, held, {})
    rounded = tf32(M).astype(np.float64)
    np.testing.assert_allclose(
        held[kernel.naive.args[-1].name].reshape(M.shape), rounded @ rounded, rtol=1e-5, atol=1e-5
    )
    assert np.abs(rounded @ rounded - want).max() > 1e-3


@pytest.mark.parametrize(
    "fn",
    [lambda x: (x * x).sum(1), lambda x: (x * 0.3).sum(0), lambda x: np.var(x, 1), lambda x: np.linalg.norm(x, axis=1)],
)
def test_precision_of_sums_that_are_no_contractions(fn: Any) -> None:
    with kf.config(precision="high"):
        assert "tf32" not in operations(kf.jit(fn).lower(M, target="cuda:sm_90"))


def test_fusion() -> None:
    with kf.config(fusion=True):
        assert len(kf.jit(axpy).lower(X, Y).kernels) == 1
    with kf.config(fusion=False):
        assert len(kf.jit(axpy).lower(X, Y).kernels) == 2
        np.testing.assert_array_equal(kf.jit(axpy)(X, Y), axpy(X, Y))


@pytest.mark.parametrize("verify", [False, True])
def test_verify(verify: bool) -> None:
    with kf.config(verify=verify):
        np.testing.assert_array_equal(kf.jit(axpy)(X, Y), axpy(X, Y))


def test_a_setting_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="speed"), kf.config(speed=11):
        pass
