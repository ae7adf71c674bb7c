"""A network that solves the heat equation, u_t = u_xx / 10: its loss is made of derivatives of the network itself."""

from __future__ import annotations

import itertools

import numpy as np
from rich.progress import track

import kernelforge as kf
from kernelforge import nn, optim
from kernelforge.demo import figures

RATE = 0.1


def init(rng, width, layers):
    sizes = [2, *[width] * layers, 1]
    return [
        (rng.standard_normal((m, n), np.float32) / np.float32(np.sqrt(n)), np.zeros(m, np.float32))
        for n, m in itertools.pairwise(sizes)
    ]


def u(params, x, t):
    """Return the temperature at each place and time."""
    h = np.stack([x, t], axis=-1)
    for w, b in params[:-1]:
        h = np.tanh(nn.linear(h, w, b))
    # zero at both ends of the rod, and a sum of two waves at the start, whatever the network says
    start = np.sin(np.pi * x) + 0.5 * np.sin(3 * np.pi * x)
    return start + t * x * (1 - x) * nn.linear(h, *params[-1])[..., 0]


def residual(params, x, t):
    """Return how far the network is from the equation; each point's derivative depends on that point alone."""
    u_t = kf.grad(lambda t: u(params, x, t).sum())(t)
    u_xx = kf.grad(lambda x: kf.grad(lambda x: u(params, x, t).sum())(x).sum())(x)
    return u_t - RATE * u_xx


def exact(x, t):
    return sum(a * np.exp(-RATE * (k * np.pi) ** 2 * t) * np.sin(k * np.pi * x) for k, a in ((1, 1.0), (3, 0.5)))


def main(small: bool = False) -> None:
    width, layers, batch, steps = (8, 1, 32, 5) if small else (64, 3, 1024, 6000)
    rng = np.random.default_rng(0)
    optimizer = optim.adam(optim.cosine(3e-3, steps))

    def loss(params, x, t):
        return (residual(params, x, t) ** 2).mean()

    @kf.jit(donate_argnames=("params", "state"))
    def step(params, state, x, t):
        value, grads = kf.value_and_grad(loss)(params, x, t)
        return *optimizer.update(state, grads, params), value

    params = init(rng, width, layers)
    state = optimizer.init(params)
    losses = []
    for i in track(range(steps), "training", disable=small):
        x, t = rng.random((2, batch), np.float32)
        if i == 0:
            print(f"one step, with three derivatives in it, is {len(step.lower(params, state, x, t).kernels)} kernels")
        params, state, value = step(params, state, x, t)
        losses.append(float(value))

    x, t = (v.reshape(-1).astype(np.float32) for v in np.meshgrid(np.linspace(0, 1, 41), np.linspace(0, 1, 41)))
    found = np.asarray(kf.jit(u)(params, x, t))
    difference = np.abs(found - exact(x, t)).max()
    print(f"loss {losses[0]:.3g} to {losses[-1]:.3g}; at most {difference:.1e} from the exact solution")
    assert np.isfinite(losses).all()
    assert small or difference < 5e-3
    if not small:
        maps = {"temperature_by_place_and_time": found, "difference_from_the_exact_one": found - exact(x, t)}
        drawn = {name: figures.image(v.reshape(41, 41), cmap="viridis", origin="lower") for name, v in maps.items()}
        figures.save("physics.png", training=figures.curve(losses), **drawn)


if __name__ == "__main__":
    main()
