"""What a second OpenCL runtime runs of the tests that go over all devices.

It shares printer and schedules with the first one, which runs everything, as cpu, reference and the CUDA simulator do.
Of its own are compiler and library of functions: it runs the values of every primitive, and of the rest a part of
each kind.
"""

from __future__ import annotations

DTYPES = ("bool", "u8", "i32", "i64", "f32", "f64")
"""In which it runs the values of a primitive that has one of them."""

PRIMITIVES = (
    "multiply", "tanh", "erf", "where", "cast", "broadcast", "window", "place", "sum", "max", "contract", "cumsum",
    "recur", "gather", "scatter",
)  # fmt: skip
"""Whose first derivatives it runs, in f32."""

PROGRAMS = (
    "wave", "black_scholes", "lorenz_scan", "bisect", "cholesky", "mandelbrot", "monte_carlo", "kmeans", "viterbi",
    "lstm", "attention", "layer_norm", "conv_by_windows", "mlp", "adam", "sobel", "cumulative",
    "hash64", "masks", "fancy", "scatter", "specials", "not_numbers",
)  # fmt: skip
"""That it runs in float32, and differentiates."""

LAYERS = (
    "gelu", "softplus", "prelu", "softmax", "layer_norm", "local_response_norm", "linear", "embedding", "cross_entropy",
    "cdist", "kl_div", "conv2d", "conv_transpose2d", "fold", "max_pool2d", "adaptive_avg_pool2d", "pad",
    "scaled_dot_product_attention", "ctc_loss", "lstm_cell", "grid_sample", "pixel_shuffle",
)  # fmt: skip
"""Functions of ``kernelforge.nn`` that it computes and differentiates."""


def is_further(device: str) -> bool:
    """Tell an OpenCL runtime after the first."""
    return device.startswith("opencl:") and device != "opencl:0"
