"""Softmax and its family, along any axis.

f16 and bf16 are computed in f32 and rounded once. A row of nothing but -inf has no softmax: it is NaN, as in PyTorch.
A number has one axis, as in PyTorch, and no elements have no softmax.
"""

from __future__ import annotations

from typing import Any

import kernelforge.numpy as knp
from kernelforge.nn.calls import Fn, Ints, draws_key, elementwise, function, narrow, passing, wide
from kernelforge.random import gumbel


def _shares(x: Any, dim: int) -> Any:
    e = knp.exp(x - x.max(axis=dim, keepdims=True))
    return e / e.sum(axis=dim, keepdims=True)


def _logarithms(x: Any, dim: int) -> Any:
    shifted = x - x.max(axis=dim, keepdims=True)
    return shifted - knp.log(knp.exp(shifted).sum(axis=dim, keepdims=True))


def _along(fn: Fn, x: Any, dim: int) -> Any:
    if x.ndim == 0:
        return fn(x.reshape((1,)), dim).reshape(())
    return fn(x, dim) if x.size else x


def _rounded(fn: Fn, input: Any, dim: int, dtype: Any) -> Any:
    """Apply ``fn`` along an axis, in a wide dtype, to what is cast to ``dtype`` first; round once."""
    x = knp.asarray(input) if dtype is None else knp.asarray(input).astype(dtype)
    return narrow(_along(fn, wide(x), dim), x)


@function("dim", "dtype")
def softmax(input: Any, dim: int = -1, *, dtype: Any = None) -> Any:
    """exp(x) divided by its sum along ``dim``; PyTorch's has no default for it.

    Args:
        dtype: that the input is cast to first, and the result has.
    """
    return _rounded(_shares, input, dim, dtype)


@function("dim", "dtype")
def log_softmax(input: Any, dim: int = -1, *, dtype: Any = None) -> Any:
    """The logarithm of ``softmax``, without its underflow; ``dtype`` as there."""
    return _rounded(_logarithms, input, dim, dtype)


@function("dim", "dtype")
def softmin(input: Any, dim: int = -1, *, dtype: Any = None) -> Any:
    """``softmax`` of -x; ``dtype`` as there."""
    return _rounded(lambda x, on: _shares(-x, on), input, dim, dtype)


@elementwise("dim", "keepdim")
def logsumexp(input: Any, dim: Ints | None = None, keepdim: bool = False) -> Any:
    """Log of the sum of exp(x) along ``dim``, one axis, several, or all; -inf of no elements or of -inf alone."""
    if input.ndim == 0:
        return knp.logsumexp(input.reshape((1,)), axis=dim)
    return knp.logsumexp(input, axis=dim, keepdims=keepdim)


@function("hard", "dim", before=draws_key)
def gumbel_softmax(logits: Any, tau: Any = 1.0, hard: bool = False, dim: int = -1, *, key: Any = None) -> Any:
    """``softmax`` of the logits with Gumbel noise from ``key``, at temperature ``tau``; Jang et al. 2017.

    Args:
        hard: return the one-hot choice, with the derivative of the soft one.
        key: as of ``dropout``. PyTorch's ``eps``, which has no effect there, is left out.
    """
    x = wide(logits)
    soft = softmax((x + gumbel(key, x.shape, x.dtype)) / tau, dim=dim)
    if hard:
        places = knp.arange(x.shape[dim]).reshape([-1 if a == dim % x.ndim else 1 for a in range(x.ndim)])
        chosen = (places == knp.argmax(soft, axis=dim, keepdims=True)).astype(soft.dtype)
        soft = passing(chosen, soft)
    return narrow(soft, knp.asarray(logits))


@elementwise("p", "dim")
def normalize(input: Any, p: float = 2.0, dim: int = 1, eps: Any = 1e-12) -> Any:
    """``x`` divided by its p-norm along ``dim``, or by ``eps`` where that is larger; the derivative at 0 is 1 / eps."""
    return input / knp.maximum(vector_norm(input, p, dim), eps)


def vector_norm(x: Any, p: float, dim: int | tuple[int, ...], keepdims: bool = True) -> Any:
    """The p-norm along an axis; its derivative at 0 is 0, as in PyTorch, where that of the root is infinite."""
    size = knp.abs(x)
    if p == float("inf"):
        return size.max(axis=dim, keepdims=keepdims)
    if p == 1:
        return size.sum(axis=dim, keepdims=keepdims)
    if p == 0:
        return (x != 0).astype(x.dtype).sum(axis=dim, keepdims=keepdims)
    total = power(x if p == 2 else size, p).sum(axis=dim, keepdims=keepdims)
    return root(total, p)


def power(x: Any, p: float) -> Any:
    """``x ** p`` with derivatives of 0 at 0, for any p."""
    if p in (1, 2):
        return x if p == 1 else x * x
    zero = x == 0
    return knp.where(zero, 0, knp.where(zero, 1, x) ** p)


def root(total: Any, p: float) -> Any:
    """The p-th root of what is not negative; 0 and a derivative of 0 at 0."""
    zero = total == 0
    positive = knp.where(zero, 1, total)
    return knp.where(zero, 0, knp.sqrt(positive) if p == 2 else positive ** (1 / p))
