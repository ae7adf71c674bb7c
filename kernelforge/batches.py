"""``vmap``: a function of one example, applied to all examples of a batch at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import optree

from kernelforge.errors import InvalidParameter, ShapeMismatch, TreeMismatch
from kernelforge.functions import Flat, flat
from kernelforge.ir.batch import batch, leading, marks
from kernelforge.ir.build import Sym
from kernelforge.ir.ops.control import close
from kernelforge.ir.types import Type
from kernelforge.methods import FUNCTIONS, is_array
from kernelforge.told import telling
from kernelforge.trace import to_sym
from kernelforge.transforms import Transformed

Fn = Callable[..., Any]
Axes = Sequence[int | None]


class _Call(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _axes(name: str, prefix: Any, like: Any) -> list[int | None]:
    """Return the axis that a prefix of a pytree names for each of its leaves."""
    try:
        found = optree.broadcast_prefix(prefix, like, none_is_leaf=True)
    except ValueError:
        expected = f"an int, None, or these in the places of {optree.tree_structure(like)}"
        raise TreeMismatch(what="vmap", name=name, found=prefix, expected=expected) from None
    leaves: list[Any] = optree.tree_leaves(like, none_is_leaf=True)
    kept = [a for a, leaf in zip(found, leaves, strict=True) if leaf is not None]
    for a in kept:
        if a is not None and (isinstance(a, bool) or not isinstance(a, int)):
            raise InvalidParameter(op="vmap", name=name, found=prefix, expected="ints and None")
    return cast(list[int | None], kept)


def _arguments(tree: Any, axes: Axes) -> Flat:
    """Turn the arrays and numbers of a pytree into symbols, but for Python integers and bools that have no axis."""
    leaves, structure = optree.tree_flatten(tree)
    kept = [not is_array(x) or (a is None and type(x) in (bool, int)) for x, a in zip(leaves, axes, strict=True)]
    syms = [to_sym(x) for x, other in zip(leaves, kept, strict=True) if not other]
    return Flat(syms, [x if other else None for x, other in zip(leaves, kept, strict=True)], structure)


def _symbols(axes: Axes, of: Flat) -> list[int | None]:
    """Leave out the axes of leaves that are no arrays."""
    return [a for a, other in zip(axes, of.rest, strict=True) if other is None]


def _axis(where: str, a: int, x: Sym) -> int:
    if not -x.ndim <= a < x.ndim:
        raise InvalidParameter(op="vmap", name=where, found=a, expected=f"an axis of {x.type}, or None")
    return a % x.ndim


def _examples(given: Flat, axes: Axes, names: Sequence[str]) -> tuple[list[Sym], int]:
    """Bring the axis of the examples to the front of each argument that has one; return how many there are, too."""
    size: int | None = None
    moved: list[Sym] = []
    for sym, a, name in zip(given.syms, axes, names, strict=True):
        if a is None:
            moved.append(sym)
            continue
        a = _axis(f"in_axes of {name}", a, sym)
        size = sym.shape[a] if size is None else size
        if sym.shape[a] != size:
            expected = f"{size} examples along axis {a}, as in the arguments before"
            raise InvalidParameter(op="vmap", name=name, found=str(sym.type), expected=expected)
        moved.append(FUNCTIONS["moveaxis"](sym, a, 0))
    if size is None:
        raise InvalidParameter(op="vmap", name="in_axes", found=None, expected="an axis of at least one array")
    return moved, size


def _placed(outs: Sequence[Sym], has: Sequence[bool], axes: Axes, names: Sequence[str], size: int) -> list[Sym]:
    """Put the axis of the examples where the results shall have it."""
    placed: list[Sym] = []
    for y, h, a, name in zip(outs, has, axes, names, strict=True):
        if a is None:
            if h:
                expected = f"an axis of {name}, which differs between examples"
                raise InvalidParameter(op="vmap", name="out_axes", found=None, expected=expected)
            placed.append(y)
        else:
            y = leading(size, y, h)
            placed.append(FUNCTIONS["moveaxis"](y, 0, _axis(f"out_axes of {name}", a, y)))
    return placed


def vmap(fn: Fn, in_axes: Any = 0, out_axes: Any = 0) -> Fn:
    """Make a function that applies ``fn`` to all examples of a batch at once, with the signature of ``jax.vmap``.

    Where examples differ in the predicate of a ``cond``, both branches are computed for all; a ``while_loop`` goes on
    until all examples are done.

    Args:
        fn: of one example: anything that can be compiled, control flow and derivatives included.
        in_axes: which axis of the positional arguments counts the examples, None for what all examples share: an int,
            or a tuple with an int, None or a pytree of these for each argument. Arguments by name have axis 0. Python
            integers and bools without an axis are what they are.
        out_axes: where the results have that axis, likewise; None for a result that is the same for all examples.

    Raises:
        InvalidParameter: when an argument has no such axis, extents differ, or None stands for a result that differs
            between examples.
        TreeMismatch: when ``in_axes`` or ``out_axes`` does not fit the arguments or results.
    """

    def traced(*args: Any, **kwargs: Any) -> Any:
        prefix = tuple(in_axes) if isinstance(in_axes, list) else in_axes
        numbered = [*_axes("in_axes", prefix, args), *_axes("in_axes", 0, kwargs)]
        given = _arguments(_Call(args, kwargs), numbered)
        axes = _symbols(numbered, given)
        moved, size = _examples(given, axes, [name.removeprefix(".") for name in given.names("")])
        made: list[Flat] = []

        def one(*values: Sym) -> list[Sym]:
            positional, named = given.arguments(values)
            made.append(flat(fn(*positional, **named)))
            return made[0].syms

        types = [s.type if a is None else Type(s.shape[1:], s.dtype) for s, a in zip(moved, axes, strict=True)]
        graph, captured = close(one, types)
        has = [*[False] * len(captured), *(a is not None for a in axes)]
        outs = batch(graph, [*captured, *moved], has, size)
        (out,) = made
        wanted = _symbols(_axes("out_axes", out_axes, out.unflatten(outs)), out)
        return out.results(_placed(outs, marks(graph, has), wanted, out.names("result"), size))

    return Transformed(fn, traced, vmap, in_axes, out_axes)


def apply_along_axis(func1d: Fn, axis: int, arr: Any, *args: Any, **kwargs: Any) -> Any:
    """``numpy.apply_along_axis``, of all vectors at once by ``vmap``."""
    x = FUNCTIONS["moveaxis"](arr, axis, -1)
    lead, on = x.shape[:-1], axis % x.ndim
    if not math.prod(lead):
        expected = "at least one vector along the axis"
        raise ShapeMismatch(op="np.apply_along_axis", found=np.shape(arr), expected=expected)
    rows = x.reshape((math.prod(lead), x.shape[-1]))
    made = vmap(lambda row: FUNCTIONS["asarray"](func1d(row, *args, **kwargs)))(rows)
    made = made.reshape((*lead, *made.shape[1:]))
    own = range(len(lead), made.ndim)
    return FUNCTIONS["moveaxis"](made, tuple(own), tuple(on + i for i in range(len(own))))


FUNCTIONS["apply_along_axis"] = telling(apply_along_axis)
