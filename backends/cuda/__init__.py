"""NVIDIA GPUs through numba.cuda; under ``NUMBA_ENABLE_CUDASIM=1`` its simulator."""

from __future__ import annotations

from kernelforge.backends.base import Backend
from kernelforge.errors import DeviceUnavailable


def devices() -> dict[str, Backend]:
    """Return each GPU, or the one simulated device.

    Raises:
        DeviceUnavailable: without a driver, a GPU or one of NVIDIA's libraries.
    """
    from numba.cuda.core import config

    if config.ENABLE_CUDASIM:
        from kernelforge.backends.cuda.simulator import SimulatedCuda

        return {"cuda:0": SimulatedCuda()}
    from numba import cuda

    if not cuda.is_available():
        reason = (cuda.cuda_error() or "numba.cuda finds no GPU that it supports").strip()
        hint = "set NUMBA_ENABLE_CUDASIM=1 before Python starts to run kernels in numba's simulator, slowly"
        raise DeviceUnavailable(reason=f"{reason}\n{hint}")
    from kernelforge.backends.cuda.backend import Cuda

    return {f"cuda:{k}": Cuda(k) for k in range(len(cuda.gpus))}
