"""Which steps make a naive nest fast on a device: one recipe for each shape of nest, chosen here.

``vector`` devices (CPUs) give each thread a slice of the grid and work on it in SIMD lanes; ``group`` devices (GPUs)
give a work-group a tile or a row. A ``serial`` device runs the naive nest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from kernelforge.ir.accesses import redirected
from kernelforge.ir.index import affine, flatten
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    For,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    i64,
    stmts,
    walk,
)
from kernelforge.ir.schedule import chains, contraction, convolution, tiles, walks
from kernelforge.ir.schedule.columns import vector_block, vector_column, vector_found, vector_running
from kernelforge.ir.schedule.factors import LEAST, arranged, factors, parallel_loops
from kernelforge.ir.schedule.limits import NEAR, SHORTEST, Limits
from kernelforge.ir.schedule.maps import group_map, in_lanes, parted, vector_map
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.nests import few, grid, lanes, loads, perfect, row_of_block, rowwise, size
from kernelforge.ir.schedule.phases import join, obstacle, spread
from kernelforge.ir.schedule.rows import BLOCK, group_row, vector_row
from kernelforge.ir.schedule.staging import nested
from kernelforge.ir.schedule.steps import reorder
from kernelforge.ir.types import row_major

SPREAD = 1 << 14
"""Elements that one worker of a reduction takes at least, when too few rows keep a device busy."""

RESULTS = 4096
"""Results of a product from which on threads make tiles of them each; fewer with a long sum make parts of that."""

FEW = 32
"""Vectors of results for each thread up to which a product has too few panels of columns for all threads to share it by
them: they share the sum then."""


def schedule(kernel: Kernel, limits: Limits) -> Kernel:
    """Rewrite a naive kernel for a device."""
    if limits.form == "serial":
        return kernel
    recipe = vector if limits.form == "vector" else group
    kernel = parted(scratch(_share_reductions(kernel, limits)))
    bodies: list[Stmt] = []
    nests = [s for s in kernel.body if isinstance(s, For)]
    for stmt in kernel.body:
        if isinstance(stmt, For):
            made = recipe(dataclasses.replace(kernel, body=(stmt,)), limits)
            bodies += made.body
        else:
            bodies.append(stmt)
    kernel = dataclasses.replace(kernel, body=tuple(bodies))
    if len(nests) == len(kernel.body) and not obstacle(kernel):
        kernel = join(kernel, "g")
    return scratch(kernel)


def _share_reductions(kernel: Kernel, limits: Limits) -> Kernel:
    """Let several workers share each reduction where there are too few rows for the device."""
    for nest in [s for s in kernel.body if isinstance(s, For)]:
        parallel, body = perfect(nest)
        found = [s for s in body if isinstance(s, For) and s.kind == "serial"]
        others = [s for s in body if isinstance(s, For) and s.kind == "parallel"]
        registers = {s.buffer for s in body if isinstance(s, Alloc)}
        paths = [nested(s) for s in found]
        simple = all(
            isinstance(t, Store) and t.op and not t.index and len(path[-1].body) == 1
            and not any(isinstance(e, Load) and e.buffer in registers for e in walk(t.value))
            for path in paths for t in path[-1].body
        )  # fmt: skip
        if not found or others or not simple or not any(isinstance(s, Alloc) for s in body):
            continue
        deep_nest = any(len(path) > 1 for path in paths)
        if deep_nest and factors(body)[0] and size(parallel) >= LEAST * LEAST:
            n, panels = paths[0][0].static or 0, size(parallel) // (lanes(body, limits) * limits.threads)
            if limits.form == "vector" and panels <= FEW and size(paths[0]) >= SPREAD and n > limits.threads:
                kernel = spread(kernel, nest, {paths[0][0].var.name: -(-n // (4 * limits.threads))}, "_w")
            continue  # recipes for products and windows look for these loops
        product = tiles.found(parallel, body) if limits.form == "group" else None
        if product is not None:
            (loop,) = found
            deep = tiles.share(product, limits)
            if deep < (loop.static or 0):
                kernel = spread(kernel, nest, {loop.var.name: deep}, "_w")
            continue
        rows, width = size(parallel), max(map(size, paths))
        units = rows if rowwise(body, parallel[-1]) else max(1, rows // (4 * lanes(body, limits)))
        if limits.form == "vector" and width >= SPREAD and LEAST * LEAST <= rows < RESULTS and factors(body)[0]:
            units = 1
        workers = limits.threads if limits.form == "vector" else max(1, limits.threads // max(limits.group, 1))
        if units >= workers or rows * width < 2 * SPREAD:
            continue
        share = max(-(-width // (4 * workers)), SPREAD // max(rows, 1), 16)
        taken: dict[str, int] = {}
        for path in paths:
            longest = max(path, key=lambda s: s.static or 0)
            n = longest.static or 0
            each = max(1, share // (size(path) // n)) if size(path) else n
            each = -(-each // BLOCK) * BLOCK if each > BLOCK else each
            if each < n:
                taken[longest.var.name] = each
        if taken:
            kernel = spread(kernel, nest, taken, "_w")
    return kernel


def scratch(kernel: Kernel) -> Kernel:
    """Turn global buffers into scratch arguments, which the plan places."""
    found = [s for s in kernel.body if isinstance(s, Alloc) and s.space == "global"]
    if not found:
        return kernel
    strides = {}
    args = []
    for s in found:
        shape = tuple(int(n.value) for n in s.shape if isinstance(n, Const))
        strides[s.buffer] = row_major(shape)
        args.append(Arg(s.buffer, s.dtype, i64(math.prod(shape)), "scratch"))

    rest = [s for s in kernel.body if s not in found]
    body = redirected(rest, strides, lambda b, index: (b, (flatten(index, strides[b]),)))
    return dataclasses.replace(kernel, args=(*kernel.args, *args), body=body)


def vector(kernel: Kernel, limits: Limits) -> Kernel:
    """Schedule one nest for SIMD lanes and threads."""
    # operands have the last quarter of the registers
    return merge(_vector(kernel, limits), limits.vector_registers * limits.vector_bytes * 3 // 4)


def _vector(kernel: Kernel, limits: Limits) -> Kernel:
    (nest,) = kernel.body
    assert isinstance(nest, For)
    parallel, body = perfect(nest)
    width = lanes(body, limits)
    enough = 8 * limits.threads
    if chains.chained(body):
        return chains.vector(kernel, parallel, limits)
    product = arranged(kernel, parallel, body, width, "masks" in limits.native)
    filtering = convolution.filtering(kernel)
    if width > 1 and filtering and (product is None or size([s.outer for s in filtering]) < width):
        return convolution.filtered(kernel, filtering, width)
    if product is not None:
        factor, pairs = convolution.found(product)
        tile = [p.var.name for p in parallel_loops(product)[-2:]]
        if pairs and pairs[-1].outer.var.name in tile:
            return convolution.vector(product, factor, pairs, limits, width)
        pairs = [s for s in pairs if s.outer.var.name not in tile]
        return contraction.vector(product, limits, width, pairs)
    if all(isinstance(s, Store | Let) for s in body):
        return vector_map(kernel, parallel, limits, lanes(body, limits, {s.var for s in parallel}))
    row = row_of_block(body)
    if row is not None:
        for start in body[:-1]:
            kernel = in_lanes(kernel, nested(start)[-1], width)
        return vector_block(kernel, parallel, row, limits, width) or vector_row(kernel, parallel, row, limits, width)
    kernel = _as_read(kernel, parallel, body)
    parallel = parallel_loops(kernel)
    sliding = convolution.reduced(kernel)
    if sliding and width > 1:
        return convolution.windowed(kernel, sliding, limits, width)
    outer = [p.var.name for p in parallel]
    if not any(isinstance(s, Alloc) for s in body):
        return vector_found(kernel, parallel, limits, width) or grid(kernel, outer, enough)
    running = any(
        isinstance(s, For) and s.kind == "serial" and any(isinstance(t, Store) and not t.op for t in s.body)
        for s in body
    )
    if len(parallel) > 1 and (parallel[-1].static or 0) < SHORTEST and few(body, parallel[-2], width):
        kernel = reorder(kernel, parallel[-2].var.name, parallel[-1].var.name)
        parallel = [*parallel[:-2], parallel[-1], parallel[-2]]
    last = parallel[-1]
    turned = vector_running(kernel, parallel, limits, width) if running else None
    if turned is not None:
        return turned
    across = not rowwise(body, last) and (last.static or 0) >= SHORTEST
    if running or across or few(body, last, width):
        return vector_column(kernel, parallel, limits, width)
    along = {s.var for s in stmts(body) if isinstance(s, For)}
    return vector_row(kernel, parallel, last, limits, lanes(body, limits, along))


def _as_read(kernel: Kernel, parallel: Sequence[For], body: Sequence[Stmt]) -> Kernel:
    """Walk in the order in which reductions read memory, where none runs along the last loop and another one does: as
    where a convolution by channels is stored channels last.
    """
    serial = [s for s in stmts(body) if isinstance(s, For) and s.kind == "serial"]
    found = loads(serial)
    if size(serial) < NEAR or any(affine(e.index[0], parallel[-1].var) == 1 for e in found):
        return kernel
    wide = [p.var for p in parallel if (p.static or 0) >= SHORTEST]
    read = next((e.index[0] for e in found if any(affine(e.index[0], v) == 1 for v in wide)), None)
    if read is None:
        return kernel
    order = sorted(parallel, key=lambda p: abs(affine(read, p.var) or 0) or math.inf, reverse=True)
    for loop in order:
        names = [p.var.name for p in parallel_loops(kernel)]
        for inner in names[names.index(loop.var.name) + 1 :]:
            kernel = reorder(kernel, loop.var.name, inner)
    return kernel


def group(kernel: Kernel, limits: Limits) -> Kernel:
    """Schedule one nest for work-groups."""
    (nest,) = kernel.body
    assert isinstance(nest, For)
    parallel, body = perfect(nest)
    if chains.chained(body):
        return walks.group(kernel, parallel, limits)
    product = tiles.found(parallel, body)
    if product is not None:
        return tiles.group(kernel, product, limits)
    return merge(_group(kernel, parallel, body, limits))


def _group(kernel: Kernel, parallel: Sequence[For], body: Sequence[Stmt], limits: Limits) -> Kernel:
    simple = all(isinstance(s, Store | Let) for s in body)
    reductions = [s for s in body if isinstance(s, For) and s.kind == "serial"]
    running = any(isinstance(t, Store) and not t.op for s in reductions for t in s.body)
    rows = bool(reductions) and any(isinstance(s, Alloc) for s in body) and not running
    if not rows or (not rowwise(body, parallel[-1]) and size(parallel) >= limits.group):
        # a register or a loop of its own is an element's, and stays so
        return group_map(kernel, parallel, limits, lanes(body, limits) if simple else 1)
    return group_row(kernel, parallel, body, limits, lanes(body, limits))
