"""How much work an iteration is, roughly, so that small launches stay in the calling thread."""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import normalize
from kernelforge.ir.kernel import (
    MATH_BINARY,
    MATH_UNARY,
    Expr,
    For,
    If,
    Load,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    op,
    substitute,
    walk,
)

_SLOW = {"div": 4, "sqrt": 6, "floordiv": 10, "mod": 10} | dict.fromkeys(MATH_UNARY + MATH_BINARY, 40)
UNKNOWN_EXTENT = 16


def work(loops: Sequence[For], body: Sequence[Stmt], params: Sequence[str], vector_bytes: int) -> Expr:
    """Estimate the instructions that ``body`` runs in one iteration of ``loops``, as an expression of the params alone.

    An element of memory counts as two, an operation on SIMD lanes as one for all of them.
    """
    zeros: dict[Expr, Expr] = {loop.var: i64(0) for loop in loops}
    return normalize(_body(body, zeros, frozenset(params), vector_bytes, 0))


def _body(body: Sequence[Stmt], zeros: dict[Expr, Expr], params: frozenset[str], vector_bytes: int, lanes: int) -> Expr:
    total: Expr = i64(0)
    seen: set[Expr] = set()
    for stmt in body:
        fixed = 0
        for e in exprs(stmt):
            for part in walk(e, seen):
                if isinstance(part, Op) and part.dtype != "i64":
                    fixed += _SLOW.get(part.op, 1) * _registers(part.dtype, vector_bytes, lanes)
                elif isinstance(part, Load):
                    fixed += 2 * _registers(part.dtype, vector_bytes, lanes)
        if isinstance(stmt, Store):
            fixed += 2 * _registers(stmt.value.dtype, vector_bytes, lanes)
        total = total + fixed
        if isinstance(stmt, If):
            total = total + _body(stmt.body, zeros, params, vector_bytes, lanes)
        elif isinstance(stmt, For):
            inner_lanes = lanes or (stmt.static or 0 if stmt.kind == "vector" else 0)
            extent = i64(1) if inner_lanes and not lanes else _extent(stmt.extent, zeros, params)
            inner = _body(stmt.body, {**zeros, stmt.var: i64(0)}, params, vector_bytes, inner_lanes)
            total = total + extent * (inner + 1)
    return total


def _registers(dtype: str, vector_bytes: int, lanes: int) -> int:
    return -(-lanes * DTYPES[dtype].itemsize // vector_bytes) if lanes else 1


def _extent(extent: Expr, zeros: dict[Expr, Expr], params: frozenset[str]) -> Expr:
    """Return an extent at the first iteration of the loops around it, the longest where they are clipped."""
    at_zero = normalize(substitute(extent, zeros))
    known = all(not isinstance(e, Load) and (not isinstance(e, Var) or e.name in params) for e in walk(at_zero))
    return op("max", at_zero, 0) if known else i64(UNKNOWN_EXTENT)
