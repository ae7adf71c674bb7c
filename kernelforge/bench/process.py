"""The parent's side of a candidate's process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

import kernelforge
from kernelforge.bench.candidates import Entrant
from kernelforge.bench.workloads.record import Array

ROOT = pathlib.Path(kernelforge.__file__).parent.parent
WORKER = pathlib.Path(__file__).with_name("worker.py")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
)  # fmt: skip
RECYCLING = (
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=67108864"
    ":glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"
)
"""glibc's policy for all workers: freed memory is kept and given out again, on huge pages where the system has them.
Stock glibc maps each result above 32 MB anew, and the page faults take longer than the kernels."""
Header = dict[str, Any]


class WorkerFailed(Exception):
    """A worker answered with an error, died, or took too long.

    Attributes:
        unsupported: whether the candidate just has no such workload.
    """

    def __init__(self, reason: str, unsupported: bool = False) -> None:
        super().__init__(reason)
        self.unsupported = unsupported


class Worker:
    """A running candidate.

    Attributes:
        hello: its greeting: ``versions``, ``python``, ``import_s``; or ``missing``, with the reason.
    """

    def __init__(
        self,
        entrant: Entrant,
        device: str,
        threads: int,
        table: str,
        patience: float,
        recycling: bool = True,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.entrant = entrant
        self._patience = patience
        setting = {"name": entrant.variant, "device": device, "threads": threads}
        options = {"setting": setting, "module": entrant.module, "table": table, "ours": entrant.ours}
        options["path"] = "" if entrant.python or entrant.isolated else str(ROOT)
        env = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **(extra or {})}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # what pip installs has its bytecode: so has a candidate from a clone
        if recycling:
            env["GLIBC_TUNABLES"] = RECYCLING
        if entrant.isolated:
            env.pop("PYTHONPATH", None)
        arguments = [entrant.python or sys.executable, str(WORKER), json.dumps(options)]
        self._process = subprocess.Popen(  # noqa: S603 - the interpreter is the user's choice
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
        )
        try:
            self.hello = self._receive()[0]
        except WorkerFailed as error:
            self.hello = {"missing": str(error)}

    def ask(self, do: str, **arguments: Any) -> Header:
        """Send a message; return the answer's header.

        Raises:
            WorkerFailed: see there; after a death or a time-out the worker is of no more use.
        """
        return self.fetch(do, **arguments)[0]

    def fetch(self, do: str, **arguments: Any) -> tuple[Header, list[Array]]:
        """Send a message; return the answer's header and arrays; see ``ask``."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerFailed("its process is gone") from None
        return self._receive()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream
                stream.close()

    def _receive(self) -> tuple[Header, list[Array]]:
        assert self._process.stdout
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._patience, end)
        timer.start()
        try:
            line = self._process.stdout.readline()
            header: Header = json.loads(line) if line.endswith(b"\n") else {}
            arrays = [self._array(one) for one in header.get("arrays", ())]
        finally:
            timer.cancel()
        if late.is_set():
            raise WorkerFailed(f"it took more than {self._patience:g} s")
        if not header or any(a is None for a in arrays):
            raise WorkerFailed(f"its process ended with status {self._process.wait()}")
        if "error" in header:
            raise WorkerFailed(header["error"], header["unsupported"])
        return header, [a for a in arrays if a is not None]

    def _array(self, one: dict[str, Any]) -> Array | None:
        assert self._process.stdout
        out = np.empty(one["shape"], one["dtype"])
        view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            got = self._process.stdout.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                return None
            done += got
        return out


@dataclasses.dataclass
class Crew:
    """The workers of one device, started when they are first needed and again when they died."""

    device: str
    threads: int
    table: str
    patience: float
    recycling: bool = True
    workers: dict[str, Worker] = dataclasses.field(default_factory=dict)

    def worker(self, entrant: Entrant) -> Worker:
        """Return the entrant's worker.

        Raises:
            WorkerFailed: when it cannot be started, with the reason.
        """
        found = self.workers.get(entrant.name)
        if found is not None and not found.alive and "missing" not in found.hello:
            found.close()
            found = None
        if found is None:
            found = Worker(entrant, self.device, self.threads, self.table, self.patience, self.recycling)
            self.workers[entrant.name] = found
        if "missing" in found.hello:
            raise WorkerFailed(found.hello["missing"], unsupported=True)
        return found

    def close(self) -> None:
        """End all of them."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()
