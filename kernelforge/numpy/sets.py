"""Sets of the elements of arrays; with ``size`` in compiled functions, as in ``sized``.

Both arrays are sorted as one. How many of each stand in a run of equal elements says which run belongs to a set.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelforge.ir.build import Sym, apply, as_sym, full, tracing
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.shapes import part
from kernelforge.numpy.sized import count_of, known_values, places_of, unique
from kernelforge.numpy.sorting import order_of
from kernelforge.numpy.ufuncs import ufunc, where
from kernelforge.told import telling


def _kept(name: str, first: Sym, second: Sym, mine: Sym, theirs: Sym, nan: Sym) -> Sym:
    """Say which elements a set keeps; NaN equals none of the other array's.

    Args:
        first: whether an element is the first of its run in the first array.
        second: the same, in the second array.
        mine: how many elements of its run are in the first array.
        theirs: the same, in the second array.
    """
    if name == "intersect1d":
        return first & (theirs > 0) & ~nan
    alone = first & (theirs.eq(0) | nan)
    return alone if name == "setdiff1d" else alone | (second & (mine.eq(0) | nan))


@array_function("ar1", "ar2", table={})
def _set(ar1: Sym, ar2: Sym, name: str, size: int, fill_value: Any, indices: bool) -> Any:
    sides = [x.reshape((x.size,)) for x in (ar1, ar2)]
    n, m = (x.size for x in sides)
    both = FUNCTIONS["concatenate"](sides, 0)
    order = order_of(both)
    ordered = FUNCTIONS["take"](both, order)
    before, after = part(ordered, 0, 0, n + m - 1), part(ordered, 0, 1, n + m)
    nan = ufunc("isnan", ordered)
    differs = ufunc("not_equal", before, after) & ~part(nan, 0, 0, n + m - 1)
    new = FUNCTIONS["concatenate"]([as_sym(np.ones(1, np.bool_)), differs], 0)
    run = FUNCTIONS["cumsum"](new.astype(np.int64), 0) - 1
    own = ufunc("less", order, n)
    mine, theirs = (
        FUNCTIONS["take"](apply("scatter", full(0, run), v.astype(np.int64), run, axes=(0,), mode="add"), run)
        for v in (own, ~own)
    )
    # elements of the first array stand in front of equal ones of the second
    turned = FUNCTIONS["concatenate"]([as_sym(np.ones(1, np.bool_)), part(own, 0, 0, n + m - 1)], 0)
    first, second = new & own, ~own & (new | turned)
    found, real = places_of(_kept(name, first, second, mine, theirs, nan), size)
    values = FUNCTIONS["take"](ordered, found)
    values = where(real, values, full(0, values) if fill_value is None else full(fill_value, values))
    if not indices:
        return values
    at = [FUNCTIONS["take"](order, found), FUNCTIONS["take"](order, found + FUNCTIONS["take"](mine, found)) - n]
    return values, *(where(real, i, full(0, i)) for i in at)


def _made(name: str, ar1: Any, ar2: Any, size: int | None, fill_value: Any, indices: bool = False) -> Any:
    if size is None:
        known = [known_values(name, x, "size") for x in (ar1, ar2)]
        plain = getattr(np, name)(*known)
        if tracing():
            return plain if not indices else np.intersect1d(known[0], known[1], return_indices=True)
        size = plain.size
    size = count_of(name, "size", size)
    if np.size(ar1) and np.size(ar2):
        return _set(ar1, ar2, name, size, fill_value, indices)
    # of nothing and something: the other array's elements once, or none
    rest = ar1 if name == "setdiff1d" or np.size(ar1) else ar2
    if name == "intersect1d" or not np.size(rest):
        dtype = np.result_type(*(FUNCTIONS["asarray"](x).dtype for x in (ar1, ar2)))
        none = FUNCTIONS["full"](size, 0 if fill_value is None else fill_value, dtype)
        return (none, *(FUNCTIONS["zeros"](size, np.int64) for _ in range(2))) if indices else none
    return unique(rest, size=size, fill_value=fill_value)


def intersect1d(
    ar1: Any, ar2: Any, assume_unique: bool = False, return_indices: bool = False, *, size: int | None = None,
    fill_value: Any = None,
) -> Any:  # fmt: skip
    """``numpy.intersect1d``; with ``size``, zeros or ``fill_value`` fill it up. See ``unique``."""
    return _made("intersect1d", ar1, ar2, size, fill_value, return_indices)


def setxor1d(
    ar1: Any, ar2: Any, assume_unique: bool = False, *, size: int | None = None, fill_value: Any = None
) -> Any:
    """``numpy.setxor1d``; see ``intersect1d``."""
    return _made("setxor1d", ar1, ar2, size, fill_value)


@array_function("ar1", "ar2", table={})
def _others(ar1: Sym, ar2: Sym, size: int, fill_value: Any) -> Sym:
    x = ar1.reshape((ar1.size,))
    found, real = places_of(~FUNCTIONS["isin"](x, ar2), size)
    values = FUNCTIONS["take"](x, found)
    return where(real, values, full(0 if fill_value is None else fill_value, values))


def setdiff1d(
    ar1: Any, ar2: Any, assume_unique: bool = False, *, size: int | None = None, fill_value: Any = None
) -> Any:
    """``numpy.setdiff1d``; see ``intersect1d``. With ``assume_unique`` elements stay in order."""
    if not assume_unique or not np.size(ar1):
        return _made("setdiff1d", ar1, ar2, size, fill_value)
    if size is None:
        known = [known_values("setdiff1d", x, "size") for x in (ar1, ar2)]
        plain = np.setdiff1d(known[0], known[1], assume_unique=True)
        if tracing():
            return plain
        size = plain.size
    return _others(ar1, ar2, count_of("setdiff1d", "size", size), fill_value)


def union1d(ar1: Any, ar2: Any, *, size: int | None = None, fill_value: Any = None) -> Any:
    """``numpy.union1d``; see ``unique``."""
    if size is None:
        size = np.union1d(known_values("union1d", ar1, "size"), known_values("union1d", ar2, "size")).size
    both = FUNCTIONS["concatenate"]([FUNCTIONS["ravel"](ar1), FUNCTIONS["ravel"](ar2)])
    return unique(both, size=count_of("union1d", "size", size), fill_value=fill_value)


for _fn in (intersect1d, setdiff1d, setxor1d, union1d):
    FUNCTIONS[_fn.__name__] = telling(_fn)
