"""Lanes whose elements lie a few apart in memory, or across it: which vectors hold them, and how they are picked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from kernelforge.ir.index import affine, free_vars, poly, reads
from kernelforge.ir.kernel import Expr, For, If, Let, Stmt, Store, Var, exprs, substitute
from kernelforge.ir.schedule.limits import NEAR

T = TypeVar("T")
Places = Sequence[tuple[int, int]]
"""Elements, each by the number of a vector and of a lane."""


def windows(step: int, lanes: int) -> list[tuple[int, dict[int, int]]]:
    """Return the vectors that hold what lanes ``step`` elements apart touch, and no element beyond: where each begins,
    and which lane is at which place of it.
    """
    firsts = [min(r * lanes, (lanes - 1) * step + 1 - lanes) for r in range(step)]
    found: list[tuple[int, dict[int, int]]] = [(first, {}) for first in firsts]
    for k in range(lanes):
        first, places = found[k * step // lanes]
        places[k * step - first] = k
    return found


def orders(count: int, lanes: int, places: Places) -> list[list[int | None]]:
    """Return how shuffles of two vectors pick ``places`` from ``count`` vectors: each of what is picked already (at
    first of vector 0) and the next one, whose elements count from ``lanes`` on; None where any will do.
    """
    found = []
    for r in range(min(1, count - 1), count):
        order: list[int | None] = []
        for k, (row, lane) in enumerate(places):
            kept = lane if r == 1 else k
            order.append(None if row > r else lanes + lane if row == r else kept)
        found.append(order)
    return found


def transposed(rows: Sequence[T], lanes: int, picked: Callable[[Sequence[T], Places], T]) -> list[T]:
    """Return the elements of vectors in the order of their lanes, as many vectors of as many lanes."""
    count = len(rows)
    if count & (count - 1):
        places = [(e % count, e // count) for e in range(count * lanes)]
        return [picked(rows, places[k * lanes : (k + 1) * lanes]) for k in range(count)]
    made = [*rows]
    for _ in range(count.bit_length() - 1):  # interleaving the halves moves the first bit of a position to its end
        made = [
            picked((made[k // 2], made[(k + count) // 2]), [(e % 2, (k % 2 * lanes + e) // 2) for e in range(lanes)])
            for k in range(count)
        ]
    return made


def turns(body: Sequence[Stmt], lane: Var, flat: Callable[[Store], Expr | None]) -> dict[Store, list[Store]]:
    """Find the stores of lanes that fill memory together, as each stores one element of so many in turn.

    Args:
        flat: where a store goes, in elements; None for those that stay as they are.
    """
    found: dict[Store, list[Store]] = {}
    stores = [s for s in body if isinstance(s, Store)]
    if len(set(stores)) < len(stores):
        return found
    groups: dict[tuple[str, int, frozenset[object]], dict[int, Store]] = {}
    for stmt in body:
        simple = isinstance(stmt, Let) or (isinstance(stmt, Store) and not stmt.op)
        for key in list(groups):
            if not simple or any(key[0] in reads(e) for e in exprs(stmt)):
                del groups[key]
        place = flat(stmt) if isinstance(stmt, Store) and not stmt.op else None
        if place is None:
            continue
        assert isinstance(stmt, Store)
        terms = poly(place)
        step = terms.get((lane,), 0)
        at = terms.pop((), 0)
        mine = stmt.buffer, step, frozenset(terms.items())
        for key in [k for k in groups if k[0] == stmt.buffer and (k != mine or at in groups[k])]:
            del groups[key]
        group = groups.setdefault(mine, {})
        group[at] = stmt
        if 1 < step <= NEAR and len(group) == step == max(group) - min(group) + 1:
            ordered = [group[k] for k in sorted(group)]
            found |= dict.fromkeys(ordered, ordered)
            del groups[mine]
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """A vector loop in an unrolled loop, whose stores run along the unrolled one.

    Attributes:
        lets: what the unrolled loop names before the vector loop, and that before its store.
        index: where the store goes, in terms of the loops alone.
        step: elements from one lane to the next.
        where: which lanes are stored; None for all.
    """

    outer: For
    inner: For
    lets: tuple[Let, ...]
    store: Store
    index: tuple[Expr, ...]
    step: int
    where: Expr | None


def apart(outer: For) -> list[For]:
    """Return a loop for each store of the vector loop at the end of an unrolled one, where they are independent."""
    inner = outer.body[-1] if outer.body else None
    if not isinstance(inner, For):
        return [outer]
    stores = [s for s in inner.body if isinstance(s, Store)]
    lets = tuple(s for s in inner.body if isinstance(s, Let))
    written = {s.buffer for s in stores}
    others = len(stores) + len(lets) < len(inner.body) or len(written) < len(stores)
    if others or any(reads(e) & written for s in inner.body for e in exprs(s)):
        return [outer]
    parts = [dataclasses.replace(inner, body=(*lets, s)) for s in stores]
    return [dataclasses.replace(outer, body=(*outer.body[:-1], p)) for p in parts]


def tile(outer: For, strides: dict[str, tuple[int, ...]]) -> Tile | None:
    """Find a vector loop in an unrolled loop along which the elements that they store lie side by side.

    The rows of the tile have to be whole vectors or to lie densely.

    Args:
        strides: of the buffers that a tile may be stored to.
    """
    lets: list[Let] = []
    named: dict[Expr, Expr] = {}

    def last(body: Sequence[Stmt]) -> Stmt | None:
        for stmt in body[:-1]:
            if not isinstance(stmt, Let):
                return None
            lets.append(stmt)
            value = substitute(stmt.value, named)
            named[Var(stmt.name, value.dtype)] = value
        return body[-1] if body else None

    inner = last(outer.body)
    if not isinstance(inner, For) or inner.kind != "vector":
        return None
    store, where = last(inner.body), None
    if isinstance(store, If) and len(store.body) == 1:
        where, store = substitute(store.cond, named), store.body[0]
        if outer.var in free_vars(where) or (isinstance(store, Store) and store.value.dtype == "bool"):
            return None
    count, lanes = outer.static or 0, inner.static or 0
    if (
        not isinstance(store, Store)
        or store.op
        or store.buffer not in strides
        or not 1 < count <= lanes <= 16
        or lanes & (lanes - 1)
    ):
        return None
    index = tuple(substitute(i, named) for i in store.index)
    steps = []
    for var in (outer.var, inner.var):
        step = 0
        for i, stride in zip(index, strides[store.buffer], strict=True):
            c = affine(i, var)
            if c is None:
                return None
            step += c * stride
        steps.append(step)
    if steps[0] != 1 or not (steps[1] == count or (count == lanes and steps[1] > count)):
        return None
    return Tile(outer, inner, tuple(lets), store, index, steps[1], where)
