"""Software pipelining of rows: what reads one, what computes with the next and what stores the one after that run in
one loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.accesses import redirected
from kernelforge.ir.index import normalize, reads
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    Kernel,
    Load,
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
from kernelforge.ir.schedule.staging import nested
from kernelforge.ir.schedule.steps import each, substituted


def behind(kernel: Kernel, name: str, into: str) -> Kernel:
    """Let the last loop of each iteration of the loop ``name`` wait for the next iteration, and run in its loop
    ``into``: what the one computes and what the other stores then go on at once.

    Legal where iterations are independent (``parallel``), the two loops have one extent, nothing stands behind the last
    one, and it stores to arguments alone. A scalar that it reads is copied before the next iteration makes its own. A
    buffer must be filled by the loop ``into`` alone, each element in the iteration that the last loop reads it in, so
    that the old element is read before the new one is stored.

    The loops of the first iteration, which has none before it, get names of their own, which end with ``_first``.
    """

    def change(loop: For) -> Sequence[Stmt]:
        reason = obstacle(loop, into)
        if reason:
            raise IllegalSchedule(step="behind", target=name, reason=reason)
        at = _position(loop, into)
        allocs = [t for t in loop.body if isinstance(t, Alloc)]
        rest = [t for t in loop.body[:at] if not isinstance(t, Alloc)]
        between = [t for t in loop.body[at + 1 : -1] if not isinstance(t, Alloc)]
        made, last = loop.body[at], loop.body[-1]
        assert isinstance(made, For)
        assert isinstance(last, For)
        assert loop.static is not None
        kept = [s for s in allocs if not s.shape and s.buffer in _read((last,))]
        scalars = {s.buffer: f"{s.buffer}_{name}" for s in kept}
        copies = [Store(scalars[s.buffer], (), Load(s.buffer, (), s.dtype)) for s in kept]
        before = substituted(last.body, {last.var: made.var})
        renamed: dict[Expr, Expr] = {Load(s.buffer, (), s.dtype): Load(scalars[s.buffer], (), s.dtype) for s in kept}
        before = tuple(map_exprs(s, lambda e: substitute(e, renamed)) for s in before)
        first: dict[Expr, Expr] = {
            s.var: Var(f"{s.var.name}_first", "i64", s.var.bound)
            for s in stmts((*rest, made, *between))
            if isinstance(s, For)
        }
        turn = Var(name, "i64", loop.static - 1)
        own: dict[Expr, Expr] = {loop.var: normalize(turn + 1)}
        both = For(
            made.var, made.extent, "serial", (*substituted(before, {loop.var: turn}), *substituted(made.body, own))
        )
        return (
            *allocs,
            *(dataclasses.replace(s, buffer=scalars[s.buffer]) for s in kept),
            *substituted((*rest, made, *between), {loop.var: i64(0), **first}),
            For(
                turn,
                i64(loop.static - 1),
                "serial",
                (*copies, *substituted(rest, own), both, *substituted(between, own)),
            ),
            *substituted((last,), {loop.var: i64(loop.static - 1)}),
        )

    return each(kernel, "behind", name, change)


def early(kernel: Kernel, name: str, first: str, into: str) -> Kernel:
    """Let the loop ``first`` of each iteration of the loop ``name`` run in the loop ``into`` of the iteration before:
    what it reads comes from memory while the other one computes.

    Legal where ``first`` does nothing but combine what no iteration stores into scalars, which are its own and begin as
    constants, and where the loops, and those that stand in them alone, have the same extents. The last iteration, which
    has none after it, makes its own ones again. The loops that stand before the first iteration get names of their own,
    which end with ``_early``.
    """

    def change(loop: For) -> Sequence[Stmt]:
        reason = hindrance(loop, first, into)
        if reason:
            raise IllegalSchedule(step="early", target=name, reason=reason)
        made, host = (loop.body[_position(loop, n)] for n in (first, into))
        assert isinstance(made, For)
        assert isinstance(host, For)
        assert loop.static is not None
        path, around = nested(made), nested(host)
        sums = {s.buffer: s.value.dtype for s in path[-1].body if isinstance(s, Store)}
        renamed = {s: f"{s}_early" for s in sums}
        starts = [s for s in loop.body if isinstance(s, Store) and s.buffer in sums]

        def moved(body: Sequence[Stmt], replace: dict[Expr, Expr]) -> tuple[Stmt, ...]:
            return redirected(substituted(body, replace), set(sums), lambda b, index: (renamed[b], index))

        following = normalize(op("min", loop.var + 1, i64(loop.static - 1)))
        body: list[Stmt] = []
        for s in loop.body:
            if s is made:
                body += [Store(b, (), Load(renamed[b], (), dtype)) for b, dtype in sums.items()]
            elif s is host:
                same: dict[Expr, Expr] = {a.var: b.var for a, b in zip(path, around, strict=True)}
                both = (*around[-1].body, *moved(path[-1].body, {**same, loop.var: following}))
                for outer in reversed(around):
                    both = (dataclasses.replace(outer, kind="serial", body=both),)
                body += [*moved(starts, {}), *both]
            elif s not in starts:
                body.append(s)
        own: dict[Expr, Expr] = {s.var: Var(f"{s.var.name}_early", "i64", s.var.bound) for s in path}
        return (
            *(Alloc(renamed[b], dtype, (), "register") for b, dtype in sums.items()),
            *moved(starts, {}),
            *moved((made,), {loop.var: i64(0), **own}),
            dataclasses.replace(loop, kind="serial", body=tuple(body)),
        )

    return each(kernel, "early", name, change)


def hindrance(loop: For, first: str, into: str) -> str:
    """Return why ``early`` is not legal for two of the loops in a loop, or nothing."""
    here, there = (_position(loop, n) for n in (first, into))
    made, host = loop.body[here], loop.body[there]
    if not 0 <= here < there or not isinstance(made, For) or not isinstance(host, For) or not loop.static:
        return f"there is no loop {first!r} before a loop {into!r}, or it is not known how often they run"
    path, around = nested(made), nested(host)
    if [s.extent for s in path] != [s.extent for s in around] or any(s.kind != "serial" for s in path):
        return "the loops do not have the same extents, or the first one is not serial"
    if not {s.kind for s in around} <= {"serial", "parallel"}:
        return f"{into!r} is neither serial nor parallel"
    if not all(isinstance(s, Store) and s.op and not s.index for s in path[-1].body):
        return f"{first!r} does more than to combine into scalars"
    own = {s.buffer for s in path[-1].body if isinstance(s, Store)}
    if _read((made,)) & {s.buffer for s in stmts(loop.body) if isinstance(s, Store)}:
        return f"what {first!r} reads is stored"
    starts = [k for k, s in enumerate(loop.body) if isinstance(s, Store) and s.buffer in own]
    others = {
        s.buffer
        for k, t in enumerate(loop.body)
        if k not in (here, *starts)
        for s in stmts((t,))
        if isinstance(s, Store)
    }
    constant = all(
        isinstance(s, Store) and not s.op and isinstance(s.value, Const) for s in (loop.body[k] for k in starts)
    )
    between = loop.body[min(starts, default=here) : here]
    if (
        own & others
        or own & _read(between)
        or not constant
        or len(starts) != len(own)
        or max(starts, default=-1) > here
    ):
        return f"what {first!r} makes is not its own"
    return ""


def _position(loop: For, into: str) -> int:
    return next((k for k, s in enumerate(loop.body) if isinstance(s, For) and s.var.name == into), -1)


def obstacle(loop: For, into: str) -> str:
    """Return why ``behind`` is not legal for a loop and one of those in it, or nothing."""
    if loop.kind != "parallel" or (loop.static or 0) < 2:
        return "it is not parallel, or not of several iterations"
    at, last = _position(loop, into), loop.body[-1]
    made = loop.body[at]
    if at < 0 or made is last or not isinstance(made, For) or not isinstance(last, For):
        return f"it does not end with a loop that could run in {into!r}"
    others = [s for k, s in enumerate(loop.body[:-1]) if k != at]
    if made.extent is not last.extent or made.kind != "serial" or last.kind != "parallel":
        return "the loops do not have one extent, or are not a sum and what is made with it"
    if not all(isinstance(s, Store) for s in (*made.body, *last.body)):
        return "the loops do more than to store"
    own = {s.buffer: s for s in others if isinstance(s, Alloc)}
    stored = {s.buffer for s in last.body if isinstance(s, Store)}
    if stored & set(own) or stored & _read(loop.body):
        return "what the last loop stores is read"
    filled = {s.buffer for s in stmts(others) if isinstance(s, Store)}
    for buffer in _read((last,)) & set(own):
        if not own[buffer].shape:
            continue
        indices = [
            e.index for s in last.body for r in exprs(s) for e in walk(r) if isinstance(e, Load) and e.buffer == buffer
        ]
        stores = [() if s.op else s.index for s in made.body if isinstance(s, Store) and s.buffer == buffer]
        if buffer in filled or any(i != (last.var,) for i in indices) or any(i != (made.var,) for i in stores):
            return f"elements of {buffer} are not made where they are read"
    return ""


def _read(body: Sequence[Stmt]) -> set[str]:
    """Return the buffers that statements load."""
    return set().union(*(reads(root) for s in stmts(body) for root in exprs(s)))
