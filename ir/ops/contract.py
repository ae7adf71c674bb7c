"""The contraction: matrix products, batched or not, and with ``window`` convolutions, over named axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kernelforge.dtypes import DTYPES, accumulator
from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Sym, apply
from kernelforge.ir.graph import At, Kind, Params, Primitive, Reduction, Sample
from kernelforge.ir.kernel import Expr
from kernelforge.ir.ops.rules import NUMBERS, Array, Arrays, MaybeSyms, Syms, ints, one_dtype, operands, shapes
from kernelforge.ir.types import Type

Names = tuple[int, ...]


def _names(params: Params) -> tuple[Names, Names, Names]:
    return params["x_axes"], params["y_axes"], params["out_axes"]


def _typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    operands("contract", types, 2)
    one_dtype("contract", types, NUMBERS)
    extents: dict[int, int] = {}
    for name, t in zip(("x_axes", "y_axes"), types, strict=True):
        for axis, n in zip(ints("contract", params, name, t.ndim), t.shape, strict=True):
            if extents.setdefault(axis, n) != n:
                raise ShapeMismatch(
                    op="contract", found=shapes(types), expected=f"one extent for each of {_names(params)}"
                )
    x, y, out = _names(params)
    ints("contract", params, "out_axes")
    for name, value in (("x_axes", x), ("y_axes", y), ("out_axes", out)):
        if len(set(value)) != len(value):
            raise InvalidParameter(op="contract", name=name, found=value, expected="no name twice")
    single = set(x) ^ set(y)
    if not single <= set(out) or not set(out) <= set(x) | set(y):
        expected = f"names of {x} and {y}, among them all that only one of them has"
        raise InvalidParameter(op="contract", name="out_axes", found=out, expected=expected)
    return (Type(tuple(extents[a] for a in out), types[0].dtype),)


def _numpy(arrays: Arrays, params: Params) -> tuple[Array, ...]:
    (t,) = _typing([Type(a.shape, a.dtype) for a in arrays], params)
    x_axes, y_axes, out = _names(params)
    both = [a for a in x_axes if a in y_axes]
    batch, inner = [a for a in both if a in out], [a for a in both if a not in out]
    rows, columns = [a for a in x_axes if a not in y_axes], [a for a in y_axes if a not in x_axes]
    extents = dict(zip((*x_axes, *y_axes), (*arrays[0].shape, *arrays[1].shape), strict=True))

    def matrix(array: Array, names: Names, groups: Sequence[Sequence[int]]) -> Array:
        moved = array.transpose([names.index(a) for group in groups for a in group])
        return moved.astype(DTYPES[accumulator(t.name)]).reshape(
            [math.prod(extents[a] for a in group) for group in groups]
        )

    with np.errstate(all="ignore"):
        made = matrix(arrays[0], x_axes, (batch, rows, inner)) @ matrix(arrays[1], y_axes, (batch, inner, columns))
        order = [*batch, *rows, *columns]
        made = made.reshape([extents[a] for a in order]).transpose([order.index(a) for a in out])
        return (made.astype(t.dtype),)


def _lower(types: Sequence[Type], out: Type, params: Params) -> Reduction:
    x, y, names = _names(params)
    inner = tuple(a for a in x if a not in names)
    held = accumulator(out.name)

    def element(at: At, index: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        where = dict(zip((*names, *inner), (*index, *r), strict=True))
        return at(0, [where[a] for a in x]).cast(held) * at(1, [where[a] for a in y]).cast(held)

    return Reduction(tuple(types[0].shape[x.index(a)] for a in inner), "add", held, element)


def _contract(x: Sym, y: Sym, x_axes: Names, y_axes: Names, out_axes: Names) -> Sym:
    return apply("contract", x, y, x_axes=x_axes, y_axes=y_axes, out_axes=out_axes)


def _vjp(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    (ct,), (x, y), (x_axes, y_axes, out) = cts, inputs, _names(params)
    return _contract(ct, y, out, y_axes, x_axes), _contract(x, ct, x_axes, out, y_axes)


def _jvp(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    (x, y), (tx, ty) = inputs, tangents
    first = None if tx is None else _contract(tx, y, *_names(params))
    second = None if ty is None else _contract(x, ty, *_names(params))
    return (first + second if first is not None and second is not None else first if second is None else second,)


def _batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Syms:
    new = max((*params["x_axes"], *params["y_axes"]), default=-1) + 1
    x, y = ((new, *params[name]) if h else params[name] for name, h in zip(("x_axes", "y_axes"), has, strict=True))
    return (apply("contract", *inputs, x_axes=x, y_axes=y, out_axes=(new, *params["out_axes"])),)


def _samples() -> list[Sample]:
    def make(x: tuple[int, ...], y: tuple[int, ...], *names: Names) -> Sample:
        rng = np.random.default_rng(11)
        inputs = (rng.uniform(0.25, 2.0, x), rng.uniform(0.25, 2.0, y))
        return Sample(inputs, dict(zip(("x_axes", "y_axes", "out_axes"), names, strict=True)))

    return [
        make((3, 4), (4, 5), (0, 1), (1, 2), (0, 2)),
        make((2, 3, 4), (5, 4, 2), (0, 1, 2), (3, 2, 0), (3, 0, 1)),
        make((3, 2, 4), (4, 2), (0, 1, 2), (2, 1), (0,)),
        make((3,), (2,), (0,), (1,), (1, 0)),
        make((3, 0), (0, 2), (0, 1), (1, 2), (0, 2)),
    ]


PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(
        "contract",
        Kind.CONTRACT,
        "The product of elements that agree in the shared names, summed over the names that are not in the result.",
        ("x_axes", "y_axes", "out_axes"),
        _typing,
        _numpy,
        _vjp,
        _jvp,
        _batch,
        _lower,
        _samples,
        NUMBERS,
        4.0,
    ),
)
