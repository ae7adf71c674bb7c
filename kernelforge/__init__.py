"""kernelforge: write NumPy, get fused kernels, forward and backward, on every vendor's device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import kernelforge.factors as _factors
import kernelforge.ir.ops as _ops
import kernelforge.systems as _systems
from kernelforge import errors, numpy, random
from kernelforge.array import Array, asarray
from kernelforge.batches import vmap
from kernelforge.config import config
from kernelforge.control import cond, fori_loop, scan, while_loop
from kernelforge.custom import custom_vjp
from kernelforge.devices import default_device, devices
from kernelforge.errors import KernelforgeError
from kernelforge.jit import jit
from kernelforge.transforms import (
    checkpoint,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stop_gradient,
    value_and_grad,
    vjp,
)

if TYPE_CHECKING:
    from kernelforge import nn, optim, testing
    from kernelforge.tuner import tune

assert _ops.PRIMITIVES
assert _systems.solve
assert _factors.qr

__all__ = [
    "Array",
    "KernelforgeError",
    "asarray",
    "checkpoint",
    "cond",
    "config",
    "custom_vjp",
    "default_device",
    "devices",
    "errors",
    "fori_loop",
    "grad",
    "hessian",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "nn",
    "numpy",
    "optim",
    "random",
    "scan",
    "stop_gradient",
    "testing",
    "tune",
    "value_and_grad",
    "vjp",
    "vmap",
    "while_loop",
]


def __getattr__(name: str) -> Any:
    # on first use: many programs need none of them, and testing loads hypothesis
    if name in ("nn", "optim", "testing"):
        return importlib.import_module(f"kernelforge.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("kernelforge")
    if name == "tune":
        return importlib.import_module("kernelforge.tuner").tune
    raise AttributeError(f"module 'kernelforge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
