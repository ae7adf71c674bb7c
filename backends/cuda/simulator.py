"""The CUDA backend on numba's simulator: threads of Python, to test what the printer prints without a GPU.

A simulated thread costs about 250 µs, so the limits ask for tiny groups.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba import cuda

from kernelforge.backends.base import Argument, Limits
from kernelforge.backends.cuda.launch import Launches
from kernelforge.backends.cuda.lib import Pointer, namespace
from kernelforge.backends.cuda.mma import NARROW
from kernelforge.backends.cuda.printer import Phase
from kernelforge.backends.reference import Bytes, InProcess
from kernelforge.dtypes import DTYPES
from kernelforge.ir.kernel import Kernel

LIMITS = Limits(
    form="group",
    vector_bytes=16,
    vector_registers=64,
    threads=16,
    group=8,
    local_bytes=48 << 10,
    cache_bytes=1 << 20,
    dtypes=frozenset(DTYPES),
    host=False,
    max_args=480,
    fingerprint=f"cuda-simulator-numba-{numba.__version__}-numpy-{np.__version__}",
    native=frozenset({"async", *NARROW}),
)

_QUIET = """
def run(*arguments):
    with errstate(all="ignore"):
        {name}(*arguments)
"""
"""Each simulated thread starts with NumPy's default warnings."""

_ONE_AT_A_TIME = threading.Lock()


class SimulatedExecutable:
    """The phases of a kernel as Python functions."""

    binary = None

    def __init__(self, kernel: Kernel) -> None:
        self.launches = Launches(kernel, simulated=True, ampere=True)
        self.source = self.launches.source
        self.functions = [_function(phase) for phase in self.launches.wide]

    def choose(self, addresses: dict[str, int]) -> list[Any]:
        if self.launches.fits(addresses):
            return self.functions
        return [_function(phase) for phase in self.launches.narrow]


def _function(phase: Phase) -> Callable[..., Any]:
    made = namespace() | {"errstate": np.errstate}
    exec(phase.source + _QUIET.format(name=phase.name), made)  # noqa: S102 - the printer's own text
    return cuda.jit(made["run"])  # type: ignore[no-any-return]


def _pointer(handle: Bytes, offset: int, dtype: np.dtype[Any]) -> Pointer:
    elements = handle[offset % dtype.itemsize :]
    usable = elements[: len(elements) // dtype.itemsize * dtype.itemsize]
    # to kernels, a bool is a byte and a narrow float its bits
    bits = {DTYPES["bool"]: np.dtype(np.uint8)} | {DTYPES[name]: np.dtype(np.uint16) for name in NARROW}
    return Pointer(usable.view(bits.get(dtype, dtype)), offset // dtype.itemsize)


class SimulatedCuda(InProcess):
    """The device ``cuda:0`` under ``NUMBA_ENABLE_CUDASIM=1``."""

    name = "cuda:0"
    limits = LIMITS

    def compile(self, kernel: Kernel, binary: bytes | None = None) -> SimulatedExecutable:
        return SimulatedExecutable(kernel)

    def launch(self, executable: SimulatedExecutable, arguments: Sequence[Argument], params: Sequence[int]) -> None:
        launches = executable.launches
        args = launches.kernel.args
        addresses = {a.name: h.ctypes.data + o for a, (h, o) in zip(args, arguments, strict=True)}
        pointers = [_pointer(h, o, DTYPES[a.dtype]) for a, (h, o) in zip(args, arguments, strict=True)]
        for nbytes, dtype in zip(launches.scratch(params), launches.scratch_dtypes, strict=True):
            pointers.append(_pointer(self.allocate(nbytes), 0, dtype))
        values = [np.int64(p) for p in params]
        phases = zip(executable.choose(addresses), launches.wide, launches.blocks(params), strict=True)
        with _ONE_AT_A_TIME:
            for function, phase, blocks in phases:
                if blocks:
                    function[(blocks,), (phase.threads,)](*pointers, *values)
