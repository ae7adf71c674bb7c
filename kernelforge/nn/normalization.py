"""Normalisation: of layers, groups, instances and batches.

Means and variances are computed in two passes, the mean first, so they are accurate for means far from zero; f16 and
bf16 are computed in f32 and rounded once. Statistics that run along are arguments and results, never written to.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.nn.calls import Ints, function, narrow, require, valid, wide
from kernelforge.nn.windows import windows


def _scaled(op: str, made: Any, weight: Any, bias: Any, shape: tuple[int, ...], after: int = 0) -> Any:
    """Multiply by the weight and add the bias, both of ``shape``, which that many axes stand ``after``."""
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            v = knp.asarray(value)
            require(v.shape == shape, op, v.shape, f"a {name} of shape {shape}")
            v = v.reshape((*shape, *(1,) * after))
            made = made * v if name == "weight" else made + v
    return made


def _by_channel(op: str, made: Any, weight: Any, bias: Any) -> Any:
    return _scaled(op, made, weight, bias, made.shape[1:2], made.ndim - 2)


def _standardized(x: Any, axes: tuple[int, ...], eps: Any) -> Any:
    apart = x - x.mean(axis=axes, keepdims=True)
    return apart / knp.sqrt((apart * apart).mean(axis=axes, keepdims=True) + eps)


def _last(x: Any, normalized_shape: Ints, op: str) -> tuple[int, ...]:
    """Return the axes that ``normalized_shape`` says, which are the last."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int | np.integer) else tuple(normalized_shape)
    fits = 0 < len(shape) <= x.ndim and x.shape[x.ndim - len(shape) :] == shape
    require(fits, op, x.shape, f"an array whose shape ends with {shape}")
    return tuple(range(x.ndim - len(shape), x.ndim))


@function("normalized_shape")
def layer_norm(input: Any, normalized_shape: Ints, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Any:
    """Subtract the mean and divide by the deviation, over the last axes; Ba et al. 2016.

    Args:
        normalized_shape: the extents of these axes; weight and bias have this shape.
        eps: added to the variance.
    """
    x = wide(input)
    axes = _last(x, normalized_shape, "layer_norm")
    made = _scaled("layer_norm", _standardized(x, axes, eps), weight, bias, x.shape[axes[0] :])
    return narrow(made, knp.asarray(input))


@function("normalized_shape")
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
    return narrow(_scaled("rms_norm", made, weight, None, x.shape[axes[0] :]), like)


def _given(op: str, x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: Any) -> Any:
    """Normalise by statistics of channels that are given."""
    mean, var = (_statistic(op, v, x) for v in (running_mean, running_var))
    return _by_channel(op, (x - mean) * (1 / knp.sqrt(var + eps)), weight, bias)


def _statistic(op: str, value: Any, x: Any) -> Any:
    """Shape a vector with an element for each channel (axis 1) of ``x`` to broadcast with it."""
    v = wide(value)
    require(v.shape == x.shape[1:2], op, v.shape, f"running statistics of shape {x.shape[1:2]}")
    return v.reshape((v.shape[0], *(1,) * (x.ndim - 2)))


@function("training")
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
    op = "batch_norm"
    require(x.ndim >= 2, op, x.shape, "an axis for the batch and one for channels, at least")
    _both(op, running_mean, running_var)
    if not training and running_mean is not None:
        made = _given(op, x, running_mean, running_var, weight, bias, eps)
        return narrow(made, like), running_mean, running_var
    axes = (0, *range(2, x.ndim))
    count = math.prod(x.shape[a] for a in axes)
    require(count > 1 or not training, op, x.shape, "more than one value for each channel, to train")
    mean = x.mean(axis=axes, keepdims=True)
    apart = x - mean
    var = (apart * apart).mean(axis=axes, keepdims=True)
    made = narrow(_by_channel(op, apart / knp.sqrt(var + eps), weight, bias), like)
    if running_mean is None:
        return made, None, None
    return made, *_run_on(op, x, (running_mean, running_var), (mean[0], var[0]), count, momentum)


def _both(op: str, running_mean: Any, running_var: Any) -> None:
    given = (running_mean is None) == (running_var is None)
    valid(given, op, "running_var", "an array" if running_mean is None else None, "both running statistics, or none")


def _run_on(op: str, x: Any, old: tuple[Any, Any], new: tuple[Any, Any], count: int, momentum: Any) -> tuple[Any, Any]:
    """Mix new statistics of ``count`` elements into the old ones; the variance becomes the unbiased one."""
    mean, var = new[0], new[1] * (count / max(count - 1, 1))
    made = []
    for before, value in zip(old, (mean, var), strict=True):
        kept = _statistic(op, before, x)
        mixed = (1 - momentum) * kept + momentum * value
        made.append(narrow(mixed.reshape(x.shape[1:2]), knp.asarray(before)))
    return made[0], made[1]


@function("use_input_stats")
def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Any:
    """Normalise each channel (axis 1) of each sample over the axes after it; Ulyanov et al. 2016.

    Args:
        running_mean, running_var: of shape (channels,), or None for none; used in place of the samples' where not
            ``use_input_stats``.
        momentum: the weight of the mean of the samples' statistics in the new running ones.

    Returns:
        The result alone; where running statistics are given, the result and the new ones, as ``batch_norm`` does.
    """
    op = "instance_norm"
    like = knp.asarray(input)
    x = wide(like)
    require(x.ndim >= 3, op, x.shape, "an axis after those of the batch and of channels, at least")
    _both(op, running_mean, running_var)
    if not use_input_stats:
        valid(running_mean is not None, op, "running_mean", None, "an array where use_input_stats=False")
        made = _given(op, x, running_mean, running_var, weight, bias, eps)
        return narrow(made, like), running_mean, running_var
    axes = tuple(range(2, x.ndim))
    count = math.prod(x.shape[2:])
    require(count != 1, op, x.shape, "more than one value for each channel of a sample")
    mean = x.mean(axis=axes, keepdims=True)
    apart = x - mean
    var = (apart * apart).mean(axis=axes, keepdims=True)
    made = narrow(_by_channel(op, apart / knp.sqrt(var + eps), weight, bias), like)
    if running_mean is None:
        return made
    return made, *_run_on(op, x, (running_mean, running_var), (mean.mean(axis=0), var.mean(axis=0)), count, momentum)


@function("num_groups")
def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Any:
    """Normalise groups of channels (axis 1) of each sample, with the axes after them; Wu and He 2018."""
    like = knp.asarray(input)
    x = wide(like)
    fits = x.ndim >= 2 and num_groups > 0 and x.shape[1] % num_groups == 0
    require(fits, "group_norm", x.shape, f"a number of channels, axis 1, that {num_groups} divides")
    grouped = x.reshape((x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:]))
    made = _standardized(grouped, tuple(range(2, grouped.ndim)), eps).reshape(x.shape)
    return narrow(_by_channel("group_norm", made, weight, bias), like)


@function("size")
def local_response_norm(input: Any, size: int, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0) -> Any:
    """Divide by a power of the mean square of ``size`` neighbouring channels; Krizhevsky et al. 2012, section 3.3."""
    like = knp.asarray(input)
    x = wide(like)
    require(x.ndim >= 2, "local_response_norm", x.shape, "an axis for the batch and one for channels, at least")
    valid(size > 0, "local_response_norm", "size", size, "1 or more")
    widths = [(size // 2, (size - 1) // 2) if a == 1 else (0, 0) for a in range(x.ndim)]
    seen = windows(knp.pad(x * x, widths), (1,), (size,))
    return narrow(x / (k + alpha * seen.mean(axis=-1)) ** beta, like)
