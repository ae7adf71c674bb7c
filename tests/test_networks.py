"""Small networks as users train them: gradients on every device, and hardly any work one element at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge import nn
from kernelforge.ir.cost import operations
from kernelforge.ir.kernel import For, If, Kernel, Stmt

F32 = np.float32
DEVICES = [d for d in kf.devices() if d == "cpu" or d.startswith("opencl")]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng([seed, *shape]).normal(size=shape)).astype(F32)


def norm(x: Any, gain: Any, shift: Any) -> Any:
    return nn.batch_norm(x, None, None, gain, shift, training=True)[0]


CHANNELS = (np.ones(16, F32), np.zeros(16, F32))


def residual(w: Any, v: Any, gain: Any, shift: Any, x: Any) -> Any:
    """A block behind a batch norm, whose sum is pooled: the gradient of pooling is where data says."""
    h = nn.relu(norm(nn.conv2d(x, w, padding=1), gain, shift))
    h = nn.max_pool2d(nn.relu(x + norm(nn.conv2d(h, v, padding=1), gain, shift)), 2)
    return (nn.silu(norm(nn.conv2d(h, w, padding=1), gain, shift)).mean((2, 3)) ** 2).sum()


def embedded(w: Any, v: Any, filters: Any, times: Any, x: Any) -> Any:
    """A convolution beside a small network, as in diffusion: only what comes after it is of one row."""
    shift = nn.silu(times @ w) @ v
    return (nn.silu(nn.conv2d(x, filters, stride=2, padding=1) + shift[:, :, None, None]) ** 2).mean()


def autoencoder(encode: Any, decode: Any, x: Any, key: Any) -> Any:
    mean = np.tanh(x @ encode.T)
    z = mean + kf.random.normal(key, mean.shape)
    return nn.binary_cross_entropy_with_logits(z @ decode.T, x, reduction="sum") + (mean**2).sum()


def experts(gate: Any, first: Any, second: Any, x: Any) -> Any:
    share = nn.softmax(x @ gate, -1)
    hidden = nn.gelu(np.einsum("td,edh->teh", x, first))
    made = np.einsum("teh,ehd->ted", hidden, second)
    return ((made * share[..., None]).sum(1) ** 2).mean()


def contrastive(a: Any, b: Any) -> Any:
    scores, own = a @ b.T, np.arange(len(a))
    return nn.cross_entropy(scores, own) + nn.cross_entropy(scores.T, own)


def pooled(w: Any, x: Any, key: Any) -> Any:
    h = nn.dropout(nn.max_pool2d(nn.relu(nn.conv2d(x, w)), 2), 0.25, key=key)
    return (h**2).mean()


def blurred(x: Any) -> Any:
    """Both axes by fifteen weights, mirrored at the edges."""
    weights = np.exp(-(np.arange(-7, 8, dtype=F32) ** 2) / 18)
    y = np.pad(x, 7, mode="reflect")
    y = sum(w * y[k : k + len(x)] for k, w in enumerate(weights))
    return sum(w * y[:, k : k + x.shape[1]] for k, w in enumerate(weights))


LOSSES: list[tuple[Callable[..., Any], tuple[Any, ...], int]] = [
    (residual, (normal(16, 16, 3, 3, scale=0.1), normal(16, 16, 3, 3, scale=0.1), *CHANNELS, normal(4, 16, 32, 32)), 4),
    (
        embedded,
        (normal(32, 64), normal(64, 16, scale=0.1), normal(16, 8, 3, 3), normal(32, 32), normal(32, 8, 16, 16)),
        3,
    ),
    (autoencoder, (normal(16, 96, scale=0.1), normal(96, 16), abs(normal(64, 96)) % 1, kf.random.key(3)), 2),
    (experts, (normal(64, 4), normal(4, 64, 96, scale=0.1), normal(4, 96, 64, scale=0.1), normal(128, 64)), 3),
    (contrastive, (normal(96, 32, scale=0.3), normal(96, 32, seed=1, scale=0.3)), 2),
    (pooled, (normal(16, 4, 3, 3), normal(4, 4, 26, 26), kf.random.key(4)), 1),
]


def gradients(fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    return kf.value_and_grad(fn, tuple(range(count)))


@functools.cache
def unfused(fn: Callable[..., Any]) -> list[Any]:
    """Return a loss and its gradients by a kernel for each node, on the default device."""
    ((args, count),) = [(args, count) for other, args, count in LOSSES if other is fn]
    with kf.config(fusion=False):
        return optree.tree_leaves(kf.jit(gradients(fn, count))(*args))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("fn", "args", "count"), LOSSES)
def test_a_step_is_the_same_fused_and_not(fn: Any, args: Any, count: int, device: str) -> None:
    with kf.default_device(device):
        fused = optree.tree_leaves(kf.jit(gradients(fn, count))(*args))
    for ours, plain in zip(fused, unfused(fn), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-4, atol=2e-5 * float(np.abs(plain).max()))


@pytest.mark.parametrize("device", DEVICES)
def test_mirrored_edges(device: str) -> None:
    x = normal(70, 133)
    with kf.default_device(device):
        np.testing.assert_allclose(kf.jit(blurred)(x), blurred(x), rtol=1e-5, atol=1e-5)


def work(body: tuple[Stmt, ...], times: int = 1, vector: bool = False) -> tuple[float, float]:
    """Return the operations of statements, and of these what goes one element at a time."""
    every = alone = 0.0
    for s in body:
        if isinstance(s, For):
            n = s.static or s.var.bound or 1
            more, single = work(s.body, times * n, vector or s.kind == "vector")
        elif isinstance(s, If):
            more, single = work(s.body, times, vector)
        else:
            more = float(times * operations((s,))[0])
            single = 0.0 if vector else more
        every, alone = every + more, alone + single
    return every, alone


@pytest.mark.parametrize(("fn", "args", "count"), [*LOSSES, (lambda x: (blurred(x) ** 2).sum(), (normal(70, 133),), 1)])
def test_work_goes_by_vectors(fn: Any, args: Any, count: int) -> None:
    """An operation on a vector stands for 16 of them, so a hundredth part by elements takes a seventh of the time."""
    kernels: list[Kernel] = [k.ir for k in kf.jit(gradients(fn, count)).lower(*args).kernels]
    total = sum(work(k.body)[0] for k in kernels)
    slow = {k.name: work(k.body)[1] / total for k in kernels}
    assert sum(slow.values()) < 0.02, {name: share for name, share in slow.items() if share > 0.002}
