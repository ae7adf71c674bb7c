"""Which vectors hold lanes that lie a few elements apart, and how shuffles of two pick and turn them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from kernelforge.ir import interleaved
from kernelforge.ir.interleaved import Places
from kernelforge.ir.kernel import For
from kernelforge.ir.parse import parse_kernel


def picked(rows: Sequence[np.ndarray], places: Places) -> np.ndarray:
    """Pick as the printers do, by shuffles of two vectors, of which no element may be one that is not known."""
    made, lanes = rows[0], len(rows[0])
    for r, order in enumerate(interleaved.orders(len(rows), lanes, places), min(1, len(rows) - 1)):
        both = np.concatenate([made, rows[r]])
        made = np.array([-1 if k is None else both[k] for k in order])
    return made


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("step", range(2, 9))
def test_lanes_apart_are_picked_from_vectors_that_reach_no_further(step: int, lanes: int) -> None:
    memory = np.arange(100, 100 + step * (lanes - 1) + 1)
    found = interleaved.windows(step, lanes)
    rows = [memory[first : first + lanes] for first, _ in found]
    assert all(len(row) == lanes for row in rows)
    places = [(r, place) for r, (_, held) in enumerate(found) for place in held]
    np.testing.assert_array_equal(picked(rows, places), memory[::step])
    np.testing.assert_array_equal(picked(rows, places[::-1]), memory[::-step])


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_rows_are_turned_into_the_order_of_their_lanes(count: int, lanes: int) -> None:
    rows = np.arange(count * lanes).reshape(count, lanes)
    made = interleaved.transposed([*rows], lanes, picked)
    np.testing.assert_array_equal(np.concatenate(made), rows.T.reshape(-1))


def test_a_tile_is_stored_to_a_buffer_whose_strides_are_known() -> None:
    kernel = parse_kernel("""kernel turned(in x: f32[64], out y: f32[64]) {
      for unroll k < 8 {
        for vector v < 8 {
          y[v * 8 + k] = x[k * 8 + v]
        }
      }
    }""")
    (loop,) = kernel.body
    assert isinstance(loop, For)
    found = interleaved.tile(loop, {"y": (1,)})
    assert found is not None
    assert found.step == 8
    assert interleaved.tile(loop, {"x": (1,)}) is None
