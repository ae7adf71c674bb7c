"""Calls: a primitive that holds a graph and, where its derivative is not that of the graph, a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from kernelforge.errors import NotDifferentiable
from kernelforge.ir import autodiff
from kernelforge.ir.batch import batch, every, leading, marks
from kernelforge.ir.build import Builder, Sym, apply, apply_many, builder
from kernelforge.ir.graph import Kind, Params, Primitive, Sample
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops.control import (
    Arrays,
    Emit,
    MaybeSyms,
    close,
    float_tangents,
    holds_float,
    match,
    sample_graph,
    scatter,
    types_of,
)
from kernelforge.ir.types import Type


class Rule(Protocol):
    """How a call is differentiated; ``vjp`` and ``jvp`` are as in ``Primitive``."""

    def vjp(self, cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms: ...

    def jvp(
        self, tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params
    ) -> MaybeSyms: ...


class Plain:
    """The derivative of the call's graph."""

    def vjp(self, cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        floats = [holds_float(s) for s in inputs]
        _, pullback = autodiff.vjp(params["graph"], inputs, [i for i, m in enumerate(floats) if m])
        return tuple(scatter(floats, pullback(float_tangents(cts, outputs))))

    def jvp(self, tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        _, outs_t = autodiff.jvp(params["graph"], inputs, float_tangents(tangents, inputs))
        return tuple(outs_t)


class Recompute(Plain):
    """Keep the inputs alone for the backward pass: barriers hold its copy of the graph apart from the forward one."""

    def vjp(self, cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        return super().vjp(cts, tuple(apply("barrier", s) for s in inputs), outputs, params)


class Refuse:
    """No derivative, for a reason."""

    def __init__(self, op: str, reason: str) -> None:
        self.op = op
        self.reason = reason

    def vjp(self, cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        raise NotDifferentiable(op=self.op, reason=self.reason, loc=builder().loc)

    jvp = vjp


class Instead:
    """The derivative of another function that has the same values."""

    def __init__(self, fn: Emit) -> None:
        self.fn = fn

    def vjp(self, cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        graph, captured = close(self.fn, [s.type for s in inputs])
        return PLAIN.vjp(cts, (*captured, *inputs), outputs, {"graph": graph})[len(captured) :]

    def jvp(self, tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        graph, captured = close(self.fn, [s.type for s in inputs])
        return PLAIN.jvp((*(None for _ in captured), *tangents), (*captured, *inputs), outputs, {"graph": graph})


PLAIN, RECOMPUTE = Plain(), Recompute()


def _call_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    match(f"call of {params['name']}", "inputs", types, types_of(params["graph"].inputs))
    return tuple(types_of(params["graph"].outputs))


def _call_numpy(arrays: Arrays, params: Params) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(run_graph(params["graph"], arrays))


def _call_vjp(cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
    rule: Rule = params["rule"] or PLAIN
    return rule.vjp(cts, inputs, outputs, params)


def _call_jvp(tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
    rule: Rule = params["rule"] or PLAIN
    return rule.jvp(tangents, inputs, outputs, params)


class Batched:
    """The rule of a call for each example of a batch. What all examples share gets the sum of their cotangents."""

    def __init__(self, rule: Rule, params: Params, size: int, has: Sequence[bool]) -> None:
        self.rule, self.params, self.size, self.has = rule, params, size, list(has)

    def _each(self, fn: Callable[..., MaybeSyms], given: Sequence[Sequence[Sym | None]], has: Sequence[bool]) -> Any:
        """Apply ``fn`` to what is there of ``given``; return what it gives, and which of that has a batch."""
        there = [[x is not None for x in group] for group in given]
        known = [x for group in given for x in group if x is not None]
        made: list[bool] = []

        def one(*syms: Sym) -> list[Sym]:
            left = iter(syms)
            found = fn(*[tuple(next(left) if t else None for t in group) for group in there])
            made.extend(x is not None for x in found)
            return [x for x in found if x is not None]

        types = [Type(s.shape[1:] if h else s.shape, s.dtype) for s, h in zip(known, has, strict=True)]
        graph, consts = close(one, types)
        marked = [*[False] * len(consts), *has]
        outs = batch(graph, [*consts, *known], marked, self.size)
        return scatter(made, outs), scatter(made, marks(graph, marked))  # type: ignore[arg-type]

    def vjp(self, cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        def one(cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...]) -> MaybeSyms:
            return self.rule.vjp(cts, inputs, outputs, self.params)

        count = sum(ct is not None for ct in cts)
        found, marked = self._each(one, (cts, inputs, outputs), [*[True] * count, *self.has, *[True] * len(outputs)])
        return tuple(
            None if ct is None else leading(self.size, ct, m) if h else ct.sum((0,)) if m else ct * self.size
            for ct, m, h in zip(found, marked, self.has, strict=True)
        )

    def jvp(self, tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        def one(tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...]) -> MaybeSyms:
            return self.rule.jvp(tangents, inputs, outputs, self.params)

        known = [h for h, t in zip(self.has, tangents, strict=True) if t is not None]
        found, marked = self._each(one, (tangents, inputs, outputs), [*known, *self.has, *[True] * len(outputs)])
        return tuple(None if t is None else leading(self.size, t, m) for t, m in zip(found, marked, strict=True))


def called(name: str, fn: Emit, inputs: Sequence[Sym], rule: Rule) -> tuple[Sym, ...]:
    """Append a call of ``fn(*inputs)``, which closes over nothing."""
    b = Builder(loc=builder().loc)
    with b.active():
        graph = b.finish(fn(*[b.input(s.type) for s in inputs]))
    return apply_many("call", *inputs, graph=graph, name=name, rule=rule)


def _call_batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Sequence[Sym]:
    rule: Rule = params["rule"] or PLAIN
    rule = rule if isinstance(rule, Plain) else Batched(rule, params, size, has)
    return called(params["name"], lambda *values: every(params["graph"], values, has, size), inputs, rule)


def _sample_call() -> list[Sample]:
    graph = sample_graph(lambda x, y: [apply("sin", x) * y], (3,), (3,))
    inputs = (np.array([0.5, -1.0, 0.25]), np.array([1.0, 2.0, -0.5]))
    return [Sample(inputs, {"graph": graph, "name": "f", "rule": rule}) for rule in (None, RECOMPUTE)]


PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(
        "call",
        Kind.OPAQUE,
        "Run a graph; rule, where it is not None, says how to differentiate it.",
        ("graph", "name", "rule"),
        _call_typing,
        _call_numpy,
        _call_vjp,
        _call_jvp,
        _call_batch,
        None,
        _sample_call,
        frozenset({"f64"}),
    ),
)
