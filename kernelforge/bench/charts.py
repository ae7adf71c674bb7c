"""Charts of a run: a workload's bars, a device's roofline, a workload's history. Each is the text of one SVG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from kernelforge import page
from kernelforge.bench.report import amount
from kernelforge.bench.schema import Row, Sample, is_ours
from kernelforge.page import Html, tag

FURTHEST = 2.0
"""Where bars end: what is served from caches may pass the limit by far, and would leave nothing of the others."""
PHONE = 360
"""Units that the charts of one workload are wide: as wide as a phone, so that their text is never scaled down there."""
HIGHEST = 3.0
"""Where the lines of the history end."""


def our(row: Row) -> Sample | None:
    """Return the sample of kernelforge; of several versions the first that was measured."""
    found = [s for s in row.samples if is_ours(s.candidate)]
    return next((s for s in found if s.stats), found[0] if found else None)


def share(row: Row, sample: Sample) -> tuple[float, float, float]:
    """Return a sample's median between its quartiles as fractions of the limit or, where there is none, of the best.

    The more, the better.
    """
    assert sample.stats
    low, middle, high = sample.stats.low, sample.stats.median, sample.stats.high
    best = min(s.stats.median for s in row.samples if s.stats)
    fraction = row.fraction(sample) if row.limit else best / middle if middle > 0 else 1.0
    assert fraction is not None
    return fraction * (middle / high if high > 0 else 1.0), fraction, fraction * (middle / low if low > 0 else 1.0)


def bars(row: Row) -> Html:
    """Draw a row: a bar for each candidate that was not skipped, the best first."""
    timed = sorted((s for s in row.samples if s.stats), key=lambda s: s.stats.median if s.stats else 0.0)
    shown = [*timed, *(s for s in row.samples if s.status in {"wrong", "failed"})]
    if not shown:
        return tag("p", "nobody could run it", class_="faint")
    left, right, step = 108, 246, 20
    most = max((share(row, s)[2] for s in timed), default=0.0)
    top = min(max(most, 1.1), FURTHEST)

    def x(fraction: float) -> int:
        return round(left + (right - left) * min(fraction, top) / top)

    made: list[Html] = []
    for k, s in enumerate(shown):
        y = 18 + step * k
        name = tag("text", _cut(s.candidate, 16), x=0, y=y + 11)
        if s.stats is None:
            what = [tag("text", f"{s.status}: not timed", x=left + 4, y=y + 11, class_="bad")]
        else:
            middle = share(row, s)[1]
            low, end, high = (x(v) for v in share(row, s))
            tip = "l7 7l-7 7" if middle > top else "v14"
            what = [
                tag("path", d=f"M{left} {y}H{end}{tip}H{left}z"),
                tag("path", d=f"M{low} {y + 3}v8m0-4H{high}m0-4v8", class_="w"),
                tag("text", f"{middle:.2f}", x=right + 40, y=y + 11, class_="n"),
                tag("text", amount(s.stats.median, row.unit), x=PHONE, y=y + 11, class_="n"),
            ]
        made.append(tag("g", tag("title", _told(row, s)), name, *what, class_="ours" if is_ours(s.candidate) else None))
    height = 18 + step * len(shown)
    line = tag("path", d=f"M{x(1)} 14V{height - 4}", class_="mark")
    word = tag("text", "limit" if row.limit else "best", x=x(1), y=10, class_="over")
    unit = "limit" if row.limit else "best"
    label = f"{row.workload} on {row.device}, {row.measure}: fractions of the {unit}"
    return page.svg(PHONE, height, label, tag("g", *made, line, word, class_="bars"))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _told(row: Row, s: Sample) -> str:
    """Say what the bar of a sample leaves out."""
    if s.stats is None:
        return f"{s.candidate}: {s.reason}"
    low, high = amount(s.stats.low, row.unit), amount(s.stats.high, row.unit)
    said = [f"{s.candidate}: quartiles {low} to {high}, {s.stats.count} samples"]
    ratio = row.ratio(s)
    if ratio is not None and is_ours(s.candidate):
        said.append(f"{ratio:.2f} × the best peer")
    if s.error is not None:
        said.append(f"error {s.error:.0e}")
    return ", ".join(said)


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A candidate's rate on a workload: flops a byte, and a second."""

    row: Row
    sample: Sample
    intensity: float
    rate: float


def roofline(
    device: str,
    points: Sequence[Point],
    numbers: dict[tuple[str, str, str], int],
    bandwidth: float,
    peaks: dict[str, float],
) -> Html:
    """Draw rates over flops a byte under a device's roofs; ``numbers`` tells kernelforge's dots apart."""
    best = max(peaks.values())
    most = max(best / bandwidth * 4, *(p.intensity * 1.2 for p in points))
    slow = min(p.rate for p in points) / 1.5
    xs = page.around(min(best / bandwidth / 4, *(p.intensity / 1.2 for p in points)), most)
    ys = page.around(slow / 1e9, max(best, *(p.rate for p in points)) * 1.2 / 1e9)
    plot = page.LogPlot(440, 380, xs, ys, left=56, right=68)
    made = [*plot.axes("flops a byte", "GFLOP/s", lambda v: f"{v:g}")]
    made.append(plot.roof(bandwidth / 1e9, best / 1e9))
    for dtype, rate in peaks.items():
        y, knee = plot.y(rate / 1e9), plot.x(rate / bandwidth)
        end = plot.width - plot.right
        made.append(tag("path", d=f"M{knee:.0f} {y:.0f}H{end:.0f}", stroke="var(--ink)"))
        made.append(tag("text", f"{dtype} {rate / 1e9:.0f}", x=end + 5, y=f"{y + 4:.0f}"))
    mine = [p for p in points if is_ours(p.sample.candidate)]
    taken = [(plot.x(p.intensity), plot.y(p.rate / 1e9)) for p in mine]
    for p in sorted(points, key=lambda p: (is_ours(p.sample.candidate), p.rate)):
        x, y = round(plot.x(p.intensity), 1), round(plot.y(p.rate / 1e9), 1)
        told = f"{p.row.workload}, {p.sample.candidate}: {p.intensity:.3g} flops a byte, {p.rate / 1e9:.4g} GFLOP/s"
        if not is_ours(p.sample.candidate):
            made.append(tag("circle", tag("title", told), cx=x, cy=y, r=3.5, class_="peer"))
            continue
        number = numbers[p.row.key]
        place = next(at for at in _around(x, y) if all(abs(at[0] - a) > 13 or abs(at[1] - b) > 11 for a, b in taken))
        taken.append(place)
        dot = tag("path", d=f"M{x - 6} {y}l6-6 6 6-6 6z", class_="dot")
        text = tag("text", number, x=f"{place[0]:.0f}", y=f"{place[1] + 4:.0f}", class_="over")
        made.append(tag("g", tag("title", f"{number}: {told}"), dot, text))
    return page.svg(plot.width, plot.height, f"roofline of {device}", tag("g", *made, class_="roofline"))


def _around(x: float, y: float) -> Iterator[tuple[float, float]]:
    """Yield places for a dot's number, from its right outwards."""
    distance = 14.0
    while True:
        for turn in (0, 1, 7, 4, 3, 5, 2, 6):
            yield x + distance * math.cos(turn * math.pi / 4), y + distance * math.sin(turn * math.pi / 4)
        distance += 6


Moment = tuple[float | None, float | None]
"""What became of a workload in a run: fraction of the limit, and ratio to the best peer."""


def line(label: str, moments: Sequence[Moment]) -> Html:
    """Draw a workload's two figures over runs, each against 1; the page's script reads ``data-moments``."""
    width, height, end = 260, 72, 246
    both = {"fraction": [m[0] for m in moments], "ratio": [m[1] for m in moments]}
    top = min(max([1.15, *(v for values in both.values() for v in values if v is not None)]), HIGHEST)
    step = (end - 12) / max(len(moments) - 1, 1)

    def y(value: float) -> int:
        return round(height - 4 - (height - 10) * min(value, top) / top)

    made = [tag("path", d=f"M0 {y(1)}H{end}", class_="mark"), tag("path", d=f"M0 {y(0)}H{end}", class_="floor")]
    made += [tag("text", n, x=end + 4, y=y(n) + 4, class_="faint") for n in (0, 1)]
    for name, values in both.items():
        spots = [f"{6 + step * k:.0f} {y(v)}" for k, v in enumerate(values) if v is not None]
        if spots:
            made.append(tag("path", d=f"M{'L'.join(spots)}h0", class_=name))
    words = " ".join(",".join("" if v is None else f"{v:.2f}" for v in m) for m in moments)
    return page.svg(width, height, f"{label}: history", tag("g", *made, class_="line", data_moments=words))


STYLE = """
.bars path{fill:var(--faint);opacity:.7}
.bars .ours path{fill:var(--hue0);opacity:1}
.bars .ours text{font-weight:700}
.bars .ours .w,.bars .w{fill:none;stroke:var(--ink);stroke-width:1.3;opacity:1}
.bars .mark,.line .mark{fill:none;stroke:var(--ink);stroke-dasharray:3 3;opacity:.8}
.n{text-anchor:end;font-variant-numeric:tabular-nums}
.over{text-anchor:middle;font-size:11px}
svg .bad{fill:var(--hue1)}
.roofline{font-size:13px}
.roofline .peer{fill:var(--paper);stroke:var(--faint);stroke-width:1.5}
.roofline .dot{fill:var(--hue0);stroke:var(--paper)}
.roofline .over{font-size:13px;font-weight:700;paint-order:stroke;stroke:var(--paper);stroke-width:3px}
.key{columns:2 11rem;font-size:.92rem;margin:0;padding-left:2rem}
.line path{fill:none;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.line .fraction{stroke:var(--hue0)}
.line .ratio{stroke:var(--hue1);stroke-dasharray:4 4}
.line .mark{stroke:var(--faint);stroke-width:1}
.line .floor{stroke:var(--line);stroke-width:1}
.line rect{fill:transparent}
.line rect:hover{fill:var(--faint);opacity:.3}
"""
"""What the charts look like."""
