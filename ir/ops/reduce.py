"""Reductions over axes."""

from __future__ import annotations

import math
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
    axes,
    one_dtype,
    operands,
    shifted,
    where,
)
from kernelforge.ir.types import Type


def _reduce(
    name: str,
    doc: str,
    op: str,
    ufunc: np.ufunc,
    vjp: Callable[[Sym, Sym, Sym, tuple[int, ...]], Sym],
    jvp: Callable[[Sym, Sym, Sym, tuple[int, ...]], Sym],
    dtypes: frozenset[str],
    bound: float,
) -> Primitive:
    """Make the record of a reduction; ``vjp(ct, x, y, axes)`` and ``jvp(t, x, y, axes)`` are its derivatives."""

    def typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
        operands(name, types, 1)
        one_dtype(name, types, dtypes)
        (t,) = types
        drop = axes(name, params, t.ndim)
        shape = tuple(n for a, n in enumerate(t.shape) if a not in drop)
        if op in ("max", "min") and not t.size and 0 not in shape:
            raise ShapeMismatch(op=name, found=t.shape, expected=f"at least one element along axes {drop}")
        return (Type(shape, t.dtype),)

    def meaning(arrays: Arrays, params: Params) -> tuple[Array, ...]:
        (x,) = arrays
        (out,) = typing([Type(x.shape, x.dtype)], params)
        held = DTYPES[accumulator(out.name)]
        with np.errstate(all="ignore"):
            made = (
                ufunc.reduce(x.astype(held), axis=params["axes"], dtype=held) if x.size or op in ("add", "mul") else 0
            )
            return (np.full(out.shape, made).astype(x.dtype),)

    def lower(types: Sequence[Type], out: Type, params: Params) -> Reduction:
        (t,) = types
        drop = params["axes"]
        held = accumulator(t.name)

        def element(at: At, index: Sequence[Expr], r: Sequence[Expr]) -> Expr:
            kept, walked = iter(index), iter(r)
            return at(0, [next(walked) if a in drop else next(kept) for a in range(t.ndim)]).cast(held)

        return Reduction(tuple(t.shape[a] for a in drop), op, held, element)

    def pull(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
        return (vjp(cts[0], inputs[0], outputs[0], params["axes"]),)

    def push(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
        (t,) = tangents
        return (None if t is None else jvp(t, inputs[0], outputs[0], params["axes"]),)

    def samples() -> list[Sample]:
        x = np.random.default_rng(7).uniform(0.25, 4.0, (3, 4, 5))
        return [Sample((x,), {"axes": a}) for a in ((1,), (0, 2), (0, 1, 2), ())]

    return Primitive(
        name, Kind.REDUCE, doc, ("axes",), typing, meaning, pull, push, along(name), lower, samples, dtypes, bound
    )


def _repeated(y: Sym, x: Sym, drop: tuple[int, ...]) -> Sym:
    """Repeat a reduction's result along the axes it dropped."""
    return y.reshape(tuple(1 if a in drop else n for a, n in enumerate(x.shape))).broadcast(x.shape)


def _others(x: Sym, drop: tuple[int, ...]) -> Sym:
    """Return, for each element, the product of all other elements that are reduced with it; right with zeros."""
    order = (*(a for a in range(x.ndim) if a not in drop), *drop)
    moved = x.transpose(order)
    lead = moved.shape[: x.ndim - len(drop)]
    flat = moved.reshape((*lead, math.prod(x.shape[a] for a in drop)))
    on = len(lead)
    before = shifted(apply("cumprod", flat, axis=on, reverse=False), on, 1, 1.0)
    after = shifted(apply("cumprod", flat, axis=on, reverse=True), on, -1, 1.0)
    made = (before * after).reshape(moved.shape)
    return made.transpose(tuple(sorted(range(x.ndim), key=order.__getitem__)))


def _extremum() -> tuple[
    Callable[[Sym, Sym, Sym, tuple[int, ...]], Sym], Callable[[Sym, Sym, Sym, tuple[int, ...]], Sym]
]:
    """Make the derivatives of max and min: ties share evenly.

    Where the extremum is NaN, the elements that are NaN share.
    """

    def ties(x: Sym, y: Sym, drop: tuple[int, ...]) -> Sym:
        wide = _repeated(y, x, drop)
        return x.eq(wide) | (apply("isnan", x) & apply("isnan", wide))

    def share(tied: Sym, like: Sym, drop: tuple[int, ...]) -> Sym:
        return like / tied.astype(like.dtype).sum(drop)

    def vjp(ct: Sym, x: Sym, y: Sym, drop: tuple[int, ...]) -> Sym:
        tied = ties(x, y, drop)
        return where(tied, _repeated(share(tied, ct, drop), x, drop), 0.0)

    def jvp(t: Sym, x: Sym, y: Sym, drop: tuple[int, ...]) -> Sym:
        tied = ties(x, y, drop)
        return share(tied, where(tied, t, 0.0).sum(drop), drop)

    return vjp, jvp


PRIMITIVES: tuple[Primitive, ...] = (
    _reduce(
        "sum",
        "The sum over axes; of nothing it is 0.",
        "add",
        np.add,
        lambda ct, x, y, drop: _repeated(ct, x, drop),
        lambda t, x, y, drop: t.sum(drop),
        NUMBERS,
        4.0,
    ),
    _reduce(
        "prod",
        "The product over axes; of nothing it is 1.",
        "mul",
        np.multiply,
        lambda ct, x, y, drop: _repeated(ct, x, drop) * _others(x, drop),
        lambda t, x, y, drop: (t * _others(x, drop)).sum(drop),
        NUMBERS,
        4.0,
    ),
    _reduce(
        "max",
        "The largest element over axes, NaN if there is one; of bool, whether any holds.",
        "max",
        np.maximum,
        *_extremum(),
        ALL,
        0.0,
    ),
    _reduce(
        "min",
        "The least element over axes, NaN if there is one; of bool, whether all hold.",
        "min",
        np.minimum,
        *_extremum(),
        ALL,
        0.0,
    ),
)
