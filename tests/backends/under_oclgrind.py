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


def main(form: str) -> None:
    device: Any = registry.backend("opencl:0")
    assert "Oclgrind" in str(device), device
    if form == "group":
        device._limits = dataclasses.replace(device.limits, form="group", vector_bytes=16, threads=64, group=16)
        device._cpu, device._workers = False, 0
    for rows, n in SIZES:
        for name, (fn, args) in programs(rows, n).items():
            with kf.default_device("opencl:0"):
                found = kf.jit(fn)(*args)
            with kf.default_device("reference"):
                expected = kf.jit(fn)(*args)
            for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-5, err_msg=name)
            print(form, rows, n, name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
