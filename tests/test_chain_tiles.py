"""How chains of products cut their rows into tiles, and that odd ones are right as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from tests.test_chains import attention, normal


def inputs(rows: int) -> list[Any]:
    return [normal(64, n, 32, seed=k) for k, n in enumerate((rows, 80, 80))]


@pytest.mark.parametrize(("rows", "packed"), [(96, False), (97, True)])
def test_rows_that_make_whole_tiles_are_read_where_they_lie(rows: int, packed: bool) -> None:
    with kf.default_device("cpu"):
        (kernel,) = kf.jit(attention).lower(*inputs(rows)).kernels
    assert ("_rows" in str(kernel.ir)) == packed


@pytest.mark.parametrize("rows", [1, 7, 8, 48, 64, 71, 96, 97, 200])
def test_blocks_of_any_number_of_rows(rows: int) -> None:
    given = inputs(rows)
    wide = attention(*(x.astype(np.float64) for x in given))
    np.testing.assert_allclose(kf.jit(attention)(*given), wide, rtol=2e-5, atol=2e-5)
