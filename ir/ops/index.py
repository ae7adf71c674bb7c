"""Reading and writing where data says, and counting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS, SIGNED, UNSIGNED
from kernelforge.errors import DtypeMismatch, InvalidParameter, NotDifferentiable, ShapeMismatch
from kernelforge.ir.batch import leading
from kernelforge.ir.build import Sym, apply, builder, full
from kernelforge.ir.graph import At, Kind, Params, Primitive, Sample
from kernelforge.ir.kernel import Const, Expr, select
from kernelforge.ir.ops.rules import (
    ALL,
    NUMBERS,
    Array,
    Arrays,
    MaybeSyms,
    Syms,
    axes,
    axis,
    behind,
    ints,
    mapped,
    one_dtype,
    operands,
    or_zeros,
    shapes,
    where,
)
from kernelforge.ir.types import Type

Shape = tuple[int, ...]


def _indexed(op: str, x: Type, indices: Sequence[Type], params: Params) -> Shape:
    """Check index arrays; return the shape that reading ``x`` with them gives."""
    listed = axes(op, params, x.ndim, ordered=False)
    if len(indices) != len(listed) or not listed or any(t.shape != indices[0].shape for t in indices):
        raise ShapeMismatch(
            op=op, found=f"index arrays {shapes(indices)}", expected=f"one for each axis of {listed}, of one shape"
        )
    if any(t.name not in INTEGERS for t in indices):
        raise DtypeMismatch(op=op, found=" and ".join(t.name for t in indices), expected="index arrays of integers")
    return (*indices[0].shape, *(n for a, n in enumerate(x.shape) if a not in listed))


def missing(dtype: str) -> float:
    """Return what reading out of range gives."""
    if dtype in FLOATS:
        return math.nan
    if dtype == "bool":
        return True
    info = np.iinfo(DTYPES[dtype])
    return int(info.max if dtype in UNSIGNED else info.min)


def _resolve(shape: Shape, indices: Arrays, listed: Shape) -> tuple[tuple[Array, ...], Array]:
    """Return indices that count from the start, and which elements are in range on all axes; others are set to 0."""
    inside = np.ones(indices[0].shape, bool)
    made = []
    for a, raw in zip(listed, indices, strict=True):
        n = shape[a]
        i = raw.astype(np.int64)
        if raw.dtype.kind == "i":  # an unsigned index too large for int64 became negative, and out of range it is
            i = np.where(i < 0, i + n, i)
        inside &= (i >= 0) & (i < n)
        made.append(i)
    return tuple(np.where(inside, i, 0) for i in made), inside


def _front(listed: Shape, ndim: int) -> list[int]:
    """Order axes so that the listed ones come first."""
    return [*listed, *(a for a in range(ndim) if a not in listed)]


# gather


def _gather_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    if not types:
        raise ShapeMismatch(op="gather", found="none", expected="an array and index arrays")
    return (Type(_indexed("gather", types[0], types[1:], params), types[0].dtype),)


def _gather_numpy(arrays: Arrays, params: Params) -> tuple[Array, ...]:
    x, listed = arrays[0], params["axes"]
    (t,) = _gather_typing([Type(a.shape, a.dtype) for a in arrays], params)
    fill = np.asarray(missing(t.name)).astype(x.dtype)
    if x.size == 0:
        return (np.full(t.shape, fill),)
    at, inside = _resolve(x.shape, arrays[1:], listed)
    made = x.transpose(_front(listed, x.ndim))[at]
    return (np.where(inside.reshape((*inside.shape, *(1,) * (t.ndim - inside.ndim))), made, fill),)


def _gather_lower(at: At, index: Sequence[Expr], types: Sequence[Type], out: Type, params: Params) -> Expr:
    x, listed, count = types[0], params["axes"], types[1].ndim
    fill = Const(missing(x.name), x.name)
    if x.size == 0:
        return fill
    rest = iter(index[count:])
    inner: list[Expr] = []
    valid: Expr | None = None
    for a, n in enumerate(x.shape):
        if a not in listed:
            inner.append(next(rest))
            continue
        k = listed.index(a) + 1
        i = at(k, index[:count]).cast("i64")
        if types[k].name in SIGNED:
            i = select(i < 0, i + n, i)
        inside = (i >= 0) & (i < n)
        valid = inside if valid is None else valid & inside
        inner.append(i)
    assert valid is not None
    return select(valid, at(0, inner).cast(out.name), fill)


def _gather(x: Sym, indices: Syms, listed: Shape) -> Sym:
    return apply("gather", x, *indices, axes=listed)


def _scatter(x: Sym, v: Sym, indices: Syms, listed: Shape, mode: str) -> Sym:
    return apply("scatter", x, v, *indices, axes=listed, mode=mode)


def _gather_vjp(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    x, indices = inputs[0], inputs[1:]
    return (_scatter(full(0.0, x), cts[0], indices, params["axes"], "add"), *(None for _ in indices))


def _gather_jvp(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    return (None if tangents[0] is None else _gather(tangents[0], inputs[1:], params["axes"]),)


def _numbered(size: int, indices: Sequence[Sym], has: Sequence[bool]) -> list[Sym]:
    """Give index arrays a batch, and put the number of the example before them."""
    wide = [leading(size, i, h) for i, h in zip(indices, has, strict=True)]
    return [apply("iota", shape=wide[0].shape, axis=0, dtype="i64"), *wide]


def _gather_batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Syms:
    (x, *indices), listed = inputs, params["axes"]
    if not has[0]:
        wide = [leading(size, i, h) for i, h in zip(indices, has[1:], strict=True)]
        return (apply("gather", x, *wide, axes=listed),)
    if any(has[1:]):
        return (apply("gather", x, *_numbered(size, indices, has[1:]), axes=(0, *behind(listed))),)
    made = apply("gather", x, *indices, axes=behind(listed))
    count = indices[0].ndim
    return (made.transpose((count, *range(count), *range(count + 1, made.ndim))),)


# scatter

_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
_MODES = ("set", *_COMBINE)


def _scatter_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    if len(types) < 3:
        raise ShapeMismatch(op="scatter", found=shapes(types), expected="an array, values and index arrays")
    mode = params["mode"]
    if mode not in _MODES:
        raise InvalidParameter(op="scatter", name="mode", found=mode, expected=f"one of {', '.join(_MODES)}")
    x, v = types[:2]
    one_dtype("scatter", types[:2], NUMBERS if mode in ("add", "mul") else ALL)
    expected = _indexed("scatter", x, types[2:], params)
    if v.shape != expected:
        raise ShapeMismatch(op="scatter", found=f"values {v.shape}", expected=f"{expected}")
    return (Type(x.shape, x.dtype),)


def _scatter_numpy(arrays: Arrays, params: Params) -> tuple[Array, ...]:
    x, v, listed = arrays[0], arrays[1], params["axes"]
    made = x.copy()
    if x.size == 0 or v.size == 0:
        return (made,)
    at, inside = _resolve(x.shape, arrays[2:], listed)
    order = _front(listed, x.ndim)
    view = made.transpose(order)
    v = v.reshape((-1, *v.shape[inside.ndim :]))
    combine = _COMBINE.get(params["mode"])
    with np.errstate(all="ignore"):
        for k in np.flatnonzero(inside):
            place = tuple(int(i.flat[k]) for i in at)
            view[place] = v[k] if combine is None else combine(view[place], v[k])
    return (made,)


def _values_inside(x: Sym, v: Sym, indices: Syms, listed: Shape) -> Sym:
    """Return for each element of ``v`` whether it is written at all."""
    valid: Sym | None = None
    for a, i in zip(listed, indices, strict=True):
        signed = i.type.name in SIGNED
        wide = i.astype("i64" if signed else "u64")
        inside = wide < full(x.shape[a], wide)
        if signed:
            inside = inside & (wide >= full(-x.shape[a], wide))
        valid = inside if valid is None else valid & inside
    assert valid is not None
    return _along(valid, v)


def _along(x: Sym, v: Sym) -> Sym:
    """Repeat an array of the shape of the index arrays along the other axes of the values."""
    return x.reshape((*x.shape, *(1,) * (v.ndim - x.ndim))).broadcast(v.shape)


def _last(x: Sym, v: Sym, indices: Syms, listed: Shape) -> Sym:
    """Return for each element of ``v`` whether no later one is written to the same place."""
    shape = indices[0].shape
    if indices[0].size <= 1:
        return apply("full", value=True, shape=v.shape, dtype="bool")
    number = apply("iota", shape=(indices[0].size,), axis=0, dtype="i64").reshape(shape)
    target = apply("full", value=-1, shape=tuple(x.shape[a] for a in listed), dtype="i64")
    order = tuple(range(len(listed)))
    written = _scatter(target, number, indices, order, "set")
    return _along(_gather(written, indices, order).eq(number), v)


def _refuse(mode: str) -> None:
    if mode == "mul":
        reason = (
            "the factors that meet in one element would have to be divided out again, which fails at zero; "
            "add logarithms instead"
        )
        raise NotDifferentiable(op="scatter with mode mul", reason=reason, loc=builder().loc)


def _shares(y: Sym, x: Sym, v: Sym, indices: Syms, listed: Shape) -> tuple[Sym, Sym, Sym]:
    """Say which elements of ``x`` and ``v`` are the extremum ``y`` of their place, and how many there are at each."""
    in_x, in_v = x.eq(y), v.eq(_gather(y, indices, listed))
    return in_x, in_v, _scatter(in_x.astype(x.dtype), in_v.astype(x.dtype), indices, listed, "add")


def _scatter_vjp(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    (ct,), (x, v), indices, listed, mode = cts, inputs[:2], inputs[2:], params["axes"], params["mode"]
    _refuse(mode)
    none = (None,) * len(indices)
    written = _values_inside(x, v, indices, listed)
    if mode == "add":
        return (ct, where(written, _gather(ct, indices, listed), 0.0), *none)
    if mode == "set":
        kept = written & _last(x, v, indices, listed)
        return (
            _scatter(ct, full(0.0, v), indices, listed, "set"),
            where(kept, _gather(ct, indices, listed), 0.0),
            *none,
        )
    in_x, in_v, count = _shares(outputs[0], x, v, indices, listed)
    share = ct / count
    return (where(in_x, share, 0.0), where(written & in_v, _gather(share, indices, listed), 0.0), *none)


def _scatter_jvp(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    (x, v), indices, listed, mode = inputs[:2], inputs[2:], params["axes"], params["mode"]
    if tangents[0] is None and tangents[1] is None:
        return (None,)
    _refuse(mode)
    tx, tv = or_zeros(tangents[0], x), or_zeros(tangents[1], v)
    if mode in ("add", "set"):
        return (_scatter(tx, tv, indices, listed, mode),)
    in_x, in_v, count = _shares(outputs[0], x, v, indices, listed)
    return (_scatter(where(in_x, tx, 0.0), where(in_v, tv, 0.0), indices, listed, "add") / count,)


def _scatter_batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Syms:
    x, v = (leading(size, s, h) for s, h in zip(inputs[:2], has[:2], strict=True))
    indices = _numbered(size, inputs[2:], has[2:])
    return (apply("scatter", x, v, *indices, axes=(0, *behind(params["axes"])), mode=params["mode"]),)


# iota


def _iota_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    operands("iota", types, 0)
    shape = ints("iota", params, "shape")
    axis("iota", params, len(shape))
    if params["dtype"] not in NUMBERS:
        raise InvalidParameter(
            op="iota", name="dtype", found=params["dtype"], expected=f"one of {', '.join(sorted(NUMBERS))}"
        )
    return (Type(shape, DTYPES[params["dtype"]]),)


def _iota_numpy(arrays: Arrays, params: Params) -> tuple[Array, ...]:
    (t,) = _iota_typing([], params)
    on = params["axis"]
    with np.errstate(over="ignore"):
        line = np.arange(t.shape[on]).astype(t.dtype)
    return (np.broadcast_to(line.reshape([-1 if a == on else 1 for a in range(t.ndim)]), t.shape),)


def _gather_samples() -> list[Sample]:
    x = np.random.default_rng(17).uniform(0.25, 4.0, (4, 3, 5))
    return [
        Sample((x, np.array([[3, 0, -1], [2, 2, -4]])), {"axes": (0,)}),
        Sample((x, np.array([0, 4, 2]), np.array([1, -3, 0])), {"axes": (2, 1)}),
        Sample((x[0], np.array(-1)), {"axes": (1,)}),
    ]


def _scatter_samples() -> list[Sample]:
    rng = np.random.default_rng(19)
    x, v, w = rng.uniform(0.5, 1.0, (4, 3)), rng.uniform(0.25, 1.5, (5, 3)), rng.uniform(0.25, 1.5, 4)
    rows = np.array([1, 3, 1, -1, 7])
    return [
        *(Sample((x, v, rows), {"axes": (0,), "mode": mode}) for mode in _MODES),
        Sample((x, w, np.array([0, 1, 0, 2]), np.array([1, 2, 1, -5])), {"axes": (1, 0), "mode": "add"}),
    ]


PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(
        "gather",
        Kind.INDEX,
        "Elements of the first input at the places given by index arrays for some of its axes.",
        ("axes",),
        _gather_typing,
        _gather_numpy,
        _gather_vjp,
        _gather_jvp,
        _gather_batch,
        _gather_lower,
        _gather_samples,
        ALL,
        0.0,
    ),
    Primitive(
        "scatter",
        Kind.SCATTER,
        "The first input with the second combined in at the places given by index arrays, in their order.",
        ("axes", "mode"),
        _scatter_typing,
        _scatter_numpy,
        _scatter_vjp,
        _scatter_jvp,
        _scatter_batch,
        None,
        _scatter_samples,
        NUMBERS,
        4.0,
    ),
    Primitive(
        "iota",
        Kind.MAP,
        "The position along an axis.",
        ("shape", "axis", "dtype"),
        _iota_typing,
        _iota_numpy,
        lambda cotangents, inputs, outputs, params: (),
        lambda tangents, inputs, outputs, params: (None,),
        mapped("iota"),
        lambda at, index, types, out, params: index[params["axis"]].cast(out.name),
        lambda: [Sample((), {"shape": (3, 5), "axis": 1, "dtype": d}) for d in sorted(NUMBERS)],
        NUMBERS,
        0.0,
    ),
)
