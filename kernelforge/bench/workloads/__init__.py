"""The workloads: records of what is computed, with inputs, oracle, bytes and flops."""

from __future__ import annotations

from kernelforge.bench.workloads import learning, maps, products, rows
from kernelforge.bench.workloads.record import Workload

TABLE: dict[str, Workload] = {w.name: w for part in (maps, rows, products, learning) for w in part.WORKLOADS}
"""By name, in the order they run."""
