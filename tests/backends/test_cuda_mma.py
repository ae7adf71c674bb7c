"""Products on tensor cores: which lane holds what, and that the lanes of a printed unit load just that."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")

from kernelforge.backends.cuda import mma
from kernelforge.backends.cuda.analysis import nested
from kernelforge.backends.cuda.lib import SIMULATED
from kernelforge.backends.cuda.printer import print_kernel
from kernelforge.dtypes import DTYPES
from kernelforge.ir.interpret import evaluate, run_kernel
from kernelforge.ir.kernel import Alloc, Arg, Const, Expr, For, Kernel, Load, Store, Var, i64, op, stmts
from kernelforge.ir.passes.finish import finish
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.verify import verify_kernel
from tests.ir.naive import GPU

NATIVE = frozenset({"async", "mma", "tf32", "f16", "bf16"})
AMPERE = dataclasses.replace(GPU, threads=108 * 2048, group=1024, native=NATIVE)

A_OF_LANE_6 = [(1, 4), (1, 5), (9, 4), (9, 5), (1, 12), (1, 13), (9, 12), (9, 13)]
"""Row and column of a0 to a7 in lane 6 (group 1, member 2), read off the figures of the PTX ISA."""
B_OF_LANE_6 = [(4, 1), (5, 1), (12, 1), (13, 1)]
C_OF_LANE_6 = [(1, 4), (1, 5), (9, 4), (9, 5)]
TF32_A_OF_LANE_6 = [(1, 2), (9, 2), (1, 6), (9, 6)]
TF32_B_OF_LANE_6 = [(2, 1), (6, 1)]


def test_lanes_hold_what_the_isa_says() -> None:
    assert [mma.left(1, 2, i, 2) for i in range(8)] == A_OF_LANE_6
    assert [mma.right(1, 2, i, 2) for i in range(4)] == B_OF_LANE_6
    assert [mma.result(1, 2, i) for i in range(4)] == C_OF_LANE_6
    lanes = np.arange(32)
    group, member = lanes >> 2, lanes % 4
    left, right = functools.partial(mma.left, pack=2), functools.partial(mma.right, pack=2)
    for place, count, shape in ((left, 8, (16, 16)), (right, 4, (16, 8)), (mma.result, 4, (16, 8))):
        held = np.zeros(shape, np.int64)
        for i in range(count):
            np.add.at(held, place(group, member, i), 1)
            # the conditions of the ISA, for every lane
            first, second = place(group, member, i)
            narrow = member * 2 + (i & 1)
            if place is left:
                assert (first == np.where(i < 2 or 4 <= i < 6, group, group + 8)).all()
                assert (second == np.where(i < 4, narrow, narrow + 8)).all()
            elif place is right:
                assert (first == np.where(i < 2, narrow, narrow + 8)).all()
                assert (second == group).all()
            else:
                assert (first == np.where(i < 2, group, group + 8)).all()
                assert (second == narrow).all()
        assert (held == 1).all()


def test_lanes_hold_what_the_isa_says_of_tf32() -> None:
    assert [mma.left(1, 2, i, 1) for i in range(4)] == TF32_A_OF_LANE_6
    assert [mma.right(1, 2, i, 1) for i in range(2)] == TF32_B_OF_LANE_6
    lanes = np.arange(32)
    group, member = lanes >> 2, lanes % 4
    for i in range(4):
        row, depth = mma.left(group, member, i, 1)
        assert (row == np.where(i in (0, 2), group, group + 8)).all()
        assert (depth == np.where(i < 2, member, member + 4)).all()
    for i in range(2):
        depth, column = mma.right(group, member, i, 1)
        assert (depth == np.where(i == 0, member, member + 4)).all()
        assert (column == group).all()


def product(m: int, n: int, k: int, across: bool = False, dtype: str = "bf16") -> Kernel:
    """x @ y, or x @ y.T where ``across``, of narrow floats, or of f32 rounded to tf32, with sums in f32."""
    i, j, r = Var("i0", "i64", m), Var("i1", "i64", n), Var("r", "i64", k)
    y = Load("y", (j * k + r,) if across else (r * n + j,), dtype)
    x = Load("x", (i * k + r,), dtype)
    value = op("tf32", x) * op("tf32", y) if dtype == "f32" else x.cast("f32") * y.cast("f32")
    body = (
        Alloc("a", "f32", (), "register"), Store("a", (), Const(0, "f32")),
        For(r, i64(k), "serial", (Store("a", (), value, "add"),)), Store("o", (i * n + j,), Load("a", (), "f32")),
    )  # fmt: skip
    args = (Arg("x", dtype, i64(m * k), "in"), Arg("y", dtype, i64(n * k), "in"), Arg("o", "f32", i64(m * n), "out"))
    return Kernel("product", args, (), (For(i, i64(m), "parallel", (For(j, i64(n), "parallel", body),)),))


def arrays(kernel: Kernel) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sizes = {a.name: (a.dtype, int(a.size.value)) for a in kernel.args}  # type: ignore[attr-defined]
    return {name: rng.integers(-8, 9, n).astype(DTYPES[dtype]) for name, (dtype, n) in sizes.items()}


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("shape", [(20, 17, 40), (64, 16, 32), (7, 40, 70)])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_the_schedule_keeps_the_meaning(dtype: str, shape: tuple[int, int, int], across: bool) -> None:
    before = product(*shape, across, dtype)
    after = schedule(before, AMPERE)
    verify_kernel(after)
    first, second = arrays(before), arrays(after)
    run_kernel(before, first, {})
    run_kernel(after, second, {})
    np.testing.assert_array_equal(second["o"], first["o"])


def unit(kernel: Kernel) -> mma.Small:
    for s in stmts(kernel.body):
        if isinstance(s, For) and s.kind == "group":
            chain, _, body = nested(s)
            found = mma.small(chain, body)
            if found is not None:
                return found
    raise AssertionError("nothing multiplies")


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("dtype", [*mma.NARROW, "f32"])
def test_lanes_load_what_their_accumulators_need(dtype: str, across: bool) -> None:
    """The product of the fragments that a warp loads is, in each lane, the sum that its loops make."""
    of = unit(finish(schedule(product(64, 16, 32, across, dtype), AMPERE), AMPERE.native))
    pack = of.pack
    step = Var("step", "i64", 2)
    warps = {of.store.index[0]: 2, of.store.index[1]: 1, **{p.var: (p.static or 1) - 1 for p in of.outer}}

    def at(index: tuple[Expr, ...], values: dict[Expr, int]) -> tuple[int, ...]:
        names = {v.name: value for v, value in values.items() if isinstance(v, Var)}
        return tuple(int(evaluate(e, names)) for e in index)

    rng = np.random.default_rng(0)
    held = {name: {} for name in ("a", "b")}  # type: dict[str, dict[tuple[int, ...], float]]

    def value(which: str, place: tuple[int, ...]) -> float:
        return held[which].setdefault(place, float(rng.integers(-9, 9)))

    total = np.zeros((16, 8))
    for number in range(2):
        a, b = np.zeros((16, of.deep)), np.zeros((of.deep, 8))
        for lane in range(32):
            values = {**warps, of.group.var: lane >> 2, of.member.var: lane % 4, step: number}
            for i in range(4 * pack):
                a[mma.left(lane >> 2, lane % 4, i, pack)] = value("a", at(of.a_index(i, step), values))
            for i in range(2 * pack):
                b[mma.right(lane >> 2, lane % 4, i, pack)] = value("b", at(of.b_index(i, step), values))
        total += a @ b
    for lane in range(32):
        for i in range(4):
            own = {of.group.var: lane >> 2, of.member.var: lane % 4, of.row.var: i // 2, of.column.var: i % 2}
            made = 0.0
            for k in range(2 * of.deep):
                values = {**warps, **own, of.depth.var: k}
                made += value("a", at(of.a.index, values)) * value("b", at(of.b.index, values))
            assert made == total[mma.result(lane >> 2, lane % 4, i)]


@pytest.mark.parametrize(("across", "registers"), [(False, 152), (True, 152)])
@pytest.mark.parametrize("dtype", [*mma.NARROW, "f32"])
def test_compiled(dtype: str, across: bool, registers: int) -> None:
    if SIMULATED:
        pytest.skip("numba runs its simulator")
    offline = pytest.importorskip("kernelforge.backends.cuda.offline", reason="NVIDIA's compiler wheels are missing")
    made = finish(schedule(product(4096, 4096, 512, across, dtype), AMPERE), AMPERE.native)
    for cc in ((8, 0), (9, 0)):
        ptx = offline.compile_ptx(made, cc)
        # two units of two steps each, 2 x 8 products a warp
        form = "k8.row.col.f32.tf32.tf32.f32" if dtype == "f32" else f"k16.row.col.f32.{dtype}.{dtype}.f32"
        assert ptx.count(f"mma.sync.aligned.m16n8{form}") == 64
        # four registers of rows and two of columns, each rounded once
        assert ptx.count("cvt.rna.tf32") == (2 * 2 * (2 * 4 + 8 * 2) if dtype == "f32" else 0)
        assert "cp.async.cg.shared.global" in ptx
        assert "ld.local" not in ptx
        assert "fma.rn" not in ptx
        report = offline.ptx_report(ptx, "sm_{}{}".format(*cc))
        assert report.spills == 0
        assert report.registers <= registers
        assert report.shared <= 48 << 10


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_without_tensor_cores_lanes_add_products(dtype: str) -> None:
    made = finish(schedule(product(64, 16, 32, dtype=dtype), AMPERE), AMPERE.native)
    (phase,) = print_kernel(made, simulated=True, ampere=True)
    assert "mma_" not in phase.source
    assert "fma(" in phase.source
    assert ("tf32(" in phase.source) == (dtype == "f32")
