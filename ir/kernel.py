"""The kernel IR: a small loop language with four kinds of expression and five kinds of statement.

Meaning, which every printer and every schedule step keeps:

- *Order.* Running every loop serially, in order, is the meaning. A ``parallel``, ``grid``, ``group`` or ``vector`` loop
  only states that its iterations are independent (fork-join), except that a ``vector`` loop may combine into one
  element with a Store's ``op``. Barriers are not in the IR: a printer places one between two phases (sibling
  statements holding ``group`` loops) that touch the same local buffer.
- *Loops.* ``parallel`` is a loop proven independent and not yet bound to hardware; ``grid`` is a work-group (or a
  slice of a thread's range on a CPU), ``group`` a work-item in it, ``vector`` SIMD lanes, ``unroll`` is expanded by the
  printer. Extents of ``vector``, ``unroll`` and ``group`` loops are constants. Indices start at 0.
- *Top level.* The body of a kernel is Allocs of global scratch and loop nests, run in order, each as one phase: all of
  a phase is visible to the next one. A ``serial`` loop of such nests runs them as phases in each of its iterations,
  and reads its extent again before each.
- *Expressions* are pure. ``select`` is lazy: the arm that is not chosen is not evaluated, so it may hold a Load out of
  range where the condition compares i64. All other Loads are in range.
- *Integers* wrap. ``floordiv`` and ``mod`` round down and need a divisor that is not zero; ``shl`` and ``shr`` need an
  amount in [0, bits). A primitive whose NumPy meaning covers more guards them with ``select``.
- *Floats* are IEEE 754 with round-to-nearest-even, one rounding an operation; ``min`` and ``max`` propagate NaN. A
  Store with ``op="add"`` of a product may round once or twice. ``scaleb(x, n)`` is x * 2**floor(n), which
  ``math_base.scaleb`` computes for whole n only. The operations that ``tables`` names look numbers up by the low bits
  of x. ``mad(x, y, z)`` is x * y + z, rounded once or twice;
  ``mul_error(x, y)`` is x * y less its rounded value, exactly, where neither overflows nor underflows.
  ``tf32(x)`` is an f32 rounded to 10 bits of mantissa, a tie away from zero.
  Casting a float outside of an integer's range gives any value.
- ``unlikely(c)`` is c, and a hint to the pass ``branch``, which leaves none to the printers.
- *bool* is stored as one byte, 0 or 1.
- *Buffers.* An argument is flat: its index counts elements from its first element and may be negative for a reversed
  view. An ``inout`` one holds an input at first and an output in the end. Those that are written share no memory with
  others. An allocated buffer has a shape, is row-major, lives to the end of the statement list it stands in and starts
  undefined. A ``register`` buffer inside ``group`` loops whose leading indices are those loops' variables belongs to
  the work-items: each holds its own part.

Expressions are interned: structural equality is identity, so they can be dictionary keys and shared freely.
"""

from __future__ import annotations

import dataclasses
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Self

from kernelforge.dtypes import FLOATS, INTEGERS
from kernelforge.ir.tables import TABLES

LoopKind = Literal["serial", "parallel", "grid", "group", "vector", "unroll"]
Space = Literal["global", "local", "register"]
Mode = Literal["in", "out", "inout", "scratch"]

UNARY = ("neg", "abs", "not", "sqrt", "floor", "ceil", "trunc", "rint")
BINARY = ("add", "sub", "mul", "div", "floordiv", "mod", "min", "max", "and", "or", "xor", "shl", "shr")
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")
MATH_UNARY = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
    "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "cbrt",
)  # fmt: skip
MATH_BINARY = ("atan2", "pow", "fmod")
"""Transcendentals: ``kernelforge.ir.math`` expands them to the operations above before a printer sees them, where it
has an expansion for the dtype; the printer calls the device's library for the rest."""

ARITY: dict[str, int] = {
    **dict.fromkeys(UNARY + MATH_UNARY + ("cast", "bitcast", "unlikely", "tf32", *TABLES), 1),
    **dict.fromkeys(BINARY + COMPARE + MATH_BINARY + ("scaleb", "mul_error"), 2),
    **dict.fromkeys(("fma", "mad", "select"), 3),
}
"""Every operation and how many operands it takes."""


class Expr:
    """Base of the four expressions; the operators build ``Op`` nodes and lift Python numbers to constants."""

    __slots__ = ("__weakref__", "_fields", "dtype", "parts")
    _table: ClassVar[weakref.WeakValueDictionary[tuple[Any, ...], Expr]] = weakref.WeakValueDictionary()
    _fields: tuple[Any, ...]
    dtype: str
    parts: tuple[Expr, ...]
    """Its operands, or the index of a Load."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self._fields)

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: object) -> Expr:
        return self

    def __add__(self, other: Expr | float) -> Expr:
        return op("add", self, other)

    def __radd__(self, other: float) -> Expr:
        return op("add", _lift(other, self), self)

    def __sub__(self, other: Expr | float) -> Expr:
        return op("sub", self, other)

    def __rsub__(self, other: float) -> Expr:
        return op("sub", _lift(other, self), self)

    def __mul__(self, other: Expr | float) -> Expr:
        return op("mul", self, other)

    def __rmul__(self, other: float) -> Expr:
        return op("mul", _lift(other, self), self)

    def __truediv__(self, other: Expr | float) -> Expr:
        return op("div", self, other)

    def __rtruediv__(self, other: float) -> Expr:
        return op("div", _lift(other, self), self)

    def __floordiv__(self, other: Expr | int) -> Expr:
        return op("floordiv", self, other)

    def __mod__(self, other: Expr | int) -> Expr:
        return op("mod", self, other)

    def __and__(self, other: Expr | int) -> Expr:
        return op("and", self, other)

    def __or__(self, other: Expr | int) -> Expr:
        return op("or", self, other)

    def __xor__(self, other: Expr | int) -> Expr:
        return op("xor", self, other)

    def __lshift__(self, other: Expr | int) -> Expr:
        return op("shl", self, other)

    def __rshift__(self, other: Expr | int) -> Expr:
        return op("shr", self, other)

    def __neg__(self) -> Expr:
        return op("neg", self)

    def __invert__(self) -> Expr:
        return op("not", self)

    def __abs__(self) -> Expr:
        return op("abs", self)

    def __lt__(self, other: Expr | float) -> Expr:
        return op("lt", self, other)

    def __le__(self, other: Expr | float) -> Expr:
        return op("le", self, other)

    def __gt__(self, other: Expr | float) -> Expr:
        return op("gt", self, other)

    def __ge__(self, other: Expr | float) -> Expr:
        return op("ge", self, other)

    def eq(self, other: Expr | float) -> Expr:
        """Compare elements; ``==`` compares expressions."""
        return op("eq", self, other)

    def ne(self, other: Expr | float) -> Expr:
        return op("ne", self, other)

    def cast(self, dtype: str) -> Expr:
        return op("cast", self, dtype=dtype)

    def bitcast(self, dtype: str) -> Expr:
        return op("bitcast", self, dtype=dtype)

    def __bool__(self) -> bool:
        raise TypeError("a kernel expression has no truth value; use select(condition, a, b)")

    def __repr__(self) -> str:
        return _shown(self, 4)


def _shown(item: object, depth: int) -> str:
    """Show an expression to a few levels: written out whole, shared parts repeat without end."""
    if isinstance(item, tuple):
        return f"({', '.join(_shown(x, depth) for x in item)})"
    if not isinstance(item, Expr):
        return repr(item)
    if not depth:
        return "..."
    return f"{type(item).__name__}({', '.join(_shown(x, depth - 1) for x in item._fields)})"


def _intern(cls: type[Any], key: tuple[Any, ...], fields: tuple[Any, ...], dtype: str) -> Any:
    found = Expr._table.get(key)
    if found is None:
        found = object.__new__(cls)
        found._fields = fields
        found.dtype = dtype
        found.parts = ()
        found._set(*fields)
        found = Expr._table.setdefault(key, found)
    return found


class Const(Expr):
    """A literal: ``value`` is a Python bool, int or float (also nan, inf and -0.0)."""

    __slots__ = ("value",)
    value: bool | int | float

    def __new__(cls, value: float, dtype: str) -> Self:
        if dtype in FLOATS:
            value = float(value)
            key: tuple[Any, ...] = (cls, value.hex(), dtype)
        else:
            value = bool(value) if dtype == "bool" else int(value)
            key = (cls, value, dtype)
        return _intern(cls, key, (value, dtype), dtype)  # type: ignore[no-any-return]

    def _set(self, value: float, dtype: str) -> None:
        self.value = value


class Var(Expr):
    """A loop variable or the name bound by a Let; ``bound`` says 0 <= var < bound where that is known."""

    __slots__ = ("bound", "name")
    name: str
    bound: int | None

    def __new__(cls, name: str, dtype: str = "i64", bound: int | None = None) -> Self:
        return _intern(cls, (cls, name, dtype, bound), (name, dtype, bound), dtype)  # type: ignore[no-any-return]

    def _set(self, name: str, dtype: str, bound: int | None) -> None:
        self.name = name
        self.bound = bound


class Load(Expr):
    """One element of a buffer."""

    __slots__ = ("buffer", "index")
    buffer: str
    index: tuple[Expr, ...]

    def __new__(cls, buffer: str, index: tuple[Expr, ...], dtype: str) -> Self:
        return _intern(cls, (cls, buffer, index, dtype), (buffer, index, dtype), dtype)  # type: ignore[no-any-return]

    def _set(self, buffer: str, index: tuple[Expr, ...], dtype: str) -> None:
        self.buffer = buffer
        self.index = self.parts = index


class Op(Expr):
    """An operation of ``ARITY`` on expressions."""

    __slots__ = ("args", "op")
    op: str
    args: tuple[Expr, ...]

    def __new__(cls, op: str, args: tuple[Expr, ...], dtype: str) -> Self:
        return _intern(cls, (cls, op, args, dtype), (op, args, dtype), dtype)  # type: ignore[no-any-return]

    def _set(self, op: str, args: tuple[Expr, ...], dtype: str) -> None:
        self.op = op
        self.args = self.parts = args


def _lift(value: Expr | float, like: Expr) -> Expr:
    return value if isinstance(value, Expr) else Const(value, like.dtype)


def op(name: str, *args: Expr | float, dtype: str | None = None) -> Expr:
    """Build an operation; Python numbers take the dtype of the first expression among ``args``.

    ``dtype`` is needed for ``cast`` and ``bitcast`` only. ``select`` has the dtype of its arms.
    """
    if name == "select":
        return select(*args)
    like = args[0]
    if not isinstance(like, Expr):
        like = next(a for a in args if isinstance(a, Expr))
    kind = like.dtype
    lifted = tuple([a if isinstance(a, Expr) else Const(a, kind) for a in args])
    if name in _COMPARE:
        return Op(name, lifted, "bool")
    if name in ("cast", "bitcast"):
        assert dtype is not None
        return like if kind == dtype else Op(name, lifted, dtype)
    if len(lifted) == 2 and kind in INTEGERS:
        folded = _fold(name, lifted[0], lifted[1], kind)
        if folded is not None:
            return folded
    return Op(name, lifted, kind)


_COMPARE = frozenset(COMPARE)

_CONSTANT: dict[str, Callable[[int, int], int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "min": min, "max": max,
    "floordiv": operator.floordiv, "mod": operator.mod,
}  # fmt: skip


def _fold(name: str, a: Expr, b: Expr, dtype: str) -> Expr | None:
    """Fold the integer identities that index arithmetic makes all the time; None where none applies."""
    x = a.value if isinstance(a, Const) else None
    y = b.value if isinstance(b, Const) else None
    if x is None and y is None:
        return None
    if x is not None and y is not None and dtype == "i64":
        known = name in _CONSTANT and (y != 0 or name not in ("floordiv", "mod"))
        # wraps, as it would at run time
        return Const((_CONSTANT[name](int(x), int(y)) + (1 << 63)) % (1 << 64) - (1 << 63), dtype) if known else None
    if (y == 0 and name in ("add", "sub")) or (y == 1 and name in ("mul", "floordiv")):
        return a
    if (x == 0 and name == "add") or (x == 1 and name == "mul"):
        return b
    if ((x == 0 or y == 0) and name == "mul") or (y == 1 and name == "mod"):
        return Const(0, dtype)
    return None


def select(cond: Expr | float, a: Expr | float, b: Expr | float) -> Expr:
    """Choose lazily; at least one arm is an expression."""
    like = a if isinstance(a, Expr) else b
    assert isinstance(like, Expr)
    first, second = _lift(a, like), _lift(b, like)
    if not isinstance(cond, Expr):
        return first if cond else second
    if isinstance(cond, Const):
        return first if cond.value else second
    return first if first is second else Op("select", (cond, first, second), like.dtype)


def unlikely(cond: Expr) -> Expr:
    """Say that a condition seldom holds: what a select by it then needs may be computed apart."""
    return op("unlikely", cond)


def i64(value: int) -> Const:
    """Make an index constant."""
    return Const(value, "i64")


@dataclasses.dataclass(frozen=True, slots=True)
class Let:
    """Name a value for the rest of the statement list."""

    name: str
    value: Expr


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """Write one element, or combine into it with ``op`` (``add``, ``mul``, ``min``, ``max``)."""

    buffer: str
    index: tuple[Expr, ...]
    value: Expr
    op: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class For:
    """Run ``body`` for ``var`` in 0 .. extent-1."""

    var: Var
    extent: Expr
    kind: LoopKind
    body: tuple[Stmt, ...]

    @property
    def static(self) -> int | None:
        """The extent where it is a constant."""
        return int(self.extent.value) if isinstance(self.extent, Const) else None


@dataclasses.dataclass(frozen=True, slots=True)
class If:
    cond: Expr
    body: tuple[Stmt, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Alloc:
    """Make a buffer for the rest of the statement list; ``shape`` in elements, constants but for ``global``."""

    buffer: str
    dtype: str
    shape: tuple[Expr, ...]
    space: Space


Stmt = Let | Store | For | If | Alloc


@dataclasses.dataclass(frozen=True, slots=True)
class Arg:
    """A buffer the caller passes: ``size`` in elements (for strided inputs: of the memory reached from the first)."""

    name: str
    dtype: str
    size: Expr
    mode: Mode


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """One launch: ``params`` are i64 arguments passed by value after the buffers (extents, loop counters)."""

    name: str
    args: tuple[Arg, ...]
    params: tuple[str, ...]
    body: tuple[Stmt, ...]

    def __str__(self) -> str:
        from kernelforge.ir.text import print_kernel

        return print_kernel(self)


def map_exprs(stmt: Stmt, fn: Callable[[Expr], Expr]) -> Stmt:
    """Rebuild ``stmt`` with ``fn`` applied to each expression it holds, at any depth of statements."""
    match stmt:
        case Let(name, value):
            return Let(name, fn(value))
        case Store(buffer, index, value, combine):
            return Store(buffer, tuple(map(fn, index)), fn(value), combine)
        case For(var, extent, kind, body):
            return For(var, fn(extent), kind, tuple(map_exprs(s, fn) for s in body))
        case If(cond, body):
            return If(fn(cond), tuple(map_exprs(s, fn) for s in body))
        case Alloc(buffer, dtype, shape, space):
            return Alloc(buffer, dtype, tuple(map(fn, shape)), space)


def with_parts(expr: Expr, parts: tuple[Expr, ...]) -> Expr:
    """Return the operation or Load of other parts, folded where ``op`` folds."""
    if parts == expr.parts:
        return expr
    return op(expr.op, *parts, dtype=expr.dtype) if isinstance(expr, Op) else Load(expr._fields[0], parts, expr.dtype)


def substitute(expr: Expr, replace: dict[Expr, Expr], memo: dict[Expr, Expr] | None = None) -> Expr:
    """Replace sub-expressions, outermost first; pass one ``memo`` to share work between calls."""
    return _substituted(expr, replace, {} if memo is None else memo)


def _substituted(expr: Expr, replace: dict[Expr, Expr], memo: dict[Expr, Expr]) -> Expr:
    done = memo.get(expr)
    if done is None:
        found = replace.get(expr)
        done = memo[expr] = (
            with_parts(expr, tuple([_substituted(x, replace, memo) for x in expr.parts])) if found is None else found
        )
    return done


def rebuild(expr: Expr, change: Callable[[Expr], Expr], memo: dict[Expr, Expr]) -> Expr:
    """Apply ``change`` to each distinct sub-expression, its operands changed before; ``memo`` is of one ``change``."""
    done = memo.get(expr)
    if done is None:
        done = memo[expr] = change(with_parts(expr, tuple([rebuild(x, change, memo) for x in expr.parts])))
    return done


def walk(expr: Expr, seen: set[Expr] | None = None) -> list[Expr]:
    """Return each distinct sub-expression, operands first; pass one ``seen`` to skip what was returned before."""
    found: list[Expr] = []
    seen = set() if seen is None else seen
    if expr not in seen:
        _walk(expr, seen, found)
    return found


def _walk(expr: Expr, seen: set[Expr], found: list[Expr]) -> None:
    # not a function inside of walk: one that calls itself there is garbage that only the collector finds
    seen.add(expr)
    for part in expr.parts:
        if part not in seen:
            _walk(part, seen, found)
    found.append(expr)


def exprs(stmt: Stmt) -> Iterator[Expr]:
    """Yield the expressions that ``stmt`` itself holds, not those of the statements inside it."""
    match stmt:
        case Let(_, value):
            yield value
        case Store(_, index, value, _):
            yield from index
            yield value
        case For(_, extent, _, _):
            yield extent
        case If(cond, _):
            yield cond
        case Alloc(_, _, shape, _):
            yield from shape


def stmts(body: Sequence[Stmt]) -> Iterator[Stmt]:
    """Yield every statement, outer ones first."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, For | If):
            yield from stmts(stmt.body)
