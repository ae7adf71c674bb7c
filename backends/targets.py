"""The targets that kernels are compiled for without the device: a table, and any processor that LLVM knows.

``cuda:sm_90``, ``opencl:gfx90a``, ``opencl:pvc``, ``cpu:neoverse-v2``. A GPU's row says what its maker's documents say:
the CUDA C++ Programming Guide ("Technical Specifications per Compute Capability"), AMD's instruction set documents, and
Intel's oneAPI GPU Optimization Guide; ``units`` is that of the largest product, and only decides how far reductions
are spread.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib

from kernelforge.backends.target import Target
from kernelforge.dtypes import DTYPES
from kernelforge.errors import DeviceUnavailable, MissingExtra, UnknownTarget
from kernelforge.ir.schedule.limits import Limits

EVERY = frozenset(DTYPES)


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's architecture.

    Attributes:
        maker: whose offline compiler it needs.
        units: compute units (streaming multiprocessors, Xe cores).
        resident: work-items resident on a unit.
        local_bytes: most local memory of a work-group.
        cache_bytes: second-level cache.
    """

    maker: str
    units: int
    resident: int
    local_bytes: int
    cache_bytes: int
    dtypes: frozenset[str] = EVERY


GPUS = {
    "cuda:sm_75": Gpu("nvidia", 72, 1024, 48 << 10, 6 << 20),
    "cuda:sm_80": Gpu("nvidia", 108, 2048, 48 << 10, 40 << 20),
    "cuda:sm_86": Gpu("nvidia", 84, 1536, 48 << 10, 6 << 20),
    "cuda:sm_89": Gpu("nvidia", 142, 1536, 48 << 10, 96 << 20),
    "cuda:sm_90": Gpu("nvidia", 132, 2048, 48 << 10, 50 << 20),
    "cuda:sm_100": Gpu("nvidia", 148, 2048, 48 << 10, 126 << 20),
    "cuda:sm_120": Gpu("nvidia", 188, 1536, 48 << 10, 128 << 20),
    "opencl:gfx90a": Gpu("amd", 110, 2048, 64 << 10, 8 << 20),
    "opencl:gfx942": Gpu("amd", 304, 2048, 64 << 10, 4 << 20),
    "opencl:gfx1030": Gpu("amd", 80, 2048, 64 << 10, 4 << 20),
    "opencl:gfx1100": Gpu("amd", 96, 2048, 64 << 10, 6 << 20),
    "opencl:pvc": Gpu("intel", 128, 2048, 128 << 10, 408 << 20),
    "opencl:dg2": Gpu("intel", 32, 4096, 64 << 10, 16 << 20, EVERY - {"f64"}),
    "opencl:tgllp": Gpu("intel", 6, 3584, 64 << 10, 4 << 20, EVERY - {"f64"}),
}

OFFLINE = {"nvidia": "cuda.offline", "amd": "opencl.offline", "intel": "opencl.offline"}
"""The modules that make the targets of each maker, by a function of the architecture and its limits."""


@functools.cache
def target(name: str) -> Target:
    """Return the target ``name``.

    Raises:
        UnknownTarget: when there is no such target.
        MissingExtra: when a package that its printer needs is not installed.
        DeviceUnavailable: for an NVIDIA GPU while numba simulates one.
    """
    family, _, arch = name.partition(":")
    if family == "cpu" and arch:
        from kernelforge.backends.cpu.offline import target as processor

        return processor(arch)
    row = GPUS.get(name)
    if row is None:
        near = difflib.get_close_matches(name, GPUS, 1)
        reason = f"; did you mean {near[0]!r}?" if near else ""
        expected = (
            f"{', '.join(GPUS)}, and cpu: followed by any processor that LLVM knows (cpu:znver4, cpu:neoverse-v2)"
        )
        raise UnknownTarget(name=name, expected=expected, reason=reason)
    limits = Limits(
        form="group",
        vector_bytes=16,
        vector_registers=128,
        threads=row.units * row.resident,
        group=1024,
        local_bytes=row.local_bytes,
        cache_bytes=row.cache_bytes,
        dtypes=row.dtypes,
        host=False,
        max_args=480 if row.maker == "nvidia" else 56,
        fingerprint=name,
    )
    try:
        offline = importlib.import_module(f"kernelforge.backends.{OFFLINE[row.maker]}")
    except ImportError as error:
        if "simulator" in (error.name or ""):
            reason = "numba runs its simulator, which has no compiler for targets; unset NUMBA_ENABLE_CUDASIM"
            raise DeviceUnavailable(reason=reason) from error
        raise MissingExtra(what=f"the target {name}", package=error.name or "numba-cuda", extra=family) from error
    made: Target = getattr(offline, row.maker)(name, arch, limits)
    return made
