"""What ``kernelforge demo`` does and prints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import kernelforge as kf
from kernelforge.backends.registry import available
from kernelforge.demo import model
from kernelforge.demo.digits import Digits, load

BATCH, HIDDEN, EPOCHS = 128, 256, 40
PARTS = ("params", "mean", "square")


def train(device: str = "cpu", epochs: int = EPOCHS, console: Console | None = None) -> float:
    """Train on ``device``; print what happened, and return the accuracy on the digits held out."""
    out = console or Console()
    training, held_out = load()
    batch = Digits(training.images[:BATCH], training.labels[:BATCH])
    state = model.init(HIDDEN)
    with kf.default_device(device) as name:
        out.print(
            f"[bold]A classifier of hand-written digits[/], trained on [bold]{name}[/]: plain NumPy under @kf.jit"
        )
        started = time.perf_counter()
        lowered = model.step.lower(state, *batch)
        compiled = time.perf_counter() - started
        trained = _train(state, training, epochs, out)
        guess = np.asarray(model.predict(trained["params"], held_out.images))
        accuracy = float((guess == held_out.labels).mean())
        out.print(f"{accuracy:.1%} of {len(held_out.labels)} digits it never saw are recognised\n")
        out.print(_kernels(lowered, compiled))
        ours, theirs = _seconds(lambda: model.step(state, *batch), lambda: model.numpy_step(state, *batch))
    out.print(f"one step: {1e6 * ours:.0f} µs; NumPy, its gradient written by hand: {1e6 * theirs:.0f} µs\n")
    out.print(_devices(state, batch))
    return accuracy


def _batches(training: Digits, epochs: int) -> Iterator[Digits]:
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        order = rng.permutation(len(training.labels))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[first : first + BATCH]
            yield Digits(training.images[rows], training.labels[rows])


def _train(state: model.Tree, training: Digits, epochs: int, out: Console) -> model.Tree:
    steps = epochs * (len(training.labels) // BATCH)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("training", total=steps, loss="")
        for number, batch in enumerate(_batches(training, epochs), 1):
            state, value = model.step(state, *batch)
            if number % 20 == 0 or number == steps:
                progress.update(task, completed=number, loss=f"loss {float(value):.4f}")
    return state


def _kernels(lowered: Any, compiled: float) -> Table:
    table = Table(title=f"One step of training is {len(lowered.kernels)} kernels, compiled in {compiled:.2f} s")
    table.add_column("kernel")
    table.add_column("bytes moved", justify="right")
    table.add_column("operations", justify="right")
    for kernel in lowered.kernels:
        table.add_row(kernel.name, f"{kernel.bytes:,}", f"{kernel.flops:,}")
    return table


def _seconds(*runs: Callable[[], Any], repeats: int = 100) -> list[float]:
    """Return the least time of a call of each, its result waited for; they take turns, as other work comes and goes."""
    least = [math.inf] * len(runs)
    for _ in range(repeats):
        for k, run in enumerate(runs):
            started = time.perf_counter()
            np.asarray(run()[1])
            least[k] = min(least[k], time.perf_counter() - started)
    return least


def _devices(state: model.Tree, batch: Digits) -> Table:
    """Run the same step everywhere; compare all numbers of the new state with NumPy in f64."""
    wide: model.Tree = {"count": np.float64(state["count"])}
    wide |= {part: {n: p.astype(np.float64) for n, p in state[part].items()} for part in PARTS}
    expected, _ = model.numpy_step(wide, batch.images.astype(np.float64), batch.labels)
    table = Table(title="The same step on every device, against NumPy in float64")
    table.add_column("device")
    table.add_column("largest difference", justify="right")
    for name, found in available().items():
        if isinstance(found, str):
            table.add_row(name, "not here: 'kernelforge devices' says why")
            continue
        with kf.default_device(name):
            made, _ = model.step(state, *batch)
            apart = [np.abs(np.asarray(made[part][n]) - p).max() for part in PARTS for n, p in expected[part].items()]
            table.add_row(name, f"{max(apart):.1e}")
    return table
