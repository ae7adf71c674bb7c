"""The page of saved runs: made of any runs, of text that cannot break it, and shown by a browser without complaint."""

from __future__ import annotations

import dataclasses
import html.parser
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelforge.bench import command
from kernelforge.bench.charts import bars, line
from kernelforge.bench.page import write
from kernelforge.bench.report import amount
from kernelforge.bench.schema import Candidate, Machine, Row, Run, Sample, Stats, bandwidth_of, peak_of
from kernelforge.bench.workloads import TABLE
from kernelforge.cli import main
from tests.browser import look, needs_chromium

OURS = "kernelforge"
PEERS = ("numpy", "numexpr", "numba", "torch", "torch-compile", "jax", "onnxruntime", "tinygrad")
NASTY = "<script>alert('&\"')</script>"


def timed(candidate: str, seconds: float) -> Sample:
    return Sample(candidate, "measured", Stats.of([0.98 * seconds, seconds, 1.03 * seconds]), 1e-7)


def row(*samples: Sample, workload: str = "gelu", limit: float | None = 1e-3, flops: float = 0.0) -> Row:
    bound = None if limit is None else ("arithmetic" if flops else "memory")
    known = None if limit is None else Stats.of([limit])
    return Row(workload, "maps", "gelu(x+bias)", "cpu", "f32", "time", 4e7, flops, known, bound, samples)


def run(*rows: Row, day: int = 1, who: Sequence[str] = (OURS, "torch")) -> Run:
    candidates = tuple(Candidate(n, {n: f"0.{day}"}, "3.11.7", "no compiler" if n == "jax" else "") for n in who)
    machine = Machine("AMD EPYC", 2, 1 << 34, "Linux x86_64", {"cpu": "vector form"})
    limits = {bandwidth_of("cpu"): Stats.of([4e10]), peak_of("cpu", "f32"): Stats.of([2e11])}
    return Run(f"2026-01-{day:02}T00:00:00+00:00", 60.0, True, machine, candidates, {}, limits, rows)


def full(day: int) -> Run:
    """Return a run of all workloads and peers, as large as a real one."""
    chance = random.Random(day)
    rows = []
    for work in TABLE.values():
        limit = max(4e7 / 4e10, work.flops / 2e11)
        samples = [timed(OURS, limit / chance.uniform(0.8, 1.0))]
        samples += [timed(p, limit / chance.uniform(0.05, 0.9)) for p in PEERS if chance.random() < 0.75]
        samples += [
            Sample(p, "skipped", reason="nobody wrote it") for p in PEERS if p not in {s.candidate for s in samples}
        ]
        made = row(*samples, workload=work.name, limit=limit, flops=work.flops)
        rows.append(dataclasses.replace(made, group=work.group, title=work.title))
    memory = dataclasses.replace(row(timed(OURS, 1e8), timed("torch", 3e9), limit=None), measure="memory")
    return run(*rows, memory, day=day, who=(OURS, *PEERS))


class Reader(html.parser.HTMLParser):
    """Counts elements, and checks that they are closed as they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.said = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links |= {given["href"] or ""} if tag == "a" else set()
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.said += data + "\n"


def read(*runs: Run) -> Reader:
    reader = Reader(write(runs))
    assert len(reader.ids) == len(set(reader.ids))
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    return reader


def test_one_run() -> None:
    said = read(run(row(timed(OURS, 1.25e-3), timed("torch", 2e-3)))).said
    assert "0.80\n1.25 ms\n" in said
    assert "0.50\n2 ms\n" in said
    assert "Nothing is below its peers, and nothing failed its check." in said
    assert "One run of this machine: a line takes two." in said
    assert "No roofline of cpu: this run measured no products." in said
    assert "kernelforge 0.1 · 2026-01-01 00:00 UTC · AMD EPYC, 2 threads, 16 GiB, Linux x86_64" in said


def test_history_is_of_one_machine_and_in_order() -> None:
    days = [run(row(timed(OURS, 1e-3 * d), timed("torch", 2e-3)), day=d) for d in (3, 1, 2)]
    other = run(row(timed(OURS, 1.0)), day=4)
    other = dataclasses.replace(
        other, started="2025-12-31T00:00:00", machine=dataclasses.replace(other.machine, cores=96)
    )
    text = write([*days, other])
    assert 'data-moments="1.00,2.00 0.50,1.00 0.33,0.67"' in text
    said = Reader(text).said
    assert "3 runs, the last on the right. 1 of other machines are left out." in said
    assert re.findall(r"2026-01-0\d, kernelforge 0.\d", said) == [f"2026-01-0{d}, kernelforge 0.{d}" for d in (1, 2, 3)]


def test_runs_with_other_rows_leave_gaps() -> None:
    text = write([run(row(timed(OURS, 1e-3)), day=1), run(day=2), run(row(timed(OURS, 2e-3)), day=3)])
    assert 'data-moments="1.00, , 0.50,"' in text
    assert "nothing" in read(run(day=1), run(day=2)).said


def test_verdicts() -> None:
    slow = row(timed(OURS, 2e-3), timed("torch", 1e-3), workload="slow")
    close = row(timed(OURS, 1.01e-3), timed("torch", 1e-3), workload="close")
    bad = row(
        timed(OURS, 1e-3),
        Sample("torch", "wrong", None, 0.5, "its result is 5e-01 from NumPy's"),
        Sample("jax", "failed", reason="it died"),
        workload="bad",
    )
    said = read(run(slow, close, bad)).said.replace("\n", "")
    assert "than the best peer (best ÷ kernelforge): slow (0.50, torch)" in said
    assert "within the quartiles of both: close (0.99, torch)" in said
    assert "failed: bad (torch: wrong), bad (jax: failed)" in said
    assert "wrong: not timed" in said
    assert "torch: its result is 5e-01 from NumPy's" in said


def test_without_peers_or_ours_or_rows() -> None:
    alone = read(run(row(timed(OURS, 1e-3)), who=(OURS,))).said
    assert "Nothing is below its peers" in alone
    assert "ahead of every peer\n–" in alone
    read(run(row(timed("torch", 1e-3)), who=("torch",)))
    read(run(row(Sample(OURS, "failed", reason="no")), row(Sample("torch", "skipped"), workload="x")))
    empty = read(dataclasses.replace(run(), candidates=(), limits={}, complete=False))
    assert "The run has no rows." in empty.said
    assert "The run was interrupted:" in empty.said


def test_no_limit_and_zero_bytes() -> None:
    free = dataclasses.replace(
        row(Sample(OURS, "measured", Stats.of([0.0])), timed("torch", 4e6), limit=None), measure="memory"
    )
    said = read(run(free)).said
    assert "1.00\n0 B\n" in said
    assert "0.00\n3.81 MiB\n" in said
    text = bars(row(timed(OURS, 2e-3), timed("torch", 1e-3), limit=None))
    assert text.index("torch") < text.index(OURS)
    assert ">best<" in text


def test_bars_end_where_the_scale_does() -> None:
    text = bars(row(timed(OURS, 1e-4), timed("torch", 1e-3)))
    assert re.findall(r'd="M108 \d+H(\d+)(l|v)', text) == [("246", "l"), ("177", "v")]
    assert ">10.00<" in text


def test_lines_keep_their_gaps_out() -> None:
    text = line("gelu", [(1.0, None), (None, None), (0.5, None)])
    assert 'class="fraction"' in text
    assert 'class="ratio"' not in text
    assert "nan" not in text


def test_roofline() -> None:
    product = row(timed(OURS, 1e-2), timed("torch", 2e-2), flops=1e9, limit=5e-3)
    said = read(run(product)).said
    assert "1: gelu, kernelforge: 25 flops a byte, 100 GFLOP/s" in said
    assert "gelu, torch: 25 flops a byte, 50 GFLOP/s" in said
    assert "f32 200" in said
    bare = dataclasses.replace(run(product), limits={})
    assert "this run measured no bandwidth and no peak" in read(bare).said


def test_nothing_breaks_out() -> None:
    nasty = dataclasses.replace(
        row(timed(OURS, 2e-3), timed(NASTY, 1e-3), Sample(f"{NASTY}2", "failed", reason=NASTY), workload=NASTY),
        title=NASTY, group=NASTY, device=NASTY, dtype=NASTY,
    )  # fmt: skip
    whole = run(nasty, day=2, who=(OURS, NASTY))
    machine = Machine(NASTY, 2, 1 << 30, NASTY, {NASTY: NASTY})
    whole = dataclasses.replace(whole, machine=machine, limits={NASTY: Stats.of([1.0])})
    reader = read(dataclasses.replace(whole, started="2026-01-01T00:00:00"), whole)
    assert reader.seen["script"] == 1
    assert reader.said.count(NASTY) > 10


def test_size() -> None:
    text = write([full(day) for day in range(1, 31)])
    assert len(text.encode()) < 300_000
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_browser_shows_it(dark: bool, tmp_path: Path) -> None:
    """Nothing sticks out, columns sort with what is missing last, and lines tell their runs."""
    probe = """(() => {
      const page = frame.contentDocument, table = page.querySelector('#all table'), said = [];
      const heads = [...table.tHead.rows[0].cells], column = heads.findIndex(h => h.textContent === 'numpy');
      for (let k = 0; k < 2; k++) {
        heads[column].querySelector('button').click();
        const values = [...table.tBodies[0].rows].map(r => parseFloat(r.cells[column].textContent));
        said.push([heads[column].ariaSort, values]);
      }
      const titles = [...page.querySelector('.line').querySelectorAll('rect title')].map(t => t.textContent);
      return [said, titles];
    })()"""
    page = write([full(day) for day in (1, 2, 3)]).replace("<details>", "<details open>")
    for said, titles in look(page, dark, tmp_path, probe):
        assert [order for order, _ in said] == ["ascending", "descending"]
        for (_, values), backwards in zip(said, (False, True), strict=True):
            known = [v for v in values if v is not None]
            assert known == sorted(known, reverse=backwards)
            assert len(known) < len(values)
            assert values[len(known) :] == [None] * (len(values) - len(known))
        assert [t[:28] for t in titles] == [f"2026-01-0{d}, kernelforge 0.{d}," for d in (1, 2, 3)]
        assert all(re.search(r"[\d.]+ of the limit, [\d.]+ × the best peer$", t) for t in titles)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "history", lambda: tmp_path / "kept")
    out = str(tmp_path / "out.html")
    assert main(["bench", "--html", out]) == 1
    assert "no run is kept in" in capsys.readouterr().err
    for day in (1, 2):
        command.save(run(row(timed(OURS, 1e-3 * day)), day=day))
    (tmp_path / "kept" / "0.json").write_text("{}")
    assert main(["bench", "--html", out]) == 0
    said = capsys.readouterr().out
    assert "0.json holds no run of the bench" in said.replace("\n", "")
    assert re.search(r"out\.html: 2 runs, [\d,]+ characters", said)
    assert "2 runs, the last on the right" in Path(out).read_text(encoding="utf-8")
    one = next((tmp_path / "kept").glob("2*.json"))
    assert main(["bench", "--html", out, "--runs", str(one)]) == 0
    assert "One run of this machine" in Path(out).read_text(encoding="utf-8")
    assert main(["bench", "--html", out, "--runs", str(tmp_path / "none.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
    assert main(["bench", "--html", str(tmp_path / "no" / "x.html")]) == 1
    assert "cannot be written: No such file" in capsys.readouterr().err


def test_amounts_have_three_figures() -> None:
    for value, unit, text in (
        (1.5, "s", "1.5 s"), (2.5e-3, "s", "2.5 ms"), (995e-9, "s", "0.995 µs"), (12e-9, "s", "12 ns"),
        (1010 * 2.0**20, "B", "0.986 GiB"), (900 * 2.0**20, "B", "900 MiB"), (64.0, "B", "64 B"), (0.0, "s", "0 ns"),
    ):  # fmt: skip
        assert amount(value, unit) == text
    assert all("e" not in amount(math.exp(k / 7), "B") for k in range(150))
