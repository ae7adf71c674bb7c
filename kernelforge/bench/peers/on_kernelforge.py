"""kernelforge itself: the workloads' NumPy functions under ``jit``, their gradients by ``vjp``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

import kernelforge as kf
from kernelforge.backends import registry
from kernelforge.bench.peers.base import Peer, Setting
from kernelforge.bench.workloads import learning, rows
from kernelforge.bench.workloads.record import Array, Workload
from kernelforge.runtime import memory

REQUIRES = ("kernelforge", "numpy", "llvmlite")


def _dropout(x: Any, residual: Any, gamma: Any, beta: Any, key: Any) -> Any:
    return rows.dropout_layernorm(x, residual, gamma, beta, kf.random.bernoulli(key, rows.KEEP, x.shape))


def _training(of: learning.Training) -> Callable[..., Any]:
    def step(*inputs: Any) -> Any:
        params, _, _, data = of.split(inputs)
        value, grads = kf.value_and_grad(of.loss)(params, *data)
        return of.updated(value, grads, inputs)

    return step


OWN: dict[str, Callable[..., Any]] = {
    "dropout_layernorm": _dropout,
    **{name: _training(of) for name, of in learning.TRAINING.items()},
}
"""Where plain NumPy does not say it: drawing the mask in the kernel, deriving the gradient."""


def _backward(fn: Callable[..., Any], wrt: tuple[int, ...]) -> Callable[..., Any]:
    def both(*args: Any) -> Any:
        *inputs, cotangent = args

        def of(*chosen: Any) -> Any:
            filled = list(inputs)
            for i, x in zip(wrt, chosen, strict=True):
                filled[i] = x
            return fn(*filled)

        value, pull = kf.vjp(of, *(inputs[i] for i in wrt))
        return value, pull(cotangent)

    return both


class Kernelforge(Peer):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._backend = registry.backend(setting.device)
        self._enter = kf.default_device(setting.device)
        self._enter.__enter__()
        self.queues = self._backend.limits.form == "group"

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        fn = OWN.get(work.base, work.fn)
        arrays: list[Any] = list(inputs)
        if work.dtype == "bf16":
            arrays = [a.astype(ml_dtypes.bfloat16) for a in arrays]
        if work.base == "dropout_layernorm":
            arrays.append(np.asarray(kf.random.key(0)))
        if not self._backend.limits.host:
            arrays = [kf.asarray(a) for a in arrays]
        if work.base in learning.TRAINING:
            return self._stateful(fn, arrays, 3 * len(learning.TRAINING[work.base].shapes))
        compiled = kf.jit(_backward(fn, work.wrt) if work.wrt else fn)
        return lambda: compiled(*arrays)

    def _stateful(self, step: Callable[..., Any], arrays: list[Any], count: int) -> Callable[[], Any]:
        """Donate the state, the first ``count`` arguments, which the last results replace."""
        compiled = kf.jit(step, donate_argnums=range(count))
        state, given = [a.copy() for a in arrays[:count]], arrays[count:]

        def call() -> Any:
            nonlocal state
            made = compiled(*state, *given)
            state = made[-count:]
            return made

        return call

    def wait(self, result: Any) -> None:
        self._backend.synchronize()

    def arrays(self, result: Any) -> list[Array]:
        if isinstance(result, tuple | list):
            return [a for part in result for a in self.arrays(part)]
        array = np.asarray(result)
        return [array if array.dtype.kind in "fiub" else array.astype(np.float32)]

    def trim(self) -> None:
        memory.pool(self._backend).trim()


def start(setting: Setting) -> Peer:
    return Kernelforge(setting)
