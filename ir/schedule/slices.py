"""Slices that go through all steps of a loop by themselves.

A repeated kernel runs a phase for each step, and all workers wait for each other after it, while the state goes through
memory. Where the state has a leading axis of which no element reads what others make, as a batch, one worker takes an
element of it through all steps: the slice of the state stays in its cache, and nobody waits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence

from kernelforge.dtypes import DTYPES
from kernelforge.errors import IllegalSchedule
from kernelforge.ir.index import Poly, affine, bounds, free_vars, from_poly, normalize, poly
from kernelforge.ir.kernel import (
    Const,
    Expr,
    For,
    Kernel,
    Load,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    map_exprs,
    stmts,
    substitute,
    walk,
)
from kernelforge.ir.repeat import repeats
from kernelforge.ir.schedule.limits import LINE, Limits
from kernelforge.ir.schedule.nests import loads, reduction_loops
from kernelforge.ir.schedule.recipes import schedule

SHARES = 4
"""Slices for each thread, at least: some end sooner than others."""


def sliced(kernel: Kernel, limits: Limits) -> Kernel | None:
    """Schedule a naive repeated kernel as one loop over slices, of which each goes through all phases.

    Returns:
        None where the device has no vectors, and where slices read what others make, are few, fill no vectors, do not
        fit a worker's cache, or share what each of them would read: a matrix that all rows of a batch are multiplied
        with, or lines of memory.
    """
    extents = [s.static or 0 for s in _nests(kernel.body)]
    most, least = min(extents), SHARES * limits.threads
    if limits.form != "vector" or most < least or any(n % most for n in extents):
        return None
    which = Var("slice", "i64", most)
    mine = _each(kernel.body, lambda nest: _mine(nest, which))
    held = {a.name: DTYPES[a.dtype].itemsize for a in kernel.args}
    sizes = _sizes(mine, which, held)
    if sizes is None or any(_short(nest, limits) or _shared(nest, which, kernel, limits) for nest in _nests(mine)):
        return None
    # together they may be thicker: what one element of the axis waits for, another one fills
    whole = most * sum(n * held[b] for b, n in sizes.items())
    counts = [n for n in range(least, most + 1) if most % n == 0]
    room = limits.local_bytes, limits.cache_bytes // 2
    count = next((n for fits in room for n in counts if whole // n <= fits), None)
    if count is None:
        return None
    which = Var("slice", "i64", count)
    alone = dataclasses.replace(limits, threads=1)
    nests = _nests(_each(kernel.body, lambda nest: _mine(nest, which)))
    try:
        made = [schedule(dataclasses.replace(kernel, body=(nest,)), alone) for nest in nests]
    except IllegalSchedule:  # a tile of a state would be staged whose other half is written meanwhile
        return None
    if any(phase.args != kernel.args for phase in made):  # memory that slices would share
        return None
    phases = iter(made)
    body = _each(kernel.body, lambda _: _alone(next(phases).body))
    return dataclasses.replace(kernel, body=(For(which, i64(count), "grid", body),))


def _nests(body: Sequence[Stmt]) -> Iterator[For]:
    """Yield the phases of a repeated kernel."""
    for s in body:
        assert isinstance(s, For)
        if repeats(s):
            yield from _nests(s.body)
        else:
            yield s


def _each(body: Sequence[Stmt], change: Callable[[For], Sequence[Stmt]]) -> tuple[Stmt, ...]:
    """Put what ``change`` makes of them in the place of the phases of a repeated kernel."""
    out: list[Stmt] = []
    for s in body:
        assert isinstance(s, For)
        out += [dataclasses.replace(s, body=_each(s.body, change))] if repeats(s) else change(s)
    return tuple(out)


def _mine(nest: For, which: Var) -> Sequence[Stmt]:
    """Restrict the first loop of a nest to a slice of it."""
    rest = (nest.static or 0) // (which.bound or 1)
    inner = Var(nest.var.name, "i64", rest)
    place: Expr = which * rest + inner if rest > 1 else which
    body = tuple(map_exprs(s, lambda e: normalize(substitute(e, {nest.var: place}))) for s in nest.body)
    whole = rest == 1 and len(body) == 1 and isinstance(body[0], For) and body[0].kind == "parallel"
    return body if whole else [For(inner, i64(rest), nest.kind, body)]


def _sizes(body: Sequence[Stmt], which: Var, args: Collection[str]) -> dict[str, int] | None:
    """Return the elements that a slice has of each argument that is written; None where slices may touch others'."""
    turns = set(_turns(body))
    inside = list(stmts(body))
    touched = [(s.buffer, s.index) for s in inside if isinstance(s, Store)]
    written: dict[str, list[Poly]] = {buffer: [] for buffer, _ in touched if buffer in args}
    touched += [(e.buffer, e.index) for s in inside for r in exprs(s) for e in walk(r) if isinstance(e, Load)]
    for buffer, index in touched:
        if buffer in written:
            written[buffer].append(poly(index[0]))
    found = {buffer: _size(places, which, turns) for buffer, places in written.items()}
    known = {buffer: size for buffer, size in found.items() if size is not None}
    return known if len(known) == len(found) else None


def _size(places: Sequence[Poly], which: Var, turns: set[Var]) -> int | None:
    """Return what indices grow by from slice to slice, where they stay below that within one.

    Whole copies of a buffer, of which steps of the loop choose one, lie behind each other.
    """
    size = max(place.get((which,), 0) for place in places)
    copy = math.gcd(*(factor for place in places for term, factor in place.items() if _chosen(term, turns)))
    if copy and size * (which.bound or 1) > copy:
        return None
    for place in places:
        rest = {term: factor for term, factor in place.items() if term != (which,) and not _chosen(term, turns)}
        if place.get((which,)) != size or any(which in free_vars(atom) for term in rest for atom in term):
            return None
        if copy:
            rest[()] = rest.get((), 0) % copy
        low, high = bounds(from_poly(rest))
        if low is None or high is None or low < 0 or high >= size:
            return None
    return size


def _chosen(term: tuple[Expr, ...], turns: set[Var]) -> bool:
    """Whether part of an index is by the step of the loop alone."""
    free = {v for atom in term for v in free_vars(atom)}
    return bool(free) and free <= turns and not any(isinstance(e, Load) for atom in term for e in walk(atom))


def _turns(body: Sequence[Stmt]) -> Iterator[Var]:
    for s in body:
        if isinstance(s, For) and repeats(s):
            yield s.var
            yield from _turns(s.body)


def _short(nest: For, limits: Limits) -> bool:
    """Whether no loop of a nest fills a vector of f32, though it is of more than one element."""
    longest = max(s.static or 0 for s in stmts((nest,)) if isinstance(s, For))
    return longest != 1 and 4 * longest < limits.vector_bytes


def _shared(nest: For, which: Var, kernel: Kernel, limits: Limits) -> bool:
    """Whether reductions of all slices read one array that is too large for the first-level cache, or nests do lines of
    such a one that belong to many slices.
    """
    small = {a.name for a in kernel.args if isinstance(a.size, Const)
             and int(a.size.value) * DTYPES[a.dtype].itemsize <= limits.local_bytes // 2}  # fmt: skip
    inner = {s.var for s in stmts((nest,)) if isinstance(s, For)}
    again = [e for loop in reduction_loops((nest,)) for e in loads((loop,)) if which not in free_vars(e.index[0])]
    apart = [e for e in loads((nest,)) if 0 < abs(affine(e.index[0], which) or 0) * DTYPES[e.dtype].itemsize < LINE]
    apart = [e for e in apart if not inner.isdisjoint(free_vars(e.index[0]))]
    return any(e.buffer not in small for e in again + apart)


def _alone(body: Sequence[Stmt]) -> list[Stmt]:
    """Let one worker run all iterations of statements."""
    out: list[Stmt] = []
    for s in body:
        if not isinstance(s, For):
            out.append(s)
        elif s.static == 1 and s.kind in ("grid", "parallel") and all(isinstance(t, For | Store) for t in s.body):
            zero: dict[Expr, Expr] = {s.var: i64(0)}
            out += [map_exprs(t, lambda e: normalize(substitute(e, zero))) for t in _alone(s.body)]  # noqa: B023
        else:
            kind = "serial" if s.kind in ("grid", "parallel") else s.kind
            out.append(For(s.var, s.extent, kind, tuple(_alone(s.body))))
    return out
