"""A residual network with batch norm on 32x32 images: running statistics are results, and nothing is written to."""

from __future__ import annotations

import numpy as np
from rich.progress import track

import kernelforge as kf
from kernelforge import nn, optim
from kernelforge.demo import digits, figures

BATCH = 64


def init(rng, width, blocks):
    """Return the parameters, and the running statistics of each batch norm."""
    params, stats = {}, {}

    def layer(name, outputs, inputs, size=3):
        scale = np.float32(np.sqrt(2 / (inputs * size * size)))
        params[name] = {
            "w": rng.standard_normal((outputs, inputs, size, size), np.float32) * scale,
            "gain": np.ones(outputs, np.float32),
            "shift": np.zeros(outputs, np.float32),
        }
        stats[name] = (np.zeros(outputs, np.float32), np.ones(outputs, np.float32))

    layer("stem", width, 1)
    for b in range(blocks):
        inputs, outputs = width << max(b - 1, 0), width << b
        layer(f"{b}a", outputs, inputs)
        layer(f"{b}b", outputs, outputs)
        layer(f"{b}skip", outputs, inputs, 1)
    params["dense"] = rng.standard_normal((10, width << (blocks - 1)), np.float32) * np.float32(0.05)
    return params, stats


def forward(params, stats, images, training):
    """Return the scores and the new running statistics."""
    new = {}

    def layer(name, x, stride=1):
        p = params[name]
        y = nn.conv2d(x, p["w"], stride=stride, padding=p["w"].shape[2] // 2)
        y, *new[name] = nn.batch_norm(y, *stats[name], p["gain"], p["shift"], training=training)
        return y

    x = nn.relu(layer("stem", images))
    for b in range(sum(name.endswith("skip") for name in params)):
        stride = 1 if b == 0 else 2
        y = layer(f"{b}b", nn.relu(layer(f"{b}a", x, stride)))
        x = nn.relu(y + layer(f"{b}skip", x, stride))
    return nn.linear(x.mean(axis=(2, 3)), params["dense"]), {name: tuple(s) for name, s in new.items()}


def enlarge(images):
    """Make 32x32 images of 8x8 ones, around zero."""
    return np.asarray(nn.interpolate(images.reshape(-1, 1, 8, 8), (32, 32), mode="bicubic")) - np.float32(0.3)


def main(small: bool = False) -> None:
    width, blocks, epochs, count = (4, 2, 1, 128) if small else (16, 3, 6, None)
    rng = np.random.default_rng(0)
    training, held_out = digits.load()
    images, labels = enlarge(training.images[:count]), training.labels[:count]
    tests, answers = enlarge(held_out.images[:count]), held_out.labels[:count]
    steps = epochs * (len(labels) // BATCH)
    optimizer = optim.sgd(optim.warmup(optim.cosine(0.1, steps), max(steps // 5, 1)), momentum=0.9, nesterov=True)

    def loss(params, stats, x, y):
        scores, stats = forward(params, stats, x, training=True)
        return nn.cross_entropy(scores, y), stats

    @kf.jit(donate_argnames=("params", "stats", "state"))
    def step(params, stats, state, x, y):
        (value, stats), grads = kf.value_and_grad(loss, has_aux=True)(params, stats, x, y)
        params, state = optimizer.update(state, grads, params)
        return params, stats, state, value

    params, stats = init(rng, width, blocks)
    state = optimizer.init(params)
    lowered = step.lower(params, stats, state, images[:BATCH], labels[:BATCH])
    print(f"one step of training is {len(lowered.kernels)} kernels")
    losses = []
    for _ in track(range(epochs), "training", disable=small):
        order = rng.permutation(len(labels))
        for rows in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            params, stats, state, value = step(params, stats, state, images[rows], labels[rows])
            losses.append(float(value))

    predict = kf.jit(lambda params, stats, x: forward(params, stats, x, training=False)[0])
    found = np.asarray(predict(params, stats, tests)).argmax(1)
    accuracy = (found == answers).mean()
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}; {accuracy:.1%} of {len(answers)} images are recognised")
    assert np.isfinite(losses).all()
    assert small or accuracy > 0.97
    if not small:
        table = np.zeros((10, 10), int)
        np.add.at(table, (answers, found), 1)
        counts = figures.image(np.log1p(table), cmap="Blues")
        figures.save("resnet.png", training=figures.curve(losses), digits_and_answers=counts)


if __name__ == "__main__":
    main()
