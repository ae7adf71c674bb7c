"""Columns that no row of a tile needs, as those a causal mask hides: they are neither computed nor read.

A product is skipped where every reader chooses something else in its place, by a condition that bounds the column from
above. What readers make there depends on the row alone. Its maximum is taken once; and where it comes out as zero for
all rows of a block, as the exponential of a masked score does, so is what is made of it by products, and sums over it
need not walk there. Rows for which it does not, as those with every column masked, are seen while they are computed,
and their block walks through all columns. A weight of exactly zero thus hides an infinity in what it weighs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from kernelforge.ir.index import affine, conjuncts, free_vars, is_lazy, normalize, poly, reads
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Let,
    Load,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    op,
    rebuild,
    select,
    stmts,
    substitute,
    walk,
)  # fmt: skip

LIVE = 64
"""Columns are computed in multiples of so many: whole register tiles, and what the passes over a row take at a time."""

LANES = 16
"""Rows whose weights are seen at a time."""

COLUMN = Var("column", "i64", 1 << 40)


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """How many columns a row of a block needs.

    Attributes:
        row: the loop over the rows of a block.
        count: the columns that it needs, which may be none or more than there are.
        grows: by how many columns for each row.
        columns: how many there are.
    """

    row: Var
    count: Expr
    grows: int
    columns: int

    def upto(self, first: Expr, last: Expr, unit: int) -> Expr:
        """Return how many columns the rows from ``first`` to ``last`` need, in multiples of ``unit``."""
        edge = normalize(substitute(self.count, {self.row: last if self.grows > 0 else first}))
        whole = normalize(edge + (unit - 1)) // unit * unit if unit > 1 else edge
        return normalize(op("min", i64(self.columns), op("max", i64(0), whole)))

    def since(self, column: Expr) -> Expr:
        """Return the first row that needs a column, where later rows need more."""
        begin = normalize(substitute(self.count, {self.row: i64(0)}))
        return normalize(op("max", i64(0), normalize(column - begin) // self.grows + 1))


@dataclasses.dataclass(frozen=True, slots=True)
class Skip:
    """What to leave out in a block of rows.

    Attributes:
        bound: how many columns a row needs.
        masked: the statements that leave the other ones out whatever their weights are.
        zero: those that leave them out where their weights are zero, as the register ``live`` says.
        after: what to do after the statement at a position.
        buffers: those whose last axis are the columns.
    """

    bound: Bound
    masked: frozenset[int]
    zero: frozenset[int]
    after: dict[int, tuple[Stmt, ...]]
    buffers: frozenset[str]


def find(body: Sequence[Stmt], products: Mapping[int, str]) -> Skip | None:
    """Find what to skip among the statements of a block, each a loop over its rows.

    ``products`` are the buffers that the statements at these positions fill by sums of products.
    """
    for k, buffer in products.items():
        loop = body[k]
        assert isinstance(loop, For)
        column = loop.body[0]
        if isinstance(column, For) and column.static is not None and column.static > LIVE:
            for cond in _conditions(body[k + 1 :], buffer):
                bound = _bound(cond, loop.var, column.static)
                made = _Search(body, products, cond, bound).run(k, buffer) if bound is not None else None
                if made is not None:
                    return made
    return None


def _guarded(
    expr: Expr, buffer: str, conds: tuple[Expr, ...] = (), seen: set[tuple[Expr, tuple[Expr, ...]]] | None = None
) -> Iterator[tuple[Load, tuple[Expr, ...]]]:
    """Yield the Loads of ``buffer`` in an expression with the conditions under which they are evaluated, each once."""
    seen = set() if seen is None else seen
    if buffer not in reads(expr) or (expr, conds) in seen:
        return  # random bits are deep, and share what they are made of
    seen.add((expr, conds))
    if isinstance(expr, Load):
        yield expr, conds
    elif isinstance(expr, Op) and is_lazy(expr):
        yield from _guarded(expr.args[0], buffer, conds, seen)
        yield from _guarded(expr.args[1], buffer, (*conds, *conjuncts(expr.args[0])), seen)
        yield from _guarded(expr.args[2], buffer, conds, seen)
    elif isinstance(expr, Op):
        for a in expr.args:
            yield from _guarded(a, buffer, conds, seen)


def _conditions(body: Sequence[Stmt], buffer: str) -> list[Expr]:
    """Return the conditions under which alone a buffer is read, in terms of the column."""
    common: list[Expr] | None = None
    for s in stmts(body):
        for root in exprs(s):
            for load, conds in _guarded(root, buffer):
                if load.buffer == buffer:
                    if not isinstance(load.index[-1], Var):
                        return []
                    there = [normalize(substitute(c, {load.index[-1]: COLUMN})) for c in conds]
                    common = there if common is None else [c for c in common if c in there]
    return common or []


def _bound(cond: Expr, row: Var, n: int) -> Bound | None:
    """Return how many columns a row needs under a condition that bounds them from above."""
    if not isinstance(cond, Op) or cond.op not in ("lt", "le", "gt", "ge") or cond.args[0].dtype != "i64":
        return None
    a, b = cond.args if cond.op in ("gt", "ge") else cond.args[::-1]
    room = poly(a - b if cond.op in ("ge", "le") else a - b - 1)  # of the columns up to the last one that is needed
    if room.pop((COLUMN,), 0) != -1 or any(not isinstance(e, Var) or e is COLUMN for m in room for e in m):
        return None
    if any(row in m and m != (row,) for m in room):
        return None
    count = normalize(substitute(a - b, {COLUMN: i64(0)})) + (1 if cond.op in ("ge", "le") else 0)
    return Bound(row, normalize(count), room.get((row,), 0), n)


class _Search:
    def __init__(self, body: Sequence[Stmt], products: Mapping[int, str], cond: Expr, bound: Bound) -> None:
        self.body = body
        self.products = products
        self.cond = cond
        self.bound = bound
        self.n = bound.columns
        self.zero: set[str] = set()
        self.weight: Expr | None = None

    def masked(self, expr: Expr, column: Var) -> Expr:
        """Return what ``expr`` is in a column that is not needed."""
        cond = normalize(substitute(self.cond, {COLUMN: column}))

        def change(e: Expr) -> Expr:
            chosen = isinstance(e, Op) and e.op == "select" and cond in conjuncts(e.args[0])
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
        masked, zero = {at}, set[int]()
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
                masked.add(k)
                again = If(normalize(self.bound.count < self.n), (dataclasses.replace(store, value=made),))
                after[k] = (For(stmt.var, stmt.extent, "serial", (again,)),)
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
            zero.add(k)
        if self.weight is None:
            return None
        known = next(k for k, added in after.items() if any(isinstance(s, Alloc) for s in added))
        found = {buffer, *self.zero}
        for k, other in self.products.items():
            if k > known and k not in zero and self._unread(k, other, masked | zero):
                zero.add(k)
                found.add(other)
        return Skip(self.bound, frozenset(masked), frozenset(zero), after, frozenset(found))

    def _unread(self, k: int, buffer: str, shorter: Container[int]) -> bool:
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
        return whole and all(j in shorter for j in readers) and all(self._walks(f, {buffer}) for f in inside)

    def _walks(self, loop: For, buffers: set[str]) -> bool:
        loads = [e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if isinstance(e, Load)]
        return any(e.buffer in buffers and e.index[-1] is loop.var for e in loads)

    def _check(self, rows: For) -> tuple[Stmt, ...]:
        """Set how many columns all rows walk through: none, unless the weight of those left out is not zero in a row,
        or a row needs none at all. Rows are seen in lanes.
        """
        assert self.weight is not None
        chunk, lane = Var("seen", "i64"), Var("seenv", "i64", LANES)
        row = chunk * LANES + lane
        there: dict[Expr, Expr] = {rows.var: row}
        count = substitute(self.bound.count, there)
        hidden = op("or", count >= self.n, op("and", count > 0, substitute(self.weight, there).eq(0)))
        needed = select(row < rows.extent, select(hidden, i64(0), i64(self.n)), i64(0))
        seen = For(lane, i64(LANES), "vector", (Store("live", (), normalize(needed), "max"),))
        return (
            Alloc("live", "i64", (), "register"),
            Store("live", (), i64(0)),
            For(chunk, normalize((rows.extent + (LANES - 1)) // LANES), "serial", (seen,)),
        )


class _Rows(NamedTuple):
    """Rows that share their columns: the first of them, how many, and in what multiples they need columns."""

    first: Expr
    size: int
    unit: int


def shorten(body: Sequence[Stmt], skip: Skip, k: int, tile: int, rows: int) -> tuple[Stmt, ...]:
    """Let the statement at ``k``, scheduled as ``body`` for blocks of ``rows``, leave out columns.

    Loops over columns are those that index ``skip.buffers`` along the last axis, and buffers of as many elements that
    the statements allocate. Those inside of a loop over rows, or over tiles of rows, whose name is the row's with an
    ``o`` appended, end where no row of a ``tile`` needs more. Those around such a loop end where no row of the block
    does, and the rows inside begin with the first one that needs the column, or its whole register tile.
    """
    bound, live = skip.bound, Load("live", (), "i64")
    n = i64(bound.columns)
    own = {s.buffer for s in stmts(body) if isinstance(s, Alloc) and s.shape and s.shape[-1] is n} | skip.buffers
    block = _Rows(i64(0), rows, LIVE)
    row = bound.row.name

    def needed(part: _Rows) -> Expr:
        made = bound.upto(part.first, part.first + (part.size - 1), part.unit)
        return op("max", live, made) if k in skip.zero else made

    def of(loop: For) -> _Rows | None:
        """Return the rows that an iteration shares its columns with, if the loop is one over rows or tiles of them."""
        if bound.grows > 0 and loop.var.name == f"{row}o":
            return _Rows(loop.var * tile, tile, 1)
        return _Rows(loop.var // tile * tile, tile, LIVE) if bound.grows > 0 and loop.var.name == row else None

    def visit(body: Sequence[Stmt], part: _Rows, column: Expr | None) -> tuple[Stmt, ...]:
        return tuple(t for s in body for t in shorter(s, part, column))

    def shorter(stmt: Stmt, part: _Rows, column: Expr | None) -> tuple[Stmt, ...]:
        if isinstance(stmt, If):
            return (dataclasses.replace(stmt, body=visit(stmt.body, part, column)),)
        if not isinstance(stmt, For):
            return (stmt,)
        mine = of(stmt)
        if mine is None:
            found = _column(stmt, own)
            if found is not None:
                start, step = found
                rest = needed(part) - start + (step - 1)
                extent = normalize(op("min", stmt.extent, rest // step if step > 1 else rest))
                stmt = dataclasses.replace(stmt, extent=extent)
                column = start + stmt.var * step if part is block else None
            return (dataclasses.replace(stmt, body=visit(stmt.body, part, column)),)
        if column is not None and stmt.var.name == row:
            begin = bound.since(column)
            return _since(stmt, f"{row}s{k}", select(live.eq(0), begin, i64(0)) if k in skip.zero else begin)
        inner = visit(stmt.body, mine, None)
        if column is not None:
            inner = (If(normalize(column < needed(mine._replace(unit=LIVE))), inner),)
        return (dataclasses.replace(stmt, body=inner),)

    return visit(body, block, None)


def _since(loop: For, name: str, begin: Expr) -> tuple[Stmt, ...]:
    """Let a loop over rows begin with the row ``begin``, called ``name``."""
    memo: dict[Expr, Expr] = {}
    first = Var(name, "i64")
    later: dict[Expr, Expr] = {loop.var: loop.var + first}
    body = tuple(map_exprs(s, lambda e: normalize(substitute(e, later, memo))) for s in loop.body)
    return Let(name, begin), dataclasses.replace(loop, extent=normalize(loop.extent - first), body=body)


def _column(loop: For, buffers: Container[str]) -> tuple[Expr, int] | None:
    """Return the first column that a loop walks through, and its step, if it walks through columns."""
    if loop.kind not in ("serial", "parallel", "grid"):
        return None
    zeros: dict[Expr, Expr] = {t.var: i64(0) for t in stmts((loop,)) if isinstance(t, For)}
    for index in _columns(loop.body, buffers):
        step = affine(index, loop.var)
        if step:
            return normalize(substitute(index, zeros)), step
    return None


def _columns(body: Sequence[Stmt], buffers: Container[str]) -> Iterator[Expr]:
    for s in stmts(body):
        if isinstance(s, Store) and s.buffer in buffers:
            yield s.index[-1]
        for r in exprs(s):
            for e in walk(r):
                if isinstance(e, Load) and e.buffer in buffers:
                    yield e.index[-1]
