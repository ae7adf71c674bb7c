"""PyTorch, eager and compiled; its own fused functions where it has them. On a GPU: cuBLAS, cuDNN and Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everyone calls it

from kernelforge.bench.peers.base import Peer, Setting, pick
from kernelforge.bench.workloads import learning
from kernelforge.bench.workloads.maps import ADAM, COUNT, TREE, black_scholes
from kernelforge.bench.workloads.record import Array, Workload
from kernelforge.bench.workloads.rows import EPSILON, KEEP

REQUIRES = ("torch", "numpy")


def _dropout(x: Any, residual: Any, gamma: Any, beta: Any) -> Any:
    return F.layer_norm(F.dropout(x, 1 - KEEP) + residual, gamma.shape, gamma, beta, EPSILON)


def _batchnorm(x: Any, gamma: Any, beta: Any) -> Any:
    return F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPSILON)


def _mlp(params: Any, images: Any, labels: Any) -> Any:
    h = images
    for i in (0, 2):
        h = F.relu(torch.addmm(params[i + 1], h, params[i]))
    return F.cross_entropy(torch.addmm(params[5], h, params[4]), labels)


def _resnet(params: Any, images: Any, labels: Any) -> Any:
    w0, g0, c0, w1, g1, c1, w2, g2, c2, dense, bias = params
    x = F.relu(_batchnorm(F.conv2d(images, w0, padding=1), g0, c0))
    y = F.relu(_batchnorm(F.conv2d(x, w1, padding=1), g1, c1))
    y = F.relu(_batchnorm(F.conv2d(y, w2, padding=1), g2, c2) + x)
    return F.cross_entropy(torch.addmm(bias, y.mean((2, 3)), dense), labels)


def _transformer(params: Any, x: Any, target: Any) -> Any:
    g1, c1, into, out, g2, c2, w1, b1, w2, b2 = params
    heads = (learning.SEQUENCES, learning.LENGTH, 3, learning.HEADS, -1)
    qkv = (F.layer_norm(x, g1.shape, g1, c1, EPSILON) @ into).reshape(heads).permute(2, 0, 3, 1, 4)
    y = x + F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(x.shape) @ out
    inner = F.gelu(torch.addmm(b1, F.layer_norm(y, g2.shape, g2, c2, EPSILON), w1), approximate="tanh")
    return F.mse_loss(y + torch.addmm(b2, inner, w2), target)


LOSSES: dict[str, Callable[..., Any]] = {
    "mlp_step": _mlp, "resnet_step": _resnet, "transformer_step": _transformer,
}  # fmt: skip

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tanh_exp": lambda x: torch.tanh(1.5 * x + 0.5) * 2.0 + torch.exp(-x * x),
    "gelu": lambda x, b: F.gelu(x + b, approximate="tanh"),
    "black_scholes": lambda s, k, t: black_scholes(s, k, t, torch),
    "call_16": lambda x: 2 * x + 1,
    "rowsum": lambda x: x.sum(1),
    "colsum": lambda x: x.sum(0),
    "fullsum": lambda x: x.sum(),
    "softmax_4096x1024": lambda x: torch.softmax(x, -1),
    "softmax_64x65536": lambda x: torch.softmax(x, -1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "layernorm": lambda x, g, b: F.layer_norm(x, g.shape, g, b, EPSILON),
    "batchnorm": _batchnorm,
    "dropout_layernorm": _dropout,
    **dict.fromkeys(
        ("sgemm_256", "sgemm_512", "sgemm_1024", "sgemm_2048", "dgemm_1024", "gemm_bf16_1024", "gemv_4096"),
        torch.matmul,
    ),
    "linear_gelu": lambda x, w, b: F.gelu(torch.addmm(b, x, w), approximate="tanh"),
    "conv3x3": lambda x, w: F.conv2d(x, w, padding=1),
    "depthwise3x3": lambda x, w: F.conv2d(x, w[:, None], padding=1, groups=64),
    "conv1x1": lambda x, w: F.conv2d(x, w[:, :, None, None]),
    "attention": F.scaled_dot_product_attention,
    "attention_causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
}


class Torch(Peer):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        torch.set_num_threads(setting.threads)
        self.queues = setting.kind == "cuda"
        self._compile: Callable[[Any], Any] = torch.compile if setting.name == "torch-compile" else lambda fn: fn

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        kind = torch.bfloat16 if work.dtype == "bf16" else None
        device = self.setting.device if self.queues else "cpu"
        tensors = [torch.from_numpy(x).to(device, kind if x.dtype.kind == "f" else None) for x in inputs]
        torch.compiler.reset()
        if work.name == "adam_tree":
            return self._adam(tensors)
        if work.name in LOSSES:
            return self._training(work.name, tensors)
        fn = self._compile(pick(FUNCTIONS, work, "torch"))
        if not work.wrt:

            def forward() -> Any:
                with torch.no_grad():
                    return fn(*tensors)

            return forward
        *values, cotangent = tensors
        chosen = [values[i].requires_grad_() for i in work.wrt]

        def both() -> Any:
            value = fn(*values)
            return value.detach(), *torch.autograd.grad(value, chosen, cotangent)

        return both

    def _optimiser(self, params: Any, means: Any, squares: Any) -> Any:
        options = {"lr": ADAM["rate"], "betas": (ADAM["decay"], ADAM["decay_squares"]), "eps": ADAM["tiny"]}
        optimiser = torch.optim.Adam(params, **options, fused=True)
        for p, mean, square in zip(params, means, squares, strict=True):
            step = torch.tensor(float(COUNT), device=p.device)
            optimiser.state[p] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        return optimiser

    def _adam(self, tensors: list[Any]) -> Callable[[], Any]:
        n = len(TREE)
        params, grads, means, squares = (tensors[i : i + n] for i in range(0, 4 * n, n))
        params = [p.requires_grad_() for p in params]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        step = self._compile(self._optimiser(params, means, squares).step)

        def update() -> Any:
            step()
            return [*params, *means, *squares]

        return update

    def _training(self, name: str, tensors: list[Any]) -> Callable[[], Any]:
        params, means, squares, data = learning.TRAINING[name].split(tensors)
        params = [p.requires_grad_() for p in params]
        optimiser = self._optimiser(params, means, squares)
        loss = self._compile(LOSSES[name])

        def step() -> Any:
            value = loss(params, *data)
            value.backward()
            optimiser.step()
            optimiser.zero_grad()
            return [value, *params, *means, *squares]

        return step

    def wait(self, result: Any) -> None:
        if self.queues:
            torch.cuda.synchronize()

    def arrays(self, result: Any) -> list[Array]:
        if isinstance(result, tuple | list):
            return [a for part in result for a in self.arrays(part)]
        tensor = result.detach().cpu()
        return [(tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()]


def start(setting: Setting) -> Peer:
    if setting.kind == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.zeros(1, device=setting.device)  # raises here when it has no such device
    return Torch(setting)
