"""What a nest asks memory for while its products compute: what the next iteration around them will read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kernelforge.backends.cpu.ahead import AHEAD, vectors
from kernelforge.dtypes import DTYPES
from kernelforge.ir.index import affine, free_vars, normalize
from kernelforge.ir.kernel import Alloc, Expr, For, If, Load, Op, Stmt, Store, i64, op, stmts, substitute
from kernelforge.ir.schedule.limits import LINE
from kernelforge.ir.schedule.nests import loads

EARLY = 4
"""How many times as fast as they would have to, loops ask that may end early."""

WORK = 2
"""Vectors that a tile of windows combines at least for each line that it asks for."""


SELDOM = 8
"""Steps of a product for each line of the next panel up to which it asks: packing is little beside more."""


class Request(NamedTuple):
    """An element of a buffer, whose line is asked for."""

    buffer: str
    at: Expr


class Tile(NamedTuple):
    """A load, how many of its elements lie side by side, and the loops over the others."""

    load: Load
    length: int
    rows: tuple[For, ...]

    @property
    def lines_in_row(self) -> int:
        return -(-self.length * DTYPES[self.load.dtype].itemsize // LINE)

    @property
    def lines(self) -> int:
        return self.lines_in_row * math.prod(map(_count, self.rows))


class Level(NamedTuple):
    """A loop around a product, or the product's own, and what stands behind it in the same body."""

    loop: For
    rest: Sequence[Stmt]


class Requests(NamedTuple):
    """What a loop asks for in each of its iterations."""

    loop: For
    wanted: tuple[Request, ...]


def requests(loops: Sequence[For], body: Sequence[Stmt], cache: int) -> list[Requests]:
    """Return what products ask for, and windows where there are none.

    Products read what caches hold, while packing, and what follows on a finished tile, read memory as fast as it can,
    one after the other. So products ask for it step by step: each of them for what is read next beside its own tile,
    and the last and longest for the arrays that the next iteration of the loops around will read. Windows that are
    read where they lie ask for those of the next image, or of the rows below.

    Args:
        loops: of the grid, the outermost first.
        body: inside of them.
        cache: bytes of the second-level cache.
    """
    products = list(_products(body, ()))
    longest = max(products, key=_steps, default=())
    out = []
    for path in products:
        wanted = [*_following(loops, body, path, cache)]
        if path is longest and loops:
            wanted += _further(loops, _regions(loops, body, _given(body)), path, cache)
            wanted += _next(loops, body, path, cache)
            wanted += _tiles_behind(loops, body, path, cache)
        if wanted:
            out.append(Requests(path[-1].loop, tuple(wanted)))
    return out if products else _windows(loops, body, cache)


def _following(loops: Sequence[For], body: Sequence[Stmt], path: Sequence[Level], cache: int) -> Iterator[Request]:
    """Yield what the statements behind a product read in the same iteration of the loop around both."""
    depth = max((k for k, level in enumerate(path) if level.rest), default=0)
    around = [*loops, *(level.loop for level in path[:depth])]
    if not around or any(level.loop.static is None for level in path[depth:]):
        return
    rest = path[depth].rest
    for tile in _tiles(rest, around, body):
        yield from _by_lines(tile, rest, path[depth:], cache // 8)


def _next(loops: Sequence[For], body: Sequence[Stmt], path: Sequence[Level], cache: int) -> Iterator[Request]:
    """Yield what the next iteration of the last loop around reads in rows that lie apart, as panels are packed from."""
    if _count(loops[-1]) == 1:
        return
    following: dict[Expr, Expr] = {loops[-1].var: loops[-1].var + 1}
    for tile in _tiles(body, loops, body):
        if tile.rows and _steps(path) <= SELDOM * tile.lines:
            for line in _by_lines(tile, body, path, cache // 4):
                yield line._replace(at=normalize(substitute(line.at, following)))


def _tiles_behind(loops: Sequence[For], body: Sequence[Stmt], path: Sequence[Level], cache: int) -> Iterator[Request]:
    """Yield what the next iteration of the last loop between the grid and a product reads that no other one does."""
    for k in range(len(path) - 1, 0, -1):
        around = (*loops, *(level.loop for level in path[:k]))
        if _count(around[-1]) > 1:
            changing = [loop.var for loop in around if _count(loop) > 1]
            inside = set(loads(around[-1].body))
            once = [e for e in _given(body) if e in inside and all(affine(e.index[0], v) for v in changing)]
            yield from _further(around, _regions(around, around[-1].body, once), path[k:], cache)
            return


def _by_lines(tile: Tile, within: Sequence[Stmt], path: Sequence[Level], most: int) -> Iterator[Request]:
    """Yield the line of a tile of ``most`` bytes that an iteration of nested loops asks for, if each asks for one.

    It asks by the last element that a line may hold: where tiles begin within lines, the first is the last one of the
    tile before.
    """
    elements, steps = LINE // DTYPES[tile.load.dtype].itemsize, _steps(path)
    if tile.lines <= steps and tile.lines * LINE <= most:
        line: Expr = _turn(path) * tile.lines // steps
        part, row = line % tile.lines_in_row * elements + (elements - 1), line // tile.lines_in_row
        part = part if tile.length % elements == 0 else op("min", part, i64(tile.length - 1))
        at: dict[Expr, Expr] = {s.var: i64(0) for s in stmts(within) if isinstance(s, For)}
        for loop in tile.rows:
            at[loop.var], row = row % _count(loop), row // _count(loop)
        yield Request(tile.load.buffer, normalize(substitute(tile.load.index[0], at) + part))


def _tiles(rest: Sequence[Stmt], around: Sequence[For], body: Sequence[Stmt]) -> Iterator[Tile]:
    """Yield loads of arguments of which each iteration around reads a tile of its own."""
    loops, given = [s for s in stmts(rest) if isinstance(s, For)], {*_given(body)}
    for load in dict.fromkeys(loads(rest)):
        if load not in given:
            continue
        moved = free_vars(load.index[0])
        steps = {v: affine(load.index[0], v) for v in moved}
        inside = sorted((s for s in loops if s.var in moved), key=lambda s: abs(steps[s.var] or 0))
        known = {s.var for s in (*around, *inside)}
        if (
            not moved <= known
            or not all(steps.get(loop.var) for loop in around)
            or not all(steps[s.var] and s.static for s in inside)
        ):
            continue
        length, rows = 1, []
        for loop in inside:
            if steps[loop.var] == length:
                length *= _count(loop)
            else:
                rows.append(loop)
        yield Tile(load, length, tuple(rows))


def _windows(loops: Sequence[For], body: Sequence[Stmt], cache: int) -> list[Requests]:
    """Return what the loop that makes tiles of windows asks for: regions of the innermost loop around that has any."""
    chain = (*loops, *max(_tiling(body, ()), key=lambda path: math.prod(map(_count, path)), default=()))
    if not chain or not _makes_tile(chain[-1]):
        return []
    last = chain[-1]
    reading = [e for e in _given(body) if e in loads((last,)) and last.var in free_vars(e.index[0])]
    for k in range(len(chain) - 1, 0, -1):
        if _count(chain[k - 1]) > 1:
            path = [Level(loop, ()) for loop in chain[k:]]
            lines = max(1, _combined(last.body) // WORK)
            wanted = _further(chain[:k], _regions(chain[:k], chain[k : k + 1], reading), path, cache, lines)
            if found := tuple(wanted):
                return [Requests(last, found)]
    return []


def _tiling(body: Sequence[Stmt], around: tuple[For, ...]) -> Iterator[tuple[For, ...]]:
    """Yield the loops down to each that makes tiles."""
    for s in body:
        here = (*around, s) if isinstance(s, For) else around
        if isinstance(s, For) and _makes_tile(s):
            yield here
        elif isinstance(s, For | If):
            yield from _tiling(s.body, here)


def _makes_tile(loop: For) -> bool:
    """Whether each iteration makes a tile of vectors in registers, by combining what it reads."""
    made = [s for s in loop.body if isinstance(s, Alloc) and s.space == "register"]
    return bool(made) and _combined(loop.body) > 0 and vectors([s for s in loop.body if s not in made])


def _combined(body: Sequence[Stmt]) -> int:
    """Return how many vectors are combined."""
    inner = sum(_combined(s.body) * (_count(s) if s.kind == "unroll" else 1) for s in body if isinstance(s, For))
    return inner + sum(isinstance(s, Store) and s.op is not None for s in body)


def _further(
    loops: Sequence[For], wanted: dict[Load, int], path: Sequence[Level], cache: int, lines: int = 1
) -> Iterator[Request]:
    """Yield what the next iteration of the loops around reads, if that leaves room in the cache.

    Args:
        lines: that an iteration of the last loop asks for at most. Those that ask for several are short, and ask for
            what lies far enough ahead.
    """
    nbytes = sum(size * DTYPES[load.dtype].itemsize for load, size in wanted.items())
    if nbytes > cache // 2 or nbytes > LINE * lines * _steps(path):
        return
    last = path[-1].loop
    for load, size in wanted.items():
        itemsize = DTYPES[load.dtype].itemsize
        share = -(-size // _steps(path[:-1]))
        rate = share * (1 if last.static is not None else EARLY)
        step = op("min", i64(share - 1), last.var * rate // _count(last))
        inside = free_vars(load.index[0]) - {loop.var for loop in loops}
        ahead = loops[-1].var + (max(1, AHEAD // (size * itemsize)) if lines > 1 else 1)
        start = substitute(load.index[0], {**dict.fromkeys(inside, i64(0)), loops[-1].var: ahead})
        for line in range(0, -(-share // _count(last)) if lines > 1 else 1, LINE // itemsize):
            yield Request(load.buffer, normalize(start + _turn(path[:-1]) * share + step + line))


def _products(body: Sequence[Stmt], around: tuple[Level, ...]) -> Iterator[tuple[Level, ...]]:
    """Yield the loops down to each that adds up products in vectors, the last ones first."""
    for k, s in reversed([*enumerate(body)]):
        here = (*around, Level(s, body[k + 1 :])) if isinstance(s, For) else around
        if isinstance(s, For) and s.kind == "serial" and vectors(s.body):
            stores = [t for t in stmts(s.body) if isinstance(t, Store)]
            if all(t.op == "add" and isinstance(t.value, Op) and t.value.op == "mul" for t in stores):
                yield here
        elif isinstance(s, For | If):
            yield from _products(s.body, here)


def _given(body: Sequence[Stmt]) -> list[Load]:
    """Return what is loaded from arguments."""
    own = {s.buffer for s in stmts(body) if isinstance(s, Alloc)}
    return [load for load in loads(body) if load.buffer not in own]


def _regions(loops: Sequence[For], body: Sequence[Stmt], reading: Sequence[Load]) -> dict[Load, int]:
    """Return a load of each argument of which iterations of the last loop read one part after the other, perhaps with
    some of the next one or without a rest, and its elements.
    """
    extents = {s.var: s.static or s.var.bound for s in stmts(body) if isinstance(s, For)}
    known = {*extents, *(loop.var for loop in loops)}
    out: dict[str, tuple[Load, int]] = {}
    for load in reading:
        if not free_vars(load.index[0]) <= known:
            continue
        size = affine(load.index[0], loops[-1].var) or 0
        inside = free_vars(load.index[0]) & extents.keys()
        steps = {v: affine(load.index[0], v) or 0 for v in inside}
        count = math.prod(extents[v] or 1 for v in inside)
        most = 1 + sum(c * ((extents[v] or 1) - 1) for v, c in steps.items())
        if 0 < size * 2 <= most * 3 and most * 2 <= size * 3 and count >= size:
            out[load.buffer] = load, size
    return dict(out.values())


def _steps(path: Sequence[Level]) -> int:
    return math.prod(_count(level.loop) for level in path)


def _turn(path: Sequence[Level]) -> Expr:
    """Return how many iterations of nested loops are over."""
    turn: Expr = i64(0)
    for level in path:
        turn = turn * _count(level.loop) + level.loop.var
    return turn


def _count(loop: For) -> int:
    return loop.static or loop.var.bound or 1
