"""The recipe for products of matrices: a register tile over packed panels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import MATH_BINARY, MATH_UNARY, Alloc, Expr, For, Kernel, Load, Op, Stmt, Store, stmts, walk
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.nests import loads, perfect
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


def arranged(kernel: Kernel, parallel: Sequence[For], body: Sequence[Stmt], width: int) -> Kernel | None:
    """Bring the parallel loops into the order of a product of matrices: last that of its rows and that of its columns.

    The nest sums products of one factor that depends on the rows and one that depends on the columns, not on both.
    Columns are the last loop, along which the result lies in memory, unless it is shorter than a register of ``width``
    elements. Returns None where the nest is no product, or one too small to pack.
    """
    found, depth = factors(body)
    if not found:
        return None
    first, second = ({v.name for v in free_vars(f)} for f in found)

    def apart(i: str, j: str) -> bool:
        return any(i in a - b and j in b - a for a, b in ((first, second), (second, first)))

    pairs = []
    for columns in parallel:
        for rows in parallel:
            i, j = rows.var.name, columns.var.name
            m, n = rows.static or 0, columns.static or 0
            if apart(i, j) and min(m, n) >= 4 and m * n * depth >= SMALL:
                pairs.append((columns is parallel[-1] and n >= width, min(n, 4 * width), min(m, 4 * width), i, j))
    if not pairs:
        return None
    *_, i, j = max(pairs)
    for name in (i, j):
        names = [p.var.name for p in _parallel(kernel)]
        for inner in names[names.index(name) + 1 :]:
            kernel = reorder(kernel, name, inner)
    return kernel


def factors(body: Sequence[Stmt]) -> tuple[tuple[Expr, ...], int]:
    """Return the factors of the one sum of products of a nest, and the number of products; none where it has none."""
    sums = [s for s in body if isinstance(s, For) and s.kind == "serial"]
    depth = 1
    while len(sums) == 1:
        depth *= sums[0].static or 0
        inner = sums[0].body
        if len(inner) == 1 and isinstance(store := inner[0], Store):
            value = store.value
            return (value.args, depth) if store.op == "add" and isinstance(value, Op) and value.op == "mul" else ((), 0)
        sums = [s for s in inner if isinstance(s, For) and s.kind == "serial"] if len(inner) == 1 else []
    return (), 0


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


def _parallel(kernel: Kernel) -> list[For]:
    """Return the parallel loops of the one nest of a kernel."""
    return perfect(next(s for s in kernel.body if isinstance(s, For)))[0]


def _sums(kernel: Kernel) -> list[For]:
    """Return the loops of the sum of products, outermost first."""
    return [s for s in stmts(_parallel(kernel)[-1].body) if isinstance(s, For) and s.kind == "serial"]


def _walk(kernel: Kernel, width: int) -> Kernel:
    """Make the longest loop of the sum the innermost, and one loop of those too short for lanes, as over a window."""
    sums = _sums(kernel)
    longest = max(range(len(sums)), key=lambda k: (sums[k].static or 0, k))
    for loop in sums[longest + 1 :]:
        kernel = reorder(kernel, sums[longest].var.name, loop.var.name)
    sums = _sums(kernel)
    while len(sums) > 1 and (sums[-1].static or 0) < width:
        outer, inner = (s.var.name for s in sums[-2:])
        kernel = fuse(kernel, outer, inner, f"{outer}f")
        sums = _sums(kernel)
    return kernel


def vector(kernel: Kernel, limits: Limits, width: int) -> Kernel:
    """Tile for SIMD registers, in the five loops of BLIS (Van Zee and van de Geijn, 2015).

    A tile is six rows by half of what the registers then leave for columns. It walks through a panel of rows and one of
    columns, both packed. Blocks of ``panels`` panels of rows are the grid; a thread keeps one in its second-level cache
    beside the panel of columns it works with. A sum longer than ``DEPTH`` is made block by block, each added to the
    results so far.
    """
    kernel = _walk(kernel, width)
    parallel, sums = _parallel(kernel), _sums(kernel)
    i, j = parallel[-2].var.name, parallel[-1].var.name
    walked, depth = [s.var.name for s in sums], math.prod(s.static or 1 for s in sums)
    m, n = parallel[-2].static or 1, parallel[-1].static or 1
    registers = min(limits.choose("columns", 4 if limits.vector_registers >= 32 else 2, (1, 2, 3, 4)), -(-n // width))
    rows = min(limits.choose("rows", 6, (4, 5, 8, 12)), m)
    accumulators = [next(s.buffer for s in stmts(kernel.body) if isinstance(s, Alloc))]
    block: list[str] = []
    most = limits.choose("depth", DEPTH, (256, 384, 512, 2048))
    if depth > 3 * most // 2:
        first, extent = walked[0], sums[0].static or 1
        share = -(-extent // -(-depth // most))
        block, depth = [f"{first}b"], share * depth // extent
        kernel = split(kernel, first, share, f"{first}b", first, "clip")
        kernel = partial(kernel, first, "block")
        accumulators.append("block")
    kernel = split(kernel, i, rows, f"{i}o", f"{i}r", "guard")
    kernel = split(kernel, j, registers * width, f"{j}o", f"{j}r", "guard")
    kernel = sink_guard(kernel, f"{i}o")
    levels = [block, walked] if block else [walked]
    kernel = _tiled(kernel, f"{i}o", f"{j}o", levels, [f"{i}r"], [f"{j}r"])

    outer = [p.var.name for p in parallel[:-2]]
    left, right = _factor(kernel, i, j), _factor(kernel, j, i)
    above = [{v.name for v in free_vars(f)} & set(outer) for f in (left, right)]
    if above[1] and not above[0]:
        # the rows are those of every outer iteration: packed once, while a tile of columns is packed where it is used
        kernel = reorder(kernel, f"{i}o", f"{j}o")
        if block:
            kernel = reorder(fission(kernel, f"{i}o"), f"{i}o", block[0])
        by = [f"{i}o", *block, *walked, f"{i}r"]
        kernel = stage(kernel, left, "", by, "global", "rows")
        kernel = stage(
            kernel, _factor(kernel, j, i), block[0] if block else f"{j}o", [*walked, f"{j}r"], "local", "columns"
        )
        grid = [*outer, f"{j}o", *(f"rows_{b}" for b in by[:-2])]
    else:
        count = -(-m // rows)
        itemsize = limits.vector_bytes // width
        room = limits.cache_bytes * 3 // 4 - depth * registers * width * itemsize
        panels = max(1, min(PANEL, max(room // (depth * rows * itemsize), 3), -(-count // (2 * limits.threads))))
        panels = limits.choose("panels", panels, (4, 8, 16, 32, 64))
        by = [*(p for p in outer if p in above[1]), f"{j}o", *block, *walked, f"{j}r"]
        kernel = stage(kernel, right, "", by, "global", "columns")
        kernel = split(kernel, f"{i}o", panels, f"{i}b", f"{i}p", "clip")
        kernel = reorder(kernel, f"{i}p", f"{j}o")
        for name in (f"{i}p", f"{j}o") if block else ():
            kernel = reorder(fission(kernel, name), name, block[0])
        at = block[0] if block else f"{i}b"
        kernel = stage(kernel, _factor(kernel, i, j), at, [f"{i}p", *walked, f"{i}r"], "local", "rows")
        grid = [*outer, f"{i}b", *(f"columns_{b}" for b in by[:-2])]
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
    if contiguous(kernel, along, width):
        kernel = transposed(kernel, along, tile, width)
    along, tile = f"columns_{walked[-1]}", [f"columns_{j}u", f"columns_{j}v"]
    if contiguous(kernel, along, width):
        kernel = transposed(kernel, along, tile, width)
    else:
        kernel = bind(bind(kernel, tile[1], "vector"), tile[0], "unroll")
        first = f"columns_{j}o"
        if first in grid:
            kernel = split(kernel, along, STEPS, f"{along}s", along, "clip")
            for name in (*grid[grid.index(first) + 1 :], f"{along}s"):
                kernel = reorder(kernel, first, name)
            grid.append(f"{along}s")
    for name in grid:
        kernel = bind(kernel, name, "grid")
    return kernel


def contiguous(kernel: Kernel, name: str, width: int) -> bool:
    """Whether a loop reads whole vectors along memory."""
    (loop,) = loops(kernel, name)
    steps = [affine(e.index[0], loop.var) for e in loads(loop.body)]
    return 1 < width <= (loop.static or loop.var.bound or 0) and bool(steps) and all(c == 1 for c in steps)


def transposed(kernel: Kernel, along: str, tile: Sequence[str], width: int) -> Kernel:
    """Read vectors in the loop ``along``, and store them across it, in the order of the loops ``tile`` inside it."""
    kernel = split(kernel, along, width, along, f"{along}v", "cut")
    for name in tile:
        kernel = reorder(kernel, f"{along}v", name)
    return bind(bind(kernel, f"{along}v", "vector"), tile[-1], "unroll")
