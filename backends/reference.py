"""The interpreter as a device: slow, and right by definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.backends.base import Argument, Backend
from kernelforge.dtypes import DTYPES
from kernelforge.errors import DeviceOutOfMemory
from kernelforge.ir.interpret import evaluate, run_kernel
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.text import print_kernel

Array = np.ndarray[Any, Any]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

LIMITS = Limits(
    form="serial",
    vector_bytes=8,
    vector_registers=1,
    threads=1,
    group=1,
    local_bytes=1 << 20,
    cache_bytes=1 << 20,
    dtypes=frozenset(DTYPES),
    host=False,
    max_args=1 << 16,
    fingerprint=f"numpy-{np.__version__}",
    native=frozenset({"f16", "bf16", "repeat"}),
)


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class Interpreted:
    """A kernel and its text."""

    kernel: Kernel
    source: str
    binary: None = None


class InProcess:
    """Memory that is NumPy's, at a multiple of 64 bytes, and starts as 0xFF bytes: NaN, or -1."""

    name: str

    def allocate(self, nbytes: int) -> Bytes:
        try:
            memory = np.full(nbytes + 63, 0xFF, np.uint8)
        except MemoryError:
            raise DeviceOutOfMemory(device=self.name, nbytes=nbytes) from None
        skip = -memory.ctypes.data % 64
        return memory[skip : skip + nbytes]

    def free(self, handle: Bytes) -> None:
        """Do nothing: the array is freed with its last reference."""

    def upload(self, array: Array) -> Bytes:
        handle = self.allocate(max(array.nbytes, 1))
        handle[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return handle

    def download(self, handle: Bytes, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        count = int(np.prod(shape, dtype=np.int64))
        return handle[offset : offset + count * dtype.itemsize].view(dtype).reshape(shape).copy()

    def synchronize(self) -> None:
        """Do nothing: a launch returns when it is done."""


class Reference(InProcess):
    """Runs kernels by ``kernelforge.ir.interpret``."""

    name = "reference"
    limits = LIMITS

    def compile(self, kernel: Kernel, binary: bytes | None = None) -> Interpreted:
        return Interpreted(kernel, print_kernel(kernel))

    def launch(self, executable: Interpreted, arguments: Sequence[Argument], params: Sequence[int]) -> None:
        kernel = executable.kernel
        values = dict(zip(kernel.params, params, strict=True))
        arrays = {}
        for arg, (handle, offset) in zip(kernel.args, arguments, strict=True):
            dtype = DTYPES[arg.dtype]
            arrays[arg.name] = handle[offset : offset + evaluate(arg.size, values) * dtype.itemsize].view(dtype)
        run_kernel(kernel, arrays, values)


def devices() -> dict[str, Backend]:
    """Return the one device there always is."""
    return {"reference": Reference()}
