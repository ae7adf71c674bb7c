"""Arguments that begin between lines of the cache, as large arrays of NumPy do."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.backends.cpu import CpuBackend
from kernelforge.backends.cpu.printer import print_kernel
from kernelforge.ir.kernel import Arg, For, Kernel, Load, Stmt, Store, Var, i64

Array = np.ndarray[Any, Any]
HOST = dataclasses.replace(CpuBackend().host, cache_bytes=(32 << 10, 1 << 20, 32 << 20), vector_bytes=64)
ROWS = 4


def passes(elements: int, count: int) -> str:
    """Print passes over rows of x, the last of which reads g, too, whole in each row, and h, a row of it in each."""
    row = Var("r", bound=ROWS)
    body: list[Stmt] = []
    for k in range(count):
        step, lane = Var(f"s{k}", bound=elements // 16), Var(f"v{k}", bound=16)
        at = step * 16 + lane
        value = Load("x", (row * elements + at,), "f32")
        if k == count - 1:
            value = value * Load("g", (at,), "f32") + Load("h", (row * elements + at,), "f32")
        vectors = For(lane, i64(16), "vector", (Store("y", (lane,), value, "add"),))
        body.append(For(step, i64(elements // 16), "serial", (vectors,)))
    sizes = {"x": ROWS * elements, "g": elements, "h": ROWS * elements}
    args = tuple(Arg(name, "f32", i64(size), "in") for name, size in sizes.items())
    kernel = Kernel("walks", (*args, Arg("y", "f32", i64(16), "out")), (), (For(row, i64(ROWS), "grid", tuple(body)),))
    return print_kernel(kernel, HOST)


@pytest.mark.parametrize(
    ("elements", "count", "halves"),
    [
        (1 << 10, 3, 2),  # the last pass asks for lines, which the first one meets
        (1 << 13, 3, 2),
        (1 << 14, 3, 0),  # the first-level cache does not hold the row
        (1 << 10, 1, 0),  # what a pass asks for itself it has
        (1 << 18, 3, 0),  # each pass asks
    ],
)
def test_the_first_pass_reads_by_halves_what_a_later_one_asked_for(elements: int, count: int, halves: int) -> None:
    text = passes(elements, count)
    assert len(re.findall("load volatile <8 x float>", text)) == halves


@pytest.mark.parametrize(("elements", "copies"), [(1 << 10, [1 << 10]), (1 << 12, [1 << 12]), (1 << 13, [])])
def test_what_all_rows_read_is_copied_where_it_is_small(elements: int, copies: list[int]) -> None:
    found = re.findall(r"alloca \[(\d+) x float\]", passes(elements, 3))
    assert [int(n) for n in found] == copies


def off(x: Array, elements: int) -> Array:
    """Copy to so many elements behind the beginning of a line."""
    raw = np.empty(x.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 64 + elements * x.itemsize
    made: Array = raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    made[...] = x
    return made


def norm(x: Any, gamma: Any, beta: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("rows", "columns"), [(700, 1024), (700, 997), (70, 40), (300, 5)])
def test_results_do_not_depend_on_where_arrays_begin(rows: int, columns: int, dtype: str) -> None:
    random = np.random.default_rng(rows)
    x, gamma, beta = (random.standard_normal(s).astype(dtype) for s in ((rows, columns), columns, columns))
    x[3, 1], x[5, -1], gamma[-1], beta[0] = np.nan, np.inf, -0.0, np.inf

    @kf.jit
    def both(x: Any, gamma: Any, beta: Any, cotangent: Any) -> Any:
        y, pull = kf.vjp(norm, x, gamma, beta)
        return y, *pull(cotangent)

    plain = kf.jit(norm)
    want, wants = plain(x, gamma, beta), None
    with np.errstate(all="ignore"):
        oracle = norm(x.astype("f8"), gamma, beta)
    np.testing.assert_allclose(want, oracle, rtol=3e-4 if dtype == "f4" else 1e-10, atol=1e-4)
    for k in range(16):
        moved = [off(a, n % 16) for a, n in ((x, k), (gamma, 5 * k), (beta, 3 * k))]
        np.testing.assert_array_equal(plain(*moved), want)
        found = both(*moved, off(x, 7 * k % 16))
        wants = wants or found
        for a, b in zip(found, wants, strict=True):
            np.testing.assert_array_equal(a, b)
