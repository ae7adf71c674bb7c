"""Kernels run in order, again and again, as one: what a scan becomes where a launch may repeat its phases.

Each step reads the state that the step before it left in one half of a buffer, and leaves its own in the other half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from kernelforge.ir.accesses import Index, redirected
from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.index import normalize
from kernelforge.ir.kernel import Arg, Expr, For, Kernel, Mode, Stmt, Var, i64

LINE = 64
"""Bytes; both halves of a state's buffer begin at a multiple, as the buffer does."""

Place = tuple[str, Expr]
"""A buffer, and the element of it at which a value begins."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A kernel of a graph, the values behind its arguments but for scratch, and the elements by which those arguments
    begin that are not all of one.
    """

    kernel: Kernel
    values: Sequence[Value]
    starts: Mapping[str, int]


def repeats(stmt: Stmt) -> bool:
    """Whether a statement at the top of a kernel runs phases, or what repeats them, in each of its iterations."""
    if not isinstance(stmt, For) or stmt.kind != "serial" or not stmt.body:
        return False
    return all(isinstance(s, For) and (s.kind in ("parallel", "grid") or repeats(s)) for s in stmt.body)


def repeated(node: Node, body: Graph, turns: Sequence[Turn], copy: Graph, copies: Sequence[Turn]) -> Kernel:
    """Make one kernel of a scan; its arguments are the inputs of ``node``, its outputs, then scratch.

    Args:
        body: of the scan, as ``turns`` compute it.
        copy: makes a carry of a carry, as ``copies`` do.
    """
    p = node.params
    consts, carry, length = p["consts"], p["carry"], p["length"]
    made = _Made()
    deepest = max((_depth(t.kernel.body) for t in turns), default=0)
    turn = Var(f"turn{deepest}", "i64", max(length, 1))
    element = i64(length - 1) - turn if p["reverse"] else turn
    state, xs, ys = body.inputs[consts : consts + carry], body.inputs[consts + carry :], body.outputs[carry:]

    given = [made.whole("given", "in", v) for v in body.inputs[:consts]]
    first = [made.whole("first", "in", v) for v in state]
    rows = [made.rows("row", "in", v, element, length) for v in xs]
    last = [made.whole("last", "out", v) for v in state]
    results = [made.rows("made", "out", v, element, length) for v in ys]
    halves = [-(-v.type.nbytes // LINE) * LINE // v.type.dtype.itemsize for v in state]
    kept = [made.buffer("kept", "scratch", v, 2 * n) for v, n in zip(state, halves, strict=True)]

    def half(which: Expr) -> list[Place]:
        return [(b, which * n) for b, n in zip(kept, halves, strict=True)]

    inputs = dict(zip(body.inputs, [*given, *half(turn % 2), *rows], strict=True))
    outputs = dict(zip(body.outputs, [*half((turn + 1) % 2), *results], strict=True))
    stmts = (
        *made.run(copies, dict(zip((*copy.inputs, *copy.outputs), (*first, *half(i64(0))), strict=True))),
        For(turn, i64(length), "serial", made.run(turns, inputs | outputs)),
        *made.run(copies, dict(zip((*copy.inputs, *copy.outputs), (*half(i64(length % 2)), *last), strict=True))),
    )
    return Kernel(node.prim.name, tuple(made.args), (), stmts)


def _depth(body: Sequence[Stmt]) -> int:
    """Return how deep repetitions stand in each other."""
    return max((1 + _depth(s.body) for s in body if isinstance(s, For) and repeats(s)), default=0)


class _Made:
    """The arguments of the kernel that is being made."""

    def __init__(self) -> None:
        self.args: list[Arg] = []

    def argument(self, name: str, dtype: str, size: Expr, mode: Mode) -> str:
        found = f"{name}_{len(self.args)}"
        self.args.append(Arg(found, dtype, size, mode))
        return found

    def buffer(self, name: str, mode: Mode, value: Value, size: int) -> str:
        return self.argument(name, value.type.name, i64(size), mode)

    def whole(self, name: str, mode: Mode, value: Value) -> Place:
        return self.buffer(name, mode, value, value.type.size), i64(0)

    def rows(self, name: str, mode: Mode, value: Value, row: Expr, count: int) -> Place:
        """Make the argument that has a value for each of ``count`` steps."""
        return self.buffer(name, mode, value, count * value.type.size), row * value.type.size

    def run(self, turns: Sequence[Turn], known: Mapping[Value, Place]) -> tuple[Stmt, ...]:
        """Return the statements of kernels in order, what is not ``known`` among their values in scratch."""
        places = dict(known)
        out: list[Stmt] = []
        for t in turns:
            for value in t.values:
                if value not in places:
                    places[value] = self.whole("between", "scratch", value)
            where: dict[str, Place] = {}
            for arg, value in zip(t.kernel.args, t.values, strict=False):
                buffer, offset = places[value]
                where[arg.name] = buffer, offset + t.starts.get(arg.name, 0)
            for arg in t.kernel.args[len(t.values) :]:
                where[arg.name] = self.argument("part", arg.dtype, arg.size, "scratch"), i64(0)
            out += redirected(t.kernel.body, where, lambda b, index: _at(where[b], index))  # noqa: B023 - runs at once
        return tuple(out)


def _at(place: Place, index: Index) -> tuple[str, Index]:
    buffer, offset = place
    return buffer, (normalize(offset + index[0]),)
