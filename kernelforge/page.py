"""Pages that stand alone: one HTML file each, without network or server, light and dark, phone and laptop.

``page`` is the skeleton, the others make pieces of it. What is ``Html`` already goes in as it is; all else is escaped.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import Template

HUES = 10
"""Colours that tell series and kernels apart: ``hue(k)`` for k of any size; from HUES on they repeat."""


_SHAPES = frozenset({"circle", "line", "path", "rect"})
"""Elements of SVG that are written shorter when there is nothing inside."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(x: object) -> Html:
    """Make HTML of anything: ``Html`` is left as it is."""
    return x if isinstance(x, Html) else Html(html.escape(str(x), quote=True))


def join(pieces: Iterable[object]) -> Html:
    """Put pieces after each other, those that are not ``Html`` escaped."""
    return Html("".join(escape(p) for p in pieces))


def tag(name: str, *inside: object, **attributes: object) -> Html:
    """Make an element; ``class_`` is written class, ``stroke_width`` is stroke-width; None leaves an attribute out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _SHAPES and not inside:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{join(inside)}</{name}>")


def hue(k: int) -> str:
    """Return the colour of the k-th series, readable on light and dark paper."""
    return f"var(--hue{k % HUES})"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], words: int = 1, caption: object = "") -> Html:
    """Make a table whose first ``words`` columns are text and the others figures; wide ones scroll by themselves."""

    def line(cells: Sequence[object], kind: str, **first: object) -> Html:
        return tag(
            "tr",
            *(
                tag(kind if k else "th", c, class_=None if k < words else "figure", **({} if k else first))
                for k, c in enumerate(cells)
            ),
        )

    body = join(line(row, "td", scope="row") for row in rows)
    top = tag("caption", caption) if caption else ""
    made = tag("table", top, tag("thead", line(head, "th", scope="col")), tag("tbody", body))
    return tag("div", made, class_="wide", tabindex="0", role="region", aria_label=str(caption) or "table")


def tabs(name: str, panes: Sequence[tuple[object, object]]) -> Html:
    """Show one of several panes, chosen by radio buttons; ``name`` is unique on the page. One pane has no buttons."""
    if len(panes) == 1:
        return tag("div", panes[0][1])
    made = []
    for k, (label, pane) in enumerate(panes):
        button = (
            f'<input type="radio" name="{html.escape(name)}" id="{html.escape(name)}-{k}"{"" if k else " checked"}>'
        )
        made += [Html(button), tag("label", label, for_=f"{name}-{k}"), tag("div", pane, class_="pane")]
    return tag("div", *made, class_="tabs")


def code(text: str) -> Html:
    """Show a listing, which scrolls by itself."""
    return tag("pre", tag("code", text), tabindex="0")


def details(summary: object, *inside: object) -> Html:
    """Hide something until it is asked for."""
    return tag("details", tag("summary", summary), *inside)


def svg(width: float, height: float, label: str, *inside: object) -> Html:
    """Make a picture of this many units, as wide as the page allows and no wider than that; ``label`` says it aloud."""
    style = f"max-width:{width:.0f}px"
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", tag("title", label), *inside, viewBox=box, role="img", style=style)


def decades(low: float, high: float) -> Iterator[tuple[float, bool]]:
    """Yield the ticks of a logarithmic axis, each with whether it is a power of ten."""
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for step in (1, 2, 5):
            tick = step * 10.0**exponent
            if low <= tick <= high:
                yield tick, step == 1


@dataclasses.dataclass(frozen=True, slots=True)
class LogPlot:
    """A plane with two logarithmic axes, in a picture of this many units.

    Attributes:
        xs: least and greatest abscissa, powers of ten.
        ys: the same of the ordinates.
    """

    width: float
    height: float
    xs: tuple[float, float]
    ys: tuple[float, float]
    left: float = 62.0
    right: float = 14.0
    top: float = 14.0
    bottom: float = 42.0

    def x(self, value: float) -> float:
        """Return where an abscissa is in the picture."""
        low, high = self.xs
        return self.left + (self.width - self.left - self.right) * math.log(value / low) / math.log(high / low)

    def y(self, value: float) -> float:
        """Return where an ordinate is in the picture."""
        low, high = self.ys
        share = math.log(value / low) / math.log(high / low)
        return self.height - self.bottom - (self.height - self.top - self.bottom) * share

    def axes(self, across: str, up: str, write: Callable[[float], str]) -> Iterator[Html]:
        """Draw a grid at the powers of ten, ``write`` making words of an ordinate, and say what the axes are."""
        floor, end = self.height - self.bottom, self.width - self.right
        for tick in (t for t, whole in decades(*self.xs) if whole):
            at = f"{self.x(tick):.1f}"
            yield tag("line", x1=at, x2=at, y1=self.top, y2=floor, stroke="var(--line)")
            yield tag("text", f"{tick:g}", x=at, y=floor + 16, text_anchor="middle", class_="faint")
        for tick in (t for t, whole in decades(*self.ys) if whole):
            at = f"{self.y(tick):.1f}"
            yield tag("line", x1=self.left, x2=end, y1=at, y2=at, stroke="var(--line)")
            yield tag("text", write(tick), x=self.left - 6, y=self.y(tick) + 4, text_anchor="end", class_="faint")
        middle = self.height / 2
        yield tag("text", across, x=(self.left + end) / 2, y=self.height - 6, text_anchor="middle", class_="faint")
        turned = f"rotate(-90 12 {middle:.0f})"
        yield tag("text", up, x=12, y=middle, text_anchor="middle", transform=turned, class_="faint")

    def roof(self, bandwidth: float, rate: float) -> Html:
        """Draw the limits that ordinates a second have: ``bandwidth`` abscissas a second, then ``rate``."""
        (low, high), (bottom, _), knee = self.xs, self.ys, rate / bandwidth
        corners = [(start := max(low, bottom / bandwidth), start * bandwidth), (knee, rate), (high, rate)]
        path = "L".join(f"{self.x(i):.1f} {self.y(r):.1f}" for i, r in corners)
        return tag("path", d=f"M{path}", fill="none", stroke="var(--ink)", stroke_width=1.6)


def around(low: float, high: float) -> tuple[float, float]:
    """Return the powers of ten around two numbers."""
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def page(title: str, *body: object, style: str = "", script: str = "") -> str:
    """Make the whole file; ``style`` and ``script`` are its own CSS and JavaScript, which no text may come into."""
    end = tag("script", Html(script)) if script else ""
    return _PAGE.substitute(title=escape(title), body=join([*body, end]), style=_STYLE + style)


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

_LIGHT = ("0f6fc6", "c2410c", "15803d", "9333ea", "b45309", "0e7490", "be185d", "4d7c0f", "4338ca", "6b7280")
_DARK = ("6cb6ff", "fb923c", "4ade80", "c084fc", "fbbf24", "22d3ee", "f472b6", "a3e635", "a5b4fc", "9ca3af")


def _hues(colours: Sequence[str]) -> str:
    return "".join(f"--hue{k}:#{c};" for k, c in enumerate(colours))


_STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--raised:#f6f7f9;--ink:#1b1f24;--faint:#57606a;--line:#d5dae0;"
    "--shade:#0003;"
    + _hues(_LIGHT)
    + "}@media(prefers-color-scheme:dark){:root{--paper:#14171b;--raised:#1d2126;--ink:#e6e9ec;--faint:#9aa4af;"
    + "--line:#353b43;--shade:#0009;"
    + _hues(_DARK)
    + """}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.2rem 0 .6rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.4rem 0 .6rem}
h3{font-size:1.05rem;margin:1.6rem 0 .4rem;overflow-wrap:anywhere}
p,li{max-width:46rem}
p{margin:.5rem 0}
ul{padding-left:1.2rem;margin:.4rem 0}
.faint{color:var(--faint)}
.card{border:1px solid var(--line);border-left:.35rem solid var(--hue,var(--line));border-radius:.5rem;
padding:.3rem 1rem .9rem;margin:1rem 0;background:var(--raised)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0;padding:0}
.figures div{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .8rem;background:var(--raised)}
.figures dt{color:var(--faint);font-size:.85rem}
.figures dd{margin:0;font-size:1.3rem;font-variant-numeric:tabular-nums}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem;align-items:start}
.pair>*{min-width:0;margin:0}
figure{margin:1rem 0}
figcaption{color:var(--faint);font-size:.9rem;margin-bottom:.3rem}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--faint);padding:.2rem 0}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{font-weight:600}
.figure{text-align:right;white-space:nowrap}
pre{overflow:auto;max-height:30rem;margin:.4rem 0;padding:.7rem;border:1px solid var(--line);border-radius:.4rem;
background:var(--paper)}
code,pre{font:.84rem/1.45 ui-monospace,monospace}
p code,li code{overflow-wrap:anywhere}
td code{white-space:pre}
.wide>svg{min-width:30rem}
details{margin:.5rem 0}
summary{cursor:pointer;color:var(--hue0)}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}
svg .faint{fill:var(--faint)}
.scroll{overflow:auto;max-height:44rem;border:1px solid var(--line);border-radius:.5rem;
background:linear-gradient(var(--paper) 40%,transparent) top/100% 3rem no-repeat local,
linear-gradient(transparent,var(--paper) 60%) bottom/100% 3rem no-repeat local,
linear-gradient(var(--shade),transparent) top/100% 1.2rem no-repeat scroll,
linear-gradient(transparent,var(--shade)) bottom/100% 1.2rem no-repeat scroll,var(--paper)}
.tabs{display:flex;flex-wrap:wrap;gap:.2rem .3rem;align-items:center}
.tabs>input{position:absolute;opacity:0;pointer-events:none}
.tabs>label{order:0;padding:.15rem .7rem;border:1px solid var(--line);border-radius:1rem;cursor:pointer;font-size:.9rem}
.tabs>input:checked+label{background:var(--ink);color:var(--paper)}
.tabs>input:focus-visible+label{outline:2px solid var(--hue0);outline-offset:2px}
.tabs>.pane{order:1;display:none;width:100%;min-width:0}
.tabs>input:checked+label+.pane{display:block}
a{color:var(--hue0)}
a,summary,label,.wide,pre{outline-offset:2px}
@media print{details>*{display:block}.tabs>.pane{display:block}}
"""
)
