"""What the records of several files share: checks of types and parameters, and derivatives of linear operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES
from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch
from kernelforge.ir.batch import leading
from kernelforge.ir.build import Sym, apply, apply_many, full
from kernelforge.ir.graph import Batch, Jvp, Params
from kernelforge.ir.types import Type

Array = np.ndarray[Any, Any]
Arrays = Sequence[Array]
Syms = tuple[Sym, ...]
MaybeSyms = tuple[Sym | None, ...]

ALL = frozenset(DTYPES)
NUMBERS = ALL - {"bool"}


def operands(op: str, types: Sequence[Type], count: int) -> None:
    """Check the number of inputs.

    Raises:
        ShapeMismatch: for another number.
    """
    if len(types) != count:
        raise ShapeMismatch(op=op, found=shapes(types), expected=f"{count} inputs, not {len(types)}")


def shapes(types: Sequence[Type]) -> str:
    return " and ".join(str(t.shape) for t in types) or "none"


def one_dtype(op: str, types: Sequence[Type], allowed: frozenset[str] = ALL) -> None:
    """Check that all inputs have one dtype of ``allowed``.

    Raises:
        DtypeMismatch: where they have not.
    """
    if any(t.dtype != types[0].dtype for t in types) or types[0].name not in allowed:
        expected = f"one dtype of {', '.join(d for d in DTYPES if d in allowed)}; cast first"
        raise DtypeMismatch(op=op, found=" and ".join(t.name for t in types), expected=expected)


def ints(op: str, params: Params, name: str, count: int | None = None, least: int = 0) -> tuple[int, ...]:
    """Return a parameter that is a tuple of ``count`` ints of at least ``least``.

    Raises:
        InvalidParameter: when it is anything else.
    """
    value = params[name]
    good = isinstance(value, tuple) and all(type(n) is int and n >= least for n in value)
    if not good or (count is not None and len(value) != count):
        many = "" if count is None else f"{count} "
        raise InvalidParameter(op=op, name=name, found=value, expected=f"a tuple of {many}ints of at least {least}")
    return value  # type: ignore[no-any-return]


def axes(op: str, params: Params, ndim: int, name: str = "axes", ordered: bool = True) -> tuple[int, ...]:
    """Return a parameter that names distinct axes of an array of ``ndim`` axes, in rising order if ``ordered``.

    Raises:
        InvalidParameter: when it is anything else.
    """
    value = ints(op, params, name)
    if any(a >= ndim for a in value) or len(set(value)) != len(value) or (ordered and list(value) != sorted(value)):
        rising = " rising" if ordered else ""
        raise InvalidParameter(op=op, name=name, found=value, expected=f"distinct{rising} axes below {ndim}")
    return value


def axis(op: str, params: Params, ndim: int) -> int:
    """Return the parameter ``axis`` of an array of ``ndim`` axes.

    Raises:
        InvalidParameter: when it is not an int in [0, ndim).
    """
    value = params["axis"]
    if type(value) is not int or not 0 <= value < ndim:
        raise InvalidParameter(op=op, name="axis", found=value, expected=f"an axis of {ndim}")
    return value


def linear(name: str) -> Jvp:
    """Make the jvp of a primitive of one input that is linear: itself."""

    def jvp(tangents: MaybeSyms, inputs: Syms, outputs: Syms, params: Params) -> MaybeSyms:
        return (None if tangents[0] is None else apply(name, tangents[0], **params),)

    return jvp


def mapped(name: str) -> Batch:
    """Make the batch rule of a primitive that does for each element what it does for another."""

    def batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Sequence[Sym]:
        return apply_many(name, *(leading(size, x, h) for x, h in zip(inputs, has, strict=True)), **params)

    return batch


def along(name: str) -> Batch:
    """Make the batch rule of a primitive that has its axes in the parameter ``axis`` or ``axes``."""

    def batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Sequence[Sym]:
        moved = {k: v + 1 if k == "axis" else behind(v) if k == "axes" else v for k, v in params.items()}
        return apply_many(name, *(leading(size, x, h) for x, h in zip(inputs, has, strict=True)), **moved)

    return batch


def behind(listed: Sequence[int]) -> tuple[int, ...]:
    """Renumber axes for an array that has one more before them."""
    return tuple(a + 1 for a in listed)


def or_zeros(tangent: Sym | None, like: Sym) -> Sym:
    return full(0.0, like) if tangent is None else tangent


def where(condition: Sym, x: Sym | float, y: Sym | float) -> Sym:
    """Choose elements; a number takes the type of the other arm."""
    like = x if isinstance(x, Sym) else y
    assert isinstance(like, Sym)
    x, y = (v if isinstance(v, Sym) else full(v, like) for v in (x, y))
    return apply("where", condition, x, y)


def cut(x: Sym, on: int, start: int, stop: int) -> Sym:
    """Slice one axis."""
    starts = tuple(start if a == on else 0 for a in range(x.ndim))
    stops = tuple(stop if a == on else n for a, n in enumerate(x.shape))
    return (
        x
        if stops == x.shape and not any(starts)
        else apply("slice", x, starts=starts, stops=stops, steps=(1,) * x.ndim)
    )


def padded(x: Sym, value: float, low: Sequence[int], high: Sequence[int], interior: Sequence[int] | None = None) -> Sym:
    """Pad with a number; nothing where all amounts are 0."""
    between = tuple(interior or (0,) * x.ndim)
    if not any((*low, *high, *between)):
        return x
    fill = apply("full", value=value, shape=(), dtype=x.type.name)
    return apply("pad", x, fill, low=tuple(low), high=tuple(high), interior=between)


def shifted(x: Sym, on: int, by: int, value: float) -> Sym:
    """Move the elements by ``by`` (1 or -1) along an axis, with ``value`` coming in."""
    n = x.shape[on]
    if n == 0:
        return x
    kept = cut(x, on, 0, n - 1) if by > 0 else cut(x, on, 1, n)
    end = tuple(int(a == on) for a in range(x.ndim))
    none = (0,) * x.ndim
    return padded(kept, value, end, none) if by > 0 else padded(kept, value, none, end)
