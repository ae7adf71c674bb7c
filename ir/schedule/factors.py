"""What a nest that sums products is made of, and its loops in the order of a product of matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kernelforge.dtypes import NARROW_FLOATS
from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import Expr, For, Kernel, Load, Op, Stmt, Store, Var, stmts
from kernelforge.ir.schedule.limits import SHORTEST
from kernelforge.ir.schedule.nests import perfect, size
from kernelforge.ir.schedule.steps import fuse, reorder
from kernelforge.ir.schedule.windows import slides

SMALL = 4096
"""Multiplications below which packing does not pay."""

LONG = 1024
"""Products in a sum from which on its results are few enough to be lanes of a vector even if they fill a few only."""

LEAST = 4
"""Rows and columns of a product at least, for panels to be packed."""


def arranged(
    kernel: Kernel, parallel: Sequence[For], body: Sequence[Stmt], width: int, masks: bool = False
) -> Kernel | None:
    """Bring the parallel loops into the order of a product of matrices: last that of its rows and that of its columns.

    The nest sums products of one factor that depends on the rows and one that depends on the columns, not on both.
    Columns are the loop along which the result lies in memory most densely, unless it is shorter than a register of
    ``width`` elements; with ``masks``, which write parts of registers, also where it has more than ``SHORTEST`` of them
    or the sum is ``LONG``, unless the other factor lies along its rows. Returns None where the nest is no product, or
    one too small to pack.
    """
    found, depth = factors(body)
    if not found:
        return None
    # elements of the result from one iteration of a loop to the next
    steps = {p.var.name: size(parallel[k + 1 :]) for k, p in enumerate(parallel)}
    kernel = _gathered(kernel, found, width, steps)
    parallel = parallel_loops(kernel)
    found, _ = factors(parallel[-1].body)
    first, second = ({v.name for v in free_vars(f)} for f in found)

    def apart(i: str, j: str) -> bool:
        return any(i in a - b and j in b - a for a, b in ((first, second), (second, first)))

    extents = {p.var.name: p.static or 0 for p in parallel}
    sliding = False
    for f in found:
        positions = _positions(kernel, f)
        sliding = sliding or bool(positions)
        extents.update(dict.fromkeys(positions, math.prod(extents[name] for name in positions)))
    pairs = []
    for a, i in enumerate(extents):
        for b, j in enumerate(extents):
            m, n, step = extents[i], extents[j], steps[j]
            enough = n > SHORTEST or (n > 1 and depth >= LONG)
            part = masks and step == 1 and enough and not any(_along(f, parallel[a]) for f in found)
            wide = (n >= width or part) and not sliding and any(_along(f, parallel[b]) for f in found)
            if apart(i, j) and min(m, n) >= (2 if wide else LEAST) and m * n * depth >= SMALL:
                dense = width - step if n >= width > step or part else 0
                pairs.append((dense, min(n, 4 * width), min(m, 4 * width), a, b))
    if not pairs:
        return None
    *_, a, b = max(pairs)
    for name in (parallel[a].var.name, parallel[b].var.name):
        names = [p.var.name for p in parallel_loops(kernel)]
        for inner in names[names.index(name) + 1 :]:
            kernel = reorder(kernel, name, inner)
    return kernel


def _along(factor: Expr, loop: For) -> bool:
    """Whether a factor lies along a loop in memory: panels of so few rows are read as they are."""
    return isinstance(factor, Load) and affine(factor.index[0], loop.var) == 1


def _gathered(kernel: Kernel, found: Sequence[Expr], width: int, steps: dict[str, int]) -> Kernel:
    """Make one loop of all rows or all columns where each of their loops is shorter than a register.

    So it is where one factor is read through windows, for the other one: whatever is packed for the tiles of one
    iteration of the loops outside serves more of them. Loops over the positions of windows stay, for these slide.
    ``steps`` has the distance in the result from one iteration of each loop to the next.
    """
    parallel = parallel_loops(kernel)
    sliding = [_positions(kernel, f) for f in found]
    for k, factor in enumerate(found):
        mine, others = free_vars(factor), free_vars(found[1 - k])
        group = [p for p in parallel if p.var in mine - others and p.var.name not in sliding[k]]
        short = not sliding[k] and max((p.static or 0 for p in group), default=0) < width
        if short and not sliding[1 - k]:  # an image's worth will do
            enough = (n for n in range(1, len(group)) if size(group[-n:]) >= 4 * width)
            group = group[-next(enough, len(group)) :]
        elif (
            not sliding[k]
            and not sliding[1 - k]
            and not _shared(kernel, factor, group, size([p for p in parallel if p.var in others - mine]), width)
        ):
            # the last ones, if they are too short for lanes but one run of memory
            group = _run(parallel, group, width)
            short = len(group) > 1
        if len(group) < 2 or not (short or sliding[1 - k]):
            continue
        name = group[0].var.name
        for p in group[1:]:
            names = [q.var.name for q in parallel_loops(kernel)]
            for before in reversed(names[names.index(name) + 1 : names.index(p.var.name)]):
                kernel = reorder(kernel, before, p.var.name)
            kernel, name = fuse(kernel, name, p.var.name, f"{name}g"), f"{name}g"
            steps[name] = steps[p.var.name]
    return kernel


def _run(parallel: Sequence[For], group: Sequence[For], width: int) -> list[For]:
    """Return the last loops of a group that stand directly in each other, as few as fill a register together."""
    taken: list[For] = []
    for p in reversed(parallel):
        if p not in group or size(taken) >= width:
            break
        taken.insert(0, p)
    return taken


def _shared(kernel: Kernel, factor: Expr, group: Sequence[For], others: int, width: int) -> bool:
    """Whether the loops of a group are windows that share most of their elements, and whose rows fill a register, or
    half of one where few ``others`` make up for packing each: these are packed once, not for each window.
    """
    made = [slides(factor, p, r) for p in group for r in sum_loops(kernel)]
    least = width if others > 2 * width else width // 2
    return any(s is not None and (s.inner.static or 0) >= least for s in made)


def _positions(kernel: Kernel, factor: Expr) -> list[str]:
    """Return the loops over positions of windows that a factor is read through."""
    made = [slides(factor, p, r) for p in parallel_loops(kernel) for r in sum_loops(kernel)]
    return [s.outer.var.name for s in made if s is not None and (s.outer.static or 0) >= (s.inner.static or 0)]


def factors(body: Sequence[Stmt]) -> tuple[tuple[Expr, ...], int]:
    """Return the factors of the one sum of products of a nest, and the number of products; none where it has none, or
    where its extent varies with something that a factor does not depend on.
    """
    sums = [s for s in body if isinstance(s, For) and s.kind == "serial"]
    depth, uneven = 1, set[Var]()
    while len(sums) == 1:
        depth *= sums[0].var.bound or 0
        uneven |= free_vars(sums[0].extent)
        inner = sums[0].body
        if len(inner) == 1 and isinstance(store := inner[0], Store):
            value = store.value
            if store.op != "add" or not isinstance(value, Op) or value.op != "mul":
                return (), 0
            return (value.args, depth) if all(uneven <= free_vars(f) for f in value.args) else ((), 0)
        sums = [s for s in inner if isinstance(s, For) and s.kind == "serial"] if len(inner) == 1 else []
    return (), 0


def multiplied(kernel: Kernel) -> Iterator[tuple[Expr, ...]]:
    """Yield the factors of each product that is added up anywhere in a kernel."""
    for s in stmts(kernel.body):
        if isinstance(s, Store) and s.op == "add" and isinstance(s.value, Op) and s.value.op == "mul":
            yield s.value.args


def form(factor: Expr) -> str:
    """Return as what tensor cores take a factor of f32: ``bf16``, ``f16`` or ``tf32``, empty where they do not."""
    if not isinstance(factor, Op) or factor.dtype != "f32":
        return ""
    dtype = factor.args[0].dtype
    return factor.op if factor.op == "tf32" else dtype if factor.op == "cast" and dtype in NARROW_FLOATS else ""


def factor_by(kernel: Kernel, inside: Sequence[str]) -> Expr:
    """Return the factor of the accumulated product that depends on one of the loops ``inside``."""
    for pair in multiplied(kernel):
        for e in pair:
            if not {v.name for v in free_vars(e)}.isdisjoint(inside):
                return e
    raise IllegalSchedule(step="stage", target=inside[0], reason="no product is accumulated")


def parallel_loops(kernel: Kernel) -> list[For]:
    """Return the parallel loops of the one nest of a kernel."""
    return perfect(next(s for s in kernel.body if isinstance(s, For)))[0]


def sum_loops(kernel: Kernel) -> list[For]:
    """Return the loops of the sum of products, outermost first."""
    return [s for s in stmts(parallel_loops(kernel)[-1].body) if isinstance(s, For) and s.kind == "serial"]
