"""Pictures of directed graphs in layers, top to bottom, as SVG.

Layers by the longest path, order within a layer by medians of neighbours, edges bent through the layers they cross:
K. Sugiyama, S. Tagawa and M. Toda, "Methods for Visual Understanding of Hierarchical System Structures" (1981).
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Sequence

from kernelforge.page import Html, svg, tag

SWEEPS = 6
"""How often the order of the layers is improved, down and up again."""

GAP, LAYER, HEIGHT, LETTER = 14.0, 56.0, 24.0, 6.6
"""Units between neighbours and from layer to layer, of a node's height, and of a letter."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dot:
    """A node: its text, what hovering over it says, its colour (None for plain), and whether it is drawn lightly."""

    text: str
    title: str = ""
    colour: str | None = None
    light: bool = False

    @property
    def width(self) -> float:
        return LETTER * len(self.text) + 18


def draw(label: str, dots: Sequence[Dot], edges: Sequence[tuple[int, int, str]]) -> Html:
    """Draw a graph without cycles; an edge is (from, to, what hovering over it says)."""
    layout = _Layout(dots, [(a, b) for a, b, _ in edges])
    x, layer, width = layout.x, layout.layer, layout.width
    height = LAYER * max(layer, default=0) + HEIGHT + 2 * GAP
    lines = []
    for (a, b, title), bends in zip(edges, layout.bends, strict=True):
        points = [(x[n], GAP + LAYER * layer[n] + HEIGHT / 2) for n in (a, *bends, b)]
        points[0] = (points[0][0], points[0][1] + HEIGHT / 2)
        points[-1] = (points[-1][0], points[-1][1] - HEIGHT / 2)
        light = dots[a].light or dots[b].light
        path = tag("path", tag("title", title) if title else "", d=_curve(points), opacity="0.45" if light else "0.9")
        lines.append(path)
    boxes = [_box(dot, x[n], GAP + LAYER * layer[n]) for n, dot in enumerate(dots)]
    edge_group = tag("g", *lines, fill="none", stroke="var(--faint)", stroke_width=1.3)
    return svg(width, height, label, edge_group, *boxes)


def _curve(points: Sequence[tuple[float, float]]) -> str:
    text = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        bend = (y1 - y0) / 2
        text.append(f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}")
    return "".join(text)


def _box(dot: Dot, x: float, y: float) -> Html:
    colour = dot.colour or "var(--faint)"
    fill = f"fill:color-mix(in srgb,{colour} {0 if dot.light else 24}%,var(--paper))"
    rect = tag(
        "rect",
        x=f"{x - dot.width / 2:.1f}",
        y=f"{y:.1f}",
        width=f"{dot.width:.1f}",
        height=HEIGHT,
        rx=6,
        style=f"{fill};stroke:{colour}",
        stroke_width=1 if dot.light else 1.6,
        stroke_dasharray="3 3" if dot.light else None,
    )
    text = tag(
        "text", dot.text, x=f"{x:.1f}", y=f"{y + 16:.1f}", text_anchor="middle", class_="faint" if dot.light else None
    )
    return tag("g", tag("title", dot.title) if dot.title else "", rect, text)


class _Layout:
    """Places of nodes: those given, then the bends of edges that cross layers."""

    def __init__(self, dots: Sequence[Dot], edges: Sequence[tuple[int, int]]) -> None:
        self.widths = [d.width for d in dots]
        self.layer = _layers(len(dots), edges)
        self.above: list[list[int]] = [[] for _ in dots]
        self.below: list[list[int]] = [[] for _ in dots]
        self.bends: list[list[int]] = []
        for a, b in edges:
            chain = [a, *(self._bend(k) for k in range(self.layer[a] + 1, self.layer[b])), b]
            self.bends.append(chain[1:-1])
            for upper, lower in itertools.pairwise(chain):
                self.below[upper].append(lower)
                self.above[lower].append(upper)
        self.rows: list[list[int]] = [[] for _ in range(max(self.layer, default=-1) + 1)]
        for n, k in enumerate(self.layer):
            self.rows[k].append(n)
        self._order()
        self.x = [0.0] * len(self.layer)
        self._place()

    def _bend(self, layer: int) -> int:
        self.layer.append(layer)
        self.widths.append(4.0)
        self.above.append([])
        self.below.append([])
        return len(self.layer) - 1

    def _order(self) -> None:
        place = {n: k for row in self.rows for k, n in enumerate(row)}
        for sweep in range(SWEEPS):
            down = sweep % 2 == 0
            for row in self.rows if down else self.rows[::-1]:
                near = self.above if down else self.below
                row.sort(key=lambda n: statistics.median([place[m] for m in near[n]] or [place[n]]))
                place.update((n, k) for k, n in enumerate(row))

    def _place(self) -> None:
        """Put each node at the mean of its neighbours, as far as those beside it leave room."""
        for row in self.rows:
            self._settle(row, [sum(self.widths[m] + GAP for m in row[:k]) for k, _ in enumerate(row)])
        for sweep in range(2 * SWEEPS):
            down = sweep % 2 == 0
            for row in self.rows if down else self.rows[::-1]:
                near = self.above if down else self.below
                self._settle(row, [statistics.fmean([self.x[m] for m in near[n]] or [self.x[n]]) for n in row])
        left = min((self.x[n] - self.widths[n] / 2 for n in range(len(self.x))), default=0)
        self.x = [x - left + GAP for x in self.x]
        self.width = max((self.x[n] + self.widths[n] / 2 for n in range(len(self.x))), default=0) + GAP

    def _settle(self, row: Sequence[int], wanted: Sequence[float]) -> None:
        """Move a row as near to the wanted places as order and widths allow: neighbours that collide move as one."""
        groups: list[list[float]] = []  # sum of wanted starts, number, extent
        for n, at in zip(row, wanted, strict=True):
            groups.append([at - self.widths[n] / 2, 1.0, self.widths[n] + GAP])
            while len(groups) > 1 and _start(groups[-2]) + groups[-2][2] > _start(groups[-1]):
                total, number, extent = groups.pop()
                before = groups[-1]
                before[0] += total - number * before[2]
                before[1] += number
                before[2] += extent
        self._spread(row, groups)

    def _spread(self, row: Sequence[int], groups: Sequence[Sequence[float]]) -> None:
        left = iter(row)
        for group in groups:
            at = _start(group)
            for n in _taken(left, int(group[1])):
                self.x[n] = at + self.widths[n] / 2
                at += self.widths[n] + GAP


def _start(group: Sequence[float]) -> float:
    return group[0] / group[1]


def _taken(left: Iterator[int], number: int) -> Iterator[int]:
    for _ in range(number):
        yield next(left)


def _layers(number: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Give each node the length of the longest path to it; sources stand just above their first reader."""
    layer = [0] * number
    ready = [sum(b == n for _, b in edges) for n in range(number)]
    below: list[list[int]] = [[] for _ in range(number)]
    for a, b in edges:
        below[a].append(b)
    waiting = [n for n in range(number) if not ready[n]]
    for n in waiting:
        for m in below[n]:
            layer[m] = max(layer[m], layer[n] + 1)
            ready[m] -= 1
            if not ready[m]:
                waiting.append(m)
    sources = set(range(number)) - {b for _, b in edges}
    for n in sources:
        if below[n]:
            layer[n] = min(layer[m] for m in below[n]) - 1
    return layer
