"""What Python and NumPy refuse in the arguments of a call, told as an error about that call."""

from __future__ import annotations

import contextlib
import functools
import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from numpy.exceptions import AxisError

from kernelforge.dtypes import as_dtype
from kernelforge.errors import InvalidAxis, InvalidCall, KernelforgeError, UnsupportedDtype
from kernelforge.ir.types import Type
from kernelforge.lines import is_users

F = TypeVar("F", bound=Callable[..., Any])

FOREIGN = (TypeError, ValueError, IndexError, OverflowError, AttributeError)


def _words(x: Any) -> str:
    """Say what an argument is: arrays by dtype and shape, all else as Python writes it."""
    if isinstance(x, list | tuple):
        parts = [*map(_words, x[:6]), *(["..."] if len(x) > 6 else [])]
        text = ", ".join(parts)
        return f"[{text}]" if isinstance(x, list) else f"({text},)" if len(x) == 1 else f"({text})"
    if hasattr(type(x), "dtype") and hasattr(type(x), "shape"):
        with contextlib.suppress(UnsupportedDtype):
            return str(Type(tuple(x.shape), as_dtype(x.dtype)))
    return reprlib.repr(x)


def _parameters(fn: Callable[..., Any]) -> str:
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(fn).parameters.values()]
    return ", ".join(map(str, bare))


class Told:
    """Tells errors of a ``with`` block about its arguments as errors of the call ``op(*args, **kwargs)``.

    Those that functions of the user's raise in it stay what they are.

    Args:
        fn: has the parameters of the call.
    """

    __slots__ = ("args", "fn", "kwargs", "op")

    def __init__(self, op: str, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.op, self.fn, self.args, self.kwargs = op, fn, args, kwargs

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, step: object) -> None:
        if not isinstance(error, FOREIGN) or is_users(error):
            return
        if isinstance(error, InvalidAxis):  # of what this call is made of
            fields: dict[str, Any] = error.fields | {"op": self.op}
            raise InvalidAxis(**fields) from None
        if isinstance(error, KernelforgeError):
            return
        if isinstance(error, AxisError) and error.ndim is not None:
            n = error.ndim
            expected = f"integers from {-n} to {n - 1}" if n else "none"
            raise InvalidAxis(op=self.op, found=error.axis, count=n, expected=expected) from None
        given = ", ".join([*map(_words, self.args), *(f"{name}={_words(x)}" for name, x in self.kwargs.items())])
        raise InvalidCall(op=self.op, given=given, reason=error, expected=_parameters(self.fn)) from error


def telling(fn: F, name: str | None = None, space: str = "np") -> F:
    """Make a function of the namespace, or of another module, tell what is wrong with its arguments."""
    op = f"{space}.{name or fn.__name__}"

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with Told(op, fn, args, kwargs):
            return fn(*args, **kwargs)

    return cast(F, call)
