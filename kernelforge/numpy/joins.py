"""Functions that put arrays together, take them apart, and repeat their elements."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge.dtypes import promote
from kernelforge.errors import InvalidParameter, ShapeMismatch, UnsupportedArgument
from kernelforge.ir.build import Operand, Sym, apply, as_sym
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import shape_of
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.shapes import expand_dims, part, squeeze


def joined(xs: Sequence[Operand], op: str, dtype: Any = None) -> list[Sym]:
    """Promote to one dtype."""
    if not xs:
        raise ShapeMismatch(op=f"np.{op}", found="no arrays", expected="at least one")
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
        raise ShapeMismatch(op="np.concatenate", found=found, expected="as many axes in all, at least one")
    on = normalize_axis_index(axis, syms[0].ndim)
    return syms[0] if len(syms) == 1 else apply("concatenate", *syms, axis=on)


@array_function("*arrays")
def stack(arrays: Sequence[Sym], axis: int = 0, *, dtype: Any = None) -> Sym:
    syms = joined(arrays, "stack", dtype)
    if any(s.shape != syms[0].shape for s in syms):
        found = " and ".join(str(s.shape) for s in syms)
        raise ShapeMismatch(op="np.stack", found=found, expected="one shape")
    on = normalize_axis_index(axis, syms[0].ndim + 1)
    return concatenate([expand_dims(s, on) for s in syms], on)


@array_function("*tup")
def hstack(tup: Sequence[Sym], *, dtype: Any = None) -> Sym:
    syms = [FUNCTIONS["atleast_1d"](s) for s in tup]
    return concatenate(syms, 0 if syms[0].ndim == 1 else 1, dtype=dtype)


@array_function("*tup")
def vstack(tup: Sequence[Sym], *, dtype: Any = None) -> Sym:
    return concatenate([FUNCTIONS["atleast_2d"](s) for s in tup], 0, dtype=dtype)


@array_function("*tup")
def dstack(tup: Sequence[Sym]) -> Sym:
    return concatenate([FUNCTIONS["atleast_3d"](s) for s in tup], 2)


@array_function("*tup")
def column_stack(tup: Sequence[Sym]) -> Sym:
    return concatenate([s if s.ndim > 1 else s.reshape((s.size, 1)) for s in tup], 1)


@array_function("ary", view=True)
def array_split(ary: Sym, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Sym]:
    on = normalize_axis_index(axis, ary.ndim)
    n = ary.shape[on]
    if isinstance(indices_or_sections, int | np.integer):
        sections = int(indices_or_sections)
        if sections <= 0:
            raise InvalidParameter(op="np.array_split", name="sections", found=sections, expected="at least 1")
        longer, extra = divmod(n, sections)
        cuts = [0]
        for i in range(sections):
            cuts.append(cuts[-1] + longer + (i < extra))
        bounds = list(pairwise(cuts))
    else:
        edges = [0, *(operator.index(i) for i in indices_or_sections), n]
        bounds = [slice(a, b).indices(n)[:2] for a, b in pairwise(edges)]
    return [part(ary, on, a, max(a, b)) for a, b in bounds]


@array_function("ary", view=True)
def split(ary: Sym, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Sym]:
    n = ary.shape[normalize_axis_index(axis, ary.ndim)]
    if isinstance(indices_or_sections, int | np.integer) and n % int(indices_or_sections):
        expected = f"an axis that divides into {indices_or_sections} equal parts; np.array_split takes others"
        raise ShapeMismatch(op="np.split", found=ary.shape, expected=expected)
    return array_split(ary, indices_or_sections, axis)


@array_function("ary", view=True)
def hsplit(ary: Sym, indices_or_sections: int | Sequence[int]) -> list[Sym]:
    return split(ary, indices_or_sections, 0 if ary.ndim == 1 else 1)


@array_function("ary", view=True)
def vsplit(ary: Sym, indices_or_sections: int | Sequence[int]) -> list[Sym]:
    return split(ary, indices_or_sections, 0)


@array_function("x", view=True)
def unstack(x: Sym, *, axis: int = 0) -> tuple[Sym, ...]:
    on = normalize_axis_index(axis, x.ndim)
    return tuple(squeeze(part(x, on, i, i + 1), on) for i in range(x.shape[on]))


@array_function("A")
def tile(A: Sym, reps: int | Sequence[int]) -> Sym:
    counts = shape_of(reps, "np.tile")
    ndim = max(len(counts), A.ndim)
    counts = (*(1,) * (ndim - len(counts)), *counts)
    shape = (*(1,) * (ndim - A.ndim), *A.shape)
    spread = A.reshape(tuple(n for extent in shape for n in (1, extent)))
    spread = spread.broadcast(tuple(n for pair in zip(counts, shape, strict=True) for n in pair))
    return spread.reshape(tuple(c * n for c, n in zip(counts, shape, strict=True)))


@array_function("a")
def repeat(a: Sym, repeats: int | Sequence[int], axis: int | None = None) -> Sym:
    if axis is None or a.ndim == 0:
        a, axis = a.reshape((a.size,)), axis or 0
    on = normalize_axis_index(axis, a.ndim)
    n = a.shape[on]
    times = shape_of(tuple(np.atleast_1d(np.asarray(repeats)).tolist()), "np.repeat")
    if len(times) == 1:
        spread = a.reshape((*a.shape[: on + 1], 1, *a.shape[on + 1 :]))
        spread = spread.broadcast((*a.shape[: on + 1], times[0], *a.shape[on + 1 :]))
        return spread.reshape((*a.shape[:on], n * times[0], *a.shape[on + 1 :]))
    if len(times) != n:
        raise ShapeMismatch(
            op="np.repeat", found=f"{len(times)} counts", expected=f"one, or one for each of {n} elements"
        )
    return FUNCTIONS["take"](a, np.repeat(np.arange(n), times), on)  # type: ignore[no-any-return]


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
        raise InvalidParameter(op="np.pad", name="pad_width", found=pad_width, expected="no negative width")
    if mode == "constant":
        return _padded_by(x, widths, constant_values)
    if mode not in _PADDING:
        raise UnsupportedArgument(
            op="np.pad", name="mode", found=mode, expected=f"those that are: constant, {', '.join(_PADDING)}"
        )
    for axis, (low, high) in enumerate(widths):
        n = x.shape[axis]
        if n == 0 and (low or high):
            raise ShapeMismatch(op="np.pad", found=x.shape, expected=f"at least one element along axis {axis}")
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
    return apply("pad", x, fill.astype(x.dtype), low=low, high=high, interior=(0,) * x.ndim)


def _reflect(i: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    period = max(2 * (n - 1), 1)
    i = i % period
    return np.where(i < n, i, period - i) if n > 1 else np.zeros_like(i)


def _symmetric(i: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    i = i % (2 * n)
    return np.where(i < n, i, 2 * n - 1 - i)


_PADDING: dict[str, Callable[[np.ndarray[Any, Any], int], np.ndarray[Any, Any]]] = {
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


ALIASES = {"concat": "concatenate", "row_stack": "vstack"}
