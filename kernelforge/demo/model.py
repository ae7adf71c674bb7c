"""The model: two layers, softmax cross entropy and Adam, in plain NumPy.

``step`` is what kernelforge compiles; its gradient is derived. ``numpy_step`` does the same with a backward pass
written by hand, as one would without kernelforge.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import kernelforge as kf

RATE, DECAY, DECAY_SQUARES, TINY = 2e-3, 0.9, 0.999, 1e-8
"""Adam's constants; Kingma and Ba, 2015, algorithm 1."""

Tree = dict[str, Any]


def init(hidden: int, seed: int = 0) -> Tree:
    """Draw the parameters and set Adam's moments and step count to zero; all of it is f32."""
    rng = np.random.default_rng(seed)

    def weight(rows: int, columns: int) -> np.ndarray[Any, Any]:
        return np.asarray(rng.standard_normal((rows, columns)) / np.sqrt(rows), np.float32)

    params = {
        "w1": weight(64, hidden),
        "b1": np.zeros(hidden, np.float32),
        "w2": weight(hidden, 10),
        "b2": np.zeros(10, np.float32),
    }
    zeros = {name: np.zeros_like(p) for name, p in params.items()}
    return {"params": params, "mean": zeros, "square": dict(zeros), "count": np.float32(0)}


def logits(params: Tree, images: Any) -> Any:
    """Return scores of shape (n, 10)."""
    hidden = np.tanh(images @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def loss(params: Tree, images: Any, labels: Any) -> Any:
    """Return the mean softmax cross entropy."""
    scores = logits(params, images)
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_likelihood = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    chosen = np.where(labels[:, None] == np.arange(10), log_likelihood, np.float32(0))
    return -chosen.sum(axis=1).mean()


def adam(state: Tree, grads: Tree) -> Tree:
    """Return the state after one update."""
    count = state["count"] + 1
    mean, square, params = {}, {}, {}
    for name, grad in grads.items():
        mean[name] = DECAY * state["mean"][name] + (1 - DECAY) * grad
        square[name] = DECAY_SQUARES * state["square"][name] + (1 - DECAY_SQUARES) * grad * grad
        direction = mean[name] / (1 - DECAY**count)
        spread = np.sqrt(square[name] / (1 - DECAY_SQUARES**count)) + TINY
        params[name] = state["params"][name] - RATE * direction / spread
    return {"params": params, "mean": mean, "square": square, "count": count}


@kf.jit
def step(state: Tree, images: Any, labels: Any) -> tuple[Tree, Any]:
    """Return the state after one step of training, and the loss before it."""
    value, grads = kf.value_and_grad(loss)(state["params"], images, labels)
    return adam(state, grads), value


def numpy_step(state: Tree, images: Any, labels: Any) -> tuple[Tree, Any]:
    """Do what ``step`` does, under NumPy and with the gradient by hand."""
    params = state["params"]
    hidden = np.tanh(images @ params["w1"] + params["b1"])
    scores = hidden @ params["w2"] + params["b2"]
    exps = np.exp(scores - scores.max(axis=1, keepdims=True))
    likelihood = exps / exps.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    value = -np.log(likelihood[rows, labels]).mean()
    error = likelihood
    error[rows, labels] -= 1
    error /= np.float32(len(labels))
    back = (error @ params["w2"].T) * (1 - hidden * hidden)
    grads = {"w1": images.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}
    return adam(state, grads), value


@kf.jit
def predict(params: Tree, images: Any) -> Any:
    """Return the most likely digit of each image."""
    return logits(params, images).argmax(axis=1)
