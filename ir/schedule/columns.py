"""The recipe for reductions across memory: sums of columns, running sums of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from kernelforge.ir.cost import TRANSCENDENTAL, effort
from kernelforge.ir.index import affine
from kernelforge.ir.kernel import Alloc, Expr, For, Kernel, Stmt, Store, i64, walk
from kernelforge.ir.schedule.guards import lift_guard
from kernelforge.ir.schedule.limits import NEAR, SHORTEST, Limits
from kernelforge.ir.schedule.maps import SHORT, in_lanes, rest_in_lanes, shortened, solo
from kernelforge.ir.schedule.nests import grid, loads, size, unit
from kernelforge.ir.schedule.staging import nested, stage, store_after
from kernelforge.ir.schedule.steps import bind, fission, loops, place, reorder, split

FAR = 1024
"""Elements from one row to the next beyond which a few columns of each are too little to read: every row is a page."""

WIDE, ROWS = 1024, 4
"""Columns that are reduced together then, and rows at a time: the results are loaded and stored once for each time."""

BLOCK_ROWS = 8
"""The same where whole rows of a block are added to one that lies in memory."""


def vector_column(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    """Reduce across memory: lanes own columns, and walk the rows together."""
    kernel = in_columns(kernel, parallel[-1], size(parallel[:-1]), limits, width)
    return grid(kernel, [p.var.name for p in parallel], 8 * limits.threads)


def in_columns(kernel: Kernel, last: For, outer: int, limits: Limits, width: int) -> Kernel:
    """Run the loop ``last``, in which reductions stand, in lanes that walk together; ``outer`` iterations of others are
    there for threads to share.
    """
    name, n = last.var.name, last.static or 0
    width = shortened(width, n)
    if width == 1:
        return kernel
    least = SHORTEST if n < SHORT * width else width
    walk = _walk(last.body)
    wide = min(WIDE, n, n * outer // (2 * limits.threads))
    wide = n // -(-n // max(wide, 1)) // width * width
    if walk is not None and wide >= 8 * width:
        kernel = _rows(kernel, name, walk, wide, width)
        return rest_in_lanes(kernel, name, f"{name}i_t", width, least, _lanes)
    unroll = max(u for u in (4, 2, 1) if u == 1 or (n >= u * width and outer * (n // (u * width)) >= limits.threads))
    unroll = min(limits.choose("columns", unroll, (1, 2, 4, 8)), n // width)
    kernel = split(kernel, name, unroll * width, name, f"{name}i", "cut")
    if unroll > 1:
        kernel = split(kernel, f"{name}i", width, f"{name}u", f"{name}v", "exact")
        tile = [f"{name}v", f"{name}u"]
    else:
        tile = [f"{name}i"]
    kernel = _tile(kernel, tile)
    return rest_in_lanes(kernel, name, f"{name}i_t", width if unroll > 1 else width // 2, least, _lanes)


def vector_found(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel | None:
    """Walk rows that data finds with lanes side by side along each; threads own columns. None where memory does not
    run along the last loop.
    """
    last = parallel[-1]
    name, n = last.var.name, last.static or 0
    width = shortened(width, n)
    if width == 1 or not unit(last):
        return None
    pieces = -(-limits.threads // size(parallel[:-1]))
    chunk = -(-n // (pieces * width)) * width
    names = [p.var.name for p in parallel]
    if pieces > 1 and chunk < n:
        names[-1] = f"{name}g"
        kernel = split(kernel, name, chunk, names[-1], name, "clip")
        last = dataclasses.replace(last, extent=i64(chunk))
    else:
        names.pop()
    for inner in list(_inside(kernel, name, ())):
        kernel = reorder(kernel, name, inner)
    kernel = in_lanes(lift_guard(kernel, name), last, width)
    return grid(kernel, names, 8 * limits.threads) if names else solo(kernel)


def vector_running(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel | None:
    """Walk along several rows together, each in a lane, where what is made of each element is stored: by square tiles,
    which are turned in registers on their way from memory and to it. None where memory does not run along the rows.
    """
    last = parallel[-1]
    name, n = last.var.name, last.static or 0
    walk = next(s for s in last.body if isinstance(s, For))
    r, lanes = walk.var.name, shortened(width, n)
    stores = [s for s in walk.body if isinstance(s, Store) and len(s.index) == 1]
    if (
        min(lanes, walk.static or 0) < max(lanes, SHORTEST)
        or len(stores) != 1
        or not all(_turns(s.index[0], walk, last) for s in stores)
    ):
        return None
    kernel = split(kernel, name, lanes, name, f"{name}v", "cut")
    kernel = _tile(kernel, [f"{name}v"])
    kernel = split(kernel, r, lanes, r, f"{r}i", "cut")
    tile = [f"{r}i", f"{name}v"]
    inner, lane = loops(kernel, tile[0])[0], loops(kernel, tile[1])[0]
    for k, load in enumerate(e for e in loads(inner.body) if _turns(e.index[0], inner, lane)):
        kernel = stage(kernel, load, r, tile, "local", f"tile{k}")
        kernel = reorder(kernel, f"tile{k}_{tile[0]}", f"tile{k}_{tile[1]}")
        kernel = bind(bind(kernel, f"tile{k}_{tile[0]}", "vector"), f"tile{k}_{tile[1]}", "unroll")
    kernel = store_after(kernel, stores[0].buffer, r, tile, "made")
    kernel = bind(bind(kernel, f"made_{tile[0]}", "unroll"), f"made_{tile[1]}", "vector")
    least = SHORTEST if n < SHORT * lanes else lanes
    kernel = rest_in_lanes(kernel, name, f"{name}v_t", lanes // 2, least, _lanes)
    return grid(kernel, [p.var.name for p in parallel], 8 * limits.threads)


def _turns(index: Expr, walk: For, last: For) -> bool:
    """Whether memory runs along the loop ``walk``, and the iterations of ``last`` are far from each other in it."""
    return affine(index, walk.var) in (1, -1) and abs(affine(index, last.var) or 0) > NEAR


def vector_block(kernel: Kernel, parallel: Sequence[For], row: For, limits: Limits, width: int) -> Kernel | None:
    """Add up the rows of a block several at a time, if the loop ``row`` does nothing else with them and what it adds
    takes few operations.
    """
    path = nested(row)
    adds = [s for s in path[-1].body if isinstance(s, Store) and s.op]
    work = effort(e for s in adds for e in walk(s.value) if e.dtype != "i64")
    if (
        len(path) < 2
        or (row.static or 0) < BLOCK_ROWS
        or len(adds) != len(path[-1].body)
        or work * BLOCK_ROWS > TRANSCENDENTAL
    ):
        return None
    few = f"{row.var.name}r"
    kernel = split(kernel, row.var.name, BLOCK_ROWS, row.var.name, few, "cut")
    for loop in path[1:]:
        kernel = reorder(kernel, few, loop.var.name)
    kernel = bind(kernel, few, "unroll")
    for loop in loops(kernel, path[-1].var.name)[:1]:
        kernel = in_lanes(kernel, loop, width)
    return grid(kernel, [p.var.name for p in parallel], 8 * limits.threads)


def _walk(body: Sequence[Stmt]) -> For | None:
    """Return the loop of a nest's one reduction, if its steps are far apart in memory."""
    sums = [s for s in body if isinstance(s, For)]
    if len(sums) != 1 or sum(isinstance(s, Alloc) for s in body) != 1:
        return None
    (walk,) = sums
    simple = len(walk.body) == 1 and isinstance(walk.body[0], Store) and bool(walk.body[0].op)
    far = any((affine(e.index[0], walk.var) or 0) >= FAR for e in loads(walk.body))
    return walk if simple and far and (walk.static or 0) >= FAR // 16 else None


def _rows(kernel: Kernel, name: str, walk: For, wide: int, width: int) -> Kernel:
    """Reduce many columns together, a few rows at a time: rows are read along memory, and the results stay in the
    first-level cache.
    """
    result = next(s.buffer for s in walk.body if isinstance(s, Store))
    kernel = split(kernel, name, wide, name, f"{name}i", "cut")
    kernel = split(kernel, f"{name}i", width, f"{name}u", f"{name}v", "exact")
    tile = [f"{name}v", f"{name}u"]
    for loop in tile:
        kernel = fission(kernel, loop)
    for loop in tile:
        kernel = reorder(kernel, loop, walk.var.name)
    kernel = place(kernel, result, "local")
    few = f"{walk.var.name}r"
    kernel = split(kernel, walk.var.name, ROWS, walk.var.name, few, "cut")
    for loop in reversed(tile):
        kernel = reorder(kernel, few, loop)
    kernel = bind(kernel, few, "unroll")
    return bind(kernel, f"{name}v", "vector")


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


def _lanes(kernel: Kernel, name: str) -> Kernel:
    return _tile(kernel, [name])


def _inside(kernel: Kernel, name: str, tile: Sequence[str]) -> Iterator[str]:
    """Yield the loops that stand directly in a loop over ``name``, from the outermost on."""
    for loop in loops(kernel, name):
        body = loop.body
        while len(body) == 1 and isinstance(body[0], For) and body[0].var.name not in tile:
            yield body[0].var.name
            body = body[0].body
