"""The recipes for maps: every element on its own."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.ir.cost import TRANSCENDENTAL, effort
from kernelforge.ir.index import affine, bounds, free_vars, poly
from kernelforge.ir.kernel import Const, For, Kernel, Let, Load, Op, Stmt, Store, Var, exprs, i64, stmts, walk
from kernelforge.ir.schedule.limits import LINE, NEAR, SHORTEST, Limits
from kernelforge.ir.schedule.nests import grid, loads, perfect, size, unit
from kernelforge.ir.schedule.staging import stage
from kernelforge.ir.schedule.steps import (
    bind,
    fission,
    in_line,
    in_pieces,
    loops,
    reorder,
    residues,
    split,
    substituted,
)
from kernelforge.ir.schedule.steps import fuse as fuse_loops

CHUNK = 16384
"""Elements of a map that one grid iteration of a ``vector`` device takes: small beside L2, large beside a launch."""


SHORT = 8
"""Loops of fewer vectors run what is left over in vectors of half the lanes, and so on, down to ``SHORTEST``."""

TOGETHER, WORTH, BRIEF = 8, 0.75, 400
"""How many vectors are made together at most, what share of the operations of each that must leave, and of how many
operations a vector may be: values of more do not stay in registers (normals of f64 took 1.6 times as long so)."""

PIECES = 5
"""Pieces of a loop, at most, of which each chooses one value throughout; ends of lines are pieces besides."""

ALONE = 64
"""Elements of a part of a row that is a loop of its own, at least, where two lines are more."""

PARTS, PART = 16, 1 << 10
"""Parts of a map that are nests of their own, at most, and elements of each, at least; up to ``PIECES`` parts may be
smaller where one is half of all or more."""

APART = 2
"""Transcendental functions of an element from which on lanes are worth it where they read or write elements apart."""

TILES, LENGTH = 8, 256
"""Tiles beside each other that are turned one after another, and elements that a thread writes in a row, at least."""

TURNS = 4
"""Copies of a map, one for each kind of element, that are made at most."""


def vector_map(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    kernel, parallel, columns = _in_columns(kernel, parallel, width)
    last = parallel[-1]
    name, n = last.var.name, last.static or 0
    outer = size(parallel[:-1])
    wanted = 8 * limits.threads
    turned = _in_turn(kernel, parallel, width, columns)
    across = "" if turned is not kernel else _across(kernel, parallel, width)
    if across:
        return _tiled(kernel, parallel, across, width, wanted)
    most = limits.choose("chunk", CHUNK, (4096, 8192, 32768, 65536))
    if outer < wanted and outer * n * columns > most:
        pieces = -(-wanted // outer)
        chunk = max(min(most // columns, n // pieces), 1024 // columns) // 64 * 64
        if n > chunk:
            kernel = split(kernel, name, chunk, f"{name}g", name, "clip")
            kernel = in_lanes(kernel, dataclasses.replace(last, extent=i64(chunk)), width, limits.side)
            return grid(kernel, [*(p.var.name for p in parallel[:-1]), f"{name}g"], 1 << 62)
    ends = _ends(last, width) if len(parallel) > 1 else []
    if ends:
        ends = _lined(last, ends)
        kernel = in_pieces(kernel, name, ends)
        for part in [name, *(f"{name}_p{k + 1}" for k in range(len(ends)))]:
            kernel = in_lanes(kernel, loops(kernel, part)[0], width, limits.side, "masks" in limits.native)
        return grid(kernel, [p.var.name for p in parallel[:-1]], wanted)
    last = loops(turned, name)[0]
    masks = "masks" in limits.native and _effort(last) >= TRANSCENDENTAL
    kernel = in_lanes(turned, last, width, limits.side, masks)
    return grid(kernel, [p.var.name for p in parallel[:-1]], wanted) if len(parallel) > 1 else solo(kernel)


def parted(kernel: Kernel) -> Kernel:
    """Make nests of their own of the parts of what is chosen by the first axis, as of arrays behind each other: lanes
    would choose among all of them for each element, and processors take long to read nothing where no memory is.
    """
    made: list[Stmt] = []
    for nest in kernel.body:
        if isinstance(nest, For) and nest.kind == "parallel" and nest.static:
            (_, *inner), body = perfect(nest)
            ends = _chosen(nest) if all(isinstance(s, Store | Let) for s in body) else []
            parts = [(high - low) * size(inner) for low, high in itertools.pairwise((0, *ends, nest.static))]
            large = min(parts) >= PART and len(parts) <= PARTS
            if ends and (large or (len(parts) <= PIECES and 2 * max(parts) >= max(sum(parts), 2 * PART))):
                ends = ends if inner else _lined(nest, ends)
                made += in_pieces(dataclasses.replace(kernel, body=(nest,)), nest.var.name, ends).body
                continue
        made.append(nest)
    return dataclasses.replace(kernel, body=tuple(made))


def _lined(loop: For, ends: Sequence[int]) -> list[int]:
    """Return where pieces of a loop end. Where elements lie side by side, long parts store whole lines but for what of
    their first and last line another has: vectors go past the cache then, and no part of a line does. Short parts join
    what is left so, where each element is chosen.
    """
    stored = [s for s in stmts(loop.body) if isinstance(s, Store)]
    lines = {LINE // DTYPES[s.value.dtype].itemsize for s in stored}
    offsets = {poly(s.index[-1]).get((), 0) for s in stored}
    if len(lines) != 1 or len(offsets) != 1 or any(affine(s.index[-1], loop.var) != 1 for s in stored):
        return [*ends]
    (line,), (offset,), n = lines, offsets, loop.static or 0
    parts = [(low, high) for low, high in itertools.pairwise((0, *ends, n)) if high - low >= min(2 * line, ALONE)]
    found = {high for (_, high), (low, _) in itertools.pairwise(parts) if high == low}
    for low, high in parts:
        whole = high - low >= 2 * line
        found.add(-(-(low + offset) // line) * line - offset if low and whole else low)
        found.add((high + offset) // line * line - offset if high < n and whole else high)
    return sorted(found - {0, n})


def _chosen(loop: For) -> list[int]:
    """Return where another of several values is chosen along a loop."""
    every = {
        e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if isinstance(e, Op) and e.op in ("lt", "ge")
    }
    found = [poly(e.args[0] - e.args[1]) for e in every if e.args[0].dtype == "i64"]
    places = {-p.get((), 0) for p in found if {m: c for m, c in p.items() if m} == {(loop.var,): 1}}
    return sorted(c for c in places if 0 < c < (loop.static or 0))


def _ends(loop: For, width: int) -> list[int]:
    """Return where another of several values is chosen along a loop, if that is at few places of a long one."""
    ends, n = _chosen(loop), loop.static or 0
    parts = [high - low for low, high in itertools.pairwise((0, *ends, n))]
    long = max(parts) >= 4 * width and 2 * max(parts) >= n
    return ends if len(ends) < PIECES and (long or min(parts) >= 4 * width) else []


def _in_columns(kernel: Kernel, parallel: Sequence[For], width: int) -> tuple[Kernel, Sequence[For], int]:
    """Let lanes own rows of a few elements, which are written out: where the last loop is over so few, shorter than a
    vector or each of its own kind, and where elements are made in turn. Also return the loops, and how many elements.
    """
    column = parallel[-1]
    few = column.static or 0
    every = {e for s in stmts(column.body) for r in exprs(s) for e in walk(r) if isinstance(e, Op)}
    kinds = any(e.dtype == "bool" and free_vars(e) == {column.var} for e in every)
    short = len(parallel) > 1 and 1 < few <= NEAR and (few < SHORTEST or kinds)
    few = few if short else 1
    outer = parallel[:-1] if short else parallel
    row = outer[-1]
    turns, n = _turns(row), row.static or 0
    if turns * few > NEAR or n < turns * width or (len(outer) == 1 and n % turns):
        turns = 1
    name, made = row.var.name, kernel
    if turns > 1:
        made = split(made, name, turns, name, f"{name}k", "cut")
    if short:
        made = in_line(made, column.var.name)
    if turns > 1:
        made = in_line(made, f"{name}k")
    if turns * few == 1 or n < width or not unit(loops(made, name)[0], NEAR):
        return kernel, parallel, 1
    return made, [loops(made, p.var.name)[0] for p in outer], turns * few


def _turns(loop: For) -> int:
    """Return how many kinds of elements a loop makes in turn, as by quotients and remainders of its counter."""
    every = {e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if isinstance(e, Op)}
    turns = {e.args[1] for e in every if e.op in ("floordiv", "mod") and affine(e.args[0], loop.var) == 1}
    return max(1, math.lcm(*(int(t.value) if isinstance(t, Const) else 0 for t in turns)))


def _in_turn(kernel: Kernel, parallel: Sequence[For], width: int, copies: int) -> Kernel:
    """Where elements are made in turn, give each kind a loop of its own: the index of a loop, and which of several
    values it takes, is plain then. ``copies`` are those that the last loop writes out.
    """
    inner = copies
    for loop in reversed(parallel[1:]):
        count = _turns(loop)
        if loop is parallel[-1] and inner == 1 and (count < 2 or (loop.static or 0) < count * min(width, SHORTEST)):
            break
        copies *= count
        if count > 1 and copies <= TURNS:
            kernel = residues(kernel, loop.var.name, count)
    return kernel


def _strided(kernel: Kernel, last: For) -> list[Load]:
    """Return the Loads that stride through memory along the loop, and whose every element may be read."""
    sizes = {a.name: a.size.value for a in kernel.args if isinstance(a.size, Const)}
    found = []
    for load in loads(last.body):
        low, high = bounds(load.index[0])
        inside = low is not None and high is not None and low >= 0 and high < sizes.get(load.buffer, 0)
        if inside and affine(load.index[0], last.var) not in (0, 1):
            found.append(load)
    return found


def _across(kernel: Kernel, parallel: Sequence[For], width: int) -> str:
    """Find the loop along which memory is read where the last one, along which it is written, strides through it."""
    last = parallel[-1]
    if (
        width == 1
        or (last.static or 0) < width
        or not all(affine(s.index[0], last.var) == 1 for s in stmts(last.body) if isinstance(s, Store))
    ):
        return ""
    for load in _strided(kernel, last):
        for loop in parallel[:-1]:
            if affine(load.index[0], loop.var) == 1 and (loop.static or 0) >= width:
                return loop.var.name
    return ""


def _tiled(kernel: Kernel, parallel: Sequence[For], across: str, width: int, wanted: int) -> Kernel:
    """Run the last loop in lanes, over square tiles of what is read along the loop ``across``: each is read in vectors
    and transposed into a buffer first. ``TILES`` beside each other along ``across`` come before the next along the
    last loop: caches and memory are slow to give one line of each row.
    """
    names = [p.var.name for p in parallel]
    between, last = names[names.index(across) + 1 : -1], names[-1]
    tile = [f"{across}u", f"{last}v"]
    kernel = split(kernel, last, width, last, tile[1], "cut")
    kernel = split(kernel, across, width, across, tile[0], "cut")
    for name in between:
        kernel = reorder(kernel, tile[0], name)
    kernel = reorder(fission(kernel, tile[0]), tile[0], last)
    row = loops(kernel, tile[0])[0]
    (lane,) = (s for s in row.body if isinstance(s, For))
    found = [load for load in _strided(kernel, lane) if affine(load.index[0], row.var) == 1]
    for k, load in enumerate(found):
        kernel = stage(kernel, load, last, tile, "local", f"tile{k}")
        kernel = reorder(kernel, f"tile{k}_{tile[0]}", f"tile{k}_{tile[1]}")
        kernel = bind(bind(kernel, f"tile{k}_{tile[0]}", "vector"), f"tile{k}_{tile[1]}", "unroll")
    kernel = bind(kernel, tile[1], "vector")

    # blocks of tiles, tiles of a block, tiles of a row and of a thread's part of it
    outer = max(size(parallel[:-1]) // (TILES * width), 1)
    high, long = (loops(kernel, name)[0].static or 1 for name in (across, last))
    chunk = max(-(-long * outer // wanted), LENGTH // width)
    block = f"{across}b"
    kernel = split(kernel, across, min(TILES, high), across, block, "clip")
    for name in between:
        kernel = reorder(kernel, block, name)
    kernel = fission(kernel, block)
    if chunk < long:
        kernel = split(kernel, last, chunk, f"{last}g", last, "clip")
        kernel = reorder(kernel, block, f"{last}g")
    kernel = reorder(kernel, block, last)
    for name in reversed(names[:-1]):
        kernel = fission(kernel, name)
    return grid(kernel, [*names[:-1], f"{last}g"], wanted)


def solo(kernel: Kernel) -> Kernel:
    """Put a small nest under one grid iteration."""
    return dataclasses.replace(kernel, body=(For(Var("g", "i64", 1), i64(1), "grid", kernel.body),))


Bound = Callable[[Kernel, str], Kernel]


def _bound(kernel: Kernel, name: str) -> Kernel:
    return bind(kernel, name, "vector")


def in_lanes(kernel: Kernel, loop: For, width: int, side: int = 1, masks: bool = False) -> Kernel:
    """Run a parallel loop in lanes, the rest one by one; two vectors at a time where they share work, ``side`` where
    functions keep them waiting. With ``masks``, less than a vector is one with some of its lanes, and so is the rest of
    those that functions are taken of.
    """
    name, extent = loop.var.name, loop.static or loop.var.bound or 0
    masked = masks and 1 < extent < width
    width = covering(width, extent) if masked else shortened(width, extent)
    dear = _effort(loop)
    if width == 1 or not (unit(loop, NEAR) or dear >= APART * TRANSCENDENTAL):
        return kernel
    if masked:
        return bind(split(kernel, name, width, name, f"{name}v", "guard"), f"{name}v", "vector")
    least = SHORTEST if extent < SHORT * width else width
    count = together(loop, width)
    if count > 1:
        kernel = split(kernel, name, count * width, name, f"{name}i", "cut")
        kernel = split(kernel, f"{name}i", width, f"{name}u", f"{name}v", "exact")
        kernel = bind(bind(kernel, f"{name}u", "unroll"), f"{name}v", "vector")
        return rest_in_lanes(kernel, name, f"{name}i_t", width, least)
    wide = side * width
    wide = wide if wide > width and extent >= wide and dear >= TRANSCENDENTAL else width
    kernel = bind(split(kernel, name, wide, name, f"{name}v", "cut"), f"{name}v", "vector")
    whole = width if masks and dear >= TRANSCENDENTAL else 0
    return rest_in_lanes(kernel, name, f"{name}v_t", width if wide > width else width // 2, least, masked=whole)


def _effort(loop: For) -> float:
    """Return the effort of what changes along a loop; the rest is computed once."""
    every = {e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if e.dtype != "i64"}
    return effort({e for e in every if loop.var in free_vars(e)})


def shortened(width: int, extent: int) -> int:
    """Return how many lanes a loop has: ``width``, halved until it fills them; 1 where these are too few."""
    while width > extent:
        width //= 2
    return width if width >= SHORTEST else 1


def covering(width: int, extent: int) -> int:
    """Return how many lanes take a whole loop: ``width``, halved as long as they do."""
    while width // 2 >= max(extent, SHORTEST):
        width //= 2
    return width


def rest_in_lanes(
    kernel: Kernel, name: str, rest: str, width: int, least: int, bound: Bound = _bound, masked: int = 0
) -> Kernel:
    """Run what a loop's split into vectors left over in shorter ones, down to ``least`` lanes; ``bound`` makes lanes of
    a loop. What is less than ``masked`` lanes is one vector of so many or fewer, with some of its lanes.
    """
    for k in itertools.count():
        found = loops(kernel, rest)
        extent = found[0].static or (found[0].var.bound or 1) - 1 if found else 0
        if 1 < extent < masked:
            lanes, lane = covering(masked, extent), f"{name}m"
            return bound(split(kernel, rest, lanes, f"{name}o", lane, "guard"), lane)
        if not found or width < least:
            return kernel
        if any(s.static is None or s.static >= width for s in found):
            lane = f"{name}w{k or ''}"
            kernel = bound(split(kernel, rest, width, f"{name}r{k or ''}", lane, "cut"), lane)
            rest = f"{lane}_t"
        width //= 2
    raise AssertionError


def together(loop: For, width: int) -> int:
    """Return how many vectors in a row are best made together, up to ``TOGETHER``: those that have most of their
    operations in common, as random bits do.
    """
    every = {e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if isinstance(e, Op)}
    if len(every) > BRIEF or not any(e.op in ("floordiv", "mod") and loop.var in free_vars(e) for e in every):
        return 1
    extent = loop.static or 0
    block, lane = Var("block", "i64", extent // (TOGETHER * width) + 1), Var("lane", "i64", width)
    made: set[Op] = set()
    best, least = 1, math.inf
    for k in range(min(TOGETHER, extent // width)):
        body = substituted(loop.body, {loop.var: block * (TOGETHER * width) + k * width + lane})
        every = {e for s in stmts(body) for r in exprs(s) for e in walk(r) if isinstance(e, Op)}
        made.update(e for e in every if e.dtype != "i64" and lane in free_vars(e))
        count = k + 1
        if count & k == 0 and len(made) / count < WORTH * least:
            best, least = count, len(made) / count
    return best


def group_map(kernel: Kernel, parallel: Sequence[For], limits: Limits, width: int) -> Kernel:
    """One work-item an element, or as many side by side as one wide load takes."""
    kernel, name = flat(kernel, parallel, "f")
    if width > 1:
        # only split does the fused loop show what lies side by side
        wide = split(kernel, name, width, name, f"{name}v", "part")
        if any(unit(loop) for loop in loops(wide, f"{name}v")):
            kernel = bind(wide, f"{name}v", "vector")
    count = min(limits.group, limits.choose("items", 256, (64, 128, 512, 1024)))
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
