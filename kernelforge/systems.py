"""Linear systems, inverses, determinants and Cholesky's factor, by scans over columns; derivatives are closed forms.

Where NumPy raises ``LinAlgError``, as a matrix is singular or not positive definite, elements are NaN. Of the
determinant the gradient is finite everywhere, and second derivatives are where the rank lacks one at most.
A matrix is factored without its right sides, so that a loop around many systems of one matrix does it once.
A step of a scan reads the whole matrix: time goes with the third power of the extent, at the speed of memory.
"""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge.control import scan
from kernelforge.custom import custom_vjp
from kernelforge.errors import DtypeMismatch, ShapeMismatch
from kernelforge.jit import Jit, jit
from kernelforge.methods import FUNCTIONS
from kernelforge.told import telling
from kernelforge.transforms import stop_gradient

Factors = tuple[Any, Any, Any, Any]
"""The columns, pivots, places and turns of ``_factored``."""


def matrices(op: str, a: Any, square: bool = True) -> Any:
    """Return matrices in a dtype they are computed in.

    Raises:
        ShapeMismatch, DtypeMismatch: for what are none, and for narrow floats, as NumPy does.
    """
    x = FUNCTIONS["asarray"](a)
    if x.ndim < 2 or (square and x.shape[-1] != x.shape[-2]):
        expected = "square matrices, in the last two axes" if square else "matrices, in the last two axes"
        raise ShapeMismatch(op=f"np.linalg.{op}", found=x.shape, expected=expected)
    if x.dtype.itemsize == 2 and x.dtype.kind not in "iub":
        raise DtypeMismatch(op=f"np.linalg.{op}", found=x.dtype, expected="float32 or float64")
    return x if x.dtype.kind == "f" else x.astype(np.float64)


def _factored(a: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Eliminate by Gauss and Jordan with the largest pivots, whose rows stay where they are.

    Returns for each step, along the first axis, how often the pivot's row is taken from the others, zero for itself,
    the pivot, its row, and how many rows above it come later; then the step of each row.
    """
    n = a.shape[-1]
    rows = np.arange(n)

    def step(carry: tuple[Any, Any], k: Any) -> tuple[Any, Any]:
        m, turns = carry
        left = turns == n
        column = np.take(m, k, -1)
        p = np.argmax(np.where(left, np.abs(column), -1), -1)[..., None]
        row = np.take_along_axis(m, p[..., None], -2)
        pivot = np.take(row, k, -1)
        row = row / _divisor(pivot)[..., None]
        at = rows == p
        column = np.where(at, 0, column)
        later = (left & (rows < p)).sum(-1)
        m = np.where(at[..., None], row, m - column[..., None] * row)
        return (m, np.where(at, k, turns)), (column, pivot, p, later)

    (_, turns), (columns, pivots, places, later) = scan(step, (a, np.full(a.shape[:-1], n)), rows)
    return columns, pivots[..., 0], places[..., 0], later, turns


def _divisor(pivot: Any) -> Any:
    return np.where(pivot == 0, 1, pivot)


def _forward(columns: Any, pivots: Any, places: Any, turns: Any, b: Any) -> Any:
    """Do to ``b`` what elimination did to the matrix."""
    rows = np.arange(b.shape[-2])

    def step(y: Any, given: tuple[Any, Any, Any]) -> tuple[Any, None]:
        column, pivot, p = given
        row = np.take_along_axis(y, p[..., None, None], -2) / _divisor(pivot)[..., None, None]
        return np.where((rows == p[..., None])[..., None], row, y - column[..., None] * row), None

    y, _ = scan(step, b, (columns, pivots, places))
    return np.take_along_axis(y, np.moveaxis(places, 0, -1)[..., None], -2)


def _backward(columns: Any, pivots: Any, places: Any, turns: Any, b: Any) -> Any:
    """Solve the system of the transposed matrix: the transposed steps, the last one first."""
    rows = np.arange(b.shape[-2])

    def step(y: Any, given: tuple[Any, Any, Any]) -> tuple[Any, None]:
        column, pivot, p = given
        row = np.take_along_axis(y, p[..., None, None], -2) - (column[..., None] * y).sum(-2, keepdims=True)
        return np.where((rows == p[..., None])[..., None], row / _divisor(pivot)[..., None, None], y), None

    start = np.take_along_axis(b, turns[..., None], -2)
    return scan(step, start, (columns, pivots, places), reverse=True)[0]


def identity_like(a: Any) -> Any:
    return np.broadcast_to(FUNCTIONS["eye"](a.shape[-1], dtype=a.dtype), a.shape)


@functools.partial(custom_vjp, nondiff_argnums=0)
def _applied(transposed: bool, factors: Factors, a: Any, b: Any) -> Any:
    """Solve a system of ``a``, or of its transpose, whose factors are given, for as many right sides as there are.

    The derivative by ``a`` is that of the system, so that there is none by what made the factors.
    """
    x = (_backward if transposed else _forward)(*factors, b)
    return np.where((factors[1] == 0).any(0)[..., None, None], np.nan, x).astype(b.dtype)


def _applied_fwd(transposed: bool, factors: Factors, a: Any, b: Any) -> tuple[Any, Any]:
    return _applied(transposed, factors, a, b), (factors, a, b)


def _applied_bwd(transposed: bool, kept: tuple[Any, Any, Any], ct: Any) -> tuple[Any, Any, Any]:
    # the solution is asked for again: one that is kept would have no derivative by the matrix
    x, of_b = _applied(transposed, *kept), _applied(not transposed, *kept[:2], ct)
    return None, -(x @ of_b.mT if transposed else of_b @ x.mT), of_b


_applied.defvjp(_applied_fwd, _applied_bwd)


def _factors(a: Any) -> Factors:
    columns, pivots, places, _, turns = _factored(stop_gradient(a))
    return columns, pivots, places, turns


def _spread(factors: Factors, lead: tuple[int, ...]) -> Factors:
    """Repeat factors for a batch."""
    columns, pivots, places, turns = factors
    n = columns.shape[0]
    pivots, places = (np.broadcast_to(x, (n, *lead)) for x in (pivots, places))
    return np.broadcast_to(columns, (n, *lead, n)), pivots, places, np.broadcast_to(turns, (*lead, n))


@custom_vjp
def _inverse(a: Any) -> Any:
    return _applied(False, _factors(a), a, identity_like(a))


def _inverse_fwd(a: Any) -> tuple[Any, Any]:
    x = _inverse(a)
    return x, x


def _inverse_bwd(x: Any, ct: Any) -> tuple[Any]:
    return (-(x.mT @ ct @ x.mT),)


_inverse.defvjp(_inverse_fwd, _inverse_bwd)


def _pivots(a: Any) -> tuple[Any, Any]:
    """Return the pivots, whose product is the determinant, and the sign that the order of their rows gives it."""
    _, pivots, _, later, _ = _factored(a)
    return pivots, (1 - 2 * (later.sum(0) % 2)).astype(a.dtype)


@custom_vjp
def _det(a: Any) -> Any:
    pivots, sign = _pivots(a)
    return sign * np.prod(pivots, 0)


def _adjugate(a: Any) -> Any:
    """Return the inverse times the determinant, which singular matrices have too.

    With the largest of all elements as pivots ``a`` is ``p e [[1, w], [0, d]] q`` for permutations ``p`` and ``q``:
    whatever ``d`` is, ``[[d, -w], [0, 1]]`` is the adjugate of the third. Where more pivots are zero, so is all of it.
    """
    n = a.shape[-1]
    rows = np.arange(n)
    places = np.broadcast_to(rows, a.shape[:-1])

    def step(carry: tuple[Any, Any], k: Any) -> tuple[Any, Any]:
        m, order = carry
        left = np.where((rows >= k)[:, None] & (rows >= k), np.abs(m[..., :n]), -1)
        largest = np.argmax(left.reshape((*left.shape[:-2], n * n)), -1)[..., None]
        p, c = largest // n, largest % n
        m = np.take_along_axis(m, np.where(rows == k, p, np.where(rows == p, k, rows))[..., None], -2)
        exchanged = np.where(rows == k, c, np.where(rows == c, k, rows))
        square = np.take_along_axis(m[..., :n], exchanged[..., None, :], -1)
        order = np.take_along_axis(order, exchanged, -1)
        row, column = np.concatenate([np.take(square, k, -2), np.take(m[..., n:], k, -2)], -1), np.take(square, k, -1)
        pivot = np.take(row, k, -1)
        row = row / _divisor(pivot)[..., None]
        m = np.concatenate([square, m[..., n:]], -1)
        m = m - np.where(rows == k, 0, column)[..., None] * row[..., None, :]
        m = np.where((rows == k)[:, None], row[..., None, :], m)
        return (m, order), (pivot, ((p != k) ^ (c != k))[..., 0])

    start = np.concatenate([a, identity_like(a)], -1), places
    (m, order), (pivots, odd) = scan(step, start, np.arange(n - 1))
    w, d, right = m[..., : n - 1, n - 1 : n], m[..., n - 1 :, n - 1 : n], m[..., n:]
    inner = np.concatenate([d * right[..., : n - 1, :] - w * right[..., n - 1 :, :], right[..., n - 1 :, :]], -2)
    back = (rows[:, None] == order[..., None, :]).astype(a.dtype)
    scale = np.prod(pivots, 0) * (1 - 2 * (odd.sum(0) % 2))
    # two pivots are zero: the second derivatives hang on more than these, and the root's are NaN
    scale = np.where(scale == 0, np.sqrt(np.abs(scale)), scale)
    return scale[..., None, None].astype(a.dtype) * (back @ inner)


def _det_fwd(a: Any) -> tuple[Any, Any]:
    return _det(a), a


def _det_bwd(a: Any, ct: Any) -> tuple[Any]:
    return (ct[..., None, None] * _adjugate(a).mT,)


_det.defvjp(_det_fwd, _det_bwd)


@custom_vjp
def _slogdet(a: Any) -> tuple[Any, Any]:
    pivots, sign = _pivots(a)
    return sign * np.prod(np.sign(pivots), 0), np.log(np.abs(pivots)).sum(0)


def _slogdet_fwd(a: Any) -> tuple[Any, Any]:
    return _slogdet(a), _inverse(a)


def _slogdet_bwd(inverse: Any, ct: tuple[Any, Any]) -> tuple[Any]:
    return (ct[1][..., None, None] * inverse.mT,)


_slogdet.defvjp(_slogdet_fwd, _slogdet_bwd)


@custom_vjp
def _cholesky(a: Any) -> Any:
    rows = np.arange(a.shape[-1])

    def step(factor: Any, j: Any) -> tuple[Any, Any]:
        column = np.take(a, j, -1) - (factor @ np.take(factor, j, -2)[..., None])[..., 0]
        pivot = np.take(column, j, -1)
        column = np.where(rows >= j, column / np.sqrt(pivot)[..., None], 0)
        return np.where(rows == j, column[..., None], factor), pivot

    factor, pivots = scan(step, np.zeros_like(a), rows)
    return np.where((pivots > 0).all(0)[..., None, None], factor, np.nan).astype(a.dtype)


def _cholesky_fwd(a: Any) -> tuple[Any, Any]:
    return _cholesky(a), a


def _cholesky_bwd(a: Any, ct: Any) -> tuple[Any]:
    """Murray 2016, Differentiation of the Cholesky decomposition, equation 9; symmetric."""
    factor = _cholesky(a)  # with a derivative of its own, as a factor that is kept has none
    inverse = _inverse(factor)
    inner = np.tril(factor.mT @ ct) * (1 - 0.5 * identity_like(factor))
    whole = inverse.mT @ inner @ inverse
    return (0.5 * (whole + whole.mT),)


_cholesky.defvjp(_cholesky_fwd, _cholesky_bwd)


@jit
def solve(a: Any, b: Any) -> Any:
    """``numpy.linalg.solve``; NaN where ``a`` is singular."""
    a, b = matrices("solve", a), FUNCTIONS["asarray"](b)
    vector = b.ndim == 1
    b = b[:, None] if vector else b
    kind = np.result_type(a.dtype, b.dtype if b.dtype.kind == "f" else "f8")
    if b.ndim < 2 or b.shape[-2] != a.shape[-1]:
        expected = f"{a.shape[-1]} rows in the second"
        raise ShapeMismatch(op="np.linalg.solve", found=f"{a.shape} and {b.shape}", expected=expected)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    # a matrix that several systems share is factored once
    own = a.astype(kind).reshape((*(1,) * (len(lead) + 2 - a.ndim), *a.shape))
    a, b = (np.broadcast_to(x.astype(kind), (*lead, *x.shape[-2:])) for x in (a, b))
    x = _applied(False, _spread(_factors(own), lead), a, b) if a.size and b.size else b
    return x[..., 0] if vector else x


@jit
def inv(a: Any) -> Any:
    """``numpy.linalg.inv``; NaN where ``a`` is singular."""
    a = matrices("inv", a)
    return _inverse(a) if a.size else a


@jit
def slogdet(a: Any) -> Any:
    """``numpy.linalg.slogdet``."""
    a = matrices("slogdet", a)
    sign, log = _slogdet(a) if a.size else (np.ones(a.shape[:-2], a.dtype), np.zeros(a.shape[:-2], a.dtype))
    return _named()(sign, log)


@functools.cache
def _named() -> Any:
    """Return the named tuple of ``numpy.linalg.slogdet``, which NumPy keeps to itself."""
    return type(np.linalg.slogdet([[1.0]]))


@jit
def det(a: Any) -> Any:
    """``numpy.linalg.det``."""
    a = matrices("det", a)
    return _det(a) if a.size else np.ones(a.shape[:-2], a.dtype)


@jit(static_argnames="upper")
def cholesky(a: Any, /, *, upper: bool = False) -> Any:
    """``numpy.linalg.cholesky``, of the lower triangle; NaN where ``a`` is not positive definite."""
    a = matrices("cholesky", a)
    if upper:
        a = a.mT
    made = _cholesky(a) if a.size else a
    return made.mT if upper else made


@jit(static_argnames="n")
def matrix_power(a: Any, n: int) -> Any:
    """``numpy.linalg.matrix_power``, by squaring."""
    a = FUNCTIONS["asarray"](a)
    if n == 0:
        matrices("matrix_power", a)
        return identity_like(a)
    a = inv(a) if n < 0 else a if a.dtype.kind != "f" else matrices("matrix_power", a)
    made, square = None, a
    for bit in bin(abs(n))[:1:-1]:
        if bit == "1":
            made = square if made is None else made @ square
        square = square @ square
    return made


def tensorsolve(a: Any, b: Any, axes: Any = None) -> Any:
    """``numpy.linalg.tensorsolve``."""
    a, b = (FUNCTIONS["asarray"](x) for x in (a, b))
    if axes is not None:
        last = [i % a.ndim for i in axes]
        a = FUNCTIONS["transpose"](a, [*(i for i in range(a.ndim) if i not in last), *last])
    shape = a.shape[b.ndim :]
    return solve(a.reshape((-1, math.prod(shape))), b.reshape(-1)).reshape(shape)


def tensorinv(a: Any, ind: int = 2) -> Any:
    """``numpy.linalg.tensorinv``."""
    a = FUNCTIONS["asarray"](a)
    return inv(a.reshape((math.prod(a.shape[:ind]), -1))).reshape((*a.shape[ind:], *a.shape[:ind]))


def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    """``numpy.linalg.vector_norm``, along one axis or all."""
    x = FUNCTIONS["asarray"](x)
    if axis is None:
        made = FUNCTIONS["linalg.norm"](x.reshape(-1), ord, 0)
        return made.reshape((1,) * x.ndim) if keepdims else made
    return FUNCTIONS["linalg.norm"](x, ord, axis, keepdims=keepdims)


def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    """``numpy.linalg.matrix_norm``."""
    return FUNCTIONS["linalg.norm"](x, ord, (-2, -1), keepdims=keepdims)


def multi_dot(arrays: Sequence[Any]) -> Any:
    """``numpy.linalg.multi_dot``: in the order that takes the fewest multiplications."""
    ends = {0, len(arrays) - 1}
    if len(arrays) < 2 or any(np.ndim(a) != 2 and not (i in ends and np.ndim(a) == 1) for i, a in enumerate(arrays)):
        found = ", ".join(str(np.shape(a)) for a in arrays)
        expected = "two or more matrices, the first and the last of which may be vectors"
        raise ShapeMismatch(op="np.linalg.multi_dot", found=found, expected=expected)
    axes = [string.ascii_letters[i : i + 2] for i in range(len(arrays))]
    terms = [n[-np.ndim(a) :] if i == 0 else n[: np.ndim(a)] for i, (n, a) in enumerate(zip(axes, arrays, strict=True))]
    kept = terms[0][:-1] + terms[-1][1:]
    return FUNCTIONS["einsum"](f"{','.join(terms)}->{kept}", *arrays, optimize="optimal")


for _fn in (
    solve, inv, slogdet, det, cholesky, matrix_power, multi_dot, tensorsolve, tensorinv, vector_norm, matrix_norm,
):  # fmt: skip
    _name = f"linalg.{_fn.__name__}"
    FUNCTIONS[_name] = _fn if isinstance(_fn, Jit) else telling(_fn, _name)
