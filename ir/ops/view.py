"""Views: primitives that move elements and compute none; each is an affine index map, some with a mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.ir.batch import leading
from kernelforge.ir.build import Sym, apply, full
from kernelforge.ir.graph import At, Batch, Jvp, Kind, Params, Primitive, Sample, Vjp
from kernelforge.ir.index import flatten, unflatten
from kernelforge.ir.kernel import Const, Expr, i64, select
from kernelforge.ir.ops.rules import (
    ALL,
    Array,
    Arrays,
    MaybeSyms,
    Syms,
    along,
    axes,
    axis,
    behind,
    cut,
    ints,
    linear,
    one_dtype,
    operands,
    or_zeros,
    padded,
    shapes,
    where,
)
from kernelforge.ir.types import Type, row_major

Index = Sequence[Expr]
Lower = Callable[[At, Index, Sequence[Type], Type, Params], Expr]


def view(
    name: str,
    doc: str,
    params: tuple[str, ...],
    shape: Callable[[tuple[int, ...], Params], tuple[int, ...]],
    numpy: Callable[[Array, Params], Array],
    index: Callable[[Index, tuple[int, ...], tuple[int, ...], Params], Sequence[Expr]],
    adjoint: Callable[[Sym, Sym, Params], Sym],
    batched: Callable[[Sym, Params], Sym],
    samples: Callable[[], list[Sample]],
) -> Primitive:
    """Make the record of a view of one input.

    Args:
        shape: the result's shape from the input's, or an error.
        index: the input's index from the result's index, the input's shape and the result's shape.
        adjoint: the input's cotangent from the result's cotangent and the input.
        batched: the result from an input with a batch.
    """

    def typing(types: Sequence[Type], p: Params) -> tuple[Type, ...]:
        operands(name, types, 1)
        return (Type(shape(types[0].shape, p), types[0].dtype, types[0].weak),)

    def lower(at: At, i: Index, types: Sequence[Type], out: Type, p: Params) -> Expr:
        return at(0, index(i, types[0].shape, out.shape, p))

    def vjp(cts: Syms, inputs: Syms, outputs: Syms, p: Params) -> MaybeSyms:
        return (adjoint(cts[0], inputs[0], p),)

    def meaning(arrays: Arrays, p: Params) -> tuple[Array, ...]:
        return (np.asarray(numpy(arrays[0], p)),)

    def batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], p: Params) -> Syms:
        return (batched(inputs[0], p),)

    return Primitive(name, Kind.VIEW, doc, params, typing, meaning, vjp, linear(name), batch, lower, samples, ALL, 0.0)


def several(
    name: str,
    doc: str,
    params: tuple[str, ...],
    typing: Callable[[Sequence[Type], Params], tuple[Type, ...]],
    numpy: Callable[[Arrays, Params], Array],
    vjp: Vjp,
    jvp: Jvp,
    batch: Batch,
    lower: Lower,
    samples: Callable[[], list[Sample]],
) -> Primitive:
    def meaning(arrays: Arrays, p: Params) -> tuple[Array, ...]:
        return (numpy(arrays, p),)

    return Primitive(name, Kind.VIEW, doc, params, typing, meaning, vjp, jvp, batch, lower, samples, ALL, 0.0)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(math.prod(shape)).uniform(0.25, 4.0, shape)


def sample(*shape: int, **params: Any) -> Sample:
    return Sample((numbers(*shape),), params)


# broadcast


def _broadcast_shape(shape: tuple[int, ...], params: Params) -> tuple[int, ...]:
    to = ints("broadcast", params, "shape")
    lead = len(to) - len(shape)
    if lead < 0 or any(n not in (1, m) for n, m in zip(shape, to[lead:], strict=True)):
        raise ShapeMismatch(
            op="broadcast", found=f"{shape} to {to}", expected="extents that are equal or 1, from the last axis"
        )
    return to


def _broadcast_adjoint(ct: Sym, x: Sym, params: Params) -> Sym:
    lead = ct.ndim - x.ndim
    spread = [a for a in range(ct.ndim) if a < lead or x.shape[a - lead] != ct.shape[a]]
    return ct.sum(spread).reshape(x.shape)


def _broadcast_batched(x: Sym, params: Params) -> Sym:
    size, to = x.shape[0], params["shape"]
    return x.reshape((size, *(1,) * (len(to) + 1 - x.ndim), *x.shape[1:])).broadcast((size, *to))


# slice


def _slice_shape(shape: tuple[int, ...], params: Params) -> tuple[int, ...]:
    starts, stops = (ints("slice", params, name, len(shape)) for name in ("starts", "stops"))
    steps = ints("slice", params, "steps", len(shape), least=1)
    if any(not a <= b <= n for a, b, n in zip(starts, stops, shape, strict=True)):
        expected = f"starts <= stops <= {shape}"
        raise InvalidParameter(op="slice", name="starts and stops", found=(starts, stops), expected=expected)
    return tuple(-(-(b - a) // s) for a, b, s in zip(starts, stops, steps, strict=True))


def _slice_adjoint(ct: Sym, x: Sym, params: Params) -> Sym:
    high = [
        n - (a + (m - 1) * s + 1) if m else n - a
        for a, s, m, n in zip(params["starts"], params["steps"], ct.shape, x.shape, strict=True)
    ]
    return padded(ct, 0.0, params["starts"], high, [s - 1 for s in params["steps"]])


def _slices(starts: Sequence[int], steps: Sequence[int], counts: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + (m - 1) * s + 1 if m else a, s) for a, s, m in zip(starts, steps, counts, strict=True))


def strided(x: Sym, starts: Sequence[int], steps: Sequence[int], counts: Sequence[int]) -> Sym:
    """Take ``counts`` elements from ``starts`` on, ``steps`` apart."""
    stops = tuple(s.stop for s in _slices(starts, steps, counts))
    return apply("slice", x, starts=tuple(starts), stops=stops, steps=tuple(steps))


# transpose, flip


def _transpose_axes(shape: tuple[int, ...], params: Params) -> tuple[int, ...]:
    order = axes("transpose", params, len(shape), ordered=False)
    if len(order) != len(shape):
        raise InvalidParameter(op="transpose", name="axes", found=order, expected=f"each of {len(shape)} axes once")
    return order


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _flip_shape(shape: tuple[int, ...], params: Params) -> tuple[int, ...]:
    axes("flip", params, len(shape))
    return shape


def _flip_index(index: Index, shape: tuple[int, ...], out: tuple[int, ...], params: Params) -> list[Expr]:
    return [shape[a] - 1 - i if a in params["axes"] else i for a, i in enumerate(index)]


# reshape


def _reshape_shape(shape: tuple[int, ...], params: Params) -> tuple[int, ...]:
    to = ints("reshape", params, "shape")
    if math.prod(to) != math.prod(shape):
        raise ShapeMismatch(op="reshape", found=f"{shape} to {to}", expected="the same number of elements")
    return to


def _reshape_index(index: Index, shape: tuple[int, ...], out: tuple[int, ...]) -> list[Expr]:
    """Count through the fewest axes together: an index that a pad leaves out of range stays a sum in an axis that the
    reshape does not touch.
    """
    made: list[Expr] = []
    start = 0
    while len(made) < len(shape) or start < len(out):
        stop, end = start, len(made)
        size = count = 1
        while stop == start or end == len(made) or size != count:
            if stop < len(out) and (size <= count or end == len(shape)):
                size, stop = size * out[stop], stop + 1
            elif end < len(shape):
                count, end = count * shape[end], end + 1
            else:
                break
        group, axes = out[start:stop], shape[len(made) : end]
        wide = [i for i, n in zip(index[start:stop], group, strict=True) if n != 1]
        if len(wide) == 1 and sum(n != 1 for n in axes) == 1:
            made += [wide[0] if n != 1 else i64(0) for n in axes]
        else:
            made += unflatten(flatten(tuple(index[start:stop]), row_major(group)), axes)
        start = stop
    return made


# pad


def _pad_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    operands("pad", types, 2)
    one_dtype("pad", types)
    if types[1].shape:
        raise ShapeMismatch(op="pad", found=shapes(types), expected="a fill of shape ()")
    low, high, interior = (ints("pad", params, name, types[0].ndim) for name in ("low", "high", "interior"))
    spread = (n + max(n - 1, 0) * i for n, i in zip(types[0].shape, interior, strict=True))
    return (Type(tuple(a + n + b for a, n, b in zip(low, spread, high, strict=True)), types[0].dtype),)


def _kept(shape: Sequence[int], params: Params) -> tuple[slice, ...]:
    """Say where in the result of a pad the elements of the input are."""
    return _slices(params["low"], [i + 1 for i in params["interior"]], shape)


def _pad_numpy(arrays: Arrays, params: Params) -> Array:
    x, fill = arrays
    (out,) = _pad_typing([Type(a.shape, a.dtype) for a in arrays], params)
    made = np.full(out.shape, fill, x.dtype)
    made[_kept(x.shape, params)] = x
    return made


def _inside(
    index: Index, starts: Sequence[int], steps: Sequence[int], counts: Sequence[int], extents: Sequence[int]
) -> tuple[Expr | bool, list[Expr]]:
    """Return whether ``index`` is at one of ``counts`` places, ``steps`` apart from ``starts`` on, and at which."""
    checks: list[Expr] = []
    at: list[Expr] = []
    for i, start, step, count, extent in zip(index, starts, steps, counts, extents, strict=True):
        moved = i - start
        if start > 0:
            checks.append(moved >= 0)
        if start + (count - 1) * step + 1 < extent:
            checks.append(moved < (count - 1) * step + 1)
        if step > 1:
            checks.append((moved % step).eq(0))
        at.append(moved // step)
    valid: Expr | bool = True
    for check in checks:
        valid = check if isinstance(valid, bool) else valid & check
    return valid, at


def _pad_lower(at: At, index: Index, types: Sequence[Type], out: Type, params: Params) -> Expr:
    fill = at(1, ()).cast(out.name)
    if types[0].size == 0:
        return fill
    steps = [i + 1 for i in params["interior"]]
    valid, inner = _inside(index, params["low"], steps, types[0].shape, out.shape)
    return select(valid, at(0, inner).cast(out.name), fill)


def _pad_vjp(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    (ct,), x = cts, inputs[0]
    steps = [i + 1 for i in params["interior"]]
    kept = apply("full", value=False, shape=x.shape, dtype="bool")
    margin = padded(kept, True, params["low"], params["high"], params["interior"])
    around = where(margin, ct, 0.0).sum(range(ct.ndim))
    return strided(ct, params["low"], steps, x.shape), around


def _pad_jvp(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    return (apply("pad", *(or_zeros(t, x) for t, x in zip(tangents, inputs, strict=True)), **params),)


def _pad_batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Syms:
    low, high, interior = ((0, *params[name]) for name in ("low", "high", "interior"))
    x, fill = leading(size, inputs[0], has[0]), inputs[1]
    if not has[1]:
        return (apply("pad", x, fill, low=low, high=high, interior=interior),)
    kept = padded(apply("full", value=True, shape=x.shape, dtype="bool"), False, low, high, interior)
    made = padded(x, 0, low, high, interior)
    return (where(kept, made, fill.reshape((size, *(1,) * (x.ndim - 1))).broadcast(made.shape)),)


# concatenate


def _concatenate_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    if not types:
        raise ShapeMismatch(op="concatenate", found="none", expected="at least one input")
    one_dtype("concatenate", types)
    on = axis("concatenate", params, types[0].ndim)
    if any(
        t.ndim != types[0].ndim
        or (*t.shape[:on], *t.shape[on + 1 :]) != (*types[0].shape[:on], *types[0].shape[on + 1 :])
        for t in types
    ):
        raise ShapeMismatch(op="concatenate", found=shapes(types), expected=f"extents that agree but on axis {on}")
    shape = list(types[0].shape)
    shape[on] = sum(t.shape[on] for t in types)
    return (Type(tuple(shape), types[0].dtype),)


def _concatenate_lower(at: At, index: Index, types: Sequence[Type], out: Type, params: Params) -> Expr:
    on = params["axis"]
    made: Expr | None = None
    stop = out.shape[on]
    for k in reversed(range(len(types))):
        start = stop - types[k].shape[on]
        if start == stop:
            continue
        part = at(k, [i - start if a == on else i for a, i in enumerate(index)]).cast(out.name)
        made = part if made is None else select(index[on] < stop, part, made)
        stop = start
    return Const(0, out.name) if made is None else made  # an empty result has no element: anything stands for it


def _concatenate_vjp(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    on = params["axis"]
    stops = list(itertools.accumulate(x.shape[on] for x in inputs))
    return tuple(cut(cts[0], on, stop - x.shape[on], stop) for x, stop in zip(inputs, stops, strict=True))


def _concatenate_jvp(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    return (apply("concatenate", *(or_zeros(t, x) for t, x in zip(tangents, inputs, strict=True)), **params),)


# place


def _place_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    operands("place", types, 2)
    one_dtype("place", types)
    x, v = types
    if x.ndim != v.ndim:
        raise ShapeMismatch(op="place", found=shapes(types), expected="as many axes in both")
    starts, steps = ints("place", params, "starts", x.ndim), ints("place", params, "steps", x.ndim, least=1)
    for start, step, count, extent in zip(starts, steps, v.shape, x.shape, strict=True):
        if count and start + (count - 1) * step >= extent:
            raise InvalidParameter(
                op="place", name="starts and steps", found=(starts, steps), expected=f"places within {x.shape}"
            )
    return (Type(x.shape, x.dtype),)


def _place_numpy(arrays: Arrays, params: Params) -> Array:
    x, v = arrays
    made = x.copy()
    made[_slices(params["starts"], params["steps"], v.shape)] = v
    return made


def _place_lower(at: At, index: Index, types: Sequence[Type], out: Type, params: Params) -> Expr:
    if types[1].size == 0:
        return at(0, index)
    valid, inner = _inside(index, params["starts"], params["steps"], types[1].shape, out.shape)
    return select(valid, at(1, inner).cast(out.name), at(0, index).cast(out.name))


def _place_vjp(cts: Syms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    (ct,), v = cts, inputs[1]
    return apply("place", ct, full(0.0, v), **params), strided(ct, params["starts"], params["steps"], v.shape)


def _place_jvp(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
    return (apply("place", *(or_zeros(t, x) for t, x in zip(tangents, inputs, strict=True)), **params),)


def _place_batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Syms:
    x, v = (leading(size, s, h) for s, h in zip(inputs, has, strict=True))
    return (apply("place", x, v, starts=(0, *params["starts"]), steps=(1, *params["steps"])),)


PRIMITIVES: tuple[Primitive, ...] = (
    view(
        "broadcast",
        "Repeat along new leading axes and along axes of extent 1.",
        ("shape",),
        _broadcast_shape,
        lambda x, p: np.broadcast_to(x, p["shape"]),
        lambda index, shape, out, p: [
            i64(0) if n == 1 else i for n, i in zip(shape, index[len(out) - len(shape) :], strict=True)
        ],
        _broadcast_adjoint,
        _broadcast_batched,
        lambda: [sample(3, 1, shape=(2, 3, 5)), sample(shape=(2,)), sample(1, shape=(0, 1))],
    ),
    view(
        "reshape",
        "The same elements, in row-major order, under another shape.",
        ("shape",),
        _reshape_shape,
        lambda x, p: np.reshape(x, p["shape"]),
        lambda index, shape, out, p: _reshape_index(index, shape, out),
        lambda ct, x, p: ct.reshape(x.shape),
        lambda x, p: x.reshape((x.shape[0], *p["shape"])),
        lambda: [sample(3, 4, shape=(2, 6)), sample(1, shape=()), sample(0, 3, shape=(3, 0))],
    ),
    view(
        "transpose",
        "Axis k of the result is axis axes[k] of the input.",
        ("axes",),
        lambda shape, p: tuple(shape[a] for a in _transpose_axes(shape, p)),
        lambda x, p: np.transpose(x, p["axes"]),
        lambda index, shape, out, p: [index[k] for k in _inverse(p["axes"])],
        lambda ct, x, p: ct.transpose(_inverse(p["axes"])),
        lambda x, p: x.transpose((0, *behind(p["axes"]))),
        lambda: [sample(2, 3, 4, axes=(2, 0, 1)), sample(axes=())],
    ),
    view(
        "slice",
        "Elements start, start + step, ... below stop of each axis.",
        ("starts", "stops", "steps"),
        _slice_shape,
        lambda x, p: x[tuple(map(slice, p["starts"], p["stops"], p["steps"]))],
        lambda index, shape, out, p: [i * s + a for i, s, a in zip(index, p["steps"], p["starts"], strict=True)],
        _slice_adjoint,
        lambda x, p: apply(
            "slice", x, starts=(0, *p["starts"]), stops=(x.shape[0], *p["stops"]), steps=(1, *p["steps"])
        ),
        lambda: [
            sample(5, 7, starts=(1, 0), stops=(4, 7), steps=(1, 3)),
            sample(4, 3, starts=(2, 0), stops=(2, 3), steps=(1, 2)),
        ],
    ),
    view(
        "flip",
        "Each listed axis from its last element to its first.",
        ("axes",),
        _flip_shape,
        lambda x, p: np.flip(x, p["axes"]),
        _flip_index,
        lambda ct, x, p: apply("flip", ct, **p),
        lambda x, p: apply("flip", x, axes=behind(p["axes"])),
        lambda: [sample(3, 4, axes=(0, 1)), sample(0, 2, axes=(0,))],
    ),
    several(
        "pad",
        "The first input with low and high elements of fill around and interior ones between its elements.",
        ("low", "high", "interior"),
        _pad_typing,
        _pad_numpy,
        _pad_vjp,
        _pad_jvp,
        _pad_batch,
        _pad_lower,
        lambda: [
            Sample((numbers(3, 4), np.array(2.0)), {"low": (1, 0), "high": (2, 3), "interior": (0, 2)}),
            Sample((numbers(0, 2), np.array(2.0)), {"low": (1, 1), "high": (2, 0), "interior": (1, 0)}),
        ],
    ),
    several(
        "concatenate",
        "The inputs one after the other along an axis.",
        ("axis",),
        _concatenate_typing,
        lambda arrays, params: np.concatenate(arrays, params["axis"]),
        _concatenate_vjp,
        _concatenate_jvp,
        along("concatenate"),
        _concatenate_lower,
        lambda: [Sample((numbers(2, 3), numbers(2, 0), numbers(2, 1), numbers(2, 2)), {"axis": 1})],
    ),
    several(
        "place",
        "The first input with the second written at start, start + step, ... of each axis.",
        ("starts", "steps"),
        _place_typing,
        _place_numpy,
        _place_vjp,
        _place_jvp,
        _place_batch,
        _place_lower,
        lambda: [
            Sample((numbers(5, 6), numbers(2, 3)), {"starts": (1, 0), "steps": (2, 2)}),
            Sample((numbers(4), numbers(0)), {"starts": (2,), "steps": (1,)}),
        ],
    ),
)
