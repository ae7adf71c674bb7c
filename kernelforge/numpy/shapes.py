"""Functions that move elements and compute none, or hardly any."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from kernelforge import indexing
from kernelforge.errors import InvalidParameter, ShapeMismatch, UnsupportedArgument
from kernelforge.ir.build import Sym, apply, as_sym, full
from kernelforge.ir.types import broadcast_shapes
from kernelforge.methods import FUNCTIONS, Methods
from kernelforge.numpy.creation import Shape, iota, shape_of
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.ufuncs import where
from kernelforge.told import telling


def part(x: Sym, axis: int, start: int, stop: int, step: int = 1) -> Sym:
    """Return the elements from ``start`` to ``stop`` along one axis; ``step`` may be negative, as in a slice."""
    index: list[Any] = [slice(None)] * x.ndim
    index[axis] = slice(start, stop if step > 0 or stop >= 0 else None, step)
    return indexing.get(x, tuple(index))


@array_function("a", view=True)
def reshape(a: Sym, /, shape: Shape | None = None, order: str = "C", *, newshape: Shape | None = None) -> Sym:
    if order not in ("C", "F"):
        raise UnsupportedArgument(op="np.reshape", name="order", found=order, expected="'C' or 'F'")
    given: Any = shape if shape is not None else newshape
    wanted = [operator.index(n) for n in (given if isinstance(given, tuple | list) else (given,))]
    known = math.prod(n for n in wanted if n != -1)
    if wanted.count(-1) == 1 and known and a.size % known == 0:
        wanted[wanted.index(-1)] = a.size // known
    if -1 in wanted or math.prod(wanted) != a.size:
        raise ShapeMismatch(op="np.reshape", found=a.shape, expected=f"as many elements as in {tuple(wanted)}")
    if order == "F":
        return transpose(transpose(a).reshape(tuple(reversed(wanted))))
    return a.reshape(tuple(wanted))


@array_function("a", view=True)
def ravel(a: Sym, order: str = "C") -> Sym:
    return reshape(a, -1, order)


@array_function("a")
def flatten(a: Sym, order: str = "C") -> Sym:
    return reshape(a, -1, order)


@array_function("a", view=True)
def transpose(a: Sym, axes: Sequence[int] | None = None) -> Sym:
    order = tuple(reversed(range(a.ndim))) if axes is None else normalize_axis_tuple(axes, a.ndim)
    if len(order) != a.ndim:
        raise ShapeMismatch(op="np.transpose", found=axes, expected=f"each of the {a.ndim} axes once")
    return a.transpose(order)


@array_function("x", view=True)
def matrix_transpose(x: Sym) -> Sym:
    return swapaxes(x, -1, -2)


@array_function("a", view=True)
def swapaxes(a: Sym, axis1: int, axis2: int) -> Sym:
    i, j = (normalize_axis_index(n, a.ndim) for n in (axis1, axis2))
    order = list(range(a.ndim))
    order[i], order[j] = j, i
    return a.transpose(order)


@array_function("a", view=True)
def moveaxis(a: Sym, source: int | Sequence[int], destination: int | Sequence[int]) -> Sym:
    taken, put = (normalize_axis_tuple(n, a.ndim) for n in (source, destination))
    if len(taken) != len(put):
        raise InvalidParameter(op="np.moveaxis", name="destination", found=destination, expected=f"{len(taken)} axes")
    order = [n for n in range(a.ndim) if n not in taken]
    for to, axis in sorted(zip(put, taken, strict=True)):
        order.insert(to, axis)
    return a.transpose(order)


@array_function("a", view=True)
def rollaxis(a: Sym, axis: int, start: int = 0) -> Sym:
    axis = normalize_axis_index(axis, a.ndim)
    order = [n for n in range(a.ndim) if n != axis]
    start = start + a.ndim if start < 0 else start
    order.insert(start - 1 if axis < start else start, axis)
    return a.transpose(order)


@array_function("a", view=True)
def expand_dims(a: Sym, axis: int | Sequence[int]) -> Sym:
    count = 1 if isinstance(axis, int | np.integer) else len(axis)
    new = normalize_axis_tuple(axis, a.ndim + count)
    rest = iter(a.shape)
    return a.reshape(tuple(1 if i in new else next(rest) for i in range(a.ndim + count)))


@array_function("a", view=True)
def squeeze(a: Sym, axis: int | Sequence[int] | None = None) -> Sym:
    if a.ndim == 0 and axis in (0, -1):
        return a
    axes = tuple(i for i, n in enumerate(a.shape) if n == 1) if axis is None else normalize_axis_tuple(axis, a.ndim)
    if any(a.shape[i] != 1 for i in axes):
        raise ShapeMismatch(op="np.squeeze", found=a.shape, expected=f"an extent of 1 at axis {axis}")
    return a.reshape(tuple(n for i, n in enumerate(a.shape) if i not in axes))


@array_function("array", view=True)
def broadcast_to(array: Sym, shape: Shape) -> Sym:
    extents = shape_of(shape, "np.broadcast_to")
    fits = array.ndim <= len(extents) and all(
        n in (1, m) for n, m in zip(reversed(array.shape), reversed(extents), strict=False)
    )
    if not fits:
        raise ShapeMismatch(op="np.broadcast_to", found=array.shape, expected=f"a shape that broadcasts to {extents}")
    return array.broadcast(extents)


@array_function("args", view=True)
def broadcast_arrays(*args: Sym) -> tuple[Sym, ...]:
    shape = common_shape(args, "broadcast_arrays")
    return tuple(a.broadcast(shape) for a in args)


def common_shape(xs: Sequence[Sym], op: str) -> tuple[int, ...]:
    """Broadcast shapes.

    Raises:
        ShapeMismatch: when they do not.
    """
    try:
        return broadcast_shapes(*(x.shape for x in xs))
    except ValueError:
        found = " and ".join(str(x.shape) for x in xs)
        raise ShapeMismatch(
            op=f"np.{op}", found=found, expected="extents that are equal or 1, counted from the last axis"
        ) from None


def _at_least(name: str, count: int) -> None:
    def one(a: Sym) -> Sym:
        if a.ndim >= count:
            return a
        if count == 3:
            return a.reshape({0: (1, 1, 1), 1: (1, a.size, 1), 2: (*a.shape, 1)}[a.ndim])
        return a.reshape((*(1,) * (count - a.ndim), *a.shape))

    def fn(*arys: Sym) -> Sym | tuple[Sym, ...]:
        made = tuple(one(a) for a in arys)
        return made[0] if len(made) == 1 else made

    fn.__name__ = fn.__qualname__ = name
    array_function("arys", view=True)(fn)


for _count in (1, 2, 3):
    _at_least(f"atleast_{_count}d", _count)


def flipped(x: Sym, axes: Sequence[int]) -> Sym:
    return apply("flip", x, axes=tuple(axes)) if axes and x.size else x


@array_function("m", view=True)
def flip(m: Sym, axis: int | Sequence[int] | None = None) -> Sym:
    return flipped(m, range(m.ndim) if axis is None else sorted(normalize_axis_tuple(axis, m.ndim)))


@array_function("m", view=True)
def fliplr(m: Sym) -> Sym:
    return flip(m, 1)


@array_function("m", view=True)
def flipud(m: Sym) -> Sym:
    return flip(m, 0)


@array_function("m", view=True)
def rot90(m: Sym, k: int = 1, axes: Sequence[int] = (0, 1)) -> Sym:
    i, j = normalize_axis_tuple(tuple(axes), m.ndim)
    match k % 4:
        case 0:
            return m
        case 2:
            return flipped(flipped(m, [i]), [j])
        case 1:
            return swapaxes(flipped(m, [j]), i, j)
        case _:
            return flipped(swapaxes(m, i, j), [j])


@array_function("m")
def tril(m: Sym, k: int = 0) -> Sym:
    return _triangle(m, k, True)


@array_function("m")
def triu(m: Sym, k: int = 0) -> Sym:
    return _triangle(m, k - 1, False)


def _triangle(m: Sym, k: int, lower: bool) -> Sym:
    if m.ndim < 2:
        m = m.broadcast((m.shape[0], m.shape[0]))
    rows, columns = (iota(m.shape, m.ndim - 2), iota(m.shape, m.ndim - 1))
    below = rows + k >= columns
    zero = full(0, m)
    return where(below, m, zero) if lower else where(below, zero, m)


@array_function("a", view=True)
def diagonal(a: Sym, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Sym:
    """``numpy.diagonal``: every (columns + 1)-th element of the flattened matrix."""
    i, j = normalize_axis_index(axis1, a.ndim), normalize_axis_index(axis2, a.ndim)
    rest = [n for n in range(a.ndim) if n not in (i, j)]
    x = a.transpose([*rest, i, j])
    rows, columns = x.shape[-2:]
    count = max(min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns), 0)
    lead = x.shape[:-2]
    flat = x.reshape((*lead, rows * columns))
    if not count:
        return part(flat, len(lead), 0, 0)
    start = offset if offset >= 0 else -offset * columns
    return part(flat, len(lead), start, start + (count - 1) * (columns + 1) + 1, columns + 1)


@array_function("v")
def diag(v: Sym, k: int = 0) -> Sym:
    if v.ndim == 2:
        return diagonal(v, k)
    n = v.shape[0] + abs(k)
    return diagonal_matrix(v, n, k)


def diagonal_matrix(v: Sym, n: int, k: int) -> Sym:
    """Put a vector on the ``k``-th diagonal of an ``n`` by ``n`` matrix of zeros."""
    rows, columns = iota((n, n), 0), iota((n, n), 1)
    low, high = (max(-k, 0), max(k, 0))
    spread = (
        apply("pad", v, as_sym(0).astype(v.dtype), low=(low,), high=(high,), interior=(0,))
        .reshape((n, 1))
        .broadcast((n, n))
    )
    return where((columns - rows).eq(k), spread, full(0, spread))


@array_function("v")
def diagflat(v: Sym, k: int = 0) -> Sym:
    return diag(v.reshape((v.size,)), k)


@array_function("a")
def trace(a: Sym, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None) -> Sym:
    return FUNCTIONS["sum"](diagonal(a, offset, axis1, axis2), -1, dtype)  # type: ignore[no-any-return]


@array_function("xi")
def meshgrid(*xi: Sym, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> list[Sym]:
    count = len(xi)
    at = [1, 0, *range(2, count)] if indexing == "xy" and count > 1 else list(range(count))
    made = [x.reshape(tuple(x.size if i == at[k] else 1 for i in range(count))) for k, x in enumerate(xi)]
    if sparse:
        return made
    shape = common_shape(made, "meshgrid") if made else ()
    return [x.broadcast(shape) for x in made]


@array_function("x", name="lib.stride_tricks.sliding_window_view", view=True)
def sliding_window_view(x: Sym, window_shape: Shape, axis: int | Sequence[int] | None = None) -> Sym:
    sizes = shape_of(window_shape, "np.lib.stride_tricks.sliding_window_view")
    axes = tuple(range(x.ndim)) if axis is None else normalize_axis_tuple(axis, x.ndim, allow_duplicate=False)
    if len(sizes) != len(axes) or any(s > x.shape[a] for s, a in zip(sizes, axes, strict=True)):
        expected = f"a window for each of axes {axes}, at most as long as the axis"
        raise ShapeMismatch(op="np.sliding_window_view", found=f"{sizes} in {x.shape}", expected=expected)
    return windows(x, axes, sizes)


def windows(x: Sym, axes: Sequence[int], sizes: Sequence[int]) -> Sym:
    """Append an axis with the elements of a window for each of ``axes``, whose places step by one."""
    ones = (1,) * len(axes)
    return apply("window", x, axes=tuple(axes), sizes=tuple(sizes), strides=ones, dilations=ones)


def _size(a: Any, axis: int | None = None) -> int:
    shape = a.shape if hasattr(a, "shape") else np.shape(a)
    return math.prod(shape) if axis is None else int(shape[axis])


def _required(a: Any, dtype: Any = None, requirements: Any = None) -> Any:
    """``numpy.require`` and ``numpy.asfortranarray``: traced arrays have no order."""
    return FUNCTIONS["asarray"](a, dtype)


def _einsum_path(subscripts: Any, *operands: Any, optimize: Any = "greedy", einsum_call: bool = False) -> Any:
    """``numpy.einsum_path``, which asks for shapes alone."""
    like: Any = (np.broadcast_to(0.0, x.shape) if isinstance(x, Methods) else x for x in (subscripts, *operands))
    return np.einsum_path(*like, optimize=optimize)


_PLAIN: dict[str, Callable[..., Any]] = {
    "shape": lambda a: a.shape if hasattr(a, "shape") else np.shape(a),
    "ndim": lambda a: len(a.shape) if hasattr(a, "shape") else np.ndim(a),
    "size": _size,
    "iscomplexobj": lambda x: False,
    "isrealobj": lambda x: True,
    "real": lambda val: val.real,
    "einsum_path": _einsum_path,
    "common_type": lambda *arrays: np.common_type(*(np.empty(0, x.dtype) for x in arrays)),
    "asfortranarray": _required,
    "require": _required,
}
FUNCTIONS |= {name: telling(fn, name) for name, fn in _PLAIN.items()}

FUNCTIONS["sliding_window_view"] = FUNCTIONS["lib.stride_tricks.sliding_window_view"]
ALIASES = {"permute_dims": "transpose"}
