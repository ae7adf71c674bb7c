"""What a device is to the rest of the package: its limits and nine members.

A backend knows kernels, bytes and launches; it does not know graphs. A third party adds one by an entry point in
the group ``kernelforge.backends`` and proves it with ``kernelforge.testing.check_backend``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from kernelforge.ir.kernel import Kernel

Form = Literal["serial", "vector", "group"]


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What the cost model and the recipes ask of a device.

    Attributes:
        form: which schedules fit: ``serial`` runs the naive nest; ``vector`` gives a thread a slice of the grid and uses
            SIMD lanes (CPUs, also under OpenCL); ``group`` has work-groups with local memory and barriers (GPUs).
        vector_bytes: width of a SIMD register, or of the widest useful load on a ``group`` device.
        vector_registers: number of SIMD registers (``vector`` form).
        threads: hardware threads that run at once (``vector`` form), or resident work-items (``group`` form).
        group: most work-items in a work-group.
        local_bytes: local (shared) memory of a work-group; for ``vector`` form the L1 data cache.
        cache_bytes: second-level cache of a thread.
        dtypes: short names of the dtypes that can be stored and computed with.
        host: whether kernels read and write host memory in place, at any strides.
        max_args: most buffers one launch can take.
        fingerprint: versions of compiler and driver and the target; part of the key of the disk cache.
    """

    form: Form
    vector_bytes: int
    vector_registers: int
    threads: int
    group: int
    local_bytes: int
    cache_bytes: int
    dtypes: frozenset[str]
    host: bool
    max_args: int
    fingerprint: str


class Executable(Protocol):
    """A compiled kernel."""

    @property
    def source(self) -> str:
        """What was printed for the compiler."""
        ...

    @property
    def binary(self) -> bytes | None:
        """What the disk cache keeps; None where the device has nothing to keep."""
        ...


Argument = tuple[Any, int]
"""A handle of this backend and an offset into it in bytes, a multiple of the element's size."""


class Backend(Protocol):
    """A device. Handles are opaque to everyone else. All members may be called from any thread."""

    @property
    def name(self) -> str:
        """Name the device as users select it: ``cpu``, ``opencl:0``, ``cuda:0``, ``reference``."""
        ...

    @property
    def limits(self) -> Limits: ...

    def allocate(self, nbytes: int) -> Any:
        """Return a handle to uninitialised memory, aligned to at least 64 bytes; ``nbytes`` is at least 1.

        Raises:
            DeviceOutOfMemory: when the device has no room.
        """
        ...

    def free(self, handle: Any) -> None:
        """Give memory back; launches already queued still finish on it."""
        ...

    def upload(self, array: np.ndarray[Any, Any]) -> Any:
        """Return a handle to the array's elements; a ``host`` backend shares the memory, at its strides, and keeps it alive.

        Other backends copy to row-major order.
        """
        ...

    def download(self, handle: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Wait, and return row-major elements from ``offset`` bytes on; a ``host`` backend returns a view."""
        ...

    def compile(self, kernel: Kernel, binary: bytes | None = None) -> Executable:
        """Print and compile, or load ``binary`` that an earlier process got for the same text and fingerprint.

        Raises:
            CompilationFailed: with the compiler's log and the source.
            DamagedBinary: when ``binary`` cannot be loaded; the caller then compiles afresh.
        """
        ...

    def launch(self, executable: Any, arguments: Sequence[Argument], params: Sequence[int]) -> None:
        """Run or queue the kernel; launches and downloads of one thread happen in order."""
        ...

    def synchronize(self) -> None:
        """Wait for all launches."""
        ...
