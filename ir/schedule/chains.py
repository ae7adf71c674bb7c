"""The recipe for chains: blocks of rows whose intermediate results stay in the cache, each contraction a product."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Container, Mapping, Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import Alloc, Const, Expr, For, Kernel, Load, Op, Space, Stmt, Store, i64, stmts, walk
from kernelforge.ir.schedule import skips
from kernelforge.ir.schedule.contraction import DEPTH, contiguous, lies, transposed
from kernelforge.ir.schedule.factors import factor_by
from kernelforge.ir.schedule.guards import sink_guard, unguard
from kernelforge.ir.schedule.limits import LINE, Limits
from kernelforge.ir.schedule.maps import in_lanes
from kernelforge.ir.schedule.nests import filled, lanes, loads, summed
from kernelforge.ir.schedule.rows import passes
from kernelforge.ir.schedule.staging import nested, stage
from kernelforge.ir.schedule.steps import bind, each, fission, loops, partial, place, reorder, split

COLUMNS = 2
"""Vectors of columns of a register tile at most."""

ACROSS = 4
"""Columns of a register tile of a sum over rows: a divisor of what columns are skipped by."""

SHARES = 8
"""Iterations for each thread that outer loops have at least to be shared by themselves."""

MOST = 64
"""Rows of a block at most: so many walk through a packed operand while it is in the first-level cache."""


def walked(body: Sequence[Stmt]) -> For | None:
    """Return the loop over rows in a block of them, where what is summed over rows has partial results for blocks."""
    last = body[-1] if body else None
    return last if isinstance(last, For) and last.kind == "serial" and chained(last.body) else None


def chained(body: Sequence[Stmt]) -> bool:
    """Whether what a nest does for a row stands in buffers of the row."""
    return any(isinstance(s, Alloc) and s.space == "local" for s in body) or walked(body) is not None


def vector(kernel: Kernel, parallel: Sequence[For], limits: Limits) -> Kernel:
    """Walk through blocks of rows, one statement after the other; threads share the blocks, or blocks of blocks."""
    inside = walked(parallel[-1].body)
    row = inside or parallel[-1]
    outer = [p.var.name for p in (parallel if inside else parallel[:-1])]
    i = row.var.name
    every = math.prod(p.static or 1 for p in parallel) * (row.var.bound or 1 if inside else 1)
    period = _period(row)
    rows = _rows(row, period or row.static or 1, every, limits)
    starts = parallel[-1].body[:-1] if inside else ()
    for start in starts:
        if isinstance(start, For):
            kernel = in_lanes(kernel, nested(start)[-1], lanes((start,), limits))
    starts = loops(kernel, outer[-1])[0].body[:-1] if inside else ()
    # rows do not depend on each other, but for what is added up over them, which stays in order
    kernel = each(kernel, "fission", i, lambda loop: (dataclasses.replace(loop, kind="parallel"),))
    shared = [f"{i}a"] if period else []
    for name in shared:
        kernel = split(kernel, i, period, name, i, "clip")
    kernel = split(kernel, i, rows, f"{i}b", i, "clip")
    kernel = fission(kernel, i)
    (block,) = loops(kernel, f"{i}b")
    allocs = [dataclasses.replace(s, space="local") for s in block.body if isinstance(s, Alloc)]
    own = {s.buffer for s in allocs}
    steps = [s for s in block.body if isinstance(s, For)]
    sums = {
        k
        for k, s in enumerate(steps)
        if any(isinstance(t, Store) and t.op and t.index and t.buffer not in own for t in stmts(s.body))
    }
    allocs = [dataclasses.replace(s, shape=(*s.shape[:-1], _apart(s.shape[-1]))) if s.shape[1:] else s for s in allocs]
    products = {k: buffer for k, s in enumerate(steps) if (buffer := _tiled(s))}
    skip = skips.find(steps, products)
    made: list[Stmt] = [*allocs]
    packs: list[Stmt] = []
    panels: dict[str, list[Stmt]] = {name: [] for name in (*outer, *shared)}
    around = [*panels, f"{i}b"]
    shortened = skip.masked | skip.zero if skip is not None else frozenset[int]()
    sideways = {k for k, s in enumerate(steps) if k not in shortened and _sideways(s, own)}
    for part in _parts(steps, {*products, *sums, *sideways}, skip.after if skip is not None else (), shortened):
        joined = dataclasses.replace(steps[part[0]], body=tuple(t for k in part for t in steps[k].body))
        mini = _within(kernel, around, [joined])
        width = lanes(joined.body, limits)
        if part[0] in products:
            mini = _product(mini, i, around, limits, width, own)
        elif part[0] in sums:
            mini = _across(mini, i, around[-1], width, own, skip.buffers if skip and part[0] in shortened else ())
        elif part[0] in sideways:
            for below in nested(joined)[1:]:
                mini = reorder(mini, i, below.var.name)
            mini = in_lanes(mini, loops(mini, i)[0], width, limits.side)
        else:
            mini = passes(mini, joined, limits, width, skips.LIVE if skip is not None else math.inf, own)
        *before, nest = mini.body
        packs += before
        assert isinstance(nest, For)
        for name in panels:
            panels[name] += _inside(nest, name).body[:-1]
        inner = _inside(nest, f"{i}b").body
        if skip is not None:
            shorter = next((k for k in part if k in skip.masked | skip.zero), None)
            inner = inner if shorter is None else skips.shorten(inner, skip, shorter, _tile(limits), rows)
            inner = (*inner, *skip.after.get(part[-1], ()))
        made += inner
    if inside:
        panels[outer[-1]] += starts
    (whole,) = _within(kernel, around, made, panels).body
    kernel = dataclasses.replace(kernel, body=(*packs, whole))
    for name in outer if inside else around:
        kernel = bind(kernel, name, "grid")
        if panels.get(name):
            break  # what stands beside an inner loop is done before it
    return kernel


def _sideways(row: For, own: Container[str]) -> bool:
    """Whether most of the memory that a pass over rows touches lies along the rows, rather than along each."""
    path = nested(row)
    if not all(isinstance(s, Store) for s in path[-1].body):
        return False
    stores = [s for s in path[-1].body if isinstance(s, Store) and len(s.index) == 1]
    places: list[Load | Store] = [*loads(path[-1:]), *stores]
    columns = {s.var for s in path[1:]}
    touched = [s.index[0] for s in places if s.buffer not in own and columns & free_vars(s.index[0])]
    votes = [(affine(e, row.var) == 1) - (affine(e, path[-1].var) == 1) for e in touched]
    return sum(votes) > 0


def _apart(n: Expr) -> Expr:
    """Lengthen a row to an odd number of whole cache lines: rows then lie in different sets of the cache, and tiles of
    columns need not end within the row.
    """
    line = LINE // DTYPES["f32"].itemsize
    return i64((-(-int(n.value) // line) | 1) * line) if isinstance(n, Const) else n


def _across(kernel: Kernel, i: str, at: str, width: int, buffers: set[str], skipped: Collection[str]) -> Kernel:
    """Make a register tile of what a block's rows add to a sum over rows: columns of them times the other operand's."""
    kernel = each(kernel, "bind", i, lambda loop: (dataclasses.replace(loop, kind="serial"),))
    (nest,) = loops(kernel, i)
    every = nested(nest)[1:]
    inner = every[-2:]
    store = next(s for s in stmts(nest.body) if isinstance(s, Store))
    found = _operand(store, every, buffers, skipped)
    if found is None:
        return kernel
    left, rows, other = found
    j, d, n = rows.var.name, other.var.name, other.static or 1
    for s in every:
        kernel = reorder(kernel, i, s.var.name)
    name = f"{store.buffer}_s"
    kernel = partial(kernel, i, name)
    if inner[0].var.name != j:
        kernel = reorder(kernel, d, j)
    vectors = -(-n // width)
    registers = -(-vectors // -(-vectors // 4))
    # beyond the columns of one outer loop are those of the next one, and beyond the last the row may have no room
    whole = max(k for k in range(1, ACROSS + 1) if (rows.static or 1) % k == 0)
    tile = ACROSS if every == inner and left.buffer in buffers else whole
    kernel = split(kernel, j, tile, f"{j}o", f"{j}r", "guard")
    kernel = split(kernel, d, registers * width, f"{d}o", f"{d}r", "guard")
    kernel = sink_guard(kernel, f"{j}o")
    kernel = reorder(kernel, f"{j}r", f"{d}o")
    for loop in (f"{d}r", f"{j}r"):
        kernel = fission(kernel, loop)
    for loop in (f"{d}r", f"{j}r"):
        kernel = reorder(kernel, loop, i)
    right = factor_by(kernel, [f"{d}r"])
    known = {name, f"{name}_columns", left.buffer, *buffers}
    lane = loops(kernel, f"{d}r")[0].var
    if isinstance(right, Load) and n % (registers * width) == 0 and affine(right.index[-1], lane) == 1:
        known.add(right.buffer)
    else:
        by = [f"{d}o", i, f"{d}r"]
        kernel = _packed(stage(kernel, right, at, by, "local", f"{name}_columns"), f"{name}_columns", by, width)
    kernel = unguard(kernel, name, lambda e: e.buffer in known)
    kernel = split(kernel, f"{d}r", width, f"{d}u", f"{d}v", "exact")
    kernel = bind(bind(kernel, f"{d}v", "vector"), f"{d}u", "unroll")
    return bind(kernel, f"{j}r", "unroll")


def _operand(
    store: Store, every: Sequence[For], buffers: Container[str], skipped: Collection[str]
) -> tuple[Load, For, For] | None:
    """Return the operand of a sum over rows whose columns are the rows of a tile, their loop, and that of its lanes.

    None where there is none, as where the other operand is one number for all of them.

    Lanes store along memory where they can. One operand at least is of ``buffers``, which the block of rows holds. Of
    ``skipped`` ones, if any, not all columns are computed, and lanes would read them to the end of a panel.
    """
    inner, value = every[-2:], store.value
    if len(inner) != 2 or not isinstance(value, Op) or value.op != "mul":
        return None
    plain = [f for f in value.args if isinstance(f, Load)]
    own = [f for f in plain if f.buffer in buffers]
    even = [f for f in plain if f not in own and (inner[0].static or 1) % 2 == 0]  # whole tiles of what memory holds
    for left in (*(f for f in (*own, *even) if own and inner[-1].var not in free_vars(f)), *own):
        if skipped and left.buffer not in skipped:
            continue
        others = [free_vars(f) for f in value.args if f is not left]
        alone = not any(s.var in free for free in others for s in every[:-2])
        for rows, lanes_ in (inner, inner[::-1]):
            apart = rows.var in free_vars(left) and lanes_.var not in free_vars(left)
            if apart and alone and any(lanes_.var in free for free in others):
                return left, rows, lanes_
    return None


def _tile(limits: Limits) -> int:
    """Return the rows of a register tile of up to ``COLUMNS`` vectors; a block of rows is a multiple of them."""
    return 8 if limits.vector_registers >= 32 else 6


def _period(row: For) -> int:
    """Return how many rows share the operand with columns of a product, where others have one of their own; else 0."""
    counts: set[int] = set()
    for s in row.body:
        sums, (columns, _) = summed((s,)), _columns((s,))
        if sums is not None and columns and isinstance(sums.value, Op):
            for factor in sums.value.args:
                if {row.var, columns[-1].var} <= free_vars(factor):
                    counts |= {
                        int(e.args[1].value)
                        for e in walk(factor)
                        if isinstance(e, Op) and e.op == "floordiv" and e.args[0] == row.var
                        and isinstance(e.args[1], Const)
                    }  # fmt: skip
    return math.gcd(*counts)


def _rows(row: For, n: int, every: int, limits: Limits) -> int:
    """Return how many of ``n`` rows make a block: their buffers take half of a thread's cache, and there is work for
    all.

    Blocks of equal size have no tiles in part.
    """
    shapes = [s.shape[0] for s in row.body if isinstance(s, Alloc) and s.shape]
    nbytes = sum(4 * int(n.value) for n in shapes if isinstance(n, Const))
    fit = limits.cache_bytes // 2 // max(nbytes, 1)
    share = -(-every // (SHARES * limits.threads))
    tile = _tile(limits)
    most = max(tile, min(MOST, fit, share) // tile * tile)
    return next((k for k in range(most, most // 2, -tile) if n % k == 0), most)


def _parts(
    steps: Sequence[For], products: Container[int], ends: Container[int], shortened: Container[int]
) -> list[list[int]]:
    """Cut the statements of a block into products and runs of passes over its rows, all of them shortened or none."""
    out: list[list[int]] = []
    for k in range(len(steps)):
        alike = (k in shortened) == (k - 1 in shortened)
        if out and alike and k not in products and k - 1 not in products and k - 1 not in ends:
            out[-1].append(k)
        else:
            out.append([k])
    return out


def _within(
    kernel: Kernel, around: Sequence[str], body: Sequence[Stmt], before: Mapping[str, Sequence[Stmt]] | None = None
) -> Kernel:
    """Put statements into the loops ``around`` of a kernel's nest, and those ``before`` an inner loop beside it."""
    for name in reversed(around):
        (loop,) = loops(kernel, name)
        body = (dataclasses.replace(loop, body=(*(before or {}).get(name, ()), *body)),)
    return dataclasses.replace(kernel, body=tuple(body))


def _inside(nest: For, name: str) -> For:
    return next(s for s in stmts((nest,)) if isinstance(s, For) and s.var.name == name)


def _product(kernel: Kernel, i: str, around: Sequence[str], limits: Limits, width: int, buffers: set[str]) -> Kernel:
    """Make a register tile of a block's contraction: rows times columns, along the sum.

    The operand that all rows share is packed once for all blocks, as far as it does not lie as the tile reads it: by
    the thread that works with it where each has several such operands, as heads of attention, else by all together.
    Where the rows of a block share one, and those of another block another, as where blocks are parts of a batch, each
    block packs its own.
    """
    (nest,) = loops(kernel, i)
    columns, body = _columns(nest.body)
    store = summed(nest.body)
    assert store is not None
    j = columns[-1].var
    for other in columns[:-1]:
        kernel = reorder(kernel, i, other.var.name)
    name, n = store.buffer, columns[-1].static or 1
    walked = [s.var.name for s in nested(next(s for s in body if isinstance(s, For)))]
    depth = math.prod(s.static or 1 for s in nested(next(s for s in body if isinstance(s, For))))
    accumulators = [name]
    block: list[str] = []
    if depth > 3 * DEPTH:
        first = loops(kernel, walked[0])[0].static or 1
        share = -(-first // -(-depth // DEPTH))
        block = [f"{walked[0]}b"]
        kernel = split(kernel, walked[0], share, block[0], walked[0], "clip")
        kernel = partial(kernel, walked[0], f"{name}b")
        accumulators.append(f"{name}b")
    rows = _tile(limits)
    vectors = -(-n // width)
    registers = -(-vectors // -(-vectors // COLUMNS))
    jn = j.name
    kernel = split(kernel, i, rows, f"{i}o", f"{i}r", "guard")
    kernel = split(kernel, jn, registers * width, f"{jn}o", f"{jn}r", "guard")
    kernel = sink_guard(kernel, f"{i}o")
    kernel = reorder(kernel, f"{i}r", f"{jn}o")
    kernel = reorder(kernel, f"{i}o", f"{jn}o")
    for level in [block, walked] if block else [walked]:
        for inner in (f"{jn}r", f"{i}r"):
            kernel = fission(kernel, inner)
        for inner in (f"{jn}r", f"{i}r"):
            for k in level:
                kernel = reorder(kernel, inner, k)
    if block:
        kernel = fission(kernel, f"{i}o")
        kernel = reorder(kernel, f"{i}o", block[0])
    left, right = factor_by(kernel, [f"{i}r"]), factor_by(kernel, [f"{jn}r"])
    own = {f"{name}_rows", f"{name}_columns", *accumulators, *buffers}
    whole = (nest.static or 1) % rows == 0 and not block
    if isinstance(left, Load) and (left.buffer in buffers or (whole and lies(kernel, left, f"{i}r", walked, limits))):
        own.add(left.buffer)
    else:
        apart = [c.var.name for c in columns[:-1] if c.var in free_vars(left)]
        tile = loops(kernel, f"{i}r")[0].var
        read = [e for e in walk(left) if isinstance(e, Load)]
        along = bool(read) and all(len(e.index) == 1 and affine(e.index[0], tile) == 1 for e in read)
        by = [*apart, f"{i}o", *block, *walked]
        by.insert(len(by) if along else len(apart) + 1, f"{i}r")
        kernel = stage(kernel, left, around[-1], by, "local", f"{name}_rows")
        for k in (*block, *walked) if along else ():
            kernel = reorder(kernel, f"{name}_rows_{i}o", f"{name}_rows_{k}")
        (copy,) = loops(kernel, f"{name}_rows_{by[-1]}")
        kernel = in_lanes(kernel, copy, width)
    inside = loops(kernel, f"{jn}r")[0].var
    if isinstance(right, Load) and n % (registers * width) == 0 and affine(right.index[-1], inside) == 1:
        own.add(right.buffer)  # no guard of columns stands here, and that of rows does not matter to it
    else:
        above = [o for o in around if any(v.name == o for v in free_vars(right))]
        by = [*above, *(c.var.name for c in columns[:-1]), f"{jn}o", *block, *walked, f"{jn}r"]
        shared = _iterations(kernel, above) >= SHARES * limits.threads and above == around[: len(above)]
        alone = shared or around[-1] in above
        at: str = above[-1] if alone else ""
        space: Space = "local" if alone else "global"
        kernel = stage(kernel, right, at, by[len(above) * alone :], space, f"{name}_columns")
        kernel = _packed(kernel, f"{name}_columns", by, width)
        for fill in () if alone else by[:-2]:
            kernel = bind(kernel, f"{name}_columns_{fill}", "grid")
    for buffer in accumulators:
        kernel = unguard(kernel, buffer, lambda e: e.buffer in own)
    if block:
        kernel = place(kernel, accumulators[0], "local")
    kernel = split(kernel, f"{jn}r", width, f"{jn}u", f"{jn}v", "exact")
    kernel = bind(bind(kernel, f"{jn}v", "vector"), f"{jn}u", "unroll")
    return bind(kernel, f"{i}r", "unroll")


def _iterations(kernel: Kernel, names: Sequence[str]) -> int:
    """Return how many iterations nested loops have; none where there are no loops."""
    return math.prod(loops(kernel, name)[0].static or 1 for name in names) if names else 0


def _columns(body: Sequence[Stmt]) -> tuple[list[For], Sequence[Stmt]]:
    """Return the loops over what a row makes, and what stands in them."""
    columns: list[For] = []
    while len(body) == 1 and isinstance(body[0], For):
        columns.append(body[0])
        body = body[0].body
    return columns, body


def _tiled(row: For) -> str:
    """Return the buffer that a nest fills by sums of products of which one factor has rows and the other columns, if
    it does nothing else.
    """
    store, (columns, _), sums = filled(row.body), _columns(row.body), summed(row.body)
    if store is None or not columns or sums is None or not isinstance(sums.value, Op):
        return ""
    j, found = columns[-1].var, [free_vars(f) for f in sums.value.args]
    return store.buffer if any(row.var in a - b and j in b - a for a, b in (found, found[::-1])) else ""


def _packed(kernel: Kernel, buffer: str, by: Sequence[str], width: int) -> Kernel:
    """Fill the panels of columns in vectors."""
    along, last = f"{buffer}_{by[-2]}", f"{buffer}_{by[-1]}"
    kernel = split(kernel, last, width, f"{last}u", f"{last}v", "exact")
    if contiguous(kernel, along, width):
        kernel = transposed(kernel, along, [f"{last}u", f"{last}v"], width)
        kernel = reorder(kernel, along, f"{last}u")  # few lines of memory are read at a time, each to its end
    else:
        kernel = bind(bind(kernel, f"{last}v", "vector"), f"{last}u", "unroll")
    return kernel
