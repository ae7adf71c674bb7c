"""What traced and concrete arrays share: operators, methods and NumPy's two protocols.

Each is a function of the array namespace, which ``kernelforge.numpy`` enters into the tables here.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kernelforge.dtypes import as_dtype
from kernelforge.errors import (
    ImmutableArray,
    NotForArrays,
    ReadOnlyArray,
    ShapeMismatch,
    UnsupportedArgument,
    UnsupportedAttribute,
    UnsupportedFunction,
)
from kernelforge.ir.build import tracing

FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""The array namespace: NumPy's name (``linalg.norm`` for those of its submodules) to the function."""

OPERATORS: dict[str, Callable[..., Any]] = {}
"""Ufuncs as the operators apply them: two Python numbers give a Python number, which promotes by its kind only."""

REFUSED: dict[str, str] = {}
"""Functions that will not be there, and why."""

IGNORED = {
    "out": None,
    "order": None,
    "subok": None,
    "like": None,
    "casting": "same_kind",
    "device": None,
    "copy": None,
}
"""Keywords of NumPy functions that say nothing here, by the value that says nothing."""

MEANT = {
    "copy": ("nan_to_num", "astype"),
    "casting": ("copyto",),
    "order": (
        "reshape", "ravel", "flatten", "unravel_index", "ravel_multi_index", "sort", "argsort", "partition",
        "argpartition",
    ),
}  # fmt: skip
"""Functions to which one of them says something."""

REDUCERS = {
    "add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min", "logical_and": "all", "logical_or": "any",
    "fmax": "nanmax", "fmin": "nanmin", "logaddexp": "logsumexp",
    "bitwise_and": "bitwise_and_all", "bitwise_or": "bitwise_or_all", "bitwise_xor": "bitwise_xor_all",
    "logical_xor": "logical_xor_all",
}  # fmt: skip
ACCUMULATORS = {"add": "cumsum", "multiply": "cumprod", "maximum": "cummax", "minimum": "cummin"}
METHODS = {"reduce": REDUCERS, "accumulate": ACCUMULATORS}


def function(name: str) -> Callable[..., Any]:
    """Look up a function of the namespace.

    Raises:
        UnsupportedFunction: when it is not there; the message names the nearest one that is, or outside of compiled
            functions how NumPy computes it.
    """
    found = FUNCTIONS.get(name)
    if found is None and not tracing():
        raise NotForArrays(name=f"np.{name}")
    if found is None:
        near = difflib.get_close_matches(name, FUNCTIONS, 1)
        reason = f": {REFUSED[name]}" if name in REFUSED else f"; the nearest that is: np.{near[0]}" if near else ""
        raise UnsupportedFunction(name=f"np.{name}", reason=reason)
    return found


def is_array(x: Any) -> bool:
    """Whether ``x`` is an array or a number that a compiled function computes with."""
    return isinstance(x, Methods | np.ndarray | np.generic | bool | int | float)


def _operator(name: str, swapped: bool = False) -> Callable[..., Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, complex):
            as_dtype(type(other))  # raises: says what there is
        if not is_array(other) and not isinstance(other, list | tuple):
            return NotImplemented
        return OPERATORS[name](other, self) if swapped else OPERATORS[name](self, other)

    return method


def _unary(name: str) -> Callable[..., Any]:
    def method(self: Any) -> Any:
        return OPERATORS[name](self)

    return method


def _method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, out: Any = None, **kwargs: Any) -> Any:
        result = FUNCTIONS[name](self, *args, **meaningful(name, kwargs))
        return result if out is None else _store(name, result, (out,))

    method.__name__ = name
    return method


def meaningful(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Drop keywords that say nothing.

    Raises:
        UnsupportedArgument: for one of them that says something.
    """
    kept = {}
    for key, value in kwargs.items():
        if key not in IGNORED or name in MEANT.get(key, ()):
            kept[key] = value
        elif value is not None and value is not True and not isinstance(value, str):
            raise UnsupportedArgument(op=f"np.{name}", name=key, found=type(value).__name__, expected="leave it out")
    return kept


_power = _operator("power")


class Methods:
    """An array with NumPy's operators and methods; subclasses say what it is made of."""

    __slots__ = ()
    __array_priority__ = 1000.0
    __hash__: ClassVar[None]  # type: ignore[assignment]

    shape: Any
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def itemsize(self) -> int:
        return int(self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def T(self) -> Any:  # noqa: N802 - NumPy's name
        return FUNCTIONS["transpose"](self)

    @property
    def mT(self) -> Any:  # noqa: N802 - NumPy's name
        return FUNCTIONS["swapaxes"](self, -1, -2)

    @property
    def real(self) -> Any:
        return self

    @property
    def imag(self) -> Any:
        """Zeros: there are no complex numbers."""
        return FUNCTIONS["zeros_like"](self)

    @property
    def flat(self) -> Any:
        return FUNCTIONS["ravel"](self)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or not hasattr(np.ndarray, name):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            found = type(self).__name__
            elsewhere = REFUSED.get(name, "compute it outside") if tracing() else f"np.asarray(x).{name} is NumPy's"
            instead = f"np.{name} takes it" if name in FUNCTIONS else elsewhere
            raise UnsupportedAttribute(name=name, found=found, instead=instead)

    @property
    def at(self) -> At:
        """``x.at[index].set(v)`` and the like: an updated copy."""
        return At(self)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array of no axes")
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over an array of no axes")
        return (self[i] for i in range(self.shape[0]))

    def __getitem__(self, key: Any) -> Any:
        raise NotImplementedError

    def assign(self, op: str, value: Any, casting: Any = "same_kind") -> None:
        """Write over the whole array, for ``out=`` of the ufunc ``op``, where NumPy casts so under ``casting``."""
        raise ImmutableArray

    __add__, __radd__ = _operator("add"), _operator("add", True)
    __sub__, __rsub__ = _operator("subtract"), _operator("subtract", True)
    __mul__, __rmul__ = _operator("multiply"), _operator("multiply", True)
    __truediv__, __rtruediv__ = _operator("divide"), _operator("divide", True)
    __floordiv__, __rfloordiv__ = _operator("floor_divide"), _operator("floor_divide", True)
    __mod__, __rmod__ = _operator("remainder"), _operator("remainder", True)
    __divmod__, __rdivmod__ = _operator("divmod"), _operator("divmod", True)
    __rpow__ = _operator("power", True)
    __matmul__, __rmatmul__ = _operator("matmul"), _operator("matmul", True)
    __and__, __rand__ = _operator("bitwise_and"), _operator("bitwise_and", True)
    __or__, __ror__ = _operator("bitwise_or"), _operator("bitwise_or", True)
    __xor__, __rxor__ = _operator("bitwise_xor"), _operator("bitwise_xor", True)
    __lshift__, __rlshift__ = _operator("left_shift"), _operator("left_shift", True)
    __rshift__, __rrshift__ = _operator("right_shift"), _operator("right_shift", True)
    __lt__, __le__ = _operator("less"), _operator("less_equal")
    __gt__, __ge__ = _operator("greater"), _operator("greater_equal")
    __eq__, __ne__ = _operator("equal"), _operator("not_equal")
    __neg__, __pos__ = _unary("negative"), _unary("positive")
    __abs__, __invert__ = _unary("absolute"), _unary("invert")

    sum, prod, mean, var, std = _method("sum"), _method("prod"), _method("mean"), _method("var"), _method("std")
    max, min, any, all = _method("max"), _method("min"), _method("any"), _method("all")
    argmax, argmin = _method("argmax"), _method("argmin")
    argsort, searchsorted = _method("argsort"), _method("searchsorted")
    cumsum, cumprod = _method("cumsum"), _method("cumprod")
    swapaxes, squeeze, ravel = _method("swapaxes"), _method("squeeze"), _method("ravel")
    diagonal, trace, repeat, take = _method("diagonal"), _method("trace"), _method("repeat"), _method("take")
    clip, round, dot = _method("clip"), _method("round"), _method("dot")
    copy, conj, conjugate, flatten = _method("copy"), _method("conjugate"), _method("conjugate"), _method("flatten")

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        return FUNCTIONS["astype"](self, dtype, *args, **meaningful("astype", kwargs))

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        return FUNCTIONS["reshape"](self, shape[0] if len(shape) == 1 else shape, order=order)

    def transpose(self, *axes: Any) -> Any:
        return FUNCTIONS["transpose"](self, axes[0] if len(axes) == 1 else axes or None)

    def sort(self, axis: int = -1, kind: str | None = None, order: Any = None, *, stable: Any = None) -> None:
        self.assign("sort", FUNCTIONS["sort"](self, axis, kind, order))

    def __pow__(self, other: Any) -> Any:
        if isinstance(other, float) and other == 0.5 and self.ndim and self.dtype.kind == "f":
            # as NumPy's arrays of floats do: of -inf it is NaN
            return FUNCTIONS["sqrt"](self)
        if type(other) is int and other == 2 and self.ndim and self.dtype.kind == "b":
            return FUNCTIONS["square"](self)  # as NumPy's arrays do, whose squares of bool are int8
        return _power(self, other)

    def __round__(self, ndigits: int | None = None) -> Any:
        return FUNCTIONS["round"](self, ndigits or 0)

    def __array_ufunc__(self, ufunc: np.ufunc, how: str, *inputs: Any, **kwargs: Any) -> Any:
        name = ufunc.__name__
        out, casting = kwargs.pop("out", None), kwargs.pop("casting", "same_kind")
        axis_given = "axis" in kwargs
        given = _given(meaningful(name, kwargs))
        if how == "at":
            x, *rest = inputs
            if tracing() and not isinstance(x, Methods):
                raise ReadOnlyArray(found="the array")
            _store(name, FUNCTIONS["combined"](name, x, *rest), (x,))
            return None
        if how == "__call__":
            mask = given.pop("where", None)
            result = function(name)(*inputs, **given)
            if mask is not None:
                if out is None or len(out) != 1:
                    instead = "the elements it leaves out would be uninitialised: give out=, or use np.where"
                    raise UnsupportedArgument(op=f"np.{name}", name="where", found="a mask", expected=instead)
                result = FUNCTIONS["where"](mask, result, out[0])
        elif how in METHODS:
            if not axis_given:
                given["axis"] = 0
            result = _over_elements(name, how, given)(*inputs, **given)
        elif how == "reduceat":
            result = FUNCTIONS["reduceat"](name, *inputs, **given)
        elif how == "outer":
            x, y = (FUNCTIONS["asarray"](v) for v in inputs)
            result = function(name)(x.reshape((*x.shape, *[1] * y.ndim)), y, **given)
        else:
            raise UnsupportedFunction(name=f"np.{name}.{how}", reason="")
        return result if out is None else _store(name, result, out, how == "__call__", casting)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        path = [*func.__module__.split(".")[1:], func.__name__]
        name = ".".join(p for p in path if p not in ("lib", "_core", "stride_tricks"))
        out = kwargs.get("out")
        result = function(name)(*args, **meaningful(name, {k: v for k, v in kwargs.items() if k != "out"}))
        return result if out is None else _store(name, result, (out,), casting=kwargs.get("casting", "same_kind"))


class At:
    """The parts of an array that an index selects, for updates: ``x.at[index].add(v)``.

    Where an index array names an element twice, ``set`` keeps the last value, and the others combine all of them.
    """

    __slots__ = ("_key", "_x")

    def __init__(self, x: Methods, key: Any = None) -> None:
        self._x = x
        self._key = key

    def __getitem__(self, key: Any) -> At:
        return At(self._x, key)

    def get(self) -> Any:
        return self._x[self._key]

    def _update(self, mode: str, value: Any) -> Any:
        return FUNCTIONS["at"](self._x, self._key, value, mode)

    def set(self, value: Any) -> Any:
        return self._update("set", value)

    def add(self, value: Any) -> Any:
        return self._update("add", value)

    def multiply(self, value: Any) -> Any:
        return self._update("mul", value)

    def min(self, value: Any) -> Any:
        return self._update("min", value)

    def max(self, value: Any) -> Any:
        return self._update("max", value)


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v for k, v in kwargs.items() if v is not None and v is not np._NoValue and not (k == "where" and v is True)
    }


def _over_elements(name: str, how: str, given: dict[str, Any]) -> Callable[..., Any]:
    """Return the function that is ``reduce`` or ``accumulate`` of a ufunc, with the keywords that are given."""
    found = FUNCTIONS.get(METHODS[how].get(name, ""))
    if found is not None and given.keys() <= inspect.signature(found).parameters.keys():
        return found
    return functools.partial(function(f"ufunc.{how}"), name=name)


def _store(name: str, result: Any, out: tuple[Any, ...], broadcast: bool = False, casting: Any = "same_kind") -> Any:
    results = result if isinstance(result, tuple) else (result,)
    for target, value in zip(out, results, strict=True):
        if target is None:
            continue
        if not broadcast and target.shape != value.shape:
            expected = f"out of shape {value.shape}"
            raise ShapeMismatch(op=f"np.{name}", found=target.shape, expected=expected)
        if isinstance(target, Methods):
            target.assign(name, value, casting)
        elif not tracing():
            np.copyto(target, np.asarray(value), casting=casting)
        else:
            raise UnsupportedArgument(
                op=f"np.{name}",
                name="out",
                found="a NumPy array",
                expected="make it inside of the function with np.empty, or use the result",
            )
    return out[0] if len(out) == 1 else out
