"""ONNX Runtime: graphs of its own operators, in ONNX's text form. It runs forward passes only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx.parser
import onnxruntime

from kernelforge.bench.peers.base import Peer, Setting, Unsupported, pick
from kernelforge.bench.workloads.record import Array, Workload

REQUIRES = ("onnxruntime", "onnx", "numpy")


def _gemm() -> str:
    return "y = MatMul(a, b)"


_ATTENTION = """
bt = Transpose<perm = [0, 1, 3, 2]>(b)
scores = MatMul(a, bt)
scale = Constant<value = float {0.125}>()
scaled = Mul(scores, scale)
weights = Softmax<axis = -1>(scaled)
y = MatMul(weights, c)"""
_SOFTMAX = "y = Softmax<axis = -1>(a)"

GRAPHS: dict[str, Callable[[], str]] = {
    "tanh_exp": lambda: (
        """
p = Constant<value = float {1.5}>()
q = Constant<value = float {0.5}>()
r = Constant<value = float {2.0}>()
ap = Mul(a, p)
inner = Add(ap, q)
t = Tanh(inner)
left = Mul(t, r)
square = Mul(a, a)
minus = Neg(square)
right = Exp(minus)
y = Add(left, right)"""
    ),
    "gelu": lambda: (
        """
s = Add(a, b)
y = Gelu<approximate = "tanh">(s)"""
    ),
    "call_16": lambda: (
        """
two = Constant<value = float {2.0}>()
one = Constant<value = float {1.0}>()
twice = Mul(a, two)
y = Add(twice, one)"""
    ),
    "rowsum": lambda: "axes = Constant<value_ints = [1]>()\ny = ReduceSum<keepdims = 0>(a, axes)",
    "colsum": lambda: "axes = Constant<value_ints = [0]>()\ny = ReduceSum<keepdims = 0>(a, axes)",
    "fullsum": lambda: "y = ReduceSum<keepdims = 0>(a)",
    "logsumexp": lambda: "axes = Constant<value_ints = [1]>()\ny = ReduceLogSumExp<keepdims = 0>(a, axes)",
    "softmax_4096x1024": lambda: _SOFTMAX,
    "softmax_64x65536": lambda: _SOFTMAX,
    "layernorm": lambda: "y = LayerNormalization<axis = -1, epsilon = 1e-5>(a, b, c)",
    **dict.fromkeys(("sgemm_256", "sgemm_512", "sgemm_1024", "sgemm_2048", "dgemm_1024", "gemv_4096"), _gemm),
    "linear_gelu": lambda: (
        """
z = MatMul(a, b)
s = Add(z, c)
y = Gelu<approximate = "tanh">(s)"""
    ),
    "conv3x3": lambda: "y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a, b)",
    "depthwise3x3": lambda: (
        """
at = Constant<value_ints = [1]>()
w = Unsqueeze(b, at)
y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 64>(a, w)"""
    ),
    "conv1x1": lambda: (
        """
at = Constant<value_ints = [2, 3]>()
w = Unsqueeze(b, at)
y = Conv<kernel_shape = [1, 1]>(a, w)"""
    ),
    "attention": lambda: _ATTENTION,
}


class Onnxruntime(Peer):
    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        if work.wrt:
            raise Unsupported("ONNX Runtime derives no gradients")
        body = pick(GRAPHS, work, "ONNX Runtime")()
        kind = "double" if work.dtype == "f64" else "float"
        names = "abcd"[: len(inputs)]
        args = ", ".join(f"{kind}[{','.join(map(str, x.shape))}] {n}" for n, x in zip(names, inputs, strict=True))
        text = f'<ir_version: 10, opset_import: ["" : 20]> g ({args}) => ({kind} y) {{ {body} }}'
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.setting.threads
        options.inter_op_num_threads = 1
        model = onnx.parser.parse_model(text).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = dict(zip(names, inputs, strict=True))
        return lambda: session.run(None, feed)


def start(setting: Setting) -> Peer:
    return Onnxruntime(setting)
