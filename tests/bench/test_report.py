"""A run on the terminal: tables that fit lines of any width, without columns that stay empty."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from kernelforge.bench.report import notes, show
from kernelforge.bench.schema import Run, Stats, bandwidth_of, peak_of
from tests.bench.test_page import OURS, row, run, timed


def printed(found: Run, width: int) -> list[str]:
    out = Console(file=io.StringIO(), width=width)
    show(found, out)
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


PEERS = ("torch-compile", "onnxruntime", "jax", "tinygrad")
LONG = row(
    timed(OURS, 1.23e-3), *(timed(p, 2.34e-3 + k) for k, p in enumerate(PEERS)), workload="softmax_4096x1024.bwd"
)


@pytest.mark.parametrize(("width", "places"), [(80, 1), (100, 1), (150, 3)])
def test_tables_fit_the_width(width: int, places: int) -> None:
    lines = printed(run(LONG), width)
    assert max(map(len, lines)) <= width
    (line,) = [text for text in lines if text.startswith(LONG.workload)]
    assert sum(p in line for p in PEERS) == places
    assert line.split()[-1] == "1.90"
    assert ("(0.43)" in line) == (width > 80)  # the limit over the best peer's time


def test_no_column_is_empty() -> None:
    for found in (run(row(timed(OURS, 1e-3), limit=None)), run(row(timed(OURS, 1e-3)))):
        text = "\n".join(printed(found, 80))
        assert "best" not in text
        assert ("limit" in text.replace("machine's limit", "")) == (found.rows[0].limit is not None)


def test_rates_have_their_units() -> None:
    stats = Stats.of([50e9, 60e9, 70e9])
    found = dataclasses.replace(run(LONG), limits={bandwidth_of("cpu"): stats, peak_of("cpu", "f32"): stats})
    assert notes(found)[-2:] == [
        "memory bandwidth of cpu: 60 GB/s (quartiles 55 to 65)",
        "f32 multiply-adds of cpu: 60 GFLOP/s (quartiles 55 to 65)",
    ]
