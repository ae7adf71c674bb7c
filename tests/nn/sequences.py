"""Attention, rotary embeddings, recurrent layers and alignments, as loops over queries, steps and paths."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import scipy.special as ss

from tests.nn.case import Case, normal


def _attention(q, k, v, mask=None, is_causal=False, scale=None, enable_gqa=False):
    share = q.shape[-3] // k.shape[-3] if enable_gqa else 1
    k, v = (np.repeat(a, share, axis=-3) if enable_gqa else a for a in (k, v))
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    q, k, v = (np.broadcast_to(a, (*lead, *a.shape[-2:])) for a in (q, k, v))
    made = np.zeros((*q.shape[:-1], v.shape[-1]))
    for at in np.ndindex(*lead):
        for i, row in enumerate(q[at]):
            s = k[at] @ row * (1 / math.sqrt(len(row)) if scale is None else scale)
            if is_causal:
                s = np.where(np.arange(len(s)) <= i, s, -np.inf)
            if mask is not None:
                seen = np.broadcast_to(mask, (*lead, q.shape[-2], k.shape[-2]))[at][i]
                s = np.where(seen, s, -np.inf) if mask.dtype == bool else s + seen
            if np.isfinite(s).any():
                made[(*at, i)] = ss.softmax(s) @ v[at]
    return made


def _rotary(x, positions=None, base=10000.0, interleaved=True):
    n, d = x.shape[-2:]
    made = np.array(x)
    for t in range(n):
        for i in range(d // 2):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + d // 2)
            turn = np.exp(1j * (t if positions is None else positions[t]) / base ** (2 * i / d))
            z = (x[..., t, a] + 1j * x[..., t, b]) * turn
            made[..., t, a], made[..., t, b] = z.real, z.imag
    return made


def _rnn_cell(x, h, wi, wh, bi=0, bh=0, nonlinearity="tanh"):
    z = x @ wi.T + bi + h @ wh.T + bh
    return np.tanh(z) if nonlinearity == "tanh" else np.maximum(z, 0)


def _lstm_cell(x, hx, wi, wh, bi=0, bh=0):
    i, f, g, o = np.split(x @ wi.T + bi + hx[0] @ wh.T + bh, 4, axis=-1)
    c = ss.expit(f) * hx[1] + ss.expit(i) * np.tanh(g)
    return ss.expit(o) * np.tanh(c), c


def _gru_cell(x, h, wi, wh, bi=0, bh=0):
    (r, z, n), (hr, hz, hn) = np.split(x @ wi.T + bi, 3, axis=-1), np.split(h @ wh.T + bh, 3, axis=-1)
    r, z = ss.expit(r + hr), ss.expit(z + hz)
    return (1 - z) * np.tanh(n + r * hn) + z * h


def _along(cell, stack):
    def run(x, h, *weights, reverse=False, **options):
        out = []
        for step in x[::-1] if reverse else x:
            h = cell(step, h, *weights, **options)
            out.append(h[0] if isinstance(h, tuple) else h)
        return stack(out[::-1] if reverse else out), h

    return run


def _torch_cell(name):
    return lambda f, x, h, *weights, **_: getattr(importlib.import_module("torch"), name)(x, h, *weights)


def _torch_along(name):
    def run(f, x, h, *weights, reverse=False):
        torch = importlib.import_module("torch")
        states, last = _along(getattr(torch, name), torch.stack)(x.flip(0) if reverse else x, h, *weights)
        return states.flip(0) if reverse else states, last

    return run


def _ctc(log_probs, targets, input_lengths, target_lengths, blank=0, reduction="mean", zero_infinity=False):
    """Add up all alignments, each on its own."""
    losses = []
    for n, (length, count) in enumerate(zip(input_lengths, target_lengths, strict=True)):
        text = tuple(targets[n, :count])
        total = 0.0
        for path in itertools.product(range(log_probs.shape[2]), repeat=int(length)):
            merged = [c for c, _ in itertools.groupby(path)]
            if tuple(c for c in merged if c != blank) == text:
                total += math.exp(sum(log_probs[t, n, c] for t, c in enumerate(path)))
        losses.append(-math.log(total) if total else math.inf)
    found = np.array(losses)
    if zero_infinity:
        found = np.where(np.isinf(found), 0, found)
    return {"none": found, "sum": found.sum(), "mean": (found / np.maximum(target_lengths, 1)).mean()}[reduction]


Q, K, V = normal(2, 4, 5, 6), normal(2, 4, 7, 6), normal(2, 4, 7, 3)
LOOK = np.random.default_rng(3).random((5, 7)) < 0.6
LOOK[2] = False
SOME = LOOK | (np.arange(5)[:, None] == 2)

ATTENTION = [
    Case("scaled_dot_product_attention", (Q, K, V), _attention, wrt=(0, 1, 2)),
    Case("scaled_dot_product_attention", (Q, K, V), _attention, {"is_causal": True, "scale": 0.3}, wrt=(0, 1, 2)),
    Case("scaled_dot_product_attention", (Q, K, V, SOME), _attention, wrt=(0, 1, 2)),
    Case("scaled_dot_product_attention", (Q, K, V, LOOK), _attention, wrt=(0, 1, 2), orders=1),
    Case("scaled_dot_product_attention", (Q, K, V, normal(4, 5, 7)), _attention, wrt=(0, 1, 2, 3)),
    Case(
        "scaled_dot_product_attention", (normal(2, 6, 5, 4), normal(2, 2, 7, 4), normal(2, 2, 7, 3), normal(6, 1, 7)),
        _attention, {"enable_gqa": True}, wrt=(0, 1, 2, 3),
    ),
    Case("rotary_embedding", (normal(2, 5, 6),), _rotary, torch=None),
    Case("rotary_embedding", (normal(2, 5, 6), np.array([3, 1, 4, 1, 5]), 100.0), _rotary, {"interleaved": False},
         torch=None),
]  # fmt: skip


def _gates(count):
    return normal(4 * count, 3) * 0.5, normal(4 * count, 4) * 0.5, normal(4 * count), normal(4 * count, seed=1)


X, H, C = normal(6, 2, 3), normal(2, 4), normal(2, 4, seed=1)
EVERY = (0, 1, 2, 3, 4, 5)
LOG_P = ss.log_softmax(normal(6, 3, 4), axis=-1)
TEXTS = np.array([[1, 1, 2], [3, 9, -5], [2, 3, 1]])

RECURRENT = [
    Case("rnn_cell", (X[0], H, *_gates(1)), _rnn_cell, wrt=EVERY, torch=_torch_cell("rnn_tanh_cell")),
    Case("rnn_cell", (X[0], H, *_gates(1)), _rnn_cell, {"nonlinearity": "relu"}, EVERY, _torch_cell("rnn_relu_cell")),
    Case("lstm_cell", (X[0], (H, C), *_gates(4)), _lstm_cell, wrt=(0, 2, 3, 4, 5), torch=_torch_cell("lstm_cell")),
    Case("gru_cell", (X[0], H, *_gates(3)), _gru_cell, wrt=EVERY, torch=_torch_cell("gru_cell")),
    Case("rnn", (X, H, *_gates(1)), _along(_rnn_cell, np.stack), wrt=EVERY, torch=_torch_along("rnn_tanh_cell")),
    Case("rnn", (X, H, *_gates(1)[:2]), _along(_rnn_cell, np.stack), {"reverse": True}, (0, 1, 2, 3), torch=None),
    Case("lstm", (X, (H, C), *_gates(4)), _along(_lstm_cell, np.stack), wrt=(0, 2, 3, 4, 5),
         torch=_torch_along("lstm_cell")),
    Case("gru", (X, H, *_gates(3)), _along(_gru_cell, np.stack), {"reverse": True}, EVERY, _torch_along("gru_cell")),
    Case("ctc_loss", (LOG_P, TEXTS, np.array([6, 5, 4]), np.array([3, 1, 2])), _ctc, torch=None),
    Case(
        "ctc_loss", (LOG_P, np.abs(TEXTS) % 4, np.array([6, 5, 2]), np.array([2, 0, 3])), _ctc,
        {"zero_infinity": True, "reduction": "sum", "blank": 0}, orders=1, torch=None,
    ),
]  # fmt: skip
