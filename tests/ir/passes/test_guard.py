"""Where Loads are guarded, and that it takes no more of them than there were."""

from __future__ import annotations

import dataclasses

import numpy as np

from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import Arg, Expr, For, Kernel, Load, Store, Var, exprs, i64, op, select, stmts, walk
from kernelforge.ir.passes.guard import guard
from kernelforge.ir.passes.share import share

I = Var("i", "i64", 8)  # noqa: E741 - the loop variable


def x(index: Expr) -> Expr:
    return Load("x", (index,), "f32")


def stored(value: Expr) -> Kernel:
    args = (Arg("x", "f32", i64(8), "in"), Arg("y", "f32", i64(8), "out"))
    return Kernel("k", args, (), (For(I, i64(8), "grid", (Store("y", (I,), value),)),))


def check(k: Kernel) -> Kernel:
    """Guard and share ``k``, which has to keep its meaning and its Loads in range."""
    data = np.arange(1.0, 9.0, dtype=np.float32)
    made = share(guard(k))
    results = []
    for kernel in (k, made):
        out = np.zeros(8, np.float32)
        run_kernel(kernel, {"x": data, "y": out}, {})
        results.append(out)
    np.testing.assert_array_equal(*results)
    return made


def test_a_load_in_an_arm_by_indices_is_guarded() -> None:
    k = stored(select(I > 0, op("sqrt", x(I - 1)), 0.0) + select(I > 0, op("sqrt", x(I - 1)) * 2, 1.0))
    made = check(k)
    assert "sqrt(select(t0, x[i - 1], 0.0f32))" in str(made)
    assert str(made).count("sqrt") == 1


def test_a_fixed_element_of_an_argument_needs_no_guard() -> None:
    key = op("sqrt", x(i64(1)))
    made = str(check(stored(select(I > 3, key + x(I - 3), key * 2))))
    assert "sqrt(x[1])" in made
    assert "select(t0, x[i - 3], 0.0f32)" in made
    assert "select(i > 8, x[8], 0.0f32)" in str(guard(stored(select(I > 8, op("sqrt", x(i64(8))), 0.0))))


def test_an_arm_by_values_is_in_range_as_it_is() -> None:
    assert guard(stored(select(x(I) < 3, op("sqrt", x(7 - I)), 0.0))) == stored(
        select(x(I) < 3, op("sqrt", x(7 - I)), 0.0)
    )


def test_choices_among_choices_do_not_multiply() -> None:
    value = x(I)
    for k in range(24):
        value = select(value < k, value * 2 - x(7 - I), op("max", value, x(I)))
    made = check(stored(value))
    assert sum(isinstance(e, Load) for s in stmts(made.body) for r in exprs(s) for e in walk(r)) == 2
    assert len(str(made).splitlines()) < 120


def test_chains_of_indices_in_memory_do_not_multiply() -> None:
    """What a condition reads is read once, for its arms too: ``p = t[p]`` again and again, from the end or not."""
    at: Expr = I
    for _ in range(24):
        place = select(at < 0, at + 8, at)
        at = select((place >= 0) & (place < 8), Load("k", (place,), "i64"), -9)
    args = (Arg("k", "i64", i64(8), "in"), Arg("y", "i64", i64(8), "out"))
    chain = Kernel("k", args, (), (For(I, i64(8), "grid", (Store("y", (I,), select(I < 6, at, -1)),)),))
    made = share(guard(chain))
    assert sum(isinstance(e, Load) for s in stmts(made.body) for r in exprs(s) for e in walk(r)) == 24
    assert len(str(made).splitlines()) < 120
    table, followed = np.array([3, -1, 0, 9, 7, 2, -8, 5]), []
    for start in range(8):
        p = start
        for _ in range(24):
            p = int(table[p]) if -8 <= p < 8 else -9
        followed.append(p if start < 6 else -1)
    for kernel in (chain, made):
        out = np.zeros(8, np.int64)
        run_kernel(kernel, {"k": table, "y": out}, {})
        np.testing.assert_array_equal(out, followed)


def test_what_equals_an_index_in_memory_guards_no_load() -> None:
    k = Load("k", (I,), "i64")
    args = (Arg("k", "i64", i64(8), "in"), Arg("x", "f32", i64(8), "in"), Arg("y", "f32", i64(8), "out"))
    value, square = op("sqrt", x(I)), x(7 - I)
    for bit in range(24):
        value = value * select((k & (1 << bit)).ne(0), square, 1.0)
        square = square * square
    made = Kernel("k", args, (), (For(I, i64(8), "grid", (Store("y", (I,), value),)),))
    assert guard(made) == made
    by_order = dataclasses.replace(
        made, body=(For(I, i64(8), "grid", (Store("y", (I,), select(k < 3, x(k) * 2, 1.0)),)),)
    )
    assert guard(by_order) != by_order
