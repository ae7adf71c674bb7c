"""Recipes: the interpreter gives the same before and after, and the nests that they make."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.ir.index import affine, poly
from kernelforge.ir.kernel import (
    Alloc,
    Const,
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
    stmts,
    walk,
)
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.passes.guard import guard
from kernelforge.ir.passes.share import share
from kernelforge.ir.schedule import steps
from kernelforge.ir.schedule.nests import loads
from kernelforge.ir.schedule.recipes import schedule
from kernelforge.ir.verify import verify_kernel
from tests.ir.naive import AVX512, DEVICES, columns, double, gemm, kernel, planes, running, same, softmax

MASKED = dataclasses.replace(AVX512, native=AVX512.native | {"masks"})
SHAPES = [
    *(
        gemm(m, n, k)
        for m, n, k in [
            (13, 70, 19),
            (37, 80, 9),
            (64, 64, 16),
            (4, 16, 70),
            (1, 5, 3),
            (6, 64, 1),
            (2, 64, 40),
            (3, 80, 50),
        ]
    ),
    *(softmax(m, n) for m, n in [(3, 300), (2, 64), (5, 10), (1, 1), (2, 1000), (1, 20000), (64, 40), (48, 300)]),
    *(columns(m, n) for m, n in [(30, 200), (5, 64), (7, 10), (3000, 40), (40000, 1), (70001, 1), (1, 17)]),
    *(double(n) for n in [1, 5, 100, 40000]),
    *(running(m, n, b) for m, n in [(16, 32), (37, 50), (5, 100), (3, 40), (20, 7)] for b in (False, True)),
    *(planes(m, n) for m, n in [(50, 2), (33, 3), (700, 3), (40, 5), (20, 9), (9, 3)]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("naive", SHAPES, ids=lambda k: f"{k.name}-{k.args[0].size.value}-{k.args[-1].size.value}")
def test_recipes_keep_the_meaning(naive: Kernel, device: str) -> None:
    made = schedule(naive, DEVICES[device])
    verify_kernel(made)
    verify_kernel(share(guard(made)))
    same(naive, share(guard(made)))
    same(naive, made, shuffle=1)


ROLLED = """kernel rolled(in x0: f32[{size}], out y0: f32[{size}]) {{
  for parallel i < {rows} {{
    for parallel j < {columns} {{
      y0[i * {columns} + j] = select(j < 37, x0[i * {columns} + j + {columns} - 37], x0[i * {columns} + j - 37])
    }}
  }}
}}"""
ALONG = """kernel rolled(in x0: f32[5000], out y0: f32[5000]) {
  for parallel i < 5000 {
    y0[i] = select(i < 4963, x0[i + 37], x0[i - 4963])
  }
}"""


@pytest.mark.parametrize("text", [ROLLED.format(size=20 * 160, rows=20, columns=160), ALONG])
def test_pieces_of_a_loop_store_whole_lines(text: str) -> None:
    naive = parse_kernel(text)
    made = schedule(naive, DEVICES["avx512"])
    same(naive, made)
    lines = [s for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector" and s.static == 16]
    stores = [s for line in lines for s in line.body if isinstance(s, Store)]
    assert len(stores) > 1
    assert {poly(s.index[0]).get((), 0) % 16 for s in stores} == {0}


@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_parts_of_less_than_two_lines_end_where_they_do(dtype: str) -> None:
    text = """kernel parts(in x0: T[6000], out y0: T[6000]) {
      for parallel i < 20 {
        for parallel j < 300 {
          let k = i * 300
          y0[k + j] = select(j < 100, x0[k + j], select(j < 200, x0[k + j - 99], x0[k - j + 299]))
        }
      }
    }"""
    naive = parse_kernel(text.replace("T", dtype))
    made = schedule(naive, DEVICES["avx512"])
    assert not any(isinstance(e, Op) and e.op == "select" for s in stmts(made.body) for r in exprs(s) for e in walk(r))
    if dtype == "f32":
        same(naive, made)


BACKWARDS = """kernel back(in x0: f32[12000], out y0: f32[{size}]) {{
  for parallel i < 50 {{
    for parallel j < {n} {{
      {body}
    }}
  }}
}}"""
PIXELS = "for parallel c < 3 { y0[i * 240 + j * 3 + c] = x0[i * 240 - j * 3 + c + 237] }"


@pytest.mark.parametrize(("n", "width", "body"), [
    (80, 1, "y0[i * 80 + j] = x0[i * 80 - j + 79]"),
    (120, 1, "y0[i * 120 + j] = x0[i * 240 - j * 2 + 239]"),
    (80, 3, PIXELS.replace("{ ", "{\n").replace(" }", "\n}")),
])  # fmt: skip
def test_what_is_read_backwards_lies_in_lanes(n: int, width: int, body: str) -> None:
    naive = parse_kernel(BACKWARDS.format(n=n, size=50 * n * width, body=body))
    made = schedule(naive, DEVICES["avx512"])
    vectors = [s for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"]
    assert [s.static for s in vectors][:1] == [16]
    assert len(vectors[0].body) == width
    same(naive, made)


TURNED = """kernel turned(in x0: f32[{size}], out y0: f32[{size}]) {{
  for parallel i < {n} {{
    for parallel k < {planes} {{
      for parallel j < {m} {{
        y0[(i * {planes} + k) * {m} + j] = x0[(j * {planes} + k) * {n} + i]
      }}
    }}
  }}
}}"""


@pytest.mark.parametrize(
    ("m", "n", "planes", "threads"), [(600, 45, 1, 2), (37, 300, 1, 1), (50, 33, 3, 2), (16, 16, 1, 2)]
)
def test_tiles_beside_each_other_are_turned_one_after_another(m: int, n: int, planes: int, threads: int) -> None:
    naive = parse_kernel(TURNED.format(m=m, n=n, planes=planes, size=m * n * planes))
    made = schedule(naive, dataclasses.replace(DEVICES["avx512"], threads=threads))
    verify_kernel(made)
    same(naive, made)
    (beside, *_) = steps.loops(made, "ib")
    assert [type(s).__name__ for s in beside.body] == ["Alloc", "For", "For"]
    assert beside.var.bound == min(8, n // 16)
    taken = [s for s in stmts(made.body) if isinstance(s, For) and s.kind == "grid"]
    assert {s.var.name for s in taken} >= ({"i", "jg"} if m == 600 else {"i"})
    (rows,) = (s for s in stmts(made.body) if isinstance(s, For) and beside in s.body)
    assert rows.var.name == "j"


def test_threads_share_the_rows_of_few_columns_where_these_are_much_work() -> None:
    shared = schedule(gemm(60, 64, 400), DEVICES["avx512"])
    assert [s.static for s in stmts(shared.body) if isinstance(s, For) and s.var.name == "i0b"] == [2]
    assert not steps.loops(schedule(gemm(60, 64, 40), DEVICES["avx512"]), "i0b")
    same(gemm(60, 64, 400), shared)


@pytest.mark.parametrize("backwards", [False, True])
def test_running_sums_walk_square_tiles_of_rows(backwards: bool) -> None:
    made = schedule(running(70, 50, backwards), DEVICES["avx512"])
    whole = steps.loops(made, "i")[0]
    copies = [s for s in stmts((whole,)) if isinstance(s, For) and s.kind == "unroll"]
    assert [(s.static, s.body[0].static) for s in copies if isinstance(s.body[0], For)] == [(16, 16), (16, 16)]
    (sums,) = steps.loops(made, "ri")[:1]
    lane = steps.loops(dataclasses.replace(made, body=(sums,)), "iv")[0]
    steps_of = {
        e.buffer: affine(e.index[-1], lane.var) for r in exprs(lane.body[0]) for e in walk(r) if isinstance(e, Load)
    }
    assert set(steps_of.values()) == {1}, "rows lie in lanes, behind each other"


@pytest.mark.parametrize(("n", "lanes"), [(7, [8]), (23, [16, 8]), (100, [64, 16, 4]), (17, [16])])
def test_what_is_left_of_rows_that_functions_are_taken_of_is_a_vector_with_some_of_its_lanes(
    n: int, lanes: list[int]
) -> None:
    i, j = Var("i", "i64", 30), Var("j", "i64", n)
    value = op("tanh", Load("x", (i * n + j,), "f32") + Load("b", (j,), "f32"))
    body = (For(j, i64(n), "parallel", (Store("o", (i * n + j,), value),)),)
    naive = kernel("biased", (("x", 30 * n), ("b", n)), 30 * n, For(i, i64(30), "parallel", body))
    made = schedule(naive, dataclasses.replace(MASKED, side=4))
    assert [s.static for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"] == lanes
    assert any(isinstance(s, If) for s in stmts(made.body)) == (n % lanes[-1] > 1)
    same(naive, made)


def test_planes_are_put_side_by_side_in_lanes_of_rows() -> None:
    made = schedule(planes(100, 3), DEVICES["avx512"])
    assert not steps.loops(made, "k")
    (lane, *_) = (s for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector")
    assert len(lane.body) == 3
    assert "select" not in str(made)


def test_a_product_is_packed_and_accumulated_in_registers() -> None:
    made = schedule(gemm(64, 128, 64), DEVICES["avx512"])
    spaces = {s.buffer: (s.space, len(s.shape)) for s in stmts(made.body) if isinstance(s, Alloc)}
    assert spaces == {"a": ("register", 2), "columns": ("local", 2)}
    assert not [a.name for a in made.args if a.mode == "scratch"]


@pytest.mark.parametrize(("depth", "tile"), [(64, (4, 64)), (128, (8, 32)), (300, (4, 64))])
def test_of_tiles_as_quick_the_one_whose_panel_stays_in_the_cache_is_taken(depth: int, tile: tuple[int, int]) -> None:
    made = schedule(gemm(64, 128, depth), DEVICES["avx512"])
    (found,) = (s.shape for s in stmts(made.body) if isinstance(s, Alloc) and s.space == "register")
    assert found == tuple(map(i64, tile))


@pytest.mark.parametrize(("m", "packed"), [(2, False), (4, False), (64, True)])
def test_columns_are_packed_for_several_tiles_of_rows(m: int, packed: bool) -> None:
    made = schedule(gemm(m, 128, 64), DEVICES["avx512"])
    assert ("columns" in {s.buffer for s in stmts(made.body) if isinstance(s, Alloc)}) == packed
    assert "vector" in {s.kind for s in stmts(made.body) if isinstance(s, For)}


def test_rows_that_do_not_lie_as_a_tile_reads_them_are_packed_once() -> None:
    """Not along the sum, not in whole tiles, or not as they are in memory."""
    for naive in (gemm(64, 128, 64, transposed=True), gemm(61, 128, 64)):
        made = schedule(naive, DEVICES["avx512"])
        assert [a.name for a in made.args if a.mode == "scratch"] == ["rows"]
        same(naive, made)


def test_rows_that_evict_each_other_from_the_cache_are_packed() -> None:
    """Tiles of 16 rows, because there are 13 vectors of columns: the rows are one way of the cache apart, or nearly."""
    for depth, packed in ((1024, ["rows"]), (1040, [])):
        made = schedule(gemm(32, 196, depth), DEVICES["avx512"])
        assert [a.name for a in made.args if a.mode == "scratch"] == packed


@pytest.mark.parametrize("naive", [gemm(61, 32, 640), gemm(64, 16, 1024)])
def test_rows_for_one_panel_of_columns_are_packed_tile_by_tile(naive: Kernel) -> None:
    made = schedule(naive, DEVICES["avx512"])
    assert not [a.name for a in made.args if a.mode == "scratch"]
    assert "rows" in {s.buffer for s in stmts(made.body) if isinstance(s, Alloc) and s.space == "local"}
    same(naive, made)


def test_rows_for_one_panel_of_columns_are_read_where_they_lie_across_the_sum() -> None:
    naive = gemm(64, 32, 640, transposed=True)
    made = schedule(naive, DEVICES["avx512"])
    assert "rows" not in {a.name for a in made.args} | {s.buffer for s in stmts(made.body) if isinstance(s, Alloc)}
    same(naive, made)


@pytest.mark.parametrize(("m", "rows"), [(84, 14), (1000, 10), (87, 15)])
def test_tiles_of_all_columns_divide_the_rows_if_they_can(m: int, rows: int) -> None:
    naive = gemm(m, 10, 12)
    made = schedule(naive, MASKED)
    assert ("rows" in {s.buffer for s in stmts(made.body) if isinstance(s, Alloc)}) == bool(m % rows)
    (tile,) = (s.shape for s in stmts(made.body) if isinstance(s, Alloc) and s.buffer == "a")
    assert tile == (i64(rows), i64(16))
    same(naive, made)


@pytest.mark.parametrize("transposed", [False, True])
def test_threads_share_the_long_sum_of_a_small_product(transposed: bool) -> None:
    """Also where it is no multiple of what they take; columns are then read in some of the lanes, and not packed."""
    naive = gemm(5, 6, 16390, transposed)
    made = schedule(naive, MASKED)
    assert steps.loops(made, "r_w")[0].static == 8
    assert {"columns": "register", "block": "register"}.items() <= {
        s.buffer: s.space for s in stmts(made.body) if isinstance(s, Alloc)
    }.items()
    assert "rows" not in {a.name for a in made.args}
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
    assert spaces == {"a": "local", "block": "register", "columns": "local", "rows": "local"}
    assert [s.static for s in steps.loops(made, "rb")] == [5]
    verify_kernel(made)
    same(naive, made)


def convolved(images: int, channels: int, made: int, height: int, width: int, turned: bool = False) -> Kernel:
    """Return the nest that convolves padded images with filters of 3x3, ``turned`` where those begin with their end."""
    names = {"n": images, "o": made, "u": height, "v": width, "c": channels, "p": 3, "q": 3}
    n, o, u, v, c, p, q = (Var(name, "i64", extent) for name, extent in names.items())
    across, plane = width + 2, (height + 2) * (width + 2)
    image = Load("x", ((n * channels + c) * plane + (u + p) * across + v + q,), "f32")
    weight = Load("y", (o * channels * 9 + c * 9 + (8 - p * 3 - q if turned else p * 3 + q),), "f32")
    body: tuple[Stmt, ...] = (Store("a", (), image * weight, "add"),)
    for r in (q, p, c):
        body = (For(r, i64(names[r.name]), "serial", body),)
    out = Store("o", (((n * made + o) * height + u) * width + v,), Load("a", (), "f32"))
    body = (Alloc("a", "f32", (), "register"), Store("a", (), Const(0, "f32")), *body, out)
    for r in (v, u, o, n):
        body = (For(r, i64(names[r.name]), "parallel", body),)
    given = (("x", images * channels * plane), ("y", made * channels * 9))
    return kernel("conv", given, images * made * height * width, body[0])


@pytest.mark.parametrize("device", ["avx512", "gpu"])
def test_a_convolution_is_a_product_whose_weights_are_packed_once(device: str) -> None:
    naive = convolved(2, 8, 9, 6, 20, turned=True)
    made = schedule(naive, DEVICES[device])
    verify_kernel(made)
    same(naive, made)
    if device == "avx512":
        assert [a.name for a in made.args if a.mode == "scratch"] == ["rows"]
        assert {s.buffer: s.space for s in stmts(made.body) if isinstance(s, Alloc)}["columns"] == "local"


@pytest.mark.parametrize(("made", "packed"), [(8, False), (17, True)])
def test_filters_are_read_where_they_lie_in_whole_tiles(made: int, packed: bool) -> None:
    naive = convolved(1, 8, made, 6, 20)
    scheduled = schedule(naive, DEVICES["avx512"])
    assert ("rows" in {a.name for a in scheduled.args if a.mode == "scratch"}) == packed
    verify_kernel(scheduled)
    same(naive, scheduled)


def test_threads_share_the_channels_of_a_small_image() -> None:
    naive = convolved(1, 4, 64, 5, 5)
    made = schedule(naive, DEVICES["avx512"])
    grid = {s.var.name: s.static for s in stmts(made.body) if isinstance(s, For) and s.kind == "grid"}
    assert (grid["ob"] or 0) > 1
    assert grid["ub"] == 1
    verify_kernel(made)
    same(naive, made)
    many = schedule(convolved(64, 4, 64, 5, 5), DEVICES["avx512"])
    assert not any(isinstance(s, For) and s.var.name == "ob" for s in stmts(many.body))


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


def test_panels_are_packed_along_memory_where_a_sum_over_something_else_is_longer() -> None:
    k = parse_kernel("""kernel over_batches(in x0: f32[32768], in x1: f32[32768], out o: f32[256]) {
  for parallel i0 < 16 {
    for parallel i1 < 16 {
      register a1: f32[]
      a1[] = 0.0f32
      for serial r0 < 64 {
        for serial r1 < 32 {
          a1[] += x0[i0 * 32 + r0 * 512 + r1] * x1[i1 * 32 + r0 * 512 + r1]
        }
      }
      o[i0 * 16 + i1] = a1[]
    }
  }
}
""")
    made = schedule(k, DEVICES["avx512"])
    same(k, made)
    along = {
        e.buffer
        for v in stmts(made.body)
        if isinstance(v, For) and v.kind == "vector"
        for s in stmts(v.body)
        for r in exprs(s)
        for e in walk(r)
        if isinstance(e, Load) and affine(e.index[0], v.var) == 1
    }
    assert "x1" in along  # rows are read as they lie


SMALL_IMAGES = """kernel images(in x0: f32[{size}], in x1: f32[{weights}], out o: f32[4096]) {{
  for parallel i0 < 16 {{
    for parallel i1 < 4 {{
      for parallel i2 < 8 {{
        for parallel i3 < 8 {{
          register a1: f32[]
          a1[] = 0.0f32
          for serial r0 < 16 {{
            {sum}
          }}
          o[i0 * 256 + i1 * 64 + i2 * 8 + i3] = a1[]
        }}
      }}
    }}
  }}
}}
"""
STRIDED = "a1[] += x0[i0 * 4096 + r0 * 256 + i2 * 32 + i3 * 2] * x1[i1 * 16 + r0]"
WINDOWS = """for serial r1 < 3 {
              for serial r2 < 3 {
                a1[] += x0[i0 * 1600 + r0 * 100 + i2 * 10 + i3 + r1 * 10 + r2] * x1[i1 * 144 + r0 * 9 + r1 * 3 + r2]
              }
            }"""


@pytest.mark.parametrize(("text", "size", "weights"), [(STRIDED, 65536, 64), (WINDOWS, 25600, 576)])
def test_lanes_lie_in_small_images_rather_than_across_a_batch(text: str, size: int, weights: int) -> None:
    k = parse_kernel(SMALL_IMAGES.format(sum=text, size=size, weights=weights))
    made = schedule(k, DEVICES["avx512"])
    same(k, made)
    stores = [
        affine(s.index[0], v.var)
        for v in stmts(made.body)
        if isinstance(v, For) and v.kind == "vector"
        for s in stmts(v.body)
        if isinstance(s, Store) and s.buffer == "o"
    ]
    assert stores
    assert not {64, 256} & set(stores)


FILTER = """kernel filter(in x: f32[{image}], in g: f32[{cotangent}], out o: f32[2304]) {{
  for parallel i0 < 16 {{
    for parallel i1 < 16 {{
      for parallel i2 < 3 {{
        for parallel i3 < 3 {{
          register a: f32[]
          a[] = 0.0f32
          for serial r1 < 6 {{
            for serial r2 < {n} {{
              a[] += x[i1 * {channel} + i2 * {row} + i3 + r1 * {row} + r2] * g[i0 * {own} + r1 * {n} + r2]
            }}
          }}
          o[i0 * 144 + i1 * 9 + i2 * 3 + i3] = a[]
        }}
      }}
    }}
  }}
}}
"""


@pytest.mark.parametrize(("n", "packed"), [(20, 8 * 22 * 16), (7, 42 * 48)])
def test_what_windows_share_is_packed_once_for_a_filters_gradient(n: int, packed: int) -> None:
    """Rows shorter than a register are packed for each window, with all channels' windows in lanes."""
    row = n + 2
    k = parse_kernel(FILTER.format(n=n, row=row, channel=8 * row, own=6 * n, image=128 * row, cotangent=96 * n))
    made = schedule(k, DEVICES["avx512"])
    same(k, made)
    scratch = {a.name: a.size for a in made.args if a.mode == "scratch"}
    held = {s.buffer: s.shape for s in stmts(made.body) if isinstance(s, Alloc)}
    shape = held.get("columns", (scratch.get("columns", i64(0)),))
    assert math.prod(int(e.value) for e in shape if isinstance(e, Const)) == packed


def test_conditions_of_rows_keep_lanes_in_columns_that_fill_them() -> None:
    """A bit of a place in row-major order differs between columns, but no column's is known."""
    text = (
        "kernel k(in x: i64[32768], in d: i64[1], out y: i64[32768]) {\n  for parallel i < 4096 {\n"
        "    for parallel j < 8 {\n"
        "      y[i * 8 + j] = select((i + j * 4096 & d[0]) == 0, x[i * 8 + j], 0 - x[i * 8 + j])\n"
        "    }\n  }\n}"
    )
    kernel = schedule(parse_kernel(text), AVX512)
    (lanes,) = [s for s in stmts(kernel.body) if isinstance(s, For) and s.kind == "vector"]
    assert len(list(stmts(lanes.body))) < 4
    assert lanes.static == 8


@pytest.mark.parametrize(("channels", "window", "width"), [(20, 7, 28), (5, 3, 33), (70, 5, 17)])
def test_windows_stored_channels_last_are_walked_as_they_are_read(channels: int, window: int, width: int) -> None:
    """A convolution by channels between an image with channels first and a layer with channels last."""
    x, w = np.ones((2, channels, 9, width), np.float32), np.ones((channels, 1, window, window), np.float32)

    def last(x: Any, w: Any) -> Any:
        return kf.nn.conv2d(x, w, padding=window // 2, groups=channels).transpose(0, 2, 3, 1)

    (found,) = kf.jit(last).lower(x, w).kernels
    made = schedule(found.naive, AVX512)
    verify_kernel(made)
    same(found.naive, made, shuffle=1)
    same(found.naive, share(guard(made)))
    lanes = [s for s in stmts(made.body) if isinstance(s, For) and s.kind == "vector"]
    assert any(e.buffer == "x0" and affine(e.index[0], s.var) == 1 for s in lanes for e in loads((s,)))


def filter_gradient(filters: int, channels: int, window: int, images: int, width: int) -> Kernel:
    """The gradient by the filters of a convolution of square images."""
    x, d = np.ones((images, channels, width, width), np.float32), width - window + 1
    made = kf.jit(lambda x, y: np.einsum("bcijkl,bfij->fckl", np.lib.stride_tricks.sliding_window_view(
        x, (window, window), (2, 3)), y)).lower(x, np.ones((images, filters, d, d), np.float32))  # fmt: skip
    return made.kernels[0].naive


def test_few_results_share_their_sum() -> None:
    """The filters of a first layer: threads share the images, as there is one panel of columns."""
    naive = filter_gradient(12, 1, 5, 40, 28)
    made = schedule(naive, AVX512)
    same(naive, made, 2e-3, shuffle=1)
    assert [s.static for s in steps.loops(made, "r0_0_w") if s.kind == "grid"] == [8]
    assert not steps.loops(schedule(filter_gradient(70, 8, 3, 40, 28), AVX512), "r0_0_w")


def test_windows_of_narrow_images_are_packed_once_for_few_filters() -> None:
    """All windows of 8 positions slide over one packed image, unless many filters make up for packing each."""

    def gathered(naive: Kernel) -> bool:
        made = schedule(naive, AVX512)
        same(naive, made, 2e-3)
        return any(s.var.name.startswith("i2g") for s in stmts(made.body) if isinstance(s, For))

    assert not gathered(filter_gradient(16, 16, 5, 4, 12))
    assert gathered(filter_gradient(40, 16, 5, 4, 12))
