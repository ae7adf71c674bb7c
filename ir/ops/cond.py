"""Branches: a primitive that holds two graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.ir import autodiff
from kernelforge.ir.batch import every
from kernelforge.ir.build import Sym, apply, apply_many
from kernelforge.ir.graph import Graph, Kind, Params, Primitive, Sample
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops.call import Batched, called
from kernelforge.ir.ops.control import (
    Arrays,
    Emit,
    MaybeSyms,
    chosen,
    close_pair,
    float_tangents,
    holds_float,
    joined,
    match,
    present,
    sample_graph,
    scatter,
    types_of,
)
from kernelforge.ir.types import Type

# inputs (pred, operands), outputs of the branch taken


def emit_cond(pred: Sym, true: Emit, false: Emit, operands: Sequence[Sym]) -> tuple[Sym, ...]:
    """Append ``true(*operands)`` where ``pred``, a bool of shape (), holds and ``false(*operands)`` where not."""
    yes, no, consts = close_pair(true, false, [s.type for s in operands])
    return apply_many("cond", pred, *consts, *operands, true=yes, false=no)


def _cond_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    true, false = params["true"], params["false"]
    match("cond", "predicate", types[:1], [Type((), np.dtype(bool))])
    match("cond", "operands of true", types[1:], types_of(true.inputs))
    match("cond", "operands of false", types[1:], types_of(false.inputs))
    match("cond", "outputs of false", types_of(false.outputs), types_of(true.outputs))
    return joined(types_of(true.outputs), types_of(false.outputs))


def _cond_numpy(arrays: Arrays, params: Params) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(run_graph(params["true" if arrays[0] else "false"], arrays[1:]))


def _cond_vjp(cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
    pred, operands = inputs[0], inputs[1:]
    floats = [holds_float(s) for s in operands]
    wrt = [i for i, m in enumerate(floats) if m]
    mask, given = present(float_tangents(cts, outputs))

    def branch(graph: Graph) -> Emit:
        def back(*values: Sym) -> list[Sym]:
            _, pullback = autodiff.vjp(graph, values[: len(operands)], wrt)
            return pullback(scatter(mask, values[len(operands) :]))

        return back

    outs = emit_cond(pred, branch(params["true"]), branch(params["false"]), [*operands, *given])
    return (None, *scatter(floats, outs))


def _cond_jvp(tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
    pred, operands = inputs[0], inputs[1:]
    mask, given = present(float_tangents(tangents[1:], operands))
    out_mask = [holds_float(s) for s in outputs]

    def branch(graph: Graph) -> Emit:
        def forward(*values: Sym) -> list[Sym]:
            operand_t = scatter(mask, values[len(operands) :])
            _, outs_t = autodiff.jvp(graph, values[: len(operands)], operand_t)
            return [t for t, m in zip(outs_t, out_mask, strict=True) if m]

        return forward

    outs = emit_cond(pred, branch(params["true"]), branch(params["false"]), [*operands, *given])
    return tuple(scatter(out_mask, outs))


class _Branches:
    """How a choice is differentiated."""

    vjp = staticmethod(_cond_vjp)
    jvp = staticmethod(_cond_jvp)


def _cond_batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Sequence[Sym]:
    """Run one branch for all where all agree, else both, and choose.

    Of the choice each example's derivative is that of its own branch: the other's may be infinite there, and no zero
    times that is zero.
    """
    operands, given = inputs[1:], has[1:]

    def branch(graph: Graph) -> Emit:
        return lambda *values: every(graph, values, given, size)

    yes, no = branch(params["true"]), branch(params["false"])
    if not has[0]:
        return emit_cond(inputs[0], yes, no, operands)

    def both(pred: Sym, *operands: Sym) -> list[Sym]:
        return [chosen(pred, a, b) for a, b in zip(yes(*operands), no(*operands), strict=True)]

    return called("cond", both, inputs, Batched(_Branches(), params, size, has))


def _sample_cond() -> list[Sample]:
    graphs = {
        "true": sample_graph(lambda x, y: [x * y], (3,), (3,)),
        "false": sample_graph(lambda x, y: [apply("sin", x)], (3,), (3,)),
    }
    x, y = np.array([0.5, -1.0, 0.25]), np.array([1.0, 2.0, -0.5])
    return [Sample((np.array(p), x, y), graphs) for p in (True, False)]


PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(
        "cond",
        Kind.OPAQUE,
        "Run one of two graphs on the operands.",
        ("true", "false"),
        _cond_typing,
        _cond_numpy,
        _cond_vjp,
        _cond_jvp,
        _cond_batch,
        None,
        _sample_cond,
        frozenset({"bool"}),
    ),
)
