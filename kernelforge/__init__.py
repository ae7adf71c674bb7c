"""kernelforge: write NumPy, get fused kernels."""

from __future__ import annotations

import kernelforge.ir.ops as _ops
from kernelforge import numpy
from kernelforge.array import Array, asarray
from kernelforge.config import config
from kernelforge.devices import default_device, devices
from kernelforge.jit import jit

__all__ = ["Array", "asarray", "config", "default_device", "devices", "jit", "numpy"]
