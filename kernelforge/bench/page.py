"""Saved runs as a page of one file: what was measured, bars, a roofline, history, all figures."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence

from kernelforge import page
from kernelforge.bench import charts
from kernelforge.bench.charts import Moment, Point, bars, line, our, roofline
from kernelforge.bench.report import TITLES, notes
from kernelforge.bench.schema import OURS, Candidate, Row, Run, Sample, bandwidth_of, is_ours, peak_of
from kernelforge.page import Html, details, join, table, tag


def write(runs: Sequence[Run]) -> str:
    """Make the page of the newest of some runs, at least one, and of the history that all of them are."""
    ordered = sorted(runs, key=lambda r: r.started)
    return page.page("kernelforge bench", *_body(ordered[-1], ordered), style=charts.STYLE + _STYLE, script=_SCRIPT)


def _body(run: Run, runs: Sequence[Run]) -> Iterator[Html]:
    yield tag("h1", "kernelforge bench")
    yield from _summary(run)
    parts = {
        "bars": ("Fractions of the limit", [*_charts(run)]),
        "roofline": ("Roofline", [*_rooflines(run)]),
        "history": ("History", [*_history(run, runs)]),
        "all": ("All figures", [*_tables(run)]),
    }
    links = [tag("a", title, href=f"#{name}") for name, (title, _) in parts.items()]
    yield tag("nav", *(join([link, " "]) for link in links), aria_label="parts of this page")
    for name, (title, inside) in parts.items():
        yield tag("section", tag("h2", title), *inside, id=name)


def _summary(run: Run) -> Iterator[Html]:
    machine = run.machine
    where = f"{machine.cpu}, {machine.cores} threads, {machine.memory / 2**30:.0f} GiB, {machine.system}"
    when = run.started[:16].replace("T", " ")
    yield tag(
        "p", " · ".join(filter(None, [_versions_of_ours(run), f"{when} UTC", where, *_devices(run)])), class_="faint"
    )
    yield tag("p", _METHOD)
    if run.config.get("quick"):
        yield tag("p", tag("strong", "A quick run:"), " few rounds, figures to look at, not to quote.")
    if not run.complete:
        yield tag("p", tag("strong", "The run was interrupted:"), " this is what was measured before.")
    yield _figures(run)
    yield tag("ul", *_verdicts(run))
    rows = [(c.name, _versions(c), c.python, c.missing or "took part") for c in run.candidates]
    yield details("Versions", table(["candidate", "versions", "Python", ""], rows, words=4, caption="Who took part"))
    said = notes(run)
    if said:
        yield details("What is missing, and the machine's limits", tag("ul", *(tag("li", line) for line in said)))


_METHOD = (
    "Each result was compared with NumPy's in float64 before it was timed; then all candidates took turns in the same "
    "rounds, each on the same inputs, threads and allocator. Times are medians, given as fractions of the machine's "
    "limit: loops, measured in those rounds, that only move the workload's bytes or only do its flops."
)


def _devices(run: Run) -> Iterator[str]:
    for name, what in run.machine.devices.items():
        if name != "cpu":
            yield f"{name}: {what}"


def _version(candidate: Candidate) -> str:
    number = candidate.versions.get(OURS, "")
    return candidate.name if number in candidate.name else f"{candidate.name} {number}"


def _versions_of_ours(run: Run) -> str:
    return "; ".join(_version(c) for c in run.candidates if is_ours(c.name))


def _versions(candidate: Candidate) -> str:
    return ", ".join(f"{name} {number}" for name, number in candidate.versions.items())


def _figures(run: Run) -> Html:
    pairs = [(r, s) for r in run.rows if r.measure == "time" and (s := our(r)) and s.stats]
    fractions = [f for r, s in pairs if (f := r.fraction(s)) is not None]
    ratios = [found for r, s in pairs if (found := r.ratio(s)) is not None]
    bad = sum(s.status in {"wrong", "failed"} for r in run.rows for s in r.samples)
    entries = [
        ("workloads timed", len({r.workload for r in run.rows if r.measure == "time"})),
        ("median of the limit", f"{statistics.median(fractions):.2f}" if fractions else "–"),
        ("ahead of every peer", f"{sum(r > 1 for r in ratios)} of {len(ratios)}" if ratios else "–"),
        ("wrong or failed", bad),
    ]
    return tag("dl", *(tag("div", tag("dt", n), tag("dd", v)) for n, v in entries), class_="figures")


def _verdicts(run: Run) -> Iterator[Html]:
    """Say what is below its peers, beyond the quartiles and within, and what failed its check."""
    below: list[Html] = []
    close: list[Html] = []
    bad: list[Html] = []
    for row in run.rows:
        at = f"#{_anchor(row)}"
        bad += [
            join([tag("a", _label(row, run), href=at), f" ({s.candidate}: {s.status})"])
            for s in row.samples
            if s.status in {"wrong", "failed"}
        ]
        ours, best = our(row), row.best_peer()
        ratio = row.ratio(ours) if ours else None
        if ratio is not None and ratio < 1 and ours and ours.stats and best and best.stats:
            line = join([tag("a", _label(row, run), href=at), f" ({ratio:.2f}, {best.candidate})"])
            (below if ours.stats.low > best.stats.high else close).append(line)
    if below:
        yield tag("li", "Slower, or larger, than the best peer (best ÷ kernelforge): ", *_listed(below))
    if close:
        yield tag("li", "Behind it, but within the quartiles of both: ", *_listed(close))
    if bad:
        yield tag("li", "Wrong (and not timed) or failed: ", *_listed(bad))
    if not (below or close or bad):
        yield tag("li", "Nothing is below its peers, and nothing failed its check.")


def _listed(pieces: Sequence[Html]) -> Iterator[Html]:
    for k, piece in enumerate(pieces):
        yield join([", " if k else "", piece])


def _anchor(row: Row) -> str:
    """Name the chart of a row: one of all devices."""
    return re.sub(r"[^\w.-]+", "-", f"{row.measure}-{row.workload}")


def _label(row: Row, run: Run) -> str:
    """Name a row among all rows of a run."""
    several = len({r.device for r in run.rows}) > 1
    return row.workload + f" on {row.device}" * several + f", {row.measure}" * (row.measure != "time")


def _charts(run: Run) -> Iterator[Html]:
    yield tag("p", _HOW_TO_READ, class_="faint")
    for measure, title in TITLES.items():
        rows = [r for r in run.rows if r.measure == measure]
        for group in dict.fromkeys(r.group for r in rows) if measure == "time" else [None] * bool(rows):
            inside = [r for r in rows if group in {None, r.group}]
            yield tag("h3", group or title)
            names = dict.fromkeys(r.workload for r in inside)
            yield tag("div", *(_card([r for r in inside if r.workload == n]) for n in names), class_="cards")


_HOW_TO_READ = (
    "Longer is better. The line at 1.0 is the limit, or the best where a row has none; whiskers are quartiles, "
    "the figures fraction and median. kernelforge is bold; arrows pass the end of the scale. Hover for more."
)


def _card(rows: Sequence[Row]) -> Html:
    first = rows[0]
    title = tag("span", first.title, class_="faint") if first.title != first.workload else ""
    head = tag("figcaption", tag("strong", first.workload), " ", title)
    inside = [piece for r in rows for piece in ([tag("small", r.device)] if len(rows) > 1 else []) + [bars(r)]]
    return tag("figure", head, *inside, id=_anchor(first))


def _rooflines(run: Run) -> Iterator[Html]:
    yield tag("p", _ROOFLINE, class_="faint")
    for device in dict.fromkeys(r.device for r in run.rows):
        points = [
            Point(r, s, r.flops / r.nbytes, r.flops / s.stats.median)
            for r in run.rows
            if (r.device, r.measure) == (device, "time") and r.flops and r.nbytes
            for s in r.samples
            if s.stats and s.stats.median
        ]
        bandwidth = run.limits.get(bandwidth_of(device))
        dtypes = dict.fromkeys(r.dtype for r in run.rows)
        peaks = {t: run.limits[peak_of(device, t)].median for t in dtypes if peak_of(device, t) in run.limits}
        if not (points and bandwidth and peaks):
            lacks = [*["products"] * (not points), *["bandwidth"] * (not bandwidth), *["peak"] * (not peaks)]
            yield tag("p", f"No roofline of {device}: this run measured no {' and no '.join(lacks)}.")
            continue
        numbers = {r.key: n for n, r in enumerate(dict.fromkeys(p.row for p in points), 1)}
        ours = {p.row.key: p.rate / 1e9 for p in reversed(points) if is_ours(p.sample.candidate)}
        key = [
            tag("li", r.workload, tag("small", f" {ours[r.key]:.4g} GFLOP/s" if r.key in ours else " not measured"))
            for r in dict.fromkeys(p.row for p in points)
        ]
        picture = roofline(device, points, numbers, bandwidth.median, peaks)
        caption = tag("figcaption", f"{device}: kernelforge's dots by number")
        yield tag("figure", caption, tag("div", picture, tag("ol", *key, class_="key"), class_="pair"))


_ROOFLINE = (
    "Workloads with products only. A candidate can be no faster than memory (the slope) and arithmetic (the flat tops, "
    "by dtype) allow: both were measured in the run. Diamonds are kernelforge, circles its peers."
)


def _history(run: Run, runs: Sequence[Run]) -> Iterator[Html]:
    def machine(r: Run) -> tuple[str, int, str]:
        return r.machine.cpu, r.machine.cores, r.machine.system

    same = [r for r in runs if machine(r) == machine(run)]
    away = f" {len(runs) - len(same)} of other machines are left out." if len(same) < len(runs) else ""
    if len(same) < 2:
        yield tag("p", f"One run of this machine: a line takes two.{away}")
        return
    yield tag("p", f"{len(same)} runs, the last on the right.{away} {_LINES}", class_="faint")
    found = [{row.key: row for row in r.rows} for r in same]
    made = []
    for row in run.rows:
        moments = [_moment(kept.get(row.key)) for kept in found]
        if row.measure == "time" and any(v is not None for m in moments for v in m):
            head = tag("figcaption", tag("strong", _label(row, run)), f" {_said(moments[-1])}")
            made.append(tag("figure", head, line(_label(row, run), moments)))
    yield tag("div", *made, class_="cards many")
    lines = [tag("li", f"{r.started[:10]}, {_versions_of_ours(r)}") for r in same]
    yield details("The runs", tag("ol", *lines, id="runs"))


_LINES = "Solid: kernelforge's fraction of the limit. Dashed: its ratio to the best peer, above 1 when faster."


def _moment(row: Row | None) -> Moment:
    sample = our(row) if row else None
    if row and sample and sample.stats and sample.stats.median:
        return row.fraction(sample), row.ratio(sample)
    return None, None


def _said(moment: Moment) -> str:
    fraction, ratio = moment
    words = [] if fraction is None else [f"{fraction:.2f} of the limit"]
    words += [] if ratio is None else [f"{ratio:.2f} × the best peer"]
    return ", ".join(words) or "not measured"


def _tables(run: Run) -> Iterator[Html]:
    yield tag("p", _FIGURES, class_="faint")
    for unit, what, scale in (("s", "Times in ms", 1e3), ("B", "Peak memory in MiB", 2.0**-20)):
        rows = [r for r in run.rows if r.unit == unit]
        if rows:
            names = list(dict.fromkeys(s.candidate for r in rows for s in r.samples))
            head = ["workload", "limit", "best ÷ ours", *names]
            yield table(head, [[_label(r, run), *_line(r, names, scale)] for r in rows], caption=what)
    if not run.rows:
        yield tag("p", "The run has no rows.")


_FIGURES = (
    "Median, below it quartiles and fraction of the limit; the best peer over kernelforge. The heads of columns sort."
)


def _line(row: Row, names: Sequence[str], scale: float) -> list[object]:
    samples = {s.candidate: s for s in row.samples}
    ours = our(row)
    ratio = row.ratio(ours) if ours else None
    limit = _number(row.limit.median * scale) if row.limit else ""
    cells = [_cell(row, samples.get(name), scale) for name in names]
    return [limit, "" if ratio is None else f"{ratio:.2f}", *cells]


def _cell(row: Row, s: Sample | None, scale: float) -> object:
    if s is None or s.stats is None:
        return s.status if s else ""
    low, middle, high = (_number(v * scale) for v in (s.stats.low, s.stats.median, s.stats.high))
    fraction = row.fraction(s)
    return join([middle, tag("small", f"{low}–{high}" + ("" if fraction is None else f" · {fraction:.2f}"))])


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


_SCRIPT = """
for (const table of document.querySelectorAll('#all table')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, k) => {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const up = head.ariaSort !== 'ascending', sign = up ? 1 : -1, figures = head.className === 'figure';
      heads.forEach(other => { other.ariaSort = null; });
      head.ariaSort = up ? 'ascending' : 'descending';
      const value = row => figures ? parseFloat(row.cells[k].textContent) : row.cells[k].textContent;
      const order = (a, b) => figures ? isNaN(a) - isNaN(b) || sign * (a - b) || 0 : sign * a.localeCompare(b);
      body.append(...[...body.rows].sort((a, b) => order(value(a), value(b))));
    };
  });
}
const runs = [...document.querySelectorAll('#runs li')].map(item => item.textContent);
const make = name => document.createElementNS('http://www.w3.org/2000/svg', name);
for (const chart of document.querySelectorAll('.line')) {
  const moments = chart.dataset.moments.split(' '), step = 234 / (moments.length - 1);
  moments.forEach((moment, k) => {
    const [fraction, ratio] = moment.split(','), what = [runs[k]], spot = make('rect'), title = make('title');
    if (fraction) what.push(fraction + ' of the limit');
    if (ratio) what.push(ratio + ' × the best peer');
    title.textContent = what.join(', ');
    spot.setAttribute('x', 6 + step * (k - 0.5));
    spot.setAttribute('width', step);
    spot.setAttribute('height', 72);
    spot.append(title);
    chart.append(spot);
  });
}
"""

_STYLE = """
nav{margin:1.2rem 0}
nav a{display:inline-block;padding:.3rem .8rem .3rem 0}
small{color:var(--faint);font-size:.8rem}
td small{display:block}
h3::first-letter{text-transform:uppercase}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:.4rem 1.6rem}
.cards.many{grid-template-columns:repeat(auto-fill,minmax(min(100%,13rem),1fr))}
.cards>*{min-width:0;margin:.4rem 0;overflow-wrap:anywhere}
figcaption strong{color:var(--ink)}
:target{outline:2px solid var(--hue0);outline-offset:4px;border-radius:.2rem}
th button{all:unset;cursor:pointer;font-weight:600;white-space:nowrap}
th button:focus-visible{outline:2px solid var(--hue0)}
th button::after{content:" ↕";color:var(--faint)}
[aria-sort=ascending] button::after{content:" ↑"}
[aria-sort=descending] button::after{content:" ↓"}
#all tbody th{position:sticky;left:0;background:var(--paper)}
"""
