"""Reductions and normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.bench.workloads.record import Array, Draw, Workload, distance, with_backward

EPSILON = 1e-5
KEEP = 0.9
"""The probability that dropout keeps an element."""


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_bwd(x: Any, g: Any) -> Any:
    y = softmax(x)
    return y, y * (g - (g * y).sum(-1, keepdims=True))


def logsumexp(x: Any) -> Any:
    top = x.max(-1)
    return np.log(np.exp(x - top[..., None]).sum(-1)) + top


def layernorm(x: Any, gamma: Any, beta: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * gamma + beta


def batchnorm(x: Any, gamma: Any, beta: Any) -> Any:
    centred = x - x.mean((0, 2, 3), keepdims=True)
    spread = np.sqrt((centred**2).mean((0, 2, 3), keepdims=True) + EPSILON)
    return centred / spread * gamma[:, None, None] + beta[:, None, None]


def _norm_bwd(x: Any, gamma: Any, beta: Any, g: Any, over: Any, others: Any) -> Any:
    """Differentiate a normalisation over the axes ``over``; parameters are summed over ``others``."""
    centred = x - x.mean(over, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(over, keepdims=True) + EPSILON)
    unit, inner = centred * scale, g * gamma
    dx = scale * (inner - inner.mean(over, keepdims=True) - unit * (inner * unit).mean(over, keepdims=True))
    return unit * gamma + beta, dx, (g * unit).sum(others), g.sum(others)


def layernorm_bwd(x: Any, gamma: Any, beta: Any, g: Any) -> Any:
    return _norm_bwd(x, gamma, beta, g, -1, 0)


def batchnorm_bwd(x: Any, gamma: Any, beta: Any, g: Any) -> Any:
    return _norm_bwd(x, gamma[:, None, None], beta[:, None, None], g, (0, 2, 3), (0, 2, 3))


def dropout_layernorm(x: Any, residual: Any, gamma: Any, beta: Any, kept: Any) -> Any:
    """Normalise what dropout with the mask ``kept`` leaves of x, and the residual."""
    return layernorm(np.where(kept, x / KEEP, 0) + residual, gamma, beta)


def check_dropout(inputs: Sequence[Array], got: Sequence[Array]) -> float:
    """Recover each element's fate from the result, and compare all of them given that mask.

    The normalisation is undone by a straight line for each row, fitted to the elements taken to be kept, and fitted
    again once each element is taken for what it is nearest to.
    """
    x, residual, gamma, beta = (a.astype(np.float64) for a in inputs)
    if len(got) != 1 or got[0].shape != x.shape or not np.isfinite(got[0]).all():
        return float("inf")
    unit = (got[0].astype(np.float64) - beta) / gamma
    lost, whole = residual, residual + x / KEEP
    kept = np.ones(x.shape, np.bool_)
    for _ in range(6):
        before = np.where(kept, whole, lost)
        mean, unit_mean = before.mean(-1, keepdims=True), unit.mean(-1, keepdims=True)
        spread = ((unit - unit_mean) ** 2).mean(-1, keepdims=True)
        slope = ((before - mean) * (unit - unit_mean)).mean(-1, keepdims=True) / np.maximum(spread, 1e-30)
        line = mean + slope * (unit - unit_mean)
        kept = np.abs(line - whole) <= np.abs(line - lost)
    if abs(kept.mean() - KEEP) > 5 * (KEEP * (1 - KEEP) / x.size) ** 0.5:
        return float("inf")
    return distance(got, (dropout_layernorm(x, residual, gamma, beta, kept),))


def _affine(draw: Draw, features: int) -> tuple[Array, Array]:
    return draw.uniform(features, low=0.5, high=1.5), draw.normal(features)


def _dropout_oracle(x: Any, residual: Any, gamma: Any, beta: Any) -> Any:
    return dropout_layernorm(x, residual, gamma, beta, True)


FOUR, WIDE, TALL, IMAGES = (4096, 4096), (64, 65536), (4096, 1024), (32, 64, 56, 56)


def _norm(name: str, title: str, shape: tuple[int, ...], features: int, fn: Any, bwd: Any) -> tuple[Workload, Workload]:
    def make(d: Draw) -> tuple[Array, ...]:
        return d.normal(*shape), *_affine(d, features)

    return with_backward(Workload(name, "norms", title, make, fn, fn), shape, bwd, (0, 1, 2))


def _sum(name: str, title: str, axis: int | None) -> Workload:
    def total(x: Any) -> Any:
        return x.sum(axis)

    return Workload(name, "rows", f"{title} 4096×4096", lambda d: (d.uniform(*FOUR),), total, total)


def _softmax(rows: int, columns: int) -> tuple[Workload, Workload]:
    shape = (rows, columns)
    name = f"softmax_{rows}x{columns}"
    work = Workload(name, "rows", f"softmax {rows}×{columns}", lambda d: (d.normal(*shape),), softmax, softmax)
    return with_backward(work, shape, softmax_bwd, (0,))


WORKLOADS = (
    _sum("rowsum", "row sums", 1),
    _sum("colsum", "column sums", 0),
    _sum("fullsum", "full sum", None),
    *_softmax(*TALL),
    *_softmax(*WIDE),
    Workload("logsumexp", "rows", "log-sum-exp 4096×4096", lambda d: (d.normal(*FOUR),), logsumexp, logsumexp),
    *_norm("layernorm", "layer norm 4096×1024", TALL, 1024, layernorm, layernorm_bwd),
    *_norm("batchnorm", "batch norm training 32×64×56×56", IMAGES, 64, batchnorm, batchnorm_bwd),
    Workload(
        "dropout_layernorm",
        "norms",
        "dropout + residual + layer norm 4096×1024",
        lambda d: (d.normal(*TALL), d.normal(*TALL), *_affine(d, 1024)),
        _dropout_oracle,
        _dropout_oracle,
        check=check_dropout,
    ),
)
