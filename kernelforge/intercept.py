"""NumPy's functions that make arrays, inside of a trace.

``np.zeros(3)`` has no argument by which NumPy could tell that a function is being compiled, and the array it makes
could not take traced elements. So while any thread traces, the names in ``CREATORS`` and ``CONVERTERS`` are replaced
in the ``numpy`` module by functions that ask whether *this* thread traces: if not, or if the caller is this package
or NumPy itself, they call NumPy's own.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kernelforge.ir.build import in_package
from kernelforge.methods import FUNCTIONS, Methods

CREATORS = ("zeros", "ones", "empty", "full")
"""Give traced arrays whose values are known as long as nothing traced is written in."""

CONVERTERS = ("array", "asarray", "asanyarray", "ascontiguousarray")
"""Stack lists that hold traced arrays; what holds none stays NumPy's."""

_NUMPY = os.path.join(os.path.dirname(np.__file__), "")

_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("kernelforge_intercepting", default=False)
_lock = threading.Lock()
_originals: dict[str, Callable[..., Any]] = {}
_traces = 0


def _holds_traced(x: Any) -> bool:
    return isinstance(x, Methods) or (isinstance(x, list | tuple) and any(_holds_traced(v) for v in x))


def _replacement(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        ours = _inside.get() and (name in CREATORS or any(_holds_traced(x) for x in args))
        caller = sys._getframe(1).f_code.co_filename
        if ours and not in_package(caller) and not caller.startswith(_NUMPY):
            return FUNCTIONS[name](*args, **kwargs)
        return original(*args, **kwargs)

    return call


@contextlib.contextmanager
def intercepted() -> Iterator[None]:
    """Give this thread traced arrays from NumPy's functions in the body."""
    global _traces  # noqa: PLW0603 - counts the traces of all threads
    with _lock:
        if not _traces:
            for name in (*CREATORS, *CONVERTERS):
                _originals[name] = getattr(np, name)
                setattr(np, name, _replacement(name, _originals[name]))
        _traces += 1
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)
        with _lock:
            _traces -= 1
            if not _traces:
                for name, original in _originals.items():
                    setattr(np, name, original)
