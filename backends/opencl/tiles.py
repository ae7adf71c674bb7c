"""Stores of lanes that lie a few elements apart, or across memory, as OpenCL C: in whole vectors, shuffled."""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge.backends.opencl.lib import WIDTHS, Functions, ctype, literal
from kernelforge.backends.opencl.operations import Code
from kernelforge.backends.opencl.stores import Stores
from kernelforge.ir import interleaved
from kernelforge.ir.cost import Streamed
from kernelforge.ir.interleaved import Tile
from kernelforge.ir.kernel import Expr, For, Stmt, Store, Var, i64, substitute


class Tiles(Stores):
    """Prints tiles of stores."""

    def __init__(self, functions: Functions, streamed: Streamed) -> None:
        super().__init__(functions, streamed)
        self.waiting: dict[Store, Code] = {}

    def turns(self, body: Sequence[Stmt]) -> dict[Store, list[Store]]:
        """Find the stores of lanes that fill memory together."""
        scope = self.scope
        if scope.var is None or scope.lane is not None or scope.guard is not None:
            return {}

        def flat(store: Store) -> Expr | None:
            index = scope.buffers[store.buffer].flat(store.index)
            return None if store.value.dtype == "bool" or scope.step(index) is None else scope.resolved(index)

        return interleaved.turns(body, scope.var, flat)

    def tile(self, loop: For) -> bool:
        """Store what a vector loop in the unrolled ``loop`` makes, transposed: in whole vectors and no lane by itself.

        Returns False, with nothing printed, where memory does not run along ``loop``.
        """
        scope = self.scope
        parts = interleaved.apart(loop)
        known = {
            n: tuple(s for s in b.strides if isinstance(s, int)) for n, b in scope.buffers.items() if not b.dropped
        }
        strides = {name: each for name, each in known.items() if len(each) == len(scope.buffers[name].strides)}
        tiles = [tile for part in parts if (tile := interleaved.tile(part, strides)) is not None]
        plain = all(t.where is None and t.inner.static in WIDTHS and t.store.value.dtype != "bool" for t in tiles)
        if scope.var is not None or scope.lane is not None or len(tiles) != len(parts) or not plain:
            return False
        for tile in tiles:
            with self.block():
                self._tile(tile)
        return True

    def _tile(self, found: Tile) -> None:
        scope, count, lanes = self.scope, found.outer.static or 0, found.inner.static or 0
        self.begin_lanes(found.inner.var, lanes)
        rows = []
        for k in range(count):
            scope.names[found.outer.var.name] = Code(literal(k, "i64"), "i64")
            scope.counters.add(found.outer.var.name)
            row = Code(f"kf_row{k}", found.store.value.dtype, lanes)
            self.emit(f"{ctype(row.dtype, lanes)} {row.text};")
            with self.block():
                for stmt in found.lets:
                    self.statement(stmt)
                scope.begin([found.store.value])
                self.emit(f"{row.text} = {scope.splat(scope.value(found.store.value)).text};")
            rows.append(row)
        index = [substitute(i, {found.outer.var: i64(0)}) for i in found.index]
        flat = scope.buffers[found.store.buffer].flat(index)
        self.write(rows, found.store.buffer, flat, lanes if found.step == count else found.step)
        self.end_lanes()

    def begin_lanes(self, var: Var, lanes: int) -> None:
        """Print vectors of what depends on the variable of a vector loop."""
        scope = self.scope
        scope.var, scope.lanes, scope.vectors, scope.indices = var, lanes, {var.name}, {}
        numbers = ", ".join(map(str, range(lanes)))
        scope.names[var.name] = Code(f"((long{lanes})({numbers}))", "i64", lanes)
        scope.counters.add(var.name)

    def end_lanes(self) -> None:
        scope = self.scope
        scope.var, scope.lanes, scope.vectors, scope.indices = None, 1, set(), {}

    def statement(self, stmt: Stmt) -> None:
        """Print a statement."""
        raise NotImplementedError

    def take_turn(self, store: Store, group: Sequence[Store]) -> None:
        """Keep what a store of a group makes, and store all of it in whole vectors when it is complete."""
        self.scope.begin([store.value])
        self.waiting[store] = self.row(store)
        if all(s in self.waiting for s in group):
            flat = self.scope.buffers[store.buffer].flat(group[0].index)
            align = self.past_cache(group[0], flat)
            self.write([self.waiting.pop(s) for s in group], store.buffer, flat, self.scope.lanes, align)

    def row(self, store: Store) -> Code:
        """Name the vector that a store would store."""
        return self.scope.temporary(self.scope.splat(self.scope.value(store.value)))

    def write(self, rows: Sequence[Code], buffer: str, flat: Expr, step: int, align: int = 0) -> None:
        """Store the lanes of all rows in turn, ``step`` elements from vector to vector.

        Args:
            flat: where lane 0 of the first row goes.
            align: of each vector in bytes, to store it past the cache; 0 to store it through it.
        """
        scope = self.scope
        kind, place = scope.functions.vector(rows[0].dtype, scope.lanes, align), scope.buffers[buffer]
        scope.begin([flat])
        at = scope.temporary(Code(scope.first(flat), "i64"))
        for k, row in enumerate(interleaved.transposed(rows, scope.lanes, scope.picked)):
            there = f"({place.space}{kind}*)({place.name} + {at.text} + {k * step})"
            self.emit(f"kf_stream({row.text}, {there});" if align else f"*{there} = {row.text};")
