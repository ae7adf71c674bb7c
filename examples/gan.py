"""Two networks compete to draw a ring of eight spots; the critic's gradient is a part of its loss."""

from __future__ import annotations

import itertools

import numpy as np
from rich.progress import track

import kernelforge as kf
from kernelforge import nn, optim
from kernelforge.demo import figures

SPOTS, SPREAD, NOISE, PENALTY = 8, 0.1, 8, 0.1


def real(rng, count):
    """Draw points from the ring."""
    angle = rng.integers(0, SPOTS, count) * (2 * np.pi / SPOTS)
    centre = 2 * np.stack([np.cos(angle), np.sin(angle)], -1)
    return (centre + SPREAD * rng.standard_normal((count, 2))).astype(np.float32)


def init(rng, sizes):
    return [
        (rng.standard_normal((m, n), np.float32) * np.float32(np.sqrt(2 / n)), np.zeros(m, np.float32))
        for n, m in itertools.pairwise(sizes)
    ]


def network(params, x):
    for w, b in params[:-1]:
        x = nn.leaky_relu(nn.linear(x, w, b), 0.2)
    return nn.linear(x, *params[-1])


def critic_loss(critic, drawn, points, mix):
    """Wasserstein distance with a penalty on the critic's slope; Gulrajani et al. 2017, algorithm 1."""
    between = mix * points + (1 - mix) * drawn
    slope = kf.grad(lambda x: network(critic, x).sum())(between)
    size = np.sqrt((slope * slope).sum(axis=1) + 1e-12)
    return network(critic, drawn).mean() - network(critic, points).mean() + PENALTY * ((size - 1) ** 2).mean()


def scattered(points):
    def draw(axes):
        axes.scatter(*points.T, s=1)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")

    return draw


def main(small: bool = False) -> None:
    width, batch, steps, rounds = (8, 16, 2, 1) if small else (128, 256, 5000, 5)
    rng = np.random.default_rng(0)
    optimizer = optim.adam(optim.cosine(1e-3, steps, 1e-4), betas=(0.5, 0.9))
    slow = optim.adam(optim.cosine(1e-3, steps * rounds, 1e-4), betas=(0.5, 0.9))

    @kf.jit(donate_argnames=("critic", "state"))
    def teach_critic(critic, state, drawer, key, points):
        first, second = kf.random.split(key)
        drawn = network(drawer, kf.random.normal(first, (batch, NOISE)))
        mix = kf.random.uniform(second, (batch, 1))
        value, grads = kf.value_and_grad(critic_loss)(critic, drawn, points, mix)
        return *slow.update(state, grads, critic), value

    @kf.jit(donate_argnames=("drawer", "state"))
    def teach_drawer(drawer, state, critic, key):
        noise = kf.random.normal(key, (batch, NOISE))
        grads = kf.grad(lambda drawer: -network(critic, network(drawer, noise)).mean())(drawer)
        return optimizer.update(state, grads, drawer)

    drawer, critic = init(rng, [NOISE, width, width, 2]), init(rng, [2, width, width, 1])
    drawer_state, critic_state = optimizer.init(drawer), slow.init(critic)
    keys = np.asarray(kf.random.split(kf.random.key(1), steps * (rounds + 1))).reshape(steps, rounds + 1, 2)
    count = len(teach_critic.lower(critic, critic_state, drawer, keys[0, 0], real(rng, batch)).kernels)
    print(f"a step of the critic, whose loss holds its own gradient, is {count} kernels")
    for i in track(range(steps), "competing", disable=small):
        for j in range(rounds):
            critic, critic_state, value = teach_critic(critic, critic_state, drawer, keys[i, j], real(rng, batch))
        drawer, drawer_state = teach_drawer(drawer, drawer_state, critic, keys[i, -1])

    points = np.asarray(kf.jit(network)(drawer, rng.standard_normal((4000, NOISE), np.float32)))
    angle = np.arange(SPOTS) * (2 * np.pi / SPOTS)
    apart = np.linalg.norm(points[:, None] - 2 * np.stack([np.cos(angle), np.sin(angle)], -1), axis=-1)
    near = apart.min(1) < 4 * SPREAD
    shares = np.bincount(apart.argmin(1)[near], minlength=SPOTS) / len(points)
    print(f"distance {-float(value):.3f}; {near.mean():.0%} of the points are in spots, ", end="")
    print(f"which get {shares.min():.1%} to {shares.max():.1%} each")
    assert np.isfinite(points).all()
    assert small or (near.mean() > 0.75 and shares.min() > 0.05)
    if not small:
        clouds = {"real": real(rng, len(points)), "drawn_by_the_network": points}
        figures.save("gan.png", **{name: scattered(p) for name, p in clouds.items()})


if __name__ == "__main__":
    main()
