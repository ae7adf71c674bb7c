"""Fuse multiplications into additions, one rounding in place of two: everywhere for ``rounding="fast"``, and in what
computes a function where the device has the instruction.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

from kernelforge.ir.kernel import Expr, Kernel, Op, exprs, map_exprs, op, stmts, walk, with_parts


def contract(kernel: Kernel) -> Kernel:
    """Rewrite ``a * b + c`` and ``a * b - c`` in f32 and f64 to ``fma``."""
    change = Contraction(e for s in stmts(kernel.body) for e in exprs(s))
    return dataclasses.replace(kernel, body=tuple(map_exprs(s, change) for s in kernel.body))


class Contraction:
    """Rewrites expressions that occur in ``roots`` to the operation ``name``, ``fma`` or ``mad``.

    A product that is used more than once stays: fusing it would compute it again, and algorithms that find a product's
    rounding error need it rounded.
    """

    def __init__(self, roots: Iterable[Expr], name: str = "fma") -> None:
        self.name = name
        seen: set[Expr] = set()
        self.uses = collections.Counter(
            a for root in roots for e in walk(root, seen) if isinstance(e, Op) for a in e.args
        )
        self.memo: dict[Expr, Expr] = {}

    def __call__(self, expr: Expr) -> Expr:
        done = self.memo.get(expr)
        if done is None:
            if isinstance(expr, Op) and expr.dtype in ("f32", "f64"):
                done = self.fused(expr)
            if done is None:
                done = with_parts(expr, tuple([self(x) for x in expr.parts]))
            self.memo[expr] = done
        return done

    def fused(self, expr: Op) -> Expr | None:
        if expr.op not in ("add", "sub"):
            return None
        x, y = expr.args
        if isinstance(x, Op) and x.op == "mul" and self.uses[x] == 1:
            rest = self(y)
            return op(self.name, *map(self, x.args), rest if expr.op == "add" else -rest)
        if isinstance(y, Op) and y.op == "mul" and self.uses[y] == 1:
            a, b = map(self, y.args)
            return op(self.name, a if expr.op == "add" else -a, b, self(x))
        return None
