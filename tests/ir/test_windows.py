"""Steps for loops that slide over each other: the interpreter gives the same before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import affine, free_vars
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import (
    Alloc,
    Const,
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
    walk,
)
from kernelforge.ir.schedule import convolution
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.schedule.staging import stage
from kernelforge.ir.schedule.steps import bind, fuse, loops, split
from kernelforge.ir.schedule.windows import cross, flat, lengthen, slides
from kernelforge.ir.verify import verify_kernel
from tests.ir.naive import DEVICES, kernel, same

ROWS, COLUMNS = 5, 21


def pooling(
    step: int = 1,
    stride: int = 1,
    pad: int = 1,
    op: str = "add",
    rows: int = ROWS,
    columns: int = COLUMNS,
    seen: Callable[[Expr], Expr] | None = None,
    size: int = 3,
) -> Kernel:
    """Sum square windows of a padded image, or of the columns that are seen of one without padding."""
    last = (size - 1) * stride + 1
    y, x = (Var(n, "i64", (m + 2 * pad - last) // step + 1) for n, m in (("i", rows), ("j", columns)))
    p, q = Var("p", "i64", size), Var("q", "i64", size)
    u, v = (a * step + b * stride - pad for a, b in ((y, p), (x, q)))
    inside = seen(v) if seen else (u >= 0) & (u < rows) & (v >= 0) & (v < columns)
    value = select(inside, Load("x", (u * columns + v,), "f32"), 0)
    body: tuple[Stmt, ...] = (Store("a", (), value, op),)
    for r in (q, p):
        body = (For(r, i64(r.bound or 0), "serial", body),)
    out = Store("o", (y * (x.bound or 0) + x,), Load("a", (), "f32"))
    body = (Alloc("a", "f32", (), "register"), Store("a", (), Const(0, "f32")), *body, out)
    for r in (x, y):
        body = (For(r, i64(r.bound or 0), "parallel", body),)
    return kernel("pooling", (("x", rows * columns),), (y.bound or 0) * (x.bound or 0), body[0])


def results(k: Kernel) -> np.ndarray:
    x = np.random.default_rng(0).uniform(0.5, 1.5, ROWS * COLUMNS).astype(np.float32)
    sizes = {a.name: int(a.size.value) for a in k.args}  # type: ignore[attr-defined]
    buffers = {name: np.full(n, np.nan, np.float32) for name, n in sizes.items()} | {"x": x}
    run_kernel(k, buffers, {})
    return buffers["o"]


def image(k: Kernel) -> Op:
    return next(e for s in stmts(k.body) for r in exprs(s) for e in walk(r) if isinstance(e, Op) and e.op == "select")


def staged(k: Kernel) -> Kernel:
    return stage(k, image(k), "", [("i", "p"), ("j", "q")], "global", "t")


@pytest.mark.parametrize(("step", "stride"), [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_what_windows_share_is_computed_once(step: int, stride: int) -> None:
    naive = pooling(step, stride)
    if step == 3:
        with pytest.raises(IllegalSchedule, match="i and p do not slide over each other"):
            staged(naive)
        return
    made = staged(naive)
    verify_kernel(made)
    np.testing.assert_allclose(results(made), results(naive), rtol=1e-6)
    (j,) = loops(made, "j")
    read = [e for s in stmts((j,)) for r in exprs(s) for e in walk(r) if isinstance(e, Load) and e.buffer == "t"]
    assert [affine(e.index[-1], j.var) for e in read] == [1]  # side by side, whatever the step


def test_what_slides() -> None:
    k = pooling()
    (y,), (x,), (p,), (q,) = (loops(k, n) for n in "ijpq")
    found = slides(image(k), y, p)
    assert found is not None
    assert (found.step, found.stride) == (1, 1)
    assert slides(image(k), x, p) is None
    assert slides(image(k), y, q) is None
    assert slides(Load("x", (y.var * 3 + p.var,), "f32"), y, p) is None  # no element is in two windows
    assert slides(Load("x", (y.var + p.var,), "f32") * Load("w", (p.var,), "f32"), y, p) is None
    assert slides(Load("x", (y.var * 2 + p.var * 3,), "f32"), y, p) is None


def test_positions_become_one_loop() -> None:
    naive = pooling()
    made = flat(fuse(lengthen(staged(naive), "j", 23), "i", "j", "n"), "t", 2)
    np.testing.assert_allclose(results(made), results(naive), rtol=1e-6)
    (n,) = loops(made, "n")
    (index,) = {
        e.index for s in stmts((n,)) for r in exprs(s) for e in walk(r) if isinstance(e, Load) and e.buffer == "t"
    }
    p, q = (loops(made, name)[0].var for name in "pq")
    assert index == (n.var + p * 23 + q,)
    made = bind(cross(split(made, "n", 16, "no", "nv", "guard"), "nv"), "nv", "vector")
    np.testing.assert_allclose(results(made), results(naive), rtol=1e-6)
    (lane,) = loops(made, "nv")
    assert len(lane.body) == 2
    assert all(isinstance(s, If) for s in lane.body)


def test_lengthen_refuses_less() -> None:
    with pytest.raises(IllegalSchedule, match="its extent is not known to be under 20"):
        lengthen(pooling(), "j", 20)


MASKS = dataclasses.replace(DEVICES["avx512"], native=frozenset({"masks"}))


@pytest.mark.parametrize("limits", [DEVICES["avx512"], MASKS, DEVICES["gpu"]], ids=["avx512", "masks", "gpu"])
@pytest.mark.parametrize(("step", "stride", "pad"), [(1, 1, 1), (1, 1, 0), (2, 1, 1), (1, 2, 2), (2, 1, 0), (3, 2, 1)])
def test_windows_are_reduced(limits: Limits, step: int, stride: int, pad: int) -> None:
    """With masks, an image whose lanes lie side by side is read where it is, and no element beyond it."""
    naive = pooling(step, stride, pad)
    made = schedule(naive, limits)
    verify_kernel(made)
    packed = any(isinstance(s, Alloc) and s.buffer == "image" for s in stmts(made.body))
    assert packed == (limits.form == "vector" and step < 3 and (limits is not MASKS or step > 1))
    np.testing.assert_allclose(results(made), results(naive), rtol=1e-6)
    assert bool(convolution.reduced(naive)) == (step < 3)


@pytest.mark.parametrize(
    ("size", "walked"),
    [(4, {"p": "unroll", "q": "unroll"}), (5, {"q": "serial", "p": "unroll"}), (33, {"p": "serial"})],
)
def test_windows_below_each_other_share_what_they_load(size: int, walked: dict[str, str]) -> None:
    """A step along the lanes at a time: all of a window's column, as far as it is worth writing out."""
    naive = pooling(rows=40, columns=50, size=size, pad=0)
    made = schedule(naive, DEVICES["avx512"])
    verify_kernel(made)
    same(naive, made)
    found = {s.var.name: s.kind for s in stmts(made.body) if isinstance(s, For) and s.var.name in walked}
    assert found == walked
    if size == 5:
        assert [*found] == [*walked]


@pytest.mark.parametrize(
    ("rows", "columns", "order"),
    [(16, 21, ["jo", "io"]), (19, 37, ["jo", "io"]), (70, 90, ["io", "jo"]), (40, 700, None)],
    ids=["whole tiles", "a rest", "large", "wide"],
)
def test_images_are_read_where_they_lie_as_far_as_the_cache_holds_rows_of_tiles(
    rows: int, columns: int, order: list[str] | None
) -> None:
    """By strips if it holds them whole; rows that make no whole tile are a tile of their own, and others do not ask."""
    naive = pooling(rows=rows, columns=columns)
    made = schedule(naive, MASKS)
    verify_kernel(made)
    same(naive, made)
    packed = any(isinstance(s, Alloc) and s.buffer == "image" for s in stmts(made.body))
    assert packed == (order is None)
    if order is not None:
        nest = [s.var.name for s in stmts(made.body) if isinstance(s, For) and s.var.name in order]
        assert nest[:2] == order
        (tiles,) = loops(made, "io")
        assert not any(
            isinstance(s, If) and Var("io", "i64", tiles.static) in free_vars(s.cond) for s in stmts((tiles,))
        )
        assert len(loops(made, "io_t")) == (rows % 8 != 0)


@pytest.mark.parametrize(
    "seen", [lambda v: (v < 7) | (v >= 14), lambda v: op("not", v < 7)], ids=["one of two", "the opposite"]
)
def test_what_need_not_hold_says_nothing_of_where_an_image_ends(seen: Callable[[Expr], Expr]) -> None:
    """Lanes beyond the last position read no further than windows reach: memory may end there."""
    naive = pooling(pad=0, seen=seen)
    made = schedule(naive, MASKS)
    assert not any(isinstance(s, Alloc) and s.buffer == "image" for s in stmts(made.body))
    same(naive, made)
