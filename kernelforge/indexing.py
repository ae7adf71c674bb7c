"""NumPy's indexing, on symbols: reading and writing the elements that an index selects.

An index is read once into a ``_Plan``: slices, which are views, come first; integer arrays are one ``gather`` on what
they leave; where NumPy puts the axes of the index arrays is a transpose at the end. Writing goes the same way back.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernelforge.errors import IndexOutOfRange, InvalidIndex, ShapeMismatch, TracedMask
from kernelforge.ir.build import Operand, Sym, apply, as_sym, binary, written
from kernelforge.ir.types import broadcast_shapes
from kernelforge.methods import Methods

MODES = {"add": "add", "subtract": "add", "multiply": "mul", "maximum": "max", "minimum": "min"}
"""How a ufunc's ``at`` combines; ``subtract`` adds the negated value."""


def is_basic(key: Any) -> bool:
    """Whether NumPy answers ``x[key]`` with a view: nothing but integers, slices, None and Ellipsis."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(p is None or p is Ellipsis or isinstance(p, slice) or _is_integer(p) for p in parts)


class Masked(NamedTuple):
    """What an index with a traced mask selects from.

    Attributes:
        key: the other indices, and slices for the axes of the mask: it is basic.
        mask: the mask.
        at: the axis of ``x[key]`` that it begins at.
        joined: whether NumPy leaves what it selects there: that comes first where integers stand apart from the mask.
    """

    key: tuple[Any, ...]
    mask: Sym
    at: int
    joined: bool

    def over(self, part: Sym) -> Sym:
        """Return the mask over the first axes of ``x[key]``; over all of them where it begins at a later one."""
        return self.spread(part) if self.at else self.mask

    def spread(self, part: Sym) -> Sym:
        """Return the mask over all axes of ``x[key]``."""
        shape = (*(1,) * self.at, *self.mask.shape)
        return self.mask.reshape((*shape, *(1,) * (part.ndim - len(shape)))).broadcast(part.shape)


def mask_of(x: Sym, key: Any) -> Masked | None:
    """Return what an index selects from by a traced mask; None for an index without one.

    Raises:
        InvalidIndex: when the mask is not of the extents it selects from, or other arrays are beside it.
    """
    parts = key if isinstance(key, tuple) else (key,)
    found = [k for k, p in enumerate(parts) if isinstance(p, Sym) and p.dtype.kind == "b" and p.ndim]
    if not found:
        return None
    where, mask = found[0], parts[found[0]]
    before, after = parts[:where], parts[where + 1 :]
    if not is_basic((*before, *after)):
        expected = "no more than slices and integers beside it"
        raise InvalidIndex(found="a traced mask beside an array", shape=x.shape, expected=expected)
    basic = (*before, *(slice(None),) * mask.ndim, *after)
    entries = _expand(x, basic)
    start = len(entries) - len(after) - mask.ndim if any(p is Ellipsis for p in before) else where
    at = sum(not _is_integer(e) for e in entries[:start])
    extents = get(x, basic).shape[at : at + mask.ndim]
    if mask.shape != extents:
        expected = f"one of the extents it selects from, {extents}"
        raise InvalidIndex(found=f"a mask of shape {mask.shape}", shape=x.shape, expected=expected)
    chosen = [k for k, e in enumerate(entries) if _is_integer(e) or start <= k < start + mask.ndim]
    return Masked(basic, mask, at, chosen[-1] - chosen[0] < len(chosen))


def _is_integer(x: Any) -> bool:
    return _integer(x) is not None or (isinstance(x, Methods) and not x.shape and x.dtype.kind in "iu")


def _integer(x: Any) -> int | None:
    """Return an index that NumPy takes for one integer: a number or an integer array of no axes."""
    if isinstance(x, bool | np.bool_ | Sym):
        return None
    if isinstance(x, np.ndarray) and (x.ndim or x.dtype.kind not in "iu"):
        return None
    try:
        return operator.index(x)
    except TypeError:
        return None


def check_range(index: int, axis: int, extent: int) -> int:
    """Return an index as a non-negative number.

    Raises:
        IndexOutOfRange: when there is no such element.
    """
    if not -extent <= index < extent:
        raise IndexOutOfRange(found=index, axis=axis, extent=extent)
    return index + extent if index < 0 else index


@dataclasses.dataclass(slots=True)
class _Plan:
    """What an index does to an array.

    Attributes:
        slices: for each axis of the array (start, stop, step), the step not 0.
        dropped: axes an integer selected from, of extent 1 after slicing; only where no array is in the index.
        arrays: integer arrays by the axis they select from, of one shape.
        result: the axes of the result in order: an axis of the sliced array, None for a new one, -1 for all axes of the
            index arrays together.
    """

    slices: list[tuple[int, int, int]]
    arrays: dict[int, Sym] = dataclasses.field(default_factory=dict)
    result: list[int | None] = dataclasses.field(default_factory=list)

    @property
    def sliced(self) -> tuple[int, ...]:
        return tuple(len(range(*s)) for s in self.slices)


def _width(part: Any) -> int:
    """Return how many axes a part of an index is about."""
    if part is None or part is Ellipsis:
        return 0
    mask = isinstance(part, list | np.ndarray) and np.asarray(part).dtype == np.bool_
    return np.ndim(part) if mask else 1


def _expand(x: Sym, key: Any) -> list[Any]:
    """Return an entry for each axis or new axis, in order, with concrete masks as integer arrays."""
    parts: list[Any] = []
    given = key if isinstance(key, tuple) else (key,)
    for i, part in enumerate(given):
        if isinstance(part, list):
            part = np.asarray(part) if part else np.zeros(0, np.int64)
        if isinstance(part, bool | np.bool_) or (isinstance(part, np.ndarray) and not part.ndim and part.dtype == bool):
            raise InvalidIndex(found=bool(part), shape=x.shape, expected="write None for a new axis, or a mask array")
        if isinstance(part, np.ndarray) and part.dtype == np.bool_:
            first = sum(map(_width, given[:i]))
            if any(p is Ellipsis for p in given[:i]):
                first = x.ndim - sum(map(_width, given[i:]))
            if part.shape != x.shape[first : first + part.ndim]:
                raise InvalidIndex(
                    found=f"a mask of shape {part.shape}",
                    shape=x.shape,
                    expected="a mask of the extents it selects from",
                )
            parts.extend(part.nonzero())
        else:
            parts.append(part)
    used = sum(1 for p in parts if p is not None and p is not Ellipsis)
    dots = sum(1 for p in parts if p is Ellipsis)
    if used > x.ndim or dots > 1:
        expected = f"at most one Ellipsis and {x.ndim} indices"
        raise InvalidIndex(found=f"an index of {used} axes", shape=x.shape, expected=expected)
    fill = [slice(None)] * (x.ndim - used)
    if not dots:
        return [*parts, *fill]
    at = next(i for i, p in enumerate(parts) if p is Ellipsis)
    return [*parts[:at], *fill, *parts[at + 1 :]]


def _bounds(part: slice, extent: int, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if any(isinstance(v, Sym) for v in (part.start, part.stop, part.step)):
        expected = "slices have Python integers as bounds; select with x[start + np.arange(n)], or mask with np.where"
        raise InvalidIndex(found="a slice with traced bounds", shape=shape, expected=expected)
    start, stop, step = part.indices(extent)
    return start, stop, step


def signed(index: Sym, shape: tuple[int, ...]) -> Sym:
    """Return an index array as int64; what of uint64 does not fit stays out of range.

    Raises:
        InvalidIndex: when it is not of integers.
    """
    if index.dtype.kind not in "iu":
        expected = "index arrays are of integers or bools"
        raise InvalidIndex(found=str(index.type), shape=shape, expected=expected)
    if index.dtype == np.uint64:
        index = binary("minimum", index, np.uint64(2**63 - 1))
    return index.astype(np.int64)


def _array(part: Any, axis: int, extent: int, shape: tuple[int, ...]) -> Sym:
    """Make an index array; what is concrete is checked and made non-negative."""
    if isinstance(part, Sym):
        if part.dtype.kind == "b":
            raise TracedMask
        return signed(part, shape)
    index = np.asarray(part)
    if index.dtype.kind not in "iu":
        raise InvalidIndex(
            found=repr(part), shape=shape, expected="use integers, slices, None, Ellipsis, masks or integer arrays"
        )
    bad = (index < -extent) | (index >= extent)
    if bad.any():
        check_range(int(index[bad].flat[0]), axis, extent)
    return as_sym(np.where(index < 0, index + extent, index).astype(np.int64))


def _plan(x: Sym, key: Any) -> _Plan:
    entries = _expand(x, key)
    selects = [e is not None and not isinstance(e, slice) for e in entries]
    advanced = any(s and _integer(e) is None for s, e in zip(selects, entries, strict=True))
    plan = _Plan([])
    found: list[int] = []
    for position, (entry, select) in enumerate(zip(entries, selects, strict=True)):
        axis = len(plan.slices)
        if entry is None:
            plan.result.append(None)
        elif not select:
            plan.slices.append(_bounds(entry, x.shape[axis], x.shape))
            plan.result.append(axis)
        elif not advanced:
            at = check_range(_integer(entry) or 0, axis, x.shape[axis])
            plan.slices.append((at, at + 1, 1))
        else:
            plan.arrays[axis] = _array(entry, axis, x.shape[axis], x.shape)
            plan.slices.append((0, x.shape[axis], 1))
            if not found:
                plan.result.append(-1)
            found.append(position)
    if found and found[-1] - found[0] >= len(found):
        # arrays apart from each other: their axes come first
        plan.result = [-1, *(r for r in plan.result if r != -1)]
    if plan.arrays:
        try:
            shape = broadcast_shapes(*(a.shape for a in plan.arrays.values()))
        except ValueError:
            shapes = " and ".join(str(a.shape) for a in plan.arrays.values())
            raise ShapeMismatch(op="index", found=shapes, expected="index arrays that broadcast to one shape") from None
        plan.arrays = {axis: a.broadcast(shape) for axis, a in plan.arrays.items()}
    return plan


def _slice(x: Sym, slices: Sequence[tuple[int, int, int]]) -> Sym:
    """Apply slices of any step; the result has all axes."""
    if all(s == (0, n, 1) for s, n in zip(slices, x.shape, strict=True)):
        return x
    forward = [_forward(s) for s in slices]
    starts, stops, steps = (tuple(f[i] for f in forward) for i in range(3))
    return _flip(apply("slice", x, starts=starts, stops=stops, steps=steps), slices)


def _forward(s: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return a slice that selects the same elements from the first to the last."""
    r = range(*s)
    if not r:
        return 0, 0, 1
    low, high = min(r[0], r[-1]), max(r[0], r[-1])
    return low, high + 1, abs(s[2])


def _flip(x: Sym, slices: Sequence[tuple[int, int, int]]) -> Sym:
    axes = tuple(a for a, s in enumerate(slices) if s[2] < 0 and x.shape[a] > 1)
    return apply("flip", x, axes=axes) if axes else x


def _order(plan: _Plan, count: int) -> list[int]:
    """Return the axes of what gather made, or of the slice, in the order of the result; new axes are left out."""
    rest = [a for a in range(len(plan.slices)) if a not in plan.arrays]
    where = {a: count + i for i, a in enumerate(rest)}
    order: list[int] = []
    for r in plan.result:
        if r == -1:
            order.extend(range(count))
        elif r is not None:
            order.append(where[r])
    return order


def _result_shape(plan: _Plan) -> tuple[int, ...]:
    sliced = plan.sliced
    indices = next(iter(plan.arrays.values())).shape if plan.arrays else ()
    shape: list[int] = []
    for r in plan.result:
        shape.extend(indices if r == -1 else (1,) if r is None else (sliced[r],))
    return tuple(shape)


def get(x: Sym, key: Any) -> Sym:
    """Return ``x[key]``.

    Args:
        key: as for NumPy, with symbols for traced integer arrays.

    Raises:
        IndexOutOfRange: when an index that is known while tracing is out of range.
        TracedMask: when the shape of the result would depend on values.
        InvalidIndex: when the index is not one.
    """
    if mask_of(x, key) is not None:
        raise TracedMask
    plan = _plan(x, key)
    part = _slice(x, plan.slices)
    if plan.arrays:
        part = apply("gather", part, *plan.arrays.values(), axes=tuple(plan.arrays))
        part = part.transpose(_order(plan, next(iter(plan.arrays.values())).ndim))
    return part.reshape(_result_shape(plan))


def fitted(value: Sym, shape: tuple[int, ...]) -> Sym:
    """Broadcast a value that is assigned to elements of ``shape``: leading axes of extent 1 may be in excess.

    Raises:
        ShapeMismatch: when it does not fit.
    """
    surplus = max(value.ndim - len(shape), 0)
    if any(n != 1 for n in value.shape[:surplus]) or any(
        n not in (1, m) for n, m in zip(reversed(value.shape), reversed(shape), strict=False)
    ):
        raise ShapeMismatch(op="assignment", found=value.shape, expected=f"a value that broadcasts to {shape}")
    return value.reshape(value.shape[surplus:]).broadcast(shape)


WRITE = "a write to an array"
"""What an error calls it."""


def put(x: Sym, key: Any, value: Operand, mode: str) -> Sym:
    """Return ``x`` with ``value`` combined in at ``key``, cast to the dtype of ``x``.

    Args:
        mode: of ``scatter``: ``set``, ``add``, ``mul``, ``max`` or ``min``.

    Raises:
        NumberOutOfRange: for a Python number that the dtype of ``x`` cannot hold, unless sums and products wrap it.
    """
    wraps = mode in {"add", "mul"}
    value = as_sym(value).astype(x.dtype) if wraps else written(value, x.dtype, WRITE)
    if x.dtype.kind == "b":
        mode = {"add": "max", "mul": "min"}.get(mode, mode)
    masked = mask_of(x, key)
    if masked is not None:
        return put(x, masked.key, _put_mask(get(x, masked.key), masked, value, mode), "set")
    plan = _plan(x, key)
    value = fitted(value, _result_shape(plan))
    value = value.reshape(tuple(n for n, r in zip(*_labelled(plan, value.shape), strict=True) if r is not None))
    part = _slice(x, plan.slices)
    if plan.arrays:
        count = next(iter(plan.arrays.values())).ndim
        value = value.transpose(np.argsort(_order(plan, count)).tolist())
        made = apply("scatter", part, value, *plan.arrays.values(), axes=tuple(plan.arrays), mode=mode)
    else:
        value = value.reshape(part.shape)
        made = value if mode == "set" else _combine(mode, part, value)
    if part.shape == x.shape and all(s[2] > 0 for s in plan.slices):
        return made
    if made.size == 0:
        return x
    forward = [_forward(s) for s in plan.slices]
    return apply(
        "place", x, _flip(made, plan.slices), starts=tuple(f[0] for f in forward), steps=tuple(f[2] for f in forward)
    )


def _labelled(plan: _Plan, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[int | None]]:
    """Return a shape of the result and for each of its axes the entry of ``plan.result`` it is from."""
    count = next(iter(plan.arrays.values())).ndim if plan.arrays else 0
    labels: list[int | None] = []
    for r in plan.result:
        labels.extend([-1] * count if r == -1 else [r])
    return shape, labels


_COMBINE = {"add": "add", "mul": "multiply", "max": "maximum", "min": "minimum"}


def _combine(mode: str, x: Sym, value: Sym) -> Sym:
    return apply(_COMBINE[mode], x, value)


def _put_mask(x: Sym, masked: Masked, value: Sym, mode: str) -> Sym:
    ndim, lead = masked.mask.ndim, x.shape[: masked.at]
    rest = x.shape[masked.at + ndim :]
    shape = (*lead, 1, *rest) if masked.joined else (1,)
    try:
        value = fitted(value, shape)
    except ShapeMismatch:
        expected = f"one element for all places the mask selects, that is a shape that broadcasts to {shape}"
        raise ShapeMismatch(op="x[mask] = v", found=value.shape, expected=expected) from None
    value = value.reshape((*lead, *(1,) * ndim, *rest) if masked.joined else (1,) * x.ndim).broadcast(x.shape)
    return apply("where", masked.spread(x), value if mode == "set" else _combine(mode, x, value), x)
