"""Rare arms of selects move behind a test, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    op,
    select,
    stmts,
    unlikely,
    walk,
)
from kernelforge.ir.math import expand_math
from kernelforge.ir.passes.branch import branch
from kernelforge.ir.verify import verify_kernel

N, LANES = 64, 8
G, V = Var("g", "i64", N // LANES), Var("v", "i64", LANES)
AT = G * LANES + V
X = Load("x", (AT,), "f32")


def costly(x: Expr) -> Expr:
    for _ in range(20):
        x = x * 0.75 + 0.125
    return x


def rare(x: Expr, arm: Expr, common: Expr) -> Expr:
    return select(unlikely(x > 1), arm, common)


def kernel(values: Sequence[Expr], lanes: str = "vector") -> Kernel:
    args = [Arg("x", "f32", i64(N), "in")]
    args += [Arg(f"y{k}", "f32", i64(N), "out") for k in range(len(values))]
    body = tuple(Store(f"y{k}", (AT,), value) for k, value in enumerate(values))
    inner = For(V, i64(LANES), lanes, body)  # type: ignore[arg-type]
    return Kernel("k", tuple(args), (), (For(G, i64(N // LANES), "grid", (inner,)),))


def outputs(k: Kernel) -> list[np.ndarray]:
    x = (np.arange(N) % 13 - 6).astype(np.float32) * 0.5
    arrays = {a.name: x.copy() if a.mode == "in" else np.full(N, np.nan, np.float32) for a in k.args}
    run_kernel(k, arrays, {})
    return [arrays[a.name] for a in k.args if a.mode == "out"]


def branches(body: Sequence[Stmt]) -> list[If]:
    return [s for s in stmts(body) if isinstance(s, If)]


NESTED = rare(X, rare(X * 0.5, costly(X + 1), X) + costly(X), X)
CHAINED = rare(X, costly(X), X)
CASES: dict[str, tuple[list[Expr], int]] = {
    "one": ([rare(X, costly(X), X)], 1),
    "cheap": ([rare(X, X * 2, X)], 0),
    "likely": ([select(X > 1, costly(X), X)], 0),
    "what the rest needs anyway": ([rare(X, costly(X), X) + costly(X)], 0),
    "one condition": ([rare(X, costly(X), X) * rare(X, costly(X) + 1, X * 2)], 1),
    "two outputs": ([rare(X, costly(X), X), rare(X, costly(X), X) + 1], 1),
    "two outputs, one nested": ([rare(X, costly(X), X), NESTED * rare(X, costly(X), X)], 3),
    "inside a branch": ([NESTED], 2),
    "one after the other": ([rare(CHAINED, costly(CHAINED), CHAINED * 3)], 2),
    "one condition, one after the other": ([rare(X, costly(CHAINED + 1), CHAINED)], 2),
    "an arm that needs a later branch": ([rare(X, costly(rare(-X, costly(X), X)), X) + rare(-X, costly(X), X)], 2),
    "in the condition": ([rare(rare(X, costly(X), X) * 4, costly(X + 2), X)], 2),
}


@pytest.mark.parametrize("lanes", ["vector", "serial"])
@pytest.mark.parametrize("case", CASES)
def test_branches(case: str, lanes: str) -> None:
    values, count = CASES[case]
    before = kernel(values, lanes)
    after = branch(before)
    verify_kernel(after)
    assert len(branches(after.body)) == count
    assert not any(
        isinstance(e, Op) and e.op == "unlikely" for s in stmts(after.body) for r in exprs(s) for e in walk(r)
    )
    for got, want in zip(outputs(after), outputs(before), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_far_angles_are_behind_a_test(name: str) -> None:
    """What makes angles beyond 1024 exact costs four times as much as all the rest."""
    made = branch(expand_math(kernel([op(name, X)])))
    (test,) = branches(made.body)
    wide = [e for s in stmts(test.body) for r in exprs(s) for e in walk(r) if e.dtype == "u64"]
    outside = [e for s in stmts(made.body) if s not in test.body for r in exprs(s) for e in walk(r) if e.dtype == "u64"]
    assert wide
    assert not outside


def test_a_vector_loop_at_the_top_keeps_its_selects() -> None:
    made = kernel([rare(X, costly(X), X)])
    (nest,) = made.body
    assert isinstance(nest, For)
    (inner,) = nest.body
    assert isinstance(inner, For)
    alone = Kernel("k", made.args, ("g",), (inner,))
    assert not branches(branch(alone).body)


def test_what_an_earlier_statement_branched_on_is_held_until_its_reads_are_stored() -> None:
    """One value in several statements is one branch; of another value of what it reads, it is another one."""
    held = Load("a", (V,), "f32")
    value = select(unlikely(held > 1), costly(held), held)
    body = (
        Store("a", (V,), X),
        Store("y0", (AT,), value),
        Store("y1", (AT,), value * 2),
        Store("a", (V,), X * 3),
        Store("y2", (AT,), value),
    )
    names = ("x", "y0", "y1", "y2")
    args = tuple(Arg(name, "f32", i64(N), "in" if name == "x" else "out") for name in names)
    nest = For(
        G, i64(N // LANES), "grid", (Alloc("a", "f32", (i64(LANES),), "register"), For(V, i64(LANES), "vector", body))
    )
    before = Kernel("held", args, (), (nest,))
    after = branch(before)
    verify_kernel(after)
    assert len(branches(after.body)) == 2
    for got, want in zip(outputs(after), outputs(before), strict=True):
        np.testing.assert_array_equal(got, want)
