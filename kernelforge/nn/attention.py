"""Attention and rotary embeddings, in plain NumPy terms, so that the compiler fuses them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.nn.calls import Given, draws_key, function, narrow, require, valid, wide
from kernelforge.nn.masking import dropout


def _draws(given: Given) -> None:
    p = given.get("dropout_p", 0.0)
    if not (isinstance(p, int | float) and p == 0):
        draws_key(given, "dropout_key")


@function("is_causal", "enable_gqa", before=_draws)
def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
    dropout_key: Any = None,
) -> Any:
    """``softmax(query @ key.T * scale + bias) @ value`` over the last two axes, (length, width); Vaswani et al. 2017.

    Args:
        attn_mask: bools, which say where a query may look, or floats that are added; to broadcast with (queries, keys).
        is_causal: let query i look at keys up to i only; not together with ``attn_mask``.
        scale: by default one over the root of the width.
        enable_gqa: let a head (axis -3) of key and value serve several heads of the query; Ainslie et al. 2023.
        dropout_key: as of ``dropout``, for the dropout of weights.

    A query that may look nowhere gives zeros, as in PyTorch.
    """
    op = "scaled_dot_product_attention"
    like = knp.asarray(query)
    q, k, v = wide(query), wide(key), wide(value)
    fits = (
        min(q.ndim, k.ndim, v.ndim) >= (3 if enable_gqa else 2)
        and q.shape[-1] == k.shape[-1]
        and k.shape[-2] == v.shape[-2]
    )
    require(
        fits, op, f"{q.shape}, {k.shape} and {v.shape}", "(..., queries, width), (..., keys, width), (..., keys, any)"
    )
    valid(not is_causal or attn_mask is None, op, "attn_mask", "an array", "None with is_causal=True")
    grouped = enable_gqa and q.shape[-3] != k.shape[-3]
    if grouped:
        shared = q.shape[-3] % k.shape[-3] == 0 and k.shape[-3] == v.shape[-3]
        require(shared, op, f"{q.shape} and {k.shape}", "a multiple of the heads of key and value in the query")
        heads = k.shape[-3]
        q = q.reshape((*q.shape[:-3], heads, q.shape[-3] // heads, *q.shape[-2:]))
        k, v = k[..., None, :, :], v[..., None, :, :]
    scores = (q @ knp.swapaxes(k, -1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    masked = is_causal
    if is_causal:
        allowed = knp.arange(q.shape[-2])[:, None] >= knp.arange(k.shape[-2])
        scores = knp.where(allowed, scores, -math.inf)
    elif attn_mask is not None:
        mask = knp.asarray(attn_mask)
        if grouped and mask.ndim >= 3:
            per_head = mask.shape[-3] != 1
            split = (heads, mask.shape[-3] // heads) if per_head else (1, 1)
            mask = mask.reshape((*mask.shape[:-3], *split, *mask.shape[-2:]))
        masked = True
        scores = knp.where(mask, scores, -math.inf) if mask.dtype == np.bool_ else scores + mask
    weights = _softmax(scores, masked and not is_causal)
    if not (isinstance(dropout_p, int | float) and dropout_p == 0):
        weights = dropout(weights, dropout_p, key=dropout_key)
    made = weights @ v
    return narrow(made.reshape((*like.shape[:-1], v.shape[-1])) if grouped else made, like)


def _softmax(scores: Any, may_be_empty: bool) -> Any:
    top = scores.max(axis=-1, keepdims=True)
    if may_be_empty:
        top = knp.where(top == -math.inf, 0, top)
    e = knp.exp(scores - top)
    total = e.sum(axis=-1, keepdims=True)
    return e / (knp.where(total == 0, 1, total) if may_be_empty else total)


@function("interleaved")
def rotary_embedding(input: Any, positions: Any = None, base: Any = 10000.0, interleaved: bool = True) -> Any:
    """Rotate pairs of elements of the last axis by angles that grow with the position; Su et al. 2021, equation 34.

    Args:
        input: of shape (..., length, width), the width even.
        positions: of shape (length,), or to broadcast with (..., length); 0, 1, 2 by default.
        interleaved: pair neighbours, as in the paper; else element i with element i + width / 2.
    """
    like = knp.asarray(input)
    x = wide(like)
    width = x.shape[-1]
    require(x.ndim >= 2 and width % 2 == 0, "rotary_embedding", x.shape, "(..., length, width), the width even")
    places = knp.arange(x.shape[-2]) if positions is None else knp.asarray(positions)
    rates = knp.exp(knp.arange(0, width, 2).astype(x.dtype) * (-knp.log(knp.asarray(base).astype(x.dtype)) / width))
    angle = places.astype(x.dtype)[..., None] * rates
    c, s = knp.cos(angle), knp.sin(angle)
    if interleaved:
        pairs = x.reshape((*x.shape[:-1], width // 2, 2))
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        first, second = x[..., : width // 2], x[..., width // 2 :]
    turned = (first * c - second * s, first * s + second * c)
    made = knp.stack(turned, axis=-1).reshape(x.shape) if interleaved else knp.concatenate(turned, axis=-1)
    return narrow(made, like)
