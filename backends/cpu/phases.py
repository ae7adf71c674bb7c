"""The phases of a kernel: what its threads run between two barriers, and the loops that repeat them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kernelforge.ir.index import free_vars
from kernelforge.ir.kernel import Alloc, For, Let, Stmt
from kernelforge.ir.repeat import repeats


class Phase(NamedTuple):
    """A nest of independent iterations: the loops that are split among threads, and what they run.

    Attributes:
        name: of the function it is printed as.
        turns: the loops that repeat it, outermost first.
    """

    name: str
    turns: tuple[For, ...]
    loops: tuple[For, ...]
    body: tuple[Stmt, ...]


class Repetition(NamedTuple):
    """Phases that are run for each value of a loop's variable."""

    loop: For
    parts: list[Phase | Repetition]


def phases(body: Sequence[Stmt], name: str = "phase", turns: tuple[For, ...] = ()) -> list[Phase | Repetition]:
    """Cut a kernel's body into phases; a Let or an Alloc at the top makes one serial phase of all that follows it."""
    out: list[Phase | Repetition] = []
    for k, stmt in enumerate(body):
        own = f"{name}{k}"
        if isinstance(stmt, Let | Alloc):
            return [*out, Phase(own, turns, (), tuple(body[k:]))]
        if isinstance(stmt, For) and repeats(stmt):
            out.append(Repetition(stmt, phases(stmt.body, f"{own}.", (*turns, stmt))))
        else:
            out.append(Phase(own, turns, *_nest(stmt)))
    return out


def every(parts: Sequence[Phase | Repetition]) -> Iterator[Phase]:
    """Yield all phases, those inside of repetitions too."""
    for part in parts:
        if isinstance(part, Phase):
            yield part
        else:
            yield from every(part.parts)


def _nest(stmt: Stmt) -> tuple[tuple[For, ...], tuple[Stmt, ...]]:
    loops: list[For] = []
    body: tuple[Stmt, ...] = (stmt,)
    while len(body) == 1 and isinstance(body[0], For) and body[0].kind in ("parallel", "grid"):
        loop = body[0]
        if any(outer.var in free_vars(loop.extent) for outer in loops):
            break
        loops.append(loop)
        body = loop.body
    return tuple(loops), body
