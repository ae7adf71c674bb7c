"""Linear maps, embeddings, losses, as formulas and loops."""

from __future__ import annotations

import numpy as np
import scipy.special as ss

from tests.nn.case import Case, integers, normal, uniform


def _embedding(ids, table, padding_idx=None):
    return table[ids]


def _reduced(losses, reduction):
    return {"mean": np.mean, "sum": np.sum, "none": lambda x: x}[reduction](losses)


def _huber(x, t, delta):
    d = np.abs(x - t)
    return np.where(d < delta, 0.5 * d**2, delta * (d - 0.5 * delta))


def _nll(x, ids, weight=None, ignore_index=-100, reduction="mean"):
    x = np.moveaxis(x, 1, -1) if x.ndim > 1 else x
    losses, total = np.zeros(ids.shape), 0.0
    for at in np.ndindex(ids.shape):
        if ids[at] != ignore_index:
            w = 1 if weight is None else weight[ids[at]]
            losses[at], total = -w * x[(*at, ids[at])], total + w
    return losses.sum() / total if reduction == "mean" else _reduced(losses, reduction)


def _scatter(x, ids, num_segments, reduce="sum"):
    empty = {"sum": 0, "mean": 0, "prod": 1, "max": -np.inf, "min": np.inf}[reduce]
    rows = [x[ids == k] for k in range(num_segments)]
    return np.stack([getattr(np, reduce)(r, axis=0) if len(r) else np.full(x.shape[ids.ndim :], empty) for r in rows])


def _grouped(a, b, offs):
    ends = list(offs)
    parts = list(zip([0, *ends], ends, strict=False))
    if a.ndim == b.ndim:
        return np.stack([a[:, i:j] @ b[i:j] for i, j in parts])
    if a.ndim == 2:
        rest = np.zeros((len(a) - ends[-1], b.shape[2]))
        return np.concatenate([*(a[i:j] @ m for (i, j), m in zip(parts, b, strict=True)), rest])
    rest = np.zeros((a.shape[1], b.shape[1] - ends[-1]))
    return np.concatenate([*(m @ b[:, i:j] for (i, j), m in zip(parts, a, strict=True)), rest], axis=1)


def _linear_cross_entropy(x, w, t, linear_bias=None, **options):
    scores = np.tensordot(x, w, (-1, -1))
    if linear_bias is not None:
        scores = scores + linear_bias
    return _cross_entropy(scores, t, **options)


def _cross_entropy(x, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    axis = 1 if x.ndim > 1 else 0
    log_p = ss.log_softmax(x, axis=axis)
    n = x.shape[axis]
    if target.dtype.kind == "f":
        w = 1 if weight is None else weight.reshape(-1, *[1] * (x.ndim - 2))
        losses = -((target * (1 - label_smoothing) + label_smoothing / n) * log_p * w).sum(axis)
        return losses.mean() if reduction == "mean" else _reduced(losses, reduction)
    plain = _nll(log_p, target, weight, ignore_index, "none")
    kept = target != ignore_index
    w = np.ones(n) if weight is None else weight
    even = -(np.moveaxis(log_p, axis, -1) * w).sum(-1) * kept
    losses = (1 - label_smoothing) * plain + label_smoothing / n * even
    return (
        losses.sum() / (w[np.where(kept, target, 0)] * kept).sum()
        if reduction == "mean"
        else _reduced(losses, reduction)
    )


def _bce(x, t, weight=1, reduction="mean"):
    return _reduced(-(t * np.log(x) + (1 - t) * np.log1p(-x)) * weight, reduction)


def _bce_logits(x, t, weight=1, reduction="mean", pos_weight=1):
    return _reduced(-weight * (pos_weight * t * ss.log_expit(x) + (1 - t) * ss.log_expit(-x)), reduction)


def _kl(x, t, reduction="mean", log_target=False):
    losses = np.exp(t) * (t - x) if log_target else t * (np.log(t) - x)
    return losses.sum() / len(x) if reduction == "batchmean" else _reduced(losses, reduction)


def _poisson(x, t, log_input=True, full=False, eps=1e-8, reduction="mean"):
    losses = np.exp(x) - t * x if log_input else x - t * np.log(x + eps)
    if full:
        many = np.maximum(t, 1)
        losses = losses + np.where(t > 1, many * np.log(many) - many + 0.5 * np.log(2 * np.pi * many), 0)
    return _reduced(losses, reduction)


def _gaussian(x, t, var, full=False, eps=1e-6, reduction="mean"):
    v = np.maximum(var, eps)
    return _reduced(0.5 * (np.log(v) + (x - t) ** 2 / v) + (0.5 * np.log(2 * np.pi) if full else 0), reduction)


def _margins(x, ids, p=1, margin=1.0, weight=None, reduction="mean"):
    losses = np.zeros(len(ids))
    for i, own in enumerate(ids):
        for c in range(x.shape[1]):
            if c != own:
                losses[i] += max(0, margin - x[i, own] + x[i, c]) ** p * (1 if weight is None else weight[own])
    return _reduced(losses / x.shape[1], reduction)


def _cosine(x, y, dim=-1):
    return (x * y).sum(dim) / np.linalg.norm(x, axis=dim) / np.linalg.norm(y, axis=dim)


def _cosine_loss(x, y, t, margin=0.0, reduction="mean"):
    c = _cosine(x, y)
    return _reduced(np.where(t == 1, 1 - c, np.maximum(0, c - margin)), reduction)


def _distance(x, y, p=2.0, eps=1e-6, keepdim=False):
    return np.linalg.norm(x - y + eps, p, -1, keepdims=keepdim)


def _triplet(a, b, c, margin=1.0, p=2.0, swap=False, reduction="mean"):
    far = _distance(a, c, p)
    far = np.minimum(far, _distance(b, c, p)) if swap else far
    return _reduced(np.maximum(0, margin + _distance(a, b, p) - far), reduction)


X, T = normal(5, 7), normal(5, 7, seed=1)
SIGNS = np.sign(normal(5, 7, seed=2))
IDS = integers(7, 5)
SOME = np.where(np.arange(5) == 2, -100, IDS)
P = ss.softmax(normal(5, 7, seed=3), axis=1)
IMAGE, LABELS = normal(2, 4, 3, 5), integers(4, 2, 3, 5)

DENSE = [
    Case("linear", (normal(2, 3, 5), normal(4, 5), normal(4)), lambda x, w, b: x @ w.T + b, wrt=(0, 1, 2)),
    Case("linear", (normal(3, 5), normal(4, 5)), lambda x, w: x @ w.T, wrt=(0, 1)),
    Case(
        "bilinear", (normal(6, 3), normal(6, 4), normal(5, 3, 4), normal(5)),
        lambda x, y, w, b: np.einsum("ni,oij,nj->no", x, w, y) + b, wrt=(0, 1, 2, 3),
    ),
    *(Case("grouped_mm", args, _grouped, {"offs": np.array([2, 2, 5])}, wrt=(0, 1), torch=None) for args in (
        (normal(7, 3), normal(3, 3, 4)), (normal(3, 4, 2), normal(2, 7)), (normal(4, 7), normal(7, 3)),
    )),
    Case("grouped_mm", (normal(2, 4, 3), normal(2, 3, 5)), lambda a, b: a @ b, wrt=(0, 1), torch=None),
    Case("embedding", (integers(9, 4, 3), normal(9, 5)), _embedding, wrt=(1,)),
    Case("embedding", (integers(9, 4, 3), normal(9, 5)), _embedding, {"padding_idx": -2}, wrt=()),
    Case("one_hot", (integers(6, 4, 3),), lambda i, num_classes: np.eye(num_classes, dtype=int)[i], {"num_classes": 6},
         wrt=()),
]  # fmt: skip

LOSSES = [
    Case("mse_loss", (X, T), lambda x, t: ((x - t) ** 2).mean(), wrt=(0, 1)),
    Case("mse_loss", (X, T), lambda x, t, reduction: ((x - t) ** 2).sum(), {"reduction": "sum"}),
    Case("l1_loss", (X, T), lambda x, t, reduction: np.abs(x - t), {"reduction": "none"}, wrt=(0, 1)),
    Case("huber_loss", (2 * X, T), lambda x, t, delta: _huber(x, t, delta).mean(), {"delta": 0.7}, wrt=(0, 1)),
    Case("smooth_l1_loss", (X, T), lambda x, t, beta: (_huber(x, t, beta) / beta).mean(), {"beta": 0.5}, wrt=(0, 1)),
    Case("binary_cross_entropy", (uniform(5, 7), uniform(5, 7, seed=1)), _bce, wrt=(0, 1)),
    Case("binary_cross_entropy", (uniform(5, 7), uniform(5, 7, seed=1)), _bce, {"weight": uniform(7)}),
    Case("binary_cross_entropy_with_logits", (2 * X, uniform(5, 7)), _bce_logits, wrt=(0, 1)),
    Case(
        "binary_cross_entropy_with_logits", (2 * X, uniform(5, 7)), _bce_logits,
        {"pos_weight": uniform(7), "weight": uniform(5, 1), "reduction": "sum"},
    ),
    Case("kl_div", (ss.log_softmax(X, axis=1), P), _kl, {"reduction": "batchmean"}, wrt=(0, 1)),
    Case("kl_div", (ss.log_softmax(X, axis=1), np.log(P)), _kl, {"log_target": True}, wrt=(0, 1)),
    Case("nll_loss", (ss.log_softmax(X, axis=1), IDS), _nll),
    Case("nll_loss", (X, SOME), _nll, {"weight": uniform(7), "reduction": "sum"}),
    Case("linear_cross_entropy", (X, normal(5, X.shape[1]), IDS % 5), _linear_cross_entropy, wrt=(0, 1)),
    Case("linear_cross_entropy", (X, normal(5, X.shape[1]), IDS % 5), _linear_cross_entropy,
         {"linear_bias": normal(5), "weight": uniform(5), "label_smoothing": 0.1, "reduction": "sum"}, wrt=(0, 1)),
    Case("linear_cross_entropy", (X, normal(5, 3, X.shape[1]), integers(5, len(X), 3)), _linear_cross_entropy,
         {"linear_bias": normal(5, 3)}, wrt=(0, 1), torch=None),
    *(Case("scatter", (normal(9, 3), np.array([2, 0, 4, 2, 5, 1, 3, -1, 4])), _scatter,
           {"num_segments": 5, "reduce": reduce}, wrt=() if reduce == "prod" else (0,), torch=None)
      for reduce in ("sum", "mean", "prod", "max", "min")),
    Case("scatter", (normal(2, 3), np.array([[1, 1, 0], [2, 2, 2]])), _scatter, {"num_segments": 3}, torch=None),
    Case("cross_entropy", (X, IDS), _cross_entropy),
    Case("cross_entropy", (X[0], np.array(IDS[0])), _cross_entropy),
    Case("cross_entropy", (X, SOME), _cross_entropy, {"label_smoothing": 0.1, "weight": uniform(7)}),
    Case("cross_entropy", (X, P), _cross_entropy, {"label_smoothing": 0.2, "weight": uniform(7)}, wrt=(0, 1)),
    Case("cross_entropy", (IMAGE, LABELS), _cross_entropy, {"ignore_index": 1}),
    Case("cross_entropy", (IMAGE, LABELS), _cross_entropy, {"reduction": "none", "weight": uniform(4)}),
    Case("poisson_nll_loss", (X, 5 * uniform(5, 7)), _poisson, {"full": True}),
    Case("poisson_nll_loss", (uniform(5, 7), 5 * uniform(5, 7)), _poisson, {"log_input": False, "reduction": "none"}),
    Case("gaussian_nll_loss", (X, T, uniform(5, 7)), _gaussian, {"full": True}, wrt=(0, 1, 2)),
    Case("soft_margin_loss", (X, SIGNS), lambda x, t: np.log1p(np.exp(-t * x)).mean()),
    Case("hinge_embedding_loss", (X, SIGNS), lambda x, t, margin: np.where(t == 1, x, np.maximum(0, margin - x)).mean(),
         {"margin": 0.5}),
    Case("multi_margin_loss", (X, IDS), _margins, orders=1),
    Case("multi_margin_loss", (X, IDS), _margins, {"p": 2, "margin": 0.7, "weight": uniform(7)}, orders=1),
    Case("multilabel_soft_margin_loss", (X, (T > 0) * 1.0), _bce_logits),
    Case("cosine_similarity", (X, T), _cosine, {"dim": 0}, wrt=(0, 1)),
    Case("pairwise_distance", (X, T), _distance, {"p": 3.0, "keepdim": True}, wrt=(0, 1)),
    Case(
        "cdist", (normal(2, 4, 3), normal(2, 5, 3)),
        lambda x, y, p=2.0: np.linalg.norm(x[:, :, None] - y[:, None], p, -1), wrt=(0, 1),
        torch=lambda f, x, y: (x[:, :, None] - y[:, None]).norm(dim=-1),
    ),
    Case("cosine_embedding_loss", (X, T, SIGNS[:, 0]), _cosine_loss, {"margin": 0.1}, wrt=(0, 1)),
    Case(
        "margin_ranking_loss", (X, T, SIGNS), lambda x, y, t, margin: np.maximum(0, margin - t * (x - y)).mean(),
        {"margin": 0.3}, wrt=(0, 1),
    ),
    Case("triplet_margin_loss", (X, T, normal(5, 7, seed=3)), _triplet, wrt=(0, 1, 2)),
    Case("triplet_margin_loss", (X, T, normal(5, 7, seed=3)), _triplet, {"swap": True, "p": 3.0}, wrt=(0, 1, 2)),
]  # fmt: skip
