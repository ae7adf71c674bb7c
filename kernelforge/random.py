"""Random numbers by key: the same key and shape give the same numbers on every device, however the work is split.

A key is an array ``u32[2]``. Use each one once: ``split`` makes new ones. Bits are those of Threefry-2x32 with 20
rounds (Salmon et al. 2011) on counters: in row-major order, elements 32*k + j and 32*k + 16 + j, for j below 16, are
the first and the second word of block 16*k + j. Floats take the high bits. ``bernoulli``, and with it dropout, makes 4
elements of a block, of which any two are independent, and of 13 rounds (``kernelforge.ir.ops.random`` says why).

For eager convenience ``next_key`` draws keys from a default stream that each thread of each process has for itself: it
starts from the operating system's entropy, or from ``seed``, and a forked child starts anew. A compiled function never
touches it, as what it drew would be the same at every call: there ``next_key`` raises, and keys are arguments.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import os
import threading
from collections.abc import Sequence
from typing import Any, SupportsIndex, cast

import numpy as np

from kernelforge.dtypes import as_dtype, short
from kernelforge.errors import DtypeMismatch, InvalidParameter, NumberOutOfRange, TracedStream
from kernelforge.ir.build import Operand, Sym, apply, as_sym, tracing
from kernelforge.ir.ops.control import emit_scan
from kernelforge.ir.types import Type
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import shape_of
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.shapes import part
from kernelforge.numpy.sorting import network
from kernelforge.numpy.ufuncs import operand, ufunc, where
from kernelforge.trace import TRACED, concrete

Fn = Any
_TABLE: dict[str, Fn] = {}

Shape = int | Sequence[int]

_WORD = 0xFFFFFFFF
BITS = {"f16": (np.uint16, 16, 11), "bf16": (np.uint16, 16, 8), "f32": (np.uint32, 32, 24), "f64": (np.uint64, 64, 53)}
"""For each float: the integer that holds its random bits, their number, and how many of them its significand takes."""


def key(seed: int) -> np.ndarray[Any, Any]:
    """Make a key from an integer; it is a NumPy array, which every device takes.

    Raises:
        InvalidParameter: when the seed is negative or has more than 64 bits.
    """
    number = operator.index(seed)
    if not 0 <= number < 1 << 64:
        raise InvalidParameter(op="random.key", name="seed", found=seed, expected="an integer from 0 to 2**64 - 1")
    return np.array([number >> 32, number & 0xFFFFFFFF], np.uint32)


class _Stream(threading.local):
    """Where the default stream of this thread is: what it started from and how many keys it gave."""

    def __init__(self) -> None:
        self.start()

    def start(self, number: int | None = None) -> None:
        self.entropy = np.random.SeedSequence(number).entropy
        self.count = itertools.count()


_STREAM = _Stream()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_STREAM.start)


def seed(number: int | None = None) -> None:
    """Start the default stream of this thread anew, from a non-negative integer or from fresh entropy."""
    _STREAM.start(number)


def next_key() -> np.ndarray[Any, Any]:
    """Draw a key from the default stream of this thread.

    Raises:
        TracedStream: while a function is compiled.
    """
    if tracing():
        raise TracedStream
    sequence = np.random.SeedSequence(_STREAM.entropy, spawn_key=(next(_STREAM.count),))
    return sequence.generate_state(2, np.uint32)


def _bits(k: Operand, shape: tuple[int, ...], share: int = 2) -> Sym:
    one = as_sym(k)
    if one.shape != (2,) or one.dtype != np.uint32:
        more = "take one for each example with vmap" if one.ndim > 1 else "make one with kf.random.key(seed)"
        expected = f"one key, of type u32[2]; {more}"
        raise DtypeMismatch(op="kf.random", found=str(Type(one.shape, one.dtype)), expected=expected)
    return apply("random_bits", one, shape=shape, share=share)


@array_function("key", table=_TABLE)
def split(key: Sym, num: int = 2) -> Sym:
    """Make ``num`` keys, of shape ``(num, 2)``, that are independent of each other and of ``key``."""
    return _bits(key, (num, 2))


@array_function("key", "data", table=_TABLE, numbers=True)
def fold_in(key: Operand, data: Operand) -> Sym:
    """Make a key from a key and an integer of up to 64 bits: one for each step of a loop.

    Raises:
        InvalidParameter: for what is no integer.
        NumberOutOfRange: for a Python integer that int64 does not hold.
    """
    if isinstance(data, Sym):
        if data.dtype.kind not in "iub":
            found = f"a {short(data.dtype)}"
            raise InvalidParameter(op="random.fold_in", name="data", found=found, expected="an integer")
        number = data if data.dtype == np.uint64 else data.astype(np.int64)
        low, high = (ufunc("bitwise_and", ufunc("right_shift", number, s), _WORD).astype(np.uint32) for s in (0, 32))
    else:
        try:
            whole = operator.index(cast(SupportsIndex, data))
        except TypeError:
            raise InvalidParameter(op="random.fold_in", name="data", found=data, expected="an integer") from None
        if not -(1 << 63) <= whole < 1 << 63:
            raise NumberOutOfRange(op="random.fold_in", found=whole, dtype="int64")
        low, high = (as_sym(np.uint32(whole >> s & _WORD)) for s in (0, 32))
    # each pair of words gives another one
    first, second = _rows(_bits(key, (2,)))
    mixed = [ufunc("bitwise_xor", first, ufunc("bitwise_xor", low, high)), ufunc("bitwise_xor", second, low)]
    return _bits(FUNCTIONS["stack"](mixed), (2,))


def _rows(x: Sym) -> list[Sym]:
    """Take an array apart along axis 0."""
    return [part(x, 0, i, i + 1).reshape(x.shape[1:]) for i in range(x.shape[0])]


@array_function("key", table=_TABLE)
def bits(key: Sym, shape: Shape = (), dtype: Any = np.uint32) -> Sym:
    """Make unsigned integers, all of whose bits are random."""
    kind = as_dtype(dtype)
    extents = shape_of(shape)
    if kind.kind != "u":
        raise InvalidParameter(op="random.bits", name="dtype", found=str(kind), expected="an unsigned integer dtype")
    if kind.itemsize < 8:
        return _bits(key, extents).astype(kind)
    high, low = _rows(_bits(key, (2, *extents)).astype(np.uint64))
    return ufunc("bitwise_or", ufunc("left_shift", high, 32), low)


@array_function("key", "minval", "maxval", table=_TABLE, numbers=True)
def uniform(
    key: Operand, shape: Shape = (), dtype: Any = np.float32, minval: Operand = 0.0, maxval: Operand = 1.0
) -> Sym:
    """Make floats in [minval, maxval), evenly spread."""
    kind, extents = as_dtype(dtype), shape_of(shape)
    low, high = (operand(v, kind, extents, "uniform") for v in (minval, maxval))
    made = _unit(as_sym(key), extents, kind)
    # rounding may reach the upper end, which is not included
    value = made * (high - low) + low
    return where(value < high, value, low)


def _word(dtype: np.dtype[Any]) -> tuple[Any, int, int]:
    if short(dtype) not in BITS:
        raise InvalidParameter(op="random", name="dtype", found=str(dtype), expected="a float dtype")
    return BITS[short(dtype)]


def _unit(key: Sym, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Sym:
    """Make multiples of the least spacing below 1: all that are in [0, 1) are as likely."""
    return _fraction(bits(key, shape, _word(dtype)[0]), dtype)


def _fraction(drawn: Sym, dtype: np.dtype[Any]) -> Sym:
    """Take the high bits of random words as what stands behind the point."""
    _, width, kept = _word(dtype)
    whole = ufunc("right_shift", drawn, width - kept)
    wide = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
    return (whole.astype(wide) * 2.0**-kept).astype(dtype)


@array_function("key", table=_TABLE)
def normal(key: Sym, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make floats of the standard normal distribution, by the transform of Box and Muller."""
    kind, extents = as_dtype(dtype), shape_of(shape)
    wide = np.dtype(np.float32) if kind.itemsize == 2 else kind
    first, second = _rows(split(key))
    # 1 - u is in (0, 1], so the logarithm is finite
    radius = ufunc("sqrt", ufunc("log1p", -_unit(first, extents, wide)) * -2.0)
    return (radius * ufunc("cos", _unit(second, extents, wide) * (2 * math.pi))).astype(kind)


@array_function("key", "p", table=_TABLE, numbers=True)
def bernoulli(key: Operand, p: Operand = 0.5, shape: Shape | None = None) -> Sym:
    """Make bools that are true with probability ``p``; of its shape where ``shape`` is not given."""
    extents = (p.shape if isinstance(p, Sym | np.generic) else ()) if shape is None else shape_of(shape)
    drawn = _bits(key, extents, 4)
    if isinstance(p, Sym):
        return ufunc("less", _fraction(drawn, np.dtype(np.float32)), p)
    # the same comparison on integers: the float is the word's high bits, scaled
    _, width, kept = BITS["f32"]
    exact = float(np.float32(p))
    count = math.ceil(min(exact, 1.0) * (1 << kept)) if exact > 0 else 0
    if count == 1 << kept:
        return apply("full", value=True, shape=extents, dtype="bool")
    return ufunc("less", drawn, count << (width - kept))


@array_function("key", table=_TABLE)
def randint(key: Sym, shape: Shape, minval: int, maxval: int, dtype: Any = np.int32) -> Sym:
    """Make integers in [minval, maxval), by the high half of a product; the bias is below 2**-32 times the range."""
    if not 0 < maxval - minval <= 1 << 32:
        raise InvalidParameter(
            op="random.randint", name="maxval", found=maxval, expected="one above minval, by at most 2**32"
        )
    kind = as_dtype(dtype)
    held = np.iinfo(kind) if kind.kind in "iu" else None
    if held is None or minval < held.min or maxval - 1 > held.max:
        expected = f"an integer dtype that holds {minval} to {maxval - 1}"
        raise InvalidParameter(op="random.randint", name="dtype", found=str(kind), expected=expected)
    wide = _bits(key, shape_of(shape)).astype(np.uint64)
    offset = ufunc("right_shift", ufunc("multiply", wide, maxval - minval), 32)
    return ufunc("add", offset.astype(np.int64), minval).astype(kind)


def _wide(dtype: Any) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return a float dtype and the one its numbers are computed in."""
    kind = as_dtype(dtype)
    return kind, np.dtype(np.float32) if kind.itemsize == 2 else kind


def _inside(key: Sym, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Sym:
    """Make floats in (0, 1), evenly spaced and neither end included."""
    word, width, kept = _word(dtype)
    whole = ufunc("right_shift", bits(key, shape, word), width - kept + 1).astype(dtype)
    return (whole + 0.5) * 2.0 ** (1 - kept)


def _full_shape(shape: Shape | None, *parameters: Operand) -> tuple[int, ...]:
    """Return the shape asked for, or else the one the parameters broadcast to."""
    if shape is not None:
        return shape_of(shape)
    return np.broadcast_shapes(*(p.shape for p in parameters if isinstance(p, Sym | np.generic)))


@array_function("key", table=_TABLE)
def exponential(key: Sym, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make positive floats of the exponential distribution of mean 1, by inversion."""
    kind, wide = _wide(dtype)
    return (-ufunc("log", _inside(key, shape_of(shape), wide))).astype(kind)


@array_function("key", table=_TABLE)
def gumbel(key: Sym, shape: Shape = (), dtype: Any = np.float32) -> Sym:
    """Make floats of the standard Gumbel distribution, by inversion."""
    kind, wide = _wide(dtype)
    return (-ufunc("log", exponential(key, shape, wide))).astype(kind)


@array_function("key", "logits", table=_TABLE)
def categorical(key: Sym, logits: Sym, axis: int = -1, shape: Shape | None = None) -> Sym:
    """Choose places along ``axis`` with probabilities proportional to exp(logits), as int64.

    The place of the largest sum of a logit and Gumbel noise. A place whose logit is -inf is never chosen beside others.

    Args:
        shape: of the result; its last axes are those of ``logits`` without ``axis``, which is the default.
    """
    moved: Sym = FUNCTIONS["moveaxis"](logits, axis, -1)
    extents = moved.shape[:-1] if shape is None else shape_of(shape)
    if extents[len(extents) - moved.ndim + 1 :] != moved.shape[:-1] or len(extents) < moved.ndim - 1:
        expected = f"one that ends with {moved.shape[:-1]}, the shape of logits without axis {axis}"
        raise InvalidParameter(op="random.categorical", name="shape", found=extents, expected=expected)
    # a narrow float has few values near the largest noise: ties would favour the places that come first
    noise = gumbel(key, (*extents, moved.shape[-1]), _wide(moved.dtype)[1])
    return FUNCTIONS["argmax"](ufunc("add", moved, noise), -1)  # type: ignore[no-any-return]


def _order(key: Sym, n: int) -> Sym:
    """Make the numbers below ``n`` in random order: random words, each with its place in the low bits, are sorted."""
    width = max(n - 1, 0).bit_length()
    whole = 1 << width
    place = apply("iota", shape=(whole,), axis=0, dtype="i64")
    drawn = ufunc("left_shift", ufunc("right_shift", bits(key, (whole,), np.uint64), width), width)
    words = where(place < n, ufunc("bitwise_or", drawn, place.astype(np.uint64)), np.uint64(2**64 - 1))
    return ufunc("bitwise_and", part(network(words), 0, 0, n), whole - 1).astype(np.int64)


@array_function("key", table=_TABLE)
def _numbers(key: Sym, n: int) -> Sym:
    return _order(key, n)


@array_function("key", "x", table=_TABLE)
def _elements(key: Sym, x: Sym, axis: int) -> Sym:
    return FUNCTIONS["take"](x, _order(key, x.shape[axis]), axis)  # type: ignore[no-any-return]


def permutation(key: Any, x: Any, axis: int = 0) -> Any:
    """Make the numbers below ``x`` in random order, or an array with its elements along ``axis`` in random order.

    All orders are as likely, but for words that are equal in 64 bits less those of a place, which stay in order. Words
    are sorted by Batcher's bitonic network (1968): time goes with n * log(n) ** 2, in a launch for each stage.
    """
    if not isinstance(x, int | np.integer):
        return _elements(key, x, axis)
    if x < 0:
        raise InvalidParameter(op="random.permutation", name="x", found=x, expected="0 or more, or an array")
    return _numbers(key, int(x))


_NEAR = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3, 2.1213794301586595867e4,
     3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_FAR = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1, 1.48103976427480074590e-1,
     1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_FARTHEST = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2, 7.86869131145613259100e-4,
     1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip
"""Numerators and denominators, the constant term first; Wichura 1988, algorithm AS 241, PPND16."""


def _ratio(x: Sym, of: tuple[tuple[float, ...], tuple[float, ...]]) -> Sym:
    high, low = (functools.reduce(lambda y, c: y * x + c, reversed(c[:-1]), as_sym(c[-1])) for c in of)
    return ufunc("divide", high, low)


def _normal_quantile(p: Sym) -> Sym:
    """Invert the cumulated density of the standard normal distribution; relative error about 1e-16 in f64."""
    q = p - 0.5
    near = ufunc("absolute", q) <= 0.425
    tail = ufunc("minimum", p, 1.0 - p)
    r = ufunc("sqrt", -ufunc("log", where(near, 0.25, tail)))
    far = where(r <= 5, _ratio(r - 1.6, _FAR), _ratio(r - 5.0, _FARTHEST))
    square = where(near, q * q, 0.0)
    return where(near, q * _ratio(0.180625 - square, _NEAR), ufunc("copysign", far, q))


FAR = 12.0
"""Where a truncated normal distribution counts as far out: f32 holds the density's integral up to 12.9."""


def _beyond(v: Sym, a: Sym, b: Sym) -> Sym:
    """Return how far above ``a``, which is ``FAR`` or more, a normal number in [a, b] is, whose rank there is ``v``.

    The integral of the density above x is exp(-x**2 / 2) / x times a series (Abramowitz and Stegun 26.2.12); the
    equation for the distance is solved by iteration, each step of which divides the error by about a**2.
    """

    def series(x: Sym) -> Sym:
        s = 1.0 / (x * x)
        return 1.0 - s * (1.0 - s * (3.0 - s * (15.0 - s * 105.0)))

    def slowly(t: Sym) -> Sym:
        return ufunc("log1p", t / a) + ufunc("log", series(a) / series(a + t))

    width = b - a
    share = -ufunc("expm1", -(width * (a + width * 0.5)) - slowly(width))
    whole = -ufunc("log1p", -v * share)
    t = whole / a
    for _ in range(4):
        rest = 2.0 * (whole - slowly(t))
        t = rest / (a + ufunc("sqrt", a * a + rest))
    return t


def truncated_normal(key: Any, lower: Any, upper: Any, shape: Shape | None = None, dtype: Any = np.float32) -> Any:
    """Make floats of the standard normal distribution where it is within [lower, upper], by inversion.

    Raises:
        InvalidParameter: where ``lower`` is above ``upper``; NaN where that is not known while a function is compiled.
    """
    ends = concrete((lower, upper))
    if ends is not TRACED and np.any(np.asarray(ends[0]) > ends[1]):
        raise InvalidParameter(
            op="random.truncated_normal", name="lower", found=ends[0], expected=f"at most upper, {ends[1]}"
        )  # fmt: skip
    far = ends is TRACED or np.any(np.maximum(ends[0], np.negative(ends[1])) > FAR)
    return _truncated_normal(key, lower, upper, shape, dtype, bool(far))


@array_function("key", "lower", "upper", name="truncated_normal", table=_TABLE, numbers=True)
def _truncated_normal(
    key: Operand, lower: Operand, upper: Operand, shape: Shape | None, dtype: Any, may_be_far: bool
) -> Sym:
    kind, wide = _wide(dtype)
    extents = _full_shape(shape, lower, upper)
    low, high = (operand(v, wide, extents, "truncated_normal") for v in (lower, upper))
    # below 0 the cumulated density has full relative precision, so the other side is drawn as its mirror image
    mirrored = low > 0
    first, last = where(mirrored, -high, low), where(mirrored, -low, high)
    v = _inside(as_sym(key), extents, wide)
    far = last < -FAR
    near = [where(far, end, v) for end, v in ((-1.0, first), (1.0, last))] if may_be_far else (first, last)
    below, above = (apply("erfc", v * -math.sqrt(0.5)) * 0.5 for v in near)
    drawn = _normal_quantile(v * (above - below) + below)
    if may_be_far:
        start, end = (where(far, -v, FAR) for v in (last, first))
        drawn = where(far, -(start + _beyond(v, start, end)), drawn)
    inside = ufunc("minimum", ufunc("maximum", drawn, first), last)
    return where(low <= high, where(mirrored, -inside, inside), math.nan).astype(kind)


TRIES = 16
"""Candidates of a gamma variate. Each is taken with probability above 0.95, so all fail once in 10**20 times."""


def gamma(key: Any, a: Any, shape: Shape | None = None, dtype: Any = np.float32) -> Any:
    """Make floats of the gamma distribution of shape parameter ``a`` and scale 1; Marsaglia and Tsang 2000.

    Of a fixed number of candidates one that is accepted is taken. There is no derivative by ``a``.

    Raises:
        InvalidParameter: where ``a`` is negative; NaN where that is not known while a function is compiled.
    """
    given = concrete(a)
    if given is not TRACED and np.min(given, initial=0) < 0:
        raise InvalidParameter(op="random.gamma", name="a", found=np.min(given).item(), expected="0 or more")
    return _gamma(key, a, shape, dtype)


@array_function("key", "a", name="gamma", table=_TABLE, numbers=True)
def _gamma(key: Operand, a: Operand, shape: Shape | None, dtype: Any) -> Sym:
    kind, wide = _wide(dtype)
    extents = _full_shape(shape, a)
    alpha = apply("stop_gradient", operand(a, wide, extents, "gamma"))
    raised = alpha < 1
    d = where(raised, alpha + 1.0, alpha) - 1 / 3
    c = 1.0 / ufunc("sqrt", d * 9.0)
    boost, tries = _rows(split(as_sym(key)))

    def attempt(made: Sym, key: Sym) -> list[Sym]:
        first, second = _rows(split(key))
        x = normal(first, extents, wide)
        root = 1.0 + c * x
        v = root * root * root
        limit = x * x * 0.5 + d * (1.0 - v + ufunc("log", where(v > 0, v, 1.0)))
        taken = (v > 0) & ufunc("less", ufunc("log", _inside(second, extents, wide)), limit)
        return [where(taken, d * v, made)]

    # the last one that is taken: which of them the loop starts with is all the same
    (made,) = emit_scan(attempt, [d], [split(tries, TRIES)], TRIES, False)
    # a variate of a + 1 times u ** (1 / a) is one of a
    scale = ufunc("exp", ufunc("log", _inside(boost, extents, wide)) / where(raised, alpha, 1.0))
    return where(alpha >= 0, where(raised, made * scale, made), math.nan).astype(kind)


__all__ = [
    "bernoulli",
    "bits",
    "categorical",
    "exponential",
    "fold_in",
    "gamma",
    "gumbel",
    "key",
    "next_key",
    "normal",
    "permutation",
    "randint",
    "seed",
    "split",
    "truncated_normal",
    "uniform",
]


def __dir__() -> list[str]:
    return __all__
