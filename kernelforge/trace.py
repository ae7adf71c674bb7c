"""Traced arrays: what a compiled function computes with while it is compiled.

A ``Tracer`` is a cell that holds a symbol. Writing to it (``a[i] = v``, ``a += v``) puts another symbol into the
cell, so the graph stays pure. NumPy's views share memory; here one that an index made writes what is written to it into
its base, too, and is read again where its base was written to since. Both are refused for other views (reshaped ones,
transposed ones), of which nothing says whether NumPy would copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import optree

from kernelforge import indexing
from kernelforge.dtypes import as_dtype
from kernelforge.errors import (
    InvalidParameter,
    InvalidResult,
    LeakedTracer,
    NumberOutOfRange,
    ReadOnlyArray,
    StaleView,
    TracedArray,
    TracedMask,
    TracedNumber,
    TracedTruth,
    UnsafeCast,
    UnsupportedArgument,
    UnsupportedFunction,
    WriteThroughView,
)
from kernelforge.generators import untouched
from kernelforge.intercept import intercepted
from kernelforge.ir.build import Builder, Sym, apply, as_sym, builder, full, is_number, is_open, tracing, written
from kernelforge.ir.graph import Graph
from kernelforge.ir.structure import same
from kernelforge.ir.types import Type
from kernelforge.methods import FUNCTIONS, OPERATORS, Methods, is_array

NO_KEY = object()
"""The key of an array that no index made."""

TRACED = object()
"""What ``concrete`` gives for a value that is not known."""


def _inplace(name: str) -> Callable[..., Any]:
    return lambda self, other: self._write_result(name, other)


class _Inplace(Methods):
    """What can be written to."""

    __slots__ = ()

    __iadd__, __isub__ = _inplace("add"), _inplace("subtract")
    __imul__, __itruediv__ = _inplace("multiply"), _inplace("divide")
    __ifloordiv__, __imod__ = _inplace("floor_divide"), _inplace("remainder")
    __ipow__, __imatmul__ = _inplace("power"), _inplace("matmul")
    __iand__, __ior__ = _inplace("bitwise_and"), _inplace("bitwise_or")
    __ixor__, __ilshift__ = _inplace("bitwise_xor"), _inplace("left_shift")
    __irshift__ = _inplace("right_shift")

    def _write_result(self, name: str, other: Any) -> Any:
        """Apply an in-place operator."""
        raise NotImplementedError


class Tracer(_Inplace):
    """A traced array. ``Tracer(sym)`` is read-only, as an argument is.

    Args:
        sym: its value; None where ``known`` is all there is.
        known: the value as far as it is known already: of ``np.zeros`` and the like, until something traced is
            written in.
        base: the array this is a view of.
        key: the index that made the view, where one did.
        own: whether the array was made here and may be written to.
    """

    __slots__ = ("__weakref__", "_base", "_home", "_key", "_known", "_place", "_seen", "_sym", "_writes")
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        sym: Sym | None,
        *,
        known: np.ndarray[Any, Any] | None = None,
        base: Tracer | None = None,
        key: Any = NO_KEY,
        own: bool = False,
    ) -> None:
        self._sym = sym
        self._known = known
        self._base = base
        self._key = key
        self._place = key if key is NO_KEY else _syms(key)  # as it is now: an array in it may be written to
        self._writes = 0
        self._seen = 0 if base is None else base._writes
        self._home = builder() if own else None

    @property
    def sym(self) -> Sym:
        """The value, as a symbol.

        Raises:
            LeakedTracer, StaleView: when there is no value that NumPy would agree with.
        """
        self._check()
        if self._sym is None:
            assert self._known is not None
            if not tracing():
                raise LeakedTracer(found=self._describe())
            return builder().constant(self._known)
        if not is_open(self._sym.builder):
            raise LeakedTracer(found=self._describe())
        return self._sym

    def learn(self, known: np.ndarray[Any, Any] | None) -> None:
        """Take note of the value, where it is known."""
        self._known = known

    def _check(self) -> None:
        """Read a view again where the array it is a view of was written to since."""
        base = self._base
        if base is None:
            return
        base._check()
        if base._writes == self._seen:
            return
        if self._key is NO_KEY:
            raise StaleView(found=self._describe())
        index = concrete(self._place)
        if base._known is not None and index is not TRACED:
            self._sym, self._known = None, np.asarray(base._known[index])
        else:
            sym = base.sym
            with sym.builder.active():  # where the array is, this may be read from a trace inside
                self._sym, self._known = indexing.get(sym, self._place), None
        self._seen = base._writes
        self._writes += 1

    def _describe(self) -> str:
        return str(Type(self.shape, as_dtype(self.dtype)))

    def __repr__(self) -> str:
        return f"Tracer({self._describe()})"

    @property
    def shape(self) -> tuple[int, ...]:
        return self._sym.shape if self._sym is not None else self._known.shape  # type: ignore[union-attr]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._sym.dtype if self._sym is not None else self._known.dtype  # type: ignore[union-attr]

    # a known value ends where something traced is written in

    @property
    def known(self) -> np.ndarray[Any, Any] | None:
        """The value, where it is known."""
        self._check()
        return self._known

    def _number(self, what: str) -> np.ndarray[Any, Any]:
        if self.known is None:
            raise TracedNumber(what=what, found=self._describe())
        return self._known  # type: ignore[return-value]

    def __bool__(self) -> bool:
        if self.known is None:
            raise TracedTruth(found=self._describe())
        return bool(self._number("bool"))

    def __int__(self) -> int:
        return int(self._number("int()"))

    def __float__(self) -> float:
        return float(self._number("float(), a function of math, or an element of a NumPy array"))

    def __complex__(self) -> complex:
        return complex(self._number("complex()"))

    def __index__(self) -> int:
        return self._number("an index, a shape or range()").__index__()

    def __format__(self, spec: str) -> str:
        return format(self._number("a format").item(), spec) if spec else repr(self)

    def item(self, *index: int) -> Any:
        return self._number("item()").item(*index)

    def tolist(self) -> Any:
        return self._number("tolist()").tolist()

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            self._number("an axis, or a loop over its elements,")
        return super().__iter__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if self.known is None:
            raise TracedArray(found=self._describe())
        return np.array(self._known, dtype=dtype)

    def __getitem__(self, key: Any) -> Any:
        index, basic = concrete(key), indexing.is_basic(key)
        if self.known is not None and index is not TRACED:
            part = np.asarray(self._known[index])  # type: ignore[index]
            basic = basic and part.ndim > 0
            return Tracer(None, known=part, base=self if basic else None, key=key, own=not basic and part.ndim > 0)
        symbols = _syms(key)
        masked = indexing.mask_of(self.sym, symbols)
        if masked is not None:
            view = indexing.get(self.sym, masked.key)
            return Selection.of(view, masked.over(view))
        sym = indexing.get(self.sym, symbols)
        return Tracer(sym, base=self, key=key) if basic and sym.ndim else Tracer(sym, own=not basic and sym.ndim > 0)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check()
        if isinstance(value, Tracer) and value._base is self and value._seen == self._writes and _same(key, value._key):
            return  # a[key] += v has written through a[key] already
        self._require_own()
        if isinstance(value, Selection):
            masked = indexing.mask_of(self.sym, _syms(key))
            if masked is None:
                raise TracedMask
            view = indexing.get(self.sym, masked.key)
            self._replace(indexing.put(self.sym, masked.key, value.put(view, masked.over(view)), "set"))
            return
        index = concrete(key)
        held = concrete(value)
        if self._known is not None and index is not TRACED and held is not TRACED:
            self._know(index, held)
        else:
            value = _packed(value, self.dtype) if isinstance(value, np.generic) and indexing.is_basic(key) else value
            self._replace(indexing.put(self.sym, _syms(key), to_written(value, self.dtype), "set"))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().__array_function__(func, types, args, kwargs)
        except (UnsupportedFunction, UnsupportedArgument, InvalidParameter):
            known = concrete([args, list(kwargs.values())])
            if known is TRACED:
                raise
            return func(*known[0], **dict(zip(kwargs, known[1], strict=True)))

    def _require_own(self) -> None:
        if self._base is not None and self._key is NO_KEY:
            raise WriteThroughView(found=self._describe())
        if self._base is not None:
            self._base._require_own()
        elif self._home is not builder():
            raise ReadOnlyArray(found=self._describe())

    def _know(self, index: Any, held: Any) -> None:
        """Write a known value into one, and where this is a view, into what it is a view of."""
        assert self._known is not None
        made = self._known if self._known.flags.writeable else self._known.copy()
        made[index] = held
        base = self._base
        place = TRACED if base is None else concrete(self._place)
        if base is not None and (base._known is None or place is TRACED):
            self._replace(builder().constant(made))
            return
        if base is not None:
            base._know(place, made)
            self._seen = base._writes
        self._sym, self._known = None, made
        self._writes += 1

    def _replace(self, sym: Sym) -> None:
        """Take another value, and where this is a view, write it into what it is a view of."""
        base = self._base
        if base is not None:
            base._replace(indexing.put(base.sym, self._place, sym, "set"))
            self._seen = base._writes
        self._sym, self._known = sym, None
        self._writes += 1

    def _cast(self, op: str, value: Any, casting: Any) -> Sym:
        """Make ``value`` fit to be written over the whole array by a ufunc, with NumPy's rule for casts."""
        sym = to_sym(value)
        if not np.can_cast(sym.dtype, self.dtype, casting):
            raise UnsafeCast(op=f"np.{op}", found=sym.type, expected=self._describe())
        return indexing.fitted(sym.astype(self.dtype), self.shape)

    def assign(self, op: str, value: Any, casting: Any = "same_kind") -> None:
        self._check()
        self._require_own()
        self._replace(self._cast(op, value, casting))

    def _write_result(self, name: str, other: Any) -> Any:
        """Apply an in-place operator."""
        result = OPERATORS[name](self, other)
        if not self.shape and self._home is None:
            return result  # a scalar: another one takes the name
        self.assign(name, result)
        return self

    def fill(self, value: Any) -> None:
        self[...] = value


def _over(mask: Sym, x: Sym) -> Sym:
    return mask.reshape((*mask.shape, *(1,) * (x.ndim - mask.ndim))).broadcast(x.shape)


class Selection(_Inplace):
    """The elements ``x[mask]`` for a traced mask.

    How many they are is not known, so they only take part in what does not ask: elementwise functions of these, of
    others by the same mask and of numbers; sums and the like over all of them; being written back by the same mask. A
    mask that is made in the same way of the same values is the same.

    Args:
        value: what the elements are of, or a function of it; every element is computed.
        mask: over its first axes.
    """

    __slots__ = ("mask", "value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Sym, mask: Sym) -> None:
        self.value = value
        self.mask = mask

    @property
    def shape(self) -> tuple[int, ...]:
        raise TracedMask

    @property
    def ndim(self) -> int:
        return self.value.ndim - self.mask.ndim + 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.dtype

    def __getitem__(self, key: Any) -> Any:
        raise TracedMask

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TracedMask

    @classmethod
    def of(cls, x: Sym, mask: Sym) -> Selection:
        """Select from ``x``; what is not selected reads 1, where most functions have a derivative that is finite."""
        chosen = _over(mask, x)
        return cls(apply("where", chosen, x, full(1, x)), mask)

    @property
    def chosen(self) -> Sym:
        """The mask, of the shape of ``value``."""
        return _over(self.mask, self.value)

    def operand(self, x: Any) -> Any:
        """Return what an elementwise function of these elements and ``x`` takes in place of ``x``."""
        if isinstance(x, Selection):
            if not same(x.mask, self.mask):
                raise TracedMask
            return x.value
        if np.ndim(x) > self.value.ndim - self.mask.ndim:
            raise TracedMask
        return x

    def put(self, x: Sym, mask: Sym) -> Sym:
        """Write the elements to where they are in another array, or in this one."""
        if not same(mask, self.mask) or x.shape != self.value.shape:
            raise TracedMask
        return apply("where", self.chosen, self.value.astype(x.dtype), x)

    def _write_result(self, name: str, other: Any) -> Selection:
        """Apply an in-place operator: these elements are a copy, and other names of it see the result."""
        result: Selection = OPERATORS[name](self, other)
        if not np.can_cast(result.dtype, self.dtype, "same_kind"):
            raise UnsafeCast(op=f"np.{name}", found=result.value.type, expected=str(self.value.type))
        self.value = result.value.astype(self.dtype)
        return self


def concrete(x: Any) -> Any:
    """Return a number, an array or an index, possibly a tuple or list of them, with what is known in place of tracers.

    Returns ``TRACED`` when something is not known.
    """
    if isinstance(x, Tracer):
        return x.__array__() if x.known is not None else TRACED
    if isinstance(x, Sym | Selection):
        return TRACED
    if isinstance(x, Methods):
        return np.asarray(x)
    if isinstance(x, slice):
        bounds = concrete((x.start, x.stop, x.step))
        return bounds if bounds is TRACED else slice(*bounds)
    if isinstance(x, tuple | list):
        parts = [concrete(v) for v in x]
        return TRACED if any(p is TRACED for p in parts) else parts if isinstance(x, list) else tuple(parts)
    return x


def _syms(key: Any) -> Any:
    """Return an index with symbols in place of the tracers whose values are not known."""
    if isinstance(key, tuple):
        return tuple(_syms(k) for k in key)
    if isinstance(key, slice):
        return slice(*(_syms(v) for v in (key.start, key.stop, key.step)))
    known = concrete(key)
    return to_sym(FUNCTIONS["asarray"](key)) if known is TRACED else known


def _same(key: Any, other: Any) -> bool:
    """Whether two indices of one statement are the same; the two slices of ``a[i:] += v`` are made one by one."""
    if key is other:
        return True
    return (
        isinstance(key, slice)
        and isinstance(other, slice)
        and (key.start, key.stop, key.step) == (other.start, other.stop, other.step)
    )


def to_sym(x: Any) -> Sym:
    """Return the symbol of an array or a number; a concrete array becomes a constant of the innermost trace."""
    if isinstance(x, Tracer):
        return x.sym
    if isinstance(x, Sym):
        return x
    if isinstance(x, Selection):
        raise TracedMask
    if isinstance(x, Methods):
        return builder().constant(np.asarray(x))
    return as_sym(x)


def to_written(x: Any, dtype: np.dtype[Any]) -> Sym:
    """Return the symbol of what is written into an array of ``dtype``, cast to that.

    Raises:
        NumberOutOfRange: for Python numbers that it cannot hold.
    """
    if isinstance(x, list | tuple):
        known = concrete(x)
        try:
            x = FUNCTIONS["asarray"](x) if known is TRACED else np.asarray(known, dtype)
        except OverflowError:
            raise NumberOutOfRange(op=indexing.WRITE, found=x, dtype=dtype) from None
    return written(x if is_number(x) else to_sym(x), dtype, indexing.WRITE)


def _packed(value: np.generic, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return a NumPy scalar as an array of ``dtype``, as NumPy packs it into what an index without arrays selects.

    Raises:
        NumberOutOfRange: for one that it refuses, where it would cast an array of it.
    """
    packed = np.empty((), dtype)
    try:
        with np.errstate(all="ignore"):
            packed[()] = value
    except (OverflowError, ValueError):
        raise NumberOutOfRange(op=indexing.WRITE, found=value, dtype=dtype) from None
    return packed


def trace(fn: Callable[[list[Tracer]], Any], types: Sequence[Type], name: str) -> tuple[Graph, Any]:
    """Run ``fn`` on traced arrays of ``types``; return the graph of what it did and the tree of its results.

    Raises:
        InvalidResult: when ``name`` returned something that is neither an array nor a number.
    """
    b = Builder()
    with b.active(), intercepted(), untouched(fn):
        out = fn([Tracer(b.input(t)) for t in types])
        leaves, tree = optree.tree_flatten(out)
        for leaf, accessor in zip(leaves, tree.accessors(), strict=True):
            if not is_array(leaf):
                raise InvalidResult(function=name, found=type(leaf).__name__, name=accessor.codify("result"))
        return b.finish([to_sym(leaf) for leaf in leaves]), tree


__all__ = ["TRACED", "Selection", "Tracer", "concrete", "is_array", "to_sym", "trace"]
