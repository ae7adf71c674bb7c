"""What products ask memory for."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from kernelforge.backends.cpu import CpuBackend
from kernelforge.backends.cpu.ahead import AHEAD
from kernelforge.backends.cpu.meanwhile import requests
from kernelforge.backends.cpu.phases import every, phases
from kernelforge.backends.cpu.printer import print_kernel
from kernelforge.ir.interpret import evaluate
from kernelforge.ir.kernel import Arg, Const, Expr, For, Kernel, Load, Store, Var, i64, op, stmts
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.schedule.recipes import schedule
from tests.ir.naive import AVX512

HEADS, TILES, DEPTH, LANES = 8, 4, 128, 16
HEAD, LINE = DEPTH * LANES, 16
GRID, TILE, STEP, LANE = Var("h", bound=HEADS), Var("t", bound=TILES), Var("k", bound=DEPTH), Var("v", bound=LANES)
CACHE = 1 << 20


def head(extent: Expr, apart: int = HEAD) -> tuple[For]:
    """Tiles of the product of all heads' weights with a matrix of each head; these lie ``apart`` elements apart."""
    weight = Load("w", (TILE * DEPTH + STEP,), "f32")
    value = weight * Load("x", (GRID * apart + STEP * LANES + LANE,), "f32")
    vectors = For(LANE, i64(LANES), "vector", (Store("y", ((GRID * TILES + TILE) * LANES + LANE,), value, "add"),))
    zero = For(LANE, i64(LANES), "vector", (Store("y", ((GRID * TILES + TILE) * LANES + LANE,), Const(0.0, "f32")),))
    return (For(TILE, i64(TILES), "parallel", (zero, For(STEP, extent, "serial", (vectors,)))),)


def grid(extent: Expr, apart: int = HEAD) -> For:
    return For(GRID, i64(HEADS), "grid", head(extent, apart))


@pytest.mark.parametrize("early", [False, True])
def test_products_ask_for_each_line_of_the_next_head(early: bool) -> None:
    extent = op("min", i64(DEPTH), TILE * 32 + 32) if early else i64(DEPTH)
    (asked,) = requests([grid(extent)], head(extent), CACHE)
    assert asked.loop.var is STEP
    (wanted,) = asked.wanted
    assert wanted.buffer == "x"
    lines = set()
    for tile, step in itertools.product(range(TILES), range(DEPTH)):
        if step < evaluate(extent, {"t": tile}):
            lines.add(evaluate(wanted.at, {"h": 2, "t": tile, "k": step}) // LINE)
    assert lines == set(range(3 * HEAD // LINE, 4 * HEAD // LINE))
    args = [Arg("w", "f32", i64(TILES * DEPTH), "in"), Arg("x", "f32", i64(HEADS * HEAD), "in")]
    args.append(Arg("y", "f32", i64(HEADS * TILES * LANES), "out"))
    kernel = Kernel("heads", tuple(args), (), (grid(extent),))
    assert "call void @llvm.prefetch" in print_kernel(kernel, CpuBackend().host)


@pytest.mark.parametrize(("apart", "cache"), [(2 * HEAD, CACHE), (HEAD // 2, CACHE), (0, CACHE), (HEAD, HEAD)])
def test_products_do_not_ask_for_parts_or_for_what_no_cache_holds(apart: int, cache: int) -> None:
    assert not requests([grid(i64(DEPTH), apart)], head(i64(DEPTH), apart), cache)


def test_what_computes_little_does_not_ask() -> None:
    (tiles,) = head(i64(DEPTH))
    step = tiles.body[1]
    assert isinstance(step, For)
    lone = (For(STEP, i64(DEPTH), "serial", step.body),)
    assert not requests([], head(i64(DEPTH)), CACHE)
    assert requests([grid(i64(DEPTH))], lone, CACHE)
    assert not requests([grid(i64(DEPTH))], (For(STEP, i64(DEPTH), "parallel", step.body),), CACHE)


ROWS, COLUMNS, WIDE = 6, 2, 40
ROW, COLUMN, PART = Var("r", bound=ROWS), Var("j", bound=COLUMNS), Var("u", bound=2)


def finished(steps: int, *reads: Expr) -> tuple[For, For]:
    """A product of rows of 32 elements, and what follows on its tile: rows of 32 elements of each array."""
    lanes = PART * LANES + LANE
    at = COLUMN * 2 * LANES + ROW * WIDE + lanes
    value = Load("w", (STEP,), "f32") * Load("x", (STEP * 2 * LANES + lanes,), "f32")
    product = (For(LANE, i64(LANES), "vector", (Store("y", (at,), value, "add"),)),)
    result = sum((Load(name, (read,), "f32") for name, read in zip("ab", reads, strict=False)), Const(0.0, "f32"))
    finish = (For(LANE, i64(LANES), "vector", (Store("y", (at,), result),)),)
    unrolled = (For(PART, i64(2), "unroll", finish),)
    return (
        For(STEP, i64(steps), "serial", (For(PART, i64(2), "unroll", product),)),
        For(ROW, i64(ROWS), "parallel", unrolled),
    )


def test_products_ask_for_each_line_of_what_is_read_beside_their_tile() -> None:
    lanes = PART * LANES + LANE
    body = finished(DEPTH, COLUMN * 2 * LANES + ROW * 2 * WIDE + lanes, ROW * 2 * LANES + lanes)
    around = For(COLUMN, i64(COLUMNS), "parallel", body)
    (asked,) = requests([], (around,), CACHE)
    (wanted,) = asked.wanted  # the other array is read again for each column, from a cache
    assert (asked.loop, wanted.buffer) == (body[0], "a")
    lines = {evaluate(wanted.at, {"j": 1, "k": step}) for step in range(DEPTH)}
    last = LINE - 1  # the first line of rows that begin within it is the last one of the tile before
    assert lines == {2 * LANES + row * 2 * WIDE + part * LINE + last for row in range(ROWS) for part in range(2)}


@pytest.mark.parametrize(("depth", "columns", "asks"), [(64, 3136, True), (64, 64, False), (2048, 640, False)])
def test_products_ask_for_each_line_of_the_next_panel(depth: int, columns: int, asks: bool) -> None:
    """Its rows lie apart; one after the other is packed from memory, which waits while products compute."""
    sizes = f"in a: f32[{64 * depth}], in x: f32[{depth * columns}], out y: f32[{64 * columns}]"
    naive = parse_kernel(f"""kernel k({sizes}) {{
  for parallel i < 64 {{
    for parallel j < {columns} {{
      register s: f32[]
      s[] = 0.0f32
      for serial k < {depth} {{
        s[] += a[i * {depth} + k] * x[k * {columns} + j]
      }}
      y[i * {columns} + j] = s[]
    }}
  }}
}}""")
    (phase,) = (p for p in every(phases(schedule(naive, AVX512).body)) if "x" in str(p.body))
    found = [(r.loop, w) for r in requests(phase.loops, phase.body, CACHE) for w in r.wanted if w.buffer == "x"]
    assert len(found) == asks
    for loop, wanted in found:
        panel, tile = (
            phase.loops[-1].var.name,
            next(s for s in phase.body if isinstance(s, For) and loop in stmts((s,))),
        )
        lines = {
            evaluate(wanted.at, {panel: 5, tile.var.name: t, loop.var.name: k})
            for t in range(tile.static or 1) for k in range(depth)
        }  # fmt: skip
        width = columns // (phase.loops[-1].static or 1)
        assert lines == {k * columns + 6 * width + n + LINE - 1 for k in range(depth) for n in range(0, width, LINE)}


@pytest.mark.parametrize("panels", [1, 2])
def test_products_ask_for_each_line_of_the_next_tile_that_no_other_panel_reads(panels: int) -> None:
    """Rows lie along the sum behind each other; with two panels of columns, each row is read twice and in the cache."""
    tiles, rows, depth = 5, 16, 100
    panel, tile, step = Var("j", bound=panels), Var("t", bound=tiles), Var("k", bound=depth)
    row, lane = Var("r", bound=rows), Var("v", bound=LANES)
    weight = Load("w", ((step * panels + panel) * LANES + lane,), "f32")
    value = Load("x", ((tile * rows + row) * depth + step,), "f32") * weight
    place = ((panel * tiles + tile) * rows + row) * LANES + lane
    vectors = For(lane, i64(LANES), "vector", (Store("y", (place,), value, "add"),))
    product = For(step, i64(depth), "serial", (For(row, i64(rows), "unroll", (vectors,)),))
    body = (For(tile, i64(tiles), "parallel", (product,)),)
    found = [
        r for q in requests([For(panel, i64(panels), "grid", body)], body, CACHE) for r in q.wanted if r.buffer == "x"
    ]
    lines = {evaluate(r.at, {"j": 0, "t": 2, "k": k}) // LINE for r in found for k in range(depth)}
    assert lines == (set(range(3 * rows * depth // LINE, 4 * rows * depth // LINE)) if panels == 1 else set())


def test_short_products_do_not_ask_for_what_follows() -> None:
    body = finished(ROWS * 2 - 1, COLUMN * 2 * LANES + ROW * 2 * WIDE + PART * LANES + LANE)
    assert not requests([], (For(COLUMN, i64(COLUMNS), "parallel", body),), CACHE)
    assert not requests([], body, CACHE)


WINDOWS = """kernel windows(in x: f32[{size}], out y: f32[{size}]) {{
  for parallel n < {images} {{
    for parallel i < {rows} {{
      for parallel j < {columns} {{
        register a: f32[]
        a[] = 0.0f32
        for serial p < 3 {{
          for serial q < 3 {{
            a[] += select({inside}, x[n * {image} + i * {columns} + p * {columns} + j + q - {back}], 0.0f32)
          }}
        }}
        y[n * {image} + i * {columns} + j] = a[]
      }}
    }}
  }}
}}"""


@pytest.mark.parametrize(("images", "rows", "columns"), [(20, 19, 37), (1, 128, 90)], ids=["images", "rows"])
def test_windows_ask_for_each_line_that_will_be_read(images: int, rows: int, columns: int) -> None:
    """Those of images to come where the cache holds one, else those of rows below."""
    inside = f"i + p - 1 >= 0 & i + p - 1 < {rows} & j + q - 1 >= 0 & j + q - 1 < {columns}"
    image = rows * columns
    given = {"images": images, "rows": rows, "columns": columns, "image": image, "size": images * image}
    naive = parse_kernel(WINDOWS.format(**given, inside=inside, back=columns + 1))
    limits = dataclasses.replace(AVX512, native=frozenset({"masks"}))
    (phase,) = every(phases(schedule(naive, limits).body))
    (asked,) = requests(phase.loops, phase.body, CACHE)
    assert asked.loop.var.name == ("io" if images > 1 else "jo")
    loops = [s for s in (*phase.loops[:-1], *stmts((phase.loops[-1],))) if isinstance(s, For)]
    path = [s for s in loops[: loops.index(asked.loop) + 1] if s.var.name != "io_t"]
    lines = []
    for at in itertools.product(*(range(s.static or 0) for s in path)):
        env = {s.var.name: k for s, k in zip(path, at, strict=True)}
        lines += [evaluate(wanted.at, env) // LINE for wanted in asked.wanted]
    first, last = min(lines), images * image // LINE
    assert 0 < first * 64 <= AHEAD
    assert set(range(first, last)) <= set(lines)
    assert len(lines) < 1.7 * len(set(lines))
