"""Random graphs, and comparison to the bit: what passes are tested with."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES
from kernelforge.ir.build import Sym, apply, build
from kernelforge.ir.graph import Graph
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.types import Type

Array = np.ndarray[Any, Any]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, np.nan, np.inf]
SHAPES = [(3, 4), (4, 3), (1, 4), (3, 1), (4,), (2, 3, 2), (7, 5), (), (1, 1), (0, 3)]
INPUTS = ["f32", "f32", "i32", "bool", "f16", "f64"]
UNARY = ["negative", "absolute", "floor", "sign", "stop_gradient", "barrier"]
BINARY = ["add", "subtract", "multiply", "divide", "maximum", "minimum", "less"]

MIXED = ["unary", "binary", "binary", "binary", "where", "cast", "view", "view", "view", "reduce", "power"]
VIEWS = ["view", "view", "view", "view", "view", "unary"]


def array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Make elements whose sums and products are exact, and special ones."""
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    whole = np.asarray(rng.integers(-4, 5, shape))
    if dtype[0] == "i":
        return np.asarray(whole, DTYPES[dtype])
    special = rng.choice(np.array([-0.0, np.inf, -np.inf, np.nan]), shape)
    return np.where(rng.random(shape) < 0.25, special, whole / 2).astype(DTYPES[dtype])


class _Maker:
    def __init__(self, rng: random.Random, syms: list[Sym], kinds: list[str]) -> None:
        self.rng = rng
        self.syms = syms
        self.kinds = kinds

    def any(self, test: Callable[[Sym], bool] = lambda s: True) -> Sym:
        """Choose a value, often a recent one, so that operations follow each other."""
        found = [s for s in self.syms if test(s)]
        return self.rng.choice(found[-4:] if self.rng.random() < 0.6 else found)

    def like(self, x: Sym) -> Sym:
        """Return an operand for ``x``: a constant, a repeated value or any of the same type."""
        kind = self.rng.random()
        if kind < 0.4:
            value: float = self.rng.choice(FLOATS) if x.dtype.kind == "f" else self.rng.choice([0, 1])
            return apply("full", value=value, shape=x.shape, dtype=x.type.name)  # type: ignore[no-any-return]
        return self.any(lambda s: (s.shape, s.dtype) == (x.shape, x.dtype))

    def step(self) -> Sym:
        choice = self.rng.choice
        x = self.any()
        number = x.dtype.kind != "b"
        match choice(self.kinds):
            case "unary":
                names = UNARY if x.dtype.kind == "f" else ["stop_gradient", "barrier", "invert"]
                return apply(choice(names), x)  # type: ignore[no-any-return]
            case "binary":
                names = [b for b in BINARY if x.dtype.kind == "f" or b != "divide"]
                names = names if number else ["bitwise_and", "bitwise_or", "equal"]
                pair = [x, self.like(x)]
                self.rng.shuffle(pair)
                return apply(choice(names), *pair)  # type: ignore[no-any-return]
            case "where":
                condition = x.broadcast(x.shape) if x.dtype.kind == "b" else apply("equal", x, self.like(x))
                y = self.any(lambda s: s.shape == condition.shape)
                return apply("where", condition, y, self.like(y))  # type: ignore[no-any-return]
            case "cast":
                whole = number and x.dtype.kind != "f"
                return x.astype(
                    choice(["i64", "f32", "f64", "bool", "i8"] if whole or not number else ["f32", "f64", "f16"])
                )
            case "power" if x.dtype.kind == "f":
                value = choice([0.0, 1.0, 2.0, -1.0])
                return apply("power", x, apply("full", value=value, shape=x.shape, dtype=x.type.name))  # type: ignore[no-any-return]
            case "reduce" if x.ndim and x.size:
                axes = tuple(a for a in range(x.ndim) if self.rng.random() < 0.6)
                return apply(choice(["sum", "max"]) if number else "max", x, axes=axes)  # type: ignore[no-any-return]
            case _:
                return self.view(x)

    def view(self, x: Sym) -> Sym:
        choice, flip = self.rng.choice, self.rng.random
        match choice(["broadcast", "reshape", "transpose", "slice", "flip", "pad", "concatenate", "place"]):
            case "broadcast":
                shape = tuple(3 if n == 1 and flip() < 0.5 else n for n in x.shape)
                return apply("broadcast", x, shape=(2, *shape) if x.ndim < 3 and flip() < 0.5 else shape)  # type: ignore[no-any-return]
            case "reshape":
                return apply("reshape", x, shape=choice([(x.size,), x.shape[::-1], (1, *x.shape), x.shape]))  # type: ignore[no-any-return]
            case "transpose":
                return apply("transpose", x, axes=tuple(self.rng.sample(range(x.ndim), x.ndim)))  # type: ignore[no-any-return]
            case "slice":
                starts = tuple(choice([0, n // 2]) for n in x.shape)
                stops = tuple(choice([n, (n + a + 1) // 2]) for a, n in zip(starts, x.shape, strict=True))
                return apply("slice", x, starts=starts, stops=stops, steps=tuple(choice([1, 2]) for _ in starts))  # type: ignore[no-any-return]
            case "flip":
                return apply("flip", x, axes=tuple(a for a in range(x.ndim) if flip() < 0.7))  # type: ignore[no-any-return]
            case "pad":
                value = apply("full", value=0, shape=(), dtype=x.type.name)
                low, high, interior = (tuple(choice([0, 0, 1]) for _ in x.shape) for _ in range(3))
                return apply("pad", x, value, low=low, high=high, interior=interior)  # type: ignore[no-any-return]
            case "concatenate" if x.ndim:
                return apply("concatenate", x, self.like(x), axis=choice(range(x.ndim)))  # type: ignore[no-any-return]
            case _:
                starts = tuple(0 for _ in x.shape)
                return apply("place", x, self.like(x), starts=starts, steps=tuple(1 for _ in x.shape))  # type: ignore[no-any-return]


def random_graph(seed: int, nodes: int = 24) -> tuple[Graph, list[Array]]:
    """Make a graph and inputs for it; in every other graph all values are outputs, else only the last.

    Every third graph is mostly of views.
    """
    rng = random.Random(seed)
    kinds = [(rng.choice(SHAPES), dtype) for dtype in INPUTS for _ in range(2)]

    def fn(*syms: Sym) -> list[Sym]:
        maker = _Maker(rng, list(syms), VIEWS if seed % 3 == 2 else MIXED)
        for _ in range(nodes):
            made = maker.step()
            if made.size <= 512:
                maker.syms.append(made)
        return maker.syms[len(kinds) :] if seed % 2 else maker.syms[-4:]

    graph = build(fn, [Type(shape, DTYPES[dtype]) for shape, dtype in kinds])
    values = np.random.default_rng(seed)
    return graph, [array(values, shape, dtype) for shape, dtype in kinds]


def same_bits(before: Graph, after: Graph, inputs: list[Array]) -> None:
    """Compare the results of two graphs: all bits but those of a NaN."""
    for b, a in zip(run_graph(before, inputs), run_graph(after, inputs), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
        if b.dtype.kind == "f":
            numbers = ~np.isnan(b)
            np.testing.assert_array_equal(np.signbit(a[numbers]), np.signbit(b[numbers]))
