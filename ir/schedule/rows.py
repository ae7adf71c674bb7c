"""The recipes for reductions along memory: softmax, norms, sums of rows."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Container, Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import affine, free_vars, is_lazy, normalize, reads
from kernelforge.ir.kernel import (
    Alloc,
    Expr,
    For,
    If,
    Kernel,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    stmts,
    substitute,
)
from kernelforge.ir.schedule.behind import behind, early, hindrance, obstacle
from kernelforge.ir.schedule.columns import in_columns
from kernelforge.ir.schedule.contraction import transposed
from kernelforge.ir.schedule.guards import sink_guard
from kernelforge.ir.schedule.limits import LINE, NEAR, SHORTEST, Limits
from kernelforge.ir.schedule.maps import covering, in_lanes, together
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.nests import LOAD, STORE, allocated, grid, loads, operations, rowwise, size, unit
from kernelforge.ir.schedule.staging import nested, stage
from kernelforge.ir.schedule.steps import bind, fission, loops, partial, reorder, rfactor, single_store, split, tree

BLOCK = 1 << 13
"""Elements of a row that are summed before their sum is added to the total: so the rounding error of a long row grows
with the number of blocks and not with the number of elements."""

SHORTER = 16
"""How much shorter blocks are that one accumulator sums."""

DELAYED = 32
"""Rows at most that go one after the other where each waits for the next: one in so many is stored by itself."""

DEAR = 16
"""Operations of a pass, for each element, from which on it is worth its while to store the row before it beside it: a
function's."""

LONG = 1 << 16
"""Bytes of a row from which on its first pass, which reads memory, runs in the last one over the row before: a
first-level cache holds less."""

ABREAST, STEPS = 4, 8
"""Rows that are summed at once, at most, where they share what they read beside their own elements, and the steps of
several vectors that each takes then at least. (Rows of 4 steps from memory take 1.2 times as long so, of 15 0.95.)"""

TURNED = 4
"""Lanes from which on tiles are turned in registers."""


def vector_row(kernel: Kernel, parallel: Sequence[For], row: For, limits: Limits, width: int) -> Kernel:
    """One row after the other, each along memory in lanes: in as few passes as can be, and each value computed once.

    ``row`` is the loop over rows: the last of ``parallel``, or one that stands in it and walks a block of rows.
    """
    kernel = passes(kernel, row, limits, width)
    names, wanted = [p.var.name for p in parallel], 8 * limits.threads
    if row is parallel[-1]:
        kernel = _abreast(kernel, row.var.name, limits, size(parallel) // wanted)
    return grid(kernel, names, wanted)


def _abreast(kernel: Kernel, at: str, limits: Limits, most: int) -> Kernel:
    """Sum up to ``most`` rows of the loop ``at`` at once where all of them read the same elements beside their own, as
    the rows of a matrix read a vector: these are loaded once for all.
    """
    (row,) = loops(kernel, at)
    inner = [s for s in stmts(row.body) if isinstance(s, For)]
    sums = [s for s in inner if s.kind == "serial"]
    shared = any(row.var not in free_vars(e) and s.var in free_vars(e) for s in sums for e in loads(s.body))
    unrolled = (s for s in sums if any(isinstance(t, For) and t.kind == "unroll" for t in s.body))
    long = any((s.static or 0) >= STEPS for s in unrolled)
    if not (shared and long) or any(s.kind == "parallel" for s in inner):
        return kernel
    registers = sum(-(-allocated(s) // limits.vector_bytes) for s in stmts(row.body) if isinstance(s, Alloc))
    count = math.gcd(row.static or 1, ABREAST)
    while count > 1 and (count > most or count * registers > limits.vector_registers):
        count //= 2
    if count == 1:
        return kernel
    rows = f"{at}r"
    kernel = fission(split(kernel, at, count, at, rows, "exact"), rows)
    for loop in sums:
        kernel = fission(reorder(kernel, rows, loop.var.name), rows)
    return bind(kernel, rows, "unroll")


def passes(
    kernel: Kernel, row: For, limits: Limits, width: int, most: float = math.inf, near: Container[str] = ()
) -> Kernel:
    """Make the passes over each row of the loop ``row`` few and run them in lanes, ``most`` elements at a time.

    The buffers ``near`` stay in the cache: no row waits where it is stored into them.
    """
    at, masks = row.var.name, "masks" in limits.native
    if all(_in_order(s) for s in row.body if isinstance(s, For)):
        kernel = merge(kernel)
        (row,) = loops(kernel, at)
        # a quarter of the cache is for the next row
        kernel = merge(keep(kernel, at, limits.cache_bytes * 3 // 4 - _loaded(row)))
    (row,) = loops(kernel, at)
    dear, block = _delayed(row, limits, near)
    if block > 1:
        first = next(s.var.name for s in row.body if isinstance(s, For))
        kernel = behind(split(kernel, at, block, at, f"{at}r", "exact"), f"{at}r", dear)
        if _whole_lines(row) and not hindrance(loops(kernel, f"{at}r")[0], first, dear):
            kernel = early(kernel, f"{at}r", first, dear)
    elif (block := _early(row, limits, near)) > 1:
        first, *_, end = (s.var.name for s in row.body if isinstance(s, For))
        kernel = early(split(kernel, at, block, at, f"{at}r", "exact"), f"{at}r", first, end)
    (row,) = loops(kernel, at)
    beside = [t for s in row.body if isinstance(s, For) and s.var.name == f"{at}r" for t in s.body]
    for name in [s.var.name for s in (*row.body, *beside) if isinstance(s, For) and s.var.name != f"{at}r"]:
        for loop in loops(kernel, name)[:1]:
            inner = [s for s in stmts((loop,)) if isinstance(s, For)][-1]
            last = nested(loop)[-1]
            below = {s.kind for s in stmts(last.body) if isinstance(s, For)}
            if last.kind == "parallel" and below == {"serial"} and not rowwise(last.body, last):
                kernel = in_columns(kernel, last, limits.threads, limits, width)
            elif inner.kind == "serial":
                if (turned := _turned(kernel, nested(loop), width)) is not None:
                    kernel = turned
                    continue
                # the first row, one of ``DELAYED``, is written out less
                few = 4 * width if name.endswith(("_first", "_early")) else math.inf
                kernel = _lane_reduction(kernel, inner, width, min(most, few), masks)
            else:
                kernel = in_lanes(kernel, inner, width, limits.side, masks)
    return kernel


def _delayed(row: For, limits: Limits, near: Container[str]) -> tuple[str, int]:
    """Return the dearest pass over a row, and how many rows go one after the other, the last pass over each beside the
    dear one over the next.

    One has memory wait for the processor, the other the processor for memory. Where what is stored does not go past
    the caches, a row is better kept in the output that it becomes, which this rules out. Passes that are not dear save
    the time between two loops: they run together where one array is read and rows go past the caches line by line. (A
    layer norm of 1 MB takes 0.8 times as long, one of 16 MB 0.9 to 1.0; with the sum of two arrays 1.0 to 1.2, of rows
    that begin between lines 1.5.)
    """
    costs = {s.var.name: _dearest(s) for s in row.body if isinstance(s, For)}
    dear = max((n for n in costs if not obstacle(row, n)), key=costs.__getitem__, default="")
    kept = any(isinstance(s, Store) and s.buffer in near for s in stmts(row.body[-1:]))
    if "stream" not in limits.native or not dear or kept or [*costs.values()][-1] >= DEAR:
        return "", 1
    read = {e.buffer for e in loads(row.body) if e.index and row.var in free_vars(e.index[0])}
    if costs[dear] < DEAR and not (_whole_lines(row) and len(read) == 1):
        return "", 1
    return dear, _behind_each_other(row, limits)


def _behind_each_other(row: For, limits: Limits) -> int:
    """Return how many rows may go one after the other; 1 where threads would have too few such blocks."""
    block = math.gcd(row.static or 1, DELAYED)
    while block > 1 and (row.static or 1) < 2 * limits.threads * block:
        block //= 2
    return block if block > 4 else 1


def _early(row: For, limits: Limits, near: Container[str]) -> int:
    """Return how many rows go one after the other, the first pass over each beside the last one over the row before.

    Else memory is read in one pass and written in another. (A batch norm of 25 MB takes 0.86 times as long.)
    """
    inner = [s for s in row.body if isinstance(s, For)]
    kept = any(isinstance(s, Store) and s.buffer in near for s in stmts(row.body[-1:]))
    if "stream" not in limits.native or kept or _loaded(row) < LONG or inner[-1] is not row.body[-1]:
        return 1
    apart = hindrance(row, inner[0].var.name, inner[-1].var.name)
    return 1 if apart else _behind_each_other(row, limits)


def _whole_lines(row: For) -> bool:
    """Whether what the last loop over each row stores begins at a line where the first row's does."""
    steps = [
        (affine(s.index[0], row.var), DTYPES[s.value.dtype].itemsize)
        for s in stmts(row.body[-1:])
        if isinstance(s, Store)
    ]
    return all(c is not None and c * itemsize % LINE == 0 for c, itemsize in steps)


def _dearest(loop: For) -> int:
    """Return how many operations the dearest expression takes that is made for each element of a pass."""
    counters = {s.var for s in stmts((loop,)) if isinstance(s, For)}
    return max((operations(r, counters) for s in stmts((loop,)) for r in exprs(s)), default=0)


def _in_order(loop: For) -> bool:
    """Whether a pass over a row touches elements that lie side by side, or the same one all the time."""
    inner = nested(loop)[-1]
    return all(isinstance(s, Store) for s in inner.body) and all(
        affine(e.index[0], inner.var) in (0, 1) for e in loads(inner.body)
    )


def _loaded(row: For) -> int:
    """Return how many bytes of memory the passes over a row read, which later passes find in the cache."""
    found: dict[str, int] = {}
    for path in filter(None, map(nested, row.body)):
        for load in loads(path[-1].body):
            if path[-1].var in free_vars(load.index[0]):
                nbytes = size(path) * DTYPES[load.dtype].itemsize
                found[load.buffer] = max(nbytes, found.get(load.buffer, 0))
    return sum(found.values())


def keep(kernel: Kernel, at: str, room: int) -> Kernel:
    """Store what several passes over the rows of the loop ``at`` compute, where reading it again costs less.

    Args:
        at: the loop over rows.
        room: bytes that the values of one row may take.
    """
    for count in itertools.count():
        (row,) = loops(kernel, at)
        best: tuple[int, int, Expr, list[For]] | None = None
        for expr, found in _repeated(row).items():
            nbytes = size(found[0]) * DTYPES[expr.dtype].itemsize
            gain = (len(found) - 1) * operations(expr, {p.var for p in found[0]}) - STORE - len(found) * LOAD
            if nbytes <= room and gain > 0 and (best is None or gain > best[0]):
                best = gain, nbytes, expr, found[0]
        if best is None:
            return kernel
        _, nbytes, expr, path = best
        room -= nbytes
        kernel = stage(kernel, expr, at, [p.var.name for p in path], "local", f"row{count}")
    raise AssertionError


def _repeated(row: For) -> dict[Expr, list[list[For]]]:
    """Return the largest expressions that several loop nests of a row evaluate for each of their elements, and the
    nests.

    An expression stands as in the first of them.
    """
    found: dict[Expr, list[list[For]]] = {}
    spelled: dict[Expr, Expr] = {}
    for k, stmt in enumerate(row.body):
        path = nested(stmt)
        if not path:
            continue
        written = {s.buffer for s in stmts(row.body[k:]) if isinstance(s, Store)}
        variables = {p.var for p in path}
        same: dict[Expr, Expr] = {p.var: Var(f"axis{n}", "i64", p.static) for n, p in enumerate(path)}
        memo: dict[Expr, Expr] = {}
        seen: dict[Expr, None] = {}
        for s in path[-1].body:
            for root in exprs(s):
                _evaluated(root, seen)
        for e in seen:
            # of what bounds decide nothing is left in a normal form, by which alone ``stage`` knows a twin
            if variables <= free_vars(e) and not reads(e) & written and normalize(e) is e:
                first = spelled.setdefault(normalize(substitute(e, same, memo)), e)
                found.setdefault(first, []).append(path)
    parts = {a for e, paths in found.items() if isinstance(e, Op) for a in e.args if found.get(a) == paths}
    return {e: paths for e, paths in found.items() if len(paths) > 1 and e not in parts}


def _evaluated(expr: Expr, seen: dict[Expr, None]) -> None:
    """Collect the operations below that are evaluated whenever ``expr`` is."""
    if isinstance(expr, Op) and expr.dtype != "i64" and expr not in seen:
        seen[expr] = None
        for arg in expr.args[: 1 if is_lazy(expr) else None]:
            _evaluated(arg, seen)


def _lane_reduction(kernel: Kernel, loop: For, width: int, most: float = math.inf, masks: bool = False) -> Kernel:
    """Reduce along memory: four accumulators of one register each, then one, then shorter ones, then lane by lane in a
    fixed tree.

    Eight where vectors share work in pairs, so that four chains of it run at once. Where more than half of what is read
    does not lie along memory, it goes one element after the other, in shorter blocks. With ``masks``, less than a
    vector is one with some of its lanes.
    """
    name, n = loop.var.name, loop.static
    bound = n if n is not None else (loop.var.bound or 0)
    steps = [affine(e.index[0], loop.var) for e in loads(loop.body)]
    gathered = sum(c is None or not 0 <= c <= NEAR for c in steps)
    apart = gathered * 2 > sum(c != 0 for c in steps)
    block = BLOCK // SHORTER if apart else BLOCK
    if width == 1 or bound < (2 if masks else width) or (apart and (bound <= block or not _to_one(loop))):
        return kernel
    if bound < width:
        kernel = split(kernel, name, covering(width, bound), name, f"{name}v", "guard")
        return bind(rfactor(kernel, name, f"{name}v", f"{name}_lanes"), f"{name}v", "vector")
    if bound > block:
        kernel = split(kernel, name, block, f"{name}c", name, "cut")
        for part in (name, f"{name}_t"):
            for inner in loops(kernel, part)[:1]:
                lanes = not apart and _lane_reduction(kernel, inner, width, most, masks)
                kernel = lanes or partial(kernel, part, f"{part}_sum")
        return kernel
    if n is None:
        kernel = split(kernel, name, width, name, f"{name}v", "cut")
        return bind(rfactor(kernel, name, f"{name}v", f"{name}_lanes"), f"{name}v", "vector")
    unroll = 1 if n < 8 * width else 8 if 8 * width <= most and n >= 16 * width and together(loop, width) > 1 else 4
    if unroll > 1:
        kernel = split(kernel, name, unroll * width, name, f"{name}i", "cut")
        kernel = split(kernel, f"{name}i", width, f"{name}u", f"{name}v", "exact")
        kernel = rfactor(kernel, name, f"{name}v", f"{name}_lanes")
        kernel = rfactor(kernel, name, f"{name}u", f"{name}_units")
        kernel = bind(kernel, f"{name}u", "unroll")
        kernel = bind(kernel, f"{name}v", "vector")
        rest, tail = n % (unroll * width), f"{name}i_t"
    else:
        rest, tail = n, name
    while width >= SHORTEST:
        if rest >= width:
            lane = f"{tail}v"
            kernel = split(kernel, tail, width, f"{tail}o", lane, "cut")
            kernel = rfactor(kernel, f"{tail}o", lane, f"{tail}_lanes")
            kernel = bind(kernel, lane, "vector")
            rest, tail = rest % width, f"{lane}_t"
        width //= 2
    return kernel


def _to_one(loop: For) -> bool:
    """Whether a loop does nothing but combine into one element."""
    store = single_store(loop.body)
    return store is not None and bool(store.op) and not any(loop.var in free_vars(i) for i in store.index)


def _turned(kernel: Kernel, path: Sequence[For], width: int) -> Kernel | None:
    """Reduce over two axes of which one is along memory for some operands, the other for the rest, by square tiles:
    the rest is turned in registers. None where that is not so.
    """
    if len(path) < 2 or width < TURNED or not all(isinstance(s, Store) and s.op for s in path[-1].body):
        return None
    inner = path[-1]
    apart = [e for e in loads(inner.body) if affine(e.index[0], inner.var) not in range(NEAR + 1)]
    outer = next((s for s in path[:-1] if apart and all(affine(e.index[0], s.var) == 1 for e in apart)), None)
    short = any((s.var.bound or 0) < width for s in (inner, outer or inner))
    if outer is None or short or len(path[-1].body) > 1 or len(apart) == len(loads(inner.body)):
        return None
    o, n = outer.var.name, inner.var.name
    for between in path[path.index(outer) + 1 : -1]:
        kernel = reorder(kernel, o, between.var.name)
    kernel = split(kernel, o, width, f"{o}o", f"{o}r", "guard")
    kernel = split(kernel, n, width, f"{n}o", f"{n}v", "guard")
    kernel = reorder(sink_guard(kernel, f"{o}o"), f"{o}r", f"{n}o")
    kernel = partial(kernel, f"{n}o", f"{n}_sum")
    kernel = rfactor(kernel, f"{n}o", f"{n}v", f"{n}_lanes")
    lane = next(s for s in loops(kernel, f"{n}v") if loads(s.body))
    for k, e in enumerate(e for e in loads(lane.body) if affine(e.index[0], lane.var) not in range(NEAR + 1)):
        name = f"{n}_turned{k}"
        kernel = stage(kernel, e, f"{n}o", [f"{o}r", f"{n}v"], "local", name)
        kernel = transposed(kernel, f"{name}_{o}r", [f"{name}_{n}v"], width)
    return bind(bind(kernel, f"{n}v", "vector"), f"{o}r", "unroll")


def group_row(kernel: Kernel, parallel: Sequence[For], body: Sequence[Stmt], limits: Limits, width: int) -> Kernel:
    """One work-group a row: work-items take every ``count``-th element, or as many side by side as one wide load takes;
    then they fold by halves in local memory.
    """
    walks = {s.var.name: [t for t in stmts((s,)) if isinstance(t, For)] for s in body if isinstance(s, For)}
    widths = {name: width if (w[-1].static or 1) % width == 0 and unit(w[-1]) else 1 for name, w in walks.items()}
    widest = max((-(-(w[0].static or 1) // widths[name]) for name, w in walks.items()), default=1)
    most = limits.choose("items", 256, (32, 64, 128, 512, 1024))
    count = 1 << max(0, min(limits.group, most, widest).bit_length() - 1)
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
