"""The recipe for products on GPUs: work-groups own tiles of the result, work-items own tiles of those in registers.

Blocks of both operands pass through local memory, ``STEP`` products deep: an element is read from memory once for each
tile, and from local memory once for each work-item that needs it. Local memory holds two blocks of each operand: while
one is worked with, the next one is on its way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import Alloc, For, Kernel, Load, Op, Stmt, exprs, stmts, walk
from kernelforge.ir.schedule.ahead import ahead
from kernelforge.ir.schedule.factors import SMALL, factor_by, factors, form
from kernelforge.ir.schedule.guards import sink_guard, unguard
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.nests import perfect, size
from kernelforge.ir.schedule.staging import pad, stage
from kernelforge.ir.schedule.steps import bind, fission, fuse, loops, reorder, split

STEP = 8
"""Products of an element that a block in local memory holds."""

WIDE = 16
"""Bytes that a work-item moves at once."""

RESIDENT = 2048
"""Work-items that are resident on a unit of a GPU, about."""

OWN = (8, 4, 2)
"""Rows or columns of the tile of a work-item."""

MEMORY = 8
"""Loads from local memory that take the time of one from the cache all units share."""

LEAST = 256
"""Products of an element that a worker sums at least, where several share a sum."""

WARPS = (4, 2)
"""Warps of a work-group along rows and columns, where tensor cores multiply."""

FRAGMENTS = ((2, 8), (2, 4), (1, 4), (1, 2))
"""Products of 16 x 8 that a warp makes, along rows and columns: two blocks of ``DEEP`` fit 48 KiB of local memory."""

DEEP = 64
"""Bytes of factors that a block in local memory is deep where tensor cores multiply, at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A nest that sums products, as a product of matrices.

    Attributes:
        rows, columns: its parallel loops on which one factor depends alone, outermost first.
        batch: those on which both or none does.
        sums: the loops of the sum.
    """

    batch: tuple[For, ...]
    rows: tuple[For, ...]
    columns: tuple[For, ...]
    sums: tuple[For, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """Sizes: ``items`` work-items along both, each with ``rows`` and ``columns`` of its own, ``step`` products deep."""

    items: int
    rows: int
    columns: int
    step: int


def found(parallel: Sequence[For], body: Sequence[Stmt]) -> Product | None:
    """Read a nest as a product; None where it is none, or too small to pass through local memory."""
    pair, depth = factors(body)
    if not pair:
        return None
    first, second = ({v.name for v in free_vars(f)} for f in pair)
    one = tuple(p for p in parallel if p.var.name in first - second)
    other = tuple(p for p in parallel if p.var.name in second - first)
    rows, columns = (other, one) if parallel[-1] in one else (one, other)
    m, n = size(rows), size(columns)
    if parallel[-1] not in columns or min(m, n) < 4 or m * n * depth < SMALL:
        return None
    sums = [s for s in stmts(body) if isinstance(s, For) and s.kind == "serial"]
    return Product(tuple(p for p in parallel if p not in rows and p not in columns), rows, columns, tuple(sums))


def tile(product: Product, limits: Limits) -> Tile:
    """Choose the sizes by how long the units of the device take, one tile after the other, among those
    whose blocks fit local memory.

    A work-item with r rows and c columns spends r * c multiply-adds, r + c loads from local memory and, as those along
    a side share them, (r + c) / items loads from memory on a product; the tiles are dealt out to ``threads / RESIDENT``
    units, and the last round may be a short one.
    """
    items = next(k for k in (16, 8, 4, 2, 1) if k * k <= max(limits.group, 1))
    units = max(1, limits.threads // RESIDENT)
    m, n, count = size(product.rows), size(product.columns), size(product.batch)

    def taken(rows: int, columns: int) -> float:
        tiles = -(-m // (items * rows)) * -(-n // (items * columns)) * count
        return -(-tiles // units) * (rows * columns + (rows + columns) * (1 + MEMORY / items))

    pair, _ = factors(product.sums[:1])
    itemsize = max(DTYPES[e.dtype].itemsize for e in pair)

    def fits(rows: int, columns: int, step: int) -> bool:
        held = items * (rows + columns) + 2 * (WIDE // 4)  # as padded as they may be
        return 2 * step * held * itemsize <= limits.local_bytes

    step = STEP if items >= 8 else 4
    own = [(r, c) for r in OWN for c in OWN if 2 * r >= c >= r // 2 and fits(r, c, step)] or [(OWN[-1], OWN[-1])]
    rows, columns = min(own, key=lambda o: (taken(*o), -o[0] * o[1], o[0]))
    rows = limits.choose("rows", rows, [r for r in OWN if fits(r, columns, step)])
    columns = limits.choose("columns", columns, [c for c in OWN if fits(rows, c, step)])
    return Tile(items, rows, columns, limits.choose("step", step, [s for s in (8, 16, 32) if fits(rows, columns, s)]))


def share(product: Product, limits: Limits) -> int:
    """Return how many of the products of an element a worker sums: all, but where there are fewer tiles than units of
    the device and the sums are long. The partial sums are added in order.
    """
    if tensor_cores(product, limits):
        sizes = fragments(product, limits)
        rows, columns = 16 * WARPS[0] * sizes.rows, 8 * WARPS[1] * sizes.columns
    else:
        sizes = tile(product, limits)
        rows, columns = sizes.items * sizes.rows, sizes.items * sizes.columns
    units = max(1, limits.threads // RESIDENT)
    tiles = -(-size(product.rows) // rows) * -(-size(product.columns) // columns) * size(product.batch)
    depth = size(product.sums)
    most = min(units // tiles, depth // LEAST)
    return next((depth // parts for parts in range(most, 1, -1) if depth % parts == 0), depth)


def group(kernel: Kernel, product: Product, limits: Limits) -> Kernel:
    """Tile a product for work-groups.

    The rows of a work-item lie side by side; its columns lie in strips of as many as one wide load takes, with those of
    its neighbours between them: so neighbours read neighbouring words of local memory, whose banks do not collide.
    """
    if tensor_cores(product, limits):
        return tensor(kernel, product, limits)
    sizes = tile(product, limits)
    kernel, i, j, k = _as_matrices(kernel, product)
    kernel, items, lane = blocked(kernel, i, j, k, sizes)
    return _bound(kernel, product, (f"{i}o", f"{j}o", f"{k}o"), items, lane, limits)


def blocked(kernel: Kernel, i: str, j: str, k: str, sizes: Tile) -> tuple[Kernel, list[str], str]:
    """Tile a product with one loop each of rows, columns and the sum; blocks of both operands stand in local memory.

    Returns the loops over work-items, and the one over what a wide load takes.
    """
    accumulator = next(s for s in stmts(kernel.body) if isinstance(s, Alloc))
    wide = min(sizes.columns, WIDE // DTYPES[accumulator.dtype].itemsize)
    kernel = split(kernel, i, sizes.items * sizes.rows, f"{i}o", f"{i}t", "guard")
    kernel = split(kernel, f"{i}t", sizes.rows, f"{i}x", f"{i}r", "exact")
    kernel = split(kernel, j, sizes.items * sizes.columns, f"{j}o", f"{j}t", "guard")
    kernel = split(kernel, f"{j}t", sizes.items * wide, f"{j}r", f"{j}w", "exact")
    kernel = split(kernel, f"{j}w", wide, f"{j}x", f"{j}v", "exact")
    kernel = split(kernel, k, sizes.step, f"{k}o", f"{k}s", "guard")
    rows, columns = [f"{i}x", f"{i}r"], [f"{j}r", f"{j}x", f"{j}v"]
    items = [f"{i}x", f"{j}x"]
    kernel = _tiled(kernel, (f"{i}o", f"{j}o", k), rows, columns, items, [f"{i}r", f"{j}r", f"{j}v"])
    for name, inside in (("columns", columns), ("rows", rows)):
        kernel = stage(kernel, factor_by(kernel, inside), f"{k}o", [f"{k}s", *inside], "local", name)
        kernel, along = _copied(kernel, name, f"{k}s", inside, sizes.items**2)
        if along:
            # stored across its rows, which are made longer so that their banks differ
            kernel = pad(kernel, name, 1, WIDE // 4)
    kernel = unguard(kernel, accumulator.buffer, lambda e: e.buffer in ("rows", "columns"))
    return kernel, items, f"{j}v" if wide > 1 else ""


def tensor_cores(product: Product, limits: Limits) -> bool:
    """Whether a product goes to tensor cores."""
    return "mma" in limits.native and limits.group >= 32 * math.prod(WARPS) and bool(narrow(product.sums[:1]))


def narrow(sums: Sequence[Stmt]) -> int:
    """Return of how many bytes the factors of products are that statements add to f32, where tensor cores take those:
    both floats of 16 bits of one type, or both f32 rounded to tf32; else 0.
    """
    pair, _ = factors(sums)
    (found,) = forms if len(forms := {form(e) for e in pair}) == 1 else ("",)
    return DTYPES["f32" if found == "tf32" else found].itemsize if found else 0


def fragments(product: Product, limits: Limits) -> Tile:
    """Choose how many products of 16 x 8 a warp makes along rows and columns, by time as in ``tile``.

    Each takes 32 bytes deep as long as loading two words of local memory; the words are four for each along the rows,
    and two for each along the columns.
    """
    units = max(1, limits.threads // RESIDENT)
    m, n, count = size(product.rows), size(product.columns), size(product.batch)

    def taken(rows: int, columns: int) -> int:
        tiles = -(-m // (16 * WARPS[0] * rows)) * -(-n // (8 * WARPS[1] * columns)) * count
        return -(-tiles // units) * (2 * rows * columns + 4 * rows + 2 * columns)

    rows, columns = min(FRAGMENTS, key=lambda o: (taken(*o), -o[0] * o[1]))
    rows = limits.choose("rows", rows, (1, 2))
    columns = limits.choose("columns", columns, (2, 4, 8))
    deep = DEEP // narrow(product.sums[:1])
    return Tile(math.prod(WARPS) * 32, rows, columns, limits.choose("step", deep, (deep // 2,)))


def tensor(kernel: Kernel, product: Product, limits: Limits) -> Kernel:
    """Tile a product of narrow floats for tensor cores."""
    kernel, i, j, k = _as_matrices(kernel, product)
    kernel, warp, lane = fragmented(kernel, i, j, k, fragments(product, limits), WARPS)
    return _bound(kernel, product, (f"{i}o", f"{j}o", f"{k}o"), warp, lane, limits)


def fragmented(
    kernel: Kernel, i: str, j: str, k: str, sizes: Tile, warps: tuple[int, int]
) -> tuple[Kernel, list[str], str]:
    """Tile a product of narrow floats with one loop each of rows, columns and the sum, as ``blocked`` does.

    A warp owns small products of 16 x 8, of which its lanes, ``g`` by ``q``, hold rows ``g`` and ``g + 8`` and columns
    ``2 q`` and ``2 q + 1`` (PTX ISA, mma.m16n8k16): a printer that has the instruction finds the loops like this, and
    for all others they are ordinary loops. In local memory both operands lie with the sum innermost, as lanes load it
    in pairs; their rows are longer by a wide load, so that the words of a warp are in banks of their own.
    """
    accumulator = next(s.buffer for s in stmts(kernel.body) if isinstance(s, Alloc) and s.space == "register")
    kernel = split(kernel, i, 16 * warps[0] * sizes.rows, f"{i}o", f"{i}t", "guard")
    kernel = split(kernel, f"{i}t", 16 * sizes.rows, f"{i}w", f"{i}s", "exact")
    kernel = split(kernel, f"{i}s", 16, f"{i}m", f"{i}f", "exact")
    kernel = split(kernel, f"{i}f", 8, f"{i}h", f"{i}g", "exact")
    kernel = split(kernel, j, 8 * warps[1] * sizes.columns, f"{j}o", f"{j}t", "guard")
    kernel = split(kernel, f"{j}t", 8 * sizes.columns, f"{j}w", f"{j}s", "exact")
    kernel = split(kernel, f"{j}s", 8, f"{j}n", f"{j}f", "exact")
    kernel = split(kernel, f"{j}f", 2, f"{j}q", f"{j}p", "exact")
    kernel = split(kernel, k, sizes.step, f"{k}o", f"{k}s", "guard")
    rows, columns = [f"{i}{c}" for c in "wmhg"], [f"{j}{c}" for c in "wnqp"]
    warp, own = [f"{i}w", f"{j}w", f"{i}g", f"{j}q"], [f"{i}m", f"{j}n", f"{i}h", f"{j}p"]
    kernel = _tiled(kernel, (f"{i}o", f"{j}o", k), rows, columns, warp, own)
    for name, inside in (("columns", columns), ("rows", rows)):
        factor = factor_by(kernel, inside)
        assert isinstance(factor, Op)
        kernel = stage(kernel, factor.args[0], f"{k}o", [*inside, f"{k}s"], "local", name)
        kernel, _ = _copied(kernel, name, f"{k}s", inside, sizes.items)
        kernel = pad(kernel, name, len(inside), WIDE // DTYPES[factor.args[0].dtype].itemsize)
    return unguard(kernel, accumulator, lambda e: e.buffer in ("rows", "columns")), warp, f"{j}p"


def _tiled(
    kernel: Kernel, tiles: tuple[str, str, str], rows: Sequence[str], columns: Sequence[str], items: Sequence[str],
    own: Sequence[str],
) -> Kernel:  # fmt: skip
    """From loops over tiles and in tiles, make work-items that accumulate tiles of their own in registers.

    Args:
        tiles: the loops over tiles of rows and of columns, and the name of the sum.
        rows, columns: the loops in a tile, outermost first.
        items, own: the same, as loops over work-items and over what is one's own.
    """
    i, j, k = tiles
    kernel = sink_guard(kernel, i)
    for row in reversed(rows):
        kernel = reorder(kernel, row, j)
    kernel = _ordered(kernel, [*rows, *columns], [*items, *own])
    for name in reversed([*items, *own]):
        kernel = fission(kernel, name)
    for name in reversed(own):
        for level in (f"{k}o", f"{k}s"):
            kernel = reorder(kernel, name, level)
    for name in reversed(items):
        kernel = reorder(kernel, name, f"{k}o")
    return kernel


def _ordered(kernel: Kernel, found: Sequence[str], wanted: Sequence[str]) -> Kernel:
    """Bring loops that stand directly in each other into another order."""
    names = list(found)
    for place, name in enumerate(wanted):
        for outer in reversed(names[place : names.index(name)]):
            kernel = reorder(kernel, outer, name)
        names.remove(name)
        names.insert(place, name)
    return kernel


def _bound(
    kernel: Kernel, product: Product, tiles: tuple[str, str, str], items: Sequence[str], lane: str, limits: Limits
) -> Kernel:
    """Bind the loops of a tiled product, and let it fetch ahead."""
    for name in (*(p.var.name for p in product.batch), *tiles[:2]):
        kernel = bind(kernel, name, "grid")
    for name in items:
        kernel = bind(kernel, name, "group")
    if lane:
        kernel = bind(kernel, lane, "vector")
    return ahead(merge(kernel), tiles[2], through_registers="async" not in limits.native)


def _as_matrices(kernel: Kernel, product: Product) -> tuple[Kernel, str, str, str]:
    """Make one loop each of the rows, of the columns and of the sum; return their names."""
    found = [p.var.name for p in perfect(next(s for s in kernel.body if isinstance(s, For)))[0]]
    kernel = _ordered(kernel, found, [p.var.name for p in (*product.batch, *product.rows, *product.columns)])
    made = []
    for group_ in (product.rows, product.columns, product.sums):
        name = group_[0].var.name
        for loop in group_[1:]:
            joined = f"{name}f"
            kernel = fuse(kernel, name, loop.var.name, joined)
            name = joined
        made.append(name)
    return kernel, *made  # type: ignore[return-value]


def _read(loop: For) -> list[Load]:
    return [e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if isinstance(e, Load)]


def _copied(kernel: Kernel, name: str, depth: str, inside: Sequence[str], count: int) -> tuple[Kernel, bool]:
    """Share out the filling of a block among ``count`` work-items: side by side along memory, as wide as it goes.

    Returns whether memory is read along the depth of the block.
    """
    walked = [f"{name}_{b}" for b in inside]
    deep = f"{name}_{depth}"
    (outermost,) = (
        s
        for s in stmts(kernel.body)
        if isinstance(s, For)
        and s.var.name in (walked[0], deep)
        and {t.var.name for t in stmts((s,)) if isinstance(t, For)} >= {*walked, deep}
    )
    (loop,) = loops(kernel, deep)
    along = any(affine(e.index[-1], loop.var) == 1 for e in _read(outermost))
    order = [*walked, deep] if along else [deep, *walked]
    kernel = _ordered(kernel, [s.var.name for s in stmts((outermost,)) if isinstance(s, For)], order)
    current = order[0]
    for following in order[1:]:
        kernel = fuse(kernel, current, following, f"{name}_f{following}")
        current = f"{name}_f{following}"
    (whole,) = loops(kernel, current)
    itemsize = min((DTYPES[e.dtype].itemsize for e in _read(whole)), default=4)
    each = max(1, min(WIDE // itemsize, (whole.static or 1) // count))
    kernel = split(kernel, current, each, f"{name}_u", f"{name}_v", "guard")
    kernel = split(kernel, f"{name}_u", count, f"{name}_o", f"{name}_t", "guard")
    kernel = reorder(kernel, f"{name}_o", f"{name}_t")
    (lane,) = loops(kernel, f"{name}_v")
    if each > 1 and any(affine(e.index[-1], lane.var) == 1 for e in _read(lane)):
        kernel = bind(kernel, f"{name}_v", "vector")
    return bind(kernel, f"{name}_t", "group"), along


__all__ = [
    "Product",
    "Tile",
    "blocked",
    "found",
    "fragmented",
    "fragments",
    "group",
    "narrow",
    "share",
    "tensor",
    "tensor_cores",
    "tile",
]
