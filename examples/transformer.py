"""A transformer learns to write Python's own manual, letter by letter: rotary attention, RMS norm, gated units."""

from __future__ import annotations

from pydoc_data.topics import topics

import numpy as np
from rich.progress import track

import kernelforge as kf
from kernelforge import nn, optim
from kernelforge.demo import figures


def init(rng, letters, width, layers):
    def weight(outputs, inputs):
        return rng.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs))

    def block():
        return {
            "norm1": np.ones(width, np.float32),
            "qkv": weight(3 * width, width),
            "out": weight(width, width),
            "norm2": np.ones(width, np.float32),
            "up": weight(4 * width, width),
            "down": weight(width, 2 * width),
        }

    table = 0.1 * rng.standard_normal((letters, width), np.float32)
    return {"table": table, "blocks": [block() for _ in range(layers)], "norm": np.ones(width, np.float32)}


def attention(p, x, heads):
    batch, length, width = x.shape
    qkv = nn.linear(x, p["qkv"]).reshape(batch, length, 3, heads, width // heads)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    q, k = nn.rotary_embedding(q), nn.rotary_embedding(k)
    y = nn.scaled_dot_product_attention(q, k, v, is_causal=True)
    return nn.linear(y.transpose(0, 2, 1, 3).reshape(x.shape), p["out"])


def logits(params, ids, heads):
    width = params["norm"].shape
    x = nn.embedding(ids, params["table"])
    for p in params["blocks"]:
        x = x + attention(p, nn.rms_norm(x, width, p["norm1"]), heads)
        x = x + nn.linear(nn.swiglu(nn.linear(nn.rms_norm(x, width, p["norm2"]), p["up"])), p["down"])
    return nn.linear(nn.rms_norm(x, width, params["norm"]), params["table"])


def main(small: bool = False) -> None:
    width, layers, heads, length, batch, steps = (16, 1, 2, 16, 4, 3) if small else (64, 2, 4, 64, 32, 1500)
    text = "\n".join(topics[k] for k in sorted(topics))
    alphabet = sorted(set(text))
    data = np.array([alphabet.index(c) for c in text], np.int32)
    split = len(data) * 9 // 10
    rng = np.random.default_rng(0)
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(optim.warmup(optim.cosine(3e-3, steps, 1e-4), 50), weight_decay=0.1)
    )

    def batches(part):
        starts = rng.integers(0, len(part) - length - 1, batch)
        rows = part[starts[:, None] + np.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]

    def loss(params, ids, following):
        return nn.cross_entropy(logits(params, ids, heads).reshape(-1, len(alphabet)), following.reshape(-1))

    @kf.jit(donate_argnames=("params", "state"))
    def step(params, state, ids, following):
        value, grads = kf.value_and_grad(loss)(params, ids, following)
        return *optimizer.update(state, grads, params), value

    params = init(rng, len(alphabet), width, layers)
    state = optimizer.init(params)
    print(f"{len(data):,} letters; one step is {len(step.lower(params, state, *batches(data)).kernels)} kernels")
    losses = []
    for _ in track(range(steps), "training", disable=small):
        params, state, value = step(params, state, *batches(data[:split]))
        losses.append(float(value))

    evaluate, predict = kf.jit(loss), kf.jit(lambda params, ids: logits(params, ids, heads)[:, -1])
    held_out = np.mean([float(evaluate(params, *batches(data[split:]))) for _ in range(1 if small else 20)])
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f} nats a letter; {held_out:.2f} on text it never saw")
    assert np.isfinite(losses).all()
    assert small or held_out < 1.9
    written = data[split : split + length]
    for i in range(2 if small else 300):
        key = kf.random.fold_in(kf.random.key(1), i)
        scores = predict(params, written[None, -length:]) / np.float32(0.7)
        written = np.append(written, np.asarray(kf.random.categorical(key, scores)).astype(np.int32))
    print("it writes:", repr("".join(alphabet[i] for i in written[length:])))
    if not small:
        figures.save("transformer.png", nats_a_letter=figures.curve(losses))


if __name__ == "__main__":
    main()
