"""NVIDIA GPUs: numba.cuda keeps contexts and memory, cuda.core loads and launches what ``offline`` compiles.

Everything goes to the legacy default stream, so launches and copies happen in the order of the calls, whichever thread
makes them, and memory may be used again as soon as Python is done with it. Code, and memory that others own, is kept
until the device is done with it, too (``pending``). CUDA does not survive ``fork``: a child process is refused, and
should be started by ``spawn``.
"""

# numba and NVIDIA's packages fill their modules when they load
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from cuda.bindings import nvjitlink
from cuda.core import Device, LaunchConfig, ObjectCode, Stream, launch
from numba import cuda
from numba.cuda.cudadrv.devicearray import DeviceNDArray
from numba.cuda.cudadrv.driver import CudaAPIError, driver
from numba.cuda.cudadrv.nvvm import NVVM

from kernelforge.backends.base import Argument, Limits
from kernelforge.backends.cuda.launch import Launches
from kernelforge.backends.cuda.offline import AMPERE, assemble, native, phase_ptx
from kernelforge.backends.cuda.pending import Pending
from kernelforge.backends.cuda.printer import Phase
from kernelforge.dtypes import DTYPES
from kernelforge.errors import DamagedBinary, DeviceFailed, DeviceForked, DeviceOutOfMemory
from kernelforge.ir.kernel import Kernel

Array = np.ndarray[Any, Any]
BYTE: Any = np.uint8
F32_LANES = 128
"""Multiply-adds on f32 that a multiprocessor of compute capability 8.6 or 9 starts in a cycle (CUDA C Programming
Guide)."""

LEGACY_STREAM = 1
"""``CU_STREAM_LEGACY``; 0 may be another stream for each thread, if the environment asks cuda.bindings for that."""

OUT_OF_MEMORY = 2
"""``CUDA_ERROR_OUT_OF_MEMORY``."""
DIGEST = 32
COMPILERS = ("numba-cuda", "llvmlite", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12")
"""Packages whose version shows in what they compile; a toolkit outside of Python shows by its NVVM and nvJitLink."""


class Memory:
    """Bytes on the device; ``array`` is None once freed, ``lent`` says that someone else owns them."""

    __slots__ = ("address", "array", "lent")

    def __init__(self, array: Any, lent: bool = False) -> None:
        self.array = array
        self.lent = lent
        self.address: int = array.device_ctypes_pointer.value


class CudaExecutable:
    """A compiled kernel.

    Attributes:
        binary: a digest, a line of JSON naming the entries, and the cubins of the wide variant.
        functions: the ``cuda.core`` kernel of each phase, of the wide variant and, once needed, of the narrow one.
    """

    def __init__(self, kernel: Kernel, device: str, cc: tuple[int, int], binary: bytes | None) -> None:
        self.launches = Launches(kernel, simulated=False, ampere=cc >= AMPERE)
        self.source = self.launches.source
        self.configs: dict[tuple[int, int], LaunchConfig] = {}
        self._device, self._cc = device, cc
        made = self._compile(self.launches.wide) if binary is None else unpack(binary, kernel.name)
        self.binary = pack(made) if binary is None else binary
        if len(made) != len(self.launches.wide):
            raise DamagedBinary(kernel=kernel.name, problem=f"it has {len(made)} phases, not {len(self.launches.wide)}")
        self.functions: dict[bool, list[Any]] = {True: load(made, kernel.name)}

    def _compile(self, phases: Sequence[Phase]) -> list[tuple[str, bytes]]:
        made = []
        for phase in phases:
            ptx, entry = phase_ptx(self.launches.kernel, phase, self._cc, self._device)
            made.append((entry, assemble(ptx, "sm_{}{}".format(*self._cc))[0]))
        return made

    def choose(self, addresses: dict[str, int]) -> list[Any]:
        """The functions of the variant that the addresses allow; the scalar one is compiled on first need."""
        wide = self.launches.fits(addresses)
        if wide not in self.functions:
            self.functions[wide] = load(self._compile(self.launches.narrow), self.launches.kernel.name)
        return self.functions[wide]

    def config(self, blocks: int, threads: int) -> LaunchConfig:
        found = self.configs.get((blocks, threads))
        if found is None:
            found = self.configs[blocks, threads] = LaunchConfig(grid=(blocks,), block=(threads,))
        return found


def said(error: Exception) -> str:
    return str(error).strip(" .\n")


def toolchain() -> str:
    """The versions of what compiles: part of the key of a cached binary."""
    parts = [f"nvvm-{NVVM().get_version()}", f"nvjitlink-{nvjitlink.version()}"]
    for name in COMPILERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            parts.append(f"{name}-{metadata.version(name)}")
    return "-".join(parts)


def pack(made: Sequence[tuple[str, bytes]]) -> bytes:
    head = json.dumps([(entry, len(cubin)) for entry, cubin in made]).encode()
    content = head + b"\n" + b"".join(cubin for _, cubin in made)
    return hashlib.sha256(content).digest() + content


def unpack(binary: bytes, kernel: str) -> list[tuple[str, bytes]]:
    """Read what ``pack`` wrote.

    Raises:
        DamagedBinary: when a byte differs.
    """
    content = binary[DIGEST:]
    if hashlib.sha256(content).digest() != binary[:DIGEST]:
        raise DamagedBinary(kernel=kernel, problem="its checksum does not match its content")
    head, _, rest = content.partition(b"\n")
    out = []
    for entry, size in json.loads(head):
        out.append((entry, rest[:size]))
        rest = rest[size:]
    return out


def load(made: Sequence[tuple[str, bytes]], kernel: str) -> list[Any]:
    """Load cubins into the current context.

    Raises:
        DamagedBinary: when the driver does not take one.
    """
    try:
        return [ObjectCode.from_cubin(cubin, name=kernel).get_kernel(entry) for entry, cubin in made]
    except Exception as error:  # cuda.core has no public class of its errors
        raise DamagedBinary(kernel=kernel, problem=f"the driver does not load it ({error})") from error


class Cuda:
    """One GPU."""

    def __init__(self, number: int) -> None:
        self.name = f"cuda:{number}"
        self._process = os.getpid()
        self._device = Device(number)
        self._device.set_current()
        self._stream = Stream.from_handle(LEGACY_STREAM)
        self._pending = Pending(self._record)
        device = cuda.gpus[number]
        self._cc: tuple[int, int] = tuple(device.compute_capability)[:2]
        self.limits = Limits(
            form="group",
            vector_bytes=16,
            vector_registers=128,
            threads=device.MULTIPROCESSOR_COUNT * device.MAX_THREADS_PER_MULTIPROCESSOR,
            group=device.MAX_THREADS_PER_BLOCK,
            local_bytes=device.MAX_SHARED_MEMORY_PER_BLOCK,
            cache_bytes=device.L2_CACHE_SIZE,
            dtypes=frozenset(DTYPES),
            host=False,
            max_args=480,
            fingerprint=f"cuda-sm_{self._cc[0]}{self._cc[1]}-driver-{driver.get_version()}-{toolchain()}",
            native=native(self._cc),
            bandwidth=2e3 * getattr(device, "MEMORY_CLOCK_RATE", 0) * getattr(device, "GLOBAL_MEMORY_BUS_WIDTH", 0) / 8,
            rate=2e3 * device.MULTIPROCESSOR_COUNT * F32_LANES * getattr(device, "CLOCK_RATE", 0),
        )

    def _enter(self) -> None:
        """Make the device's context the calling thread's.

        Raises:
            DeviceForked: in a process forked from the one that opened the device.
        """
        if os.getpid() != self._process:
            raise DeviceForked(device=self.name)
        self._device.set_current()

    def _record(self) -> Any:
        self._enter()
        return self._stream.record()

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Say what the driver says.

        Raises:
            DeviceFailed: for an error of the driver, which may be one of a kernel that was queued before.
        """
        try:
            yield
        except CudaAPIError as error:
            raise DeviceFailed(device=self.name, what=what, reason=said(error)) from error

    def _drop(self) -> None:
        """Drop what the device is done with.

        Raises:
            DeviceFailed: for the error of a kernel that was queued before.
        """
        try:
            self._pending.drop()
        except Exception as error:  # cuda.core has no public class of its errors
            raise DeviceFailed(device=self.name, what="saying how far it is", reason=said(error)) from error

    def allocate(self, nbytes: int) -> Memory:
        self._enter()
        try:
            return Memory(cuda.device_array(nbytes, BYTE))
        except CudaAPIError as error:
            if int(error.code) == OUT_OF_MEMORY:
                raise DeviceOutOfMemory(device=self.name, nbytes=nbytes) from error
            raise DeviceFailed(device=self.name, what=f"allocating {nbytes} bytes", reason=said(error)) from error

    def free(self, handle: Memory) -> None:
        """Drop the memory; the driver frees its own after what is queued."""
        array, handle.array = handle.array, None
        if handle.lent and array is not None:
            self._pending.add(array)

    def upload(self, array: Array | DeviceNDArray) -> Memory:
        if isinstance(array, DeviceNDArray):  # which is on the device, and keeps its memory
            return Memory(array.ravel().view(BYTE), lent=True)
        memory = self.allocate(max(array.nbytes, 1))
        if array.nbytes:
            with self._doing("copying to it"):
                memory.array[: array.nbytes].copy_to_device(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return memory

    def download(self, handle: Memory, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        self._enter()
        out = np.empty(shape, dtype)
        if out.nbytes:
            with self._doing("copying from it"):
                handle.array[offset : offset + out.nbytes].copy_to_host(out.reshape(-1).view(np.uint8))
        return out

    def compile(self, kernel: Kernel, binary: bytes | None = None) -> CudaExecutable:
        self._enter()
        self._drop()
        made = CudaExecutable(kernel, self.name, self._cc, binary)
        weakref.finalize(made, self._pending.add, made.functions).atexit = False
        return made

    def launch(self, executable: CudaExecutable, arguments: Sequence[Argument], params: Sequence[int]) -> None:
        self._enter()
        launches = executable.launches
        pointers = [handle.address + offset for handle, offset in arguments]
        addresses = {a.name: p for a, p in zip(launches.kernel.args, pointers, strict=True)}
        blocks = launches.blocks(params)
        scratch = [self.allocate(n) for n in launches.scratch(params)]
        values = (*pointers, *(memory.address for memory in scratch), *params)
        for function, phase, count in zip(executable.choose(addresses), launches.wide, blocks, strict=True):
            if count:
                try:
                    launch(self._stream, executable.config(count, phase.threads), function, *values)
                except Exception as error:  # cuda.core has no public class of its errors
                    what = f"launching {phase.name} ({count} blocks of {phase.threads} threads)"
                    raise DeviceFailed(device=self.name, what=what, reason=said(error)) from error

    def synchronize(self) -> None:
        self._enter()
        with self._doing("waiting for its kernels"):
            cuda.synchronize()
        self._drop()
