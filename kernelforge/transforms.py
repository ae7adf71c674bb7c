"""Derivatives of Python functions: every transform traces the function to a graph and differentiates that.

While a trace is active the result goes into it, so transforms nest in each other and in ``jit``; arrays of an outer
trace that the function closes over are constants of the derivative. Called on concrete arrays, a transformed function
is traced, compiled and run, anew at each call: put ``jit`` around it to keep the compiled program.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from kernelforge.dtypes import is_float
from kernelforge.errors import (
    ArgnumsOutOfRange,
    InvalidParameter,
    NotFloat,
    NotScalar,
    RepeatedArgnums,
)
from kernelforge.functions import Flat, flat, freeze, matched, pair, require_functions, result, run, trace_at
from kernelforge.ir.batch import every
from kernelforge.ir.build import Sym, apply, apply_many, full, tracing
from kernelforge.ir.ops.call import RECOMPUTE
from kernelforge.ir.ops.control import close, emit_scan
from kernelforge.ir.ops.rules import cut
from kernelforge.ir.types import Type
from kernelforge.jit import by_name, name_of
from kernelforge.trace import Tracer, to_sym

Fn = Callable[..., Any]
Argnums = int | Sequence[int]


def _argnums(what: str, argnums: Argnums, count: int) -> tuple[int, ...]:
    nums = (argnums,) if isinstance(argnums, int | np.integer | str) else tuple(argnums)
    for n in nums:
        if not isinstance(n, int | np.integer):
            raise InvalidParameter(
                op=what, name="argnums", found=argnums, expected="numbers of positional arguments, the first is 0"
            )
    for n in nums:
        if not -count <= n < count:
            raise ArgnumsOutOfRange(what=what, found=n, count=count)
    chosen = tuple(int(n) % count for n in nums)
    if len(set(chosen)) < len(chosen):
        raise RepeatedArgnums(what=what, found=nums)
    return chosen


def _require_floats(what: str, args: Flat, names: Sequence[str]) -> None:
    for sym, name in zip(args.syms, names, strict=True):
        if not is_float(sym.dtype):
            raise NotFloat(what=what, name=name, found=Type(sym.shape, sym.dtype))


class _Selected:
    """The arguments that ``argnums`` names, and ``fn`` as a function of these alone."""

    def __init__(self, what: str, fn: Fn, argnums: Argnums, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.fn, self.args, self.kwargs = fn, args, kwargs
        self.single = isinstance(argnums, int | np.integer)
        self.nums = _argnums(what, argnums, len(args))
        self.flat = flat(tuple(args[n] for n in self.nums))
        names = [name for n in self.nums for name in flat(args[n]).names(f"argument {n}")]
        _require_floats(what, self.flat, names)

    def call(self, *selected: Any) -> Any:
        args = list(self.args)
        for n, value in zip(self.nums, selected, strict=True):
            args[n] = value
        return self.fn(*args, **self.kwargs)

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Arrange a leaf for each symbol as the caller named the arguments."""
        restored = self.flat.unflatten(leaves)
        return restored[0] if self.single else restored


class Transformed:
    """``traced`` as a function on concrete arguments too.

    Args:
        make, args: what makes this of ``fn``, for pickles.
    """

    def __init__(self, fn: Fn, traced: Fn, make: Fn, *args: Any) -> None:
        functools.update_wrapper(self, fn)
        # of jit and the like it names the same function under NumPy, which this is not
        del vars(self)["__wrapped__"]
        with contextlib.suppress(TypeError, ValueError):  # some functions in C have none
            self.__signature__ = inspect.signature(fn)
        self._traced = traced
        self._made = make, (fn, *args)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._traced(*args, **kwargs) if tracing() else run(self._traced, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<kernelforge.{self._made[0].__name__} of {self.__module__}.{name_of(self)}>"

    def __reduce__(self) -> Any:
        return by_name(self) or self._made


def _value_and_grad(fn: Fn, argnums: Argnums, has_aux: bool) -> Fn:
    def traced(*args: Any, **kwargs: Any) -> Any:
        selected = _Selected("grad", fn, argnums, args, kwargs)

        def scalar(*values: Any) -> Any:
            out = selected.call(*values)
            value, aux = pair("grad", fn, out, "(value, aux)") if has_aux else (out, None)
            found = flat(value)
            if len(found.syms) != 1 or found.syms[0].shape or not is_float(found.syms[0].dtype):
                raise NotScalar(function=name_of(fn), found=found.types)
            return Tracer(found.syms[0]), aux

        t = trace_at(scalar, selected.flat)
        outputs, pullback = t.vjp()
        cotangents = pullback([full(1.0, outputs[0]), *[None] * (len(outputs) - 1)])
        value, aux = t.out.results(outputs)
        return ((value, aux) if has_aux else value), selected.unflatten([result(s) for s in cotangents])

    return traced


def value_and_grad(fn: Fn, argnums: Argnums = 0, has_aux: bool = False) -> Fn:
    """Make a function that returns the value of ``fn`` and its gradient.

    Args:
        fn: returns one float of shape (), or with ``has_aux`` a pair of that and any other results.
        argnums: positional arguments, pytrees of floats, to differentiate by; with a sequence the gradient is a tuple.

    Raises:
        ArgnumsOutOfRange, NotFloat, NotScalar: when the function that is returned is called; all are TypeErrors.
    """
    return Transformed(fn, _value_and_grad(fn, argnums, has_aux), value_and_grad, argnums, has_aux)


def grad(fn: Fn, argnums: Argnums = 0, has_aux: bool = False) -> Fn:
    """Make a function that returns the gradient of ``fn``; with ``has_aux`` a pair of it and the other results.

    Arguments and errors are those of ``value_and_grad``.
    """
    both = _value_and_grad(fn, argnums, has_aux)

    def traced(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return Transformed(fn, traced, grad, argnums, has_aux)


def vjp(fn: Fn, *primals: Any, has_aux: bool = False) -> Any:
    """Return ``fn(*primals)`` and a function from a cotangent of that to a tuple of cotangents of ``primals``.

    With ``has_aux`` ``fn`` returns a pair, and the other results stand last: ``(out, pullback, aux)``. Integer and bool
    outputs have no cotangent: what the cotangent tree holds for them is not looked at. On concrete primals each call of
    the pullback computes the function again.

    Raises:
        NotFloat: when an array in ``primals`` is not of floats.
        TreeMismatch, LeafMismatch: from the pullback.
    """
    require_functions("vjp", fn=fn)
    if not tracing():
        frozen = freeze(fn, primals)

        def forward(*primals: Any) -> Any:
            args = flat(primals)
            _require_floats("vjp", args, args.names("primals"))
            return frozen(*primals)

        out = run(forward, primals, {})
        value, *aux = pair("vjp", fn, out, "(out, aux)") if has_aux else (out,)

        def concrete(cotangent: Any) -> Any:
            def both(primals: Any, cotangent: Any) -> Any:
                return vjp(frozen, *primals, has_aux=has_aux)[1](cotangent)

            return both(primals, cotangent) if tracing() else run(both, (primals, cotangent), {})

        return value, concrete, *aux

    args = flat(primals)
    _require_floats("vjp", args, args.names("primals"))

    def checked(*values: Any) -> Any:
        out = fn(*values)
        return pair("vjp", fn, out, "(out, aux)") if has_aux else out

    t = trace_at(checked, args)
    outputs, pull = t.vjp()
    whole = t.out.results(outputs)
    value = flat(whole[0] if has_aux else whole)

    def pullback(cotangent: Any) -> Any:
        given = matched("pullback", "cotangent", cotangent, value)
        return args.results(pull([*given, *[None] * (len(outputs) - len(given))]))

    return (value.results(value.syms), pullback, *whole[1:]) if has_aux else (whole, pullback)


def jvp(fn: Fn, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """Return ``fn(*primals)`` and its derivative in the direction ``tangents``; integer outputs have a zero tangent.

    Raises:
        NotFloat: when an array in ``primals`` is not of floats.
        TreeMismatch, LeafMismatch: when ``tangents`` are not like ``primals``.
    """
    require_functions("jvp", fn=fn)
    for name, found in (("primals", primals), ("tangents", tangents)):
        if not isinstance(found, tuple | list):
            raise InvalidParameter(op="jvp", name=name, found=found, expected="a tuple, of one for each argument")
    if not tracing():

        def both(primals: Any, tangents: Any) -> Any:
            return jvp(fn, primals, tangents)

        return run(both, (primals, tangents), {})  # type: ignore[no-any-return]

    args = flat(tuple(primals))
    _require_floats("jvp", args, args.names("primals"))
    given = matched("jvp", "tangents", tuple(tangents), args)
    t = trace_at(fn, args)
    outputs, outputs_t = t.jvp(given)
    return t.out.results(outputs), t.out.results(outputs_t)


def _one_hot(i: Sym, like: Sym) -> Sym:
    """Make an array like ``like`` with a one at the flat index ``i``."""
    ones: Sym = apply("iota", shape=(like.size,), axis=0, dtype="i64").eq(i).astype(like.dtype)
    return ones.reshape(like.shape)


AT_ONCE = 128
"""Rows of a Jacobian that are made at once: each takes the memory of a derivative; products are fast with as many."""


def _each(fn: Callable[[Sym], Sequence[Sym]], count: int) -> list[Sym]:
    """Apply a function of a number to all numbers below ``count``; results are stacked along axis 0."""

    def rows(start: Sym | None, size: int) -> list[Sym]:
        numbers = apply("iota", shape=(size,), axis=0, dtype="i64")
        numbers = numbers if start is None else numbers + start
        graph, captured = close(fn, [Type((), numbers.dtype)])
        has = [*[False] * len(captured), True]
        return every(graph, [*captured, numbers], has, size)

    if count <= AT_ONCE:
        return rows(None, count)
    blocks = -(-count // AT_ONCE)
    starts = apply("iota", shape=(blocks,), axis=0, dtype="i64") * AT_ONCE
    stacked = emit_scan(lambda start: rows(start, AT_ONCE), [], [starts], blocks, reverse=False)
    return [cut(y.reshape((blocks * AT_ONCE, *y.shape[2:])), 0, 0, count) for y in stacked]


def jacfwd(fn: Fn, argnums: Argnums = 0) -> Fn:
    """Make a function that returns the Jacobian of ``fn``, by a forward derivative for each input element.

    For each output leaf the Jacobian holds a tree like the arguments', of arrays of shape ``(*output, *input)``.
    """

    def traced(*args: Any, **kwargs: Any) -> Any:
        selected = _Selected("jacfwd", fn, argnums, args, kwargs)
        t = trace_at(selected.call, selected.flat)
        columns: list[list[Sym]] = []
        for k, x in enumerate(t.inputs):

            def step(i: Sym, k: int = k, x: Sym = x) -> list[Sym]:
                return t.jvp([_one_hot(i, x) if j == k else None for j in range(len(t.inputs))])[1]

            stacked = _each(step, x.size)
            columns.append([_last(ys).reshape((*ys.shape[1:], *x.shape)) for ys in stacked])
        rows = [selected.unflatten([result(column[o]) for column in columns]) for o in range(len(t.out.syms))]
        return t.out.unflatten(rows)

    return Transformed(fn, traced, jacfwd, argnums)


def _last(x: Sym) -> Sym:
    """Move axis 0 to the end."""
    return x.transpose((*range(1, x.ndim), 0))


def jacrev(fn: Fn, argnums: Argnums = 0) -> Fn:
    """Make a function that returns the Jacobian of ``fn``, by a pullback for each output element; as ``jacfwd``."""

    def traced(*args: Any, **kwargs: Any) -> Any:
        selected = _Selected("jacrev", fn, argnums, args, kwargs)
        t = trace_at(selected.call, selected.flat)
        _require_floats("jacrev", t.out, t.out.names("the result"))
        outputs, pullback = t.vjp()
        rows = []
        for k, y in enumerate(outputs):

            def step(i: Sym, k: int = k, y: Sym = y) -> list[Sym]:
                return pullback([_one_hot(i, y) if j == k else None for j in range(len(outputs))])

            stacked = _each(step, y.size)
            rows.append(selected.unflatten([result(xs.reshape((*y.shape, *xs.shape[1:]))) for xs in stacked]))
        return t.out.unflatten(rows)

    return Transformed(fn, traced, jacrev, argnums)


def hessian(fn: Fn, argnums: Argnums = 0) -> Fn:
    """Make a function that returns the second derivatives of ``fn``: ``jacfwd`` of ``jacrev``."""
    return jacfwd(jacrev(fn, argnums), argnums)


class _Checkpointed:
    """See ``checkpoint``."""

    def __init__(self, fn: Fn) -> None:
        functools.update_wrapper(self, fn)

    __wrapped__: Fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fn = self.__wrapped__
        if not tracing():
            return fn(*args, **kwargs)
        t = trace_at(lambda args, kwargs: fn(*args, **kwargs), flat((args, kwargs)))
        outputs = apply_many("call", *t.captured, *t.inputs, graph=t.graph, name=name_of(fn), rule=RECOMPUTE)
        return t.out.results(outputs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        return by_name(self) or (checkpoint, (self.__wrapped__,))


def checkpoint(fn: Fn) -> Fn:
    """Make ``fn`` keep nothing but its inputs for the backward pass, which computes it again."""
    return _Checkpointed(fn)


def stop_gradient(x: Any) -> Any:
    """Return ``x``, a pytree, as a constant of every derivative."""

    def stopped(leaf: Any) -> Any:
        return result(apply("stop_gradient", to_sym(leaf))) if isinstance(leaf, Tracer) else leaf

    return optree.tree_map(stopped, x)
