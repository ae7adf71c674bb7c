"""Places in arrays: as numbers, as indices of several axes, and what is at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge.dtypes import promote
from kernelforge.errors import (
    IndexOutOfRange,
    InvalidIndex,
    InvalidParameter,
    ReadOnlyArray,
    ShapeMismatch,
    UnsupportedArgument,
)
from kernelforge.ir.build import Operand, Sym, apply, as_sym, full
from kernelforge.ir.types import broadcast_shapes
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import shape_of
from kernelforge.numpy.dispatch import array_function, wrap
from kernelforge.numpy.reductions import all as all_
from kernelforge.numpy.ufuncs import common_dtype, elementwise, ufunc, where
from kernelforge.told import telling
from kernelforge.trace import TRACED, Tracer, concrete, to_written

FEW = 512
"""Elements that are compared with all of an array sooner than sorted and searched."""


@array_function("indices")
def unravel_index(indices: Sym, shape: Any, order: str = "C") -> tuple[Sym, ...]:
    extents = shape_of(shape, "np.unravel_index")
    found: list[Sym] = []
    rest = indices.astype(np.int64)
    for n in extents[:0:-1] if order == "C" else extents[:-1]:
        found.append(ufunc("remainder", rest, n))
        rest = ufunc("floor_divide", rest, n)
    found.append(rest)
    return tuple(found if order == "F" else found[::-1])


@array_function("*multi_index")
def ravel_multi_index(multi_index: Sequence[Sym], dims: Any, mode: str = "raise", order: str = "C") -> Sym:
    """``numpy.ravel_multi_index``; ``mode="raise"`` looks at nothing."""
    extents = shape_of(dims, "np.ravel_multi_index")
    if order != "C" or len(multi_index) != len(extents):
        raise UnsupportedArgument(
            op="np.ravel_multi_index", name="order", found=order, expected="'C', and an index for each extent"
        )
    if not isinstance(mode, str):
        raise UnsupportedArgument(
            op="np.ravel_multi_index", name="mode", found=mode, expected="one for all extents: 'clip' or 'wrap'"
        )
    made: Sym = as_sym(0)
    for index, n in zip(multi_index, extents, strict=True):
        if mode == "clip":
            index = FUNCTIONS["clip"](index, 0, n - 1)
        elif mode == "wrap":
            index = ufunc("remainder", index, n)
        made = ufunc("add", ufunc("multiply", made, n), index.astype(np.int64))
    return made


@array_function("args")
def ix_(*args: Sym) -> tuple[Sym, ...]:
    if any(x.ndim != 1 or x.dtype.kind == "b" for x in args):
        raise ShapeMismatch(op="np.ix_", found=[x.shape for x in args], expected="integers of one axis")
    return tuple(x.reshape(tuple(x.size if i == k else 1 for i in range(len(args)))) for k, x in enumerate(args))


@array_function("element", "test_elements")
def isin(
    element: Sym, test_elements: Sym, assume_unique: bool = False, invert: bool = False, *, kind: str | None = None
) -> Sym:
    """``numpy.isin``: each element is compared with each other, where both are many with the one at its place."""
    others = test_elements.reshape((test_elements.size,))
    both = promote([element.dtype, others.dtype], [])
    exact = both.kind != "f" or "f" in (
        element.dtype.kind,
        others.dtype.kind,
    )  # int64 and uint64 have no integer for both
    if exact and min(element.size, others.size) > FEW:
        element, others = element.astype(both), FUNCTIONS["sort"](others.astype(both))
        found = FUNCTIONS["take"](others, FUNCTIONS["searchsorted"](others, element), mode="clip")
        made = ufunc("equal", found, element)
    else:
        made = FUNCTIONS["any"](ufunc("equal", element.reshape((*element.shape, 1)), others), -1)
    return ufunc("invert", made) if invert else made


@array_function("a", "*choices")
def choose(a: Sym, choices: Sequence[Sym], mode: str = "raise") -> Sym:
    """``numpy.choose``; ``mode="raise"`` looks at nothing, and takes the last beyond the end."""
    if mode == "wrap":
        a = ufunc("remainder", a, len(choices))
    kind = common_dtype(choices)
    made = choices[-1].astype(kind)
    made = made.broadcast(broadcast_shapes(a.shape, made.shape))
    for i in reversed(range(len(choices) - 1)):
        made = where(ufunc("less_equal", a, i) if i == 0 else ufunc("equal", a, i), choices[i].astype(kind), made)
    return made


def piecewise(x: Any, condlist: Any, funclist: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """``numpy.piecewise``; each function is called with all of ``x``."""
    conditions = list(condlist) if isinstance(condlist, list | tuple) else [condlist]
    values = [f(x, *args, **kwargs) if callable(f) else f for f in funclist]
    default: Any = values.pop() if len(values) == len(conditions) + 1 else 0
    if len(values) != len(conditions):
        raise ShapeMismatch(
            op="np.piecewise", found=f"{len(conditions)} conditions and {len(funclist)} functions",
            expected="as many of both, or one function more"
        )  # fmt: skip
    made: Any = FUNCTIONS["full_like"](x, default) if np.ndim(default) == 0 else default
    for condition, value in zip(conditions, values, strict=True):
        made = FUNCTIONS["where"](condition, FUNCTIONS["astype"](FUNCTIONS["asarray"](value), x.dtype), made)
    return made


def _own(a: Any) -> Tracer:
    if not isinstance(a, Tracer):
        raise ReadOnlyArray(found="the array")
    return a


def put(a: Any, ind: Any, v: Any, mode: str = "raise") -> None:
    """``numpy.put``, on an array made inside of the function."""
    flat = FUNCTIONS["reshape"](_own(a), -1)
    index = FUNCTIONS["reshape"](FUNCTIONS["asarray"](ind), -1)
    value = FUNCTIONS["resize"](to_written(v, a.dtype), index.shape)
    if mode not in ("raise", "clip", "wrap"):
        raise InvalidParameter(op="np.put", name="mode", found=mode, expected="raise, clip or wrap")
    if mode == "clip":
        index = FUNCTIONS["clip"](index, 0, flat.size - 1)
    elif mode == "wrap":
        index = FUNCTIONS["remainder"](index, flat.size)
    a.assign("put", FUNCTIONS["reshape"](flat.at[index].set(value), a.shape))


def place(arr: Any, mask: Any, vals: Any) -> None:
    """``numpy.place``, on an array made inside of the function."""
    chosen = FUNCTIONS["not_equal"](mask, 0)
    ranks = FUNCTIONS["reshape"](FUNCTIONS["cumsum"](FUNCTIONS["ravel"](chosen)), np.shape(chosen))
    given = FUNCTIONS["ravel"](to_written(vals, arr.dtype))
    if not given.size or np.shape(chosen) != np.shape(arr):
        found = f"{np.shape(arr)}, {np.shape(chosen)} and {given.shape}"
        expected = "a mask of the array's shape, and at least one value"
        raise ShapeMismatch(op="np.place", found=found, expected=expected)
    value = FUNCTIONS["take"](given, FUNCTIONS["remainder"](ranks - 1, given.size))
    _own(arr).assign("place", FUNCTIONS["where"](chosen, value, arr))


def putmask(a: Any, mask: Any, values: Any) -> None:
    """``numpy.putmask``, on an array made inside of the function."""
    value = FUNCTIONS["resize"](to_written(values, a.dtype), a.shape)
    _own(a).assign("putmask", FUNCTIONS["where"](mask, value, a))


@array_function("a")
def resize(a: Sym, new_shape: Any) -> Sym:
    shape = shape_of(new_shape, "np.resize")
    size, flat = math.prod(shape), a.reshape((a.size,))
    if not a.size:
        return apply("full", value=0, shape=shape, dtype=a.type.name)
    return FUNCTIONS["take"](flat, np.arange(size) % a.size, 0).reshape(shape)  # type: ignore[no-any-return]


def _static(op: str, obj: Any, n: int) -> np.ndarray[Any, Any]:
    """Return places along an axis that are known while tracing, non-negative."""
    known = concrete(obj)
    if known is TRACED:
        raise InvalidParameter(op=f"np.{op}", name="obj", found="a traced array", expected="places that are known")
    if isinstance(known, slice):
        return np.arange(n)[known]
    found = np.asarray(known)
    if found.dtype == np.bool_:
        if found.shape != (n,):
            raise InvalidParameter(
                op=f"np.{op}", name="obj", found=f"bools of shape {found.shape}", expected=f"bools of shape ({n},)"
            )  # fmt: skip
        return np.flatnonzero(found)
    if found.size and found.dtype.kind not in "iu":
        raise InvalidIndex(found=found.dtype, shape=(n,), expected="integers or bools")
    found = found.astype(np.int64)
    outside = found[(found < -n) | (found > n - (op == "delete"))].reshape(-1)
    if outside.size:
        raise IndexError(f"index {outside[0]} is out of range for an axis of {n} elements")
    return np.where(found < 0, found + n, found)


def delete(arr: Any, obj: Any, axis: int | None = None) -> Any:
    """``numpy.delete``, of places that are known while tracing."""
    x = FUNCTIONS["reshape"](arr, -1) if axis is None else FUNCTIONS["asarray"](arr)
    on = 0 if axis is None else normalize_axis_index(axis, x.ndim)
    kept = np.setdiff1d(np.arange(x.shape[on]), _static("delete", obj, x.shape[on]))
    return FUNCTIONS["take"](x, kept, on)


def compress(condition: Any, a: Any, axis: int | None = None) -> Any:
    """``numpy.compress``, by a condition that is known while tracing."""
    x = FUNCTIONS["reshape"](a, -1) if axis is None else FUNCTIONS["asarray"](a)
    on = 0 if axis is None else normalize_axis_index(axis, x.ndim)
    known = concrete(condition)
    if known is TRACED or np.ndim(known) != 1:
        expected = "conditions along one axis that are known; use np.where"
        raise InvalidParameter(op="np.compress", name="condition", found="an array", expected=expected)
    kept = np.flatnonzero(known)
    if kept.size and kept[-1] >= x.shape[on]:
        raise IndexOutOfRange(found=int(kept[-1]), axis=on, extent=x.shape[on])
    return FUNCTIONS["take"](x, kept, on)


def extract(condition: Any, arr: Any) -> Any:
    """``numpy.extract``, by a condition that is known while tracing."""
    known = concrete(condition)
    return compress(known if known is TRACED else np.ravel(known), arr)


def diag_indices_from(arr: Any) -> Any:
    """``numpy.diag_indices_from``."""
    if np.ndim(arr) < 2 or len(set(np.shape(arr))) != 1:
        raise ShapeMismatch(op="np.diag_indices_from", found=np.shape(arr), expected="axes of one extent, at least two")
    return np.diag_indices(np.shape(arr)[0], np.ndim(arr))


def _triangle(name: str) -> Any:
    def indices(arr: Any, k: int = 0) -> Any:
        if np.ndim(arr) != 2:
            raise ShapeMismatch(op=f"np.{name}_indices_from", found=np.shape(arr), expected="a matrix")
        rows, columns = np.shape(arr)
        return getattr(np, f"{name}_indices")(rows, k, columns)

    indices.__name__ = indices.__qualname__ = f"{name}_indices_from"
    indices.__doc__ = f"``numpy.{name}_indices_from``."
    return indices


def apply_over_axes(func: Any, a: Any, axes: Any) -> Any:
    """``numpy.apply_over_axes``."""
    made = FUNCTIONS["asarray"](a)
    for axis in np.atleast_1d(axes):
        on = normalize_axis_index(int(axis), np.ndim(a))
        found = func(made, on)
        made = found if found.ndim == made.ndim else FUNCTIONS["expand_dims"](found, on)
    return made


def insert(arr: Any, obj: Any, values: Any, axis: int | None = None) -> Any:
    """``numpy.insert``, at places that are known while tracing."""
    x = FUNCTIONS["reshape"](arr, -1) if axis is None else FUNCTIONS["asarray"](arr)
    on = 0 if axis is None else normalize_axis_index(axis, x.ndim)
    n = x.shape[on]
    at = _static("insert", obj, n)
    value = wrap(to_written(values, x.dtype))
    if at.ndim == 0:  # all values at one place
        if value.ndim == x.ndim - 1 and value.ndim:
            value = FUNCTIONS["expand_dims"](value, on)
        elif value.ndim == x.ndim:
            value = FUNCTIONS["moveaxis"](value, 0, on)
    if value.ndim:
        value = value.reshape((*(1,) * (x.ndim - value.ndim), *value.shape))
    single = at.size == 1 and value.ndim == x.ndim
    count = value.shape[on] if single else at.size
    value = FUNCTIONS["broadcast_to"](value, (*x.shape[:on], count, *x.shape[on + 1 :]))
    if single:
        at = np.repeat(at.reshape(-1), count)
    before = np.argsort(np.concatenate([at.reshape(-1), np.arange(n)]), kind="stable")
    return FUNCTIONS["take"](FUNCTIONS["concatenate"]([value, x], on), before, on)


def block(arrays: Any) -> Any:
    """``numpy.block``."""

    def depth(x: Any) -> int:
        return 1 + max(map(depth, x)) if isinstance(x, list) else 0

    def joined(x: Any, level: int) -> Any:
        if not isinstance(x, list):
            return FUNCTIONS["asarray"](x)
        parts = [joined(v, level - 1) for v in x]
        most = max(level, *(p.ndim for p in parts))
        parts = [FUNCTIONS["reshape"](p, (*(1,) * (most - p.ndim), *p.shape)) for p in parts]
        return FUNCTIONS["concatenate"](parts, -level)

    return joined(arrays, depth(arrays))


@array_function("ary")
def dsplit(ary: Sym, indices_or_sections: Any) -> Any:
    return FUNCTIONS["split"](ary, indices_or_sections, 2)


@array_function("ary", "to_end", "to_begin")
def ediff1d(ary: Sym, to_end: Sym | None = None, to_begin: Sym | None = None) -> Sym:
    made = FUNCTIONS["diff"](ary.reshape((ary.size,)))
    ends = [x.reshape((x.size,)).astype(made.dtype) for x in (to_begin, to_end) if x is not None]
    parts = [*(ends[:1] if to_begin is not None else []), made, *(ends[-1:] if to_end is not None else [])]
    return FUNCTIONS["concatenate"](parts, 0)  # type: ignore[no-any-return]


@array_function("p")
def unwrap(p: Sym, discont: float | None = None, axis: int = -1, *, period: float = 2 * math.pi) -> Sym:
    on = normalize_axis_index(axis, p.ndim)
    step = FUNCTIONS["diff"](p, 1, on)
    dtype = common_dtype((p, period))
    whole = dtype.kind in "iu"
    half = period // 2 if whole else period / 2
    near = ufunc("remainder", ufunc("subtract", step, -half), period) - half
    if not whole or period % 2 == 0:
        near = where(ufunc("equal", near, -half) & (step > 0), half, near)
    apart = where(ufunc("absolute", step) < (period / 2 if discont is None else discont), 0, near - step)
    added = FUNCTIONS["cumsum"](apart, on)
    low = tuple(int(i == on) for i in range(p.ndim))
    zero = as_sym(0).astype(added.dtype)
    return (p + apply("pad", added, zero, low=low, high=(0,) * p.ndim, interior=(0,) * p.ndim)).astype(dtype)


@elementwise("x")
def isposinf(x: Operand) -> Sym:
    return ufunc("isinf", x) & ufunc("greater", x, 0)


@elementwise("x")
def isneginf(x: Operand) -> Sym:
    return ufunc("isinf", x) & ufunc("less", x, 0)


@elementwise("x")
def isreal(x: Operand) -> Sym:
    return full(True, ufunc("equal", x, x))


@elementwise("x")
def iscomplex(x: Operand) -> Sym:
    return full(False, ufunc("equal", x, x))


@elementwise("x")
def bitwise_count(x: Operand, /) -> Sym:
    """Count the bits of absolute values, by halves (Hacker's Delight, section 5-1)."""
    value = as_sym(x)
    if value.dtype.kind == "b":
        return value.astype(np.uint8)
    name = f"u{8 * value.dtype.itemsize}"
    bits = ufunc("absolute", value) if value.dtype.kind == "i" else value
    bits = apply("bitcast", bits, dtype=name) if value.dtype.kind == "i" else bits
    width = 8 * value.dtype.itemsize
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < width:
            mask = bits.dtype.type(((1 << width) - 1) // ((1 << shift) + 1))
            bits = ufunc("bitwise_and", bits, mask) + ufunc("bitwise_and", ufunc("right_shift", bits, shift), mask)
    return bits.astype(np.uint8)


@array_function("a1", "a2", numbers=True)
def array_equiv(a1: Operand, a2: Operand) -> Sym:
    x, y = as_sym(a1), as_sym(a2)
    try:
        same = ufunc("equal", x, y)
    except ShapeMismatch:
        return apply("full", value=False, shape=(), dtype="bool")
    return all_(same)


for _fn in (
    piecewise, put, putmask, place, delete, insert, block, compress, extract, diag_indices_from, apply_over_axes,
    _triangle("tril"), _triangle("triu"),
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = telling(_fn)
