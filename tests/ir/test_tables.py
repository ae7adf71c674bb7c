"""The numbers that registers hold: what they are of, and that two registers are looked up in by one instruction."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from kernelforge.ir.tables import DEGREE, ERF_PARTS, ERFC_SHIFT, LANES, TABLES, table


@pytest.mark.parametrize("name", TABLES)
def test_tables_fill_one_register_or_two(name: str) -> None:
    for dtype, lanes in LANES.items():
        if name == "exp2_low" or dtype == "f32":
            assert len(table(name, dtype)) in (lanes, 2 * lanes)


def test_powers_of_two() -> None:
    assert table("exp2_low", "f64") == tuple(2 ** (k / 8) for k in range(8))


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("erf", lambda x: math.erf(x) / x if x else 2 / math.sqrt(math.pi)),
        ("erfc", lambda x: math.exp(x * x) * math.erfc(x)),
    ],
)
def test_polynomials_are_within_a_quarter_of_the_last_place(name: str, of: Callable[[float], float]) -> None:
    columns = [table(f"{name}_{j}", "f32") for j in range(DEGREE[name] + 1)]
    for x in np.linspace(0, {"erf": 3.93, "erfc": 10.1}[name], 5001):
        if name == "erf":
            k = round(x * ERF_PARTS)
            origin = k / ERF_PARTS
        else:
            bits = int(np.float32(x + 1).view(np.uint32)) >> ERFC_SHIFT
            k = bits % 32
            origin = float(np.uint32(bits << ERFC_SHIFT).view(np.float32)) - 1
        value = sum(column[k] * (x - origin) ** j for j, column in enumerate(columns))
        assert abs(value / of(x) - 1) < 2.0**-26
