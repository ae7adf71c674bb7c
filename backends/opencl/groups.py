"""What a work-group runs together as OpenCL C: group loops, and the barriers between what they touch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from kernelforge.backends.opencl.lib import Functions
from kernelforge.backends.opencl.phases import Touched, chain_of
from kernelforge.backends.opencl.tiles import Tiles
from kernelforge.ir.cost import Streamed
from kernelforge.ir.kernel import Alloc, Expr, For, If, Load, Stmt, Store, Var, exprs, stmts, walk


class Groups(Tiles):
    """Prints statements that every work-item of a group runs alike, and those that the items share.

    Attributes:
        outer: arguments and global scratch: the dtype of each, and whether it is only read.
        groups: the group loops around what is printed.
        items: work-items of a group.
        grouped: whether there are group loops at all.
        owned: of registers that outlive group loops, how many of their indices say whose they are.
        pending: what was touched since the last barrier.
    """

    def __init__(self, functions: Functions, streamed: Streamed) -> None:
        super().__init__(functions, streamed)
        self.outer: dict[str, tuple[str, bool]] = {}
        self.groups: tuple[For, ...] = ()
        self.items = 1
        self.grouped = False
        self.owned: dict[str, int] = {}
        self.pending = Touched()

    def body(self, body: Sequence[Stmt]) -> None:
        """Print what one work-item does."""
        raise NotImplementedError

    def head(self, stmt: For | If) -> str:
        """Print what stands before a loop's or a condition's braces."""
        raise NotImplementedError

    def counter(self, var: Var) -> str:
        """Name a loop's variable."""
        raise NotImplementedError

    def uniform(self, body: Sequence[Stmt]) -> None:
        """Print statements that every work-item of a group runs alike."""
        if not self.grouped:
            self.body(body)
            return
        for stmt in body:
            held = [s for s in stmts((stmt,)) if isinstance(s, For) and s.kind == "group"]
            if isinstance(stmt, For) and stmt.kind == "group":
                self.sync(self.touched((stmt,)))
                self.nest(stmt)
            elif isinstance(stmt, For | If) and held:
                self.around(stmt, self.uniform)
            else:
                self.sync(self.touched((stmt,)))
                self.statement(stmt)

    def around(self, stmt: For | If, run: Callable[[Sequence[Stmt]], None]) -> None:
        """Print a loop or a condition around statements that every work-item runs alike."""
        tested = self.touched_by(exprs(stmt))
        self.sync(tested)
        inside = self.touched(stmt.body)
        apart = isinstance(stmt, For) and stmt.kind == "grid"
        if (apart or isinstance(stmt, If)) and self.pending.conflict(inside):
            # here, where every path comes by: what follows the If then finds nothing pending
            self.barrier()
        before = self.pending.copy()
        if isinstance(stmt, For):
            # what an iteration leaves meets the next one; those of the grid share local memory alone
            self.pending.add(inside.without(self.outer) if apart else inside)
        with self.block(self.head(stmt)):
            run(stmt.body)
            if isinstance(stmt, For) and self.pending.conflict(tested):
                self.barrier()
        self.pending.add(before)

    def sync(self, now: Touched) -> None:
        if self.pending.conflict(now):
            self.barrier()
        self.pending.add(now)

    def barrier(self) -> None:
        if not self.grouped:
            return
        touched = self.pending.reads | self.pending.writes
        fences = ["CLK_LOCAL_MEM_FENCE"] * bool(touched - set(self.outer))
        fences += ["CLK_GLOBAL_MEM_FENCE"] * bool(touched & set(self.outer))
        self.emit(f"barrier({' | '.join(fences)});")
        self.pending = Touched()

    def touched(self, body: Sequence[Stmt]) -> Touched:
        """Return what local and global memory statements touch."""
        out = Touched()
        private = {s.buffer for s in stmts(body) if isinstance(s, Alloc) and s.space == "register"}
        for s in stmts(body):
            out.add(self.touched_by(exprs(s), private))
            if isinstance(s, Store) and s.buffer not in private and self.visible(s.buffer):
                out.writes.add(s.buffer)
                if s.op:
                    out.reads.add(s.buffer)
        return out

    def touched_by(self, roots: Iterator[Expr], private: set[str] | None = None) -> Touched:
        found = {e.buffer for r in roots for e in walk(r) if isinstance(e, Load)}
        return Touched({b for b in found - (private or set()) if self.visible(b)})

    def visible(self, buffer: str) -> bool:
        """Whether other work-items see a buffer; one that is not known yet is local, and declared further down."""
        known = self.scope.buffers.get(buffer)
        return known is None or known.space != ""

    def nest(self, stmt: For) -> None:
        """Print group loops that stand directly in each other: one work-item an iteration."""
        chain = chain_of(stmt)
        count = math.prod(g.static or 0 for g in chain)
        with self.block(f"if (kf_item < {count}u)" if count < self.items else ""):
            inner = count
            for k, loop in enumerate(chain):
                n = loop.static or 0
                inner //= max(n, 1)
                text = "kf_item" if inner == 1 else f"kf_item / {inner}u"
                self.emit(f"const long {self.counter(loop.var)} = {f'{text} % {n}u' if k else text};")
            self.groups = tuple(chain)
            self.body(chain[-1].body)
            self.groups = ()
