"""Which axes of its inputs a node's output has."""

from __future__ import annotations

from collections.abc import Iterator

from kernelforge.ir.graph import Kind, Node, Value
from kernelforge.ir.memo import memo


@memo
def carried(node: Node, value: Value) -> tuple[tuple[int, int], ...]:
    """Return the axes of an input that the node's output has, and which of it they are.

    Those of one element may be left out; a reshape keeps all of more, or none.
    """
    return tuple(_carried(node, value))


def _carried(node: Node, value: Value) -> Iterator[tuple[int, int]]:
    shape, out, params = value.type.shape, node.output.type.shape, node.params
    if node.prim.kind is Kind.MAP:
        yield from ((a, a) for a in range(len(out) if shape == out else 0))
        return
    match node.prim.name:
        case "contract":
            for v, names in zip(node.inputs, (params["x_axes"], params["y_axes"]), strict=True):
                if v is value:
                    wanted = params["out_axes"]
                    yield from ((a, wanted.index(n)) for a, n in enumerate(names) if n in wanted)
        case "transpose":
            yield from ((a, k) for k, a in enumerate(params["axes"]))
        case "broadcast":
            lead = len(out) - len(shape)
            yield from ((a, a + lead) for a, n in enumerate(shape) if n == out[a + lead] and n != 1)
        case "reshape":
            first, second = ([a for a, n in enumerate(s) if n != 1] for s in (shape, out))
            if [shape[a] for a in first] == [out[a] for a in second]:
                yield from zip(first, second, strict=True)
        case _ if node.prim.kind is Kind.REDUCE:
            left = [a for a in range(len(shape)) if a not in params["axes"]]
            yield from ((a, k) for k, a in enumerate(left))


def dropped(node: Node, value: Value) -> set[int]:
    """Return the axes of an input that a reduction reduces."""
    return set(range(value.type.ndim)) - {a for a, _ in carried(node, value)}
