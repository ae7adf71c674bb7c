"""What a kernel is and takes, in words for people: amounts, values, schedules, what a target says of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from kernelforge.backends.target import TargetExecutable
from kernelforge.ir.graph import Node, Value
from kernelforge.ir.kernel import Alloc, Const, For, If, Op, Stmt, stmts
from kernelforge.ir.repeat import repeats
from kernelforge.runtime.plan import Compiled


def count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def size(nbytes: float) -> str:
    """Write a number of bytes for people."""
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= step:
            return f"{nbytes / step:.1f} {unit}"
    return f"{nbytes:.0f} B"


def duration(seconds: float) -> str:
    """Write a time for people."""
    for unit, step in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= step:
            return f"{seconds / step:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def label(value: Value, made: Mapping[Value, Node]) -> str:
    """Name a value by what makes it and where: ``exp at model.py:3``."""
    node = made.get(value)
    if node is None:
        return f"constant {value.type}"
    where = f" at {node.loc.file.rsplit('/', 1)[-1]}:{node.loc.line}" if node.loc else ""
    return f"{node.prim.name}{where}"


def schedule_words(body: Sequence[Stmt], within: str = "") -> Iterator[str]:
    """Say how each phase of a scheduled kernel is spread over a device."""
    phases = [s for s in body if isinstance(s, For | If)]
    for number, phase in enumerate(phases, 1):
        name = f"phase {within}{number}"
        if isinstance(phase, For) and repeats(phase):
            yield f"{name}: {_turns(phase)}"
            yield from schedule_words(phase.body, f"{within}{number}.")
            continue
        parts = [f"{name}:"] if within or len(phases) > 1 else []
        inside = list(stmts((phase,)))
        loops = [s for s in inside if isinstance(s, For)]
        grid = _chain(phase, "grid")
        group = [s.static for s in loops if s.kind == "group"]
        words = []
        if grid:
            words.append(f"{count(math.prod(grid), 'worker')}" + (f" ({_times(grid)})" if len(grid) > 1 else ""))
        if group:
            words.append(f"work-groups of {max(n or 1 for n in group)} work-items")
        lanes = sorted({s.static or 0 for s in loops if s.kind == "vector"}, reverse=True)
        words.append(f"vectors of {' and '.join(map(str, lanes))} elements" if lanes else "one element at a time")
        unrolled = sorted({n for s in loops if s.kind == "unroll" and (n := s.static or 0) > 1}, reverse=True)
        if unrolled:
            words.append(f"unrolled {' and '.join(map(str, unrolled))} times")
        tiles = dict.fromkeys(_tile(s) for s in inside if isinstance(s, Alloc) and s.shape)
        words += list(tiles)[:4]
        yield " ".join([*parts, ", ".join(words)])


def _turns(loop: For) -> str:
    """Say how often a loop over phases runs them."""
    if loop.static is not None:
        return f"{count(loop.static, 'step')}, one after the other, each through the phases below"
    match loop.extent:
        case Op(op="select", args=(_, Const(value=0 | 1), Const(value=0 | 1))):
            return "the phases below, once or not at all, as data say"
    return "as many turns as data say, one after the other, each through the phases below"


def _chain(stmt: Stmt, kind: str) -> list[int]:
    """Return the extents of the loops of a kind that stand directly in each other."""
    found = []
    while isinstance(stmt, For) and stmt.kind == kind:
        found.append(stmt.static or 1)
        if len(stmt.body) != 1:
            break
        stmt = stmt.body[0]
    return found


def _tile(alloc: Alloc) -> str:
    shape = [int(n.value) for n in alloc.shape if isinstance(n, Const)]
    where = {"register": "in registers", "local": "in local memory", "global": "in memory"}[alloc.space]
    return f"a tile of {_times(shape)} {alloc.dtype} {where}"


def _times(extents: Sequence[int]) -> str:
    return " x ".join(map(str, extents))


def reported(kernel: Compiled) -> list[str]:
    """Say what the launches of a kernel take of a target, or why nothing is known of that."""
    if not isinstance(kernel.executable, TargetExecutable):
        return []
    report = kernel.executable.report
    if report.missing:
        return [f"not compiled for {report.target}: {report.missing}"]
    lines = []
    for usage in report.usage:
        registers = [] if usage.registers is None else [f"{usage.registers} registers"]
        resident = [] if usage.occupancy is None else [f"occupancy {usage.occupancy:.0%}"]
        local = [] if usage.local_bytes is None else [f"{size(usage.local_bytes)} local memory"]
        taken = [*registers, f"{size(usage.spills)} spilled", *local, *resident]
        lines.append(f"{usage.entry} on {report.target}: {', '.join(taken)}")
    return lines


def assembly_of(kernel: Compiled) -> str:
    """Return a target's assembly, where there is some."""
    return kernel.executable.report.assembly if isinstance(kernel.executable, TargetExecutable) else ""
