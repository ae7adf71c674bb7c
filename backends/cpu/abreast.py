"""Iterations of an unrolled loop side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kernelforge.ir.index import free_vars, normalize
from kernelforge.ir.kernel import (
    Const,
    Expr,
    For,
    If,
    Let,
    Load,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    stmts,
    substitute,
    walk,
)
from kernelforge.ir.memo import memo


@memo
def abreast(loop: For) -> tuple[Stmt, ...]:
    """Return what an unrolled loop does, each statement of its vector loops for all iterations before the next one.

    A processor has room for some hundred instructions that wait: for the end of one long chain, as the rounds of a
    cipher are, or for the steps of several that run at once. Empty where the statements are no chains, or where one
    touches what another one stores, so that their order may matter.
    """
    inner = [s for s in loop.body if isinstance(s, For)]
    simple = all(isinstance(s, Let | For) for s in loop.body) and all(
        s.kind == "vector" and all(isinstance(t, Let | Store) for t in s.body) for s in inner
    )
    if not simple or not any(isinstance(t, Let) for s in inner for t in s.body):
        return ()
    leaves = [s for s in stmts(loop.body) if isinstance(s, Let | Store)]
    touched = [_touched(s) for s in leaves]
    for k, s in enumerate(leaves):
        if isinstance(s, Store) and any(s.buffer in other for j, other in enumerate(touched) if j != k):
            return ()
    names: list[dict[Expr, Expr]] = [{loop.var: i64(k)} for k in range(loop.static or 0)]
    return _used(each(loop.body, names), set())


def narrowed(loop: For, lanes: int) -> For:
    """Return a loop of ``lanes`` that does what a ``vector`` loop of some times as many does, each statement for all of
    those before the next one.
    """
    var = Var(loop.var.name, "i64", lanes)
    names: list[dict[Expr, Expr]] = [{loop.var: normalize(var + k)} for k in range(0, loop.static or 0, lanes)]
    return For(var, i64(lanes), loop.kind, each(loop.body, names))


def each(body: Sequence[Stmt], names: list[dict[Expr, Expr]]) -> tuple[Stmt, ...]:
    """Write each statement once for every iteration, whose variables are as in ``names``."""
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For):
            out.append(dataclasses.replace(stmt, body=each(stmt.body, names)))
            continue
        for k, known in enumerate(names):
            if isinstance(stmt, If):
                out.append(If(normalize(substitute(stmt.cond, known)), each(stmt.body, [known])))
                continue
            made = map_exprs(stmt, lambda e: normalize(substitute(e, known)))  # noqa: B023
            if isinstance(made, Let):
                var = Var(made.name, made.value.dtype)
                known[var] = made.value if isinstance(made.value, Const | Var) else Var(f"{made.name}_{k}", var.dtype)
                made = Let(f"{made.name}_{k}", made.value)
            out.append(made)
    return tuple(out)


def _used(body: Sequence[Stmt], wanted: set[Var]) -> tuple[Stmt, ...]:
    """Drop the Lets of which nothing is left: the variable of the loop has decided conditions."""
    out: list[Stmt] = []
    for stmt in reversed(body):
        if isinstance(stmt, For):
            stmt = dataclasses.replace(stmt, body=_used(stmt.body, wanted))
        elif isinstance(stmt, Let) and Var(stmt.name, stmt.value.dtype) not in wanted:
            continue
        wanted.update(*(free_vars(e) for e in exprs(stmt)))
        out.append(stmt)
    return tuple(reversed(out))


def _touched(stmt: Let | Store) -> set[str]:
    """Return the buffers that a statement reads or writes."""
    found = {e.buffer for root in exprs(stmt) for e in walk(root) if isinstance(e, Load)}
    return found | {stmt.buffer} if isinstance(stmt, Store) else found
