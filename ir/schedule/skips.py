"""Columns that no row of a block needs, as those a causal mask hides: they are neither computed nor read.

A product is skipped where every reader chooses something else in its place, by a condition that bounds the column from
above. What readers make there depends on the row alone. Its maximum is taken once; and where it comes out as zero for
all rows of the block, as the exponential of a masked score does, so is what is made of it by products, and sums over it
need not walk there. Rows for which it does not, as those with every column masked, are seen while they are computed,
and their block walks through all columns. A weight of exactly zero thus hides an infinity in what it weighs. Some
columns are always walked through, so that zero weights divided by their sum are NaN where all of them are hidden, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence

from kernelforge.ir.index import affine, free_vars, is_lazy, normalize, poly, reads
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Load,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    op,
    rebuild,
    select,
    stmts,
    substitute,
    walk,
)  # fmt: skip

LIVE = 64
"""Columns are skipped in multiples of so many: whole register tiles and whole vectors."""

COLUMN = Var("column", "i64", 1 << 40)


@dataclasses.dataclass(frozen=True, slots=True)
class Skip:
    """What to leave out in a block of rows.

    Attributes:
        extents: how many columns the statement at a position walks through.
        after: what to do after the statement at a position.
        buffers: those whose last axis are the columns.
        columns: how many there are.
    """

    extents: dict[int, Expr]
    after: dict[int, tuple[Stmt, ...]]
    buffers: frozenset[str]
    columns: int = 0


def find(body: Sequence[Stmt], products: Mapping[int, str], rows: int) -> Skip | None:
    """Find what to skip among the statements of a block, each a loop over its rows.

    ``products`` are the buffers that the statements at these positions fill by sums of products; a block has ``rows``.
    """
    for k, buffer in products.items():
        loop = body[k]
        assert isinstance(loop, For)
        column = loop.body[0]
        if isinstance(column, For) and column.static is not None and column.static > LIVE:
            for cond in _conditions(body[k + 1 :], buffer):
                first = _first(cond, loop.var, rows, column.static)
                made = _Search(body, products, cond, first, column.static).run(k, buffer) if first is not None else None
                if made is not None:
                    return made
    return None


def _guarded(expr: Expr, conds: tuple[Expr, ...] = ()) -> Iterator[tuple[Load, tuple[Expr, ...]]]:
    """Yield the Loads of an expression with the conditions under which they are evaluated."""
    if isinstance(expr, Load):
        yield expr, conds
    elif isinstance(expr, Op) and is_lazy(expr):
        yield from _guarded(expr.args[0], conds)
        yield from _guarded(expr.args[1], (*conds, *_parts(expr.args[0])))
        yield from _guarded(expr.args[2], conds)
    elif isinstance(expr, Op):
        for a in expr.args:
            yield from _guarded(a, conds)


def _parts(cond: Expr) -> Iterator[Expr]:
    if isinstance(cond, Op) and cond.op == "and":
        for a in cond.args:
            yield from _parts(a)
    else:
        yield cond


def _conditions(body: Sequence[Stmt], buffer: str) -> list[Expr]:
    """Return the conditions under which alone a buffer is read, in terms of the column."""
    common: list[Expr] | None = None
    for s in stmts(body):
        for root in exprs(s):
            for load, conds in _guarded(root) if buffer in reads(root) else ():
                if load.buffer == buffer:
                    if not isinstance(load.index[-1], Var):
                        return []
                    there = [normalize(substitute(c, {load.index[-1]: COLUMN})) for c in conds]
                    common = there if common is None else [c for c in common if c in there]
    return common or []


def _first(cond: Expr, row: Var, rows: int, n: int) -> Expr | None:
    """Return how many columns a block of rows needs under a condition that bounds them from above."""
    if not isinstance(cond, Op) or cond.op not in ("lt", "le", "gt", "ge") or cond.args[0].dtype != "i64":
        return None
    a, b = cond.args if cond.op in ("gt", "ge") else cond.args[::-1]
    room = poly(a - b if cond.op in ("ge", "le") else a - b - 1)  # of the columns up to the last one that is needed
    if room.pop((COLUMN,), 0) != -1 or any(not isinstance(e, Var) or e is COLUMN for m in room for e in m):
        return None
    grows = room.get((row,), 0)
    if any(row in m and m != (row,) for m in room):
        return None
    last = normalize(substitute(a - b, {row: i64(rows - 1 if grows > 0 else 0), COLUMN: i64(0)}))
    count = last + (1 if cond.op in ("ge", "le") else 0)
    whole = normalize(op("max", i64(LIVE), normalize(count + (LIVE - 1)))) // LIVE * LIVE
    return normalize(op("min", i64(n), whole))


class _Search:
    def __init__(self, body: Sequence[Stmt], products: Mapping[int, str], cond: Expr, first: Expr, n: int) -> None:
        self.body = body
        self.products = products
        self.cond = cond
        self.first = first
        self.n = n
        self.live: Expr = Load("live", (), "i64")
        self.zero: set[str] = set()
        self.weight: Expr | None = None

    def masked(self, expr: Expr, column: Var) -> Expr:
        """Return what ``expr`` is in a column that is not needed."""
        cond = normalize(substitute(self.cond, {COLUMN: column}))

        def change(e: Expr) -> Expr:
            chosen = isinstance(e, Op) and e.op == "select" and cond in _parts(e.args[0])
            return e.args[2] if chosen and isinstance(e, Op) else e

        return normalize(rebuild(expr, change, {}))

    def vanishes(self, e: Expr, column: Var) -> bool:
        """Whether an expression is zero where the weight is."""
        if e is self.weight:
            return True
        if isinstance(e, Load):
            return e.buffer in self.zero and e.index[-1] is column
        if isinstance(e, Const):
            return e.value == 0
        if not isinstance(e, Op):
            return False
        match e.op:
            case "mul":
                return any(self.vanishes(a, column) for a in e.args)
            case "div" | "neg" | "cast":
                return self.vanishes(e.args[0], column)
            case "add" | "sub":
                return all(self.vanishes(a, column) for a in e.args)
            case "select":
                return all(self.vanishes(a, column) for a in e.args[1:])
        return False

    def run(self, at: int, buffer: str) -> Skip | None:
        """Go through the statements after the product; None where one of them needs all columns."""
        extents: dict[int, Expr] = {at: self.first}
        after: dict[int, tuple[Stmt, ...]] = {}
        for k, stmt in enumerate(self.body):
            if k <= at or not isinstance(stmt, For):
                continue
            inside = [s for s in stmts(stmt.body) if isinstance(s, For)]
            stores = [s for s in stmts(stmt.body) if isinstance(s, Store)]
            read = frozenset().union(*(reads(r) for s in stmts(stmt.body) for r in exprs(s)))
            if not read & {buffer, *self.zero}:
                continue
            walked = [f for f in inside if f.static == self.n and self._walks(f, {buffer, *self.zero})]
            store = next((s for s in stores if s.op), stores[0]) if stores else None
            if len(walked) != 1 or store is None:
                return None
            column = walked[0].var
            made = self.masked(store.value, column)
            alone = column not in free_vars(made) and buffer not in reads(made)
            if store.op in ("max", "min") and alone and len(stores) == 1:
                extents[k] = self.first
                again = For(stmt.var, stmt.extent, "serial", (dataclasses.replace(store, value=made),))
                after[k] = (If(normalize(self.first < self.n), (again,)),)
                continue
            if store.op == "add" and alone and self.weight is None and not stores[1:]:
                self.weight = made
                after[k - 1] = (*after.get(k - 1, ()), *self._check(stmt))
            if self.weight is None or not self.vanishes(made, column):
                return None
            if not store.op:
                if store.index[-1] is not column:
                    return None
                self.zero.add(store.buffer)
            extents[k] = self.live
        if self.weight is None:
            return None
        known = next(k for k, added in after.items() if any(isinstance(s, Alloc) for s in added))
        found = {buffer, *self.zero}
        for k, other in self.products.items():
            if k > known and k not in extents and self._unread(k, other, extents):
                extents[k] = self.live
                found.add(other)
        return Skip(extents, after, frozenset(found), self.n)

    def _unread(self, k: int, buffer: str, extents: Container[int]) -> bool:
        """Whether what a product makes in columns left out is read by none but statements that leave them out, too."""
        loop = self.body[k]
        assert isinstance(loop, For)
        column = loop.body[0]
        readers = [
            j for j, s in enumerate(self.body)
            if j != k and any(buffer in reads(r) for t in stmts((s,)) for r in exprs(t))
        ]  # fmt: skip
        inside = [f for j in readers for f in stmts((self.body[j],)) if isinstance(f, For) and f.static == self.n]
        whole = isinstance(column, For) and column.static == self.n
        return whole and all(j in extents for j in readers) and all(self._walks(f, {buffer}) for f in inside)

    def _walks(self, loop: For, buffers: set[str]) -> bool:
        loads = [e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if isinstance(e, Load)]
        return any(e.buffer in buffers and e.index[-1] is loop.var for e in loads)

    def _check(self, rows: For) -> tuple[Stmt, ...]:
        """Set how many columns are walked through: all of them, unless the weight of those left out is zero."""
        assert self.weight is not None
        needed = select(self.weight.eq(0), self.first, i64(self.n))
        seen = For(rows.var, rows.extent, "serial", (Store("live", (), needed, "max"),))
        return (
            Alloc("live", "i64", (), "register"),
            Store("live", (), self.first),
            If(normalize(self.first < self.n), (seen,)),
        )


def shorten(body: Sequence[Stmt], live: Expr, buffers: frozenset[str], n: int) -> tuple[Stmt, ...]:
    """Let the loops over columns end after ``live`` of them; they are those that index ``buffers`` along the last axis,
    and buffers of ``n`` elements that the statements allocate.
    """
    own = {s.buffer for s in stmts(body) if isinstance(s, Alloc) and s.shape and s.shape[-1] is i64(n)} | buffers

    def visit(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, If):
                s = dataclasses.replace(s, body=visit(s.body))
            elif isinstance(s, For):
                extent = s.extent
                if s.kind in ("serial", "parallel", "grid"):
                    zeros: dict[Expr, Expr] = {t.var: i64(0) for t in stmts((s,)) if isinstance(t, For)}
                    for index in _columns(s.body, own):
                        step = affine(index, s.var)
                        if step:
                            begin = normalize(substitute(index, zeros))
                            rest = live - begin + (step - 1)
                            extent = op("min", s.extent, rest // step if step > 1 else rest)
                            break
                s = dataclasses.replace(s, extent=normalize(extent), body=visit(s.body))
            out.append(s)
        return tuple(out)

    return visit(body)


def _columns(body: Sequence[Stmt], buffers: set[str] | frozenset[str]) -> Iterator[Expr]:
    for s in stmts(body):
        if isinstance(s, Store) and s.buffer in buffers:
            yield s.index[-1]
        for r in exprs(s):
            for e in walk(r):
                if isinstance(e, Load) and e.buffer in buffers:
                    yield e.index[-1]
