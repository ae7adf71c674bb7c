"""One pass over memory instead of several: loops of the same extent that do not depend on each other become one.

So do neighbours under one condition, or each would compute again what they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kernelforge.ir.kernel import (
    Alloc,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    exprs,
    map_exprs,
    stmts,
    substitute,
    walk,
)


def merge(kernel: Kernel) -> Kernel:
    """Merge sibling loops inside every grid loop.

    Legal for two loops of equal extent and kind when neither touches what the other one writes, and what stands between
    them can move before the first. The order within each is kept.
    """
    body = tuple(dataclasses.replace(s, body=_merged(s.body)) if isinstance(s, For) else s for s in kernel.body)
    return dataclasses.replace(kernel, body=body)


def _touched(body: Sequence[Stmt]) -> tuple[set[str], set[str]]:
    """Return the buffers that are read, and those written or allocated, at any depth; Lets count as buffers."""
    reads: set[str] = set()
    writes: set[str] = set()
    for s in stmts(body):
        for root in exprs(s):
            reads |= {e.buffer for e in walk(root) if isinstance(e, Load)}
        if isinstance(s, Store | Alloc):
            writes.add(s.buffer)
            if isinstance(s, Store) and s.op:
                reads.add(s.buffer)
        elif isinstance(s, Let):
            writes.add(s.name)
    return reads, writes


def _independent(a: Sequence[Stmt], b: Sequence[Stmt]) -> bool:
    first, second = _touched(a), _touched(b)
    return not (first[1] & (second[0] | second[1])) and not (second[1] & first[0])


def _merged(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For):
            for k in range(len(out) - 1, -1, -1):
                first = out[k]
                if not isinstance(first, For) or (first.extent, first.kind) != (stmt.extent, stmt.kind):
                    continue
                between = out[k + 1 :]
                if _independent((first,), (stmt,)) and _independent((first,), between) and not _lets(between):
                    replace: dict[Expr, Expr] = {stmt.var: first.var}
                    memo: dict[Expr, Expr] = {}
                    added = tuple(map_exprs(s, lambda e: substitute(e, replace, memo)) for s in stmt.body)  # noqa: B023
                    out[k:] = [*between, dataclasses.replace(first, body=(*first.body, *added))]
                    break
            else:
                out.append(stmt)
        elif isinstance(stmt, If) and out and _same_condition(out[-1], stmt):
            out[-1] = If(stmt.cond, (*out[-1].body, *stmt.body))  # type: ignore[union-attr]
        else:
            out.append(stmt)
    return tuple(dataclasses.replace(s, body=_merged(s.body)) if isinstance(s, For | If) else s for s in out)


def _same_condition(first: Stmt, second: If) -> bool:
    """Whether both hang on one condition, which the first does not change."""
    if not isinstance(first, If) or first.cond is not second.cond:
        return False
    return not any(isinstance(e, Load) and e.buffer in _touched(first.body)[1] for e in walk(first.cond))


def _lets(body: Sequence[Stmt]) -> bool:
    return any(isinstance(s, Let) for s in body)
