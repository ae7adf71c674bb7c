"""Walks: how the statements of a row fall into passes over its columns, block by block, so that no row is held whole.

A buffer of columns is filled element by element and read at the column that is being walked through. What reduces
columns is known after a walk through all of them; whoever needs it belongs to a later walk, in which what it reads of
columns is computed once more. Sums that are relative to a maximum go along with it (``online``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from kernelforge.dtypes import FLOATS
from kernelforge.ir.demand import Refused
from kernelforge.ir.index import normalize, reads
from kernelforge.ir.kernel import Alloc, Const, Expr, For, Load, Stmt, Store, exprs, stmts, substitute, walk
from kernelforge.ir.online import Running, Scaled

NARROW = 256
"""Elements of a row, besides its columns, that a block of rows holds at most."""

SHALLOW = 256
"""Products of an element that a walk may sum; more are summed by a kernel of their own, which has a work-group for each
tile of rows and columns, and stored."""

Form = Literal["fill", "sum", "sums", "store", ""]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A statement of a row.

    Attributes:
        form: what it does with columns: it fills a buffer of them, sums them (or reduces them otherwise) into one
            element or into several, stores them, or none of these.
        level: the walk it belongs to, or after which it stands; that of a fill is given by who reads it.
        loop: the one over columns.
        running: the maximum that it finds or, where ``scaled`` is what it sums, goes along with.
    """

    stmt: Stmt
    form: Form
    level: int = 0
    loop: For | None = None
    running: Running | None = None
    scaled: Scaled | None = None

    def grown(self, total: Expr) -> Expr:
        """Return what has been summed, for the maximum that a block of columns has made of the last one."""
        assert self.running is not None
        assert self.scaled is not None
        for shift in self.scaled.shifts:
            total = total * self.running.growth(shift)
        return total


@dataclasses.dataclass(frozen=True, slots=True)
class Walk:
    """The statements of a row but its allocations, in order; ``columns`` are the buffers of ``extent`` columns."""

    steps: tuple[Step, ...]
    columns: frozenset[str]
    extent: int

    @property
    def levels(self) -> int:
        return max(s.level for s in self.steps)

    @property
    def maxima(self) -> list[Running]:
        """Those that sums go along with."""
        found = [s.running for s in self.steps if s.running is not None and s.scaled is None]
        return [m for m in found if any(s.running is m and s.scaled is not None for s in self.steps)]

    def wanted(self, level: int) -> list[Step]:
        """Return what a walk does: the reductions and stores of its level, and the fills that those read.

        They sum and fill the factors that go along with a maximum; and what a fill makes is not made twice.
        """
        own = {k for k, s in enumerate(self.steps) if s.form in ("sum", "sums", "store") and s.level == level}
        need = {b for k in own for b in _read(self.steps[k].stmt)}
        for k in reversed(range(len(self.steps))):
            stored = {t.buffer for t in stmts((self.steps[k].stmt,)) if isinstance(t, Store)} & self.columns
            if self.steps[k].form == "fill" and stored & need:
                own.add(k)
                need |= _read(self.steps[k].stmt)
        return _once([self._factor(self.steps[k], level) for k in sorted(own)])

    def _factor(self, step: Step, level: int) -> Step:
        if step.scaled is not None:
            return _valued(step, step.scaled.term)
        fills = [m.fills for m in self.maxima if m.level == level] if step.form == "fill" else []
        store = _combined(step)
        return next((_valued(step, f[store.buffer].term) for f in fills if store and store.buffer in f), step)


def found(body: Sequence[Stmt]) -> Walk:
    """Read what a nest does for a row as walks through its columns.

    Raises:
        Refused: where it is no such thing, or one that a block of rows has no room or time for.
    """
    local = {s.buffer for s in body if isinstance(s, Alloc) and s.shape}
    columns, extent = _columns(body, local)
    narrow = sum(_size(s) for s in body if isinstance(s, Alloc) and s.buffer not in columns)
    if narrow > NARROW:
        raise Refused(f"a row holds {narrow:,} elements besides its columns")
    steps: list[Step] = []
    known: dict[str, int] = {}
    maxima: list[Running] = []
    for stmt in body:
        if isinstance(stmt, Alloc):
            continue
        needed = max((known.get(b, 0) for b in _read(stmt)), default=0)
        loop = _loop(stmt, columns, extent)
        form = _form(stmt, loop, columns)
        step = Step(stmt, form, needed + (form in ("sum", "sums", "store")), loop)
        if loop is not None:
            step = _along(step, loop, maxima, known)
        for s in stmts((stmt,)):
            if isinstance(s, Store):
                known[s.buffer] = max(known.get(s.buffer, 0), step.level)
        steps.append(step)
    made = Walk(tuple(steps), columns, extent)
    if any(s.form == "fill" and _depth(s) > SHALLOW for s in steps):
        raise Refused("a long contraction keeps more work-groups busy in a kernel of its own")
    return made


def _along(step: Step, loop: For, maxima: list[Running], known: Mapping[str, int]) -> Step:
    """Let a sum go along with one of the ``maxima`` where it can; note what else tells of them."""
    combine = next((s for s in loop.body if isinstance(s, Store)), None)
    if combine is None:
        return step
    if step.form == "sum" and combine.op == "max" and combine.value.dtype in FLOATS:
        found = Load(combine.buffer, (), combine.value.dtype)
        maxima.append(Running(found, combine.value, loop.var, step.level, known))
        return dataclasses.replace(step, running=maxima[-1])
    if step.form == "fill" and len(loop.body) == 1:
        for running in maxima:
            scaled = running.scaled(combine.value, loop.var)
            if scaled is not None:
                running.fills[combine.buffer] = scaled
    if step.form in ("sum", "sums") and combine.op == "add":
        for running in maxima:
            scaled = running.scaled(combine.value, loop.var)
            if scaled is not None and scaled.shifts and scaled.fits(combine.value.dtype):
                return dataclasses.replace(step, level=running.level, running=running, scaled=scaled)
    return step


def _columns(body: Sequence[Stmt], local: set[str]) -> tuple[frozenset[str], int]:
    """Find the buffers of columns: the one that is reduced first, and all that are used along with it."""
    first = next(
        (
            (e.buffer, s.static)
            for s in stmts(body)
            if isinstance(s, For) and s.kind == "serial"
            for e in _loads(s)
            if e.buffer in local and e.index == (s.var,)
        ),
        None,
    )
    if first is None or first[1] is None:
        raise Refused("nothing reduces what it makes of a row")
    found, extent = {first[0]}, first[1]
    along = [
        {e.buffer for e in _loads(s) if e.index == (s.var,)}
        | {t.buffer for t in stmts(s.body) if isinstance(t, Store) and t.index == (s.var,)}
        for s in stmts(body)
        if isinstance(s, For) and s.static == extent
    ]
    while more := {b for a in along if a & found for b in a & local} - found:
        found |= more
    return frozenset(found), extent


def _loop(stmt: Stmt, columns: frozenset[str], extent: int) -> For | None:
    """Return the loop over columns in a statement of a row."""
    used = [e for e in _loads(stmt) if e.buffer in columns]
    used += [Load(s.buffer, s.index, "") for s in stmts((stmt,)) if isinstance(s, Store) and s.buffer in columns]
    if not used:
        return None
    loops = [s for s in stmts((stmt,)) if isinstance(s, For) and s.static == extent and used[0].index == (s.var,)]
    if len(loops) != 1 or any(e.index != used[0].index for e in used):
        raise Refused("it uses several columns at once")
    return loops[0]


def _form(stmt: Stmt, loop: For | None, columns: frozenset[str]) -> Form:
    if loop is None:
        return ""
    stores = [s for s in stmts((stmt,)) if isinstance(s, Store)]
    if loop is stmt and loop.kind == "parallel":
        last = stores[-1]
        if last.buffer in columns:
            return "fill"
        if not last.op and len(stores) == 1:
            return "store"
    if loop.kind == "serial" and len(loop.body) == 1 and loop.body[0] in stores:
        if loop is stmt and not stores[0].index:
            return "sum"
        inner: Sequence[Stmt] = (stmt,)
        while len(inner) == 1 and isinstance(inner[0], For):
            inner = inner[0].body
        if len(inner) == 4 and inner[2] is loop and isinstance(inner[3], Store) and isinstance(inner[3].value, Load):
            return "sums"
    raise Refused("it does something else with columns than to fill, to reduce or to store them")


def _combined(step: Step) -> Store | None:
    """Return the Store into what a step fills or sums, where that is all that its loop over columns does."""
    body = step.loop.body if step.loop is not None else ()
    return body[0] if len(body) == 1 and isinstance(body[0], Store) else None


def _valued(step: Step, value: Expr) -> Step:
    """Let a step fill or sum something else."""
    store, old = _combined(step), step.loop
    assert store is not None
    assert old is not None
    new = dataclasses.replace(old, body=(dataclasses.replace(store, value=value),))

    def visit(s: Stmt) -> Stmt:
        if s is old:
            return new
        return dataclasses.replace(s, body=tuple(map(visit, s.body))) if isinstance(s, For) else s

    return dataclasses.replace(step, stmt=visit(step.stmt), loop=new)


def _once(steps: Sequence[Step]) -> list[Step]:
    """Let sums read what a later fill makes, too, which then comes first."""
    out = list(steps)
    for fill in [s for s in steps if s.form == "fill"]:
        made = _combined(fill)
        if made is None or fill.loop is None:
            continue
        for k, step in enumerate(out[: out.index(fill)]):
            summed = _combined(step)
            if step.form != "sum" or summed is None or step.loop is None or summed.op != "add":
                continue
            there = substitute(made.value, {fill.loop.var: step.loop.var})
            between = out[k : out.index(fill)]
            stored = {t.buffer for s in between for t in stmts((s.stmt,)) if isinstance(t, Store)}
            if normalize(there) is normalize(summed.value) and not stored & _read(fill.stmt):
                out.remove(fill)
                load = Load(made.buffer, (step.loop.var,), made.value.dtype)
                out[k : k + 1] = [fill, _valued(step, load)]
                break
    return out


def _read(stmt: Stmt) -> set[str]:
    found: set[str] = set()
    for s in stmts((stmt,)):
        for r in exprs(s):
            found |= reads(r)
    return found


def _loads(stmt: Stmt) -> Iterator[Load]:
    for s in stmts((stmt,)):
        for r in exprs(s):
            yield from (e for e in walk(r) if isinstance(e, Load))


def _size(alloc: Alloc) -> int:
    return math.prod(int(n.value) for n in alloc.shape if isinstance(n, Const))


def _depth(step: Step) -> int:
    return math.prod(s.static or 1 for s in stmts((step.stmt,)) if isinstance(s, For) and s.kind == "serial")
