"""Similarities and distances of vectors, and the losses made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.nn.calls import Fn, function, narrow, reduced, require, together, wide
from kernelforge.nn.losses import above_zero
from kernelforge.nn.probability import root, vector_norm


@function("dim")
def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: Any = 1e-8) -> Any:
    """The cosine of the angle between vectors along ``dim``; each norm is taken as ``eps`` at least."""
    x, y = knp.broadcast_arrays(*together(x1, x2))
    norms = [knp.maximum(vector_norm(v, 2, dim), eps) for v in (x, y)]
    return ((x / norms[0]) * (y / norms[1])).sum(axis=dim)


@function("p", "keepdim")
def pairwise_distance(x1: Any, x2: Any, p: float = 2.0, eps: Any = 1e-6, keepdim: bool = False) -> Any:
    """The p-norm of ``x1 - x2 + eps`` along the last axis."""
    x, y = together(x1, x2)
    return vector_norm(x - y + eps, p, -1, keepdim)


@function("p")
def cdist(x1: Any, x2: Any, p: float = 2.0) -> Any:
    """The p-norms of all differences of rows: of ``(..., m, d)`` and ``(..., n, d)`` an array ``(..., m, n)``."""
    x, y = together(x1, x2)
    return vector_norm(x[..., :, None, :] - y[..., None, :, :], p, -1, False)


@function("p")
def pdist(input: Any, p: float = 2.0) -> Any:
    """The p-norms of the differences of all pairs of rows, each pair once: (0, 1), (0, 2) to (n-2, n-1)."""
    x = wide(input)
    require(x.ndim == 2, "pdist", x.shape, "(rows, width)")
    n = x.shape[0]
    first, second = np.triu_indices(n, 1)
    # of all pairs, as derivatives of these are sums along rows, where those of rows that are picked would be scattered
    # and what is not picked is none: a derivative of zero times the difference of infinities is nan
    rows = knp.arange(n)
    apart = knp.where(rows[:, None, None] < rows[:, None], x[:, None] - x, 0)
    full = vector_norm(apart, p, -1, False)
    return narrow(full.reshape((n * n,))[first * n + second], knp.asarray(input))


def _alike(op: str, **arrays: Any) -> None:
    shapes = [np.shape(x) for x in arrays.values()]
    shown = " and ".join([", ".join(map(str, shapes[:-1])), str(shapes[-1])])
    require(len(set(shapes)) == 1, op, shown, f"one shape for {', '.join(arrays)}")


@function("reduction")
def cosine_embedding_loss(input1: Any, input2: Any, target: Any, margin: Any = 0.0, reduction: str = "mean") -> Any:
    """1 - cosine where the target is 1, max(0, cosine - margin) where it is -1."""
    (x, y), t = together(input1, input2), knp.asarray(target)
    _alike("cosine_embedding_loss", input1=x, input2=y)
    require(t.shape == x.shape[:-1], "cosine_embedding_loss", f"{x.shape} and {t.shape}", f"a target of {x.shape[:-1]}")
    tiny = 1e-12  # PyTorch's EPSILON, added to squared norms
    norms = ((x * x).sum(axis=-1) + tiny) * ((y * y).sum(axis=-1) + tiny)
    cosine = (x * y).sum(axis=-1) / root(norms, 2)
    losses = knp.where(t == 1, 1 - cosine, knp.where(t == -1, above_zero(cosine - margin), 0))
    return reduced(losses, reduction, "cosine_embedding_loss")


@function("reduction")
def margin_ranking_loss(input1: Any, input2: Any, target: Any, margin: Any = 0.0, reduction: str = "mean") -> Any:
    """max(0, margin - target * (input1 - input2)), for targets of 1 where the first should be the larger, else -1."""
    x, y, t = together(input1, input2, target)
    _alike("margin_ranking_loss", input1=x, input2=y, target=t)
    losses = above_zero(margin - t * (x - y))
    return reduced(losses, reduction, "margin_ranking_loss")


@function("distance_function", "swap", "reduction")
def triplet_margin_with_distance_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    *,
    distance_function: Fn | None = None,
    margin: Any = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Any:
    """``triplet_margin_loss`` with a function that returns the distance of two arrays, else ``pairwise_distance``."""
    _alike("triplet_margin_with_distance_loss", anchor=anchor, positive=positive, negative=negative)
    distance = pairwise_distance if distance_function is None else distance_function
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = knp.minimum(far, distance(positive, negative))
    return reduced(above_zero(margin + near - far), reduction, "triplet_margin_with_distance_loss")


@function("p", "swap", "reduction")
def triplet_margin_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: Any = 1.0,
    p: float = 2.0,
    eps: Any = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Any:
    """max(0, margin + the distance to ``positive`` - the distance to ``negative``).

    Args:
        swap: also take the distance of ``positive`` to ``negative``, where it is smaller; Balntas et al. 2016.
    """
    _alike("triplet_margin_loss", anchor=anchor, positive=positive, negative=negative)
    near, far = (pairwise_distance(anchor, other, p, eps) for other in (positive, negative))
    if swap:
        far = knp.minimum(far, pairwise_distance(positive, negative, p, eps))
    return reduced(above_zero(margin + near - far), reduction, "triplet_margin_loss")
