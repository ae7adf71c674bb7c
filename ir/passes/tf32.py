"""Round the factors of what contractions sum, where the user's precision allows it."""

from __future__ import annotations

import dataclasses

from kernelforge.ir.kernel import For, If, Kernel, Op, Stmt, Store, op


def round_factors(kernel: Kernel) -> Kernel:
    """Round both factors of each product of f32 that a loop sums to tf32."""
    return dataclasses.replace(kernel, body=tuple(_rounded(s, within=False) for s in kernel.body))


def _rounded(stmt: Stmt, within: bool) -> Stmt:
    if isinstance(stmt, For | If):
        within = within or (isinstance(stmt, For) and stmt.kind == "serial")
        return dataclasses.replace(stmt, body=tuple(_rounded(s, within) for s in stmt.body))
    if not (within and isinstance(stmt, Store) and stmt.op == "add" and stmt.value.dtype == "f32"):
        return stmt
    value = stmt.value
    if not (isinstance(value, Op) and value.op == "mul"):
        return stmt
    factors = [e if _narrow(e) else op("tf32", e) for e in value.args]
    return dataclasses.replace(stmt, value=op("mul", *factors))


def _narrow(e: object) -> bool:
    """Whether a factor has no more bits anyhow."""
    return isinstance(e, Op) and e.op == "cast" and e.args[0].dtype in ("bf16", "f16")
