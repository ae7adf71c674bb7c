"""An image as a small network from places to colours, as in tiny-cuda-nn's demonstration; saved beside the original."""

from __future__ import annotations

import itertools

import numpy as np
from rich.progress import track

import kernelforge as kf
from kernelforge import nn, optim
from kernelforge.demo import figures


def picture(size):
    """Draw rings that become finer towards a corner, and discs, in colour: details of many sizes."""
    y, x = np.mgrid[0:size, 0:size] / size
    r = np.hypot(x, y)
    rings = 0.5 + 0.5 * np.sin(40 * r**2)
    discs = sum((np.hypot(x - cx, y - cy) < d) * c for cx, cy, d, c in ((0.7, 0.3, 0.15, 0.5), (0.3, 0.75, 0.1, 0.8)))
    return np.clip(np.stack([rings, 0.6 * x + 0.4 * discs, 0.5 * rings * y + 0.5 * discs], -1), 0, 1).astype(np.float32)


def init(rng, frequencies, width, layers):
    sizes = [2 * frequencies, *[width] * layers, 3]
    weights = [
        (rng.standard_normal((m, n), np.float32) * np.float32(np.sqrt(2 / n)), np.zeros(m, np.float32))
        for n, m in itertools.pairwise(sizes)
    ]
    return {"waves": 10 * rng.standard_normal((frequencies, 2), np.float32), "layers": weights}


def colours(params, places):
    """Return colours (n, 3) at places (n, 2) in [0, 1]; Fourier features as in Tancik et al. 2020."""
    angle = nn.linear(places, params["waves"])
    x = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    for w, b in params["layers"][:-1]:
        x = nn.relu(nn.linear(x, w, b))
    return nn.sigmoid(nn.linear(x, *params["layers"][-1]))


def main(small: bool = False) -> None:
    size, frequencies, width, batch, steps = (16, 8, 16, 64, 20) if small else (256, 64, 64, 8192, 2000)
    image = picture(size)
    rng = np.random.default_rng(0)
    optimizer = optim.adam(optim.cosine(1e-2, steps))

    def loss(params, places, wanted):
        return nn.mse_loss(colours(params, places), wanted)

    @kf.jit(donate_argnames=("params", "state"))
    def step(params, state, places, wanted):
        value, grads = kf.value_and_grad(loss)(params, places, wanted)
        return *optimizer.update(state, grads, params), value

    params = init(rng, frequencies, width, 2)
    state = optimizer.init(params)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    places = ((grid + 0.5) / size).astype(np.float32)
    render = kf.jit(colours)
    print(f"the image is {len(render.lower(params, places).kernels)} kernels, ", end="")
    print(f"a step of training {len(step.lower(params, state, places[:batch], places[:batch, [0, 1, 1]]).kernels)}")
    for _ in track(range(steps), "training", disable=small):
        rows = rng.integers(0, len(grid), batch)
        params, state, value = step(params, state, places[rows], image[tuple(grid[rows].T)])

    made = np.asarray(render(params, places)).reshape(image.shape)
    quality = -10 * np.log10(((made - image) ** 2).mean())
    count = sum(p.size for p in (params["waves"], *(x for layer in params["layers"] for x in layer)))
    print(f"{count:,} parameters, loss {float(value):.5f}, peak signal to noise ratio {quality:.1f} dB")
    assert quality > (8 if small else 28)
    if not small:
        figures.save("neural_image.png", original=figures.image(image), network=figures.image(made))


if __name__ == "__main__":
    main()
