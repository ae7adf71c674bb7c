"""Which values of a plan are made in the memory of others that nothing reads any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kernelforge.ir.applied import Applied
from kernelforge.ir.fuse import Region
from kernelforge.ir.graph import Graph, Value
from kernelforge.ir.passes.overwrite import Overwriting

LARGE = 1 << 20
"""Bytes from which on a value between kernels is made where another one was. Its kernel then is one of its own, even
where the same operations stand elsewhere.
"""


class Donations:
    """Finds memory that a kernel reads last: outputs are made in that of inputs that are given away, and what only the
    plan needs in that of its like.

    Args:
        regions: in the order they run.
        given: the inputs whose memory may be written, row-major.

    Attributes:
        taken: values and those in whose memory they are made.
    """

    def __init__(self, graph: Graph, regions: Sequence[Region], given: Sequence[Value]) -> None:
        self.taken: dict[Value, Value] = {}
        self._given = list(given)
        self._inner: list[Value] = []
        self._outputs = frozenset(graph.outputs)
        self._regions = regions
        self._last = {v: k for k, region in enumerate(regions) for node in region.nodes for v in node.inputs}

    def settle(self, k: int) -> None:
        """Find memory for what region ``k`` makes, which is no kernel."""
        self._find(k, lambda value, other: False)

    def settled(self, k: int, applied: Applied) -> Applied:
        """Return the kernel of region ``k`` with values in the memory of others."""
        values = applied.values
        names = {v: a.name for v, a in zip(values, applied.kernel.args, strict=False)}
        overwriting: Overwriting | None = None

        def merged(value: Value, other: Value) -> bool:
            nonlocal overwriting
            # parts of a kernel that share a launch have arguments of their own
            if values.count(other) != 1 or names[other] in applied.starts:
                return False
            overwriting = overwriting or Overwriting(applied.kernel)
            return overwriting.tried(names[value], names[other])

        self._find(k, merged)
        kernel = applied.kernel if overwriting is None else overwriting.made()
        return Applied(kernel, [v for v in values if self.taken.get(v) not in names], applied.starts)

    def _find(self, k: int, merged: Callable[[Value, Value], bool]) -> None:
        """Find memory for what region ``k`` makes; ``merged`` tries to make a value where the region reads another."""
        for value in self._regions[k].outputs:
            for other in self._fitting(value):
                read = self._last.get(other, -1)
                # for what only the plan needs, the arena has other room than what was read before
                if (read < k and value in self._outputs) or (read == k and merged(value, other)):
                    self._take(value, other)
                    break
        self._inner += self._between(k)

    def _between(self, k: int) -> list[Value]:
        return [v for v in self._regions[k].outputs if v not in self._outputs and v.type.nbytes >= LARGE]

    def _fitting(self, value: Value) -> list[Value]:
        kind = value.type.dtype, value.type.size
        free = self._given if value in self._outputs else self._inner
        return [v for v in free if (v.type.dtype, v.type.size) == kind] if value.type.size else []

    def _take(self, value: Value, other: Value) -> None:
        (self._given if value in self._outputs else self._inner).remove(other)
        self.taken[value] = other
