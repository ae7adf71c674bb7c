"""Which results of a plan are made in the memory of arguments that the caller gives away."""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge.ir.fuse import Region
from kernelforge.ir.graph import Graph, Value
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.passes.overwrite import overwrite


class Donations:
    """Finds for each output an input that nothing reads after it is made.

    Args:
        regions: in the order they run.
        given: the inputs whose memory may be written, row-major.

    Attributes:
        taken: outputs and the inputs in whose memory they are made.
    """

    def __init__(self, graph: Graph, regions: Sequence[Region], given: Sequence[Value]) -> None:
        self.taken: dict[Value, Value] = {}
        self._free = [v for v in given if v.type.size]
        self._outputs = frozenset(graph.outputs)
        self._regions = regions
        self._last = {v: k for k, region in enumerate(regions) for node in region.nodes for v in node.inputs}

    def settle(self, k: int) -> None:
        """Give the outputs of region ``k`` the memory of inputs that were read before it."""
        for output in self._made(k):
            fitting = (v for v in self._fitting(output) if self._last.get(v, -1) < k)
            self._take(output, next(fitting, None))

    def settled(self, k: int, kernel: Kernel, values: list[Value]) -> tuple[Kernel, list[Value]]:
        """Return the kernel of region ``k`` with outputs in the memory of inputs, and the values behind its arguments.

        Args:
            values: behind the kernel's arguments but for scratch.
        """
        names = {v: a.name for v, a in zip(values, kernel.args, strict=False)}
        for output in self._made(k):
            for given in self._fitting(output):
                changed: Kernel | None = kernel
                # parts of a kernel that share a launch have arguments of their own
                if self._last.get(given, -1) > k or values.count(given) > 1:
                    continue
                if given in names:
                    changed = overwrite(kernel, names[output], names[given])
                if changed is not None:
                    kernel = changed
                    self._take(output, given)
                    break
        return kernel, [v for v in values if self.taken.get(v) not in names]

    def _made(self, k: int) -> list[Value]:
        return [v for v in self._regions[k].outputs if v in self._outputs and v.type.size] if self._free else []

    def _fitting(self, output: Value) -> list[Value]:
        kind = output.type.dtype, output.type.size
        return [v for v in self._free if (v.type.dtype, v.type.size) == kind]

    def _take(self, output: Value, given: Value | None) -> None:
        if given is not None:
            self._free.remove(given)
            self.taken[output] = given
