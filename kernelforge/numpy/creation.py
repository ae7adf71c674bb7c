"""Functions that make arrays, and those that turn things into arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.array import Array, put
from kernelforge.backends import registry
from kernelforge.backends.base import Backend
from kernelforge.devices import current
from kernelforge.dtypes import BFLOAT16, as_dtype, short
from kernelforge.errors import ArrayTooLarge, DeviceOutOfMemory, InvalidParameter, NumberOutOfRange, UnsupportedArgument
from kernelforge.ir.build import MOST_BYTES, Operand, Sym, apply, as_sym, tracing
from kernelforge.ir.types import Type
from kernelforge.methods import FUNCTIONS, Methods
from kernelforge.numpy.dispatch import array_function, lift, wrap
from kernelforge.numpy.ufuncs import common_dtype, ufunc
from kernelforge.told import telling
from kernelforge.trace import TRACED, Tracer, concrete

Shape = int | Sequence[int]


def shape_of(shape: Any, op: str) -> tuple[int, ...]:
    """Return a shape as a tuple of Python integers.

    Raises:
        InvalidParameter: when an extent is negative.
    """
    found = (operator.index(shape),) if not isinstance(shape, tuple | list) else tuple(operator.index(n) for n in shape)
    if any(n < 0 for n in found):
        raise InvalidParameter(op=op, name="shape", found=found, expected="extents of at least 0")
    return found


def _backend(op: str, device: str | None, a: Any = None) -> Backend | None:
    """Return the device that is asked for, by default the one ``a`` is on, else that of ``default_device``.

    None in a trace: arrays are where the arguments of the function are.

    Raises:
        UnsupportedArgument: for a device in a trace.
    """
    if tracing() and device is None:
        return None
    if tracing():
        expected = "leave it out: a compiled function computes where its arguments are"
        raise UnsupportedArgument(op=f"np.{op}", name="device", found=repr(device), expected=expected)
    if device is None and isinstance(a, Array):
        device = a.device
    return current() if device is None else registry.backend(device)


def filled(shape: tuple[int, ...], value: float, dtype: Any, backend: Backend | None) -> Any:
    """Make an array of one value, on a device; in a trace, without one, a traced array that is known.

    Raises:
        ArrayTooLarge: beyond what 64-bit indices reach.
        DeviceOutOfMemory: when the host has no room for it.
        NumberOutOfRange: for a Python integer that ``dtype`` cannot hold.
    """
    dtype = as_dtype(dtype)
    type_ = Type(shape, dtype)
    if type_.nbytes >= MOST_BYTES:
        raise ArrayTooLarge(op="np.zeros", found=type_)
    if type(value) is int:
        try:
            number = np.array(value, dtype)
        except OverflowError:
            raise NumberOutOfRange(op="np.full", found=value, dtype=dtype) from None
    else:
        number = np.asarray(value).astype(dtype)
    known = np.broadcast_to(number, shape)
    if backend is not None:
        try:
            return put(np.array(known), backend)
        except MemoryError:
            raise DeviceOutOfMemory(device=backend.name, nbytes=type_.nbytes) from None
    return Tracer(
        apply(
            "full", value=number.astype(float if dtype == BFLOAT16 else dtype).item(), shape=shape, dtype=short(dtype)
        ),
        known=known,
        own=True,
    )


def _creator(name: str, value: float, default: Any = np.float64) -> None:
    def plain(shape: Shape, dtype: Any = None, order: str = "C", *, device: Any = None, like: Any = None) -> Any:
        return filled(shape_of(shape, f"np.{name}"), value, default if dtype is None else dtype, _backend(name, device))

    def like(
        a: Any,
        dtype: Any = None,
        order: str = "K",
        subok: bool = True,
        shape: Shape | None = None,
        *,
        device: Any = None,
    ) -> Any:
        given = a if hasattr(a, "dtype") else np.asarray(a)
        extents = given.shape if shape is None else shape_of(shape, f"np.{name}_like")
        return filled(extents, value, given.dtype if dtype is None else dtype, _backend(f"{name}_like", device, a))

    for fn, title in ((plain, name), (like, f"{name}_like")):
        fn.__name__ = fn.__qualname__ = title
        fn.__doc__ = f"``numpy.{title}``."
        FUNCTIONS[title] = telling(fn)


_creator("zeros", 0)
_creator("ones", 1)
_creator("empty", 0)


def full(
    shape: Shape, fill_value: Any, dtype: Any = None, order: str = "C", *, device: Any = None, like: Any = None
) -> Any:
    """``numpy.full``."""
    extents = shape_of(shape, "np.full")
    value = concrete(fill_value)
    if value is not TRACED and np.ndim(value) == 0:
        return filled(extents, value, np.asarray(value).dtype if dtype is None else dtype, _backend("full", device))
    made = FUNCTIONS["broadcast_to"](FUNCTIONS["asarray"](fill_value, device=device), extents)
    return FUNCTIONS["copy"](made if dtype is None else made.astype(dtype))


def full_like(
    a: Any,
    fill_value: Any,
    dtype: Any = None,
    order: str = "K",
    subok: bool = True,
    shape: Shape | None = None,
    *,
    device: Any = None,
) -> Any:
    """``numpy.full_like``."""
    given = a if hasattr(a, "dtype") else np.asarray(a)
    extents = given.shape if shape is None else shape
    backend = _backend("full_like", device, a)
    on = None if backend is None else backend.name
    return full(extents, fill_value, given.dtype if dtype is None else dtype, device=on)


def _converter(name: str, copies: bool) -> None:
    def convert(
        a: Any,
        dtype: Any = None,
        *,
        copy: bool | None = None,
        order: str | None = None,
        subok: bool = False,
        ndmin: int = 0,
        device: Any = None,
        like: Any = None,
    ) -> Any:
        if isinstance(a, Sym):
            return a if dtype is None else a.astype(dtype)
        backend = _backend(name, device, a)
        if backend is not None:
            known = np.array(concrete(a), ndmin=ndmin)
            same = (
                isinstance(a, Array)
                and not copies
                and known.ndim == a.ndim
                and backend.name == a.device
                and (dtype is None or as_dtype(dtype) == a.dtype)
            )
            return a if same else put(known if dtype is None else known.astype(as_dtype(dtype)), backend)
        plain = isinstance(a, Tracer) and not copies and not copy and ndmin <= a.ndim
        if plain and (dtype is None or as_dtype(dtype) == a.dtype):
            return a
        sym = lift(a, name="a")
        sym = sym if dtype is None else sym.astype(dtype)
        return wrap(sym.reshape((*(1,) * (ndmin - sym.ndim), *sym.shape)))

    convert.__name__ = convert.__qualname__ = name
    convert.__doc__ = f"``numpy.{name}``."
    FUNCTIONS[name] = telling(convert)


for _name, _copies in (
    ("array", True),
    ("asarray", False),
    ("asanyarray", False),
    ("ascontiguousarray", False),
    ("asfarray", False),
):
    _converter(_name, _copies)


@array_function("a")
def copy(a: Sym) -> Sym:
    return a


@array_function("x", table={})
def _cast(x: Sym, dtype: Any) -> Sym:
    return x.astype(as_dtype(dtype))


def astype(x: Any, dtype: Any, /, *, copy: bool = True) -> Any:
    """``numpy.astype``; the array itself where it has the dtype already and no copy is asked for."""
    held: Any = x
    return x if not copy and isinstance(x, Methods) and as_dtype(dtype) == x.dtype else _cast(held, dtype)


FUNCTIONS["astype"] = telling(astype)


def creation(fn: Callable[..., Sym]) -> Callable[..., Any]:
    """Enter a function without array arguments."""
    return array_function()(fn)


def iota(shape: tuple[int, ...], axis: int, dtype: str = "i64") -> Sym:
    return apply("iota", shape=shape, axis=axis, dtype=dtype)


@creation
def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None) -> Sym:
    """``numpy.arange``; the numbers are known while tracing."""
    first, last = (0, start) if stop is None else (start, stop)
    kind = as_dtype(dtype) if dtype is not None else np.result_type(*(np.asarray(v) for v in (first, last, step)))
    index = iota((max(math.ceil((last - first) / step), 0),), 0)
    if kind.kind in "iu":
        return ufunc("add", ufunc("multiply", index, int(step)), int(first)).astype(kind)
    # NumPy fills with first + i * delta, where delta is what the first two elements differ by
    wide = np.dtype(np.float64) if kind == np.float64 else np.dtype(np.float32)
    delta = wide.type(first + step) - wide.type(first)
    return (index.astype(wide) * float(delta) + float(first)).astype(kind)


@array_function("start", "stop", numbers=True)
def linspace(
    start: Operand,
    stop: Operand,
    num: int = 50,
    endpoint: bool = True,
    retstep: bool = False,
    dtype: Any = None,
    axis: int = 0,
) -> Any:
    if operator.index(num) < 0:
        raise InvalidParameter(op="np.linspace", name="num", found=num, expected="0 or more")
    first, last = (as_sym(v) for v in (start, stop))
    kind = common_dtype((start, stop, 1.0)) if dtype is None else as_dtype(dtype)
    first, last = (v.astype(np.float64) for v in (first, last))
    parts = num - 1 if endpoint else num
    delta = ufunc("subtract", last, first)
    step = ufunc("divide", delta, float(parts)) if parts > 0 else ufunc("multiply", delta, np.nan)
    index = iota((num,), 0).astype(np.float64).reshape((num, *(1,) * delta.ndim))
    line = ufunc("add", ufunc("multiply", index, step if parts > 0 else delta), first)
    if endpoint and num > 1:
        is_last = ufunc("equal", iota((num,), 0).reshape((num, *(1,) * delta.ndim)), num - 1)
        line = FUNCTIONS["where"](is_last, last, line)
    line = FUNCTIONS["moveaxis"](line, 0, axis)
    if as_dtype(kind).kind in "iu":
        line = ufunc("floor", line)
    line = line.astype(kind)
    return (line, step) if retstep else line


@array_function("start", "stop", "base", numbers=True)
def logspace(
    start: Operand,
    stop: Operand,
    num: int = 50,
    endpoint: bool = True,
    base: Operand = 10.0,
    dtype: Any = None,
    axis: int = 0,
) -> Sym:
    kind = common_dtype((start, stop, base, 1.0)) if dtype is None else as_dtype(dtype)
    powers = FUNCTIONS["linspace"](as_sym(start), as_sym(stop), num, endpoint, axis=axis)
    return ufunc("power", as_sym(base).astype(np.float64), powers.astype(np.float64)).astype(kind)


@array_function("start", "stop", numbers=True)
def geomspace(
    start: Operand, stop: Operand, num: int = 50, endpoint: bool = True, dtype: Any = None, axis: int = 0
) -> Sym:
    """``numpy.geomspace``, between numbers of one sign."""
    kind = as_dtype(np.float64 if dtype is None else dtype)
    first, last = (as_sym(v).astype(np.float64) for v in (start, stop))
    sign = ufunc("sign", first)
    ends = [ufunc("log10", ufunc("multiply", v, sign)) for v in (first, last)]
    line = FUNCTIONS["logspace"](*ends, num, endpoint)
    lead = (num, *(1,) * (line.ndim - 1))
    place = iota((num,), 0).reshape(lead)
    line = ufunc("multiply", line, sign)
    line = FUNCTIONS["where"](ufunc("equal", place, 0), first, line)
    if endpoint and num > 1:
        line = FUNCTIONS["where"](ufunc("equal", place, num - 1), last, line)
    return FUNCTIONS["moveaxis"](line, 0, axis).astype(kind)  # type: ignore[no-any-return]


@creation
def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = float) -> Sym:
    shape = (N, N if M is None else M)
    return (iota(shape, 1) - iota(shape, 0)).eq(k).astype(as_dtype(dtype))


@creation
def identity(n: int, dtype: Any = float) -> Sym:
    return eye_sym(n, n, 0, dtype)


def eye_sym(n: int, m: int, k: int, dtype: Any) -> Sym:
    return (iota((n, m), 1) - iota((n, m), 0)).eq(k).astype(as_dtype(dtype))


@creation
def tri(N: int, M: int | None = None, k: int = 0, dtype: Any = float) -> Sym:
    shape = (N, N if M is None else M)
    return (iota(shape, 0) + k >= iota(shape, 1)).astype(as_dtype(dtype))


for _fn in (full, full_like):
    FUNCTIONS[_fn.__name__] = telling(_fn)
