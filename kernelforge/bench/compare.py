"""Two runs, or two candidates of one run, side by side, and whether the second is slower."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from kernelforge.bench.report import amount
from kernelforge.bench.schema import Row, Run, Sample, Stats, is_ours, read
from kernelforge.errors import CommandFailed


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """One of the two: a candidate in a run."""

    run: Run
    candidate: str

    def sample(self, row: Row) -> Sample | None:
        return next((s for s in row.samples if s.candidate == self.candidate), None)


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A row in both.

    Attributes:
        ratio: the new time over the old one, above 1 when slower; None when it could not be measured any more.
        regressed: whether it is beyond the threshold and beyond the noise of both.
        problem: what was not measured any more, in words.
    """

    row: Row
    old: Stats
    new: Stats | None
    ratio: float | None
    regressed: bool
    problem: str = ""


def side(text: str) -> Side:
    """Read ``file.json`` or ``file.json#candidate``; without one it is the first that is kernelforge.

    Raises:
        CommandFailed: when the file cannot be read or lacks the candidate.
    """
    path, _, name = text.partition("#")
    run = read(path)
    names = [c.name for c in run.candidates]
    chosen = name or next((n for n in names if is_ours(n)), "")
    if chosen not in names:
        raise CommandFailed(problem=f"{path} has no candidate {chosen!r}", advice=f"it has {', '.join(names)}")
    return Side(run, chosen)


def changes(old: Side, new: Side, threshold: float) -> Iterator[Change]:
    """Compare all rows that the old side was measured in and the new run has.

    Times of two runs are compared as multiples of the machine's limit in the same run, where both have one: machines
    and their neighbours differ from run to run. Noise is the distance of the quartiles, of the limits' too.
    """
    together = old.run == new.run
    later = {r.key: r for r in new.run.rows}
    for row in old.run.rows:
        before, other = old.sample(row), later.get(row.key)
        if before is None or before.stats is None or other is None:
            continue
        after = new.sample(other)
        if after is None or after.stats is None:
            if after is not None and after.status in {"wrong", "failed"}:
                yield Change(row, before.stats, None, None, True, f"{after.status}: {after.reason}")
            continue
        a, b = before.stats, after.stats
        if row.limit and other.limit and not together:
            a, b = _relative(a, row.limit), _relative(b, other.limit)
        ratio = b.median / a.median
        yield Change(row, before.stats, after.stats, ratio, ratio > threshold and b.low > a.high)


def _relative(stats: Stats, limit: Stats) -> Stats:
    """Divide by the limit; both quartiles move by the limit's."""
    return Stats(stats.median / limit.median, stats.low / limit.high, stats.high / limit.low, 0.0, stats.count)


def compare(old_text: str, new_text: str, threshold: float, console: Console) -> bool:
    """Print the table; return whether anything regressed.

    Raises:
        CommandFailed: when a side cannot be read, or they have no row in common.
    """
    old, new = side(old_text), side(new_text)
    found = list(changes(old, new, threshold))
    if not found:
        advice = "compare runs with workloads, devices and measures in common"
        raise CommandFailed(problem=f"{old_text} and {new_text} have nothing in common", advice=advice)
    table = Table(title=f"{new.candidate} in {new_text.partition('#')[0]} against {old.candidate}")
    for name in ("workload", "device", "measure"):
        table.add_column(name)
    for name in ("old", "new", "new ÷ old", ""):
        table.add_column(name, justify="right")
    for c in found:
        unit = c.row.unit
        verdict = "[red]slower[/]" if c.regressed else "within noise" if c.ratio and c.ratio > threshold else ""
        table.add_row(
            *c.row.key,
            amount(c.old.median, unit),
            amount(c.new.median, unit) if c.new else "",
            f"{c.ratio:.2f}" if c.ratio else "",
            c.problem or verdict,
        )
    console.print(table)
    worse = [c for c in found if c.regressed]
    console.print(f"{len(worse)} of {len(found)} rows are slower by more than {threshold - 1:.0%} and beyond the noise")
    return bool(worse)
