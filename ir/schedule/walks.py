"""The recipe for chains on GPUs: a work-group takes a block of rows and walks blocks of their columns through local
memory, once for each level of reductions that need each other (``kernelforge.ir.walks``).

What a walk needs of columns is computed in it, so that memory is linear in the number of columns. Attention walks once,
as its sums go along with the maximum (``kernelforge.ir.online``), and its gradient with respect to queries twice.
Blocks of columns that a mask hides are left out (``skips``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.errors import IllegalSchedule
from kernelforge.ir import walks
from kernelforge.ir.accesses import redirected
from kernelforge.ir.demand import Refused, identity
from kernelforge.ir.index import normalize
from kernelforge.ir.interpret import evaluate
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    op,
    rebuild,
    stmts,
    walk,
)
from kernelforge.ir.schedule import skips, tiles
from kernelforge.ir.schedule.factors import factors
from kernelforge.ir.schedule.guards import sink_guard
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.nests import filled, perfect
from kernelforge.ir.schedule.staging import nested
from kernelforge.ir.schedule.steps import bind, each, fission, fuse, loops, place, reorder, rfactor, split, substituted

ITEMS = (16, 8, 4, 2, 1)
"""Work-items along each side of a tile."""

OWN = (4, 2, 1)
"""Rows of a work-item's tile."""

PAD = 4
"""Elements by which rows of a block of columns are apart more than they are long: their banks differ."""

STEP = 8
"""Products of an element that a block of operands in local memory holds."""

WARP, ROWS, COLUMNS = 32, 16, 8
"""Work-items that tensor cores take at once, and the rows and columns of what these make."""


def walked(kernel: Kernel, row: str, size: int) -> Kernel:
    """Walk the columns of the row loop ``row`` by blocks of ``size``, in a loop for each level that is called ``row``,
    ``w`` and the number of the level.

    Legal where ``kernelforge.ir.walks`` finds walks: reductions may be reassociated, what a walk computes once more
    reads nothing that changed since, and sums that go along with a maximum are scaled as it grows
    (``kernelforge.ir.online``).
    """

    def change(loop: For) -> Sequence[Stmt]:
        try:
            found = walks.found(loop.body)
        except Refused as refusal:
            raise IllegalSchedule(step="walked", target=row, reason=str(refusal)) from refusal
        allocs = {s.buffer: s for s in loop.body if isinstance(s, Alloc)}
        body: list[Stmt] = [s for s in allocs.values() if s.buffer not in found.columns]
        body += [Alloc(b.buffer, b.dtype, (), "register") for m in found.maxima for b in (m.before, *m.bases())]
        body += [s.stmt for s in found.steps if not s.form and not s.level]
        for level in range(1, found.levels + 1):
            steps = found.wanted(level)
            block = Var(f"{row}w{level}", "i64", -(-found.extent // size))
            inner: list[Stmt] = []
            for step in steps:
                if step.form == "sums":
                    body.append(_started(step.stmt))
                inner += _in_block(step, block, size, found)
            inner = _in_place(inner, {b: allocs[b].dtype for b in found.columns})
            used = {b for s in inner for b in _touched(s)} & found.columns
            made = [dataclasses.replace(allocs[b], shape=(i64(size),)) for b in allocs if b in used]
            body.append(For(block, i64(block.bound or 0), "serial", (*made, *inner)))
            for step in found.steps:
                if step.level == level and (step.scaled is not None or not step.form):
                    body.append(_finished(step) if step.form else step.stmt)
        return (dataclasses.replace(loop, body=tuple(body)),)

    return each(kernel, "walked", row, change)


def _touched(stmt: Stmt) -> set[str]:
    found = {s.buffer for s in stmts((stmt,)) if isinstance(s, Store)}
    return found | {e.buffer for s in stmts((stmt,)) for r in exprs(s) for e in walk(r) if isinstance(e, Load)}


def _started(stmt: Stmt) -> Stmt:
    """Set what a statement reduces columns to, in its loops, to the identity."""
    path = nested(stmt)
    first, *_, last = path[-1].body
    assert isinstance(first, Alloc)
    assert isinstance(last, Store)
    combine = next(s.op for s in stmts(path[-1].body) if isinstance(s, Store) and s.op)
    made: Stmt = Store(last.buffer, last.index, identity(combine, first.dtype))
    for loop in reversed(path):
        var = Var(f"{loop.var.name}z", "i64", loop.var.bound)
        (made,) = (For(var, loop.extent, loop.kind, substituted((made,), {loop.var: var})),)
    return made


def _in_block(step: walks.Step, block: Var, size: int, found: walks.Walk) -> list[Stmt]:
    """Do for the columns of a block what a step does for all."""
    assert step.loop is not None
    old, ends = step.loop.var, found.extent % size != 0
    new = Var(old.name, "i64", size)
    at = block * size + new

    def local(e: Expr) -> Expr:
        return Load(e.buffer, (new,), e.dtype) if isinstance(e, Load) and e.buffer in found.columns else e

    memo: dict[Expr, Expr] = {}

    def visit(s: Stmt) -> Stmt:
        s = map_exprs(s, lambda e: rebuild(e, local, memo)) if not isinstance(s, For | If) else s
        if isinstance(s, Store) and s.buffer in found.columns:
            s = dataclasses.replace(s, index=(new,))
        if isinstance(s, For | If):
            s = dataclasses.replace(s, body=tuple(map(visit, s.body)))
        return s

    def shorten(s: Stmt) -> Stmt:
        if not isinstance(s, For):
            return s
        if s is not step.loop:
            return dataclasses.replace(s, body=tuple(map(shorten, s.body)))
        body = tuple(map(visit, substituted(s.body, {old: at})))
        if ends:
            body = (If(normalize(at < found.extent), body),)
        return For(new, i64(size), s.kind, body)

    made = shorten(step.stmt)
    if step.form == "sums":
        combine = next(s.op for s in stmts((made,)) if isinstance(s, Store) and s.op)

        def join(s: Stmt) -> Stmt:
            if isinstance(s, For) and s.kind == "parallel":
                return dataclasses.replace(s, body=tuple(map(join, s.body)))
            if isinstance(s, Store) and isinstance(s.value, Load):
                if step.scaled is None:
                    return dataclasses.replace(s, op=combine)
                old = Load(s.buffer, s.index, s.value.dtype)
                return dataclasses.replace(s, value=step.grown(old) + s.value)
            return s

        return [join(made)]
    if step.scaled is not None:
        total = _total(step.stmt)
        return [Store(total.buffer, (), step.grown(total)), made]
    if step.running is not None and any(step.running is m for m in found.maxima):
        return [
            Store(step.running.before.buffer, (), step.running.maximum),
            made,
            *(Store(b.buffer, (), value) for b, value in step.running.bases().items()),
        ]
    return [made]


def _total(stmt: Stmt) -> Load:
    """Return the element that a statement reduces columns to, in its loops."""
    last = stmt
    while isinstance(last, For):
        last = last.body[-1]
    assert isinstance(last, Store)
    return Load(last.buffer, last.index, last.value.dtype)


def _finished(step: walks.Step) -> Stmt:
    """Make a sum of what the walk has summed, in the loops of its statement."""
    assert step.running is not None
    assert step.scaled is not None
    total = _total(step.stmt)
    made: Stmt = Store(total.buffer, total.index, step.running.finished(total, step.scaled))
    for loop in reversed(nested(step.stmt) if step.form == "sums" else ()):
        var = Var(f"{loop.var.name}e", "i64", loop.var.bound)
        (made,) = (For(var, loop.extent, loop.kind, substituted((made,), {loop.var: var})),)
    return made


def _in_place(steps: Sequence[Stmt], columns: Mapping[str, str]) -> list[Stmt]:
    """Let a fill of columns that alone reads others of them, of its dtype, overwrite these."""
    out = list(steps)
    for k, stmt in enumerate(out):
        stored = {s.buffer for s in stmts((stmt,)) if isinstance(s, Store)} & columns.keys()
        if len(stored) != 1:
            continue
        (new,) = stored
        read = [b for b in sorted(_touched(stmt) & columns.keys() - stored) if columns[b] == columns[new]]
        alone = [b for b in read if not any(b in _touched(s) for s in out[k + 1 :])]
        if alone:
            out[k:] = redirected(out[k:], {new}, lambda _, index, old=alone[0]: (old, index))  # type: ignore[misc]
    return out


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """``items`` work-items along both sides of a tile of ``rows`` rows and ``columns`` columns."""

    items: int
    rows: int
    columns: int


def group(kernel: Kernel, parallel: Sequence[For], limits: Limits) -> Kernel:
    """Give a work-group the largest block of rows whose buffers fit local memory."""
    row, found = parallel[-1], walks.found(parallel[-1].body)
    items = next(k for k in ITEMS if k * k <= limits.group)
    columns = next((items * c for c in reversed(OWN) if items * c >= found.extent), items * OWN[0])
    wanted = [r for r in OWN if r == 1 or items * r < 2 * (row.static or 1)]
    candidates = [Sizes(items, items * r, columns) for r in wanted]
    candidates += [Sizes(k, k * r, k * OWN[0]) for k in ITEMS if k < items for r in OWN]
    for sizes in candidates:
        made = _blocks(kernel, parallel, found, sizes, limits)
        if _held(made) <= limits.local_bytes:
            return made
    raise IllegalSchedule(step="walked", target=row.var.name, reason="no block of rows fits local memory")


def _held(kernel: Kernel) -> int:
    """Return the bytes of local memory; what has one name and size shares its place, as printers have it."""
    found = {(s.buffer, s.dtype, s.shape) for s in stmts(kernel.body) if isinstance(s, Alloc) and s.space == "local"}
    total = 0
    for _, dtype, shape in found:
        count = 1
        for n in shape:
            assert isinstance(n, Const)
            count *= int(n.value)
        total += count * DTYPES[dtype].itemsize
    return total


def _blocks(kernel: Kernel, parallel: Sequence[For], found: walks.Walk, sizes: Sizes, limits: Limits) -> Kernel:
    i, around = parallel[-1].var.name, [p.var.name for p in parallel]
    around[-1] = f"{i}b"
    whole = fission(split(kernel, i, sizes.rows, f"{i}b", i, "clip"), i)
    steps = [s for s in loops(whole, f"{i}b")[0].body if isinstance(s, For)]
    products = {k: store.buffer for k, s in enumerate(steps) if (store := filled(s.body)) is not None}
    skip = skips.find(steps, products)
    kernel = split(walked(kernel, i, sizes.columns), i, sizes.rows, f"{i}b", i, "clip")
    kernel = fission(kernel, i)
    for level in range(1, found.levels + 1):
        kernel = reorder(kernel, i, f"{i}w{level}")
    kernel = fission(kernel, i)
    if skip is not None and _hidden(found, skip):
        kernel = _skipped(kernel, f"{i}b", found, sizes, skip)
    (block,) = loops(kernel, f"{i}b")
    registers = {s.buffer for s in block.body if isinstance(s, Alloc) and s.shape}
    for buffer in registers:
        kernel = place(kernel, buffer, "local")
    (block,) = loops(kernel, f"{i}b")
    made = _Pieces(kernel, i, around, sizes, "mma" in limits.native).all(block.body)
    (kernel,) = [_within(kernel, around, made)]
    for name in around:
        kernel = bind(kernel, name, "grid")
    return kernel


def _within(kernel: Kernel, around: Sequence[str], body: Sequence[Stmt]) -> Kernel:
    """Put statements into the loops ``around`` of the nest of a kernel."""
    made: tuple[Stmt, ...] = tuple(body)
    for name in reversed(around):
        made = (dataclasses.replace(loops(kernel, name)[0], body=made),)
    return dataclasses.replace(kernel, body=made)


def _skipped(kernel: Kernel, at: str, found: walks.Walk, sizes: Sizes, skip: skips.Skip) -> Kernel:
    """Let each walk end after the columns that its reductions need, and add what is to be done instead.

    A sum that goes along with a maximum of -inf in those columns adds zeros there, whatever the other columns are.
    """
    known = {
        s.buffer: step.level for step in found.steps for s in stmts((step.stmt,)) if isinstance(s, Store)
    }  # fmt: skip
    first = skip.bound.upto(i64(0), i64(sizes.rows - 1), sizes.columns)
    along = {k for k, s in enumerate(found.steps) if s.scaled is not None}
    live = False
    ends: dict[int, Expr] = {}
    for level in range(1, found.levels + 1):
        own = {k for k, s in enumerate(found.steps) if s.level == level and s.form in ("sum", "sums", "store")}
        if own <= skip.masked | skip.zero:
            seen = bool(own & skip.zero - along)
            most = op("max", Load("live", (), "i64"), first) if seen else first
            ends[level] = normalize((most + (sizes.columns - 1)) // sizes.columns)
            live = live or seen
    added: dict[int, list[Stmt]] = {}
    for k in sorted(skip.after):
        read = {b for s in skip.after[k] for b in _touched(s)}
        if live or "live" not in read:
            added.setdefault(max((known.get(b, 0) for b in read), default=0), []).extend(map(_scalar, skip.after[k]))

    def change(loop: For) -> Sequence[Stmt]:
        out: list[Stmt] = []
        for s in loop.body:
            if not isinstance(s, For) or not s.var.name.startswith(f"{at[:-1]}w"):
                out.append(s)
                continue
            level = int(s.var.name[len(at) :])
            if level == 1:
                out += added.get(0, ())
            out += [dataclasses.replace(s, extent=ends.get(level, s.extent)), *added.get(level, ())]
        return (dataclasses.replace(loop, body=tuple(out)),)

    return each(kernel, "walked", at, change)


def _hidden(found: walks.Walk, skip: skips.Skip) -> bool:
    """Whether the maxima that sums go along with are -inf in columns that are left out: exponentials are zero there."""
    for k, step in enumerate(found.steps):
        if step.running in found.maxima and step.scaled is None and k in skip.after:
            again = next(s for added in skip.after[k] for s in stmts((added,)) if isinstance(s, Store))
            if _variables(again.value) or any(isinstance(e, Load) for e in walk(again.value)):
                return False
            if not evaluate(again.value.eq(-math.inf), {}):
                return False
    return True


def _scalar(stmt: Stmt) -> Stmt:
    """Run lanes one after the other: a work-item has none."""
    if not isinstance(stmt, For | If):
        return stmt
    stmt = dataclasses.replace(stmt, body=tuple(map(_scalar, stmt.body)))
    return dataclasses.replace(stmt, kind="serial") if isinstance(stmt, For) and stmt.kind == "vector" else stmt


class _Pieces:
    """Shares the statements of a block of rows among work-items."""

    def __init__(self, kernel: Kernel, row: str, around: Sequence[str], sizes: Sizes, tensor_cores: bool) -> None:
        self.kernel = kernel
        self.row = row
        self.around = around
        self.sizes = sizes
        self.warps = sizes.items**2 // WARP
        self.tensor_cores = tensor_cores

    def all(self, body: Sequence[Stmt]) -> list[Stmt]:
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, Alloc) and len(s.shape) == 2:
                n = s.shape[1]
                assert isinstance(n, Const)
                out.append(dataclasses.replace(s, shape=(s.shape[0], i64(int(n.value) + PAD)), space="local"))
            elif isinstance(s, If) or (isinstance(s, For) and s.var.name.startswith(f"{self.row}w")):
                out.append(dataclasses.replace(s, body=tuple(self.all(s.body))))
            elif isinstance(s, For) and s.var.name == self.row and not self.uniform(s):
                out += self.shared(dataclasses.replace(s, kind="parallel"))
            else:
                out.append(s)
        return out

    def uniform(self, rows: For) -> bool:
        """Whether a loop makes one element of all rows: each work-item does so for itself."""
        return all(isinstance(s, Store) and not s.index for s in rows.body)

    def shared(self, rows: For) -> tuple[Stmt, ...]:
        if rows.static is None:
            guarded = If(normalize(rows.var < rows.extent), rows.body)
            rows = dataclasses.replace(rows, extent=i64(self.sizes.rows), body=(guarded,))
        kernel = sink_guard(_within(self.kernel, self.around, [rows]), self.around[-1])
        path, body = perfect(loops(kernel, self.row)[0])
        names = [p.var.name for p in path]
        pair, _ = factors([_plain(s) for s in body])
        if pair and _product(pair, path):
            kernel = self.product(kernel, names, body)
        elif len(body) == 1 and isinstance(body[0], For) and body[0].kind == "serial" and len(path) == 1:
            kernel = self.reduction(kernel, body[0])
        else:
            kernel = self.map(kernel, names)
        return loops(kernel, self.around[-1])[0].body

    def product(self, kernel: Kernel, names: list[str], body: Sequence[Stmt]) -> Kernel:
        i, *columns = names
        for other in columns[1:]:
            kernel = fuse(kernel, columns[0], other, f"{columns[0]}f")
            columns[0] = f"{columns[0]}f"
        first, *sums = [s.var.name for s in stmts(body) if isinstance(s, For)]
        for other in sums:
            kernel = fuse(kernel, first, other, f"{first}f")
            first = f"{first}f"
        j, items = columns[0], self.sizes.items
        n = loops(kernel, j)[0].static or 1
        along = self.sizes.rows // ROWS
        itemsize = tiles.narrow([_plain(s) for s in body]) if self.tensor_cores else 0
        if itemsize and along and self.warps % along == 0:
            across = self.warps // along
            own = next((c for c in (1, 2, 4, 8) if COLUMNS * across * c >= n), 8)
            deep = tiles.DEEP // itemsize
            deep = deep if (loops(kernel, first)[0].static or 1) > deep // 2 else deep // 2
            kernel, group_, lane = tiles.fragmented(
                kernel, i, j, first, tiles.Tile(items * items, 1, own, deep), (along, across)
            )
        else:
            own = next((c for c in (1, 2, 4, 8) if items * c >= n), 8)
            step = STEP if items >= 8 else 4
            kernel, group_, lane = tiles.blocked(
                kernel, i, j, first, tiles.Tile(items, self.sizes.rows // items, own, step)
            )
        for name in (f"{i}o", f"{j}o"):
            kernel = bind(kernel, name, "serial")
        for name in group_:
            kernel = bind(kernel, name, "group")
        return bind(kernel, lane, "vector") if lane else kernel

    def reduction(self, kernel: Kernel, loop: For) -> Kernel:
        """Let work-items of a row share it, and one of them add up what they found."""
        name, i = loop.var.name, self.row
        most = min(self.sizes.items**2 // self.sizes.rows, loop.static or 1)
        count = next((c for c in range(most, 1, -1) if (loop.static or 1) % c == 0), 1)
        kernel = split(kernel, name, count, f"{name}o", f"{name}t", "exact")
        kernel = rfactor(kernel, f"{name}o", f"{name}t", f"{name}_parts", "local")
        kernel = fission(sink_guard(kernel, i), i)
        kernel = reorder(kernel, f"{name}o", f"{name}t")
        kernel = bind(kernel, i, "group")
        return each(
            kernel, "bind", f"{name}t",
            lambda s: (dataclasses.replace(s, kind="group" if s.kind == "parallel" else s.kind),),
        )  # fmt: skip

    def map(self, kernel: Kernel, names: list[str]) -> Kernel:
        """Deal out elements one by one, neighbours to neighbours."""
        first, *others = names
        for other in others:
            kernel = fuse(kernel, first, other, f"{first}f")
            first = f"{first}f"
        kernel = split(kernel, first, self.sizes.items**2, f"{first}o", f"{first}t", "guard")
        kernel = reorder(kernel, f"{first}o", f"{first}t")
        return bind(bind(kernel, f"{first}o", "serial"), f"{first}t", "group")


def _plain(stmt: Stmt) -> Stmt:
    """Leave out the Ifs that each hold all of a loop's body."""
    if isinstance(stmt, For):
        body = stmt.body
        while len(body) == 1 and isinstance(body[0], If):
            body = body[0].body
        return dataclasses.replace(stmt, body=tuple(map(_plain, body)))
    return stmt


def _product(pair: Sequence[Expr], path: Sequence[For]) -> bool:
    """Whether one factor depends on the row and the other one on columns alone, of which there are some."""
    names = [{v.name for e in [f] for v in _variables(e)} for f in pair]
    rows, columns = path[0].var.name, {p.var.name for p in path[1:]}
    both = [(rows in n, bool(columns & n)) for n in names]
    wide = 1
    for p in path[1:]:
        wide *= p.static or 1
    return sorted(both) == [(False, True), (True, False)] and wide >= 4


def _variables(expr: Expr) -> list[Var]:
    return [e for e in walk(expr) if isinstance(e, Var)]
