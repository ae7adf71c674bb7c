"""A convolutional network reads hand-written digits: convolutions into dense layers, all gradients derived."""

from __future__ import annotations

import numpy as np
from rich.progress import track

import kernelforge as kf
from kernelforge import nn, optim
from kernelforge.demo import digits, figures

BATCH = 64


def init(rng, width):
    def weight(*shape):
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))

    return {
        "conv1": (weight(width, 1, 3, 3), np.zeros(width, np.float32)),
        "conv2": (weight(2 * width, width, 3, 3), np.zeros(2 * width, np.float32)),
        "dense": (weight(10, 2 * width * 4), np.zeros(10, np.float32)),
    }


def logits(params, images):
    x = nn.max_pool2d(nn.relu(nn.conv2d(images, *params["conv1"], padding=1)), 2)
    x = nn.max_pool2d(nn.relu(nn.conv2d(x, *params["conv2"], padding=1)), 2)
    return nn.linear(x.reshape(x.shape[0], -1), *params["dense"])


def loss(params, images, labels):
    return nn.cross_entropy(logits(params, images), labels, label_smoothing=0.05)


def main(small: bool = False) -> None:
    width, epochs = (8, 3) if small else (32, 15)
    training, held_out = digits.load()
    rng = np.random.default_rng(0)
    steps = epochs * (len(training.labels) // BATCH)
    optimizer = optim.adamw(optim.one_cycle(1e-2, steps), weight_decay=1e-2)

    @kf.jit(donate_argnames=("params", "state"))
    def step(params, state, images, labels):
        value, grads = kf.value_and_grad(loss)(params, images, labels)
        return *optimizer.update(state, grads, params), value

    params = init(rng, width)
    state = optimizer.init(params)
    images, losses = training.images.reshape(-1, 1, 8, 8), []
    lowered = step.lower(params, state, images[:BATCH], training.labels[:BATCH])
    print(f"one step of training is {len(lowered.kernels)} kernels:")
    for kernel in lowered.kernels:
        print(f"  {kernel.name}: {kernel.bytes:,} bytes, {kernel.flops:,} operations")

    for _ in track(range(epochs), "training", disable=small):
        order = rng.permutation(len(images))
        for rows in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            params, state, value = step(params, state, images[rows], training.labels[rows])
            losses.append(float(value))

    scores = np.asarray(kf.jit(logits)(params, held_out.images.reshape(-1, 1, 8, 8)))
    accuracy = (scores.argmax(1) == held_out.labels).mean()
    print(f"loss {float(value):.3f}; {accuracy:.1%} of {len(held_out.labels)} digits it never saw are recognised")
    assert accuracy > (0.7 if small else 0.97)
    if not small:
        known = np.take_along_axis(np.asarray(nn.softmax(scores)), held_out.labels[:, None], 1)[:, 0]
        hardest = np.hstack([held_out.images[i].reshape(8, 8) for i in known.argsort()[:8]])
        figures.save("digits_convnet.png", training=figures.curve(losses), least_sure_of=figures.image(hardest))


if __name__ == "__main__":
    main()
