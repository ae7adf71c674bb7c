"""Expressions of a kernel as Python text that numba compiles, and the names and lines they need."""

from __future__ import annotations

import collections
import dataclasses
import keyword
import math
import re
from collections.abc import Callable, Iterator

from kernelforge.backends.cuda.lib import RESERVED
from kernelforge.backends.cuda.mma import NARROW
from kernelforge.dtypes import FLOATS, INTEGERS
from kernelforge.errors import MalformedKernel
from kernelforge.ir.index import bounds, normalize
from kernelforge.ir.kernel import COMPARE, Const, Expr, Load, Op, Var, i64, walk

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
CALLS = {"min": "minimum", "max": "maximum", "abs": "absolute"}
SMALL = {"floordiv": "small_div", "mod": "small_mod"}
LOGIC = {"min": "&", "max": "|", "mul": "&", "add": "|"}
"""What arithmetic on bool comes to."""
MOVES = ("cast", "bitcast", "select")
"""The operations that give narrow floats, which are held as bits."""
CHEAP = 24
"""Operations in the arms of a select that are evaluated whatever it chooses: two branches cost a GPU as much."""
DEEPEST = 40
"""Python refuses to parse 200 nested parentheses: deeper expressions are cut by a temporary."""


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


class Expressions:
    """Prints expressions into a function that is being written; temporaries become lines of it.

    Attributes:
        kernel: its name, for errors.
        header: lines of the function that come first.
        lines: the others, so far.
        depth: how deep the next line is indented.
        buffers: how buffers in scope are spelled, by their IR names.
        vars: how variables in scope are spelled.
    """

    def __init__(self, kernel: str, function: str) -> None:
        self.kernel = kernel
        self.header: list[str] = []
        self.lines: list[str] = []
        self.depth = 1
        self.buffers: dict[str, Buffer] = {}
        self.vars: dict[str, str] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set(RESERVED) | {function}
        self._uses: collections.Counter[Expr] = collections.Counter()
        self._known: list[dict[Expr, str]] = []

    def refuse(self, problem: str) -> MalformedKernel:
        return MalformedKernel(kernel=self.kernel, problem=f"for CUDA: {problem}")

    def spell(self, name: str, kind: str) -> str:
        """A Python variable for an IR name; one IR name used for two kinds of value gets two."""
        found = self._names.get((name, kind))
        if found is None:
            base = re.sub(r"\W", "_", name)
            base = f"_{base}" if base[0].isdigit() else base
            found, count = base, 0
            while found in self._taken or keyword.iskeyword(found):
                count += 1
                found = f"{base}_{count}"
            self._taken.add(found)
            self._names[name, kind] = found
        return found

    def emit(self, line: str) -> None:
        """Add a line."""
        self.lines.append("    " * self.depth + line)

    def block(self, head: str, body: Callable[[], None]) -> None:
        """Add ``head`` and what ``body`` adds, indented."""
        self.emit(head)
        self.depth += 1
        mark = len(self.lines)
        body()
        if len(self.lines) == mark:
            self.emit("pass")
        self.depth -= 1

    def fresh(self, base: str) -> str:
        """A name that nothing has yet."""
        return f"{base}{len(self._taken)}"

    def temporary(self, text: str) -> str:
        """Compute ``text`` in a line of its own; return its name."""
        name = self.spell(self.fresh("t"), "temporary")
        self.emit(f"{name} = {text}")
        return name

    def expr(self, e: Expr) -> str:
        """The Python expression for ``e``; what it repeats is computed by lines before."""
        self._uses = collections.Counter(child for node in self.nodes(e) for child in self.children(node))
        self._known = [{}]
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
        if e.dtype in NARROW and not e.value:
            return "u16(0)"
        if e.dtype == "i64":
            return str(e.value) if e.value >= 0 else f"({e.value})"
        if e.dtype in FLOATS and not math.isfinite(e.value):
            sign = "-" if e.value < 0 else ""
            return f"{e.dtype}({sign}{'nan' if math.isnan(e.value) else 'inf'})"
        return f"{e.dtype}({e.value!r})"

    def text(self, e: Expr) -> tuple[str, int]:
        """The Python expression, and how deep its parentheses go; temporaries cut what Python cannot nest."""
        if e.dtype in NARROW and isinstance(e, Op) and e.op not in MOVES:
            raise self.refuse(f"{e.dtype} is not lowered to f32; run kernelforge.ir.passes.widen first")
        if isinstance(e, Const):
            return self.const(e), 1
        if isinstance(e, Var):
            return self.vars[e.name], 0
        for scope in self._known:
            if e in scope:
                return scope[e], 0
        text, depth = self.load(e) if isinstance(e, Load) else self.compute(e)
        if depth > DEEPEST or (depth > 1 and self._uses[e] > 1):
            text, depth = self.temporary(text), 0
        if depth == 0:
            self._known[-1][e] = text
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
            self._known.append({})
            text, deep = self.text(arm)
            self._known.pop()
            arms.append((self.lines, text, deep))
        self.depth -= 1
        self.lines = before
        deepest = max(depth, arms[0][2], arms[1][2]) + 1
        if deepest <= DEEPEST and not arms[0][0] and not arms[1][0]:
            return f"({arms[0][1]} if {cond} else {arms[1][1]})", deepest
        name = self.spell(self.fresh("t"), "temporary")
        for head, (lines, text, _) in zip((f"if {cond}:", "else:"), arms, strict=True):
            self.emit(head)
            self.lines += lines
            self.emit(f"    {name} = {text}")
        return name, 0

    def operation(self, e: Op, args: list[str]) -> str:
        source = e.args[0].dtype
        if e.op == "select":
            return f"choose({', '.join(args)})"
        if source in NARROW and e.op == "bitcast":
            return args[0]  # its bits are what is held
        if source in NARROW:
            return self.operation(Op("cast", (Var("wide", "f32"),), e.dtype), [f"from_{source}({args[0]})"])
        if e.dtype in NARROW:
            wide = args[0] if source == "f32" else f"f32({args[0]})"
            return args[0] if e.op == "bitcast" else f"to_{e.dtype}({wide})"
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
            divides = isinstance(node, Op) and node.op in SMALL and not isinstance(node.args[1], Const)
            if divides or isinstance(node, Load):
                return False
            work += isinstance(node, Op) and node.op != "select"
    return work <= CHEAP


def certain_loads(e: Expr) -> Iterator[Load]:
    """The loads of ``e`` that are evaluated whatever its selects choose."""
    if isinstance(e, Load):
        yield e
    for child in e.args[:1] if isinstance(e, Op) and e.op == "select" else e.args if isinstance(e, Op) else ():
        yield from certain_loads(child)
