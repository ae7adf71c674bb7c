"""What the rewriting rules make of small graphs, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernelforge.dtypes import DTYPES
from kernelforge.ir.build import Sym, apply, build, full
from kernelforge.ir.graph import Graph, Value
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.passes.pipeline import optimize
from kernelforge.ir.types import Type
from tests.ir.passes.random_graphs import array


def show(graph: Graph) -> str:
    """Spell the outputs as nested calls; views without their parameters."""
    names = dict(zip(graph.inputs, "xyzw", strict=False))
    made = {v: n for n in graph.nodes for v in n.outputs}

    def spell(value: Value) -> str:
        node = made.get(value)
        if node is None:
            return names.get(value, "const")
        if node.prim.name == "full":
            return f"{node.params['value']}"
        if node.prim.name == "cast":
            return f"{node.params['dtype']}({spell(node.inputs[0])})"
        return f"{node.prim.name}({', '.join(map(spell, node.inputs))})"

    return "; ".join(map(spell, graph.outputs))


def types(*specs: str) -> list[Type]:
    made = []
    for spec in specs:
        dtype, _, shape = spec.partition(":")
        made.append(Type(tuple(int(n) for n in shape.split("x") if n), DTYPES[dtype]))
    return made


def constant(value: float, like: Sym) -> Sym:
    return full(value, like)


def window(x: Sym, sizes: tuple[int, ...], strides: tuple[int, ...]) -> Sym:
    return apply("window", x, axes=(0, 1), sizes=sizes, strides=strides, dilations=(1, 1))  # type: ignore[no-any-return]


def contract(x: Sym, y: Sym, formula: str) -> Sym:
    operands, out = formula.split("->")
    a, b, c = (tuple(map(ord, o)) for o in (*operands.split(","), out))
    return apply("contract", x, y, x_axes=a, y_axes=b, out_axes=c)  # type: ignore[no-any-return]


F, N, B = "f32:3x4", "i32:3x4", "bool:3x4"
Fn = Callable[..., Any]
REWRITES: list[tuple[Fn, list[str], str]] = [
    (lambda x: x + constant(-0.0, x), [F], "x"),
    (lambda x: x + constant(0.0, x), [F], "add(x, 0.0)"),
    (lambda x: x + constant(0, x), [N], "x"),
    (lambda x: x - constant(0.0, x), [F], "x"),
    (lambda x: x - constant(-0.0, x), [F], "subtract(x, -0.0)"),
    (lambda x: constant(-0.0, x) - x, [F], "negative(x)"),
    (lambda x: constant(0.0, x) - x, [F], "subtract(0.0, x)"),
    (lambda x: constant(1.0, x) * x, [F], "x"),
    (lambda x: x * constant(-1.0, x), [F], "negative(x)"),
    (lambda x: x * constant(0.0, x), [F], "multiply(x, 0.0)"),
    (lambda x: x * constant(0, x), [N], "0"),
    (lambda x: -x * constant(3.0, x), [F], "multiply(x, -3.0)"),
    (lambda x: -(x * constant(3.0, x)), [F], "multiply(x, -3.0)"),
    (lambda x: x / constant(8.0, x), [F], "multiply(x, 0.125)"),
    (lambda x: x / constant(6.0, x), [F], "divide(x, 6.0)"),
    (lambda x: x / constant(2.0**127, x), [F], f"divide(x, {2.0**127})"),
    (lambda x: apply("negative", -x), [F], "x"),
    (lambda x, y: x + -y, [F, F], "subtract(x, y)"),
    (lambda x, y: x - -y, [F, F], "add(x, y)"),
    (lambda x, y: -(x - y), [F, F], "negative(subtract(x, y))"),
    (lambda x: apply("absolute", apply("absolute", -x)), [F], "absolute(x)"),
    (lambda x: apply("power", x, constant(2.0, x)), [F], "multiply(x, x)"),
    (lambda x: apply("power", x, constant(3.0, x)), [F], "multiply(multiply(x, x), x)"),
    (lambda x: apply("power", x, constant(-1.0, x)), [F], "divide(1.0, x)"),
    (lambda x: apply("power", x, constant(0.0, x)), [F], "1"),
    (lambda x: apply("power", x, constant(0.5, x)), [F], "power(x, 0.5)"),
    (lambda x: ~(~x), [B], "x"),
    (lambda x: x & constant(True, x), [B], "x"),
    (lambda x: x | constant(True, x), [B], "True"),
    (lambda x, y: apply("where", ~x, y, constant(0.0, y)), [B, F], "where(x, 0.0, y)"),
    (lambda x, y: apply("where", x, y, y), [B, F], "y"),
    (lambda x: apply("stop_gradient", x), [F], "x"),
    (lambda x: apply("barrier", x), [F], "barrier(x)"),
    (lambda x: x.astype("f64").astype("f32"), [F], "x"),
    (lambda x: x.astype("f16").astype("f32"), [F], "f32(f16(x))"),
    (lambda x: x.astype(np.int8).astype("i32").astype("i64"), [N], "i64(i8(x))"),
    (lambda x: apply("bitcast", apply("bitcast", x, dtype="i32"), dtype="f32"), [F], "x"),
    (lambda x: x.transpose((1, 0)).transpose((1, 0)), [F], "x"),
    (lambda x: x.transpose((1, 0)), ["f32:1x4"], "reshape(x)"),
    (lambda x: x.reshape((12,)).reshape((2, 6)), [F], "reshape(x)"),
    (lambda x: x.reshape((1, 4)).broadcast((3, 4)), ["f32:4"], "broadcast(x)"),
    (lambda x: x.broadcast((3, 4)).broadcast((2, 3, 4)), ["f32:4"], "broadcast(x)"),
    (lambda x: apply("flip", apply("flip", x, axes=(0, 1)), axes=(0,)), [F], "flip(x)"),
    (lambda x: apply("flip", apply("flip", x, axes=(0,)), axes=(0,)), [F], "x"),
    (lambda x: x.sum((0,)).sum((0,)), [F], "sum(x)"),
    (lambda x: x.sum((0,)).sum((0,)), ["f16:3x4"], "sum(sum(x))"),
    (lambda x: x.sum((0,)), ["i32:1x4"], "reshape(x)"),
    (lambda x: x.sum((0,)), ["f32:1x4"], "add(reshape(x), 0.0)"),
    (
        lambda x: apply("concatenate", x, y := apply("concatenate", x, x, axis=0), y, axis=0),
        [F],
        "concatenate(x, x, x, x, x)",
    ),
    (lambda x: x.broadcast((3, 4)) * constant(3.0, x.broadcast((3, 4))), ["f32:4"], "broadcast(multiply(x, 3.0))"),
    (
        lambda x, y: x.broadcast((3, 4)) * y.broadcast((3, 4)),
        ["f32:4", "f32:3x1"],
        "multiply(broadcast(x), broadcast(y))",
    ),
    (lambda x, y: contract(x.transpose((1, 0)), y, "ij,jk->ik"), ["f32:4x3", "f32:4x5"], "contract(x, y)"),
    (lambda x, y: contract(x, y, "ij,jk->ik").transpose((1, 0)), ["f32:3x4", "f32:4x5"], "contract(x, y)"),
    (
        lambda x, y: contract(x, y, "ij,jk->ik").reshape((3, 1, 5)).transpose((2, 1, 0)),
        ["f32:3x4", "f32:4x5"],
        "reshape(contract(x, y))",
    ),
    (
        lambda x, y: contract(x, y, "ij,jk->ik").reshape((5, 3)).transpose((1, 0)),
        ["f32:3x4", "f32:4x5"],
        "transpose(reshape(contract(x, y)))",
    ),
    (lambda x, y: contract(x, y.broadcast((2, 4, 5)), "bij,bjk->bik"), ["f32:2x3x4", "f32:4x5"], "contract(x, y)"),
    (
        lambda x, y: contract(x, y.broadcast((2, 4, 5)), "bij,bjk->bik"),
        ["f32:2x3x4", "f32:1x4x5"],
        "contract(x, reshape(y))",
    ),
    (lambda x, y: contract(x, y.broadcast((4, 5)), "ij,jk->ik"), ["f32:3x4", "f32:5"], "contract(x, broadcast(y))"),
    (lambda x, y: contract(x.broadcast((3, 4)), y, "ij,jk->ik"), ["f32:4", "f32:4x5"], "broadcast(contract(x, y))"),
    (
        lambda x, y: contract(x, y.broadcast((4, 5)), "ij,jk->ik"),
        ["f32:3x4", "f32:4x1"],
        "broadcast(reshape(contract(x, reshape(y))))",
    ),
    (
        lambda x, y: contract(x.broadcast((3, 4)), y, "ij,k->kij"),
        ["f32:4", "f32:5"],
        "add(multiply(broadcast(x), broadcast(reshape(y))), 0.0)",
    ),
    (
        lambda x: contract(x, constant(0.5, x.transpose((1, 0))), "ij,jk->ki"),
        ["f16:3x4"],
        "broadcast(contract(x, 0.5))",
    ),
    (lambda x: contract(constant(2.0, x), x, "bij,bjk->bik"), ["f32:2x4x4"], "broadcast(reshape(contract(2.0, x)))"),
    (lambda x: x.broadcast((3, 4)).sum((0,)), ["f32:4"], "add(multiply(x, 3.0), 0.0)"),
    (lambda x: x.broadcast((3, 4)).sum((0, 1)), ["f32:4"], "multiply(sum(x), 3.0)"),
    (lambda x: x.broadcast((2, 3, 4)).sum((0, 2)), ["f32:3x1"], "add(multiply(reshape(x), 8.0), 0.0)"),
    (lambda x: x.broadcast((2, 3, 4)).sum((0,)), ["f32:3x1"], "broadcast(add(multiply(x, 2.0), 0.0))"),
    (lambda x: x.broadcast((3, 4)).sum((0,)), ["f16:4"], "sum(broadcast(x))"),
    (lambda x: apply("max", x.broadcast((3, 4)), axes=(0,)), ["i8:4"], "x"),
    (lambda x: apply("prod", x.broadcast((3, 4)), axes=(0,)), ["f32:4"], "prod(broadcast(x))"),
    (lambda x: window(x, (1, 1), (1, 1)), ["f32:3x4"], "reshape(x)"),
    (lambda x: window(x, (1, 1), (1, 2)), ["f32:3x4"], "window(x)"),
    (lambda x: x + apply("cast", apply("cast", x, dtype="i64"), dtype="i8"), ["i8:4"], "add(x, x)"),
    (lambda x: x + apply("cast", apply("cast", x, dtype="u64"), dtype="u8"), ["u8:4"], "add(x, x)"),
    (lambda x: apply("exp", constant(0.0, x)) + x, [F], "add(1.0, x)"),
    (lambda x: x + apply("sin", constant(1.0, x) + constant(2.0, x)), [F], f"add(x, {float(np.sin(np.float32(3)))})"),
]


@pytest.mark.parametrize(("fn", "specs", "want"), REWRITES, ids=[w for _, _, w in REWRITES])
def test_rewrites(fn: Fn, specs: list[str], want: str) -> None:
    graph = build(lambda *xs: (fn(*xs),), types(*specs))
    after = optimize(graph, verify=True)
    assert show(after) == want
    rng = np.random.default_rng(0)
    inputs = [array(rng, v.type.shape, v.type.name) for v in graph.inputs]
    for a, b in zip(run_graph(graph, inputs), run_graph(after, inputs), strict=True):
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-6)
