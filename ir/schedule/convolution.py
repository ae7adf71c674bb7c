"""The recipe for products with windows: a register tile that slides over a packed image."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import cast

from kernelforge.ir.index import affine, bounds, conjuncts, free_vars, normalize
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    Kernel,
    Load,
    Op,
    Store,
    Var,
    map_exprs,
    select,
    stmts,
    substitute,
    walk,
)
from kernelforge.ir.schedule import contraction as product
from kernelforge.ir.schedule.factors import factors, multiplied, parallel_loops, sum_loops
from kernelforge.ir.schedule.guards import sink_guard, unguard
from kernelforge.ir.schedule.limits import NEAR, SHORTEST, Limits
from kernelforge.ir.schedule.nests import loads, perfect, size
from kernelforge.ir.schedule.staging import pad, stage
from kernelforge.ir.schedule.steps import bind, fuse, loops, place, reorder, rfactor, split
from kernelforge.ir.schedule.windows import Slide, cross, flat, lengthen, slides

UNROLL = 8
"""Elements of a window's last axis that are written out."""

WHOLE, COLUMN = 16, 32
"""Elements of a window, and of what it walks along last, that are written out where nothing but it is summed."""

SUMS = 28
"""Elements of a window whose sums are in registers together."""

VECTORS = 4
"""Vectors of positions that share each element of such a window, at least."""

ROWS = 4
"""Registers for each vector of positions below each other, whose windows begin an element apart and so share most."""

PACKED = 8
"""Cycles that a vector takes to be packed."""

RAGGED = 1.25
"""How much longer tiles take where blocks differ in size, which leaves extents open."""

WAIT = 0.1
"""Of the time that a piece of the work takes, how long threads wait at the end for the last one."""

MASKS = 4
"""Columns of a window that is read from an image with padding at most: each has a mask of its own."""


def found(kernel: Kernel) -> tuple[Expr, list[Slide]]:
    """Return the factor of a product that is read through windows, with the loops that slide over each other; no loops
    where there is none.
    """
    parallel, sums = parallel_loops(kernel), sum_loops(kernel)
    i, j = parallel[-2].var.name, parallel[-1].var.name
    for factor, other in ((product.factor(kernel, j, i), i), (product.factor(kernel, i, j), j)):
        rest = free_vars(product.factor(kernel, other, i if other == j else j))
        pairs = []
        for p in parallel:
            over = [s for r in sums if p.var not in rest and (s := slides(factor, p, r)) is not None]
            if len(over) == 1:
                pairs.append(over[0])
        if pairs:
            return factor, pairs
    return factor, []


def vector(kernel: Kernel, factor: Expr, pairs: Sequence[Slide], limits: Limits, width: int) -> Kernel:
    """Tile for SIMD registers: positions are one long loop, whatever the shape of the image.

    A thread packs a block of rows of the image once, padded. Its rows then lie behind each other, so that the next
    element of a window is at one distance from the last one for a whole tile of positions, also where a row ends in it.
    The elements between the rows are computed, too, and not stored.
    """
    parallel, sums = parallel_loops(kernel), sum_loops(kernel)
    i, j = parallel[-2].var.name, parallel[-1].var.name
    in_columns = parallel[-1].var in free_vars(factor)
    tile, other = (j, i) if in_columns else (i, j)
    first, *positions = [s.outer.var.name for s in pairs]
    inner = [s.inner.var.name for s in pairs]
    channels = [s.var.name for s in sums if s.var.name not in inner]
    walked = [*channels, *inner] if in_columns else [*inner, *channels]
    outer = [p.var.name for p in parallel if p.var.name not in (first, *positions, other)]

    summed = math.prod(s.static or 1 for s in sums if s.var.name in channels)
    count = math.prod(p.static or 1 for p in parallel if p.var.name in outer)
    o = loops(kernel, other)[0].static or 1
    block, share = _cut(pairs, count, summed, o, in_columns, limits, width)
    accumulators = [product.accumulator(kernel)]
    if share < o:
        kernel = split(kernel, other, share, f"{other}b", other, "clip")
        outer.append(f"{other}b")
    kernel = split(kernel, first, block, f"{first}b", first, "clip")
    outer.append(f"{first}b")
    places = [first, *positions]
    kernel = ordered(kernel, [*outer, *([other, *places] if in_columns else [*places, other])])
    kernel = _sums_ordered(kernel, walked)
    by = [(s.outer.var.name, s.inner.var.name) for s in pairs]
    image = "columns" if in_columns else "rows"
    axes: list[str | tuple[str, str]] = [*channels, *by] if in_columns else [*by, *channels]
    kernel = stage(kernel, product.factor(kernel, tile, other), f"{first}b", axes, "local", image)
    last = f"{image}_{axes[-1] if channels and not in_columns else tile}"

    kernel, whole = _joined(kernel, places, image, in_columns and _whole(pairs[-1].outer, width))
    m = loops(kernel, whole)[0].var.bound or 1
    i, j = (other, whole) if in_columns else (whole, other)
    rows, registers = _tile(o, m, in_columns, limits, width)
    kernel, blocks = product.blocked(kernel, limits)
    walked = [s.var.name for s in sum_loops(kernel)][len(blocks) :]
    if blocks:
        accumulators.append("block")
    kernel = split(kernel, i, rows, f"{i}o", f"{i}r", "guard")
    kernel = split(kernel, j, registers * width, f"{j}o", f"{j}r", "guard")
    kernel = sink_guard(kernel, f"{first}b")
    kernel = product.tiled(kernel, f"{j}o", [blocks, walked] if blocks else [walked], [f"{i}r"], [f"{j}r"])
    filters = o * math.prod(s.static or 1 for s in sums) * limits.vector_bytes // width
    if in_columns and filters <= limits.cache_bytes // 2:  # else the image is what stays in the cache
        kernel = reorder(kernel, f"{i}o", f"{j}o")
    weights = product.factor(kernel, i, j) if in_columns else product.factor(kernel, j, i)
    named = {v.name for v in free_vars(weights)}
    packed = "rows" if in_columns else "columns"
    by_ = [*(p for p in outer if p in named), f"{other}o", *blocks, *walked, f"{other}r"]
    read = {"rows", "columns", *accumulators}
    full = in_columns and o % rows == 0 == share % rows
    if full and isinstance(weights, Load) and product.lies(kernel, weights, f"{i}r", walked, limits):
        read.add(weights.buffer)
        by_ = []
    else:
        kernel = stage(kernel, weights, "", by_, "global", packed)
    kernel = flat(kernel, image, len(by) if in_columns else len(axes))
    for buffer in accumulators:
        kernel = unguard(kernel, buffer, lambda e: e.buffer in read)
    kernel = product.lanes(kernel, i, j, accumulators, width)
    for name in [f"{j}v", f"tile_{j}v"] if in_columns else []:
        if loops(kernel, name):
            kernel = cross(kernel, name)
    if (loops(kernel, walked[-1])[0].static or 0) <= UNROLL:
        kernel = bind(kernel, walked[-1], "unroll")
    kernel = _in_lanes(kernel, last, width)
    if by_:
        *above, along = product.filling(packed, by_[:-1])
        kernel, grid, along = _run(kernel, above, along, len(walked))
        if in_columns:
            kernel, grid = product.filled_rows(kernel, other, along, grid, width)
        else:
            kernel = split(kernel, f"{packed}_{other}r", width, f"{packed}_{other}u", f"{packed}_{other}v", "exact")
            kernel, grid = product.filled_columns(kernel, other, along, grid, width)
        outer += grid
    for name in outer:
        kernel = bind(kernel, name, "grid")
    return kernel


def _tile(o: int, m: int, in_columns: bool, limits: Limits, width: int) -> tuple[int, int]:
    """Return how many rows and registers a tile has for ``o`` channels of ``m`` positions."""
    shape = (o, m) if in_columns else (m, o)
    return product.tile(*shape, limits, width, aligned=not in_columns)


def _cut(
    pairs: Sequence[Slide], count: int, channels: int, o: int, in_columns: bool, limits: Limits, width: int
) -> tuple[int, int]:
    """Return how many rows of an image are worked on together, and for how many of the ``o`` channels of the result.

    The rows stay in the second-level cache of a thread, which packs them. Of what fits, that is best which takes the
    fewest cycles where ``count`` images are shared among threads: the last tiles of a block are in part beyond its end,
    neighbouring blocks both pack what lies between them, each share of the result packs its rows anew, and a block
    reads the filters anew.
    """
    n = pairs[0].outer.static or 1
    beyond = [((s.inner.static or 1) - 1) * s.stride // s.step for s in pairs]
    line = math.prod((s.outer.static or 1) + b for s, b in zip(pairs[1:], beyond[1:], strict=True))
    held = channels * line * math.prod(s.step for s in pairs)
    if in_columns and _whole(pairs[-1].outer, width):
        line = math.prod(s.outer.static or 1 for s in pairs[1:])
    depth = channels * math.prod(s.inner.static or 1 for s in pairs)
    least = min(n, pairs[0].stride + 1)
    most = max(least, min(n, limits.cache_bytes // 2 // (held * limits.vector_bytes // width) - beyond[0]))
    best = (math.inf, most, o)
    for block in sorted({-(-n // k) for k in range(1, max(8 * limits.threads, -(-n // most)) + 1)}, reverse=True):
        if not least <= block <= most:
            continue
        blocks = -(-n // block)
        rows, registers = _tile(o, block * line, in_columns, limits, width)
        across, along = (rows, registers * width) if in_columns else (registers * width, rows)
        tile = product.cycles(rows, registers, aligned=not in_columns) / 2 * depth
        worked = -(-o // across) * -(-block * line // along) * tile
        packed = (block + beyond[0]) * held / width * PACKED
        for parts in {1, *(-(-k * limits.threads // (count * blocks)) for k in (1, 2, 4))}:
            share = -(-o // (across * parts)) * across
            parts = -(-o // share)
            piece = packed + worked / parts + share * depth
            turns = -(-count * blocks * parts // limits.threads) + WAIT
            ragged = RAGGED if n % block or parts * share > max(o, share) else 1
            best = min(best, (turns * piece * ragged, block, min(share, o)))
    return best[1:]


def _run(kernel: Kernel, above: Sequence[str], along: str, most: int) -> tuple[Kernel, list[str], str]:
    """Make one loop of those that go on along memory, of ``most`` at the end; return those above it and its name."""
    grid = list(above)
    for outer in reversed(above[len(above) - most + 1 :]):
        if loops(kernel, along)[0].static is None:
            break
        made = fuse(kernel, outer, along, f"{outer}f")
        (loop,) = loops(made, f"{outer}f")
        if any(affine(e.index[0], loop.var) != 1 for e in loads(loop.body)):
            break
        kernel, along = made, f"{outer}f"
        grid.remove(outer)
    return kernel, grid, along


def _block(pairs: Sequence[Slide], held: int, room: int, share: float) -> int:
    """Return how many rows of an image are worked on together.

    They fit into ``room`` bytes, of which each element takes ``held``, and are no more than ``share`` of all: there has
    to be work for every thread. They are enough for windows to share elements.
    """
    n = pairs[0].outer.static or 1
    beyond = [(s.inner.static or 1) * s.stride // s.step for s in pairs]
    across = zip(pairs[1:], beyond[1:], strict=True)
    line = held * math.prod(((s.outer.static or 1) + more) * s.step for s, more in across) * pairs[0].step
    least = min(n, pairs[0].stride + 1)
    block = min(n, max(2 * beyond[0], room // line - beyond[0]), max(math.ceil(n * share), 8, least))
    return -(-n // min(-(-n // block), n // least))


def _whole(row: For, width: int) -> bool:
    """Whether a row of positions is whole vectors: it keeps its length then, so that what is read and stored beside a
    tile lies as the tile does. Others are as long as in the packed image, and a tile is anywhere in it.
    """
    return (row.static or 1) % width == 0


def _joined(kernel: Kernel, places: Sequence[str], image: str, keep: bool) -> tuple[Kernel, str]:
    """Make one loop of those over positions, whose rows may ``keep`` their length; return its name."""
    whole, long = places[-1], 1
    for name, inner in reversed(list(itertools.pairwise(places))):
        (filled,) = loops(kernel, f"{image}_{inner}")
        long *= filled.static or 1
        kernel = fuse(kernel if keep else lengthen(kernel, whole, long), name, whole, f"{name}f")
        whole = f"{name}f"
    return kernel, whole


def _in_lanes(kernel: Kernel, name: str, width: int) -> Kernel:
    """Run a loop that packs in lanes, once for each phase where what it packs has several."""
    if (loops(kernel, name)[0].static or 0) == 1:
        return kernel
    kernel = bind(split(kernel, name, width, f"{name}o", f"{name}v", "guard"), f"{name}v", "vector")
    if (loops(kernel, f"{name}o")[0].static or UNROLL) < UNROLL:
        kernel = bind(kernel, f"{name}o", "unroll")  # which lanes are in the padding is known then
        if any((s.static or UNROLL) < UNROLL for s in loops(kernel, f"{name}p")):
            kernel = bind(_inward(kernel, f"{name}p"), f"{name}p", "unroll")
    return kernel


def _inward(kernel: Kernel, name: str) -> Kernel:
    """Move a loop inside all that stand directly in each other, but for those that are unrolled or run in lanes."""
    while True:
        (loop,) = loops(kernel, name)
        inner = loop.body[0] if len(loop.body) == 1 else None
        if not isinstance(inner, For) or inner.kind in ("unroll", "vector"):
            return kernel
        kernel = reorder(kernel, name, inner.var.name)


def reduced(kernel: Kernel) -> list[Slide]:
    """Return the loops that slide over each other where a nest reduces windows of one image, for positions that are
    many beside the elements of a window: convolutions of each channel by itself, pooling. No loops where it does not.
    """
    parallel, body = perfect(next(s for s in kernel.body if isinstance(s, For)))
    if sum(isinstance(s, For) for s in body) != 1 or sum(isinstance(s, Alloc) for s in body) != 1:
        return []
    value, sums = _summed(kernel), sum_loops(kernel)
    if value is None:
        return []
    for image in sorted(walk(value), key=_parts, reverse=True):
        pairs = [s for p in parallel for r in sums if (s := slides(image, p, r)) is not None]
        if len({s.outer.var for s in pairs}) == len({s.inner.var for s in pairs}) == len(pairs) == len(sums):
            break
    else:
        return []
    rest = free_vars(substitute(value, {image: Var("image", image.dtype)}))
    few = math.prod(s.inner.static or 0 for s in pairs) <= math.prod(s.outer.static or 0 for s in pairs)
    after = parallel[[p.var for p in parallel].index(pairs[-1].outer.var) + 1 :]
    last = size(after) <= NEAR and free_vars(image).isdisjoint(p.var for p in after)
    whole = _image(value, pairs)
    if whole is None or not _readable(whole, {a.name: a.size for a in kernel.args}):
        return []
    return pairs if few and last and not rest & {s.outer.var for s in pairs} else []


def _readable(expr: Expr, sizes: Mapping[str, Expr]) -> bool:
    """Whether an expression may be evaluated wherever its loops come by: it reads arguments inside of them alone, or
    where a choice of its own says so.
    """
    if isinstance(expr, Load) and isinstance(extent := sizes.get(expr.buffer), Const):
        low, high = bounds(expr.index[0])
        if low is None or high is None or low < 0 or high >= int(extent.value):
            return False
    chosen = isinstance(expr, Op) and expr.op == "select"
    return all(_readable(e, sizes) for e in (expr.parts[:1] if chosen else expr.parts))


def _parts(expr: Expr) -> int:
    return len(set(walk(expr)))


def _summed(kernel: Kernel) -> Expr | None:
    """Return what the one reduction of a nest combines."""
    sums = sum_loops(kernel)
    store = sums[-1].body[0] if sums else None
    return store.value if isinstance(store, Store) and store.op and len(sums[-1].body) == 1 else None


def _image(value: Expr, pairs: Sequence[Slide]) -> Expr | None:
    """Return the largest part of an expression that is read through the windows alone."""
    parts = [e for e in walk(value) if all(slides(e, s.outer, s.inner) for s in pairs)]
    return max(parts, key=_parts, default=None)


def windowed(kernel: Kernel, pairs: Sequence[Slide], limits: Limits, width: int) -> Kernel:
    """Reduce windows: the padded image is in the first-level cache, the results of a tile of positions in registers.

    Positions below each other are a tile, so that what their windows share is loaded once. All results of an image are
    made while it is there. It is read where it lies if its padding is a matter of few masks: a strip of lanes after the
    other where this cache holds it as a whole, tiles side by side where it holds a few rows of them, as strips would be
    far apart in memory.
    """
    parallel = parallel_loops(kernel)
    places = [s.outer.var.name for s in pairs]
    first = places[0]
    image = cast("Expr", _image(cast("Expr", _summed(kernel)), pairs))
    named = free_vars(image)
    outer = [p.var.name for p in parallel if p.var.name not in places and p.var in named]
    inside = [p.var.name for p in parallel if p.var.name not in places and p.var not in named]
    rows = pairs[0].outer.static or 1
    most = max(VECTORS, limits.vector_registers // (ROWS * pairs[max(len(pairs) - 2, 0)].step))
    held, room = limits.vector_bytes // width, limits.local_bytes // 2
    cached = _block(pairs, held, room, 1)
    fits = cached >= rows
    few = "masks" in limits.native and (pairs[-1].inner.static or MASKS + 1) <= MASKS
    once = len(pairs) <= 2 and not inside and cached >= 2 * most
    lies = few and (fits or once) and _lies(image, pairs[-1])
    count = math.prod(p.static or 1 for p in parallel if p.var.name in outer)
    block = rows if lies else _block(pairs, held, room, count / (4 * limits.threads))
    accumulator = product.accumulator(kernel)
    kernel = split(kernel, first, block, f"{first}b", first, "clip")
    outer.append(f"{first}b")
    kernel = ordered(kernel, [*outer, *inside, *places])
    by = [(s.outer.var.name, s.inner.var.name) for s in pairs]
    now = [
        s._replace(outer=loops(kernel, a)[0], inner=loops(kernel, b)[0]) for s, (a, b) in zip(pairs, by, strict=True)
    ]
    image = cast("Expr", _image(cast("Expr", _summed(kernel)), now))
    *across, lane = places
    if not lies:
        kernel = stage(kernel, image, f"{first}b", by, "local", "image")
    tile = [f"{name}r" for name in across[-1:]]
    for name in across[-1:]:
        n = loops(kernel, name)[0].var.bound or 1
        kernel = split(kernel, name, -(-n // -(-n // most)), f"{name}o", f"{name}r", "guard")
    kernel = split(kernel, lane, width if across else VECTORS * width, f"{lane}o", f"{lane}r", "guard")
    kernel = sink_guard(kernel, f"{first}b")
    if across and not lies and (now[-2].inner.static or math.inf) <= COLUMN:
        # what windows below each other share is loaded in one iteration
        names = [s.var.name for s in sum_loops(kernel)]
        column = now[-2].inner.var.name
        for inner in names[names.index(column) + 1 :]:
            kernel = reorder(kernel, column, inner)
    walked = [s.var.name for s in sum_loops(kernel)]
    kernel = product.tiled(kernel, f"{lane}o", [walked], tile, [f"{lane}r"])
    if lies:
        kernel = _kept(kernel, image, now)
    else:
        (filled,) = loops(kernel, f"image_{lane}")
        shape = next(s.shape for s in stmts(kernel.body) if isinstance(s, Alloc) and s.buffer == "image")
        if across:  # rows begin at the start of a vector
            kernel = pad(kernel, "image", len(shape) - 1, -(filled.var.bound or 0) % width)
        kernel = flat(kernel, "image", 2 if across else 1)
    tiled = {f"{name}{part}" for name in places for part in "or"}
    read = _read(image).buffer if lies else "image"
    kernel = unguard(kernel, accumulator, lambda e: e.buffer == read or not any(v.name in tiled for v in free_vars(e)))
    for name in across[-1:] if lies else ():
        if fits:  # which lanes are in the padding is known for all tiles of a strip
            kernel = reorder(kernel, f"{name}o", f"{lane}o")
        below, row = loops(kernel, f"{name}o")[0], loops(kernel, f"{name}r")[0]
        whole = (now[-2].outer.static or 0) // (row.static or 1)
        if 0 < whole < (below.static or 0):  # else each row of all tiles asks whether it is in range
            kernel = split(kernel, f"{name}o", whole, f"{name}w", f"{name}o", "cut")
    kernel = split(kernel, f"{lane}r", width, f"{lane}u", f"{lane}v", "exact")
    kernel = bind(kernel, f"{lane}v", "vector")
    for name in (f"{lane}u", *tile):
        kernel = bind(kernel, name, "unroll")
    written = 1.0
    for name in reversed(walked):
        written *= loops(kernel, name)[0].static or math.inf
        kernel = bind(kernel, name, "unroll") if written <= (WHOLE if name != walked[-1] else COLUMN) else kernel
    kernel = kernel if lies else _in_lanes(kernel, f"image_{places[-1]}", width)
    for name in outer:
        kernel = bind(kernel, name, "grid")
    return kernel


def _read(image: Expr) -> Load:
    """Return the Load of an image that is one, or padding around one."""
    return next(e for e in walk(image) if isinstance(e, Load))


def _lies(image: Expr, lane: Slide) -> bool:
    """Whether an image is in memory but for its padding, with what consecutive lanes read side by side."""
    made = image
    while isinstance(made, Op) and made.op == "select" and isinstance(made.args[2], Const):
        made = made.args[1]
    return isinstance(made, Load) and len(made.index) == 1 and affine(made.index[0], lane.outer.var) == 1


def _kept(kernel: Kernel, image: Expr, pairs: Sequence[Slide]) -> Kernel:
    """Read an image only as far as windows reach that begin in range, where tiles of positions go on beyond."""
    kept, read, fill = image.args if isinstance(image, Op) else (Const(True, "bool"), image, 0)
    for s in pairs:
        reached = normalize((s.outer.extent - 1) * s.step + (s.inner.extent - 1) * s.stride)
        total = s.outer.var * s.step + s.inner.var * s.stride
        if not any(_within(e, total, reached) for e in conjuncts(kept)):
            kept = kept & (total <= reached)
    at: dict[Expr, Expr] = {}
    for s in pairs:
        tiles, inside = (loops(kernel, f"{s.outer.var.name}{part}") for part in "or")
        if tiles:
            at[s.outer.var] = tiles[0].var * (inside[0].static or 1) + inside[0].var
    held: dict[Expr, Expr] = {normalize(substitute(image, at)): normalize(substitute(select(kept, read, fill), at))}
    return dataclasses.replace(kernel, body=tuple(map_exprs(s, lambda e: substitute(e, held)) for s in kernel.body))


def _within(cond: Expr, total: Expr, reached: Expr) -> bool:
    """Whether a condition lets ``total`` be no more than ``reached``."""
    if not isinstance(cond, Op) or cond.op != "lt" or cond.args[0].dtype != "i64":
        return False
    least = bounds(normalize(reached - total + cond.args[0] - cond.args[1] + 1))[0]
    return least is not None and least >= 0


def filtering(kernel: Kernel) -> list[Slide]:
    """Return the loops that slide over each other where a nest sums products with the windows of an image for each
    element of a window: the gradient of a filter of one channel, or of each by itself. No loops where it does not.
    """
    parallel, body = perfect(next(s for s in kernel.body if isinstance(s, For)))
    found, depth = factors(body)
    for image, other in (found, found[::-1]) if depth else ():
        sums = sum_loops(kernel)
        pairs = [s for p in parallel for r in sums if (s := slides(image, p, r)) is not None]
        named = [s.outer.var for s in pairs]
        last = 0 < len(pairs) < len(parallel) and named == [p.var for p in parallel[-len(pairs) :]]
        own = {p.var for p in parallel[: -len(pairs)]} & free_vars(image) <= free_vars(other)
        few = all((s.outer.static or 0) <= (s.inner.static or 0) for s in pairs)
        once = len({s.inner.var for s in pairs}) == len(pairs)
        if last and own and few and once and free_vars(other).isdisjoint(named):
            return pairs
    return []


def filtered(kernel: Kernel, pairs: Sequence[Slide], width: int) -> Kernel:
    """Sum products with windows for all elements of a window, or some of its rows, at once: each has lanes of its own,
    and what is multiplied with all of them is loaded once.
    """
    parallel = parallel_loops(kernel)
    inside, walked = [s.outer.var.name for s in pairs], [s.inner.var.name for s in pairs]
    outer = [p.var.name for p in parallel if p.var.name not in inside]
    around = [s.var.name for s in sum_loops(kernel) if s.var.name not in walked]
    accumulator, lane = product.accumulator(kernel), walked[-1]
    while width > SHORTEST and width // 2 >= (pairs[-1].inner.static or 0):
        width //= 2
    kernel = _sums_ordered(kernel, [*around, *walked])
    kernel = product.tiled(kernel, "", [around], [], inside)
    (image,) = {e for e in next(multiplied(kernel)) if all(slides(e, s.outer, s.inner) for s in pairs)}
    at = (around or outer)[-1]
    kernel = stage(kernel, image, at, list(zip(inside, walked, strict=True)), "local", "image")
    kernel = place(kernel, accumulator, "local")
    tile = list(inside)
    if len(inside) > 1:
        n, row = pairs[0].outer.static or 1, math.prod(s.outer.static or 1 for s in pairs[1:])
        rows = max(r for r in range(1, n + 1) if r == 1 or (n % r == 0 and r * row <= SUMS))
        tile[0] = f"{inside[0]}r"
        kernel = split(kernel, inside[0], rows, f"{inside[0]}o", tile[0], "exact")
    kernel = sink_guard(split(kernel, lane, width, f"{lane}o", f"{lane}v", "guard"), at)
    walked[-1] = f"{lane}o"
    kernel = product.tiled(rfactor(kernel, walked[0], f"{lane}v", "part"), "", [walked], [], tile)
    if (loops(kernel, walked[-1])[0].static or UNROLL) < UNROLL:
        tile.append(walked[-1])  # which lanes are beyond the end is known then
    for name in tile:
        kernel = bind(kernel, name, "unroll")
    kernel = bind(kernel, f"{lane}v", "vector")
    kernel = _in_lanes(kernel, f"image_{inside[-1]}", width)
    for name in outer:
        kernel = bind(kernel, name, "grid")
    return kernel


def ordered(kernel: Kernel, names: Sequence[str]) -> Kernel:
    """Bring the parallel loops of a nest into an order."""
    for k, name in enumerate(names):
        now = [p.var.name for p in parallel_loops(kernel)]
        for before in reversed(now[k : now.index(name)]):
            kernel = reorder(kernel, before, name)
    return kernel


def _sums_ordered(kernel: Kernel, names: Sequence[str]) -> Kernel:
    for k, name in enumerate(names):
        now = [s.var.name for s in sum_loops(kernel)]
        for before in reversed(now[k : now.index(name)]):
            kernel = reorder(kernel, before, name)
    return kernel
