"""What later kernels need of earlier ones: kept in memory, or computed again where it is needed.

Fusion stores every value that another kernel reads. Where the values it is made of are in memory anyway, or are smaller
(the sum of a row instead of the row divided by it), the reader can compute it again. For a graph that holds a function
and its derivative this is the choice between keeping and recomputing residuals; it is made for all values between
kernels alike, and for all devices: recompute what is cheaper by ``kernelforge.ir.cost``.

T. Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016), for the idea. A function under ``checkpoint`` is
out of this choice: barriers keep a second copy of it for the backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kernelforge.ir.cost import LAUNCH_BYTES, OPERATIONS_PER_BYTE, operations
from kernelforge.ir.demand import REDUCTIONS, Part, Refused
from kernelforge.ir.fuse import Fusion, Region, Residual, inputs
from kernelforge.ir.graph import Graph, Kind, Node, Value
from kernelforge.ir.lower import buffers_of, lower

AGAIN = frozenset({Kind.MAP, Kind.VIEW})
"""What may be computed again: one element of it needs few elements of what it reads."""

LONG = 160
"""Nodes of a kernel from which on none is added to it: each way to do so is lowered to be weighed."""


ONE_BY_ONE = 16
"""How many times as long an operation takes in a scatter, which goes one element after the other."""


def plan_residuals(graph: Graph, fusion: Fusion, max_args: int = 64) -> Fusion:
    """Decide for each value that one kernel stores and another one reads; report the decisions."""
    planner = _Planner(graph, fusion, max_args)
    planner.run()
    return Fusion(tuple(planner.regions()), fusion.decisions, tuple(planner.found))


class _Way(NamedTuple):
    """Computing values again: parts in place of others, by number, None where a kernel is needed no more.

    ``gain`` is in bytes; ``stored`` are results of reductions that are kept in place of the values.
    """

    values: tuple[Value, ...]
    parts: dict[int, Part | None]
    stored: tuple[Value, ...]
    fewer: int
    work: int
    gain: float
    reason: str


class _Planner:
    def __init__(self, graph: Graph, fusion: Fusion, max_args: int) -> None:
        self.before = fusion.regions
        self.max_args = max_args
        self.order = {n: k for k, n in enumerate(graph.nodes)}
        self.parts: dict[int, Part] = {}
        self.members: list[list[int]] = []
        for region in fusion.regions:
            first = len(self.parts)
            self.parts.update(enumerate(region.parts, first))
            self.members.append(list(range(first, len(self.parts))))
        whole = [v for r in fusion.regions if r.opaque for v in r.opaque.inputs]
        self.wanted = {*graph.outputs, *whole}
        self.works: dict[Part, int] = {}
        self.reading: dict[Value, set[int]] = {}
        for k, part in self.parts.items():
            for v in inputs(part):
                self.reading.setdefault(v, set()).add(k)
        self.found: list[Residual] = []

    def run(self) -> None:
        for k in list(self.parts):
            self.shrink(k)
            self.decide(k)

    def decide(self, k: int) -> None:
        """Let readers of part ``k`` compute values again, the one that gains most first.

        What others would gain is weighed again when it is the most, and before all are found to gain nothing.
        """
        old: dict[tuple[Value, ...], _Way] = {}  # weighed before something was accepted
        new: dict[tuple[Value, ...], _Way] = {}
        kept: dict[Value, str] = {}
        while k in self.parts:
            between = [v for v in self.parts[k].outputs if v not in self.wanted]
            kept = {v: self.fixed(k, v) for v in between}
            free = [v for v in between if not kept[v]]
            chosen: list[tuple[Value, ...]] = [(v,) for v in free]
            if len(free) > 1 and not old:
                chosen = [*dict.fromkeys((tuple(free), *self.together(k, free))), *chosen]
            new.update((c, self.weigh(k, c)) for c in chosen if c not in old and c not in new)
            best = max(((old | new)[c] for c in chosen), key=lambda way: way.gain, default=None)
            if best is not None and best.values in old:
                old = {} if best.gain <= 0 else {c: way for c, way in old.items() if c != best.values}
            elif best is None or (best.gain <= 0 and not old):
                kept.update((v, new[v,].reason) for v in free)
                break
            elif best.gain <= 0:
                old = {}
            else:
                self.accept(k, best)
                old, new, kept = old | new, {}, {}
        for value, reason in kept.items():
            self.found.append(Residual((value,), True, self.traffic(value), 0, reason))

    def together(self, k: int, free: Sequence[Value]) -> Iterator[tuple[Value, ...]]:
        """Yield values that are all made of the same results of reductions: one of them alone saves no bytes."""
        found: dict[tuple[Value, ...], list[Value]] = {}
        for v in free:
            found.setdefault(self.change(k, (v,))[1], []).append(v)
        for stored, values in found.items():
            if stored and len(values) > 1:
                yield tuple(values)

    def shrink(self, k: int) -> None:
        """Let those who read values larger than all that the part reads make them again, row by row."""
        part = self.parts[k]
        given = sum(v.type.nbytes for v in inputs(part))
        large = [v for v in part.outputs if v not in self.wanted and v.type.nbytes > given]
        if not large or not part.chains or not any(n.prim.kind is Kind.CONTRACT for n in part.nodes):
            return
        # by blocks of columns, a walk of another kernel cannot reduce rows before it reads them
        kinds = frozenset(Kind) - ({Kind.REDUCE} if part.chains == "blocks" else set())
        parts, stored = self.change(k, large, kinds)
        old, new = [self.parts[q] for q in parts], [p for p in parts.values() if p is not None]
        try:
            if max(map(self.buffers, self.launches(parts)), default=0) > self.max_args:
                return
            work = sum(map(self.work, new)) - sum(map(self.work, old))
        except Refused:
            return
        fewer = sum(map(_traffic, old)) - sum(map(_traffic, new))
        self.accept(k, _Way(tuple(large), parts, stored, fewer, work, 0, ""))

    def readers(self, value: Value) -> list[int]:
        return sorted(self.reading.get(value, ()))

    def fixed(self, k: int, value: Value) -> str:
        """Say why a value cannot be computed again, or nothing."""
        node = next(n for n in self.parts[k].nodes if value in n.outputs)
        if node.prim.kind not in AGAIN:
            return f"it is made by {node.prim.name}, which reads many elements for one"
        readers = [self.parts[q] for q in self.readers(value)]
        products = [p for p in readers if any(n.prim.kind is Kind.CONTRACT for n in p.nodes)]
        if any(_contracted(p, value) for p in products):
            return "a contraction would compute it again for each use of an element"
        traffic = self.traffic(value)
        if products and traffic < LAUNCH_BYTES:
            return f"after a contraction, {traffic:,} bytes are not worth the longer kernel"
        return ""

    def traffic(self, value: Value) -> int:
        """Return the bytes of writing a value and of all its readings."""
        return value.type.nbytes * (1 + len(self.readers(value)))

    def weigh(self, k: int, values: Sequence[Value]) -> _Way:
        """Say what it would gain to compute values again, in bytes, and why not."""
        parts, stored = self.change(k, values)
        old = [self.parts[q] for q in parts]
        new = [p for p in parts.values() if p is not None]
        launches = LAUNCH_BYTES * sum(all(parts.get(q, self) is None for q in m) for m in self.members if m)
        fewer = sum(map(_traffic, old)) - sum(map(_traffic, new))
        if fewer + launches <= 0:
            more = f"{-fewer:,} more bytes" if fewer else "as many bytes"
            return _Way(tuple(values), parts, stored, fewer, 0, 0, f"recomputing it would move {more}")
        if max((len(p.nodes) for p in new), default=0) > LONG:
            return _Way(
                tuple(values), parts, stored, fewer, 0, 0, f"one that recomputes it would have over {LONG} steps"
            )
        try:
            needed = max(map(self.buffers, self.launches(parts)), default=0)
            work = sum(map(self.work, new)) - sum(map(self.work, old))
        except Refused as refusal:
            return _Way(
                tuple(values), parts, stored, fewer, 0, 0, f"one that recomputes it cannot be one kernel: {refusal}"
            )
        if needed > self.max_args:
            reason = f"a kernel of the device takes {self.max_args} buffers at most"
            return _Way(tuple(values), parts, stored, fewer, work, 0, reason)
        reason = f"recomputing it takes {work:,} operations to save {fewer:,} bytes"
        return _Way(tuple(values), parts, stored, fewer, work, fewer + launches - work / OPERATIONS_PER_BYTE, reason)

    def change(
        self, k: int, values: Sequence[Value], kinds: frozenset[Kind] = AGAIN
    ) -> tuple[dict[int, Part | None], tuple[Value, ...]]:
        """Let every reader of ``values`` of part ``k`` compute them, storing instead what nodes of other ``kinds`` make
        for that.
        """
        part = self.parts[k]
        maker = {v: n for n in part.nodes for v in n.outputs}
        stored = [v for v in part.outputs if v not in values]
        extra: dict[Value, None] = {}
        parts: dict[int, Part | None] = {}
        for q in dict.fromkeys(q for v in values for q in self.readers(v)):
            reader = self.parts[q]
            again: set[Node] = set()
            stack = [v for v in values if v in inputs(reader)]
            while stack:
                value = stack.pop()
                node = maker.get(value)
                if node is None or value in stored or node in again:
                    continue
                if node.prim.kind in kinds:
                    again.add(node)
                    stack.extend(node.inputs)
                else:
                    extra[value] = None
            parts[q] = dataclasses.replace(
                reader, nodes=tuple(sorted({*reader.nodes, *again}, key=self.order.__getitem__))
            )
        outputs = (*stored, *extra)
        parts[k] = (
            dataclasses.replace(part, nodes=tuple(_live(part.nodes, outputs)), outputs=outputs) if outputs else None
        )
        return parts, tuple(extra)

    def accept(self, k: int, way: _Way) -> None:
        for q, part in way.parts.items():
            old = self.parts.pop(q)
            for v in inputs(old):
                self.reading[v].discard(q)
            if part is not None:
                self.parts[q] = part
                for v in inputs(part):
                    self.reading.setdefault(v, set()).add(q)
        home = next((v for q, p in way.parts.items() if q == k and p for v in p.outputs), None)
        self.found.append(Residual(way.values, False, way.fewer, way.work, "", way.stored, home))

    def launches(self, parts: dict[int, Part | None]) -> Iterator[list[Part]]:
        """Yield the parts of each launch that changes where ``parts`` stand in place of others."""
        for members in self.members:
            if not parts.keys().isdisjoint(members):
                yield [p for k in members if (p := parts.get(k, self.parts.get(k))) is not None]

    def buffers(self, launch: Sequence[Part]) -> int:
        """Return how many buffers the parts of a launch take together.

        Raises:
            Refused: when one of them cannot be one nest.
        """
        return sum(buffers_of(p) for p in launch if _elements(p))

    def work(self, part: Part) -> int:
        found = self.works.get(part)
        if found is None:
            found = operations(lower(part).body)[1] if _elements(part) else 0
            scattered = any(n.prim.kind is Kind.SCATTER for n in part.nodes)
            found = self.works[part] = found * (ONE_BY_ONE if scattered else 1)
        return found

    def regions(self) -> Iterator[Region]:
        for region, members in zip(self.before, self.members, strict=True):
            left = tuple(self.parts[k] for k in members if k in self.parts)
            if region.opaque or left:
                yield region if region.parts == left else Region(left)


def _contracted(part: Part, value: Value) -> bool:
    """Whether a contraction of a part reads a value, or what is made of it, once for each use of an element.

    One may also be made before it is read, and rows of a chain hold what they make of other results.
    """
    reducing = [n for n in part.nodes if n.prim.kind in REDUCTIONS]
    chain = bool(part.chains) and len(reducing) > 1
    made, held = {value}, set[Value]()
    for node in part.nodes:
        if chain and (node in reducing or not held.isdisjoint(node.inputs)):
            held.update(node.outputs)
        if not made.isdisjoint(node.inputs):
            if node.prim.kind is Kind.CONTRACT and any(v in made and v not in held for v in node.inputs):
                return True
            made.update(node.outputs)
    return False


def _traffic(part: Part) -> int:
    """Return the bytes a part moves: each value once."""
    return sum(v.type.nbytes for v in (*inputs(part), *part.outputs))


def _elements(part: Part) -> bool:
    """Whether there is an element to compute; else the part has no nest."""
    return any(v.type.size for v in part.outputs)


def _live(nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Node]:
    """Return the nodes that ``outputs`` need, in their order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(v in needed for v in node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]
