"""Elementwise comparisons, classification of floats, and operations on bits. None has a derivative other than zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernelforge.dtypes import FLOATS, INTEGERS, SIGNED
from kernelforge.ir.graph import Primitive
from kernelforge.ir.kernel import Const, Expr, op, select
from kernelforge.ir.ops.arithmetic import INF, SIGNED_BITS, WIDTH
from kernelforge.ir.ops.elementwise import ALL, BITS, elementwise


def _compare(name: str, doc: str, operation: str) -> Primitive:
    def lower(x: Expr, y: Expr) -> Expr:
        return op(operation, x.cast("u8"), y.cast("u8")) if x.dtype == "bool" else op(operation, x, y)

    return elementwise(
        name, doc, numpy=getattr(np, name), lower=lower, partials=None, dtypes=ALL, arity=2, result="bool"
    )


def _classify(name: str, doc: str, lower: Callable[[Expr], Expr], of_integers: bool) -> Primitive:
    return elementwise(
        name,
        doc,
        numpy=getattr(np, name),
        lower=lambda x: lower(x) if x.dtype in FLOATS else Const(of_integers, "bool"),
        partials=None,
        dtypes=ALL,
        result="bool",
    )


def _bitwise(name: str, doc: str, lower: Callable[..., Expr], arity: int = 2) -> Primitive:
    return elementwise(name, doc, numpy=getattr(np, name), lower=lower, partials=None, dtypes=BITS, arity=arity)


def _shift(name: str, doc: str, lower: Callable[[Expr, Expr], Expr]) -> Primitive:
    return elementwise(name, doc, numpy=getattr(np, name), lower=lower, partials=None, dtypes=INTEGERS, arity=2)


def _in_range(x: Expr, y: Expr) -> Expr:
    below = y < WIDTH[x.dtype]
    return (y >= 0) & below if x.dtype in SIGNED else below


def _right_shift(x: Expr, y: Expr) -> Expr:
    gone: Any = select(x < 0, Const(-1, x.dtype), 0) if x.dtype in SIGNED else 0
    return select(_in_range(x, y), x >> y, gone)


PRIMITIVES: tuple[Primitive, ...] = (
    _compare("equal", "Whether x is equal to y; NaN is equal to nothing.", "eq"),
    _compare("not_equal", "Whether x differs from y.", "ne"),
    _compare("less", "Whether x is less than y.", "lt"),
    _compare("less_equal", "Whether x is at most y.", "le"),
    _compare("greater", "Whether x is greater than y.", "gt"),
    _compare("greater_equal", "Whether x is at least y.", "ge"),
    _classify("isnan", "Whether x is not a number.", lambda x: x.ne(x), False),
    _classify("isinf", "Whether x is infinite.", lambda x: abs(x).eq(INF), False),
    _classify("isfinite", "Whether x is neither infinite nor NaN.", lambda x: abs(x) < INF, True),
    elementwise(
        "signbit",
        "Whether the sign bit is set, also of -0.0 and NaN.",
        numpy=np.signbit,
        lower=lambda x: x.bitcast(SIGNED_BITS[x.dtype]) < 0,
        partials=None,
        result="bool",
    ),
    _bitwise("bitwise_and", "The bits set in both.", lambda x, y: x & y),
    _bitwise("bitwise_or", "The bits set in either.", lambda x, y: x | y),
    _bitwise("bitwise_xor", "The bits set in one of the two.", lambda x, y: x ^ y),
    _bitwise("invert", "The bits not set; of bools the logical not.", lambda x: ~x, arity=1),
    _shift(
        "left_shift",
        "x with its bits moved up by y; 0 where y is negative or at least the number of bits.",
        lambda x, y: select(_in_range(x, y), x << y, 0),
    ),
    _shift(
        "right_shift",
        "x with its bits moved down by y, keeping the sign; all sign bits where y is out of range.",
        _right_shift,
    ),
)
