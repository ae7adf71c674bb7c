"""JAX: ``jit`` of the whole workload, ``vjp`` for gradients, the state of a training step donated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernelforge.bench.peers.base import Peer, Setting, pick
from kernelforge.bench.workloads import learning
from kernelforge.bench.workloads.maps import TREE, adam, black_scholes
from kernelforge.bench.workloads.record import Array, Workload
from kernelforge.bench.workloads.rows import EPSILON, KEEP

REQUIRES = ("jax", "jaxlib", "numpy")


def _norm(x: Any, axes: Any) -> Any:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) * lax.rsqrt(x.var(axes, keepdims=True) + EPSILON)


def _layernorm(x: Any, gamma: Any, beta: Any) -> Any:
    return _norm(x, -1) * gamma + beta


def _dropout(x: Any, residual: Any, gamma: Any, beta: Any, key: Any) -> Any:
    kept = jax.random.bernoulli(key, KEEP, x.shape)
    return _layernorm(jnp.where(kept, x / KEEP, 0) + residual, gamma, beta)


def _conv(x: Any, w: Any, padding: Any = "SAME", groups: int = 1) -> Any:
    return lax.conv_general_dilated(x, w, (1, 1), padding, feature_group_count=groups)


def _attention(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
    scores = q @ jnp.swapaxes(k, -1, -2) * 0.125
    if causal:
        scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
    return jax.nn.softmax(scores) @ v


def _batchnorm(x: Any, gamma: Any, beta: Any) -> Any:
    return _norm(x, (0, 2, 3)) * gamma[:, None, None] + beta[:, None, None]


def _cross_entropy(scores: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1).mean()


def _mlp(params: Any, images: Any, labels: Any) -> Any:
    h = images
    for i in (0, 2):
        h = jax.nn.relu(h @ params[i] + params[i + 1])
    return _cross_entropy(h @ params[4] + params[5], labels)


def _resnet(params: Any, images: Any, labels: Any) -> Any:
    w0, g0, c0, w1, g1, c1, w2, g2, c2, dense, bias = params
    x = jax.nn.relu(_batchnorm(_conv(images, w0), g0, c0))
    y = jax.nn.relu(_batchnorm(_conv(x, w1), g1, c1))
    y = jax.nn.relu(_batchnorm(_conv(y, w2), g2, c2) + x)
    return _cross_entropy(y.mean((2, 3)) @ dense + bias, labels)


def _transformer(params: Any, x: Any, target: Any) -> Any:
    g1, c1, into, out, g2, c2, w1, b1, w2, b2 = params
    heads = (learning.SEQUENCES, learning.LENGTH, 3, learning.HEADS, -1)
    qkv = (_layernorm(x, g1, c1) @ into).reshape(heads).transpose(2, 0, 3, 1, 4)
    y = x + _attention(*qkv).transpose(0, 2, 1, 3).reshape(x.shape) @ out
    z = y + jax.nn.gelu(_layernorm(y, g2, c2) @ w1 + b1, approximate=True) @ w2 + b2
    return ((z - target) ** 2).mean()


LOSSES: dict[str, Callable[..., Any]] = {
    "mlp_step": _mlp, "resnet_step": _resnet, "transformer_step": _transformer,
}  # fmt: skip


def _adam(params: Any, grads: Any, means: Any, squares: Any) -> Any:
    updated = [adam(*leaf, xp=jnp) for leaf in zip(params, grads, means, squares, strict=True)]
    return tuple([u[part] for u in updated] for part in range(3))


def _update(state: Any, grads: Any) -> Any:
    return _adam(state[0], grads, state[1], state[2]), None


def _step(loss: Callable[..., Any], state: Any, *data: Any) -> Any:
    value, grads = jax.value_and_grad(loss)(state[0], *data)
    return _adam(state[0], grads, state[1], state[2]), value


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tanh_exp": lambda x: jnp.tanh(1.5 * x + 0.5) * 2.0 + jnp.exp(-x * x),
    "gelu": lambda x, b: jax.nn.gelu(x + b, approximate=True),
    "black_scholes": lambda s, k, t: black_scholes(s, k, t, jnp),
    "call_16": lambda x: 2 * x + 1,
    "rowsum": lambda x: x.sum(1),
    "colsum": lambda x: x.sum(0),
    "fullsum": lambda x: x.sum(),
    "softmax_4096x1024": jax.nn.softmax,
    "softmax_64x65536": jax.nn.softmax,
    "logsumexp": lambda x: jax.nn.logsumexp(x, -1),
    "layernorm": _layernorm,
    "batchnorm": _batchnorm,
    "dropout_layernorm": _dropout,
    **dict.fromkeys(
        ("sgemm_256", "sgemm_512", "sgemm_1024", "sgemm_2048", "dgemm_1024", "gemm_bf16_1024", "gemv_4096"),
        jnp.matmul,
    ),
    "linear_gelu": lambda x, w, b: jax.nn.gelu(x @ w + b, approximate=True),
    "conv3x3": _conv,
    "depthwise3x3": lambda x, w: _conv(x, w[:, None], groups=64),
    "conv1x1": lambda x, w: _conv(x, w[:, :, None, None], "VALID"),
    "attention": _attention,
    "attention_causal": lambda q, k, v: _attention(q, k, v, causal=True),
}


class Jax(Peer):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_default_prng_impl", "rbg")  # quicker than its threefry
        jax.config.update("jax_default_matmul_precision", "highest")
        self._device = jax.devices("gpu" if setting.kind == "cuda" else "cpu")[0]
        self.queues = setting.kind == "cuda"

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        kind = jnp.bfloat16 if work.dtype == "bf16" else None
        arrays = [jax.device_put(jnp.asarray(x, kind if x.dtype.kind == "f" else None), self._device) for x in inputs]
        if work.name == "adam_tree" or work.name in LOSSES:
            return self._stateful(work, arrays)
        fn = pick(FUNCTIONS, work, "jax")
        if work.base == "dropout_layernorm":
            arrays.append(jax.random.key(0))
        if not work.wrt:
            forward = jax.jit(fn)
            return lambda: forward(*arrays)

        def both(*args: Any) -> Any:
            value, pull = jax.vjp(fn, *args[:-1])
            return value, *pull(args[-1])

        compiled = jax.jit(both)
        return lambda: compiled(*arrays)

    def _stateful(self, work: Workload, arrays: list[Any]) -> Callable[[], Any]:
        if work.name == "adam_tree":
            step: Callable[..., Any] = _update
            params, grads, means, squares = (arrays[i : i + len(TREE)] for i in range(0, len(arrays), len(TREE)))
            state, given = [params, means, squares], [grads]
        else:
            step = functools.partial(_step, LOSSES[work.name])
            *state, given = learning.TRAINING[work.name].split(arrays)
        compiled = jax.jit(step, donate_argnums=0)
        now = [state]

        def call() -> Any:
            made, value = compiled(now[0], *given)
            now[0] = list(made)
            return made if value is None else (value, made)

        return call

    def wait(self, result: Any) -> None:
        jax.block_until_ready(result)

    def arrays(self, result: Any) -> list[Array]:
        leaves = jax.tree_util.tree_leaves(result)
        return [np.array(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x) for x in leaves]


def start(setting: Setting) -> Peer:
    return Jax(setting)
