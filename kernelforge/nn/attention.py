"""Attention and rotary embeddings, in plain NumPy terms, so that the compiler fuses them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.nn.calls import Given, draws_key, function, narrow, require, valid, wide
from kernelforge.nn.dense import linear
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

    A query that may look nowhere gives zeros, as in PyTorch; without a width it looks at all alike.
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
    # without a width all scores are zero, whatever they are scaled by
    scores = (q @ knp.swapaxes(k, -1, -2)) * (1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale)
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
    if not scores.shape[-1]:
        return scores
    top = scores.max(axis=-1, keepdims=True)
    if may_be_empty:
        top = knp.where(top == -math.inf, 0, top)
    e = knp.exp(scores - top)
    total = e.sum(axis=-1, keepdims=True)
    return e / (knp.where(total == 0, 1, total) if may_be_empty else total)


def _draws_in_training(given: Given) -> None:
    if given.get("training", True):
        _draws(given)


@function("embed_dim_to_check", "num_heads", "add_zero_attn", "training", "need_weights", "use_separate_proj_weight",
          "average_attn_weights", "is_causal", before=_draws_in_training)  # fmt: skip
def multi_head_attention_forward(
    query: Any, key: Any, value: Any, embed_dim_to_check: int, num_heads: int, in_proj_weight: Any, in_proj_bias: Any,
    bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: Any, out_proj_weight: Any, out_proj_bias: Any,
    training: bool = True, key_padding_mask: Any = None, need_weights: bool = True, attn_mask: Any = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Any = None, k_proj_weight: Any = None,
    v_proj_weight: Any = None, static_k: Any = None, static_v: Any = None, average_attn_weights: bool = True,
    is_causal: bool = False, dropout_key: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """Project, attend with several heads, and project again: ``torch.nn.MultiheadAttention`` as a function.

    Args:
        query, key, value: (length, batch, width), or (length, width).
        embed_dim_to_check: the width of ``query``.
        in_proj_weight: those of query, key and value below each other; or with ``use_separate_proj_weight`` each by
            itself, as keys and values may have widths of their own.
        bias_k, bias_v: of shape (1, 1, width): one more key and value.
        add_zero_attn: one more key and value of zeros.
        key_padding_mask: of shape (batch, keys). As in PyTorch, bools of masks say what is hidden; floats are added.
        attn_mask: of shape (queries, keys) or (batch * heads, queries, keys).
        static_k, static_v: in place of projected ones, (batch * heads, keys, width / heads).
        is_causal: a hint that ``attn_mask``, which is to be given, is causal.
        dropout_key: as of ``dropout``.

    Returns the result, shaped as ``query``, and with ``need_weights`` the weights, (batch, queries, keys), or those of
    each head, (batch, heads, queries, keys), else None.
    """
    op = "multi_head_attention_forward"
    inputs = [knp.asarray(x) for x in (query, key, value)]
    single = inputs[0].ndim == 2
    inputs = [x[:, None] if single else x for x in inputs]
    fits = all(x.ndim == 3 for x in inputs) and inputs[0].shape[2] == embed_dim_to_check
    fits = fits and inputs[1].shape[:2] == inputs[2].shape[:2] and inputs[0].shape[1] == inputs[1].shape[1]
    expected = f"(length, batch, width), of the query {embed_dim_to_check}, one length of key and value"
    require(fits, op, ", ".join(str(x.shape) for x in inputs), expected)
    length, batch, width = inputs[0].shape
    valid(width % num_heads == 0, op, "num_heads", num_heads, f"a divisor of the width {width}")
    valid((bias_k is None) == (bias_v is None), op, "bias_v", "one of both", "bias_k and bias_v")
    valid(not is_causal or attn_mask is not None, op, "attn_mask", None, "the mask with is_causal=True")
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights = separate if use_separate_proj_weight else knp.split(knp.asarray(in_proj_weight), 3)
    biases = (None,) * 3 if in_proj_bias is None else knp.split(knp.asarray(in_proj_bias), 3)
    q, k, v = (linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
    more = int(bias_k is not None) + add_zero_attn
    plain = not more and key_padding_mask is None and static_k is static_v is None
    if bias_k is not None:
        k, v = (
            knp.concatenate([x, knp.broadcast_to(b, (1, batch, width))])
            for x, b in ((k, knp.asarray(bias_k)), (v, knp.asarray(bias_v)))
        )

    def by_head(x: Any, static: Any) -> Any:
        if static is not None:
            return knp.asarray(static).reshape((batch, num_heads, -1, width // num_heads))
        return x.reshape((x.shape[0], batch, num_heads, width // num_heads)).transpose((1, 2, 0, 3))

    q, k, v = by_head(q, None), by_head(k, static_k), by_head(v, static_v)
    if add_zero_attn:
        k, v = (knp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))) for x in (k, v))
    mask = None
    for given, shape in (
        (
            attn_mask,
            (-1, num_heads, length, k.shape[2] - more) if attn_mask is not None and np.ndim(attn_mask) == 3 else None,
        ),
        (key_padding_mask, (-1, 1, 1, k.shape[2] - more)),
    ):
        if given is not None:
            x = knp.asarray(given)
            x = knp.where(x, -math.inf, knp.zeros((), q.dtype)) if x.dtype == np.bool_ else x
            x = x if shape is None else x.reshape(shape)
            mask = x if mask is None else mask + x
    if mask is not None and more:
        mask = knp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, more)])
    p = dropout_p if training and dropout_key is not None else 0.0
    if need_weights:
        scores = (wide(q) @ knp.swapaxes(wide(k), -1, -2)) / math.sqrt(width // num_heads)
        shares = _softmax(scores if mask is None else scores + mask, False)
        shares = dropout(shares, p, key=dropout_key)
        made = narrow(shares @ wide(v), q)
    else:
        causal = is_causal and plain
        made = scaled_dot_product_attention(q, k, v, None if causal else mask, p, causal, dropout_key=dropout_key)
    out = linear(made.transpose((2, 0, 1, 3)).reshape((length, batch, width)), out_proj_weight, out_proj_bias)
    shown = None
    if need_weights:
        shown = narrow(shares.mean(axis=1) if average_attn_weights else shares, q)
        shown = shown[0] if single else shown
    return (out[:, 0] if single else out), shown


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
