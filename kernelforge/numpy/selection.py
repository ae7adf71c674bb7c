"""Elements by index, updates of elements, and what compares an array with its own shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge import indexing
from kernelforge.errors import (
    InvalidIndex,
    InvalidParameter,
    ReadOnlyArray,
    ShapeMismatch,
    UnsupportedArgument,
)
from kernelforge.ir.build import Operand, Sym, apply, as_sym, tracing
from kernelforge.ir.types import broadcast_shapes
from kernelforge.jit import jit
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import iota
from kernelforge.numpy.dispatch import array_function, lift, wrap
from kernelforge.numpy.folds import put_each
from kernelforge.numpy.products import contract
from kernelforge.numpy.shapes import part, windows
from kernelforge.numpy.ufuncs import loop, ufunc
from kernelforge.told import telling
from kernelforge.trace import TRACED, Tracer, concrete, to_written

Key = tuple[Any, ...]


def _split(key: Any) -> tuple[Key, list[Any]]:
    """Split an index into a hashable part and its arrays; in the first, a place holds the number of an array."""
    arrays: list[Any] = []
    parts: list[Any] = []
    for p in key if isinstance(key, tuple) else (key,):
        known = concrete(p)
        if isinstance(known, slice):
            parts.append(("slice", *(_number(v) for v in (known.start, known.stop, known.step))))
        elif isinstance(known, list | np.ndarray) and np.ndim(known):
            # a mask's shape depends on its values, so these are looked at before anything is compiled
            array = np.asarray(known) if np.size(known) else np.zeros(np.shape(known), np.int64)
            found = array.nonzero() if array.dtype == np.bool_ else (array,)
            parts.extend(("array", len(arrays) + i) for i in range(len(found)))
            arrays.extend(found)
        else:
            parts.append(("static", _number(known)))
    return tuple(parts), arrays


def _number(x: Any) -> Any:
    """Return an array of no axes as the Python number it holds, which can be hashed; anything else as it is."""
    return x.item() if isinstance(x, np.ndarray | np.generic) and not x.ndim else x


def _joined(parts: Key, arrays: Sequence[Any]) -> Key:
    """Undo ``_split``."""
    made: list[Any] = []
    for what, *rest in parts:
        made.append(slice(*rest) if what == "slice" else arrays[rest[0]] if what == "array" else rest[0])
    return tuple(made)


def _check(parts: Key, arrays: Sequence[Any], shape: tuple[int, ...]) -> None:
    """Look for index arrays that are out of range, which a compiled gather answers with NaN."""
    try:
        np.broadcast_to(np.int8(0), shape)[_joined(parts, arrays)]
    except (IndexError, TypeError) as error:
        key = ", ".join(repr(p) for p in _joined(parts, arrays))
        raise InvalidIndex(found=f"[{key}]", shape=shape, expected=error) from None


@jit(static_argnums=2)
def _get(x: Any, arrays: list[Any], parts: Key) -> Any:
    return x[_joined(parts, arrays)]


@jit(static_argnums=(3, 4))
def _put(x: Any, arrays: list[Any], value: Any, parts: Key, mode: str) -> Any:
    return at(x, _joined(parts, arrays), value, mode)


@jit(static_argnums=(3, 4))
def _put_each(x: Any, arrays: list[Any], values: tuple[Any, ...], parts: Key, op: str) -> Any:
    return combined(op, x, _joined(parts, arrays), *values)


def getitem(x: Any, key: Any) -> Any:
    """``x[key]``."""
    if tracing():
        return wrap(lift(x))[key]
    parts, arrays = _split(key)
    _check(parts, arrays, x.shape)
    return _get(x, arrays, parts)


def at(x: Any, key: Any, value: Any, mode: str) -> Any:
    """Return ``x`` with ``value`` combined in at ``key``; see ``x.at``."""
    if not tracing():
        parts, arrays = _split(key)
        _check(parts, arrays, x.shape)
        return _put(x, arrays, value, parts, mode)
    index = tuple(_index(k) for k in (key if isinstance(key, tuple) else (key,)))
    return wrap(indexing.put(lift(x), index, lift(value, numbers=True), mode))


def combined(op: str, x: Any, key: Any, *values: Any) -> Any:
    """Return ``x`` with what the ufunc ``op`` makes of the elements at ``key`` and ``values``, each in turn."""
    values = tuple(FUNCTIONS["asarray"](v) if isinstance(v, list | tuple) else v for v in values)
    if op not in indexing.MODES or not _combines(op, x, *values):
        if not tracing():
            parts, arrays = _split(key)
            _check(parts, arrays, x.shape)
            return _put_each(x, arrays, values, parts, op)
        index = tuple(_index(k) for k in (key if isinstance(key, tuple) else (key,)))
        return wrap(put_each(lift(x), index, op, *(lift(v) for v in values)))
    (value,) = values
    if op == "subtract":  # in the array's dtype, where -3 is not 253 and -(-128) not -128
        value = FUNCTIONS["negative"](FUNCTIONS["astype"](FUNCTIONS["asarray"](value), x.dtype))
    return at(x, key, value, indexing.MODES[op])


def _combines(op: str, x: Any, value: Any) -> bool:
    """Whether ``op`` on values cast to the dtype of ``x`` is the cast of what it is on the values as they are."""
    dtype = FUNCTIONS["result_type"](x, value)
    if dtype.kind not in "biu":
        return bool(np.can_cast(dtype, x.dtype, "same_kind"))
    if x.dtype.kind == "b" and (op == "subtract" or dtype != x.dtype):  # True + -1 is 0
        return False
    if op not in ("maximum", "minimum"):
        return True
    held = x.dtype.kind == "b" or type(value) is not int or np.iinfo(x.dtype).min <= value <= np.iinfo(x.dtype).max
    return bool(dtype == x.dtype and held)


def _index(key: Any) -> Any:
    known = concrete(key)
    return lift(key) if known is TRACED else known


def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    """``numpy.copyto``, on an array made inside of the function."""
    if not isinstance(dst, Tracer):
        raise ReadOnlyArray(found="the destination")
    src = to_written(src, dst.dtype) if type(src) is int and dst.dtype.kind != "b" else src
    dst.assign("copyto", src if where is True else FUNCTIONS["where"](where, src, dst), casting)


def fill_diagonal(a: Any, val: Any, wrap: bool = False) -> None:
    """``numpy.fill_diagonal``, on a matrix made inside of the function."""
    if wrap or a.ndim != 2:
        raise UnsupportedArgument(
            op="np.fill_diagonal", name="a", found=f"{a.ndim} axes", expected="a matrix, and no wrap"
        )
    at = np.arange(min(a.shape))
    a[at, at] = val


FUNCTIONS |= {"getitem": getitem, "at": at, "combined": combined}
FUNCTIONS |= {fn.__name__: telling(fn) for fn in (copyto, fill_diagonal)}


@array_function("a", "indices")
def take(a: Sym, indices: Sym, axis: int | None = None, mode: str = "raise") -> Sym:
    """``numpy.take``; ``mode="raise"`` can refuse only what is known while tracing: elsewhere a float reads as NaN."""
    if axis is None:
        a, axis = a.reshape((a.size,)), 0
    on = normalize_axis_index(axis, a.ndim)
    index = indexing.signed(indices, a.shape)
    if mode == "clip":
        index = ufunc("minimum", ufunc("maximum", index, 0), a.shape[on] - 1)
    elif mode == "wrap":
        index = ufunc("remainder", index, a.shape[on])
    elif mode != "raise":
        raise UnsupportedArgument(op="np.take", name="mode", found=mode, expected="raise, clip or wrap")
    made = apply("gather", a, index, axes=(on,))
    order = [*range(index.ndim, index.ndim + on), *range(index.ndim), *range(index.ndim + on, made.ndim)]
    return made.transpose(order)


_take = FUNCTIONS["take"]


def checked_take(a: Any, indices: Any, axis: int | None = None, mode: str = "raise") -> Any:
    """``numpy.take``; indices that are known while tracing are checked, others read NaN where they are out of range."""
    known = concrete(indices)
    if axis is not None and not a.ndim:
        normalize_axis_index(axis, 1)
        axis = None
    if mode == "raise" and known is not TRACED and not isinstance(known, Sym):
        n = int(np.prod(a.shape)) if axis is None else a.shape[axis]
        index = np.asarray(known)
        for wrong in index[(index < -n) | (index >= n)].flat[:1]:
            indexing.check_range(int(wrong), axis or 0, n)
        if axis is not None and concrete(a) is TRACED and (even := _even(index, n)) is not None:
            on = normalize_axis_index(axis, a.ndim)
            given = Tracer(a) if isinstance(a, Sym) else a
            made = FUNCTIONS["repeat"](given[(*(slice(None),) * on, even[0])], even[1], on)
            return made.sym if isinstance(a, Sym) else made
    return _take(a, indices, axis, mode)


def _even(index: np.ndarray[Any, Any], n: int) -> tuple[slice, int] | None:
    """Return the slice, and how many times each of its elements is repeated, that indices of an axis of ``n`` elements
    make: views, and their derivatives sums, where a table would be read and its derivative scattered. None for others.
    """
    if index.ndim != 1 or not index.size or index.dtype.kind not in "iu":
        return None
    index = np.where(index < 0, index + n, index).astype(np.int64)
    times = int((index != index[0]).argmax()) or index.size
    first, *rest = map(int, index[::times])
    step = rest[0] - first if rest else 1
    if index.size % times or (index != first + np.arange(index.size) // times * step).any():
        return None
    stop = first + (len(rest) + 1) * step
    return slice(first, stop if stop >= 0 else None, step), times


checked_take.__name__ = checked_take.__qualname__ = "take"
FUNCTIONS["take"] = telling(checked_take)


def _grid(indices: Sym, axis: int) -> list[Sym]:
    return [indices if a == axis else iota(indices.shape, a) for a in range(indices.ndim)]


def _along(arr: Sym, indices: Sym, axis: int | None, op: str) -> tuple[Sym, Sym, int]:
    if axis is None:
        arr, axis = arr.reshape((arr.size,)), 0
    on = normalize_axis_index(axis, arr.ndim)
    index = indexing.signed(indices, arr.shape)
    if index.ndim != arr.ndim:
        raise ShapeMismatch(op=f"np.{op}", found=f"{arr.shape} and {index.shape}", expected="as many axes in both")
    shape = broadcast_shapes(*((*s[:on], 1, *s[on + 1 :]) for s in (arr.shape, index.shape)))
    return (
        arr.broadcast((*shape[:on], arr.shape[on], *shape[on + 1 :])),
        index.broadcast((*shape[:on], index.shape[on], *shape[on + 1 :])),
        on,
    )


@array_function("arr", "indices")
def take_along_axis(arr: Sym, indices: Sym, axis: int | None = -1) -> Sym:
    x, index, on = _along(arr, indices, axis, "take_along_axis")
    return apply("gather", x, *_grid(index, on), axes=tuple(range(x.ndim)))


@array_function("arr", "indices", "values", table={})
def _put_along(arr: Sym, indices: Sym, values: Sym, axis: int | None) -> Sym:
    x, index, on = _along(arr, indices, axis, "put_along_axis")
    value = indexing.fitted(values.astype(x.dtype), index.shape)
    made: Sym = apply("scatter", x, value, *_grid(index, on), axes=tuple(range(x.ndim)), mode="set")
    return made.reshape(arr.shape)


def put_along_axis(arr: Any, indices: Any, values: Any, axis: int | None) -> None:
    """``numpy.put_along_axis``, on an array made inside of the function."""
    arr.assign("put_along_axis", _put_along(arr, indices, to_written(values, arr.dtype), axis))


FUNCTIONS["put_along_axis"] = telling(put_along_axis)


@array_function("a", "prepend", "append")
def diff(a: Sym, n: int = 1, axis: int = -1, prepend: Operand | None = None, append: Operand | None = None) -> Sym:
    on = normalize_axis_index(axis, a.ndim)
    pieces = (
        [_edge(v, a, on) for v in (prepend,) if v is not None]
        + [a]
        + [_edge(v, a, on) for v in (append,) if v is not None]
    )
    x: Sym = FUNCTIONS["concatenate"](pieces, on)
    name = "not_equal" if x.dtype == np.bool_ else "subtract"
    for _ in range(n):
        m = x.shape[on]
        x = ufunc(name, part(x, on, 1, max(m, 1)), part(x, on, 0, max(m - 1, 0)))
    return x


def _edge(value: Operand, like: Sym, axis: int) -> Sym:
    sym = as_sym(value)
    return sym if sym.ndim else sym.broadcast(tuple(1 if i == axis else n for i, n in enumerate(like.shape)))


@array_function("f", "spacing")
def gradient(
    f: Sym, *spacing: Sym, axis: int | Sequence[int] | None = None, edge_order: int = 1
) -> Sym | tuple[Sym, ...]:
    axes = range(f.ndim) if axis is None else [axis] if isinstance(axis, int | np.integer) else axis
    axes = [normalize_axis_index(i, f.ndim) for i in axes]
    steps = list(spacing) * len(axes) if len(spacing) == 1 and not spacing[0].ndim else list(spacing)
    steps = steps or [as_sym(1.0)] * len(axes)
    if len(steps) != len(axes) or any(
        s.ndim and s.shape != f.shape[i : i + 1] for i, s in zip(axes, steps, strict=True)
    ):
        found = f"{[s.shape for s in steps]} for the axes {list(axes)} of {f.shape}"
        expected = "a number, or for each axis a number or coordinates of its extent"
        raise ShapeMismatch(op="np.gradient", found=found, expected=expected)
    if edge_order not in (1, 2):
        raise InvalidParameter(op="np.gradient", name="edge_order", found=edge_order, expected="1 or 2")
    x = f if f.dtype.kind == "f" else f.astype(np.float64)
    made = tuple(_slope(x, on, step.astype(x.dtype), edge_order) for on, step in zip(axes, steps, strict=True))
    return made[0] if len(made) == 1 else made


def _slope(x: Sym, on: int, step: Sym, order: int) -> Sym:
    n = x.shape[on]
    if n <= order:
        expected = f"at least {order + 1} elements along the axis"
        raise ShapeMismatch(op="np.gradient", found=x.shape, expected=expected)
    along = tuple(n - 1 if i == on else 1 for i in range(x.ndim))
    h = diff(step).reshape(along) if step.ndim else step.broadcast(along)
    slopes = ufunc("divide", diff(x, axis=on), h)
    before, after = part(h, on, 0, n - 2), part(h, on, 1, n - 1)
    if step.ndim:  # the parabola through three points: a mean of the slopes, each weighted by the other's step
        left, right = part(slopes, on, 0, n - 2), part(slopes, on, 1, n - 1)
        inside = ufunc("divide", left * after + right * before, before + after)
    else:  # the one in the middle is not in it
        inside = ufunc("divide", part(x, on, 2, n) - part(x, on, 0, n - 2), before + after)
    first, last = part(slopes, on, 0, 1), part(slopes, on, n - 2, n - 1)
    if order == 2:  # and at its ends as much beyond the slope as that is beyond the mean
        first = first * 2 - part(inside, on, 0, 1)
        last = last * 2 - part(inside, on, n - 3, n - 2)
    return FUNCTIONS["concatenate"]([first, inside, last], on)  # type: ignore[no-any-return]


@array_function("y", "x", "dx")
def trapezoid(y: Sym, x: Sym | None = None, dx: Operand = 1.0, axis: int = -1) -> Sym:
    on = normalize_axis_index(axis, y.ndim)
    n = y.shape[on]
    pairs = ufunc("add", part(y, on, 1, n), part(y, on, 0, max(n - 1, 0)))
    width: Operand = dx
    if x is not None:
        width = diff(x, axis=-1 if x.ndim == 1 else on)
        if x.ndim == 1:
            width = as_sym(width).reshape(tuple(n - 1 if i == on else 1 for i in range(y.ndim)))
    return FUNCTIONS["sum"](ufunc("divide", ufunc("multiply", width, pairs), 2.0), on)  # type: ignore[no-any-return]


@array_function("a", "v")
def convolve(a: Sym, v: Sym, mode: str = "full") -> Sym:
    return _slid(a, apply("flip", v, axes=(0,)), mode, "convolve")


@array_function("a", "v")
def correlate(a: Sym, v: Sym, mode: str = "valid") -> Sym:
    if v.size > a.size:
        return apply("flip", _slid(v, a, mode, "correlate"), axes=(0,))
    return _slid(a, v, mode, "correlate")


def _slid(a: Sym, v: Sym, mode: str, op: str) -> Sym:
    """Multiply the shorter one with every window of the longer one."""
    if a.ndim != 1 or v.ndim != 1 or not a.size or not v.size:
        raise ShapeMismatch(op=f"np.{op}", found=f"{a.shape} and {v.shape}", expected="two vectors, not empty")
    if mode not in ("full", "same", "valid"):
        raise UnsupportedArgument(op=f"np.{op}", name="mode", found=mode, expected="full, same or valid")
    if v.size > a.size:
        a, v = apply("flip", v, axes=(0,)), apply("flip", a, axes=(0,))
    dtype = loop("multiply", (a.dtype, v.dtype))[-1]
    n = v.size
    low = {"full": n - 1, "same": n // 2, "valid": 0}[mode]
    high = {"full": n - 1, "same": n - 1 - n // 2, "valid": 0}[mode]
    padded = apply("pad", a.astype(dtype), as_sym(0).astype(dtype), low=(low,), high=(high,), interior=(0,))
    seen = windows(padded, (0,), (n,))
    return contract(seen, "ij", v.astype(dtype), "j", "i")
