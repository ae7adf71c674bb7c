"""Functions that move elements and compute none, or hardly any."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from kernelforge import indexing
from kernelforge.dtypes import promote
from kernelforge.errors import InvalidParameter, ShapeMismatch, UnsupportedArgument
from kernelforge.ir.build import Operand, Sym, apply, as_sym, user_line
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import Shape, iota, shape_of
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.ufuncs import ufunc, where


def part(x: Sym, axis: int, start: int, stop: int, step: int = 1) -> Sym:
    """Return the elements from ``start`` to ``stop`` along one axis; ``step`` may be negative, as in a slice."""
    index: list[Any] = [slice(None)] * x.ndim
    index[axis] = slice(start, stop if step > 0 or stop >= 0 else None, step)
    return indexing.get(x, tuple(index))


@array_function("a", view=True)
def reshape(a: Sym, /, shape: Shape | None = None, order: str = "C", *, newshape: Shape | None = None) -> Sym:
    if order != "C":
        raise UnsupportedArgument(op="np.reshape", name="order", found=order, expected="transpose before and after it")
    given = shape if shape is not None else newshape
    wanted = [operator.index(n) for n in (given if isinstance(given, tuple | list) else (given,))]
    known = math.prod(n for n in wanted if n != -1)
    if wanted.count(-1) == 1 and known and a.size % known == 0:
        wanted[wanted.index(-1)] = a.size // known
    if -1 in wanted or math.prod(wanted) != a.size:
        raise ShapeMismatch(
            op="np.reshape", found=a.shape, expected=f"as many elements as in {tuple(wanted)}", loc=user_line()
        )
    return a.reshape(tuple(wanted))


@array_function("a", view=True)
def ravel(a: Sym, order: str = "C") -> Sym:
    return reshape(a, -1, order)  # type: ignore[no-any-return]


@array_function("a")
def flatten(a: Sym, order: str = "C") -> Sym:
    return reshape(a, -1, order)  # type: ignore[no-any-return]


@array_function("a", view=True)
def transpose(a: Sym, axes: Sequence[int] | None = None) -> Sym:
    order = tuple(reversed(range(a.ndim))) if axes is None else normalize_axis_tuple(axes, a.ndim)
    if len(order) != a.ndim:
        raise ShapeMismatch(op="np.transpose", found=axes, expected=f"each of the {a.ndim} axes once", loc=user_line())
    return a.transpose(order)


@array_function("x", view=True)
def matrix_transpose(x: Sym) -> Sym:
    return swapaxes(x, -1, -2)  # type: ignore[no-any-return]


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
        raise InvalidParameter(
            op="np.moveaxis", name="destination", found=destination, expected=f"{len(taken)} axes", loc=user_line()
        )
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
    axes = tuple(i for i, n in enumerate(a.shape) if n == 1) if axis is None else normalize_axis_tuple(axis, a.ndim)
    if any(a.shape[i] != 1 for i in axes):
        raise ShapeMismatch(op="np.squeeze", found=a.shape, expected=f"an extent of 1 at axis {axis}", loc=user_line())
    return a.reshape(tuple(n for i, n in enumerate(a.shape) if i not in axes))


@array_function("array", view=True)
def broadcast_to(array: Sym, shape: Shape) -> Sym:
    extents = shape_of(shape)
    fits = array.ndim <= len(extents) and all(
        n in (1, m) for n, m in zip(reversed(array.shape), reversed(extents), strict=False)
    )
    if not fits:
        raise ShapeMismatch(
            op="np.broadcast_to", found=array.shape, expected=f"a shape that broadcasts to {extents}", loc=user_line()
        )
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
        return np.broadcast_shapes(*(x.shape for x in xs))
    except ValueError:
        found = " and ".join(str(x.shape) for x in xs)
        raise ShapeMismatch(
            op=f"np.{op}",
            found=found,
            expected="extents that are equal or 1, counted from the last axis",
            loc=user_line(),
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


def joined(xs: Sequence[Operand], op: str, dtype: Any = None) -> list[Sym]:
    """Promote to one dtype."""
    if not xs:
        raise ShapeMismatch(op=f"np.{op}", found="no arrays", expected="at least one", loc=user_line())
    syms = [as_sym(x) for x in xs]
    kind = promote([s.dtype for s in syms], []) if dtype is None else np.dtype(dtype)
    return [s.astype(kind) for s in syms]


@array_function("*arrays")
def concatenate(arrays: Sequence[Sym], axis: int | None = 0, *, dtype: Any = None) -> Sym:
    syms = joined(arrays, "concatenate", dtype)
    if axis is None:
        syms, axis = [s.reshape((s.size,)) for s in syms], 0
    if any(s.ndim != syms[0].ndim or s.ndim == 0 for s in syms):
        found = " and ".join(str(s.shape) for s in syms)
        raise ShapeMismatch(
            op="np.concatenate", found=found, expected="as many axes in all, at least one", loc=user_line()
        )
    on = normalize_axis_index(axis, syms[0].ndim)
    return syms[0] if len(syms) == 1 else apply("concatenate", *syms, axis=on)  # type: ignore[no-any-return]


@array_function("*arrays")
def stack(arrays: Sequence[Sym], axis: int = 0, *, dtype: Any = None) -> Sym:
    syms = joined(arrays, "stack", dtype)
    if any(s.shape != syms[0].shape for s in syms):
        found = " and ".join(str(s.shape) for s in syms)
        raise ShapeMismatch(op="np.stack", found=found, expected="one shape", loc=user_line())
    on = normalize_axis_index(axis, syms[0].ndim + 1)
    return concatenate([expand_dims(s, on) for s in syms], on)  # type: ignore[no-any-return]


@array_function("*tup")
def hstack(tup: Sequence[Sym], *, dtype: Any = None) -> Sym:
    syms = [FUNCTIONS["atleast_1d"](s) for s in tup]
    return concatenate(syms, 0 if syms[0].ndim == 1 else 1, dtype=dtype)  # type: ignore[no-any-return]


@array_function("*tup")
def vstack(tup: Sequence[Sym], *, dtype: Any = None) -> Sym:
    return concatenate([FUNCTIONS["atleast_2d"](s) for s in tup], 0, dtype=dtype)  # type: ignore[no-any-return]


@array_function("*tup")
def dstack(tup: Sequence[Sym]) -> Sym:
    return concatenate([FUNCTIONS["atleast_3d"](s) for s in tup], 2)  # type: ignore[no-any-return]


@array_function("*tup")
def column_stack(tup: Sequence[Sym]) -> Sym:
    return concatenate([s if s.ndim > 1 else s.reshape((s.size, 1)) for s in tup], 1)  # type: ignore[no-any-return]


@array_function("ary", view=True)
def array_split(ary: Sym, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Sym]:
    on = normalize_axis_index(axis, ary.ndim)
    n = ary.shape[on]
    if isinstance(indices_or_sections, int | np.integer):
        sections = int(indices_or_sections)
        if sections <= 0:
            raise InvalidParameter(
                op="np.array_split", name="sections", found=sections, expected="at least 1", loc=user_line()
            )
        longer, extra = divmod(n, sections)
        cuts = [0]
        for i in range(sections):
            cuts.append(cuts[-1] + longer + (i < extra))
        bounds = list(zip(cuts[:-1], cuts[1:], strict=True))
    else:
        edges = [0, *(operator.index(i) for i in indices_or_sections), n]
        bounds = [slice(a, b).indices(n)[:2] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return [part(ary, on, a, max(a, b)) for a, b in bounds]


@array_function("ary", view=True)
def split(ary: Sym, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Sym]:
    n = ary.shape[normalize_axis_index(axis, ary.ndim)]
    if isinstance(indices_or_sections, int | np.integer) and n % int(indices_or_sections):
        expected = f"an axis that divides into {indices_or_sections} equal parts; np.array_split takes others"
        raise ShapeMismatch(op="np.split", found=ary.shape, expected=expected, loc=user_line())
    return array_split(ary, indices_or_sections, axis)  # type: ignore[no-any-return]


@array_function("ary", view=True)
def hsplit(ary: Sym, indices_or_sections: int | Sequence[int]) -> list[Sym]:
    return split(ary, indices_or_sections, 0 if ary.ndim == 1 else 1)  # type: ignore[no-any-return]


@array_function("ary", view=True)
def vsplit(ary: Sym, indices_or_sections: int | Sequence[int]) -> list[Sym]:
    return split(ary, indices_or_sections, 0)  # type: ignore[no-any-return]


@array_function("x", view=True)
def unstack(x: Sym, *, axis: int = 0) -> tuple[Sym, ...]:
    on = normalize_axis_index(axis, x.ndim)
    return tuple(squeeze(part(x, on, i, i + 1), on) for i in range(x.shape[on]))


@array_function("A")
def tile(A: Sym, reps: int | Sequence[int]) -> Sym:
    counts = shape_of(reps)
    ndim = max(len(counts), A.ndim)
    counts = (*(1,) * (ndim - len(counts)), *counts)
    shape = (*(1,) * (ndim - A.ndim), *A.shape)
    spread = A.reshape(tuple(n for extent in shape for n in (1, extent)))
    spread = spread.broadcast(tuple(n for pair in zip(counts, shape, strict=True) for n in pair))
    return spread.reshape(tuple(c * n for c, n in zip(counts, shape, strict=True)))


@array_function("a")
def repeat(a: Sym, repeats: int | Sequence[int], axis: int | None = None) -> Sym:
    if axis is None:
        a, axis = a.reshape((a.size,)), 0
    on = normalize_axis_index(axis, a.ndim)
    n = a.shape[on]
    times = shape_of(tuple(np.atleast_1d(np.asarray(repeats)).tolist()))
    if len(times) == 1:
        spread = a.reshape((*a.shape[: on + 1], 1, *a.shape[on + 1 :]))
        spread = spread.broadcast((*a.shape[: on + 1], times[0], *a.shape[on + 1 :]))
        return spread.reshape((*a.shape[:on], n * times[0], *a.shape[on + 1 :]))
    if len(times) != n:
        raise ShapeMismatch(
            op="np.repeat",
            found=f"{len(times)} counts",
            expected=f"one, or one for each of {n} elements",
            loc=user_line(),
        )
    return FUNCTIONS["take"](a, np.repeat(np.arange(n), times), on)  # type: ignore[no-any-return]


def flipped(x: Sym, axes: Sequence[int]) -> Sym:
    return apply("flip", x, axes=tuple(axes)) if axes and x.size else x  # type: ignore[no-any-return]


@array_function("m", view=True)
def flip(m: Sym, axis: int | Sequence[int] | None = None) -> Sym:
    return flipped(m, range(m.ndim) if axis is None else sorted(normalize_axis_tuple(axis, m.ndim)))


@array_function("m", view=True)
def fliplr(m: Sym) -> Sym:
    return flip(m, 1)  # type: ignore[no-any-return]


@array_function("m", view=True)
def flipud(m: Sym) -> Sym:
    return flip(m, 0)  # type: ignore[no-any-return]


@array_function("m", view=True)
def rot90(m: Sym, k: int = 1, axes: Sequence[int] = (0, 1)) -> Sym:
    i, j = normalize_axis_tuple(tuple(axes), m.ndim)
    match k % 4:
        case 0:
            return m
        case 2:
            return flipped(flipped(m, [i]), [j])
        case 1:
            return swapaxes(flipped(m, [j]), i, j)  # type: ignore[no-any-return]
        case _:
            return flipped(swapaxes(m, i, j), [j])


@array_function("a")
def roll(a: Sym, shift: int | Sequence[int], axis: int | Sequence[int] | None = None) -> Sym:
    if axis is None:
        if not isinstance(shift, int | np.integer):
            shift = int(np.sum(shift))
        return _rolled(a.reshape((a.size,)), int(shift), 0).reshape(a.shape)
    pairs = np.broadcast(np.asarray(shift), np.asarray(axis))
    for s, on in pairs:
        a = _rolled(a, int(s), normalize_axis_index(int(on), a.ndim))
    return a


def _rolled(x: Sym, shift: int, axis: int) -> Sym:
    n = x.shape[axis]
    by = shift % n if n else 0
    return concatenate([part(x, axis, n - by, n), part(x, axis, 0, n - by)], axis) if by else x


@array_function("array", "constant_values", numbers=True)
def pad(array: Operand, pad_width: Any, mode: str = "constant", constant_values: Any = 0) -> Sym:
    x = as_sym(array)
    widths = (
        np.broadcast_to(np.asarray(pad_width), (x.ndim, 2)).tolist()
        if not isinstance(pad_width, dict)
        else [np.broadcast_to(np.asarray(dict(pad_width).get(i, 0)), (2,)).tolist() for i in range(x.ndim)]
    )
    if any(w < 0 for pair in widths for w in pair):
        raise InvalidParameter(
            op="np.pad", name="pad_width", found=pad_width, expected="no negative width", loc=user_line()
        )
    if mode == "constant":
        return _padded_by(x, widths, constant_values)
    if mode not in _PADDING:
        raise UnsupportedArgument(
            op="np.pad", name="mode", found=mode, expected=f"those that are: constant, {', '.join(_PADDING)}"
        )
    for axis, (low, high) in enumerate(widths):
        n = x.shape[axis]
        if n == 0 and (low or high):
            raise ShapeMismatch(
                op="np.pad", found=x.shape, expected=f"at least one element along axis {axis}", loc=user_line()
            )
        source = _PADDING[mode](np.arange(-low, n + high), n)
        x = _taken_runs(x, source.tolist(), axis)
    return x


def _padded_by(x: Sym, widths: list[list[int]], value: Any) -> Sym:
    fill = as_sym(value)
    if fill.shape != ():
        expected = "one number; pad axis by axis for others"
        raise UnsupportedArgument(
            op="np.pad", name="constant_values", found=f"an array of shape {fill.shape}", expected=expected
        )
    low, high = (tuple(pair[i] for pair in widths) for i in range(2))
    return apply("pad", x, fill.astype(x.dtype), low=low, high=high, interior=(0,) * x.ndim)  # type: ignore[no-any-return]


def _reflect(i: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    period = max(2 * (n - 1), 1)
    i = i % period
    return np.where(i < n, i, period - i) if n > 1 else np.zeros_like(i)


def _symmetric(i: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    i = i % (2 * n)
    return np.where(i < n, i, 2 * n - 1 - i)


_PADDING = {
    "edge": lambda i, n: np.clip(i, 0, n - 1),
    "reflect": _reflect,
    "symmetric": _symmetric,
    "wrap": lambda i, n: i % n,
}
"""For each mode of ``pad``: which element stands at place ``i`` of an axis of ``n``."""


def _taken_runs(x: Sym, source: list[int], axis: int) -> Sym:
    """Take elements by a list of places, as slices: each run of equal steps of 1, -1 or 0 is one."""
    pieces: list[Sym] = []
    start = 0
    while start < len(source):
        stop = start + 1
        step = source[stop] - source[start] if stop < len(source) and abs(source[stop] - source[start]) <= 1 else 1
        while stop < len(source) and source[stop] - source[stop - 1] == step:
            stop += 1
        first, last = source[start], source[stop - 1]
        if step == 0:
            one = part(x, axis, first, first + 1)
            pieces.append(one.broadcast((*one.shape[:axis], stop - start, *one.shape[axis + 1 :])))
        else:
            pieces.append(part(x, axis, first, last + step, step))
        start = stop
    return concatenate(pieces, axis) if pieces else x


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
    return where(below, m, 0) if lower else where(below, 0, m)


@array_function("a", view=True)
def diagonal(a: Sym, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Sym:
    """``numpy.diagonal``: every (columns + 1)-th element of the flattened matrix."""
    i, j = normalize_axis_index(axis1, a.ndim), normalize_axis_index(axis2, a.ndim)
    rest = [n for n in range(a.ndim) if n not in (i, j)]
    x = a.transpose([*rest, i, j])
    rows, columns = x.shape[-2:]
    count = max(min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns), 0)
    lead = x.shape[:-2]
    if not count or not x.size:
        return part(x.reshape((*lead, rows * columns)), len(lead), 0, 0).reshape((*lead, count if x.size else 0))
    start = offset if offset >= 0 else -offset * columns
    flat = x.reshape((*lead, rows * columns))
    return part(flat, len(lead), start, start + (count - 1) * (columns + 1) + 1, columns + 1)


@array_function("v")
def diag(v: Sym, k: int = 0) -> Sym:
    if v.ndim == 2:
        return diagonal(v, k)  # type: ignore[no-any-return]
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
    return where((columns - rows).eq(k), spread, 0)


@array_function("v")
def diagflat(v: Sym, k: int = 0) -> Sym:
    return diag(v.reshape((v.size,)), k)  # type: ignore[no-any-return]


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
    sizes = shape_of(window_shape)
    axes = tuple(range(x.ndim)) if axis is None else normalize_axis_tuple(axis, x.ndim, allow_duplicate=False)
    if len(sizes) != len(axes) or any(s > x.shape[a] for s, a in zip(sizes, axes, strict=True)):
        expected = f"a window for each of axes {axes}, at most as long as the axis"
        raise ShapeMismatch(
            op="np.sliding_window_view", found=f"{sizes} in {x.shape}", expected=expected, loc=user_line()
        )
    return windows(x, axes, sizes)


def windows(x: Sym, axes: Sequence[int], sizes: Sequence[int]) -> Sym:
    """Append an axis with the elements of a window for each of ``axes``, whose places step by one."""
    ones = (1,) * len(axes)
    return apply("window", x, axes=tuple(axes), sizes=tuple(sizes), strides=ones, dilations=ones)  # type: ignore[no-any-return]


def _size(a: Any, axis: int | None = None) -> int:
    shape = a.shape if hasattr(a, "shape") else np.shape(a)
    return math.prod(shape) if axis is None else int(shape[axis])


FUNCTIONS |= {
    "shape": lambda a: a.shape if hasattr(a, "shape") else np.shape(a),
    "ndim": lambda a: len(a.shape) if hasattr(a, "shape") else np.ndim(a),
    "size": _size,
    "iscomplexobj": lambda x: False,
    "isrealobj": lambda x: True,
    "real": lambda val: val.real,
}

FUNCTIONS["sliding_window_view"] = FUNCTIONS["lib.stride_tricks.sliding_window_view"]
ALIASES = {"concat": "concatenate", "permute_dims": "transpose", "row_stack": "vstack"}

__all__ = ["ALIASES", "common_shape", "part", "ufunc", "windows"]
