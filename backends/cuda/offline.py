"""Kernel to PTX and to cubin, on machines with and without a GPU.

Numba's front end and NVVM compile; nvJitLink assembles. NVVM is told not to fuse multiplications and additions, which
its own dispatcher would do: a kernel rounds once an operation, as it says.
"""

# numba and NVIDIA's packages fill their modules when they load
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import functools
import linecache
import re
from typing import Any, NamedTuple

from cuda.bindings import nvjitlink
from numba.core.errors import NumbaError
from numba.cuda import types
from numba.cuda.compiler import compile_cuda, kernel_fixup
from numba.cuda.cudadrv import nvvm
from numba.cuda.cudadrv.error import NvvmError

from kernelforge.backends.cuda.lib import STORED, namespace
from kernelforge.backends.cuda.mma import NARROW
from kernelforge.backends.cuda.occupancy import occupancy
from kernelforge.backends.cuda.printer import Phase, print_kernel, scratch
from kernelforge.backends.target import Assembled, Target, Usage
from kernelforge.errors import CompilationFailed
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.schedule.limits import Limits

AMPERE = (8, 0)
"""The compute capability from which on there are ``cp.async``, ``cvt.rn.bf16.f32``, ``mma.sync`` of bf16 and tf32."""


OLDEST = (7, 5)


def native(cc: tuple[int, int]) -> frozenset[str]:
    """Return what ``Limits.native`` says of a compute capability."""
    return frozenset({"async", "mma", "tf32", *NARROW}) if cc >= AMPERE else frozenset()


class Report(NamedTuple):
    """What the assembler says of a kernel: registers a thread, bytes of its stack, which spills go to, bytes of
    shared memory.
    """

    registers: int
    spills: int
    shared: int


def function(phase: Phase) -> Any:
    """Make the Python function of a phase."""
    file = f"<kernelforge {phase.name}>"
    linecache.cache[file] = (len(phase.source), None, phase.source.splitlines(keepends=True), file)
    made = namespace()
    exec(compile(phase.source, file, "exec"), made)  # noqa: S102 - the printer's own text
    return made[phase.name]


def argument_types(kernel: Kernel) -> tuple[Any, ...]:
    """The numba types of what a phase is called with: pointers, then params."""
    buffers = [a.dtype for a in kernel.args] + [a.dtype for a in scratch(kernel)]
    return (*(types.CPointer(STORED[dtype]) for dtype in buffers), *(types.int64 for _ in kernel.params))


def phase_ptx(kernel: Kernel, phase: Phase, cc: tuple[int, int], device: str = "cuda") -> tuple[str, str]:
    """Compile one phase; return its PTX and the name of its entry.

    Raises:
        CompilationFailed: with numba's or NVVM's message.
    """
    try:
        library, entry = _translated(phase, argument_types(kernel), cc >= AMPERE)
        return library.get_asm_str(cc=cc), entry
    except (NumbaError, NvvmError) as error:
        source = f"\n{phase.source}"
        raise CompilationFailed(kernel=kernel.name, device=device, log=str(error), source=source) from error


@functools.lru_cache(maxsize=8)
def _translated(phase: Phase, given: tuple[Any, ...], ampere: bool) -> tuple[Any, str]:
    """Return a phase in NVVM's language, and the name of its entry: numba's front end takes most of the time, and what
    it makes goes to NVVM for one compute capability after another.
    """
    options = {"opt": 3, "fma": 0}
    result = compile_cuda(function(phase), types.void, given, nvvm_options=options, cc=AMPERE if ampere else OLDEST)
    entry = result.library.get_function(result.fndesc.llvm_func_name)
    kernel_fixup(entry, False)
    nvvm.set_launch_bounds(entry, phase.threads)
    return result.library, entry.name


def compile_ptx(kernel: Kernel, cc: tuple[int, int] = (9, 0), wide: bool = True) -> str:
    """Compile all phases of a kernel for a compute capability; no driver is needed.

    Raises:
        CompilationFailed: with numba's or NVVM's message.
        MalformedKernel: for what has no meaning on a GPU.
    """
    phases = print_kernel(kernel, wide, ampere=cc >= AMPERE)
    return "\n".join(phase_ptx(kernel, phase, cc)[0] for phase in phases)


def modules(ptx: str) -> list[str]:
    """The modules that ``compile_ptx`` put one after another."""
    return [part for part in re.split(r"(?m)^(?=\.version )", ptx) if part.startswith(".version")]


def assemble(ptx: str, arch: str) -> tuple[bytes, str]:
    """Assemble one module of PTX (``arch``: ``sm_90``); return the cubin and the assembler's log.

    Raises:
        CompilationFailed: with the assembler's log.
    """
    options = [f"-arch={arch}", "-O3", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        data = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel.ptx")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        return bytes(cubin), _log(handle, nvjitlink.get_info_log_size, nvjitlink.get_info_log)
    except nvjitlink.nvJitLinkError as error:
        log = _log(handle, nvjitlink.get_error_log_size, nvjitlink.get_error_log)
        raise CompilationFailed(kernel="", device=arch, log=f"{error}\n{log}", source=f"\n{ptx}") from error
    finally:
        nvjitlink.destroy(handle)


def _log(handle: int, size: Any, get: Any) -> str:
    log = bytearray(size(handle))
    if log:
        get(handle, log)
    return log.decode(errors="replace").rstrip("\0")


def ptx_report(ptx: str, arch: str) -> Report:
    """Assemble every module of ``ptx`` and report the most registers, all spills, and the most shared memory."""
    reports = [_read(assemble(module, arch)[1]) for module in modules(ptx)]
    return Report(
        max((r.registers for r in reports), default=0),
        sum(r.spills for r in reports),
        max((r.shared for r in reports), default=0),
    )


def nvidia(name: str, arch: str, limits: Limits) -> Target:
    """Return an NVIDIA GPU as a target."""
    digits = arch.removeprefix("sm_")
    cc = int(digits[:-1]), int(digits[-1])

    def printed(kernel: Kernel) -> tuple[Phase, ...]:
        return print_kernel(kernel, ampere=cc >= AMPERE)

    def assembled(kernel: Kernel) -> Assembled:
        parts, usage = [], []
        for phase in printed(kernel):
            ptx, _ = phase_ptx(kernel, phase, cc, name)
            found = ptx_report(ptx, arch)
            held = occupancy(arch, phase.threads, found.registers, found.shared)
            parts.append(ptx)
            usage.append(Usage(phase.name, found.registers, found.spills, found.shared, held))
        return "\n".join(parts), tuple(usage)

    limits = dataclasses.replace(limits, native=native(cc))
    return Target(name, limits, lambda k: "\n".join(p.source for p in printed(k)), assembled)


def _read(log: str) -> Report:
    def numbers(pattern: str) -> list[int]:
        return [int(n) for n in re.findall(pattern, log)]

    registers = numbers(r"Used (\d+) registers")
    return Report(
        max(registers), sum(numbers(r"(\d+) bytes stack frame")), max(numbers(r"(\d+) bytes smem"), default=0)
    )
