"""Steps of training, forward, backward and Adam: a multilayer perceptron, a residual network, a transformer block."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.bench.workloads.maps import adam, gelu, gelu_slope
from kernelforge.bench.workloads.products import attention, attention_bwd, conv3x3, conv3x3_bwd
from kernelforge.bench.workloads.record import Array, Draw, Workload
from kernelforge.bench.workloads.rows import batchnorm, batchnorm_bwd, layernorm, layernorm_bwd


@dataclasses.dataclass(frozen=True, slots=True)
class Training:
    """A step of training. Its inputs are the parameters, their means and mean squares, then the data.

    Attributes:
        title: for people.
        shapes: of the parameters. Vectors are biases, or the scales of norms where ``scales`` names their places.
        data: draws what the loss takes besides the parameters.
        loss: of the parameters and the data, in NumPy.
        by_hand: of the same, the loss and its gradients by the parameters.
        flops: of the products.
    """

    title: str
    shapes: tuple[tuple[int, ...], ...]
    data: Callable[[Draw], Sequence[Array]]
    loss: Callable[..., Any]
    by_hand: Callable[..., tuple[Any, Sequence[Any]]]
    flops: float
    scales: tuple[int, ...] = ()

    def split(self, inputs: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Return parameters, means, mean squares and data."""
        n = len(self.shapes)
        return list(inputs[:n]), list(inputs[n : 2 * n]), list(inputs[2 * n : 3 * n]), list(inputs[3 * n :])

    def updated(self, value: Any, grads: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """Return the loss, then parameters, means and mean squares after Adam."""
        params, means, squares, _ = self.split(inputs)
        new = [adam(*leaf) for leaf in zip(params, grads, means, squares, strict=True)]
        return (value, *(n[part] for part in range(3) for n in new))

    def step(self, *inputs: Any) -> Any:
        """Do one step, the gradient by hand."""
        params, _, _, data = self.split(inputs)
        return self.updated(*self.by_hand(params, *data), inputs)

    def draw(self, draw: Draw) -> list[Array]:
        params = [
            draw.uniform(*s, low=0.5, high=1.5) if i in self.scales
            else draw.normal(*s, scale=0.1 if len(s) == 1 else _inputs_of(s) ** -0.5)
            for i, s in enumerate(self.shapes)
        ]  # fmt: skip
        means = [draw.normal(*s, scale=1e-3) for s in self.shapes]
        squares = [draw.uniform(*s, low=1e-6, high=1e-5) for s in self.shapes]
        return [*params, *means, *squares, *self.data(draw)]


def _inputs_of(shape: Sequence[int]) -> int:
    """Return how many inputs one output of a layer sums: matrices hold them in rows, filters have outputs first."""
    return shape[0] if len(shape) == 2 else math.prod(shape[1:])


def cross_entropy(scores: Any, labels: Any) -> Any:
    """Return the mean softmax cross entropy."""
    shifted = scores - scores.max(1, keepdims=True)
    log_likelihood = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    chosen = np.where(labels[:, None] == np.arange(10), log_likelihood, 0)
    return -chosen.sum(1).mean()


def _cross_entropy_bwd(scores: Any, labels: Any) -> tuple[Any, Any]:
    shifted = scores - scores.max(1, keepdims=True)
    exps = np.exp(shifted)
    sums = exps.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    value = (np.log(sums[:, 0]) - shifted[rows, labels]).mean()
    d = exps / sums
    d[rows, labels] -= 1
    return value, d / d.dtype.type(len(labels))


SIZES = (784, 512, 512, 10)
BATCH = 256


def mlp_loss(params: Any, images: Any, labels: Any) -> Any:
    hidden = images
    for i in (0, 2):
        hidden = np.maximum(hidden @ params[i] + params[i + 1], 0)
    return cross_entropy(hidden @ params[4] + params[5], labels)


def _mlp(params: Any, images: Any, labels: Any) -> tuple[Any, Sequence[Any]]:
    h1 = np.maximum(images @ params[0] + params[1], 0)
    h2 = np.maximum(h1 @ params[2] + params[3], 0)
    value, d3 = _cross_entropy_bwd(h2 @ params[4] + params[5], labels)
    d2 = (d3 @ params[4].T) * (h2 > 0)
    d1 = (d2 @ params[2].T) * (h1 > 0)
    return value, (images.T @ d1, d1.sum(0), h1.T @ d2, d2.sum(0), h2.T @ d3, d3.sum(0))


CHANNELS, SIDE, IMAGES = 32, 32, 32


def resnet_loss(params: Any, images: Any, labels: Any) -> Any:
    """Stem, residual block and dense layer; each convolution is followed by batch norm."""
    w0, g0, c0, w1, g1, c1, w2, g2, c2, dense, bias = params
    x = np.maximum(batchnorm(conv3x3(images, w0), g0, c0), 0)
    y = np.maximum(batchnorm(conv3x3(x, w1), g1, c1), 0)
    y = np.maximum(batchnorm(conv3x3(y, w2), g2, c2) + x, 0)
    return cross_entropy(y.mean((2, 3)) @ dense + bias, labels)


def _resnet(params: Any, images: Any, labels: Any) -> tuple[Any, Sequence[Any]]:
    w0, g0, c0, w1, g1, c1, w2, g2, c2, dense, bias = params
    a0 = conv3x3(images, w0)
    x = np.maximum(batchnorm(a0, g0, c0), 0)
    a1 = conv3x3(x, w1)
    h = np.maximum(batchnorm(a1, g1, c1), 0)
    a2 = conv3x3(h, w2)
    y = np.maximum(batchnorm(a2, g2, c2) + x, 0)
    pooled = y.mean((2, 3))
    value, d = _cross_entropy_bwd(pooled @ dense + bias, labels)
    dy = (d @ dense.T)[:, :, None, None] * (y > 0) / (SIDE * SIDE)
    _, da2, dg2, dc2 = batchnorm_bwd(a2, g2, c2, dy)
    _, dh, dw2 = conv3x3_bwd(h, w2, da2)
    _, da1, dg1, dc1 = batchnorm_bwd(a1, g1, c1, dh * (h > 0))
    _, dx, dw1 = conv3x3_bwd(x, w1, da1)
    _, da0, dg0, dc0 = batchnorm_bwd(a0, g0, c0, (dx + dy) * (x > 0))
    _, _, dw0 = conv3x3_bwd(images, w0, da0)
    return value, (dw0, dg0, dc0, dw1, dg1, dc1, dw2, dg2, dc2, pooled.T @ d, d.sum(0))


SEQUENCES, LENGTH, WIDTH, HEADS, INNER = 8, 128, 256, 4, 1024
TOKENS = SEQUENCES * LENGTH


def _apart(x: Any) -> Any:
    """Split the columns of tokens into heads."""
    return x.reshape(SEQUENCES, LENGTH, HEADS, WIDTH // HEADS).transpose(0, 2, 1, 3)


def _joined(x: Any) -> Any:
    return x.transpose(0, 2, 1, 3).reshape(TOKENS, WIDTH)


def _queries_keys_values(x: Any) -> list[Any]:
    return [_apart(x[:, i * WIDTH : (i + 1) * WIDTH]) for i in range(3)]


def transformer_loss(params: Any, x: Any, target: Any) -> Any:
    """Attention and two layers, each behind a layer norm and beside a way around; then the mean square."""
    g1, c1, into, out, g2, c2, w1, b1, w2, b2 = params
    y = x + _joined(attention(*_queries_keys_values(layernorm(x, g1, c1) @ into))) @ out
    z = y + gelu(layernorm(y, g2, c2) @ w1, b1) @ w2 + b2
    return ((z - target) ** 2).mean()


def _transformer(params: Any, x: Any, target: Any) -> tuple[Any, Sequence[Any]]:
    g1, c1, into, out, g2, c2, w1, b1, w2, b2 = params
    first = layernorm(x, g1, c1)
    q, k, v = _queries_keys_values(first @ into)
    seen = _joined(attention(q, k, v))
    y = x + seen @ out
    second = layernorm(y, g2, c2)
    inner, slope = gelu_slope(second @ w1 + b1)
    off = y + inner @ w2 + b2 - target
    dz = 2 * off / off.size
    di = dz @ w2.T * slope
    _, dy, dg2, dc2 = layernorm_bwd(y, g2, c2, di @ w1.T)
    dy = dy + dz
    _, *dqkv = attention_bwd(q, k, v, _apart(dy @ out.T))
    dp = np.concatenate([_joined(d) for d in dqkv], axis=1)
    _, _, dg1, dc1 = layernorm_bwd(x, g1, c1, dp @ into.T)
    grads = (dg1, dc1, first.T @ dp, seen.T @ dy, dg2, dc2, second.T @ di, di.sum(0), inner.T @ dz, dz.sum(0))
    return (off**2).mean(), grads


_LAYERS = tuple(itertools.pairwise(SIZES))
_FILTERS = tuple((CHANNELS, c, 3, 3) for c in (3, CHANNELS, CHANNELS))

TRAINING = {
    # three products a layer; the first layer's input needs no gradient
    "mlp_step": Training(
        "training step MLP 784-512-512-10, batch 256, Adam",
        tuple(s for m, n in _LAYERS for s in ((m, n), (n,))),
        lambda d: (d.normal(BATCH, SIZES[0]), d.integers(SIZES[-1], BATCH)),
        mlp_loss,
        _mlp,
        2.0 * BATCH * (3 * sum(m * n for m, n in _LAYERS) - SIZES[0] * SIZES[1]),
    ),
    "resnet_step": Training(
        f"training step residual block of {CHANNELS} channels, batch {IMAGES}×{SIDE}×{SIDE}, Adam",
        (*(s for f in _FILTERS for s in (f, (CHANNELS,), (CHANNELS,))), (CHANNELS, 10), (10,)),
        lambda d: (d.normal(IMAGES, 3, SIDE, SIDE), d.integers(10, IMAGES)),
        resnet_loss,
        _resnet,
        2.0 * IMAGES * SIDE * SIDE * (3 * sum(map(math.prod, _FILTERS)) - math.prod(_FILTERS[0])),
        scales=(1, 4, 7),
    ),
    "transformer_step": Training(
        f"training step transformer block of width {WIDTH}, batch {SEQUENCES}×{LENGTH}, Adam",
        (
            (WIDTH,), (WIDTH,), (WIDTH, 3 * WIDTH), (WIDTH, WIDTH),
            (WIDTH,), (WIDTH,), (WIDTH, INNER), (INNER,), (INNER, WIDTH), (WIDTH,),
        ),
        lambda d: (d.normal(TOKENS, WIDTH), d.normal(TOKENS, WIDTH)),
        transformer_loss,
        _transformer,
        # two products of tokens with keys and values, and five for their gradients
        6.0 * TOKENS * WIDTH * (4 * WIDTH + 2 * INNER) + 14.0 * TOKENS * LENGTH * WIDTH,
        scales=(0, 4),
    ),
}  # fmt: skip
"""The steps by the names of their workloads."""

WORKLOADS = tuple(
    Workload(name, "steps", t.title, t.draw, t.step, t.step, flops=t.flops) for name, t in TRAINING.items()
)
