"""What one thread runs, in Python for numba.cuda: buffers, loops, stores, wide accesses and asynchronous copies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from kernelforge.backends.cuda.analysis import copied, for_all, inlined
from kernelforge.backends.cuda.exprs import Buffer, Expressions, certain_loads
from kernelforge.backends.cuda.lib import COPIES, LANES, WIDEST
from kernelforge.dtypes import DTYPES, FLOATS
from kernelforge.ir.index import affine, normalize, poly
from kernelforge.ir.kernel import (
    Alloc,
    Const,
    Expr,
    For,
    If,
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


class Thread(Expressions):
    """Prints what one thread runs.

    Attributes:
        wide: loads and stores of 16 bytes are allowed, where ``aligned`` arguments lie at multiples of those.
        simulated: without what numba's simulator does not take.
        copies: memory may be copied to shared memory while threads go on; ``copying`` says that some is being.
        tiles: the buffers in shared memory.
        read: the buffers that the current unit reads; None outside of units.
    """

    def __init__(self, kernel: str, function: str, wide: bool, simulated: bool) -> None:
        super().__init__(kernel, function)
        self.wide, self.simulated = wide, simulated
        self.aligned: set[str] = set()
        self.copies = self.copying = False
        self.tiles: set[str] = set()
        self.read: set[str] | None = None

    def loop(self, loop: For) -> str:
        """The head of a loop; its variable is spelled from here on."""
        extent = self.expr(loop.extent)
        name = self.vars[loop.var.name] = self.spell(loop.var.name, "i64")
        return f"for {name} in range({extent}):"

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
        if skip is None:
            self.tiles.add(alloc.buffer)
        text = self.array(alloc.buffer, alloc.dtype, count, space)
        self.buffers[alloc.buffer] = Buffer(text, alloc.dtype, alloc.shape, skip or 0, shared=skip is None)

    def array(self, name: str, dtype: str, count: int, space: str) -> str:
        kind = f"{space} {dtype}[{count}]"
        known = (name, kind) in self._names
        text = self.spell(name, kind)
        if not known:
            alignment = ", alignment=16" if space == "shared" and not self.simulated else ""
            self.header.append(f"    {text} = pointer(cuda.{space}.array({count}, t_{dtype}{alignment}))")
        return text

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
        if self.copy(stmt):
            return
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

    def copy(self, stmt: Stmt, loop: For | None = None) -> bool:
        """Print a Store of what lies in memory as a copy that goes by itself, where it is one and may be.

        It arrives at the next barrier: so nothing of the same unit may read it. In a vector ``loop`` it copies all
        elements.
        """
        found = copied(stmt)
        if not self.copies or self.read is None or found is None:
            return False
        assert isinstance(stmt, Store)
        load, cond = found
        target, source = self.buffers[stmt.buffer], self.buffers[load.buffer]
        itemsize = DTYPES[target.dtype].itemsize
        if stmt.buffer not in self.tiles or stmt.buffer in self.read or not source.argument or target.dtype == "bool":
            return False
        if loop is None:
            if itemsize in COPIES:
                at, start = self.expr(target.flat(stmt.index)), self.expr(source.flat(load.index))
                present = "True" if cond is None else self.expr(cond)
                self.emit(f"copy{itemsize}({target.text}, {at}, {source.text}, {start}, {present})")
                self.copying = True
            return itemsize in COPIES
        lanes = loop.static or 0
        step = min(lanes, WIDEST // itemsize)
        into = self.start(stmt.buffer, stmt.index, loop.var, lanes)
        first = self.start(load.buffer, load.index, loop.var, lanes)
        always = None if cond is None else for_all(cond, loop.var, step)
        if into is None or first is None or step * itemsize not in COPIES or (cond is not None and always is None):
            if itemsize in COPIES:
                name = self.vars[loop.var.name] = self.spell(loop.var.name, "i64")
                self.block(f"for {name} in range({lanes}):", lambda: self.simple(stmt))
            return itemsize in COPIES
        for k in range(0, lanes, step):
            at, start = self.expr(normalize(into + k)), self.expr(normalize(first + k))
            present = "True" if always is None else self.expr(always)
            base = self.wide_base(load.buffer)
            self.emit(f"copy{step * itemsize}({target.text}, {at}, {base}, {start}, {present})")
        self.copying = True
        return True

    def vector(self, loop: For) -> bool:
        """Print a vector loop with wide loads and stores around it; False where none is possible."""
        lanes, var = loop.static, loop.var
        if not self.wide or lanes not in LANES:
            return False
        if len(loop.body) == 1 and isinstance(loop.body[0], If):
            always = for_all(loop.body[0].cond, var, lanes)
            if always is not None:
                inside = dataclasses.replace(loop, body=loop.body[0].body)
                self.block(f"if {self.expr(always)}:", lambda: self.thread((inside,)))
                return True
        if not all(isinstance(s, Let | Store | If) for s in loop.body):
            return False
        if any(self.visible(s) for branch in loop.body if isinstance(branch, If) for s in stmts(branch.body)):
            return False
        going = {s for s, whole in inlined(loop.body).items() if self.copy(whole, loop)}
        loop = dataclasses.replace(loop, body=tuple(s for s in loop.body if s not in going))
        if all(isinstance(s, Let) for s in loop.body):
            return True
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
                if self.visible(stmt):
                    stored.add(stmt.buffer)
                start = self.start(stmt.buffer, stmt.index, var, lanes)
                if start is not None and not stmt.op:
                    stores[k] = start
        if not loads and not stores:
            return False
        body = list(loop.body)
        held: dict[Expr, Expr] = {}
        for load, start in loads.items():
            name = self.fresh(load.buffer)
            text = self.array(name, load.dtype, lanes, "local")
            self.buffers[name] = Buffer(text, load.dtype, (i64(lanes),))
            held[load] = Load(name, (var,), load.dtype)
            self.emit(f"ld{lanes}({self.wide_base(load.buffer)}, {self.expr(start)}, {text})")
        body = [map_exprs(s, lambda e: substitute(e, held)) for s in body]
        after = []
        for k, start in stores.items():
            store = body[k]
            assert isinstance(store, Store)
            name = self.fresh(store.buffer)
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

    def visible(self, stmt: Stmt) -> bool:
        """Whether a statement stores where other threads see it."""
        return isinstance(stmt, Store) and self.buffers[stmt.buffer].shared

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
        rest = normalize(substitute(flat, {var: i64(0)}))
        return rest if all(c % step == 0 for c in poly(rest).values()) else None
