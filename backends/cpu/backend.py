"""The CPU as a device: kernels run in the calling thread and the pool's, on host memory in place."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Sequence
from typing import Any

import llvmlite
import numpy as np

from kernelforge.backends.base import Argument, Backend, Call, Entry, Limits
from kernelforge.backends.cpu import loader
from kernelforge.backends.cpu.host import Host, host
from kernelforge.backends.cpu.threads import POOL
from kernelforge.dtypes import DTYPES
from kernelforge.errors import DeviceOutOfMemory
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.schedule.limits import CORE_BANDWIDTH, core_rate

PAGE, APART = 4096, 1472
"""Large memory begins ``APART`` bytes behind the start of a page; NumPy's begins 16 behind it or at it.

A load waits for a store just before it to the same place of another page, and long where the store goes past the cache:
softmax of rows of 4 KiB took 3 times as long on Zen 4. So what is made lies neither just behind what it is made from,
nor common lengths of rows further (multiples of 256 bytes), nor where lines are asked for (``ahead.AHEAD``)."""
LARGE = 1 << 16
"""Bytes from which on memory is large: pages that are begun and not used cost little, and stores may pass the cache."""

_RUN = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)
"""``run(frame, pool)``; the GIL is released during the call."""


class Handle:
    """Memory at an address; ``owner`` keeps it."""

    __slots__ = ("address", "nbytes", "owner")

    def __init__(self, address: int, nbytes: int, owner: Any) -> None:
        self.address = address
        self.nbytes = nbytes
        self.owner = owner


class CpuExecutable:
    """A kernel's machine code.

    Attributes:
        kernel: what it was compiled from.
        binary: the packed object files of the pool and of the kernel.
        address: of its code, ``run(frame, pool)``.
        pack: makes the frame that ``run`` takes.
    """

    __slots__ = ("__weakref__", "_code", "_host", "address", "binary", "kernel", "pack", "run")

    def __init__(self, kernel: Kernel, host: Host, binary: bytes, fingerprint: str) -> None:
        pool, own = loader.unpack(binary, kernel.name, fingerprint)
        self.kernel = kernel
        self.binary = binary
        self._host = host
        if not POOL.provided:
            POOL.provide(loader.load(pool, kernel.name))
        self._code = loader.load(own, kernel.name)
        self.address = self._code.symbols["run"]
        self.run = _RUN(self.address)
        self.pack = struct.Struct(f"={len(kernel.args) + len(kernel.params)}q").pack

    @property
    def source(self) -> str:
        """The LLVM IR, printed again: a warm start does without it."""
        from kernelforge.backends.cpu.printer import print_kernel

        return print_kernel(self.kernel, self._host)


class _Elements:
    """What NumPy asks for to make a view that keeps a handle's owner alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: Any, address: int, nbytes: int, readonly: bool) -> None:
        self.owner = owner
        self.__array_interface__ = {"data": (address, readonly), "shape": (nbytes,), "typestr": "|u1", "version": 3}


def limits_of(host: Host, fingerprint: str) -> Limits:
    """Say what schedules need to know of a processor."""
    return Limits(
        form="vector",
        vector_bytes=host.vector_bytes,
        vector_registers=host.vector_registers,
        threads=host.threads,
        group=1,
        local_bytes=host.cache_bytes[0],
        cache_bytes=host.cache_bytes[1],
        dtypes=frozenset(DTYPES),
        host=True,
        max_args=512,
        fingerprint=fingerprint,
        compilers=host.threads,
        native=host.native,
        side=host.side,
        bandwidth=host.threads * CORE_BANDWIDTH,
        rate=host.threads * core_rate(host.vector_bytes),
    )


class CpuBackend:
    """The nine members of ``kernelforge.backends.base.Backend``, and those of ``Printing`` and ``Direct``."""

    name = "cpu"

    def __init__(self) -> None:
        self.host = host()
        self.limits = limits_of(self.host, f"cpu llvmlite-{llvmlite.__version__} {self.host.digest}")

    def allocate(self, nbytes: int) -> Handle:
        step, start = (PAGE, APART) if nbytes >= LARGE else (64, 0)
        try:
            memory = np.empty(nbytes + step + start - 1, np.uint8)
        except MemoryError:
            raise DeviceOutOfMemory(device=self.name, nbytes=nbytes) from None
        return Handle((_address(memory) + step - 1 & -step) + start, nbytes, memory)

    def free(self, handle: Handle) -> None:
        """Do nothing: memory goes with the last reference, which a view from ``download`` may hold."""

    def upload(self, array: np.ndarray[Any, Any]) -> Handle:
        return Handle(_address(array), array.nbytes, array)

    def download(
        self, handle: Handle, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> np.ndarray[Any, Any]:
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        elements = _Elements(handle.owner, handle.address + offset, nbytes, not handle.owner.flags.writeable)
        return np.asarray(elements).view(dtype).reshape(shape)

    def compile(self, kernel: Kernel, binary: bytes | None = None) -> CpuExecutable:
        if binary is None:
            (made,) = self.build([kernel], [self.printed(kernel)])
            return made
        return CpuExecutable(kernel, self.host, binary, self.limits.fingerprint)

    def printed(self, kernel: Kernel) -> str:
        from kernelforge.backends.cpu.printer import print_kernel

        return print_kernel(kernel, self.host)

    def build(self, kernels: Sequence[Kernel], printed: Sequence[str]) -> list[CpuExecutable]:
        from kernelforge.backends.cpu.compiler import compile_ir, compile_pool, passes_for

        made = []
        for kernel, text in zip(kernels, printed, strict=True):
            code = compile_ir(text, kernel.name, passes_for(kernel))
            binary = loader.pack((compile_pool(self.host), code), self.limits.fingerprint)
            made.append(CpuExecutable(kernel, self.host, binary, self.limits.fingerprint))
        return made

    def launch(self, executable: CpuExecutable, arguments: Sequence[Argument], params: Sequence[int]) -> None:
        frame = executable.pack(*[handle.address + offset for handle, offset in arguments], *params)
        executable.run(frame, POOL.word.value or POOL.start())

    def synchronize(self) -> None:
        """Do nothing: a launch returns when it is done."""

    def entry(self, call: Call, like: Sequence[Any]) -> Entry | None:
        """See ``kernelforge.backends.base.Direct``."""
        from kernelforge.backends.cpu.entry import entry  # not before a program is called again

        return entry(call, like, Handle)


def _stated(array: np.ndarray[Any, Any]) -> int:
    """Return where the element at index 0 of every axis is, as the array says."""
    return int(array.__array_interface__["data"][0])


def _held(array: np.ndarray[Any, Any]) -> int:
    """Return the same from the array's memory, where it is the first field after the object's header."""
    return ctypes.c_void_p.from_address(id(array) + object.__basicsize__).value or 0


_PROBE = np.empty(3)
# a tenth of the time, of which a small call has as much again for each argument
_address = _held if sys.implementation.name == "cpython" and _held(_PROBE) == _stated(_PROBE) else _stated


def devices() -> dict[str, Backend]:
    """Return the host's one device."""
    return {"cpu": CpuBackend()}
