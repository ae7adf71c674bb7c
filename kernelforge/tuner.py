"""Tuning: a search for parameters of recipes that run a function's kernels faster on this very device.

Never needed: recipes take their parameters from the device's limits by formulae. Each kernel is searched by itself,
one parameter after the other (coordinate descent), on random data. The result of every candidate is compared with the
untuned one, and times are taken in turns with the fastest so far, so that what slows the machine slows both.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernelforge.backends.base import Argument, Backend, Executable
from kernelforge.compile import scheduled
from kernelforge.config import Config, current
from kernelforge.dtypes import DTYPES, epsilon, is_float
from kernelforge.errors import (
    CompilationFailed,
    DeviceFailed,
    DeviceOutOfMemory,
    IllegalSchedule,
    InvalidParameter,
    MalformedKernel,
)
from kernelforge.ir.cost import nbytes
from kernelforge.ir.interpret import evaluate
from kernelforge.ir.kernel import Arg, Kernel
from kernelforge.ir.repeat import repeats
from kernelforge.ir.schedule.choices import Choices
from kernelforge.jit import Jit, jit
from kernelforge.runtime import tuned
from kernelforge.runtime.plan import Compiled

GAIN = 0.97
"""A candidate has to take less than this part of the fastest one's time: the rest is noise."""

ROUND = 2e-3
"""Seconds that one timing takes at least: launches are queued until it does."""

TURNS, FINAL = 5, 15
"""Timings of each of two candidates; of the last two."""

Array = np.ndarray[Any, Any]
Report = Callable[[str, float], None]
"""Called with what is tried and the part of the time that is gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What became of one kernel.

    Attributes:
        name: of the kernel.
        parameters: those that replace the values of the formulae; empty where these are the fastest.
        before, after: seconds a launch, untuned and tuned, timed in turns.
        tried: candidates that ran and gave the untuned result.
        refused: those that did not, with the reason.
    """

    name: str
    parameters: Mapping[str, int]
    before: float
    after: float
    tried: int
    refused: tuple[tuple[Mapping[str, int], str], ...]

    def __str__(self) -> str:
        chosen = ", ".join(f"{k}={v}" for k, v in self.parameters.items()) or "as the formulae say"
        change = f"{self.before * 1e3:.4g} ms -> {self.after * 1e3:.4g} ms" if self.parameters else ""
        refused = f", {len(self.refused)} refused" if self.refused else ""
        return f"{self.name}: {' '.join(filter(None, [change, chosen]))} ({self.tried} tried{refused})"


@dataclasses.dataclass(frozen=True, slots=True)
class Tuning:
    """What ``tune`` found: an entry for each kernel, and the ``file`` that keeps them."""

    kernels: tuple[Found, ...]
    file: str

    def __str__(self) -> str:
        return "\n".join([*map(str, self.kernels), f"kept in {self.file}"])


def tune(fn: Callable[..., Any], *args: Any, seconds: float = 10.0, **kwargs: Any) -> Tuning:
    """Search for faster parameters of the kernels that ``fn`` is compiled to for these arguments.

    What is found is kept in the cache folder and used by whatever is compiled from then on, ``fn`` included; functions
    that were compiled before keep what they have. Results may then differ in their last bits, where a sum is made in
    another order. The kernels of a gradient are tuned with the gradient: ``kf.tune(kf.jit(kf.grad(f)), x)``. What the
    steps of a scan run is tuned where it stands by itself.

    Args:
        fn: under ``kf.jit`` or not.
        seconds: the most that the search takes, beside compiling ``fn`` as it is.

    Raises:
        InvalidParameter: when ``seconds`` is not positive.
        DamagedTuning: when the file of earlier findings cannot be read.
    """
    return search(fn, args, kwargs, seconds, lambda what, part: None)


def search(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], seconds: float, report: Report
) -> Tuning:
    """Do what ``tune`` does, and say how far it is."""
    if not seconds > 0:
        raise InvalidParameter(op="tune", name="seconds", found=seconds, expected="a number above 0")
    made = fn if isinstance(fn, Jit) else jit(fn)
    plan = made.lower(*args, **kwargs).plan
    backend, config = plan.backend, current()
    begun = time.perf_counter()
    trials = []
    for kernel in (k for k in plan.kernels if not any(map(repeats, k.ir.body))):
        report(f"timing {kernel.name}", 0.0)
        trials.append(_Trial(kernel, backend, config))
    weights = [t.once() for t in trials]
    found = []
    for k, trial in sorted(enumerate(trials), key=lambda p: -weights[p[0]]):
        now = time.perf_counter()
        share = weights[k] / sum(w for w in weights if w <= weights[k])
        until = now + max(0.0, begun + seconds - now) * share

        def said(parameters: Mapping[str, int], name: str = trial.kernel.name) -> None:
            chosen = ", ".join(f"{k}={v}" for k, v in parameters.items())
            report(f"{name} {chosen}", min(1.0, (time.perf_counter() - begun) / seconds))

        found.append(trial.search(until, said))
        trial.close()
    entries = {
        tuned.name_of(t.kernel.naive): {
            "kernel": f.name, "parameters": dict(f.parameters), "before_ms": f.before * 1e3, "after_ms": f.after * 1e3,
        }
        for t, f in zip(sorted(trials, key=lambda t: -weights[trials.index(t)]), found, strict=True)
    }  # fmt: skip
    file = tuned.store(backend, entries)
    made.forget()
    return Tuning(tuple(found), str(file))


class _Trial:
    """The search for one kernel: its memory, the untuned result, and what was tried."""

    def __init__(self, kernel: Compiled, backend: Backend, config: Config) -> None:
        self.kernel, self.backend, self.config = kernel, backend, config
        rng = np.random.default_rng(0)
        self.arrays = {a.name: _random(rng, a) for a in kernel.naive.args}
        self.memory = {a.name: self._upload(a) for a in kernel.naive.args}
        self.refused: list[tuple[Mapping[str, int], str]] = []
        self.tried = 0
        choices = Choices({})
        self.untuned = self._made(choices)
        self.offered = choices.offered
        self.expected = self._results(self.untuned)

    def _upload(self, arg: Arg) -> Any:
        array = self.arrays[arg.name]
        # a host device works in place: what is written must not be what the next candidate starts from
        return self.backend.upload(array if arg.mode == "in" else array.copy())

    def _made(self, choices: Choices) -> _Made:
        ir = scheduled(self.kernel.naive, self.backend.limits, self.config, choices)
        executable = self.backend.compile(ir)
        scratch = {a.name: self.backend.allocate(max(nbytes(a), 1)) for a in ir.args if a.mode == "scratch"}
        return _Made(self.backend, ir, executable, scratch)

    def _results(self, made: _Made) -> list[Array]:
        """Run once on what every candidate starts from."""
        fresh = {a.name: self._upload(a) for a in self.kernel.naive.args if a.mode != "in"}
        made.run(self.memory | fresh)
        found = []
        for arg in self.kernel.naive.args:
            if arg.mode != "in":
                shape, dtype = self.arrays[arg.name].shape, self.arrays[arg.name].dtype
                found.append(np.array(self.backend.download(fresh[arg.name], 0, shape, dtype)))
                self.backend.free(fresh[arg.name])
        return found

    def once(self) -> float:
        """Return how long a launch of the untuned kernel takes."""
        return min(self.untuned.timed(self.memory, 1) for _ in range(3))

    def search(self, until: float, said: Callable[[Mapping[str, int]], None]) -> Found:
        """Walk along one parameter after the other, from the best so far, until none helps or the time is up."""
        best, parameters = self.untuned, dict[str, int]()
        seen = {frozenset[tuple[str, int]]()}
        improved = True
        while improved and time.perf_counter() < until:
            improved = False
            for name, value in [(name, v) for name, values in self.offered.items() for v in values]:
                candidate = {k: v for k, v in {**parameters, name: value}.items() if v != self.offered[k][0]}
                key = frozenset(candidate.items())
                if key in seen or time.perf_counter() >= until:
                    continue
                seen.add(key)
                said(candidate)
                made = self._accepted(candidate)
                worse = made
                if made is not None and self._faster(made, best):
                    worse, best, parameters, improved = best, made, candidate, True
                if worse is not None and worse is not self.untuned:
                    worse.close()
        before, after = self._compared(self.untuned, best, FINAL)
        if best is not self.untuned:
            best.close()
        if after >= GAIN * before:
            parameters, after = {}, before
        return Found(self.kernel.name, parameters, before, after, self.tried, tuple(self.refused))

    def _accepted(self, candidate: Mapping[str, int]) -> _Made | None:
        """Compile a candidate and check what it computes."""
        made = None
        try:
            made = self._made(Choices(candidate))
            reason = None if made.ir == self.untuned.ir else self._wrong(made)
        except (IllegalSchedule, MalformedKernel, CompilationFailed, DeviceFailed, DeviceOutOfMemory) as error:
            reason = str(error)
        if reason == "":
            self.tried += 1
            return made
        if reason:
            self.refused.append((candidate, reason))
        if made is not None:
            made.close()
        return None

    def _wrong(self, made: _Made) -> str:
        """Say what is wrong with a candidate's results; nothing where they are right."""
        for one, other in zip(self.expected, self._results(made), strict=True):
            wrong = _different(one, other, max(a.size for a in self.arrays.values()))
            if wrong:
                return f"{wrong} of {one.size} elements differ from the untuned result"
        return ""

    def _faster(self, made: _Made, best: _Made) -> bool:
        before, after = self._compared(best, made, TURNS)
        return after < GAIN * before

    def _compared(self, first: _Made, second: _Made, turns: int) -> tuple[float, float]:
        """Return the median times of two candidates that take turns."""
        if first is second:
            once = statistics.median(first.timed(self.memory, 1) for _ in range(turns))
            return once, once
        count = max(1, int(ROUND / max(min(first.timed(self.memory, 1) for _ in range(2)), 1e-7)))
        times = [(first.timed(self.memory, count), second.timed(self.memory, count)) for _ in range(turns)]
        return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)

    def close(self) -> None:
        self.untuned.close()
        for handle in self.memory.values():
            self.backend.free(handle)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A candidate, compiled, with the scratch memory that it needs."""

    backend: Backend
    ir: Kernel
    executable: Executable
    scratch: Mapping[str, Any]

    def run(self, memory: Mapping[str, Any]) -> None:
        everything = {**memory, **self.scratch}
        arguments: list[Argument] = [(everything[a.name], 0) for a in self.ir.args]
        self.backend.launch(self.executable, arguments, ())

    def timed(self, memory: Mapping[str, Any], count: int) -> float:
        """Return the seconds of one of ``count`` launches."""
        self.backend.synchronize()
        begun = time.perf_counter()
        for _ in range(count):
            self.run(memory)
        self.backend.synchronize()
        return (time.perf_counter() - begun) / count

    def close(self) -> None:
        for handle in self.scratch.values():
            self.backend.free(handle)


def _random(rng: np.random.Generator, arg: Arg) -> Array:
    """Make the elements of an argument: normal floats; zeros and ones else, which index whatever is there."""
    count, dtype = int(evaluate(arg.size, {})), np.dtype(DTYPES[arg.dtype])
    made = rng.standard_normal(count, np.float32) if is_float(dtype) else rng.integers(0, 2, count)
    return np.asarray(made, dtype)


def _different(expected: Array, found: Array, count: int) -> int:
    """Count the elements that differ by more than sums of up to ``count`` elements in another order do."""
    if not is_float(expected.dtype):
        return int((expected != found).sum())
    one, other = expected.astype(np.float64), found.astype(np.float64)
    own = epsilon(expected.dtype)
    finite = np.abs(one[np.isfinite(one)])
    magnitude = np.abs(np.where(np.isfinite(one), one, 0.0)) + (float(finite.mean()) if finite.size else 0.0)
    with np.errstate(invalid="ignore"):
        near = np.abs(one - other) <= (4 * own + 4 * min(own, 2.0**-23) * np.sqrt(count)) * magnitude
    return int((~(near | (one == other) | (np.isnan(one) & np.isnan(other)))).sum())


__all__ = ["Found", "Tuning", "search", "tune"]
