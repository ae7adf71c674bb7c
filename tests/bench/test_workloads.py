"""The oracles: gradients by hand against differences, dropout's check, the limits' loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernelforge.bench.peers.base import Setting
from kernelforge.bench.peers.limit import UNROLL, Limit
from kernelforge.bench.peers.limit_ir import Host
from kernelforge.bench.workloads import TABLE, learning, maps, products, rows
from kernelforge.bench.workloads.record import Draw, aligned, outputs

X, V = (6, 8), (8,)
IMAGE, HEADS = (2, 3, 5, 5), (2, 6, 4)
BACKWARD: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "tanh_exp": (maps.tanh_exp, maps.tanh_exp_bwd, (V,)),
    "gelu": (maps.gelu, maps.gelu_bwd, (X, V)),
    "softmax": (rows.softmax, rows.softmax_bwd, (X,)),
    "layernorm": (rows.layernorm, rows.layernorm_bwd, (X, V, V)),
    "batchnorm": (rows.batchnorm, rows.batchnorm_bwd, (IMAGE, (3,), (3,))),
    "linear_gelu": (products.linear_gelu, products.linear_gelu_bwd, (X, (8, 3), (3,))),
    "conv3x3": (products.conv3x3, products.conv3x3_bwd, (IMAGE, (4, 3, 3, 3))),
    "attention": (products.attention, products.attention_bwd, (HEADS,) * 3),
    "attention_causal": (products.attention_causal, products.attention_causal_bwd, (HEADS,) * 3),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_gradients_by_hand(name: str) -> None:
    fn, backward, shapes = BACKWARD[name]
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=s) for s in shapes]
    cotangent = rng.normal(size=fn(*inputs).shape)
    value, *grads = outputs(backward(*inputs, cotangent))
    np.testing.assert_allclose(value, fn(*inputs), rtol=1e-12)
    assert [g.shape for g in grads] == list(shapes)
    for i, grad in enumerate(grads):
        way = rng.normal(size=shapes[i])
        ahead, behind = ([*inputs[:i], inputs[i] + s * way, *inputs[i + 1 :]] for s in (1e-6, -1e-6))
        slope = ((fn(*ahead) - fn(*behind)) * cotangent).sum() / 2e-6
        assert (grad * way).sum() == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", learning.TRAINING)
def test_training_steps_by_hand(name: str) -> None:
    inputs = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in TABLE[name].inputs(0)]
    training = learning.TRAINING[name]
    value, *state = training.step(*inputs)
    params, _, _, data = training.split(inputs)
    n = len(params)
    assert value == pytest.approx(training.loss(params, *data), rel=1e-12)
    rng = np.random.default_rng(0)
    for i in range(n):
        way = rng.normal(size=params[i].shape)
        sides = [training.loss([*params[:i], params[i] + s * way, *params[i + 1 :]], *data) for s in (1e-8, -1e-8)]
        grad = (state[n + i] - 0.9 * inputs[n + i]) / 0.1
        assert (grad * way).sum() == pytest.approx((sides[0] - sides[1]) / 2e-8, rel=2e-4, abs=1e-6)


def test_table() -> None:
    assert all(w.name == name for name, w in TABLE.items())
    assert sum(name.endswith(".bwd") for name in TABLE) == 10
    assert {w.group for w in TABLE.values()} == {
        "maps", "rows", "norms", "contractions", "convolutions", "attention", "steps", "overhead",
    }  # fmt: skip


def test_inputs_are_the_same_for_everyone_and_aligned() -> None:
    work = TABLE["gemm_bf16_1024"]
    first, second = work.inputs(3), work.inputs(3)
    assert all(np.array_equal(a, b) and a.ctypes.data % 4096 == 0 for a, b in zip(first, second, strict=True))
    assert not (first[0].view(np.uint32) & 0xFFFF).any()
    assert work.traffic(first, [first[0]]) == (4.0 * 1024**2, 2.0 * 1024**2)


def test_dropout_is_checked_through_its_mask() -> None:
    draw = Draw(0, np.float32)
    inputs = [draw.normal(64, 1024), draw.normal(64, 1024), draw.uniform(1024, low=0.5, high=1.5), draw.normal(1024)]
    kept = np.random.default_rng(1).random((64, 1024)) < rows.KEEP
    right = rows.dropout_layernorm(*inputs, kept)
    assert rows.check_dropout(inputs, [right]) < 1e-6
    assert rows.check_dropout(inputs, [rows.dropout_layernorm(inputs[0] * rows.KEEP, *inputs[1:], kept)]) > 1e-3
    assert rows.check_dropout(inputs, [rows.dropout_layernorm(*inputs, np.ones_like(kept))]) == np.inf
    damaged = right.copy()
    damaged[5, 7] += 3
    assert rows.check_dropout(inputs, [damaged]) > 1e-3
    assert rows.check_dropout(inputs, [right[:2]]) == np.inf


@pytest.mark.parametrize(("streaming", "ahead"), [(False, 0), (True, 0), (True, 1 << 12)])
def test_the_limits_loops_move_what_they_say(streaming: bool, ahead: int) -> None:
    host = Host.here()
    step = UNROLL * host.width
    source = aligned(np.arange(2 * step, dtype=np.float32))
    target = aligned(np.zeros(2 * step, np.float32))
    fn = host.mover(2, 2, streaming, ahead)
    fn(source.ctypes.data, target.ctypes.data, 4 * step, step, 3 * step, 2)
    low, high = step // 4, 3 * step // 4
    want = source[low:high] + source[step + low : step + high]
    np.testing.assert_array_equal(target[low:high], want)
    np.testing.assert_array_equal(target[step + low : step + high], want)
    assert not target[:low].any()
    assert not target[high:step].any()


@pytest.mark.parametrize("name", ["plain", "streaming", "arithmetic"])
def test_a_limits_call_does_a_workload_as_often_as_it_says(name: str) -> None:
    setting = Setting(name, "cpu", 2)
    for moved in ((64e6, 4e3), (16e6, 16e6), (48e6, 16e6), (1e3, 1e3)):
        peer = Limit(setting)
        work = dataclasses.replace(TABLE["sgemm_256"], moved=moved)
        done: list[tuple[Any, ...]] = []
        peer._calls = lambda jobs, alive: done.extend(jobs)  # type: ignore[method-assign,assignment,return-value]  # noqa: B023
        if name == "arithmetic":
            peer.prepare(work, [])
            flops = sum(job[2] for job in done) * Host.here().chains("f32")[1]
            assert peer.share == pytest.approx(flops / work.flops)
        else:
            reads, writes = round(4 * moved[0] / sum(moved)), round(4 * moved[1] / sum(moved))
            _, share = peer._move(work, reads, writes, 0)
            nbytes = sum((high - low) * repeat for *_, low, high, repeat in done) * (reads + writes)
            assert share == pytest.approx(nbytes / sum(moved))
            assert share * sum(moved) >= 1e8


@pytest.mark.parametrize("reads", [0, 1, 3])
def test_a_limit_moves_no_zeros(reads: int) -> None:
    # a Zen 5 writes zeros past the caches at twice the rate
    work = dataclasses.replace(TABLE["sgemm_256"], moved=(reads * 1e4, 1e4))
    call, _ = Limit(Setting("streaming", "cpu", 2))._move(work, reads, 1, 0)
    source, target = call()
    moved = target.view(np.float32)[: 8000 // 4]
    assert (source > 0).mean() > 0.99
    assert (moved > 0).mean() > 0.9


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
def test_the_limits_chains_run(dtype: str) -> None:
    fn, flops = Host.here().chains(dtype)
    sink = np.zeros(1024)
    fn(sink.ctypes.data, 10)
    assert flops >= 2 * 12 * 2
