"""What NumPy does with arrays: indexing, broadcasting, dtypes, bits, images, statistics, pytrees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.programs.program import Program, integers, normal, uniform

KERNEL = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


def blur(image):
    p = np.pad(image, 1, mode="edge")
    out = np.zeros_like(image)
    for i in range(3):
        for j in range(3):
            out += KERNEL.astype(image.dtype)[i, j] * p[i : i + image.shape[0], j : j + image.shape[1]]
    return out


def sobel(image):
    p = np.pad(image, 1, mode="reflect")
    gx = (p[:-2, 2:] + 2 * p[1:-1, 2:] + p[2:, 2:]) - (p[:-2, :-2] + 2 * p[1:-1, :-2] + p[2:, :-2])
    gy = (p[2:, :-2] + 2 * p[2:, 1:-1] + p[2:, 2:]) - (p[:-2, :-2] + 2 * p[:-2, 1:-1] + p[:-2, 2:])
    return np.hypot(gx, gy), np.arctan2(gy, gx)


def median_of_three(x):
    """The median of neighbours without a sort."""
    a, b, c = x[:-2], x[1:-1], x[2:]
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def grey(image):
    """Luminance of a uint8 picture, with gamma, back to uint8."""
    linear = (image / 255.0) ** 2.2
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.clip(np.rint(255 * y ** (1 / 2.2)), 0, 255).astype(np.uint8)


def threshold(image):
    out = image.copy()
    out[image > 200] = 255
    out[image < 50] = 0
    return out, image + np.uint8(100), image.astype(np.int16) - 300, ~image


def blend(a, b, alpha):
    return (a * alpha[..., None] + b * (1 - alpha[..., None])).astype(np.uint8)


def histogram(x):
    i = np.clip((x * 8).astype(np.int64), 0, 7)
    return (i[:, None] == np.arange(8)).sum(0)


def histogram_by_add_at(x):
    out = np.zeros(8, np.int64)
    np.add.at(out, np.clip((x * 8).astype(np.int64), 0, 7), 1)
    return out, np.cumsum(out) / out.sum()


def one_hot(ids, w):
    return (ids[..., None] == np.arange(w.shape[0])).astype(w.dtype) @ w


def ranks(x):
    """Ranking without a sort; ties by position."""
    i = np.arange(x.shape[0])
    before = (x[None, :] < x[:, None]) | ((x[None, :] == x[:, None]) & (i[None, :] < i[:, None]))
    return before.sum(axis=1)


def sort_by_rank(x):
    out = np.zeros_like(x)
    out[ranks(x)] = x
    return out


def bitonic_sort(x):
    """A sorting network on a power of two of elements."""
    n = x.shape[0]
    i = np.arange(n)
    size = 2
    while size <= n:
        stride = size // 2
        while stride:
            other = x[i ^ stride]
            low = ((i & stride) == 0) == ((i & size) == 0)
            x = np.where(low, np.minimum(x, other), np.maximum(x, other))
            stride //= 2
        size *= 2
    return x


def statistics(x):
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    return {
        "mean": x.mean(0),
        "std": x.std(1),
        "var": x.var(),
        "max": x.max(),
        "where": np.argmax(x, 1),
        "norm": np.linalg.norm(x),
        "skew": (z**3).mean(0),
        "corr": z.T @ z / (x.shape[0] - 1),
        "range": np.ptp(x, axis=1),
    }


def cumulative(x):
    return np.cumsum(x, axis=1), np.cumprod(x * 0.5, axis=0), np.maximum.accumulate(x, axis=1)


def running(x, width=4):
    total = np.cumsum(np.concatenate([np.zeros(1, x.dtype), x]))
    mean = (total[width:] - total[:-width]) / width
    window = np.lib.stride_tricks.sliding_window_view(x, width)
    return mean, window.std(axis=-1), window.max(axis=-1), np.convolve(x, np.ones(width, x.dtype) / width, "valid")


def exponential_average(x, alpha=0.3):
    out = [x[0]]
    for t in range(1, 8):
        out.append(alpha * x[t] + (1 - alpha) * out[-1])
    return np.array(out)


def contractions(a, b, c):
    return (
        np.einsum("bij,bjk->bik", a, b),
        np.einsum("bij,bjk,kl->bil", a, b, c),
        np.einsum("bij->b", a),
        np.einsum("bii->bi", a[:, :3, :3]),
        np.tensordot(a, b, axes=([2], [1])),
        a[..., :4] @ c,
        np.einsum("bij,bij->b", a, a),
    )


def outer_products(x, y):
    return np.outer(x, y), np.kron(x, y), x[:, None] - y, np.add.outer(x, y).max(axis=1), np.dot(x[:3], y[:3])


def broadcasts(a, b, c, d):
    """Shapes (4,1,3), (5,1), (3,), ()."""
    return a + b * c - d, np.maximum(a, b), np.where(a > d, b, c), np.broadcast_to(c, (2, 3)) * d, (a, b)


def mixes(i8, u8, f32, f64, flag):
    return i8 + u8, i8 * f32, u8 / 2, f32 + f64, i8 // 3, u8 % 7, flag + i8, flag & (f32 > 0), i8 + 1, f32 * 2.5, -u8


def whole_numbers(a, b):
    return (
        a // b,
        a % b,
        np.fmod(a, b),
        divmod(a, 7),
        a**2,
        -a,
        np.abs(a),
        a << 2,
        a >> 1,
        a & b,
        a | b,
        a ^ b,
        np.sign(a),
    )


def hash32(x):
    """The finaliser of MurmurHash3."""
    x = x ^ (x >> 16)
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> 13)
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def hash64(x):
    """SplitMix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27)) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> 31)


def popcount(x):
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return (((x + (x >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


def xorshift(x):
    for _ in range(4):
        x = x ^ (x << 13)
        x = x ^ (x >> 17)
        x = x ^ (x << 5)
    return x, x.astype(np.float64) / 2.0**32


def choices(x):
    y = np.where(x < -1, -1, np.where(x > 1, 1, x))
    y = np.where((x > -0.5) & (x < 0.5), 0, y)
    return y, np.clip(x, -0.3, 0.7), np.heaviside(x, 0.5), np.sign(x) * np.sqrt(np.abs(x))


def safe_log(x):
    """The doubled where that keeps gradients finite."""
    ok = x > 0
    return np.where(ok, np.log(np.where(ok, x, 1)), 0)


def masks(x):
    y = x.copy()
    y[y < 0] = 0
    y[np.isnan(x)] = -1
    y[:, 0] = y[:, 1:].sum(axis=1)
    y[::2, 1] += 10
    y[-1] = np.arange(y.shape[1])
    return y, np.sum(x, where=x > 0), np.count_nonzero(x > 0, axis=0)


def rearrange(x):
    a = x.T[::-1, 1:]
    b = np.concatenate([x, x[::-1]], axis=0)[1::2]
    c = np.moveaxis(np.stack([x, -x, 2 * x], axis=1), 0, -1)
    d = np.tile(x, (1, 2)).reshape(-1, x.shape[1])
    e = np.repeat(x, 2, axis=1)[:, ::-3]
    return a, b, c, d, e, np.rot90(x), np.flip(x, 1), np.triu(x) + np.tril(x, -2), np.diag(x), x[..., None].squeeze()


def fancy(x, i, j):
    return x[i], x[:, j], x[i[:, None], j], x[i, 2:], x[-1, i % 3], np.take(x, i, axis=1, mode="wrap"), x[i].max(0)


def scatter(x, i, v):
    y = x.copy()
    np.add.at(y, i, v)
    z = np.zeros_like(x)
    z[i] = v
    m = np.full(x.shape, -9, x.dtype)
    np.maximum.at(m, i, v)
    return y, z, m


def extremes(x):
    i, j = np.argmin(x, axis=0), np.argmax(x)
    return i, j, np.take_along_axis(x, i[None], axis=0), x.ravel()[j], np.any(x > 2), np.all(x > -9, axis=1), x.min()


def lookup(x, knots, values):
    """Interpolation, bins and their counts."""
    bins = np.searchsorted(knots, x, side="right")
    counts = np.zeros(knots.shape[0] + 1, np.int64)
    np.add.at(counts, bins, 1)
    level = np.select([x < 0.3, x < 0.6], [x**2, -x], default=1.0)
    return np.interp(x, knots, values), bins, counts, level


class Line(NamedTuple):
    slope: object
    offset: object


def least_squares(data):
    x, y = data["x"], data["y"]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    line = Line(slope, y.mean() - slope * x.mean())
    return {"line": line, "residuals": [y - (line.slope * x + line.offset)], "n": x.shape[0]}


def polynomial(x, degree, scale=2.0, *, centre=0.0):
    out = np.zeros_like(x)
    for k in range(degree + 1):
        out = out * (x - centre) + scale / (k + 1)
    return out


def chebyshev(x):
    table = np.empty((5, *x.shape), x.dtype)
    table[0], table[1] = 1, x
    for n in range(2, 5):
        table[n] = 2 * x * table[n - 1] - table[n - 2]
    return table


def specials(x):
    return (
        np.expm1(x),
        np.log1p(np.abs(x)),
        np.logaddexp(x, -x),
        np.sinc(x),
        np.cbrt(x),
        np.arctan(x),
        np.exp2(x),
        np.copysign(2, x),
    )


def not_numbers(x):
    return (
        np.isnan(x),
        np.nan_to_num(x, posinf=9, neginf=-9),
        np.fmax(x, 0),
        np.maximum(x, 0),
        np.nansum(x),
        np.sign(x),
        np.where(np.isfinite(x), x, 0),
        x.max(),
        x == x,
    )


def distances(a, b):
    """Euclidean, Manhattan, cosine, and the rows of b that are nearest."""
    e = np.sqrt(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0))
    m = np.abs(a[:, None] - b).sum(-1)
    c = (a @ b.T) / (np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1))
    return e, m, c, b[m.argmin(1)]


ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.5, -2.5])
WORDS = np.array([0, 1, 2, 0xDEADBEEF, 0xFFFFFFFF, 12345], np.uint32)

ARRAYS = [
    Program(blur, (uniform(7, 9),), wrt=(0,), kernels=1),
    Program(sobel, (uniform(7, 9),), wrt=(0,), kernels=1),
    Program(median_of_three, (normal(15),), wrt=(0,), kernels=1),
    Program(grey, (integers(256, 5, 6, 3, dtype=np.uint8),)),
    Program(threshold, (integers(256, 5, 6, dtype=np.uint8),), kernels=1),
    Program(
        blend,
        (integers(256, 5, 6, 3, dtype=np.uint8), integers(256, 5, 6, 3, seed=1, dtype=np.uint8), uniform(5, 6)),
        kernels=1,
    ),
    Program(histogram, (uniform(40, low=0),), kernels=1),
    Program(histogram_by_add_at, (uniform(40, low=0),)),
    Program(one_hot, (integers(6, 3, 4), normal(6, 5)), wrt=(1,)),
    Program(ranks, (np.round(4 * normal(17)),), kernels=1),
    Program(sort_by_rank, (normal(17),), wrt=(0,)),
    Program(bitonic_sort, (normal(16),), wrt=(0,)),
    Program(statistics, (normal(8, 13),), wrt=(0,)),
    Program(cumulative, (uniform(5, 12),), wrt=(0,), kernels=3),
    Program(running, (normal(17),), wrt=(0,)),
    Program(exponential_average, (normal(8),), wrt=(0,), kernels=1),
    Program(contractions, (normal(2, 3, 5), normal(2, 5, 4), normal(4, 4)), wrt=(0, 1, 2)),
    Program(outer_products, (normal(4), normal(7)), wrt=(0, 1)),
    Program(broadcasts, (normal(4, 1, 3), normal(5, 1), normal(3), 0.5), wrt=(0, 1, 2)),
    Program(
        mixes,
        (
            integers(200, 9, dtype=np.int8),
            integers(255, 9, dtype=np.uint8),
            normal(9).astype(np.float32),
            normal(9),
            normal(9) > 0,
        ),
        kernels=1,
    ),
    Program(whole_numbers, (integers(100, 12) - 50, integers(8, 12) - 9), kernels=1),
    Program(hash32, (WORDS,), kernels=1),
    Program(hash64, (WORDS.astype(np.uint64) << 17,), kernels=1),
    Program(popcount, (WORDS,), kernels=1),
    Program(xorshift, (WORDS,), kernels=1),
    Program(choices, (2 * normal(23),), wrt=(0,), kernels=1),
    Program(safe_log, (normal(23),), wrt=(0,), kernels=1),
    Program(masks, (normal(6, 5),), wrt=(0,)),
    Program(rearrange, (normal(6, 6),), wrt=(0,), kernels=1),
    Program(fancy, (normal(6, 6), integers(6, 4), integers(6, 3, dtype=np.int32)), wrt=(0,)),
    Program(scatter, (normal(7, 3), integers(7, 5), normal(5, 3)), wrt=(0, 2)),
    Program(extremes, (normal(6, 5),), wrt=(0,)),
    Program(lookup, (uniform(9), np.linspace(0.1, 0.9, 6), normal(6)), wrt=(0, 2)),
    Program(least_squares, ({"x": normal(9), "y": normal(9, seed=1)},)),
    Program(polynomial, (normal(9), 4), wrt=(0,), kernels=1, static=("degree",)),
    Program(chebyshev, (normal(9),), wrt=(0,), kernels=1),
    Program(specials, (normal(13),), wrt=(0,), kernels=1),
    Program(not_numbers, (ODD,)),
    Program(distances, (normal(5, 3), normal(4, 3)), wrt=(0, 1)),
]
