"""Convolutions, pooling and padding, as loops over positions."""

from __future__ import annotations

import itertools

import numpy as np

from tests.nn.case import Case, normal


def _each(v, n):
    return (v,) * n if np.isscalar(v) else tuple(v)


def _conv_tbc(x, w, b, pad=0):
    padded = np.pad(x, ((pad, pad), (0, 0), (0, 0)))
    return np.stack([np.einsum("kbi,kio->bo", padded[t : t + len(w)], w) for t in range(len(padded) - len(w) + 1)]) + b


def _conv(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, flip=False):
    k = w.ndim - 2
    if x.ndim == k + 1:
        return _conv(x[None], w, b, stride, padding, dilation, groups, flip)[0]
    w = np.flip(w, tuple(range(2, w.ndim))) if flip else w
    s, d = _each(stride, k), _each(dilation, k)
    reach = [(n - 1) * e for n, e in zip(w.shape[2:], d, strict=False)]
    pads = (
        {"same": [(r // 2, r - r // 2) for r in reach], "valid": [(0, 0)] * k}.get(padding)
        if isinstance(padding, str)
        else [(p, p) for p in _each(padding, k)]
    )
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    out = [(n - r - 1) // t + 1 for n, r, t in zip(x.shape[2:], reach, s, strict=False)]
    made = np.zeros((len(x), len(w), *out))
    share, each = len(w) // groups, w.shape[1]
    for o in range(len(w)):
        g = o // share
        for at in np.ndindex(*out):
            cut = tuple(slice(i * t, i * t + r + 1, e) for i, t, r, e in zip(at, s, reach, d, strict=False))
            part = x[(slice(None), slice(g * each, (g + 1) * each), *cut)]
            made[(slice(None), o, *at)] = (part * w[o]).reshape(len(x), -1).sum(1)
    return made if b is None else made + b.reshape(-1, *[1] * k)


def _conv_transpose(x, w, b=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    k = w.ndim - 2
    s, p, e, d = (_each(v, k) for v in (stride, padding, output_padding, dilation))
    full = [(n - 1) * t + (m - 1) * f + 1 + q for n, t, m, f, q in zip(x.shape[2:], s, w.shape[2:], d, e, strict=False)]
    made = np.zeros((len(x), w.shape[1] * groups, *full))
    share = w.shape[0] // groups
    for c in range(w.shape[0]):
        to = slice(c // share * w.shape[1], (c // share + 1) * w.shape[1])
        for at in np.ndindex(*x.shape[2:]):
            cut = tuple(
                slice(i * t, i * t + (m - 1) * f + 1, f) for i, t, m, f in zip(at, s, w.shape[2:], d, strict=False)
            )
            made[(slice(None), to, *cut)] += x[(slice(None), c, *at)].reshape(-1, *[1] * (k + 1)) * w[c]
    made = made[(..., *(slice(q, n - q) for q, n in zip(p, full, strict=False)))]
    return made if b is None else made + b.reshape(-1, *[1] * k)


def _pool(reduce, inside_only=False):
    """Pool by a function of a window's elements and of how many of the padded input it holds."""

    def fn(x, k, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
        size, p, d = (_each(v, k) for v in (kernel_size, padding, dilation))
        s = size if stride is None else _each(stride, k)
        out = []
        for n, m, t, q, f in zip(x.shape[2:], size, s, p, d, strict=False):
            places = -(-(n + 2 * q - (m - 1) * f - 1) // t) + 1 if ceil_mode else (n + 2 * q - (m - 1) * f - 1) // t + 1
            out.append(places - (ceil_mode and (places - 1) * t >= n + q))
        made = np.zeros((*x.shape[:2], *out))
        for at in np.ndindex(*out):
            rows = [[i * t - q + j * f for j in range(m)] for i, t, q, m, f in zip(at, s, p, size, d, strict=False)]
            held = np.prod([sum(j < n + q for j in r) for r, n, q in zip(rows, x.shape[2:], p, strict=False)])
            rows = [[j for j in r if 0 <= j < n] for r, n in zip(rows, x.shape[2:], strict=False)]
            values = np.stack([x[(..., *i)] for i in itertools.product(*rows)], -1)
            made[(..., *at)] = reduce(values, held)
        return made

    return fn


MAX = _pool(lambda v, held: v.max(-1))


def _avg(x, k, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    def reduce(v, held):
        return v.sum(-1) / (divisor_override or (held if count_include_pad else v.shape[-1]))

    return _pool(reduce)(x, k, kernel_size, stride, padding, 1, ceil_mode)


def _lp(x, k, norm_type, kernel_size, stride=None):
    return _pool(lambda v, held: (v**norm_type).sum(-1) ** (1 / norm_type))(x, k, kernel_size, stride)


def _adaptive(reduce):
    def fn(x, k, output_size):
        wanted = _each(output_size, k) if output_size else [None] * k
        sizes = [n if o is None else o for o, n in zip(wanted, x.shape[2:], strict=True)]
        made = np.zeros((*x.shape[:2], *sizes))
        for at in np.ndindex(*sizes):
            cut = [slice(i * n // o, -(-(i + 1) * n // o)) for i, n, o in zip(at, x.shape[2:], sizes, strict=False)]
            made[(..., *at)] = reduce(x[(..., *cut)], axis=tuple(range(2, 2 + k)))
        return made

    return fn


def _of(k, fn):
    return lambda x, *args, **options: fn(x, k, *args, **options)


def _pad(x, pad, mode="constant", value=0.0):
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    lead = x.ndim - len(pairs)

    def cut(x):
        return x[(..., *[slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pairs, x.shape[lead:], strict=False)])]

    widths = [(0, 0)] * lead + [(max(a, 0), max(b, 0)) for a, b in pairs]
    if mode == "constant":
        return np.pad(cut(x), widths, constant_values=value)
    if mode == "circular":
        return np.pad(cut(x), widths, "wrap")
    return cut(np.pad(x, widths, {"reflect": "reflect", "replicate": "edge"}[mode]))


def _unfold(x, kernel_size, dilation=1, padding=0, stride=1):
    (h, w), d, s = _each(kernel_size, 2), _each(dilation, 2), _each(stride, 2)
    x = np.pad(x, [(0, 0), (0, 0), *[(p, p) for p in _each(padding, 2)]])
    rows, columns = ((n - (m - 1) * f - 1) // t + 1 for n, m, f, t in zip(x.shape[2:], (h, w), d, s, strict=False))
    made = [
        x[:, c, i * s[0] + a * d[0], j * s[1] + b * d[1]]
        for c in range(x.shape[1]) for a in range(h) for b in range(w) for i in range(rows) for j in range(columns)
    ]  # fmt: skip
    return np.stack(made, -1).reshape(len(x), x.shape[1] * h * w, rows * columns)


def _fold(x, output_size, kernel_size, dilation=1, padding=0, stride=1):
    h, w = _each(kernel_size, 2)
    channels = x.shape[1] // (h * w)
    cells = np.arange(channels * output_size[0] * output_size[1]).reshape(1, channels, *output_size) + 1.0
    where = _unfold(cells, kernel_size, dilation, padding, stride)[0].astype(int)
    made = np.zeros((len(x), cells.size + 1))
    for n in range(len(x)):
        np.add.at(made[n], where, x[n])
    return made[:, 1:].reshape(len(x), *cells.shape[1:])


X1, X2, X3 = normal(2, 4, 9), normal(2, 4, 7, 8), normal(2, 2, 4, 5, 6)


def _weight(*shape):
    return normal(*shape, seed=5) * 0.5


CONVOLUTIONS = [
    Case("conv_tbc", (normal(7, 2, 3), normal(3, 3, 4), normal(4)), _conv_tbc, {"pad": 2}, wrt=(0, 1, 2), torch=None),
    Case("conv1d", (X1, _weight(6, 4, 3), normal(6)), _conv, wrt=(0, 1, 2)),
    Case("conv1d", (X1, _weight(6, 2, 4)), _conv, {"stride": 2, "padding": 3, "dilation": 2, "groups": 2}, wrt=(0, 1)),
    Case("conv1d", (X1[0], _weight(6, 4, 4)), _conv, {"padding": "same", "dilation": 3}, wrt=(0, 1)),
    Case("conv1d", (X1, _weight(6, 4, 3)), _conv, {"flip": True}, wrt=(0, 1),
         torch=lambda f, x, w, flip: f.conv1d(x, w.flip(2))),
    Case("conv2d", (X2, _weight(3, 4, 3, 3), normal(3)), _conv, {"padding": 1}, wrt=(0, 1, 2)),
    Case("conv2d", (X2, _weight(3, 4, 2, 3)), _conv, {"padding": "same"}, wrt=(0, 1)),
    Case("conv2d", (X2, _weight(8, 1, 3, 2)), _conv, {"groups": 4, "stride": (2, 1), "padding": (1, 2)}, wrt=(0, 1)),
    Case("conv2d", (X2, _weight(5, 4, 1, 1)), _conv, {"stride": 2}, wrt=(0, 1)),
    Case("conv3d", (X3, _weight(3, 2, 2, 3, 2), normal(3)), _conv, {"stride": (1, 2, 1), "padding": (0, 1, 1)},
         wrt=(0, 1, 2), loose=2),
    Case("conv_transpose1d", (X1, _weight(4, 3, 3), normal(3)), _conv_transpose, wrt=(0, 1, 2)),
    Case("conv_transpose1d", (X1, _weight(4, 3, 4)), _conv_transpose,
         {"stride": 3, "padding": 2, "output_padding": 1, "groups": 2, "dilation": 2}, wrt=(0, 1)),
    Case("conv_transpose1d", (X1, _weight(4, 3, 2)), _conv_transpose,
         {"stride": 2, "output_padding": 2, "dilation": 3}, wrt=(0, 1)),
    Case("conv_transpose2d", (X2, _weight(4, 2, 3, 2), normal(2)), _conv_transpose,
         {"stride": (2, 3), "padding": (0, 1), "output_padding": (1, 0)}, wrt=(0, 1, 2)),
    Case("conv_transpose3d", (X3, _weight(2, 2, 2, 3, 2)), _conv_transpose, {"stride": (1, 2, 1)}, wrt=(0, 1), loose=2),
    Case("unfold", (X2,), _unfold, {"kernel_size": (2, 3), "dilation": (2, 1), "padding": (1, 0), "stride": 2}),
    Case("fold", (normal(2, 24, 16),), _fold,
         {"output_size": (7, 9), "kernel_size": (2, 3), "dilation": (2, 1), "padding": (1, 0), "stride": 2}),
]  # fmt: skip

POOLING = [
    Case("max_pool1d", (X1,), _of(1, MAX), {"kernel_size": 3, "stride": 2, "padding": 1}),
    Case("max_pool2d", (X2,), _of(2, MAX), {"kernel_size": 2}),
    Case("max_pool2d", (X2,), _of(2, MAX),
         {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 1), "dilation": (1, 2), "ceil_mode": True}),
    Case("max_pool3d", (X3,), _of(3, MAX), {"kernel_size": 2, "stride": 1}),
    Case("avg_pool1d", (X1,), _of(1, _avg), {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True}),
    Case("avg_pool2d", (X2,), _of(2, _avg), {"kernel_size": 2}),
    Case("avg_pool2d", (X2,), _of(2, _avg),
         {"kernel_size": (3, 2), "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
    Case("avg_pool2d", (X2,), _of(2, _avg), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    Case("avg_pool2d", (X2,), _of(2, _avg), {"kernel_size": 3, "divisor_override": 5}),
    Case("avg_pool3d", (X3,), _of(3, _avg), {"kernel_size": (2, 2, 3), "stride": 1}),
    Case("lp_pool1d", (X1**2 + 0.1,), _of(1, _lp), {"norm_type": 3.0, "kernel_size": 2}),
    Case("lp_pool2d", (X2,), _of(2, _lp), {"norm_type": 2.0, "kernel_size": (2, 3), "stride": 2}),
    Case("adaptive_avg_pool1d", (X1,), _of(1, _adaptive(np.mean)), {"output_size": 4}),
    Case("adaptive_avg_pool2d", (X2,), _of(2, _adaptive(np.mean)), {"output_size": (7, 4)}),
    Case("adaptive_avg_pool3d", (X3,), _of(3, _adaptive(np.mean)), {"output_size": (2, None, 3)}),
    Case("adaptive_max_pool1d", (X1,), _of(1, _adaptive(np.max)), {"output_size": 4}),
    Case("adaptive_max_pool2d", (X2,), _of(2, _adaptive(np.max)), {"output_size": (3, 4)}),
    Case("adaptive_max_pool3d", (X3,), _of(3, _adaptive(np.max)), {"output_size": 2}),
]  # fmt: skip

PADDING = [
    Case("pad", (X2, (1, 2, 0, 3)), _pad, {"value": 1.5}),
    Case("pad", (X2, (-1, 2, 3, -2)), _pad),
    Case("pad", (X2, (3, 2, 1, 0)), _pad, {"mode": "reflect"}),
    Case("pad", (X2, (-2, 2, 1, -1)), _pad, {"mode": "reflect"}),
    Case("pad", (X2, (3, 2, 1, 0)), _pad, {"mode": "replicate"}),
    Case("pad", (X2, (-2, 2, 1, -1)), _pad, {"mode": "replicate"}),
    Case("pad", (X2, (3, 2, 1, 0)), _pad, {"mode": "circular"}),
    Case("pad", (X2, (-2, 2, 1, -1)), _pad, {"mode": "circular"}),
]
