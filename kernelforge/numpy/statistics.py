"""Moments of several variables, counts in bins, polynomials."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch, UnsupportedArgument
from kernelforge.ir.build import Operand, Sym, apply, as_sym, full
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.dispatch import array_function
from kernelforge.numpy.products import matrices
from kernelforge.numpy.search import searchsorted
from kernelforge.numpy.ufuncs import common_dtype, ufunc, where
from kernelforge.told import telling
from kernelforge.trace import TRACED, concrete


def _variables(op: str, m: Sym, y: Sym | None, rowvar: bool) -> Sym:
    """Return variables as rows, in the dtype that moments are computed in."""
    parts = [
        x.reshape((1, x.size)) if x.ndim < 2 else x if rowvar else x.transpose((1, 0)) for x in (m, y) if x is not None
    ]
    if any(x.ndim > 2 for x in parts):
        raise ShapeMismatch(op=f"np.{op}", found=m.shape, expected="at most two axes")
    rows: Sym = FUNCTIONS["concatenate"](parts, 0)
    return rows.astype(common_dtype((rows, np.float64(0))))


@array_function("m", "y", "fweights", "aweights")
def cov(
    m: Sym,
    y: Sym | None = None,
    rowvar: bool = True,
    bias: bool = False,
    ddof: int | None = None,
    fweights: Sym | None = None,
    aweights: Sym | None = None,
    *,
    dtype: Any = None,
) -> Sym:
    """``numpy.cov``, without weights."""
    if fweights is not None or aweights is not None:
        raise UnsupportedArgument(op="np.cov", name="weights", found="an array", expected="leave it out")
    x = _variables("cov", m, y, rowvar)
    x = x if dtype is None else x.astype(dtype)
    apart = ufunc("subtract", x, FUNCTIONS["mean"](x, 1, keepdims=True))
    degrees = max(x.shape[1] - ((0 if bias else 1) if ddof is None else ddof), 0)
    made = ufunc("divide", matrices(apart, apart.transpose((1, 0))), float(degrees))
    return made.reshape(()) if made.size == 1 else made


@array_function("x", "y")
def corrcoef(x: Sym, y: Sym | None = None, rowvar: bool = True, *, dtype: Any = None) -> Sym:
    c = cov(x, y, rowvar, dtype=dtype)
    if not c.ndim:
        return ufunc("divide", c, c)
    spread = ufunc("sqrt", FUNCTIONS["diagonal"](c))
    made = ufunc("divide", ufunc("divide", c, spread.reshape((spread.size, 1))), spread)
    return FUNCTIONS["clip"](made, -1, 1)  # type: ignore[no-any-return]


def _nan_arg(name: str, a: Operand, axis: int | None, keepdims: bool) -> Sym:
    x = as_sym(a)
    if x.dtype.kind == "f":
        x = where(ufunc("isnan", x), full(-np.inf if name == "max" else np.inf, x), x)
    return FUNCTIONS[f"arg{name}"](x, axis, keepdims=keepdims)  # type: ignore[no-any-return]


@array_function("a")
def nanargmax(a: Sym, axis: int | None = None, *, keepdims: bool = False) -> Sym:
    """``numpy.nanargmax``; of NaN alone it is 0, where NumPy raises."""
    return _nan_arg("max", a, axis, keepdims)


@array_function("a")
def nanargmin(a: Sym, axis: int | None = None, *, keepdims: bool = False) -> Sym:
    """``numpy.nanargmin``; of NaN alone it is 0, where NumPy raises."""
    return _nan_arg("min", a, axis, keepdims)


@array_function("a")
def nancumprod(a: Sym, axis: int | None = None, dtype: Any = None) -> Sym:
    return FUNCTIONS["cumprod"](where(ufunc("isnan", a), full(1, a), a), axis, dtype)  # type: ignore[no-any-return]


def _counted(places: Sym, count: int, weights: Sym | None) -> Sym:
    """Add up weights, or ones, by place; places beyond ``count`` are dropped."""
    added = full(1, places) if weights is None else weights
    start = apply("full", value=0, shape=(count,), dtype=added.type.name)
    return apply("scatter", start, added, places, axes=(0,), mode="add")


def _edges_of(x: Sym, bins: int, range: Any) -> Sym:
    low, high = (as_sym(v).astype(np.float64) for v in range) if range is not None else _extremes(x)
    same = ufunc("equal", low, high)
    low, high = where(same, low - 0.5, low), where(same, high + 0.5, high)
    return as_sym(FUNCTIONS["linspace"](low, high, bins + 1))


def _bins_of(x: Sym, edges: Sym) -> Sym:
    """Return the bin of each element, the number of bins where it is in none; the last bin has both its edges."""
    count = edges.size - 1
    places = searchsorted(edges, x, "right") - 1
    last = FUNCTIONS["take"](edges, count)
    places = where(ufunc("equal", x, last), full(count - 1, places), places)
    outside = ufunc("less", places, 0) | ufunc("greater", x, last)
    if x.dtype.kind == "f":
        outside = outside | ufunc("isnan", x)
    return where(outside, full(count, places), places)


@array_function("a", "weights", "edges", table={})
def _histogram(
    a: Sym, bins: int | None, range: Any, density: bool, weights: Sym | None = None, edges: Sym | None = None
) -> tuple[Sym, Sym]:
    x = a.reshape((a.size,))
    if edges is None:
        assert bins is not None
        edges = _edges_of(x, bins, range).astype(common_dtype((x, 1.0)))
    weights = None if weights is None else weights.reshape((weights.size,))
    made = _counted(_bins_of(x, edges), edges.size - 1, weights)
    if density:
        width = FUNCTIONS["diff"](edges)
        made = ufunc("divide", ufunc("divide", made, width), made.sum((0,)))
    return made, edges


@array_function("*sample", "weights", "*edges", table={})
def _histogramdd(
    sample: tuple[Sym, ...], bins: tuple[int, ...], ranges: tuple[Any, ...], density: bool, edges: tuple[Sym, ...],
    weights: Sym | None = None,
) -> Any:  # fmt: skip
    given = iter(edges)
    found = [
        _edges_of(x, n, r) if n else next(given) for x, n, r in zip(sample, bins, ranges, strict=True)
    ]  # 0 bins: edges are given
    counts = [e.size - 1 for e in found]
    place, inside = full(0, sample[0].astype(np.int64)), full(True, sample[0].astype(np.bool_))
    for x, e, n in zip(sample, found, counts, strict=True):
        own = _bins_of(x, e)
        inside = inside & ufunc("less", own, n)
        place = ufunc("add", ufunc("multiply", place, n), own)
    total = math.prod(counts)
    added = full(1.0, place.astype(np.float64)) if weights is None else weights.astype(np.float64)
    made = _counted(where(inside, place, full(total, place)), total, added).reshape(tuple(counts))
    if density:
        made = ufunc("divide", made, made.sum(tuple(range(made.ndim))))
        for axis, e in enumerate(found):
            widths = FUNCTIONS["diff"](e)
            made = ufunc("divide", made, widths.reshape([e.size - 1 if a == axis else 1 for a in range(made.ndim)]))
    return made, tuple(found)


def _extremes(x: Sym) -> tuple[Sym, Sym]:
    if not x.size:
        return as_sym(0.0).astype(np.float64), as_sym(1.0).astype(np.float64)
    return tuple(FUNCTIONS[name](x).astype(np.float64) for name in ("min", "max"))


def _require_bins(op: str, bins: Any, descending: bool) -> np.ndarray[Any, Any] | None:
    """Return edges that are known while tracing, after they were looked at."""
    known = concrete(bins)
    if known is TRACED:
        return None
    edges = np.asarray(known)
    falls, rises = (edges[1:] < edges[:-1]).any(), (edges[1:] > edges[:-1]).any()
    if edges.ndim != 1 or (falls and (rises or not descending)):
        expected = f"edges along one axis that ascend{' or descend' if descending else ''}"
        raise InvalidParameter(op=op, name="bins", found=edges, expected=expected)
    return edges


def _require_range(given: Any, a: Any) -> None:
    """Look at the range of bins, or at the elements that give it, where these are known while tracing."""
    known = concrete(a if given is None else given)
    if known is TRACED:
        return
    ends = np.asarray(known)
    finite = ends.dtype.kind != "f" or np.isfinite(ends).all()
    if not finite or (given is not None and (ends.shape != (2,) or ends[0] > ends[1])):
        found = "what a holds" if given is None else given
        expected = "finite numbers, the first of a range not above the second"
        raise InvalidParameter(op="np.histogram", name="range", found=found, expected=expected)


def histogram(a: Any, bins: Any = 10, range: Any = None, density: bool | None = None, weights: Any = None) -> Any:
    """``numpy.histogram``, with a number of bins or with their edges; what a trace does not know is not looked at."""
    op = "np.histogram"
    if isinstance(bins, str):
        raise InvalidParameter(op=op, name="bins", found=bins, expected="a number or edges")
    if weights is not None and np.shape(weights) != np.shape(a):
        found = f"{np.shape(a)} and {np.shape(weights)}"
        raise ShapeMismatch(op=op, found=found, expected="a weight for each element")
    if np.ndim(bins):
        _require_bins(op, bins, descending=False)
        return _histogram(a, None, None, bool(density), weights, bins)
    known = concrete(bins)
    if known is TRACED or np.asarray(known).dtype.kind not in "iu":
        kind: Any = "a traced array" if known is TRACED else np.asarray(known).dtype
        raise DtypeMismatch(op=op, found=kind, expected="an integer, or edges, as bins")
    if int(known) < 1:
        raise InvalidParameter(op=op, name="bins", found=bins, expected="at least one")
    _require_range(range, a)
    return _histogram(a, int(known), range, bool(density), weights)


def histogram_bin_edges(a: Any, bins: Any = 10, range: Any = None, weights: Any = None) -> Any:
    """``numpy.histogram_bin_edges``; see ``histogram``."""
    return histogram(a, bins, range, weights=weights)[1]


def histogramdd(
    sample: Any, bins: Any = 10, range: Any = None, density: bool | None = None, weights: Any = None
) -> Any:
    """``numpy.histogramdd``; what a trace does not know is not looked at."""
    op = "np.histogramdd"
    if isinstance(sample, list | tuple):
        columns = [FUNCTIONS["ravel"](x) for x in sample]
    else:
        points = FUNCTIONS["asarray"](sample)
        points = points.reshape((points.size, 1)) if points.ndim == 1 else points
        columns = [points[:, i] for i in np.arange(points.shape[1])]
    if weights is not None and np.shape(weights) != columns[0].shape:
        found = f"{columns[0].shape} and {np.shape(weights)}"
        raise ShapeMismatch(op=op, found=found, expected="a weight for each point")
    several = isinstance(bins, list | tuple) or np.ndim(bins) > 0
    each: list[Any] = list(bins) if several else [bins] * len(columns)
    ranges = [None] * len(columns) if range is None else list(range)
    if len(each) != len(columns) or len(ranges) != len(columns):
        found = f"{len(each)} bins, {len(ranges)} ranges"
        raise ShapeMismatch(op=op, found=found, expected=f"one for each of {len(columns)} axes")
    edges = []
    for n, r, x in zip(each, ranges, columns, strict=True):
        if np.ndim(n):
            _require_bins(op, n, descending=False)
            edges.append(FUNCTIONS["asarray"](n))
        elif int(n) < 1:
            raise InvalidParameter(op=op, name="bins", found=n, expected="at least one")
        else:
            _require_range(r, x)
    plain = tuple(0 if np.ndim(n) else int(n) for n in each)
    own = FUNCTIONS["ravel"](weights) if weights is not None else None
    return _histogramdd(tuple(columns), plain, tuple(ranges), bool(density), tuple(edges), own)


def histogram2d(
    x: Any, y: Any, bins: Any = 10, range: Any = None, density: bool | None = None, weights: Any = None
) -> Any:
    """``numpy.histogram2d``; one array of edges serves both axes."""
    if (isinstance(bins, list | tuple) or np.ndim(bins)) and len(bins) not in (1, 2):
        bins = [bins, bins]
    made, (first, second) = histogramdd((x, y), bins, range, density, weights)
    return made, first, second


def digitize(x: Any, bins: Any, right: bool = False) -> Any:
    """``numpy.digitize``, for bins that are known while tracing, or ascend."""
    known = _require_bins("np.digitize", bins, descending=True)
    if known is not None and known.size > 1 and known[0] > known[-1]:
        found = FUNCTIONS["searchsorted"](known[::-1], x, "left" if right else "right")
        return FUNCTIONS["subtract"](known.size, found)
    return FUNCTIONS["searchsorted"](bins, x, "left" if right else "right")


@array_function("p", "x")
def polyval(p: Sym, x: Sym) -> Sym:
    """``numpy.polyval``: Horner's rule."""
    made = ufunc("multiply", full(0, x), 0)
    for i in range(p.shape[0]):
        made = ufunc(
            "add", ufunc("multiply", made, x), apply("slice", p, starts=(i,), stops=(i + 1,), steps=(1,)).reshape(())
        )
    return made


@array_function("x")
def vander(x: Sym, N: int | None = None, increasing: bool = False) -> Sym:
    count = x.size if N is None else N
    powers = np.arange(count) if increasing else np.arange(count)[::-1]
    kind = common_dtype((x, np.int64(1)))
    return ufunc("power", x.astype(kind).reshape((x.size, 1)), as_sym(np.ascontiguousarray(powers))).astype(kind)


for _fn in (histogram, histogram_bin_edges, histogramdd, histogram2d, digitize):
    FUNCTIONS[_fn.__name__] = telling(_fn)
