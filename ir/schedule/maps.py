"""The recipes for maps: every element on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kernelforge.ir.kernel import For, Kernel, Var, i64
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.nests import grid, size, unit
from kernelforge.ir.schedule.steps import bind, loops, split
from kernelforge.ir.schedule.steps import fuse as fuse_loops

CHUNK = 16384
"""Elements of a map that one grid iteration of a ``vector`` device takes: small beside L2, large beside a launch."""


def vector_map(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    last = parallel[-1]
    name, n = last.var.name, last.static or 0
    outer = size(parallel[:-1])
    wanted = 8 * limits.threads
    if outer < wanted and outer * n > CHUNK:
        pieces = -(-wanted // outer)
        chunk = max(min(CHUNK, n // pieces), 1024) // 64 * 64
        if n > chunk:
            kernel = split(kernel, name, chunk, f"{name}g", name, "clip")
            kernel = in_lanes(kernel, dataclasses.replace(last, extent=i64(chunk)), width)
            return grid(kernel, [*(p.var.name for p in parallel[:-1]), f"{name}g"], 1 << 62)
    kernel = in_lanes(kernel, last, width)
    return grid(kernel, [p.var.name for p in parallel[:-1]], wanted) if len(parallel) > 1 else _solo(kernel)


def _solo(kernel: Kernel) -> Kernel:
    """Put a small nest under one grid iteration."""
    return dataclasses.replace(kernel, body=(For(Var("g", "i64", 1), i64(1), "grid", kernel.body),))


def in_lanes(kernel: Kernel, loop: For, width: int) -> Kernel:
    """Run a parallel loop in lanes, the rest one by one."""
    name = loop.var.name
    if width == 1 or (loop.static or 0) < width or not unit(loop):
        return kernel
    kernel = split(kernel, name, width, name, f"{name}v", "cut")
    return bind(kernel, f"{name}v", "vector")


def group_map(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    """One work-item an element, or as many side by side as one wide load takes."""
    kernel, name = flat(kernel, parallel, "f")
    if width > 1:
        # only split does the fused loop show what lies side by side
        wide = split(kernel, name, width, name, f"{name}v", "part")
        if any(unit(loop) for loop in loops(wide, f"{name}v")):
            kernel = bind(wide, f"{name}v", "vector")
    count = min(limits.group, 256)
    kernel = split(kernel, name, count, f"{name}g", f"{name}t", "guard")
    return bind(bind(kernel, f"{name}g", "grid"), f"{name}t", "group")


def flat(kernel: Kernel, parallel: Sequence[For], name: str) -> tuple[Kernel, str]:
    """Make one loop of the nested parallel ones; return its name."""
    current = parallel[0].var.name
    for k, loop in enumerate(parallel[1:]):
        following = f"{name}{k}"
        kernel = fuse_loops(kernel, current, loop.var.name, following)
        current = following
    return kernel, current
