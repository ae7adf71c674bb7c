"""Which lines a loop of vectors asks memory for before it reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import Alloc, For, If, Let, Load, Stmt, Var, stmts
from kernelforge.ir.schedule.nests import allocated, loads

AHEAD = 14 << 10
"""Bytes ahead of their use at which a walk over memory asks for lines: as far as the third-level cache needs to answer
(56 steps of 256 bytes, measured)."""

SEVERAL = 3
"""How many walks at least the first-level cache has to hold that much of, beside what they work on, for lines to come
there and not just into the second (of 32 KB, a layer norm's gradient takes 0.75 of the time so, and none longer)."""

PIECE = AHEAD // 4
"""Bytes side by side from which on the next ones, which lie further away, are asked for while these are read."""

Distances = dict[tuple[Var, str], int]
"""By the variable of the loop that walks and the buffer; what is not in it is not asked for."""


class Walk(NamedTuple):
    """A load in a loop whose body is vectors alone, and the loops around that one, outermost first."""

    load: Load
    loop: For
    around: tuple[For, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The elements between iterations of each loop around, 0 where none or where that varies."""
        return tuple(abs(affine(self.load.index[0], f.var) or 0) for f in self.around)

    @property
    def goes_on(self) -> bool:
        """Whether what lies ``AHEAD`` is read soon: in this loop, or in the next round, which begins where it ends."""
        return self.piece >= AHEAD or self.following <= 2 * self.piece

    @property
    def piece(self) -> int:
        """How many bytes side by side one round of the loop reads."""
        length = abs(affine(self.load.index[0], self.loop.var) or 0) * (self.loop.static or 1)
        return length * DTYPES[self.load.dtype].itemsize

    @property
    def following(self) -> int:
        """How many bytes further the next round begins; 0 where there is none."""
        return next((s for s in reversed(self.steps) if s), 0) * DTYPES[self.load.dtype].itemsize

    @property
    def rows(self) -> tuple[int, int]:
        """How many rows behind each other an unrolled loop inside of this one reads side by side, and the elements from
        one to the next; 1 and 0 where it reads one row.
        """
        length = (affine(self.load.index[0], self.loop.var) or 0) * (self.loop.static or 1)
        for s in stmts(self.loop.body):
            step = affine(self.load.index[0], s.var) or 0 if isinstance(s, For) and s.kind == "unroll" else 0
            if isinstance(s, For) and 0 < length <= step < 2 * length:
                return s.static or 1, step
        return 1, 0

    def nbytes(self, shared: int) -> int:
        """Return how much is read in an iteration of the ``shared`` outermost loops."""
        loops = (*self.around[shared:], self.loop, *(s for s in stmts(self.loop.body) if isinstance(s, For)))
        return math.prod(f.static or 1 for f in loops) * DTYPES[self.load.dtype].itemsize


def distances(loops: Sequence[For], body: Sequence[Stmt], cache: int) -> Distances:
    """Return how many bytes further each walk asks for lines.

    Of several passes over a row that the cache holds, the last one asks: it computes or stores most, and memory would
    have nothing to read; asking in a first pass that only reads gained nothing where it was measured. It asks for the
    next row, where the cache has room for it beside this one and what is kept, or for what lies a little further, if
    that is read next. A single pass over pieces that lie apart asks for the next piece. What no loop around changes is
    in the cache. Of rows behind each other that are read side by side and once, it asks for those behind them all,
    where a quarter of the cache has room for them: what lies a little further in one is read in the next.

    Args:
        loops: of the grid, the outermost first.
        body: inside of them.
        cache: bytes of the second-level cache.
    """
    room = cache * 7 // 8 - sum(allocated(s) for s in stmts(body) if isinstance(s, Alloc) and s.space == "local")
    out: Distances = {}
    # what another walk of a loop reads once is what memory is asked for
    for passes in sorted(walks(loops, body), key=len, reverse=True):
        for k, ahead in _passes(passes, room).items():
            at = (k, passes[0].load.buffer)
            out[at] = ahead if out.get(at, ahead) == ahead else ahead or AHEAD
    return {at: ahead for at, ahead in out.items() if ahead}


def locality(cache: int) -> int:
    """Return how near lines come, as ``llvm.prefetch`` counts it: 3 into the first-level cache, 2 into the second.

    Args:
        cache: bytes of the first-level cache.
    """
    return 3 if cache >= SEVERAL * AHEAD else 2


def walks(loops: Sequence[For], body: Sequence[Stmt]) -> list[list[Walk]]:
    """Return the walks of a phase, those over the same elements together, in order."""
    found: dict[tuple[object, ...], list[Walk]] = {}
    for walk in _of(loops[-1], tuple(loops[:-1])) if loops and vectors(body) else _walks(body, tuple(loops)):
        found.setdefault((walk.load.buffer, *sorted(walk.steps)), []).append(walk)
    return list(found.values())


def vectors(body: Sequence[Stmt]) -> bool:
    """Whether a loop's body is loops in lanes, or tiles of them, and nothing else but names."""
    found = [s for s in body if not isinstance(s, Let)]
    return bool(found) and all(isinstance(s, For) and s.kind in {"unroll", "vector"} for s in found)


def _walks(body: Sequence[Stmt], around: tuple[For, ...]) -> Iterator[Walk]:
    for s in body:
        if isinstance(s, For) and vectors(s.body):
            yield from _of(s, around)
        elif isinstance(s, For | If):
            yield from _walks(s.body, (*around, s) if isinstance(s, For) else around)


def _of(loop: For, around: tuple[For, ...]) -> Iterator[Walk]:
    for load in loads(loop.body):
        if len(load.index) == 1 and loop.var in free_vars(load.index[0]):
            walk = Walk(load, loop, around)
            if not walk.rows[1] or all(walk.steps):
                yield walk


def _passes(passes: Sequence[Walk], room: int) -> dict[Var, int]:
    """Return the distance of each of the walks that go over the same elements."""
    first = passes[0].around
    shared = _shared(passes)
    if first and not any(passes[0].steps):
        return {p.loop.var: 0 for p in passes}
    rows, step = passes[0].rows
    if step:
        together = rows * step * DTYPES[passes[0].load.dtype].itemsize
        ahead = -(-AHEAD // together) * together if 4 * together <= room else AHEAD
        return {p.loop.var: ahead for p in passes}
    again = any(not step for p in passes for step in p.steps[shared:])
    most = row_bytes(passes)
    whole = list(dict.fromkeys(p.loop.var for p in passes if 2 * p.nbytes(shared) > most))
    step = next((s for s in reversed(passes[0].steps[:shared]) if s), 0) * DTYPES[passes[0].load.dtype].itemsize
    near = AHEAD if again or all(p.goes_on for p in passes) else 0
    if len(passes) == 1 and not near and passes[0].piece >= PIECE:
        near = passes[0].following
    if again or len(whole) < 2 or most > room:
        return {p.loop.var: near for p in passes}
    ahead = step if step and most > AHEAD and 2 * most <= room else near
    return {p.loop.var: ahead if p.loop.var == whole[-1] else 0 for p in passes}


def row_bytes(passes: Sequence[Walk]) -> int:
    """Return how much lies in a row that several passes go over."""
    shared = _shared(passes)
    return max(p.nbytes(shared) for p in passes)


def _shared(passes: Sequence[Walk]) -> int:
    """Return how many of the outermost loops are around all passes."""
    first = passes[0].around
    return sum(all(p.around[k : k + 1] == first[k : k + 1] for p in passes) for k in range(len(first)))
