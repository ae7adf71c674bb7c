"""Which steps make a naive nest fast on a device: one recipe for each shape of nest, chosen here.

``vector`` devices (CPUs) give each thread a slice of the grid and work on it in SIMD lanes; ``group`` devices (GPUs)
give a work-group a tile or a row. A ``serial`` device runs the naive nest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from kernelforge.ir.index import affine, flatten
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    rebuild,
    stmts,
    walk,
)
from kernelforge.ir.schedule import contraction
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.phases import join, spread
from kernelforge.ir.schedule.steps import bind, fission, loops, reorder, rfactor, split, tree
from kernelforge.ir.schedule.steps import fuse as fuse_loops
from kernelforge.ir.types import row_major

CHUNK = 16384
"""Elements of a map that one grid iteration of a ``vector`` device takes: small beside L2, large beside a launch."""

BLOCK = 1 << 13
"""Elements of a row that are summed before their sum is added to the total: so the rounding error of a long row grows
with the number of blocks and not with the number of elements."""

SPREAD = 1 << 14
"""Elements that one worker of a reduction takes at least, when too few rows keep a device busy."""


def schedule(kernel: Kernel, limits: Limits) -> Kernel:
    """Rewrite a naive kernel for a device."""
    if limits.form == "serial":
        return kernel
    recipe = vector if limits.form == "vector" else group
    kernel = _spread(kernel, limits)
    bodies: list[Stmt] = []
    nests = [s for s in kernel.body if isinstance(s, For)]
    for stmt in kernel.body:
        if isinstance(stmt, For):
            made = merge(recipe(dataclasses.replace(kernel, body=(stmt,)), limits))
            bodies += made.body
        else:
            bodies.append(stmt)
    kernel = dataclasses.replace(kernel, body=tuple(bodies))
    if len(nests) > 1 and len(nests) == len(kernel.body) and not _linked(kernel.body):
        kernel = join(kernel, "g")
    return scratch(kernel)


def _linked(body: Sequence[Stmt]) -> bool:
    """Whether a nest reads or writes what another one writes, or is not a plain grid loop."""
    written = [{t.buffer for t in stmts((s,)) if isinstance(t, Store)} for s in body]
    for k, s in enumerate(body):
        touched = written[k] | {e.buffer for t in stmts((s,)) for r in exprs(t) for e in walk(r) if isinstance(e, Load)}
        if any(touched & w for j, w in enumerate(written) if j != k):
            return True
    return not all(isinstance(s, For) and s.kind == "grid" and s.static is not None for s in body)


def perfect(nest: For) -> tuple[list[For], tuple[Stmt, ...]]:
    """Return the parallel loops that stand directly in each other, outermost first, and what the last one holds."""
    found = [nest]
    while len(found[-1].body) == 1 and isinstance(found[-1].body[0], For) and found[-1].body[0].kind == "parallel":
        found.append(found[-1].body[0])
    return found, found[-1].body


def size(loops_: Sequence[For]) -> int:
    return math.prod(p.static or 1 for p in loops_)


def loads(body: Sequence[Stmt]) -> list[Load]:
    """Return the distinct Loads of flat buffers below."""
    found = {
        e: None for s in stmts(body) for r in exprs(s) for e in walk(r) if isinstance(e, Load) and len(e.index) == 1
    }
    return list(found)


def lanes(body: Sequence[Stmt], limits: Limits) -> int:
    """Return how many elements of the widest dtype that is touched fill a SIMD register, 16 at most."""
    widths = [1]
    for s in stmts(body):
        for r in exprs(s):
            widths += [int(e.dtype.strip("bfiu")) // 8 for e in walk(r) if e.dtype != "bool" and isinstance(e, Load)]
        if isinstance(s, Store) and s.value.dtype != "bool":
            widths.append(int(s.value.dtype.strip("bfiu")) // 8)
    return max(1, min(16, limits.vector_bytes // max(widths)))


def reduction_loops(body: Sequence[Stmt]) -> list[For]:
    """Return the innermost serial loops of a nest, those that combine."""
    return [
        s
        for s in stmts(body)
        if isinstance(s, For) and s.kind == "serial" and all(isinstance(t, Store) for t in s.body)
    ]


def rowwise(body: Sequence[Stmt], last: For) -> bool:
    """Whether the reductions walk memory element by element, rather than the parallel axis ``last`` does."""
    votes = 0
    for loop in reduction_loops(body):
        for load in loads((loop,)):
            votes += affine(load.index[0], loop.var) == 1
            votes -= affine(load.index[0], last.var) == 1
    return votes >= 0


def _spread(kernel: Kernel, limits: Limits) -> Kernel:
    """Let several workers share each reduction where there are too few rows for the device."""
    for nest in [s for s in kernel.body if isinstance(s, For)]:
        parallel, body = perfect(nest)
        found = [s for s in body if isinstance(s, For) and s.kind == "serial"]
        others = [s for s in body if isinstance(s, For) and s.kind == "parallel"]
        registers = {s.buffer for s in body if isinstance(s, Alloc)}
        simple = all(
            isinstance(t, Store) and t.op and not t.index and len(s.body) == 1
            and not any(isinstance(e, Load) and e.buffer in registers for e in walk(t.value))
            for s in found for t in s.body
        )  # fmt: skip
        if not found or others or not simple or not any(isinstance(s, Alloc) for s in body):
            continue
        rows, width = size(parallel), max(s.static or 0 for s in found)
        units = rows if rowwise(body, parallel[-1]) else max(1, rows // (4 * lanes(body, limits)))
        workers = limits.threads if limits.form == "vector" else max(1, limits.threads // max(limits.group, 1))
        if units >= workers or rows * width < 2 * SPREAD:
            continue
        share = max(-(-width // (4 * workers)), SPREAD // max(rows, 1), 16)
        share = -(-share // BLOCK) * BLOCK if share > BLOCK else share
        if share < width:
            kernel = spread(kernel, nest, {s.var.name: share for s in found if (s.static or 0) > share}, "_w")
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

    def flat(index: tuple[Expr, ...], buffer: str) -> tuple[Expr, ...]:
        return (flatten(index, strides[buffer]),)

    memo: dict[Expr, Expr] = {}

    def load(e: Expr) -> Expr:
        return Load(e.buffer, flat(e.index, e.buffer), e.dtype) if isinstance(e, Load) and e.buffer in strides else e

    def store(s: Stmt) -> Stmt:
        if isinstance(s, For | If):
            return dataclasses.replace(s, body=tuple(store(t) for t in s.body))
        if isinstance(s, Store) and s.buffer in strides:
            return dataclasses.replace(s, index=flat(s.index, s.buffer))
        return s

    body = tuple(store(map_exprs(s, lambda e: rebuild(e, load, memo))) for s in kernel.body if s not in found)
    return dataclasses.replace(kernel, args=(*kernel.args, *args), body=body)


def grid(kernel: Kernel, allowed: Sequence[str], enough: int) -> Kernel:
    """Bind the outermost loops of each nest until there are ``enough`` iterations; the others stay with the thread.

    Only loops named in ``allowed``, and the outermost one in any case, as long as they stand directly in each other.
    """

    def bound(loop: For, total: int) -> For:
        total *= loop.static or 1
        body = loop.body
        inner = body[0] if len(body) == 1 else None
        if total < enough and isinstance(inner, For) and inner.kind == "parallel" and inner.var.name in allowed:
            body = (bound(inner, total),)
        return dataclasses.replace(loop, kind="grid", body=body)

    made = [bound(s, 1) if isinstance(s, For) and s.kind == "parallel" else s for s in kernel.body]
    return dataclasses.replace(kernel, body=tuple(made))


def vector(kernel: Kernel, limits: Limits) -> Kernel:
    """Schedule one nest for SIMD lanes and threads."""
    (nest,) = kernel.body
    assert isinstance(nest, For)
    parallel, body = perfect(nest)
    width = lanes(body, limits)
    enough = 8 * limits.threads
    if contraction.is_product(parallel, body):
        return contraction.vector(kernel, parallel, limits, width)
    if all(isinstance(s, Store | Let) for s in body):
        return _vector_map(kernel, parallel, limits, width)
    outer = [p.var.name for p in parallel]
    if not any(isinstance(s, Alloc) for s in body):
        return grid(kernel, outer, enough)
    running = any(
        isinstance(s, For) and s.kind == "serial" and any(isinstance(t, Store) and not t.op for t in s.body)
        for s in body
    )
    if running or not rowwise(body, parallel[-1]):
        return _vector_column(kernel, parallel, limits, width)
    names = [s.var.name for s in body if isinstance(s, For)]
    for name in names:
        for loop in loops(kernel, name)[:1]:
            inner = [s for s in stmts((loop,)) if isinstance(s, For)][-1]
            change = _lane_reduction if inner.kind == "serial" else _lanes
            kernel = change(kernel, inner, width)
    return grid(kernel, outer, enough)


def _lanes(kernel: Kernel, loop: For, width: int) -> Kernel:
    """Run a parallel loop in lanes, the rest one by one."""
    name = loop.var.name
    if width == 1 or (loop.static or 0) < width or not unit(loop):
        return kernel
    kernel = split(kernel, name, width, name, f"{name}v", "cut")
    return bind(kernel, f"{name}v", "vector")


def unit(loop: For) -> bool:
    """Whether most of what a loop touches lies side by side for consecutive iterations."""
    steps = [affine(e.index[0], loop.var) for e in loads(loop.body)]
    stored = [affine(s.index[0], loop.var) for s in stmts(loop.body) if isinstance(s, Store) and len(s.index) == 1]
    return all(c == 1 for c in stored) and 2 * sum(c in (0, 1) for c in steps) >= len(steps)


def _vector_map(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    last = parallel[-1]
    name, n = last.var.name, last.static or 0
    outer = size(parallel[:-1])
    wanted = 8 * limits.threads
    if outer < wanted and outer * n > CHUNK:
        pieces = -(-wanted // outer)
        chunk = max(min(CHUNK, n // pieces), 1024) // 64 * 64
        if n > chunk:
            kernel = split(kernel, name, chunk, f"{name}g", name, "clip")
            kernel = _lanes(kernel, dataclasses.replace(last, extent=i64(chunk)), width)
            return grid(kernel, [*(p.var.name for p in parallel[:-1]), f"{name}g"], 1 << 62)
    kernel = _lanes(kernel, last, width)
    return grid(kernel, [p.var.name for p in parallel[:-1]], wanted) if len(parallel) > 1 else _solo(kernel)


def _solo(kernel: Kernel) -> Kernel:
    """Put a small nest under one grid iteration."""
    return dataclasses.replace(kernel, body=(For(Var("g", "i64", 1), i64(1), "grid", kernel.body),))


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
        return bind(rfactor(kernel, name, f"{name}v", f"{name}_lanes"), f"{name}v", "vector")
    unroll = 4 if n >= 8 * width else 1
    if unroll > 1:
        kernel = split(kernel, name, unroll * width, name, f"{name}i", "cut")
        kernel = split(kernel, f"{name}i", width, f"{name}u", f"{name}v", "exact")
        kernel = rfactor(kernel, name, f"{name}v", f"{name}_lanes")
        kernel = rfactor(kernel, name, f"{name}u", f"{name}_units")
        kernel = bind(kernel, f"{name}u", "unroll")
        rest, tail = n % (unroll * width), f"{name}i_t"
    else:
        rest, tail = n, name
    if rest >= width:
        kernel = split(kernel, tail, width, f"{tail}o", f"{tail}v", "cut")
        kernel = rfactor(kernel, f"{tail}o", f"{tail}v", f"{tail}_lanes")
        kernel = bind(kernel, f"{tail}v", "vector")
    return bind(kernel, f"{name}v", "vector") if unroll > 1 else kernel


def _vector_column(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    """Reduce across memory: lanes own columns, and walk the rows together."""
    last = parallel[-1]
    name, n = last.var.name, last.static or 0
    outer = size(parallel[:-1])
    enough = 8 * limits.threads
    names = [p.var.name for p in parallel]
    if width == 1 or n < width:
        return grid(kernel, names, enough)
    unroll = max(u for u in (4, 2, 1) if u == 1 or (n >= u * width and outer * (n // (u * width)) >= limits.threads))
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


def group(kernel: Kernel, limits: Limits) -> Kernel:
    """Schedule one nest for work-groups."""
    (nest,) = kernel.body
    assert isinstance(nest, For)
    parallel, body = perfect(nest)
    if contraction.is_product(parallel, body):
        return contraction.group(kernel, parallel, limits)
    reductions = [s for s in body if isinstance(s, For) and s.kind == "serial"]
    running = any(isinstance(t, Store) and not t.op for s in reductions for t in s.body)
    rows = bool(reductions) and any(isinstance(s, Alloc) for s in body) and not running
    if not rows or (not rowwise(body, parallel[-1]) and size(parallel) >= limits.group):
        return _group_map(kernel, parallel, limits)
    return _group_row(kernel, parallel, body, limits)


def flat(kernel: Kernel, parallel: Sequence[For], name: str) -> tuple[Kernel, str]:
    """Make one loop of the nested parallel ones; return its name."""
    current = parallel[0].var.name
    for k, loop in enumerate(parallel[1:]):
        following = f"{name}{k}"
        kernel = fuse_loops(kernel, current, loop.var.name, following)
        current = following
    return kernel, current


def _group_map(kernel: Kernel, parallel: Sequence[For], limits: Limits) -> Kernel:
    """One work-item an element."""
    kernel, name = flat(kernel, parallel, "f")
    count = min(limits.group, 256)
    kernel = split(kernel, name, count, f"{name}g", f"{name}t", "guard")
    return bind(bind(kernel, f"{name}g", "grid"), f"{name}t", "group")


def _group_row(kernel: Kernel, parallel: Sequence[For], body: Sequence[Stmt], limits: Limits) -> Kernel:
    """One work-group a row: work-items take every ``count``-th element, then fold by halves in local memory."""
    widest = max((s.static or 1 for s in body if isinstance(s, For)), default=1)
    count = 1 << max(0, min(limits.group, 256, widest).bit_length() - 1)
    for stmt in body:
        if not isinstance(stmt, For):
            continue
        inner = [s for s in stmts((stmt,)) if isinstance(s, For)]
        name = inner[-1].var.name
        kernel = split(kernel, name, count, f"{name}o", f"{name}t", "guard")
        if stmt.kind == "serial":
            kernel = rfactor(kernel, inner[0].var.name if len(inner) > 1 else f"{name}o", f"{name}t", f"{name}_items")
            kernel = tree(kernel, f"{name}t", f"{name}_local")
            path = [*(s.var.name for s in inner[:-1]), f"{name}o"]
            for outer in reversed(path):
                kernel = reorder(kernel, outer, f"{name}t")
        else:
            path = [*(s.var.name for s in inner[:-1]), f"{name}o"]
            for outer in reversed(path):
                kernel = reorder(kernel, outer, f"{name}t")
        kernel = bind(kernel, f"{name}t", "group")
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
