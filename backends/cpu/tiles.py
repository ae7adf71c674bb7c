"""Tiles that are transposed in registers on their way to memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.stores import Stores
from kernelforge.backends.cpu.values import MEMORY, Scope, ScopeKind, Val
from kernelforge.dtypes import DTYPES
from kernelforge.ir.cost import Streamed
from kernelforge.ir.index import affine, free_vars, poly, reads
from kernelforge.ir.kernel import Expr, For, If, Let, Stmt, Store, Var, exprs, i64, substitute
from kernelforge.ir.schedule.limits import NEAR


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """A vector loop in an unrolled loop, whose stores run along the unrolled one.

    Attributes:
        lets: what the unrolled loop names before the vector loop, and that before its store.
        index: where the store goes, in terms of the loops alone.
        step: elements from one lane to the next.
        where: which lanes are stored; None for all.
    """

    outer: For
    inner: For
    lets: tuple[Let, ...]
    store: Store
    index: tuple[Expr, ...]
    step: int
    where: Expr | None


class Tiles(Stores):
    """Emits tiles of stores."""

    def __init__(self, kernel: str, host: Host, declared: dict[str, str], streamed: Streamed) -> None:
        super().__init__(kernel, host, declared, streamed)
        self.waiting: dict[Store, Val] = {}

    def turns(self, body: Sequence[Stmt]) -> dict[Store, list[Store]]:
        """Find the stores of lanes that fill memory together, as each stores one element of so many in turn."""
        found: dict[Store, list[Store]] = {}
        stores = [s for s in body if isinstance(s, Store)]
        if self.lane is None or self.lanes & (self.lanes - 1) or len(set(stores)) < len(stores):
            return found
        groups: dict[tuple[str, int, frozenset[object]], dict[int, Store]] = {}
        for stmt in body:
            simple = isinstance(stmt, Let) or (isinstance(stmt, Store) and not stmt.op)
            for key in list(groups):
                if not simple or any(key[0] in reads(e) for e in exprs(stmt)):
                    del groups[key]
            buffer = self.buffers.get(stmt.buffer) if isinstance(stmt, Store) else None
            if not isinstance(stmt, Store) or stmt.op or buffer is None or buffer.strides != (1,):
                continue
            terms = poly(stmt.index[0])
            step = terms.get((self.lane,), 0)
            at = terms.pop((), 0)
            mine = stmt.buffer, step, frozenset(terms.items())
            for key in [k for k in groups if k[0] == stmt.buffer and (k != mine or at in groups[k])]:
                del groups[key]
            group = groups.setdefault(mine, {})
            group[at] = stmt
            if 1 < step <= NEAR and len(group) == step == max(group) - min(group) + 1:
                ordered = [group[k] for k in sorted(group)]
                found |= dict.fromkeys(ordered, ordered)
                del groups[mine]
        return found

    @contextlib.contextmanager
    def scope(self, fixed: set[str] | None, kind: ScopeKind = "") -> Iterator[Scope]:
        """Collect instructions in a scope of their own; the caller places its lines."""
        env = dict(self.env)
        buffers = dict(self.buffers)
        scope = Scope(fixed, kind)
        self.scopes.append(scope)
        depth = len(self.scopes)
        try:
            yield scope
        finally:
            del self.scopes[depth - 1 :]
            self.env, self.buffers = env, buffers

    def let(self, stmt: Let) -> None:
        if stmt.name in self.env:
            self.scopes[-1].memo.clear()
        v = self.emit(stmt.value)
        self.env[stmt.name] = v._replace(bind=len(self.scopes) - 1, reads=frozenset())

    def tile(self, loop: For) -> bool:
        """Store what a vector loop in the unrolled ``loop`` makes, transposed: in whole vectors and no lane by itself.

        Returns False, with nothing emitted, where memory does not run along ``loop``.
        """
        if self.lane is not None or self.mask is not None:
            return False
        strides = {name: b.strides for name, b in self.buffers.items()}
        tiles = [tile for part in _apart(loop) if (tile := _tile(part, strides)) is not None]
        if len(tiles) != len(_apart(loop)):
            return False
        for tile in tiles:
            self._tile(tile)
        return True

    def _tile(self, found: Tile) -> None:
        count, lanes = found.outer.static or 0, found.inner.static or 0
        first: dict[Expr, Expr] = {found.outer.var: i64(0), found.inner.var: i64(0)}
        pointer, _ = self.address(found.store.buffer, tuple(substitute(i, first) for i in found.index))
        rows = []
        each = "<" + ", ".join(f"i64 {k}" for k in range(lanes)) + ">"
        outside = len(self.scopes) - 1
        self.lane, self.lanes = found.inner.var, lanes
        if found.where is not None:
            with self.scope(set()) as scope:
                self.env[found.inner.var.name] = Val(each, "i64", lanes, bind=outside + 1)
                mask = self.splat(self.emit(found.where), lanes)
            self.put_all(scope)
            self.mask, self.live = mask._replace(level=outside, bind=outside), False
        for k in range(count):
            with self.scope(set()) as scope:
                self.env[found.outer.var.name] = Val(str(k), "i64", bind=outside + 1)
                self.env[found.inner.var.name] = Val(each, "i64", lanes, bind=outside + 1)
                for stmt in found.lets:
                    self.let(stmt)
                rows.append(self.memory(self.splat(self.emit(found.store.value), lanes)))
            self.put_all(scope)
        on = self.mask
        rows = self.transpose([v._replace(level=outside, bind=outside) for v in rows])
        scalar, align = MEMORY[found.store.value.dtype], DTYPES[found.store.value.dtype].itemsize
        for k, v in enumerate(rows):
            at = self.const(k * lanes if found.step == count else k * found.step, "i64")
            there = self.ins(f"getelementptr {scalar}, ptr {pointer.ref}, i64 {at.ref}", "ptr", 0, pointer)
            if on is None:
                self.put(f"store {v.type} {v.ref}, ptr {there.ref}, align {align}")
            else:
                self.mask = self.picked([on], [(0, (k * lanes + e) // count) for e in range(lanes)])
                self.write(self.buffers[found.store.buffer], found.store.buffer, there, 1, v)
        self.lane, self.lanes, self.mask, self.live = None, 0, None, True
        self.forget(found.store.buffer)

    def take_turn(self, store: Store, group: Sequence[Store]) -> None:
        """Keep what a store of a group makes, and store all of it in whole vectors when it is complete."""
        self.waiting[store] = self.splat(self.emit(store.value), self.lanes)
        if not all(s in self.waiting for s in group):
            return
        rows = self.transpose([self.waiting.pop(s) for s in group])
        buffer, scalar, unit = (
            self.buffers[store.buffer],
            MEMORY[store.value.dtype],
            64 // DTYPES[store.value.dtype].itemsize,
        )
        pointer, _ = self.address(store.buffer, group[0].index)
        on, lanes, count = self.mask, self.lanes, len(group)
        whole = on is None and all(c % unit == 0 for m, c in poly(group[0].index[0]).items() if m != (self.lane,))
        past = store.buffer in self.streamed and whole and lanes % unit == 0
        for k, v in enumerate(rows):
            if on is not None:
                self.mask = self.picked([on], [(0, (k * lanes + e) // count) for e in range(lanes)])
            self.write(buffer, store.buffer, self.ahead(pointer, k * lanes, scalar), 1, v, stream=past)
        self.mask = on
        self.forget(store.buffer)

    def transpose(self, rows: list[Val]) -> list[Val]:
        """Return the elements of ``rows`` in the order of their lanes, as many vectors of as many lanes."""
        count, lanes = len(rows), rows[0].lanes
        if count & (count - 1):
            places = [(e % count, e // count) for e in range(count * lanes)]
            return [self.picked(rows, places[k * lanes : (k + 1) * lanes]) for k in range(count)]
        for _ in range(count.bit_length() - 1):  # interleaving the halves moves the first bit of a position to its end
            pairs = [(rows[k // 2], rows[(k + count) // 2]) for k in range(count)]
            rows = [
                self.picked(pair, [(e % 2, (k % 2 * lanes + e) // 2) for e in range(lanes)])
                for k, pair in enumerate(pairs)
            ]
        return rows


def _apart(outer: For) -> list[For]:
    """Return a loop for each store of the vector loop at the end of an unrolled one, where they are independent."""
    inner = outer.body[-1] if outer.body else None
    if not isinstance(inner, For):
        return [outer]
    stores = [s for s in inner.body if isinstance(s, Store)]
    lets = tuple(s for s in inner.body if isinstance(s, Let))
    written = {s.buffer for s in stores}
    others = len(stores) + len(lets) < len(inner.body) or len(written) < len(stores)
    if others or any(reads(e) & written for s in inner.body for e in exprs(s)):
        return [outer]
    parts = [dataclasses.replace(inner, body=(*lets, s)) for s in stores]
    return [dataclasses.replace(outer, body=(*outer.body[:-1], p)) for p in parts]


def _tile(outer: For, strides: dict[str, tuple[int, ...]]) -> Tile | None:
    """Find a vector loop in an unrolled loop along which the elements that they store lie side by side.

    The rows of the tile have to be whole vectors or to lie densely.
    """
    lets: list[Let] = []
    named: dict[Expr, Expr] = {}

    def last(body: Sequence[Stmt]) -> Stmt | None:
        for stmt in body[:-1]:
            if not isinstance(stmt, Let):
                return None
            lets.append(stmt)
            value = substitute(stmt.value, named)
            named[Var(stmt.name, value.dtype)] = value
        return body[-1] if body else None

    inner = last(outer.body)
    if not isinstance(inner, For) or inner.kind != "vector":
        return None
    store, where = last(inner.body), None
    if isinstance(store, If) and len(store.body) == 1:
        where, store = substitute(store.cond, named), store.body[0]
        if outer.var in free_vars(where) or (isinstance(store, Store) and store.value.dtype == "bool"):
            return None
    count, lanes = outer.static or 0, inner.static or 0
    if not isinstance(store, Store) or store.op or not 1 < count <= lanes <= 16 or lanes & (lanes - 1):
        return None
    index = tuple(substitute(i, named) for i in store.index)
    steps = []
    for var in (outer.var, inner.var):
        step = 0
        for i, stride in zip(index, strides.get(store.buffer, ()), strict=True):
            c = affine(i, var)
            if c is None:
                return None
            step += c * stride
        steps.append(step)
    if steps[0] != 1 or not (steps[1] == count or (count == lanes and steps[1] > count)):
        return None
    return Tile(outer, inner, tuple(lets), store, index, steps[1], where)
