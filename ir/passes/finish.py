"""The last passes over a scheduled kernel, before a printer takes it."""

from __future__ import annotations

from kernelforge.ir.kernel import Kernel
from kernelforge.ir.math import expand_math
from kernelforge.ir.passes.branch import branch
from kernelforge.ir.passes.contract import contract
from kernelforge.ir.passes.guard import guard
from kernelforge.ir.passes.share import share
from kernelforge.ir.passes.widen import widen


def finish(kernel: Kernel, native: frozenset[str], fast: bool = False) -> Kernel:
    """Rewrite a scheduled kernel to what printers take.

    Args:
        native: what the device has instructions for; see ``Limits``.
        fast: whether products and sums may be rounded together.
    """
    # first, so that every transcendental is in f32 or f64
    kernel = widen(kernel, native)
    # before expressions grow: what stands in an arm of a select could not be shared or moved otherwise
    kernel = guard(kernel)
    # the same arithmetic on every device
    kernel = expand_math(kernel, native)
    if fast:
        kernel = contract(kernel)
    # what is rare in a function costs a test
    kernel = branch(kernel)
    # last: what the others repeat is named once, and leaves loops that do not change it
    return share(kernel)
