"""Chains: contractions and reductions that read each other row by row, as attention and small networks do.

A chain has row axes, which all that it makes shares. A row's results stand in buffers of the row, so that nothing of
the size of rows times columns is in memory; what a contraction reads is computed once into one, too. Which axes are
the rows is decided by the first node that reduces what another one made: it keeps the rows and drops the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from kernelforge.dtypes import accumulator
from kernelforge.ir import walks
from kernelforge.ir.axes import carried, dropped
from kernelforge.ir.demand import REDUCTIONS, Lowering, Part, Refused, identity
from kernelforge.ir.graph import Kind, Node, Value
from kernelforge.ir.index import flatten, normalize
from kernelforge.ir.kernel import Alloc, Expr, For, Load, Stmt, Store, Var, i64, map_exprs, op, substitute
from kernelforge.ir.nest import axes, nest, variables
from kernelforge.ir.types import row_major

WEIGHTS = 1 << 20
"""Bytes of a contraction's other operand that each block of rows walks through again: as much as a cache holds."""

ALL_WEIGHTS = 3 << 18
"""Bytes of all such operands together, on a CPU: the rows' own buffers have the rest of a core's cache."""

MUCH = 32
"""Values of so many times the size are not stored for an operand that no cache holds: a product of its own is faster,
as it packs the operand once for many rows, until the memory matters."""

MORE = 4
"""The same for all operands together, which a farther cache holds."""

ROW_BYTES = 1 << 20
"""Bytes that the buffers of a row take at most."""

WORKERS = 16
SHORT_BLOCK = 64
"""Sums over rows are made by so many blocks of rows, each with partial results, but of no fewer rows than these."""

WIDE_SUM = 128
"""Elements that a row adds to in a sum over rows, for each one of the row: with more, partial results that no cache
holds cost more than storing the row does. The gradients of attention's keys and values have as many as a head is wide.
"""

STORED = 1 << 18
"""Bytes of rows that caches hold beside all else: they are stored where they are summed over, in a faster product."""

FEW_ROWS = 4
"""Fewer rows that share the other operand of a contraction are not worth a tile."""


class Axes:
    """Which axes of the values that depend on reductions of a part are one and the same: they have one number."""

    def __init__(self, part: Part) -> None:
        self.one: list[int] = []  # a number that is the same axis, for each number
        self.known: dict[Value, list[int]] = {}
        self.dependent: set[Value] = set()
        for node in part.nodes:
            given = [v for v in node.inputs if v in self.dependent]
            if given or node.prim.kind in REDUCTIONS:
                self.dependent.update(node.outputs)
                mine: dict[int, int] = {}
                for v in given:
                    of = self._numbers(v)
                    for a, b in carried(node, v):
                        if mine.setdefault(b, of[a]) != of[a]:
                            self.one[self._same(of[a])] = self._same(mine[b])
                self.known[node.output] = [mine[b] if b in mine else self._new() for b in range(node.output.type.ndim)]

    def _new(self) -> int:
        self.one.append(len(self.one))
        return len(self.one) - 1

    def _same(self, number: int) -> int:
        while (up := self.one[number]) != number:
            number = up
        return number

    def _numbers(self, value: Value) -> list[int]:
        found = self.known.get(value)
        if found is None:
            found = self.known[value] = [self._new() for _ in value.type.shape]
        return found

    def name(self, value: Value, axis: int) -> int:
        """Return the number of an axis."""
        return self._same(self._numbers(value)[axis])

    def names(self, value: Value) -> list[int]:
        return [self._same(n) for n in self._numbers(value)]


class Chain:
    """Lowers a part whose reductions read each other row by row."""

    def __init__(self, low: Lowering, reductions: Sequence[Node], names: Mapping[Value, str]) -> None:
        self.low = low
        self.names = names
        self.reductions = reductions
        self.axes = Axes(low.part)
        self.rows = self._rows()
        self.body: list[Stmt] = []
        self.bytes = 0
        self.walked: dict[Value, int] = {}  # bytes of what all rows of a contraction share
        self.across: dict[Node, Value] = {}  # what contractions over rows make
        self.sums: dict[Value, str] = {}
        self.summed: tuple[Expr, ...] = ()
        self.worker = Var(f"{low.prefix}w", "i64", 1)

    def _rows(self) -> dict[int, Expr]:
        """Return the loop over each row axis."""
        for node in self.reductions:
            for v in node.inputs:
                if v in self.axes.dependent:
                    drop = dropped(node, v)
                    kept = [a for a in range(v.type.ndim) if a not in drop]
                    if node.prim.kind is Kind.REDUCE and kept and max(kept) > min(drop, default=v.type.ndim):
                        raise Refused("the reduction does not walk along the rows")
                    if math.prod(v.type.shape[a] for a in kept) < FEW_ROWS:
                        raise Refused("it has too few rows")
                    apart = self._apart({self.axes.name(v, a) for a in kept})
                    kept.sort(key=lambda a: self.axes.name(v, a) not in apart)
                    index = axes([v.type.shape[a] for a in kept], f"{self.low.prefix}i")
                    return {self.axes.name(v, a): i for a, i in zip(kept, index, strict=True)}
        raise Refused("a contraction shares its kernel with no other reduction that it does not read")

    def _apart(self, rows: set[int]) -> set[int]:
        """Return the row axes that an operand with columns goes with: loops over others walk rows that share it."""
        found: set[int] = set()
        for node in self.reductions:
            made = self.axes.names(node.output)
            if node.prim.kind is Kind.CONTRACT and rows <= set(made):
                for v in node.inputs:
                    own = {made[b] for _, b in carried(node, v)}
                    found |= own & rows if own - rows else set()
        return found

    def lower(self) -> tuple[Stmt, ...]:
        """Return the nest that walks the rows; the one that adds up what it sums over them follows."""
        self._check()
        for node in self.reductions:
            if node.prim.kind is Kind.CONTRACT:
                for value in node.inputs:
                    self._operand(value)
            if node in self.across:
                self._sum_rows(node)
            else:
                self._reduce(node)
        for value in self.low.part.outputs:
            if value not in self.sums:
                self._output(value)
        self.low.unnamed()
        if self.bytes > ROW_BYTES:
            raise Refused(f"a row of its intermediate results takes {self.bytes:,} bytes")
        if self.low.part.chains == "blocks" and not self.low.trial:
            walks.found(self.body)
        loops = variables(tuple(self.rows.values()))
        return self._blocks() if self.sums else nest(loops, "parallel", self.body)

    def _check(self) -> None:
        """Refuse what no chain computes, and that soon: fusion tries many, and indices take their time to make."""
        for node in self.reductions:
            if node.prim.kind is Kind.CONTRACT:
                for value in node.inputs:
                    if value in self.axes.dependent:
                        self._in_row(self._moved(value))
                if self._across(node):
                    self._check_sum(node)
                    continue
                self._worth(node)
            self._in_row(node.output)
        for value in self.low.part.outputs:
            if value not in self.across.values():
                self._in_row(self._reshaped(value))

    def _in_row(self, value: Value) -> None:
        names = self.axes.names(value)
        if value not in self.axes.dependent or any(names.count(a) != 1 for a in self.rows):
            raise Refused("it reads or makes results of several rows")

    def place(self, value: Value, name: str) -> tuple[Expr, ...]:
        """Return the index of an element of the current row, with loops ``name`` over the other axes."""
        found = [self.rows.get(a) for a in self.axes.names(value)]
        own = axes(value.type.shape, name)
        return tuple(o if i is None else i for i, o in zip(found, own, strict=True))

    def _moved(self, value: Value) -> Value:
        """Return what a view of the chain moves the elements of."""
        while (node := self.low.producer.get(value)) and node.prim.kind is Kind.VIEW and len(node.inputs) == 1:
            (value,) = node.inputs
        return value

    def _reshaped(self, value: Value) -> Value:
        while (node := self.low.producer.get(value)) is not None and node.prim.name == "reshape":
            (value,) = node.inputs
        return value

    def _hold(self, value: Value, index: tuple[Expr, ...], dtype: str) -> tuple[str, tuple[Expr, ...]]:
        """Give a value a buffer of the row; return it and the place of the element at ``index``."""
        low = self.low
        rows = tuple(self.rows.get(a) for a in self.axes.names(value))
        name = low.name("a", value)
        shape = tuple(n for n, r in zip(value.type.shape, rows, strict=True) if r is None)
        size = math.prod(shape)
        low.held[value] = name, rows, dtype
        self.bytes += size * 8
        at = low.within(value, index)
        self.body.append(Alloc(name, dtype, (i64(size),) if at else (), "local" if at else "register"))
        return name, at

    def _reduce(self, node: Node) -> None:
        low, value = self.low, node.output
        made = low.reduction(node)
        index = self.place(value, low.name("c", value) + "_")
        r = axes(made.extents, low.name("r", value) + "_")
        element = normalize(made.element(low.reader(node), index, tuple(r)))
        name, at = self._hold(value, index, made.dtype)
        if not at:
            self.body += [Store(name, (), identity(made.op, made.dtype))]
            self.body += nest(variables(r), "serial", [Store(name, (), element, made.op)])
            return
        own = f"{name}_s"
        inner: list[Stmt] = [Store(name, at, op(made.op, identity(made.op, made.dtype), element))]
        if variables(r):
            inner = [
                Alloc(own, made.dtype, (), "register"),
                Store(own, (), identity(made.op, made.dtype)),
                *nest(variables(r), "serial", [Store(own, (), element, made.op)]),
                Store(name, at, Load(own, (), made.dtype)),
            ]
        self.body += nest([v for v in variables(index) if v not in self.rows.values()], "parallel", inner)

    def _across(self, node: Node) -> bool:
        """Whether a contraction sums over rows, rather than along each."""
        names = self.axes.names(node.output)
        return any(a not in names for a in self.rows) and any(v in self.axes.dependent for v in node.inputs)

    def _walked(self, node: Node) -> list[Expr]:
        """Return the row loops that a contraction sums over, in its own order."""
        keys = [node.params[k] for k in ("x_axes", "y_axes")]
        walked: list[Expr] = []
        for n in (n for n in keys[0] if n not in node.params["out_axes"]):
            found = {
                self.rows.get(self.axes.name(v, key.index(n)))
                for v, key in zip(node.inputs, keys, strict=True) if v in self.axes.dependent
            }  # fmt: skip
            row = found.pop()
            if found or row is None:
                raise Refused("a contraction over rows sums over columns, too")
            walked.append(row)
        return walked

    def _check_sum(self, node: Node) -> None:
        value, names = node.output, self.axes.names(node.output)
        if self.low.part.chains == "blocks":
            raise Refused("a contraction over rows ends its kernel, which walks the other axis")
        summed = tuple(i for a, i in self.rows.items() if a not in names)
        if self.across and summed != self.summed:
            raise Refused("its contractions over rows sum over different ones")
        if summed != tuple(self.rows.values())[-len(summed) :] or not variables(summed):
            raise Refused("its contractions over rows do not sum over the innermost ones")
        if value not in self.names or any(v in node.inputs for v in self.across.values()):
            raise Refused("a contraction over rows ends its kernel")
        x_axes, y_axes = (node.params[k] for k in ("x_axes", "y_axes"))
        if any(
            n in x_axes and n in y_axes and a not in self.rows
            for n, a in zip(node.params["out_axes"], names, strict=True)
        ):
            raise Refused("a contraction over rows is a batch of them along another axis")
        self._walked(node)
        rows = math.prod(v.bound or 0 for v in variables(tuple(self.rows.values())))
        largest = max((v.type for v in node.inputs if v in self.axes.dependent), key=lambda t: t.size)
        if largest.nbytes < STORED:
            raise Refused(f"a contraction over rows of {largest.nbytes:,} bytes in all ends its kernel")
        width = largest.size // rows
        wide = math.prod(n for n, a in zip(value.type.shape, names, strict=True) if a not in self.rows)
        if wide > WIDE_SUM * width:
            raise Refused(f"each row of {width:,} elements would add to {wide:,} of a contraction over rows")
        self.summed, self.across[node] = summed, value

    def _sum_rows(self, node: Node) -> None:
        """Add what a row contributes to a contraction over rows to the partial result of its block of rows."""
        low, value = self.low, node.output
        made = low.reduction(node)
        index = self.place(value, low.name("c", value) + "_")
        self.sums[value] = self.names[value] if self._alone(value) else low.name("p", value)
        at = self._partial(value, index, self.worker)
        element = normalize(made.element(low.reader(node), index, tuple(self._walked(node))))
        kept = [v for v in variables(index) if v not in self.rows.values()]
        self.body += nest(kept, "parallel", [Store(self.sums[value], at, element, made.op)])

    def _partial(self, value: Value, index: tuple[Expr, ...], worker: Var) -> tuple[Expr, ...]:
        """Return where a block of rows adds to an element: in its row of partial results, or in the result itself."""
        flat = flatten(index, row_major(value.type.shape))
        return (flat,) if self._alone(value) else (worker, flat)

    def _blocks(self) -> tuple[Stmt, ...]:
        """Walk blocks of rows, each with partial results of its own, then add these up, in order."""
        inner = variables(self.summed)
        outer = self._outer()
        n = math.prod(v.bound or 0 for v in inner)
        count, size = self._shares()
        worker, walked = Var(self.worker.name, "i64", count), Var(inner[0].name, "i64", size)
        replace: dict[Expr, Expr] = {self.worker: worker}
        row = worker * size + walked  # one counter of all axes that are summed over
        for v in reversed(inner[1:]):
            replace[v], row = row % (v.bound or 0), row // (v.bound or 0)
        replace[inner[0]] = row
        body = tuple(map_exprs(s, lambda e: normalize(substitute(e, replace))) for s in self.body)
        starts: list[Stmt] = []
        scratch: list[Stmt] = []
        ends: list[Stmt] = []
        names = self.axes
        for value, name in self.sums.items():
            dtype = accumulator(value.type.name)
            found = [self.rows.get(a) for a in names.names(value)]
            own = axes(value.type.shape, self.low.name("z", value) + "_")
            index = tuple(o if i is None else i for i, o in zip(found, own, strict=True))
            kept = [v for v in variables(index) if v not in outer]
            start = Store(name, self._partial(value, index, worker), identity("add", dtype))
            starts += nest(kept, "parallel", [start])
            if self._alone(value):
                continue
            scratch.append(Alloc(name, dtype, (i64(count), i64(value.type.size)), "global"))
            every = axes(value.type.shape, self.low.name("s", value) + "_")
            flat = flatten(every, row_major(value.type.shape))
            total, step = f"{name}_t", Var(f"{name}_w", "i64", count)
            element = Load(name, (step if count > 1 else i64(0), flat), dtype)
            end: list[Stmt] = [Store(self.names[value], (flat,), element.cast(value.type.name))]
            if count > 1:
                end = [
                    Alloc(total, dtype, (), "register"),
                    Store(total, (), identity("add", dtype)),
                    For(step, i64(count), "serial", (Store(total, (), element, "add"),)),
                    Store(self.names[value], (flat,), Load(total, (), dtype).cast(value.type.name)),
                ]
            ends += nest(variables(every) or (Var(f"{name}_i", "i64", 1),), "parallel", end)
        extent = normalize(op("min", i64(size), i64(n) - worker * size))
        rows = For(walked, extent, "serial", body)
        return (*scratch, *nest([*outer, worker], "parallel", [*starts, rows]), *ends)

    def _outer(self) -> list[Var]:
        """Return the loops over rows that are not summed over."""
        return [v for v in variables(tuple(self.rows.values())) if v not in variables(self.summed)]

    def _shares(self) -> tuple[int, int]:
        """Return into how many blocks the rows that are summed over fall, and how long one is."""
        n, others = (math.prod(v.bound or 0 for v in loops) for loops in (variables(self.summed), self._outer()))
        count = max(1, min(-(-WORKERS // others), n // SHORT_BLOCK))
        size, period = -(-n // count), self._period()
        least = min(size, period)
        whole = next(k for k in range(least, period + 1) if period % k == 0)
        size = -(-size // whole) * whole
        return -(-n // size), size

    def _period(self) -> int:
        """Return how many rows that are summed over, one after the other, share each operand with columns."""
        apart = [self.rows[a] for a in self._apart(set(self.rows))]
        inner = list(itertools.takewhile(lambda v: v not in apart, reversed(variables(self.summed))))
        return math.prod(v.bound or 1 for v in inner) if len(inner) < len(variables(self.summed)) else 1

    def _alone(self, value: Value) -> bool:
        """Whether a block's partial result is the result, and in its dtype."""
        return self._shares()[0] == 1 and accumulator(value.type.name) == value.type.name

    def _operand(self, value: Value) -> None:
        """Compute what a contraction reads into a buffer of the row, where the chain makes it."""
        low, value = self.low, self._moved(value)
        if value in self.axes.dependent and value not in low.held:
            index = self.place(value, low.name("h", value) + "_")
            held = accumulator(value.type.name)
            element = low.at(value, index).cast(held)
            name, at = self._hold(value, index, held)
            low.memo.clear()
            self.body += nest(
                [v for v in variables(index) if v not in self.rows.values()], "parallel", [Store(name, at, element)]
            )

    def _worth(self, node: Node) -> None:
        """Refuse a contraction whose other operand a block of rows should not walk through again."""
        made, names = node.output.type, self.axes.names(node.output)
        out = node.params["out_axes"]
        extents = {n: made.shape[k] for k, n in enumerate(out) if names[k] in self.rows}
        own = [math.prod(extents.get(n, 1) for n in node.params[key]) for key in ("x_axes", "y_axes")]
        if math.prod(extents.values()) < FEW_ROWS * min(own):
            raise Refused("too few rows share an operand of the contraction")
        row = [a for a, i in self.rows.items() if isinstance(i, Var) and a in names][-1:]
        columns = [n for n, a, m in zip(out, names, made.shape, strict=True) if a not in self.rows and m > 1]
        apart = [
            node.params[key] for a in row for key in ("x_axes", "y_axes") if out[names.index(a)] not in node.params[key]
        ]
        if row and columns and not any(columns[-1] in axes_ for axes_ in apart):
            raise Refused("no operand of the contraction has its columns and not its rows")
        both = set(node.params["x_axes"]) & set(node.params["y_axes"])
        if columns and both.issuperset(columns) and self.axes.dependent.isdisjoint(node.inputs):
            raise Refused("the contraction sums for each column by itself, and reads memory alone")
        given = [(v, n) for v, n in zip(node.inputs, own, strict=True) if v not in self.axes.dependent]
        walked, rows = min(((v.type.nbytes // n, n) for v, n in given), default=(0, 1))
        largest = max(v.type.nbytes for v in (node.output, *node.inputs) if v in self.axes.dependent)
        if walked > max(WEIGHTS, largest // rows // MUCH):
            raise Refused(f"each block of rows would walk through {walked:,} bytes of the contraction's other operand")
        if self.low.part.chains == "rows":
            self.walked |= {self._moved(v): v.type.nbytes // n for v, n in given if n == min(own)}
            every = sum(self.walked.values())
            if every > max(ALL_WEIGHTS, largest // min(own) // MORE):
                raise Refused(f"each block of rows would walk through {every:,} bytes of all other operands")

    def _output(self, value: Value) -> None:
        low, source = self.low, self._reshaped(value)
        index = self.place(source, low.name("o", value) + "_")
        flat = flatten(index, row_major(source.type.shape))
        store = Store(self.names[value], (flat,), low.at(source, index))
        self.body += nest([v for v in variables(index) if v not in self.rows.values()], "parallel", [store])
