"""The recipe for products on GPUs: work-groups own tiles of the result, work-items own tiles of those in registers.

Blocks of both operands pass through local memory, ``STEP`` products deep: an element is read from memory once for each
tile, and from local memory once for each work-item that needs it. Local memory holds two blocks of each operand: while
one is worked with, the next one is on its way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import Alloc, Expr, For, Kernel, Op, Stmt, Store, stmts
from kernelforge.ir.schedule.ahead import ahead
from kernelforge.ir.schedule.contraction import SMALL, factors
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.nests import loads, perfect, size
from kernelforge.ir.schedule.staging import pad, stage
from kernelforge.ir.schedule.steps import bind, fission, fuse, loops, reorder, sink_guard, split, unguard

STEP = 8
"""Products of an element that a block in local memory holds."""

WIDE = 16
"""Bytes that a work-item moves at once."""

RESIDENT = 2048
"""Work-items that are resident on a unit of a GPU, about."""

OWN = (8, 4, 2)
"""Rows or columns of the tile of a work-item."""


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
    """Choose the sizes by how long the units of the device take, one tile after the other.

    A work-item with r rows and c columns spends r * c multiply-adds and r + c loads from local memory on a product; the
    tiles are dealt out to ``threads / RESIDENT`` units, and the last round may be a short one. Of equals the largest is
    taken, which reads the least memory.
    """
    items = next(k for k in (16, 8, 4, 2, 1) if k * k <= max(limits.group, 1))
    units = max(1, limits.threads // RESIDENT)
    m, n, count = size(product.rows), size(product.columns), size(product.batch)

    def taken(rows: int, columns: int) -> int:
        tiles = -(-m // (items * rows)) * -(-n // (items * columns)) * count
        return -(-tiles // units) * (rows * columns + rows + columns)

    own = [(r, c) for r in OWN for c in OWN if 2 * r >= c >= r // 2]
    rows, columns = min(own, key=lambda o: (taken(*o), -o[0] * o[1], o[0]))
    rows = limits.choose("rows", rows, OWN)
    columns = limits.choose("columns", columns, OWN)
    step = STEP if items >= 8 else 4
    return Tile(items, rows, columns, limits.choose("step", step, (8, 16, 32)))


def group(kernel: Kernel, product: Product, limits: Limits) -> Kernel:
    """Tile a product for work-groups.

    The rows of a work-item lie side by side; its columns lie in strips of as many as one wide load takes, with those of
    its neighbours between them: so neighbours read neighbouring words of local memory, whose banks do not collide.
    """
    sizes = tile(product, limits)
    kernel, i, j, k = _as_matrices(kernel, product)
    accumulator = next(s for s in stmts(kernel.body) if isinstance(s, Alloc))
    wide = min(sizes.columns, WIDE // DTYPES[accumulator.dtype].itemsize)
    kernel = split(kernel, i, sizes.items * sizes.rows, f"{i}o", f"{i}t", "guard")
    kernel = split(kernel, f"{i}t", sizes.rows, f"{i}x", f"{i}r", "exact")
    kernel = split(kernel, j, sizes.items * sizes.columns, f"{j}o", f"{j}t", "guard")
    kernel = split(kernel, f"{j}t", sizes.items * wide, f"{j}r", f"{j}w", "exact")
    kernel = split(kernel, f"{j}w", wide, f"{j}x", f"{j}v", "exact")
    kernel = split(kernel, k, sizes.step, f"{k}o", f"{k}s", "guard")
    kernel = sink_guard(kernel, f"{i}o")
    for outer, inner in ((f"{i}r", f"{j}o"), (f"{i}x", f"{j}o"), (f"{j}r", f"{j}x"), (f"{i}r", f"{j}x")):
        kernel = reorder(kernel, outer, inner)
    own = [f"{i}r", f"{j}r", f"{j}v"]
    for name in reversed([f"{i}x", f"{j}x", *own]):
        kernel = fission(kernel, name)
    for name in reversed(own):
        for level in (f"{k}o", f"{k}s"):
            kernel = reorder(kernel, name, level)
    for name in (f"{j}x", f"{i}x"):
        kernel = reorder(kernel, name, f"{k}o")
    strips = {"columns": [f"{j}r", f"{j}x", f"{j}v"], "rows": [f"{i}x", f"{i}r"]}
    for name, inside in strips.items():
        kernel = stage(kernel, _factor(kernel, inside), f"{k}o", [f"{k}s", *inside], "local", name)
    kernel = unguard(kernel, accumulator.buffer, lambda e: e.buffer in strips)
    for name, inside in strips.items():
        kernel = _copied(kernel, name, [f"{k}s", *inside], sizes.items**2)
    for name in (*(p.var.name for p in product.batch), f"{i}o", f"{j}o"):
        kernel = bind(kernel, name, "grid")
    for name in (f"{i}x", f"{j}x"):
        kernel = bind(kernel, name, "group")
    if wide > 1:
        kernel = bind(kernel, f"{j}v", "vector")
    return ahead(merge(kernel), f"{k}o", through_registers="async" not in limits.native)


def _as_matrices(kernel: Kernel, product: Product) -> tuple[Kernel, str, str, str]:
    """Make one loop each of the rows, of the columns and of the sum; return their names."""
    order = [p.var.name for p in (*product.batch, *product.rows, *product.columns)]
    for place, name in enumerate(order):
        names = [p.var.name for p in perfect(next(s for s in kernel.body if isinstance(s, For)))[0]]
        for outer in reversed(names[place : names.index(name)]):
            kernel = reorder(kernel, outer, name)
    made = []
    for group_ in (product.rows, product.columns, product.sums):
        name = group_[0].var.name
        for loop in group_[1:]:
            joined = f"{name}f"
            kernel = fuse(kernel, name, loop.var.name, joined)
            name = joined
        made.append(name)
    return kernel, *made  # type: ignore[return-value]


def _factor(kernel: Kernel, inside: Sequence[str]) -> Expr:
    """Return the factor of the accumulated product that depends on the loops ``inside``."""
    for s in stmts(kernel.body):
        if isinstance(s, Store) and s.op == "add" and isinstance(s.value, Op) and s.value.op == "mul":
            for e in s.value.args:
                if not {v.name for v in free_vars(e)}.isdisjoint(inside):
                    return e
    raise IllegalSchedule(step="stage", target=inside[0], reason="no product is accumulated")


def _copied(kernel: Kernel, name: str, by: Sequence[str], count: int) -> Kernel:
    """Share out the filling of a block among ``count`` work-items: side by side along memory, as wide as it goes.

    A block that is read along its depth is stored across its rows, which are made longer so that their banks differ.
    """
    walked = [f"{name}_{b}" for b in by]
    (depth,) = loops(kernel, walked[0])
    across = any(affine(e.index[0], depth.var) == 1 for e in loads((depth,)))
    if across:
        for inner in walked[1:]:
            kernel = reorder(kernel, walked[0], inner)
        walked = [*walked[1:], walked[0]]
        kernel = pad(kernel, name, WIDE // 4)
    current = walked[0]
    for following in walked[1:]:
        kernel = fuse(kernel, current, following, f"{name}_f{following}")
        current = f"{name}_f{following}"
    (whole,) = loops(kernel, current)
    each = max(1, min(WIDE // 4, (whole.static or 1) // count))
    kernel = split(kernel, current, each, f"{name}_u", f"{name}_v", "guard")
    kernel = split(kernel, f"{name}_u", count, f"{name}_o", f"{name}_t", "guard")
    kernel = reorder(kernel, f"{name}_o", f"{name}_t")
    (lane,) = loops(kernel, f"{name}_v")
    if each > 1 and any(affine(e.index[0], lane.var) == 1 for e in loads((lane,))):
        kernel = bind(kernel, f"{name}_v", "vector")
    return bind(kernel, f"{name}_t", "group")


__all__ = ["Product", "Tile", "found", "group", "tile"]
