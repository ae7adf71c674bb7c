"""Derivatives of graphs, as graphs: reverse (``vjp``) and forward (``jvp``), by the rules in the primitives' records.

Everything is emitted into the active builder, so derivatives of derivatives, fusion and all else work on the result
as on any graph. A. Griewank and A. Walther, "Evaluating Derivatives" (2008), chapter 3.

Only floats carry tangents and cotangents. Where there is none (None), it is zero and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kernelforge.dtypes import is_float
from kernelforge.errors import MalformedGraph, NotDifferentiable
from kernelforge.ir.build import Sym, apply, builder, full
from kernelforge.ir.graph import Graph, Node, Value

Pullback = Callable[[Sequence[Sym | None]], list[Sym]]


def vjp(graph: Graph, inputs: Sequence[Sym], wrt: Sequence[int]) -> tuple[list[Sym], Pullback]:
    """Repeat ``graph`` on ``inputs`` in the active builder; return its outputs and how cotangents are pulled back.

    Args:
        wrt: positions of the inputs whose cotangents are asked for.

    Returns:
        The outputs, and ``pullback(cotangents)``: from one, or None, for each output to one for each of ``wrt``.

    Raises:
        NotDifferentiable: by the pullback, when a cotangent on its way reaches a primitive that has no derivative.
    """
    b = builder()
    made = b.replay(graph, inputs)
    syms = {old: Sym(b, new) for old, new in made.items()}
    asked = [graph.inputs[i] for i in wrt]
    active = {v for v in asked if is_float(v.type.dtype)}
    path: list[Node] = []
    for node in graph.nodes:
        if any(v in active for v in node.inputs):
            path.append(node)
            active.update(v for v in node.outputs if is_float(v.type.dtype))

    def pullback(cotangents: Sequence[Sym | None]) -> list[Sym]:
        found: dict[Value, Sym] = {}

        def add(value: Value, ct: Sym | None, name: str) -> None:
            if ct is None or value not in active:
                return
            if (ct.shape, ct.dtype) != (value.type.shape, value.type.dtype):
                raise MalformedGraph(problem=f"a cotangent of {name} has type {ct.type}; expected {value.type}")
            found[value] = apply("add", found[value], ct) if value in found else ct

        if len(cotangents) != len(graph.outputs):
            raise MalformedGraph(problem=f"{len(cotangents)} cotangents given for {len(graph.outputs)} outputs")
        for value, ct in zip(graph.outputs, cotangents, strict=True):
            add(value, ct, "the graph's output")
        for node in reversed(path):
            cts = tuple(found.get(v) for v in node.outputs)
            if all(ct is None for ct in cts):
                continue
            rule = node.prim.vjp
            if isinstance(rule, str):
                raise NotDifferentiable(op=node.prim.name, reason=rule, loc=node.loc)
            with builder().at(node.loc and node.loc.pulled_back()):
                # only opaque primitives have several outputs, and their rules take None among the cotangents
                pulled = rule(
                    cts,  # type: ignore[arg-type]
                    tuple(syms[v] for v in node.inputs),
                    tuple(syms[v] for v in node.outputs),
                    node.params,
                )
                for value, ct in zip(node.inputs, pulled, strict=True):
                    add(value, ct, f"an input of {node.prim.name}")
        return [found[v] if v in found else full(0.0, syms[v]) for v in asked]

    return [syms[v] for v in graph.outputs], pullback


def jvp(graph: Graph, inputs: Sequence[Sym], tangents: Sequence[Sym | None]) -> tuple[list[Sym], list[Sym]]:
    """Repeat ``graph`` on ``inputs`` in the active builder; return its outputs and their tangents.

    Raises:
        NotDifferentiable: when a tangent reaches a primitive that has no derivative.
    """
    b = builder()
    made = b.replay(graph, inputs)
    syms = {old: Sym(b, new) for old, new in made.items()}
    found: dict[Value, Sym] = {}

    def put(value: Value, tangent: Sym | None, name: str) -> None:
        if tangent is None or not is_float(value.type.dtype):
            return
        if (tangent.shape, tangent.dtype) != (value.type.shape, value.type.dtype):
            raise MalformedGraph(problem=f"a tangent of {name} has type {tangent.type}; expected {value.type}")
        found[value] = tangent

    for value, tangent in zip(graph.inputs, tangents, strict=True):
        put(value, tangent, "the graph's input")
    for node in graph.nodes:
        given = tuple(found.get(v) for v in node.inputs)
        if all(t is None for t in given) or not any(is_float(v.type.dtype) for v in node.outputs):
            continue
        rule = node.prim.jvp
        if isinstance(rule, str):
            raise NotDifferentiable(op=node.prim.name, reason=rule, loc=node.loc)
        with b.at(node.loc):
            pushed = rule(given, tuple(syms[v] for v in node.inputs), tuple(syms[v] for v in node.outputs), node.params)
        for value, tangent in zip(node.outputs, pushed, strict=True):
            put(value, tangent, f"an output of {node.prim.name}")
    return [syms[v] for v in graph.outputs], [found[v] if v in found else full(0.0, syms[v]) for v in graph.outputs]
