"""Kernel to Python source for numba.cuda, one function for each top-level nest.

- The perfectly nested ``grid`` loops at the top of a nest are digits of ``blockIdx``; a ``grid`` loop further in runs
  serially, which is its meaning.
- A chain of ``group`` loops is one unit: digits of ``threadIdx`` under ``if thread < n``. Statements outside of such
  units are run by every thread; they write registers, and memory by the first thread alone.
- ``cuda.syncthreads`` stands before a unit that touches memory which an earlier one of the same block touched, if one
  of the two writes; the walk over a loop is repeated until it holds for the next iteration, too.
- A ``register`` buffer made outside of units and indexed first by their variables is held in parts by the threads;
  one that units write at other indices is kept in shared memory.
- ``vector`` loops over contiguous elements load and store 16 bytes at once, in the variant for aligned buffers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from kernelforge.backends.cuda.analysis import (
    WARP,
    Touched,
    halving,
    nested,
    owned,
    size,
    touched,
    units,
)
from kernelforge.backends.cuda.exprs import Buffer
from kernelforge.backends.cuda.mma import Small, small
from kernelforge.backends.cuda.thread import Thread
from kernelforge.ir.index import normalize, poly
from kernelforge.ir.kernel import (
    Alloc,
    Expr,
    For,
    If,
    Kernel,
    Load,
    Stmt,
    Store,
    Var,
    exprs,
    i64,
    stmts,
    walk,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """One launch.

    Attributes:
        name: the function's.
        source: its text.
        grid: extents of the grid loops, over the kernel's params.
        threads: threads of a block.
        aligned: the arguments that must lie at multiples of 16 bytes; empty in the scalar variant.
    """

    name: str
    source: str
    grid: tuple[Expr, ...]
    threads: int
    aligned: frozenset[str]


class _Printer(Thread):
    """Prints one phase: which threads run what, and the barriers between them."""

    def __init__(
        self,
        kernel: Kernel,
        scratch: Sequence[Alloc],
        body: Sequence[Stmt],
        name: str,
        wide: bool,
        simulated: bool,
        ampere: bool,
    ) -> None:
        super().__init__(kernel.name, name, wide, simulated)
        self.name = name
        self.arguments: list[str] = []
        for arg in kernel.args:
            text = self.spell(arg.name, "argument")
            self.arguments.append(text)
            self.buffers[arg.name] = Buffer(text, arg.dtype, (arg.size,), shared=True, argument=arg.name)
        for alloc in scratch:
            text = self.spell(alloc.buffer, "argument")
            self.arguments.append(text)
            self.buffers[alloc.buffer] = Buffer(text, alloc.dtype, alloc.shape, shared=True)
        for param in kernel.params:
            self.vars[param] = self.spell(param, "i64")
            self.arguments.append(self.vars[param])
        self.grid: list[For] = []
        if len(body) == 1 and isinstance(body[0], For) and body[0].kind == "grid":
            self.grid, lets, inner = nested(body[0])
            body = (*lets, *inner)
        self.threads = max([size(chain) for chain in units(body)], default=1) or 1
        self.body = tuple(body)
        self.copies = ampere and self.threads > 1
        self.tensor_cores = ampere and not simulated

    def phase(self) -> Phase:
        """Print the function."""
        if self.grid:
            self.emit("block = i64(u32(cuda.blockIdx.x))")
            step: Expr = i64(1)
            for k, loop in reversed(list(enumerate(self.grid))):
                self.vars[loop.var.name] = name = self.spell(loop.var.name, "i64")
                digit = "block" if step is i64(1) else f"small_div(block, {self.expr(step)})"
                self.emit(f"{name} = {digit if k == 0 else f'small_mod({digit}, {self.expr(loop.extent)})'}")
                step = step * loop.extent
        if self.threads > 1:
            self.emit("thread = i64(u32(cuda.threadIdx.x))")
        self.uniform(self.body, {})
        text = [f"def {self.name}({', '.join(self.arguments)}):", *self.header, *self.lines]
        if len(text) == 1:
            text.append("    pass")
        grid = tuple(loop.extent for loop in self.grid)
        return Phase(self.name, "\n".join(text) + "\n", grid, self.threads, frozenset(self.aligned))

    def uniform(self, body: Sequence[Stmt], pending: Touched) -> Touched:
        """Print statements outside of units; update ``pending``, what the block touched since the last barrier."""
        k = 0
        while k < len(body):
            stmt, k = body[k], k + 1
            if isinstance(stmt, Alloc):
                self.declare(stmt, owned(stmt, body[k:]) if stmt.space == "register" else None)
            elif isinstance(stmt, For) and stmt.kind == "group":
                tree = halving(body[k - 1 :], self.threads)
                if tree is None:
                    self.fence(pending, touched((stmt,)))
                    self.unit(stmt)
                else:
                    self.fence(pending, {tree[0]: True})
                    self.warp(*tree)
                    k += len(tree[2]) - 1
            elif isinstance(stmt, For):
                self.fence(pending, touched((dataclasses.replace(stmt, body=()),)))
                self.block(self.loop(stmt), lambda s=stmt: self.settle(s.body, pending))  # type: ignore[misc]
            elif isinstance(stmt, If):
                self.fence(pending, touched((dataclasses.replace(stmt, body=()),)))
                if self.conflicts(pending, touched(stmt.body)):
                    # here, where every path comes by: what follows the If then finds nothing pending
                    self.barrier(pending)
                self.block(f"if {self.expr(stmt.cond)}:", lambda s=stmt: self.once(s.body, pending))  # type: ignore[misc]
            else:
                self.fence(pending, touched((stmt,)))
                if isinstance(stmt, Store) and self.buffers[stmt.buffer].shared and self.threads > 1:
                    self.block("if thread == 0:", lambda s=stmt: self.simple(s))  # type: ignore[misc]
                else:
                    self.simple(stmt)
        return pending

    def once(self, body: Sequence[Stmt], pending: Touched) -> None:
        """Print a body that may run or not: what is pending either way is pending from there on."""
        for b, w in self.uniform(body, dict(pending)).items():
            pending[b] = w or pending.get(b, False)

    def settle(self, body: Sequence[Stmt], pending: Touched) -> None:
        """Print a body that runs any number of times, until what it leaves pending is what it starts with."""
        while True:
            mark = len(self.lines)
            end = self.uniform(body, dict(pending))
            grown = {**end, **{b: w or end.get(b, False) for b, w in pending.items()}}
            if grown == pending:
                return
            pending.update(grown)
            del self.lines[mark:]

    def fence(self, pending: Touched, now: Touched) -> None:
        """Print a barrier where ``now`` conflicts with ``pending``; add ``now`` to it."""
        if self.conflicts(pending, now):
            self.barrier(pending)
        for b, w in now.items():
            if b in self.buffers and self.buffers[b].shared:
                pending[b] = w or pending.get(b, False)

    def conflicts(self, pending: Touched, now: Touched) -> bool:
        shared = [b for b in now if b in self.buffers and self.buffers[b].shared]
        return self.threads > 1 and any(b in pending and (now[b] or pending[b]) for b in shared)

    def barrier(self, pending: Touched) -> None:
        if self.copying:
            self.emit("copies_done()")
        self.emit("cuda.syncthreads()")
        pending.clear()

    def unit(self, loop: For) -> None:
        chain, lets, inner = nested(loop)
        body = (*lets, *inner)
        count = size(chain)
        if not count:
            return
        if count < self.threads:
            self.block(f"if thread < {count}:", lambda: self.item(chain, body))
        else:
            self.item(chain, body)

    def item(self, chain: Sequence[For], body: Sequence[Stmt]) -> None:
        step = 1
        for k, loop in reversed(list(enumerate(chain))):
            extent = loop.static or 0
            name = self.vars[loop.var.name] = self.spell(loop.var.name, "i64")
            digit = "thread" if step == 1 else f"small_div(thread, {step})"
            if extent == 1:
                digit = "0"
            elif k:
                digit = f"small_mod({digit}, {extent})"
            self.emit(f"{name} = {digit}")
            step *= extent
        self.read = {e.buffer for s in stmts(body) for x in exprs(s) for e in walk(x) if isinstance(e, Load)}
        products = small(chain, body) if self.tensor_cores and not size(chain) % WARP else None
        if products is not None:
            self.multiply(products)
        else:
            self.thread(body)
        self.read = None

    def multiply(self, of: Small) -> None:
        """Add products to a unit's accumulators by tensor cores: each lane loads its part of both factors."""
        step = Var(f"{of.depth.var.name}{of.deep}", "i64", (of.depth.static or 0) // of.deep)

        def word(load: Load, index: Sequence[tuple[Expr, ...]]) -> str:
            held = self.buffers[load.buffer]
            first, *others = (held.flat(at) for at in index)
            if not others:
                return f"{held.text}[{self.expr(first)}]"
            (second,) = others
            if poly(normalize(second - first)) == {(): 1} and all(c % 2 == 0 for c in poly(first).values()):
                return f"pair({held.text}, {self.expr(first)})"
            return f"packed({held.text}[{self.expr(first)}], {held.text}[{self.expr(second)}])"

        def product() -> None:
            each = range(of.pack)
            words = [word(of.a, [of.a_index(r * of.pack + i, step) for i in each]) for r in range(4)]
            words += [word(of.b, [of.b_index(r * of.pack + i, step) for i in each]) for r in range(2)]
            held = self.buffers[of.store.buffer]
            self.emit(f"mma_{of.form}({held.text}, {self.expr(held.flat(of.c_index()))}, {', '.join(words)})")

        loops = [For(step, i64(step.bound or 0), "serial", ()), *of.outer]

        def inside(k: int) -> None:
            if k == len(loops):
                product()
            else:
                self.block(self.loop(loops[k]), lambda: inside(k + 1))

        inside(0)

    def warp(self, buffer: str, combine: str, halves: list[int]) -> None:
        """Fold within a warp by shuffles: element for element what the halving loops store."""
        held = self.buffers[buffer]

        def lanes() -> None:
            first = halves[0]
            own = f"{held.text}[thread]" if first * 2 == WARP else f"{held.text}[min(thread, {first * 2 - 1})]"
            self.emit(f"lane = {own}")
            for half in halves:
                self.emit(f"other = cuda.shfl_down_sync(0xFFFFFFFF, lane, {half})")
                folded = self.binary(combine, "lane", "other", held.dtype)
                self.block(f"if thread < {half}:", lambda t=folded: self.emit(f"lane = {t}"))  # type: ignore[misc]
            self.block(f"if thread < {first}:", lambda: self.emit(f"{held.text}[thread] = lane"))

        if self.threads > WARP:
            self.block(f"if thread < {WARP}:", lanes)
        else:
            lanes()


def scratch(kernel: Kernel) -> tuple[Alloc, ...]:
    """The global buffers that a launch needs, passed after the kernel's own arguments."""
    return tuple(s for s in kernel.body if isinstance(s, Alloc) and s.space == "global")


def print_kernel(kernel: Kernel, wide: bool = True, simulated: bool = False, ampere: bool = False) -> tuple[Phase, ...]:
    """Print a kernel as its launches, in order.

    Args:
        kernel: without f16 and bf16.
        wide: load and store 16 bytes at once where arguments at multiples of 16 bytes allow it.
        simulated: leave out what numba's simulator does not take.
        ampere: use asynchronous copies and tensor cores, which devices of compute capability 8.0 have.

    Raises:
        MalformedKernel: for what has no meaning on a GPU.
    """
    made = scratch(kernel)
    body = [s for s in kernel.body if s not in made]
    nests: list[Sequence[Stmt]] = [body]
    if all(isinstance(s, For) for s in body):
        nests = [(s,) for s in body]
    name = re.sub(r"\W", "_", kernel.name)
    return tuple(
        _Printer(
            kernel, made, nest, f"k_{name}_{k}" if len(nests) > 1 else f"k_{name}", wide, simulated, ampere
        ).phase()
        for k, nest in enumerate(nests)
    )
