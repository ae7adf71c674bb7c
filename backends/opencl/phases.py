"""A printed kernel and its phases: their group loops, whose registers are whose, and what memory they touch; programs
of several kernels.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Sequence

from kernelforge.backends.opencl.lib import PREAMBLE
from kernelforge.ir.kernel import Alloc, Const, Expr, For, Load, Stmt, Store, exprs, i64, stmts, walk
from kernelforge.ir.types import row_major


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """One ``__kernel`` and how to launch it.

    Attributes:
        buffers: the arguments and global scratch it takes, in order, each followed by its offset; then come the
        parameters.
        count: work-groups where the phase is ``grouped``, else work-items; where it is ``shared``, iterations that any
        number of work-items share.
        items: work-items of a group.
        stream: name of the same function that stores ``Source.streamed`` past the cache; empty where none does.
    """

    name: str
    buffers: tuple[str, ...]
    count: Expr
    items: int
    grouped: bool
    shared: bool
    stream: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A printed kernel.

    Attributes:
        functions: definitions that its phases use, each after those that it uses itself.
        body: the phases.
        scratch: the global buffers that a launch needs besides its arguments.
        streamed: the arguments that must begin at a multiple of ``LINE`` bytes where a phase's ``stream`` is run.
    """

    functions: tuple[str, ...]
    body: str
    phases: tuple[Phase, ...]
    scratch: tuple[Alloc, ...]
    streamed: frozenset[str]

    @property
    def text(self) -> str:
        """All of it, for people and for compilers that take one kernel at a time."""
        return "".join((PREAMBLE, *self.functions, "\n", self.body))

    def named(self, name: str) -> str:
        """Return what a function is called in a ``program``, which may have others of its name."""
        return f"{name}_{hashlib.sha256(self.body.encode()).hexdigest()[:12]}"


def program(sources: Sequence[Source]) -> str:
    """Return the text of kernels to compile together; what several use, and equal ones, stand there once."""
    parts = [PREAMBLE, *dict.fromkeys(f for s in sources for f in s.functions)]
    for source in {s.body: s for s in sources}.values():
        names = [name for p in source.phases for name in (p.name, p.stream) if name]
        parts += ["\n", *(f"#define {name} {source.named(name)}\n" for name in names), source.body]
        parts += (f"#undef {name}\n" for name in names)
    return "".join(parts)


class Touched:
    """Local and global buffers read and written since the last barrier."""

    def __init__(self, reads: set[str] | None = None, writes: set[str] | None = None) -> None:
        self.reads = set(reads or ())
        self.writes = set(writes or ())

    def conflict(self, other: Touched) -> bool:
        return bool((self.writes & (other.reads | other.writes)) | (self.reads & other.writes))

    def add(self, other: Touched) -> None:
        self.reads |= other.reads
        self.writes |= other.writes

    def without(self, buffers: Collection[str]) -> Touched:
        return Touched(self.reads.difference(buffers), self.writes.difference(buffers))

    def copy(self) -> Touched:
        return Touched(self.reads, self.writes)


def chain_of(stmt: For) -> list[For]:
    """Return group loops that stand directly in each other."""
    found = [stmt]
    while len(found[-1].body) == 1 and isinstance(found[-1].body[0], For) and found[-1].body[0].kind == "group":
        found.append(found[-1].body[0])
    return found


def owned(inside: Sequence[Stmt]) -> dict[str, int]:
    """Return the registers of which each work-item holds its own part, and how many of their indices say whose."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for s in inside:
        if isinstance(s, For) and s.kind == "group" and id(s) not in seen:
            chain = chain_of(s)
            inner = list(stmts(chain[-1].body))
            seen |= {id(t) for t in (*chain, *inner)}
            private = {t.buffer for t in inner if isinstance(t, Alloc)}
            found |= {t.buffer: len(chain) for t in inner if isinstance(t, Store) and t.buffer not in private}
    registers = {s.buffer for s in inside if isinstance(s, Alloc) and s.space == "register"}
    return {b: n for b, n in found.items() if b in registers}


def touched_buffers(inside: Sequence[Stmt], outer: dict[str, tuple[str, bool]]) -> tuple[str, ...]:
    """Return the buffers from outside that statements touch, in the order of the arguments."""
    found = {s.buffer for s in inside if isinstance(s, Store)}
    found |= {e.buffer for s in inside for r in exprs(s) for e in walk(r) if isinstance(e, Load)}
    return tuple(b for b in outer if b in found)


def strides_of(shape: Sequence[Expr]) -> tuple[int | Expr, ...]:
    """Return row-major strides, in elements; expressions where an extent is one."""
    if all(isinstance(n, Const) for n in shape):
        return row_major(tuple(int(n.value) for n in shape if isinstance(n, Const)))
    strides: list[Expr] = [i64(1)]
    for n in reversed(shape[1:]):
        strides.insert(0, strides[0] * n)
    return tuple(strides)
