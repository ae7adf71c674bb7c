"""NumPy's random generators inside of a trace: refused, as what they drew would be the same at each call.

Their methods take no traced array by which a draw could be told, and cannot be replaced. So those that a function can
reach are found before it is traced, and asked afterwards whether they moved.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import pickle
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kernelforge.errors import UnsupportedFunction
from kernelforge.lines import Loc, in_package

MOST = 1000
"""Objects that are looked at before a function is traced."""

Generator = np.random.Generator | np.random.RandomState


@contextlib.contextmanager
def untouched(fn: Any) -> Iterator[None]:
    """Refuse a draw, in the body, from a generator that ``fn`` reaches.

    Raises:
        UnsupportedFunction: naming the function that holds the generator.
    """
    found = [(generator, where, _state(generator)) for generator, where in _reached(fn)]
    yield
    for generator, where, before in found:
        if _state(generator) != before:
            reason = ": its numbers would be the same at each call; use kf.random, by a key that is an argument"
            raise UnsupportedFunction(name=f"np.random.{type(generator).__name__}", reason=reason, loc=where)


def _state(generator: Generator) -> bytes:
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return pickle.dumps(bits.__getstate__())


def _reached(root: Any) -> Iterator[tuple[Generator, Loc | None]]:
    """Yield the generators in a function's variables and in what these hold and call, and who has them."""
    todo: list[tuple[Any, Loc | None]] = [(root, None)]
    seen: set[int] = set()
    for x, where in todo:
        if id(x) in seen or len(seen) > MOST:
            continue
        seen.add(id(x))
        if isinstance(x, Generator):
            yield x, where
        elif isinstance(x, types.FunctionType):
            todo += [(v, _place(x) or where) for v in _variables(x)]
        elif isinstance(x, types.MethodType):
            todo += [(x.__func__, where), (x.__self__, _place(x.__func__) or where)]
        elif isinstance(x, functools.partial):
            todo += [(v, where) for v in (x.func, *x.args, *x.keywords.values())]
        elif isinstance(x, dict | list | tuple):
            todo += [(v, where) for v in _holders(x.values() if isinstance(x, dict) else x)]
        elif hasattr(x, "__dict__") and not isinstance(x, type | types.ModuleType):
            called = getattr(x, "__wrapped__", x)
            own = where or _place(called) or _place(vars(type(called)).get("__call__"))
            todo += [(v, own) for v in _holders(vars(x).values())]


def _holders(values: Iterable[Any]) -> list[Any]:
    """Keep of the first values those that are generators or may hold some: numbers and arrays are not worth a look."""
    first = list(itertools.islice(values, MOST))
    return [v for v in first if isinstance(v, Generator | dict | list | tuple) or hasattr(v, "__dict__")]


def _place(fn: Any) -> Loc | None:
    """Return where a user's function begins."""
    code = getattr(fn, "__code__", None)
    if code is None or in_package(code.co_filename):
        return None
    return Loc(code.co_filename, code.co_firstlineno, fn.__qualname__)


def _variables(fn: types.FunctionType) -> Iterator[Any]:
    """Yield what a function's code can name: variables around it, globals of users' modules, defaults."""
    for cell in fn.__closure__ or ():
        with contextlib.suppress(ValueError):  # not bound yet
            yield cell.cell_contents
    yield from fn.__defaults__ or ()
    yield from (fn.__kwdefaults__ or {}).values()
    if in_package(fn.__code__.co_filename):
        return
    names = set(_names(fn.__code__))
    for value in (fn.__globals__[n] for n in names if n in fn.__globals__):
        yield value
        if isinstance(value, types.ModuleType):
            yield from (vars(value)[n] for n in names if n in vars(value))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names(const)
