"""The machine's limits: moving a workload's bytes, doing its flops. On the host in LLVM IR, on a GPU by a copy."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from kernelforge.bench.peers.base import Peer, Setting, Unsupported
from kernelforge.bench.workloads.record import PAGE, Array, Workload, aligned

REQUIRES = ("llvmlite", "numpy")
STREAMS = 4
"""At most so many streams of reads, and of writes."""
ENOUGH_S = 4e-3
"""A sample lasts this long about, its work repeated, for starting the threads not to count. Repeated calls of a
candidate find the same bytes in the caches."""
AHEAD = 14 << 10
"""Bytes ahead of their use at which lines are asked for, where they are; not asking is tried, too."""
TRIALS = 4
"""Samples of each way to move bytes, from which the quickest is chosen."""
GUESS = {"bytes": 50e9, "flops": 100e9}
"""Rates per second from which the repeats are guessed; only how long a sample lasts depends on them."""
UNROLL = 4
APART = 5 * 64
"""Bytes between streams, lest their addresses agree in the low twelve bits, which slows loads behind stores."""


class Limit(Peer):
    """What any implementation of a workload must do at the least, on the processor."""

    def __init__(self, setting: Setting) -> None:
        from kernelforge.bench.peers import limit_ir

        super().__init__(setting)
        self._host = limit_ir.Host.here()
        free = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
        self._threads = concurrent.futures.ThreadPoolExecutor(setting.threads, initializer=_settle, initargs=(free,))

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        del inputs
        count = self.setting.threads
        if self.setting.name == "arithmetic":
            if not work.flops:
                raise Unsupported("there are no products")
            fn, flops = self._host.chains(work.dtype)
            repeat = max(1, round(ENOUGH_S * GUESS["flops"] * count / work.flops))
            turns = max(1, round(work.flops * repeat / count / flops))
            sink = np.zeros((count, 1 << 10))
            jobs: list[Any] = [(fn, sink[t].ctypes.data, turns) for t in range(count)]
            self.share = turns * flops * count / work.flops
            return self._calls(jobs, sink)
        if not sum(work.moved):
            raise Unsupported("nothing is moved")
        part = Fraction(work.moved[0] / sum(work.moved)).limit_denominator(STREAMS)
        p, q = part.numerator, part.denominator - part.numerator
        found = [
            self._move(work, p * times, q * times, ahead)
            for times in (1, 2, 4)
            for ahead in (0, AHEAD)
            if max(p, q) * times <= STREAMS
        ]
        least = [float("inf")] * len(found)
        for _ in range(TRIALS):
            for k, (call, share) in enumerate(found):
                begun = time.perf_counter()
                call()
                least[k] = min(least[k], (time.perf_counter() - begun) / share)
        call, self.share = found[least.index(min(least))]
        return call

    def _move(self, work: Workload, reads: int, writes: int, ahead: int) -> tuple[Callable[[], Any], float]:
        """Return a call that moves a workload's bytes by so many streams of each kind, and how often it does."""
        count, total = self.setting.threads, sum(work.moved)
        fn = self._host.mover(reads, writes, self.setting.name == "streaming", ahead)
        step = UNROLL * self._host.width
        blocks = max(count, round(total / (reads + writes) / step))
        each = blocks * step + APART
        # no zeros: past the caches some processors write those at twice the rate
        source = aligned(np.random.default_rng(0).random(max(reads, 1) * each // 4, np.float32))
        target = aligned(np.zeros(max(writes, 1) * each + PAGE, np.uint8))[PAGE // 2 :]
        repeat = max(1, round(ENOUGH_S * GUESS["bytes"] / total))
        bounds = [blocks * t // count * step for t in range(count + 1)]
        jobs = [
            (fn, source.ctypes.data, target.ctypes.data, each, low, high, repeat)
            for low, high in itertools.pairwise(bounds)
        ]
        return self._calls(jobs, (source, target)), blocks * step * (reads + writes) * repeat / total

    def _calls(self, jobs: list[Any], alive: Any) -> Callable[[], Any]:
        """Return a call that runs the jobs on all threads."""

        def call() -> Any:
            for running in [self._threads.submit(*job) for job in jobs]:
                running.result()
            return alive

        return call

    def arrays(self, result: Any) -> list[Array]:
        return []


def _settle(free: list[int]) -> None:
    """Give the calling thread a processor of its own, where one is ``free``.

    A scheduler may wake it where another thread runs, and leave it waiting for a tick: as long as a sample lasts.
    """
    if free:
        os.sched_setaffinity(0, {free.pop()})


class CudaCopy(Peer):
    """A copy within the memory of a CUDA device, as long as the workload's bytes take."""

    queues = True

    def __init__(self, setting: Setting) -> None:
        from numba import cuda

        super().__init__(setting)
        self._cuda = cuda
        cuda.select_device(int(setting.device.partition(":")[2] or 0))

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        if self.setting.name != "plain":
            raise Unsupported("the limit of a GPU is a copy")
        count = max(1, int(sum(work.moved) / 2))
        dtype: Any = np.uint8
        source, target = (self._cuda.device_array(count, dtype) for _ in range(2))
        return lambda: target.copy_to_device(source)

    def wait(self, result: Any) -> None:
        self._cuda.synchronize()

    def arrays(self, result: Any) -> list[Array]:
        return []


class OpenclCopy(Peer):
    """The same on an OpenCL device."""

    queues = True

    def __init__(self, setting: Setting, device: Any) -> None:
        import pyopencl

        super().__init__(setting)
        self._cl = pyopencl
        self._context = pyopencl.Context([device])
        self._queue = pyopencl.CommandQueue(self._context)

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        if self.setting.name != "plain":
            raise Unsupported("the limit of a GPU is a copy")
        count = max(1, int(sum(work.moved) / 2))
        source, target = (self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, count) for _ in range(2))
        return lambda: self._cl.enqueue_copy(self._queue, target, source)

    def wait(self, result: Any) -> None:
        self._queue.finish()

    def arrays(self, result: Any) -> list[Array]:
        return []


def start(setting: Setting) -> Peer:
    if setting.kind == "cuda":
        return CudaCopy(setting)
    if setting.kind == "opencl":
        from kernelforge.backends import registry

        backend: Any = registry.backend(setting.device)
        if backend.limits.form == "group":
            return OpenclCopy(setting, backend.device)
    return Limit(setting)
