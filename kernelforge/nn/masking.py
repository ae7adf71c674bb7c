"""Dropout: masks are made from a key and the place of an element wherever they are needed, and never stored.

The backward pass makes the same mask again. ``p=0`` returns the input as it is; ``p=1`` returns zeros, and its
gradient is zeros. ``p`` may be traced.
"""

from __future__ import annotations

import functools
from typing import Any

import kernelforge.numpy as knp
from kernelforge.nn.activations import SELU_ALPHA, SELU_SCALE
from kernelforge.nn.calls import Fn, floating, function, narrow, require, valid, wide
from kernelforge.random import bernoulli, next_key

CHANNELS = "axes for the batch and for channels, at least"


def _drawing(op: str, compiled: Fn, input: Any, p: Any, training: bool, key: Any) -> Any:
    """Call with the key given or, outside of compiled functions, one of the thread's default stream."""
    floating(op, input)
    known = isinstance(p, int | float)
    valid(not known or 0 <= p <= 1, op, "p", p, "a probability, from 0 to 1")
    if not training or (known and p == 0):
        return input
    return compiled(input, p, next_key() if key is None else key)


def _mask(p: Any, key: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the mask, and 1 / (1 - p), or 0 where p is 1: infinity would make NaN of a derivative."""
    keep = 1 - p
    if isinstance(p, int | float):
        scale = 1 / keep if keep > 0 else 0.0
    else:
        some = keep > 0
        scale = knp.where(some, 1 / knp.where(some, keep, 1), 0)
    return bernoulli(key, keep, shape), scale


@function()
def _elements(input: Any, p: Any, key: Any) -> Any:
    x = knp.asarray(input)
    mask, scale = _mask(p, key, x.shape)
    return knp.where(mask, x * scale, 0).astype(x.dtype)


@function()
def _channels(input: Any, p: Any, key: Any) -> Any:
    x = knp.asarray(input)
    require(x.ndim >= 2, "feature_dropout", x.shape, CHANNELS)
    mask, scale = _mask(p, key, (*x.shape[:2], *(1,) * (x.ndim - 2)))
    return knp.where(mask, x * scale, 0).astype(x.dtype)


@function("whole")
def _alpha(input: Any, p: Any, key: Any, whole: bool = False) -> Any:
    like = knp.asarray(input)
    x = wide(like)
    low = -SELU_ALPHA * SELU_SCALE
    require(x.ndim >= 2 or not whole, "feature_alpha_dropout", x.shape, CHANNELS)
    mask, scale = _mask(p, key, (*x.shape[:2], *(1,) * (x.ndim - 2)) if whole else x.shape)
    a = knp.sqrt(scale / (1 + p * low * low))
    return narrow(knp.where(mask, a * x, a * low) - a * (p * low), like)


def dropout(input: Any, p: Any = 0.5, training: bool = True, *, key: Any = None) -> Any:
    """Make each element 0 with probability ``p`` and divide the others by 1 - p; Srivastava et al. 2014.

    Args:
        key: of ``kernelforge.random``; None draws one from the default stream of the thread, which compiled functions
            refuse. PyTorch draws from its global state, and has a further parameter ``inplace``.

    Raises:
        TracedStream: without a key while a function is compiled.
        DtypeMismatch: for integers.
    """
    return _drawing("dropout", _elements, input, p, training, key)


def feature_dropout(input: Any, p: Any = 0.5, training: bool = True, *, key: Any = None) -> Any:
    """``dropout`` of whole channels (axis 1): what PyTorch calls dropout1d, dropout2d and dropout3d.

    Those also take an input without the axis for the batch; here axis 1 always is that of channels.
    """
    return _drawing("feature_dropout", _channels, input, p, training, key)


def alpha_dropout(input: Any, p: Any = 0.5, training: bool = True, *, key: Any = None) -> Any:
    """``dropout`` that keeps mean 0 and variance 1, to go with ``selu``; Klambauer et al. 2017. Zeros for ``p=1``.

    PyTorch's has ``training=False`` for default.
    """
    return _drawing("alpha_dropout", _alpha, input, p, training, key)


def feature_alpha_dropout(input: Any, p: Any = 0.5, training: bool = True, *, key: Any = None) -> Any:
    """``alpha_dropout`` of whole channels (axis 1)."""
    return _drawing("feature_alpha_dropout", functools.partial(_alpha, whole=True), input, p, training, key)


dropout1d = dropout2d = dropout3d = feature_dropout
