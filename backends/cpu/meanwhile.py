"""What a nest asks memory for while its products compute: what the next iteration around them will read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kernelforge.backends.cpu.ahead import vectors
from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import affine, free_vars, normalize
from kernelforge.ir.kernel import Alloc, Expr, For, If, Load, Op, Stmt, Store, i64, op, stmts, substitute
from kernelforge.ir.schedule.nests import loads

LINE = 64
"""Bytes that memory answers with at least."""

EARLY = 4
"""How many times as fast as they would have to, loops ask that may end early."""


class Request(NamedTuple):
    """An element of a buffer, whose line is asked for."""

    buffer: str
    at: Expr


class Requests(NamedTuple):
    """What a loop asks for in each of its iterations."""

    loop: For
    wanted: tuple[Request, ...]


def requests(loops: Sequence[For], body: Sequence[Stmt], cache: int) -> Requests | None:
    """Return what to ask for in which loop, if anything.

    Products read what caches hold, and packing reads memory as fast as it can, one after the other; so the last and
    longest of the products asks step by step for the arrays that the next iteration of the loops around will read.
    They have to be dense, and to leave room in the cache.

    Args:
        loops: of the grid, the outermost first.
        body: inside of them.
        cache: bytes of the second-level cache.
    """
    path = max(_products(body, ()), key=_steps, default=())
    if not loops or not path:
        return None
    wanted = _regions(loops, body)
    nbytes = sum(size * DTYPES[load.dtype].itemsize for load, size in wanted.items())
    if not wanted or nbytes > cache // 2 or nbytes > LINE * _steps(path):
        return None
    *around, last = path
    tile: Expr = i64(0)
    for loop in around:
        tile = tile * _count(loop) + loop.var
    out = []
    for load, size in wanted.items():
        share = -(-size // _steps(around))
        rate = share * (1 if last.static is not None else EARLY)
        step = op("min", i64(share - 1), last.var * rate // _count(last))
        inside = free_vars(load.index[0]) - {loop.var for loop in loops}
        start = substitute(load.index[0], {**dict.fromkeys(inside, i64(0)), loops[-1].var: loops[-1].var + 1})
        out.append(Request(load.buffer, normalize(start + tile * share + step)))
    return Requests(last, tuple(out))


def _products(body: Sequence[Stmt], around: tuple[For, ...]) -> Iterator[tuple[For, ...]]:
    """Yield the loops down to each that adds up products in vectors, the last ones first."""
    for s in reversed(body):
        if isinstance(s, For) and s.kind == "serial" and vectors(s.body):
            stores = [t for t in stmts(s.body) if isinstance(t, Store)]
            if all(t.op == "add" and isinstance(t.value, Op) and t.value.op == "mul" for t in stores):
                yield (*around, s)
        elif isinstance(s, For):
            yield from _products(s.body, (*around, s))
        elif isinstance(s, If):
            yield from _products(s.body, around)


def _regions(loops: Sequence[For], body: Sequence[Stmt]) -> dict[Load, int]:
    """Return a load of each argument of which iterations of a loop read one part after the other, and its elements."""
    extents = {s.var: s.static or s.var.bound for s in stmts(body) if isinstance(s, For)}
    own = {s.buffer for s in stmts(body) if isinstance(s, Alloc)}
    known = {*extents, *(loop.var for loop in loops)}
    out: dict[str, tuple[Load, int]] = {}
    for load in loads(body):
        if load.buffer in own or not free_vars(load.index[0]) <= known:
            continue
        size = affine(load.index[0], loops[-1].var) or 0
        inside = free_vars(load.index[0]) & extents.keys()
        steps = {v: affine(load.index[0], v) or 0 for v in inside}
        count = math.prod(extents[v] or 1 for v in inside)
        most = 1 + sum(c * ((extents[v] or 1) - 1) for v, c in steps.items())
        if size * 7 <= most * 8 and most * 7 <= size * 8 and count >= size:
            out[load.buffer] = load, size
    return dict(out.values())


def _steps(path: Sequence[For]) -> int:
    return math.prod(_count(s) for s in path)


def _count(loop: For) -> int:
    return loop.static or loop.var.bound or 1
