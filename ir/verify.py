"""Well-formedness of both levels: what every pass may rely on and has to keep."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NoReturn, get_args

from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS
from kernelforge.errors import KernelforgeError, MalformedGraph, MalformedKernel
from kernelforge.ir.build import REGISTRY
from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.kernel import (
    ARITY,
    COMPARE,
    MATH_BINARY,
    MATH_UNARY,
    Alloc,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    LoopKind,
    Mode,
    Op,
    Space,
    Stmt,
    Store,
    Var,
    exprs,
    stmts,
    walk,
)
from kernelforge.ir.repeat import repeats
from kernelforge.ir.tables import TABLES
from kernelforge.ir.text import COMBINING, RESERVED, print_expr, print_node, print_stmt
from kernelforge.ir.types import Type

_NUMBERS = FLOATS | INTEGERS
_BITS = INTEGERS | {"bool"}
OPERANDS: dict[str, frozenset[str]] = {
    **dict.fromkeys(MATH_UNARY + MATH_BINARY, FLOATS),
    **dict.fromkeys(
        ("sqrt", "floor", "ceil", "trunc", "rint", "div", "fma", "mad", "scaleb", "mul_error", *TABLES), FLOATS
    ),
    **dict.fromkeys(("floordiv", "mod", "shl", "shr"), INTEGERS),
    **dict.fromkeys(("and", "or", "xor", "not"), _BITS),
    "unlikely": frozenset({"bool"}),
    "tf32": frozenset({"f32"}),
    **dict.fromkeys(("neg", "abs", "add", "sub", "mul"), _NUMBERS),
    **dict.fromkeys((*COMPARE, "min", "max", "select", "cast", "bitcast"), frozenset(DTYPES)),
}
"""The dtypes that the (last) operand of an operation may have."""


def verify_graph(graph: Graph) -> None:
    """Check a graph and those inside it.

    Raises:
        MalformedGraph: naming the node at fault.
    """
    known: dict[int, Value] = {}

    def define(value: Value, where: str) -> None:
        if value.id in known:
            raise MalformedGraph(problem=f"{value} is defined twice, again by {where}")
        known[value.id] = value

    def use(value: Value, where: str) -> None:
        if known.get(value.id) is not value:
            raise MalformedGraph(problem=f"{value} is used by {where} before it is defined")

    for value in graph.inputs:
        define(value, "the inputs")
    for value, array in graph.consts:
        define(value, "a constant")
        if Type(array.shape, array.dtype) != Type(value.type.shape, value.type.dtype):
            problem = f"the constant {value}: {value.type} holds {array.dtype} of shape {array.shape}"
            raise MalformedGraph(problem=problem)
    for node in graph.nodes:
        for value in node.inputs:
            use(value, print_node(node))
        _verify_node(node)
        for value in node.outputs:
            define(value, print_node(node))
    for value in graph.outputs:
        use(value, "return")


def _verify_node(node: Node) -> None:
    text = print_node(node)
    if REGISTRY.get(node.prim.name) is not node.prim:
        raise MalformedGraph(problem=f"{text}: its primitive is not the one of that name in the table", loc=node.loc)
    if set(node.params) != set(node.prim.params):
        problem = f"{text}: its parameters are {sorted(node.params)}; expected {sorted(node.prim.params)}"
        raise MalformedGraph(problem=problem, loc=node.loc)
    for graph in node.graphs.values():
        verify_graph(graph)
    try:
        types = node.prim.typing([v.type for v in node.inputs], node.params)
    except KernelforgeError as error:
        raise MalformedGraph(problem=f"{text}: {error.text}", loc=node.loc) from error
    found = [(v.type.shape, v.type.dtype) for v in node.outputs]
    if found != [(t.shape, t.dtype) for t in types]:
        raise MalformedGraph(problem=f"{text}: its type rule gives {', '.join(map(str, types))}", loc=node.loc)


def verify_kernel(kernel: Kernel) -> None:
    """Check a kernel.

    Raises:
        MalformedKernel: naming the statement at fault.
    """
    _Verifier(kernel.name).kernel(kernel)


class _Scope:
    """What is visible: variables, and for each buffer its dtype, its rank and whether it is an input."""

    def __init__(self, outer: _Scope | None = None) -> None:
        self.vars: dict[str, Var] = dict(outer.vars) if outer else {}
        self.buffers: dict[str, tuple[str, int, bool]] = dict(outer.buffers) if outer else {}
        self.loops: tuple[For, ...] = outer.loops if outer else ()


class _Verifier:
    def __init__(self, kernel: str) -> None:
        self.name = kernel
        self.typed: set[Expr] = set()

    def fail(self, stmt: Stmt | None, problem: str) -> NoReturn:
        where = "" if stmt is None else f"in '{print_stmt(stmt)}': "
        raise MalformedKernel(kernel=self.name, problem=where + problem)

    def kernel(self, kernel: Kernel) -> None:
        scope = _Scope()
        for param in kernel.params:
            self.fresh(None, param, scope)
            scope.vars[param] = Var(param)
        for arg in kernel.args:
            self.fresh(None, arg.name, scope)
            if arg.mode not in get_args(Mode) or arg.dtype not in DTYPES:
                self.fail(None, f"the argument {arg.name} has mode {arg.mode} and dtype {arg.dtype}")
            loads = any(isinstance(e, Load) for e in walk(arg.size))
            if arg.size.dtype != "i64" or loads:
                self.fail(None, f"the size of {arg.name} is not an i64 of constants and parameters")
            self.expr(None, arg.size, scope)
            scope.buffers[arg.name] = (arg.dtype, 1, arg.mode == "in")
        self.body(kernel.body, scope)
        for stmt in kernel.body:
            if not isinstance(stmt, For) and not (isinstance(stmt, Alloc) and stmt.space == "global"):
                self.fail(stmt, "at the top of a kernel stand loops and global scratch")
            self.phase(stmt)

    def phase(self, stmt: Stmt) -> None:
        if isinstance(stmt, For) and repeats(stmt):
            for nest in stmt.body:
                self.phase(nest)
        else:
            self.work_items(stmt)

    def fresh(self, stmt: Stmt | None, name: str, scope: _Scope) -> None:
        if not name.isidentifier() or not name.isascii() or name in RESERVED:
            self.fail(stmt, f"{name!r} cannot be a name")
        if name in scope.vars or name in scope.buffers:
            self.fail(stmt, f"{name} is defined twice")

    def body(self, body: Sequence[Stmt], scope: _Scope) -> None:
        for stmt in body:
            for e in exprs(stmt):
                self.expr(stmt, e, scope)
            match stmt:
                case Let(name, value):
                    self.fresh(stmt, name, scope)
                    scope.vars[name] = Var(name, value.dtype)
                case Store():
                    self.store(stmt, scope)
                case Alloc():
                    self.alloc(stmt, scope)
                case If(cond, inner):
                    if cond.dtype != "bool":
                        self.fail(stmt, f"the condition is {cond.dtype}; expected bool")
                    self.body(inner, _Scope(scope))
                case For():
                    self.loop(stmt, scope)

    def loop(self, stmt: For, scope: _Scope) -> None:
        self.fresh(stmt, stmt.var.name, scope)
        if stmt.kind not in get_args(LoopKind):
            self.fail(stmt, f"there is no loop kind {stmt.kind}")
        if stmt.extent.dtype != "i64" or stmt.var.dtype != "i64":
            self.fail(stmt, "extent and variable of a loop are i64")
        if stmt.kind in ("vector", "unroll", "group") and stmt.static is None:
            self.fail(stmt, f"the extent of a {stmt.kind} loop is a constant")
        if stmt.static is not None and stmt.var.bound is not None and stmt.static > stmt.var.bound:
            self.fail(stmt, f"the variable is said to stay below {stmt.var.bound}")
        around = itertools.dropwhile(repeats, scope.loops)
        if stmt.kind == "grid" and any(outer.kind != "grid" for outer in around):
            self.fail(stmt, "a grid loop stands inside grid loops only")
        if stmt.kind == "group" and any(outer.kind in ("vector", "unroll") for outer in scope.loops):
            self.fail(stmt, "a group loop does not stand inside a vector or unroll loop")
        inner = _Scope(scope)
        inner.vars[stmt.var.name] = stmt.var
        inner.loops = (*scope.loops, stmt)
        self.body(stmt.body, inner)

    def alloc(self, stmt: Alloc, scope: _Scope) -> None:
        self.fresh(stmt, stmt.buffer, scope)
        if stmt.space not in get_args(Space) or stmt.dtype not in DTYPES:
            self.fail(stmt, f"there is no space {stmt.space} or no dtype {stmt.dtype}")
        for extent in stmt.shape:
            if extent.dtype != "i64":
                self.fail(stmt, "the shape is not i64")
            if isinstance(extent, Const):
                if extent.value < 0:
                    self.fail(stmt, "an extent is negative")
            elif stmt.space != "global":
                self.fail(stmt, f"the shape of a {stmt.space} buffer is constant")
        if stmt.space == "global" and scope.loops:
            self.fail(stmt, "global scratch stands at the top of a kernel")
        scope.buffers[stmt.buffer] = (stmt.dtype, len(stmt.shape), False)

    def store(self, stmt: Store, scope: _Scope) -> None:
        dtype = self.access(stmt, stmt.buffer, stmt.index, scope)
        if scope.buffers[stmt.buffer][2]:
            self.fail(stmt, f"{stmt.buffer} is an input")
        if stmt.value.dtype != dtype:
            self.fail(stmt, f"a value of dtype {stmt.value.dtype} is stored to {stmt.buffer} of {dtype}")
        if stmt.op not in COMBINING:
            self.fail(stmt, f"{stmt.op!r} is not one of {', '.join(filter(None, COMBINING))}")
        if stmt.op in ("add", "mul") and dtype == "bool":
            self.fail(stmt, f"bool has no {stmt.op}; use max for any and min for all")

    def access(self, stmt: Stmt | None, buffer: str, index: Sequence[Expr], scope: _Scope) -> str:
        if buffer not in scope.buffers:
            self.fail(stmt, f"the buffer {buffer} is not known here")
        dtype, rank, _ = scope.buffers[buffer]
        if len(index) != rank:
            self.fail(stmt, f"{buffer} has {rank} dimensions and is given {len(index)} indices")
        for i in index:
            if i.dtype != "i64":
                self.fail(stmt, f"the index {print_expr(i)} is {i.dtype}; expected i64")
        return dtype

    def expr(self, stmt: Stmt | None, expr: Expr, scope: _Scope) -> None:
        for e in walk(expr):
            match e:
                case Var():
                    if scope.vars.get(e.name) is not e:
                        known = scope.vars.get(e.name)
                        self.fail(stmt, f"{e!r} is used where {'nothing' if known is None else repr(known)} is defined")
                case Load():
                    dtype = self.access(stmt, e.buffer, e.index, scope)
                    if e.dtype != dtype:
                        self.fail(stmt, f"{print_expr(e)} is taken for {e.dtype}, and {e.buffer} is {dtype}")
                case Op() if e not in self.typed:
                    self.operation(stmt, e)
                    self.typed.add(e)
                case Const() if e.dtype not in DTYPES:
                    self.fail(stmt, f"there is no dtype {e.dtype}")

    def operation(self, stmt: Stmt | None, e: Op) -> None:
        if ARITY.get(e.op) != len(e.args):
            self.fail(stmt, f"{e.op} does not take {len(e.args)} operands")
        last = e.args[-1].dtype
        if e.op == "select" and e.args[0].dtype != "bool":
            self.fail(stmt, f"the condition of {print_expr(e)} is {e.args[0].dtype}; expected bool")
        same = e.args[1:] if e.op == "select" else e.args
        if any(a.dtype != last for a in same):
            found = ", ".join(a.dtype for a in same)
            self.fail(stmt, f"the operands of {print_expr(e)} are {found}; expected one dtype")
        if last not in OPERANDS[e.op]:
            self.fail(stmt, f"{print_expr(e)}: {e.op} is not defined for {last}")
        if e.op in ("cast", "bitcast"):
            if e.dtype not in DTYPES or (e.op == "bitcast" and DTYPES[e.dtype].itemsize != DTYPES[last].itemsize):
                self.fail(stmt, f"{last} cannot become {e.dtype} by {e.op}")
        elif e.dtype != ("bool" if e.op in COMPARE else last):
            self.fail(stmt, f"{print_expr(e)} is taken for {e.dtype}, which is not what {e.op} of {last} gives")

    def work_items(self, nest: Stmt) -> None:
        """Check what a work-item may write.

        Outside of group loops every work-item of a group runs the same, so it may write to its registers alone, and not
        to those of which each work-item holds its own part.
        """
        inner = list(stmts([nest]))
        registers = {s.buffer for s in inner if isinstance(s, Alloc) and s.space == "register"}
        group_loops = [s for s in inner if isinstance(s, For) and s.kind == "group"]
        private = {s.buffer for loop in group_loops for s in stmts(loop.body) if isinstance(s, Alloc)}
        if not group_loops:
            return
        shared: dict[str, tuple[int, ...]] = {}
        accesses = list(_accesses([nest], ()))
        for stmt, buffer, _, groups, stored in accesses:
            if not stored or buffer in private:
                continue
            if not groups and buffer not in registers:
                self.fail(stmt, f"{buffer} is stored to outside of the group loops, by every work-item")
            if groups and buffer in registers:
                shared.setdefault(buffer, tuple(g.static or 0 for g in groups))
        for stmt, buffer, index, groups, _ in accesses:
            if buffer in shared and (
                tuple(g.static for g in groups) != shared[buffer]
                or tuple(index[: len(groups)]) != tuple(g.var for g in groups)
            ):
                self.fail(
                    stmt,
                    f"work-items share no registers: {buffer} is indexed first by the variables of the group loops "
                    f"of extents {shared[buffer]} wherever it is used",
                )


Access = tuple[Stmt, str, Sequence[Expr], tuple[For, ...], bool]


def _accesses(body: Sequence[Stmt], groups: tuple[For, ...]) -> Iterator[Access]:
    """Yield statement, buffer, index, group loops around it, and whether it is a store, of every access."""
    for stmt in body:
        for e in exprs(stmt):
            yield from ((stmt, x.buffer, x.index, groups, False) for x in walk(e) if isinstance(x, Load))
        if isinstance(stmt, Store):
            yield stmt, stmt.buffer, stmt.index, groups, True
        if isinstance(stmt, For | If):
            deeper = (*groups, stmt) if isinstance(stmt, For) and stmt.kind == "group" else groups
            yield from _accesses(stmt.body, deeper)
