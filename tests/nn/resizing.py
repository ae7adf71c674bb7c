"""Interpolation, rearranged channels and samples at given places, as loops over places."""

from __future__ import annotations

import itertools

import numpy as np

from tests.nn.case import Case, normal


def _cubic(t, a=-0.75):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def _line(n, m, ratio, mode, align):
    """Return the matrix that resizes an axis of ``n`` elements to ``m``."""
    made = np.zeros((m, n))
    for i in range(m):
        if mode == "area":
            first, last = i * n // m, -(-(i + 1) * n // m)
            made[i, first:last] = 1 / (last - first)
        elif mode.startswith("nearest"):
            made[i, min(int((i + (0.5 if mode.endswith("exact") else 0)) * ratio), n - 1)] = 1
        else:
            at = (i * (n - 1) / max(m - 1, 1)) if align else (i + 0.5) * ratio - 0.5
            at = at if mode == "bicubic" else max(at, 0)
            for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                weight = _cubic(at - j) if mode == "bicubic" else max(0, 1 - abs(at - j))
                made[i, min(max(j, 0), n - 1)] += weight
    return made


def _smooth_line(n, m, ratio, mode):
    """Return the matrix of a filter that is as wide as what each of ``m`` places is made of."""
    made = np.zeros((m, n))
    wide = max(ratio, 1)
    reach = {"bilinear": 1, "bicubic": 2, "lanczos": 3}[mode] * wide
    for i, j in np.ndindex(m, n):
        at = (i + 0.5) * ratio
        if max(int(at - reach + 0.5), 0) <= j < min(int(at + reach + 0.5), n):
            t = (j + 0.5 - at) / wide
            smooth = np.sinc(t) * np.sinc(t / 3) * (abs(t) < 3) if mode == "lanczos" else _cubic(t, -0.5)
            made[i, j] = max(0, 1 - abs(t)) if mode == "bilinear" else smooth
    return made / made.sum(1, keepdims=True)


def _interpolate(x, size=None, scale_factor=None, mode="nearest", align_corners=None, antialias=False):
    k = x.ndim - 2
    factors = np.broadcast_to(scale_factor, (k,)) if scale_factor else None
    sizes = (
        [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)] if scale_factor else np.broadcast_to(size, k)
    )
    for a, m in enumerate(sizes):
        n = x.shape[a + 2]
        ratio = 1 / factors[a] if scale_factor else n / m
        if antialias and n == m:
            continue
        if antialias:
            ratio = ((n - 1) / (m - 1) if m > 1 else 0) if align_corners else ratio
            line = _smooth_line(n, m, ratio, mode)
        else:
            line = _line(n, m, ratio, mode, align_corners)
        x = np.moveaxis(np.moveaxis(x, a + 2, -1) @ line.T, -1, a + 2)
    return x


def _shuffle(x, upscale_factor):
    r = upscale_factor
    c, h, w = x.shape[-3] // r**2, *x.shape[-2:]
    made = np.zeros((*x.shape[:-3], c, h * r, w * r))
    for k, i, j, a, b in itertools.product(range(c), range(h), range(w), range(r), range(r)):
        made[..., k, i * r + a, j * r + b] = x[..., k * r * r + a * r + b, i, j]
    return made


def _unshuffle(x, downscale_factor):
    r = downscale_factor
    parts = [x[..., c : c + 1, a::r, b::r] for c in range(x.shape[-3]) for a in range(r) for b in range(r)]
    return np.concatenate(parts, axis=-3)


def _channels(x, groups):
    n = x.shape[1] // groups
    return np.stack([x[:, g * n + i] for i in range(n) for g in range(groups)], 1)


def _mirror(at, low, high):
    if high <= low:
        return 0.0
    while not low <= at <= high:
        at = 2 * low - at if at < low else 2 * high - at
    return at


def _bounded(at, n, padding_mode, align):
    if padding_mode == "reflection":
        at = _mirror(at, 0, n - 1) if align else _mirror(at, -0.5, n - 0.5)
    return at if padding_mode == "zeros" else min(max(at, 0), n - 1)


def _sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False):
    extents = x.shape[2:]
    made = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    for at in np.ndindex(*grid.shape[:-1]):
        lines = []
        for g, n in zip(grid[at][::-1], extents, strict=True):
            u = (g + 1) / 2 * (n - 1) if align_corners else ((g + 1) * n - 1) / 2
            u = u if mode == "bicubic" else _bounded(u, n, padding_mode, align_corners)
            line = np.zeros(n)
            near = [round(u)] if mode == "nearest" else range(int(np.floor(u)) - 1, int(np.floor(u)) + 3)
            for j in near:
                weight = {"nearest": lambda d: 1, "bicubic": _cubic, "bilinear": lambda d: max(0, 1 - abs(d))}[mode](
                    u - j
                )
                k = _bounded(j, n, padding_mode, align_corners) if mode == "bicubic" else j
                if 0 <= k < n:
                    line[int(k)] += weight
            lines.append(line)
        value = x[at[0]]
        for line in lines[::-1]:
            value = value @ line
        made[(at[0], slice(None), *at[1:])] = value
    return made


def _grid(theta, size, align_corners=False):
    extents = size[2:]
    made = np.zeros((len(theta), *extents, len(extents)))
    for at in np.ndindex(*extents):
        place = [(2 * i / (n - 1) if align_corners else (2 * i + 1) / n) - 1 for i, n in zip(at, extents, strict=True)]
        made[(slice(None), *at)] = theta @ np.array([*place[::-1], 1])
    return made


STAYS = {"scale_factor": (1.1, 1.7), "mode": "bicubic", "antialias": True}
"""An axis of 5 stays: PyTorch's gradient is not that of its value there."""
X1, X2, X3 = normal(2, 3, 7), normal(2, 3, 5, 6), normal(1, 2, 3, 4, 5)
PLACES, DEEP = 0.9 * normal(2, 3, 4, 2), 0.9 * normal(1, 2, 3, 2, 3)

RESIZING = [
    Case("interpolate", (X1,), _interpolate, {"size": 11}),
    Case("interpolate", (X1,), _interpolate, {"scale_factor": 1.7, "mode": "linear"}),
    Case("interpolate", (X2,), _interpolate, {"scale_factor": 2}),
    Case("interpolate", (X2,), _interpolate, {"size": (9, 4), "mode": "nearest-exact"}),
    Case("interpolate", (X2,), _interpolate, {"scale_factor": 2, "mode": "bilinear", "align_corners": False}),
    Case("interpolate", (X1,), _interpolate, {"scale_factor": 4, "mode": "linear"}),
    Case("interpolate", (X2,), _interpolate, {"scale_factor": (3, 1), "mode": "bilinear"}),
    Case("interpolate", (X2,), _interpolate, {"scale_factor": (2, 3), "mode": "bicubic"}),
    Case("interpolate", (X3,), _interpolate, {"scale_factor": 2, "mode": "trilinear"}),
    Case("interpolate", (X2,), _interpolate, {"size": (3, 11), "mode": "bilinear", "align_corners": True}),
    Case("interpolate", (X2,), _interpolate, {"size": (8, 3), "mode": "bicubic"}),
    Case("interpolate", (X2,), _interpolate, {"scale_factor": (1.5, 2.2), "mode": "bicubic"}),
    Case("interpolate", (X2,), _interpolate, {"size": (1, 7), "mode": "bicubic", "align_corners": True}),
    Case("interpolate", (X2,), _interpolate, {"size": (2, 4), "mode": "area"}),
    Case("interpolate", (X2,), _interpolate, STAYS, torch=None),
    Case("interpolate", (X3,), _interpolate, {"size": (5, 2, 7), "mode": "trilinear"}),
    Case("pixel_shuffle", (normal(2, 12, 3, 4),), _shuffle, {"upscale_factor": 2}),
    Case("pixel_unshuffle", (normal(2, 3, 6, 4),), _unshuffle, {"downscale_factor": 2}),
    Case("channel_shuffle", (normal(2, 6, 3, 2),), _channels, {"groups": 3}, orders=1),
    Case("grid_sample", (X2, PLACES), _sample, {"align_corners": False}, wrt=(0, 1)),
    Case("grid_sample", (X2, PLACES), _sample, {"padding_mode": "border", "align_corners": True}, wrt=(0, 1)),
    Case("grid_sample", (X2, PLACES), _sample, {"padding_mode": "reflection", "align_corners": False}, wrt=(0, 1)),
    Case("grid_sample", (X2, 2 * PLACES), _sample, {"padding_mode": "reflection", "align_corners": True}, wrt=(0, 1)),
    Case("grid_sample", (X2, PLACES), _sample, {"mode": "nearest", "align_corners": False}),
    Case("grid_sample", (X2, PLACES), _sample, {"mode": "bicubic", "align_corners": False}, wrt=(0, 1), orders=1),
    Case("grid_sample", (X2, PLACES), _sample,
         {"mode": "bicubic", "padding_mode": "border", "align_corners": True}, wrt=(1,), orders=1),
    Case("grid_sample", (X3, DEEP), _sample, {"align_corners": False}, wrt=(0, 1)),
    Case("affine_grid", (normal(2, 2, 3),), _grid, {"size": (2, 3, 4, 5), "align_corners": False}),
    Case("affine_grid", (normal(2, 3, 4),), _grid, {"size": (2, 1, 2, 3, 4), "align_corners": True}),
]  # fmt: skip
