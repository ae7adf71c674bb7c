"""The meaning of both levels, run by NumPy: what every backend and every pass is tested against.

A kernel is run with *lanes*: iterations that are independent are evaluated together, one array element each, and an
``If`` or a lazy ``select`` goes on with the lanes that took it. The lanes are kept in the order of the serial program.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES, FLOATS, NARROW_FLOATS
from kernelforge.errors import MalformedGraph, MalformedKernel, OutOfRange
from kernelforge.ir.graph import Graph, Value
from kernelforge.ir.kernel import (
    Alloc,
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
    exprs,
    stmts,
    walk,
)
from kernelforge.ir.repeat import repeats
from kernelforge.ir.tables import TABLES, table
from kernelforge.ir.types import Type

Array = np.ndarray[Any, Any]

MOST_LANES = 1 << 15
"""Lanes evaluated together; more are run in turn, so that temporaries stay in the cache."""


def run_graph(graph: Graph, inputs: Sequence[Array]) -> list[Array]:
    """Evaluate a graph by the NumPy rules of its primitives.

    Raises:
        MalformedGraph: when the inputs are not of the graph's types.
    """
    found = [Type(a.shape, a.dtype) for a in inputs]
    wanted = [dataclasses.replace(v.type, weak=False) for v in graph.inputs]
    if found != wanted:
        raise MalformedGraph(problem=f"inputs are {', '.join(map(str, found))}; expected {', '.join(map(str, wanted))}")
    values: dict[Value, Array] = dict(zip(graph.inputs, inputs, strict=True))
    values.update(graph.consts)
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            made = node.prim.numpy([values[v] for v in node.inputs], node.params)
            values.update(zip(node.outputs, made, strict=True))
    return [values[v] for v in graph.outputs]


def _fma(a: float, b: float, c: float) -> float:
    """Compute a*b + c with one rounding."""
    plain = a * b + c
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return plain
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if not exact:
        return plain  # the sign of a zero is right without the exact sum
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _elements(fn: Callable[..., float], arity: int) -> Callable[..., Array]:
    each = np.frompyfunc(fn, arity, 1)

    def run(*xs: Array) -> Array:
        return np.asarray(each(*(x.astype(np.float64) for x in xs)), np.float64)

    return run


def _wide_fma(a: Array, b: Array, c: Array) -> Array:
    if a.dtype == np.float64:
        return _elements(_fma, 3)(a, b, c)
    # the product of two f32 is exact in f64; rounding the sum to odd makes the second rounding the only one
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = (np.asarray(total).view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    rounded = np.where((error != 0) & np.isfinite(error) & even, np.nextafter(total, toward), total)
    return np.asarray(rounded)


def _mul_error(x: Array, y: Array) -> Array:
    return _wide_fma(x, y, -(x * y))


def _scaleb(x: Array, n: Array) -> Array:
    return np.asarray(np.ldexp(x, np.clip(np.nan_to_num(np.floor(n)), -9999, 9999).astype(np.int32)))


def _look_up(name: str, x: Array) -> Array:
    numbers = np.array(table(name, "f32" if x.dtype == np.float32 else "f64"), x.dtype)
    return np.asarray(numbers[np.asarray(x).view(f"u{x.dtype.itemsize}") % len(numbers)])


def tf32(x: Array) -> Array:
    """Round f32 to 10 bits of mantissa, a tie away from zero, as ``cvt.rna.tf32.f32`` of the PTX ISA."""
    rounded = ((np.asarray(x).view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isnan(x), x, rounded)


MEANING: dict[str, Callable[..., Any]] = {
    "neg": np.negative, "abs": np.abs, "not": np.invert, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil,
    "trunc": np.trunc, "rint": np.rint, "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "floordiv": np.floor_divide, "mod": np.remainder, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "exp": np.exp,
    "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "erf": _elements(math.erf, 1), "erfc": _elements(math.erfc, 1), "cbrt": np.cbrt, "atan2": np.arctan2,
    "pow": np.power, "fmod": np.fmod, "fma": _wide_fma, "scaleb": _scaleb, "unlikely": np.asarray,
    "mad": lambda x, y, z: x * y + z, "mul_error": _mul_error,
    "tf32": tf32, **{name: functools.partial(_look_up, name) for name in TABLES},
}  # fmt: skip
"""What each operation of ``kernelforge.ir.kernel.ARITY`` computes, but for ``select``, ``cast`` and ``bitcast``."""

COMBINE: dict[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
"""What a Store with this ``op`` does."""


def _apply(name: str, args: Sequence[Array], dtype: str) -> Array:
    """Apply one operation with one rounding; narrow floats are computed in f32, as NumPy does."""
    if name == "cast":
        return args[0].astype(DTYPES[dtype])
    if name == "bitcast":
        return np.ascontiguousarray(args[0]).reshape(args[0].shape).view(DTYPES[dtype])
    if args[0].dtype in _NARROW:
        args = [a.astype(np.float32) for a in args]
    return np.asarray(MEANING[name](*args)).astype(DTYPES[dtype], copy=False)


_NARROW = tuple(DTYPES[name] for name in NARROW_FLOATS)


def folded(e: Expr) -> Expr:
    """Return what an operation of constants is, and a condition without its parts that are; else ``e``.

    What devices may round otherwise (``mad``, functions of ``kernelforge.ir.math.BOUNDS``) is not for this.
    """
    if not isinstance(e, Op) or e.op in ("select", "mad"):
        return e
    known = [isinstance(x, Const) for x in e.args]
    if all(known):
        with np.errstate(all="ignore"):
            made = _apply(e.op, [np.asarray(x.value, DTYPES[x.dtype]) for x in e.args if isinstance(x, Const)], e.dtype)
        return Const(made.item(), e.dtype)
    if e.op in ("and", "or") and e.dtype == "bool" and any(known):
        constant, other = e.args if known[0] else e.args[::-1]
        assert isinstance(constant, Const)
        return other if constant.value == (e.op == "and") else constant
    return e


@dataclasses.dataclass(frozen=True, slots=True)
class _Buffer:
    """Flat storage of one instance per lane; ``base`` is where the instance of each lane begins."""

    data: Array
    shape: tuple[int, ...]
    base: Array


@dataclasses.dataclass(frozen=True, slots=True)
class _Lanes:
    """The iterations evaluated together: a value is of shape (count,), or () where all lanes agree."""

    count: int
    values: Mapping[str, Array]
    buffers: Mapping[str, _Buffer]

    def keep(self, which: Array) -> _Lanes:
        """Return the lanes numbered in ``which``, an array of integers that may repeat."""

        def pick(x: Array) -> Array:
            return x[which] if x.ndim else x

        values = {name: pick(x) for name, x in self.values.items()}
        buffers = {n: dataclasses.replace(b, base=pick(b.base)) if b.base.ndim else b for n, b in self.buffers.items()}
        return _Lanes(len(which), values, buffers)

    def bind(self, name: str, value: Array) -> _Lanes:
        return dataclasses.replace(self, values={**self.values, name: value})


def evaluate(expr: Expr, params: Mapping[str, int]) -> int:
    """Compute an i64 expression of a kernel's parameters, such as the size of an argument."""
    values = {name: np.asarray(value, np.int64) for name, value in params.items()}
    return int(_Run("", False, None).value(expr, _Lanes(1, values, {}), {}))


def run_kernel(
    kernel: Kernel,
    arrays: Mapping[str, Array],
    params: Mapping[str, int],
    *,
    lanes: bool = True,
    shuffle: int | None = None,
) -> None:
    """Run a kernel on flat arrays, writing into those of its outputs.

    Args:
        arrays: for each argument its elements, one-dimensional; index 0 is the first.
        lanes: False evaluates one iteration at a time, in order: the definition, slowly.
        shuffle: a seed; the iterations of loops that claim independence then run in random order.

    Raises:
        MalformedKernel: when an argument is missing or of another dtype.
        OutOfRange: when an access lies outside of its buffer.
    """
    buffers = {}
    for arg in kernel.args:
        array = arrays.get(arg.name)
        if array is None or array.ndim != 1 or array.dtype != DTYPES[arg.dtype]:
            found = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
            wanted = f"expected a flat array of {arg.dtype}"
            raise MalformedKernel(kernel=kernel.name, problem=f"argument {arg.name} is {found}; {wanted}")
        buffers[arg.name] = _Buffer(array, (len(array),), np.asarray(0))
    missing = [p for p in kernel.params if p not in params]
    if missing:
        raise MalformedKernel(kernel=kernel.name, problem=f"no value given for the parameter {missing[0]}")
    start = _Lanes(1, {p: np.asarray(params[p], np.int64) for p in kernel.params}, buffers)
    rng = None if shuffle is None else np.random.default_rng(shuffle)
    with np.errstate(all="ignore"):
        _Run(kernel.name, lanes, rng).body(kernel.body, start)


class _Run:
    """One run of a kernel."""

    def __init__(self, kernel: str, lanes: bool, rng: np.random.Generator | None) -> None:
        self.kernel = kernel
        self.lanes = lanes
        self.rng = rng
        self.together: dict[int, bool] = {}
        self.loads: dict[Expr, frozenset[Expr]] = {}

    def body(self, body: Sequence[Stmt], at: _Lanes) -> None:
        for stmt in body:
            match stmt:
                case Let(name, value):
                    at = at.bind(name, self.value(value, at, {}))
                case Store():
                    self.store(stmt, at)
                case Alloc():
                    at = dataclasses.replace(at, buffers={**at.buffers, stmt.buffer: self.alloc(stmt, at)})
                case If(cond, inner):
                    chosen = np.broadcast_to(self.value(cond, at, {}), (at.count,))
                    if chosen.all():
                        self.body(inner, at)
                    elif chosen.any():
                        self.body(inner, at.keep(np.flatnonzero(chosen)))
                case For():
                    self.loop(stmt, at)

    def alloc(self, stmt: Alloc, at: _Lanes) -> _Buffer:
        """Make an instance for each lane, holding what nobody should read."""
        extents = [self.value(e, at, {}) for e in stmt.shape]
        if any(np.any(e != e.flat[0]) for e in extents):
            raise MalformedKernel(kernel=self.kernel, problem=f"the shape of {stmt.buffer} differs between iterations")
        shape = tuple(int(e.flat[0]) for e in extents)
        size = math.prod(shape)
        dtype = DTYPES[stmt.dtype]
        data = np.full(at.count * size, np.nan if stmt.dtype in FLOATS else 0x5A, dtype)
        return _Buffer(data, shape, np.arange(at.count) * size if at.count > 1 else np.asarray(0))

    def loop(self, stmt: For, at: _Lanes) -> None:
        if at.count == 1 and stmt.static is None and repeats(stmt):  # at the top of a kernel there is one lane
            turn = 0
            while turn < int(self.value(stmt.extent, at, {}).max()):
                self.body(stmt.body, at.bind(stmt.var.name, np.asarray(turn)))
                turn += 1
            return
        extent = self.value(stmt.extent, at, {})
        if not self.lanes or not self.parallel(stmt):
            order = np.arange(max(int(extent.max()), 0))
            if self.rng is not None and stmt.kind not in ("serial", "unroll"):
                self.rng.shuffle(order)
            for i in order:
                active = i < extent
                here = at if np.all(active) else at.keep(np.flatnonzero(np.broadcast_to(active, (at.count,))))
                self.body(stmt.body, here.bind(stmt.var.name, np.asarray(i)))
            return
        counts = np.maximum(np.broadcast_to(extent, (at.count,)), 0)
        if self.rng is not None and stmt.kind not in ("serial", "unroll"):
            self.shuffled(stmt, at, counts)
        else:
            self.spread(stmt, at, counts, 0)

    def spread(self, stmt: For, at: _Lanes, counts: Array, start: int) -> None:
        """Run iterations ``start`` .. ``start + counts - 1`` of each lane, in the order of the serial program."""
        total = int(counts.sum())
        if total > MOST_LANES and at.count > 1:
            for half in np.array_split(np.arange(at.count), 2):
                self.spread(stmt, at.keep(half), counts[half], start)
        elif total > MOST_LANES:
            for first in range(0, total, MOST_LANES):
                self.spread(stmt, at, np.minimum(counts - first, MOST_LANES), start + first)
        elif total:
            lane = np.repeat(np.arange(at.count), counts)
            index = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + start
            self.body(stmt.body, at.keep(lane).bind(stmt.var.name, index))

    def shuffled(self, stmt: For, at: _Lanes, counts: Array) -> None:
        assert self.rng is not None
        total = int(counts.sum())
        lane = np.repeat(np.arange(at.count), counts)
        index = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        order = self.rng.permutation(total)
        for first in range(0, total, MOST_LANES):
            part = order[first : first + MOST_LANES]
            self.body(stmt.body, at.keep(lane[part]).bind(stmt.var.name, index[part]))

    def parallel(self, stmt: For) -> bool:
        """Whether running the iterations together means the same as running them in order.

        It does where independence is claimed, and where every buffer from outside that the body stores to is stored to
        by one statement and not loaded.
        """
        known = self.together.get(id(stmt))
        if known is None:
            inner = list(stmts(stmt.body))
            own = {s.buffer for s in inner if isinstance(s, Alloc)}
            stored = [s.buffer for s in inner if isinstance(s, Store) and s.buffer not in own]
            loaded = {x.buffer for s in inner for e in exprs(s) for x in self.loaded(e) if isinstance(x, Load)}
            known = stmt.kind not in ("serial", "unroll") or (
                len(set(stored)) == len(stored) and loaded.isdisjoint(stored)
            )
            self.together[id(stmt)] = known
        return known

    def loaded(self, expr: Expr) -> frozenset[Expr]:
        found = self.loads.get(expr)
        if found is None:
            found = self.loads[expr] = frozenset(e for e in walk(expr) if isinstance(e, Load))
        return found

    def value(self, expr: Expr, at: _Lanes, memo: dict[Expr, Array]) -> Array:
        """Evaluate the operands first, without recursion: a chain of operations may be long."""
        stack = [] if expr in memo else [expr]
        while stack:
            e = stack[-1]
            operands = (e.args[:1] if e.op == "select" else e.args) if isinstance(e, Op) else ()
            missing = [x for x in (e.index if isinstance(e, Load) else operands) if x not in memo]
            if missing:
                stack += missing
            else:
                stack.pop()
                memo[e] = self.evaluate(e, at, memo)
        return memo[expr]

    def evaluate(self, expr: Expr, at: _Lanes, memo: dict[Expr, Array]) -> Array:
        match expr:
            case Const():
                return np.asarray(expr.value).astype(DTYPES[expr.dtype])
            case Var():
                if expr.name not in at.values:
                    raise MalformedKernel(kernel=self.kernel, problem=f"{expr.name} is used before it is defined")
                return at.values[expr.name]
            case Load():
                data, where = self.locate(expr.buffer, expr.index, at, memo, "load of")
                return np.asarray(data[where])
            case Op(op="select"):
                return self.select(expr, at, memo)
            case Op():
                return _apply(expr.op, [self.value(a, at, memo) for a in expr.args], expr.dtype)
        raise MalformedKernel(kernel=self.kernel, problem=f"{expr!r} is not an expression")

    def select(self, expr: Op, at: _Lanes, memo: dict[Expr, Array]) -> Array:
        cond = self.value(expr.args[0], at, memo)
        if not cond.ndim or cond.all() or not cond.any():
            return self.value(expr.args[1 if cond.flat[0] else 2], at, memo)
        arms = []
        for arm, chosen in ((expr.args[1], cond), (expr.args[2], ~cond)):
            if all(load in memo for load in self.loaded(arm)):
                arms.append(self.value(arm, at, memo))
            else:
                which = np.flatnonzero(chosen)
                full = np.zeros(at.count, DTYPES[expr.dtype])
                full[which] = self.value(arm, at.keep(which), {})
                arms.append(full)
        return np.where(cond, *arms)

    def locate(
        self, name: str, index: Sequence[Expr], at: _Lanes, memo: dict[Expr, Array], access: str
    ) -> tuple[Array, Array]:
        """Return a buffer's storage and the positions of the elements of each lane."""
        buffer = at.buffers.get(name)
        if buffer is None:
            raise MalformedKernel(kernel=self.kernel, problem=f"the buffer {name} is used before it is allocated")
        if len(index) != len(buffer.shape):
            problem = f"{name} has {len(buffer.shape)} dimensions and is given {len(index)} indices"
            raise MalformedKernel(kernel=self.kernel, problem=problem)
        where = buffer.base
        flat: Array = np.asarray(0)
        for e, extent in zip(index, buffer.shape, strict=True):
            i = self.value(e, at, memo)
            wrong = (i < 0) | (i >= extent)
            if wrong.any():
                first = int(np.flatnonzero(np.broadcast_to(wrong, (at.count,)))[0])
                values = [np.broadcast_to(self.value(e, at, memo), (at.count,))[first] for e in index]
                found = ", ".join(str(int(v)) for v in values)
                raise OutOfRange(kernel=self.kernel, access=access, buffer=name, found=found, expected=buffer.shape)
            flat = np.asarray(flat * extent + i)
        return buffer.data, np.asarray(where + flat)

    def store(self, stmt: Store, at: _Lanes) -> None:
        memo: dict[Expr, Array] = {}
        value = self.value(stmt.value, at, memo)
        data, where = self.locate(stmt.buffer, stmt.index, at, memo, "store to")
        if value.dtype != data.dtype:
            raise MalformedKernel(
                kernel=self.kernel, problem=f"a value of dtype {value.dtype} is stored to {stmt.buffer} of {data.dtype}"
            )
        where = np.broadcast_to(where, (at.count,))
        if not stmt.op:
            data[where] = value
        elif data.dtype in _NARROW:
            for i, x in zip(where, np.broadcast_to(value, (at.count,)), strict=True):
                data[i] = _apply(stmt.op, [np.asarray(data[i]), np.asarray(x)], stmt.value.dtype)
        else:
            COMBINE[stmt.op].at(data, where, value)
