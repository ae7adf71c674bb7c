"""Sharing: what is computed once, and what must be computed again."""

from __future__ import annotations

from kernelforge.ir.kernel import For, Load, Op, Stmt, Store, Var, exprs, i64, op, stmts, walk
from kernelforge.ir.passes.share import share
from kernelforge.ir.text import print_stmt
from tests.ir.naive import kernel

index = (Var("i", "i64", 4),)
root = op("sqrt", Load("p", index, "f32"))


def roots(*body: Stmt) -> int:
    """Count the square roots that are left in a loop over ``body``."""
    made = share(kernel("shared", (), 4, For(Var("i", "i64", 4), i64(4), "parallel", body)))
    found = [e for s in stmts(made.body) for r in exprs(s) for e in walk(r)]
    return sum(isinstance(e, Op) and e.op == "sqrt" for e in found)


def test_statements_share_what_no_write_stands_between() -> None:
    write = Store("p", index, Load("x", index, "f32"))
    assert roots(write, Store("o", index, root), Store("q", index, root + 1.0)) == 1


def test_a_write_ends_the_sharing_of_what_reads_the_buffer() -> None:
    write = Store("p", index, Load("x", index, "f32"))
    assert roots(Store("o", index, root), write, Store("q", index, root + 1.0)) == 2


def test_what_a_loop_does_not_change_is_computed_outside_alone() -> None:
    """Also where parts of it are shared in the loop."""
    row, column = Var("r", "i64", 4), Var("i", "i64", 8)
    part = op("sqrt", Load("p", (row,), "f32"))
    whole = op("exp", part) + part * part
    store = Store("q", (row * 8 + column,), Load("x", (row * 8 + column,), "f32") * whole - part)
    nest = For(row, i64(4), "parallel", (For(column, i64(8), "vector", (store,)),))
    made = share(kernel("shared", (), 4, nest))
    (outer,) = made.body
    assert isinstance(outer, For)
    *lets, inner = outer.body
    found = [e.op for s in stmts((inner,)) for r in exprs(s) for e in walk(r) if isinstance(e, Op) and e.dtype == "f32"]
    assert sorted(found) == ["mul", "sub"]
    assert len(lets) == len({print_stmt(s) for s in lets}) >= 2
