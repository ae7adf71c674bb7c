"""The recipes for reductions along memory: softmax, norms, sums of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kernelforge.ir.index import affine
from kernelforge.ir.kernel import Alloc, For, If, Kernel, Stmt, Store, Var, i64, stmts
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.maps import in_lanes
from kernelforge.ir.schedule.nests import grid, loads, unit
from kernelforge.ir.schedule.steps import bind, loops, reorder, rfactor, split, tree

BLOCK = 1 << 13
"""Elements of a row that are summed before their sum is added to the total: so the rounding error of a long row grows
with the number of blocks and not with the number of elements."""


def vector_row(kernel: Kernel, parallel: Sequence[For], body: Sequence[Stmt], limits: Limits, width: int) -> Kernel:
    """One row after the other, each along memory in lanes."""
    for name in [s.var.name for s in body if isinstance(s, For)]:
        for loop in loops(kernel, name)[:1]:
            inner = [s for s in stmts((loop,)) if isinstance(s, For)][-1]
            change = _lane_reduction if inner.kind == "serial" else in_lanes
            kernel = change(kernel, inner, width)
    return grid(kernel, [p.var.name for p in parallel], 8 * limits.threads)


def _lane_reduction(kernel: Kernel, loop: For, width: int) -> Kernel:
    """Reduce along memory: four accumulators of one register each, then fewer, then lane by lane in a fixed tree."""
    name, n = loop.var.name, loop.static
    most = n if n is not None else (loop.var.bound or 0)
    if width == 1 or most < width or any(affine(e.index[0], loop.var) not in (0, 1) for e in loads(loop.body)):
        return kernel
    if most > BLOCK:
        kernel = split(kernel, name, BLOCK, f"{name}c", name, "cut")
        for part in (name, f"{name}_t"):
            for inner in loops(kernel, part)[:1]:
                kernel = _lane_reduction(kernel, inner, width)
        return kernel
    if n is None:
        kernel = split(kernel, name, width, name, f"{name}v", "cut")
        return bind(rfactor(kernel, name, f"{name}v", f"{name}in_lanes"), f"{name}v", "vector")
    unroll = 4 if n >= 8 * width else 1
    if unroll > 1:
        kernel = split(kernel, name, unroll * width, name, f"{name}i", "cut")
        kernel = split(kernel, f"{name}i", width, f"{name}u", f"{name}v", "exact")
        kernel = rfactor(kernel, name, f"{name}v", f"{name}in_lanes")
        kernel = rfactor(kernel, name, f"{name}u", f"{name}_units")
        kernel = bind(kernel, f"{name}u", "unroll")
        rest, tail = n % (unroll * width), f"{name}i_t"
    else:
        rest, tail = n, name
    if rest >= width:
        kernel = split(kernel, tail, width, f"{tail}o", f"{tail}v", "cut")
        kernel = rfactor(kernel, f"{tail}o", f"{tail}v", f"{tail}in_lanes")
        kernel = bind(kernel, f"{tail}v", "vector")
    return bind(kernel, f"{name}v", "vector") if unroll > 1 else kernel


def group_row(kernel: Kernel, parallel: Sequence[For], body: Sequence[Stmt], limits: Limits, width: int) -> Kernel:
    """One work-group a row: work-items take every ``count``-th element, or as many side by side as one wide load takes;
    then they fold by halves in local memory.
    """
    walks = {s.var.name: [t for t in stmts((s,)) if isinstance(t, For)] for s in body if isinstance(s, For)}
    widths = {name: width if (w[-1].static or 1) % width == 0 and unit(w[-1]) else 1 for name, w in walks.items()}
    widest = max((-(-(w[0].static or 1) // widths[name]) for name, w in walks.items()), default=1)
    count = 1 << max(0, min(limits.group, 256, widest).bit_length() - 1)
    for first, walk in walks.items():
        name = walk[-1].var.name
        if widths[first] > 1:
            kernel = split(kernel, name, widths[first], name, f"{name}v", "exact")
        kernel = split(kernel, name, count, f"{name}o", f"{name}t", "guard")
        path = [*(s.var.name for s in walk[:-1]), f"{name}o"]
        if walk[0].kind == "serial":
            kernel = rfactor(kernel, path[0], f"{name}t", f"{name}_items")
            kernel = tree(kernel, f"{name}t", f"{name}_local")
        for outer in reversed(path):
            kernel = reorder(kernel, outer, f"{name}t")
        kernel = bind(kernel, f"{name}t", "group")
        if widths[first] > 1:
            kernel = bind(kernel, f"{name}v", "vector")
    kernel = _single_item(kernel, {s.buffer for s in body if isinstance(s, Alloc)})
    return grid(kernel, [p.var.name for p in parallel], 1 << 62)


def _single_item(kernel: Kernel, registers: set[str]) -> Kernel:
    """Let one work-item make the stores to memory that stand outside of ``group`` loops."""
    allocated = {s.buffer for s in stmts(kernel.body) if isinstance(s, Alloc)} | registers

    def visit(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, Store) and s.buffer not in allocated:
                s = For(Var("one", "i64", 1), i64(1), "group", (s,))
            elif isinstance(s, For | If) and not (isinstance(s, For) and s.kind == "group"):
                s = dataclasses.replace(s, body=visit(s.body))
            out.append(s)
        return tuple(out)

    return dataclasses.replace(kernel, body=visit(kernel.body))
