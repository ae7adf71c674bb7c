"""Move out of loops what is the same in each of their turns.

A carry that each turn hands on as it is, and a row of what repeats one, become constants of the loop. What depends on
those alone is made before the loop, where that saves more work than a launch is, and takes no more memory than what it
is made of. Views and cheap maps stay, and go to whoever reads them. So does what may never end, as a loop around
it may have no turns, and what ``kf.checkpoint`` wants made again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from kernelforge.ir.build import Sym, apply_many
from kernelforge.ir.cost import COSTLY, DIVISION, EXPENSIVE, LAUNCH_BYTES, OPERATIONS_PER_BYTE, TRANSCENDENTAL
from kernelforge.ir.graph import Graph, Kind, Node, Value
from kernelforge.ir.passes.rewrite import Rewriter, Rules, rewrite

T = TypeVar("T")

TURNS = 64
"""Of a loop that goes on while a test holds."""

PHASE = 1 << 10
"""Operations in the time that a reduction, a product or a turn takes, however small."""

SMALL = 1 << 20
"""Bytes that a value may take whatever it is made of."""


def invariants(graph: Graph) -> Graph:
    """Rewrite the loops of a graph."""
    return rewrite(graph, RULES)


class _Found(NamedTuple):
    """What moves out of a body.

    Attributes:
        making: from the constants of the body to what it reads from outside from now on.
        rest: the body.
    """

    making: Graph
    rest: Graph


def _find(body: Graph, consts: int, turns: int) -> _Found | None:
    """Find what depends on the first inputs of a body alone and is worth moving."""
    same = set(body.inputs[:consts])
    made: dict[Value, Node] = {}
    needed = set(body.outputs)
    for node in body.nodes:
        if node.prim.name != "barrier" and same.issuperset(node.inputs) and _ends(node):
            same.update(node.outputs)
            made.update((v, node) for v in node.outputs)
        else:
            needed.update(node.inputs)
    values: list[Value] = []
    stay: list[Node] = []
    for node in reversed(body.nodes):
        wanted = [v for v in node.outputs if v in needed]
        if wanted and node.outputs[0] in made and _worth(node, made, turns):
            values += wanted
        elif wanted or node.outputs[0] not in made:
            stay.append(node)
            needed.update(node.inputs)
    if not values:
        return None
    behind = _behind(values, made)
    making = Graph(body.inputs[:consts], tuple(n for n in body.nodes if n in behind), tuple(values))
    return _Found(making, dataclasses.replace(body, inputs=(*values, *body.inputs), nodes=tuple(reversed(stay))))


def _ends(node: Node) -> bool:
    """Whether a node holds no loop that goes on while a test holds."""
    return node.prim.name != "while_loop" and all(_ends(n) for g in node.graphs.values() for n in g.nodes)


def _behind(values: Iterable[Value], made: dict[Value, Node]) -> set[Node]:
    """Return the nodes that values are made by."""
    found: set[Node] = set()
    left = list(values)
    while left:
        node = made.get(left.pop())
        if node is not None and node not in found:
            found.add(node)
            left += node.inputs
    return found


def _worth(node: Node, made: dict[Value, Node], turns: int) -> bool:
    """Whether the other turns save more than a launch by it, and it takes no more memory than what it is made of."""
    if not node.inputs or node.prim.kind in (Kind.VIEW, Kind.INDEX):
        return False
    behind = _behind(node.outputs, made)
    sources = {v for n in behind for v in n.inputs if v not in made}
    if sum(v.type.nbytes for v in node.outputs) > max(SMALL, sum(v.type.nbytes for v in sources)):
        return False
    return turns * sum(map(_work, behind)) > LAUNCH_BYTES * OPERATIONS_PER_BYTE


def _work(node: Node) -> int:
    """Count the simple operations of a node."""
    size, name = sum(v.type.size for v in node.outputs), node.prim.name
    match node.prim.kind:
        case Kind.MAP:
            return size * (TRANSCENDENTAL if name in COSTLY else DIVISION if name in EXPENSIVE else 1)
        case Kind.VIEW | Kind.INDEX:
            return 0
        case Kind.CONTRACT:
            axes = (node.params["x_axes"], node.params["y_axes"])
            x, y = (dict(zip(a, v.type.shape, strict=True)) for a, v in zip(axes, node.inputs, strict=True))
            return PHASE + 2 * math.prod((x | y).values())
        case Kind.OPAQUE:
            once = PHASE + sum(_work(n) for g in node.graphs.values() for n in g.nodes)
            return once * (node.params["length"] if name == "scan" else 1)
    return PHASE + max(size, *(v.type.size for v in node.inputs))


def _scan_moved(r: Rewriter, node: Node) -> Sequence[Sym] | None:
    body, c = node.params["body"], node.params["consts"]
    found = _find(body, c, node.params["length"] - 1)
    if found is None:
        return None
    inputs = [r.sym(v) for v in node.inputs]
    given = r.inline(found.making, inputs[:c])
    return apply_many("scan", *given, *inputs, **{**node.params, "body": found.rest, "consts": len(given) + c})


def _while_moved(r: Rewriter, node: Node) -> Sequence[Sym] | None:
    n, m = (node.params[p] for p in ("cond_consts", "body_consts"))
    tested, used = _find(node.params["cond"], n, TURNS), _find(node.params["body"], m, TURNS)
    if tested is None and used is None:
        return None
    inputs = [r.sym(v) for v in node.inputs]
    params = dict(node.params)
    of_cond, of_body = inputs[:n], inputs[n : n + m]
    if tested is not None:
        of_cond = [*r.inline(tested.making, of_cond), *of_cond]
        params.update(cond=tested.rest, cond_consts=len(of_cond))
    if used is not None:
        of_body = [*r.inline(used.making, of_body), *of_body]
        params.update(body=used.rest, body_consts=len(of_body))
    return apply_many("while_loop", *of_cond, *of_body, *inputs[n + m :], **params)


def _parted(xs: Sequence[T], marks: Sequence[bool]) -> tuple[list[T], list[T]]:
    """Return what is marked, and what is not."""
    pairs = list(zip(xs, marks, strict=True))
    return [x for x, m in pairs if m], [x for x, m in pairs if not m]


def _handed_on(body: Graph, consts: int, node: Node, init: Sequence[Value]) -> list[bool]:
    """Say which carries each turn returns as it gets them."""
    pairs = zip(body.inputs[consts:], body.outputs, init, node.outputs, strict=False)
    return [a is b and x.type == y.type for a, b, x, y in pairs]


def _regrouped(body: Graph, consts: int, handed: Sequence[bool], returns: bool = True) -> Graph:
    """Put the carries that are handed on behind the constants of a body; it returns them no more."""
    k = consts + len(handed)
    fixed, carried = _parted(body.inputs[consts:k], handed)
    outputs = (
        [*_parted(body.outputs[: len(handed)], handed)[1], *body.outputs[len(handed) :]] if returns else body.outputs
    )
    return dataclasses.replace(
        body, inputs=(*body.inputs[:consts], *fixed, *carried, *body.inputs[k:]), outputs=tuple(outputs)
    )


def _merged(handed: Sequence[bool], fixed: Sequence[Sym], made: Sequence[Sym]) -> list[Sym]:
    """Return the outputs of a loop: what it handed on, where that was, and what it makes."""
    known, rest = iter(fixed), iter(made)
    return [*(next(known if h else rest) for h in handed), *rest]


def _scan_handed(r: Rewriter, node: Node) -> Sequence[Sym] | None:
    body, c, k = (node.params[p] for p in ("body", "consts", "carry"))
    handed = _handed_on(body, c, node, node.inputs[c : c + k])
    if not any(handed):
        return None
    inputs = [r.sym(v) for v in node.inputs]
    fixed, carried = _parted(inputs[c : c + k], handed)
    counts = {"body": _regrouped(body, c, handed), "consts": c + len(fixed), "carry": len(carried)}
    made = apply_many("scan", *inputs[:c], *fixed, *carried, *inputs[c + k :], **{**node.params, **counts})
    return _merged(handed, fixed, made)


def _while_handed(r: Rewriter, node: Node) -> Sequence[Sym] | None:
    cond, body, n, m = (node.params[p] for p in ("cond", "body", "cond_consts", "body_consts"))
    handed = _handed_on(body, m, node, node.inputs[n + m :])
    if not any(handed):
        return None
    inputs = [r.sym(v) for v in node.inputs]
    fixed, carried = _parted(inputs[n + m :], handed)
    params = {
        "cond": _regrouped(cond, n, handed, returns=False),
        "body": _regrouped(body, m, handed),
        "cond_consts": n + len(fixed),
        "body_consts": m + len(fixed),
    }
    made = apply_many("while_loop", *inputs[:n], *fixed, *inputs[n : n + m], *fixed, *carried, **params)
    return _merged(handed, fixed, made)


def _row(r: Rewriter, stack: Value, row: Value) -> Node | None:
    """Return what makes ``row`` in a body where ``stack`` holds nothing but repetitions of it."""
    node = r.producer(stack)
    if node is None or node.prim.name not in ("full", "broadcast"):
        return None
    if any(v.type.ndim == stack.type.ndim for v in node.inputs):
        return None
    return Node(node.prim, node.inputs, MappingProxyType({**node.params, "shape": row.type.shape}), (row,), node.loc)


def _scan_rows(r: Rewriter, node: Node) -> Sequence[Sym] | None:
    body, c, k = (node.params[p] for p in ("body", "consts", "carry"))
    rows = [_row(r, x, v) for x, v in zip(node.inputs[c + k :], body.inputs[c + k :], strict=True)]
    alike = [row is not None for row in rows]
    if not any(alike):
        return None
    first, making = body.unused, list[Node]()
    sources: list[tuple[Value, Value]] = []
    for row in rows:
        if row is not None:
            own = tuple(Value(first + len(sources) + i, v.type) for i, v in enumerate(row.inputs))
            sources += [*zip(row.inputs, own, strict=True)]
            making.append(dataclasses.replace(row, inputs=own))
    inputs = (*(v for _, v in sources), *body.inputs[: c + k], *_parted(body.inputs[c + k :], alike)[1])
    new = dataclasses.replace(body, inputs=inputs, nodes=(*making, *body.nodes))
    given = [*(v for v, _ in sources), *node.inputs[: c + k], *_parted(node.inputs[c + k :], alike)[1]]
    return apply_many("scan", *map(r.sym, given), **{**node.params, "body": new, "consts": c + len(sources)})


def _scan_stacked(r: Rewriter, node: Node) -> Sequence[Sym] | None:
    body, c, k, length = (node.params[p] for p in ("body", "consts", "carry", "length"))
    given = dict(zip(body.inputs[:c], node.inputs, strict=False))
    alike = [*[False] * k, *(v in given for v in body.outputs[k:])]
    if not any(alike):
        return None
    same, outputs = _parted(body.outputs, alike)
    new = dataclasses.replace(body, outputs=tuple(outputs))
    made = apply_many("scan", *map(r.sym, node.inputs), **{**node.params, "body": new})
    return _merged(alike, [r.sym(given[v]).broadcast((length, *v.type.shape)) for v in same], made)


RULES: Rules = {
    "scan": (_scan_handed, _scan_rows, _scan_moved, _scan_stacked),
    "while_loop": (_while_handed, _while_moved),
}
