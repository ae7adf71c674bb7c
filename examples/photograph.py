"""A photograph: its edges by fixed kernels, and noise taken out by a network; the photograph is scikit-learn's."""

from __future__ import annotations

import numpy as np
from rich.progress import track

import kernelforge as kf
from kernelforge import nn, optim
from kernelforge.demo import figures

NOISE = np.float32(0.1)


def photograph(small):
    """Return a grey photograph with values from 0 to 1; a drawing where it is small."""
    if small:
        y, x = np.mgrid[0:32, 0:48] / 16
        return (0.5 + 0.5 * np.sin(x * y) * (x > 1)).astype(np.float32)
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        raise SystemExit("the photograph comes with scikit-learn: pip install scikit-learn pillow") from None
    return load_sample_image("china.jpg").mean(-1).astype(np.float32) / 255


@kf.jit
def edges(image):
    """Return the size of the gradient, by Sobel's kernels."""
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)
    kernels = np.stack([sobel, sobel.T])[:, None]
    x, y = nn.conv2d(nn.pad(image[None], (1, 1, 1, 1), mode="replicate"), kernels)
    return np.sqrt(x * x + y * y) / 4


def init(rng, width, layers):
    sizes = [1, *[width] * layers, 1]
    scales = [np.sqrt(2 / 9 / n) for n in sizes[:-2]] + [1e-2]
    return [
        (rng.standard_normal((m, n, 3, 3), np.float32) * np.float32(s), np.zeros(m, np.float32))
        for n, m, s in zip(sizes[:-1], sizes[1:], scales, strict=True)
    ]


def denoised(params, x):
    """Subtract the noise that the network finds; Zhang et al. 2017."""
    y = x
    for w, b in params[:-1]:
        y = nn.relu(nn.conv2d(y, w, b, padding="same"))
    return x - nn.conv2d(y, *params[-1], padding="same")


def quality(image, clean):
    """Return the peak signal to noise ratio in dB."""
    return -10 * np.log10(((np.asarray(image) - clean) ** 2).mean())


def main(small: bool = False) -> None:
    width, layers, side, batch, steps = (4, 1, 12, 4, 3) if small else (32, 4, 40, 32, 1200)
    image = photograph(small)
    half = image.shape[1] // 2
    rng = np.random.default_rng(0)
    optimizer = optim.adam(optim.cosine(3e-3, steps))

    @kf.jit
    def step(params, state, clean, key):
        def loss(params):
            noisy = clean + NOISE * kf.random.normal(key, clean.shape)
            return nn.mse_loss(denoised(params, noisy), clean)

        value, grads = kf.value_and_grad(loss)(params)
        return *optimizer.update(state, grads, params), value

    params = init(rng, width, layers)
    state = optimizer.init(params)
    for i in track(range(steps), "training on the left half", disable=small):
        at = zip(rng.integers(0, image.shape[0] - side, batch), rng.integers(0, half - side, batch), strict=True)
        clean = np.stack([image[a : a + side, b : b + side] for a, b in at])[:, None]
        key = kf.random.fold_in(kf.random.key(0), i)
        if i == 0:
            print(f"one step is {len(step.lower(params, state, clean, key).kernels)} kernels, ", end="")
            print(f"the edges are {len(edges.lower(image).kernels)}")
        params, state, value = step(params, state, clean, key)

    right = image[:, half:]
    noisy = right + NOISE * rng.standard_normal(right.shape, np.float32)
    made = np.asarray(kf.jit(denoised)(params, noisy[None, None]))[0, 0]
    before, after = quality(noisy, right), quality(made, right)
    print(f"loss {float(value):.5f}; the right half, never seen: {before:.1f} dB with noise, {after:.1f} dB without")
    assert small or after > before + 6
    if not small:
        shown = {
            "clean": right,
            "with_noise": noisy,
            "without": made,
            "edges": edges(right),
            "edges_without": edges(made),
        }
        figures.save("photograph.png", **{name: figures.image(v, vmin=0, vmax=1) for name, v in shown.items()})


if __name__ == "__main__":
    main()
