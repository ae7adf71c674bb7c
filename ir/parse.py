"""Reads back what ``kernelforge.ir.text`` writes: the same graph, the same kernel."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, get_args

import numpy as np

from kernelforge.dtypes import DTYPES, INTEGERS
from kernelforge.errors import MalformedText
from kernelforge.ir.build import primitive
from kernelforge.ir.graph import Graph, Node, Value
from kernelforge.ir.kernel import (
    ARITY,
    COMPARE,
    Alloc,
    Arg,
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
    i64,
)
from kernelforge.ir.text import COMBINING, INFIX
from kernelforge.ir.types import Type
from kernelforge.lines import Loc

T = TypeVar("T")

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)
    |(?P<newline>\n)
    |(?P<comment>\#[^\n]*)
    |(?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    |(?P<bits>0x[0-9a-f]+)
    |(?P<number>(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf(?=f|bf|\b)|nan(?=f|bf|\b))(?:bf16|[fiu]\d+)?(?![A-Za-z0-9_]))
    |(?P<value>%\d+)
    |(?P<part>\$\d+)
    |(?P<combine>(?:min|max)=(?!=))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<symbol>\.\.\.|//|<<|>>|<=|>=|==|!=|\+=|\*=|[-+*/%&|^<>=(){}\[\]:,@~])""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf|nan)(bf16|[fiu]\d+)?")
_LOC = re.compile(r"# (.*):(\d+) in (.*?)((?:, adjoint)*)")
_SYMBOL = {symbol: (name, binds) for name, (symbol, binds) in INFIX.items()}
_COMBINE = {text: name for name, text in COMBINING.items()}


class _Reader:
    """A text as tokens, with the line each stands in."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str, int]] = []
        self.at = 0
        line, position = 1, 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise MalformedText(
                    line=line, found=repr(text[position : position + 12]), expected="a token of the text form"
                )
            kind = str(found.lastgroup)
            if kind == "newline":
                line += 1
            elif kind != "space" and (kind != "comment" or _LOC.fullmatch(found.group())):
                self.tokens.append((kind, found.group(), line))
            position = found.end()
        self.tokens.append(("end", "the end", line))

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    @property
    def word(self) -> str:
        return self.tokens[self.at][1]

    def fail(self, expected: str) -> NoReturn:
        raise MalformedText(line=self.tokens[self.at][2], found=repr(self.word), expected=expected)

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][1]

    def take(self, word: str) -> bool:
        """Skip ``word`` if it comes next."""
        if self.word == word and self.kind != "string":
            self.at += 1
            return True
        return False

    def need(self, word: str) -> None:
        if not self.take(word):
            self.fail(repr(word))

    def a(self, kind: str, expected: str) -> str:
        if self.kind != kind:
            self.fail(expected)
        return self.next()

    def name(self, expected: str = "a name") -> str:
        return self.a("name", expected)

    def integer(self, expected: str) -> int:
        if not self.word.isdecimal():
            self.fail(expected)
        return int(self.next())

    def one_of(self, words: tuple[str, ...]) -> str:
        if self.word not in words:
            self.fail("one of " + ", ".join(words))
        return self.next()

    def dtype(self) -> str:
        return self.one_of(tuple(DTYPES))

    def until(self, close: str, item: Callable[[], T]) -> list[T]:
        """Read items separated by commas up to ``close``; a comma may stand at the end."""
        items: list[T] = []
        while not self.take(close):
            items.append(item())
            if not self.take(","):
                self.need(close)
                break
        return items

    def end(self) -> None:
        if self.kind != "end":
            self.fail("nothing more")


class _KernelParser(_Reader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.vars: dict[str, Var] = {}
        self.buffers: dict[str, str] = {}
        self.parts: dict[str, Expr] = {}

    def kernel(self) -> Kernel:
        self.need("kernel")
        name = self.name()
        self.need("(")
        # sizes may mention parameters, which stand after the arguments
        start = self.at
        while self.word not in {"params", "{"} and self.kind != "end":
            self.next()
        self.vars = {p: Var(p) for p in self.params()}
        self.at = start
        args = tuple(self.until(")", self.arg))
        params = self.params()
        self.buffers = {a.name: a.dtype for a in args}
        body = self.block()
        self.end()
        return Kernel(name, args, params, body)

    def params(self) -> tuple[str, ...]:
        if not self.take("params"):
            return ()
        self.need("(")
        return tuple(self.until(")", self.name))

    def arg(self) -> Arg:
        mode: Mode = self.one_of(get_args(Mode))  # type: ignore[assignment]
        name = self.name()
        self.need(":")
        dtype = self.dtype()
        self.need("[")
        size = self.expr()
        self.need("]")
        return Arg(name, dtype, size, mode)

    def block(self) -> tuple[Stmt, ...]:
        self.need("{")
        outer = dict(self.vars), dict(self.buffers)
        body: list[Stmt] = []
        while not self.take("}"):
            stmt = self.stmt()
            if stmt is not None:
                body.append(stmt)
        self.vars, self.buffers = outer
        return tuple(body)

    def stmt(self) -> Stmt | None:
        if self.kind == "part":
            part = self.next()
            self.need("=")
            self.parts[part] = self.expr()
            return None
        if self.take("let"):
            name = self.name()
            self.need("=")
            value = self.expr()
            self.vars[name] = Var(name, value.dtype)
            return Let(name, value)
        if self.take("if"):
            cond = self.expr()
            return If(cond, self.block())
        if self.take("for"):
            return self.loop()
        name = self.name("a statement")
        if name in get_args(Space) and self.kind == "name":
            space: Space = name  # type: ignore[assignment]
            buffer = self.name()
            self.need(":")
            dtype = self.dtype()
            self.need("[")
            shape = tuple(self.until("]", self.expr))
            self.buffers[buffer] = dtype
            return Alloc(buffer, dtype, shape, space)
        self.need("[")
        index = tuple(self.until("]", self.expr))
        combine = _COMBINE[self.one_of(tuple(_COMBINE))]
        return Store(name, index, self.expr(), combine)

    def loop(self) -> For:
        kind: LoopKind = self.one_of(get_args(LoopKind))  # type: ignore[assignment]
        name = self.name()
        dtype = self.dtype() if self.take(":") else "i64"
        self.need("<")
        extent = self.expr()
        bound = int(extent.value) if isinstance(extent, Const) else None
        if self.take("bound"):
            bound = None if self.take("none") else self.integer("a number or none")
        outer = dict(self.vars)
        var = self.vars[name] = Var(name, dtype, bound)
        body = self.block()
        self.vars = outer
        return For(var, extent, kind, body)

    def expr(self, tightness: int = 1) -> Expr:
        """Read operators that bind at least as tightly as ``tightness``."""
        left = self.operand()
        while self.kind == "symbol" and self.word in _SYMBOL and _SYMBOL[self.word][1] >= tightness:
            name, binds = _SYMBOL[self.next()]
            right = self.expr(binds + 1)
            left = Op(name, (left, right), "bool" if name in COMPARE else left.dtype)
        return left

    def operand(self) -> Expr:
        if self.take("("):
            inner = self.expr()
            self.need(")")
            return inner
        if self.take("-"):
            return self.number("-")
        if self.kind == "number":
            return self.number("")
        if self.kind == "part":
            if self.word not in self.parts:
                self.fail("a part that is defined above")
            return self.parts[self.next()]
        name = self.name("an expression")
        if self.word == "[":
            if name not in self.buffers:
                self.at -= 1
                self.fail("a buffer")
            self.next()
            return Load(name, tuple(self.until("]", self.expr)), self.buffers[name])
        if self.word in {"(", "@"}:
            return self.call(name)
        if name in {"true", "false"}:
            return Const(name == "true", "bool")
        if name not in self.vars:
            self.at -= 1
            self.fail("a variable")
        return self.vars[name]

    def call(self, name: str) -> Expr:
        dtype = ""
        if name == "bitcast":
            self.need("@")
            dtype = self.dtype()
        self.need("(")
        args = tuple(self.until(")", self.expr))
        if name in DTYPES:
            name, dtype = "cast", name
        if ARITY.get(name) != len(args):
            self.fail(f"an operation of {len(args)} operands, not {name}")
        return Op(name, args, dtype or ("bool" if name in COMPARE else args[-1].dtype))

    def number(self, sign: str) -> Const:
        found = _NUMBER.fullmatch(self.a("number", "a number"))
        assert found is not None
        digits, dtype = found[1], found[2] or "i64"
        if dtype not in DTYPES or (dtype in INTEGERS and not digits.isdecimal()):
            self.at -= 1
            self.fail("a number of a known dtype")
        if dtype in INTEGERS:
            return i64(int(sign + digits)) if dtype == "i64" else Const(int(sign + digits), dtype)
        return Const(float(sign + digits), dtype)


class _GraphParser(_Reader):
    def graph(self) -> Graph:
        self.need("graph")
        self.need("(")
        values: dict[str, Value] = {}
        inputs = tuple(self.until(")", lambda: self.declare(values)))
        self.need("{")
        consts: list[tuple[Value, np.ndarray[Any, Any]]] = []
        nodes: list[Node] = []
        while not self.take("return"):
            if self.take("const"):
                value = self.declare(values)
                self.need("=")
                consts.append((value, self.elements(value.type)))
            else:
                nodes.append(self.node(values))
        outputs: list[Value] = []
        while not self.take("}"):
            outputs.append(self.use(values))
            self.take(",")
        return Graph(inputs, tuple(nodes), tuple(outputs), tuple(consts))

    def declare(self, values: dict[str, Value]) -> Value:
        if self.word in values:
            self.fail("a value that is not defined yet")
        name = self.a("value", "a value")
        self.need(":")
        weak = self.take("~")
        dtype = DTYPES[self.dtype()]
        self.need("[")
        shape = tuple(self.until("]", lambda: self.integer("an extent")))
        made = values[name] = Value(int(name[1:]), Type(shape, dtype, weak))
        return made

    def use(self, values: dict[str, Value]) -> Value:
        if self.word not in values:
            self.fail("a value that is defined above")
        return values[self.next()]

    def node(self, values: dict[str, Value]) -> Node:
        outputs = []
        while not self.take("="):
            outputs.append(self.declare(values))
            self.take(",")
        prim = primitive(self.name("a primitive"))
        self.need("(")
        inputs = tuple(self.until(")", lambda: self.use(values)))
        if any(v in outputs for v in inputs):
            self.fail("inputs that are defined above")
        params = dict(self.until("}", self.named)) if self.take("{") else {}
        loc = None
        if self.kind == "comment":
            found = _LOC.fullmatch(self.next())
            loc = Loc(found[1], int(found[2]), found[3], found[4].count(",")) if found else None
        return Node(prim, inputs, MappingProxyType(params), tuple(outputs), loc)

    def named(self) -> tuple[str, Any]:
        name = self.name()
        self.need("=")
        return name, self.parameter()

    def parameter(self) -> Any:
        if self.word == "graph":
            return self.graph()
        if self.take("("):
            return tuple(self.until(")", self.parameter))
        if self.kind == "string":
            return ast.literal_eval(self.next())
        if self.kind == "name":
            words: dict[str, bool | None] = {"True": True, "False": False, "None": None}
            if self.word in words:
                return words[self.next()]
        return self.python_number("a parameter that has a text form")

    def python_number(self, expected: str) -> int | float:
        sign = "-" if self.take("-") else ""
        digits = self.a("number", expected)
        return int(sign + digits) if digits.isdecimal() else float(sign + digits)

    def elements(self, type: Type) -> np.ndarray[Any, Any]:
        self.need("[")
        array = np.empty(type.size, type.dtype)
        count = 0
        bits = array.view(f"u{type.dtype.itemsize}")
        while not self.take("]"):
            if count == type.size:
                self.fail(f"{type.size} elements")
            if self.word in {"True", "False"}:
                array[count] = self.next() == "True"
            else:
                array[count] = self.python_number("an element")
            if self.take("("):
                bits[count] = int(self.a("bits", "the bits of a NaN"), 16)
                self.need(")")
            count += 1
            self.take(",")
        if count != type.size:
            self.fail(f"{type.size} elements")
        array = array.reshape(type.shape)
        array.flags.writeable = False
        return array


def parse_kernel(text: str) -> Kernel:
    """Read a kernel.

    Raises:
        MalformedText: with the line, what stands there and what was expected.
    """
    return _KernelParser(text).kernel()


def parse_graph(text: str) -> Graph:
    """Read a graph.

    Raises:
        MalformedText: with the line, what stands there and what was expected.
        UnknownPrimitive: for a node of a primitive that is not in the table.
    """
    parser = _GraphParser(text)
    graph = parser.graph()
    parser.end()
    return graph
