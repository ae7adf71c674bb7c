"""Changing the size of images: interpolation, rearranged channels, samples at given places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.nn.calls import each, function, narrow, require, valid, wide
from kernelforge.nn.pooling import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

MODES = {
    "nearest": 0,
    "nearest-exact": 0,
    "linear": 1,
    "bilinear": 2,
    "trilinear": 3,
    "bicubic": 2,
    "lanczos": 2,
    "area": 0,
}
"""How many axes each mode is for; 0 for one to three."""

CUBIC = -0.75
"""Keys 1981, the parameter a of the convolution kernel, as PyTorch has it."""

SMOOTH: dict[str, tuple[float, Callable[[Any], Any]]] = {
    "bilinear": (1.0, lambda d: 1 - d),
    "bicubic": (2.0, lambda d: np.where(d < 1, _cubic_near(d, -0.5), _cubic_far(d, -0.5))),
    "lanczos": (3.0, lambda d: np.sinc(d) * np.sinc(d / 3)),
}
"""Of each mode with antialiasing how far its filter reaches, and its weight at a distance; as Pillow has them."""

NEAR = 4
"""Times that an axis becomes longer up to which each place between two elements is written out."""

Taps = list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]]


def _cubic_weights(t: Any) -> list[Any]:
    """The weights of the elements at -1, 0, 1 and 2 for a place ``t`` in [0, 1); Keys 1981, equation 15."""
    return [_cubic_far(t + 1), _cubic_near(t), _cubic_near(1 - t), _cubic_far(2 - t)]


def _cubic_near(x: Any, a: float = CUBIC) -> Any:
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _cubic_far(x: Any, a: float = CUBIC) -> Any:
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


def _taps(n: int, places: int, scale: float, mode: str, align_corners: bool) -> Taps:
    """Return which elements each place of an axis is made of, and their weights; None for 1."""
    at = np.arange(places)
    if mode in ("nearest", "nearest-exact"):
        # PyTorch computes these places in f32, and an element more or less depends on it
        near = np.floor((at + (0.5 if mode == "nearest-exact" else 0)).astype(np.float32) * np.float32(scale))
        return [(np.minimum(near.astype(np.int64), n - 1), None)]
    if align_corners:
        source = at * ((n - 1) / (places - 1) if places > 1 else 0.0)
    else:
        source = (at + 0.5) * scale - 0.5
        source = source if mode == "bicubic" else np.maximum(source, 0)
    first = np.floor(source).astype(np.int64)
    t = source - first
    weights = _cubic_weights(t) if mode == "bicubic" else [1 - t, t]
    low = -1 if mode == "bicubic" else 0
    return [(np.clip(first + low + i, 0, n - 1), w) for i, w in enumerate(weights)]


def _enlarged(x: Any, axis: int, times: int, mode: str) -> Any:
    """Make an axis ``times`` as long: places that lie alike between elements are one sum of slices, with no table."""
    n, cubic = x.shape[axis], mode == "bicubic"
    beyond = 2 if cubic else 1
    ends = [knp.repeat(knp.take(x, [end], axis=axis), beyond, axis) for end in (0, n - 1)]
    padded = knp.concatenate([ends[0], x, ends[1]], axis)
    made = []
    for place in range(times):
        source = (place + 0.5) / times - 0.5
        first = math.floor(source)
        t = source - first
        parts = []
        for i, weight in enumerate(_cubic_weights(t) if cubic else [1 - t, t], -1 if cubic else 0):
            start = beyond + first + i
            parts.append(knp.take(padded, np.arange(start, start + n), axis=axis) * x.dtype.type(weight))
        made.append(sum(parts[1:], parts[0]))
    return knp.stack(made, axis=axis + 1).reshape((*x.shape[:axis], n * times, *x.shape[axis + 1 :]))


def _resized(x: Any, axis: int, taps: Taps) -> Any:
    made = None
    for index, weight in taps:
        part = knp.take(x, index, axis=axis)
        if weight is not None:
            part = part * weight.astype(x.dtype).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        made = part if made is None else made + part
    return made


def _smoothed(x: Any, axis: int, places: int, scale: float, mode: str) -> Any:
    """Resize an axis by a filter that is as wide as what each place is made of, where that is more than an element."""
    n = x.shape[axis]
    reach, filtered = SMOOTH[mode]
    wide = max(scale, 1.0)
    centre = (np.arange(places) + 0.5) * scale
    first = np.maximum((centre - reach * wide + 0.5).astype(int), 0)
    last = np.minimum((centre + reach * wide + 0.5).astype(int), n)
    at = first[:, None] + np.arange((last - first).max())
    distance = np.abs(at + 0.5 - centre[:, None]) / wide
    weights = np.where((at < last[:, None]) & (distance < reach), filtered(distance), 0)
    weights = (weights / weights.sum(1, keepdims=True)).astype(x.dtype)
    shape = [-1 if a in (axis, axis + 1) else 1 for a in range(x.ndim + 1)]
    shape[axis : axis + 2] = weights.shape
    return (knp.take(x, np.minimum(at, n - 1), axis=axis) * weights.reshape(shape)).sum(axis=axis + 1)


@function("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
def interpolate(
    input: Any,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """Resize the axes after those of the batch and of channels.

    Args:
        size: of the result; or give ``scale_factor``, how many times larger it is, rounded down.
        mode: ``nearest``, ``nearest-exact``, ``area`` for one to three axes; ``linear`` for one, ``bilinear`` and
            ``bicubic`` for two, ``trilinear`` for three; ``lanczos`` for two, with ``antialias``.
        align_corners: whether the centres of the elements at the corners stay where they are, and not their corners.
        recompute_scale_factor: take the ratio of the extents where elements lie, not ``scale_factor`` itself.
        antialias: widen the filters of modes for two axes where the result is smaller, so that all elements count.
            An axis whose extent stays, as 3 does by ``scale_factor=1.25``, then stays as it is, as PyTorch's does;
            PyTorch's gradient there is that of a filtered one, ours that of the value.
    """
    op = "interpolate"
    like = knp.asarray(input)
    x = wide(like)
    count = x.ndim - 2
    require(1 <= count <= 3, op, x.shape, "axes for batch, channels and one to three more")
    valid(mode in MODES and MODES[mode] in (0, count), op, "mode", mode, f"one for {count} axes")
    valid(antialias or mode != "lanczos", op, "mode", mode, "another one, or antialias=True")
    valid(not antialias or mode in SMOOTH, op, "antialias", antialias, f"False for mode={mode!r}")
    valid(align_corners is None or MODES[mode] > 0, op, "align_corners", align_corners, f"None for mode={mode!r}")
    valid((size is None) != (scale_factor is None), op, "size", size, "it or scale_factor, and not both")
    extents = x.shape[2:]
    ratios: list[float] = []
    if scale_factor is None:
        sizes = each(size if size is not None else 1, count, op, "size")
    else:
        factors = list(scale_factor) if isinstance(scale_factor, Sequence) else [scale_factor] * count
        valid(len(factors) == count, op, "scale_factor", scale_factor, f"a number, or {count} of them")
        sizes = tuple(math.floor(n * f) for n, f in zip(extents, factors, strict=True))
        ratios = [1 / f for f in factors if not recompute_scale_factor]
    valid(min(sizes) > 0, op, "size", sizes, "1 or more")
    if mode == "area":
        return (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)[count - 1](like, sizes)
    for a, (n, places) in enumerate(zip(extents, sizes, strict=True)):
        ratio = ratios[a] if ratios else n / places
        if antialias:
            if n == places:
                continue
            ends = (n - 1) / max(places - 1, 1) * (places > 1)
            x = _smoothed(x, a + 2, places, ends if align_corners else ratio, mode)
            continue
        times, rest = divmod(places, n)
        if MODES[mode] and not align_corners and not rest and 1 < times <= NEAR and ratio == 1 / times:
            x = _enlarged(x, a + 2, times, mode)
            continue
        x = _resized(x, a + 2, _taps(n, places, ratio, mode, bool(align_corners)))
    return narrow(x, like)


@function("upscale_factor")
def pixel_shuffle(input: Any, upscale_factor: int) -> Any:
    """Make (..., c, h * r, w * r) of (..., c * r * r, h, w); Shi et al. 2016, equation 4."""
    x, r = knp.asarray(input), upscale_factor
    fits = x.ndim >= 3 and r > 0 and x.shape[-3] % (r * r) == 0
    require(fits, "pixel_shuffle", x.shape, f"a number of channels, axis -3, that {r * r} divides")
    *lead, c, h, w = x.shape
    apart = x.reshape((*lead, c // (r * r), r, r, h, w))
    moved = knp.moveaxis(apart, (-4, -3), (-3, -1))
    return moved.reshape((*lead, c // (r * r), h * r, w * r))


@function("downscale_factor")
def pixel_unshuffle(input: Any, downscale_factor: int) -> Any:
    """Undo ``pixel_shuffle``."""
    x, r = knp.asarray(input), downscale_factor
    fits = x.ndim >= 3 and r > 0 and x.shape[-1] % r == x.shape[-2] % r == 0
    require(fits, "pixel_unshuffle", x.shape, f"a height and a width that {r} divides")
    *lead, c, h, w = x.shape
    apart = x.reshape((*lead, c, h // r, r, w // r, r))
    return knp.moveaxis(apart, (-3, -1), (-4, -3)).reshape((*lead, c * r * r, h // r, w // r))


@function("groups")
def channel_shuffle(input: Any, groups: int) -> Any:
    """Take channels (axis 1) from each of ``groups`` groups in turn; Zhang et al. 2018."""
    x = knp.asarray(input)
    fits = x.ndim >= 3 and groups > 0 and x.shape[1] % groups == 0
    require(fits, "channel_shuffle", x.shape, f"a number of channels, axis 1, that {groups} divides")
    apart = x.reshape((x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    return knp.swapaxes(apart, 1, 2).reshape(x.shape)


def _reflected(x: Any, low: float, high: float) -> Any:
    """Mirror places until they are in [low, high]."""
    span = high - low
    if span <= 0:
        return knp.zeros_like(x)
    away = knp.abs(x - low)
    turns = knp.floor(away / span)
    rest = away - turns * span
    return knp.where(turns % 2 == 0, rest + low, high - rest)


def _bounded(x: Any, n: int, padding_mode: str, align_corners: bool) -> Any:
    """Bring places along an axis of ``n`` elements into it, as the mode says."""
    if padding_mode == "zeros":
        return x
    if padding_mode == "reflection":
        x = _reflected(x, 0, n - 1) if align_corners else _reflected(x, -0.5, n - 0.5)
    # beyond the ends the derivative is 0, at them too
    return knp.where(x <= 0, 0, knp.where(x >= n - 1, n - 1, x))


@function("mode", "padding_mode", "align_corners")
def grid_sample(
    input: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool = False
) -> Any:
    """Read images (batch, channels, ...) at the places that ``grid`` names; Jaderberg et al. 2015.

    Args:
        grid: of shape (batch, ..., 2) for images, (batch, ..., 3) for volumes: x, y (and z), each from -1 to 1; NaN
            stands for -1.
        mode: ``bilinear``, also for volumes, ``nearest`` or ``bicubic``, the last for images only.
        padding_mode: what lies outside: ``zeros``, the ``border``, or its ``reflection``.
        align_corners: whether -1 and 1 are the centres of the outermost elements, and not their outer edges.
    """
    op = "grid_sample"
    like, places = knp.asarray(input), knp.asarray(grid)
    places = knp.where(knp.isnan(places), -1, places)
    x = wide(like)
    count = x.ndim - 2
    shaped = count in (2, 3) and places.ndim == x.ndim and places.shape[-1] == count and places.shape[0] == x.shape[0]
    require(shaped, op, f"{x.shape} and {places.shape}", "(batch, channels, ...) and (batch, ..., 2 or 3)")
    modes = ("bilinear", "nearest", "bicubic") if count == 2 else ("bilinear", "nearest")
    valid(mode in modes, op, "mode", mode, " or ".join(modes))
    known = ("zeros", "border", "reflection")
    valid(padding_mode in known, op, "padding_mode", padding_mode, ", ".join(known))

    def taps(place: Any, n: int) -> tuple[Any, Any]:
        """Return the places along an axis that one place is made of, and their weights, along a new last axis."""
        at = (place + 1) * ((n - 1) / 2) if align_corners else ((place + 1) * n - 1) / 2
        if mode == "bicubic":
            first = knp.floor(at)
            ends = [_bounded(first + i, n, padding_mode, align_corners) for i in (-1, 0, 1, 2)]
            return knp.stack(ends, axis=-1), knp.stack(_cubic_weights(at - first), axis=-1)
        at = _bounded(at, n, padding_mode, align_corners)
        if mode == "nearest":
            return knp.rint(at)[..., None], knp.ones((1,), x.dtype)
        first = knp.floor(at)
        t = at - first
        return knp.stack([first, first + 1], axis=-1), knp.stack([1 - t, t], axis=-1)

    index: list[Any] = [knp.arange(x.shape[0]).reshape((-1, *(1,) * (places.ndim - 2 + count)))]
    weight: Any = 1
    inside: Any = True
    for a, n in enumerate(x.shape[2:]):
        at, w = taps(places[..., count - 1 - a].astype(x.dtype), n)
        spread = (..., *(slice(None) if b == a else None for b in range(count)))
        within = (at >= 0) & (at <= n - 1)
        index.append(knp.where(within, at, 0).astype(np.int64)[spread])
        weight = weight * knp.where(within, w, 0)[spread]
        inside = inside & within[spread]
    seen = knp.moveaxis(x, 1, -1)[tuple(index)]
    # what stands in for an element outside may be infinite or NaN
    made = knp.where(inside[..., None], seen * weight[..., None], 0).sum(axis=tuple(range(-1 - count, -1)))
    return narrow(knp.moveaxis(made, -1, 1), like)


@function("size", "align_corners")
def affine_grid(theta: Any, size: Sequence[int], align_corners: bool = False) -> Any:
    """The places for ``grid_sample`` that matrices (batch, 2, 3) or (batch, 3, 4) map those of ``size`` to."""
    matrix = wide(theta)
    extents = tuple(size[2:])
    count = len(extents)
    require(matrix.shape[1:] == (count, count + 1), "affine_grid", matrix.shape, f"(batch, {count}, {count + 1})")
    columns = []
    for a in reversed(range(count)):
        n = extents[a]
        line = np.linspace(-1, 1, n) if align_corners and n > 1 else (np.arange(n) * 2 + 1) / n - 1
        columns.append(np.broadcast_to(line.reshape([-1 if b == a else 1 for b in range(count)]), extents))
    base = np.stack([*columns, np.ones(extents)], axis=-1).astype(matrix.dtype)
    made = base.reshape(-1, count + 1) @ knp.swapaxes(matrix, 1, 2)
    return narrow(made.reshape((matrix.shape[0], *extents, count)), knp.asarray(theta))
