"""Tiles that are transposed in registers on their way to memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.stores import Stores
from kernelforge.backends.cpu.values import MEMORY, Scope, ScopeKind, Val
from kernelforge.dtypes import DTYPES
from kernelforge.ir import interleaved
from kernelforge.ir.cost import Streamed
from kernelforge.ir.index import poly
from kernelforge.ir.interleaved import Tile
from kernelforge.ir.kernel import Expr, For, Let, Stmt, Store, i64, substitute


class Tiles(Stores):
    """Emits tiles of stores."""

    def __init__(self, kernel: str, host: Host, declared: dict[str, str], streamed: Streamed) -> None:
        super().__init__(kernel, host, declared, streamed)
        self.waiting: dict[Store, Val] = {}

    def turns(self, body: Sequence[Stmt]) -> dict[Store, list[Store]]:
        """Find the stores of lanes that fill memory together."""
        if self.lane is None or self.lanes & (self.lanes - 1):
            return {}

        def flat(store: Store) -> Expr | None:
            buffer = self.buffers.get(store.buffer)
            return store.index[0] if buffer is not None and buffer.strides == (1,) else None

        return interleaved.turns(body, self.lane, flat)

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
        parts = interleaved.apart(loop)
        tiles = [tile for part in parts if (tile := interleaved.tile(part, strides)) is not None]
        if len(tiles) != len(parts):
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
        rows = interleaved.transposed([v._replace(level=outside, bind=outside) for v in rows], lanes, self.picked)
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
        rows = interleaved.transposed([self.waiting.pop(s) for s in group], self.lanes, self.picked)
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
