"""Normalisation: of layers, groups, instances and batches.

Means and variances are computed in two passes, the mean first, so they are accurate for means far from zero; f16 and
bf16 are computed in f32 and rounded once. Statistics that run along are arguments and results, never written to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.jit import jit
from kernelforge.nn.calls import Ints, narrow, require, wide
from kernelforge.nn.windows import windows


def _scaled(made: Any, weight: Any, bias: Any) -> Any:
    made = made if weight is None else made * weight
    return made if bias is None else made + bias


def _standardized(x: Any, axes: tuple[int, ...], eps: Any) -> Any:
    apart = x - x.mean(axis=axes, keepdims=True)
    return apart / knp.sqrt((apart * apart).mean(axis=axes, keepdims=True) + eps)


def _last(x: Any, normalized_shape: Ints, op: str) -> tuple[int, ...]:
    """Return the axes that ``normalized_shape`` says, which are the last."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int | np.integer) else tuple(normalized_shape)
    fits = 0 < len(shape) <= x.ndim and x.shape[x.ndim - len(shape) :] == shape
    require(fits, op, x.shape, f"an array whose shape ends with {shape}")
    return tuple(range(x.ndim - len(shape), x.ndim))


@jit(static_argnames="normalized_shape")
def layer_norm(input: Any, normalized_shape: Ints, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Any:
    """Subtract the mean and divide by the deviation, over the last axes; Ba et al. 2016.

    Args:
        normalized_shape: the extents of these axes; weight and bias have this shape.
        eps: added to the variance.
    """
    x = wide(input)
    made = _scaled(_standardized(x, _last(x, normalized_shape, "layer_norm"), eps), weight, bias)
    return narrow(made, knp.asarray(input))


@jit(static_argnames="normalized_shape")
def rms_norm(input: Any, normalized_shape: Ints, weight: Any = None, eps: Any = None) -> Any:
    """Divide by the root of the mean square, over the last axes; Zhang and Sennrich 2019.

    Args:
        eps: added to the mean square; by default the dtype's distance from 1 to the next number.
    """
    like = knp.asarray(input)
    x = wide(like)
    axes = _last(x, normalized_shape, "rms_norm")
    small = float(knp.finfo(x.dtype).eps) if eps is None else eps
    made = x / knp.sqrt((x * x).mean(axis=axes, keepdims=True) + small)
    return narrow(_scaled(made, weight, None), like)


def _channels(v: Any, x: Any) -> Any:
    """Shape a vector with an element for each channel (axis 1) of ``x`` to broadcast with it."""
    if v is None:
        return None
    v = knp.asarray(v)
    return v.reshape((v.shape[0], *(1,) * (x.ndim - 2)))


@jit(static_argnames="training")
def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Any:
    """Normalise each channel (axis 1) over all other axes; Ioffe and Szegedy 2015.

    Args:
        running_mean, running_var: of shape (channels,), or None for none; used in place of the batch's where not
            ``training``.
        momentum: the weight of the batch in the new running statistics.

    Returns:
        The result, the running mean and the running variance, which has the unbiased variance of the batch; PyTorch
        returns the first and overwrites the other two.
    """
    like = knp.asarray(input)
    x = wide(like)
    require(x.ndim >= 2, "batch_norm", x.shape, "an axis for the batch and one for channels, at least")
    if not training and running_mean is not None:
        scale = 1 / knp.sqrt(_channels(running_var, x) + eps)
        made = (x - _channels(running_mean, x)) * scale
        return narrow(_scaled(made, _channels(weight, x), _channels(bias, x)), like), running_mean, running_var
    axes = (0, *range(2, x.ndim))
    count = x.size // x.shape[1]
    require(count > 1 or not training, "batch_norm", x.shape, "more than one value for each channel, to train")
    mean = x.mean(axis=axes, keepdims=True)
    apart = x - mean
    var = (apart * apart).mean(axis=axes, keepdims=True)
    made = narrow(_scaled(apart / knp.sqrt(var + eps), _channels(weight, x), _channels(bias, x)), like)
    if running_mean is None:
        return made, None, None
    flat = (x.shape[1],)
    unbiased = var.reshape(flat) * (count / max(count - 1, 1))
    return made, _mixed(running_mean, mean.reshape(flat), momentum), _mixed(running_var, unbiased, momentum)


def _mixed(old: Any, new: Any, momentum: Any) -> Any:
    return narrow((1 - momentum) * wide(old) + momentum * new, knp.asarray(old))


@jit
def instance_norm(input: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Any:
    """Normalise each channel (axis 1) of each sample over the axes after it; Ulyanov et al. 2016.

    There are no running statistics: ``batch_norm`` has them.
    """
    like = knp.asarray(input)
    x = wide(like)
    require(x.ndim >= 3, "instance_norm", x.shape, "an axis after those of the batch and of channels, at least")
    made = _standardized(x, tuple(range(2, x.ndim)), eps)
    return narrow(_scaled(made, _channels(weight, x), _channels(bias, x)), like)


@jit(static_argnames="num_groups")
def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Any:
    """Normalise groups of channels (axis 1) of each sample, with the axes after them; Wu and He 2018."""
    like = knp.asarray(input)
    x = wide(like)
    fits = x.ndim >= 2 and num_groups > 0 and x.shape[1] % num_groups == 0
    require(fits, "group_norm", x.shape, f"a number of channels, axis 1, that {num_groups} divides")
    grouped = x.reshape((x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:]))
    made = _standardized(grouped, tuple(range(2, grouped.ndim)), eps).reshape(x.shape)
    return narrow(_scaled(made, _channels(weight, x), _channels(bias, x)), like)


@jit(static_argnames="size")
def local_response_norm(input: Any, size: int, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0) -> Any:
    """Divide by a power of the mean square of ``size`` neighbouring channels; Krizhevsky et al. 2012, section 3.3."""
    like = knp.asarray(input)
    x = wide(like)
    widths = [(size // 2, (size - 1) // 2) if a == 1 else (0, 0) for a in range(x.ndim)]
    seen = windows(knp.pad(x * x, widths), (1,), (size,))
    return narrow(x / (k + alpha * seen.mean(axis=-1)) ** beta, like)
