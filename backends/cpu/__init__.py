"""The CPU backend, through llvmlite, which is imported when a kernel is first compiled."""

from kernelforge.backends.cpu.backend import CpuBackend, devices

__all__ = ["CpuBackend", "devices"]
