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
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    op,
    stmts,
    walk,
)
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.schedule import phases, steps
from kernelforge.ir.schedule.behind import behind, early
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.staging import copy_out, stage, store_after
from tests.ir.naive import arrays, columns, double, gemm, kernel, running, same, softmax


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


def test_residues_make_quotients_plain() -> None:
    i, j = Var("i", "i64", 3), Var("j", "i64", 7)
    element = Load("x", ((j + 1) // 2 + i * 4,), "f32")
    inner = For(j, i64(7), "parallel", (Store("o", (i * 7 + j,), element),))
    k = kernel("turns", (("x", 12),), 21, For(i, i64(3), "parallel", (inner,)))
    made = steps.residues(k, "j", 2)
    assert [s.static for s in steps.loops(made, "j")] == [4, 3]
    assert "//" not in str(made)
    same(k, made)
    same(k, steps.residues(k, "j", 9))
    with pytest.raises(IllegalSchedule, match="it is not parallel, or of no constant extent"):
        steps.residues(columns(8, 8), "r", 2)


def test_pieces_decide_what_is_chosen() -> None:
    i, j = Var("i", "i64", 3), Var("j", "i64", 7)
    element = op("select", j < 2, Load("x", (1 - j,), "f32"), Load("x", (j + i * 4,), "f32"))
    inner = For(j, i64(7), "parallel", (Store("o", (i * 7 + j,), element),))
    k = kernel("mirrored", (("x", 15),), 21, For(i, i64(3), "parallel", (inner,)))
    made = steps.in_pieces(k, "j", [2])
    assert [steps.loops(made, name)[0].static for name in ("j", "j_p1")] == [2, 5]
    assert "select" not in str(made)
    same(k, made)
    same(k, steps.in_pieces(k, "j", [2, 3, 6]))
    for ends in ([7], [5, 2], [0]):
        with pytest.raises(IllegalSchedule, match="its pieces do not end in order"):
            steps.in_pieces(k, "j", ends)
    with pytest.raises(IllegalSchedule, match="it is not parallel, or of no constant extent"):
        steps.in_pieces(columns(8, 8), "r", [2])


def test_in_line_writes_a_loop_out() -> None:
    i, j = Var("i", "i64", 5), Var("j", "i64", 3)
    row, own = Load("x", (i,), "f32"), Load("x", (i + j,), "f32")
    body = (
        Let("shared", row * 2.0),
        Let("own", own + Var("shared", "f32")),
        Store("o", (i * 3 + j,), op("select", j < 1, Var("own", "f32"), Var("own", "f32") * Var("shared", "f32"))),
    )
    inner = For(j, i64(3), "parallel", body)
    k = kernel("columns", (("x", 8),), 15, For(i, i64(5), "parallel", (inner,)))
    made = steps.in_line(k, "j")
    assert not steps.loops(made, "j")
    assert [s.name for s in steps.loops(made, "i")[0].body if isinstance(s, Let)] == [
        "shared",
        "own",
        "own_j1",
        "own_j2",
    ]
    assert "select" not in str(made), "the column decides the condition"
    same(k, made)
    with pytest.raises(IllegalSchedule, match="it does more than to name values and store"):
        steps.in_line(k, "i")


def test_stores_are_copied_after_the_loops_that_make_them() -> None:
    for backwards in (False, True):
        k = running(6, 8, backwards)
        tiled = steps.split(steps.reorder(steps.fission(k, "i"), "i", "r"), "r", 4, "r", "q", "exact")
        made = store_after(tiled, "o", "r", ["q", "i"], "kept")
        same(k, made)
        stores = [s.buffer for s in stmts(made.body) if isinstance(s, Store)]
        assert stores == ["a", "a", "kept", "o"]
    with pytest.raises(IllegalSchedule, match="not stored once by each iteration of the loops"):
        store_after(tiled, "a", "r", ["q", "i"], "kept")
    with pytest.raises(IllegalSchedule, match="not stored once by each iteration of the loops"):
        store_after(tiled, "o", "r", ["q"], "kept")
    with pytest.raises(IllegalSchedule, match="no such loops store to it"):
        store_after(tiled, "other", "r", ["q", "i"], "kept")


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


def delayed(k: Kernel) -> Kernel:
    """Keep what a softmax's rows make, and let the last pass over each wait."""
    e = op("exp", Load("x", (Var("i", "i64", 5) * 3 + Var("rb", "i64", 3),), "f32") - Load("m", (), "f32"))
    return behind(merge(stage(k, e, "i", ["rb"], "local", "t")), "i", "t_rb")


def test_the_last_pass_over_a_row_runs_in_one_over_the_next() -> None:
    k = softmax(5, 3)
    made = delayed(k)
    same(k, made)
    golden = """\
kernel softmax(in x: f32[15], out o: f32[15]) {
  register m: f32[]
  register s: f32[]
  local t: f32[3]
  register s_i: f32[]
  m[] = -inff32
  s[] = 0.0f32
  for serial ra_first < 3 {
    m[] max= x[ra_first]
  }
  for serial t_rb_first < 3 {
    t[t_rb_first] = exp(x[t_rb_first] - m[])
    s[] += exp(x[t_rb_first] - m[])
  }
  for serial i < 4 {
    s_i[] = s[]
    m[] = -inff32
    s[] = 0.0f32
    for serial ra < 3 {
      m[] max= x[i * 3 + ra + 3]
    }
    for serial t_rb < 3 {
      o[i * 3 + t_rb] = t[t_rb] / s_i[]
      t[t_rb] = exp(x[i * 3 + t_rb + 3] - m[])
      s[] += exp(x[i * 3 + t_rb + 3] - m[])
    }
  }
  for parallel rc < 3 {
    o[rc + 12] = t[rc] / s[]
  }
}"""
    assert str(made) == golden
    for rows in (2, 7):
        k = softmax(rows, 4)
        same(k, behind(k, "i", "rb"))


def test_the_last_pass_runs_in_any_pass_that_makes_what_it_reads() -> None:
    text = """kernel k(in x: f32[12], out o: f32[12]) {
 for parallel i < 3 {
  local t: f32[4]
  register s: f32[]
  s[] = 0.0f32
  for serial r < 4 {
   t[r] = exp(x[i * 4 + r])
   s[] += exp(x[i * 4 + r])
  }
  register v: f32[]
  v[] = 0.0f32
  for serial q < 4 {
   v[] += (t[q] - s[]) * (t[q] - s[])
  }
  for parallel j < 4 {
   o[i * 4 + j] = (t[j] - s[]) * v[]
  }
 }
}"""
    k = parse_kernel(text)
    made = behind(k, "i", "r")
    same(k, made)
    assert "o[i * 4 + r] = (t[r] - s_i[]) * v_i[]" in str(made)
    with pytest.raises(IllegalSchedule, match="elements of t are not made where they are read"):
        behind(k, "i", "q")


@pytest.mark.parametrize(
    ("start", "last", "reason"),
    [
        ("", "serial j < 4 {\n o[i * 4 + j] = t[j]\n}", "are not a sum and what is made with it"),
        ("", "parallel j < 3 {\n o[i * 4 + j] = t[j]\n}", "do not have one extent"),
        ("", "parallel j < 4 {\n o[i * 4 + j] = t[3 - j]\n}", "elements of t are not made where they are read"),
        ("t[2] = 1.0f32\n", "parallel j < 4 {\n o[i * 4 + j] = t[j]\n}", "elements of t are not made where they are"),
        ("", "parallel j < 4 {\n t[j] = t[j]\n}", "what the last loop stores is read"),
        (
            "",
            "parallel j < 4 {\n o[i * 4 + j] = t[j]\n}\ns[] = 0.0f32",
            "it does not end with a loop that could run in",
        ),
    ],
)
def test_what_a_row_makes_in_another_place_does_not_wait(start: str, last: str, reason: str) -> None:
    text = f"""kernel k(in x: f32[12], out o: f32[12]) {{
 for parallel i < 3 {{
  local t: f32[4]
  register s: f32[]
  {start}
  for serial r < 4 {{
   t[r] = x[i * 4 + r]
  }}
  for {last}
 }}
}}"""
    k = parse_kernel(text)
    with pytest.raises(IllegalSchedule, match=reason):
        behind(k, "i", "r")
    with pytest.raises(IllegalSchedule, match="not parallel, or not of several iterations"):
        behind(k, "r", "r")
    with pytest.raises(IllegalSchedule, match="does not end with a loop that could run in 'q'"):
        behind(k, "i", "q")


def test_the_first_pass_over_a_row_runs_in_one_over_the_row_before() -> None:
    k = softmax(5, 3)
    made = early(delayed(k), "i", "ra", "t_rb")
    same(k, made)
    golden = """\
  register m_early: f32[]
  m_early[] = -inff32
  for serial ra_early < 3 {
    m_early[] max= x[ra_early + 3]
  }
  for serial i < 4 {
    s_i[] = s[]
    s[] = 0.0f32
    m[] = m_early[]
    m_early[] = -inff32
    for serial t_rb < 3 {
      o[i * 3 + t_rb] = t[t_rb] / s_i[]
      t[t_rb] = exp(x[i * 3 + t_rb + 3] - m[])
      s[] += exp(x[i * 3 + t_rb + 3] - m[])
      m_early[] max= x[t_rb + min(i + 1, 3) * 3 + 3]
    }
  }
"""
    assert golden in str(made)
    for rows in (1, 2, 7):
        k = softmax(rows, 4)
        same(k, early(k, "i", "ra", "rb"))
    k = softmax(7, 4)
    same(k, early(behind(k, "i", "rb"), "i", "ra", "rb"))


@pytest.mark.parametrize(
    ("start", "first", "between", "reason"),
    [
        ("m[] = 0.0f32\n", "serial a < 3 {\n m[] += x[i * 4 + a]\n}", "", "do not have the same extents"),
        ("m[] = 0.0f32\n", "parallel a < 4 {\n t[a] = x[i * 4 + a]\n}", "", "the first one is not serial"),
        ("m[] = 0.0f32\n", "serial a < 4 {\n t[a] = x[i * 4 + a]\n}", "", "does more than to combine into scalars"),
        ("m[] = 0.0f32\n", "serial a < 4 {\n m[] += x[i * 4 + a] * s[]\n}", "", "what 'a' reads is stored"),
        ("m[] = 0.0f32\n", "serial a < 4 {\n m[] += x[i * 4 + a]\n}", "m[] += 1.0f32\n", "makes is not its own"),
        ("m[] = x[i]\n", "serial a < 4 {\n m[] += x[i * 4 + a]\n}", "", "makes is not its own"),
        ("", "serial a < 4 {\n m[] += x[i * 4 + a]\n}", "", "makes is not its own"),
        ("m[] = 0.0f32\nt[0] = m[]\n", "serial a < 4 {\n m[] += x[i * 4 + a]\n}", "", "makes is not its own"),
    ],
)
def test_what_a_row_does_not_make_alone_is_not_made_early(start: str, first: str, between: str, reason: str) -> None:
    text = f"""kernel k(in x: f32[12], out o: f32[12]) {{
 register m: f32[]
 register s: f32[]
 local t: f32[4]
 for serial i < 3 {{
  {start}
  s[] = 0.0f32
  for {first}
  {between}
  for serial b < 4 {{
   s[] += x[i * 4 + b] * m[]
  }}
  for parallel j < 4 {{
   o[i * 4 + j] = s[]
  }}
 }}
}}"""
    k = parse_kernel(text)
    with pytest.raises(IllegalSchedule, match=reason):
        early(k, "i", "a", "b")
    for pair in (("b", "a"), ("a", "q")):
        with pytest.raises(IllegalSchedule, match=f"there is no loop '{pair[0]}' before a loop '{pair[1]}'"):
            early(k, "i", *pair)


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
    behind = dataclasses.replace(second, body=(Store("o", (i + 5,), Load("x2", (i,), "f32")),))
    parts = Kernel("parts", (args[0], args[2], dataclasses.replace(args[1], size=i64(12))), (), (*first.body, behind))
    assert len(phases.join(parts, "g").body) == 1
    same(parts, phases.join(parts, "g"))
    # a loop that is longer than another one over the same variable reaches into the other nest's part
    tail, t = Var("t", "i64", 8), Load("x2", (i64(0),), "f32")
    outer = Var("k", "i64", 1)
    twice = tuple(For(tail, i64(n), "parallel", (Store("o", (tail,), t),)) for n in (8, 2))
    reaching = dataclasses.replace(parts, body=(For(outer, i64(1), "grid", twice), behind))
    assert "touches what another one writes" in phases.obstacle(reaching)
