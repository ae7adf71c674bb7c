"""What a device is to the rest of the package: its limits and nine members.

A backend knows kernels, bytes and launches; it does not know graphs. A third party adds one by an entry point in
the group ``kernelforge.backends`` and proves it with ``kernelforge.testing.check_backend``.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from kernelforge.ir.kernel import Kernel
from kernelforge.ir.schedule.limits import Form, Limits

__all__ = [
    "Argument", "Backend", "Call", "Direct", "Entry", "Executable", "Form", "Guards", "Limits", "Printing", "Result",
]  # fmt: skip


class Executable(Protocol):
    """A compiled kernel; one that weak references can be made to."""

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
        """Return a handle to the array's elements; a ``host`` backend shares the memory, at its strides, and keeps it
        alive.

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


class Result(NamedTuple):
    """What a call returns one of.

    Attributes:
        make: makes it, with memory of the device's pool.
        taken: the argument in whose memory it is made instead.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    make: Callable[[], Any]
    taken: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a call does, for a backend that can do all of it at once.

    The memory of a call is a list of slots: its arguments, ``consts``, the results, the arena, and places in these.

    Attributes:
        array, buffer, pooled: the classes of results, of memory, and of memory that nothing but its array sees.
        given: the arguments that are donated, arrays of the device.
        gone: stands for their memory afterwards.
        consts: handles.
        arena: makes the buffer of the arena; None without one.
        room: bytes of the arena.
        places: the slot that each is in, and how many bytes from its beginning.
        launches: executables, and the slots each one takes.
        work: bytes moved and operations done, for a guess of how long it takes; infinite where nobody knows.
        finish: makes what is returned from the tuple of results; None stands for the only result itself.
    """

    backend: Backend
    array: type
    buffer: type
    pooled: type
    given: tuple[int, ...]
    gone: Any
    consts: tuple[Any, ...]
    results: tuple[Result, ...]
    arena: Callable[[], Any] | None
    room: int
    places: tuple[tuple[int, int], ...]
    launches: tuple[tuple[Any, tuple[int, ...]], ...]
    work: float
    finish: Callable[[Any], Any] | None


Guards = tuple[tuple[contextvars.ContextVar[Any], object], ...]


class Entry(Protocol):
    """A call that was prepared."""

    def under(self, guards: Guards, otherwise: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the call where the context variables have these values and the arguments match.

        Elsewhere it calls ``otherwise`` with what it was given.
        """
        ...


@runtime_checkable
class Printing(Protocol):
    """What a backend may have besides its nine members: ``compile`` in two halves.

    Printing takes Python's lock as scheduling does, so one thread does both; others are left to the compiler. With one
    of ``Limits.compilers`` the kernels of a plan are built together.
    """

    def printed(self, kernel: Kernel) -> Any:
        """Return what ``build`` takes.

        Raises:
            CompilationFailed: for what the printer refuses.
        """
        ...

    def build(self, kernels: Sequence[Kernel], printed: Sequence[Any]) -> Sequence[Executable]:
        """Compile what was printed of different kernels, in any thread; their ``binary`` may be one object.

        Raises:
            CompilationFailed: with the compiler's log and the source.
        """
        ...


@runtime_checkable
class Direct(Protocol):
    """What a backend may have besides its nine members: calls with no Python between arguments and kernels."""

    def entry(self, call: Call, like: Sequence[Any]) -> Entry | None:
        """Prepare a call for arguments like these: arrays of NumPy and of ``call.array``, and Python numbers.

        Returns None where it cannot; calls then go through the other members.
        """
        ...
