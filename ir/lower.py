"""From a part of a graph to the naive loop nest that defines it.

A nest has parallel axes; under them stand, in order, one serial loop for each reduction and one loop for each output
that has axes of its own. Which element of a value is wanted where is found by asking the primitives' ``lower`` rules,
from the outputs down; so a view is nothing but another index, and fusing is nothing but not stopping at a value.

``lower`` refuses, with the reason, a set of nodes that no single nest computes: that is what fusion asks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from kernelforge.dtypes import FLOATS
from kernelforge.ir.chains import Chain
from kernelforge.ir.demand import REDUCTIONS, Lowering, Part, Refused, identity
from kernelforge.ir.graph import At, Kind, Node, Reduction, Value
from kernelforge.ir.index import flatten, normalize, unflatten
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Load,
    Stmt,
    Store,
    Var,
    i64,
    map_exprs,
    op,
    select,
    substitute,
)
from kernelforge.ir.memo import memo
from kernelforge.ir.nest import adjacent, axes, collapse, digits, nest, variables
from kernelforge.ir.runs import begun, read
from kernelforge.ir.schedule.limits import LINE
from kernelforge.ir.structure import Pattern, pattern
from kernelforge.ir.types import row_major

MANY_ROWS = 32
MANY_COLUMNS = 64
"""From this many rows of this many elements on, a reduction over the rows is made by blocks of rows."""

WIDE_ROW = 4 * LINE
LONG_ROWS = 1 << 22
"""A vector times a matrix of so many bytes is made so too, if its rows have more than ``WIDE_ROW`` bytes, more than the
registers of one loop hold, and are no longer than its columns."""

LONG_COLUMN, RAGGED, BLOCK = 1 << 9, 1 << 17, 1 << 25
"""Columns of more than ``LONG_COLUMN`` elements in more than ``BLOCK`` bytes, or ``RAGGED`` where rows are no whole
lines, are reduced and read again sooner by two nests, each of which goes along the rows, than by one of columns."""

BLOCKS = 64
SHORT_BLOCK = 4
LONG_BLOCK = 256
"""Rows make ``BLOCKS`` blocks, or more where one would be longer than ``LONG_BLOCK``: enough for the threads, the
rounding error of long columns grows with the number of blocks alone, and partial results are few beside the rows."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Nest:
    """A lowered part: the statements and which value each argument holds.

    Attributes:
        runs: of the inputs of which it takes some elements alone, which.
    """

    body: tuple[Stmt, ...]
    inputs: dict[Value, str]
    outputs: dict[Value, str]
    runs: dict[Value, range] = dataclasses.field(default_factory=dict)


def combine(name: str, a: Expr, b: Expr) -> Expr:
    """Combine two elements; on bool, ``max`` is or and ``min`` is and."""
    if a.dtype == "bool":
        name = {"max": "or", "min": "and"}.get(name, name)
    return op(name, a, b)


def _unread(value: Value) -> Refused:
    return Refused(f"an output of shape {value.type.shape} is not read by the reduction once an element")


def _covers(index: tuple[Expr, ...], value: Value) -> bool:
    return digits(flatten(index, row_major(value.type.shape)), value.type.size) is not None


def _refine(chains: Sequence[Sequence[int]], size: int) -> list[int]:
    """Return the extents, most significant first, of the coarsest digits that all the given digit systems share.

    A system is the list of its place values (each a divisor of the next larger one, and of ``size``).
    """
    places = sorted({p for chain in chains for p in chain} | {1, size})
    for small, large in itertools.pairwise(places):
        if large % small:
            raise Refused("its parts walk the same elements in orders that do not fit together")
    return [large // small for small, large in itertools.pairwise(places)][::-1]


def by_columns(node: Node) -> bool:
    """Whether a node reduces leading axes alone, and its rows are many and wide enough to be walked block by block."""
    if node.prim.kind is not Kind.REDUCE:
        return False
    axes_, columns = node.params["axes"], node.output.type.size
    leading = axes_ == tuple(range(len(axes_)))
    return leading and columns >= MANY_COLUMNS and node.inputs[0].type.size >= MANY_ROWS * columns


def rows_of(node: Node) -> tuple[Value, int]:
    """Return what a node walks that is made ``by_columns`` or is a ``product_by_columns``, and how many of its leading
    axes make the rows.
    """
    if node.prim.kind is Kind.REDUCE:
        return node.inputs[0], len(node.params["axes"])
    return max(node.inputs, key=lambda v: len(v.type.shape)), 1


def product_by_columns(node: Node) -> bool:
    """Whether a node is the product of a vector and a matrix that sums columns, where these are long, and rows longer
    than what one tile of vectors holds: threads read whole rows then.
    """
    if node.prim.kind is not Kind.CONTRACT:
        return False
    names = sorted((node.params["x_axes"], node.params["y_axes"]), key=len)
    plain = len(names[0]) == 1 and names[1] == (*names[0], *node.params["out_axes"])
    matrix, columns = rows_of(node)[0].type, node.output.type.size
    width = matrix.dtype.itemsize
    return plain and columns * width > WIDE_ROW and matrix.size >= columns**2 and matrix.size * width >= LONG_ROWS


def long_columns(node: Node) -> bool:
    """Whether a node reduces columns, of elements that lie a row apart, which are so long that one nest of columns is
    slow: lanes beyond the last whole line walk all rows for themselves, and large caches are no larger.
    """
    if node.prim.kind is not Kind.REDUCE:
        return False
    source, axes = node.inputs[0].type, node.params["axes"]
    inner = math.prod(source.shape[max(axes) + 1 :])
    count = source.size // max(node.output.type.size, 1)
    row = inner * source.dtype.itemsize
    return inner > 1 and count > LONG_COLUMN and count * row > (RAGGED if row % LINE else BLOCK)


def _element_of(name: str, shape: tuple[int, ...], dtype: str) -> Callable[[At, Sequence[Expr], Sequence[Expr]], Expr]:
    return lambda _, index, r: Load(name, (r[0], flatten(tuple(index), row_major(shape))), dtype)


def lower(
    part: Part, strides: dict[Value, tuple[int, ...]] | None = None, prefix: str = "", tf32: bool = False
) -> Nest:
    """Turn a part into its naive nest.

    ``strides``, in elements, are those of inputs that are not row-major. ``prefix`` keeps the names of several nests
    apart. ``tf32``: see ``Lowering``.

    Raises:
        Refused: when no single nest computes the part.
    """
    part, runs = begun(part, strides or ())
    mine = pattern(part, strides or {})
    first, made = _lowered(mine, prefix, tf32)
    value = dict(zip(first.values, mine.values, strict=True))
    inputs = {value[v]: n for v, n in made.inputs.items()}
    return Nest(
        made.body,
        {runs[v][0] if v in runs else v: n for v, n in inputs.items()},
        {value[v]: n for v, n in made.outputs.items()},
        {runs[v][0]: runs[v][1] for v in inputs if v in runs},
    )


@memo
def _lowered(pattern: Pattern, prefix: str, tf32: bool) -> tuple[Pattern, Nest]:
    return pattern, _Builder(Lowering(pattern.part, pattern.strides, prefix, trial=False, tf32=tf32)).build()


def buffers_of(part: Part) -> int:
    """Return how many buffers the nest of a part takes.

    Raises:
        Refused: when no single nest computes the part, or its nodes would be computed more than ``RECOMPUTE`` times.
    """
    found = _tried(pattern(begun(part, ())[0], {}))
    if isinstance(found, str):
        raise Refused(found)
    return found


@memo
def _tried(pattern: Pattern) -> int | str:
    try:
        builder = _Builder(Lowering(pattern.part, {}, "", trial=True))
        made = builder.build()
        if builder.chained() and pattern.part.chains == "blocks":
            lower(pattern.part)  # what walks there are, its elements say
    except Refused as refusal:
        return str(refusal)
    return len(made.inputs) + len(made.outputs)


class _Builder:
    def __init__(self, low: Lowering) -> None:
        self.low = low
        part = low.part
        self.names = {v: f"{low.prefix}y{k}" for k, v in enumerate(part.outputs)}
        self.wanted = set(part.outputs)
        live: set[Node] = set()
        stack = [low.producer[v] for v in part.outputs if v in low.producer]
        while stack:
            node = stack.pop()
            if node not in live:
                live.add(node)
                stack.extend(low.producer[v] for v in node.inputs if v in low.producer)
        self.reductions = [n for n in part.nodes if n in live and n.prim.kind in REDUCTIONS]

    def build(self) -> Nest:
        if any(n.prim.kind is Kind.SCATTER for n in self.low.part.nodes):
            body = self.scatter()
        elif any(n.prim.kind is Kind.CUMULATE for n in self.reductions):
            body = self.cumulate()
        elif self.chained():
            body = Chain(self.low, self.reductions, self.names).lower()
        elif columns := self.columns():
            body = self.blocks(columns)
        elif self.reductions:
            _, loops, inner = self.reduce(self.reductions, self.low.part.outputs)
            body = self.top(loops, inner)
        else:
            body = self.map()
        if self.low.trial:
            return Nest(body, self.low.inputs, self.names)
        return Nest(*read(body, self.low.inputs, f"{self.low.prefix}x"), self.names)

    def top(self, loops: Sequence[Var], body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        """Wrap the body in its parallel loops, one of a single iteration where there are none."""
        return nest(loops or (Var(f"{self.low.prefix}i", "i64", 1),), "parallel", body)

    def store(self, value: Value, index: tuple[Expr, ...]) -> Store:
        flat = flatten(index, row_major(value.type.shape))
        return Store(self.names[value], (flat,), normalize(self.low.at(value, index)))

    def map(self) -> tuple[Stmt, ...]:
        outputs = self.low.part.outputs
        root = max(outputs, key=lambda v: v.type.size)
        index = axes(root.type.shape, f"{self.low.prefix}i")
        with self.low.scope() as lets:
            self.low.at(root, index)
            stores = [self.store(v, self.home(v, root, index)) for v in outputs]
        return self.top(variables(index), [*lets, *stores])

    def home(self, value: Value, root: Value, index: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """Find the index, in the root's axes, at which every element of ``value`` comes by once."""
        if value.type.shape == root.type.shape:
            return index
        for other, at in list(self.low.memo):
            if other is value and root.type.size == value.type.size and _covers(at, value):
                return at
        raise Refused(f"outputs of shapes {root.type.shape} and {value.type.shape} are not computed in one loop")

    def reduce(
        self, reductions: Sequence[Node], outputs: Sequence[Value], given: dict[Node, Reduction] | None = None
    ) -> tuple[Expr, tuple[Var, ...], list[Stmt]]:
        """Make the nest of reductions over the same rows and of ``outputs``: the number of the row, the loops that walk
        the rows, and what stands in them. ``given`` tells how a node is reduced where its own record does not.
        """
        low, prefix = self.low, self.low.prefix
        size = reductions[0].output.type.size
        if any(n.prim.kind is Kind.CONTRACT for n in reductions) and len(reductions) > 1:
            raise Refused("a contraction shares its kernel with no other reduction")
        chains: list[list[int]] = []
        for node in reductions:
            shape = node.output.type.shape
            if node.output.type.size != size:
                raise Refused("its reductions have different numbers of results")
            chains.append([s for s, n in zip(row_major(shape), shape, strict=True) if n > 1])
        below = self.below(reductions)
        behind = self.behind([v for n in reductions for v in n.inputs], ())
        for value in outputs:
            if value not in below and low.producer.get(value) not in behind:
                raise _unread(value)
        placed: list[tuple[Value, tuple[Expr, ...], Expr]] = []
        upstream: list[Value] = []
        for value in outputs:
            index = axes(value.type.shape, low.name("o", value) + "_")
            found = low.probe(value, index)
            if not found:
                upstream.append(value)
                continue
            if len(found) > 1:
                raise Refused("an output needs results of the reduction from several rows")
            (flat,) = found
            system = digits(flat, size)
            if system is None:
                raise Refused("an output does not use each row of the reduction once")
            chains.append([c for c, _ in system])
            placed.append((value, index, flat))
        extents = _refine(chains, size) if size > 1 else []
        parallel = axes(extents, f"{prefix}i")
        flat = flatten(parallel, row_major(tuple(extents)))

        body: list[Stmt] = []
        elements: dict[Value, tuple[tuple[Var, ...], tuple[Expr, ...]]] = {}
        for node in reductions:
            made = given[node] if given else low.reduction(node)
            r = axes(made.extents, low.name("r", node.output) + "_")
            at = unflatten(flat, node.output.type.shape)
            low.reads = {}
            known = len(low.memo)
            with low.scope() as lets:
                element = normalize(made.element(low.reader(node), at, tuple(r)))
                for flats in low.reads.values():
                    if any(f is not flat for f in flats):
                        raise Refused("a reduction needs results of another one from several rows")
                for value, index in list(low.memo)[known:] if upstream else ():
                    once = value.type.size == size * math.prod(made.extents)
                    if value in upstream and value not in elements and once and _covers(index, value):
                        elements[value] = (variables(r), index)
            name = low.accumulator(node)
            inner_body = [*lets, Store(name, (), element, made.op)]
            walked = variables(r) if node.prim.kind is not Kind.CONTRACT else adjacent(variables(r), inner_body)
            loops = nest(walked, "serial", inner_body)
            body += [Alloc(name, made.dtype, (), "register"), Store(name, (), identity(made.op, made.dtype)), *loops]
        for value in upstream:
            if value not in elements:
                raise _unread(value)
            inner, index = elements[value]
            # schedule steps find loops by their names, and this one does not combine
            fresh = tuple(Var(f"{low.name('e', value)}_{k}", "i64", v.bound) for k, v in enumerate(inner))
            renamed: dict[Expr, Expr] = dict(zip(inner, fresh, strict=True))
            with low.scope() as lets:
                lets.append(self.store(value, index))
            body += nest(fresh, "parallel", [map_exprs(s, lambda e: normalize(substitute(e, renamed))) for s in lets])  # noqa: B023
        for value, index, own_flat in placed:
            system = digits(own_flat, size)
            assert system is not None
            rows = {var: normalize((flat // c) % (var.bound or 1)) for c, var in system}
            inner = tuple(v for v in variables(index) if v not in rows)
            index = tuple(rows.get(i, i) if isinstance(i, Var) else i for i in index)
            with low.scope() as lets:
                lets.append(self.store(value, index))
            body += nest(inner, "parallel", lets)
        if any(n.prim.kind is Kind.CONTRACT for n in reductions):
            low.unnamed()
        return flat, variables(parallel), body

    def chained(self) -> bool:
        contracts = any(n.prim.kind is Kind.CONTRACT for n in self.reductions)
        return bool(self.low.part.chains) and contracts and len(self.reductions) > 1

    def columns(self) -> list[Node]:
        """Return the reductions over leading axes, or the product, to be made by blocks of rows; see ``blocks``."""
        found = [n for n in self.reductions if self.low.part.columns and (by_columns(n) or product_by_columns(n))]
        if not found:
            return []
        below = self.below(found)
        whole = all(v.type.size == found[0].output.type.size for v in self.wanted & below)
        return found if whole and not any(v in below for n in self.reductions for v in n.inputs) else []

    def below(self, nodes: Sequence[Node]) -> set[Value]:
        """Return the values that depend on what ``nodes`` make."""
        found = {n.output for n in nodes}
        for node in self.low.part.nodes:
            if any(v in found for v in node.inputs):
                found.update(node.outputs)
        return found

    def behind(self, values: Sequence[Value], ends: Sequence[Node]) -> set[Node]:
        """Return the nodes that make ``values``, up to those that ``ends`` make."""
        found = set(ends)
        stack = list(values)
        while stack:
            node = self.low.producer.get(stack.pop())
            if node is not None and node not in found:
                found.add(node)
                stack.extend(node.inputs)
        return found - set(ends)

    def blocks(self, columns: Sequence[Node]) -> tuple[Stmt, ...]:
        """Walk rows once for reductions over them and for all else that is made of their elements.

        A block of consecutive rows combines them, in order, into a row of partial results of its own; a second nest
        combines the blocks, in order. How many rows make a block is given by the shape alone, and so is every rounding.
        """
        prefix = self.low.prefix
        source, lead = rows_of(columns[0])
        row_shape, shape = source.type.shape[:lead], source.type.shape[lead:]
        if any((v.type.shape, many) != (source.type.shape, lead) for v, many in map(rows_of, columns)):
            raise Refused("its reductions over rows walk arrays of different shapes")
        below = self.below(columns)
        beside = [v for v in self.low.part.outputs if v not in below]
        block = Var(f"{prefix}w", "i64", math.prod(row_shape))
        rows = [n for n in self.reductions if n not in columns]
        if rows:
            if not self.behind([v for v in self.low.part.outputs if v in below], columns).isdisjoint(rows):
                raise Refused("a reduction over rows and one along them make an output together")
            if rows[0].output.type.size != math.prod(row_shape):
                raise Refused("its reductions have different numbers of results")
            flat, loops, body = self.reduce(rows, beside)
            at = unflatten(flat, row_shape)
            for node in columns:
                index = axes(shape, self.low.name("c", node.output) + "_")
                with self.low.scope() as lets:
                    lets.append(self.accumulate(node, block, at, index, flat))
                body += nest(variables(index), "parallel", lets)
        else:
            index = axes(source.type.shape, f"{prefix}i")
            with self.low.scope() as body:
                stores = [self.accumulate(n, block, index[:lead], index[lead:], None) for n in columns]
                body += [*stores, *(self.store(v, self.home(v, source, index)) for v in beside)]
            loops, body = variables(index[:lead]), list(nest(variables(index[lead:]), "parallel", body))
        walks, body = collapse(list(loops), body)
        outer = max(walks, key=lambda v: v.bound or 0)
        for var in reversed([v for v in walks if v is not outer]):
            body = [For(var, i64(var.bound or 0), "serial", tuple(body))]
        n = outer.bound or 0
        size = max(SHORT_BLOCK, min(LONG_BLOCK, -(-n // BLOCKS)))
        count = -(-n // size)
        walked, worker = Var(outer.name, "i64", size), Var(block.name, "i64", count)
        replace: dict[Expr, Expr] = {outer: worker * size + walked, block: worker}
        memo: dict[Expr, Expr] = {}
        body = [map_exprs(s, lambda e: normalize(substitute(e, replace, memo))) for s in body]
        extent = normalize(op("min", i64(size), i64(n) - worker * size))
        starts: list[Stmt] = []
        partials: dict[Node, Reduction] = {}
        scratch: list[Stmt] = []
        for node in columns:
            made, name = self.low.reduction(node), self.partial(node)
            index = axes(shape, self.low.name("z", node.output) + "_")
            start = Store(name, (worker, flatten(index, row_major(shape))), identity(made.op, made.dtype))
            starts += nest(variables(index), "parallel", [start])
            scratch.append(Alloc(name, made.dtype, (i64(count), i64(math.prod(shape))), "global"))
            partials[node] = made._replace(extents=(count,), element=_element_of(name, shape, made.dtype))
        first = For(worker, i64(count), "parallel", (*starts, For(walked, extent, "serial", tuple(body))))
        _, loops, body = self.reduce(columns, [v for v in self.low.part.outputs if v in below], partials)
        return (*scratch, first, *self.top(loops, body))

    def partial(self, node: Node) -> str:
        return self.low.name("p", node.output)

    def accumulate(
        self, node: Node, block: Var, row: Sequence[Expr], index: tuple[Expr, ...], flat: Expr | None
    ) -> Store:
        """Combine the element of a reduction over rows at ``row`` and ``index`` into the block's partial results."""
        made = self.low.reduction(node)
        self.low.reads = {}
        element = made.element(self.low.reader(node), index, tuple(row))
        if any(f is not flat for flats in self.low.reads.values() for f in flats):
            raise Refused("a reduction needs results of another one from several rows")
        strides = row_major(node.output.type.shape)
        return Store(self.partial(node), (block, flatten(index, strides)), normalize(element), made.op)

    def cumulate(self) -> tuple[Stmt, ...]:
        low, prefix = self.low, self.low.prefix
        if len(self.reductions) > 1 or self.low.part.outputs != (self.reductions[0].output,):
            raise Refused("a running reduction ends its kernel")
        (node,) = self.reductions
        made = low.reduction(node)
        axis, extent = node.params["axis"], made.extents[0]
        index = list(axes(node.output.type.shape, f"{prefix}i"))
        walk = Var(f"{prefix}r", "i64", extent)
        outer = variables([i for k, i in enumerate(index) if k != axis])
        index[axis] = i64(extent - 1) - walk if node.params["reverse"] else walk
        at = tuple(normalize(i) for i in index)
        name = low.accumulator(node)
        held = Load(name, (), made.dtype)
        with low.scope() as lets:
            element = made.element(low.reader(node), at, ())
            if made.decay is not None:
                following = made.decay(low.reader(node), at) * held + element
            else:
                following = combine(made.op, held, element)
        if low.reads:
            raise Refused("a running reduction does not read another reduction")
        out = Store(
            self.names[node.output], (flatten(at, row_major(node.output.type.shape)),), held.cast(node.output.type.name)
        )
        start = identity("add" if made.decay is not None else made.op, made.dtype)
        if made.op == "add" and made.decay is None and made.dtype in FLOATS:
            start = Const(-0.0, made.dtype)
        step = For(walk, i64(extent), "serial", (*lets, Store(name, (), normalize(following)), out))
        body: list[Stmt] = [Alloc(name, made.dtype, (), "register"), Store(name, (), start), step]
        return self.top(outer, body)

    def scatter(self) -> tuple[Stmt, ...]:
        low, prefix = self.low, self.low.prefix
        scatters = [n for n in low.part.nodes if n.prim.kind is Kind.SCATTER]
        if len(scatters) > 1 or low.part.outputs != scatters[0].outputs or self.reductions:
            raise Refused("a scatter ends its kernel")
        (node,) = scatters
        out, strides = node.output, row_major(node.output.type.shape)
        target, update, count = node.inputs[0], node.inputs[1], node.inputs[2].type.ndim
        copied = axes(out.type.shape, f"{prefix}i")
        with low.scope() as copies:
            copies.append(Store(self.names[out], (flatten(copied, strides),), low.at(target, copied)))
        first = self.top(variables(copied), copies)
        walk = axes(update.type.shape[:count], f"{prefix}u")
        rest = axes(update.type.shape[count:], f"{prefix}d")
        index: list[Expr] = []
        valid: Expr | bool = True
        left = list(rest)
        with low.scope() as body:
            for axis, extent in enumerate(out.type.shape):
                if axis not in node.params["axes"]:
                    index.append(left.pop(0))
                    continue
                k = node.params["axes"].index(axis)
                raw = low.at(node.inputs[2 + k], walk).cast("i64")
                wrapped = select(raw < 0, raw + extent, raw)
                inside = (wrapped >= 0) & (wrapped < extent)
                valid = inside if isinstance(valid, bool) else valid & inside
                index.append(wrapped)
            mode = "" if node.params["mode"] == "set" else node.params["mode"]
            value = low.at(update, (*walk, *rest))
            store = Store(self.names[out], (flatten(tuple(index), strides),), value, mode)
            assert isinstance(valid, Expr)
            body.append(If(normalize(valid), (store,)))
        inner = nest(variables(walk), "serial", body)
        return (*first, *self.top(variables(rest), inner))
