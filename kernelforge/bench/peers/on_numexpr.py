"""numexpr: chains of elementwise functions as its expressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numexpr
import numpy as np

from kernelforge.bench.peers.base import Peer, Setting, Unsupported
from kernelforge.bench.workloads.maps import GELU_CUBE, GELU_SCALE
from kernelforge.bench.workloads.record import Array, Workload

REQUIRES = ("numexpr", "numpy")
NUMBERS = {"scale": np.float32(GELU_SCALE), "cube": np.float32(GELU_CUBE), "half": np.float32(0.5)}
"""Its own constants would be f64 and widen everything."""

EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "tanh_exp": ("tanh(3 * half * a + half) * 2 + exp(-a * a)",),
    "tanh_exp.bwd": (
        "tanh(3 * half * a + half) * 2 + exp(-a * a)",
        "b * (3 * (1 - tanh(3 * half * a + half) ** 2) - 2 * a * exp(-a * a))",
    ),
    "gelu": ("half * (a + b) * (1 + tanh(scale * ((a + b) + cube * (a + b) * (a + b) * (a + b))))",),
    "call_16": ("2 * a + 1",),
    "rowsum": ("sum(a, axis=1)",),
    "colsum": ("sum(a, axis=0)",),
}


class Numexpr(Peer):
    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        if work.name not in EXPRESSIONS:
            raise Unsupported(f"nobody wrote {work.name} for numexpr")
        names = NUMBERS | dict(zip("abcd", inputs, strict=False))
        texts = EXPRESSIONS[work.name]
        return lambda: [numexpr.evaluate(text, names) for text in texts]


def start(setting: Setting) -> Peer:
    numexpr.set_num_threads(setting.threads)
    return Numexpr(setting)
