"""The dtypes kernelforge computes with, their short names, and NumPy 2's promotion."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np

from kernelforge.errors import UnsupportedDtype

BFLOAT16: Final[np.dtype[Any]] = np.dtype(ml_dtypes.bfloat16)

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "bool": np.dtype(np.bool_),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "f16": np.dtype(np.float16),
    "bf16": BFLOAT16,
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
"""Short name, as it stands in the text of both IRs, to NumPy dtype."""

_SHORT: Final = {dtype: name for name, dtype in DTYPES.items()}

SIGNED: Final = frozenset({"i8", "i16", "i32", "i64"})
UNSIGNED: Final = frozenset({"u8", "u16", "u32", "u64"})
INTEGERS: Final = SIGNED | UNSIGNED
FLOATS: Final = frozenset({"f16", "bf16", "f32", "f64"})
NARROW_FLOATS: Final = frozenset({"f16", "bf16"})
"""Floats stored in 16 bits: each operation on them is done in f32 and rounded back, as NumPy does."""


def as_dtype(dtype: Any, where: str = "") -> np.dtype[Any]:
    """Turn anything NumPy takes for a dtype, or a short name that means nothing to NumPy, into one of ``DTYPES``.

    Raises:
        UnsupportedDtype: for a dtype outside of the table (complex, strings, objects, long double).
    """
    # NumPy spells int64 i8 and uint64 u8: what a user writes has NumPy's meaning where it has one
    found = DTYPES.get(dtype) if isinstance(dtype, str) and dtype not in ("i8", "u8") else None
    if found is None:
        try:
            found = np.dtype(dtype).newbyteorder("=")
        except (TypeError, ValueError):
            raise UnsupportedDtype(found=repr(dtype), where=where, expected=", ".join(DTYPES)) from None
    if found not in _SHORT:
        # long and long long are two dtypes of the same size on some platforms
        same = [d for d in DTYPES.values() if d.kind == found.kind and d.itemsize == found.itemsize and d.kind in "iu"]
        if not same:
            raise UnsupportedDtype(found=str(found), where=where, expected=", ".join(DTYPES))
        return same[0]
    return DTYPES[_SHORT[found]]  # the one object of each: ``newbyteorder`` makes another


def short(dtype: np.dtype[Any]) -> str:
    """Name a dtype as the IRs spell it (``f32``)."""
    return _SHORT[dtype] if dtype in _SHORT else _SHORT[as_dtype(dtype)]


def is_float(dtype: np.dtype[Any]) -> bool:
    return short(dtype) in FLOATS


def accumulator(name: str) -> str:
    """Name the dtype in which sums and contractions of ``name`` are accumulated."""
    return "f32" if name in NARROW_FLOATS else name


def promote(dtypes: list[np.dtype[Any]], weak: list[np.dtype[Any]]) -> np.dtype[Any]:
    """Promote as NumPy 2 does: ``weak`` dtypes (of Python scalars) count by kind only.

    bfloat16 with float16 gives float32; bfloat16 with an integer gives bfloat16 where NumPy has no rule.
    """
    if not dtypes:
        return as_dtype(np.result_type(*weak))
    result = dtypes[0]
    for other in dtypes[1:]:
        result = _pair(result, other)
    for other in weak:
        if other.kind == "b" or result.kind == "f" or result == BFLOAT16:
            continue
        if other.kind == "f":
            result = as_dtype(np.result_type(result, 1.0))
        elif result.kind == "b":
            result = as_dtype(np.result_type(result, 1))
    return result


def _pair(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    if a == b:
        return a
    if BFLOAT16 in (a, b):
        other = b if a == BFLOAT16 else a
        if other.kind == "f":
            return DTYPES["f64" if other.itemsize == 8 else "f32"]
        return BFLOAT16
    return as_dtype(np.result_type(a, b))


def epsilon(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number of a float dtype; 0 for others."""
    if not is_float(dtype):
        return 0.0
    return 2.0**-7 if dtype == BFLOAT16 else float(np.finfo(dtype).eps)
