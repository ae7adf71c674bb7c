"""Finding OpenCL runtimes, also those that came as wheels, with nothing set by the user.

What the loader does that pyopencl's Linux wheels bundle (ocl-icd, tried with pyopencl 2026.1):

- It reads the ``.icd`` files of one folder, once, when platforms are first asked for: ``OCL_ICD_VENDORS`` where that
  is set, else ``/etc/OpenCL/vendors``. Each file holds the path of a runtime's library. A folder that does not exist
  is an error. Khronos' loader, which other builds of pyopencl use, takes the same variable.
- It always reads pyopencl's own folder too, and there the wheel ``pocl-binary-distribution`` puts PoCL. Nothing is to
  be done for PoCL; a folder that names it as well makes its platform appear twice. That wheel (3.0, LLVM 14) compiles
  nothing on a processor that its LLVM does not know (Zen 5), miscompiles on one that it takes for an older one (Zen 4),
  and reads no variable that would name another one; Debian's ``pocl-opencl-icd`` (3.1) does, and both may be there.
- The wheel ``intel-opencl-rt`` puts ``libintelocl.so`` into the environment's ``lib`` folder, and its ``.icd`` file,
  which names the folder of the machine it was built on, where no loader looks. Its libraries find each other by a
  relative run path, so nothing has to be preloaded and ``LD_LIBRARY_PATH`` is not needed.

So a folder with the system's ``.icd`` files and one for each library found in a wheel is made for the one moment in
which the loader reads it. A user who sets ``OCL_ICD_VENDORS`` is left alone. A program that asked pyopencl for
platforms before kernelforge did gets what the loader found then. On Windows the loader reads the registry, and
nothing is added.

Intel's CPU runtime (2026.2), compiling for AVX-512, moves scalar integer minima, maxima and magnitudes to vector
registers by a pass of LLVM that is wrong: of 400 random kernels, 8 got addresses made with the wrong register, or a
comparison that writes a mask where a vector is meant. Without that pass all were right. So it is told to leave the
pass out, by the variable that it reads when it first compiles.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

WHEELS = {"intel-opencl-rt": "libintelocl.so"}
"""Distribution to the start of the name of the library that it brings, for those that the loader does not find."""

OPTIONS, WITHOUT = "CL_CONFIG_LLVM_OPTIONS", "-disable-x86-scalar-to-vector"

TARGET = "CL_CONFIG_CPU_TARGET_ARCH"
"""The variable by which a user chooses what Intel's CPU runtime compiles for."""

SYSTEM = pathlib.Path("/etc/OpenCL/vendors")
VARIABLE = "OCL_ICD_VENDORS"


def libraries() -> list[pathlib.Path]:
    """Return the runtimes in installed wheels that the loader would not find."""
    found = []
    for wheel, name in WHEELS.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            files = importlib.metadata.distribution(wheel).files or ()
            paths = sorted(
                pathlib.Path(str(f.locate())).resolve()
                for f in files
                if f.name.startswith(name) and ".py" not in f.name
            )
            found += [p for p in paths if p.is_file()][:1]
    return found


def options() -> str:
    """Return what Intel's CPU runtime is told to hand to LLVM: what the user says, and to leave out the wrong pass."""
    given = os.environ.get(OPTIONS, "")
    return given if WITHOUT in given else f"{given} {WITHOUT}".strip()


@contextlib.contextmanager
def vendors() -> Iterator[None]:
    """Let the loader find the wheels' runtimes and the system's while the body runs."""
    with tempfile.TemporaryDirectory(prefix="kernelforge-icd-") as folder, contextlib.ExitStack() as undo:
        found = libraries()
        if found and VARIABLE not in os.environ and sys.platform != "win32":
            for file in sorted(SYSTEM.glob("*.icd")):
                shutil.copy(file, folder)
            for library in found:
                pathlib.Path(folder, f"{library.name}.icd").write_text(f"{library}\n")
            undo.callback(os.environ.pop, VARIABLE)
            os.environ[VARIABLE] = folder
        yield


@functools.cache
def discover() -> tuple[Any, ...]:
    """Return the ``pyopencl.Device`` objects: GPUs first, then accelerators, then CPUs, each kind by platform and
    number.

    Raises:
        pyopencl.Error: when the loader finds no platform.
    """
    import pyopencl as cl

    os.environ[OPTIONS] = options()
    with vendors():
        # one library that two .icd files name is two platforms with the same text
        distinct = {(p.vendor, p.name, p.version): p for p in reversed(cl.get_platforms())}
        found = [d for _, p in sorted(distinct.items()) for d in _devices(p)]
    kinds = (cl.device_type.GPU, cl.device_type.ACCELERATOR, cl.device_type.CPU)
    return tuple(d for kind in kinds for d in found if d.type & kind)


def _devices(platform: Any) -> list[Any]:
    import pyopencl as cl

    try:
        return list(platform.get_devices())
    except cl.Error as error:
        if error.code == cl.status_code.DEVICE_NOT_FOUND:
            return []
        raise
