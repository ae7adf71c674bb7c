"""Move the laziness of ``select`` down to the Loads that need it, so that all above them may be shared and moved."""

from __future__ import annotations

import dataclasses

from kernelforge.ir.index import is_lazy
from kernelforge.ir.kernel import Expr, For, If, Kernel, Load, Op, Stmt, exprs, map_exprs, select, with_parts


def guard(kernel: Kernel) -> Kernel:
    """Rewrite ``select(c, f(x[i]), y)`` to ``select(c, f(select(c, x[i], 0)), y)``.

    Only selects by indices need their laziness: in arms of the others every Load is in range. A Load that its statement
    may evaluate in any case stays as it is, and so does one that is all of an arm. Afterwards an expression whose Loads
    all stand in arms of its own lazy selects may be evaluated anywhere.
    """
    return dataclasses.replace(kernel, body=tuple(_statement(s) for s in kernel.body))


def _statement(stmt: Stmt) -> Stmt:
    body = tuple(_statement(s) for s in stmt.body) if isinstance(stmt, For | If) else ()
    own = _own(stmt)
    return dataclasses.replace(own, body=body) if isinstance(own, For | If) else own


def _own(stmt: Stmt) -> Stmt:
    head = dataclasses.replace(stmt, body=()) if isinstance(stmt, For | If) else stmt
    always: set[Expr] = set()
    for root in exprs(head):
        _unconditional(root, always)
    memo: dict[tuple[Expr, Expr | None], Expr] = {}
    return map_exprs(head, lambda e: _guarded(e, None, always, memo))


def _unconditional(expr: Expr, found: set[Expr]) -> None:
    """Collect what can be evaluated whenever ``expr`` is."""
    if expr in found:
        return
    found.add(expr)
    if isinstance(expr, Load):
        for i in expr.index:
            _unconditional(i, found)
    elif isinstance(expr, Op):
        for arg in expr.args[:1] if is_lazy(expr) else expr.args:
            _unconditional(arg, found)


def _guarded(expr: Expr, path: Expr | None, always: set[Expr], memo: dict[tuple[Expr, Expr | None], Expr]) -> Expr:
    """Rewrite ``expr``, which is evaluated only where ``path`` holds."""
    if expr in always and path is not None:
        path = None
    key = (expr, path)
    done = memo.get(key)
    if done is None:
        done = memo[key] = _rewritten(expr, path, always, memo)
    return done


def _rewritten(expr: Expr, path: Expr | None, always: set[Expr], memo: dict[tuple[Expr, Expr | None], Expr]) -> Expr:
    if isinstance(expr, Load):
        load = with_parts(expr, tuple([_guarded(i, path, always, memo) for i in expr.index]))
        return load if path is None else select(path, load, 0)
    if not isinstance(expr, Op) or not is_lazy(expr):
        return with_parts(expr, tuple([_guarded(x, path, always, memo) for x in expr.parts]))
    cond = _guarded(expr.args[0], path, always, memo)
    arms: list[Expr] = []
    for arm, holds in ((expr.args[1], cond), (expr.args[2], ~cond)):
        inside = holds if path is None else path & holds
        if path is None and isinstance(arm, Load) and arm not in always:
            arms.append(with_parts(arm, tuple([_guarded(i, inside, always, memo) for i in arm.index])))
        else:
            arms.append(_guarded(arm, inside, always, memo))
    return select(cond, *arms)
