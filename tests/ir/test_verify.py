"""Every rule of the verifier rejects what breaks it, naming the statement; well-formed text passes."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import numpy as np
import pytest

from kernelforge.errors import MalformedGraph, MalformedKernel
from kernelforge.ir import ops
from kernelforge.ir.build import apply, build
from kernelforge.ir.graph import Graph, Value
from kernelforge.ir.kernel import (
    ARITY,
    Alloc,
    Arg,
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
    i64,
)
from kernelforge.ir.parse import parse_graph, parse_kernel
from kernelforge.ir.types import Type
from kernelforge.ir.verify import OPERANDS, verify_graph, verify_kernel

F32 = np.dtype(np.float32)
i, n = Var("i", "i64", 8), Var("n")
X = Load("x", (i,), "f32")
ONE = Const(1.0, "f32")


def kernel(*body: Stmt) -> Kernel:
    args = (Arg("x", "f32", n, "in"), Arg("y", "f32", n, "out"), Arg("b", "bool", n, "out"))
    return Kernel("k", args, ("n",), body)


def nest(*body: Stmt) -> Kernel:
    return kernel(For(i, i64(8), "parallel", body))


def put(value: Expr, *index: Expr) -> Store:
    return Store("y", index or (i,), value)


GOOD = """
kernel gemm(in x: f32[64], out y: f32[64], scratch s: f32[n]) params (n) {
  global t: f32[n, 4]
  for grid g < n bound none {
    local c: f32[8]
    register total: f32[]
    register own: f32[8, 2]
    total[] = 0.0f32
    for group w < 8 {
      c[w] = x[w]
      for vector v < 2 {
        own[w, v] = c[w]
      }
    }
    for serial k < 8 {
      for group u < 8 {
        own[u, 0] += c[k] * total[]
      }
    }
    for group z < 8 {
      let a = own[z, 0]
      if z < 4 {
        y[z] max= a
      }
    }
  }
}
"""


def test_good_kernel_passes() -> None:
    verify_kernel(parse_kernel(GOOD))


def test_every_operation_has_its_operands() -> None:
    assert set(OPERANDS) == set(ARITY)


REJECTED: dict[str, tuple[Kernel, str]] = {
    "unknown variable": (nest(put(Var("t", "f32"))), "nothing is defined"),
    "variable of another bound": (nest(put(X, Var("i"))), r"Var\('i', 'i64', 8\) is defined"),
    "variable after its loop": (
        kernel(For(i, i64(8), "parallel", ()), For(Var("j"), n, "parallel", (put(X),))),
        "nothing is defined",
    ),
    "let after its scope": (nest(If(i < 3, (Let("t", X),)), put(Var("t", "f32"))), "nothing is defined"),
    "name twice": (nest(For(i, i64(8), "serial", ())), "i is defined twice"),
    "let hides a buffer": (nest(Let("x", X)), "x is defined twice"),
    "reserved name": (nest(Let("if", X)), "cannot be a name"),
    "no identifier": (nest(Let("a-b", X)), "cannot be a name"),
    "unknown buffer": (nest(put(Load("z", (i,), "f32"))), "buffer z is not known"),
    "buffer after its scope": (
        nest(If(i < 3, (Alloc("z", "f32", (), "register"),)), put(Load("z", (), "f32"))),
        "buffer z is not known",
    ),
    "rank": (nest(put(Load("x", (i, i), "f32"))), "1 dimensions and is given 2"),
    "store rank": (nest(Store("y", (), X)), "1 dimensions and is given 0"),
    "index dtype": (nest(put(Load("x", (Const(0, "i32"),), "f32"))), "is i32; expected i64"),
    "load dtype": (nest(put(Load("x", (i,), "f64"))), "taken for f64"),
    "store dtype": (nest(put(Const(1.0, "f64"))), "f64 is stored to y of f32"),
    "store to an input": (nest(Store("x", (i,), X)), "x is an input"),
    "store operator": (nest(Store("y", (i,), X, "sub")), "'sub' is not one of"),
    "store bool add": (nest(Store("b", (i,), Const(True, "bool"), "add")), "bool has no add"),
    "unknown operation": (nest(put(Op("sqr", (X,), "f32"))), "sqr does not take 1"),
    "arity": (nest(put(Op("add", (X,), "f32"))), "add does not take 1"),
    "operand dtypes": (nest(put(Op("add", (X, Const(1.0, "f64")), "f32"))), "are f32, f64"),
    "operand kind": (nest(put(Op("div", (i, i), "i64"))), "div is not defined for i64"),
    "result dtype": (nest(put(Op("lt", (X, ONE), "f32"))), "taken for f32"),
    "select condition": (nest(put(Op("select", (X, X, ONE), "f32"))), "expected bool"),
    "bitcast size": (nest(put(Op("bitcast", (Const(1.0, "f64"),), "f32"))), "cannot become f32"),
    "constant dtype": (nest(Let("t", Const(1, "i7"))), "no dtype i7"),
    "if condition": (nest(If(i, ())), "expected bool"),
    "loop extent": (kernel(For(i, Const(8, "i32"), "serial", ())), "are i64"),
    "loop kind": (kernel(For(i, i64(8), "warp", ())), "no loop kind"),  # type: ignore[arg-type]
    "vector extent": (kernel(For(Var("v"), n, "vector", ())), "vector loop is a constant"),
    "unroll extent": (kernel(For(Var("v"), n, "unroll", ())), "unroll loop is a constant"),
    "group extent": (kernel(For(Var("v"), n, "group", ())), "group loop is a constant"),
    "bound": (kernel(For(i, i64(9), "serial", ())), "below 8"),
    "grid inside serial": (
        kernel(For(i, i64(8), "serial", (Let("t", i64(1)), For(Var("g"), n, "grid", ())))),
        "inside grid loops only",
    ),
    "phases inside grid": (
        kernel(For(Var("g"), n, "grid", (For(i, i64(8), "serial", (For(Var("h"), n, "grid", ()),)),))),
        "inside grid loops only",
    ),
    "group inside vector": (
        kernel(For(i, i64(8), "vector", (For(Var("g"), i64(2), "group", ()),))),
        "not stand inside a vector",
    ),
    "alloc dtype": (nest(Alloc("s", "f8", (), "register")), "no dtype f8"),
    "alloc shape dtype": (nest(Alloc("s", "f32", (Const(1, "i32"),), "register")), "not i64"),
    "alloc shape constant": (nest(Alloc("s", "f32", (i,), "local")), "local buffer is constant"),
    "alloc negative": (nest(Alloc("s", "f32", (i64(-1),), "local")), "negative"),
    "alloc global inside": (nest(Alloc("s", "f32", (i64(1),), "global")), "at the top"),
    "statement at the top": (kernel(Let("t", n)), "at the top of a kernel stand loops"),
    "size of an argument": (
        Kernel("k", (Arg("x", "f32", Load("x", (i64(0),), "i64"), "in"),), (), ()),
        "size of x is not",
    ),
    "mode of an argument": (Kernel("k", (Arg("x", "f32", n, "over"),), ("n",), ()), "has mode over"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REJECTED)
def test_kernel_is_rejected(name: str) -> None:
    made, message = REJECTED[name]
    with pytest.raises(MalformedKernel, match=message):
        verify_kernel(made)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("total[] = 0.0f32", "y[g] = 0.0f32", "y is stored to outside of the group loops"),
        ("own[w, v] = c[w]", "own[0, v] = c[w]", "work-items share no registers"),
        ("for group u < 8", "for group u < 4", "work-items share no registers"),
        ("total[] = 0.0f32", "total[] = own[0, 0]", "work-items share no registers"),
        ("own[u, 0] += c[k]", "total[] += c[k]", "work-items share no registers"),
    ],
)
def test_work_items_write_what_is_theirs(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(MalformedKernel, match=message):
        verify_kernel(parse_kernel(GOOD.replace(old, new)))


def test_message_names_the_statement() -> None:
    with pytest.raises(MalformedKernel, match=r"kernel k: in 'y\[i\] = x\[i, i\]': x has 1"):
        verify_kernel(REJECTED["rank"][0])


def graph() -> Graph:
    assert "multiply" in ops.PRIMITIVES
    return build(lambda a, b: [apply("tanh", a * b)], [Type((3,), F32), Type((3,), F32)])


def test_good_graph_passes() -> None:
    verify_graph(graph())


def test_graph_is_rejected() -> None:
    good = graph()
    multiply, tanh = good.nodes
    replace = dataclasses.replace
    stray = Value(9, Type((3,), F32))
    wrong = Value(2, Type((4,), F32))
    array = np.zeros(2)
    cases = [
        (replace(good, nodes=(tanh, multiply)), r"%2 is used by %3: f32\[3\] = tanh\(%2\) before"),
        (replace(good, nodes=(multiply,)), "%3 is used by return before"),
        (replace(good, outputs=(stray,)), "%9 is used by return before"),
        (replace(good, nodes=(multiply, multiply)), "%2 is defined twice"),
        (replace(good, consts=((good.inputs[0], array),)), "%0 is defined twice, again by a constant"),
        (replace(good, consts=((stray, array),)), r"the constant %9: f32\[3\] holds float64"),
        (replace(good, nodes=(replace(multiply, outputs=(wrong,)), tanh)), r"type rule gives f32\[3\]"),
        (
            replace(good, nodes=(replace(multiply, params=MappingProxyType({"axis": 0})), tanh)),
            r"are \['axis'\]; expected \[\]",
        ),
        (replace(good, nodes=(replace(multiply, inputs=multiply.inputs[:1]), tanh)), "multiply"),
        (replace(good, nodes=(replace(multiply, prim=replace(multiply.prim)), tanh)), "not the one of that name"),
    ]
    for bad, message in cases:
        with pytest.raises(MalformedGraph, match=message):
            verify_graph(bad)


def test_inner_graphs_are_checked() -> None:
    text = """graph (%0: bool[], %1: f32[2]) {
  %2: f32[2] = cond(%0, %1) {true=graph (%0: f32[2]) {
    %1: f32[2] = tanh(%0)
    return %1
  }, false=graph (%0: f32[2]) {
    %1: f32[2] = tanh(%0)
    return %1
  }}
  return %2
}"""
    if "cond" not in ops.PRIMITIVES:
        pytest.skip("the control primitives are not registered")
    verify_graph(parse_graph(text))
    with pytest.raises(MalformedGraph, match=r"type rule gives f32\[2\]"):
        verify_graph(parse_graph(text.replace("%1: f32[2] = tanh(%0)", "%1: f32[3] = tanh(%0)", 1)))
