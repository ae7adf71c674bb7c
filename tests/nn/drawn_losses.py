"""Losses, distances and alignments with shapes and options that are drawn."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import scipy.special as ss

from tests.nn import learning, sequences
from tests.nn.case import Case
from tests.nn.drawn import Draw, drawn


def _reduction(d: Draw, *more: str) -> dict[str, Any]:
    return d.some(reduction=d.one("mean", "sum", "none", *more))


def _weighted(losses: Any, weight: Any, reduction: str) -> Any:
    if weight is None:
        return learning._reduced(losses, reduction)
    made = losses * weight
    return (
        made.sum() / np.broadcast_to(weight, losses.shape).sum()
        if reduction == "mean"
        else learning._reduced(made, reduction)
    )


@drawn("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")
def _apart(d: Draw, name: str) -> Case:
    x, t = (2 * d.normal(*shape) for shape in [d.shape(1, 4)] * 2)
    options = _reduction(d)
    if name == "huber_loss":
        options |= d.some(delta=d.real(0.3, 2))
    if name == "smooth_l1_loss":
        options |= d.some(beta=d.real(0, 2))
    elif d.flag():
        options["weight"] = d.uniform(*x.shape)

    def expected(x, t, reduction="mean", weight=None, delta=1.0, beta=1.0):
        losses = {
            "mse_loss": lambda: (x - t) ** 2,
            "l1_loss": lambda: np.abs(x - t),
            "huber_loss": lambda: learning._huber(x, t, delta),
            "smooth_l1_loss": lambda: learning._huber(x, t, beta) / beta if beta else np.abs(x - t),
        }[name]()
        if name == "huber_loss" and weight is not None:
            return learning._reduced(losses * weight, reduction)
        return _weighted(losses, weight, reduction)

    return Case(name, (x, t), expected, options, wrt=(0, 1))


@drawn("nll_loss", "cross_entropy")
def _classes(d: Draw, name: str) -> Case:
    n = d.whole(2, 5)
    shape = (n,) if d.flag() else (d.whole(1, 4), n, *d.shape(0, 2, high=3))
    x = d.normal(*shape)
    options = _reduction(d) | d.some(weight=d.uniform(n))
    soft = name == "cross_entropy" and d.flag()
    rest = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if soft:
        target = ss.softmax(d.normal(*shape), axis=min(len(shape) - 1, 1))
    else:
        target = np.asarray(d.integers(n, *rest))
        if d.flag():
            ignored = d.one(-100, 0)
            target = np.asarray(np.where(d.uniform(*rest) < 0.3, ignored, target))
            if ignored != -100:
                options["ignore_index"] = ignored
            target.flat[0] = n - 1  # a mean of nothing is NaN
    if name == "cross_entropy":
        options |= d.some(label_smoothing=d.real(0, 1))
        return Case(name, (x, target), learning._cross_entropy, options, wrt=(0, 1) if soft else (0,), loose=2)
    return Case(name, (x, target), learning._nll, options)


@drawn("binary_cross_entropy", "binary_cross_entropy_with_logits")
def _binary(d: Draw, name: str) -> Case:
    shape = d.shape(1, 3)
    options = _reduction(d) | d.some(weight=d.uniform(*shape[1:]))
    if name == "binary_cross_entropy":
        return Case(name, (d.uniform(*shape), d.uniform(*shape)), learning._bce, options, wrt=(0, 1), loose=10)
    options |= d.some(pos_weight=d.uniform(shape[-1]))
    return Case(name, (3 * d.normal(*shape), d.uniform(*shape)), learning._bce_logits, options, wrt=(0, 1), loose=2)


@drawn("kl_div")
def _kl(d: Draw, name: str) -> Case:
    x, t = (ss.log_softmax(d.normal(*shape), axis=-1) for shape in [d.shape(1, 3)] * 2)
    options = _reduction(d, "batchmean") | {"log_target": d.flag()}
    return Case(name, (x, t if options["log_target"] else np.exp(t)), learning._kl, options, wrt=(0, 1))


@drawn("poisson_nll_loss")
def _poisson(d: Draw, name: str) -> Case:
    shape = d.shape(1, 3)
    options = _reduction(d) | d.some(full=d.flag(), eps=d.one(1e-8, 1e-2), log_input=d.flag())
    x = d.normal(*shape) if options.get("log_input", True) else d.uniform(*shape)
    return Case(name, (x, 5 * d.uniform(*shape)), learning._poisson, options, loose=2)


@drawn("gaussian_nll_loss")
def _gaussian(d: Draw, name: str) -> Case:
    shape = d.shape(2, 3, low=2)
    var = d.uniform(*d.one(shape, shape[:-1], (*shape[:-1], 1)))
    options = _reduction(d) | d.some(full=d.flag(), eps=d.one(1e-6, 0.3))

    def expected(x, t, var, **o):
        return learning._gaussian(x, t, var.reshape((*x.shape[:-1], -1)), **o)

    # the derivative passes the least variance, which a difference does not see
    wrt = (0, 1, 2) if var.min() > options.get("eps", 0) else (0, 1)
    return Case(name, (d.normal(*shape), d.normal(*shape), var), expected, options, wrt=wrt, loose=2)


@drawn("soft_margin_loss", "hinge_loss", "hinge_embedding_loss", "margin_ranking_loss")
def _margins(d: Draw, name: str) -> Case:
    shape = d.shape(1, 3)
    x, y, t = d.normal(*shape), d.normal(*shape), d.signs(*shape)
    options = _reduction(d)
    if name != "soft_margin_loss":
        options |= d.some(margin=d.real(0.1, 2))
    reduced = learning._reduced
    if name == "margin_ranking_loss":
        return Case(name, (x, y, t), lambda x, y, t, margin=0.0, reduction="mean": reduced(
            np.maximum(0, margin - t * (x - y)), reduction), options, wrt=(0, 1))  # fmt: skip
    expected = {
        "soft_margin_loss": lambda x, t, reduction="mean": reduced(np.logaddexp(-t * x, 0), reduction),
        "hinge_loss": lambda x, t, margin=1.0, reduction="mean": reduced(np.maximum(0, margin - t * x), reduction),
        "hinge_embedding_loss": lambda x, t, margin=1.0, reduction="mean": reduced(
            np.where(t == 1, x, np.maximum(0, margin - x)), reduction
        ),
    }[name]
    return Case(name, (x, t), expected, options, torch=None if name == "hinge_loss" else "same")


@drawn("multi_margin_loss")
def _multi(d: Draw, name: str) -> Case:
    batch, n = d.whole(1, 4), d.whole(1, 5)
    options = _reduction(d) | d.some(p=d.one(1, 2), margin=d.real(0.3, 2), weight=d.uniform(n))
    return Case(name, (d.normal(batch, n), d.integers(n, batch)), learning._margins, options, orders=1)


@drawn("multilabel_margin_loss")
def _multilabel(d: Draw, name: str) -> Case:
    shape, n = d.shape(0, 1), d.whole(1, 5)
    x = d.normal(*shape, n)
    t = np.stack([d._rng.permutation(n) for _ in range(x.size // n)]).reshape(x.shape)
    t = np.where(d.uniform(*x.shape) < 0.3, -1, t)

    def expected(x, t, reduction="mean"):
        losses = []
        for row, listed in zip(x.reshape(-1, n), t.reshape(-1, n), strict=True):
            ends = list(listed).index(-1) if -1 in listed else n
            own = listed[:ends]
            losses.append(sum(max(0, 1 - row[j] + row[i]) for j in own for i in range(n) if i not in own) / n)
        return learning._reduced(np.array(losses).reshape(x.shape[:-1]), reduction)

    return Case(name, (x, t), expected, _reduction(d), orders=1)


@drawn("multilabel_soft_margin_loss")
def _multilabel_soft(d: Draw, name: str) -> Case:
    shape = d.shape(1, 3)
    options = _reduction(d) | d.some(weight=d.uniform(shape[-1]))

    def expected(x, t, weight=1.0, reduction="mean"):
        return learning._reduced(learning._bce_logits(x, t, weight, "none").mean(-1), reduction)

    return Case(name, (d.normal(*shape), d.uniform(*shape)), expected, options, wrt=(0, 1))


@drawn("cosine_similarity", "pairwise_distance")
def _pairs(d: Draw, name: str) -> Case:
    shape = d.shape(2, 3)
    x, y = d.normal(*shape), d.normal(*(shape if d.flag() else (1, *shape[1:])))
    if name == "cosine_similarity":
        cosine = lambda x, y, dim=1: learning._cosine(*np.broadcast_arrays(x, y), dim)  # noqa: E731
        return Case(name, (x, y), cosine, d.some(dim=d.axis(shape)), wrt=(0, 1), loose=10)
    options = d.some(p=d.one(1.0, 2.0, 3.0, np.inf), eps=d.one(1e-6, 1e-2), keepdim=d.flag())
    return Case(name, (x, y), learning._distance, options, wrt=(0, 1), loose=10,
                orders=1 if options.get("p") == np.inf else 2)  # fmt: skip


@drawn("cdist", "pdist")
def _all_pairs(d: Draw, name: str) -> Case:
    width, p = d.whole(1, 4), d.one(1.0, 2.0, 3.0, np.inf)
    torch: Any = lambda f, *x, p: getattr(importlib.import_module("torch"), name)(*x, p=p)  # noqa: E731
    if name == "pdist":
        x = d.normal(d.whole(2, 5), width)
        at = np.triu_indices(len(x), 1)
        return Case(name, (x,), lambda x, p: np.linalg.norm(x[at[0]] - x[at[1]], p, -1), {"p": p}, torch=torch,
                    orders=1, loose=10)  # fmt: skip
    lead = d.shape(0, 2, high=3)
    args = d.normal(*lead, d.whole(1, 4), width), d.normal(*lead, d.whole(1, 4), width)
    return Case(name, args, lambda x, y, p: np.linalg.norm(x[..., :, None, :] - y[..., None, :, :], p, -1), {"p": p},
                wrt=(0, 1), torch=torch, orders=1, loose=10)  # fmt: skip


@drawn("cosine_embedding_loss")
def _cosine_loss(d: Draw, name: str) -> Case:
    batch, width = d.whole(1, 5), d.whole(2, 5)
    options = _reduction(d) | d.some(margin=d.real(-0.5, 0.5))
    return Case(name, (d.normal(batch, width), d.normal(batch, width), d.signs(batch)), learning._cosine_loss, options,
                wrt=(0, 1), loose=10)  # fmt: skip


@drawn("triplet_margin_loss", "triplet_margin_with_distance_loss")
def _triplet(d: Draw, name: str) -> Case:
    args = tuple(d.normal(*shape) for shape in [(d.whole(1, 4), d.whole(1, 4))] * 3)
    options = _reduction(d) | d.some(margin=d.real(0.3, 2), swap=True)
    if name == "triplet_margin_loss":
        options |= d.some(p=d.one(1.0, 2.0, 3.0))
    return Case(name, args, learning._triplet, options, wrt=(0, 1, 2), loose=10)


@drawn("ctc_loss")
def _ctc(d: Draw, name: str) -> Case:
    time, batch, n, longest = d.whole(1, 5), d.whole(1, 3), d.whole(2, 4), d.whole(1, 3)
    blank = d.whole(0, n - 1)
    ends = d.integers(longest + 1, batch)
    letters = d.integers(n - 1, batch, longest)
    texts = letters + (letters >= blank)
    together = d.flag()
    given = np.concatenate([t[:e] for t, e in zip(texts, ends, strict=True)]) if together else texts
    options = _reduction(d) | {"blank": blank, "zero_infinity": True}
    lengths = d.integers(time + 1, batch, low=1)

    def expected(x, t, i, e, **o):
        return sequences._ctc(ss.log_softmax(x, axis=-1), texts, i, e, **o)

    x = ss.log_softmax(d.normal(time, batch, n), axis=-1)
    # PyTorch's gradient is one by the scores that log_softmax gets, and has no derivative; values are compared here
    torch: Any = lambda f, x, *a, **o: f.ctc_loss(f.log_softmax(x, -1), *a, **o).detach().requires_grad_()  # noqa: E731
    return Case(name, (x, given, lengths, ends), expected, options, wrt=(), torch=torch, orders=1)


@drawn("grouped_mm")
def _grouped(d: Draw, name: str) -> Case:
    groups, m, k, n = d.whole(1, 4), d.whole(1, 7), d.whole(1, 7), d.whole(1, 7)
    kind = d.one("rows", "columns", "parts")
    first = (groups, m, k) if kind == "columns" else (m, k)
    second = (groups, k, n) if kind == "rows" else (k, n)
    offs = np.sort(d.integers({"rows": m, "columns": n, "parts": k}[kind] + 1, groups))
    # of f32 and narrower alone, with rows that PyTorch leaves as memory was: nothing of it is compared
    return Case(name, (d.normal(*first), d.normal(*second)), learning._grouped, {"offs": offs}, (0, 1), torch=None)


@drawn("linear_cross_entropy")
def _linear_cross_entropy(d: Draw, name: str) -> Case:
    rows, classes, features = d.whole(1, 4), d.whole(1, 4), d.whole(1, 3)
    options = d.some(linear_bias=d.normal(classes), weight=d.uniform(classes), label_smoothing=d.real(0, 1))
    args = (d.normal(rows, features), d.normal(classes, features), d.integers(classes, rows))
    return Case(name, args, learning._linear_cross_entropy, options, wrt=(0, 1), torch=None, loose=10)


@drawn("scatter")
def _scatter(d: Draw, name: str) -> Case:
    count, lead = d.whole(1, 4), d.shape(1, 2)
    ids = d.integers(count + 2, *lead, low=-1)
    ids.flat[:count] = np.arange(ids.size)[:count]
    reduce = d.one("sum", "mean", "prod")
    options = {"num_segments": count, "reduce": reduce}
    args = (d.normal(*lead, *d.shape(0, 2)), ids)
    return Case(name, args, learning._scatter, options, wrt=() if reduce == "prod" else (0,), torch=None)
