"""A run on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernelforge.bench.schema import Measure, Row, Run, Sample, Stats, is_ours

TITLES: dict[Measure, str] = {
    "time": "Time of a call: median (fraction of the machine's limit)",
    "overhead": "Time of a call on 16 elements",
    "cold": "First call in a fresh process, caches empty; import apart",
    "warm": "First call in a fresh process, caches filled; import apart",
    "import": "Import, beyond NumPy's",
    "memory": "Peak memory of a call beyond its inputs",
}


PLACES = ("best peer", "second", "third")


SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}


ROUNDED = 1000 / 1024
"""What is less of a unit is written in the smaller one: 1000 MiB would need a fourth figure."""


def amount(value: float, unit: str) -> str:
    """Write seconds or bytes with three figures and a prefix."""
    scales = SCALES[unit]
    scale, name = next((s for s in scales if value >= ROUNDED * s[0]), scales[-1])
    return f"{value / scale:.3g} {name}"


def show(run: Run, console: Console) -> None:
    """Print a table for each measure and device, then who is missing and why."""
    for device in dict.fromkeys(r.device for r in run.rows):
        for measure, title in TITLES.items():
            rows = [r for r in run.rows if (r.device, r.measure) == (device, measure)]
            if rows:
                console.print(_fitting(rows, f"{title} · {device}", console))
                console.print()
    for line in notes(run):
        console.print(f"[dim]{escape(line)}[/]", highlight=False)


def _fitting(rows: Sequence[Row], title: str, console: Console) -> Table:
    """Make the table with as many peers as there are and lines have room for; at last without their fractions."""
    found = min(max(len(_peers(r)) for r in rows), len(PLACES))
    for places, fractions in [*((k, True) for k in range(found, 0, -1)), (min(found, 1), False)]:
        table = _table(rows, title, places, fractions)
        if console.measure(table, options=console.options.update(width=sys.maxsize)).maximum <= console.width:
            break
    return table


def _table(rows: Sequence[Row], title: str, places: int, fractions: bool) -> Table:
    """Make a table with this many peers to a row, with or without their fractions of the limit."""
    ours = list(dict.fromkeys(s.candidate for r in rows for s in r.samples if is_ours(s.candidate)))
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("workload", no_wrap=True)
    limit = ["limit"] * any(r.limit for r in rows)
    for name in (*limit, *ours, *PLACES[:places], *["best ÷\nours"] * bool(places)):
        table.add_column(name, justify="right")
    for r in rows:
        samples = {s.candidate: s for s in r.samples}
        cells = [f"{s.candidate} {_cell(r, s, fractions)}" for s in _peers(r)[:places]]
        table.add_row(
            r.workload if r.measure != "import" else "import",  # which a process makes once, for whatever comes
            *[amount(r.limit.median, r.unit) if r.limit else ""] * len(limit),
            *(_cell(r, samples.get(name)) for name in ours),
            *cells,
            *[""] * (places - len(cells)),
            *[_ratio(r)] * bool(places),
        )
    return table


def _peers(row: Row) -> list[Sample]:
    """Return the peers that were measured, the fastest first."""
    return sorted((s for s in row.samples if s.stats and not is_ours(s.candidate)), key=_median)


def _median(sample: Sample) -> float:
    return sample.stats.median if sample.stats else 0.0


def _cell(row: Row, sample: Sample | None, fractions: bool = True) -> str:
    if sample is None or sample.stats is None:
        return "" if sample is None or sample.status == "skipped" else f"[red]{sample.status}[/]"
    fraction = row.fraction(sample)
    text = amount(sample.stats.median, row.unit) + (f" ({fraction:.2f})" if fractions and fraction is not None else "")
    fastest = min((s.stats.median for s in row.samples if s.stats), default=0.0)
    return f"[bold]{text}[/]" if sample.stats.median == fastest else text


def _ratio(row: Row) -> str:
    found = next((row.ratio(s) for s in row.samples if is_ours(s.candidate)), None)
    return "" if found is None else f"[{'green' if found >= 1 else 'yellow'}]{found:.2f}[/]"


def notes(run: Run) -> list[str]:
    """Say who is missing, what was skipped, wrong or failed, and what the limits were."""
    out = [f"{c.name} took no part: {c.missing}" for c in run.candidates if c.missing]
    gone = {c.name for c in run.candidates if c.missing}
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in run.rows:
        for s in row.samples:
            if s.status != "measured" and s.candidate not in gone:
                key = (s.candidate, s.status, s.reason.replace(row.workload, "it"))
                label = row.workload if row.measure == "time" else f"{row.workload} ({row.measure})"
                reasons.setdefault(key, []).append(label)
    for (name, status, reason), where in reasons.items():
        if reason.startswith("nobody wrote"):
            out.append(f"{name}: nobody wrote {', '.join(dict.fromkeys(where))}")
        else:
            out.append(f"{name}: {status} on {', '.join(dict.fromkeys(where))}: {reason}")
    out += [rate(name, stats) for name, stats in run.limits.items()]
    if not run.complete:
        out.append("the run was interrupted; this is what was measured before")
    return out


def rate(name: str, stats: Stats) -> str:
    """Write a limit of a run, whose name ends with what is counted, with its quartiles."""
    what, _, counted = name.rpartition(", ")
    unit = {"bytes": "GB/s", "flops": "GFLOP/s"}.get(counted, f"10⁹ {counted}/s")
    return f"{what}: {stats.median / 1e9:.3g} {unit} (quartiles {stats.low / 1e9:.3g} to {stats.high / 1e9:.3g})"
