"""Small graphs of one primitive each, made from the records' samples: what every level and every device is tested
with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES, FLOATS
from kernelforge.ir.build import build
from kernelforge.ir.graph import Graph, Kind, Primitive
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.types import Type

Arrays = list[np.ndarray[Any, Any]]


def dtypes(prim: Primitive) -> list[str]:
    """Return the dtypes to test: all that the first input may have, or one where there is none."""
    return sorted(prim.dtypes) or ["f32"]


def samples(prim: Primitive, dtype: str) -> Iterator[tuple[Graph, Arrays]]:
    """Yield graphs and inputs; samples hold float64 arrays (and maps also int64) for what ``dtype`` stands for."""
    for sample in prim.sample():
        inputs = []
        for array in sample.inputs:
            array = np.asarray(array)
            if array.dtype == np.float64 or (prim.kind is Kind.MAP and array.dtype == np.int64):
                with np.errstate(all="ignore"):
                    array = _cast(array, dtype)
            inputs.append(array)
        types = [Type(a.shape, a.dtype) for a in inputs]

        def fn(*syms: Any, params: dict[str, Any] = sample.params) -> Any:
            from kernelforge.ir.build import apply_many

            return apply_many(prim.name, *syms, **params)

        yield build(fn, types), inputs


def _cast(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype in FLOATS:
        return array.astype(DTYPES[dtype])
    if array.dtype.kind == "i":
        return array.astype(DTYPES[dtype])
    clean = np.nan_to_num(array, nan=0.0, posinf=3.0, neginf=-3.0)
    if dtype == "bool":
        return clean > 0
    if dtype.startswith("u"):
        clean = np.abs(clean)
    return np.clip(clean * 4, -100, 100).astype(DTYPES[dtype])


def names(*kinds: Kind) -> list[str]:
    """Return the primitives, of these kinds where some are named."""
    return [n for n, p in PRIMITIVES.items() if not kinds or p.kind in kinds]


def tolerance(prim: Primitive, dtype: str) -> float:
    """Return the relative error allowed against the NumPy rule."""
    unit = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23, "f64": 2.0**-52}.get(dtype, 0.0)
    return unit * (2 * max(prim.bound, 1.0) + 16 * (prim.kind in (Kind.REDUCE, Kind.CONTRACT, Kind.CUMULATE)))


def close(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], rtol: float) -> None:
    """Compare, NaN with NaN; floats within ``rtol`` of the value or of the largest one, everything else exactly."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if want.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want)
        return
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.abs(b[np.isfinite(b)])
    tiny = {2: 1e-7, 4: 2e-38, 8: 1e-300}[want.dtype.itemsize]
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 1e-3 * (finite.max() if finite.size else 0) + tiny)
