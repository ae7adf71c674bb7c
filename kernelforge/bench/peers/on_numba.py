"""numba: loops as its users write them, ``njit(parallel=True, fastmath=True)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log, sqrt, tanh
from typing import Any

import numba
import numpy as np
from numba import njit, prange

from kernelforge.bench.peers.base import Peer, Setting, Unsupported
from kernelforge.bench.workloads.maps import GELU_CUBE, GELU_SCALE
from kernelforge.bench.workloads.record import Array, Workload
from kernelforge.bench.workloads.rows import EPSILON, KEEP

REQUIRES = ("numba", "llvmlite", "numpy")
ONE, HALF, SCALE, CUBE, TINY = (np.float32(x) for x in (1, 0.5, GELU_SCALE, GELU_CUBE, EPSILON))
SHARE, THREE = np.float32(1 / KEEP), np.float32(3)
Fn = Callable[..., Any]


def loops(fn: Fn) -> Fn:
    compiled: Fn = njit(parallel=True, fastmath=True, cache=True)(fn)
    return compiled


def quick(fn: Fn) -> Fn:
    compiled: Fn = njit(cache=True)(fn)
    return compiled


def inlined(fn: Fn) -> Fn:
    compiled: Fn = njit(fastmath=True, inline="always", cache=True)(fn)
    return compiled


@loops
def tanh_exp(x: Any) -> Any:
    y = np.empty_like(x)
    for i in prange(x.size):
        v = x[i]
        y[i] = tanh(THREE * HALF * v + HALF) * (ONE + ONE) + exp(-v * v)
    return y


@loops
def tanh_exp_bwd(x: Any, g: Any) -> Any:
    y, dx = np.empty_like(x), np.empty_like(x)
    for i in prange(x.size):
        v = x[i]
        t, e = tanh(THREE * HALF * v + HALF), exp(-v * v)
        y[i] = t * (ONE + ONE) + e
        dx[i] = g[i] * (THREE * (ONE - t * t) - (v + v) * e)
    return y, dx


@loops
def gelu(x: Any, b: Any) -> Any:
    y = np.empty_like(x)
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            v = x[i, j] + b[j]
            y[i, j] = HALF * v * (ONE + tanh(SCALE * (v + CUBE * v * v * v)))
    return y


@loops
def gelu_bwd(x: Any, b: Any, g: Any) -> Any:
    y, dx = np.empty_like(x), np.empty_like(x)
    workers = numba.get_num_threads()
    parts = np.zeros((workers, x.shape[1]), np.float32)
    chunk = (x.shape[0] + workers - 1) // workers
    for k in prange(workers):
        for i in range(k * chunk, min(x.shape[0], (k + 1) * chunk)):
            for j in range(x.shape[1]):
                v = x[i, j] + b[j]
                t = tanh(SCALE * (v + CUBE * v * v * v))
                y[i, j] = HALF * v * (ONE + t)
                slope = HALF * (ONE + t) + HALF * v * (ONE - t * t) * SCALE * (ONE + THREE * CUBE * v * v)
                d = g[i, j] * slope
                dx[i, j] = d
                parts[k, j] += d
    return y, dx, parts.sum(0)


@quick
def call_16(x: Any) -> Any:
    return (ONE + ONE) * x + ONE


@loops
def rowsum(x: Any) -> Any:
    out = np.empty(x.shape[0], np.float32)
    for i in prange(x.shape[0]):
        total = np.float32(0)
        for j in range(x.shape[1]):
            total += x[i, j]
        out[i] = total
    return out


@loops
def colsum(x: Any) -> Any:
    out = np.zeros(x.shape[1], np.float32)
    width = 256
    for k in prange(x.shape[1] // width):
        for i in range(x.shape[0]):
            for j in range(k * width, (k + 1) * width):
                out[j] += x[i, j]
    return out


def fullsum(x: Any) -> Any:
    return np.asarray(rowsum(x).sum())


@loops
def softmax(x: Any) -> Any:
    y = np.empty_like(x)
    for i in prange(x.shape[0]):
        top = x[i, 0]
        for j in range(x.shape[1]):
            top = max(top, x[i, j])
        total = np.float32(0)
        for j in range(x.shape[1]):
            y[i, j] = exp(x[i, j] - top)
            total += y[i, j]
        for j in range(x.shape[1]):
            y[i, j] *= ONE / total
    return y


@loops
def softmax_bwd(x: Any, g: Any) -> Any:
    y, dx = np.empty_like(x), np.empty_like(x)
    for i in prange(x.shape[0]):
        top = x[i, 0]
        for j in range(x.shape[1]):
            top = max(top, x[i, j])
        total, inner = np.float32(0), np.float32(0)
        for j in range(x.shape[1]):
            y[i, j] = exp(x[i, j] - top)
            total += y[i, j]
            inner += y[i, j] * g[i, j]
        inner /= total
        for j in range(x.shape[1]):
            y[i, j] *= ONE / total
            dx[i, j] = y[i, j] * (g[i, j] - inner)
    return y, dx


@loops
def logsumexp(x: Any) -> Any:
    out = np.empty(x.shape[0], np.float32)
    for i in prange(x.shape[0]):
        top = x[i, 0]
        for j in range(x.shape[1]):
            top = max(top, x[i, j])
        total = np.float32(0)
        for j in range(x.shape[1]):
            total += exp(x[i, j] - top)
        out[i] = log(total) + top
    return out


@inlined
def moments(row: Any) -> Any:
    """Return the mean of a row, and what brings its deviations to variance one."""
    n, total, squares = np.float32(row.size), np.float32(0), np.float32(0)
    for j in range(row.size):
        total += row[j]
    mean = total / n
    for j in range(row.size):
        squares += (row[j] - mean) * (row[j] - mean)
    return mean, ONE / sqrt(squares / n + TINY)


@loops
def layernorm(x: Any, gamma: Any, beta: Any) -> Any:
    y = np.empty_like(x)
    for i in prange(x.shape[0]):
        mean, scale = moments(x[i])
        for j in range(x.shape[1]):
            y[i, j] = (x[i, j] - mean) * scale * gamma[j] + beta[j]
    return y


@loops
def layernorm_bwd(x: Any, gamma: Any, beta: Any, g: Any) -> Any:
    y, dx = np.empty_like(x), np.empty_like(x)
    workers, n = numba.get_num_threads(), np.float32(x.shape[1])
    dgamma, dbeta = np.zeros((workers, x.shape[1]), np.float32), np.zeros((workers, x.shape[1]), np.float32)
    chunk = (x.shape[0] + workers - 1) // workers
    for k in prange(workers):
        for i in range(k * chunk, min(x.shape[0], (k + 1) * chunk)):
            mean, scale = moments(x[i])
            inner, along = np.float32(0), np.float32(0)
            for j in range(x.shape[1]):
                unit, d = (x[i, j] - mean) * scale, g[i, j] * gamma[j]
                y[i, j] = unit * gamma[j] + beta[j]
                inner += d
                along += d * unit
                dgamma[k, j] += g[i, j] * unit
                dbeta[k, j] += g[i, j]
            inner /= n
            along /= n
            for j in range(x.shape[1]):
                unit = (x[i, j] - mean) * scale
                dx[i, j] = scale * (g[i, j] * gamma[j] - inner - unit * along)
    return y, dx, dgamma.sum(0), dbeta.sum(0)


@loops
def batchnorm(x: Any, gamma: Any, beta: Any) -> Any:
    n, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    flat = x.reshape(n, channels, pixels)
    y = np.empty_like(flat)
    count = np.float32(n * pixels)
    for c in prange(channels):
        total, squares = np.float32(0), np.float32(0)
        for i in range(n):
            for j in range(pixels):
                total += flat[i, c, j]
        mean = total / count
        for i in range(n):
            for j in range(pixels):
                squares += (flat[i, c, j] - mean) * (flat[i, c, j] - mean)
        scale = gamma[c] / sqrt(squares / count + TINY)
        for i in range(n):
            for j in range(pixels):
                y[i, c, j] = (flat[i, c, j] - mean) * scale + beta[c]
    return y.reshape(x.shape)


@loops
def dropout_layernorm(x: Any, residual: Any, gamma: Any, beta: Any) -> Any:
    y = np.empty_like(x)
    for i in prange(x.shape[0]):
        state = np.uint32(i * 2654435769 + 12345)  # xorshift32; Marsaglia 2003
        for j in range(x.shape[1]):
            state ^= np.uint32(state << np.uint32(13))
            state ^= np.uint32(state >> np.uint32(17))
            state ^= np.uint32(state << np.uint32(5))
            v = residual[i, j]
            if state < np.uint32(KEEP * 2**32):
                v += x[i, j] * SHARE
            y[i, j] = v
        mean, scale = moments(y[i])
        for j in range(x.shape[1]):
            y[i, j] = (y[i, j] - mean) * scale * gamma[j] + beta[j]
    return y


@loops
def gemv(a: Any, x: Any) -> Any:
    out = np.empty(a.shape[0], np.float32)
    for i in prange(a.shape[0]):
        total = np.float32(0)
        for j in range(a.shape[1]):
            total += a[i, j] * x[j]
        out[i] = total
    return out


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tanh_exp": tanh_exp,
    "tanh_exp.bwd": tanh_exp_bwd,
    "gelu": gelu,
    "gelu.bwd": gelu_bwd,
    "call_16": call_16,
    "rowsum": rowsum,
    "colsum": colsum,
    "fullsum": fullsum,
    "softmax_4096x1024": softmax,
    "softmax_64x65536": softmax,
    "softmax_4096x1024.bwd": softmax_bwd,
    "softmax_64x65536.bwd": softmax_bwd,
    "logsumexp": logsumexp,
    "layernorm": layernorm,
    "layernorm.bwd": layernorm_bwd,
    "batchnorm": batchnorm,
    "dropout_layernorm": dropout_layernorm,
    "gemv_4096": gemv,
}


class Numba(Peer):
    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        if work.name not in FUNCTIONS:
            raise Unsupported(f"nobody wrote {work.name} for numba")
        fn = FUNCTIONS[work.name]
        return lambda: fn(*inputs)


def start(setting: Setting) -> Peer:
    numba.set_num_threads(setting.threads)
    return Numba(setting)
