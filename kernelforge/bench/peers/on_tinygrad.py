"""tinygrad: its own tensors under ``TinyJit``, its LLVM or clang backend on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinygrad import Device, Tensor, TinyJit, dtypes

from kernelforge.bench.peers.base import Peer, Setting, Unsupported, pick
from kernelforge.bench.workloads.record import Array, Workload
from kernelforge.bench.workloads.rows import EPSILON, KEEP

REQUIRES = ("tinygrad", "numpy")
DEVICES = {"cpu": "CPU", "opencl": "CL", "cuda": "CUDA"}


def _batchnorm(x: Any, g: Any, b: Any) -> Any:
    mean = x.mean((0, 2, 3), keepdim=True)
    spread = ((x - mean) * (x - mean)).mean((0, 2, 3), keepdim=True) + EPSILON
    return (x - mean) * spread.rsqrt() * g.reshape(1, -1, 1, 1) + b.reshape(1, -1, 1, 1)


def _dropout(x: Any, residual: Any, g: Any, b: Any) -> Any:
    kept = Tensor.rand(*x.shape, device=x.device) < KEEP
    return ((kept.where(x / KEEP, 0)) + residual).layernorm(eps=EPSILON) * g + b


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tanh_exp": lambda x: (1.5 * x + 0.5).tanh() * 2.0 + (-x * x).exp(),
    "gelu": lambda x, b: (x + b).gelu(),
    "call_16": lambda x: 2 * x + 1,
    "rowsum": lambda x: x.sum(1),
    "colsum": lambda x: x.sum(0),
    "fullsum": lambda x: x.sum(),
    "softmax_4096x1024": lambda x: x.softmax(-1),
    "softmax_64x65536": lambda x: x.softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "layernorm": lambda x, g, b: x.layernorm(eps=EPSILON) * g + b,
    "batchnorm": _batchnorm,
    "dropout_layernorm": _dropout,
    **dict.fromkeys(
        ("sgemm_256", "sgemm_512", "sgemm_1024", "sgemm_2048", "dgemm_1024", "gemm_bf16_1024", "gemv_4096"),
        lambda x, y: x @ y,
    ),
    "linear_gelu": lambda x, w, b: (x @ w + b).gelu(),
    "conv3x3": lambda x, w: x.conv2d(w, padding=1),
    "depthwise3x3": lambda x, w: x.conv2d(w.unsqueeze(1), padding=1, groups=64),
    "conv1x1": lambda x, w: x.conv2d(w.reshape(64, 64, 1, 1)),
    "attention": lambda q, k, v: q.scaled_dot_product_attention(k, v),
    "attention_causal": lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True),
}


class Tinygrad(Peer):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._device = DEVICES[setting.kind]
        Device[self._device].synchronize()  # raises here when it has none
        self.queues = setting.kind == "cuda"

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        fn = pick(FUNCTIONS, work, "tinygrad")
        kind = dtypes.bfloat16 if work.dtype == "bf16" else None
        tensors = [Tensor(x, device=self._device) for x in inputs]
        tensors = [(t.cast(kind) if kind else t).contiguous().realize() for t in tensors]

        def run(*args: Any) -> Any:
            if not work.wrt:
                return (fn(*args).realize(),)
            value = fn(*args[:-1])
            grads = value.gradient(*(args[i] for i in work.wrt), gradient=args[-1])
            return tuple(t.realize() for t in (value, *grads))

        jitted = TinyJit(run)
        for _ in range(2):  # the first call runs as it is, the second is captured
            jitted(*tensors)
        return lambda: jitted(*tensors)

    def wait(self, result: Any) -> None:
        Device[self._device].synchronize()

    def arrays(self, result: Any) -> list[Array]:
        return [(t.cast(dtypes.float32) if t.dtype == dtypes.bfloat16 else t).numpy() for t in result]

    def trim(self) -> None:
        raise Unsupported("TinyJit keeps its buffers from call to call, results among them")


def start(setting: Setting) -> Peer:
    return Tinygrad(setting)
