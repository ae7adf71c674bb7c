"""A run survives the way to JSON and back, and figures are read off it rightly."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kernelforge.bench.schema import Candidate, Machine, Row, Run, Sample, Stats, from_json, is_ours
from kernelforge.errors import CommandFailed


def run() -> Run:
    samples = (
        Sample("kernelforge", "measured", Stats.of([0.5, 0.25, 1.0]), 1e-7, compile_s=0.1),
        Sample("torch", "measured", Stats.of([2.0, 1.0, 4.0], [1.0, 4.0]), 1e-6),
        Sample("jax", "wrong", None, 0.5, "the result is 5e-01 from NumPy's"),
        Sample("numba", "skipped", reason="it has no gelu"),
    )
    row = Row("gelu", "maps", "gelu", "cpu", "f32", "time", 1e6, 0.0, Stats.of([0.25]), "memory", samples)
    machine = Machine("AMD EPYC", 2, 1 << 34, "Linux x86_64", {"cpu": "vector form"})
    who = tuple(Candidate(s.candidate, {s.candidate: "1"}, "3.11.7") for s in samples)
    return Run("2026-01-01T00:00:00Z", 1.5, True, machine, who, {"quick": True}, {"copy": Stats.of([1e9])}, (row,))


def test_round_trip() -> None:
    assert from_json(run().to_json()) == run()


def test_statistics() -> None:
    assert Stats.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Stats(median=3.0, low=2.0, high=4.0, least=1.0, count=5)
    assert Stats.of([7.0]) == Stats(7.0, 7.0, 7.0, 7.0, 1)
    assert Stats(2.0, 1.5, 2.5, 1.0, 9).spread == 0.5


def test_derived_figures() -> None:
    (row,) = run().rows
    ours, torch, jax, numba = row.samples
    assert row.best_peer() == torch
    assert (row.fraction(ours), row.fraction(torch), row.fraction(jax)) == (0.5, 0.125, None)
    assert (row.ratio(ours), row.ratio(torch), row.ratio(numba)) == (4.0, 1.0, None)
    assert dataclasses.replace(row, samples=(ours,)).best_peer() is None
    assert is_ours("kernelforge@HEAD~1")
    assert is_ours("kernelforge==0.1")
    assert not is_ours("torch")


def test_fractions_are_of_one_round() -> None:
    (row,) = run().rows
    (ours, *_) = row.samples
    limit = Stats.of([1.0, 2.0, 1.0, 2.0])  # the machine halves its pace from one round to the next
    limit = dataclasses.replace(limit, rounds=(1.0, 2.0, 2.0, 1.0))
    sample = dataclasses.replace(ours, stats=Stats.of([2.0, 4.0, 4.0], [2.0, 4.0, 4.0]))
    assert dataclasses.replace(row, limit=limit).fraction(sample) == 0.5
    peer = dataclasses.replace(row.samples[1], stats=Stats.of([3.0, 6.0, 6.0, 3.0, 3.0], [3.0, 6.0, 6.0, 3.0, 3.0]))
    assert dataclasses.replace(row, samples=(sample, peer)).ratio(sample) == 1.5


def test_what_is_no_run_is_refused() -> None:
    for text in ("", "[]", "{}"):
        with pytest.raises(CommandFailed, match=r"^a\.json holds no run of the bench; give one that"):
            from_json(text, "a.json")
    newer = json.dumps({**json.loads(run().to_json()), "version": 2})
    with pytest.raises(CommandFailed, match=r"a\.json has version 2 of the bench's schema, this is version 1"):
        from_json(newer, "a.json")
