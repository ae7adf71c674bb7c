"""The last passes over a scheduled kernel, before a printer takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kernelforge.ir.kernel import Kernel
from kernelforge.ir.math import expand_math
from kernelforge.ir.passes.guard import guard
from kernelforge.ir.passes.share import share
from kernelforge.ir.passes.widen import widen

KERNEL_PASSES: Final[tuple[tuple[Callable[[Kernel], Kernel], str], ...]] = (
    (guard, "before expressions grow: what stands in an arm of a select could not be shared or moved otherwise"),
    (expand_math, "transcendentals become arithmetic, the same on every device; widen has left them in f32 or f64"),
    (share, "last, so that what the other passes repeat is named once and leaves loops that do not change it"),
)


def finish(kernel: Kernel, native: frozenset[str]) -> Kernel:
    """Rewrite a scheduled kernel to what printers take.

    Args:
        native: the narrow floats that the device's printer converts itself.
    """
    kernel = widen(kernel, native)
    for rewrite, _ in KERNEL_PASSES:
        kernel = rewrite(kernel)
    return kernel
