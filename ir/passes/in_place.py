"""Keep a row where it goes: what a pass over it leaves for the one that makes an output stands in that output."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from kernelforge.ir.accesses import redirected
from kernelforge.ir.index import flatten, free_vars, normalize, reads
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    exprs,
    stmts,
    walk,
)
from kernelforge.ir.types import row_major

Leaf = tuple[tuple[For, ...], int, Stmt]
"""A statement without a body, the loops around it, and its place in the innermost one's body."""


def in_place(kernel: Kernel, outputs: Collection[str]) -> Kernel:
    """Let local buffers be parts of ``outputs`` where each of their elements is last read by what stores the output's
    element at the same place: the caches then hold one of the two.

    Legal because nothing else touches the output, and it is stored wherever the buffer is.
    """
    body = list(stmts(kernel.body))
    wanted = {s.dtype for s in body if isinstance(s, Alloc) and s.space == "local"}
    dtypes = {a.name: a.dtype for a in kernel.args if a.name in outputs and a.dtype in wanted}
    for s in body if dtypes else ():
        for e in (e for r in exprs(s) for e in walk(r)):
            if isinstance(e, Load):
                dtypes.pop(e.buffer, None)
    stored = collections.Counter(s.buffer for s in body if isinstance(s, Store))
    return dataclasses.replace(kernel, body=_changed(kernel.body, stored, dtypes)) if dtypes else kernel


def _changed(body: Sequence[Stmt], stored: Mapping[str, int], dtypes: dict[str, str]) -> tuple[Stmt, ...]:
    """Change a statement list; ``stored`` counts the Stores of the kernel to each buffer."""
    for k, s in enumerate(body):
        if isinstance(s, Alloc) and s.space == "local" and all(isinstance(n, Const) for n in s.shape):
            rest = body[k + 1 :]
            leaves = [leaf for place, t in enumerate(rest) for leaf in _leaves(t, (), place)]
            stores: dict[str, list[Leaf]] = {}
            for leaf in leaves:
                if isinstance(leaf[2], Store):
                    stores.setdefault(leaf[2].buffer, []).append(leaf)
            wanted = [n for n in dtypes if n in stores and dtypes[n] == s.dtype and len(stores[n]) == stored[n]]
            for name in wanted:
                start = _start(s, stores[name], rest, leaves)
                if start is not None:
                    del dtypes[name]
                    return _changed((*body[:k], *_moved(rest, s, name, start)), stored, dtypes)
    return tuple(
        dataclasses.replace(s, body=_changed(s.body, stored, dtypes)) if isinstance(s, For | If) else s for s in body
    )


def _start(local: Alloc, made: Sequence[Leaf], rest: Sequence[Stmt], leaves: Sequence[Leaf]) -> Expr | None:
    """Return which element of the output the first of the buffer can be, None where the one cannot hold the other.

    ``made`` are the Stores to the output, among the ``leaves`` of ``rest``.
    """
    shape = _shape(local)
    bodies = {id(path[-1]): k for path, k, _ in made if path}
    last = {id(path[0]) for path, _, _ in made if path}
    before = {id(s) for s in itertools.takewhile(lambda s: id(s) not in last, rest)}
    lets = {s.name for _, _, s in leaves if isinstance(s, Let)}
    start: Expr | None = None
    elements = 0
    for path, _, s in made:
        assert isinstance(s, Store)
        read = {
            flatten(e.index, row_major(shape))
            for t in (path[-1].body if path else ())
            for r in exprs(t)
            if local.buffer in reads(r)
            for e in walk(r)
            if isinstance(e, Load) and e.buffer == local.buffer
        }
        # iterations of loops that are not serial store elements of their own
        if s.op or len(read) != 1 or any(loop.static is None or loop.kind == "serial" for loop in path):
            return None
        at = normalize(s.index[0] - read.pop())
        inside = {loop.var for loop in path}
        if start not in (None, at) or any(v in inside or v.name in lets for v in free_vars(at)):
            return None
        start = at
        elements += math.prod(loop.static or 0 for loop in path)
    if elements != math.prod(shape):
        return None
    for path, k, leaf in leaves:
        if isinstance(leaf, Store) and leaf.buffer == local.buffer and not (path and id(path[0]) in before):
            return None
        found = any(local.buffer in reads(r) for r in exprs(leaf))
        if found and not (path and (id(path[0]) in before or k <= bodies.get(id(path[-1]), -1))):
            return None
    return start


def _leaves(stmt: Stmt, path: tuple[For, ...], place: int) -> Iterator[Leaf]:
    if isinstance(stmt, For):
        for k, s in enumerate(stmt.body):
            yield from _leaves(s, (*path, stmt), k)
    elif isinstance(stmt, If):
        # what is inside may not happen: no path leads there
        for s in stmt.body:
            yield from (((), k, t) for _, k, t in _leaves(s, (), place))
    else:
        yield path, place, stmt


def _moved(rest: Sequence[Stmt], local: Alloc, name: str, start: Expr) -> tuple[Stmt, ...]:
    strides = row_major(_shape(local))
    return redirected(rest, {local.buffer}, lambda _, at: (name, (normalize(start + flatten(at, strides)),)))


def _shape(local: Alloc) -> tuple[int, ...]:
    return tuple(int(n.value) for n in local.shape if isinstance(n, Const))
