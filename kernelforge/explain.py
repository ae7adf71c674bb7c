"""What became of a function, in words: its kernels, what each moves and computes, and why neighbours did or did not
fuse.
"""

from __future__ import annotations

from kernelforge.ir.graph import Kind
from kernelforge.ir.text import print_graph
from kernelforge.runtime.plan import Compiled, Plan


def explain(plan: Plan, sources: bool = True) -> str:
    """Describe a plan.

    Args:
        sources: whether the text that was compiled for the device follows each kernel.
    """
    least = sum(v.type.nbytes for v in (*plan.graph.inputs, *plan.graph.outputs))
    moved = sum(k.bytes for k in plan.kernels)
    count = f"{len(plan.kernels)} kernel{'s' * (len(plan.kernels) != 1)}"
    lines = [
        f"{count} on {plan.backend.name}, {len(plan.graph.nodes)} operations, arena {size(plan.arena)}",
        f"bytes moved {size(moved)}; inputs and outputs alone are {size(least)}",
        "",
    ]
    for number, kernel in enumerate(plan.kernels, 1):
        lines += describe(number, kernel)
        if sources:
            lines += ["", *("    " + line for line in kernel.source.splitlines())]
        lines.append("")
    apart = [d for d in plan.fusion.decisions if not d.fused]
    if apart:
        lines.append("Not fused:")
        made = {v: n.prim.name for n in plan.graph.nodes for v in n.outputs}
        lines += [f"  {made[d.producer]} -> {made.get(d.consumer, 'copy')}: {d.reason}" for d in apart]
        lines.append("")
    lines += ["Graph:", print_graph(plan.graph)]
    return "\n".join(lines)


def describe(number: int, kernel: Compiled) -> list[str]:
    """Describe one kernel in a few lines."""
    nodes = [n for n in kernel.region.nodes if n.prim.kind is not Kind.VIEW]
    views = len(kernel.region.nodes) - len(nodes)
    lines = [
        f"kernel {number}: {kernel.name}",
        f"  computes {', '.join(n.prim.name for n in nodes) or 'a copy'}"
        + (f", reading through {views} view{'s' * (views != 1)}" if views else ""),
        f"  moves {size(kernel.bytes)}, {kernel.flops:,} floating-point operations"
        + (f", {kernel.flops / kernel.bytes:.2f} per byte" if kernel.bytes else ""),
    ]
    where = {f"{n.loc.file}:{n.loc.line}": None for n in nodes if n.loc}
    if where:
        lines.append(f"  written at {', '.join(where)}")
    return lines


def size(nbytes: int) -> str:
    """Write a number of bytes for people."""
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= step:
            return f"{nbytes / step:.1f} {unit}"
    return f"{nbytes} B"
