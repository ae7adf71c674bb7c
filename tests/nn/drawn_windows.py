"""Convolutions, pooling, padding, resizing, attention and recurrent layers with shapes and options that are drawn."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from tests.nn import images, resizing, sequences
from tests.nn.case import Case
from tests.nn.drawn import Draw, drawn

COUNTS = {f"{kind}{n}d": n for n in (1, 2, 3) for kind in (
    "conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool", "max_unpool",
)}  # fmt: skip


def _batches(d: Draw, channels: int, extents: Any) -> np.ndarray:
    return d.normal(*([d.whole(1, 2)] if d.flag() else []), channels, *extents)


def _whole(fn: Any) -> Any:
    """Call a loop over images with an axis for the batch, and take it away again."""

    def batched(x: Any, *args: Any, count: int, **options: Any) -> Any:
        return fn(x, *args, **options) if x.ndim == count + 2 else fn(x[None], *args, **options)[0]

    return batched


@drawn("conv1d", "conv2d", "conv3d")
def _conv(d: Draw, name: str) -> Case:
    k = COUNTS[name]
    groups = d.one(1, 1, 2, 3)
    kernel, dilation = [d.whole(1, 3) for _ in range(k)], d.each(k, 1, 2)
    reach = [(n - 1) * e + 1 for n, e in zip(kernel, images._each(dilation, k), strict=True)]
    x = _batches(d, groups * d.whole(1, 2), [r + d.whole(0, 3) for r in reach])
    w = d.normal(groups * d.whole(1, 2), x.shape[-k - 1] // groups, *kernel)
    options = {"groups": groups, "dilation": dilation} | d.some(padding=d.one("same", "valid", d.each(k, 0, 2)))
    if options.get("padding") != "same":
        options |= d.some(stride=d.each(k, 1, 3))
    args = (x, w, *([d.normal(len(w))] if d.flag() else []))
    return Case(name, args, images._conv, options, wrt=tuple(range(len(args))), loose=10)


@drawn("conv_tbc")
def _conv_tbc(d: Draw, name: str) -> Case:
    count, ins, outs = d.whole(1, 4), d.whole(1, 3), d.whole(1, 3)
    x, w = d.normal(count + d.whole(0, 3), d.whole(1, 3), ins), d.normal(count, ins, outs)
    args = (x, w, d.normal(outs))
    # PyTorch takes contiguous arrays alone, and derives it once
    return Case(name, args, images._conv_tbc, {"pad": d.whole(0, 2)}, wrt=(0, 1, 2), torch=None, loose=10)


@drawn("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(d: Draw, name: str) -> Case:
    k = COUNTS[name]
    groups, dilation, stride = d.one(1, 1, 2), d.each(k, 1, 2), d.each(k, 1, 3)
    kernel = [d.whole(1, 3) for _ in range(k)]
    x = _batches(d, groups * d.whole(1, 2), [d.whole(2, 4) for _ in range(k)])
    w = d.normal(x.shape[-k - 1], d.whole(1, 2), *kernel)
    room = min((n - 1) * e + (m - 1) * s for n, e, m, s in zip(
        kernel, images._each(dilation, k), x.shape[-k:], images._each(stride, k), strict=True))  # fmt: skip
    most = min(max(s, e) for s, e in zip(images._each(stride, k), images._each(dilation, k), strict=True)) - 1
    options = {"groups": groups, "dilation": dilation, "stride": stride}
    options |= d.some(padding=min(d.whole(0, 2), room // 2), output_padding=d.whole(0, most))
    args = (x, w, *([d.normal(w.shape[1] * groups)] if d.flag() else []))

    def expected(x, *rest, **o):
        return _whole(images._conv_transpose)(x, *rest, count=k, **o)

    return Case(name, args, expected, options, wrt=tuple(range(len(args))), loose=10)


def _pooling(d: Draw, k: int, dilated: bool) -> tuple[np.ndarray, dict[str, Any]]:
    kernel = tuple(d.whole(1, 3) for _ in range(k)) if d.flag() else d.whole(1, 3)
    options: dict[str, Any] = {"kernel_size": kernel} | d.some(stride=d.each(k, 1, 3), ceil_mode=d.flag())
    if dilated:
        options |= d.some(dilation=d.each(k, 1, 2))
    reach = [(n - 1) * e + 1 for n, e in zip(images._each(kernel, k), images._each(options.get("dilation", 1), k),
                                             strict=True)]  # fmt: skip
    x = _batches(d, d.whole(1, 2), [r + d.whole(0, 4) for r in reach])
    return x, options | d.some(padding=min(images._each(kernel, k)) // 2)


@drawn("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(d: Draw, name: str) -> Case:
    k = COUNTS[name]
    x, options = _pooling(d, k, True)
    indices = d.flag()
    if indices:
        options["return_indices"] = True

    def expected(x, return_indices=False, **o):
        def run(x):
            made = images._pool(lambda v, held: v.max(-1))(x, k, **o)
            if not return_indices:
                return made
            flat = x.reshape(*x.shape[:2], -1)
            at = np.zeros(made.shape, int)
            for i in np.ndindex(made.shape):
                at[i] = np.flatnonzero(flat[i[:2]] == made[i])[0]
            return made, at

        return run(x) if x.ndim == k + 2 else _first(run(x[None]))

    return Case(name, (x,), expected, options)


def _first(made: Any) -> Any:
    return tuple(m[0] for m in made) if isinstance(made, tuple) else made[0]


@drawn("max_unpool1d", "max_unpool2d", "max_unpool3d")
def _unpool(d: Draw, name: str) -> Case:
    k = COUNTS[name]
    kernel, stride = d.whole(1, 3), d.whole(1, 3)
    extents = [d.whole(1, 4) for _ in range(k)]
    x = _batches(d, d.whole(1, 2), extents)
    default = [(n - 1) * stride + kernel for n in extents]
    sizes = tuple(n + d.whole(0, stride - 1) for n in default)
    total, lead = math.prod(sizes), x.shape[:-k]
    rows = [d._rng.permutation(total)[: math.prod(extents)] for _ in range(math.prod(lead))]
    if len(rows[0]) < math.prod(extents):  # overlapping windows may name an element twice, but not here
        return _unpool(d, name)
    at = np.stack(rows).reshape(x.shape)

    def expected(x, at, kernel_size, stride, output_size):
        made = np.zeros((math.prod(lead), total))
        np.put_along_axis(made, at.reshape(len(made), -1), x.reshape(len(made), -1), axis=1)
        return made.reshape(*lead, *sizes)

    return Case(name, (x, at), expected, {"kernel_size": kernel, "stride": stride, "output_size": sizes})


@drawn("fractional_max_pool2d", "fractional_max_pool3d")
def _fractional(d: Draw, name: str) -> Case:
    k = 3 if "3" in name else 2
    kernel, sizes = ([d.whole(1, 3) for _ in range(k)] for _ in range(2))
    x = _batches(d, d.whole(1, 2), [n + m - 1 + d.whole(1, 4) for n, m in zip(kernel, sizes, strict=True)])
    samples = d.uniform(*(x.shape[:2] if x.ndim == k + 2 else (1, x.shape[0])), k, low=0, high=1)
    indices = d.flag()

    def expected(x, kernel, sizes, output_ratio, return_indices, u):
        y = x.reshape(u.shape[0], u.shape[1], *x.shape[-k:])
        made, at = np.zeros((*u.shape[:2], *sizes)), np.zeros((*u.shape[:2], *sizes), int)
        places = np.arange(math.prod(x.shape[-k:])).reshape(x.shape[-k:])
        for i in np.ndindex(made.shape):
            window = []
            for a, (n, size, count) in enumerate(zip(x.shape[-k:], kernel, sizes, strict=True)):
                own = u[i[:2]][a if k == 3 else 1 - a]
                step = (n - size) / max(count - 1, 1)
                last = i[2 + a] == count - 1
                start = n - size if last else int((i[2 + a] + own) * step) - int(own * step)
                window.append(slice(start, start + size))
            seen = y[i[:2]][tuple(window)]
            made[i], at[i] = seen.max(), places[tuple(window)].flat[seen.argmax()]
        found = (made, at) if return_indices else made
        return found if x.ndim == k + 2 else _first(found)

    def theirs(f, x, kernel, sizes, ratio, indices, u):
        return getattr(f, name)(x, kernel, sizes, ratio, indices, u)

    return Case(name, (x, tuple(kernel), tuple(sizes), None, indices, samples), expected, torch=theirs, orders=1)


@drawn("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(d: Draw, name: str) -> Case:
    k = COUNTS[name]
    x, options = _pooling(d, k, False)
    options |= d.some(count_include_pad=d.flag(), **({"divisor_override": d.whole(1, 5)} if k > 1 else {}))
    return Case(name, (x,), lambda x, **o: _whole(lambda x, **p: images._avg(x, k, **p))(x, count=k, **o), options)


@drawn("lp_pool1d", "lp_pool2d", "lp_pool3d")
def _lp_pool(d: Draw, name: str) -> Case:
    k = COUNTS[name]
    x, options = _pooling(d, k, False)
    options.pop("padding", None)
    if k == 1:  # PyTorch's takes no tuples
        options |= {key: v[0] for key, v in options.items() if isinstance(v, tuple)}
    p = d.one(1.0, 2.0, 3.0, 0.5)
    window = math.prod(images._each(options["kernel_size"], k))

    def expected(x, p, **o):
        pool = images._pool(lambda v, held: ((v**p).sum(-1) * (window / held)) ** (1 / p))
        return _whole(lambda x, **q: pool(x, k, **q))(x, count=k, **o)

    return Case(name, (np.abs(x) + 0.1, p), expected, options, loose=10)


@drawn("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
       "adaptive_max_pool2d", "adaptive_max_pool3d")  # fmt: skip
def _adaptive(d: Draw, name: str) -> Case:
    k = COUNTS[name]
    x = _batches(d, d.whole(1, 2), [d.whole(1, 6) for _ in range(k)])
    sizes = tuple(d.one(None, d.whole(1, 6)) if k > 1 else d.whole(1, 6) for _ in range(k))
    options: dict[str, Any] = {"output_size": d.one(sizes, d.whole(1, 6))}
    largest = "max" in name
    if largest and d.flag():
        options["return_indices"] = True

    def expected(x, output_size, return_indices=False):
        y = x if x.ndim == k + 2 else x[None]
        made = images._adaptive(np.max if largest else np.mean)(y, k, output_size)
        if return_indices:
            flat = y.reshape(*y.shape[:2], -1)
            at = np.zeros(made.shape, int)
            for i in np.ndindex(made.shape):
                at[i] = np.flatnonzero(flat[i[:2]] == made[i])[0]
            made = made, at
        return made if x.ndim == k + 2 else _first(made)

    return Case(name, (x,), expected, options)


@drawn("unfold", "fold")
def _columns(d: Draw, name: str) -> Case:
    options = {"kernel_size": d.each(2, 1, 3)} | d.some(dilation=d.each(2, 1, 2), padding=d.each(2, 0, 2),
                                                        stride=d.each(2, 1, 3))  # fmt: skip
    x = d.normal(d.whole(1, 2), d.whole(1, 2), d.whole(5, 7), d.whole(5, 7))
    if name == "unfold":
        return Case(name, (x,), images._unfold, options)
    columns = d.normal(*images._unfold(x, **options).shape)
    return Case(name, (columns,), images._fold, options | {"output_size": x.shape[2:]})


@drawn("pad")
def _pad(d: Draw, name: str) -> Case:
    mode = d.one("constant", "reflect", "replicate", "circular")
    count = d.whole(1, 3)
    x = d.normal(d.whole(1, 2), d.whole(1, 2), *[d.whole(3, 5) for _ in range(count)])
    options: dict[str, Any] = d.some(mode=mode) if mode == "constant" else {"mode": mode}
    if mode == "constant":
        options |= d.some(value=d.real(-2, 2))
    return Case(name, (x, tuple(d.whole(-1, 2) for _ in range(2 * count))), images._pad, options)


@drawn("interpolate")
def _interpolate(d: Draw, name: str) -> Case:
    count = d.whole(1, 3)
    modes = {1: ("nearest", "nearest-exact", "area", "linear"), 2: ("nearest", "area", "bilinear", "bicubic"),
             3: ("nearest", "nearest-exact", "area", "trilinear")}  # fmt: skip
    mode = d.one(*modes[count])
    smooth = count == 2 and d.flag()
    if smooth:
        mode = d.one("bilinear", "bicubic", "lanczos")
    x = d.normal(d.whole(1, 2), d.whole(1, 2), *[d.whole(1, 6) for _ in range(count)])
    options: dict[str, Any] = {"mode": mode} | ({"antialias": True} if smooth else {})
    if mode.endswith(("linear", "cubic")):
        options |= d.some(align_corners=d.flag())
    if mode != "area" and d.flag():
        # quarters are exact in f32 too, in which PyTorch finds nearest places
        small = (0.25, 0.5) if smooth and min(x.shape[2:]) >= 4 else ()
        options["scale_factor"] = tuple(d.one(*small, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0) for _ in range(count))
    else:
        options["size"] = d.one(tuple(d.whole(1, 8) for _ in range(count)), d.whole(1, 8))
    # of axes that stay PyTorch's gradient is not that of its value
    factors = options.get("scale_factor", (1,) * count) if smooth else ()
    stays = any(f != 1 and int(n * f) == n for n, f in zip(x.shape[2:], factors, strict=False))
    return Case(name, (x,), resizing._interpolate, options, loose=10, torch=None if stays else "same")


@drawn("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def _shuffles(d: Draw, name: str) -> Case:
    r, h, w, c = d.whole(1, 3), d.whole(1, 3), d.whole(1, 3), d.whole(1, 2)
    if name == "pixel_shuffle":
        return Case(name, (d.normal(*d.shape(0, 2, high=2), c * r * r, h, w), r), resizing._shuffle)
    if name == "pixel_unshuffle":
        return Case(name, (d.normal(*d.shape(0, 2, high=2), c, h * r, w * r), r), resizing._unshuffle)
    return Case(name, (d.normal(d.whole(1, 2), c * r, h, w), r), resizing._channels, orders=1)


@drawn("grid_sample")
def _grid_sample(d: Draw, name: str) -> Case:
    count = d.one(2, 2, 3)
    batch = d.whole(1, 2)
    x = d.normal(batch, d.whole(1, 2), *[d.whole(2, 4) for _ in range(count)])
    grid = d.one(0.8, 1.5) * d.normal(batch, *[d.whole(1, 3) for _ in range(count)], count)
    options = {"align_corners": d.flag()} | d.some(
        padding_mode=d.one("zeros", "border", "reflection"),
        mode=d.one("bilinear", "nearest", *(["bicubic"] if count == 2 else [])),
    )
    nearest = options.get("mode") == "nearest"
    return Case(name, (x, grid), resizing._sample, options, wrt=(0,) if nearest else (0, 1), loose=100,
                orders=1 if options.get("mode") == "bicubic" else 2)  # fmt: skip


@drawn("affine_grid")
def _affine_grid(d: Draw, name: str) -> Case:
    count, batch = d.one(2, 3), d.whole(1, 3)
    size = (batch, d.whole(1, 3), *[d.whole(1, 4) for _ in range(count)])
    align = d.flag() and min(size[2:]) > 1
    return Case(name, (d.normal(batch, count, count + 1),), resizing._grid, {"size": size, "align_corners": align})


@drawn("scaled_dot_product_attention")
def _attention(d: Draw, name: str) -> Case:
    heads, share = d.whole(1, 2), d.whole(1, 3)
    grouped = d.flag()
    lead = (d.whole(1, 2), heads)
    n, m, width, out = d.whole(1, 4), d.whole(1, 4), d.whole(1, 4), d.whole(1, 4)
    q = d.normal(lead[0], heads * share if grouped else heads, n, width)
    args = (q, d.normal(*lead, m, width), d.normal(*lead, m, out))
    options = d.some(scale=d.real(0.1, 2), is_causal=True) | ({"enable_gqa": True} if grouped else {})
    wrt: tuple[int, ...] = (0, 1, 2)
    if not options.get("is_causal") and d.flag():
        shape = d.one((n, m), (1, m), (q.shape[1], n, m), (lead[0], 1, n, m))
        soft = d.flag()
        mask = d.normal(*shape) if soft else d.uniform(*shape) < 0.8
        args, wrt = (*args, mask), (*wrt, 3) if soft else wrt
        if not soft:
            mask[..., 0] = True
    return Case(name, args, sequences._attention, options, wrt=wrt, orders=1, loose=5)


@drawn("multi_head_attention_forward")
def _heads(d: Draw, name: str) -> Case:
    n, m, batch, heads, separate = d.whole(1, 4), d.whole(1, 4), d.whole(1, 2), d.whole(1, 3), d.flag()
    width = heads * d.whole(1, 3)
    widths = (width, d.whole(1, 4), d.whole(1, 4)) if separate else (width,) * 3
    inputs = [d.normal(length, batch, w) for length, w in zip((n, m, m), widths, strict=True)]
    options = {"need_weights": d.flag(), "use_separate_proj_weight": separate} | d.some(average_attn_weights=False)
    if separate:
        options |= {f"{x}_proj_weight": d.normal(width, w) for x, w in zip("qkv", widths, strict=True)}
    bias, kind, static = d.flag(), d.one(None, "hidden", "added", "causal"), d.flag()
    if kind == "added":
        options |= {"attn_mask": d.normal(batch * heads, n, m)} | d.some(key_padding_mask=d.normal(batch, m))
    elif kind is not None:
        hidden = (d.uniform(n, m) < 0.3) if kind == "hidden" else ~np.tri(n, m, dtype=bool)
        padding = d.uniform(batch, m) < 0.3
        hidden[:, 0] = padding[:, 0] = False
        options |= {"attn_mask": hidden} | d.some(key_padding_mask=padding)
    if static and not bias:
        options |= {f"static_{x}": d.normal(batch * heads, m, width // heads) for x in "kv"}
    if kind == "causal" and not bias:
        options["is_causal"] = True
    more = bias and d.flag()
    w, b = None if separate else d.normal(3 * width, width), d.normal(3 * width) if d.flag() else None
    extra = [d.normal(1, 1, width) if bias else None for _ in range(2)]
    args = (*inputs, width, heads, w, b, *extra, more, 0.0, d.normal(width, width), d.normal(width))

    def expected(
        q, k, v, width, heads, w, b, bias_k, bias_v, more, p, wo, bo, need_weights, average_attn_weights=True,
        attn_mask=None, key_padding_mask=None, static_k=None, static_v=None, is_causal=False, **of,
    ):  # fmt: skip
        ws = np.split(w, 3) if w is not None else [of[f"{x}_proj_weight"] for x in "qkv"]
        bs = np.zeros((3, width)) if b is None else np.split(b, 3)
        q, k, v = (x @ w.T + c for x, w, c in zip((q, k, v), ws, bs, strict=True))
        out, shares = np.zeros((n, batch, width)), np.zeros((batch, heads, n, m + bias + more))
        for i, h in np.ndindex(batch, heads):
            at = slice(h * width // heads, (h + 1) * width // heads)
            keys, values = (
                s[i * heads + h] if s is not None else x[:, i, at] for x, s in ((k, static_k), (v, static_v))
            )
            mask = np.zeros((n, m))
            for given in (
                None if attn_mask is None else attn_mask[i * heads + h] if attn_mask.ndim == 3 else attn_mask,
                None if key_padding_mask is None else key_padding_mask[i],
            ):
                if given is not None:
                    mask = mask + (np.where(given, -np.inf, 0) if given.dtype == bool else given)
            for added in (bias_k is not None and (bias_k[0, 0, at], bias_v[0, 0, at]), more and (0 * keys[0],) * 2):
                if added:
                    keys, values = np.vstack([keys, added[0]]), np.vstack([values, added[1]])
                    mask = np.pad(mask, ((0, 0), (0, 1)))
            scores = q[:, i, at] @ keys.T / np.sqrt(width // heads) + mask
            shares[i, h] = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            out[:, i, at] = shares[i, h] @ values
        return out @ wo.T + bo, (shares.mean(1) if average_attn_weights else shares) if need_weights else None

    return Case(name, args, expected, options, wrt=_floats(args), orders=1, loose=10)


def _floats(args: Any) -> tuple[int, ...]:
    return tuple(i for i, a in enumerate(args) if isinstance(a, np.ndarray))


@drawn("rotary_embedding")
def _rotary(d: Draw, name: str) -> Case:
    x = d.normal(*d.shape(0, 2, high=3), d.whole(1, 4), 2 * d.whole(1, 3))
    options = d.some(positions=d.integers(9, x.shape[-2]), base=d.one(100.0, 10000.0), interleaved=d.flag())
    return Case(name, (x,), sequences._rotary, options, torch=None)


CELLS = {"rnn": (1, sequences._rnn_cell), "lstm": (4, sequences._lstm_cell), "gru": (3, sequences._gru_cell)}


@drawn("rnn_cell", "lstm_cell", "gru_cell")
def _cell(d: Draw, name: str) -> Case:
    gates, cell = CELLS[name.removesuffix("_cell")]
    batch, n, hidden = d.shape(0, 1), d.whole(1, 4), d.whole(1, 3)
    args: list[Any] = [d.normal(*batch, n), d.normal(*batch, hidden), d.normal(gates * hidden, n)]
    args += [d.normal(gates * hidden, hidden), *(d.normal(gates * hidden) for _ in range(2) if len(batch))]
    if len(args) == 5:
        args.pop()
    wrt = tuple(range(len(args)))
    if name == "lstm_cell":
        args[1], wrt = (args[1], d.normal(*batch, hidden)), (0, *range(2, len(args)))
    torch = {"rnn_cell": "rnn_tanh_cell"}.get(name, name)
    return Case(name, tuple(args), cell, wrt=wrt, torch=sequences._torch_cell(torch) if batch else None, loose=5)


@drawn("rnn", "lstm", "gru")
def _recurrent(d: Draw, name: str) -> Case:
    gates, cell = CELLS[name]
    layers, directions, n, hidden = d.whole(1, 3), d.whole(1, 2), d.whole(1, 3), d.whole(1, 3)
    length, batch, first = d.whole(1, 4), d.whole(1, 2), d.flag()
    count = layers * directions
    inputs = [n if i < directions else hidden * directions for i in range(count)]
    weights = [[d.normal(gates * hidden, m) for m in inputs], [d.normal(gates * hidden, hidden) for _ in inputs]]
    biased = d.flag()
    weights += [[d.normal(gates * hidden) for _ in inputs] for _ in range(2)] if biased else []
    projected = d.whole(1, 2) if name == "lstm" and hidden > 2 else 0
    shown = projected or hidden
    if projected:
        inputs = [n if i < directions else projected * directions for i in range(count)]
        weights[0] = [d.normal(gates * hidden, m) for m in inputs]
        weights[1] = [d.normal(gates * hidden, projected) for _ in inputs]
    state: Any = tuple(d.normal(count, batch, w) for w in ((shown, hidden) if name == "lstm" else (shown,)))
    state = state if name == "lstm" else state[0]
    options: dict[str, Any] = {"bidirectional": directions == 2, "batch_first": first}
    if projected:
        options["weight_hr"] = [d.normal(projected, hidden) for _ in inputs]
    if d.flag():
        options["lengths"] = d.integers(length + 1, batch, low=1)

    def expected(x, hx, *weights, bidirectional, batch_first, weight_hr=None, lengths=None):
        if lengths is not None:
            rows = [
                expected(
                    x[i : i + 1, :end] if batch_first else x[:end, i : i + 1],
                    tuple(s[:, i : i + 1] for s in hx) if name == "lstm" else hx[:, i : i + 1],
                    *weights, bidirectional=bidirectional, batch_first=batch_first, weight_hr=weight_hr,
                )
                for i, end in enumerate(lengths)
            ]  # fmt: skip
            axis = 1 if batch_first else 0
            outs = [
                np.pad(o, [(0, length - end if a == axis else 0) for a in range(3)])
                for (o, _), end in zip(rows, lengths, strict=True)
            ]
            ends = [h for _, h in rows]
            whole = tuple(np.concatenate(p, 1) for p in zip(*ends, strict=True)) if name == "lstm" else None
            return np.concatenate(outs, 1 - axis), np.concatenate(ends, 1) if whole is None else whole
        x = np.swapaxes(x, 0, 1) if batch_first else x
        lasts = []
        for i in range(0, count, directions):
            made = []
            for j in range(i, i + directions):
                h = tuple(s[j] for s in hx) if name == "lstm" else hx[j]
                own = [w[j] for w in weights]

                def step(x, h, *w, j=j):
                    new = cell(x, h, *w)
                    return new if weight_hr is None else (new[0] @ weight_hr[j].T, new[1])

                out, last = sequences._along(step, np.stack)(x, h, *own, reverse=j > i)
                made.append(out)
                lasts.append(last)
            x = np.concatenate(made, -1)
        ends = tuple(np.stack(v) for v in zip(*lasts, strict=True)) if name == "lstm" else np.stack(lasts)
        return (np.swapaxes(x, 0, 1) if batch_first else x), ends

    def torch(_, x, hx, *weights, bidirectional, batch_first, weight_hr=None, lengths=None):
        lib = importlib.import_module("torch")
        weights = weights if weight_hr is None else (*weights, [lib.tensor(w) for w in weight_hr])
        flat = [w[i] for i in range(count) for w in weights]
        fn = getattr(lib, "rnn_tanh" if name == "rnn" else name)
        hx = list(hx) if name == "lstm" else hx
        if lengths is not None:
            rnn = lib.nn.utils.rnn
            packed = rnn.pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
            order = packed.sorted_indices
            hx = [h[:, order] for h in hx] if name == "lstm" else hx[:, order]
            out, *ends = fn(packed.data, packed.batch_sizes, hx, flat, biased, layers, 0.0, False, bidirectional)
            whole = rnn.PackedSequence(out, packed.batch_sizes, order, packed.unsorted_indices)
            out, _ = rnn.pad_packed_sequence(whole, batch_first, total_length=length)
            ends = [h[:, packed.unsorted_indices] for h in ends]
            return out, tuple(ends) if name == "lstm" else ends[0]
        out, *ends = fn(x, hx, flat, biased, layers, 0.0, False, bidirectional, batch_first)
        return out, tuple(ends) if name == "lstm" else ends[0]

    x = d.normal(batch, length, n) if first else d.normal(length, batch, n)
    wrt = (0,) if name == "lstm" else (0, 1)
    return Case(name, (x, state, *weights), expected, options, wrt=wrt, torch=torch, loose=10)
