"""How a function of the namespace is called.

Its body works on symbols. Called with traced arrays it gives traced arrays, in the trace; called with concrete ones it is
compiled, run and remembered like any function under ``jit``; called with symbols, as the bodies call each other, it gives symbols.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from kernelforge.array import Array
from kernelforge.errors import InvalidArgument
from kernelforge.ir.build import Sym, tracing
from kernelforge.jit import jit
from kernelforge.methods import FUNCTIONS, OPERATORS, Methods, is_array
from kernelforge.trace import TRACED, Tracer, concrete, to_sym

Fn = Callable[..., Any]


def lift(x: Any, numbers: bool = False) -> Any:
    """Return the symbol of an array argument; nested lists are stacked.

    Args:
        numbers: leave Python numbers as they are.
    """
    if x is None or isinstance(x, Sym):
        return x
    if isinstance(x, list | tuple):
        return stacked(x)
    if not is_array(x):
        raise InvalidArgument(name="an operand", found=f"{type(x).__module__}.{type(x).__qualname__}")
    if numbers and isinstance(x, bool | int | float) and not isinstance(x, np.generic):
        return x
    return to_sym(x)


def stacked(x: Sequence[Any]) -> Sym:
    """Make an array of a nested list, as ``np.array`` does."""
    known = concrete(x)
    if known is not TRACED and not any(isinstance(leaf, Sym) for leaf in optree.tree_leaves(list(x))):
        return to_sym(np.asarray(known))
    found: Sym = FUNCTIONS["stack"]([FUNCTIONS["asarray"](v) if not isinstance(v, Sym) else v for v in x])
    return found.sym if isinstance(found, Tracer) else found


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


def array_function(
    *arrays: str, name: str | None = None, view: bool = False, numbers: bool = False, weak: bool = False, table: dict[str, Fn] = FUNCTIONS
) -> Callable[[Fn], Fn]:
    """Enter a function on symbols into the namespace.

    Args:
        arrays: names of the parameters that are arrays; with a star, sequences of arrays.
        name: NumPy's, where the function has another one.
        view: whether NumPy's result shares the memory of the first argument.
        numbers: whether the body takes Python numbers as they are, because they promote by kind.
        weak: whether the result may stand for a Python number.
        table: where to enter it.
    """
    single = frozenset(a for a in arrays if a[0] != "*")
    several = frozenset(a[1:] for a in arrays if a[0] == "*")

    def decorate(fn: Fn) -> Fn:
        signature = inspect.signature(fn)
        title = name or fn.__name__
        assert single | several <= set(signature.parameters), title

        def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
            try:
                return signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{title}(): {error}") from None

        def variadic(key: str) -> bool:
            return key in several or signature.parameters[key].kind is inspect.Parameter.VAR_POSITIONAL

        def traced(bound: inspect.BoundArguments) -> Any:
            given = bound.arguments
            base = raw = None
            for key in (*single, *several):
                if key not in given:
                    continue
                values = list(given[key]) if variadic(key) else [given[key]]
                raw = raw or next((v for v in values if isinstance(v, Sym)), None)
                if base is None and view:
                    base = values[0] if isinstance(values[0], Tracer) else None
                lifted = [lift(v, numbers) for v in values]
                given[key] = tuple(lifted) if variadic(key) else lifted[0]
            out = fn(*bound.args, **bound.kwargs)
            return out if raw is not None else wrap(out, base, weak)

        @jit(static_argnums=1)
        def compiled(dynamic: dict[str, Any], static: tuple[tuple[str, Any], ...]) -> Any:
            given = dict(static) | dynamic
            ordered = {k: given[k] for k in signature.parameters if k in given}
            return traced(inspect.BoundArguments(signature, ordered))  # type: ignore[arg-type]

        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            bound = bind(args, kwargs)
            if tracing():
                return traced(bound)
            dynamic: dict[str, Any] = {}
            static: dict[str, Any] = {}
            for key, value in bound.arguments.items():
                if key in single and value is not None:
                    dynamic[key] = concrete_argument(value)
                elif key in several:
                    dynamic[key] = tuple(concrete_argument(v) for v in value)
                else:
                    static[key] = _freeze(value)
            return compiled(dynamic, tuple(sorted(static.items())))

        table[title] = wrapper
        return wrapper

    return decorate


def concrete_argument(x: Any) -> Any:
    """Return an argument outside of a trace: nested lists as arrays, tuples of arrays as they are."""
    if isinstance(x, list | tuple):
        return tuple(concrete_argument(v) for v in x) if any(isinstance(v, Methods) for v in x) else np.asarray(x)
    return x


__all__ = ["FUNCTIONS", "OPERATORS", "array_function", "lift", "wrap"]
