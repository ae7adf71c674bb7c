"""The steps a schedule is made of: each is ``Kernel -> Kernel``, checks that it is legal, and keeps the meaning.

A loop is named by its variable. A step that takes a loop applies to every loop of that name, which is how the siblings
that ``fission`` leaves are treated alike. What makes loops independent is proven once, by ``lower`` (``parallel``),
and kept: both parts of a split parallel loop are parallel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import bounds, free_vars, normalize
from kernelforge.ir.kernel import (
    Alloc,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    LoopKind,
    Space,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    op,
    rebuild,
    select,
    stmts,
    substitute,
    walk,
)
from kernelforge.ir.lower import identity

Tail = Literal["exact", "guard", "clip", "cut", "part"]


def loops(kernel: Kernel, name: str) -> list[For]:
    """Return the loops over the variable ``name``, in order."""
    return [s for s in stmts(kernel.body) if isinstance(s, For) and s.var.name == name]


def _each(kernel: Kernel, step: str, name: str, change: Callable[[For], Sequence[Stmt]]) -> Kernel:
    """Replace every loop called ``name``."""
    found = 0

    def visit(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        nonlocal found
        out: list[Stmt] = []
        for stmt in body:
            if isinstance(stmt, For) and stmt.var.name == name:
                found += 1
                out.extend(change(stmt))
            elif isinstance(stmt, For | If):
                inner = visit(stmt.body)
                out.append(stmt if inner == stmt.body else dataclasses.replace(stmt, body=inner))
            else:
                out.append(stmt)
        return tuple(out)

    body = visit(kernel.body)
    if not found:
        raise IllegalSchedule(step=step, target=name, reason="there is no such loop")
    return dataclasses.replace(kernel, body=body)


def _substituted(body: Sequence[Stmt], replace: dict[Expr, Expr]) -> tuple[Stmt, ...]:
    memo: dict[Expr, Expr] = {}
    made = tuple(map_exprs(s, lambda e: normalize(substitute(e, replace, memo))) for s in body)
    return tuple(_rename(s, replace) for s in made)


def _rename(stmt: Stmt, replace: dict[Expr, Expr]) -> Stmt:
    """Give loops the variables that stand for theirs in ``replace``."""
    if isinstance(stmt, For):
        var = replace.get(stmt.var, stmt.var)
        assert isinstance(var, Var)
        return For(var, stmt.extent, stmt.kind, tuple(_rename(s, replace) for s in stmt.body))
    if isinstance(stmt, If):
        return If(stmt.cond, tuple(_rename(s, replace) for s in stmt.body))
    return stmt


def split(kernel: Kernel, name: str, factor: int, outer: str, inner: str, tail: Tail) -> Kernel:
    """Make two nested loops of one: ``name = outer * factor + inner``. Always legal: the order stays.

    ``tail`` says what becomes of an extent that is no multiple: ``exact`` refuses it, ``guard`` tests inside, ``clip``
    shortens the inner loop, ``cut`` adds a loop for the rest, called ``inner`` with ``_t`` appended, and ``part`` puts
    that loop into the last iteration of the outer one.
    """

    def change(loop: For) -> Sequence[Stmt]:
        n, extent = loop.static, loop.extent
        if tail == "exact" and (n is None or n % factor):
            raise IllegalSchedule(step="split", target=name, reason=f"extent {n} is no multiple of {factor}")
        whole = n is not None and n % factor == 0
        count = (
            normalize(extent // factor)
            if tail in ("exact", "cut") or whole
            else normalize((extent + (factor - 1)) // factor)
        )
        most = bounds(count)[1]
        o = Var(outer, "i64", most)
        i = Var(inner, "i64", factor)
        joined = o * factor + i
        body = _substituted(loop.body, {loop.var: joined})
        if whole or tail == "exact":
            return (For(o, count, loop.kind, (For(i, i64(factor), loop.kind, body),)),)
        if tail == "guard":
            return (
                For(o, count, loop.kind, (For(i, i64(factor), loop.kind, (If(normalize(joined < extent), body),)),)),
            )
        if tail == "clip":
            rest = normalize(op("min", i64(factor), extent - o * factor))
            return (For(o, count, loop.kind, (For(i, rest, loop.kind, body),)),)
        rest = normalize(extent % factor)
        most = bounds(rest)[1]
        t = Var(inner + "_t", "i64", None if most is None else most + 1)
        last = For(t, rest, loop.kind, _substituted(loop.body, {loop.var: normalize(extent // factor) * factor + t}))
        if n is not None and n < factor:
            return (last,)
        if tail == "part":
            full = For(i, i64(factor), loop.kind, body)
            ends = normalize(o < extent // factor)
            return (For(o, count, loop.kind, (If(ends, (full,)), If(normalize(~ends), (last,)))),)
        return (For(o, count, loop.kind, (For(i, i64(factor), loop.kind, body),)), last)

    return _each(kernel, "split", name, change)


def bind(kernel: Kernel, name: str, kind: LoopKind) -> Kernel:
    """Say what runs a loop. Legal for a parallel loop; any loop may be unrolled or run serially; a serial loop that
    does nothing but combine into one element may become ``vector``.
    """

    def change(loop: For) -> Sequence[Stmt]:
        combining = all(isinstance(s, Store) and s.op and loop.var not in _vars(s.index) for s in loop.body)
        legal = loop.kind == "parallel" or kind in ("serial", "unroll") or (kind == "vector" and combining)
        if not legal:
            raise IllegalSchedule(step="bind", target=name, reason=f"a {loop.kind} loop cannot become {kind}")
        if kind in ("group", "vector", "unroll") and loop.static is None:
            raise IllegalSchedule(step="bind", target=name, reason="its extent is not a constant")
        return (dataclasses.replace(loop, kind=kind),)

    return _each(kernel, "bind", name, change)


def _vars(index: Sequence[Expr]) -> frozenset[Var]:
    return frozenset().union(*(free_vars(i) for i in index)) if index else frozenset()


def reorder(kernel: Kernel, outer: str, inner: str) -> Kernel:
    """Swap perfectly nested loops (an If may stand between), wherever ``inner`` stands right inside ``outer``.

    Legal when one of them is parallel, or all they do is combine; the inner extent must not depend on the outer loop.
    """
    done = 0

    def change(loop: For) -> Sequence[Stmt]:
        nonlocal done
        guard: Expr | None = None
        below = loop.body
        if len(below) == 1 and isinstance(below[0], If):
            guard, below = below[0].cond, below[0].body
        if len(below) != 1 or not isinstance(below[0], For) or below[0].var.name != inner:
            return (loop,)
        done += 1
        second = below[0]
        if loop.var in free_vars(second.extent):
            raise IllegalSchedule(
                step="reorder", target=f"{outer}, {inner}", reason="the inner extent depends on the outer loop"
            )
        independent = "parallel" in (loop.kind, second.kind)
        if not independent and not _only_combines(second.body):
            raise IllegalSchedule(
                step="reorder", target=f"{outer}, {inner}", reason="both loops are serial and order matters"
            )
        body: tuple[Stmt, ...] = second.body if guard is None else (If(guard, second.body),)
        return (dataclasses.replace(second, body=(dataclasses.replace(loop, body=body),)),)

    made = _each(kernel, "reorder", outer, change)
    if not done:
        raise IllegalSchedule(step="reorder", target=f"{outer}, {inner}", reason="they are not perfectly nested")
    return made


def _only_combines(body: Sequence[Stmt]) -> bool:
    ops = {(s.buffer, s.op) for s in stmts(body) if isinstance(s, Store)}
    written = {b for b, _ in ops}
    if any(not o for _, o in ops) or len(written) != len(ops):
        return False
    return not any(isinstance(e, Load) and e.buffer in written for s in stmts(body) for r in exprs(s) for e in walk(r))


def fission(kernel: Kernel, name: str) -> Kernel:
    """Run each statement of a parallel loop in a loop of its own; a buffer allocated in the loop gains a leading axis
    for it. Legal because the iterations are independent; the extent must be a constant if a buffer is allocated.
    """

    def change(loop: For) -> Sequence[Stmt]:
        if loop.kind != "parallel":
            raise IllegalSchedule(step="fission", target=name, reason=f"a {loop.kind} loop is not independent")
        if any(isinstance(s, Let) for s in loop.body):
            raise IllegalSchedule(step="fission", target=name, reason="a Let stands in it")
        body: Sequence[Stmt] = loop.body
        outer: list[Stmt] = []
        grown: set[str] = set()
        for stmt in body:
            if isinstance(stmt, Alloc):
                if loop.static is None:
                    raise IllegalSchedule(step="fission", target=name, reason="its extent is not a constant")
                grown.add(stmt.buffer)
                outer.append(dataclasses.replace(stmt, shape=(loop.extent, *stmt.shape)))
        if grown:
            body = [_grow(s, grown, loop.var) for s in body if not isinstance(s, Alloc)]
        return [*outer, *(dataclasses.replace(loop, body=(s,)) for s in body)]

    return _each(kernel, "fission", name, change)


def _grow(stmt: Stmt, buffers: set[str], var: Var) -> Stmt:
    """Index ``buffers`` by ``var`` in front."""
    memo: dict[Expr, Expr] = {}

    def load(e: Expr) -> Expr:
        return Load(e.buffer, (var, *e.index), e.dtype) if isinstance(e, Load) and e.buffer in buffers else e

    def store(s: Stmt) -> Stmt:
        if isinstance(s, For | If):
            return dataclasses.replace(s, body=tuple(store(t) for t in s.body))
        if isinstance(s, Store) and s.buffer in buffers:
            return dataclasses.replace(s, index=(var, *s.index))
        return s

    return store(map_exprs(stmt, lambda e: rebuild(e, load, memo)))


def rfactor(kernel: Kernel, outer: str, by: str, name: str, space: Space = "register") -> Kernel:
    """Give each iteration of ``by``, inside the reduction loop ``outer``, an accumulator of its own.

    ``for outer: for by: a op= e`` becomes ``p[by] = identity; for outer: for by: p[by] op= e; for by: a op= p[by]``.
    Legal because reductions may be reassociated; the loops over ``by`` become parallel but for the last.
    """

    def change(loop: For) -> Sequence[Stmt]:
        path: list[For] = [loop]
        while path[-1].var.name != by:
            if len(path[-1].body) != 1 or not isinstance(path[-1].body[0], For):
                raise IllegalSchedule(step="rfactor", target=f"{outer}, {by}", reason="they are not perfectly nested")
            path.append(path[-1].body[0])
        lanes = path[-1]
        store = single_store(lanes.body)
        if store is None or not store.op or lanes.static is None:
            raise IllegalSchedule(
                step="rfactor", target=f"{outer}, {by}", reason="it is not one combining store of constant width"
            )
        crossed = {p.var for p in path}
        inner = frozenset(s.var for s in stmts(lanes.body) if isinstance(s, For))
        if crossed & _vars(store.index):
            raise IllegalSchedule(step="rfactor", target=f"{outer}, {by}", reason="the element depends on the loops")
        kept = [s for s in stmts(lanes.body) if isinstance(s, For) and s.var in inner & _vars(store.index)]
        index: tuple[Expr, ...] = (lanes.var, *(s.var for s in kept))
        shape = (lanes.extent, *(s.extent for s in kept))
        dtype = store.value.dtype

        def over(body: Stmt, kind: LoopKind) -> Stmt:
            for s in reversed(kept):
                body = For(s.var, s.extent, s.kind, (body,))
            return For(lanes.var, lanes.extent, kind, (body,))

        partial = dataclasses.replace(lanes, kind="parallel", body=_redirect(lanes.body, store, name, index))
        main: Stmt = partial
        for p in reversed(path[:-1]):
            main = dataclasses.replace(p, body=(main,))
        return (
            Alloc(name, dtype, shape, space),
            over(Store(name, index, identity(store.op, dtype)), "parallel"),
            main,
            over(Store(store.buffer, store.index, Load(name, index, dtype), store.op), "serial"),
        )

    return _each(kernel, "rfactor", outer, change)


def single_store(body: Sequence[Stmt]) -> Store | None:
    found = [s for s in stmts(body) if isinstance(s, Store)]
    return found[0] if len(found) == 1 else None


def _redirect(body: Sequence[Stmt], old: Store, buffer: str, index: tuple[Expr, ...]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for s in body:
        if s is old:
            out.append(dataclasses.replace(old, buffer=buffer, index=index))
        elif isinstance(s, For | If):
            out.append(dataclasses.replace(s, body=_redirect(s.body, old, buffer, index)))
        else:
            out.append(s)
    return tuple(out)


def fuse(kernel: Kernel, outer: str, inner: str, name: str) -> Kernel:
    """Make one loop of two perfectly nested ones of the same kind; the inner extent is a constant."""

    def change(loop: For) -> Sequence[Stmt]:
        if len(loop.body) != 1 or not isinstance(loop.body[0], For) or loop.body[0].var.name != inner:
            raise IllegalSchedule(step="fuse", target=f"{outer}, {inner}", reason="they are not perfectly nested")
        second = loop.body[0]
        n = second.static
        if n is None or second.kind != loop.kind:
            raise IllegalSchedule(
                step="fuse",
                target=f"{outer}, {inner}",
                reason="the inner loop is of another kind, or its extent no constant",
            )
        var = Var(name, "i64", None if loop.var.bound is None else loop.var.bound * n)
        body = _substituted(second.body, {loop.var: var // n, second.var: var % n})
        return (For(var, normalize(loop.extent * n), loop.kind, body),)

    return _each(kernel, "fuse", outer, change)


def sink_guard(kernel: Kernel, name: str) -> Kernel:
    """Move the Ifs inside a loop down to the statements they guard. Legal because loops and Allocs do nothing by
    themselves.
    """

    def change(loop: For) -> Sequence[Stmt]:
        return (dataclasses.replace(loop, body=_sunk(loop.body)),)

    return _each(kernel, "sink_guard", name, change)


def _sunk(body: Sequence[Stmt], guards: tuple[Expr, ...] = ()) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, If):
            out += _sunk(s.body, (*guards, s.cond))
        elif isinstance(s, For):
            out.append(dataclasses.replace(s, body=_sunk(s.body, guards)))
        elif isinstance(s, Alloc):
            out.append(s)
        else:
            for cond in reversed(guards):
                s = If(cond, (s,))
            out.append(s)
    return tuple(out)


def unguard(kernel: Kernel, buffer: str, padded: Callable[[Load], bool]) -> Kernel:
    """Drop the Ifs around statements that write only the register buffer ``buffer``: elements outside of the guard
    then hold garbage, which the guards of all that reads them keep from being seen. ``padded`` says of a Load that it
    is in range without the guard.
    """

    def visit(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, For | If):
                s = dataclasses.replace(s, body=visit(s.body))
            if isinstance(s, If) and all(isinstance(t, Store) and t.buffer == buffer for t in s.body):
                loads = [e for t in s.body for r in exprs(t) for e in walk(r) if isinstance(e, Load)]
                if not all(e.buffer == buffer or padded(e) for e in loads):
                    raise IllegalSchedule(
                        step="unguard", target=buffer, reason="a Load may be out of range without the guard"
                    )
                out += s.body
            else:
                out.append(s)
        return tuple(out)

    if not any(isinstance(s, Alloc) and s.buffer == buffer and s.space == "register" for s in stmts(kernel.body)):
        raise IllegalSchedule(step="unguard", target=buffer, reason="it is not a register buffer")
    return dataclasses.replace(kernel, body=visit(kernel.body))


def stage(kernel: Kernel, expr: Expr, at: str, by: Sequence[str], space: Space, name: str) -> Kernel:
    """Compute ``expr`` once for each iteration of the loops ``by``, at the top of the body of the loop ``at`` (or of
    the kernel, for ``at=""``), into the buffer ``name``, and read it from there.

    Packing, tiling and common sub-expressions are this one step. Legal when nothing that ``expr`` loads is written
    inside ``at`` and its variables that are bound inside of ``at`` are among ``by``. Elements whose index a guard
    keeps out are padded with 0 if they might be out of range.
    """

    def fail(reason: str) -> IllegalSchedule:
        return IllegalSchedule(step="stage", target=name, reason=reason)

    sources = {e.buffer for e in walk(expr) if isinstance(e, Load)}

    def fill(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        if any(isinstance(s, Store) and s.buffer in sources for s in stmts(body)):
            raise fail("a buffer that it loads is written there")
        inside = {s.var.name: s for s in stmts(body) if isinstance(s, For)}
        if any(v.name in inside and v.name not in by for v in free_vars(expr)):
            raise fail("it depends on a loop that is not listed")
        nest_ = [inside[v] for v in by]
        guards = [
            s.cond
            for s in stmts(body)
            if isinstance(s, If) and any(e is expr for t in stmts(s.body) for r in exprs(t) for e in walk(r))
        ]
        known = {v.var for v in nest_} | {v for g in guards for v in free_vars(g)}
        mine = [
            g
            for g in dict.fromkeys(guards)
            if all(v.name not in inside or v.name in by for v in free_vars(g)) and known
        ]
        fresh: dict[Expr, Expr] = {s.var: Var(f"{name}_{s.var.name}", "i64", s.var.bound) for s in nest_}
        value: Expr = expr
        for g in mine:
            value = select(g, value, 0)
        index = tuple(fresh[s.var] for s in nest_)
        shape = tuple(i64(s.var.bound) if s.var.bound is not None else s.extent for s in nest_)
        filled: Stmt = Store(name, index, normalize(substitute(value, fresh)))
        for s in reversed(nest_):
            var = fresh[s.var]
            assert isinstance(var, Var)
            filled = For(var, normalize(substitute(s.extent, fresh)), "parallel", (filled,))
        memo: dict[Expr, Expr] = {}
        held: dict[Expr, Expr] = {expr: Load(name, tuple(s.var for s in nest_), expr.dtype)}
        rest = tuple(map_exprs(s, lambda e: substitute(e, held, memo)) for s in body)
        return (Alloc(name, expr.dtype, shape, space), filled, *rest)

    if not at:
        return dataclasses.replace(kernel, body=fill(kernel.body))
    return _each(kernel, "stage", at, lambda loop: (dataclasses.replace(loop, body=fill(loop.body)),))


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
        rest = tuple(map_exprs(s, lambda e: _reading(e, buffer, name)) for s in _substituted(rest, fresh))
        return (*body[: last + 1], dataclasses.replace(made, buffer=name, space="local"), filled, *rest)

    return dataclasses.replace(kernel, body=visit(kernel.body))


def _reading(expr: Expr, old: str, new: str) -> Expr:
    """Read ``new`` where ``expr`` reads ``old``."""
    found = [e for e in walk(expr) if isinstance(e, Load) and e.buffer == old]
    return substitute(expr, {e: Load(new, e.index, e.dtype) for e in found})


def tree(kernel: Kernel, name: str, local: str) -> Kernel:
    """Turn the last loop of a reduction, ``a op= p[name]`` over a power of two, into halving steps over the local copy
    ``local``: the tree that work-items of a group run together. Legal because reductions may be reassociated.
    """
    done = 0

    def change(loop: For) -> Sequence[Stmt]:
        nonlocal done
        store = single_store(loop.body)
        n = loop.static
        if (
            loop.kind != "serial"
            or store is None
            or not store.op
            or len(loop.body) != 1
            or not isinstance(store.value, Load)
        ):
            return (loop,)
        if n is None or n & (n - 1) or loop.var in _vars(store.index):
            raise IllegalSchedule(step="tree", target=name, reason=f"{n} values do not fold by halves into one")
        done += 1
        dtype = store.value.dtype
        out: list[Stmt] = [
            Alloc(local, dtype, (i64(n),), "local"),
            For(loop.var, i64(n), "parallel", (Store(local, (loop.var,), store.value),)),
        ]
        half = n // 2
        while half:
            lane = Var(loop.var.name, "i64", half)
            step = Store(local, (lane,), Load(local, (lane + half,), dtype), store.op)
            out.append(For(lane, i64(half), "parallel", (step,)))
            half //= 2
        out.append(Store(store.buffer, store.index, Load(local, (i64(0),), dtype), store.op))
        return out

    made = _each(kernel, "tree", name, change)
    if not done:
        raise IllegalSchedule(step="tree", target=name, reason="no such loop combines loaded values into one")
    return made
