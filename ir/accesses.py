"""Moving what statements read and write to other places, and changing how buffers are allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from kernelforge.ir.kernel import Alloc, Expr, For, If, Load, Stmt, Store, map_exprs, rebuild

Index = tuple[Expr, ...]


def redirected(
    body: Sequence[Stmt], buffers: Collection[str], change: Callable[[str, Index], tuple[str, Index]]
) -> tuple[Stmt, ...]:
    """Let Loads and Stores of ``buffers`` touch the buffer and index that ``change`` makes of theirs."""
    memo: dict[Expr, Expr] = {}

    def load(e: Expr) -> Expr:
        return Load(*change(e.buffer, e.index), e.dtype) if isinstance(e, Load) and e.buffer in buffers else e

    def visit(s: Stmt) -> Stmt:
        if isinstance(s, For | If):
            return dataclasses.replace(s, body=tuple(map(visit, s.body)))
        if isinstance(s, Store) and s.buffer in buffers:
            buffer, index = change(s.buffer, s.index)
            return dataclasses.replace(s, buffer=buffer, index=index)
        return s

    return tuple(visit(map_exprs(s, lambda e: rebuild(e, load, memo))) for s in body)


def reallocated(body: Sequence[Stmt], buffer: str, **changes: Any) -> tuple[Stmt, ...]:
    """Change fields of the Alloc of ``buffer``, wherever it stands."""

    def visit(s: Stmt) -> Stmt:
        if isinstance(s, For | If):
            return dataclasses.replace(s, body=tuple(map(visit, s.body)))
        return dataclasses.replace(s, **changes) if isinstance(s, Alloc) and s.buffer == buffer else s

    return tuple(map(visit, body))
