"""Put what is seldom needed behind a test: on lanes side by side, both arms of a ``select`` cost their time in full."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from kernelforge.ir.cost import BRANCH, effort
from kernelforge.ir.index import reads
from kernelforge.ir.kernel import (
    Alloc,
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
    rebuild,
    stmts,
    substitute,
    walk,
)


def branch(kernel: Kernel) -> Kernel:
    """Compute the arms of selects by ``unlikely`` conditions under an ``If``, where they cost more than the test.

    ``select(unlikely(c), rare, common)`` becomes a buffer that holds ``common``, and ``rare`` after ``If(c)``; of the
    lanes of a ``vector`` loop, printers ask whether any wants it. No ``unlikely`` is left.
    """
    made = _Branching().top(kernel.body)
    memo: dict[Expr, Expr] = {}
    return dataclasses.replace(kernel, body=tuple(map_exprs(s, lambda e: rebuild(e, _plain, memo)) for s in made))


def _plain(e: Expr) -> Expr:
    return e.args[0] if isinstance(e, Op) and e.op == "unlikely" else e


class _Branching:
    def __init__(self) -> None:
        self.count = 0
        self.lanes: For | None = None
        self.buffers: list[Stmt] = []
        """Those of the branches in a vector loop: they hold an element a lane, and stand before it."""

    def top(self, body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        """Rewrite the nests of a kernel; at its top there is no place for the buffers of a vector loop."""
        return tuple(s if isinstance(s, For) and s.kind == "vector" else self.body([s])[0] for s in body)

    def body(self, body: Iterable[Stmt]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        held: dict[Expr, Expr] = {}
        for stmt in body:
            match stmt:
                case For(kind="vector") if self.lanes is None:
                    self.lanes = stmt
                    made = dataclasses.replace(stmt, body=self.body(stmt.body))
                    out += (*self.buffers, made)
                    self.lanes, self.buffers = None, []
                case For() | If():
                    out.append(dataclasses.replace(stmt, body=self.body(stmt.body)))
                case Let() | Store():
                    out += self.split(stmt, held)
                case Alloc():
                    out.append(stmt)
            written = {s.buffer for s in stmts((stmt,)) if isinstance(s, Store)}
            held = {e: place for e, place in held.items() if written.isdisjoint(reads(e))}
        return tuple(out)

    def split(self, stmt: Let | Store, held: dict[Expr, Expr]) -> list[Stmt]:
        """Return the branches of a statement, and what is left of it after them.

        Args:
            held: where the selects of statements before it are held; those of this one are added.
        """
        left = map_exprs(stmt, lambda e: substitute(e, held))
        roots = tuple(exprs(left))
        out: list[Stmt] = []
        for cond, selects in _branches(roots):
            rare: list[Stmt] = []
            for e in selects:
                place = self.buffer(e.dtype, out)
                out.append(Store(place.buffer, place.index, substitute(e.args[2], held)))
                rare.append(Store(place.buffer, place.index, substitute(e.args[1], held)))
                held[e] = place
            test = Var(f"c{self.count}", "bool")
            self.count += 1
            out += (Let(test.name, substitute(cond, held)), If(test, self.body(rare)))
        return [*out, map_exprs(left, lambda e: substitute(e, held))]

    def buffer(self, dtype: str, out: list[Stmt]) -> Load:
        """Make a buffer, here or for the lanes of the loop around; return what it holds."""
        loop = self.lanes
        name = f"r{self.count}"
        self.count += 1
        made = Alloc(name, dtype, () if loop is None else (loop.extent,), "register")
        (out if loop is None else self.buffers).append(made)
        return Load(name, () if loop is None else (loop.var,), dtype)


def _branches(roots: Sequence[Expr]) -> list[tuple[Expr, list[Op]]]:
    """Return the conditions that are worth a branch and the selects by each, those that others depend on first."""
    order: list[Expr] = []
    seen: set[Expr] = set()
    for root in roots:
        order += walk(root, seen)
    found = [e for e in order if _is_rare(e)]
    kept: set[Expr] = set()
    while True:
        needed = _needed(roots, kept)
        rare: dict[Expr, set[Expr]] = {}
        for choice in found:
            if choice in needed and choice not in kept:
                rare.setdefault(choice.args[0], set()).update(walk(choice.args[1], set(needed)))
        cheap = {cond for cond, own in rare.items() if effort(own) < BRANCH}
        if not cheap:
            break
        kept |= {e for e in found if e.args[0] in cheap}
    groups: list[tuple[Expr, list[Op]]] = []
    latest: dict[Expr, int] = {}
    for e in order:
        last = max((latest[x] for x in e.parts), default=-1)
        if _is_rare(e) and e in needed and e not in kept:
            cond = e.args[0]
            last = next((k for k in range(last + 1, len(groups)) if groups[k][0] is cond), len(groups))
            if last == len(groups):
                groups.append((cond, []))
            groups[last][1].append(e)
        latest[e] = last
    return groups


def _is_rare(e: Expr) -> TypeGuard[Op]:
    if not isinstance(e, Op) or e.op != "select":
        return False
    cond = e.args[0]
    return isinstance(cond, Op) and cond.op == "unlikely"


def _needed(roots: Sequence[Expr], kept: set[Expr]) -> set[Expr]:
    """Return what is evaluated whatever the branches; selects in ``kept`` are none."""
    found: set[Expr] = set()
    waiting = list(roots)
    while waiting:
        e = waiting.pop()
        if e not in found:
            found.add(e)
            waiting += (e.args[0], e.args[2]) if _is_rare(e) and e not in kept else e.parts
    return found
