"""Elementwise workloads: chains of functions, an option's price, an optimiser's step."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelforge.bench.workloads.record import Draw, Workload, with_backward

GELU_SCALE, GELU_CUBE = 0.7978845608028654, 0.044715
"""Hendrycks and Gimpel 2016, section 2: sqrt(2/pi) and the cube's factor of the tanh form."""
ADAM = {"rate": 1e-3, "decay": 0.9, "decay_squares": 0.999, "tiny": 1e-8}
"""Kingma and Ba 2015, algorithm 1."""
COUNT = 10
"""Steps that the optimiser has taken before."""
NORMAL_CDF = (0.2316419, 0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)
"""Abramowitz and Stegun, 26.2.17."""


def tanh_exp(x: Any) -> Any:
    return np.tanh(1.5 * x + 0.5) * 2.0 + np.exp(-x * x)


def tanh_exp_bwd(x: Any, g: Any) -> Any:
    t, e = np.tanh(1.5 * x + 0.5), np.exp(-x * x)
    return t * 2.0 + e, g * (3.0 * (1 - t * t) - 2.0 * x * e)


def gelu(x: Any, bias: Any) -> Any:
    y = x + bias
    return 0.5 * y * (1 + np.tanh(GELU_SCALE * (y + GELU_CUBE * y * y * y)))


def gelu_slope(y: Any) -> tuple[Any, Any]:
    """Return gelu(y) and its derivative."""
    t = np.tanh(GELU_SCALE * (y + GELU_CUBE * y * y * y))
    slope = 0.5 * (1 + t) + 0.5 * y * (1 - t * t) * GELU_SCALE * (1 + 3 * GELU_CUBE * y * y)
    return 0.5 * y * (1 + t), slope


def gelu_bwd(x: Any, bias: Any, g: Any) -> Any:
    value, slope = gelu_slope(x + bias)
    dx = g * slope
    return value, dx, dx.sum(0)


def black_scholes(spot: Any, strike: Any, years: Any, xp: Any = np) -> Any:
    """Price European calls and puts; Black and Scholes 1973, equation 13. ``xp`` is the namespace of the functions."""
    rate, volatility = 0.05, 0.2
    spread = volatility * xp.sqrt(years)
    d1 = (xp.log(spot / strike) + (rate + 0.5 * volatility * volatility) * years) / spread
    n1, n2 = _cdf(d1, xp), _cdf(d1 - spread, xp)
    discounted = strike * xp.exp(-rate * years)
    call = spot * n1 - discounted * n2
    return call, call - spot + discounted


def _cdf(d: Any, xp: Any) -> Any:
    p, a, b, c, e, f = NORMAL_CDF
    k = 1 / (1 + p * xp.abs(d))
    tail = 0.3989422804014327 * xp.exp(-0.5 * d * d) * (k * (a + k * (b + k * (c + k * (e + k * f)))))
    return xp.where(d > 0, 1 - tail, tail)


def adam(param: Any, grad: Any, mean: Any, square: Any, xp: Any = np) -> Any:
    """Return parameter, mean and mean square after step COUNT + 1."""
    b1, b2 = ADAM["decay"], ADAM["decay_squares"]
    mean = b1 * mean + (1 - b1) * grad
    square = b2 * square + (1 - b2) * grad * grad
    spread = xp.sqrt(square / (1 - b2 ** (COUNT + 1))) + ADAM["tiny"]
    return param - ADAM["rate"] * (mean / (1 - b1 ** (COUNT + 1))) / spread, mean, square


TREE = ((1024, 1024), (1024,), (1024, 4096), (4096,), (4096, 1024), (1024,))


def adam_tree(*leaves: Any) -> Any:
    """Update a tree; parameters come first, then gradients, means, mean squares."""
    n = len(leaves) // 4
    updated = [adam(*leaves[i::n]) for i in range(n)]
    return tuple(u[part] for part in range(3) for u in updated)


def _adam_inputs(draw: Draw) -> Any:
    kinds = (draw.normal, draw.normal, draw.normal, lambda *s: draw.uniform(*s, low=0.1, high=1.0))
    return [kind(*shape) for kind in kinds for shape in TREE]


def affine(x: Any) -> Any:
    return 2 * x + 1


N = 1 << 24
FOUR = (4096, 4096)

WORKLOADS = (
    *with_backward(
        Workload("tanh_exp", "maps", "tanh(a·x+b)·c + exp(−x²), 2^24", lambda d: (d.normal(N),), tanh_exp, tanh_exp),
        (N,),
        tanh_exp_bwd,
        (0,),
    ),
    *with_backward(
        Workload("gelu", "maps", "gelu(x+bias) 4096×4096", lambda d: (d.normal(*FOUR), d.normal(4096)), gelu, gelu),
        FOUR,
        gelu_bwd,
        (0, 1),
    ),
    Workload(
        "black_scholes",
        "maps",
        "call and put prices, 2^22",
        lambda d: (
            d.uniform(1 << 22, low=10, high=50),
            d.uniform(1 << 22, low=10, high=50),
            d.uniform(1 << 22, low=0.2, high=2),
        ),
        black_scholes,
        black_scholes,
    ),
    Workload("adam_tree", "maps", "Adam over a tree of 9.4 M parameters", _adam_inputs, adam_tree, adam_tree),
    Workload("call_16", "overhead", "2·x + 1 on 16 elements", lambda d: (d.normal(16),), affine, affine),
)
