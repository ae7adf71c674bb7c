"""Steps that keep what was computed: in a buffer filled ahead of its uses, or copied out of registers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.accesses import reallocated, redirected
from kernelforge.ir.index import affine, flatten, free_vars, normalize, reads
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Space,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    select,
    stmts,
    substitute,
    walk,
)
from kernelforge.ir.schedule.steps import each, substituted
from kernelforge.ir.schedule.windows import Axis, slides
from kernelforge.ir.types import row_major


def stage(kernel: Kernel, expr: Expr, at: str, by: Sequence[str | tuple[str, str]], space: Space, name: str) -> Kernel:
    """Compute ``expr`` once for each iteration of the loops ``by`` into the buffer ``name``, and read it from there.

    A pair in ``by`` are loops that slide over each other, as positions and elements of a window: the buffer has one
    axis for their sum, so that what windows share is computed once.

    The buffer is filled in the body of the loop ``at`` (of the kernel, for ``at=""``), right before the first statement
    with ``expr``. Loop nests beside it that have the extents of ``by`` and compute the same read the buffer, too.

    Packing, tiling, common sub-expressions and what several passes over a row share are this one step. Legal when
    nothing that ``expr`` loads is written from there on and its variables that are bound inside of ``at`` are among
    ``by``. Elements whose index a guard keeps out are padded with 0 if they might be out of range, so whatever reads
    the buffer must stand under the same guards.
    """

    def fail(reason: str) -> IllegalSchedule:
        return IllegalSchedule(step="stage", target=name, reason=reason)

    sources = {e.buffer for e in walk(expr) if isinstance(e, Load)}
    named = {n for b in by for n in ((b,) if isinstance(b, str) else b)}

    done = False

    def fill(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        nonlocal done
        first = next((k for k, s in enumerate(body) if _holds((s,), expr)), None)
        if first is None:
            return body
        done = True
        before, body = body[:first], body[first:]
        if any(isinstance(s, Store) and s.buffer in sources for s in stmts(body)):
            raise fail("a buffer that it loads is written there")
        inside = {s.var.name: s for s in stmts(body) if isinstance(s, For)}
        if any(v.name in inside and v.name not in named for v in free_vars(expr)):
            raise fail("it depends on a loop that is not listed")
        plain = [b for b in by if isinstance(b, str)]
        paired = named.difference(plain)
        nest_ = [inside[v] for v in plain]

        def bounding(guards: Sequence[Expr], listed: Sequence[str] = plain) -> dict[Expr, None]:
            """Return those of the guards that the loops listed decide, in order, each once."""
            return {g: None for g in guards if all(v.name not in inside or v.name in listed for v in free_vars(g))}

        found = list(_guards(body, expr))
        if any(v.name in paired for guards in found for g in guards for v in free_vars(g)):
            raise fail("a guard hangs on one of a pair of loops")
        mine, *others = map(bounding, found)
        if any(other.keys() != mine.keys() for other in others):
            raise fail("it is wanted under different guards")
        fresh: dict[Expr, Expr] = {s.var: Var(f"{name}_{s.var.name}", "i64", s.var.bound) for s in nest_}
        value: Expr = expr
        axes: list[Axis] = []
        for b in by:
            if isinstance(b, str):
                loop, var = inside[b], fresh[inside[b].var]
                assert isinstance(var, Var)
                axes.append(Axis(var, loop.extent, loop.var))
                continue
            slide = slides(expr, inside[b[0]], inside[b[1]])
            if slide is None:
                raise fail(f"{' and '.join(b)} do not slide over each other")
            value, made = slide.axes(value, name)
            axes = [*made[:-1], *axes, made[-1]]
        for g in mine:
            value = select(g, value, 0)
        shape = tuple(i64(a.var.bound) if a.var.bound is not None else a.extent for a in axes)
        filled: Stmt = Store(name, tuple(a.var for a in axes), normalize(substitute(value, fresh)))
        for a in reversed(axes):
            filled = For(a.var, normalize(substitute(a.extent, fresh)), "parallel", (filled,))
        rest = []
        for stmt in body:
            memo: dict[Expr, Expr] = {}
            held: dict[Expr, Expr] = {expr: Load(name, tuple(a.read for a in axes), expr.dtype)}
            path = nested(stmt)[: len(nest_)]
            if not paired and [s.extent for s in path] == [s.extent for s in nest_]:
                same: dict[Expr, Expr] = {s.var: p.var for s, p in zip(nest_, path, strict=True)}
                twin, theirs = normalize(substitute(expr, same)), {substitute(g, same) for g in mine}
                along = [p.var.name for p in path]
                if all(bounding(guards, along).keys() == theirs for guards in _guards((stmt,), twin)):
                    held[twin] = Load(name, tuple(p.var for p in path), expr.dtype)
            rest.append(map_exprs(stmt, lambda e: substitute(e, held, memo)))  # noqa: B023
        return (*before, Alloc(name, expr.dtype, shape, space), filled, *rest)

    if at:
        made = each(kernel, "stage", at, lambda loop: (dataclasses.replace(loop, body=fill(loop.body)),))
    else:
        made = dataclasses.replace(kernel, body=fill(kernel.body))
    if not done:
        raise fail("nothing computes it there")
    return made


def store_after(kernel: Kernel, buffer: str, at: str, by: Sequence[str], name: str) -> Kernel:
    """Keep what the loops ``by`` store to ``buffer`` in the local buffer ``name``, and copy it when they have ended.

    They stand in the body of the loop ``at``. The copying loops are named as they are, with ``name`` before, and walk
    as memory does. Legal when each iteration stores an element of its own, which nothing there reads.
    """
    done = False

    def fill(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        nonlocal done
        found = [(k, t) for k, s in enumerate(body) for t in stmts((s,)) if isinstance(t, Store) and t.buffer == buffer]
        inside = {s.var.name: s for s in stmts(body) if isinstance(s, For)}
        if not found or not set(by) <= inside.keys():
            return body
        done = True
        (k, store), walked = found[0], [inside[v] for v in by]
        steps = [sum(affine(i, s.var) or 0 for i in store.index) for s in walked]
        reach = 1
        for step, n in sorted((abs(c), s.static or 0) for c, s in zip(steps, walked, strict=True)):
            reach = 1 + step * (n - 1) if step >= reach and n else 0
        read = any(buffer in reads(e) for s in stmts(body) for e in exprs(s))
        others = {s.var for s in inside.values()} - {s.var for s in walked}
        if len(found) > 1 or store.op or read or not reach or others & free_vars(store.index[0]) or store.index[1:]:
            reason = "it is read, or not stored once by each iteration of the loops"
            raise IllegalSchedule(step="store_after", target=buffer, reason=reason)
        fresh = [Var(f"{name}_{s.var.name}", "i64", s.static) for s in walked]
        along = [v if c > 0 else (s.static or 0) - 1 - v for v, c, s in zip(fresh, steps, walked, strict=True)]
        place = substitute(store.index[0], {s.var: a for s, a in zip(walked, along, strict=True)})
        kept = Load(name, tuple(normalize(a) for a in along), store.value.dtype)
        copy: Stmt = Store(buffer, (normalize(place),), kept)
        for s, v in zip(reversed(walked), reversed(fresh), strict=True):
            copy = For(v, s.extent, "parallel", (copy,))
        own = Store(name, tuple(s.var for s in walked), store.value)
        made = Alloc(name, store.value.dtype, tuple(s.extent for s in walked), "local")
        return (*body[:k], made, _exchanged(body[k], store, own), copy, *body[k + 1 :])

    kernel = each(kernel, "store_after", at, lambda loop: (dataclasses.replace(loop, body=fill(loop.body)),))
    if not done:
        raise IllegalSchedule(step="store_after", target=buffer, reason="no such loops store to it")
    return kernel


def _exchanged(stmt: Stmt, old: Stmt, new: Stmt) -> Stmt:
    if isinstance(stmt, For | If):
        return dataclasses.replace(stmt, body=tuple(_exchanged(s, old, new) for s in stmt.body))
    return new if stmt is old else stmt


def _holds(body: Sequence[Stmt], expr: Expr) -> bool:
    return any(e is expr for s in stmts(body) for r in exprs(s) for e in walk(r))


def _guards(body: Sequence[Stmt], expr: Expr) -> Iterator[tuple[Expr, ...]]:
    """Yield, for each statement that computes ``expr``, the conditions it stands under."""
    for s in body:
        if any(e == expr for r in exprs(s) for e in walk(r)):
            yield ()
        if isinstance(s, For | If):
            own = (s.cond,) if isinstance(s, If) else ()
            yield from ((*own, *guards) for guards in _guards(s.body, expr))


def nested(stmt: Stmt) -> list[For]:
    """Return the loops that stand directly in each other, outermost first."""
    found: list[For] = []
    while isinstance(stmt, For):
        found.append(stmt)
        if len(stmt.body) != 1:
            break
        (stmt,) = stmt.body
    return found


def copy_out(kernel: Kernel, buffer: str, name: str) -> Kernel:
    """Copy the register buffer ``buffer`` to the local buffer ``name`` after the last statement that writes it, and
    read it from there.

    The copying loops are named as the writing ones, and the reading ones get names that start with ``name``: these need
    not be unrolled, as those over registers must be. Legal because nothing changes what was copied.
    """

    def visit(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        made = next((s for s in body if isinstance(s, Alloc) and s.buffer == buffer), None)
        if made is None:
            inner = (dataclasses.replace(s, body=visit(s.body)) if isinstance(s, For | If) else s for s in body)
            return tuple(inner)
        last, store = [
            (k, t) for k, s in enumerate(body) for t in stmts((s,)) if isinstance(t, Store) and t.buffer == buffer
        ][-1]
        walked = [s for s in stmts((body[last],)) if isinstance(s, For) and s.var in store.index]
        if {s.var for s in walked} != set(store.index):
            reason = "it is not written one element for each iteration"
            raise IllegalSchedule(step="copy_out", target=buffer, reason=reason)
        filled: Stmt = Store(name, store.index, Load(buffer, store.index, made.dtype))
        for loop in reversed(walked):
            filled = For(loop.var, loop.extent, "parallel", (filled,))
        rest = body[last + 1 :]
        fresh: dict[Expr, Expr] = {s.var: Var(f"{name}_{s.var.name}", "i64", s.var.bound) for s in walked}
        rest = tuple(map_exprs(s, lambda e: _reading(e, buffer, name)) for s in substituted(rest, fresh))
        return (*body[: last + 1], dataclasses.replace(made, buffer=name, space="local"), filled, *rest)

    return dataclasses.replace(kernel, body=visit(kernel.body))


def _reading(expr: Expr, old: str, new: str) -> Expr:
    """Read ``new`` where ``expr`` reads ``old``."""
    found = [e for e in walk(expr) if isinstance(e, Load) and e.buffer == old]
    return substitute(expr, {e: Load(new, e.index, e.dtype) for e in found})


def pad(kernel: Kernel, buffer: str, axes: int, extra: int) -> Kernel:
    """Lay a local buffer out as rows, one for each index of its first ``axes``, that are ``extra`` elements longer.

    Legal because each element keeps a place of its own.
    """
    made = next((s for s in stmts(kernel.body) if isinstance(s, Alloc) and s.buffer == buffer), None)
    extents = tuple(int(n.value) for n in made.shape if isinstance(n, Const)) if made is not None else ()
    if made is None or made.space != "local" or len(extents) < len(made.shape) or not 0 < axes < len(extents):
        raise IllegalSchedule(step="pad", target=buffer, reason="it is no local buffer of constant rows")
    outer, inner = row_major(extents[:axes]), row_major(extents[axes:])
    shape = i64(math.prod(extents[:axes])), i64(math.prod(extents[axes:]) + extra)

    def at(_: str, index: tuple[Expr, ...]) -> tuple[str, tuple[Expr, ...]]:
        return buffer, (flatten(index[:axes], outer), flatten(index[axes:], inner))

    body = redirected(kernel.body, {buffer}, at)
    return dataclasses.replace(kernel, body=reallocated(body, buffer, shape=shape))
