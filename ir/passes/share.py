"""Name what is used more than once, and compute outside of a loop what the loop does not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from kernelforge.ir.index import is_data, is_lazy, reads
from kernelforge.ir.kernel import (
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    map_exprs,
    stmts,
    substitute,
    with_parts,
)
from kernelforge.ir.memo import memo


def share(kernel: Kernel) -> Kernel:
    """Bind shared and loop-invariant sub-expressions by Lets; expects what ``guard`` makes.

    A Load moves only as far as the statement before that writes its buffer in the same list, or anywhere if the kernel
    does not write its buffer and it is evaluated in any case.
    """
    return dataclasses.replace(kernel, body=_Sharing(kernel).top())


class _Sharing:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.written = {s.buffer for s in stmts(kernel.body) if isinstance(s, Store)}
        self.depth: dict[Var, int] = {}
        self.depths: dict[Expr, int] = {}
        self.count = 0
        self.first = 0

    def top(self) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for stmt in self.kernel.body:
            self.first = _leading(stmt)
            body, _ = self.list_of((stmt,), 0)
            out += body
        return tuple(out)

    def depth_of(self, expr: Expr) -> int:
        """Return how deep the innermost loop is that ``expr`` depends on; a Load of a written buffer cannot move."""
        known = self.depths.get(expr)
        if known is not None:
            return known
        if isinstance(expr, Var):
            return self.depth.get(expr, 0)
        if isinstance(expr, Const):
            return 0
        if isinstance(expr, Load):
            found = max((self.depth_of(i) for i in expr.index), default=0)
            if expr.buffer in self.written:
                found = 1 << 30
        else:
            assert isinstance(expr, Op)
            found = max(self.depth_of(a) for a in expr.args)
        self.depths[expr] = found
        return found

    def list_of(self, body: Sequence[Stmt], depth: int, held: bool = False) -> tuple[list[Stmt], dict[Expr, None]]:
        """Rewrite a statement list at ``depth``; also return what should be bound further out."""
        outward: dict[Expr, None] = {}
        rows: list[tuple[Stmt, dict[Expr, None]]] = []
        for stmt in body:
            wanted: dict[Expr, None] = {}
            if isinstance(stmt, For) and stmt.static == 0:
                pass  # what it loads need not be there
            elif isinstance(stmt, For | If):
                made, requests = self.within(stmt, depth)
                stmt = dataclasses.replace(stmt, body=tuple(made))
                for e in requests:
                    leaves = isinstance(stmt, If) or self.target(e) < depth
                    if leaves and not (held and _exposed(e)):
                        outward[e] = None
                    else:
                        wanted[e] = None
            seen: set[tuple[Expr, bool]] = set()
            for root in exprs(stmt):
                self.invariants(root, depth, not held, outward, seen)
            if isinstance(stmt, Let):
                self.depth[Var(stmt.name, stmt.value.dtype)] = depth
            rows.append((stmt, wanted))
        return self.bind(rows, outward), outward

    def within(self, stmt: For | If, depth: int) -> tuple[list[Stmt], dict[Expr, None]]:
        """Rewrite what stands in a loop or a condition; siblings may use one variable at different depths."""
        if isinstance(stmt, If):
            return self.list_of(stmt.body, depth, True)
        self.depth[stmt.var] = depth + 1
        self.depths.clear()
        made = self.list_of(stmt.body, depth + 1)
        del self.depth[stmt.var]
        self.depths.clear()
        return made

    def target(self, expr: Expr) -> int:
        return max(self.depth_of(expr), self.first)

    def invariants(
        self, expr: Expr, depth: int, always: bool, found: dict[Expr, None], seen: set[tuple[Expr, bool]]
    ) -> None:
        """Collect the largest sub-expressions that can be bound further out."""
        if (expr, always) in seen:
            return
        seen.add((expr, always))
        if not isinstance(expr, Op):
            if isinstance(expr, Load):
                for i in expr.index:
                    self.invariants(i, depth, always, found, seen)
            return
        if _worth(expr) and self.target(expr) < depth and (always or not _exposed(expr)):
            found[expr] = None
            return
        for k, arg in enumerate(expr.args):
            self.invariants(arg, depth, always and not (k and is_lazy(expr)), found, seen)

    def bind(self, rows: Sequence[tuple[Stmt, dict[Expr, None]]], outward: Collection[Expr]) -> list[Stmt]:
        """Bind what is wanted and what is shared in a list; what is bound further out is left as it is known there."""
        names: dict[Expr, Expr] = {}
        steady: dict[Expr, Expr] = {}  # those of them that load nothing the kernel writes
        reading: dict[str, list[Expr]] = {}  # by buffer, what is named and loads from it
        out: list[Stmt] = []
        uses: dict[Expr, int] = {}
        safe: set[Expr] = set()
        for stmt, wanted in rows:
            seen: set[tuple[Expr, bool]] = set()
            for root in (*wanted, *exprs(stmt)):
                _count(root, True, uses, safe, seen)

        def let(e: Expr, value: Expr) -> Expr:
            if isinstance(value, Var | Const):
                return value
            var = Var(f"t{self.count}", e.dtype)
            self.count += 1
            out.append(Let(var.name, value))
            names[e] = var
            found = reads(e)
            for buffer in found:
                reading.setdefault(buffer, []).append(e)
            if self.written.isdisjoint(found):
                steady[e] = var
            return var

        for stmt, wanted in rows:
            memo: dict[Expr, Expr] = {}

            def rewrite(e: Expr, memo: dict[Expr, Expr] = memo) -> Expr:
                done = e if e in outward else names.get(e, memo.get(e))
                if done is not None:
                    return done
                done = with_parts(e, tuple([rewrite(x) for x in e.parts]))
                shared = isinstance(e, Op | Load) and uses.get(e, 0) > 1 and _worth(e)
                if shared and (e in safe or _exposed(e) <= safe):
                    done = let(e, done)
                memo[e] = done
                return done

            for e in wanted:
                if e not in names:
                    let(e, rewrite(e))
            if isinstance(stmt, For | If):
                # what is bound here is known inside, too
                memo2: dict[Expr, Expr] = {}
                body = tuple(map_exprs(s, lambda e: substitute(e, steady, memo2)) for s in stmt.body)  # noqa: B023
                head = dataclasses.replace(stmt, body=())
                head = map_exprs(head, rewrite)  # type: ignore[assignment]
                out.append(dataclasses.replace(head, body=body))
            else:
                out.append(map_exprs(stmt, rewrite))
            changed = {s.buffer for s in stmts((stmt,)) if isinstance(s, Store)}
            for e in [e for buffer in changed for e in reading.pop(buffer, ())]:
                names.pop(e, None)
        return out


def _leading(stmt: Stmt) -> int:
    """Return how many loops around the body a printer takes together as the range of the launch."""
    depth = 0
    while isinstance(stmt, For) and stmt.kind in ("grid", "parallel"):
        depth += 1
        if len(stmt.body) != 1:
            break
        (stmt,) = stmt.body
    return depth


def _worth(expr: Expr) -> bool:
    """Whether naming ``expr`` saves work: indices are left whole, for printers to read their steps off."""
    return expr.dtype != "i64" or is_data(expr)


@memo
def _exposed(expr: Expr) -> frozenset[Load]:
    """Return the Loads evaluated whenever ``expr`` is; after ``guard`` those in arms of lazy selects are safe."""
    if isinstance(expr, Load):
        return frozenset((expr,)).union(*(_exposed(i) for i in expr.index))
    if isinstance(expr, Op):
        return frozenset().union(*(_exposed(a) for a in (expr.args[:1] if is_lazy(expr) else expr.args)))
    return frozenset()


def _count(expr: Expr, always: bool, uses: dict[Expr, int], safe: set[Expr], seen: set[tuple[Expr, bool]]) -> None:
    if isinstance(expr, Const | Var):
        return
    uses[expr] = uses.get(expr, 0) + 1
    if always:
        safe.add(expr)
    if (expr, always) in seen or (expr, True) in seen:
        return
    seen.add((expr, always))
    if isinstance(expr, Load):
        for i in expr.index:
            _count(i, always, uses, safe, seen)
    elif isinstance(expr, Op):
        for k, arg in enumerate(expr.args):
            _count(arg, always and not (k and is_lazy(expr)), uses, safe, seen)
