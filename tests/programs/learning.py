"""Machine learning: models, losses, training loops."""

from __future__ import annotations

import numpy as np

import kernelforge as kf
from tests.programs.program import Program, integers, normal, uniform


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_softmax(x):
    m = x.max(axis=-1, keepdims=True)
    return x - m - np.log(np.exp(x - m).sum(axis=-1, keepdims=True))


def cross_entropy(logits, labels):
    picked = log_softmax(logits)[np.arange(labels.shape[0]), labels]
    return -picked.mean()


def masked_cross_entropy(logits, labels, weight):
    picked = np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return -(picked * weight).sum() / np.maximum(weight.sum(), 1)


def kmeans(x, centres):
    distance = ((x[:, None, :] - centres[None, :, :]) ** 2).sum(-1)
    nearest = np.argmin(distance, axis=1)
    one_hot = (nearest[:, None] == np.arange(centres.shape[0])[None, :]).astype(x.dtype)
    return (one_hot.T @ x) / np.maximum(one_hot.sum(0)[:, None], 1), nearest


def mixture(x, mean, log_scale, log_weight):
    d = (x[:, None, :] - mean[None]) / np.exp(log_scale)[None]
    ll = log_weight[None] - 0.5 * (d**2).sum(-1) - log_scale.sum(-1)[None]
    m = ll.max(1, keepdims=True)
    lse = m + np.log(np.exp(ll - m).sum(1, keepdims=True))
    return np.exp(ll - lse), lse.sum()


def em(x, mean):
    """Expectation and maximisation for a mixture of normals in one dimension."""
    var, weight = np.ones_like(mean), np.full_like(mean, 1 / mean.shape[0])
    for _ in range(3):
        p = weight * np.exp(-0.5 * (x[:, None] - mean) ** 2 / var) / np.sqrt(2 * np.pi * var)
        r = p / p.sum(axis=1, keepdims=True)
        n = r.sum(axis=0)
        mean = (r * x[:, None]).sum(axis=0) / n
        var = (r * (x[:, None] - mean) ** 2).sum(axis=0) / n
        weight = n / x.shape[0]
    return {"mean": mean, "var": var, "weight": weight}


def viterbi(log_emit, log_step):
    score = log_emit[0]
    back = []
    for t in range(1, log_emit.shape[0]):
        total = score[:, None] + log_step
        back.append(np.argmax(total, axis=0))
        score = np.max(total, axis=0) + log_emit[t]
    path = [np.argmax(score)]
    for best in back[::-1]:
        path.append(np.take_along_axis(best, path[-1][None], axis=0)[0])
    return np.stack(path[::-1]), score.max()


def forward_algorithm(log_emit, log_step):
    def step(alpha, emit):
        total = alpha[:, None] + log_step
        m = total.max(axis=0)
        alpha = m + np.log(np.exp(total - m).sum(axis=0)) + emit
        return alpha, alpha

    last, _ = kf.scan(step, log_emit[0], log_emit[1:])
    return np.log(np.exp(last).sum())


def newton_logistic(x, y):
    """Two Newton steps of ridge regression on two features, the 2 by 2 system solved by hand."""
    w = np.zeros(2, x.dtype)
    for _ in range(2):
        p = sigmoid(x @ w)
        g = x.T @ (p - y) + 0.1 * w
        h = (x * (p * (1 - p))[:, None]).T @ x + 0.1 * np.eye(2, dtype=x.dtype)
        det = h[0, 0] * h[1, 1] - h[0, 1] * h[1, 0]
        w = w - np.array([h[1, 1] * g[0] - h[0, 1] * g[1], h[0, 0] * g[1] - h[1, 0] * g[0]]) / det
    return w


def pca(x, v):
    centred = x - x.mean(axis=0)
    cov = centred.T @ centred / (x.shape[0] - 1)
    for _ in range(3):
        v = cov @ v
        v = v / np.linalg.norm(v, axis=0)
    return v, centred @ v


def rnn(xs, h, wx, wh, b):
    out = []
    for t in range(xs.shape[0]):
        h = np.tanh(xs[t] @ wx + h @ wh + b)
        out.append(h)
    return np.stack(out)


def lstm_cell(x, h, c, w):
    z = np.concatenate([x, h], axis=-1) @ w
    i, f, g, o = np.split(z, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def lstm(xs, w):
    def step(carry, x):
        h, c = lstm_cell(x, *carry, w)
        return (h, c), h

    n = w.shape[1] // 4
    zeros = np.zeros((xs.shape[1], n), xs.dtype)
    _, hs = kf.scan(step, (zeros, zeros), xs)
    return hs


def gru(xs, h, params):
    def step(h, x):
        r, z = (sigmoid(x @ params[k]["x"] + h @ params[k]["h"] + params[k]["b"]) for k in ("reset", "update"))
        new = np.tanh(x @ params["new"]["x"] + (r * h) @ params["new"]["h"] + params["new"]["b"])
        h = (1 - z) * new + z * h
        return h, None

    last, _ = kf.scan(step, h, xs, reverse=True)
    return last


def attention(q, k, v):
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)) @ v


def multi_head(x, wqkv, wo, heads=2):
    b, t, d = x.shape
    q, k, v = np.split(x @ wqkv, 3, axis=-1)
    q, k, v = (a.reshape(b, t, heads, d // heads).transpose(0, 2, 1, 3) for a in (q, k, v))
    return attention(q, k, v).transpose(0, 2, 1, 3).reshape(b, t, d) @ wo + x


def rotary(x):
    """Rotary position embedding."""
    t, d = x.shape[-2:]
    angle = np.arange(t)[:, None] / 100.0 ** (np.arange(0, d, 2) / d)
    c, s = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., ::2], out[..., 1::2] = even * c - odd * s, even * s + odd * c
    return out


def layer_norm(x, gain, bias, eps=1e-5):
    mean = x.mean(axis=-1, keepdims=True)
    var = x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * gain + bias


def batch_norm(x, gain, bias, state, momentum=0.9):
    mean, var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    y = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    kept = {k: momentum * state[k] + (1 - momentum) * v for k, v in (("mean", mean), ("var", var))}
    return np.maximum(y * gain[:, None, None] + bias[:, None, None], 0), kept


def conv_by_loops(x, w):
    n, _, h, wide = x.shape
    o, _, kh, kw = w.shape
    out = np.zeros((n, o, h - kh + 1, wide - kw + 1), x.dtype)
    for i in range(kh):
        for j in range(kw):
            out += np.einsum("nchw,oc->nohw", x[:, :, i : i + h - kh + 1, j : j + wide - kw + 1], w[:, :, i, j])
    return out


def conv_by_windows(x, w):
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w)


def max_pool(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def convnet(x, w1, w2, w3):
    x = max_pool(np.maximum(conv_by_windows(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), w1), 0))
    x = np.maximum(conv_by_windows(x, w2), 0)
    return x.reshape(x.shape[0], -1) @ w3


def embedding(ids, table):
    return table[ids].sum(1)


def graph_convolution(x, source, target, w):
    """Sum messages along edges into their targets."""
    out = np.zeros((x.shape[0], w.shape[1]), x.dtype)
    np.add.at(out, target, x[source] @ w)
    return np.tanh(out)


def mlp(params, x):
    for w, b in params[:-1]:
        x = np.tanh(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def sgd(params, x, y, rate=0.1):
    """Train by gradient descent with momentum, all steps compiled as one."""
    speed = [(w * 0, b * 0) for w, b in params]
    losses = []
    for _ in range(2):
        loss, grads = kf.value_and_grad(lambda p: ((mlp(p, x) - y) ** 2).mean())(params)
        speed = [(0.9 * vw + gw, 0.9 * vb + gb) for (vw, vb), (gw, gb) in zip(speed, grads, strict=True)]
        params = [(w - rate * vw, b - rate * vb) for (w, b), (vw, vb) in zip(params, speed, strict=True)]
        losses.append(loss)
    return params, np.stack(losses)


def adam(w, x, y):
    def step(state, t):
        w, m, v = state
        g = kf.grad(lambda w: ((x @ w - y) ** 2).mean())(w)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        return (w, m, v), ((x @ w - y) ** 2).mean()

    (w, _, _), losses = kf.scan(step, (w, np.zeros_like(w), np.zeros_like(w)), np.arange(1, 5).astype(w.dtype))
    return w, losses


def contrastive(a, b):
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    logits = a @ b.T / 0.2
    labels = np.arange(a.shape[0])
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def gumbel_choice(key, logits):
    u = kf.random.uniform(key, logits.shape, dtype=np.float32).astype(logits.dtype)
    return np.argmax(logits - np.log(-np.log(u)), axis=-1)


def dropout(key, x, rate=0.5):
    keep = kf.random.bernoulli(key, 1 - rate, x.shape)
    return np.where(keep, x / (1 - rate), 0)


def gaussian_process(x, y):
    """Marginal likelihood by one conjugate gradient solve."""
    k = np.exp(-0.5 * (x[:, None] - x[None, :]) ** 2) + 0.5 * np.eye(x.shape[0], dtype=x.dtype)
    a, r = np.zeros_like(y), y
    p = r
    for _ in range(3):
        kp = k @ p
        alpha = r @ r / (p @ kp)
        a, new = a + alpha * p, r - alpha * kp
        p, r = new + (new @ new) / (r @ r) * p, new
    return -0.5 * y @ a


GATE = {"x": 0.5 * normal(3, 4), "h": 0.5 * normal(4, 4), "b": normal(4)}

LEARNING = [
    Program(cross_entropy, (normal(6, 5), integers(5, 6)), wrt=(0,)),
    Program(masked_cross_entropy, (normal(2, 6, 5), integers(5, 2, 6, dtype=np.int32), uniform(2, 6)), wrt=(0, 2)),
    Program(kmeans, (normal(30, 3), normal(5, 3)), wrt=(0,)),
    Program(mixture, (normal(20, 3), normal(4, 3), 0.1 * normal(4, 3, seed=1), normal(4)), wrt=(0, 1, 2, 3)),
    Program(em, (normal(20), np.array([-1.0, 0.5, 1.0])), wrt=(0, 1)),
    Program(viterbi, (normal(5, 4), normal(4, 4))),
    Program(forward_algorithm, (normal(5, 4), normal(4, 4)), wrt=(0, 1)),
    Program(newton_logistic, (normal(15, 2), (normal(15) > 0).astype(float)), wrt=(0,)),
    Program(pca, (normal(12, 5), normal(5, 2)), wrt=(0,), loose=10),
    Program(rnn, (normal(3, 2, 4), normal(2, 5), normal(4, 5), normal(5, 5), normal(5)), wrt=(0, 1, 2, 3, 4)),
    Program(lstm, (normal(4, 3, 4), 0.5 * normal(9, 20)), wrt=(0, 1)),
    Program(gru, (normal(4, 2, 3), normal(2, 4), {"reset": GATE, "update": GATE, "new": GATE}), wrt=(0, 1)),
    Program(attention, (normal(2, 2, 7, 4), normal(2, 2, 7, 4, seed=1), normal(2, 2, 7, 4, seed=2)), wrt=(0, 1, 2)),
    Program(multi_head, (normal(2, 5, 6), 0.5 * normal(6, 18), 0.5 * normal(6, 6)), wrt=(0, 1, 2)),
    Program(rotary, (normal(2, 5, 6),), wrt=(0,), kernels=1),
    Program(layer_norm, (normal(5, 13), normal(13), normal(13, seed=1)), wrt=(0, 1, 2), kernels=1),
    Program(
        batch_norm,
        (normal(3, 2, 4, 5), normal(2), normal(2, seed=1), {"mean": normal(2), "var": uniform(2)}),
        wrt=(0, 1, 2),
    ),
    Program(conv_by_loops, (normal(2, 3, 6, 7), normal(4, 3, 2, 2)), wrt=(0, 1)),
    Program(conv_by_windows, (normal(2, 3, 6, 7), normal(4, 3, 3, 3)), wrt=(0, 1), kernels=1),
    Program(max_pool, (normal(2, 3, 4, 6),), wrt=(0,), kernels=1),
    Program(convnet, (normal(2, 1, 6, 6), normal(3, 1, 3, 3), normal(4, 3, 2, 2), normal(16, 5)), wrt=(1, 2, 3)),
    Program(embedding, (integers(10, 6, 4), normal(10, 7)), wrt=(1,), kernels=1),
    Program(graph_convolution, (normal(6, 3), integers(6, 9), integers(6, 9, seed=1), normal(3, 4)), wrt=(0, 3)),
    Program(mlp, ([(normal(4, 6), normal(6)), (normal(6, 2), normal(2))], normal(5, 4)), wrt=(1,)),
    Program(contrastive, (normal(5, 4), normal(5, 4, seed=1)), wrt=(0, 1)),
    Program(gumbel_choice, (kf.random.key(1), normal(6, 5))),
    Program(dropout, (kf.random.key(2), normal(6, 5)), wrt=(1,), kernels=1),
    Program(gaussian_process, (normal(8), normal(8, seed=1)), wrt=(0, 1)),
]

TRAINING = [
    Program(sgd, ([(normal(4, 6), normal(6)), (normal(6, 2), normal(2))], normal(5, 4), normal(5, 2))),
    Program(adam, (normal(3), normal(8, 3), normal(8))),
]
"""Programs that differentiate: without a compiler NumPy alone cannot run them."""
