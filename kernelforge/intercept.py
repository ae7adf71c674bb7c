"""NumPy's functions that make arrays, inside of a trace.

``np.zeros(3)`` has no argument by which NumPy could tell that a function is being compiled, and the array it makes
could not take traced elements. Nor does NumPy look into lists for traced arrays. So while any thread traces, the
functions in ``FUNCTIONS`` are replaced in the ``numpy`` module by functions that ask whether *this* thread traces: if
not, or if the caller is this package, NumPy itself or a module that is being imported, they call NumPy's own. The same
way ``numpy.random`` is refused, whose numbers would be the same at each call.

Compiled modules, such as those of ``numpy.random``, have no frames to tell them by, and take it for granted that
``np.empty`` gives an array. While any thread traces, these have NumPy as it was under their names for it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.machinery
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import numpy as np

from kernelforge.dtypes import promote
from kernelforge.errors import UnsupportedArgument, UnsupportedFunction
from kernelforge.forks import UNFORKED
from kernelforge.lines import in_package
from kernelforge.methods import FUNCTIONS, REFUSED, Methods, function, meaningful

CREATORS = (
    "zeros",
    "ones",
    "empty",
    "full",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "arange",
    "linspace",
    "eye",
    "identity",
    "tri",
)
"""Give traced arrays whose values are known as long as nothing traced is written in."""

_NUMPY = os.path.join(os.path.dirname(np.__file__), "")

_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("kernelforge_intercepting", default=False)
_lock = threading.Lock()
_traces = 0
_changed: list[tuple[Any, str, Any, Any]] = []


def _ours(name: str, args: Iterable[Any]) -> bool:
    """Whether a call in this thread, two frames up, is for traced arrays."""
    if not _inside.get() or not (name in CREATORS or any(_holds_traced(x) for x in args)):
        return False
    frame: FrameType | None = sys._getframe(2)
    assert frame is not None
    if frame.f_code.co_filename.startswith(_NUMPY):
        return False
    own = in_package(frame.f_code.co_filename)
    while frame is not None and not in_package(frame.f_code.co_filename):
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return False
        frame = frame.f_back
    return not own


def _holds_traced(x: Any) -> bool:
    return isinstance(x, Methods) or (isinstance(x, list | tuple) and any(_holds_traced(v) for v in x))


def _replacement(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _ours(name, (*args, *kwargs.values())) and kwargs.get("out") is None:
            return function(name)(*args, **meaningful(name, kwargs))
        return original(*args, **kwargs)

    return call


def _refusal(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original, ("__doc__",))
    def call(*args: Any, **kwargs: Any) -> Any:
        if _ours("empty", ()):
            reason = ": its numbers would be the same at each call; use kf.random, by a key that is an argument"
            raise UnsupportedFunction(name=f"np.random.{name}", reason=reason)
        return original(*args, **kwargs)

    return call


class Joined:
    """``numpy.r_`` or ``numpy.c_``, whose indices may be traced arrays; without these it is NumPy's.

    Raises:
        UnsupportedArgument: for a string, which would say how arrays are joined.
    """

    def __init__(self, original: Any, columns: bool) -> None:
        self._original, self._columns = original, columns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __getitem__(self, key: Any) -> Any:
        items = key if isinstance(key, tuple) else (key,)
        if not any(isinstance(x, Methods) for x in items):
            return self._original[key]
        made = []
        for item in items:
            if isinstance(item, str):
                op = "np.c_" if self._columns else "np.r_"
                raise UnsupportedArgument(op=op, name="a string", found=item, expected="use np.concatenate")
            x = FUNCTIONS["asarray"](self._original[item] if isinstance(item, slice) else item)
            x = FUNCTIONS["reshape"](x, -1) if x.ndim == 0 else x
            made.append(FUNCTIONS["reshape"](x, (-1, 1)) if self._columns and x.ndim == 1 else x)
        numbers = [isinstance(x, int | float) and not isinstance(x, np.generic) for x in items]
        dtypes = [
            [x.dtype for x, n in zip(made, numbers, strict=True) if n is is_number] for is_number in (False, True)
        ]
        kind = promote(*dtypes)
        return FUNCTIONS["concatenate"]([FUNCTIONS["astype"](x, kind) for x in made], -1 if self._columns else 0)


@functools.cache
def _replaced() -> list[tuple[Any, str, Any, Any]]:
    """Return the modules and names that are replaced, with what is there and what comes in its place."""
    found: list[tuple[Any, str, Any, Any]] = []
    for name in (*FUNCTIONS, *REFUSED):
        original = getattr(np, name, None)
        if callable(original) and not isinstance(original, np.ufunc | type):
            found.append((np, name, original, _replacement(name, original)))
    found += [(np, name, getattr(np, name), Joined(getattr(np, name), name == "c_")) for name in ("r_", "c_")]
    for name in np.random.__all__:
        original = getattr(np.random, name)
        if callable(original) and not isinstance(original, type) and name not in ("seed", "get_state", "set_state"):
            found.append((np.random, name, original, _refusal(name, original)))
    return found


@functools.cache
def _compiled(count: int) -> list[tuple[Any, str, Any, Any]]:
    """Return the names that compiled modules have for NumPy; anew when the number of modules is another one."""
    plain = types.ModuleType(np.__name__)
    vars(plain).update(vars(np))
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    modules = list(sys.modules.values())
    held = [(m, name) for m in modules for name in ("np", "numpy") if getattr(m, "__dict__", {}).get(name) is np]
    return [(m, name, np, plain) for m, name in held if str(getattr(m, "__file__", "")).endswith(suffixes)]


@contextlib.contextmanager
def intercepted() -> Iterator[None]:
    """Give this thread traced arrays from NumPy's functions in the body."""
    global _traces, _changed  # noqa: PLW0603 - counts the traces of all threads
    with UNFORKED, _lock:  # a child has NumPy's functions whole
        if not _traces:
            _changed = [*_compiled(len(sys.modules)), *_replaced()]
            for module, name, _, ours in _changed:
                setattr(module, name, ours)
        _traces += 1
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)
        with UNFORKED, _lock:
            _traces -= 1
            if not _traces:
                for module, name, original, _ in _changed:
                    setattr(module, name, original)
