"""Building graphs: the builder and the symbolic value.

Everything that makes a node goes through ``apply``: tracing, derivative rules and rewrites alike.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, TypeGuard

import numpy as np

from kernelforge.dtypes import INTEGERS, as_dtype, promote, short
from kernelforge.errors import (
    ArrayTooLarge,
    InvalidArgument,
    KernelforgeError,
    MalformedGraph,
    NumberOutOfRange,
    ShapeMismatch,
    UnknownPrimitive,
)
from kernelforge.ir.graph import Graph, Node, Params, Primitive, Value
from kernelforge.ir.types import Type, broadcast_shapes
from kernelforge.lines import Loc, user_line

MOST_BYTES = 1 << 62
"""No array has as many: offsets within one, and sums of two of them, fit 64 bits."""

REGISTRY: dict[str, Primitive] = {}
"""Every primitive by name; ``kernelforge.ir.ops`` fills it once, on import."""


def primitive(name: str) -> Primitive:
    """Look up a primitive.

    Raises:
        UnknownPrimitive: when no primitive has this name.
    """
    if name not in REGISTRY:
        raise UnknownPrimitive(name=name)
    return REGISTRY[name]


class Sym:
    """A symbolic array: a value of the graph under construction.

    Operators promote dtypes and broadcast shapes as NumPy does; everything else is ``apply``.
    """

    __slots__ = ("builder", "value")
    __array_ufunc__ = None

    def __init__(self, builder: Builder, value: Value) -> None:
        self.builder = builder
        self.value = value

    @property
    def type(self) -> Type:
        return self.value.type

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.type.shape

    @property
    def ndim(self) -> int:
        return len(self.value.type.shape)

    @property
    def size(self) -> int:
        return self.value.type.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.type.dtype

    def __repr__(self) -> str:
        return f"Sym({self.value}: {self.type})"

    def __add__(self, other: Operand) -> Sym:
        return binary("add", self, other)

    def __radd__(self, other: Operand) -> Sym:
        return binary("add", other, self)

    def __sub__(self, other: Operand) -> Sym:
        return binary("subtract", self, other)

    def __rsub__(self, other: Operand) -> Sym:
        return binary("subtract", other, self)

    def __mul__(self, other: Operand) -> Sym:
        return binary("multiply", self, other)

    def __rmul__(self, other: Operand) -> Sym:
        return binary("multiply", other, self)

    def __truediv__(self, other: Operand) -> Sym:
        return binary("divide", self, other)

    def __rtruediv__(self, other: Operand) -> Sym:
        return binary("divide", other, self)

    def __neg__(self) -> Sym:
        return apply("negative", self)

    def __lt__(self, other: Operand) -> Sym:
        return binary("less", self, other)

    def __le__(self, other: Operand) -> Sym:
        return binary("less_equal", self, other)

    def __gt__(self, other: Operand) -> Sym:
        return binary("greater", self, other)

    def __ge__(self, other: Operand) -> Sym:
        return binary("greater_equal", self, other)

    def __and__(self, other: Operand) -> Sym:
        return binary("bitwise_and", self, other)

    def __or__(self, other: Operand) -> Sym:
        return binary("bitwise_or", self, other)

    def __invert__(self) -> Sym:
        return apply("invert", self)

    def eq(self, other: Operand) -> Sym:
        """Compare elements; ``==`` is identity, so symbols can be dictionary keys."""
        return binary("equal", self, other)

    def astype(self, dtype: Any) -> Sym:
        """Cast; nothing when the dtype is the same already (and not weak)."""
        name = Type((), as_dtype(dtype)).name
        return self if name == self.type.name and not self.type.weak else apply("cast", self, dtype=name)

    def broadcast(self, shape: tuple[int, ...]) -> Sym:
        return self if shape == self.shape else apply("broadcast", self, shape=tuple(shape))

    def reshape(self, shape: tuple[int, ...]) -> Sym:
        return self if shape == self.shape else apply("reshape", self, shape=tuple(shape))

    def transpose(self, axes: Sequence[int]) -> Sym:
        return self if tuple(axes) == tuple(range(self.ndim)) else apply("transpose", self, axes=tuple(axes))

    def sum(self, axes: Sequence[int]) -> Sym:
        return apply("sum", self, axes=tuple(axes)) if axes else self


Operand = Sym | bool | int | float | np.generic


@dataclasses.dataclass(slots=True, eq=False)
class Builder:
    """Collects nodes; ``finish`` closes it into a graph.

    A symbol of an enclosing builder may be used: it becomes an input, and stands in ``captures``.
    """

    inputs: list[Value] = dataclasses.field(default_factory=list)
    nodes: list[Node] = dataclasses.field(default_factory=list)
    consts: list[tuple[Value, np.ndarray[Any, Any]]] = dataclasses.field(default_factory=list)
    captures: dict[Sym, Value] = dataclasses.field(default_factory=dict)
    loc: Loc | None = None
    _by_value: dict[Value, Value] = dataclasses.field(default_factory=dict)
    _bound: dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Sym]] = dataclasses.field(default_factory=dict)
    _next: int = 0

    def _value(self, type: Type) -> Value:
        self._next += 1
        return Value(self._next - 1, type)

    def input(self, type: Type) -> Sym:
        value = self._value(type)
        self.inputs.append(value)
        return Sym(self, value)

    def constant(self, array: np.ndarray[Any, Any]) -> Sym:
        """Bind an array; one element becomes a ``full`` node, which folds into kernels."""
        array = np.asarray(array)
        dtype = as_dtype(array.dtype)
        if array.size == 1:
            value = array.reshape(()).astype(dtype)[()]
            return apply("full", value=_literal(value), shape=array.shape, dtype=Type((), dtype).name)
        known = self._bound.get(id(array))
        if known is not None and known[1].tobytes() == array.astype(dtype).tobytes():
            return known[2]
        bound = np.array(array, dtype=dtype, copy=True, order="C")
        bound.flags.writeable = False
        out = self._value(Type(bound.shape, dtype))
        self.consts.append((out, bound))
        # the array itself is held, or its id could come back as another's
        self._bound[id(array)] = (array, bound, Sym(self, out))
        return self._bound[id(array)][2]

    def bound(self, type: Type, array: np.ndarray[Any, Any]) -> Sym:
        """Bind an array that nobody writes to, without a copy, and once."""
        out = next((value for value, held in self.consts if held is array), None)
        if out is None:
            out = self._value(type)
            self.consts.append((out, array))
        return Sym(self, out)

    def lift(self, sym: Sym) -> Value:
        """Return this builder's value for ``sym``, capturing it if it belongs to an enclosing builder."""
        if sym.builder is self:
            return sym.value
        found = self._by_value.get(sym.value)
        if found is None:
            found = self._by_value[sym.value] = self._value(sym.type)
            self.captures[sym] = found
        return found

    def emit(self, prim: Primitive, inputs: Sequence[Value], params: Params) -> tuple[Value, ...]:
        try:
            types = prim.typing([v.type for v in inputs], params)
        except KernelforgeError as error:
            raise type(error)(loc=self.loc, **error.fields) from None
        for t in types:
            if t.nbytes >= MOST_BYTES:
                raise ArrayTooLarge(op=prim.name, found=t, loc=self.loc)
        outputs = tuple(self._value(t) for t in types)
        self.nodes.append(Node(prim, tuple(inputs), MappingProxyType(dict(params)), outputs, self.loc or user_line()))
        return outputs

    def finish(self, outputs: Sequence[Sym]) -> Graph:
        """Close: captures become the last inputs, in the order of ``captures``."""
        outs = tuple(self.lift(s) for s in outputs)
        return Graph((*self.inputs, *self.captures.values()), tuple(self.nodes), outs, tuple(self.consts))

    def inline(self, graph: Graph, inputs: Sequence[Sym]) -> list[Sym]:
        """Repeat a graph's nodes here; return its outputs."""
        values = self.replay(graph, inputs)
        return [Sym(self, values[v]) for v in graph.outputs]

    def replay(self, graph: Graph, inputs: Sequence[Sym]) -> dict[Value, Value]:
        """Repeat a graph's nodes here; return this builder's value for each of its values."""
        if len(inputs) != len(graph.inputs):
            raise MalformedGraph(problem=f"{len(inputs)} inputs given to a graph of {len(graph.inputs)}")
        values = {v: self.lift(s) for v, s in zip(graph.inputs, inputs, strict=True)}
        for v, array in graph.consts:
            values[v] = self.bound(v.type, array).value
        for node in graph.nodes:
            with self.at(node.loc):
                made = self.emit(node.prim, [values[v] for v in node.inputs], node.params)
            values.update(zip(node.outputs, made, strict=True))
        return values

    @contextlib.contextmanager
    def at(self, loc: Loc | None) -> Iterator[None]:
        """Give the nodes made in the body the location ``loc``."""
        before, self.loc = self.loc, loc
        try:
            yield
        finally:
            self.loc = before

    @contextlib.contextmanager
    def active(self) -> Iterator[Builder]:
        """Send what ``apply`` makes in the body to this builder."""
        token = BUILDERS.set((*BUILDERS.get(), self))
        try:
            yield self
        finally:
            BUILDERS.reset(token)


BUILDERS: contextvars.ContextVar[tuple[Builder, ...]] = contextvars.ContextVar("kernelforge_builders", default=())


def tracing() -> bool:
    """Whether a builder is active in this thread."""
    return bool(BUILDERS.get())


def is_open(b: Builder) -> bool:
    """Whether ``b`` is active in this thread; its symbols are of no use once it is not."""
    return b in BUILDERS.get()


def builder() -> Builder:
    """Return the innermost active builder.

    Raises:
        MalformedGraph: when there is none.
    """
    stack = BUILDERS.get()
    if not stack:
        raise MalformedGraph(problem="no builder is active in this thread")
    return stack[-1]


def apply_many(name: str, /, *inputs: Sym, **params: Any) -> tuple[Sym, ...]:
    """Append one application of the primitive ``name`` to the innermost builder; return all its outputs."""
    b = builder()
    return tuple(Sym(b, v) for v in b.emit(primitive(name), [b.lift(s) for s in inputs], params))


def apply(name: str, /, *inputs: Sym, **params: Any) -> Sym:
    """Append one application of a primitive with one output; return it."""
    (out,) = apply_many(name, *inputs, **params)
    return out


def build(fn: Callable[..., Sequence[Sym]], types: Sequence[Type]) -> Graph:
    """Make a graph from a function of symbols; captures become inputs after ``types``."""
    b = Builder()
    with b.active():
        return b.finish(fn(*[b.input(t) for t in types]))


def _literal(value: Any) -> bool | int | float:
    if np.dtype(value.dtype).kind == "b":
        return bool(value)
    return int(value) if np.dtype(value.dtype).kind in "iu" else float(value)


def full(value: float, like: Sym) -> Sym:
    """Make a constant of the shape and dtype of ``like``."""
    return apply("full", value=value, shape=like.shape, dtype=like.type.name)


def is_number(x: object) -> TypeGuard[bool | int | float]:
    """Tell a Python number; NumPy's, some of which are numbers of Python's too, have a dtype of their own."""
    return isinstance(x, bool | int | float) and not isinstance(x, np.generic)


def as_sym(x: Operand | np.ndarray[Any, Any]) -> Sym:
    """Lift a Python number (weak), a NumPy scalar or an array to a symbol."""
    if isinstance(x, Sym):
        return x
    if is_number(x):
        dtype = {bool: "bool", int: "i64", float: "f64"}[
            bool if isinstance(x, bool) else int if isinstance(x, int) else float
        ]
        number = apply("full", value=x, shape=(), dtype=dtype)
        return number if isinstance(x, bool) else weakened(number)
    return builder().constant(plain(x))


def of_number(x: float | np.generic, dtype: np.dtype[Any], shape: tuple[int, ...], op: str) -> Sym:
    """Make an array of one number.

    Raises:
        NumberOutOfRange: when ``dtype`` cannot hold it.
    """
    name = short(dtype)
    given: Any = x
    if name in INTEGERS and isinstance(x, float | np.floating) and math.isfinite(x):
        given = int(x)
    if name in INTEGERS and not np.iinfo(dtype).min <= given <= np.iinfo(dtype).max:
        raise NumberOutOfRange(op=op, found=x, dtype=dtype)
    value = bool(x) if name == "bool" else int(given) if name in INTEGERS else float(given)
    return apply("full", value=value, shape=shape, dtype=name)


def written(x: Operand, dtype: np.dtype[Any], op: str) -> Sym:
    """Cast what is written into an array of ``dtype``, where NumPy refuses Python numbers that it cannot hold.

    Raises:
        NumberOutOfRange: for such a number.
    """
    if is_number(x):
        return of_number(x, dtype, (), op)
    return as_sym(x).astype(dtype)


def plain(x: Any) -> np.ndarray[Any, Any]:
    """Return what NumPy makes of ``x`` as an array.

    Raises:
        InvalidArgument: for a subclass of arrays with operators of its own, as masked arrays and matrices are.
    """
    own = isinstance(x, np.ndarray) and type(x).__array_ufunc__ is not np.ndarray.__array_ufunc__
    if own or isinstance(x, np.matrix | np.ma.MaskedArray):
        found = f"a {type(x).__name__}, whose operators and functions are not those of arrays"
        raise InvalidArgument(name="an array", found=found)
    return np.asarray(x)


def weakened(sym: Sym) -> Sym:
    """Make what the last node gave stand for a Python number."""
    b = sym.builder
    node = b.nodes.pop()
    assert node.outputs == (sym.value,)
    weak = Value(sym.value.id, dataclasses.replace(sym.type, weak=True))
    b.nodes.append(dataclasses.replace(node, outputs=(weak,)))
    return Sym(b, weak)


def common(*xs: Operand) -> tuple[Sym, ...]:
    """Promote to one dtype and broadcast to one shape, as a NumPy ufunc does with its operands.

    Raises:
        ShapeMismatch: when the shapes do not broadcast.
    """
    syms = [as_sym(x) for x in xs]
    strong = [s.dtype for s in syms if not s.type.weak]
    dtype = promote(strong, [s.dtype for s in syms if s.type.weak])
    try:
        shape = broadcast_shapes(*(s.shape for s in syms))
    except ValueError:
        raise ShapeMismatch(
            op="broadcast",
            found=" and ".join(str(s.shape) for s in syms),
            expected="extents that are equal or 1, counted from the last axis",
            loc=builder().loc,
        ) from None
    keep_weak = not strong
    return tuple((s if keep_weak and s.dtype == dtype else s.astype(dtype)).broadcast(shape) for s in syms)


def binary(name: str, x: Operand, y: Operand) -> Sym:
    """Apply a two-operand elementwise primitive after promotion and broadcasting."""
    if name == "divide":
        x, y = (as_sym(v) for v in (x, y))
        if x.dtype.kind in "iub" and y.dtype.kind in "iub":
            x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = common(x, y)
    return apply(name, a, b)
