"""A candidate's process: runs as a script of the candidate's own interpreter, and does what its pipe says.

A message is a line of JSON; arrays follow as raw bytes in the order of the header's ``arrays``. The interpreter needs
NumPy and the candidate, not kernelforge: the bench's own files are found beside this one, whatever else is installed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import signal
import sys
import time
import types
from typing import IO, Any

LONG_S = 0.1
"""A call that takes longer is tried once to learn its pace."""
IDLE_S, USED_S, PATIENCE_S = 0.01, 0.001, 1.0
"""A process is idle that takes less than ``USED_S`` of the processors in ``IDLE_S``; it is waited for so long."""
BATCH_S = 50e-6
"""Calls that are quicker than this are timed several at once, for the clock's own cost not to show."""


def main(options: dict[str, Any]) -> None:
    """Greet, then answer messages until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    threads = options["setting"]["threads"]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        module, peer, seconds = _start(options)
    except Exception as error:  # noqa: BLE001 - whatever a candidate raises is its reason
        _send(answers, {"missing": _reason(error)})
        return
    versions = {name: _version(name) for name in module.REQUIRES}
    _send(answers, {"versions": versions, "python": platform.python_version(), "import_s": seconds})
    served = _Served(peer, importlib.import_module(options["table"]).TABLE)
    for line in sys.stdin.buffer:
        message = json.loads(line)
        try:
            header, arrays = getattr(served, message.pop("do"))(**message)
        except Exception as error:  # noqa: BLE001 - whatever a workload raises is its result
            header, arrays = {"error": _reason(error), "unsupported": type(error).__name__ == "Unsupported"}, []
        _send(answers, header, arrays)


def _start(options: dict[str, Any]) -> tuple[Any, Any, float]:
    """Import the candidate; return its module, the peer, and the seconds it took beyond NumPy."""
    importlib.import_module("numpy")
    begun = time.perf_counter()
    module = importlib.import_module(options["module"])
    setting = importlib.import_module("kernelforge.bench.peers.base").Setting(**options["setting"])
    peer = module.start(setting)
    return module, peer, time.perf_counter() - begun


class _Served:
    """What a worker can be asked to do; each returns a header and arrays."""

    def __init__(self, peer: Any, table: dict[str, Any]) -> None:
        self._peer = peer
        self._table = table
        self._call: Any = None

    def prepare(self, workload: str, seed: int, moved: list[float]) -> tuple[dict[str, Any], list[Any]]:
        """Compile, run once and return the outputs."""
        self._call = None
        gc.collect()
        reads, writes = moved
        work = dataclasses.replace(self._table[workload], moved=(reads, writes))
        inputs = work.inputs(seed)
        begun = time.perf_counter()
        call = self._peer.prepare(work, inputs)
        result = call()
        self._peer.wait(result)
        seconds = time.perf_counter() - begun
        self._call = call
        return {"compile_s": seconds}, list(self._peer.arrays(result))

    def run(self, warm: int, count: int, batch: int) -> tuple[dict[str, Any], list[Any]]:
        """Time ``count`` samples of ``batch`` calls each, after ``warm`` untimed calls."""
        call, wait, clock = self._call, self._peer.wait, time.perf_counter
        for _ in range(warm):
            wait(call())
        seconds = []
        for _ in range(count):
            result = None
            begun = clock()
            for _ in range(batch):
                result = call()
            wait(result)
            seconds.append((clock() - begun) / (batch * self._peer.share))
        _settle()
        return {"seconds": seconds}, []

    def pace(self) -> tuple[dict[str, Any], list[Any]]:
        """Return about how many seconds a call takes, and how many calls to time at once."""
        (first,) = self.run(0, 1, 1)[0]["seconds"]
        if first * self._peer.share > LONG_S:
            return {"call": first * self._peer.share, "batch": 1}, []
        call = min(self.run(0, 2, 1)[0]["seconds"]) * self._peer.share
        if call > BATCH_S and not self._peer.queues:
            return {"call": call, "batch": 1}, []
        call = min(self.run(0, 2, 16)[0]["seconds"]) * self._peer.share
        return {"call": call, "batch": max(1, round(20 * BATCH_S / call))}, []

    def memory(self) -> tuple[dict[str, Any], list[Any]]:
        """Return by how many bytes a call raises the process's memory above what it holds before it."""
        self._peer.wait(self._call())
        self._peer.trim()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        status = pathlib.Path("/proc/self/status")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
        before = _kilobytes(status, "VmRSS")
        result = self._call()
        self._peer.wait(result)
        return {"bytes": 1024 * (_kilobytes(status, "VmHWM") - before)}, []

    def release(self) -> tuple[dict[str, Any], list[Any]]:
        """Forget the workload and its arrays."""
        self._call = None
        gc.collect()
        return {}, []


def _settle() -> None:
    """Wait until no thread of this process runs: those of idle pools may spin, OpenBLAS's for 0.1 s."""
    end, used = time.perf_counter() + PATIENCE_S, time.process_time()
    while time.perf_counter() < end:
        time.sleep(IDLE_S)
        before, used = used, time.process_time()
        if used - before < USED_S:
            return


def _kilobytes(status: pathlib.Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


def _send(stream: IO[bytes], header: dict[str, Any], arrays: Any = ()) -> None:
    listed = [{"shape": a.shape, "dtype": a.dtype.str} for a in arrays]
    stream.write(json.dumps({**header, "arrays": listed}).encode() + b"\n")
    for a in arrays:
        stream.write(a.tobytes())
    stream.flush()


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed in {sys.executable}"
    text = str(error).strip() or type(error).__name__
    kind = type(error).__name__
    return (text if kind == "Unsupported" else f"{kind}: {text}")[:300]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not a distribution"


def adopt(folder: str, ours: bool) -> None:
    """Make ``kernelforge.bench`` the files in ``folder``, inside of the kernelforge that is here, or of none."""
    if not ours or importlib.util.find_spec("kernelforge") is None:
        package = types.ModuleType("kernelforge")
        package.__path__ = []
        sys.modules["kernelforge"] = package
    bench = types.ModuleType("kernelforge.bench")
    bench.__path__ = [folder]
    sys.modules["kernelforge.bench"] = bench


if __name__ == "__main__":
    sys.path.pop(0)  # the bench's folder: its files are no top-level modules
    given = json.loads(sys.argv[1])
    if given["path"]:
        sys.path.append(given["path"])
    adopt(os.path.dirname(os.path.abspath(__file__)), given["ours"])
    main(given)
