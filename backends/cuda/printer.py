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

import collections
import dataclasses
import keyword
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from kernelforge.backends.cuda.lib import LANES, RESERVED
from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS
from kernelforge.errors import MalformedKernel
from kernelforge.ir.index import affine, bounds, free_vars, normalize, poly
from kernelforge.ir.kernel import (
    COMPARE,
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Op,
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

WARP = 32
INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
CALLS = {"min": "minimum", "max": "maximum", "abs": "absolute"}
SMALL = {"floordiv": "small_div", "mod": "small_mod"}
LOGIC = {"min": "&", "max": "|", "mul": "&", "add": "|"}
"""What arithmetic on bool comes to."""
CHEAP = 24
"""Operations in the arms of a select that are evaluated whatever it chooses: two branches cost a GPU as much."""
DEEPEST = 40
"""Python refuses to parse 200 nested parentheses: deeper expressions are cut by a temporary."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class Buffer:
    """How a buffer is spelled.

    Attributes:
        text: the variable that holds its pointer, or its one element where ``scalar``.
        skip: how many leading indices tell whose thread's part it is.
        shared: whether other threads of the block see it.
        argument: its name where alignment is known at the launch only.
    """

    text: str
    dtype: str
    shape: tuple[Expr, ...]
    skip: int = 0
    scalar: bool = False
    shared: bool = False
    argument: str = ""

    def flat(self, index: tuple[Expr, ...]) -> Expr:
        """The element's number in row-major order."""
        total: Expr = i64(0)
        step: Expr = i64(1)
        for i, extent in zip(reversed(index[self.skip :]), reversed(self.shape[self.skip :]), strict=True):
            total, step = total + i * step, step * extent
        return normalize(total)


Touched = dict[str, bool]
"""Buffers that the threads of a block share, with whether they are written."""


def touched(body: Iterable[Stmt]) -> Touched:
    """Every buffer that ``body`` reads (False) or writes (True)."""
    out: Touched = {}
    for stmt in stmts(tuple(body)):
        for expr in exprs(stmt):
            for e in walk(expr):
                if isinstance(e, Load):
                    out.setdefault(e.buffer, False)
        if isinstance(stmt, Store):
            out[stmt.buffer] = True
    return out


def nested(loop: For) -> tuple[list[For], list[Stmt], tuple[Stmt, ...]]:
    """The chain of loops of one kind that starts at ``loop``, the Lets between them, and the body of the last one.

    The extents do not depend on what stands inside of the chain.
    """
    chain: list[For] = [loop]
    lets: list[Stmt] = []
    body = loop.body
    while body and all(isinstance(s, Let) for s in body[:-1]):
        *between, inner = body
        if not isinstance(inner, For) or inner.kind != loop.kind:
            break
        made = {s.name for s in [*lets, *between] if isinstance(s, Let)} | {outer.var.name for outer in chain}
        if any(v.name in made for v in free_vars(inner.extent)):
            break
        lets += between
        chain.append(inner)
        body = inner.body
    return chain, lets, body


def units(body: Iterable[Stmt]) -> Iterator[list[For]]:
    """The outermost chains of group loops."""
    for stmt in body:
        if isinstance(stmt, For) and stmt.kind == "group":
            yield nested(stmt)[0]
        elif isinstance(stmt, For | If):
            yield from units(stmt.body)


def size(chain: Sequence[For]) -> int:
    return math.prod(loop.static or 0 for loop in chain)


Access = tuple[tuple[For, ...], tuple[Expr, ...], bool]
"""The unit around an access (empty outside of units), its index, and whether it writes."""


def accesses(body: Iterable[Stmt], buffer: str, chain: tuple[For, ...] = ()) -> Iterator[Access]:
    for stmt in body:
        for expr in exprs(stmt):
            for e in walk(expr):
                if isinstance(e, Load) and e.buffer == buffer:
                    yield chain, e.index, False
        if isinstance(stmt, Store) and stmt.buffer == buffer:
            yield chain, stmt.index, True
        if isinstance(stmt, For) and stmt.kind == "group" and not chain:
            loops, lets, inner = nested(stmt)
            yield from accesses((*lets, *inner), buffer, tuple(loops))
        elif isinstance(stmt, For | If):
            yield from accesses(stmt.body, buffer, chain)


def owned(alloc: Alloc, rest: Sequence[Stmt]) -> int | None:
    """How many leading indices of a register buffer name the thread that owns an element; None if none does."""
    uses = list(accesses(rest, alloc.buffer))
    inside = [use for use in uses if use[0]]
    if not any(write for _, _, write in inside):
        return 0
    chains = {chain for chain, _, _ in inside}
    if len(inside) == len(uses):
        depth = {len(chain) for chain in chains}
        inner = {tuple(loop.static for loop in chain[1:]) for chain in chains}
        led = all(index[: len(chain)] == tuple(loop.var for loop in chain) for chain, index, _ in inside)
        if len(depth) == 1 and len(inner) == 1 and led:
            return depth.pop()
        own = {loop.var for chain in chains for loop in chain}
        if len(chains) == 1 and not any(own & free_vars(i) for _, index, _ in inside for i in index):
            return 0
    return None


def halving(body: Sequence[Stmt], threads: int) -> tuple[str, str, list[int]] | None:
    """The buffer, the operator and the halves of a run of ``group t < h: a[t] op= a[t + h]`` that fits a warp."""
    found: tuple[str, str, list[int]] | None = None
    for stmt in body:
        if not isinstance(stmt, For) or stmt.kind != "group" or len(stmt.body) != 1:
            break
        store, half = stmt.body[0], stmt.static or 0
        if not isinstance(store, Store) or not store.op or store.index != (stmt.var,):
            break
        other = store.value
        if not isinstance(other, Load) or other.buffer != store.buffer:
            break
        if normalize(other.index[0] - stmt.var) != i64(half) or DTYPES[other.dtype].itemsize < 4:
            break
        if found is None:
            if half not in (16, 8, 4) or threads < WARP:
                return None
            found = (store.buffer, store.op, [half])
        elif (store.buffer, store.op) == found[:2] and half * 2 == found[2][-1]:
            found[2].append(half)
        else:
            break
    return found


class _Printer:
    """Prints one phase; ``wide`` allows loads and stores of 16 bytes."""

    def __init__(
        self, kernel: Kernel, scratch: Sequence[Alloc], body: Sequence[Stmt], name: str, wide: bool, simulated: bool
    ) -> None:
        self.kernel, self.name, self.wide, self.simulated = kernel, name, wide, simulated
        self.header: list[str] = []
        self.lines: list[str] = []
        self.depth = 1
        self.names: dict[tuple[str, str], str] = {}
        self.taken: set[str] = set(RESERVED) | {name}
        self.buffers: dict[str, Buffer] = {}
        self.vars: dict[str, str] = {}
        self.aligned: set[str] = set()
        self.uses: collections.Counter[Expr] = collections.Counter()
        self.known: list[dict[Expr, str]] = []
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

    def refuse(self, problem: str) -> MalformedKernel:
        return MalformedKernel(kernel=self.kernel.name, problem=f"for CUDA: {problem}")

    def phase(self) -> Phase:
        self.header = []
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

    # names and lines

    def spell(self, name: str, kind: str) -> str:
        """A Python variable for an IR name; one IR name used for two kinds of value gets two."""
        found = self.names.get((name, kind))
        if found is None:
            base = re.sub(r"\W", "_", name)
            base = f"_{base}" if base[0].isdigit() else base
            found, count = base, 0
            while found in self.taken or keyword.iskeyword(found):
                count += 1
                found = f"{base}_{count}"
            self.taken.add(found)
            self.names[name, kind] = found
        return found

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def block(self, head: str, body: Callable[[], None]) -> None:
        self.emit(head)
        self.depth += 1
        mark = len(self.lines)
        body()
        if len(self.lines) == mark:
            self.emit("pass")
        self.depth -= 1

    def loop(self, loop: For) -> str:
        extent = self.expr(loop.extent)
        name = self.vars[loop.var.name] = self.spell(loop.var.name, "i64")
        return f"for {name} in range({extent}):"

    def temporary(self, text: str) -> str:
        name = self.spell(f"t{len(self.taken)}", "temporary")
        self.emit(f"{name} = {text}")
        return name

    # statements of every thread

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
                self.block(f"if {self.expr(stmt.cond)}:", lambda s=stmt: self.settle(s.body, pending))  # type: ignore[misc]
            else:
                self.fence(pending, touched((stmt,)))
                if isinstance(stmt, Store) and self.buffers[stmt.buffer].shared and self.threads > 1:
                    self.block("if thread == 0:", lambda s=stmt: self.simple(s))  # type: ignore[misc]
                else:
                    self.simple(stmt)
        return pending

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
        now = {b: w for b, w in now.items() if b in self.buffers and self.buffers[b].shared}
        if self.threads > 1 and any(b in pending and (w or pending[b]) for b, w in now.items()):
            self.emit("cuda.syncthreads()")
            pending.clear()
        for b, w in now.items():
            pending[b] = w or pending.get(b, False)

    def declare(self, alloc: Alloc, skip: int | None) -> None:
        """Make a buffer: a variable, an array of the thread, or shared memory where ``skip`` is None."""
        if alloc.space == "global":
            raise self.refuse(f"global buffer {alloc.buffer} is allocated inside a nest; allocate it at the top level")
        extents = alloc.shape[skip or 0 :]
        if not all(isinstance(e, Const) for e in extents):
            raise self.refuse(f"{alloc.space} buffer {alloc.buffer} has an extent that is not a constant")
        count = max(math.prod(int(e.value) for e in extents if isinstance(e, Const)), 1)
        if skip is not None and count == 1:
            text = self.spell(alloc.buffer, alloc.dtype)
            self.buffers[alloc.buffer] = Buffer(text, alloc.dtype, alloc.shape, skip, scalar=True)
            self.emit(f"{text} = {self.const(Const(0, alloc.dtype))}")
            return
        space = "shared" if skip is None else "local"
        text = self.array(alloc.buffer, alloc.dtype, count, space)
        self.buffers[alloc.buffer] = Buffer(text, alloc.dtype, alloc.shape, skip or 0, shared=skip is None)

    def array(self, name: str, dtype: str, count: int, space: str) -> str:
        kind = f"{space} {dtype}[{count}]"
        known = (name, kind) in self.names
        text = self.spell(name, kind)
        if not known:
            alignment = ", alignment=16" if space == "shared" and not self.simulated else ""
            self.header.append(f"    {text} = pointer(cuda.{space}.array({count}, t_{dtype}{alignment}))")
        return text

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
        self.thread(body)

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

    # statements of one thread

    def thread(self, body: Sequence[Stmt]) -> None:
        for stmt in body:
            match stmt:
                case Alloc():
                    self.declare(stmt, 0)
                case For(_, _, kind, inner):
                    if kind != "vector" or not self.vector(stmt):
                        self.block(self.loop(stmt), lambda b=inner: self.thread(b))  # type: ignore[misc]
                case If(cond, inner):
                    self.block(f"if {self.expr(cond)}:", lambda b=inner: self.thread(b))  # type: ignore[misc]
                case _:
                    self.simple(stmt)

    def simple(self, stmt: Stmt) -> None:
        if isinstance(stmt, Let):
            value = self.expr(stmt.value)
            name = self.vars[stmt.name] = self.spell(stmt.name, stmt.value.dtype)
            self.emit(f"{name} = i64({value})" if stmt.value.dtype == "i64" else f"{name} = {value}")
            return
        assert isinstance(stmt, Store)
        buffer = self.buffers[stmt.buffer]
        target = buffer.text if buffer.scalar else f"{buffer.text}[{self.expr(buffer.flat(stmt.index))}]"
        value = self.combined(stmt, buffer)
        self.emit(f"{target} = {f'u8({value})' if buffer.dtype == 'bool' and not buffer.scalar else value}")

    def combined(self, store: Store, buffer: Buffer) -> str:
        value = store.value
        if not store.op:
            return self.expr(value)
        old = self.expr(Load(store.buffer, store.index, buffer.dtype))
        if store.op == "add" and isinstance(value, Op) and value.op == "mul" and value.dtype in FLOATS:
            return f"fma({self.expr(value.args[0])}, {self.expr(value.args[1])}, {old})"
        return self.binary(store.op, old, self.expr(value), buffer.dtype)

    def vector(self, loop: For) -> bool:
        """Print a vector loop with wide loads and stores around it; False where none is possible."""
        lanes, var = loop.static, loop.var
        if not self.wide or lanes not in LANES or not all(isinstance(s, Let | Store) for s in loop.body):
            return False
        stored: set[str] = set()
        loads: dict[Load, Expr] = {}
        stores: dict[int, Expr] = {}
        for k, stmt in enumerate(loop.body):
            for expr in exprs(stmt):
                if any(isinstance(e, Load) and e.buffer in stored for e in walk(expr)):
                    return False
                for load in certain_loads(expr):
                    start = self.start(load.buffer, load.index, var, lanes)
                    if start is not None:
                        loads[load] = start
            if isinstance(stmt, Store):
                stored.add(stmt.buffer)
                start = self.start(stmt.buffer, stmt.index, var, lanes)
                if start is not None and not stmt.op:
                    stores[k] = start
        if not loads and not stores:
            return False
        body = list(loop.body)
        held: dict[Expr, Expr] = {}
        for load, start in loads.items():
            name = f"{load.buffer}_{len(self.taken)}"
            text = self.array(name, load.dtype, lanes, "local")
            self.buffers[name] = Buffer(text, load.dtype, (i64(lanes),))
            held[load] = Load(name, (var,), load.dtype)
            self.emit(f"ld{lanes}({self.wide_base(load.buffer)}, {self.expr(start)}, {text})")
        body = [map_exprs(s, lambda e: substitute(e, held)) for s in body]
        after = []
        for k, start in stores.items():
            store = body[k]
            assert isinstance(store, Store)
            name = f"{store.buffer}_{len(self.taken)}"
            dtype = self.buffers[store.buffer].dtype
            text = self.array(name, dtype, lanes, "local")
            self.buffers[name] = Buffer(text, dtype, (i64(lanes),))
            body[k] = Store(name, (var,), store.value)
            after.append(f"st{lanes}({self.wide_base(store.buffer)}, {self.expr(start)}, {text})")
        spelled = self.vars[var.name] = self.spell(var.name, "i64")
        self.block(f"for {spelled} in range({lanes}):", lambda: self.thread(body))
        for line in after:
            self.emit(line)
        return True

    def wide_base(self, name: str) -> str:
        buffer = self.buffers[name]
        if buffer.argument:
            self.aligned.add(buffer.argument)
        return buffer.text

    def start(self, name: str, index: tuple[Expr, ...], var: Var, lanes: int) -> Expr | None:
        """The first element of a contiguous, aligned access; None where it is neither provably."""
        buffer = self.buffers[name]
        if buffer.scalar or not (buffer.shared or buffer.argument):
            return None
        flat = buffer.flat(index)
        step = min(lanes, 16 // DTYPES[buffer.dtype].itemsize)
        if affine(flat, var) != 1:
            return None
        rest = normalize(flat - var)
        return rest if all(c % step == 0 for c in poly(rest).values()) else None

    # expressions

    def expr(self, e: Expr) -> str:
        """The Python expression for ``e``; what it repeats is computed by lines before."""
        self.uses = collections.Counter(child for node in self.nodes(e) for child in self.children(node))
        self.known = [{}]
        return self.text(e)[0]

    def children(self, e: Expr) -> tuple[Expr, ...]:
        if isinstance(e, Op):
            return e.args
        if isinstance(e, Load) and not self.buffers[e.buffer].scalar:
            return (self.buffers[e.buffer].flat(e.index),)
        return ()

    def nodes(self, e: Expr, certain: bool = False) -> dict[Expr, None]:
        """Each sub-expression once; with ``certain`` those that are evaluated whatever the selects choose."""
        found: dict[Expr, None] = {}
        todo = [e]
        while todo:
            node = todo.pop()
            if node not in found:
                found[node] = None
                lazy = certain and isinstance(node, Op) and node.op == "select" and not cheap(node)
                todo += self.children(node)[: 1 if lazy else None]
        return found

    def const(self, e: Const) -> str:
        if e.dtype == "bool":
            return str(bool(e.value))
        if e.dtype == "i64":
            return str(e.value) if e.value >= 0 else f"({e.value})"
        if e.dtype in FLOATS and not math.isfinite(e.value):
            sign = "-" if e.value < 0 else ""
            return f"{e.dtype}({sign}{'nan' if math.isnan(e.value) else 'inf'})"
        return f"{e.dtype}({e.value!r})"

    def text(self, e: Expr) -> tuple[str, int]:
        """The Python expression, and how deep its parentheses go; temporaries cut what Python cannot nest."""
        if e.dtype in ("f16", "bf16"):
            raise self.refuse(f"{e.dtype} is not lowered to bits; run kernelforge.ir.passes.widen first")
        if isinstance(e, Const):
            return self.const(e), 1
        if isinstance(e, Var):
            return self.vars[e.name], 0
        for scope in self.known:
            if e in scope:
                return scope[e], 0
        text, depth = self.load(e) if isinstance(e, Load) else self.compute(e)
        if depth > DEEPEST or (depth > 1 and self.uses[e] > 1):
            text, depth = self.temporary(text), 0
        if depth == 0:
            self.known[-1][e] = text
        return text, depth

    def load(self, e: Load) -> tuple[str, int]:
        buffer = self.buffers[e.buffer]
        if buffer.scalar:
            return buffer.text, 0
        at, depth = self.text(buffer.flat(e.index))
        found = f"{buffer.text}[{at}]"
        return (f"({found} != 0)" if buffer.dtype == "bool" else found), depth + 2

    def compute(self, e: Expr) -> tuple[str, int]:
        assert isinstance(e, Op)
        if e.op == "select" and not cheap(e):
            return self.lazy(e)
        parts = [self.text(a) for a in e.args]
        return self.operation(e, [p[0] for p in parts]), max(p[1] for p in parts) + 2

    def lazy(self, e: Op) -> tuple[str, int]:
        """A select that evaluates one arm, after what both arms need."""
        cond, depth = self.text(e.args[0])
        always = [self.nodes(arm, certain=True) for arm in e.args[1:]]
        for node in reversed(always[0]):
            if node in always[1] and isinstance(node, Op | Load):
                self.text(node)
        before = self.lines
        arms: list[tuple[list[str], str, int]] = []
        self.depth += 1
        for arm in e.args[1:]:
            self.lines = []
            self.known.append({})
            text, deep = self.text(arm)
            self.known.pop()
            arms.append((self.lines, text, deep))
        self.depth -= 1
        self.lines = before
        deepest = max(depth, arms[0][2], arms[1][2]) + 1
        if deepest <= DEEPEST and not arms[0][0] and not arms[1][0]:
            return f"({arms[0][1]} if {cond} else {arms[1][1]})", deepest
        name = self.spell(f"t{len(self.taken)}", "temporary")
        for head, (lines, text, _) in zip((f"if {cond}:", "else:"), arms, strict=True):
            self.emit(head)
            self.lines += lines
            self.emit(f"    {name} = {text}")
        return name, 0

    def operation(self, e: Op, args: list[str]) -> str:
        source = e.args[0].dtype
        if e.op == "select":
            return f"choose({', '.join(args)})"
        if e.op == "cast":
            if e.dtype == "bool":
                return f"({args[0]} != 0)"
            return f"{e.dtype}(i64({args[0]}))" if source == "i64" else f"{e.dtype}({args[0]})"
        if e.op == "bitcast":
            value = f"i64({args[0]})" if source == "i64" else args[0]
            return f"as_{e.dtype}({value})"
        if len(args) == 2:
            if e.dtype == "i64" and e.op in SMALL and is_small(e.args[0], 0) and is_small(e.args[1], 1):
                return f"{SMALL[e.op]}({args[0]}, {args[1]})"
            return self.binary(e.op, args[0], args[1], source)
        if e.op == "neg":
            return self.wrap(f"-{args[0]}", e.dtype)
        if e.op == "not":
            return f"(not {args[0]})" if e.dtype == "bool" else self.wrap(f"~{args[0]}", e.dtype)
        return f"{CALLS.get(e.op, e.op)}({', '.join(args)})"

    def binary(self, name: str, a: str, b: str, dtype: str) -> str:
        """An operation of two operands of ``dtype``."""
        if dtype == "bool":
            return f"({a} {LOGIC.get(name) or INFIX[name]} {b})"
        if name in COMPARE:
            return f"({a} {INFIX[name]} {b})"
        if name in INFIX:
            return self.wrap(f"{a} {INFIX[name]} {b}", dtype)
        if name in ("floordiv", "mod") and dtype not in INTEGERS:
            raise self.refuse(f"{name} of {dtype}; it is an operation on integers")
        return f"{CALLS.get(name, name)}({a}, {b})"

    def wrap(self, text: str, dtype: str) -> str:
        """Numba computes narrow integers in 64 bits: cut the result to its width."""
        return f"{dtype}({text})" if dtype in INTEGERS and dtype != "i64" else f"({text})"


def is_small(e: Expr, least: int) -> bool:
    low, high = bounds(e)
    return low is not None and high is not None and least <= low and high < 1 << 31


def cheap(e: Op) -> bool:
    """Whether both arms of a select may be evaluated: nothing out of range, no division by zero, little work."""
    seen: set[Expr] = set()
    work = 0
    for arm in e.args[1:]:
        for node in walk(arm, seen):
            if isinstance(node, Load) or (isinstance(node, Op) and node.op in SMALL and not isinstance(node.args[1], Const)):
                return False
            work += isinstance(node, Op) and node.op != "select"
    return work <= CHEAP


def certain_loads(e: Expr) -> Iterator[Load]:
    """The loads of ``e`` that are evaluated whatever its selects choose."""
    if isinstance(e, Load):
        yield e
    for child in e.args[:1] if isinstance(e, Op) and e.op == "select" else e.args if isinstance(e, Op) else ():
        yield from certain_loads(child)


def scratch(kernel: Kernel) -> tuple[Alloc, ...]:
    """The global buffers that a launch needs, passed after the kernel's own arguments."""
    return tuple(s for s in kernel.body if isinstance(s, Alloc) and s.space == "global")


def print_kernel(kernel: Kernel, wide: bool = True, simulated: bool = False) -> tuple[Phase, ...]:
    """Print a kernel as its launches, in order.

    Args:
        kernel: without f16 and bf16.
        wide: load and store 16 bytes at once where arguments at multiples of 16 bytes allow it.
        simulated: leave out what numba's simulator does not take.

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
        _Printer(kernel, made, nest, f"k_{name}_{k}" if len(nests) > 1 else f"k_{name}", wide, simulated).phase()
        for k, nest in enumerate(nests)
    )
