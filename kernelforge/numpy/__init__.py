"""NumPy's functions on traced and device arrays, and NumPy's dtypes and constants.

``logsumexp``, ``sigmoid``, ``erf``, ``erfc``, ``cummax`` and ``cummin`` are here besides.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from kernelforge.methods import FUNCTIONS
from kernelforge.numpy import (
    bits,
    creation,
    integers,
    joins,
    pairs,
    places,
    polynomials,
    products,
    reductions,
    refused,
    search,
    segments,
    selection,
    sets,
    shapes,
    sized,
    sorting,
    statistics,
    ufuncs,
)

for _alias, _name in (ufuncs.ALIASES | reductions.ALIASES | shapes.ALIASES | joins.ALIASES).items():
    FUNCTIONS[_alias] = FUNCTIONS[_name]

_OWN = (
    "pi e inf nan newaxis euler_gamma finfo iinfo dtype bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 ndarray generic integer floating signedinteger unsignedinteger number issubdtype "
    "promote_types can_cast broadcast_shapes isscalar errstate isdtype min_scalar_type indices fromfunction "
    "tril_indices triu_indices diag_indices mask_indices bartlett blackman hamming hanning kaiser"
)
_NUMPYS_OWN = frozenset(_OWN.split())

bfloat16 = ml_dtypes.bfloat16


class _Submodule:
    """A submodule of NumPy's, of whose functions there are some."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        found = FUNCTIONS.get(f"{self._name}.{name}")
        if found is None:
            raise AttributeError(f"kernelforge.numpy.{self._name} has no function {name!r}")
        return found

    def __dir__(self) -> list[str]:
        start = f"{self._name}."
        return sorted(name.removeprefix(start) for name in FUNCTIONS if name.startswith(start))


linalg = _Submodule("linalg")


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    if name in _NUMPYS_OWN:
        return getattr(np, name)
    raise AttributeError(f"module 'kernelforge.numpy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*FUNCTIONS, *_NUMPYS_OWN, "bfloat16", "linalg"})


__all__ = [
    "bits",
    "creation",
    "integers",
    "joins",
    "pairs",
    "places",
    "polynomials",
    "products",
    "reductions",
    "refused",
    "search",
    "segments",
    "selection",
    "sets",
    "shapes",
    "sized",
    "sorting",
    "statistics",
    "ufuncs",
]
