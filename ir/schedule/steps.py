"""The steps a schedule is made of: each is ``Kernel -> Kernel``, checks that it is legal, and keeps the meaning.

A loop is named by its variable. A step that takes a loop applies to every loop of that name, which is how the siblings
that ``fission`` leaves are treated alike. What makes loops independent is proven once, by ``lower`` (``parallel``),
and kept: both parts of a split parallel loop are parallel.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.accesses import reallocated, redirected
from kernelforge.ir.demand import identity
from kernelforge.ir.index import affine, bounds, free_vars, normalize
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
    stmts,
    substitute,
    walk,
)

Tail = Literal["exact", "guard", "clip", "cut", "part"]


def loops(kernel: Kernel, name: str) -> list[For]:
    """Return the loops over the variable ``name``, in order."""
    return [s for s in stmts(kernel.body) if isinstance(s, For) and s.var.name == name]


def each(kernel: Kernel, step: str, name: str, change: Callable[[For], Sequence[Stmt]]) -> Kernel:
    """Replace every loop called ``name``."""
    if not loops(kernel, name):
        raise IllegalSchedule(step=step, target=name, reason="there is no such loop")
    return dataclasses.replace(kernel, body=_replaced(kernel.body, name, change))


def _replaced(body: Sequence[Stmt], name: str, change: Callable[[For], Sequence[Stmt]]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For) and stmt.var.name == name:
            out.extend(change(stmt))
        elif isinstance(stmt, For | If):
            inner = _replaced(stmt.body, name, change)
            out.append(stmt if inner == stmt.body else dataclasses.replace(stmt, body=inner))
        else:
            out.append(stmt)
    return tuple(out)


def substituted(body: Sequence[Stmt], replace: dict[Expr, Expr]) -> tuple[Stmt, ...]:
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
        body = substituted(loop.body, {loop.var: joined})
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
        last = For(t, rest, loop.kind, substituted(loop.body, {loop.var: normalize(extent // factor) * factor + t}))
        if n is not None and n < factor:
            return (last,)
        if tail == "part":
            full = For(i, i64(factor), loop.kind, body)
            ends = normalize(o < extent // factor)
            return (For(o, count, loop.kind, (If(ends, (full,)), If(normalize(~ends), (last,)))),)
        return (For(o, count, loop.kind, (For(i, i64(factor), loop.kind, body),)), last)

    return each(kernel, "split", name, change)


def residues(kernel: Kernel, name: str, count: int) -> Kernel:
    """Make a loop for each remainder that the counter of a parallel loop of constant extent leaves to ``count``."""

    def change(loop: For) -> Sequence[Stmt]:
        if loop.kind != "parallel" or loop.static is None:
            raise IllegalSchedule(step="residues", target=name, reason="it is not parallel, or of no constant extent")
        made = []
        for k in range(min(count, loop.static)):
            n = -(-(loop.static - k) // count)
            var = Var(name, "i64", n)
            made.append(For(var, i64(n), loop.kind, substituted(loop.body, {loop.var: var * count + k})))
        return made

    return each(kernel, "residues", name, change)


def in_pieces(kernel: Kernel, name: str, ends: Sequence[int]) -> Kernel:
    """Make a loop of each piece of a parallel loop of constant extent: those that end at ``ends``, and the rest. The
    second is called ``name`` with ``_p1`` appended, and so on.
    """

    def change(loop: For) -> Sequence[Stmt]:
        if loop.kind != "parallel" or loop.static is None:
            raise IllegalSchedule(step="in_pieces", target=name, reason="it is not parallel, or of no constant extent")
        places = (0, *ends, loop.static)
        if list(places) != sorted(set(places)):
            raise IllegalSchedule(
                step="in_pieces", target=name, reason=f"its pieces do not end in order at {list(ends)}"
            )
        made = []
        for k, (low, high) in enumerate(itertools.pairwise(places)):
            var = Var(f"{name}_p{k}" if k else name, "i64", high - low)
            made.append(For(var, i64(high - low), loop.kind, substituted(loop.body, {loop.var: var + low})))
        return made

    return each(kernel, "in_pieces", name, change)


def in_line(kernel: Kernel, name: str) -> Kernel:
    """Write what a loop of constant extent does once for each iteration, one after the other: always legal.

    The loop may name values and store alone; a name whose value all iterations share stays one.
    """

    def change(loop: For) -> Sequence[Stmt]:
        if loop.static is None or not all(isinstance(s, Let | Store) for s in loop.body):
            reason = "its extent is not a constant, or it does more than to name values and store"
            raise IllegalSchedule(step="in_line", target=name, reason=reason)
        out: list[Stmt] = []
        for k in range(loop.static):
            known: dict[Expr, Expr] = {loop.var: i64(k)}
            for s in loop.body:
                made = map_exprs(s, lambda e: normalize(substitute(e, known)))  # noqa: B023
                if isinstance(made, Let):
                    if made in out:
                        continue
                    if k:
                        own = f"{made.name}_{loop.var.name}{k}"
                        known[Var(made.name, made.value.dtype)] = Var(own, made.value.dtype)
                        made = Let(own, made.value)
                out.append(made)
        return out

    return each(kernel, "in_line", name, change)


def bind(kernel: Kernel, name: str, kind: LoopKind) -> Kernel:
    """Say what runs a loop. Legal for a parallel loop; any loop may be unrolled or run serially; a serial loop that
    does nothing but name values and combine into one element may become ``vector``.
    """

    def change(loop: For) -> Sequence[Stmt]:
        stores = [s for s in loop.body if not isinstance(s, Let)]
        combining = all(isinstance(s, Store) and s.op and loop.var not in _vars(s.index) for s in stores)
        legal = loop.kind == "parallel" or kind in ("serial", "unroll") or (kind == "vector" and combining)
        if not legal:
            raise IllegalSchedule(step="bind", target=name, reason=f"a {loop.kind} loop cannot become {kind}")
        if kind in ("group", "vector", "unroll") and loop.static is None:
            raise IllegalSchedule(step="bind", target=name, reason="its extent is not a constant")
        return (dataclasses.replace(loop, kind=kind),)

    return each(kernel, "bind", name, change)


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

    made = each(kernel, "reorder", outer, change)
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
    for it, and each loop has the Lets that it needs. Legal because the iterations are independent; the extent must be
    bounded if a buffer is allocated, and nothing may be stored to what a Let before it has read.
    """

    def change(loop: For) -> Sequence[Stmt]:
        if loop.kind != "parallel":
            raise IllegalSchedule(step="fission", target=name, reason=f"a {loop.kind} loop is not independent")
        read: set[str] = set()
        for stmt in loop.body:
            if isinstance(stmt, Let):
                read |= {e.buffer for e in walk(stmt.value) if isinstance(e, Load)}
            elif any(isinstance(s, Store) and s.buffer in read for s in stmts((stmt,))):
                raise IllegalSchedule(step="fission", target=name, reason="it stores to what a Let has read")
        body: Sequence[Stmt] = loop.body
        outer: list[Stmt] = []
        grown: set[str] = set()
        for stmt in body:
            if isinstance(stmt, Alloc):
                if loop.static is None and loop.var.bound is None:
                    raise IllegalSchedule(step="fission", target=name, reason="its extent is not bounded")
                grown.add(stmt.buffer)
                most = loop.extent if loop.var.bound is None else i64(loop.var.bound)
                outer.append(dataclasses.replace(stmt, shape=(most, *stmt.shape)))
        if grown:
            rest = [s for s in body if not isinstance(s, Alloc)]
            body = list(redirected(rest, grown, lambda b, index: (b, (loop.var, *index))))
        pieces = [(*_needed(s, body[:k]), s) for k, s in enumerate(body) if not isinstance(s, Let)]
        return [*outer, *(dataclasses.replace(loop, body=piece) for piece in pieces)]

    return each(kernel, "fission", name, change)


def _needed(stmt: Stmt, before: Sequence[Stmt]) -> list[Stmt]:
    """Return the Lets among the statements ``before`` one that it uses, or that they use."""
    used = {v.name for s in stmts((stmt,)) for r in exprs(s) for v in free_vars(r)}
    found: list[Stmt] = []
    for let in reversed(before):
        if isinstance(let, Let) and let.name in used:
            used |= {v.name for v in free_vars(let.value)}
            found.append(let)
    return found[::-1]


def rfactor(kernel: Kernel, outer: str, by: str, name: str, space: Space = "register") -> Kernel:
    """Give each iteration of ``by``, inside the reduction loop ``outer``, accumulators of its own.

    ``for outer: for by: a op= e`` becomes ``p[by] = identity; for outer: for by: p[by] op= e; for by: a op= p[by]``;
    several accumulators get buffers whose names continue ``name``. Legal because reductions may be reassociated; the
    loops over ``by`` become parallel but for the last. Stores to elements that the loops choose stay: each iteration
    has to have an element of its own, and none may read another's.
    """

    def change(loop: For) -> Sequence[Stmt]:
        path: list[For] = [loop]
        while path[-1].var.name != by:
            if len(path[-1].body) != 1 or not isinstance(path[-1].body[0], For):
                raise IllegalSchedule(step="rfactor", target=f"{outer}, {by}", reason="they are not perfectly nested")
            path.append(path[-1].body[0])
        lanes = path[-1]
        stores = [s for s in stmts(lanes.body) if isinstance(s, Store)]
        crossed = {p.var for p in path}
        reduced = [s for s in stores if s.op and not crossed & _vars(s.index)]
        if not reduced or len({s.buffer for s in stores}) < len(stores) or lanes.static is None:
            reason = "it is not one combining store for each buffer, of constant width"
            raise IllegalSchedule(step="rfactor", target=f"{outer}, {by}", reason=reason)
        inner = [s for s in stmts(lanes.body) if isinstance(s, For)]
        for s in stores:
            if s not in reduced and not _own(s, lanes):
                reason = f"iterations share elements of {s.buffer}"
                raise IllegalSchedule(step="rfactor", target=f"{outer}, {by}", reason=reason)
        before: list[Stmt] = []
        after: list[Stmt] = []
        body = lanes.body
        for k, store in enumerate(reduced):
            part = f"{name}{k or ''}"
            dtype = store.value.dtype
            kept = [s for s in inner if s.var in _vars(store.index)]
            index: tuple[Expr, ...] = (lanes.var, *(s.var for s in kept))
            first: Stmt = Store(part, index, identity(store.op, dtype))
            last: Stmt = Store(store.buffer, store.index, Load(part, index, dtype), store.op)
            for p in reversed(kept):
                first, last = For(p.var, p.extent, p.kind, (first,)), For(p.var, p.extent, p.kind, (last,))
            shape = (lanes.extent, *(p.extent for p in kept))
            before += [Alloc(part, dtype, shape, space), For(lanes.var, lanes.extent, "parallel", (first,))]
            after.append(For(lanes.var, lanes.extent, "serial", (last,)))
            body = _redirect(body, store, part, index)
        main: Stmt = dataclasses.replace(lanes, kind="parallel", body=body)
        for p in reversed(path[:-1]):
            main = dataclasses.replace(p, body=(main,))
        return (*before, main, *after)

    return each(kernel, "rfactor", outer, change)


def _own(store: Store, loop: For) -> bool:
    """Whether each iteration of a loop stores an element of its own, which no other one reads."""
    loads = [e for s in stmts(loop.body) for r in exprs(s) for e in walk(r) if isinstance(e, Load)]
    alone = all(e.index == store.index for e in loads if e.buffer == store.buffer)
    steps = [affine(i, loop.var) for i in store.index]
    return alone and None not in steps and sum(c != 0 for c in steps) == 1


def partial(kernel: Kernel, name: str, buffer: str) -> Kernel:
    """Let the reduction loop ``name`` combine into ``buffer``, and that into what it combined into.

    Legal because reductions may be reassociated.
    """

    def change(loop: For) -> Sequence[Stmt]:
        store = single_store(loop.body)
        if store is None or not store.op or _vars(store.index) & {s.var for s in stmts((loop,)) if isinstance(s, For)}:
            raise IllegalSchedule(step="partial", target=name, reason="it does not combine into one element")
        dtype = store.value.dtype
        return (
            Alloc(buffer, dtype, (), "register"),
            Store(buffer, (), identity(store.op, dtype)),
            dataclasses.replace(loop, body=_redirect(loop.body, store, buffer, ())),
            Store(store.buffer, store.index, Load(buffer, (), dtype), store.op),
        )

    return each(kernel, "partial", name, change)


def place(kernel: Kernel, buffer: str, space: Space) -> Kernel:
    """Say where a buffer is: ``register`` or ``local``. Legal because its meaning is the same."""
    return dataclasses.replace(kernel, body=reallocated(kernel.body, buffer, space=space))


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
        body = substituted(second.body, {loop.var: var // n, second.var: var % n})
        return (For(var, normalize(loop.extent * n), loop.kind, body),)

    return each(kernel, "fuse", outer, change)


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

    made = each(kernel, "tree", name, change)
    if not done:
        raise IllegalSchedule(step="tree", target=name, reason="no such loop combines loaded values into one")
    return made
