"""One step of training a multilayer perceptron: forward, backward, Adam."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from kernelforge.bench.workloads.maps import adam
from kernelforge.bench.workloads.record import Draw, Workload

SIZES = (784, 512, 512, 10)
BATCH = 256
PARAMS = 6
"""w1, b1, w2, b2, w3, b3: the first inputs; their means and mean squares follow, then images and labels."""


def logits(params: Any, images: Any) -> Any:
    hidden = images
    for i in (0, 2):
        hidden = np.maximum(hidden @ params[i] + params[i + 1], 0)
    return hidden @ params[4] + params[5]


def loss(params: Any, images: Any, labels: Any) -> Any:
    """Return the mean softmax cross entropy."""
    scores = logits(params, images)
    shifted = scores - scores.max(1, keepdims=True)
    log_likelihood = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    chosen = np.where(labels[:, None] == np.arange(10), log_likelihood, 0)
    return -chosen.sum(1).mean()


def updated(value: Any, grads: Any, inputs: Any) -> Any:
    """Return the loss, then parameters, means and mean squares after Adam."""
    new = [adam(inputs[i], g, inputs[PARAMS + i], inputs[2 * PARAMS + i]) for i, g in enumerate(grads)]
    return (value, *(n[part] for part in range(3) for n in new))


def step(*inputs: Any) -> Any:
    """Do one step, the gradient by hand."""
    params, images, labels = inputs[:PARAMS], inputs[-2], inputs[-1]
    h1 = np.maximum(images @ params[0] + params[1], 0)
    h2 = np.maximum(h1 @ params[2] + params[3], 0)
    scores = h2 @ params[4] + params[5]
    shifted = scores - scores.max(1, keepdims=True)
    exps = np.exp(shifted)
    sums = exps.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    value = (np.log(sums[:, 0]) - shifted[rows, labels]).mean()
    d3 = exps / sums
    d3[rows, labels] -= 1
    d3 /= d3.dtype.type(len(labels))
    d2 = (d3 @ params[4].T) * (h2 > 0)
    d1 = (d2 @ params[2].T) * (h1 > 0)
    grads = (images.T @ d1, d1.sum(0), h1.T @ d2, d2.sum(0), h2.T @ d3, d3.sum(0))
    return updated(value, grads, inputs)


def _inputs(draw: Draw) -> Any:
    shapes = [s for m, n in itertools.pairwise(SIZES) for s in ((m, n), (n,))]
    params = [draw.normal(*s, scale=s[0] ** -0.5 if len(s) == 2 else 0.1) for s in shapes]
    means = [draw.normal(*s, scale=1e-3) for s in shapes]
    squares = [draw.uniform(*s, low=1e-6, high=1e-5) for s in shapes]
    return [*params, *means, *squares, draw.normal(BATCH, SIZES[0]), draw.integers(SIZES[-1], BATCH)]


_FLOPS = 2.0 * BATCH * (3 * sum(m * n for m, n in itertools.pairwise(SIZES)) - SIZES[0] * SIZES[1])
"""Three products a layer; the first layer's input needs no gradient."""

WORKLOADS = (
    Workload(
        "mlp_step", "steps", "training step MLP 784-512-512-10, batch 256, Adam", _inputs, step, step, flops=_FLOPS
    ),
)
