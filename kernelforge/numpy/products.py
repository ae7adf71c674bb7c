"""Products of matrices and tensors; all of them are ``contract`` over named axes."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge.dtypes import as_dtype, promote
from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Operand, Sym, apply, as_sym
from kernelforge.ir.types import broadcast_shapes
from kernelforge.methods import FUNCTIONS, OPERATORS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.shapes import part
from kernelforge.numpy.ufuncs import ufunc
from kernelforge.trace import Tracer, to_sym


def together(xs: Sequence[Operand], dtype: Any = None) -> list[Sym]:
    """Promote operands to one dtype."""
    syms = [as_sym(x) for x in xs]
    kind = promote([s.dtype for s in syms], []) if dtype is None else as_dtype(dtype)
    return [s.astype(kind) for s in syms]


def contract(x: Sym, x_axes: str, y: Sym, y_axes: str, out: str) -> Sym:
    """Multiply and add up over the names that ``out`` lacks; bools are or-ed, as in NumPy."""
    if x.dtype == np.bool_:
        return contract(x.astype(np.uint32), x_axes, y.astype(np.uint32), y_axes, out).astype(np.bool_)
    number = {name: i for i, name in enumerate(dict.fromkeys(x_axes + y_axes))}
    listed = [tuple(number[n] for n in names) for names in (x_axes, y_axes, out)]
    return apply("contract", x, y, x_axes=listed[0], y_axes=listed[1], out_axes=listed[2])


def total(x: Sym, axes: Sequence[int]) -> Sym:
    """Add up over axes; bools are or-ed, as in products."""
    if x.dtype == np.bool_:
        return total(x.astype(np.uint32), axes).astype(np.bool_)
    return apply("sum", x, axes=tuple(axes)) if axes else x


def _mismatch(op: str, x: Sym, y: Sym, expected: str) -> ShapeMismatch:
    return ShapeMismatch(op=f"np.{op}", found=f"{x.shape} and {y.shape}", expected=expected)


def matrices(x: Sym, y: Sym, op: str = "matmul") -> Sym:
    """``x @ y``: the last axis of ``x`` with the last but one of ``y``; what is before these broadcasts."""
    if not x.ndim or not y.ndim:
        raise _mismatch(op, x, y, "at least one axis in both; use * for numbers")
    rows = "m" if x.ndim > 1 else ""
    columns = "n" if y.ndim > 1 else ""
    inner = y.shape[-2] if columns else y.shape[-1]
    if x.shape[-1] != inner:
        raise _mismatch(op, x, y, f"{x.shape[-1]} rows in the second, as the first has columns")
    x_lead, y_lead = x.shape[:-2] if rows else (), y.shape[:-2] if columns else ()
    try:
        lead = broadcast_shapes(x_lead, y_lead)
    except ValueError:
        raise _mismatch(op, x, y, "leading axes that broadcast") from None
    names = string.ascii_uppercase[: len(lead)]
    x, x_names = _batched(x, x_lead, lead, names)
    y, y_names = _batched(y, y_lead, lead, names)
    return contract(x, x_names + rows + "k", y, y_names + "k" + columns, names + rows + columns)


def _batched(x: Sym, own: tuple[int, ...], lead: tuple[int, ...], names: str) -> tuple[Sym, str]:
    """Name the batch axes of an operand: those of extent 1 that the other one has longer are dropped."""
    names = names[len(lead) - len(own) :]
    kept = [i for i, n in enumerate(own) if n == lead[len(lead) - len(own) + i]]
    shape = (*(own[i] for i in kept), *x.shape[len(own) :])
    return x.reshape(shape), "".join(names[i] for i in kept)


def _matmul(x1: Operand, x2: Operand, /, *, dtype: Any = None) -> Sym:
    x, y = together((x1, x2), dtype)
    return matrices(x, y)


for _table in (FUNCTIONS, OPERATORS):
    array_function("x1", "x2", name="matmul", table=_table)(_matmul)


@array_function("x1", "x2")
def vecdot(x1: Sym, x2: Sym, /, axis: int = -1) -> Sym:
    x, y = together((x1, x2))
    made = ufunc("multiply", x, y)
    return total(made, (normalize_axis_index(axis, made.ndim),))


@array_function("x1", "x2")
def matvec(x1: Sym, x2: Sym, /) -> Sym:
    x, y = together((x1, x2))
    made = matrices(x, y.reshape((*y.shape, 1)), "matvec")
    return made.reshape(made.shape[:-1])


@array_function("x1", "x2")
def vecmat(x1: Sym, x2: Sym, /) -> Sym:
    x, y = together((x1, x2))
    made = matrices(x.reshape((*x.shape[:-1], 1, x.shape[-1])), y, "vecmat")
    return made.reshape((*made.shape[:-2], made.shape[-1]))


@array_function("a", "b")
def dot(a: Sym, b: Sym) -> Sym:
    x, y = together((a, b))
    if not x.ndim or not y.ndim:
        return ufunc("multiply", x, y)
    return _paired(x, y, [x.ndim - 1], [max(y.ndim - 2, 0)], "dot")


@array_function("a", "b")
def inner(a: Sym, b: Sym) -> Sym:
    x, y = together((a, b))
    if not x.ndim or not y.ndim:
        return ufunc("multiply", x, y)
    return _paired(x, y, [x.ndim - 1], [y.ndim - 1], "inner")


@array_function("a", "b")
def vdot(a: Sym, b: Sym) -> Sym:
    x, y = together((a, b))
    if x.size != y.size:
        raise _mismatch("vdot", x, y, "as many elements in both")
    return _paired(x.reshape((x.size,)), y.reshape((y.size,)), [0], [0], "vdot")


@array_function("a", "b")
def outer(a: Sym, b: Sym) -> Sym:
    x, y = (as_sym(v) for v in (a, b))
    return ufunc("multiply", x.reshape((x.size, 1)), y.reshape((1, y.size)))


def _paired(x: Sym, y: Sym, x_axes: Sequence[int], y_axes: Sequence[int], op: str) -> Sym:
    """Contract axes in pairs; the others of ``x`` come first in the result."""
    if len(x_axes) != len(y_axes) or any(x.shape[i] != y.shape[j] for i, j in zip(x_axes, y_axes, strict=True)):
        raise _mismatch(op, x, y, f"axes {tuple(x_axes)} of the first as long as axes {tuple(y_axes)} of the second")
    x_names = string.ascii_lowercase[: x.ndim]
    y_names = list(string.ascii_uppercase[: y.ndim])
    for i, j in zip(x_axes, y_axes, strict=True):
        y_names[j] = x_names[i]
    out = [n for i, n in enumerate(x_names) if i not in x_axes] + [n for j, n in enumerate(y_names) if j not in y_axes]
    return contract(x, x_names, y, "".join(y_names), "".join(out))


@array_function("a", "b")
def tensordot(a: Sym, b: Sym, axes: int | Sequence[Any] = 2) -> Sym:
    x, y = together((a, b))
    if isinstance(axes, int | np.integer):
        count = int(axes)
        x_axes, y_axes = list(range(x.ndim - count, x.ndim)), list(range(count))
    else:
        x_axes, y_axes = ([int(i) for i in np.atleast_1d(v)] for v in axes)
    x_axes = [normalize_axis_index(i, x.ndim) for i in x_axes]
    y_axes = [normalize_axis_index(i, y.ndim) for i in y_axes]
    if len(x_axes) != len(y_axes):
        raise _mismatch("tensordot", x, y, "as many axes of each")
    return _paired(x, y, x_axes, y_axes, "tensordot")


@array_function("a", "b")
def kron(a: Sym, b: Sym) -> Sym:
    x, y = together((a, b))
    ndim = max(x.ndim, y.ndim)
    xs, ys = ((*(1,) * (ndim - v.ndim), *v.shape) for v in (x, y))
    wide_x = x.reshape(tuple(n for m in xs for n in (m, 1)))
    wide_y = y.reshape(tuple(n for m in ys for n in (1, m)))
    return ufunc("multiply", wide_x, wide_y).reshape(tuple(m * n for m, n in zip(xs, ys, strict=True)))


@array_function("a", "b")
def cross(a: Sym, b: Sym, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: int | None = None) -> Sym:
    if axis is not None:
        axisa = axisb = axisc = axis
    x, y = (FUNCTIONS["moveaxis"](v, n, -1) for v, n in zip(together((a, b)), (axisa, axisb), strict=True))
    if x.shape[-1] != 3 or y.shape[-1] != 3:
        raise _mismatch("cross", x, y, "vectors of 3 elements")
    u, v = ([part(w, w.ndim - 1, i, i + 1) for i in range(3)] for w in (x, y))
    made = [
        ufunc("subtract", ufunc("multiply", u[i], v[j]), ufunc("multiply", u[j], v[i]))
        for i, j in ((1, 2), (2, 0), (0, 1))
    ]
    joined = FUNCTIONS["concatenate"](made, -1)
    return FUNCTIONS["moveaxis"](joined, -1, axisc)  # type: ignore[no-any-return]


@array_function("x", name="linalg.norm")
def norm(x: Sym, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Sym:
    """``numpy.linalg.norm``."""
    value = x if x.dtype.kind == "f" else x.astype(np.float64)
    size = ufunc("absolute", value)
    total: Any = FUNCTIONS["sum"]
    if ord is None and axis is None:
        made = ufunc("sqrt", total(size * size))
        return made.reshape((1,) * x.ndim) if keepdims else made
    axes = list(range(x.ndim)) if axis is None else [int(i) for i in np.atleast_1d(axis)]
    if len(axes) == 1:
        return _vector_norm(size, ord, axes[0], keepdims)
    if len(axes) != 2:
        raise InvalidParameter(op="np.linalg.norm", name="axis", found=axis, expected="one axis, or two for a matrix")
    rows, columns = (normalize_axis_index(i, x.ndim) for i in axes)
    if ord in (None, "fro"):
        return ufunc("sqrt", total(size * size, (rows, columns), keepdims=keepdims))
    if ord in (1, -1, np.inf, -np.inf):
        added, other = (rows, columns) if abs(ord) == 1 else (columns, rows)
        extremum = FUNCTIONS["max" if ord > 0 else "min"]
        made = extremum(total(size, added, keepdims=True), other, keepdims=True)
        return made if keepdims else FUNCTIONS["squeeze"](made, (rows, columns))  # type: ignore[no-any-return]
    if ord in (2, -2, "nuc"):
        last = Tracer(FUNCTIONS["moveaxis"](value, (rows, columns), (-2, -1)))
        s = to_sym(FUNCTIONS["linalg.svdvals"](last))
        made = total(s, -1) if ord == "nuc" else FUNCTIONS["max" if ord > 0 else "min"](s, -1)
        return FUNCTIONS["expand_dims"](made, (rows, columns)) if keepdims else made  # type: ignore[no-any-return]
    expected = "None, 'fro', 'nuc', 1, -1, 2, -2, inf or -inf"
    raise InvalidParameter(op="np.linalg.norm", name="ord", found=ord, expected=expected)


def _vector_norm(size: Sym, ord: Any, axis: int, keepdims: bool) -> Sym:
    total: Any = FUNCTIONS["sum"]
    match ord:
        case None | 2:
            return ufunc("sqrt", total(size * size, axis, keepdims=keepdims))
        case 1:
            return total(size, axis, keepdims=keepdims)  # type: ignore[no-any-return]
        case 0:
            return total(ufunc("not_equal", size, 0), axis, size.dtype, keepdims=keepdims)  # type: ignore[no-any-return]
        case _ if ord in (np.inf, -np.inf):
            return FUNCTIONS["max" if ord > 0 else "min"](size, axis, keepdims=keepdims)  # type: ignore[no-any-return]
        case _ if isinstance(ord, int | float):
            return ufunc("power", total(ufunc("power", size, ord), axis, keepdims=keepdims), 1.0 / ord)
    raise InvalidParameter(op="np.linalg.norm", name="ord", found=ord, expected="a number or None for vectors")


for _submodule in ("matmul", "outer", "cross", "tensordot", "vecdot", "trace", "diagonal", "matrix_transpose"):
    FUNCTIONS[f"linalg.{_submodule}"] = FUNCTIONS[_submodule]
