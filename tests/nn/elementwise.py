"""Activations, softmax and normalisation, as formulas."""

from __future__ import annotations

import numpy as np
import scipy.special as ss

from tests.nn.case import Case, normal, uniform

X = 2 * normal(3, 4, 6)
LAMBDA, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _gated(gate):
    def fn(x, dim=-1):
        a, b = np.split(x, 2, axis=dim)
        return a * gate(b)

    return fn


def _norm(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def _column(v, x):
    return v.reshape(-1, *[1] * (x.ndim - 2))


def _layer_norm(x, normalized_shape, w=None, b=None, eps=1e-5):
    y = _norm(x, tuple(range(-len(np.atleast_1d(normalized_shape)), 0)), eps)
    return y * (1 if w is None else w) + (0 if b is None else b)


def _rms_norm(x, normalized_shape, w, eps=2.0**-52):
    axes = tuple(range(-len(normalized_shape), 0))
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + eps) * w


def _batch_norm(x, mean, var, w, b, training=False, momentum=0.1, eps=1e-5):
    axes = (0, *range(2, x.ndim))
    if training:
        y = _norm(x, axes, eps)
        mean, var = (0.9 * o + 0.1 * n for o, n in ((mean, x.mean(axes)), (var, x.var(axes, ddof=1))))
    else:
        y = (x - _column(mean, x)) / np.sqrt(_column(var, x) + eps)
    return y * _column(w, x) + _column(b, x), mean, var


def _torch_batch_norm(f, x, mean, var, w, b, training=False):
    mean, var = mean.detach().clone(), var.detach().clone()
    return f.batch_norm(x, mean, var, w, b, training), mean, var


def _group_norm(x, groups, w, b, eps=1e-5):
    y = _norm(x.reshape(x.shape[0], groups, -1), (2,), eps).reshape(x.shape)
    return y * _column(w, x) + _column(b, x)


def _response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0):
    total = np.zeros_like(x)
    for c in range(x.shape[1]):
        for j in range(max(0, c - size // 2), min(x.shape[1], c + (size - 1) // 2 + 1)):
            total[:, c] += x[:, j] ** 2
    return x / (k + alpha * total / size) ** beta


def _normalize(x, p=2.0, dim=1):
    return x / np.linalg.norm(x, p, dim, keepdims=True)


def _clip(x, min_val, max_val):
    return np.minimum(np.maximum(x, min_val), max_val)


def _shrunk(x, keep):
    return np.where(keep, x, 0)


ACTIVATIONS = [
    Case("relu", (X,), lambda x: np.maximum(x, 0)),
    Case("relu6", (3 * X,), lambda x: _clip(x, 0, 6)),
    Case("hardtanh", (X,), _clip, {"min_val": -0.5, "max_val": 2.0}),
    Case("threshold", (X,), lambda x, threshold, value: np.where(x > 0.3, x, 7), {"threshold": 0.3, "value": 7.0}),
    Case("leaky_relu", (X,), lambda x, negative_slope: np.where(x > 0, x, 0.2 * x), {"negative_slope": 0.2}),
    Case("prelu", (X, uniform(4)), lambda x, w: np.where(x > 0, x, w[:, None] * x), wrt=(0, 1)),
    Case("rrelu", (X,), lambda x: np.where(x > 0, x, (1 / 8 + 1 / 3) / 2 * x)),
    Case("elu", (X,), lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)), {"alpha": 0.7}),
    Case("selu", (X,), lambda x: LAMBDA * np.where(x > 0, x, ALPHA * np.expm1(x))),
    Case("celu", (X,), lambda x, alpha: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha)), {"alpha": 1.5}),
    Case("celu", (X,), lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x / alpha)), {"alpha": -1.5}),
    Case("gelu", (X,), lambda x: x * ss.ndtr(x)),
    Case(
        "gelu", (X,), lambda x, approximate: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        {"approximate": "tanh"},
    ),
    Case("quick_gelu", (X,), lambda x: x * ss.expit(1.702 * x), torch=lambda f, x: x * f.sigmoid(1.702 * x)),
    Case("sigmoid", (X,), ss.expit),
    Case("tanh", (X,), np.tanh),
    Case("silu", (X,), lambda x: x * ss.expit(x)),
    Case("mish", (X,), lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    Case("trelu", (X,), lambda x: np.where(x > 1, x, 0), torch=lambda f, x: f.threshold(x, 1, 0)),
    Case("trelu", (X,), lambda x, theta: np.where(x > theta, x, 0), {"theta": 0.3},
         torch=lambda f, x, theta: f.threshold(x, theta, 0)),
    Case("lisht", (X,), lambda x: x * np.tanh(x), torch=lambda f, x: x * x.tanh()),
    Case("logcosh", (X,), lambda x: np.log(np.cosh(x)), torch=lambda f, x: x.cosh().log()),
    Case("softplus", (X,), lambda x, beta: np.log1p(np.exp(beta * x)) / beta, {"beta": 2.0}),
    Case("logsigmoid", (X,), ss.log_expit),
    Case("softsign", (X,), lambda x: x / (1 + np.abs(x))),
    Case("tanhshrink", (X,), lambda x: x - np.tanh(x), loose=10),
    Case("hardshrink", (X,), lambda x, lambd: _shrunk(x, np.abs(x) > lambd), {"lambd": 0.8}),
    Case("softshrink", (X,), lambda x, lambd: np.sign(x) * np.maximum(np.abs(x) - lambd, 0), {"lambd": 0.8}),
    Case("hardsigmoid", (2 * X,), lambda x: _clip(x + 3, 0, 6) / 6, orders=1, loose=10),
    Case("hardswish", (2 * X,), lambda x: x * _clip(x + 3, 0, 6) / 6),
    Case("glu", (X,), _gated(ss.expit), {"dim": 1}),
    Case("reglu", (X,), _gated(lambda b: np.maximum(b, 0)), torch=lambda f, x: x[..., :3] * f.relu(x[..., 3:])),
    Case("geglu", (X,), _gated(lambda b: b * ss.ndtr(b)), torch=lambda f, x: x[..., :3] * f.gelu(x[..., 3:])),
    Case("swiglu", (X,), _gated(lambda b: b * ss.expit(b)), torch=lambda f, x: x[..., :3] * f.silu(x[..., 3:])),
]  # fmt: skip

ROWS = [
    Case("softmax", (X,), lambda x, dim: ss.softmax(x, axis=dim), {"dim": 1}),
    Case("log_softmax", (X,), lambda x, dim: ss.log_softmax(x, axis=dim), {"dim": 0}),
    Case("softmin", (X,), lambda x, dim: ss.softmax(-x, axis=dim), {"dim": -1}),
    Case(
        "logsumexp", (X,), lambda x, dim, keepdim: ss.logsumexp(x, axis=dim, keepdims=keepdim),
        {"dim": (0, 2), "keepdim": True}, torch=lambda f, x, dim, keepdim: x.logsumexp(dim, keepdim),
    ),
    Case("normalize", (X,), _normalize),
    Case("normalize", (X,), _normalize, {"p": 3.0, "dim": -1}),
    Case("layer_norm", (X + 5,), _layer_norm, {"normalized_shape": (4, 6)}, loose=20),
    Case(
        "layer_norm", (X, (6,), uniform(6), normal(6)), _layer_norm, wrt=(0, 2, 3), loose=2,
    ),
    Case("rms_norm", (X, (6,), uniform(6)), _rms_norm, wrt=(0, 2)),
    Case(
        "batch_norm", (X, normal(4), uniform(4), uniform(4, seed=1), normal(4, seed=1)), _batch_norm, wrt=(0, 3, 4),
        torch=_torch_batch_norm,
    ),
    Case(
        "batch_norm", (normal(3, 4, 2, 5), normal(4), uniform(4), uniform(4, seed=1), normal(4, seed=1)), _batch_norm,
        {"training": True}, wrt=(0, 3, 4), torch=None, loose=2,
    ),
    Case(
        "instance_norm", (X, None, None, uniform(4), normal(4)),
        lambda x, _, __, w, b: _norm(x, (2,), 1e-5) * _column(w, x) + _column(b, x), wrt=(0, 3, 4), loose=2,
    ),
    Case("group_norm", (X, 2, uniform(4), normal(4)), _group_norm, wrt=(0, 2, 3), loose=2),
    Case("local_response_norm", (normal(2, 7, 5), 3), _response_norm, {"alpha": 0.1}),
    Case("local_response_norm", (normal(2, 7, 3, 2), 4), _response_norm, {"alpha": 0.3, "k": 2.0}),
]  # fmt: skip
