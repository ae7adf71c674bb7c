"""Losses of classes: cross entropy and margins. Classes are along axis 1 of the input, or along its only axis.

A target that names no class is refused where it is known: at calls by themselves, and constants of compiled functions.
What a compiled function finds out only when it runs has the loss NaN, as an index out of range reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.nn.calls import Given, function, known, names_classes, reduced, require, together, valid, wide
from kernelforge.nn.probability import log_softmax

IGNORED = {"nll_loss": -100, "cross_entropy": -100}
"""What ``ignore_index`` is by default."""


def _last(op: str, input: Any, target: Any) -> tuple[Any, Any, bool]:
    """Return the input with its classes last, the target, and whether the target is of classes, not probabilities."""
    x, t = wide(input), knp.asarray(target)
    axis = 0 if x.ndim == 1 else 1
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    classes = t.dtype.kind in "iu"
    fits = x.ndim > 0 and t.shape == (rest if classes else x.shape)
    require(fits, op, f"{x.shape} and {t.shape}", f"a target of {rest if classes else x.shape}")
    return knp.moveaxis(x, axis, -1), t if classes else knp.moveaxis(wide(t), axis, -1), classes


def _named(op: str) -> Callable[[Given], None]:
    """Check that known targets name classes."""

    def before(given: Given) -> None:
        shape = np.shape(given["input"])
        if shape and np.ndim(given["target"]) == len(shape) - 1:
            count = shape[0 if len(shape) == 1 else 1]
            names_classes(given, op, "target", count, given.get("ignore_index", IGNORED.get(op)))

    return before


def _picked(x: Any, ids: Any) -> Any:
    """The element of the last axis that each integer names; 0 where there is none."""
    chosen = ids[..., None] == knp.arange(x.shape[-1])
    return knp.where(chosen, x, 0).sum(axis=-1)


def _negative(log_p: Any, ids: Any, weight: Any, ignore_index: int) -> tuple[Any, Any]:
    """Return the losses of given classes and the weights of their elements."""
    known = ids != ignore_index
    counted = known.astype(log_p.dtype)
    if weight is not None:
        counted = counted * _picked(knp.broadcast_to(together(log_p, weight)[1], log_p.shape), ids)
    named = (ids >= 0) & (ids < log_p.shape[-1])
    return knp.where(known, knp.where(named, -_picked(log_p, ids), math.nan) * counted, 0), counted


@function("ignore_index", "reduction", before=_named("nll_loss"))
def nll_loss(input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> Any:
    """The negative of the log-probability of the class that ``target`` names.

    Args:
        weight: of each class; a mean divides by the sum of the elements' weights.
        ignore_index: targets of this value count nothing; a mean of nothing else is NaN.
    """
    log_p, ids, classes = _last("nll_loss", input, target)
    valid(classes, "nll_loss", "target", str(ids.dtype), "integers that name classes")
    losses, counted = _negative(log_p, ids, weight, ignore_index)
    return reduced(losses, reduction, "nll_loss", counted.sum())


@function("ignore_index", "reduction", before=_named("cross_entropy"))
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: Any = 0.0,
) -> Any:
    """``nll_loss`` of ``log_softmax(input)``.

    Args:
        target: integers that name classes; or floats of the input's shape, the probabilities of all.
        weight: of each class. A mean divides by the sum of the elements' weights; with probabilities, by the number of
            elements.
        label_smoothing: how much of the target is spread over all classes evenly; Szegedy et al. 2016.
    """
    x, t, classes = _last("cross_entropy", input, target)
    log_p = log_softmax(x, -1)
    n = x.shape[-1]
    scaled = log_p if weight is None else log_p * together(log_p, weight)[1]
    if not classes:
        smooth = t * (1 - label_smoothing) + label_smoothing / n
        losses = -(smooth * scaled).sum(axis=-1)
        return reduced(losses, reduction, "cross_entropy")
    losses, counted = _negative(log_p, t, weight, ignore_index)
    if not (isinstance(label_smoothing, int | float) and label_smoothing == 0):
        even = knp.where(t != ignore_index, -scaled.sum(axis=-1), 0)
        losses = losses * (1 - label_smoothing) + even * (label_smoothing / n)
    return reduced(losses, reduction, "cross_entropy", counted.sum())


def _named_by_rows(given: Given) -> None:
    """Check that known targets name rows of the weights."""
    if np.ndim(given["target"]) < max(np.ndim(given["input"]) + np.ndim(given["linear_weight"]) - 2, 1):
        ignored = given.get("ignore_index")
        count = np.shape(given["linear_weight"])[0]
        names_classes(given, "linear_cross_entropy", "target", count, -100 if ignored is None else ignored)


@function("ignore_index", "reduction", before=_named_by_rows)
def linear_cross_entropy(
    input: Any, linear_weight: Any, target: Any, *, linear_bias: Any = None, weight: Any = None,
    reduction: str = "mean", ignore_index: int | None = None, label_smoothing: Any = 0.0,
) -> Any:  # fmt: skip
    """``cross_entropy`` of ``linear(input, linear_weight, linear_bias)``, whose classes are the first axis of weights.

    Args:
        linear_weight: of shape (classes, ..., features); further axes are those of a loss of several places.
        linear_bias: of the shape of ``linear_weight`` without the features, or of its first axis.
    """
    x, w = wide(input), wide(linear_weight)
    fits = x.ndim > 0 and w.ndim > 1 and x.shape[-1] == w.shape[-1]
    require(fits, "linear_cross_entropy", f"{x.shape} and {w.shape}", "as many features in both")
    scores = knp.tensordot(x, w, (-1, -1))
    if linear_bias is not None:
        b = wide(linear_bias)
        scores = scores + b.reshape((*b.shape, *(1,) * (w.ndim - 1 - b.ndim)))
    ignored = IGNORED["cross_entropy"] if ignore_index is None else ignore_index
    return cross_entropy(
        scores, target, weight, ignore_index=ignored, reduction=reduction, label_smoothing=label_smoothing
    )


@function("p", "reduction", before=_named("multi_margin_loss"))
def multi_margin_loss(
    input: Any, target: Any, p: int = 1, margin: Any = 1.0, weight: Any = None, reduction: str = "mean"
) -> Any:
    """How far other classes come within ``margin`` of the target's, to the power ``p``, averaged over classes."""
    x, ids, classes = _last("multi_margin_loss", input, target)
    valid(classes, "multi_margin_loss", "target", str(ids.dtype), "integers that name classes")
    right = ids[..., None] == knp.arange(x.shape[-1])
    own = knp.where(right, x, 0).sum(axis=-1, keepdims=True)
    over = margin - own + x
    over = knp.where(right | (over <= 0), 0, over) ** p
    if weight is not None:
        over = over * knp.where(right, together(x, weight)[1], 0).sum(axis=-1, keepdims=True)
    losses = knp.where(right.any(axis=-1), over.sum(axis=-1) / x.shape[-1], math.nan)
    return reduced(losses, reduction, "multi_margin_loss")


def _listed(given: Given) -> None:
    shape = np.shape(given["input"])
    ids = known(given["target"])
    if shape and ids is not None and ids.dtype.kind in "iu":
        names_classes({"target": np.maximum(ids, 0)}, "multilabel_margin_loss", "target", shape[-1])


@function("reduction", before=_listed)
def multilabel_margin_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """How far classes that are not listed come within 1 of each that is, averaged over classes.

    Args:
        target: integers of the input's shape: in each row the classes that it has, then -1, which ends them.
    """
    op = "multilabel_margin_loss"
    x, ids = wide(input), knp.asarray(target)
    fits = x.ndim in (1, 2) and x.shape == ids.shape
    require(fits, op, f"{x.shape} and {ids.shape}", "(batch, classes) or (classes,) for both")
    valid(ids.dtype.kind in "iu", op, "target", str(ids.dtype), "integers that name classes")
    listed = (ids < 0).cumsum(axis=-1) == 0
    right = listed[..., None] & (ids[..., None] == knp.arange(x.shape[-1]))
    own = knp.where(right, x[..., None, :], 0).sum(axis=-1)
    over = 1 - own[..., None] + x[..., None, :]
    counts = listed[..., None] & ~right.any(axis=-2)[..., None, :]
    losses = knp.where(~counts | (over <= 0), 0, over).sum(axis=(-2, -1)) / x.shape[-1]
    named = (right.any(axis=-1) | ~listed).all(axis=-1)
    return reduced(knp.where(named, losses, math.nan), reduction, op)


@function("reduction")
def multilabel_soft_margin_loss(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """The binary cross entropy of each class with logits, averaged over the last axis."""
    x, t = together(input, target)
    require(x.shape == t.shape, "multilabel_soft_margin_loss", f"{x.shape} and {t.shape}", "one shape for both")
    losses = t * knp.logaddexp(-x, 0) + (1 - t) * knp.logaddexp(x, 0)
    if weight is not None:
        losses = losses * together(losses, weight)[1]
    return reduced(losses.mean(axis=-1), reduction, "multilabel_soft_margin_loss")
