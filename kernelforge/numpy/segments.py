"""Reductions of runs of elements, as ``numpy.ufunc.reduceat`` makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from kernelforge.errors import InvalidParameter, ShapeMismatch, UnsupportedArgument
from kernelforge.ir.build import Sym, apply, as_sym
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.folds import reduce_runs
from kernelforge.told import telling
from kernelforge.trace import TRACED, concrete

MODES = {"add": "add", "multiply": "mul", "maximum": "max", "minimum": "min"}
"""Of the ufuncs whose runs are reduced: how elements combine."""


@array_function("a", table={})
def _reduceat(a: Sym, starts: tuple[int, ...], axis: int, mode: str) -> Sym:
    x = FUNCTIONS["moveaxis"](a, axis, 0)
    begin = np.array(starts, np.int64)
    further = np.maximum(np.append(begin, x.shape[0])[1:] - begin - 1, 0) if starts else begin
    made = FUNCTIONS["take"](x, as_sym(begin), 0)
    if further.any():
        runs = np.repeat(np.arange(len(begin)), further)
        places = np.arange(len(runs)) - np.repeat(further.cumsum() - further, further) + begin[runs] + 1
        made = apply("scatter", made, FUNCTIONS["take"](x, as_sym(places), 0), as_sym(runs), axes=(0,), mode=mode)
    return FUNCTIONS["moveaxis"](made, 0, axis)  # type: ignore[no-any-return]


def reduceat(name: str, array: Any, indices: Any, axis: int = 0, dtype: Any = None) -> Any:
    """``numpy.ufunc.reduceat`` of the ufunc called ``name``, at places that are known while tracing."""
    op = f"np.{name}.reduceat"
    known = concrete(indices)
    if known is TRACED:
        expected = "places that are known"
        raise UnsupportedArgument(op=op, name="indices", found="a traced array", expected=expected)
    x = FUNCTIONS["asarray"](array)
    on = normalize_axis_index(axis, x.ndim)
    starts = np.asarray(known)
    if starts.ndim != 1:
        raise ShapeMismatch(op=op, found=starts.shape, expected="a vector of places")
    wrong = starts[(starts < 0) | (starts >= x.shape[on])]
    if wrong.size:
        expected = f"places from 0 to {x.shape[on] - 1}"
        raise InvalidParameter(op=op, name="indices", found=int(wrong[0]), expected=expected)
    into = getattr(np, name).reduceat(np.ones(1, x.dtype), [0], dtype=dtype).dtype
    x, runs = x.astype(into), tuple(starts.astype(np.int64).tolist())
    return _reduceat(x, runs, on, MODES[name]) if name in MODES else reduce_runs(x, name, runs, on)


FUNCTIONS["reduceat"] = telling(reduceat)
