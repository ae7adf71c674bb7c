"""NumPy: the workload's function as it is written, a backward one with its gradients by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.bench.peers.base import Peer, Setting, Unsupported
from kernelforge.bench.workloads.record import Array, Workload
from kernelforge.bench.workloads.rows import KEEP, dropout_layernorm

REQUIRES = ("numpy",)


class Numpy(Peer):
    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        if work.dtype == "bf16":
            raise Unsupported("NumPy has no bf16")
        if work.name == "dropout_layernorm":
            rng = np.random.Generator(np.random.SFC64(0))
            x, residual, gamma, beta = inputs
            return lambda: dropout_layernorm(
                x, residual, gamma, beta, rng.random(x.shape, dtype=np.float32) < np.float32(KEEP)
            )
        fn = work.oracle
        return lambda: fn(*inputs)


def start(setting: Setting) -> Peer:
    return Numpy(setting)
