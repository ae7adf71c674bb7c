"""Asynchronous copies of the CUDA printer: what is one, when it may be wide, and that barriers wait for it."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")

from kernelforge.backends.cuda.analysis import copied, for_all, inlined
from kernelforge.backends.cuda.printer import print_kernel
from kernelforge.ir.interpret import evaluate
from kernelforge.ir.kernel import Alloc, Const, Expr, For, Kernel, Let, Load, Stmt, Store, Var, i64, select
from tests.backends.on_cuda import kernel, loop

G, V = Var("g", "i64", 6), Var("v", "i64", 4)


@pytest.mark.parametrize("count", range(1, 26))
def test_a_guard_that_holds_for_all_lanes_or_for_none(count: int) -> None:
    for step, offset in itertools.product((4, 2, 8), (0, 4, 1)):
        cond = (G * step + V + offset) < i64(count)
        found = for_all(cond, V, 4)
        values = [[bool(evaluate(cond, {"g": g, "v": v})) for v in range(4)] for g in range(6)]
        if found is not None:
            assert values == [[bool(evaluate(found, {"g": g}))] * 4 for g in range(6)]
        elif not (step % 4 or offset % 4 or count % 4):
            pytest.fail("it is uniform, and aligned")


def test_guards_that_are_joined_or_of_another_kind() -> None:
    inside, other = G * 4 + V < 20, Var("k", "i64", 9) < 5
    assert for_all(other, V, 4) is other
    assert for_all(inside & other, V, 4) is not None
    assert for_all(G * 4 + V > 20, V, 4) is None
    assert for_all(inside & (V * 2 < 3), V, 4) is None


def test_what_is_a_copy() -> None:
    load = Load("x", (G,), "f32")
    cond = G < 3
    assert copied(Store("l", (G,), load)) == (load, None)
    assert copied(Store("l", (G,), select(cond, load, 0.0))) == (load, cond)
    assert copied(Store("l", (G,), select(cond, select(cond, load, 0.0), 0.0))) == (load, cond & cond)
    narrow = Load("x", (G,), "bf16")
    there_and_back = select(cond, narrow.cast("f32"), 0.0).cast("bf16")
    assert copied(Store("l", (G,), there_and_back)) == (narrow, cond)
    for value in (load * 2.0, select(cond, load, 1.0), load.cast("f16"), Const(0, "f32"), narrow.cast("f32")):
        assert copied(Store("l", (G,), value)) is None
    assert copied(Store("l", (G,), load, "add")) is None


def test_lets_are_put_in() -> None:
    body: list[Stmt] = [
        Let("p", G * 2), Let("q", Var("p") + 1), Store("l", (Var("q"),), Load("x", (Var("p"),), "f32")),
    ]  # fmt: skip
    (found,) = inlined(body).values()
    assert found == Store("l", (G * 2 + 1,), Load("x", (G * 2,), "f32"))


def shifted(read_in_unit: bool) -> Kernel:
    """Copy x to shared memory, and read it in the same unit or in one of its own."""
    t = Var("t", "i64", 64)
    fill: Stmt = Store("l", (t,), Load("x", (t,), "f32"))
    use: Expr = Load("l", (t,), "f32") * 2.0
    units = [(fill, Store("o", (t,), use))] if read_in_unit else [(fill,), (Store("o", (t,), use),)]
    return kernel(
        "shifted", "x:f32[64] o:f32[64]!",
        [loop("g", 1, "grid", lambda _: [
            Alloc("l", "f32", (i64(64),), "local"), *(For(t, i64(64), "group", unit) for unit in units),
        ])],
    )  # fmt: skip


def test_barriers_wait_for_copies() -> None:
    (phase,) = print_kernel(shifted(read_in_unit=False), ampere=True)
    lines = [line.strip() for line in phase.source.splitlines()]
    (barrier,) = (k for k, line in enumerate(lines) if line == "cuda.syncthreads()")
    assert lines[barrier - 1] == "copies_done()"
    assert any(line.startswith("copy4(") for line in lines[:barrier])


def test_what_the_same_unit_reads_is_not_copied_asynchronously() -> None:
    (phase,) = print_kernel(shifted(read_in_unit=True), ampere=True)
    assert "copy4" not in phase.source
    (phase,) = print_kernel(shifted(read_in_unit=False), ampere=False)
    assert "copy" not in phase.source
