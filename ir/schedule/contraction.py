"""The recipe for products of matrices: a register tile over packed panels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import MATH_BINARY, MATH_UNARY, Alloc, Expr, For, Kernel, Load, Op, Stmt, Store, stmts, walk
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.nests import loads
from kernelforge.ir.schedule.staging import copy_out, stage
from kernelforge.ir.schedule.steps import (
    bind,
    fission,
    fuse,
    loops,
    partial,
    place,
    reorder,
    sink_guard,
    split,
    unguard,
)

PANEL = 22
"""Panels of rows that a thread keeps packed beside the one panel of columns it works with."""

DEPTH = 1024
"""Products that one accumulator of a tile sums up: panels of that depth stay in the second-level cache, and the error
of a sum grows with the number of blocks rather than that of products."""

STEPS = 16
"""Steps of the sum for which columns are packed at a time: what is read and written meanwhile stays in the cache."""

LONG = 8
"""Operations on an element of the result beyond which the code for a whole tile of them is too much to unroll."""

MATHEMATICS = frozenset(MATH_UNARY + MATH_BINARY)

SMALL = 4096
"""Multiplications below which packing does not pay."""


def is_product(parallel: Sequence[For], body: Sequence[Stmt]) -> bool:
    """Whether a nest sums products of one factor that depends on the last parallel axis and one on the axis before."""
    if len(parallel) < 2 or _factors(parallel, body) is None:
        return False
    (walked,) = [s for s in body if isinstance(s, For) and s.kind == "serial"]
    m, n = (p.static or 0 for p in parallel[-2:])
    return m * n * (walked.static or 0) >= SMALL and min(m, n) >= 4


def _factors(parallel: Sequence[For], body: Sequence[Stmt]) -> tuple[Expr, Expr] | None:
    reductions = [s for s in body if isinstance(s, For) and s.kind == "serial"]
    if len(reductions) != 1 or not all(isinstance(s, Store) and s.op == "add" for s in reductions[0].body):
        return None
    (store,) = reductions[0].body
    assert isinstance(store, Store)
    if not isinstance(store.value, Op) or store.value.op != "mul":
        return None
    i, j = parallel[-2].var, parallel[-1].var
    a, b = store.value.args
    if i in free_vars(b) or j in free_vars(a):
        a, b = b, a
    if i in free_vars(b) or j in free_vars(a) or i not in free_vars(a) or j not in free_vars(b):
        return None
    return a, b


def _factor(kernel: Kernel, by: str, without: str) -> Expr:
    """Find the factor of the accumulated product that depends on the loop ``by`` and not on ``without``."""
    for s in stmts(kernel.body):
        if isinstance(s, Store) and s.op == "add" and isinstance(s.value, Op) and s.value.op == "mul":
            for e in s.value.args:
                names = {v.name for v in free_vars(e)}
                if any(n.startswith(by) for n in names) and not any(n.startswith(without) for n in names):
                    return e
    raise IllegalSchedule(step="stage", target=by, reason="no product is accumulated")


def _operations(kernel: Kernel, accumulator: str) -> int:
    """Estimate the operations that make the results of an element of ``accumulator``."""
    seen: set[Expr] = set()
    for s in stmts(kernel.body):
        if isinstance(s, Store) and any(isinstance(e, Load) and e.buffer == accumulator for e in walk(s.value)):
            walk(s.value, seen)
    return sum(16 if e.op in MATHEMATICS else 1 for e in seen if isinstance(e, Op) and e.dtype != "i64")


def _tiled(
    kernel: Kernel, i: str, j: str, walked: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str]
) -> Kernel:
    """From loops over tiles and in tiles, make the register tile: accumulators by row and column inside the loops
    ``walked``, at each of their levels.

    ``rows`` and ``columns`` are the loops inside the tile, outermost first; the tile loops are ``i`` and ``j``.
    """
    for row in reversed(rows):
        kernel = reorder(kernel, row, j)
    inside = [*rows, *columns]
    for level in walked:
        for name in reversed(inside):
            kernel = fission(kernel, name)
        for name in reversed(inside):
            for k in level:
                kernel = reorder(kernel, name, k)
    return kernel


def vector(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    """Tile for SIMD registers, in the five loops of BLIS (Van Zee and van de Geijn, 2015).

    A tile is six rows by half of what the registers then leave for columns. It walks through a panel of rows and one of
    columns, both packed. Blocks of ``panels`` panels of rows are the grid; a thread keeps one in its second-level cache
    beside the panel of columns it works with. A sum longer than ``DEPTH`` is made block by block, each added to the
    results so far.
    """
    i, j = parallel[-2].var.name, parallel[-1].var.name
    sums = [s for s in stmts(parallel[-1].body) if isinstance(s, For) and s.kind == "serial"]
    walked, depth = [s.var.name for s in sums], math.prod(s.static or 1 for s in sums)
    m, n = parallel[-2].static or 1, parallel[-1].static or 1
    registers = min(4 if limits.vector_registers >= 32 else 2, -(-n // width))
    rows = min(6, m)
    accumulators = [next(s.buffer for s in stmts(kernel.body) if isinstance(s, Alloc))]
    block: list[str] = []
    if depth > 3 * DEPTH // 2:
        first, extent = walked[0], sums[0].static or 1
        share = -(-extent // -(-depth // DEPTH))
        block, depth = [f"{first}b"], share * depth // extent
        kernel = split(kernel, first, share, f"{first}b", first, "clip")
        kernel = partial(kernel, first, "block")
        accumulators.append("block")
    kernel = split(kernel, i, rows, f"{i}o", f"{i}r", "guard")
    kernel = split(kernel, j, registers * width, f"{j}o", f"{j}r", "guard")
    kernel = sink_guard(kernel, f"{i}o")
    levels = [block, walked] if block else [walked]
    kernel = _tiled(kernel, f"{i}o", f"{j}o", levels, [f"{i}r"], [f"{j}r"])

    count = -(-m // rows)
    itemsize = limits.vector_bytes // width
    room = limits.cache_bytes * 3 // 4 - depth * registers * width * itemsize
    panels = max(1, min(PANEL, max(room // (depth * rows * itemsize), 3), -(-count // (2 * limits.threads))))
    kernel = split(kernel, f"{i}o", panels, f"{i}b", f"{i}p", "clip")
    kernel = reorder(kernel, f"{i}p", f"{j}o")
    for name in (f"{i}p", f"{j}o") if block else ():
        kernel = reorder(fission(kernel, name), name, block[0])
    outer = [p.var.name for p in parallel[:-2]]
    right = _factor(kernel, j, i)
    depends = {v.name for v in free_vars(right)}
    by = [*(p for p in outer if p in depends), f"{j}o", *block, *walked, f"{j}r"]
    kernel = stage(kernel, right, "", by, "global", "columns")
    left = _factor(kernel, i, j)
    kernel = stage(kernel, left, block[0] if block else f"{i}b", [f"{i}p", *walked, f"{i}r"], "local", "rows")
    for buffer in accumulators:
        kernel = unguard(kernel, buffer, lambda e: e.buffer in ("rows", "columns", *accumulators))
    if block:
        kernel = place(kernel, accumulators[0], "local")

    wide = [j]
    if not block and _operations(kernel, accumulators[0]) > LONG:
        kernel = copy_out(kernel, accumulators[0], "tile")
        wide.append(f"tile_{j}")
    for name in (*wide, f"columns_{j}"):
        kernel = split(kernel, f"{name}r", width, f"{name}u", f"{name}v", "exact")
    for name in wide:
        kernel = bind(bind(kernel, f"{name}v", "vector"), f"{name}u", "unroll")
    kernel = bind(kernel, f"{i}r", "unroll")

    along, tile = f"rows_{walked[-1]}", [f"rows_{i}r"]
    if _contiguous(kernel, along, width):
        kernel = _transposed(kernel, along, tile, width)
    along, tile = f"columns_{walked[-1]}", [f"columns_{j}u", f"columns_{j}v"]
    packed = [f"columns_{b}" for b in by[:-2]]
    if _contiguous(kernel, along, width):
        kernel = _transposed(kernel, along, tile, width)
    else:
        kernel = bind(bind(kernel, tile[1], "vector"), tile[0], "unroll")
        kernel = split(kernel, along, STEPS, f"{along}s", along, "clip")
        first = f"columns_{j}o"
        for name in (*packed[packed.index(first) + 1 :], f"{along}s"):
            kernel = reorder(kernel, first, name)
        packed.append(f"{along}s")
    for name in (*outer, f"{i}b", *packed):
        kernel = bind(kernel, name, "grid")
    return kernel


def _contiguous(kernel: Kernel, name: str, width: int) -> bool:
    """Whether a loop reads whole vectors along memory."""
    (loop,) = loops(kernel, name)
    steps = [affine(e.index[0], loop.var) for e in loads(loop.body)]
    return 1 < width <= (loop.static or loop.var.bound or 0) and bool(steps) and all(c == 1 for c in steps)


def _transposed(kernel: Kernel, along: str, tile: Sequence[str], width: int) -> Kernel:
    """Read vectors in the loop ``along``, and store them across it, in the order of the loops ``tile`` inside it."""
    kernel = split(kernel, along, width, along, f"{along}v", "cut")
    for name in tile:
        kernel = reorder(kernel, f"{along}v", name)
    return bind(bind(kernel, f"{along}v", "vector"), tile[-1], "unroll")


def group(kernel: Kernel, parallel: Sequence[For], limits: Limits) -> Kernel:
    """Tile for work-groups: each work-item owns a square of accumulators; tiles of both operands pass through local
    memory.
    """
    i, j = parallel[-2].var.name, parallel[-1].var.name
    walked = [s.var.name for s in stmts(parallel[-1].body) if isinstance(s, For) and s.kind == "serial"]
    items, own, step = (8, 4, 8) if limits.group >= 64 else (2, 2, 4)
    accumulator = next(s.buffer for s in stmts(kernel.body) if isinstance(s, Alloc))
    for name in (i, j):
        kernel = split(kernel, name, items * own, f"{name}o", f"{name}t", "guard")
        kernel = split(kernel, f"{name}t", own, f"{name}x", f"{name}r", "exact")
    kernel = sink_guard(kernel, f"{i}o")
    last = walked[-1]
    kernel = split(kernel, last, step, f"{last}o", f"{last}s", "guard")
    kernel = sink_guard(kernel, f"{i}o")
    for row in (f"{i}r", f"{i}x"):
        kernel = reorder(kernel, row, f"{j}o")
    kernel = reorder(kernel, f"{i}r", f"{j}x")
    inside = [f"{i}x", f"{j}x", f"{i}r", f"{j}r"]
    for name in reversed(inside):
        kernel = fission(kernel, name)
    steps = [*walked[:-1], f"{last}o", f"{last}s"]
    for name in (f"{j}r", f"{i}r"):
        for k in steps:
            kernel = reorder(kernel, name, k)
    for name in (f"{j}x", f"{i}x"):
        for k in steps[:-1]:
            kernel = reorder(kernel, name, k)
    at = f"{last}o"
    kernel = stage(kernel, _factor(kernel, j, i), at, [f"{last}s", f"{j}x", f"{j}r"], "local", "columns")
    kernel = stage(kernel, _factor(kernel, i, j), at, [f"{i}x", f"{i}r", f"{last}s"], "local", "rows")
    kernel = unguard(kernel, accumulator, lambda e: e.buffer in ("rows", "columns"))
    count = items * items
    for name, by in (("columns", [f"{last}s", f"{j}x", f"{j}r"]), ("rows", [f"{i}x", f"{i}r", f"{last}s"])):
        first, second, third = (f"{name}_{b}" for b in by)
        kernel = fuse(kernel, first, second, f"{name}_a")
        kernel = fuse(kernel, f"{name}_a", third, f"{name}_b")
        kernel = split(kernel, f"{name}_b", count, f"{name}_o", f"{name}_t", "guard")
        kernel = reorder(kernel, f"{name}_o", f"{name}_t")
        kernel = bind(kernel, f"{name}_t", "group")
    for name in (*(p.var.name for p in parallel[:-2]), f"{i}o", f"{j}o"):
        kernel = bind(kernel, name, "grid")
    for name in (f"{i}x", f"{j}x"):
        kernel = bind(kernel, name, "group")
    return kernel
