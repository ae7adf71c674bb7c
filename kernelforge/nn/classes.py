"""Losses of classes: cross entropy and margins. Classes are along axis 1 of the input, or along its only axis."""

from __future__ import annotations

from typing import Any

import kernelforge.numpy as knp
from kernelforge.jit import jit
from kernelforge.nn.calls import reduced, require, valid, wide
from kernelforge.nn.losses import above_zero
from kernelforge.nn.probability import log_softmax


def _last(op: str, input: Any, target: Any) -> tuple[Any, Any, bool]:
    """Return the input with its classes last, the target, and whether the target is of classes, not probabilities."""
    x, t = wide(input), knp.asarray(target)
    axis = 0 if x.ndim == 1 else 1
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    classes = t.dtype.kind in "iu"
    fits = x.ndim > 0 and t.shape == (rest if classes else x.shape)
    require(fits, op, f"{x.shape} and {t.shape}", f"a target of {rest if classes else x.shape}")
    return knp.moveaxis(x, axis, -1), t if classes else knp.moveaxis(wide(t), axis, -1), classes


def _picked(x: Any, ids: Any) -> Any:
    """The element of the last axis that each integer names; 0 where there is none."""
    chosen = ids[..., None] == knp.arange(x.shape[-1])
    return knp.where(chosen, x, 0).sum(axis=-1)


def _negative(log_p: Any, ids: Any, weight: Any, ignore_index: int) -> tuple[Any, Any]:
    """Return the losses of given classes and the weights of their elements."""
    known = ids != ignore_index
    counted = known.astype(log_p.dtype)
    if weight is not None:
        counted = counted * _picked(knp.broadcast_to(wide(weight), log_p.shape), ids)
    return knp.where(known, -_picked(log_p, ids) * counted, 0), counted


@jit(static_argnames=("ignore_index", "reduction"))
def nll_loss(input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> Any:
    """The negative of the log-probability of the class that ``target`` names.

    Args:
        weight: of each class; a mean divides by the sum of the elements' weights.
        ignore_index: targets of this value count nothing; a mean of nothing else is NaN. PyTorch refuses other values
            that name no class, which a compiled function cannot; here their loss is 0.
    """
    log_p, ids, classes = _last("nll_loss", input, target)
    valid(classes, "nll_loss", "target", str(ids.dtype), "integers that name classes")
    losses, counted = _negative(log_p, ids, weight, ignore_index)
    return reduced(losses, reduction, "nll_loss", counted.sum())


@jit(static_argnames=("ignore_index", "reduction"))
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
    scaled = log_p if weight is None else log_p * wide(weight)
    if not classes:
        smooth = t * (1 - label_smoothing) + label_smoothing / n
        losses = -(smooth * scaled).sum(axis=-1)
        return reduced(losses, reduction, "cross_entropy", max(losses.size, 1))
    losses, counted = _negative(log_p, t, weight, ignore_index)
    if not (isinstance(label_smoothing, int | float) and label_smoothing == 0):
        even = knp.where(t != ignore_index, -scaled.sum(axis=-1), 0)
        losses = losses * (1 - label_smoothing) + even * (label_smoothing / n)
    return reduced(losses, reduction, "cross_entropy", counted.sum())


@jit(static_argnames=("p", "reduction"))
def multi_margin_loss(
    input: Any, target: Any, p: int = 1, margin: Any = 1.0, weight: Any = None, reduction: str = "mean"
) -> Any:
    """How far other classes come within ``margin`` of the target's, to the power ``p``, averaged over classes."""
    x, ids, classes = _last("multi_margin_loss", input, target)
    valid(classes, "multi_margin_loss", "target", str(ids.dtype), "integers that name classes")
    right = ids[..., None] == knp.arange(x.shape[-1])
    own = knp.where(right, x, 0).sum(axis=-1, keepdims=True)
    over = knp.where(right, 0, above_zero(margin - own + x)) ** p
    if weight is not None:
        over = over * knp.where(right, wide(weight), 0).sum(axis=-1, keepdims=True)
    return reduced(over.sum(axis=-1) / x.shape[-1], reduction, "multi_margin_loss")


@jit(static_argnames="reduction")
def multilabel_soft_margin_loss(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """The binary cross entropy of each class with logits, averaged over the last axis."""
    x, t = wide(input), wide(target)
    require(x.shape == t.shape, "multilabel_soft_margin_loss", f"{x.shape} and {t.shape}", "one shape for both")
    losses = t * knp.logaddexp(-x, 0) + (1 - t) * knp.logaddexp(x, 0)
    if weight is not None:
        losses = losses * weight
    return reduced(losses.mean(axis=-1), reduction, "multilabel_soft_margin_loss")
