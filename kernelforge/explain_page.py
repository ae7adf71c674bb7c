"""An explanation as a page of one file: the graph before and after fusion, a roofline, kernels and sources."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from kernelforge import page
from kernelforge.explain import Explanation, Facts
from kernelforge.ir.graph import Kind, Node, Value
from kernelforge.ir.text import print_graph, print_kernel
from kernelforge.page import Html, code, details, hue, join, table, tabs, tag
from kernelforge.picture import Dot, draw
from kernelforge.words import assembly_of, count, duration, label, reported, size

MOST_DOTS = 240
"""A graph of more nodes is not drawn before fusion: nobody could read it."""


def write(found: Explanation, beside: Sequence[Explanation]) -> str:
    """Make the page; see ``Explanation.html``."""
    return page.page(f"{found.name}, explained", *_body(found, beside))


def frame(found: Explanation) -> str:
    """Wrap the page for a notebook, whose own styles must not meet those of the page."""
    text = html.escape(found.html(), quote=True)
    return (
        f'<iframe srcdoc="{text}" title="{html.escape(found.name)}" style="width:100%;height:40rem;border:0"></iframe>'
    )


def _body(found: Explanation, beside: Sequence[Explanation]) -> Iterator[Html]:
    head, *rest = found.summary()
    yield tag("h1", found.name)
    yield tag("p", tag("code", head), class_="faint")
    yield _figures(found)
    yield tag("ul", *(tag("li", line) for line in rest))
    yield tag("h2", "The graph")
    yield _pictures(found)
    refused, kept = found.refusals(), found.residuals()
    if refused:
        yield tag("h2", "Why not fewer kernels")
        yield tag("ul", *(tag("li", line) for line in refused))
    if kept:
        yield tag("h2", found.heading.rstrip(":"))
        yield tag("ul", *(tag("li", line) for line in kept))
    yield tag("h2", "Kernels")
    yield _overview(found)
    if found.bandwidth and found.rate and found.kernels:
        yield tag("figure", tag("figcaption", _ROOFLINE), tag("div", _roofline(found), class_="wide"))
    else:
        yield tag("p", "No roofline: the device does not tell how fast it is. Measure, on a device that is there.")
    for k in found.kernels:
        yield _kernel(k, found, beside)
    yield tag("h2", "Graph as text")
    yield details("Show every operation", code(print_graph(found.plan.graph)))


_ROOFLINE = (
    "Roofline: a kernel can be no faster than memory (the slope) and arithmetic (the flat top) allow; "
    "the fewer bytes for an operation, the further right."
)


def _figures(found: Explanation) -> Html:
    entries = [
        ("kernels", len(found.kernels)),
        ("bytes moved", size(found.moved)),
        ("least possible", size(found.least)),
    ]
    entries.append(("operations", _short(found.flops)))
    if found.seconds is not None:
        entries.append(("measured" if found.measured else "predicted", duration(found.seconds)))
    return tag("dl", *(tag("div", tag("dt", n), tag("dd", v)) for n, v in entries), class_="figures")


def _short(number: float) -> str:
    """Write a number of operations for people."""
    for unit, step in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= step:
            return f"{number / step:.3g} {unit}"
    return f"{number:.0f}"


def _pictures(found: Explanation) -> Html:
    before, after = _before(found), _after(found)
    panes = [
        tag("figure", tag("figcaption", caption), tag("div", picture, class_="scroll", tabindex="0"))
        for caption, picture in (
            (
                "Before fusion: operations, in the colour of their kernel; views, which cost nothing, are dashed.",
                before,
            ),
            ("After fusion: kernels and what they hand on through memory.", after),
        )
    ]
    return tag("div", *panes, class_="pair")


def _before(found: Explanation) -> Html:
    graph = found.plan.graph
    if len(graph.nodes) + len(graph.inputs) > MOST_DOTS:
        return tag("p", f"{count(len(graph.nodes), 'operation')}: too many to draw; the text below lists them.")
    home: dict[Node, list[int]] = {}
    for k in found.kernels:
        for node in k.kernel.region.nodes:
            home.setdefault(node, []).append(k.number)
    dots = [Dot(name, str(v.type)) for name, v in zip(found.names, graph.inputs, strict=True)]
    number: dict[Value, int] = {v: k for k, v in enumerate(graph.inputs)}
    edges: list[tuple[int, int, str]] = []
    for value, _ in graph.consts:
        number[value] = len(dots)
        dots.append(Dot("constant", str(value.type)))
    for node in graph.nodes:
        if not node.inputs and node.prim.kind is Kind.MAP:
            continue  # a constant or a counter: computed where it is used
        kernels = home.get(node, [])
        where = f"kernel {' and '.join(map(str, kernels))}" if kernels else "by the plan"
        title = f"{node.prim.name} {node.outputs[0].type}, {where}" + (f"\n{node.loc}" if node.loc else "")
        view = node.prim.kind is Kind.VIEW
        colour = hue(kernels[0] - 1) if kernels and not view else None
        at = len(dots)
        number.update(dict.fromkeys(node.outputs, at))
        dots.append(Dot(node.prim.name, title, colour, view))
        used = dict.fromkeys(v for v in node.inputs if v in number)
        edges += [(number[v], at, f"{v.type}, {size(v.type.nbytes)}") for v in used]
    for n, v in enumerate(graph.outputs, 1):
        edges.append((number.get(v, 0), len(dots), str(v.type)))
        dots.append(Dot(f"result {n}", str(v.type)))
    return draw(f"the graph of {found.name} before fusion", dots, [e for e in edges if e[0] != e[1]])


def _after(found: Explanation) -> Html:
    graph = found.plan.graph
    made = {v: n for n in graph.nodes for v in n.outputs}
    read = {v for k in found.kernels for v in k.kernel.region.inputs}
    dots: list[Dot] = []
    writer: dict[Value, int] = {}
    edges: dict[tuple[int, int], list[str]] = {}
    for name, value in zip(found.names, graph.inputs, strict=True):
        if value in read:
            writer[value] = len(dots)
            dots.append(Dot(name, f"{value.type}, {size(value.type.nbytes)}"))
    first = len(dots)
    for k in found.kernels:
        text = f"{k.number}: {k.kernel.name}"
        title = f"{text}\nmoves {size(k.cost.bytes)}, {_short(k.kernel.flops)} operations"
        writer.update(dict.fromkeys(k.kernel.region.outputs, len(dots)))
        dots.append(Dot(text if len(text) < 30 else text[:28] + "…", title, hue(k.number - 1)))
    for at, k in enumerate(found.kernels, first):
        for v in k.kernel.region.inputs:
            if v in writer and writer[v] != at:
                what = size(v.type.nbytes) if writer[v] < first else f"{label(v, made)}, {size(v.type.nbytes)}"
                edges.setdefault((writer[v], at), []).append(what)
    for n, v in enumerate(graph.outputs, 1):
        if v in writer:
            edges.setdefault((writer[v], len(dots)), []).append(size(v.type.nbytes))
            dots.append(Dot(f"result {n}", f"{v.type}, {size(v.type.nbytes)}"))
    return draw(f"the kernels of {found.name}", dots, [(a, b, "\n".join(t)) for (a, b), t in edges.items()])


def _overview(found: Explanation) -> Html:
    timed = any(k.measured is not None for k in found.kernels)
    head = ["kernel", "bytes", "share", "operations", "per byte", "predicted", *(["measured", "of the limit"] * timed)]
    rows = []
    for k in found.kernels:
        name = tag("a", f"{k.number}: {k.kernel.name}", href=f"#kernel-{k.number}")
        row: list[object] = [
            name,
            size(k.cost.bytes),
            f"{k.runs * k.cost.bytes / max(found.moved, 1):.0%}",
            _short(k.kernel.flops),
        ]
        row += [f"{k.kernel.flops / max(k.cost.bytes, 1):.2f}", "" if k.predicted is None else duration(k.predicted)]
        if timed and k.measured is not None:
            row += [duration(k.measured), f"{(k.predicted or 0) / k.measured:.0%}"]
        rows.append(row)
    note = "; more than all of the limit: its data stay in caches" if timed else ""
    return table(head, rows, caption=f"Each kernel: what it moves, computes and takes{note}")


def _kernel(k: Facts, found: Explanation, beside: Sequence[Explanation]) -> Html:
    reads = [tag("li", f"reads {', '.join(k.reads) or 'nothing'}"), tag("li", f"writes {', '.join(k.writes)}")]
    if k.scratch:
        reads.append(tag("li", f"partial results between its phases: {size(k.scratch)}"))
    reads += [tag("li", f"{'' if 'phase' in words else 'runs in '}{words}") for words in k.schedule]
    reads += [tag("li", f"runs {k.within}")] * bool(k.within)
    reads += [tag("li", line) for line in reported(k.kernel)]
    lines = table(
        ["line", "source", "operations"], [(p, tag("code", t), n) for p, t, n in k.lines], words=3, caption="Comes from"
    )
    return tag(
        "section",
        tag("h3", f"{k.number}: {k.kernel.name}", id=f"kernel-{k.number}"),
        tag("p", ", ".join(_said(k)), class_="faint"),
        tag("ul", *reads),
        lines if k.lines else "",
        details("Sources", tabs(f"source-{k.number}", list(_sources(k, found, beside)))),
        _assembly(k, found, beside),
        class_="card",
        style=f"--hue:{hue(k.number - 1)}",
    )


def _said(k: Facts) -> Iterator[str]:
    if k.role:
        yield f"{k.role} pass"
    yield f"moves {size(k.cost.bytes)}"
    yield f"{_short(k.kernel.flops)} operations"
    if k.predicted is not None:
        yield f"predicted {duration(k.predicted)}, bound by {k.bound}"
    if k.measured is not None:
        yield f"measured {duration(k.measured)}"


def _twins(k: Facts, beside: Sequence[Explanation]) -> Iterator[tuple[str, Facts]]:
    """Yield the same kernel for other devices and targets."""
    for other in beside:
        for twin in other.kernels:
            if twin.number == k.number and twin.kernel.name == k.kernel.name:
                yield other.plan.backend.name, twin


def _sources(k: Facts, found: Explanation, beside: Sequence[Explanation]) -> Iterator[tuple[str, Html]]:
    yield found.plan.backend.name, code(k.kernel.source)
    for device, twin in _twins(k, beside):
        said = tag("ul", *(tag("li", line) for line in reported(twin.kernel)))
        yield device, join([said, code(twin.kernel.source)])
    yield "scheduled IR", code(print_kernel(k.kernel.ir))
    yield "as defined", code(print_kernel(k.kernel.naive))


def _assembly(k: Facts, found: Explanation, beside: Sequence[Explanation]) -> Html:
    every = [(found.plan.backend.name, k), *_twins(k, beside)]
    panes = [(device, code(assembly_of(f.kernel))) for device, f in every if assembly_of(f.kernel)]
    return details("Assembly", tabs(f"assembly-{k.number}", panes)) if panes else Html("")


def _roofline(found: Explanation) -> Html:
    bandwidth, rate = found.bandwidth, found.rate
    points = [
        (k, k.kernel.flops / k.cost.bytes, k.kernel.flops / k.seconds)
        for k in found.kernels
        if k.kernel.flops and k.cost.bytes and k.seconds
    ]
    knee = rate / bandwidth
    xs = page.around(min([0.1, *(i for _, i, _ in points)]), max([knee * 4, *(i * 1.5 for _, i, _ in points)]))
    ys = page.around(min([xs[0] * bandwidth, *(r / 1.5 for _, _, r in points)]), rate * 1.2)
    plot = page.LogPlot(640, 340, xs, ys)
    x, y = plot.x, plot.y
    made = [*plot.axes("operations a byte", "operations a second", _short), plot.roof(bandwidth, rate)]
    written: list[tuple[float, float]] = []
    for k, i, r in sorted(points, key=lambda point: point[2]):
        at = x(i) + 10, y(r) + 4
        while any(abs(at[0] - a) < 16 and abs(at[1] - b) < 12 for a, b in written):
            at = at[0] + 16, at[1]
        written.append(at)
        text = f"{k.number}: {k.kernel.name}, {i:.2f} operations a byte, {_short(r)} a second"
        circle = tag("circle", cx=x(i), cy=y(r), r=7, fill=hue(k.number - 1), stroke="var(--paper)")
        number = tag("text", str(k.number), x=at[0], y=at[1])
        made.append(tag("g", tag("title", text), circle, number))
    return page.svg(plot.width, plot.height, f"roofline of the kernels of {found.name}", *made)
