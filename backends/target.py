"""A target: a processor to compile for that need not be there, and what its compiler says of a kernel.

A ``Target`` has the members of a ``Backend``, so graphs are compiled for it as for a device; it only runs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from kernelforge.errors import CompilerMissing, DeviceUnavailable
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.schedule.limits import Limits


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What one launch of a kernel takes of the processor; None where the compiler does not say.

    Attributes:
        entry: the function's name.
        registers: registers of a work-item; on Intel GPUs those of a hardware thread.
        spills: bytes of registers, and of arrays meant for them, that are kept in memory for want of room; on CPUs also
            what a function saves for its caller, on Intel GPUs registers alone.
        local_bytes: local (shared) memory of a work-group.
        occupancy: the part of a compute unit's hardware threads that can be resident at once, from 0 to 1.
    """

    entry: str
    registers: int | None
    spills: int
    local_bytes: int | None
    occupancy: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """A kernel on a target.

    Attributes:
        assembly: what the target's compiler makes of the source; empty where it is missing.
        usage: one record for each launch, in order.
        missing: which compiler is missing and how to install it; empty where it is there.
    """

    target: str
    kernel: str
    source: str
    assembly: str
    usage: tuple[Usage, ...]
    missing: str = ""


Assembled = tuple[str, tuple[Usage, ...]]
"""The assembly of a kernel and what its launches take."""


class TargetExecutable:
    """A kernel printed for a target; ``report`` compiles it."""

    binary = None

    def __init__(self, target: Target, kernel: Kernel) -> None:
        self.kernel = kernel
        self.source = target.print(kernel)
        self._target = target

    @functools.cached_property
    def report(self) -> Report:
        """What the target's compiler makes of the kernel.

        Raises:
            CompilationFailed: with the compiler's log and the source.
        """
        name = self._target.name
        try:
            assembly, usage = self._target.assemble(self.kernel)
        except CompilerMissing as error:
            return Report(name, self.kernel.name, self.source, "", (), str(error))
        return Report(name, self.kernel.name, self.source, assembly, usage)


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A processor to compile for.

    Attributes:
        print: gives the source of a kernel.
        assemble: compiles a kernel; raises ``CompilerMissing`` where the compiler is not installed.
    """

    name: str
    limits: Limits
    print: Callable[[Kernel], str]
    assemble: Callable[[Kernel], Assembled]

    def compile(self, kernel: Kernel, binary: bytes | None = None) -> TargetExecutable:
        return TargetExecutable(self, kernel)

    def upload(self, array: np.ndarray[Any, Any]) -> Any:
        """Keep the array: the constants of a plan that is not run."""
        return array

    def free(self, handle: Any) -> None:
        """Do nothing."""

    def allocate(self, nbytes: int) -> NoReturn:
        raise self._absent()

    def download(self, handle: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NoReturn:
        raise self._absent()

    def launch(self, executable: Any, arguments: Any, params: Any) -> NoReturn:
        raise self._absent()

    def synchronize(self) -> NoReturn:
        raise self._absent()

    def _absent(self) -> DeviceUnavailable:
        return DeviceUnavailable(reason=f"{self.name} is a target to compile for; kernels run on devices only")
