"""Run in Oclgrind's device by ``test_oclgrind``: every representative program in one of the two forms of schedules.

``oclgrind --data-races python -m tests.backends.under_oclgrind group``
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np

import kernelforge as kf
from kernelforge.backends import registry
from tests.representative import programs

SIZES = ((5, 32), (3, 33))


def scanned(x: Any, w: Any) -> Any:
    return kf.scan(lambda h, row: (np.tanh(h @ w + row), h.sum()), x[0], x)


def searched(x: Any) -> Any:
    def step(state: Any) -> Any:
        a, n = state
        return kf.cond(a[0] > 0, lambda a: np.roll(a, 1) - 1, np.cumsum, a), n + 1

    return kf.while_loop(lambda state: (state[1] < 7) & (state[0].sum() < 1e4), step, (x[0], np.int32(0)))


def control(rows: int, n: int) -> dict[str, tuple[Any, list[Any]]]:
    """Loops and branches, of which one work-item repeats the phases, and which the plan runs in groups."""
    x, w = np.random.default_rng(0).standard_normal((2, max(rows, n), n)).astype(np.float32) / 4
    return {"scanned": (scanned, [x[:rows], w[:n]]), "searched": (searched, [x[:rows]])}


def main(form: str) -> None:
    device: Any = registry.backend("opencl:0")
    assert "Oclgrind" in str(device), device
    if form == "group":
        native = device.limits.native - {"repeat_alone"}
        device._limits = dataclasses.replace(
            device.limits, form="group", vector_bytes=16, threads=64, group=16, native=native
        )
        device._cpu, device._workers = False, 0
    for rows, n in SIZES:
        for name, (fn, args) in (programs(rows, n) | control(rows, n)).items():
            with kf.default_device("opencl:0"):
                found = kf.jit(fn)(*args)
            with kf.default_device("reference"):
                expected = kf.jit(fn)(*args)
            for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-5, err_msg=name)
            print(form, rows, n, name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
