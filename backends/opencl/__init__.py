"""OpenCL devices of every vendor, through pyopencl."""

from __future__ import annotations

from kernelforge.backends.base import Backend


def devices() -> dict[str, Backend]:
    """Return the devices of all OpenCL runtimes, also of those that came as wheels, as ``opencl:0`` and so on.

    Raises:
        DeviceUnavailable: when pyopencl is missing, or finds no runtime or none that can compile.
    """
    from kernelforge.backends.opencl.backend import open_devices

    return open_devices()
