"""What parts read of what they are given.

Inputs begin where a part begins to read them: the parts of unrolled steps, which read other rows of one array, are
equal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from types import MappingProxyType

from kernelforge.ir.accesses import redirected
from kernelforge.ir.demand import Part
from kernelforge.ir.graph import Node, Value
from kernelforge.ir.kernel import Expr, Load, Stmt, exprs, stmts, walk
from kernelforge.ir.types import Type

ALIGNMENT = 256
"""Bytes; what a kernel is given starts at a multiple where the memory does, so that vector loads of any device are
aligned."""


def begun(part: Part, strided: Collection[Value]) -> tuple[Part, dict[Value, tuple[Value, range]]]:
    """Give a part only the rows that lie between the first and the last it reads, where slices are all that reads.

    Returns the part, and for each new input the one that it is a run of and which elements.
    """
    made = {v for n in part.nodes for v in n.outputs}
    readers: dict[Value, list[Node]] = {}
    for node in part.nodes:
        for value in dict.fromkeys(node.inputs):
            readers.setdefault(value, []).append(node)
    runs: dict[Value, tuple[Value, range]] = {}
    changed: dict[Node, Node] = {}
    for value, nodes in readers.items():
        if value in made or value in strided or any(n.prim.name != "slice" for n in nodes):
            continue
        rows, *rest = value.type.shape
        width = math.prod(rest)
        first = min(n.params["starts"][0] for n in nodes)
        first -= first % (ALIGNMENT // math.gcd(ALIGNMENT, max(width, 1) * value.type.dtype.itemsize))
        last = max(n.params["stops"][0] for n in nodes)
        if last - first == rows:
            continue
        run = Value(value.id, Type((last - first, *rest), value.type.dtype))
        runs[run] = value, range(first * width, last * width)
        changed.update((n, _moved(n, run, first)) for n in nodes)
    if not runs:
        return part, runs
    return dataclasses.replace(part, nodes=tuple(changed.get(n, n) for n in part.nodes)), runs


def _moved(node: Node, run: Value, first: int) -> Node:
    """Read with a slice rows of what begins ``first`` rows later."""
    rows = {name: (node.params[name][0] - first, *node.params[name][1:]) for name in ("starts", "stops")}
    return dataclasses.replace(node, inputs=(run,), params=MappingProxyType({**node.params, **rows}))


def read(body: tuple[Stmt, ...], inputs: dict[Value, str], stem: str) -> tuple[tuple[Stmt, ...], dict[Value, str]]:
    """Leave out the inputs that no Load is left of: of what is chosen by an index, there may be one case alone.

    Returns the statements and the inputs with their names, which are numbered behind ``stem``.
    """
    seen: set[Expr] = set()
    found = {e.buffer for s in stmts(body) for root in exprs(s) for e in walk(root, seen) if isinstance(e, Load)}
    kept = [(v, n) for v, n in inputs.items() if n in found]
    if len(kept) == len(inputs):
        return body, inputs
    names = {n: f"{stem}{k}" for k, (_, n) in enumerate(kept)}
    return redirected(body, names, lambda b, index: (names[b], index)), {v: names[n] for v, n in kept}


def reach(value: Value, strides: tuple[int, ...] | None) -> int:
    """Return how many elements from the first one on an input spans, counting only forward strides."""
    if strides is None or not value.type.size:
        return value.type.size
    return 1 + sum(max(s, 0) * (n - 1) for s, n in zip(strides, value.type.shape, strict=True))
