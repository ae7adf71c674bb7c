"""Simulation, numerical methods and finance."""

from __future__ import annotations

import numpy as np
from scipy.special import erf

import kernelforge as kf
from tests.programs.program import Program, normal, uniform


def heat(u, steps=2):
    for _ in range(steps):
        v = u.copy()
        v[1:-1, 1:-1] = u[1:-1, 1:-1] + 0.1 * (
            u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4 * u[1:-1, 1:-1]
        )
        v[0] = v[1]
        v[-1] = v[-2]
        v[:, 0] = v[:, 1]
        v[:, -1] = v[:, -2]
        u = v
    return u


def wave(u):
    out = np.zeros_like(u)
    out[1:-1] = u[2:] - 2 * u[1:-1] + u[:-2]
    out[0] += u[0]
    out[::2] *= 2
    return out


def jacobi(b):
    """Solve a discrete Poisson equation by in-place sweeps over the inner points."""
    u = np.zeros_like(b)
    for _ in range(4):
        u[1:-1, 1:-1] = 0.25 * (u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] + b[1:-1, 1:-1])
    return u


def red_black(b):
    """Gauss-Seidel, the two colours in turn."""
    u = np.zeros_like(b)
    for _ in range(2):
        u[1:-1:2] = 0.5 * (u[:-2:2] + u[2::2] + b[1:-1:2])
        u[2:-1:2] = 0.5 * (u[1:-2:2] + u[3::2] + b[2:-1:2])
    return u


def gauss_seidel(a, b):
    x = np.zeros_like(b)
    for _ in range(2):
        for i in range(b.shape[0]):
            x[i] = (b[i] - a[i, :i] @ x[:i] - a[i, i + 1 :] @ x[i + 1 :]) / a[i, i]
    return x


def nbody(p, m):
    d = p[None, :, :] - p[:, None, :]
    inv = ((d**2).sum(-1) + 0.01) ** -1.5
    return (d * (m[None, :] * inv)[:, :, None]).sum(1)


def leapfrog(p, v, m, dt=0.01):
    a = nbody(p, m)
    energy = []
    for _ in range(3):
        v = v + 0.5 * dt * a
        p = p + dt * v
        a = nbody(p, m)
        v = v + 0.5 * dt * a
        energy.append(0.5 * (m[:, None] * v**2).sum())
    return p, v, np.array(energy)


def black_scholes(spot, strike, years, rate, sigma):
    root = sigma * np.sqrt(years)
    d1 = (np.log(spot / strike) + (rate + 0.5 * sigma**2) * years) / root
    d2 = d1 - root
    n1, n2 = (0.5 * (1 + erf(d / np.sqrt(2))) for d in (d1, d2))
    call = spot * n1 - strike * np.exp(-rate * years) * n2
    return {"call": call, "put": call - spot + strike * np.exp(-rate * years), "delta": n1}


def portfolio(prices, weights):
    returns = np.diff(prices, axis=0) / prices[:-1]
    growth = np.cumprod(1 + returns @ weights)
    peak = np.maximum.accumulate(growth)
    drawdown = (peak - growth) / peak
    excess = returns - returns.mean(axis=0)
    cov = excess.T @ excess / (returns.shape[0] - 1)
    return growth[-1] - 1, drawdown.max(), np.sqrt(weights @ cov @ weights)


def binomial_option(spot, strike, up=1.1, rate=0.01, steps=6):
    down = 1 / up
    p = (np.exp(rate) - down) / (up - down)
    j = np.arange(steps + 1)
    value = np.maximum(strike - spot[:, None] * up**j * down ** (steps - j), 0)
    for _ in range(steps):
        value = np.exp(-rate) * (p * value[:, 1:] + (1 - p) * value[:, :-1])
    return value[:, 0]


def lorenz_slope(s):
    x, y, z = s
    return np.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])


def rk4(slope, s, h):
    k1 = slope(s)
    k2 = slope(s + h / 2 * k1)
    k3 = slope(s + h / 2 * k2)
    k4 = slope(s + h * k3)
    return s + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def lorenz(s):
    path = np.empty((4, 3), s.dtype)
    for t in range(4):
        path[t] = s = rk4(lorenz_slope, s, 0.01)
    return path


def lorenz_scan(s):
    def step(s, _):
        s = rk4(lorenz_slope, s, 0.01)
        return s, s

    return kf.scan(step, s, length=7)


def decay_until(x, rate):
    """Integrate until all is small, by a number of steps that depends on the values."""

    def going(state):
        return np.max(np.abs(state[0])) > 0.1

    def step(state):
        x, t = state
        return x - 0.1 * rate * x, t + 1

    return kf.while_loop(going, step, (x, 0))


def bisect(target):
    low, high = np.zeros_like(target), np.full_like(target, 4.0)
    for _ in range(12):
        middle = (low + high) / 2
        below = middle**3 + middle < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def newton_root(a):
    x = np.ones_like(a)
    for _ in range(6):
        x -= (x * x - a) / (2 * x)
    return x


def thomas(a, b, c, d):
    n = d.shape[0]
    cp, dp, x = np.zeros(n), np.zeros(n), np.zeros(n)
    cp[0], dp[0] = c[0] / b[0], d[0] / b[0]
    for i in range(1, n):
        m = b[i] - a[i] * cp[i - 1]
        cp[i], dp[i] = c[i] / m, (d[i] - a[i] * dp[i - 1]) / m
    x[n - 1] = dp[n - 1]
    for i in range(n - 2, -1, -1):
        x[i] = dp[i] - cp[i] * x[i + 1]
    return x


def conjugate_gradient(a, b):
    x = np.zeros_like(b)
    r = b - a @ x
    p = r
    for _ in range(4):
        ap = a @ p
        alpha = (r @ r) / (p @ ap)
        x = x + alpha * p
        after = r - alpha * ap
        p = after + (after @ after) / (r @ r) * p
        r = after
    return x, np.linalg.norm(r)


def cholesky(a):
    n = a.shape[0]
    low = np.zeros_like(a)
    for j in range(n):
        low[j, j] = np.sqrt(a[j, j] - (low[j, :j] ** 2).sum())
        low[j + 1 :, j] = (a[j + 1 :, j] - low[j + 1 :, :j] @ low[j, :j]) / low[j, j]
    return low


def gram_schmidt(a):
    q = np.zeros_like(a)
    for j in range(a.shape[1]):
        v = a[:, j] - q[:, :j] @ (q[:, :j].T @ a[:, j])
        q[:, j] = v / np.linalg.norm(v)
    return q


def power_method(a, v):
    for _ in range(3):
        v = a @ v
        v = v / np.sqrt((v * v).sum())
    return v, v @ (a @ v)


def spectral_filter(x, keep=3):
    """A low-pass filter by the real Fourier transform as two matrix products."""
    n = x.shape[-1]
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    c, s = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    frequency = np.minimum(np.arange(n), n - np.arange(n))
    mask = frequency <= keep
    re, im = (x @ c) * mask, -(x @ s) * mask
    return (re @ c - im @ s) / n, re**2 + im**2


def mandelbrot(width, height, limit=6):
    x = np.linspace(-2.1, 0.7, width)
    y = np.linspace(-1.15, 1.2, height)
    cx, cy = np.meshgrid(x, y)
    zx, zy, count = np.zeros_like(cx), np.zeros_like(cx), np.zeros(cx.shape, np.int32)
    for _ in range(limit):
        inside = zx**2 + zy**2 < 4
        count += inside
        zx, zy = np.where(inside, zx**2 - zy**2 + cx, zx), np.where(inside, 2 * zx * zy + cy, zy)
    return count


def julia(cx, cy):
    def going(state):
        zx, zy, n = state
        return np.any(zx * zx + zy * zy < 4) & (n < 20)

    def step(state):
        zx, zy, n = state
        inside = zx * zx + zy * zy < 4
        return np.where(inside, zx * zx - zy * zy - 0.8, zx), np.where(inside, 2 * zx * zy + 0.156, zy), n + 1

    return kf.while_loop(going, step, (cx, cy, 0))


def life(cells):
    n = sum(np.roll(np.roll(cells, i, 0), j, 1) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))
    return (n == 3) | ((cells == 1) & (n == 2))


def life_padded(cells):
    p = np.pad(cells, 1)
    n = p[:-2, :-2] + p[:-2, 1:-1] + p[:-2, 2:] + p[1:-1, :-2] + p[1:-1, 2:] + p[2:, :-2] + p[2:, 1:-1] + p[2:, 2:]
    out = np.zeros_like(cells)
    out[(n == 3) | ((cells == 1) & (n == 2))] = 1
    return out


def ising(spins, flips):
    field = np.roll(spins, 1, 0) + np.roll(spins, -1, 0) + np.roll(spins, 1, 1) + np.roll(spins, -1, 1)
    chance = np.exp(-0.8 * (spins * field).astype(flips.dtype))
    return np.where(flips < np.minimum(chance, 1), -spins, spins)


def rotate(q, v):
    """Rotate vectors by quaternions."""
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    w, u = q[..., :1], q[..., 1:]
    t = 2 * np.cross(u, v)
    return v + w * t + np.cross(u, t)


def haversine(a, b):
    lat1, lon1, lat2, lon2 = np.radians(a[:, 0]), np.radians(a[:, 1]), np.radians(b[:, 0]), np.radians(b[:, 1])
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371.0 * np.arcsin(np.sqrt(np.clip(h, 0, 1)))


def lennard_jones(p):
    """Energy and, by differences of positions, forces, without the pairs of an atom with itself."""
    d = p[:, None] - p[None]
    r2 = (d**2).sum(-1) + np.eye(p.shape[0], dtype=p.dtype)
    s6 = r2**-3.0
    pairs = np.triu(4 * (s6**2 - s6), 1)
    force = (24 * (2 * s6**2 - s6) / r2)[..., None] * d
    return pairs.sum(), force.sum(axis=1)


def interpolate(x, xp, fp):
    """Interpolate linearly, with the interval found by comparison."""
    i = np.clip((x[:, None] >= xp[None, :]).sum(1) - 1, 0, xp.shape[0] - 2)
    t = (x - xp[i]) / (xp[i + 1] - xp[i])
    return fp[i] * (1 - t) + fp[i + 1] * t


def bilinear(image, y, x):
    y0, x0 = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    dy, dx = y - y0.astype(y.dtype), x - x0.astype(x.dtype)
    top = image[y0, x0] * (1 - dx) + image[y0, x0 + 1] * dx
    bottom = image[y0 + 1, x0] * (1 - dx) + image[y0 + 1, x0 + 1] * dx
    return top * (1 - dy) + bottom * dy


def monte_carlo(key, spot):
    z = kf.random.normal(key, (50, 4), dtype=np.float32)
    paths = spot * np.exp(np.cumsum(0.01 * z - 0.00005, axis=1))
    return np.maximum(paths[:, -1] - 1.0, 0).mean(), paths.max()


def pi_by_darts(key):
    p = kf.random.uniform(key, (500, 2))
    return 4 * np.mean((p**2).sum(1) < 1)


def kalman(z, q=0.1, r=0.5):
    def step(state, z):
        x, p = state
        p = p + q
        gain = p / (p + r)
        x = x + gain * (z - x)
        return (x, (1 - gain) * p), x

    _, xs = kf.scan(step, (z[0] * 0, z[0] * 0 + 1), z)
    return xs


def arc_length(x, h=0.25):
    slope = np.gradient(np.sin(x), h)
    return np.trapezoid(np.sqrt(1 + slope**2), x), slope


CELLS = (normal(9, 11) > 0).astype(np.int32)
SPD = normal(6, 6) @ normal(6, 6).T + 6 * np.eye(6)

SCIENCE = [
    Program(heat, (normal(9, 11),), wrt=(0,)),
    Program(wave, (normal(21),), wrt=(0,), kernels=1),
    Program(jacobi, (normal(8, 9),), wrt=(0,)),
    Program(red_black, (normal(13),), wrt=(0,)),
    Program(gauss_seidel, (normal(4, 4) + 5 * np.eye(4), normal(4)), wrt=(0, 1)),
    Program(nbody, (normal(10, 3), uniform(10)), wrt=(0, 1)),
    Program(leapfrog, (normal(6, 3), normal(6, 3, seed=1), uniform(6)), wrt=(0, 1, 2)),
    Program(
        black_scholes,
        (100 * uniform(20), 100 * uniform(20, seed=1), uniform(20), 0.02, uniform(20)),
        wrt=(0, 2, 4),
        kernels=1,
        loose=10,
    ),
    Program(portfolio, (np.cumprod(1 + 0.05 * normal(12, 4), axis=0), uniform(4)), wrt=(0, 1)),
    Program(binomial_option, (uniform(5), uniform(5, 1)), wrt=(0,)),
    Program(lorenz, (normal(3),), wrt=(0,)),
    Program(lorenz_scan, (normal(3),), wrt=(0,)),
    Program(decay_until, (normal(5), uniform(5))),
    Program(bisect, (10 * uniform(7),)),
    Program(newton_root, (uniform(7),), wrt=(0,), kernels=1),
    Program(thomas, (uniform(6), 3 + uniform(6), uniform(6), normal(6)), wrt=(0, 1, 2, 3)),
    Program(conjugate_gradient, (SPD, normal(6)), wrt=(1,)),
    Program(cholesky, (SPD[:4, :4],), wrt=(0,)),
    Program(gram_schmidt, (normal(5, 3),), wrt=(0,)),
    Program(power_method, (normal(7, 7), normal(7)), wrt=(0, 1)),
    Program(spectral_filter, (normal(3, 16),), wrt=(0,)),
    Program(mandelbrot, (12, 9), static=("width", "height")),
    Program(julia, (normal(4, 5), normal(4, 5, seed=1)), loose=100),
    Program(life, (CELLS,), kernels=1),
    Program(life_padded, (CELLS,), kernels=1),
    Program(ising, (CELLS * 2 - 1, uniform(9, 11, low=0)), kernels=1),
    Program(rotate, (normal(5, 4), normal(5, 3)), wrt=(0, 1), kernels=1),
    Program(haversine, (50 * normal(4, 2), 50 * normal(4, 2, seed=1)), wrt=(0, 1), kernels=1),
    Program(
        lennard_jones,
        (1.5 * np.stack(np.meshgrid(*[np.arange(2.0)] * 3), -1).reshape(8, 3) + 0.1 * normal(8, 3),),
        wrt=(0,),
    ),
    Program(interpolate, (uniform(11), np.linspace(0, 1, 6), normal(6)), wrt=(0, 1, 2)),
    Program(bilinear, (normal(6, 7), uniform(9, high=4.9), uniform(9, seed=1, high=5.9)), wrt=(0, 1, 2)),
    Program(monte_carlo, (kf.random.key(3), 1.0)),
    Program(pi_by_darts, (kf.random.key(4),)),
    Program(kalman, (normal(6),), wrt=(0,)),
    Program(arc_length, (np.linspace(0, 2, 9),), wrt=(0,)),
]
