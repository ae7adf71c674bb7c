"""Attention and its gradient: what the backward pass keeps, what it computes again, and why; as text and as a page."""

from __future__ import annotations

import numpy as np

import kernelforge as kf


def attention(q, k, v):
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[-1]))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)) @ v


def loss(q, k, v):
    return (attention(q, k, v) ** 2).sum()


def main(small: bool = False) -> None:
    heads, length, width = (2, 16, 8) if small else (8, 512, 64)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((heads, length, width), np.float32) for _ in range(3))

    gradient = kf.jit(kf.grad(loss, argnums=(0, 1, 2)))
    step = 1e-2 * rng.standard_normal(q.shape)
    slope = (loss(q + step, k, v) - loss(q - step, k, v)) / 2
    np.testing.assert_allclose((np.asarray(gradient(q, k, v)[0]) * step).sum(), slope, rtol=1e-2)

    found = gradient.explain(q, k, v)
    print(found.words())
    if not small:
        with open("attention.html", "w", encoding="utf-8") as file:
            file.write(found.html())
        print("the same with pictures: attention.html")


if __name__ == "__main__":
    main()
