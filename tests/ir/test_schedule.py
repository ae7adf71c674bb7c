"""Schedule steps and recipes: the interpreter gives the same before and after; what is not legal is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kernelforge.errors import IllegalSchedule
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Op,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    op,
    stmts,
    substitute,
    walk,
)
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.passes.guard import guard
from kernelforge.ir.passes.share import share
from kernelforge.ir.schedule import phases, steps
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.schedule.staging import copy_out, outward, stage
from kernelforge.ir.verify import verify_kernel
from tests.ir.naive import DEVICES, columns, double, gemm, kernel, softmax

SHAPES = [
    *(gemm(m, n, k) for m, n, k in [(13, 70, 19), (37, 80, 9), (64, 64, 16), (4, 16, 70), (1, 5, 3), (6, 64, 1)]),
    *(softmax(m, n) for m, n in [(3, 300), (2, 64), (5, 10), (1, 1), (2, 1000), (1, 20000)]),
    *(columns(m, n) for m, n in [(30, 200), (5, 64), (7, 10), (3000, 40), (40000, 1), (70001, 1), (1, 17)]),
    *(double(n) for n in [1, 5, 100, 40000]),
]


def arrays(k: Kernel, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for arg in k.args:
        n = int(arg.size.value)  # type: ignore[attr-defined]
        out[arg.name] = (
            rng.uniform(0.5, 1.5, n).astype(np.float32) if arg.mode == "in" else np.full(n, np.nan, np.float32)
        )
    return out


def same(before: Kernel, after: Kernel, tolerance: float = 1e-3, **options: int) -> None:
    first, second = arrays(before), arrays(after)
    run_kernel(before, first, {})
    run_kernel(after, second, {}, **options)
    np.testing.assert_allclose(second["o"], first["o"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("naive", SHAPES, ids=lambda k: f"{k.name}-{k.args[0].size.value}-{k.args[-1].size.value}")
def test_recipes_keep_the_meaning(naive: Kernel, device: str) -> None:
    made = schedule(naive, DEVICES[device])
    verify_kernel(made)
    verify_kernel(share(guard(made)))
    same(naive, share(guard(made)))
    same(naive, made, shuffle=1)


def test_a_product_is_packed_and_accumulated_in_registers() -> None:
    made = schedule(gemm(64, 128, 64), DEVICES["avx512"])
    spaces = {s.buffer: (s.space, len(s.shape)) for s in stmts(made.body) if isinstance(s, Alloc)}
    assert spaces == {"a": ("register", 2), "columns": ("local", 2)}
    assert not [a.name for a in made.args if a.mode == "scratch"]


def test_rows_that_do_not_lie_as_a_tile_reads_them_are_packed_once() -> None:
    """Not along the sum, not in whole tiles, or not as they are in memory."""
    for naive in (gemm(64, 128, 64, transposed=True), gemm(61, 128, 64)):
        made = schedule(naive, DEVICES["avx512"])
        assert [a.name for a in made.args if a.mode == "scratch"] == ["rows"]
        same(naive, made)


def test_threads_share_the_rows_of_a_product_with_few_columns() -> None:
    naive = gemm(1000, 40, 20)
    made = schedule(naive, DEVICES["avx512"])
    assert [s.var.name for s in stmts(made.body) if isinstance(s, For) and s.kind == "grid"] == ["i1o", "i0b"]
    same(naive, made)


def test_a_long_product_is_summed_in_blocks() -> None:
    naive = gemm(13, 40, 2100)
    made = schedule(naive, DEVICES["avx512"])
    spaces = {s.buffer: s.space for s in stmts(made.body) if isinstance(s, Alloc)}
    assert spaces == {"a": "local", "block": "register", "columns": "local"}
    assert [s.static for s in steps.loops(made, "rb")] == [5]
    verify_kernel(made)
    same(naive, made)


@pytest.mark.parametrize("device", ["avx512", "gpu"])
def test_a_convolution_is_a_product_whose_weights_are_packed_once(device: str) -> None:
    """Images (2, 8, 6, 20), weights (9, 8, 3, 3): rows are the output channels, columns run along the images."""
    names = {"n": 2, "o": 9, "u": 6, "v": 20, "c": 8, "p": 3, "q": 3}
    n, o, u, v, c, p, q = (Var(name, "i64", extent) for name, extent in names.items())
    image = Load("x", (n * 1408 + c * 176 + (u + p) * 22 + v + q,), "f32")
    weight = Load("y", (o * 72 + c * 9 + p * 3 + q,), "f32")
    body: tuple[Stmt, ...] = (Store("a", (), image * weight, "add"),)
    for r in (q, p, c):
        body = (For(r, i64(names[r.name]), "serial", body),)
    out = Store("o", (n * 1080 + o * 120 + u * 20 + v,), Load("a", (), "f32"))
    body = (Alloc("a", "f32", (), "register"), Store("a", (), Const(0, "f32")), *body, out)
    for r in (v, u, o, n):
        body = (For(r, i64(names[r.name]), "parallel", body),)
    naive = kernel("conv", (("x", 2816), ("y", 648)), 2160, body[0])
    made = schedule(naive, DEVICES[device])
    verify_kernel(made)
    same(naive, made)
    if device == "avx512":
        assert [a.name for a in made.args if a.mode == "scratch"] == ["rows"]
        assert {s.buffer: s.space for s in stmts(made.body) if isinstance(s, Alloc)}["columns"] == "local"


def test_partial_sums() -> None:
    k = columns(6, 8)
    made = steps.partial(steps.split(k, "r", 4, "o", "r", "clip"), "r", "p")
    same(k, made)
    assert [s.buffer for s in stmts(made.body) if isinstance(s, Alloc)] == ["a", "p"]
    with pytest.raises(IllegalSchedule, match="it does not combine into one element"):
        steps.partial(double(8), "i", "p")


def test_split_tails() -> None:
    k = double(10)
    for tail in ("guard", "clip", "cut", "part"):
        same(k, steps.split(k, "i", 4, "a", "b", tail))  # type: ignore[arg-type]
    same(k, steps.split(k, "i", 5, "a", "b", "exact"))
    with pytest.raises(IllegalSchedule, match="extent 10 is no multiple of 4"):
        steps.split(k, "i", 4, "a", "b", "exact")
    with pytest.raises(IllegalSchedule, match="there is no such loop"):
        steps.split(k, "z", 4, "a", "b", "exact")


def test_a_work_item_of_a_gpu_takes_16_bytes() -> None:
    for k, wide in ((double(40003), 1), (softmax(2, 64), 3), (softmax(2, 62), 0), (columns(5, 64), 0)):
        made = schedule(k, DEVICES["gpu"])
        vectors = [s for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"]
        assert [s.static for s in vectors] == [4] * wide
        verify_kernel(made)
        same(k, made)
    turned = Load("x", (Var("j", "i64", 8) * 8 + Var("i", "i64", 8),), "f32")
    nest = For(
        Var("j", "i64", 8), i64(8), "parallel", (Store("o", (Var("i", "i64", 8) * 8 + Var("j", "i64", 8),), turned),)
    )
    k = kernel("turn", (("x", 64),), 64, For(Var("i", "i64", 8), i64(8), "parallel", (nest,)))
    assert not any(isinstance(s, For) and s.kind == "vector" for s in stmts(schedule(k, DEVICES["gpu"]).body))


def test_bind_needs_independence() -> None:
    k = columns(8, 8)
    with pytest.raises(IllegalSchedule, match="a serial loop cannot become grid"):
        steps.bind(k, "r", "grid")
    assert steps.loops(steps.bind(k, "r", "vector"), "r")[0].kind == "vector"
    running = kernel(
        "running", (("x", 8),), 8,
        For(Var("i", "i64", 8), i64(8), "serial", (Store("o", (Var("i", "i64", 8),), Load("o", (i64(0),), "f32")),)),
    )  # fmt: skip
    with pytest.raises(IllegalSchedule, match="a serial loop cannot become vector"):
        steps.bind(running, "i", "vector")


def test_reorder_needs_nesting_and_freedom() -> None:
    k = gemm(4, 4, 4)
    same(k, steps.reorder(k, "i0", "i1"))
    with pytest.raises(IllegalSchedule, match="they are not perfectly nested"):
        steps.reorder(k, "i1", "r")
    i, j = Var("i", "i64", 4), Var("j", "i64", 4)
    store = Store("o", (i64(0),), Load("x", (i * 4 + j,), "f32"))
    last = kernel("last", (("x", 16),), 1, For(i, i64(4), "serial", (For(j, i64(4), "serial", (store,)),)))
    with pytest.raises(IllegalSchedule, match="both loops are serial and order matters"):
        steps.reorder(last, "i", "j")


def test_fission_grows_registers() -> None:
    k = columns(6, 8)
    made = steps.fission(k, "i")
    assert len([s for s in made.body if isinstance(s, For)]) == 3
    same(k, made)
    same(k, steps.reorder(made, "i", "r"))
    with pytest.raises(IllegalSchedule, match="a serial loop is not independent"):
        steps.fission(k, "r")


def test_fission_gives_each_loop_the_names_it_needs() -> None:
    i = Var("i", "i64", 5)
    v, w = Var("v", "f32"), Var("w", "f32")
    body = (
        Let("v", Load("x", (i,), "f32") * 2),
        Store("o", (i,), v),
        Let("w", v + 1),
        Store("o", (i + 5,), w),
        Store("o", (i + 10,), Load("x", (i,), "f32")),
    )
    k = kernel("named", (("x", 5),), 15, For(i, i64(5), "parallel", body))
    made = steps.fission(k, "i")
    assert [len(s.body) for s in made.body if isinstance(s, For)] == [2, 3, 1]
    same(k, made)
    late = (*body[:1], Store("o", (i,), v), Let("w", Load("o", (i,), "f32")), Store("o", (i + 5,), w))
    again = kernel("late", (("x", 5),), 15, For(i, i64(5), "parallel", (*late, Store("o", (i,), w))))
    with pytest.raises(IllegalSchedule, match="it stores to what a Let has read"):
        steps.fission(again, "i")


def test_rfactor_and_tree() -> None:
    k = softmax(2, 32)
    made = steps.split(k, "rb", 8, "o", "l", "exact")
    made = steps.rfactor(made, "o", "l", "p")
    same(k, made)
    same(k, steps.tree(made, "l", "t"))
    with pytest.raises(IllegalSchedule, match="not one combining store"):
        steps.rfactor(k, "rc", "rc", "p")
    odd = steps.rfactor(steps.split(columns(12, 2), "r", 3, "o", "l", "exact"), "o", "l", "p")
    with pytest.raises(IllegalSchedule, match="3 values do not fold by halves"):
        steps.tree(odd, "l", "t")


def test_rfactor_leaves_what_each_iteration_stores() -> None:
    r = Var("r", "i64", 32)
    x = Load("x", (r,), "f32")
    total = (Alloc("s", "f32", (), "register"), Store("s", (), Const(0.0, "f32")))
    most = (Alloc("m", "f32", (), "register"), Store("m", (), Const(0.0, "f32")))

    def of(index: Expr) -> Kernel:
        body = (Store("o", (index,), x * 2), Store("s", (), x, "add"), Store("m", (), x, "max"))
        last = (Store("o", (i64(32),), Load("s", (), "f32")), Store("o", (i64(33),), Load("m", (), "f32")))
        row = (*total, *most, For(r, i64(32), "serial", body), *last)
        return kernel("two", (("x", 32),), 34, For(Var("i", "i64", 1), i64(1), "parallel", row))

    def lanes(k: Kernel) -> Kernel:
        return steps.rfactor(steps.split(k, "r", 8, "o", "l", "exact"), "o", "l", "p")

    made = lanes(of(r))
    assert {s.buffer for s in stmts(made.body) if isinstance(s, Alloc)} == {"s", "m", "p", "p1"}
    same(of(r), made)
    same(of(r), steps.bind(made, "l", "vector"))
    with pytest.raises(IllegalSchedule, match="iterations share elements of o"):
        lanes(of(r // 16))


def test_a_row_keeps_what_its_passes_share() -> None:
    def computed(k: Kernel) -> int:
        loops = [s for s in stmts(k.body) if isinstance(s, For)]
        return sum(
            any(isinstance(e, Op) and e.op == "exp" for s in f.body for r in exprs(s) for e in walk(r)) for f in loops
        )

    wide = softmax(2, 1024)
    made = schedule(wide, DEVICES["avx512"])
    assert computed(wide) == 2
    assert computed(made) == 1
    assert [s.buffer for s in stmts(made.body) if isinstance(s, Alloc) and s.space == "local"] == ["row0"]
    # the sum is taken in the pass that stores, which is one of three
    (row,) = [s for s in made.body if isinstance(s, For)]
    assert len([s for s in row.body if isinstance(s, For) and s.kind in ("serial", "parallel")]) == 3
    small = dataclasses.replace(DEVICES["avx512"], cache_bytes=4096)
    assert computed(schedule(wide, small)) == 2


def test_stage_refuses_what_changes() -> None:
    k = gemm(4, 4, 4)
    x = Load("x", (Var("i0", "i64", 4) * 4 + Var("r", "i64", 4),), "f32")
    same(k, stage(k, x, "i0", ["r"], "local", "t"))
    same(k, stage(k, x, "", ["i0", "r"], "global", "t"))
    with pytest.raises(IllegalSchedule, match="depends on a loop that is not listed"):
        stage(k, x, "", ["r"], "global", "t")
    with pytest.raises(IllegalSchedule, match="is written there"):
        stage(k, Load("a", (), "f32"), "", [], "local", "t")
    with pytest.raises(IllegalSchedule, match="nothing computes it there"):
        stage(k, x * 2, "i0", ["r"], "local", "t")


def test_what_is_kept_for_each_iteration_has_its_place_in_memory() -> None:
    k = gemm(4, 4, 4)
    x = Load("x", (Var("i0", "i64", 4) * 4 + Var("r", "i64", 4),), "f32")
    made = outward(stage(k, x, "i0", ["r"], "local", "t"), "t", ["i0"])
    same(k, made)
    same(k, made, shuffle=1)
    assert [tuple(n.value for n in s.shape) for s in made.body if isinstance(s, Alloc)] == [(4, 4)]
    with pytest.raises(IllegalSchedule, match="not allocated in loops of constant extents"):
        outward(stage(k, x, "i0", ["r"], "local", "t"), "t", ["i0", "i1"])


def guarded(loop: str, place: int, below: int) -> For:
    """Store twice x, to eight places from ``place`` on, where the loop is below a number."""
    i = Var(loop, bound=8)
    store = Store("o", (i + place,), Load("x", (i,), "f32") * 2)
    return For(i, i64(8), "serial", (If(i < below, (store,)),))


def test_stage_keeps_guards() -> None:
    """What is kept where one guard holds is padding elsewhere."""
    x, o = Arg("x", "f32", i64(8), "in"), Arg("o", "f32", i64(16), "out")
    wanted = Load("x", (Var("i", bound=8),), "f32") * 2

    def staged(*body: Stmt) -> Kernel:
        k = Kernel("guarded", (x, o), (), body)
        made = stage(k, wanted, "", ["i"], "local", "t")
        same(k, made)
        return made

    def read(k: Kernel) -> int:
        return sum(isinstance(e, Load) and e.buffer == "t" for s in stmts(k.body) for r in exprs(s) for e in walk(r))

    first, alike, other = guarded("i", 0, 6), guarded("i", 8, 6), guarded("i", 8, 3)
    assert read(staged(dataclasses.replace(first, body=first.body + alike.body))) == 2
    with pytest.raises(IllegalSchedule, match="wanted under different guards"):
        staged(dataclasses.replace(first, body=first.body + other.body))
    with pytest.raises(IllegalSchedule, match="wanted under different guards"):
        staged(dataclasses.replace(first, body=(*first.body, *alike.body[0].body)))
    assert read(staged(first, guarded("j", 8, 6))) == 2
    assert read(staged(first, guarded("j", 8, 7))) == 1


def test_copy_out_frees_readers_from_registers() -> None:
    k = gemm(4, 8, 3)
    tiled = steps.fission(steps.fission(k, "i1"), "i0")
    made = copy_out(tiled, "a", "t")
    assert {s.buffer: s.space for s in stmts(made.body) if isinstance(s, Alloc)} == {"a": "register", "t": "local"}
    (reader,) = steps.loops(made, "t_i1")
    assert {e.buffer for s in reader.body for r in exprs(s) for e in walk(r) if isinstance(e, Load)} == {"t", "b"}
    same(k, made)
    fixed = (Alloc("a", "f32", (i64(2),), "register"), Store("a", (i64(0),), Const(1.0, "f32")))
    with pytest.raises(IllegalSchedule, match="not written one element for each iteration"):
        copy_out(Kernel("fixed", (), (), fixed), "a", "t")


def test_long_work_on_a_tile_is_not_unrolled() -> None:
    def of(name: str) -> Kernel:
        k = gemm(13, 70, 19)
        loop = k.body[0]
        memo: dict[Expr, Expr] = {}
        acc = Load("a", (), "f32")
        swap: dict[Expr, Expr] = {acc + Load("b", (Var("i1", "i64", 70),), "f32"): op(name, acc)}
        return dataclasses.replace(k, body=(map_exprs(loop, lambda e: substitute(e, swap, memo)),))

    assert not steps.loops(schedule(of("abs"), DEVICES["avx512"]), "tile_i0r")
    made = schedule(of("tanh"), DEVICES["avx512"])
    assert [s.kind for s in steps.loops(made, "tile_i0r")] == ["parallel"]
    same(of("tanh"), made)


def test_merge_makes_one_of_equal_conditions() -> None:
    i = Var("i", "i64", 5)
    guarded = [If(i < 3, (Store(o, (i,), Load("x", (i,), "f32") * 2.0),)) for o in ("o", "p")]
    loop = For(i, i64(5), "grid", (*guarded, If(i < 4, (Store("o", (i,), Const(0.0, "f32")),))))
    (made,) = merge(kernel("twice", (("x", 5),), 5, loop)).body
    assert isinstance(made, For)
    assert [len(s.body) for s in made.body if isinstance(s, If)] == [2, 1]
    own = Load("o", (i,), "f32") < 1.0
    loop = For(i, i64(5), "grid", (If(own, (Store("o", (i,), Const(2.0, "f32")),)), If(own, guarded[1].body)))
    (made,) = merge(kernel("changed", (("x", 5),), 5, loop)).body
    assert isinstance(made, For)
    assert len(made.body) == 2


def test_merge_keeps_tiles_apart_that_fill_the_registers() -> None:
    def tile(k: int) -> For:
        i, r, t = (Var(f"{name}{k}", "i64", 6) for name in "irt")
        product = Load("x", (r,), "f32") * Load("x", (t,), "f32")
        sums = For(r, i64(6), "serial", (For(t, i64(6), "unroll", (Store(f"c{k}", (t,), product, "add"),)),))
        clear = For(t, i64(6), "unroll", (Store(f"c{k}", (t,), Const(0.0, "f32")),))
        end = Store("o", (i,), Load(f"c{k}", (i64(k),), "f32"), "add")
        return For(i, i64(6), "serial", (Alloc(f"c{k}", "f32", (i64(6),), "register"), clear, sums, end))

    k = kernel("tiles", (("x", 6),), 6, For(Var("g", "i64", 1), i64(1), "grid", (tile(0), tile(1))))
    for room, count in ((48, 1), (47, 2)):
        same(k, merge(k, room))
        (grid,) = merge(k, room).body
        assert isinstance(grid, For)
        assert len(grid.body) == count


def test_merge_takes_up_what_an_iteration_has_stored() -> None:
    i, j, n = Var("i", "i64", 8), Var("j", "i64", 8), i64(8)

    def of(read: Expr, then: Expr) -> For:
        clear = For(Var("c", "i64", 8), n, "unroll", (Store("o", (Var("c", "i64", 8),), Const(0.0, "f32")),))
        first = For(i, n, "parallel", (Store("t", (i,), Load("x", (i,), "f32") * 2),))
        second = For(j, n, "serial", (Store("o", (then,), Load("t", (read,), "f32"), "add"),))
        body = (clear, Alloc("t", "f32", (n,), "local"), first, second)
        k = kernel("kept", (("x", 8),), 8, For(Var("g", "i64", 1), i64(1), "grid", body))
        same(k, merge(k))
        return steps.loops(merge(k), "i")[0]

    joined = of(j, i64(0))
    assert joined.kind == "serial"
    assert not any(isinstance(e, Load) and e.buffer == "t" for s in joined.body for r in exprs(s) for e in walk(r))
    assert of(7 + j * -1, i64(0)).kind == of(i64(0), j).kind == "parallel"


def test_reductions_that_do_not_wait_for_each_other_share_a_pass() -> None:
    body: list[Stmt] = []
    for name, combine in (("s", "add"), ("m", "max")):
        r = Var(f"r{name}", "i64", 8)
        body += [Alloc(name, "f32", (), "register"), Store(name, (), Const(0.0, "f32"))]
        body.append(For(r, i64(8), "serial", (Store(name, (), Load("x", (r,), "f32"), combine),)))
    body.append(Store("o", (i64(0),), Load("s", (), "f32") / Load("m", (), "f32")))
    k = kernel("both", (("x", 8),), 1, For(Var("g", "i64", 1), i64(1), "grid", tuple(body)))
    same(k, merge(k))
    assert len([s for s in stmts(merge(k).body) if isinstance(s, For) and s.kind == "serial"]) == 1


def test_join_makes_one_launch() -> None:
    first = steps.bind(double(5), "i", "grid")
    (nest,) = steps.bind(double(7), "i", "grid").body
    rename = {"x": "x2", "o": "o2"}
    i = Var("j", "i64", 7)
    second = For(i, i64(7), "grid", (Store(rename["o"], (i,), Load(rename["x"], (i,), "f32") * 3.0),))
    assert isinstance(nest, For)
    args = (*first.args, *(dataclasses.replace(a, name=rename[a.name], size=i64(7)) for a in first.args))
    both = Kernel("both", args, (), (*first.body, second))
    made = phases.join(both, "g")
    assert len(made.body) == 1
    before, after = arrays(both), arrays(both)
    run_kernel(both, before, {})
    run_kernel(made, after, {})
    for name in ("o", "o2"):
        np.testing.assert_array_equal(before[name], after[name])
    with pytest.raises(IllegalSchedule, match="it is not several loops"):
        phases.join(first, "g")
    clash = Kernel(
        "clash", args, (), (*first.body, dataclasses.replace(second, body=(Store("o", (i,), Load("x2", (i,), "f32")),)))
    )
    with pytest.raises(IllegalSchedule, match="touches what another one writes"):
        phases.join(clash, "g")


def test_rows_are_kept_where_the_cache_has_room() -> None:
    def kept(cache: int) -> list[str]:
        made = schedule(softmax(4, 4096), dataclasses.replace(DEVICES["avx512"], cache_bytes=cache))
        return [s.buffer for s in stmts(made.body) if isinstance(s, Alloc) and s.space == "local"]

    assert kept(1 << 20) == ["row0"]
    enough = -(-2 * 4096 * 4 * 4 // 3)  # a row, what is kept of it, and a quarter for the next row
    assert kept(enough) == ["row0"]
    assert kept(enough - 1) == []


def test_vectors_that_share_work_are_made_in_pairs() -> None:
    n = 70

    def of(distance: int) -> Kernel:
        i = Var("i", "i64", n)
        block = (i // (2 * distance) * distance + i % distance).cast("f32")
        value = op("exp", block) * block + op("sqrt", block) - (i // distance % 2).cast("f32")
        return kernel("paired", (), n, For(i, i64(n), "parallel", (Store("o", (i,), value),)))

    for distance, paired in ((16, True), (1, False), (7, False)):
        made = schedule(of(distance), DEVICES["avx512"])
        assert any(isinstance(s, For) and s.kind == "unroll" for s in stmts(made.body)) == paired
        same(of(distance), made)


@pytest.mark.parametrize("n", [63, 64, 200, 1000])
def test_functions_are_computed_in_several_vectors_at_once(n: int) -> None:
    """While the steps of one wait for each other, the processor works on the others; a rest is in one vector."""
    plain = double(n)
    i = Var("i", "i64", n)
    rooted = For(i, i64(n), "parallel", (Store("o", (i,), op("exp", Load("x", (i,), "f32"))),))
    function = kernel("exp", (("x", n),), n, rooted)
    once = For(
        i, i64(n), "parallel", (Store("o", (i,), Load("x", (i,), "f32") * op("exp", Load("x", (i64(0),), "f32"))),)
    )
    fixed = kernel("once", (("x", n),), n, once)
    for made, wide in ((plain, 16), (function, 64 if n >= 64 else 16), (fixed, 16)):
        after = schedule(made, dataclasses.replace(DEVICES["avx512"], side=4))
        widths = [s.static for s in stmts(after.body) if isinstance(s, For) and s.kind == "vector"]
        assert widths[0] == wide
        assert set(widths) <= {wide, 16}
        same(made, after)


def test_rows_whose_columns_are_summed_by_the_way_hold_several_vectors_too() -> None:
    text = """kernel k(in x: f32[8192], out o: f32[8192], out p: f32[512]) {
  for parallel w < 4 {
    for parallel z < 128 {
      p[w * 128 + z] = 0.0f32
    }
    for serial i < 16 {
      for parallel j < 128 {
        p[w * 128 + j] += exp(x[w * 2048 + i * 128 + j])
        o[w * 2048 + i * 128 + j] = exp(x[w * 2048 + i * 128 + j])
      }
    }
  }
}"""
    made = parse_kernel(text)
    after = schedule(made, dataclasses.replace(DEVICES["avx512"], side=4))
    assert 64 in [s.static for s in stmts(after.body) if isinstance(s, For) and s.kind == "vector"]
    same(made, after)
