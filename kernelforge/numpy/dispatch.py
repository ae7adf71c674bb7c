"""How a function of the namespace is called.

Its body works on symbols. Called with traced arrays it gives traced arrays, in the trace; called with concrete ones
it is compiled, run and remembered like any function under ``jit``; called with symbols, as the bodies call each
other, it gives symbols.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from kernelforge.array import Array
from kernelforge.errors import InvalidArgument, TracedMask
from kernelforge.ir.build import Sym, is_number, tracing
from kernelforge.jit import Jit, jit
from kernelforge.methods import FUNCTIONS, Methods, is_array
from kernelforge.told import Told
from kernelforge.trace import TRACED, Selection, Tracer, concrete, to_sym

Fn = Callable[..., Any]
F = TypeVar("F", bound=Fn)

MOST_KNOWN = 1 << 20
"""Elements of arrays whose values are followed while tracing."""

TOTALS = frozenset({"sum", "prod", "mean", "var", "std", "any", "all"})
"""Reductions whose value over no elements is NumPy's, so that a mask may leave out any number of them."""


def lift(x: Any, numbers: bool = False, name: str = "an operand") -> Any:
    """Return the symbol of an array argument; nested lists are stacked.

    Args:
        numbers: leave Python numbers as they are.
        name: of the parameter.
    """
    if isinstance(x, Sym):
        return x
    if isinstance(x, list | tuple):
        return stacked(x)
    if not is_array(x):
        raise InvalidArgument(name=name, found=f"{type(x).__module__}.{type(x).__qualname__}")
    if numbers and is_number(x):
        return x
    return to_sym(x)


def stacked(x: Sequence[Any]) -> Sym:
    """Make an array of a nested list, as ``np.array`` does."""
    known = concrete(x)
    if known is not TRACED:
        return to_sym(np.asarray(known))
    return to_sym(FUNCTIONS["stack"]([FUNCTIONS["asarray"](v) for v in x]))


def _strong(x: Sym) -> Sym:
    return x.astype(x.dtype) if x.type.weak else x


def wrap(out: Any, base: Tracer | None = None, weak: bool = False) -> Any:
    """Turn symbols into traced arrays, in tuples and lists too; views of ``base`` where it is given."""
    if isinstance(out, Sym):
        sym = out if weak else _strong(out)
        return Tracer(sym, base=base) if base is not None else Tracer(sym, own=sym.ndim > 0)
    if isinstance(out, tuple | list):
        return type(out)(wrap(x, base, weak) for x in out)
    return out


def _freeze(x: Any) -> Any:
    """Make a static argument hashable."""
    if isinstance(x, list | tuple):
        return tuple(_freeze(v) for v in x)
    if isinstance(x, np.ndarray | Array):
        return _freeze(np.asarray(x).tolist())
    if isinstance(x, np.generic):
        return x.item()
    return x


class Function:
    """A function of the namespace; see ``array_function``, whose arguments these are."""

    def __init__(
        self, fn: Fn, title: str, arrays: Sequence[str], view: bool, numbers: bool, weak: bool, maps: bool, space: str
    ) -> None:
        functools.update_wrapper(self, fn)
        self.__name__ = self.__qualname__ = title
        self.__doc__ = fn.__doc__ or f"``numpy.{title}``."
        self._fn = fn
        self._single = [a for a in arrays if a[0] != "*"]
        self._several = [a[1:] for a in arrays if a[0] == "*"]
        self._view, self._numbers, self._weak, self._maps = view, numbers, weak, maps
        self._space = space

    @functools.cached_property
    def _signature(self) -> inspect.Signature:
        found = inspect.signature(self._fn)
        assert {*self._single, *self._several} <= set(found.parameters), self.__name__
        return found

    @functools.cached_property
    def _compiled(self) -> Jit:
        def body(static: tuple[tuple[str, Any], ...], /, **dynamic: Any) -> Any:
            given = dict(static) | dynamic
            ordered = OrderedDict((k, given[k]) for k in self._signature.parameters if k in given)
            bound = inspect.BoundArguments(self._signature, ordered)
            with self._told(bound):
                return self._trace(bound)

        body.__qualname__ = self.__qualname__
        return jit(body, static_argnums=0)

    def __repr__(self) -> str:
        return f"<kernelforge.{'numpy' if self._space == 'np' else self._space}.{self.__name__}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            with Told(f"{self._space}.{self.__name__}", self._fn, args, kwargs):
                raise TypeError(*error.args) from None  # of this frame: beyond it, it would be the user's
        if not tracing():
            return self._run(bound)
        selection = next((x for x in bound.arguments.values() if isinstance(x, Selection)), None)
        if selection is not None:
            return self._select(bound, selection)
        given = dict(bound.arguments)
        inner = any(isinstance(x, Sym) for x in given.values())
        with contextlib.nullcontext() if inner else self._told(bound):
            out = self._trace(bound)
        if isinstance(out, Tracer) and out.size <= MOST_KNOWN:
            bound.arguments.update(given)
            out.learn(self._known(bound, out))
        return out

    def _known(self, bound: inspect.BoundArguments, out: Tracer) -> np.ndarray[Any, Any] | None:
        """Return the result as NumPy has it, where the values of all arguments are known while tracing."""
        original = getattr(np, self.__name__, None) if self._space == "np" else None
        arrays = [concrete(bound.arguments.get(name)) for name in (*self._single, *self._several)]
        if original is None or any(x is TRACED or _size(x) > MOST_KNOWN for x in arrays):
            return None
        bound.arguments.update({name: concrete(x) for name, x in bound.arguments.items()})
        try:
            with np.errstate(all="ignore"):
                found = np.asarray(original(*bound.args, **bound.kwargs))
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
        return found if (found.shape, found.dtype) == (out.shape, out.dtype) else None

    def _is_sequence(self, name: str) -> bool:
        return name in self._several or self._signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL

    def _trace(self, bound: inspect.BoundArguments) -> Any:
        """Run the body on symbols, and give back what the arguments were: traced arrays, or symbols."""
        given = bound.arguments
        symbols = False
        base: Tracer | None = None
        for name in (*self._single, *self._several):
            if name not in given or (given[name] is None and self._signature.parameters[name].default is None):
                continue
            values = given[name] if self._is_sequence(name) else (given[name],)
            symbols = symbols or any(isinstance(v, Sym) for v in values)
            if self._view and isinstance(values[0], Tracer):
                base = values[0]
            lifted = tuple(lift(v, self._numbers, name) for v in values)
            given[name] = lifted if self._is_sequence(name) else lifted[0]
        out = self._fn(*bound.args, **bound.kwargs)
        return out if symbols else wrap(out, base, self._weak)

    def _told(self, bound: inspect.BoundArguments) -> Told:
        return Told(f"{self._space}.{self.__name__}", self._fn, (), bound.arguments)

    def _select(self, bound: inspect.BoundArguments, selection: Selection) -> Any:
        """Run on elements that a traced mask selects: on all there are, then of these the ones it selects.

        Raises:
            TracedMask: when their number is asked for.
        """
        given = bound.arguments
        if self._maps:
            given.update({name: selection.operand(x) for name, x in given.items() if name in self._single})
            out = self._trace(bound)
            return (
                tuple(Selection(x, selection.mask) for x in out)
                if isinstance(out, tuple)
                else Selection(out, selection.mask)
            )
        first, *others = given
        if self.__name__ not in TOTALS or {*others} & {"axis", "keepdims", "where"}:
            raise TracedMask
        given |= {first: selection.value, "where": selection.chosen}
        return wrap(self._trace(bound))

    def _run(self, bound: inspect.BoundArguments) -> Any:
        """Compile and run, with what is not an array as a static argument."""
        dynamic: dict[str, Any] = {}
        static: dict[str, Any] = {}
        with self._told(bound):
            for name, value in bound.arguments.items():
                if name in self._several:
                    dynamic[name] = tuple(concrete_argument(v) for v in value)
                elif name in self._single and value is not None:
                    dynamic[name] = concrete_argument(value)
                else:
                    static[name] = _freeze(value)
        return self._compiled(tuple(sorted(static.items())), **dynamic)


def _size(x: Any) -> int:
    """Return how many elements there are in an array, or in a list of what may have several shapes."""
    return sum(map(_size, x)) if isinstance(x, list | tuple) else np.size(x)


def array_function(
    *arrays: str,
    name: str | None = None,
    view: bool = False,
    numbers: bool = False,
    weak: bool = False,
    maps: bool = False,
    table: dict[str, Fn] = FUNCTIONS,
    space: str = "np",
) -> Callable[[F], F]:
    """Enter a function on symbols into the namespace.

    Args:
        arrays: names of the parameters that are arrays; with a star, sequences of arrays.
        name: NumPy's, where the function has another one.
        view: whether NumPy's result shares the memory of the first argument.
        numbers: whether the body takes Python numbers as they are, because they promote by kind.
        weak: whether the result may stand for a Python number.
        maps: whether each element of the result depends on one of each array.
        table: where to enter it.
        space: the module that errors name it by.
    """

    def decorate(fn: F) -> F:
        made = table[name or fn.__name__] = Function(fn, name or fn.__name__, arrays, view, numbers, weak, maps, space)
        return cast(F, made)

    return decorate


def concrete_argument(x: Any) -> Any:
    """Return an argument outside of a trace: nested lists as arrays, tuples of arrays as they are."""
    if isinstance(x, list | tuple):
        return tuple(concrete_argument(v) for v in x) if any(isinstance(v, Methods) for v in x) else np.asarray(x)
    return x
