"""Matrix products, convolutions and attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelforge.bench.workloads.maps import gelu, gelu_slope
from kernelforge.bench.workloads.record import Workload, with_backward
from kernelforge.bench.workloads.rows import softmax


def matmul(x: Any, y: Any) -> Any:
    return x @ y


def linear_gelu(x: Any, w: Any, b: Any) -> Any:
    return gelu(x @ w, b)


def linear_gelu_bwd(x: Any, w: Any, b: Any, g: Any) -> Any:
    value, slope = gelu_slope(x @ w + b)
    dz = g * slope
    return value, dz @ w.T, x.T @ dz, dz.sum(0)


def windows(x: Any) -> Any:
    """Return the 3×3 windows around each pixel, shape (n, c, h, w, 3, 3)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))


def conv3x3(x: Any, w: Any) -> Any:
    return np.tensordot(windows(x), w, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def conv3x3_bwd(x: Any, w: Any, g: Any) -> Any:
    dx = conv3x3(g, w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    dw = np.tensordot(g, windows(x), axes=((0, 2, 3), (0, 2, 3)))
    return conv3x3(x, w), dx, dw


def depthwise3x3(x: Any, w: Any) -> Any:
    return (windows(x) * w[:, None, None]).sum((-2, -1))


def conv1x1(x: Any, w: Any) -> Any:
    n, c, height, width = x.shape
    return (w @ x.reshape(n, c, height * width)).reshape(n, w.shape[0], height, width)


SCALE = 0.125
"""1/sqrt(64), of heads of 64."""


def _weights(q: Any, k: Any, causal: bool) -> Any:
    scores = q @ np.swapaxes(k, -1, -2) * SCALE
    if causal:
        scores = np.where(np.tri(scores.shape[-1], dtype=np.bool_), scores, -np.inf)
    return softmax(scores)


def attention(q: Any, k: Any, v: Any) -> Any:
    return _weights(q, k, False) @ v


def attention_causal(q: Any, k: Any, v: Any) -> Any:
    return _weights(q, k, True) @ v


def _attention_bwd(q: Any, k: Any, v: Any, g: Any, causal: bool) -> Any:
    p = _weights(q, k, causal)
    dp = g @ np.swapaxes(v, -1, -2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * SCALE
    return p @ v, ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ g


def attention_bwd(q: Any, k: Any, v: Any, g: Any) -> Any:
    return _attention_bwd(q, k, v, g, False)


def attention_causal_bwd(q: Any, k: Any, v: Any, g: Any) -> Any:
    return _attention_bwd(q, k, v, g, True)


def _gemm(name: str, n: int, dtype: str) -> Workload:
    def square(draw: Any) -> Any:
        kind = draw.rounded if dtype == "bf16" else draw.normal
        return kind(n, n), kind(n, n)

    return Workload(name, "contractions", f"{dtype} matrix product {n}³", square, matmul, matmul, dtype, 2.0 * n**3)


IMAGE = (8, 64, 56, 56)
PIXELS = 8 * 56 * 56
HEADS = (4, 8, 512, 64)
ATTENTION_FLOPS = 4.0 * 4 * 8 * 512 * 512 * 64

WORKLOADS = (
    *(_gemm(f"sgemm_{n}", n, "f32") for n in (256, 512, 1024, 2048)),
    _gemm("dgemm_1024", 1024, "f64"),
    _gemm("gemm_bf16_1024", 1024, "bf16"),
    Workload(
        "gemv_4096",
        "contractions",
        "matrix times vector 4096×4096",
        lambda d: (d.normal(4096, 4096), d.normal(4096)),
        matmul,
        matmul,
    ),
    *with_backward(
        Workload(
            "linear_gelu",
            "contractions",
            "gelu(x@w+b) 1024×1024×4096",
            lambda d: (d.normal(1024, 1024), d.normal(1024, 4096, scale=1 / 32), d.normal(4096)),
            linear_gelu,
            linear_gelu,
            flops=2.0 * 1024 * 1024 * 4096,
        ),
        (1024, 4096),
        linear_gelu_bwd,
        (0, 1, 2),
    ),
    *with_backward(
        Workload(
            "conv3x3",
            "convolutions",
            "conv 3×3 8×64×56×56→64",
            lambda d: (d.normal(*IMAGE), d.normal(64, 64, 3, 3, scale=1 / 24)),
            conv3x3,
            conv3x3,
            flops=2.0 * PIXELS * 64 * 64 * 9,
        ),
        IMAGE,
        conv3x3_bwd,
        (0, 1),
    ),
    Workload(
        "depthwise3x3",
        "convolutions",
        "depthwise conv 3×3 8×64×56×56",
        lambda d: (d.normal(*IMAGE), d.normal(64, 3, 3)),
        depthwise3x3,
        depthwise3x3,
        flops=2.0 * PIXELS * 64 * 9,
    ),
    Workload(
        "conv1x1",
        "convolutions",
        "conv 1×1 8×64×56×56→64",
        lambda d: (d.normal(*IMAGE), d.normal(64, 64, scale=1 / 8)),
        conv1x1,
        conv1x1,
        flops=2.0 * PIXELS * 64 * 64,
    ),
    *with_backward(
        Workload(
            "attention",
            "attention",
            "attention 4×8×512×64",
            lambda d: tuple(d.normal(*HEADS) for _ in range(3)),
            attention,
            attention,
            flops=ATTENTION_FLOPS,
        ),
        HEADS,
        attention_bwd,
        (0, 1, 2),
    ),
    *with_backward(
        Workload(
            "attention_causal",
            "attention",
            "causal attention 4×8×512×64",
            lambda d: tuple(d.normal(*HEADS) for _ in range(3)),
            attention_causal,
            attention_causal,
            flops=ATTENTION_FLOPS / 2,
        ),
        HEADS,
        attention_causal_bwd,
        (0, 1, 2),
    ),
)
