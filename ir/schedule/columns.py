"""The recipe for reductions across memory: sums of columns, running sums of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kernelforge.ir.kernel import For, Kernel
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.nests import grid, size
from kernelforge.ir.schedule.steps import bind, fission, loops, reorder, split


def vector_column(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    """Reduce across memory: lanes own columns, and walk the rows together."""
    last = parallel[-1]
    name, n = last.var.name, last.static or 0
    outer = size(parallel[:-1])
    enough = 8 * limits.threads
    names = [p.var.name for p in parallel]
    if width == 1 or n < width:
        return grid(kernel, names, enough)
    unroll = max(u for u in (4, 2, 1) if u == 1 or (n >= u * width and outer * (n // (u * width)) >= limits.threads))
    unroll = min(limits.choose("columns", unroll, (1, 2, 4, 8)), n // width)
    kernel = split(kernel, name, unroll * width, name, f"{name}i", "cut")
    if unroll > 1:
        kernel = split(kernel, f"{name}i", width, f"{name}u", f"{name}v", "exact")
        tile = [f"{name}v", f"{name}u"]
    else:
        tile = [f"{name}i"]
    kernel = _tile(kernel, tile)
    if unroll > 1 and n % (unroll * width) >= width:
        kernel = split(kernel, f"{name}i_t", width, f"{name}r", f"{name}w", "cut")
        kernel = _tile(kernel, [f"{name}w"])
    return grid(kernel, names, enough)


def _tile(kernel: Kernel, names: Sequence[str]) -> Kernel:
    """Make register tiles of the scalars inside the loops ``names`` (innermost first) and run the first in lanes."""
    for name in names:
        kernel = fission(kernel, name)
    for name in names:
        for inner in dict.fromkeys(_inside(kernel, name, names)):
            kernel = reorder(kernel, name, inner)
    for name in names[1:]:
        kernel = bind(kernel, name, "unroll")
    return bind(kernel, names[0], "vector")


def _inside(kernel: Kernel, name: str, tile: Sequence[str]) -> Iterator[str]:
    """Yield the loops that stand directly in a loop over ``name``, from the outermost on."""
    for loop in loops(kernel, name):
        body = loop.body
        while len(body) == 1 and isinstance(body[0], For) and body[0].var.name not in tile:
            yield body[0].var.name
            body = body[0].body
