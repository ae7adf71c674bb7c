"""``custom_vjp``: a function whose derivative the user writes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from typing import Any

from kernelforge.dtypes import is_float
from kernelforge.errors import KeywordOnly, LeafMismatch, NotDifferentiable, RuleMissing, TreeMismatch
from kernelforge.functions import Flat, flat, matched, pair, trace_at
from kernelforge.ir import autodiff
from kernelforge.ir.build import Sym, apply_many, build, builder, tracing
from kernelforge.ir.graph import Graph, Params
from kernelforge.ir.ops.call import Refuse
from kernelforge.ir.ops.control import MaybeSyms, close, materialize, present, scatter
from kernelforge.ir.passes.pipeline import optimize
from kernelforge.jit import by_name, name_of
from kernelforge.trace import Tracer

Fn = Callable[..., Any]

RULED: ContextVar[frozenset[custom_vjp]] = ContextVar("RULED", default=frozenset())
"""The functions whose own ``fwd`` is being traced: a call of one in there is of the plain function."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Written:
    """The rule of the call: the user's functions as graphs.

    The call's inputs are what the function closed over, what ``fwd`` and ``bwd`` did, then the arguments.

    Attributes:
        name: of the function.
        forward: (captures of fwd, arguments) to (outputs, residuals).
        backward: (captures of bwd, cotangents, residuals) to the cotangents that ``given`` marks.
        given: whether ``bwd`` returned a cotangent for each argument.
        counts: how many captures the function, ``fwd`` and ``bwd`` have.
    """

    name: str
    forward: Graph
    backward: Graph
    given: tuple[bool, ...]
    counts: tuple[int, int, int]

    def _residuals(self, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...]) -> tuple[Sequence[Sym], list[Sym]]:
        """Return what stands before and after the cotangents among the inputs of ``backward``."""
        of_fn, of_fwd, of_bwd = self.counts
        captured, args = inputs[of_fn : of_fn + of_fwd], inputs[of_fn + of_fwd + of_bwd :]
        made = builder().inline(self.forward, [*captured, *args])
        return inputs[of_fn + of_fwd :][:of_bwd], made[len(outputs) :]

    def vjp(self, cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        captured, residuals = self._residuals(inputs, outputs)
        got = builder().inline(self.backward, [*captured, *materialize(cts, outputs), *residuals])
        # a zero, not None: it is how a differentiated capture reaches its refusal
        zeros = materialize([None] * sum(self.counts), inputs[: sum(self.counts)])
        return (*zeros, *scatter(self.given, got))

    def jvp(self, tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        """Transpose ``backward``, which is linear in the cotangents: its pullback maps tangents in to tangents out."""
        captured, residuals = self._residuals(inputs, outputs)
        floats = [is_float(s.dtype) for s in outputs]
        wrt = [len(captured) + i for i, m in enumerate(floats) if m]
        first, last = len(captured), len(captured) + len(outputs)
        anywhere = materialize([None] * len(outputs), outputs)
        point = [*captured, *anywhere, *residuals]
        args_t = tangents[sum(self.counts) :]
        given = [t for t, m in zip(args_t, self.given, strict=True) if m]
        known = [t for t in given if t is not None]

        def transposed(*syms: Sym) -> list[Sym]:
            left = iter(syms[len(point) :])
            _, pullback = autodiff.vjp(self.backward, syms[: len(point)], wrt)
            return pullback([None if t is None else next(left) for t in given])

        graph = build(transposed, [s.type for s in (*point, *known)])
        used = {v for node in optimize(graph, verify=False).nodes for v in node.inputs}
        if used & {*graph.inputs[first:last]}:
            reason = "its bwd is not linear in the cotangent, so there is no forward derivative to be made from it"
            raise NotDifferentiable(op=f"custom_vjp function {self.name}", reason=reason)
        return tuple(scatter(floats, builder().inline(graph, [*point, *known])))


@dataclasses.dataclass(eq=False)
class _Same:
    """The rule of a call that ``bwd`` makes of the function it belongs to: the one that is being made meanwhile.

    Attributes:
        fn, args, static: what is called, and on what.
        rule: the rule, once it is there.
    """

    fn: custom_vjp
    args: Flat
    static: dict[int, Any]
    rule: _Written | None = None

    def like(self, fn: custom_vjp, args: Flat, static: dict[int, Any]) -> bool:
        mine, theirs = ([*a.rest, *(s.type for s in a.syms), a.tree] for a in (self.args, args))
        if fn is not self.fn or mine != theirs:
            return False
        return all(v is static[k] or (isinstance(v, Hashable) and v == static[k]) for k, v in self.static.items())

    def _rule(self) -> _Written:
        if self.rule is None or any(self.rule.counts):
            reason = "its bwd calls it " + (
                "and differentiates that" if self.rule is None else "and closes over arrays"
            )
            raise NotDifferentiable(op=f"custom_vjp function {name_of(self.fn)}", reason=reason)
        return self.rule

    def vjp(self, cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        return self._rule().vjp(cts, inputs, outputs, params)

    def jvp(self, tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
        return self._rule().jvp(tangents, inputs, outputs, params)


BEING_MADE: ContextVar[tuple[_Same, ...]] = ContextVar("BEING_MADE", default=())
"""The calls whose ``bwd`` is being traced."""

MOST_NESTED = 16
"""Calls that a ``bwd`` may lead to of the function it belongs to, each of other types."""


def _guard(sym: Sym, name: str) -> Sym:
    """Refuse derivatives by something the function closed over: its rule does not know of it."""
    if not is_float(sym.dtype):
        return sym
    graph, _ = close(lambda x: [x], [sym.type])
    reason = "it closes over an array that is being differentiated; make that array an argument"
    (out,) = apply_many(
        "call", sym, graph=graph, name=f"{name} closure", rule=Refuse(f"custom_vjp function {name}", reason)
    )
    return out


class custom_vjp:  # noqa: N801 - a decorator
    """A function with a reverse derivative of its own.

    ``f.defvjp(fwd, bwd)`` gives it: ``fwd(*args)`` returns ``(f(*args), residuals)``; ``bwd(residuals, cotangent)``
    returns a tuple with a cotangent for each argument, None for zero. ``bwd`` must be linear in the cotangent; forward
    derivatives are made from it by transposition. Outside of a trace the function runs as it is.

    Args:
        fn: takes pytrees of arrays by position.
        nondiff_argnums: arguments that are not arrays; ``bwd`` gets them first.
    """

    def __init__(self, fn: Fn, nondiff_argnums: Sequence[int] | int = ()) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._static = (nondiff_argnums,) if isinstance(nondiff_argnums, int) else tuple(nondiff_argnums)
        self._rules: tuple[Fn, Fn] | None = None

    def defvjp(self, fwd: Fn, bwd: Fn) -> None:
        """Set the derivative."""
        self._rules = fwd, bwd

    def __repr__(self) -> str:
        return f"<kernelforge.custom_vjp of {self.__module__}.{name_of(self)}>"

    def __reduce__(self) -> Any:
        return by_name(self) or (custom_vjp, (self._fn, self._static), {"_rules": self._rules})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not tracing() or self in RULED.get():
            return self._fn(*args, **kwargs)
        name = name_of(self._fn)
        if self._rules is None:
            raise RuleMissing(function=name)
        bound = inspect.signature(self._fn).bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.kwargs:
            raise KeywordOnly(function=name, found=", ".join(bound.kwargs))
        static = {i: bound.args[i] for i in self._static}
        return self._call(name, *self._rules, bound.args, static)

    def _call(self, name: str, fwd: Fn, bwd: Fn, args: tuple[Any, ...], static: dict[int, Any]) -> Any:
        def merged(values: Sequence[Any]) -> list[Any]:
            left = iter(values)
            return [static[i] if i in static else next(left) for i in range(len(args))]

        def forward(*values: Any) -> Any:
            return pair("custom_vjp", fwd, fwd(*merged(values)), f"(what {name} returns, residuals)")

        given: list[bool] = []

        def backward(cotangent: Any, residuals: Any) -> Any:
            result = bwd(*static.values(), residuals, cotangent)
            if isinstance(result, tuple) and len(result) == len(zero):
                result = tuple(z if r is None else r for r, z in zip(result, zero, strict=True))
            mask, syms = present(matched(f"bwd of {name}", "result", result, dynamic, optional=True))
            given.extend(mask)
            return [Tracer(s) for s in syms]

        dynamic = flat(tuple(a for i, a in enumerate(args) if i not in static))
        zero = dynamic.unflatten([None] * len(dynamic.syms))
        run = trace_at(lambda *values: self._fn(*merged(values)), dynamic)
        same = next((m for m in BEING_MADE.get() if m.like(self, dynamic, static)), None)
        if same is not None:
            called = apply_many("call", *run.captured, *dynamic.syms, graph=run.graph, name=name, rule=same)
            return run.out.results(called)
        if sum(m.fn is self for m in BEING_MADE.get()) == MOST_NESTED:
            reason = f"its bwd calls it, again and again, now on {', '.join(str(s.type) for s in dynamic.syms)}"
            raise NotDifferentiable(op=f"custom_vjp function {name}", reason=reason)
        token = RULED.set(RULED.get() | {self})
        try:
            ahead = trace_at(forward, dynamic)
        finally:
            RULED.reset(token)
        _require_alike(name, ahead.out, run.out)
        same = _Same(self, dynamic, static)
        others = BEING_MADE.set((*BEING_MADE.get(), same))
        try:
            back = trace_at(backward, ahead.out)
        finally:
            BEING_MADE.reset(others)
        counts = len(run.captured), len(ahead.captured), len(back.captured)
        inputs = [*(_guard(s, name) for s in (*run.captured, *ahead.captured, *back.captured)), *dynamic.syms]

        def whole(*values: Sym) -> list[Sym]:
            return builder().inline(run.graph, [*values[: counts[0]], *values[sum(counts) :]])

        graph = build(whole, [s.type for s in inputs])
        same.rule = rule = _Written(name, ahead.graph, back.graph, tuple(given), counts)
        return run.out.results(apply_many("call", *inputs, graph=graph, name=name, rule=rule))


def _require_alike(name: str, ahead: Flat, run: Flat) -> None:
    """Require that what ``fwd`` returns first is like what the function returns."""
    structure = ahead.tree.children()[0]
    if structure != run.tree:
        raise TreeMismatch(what=f"fwd of {name}", name="result[0]", found=structure, expected=run.tree)
    for found, expected, leaf in zip(ahead.syms, run.syms, run.names("result[0]"), strict=False):
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise LeafMismatch(what=f"fwd of {name}", name=leaf, found=found.type, expected=expected.type)
