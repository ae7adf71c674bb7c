"""Loop variables as the digits of a counter, and nests of loops around a body.

An element's position in a row-major array is a number in mixed radix whose digits are loop variables; whether loops
walk an array once, and in which order, is read off that number.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge.ir.index import affine, free_vars, normalize, poly
from kernelforge.ir.kernel import (
    Expr,
    For,
    Load,
    LoopKind,
    Op,
    Stmt,
    Var,
    exprs,
    i64,
    map_exprs,
    stmts,
    substitute,
    walk,
)  # fmt: skip


def axes(shape: Sequence[int], name: str) -> tuple[Expr, ...]:
    """Make one loop variable for each axis; an axis of extent 1 is the constant 0."""
    return tuple(i64(0) if n == 1 else Var(f"{name}{k}", "i64", n) for k, n in enumerate(shape))


def variables(index: Sequence[Expr]) -> tuple[Var, ...]:
    return tuple(i for i in index if isinstance(i, Var))


def digits(flat: Expr, size: int) -> list[tuple[int, Var]] | None:
    """Read ``flat`` as a number in mixed radix with the loop variables as digits, most significant first.

    Returns None unless it takes each value of [0, size) exactly once. Reversed digits are refused.
    """
    terms: list[tuple[int, Var]] = []
    for mono, c in poly(flat).items():
        if len(mono) != 1 or not isinstance(mono[0], Var) or c < 0:
            return None
        terms.append((c, mono[0]))
    terms.sort(key=lambda t: t[0])
    step = 1
    for c, var in terms:
        if c != step or var.bound is None:
            return None
        step *= var.bound
    return terms[::-1] if step == size else None


def nest(loops: Sequence[Var], kind: LoopKind, body: Sequence[Stmt]) -> tuple[Stmt, ...]:
    """Wrap ``body`` in the loops, outermost first, after joining adjacent ones where that changes no index."""
    vars_, made = collapse(list(loops), list(body))
    for var in reversed(vars_):
        made = [For(var, i64(var.bound or 0), kind, tuple(made))]
    return tuple(made)


def adjacent(loops: Sequence[Var], body: Sequence[Stmt]) -> list[Var]:
    """Order loops of any order so that those whose indices walk as through one are next to each other."""
    found = list(loops)
    for outer in loops:
        for inner in loops:
            if inner is not outer and _counts(body, outer, inner):
                found.remove(outer)
                found.insert(found.index(inner), outer)
                break
    return found


def _counts(body: Sequence[Stmt], outer: Var, inner: Var) -> bool:
    known: dict[Expr, bool] = {}
    return all(_as_one(e, outer, inner, known) for s in stmts(body) for e in exprs(s))


def collapse(loops: list[Var], body: list[Stmt]) -> tuple[list[Var], list[Stmt]]:
    """Make one loop of two adjacent ones wherever every index walks through both as through one."""
    k = len(loops) - 2
    while k >= 0:
        outer, inner = loops[k], loops[k + 1]
        if _counts(body, outer, inner):
            joined = Var(outer.name, "i64", (outer.bound or 0) * (inner.bound or 0))
            replace: dict[Expr, Expr] = {outer: i64(0), inner: joined}
            memo: dict[Expr, Expr] = {}
            body = [map_exprs(s, lambda e: normalize(substitute(e, replace, memo))) for s in body]  # noqa: B023
            loops[k : k + 2] = [joined]
        k -= 1
    return loops, body


def _as_one(expr: Expr, outer: Var, inner: Var, known: dict[Expr, bool]) -> bool:
    """Whether ``outer`` and ``inner`` occur in ``expr`` only as the two digits of one counter."""
    found = known.get(expr)
    if found is None:
        found = known[expr] = _one_counter(expr, outer, inner, known)
    return found


def _one_counter(expr: Expr, outer: Var, inner: Var, known: dict[Expr, bool]) -> bool:
    free = free_vars(expr)
    if outer not in free and inner not in free:
        return True
    if isinstance(expr, Load):
        return all(_as_one(i, outer, inner, known) for i in expr.index)
    if expr.dtype == "i64" and not any(isinstance(e, Load) for e in walk(expr)):
        a, b = affine(expr, outer), affine(expr, inner)
        if a is not None and b is not None:
            return a == b * (inner.bound or 0)
    return isinstance(expr, Op) and all(_as_one(a, outer, inner, known) for a in expr.args)
