"""The groups that fusion makes of a graph's nodes, and the order they must run in.

Groups only grow. Two of them become one by moving the smaller into the larger, which keeps all that fusion asks of a
group up to date: n joins take O(n log n) steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kernelforge.ir.cost import weight
from kernelforge.ir.demand import REDUCTIONS
from kernelforge.ir.graph import Kind, Node, Value


class Item:
    """A node that computes, or a graph output that only moves elements (``node`` is None).

    Attributes:
        escapes: whether a result of the graph is among its outputs.
        given: the values of no item that it reads.
        through: the items that it reads at another index than the own one, and in how many rows it repeats each.
        whole: whether it reads all it is given, whatever the index: what chooses by the index may not.
    """

    __slots__ = (
        "escapes", "given", "group", "kind", "node", "order", "outputs", "readers", "reads", "through", "whole",
    )  # fmt: skip

    def __init__(self, node: Node | None, outputs: tuple[Value, ...], order: int, escapes: bool = False) -> None:
        self.node = node
        self.outputs = outputs
        self.order = order
        self.escapes = escapes
        self.given: set[Value] = set()
        self.whole = True
        self.reads: dict[Item, None] = {}
        self.readers: dict[Item, None] = {}
        self.through: dict[Item, int] = {}
        self.group: Group
        # a view of several values chooses among them, so it counts as a map
        self.kind = node.prim.kind if node and node.prim.kind is not Kind.VIEW else Kind.MAP

    def stored(self, groups: Collection[Group]) -> bool:
        """Whether it is still needed in memory where these groups are one kernel."""
        return self.escapes or any(r.group not in groups for r in self.readers)

    def reduced(self) -> bool:
        """Whether it is made from a reduction of its group, or is one."""
        seen: set[Item] = {self}
        stack: list[Item] = [self]
        while stack:
            item = stack.pop()
            if item.kind in REDUCTIONS:
                return True
            new = [i for i in item.reads if i.group is self.group and i not in seen]
            seen.update(new)
            stack += new
        return False


class Group:
    """Items of one kernel.

    Attributes:
        items: in no order; ``first`` and ``last`` are those that stand first and last in the graph.
        shape: set where they are maps of one shape that read each other index by index.
        given, taken: the values of no item, and the items of other groups, that its items read.
        left: its items that are stored.
        whole: whether all its items are.
        ahead: the groups that read this one; ``behind``, those it reads.
        through: what its items read at another index than their own.
        most: elements of the largest value that its items make; ``work``, operations that all of them take as maps.
        state: another object after each change.
    """

    __slots__ = (
        "ahead", "behind", "first", "given", "items", "kinds", "last", "left", "most", "reductions", "shape", "state",
        "taken", "through", "whole", "work",
    )  # fmt: skip

    def __init__(self, item: Item, shape: tuple[int, ...] | None) -> None:
        """Start from an item whose ``reads`` are known and have groups."""
        self.items = [item]
        self.first = self.last = item
        self.shape = shape
        self.given = set(item.given)
        self.taken = set(item.reads)
        self.left = {item}
        self.whole = item.whole
        self.kinds = {item.kind}
        self.reductions = [item] if item.kind in REDUCTIONS else []
        self.through = set(item.through)
        self.most = max((v.type.size for v in item.outputs), default=0)
        self.work = weight(item.node.prim.name) * self.most if item.node is not None else 0
        self.ahead: dict[Group, None] = {}
        self.behind = {i.group: None for i in item.reads}
        for group in self.behind:
            group.ahead[self] = None
        self.state = object()

    def buffers_with(self, other: Group) -> int:
        """Return how many buffers a kernel of both takes at most."""
        small, large = sorted((self, other), key=lambda g: len(g.items))
        given = len(large.given) + sum(v not in large.given for v in small.given)
        inside = [i for i in small.taken if i.group is large]
        taken = len(large.taken | small.taken) - len(inside) - sum(i in large.taken for i in small.left)
        done = sum(not i.stored((small, large)) for i in (*small.left, *inside))
        return given + taken + len(large.left) + len(small.left) - done

    def join(self, other: Group, shape: tuple[int, ...] | None) -> None:
        """Make one group of two, which is this one or the other."""
        if len(other.items) > len(self.items):
            other.join(self, shape)
            return
        for item in other.items:
            item.group = self
        self.items += other.items
        self.first = min(self.first, other.first, key=lambda i: i.order)
        self.last = max(self.last, other.last, key=lambda i: i.order)
        self.kinds |= other.kinds
        self.reductions = sorted([*self.reductions, *other.reductions], key=lambda i: i.order)
        self.through |= other.through
        self.most = max(self.most, other.most)
        self.work += other.work
        self.whole &= other.whole
        self.given |= other.given
        self.taken |= other.taken
        self.left |= other.left
        for item in (*other.left, *other.taken):
            if item.group is self:
                self.taken.discard(item)
                if not item.stored((self,)):
                    self.left.discard(item)
        for group in other.ahead:
            del group.behind[other]
            if group is not self:
                self.ahead[group] = group.behind[self] = None
        for group in other.behind:
            del group.ahead[other]
            if group is not self:
                self.behind[group] = group.ahead[self] = None
        self.shape = shape
        self.state = object()

    def before(self) -> list[Group]:
        """Return the groups that this one reads, those with reductions first, then the latest."""
        return sorted(self.behind, key=lambda g: (bool(g.reductions), g.last.order), reverse=True)


def reaches(
    start: Iterable[Group],
    goals: Collection[Group],
    until: int | None = None,
) -> bool:
    """Whether a path leads from ``start`` to one of ``goals``; none from groups that begin after the item ``until``."""
    seen: set[Group] = set()
    stack = list(start)
    while stack:
        group = stack.pop()
        if group in goals:
            return True
        if group not in seen and (until is None or group.first.order <= until):
            seen.add(group)
            stack.extend(group.ahead)
    return False


def _in_order(groups: Iterable[Group]) -> list[Group]:
    """Sort groups such that each comes after those it reads."""
    done: set[Group] = set()
    out: list[Group] = []
    stack = [(g, False) for g in groups]
    while stack:
        group, ready = stack.pop()
        if ready:
            out.append(group)
        elif group not in done:
            done.add(group)
            stack.append((group, True))
            stack.extend((g, False) for g in group.behind if g not in done)
    return out


class Order:
    """Which groups need which others' results, also through launches that groups share."""

    def __init__(self, groups: Iterable[Group]) -> None:
        found = _in_order(groups)
        self._bit = {g: 1 << k for k, g in enumerate(found)}
        self._after: dict[Group, int] = {}  # the bits of all that need a group, directly or not
        for group in reversed(found):
            needing = 0
            for g in group.ahead:
                needing |= self._bit[g] | self._after[g]
            self._after[group] = needing

    def independent(self, a: Group, b: Group) -> bool:
        return not (self._after[a] & self._bit[b] or self._after[b] & self._bit[a])

    def together(self, a: Group, b: Group) -> None:
        """Let two groups that do not depend on each other, and what shares a launch with them, share one."""
        both = self._bit[a] | self._bit[b]
        needing = self._after[a] | self._after[b]
        for group, after in self._after.items():
            if after & both:
                self._after[group] = after | both | needing
            if self._bit[group] & both:
                self._bit[group], self._after[group] = both, needing
