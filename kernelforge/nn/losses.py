"""Losses of numbers and of probabilities; those of classes are in ``classes``, those of distances in ``distances``.

``reduction`` is ``"mean"`` over all elements, ``"sum"`` or ``"none"``.
"""

from __future__ import annotations

import math
from typing import Any

import kernelforge.numpy as knp
from kernelforge.nn.calls import Given, function, passing, reduced, require, together, valid, within


def _both(op: str, input: Any, target: Any) -> tuple[Any, Any]:
    x, t = together(input, target)
    require(x.shape == t.shape, op, f"{x.shape} and {t.shape}", "one shape for input and target")
    return x, t


def _weighted(losses: Any, weight: Any) -> Any:
    return losses if weight is None else losses * together(losses, weight)[1]


def _averaged(op: str, losses: Any, weight: Any, reduction: str) -> Any:
    """Reduce losses times weights; a mean divides by the sum of the weights."""
    if weight is None:
        return reduced(losses, reduction, op)
    w = _of_elements(op, losses, weight)
    return reduced(losses * w, reduction, op, w.sum())


def _of_elements(op: str, losses: Any, weight: Any) -> Any:
    w = together(losses, weight)[1]
    require(w.shape == losses.shape, op, f"{losses.shape} and {w.shape}", "weights of the input's shape")
    return w


@function("reduction")
def mse_loss(input: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """The square of the difference; with ``weight`` a mean divides by the sum of weights."""
    x, t = _both("mse_loss", input, target)
    return _averaged("mse_loss", (x - t) * (x - t), weight, reduction)


@function("reduction")
def l1_loss(input: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """The absolute difference; with ``weight`` a mean divides by the sum of weights."""
    x, t = _both("l1_loss", input, target)
    return _averaged("l1_loss", knp.abs(x - t), weight, reduction)


def _huber(x: Any, t: Any, delta: Any) -> Any:
    apart = x - t
    inside = knp.where(apart <= -delta, -delta, knp.where(apart >= delta, delta, apart))
    return inside * (apart - 0.5 * inside)


def _positive(given: Given) -> None:
    within(given, "huber_loss", "delta", math.nextafter(0, 1), math.inf, "above 0")


@function("reduction", before=_positive)
def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: Any = 1.0, weight: Any = None) -> Any:
    """Half the square of the difference, up to ``delta`` of it, then linear; Huber 1964.

    With ``weight`` a mean divides by the number of elements all the same, as in PyTorch.
    """
    x, t = _both("huber_loss", input, target)
    losses = _huber(x, t, delta)
    weighted = losses if weight is None else losses * _of_elements("huber_loss", losses, weight)
    return reduced(weighted, reduction, "huber_loss")


@function("reduction", "beta")
def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """``huber_loss`` with ``delta=beta``, divided by ``beta``; ``l1_loss`` for ``beta=0``."""
    x, t = _both("smooth_l1_loss", input, target)
    valid(beta >= 0, "smooth_l1_loss", "beta", beta, "0 or more")
    return reduced(knp.abs(x - t) if beta == 0 else _huber(x, t, beta) / beta, reduction, "smooth_l1_loss")


def _probabilities(given: Given) -> None:
    for name in ("input", "target"):
        within(given, "binary_cross_entropy", name, 0, 1, "probabilities from 0 to 1")


@function("reduction", before=_probabilities)
def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """The cross entropy of probabilities in [0, 1], which are checked where they are known.

    Logarithms are at least -100, as in PyTorch.

    Where one is cut off its derivative is 0; PyTorch's is 1e12.
    """
    x, t = _both("binary_cross_entropy", input, target)
    losses = -(t * _log_from(x, -100) + (1 - t) * _log_from(1 - x, -100))
    return reduced(_weighted(losses, weight), reduction, "binary_cross_entropy")


def _log_from(x: Any, least: float) -> Any:
    """The logarithm, or ``least`` where it is below, with a finite derivative."""
    tiny = math.exp(least)
    return knp.where(x <= tiny, least, knp.log(knp.where(x <= tiny, 1, x)))


@function("reduction")
def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """``binary_cross_entropy`` of ``sigmoid(input)``, without its overflow.

    Args:
        pos_weight: of the positive part, to broadcast with the input.
    """
    op = "binary_cross_entropy_with_logits"
    x, t = _both(op, input, target)
    positive, negative = knp.logaddexp(-x, 0), knp.logaddexp(x, 0)
    losses = t * _weighted(positive, pos_weight) + (1 - t) * negative
    return reduced(_weighted(losses, weight), reduction, op)


@function("reduction", "log_target")
def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    """``target * (log(target) - input)`` of log-probabilities ``input``; 0 where the target is 0.

    Args:
        reduction: also ``"batchmean"``: the sum divided by the extent of axis 0, which is the divergence.
        log_target: whether the target is of log-probabilities too.
    """
    x, t = _both("kl_div", input, target)
    if log_target:
        losses = knp.exp(t) * (t - x)
    else:
        some = t != 0
        losses = knp.where(some, t * knp.log(knp.where(some, t, 1)), 0 * t)
        losses = losses - t * knp.where(some | ~knp.isinf(x), x, 0)
    if reduction == "batchmean":
        return losses.sum() / max(x.shape[0], 1)
    return reduced(losses, reduction, "kl_div")


@function("log_input", "full", "reduction")
def poisson_nll_loss(
    input: Any, target: Any, log_input: bool = True, full: bool = False, eps: Any = 1e-8, reduction: str = "mean"
) -> Any:
    """The negative logarithm of the likelihood of counts, whose mean is exp(input), or ``input`` itself.

    Args:
        full: add Stirling's approximation of what does not depend on the input.
        eps: added to the input in its logarithm.
    """
    x, t = _both("poisson_nll_loss", input, target)
    losses = knp.exp(x) - t * x if log_input else x - t * knp.log(x + eps)
    if full:
        some = knp.where(t > 1, t, 1)
        stirling = some * knp.log(some) - some + 0.5 * knp.log(2 * math.pi * some)
        losses = losses + knp.where(t > 1, stirling, 0)
    return reduced(losses, reduction, "poisson_nll_loss")


def _variances(given: Given) -> None:
    within(given, "gaussian_nll_loss", "var", 0, math.inf, "0 or more")


@function("full", "reduction", before=_variances)
def gaussian_nll_loss(
    input: Any, target: Any, var: Any, full: bool = False, eps: Any = 1e-6, reduction: str = "mean"
) -> Any:
    """The negative logarithm of the likelihood of ``target`` under normal distributions of mean ``input``.

    Args:
        var: of the distributions: a number, of the input's shape, or without its last axis, or with an axis of 1 for
            one of its axes. It is ``eps`` at least, with the derivative at ``eps`` there, so that it may grow.
        full: add the constant.
    """
    x, t = _both("gaussian_nll_loss", input, target)
    v = together(x, var)[1]
    v = v if v.ndim else v.astype(x.dtype)
    if v.ndim and v.shape == x.shape[:-1]:
        v = v[..., None]
    others = [n for n, m in zip(v.shape, x.shape, strict=False) if n != m]
    fits = v.ndim in (0, x.ndim) and others in ([], [1])
    require(fits, "gaussian_nll_loss", f"{x.shape} and {v.shape}", "variances of the input's shape, one axis 1 or left")
    v = knp.where(v < eps, passing(eps, v), v)
    losses = 0.5 * (knp.log(v) + (x - t) * (x - t) / v)
    return reduced(losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction, "gaussian_nll_loss")


@function("reduction")
def soft_margin_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """log(1 + exp(-target * input)) for targets of 1 and -1."""
    x, t = _both("soft_margin_loss", input, target)
    return reduced(knp.logaddexp(-t * x, 0), reduction, "soft_margin_loss")


@function("reduction")
def hinge_loss(input: Any, target: Any, margin: Any = 1.0, reduction: str = "mean") -> Any:
    """max(0, margin - target * input) for targets of 1 and -1, of support vector machines; PyTorch does not have it."""
    x, t = _both("hinge_loss", input, target)
    return reduced(above_zero(margin - t * x), reduction, "hinge_loss")


@function("reduction")
def hinge_embedding_loss(input: Any, target: Any, margin: Any = 1.0, reduction: str = "mean") -> Any:
    """``input`` where the target is 1, max(0, margin - input) where it is -1."""
    x, t = _both("hinge_embedding_loss", input, target)
    return reduced(knp.where(t == 1, x, above_zero(margin - x)), reduction, "hinge_embedding_loss")


def above_zero(x: Any) -> Any:
    """``x`` where it is positive, else 0; the derivative at 0 is 1, as in PyTorch, and NaN stays NaN."""
    return knp.where(x < 0, 0, x)
