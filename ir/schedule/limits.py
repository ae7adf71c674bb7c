"""What the cost model and the recipes know of a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from kernelforge.errors import InvalidParameter
from kernelforge.ir.schedule.choices import Choices

Form = Literal["serial", "vector", "group"]

CORE_BANDWIDTH = 12e9
"""Bytes a second that a core of a CPU moves: some 15 lines of 64 bytes on their way, 80 ns each (Little's law)."""

CORE_CLOCK, CORE_PIPES = 3e9, 2
"""Cycles a second of a CPU, and the vector instructions that it starts in each."""


def core_rate(vector_bytes: int) -> float:
    """Return the operations on f32 a second of a CPU's core, a multiply-add counted as two."""
    return CORE_CLOCK * CORE_PIPES * 2 * vector_bytes / 4


LINE = 64
"""Bytes of a line of a CPU's caches, which memory answers with at least."""

SHORTEST = 4
"""Lanes that a vector has at least."""

NEAR = 8
"""Elements from one lane to the next up to which CPUs read or write whole vectors, and shuffle."""


NATIVE = {
    "f16": "converts f16 itself; kernels hold it as bits elsewhere",
    "bf16": "converts bf16 itself; kernels hold it as bits elsewhere",
    "fma": "adds products with one rounding; expansions of functions use it",
    "mad": "adds products with one rounding or two, as is quicker; likewise",
    "scaleb": "scales by powers of two; likewise",
    "tables": "looks numbers up in registers; likewise, by ``ir.tables``",
    "masks": "reads vectors in some of their lanes as quickly as in all",
    "calls": "has functions of its own, for what is rare in each function (``math.function``)",
    "async": "copies memory to local memory by the way",
    "mma": "has warps multiply narrow floats",
    "tf32": "has warps multiply f32, so rounded",
    "repeat": "has launches repeat phases",
    "repeat_alone": "has launches of one worker repeat phases",
    "stream": "stores past the caches what is large",
    "bf16dot": "adds pairs of products of bf16 to an f32 by one instruction",
}
"""What a printer may have instructions for: names in ``Limits.native``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What the cost model and the recipes ask of a device.

    Attributes:
        form: which schedules fit: ``serial`` runs the naive nest; ``vector`` gives a thread a slice of the grid and
            uses SIMD lanes (CPUs, also under OpenCL); ``group`` has work-groups with local memory and barriers (GPUs).
        vector_bytes: width of a SIMD register, or of the widest useful load on a ``group`` device.
        vector_registers: number of SIMD registers (``vector`` form).
        threads: hardware threads that run at once (``vector`` form), or resident work-items (``group`` form).
        group: most work-items in a work-group.
        local_bytes: local (shared) memory of a work-group; for ``vector`` form the L1 data cache.
        cache_bytes: second-level cache of a thread.
        dtypes: short names of the dtypes that can be stored and computed with.
        host: whether kernels read and write host memory in place, at any strides.
        max_args: most buffers one launch can take.
        compilers: threads that compile at once, a kernel each; one compiles those of a plan together.
        fingerprint: versions of compiler and driver and the target; part of the key of the disk cache.
        bandwidth: bytes a second of its memory; 0 where it does not tell. For predictions in words alone.
        rate: operations on f32 a second, likewise.
        side: vectors that a loop of lanes may hold side by side (``vector`` form), 1 where one is the most: while a
            function's steps wait for each other in one, the processor works on the others.
        native: what the printer has instructions for: keys of ``NATIVE``.
        choices: parameters of recipes for one kernel, from the tuner.
    """

    form: Form
    vector_bytes: int
    vector_registers: int
    threads: int
    group: int
    local_bytes: int
    cache_bytes: int
    dtypes: frozenset[str]
    host: bool
    max_args: int
    fingerprint: str
    native: frozenset[str] = frozenset()
    side: int = 1
    bandwidth: float = 0.0
    rate: float = 0.0
    compilers: int = 1
    choices: Choices | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if unknown := self.native - NATIVE.keys():
            raise InvalidParameter(
                op="Limits", name="native", found=min(unknown), expected=f"one of {', '.join(NATIVE)}"
            )

    def choose(self, name: str, default: int, others: Sequence[int]) -> int:
        """Return a parameter of a recipe: ``default``, by its formula, unless ``choices`` has one of ``others``.

        Every value is legal for some nests; where one is not, a schedule step refuses it.
        """
        return default if self.choices is None else self.choices.take(name, default, others)
