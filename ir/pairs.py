"""Products of bf16 in pairs, which some processors add to an f32 by one instruction, as kernels have them."""

from __future__ import annotations

from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.kernel import Expr, For, Load, Op, Store, Var, walk
from kernelforge.ir.passes.widen import from_bits


def pairs(loop: For) -> tuple[Store, list[Load]] | None:
    """Return the Store that a loop of two iterations is, if it adds products of bf16, and the Loads of their bits."""
    (stmt,) = loop.body if len(loop.body) == 1 else (None,)
    if loop.static != 2 or not isinstance(stmt, Store) or stmt.op != "add" or stmt.value.dtype != "f32":
        return None
    value = stmt.value
    if not isinstance(value, Op) or value.op != "mul" or any(loop.var in free_vars(i) for i in stmt.index):
        return None
    found = [load for load in (_pair(e, loop.var) for e in value.args) if load is not None]
    return (stmt, found) if len(found) == 2 else None


def _pair(e: Expr, var: Var) -> Load | None:
    """Return the Load of bits that ``e`` is the bf16 of, if ``var`` counts elements that lie side by side."""
    (load,) = loads if len(loads := [x for x in walk(e) if isinstance(x, Load)]) == 1 else (None,)
    if load is None or load.dtype != "u16" or e is not from_bits(load, "bf16"):
        return None
    *outer, last = load.index
    return load if affine(last, var) == 1 and not any(var in free_vars(i) for i in outer) else None
