"""Polynomials by their coefficients, the highest power first, as NumPy's older functions have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Sym, apply, as_sym
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.shapes import part
from kernelforge.numpy.ufuncs import common_dtype, ufunc
from kernelforge.told import telling


def _vector(op: str, x: Sym) -> Sym:
    if x.ndim > 1:
        raise ShapeMismatch(op=f"np.{op}", found=x.shape, expected="coefficients along one axis")
    return x.reshape((x.size,))


def _longer(x: Sym, n: int) -> Sym:
    zero = as_sym(0).astype(x.dtype)
    return apply("pad", x, zero, low=(n - x.size,), high=(0,), interior=(0,))


def _added(name: str, a1: Sym, a2: Sym) -> Sym:
    kind = common_dtype((a1, a2))
    x, y = (_vector(name, a).astype(kind) for a in (a1, a2))
    n = max(x.size, y.size)
    return ufunc("add" if name == "polyadd" else "subtract", _longer(x, n), _longer(y, n))


@array_function("a1", "a2")
def polyadd(a1: Sym, a2: Sym) -> Sym:
    return _added("polyadd", a1, a2)


@array_function("a1", "a2")
def polysub(a1: Sym, a2: Sym) -> Sym:
    return _added("polysub", a1, a2)


@array_function("a1", "a2")
def polymul(a1: Sym, a2: Sym) -> Sym:
    """``numpy.polymul``; zeros in front are kept, as their number depends on values."""
    return FUNCTIONS["convolve"](_vector("polymul", a1), _vector("polymul", a2))  # type: ignore[no-any-return]


@array_function("p")
def polyder(p: Sym, m: int = 1) -> Sym:
    x = _vector("polyder", p)
    if m < 0:
        raise InvalidParameter(op="np.polyder", name="m", found=m, expected="no number below zero")
    for _ in range(m):
        powers = np.arange(x.size - 1, 0, -1)
        x = ufunc("multiply", part(x, 0, 0, max(x.size - 1, 0)), as_sym(powers))
    return x


@array_function("p", "k")
def polyint(p: Sym, m: int = 1, k: Sym | None = None) -> Sym:
    x = _vector("polyint", p)
    if m < 0:
        raise InvalidParameter(op="np.polyint", name="m", found=m, expected="no number below zero")
    added = as_sym(np.zeros(m)) if k is None else k.reshape((k.size,))
    if added.size == 1 and m > 1:
        added = added.broadcast((m,))
    if added.size < m:
        raise ShapeMismatch(op="np.polyint", found=added.shape, expected=f"{m} constants, or one")
    for i in range(m):
        quotients = ufunc("divide", x, as_sym(np.arange(x.size, 0, -1)))
        x = FUNCTIONS["concatenate"]([quotients, part(added, 0, i, i + 1)], 0)
    return x


@array_function("seq_of_zeros")
def poly(seq_of_zeros: Sym) -> Sym:
    """``numpy.poly``, of zeros."""
    zeros = _vector("poly", seq_of_zeros)
    zeros = zeros.astype(common_dtype((zeros, 1.0)))
    made = as_sym(np.ones(1)).astype(zeros.dtype)
    one = made
    for i in range(zeros.size):
        factor = FUNCTIONS["concatenate"]([one, ufunc("negative", part(zeros, 0, i, i + 1))], 0)
        made = FUNCTIONS["convolve"](made, factor)
    return made


def polyfit(x: Any, y: Any, deg: int, rcond: Any = None, full: bool = False, w: Any = None, cov: Any = False) -> Any:
    """``numpy.polyfit``, the coefficients alone."""
    if full or cov is not False:
        raise InvalidParameter(
            op="np.polyfit", name="full or cov", found=True, expected="False: the coefficients alone"
        )
    x, y = (FUNCTIONS["asarray"](v) for v in (x, y))
    if x.ndim != 1 or y.ndim not in (1, 2) or not x.size or x.shape[0] != y.shape[0]:
        found = f"{x.shape} and {y.shape}"
        raise ShapeMismatch(op="np.polyfit", found=found, expected="a vector, and as many values")
    x, y = x + 0.0, y + 0.0
    left = FUNCTIONS["vander"](x, deg + 1)
    if w is not None:
        weights = FUNCTIONS["asarray"](w) + 0.0
        left, y = left * weights[:, None], y * (weights[:, None] if y.ndim == 2 else weights)
    scale = FUNCTIONS["sqrt"]((left * left).sum(0))
    rcond = x.shape[0] * np.finfo(x.dtype).eps if rcond is None else rcond
    found = FUNCTIONS["linalg.lstsq"](left / scale, y, rcond)[0]
    return (found.T / scale).T


@array_function("u", "v")
def polydiv(u: Sym, v: Sym) -> tuple[Sym, Sym]:
    """``numpy.polydiv``; zeros in front of the remainder are kept, as their number depends on values."""
    kind = common_dtype((u, v, 1.0))
    rest, divisor = (_vector("polydiv", x).astype(kind) for x in (u, v))
    count = rest.size - divisor.size + 1
    if count < 1:
        return as_sym(np.zeros(1)).astype(kind), rest
    found = []
    for i in range(count):
        first = ufunc("divide", part(rest, 0, i, i + 1), part(divisor, 0, 0, 1))
        found.append(first)
        zero = as_sym(0).astype(kind)
        taken = apply("pad", ufunc("multiply", first, divisor), zero, low=(i,), high=(count - 1 - i,), interior=(0,))
        rest = ufunc("subtract", rest, taken)
    left = part(rest, 0, count, rest.size) if divisor.size > 1 else as_sym(np.zeros(1)).astype(kind)
    return FUNCTIONS["concatenate"](found, 0), left


FUNCTIONS["polyfit"] = telling(polyfit)
