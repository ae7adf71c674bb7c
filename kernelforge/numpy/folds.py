"""What NumPy's ufuncs make of many elements, each in turn: ``reduce``, ``accumulate``, ``reduceat`` and ``at``.

Sums, products, extrema and the like have functions of their own, which take elements in any order. All other binary
ufuncs, and arguments that those functions do not have, are scans here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge import indexing
from kernelforge.ir.build import Operand, Sym, apply, as_sym, written
from kernelforge.ir.ops.control import emit_scan
from kernelforge.methods import FUNCTIONS, function
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.reductions import axes_of, keep
from kernelforge.numpy.shapes import part
from kernelforge.numpy.sorting import order_of
from kernelforge.numpy.ufuncs import boolean
from kernelforge.numpy.ufuncs import where as where_


def _dtype(name: str, how: str, x: Sym, *args: Any, **given: Any) -> np.dtype[Any]:
    """Return the dtype in which NumPy computes, and gives the result; it raises what NumPy raises."""
    few = np.ones(tuple(min(n, 1) for n in x.shape), x.dtype)
    dtype: np.dtype[Any] = getattr(getattr(np, name), how)(few, *args, **given).dtype
    return dtype


def _both(name: str, x: Sym, y: Sym) -> Sym:
    return function(name)(x, y).astype(x.dtype)  # type: ignore[no-any-return]


@array_function("a", "where", "initial", numbers=True, name="ufunc.reduce")
def _reduce(
    a: Operand,
    name: str,
    axis: int | Sequence[int] | None = None,
    dtype: Any = None,
    keepdims: bool = False,
    initial: Operand | None = None,
    where: Operand | None = None,
) -> Sym:
    x = as_sym(a)
    asked: dict[str, Any] = {} if initial is None else {"initial": 1}
    asked |= {} if where is None else {"where": np.True_}
    x = x.astype(_dtype(name, "reduce", x, axis, dtype, **asked))
    axes = () if x.ndim == 0 and axis in (0, -1) else axes_of(x, axis)
    others = [i for i in range(x.ndim) if i not in axes]

    def rows(v: Sym) -> Sym:
        v = v.transpose([*axes, *others])
        return v.reshape((math.prod(v.shape[: len(axes)]), *v.shape[len(axes) :]))

    def step(total: Sym, value: Sym, *chosen: Sym) -> list[Sym]:
        made = _both(name, total, value)
        return [where_(chosen[0], made, total) if chosen else made]

    given = [rows(x), *([] if where is None else [rows(boolean(where).broadcast(x.shape))])]
    start = getattr(np, name).identity if initial is None else initial
    if start is None:  # the first elements, of which a mask leaves out none
        first, given = _row(given[0], 0), [part(given[0], 0, 1, given[0].shape[0])]
    else:
        first = written(start, x.dtype, f"np.{name}.reduce").broadcast(given[0].shape[1:])
    (made,) = emit_scan(step, [first], given, given[0].shape[0], False)
    return keep(made, x, axes) if keepdims else made


def _row(x: Sym, at: int) -> Sym:
    return indexing.get(x, at)


def running(name: str, rows: Sym, fresh: np.ndarray[Any, Any]) -> Sym:
    """Return what has become of the rows up to each one, since the last ``fresh`` one."""

    def step(total: Sym, value: Sym, begins: Sym) -> list[Sym]:
        made = where_(begins, value, _both(name, where_(begins, value, total), value))
        return [made, made]

    if not rows.shape[0]:
        return rows
    _, made = emit_scan(step, [_row(rows, 0)], [rows, as_sym(fresh)], rows.shape[0], False)
    return made


@array_function("a", numbers=True, name="ufunc.accumulate")
def _accumulate(a: Operand, name: str, axis: int = 0, dtype: Any = None) -> Sym:
    x = as_sym(a)
    rows = FUNCTIONS["moveaxis"](x.astype(_dtype(name, "accumulate", x, axis, dtype)), axis, 0)
    made = running(name, rows, np.arange(rows.shape[0]) == 0)
    return FUNCTIONS["moveaxis"](made, 0, axis)  # type: ignore[no-any-return]


@array_function("a", table={}, name="ufunc.reduceat")
def reduce_runs(a: Sym, name: str, starts: tuple[int, ...], axis: int) -> Sym:
    """Reduce the runs that begin at ``starts``; one that would end before it begins is one element."""
    rows = FUNCTIONS["moveaxis"](a, normalize_axis_index(axis, a.ndim), 0)
    ends = np.append(np.array(starts, np.int64), rows.shape[0])[1:]
    runs = [np.arange(start, max(end, start + 1)) for start, end in zip(starts, ends, strict=True)]
    places = np.concatenate([np.zeros(0, np.int64), *runs])
    last = np.cumsum([len(run) for run in runs], dtype=np.int64) - 1
    made = running(name, FUNCTIONS["take"](rows, as_sym(places), 0), np.isin(np.arange(len(places)) - 1, [-1, *last]))
    return FUNCTIONS["moveaxis"](FUNCTIONS["take"](made, as_sym(last), 0), 0, axis)  # type: ignore[no-any-return]


def put_each(x: Sym, key: Any, name: str, *values: Operand) -> Sym:
    """Return ``x`` with what a ufunc makes of the elements at ``key`` and of values, one after the other."""
    numbers = apply("iota", shape=(x.size,), axis=0, dtype="i64").reshape(x.shape)
    places = indexing.get(numbers, key)
    given = [indexing.fitted(_strong(as_sym(v)), places.shape).reshape((places.size,)) for v in values]
    if not places.size:
        return x
    # by place, and for one place in order: so a step holds one element
    order = order_of(places.reshape((places.size,)))
    place, *given = (FUNCTIONS["take"](v, order) for v in (places.reshape((places.size,)), *given))
    same = part(place, 0, 1, places.size).eq(part(place, 0, 0, places.size - 1))
    follows = FUNCTIONS["concatenate"]([np.zeros(1, bool), same])
    flat = x.reshape((x.size,))
    old = apply("gather", flat, place, axes=(0,))

    def step(total: Sym, old: Sym, follows: Sym, *value: Sym) -> list[Sym]:
        made = function(name)(where_(follows, total, old), *value).astype(x.dtype)
        return [made, made]

    _, made = emit_scan(step, [_row(old, 0)], [old, follows, *given], places.size, False)
    return apply("scatter", flat, made, place, axes=(0,), mode="set").reshape(x.shape)


def _strong(x: Sym) -> Sym:
    """Return what stands for a Python number as the array that NumPy makes of it."""
    return x.astype(x.dtype) if x.type.weak else x
