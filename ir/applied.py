"""Parts of a graph as one kernel, and which values are behind its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from kernelforge.ir.demand import Part
from kernelforge.ir.graph import Value
from kernelforge.ir.kernel import Arg, Kernel, Stmt, i64
from kernelforge.ir.lower import lower
from kernelforge.ir.runs import reach


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A kernel, applied to values of a graph.

    Attributes:
        values: behind its arguments, in order, but for scratch.
        starts: the element by which an argument begins that is not all of its value.
    """

    kernel: Kernel
    values: Sequence[Value]
    starts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def with_kernel(self, kernel: Kernel) -> Applied:
        """Return another kernel of the same values."""
        return dataclasses.replace(self, kernel=kernel)


def to_kernel(name: str, parts: Sequence[Part], strides: dict[Value, tuple[int, ...]], tf32: bool = False) -> Applied:
    """Lower parts that do not depend on each other into one kernel.

    Raises:
        Refused: see ``lower``.
    """
    args: list[Arg] = []
    values: list[Value] = []
    starts: dict[str, int] = {}
    body: list[Stmt] = []
    for k, part in enumerate(parts):
        made = lower(part, strides, f"p{k}" if len(parts) > 1 else "", tf32)
        starts |= {made.inputs[value]: run.start for value, run in made.runs.items()}
        for value, arg in made.inputs.items():
            size = len(made.runs[value]) if value in made.runs else reach(value, strides.get(value))
            args.append(Arg(arg, value.type.name, i64(size), "in"))
            values.append(value)
        for value, arg in made.outputs.items():
            args.append(Arg(arg, value.type.name, i64(value.type.size), "out"))
            values.append(value)
        body += made.body
    return Applied(Kernel(name, tuple(args), (), tuple(body)), values, starts)
