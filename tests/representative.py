"""One function of each kind that schedules are made for, with its gradient: what checkers of kernels are run over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import kernelforge as kf

Array = np.ndarray[Any, np.dtype[np.float32]]


def gelu(x: Any, b: Any) -> Any:
    y = x + b
    return 0.5 * y * (1 + np.tanh(0.7978845608 * (y + 0.044715 * y * y * y)))


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x: Any, g: Any, b: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * g + b


def columns(x: Any) -> Any:
    return np.exp(x).sum(0)


def contraction(x: Any, w: Any) -> Any:
    return np.tanh(x @ w)


def running(x: Any) -> Any:
    return np.cumsum(x * 0.5, 1)


def attention(q: Any, k: Any, v: Any) -> Any:
    return softmax(q @ k.swapaxes(-1, -2) * 0.25) @ v


def causal(q: Any, k: Any, v: Any) -> Any:
    rows = np.arange(q.shape[-2])
    return softmax(np.where(rows[:, None] >= rows, q @ k.swapaxes(-1, -2) * 0.25, -np.inf)) @ v


def shapes(rows: int, n: int) -> dict[Callable[..., Any], list[tuple[int, ...]]]:
    """The functions, each with the shapes of its arguments."""
    x, row, head = (rows, n), (n,), (2, rows, min(n, 64))
    return {
        gelu: [x, row],
        softmax: [x],
        layer_norm: [x, row, row],
        columns: [x],
        contraction: [x, (n, rows)],
        running: [x],
        attention: [head] * 3,
        causal: [head] * 3,
    }


def derivative(fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    """All gradients of the sum of the squares of ``fn``."""

    def total(*args: Any) -> Any:
        y = fn(*args)
        return (y * y).sum()

    return kf.grad(total, argnums=tuple(range(count)))


def programs(rows: int, n: int) -> dict[str, tuple[Callable[..., Any], list[Array]]]:
    """The functions and their derivatives by name, each with arguments."""
    rng = np.random.default_rng(0)
    out: dict[str, tuple[Callable[..., Any], list[Array]]] = {}
    for fn, shape in shapes(rows, n).items():
        args = [rng.uniform(-1, 1, s).astype(np.float32) for s in shape]
        out[fn.__name__] = (fn, args)
        out[f"{fn.__name__}.bwd"] = (derivative(fn, len(args)), args)
    return out
