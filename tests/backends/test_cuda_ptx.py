"""The CUDA backend without a device: what NVIDIA's compiler makes of the kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")

from kernelforge.backends.base import Limits
from kernelforge.backends.cuda.launch import Launches
from kernelforge.backends.cuda.lib import SIMULATED
from kernelforge.backends.cuda.printer import print_kernel
from kernelforge.dtypes import DTYPES, INTEGERS
from kernelforge.errors import CompilationFailed, InvalidParameter, MalformedKernel
from kernelforge.ir.kernel import (
    MATH_BINARY,
    MATH_UNARY,
    Alloc,
    Const,
    Expr,
    Kernel,
    Load,
    Stmt,
    Store,
    Var,
    i64,
    op,
)  # fmt: skip
from kernelforge.ir.passes.finish import finish
from kernelforge.ir.schedule.recipes import schedule
from tests.backends.on_cuda import SCALARS, kernel, loop, pointwise, rows
from tests.ir import naive


@pytest.fixture
def offline() -> Any:
    """The offline compiler, which the simulator hides."""
    if SIMULATED:
        pytest.skip("numba runs its simulator")
    return pytest.importorskip("kernelforge.backends.cuda.offline", reason="NVIDIA's compiler wheels are not installed")


GPU = Limits("group", 16, 128, 132 * 2048, 1024, 48 << 10, 50 << 20, frozenset(DTYPES), False, 480, "none")


def streaming(fn: Callable[[Expr], Expr] = lambda x: op("tanh", x * 0.5) + op("exp", -x * x)) -> Kernel:
    def lane(g: Var, t: Var, v: Var) -> list[Stmt]:
        i = (g * 256 + t) * 4 + v
        x = Load("x", (i,), "f32")
        return [Store("y", (i,), fn(x))]

    nest = loop(
        "g",
        64,
        "grid",
        lambda g: [loop("t", 256, "group", lambda t: [loop("v", 4, "vector", lambda v: lane(g, t, v))])],
    )
    return finish(kernel("streaming", "x:f32[65536] y:f32[65536]!", [nest]), frozenset())


def scheduled(made: Kernel) -> Kernel:
    return finish(schedule(made, GPU), GPU.native)


WIDE = ("ld.global.v4.f32", "st.global.v4.f32")
REPRESENTATIVE: dict[str, tuple[Callable[[], Kernel], tuple[str, ...]]] = {
    "streaming": (streaming, WIDE),
    "a branch": (lambda: streaming(lambda x: op("sin", x)), WIDE),
    "rows": (lambda: rows(8, 1000, 256), ("bar.sync", "shfl.sync.down", "ld.shared", "st.shared", "ld.global.f32")),
    "softmax": (lambda: scheduled(naive.softmax(64, 1024)), ("bar.sync", "shfl.sync.down", *WIDE)),
    "gemm": (lambda: scheduled(naive.gemm(256, 256, 256)), ("ld.global", "st.global")),
    "columns": (lambda: scheduled(naive.columns(64, 100)), ("ld.global", "st.global")),
    "map": (lambda: scheduled(naive.double(1000)), WIDE),
    "map with a rest": (lambda: scheduled(naive.double(1003)), (*WIDE, "ld.global.f32", "st.global.f32")),
}


@pytest.mark.parametrize("case", REPRESENTATIVE)
def test_ptx(case: str, offline: Any) -> None:
    make, expected = REPRESENTATIVE[case]
    made = make()
    for cc in ((8, 0), (9, 0)):
        ptx = offline.compile_ptx(made, cc)
        for text in expected:
            assert text in ptx
        assert "ld.local" not in ptx
        report = offline.ptx_report(ptx, "sm_{}{}".format(*cc))
        assert report.spills == 0
        assert 0 < report.registers <= 255


@pytest.mark.parametrize(
    ("shape", "registers", "copies", "multiplications"),
    [
        ((4096, 4096, 512), 120, (3, 12), 128),
        ((4092, 4088, 511), 120, (3, 12), 128),
        ((4001, 4001, 501), 128, (0, 24), 128),
        ((64, 64, 8192), 72, (0, 6), 64),
    ],
    ids=["whole tiles", "edges that are aligned", "edges that are not", "split sums"],
)
def test_products(
    shape: tuple[int, int, int], registers: int, copies: tuple[int, int], multiplications: int, offline: Any
) -> None:
    """Blocks are copied while the last ones are used: one barrier each; edges cost no narrow loads where they align."""
    for cc in ((8, 0), (9, 0)):
        limits = dataclasses.replace(GPU, native=offline.native(cc))
        ptx = offline.compile_ptx(finish(schedule(naive.gemm(*shape), limits), limits.native), cc)
        assert (ptx.count("cp.async.cg"), ptx.count("cp.async.ca")) == copies
        assert ptx.count("bar.sync") == 2
        assert ptx.count("fma.rn.f32") == multiplications
        assert "st.shared" not in ptx
        report = offline.ptx_report(ptx, "sm_{}{}".format(*cc))
        assert report.spills == 0
        assert "ld.local" not in ptx
        assert report.registers <= registers
    older = dataclasses.replace(GPU, native=offline.native((7, 5)))
    ptx = offline.compile_ptx(finish(schedule(naive.gemm(*shape), older), older.native), (7, 5))
    assert "cp.async" not in ptx
    assert offline.ptx_report(ptx, "sm_75").spills == 0


def test_rows_that_are_not_aligned_are_scalar(offline: Any) -> None:
    assert ".v4" not in offline.compile_ptx(scheduled(naive.softmax(4, 1022)))


def test_multiplication_and_addition_stay_apart(offline: Any) -> None:
    k = pointwise("apart", {"o": lambda x, y: x * y + x}, "f32", range(4), range(4))
    assert "fma" not in offline.compile_ptx(k)
    joined = kernel(
        "joined",
        "x:f32[4] y:f32[1]!",
        [
            loop(
                "i",
                4,
                "serial",
                lambda i: [Store("y", (i64(0),), Load("x", (i,), "f32") * Load("x", (i,), "f32"), "add")],
            )
        ],
    )
    assert "fma.rn.f32" in offline.compile_ptx(joined)


def test_every_operation_compiles(offline: Any) -> None:
    for dtype in ("f32", "f64"):
        outs = {
            n: (lambda x, y, n=n: op(n, x))
            for n in (*MATH_UNARY, "abs", "sqrt", "floor", "ceil", "trunc", "rint", "neg")
        }
        outs |= {n: (lambda x, y, n=n: op(n, x, y)) for n in (*MATH_BINARY, "min", "max", "div")}
        offline.compile_ptx(pointwise(f"all_{dtype}", outs, dtype, range(4), range(4)))
    for dtype in (*sorted(INTEGERS), "bool"):
        names = ["and", "or", "xor", "min", "max", "eq", "lt"] + (
            ["floordiv", "mod", "shl", "shr", "sub", "mul"] if dtype != "bool" else []
        )
        outs = {n: (lambda x, y, n=n: op(n, x, y)) for n in names} | {"not": lambda x, y: op("not", x)}
        outs |= {f"to_{d}": (lambda x, y, d=d: x.cast(d)) for d in SCALARS if d != dtype}
        offline.compile_ptx(pointwise(f"all_{dtype}", outs, dtype, range(4), range(4)))


def test_compilers_refusals(offline: Any) -> None:
    big = kernel("big", "y:f32[1]!", [loop("g", 1, "grid", lambda _: [
        Alloc("l", "f32", (i64(1 << 16),), "local"), Store("l", (i64(0),), Const(1, "f32")),
        loop("t", 2, "group", lambda t: [Store("y", (i64(0),), Load("l", (t,), "f32"))]),
    ])])  # fmt: skip
    with pytest.raises(CompilationFailed, match="big"):
        offline.ptx_report(offline.compile_ptx(big), "sm_90")
    half = Load("x", (i64(0),), "f16")
    with pytest.raises(MalformedKernel, match="widen"):
        print_kernel(kernel("half", "x:f16[1] y:f16[1]!", [Store("y", (i64(0),), half + half)]))
    many = kernel("many", "y:f32[1]!", [loop("g", 1 << 40, "grid", lambda _: [Store("y", (i64(0),), Const(0, "f32"))])])
    with pytest.raises(InvalidParameter, match="blocks"):
        Launches(many, simulated=False, ampere=False).blocks([])


def test_a_damaged_binary_is_refused(offline: Any) -> None:
    backend = pytest.importorskip("kernelforge.backends.cuda.backend")
    binary = backend.pack([("first", b"one"), ("second", b"two")])
    assert backend.unpack(binary, "k") == [("first", b"one"), ("second", b"two")]
    with pytest.raises(backend.DamagedBinary, match="checksum"):
        backend.unpack(binary[:-1] + b"!", "k")
