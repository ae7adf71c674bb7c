"""A convolution into dense layers, end to end: all gradients against differences in float64, and against PyTorch."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import nn
from tests.nn.case import TORCH, normal

IMAGES, LABELS = normal(4, 2, 9, 8), np.array([3, 0, 4, 1])
PARAMS = [
    0.4 * normal(5, 2, 3, 3), normal(5), 1 + 0.1 * normal(5), 0.1 * normal(5, seed=1), 0.4 * normal(6, 5, 2, 2),
    0.3 * normal(7, 24), normal(7), 0.5 * normal(5, 7), normal(5, seed=2),
]  # fmt: skip


def loss(f: Any, params: Any, images: Any) -> Any:
    """Return the loss by functions of ``f``: strided and grouped convolutions, norms, pools, dense layers."""
    w1, b1, gain, shift, w2, w3, b3, w4, b4 = params
    x = f.gelu(f.conv2d(images, w1, b1, stride=(2, 1), padding=1))
    x = f.group_norm(x, 5, gain, shift)
    x = f.avg_pool2d(f.silu(f.conv2d(x, w2)), 2, ceil_mode=True)
    x = f.softplus(f.linear(x.reshape(x.shape[0], -1)[:, :24], w3, b3))
    return f.linear(f.layer_norm(x, (7,)), w4, b4)


def ours(params: Any, images: Any) -> Any:
    return nn.cross_entropy(loss(nn, params, images), LABELS, label_smoothing=0.1)


@pytest.mark.parametrize("device", kf.devices())
def test_gradients(device: str) -> None:
    dtype, bound = (np.float64, 1e-6) if device in ("cpu", "reference") else (np.float32, 2e-3)
    args = [p.astype(dtype) for p in PARAMS], IMAGES.astype(dtype)
    with kf.default_device(device):
        grads, by_image = kf.jit(kf.grad(ours, argnums=(0, 1)))(*args)
    value = kf.jit(ours)
    for i, (p, g) in enumerate(zip([*PARAMS, IMAGES], [*grads, by_image], strict=True)):
        move = normal(*p.shape, seed=50 + i)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [q + step * move if j == i else q for j, q in enumerate([*PARAMS, IMAGES])]
            ends.append(float(value(moved[:-1], moved[-1])))
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((np.asarray(g, np.float64) * move).sum(), slope, rtol=bound, atol=bound)


@pytest.mark.skipif(not TORCH, reason="PyTorch is not installed")
def test_gradients_are_pytorchs() -> None:
    torch = importlib.import_module("torch")
    given = [torch.tensor(p, requires_grad=True) for p in (*PARAMS, IMAGES)]
    functional = torch.nn.functional
    total = functional.cross_entropy(loss(functional, given[:-1], given[-1]), torch.tensor(LABELS), label_smoothing=0.1)
    value, (grads, by_image) = kf.value_and_grad(ours, argnums=(0, 1))(PARAMS, IMAGES)
    np.testing.assert_allclose(float(value), total.item(), rtol=1e-12)
    for mine, other in zip([*grads, by_image], torch.autograd.grad(total, given), strict=True):
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-9, atol=1e-12)
