"""The recipe for products of matrices: a register tile over packed panels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import MATH_BINARY, MATH_UNARY, Alloc, Expr, Kernel, Load, Op, Store, stmts, walk
from kernelforge.ir.schedule.factors import multiplied, parallel_loops, sum_loops
from kernelforge.ir.schedule.guards import sink_guard, unguard
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.nests import loads
from kernelforge.ir.schedule.staging import copy_out, stage
from kernelforge.ir.schedule.steps import bind, fission, fuse, loops, partial, place, reorder, split
from kernelforge.ir.schedule.windows import Slide

PANEL = 22
"""Panels of rows, read through windows, that a thread keeps packed at most beside one panel of columns."""

SHARE = 16
"""Tiles of rows that use a packed panel of columns at least: packing it takes as long as two of them."""

LEAST_SHARE, MUCH = 4, 1 << 19
"""The same where too few panels of columns leave threads idle, with so many multiply-adds in a block of the sum."""

DEPTH = 512
"""Products that one accumulator of a tile sums up, of sums three times as long: panels of that depth stay in the
second-level cache, and the error of a sum grows with the number of blocks rather than that of products."""

STEPS = 16
"""Steps of the sum that are packed at a time: what is read and written meanwhile stays in the cache."""

LONG = 8
"""Operations on an element of the result beyond which the code for a whole tile of them is too much to unroll."""

MATHEMATICS = frozenset(MATH_UNARY + MATH_BINARY)

WAY = 4096
"""Bytes that a first-level cache holds of what it may keep in one place: addresses so far apart share a set."""

FLIGHT = 8
"""Multiply-adds on their way at once: two start in a cycle, and each takes four."""


def factor(kernel: Kernel, by: str, without: str) -> Expr:
    """Find the factor of the accumulated product that depends on the loop ``by`` and not on ``without``."""
    for pair in multiplied(kernel):
        for e in pair:
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


def tiled(
    kernel: Kernel, j: str, walked: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str]
) -> Kernel:
    """From loops over tiles and in tiles, make the register tile: accumulators by row and column inside the loops
    ``walked``, at each of their levels.

    ``rows`` and ``columns`` are the loops inside the tile, outermost first; ``j`` is the loop over tiles of columns.
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


def _walk(kernel: Kernel, width: int, kept: Collection[str]) -> Kernel:
    """Make the longest loop of the sum the innermost, before others one of whole vectors along memory, so that panels
    are packed in these; and one loop of those too short for lanes, as over a window, but for those to be ``kept``.
    """
    sums = sum_loops(kernel)
    read = loads(sums[-1].body)

    def rank(k: int) -> tuple[bool, int, int]:
        n = sums[k].var.bound or 0
        return n >= width and any(affine(e.index[0], sums[k].var) == 1 for e in read), n, k

    longest = max(range(len(sums)), key=rank)
    for loop in sums[longest + 1 :]:
        kernel = reorder(kernel, sums[longest].var.name, loop.var.name)
    sums = sum_loops(kernel)
    while len(sums) > 1 and (sums[-1].static or width) < width and not {s.var.name for s in sums[-2:]} & set(kept):
        outer, inner = (s.var.name for s in sums[-2:])
        kernel = fuse(kernel, outer, inner, f"{outer}f")
        sums = sum_loops(kernel)
    return kernel


def accumulator(kernel: Kernel) -> str:
    """Return the buffer that the sum of products is made in."""
    return next(s.buffer for s in stmts(kernel.body) if isinstance(s, Alloc))


def cycles(rows: int, registers: int, aligned: bool) -> int:
    """Return twice the cycles that a tile's step of the sum takes, as two multiply-adds or two loads start in each: it
    multiplies each row with each register, and loads both. A register that is not ``aligned`` in memory is two loads.
    """
    return max(rows * registers, rows + registers * (1 if aligned else 2), FLIGHT)


def tile(m: int, n: int, limits: Limits, width: int, depth: int = 0, aligned: bool = True) -> tuple[int, int]:
    """Return how many rows and how many registers of columns a tile has for a result of ``m`` by ``n``.

    The fewest cycles for the whole result are best; of tiles that take as many, those whose panel of columns, ``depth``
    elements long, the first-level cache keeps while rows go by.
    """
    best = (math.inf, 0, False, 0, 0)
    for registers in range(1, 5):
        rows = (limits.vector_registers - registers - 1) // registers
        for r in range(min(rows, m, 16), 0, -1):
            tiles = -(-m // r) * -(-n // (registers * width))
            leaves = depth * registers * limits.vector_bytes > limits.local_bytes * 3 // 4
            best = min(best, (tiles * cycles(r, registers, aligned), -r * registers, leaves, r, registers))
    *_, rows, registers = best
    return min(limits.choose("rows", rows, (4, 5, 6, 8, 12)), m), limits.choose("columns", registers, (1, 2, 3, 4))


def blocked(kernel: Kernel, limits: Limits) -> tuple[Kernel, list[str]]:
    """Make a sum longer than ``DEPTH`` block by block; return the loops over blocks, which come first."""
    most = limits.choose("depth", DEPTH, (256, 384, 512, 2048))
    blocks: list[str] = []
    sums = sum_loops(kernel)
    depth = math.prod(s.var.bound or 1 for s in sums)
    for loop in sums:
        name, extent = loop.var.name, loop.var.bound or 1
        if depth <= 3 * most:
            break
        depth //= extent
        if depth >= most:
            blocks.append(name)
            continue
        share = -(-extent // -(-depth * extent // most))
        blocks.append(f"{name}b")
        kernel = split(kernel, name, share, f"{name}b", name, "clip")
        depth *= share
        break
    if blocks:
        kernel = partial(kernel, sum_loops(kernel)[len(blocks)].var.name, "block")
    return kernel, blocks


def _outside(kernel: Kernel, name: str, block: Sequence[str]) -> Kernel:
    """Let a loop around blocks of the sum go through all of its iterations for each block."""
    kernel = fission(kernel, name)
    for b in block:
        kernel = reorder(kernel, name, b)
    return kernel


def lanes(kernel: Kernel, i: str, j: str, accumulators: Sequence[str], width: int) -> Kernel:
    """Run the columns of a tile in lanes, and write out its rows."""
    wide = [j]
    if len(accumulators) > 1:
        kernel = place(kernel, accumulators[0], "local")
    elif _operations(kernel, accumulators[0]) > LONG:
        kernel = copy_out(kernel, accumulators[0], "tile")
        wide.append(f"tile_{j}")
    for name in wide:
        kernel = split(kernel, f"{name}r", width, f"{name}u", f"{name}v", "exact")
        kernel = bind(bind(kernel, f"{name}v", "vector"), f"{name}u", "unroll")
    return bind(kernel, f"{i}r", "unroll")


@dataclasses.dataclass(frozen=True, slots=True)
class _Tiles:
    """A product that is cut into tiles.

    Attributes:
        i: the loop over rows; ``io`` is the one over tiles, ``ir`` that in a tile.
        j: the loop over columns, likewise.
        outer: the parallel loops around them.
        block: the loops over blocks of the sum.
        walked: the loops of the sum that a tile walks through.
        narrow: the loop over pairs of its elements, where these are multiplied in pairs.
        rows: how many rows a tile has.
        columns: how many columns it has.
        count: how many tiles there are along the rows.
        across: how many there are of columns, in all iterations of ``outer``.
        depth: elements of the sum in a block.
        divided: whether tiles of columns end where the columns do.
    """

    i: str
    j: str
    outer: list[str]
    block: list[str]
    walked: list[str]
    narrow: list[str]
    rows: int
    columns: int
    count: int
    across: int
    depth: int
    divided: bool


def vector(kernel: Kernel, limits: Limits, width: int, pairs: Sequence[Slide] = ()) -> Kernel:
    """Tile for SIMD registers, in the loops of BLIS (Van Zee and van de Geijn, 2015).

    A tile of rows and columns that fits the registers walks along the sum: through a packed panel of columns, and
    through rows. A long sum is made in blocks of ``DEPTH``, each added to the results so far.

    ``pairs`` are outer loops that slide over loops of the sum: windows of a filter's gradient, each with its product.
    """
    kernel = _walk(kernel, width, [s.inner.var.name for s in pairs])
    parallel = parallel_loops(kernel)
    i, j = parallel[-2].var.name, parallel[-1].var.name
    m, n = parallel[-2].static or 1, parallel[-1].static or 1
    accumulators = [accumulator(kernel)]
    kernel, block = blocked(kernel, limits)
    whole = sum_loops(kernel)[len(block) :]
    walked = [s.var.name for s in whole]
    depth = math.prod(s.var.bound or 1 for s in whole)
    rows, registers = tile(m, n, limits, width, depth)
    if n <= registers * width:  # rows of whole tiles need no packing
        rows = next((r for r in range(rows, rows // 2, -1) if m % r == 0), rows)
    if block:
        accumulators.append("block")
    narrow = [] if pairs or not _in_pairs(kernel, i, j, limits) else [f"{walked[-1]}p"]
    for name in narrow:
        kernel, depth = split(kernel, walked[-1], 2, walked[-1], name, "guard"), -(-depth // 2)
    kernel = split(kernel, i, rows, f"{i}o", f"{i}r", "guard")
    kernel = split(kernel, j, registers * width, f"{j}o", f"{j}r", "guard")
    kernel = sink_guard(kernel, f"{i}o")
    kernel = tiled(kernel, f"{j}o", [block, walked] if block else [walked], [f"{i}r"], [f"{j}r"])

    across = math.prod(p.static or 1 for p in parallel[:-2]) * -(-n // (registers * width))
    outer = [p.var.name for p in parallel[:-2]]
    tiles = _Tiles(
        i,
        j,
        outer,
        block,
        walked,
        narrow,
        rows,
        registers * width,
        -(-m // rows),
        across,
        depth,
        n % (registers * width) == 0,
    )
    if pairs:
        kernel, grid, along = _slid(kernel, tiles, limits, pairs, limits.vector_bytes // width)
        read = {"rows", "columns"}
    else:
        kernel, grid, read = _shared(kernel, tiles, limits, m % rows == 0)
        along = [f"{name}_{walked[-1]}" for name in ("rows", "columns")]
    for buffer in accumulators:
        kernel = unguard(kernel, buffer, lambda e: e.buffer in read or e.buffer in accumulators)
    kernel = lanes(kernel, i, j, accumulators, width)
    kernel, grid = _filled(kernel, tiles, along, grid, read, width)
    for name in grid:
        kernel = bind(kernel, name, "grid")
    return kernel


def _shared(kernel: Kernel, t: _Tiles, limits: Limits, whole: bool) -> tuple[Kernel, list[str], set[str]]:
    """Let a thread pack a panel of columns, which stays in its second-level cache while all rows go by.

    Rows that make ``whole`` tiles are read as they are where they lie along the sum, or across it and one panel has all
    columns. Else they are packed tile by tile where one panel has all columns, and elsewhere once for all threads.
    Columns are not packed where they lie as a tile reads them and one tile has all rows. Returns the kernel with the
    loops of its grid and the buffers that a tile reads.
    """
    i, j = f"{t.i}o", f"{t.j}o"
    left = _packed(factor(kernel, t.i, t.j), t.narrow)
    above = [o for o in t.outer if any(v.name == o for v in free_vars(left))]
    panels = t.across // math.prod(loops(kernel, o)[0].static or 1 for o in above)
    grid, read, by_tile = [*t.outer, j], {"rows", "columns"}, False
    in_place = whole and not t.narrow
    if in_place and isinstance(left, Load) and lies(kernel, left, f"{t.i}r", t.walked[-1:], limits, panels == 1):
        read = {left.buffer, "columns"}
    elif panels == 1 < t.count:
        by_tile = True
    else:
        kernel = stage(kernel, left, "", [*above, i, *t.block, *t.walked, f"{t.i}r", *t.narrow], "global", "rows")
        grid += filling("rows", [*above, i, *t.block, *t.walked[:-1]])
    kernel = reorder(kernel, i, j)
    at = j
    much = t.count * t.rows * t.across * t.columns * t.depth >= MUCH
    least = min(SHARE, max(LEAST_SHARE, -(-t.count * t.across // limits.threads))) if much else SHARE
    share = max(-(-t.count // -(-4 * limits.threads // t.across)), least)
    share = limits.choose("panels", min(share, t.count), (8, 16, 32, 64, 128))
    if share < t.count:
        at = f"{t.i}b"
        kernel = split(kernel, i, share, at, i, "clip")
        grid.append(at)
    if t.block:
        kernel, at = _outside(kernel, i, t.block), t.block[-1]
    if by_tile:
        left = _packed(factor(kernel, t.i, t.j), t.narrow)
        kernel = stage(kernel, left, i, [*t.walked, f"{t.i}r", *t.narrow], "local", "rows")
    right = _packed(factor(kernel, t.j, t.i), t.narrow)
    column = loops(kernel, f"{t.j}r")[0]
    if t.count == 1 and not t.narrow and isinstance(right, Load) and affine(right.index[0], column.var) == 1:
        if t.divided:
            return kernel, grid, {*read, right.buffer} - {"columns"}
        if "masks" in limits.native:
            return stage(kernel, right, t.walked[-1], [column.var.name], "register", "columns"), grid, read
    return stage(kernel, right, at, [*t.walked, f"{t.j}r", *t.narrow], "local", "columns"), grid, read


def lies(kernel: Kernel, factor: Load, row: str, walked: Sequence[str], limits: Limits, once: bool = False) -> bool:
    """Whether rows are in memory one element after the other as a tile walks along the sum, at such a distance that
    those of a tile do not evict each other from the first-level cache; or, of what one tile alone reads, side by side.
    """
    if once and affine(factor.index[0], loops(kernel, row)[0].var) == 1:
        return True
    extent = 1
    for name in reversed(walked):
        loop = loops(kernel, name)[0]
        if affine(factor.index[0], loop.var) != extent:
            return False
        extent *= loop.var.bound or 1
    tile = loops(kernel, row)[0]
    apart = (affine(factor.index[0], tile.var) or 0) * DTYPES[factor.dtype].itemsize
    together = (tile.static or 1) * math.gcd(apart, WAY)  # bytes of the cache that has the sets of a column
    return together < limits.local_bytes * 3 // 4


def _slid(
    kernel: Kernel, t: _Tiles, limits: Limits, pairs: Sequence[Slide], itemsize: int
) -> tuple[Kernel, list[str], list[str]]:
    """Pack by the sums of the loops that slide over each other, which windows have most of their elements in common by.

    A thread keeps a block of ``panels`` panels of rows in its second-level cache beside the panel of columns that it
    works with. Returns the kernel with the loops of its grid and those that pack along the sum.
    """
    i, j = t.i, t.j
    room = limits.cache_bytes * 3 // 4 - t.depth * t.columns * itemsize
    slid = {s.inner.var.name: s.outer.var.name for s in pairs}
    # a thread packs its rows for all windows
    together = set(t.outer) == set(slid.values()) and t.count >= limits.threads
    items = t.across // (loops(kernel, f"{j}o")[0].static or 1)
    enough = -(-t.count // limits.threads) if together else -(-t.count * items // (8 * limits.threads))
    panels = max(1, min(PANEL, max(room // (t.depth * t.rows * itemsize), 3), enough))
    panels = limits.choose("panels", -(-t.count // -(-t.count // panels)), (4, 8, 16, 32, 64))

    def axes(tile: str, factor: Expr, around: Sequence[str] = ()) -> list[str | tuple[str, str]]:
        """Return what a factor is packed by inside ``around``: outer loops, the tile, the sum, what is in it."""
        names = {v.name for v in free_vars(factor)}
        over = {w: p for w, p in slid.items() if p in names and w not in around}
        alone = [p for p in t.outer if p in names and p not in over.values()]
        summed = [(over[w], w) if w in over else w for w in (*t.block, *t.walked) if w not in around]
        return [*alone, tile, *summed, f"{tile[:-1]}r"]

    grid = [*t.outer, f"{i}b"]
    along: list[str] = []
    left, right = factor(kernel, i, j), factor(kernel, j, i)
    for name, tile, f in (("columns", f"{j}o", right), ("rows", f"{i}o", left)):
        by = axes(tile, f)
        along.insert(0, filling(name, by)[-2])
        if not together:
            kernel = stage(kernel, f, "", by, "global", name)
            grid += filling(name, by[:-2])
    kernel = split(kernel, f"{i}o", panels, f"{i}b", f"{i}p", "clip")
    kernel = reorder(kernel, f"{i}p", f"{j}o")
    inside = [f"{i}p", f"{j}o"]
    if together:
        for name in reversed(t.outer):
            kernel = reorder(kernel, name, f"{i}b")
        inside, grid = [*inside, *reversed(t.outer)], [f"{i}b"]
    for name in inside if t.block else ():
        kernel = _outside(kernel, name, t.block)
    if together:
        at = t.block[-1] if t.block else f"{i}b"
        kernel = stage(kernel, right, at, axes(f"{j}o", right, t.block), "local", "columns")
        kernel = stage(kernel, factor(kernel, i, j), at, axes(f"{i}p", left, t.block), "local", "rows")
    return kernel, grid, along


def _in_pairs(kernel: Kernel, i: str, j: str, limits: Limits) -> bool:
    """Whether both factors are bf16 and the device adds two of their products to an f32 at once."""
    found = (factor(kernel, i, j), factor(kernel, j, i))
    return "bf16dot" in limits.native and all(isinstance(e, Op) and _packed(e, "p").dtype == "bf16" for e in found)


def _packed(factor: Expr, narrow: Collection[str]) -> Expr:
    """Return what is packed of a factor: in pairs, what it is before it is cast."""
    return factor.args[0] if narrow and isinstance(factor, Op) and factor.op == "cast" else factor


def _filled(
    kernel: Kernel, t: _Tiles, along: Sequence[str], grid: list[str], read: Collection[str], width: int
) -> tuple[Kernel, list[str]]:
    """Say how panels of rows and of columns are packed, of those that are ``read``; return the loops of the grid with
    those that packing has of its own.
    """
    if "columns" in read:
        kernel = split(kernel, f"columns_{t.j}r", width, f"columns_{t.j}u", f"columns_{t.j}v", "exact")
    if t.narrow:
        kernel = bind(kernel, t.narrow[0], "unroll")
        kernel = _filled_in_pairs(kernel, f"rows_{t.narrow[0]}", f"rows_{t.i}r")
        return _filled_in_pairs(kernel, f"columns_{t.narrow[0]}", f"columns_{t.j}v"), grid
    if "rows" in read:
        kernel, grid = filled_rows(kernel, t.i, along[0], grid, width)
    return filled_columns(kernel, t.j, along[1], grid, width) if "columns" in read else (kernel, grid)


def filled_rows(kernel: Kernel, i: str, step: str, grid: list[str], width: int) -> tuple[Kernel, list[str]]:
    """Pack rows in vectors, across memory where it runs along the sum; return the loops of the grid with those that
    packing has of its own.
    """
    tile = f"rows_{i}r"
    if contiguous(kernel, step, width):
        return transposed(kernel, step, [tile], width), grid
    (loop,) = loops(kernel, tile)
    if not contiguous(kernel, tile, loop.static or 0):
        return kernel, grid
    return _in_steps(bind(kernel, tile, "vector"), f"rows_{i}o", step, grid)


def filled_columns(kernel: Kernel, j: str, step: str, grid: list[str], width: int) -> tuple[Kernel, list[str]]:
    """Do the same for columns; without the loop ``step``, a tile's are read in each of its steps."""
    if loops(kernel, step) and contiguous(kernel, step, width):
        kernel = transposed(kernel, step, [f"columns_{j}u", f"columns_{j}v"], width)
        return reorder(kernel, step, f"columns_{j}u"), grid  # few lines of memory are read at a time, each to its end
    kernel = bind(bind(kernel, f"columns_{j}v", "vector"), f"columns_{j}u", "unroll")
    return _in_steps(kernel, f"columns_{j}o", step, grid)


def _in_steps(kernel: Kernel, panels: str, step: str, grid: list[str]) -> tuple[Kernel, list[str]]:
    """Pack few steps of all ``panels`` at a time, if for all threads."""
    if panels not in grid:
        return kernel, grid
    buffer = panels[: panels.index("_") + 1]
    kernel = split(kernel, step, STEPS, f"{step}s", step, "clip")
    for name in (*(g for g in grid[grid.index(panels) + 1 :] if g.startswith(buffer)), f"{step}s"):
        kernel = reorder(kernel, panels, name)
    return kernel, [*grid, f"{step}s"]


def _filled_in_pairs(kernel: Kernel, pair: str, tile: str) -> Kernel:
    """Pack pairs of elements: whole ones where they lie side by side in memory, else two rows in turn."""
    if contiguous(kernel, pair, 2):
        return bind(kernel, pair, "vector")
    if loops(kernel, tile)[0].static in (4, 8, 16):
        kernel = bind(reorder(kernel, tile, pair), tile, "vector")
    return bind(kernel, pair, "unroll")


def filling(buffer: str, by: Sequence[str | tuple[str, str]]) -> list[str]:
    """Return the loops that fill a buffer, of a pair the one over both of its loops."""
    return [f"{buffer}_{b if isinstance(b, str) else b[0]}" for b in by]


def contiguous(kernel: Kernel, name: str, width: int) -> bool:
    """Whether a loop reads whole vectors along memory, most of what it reads at least."""
    (loop,) = loops(kernel, name)
    steps = [affine(e.index[0], loop.var) for e in loads(loop.body)]
    return 1 < width <= (loop.static or loop.var.bound or 0) and 2 * sum(c == 1 for c in steps) > len(steps)


def transposed(kernel: Kernel, along: str, tile: Sequence[str], width: int) -> Kernel:
    """Read vectors in the loop ``along``, and store them across it, in the order of the loops ``tile`` inside it; the
    last one may be part of a vector.
    """
    kernel = split(kernel, along, width, along, f"{along}v", "cut")
    whole = [f"{along}v"]
    if loops(kernel, f"{along}v_t"):
        kernel = split(kernel, f"{along}v_t", width, f"{along}t", f"{along}w", "guard")
        whole.append(f"{along}w")
    for vectors in whole:
        for name in tile:
            kernel = reorder(kernel, vectors, name)
        kernel = bind(kernel, vectors, "vector")
    return bind(kernel, tile[-1], "unroll")
