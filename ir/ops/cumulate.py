"""Running reductions along one axis.

The derivatives of all of them are running reductions again, none divides, so zeros do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kernelforge.dtypes import DTYPES, accumulator
from kernelforge.errors import ShapeMismatch
from kernelforge.ir.build import Sym, apply
from kernelforge.ir.graph import At, Kind, Params, Primitive, Reduction, Sample
from kernelforge.ir.kernel import Expr
from kernelforge.ir.ops.rules import (
    ALL,
    NUMBERS,
    Array,
    Arrays,
    MaybeSyms,
    Syms,
    along,
    axis,
    one_dtype,
    operands,
    or_zeros,
    shapes,
    shifted,
    where,
)
from kernelforge.ir.types import Type

Derivative = Callable[[Sym, Sym, Sym, int, bool], Sym]
"""``rule(t, x, y, axis, reverse)``."""

_PARAMS = ("axis", "reverse")


def _typing(name: str, types: Sequence[Type], count: int, params: Params, dtypes: frozenset[str]) -> tuple[Type, ...]:
    operands(name, types, count)
    one_dtype(name, types, dtypes)
    if any(t.shape != types[0].shape for t in types):
        raise ShapeMismatch(op=name, found=shapes(types), expected="one shape; broadcast first")
    axis(name, params, types[0].ndim)
    return (Type(types[0].shape, types[0].dtype),)


def _backwards(x: Array, params: Params) -> Array:
    return np.flip(x, params["axis"]) if params["reverse"] else x


def _cumulate(
    name: str,
    doc: str,
    op: str,
    ufunc: np.ufunc,
    vjp: Derivative,
    jvp: Derivative,
    dtypes: frozenset[str],
    bound: float,
) -> Primitive:
    def meaning(arrays: Arrays, params: Params) -> tuple[Array, ...]:
        (x,) = arrays
        (t,) = _typing(name, [Type(x.shape, x.dtype)], 1, params, dtypes)
        held = DTYPES[accumulator(t.name)]
        with np.errstate(all="ignore"):
            made = ufunc.accumulate(_backwards(x.astype(held), params), params["axis"], held)
            return (_backwards(made, params).astype(x.dtype),)

    def lower(types: Sequence[Type], out: Type, params: Params) -> Reduction:
        held = accumulator(out.name)

        def element(at: At, index: Sequence[Expr], r: Sequence[Expr]) -> Expr:
            return at(0, index).cast(held)

        return Reduction((out.shape[params["axis"]],), op, held, element)

    def pull(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
        return (vjp(cts[0], inputs[0], outputs[0], params["axis"], params["reverse"]),)

    def push(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
        (t,) = tangents
        return (None if t is None else jvp(t, inputs[0], outputs[0], params["axis"], params["reverse"]),)

    return Primitive(
        name,
        Kind.CUMULATE,
        doc,
        _PARAMS,
        lambda types, params: _typing(name, types, 1, params, dtypes),
        meaning,
        pull,
        push,
        along(name),
        lower,
        lambda: _samples(1),
        dtypes,
        bound,
    )


def _samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(13)
    return [
        Sample(tuple(rng.uniform(0.25, 1.75, (3, 4, 2)) for _ in range(count)), {"axis": a, "reverse": r})
        for a, r in ((1, False), (0, True), (2, True))
    ]


def _cumsum(t: Sym, on: int, reverse: bool) -> Sym:
    return apply("cumsum", t, axis=on, reverse=reverse)


def _recur(decay: Sym, x: Sym, on: int, reverse: bool) -> Sym:
    return apply("recur", decay, x, axis=on, reverse=reverse)


def _before(x: Sym, on: int, reverse: bool, value: float) -> Sym:
    """Return the elements one step earlier in the walk, ``value`` before the first."""
    return shifted(x, on, -1 if reverse else 1, value)


def _adjoint(decay: Sym, ct: Sym, on: int, reverse: bool) -> Sym:
    """Return the cotangents of the steps of a recurrence: G_i = ct_i + decay_{i+1} G_{i+1}."""
    return _recur(_before(decay, on, not reverse, 0.0), ct, on, not reverse)


def _cumprod_vjp(ct: Sym, x: Sym, y: Sym, on: int, reverse: bool) -> Sym:
    return _before(y, on, reverse, 1.0) * _adjoint(x, ct, on, reverse)


def _cumprod_jvp(t: Sym, x: Sym, y: Sym, on: int, reverse: bool) -> Sym:
    return _recur(x, _before(y, on, reverse, 1.0) * t, on, reverse)


def _held(x: Sym, y: Sym) -> tuple[Sym, Sym]:
    """Return where the running extremum was met (last met, at ties), and a decay that is 0 there and 1 elsewhere."""
    met = x.eq(y)
    return met, (~met).astype(x.dtype)


def _extremum_vjp(ct: Sym, x: Sym, y: Sym, on: int, reverse: bool) -> Sym:
    met, decay = _held(x, y)
    return where(met, _adjoint(decay, ct, on, reverse), 0.0)


def _extremum_jvp(t: Sym, x: Sym, y: Sym, on: int, reverse: bool) -> Sym:
    met, decay = _held(x, y)
    return _recur(decay, where(met, t, 0.0), on, reverse)


def _recur_numpy(arrays: Arrays, params: Params) -> tuple[Array, ...]:
    decay, x = (np.moveaxis(_backwards(a, params), params["axis"], 0) for a in arrays)
    (t,) = _typing("recur", [Type(a.shape, a.dtype) for a in arrays], 2, params, NUMBERS)
    wide = DTYPES[accumulator(t.name)]
    held = np.zeros(x.shape[1:], wide)
    made = np.empty(x.shape, wide)
    with np.errstate(all="ignore"):
        for i in range(len(x)):
            held = decay[i].astype(wide) * held + x[i].astype(wide)
            made[i] = held
        return (_backwards(np.moveaxis(made, 0, params["axis"]), params).astype(t.dtype),)


def _recur_lower(types: Sequence[Type], out: Type, params: Params) -> Reduction:
    held = accumulator(out.name)

    def element(at: At, index: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        return at(1, index).cast(held)

    def decay(at: At, index: Sequence[Expr]) -> Expr:
        return at(0, index).cast(held)

    return Reduction((out.shape[params["axis"]],), "recur", held, element, decay)


def _recur_vjp(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    on, reverse = params["axis"], params["reverse"]
    g = _adjoint(inputs[0], cts[0], on, reverse)
    return g * _before(outputs[0], on, reverse, 0.0), g


def _recur_jvp(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    on, reverse = params["axis"], params["reverse"]
    td, tx = tangents
    if td is None and tx is None:
        return (None,)
    step = or_zeros(tx, inputs[1]) if td is None else td * _before(outputs[0], on, reverse, 0.0)
    if td is not None and tx is not None:
        step = step + tx
    return (_recur(inputs[0], step, on, reverse),)


PRIMITIVES: tuple[Primitive, ...] = (
    _cumulate(
        "cumsum",
        "The sum of the elements up to each one.",
        "add",
        np.add,
        lambda t, x, y, on, reverse: _cumsum(t, on, not reverse),
        lambda t, x, y, on, reverse: _cumsum(t, on, reverse),
        NUMBERS,
        4.0,
    ),
    _cumulate(
        "cumprod",
        "The product of the elements up to each one.",
        "mul",
        np.multiply,
        _cumprod_vjp,
        _cumprod_jvp,
        NUMBERS,
        4.0,
    ),
    _cumulate(
        "cummax",
        "The largest element so far, NaN from the first on.",
        "max",
        np.maximum,
        _extremum_vjp,
        _extremum_jvp,
        ALL,
        0.0,
    ),
    _cumulate(
        "cummin",
        "The least element so far, NaN from the first on.",
        "min",
        np.minimum,
        _extremum_vjp,
        _extremum_jvp,
        ALL,
        0.0,
    ),
    Primitive(
        "recur",
        Kind.CUMULATE,
        "h = decay * h + x along an axis, from h = 0.",
        _PARAMS,
        lambda types, params: _typing("recur", types, 2, params, NUMBERS),
        _recur_numpy,
        _recur_vjp,
        _recur_jvp,
        along("recur"),
        _recur_lower,
        lambda: _samples(2),
        NUMBERS,
        4.0,
    ),
)
