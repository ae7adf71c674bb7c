"""Products on GPUs: tiles of every size keep the meaning, their sizes follow from the device, and steps refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest

from kernelforge.dtypes import DTYPES
from kernelforge.errors import IllegalSchedule, InvalidParameter
from kernelforge.ir import interpret
from kernelforge.ir.kernel import Alloc, Const, Expr, For, Kernel, Load, Op, Stmt, Store, Var, i64, op, stmts
from kernelforge.ir.schedule import tiles
from kernelforge.ir.schedule.ahead import ahead
from kernelforge.ir.schedule.choices import Choices
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.nests import perfect
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.schedule.staging import pad
from kernelforge.ir.verify import verify_kernel
from tests.ir.naive import GPU, TINY, gemm, kernel, same

H200 = dataclasses.replace(GPU, threads=132 * 2048, group=1024)
ASYNC = dataclasses.replace(TINY, native=frozenset({"async"}))


def product(out: tuple[str, ...], x: tuple[str, ...], y: tuple[str, ...], extents: dict[str, int]) -> Kernel:
    """The sum of products of x and y over the names that ``out`` lacks; each operand's axes in the order given."""
    variables = {n: Var(n, "i64", e) for n, e in extents.items()}

    def flat(names: tuple[str, ...]) -> tuple[Expr, int]:
        at: Expr = i64(0)
        count = 1
        for name in reversed(names):
            at, count = at + variables[name] * count, count * extents[name]
        return at, count

    (ox, nx), (oy, ny), (oo, no) = flat(x), flat(y), flat(out)
    sums = [n for n in extents if n not in out]
    body: tuple[Stmt, ...] = (Store("a", (), Load("x", (ox,), "f32") * Load("y", (oy,), "f32"), "add"),)
    for name in reversed(sums):
        body = (For(variables[name], i64(extents[name]), "serial", body),)
    body = (
        Alloc("a", "f32", (), "register"), Store("a", (), Const(0, "f32")), *body,
        Store("o", (oo,), Load("a", (), "f32") * 0.5),
    )  # fmt: skip
    for name in reversed(out):
        body = (For(variables[name], i64(extents[name]), "parallel", body),)
    assert isinstance(body[0], For)
    return kernel("product", (("x", nx), ("y", ny)), no, body[0])


LAYOUTS = {
    "nn": product(("i", "j"), ("i", "k"), ("k", "j"), {"i": 9, "j": 14, "k": 37}),
    "nt": product(("i", "j"), ("i", "k"), ("j", "k"), {"i": 8, "j": 16, "k": 40}),
    "tn": product(("i", "j"), ("k", "i"), ("k", "j"), {"i": 5, "j": 33, "k": 31}),
    "tt": product(("i", "j"), ("k", "i"), ("j", "k"), {"i": 17, "j": 8, "k": 33}),
    "batched": product(("b", "i", "j"), ("b", "i", "k"), ("b", "k", "j"), {"b": 3, "i": 7, "j": 9, "k": 70}),
    "batch within": product(("i", "b", "j"), ("i", "b", "k"), ("k", "b", "j"), {"i": 6, "b": 2, "j": 8, "k": 90}),
    "two of each": product(
        ("i", "p", "j", "q"),
        ("p", "r", "i", "k"),
        ("k", "j", "r", "q"),
        {"i": 2, "p": 3, "j": 3, "q": 5, "k": 8, "r": 9},
    ),
    "columns first": product(("i", "j"), ("k", "j"), ("i", "k"), {"i": 9, "j": 10, "k": 64}),
}


@pytest.mark.parametrize("limits", [GPU, TINY, ASYNC], ids=["gpu", "tiny", "async"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, limits: Limits) -> None:
    made = schedule(LAYOUTS[layout], limits)
    verify_kernel(made)
    assert {s.space for s in stmts(made.body) if isinstance(s, Alloc)} == {"register", "local"}
    same(LAYOUTS[layout], made)
    same(LAYOUTS[layout], made, shuffle=1)


@pytest.mark.parametrize("shape", [(8, 8, 64), (7, 9, 65), (33, 16, 15), (4, 4, 300), (16, 5, 61)])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 4, 16), (4, 8, 8), (2, 2, 32)])
def test_sizes(shape: tuple[int, int, int], sizes: tuple[int, int, int]) -> None:
    given = dict(zip(("rows", "columns", "step"), sizes, strict=True))
    for native in (frozenset({"async"}), frozenset[str]()):
        limits = dataclasses.replace(TINY, group=4, native=native, choices=Choices(given))
        made = schedule(gemm(*shape), limits)
        verify_kernel(made)
        same(gemm(*shape), made)


@pytest.mark.parametrize(
    ("m", "n", "expected"),
    [(4096, 4096, (8, 8)), (1024, 1024, (4, 8)), (256, 256, (2, 2)), (64, 1 << 16, (4, 8)), (100, 100, (2, 2))],
)
def test_sizes_by_formula(m: int, n: int, expected: tuple[int, int]) -> None:
    parallel, body = perfect(gemm(m, n, 512).body[0])  # type: ignore[arg-type]
    found = tiles.found(parallel, body)
    assert found is not None
    made = tiles.tile(found, H200)
    assert (made.items, made.rows, made.columns, made.step) == (16, *expected, 8)


def local_bytes(made: Kernel) -> int:
    held = [s for s in stmts(made.body) if isinstance(s, Alloc) and s.space == "local"]
    return sum(math.prod(interpret.evaluate(n, {}) for n in s.shape) * DTYPES[s.dtype].itemsize for s in held)


@pytest.mark.parametrize("layout", [(("i", "k"), ("k", "j")), (("k", "i"), ("k", "j")), (("i", "k"), ("j", "k"))])
@pytest.mark.parametrize("room", [16 << 10, 32 << 10, 48 << 10])
def test_blocks_fit_local_memory(layout: tuple[tuple[str, ...], ...], room: int) -> None:
    naive = product(("i", "j"), *layout, {"i": 4096, "j": 4096, "k": 64})  # type: ignore[arg-type]
    naive = in_dtype(naive, "f64")
    choices = Choices({})
    limits = dataclasses.replace(GPU, threads=1 << 16, group=256, local_bytes=room, choices=choices)
    assert local_bytes(schedule(naive, limits)) <= room
    for name, values in choices.offered.items():
        for value in values:
            made = schedule(naive, dataclasses.replace(limits, choices=Choices({name: value})))
            assert local_bytes(made) <= room, (name, value)


def test_tensor_cores_have_sizes_of_their_own() -> None:
    naive = product(("i", "j"), ("i", "k"), ("k", "j"), {"i": 64, "j": 64, "k": 4096})
    naive = in_dtype(naive, "f32", "f16")
    choices = Choices({})
    schedule(naive, dataclasses.replace(H200, native=frozenset({"async", "mma", "f16"}), choices=choices))
    assert {name: choices.offered[name] for name in ("rows", "columns", "step")} == {
        "rows": (1, 2), "columns": (2, 4, 8), "step": (32, 16),
    }  # fmt: skip


def in_dtype(naive: Kernel, dtype: str, factors: str = "") -> Kernel:
    """The same product of numbers of another dtype, with factors that are narrower where given."""
    held = {"x": factors or dtype, "y": factors or dtype, "o": dtype, "a": dtype}

    def expr(e: Expr) -> Expr:
        if isinstance(e, Load):
            made = Load(e.buffer, e.index, held[e.buffer])
            return op("cast", made, dtype=dtype) if made.dtype != dtype else made
        if isinstance(e, Const) and e.dtype == "f32":
            return Const(e.value, dtype)
        return Op(e.op, tuple(map(expr, e.args)), dtype) if isinstance(e, Op) and e.dtype == "f32" else e

    def stmt(s: Stmt) -> Stmt:
        if isinstance(s, For):
            return dataclasses.replace(s, body=tuple(map(stmt, s.body)))
        if isinstance(s, Store):
            return dataclasses.replace(s, value=expr(s.value))
        return dataclasses.replace(s, dtype=dtype) if isinstance(s, Alloc) else s

    args = tuple(dataclasses.replace(a, dtype=held[a.name]) for a in naive.args)
    return dataclasses.replace(naive, args=args, body=tuple(map(stmt, naive.body)))


def test_what_is_no_product() -> None:
    for extents in ({"i": 3, "j": 500, "k": 64}, {"i": 4, "j": 4, "k": 9}):
        parallel, body = perfect(product(("i", "j"), ("i", "k"), ("k", "j"), extents).body[0])  # type: ignore[arg-type]
        assert tiles.found(parallel, body) is None
    same_factor = product(("i", "j"), ("i", "j", "k"), ("i", "j", "k"), {"i": 8, "j": 8, "k": 99})
    assert tiles.found(*perfect(same_factor.body[0])) is None  # type: ignore[arg-type]


def filled(*body: Stmt, extent: int = 5) -> Kernel:
    """For each k: fill l with x, then add it to the register s; ``body`` stands at its end."""
    k, t = Var("k", "i64", extent), Var("t", "i64", 4)
    fill = For(t, i64(4), "parallel", (Store("l", (t,), Load("x", (k * 4 + t,), "f32")),))
    use = For(t, i64(4), "serial", (Store("s", (), Load("l", (t,), "f32"), "add"),))
    loop = For(k, i64(extent), "serial", (Alloc("l", "f32", (i64(4),), "local"), fill, use, *body))
    out = Store("o", (i64(0),), Load("s", (), "f32"))
    around = (Alloc("s", "f32", (), "register"), Store("s", (), Const(0, "f32")), loop, out)
    outer = For(Var("g", "i64", 1), i64(1), "parallel", around)
    return kernel("filled", (("x", 64),), 8, outer)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("extent", [1, 2, 5, 6])
def test_ahead(extent: int, through: bool) -> None:
    before = filled(extent=extent)
    after = ahead(before, "k", through)
    verify_kernel(after)
    same(before, after)
    names = {s.buffer for s in stmts(after.body) if isinstance(s, Alloc)}
    assert ("l_b" in names) == (extent > 1)
    assert ("l_next" in names) == (extent > 1 and through)


def test_ahead_refuses() -> None:
    again = Store("l", (i64(0),), Const(1, "f32"))
    with pytest.raises(IllegalSchedule, match="does not fill them first and only read them then"):
        ahead(filled(again), "k", False)
    with pytest.raises(IllegalSchedule, match="no serial loop of constant extent over local buffers"):
        ahead(filled(), "t", False)
    k, t = Var("k", "i64", 5), Var("t", "i64", 4)
    fill = For(t, i64(4), "parallel", (Store("l", (t,), Load("o", (t,), "f32")),))
    use = Store("o", (i64(0),), Load("l", (i64(0),), "f32"))
    loop = For(k, i64(5), "serial", (Alloc("l", "f32", (i64(4),), "local"), fill, use))
    with pytest.raises(IllegalSchedule, match="what fills them is written in it"):
        ahead(kernel("carried", (("x", 4),), 4, loop), "k", False)


def test_pad() -> None:
    before = schedule(LAYOUTS["nn"], dataclasses.replace(TINY, native=frozenset({"async"})))
    shapes = {s.buffer: s.shape for s in stmts(before.body) if isinstance(s, Alloc)}
    after = pad(before, "columns", 1, 3)
    verify_kernel(after)
    same(LAYOUTS["nn"], after)
    made = {s.buffer: s.shape for s in stmts(after.body) if isinstance(s, Alloc)}
    assert made["columns"][0] == shapes["columns"][0]
    assert len(made["columns"]) == 2
    for name in ("a", "nothing"):
        with pytest.raises(IllegalSchedule, match="no local buffer of constant rows"):
            pad(before, name, 1, 1)


def test_what_no_recipe_asks_for_is_no_instruction() -> None:
    with pytest.raises(InvalidParameter, match=r"Limits: native='asynch' is not valid; expected one of f16, bf16, fma"):
        dataclasses.replace(TINY, native=frozenset({"asynch", "mma"}))
