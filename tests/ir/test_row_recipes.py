"""Recipes of rows and columns: the interpreter gives the same before and after, and the nests that they make."""

from __future__ import annotations

import dataclasses

import pytest

from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    Kernel,
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
from kernelforge.ir.schedule import steps
from kernelforge.ir.schedule.behind import early
from kernelforge.ir.schedule.limits import Limits
from kernelforge.ir.schedule.merge import merge
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.verify import verify_kernel
from tests.ir.naive import DEVICES, double, gemm, kernel, same, softmax


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


def test_a_dear_pass_over_a_row_has_the_last_one_over_the_row_before_beside_it() -> None:
    """As many rows in a block as leave each thread two blocks, where the stores go past the caches; the first pass over
    the row after the next stands there, too, if rows are whole lines."""
    avx512 = DEVICES["avx512"]

    def block(k: Kernel, limits: Limits = avx512) -> int:
        (grid,) = (s for s in schedule(k, limits).body if isinstance(s, For))
        turns = steps.loops(schedule(k, limits), "ir")
        assert not turns or turns[0].static == size(k) // (grid.static or 1) - 1
        return size(k) // (grid.static or 1)

    def size(k: Kernel) -> int:
        return k.body[0].static or 1  # type: ignore[union-attr]

    assert [block(softmax(n, 40)) for n in (4096, 512, 64, 32, 24, 16, 4, 61)] == [32, 32, 16, 8, 1, 1, 1, 1]
    assert block(softmax(64, 40), dataclasses.replace(avx512, native=frozenset())) == 1
    assert block(softmax(64, 40), dataclasses.replace(avx512, cache_bytes=256)) == 1  # it would make each row twice
    for length, whole in ((40, False), (48, True)):
        made = schedule(softmax(64, length), avx512)
        same(softmax(64, length), made)
        assert any(s.buffer.endswith("_early") for s in stmts(made.body) if isinstance(s, Alloc)) == whole


def test_a_pass_of_two_axes_runs_in_the_last_one_over_the_row_before() -> None:
    """A channel of a batch of images."""
    k = parse_kernel("""kernel k(in x: f32[24], out o: f32[24]) {
 for parallel c < 3 {
  register m: f32[]
  m[] = 0.0f32
  for serial a < 2 {
   for serial b < 4 {
    m[] += x[a * 12 + c * 4 + b]
   }
  }
  for parallel d < 2 {
   for parallel e < 4 {
    o[d * 12 + c * 4 + e] = x[d * 12 + c * 4 + e] - m[]
   }
  }
 }
}""")
    made = early(k, "c", "a", "d")
    same(k, made)
    golden = """\
    for serial d < 2 {
      for serial e < 4 {
        o[d * 12 + c * 4 + e] = x[d * 12 + c * 4 + e] - m[]
        m_early[] += x[d * 12 + e + min(c + 1, 2) * 4]
      }
    }
"""
    assert golden in str(made)
    assert (
        "for serial a_early < 2 {\n    for serial b_early < 4 {\n      m_early[] += x[a_early * 12 + b_early]"
        in str(made)
    )


def test_long_rows_are_read_while_those_before_are_stored() -> None:
    """Channels of a batch of images, with what each is scaled by."""

    def norm(images: int, pixels: int) -> Kernel:
        c = Var("c", "i64", 64)
        a, b, d, e = (Var(n, "i64", k) for n, k in zip("abde", (images, pixels) * 2, strict=True))

        def at(n: Expr, p: Expr) -> Expr:
            return Load("x", ((n * 64 + c) * pixels + p,), "f32")

        total = For(b, i64(pixels), "serial", (Store("m", (), at(a, b), "add"),))
        scaled = Store("o", ((d * 64 + c) * pixels + e,), (at(d, e) - Load("m", (), "f32")) * Load("z", (c,), "f32"))
        body = (
            Alloc("m", "f32", (), "register"),
            Store("m", (), Const(0.0, "f32")),
            For(a, i64(images), "serial", (total,)),
            For(d, i64(images), "parallel", (For(e, i64(pixels), "parallel", (scaled,)),)),
        )
        size = images * 64 * pixels
        return kernel("norm", (("x", size), ("z", 64)), size, For(c, i64(64), "parallel", body))

    made = schedule(norm(4, 4096), DEVICES["avx512"])
    same(norm(4, 4096), made)
    assert "m_early" in str(made)
    (turn,) = steps.loops(made, "cr")
    assert turn.static == 16
    assert "m_early" not in str(schedule(norm(3, 4096), DEVICES["avx512"]))  # 48 KB
    assert "m_early" not in str(schedule(norm(4, 4096), dataclasses.replace(DEVICES["avx512"], native=frozenset())))


def test_light_passes_over_rows_run_together_where_one_array_is_read() -> None:
    def norm(columns: int, element: Expr) -> Kernel:
        """Squares about the mean, of which each element is divided by the sum."""
        i, a, b, c = (Var(n, "i64", e) for n, e in (("i", 64), ("a", columns), ("b", columns), ("c", columns)))

        def at(k: Var) -> Expr:
            return substitute(element, {Var("k", "i64", columns): k})

        m, q = Load("m", (), "f32"), Load("q", (), "f32")
        body = (
            Alloc("m", "f32", (), "register"),
            Store("m", (), Const(0.0, "f32")),
            For(a, i64(columns), "serial", (Store("m", (), at(a), "add"),)),
            Alloc("q", "f32", (), "register"),
            Store("q", (), Const(0.0, "f32")),
            For(b, i64(columns), "serial", (Store("q", (), (at(b) - m) * (at(b) - m), "add"),)),
            For(c, i64(columns), "parallel", (Store("o", (i * columns + c,), (at(c) - m) / q),)),
        )
        loop = For(i, i64(64), "parallel", body)
        return kernel("norm", (("x", 64 * columns), ("z", 64 * columns)), 64 * columns, loop)

    def together(columns: int, second: bool) -> bool:
        at = (Var("i", "i64", 64) * columns + Var("k", "i64", columns),)
        element: Expr = Load("x", at, "f32")
        k = norm(columns, element + Load("z", at, "f32") if second else element)
        made = schedule(k, DEVICES["avx512"])
        same(k, made)
        return bool(steps.loops(made, "ir"))

    assert together(48, False)
    assert not together(40, False)
    assert not together(48, True)


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
    """While the steps of one wait for each other, the processor works on the others; a rest is in one vector, or in
    shorter ones where the loop is short.
    """
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
        assert set(widths) <= {wide, 16, *((8, 4) if n < 64 else ())}
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


@pytest.mark.parametrize("rows", [16, 19, 5])
@pytest.mark.parametrize("columns", [128, 75, 3])
@pytest.mark.parametrize("value", ["x[{}]", "x[{}] * x[{}]", "exp(x[{}])"])
def test_rows_that_are_only_added_up_are_read_several_at_a_time(rows: int, columns: int, value: str) -> None:
    at = f"w * {rows * columns} + i * {columns} + j"
    made = parse_kernel(f"""kernel k(in x: f32[{4 * rows * columns}], out o: f32[{4 * columns}]) {{
  for parallel w < 4 {{
    for parallel z < {columns} {{
      o[w * {columns} + z] = 0.0f32
    }}
    for serial i < {rows} {{
      for parallel j < {columns} {{
        o[w * {columns} + j] += {value.replace("{}", at)}
      }}
    }}
  }}
}}""")
    after = schedule(made, DEVICES["avx512"])
    together = [s.static for s in stmts(after.body) if isinstance(s, For) and s.kind == "unroll"]
    assert (8 in together) == ("exp" not in value and rows >= 8)  # eight copies of a function are much code
    same(made, after)


def found(planes: int, rows: int, columns: int, stride: int, mode: str = "+") -> Kernel:
    """Rows of planes that data finds, in any of which values of other rows are added or written."""
    at = f"(d * {rows} + t) * {columns} + e * {stride}"
    n = planes * rows * columns
    return parse_kernel(f"""kernel k(in v: f32[{planes * 9 * columns}], in x: i32[9], out o: f32[{n}]) {{
  for parallel c < {n} {{
    o[c] = 0.5f32
  }}
  for parallel d < {planes} {{
    for parallel e < {columns // stride} {{
      for serial u < 9 {{
        let t = i64(x[u])
        if t >= 0 & t < {rows} {{
          o[{at}] {mode}= v[(u * {planes} + d) * {columns} + e * {stride}]
        }}
      }}
    }}
  }}
}}""")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["+", ""])
@pytest.mark.parametrize(
    ("planes", "rows", "columns", "stride"),
    [(1, 3, 64, 1), (1, 2, 75, 1), (1, 4, 3, 1), (2, 3, 17, 1), (70, 1, 8, 1), (1, 3, 64, 2), (1, 2, 1, 1)],
)
def test_rows_that_data_finds_are_walked_once(
    planes: int, rows: int, columns: int, stride: int, mode: str, device: str
) -> None:
    before = found(planes, rows, columns, stride, mode)
    made = schedule(before, DEVICES[device])
    verify_kernel(share(guard(made)))
    same(before, made)
    walks = [s for s in stmts(made.body) if isinstance(s, For) and s.var.name == "u"]
    lanes = any(isinstance(s, For) and s.kind == "vector" for s in stmts(walks[0].body))
    assert lanes == (device in ("avx512", "sse") and columns >= 4 and stride == 1)


def test_threads_own_columns_of_rows_that_data_finds() -> None:
    made = schedule(found(1, 5, 32, 1), DEVICES["avx512"])
    golden = """\
kernel k(in v: f32[288], in x: i32[9], out o: f32[160]) {
  for grid g < 1 {
    for parallel c < 10 {
      for vector cv < 16 {
        o[c * 16 + cv] = 0.5f32
      }
    }
  }
  for grid d < 1 {
    for grid eg < 2 {
      for serial u < 9 {
        let t = i64(x[u])
        if t >= 0 & t < 5 {
          for parallel e < 1 {
            for vector ev < 16 {
              o[(d * 5 + t) * 32 + (e * 16 + eg * 16 + ev)] += v[d * 32 + e * 16 + eg * 16 + ev + u * 32]
            }
          }
        }
      }
    }
  }
}"""
    assert str(made) == golden


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("m", "n"), [(16, 16), (33, 40), (200, 190), (700, 17), (5, 300)])
@pytest.mark.parametrize("combined", ["+= x[{a}] * z[{b}]", "max= x[{a}] - z[{b}]"])
def test_sums_over_axes_that_lie_across_each_other(m: int, n: int, combined: str, device: str) -> None:
    """Threads share them, and squares of what lies along the outer axis are turned."""
    start = "0.0f32" if "+" in combined else "-inff32"
    naive = parse_kernel(f"""
kernel crossed(in x: f32[{m * n}], in z: f32[{m * n}], out o: f32[1]) {{
  for parallel i < 1 {{
    register a: f32[]
    a[] = {start}
    for serial r < {m} {{
      for serial s < {n} {{
        a[] {combined.format(a=f"r * {n} + s", b=f"r + s * {m}")}
      }}
    }}
    o[0] = a[]
  }}
}}""")
    made = schedule(naive, DEVICES[device])
    verify_kernel(made)
    same(naive, share(guard(made)))
    same(naive, made, shuffle=1)
    if device == "avx512":
        buffers = {s.buffer for s in stmts(made.body) if isinstance(s, Alloc)}
        assert ("s_turned0" in buffers) == (min(m, n) >= 16)
        assert any(a.mode == "scratch" for a in made.args) == (m * n >= 1 << 15)


def test_numbers_of_each_row_do_not_make_columns() -> None:
    k = parse_kernel("""kernel scaled(in x0: f32[65536], in x1: f32[16], in x2: f32[16], out o: f32[16]) {
  for parallel i0 < 16 {
    register a1: f32[]
    a1[] = 0.0f32
    for serial r1 < 4096 {
      a1[] += x0[i0 * 4096 + r1] * x1[i0] / x2[i0]
    }
    o[i0] = a1[]
  }
}
""")
    made = schedule(k, DEVICES["avx512"])
    same(k, made)
    assert isinstance(made.body[0], For)
    assert made.body[0].extent == i64(16)


MASKS = dataclasses.replace(DEVICES["avx512"], native=DEVICES["avx512"].native | {"masks"})


@pytest.mark.parametrize("n", [2, 3, 7, 9, 10, 15])
@pytest.mark.parametrize("rows", [5, 640])
def test_rows_shorter_than_a_vector_are_one_with_some_of_its_lanes(rows: int, n: int) -> None:
    naive = softmax(rows, n)
    made = schedule(naive, MASKS)
    verify_kernel(made)
    same(naive, made)
    same(naive, share(guard(made)), shuffle=1)
    if n > 8:  # lanes own shorter rows, which they read near each other
        innermost = [s for s in stmts(made.body) if isinstance(s, For) and not any(isinstance(t, For) for t in s.body)]
        assert {s.kind for s in innermost} == {"vector"}


def labelled(rows: int, n: int) -> Kernel:
    """The logarithm of each row's sum of functions, less the element that an i64 chooses."""
    return parse_kernel(
        f"kernel loss(in l: i64[{rows}], in x: f32[{rows * n}], out o: f32[{rows}]) {{"
        f" for parallel i < {rows} {{"
        f" register s: f32[] s[] = 0f32 for serial r < {n} {{ s[] += exp(x[i * {n} + r]) }}"
        f" register t: f32[] t[] = 0f32 for serial c < {n} {{ t[] += select(l[i] == c, x[i * {n} + c], 0f32) }}"
        " o[i] = log(s[]) - t[] } }"
    )


@pytest.mark.parametrize(("n", "columns"), [(7, True), (10, True), (32, True), (33, False), (64, False)])
def test_lanes_share_functions_of_what_short_rows_make(n: int, columns: bool) -> None:
    naive = labelled(40, n)
    made = schedule(naive, MASKS)
    verify_kernel(made)
    same(naive, share(guard(made)))
    inside = [t for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector" for t in stmts(s.body)]
    logs = [e for s in inside for r in exprs(s) for e in walk(r) if isinstance(e, Op) and e.op == "log"]
    assert bool(logs) == columns


def test_what_a_row_reads_once_does_not_make_its_vectors_short() -> None:
    made = schedule(labelled(40, 320), MASKS)
    verify_kernel(made)
    same(labelled(40, 320), share(guard(made)))
    assert {s.static for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"} == {16}


@pytest.mark.parametrize(("rows", "columns", "by", "together"), [
    (128, 576, "x[i * {} + k] * v[k]", 4), (128, 9000, "x[i * {} + k] * v[k]", 2),
    (130, 531, "x[i * {} + k] * v[k]", 2), (129, 576, "x[i * {} + k] * v[k]", 1),
    (128, 300, "x[i * {} + k] * v[k]", 1), (128, 576, "x[i * {} + k]", 1),
    (32, 576, "x[i * {} + k] * v[k]", 2), (128, 576, "x[i * {} + k] * v[i]", 1),
])  # fmt: skip
def test_rows_that_share_what_they_read_are_summed_several_at_once(
    rows: int, columns: int, by: str, together: int
) -> None:
    """Where there are enough for all threads, each is long, and the registers hold the sums of all."""
    naive = parse_kernel(f"""kernel k(in x: f32[{rows * columns}], in v: f32[{columns}], out o: f32[{rows}]) {{
  for parallel i < {rows} {{
    register a: f32[]
    a[] = 0.0f32
    for serial k < {columns} {{
      a[] += {by.format(columns)}
    }}
    o[i] = a[] * 2.0f32
  }}
}}""")
    made = schedule(naive, DEVICES["avx512"])
    verify_kernel(made)
    same(naive, made)
    assert made.body[0].extent == i64(rows // together)  # type: ignore[union-attr]
