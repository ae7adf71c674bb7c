"""What the printer asks of a kernel's statements: what they touch, which loops are one unit, whose a register is."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence

from kernelforge.backends.cuda.mma import NARROW
from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import affine, free_vars, normalize, poly
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Let,
    Load,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    op,
    stmts,
    substitute,
    walk,
)

WARP = 32
Touched = dict[str, bool]
"""Buffers that the threads of a block share, with whether they are written."""


def touched(body: Iterable[Stmt]) -> Touched:
    """Every buffer that ``body`` reads (False) or writes (True)."""
    out: Touched = {}
    for stmt in stmts(tuple(body)):
        for expr in exprs(stmt):
            for e in walk(expr):
                if isinstance(e, Load):
                    out.setdefault(e.buffer, False)
        if isinstance(stmt, Store):
            out[stmt.buffer] = True
    return out


def nested(loop: For) -> tuple[list[For], list[Stmt], tuple[Stmt, ...]]:
    """The chain of loops of one kind that starts at ``loop``, the Lets between them, and the body of the last one.

    The extents do not depend on what stands inside of the chain.
    """
    chain: list[For] = [loop]
    lets: list[Stmt] = []
    body = loop.body
    while body and all(isinstance(s, Let) for s in body[:-1]):
        *between, inner = body
        if not isinstance(inner, For) or inner.kind != loop.kind:
            break
        made = {s.name for s in [*lets, *between] if isinstance(s, Let)} | {outer.var.name for outer in chain}
        if any(v.name in made for v in free_vars(inner.extent)):
            break
        lets += between
        chain.append(inner)
        body = inner.body
    return chain, lets, body


def units(body: Iterable[Stmt]) -> Iterator[list[For]]:
    """The outermost chains of group loops."""
    for stmt in body:
        if isinstance(stmt, For) and stmt.kind == "group":
            yield nested(stmt)[0]
        elif isinstance(stmt, For | If):
            yield from units(stmt.body)


def size(chain: Sequence[For]) -> int:
    return math.prod(loop.static or 0 for loop in chain)


Access = tuple[tuple[For, ...], tuple[Expr, ...], bool]
"""The unit around an access (empty outside of units), its index, and whether it writes."""


def accesses(body: Iterable[Stmt], buffer: str, chain: tuple[For, ...] = ()) -> Iterator[Access]:
    for stmt in body:
        for expr in exprs(stmt):
            for e in walk(expr):
                if isinstance(e, Load) and e.buffer == buffer:
                    yield chain, e.index, False
        if isinstance(stmt, Store) and stmt.buffer == buffer:
            yield chain, stmt.index, True
        if isinstance(stmt, For) and stmt.kind == "group" and not chain:
            loops, lets, inner = nested(stmt)
            yield from accesses((*lets, *inner), buffer, tuple(loops))
        elif isinstance(stmt, For | If):
            yield from accesses(stmt.body, buffer, chain)


def owned(alloc: Alloc, rest: Sequence[Stmt]) -> int | None:
    """How many leading indices of a register buffer name the thread that owns an element; None if none does."""
    uses = list(accesses(rest, alloc.buffer))
    inside = [use for use in uses if use[0]]
    if not any(write for _, _, write in inside):
        return 0
    chains = {chain for chain, _, _ in inside}
    if len(inside) == len(uses):
        depth = {len(chain) for chain in chains}
        inner = {tuple(loop.static for loop in chain[1:]) for chain in chains}
        led = all(index[: len(chain)] == tuple(loop.var for loop in chain) for chain, index, _ in inside)
        if len(depth) == 1 and len(inner) == 1 and led:
            return depth.pop()
        own = {loop.var for chain in chains for loop in chain}
        if len(chains) == 1 and not any(own & free_vars(i) for _, index, _ in inside for i in index):
            return 0
    return None


def copied(stmt: Stmt) -> tuple[Load, Expr | None] | None:
    """The Load that a Store copies as it is, and where: everywhere, or where a condition holds and else zeros."""
    if not isinstance(stmt, Store) or stmt.op:
        return None
    value, conditions = stmt.value, list[Expr]()
    while isinstance(value, Op):
        if value.op == "select" and value.args[2] == Const(0, value.dtype):
            conditions.append(value.args[0])
            value = value.args[1]
        elif value.op == "cast" and {value.dtype, value.args[0].dtype} in [{"f32", d} for d in NARROW]:
            value = value.args[0]  # to f32 and back
        else:
            return None
    if not isinstance(value, Load) or value.dtype != stmt.value.dtype:
        return None
    return value, functools.reduce(lambda a, b: op("and", a, b), conditions) if conditions else None


def inlined(body: Iterable[Stmt]) -> dict[Stmt, Stmt]:
    """The statements of a body but its Lets, each with what the Lets stand for in their place."""
    held: dict[str, Expr] = {}

    def put(e: Expr) -> Expr:
        return substitute(e, {v: held[v.name] for v in walk(e) if isinstance(v, Var) and v.name in held})

    found: dict[Stmt, Stmt] = {}
    for stmt in body:
        if isinstance(stmt, Let):
            held[stmt.name] = put(stmt.value)
        else:
            found[stmt] = map_exprs(stmt, put)
    return found


def for_all(cond: Expr, var: Var, lanes: int) -> Expr | None:
    """The condition ``cond`` with ``var`` at 0, where it holds for all of the ``lanes`` values of ``var`` or for none;
    else None.

    That is so of ``a < n`` where ``a`` steps by one with ``var`` and all else, ``n`` too, is a multiple of ``lanes``.
    """
    if var not in free_vars(cond):
        return cond
    if isinstance(cond, Op) and cond.op == "and":
        parts = [for_all(a, var, lanes) for a in cond.args]
        return None if None in parts else op("and", *(p for p in parts if p is not None))
    if isinstance(cond, Op) and cond.op == "lt" and cond.args[0].dtype == "i64":
        room = normalize(cond.args[1] - cond.args[0])
        rest = poly(normalize(substitute(room, {var: i64(0)})))
        if affine(room, var) == -1 and all(c % lanes == 0 for c in rest.values()):
            return normalize(substitute(cond, {var: i64(0)}))
    return None


def halving(body: Sequence[Stmt], threads: int) -> tuple[str, str, list[int]] | None:
    """The buffer, the operator and the halves of a run of ``group t < h: a[t] op= a[t + h]`` that fits a warp."""
    found: tuple[str, str, list[int]] | None = None
    for stmt in body:
        if not isinstance(stmt, For) or stmt.kind != "group" or len(stmt.body) != 1:
            break
        store, half = stmt.body[0], stmt.static or 0
        if not isinstance(store, Store) or not store.op or store.index != (stmt.var,):
            break
        other = store.value
        if not isinstance(other, Load) or other.buffer != store.buffer:
            break
        if poly(other.index[0] - stmt.var) != {(): half} or DTYPES[other.dtype].itemsize < 4:
            break
        if found is None:
            if half not in (16, 8, 4) or threads < WARP:
                return None
            found = (store.buffer, store.op, [half])
        elif (store.buffer, store.op) == found[:2] and half * 2 == found[2][-1]:
            found[2].append(half)
        else:
            break
    return found
