"""Steps on guards, the Ifs that keep what a tail would do out of range from being done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.kernel import Alloc, Expr, For, If, Kernel, Let, Load, Stmt, Store, exprs, stmts, walk
from kernelforge.ir.schedule.steps import each


def sink_guard(kernel: Kernel, name: str) -> Kernel:
    """Move the Ifs inside a loop down to the statements they guard. Legal because loops and Allocs do nothing by
    themselves.
    """

    def change(loop: For) -> Sequence[Stmt]:
        return (dataclasses.replace(loop, body=_sunk(loop.body)),)

    return each(kernel, "sink_guard", name, change)


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


def lift_guard(kernel: Kernel, name: str) -> Kernel:
    """Ask a condition around all that a loop does, if it is the same for each iteration, once before the loop."""

    def change(loop: For) -> Sequence[Stmt]:
        *lets, guarded = loop.body
        if not isinstance(guarded, If) or not all(isinstance(s, Let) for s in lets):
            return (loop,)
        written = {s.buffer for s in stmts(loop.body) if isinstance(s, Store)}
        asked = [guarded.cond, *(s.value for s in lets if isinstance(s, Let))]
        if any(e == loop.var or (isinstance(e, Load) and e.buffer in written) for a in asked for e in walk(a)):
            return (loop,)
        return (*lets, dataclasses.replace(guarded, body=(dataclasses.replace(loop, body=guarded.body),)))

    return each(kernel, "lift_guard", name, change)


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
