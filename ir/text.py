"""The text form of both levels; ``kernelforge.ir.parse`` reads it back exactly.

A kernel::

    kernel scale(in x: f32[n], out y: f32[n]) params (n) {
      for parallel i < n {
        y[i] = max(x[i] * 2.0f32, 0.0f32)
      }
    }

Operators bind as in C: ``| ^ & < << + *``, loosest first; ``//`` and ``%`` are ``floordiv`` and ``mod``. All else
is written as a call: ``neg(x)``, ``select(c, a, b)``; ``f32(x)`` is a cast. A number without suffix is ``i64``.
``$1 = ...`` names a long expression in the text only: it is a part of every expression that mentions it. A loop
variable's bound is its constant extent where nothing else is said. The text of a kernel is exact, so it is a key of
the disk cache.

A graph::

    graph (%0: f32[2,3], %1: f32[3]) {
      const %2: i64[3] = [2, 0, 1]
      %3: f32[2,3] = broadcast(%1) {shape=(2, 3)}  # model.py:12 in layer
      return %3
    }

``~f32[]`` is the weak type of a Python number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.kernel import Alloc, Const, Expr, For, If, Kernel, Let, Load, Op, Stmt, Store, Var

INFIX: dict[str, tuple[str, int]] = {
    "or": ("|", 1), "xor": ("^", 2), "and": ("&", 3),
    "lt": ("<", 4), "le": ("<=", 4), "gt": (">", 4), "ge": (">=", 4), "eq": ("==", 4), "ne": ("!=", 4),
    "shl": ("<<", 5), "shr": (">>", 5), "add": ("+", 6), "sub": ("-", 6),
    "mul": ("*", 7), "div": ("/", 7), "floordiv": ("//", 7), "mod": ("%", 7),
}  # fmt: skip
"""The operations written between their operands: symbol and precedence."""

RESERVED = frozenset(
    {"bound", "for", "global", "if", "inf", "let", "local", "nan", "params", "register", "true", "false"}
)
"""Words that cannot name a variable or a buffer."""

COMBINING: dict[str, str] = {"": "=", "add": "+=", "mul": "*=", "min": "min=", "max": "max="}
"""How a Store with this ``op`` is written."""

ATOM = 9
"""The precedence of what never needs parentheses."""

LONGEST = 100
"""Characters in an expression before it gets a name of its own in the text."""


def print_kernel(kernel: Kernel) -> str:
    """Write a well-formed kernel."""
    printer = _Printer()
    args = ", ".join(f"{a.mode} {a.name}: {a.dtype}[{print_expr(a.size)}]" for a in kernel.args)
    params = f" params ({', '.join(kernel.params)})" if kernel.params else ""
    printer.lines.append(f"kernel {kernel.name}({args}){params} {{")
    printer.body(kernel.body, "  ")
    return "\n".join([*printer.lines, "}"])


def print_stmt(stmt: Stmt) -> str:
    """Write the head of one statement, for messages."""
    printer = _Printer(longest=1 << 30)
    printer.head(stmt, "")
    return printer.lines[0]


def print_expr(expr: Expr) -> str:
    """Write one expression, for messages."""
    return _Printer(longest=1 << 30).text(expr)


class _Printer:
    def __init__(self, longest: int = LONGEST) -> None:
        self.lines: list[str] = []
        self.longest = longest
        self.names = 0
        self.known: dict[Expr, tuple[str, int]] = {}
        self.pending: list[str] = []

    def text(self, expr: Expr, tightness: int = 0) -> str:
        """Write an expression for a place where operators below ``tightness`` need parentheses."""
        if expr not in self.known:
            self.visit(expr)
        text, binds = self.known[expr]
        return f"({text})" if binds < tightness else text

    def visit(self, expr: Expr) -> None:
        """Write the operands first, without recursion: a chain of operations may be long."""
        known = self.known
        stack = [expr]
        while stack:
            e = stack[-1]
            children = e.args if isinstance(e, Op) else e.index if isinstance(e, Load) else ()
            missing = [c for c in children if c not in known]
            if missing:
                stack += reversed(missing)
                continue
            stack.pop()
            if e in known:
                continue
            text, binds = self.write(e)
            if len(text) > self.longest and children:
                self.names += 1
                self.pending.append(f"${self.names} = {text}")
                text, binds = f"${self.names}", ATOM
            known[e] = text, binds

    def write(self, expr: Expr) -> tuple[str, int]:
        if isinstance(expr, Op):
            infix = INFIX.get(expr.op)
            if infix is not None and len(expr.args) == 2:
                symbol, binds = infix
                a, b = expr.args
                # comparisons do not chain; the others group to the left
                return f"{self.text(a, binds + (binds == 4))} {symbol} {self.text(b, binds + 1)}", binds
            name = {"cast": expr.dtype, "bitcast": f"bitcast@{expr.dtype}"}.get(expr.op, expr.op)
            return f"{name}({', '.join([self.text(a) for a in expr.args])})", ATOM
        if isinstance(expr, Load):
            return f"{expr.buffer}[{', '.join([self.text(i) for i in expr.index])}]", ATOM
        if isinstance(expr, Var):
            return expr.name, ATOM
        assert isinstance(expr, Const)
        return literal(expr), ATOM

    def body(self, body: Sequence[Stmt], indent: str) -> None:
        for stmt in body:
            self.head(stmt, indent)
            if isinstance(stmt, For | If):
                self.body(stmt.body, indent + "  ")
                self.lines.append(indent + "}")

    def head(self, stmt: Stmt, indent: str) -> None:
        line = self.statement(stmt)
        self.lines += [indent + p for p in self.pending]
        self.pending.clear()
        self.lines.append(indent + line)

    def statement(self, stmt: Stmt) -> str:
        match stmt:
            case Let(name, value):
                return f"let {name} = {self.text(value)}"
            case Store(buffer, index, value, combine):
                where = ", ".join([self.text(i) for i in index])
                return f"{buffer}[{where}] {COMBINING.get(combine, combine + '=')} {self.text(value)}"
            case For(var, extent, kind):
                dtype = "" if var.dtype == "i64" else f": {var.dtype}"
                bound = "" if var.bound == stmt.static else f" bound {'none' if var.bound is None else var.bound}"
                return f"for {kind} {var.name}{dtype} < {self.text(extent)}{bound} {{"
            case If(cond):
                return f"if {self.text(cond)} {{"
            case Alloc(buffer, dtype, shape, space):
                return f"{space} {buffer}: {dtype}[{', '.join([self.text(e) for e in shape])}]"


def literal(const: Const) -> str:
    """Write a constant: exact, with its dtype where that is neither i64 nor bool."""
    if const.dtype == "bool":
        return "true" if const.value else "false"
    return repr(const.value) if const.dtype == "i64" else f"{const.value!r}{const.dtype}"


def print_graph(graph: Graph, longest: int | None = None) -> str:
    """Write a graph.

    Args:
        graph: its values are named by their ids.
        longest: constants of more elements are written ``[...]``, which cannot be read back; None writes all.
    """
    return "\n".join(_graph_lines(graph, longest))


def _graph_lines(graph: Graph, longest: int | None) -> Iterator[str]:
    yield f"graph ({_declare(graph.inputs)}) {{"
    for value, array in graph.consts:
        short = longest is not None and array.size > longest
        yield f"  const {_declare([value])} = {'[...]' if short else elements(array)}"
    for node in graph.nodes:
        yield from ("  " + line for line in _node_lines(node, longest))
    yield f"  return {', '.join(map(str, graph.outputs))}".rstrip()
    yield "}"


def _declare(values: Sequence[Value]) -> str:
    return ", ".join(f"{v}: {v.type}" for v in values)


def _node_lines(node: Node, longest: int | None) -> list[str]:
    text = f"{_declare(node.outputs)} = {node.prim.name}({', '.join(map(str, node.inputs))})"
    if node.params:
        text += f" {{{', '.join(f'{k}={parameter(v, longest)}' for k, v in node.params.items())}}}"
    return (f"{text}  # {node.loc}" if node.loc is not None else text).split("\n")


def print_node(node: Node) -> str:
    """Write one node on one line, for messages."""
    params = {k: "graph" if isinstance(v, Graph) else parameter(v) for k, v in node.params.items()}
    listed = f" {{{', '.join(f'{k}={v}' for k, v in params.items())}}}" if params else ""
    inputs = ", ".join(map(str, node.inputs))
    return f"{_declare(node.outputs)} = {node.prim.name}({inputs}){listed}"


def parameter(value: Any, longest: int | None = None) -> str:
    """Write the value of a parameter; what only Python can hold becomes ``<...>``, which cannot be read back."""
    if isinstance(value, Graph):
        return print_graph(value, longest)
    if isinstance(value, tuple):
        inner = ", ".join(parameter(v, longest) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"<{type(value).__name__}>"


def elements(array: np.ndarray[Any, Any]) -> str:
    """Write all elements in row-major order, exactly: a NaN that is not the usual one shows its bits."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind in "biu":
        return f"[{', '.join(map(repr, flat.tolist()))}]"
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = flat.astype(np.float64)
    bits = flat.view(f"u{flat.dtype.itemsize}")
    usual = np.array(np.nan, flat.dtype).view(bits.dtype)[()]
    texts = [
        f"nan({b:#x})" if w != w and b != usual else repr(w) for w, b in zip(wide.tolist(), bits.tolist(), strict=True)
    ]
    return f"[{', '.join(texts)}]"
