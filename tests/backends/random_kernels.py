"""Random kernels whose loops keep their promises, to compare a printer with the interpreter.

In a vector loop, what is written is only touched at elements of the iteration's own residue class, so iterations are
independent by construction. No sum of floats is combined across lanes, so results must be equal.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES
from kernelforge.ir.kernel import (
    Alloc,
    Arg,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    Var,
    i64,
    op,
    select,
)

ELEMENTS = 64


@dataclasses.dataclass(frozen=True)
class Scope:
    """What may be used at a point: loop variables, values, buffers that are written, and the vector loop around it."""

    loops: tuple[Var, ...] = ()
    lets: tuple[Expr, ...] = ()
    buffers: tuple[tuple[str, int], ...] = (("y", ELEMENTS),)
    lane: Var | None = None
    backwards: bool = False


class RandomKernel:
    """A kernel over x, k (indices), y and acc, and arguments for it, made from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = 0
        self.dtype = self.random.choice(["i32", "i64", "u8", "f32"])
        self.lanes = self.random.choice([4, 8, 16])
        args = (
            Arg("x", self.dtype, i64(ELEMENTS), "in"),
            Arg("k", "i64", i64(ELEMENTS), "in"),
            Arg("y", self.dtype, i64(ELEMENTS), "out"),
            Arg("acc", self.dtype, i64(4), "out"),
        )
        self.kernel = Kernel(f"random{seed}", args, ("n",), self.body(Scope(), 4, 4))
        rng = np.random.default_rng(seed)
        self.arrays: dict[str, np.ndarray[Any, Any]] = {
            "x": rng.integers(0, 9, ELEMENTS).astype(DTYPES[self.dtype]),
            "k": rng.integers(0, ELEMENTS, ELEMENTS),
            "y": rng.integers(0, 9, ELEMENTS).astype(DTYPES[self.dtype]),
            "acc": np.ones(4, DTYPES[self.dtype]),
        }
        self.params = {"n": int(rng.integers(0, 4))}

    def name(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    def pick(self, scope: Scope, most: int) -> list[Var]:
        return self.random.sample(scope.loops, min(len(scope.loops), self.random.randrange(most + 1)))

    def index(self, scope: Scope, size: int) -> Expr:
        """Make any index in range."""
        e: Expr = i64(self.random.randrange(size))
        for v in self.pick(scope, 2):
            e = e + v * self.random.choice([1, 2, 3, -1, 8])
        if self.random.random() < 0.2:
            e = e // self.random.choice([2, 3])
        if self.random.random() < 0.15:
            e = e + Load("k", (op("mod", e, ELEMENTS),), "i64")
        return op("mod", e, size)

    def own(self, scope: Scope, size: int) -> Expr:
        """Make an index of a buffer that is written."""
        if scope.lane is None:
            return self.index(scope, size)
        block: Expr = i64(self.random.randrange(size // self.lanes))
        for v in self.pick(scope, 1):
            block = block if v is scope.lane else op("mod", block + v, size // self.lanes)
        return block * self.lanes + (self.lanes - 1 - scope.lane if scope.backwards else scope.lane)

    def value(self, scope: Scope, depth: int) -> Expr:
        chance = self.random.random()
        if depth == 0 or chance < 0.3:
            return self.leaf(scope)
        if chance < 0.75:
            name = self.random.choice(["add", "sub", "mul", "min", "max"])
            return op(name, self.value(scope, depth - 1), self.value(scope, depth - 1))
        if chance < 0.95:
            return select(self.condition(scope, depth - 1), self.value(scope, depth - 1), self.value(scope, depth - 1))
        return op("mod", op("abs", self.value(scope, depth - 1)), 7) if self.dtype != "f32" else self.leaf(scope)

    def leaf(self, scope: Scope) -> Expr:
        chance = self.random.random()
        if chance < 0.35:
            return Load("x", (self.index(scope, ELEMENTS),), self.dtype)
        if chance < 0.7:
            name, size = self.random.choice(scope.buffers)
            return Load(name, (self.own(scope, size),), self.dtype)
        if chance < 0.8 and scope.lets:
            return self.random.choice(scope.lets)
        if chance < 0.9 and scope.loops:
            return self.random.choice(scope.loops).cast(self.dtype)
        return Const(self.random.randrange(9), self.dtype)

    def condition(self, scope: Scope, depth: int) -> Expr:
        if scope.loops and self.random.random() < 0.6:
            name = self.random.choice(["lt", "ge", "eq", "ne"])
            return op(name, self.random.choice(scope.loops), i64(self.random.randrange(8)))
        return op(self.random.choice(["lt", "gt", "eq"]), self.value(scope, depth), self.value(scope, depth))

    def body(self, scope: Scope, depth: int, count: int = 0) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for _ in range(count or self.random.randrange(1, 4)):
            chance = self.random.random()
            if chance < 0.15:
                name = self.name("t")
                out.append(Let(name, self.value(scope, 2)))
                scope = dataclasses.replace(scope, lets=(*scope.lets, Var(name, self.dtype)))
            elif chance < 0.25 and depth:
                name, size = self.name("m"), self.random.choice([16, 32])
                out += self.filled(name, size, scope)
                scope = dataclasses.replace(scope, buffers=(*scope.buffers, (name, size)))
            elif chance < 0.55 or not depth:
                name, size = self.random.choice(scope.buffers)
                combine = self.random.choice(["", "", "add", "max", "mul", "min"])
                out.append(Store(name, (self.own(scope, size),), self.value(scope, 3), combine))
            elif chance < 0.7:
                out.append(If(self.condition(scope, 1), self.body(scope, depth - 1)))
            elif chance < 0.85 or scope.lane is not None:
                out.append(self.loop(scope, depth))
            else:
                out.append(self.vector(scope, depth))
        return tuple(out)

    def filled(self, name: str, size: int, scope: Scope) -> list[Stmt]:
        var = Var(self.name("z"), bound=size)
        kind = self.random.choice(["serial", "unroll"] if scope.lane is not None else ["serial", "unroll", "vector"])
        fill = For(var, i64(size), kind, (Store(name, (var,), var.cast(self.dtype)),))  # type: ignore[arg-type]
        space = self.random.choice(["register", "local"])
        return [Alloc(name, self.dtype, (i64(size),), space), fill]  # type: ignore[arg-type]

    def loop(self, scope: Scope, depth: int) -> For:
        extent = self.random.choice([1, 2, 3, 5])
        kind = self.random.choice(["serial", "unroll"])
        known = kind == "unroll" or self.random.random() < 0.7
        var = Var(self.name("i"), bound=extent if known else None)
        body = self.body(dataclasses.replace(scope, loops=(*scope.loops, var)), depth - 1)
        return For(var, i64(extent) if known else Var("n"), kind, body)  # type: ignore[arg-type]

    def vector(self, scope: Scope, depth: int) -> For:
        var = Var(self.name("v"), bound=self.lanes)
        inner = dataclasses.replace(scope, loops=(*scope.loops, var), lane=var, backwards=self.random.random() < 0.25)
        body = self.body(inner, depth - 1)
        if self.random.random() < 0.3:
            exact = [] if self.dtype == "f32" else ["add", "mul"]
            element = (i64(self.random.randrange(4)),)
            body = (*body, Store("acc", element, self.value(inner, 2), self.random.choice(["max", "min", *exact])))
        return For(var, i64(self.lanes), "vector", body)
