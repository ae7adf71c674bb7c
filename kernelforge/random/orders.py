"""Orders, and choices among places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge.errors import InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Operand, Sym, apply, as_sym
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import shape_of
from kernelforge.numpy.shapes import part
from kernelforge.numpy.sorting import network
from kernelforge.numpy.ufuncs import ufunc, where
from kernelforge.random.continuous import gumbel
from kernelforge.random.keys import checked, drawn, whole
from kernelforge.random.uniforms import Shape, bits, floating, randint, uniform, widened
from kernelforge.trace import TRACED, concrete


@drawn("logits", numbers=False)
def categorical(key: Sym, logits: Sym, axis: int = -1, shape: Shape | None = None) -> Sym:
    """Choose places along ``axis`` with probabilities proportional to exp(logits), as int64.

    The place of the largest sum of a logit and Gumbel noise. A place whose logit is -inf is never chosen beside others.

    Args:
        shape: of the result; its last axes are those of ``logits`` without ``axis``, which is the default.
    """
    moved: Sym = FUNCTIONS["moveaxis"](logits, axis, -1)
    extents = moved.shape[:-1] if shape is None else shape_of(shape, "random.categorical")
    if extents[len(extents) - moved.ndim + 1 :] != moved.shape[:-1] or len(extents) < moved.ndim - 1:
        expected = f"one that ends with {moved.shape[:-1]}, the shape of logits without axis {axis}"
        raise InvalidParameter(op="random.categorical", name="shape", found=extents, expected=expected)
    # a narrow float has few values near the largest noise: ties would favour the places that come first
    noise = gumbel(key, (*extents, moved.shape[-1]), widened(floating("categorical", moved.dtype))[1])
    return FUNCTIONS["argmax"](ufunc("add", moved, noise), -1)  # type: ignore[no-any-return]


def _order(key: Sym, n: int) -> Sym:
    """Make the numbers below ``n`` in random order: random words, each with its place in the low bits, are sorted."""
    width = max(n - 1, 0).bit_length()
    whole = 1 << width
    place = apply("iota", shape=(whole,), axis=0, dtype="i64")
    drawn = ufunc("left_shift", ufunc("right_shift", bits(key, (whole,), np.uint64), width), width)
    words = where(place < n, ufunc("bitwise_or", drawn, place.astype(np.uint64)), np.uint64(2**64 - 1))
    return ufunc("bitwise_and", part(network(words), 0, 0, n), whole - 1).astype(np.int64)


@drawn(name="permutation")
def _numbers(key: Operand, n: int) -> Sym:
    return _order(as_sym(key), n)


@drawn("x", numbers=False, name="permutation")
def _elements(key: Sym, x: Sym, axis: int) -> Sym:
    return FUNCTIONS["take"](x, _order(key, x.shape[normalize_axis_index(axis, x.ndim)]), axis)  # type: ignore[no-any-return]


@checked()
def permutation(key: Any, x: Any, axis: int = 0) -> Any:
    """Make the numbers below ``x`` in random order, or an array with its elements along ``axis`` in random order.

    All orders are as likely, but for words that are equal in 64 bits less those of a place, which stay in order. Words
    are sorted by Batcher's bitonic network (1968): time goes with n * log(n) ** 2, in a launch for each stage.
    """
    if np.ndim(x):
        return _elements(key, x, axis)
    n = whole("permutation", "x", x)
    if n < 0:
        raise InvalidParameter(op="random.permutation", name="x", found=n, expected="0 or more, or an array")
    return _numbers(key, n)


@checked(p=(lambda p: ~(p >= 0), "probabilities of 0 or more"))
def choice(key: Any, a: Any, shape: Shape = (), replace: bool = True, p: Any = None, axis: int = 0) -> Any:
    """Choose among the numbers below ``a``, or among the elements of an array along ``axis``; ``numpy.random.choice``.

    Args:
        shape: of the choices, which stands in the place of ``axis``.
        replace: whether one may be chosen again.
        p: probabilities ``(n,)``, up to a common factor; evenly without them.

    Raises:
        InvalidParameter: where there is nothing to choose from, or not enough without replacement.
        ShapeMismatch: where ``p`` is not of shape ``(n,)``.
    """
    op, extents = "random.choice", shape_of(shape, "random.choice")
    a = FUNCTIONS["asarray"](a) if isinstance(a, list | tuple) else a
    n = np.shape(a)[normalize_axis_index(axis, np.ndim(a))] if np.ndim(a) else whole("choice", "a", a)
    if n < 0:
        raise InvalidParameter(op=op, name="a", found=n, expected="0 or more, or an array")
    known = TRACED if p is None else concrete(p)
    if p is not None and np.shape(p) != (n,):
        raise ShapeMismatch(op=op, found=np.shape(p), expected=f"one probability for each of {n}")
    least = min(1, math.prod(extents)) if replace else math.prod(extents)
    most = n if known is TRACED else int((np.asarray(known) != 0).sum())
    if most < least:
        raise InvalidParameter(op=op, name="a", found=most, expected=f"at least {least} to choose from")
    places: Any
    if p is None:
        places = randint(key, extents, 0, max(n, 1), np.int64) if replace else _numbers(key, n)
    elif replace:
        places = _weighted(key, p, extents)
    else:
        places = _several(key, p)
    if not replace:
        places = places[: math.prod(extents)].reshape(extents)
    return FUNCTIONS["take"](a, places, axis) if np.ndim(a) else places


def _weights(p: Sym) -> Sym:
    return p.astype(widened(p.dtype if p.dtype.kind == "f" else np.float32)[1])


@drawn("p", numbers=False, name="choice")
def _weighted(key: Sym, p: Sym, shape: tuple[int, ...]) -> Sym:
    """Find where random parts of the whole fall among the sums of probabilities."""
    sums: Sym = FUNCTIONS["cumsum"](_weights(p))
    # from (0, 1], so that a probability of 0 is never met
    parts = (1.0 - uniform(key, shape, sums.dtype)) * part(sums, 0, p.shape[0] - 1, p.shape[0]).reshape(())
    return FUNCTIONS["searchsorted"](sums, parts)  # type: ignore[no-any-return]


@drawn("p", numbers=False, name="choice")
def _several(key: Sym, p: Sym) -> Sym:
    """Order places by logarithms of probabilities with Gumbel noise; Efraimidis and Spirakis 2006."""
    weights = _weights(p)
    noisy = ufunc("log", weights) + gumbel(key, p.shape, weights.dtype)
    return FUNCTIONS["argsort"](-noisy)  # type: ignore[no-any-return]
