"""Fuse multiplications into additions: one rounding in place of two, for ``rounding="fast"``."""

from __future__ import annotations

import dataclasses

from kernelforge.ir.kernel import Expr, Kernel, Load, Op, map_exprs, op


def contract(kernel: Kernel) -> Kernel:
    """Rewrite ``a * b + c`` and ``a * b - c`` in f32 and f64 to ``fma``."""
    memo: dict[Expr, Expr] = {}
    return dataclasses.replace(kernel, body=tuple(map_exprs(s, lambda e: _contracted(e, memo)) for s in kernel.body))


def _contracted(expr: Expr, memo: dict[Expr, Expr]) -> Expr:
    done = memo.get(expr)
    if done is None:
        if isinstance(expr, Load):
            done = Load(expr.buffer, tuple(_contracted(i, memo) for i in expr.index), expr.dtype)
        elif isinstance(expr, Op):
            args = tuple(_contracted(a, memo) for a in expr.args)
            done = _fused(expr.op, args) if expr.dtype in ("f32", "f64") else None
            if done is None:
                done = expr if args == expr.args else op(expr.op, *args, dtype=expr.dtype)
        else:
            done = expr
        memo[expr] = done
    return done


def _fused(name: str, args: tuple[Expr, ...]) -> Expr | None:
    if name not in ("add", "sub"):
        return None
    x, y = args
    if isinstance(x, Op) and x.op == "mul":
        return op("fma", *x.args, y if name == "add" else -y)
    if isinstance(y, Op) and y.op == "mul":
        a, b = y.args
        return op("fma", a if name == "add" else -a, b, x)
    return None
