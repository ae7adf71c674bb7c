"""Move the laziness of ``select`` down to the Loads that need it, so that all above them may be shared and moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kernelforge.ir.index import is_lazy
from kernelforge.ir.kernel import Const, Expr, For, If, Kernel, Load, Op, Stmt, exprs, map_exprs, select, with_parts


def guard(kernel: Kernel) -> Kernel:
    """Rewrite ``select(c, f(x[i]), y)`` to ``select(c, f(select(c, x[i], 0)), y)``.

    Only selects by indices need their laziness: in arms of the others every Load is in range. A Load that its statement
    may evaluate in any case stays as it is, and so does one that is all of an arm, or of a fixed element that an
    argument has: what is made of such elements alone may leave the loops. Afterwards an expression whose Loads all
    stand in arms of its own lazy selects, or are of fixed elements, may be evaluated anywhere.
    """
    sizes = {a.name: a.size.value for a in kernel.args if isinstance(a.size, Const)}
    return dataclasses.replace(kernel, body=tuple(_statement(s, sizes) for s in kernel.body))


def _statement(stmt: Stmt, sizes: Mapping[str, float]) -> Stmt:
    body = tuple(_statement(s, sizes) for s in stmt.body) if isinstance(stmt, For | If) else ()
    own = _own(stmt, sizes)
    return dataclasses.replace(own, body=body) if isinstance(own, For | If) else own


def _own(stmt: Stmt, sizes: Mapping[str, float]) -> Stmt:
    head = dataclasses.replace(stmt, body=()) if isinstance(stmt, For | If) else stmt
    guards = _Guards(sizes)
    for root in exprs(head):
        guards.note(root, None)
    return map_exprs(head, lambda e: guards.guarded(e, None))


class _Guards:
    """Guards Loads by where they are evaluated: a path is what holds there, None where nothing needs to.

    Attributes:
        sizes: of the arguments.
        known: what is evaluated wherever a path holds that the present one implies, and that path: within the arms of a
            select what its condition needs. It is the same there, and not one more Load.
    """

    def __init__(self, sizes: Mapping[str, float]) -> None:
        self.sizes = sizes
        self.known: dict[Expr, Expr | None] = {}
        self.memo: dict[tuple[Expr, Expr | None], Expr] = {}

    def note(self, expr: Expr, path: Expr | None) -> list[Expr]:
        """Remember all that is evaluated whenever ``expr`` is; return what is new."""
        added: list[Expr] = []
        todo = [expr]
        while todo:
            e = todo.pop()
            if e not in self.known:
                self.known[e] = path
                added.append(e)
                todo += e.parts[:1] if isinstance(e, Op) and is_lazy(e) else e.parts
        return added

    def guarded(self, expr: Expr, path: Expr | None) -> Expr:
        """Rewrite ``expr``, which is evaluated only where ``path`` holds."""
        path = self.known.get(expr, path)
        key = (expr, path)
        done = self.memo.get(key)
        if done is None:
            done = self.memo[key] = self._rewritten(expr, path)
        return done

    def _rewritten(self, expr: Expr, path: Expr | None) -> Expr:
        if isinstance(expr, Load):
            load = with_parts(expr, tuple([self.guarded(i, path) for i in expr.index]))
            return load if path is None or self.there(expr) else select(path, load, 0)
        if not isinstance(expr, Op) or not is_lazy(expr):
            return with_parts(expr, tuple([self.guarded(x, path) for x in expr.parts]))
        cond = self.guarded(expr.args[0], path)
        added = self.note(expr.args[0], path)
        arms: list[Expr] = []
        for arm, holds in ((expr.args[1], cond), (expr.args[2], ~cond)):
            inside = holds if path is None else path & holds
            if path is None and isinstance(arm, Load) and arm not in self.known:
                arms.append(with_parts(arm, tuple([self.guarded(i, inside) for i in arm.index])))
            else:
                arms.append(self.guarded(arm, inside))
        for e in added:
            del self.known[e]
        return select(cond, *arms)

    def there(self, load: Load) -> bool:
        """Whether a Load reads a fixed element of an argument, which is in range wherever that is read."""
        fixed = [i.value for i in load.index if isinstance(i, Const)]
        return len(fixed) == len(load.index) == 1 and 0 <= fixed[0] < self.sizes.get(load.buffer, 0)
