"""What is done about arguments that begin between lines of the cache, as all large arrays of NumPy do.

Each of their vectors that is as long as a line lies in two. A load of it from the first-level cache takes a second
cycle; one that has to wait for lower levels takes far longer than two of half that length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernelforge.backends.cpu.ahead import Distances, row_bytes, walks
from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import free_vars
from kernelforge.ir.kernel import Arg, Const, For, Stmt, Var, stmts
from kernelforge.ir.schedule.nests import loads

Halved = frozenset[tuple[Var, str]]
"""By the variable of the loop that walks and the buffer."""

COPIED = 16 << 10
"""Bytes of arguments that a phase copies at most: a third of the first-level cache."""
ROWS = 16
"""Rows from which on copying pays that each of them reads."""


def halved(loops: Sequence[For], body: Sequence[Stmt], asked: Distances, cache: int) -> Halved:
    """Return the walks that read vectors by halves: the first of several passes over a row that the first-level cache
    holds, where a later one asks for lines.

    What a pass asks for itself has arrived when it reads it, and later passes find all in that cache. (A layer norm of
    16 MB took 1.3 to 2.8 times as long between lines and takes 1.01 to 1.1 with this and copies; on lines 1 % more at
    most. Longer rows gain less, and halves cost a batch norm on lines 7 %.)

    Args:
        loops: of the grid, the outermost first.
        body: inside of them.
        asked: which walks ask for lines.
        cache: bytes of the first-level cache.
    """
    return frozenset(
        (passes[0].loop.var, passes[0].load.buffer)
        for passes in walks(loops, body)
        if (passes[0].loop.var, passes[0].load.buffer) not in asked
        and any((p.loop.var, p.load.buffer) in asked for p in passes)
        and row_bytes(passes) <= cache
    )


def copied(loops: Sequence[For], body: Sequence[Stmt], args: Sequence[Arg]) -> list[tuple[Arg, int]]:
    """Return the small arguments that each row of a phase reads whole, with how many rows an iteration has.

    Copies of them that begin at a line serve all rows of a thread.
    """
    outer = {loop.var for loop in loops}
    found: dict[tuple[str, int], int] = {}
    for first, *_ in walks(loops, body):
        inner = [first.loop, *(s for s in stmts(first.loop.body) if isinstance(s, For))]
        if not any(first.steps):
            rows = math.prod(f.static or 1 for f in first.around[len(loops) :])
            found[first.load.buffer, math.prod(f.static or 1 for f in inner)] = rows
    varying = {e.buffer for e in loads(body) if not outer.isdisjoint(free_vars(e.index[0]))}
    out: list[tuple[Arg, int]] = []
    room = COPIED
    for arg in args:
        size = int(arg.size.value) if isinstance(arg.size, Const) else 0
        nbytes = size * DTYPES[arg.dtype].itemsize
        if arg.mode == "in" and (arg.name, size) in found and arg.name not in varying and nbytes <= room:
            room -= nbytes
            out.append((arg, found[arg.name, size]))
    return out
