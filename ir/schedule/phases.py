"""Steps over whole nests at the top of a kernel: one nest in two phases, and several nests in one launch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import bounds, normalize
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
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
)  # fmt: skip
from kernelforge.ir.schedule.nests import loads
from kernelforge.ir.schedule.staging import nested
from kernelforge.ir.schedule.steps import single_store


def spread(kernel: Kernel, nest: For, reductions: dict[str, int], suffix: str) -> Kernel:
    """Share the reduction loops of a top-level nest among parallel workers, in two phases.

    ``reductions`` gives for each reduction, by one of its loops, how many iterations of that a worker takes. The first
    phase fills a global buffer of partial results, the second is ``nest`` reading it. Legal because reductions may be
    reassociated, where the loops combine into a scalar register and do not depend on one another.
    """
    parallel: list[For] = []
    body: Sequence[Stmt] = (nest,)
    while len(body) == 1 and isinstance(body[0], For) and body[0].kind == "parallel":
        parallel.append(body[0])
        body = body[0].body
    starts = {s.buffer: s.value for s in body if isinstance(s, Store) and not s.op}
    first: list[Stmt] = []
    second: list[Stmt] = []
    for stmt in body:
        path = nested(stmt)
        shared = next((s for s in path if s.var.name in reductions), None)
        if shared is None:
            second.append(stmt)
            continue
        name, store = shared.var.name, single_store(path[-1].body)
        if store is None or not store.op or store.index or shared.static is None or path[-1].body != (store,):
            raise IllegalSchedule(step="spread", target=name, reason="it is not one store combining into a scalar")
        if any(isinstance(e, Load) and e.buffer in starts for e in walk(store.value)):
            raise IllegalSchedule(step="spread", target=name, reason="it reads another reduction's result")
        size = reductions[name]
        count = -(-shared.static // size)
        partial = f"{store.buffer}{suffix}"
        worker = Var(f"{name}{suffix}", "i64", count)
        own, held = f"{store.buffer}{suffix}w", tuple(p.var for p in parallel)
        walked = Var(name, "i64", size)
        extent = normalize(op("min", i64(size), i64(shared.static) - worker * size))
        walk_: Stmt = Store(own, (), normalize(substitute(store.value, {shared.var: worker * size + walked})), store.op)
        for loop in reversed(path):
            walk_ = (
                For(walked, extent, "serial", (walk_,)) if loop is shared else dataclasses.replace(loop, body=(walk_,))
            )
        made: tuple[Stmt, ...] = (
            Alloc(own, store.value.dtype, (), "register"),
            Store(own, (), starts[store.buffer]),
            walk_,
            Store(partial, (worker, *held), Load(own, (), store.value.dtype)),
        )
        for p in reversed(parallel):
            made = (dataclasses.replace(p, body=made),)
        shape = (i64(count), *(p.extent for p in parallel))
        first += [Alloc(partial, store.value.dtype, shape, "global"), For(worker, i64(count), "parallel", made)]
        total = Store(store.buffer, (), Load(partial, (worker, *held), store.value.dtype), store.op)
        second.append(For(worker, i64(count), "serial", (total,)))
    rest: tuple[Stmt, ...] = tuple(second)
    for p in reversed(parallel):
        rest = (dataclasses.replace(p, body=rest),)
    made_body = tuple(t for s in kernel.body for t in ((*first, *rest) if s is nest else (s,)))
    return dataclasses.replace(kernel, body=made_body)


def obstacle(kernel: Kernel) -> str:
    """Return why ``join`` cannot make one loop of a kernel, or nothing."""
    nests = [s for s in kernel.body if isinstance(s, For)]
    if len(nests) < 2 or len(nests) != len(kernel.body):
        return "it is not several loops"
    written = [{t.buffer for t in stmts((s,)) if isinstance(t, Store)} for s in nests]
    for k, s in enumerate(nests):
        touched = written[k] | {e.buffer for t in stmts((s,)) for r in exprs(t) for e in walk(r) if isinstance(e, Load)}
        for j, other in enumerate(nests):
            if j != k and not all(_apart(s, other, b) for b in touched & written[j]):
                return "a nest touches what another one writes"
    if not all(s.kind == "grid" and s.static is not None for s in nests):
        return "a nest is not a grid loop of constant extent"
    return ""


def _apart(a: For, b: For, buffer: str) -> bool:
    """Whether two loops store into parts of an array that lie behind each other, and load nothing of it."""
    own = any(isinstance(s, Alloc) and s.buffer == buffer for s in stmts((a, b)))
    if own or any(e.buffer == buffer for e in loads((a, b))):
        return False
    first, second = _ranges(a, buffer), _ranges(b, buffer)
    return _below(first, second) or _below(second, first)


def _ranges(loop: For, buffer: str) -> list[tuple[int | None, int | None]]:
    """Return the least and the greatest place of a buffer that each store of a loop may write, under its conditions."""
    inner = [s for s in stmts((loop,)) if isinstance(s, For)]
    # loops side by side may share a variable: the longest one counts
    inner.sort(key=lambda s: math.inf if s.static is None else s.static)
    exact: dict[Expr, Expr] = {s.var: Var(s.var.name, "i64", s.static) for s in inner}
    found = []
    for store, guards in _guarded((loop,), ()):
        if store.buffer == buffer:
            low, high = bounds(normalize(substitute(store.index[0], exact)))
            for g in guards:
                if isinstance(g, Op) and g.op == "lt" and isinstance(g.args[1], Const):
                    beyond = bounds(normalize(substitute(store.index[0] - g.args[0], exact)))[1]
                    if high is not None and beyond is not None:
                        high = min(high, beyond + int(g.args[1].value) - 1)
            found.append((low, high))
    return found


def _guarded(body: Sequence[Stmt], guards: tuple[Expr, ...]) -> Iterator[tuple[Store, tuple[Expr, ...]]]:
    """Yield the stores in a body, each with the conditions around it."""
    for s in body:
        if isinstance(s, Store):
            yield s, guards
        elif isinstance(s, For | If):
            yield from _guarded(s.body, (*guards, s.cond) if isinstance(s, If) else guards)


def _below(a: Sequence[tuple[int | None, int | None]], b: Sequence[tuple[int | None, int | None]]) -> bool:
    """Whether all of some ranges lie below all of others."""
    return all(high is not None and low is not None and high < low for _, high in a for low, _ in b)


def join(kernel: Kernel, name: str) -> Kernel:
    """Make one grid loop of the kernel's top-level grid nests, which do not depend on each other: a single launch.

    Legal when no nest touches what another one writes, and all extents are constants.
    """
    reason = obstacle(kernel)
    if reason:
        raise IllegalSchedule(step="join", target=kernel.name, reason=reason)
    nests = [s for s in kernel.body if isinstance(s, For)]
    total = 0
    body: list[Stmt] = []
    whole = Var(name, "i64", sum(_range(s) for s in nests))
    for s in nests:
        count = _range(s)
        inner: Sequence[Stmt] = (s,)
        step = count
        replace: dict[Expr, Expr] = {}
        while len(inner) == 1 and isinstance(inner[0], For) and inner[0].kind == "grid":
            loop = inner[0]
            n = loop.static or 1
            step //= n
            replace[loop.var] = ((whole - total) // step) % n if n > 1 else i64(0)
            inner = loop.body
        cond = normalize((whole >= total) & (whole < total + count))
        body.append(If(cond, tuple(map_exprs(t, lambda e: substitute(e, replace)) for t in inner)))  # noqa: B023
        total += count
    return dataclasses.replace(kernel, body=(For(whole, i64(total), "grid", tuple(body)),))


def _range(loop: For) -> int:
    if loop.kind != "grid" or loop.static is None:
        raise IllegalSchedule(step="join", target=loop.var.name, reason="it is not a grid loop of constant extent")
    inner = loop.body
    if len(inner) == 1 and isinstance(inner[0], For) and inner[0].kind == "grid":
        return loop.static * _range(inner[0])
    return loop.static
