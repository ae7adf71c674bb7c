"""Workloads of two kinds and candidates that sleep for a known time; imported by workers too."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from kernelforge.bench.peers.base import Peer, Setting, Unsupported
from kernelforge.bench.workloads.record import Array, Workload

REQUIRES = ("numpy",)
SLEEPS = {
    "kernelforge": 0.004,
    "double": 0.008,
    "wrong": 0.004,
    "dies": 0.0,
    "picky": 0.004,
    "stuck": 0.0,
    "raises": 0.0,
    "spins": 0.0,
}
SPIN_S = 0.15
"""How long a thread of "spins" goes on after a call."""


def _spin() -> None:
    end = time.perf_counter() + SPIN_S
    while time.perf_counter() < end:
        pass


def _twice(x: Any) -> Any:
    return 2 * x


TABLE = {
    name: Workload(name, "maps", "2·x", lambda d: (d.normal(1000),), _twice, _twice) for name in ("first", "second")
}


class Fake(Peer):
    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        name = self.setting.name
        if name == "picky" and work.name == "second":
            raise Unsupported("nobody wrote second for picky")
        if name == "raises":
            raise ValueError("no such\nluck")
        if name == "dies" and work.name == "first":
            os._exit(3)
        if name == "stuck":
            time.sleep(60)
        factor = 2.01 if name == "wrong" else 2

        def call() -> Any:
            print("candidates may print")
            time.sleep(SLEEPS[name])
            if name == "spins":
                threading.Thread(target=_spin, daemon=True).start()
            return inputs[0] * factor

        return call


def start(setting: Setting) -> Peer:
    return Fake(setting)
