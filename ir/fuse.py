"""Grouping the nodes of a graph into regions, one kernel each.

Every node that computes starts as a group of its own. In graph order, each group then tries to join the groups it
reads, and at last groups that do not depend on each other but would share a launch. A join is legal when the groups
stay in an order without cycles and one nest computes them (``kernelforge.ir.lower``). Views of one value, constants,
counters and random bits, and what little is made of them (``kernelforge.ir.free``), belong to no group: whoever reads
them computes them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from kernelforge.ir.cost import EXPENSIVE, LAUNCH_BYTES, OPERATIONS_PER_BYTE, RECOMPUTE
from kernelforge.ir.demand import BESIDE, Chains, Part, Refused
from kernelforge.ir.free import free_nodes, repeats
from kernelforge.ir.graph import Graph, Kind, Node, Value
from kernelforge.ir.groups import Group, Item, Order, reaches
from kernelforge.ir.lower import buffers_of, by_columns, long_columns

WIDE_ROW = 1 << 16
FEW_ROWS = 8
"""Fewer than ``FEW_ROWS`` rows of ``WIDE_ROW`` elements or more leave a device idle when one nest owns a whole row."""

MOST = 256
"""Nodes, at most, of a nest that others join by trial: each trial lowers all of it, so unbounded ones would take the
square of their nodes. What needs no trial joins on."""

PLACES = 4
"""Views that read one choice among several values, at most: what is stored is read without choosing again."""

SPREAD = 1 << 12
"""Elements that repeat the results of a contraction: a kernel of their own stores as many in vectors."""

WRITTEN_AND_READ = 3
"""Bytes that move for each that one kernel stores for another: to overwrite a line, it is read first."""

SERIAL_MAPS, SERIAL = 8, 1 << 14
"""Maps, and those times the elements, that a scatter computes at most: in a kernel before it they go by vectors."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Region:
    """What one kernel computes: parts that do not depend on each other, or one node that holds graphs."""

    parts: tuple[Part, ...]
    opaque: Node | None = None

    def __repr__(self) -> str:
        return f"<Region: {', '.join(n.prim.name for n in self.nodes)}>"

    @property
    def outputs(self) -> tuple[Value, ...]:
        return self.opaque.outputs if self.opaque else tuple(v for p in self.parts for v in p.outputs)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The values it reads from memory."""
        if self.opaque:
            return tuple(dict.fromkeys(self.opaque.inputs))
        return tuple(dict.fromkeys(v for p in self.parts for v in inputs(p)))

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.opaque,) if self.opaque else tuple(n for p in self.parts for n in p.nodes)


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """Why two neighbours share a kernel or do not; each is named by a value that it makes."""

    producer: Value
    consumer: Value
    fused: bool
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Residual:
    """Why values that one kernel makes and another one reads are kept in memory, or computed again by the reader.

    Attributes:
        bytes: moved to keep them; where they are computed again, how many fewer are moved.
        work: operations more that computing them again takes, as ``kernelforge.ir.cost`` weighs them.
        reason: why they are kept.
        instead: what is stored in their place.
        home: what the kernel that made them makes still; None where that is needed no more.
    """

    values: tuple[Value, ...]
    kept: bool
    bytes: int
    work: int
    reason: str
    instead: tuple[Value, ...] = ()
    home: Value | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Fusion:
    """The regions in the order they run, and how they came about."""

    regions: tuple[Region, ...]
    decisions: tuple[Decision, ...]
    residuals: tuple[Residual, ...] = ()


def fuse(graph: Graph, enabled: bool = True, max_args: int = 64, columns: bool = False, chains: Chains = "") -> Fusion:
    """Group the nodes of ``graph``; with ``enabled`` off, each node that computes is a region.

    ``max_args`` is the most buffers a kernel may take on the device; ``columns`` and ``chains`` are those of
    the parts.
    """
    fusion = _Fuser(graph, max_args, columns, chains)
    if enabled:
        fusion.vertical()
        fusion.siblings()
        fusion.side_by_side()
    return Fusion(tuple(fusion.regions()), tuple(fusion.decisions))


@dataclasses.dataclass(slots=True)
class _Bundle:
    """Groups that share a launch, and the buffers they take together."""

    groups: list[Group]
    buffers: int


class _Fuser:
    def __init__(self, graph: Graph, max_args: int, columns: bool, chains: Chains) -> None:
        self.graph = graph
        self.max_args = max_args
        self.columns = columns
        self.chains: Chains = chains
        self.decisions: list[Decision] = []
        self.producer = {v: n for n in graph.nodes for v in n.outputs}
        self.order = {n: k for k, n in enumerate(graph.nodes)}
        self.free = free_nodes(graph)
        self.steps = self._steps()
        self.places = self._places()
        self.escaping = set(graph.outputs)
        self.items: list[Item] = []
        by_value: dict[Value, Item] = {}
        for node in graph.nodes:
            if node in self.free:
                continue
            if node.prim.kind is Kind.OPAQUE:
                for value in node.inputs:
                    if self.producer.get(value) in self.free and value not in by_value:
                        self._add(None, (value,), (value,), by_value)
            self._add(node, node.outputs, node.inputs, by_value)
        for value in dict.fromkeys(graph.outputs):
            if value not in by_value:
                self._add(None, (value,), (value,), by_value)
        self.joined: list[_Bundle] = []

    def _add(
        self, node: Node | None, outputs: tuple[Value, ...], inputs: Sequence[Value], by_value: dict[Value, Item]
    ) -> None:
        item = Item(node, outputs, len(self.items), not self.escaping.isdisjoint(outputs))
        opaque = node is not None and item.kind is Kind.OPAQUE
        for value in inputs:
            # what the plan reads is in memory, whatever made it
            behind = [(value, None)] if opaque else list(self._behind(value))
            times = max((repeats(free) for _, free in behind if free is not None), default=1)
            for source, free in behind:
                if free is not None:
                    item.whole &= _reads_all(free)
                elif source in by_value:
                    item.reads[by_value[source]] = None
                    by_value[source].readers[item] = None
                    if source is not value:
                        item.through[by_value[source]] = max(times, item.through.get(by_value[source], 1))
                else:
                    item.given.add(source)
        item.whole &= node is None or _reads_all(node)
        plain = node is not None and node.prim.kind is Kind.MAP
        item.group = Group(item, item.outputs[0].type.shape if plain else None)
        self.items.append(item)
        for v in item.outputs:
            by_value.setdefault(v, item)

    def _steps(self) -> dict[Value, int]:
        """Return how many maps follow each other up to each value, from the last that is none or a view of one."""
        steps: dict[Value, int] = {}
        for node in self.graph.nodes:
            if node.prim.kind in (Kind.MAP, Kind.VIEW):
                before = max((steps.get(v, 0) for v in node.inputs), default=0)
                steps.update(dict.fromkeys(node.outputs, before + (node.prim.kind is Kind.MAP)))
        return steps

    def _places(self) -> dict[Value, int]:
        """Return by how many views each choice among several values is read."""
        chosen = {n.output: 0 for n in self.graph.nodes if n.prim.kind is Kind.VIEW and n not in self.free}
        for node in self.graph.nodes:
            if node.prim.kind is Kind.VIEW:
                for v in chosen.keys() & set(node.inputs):
                    chosen[v] += 1
        return chosen

    def _sources(self, value: Value) -> Iterator[Value]:
        """Yield the values behind ``value`` that free nodes do not make."""
        yield from (v for v, node in self._behind(value) if node is None)

    def _behind(self, value: Value) -> Iterator[tuple[Value, Node | None]]:
        """Yield ``value`` and what is behind it, as far as free nodes go, each with the free node that makes it."""
        seen = {value}
        stack = [value]
        while stack:
            value = stack.pop()
            node = self.producer.get(value)
            if node not in self.free:
                node = None
            yield value, node
            for v in node.inputs if node is not None else ():
                if v not in seen:
                    seen.add(v)
                    stack.append(v)

    def part(self, items: Sequence[Item]) -> Part:
        """Collect the nodes that compute what ``items`` must store."""
        mine = set(items)
        outputs = [
            v
            for i in sorted(items, key=lambda i: i.order)
            for v in i.outputs
            if v in self.escaping or any(r not in mine for r in i.readers)
        ]
        nodes: dict[Node, None] = {}
        own = {i.node for i in items}
        stack = list(outputs)
        while stack:
            node = self.producer.get(stack.pop())
            if node is not None and node not in nodes and (node in own or node in self.free):
                nodes[node] = None
                stack.extend(node.inputs)
        return Part(tuple(sorted(nodes, key=self.order.__getitem__)), tuple(outputs), self.columns, self.chains)

    def join(self, a: Group, b: Group) -> str:
        """Make one group of two if one nest computes both; return why not, or nothing."""
        kinds = a.kinds | b.kinds
        if Kind.OPAQUE in kinds:
            return "the steps of control flow share a kernel with nothing else"
        costly = any(map(_costly, a.items))
        if any(self.places.get(v, 0) > PLACES for i in b.taken if i.group is a for v in i.outputs):
            return (
                f"it chooses among several values and is read at more than {PLACES} places, each of which would again"
            )
        if Kind.SCATTER in b.kinds and self._too_serial(a, b):
            return "the scatter would compute it one element after the other"
        if costly and self._looked_up(a, b):
            return "what is read where data says would be computed again for each use of an element"
        if costly and self._repeated(a, b):
            return "what each row repeats would be computed again for each of them"
        reductions = a.reductions + b.reductions
        if Kind.CONTRACT in a.kinds and self._for_sums(a, b):
            return "only sums over rows read it, and what it is made of is stored for others"
        if reductions and self._stacked(b):
            return "each result would be stored once for each copy, a row apart"
        if a.reductions and self._columns_again(a, b):
            return "it reads long columns again, which are reduced and read sooner row by row"
        chained = Kind.CONTRACT in kinds and len(reductions) > 1
        if chained and not self.chains:
            return "a contraction shares its kernel with no other reduction"
        if Kind.CONTRACT in a.kinds and not chained and self._spread(a, b):
            return "a tile of the contraction's results would be stored once for each copy, one element at a time"
        if a.shape is not None and a.shape == b.shape and not any(r.group is a for r in b.through):
            if a.buffers_with(b) <= self.max_args:
                a.join(b, a.shape)
                return ""
            if a.whole and b.whole:
                return self._too_many()
        rows = min((i.outputs[0].type.size for i in reductions), default=0)
        if rows >= FEW_ROWS and self._follows(a, b, chained) and a.buffers_with(b) <= self.max_args:
            a.join(b, None)
            return ""
        part = self.part([*a.items, *b.items])
        if len(part.nodes) > MOST:
            return f"a kernel of more than {MOST} steps takes longer to compile than two do"
        if reductions and rows < FEW_ROWS:
            work = sum(v.type.size for v in (*inputs(part), *part.outputs)) // 2
            full = any(v.type.size > rows for v in part.outputs)
            walked = {i.node.inputs[0].type.size for i in reductions if i.node is not None}
            if full and rows == 1 and not chained and len(walked) > 1:
                return "sums over several arrays would be followed by one loop for each result, one after the other"
            if work >= rows * WIDE_ROW and (full or len(reductions) > 1):
                return f"{rows} rows of {work // max(rows, 1)} elements would leave the device idle"
        if not chained and Kind.CONTRACT in b.kinds and costly:
            return "the contraction would compute it again for each use of an element"
        try:
            needed = buffers_of(part)
        except Refused as refusal:
            return str(refusal)
        if needed > self.max_args:
            return self._too_many()
        a.join(b, None)
        return ""

    def _too_serial(self, a: Group, b: Group) -> bool:
        """Whether a scatter of ``b`` would compute for each element what is costly in ``a``, or much with it."""
        found: set[Item] = set()
        added = 0
        stack: list[Item] = []
        for item in b.items:
            if item.kind is Kind.SCATTER and item.node is not None:
                behind = {v for x in item.node.inputs[1:] for v in self._sources(x)}
                stack += [i for i in item.reads if not behind.isdisjoint(i.outputs)]
                added = max(added, item.node.inputs[1].type.size)
        while stack:
            item = stack.pop()
            if item.group in (a, b) and item not in found:
                found.add(item)
                stack += item.reads
        mine = [i for i in found if i.group is a]
        return any(map(_costly, mine)) or (bool(mine) and len(found) > SERIAL_MAPS and len(found) * added > SERIAL)

    def _looked_up(self, a: Group, b: Group) -> bool:
        """Whether gathers of ``b`` read a value of ``a`` more often than it may be computed again."""
        made = {v for i in a.items for v in i.outputs}
        uses: dict[Value, int] = {}
        for item in b.items:
            if item.node is not None and item.kind is Kind.INDEX:
                for v in made.intersection(self._sources(item.node.inputs[0])):
                    uses[v] = uses.get(v, 0) + item.node.output.type.size
        return any(n > RECOMPUTE * v.type.size for v, n in uses.items())

    def _repeated(self, a: Group, b: Group) -> bool:
        """Whether storing maps of ``a`` takes less than computing them in each row of ``b``."""
        if not a.kinds <= {Kind.MAP}:
            return False
        uses = {i: max(r.through.get(i, 1) for r in i.readers if r.group is b) for i in b.through if i.group is a}
        times, values = max(uses.values(), default=1), [v for i in uses for v in i.outputs]
        if times <= RECOMPUTE or a.most > RECOMPUTE * max(v.type.size for v in values):
            return False
        saved = a.work * (times - 1) / OPERATIONS_PER_BYTE
        return saved > LAUNCH_BYTES + WRITTEN_AND_READ * sum(v.type.nbytes for v in values)

    def _for_sums(self, a: Group, b: Group) -> bool:
        """Whether ``b`` is a map that only sums over the first axis read, which no contraction's kernel makes, of
        values of ``a`` that such sums or results need stored in any case.
        """
        (item, *others) = b.items
        if others or b.shape is None or item.escapes or not all(map(_sums_rows, item.readers)):
            return False
        read = [i for i in item.reads if i.group is a]
        return bool(read) and all(i.escapes or any(_sums_rows(r) for r in i.readers if r is not item) for i in read)

    def _stacked(self, group: Group) -> bool:
        """Whether all that a group does is to repeat rows: a nest of what makes their elements would go by columns."""
        (item, *others) = group.items
        made = self.producer.get(item.outputs[0])
        if others or item.node is not None or made is None or made.prim.name != "broadcast":
            return False
        (source,) = made.inputs
        target = item.outputs[0].type.shape
        shape = (*(1,) * (len(target) - source.type.ndim), *source.type.shape)
        first = next((k for k, n in enumerate(target) if n > 1), 0)
        return source.type.size > 1 and shape[first] == 1

    def _columns_again(self, a: Group, b: Group) -> bool:
        """Whether ``b`` uses what ``a`` reduces of long columns for as many elements again."""
        long = [i for i in a.reductions if i.node is not None and long_columns(i.node)]
        if not long:
            return False
        columns = max(i.outputs[0].type.size for i in long)
        uses = [i for i in b.items if any(r.group is a and r.reduced() for r in i.reads)]
        return any(v.type.size > columns for i in uses for v in (*i.outputs, *(i.node.inputs if i.node else ())))

    def _spread(self, a: Group, b: Group) -> bool:
        """Whether ``b`` repeats what a contraction of ``a`` makes: many elements, in an order of their own."""
        results = max(i.outputs[0].type.size for i in a.reductions)
        made = max(v.type.size for i in b.items for v in i.outputs)
        return made >= SPREAD and made > 2 * results

    def _follows(self, a: Group, b: Group, chained: bool) -> bool:
        """Whether ``b`` is one map of one value that ``a`` makes from a reduction and nothing else needs.

        One nest computes both if one computes ``a``: the map is stored where that value was. Contractions take no
        longer expressions than ``BESIDE``, and what a chain sums over its rows is not of a row.
        """
        if len(b.items) > 1 or b.shape is None or not a.kinds <= {Kind.MAP, Kind.REDUCE, Kind.CONTRACT}:
            return False
        (item,) = b.items
        read = [i for i in item.reads if i.group is a]
        if len(read) != 1 or read[0] in item.through or not self.escaping.isdisjoint(read[0].outputs):
            return False
        if Kind.CONTRACT in a.kinds and self.steps.get(item.outputs[0], 0) >= BESIDE:
            return False
        if chained and read[0].kind is Kind.CONTRACT:
            return False
        return all(r is item or r.group is a for r in read[0].readers) and read[0].reduced()

    def _too_many(self) -> str:
        return f"a kernel of the device takes {self.max_args} buffers at most"

    def vertical(self) -> None:
        """Let each group join the groups it reads."""
        for item in self.items:
            tried: set[tuple[object, object]] = set()
            progress = True
            while progress:
                progress = False
                for before in item.group.before():
                    key = (before.state, item.group.state)
                    if key in tried:
                        continue
                    tried.add(key)
                    made = before.last.outputs[0]
                    reason = self._try(before, item)
                    self.decisions.append(Decision(made, item.outputs[0], not reason, reason))
                    if not reason:
                        progress = True
                        break

    def _try(self, before: Group, item: Item) -> str:
        group = item.group
        # what comes after the item has joined nothing yet, so that nothing leads back from there
        if reaches((g for g in before.ahead if g is not group), {group}, item.order):
            return "another kernel stands between them"
        return self.join(before, group)

    def siblings(self) -> None:
        """Join groups that read the same values in loops of the same shape."""
        readers: dict[Value, dict[Item, None]] = {}
        for item in self.items:
            if item.node is None:
                continue
            for value in item.node.inputs:
                for source in self._sources(value):
                    readers.setdefault(source, {})[item] = None
        order = Order(dict.fromkeys(i.group for i in self.items))
        tried: set[tuple[object, object]] = set()
        for items in readers.values():
            # one of each group stands for all of it
            ones = list({i.group: i for i in reversed(items)}.values())[::-1]
            for a, b in itertools.combinations(ones, 2):
                first, second = a.group, b.group
                key = (first.state, second.state)
                if first is second or key in tried:
                    continue
                tried.add(key)
                alike = _alike(first, second, self.columns)
                if alike and order.independent(first, second) and not self.join(first, second):
                    order.together(first, second)

    def side_by_side(self) -> None:
        """Give maps that do not depend on each other one launch, whatever their shapes."""
        order = Order(dict.fromkeys(i.group for i in self.items))
        for group in dict.fromkeys(i.group for i in self.items):
            if group.kinds <= {Kind.MAP} and all(v.type.size for i in group.items for v in i.outputs):
                buffers = _buffers(self.part(group.items))
                for bundle in self.joined:
                    first = bundle.groups[0]
                    room = bundle.buffers + buffers <= self.max_args
                    if room and _dtype(group) == _dtype(first) and order.independent(group, first):
                        order.together(group, first)
                        break
                else:
                    bundle = _Bundle([], 0)
                    self.joined.append(bundle)
                bundle.groups.append(group)
                bundle.buffers += buffers

    def regions(self) -> Iterator[Region]:
        """Yield the regions, each after those it reads."""
        bundles = {g: bundle.groups for bundle in self.joined for g in bundle.groups}
        done: set[Group] = set()
        # graphs are deeper than Python's stack: it holds groups, and those that are behind them and not looked at yet
        stack: list[tuple[Group | None, Iterator[Group]]] = [(None, (i.group for i in self.items))]
        while stack:
            group, behind = stack[-1]
            following = next((g for g in behind if g not in done), None)
            if following is not None:
                members = bundles.get(following, [following])
                done.update(members)
                stack.append((following, (g for m in members for g in m.before())))
            else:
                stack.pop()
                if group is not None and group.first.kind is Kind.OPAQUE:
                    yield Region((), group.first.node)
                elif group is not None:
                    yield Region(tuple(self.part(m.items) for m in bundles.get(group, [group])))


def inputs(part: Part) -> list[Value]:
    """Return the values a part reads from memory."""
    made = {v for n in part.nodes for v in n.outputs}
    return list(dict.fromkeys(v for n in part.nodes for v in n.inputs if v not in made))


def _buffers(part: Part) -> int:
    """Return how many buffers a part takes at most."""
    return len(part.outputs) + len(inputs(part))


def _costly(item: Item) -> bool:
    """Whether an element of it is better kept than computed again."""
    return item.node is not None and (item.node.prim.name in EXPENSIVE or item.kind is Kind.INDEX)


def _sums_rows(item: Item) -> bool:
    """Whether it reduces the first axis of what it reads."""
    if item.node is None or item.kind is not Kind.REDUCE:
        return False
    shape = item.node.inputs[0].type.shape
    return any(math.prod(shape[: axis + 1]) == shape[axis] > 1 for axis in item.node.params["axes"])


def _reads_all(node: Node) -> bool:
    """Whether a node reads all it is given, whatever the index."""
    return (node.prim.kind is Kind.MAP and node.prim.name != "where") or len(node.inputs) == 1


def _dtype(group: Group) -> str:
    return group.first.outputs[0].type.name


def _walked(group: Group) -> set[tuple[int, ...]]:
    nodes = [i.node for i in group.reductions if i.node is not None]
    return {n.inputs[0].type.shape for n in nodes} or {group.first.outputs[0].type.shape}


def _alike(a: Group, b: Group, columns: bool) -> bool:
    """Whether two groups are maps of one shape, or reduce the same axes of arrays of one shape.

    With ``columns``, also whether one reduces the rows of an array of the other's shape.
    """
    first, second = a.reductions, b.reductions
    if columns and any(i.node is not None and by_columns(i.node) for i in first + second):
        return bool(_walked(a) & _walked(b))
    if not first and not second:
        return a.first.outputs[0].type.shape == b.first.outputs[0].type.shape
    if not first or not second or Kind.CONTRACT in a.kinds | b.kinds:
        return False
    m, n = first[0].node, second[0].node
    assert m is not None
    assert n is not None
    same = m.inputs[0].type.shape == n.inputs[0].type.shape
    return same and m.params.get("axes") == n.params.get("axes") and m.prim.kind is n.prim.kind
