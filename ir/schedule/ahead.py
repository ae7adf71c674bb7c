"""The step that lets a loop fetch its next block of data while it works with the present one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.accesses import redirected
from kernelforge.ir.index import normalize
from kernelforge.ir.kernel import (
    Alloc,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    stmts,
    walk,
)
from kernelforge.ir.schedule.steps import each, substituted


def ahead(kernel: Kernel, name: str, through_registers: bool) -> Kernel:
    """Fill the local buffers of an iteration of the serial loop ``name`` during the one before.

    ``for k: fill(k); use(k)`` becomes two iterations on two sets of buffers, of which one is filled while the other is
    used: ``fill0(0); for h: fill1(2h + 1); use0(2h); fill0(2h + 2); use1(2h + 1)``. With ``through_registers``, what
    work-items load stays in registers until the use is over, for devices that cannot copy by the way.

    Legal when the loop allocates the buffers, its body fills them and then only reads them, and what the filling reads
    is not written in the loop.
    """

    def fail(reason: str) -> IllegalSchedule:
        return IllegalSchedule(step="ahead", target=name, reason=reason)

    def change(loop: For) -> Sequence[Stmt]:
        n = loop.static
        made = [s for s in loop.body if isinstance(s, Alloc)]
        own = {s.buffer for s in made}
        rest = [s for s in loop.body if not isinstance(s, Alloc)]
        first = next((k for k, s in enumerate(rest) if not _written((s,)) <= own), len(rest))
        fills, uses = rest[:first], rest[first:]
        if loop.kind != "serial" or n is None or not own or any(s.space != "local" for s in made):
            raise fail("it is no serial loop of constant extent over local buffers")
        if not fills or _written(uses) & own:
            raise fail("its body does not fill them first and only read them then")
        if _read(fills) & (_written(loop.body) | own):
            raise fail("what fills them is written in it")
        if n == 1:
            return (loop,)
        other = {b: f"{b}_b" for b in own}
        half = Var(loop.var.name, "i64", (n + 1) // 2)

        def at(body: Sequence[Stmt], k: Expr, second: bool) -> tuple[Stmt, ...]:
            body = substituted(body, {loop.var: k})
            return redirected(body, own, lambda b, index: (other[b], index)) if second else tuple(body)

        def when(k: Expr, body: Sequence[Stmt]) -> tuple[Stmt, ...]:
            return tuple(body) if n % 2 == 0 and k is odd else (If(normalize(k < n), tuple(body)),)

        odd, following = half * 2 + 1, half * 2 + 2
        buffers = [Alloc(renamed, s.dtype, s.shape, s.space) for s in made for renamed in (s.buffer, other[s.buffer])]
        body: list[Stmt] = []
        for k, present, second in ((odd, half * 2, True), (following, odd, False)):
            used = at(uses, present, not second)
            used = when(odd, used) if present is odd else used
            filled = at(fills, k, second)
            if through_registers:
                held, loading, storing = _through(filled, "_b" if second else "")
                body += [*held, *when(k, loading), *used, *when(k, storing)]
            else:
                body += [*when(k, filled), *used]
        count = i64((n + 1) // 2)
        return (
            *buffers,
            *at(fills, i64(0), False),
            dataclasses.replace(loop, var=half, extent=count, body=tuple(body)),
        )

    return each(kernel, "ahead", name, change)


def _through(fills: Sequence[Stmt], suffix: str) -> tuple[list[Stmt], list[Stmt], list[Stmt]]:
    """Cut what fills buffers in two: into registers, one for each iteration of the loops around, and on from there."""
    held: list[Stmt] = []

    def cut(s: Stmt, around: tuple[For, ...]) -> tuple[Stmt, Stmt]:
        if isinstance(s, For):
            pairs = [cut(t, (*around, s)) for t in s.body]
        elif isinstance(s, If):
            pairs = [cut(t, around) for t in s.body]
        else:
            assert isinstance(s, Store)
            register = f"{s.buffer}_next{suffix}"
            index = tuple(p.var for p in around)
            held.append(Alloc(register, s.value.dtype, tuple(p.extent for p in around), "register"))
            return Store(register, index, s.value), dataclasses.replace(s, value=Load(register, index, s.value.dtype))
        first, second = (tuple(p[k] for p in pairs) for k in (0, 1))
        return dataclasses.replace(s, body=first), dataclasses.replace(s, body=second)

    pairs = [cut(s, ()) for s in fills]
    return held, [p[0] for p in pairs], [p[1] for p in pairs]


def _written(body: Sequence[Stmt]) -> set[str]:
    return {s.buffer for s in stmts(body) if isinstance(s, Store)}


def _read(body: Sequence[Stmt]) -> set[str]:
    return {e.buffer for s in stmts(body) for r in exprs(s) for e in walk(r) if isinstance(e, Load)}
