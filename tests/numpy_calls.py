"""Calls of NumPy's functions that the array namespace must agree with, by what they try, and arrays to call them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

RNG = np.random.default_rng(7)
X = RNG.uniform(-2, 2, (3, 4, 5)).astype(np.float32)
Y = RNG.uniform(0.25, 2, (3, 4, 5)).astype(np.float32)
M = RNG.uniform(-1, 1, (4, 5))
N = RNG.uniform(-1, 1, (5, 3))
V = RNG.uniform(-1, 1, 5)
K = RNG.integers(-5, 9, (4, 5))
B = RNG.integers(0, 2, (4, 5)).astype(bool)
S8 = np.array([100, 100, 100, -7], np.int8)
U8 = np.array([250, 3, 0], np.uint8)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5])
NANS = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan], [0.5, -2.0, 8.0]])
EMPTY = np.zeros((0, 3))

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "sum": (lambda x: (np.sum(x), np.sum(x, 1), x.sum((0, 2), keepdims=True), x.sum(-1, np.float64)), (X,)),
    "sum of small": (lambda x, u, b: (x.sum(), u.sum(), b.sum(0), x.cumsum(), u.prod()), (S8, U8, B)),
    "sum where": (
        lambda x: (
            np.sum(x, where=x > 0, initial=3.0),
            np.mean(x, 1, where=x > -0.9),
            np.max(x, initial=0, where=x < 0),
        ),
        (M,),
    ),
    "sum f16": (lambda x: (x.sum(), x.mean(), x.var()), (np.full(3000, 10, np.float16),)),
    "prod": (lambda x: (np.prod(x), x.prod(0)), (Y,)),
    "extrema": (lambda x: (x.max(), x.min(1), np.max(x, (0, 1)), np.ptp(x, 2), np.amax(x)), (X,)),
    "any all": (lambda x: (x.any(), (x > 0).all(1), np.any(x > 5, axis=(0, 1))), (X,)),
    "mean": (lambda x, i: (x.mean(), np.mean(x, (0, 1)), i.mean(0), np.average(x, 1)), (X, K)),
    "average": (lambda x, w: np.average(x, 1, w), (M, Y[0, 0])),
    "var": (lambda x: (x.var(), x.std(1), np.var(x, 2, ddof=1), np.std(x, keepdims=True)), (X,)),
    "var offset": (lambda x: x.var(), (np.float32(4096) + X,)),
    "arg": (lambda x: (x.argmax(), np.argmin(x, 1), np.argmax(x, 2, keepdims=True)), (X,)),
    "arg ties": (
        lambda x, n: (x.argmax(1), x.argmin(), n.argmax(1), n.argmin()),
        (np.array([[1, 3, 3], [2, 2, 0]]), NANS),
    ),
    "nan": (
        lambda x: (
            np.nansum(x, 1),
            np.nanprod(x),
            np.nanmax(x, 1),
            np.nanmin(x),
            np.nanmean(x, 0),
            np.nanvar(x),
            np.nanstd(x, 0),
        ),
        (NANS,),
    ),
    "count": (lambda x: (np.count_nonzero(x), np.count_nonzero(x, axis=1)), (K,)),
    "cumulate from a start": (
        lambda x, s, v: (
            np.cumulative_sum(x, axis=1, include_initial=True),
            np.cumulative_prod(x, axis=0, dtype=np.float64, include_initial=True),
            np.cumulative_sum(s, include_initial=True),
            np.cumulative_sum(v.sum(), include_initial=True),
            np.cumulative_sum(v),
            np.cumulative_sum(x[:, :0], axis=1, include_initial=True),
        ),
        (X, S8, V),
    ),
    "axis of a scalar": (
        lambda x: (
            np.argsort(x.sum(), axis=0),
            x.sum().argsort(),
            np.repeat(x.sum(), 3, axis=-1),
            np.take(x.sum(), 0, axis=0),
            np.take(x.sum(), [0, -1], axis=-1),
            np.squeeze(x.sum(), 0),
            x.sum().squeeze(-1),
        ),
        (V,),
    ),
    "square of bools": (lambda b: (b**2, b**1, b**2.0, np.power(b, 2), b[0, 0] ** 2), (B,)),
    "cumulate": (lambda x: (x.cumsum(), np.cumsum(x, 1), np.cumprod(x, -1), np.maximum.accumulate(x, 1)), (X,)),
    "empty": (
        lambda x: (x.sum(0), x.sum(1), x.prod(), np.any(x), x * 2, np.concatenate([x, x]), x.mean(1), x.T),
        (EMPTY,),
    ),
    "reshape": (
        lambda x: (x.reshape(12, 5), x.reshape(-1), x.reshape((2, -1)), x.ravel(), x.flatten(), np.reshape(x, (5, 12))),
        (X,),
    ),
    "transpose": (
        lambda x: (x.T, x.transpose(1, 0, 2), np.swapaxes(x, 0, -1), np.moveaxis(x, 0, -1), x.swapaxes(1, 2), x.mT),
        (X,),
    ),
    "axes": (
        lambda x: (
            np.expand_dims(x, (0, 2)),
            x[None].squeeze(0),
            np.squeeze(x[:, :1]),
            np.atleast_3d(x),
            np.rollaxis(x, 1),
        ),
        (M,),
    ),
    "broadcast": (lambda x, v: (np.broadcast_to(v, (2, 5)), np.broadcast_arrays(x, v)), (M, V)),
    "join": (
        lambda x, i: (
            np.concatenate([x, i]),
            np.concatenate([x, x], 1),
            np.concatenate([x, i], None),
            np.stack([x, x], 1),
            np.hstack([x, x]),
        ),
        (M, K),
    ),
    "join more": (
        lambda v: (
            np.vstack([v, v]),
            np.dstack([v, v]),
            np.column_stack([v, v]),
            np.hstack([v, v]),
            np.stack([v, v], -1),
        ),
        (V,),
    ),
    "split": (
        lambda x: (
            np.split(x, 2),
            np.array_split(x, 3, 1),
            np.split(x, [1, 3]),
            np.hsplit(x, 5),
            np.array_split(x, [2, 9], 0),
        ),
        (M,),
    ),
    "tile": (
        lambda x: (
            np.tile(x, 2),
            np.tile(x, (2, 1, 3)),
            np.repeat(x, 2),
            np.repeat(x, 3, 1),
            np.repeat(x, [1, 0, 2, 1], 0),
        ),
        (M,),
    ),
    "flip": (
        lambda x: (np.flip(x), np.flip(x, 1), np.fliplr(x), np.flipud(x), np.rot90(x), np.rot90(x, 2), np.rot90(x, 3)),
        (M,),
    ),
    "roll": (lambda x: (np.roll(x, 3), np.roll(x, -2, 1), np.roll(x, (1, 2), (0, 1)), np.roll(x, 1, (0, 1))), (M,)),
    "pad": (
        lambda x: (
            [np.pad(x, ((1, 2), (0, 3)), mode=m) for m in ("constant", "edge", "reflect", "wrap", "symmetric")]
            + [np.pad(x, 7, mode="reflect"), np.pad(x, (1, 9), mode="wrap"), np.pad(x, 1, constant_values=2.5)]
        ),
        (M,),
    ),
    "triangles": (lambda x: (np.tril(x), np.triu(x, 1), np.tril(x, -1), np.triu(x[0]), np.tril(x, 2)), (M,)),
    "diagonal": (
        lambda x, v: (
            np.diag(x),
            np.diagonal(x, 1),
            np.diag(v),
            np.diag(v, -2),
            np.trace(x),
            np.diagonal(x, -3),
            np.diagonal(x, 9),
        ),
        (M, V),
    ),
    "diagonal of nothing": (
        lambda x: (
            np.diagonal(x[:0], 0, 1, 2),
            np.diagonal(x[:, :0], 1, 0, 2),
            np.diagonal(x[:, :0], 0, 0, 1),
            np.trace(x[:0], 0, 2, 1),
        ),
        (X,),
    ),
    "diagonal 3": (lambda x: (np.diagonal(x, 0, 0, 2), np.trace(x, 1, 1, 2), x.diagonal(-1, 2, 1)), (X,)),
    "meshgrid": (
        lambda v, w: (np.meshgrid(v, w), np.meshgrid(v, w, indexing="ij"), np.meshgrid(v, w, sparse=True)),
        (V, Y[0, :3, 0]),
    ),
    "windows": (
        lambda x: (
            np.lib.stride_tricks.sliding_window_view(x, 3, 1),
            np.lib.stride_tricks.sliding_window_view(x, (2, 2)),
        ),
        (M,),
    ),
    "like": (
        lambda x: (np.zeros_like(x), np.ones_like(x, dtype=np.int32), np.full_like(x, 3), np.ones_like(x, shape=(2,))),
        (M,),
    ),
    "take": (
        lambda x, i: (
            np.take(x, i, 0),
            np.take(x, [1, 2], axis=1),
            x.take(3),
            np.take(x, i, 1, mode="wrap"),
            np.take(x, i, 1, mode="clip"),
        ),
        (M, K % 4),
    ),
    "along": (lambda x, i: (np.take_along_axis(x, i, 1), np.take_along_axis(x, i[:1], 0)), (M, K % 4)),
    "where": (lambda x, i: (np.where(x > 0, x, 0), np.where(i > 2, i, x), np.where(x[0] > 0, 1, 2.5)), (M, K)),
    "clip": (lambda x, i: (np.clip(x, -0.5, 0.5), x.clip(0), np.clip(i, None, 3), np.clip(x, x[0], 1)), (M, K)),
    "round": (lambda x, i: (np.round(x, 2), x.round(), np.round(i, -1), np.around(x * 100, -1)), (M, K)),
    "close": (
        lambda x: (np.allclose(x, x + 1e-9), np.isclose(x, x + 1e-3), np.array_equal(x, x), np.array_equal(x, x[0])),
        (M,),
    ),
    "diff": (
        lambda x: (
            np.diff(x),
            np.diff(x, 2, 0),
            np.diff(x > 0),
            np.diff(x, prepend=0.0),
            np.gradient(x),
            np.gradient(x, 0.5, axis=1),
        ),
        (M,),
    ),
    "trapezoid": (lambda x, v: (np.trapezoid(x), np.trapezoid(x, v), np.trapezoid(x, dx=0.5, axis=0)), (M, np.sort(V))),
    "convolve": (
        lambda v, w: [np.convolve(a, b, m) for m in ("full", "same", "valid") for a, b in ((v, w), (w, v), (v, v))],
        (V, Y[0, :2, 0]),
    ),
    "correlate": (
        lambda v, w: [np.correlate(a, b, m) for m in ("full", "same", "valid") for a, b in ((v, w), (w, v))],
        (V, Y[0, :2, 0]),
    ),
    "matmul": (lambda m, n, v: (m @ n, v @ n, m @ v, v @ v, np.matmul(m, n), m[None] @ n[None, None]), (M, N, V)),
    "matmul batch": (lambda x, n: (x @ n, x @ x.mT, x[:1] @ x.mT, n.T @ x.mT), (X, N)),
    "matmul ints": (lambda i, b: (i @ i.T, b @ b.T, (i.astype(np.int8) @ i.T.astype(np.int8))), (K, B)),
    "dot": (
        lambda m, n, v, x: (
            np.dot(m, n),
            v.dot(v),
            np.dot(x, n),
            np.dot(m, 2.0),
            np.vdot(m, m),
            np.inner(m, m),
            np.outer(v, v),
        ),
        (M, N, V, X),
    ),
    "tensordot": (
        lambda x, m: (
            np.tensordot(x, m, ([1, 2], [0, 1])),
            np.tensordot(x, m.T, 1),
            np.tensordot(m, m, 0),
            np.tensordot(x, x, 3),
        ),
        (X, M),
    ),
    "einsum": (
        lambda x, m, n, v: [
            np.einsum("ij,jk->ik", m, n),
            np.einsum("ij,jk", m, n),
            np.einsum("...ij,jk->...ik", x, n),
            np.einsum("bij->b", x),
            np.einsum("ij->ji", m),
            np.einsum("ij,ij->", m, m),
            np.einsum("i,j->ij", v, v),
            np.einsum("ij,jk,k->i", m, n, n[0]),
            np.einsum("bij,bkj->bik", x, x),
            np.einsum("ii->i", n[:3]),
            np.einsum("ii", n[:3]),
            np.einsum("iij->j", x[:, :3]),
            np.einsum("bij,ij,j->bi", x, m, v),
            np.einsum("i...->...", m),
            np.einsum("ba", m),
            np.einsum("ij,kl->", m, n),
        ],
        (X, M, N, V),
    ),
    "kron cross": (
        lambda m, n: (np.kron(m, n), np.kron(m[0], n), np.cross(n, n[::-1]), np.cross(n.T, n.T[::-1], axis=0)),
        (M, N),
    ),
    "norm": (
        lambda x, v: (
            [
                np.linalg.norm(x),
                *(np.linalg.norm(v, o) for o in (1, 2, 0, 3, np.inf, -np.inf)),
                np.linalg.norm(x, axis=1),
            ]
            + [np.linalg.norm(x, o) for o in ("fro", 1, -1, np.inf, -np.inf)]
            + [np.linalg.norm(x, axis=(0, 1), keepdims=True)]
        ),
        (M, V),
    ),
    "made": (
        lambda x: (
            np.array([x[0], x[1] * 2, 3.0]),
            np.array([[x[0], 1], [2, x[1]]]),
            np.asarray(x),
            np.stack([x[0], x[2]]),
        ),
        (V,),
    ),
    "questions": (
        lambda x: (np.zeros(np.shape(x)), np.full(2, np.ndim(x)), np.full(2, np.size(x, 0)), np.ones(len(x))),
        (M,),
    ),
    "more ufuncs": (
        lambda x, i: (
            np.bitwise_xor(i, 3),
            ~i,
            i << 2,
            i >> 1,
            i // 3,
            i % 3,
            -7 // (i + 20),
            divmod(i, 4),
            2.0**x,
            abs(x),
        ),
        (M, K),
    ),
    "whole numbers": (
        lambda k, b, u: (
            np.unwrap(k, period=10),
            np.unwrap(k, period=7, discont=4),
            np.unwrap(u),
            np.unwrap(k[:, :1]),
            np.i0(b),
            np.i0(u),
            np.quantile(k, 0),
            np.quantile(b, [0, 1], axis=1),
            np.nanquantile(u, 1, axis=0),
            np.percentile(k, 100),
        ),
        (K, B, U8),
    ),
    "axes of a scalar": (
        lambda x, k: (
            np.sum(x, 0),
            np.prod(x, axis=-1),
            np.exp(x - x.max(-1, keepdims=True)),
            np.any(k, 0),
            np.argmin(x, -1),
            np.argmax(k, 0, keepdims=True),
            np.count_nonzero(k, 0),
            np.nanmax(x, 0),
            np.cumsum(x, 0),
            np.cumprod(k, -1),
            np.bitwise_and.reduce(k, 0),
        ),
        (np.array(2.5), np.array(7)),
    ),
    "edges": (
        lambda x, k, fp: (
            np.interp(x, [-2.0, 0.0, 1.5, 3.0], fp),
            np.interp(np.array([-2.0, 0.0, 0.5, 1.5, 2.0]), [-2.0, 0.0, 1.5, 3.0], fp),
            np.interp(x, [1.5], [4.0]),
            np.angle(x),
            np.vander(k[0]),
            np.vander(k[0].astype(np.int8), 9),
            np.vander(x[3:].astype(np.float32), increasing=True),
            x**0.5,
            k**0.5,
            k.astype(np.int8) ** 0.5,
            (k > 0) ** 0.5,
        ),
        (SPECIAL, K, np.array([1.0, np.inf, 2.0, 2.0])),
    ),
}
