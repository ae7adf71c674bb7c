"""The text form: what is printed is read back as the same kernel or graph, and what is not text is refused."""

from __future__ import annotations

import contextlib
import math
import time
from types import MappingProxyType
from typing import Any, get_args

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from kernelforge.dtypes import DTYPES, FLOATS, INTEGERS
from kernelforge.errors import KernelforgeError, MalformedText
from kernelforge.ir import ops
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
    Op,
    Space,
    Stmt,
    Store,
    Var,
    i64,
    op,
)
from kernelforge.ir.parse import parse_graph, parse_kernel
from kernelforge.ir.text import COMBINING, INFIX, elements, print_graph, print_kernel
from kernelforge.ir.types import Type
from kernelforge.lines import Loc

Draw = Any


@st.composite
def constants(draw: Draw, dtype: str) -> Const:
    if dtype == "bool":
        return Const(draw(st.booleans()), "bool")
    if dtype in FLOATS:
        return Const(draw(st.floats()), dtype)
    info = np.iinfo(DTYPES[dtype])
    return Const(draw(st.integers(int(info.min), int(info.max))), dtype)


class Scope:
    """Names in scope: variables, and buffers with dtype and rank."""

    def __init__(self) -> None:
        self.vars: list[Var] = [Var("n")]
        self.buffers: dict[str, tuple[str, int]] = {"x": ("f32", 1), "y": ("bf16", 1), "h": ("i64", 1)}
        self.made = 0

    def name(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}{self.made}"


@st.composite
def expressions(draw: Draw, scope: Scope, dtype: str, depth: int) -> Expr:
    choices = ["const"]
    choices += ["var"] if any(v.dtype == dtype for v in scope.vars) else []
    if depth:
        choices += ["op", "op", "op", "cast", "select"]
        choices += ["load"] if any(d == dtype for d, _ in scope.buffers.values()) else []
    kind = draw(st.sampled_from(choices))
    if kind == "const":
        return draw(constants(dtype))  # type: ignore[no-any-return]
    if kind == "var":
        return draw(st.sampled_from([v for v in scope.vars if v.dtype == dtype]))  # type: ignore[no-any-return]
    if kind == "load":
        buffer = draw(st.sampled_from([b for b, (d, _) in scope.buffers.items() if d == dtype]))
        index = tuple(draw(expressions(scope, "i64", depth - 1)) for _ in range(scope.buffers[buffer][1]))
        return Load(buffer, index, dtype)
    if kind == "cast":
        other = draw(st.sampled_from(sorted(DTYPES)))
        same = DTYPES[other].itemsize == DTYPES[dtype].itemsize
        name = draw(st.sampled_from(["cast", "bitcast"] if same else ["cast"]))
        return Op(name, (draw(expressions(scope, other, depth - 1)),), dtype)
    if kind == "select":
        arms = tuple(draw(expressions(scope, dtype, depth - 1)) for _ in range(2))
        return Op("select", (draw(expressions(scope, "bool", depth - 1)), *arms), dtype)
    names = sorted(set(ARITY) - set(COMPARE) - {"select", "cast", "bitcast"})
    if dtype == "bool":
        names = [*names, *COMPARE]
    name = draw(st.sampled_from(names))
    operand = draw(st.sampled_from(sorted(DTYPES))) if name in COMPARE else dtype
    return Op(name, tuple(draw(expressions(scope, operand, depth - 1)) for _ in range(ARITY[name])), dtype)


@st.composite
def statements(draw: Draw, scope: Scope, depth: int) -> Stmt:
    kind = draw(st.sampled_from(["let", "store", "alloc", *(["for", "if"] if depth else [])]))
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    if kind == "let":
        name = scope.name("t")
        value = draw(expressions(scope, dtype, 3))
        scope.vars.append(Var(name, dtype))
        return Let(name, value)
    if kind == "store":
        buffer = draw(st.sampled_from(sorted(scope.buffers)))
        dtype, rank = scope.buffers[buffer]
        index = tuple(draw(expressions(scope, "i64", 2)) for _ in range(rank))
        return Store(buffer, index, draw(expressions(scope, dtype, 3)), draw(st.sampled_from(sorted(COMBINING))))
    if kind == "alloc":
        name = scope.name("s")
        shape = tuple(i64(k) for k in draw(st.lists(st.integers(0, 9), max_size=3)))
        scope.buffers[name] = (dtype, len(shape))
        return Alloc(name, dtype, shape, draw(st.sampled_from(get_args(Space))))
    before = list(scope.vars), dict(scope.buffers)
    made: Stmt
    if kind == "if":
        made = If(draw(expressions(scope, "bool", 2)), draw(bodies(scope, depth - 1)))
    else:
        extent = draw(expressions(scope, "i64", 1))
        bound = draw(st.sampled_from([None, 100, extent.value if isinstance(extent, Const) else None]))
        var = Var(scope.name("i"), draw(st.sampled_from(["i64", "i32"])), bound)
        scope.vars.append(var)
        made = For(var, extent, draw(st.sampled_from(get_args(LoopKind))), draw(bodies(scope, depth - 1)))
    scope.vars, scope.buffers = before
    return made


@st.composite
def bodies(draw: Draw, scope: Scope, depth: int) -> tuple[Stmt, ...]:
    return tuple(draw(statements(scope, depth)) for _ in range(draw(st.integers(0, 3))))


@st.composite
def kernels(draw: Draw) -> Kernel:
    args = (Arg("x", "f32", Var("n") * 2, "in"), Arg("y", "bf16", i64(8), "out"), Arg("h", "i64", Var("n"), "scratch"))
    return Kernel("k", args, ("n",), draw(bodies(Scope(), 2)))


@settings(max_examples=150, deadline=None)
@given(kernels())
def test_kernels_round_trip(kernel: Kernel) -> None:
    text = print_kernel(kernel)
    again = parse_kernel(text)
    assert again == kernel
    assert print_kernel(again) == text


@given(st.sampled_from(sorted(FLOATS)), st.floats(allow_subnormal=True))
def test_float_constants_are_exact(dtype: str, value: float) -> None:
    assert expr_again(Const(value, dtype)) is Const(value, dtype)


def expr_again(value: Expr) -> Expr:
    kernel = Kernel("k", (), (), (Let("t", value),))
    (let,) = parse_kernel(print_kernel(kernel)).body
    assert isinstance(let, Let)
    return let.value


@pytest.mark.parametrize("outer", INFIX)
@pytest.mark.parametrize("inner", INFIX)
def test_precedence(outer: str, inner: str) -> None:
    a, b, c = (Const(k, "i32") for k in (1, 2, 3))
    low, wide = (Op(name, (a, b), "bool" if name in COMPARE else "i32") for name in (inner, inner))
    for args in ((low, c), (c, wide)):
        e = Op(outer, args, "bool" if outer in COMPARE else args[0].dtype)
        assert expr_again(e) is e


def test_kernel_reads_well() -> None:
    i, n = Var("i"), Var("n")
    x = Load("x", (i * 2 + 1,), "f32")
    body = (
        If((i < n) & (i >= 1), (Store("y", (i,), op("max", (x - 1.0) * 0.5, -0.0), "add"),)),
        Let("t", op("select", i.eq(0), math.inf, x.cast("f64").cast("f32"))),
        Store("y", (i,), Var("t", "f32").bitcast("u32").bitcast("f32") + math.nan),
    )
    args = (Arg("x", "f32", n * 2, "in"), Arg("y", "f32", n, "out"))
    kernel = Kernel("k", args, ("n",), (Alloc("s", "bf16", (n, i64(8)), "global"), For(i, n, "grid", body)))
    assert print_kernel(kernel) == (
        "kernel k(in x: f32[n * 2], out y: f32[n]) params (n) {\n"
        "  global s: bf16[n, 8]\n"
        "  for grid i < n {\n"
        "    if i < n & i >= 1 {\n"
        "      y[i] += max((x[i * 2 + 1] - 1.0f32) * 0.5f32, -0.0f32)\n"
        "    }\n"
        "    let t = select(i == 0, inff32, f32(f64(x[i * 2 + 1])))\n"
        "    y[i] = bitcast@f32(bitcast@u32(t)) + nanf32\n"
        "  }\n"
        "}"
    )
    assert parse_kernel(print_kernel(kernel)) == kernel


def test_shared_expressions_stay_shared() -> None:
    """The text of an expression used twice at each of 60 levels is not 2**60 long, and neither is its depth a limit."""
    e: Expr = Load("x", (i64(0),), "f32")
    for _ in range(1500):
        e = Op("add", (Op("mul", (e, e), "f32"), e), "f32")
    kernel = Kernel("k", (Arg("x", "f32", i64(1), "in"),), (), (Let("t", e),))
    start = time.perf_counter()
    text = print_kernel(kernel)
    assert time.perf_counter() - start < 1
    assert parse_kernel(text) == kernel


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel k( {", r"line 1 of the text: found '\{'; expected one of in, out, inout, scratch"),
        ("kernel k() {\n  let t = u\n}", "line 2 of the text: found 'u'; expected a variable"),
        ("kernel k() {\n  let t = u[0]\n}", "expected a buffer"),
        ("kernel k() {\n  let t = max(1)\n}", "an operation of 1 operands, not max"),
        ("kernel k() {\n  let t = $1\n}", "a part that is defined above"),
        ("kernel k() {\n  let t = 1f7\n}", "expected a number of a known dtype"),
        ("kernel k() {\n  let t = 0.5\n}", "expected a number of a known dtype"),
        ("kernel k() {\n  for serial i < 3 bound 1.5 {\n  }\n}", "expected a number or none"),
        ("kernel k() {\n  for warp i < 3 {\n  }\n}", "one of serial, parallel"),
        ("kernel k() {\n  let t = ;\n}", "expected a token"),
        ("kernel k() {\n  let t = 1\n", "found 'the end'"),
        ("kernel k() {\n} more", "expected nothing more"),
        ("kernel k() {\n  3\n}", "expected a statement"),
        ("kernel k(in x: f7[3]) {\n}", "expected one of bool"),
        ("kernel k(out y: f32[1]) {\n  y[0] -= 1.0f32\n}", "expected one of =, "),
    ],
)
def test_what_is_not_a_kernel_is_refused(text: str, message: str) -> None:
    with pytest.raises(MalformedText, match=message):
        parse_kernel(text)


@settings(max_examples=50, deadline=None)
@given(kernels(), st.data())
def test_damaged_text_is_refused_or_read(kernel: Kernel, data: Draw) -> None:
    text = print_kernel(kernel)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.sampled_from(["", "(", "]", "{", "x", "0", "$", "="])) + text[at + 1 :]
    with contextlib.suppress(KernelforgeError):
        parse_kernel(damaged)


GRAPH = """graph (%0: f32[2,3], %1: f32[3], %2: ~f64[]) {
  const %3: f16[2] = [nan, -0.0]
  const %4: bool[3] = [True, False, True]
  const %5: f32[0,4] = []
  %6: f32[3] = multiply(%1, %1)  # /home/a b/model #1.py:12 in <lambda>
  %7: f32[3] = tanh(%6)  # model.py:3 in f, g, adjoint, adjoint
  %8: ~f64[] = full() {value=-inf, shape=(), dtype='f64'}
  return %7, %0
}"""


def test_graph_text() -> None:
    graph = parse_graph(GRAPH)
    assert print_graph(graph) == GRAPH
    assert graph.nodes[0].loc == Loc("/home/a b/model #1.py", 12, "<lambda>")
    assert next(n.loc for n in graph.nodes if n.prim.name == "tanh") == Loc("model.py", 3, "f, g", 2)
    assert graph.nodes[1].inputs[0] is graph.nodes[0].output
    assert graph.inputs[2].type.weak
    assert graph.consts[2][1].shape == (0, 4)


def test_inner_graphs() -> None:
    prim = ops.PRIMITIVES["tanh"]
    a, b = (Value(k, Type((2,), np.dtype(np.float32))) for k in (0, 1))
    inner = Graph((a,), (Node(prim, (a,), MappingProxyType({}), (b,), Loc("f.py", 3, "g")),), (b,))
    params = MappingProxyType(
        {"body": inner, "parts": (inner, (1, (2.5,), ())), "name": "it's", "rule": None, "on": True}
    )
    graph = Graph((a,), (Node(prim, (a,), params, (b,), Loc("f.py", 9, "f")),), (b,))
    text = print_graph(graph)
    again = parse_graph(text)
    assert print_graph(again) == text
    node = again.nodes[0]
    assert node.loc == Loc("f.py", 9, "f")
    assert node.params["parts"][1] == (1, (2.5,), ())
    assert node.params["name"] == "it's"
    assert node.params["rule"] is None
    assert node.params["on"] is True
    assert node.params["body"].nodes[0].loc == Loc("f.py", 3, "g")


parameters = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and a.hex() == b.hex()
    return type(a) is type(b) and bool(a == b)


@given(parameters)
def test_parameters_round_trip(value: Any) -> None:
    node = Node(ops.PRIMITIVES["tanh"], (), MappingProxyType({"p": value}), ())
    (again,) = parse_graph(print_graph(Graph((), (node,), ()))).nodes
    assert same(again.params["p"], value)


@given(st.sampled_from(sorted(FLOATS | INTEGERS | {"bool"})), st.binary(min_size=0, max_size=64))
def test_constants_round_trip(name: str, data: bytes) -> None:
    dtype = DTYPES[name]
    data = data[: len(data) // dtype.itemsize * dtype.itemsize]
    array = np.frombuffer(bytes(b & 1 for b in data) if name == "bool" else data, dtype)
    value = Value(0, Type(array.shape, dtype))
    text = print_graph(Graph((), (), (), ((value, array),)))
    (_, again) = parse_graph(text).consts[0]
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()


def test_long_constants_can_be_left_out() -> None:
    value = Value(0, Type((99,), np.dtype(np.int64)))
    graph = Graph((), (), (value,), ((value, np.arange(99)),))
    assert "= [...]" in print_graph(graph, longest=98)
    assert "98]" in print_graph(graph, longest=99)
    assert elements(np.arange(3)) == "[0, 1, 2]"
    with pytest.raises(MalformedText, match=r"found '\.\.\.'; expected an element"):
        parse_graph(print_graph(graph, longest=98))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "graph (%0: f32[2]) {\n  %1: f32[2] = tanh(%2)\n  return %1\n}",
            "line 2 .* found '%2'; expected a value",
        ),
        ("graph (%0: f32[2]) {\n  %0: f32[2] = tanh(%0)\n  return %0\n}", "not defined yet"),
        ("graph (%0: f32[2]) {\n  %1: f32[2] = tanh(%1)\n  return %1\n}", "inputs that are defined above"),
        ("graph (%0: f32[2]) {\n  %1: f32[2] = sinc(%0)\n  return %1\n}", "no primitive is named 'sinc'"),
        ("graph () {\n  %1: f32[] = full() {value=<Rule>}\n  return\n}", "a parameter that has a text form"),
        ("graph () {\n  const %1: f32[2] = [1.0]\n  return\n}", "expected 2 elements"),
        ("graph () {\n  const %1: f32[2] = [1.0, 2.0, 3.0]\n  return\n}", "expected 2 elements"),
        ("graph () {\n  return\n} x", "nothing more"),
        ("graph (%0: f32[2.5]) {\n  return\n}", "expected an extent"),
        ("graph (%0: f32[2])", r"expected '\{'"),
    ],
)
def test_what_is_not_a_graph_is_refused(text: str, message: str) -> None:
    with pytest.raises(KernelforgeError, match=message):
        parse_graph(text)
