"""Rules that bring views to the far side of windows, so that what contracts windows, forward or backward, sees them."""

from __future__ import annotations

import itertools
import math

from kernelforge.ir.build import Sym, apply
from kernelforge.ir.graph import Graph, Node
from kernelforge.ir.passes.rewrite import Rewriter, Rule, rewrite


def _slice(r: Rewriter, node: Node) -> Sym | None:
    """Take fewer windows, or fewer elements of each: these are its stride and its dilation."""
    made = r.producer(node.inputs[0], "window")
    if made is None or not node.output.type.size:
        return None
    x, listed = r.sym(made.inputs[0]), made.params["axes"]
    starts, stops, steps = (list(node.params[k]) for k in ("starts", "stops", "steps"))
    counts = node.output.type.shape
    sizes, strides, dilations = [], [], []
    for k, a in enumerate(listed):
        stride, dilation = made.params["strides"][k], made.params["dilations"][k]
        inner = x.ndim + k
        sizes.append(counts[inner])
        strides.append(steps[a] * stride)
        dilations.append(steps[inner] * dilation)
        starts[a] = starts[a] * stride + starts[inner] * dilation
        stops[a] = starts[a] + (counts[a] - 1) * strides[k] + (counts[inner] - 1) * dilations[k] + 1
        steps[a] = 1
    n = x.ndim
    part = apply("slice", x, starts=tuple(starts[:n]), stops=tuple(stops[:n]), steps=tuple(steps[:n]))
    given = {"sizes": tuple(sizes), "strides": tuple(strides), "dilations": tuple(dilations)}
    return apply("window", part, axes=listed, **given)


def _reshape(r: Rewriter, node: Node) -> Sym | None:
    """Reshape what the windows are of, where it leaves their positions and elements alone: channels into groups."""
    made = r.producer(node.inputs[0], "window")
    if made is None or not node.output.type.size:
        return None
    x, sizes = r.sym(made.inputs[0]), made.params["sizes"]
    before, after = made.output.type.shape[: x.ndim], node.output.type.shape
    if after[len(after) - len(sizes) :] != sizes:
        return None
    lead = after[: len(after) - len(sizes)]
    ends = list(itertools.accumulate((1, *lead), int.__mul__))
    moved: dict[int, int] = {}
    for a in made.params["axes"]:
        found = [q for q, n in enumerate(lead) if n == before[a] and ends[q] == math.prod(before[:a])]
        if not found or found[0] in moved.values():
            return None
        moved[a] = found[0]
    if sorted(moved.values()) != [moved[a] for a in sorted(moved)]:
        return None
    shape = list(lead)
    for a, q in moved.items():
        shape[q] = x.shape[a]
    given = {k: made.params[k] for k in ("sizes", "strides", "dilations")}
    return apply("window", x.reshape(tuple(shape)), axes=tuple(moved[a] for a in made.params["axes"]), **given)


def _of_one(r: Rewriter, node: Node) -> Sym | None:
    """Windows of one element at each place are the array."""
    if {*node.params["sizes"], *node.params["strides"]} == {1}:
        return r.sym(node.inputs[0]).reshape(node.output.type.shape)
    return None


RULES: dict[str, tuple[Rule, ...]] = {"slice": (_slice,), "reshape": (_reshape,), "window": (_of_one,)}


def windows(graph: Graph) -> Graph:
    """Apply these rules alone: before derivatives are taken, which for windows that are contracted are such again."""
    return rewrite(graph, RULES)
