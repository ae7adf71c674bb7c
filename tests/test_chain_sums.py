"""Sums over rows, of a chain or alone: gradients by weights, keys and values, in whatever layout rows have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from tests.test_chains import normal, softmax


@pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1"])
@pytest.mark.parametrize("lead", [(64, 32), (7, 293), (3, 5, 137)])
def test_rows_of_several_axes_are_one_in_sums_over_rows(lead: tuple[int, ...], device: str) -> None:
    """Samples along rays, letters of sentences: gradients of a network's weights are products as those of one axis."""
    if device not in kf.devices():
        pytest.skip(f"no {device} here")

    def loss(w: Any, v: Any, x: Any, shift: Any) -> Any:
        return ((np.tanh(x @ w + shift) @ v) ** 2).sum()

    n = math.prod(lead)
    x, w, v, shift = normal(*lead, 36) / 8, normal(36, 40) / 8, normal(40, 4), normal(lead[-1], 1)
    flat = x.reshape(n, -1), np.broadcast_to(shift, (*lead, 1)).reshape(n, 1)
    with kf.default_device(device):
        grad = kf.jit(kf.grad(loss, argnums=(0, 1)))
        ours, one = grad(w, v, x, shift), grad(w, v, *flat)
        tiles, same = (
            sum(str(k.ir).count("for unroll") for k in grad.lower(w, v, *a).kernels) for a in ((x, shift), flat)
        )
    for a, b in zip(ours, one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
    h = np.tanh(flat[0].astype(np.float64) @ w + flat[1])
    np.testing.assert_allclose(ours[1], 2 * h.T @ (h @ v), rtol=1e-4, atol=1e-4 * np.abs(one[1]).max())
    assert tiles == same


@pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1"])
@pytest.mark.parametrize(("experts", "rows"), [(8, 128), (3, 131)])
def test_gradients_of_a_batch_that_rows_are_weighed_in(experts: int, rows: int, device: str) -> None:
    """A mixture of experts: an operand of a sum over rows goes with an axis of the other that is none of the rows."""
    if device not in kf.devices():
        pytest.skip(f"no {device} here")
    h, w, c = normal(experts, rows, 128) / 8, normal(experts, 128, 64) / 8, normal(rows, experts)

    def loss(h: Any, w: Any, c: Any) -> Any:
        return (np.einsum("eth,ehd,te->td", h, w, c) ** 2).sum()

    with kf.default_device(device):
        ours = kf.jit(kf.grad(loss, argnums=(0, 1, 2)))(h, w, c)
        alone = [kf.jit(kf.grad(loss, argnums=k))(h, w, c) for k in range(3)]
    dy = 2 * np.einsum("eth,ehd,te->td", *(a.astype(np.float64) for a in (h, w, c)))
    expected = (
        np.einsum("td,ehd,te->eth", dy, w, c), np.einsum("td,eth,te->ehd", dy, h, c),
        np.einsum("td,eth,ehd->te", dy, h, w),
    )  # fmt: skip
    for a, b, e in zip(ours, alone, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * np.abs(e).max())
        np.testing.assert_allclose(b, e, rtol=1e-4, atol=1e-4 * np.abs(e).max())


@pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1"])
@pytest.mark.parametrize(("batch", "tokens"), [(32, 64), (33, 64), (34, 49), (2, 1024)])
def test_gradients_where_rows_of_a_sample_share_an_operand(batch: int, tokens: int, device: str) -> None:
    """A network that mixes tokens: what a row is multiplied by is its sample's, and weights sum over all rows."""
    if device not in kf.devices():
        pytest.skip(f"no {device} here")
    x = normal(batch, tokens, 40) / 8
    weights = normal(tokens, tokens) / 8, normal(40, 48) / 8, normal(48, 40) / 8

    def made(x: Any, t: Any, w: Any, v: Any) -> tuple[Any, Any, Any]:
        mixed = x + np.swapaxes(np.swapaxes(np.tanh(x), 1, 2) @ t, 1, 2)
        hidden = np.tanh(mixed @ w)
        return mixed, hidden, hidden @ v

    with kf.default_device(device):
        grad = kf.jit(kf.grad(lambda p, x: (made(x, *p)[2] ** 2).sum()))
        ours = grad(weights, x)
        (chain,) = (str(k.ir) for k in grad.lower(weights, x).kernels if "local a" in str(k.ir))
    mixed, hidden, out = made(*(a.astype(np.float64) for a in (x, *weights)))
    back = (2 * out @ weights[2].T) * (1 - hidden * hidden)
    expected = (
        np.einsum("bud,btd->ut", np.tanh(x.astype(np.float64)), back @ weights[1].T),
        np.einsum("btd,btw->dw", mixed, back), np.einsum("btw,btd->wd", hidden, 2 * out),
    )  # fmt: skip
    for a, e in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * np.abs(e).max())
    assert device != "cpu" or "a0_s_columns" in chain


@pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1"])
@pytest.mark.parametrize(("positions", "width"), [(200, 47), (130, 16), (256, 8)])
def test_gradients_of_causal_attention_along_channels(positions: int, width: int, device: str) -> None:
    """Keys that a mask hides are not computed; sums over queries, whose lanes would be keys, read none of those."""
    if device not in kf.devices():
        pytest.skip(f"no {device} here")
    q, v = normal(3, 16, positions), normal(3, width, positions, seed=1)
    seen = np.tril(np.ones((positions, positions), bool))

    def mixed(q: Any, v: Any) -> tuple[Any, Any]:
        weights = softmax(np.where(seen, np.einsum("bdt,bdu->btu", q, q) * 0.25, -1e9))
        return weights, np.einsum("btu,bku->bkt", weights, v)

    with kf.default_device(device):
        ours = kf.jit(kf.grad(lambda v, q: (mixed(q, v)[1] ** 2).sum()))(v, q)
    weights, y = mixed(q.astype(np.float64), v.astype(np.float64))
    expected = np.einsum("btu,bkt->bku", weights, 2 * y)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1"])
@pytest.mark.parametrize("rows", [63, 64 * 15, 64 * 21, 64 * 21 + 1, 64 * 40, 64 * 133])
def test_sums_over_the_rows_of_a_matrix(rows: int, device: str) -> None:
    """Blocks of rows whose number is a multiple of 8, or not, are added eight at a time, and the rest one by one."""
    if device not in kf.devices():
        pytest.skip(f"no {device} here")
    x = normal(rows, 96)
    with kf.default_device(device):
        plain, made = (np.asarray(kf.jit(f)(x)) for f in (lambda x: x.sum(0), lambda x: np.abs(x).sum(0)))
    np.testing.assert_allclose(plain, x.sum(0, dtype=np.float64), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(made, np.abs(x).sum(0, dtype=np.float64), rtol=1e-5)
