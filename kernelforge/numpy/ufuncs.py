"""Elementwise functions: NumPy's ufuncs by primitive, and those composed of them.

What a ufunc computes in, and what it returns, is asked of NumPy itself.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from kernelforge.dtypes import BFLOAT16, as_dtype, promote, short
from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Operand, Sym, apply, as_sym, full, of_number, weakened
from kernelforge.ir.types import broadcast_shapes
from kernelforge.methods import FUNCTIONS, OPERATORS
from kernelforge.numpy.dispatch import F, Fn, array_function
from kernelforge.told import telling
from kernelforge.trace import Tracer

Kindred = np.dtype[Any] | type[int] | type[float]

BOOL = np.dtype(np.bool_)

DIRECT = (
    "add subtract multiply divide floor_divide remainder fmod power maximum minimum arctan2 copysign nextafter hypot "
    "logaddexp negative absolute sign floor ceil trunc rint sqrt cbrt exp exp2 expm1 log log2 log10 log1p sin cos tan "
    "arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh equal not_equal less less_equal greater greater_equal "
    "bitwise_and bitwise_or bitwise_xor invert left_shift right_shift isnan isinf isfinite signbit"
)
"""Ufuncs that are one primitive, of the same name."""

SINC = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(11))
"""Coefficients of sin(x)/x in powers of x**2: to below 1e-20 for x below 1, and its first derivatives."""

COMPARISONS = frozenset({"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"})
ON_INTEGERS = {"isnan": False, "isinf": False, "isfinite": True}


def kindred(x: Operand) -> Kindred:
    """Return what an operand counts for in promotion: its dtype, or ``int`` or ``float`` for a Python number."""
    if isinstance(x, Sym):
        return (float if x.dtype.kind == "f" else int) if x.type.weak else x.dtype
    if isinstance(x, np.generic):
        return as_dtype(x.dtype)
    return BOOL if isinstance(x, bool) else int if isinstance(x, int) else float


@functools.lru_cache(maxsize=4096)
def loop(name: str, kinds: tuple[Kindred, ...], dtype: np.dtype[Any] | None = None) -> tuple[np.dtype[Any], ...]:
    """Return the dtypes in which the ufunc ``name`` takes its operands and gives its result.

    Raises:
        DtypeMismatch: when it has no such loop.
    """
    ufunc: np.ufunc = getattr(np, name)
    if BFLOAT16 in kinds and dtype is None and name != "ldexp":  # whose operands are not promoted to one dtype
        strong = promote(
            [k for k in kinds if isinstance(k, np.dtype)], [np.dtype(k) for k in kinds if not isinstance(k, np.dtype)]
        )
        kinds = (strong,) * len(kinds)
    forced: dict[str, Any] = {} if dtype is None else {"signature": (*(None,) * ufunc.nin, *(dtype,) * ufunc.nout)}
    try:
        found = ufunc.resolve_dtypes((*kinds, *(None,) * ufunc.nout), **forced)
    except TypeError:
        names = " and ".join(short(k) if isinstance(k, np.dtype) else f"a Python {k.__name__}" for k in kinds)
        raise DtypeMismatch(
            op=f"np.{name}", found=names, expected="dtypes that NumPy takes; cast with .astype"
        ) from None
    # NumPy compares two Python integers as objects
    return tuple(as_dtype(np.int64 if d.hasobject else d) for d in found)


def common_dtype(xs: Sequence[Operand]) -> np.dtype[Any]:
    """Promote operands to one dtype; Python numbers count by their kind."""
    kinds = [kindred(x) for x in xs]
    return promote(
        [k for k in kinds if isinstance(k, np.dtype)], [np.dtype(k) for k in kinds if not isinstance(k, np.dtype)]
    )


def shape_of(xs: tuple[Operand, ...], op: str) -> tuple[int, ...]:
    """Broadcast the shapes of operands.

    Raises:
        ShapeMismatch: when they do not broadcast.
    """
    shapes = [x.shape for x in xs if isinstance(x, Sym | np.generic)]
    try:
        return broadcast_shapes(*shapes)
    except ValueError:
        expected = "extents that are equal or 1, counted from the last axis"
        raise ShapeMismatch(op=f"np.{op}", found=" and ".join(map(str, shapes)), expected=expected) from None


def operand(x: Operand, dtype: np.dtype[Any], shape: tuple[int, ...], op: str) -> Sym:
    """Make an operand of a primitive: of ``dtype``, broadcast to ``shape``.

    Raises:
        NumberOutOfRange: when ``x`` is a Python number that ``dtype`` cannot hold.
    """
    if isinstance(x, Sym):
        return x.astype(dtype).broadcast(shape)
    return of_number(x, dtype, shape, f"np.{op}")


def ufunc(name: str, *xs: Operand, dtype: Any = None) -> Sym:
    """Apply a ufunc that is one primitive, with NumPy's promotion and broadcasting.

    The result of operands that all stand for Python numbers stands for one too.
    """
    kinds = tuple(kindred(x) for x in xs)
    shape = shape_of(xs, name)
    if name in COMPARISONS:
        known = _beyond(name, xs, kinds)
        if known is not None:
            return apply("full", value=known, shape=shape, dtype="bool")
        if set(map(_is_integer, kinds)) == {True}:
            # a Python integer that is not known yet may be beyond the other operand's dtype: NumPy answers all the same
            xs = tuple(x.astype(np.int64) if isinstance(x, Sym) and x.type.weak else x for x in xs)
            kinds = tuple(kindred(x) for x in xs)
        left, right, _ = loop(name, kinds)
        if left != right:
            return _compared_exactly(name, operand(xs[0], left, shape, name), operand(xs[1], right, shape, name))
    *ins, out = loop(name, kinds, None if dtype is None else as_dtype(dtype))
    if name in ON_INTEGERS and ins[0].kind in "iub":
        return apply("full", value=ON_INTEGERS[name], shape=shape, dtype="bool")
    if name == "power" and ins[0].kind in "iu" and isinstance(xs[1], int) and xs[1] < 0:
        raise InvalidParameter(
            op="np.power", name="exponent", found=xs[1], expected="a non-negative one for integers; cast to float first"
        )
    made: Sym = apply(name, *(operand(x, d, shape, name) for x, d in zip(xs, ins, strict=True)))
    made = made if made.dtype == out else made.astype(out)
    # a comparison is a bool, and that promotes like one however it came about
    weak = dtype is None and out != BOOL and all(_is_number(x) for x in xs)
    return weakened(made) if weak else made


def _is_integer(kind: Kindred) -> bool:
    return kind is int or (isinstance(kind, np.dtype) and kind.kind in "iu")


def _is_number(x: Operand) -> bool:
    return x.type.weak if isinstance(x, Sym) else not isinstance(x, np.generic)


def _compared_exactly(name: str, x: Sym, y: Sym) -> Sym:
    """Compare int64 with uint64, for which there is no common dtype: as unsigned, and apart where one is negative."""
    made = apply(name, *(s.astype(np.uint64) for s in (x, y)))
    if x.dtype == np.int64:
        return where(x < 0, name in ("not_equal", "less", "less_equal"), made)
    return where(y < 0, name in ("not_equal", "greater", "greater_equal"), made)


def _beyond(name: str, xs: tuple[Operand, ...], kinds: tuple[Kindred, ...]) -> bool | None:
    """Return what a comparison with a Python integer beyond the other operand's dtype is; None if it is within."""
    for number, other, sign in ((xs[1], kinds[0], 1), (xs[0], kinds[1], -1)):
        if type(number) is int and isinstance(other, np.dtype) and other.kind in "iu":
            info = np.iinfo(other)
            if not info.min <= number <= info.max:
                above = (number > 0) == (sign > 0)
                return {"equal": False, "not_equal": True}.get(name, name.startswith("less") == above)
    return None


def _direct(name: str) -> None:
    def unary(x: Operand, /, *, dtype: Any = None) -> Sym:
        return ufunc(name, x, dtype=dtype)

    def binary(x1: Operand, x2: Operand, /, *, dtype: Any = None) -> Sym:
        return ufunc(name, x1, x2, dtype=dtype)

    fn: Fn = unary if getattr(np, name).nin == 1 else binary
    arrays = ("x",) if fn is unary else ("x1", "x2")
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"``numpy.{name}``."
    array_function(*arrays, numbers=True, maps=True)(fn)
    array_function(*arrays, numbers=True, maps=True, weak=True, table=OPERATORS)(fn)


for _name in DIRECT.split():
    _direct(_name)


def elementwise(*arrays: str, operator: bool = False) -> Callable[[F], F]:
    """Enter a composed elementwise function; with ``operator`` as what Python's operators apply, too."""

    def decorate(fn: F) -> F:
        fn = _with_dtype(fn)
        if operator:
            array_function(*arrays, numbers=True, maps=True, weak=True, table=OPERATORS)(fn)
        return array_function(*arrays, numbers=True, maps=True)(fn)

    return decorate


def _with_dtype(fn: F) -> F:
    """Give what is a ufunc of NumPy's its ``dtype``, to whose loop operands are cast."""
    name, given = fn.__name__, inspect.signature(fn)
    if not isinstance(getattr(np, name, None), np.ufunc):
        return fn

    @functools.wraps(fn)
    def call(*xs: Operand, dtype: Any = None) -> Any:
        if dtype is not None:
            taken = loop(name, tuple(kindred(x) for x in xs), as_dtype(dtype))
            xs = tuple(operand(x, d, np.shape(x), name) for x, d in zip(xs, taken, strict=False))
        return fn(*xs)

    chosen = inspect.Parameter("dtype", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any)
    call.__signature__ = given.replace(parameters=[*given.parameters.values(), chosen])  # type: ignore[attr-defined]
    return cast(F, call)


def floating(x: Operand, like: str = "sqrt") -> Sym:
    """Cast to the float dtype in which NumPy computes ``like`` of ``x``."""
    dtype = loop(like, (kindred(x),))[0]
    return operand(x, dtype, x.shape if isinstance(x, Sym | np.generic) else (), like)


def boolean(x: Operand) -> Sym:
    sym = as_sym(x)
    return sym if sym.dtype == BOOL else sym.astype(BOOL)


@elementwise("x", operator=True)
def positive(x: Operand, /) -> Sym:
    kind = kindred(x)
    if kind == BOOL:
        raise DtypeMismatch(op="np.positive", found="bool", expected="numbers")
    return as_sym(x)


@elementwise("x1", "x2")
def logical_and(x1: Operand, x2: Operand, /) -> Sym:
    return ufunc("bitwise_and", boolean(x1), boolean(x2))


@elementwise("x1", "x2")
def logical_or(x1: Operand, x2: Operand, /) -> Sym:
    return ufunc("bitwise_or", boolean(x1), boolean(x2))


@elementwise("x1", "x2")
def logical_xor(x1: Operand, x2: Operand, /) -> Sym:
    return ufunc("bitwise_xor", boolean(x1), boolean(x2))


@elementwise("x")
def logical_not(x: Operand, /) -> Sym:
    return ufunc("invert", boolean(x))


@elementwise("x")
def square(x: Operand, /) -> Sym:
    return ufunc("multiply", x, x).astype(loop("square", (kindred(x),))[-1])


@elementwise("x")
def reciprocal(x: Operand, /) -> Sym:
    dtype = loop("reciprocal", (kindred(x),))[-1]
    value = operand(x, dtype, as_sym(x).shape, "reciprocal")
    return ufunc("divide", 1, value) if dtype.kind not in "iu" else where(ufunc("absolute", value).eq(1), value, 0)


@elementwise("x")
def fabs(x: Operand, /) -> Sym:
    return ufunc("absolute", floating(x))


@elementwise("x", "y", operator=True)
def divmod(x: Operand, y: Operand, /) -> tuple[Sym, Sym]:
    return ufunc("floor_divide", x, y), ufunc("remainder", x, y)


@elementwise("x1", "x2")
def float_power(x1: Operand, x2: Operand, /) -> Sym:
    return ufunc("power", as_sym(x1).astype(np.float64), as_sym(x2).astype(np.float64))


@elementwise("x")
def deg2rad(x: Operand, /) -> Sym:
    return floating(x) * (math.pi / 180)


@elementwise("x")
def rad2deg(x: Operand, /) -> Sym:
    return floating(x) * (180 / math.pi)


@elementwise("x1", "x2")
def logaddexp2(x1: Operand, x2: Operand, /) -> Sym:
    dtype = loop("logaddexp2", (kindred(x1), kindred(x2)))[0]
    given = (operand(v, dtype, shape_of((x1, x2), "logaddexp2"), "logaddexp2") for v in (x1, x2))
    # near 0 a narrow sum has lost most of what its parts hold
    x, y = (v.astype(np.float32) if dtype.itemsize == 2 else v for v in given)
    apart = where(x.eq(y), 0, ufunc("absolute", x - y))
    made = ufunc("maximum", x, y) + ufunc("log1p", ufunc("exp2", -apart)) * (1 / math.log(2))
    return made.astype(dtype)


@elementwise("x1", "x2")
def heaviside(x1: Operand, x2: Operand, /) -> Sym:
    dtype = loop("heaviside", (kindred(x1), kindred(x2)))[0]
    x, y = (operand(v, dtype, shape_of((x1, x2), "heaviside"), "heaviside") for v in (x1, x2))
    return where(x < 0, 0, where(x.eq(0), y, where(x > 0, 1, x)))


@elementwise("x", "y")
def fmax(x: Operand, y: Operand, /) -> Sym:
    return _ignoring_nan("maximum", x, y)


@elementwise("x", "y")
def fmin(x: Operand, y: Operand, /) -> Sym:
    return _ignoring_nan("minimum", x, y)


def _ignoring_nan(name: str, x: Operand, y: Operand) -> Sym:
    return where(ufunc("isnan", x), y, where(ufunc("isnan", y), x, ufunc(name, x, y)))


@elementwise("x1", "x2")
def ldexp(x1: Operand, x2: Operand, /) -> Sym:
    """Scale by a power of two, in three steps: what reaches a subnormal number is rounded once."""
    dtype = loop("ldexp", (kindred(x1), kindred(x2)))[-1]
    x, n = as_sym(x1).astype(dtype), as_sym(x2).astype(np.float64)
    scaled = x.astype(np.float64)
    for _ in range(2):
        step = where(n < -1022, -969.0, ufunc("minimum", n, 1023.0))
        scaled = ufunc("multiply", scaled, ufunc("exp2", step))
        n = n - step
    rest = ufunc("minimum", ufunc("maximum", n, -1022.0), 1023.0)
    return ufunc("multiply", scaled, ufunc("exp2", rest)).astype(x.dtype)


@elementwise("x")
def modf(x: Operand, /) -> tuple[Sym, Sym]:
    value = floating(x)
    whole = ufunc("trunc", value)
    part = where(ufunc("isinf", value), 0, value - whole)
    return ufunc("copysign", part, value), whole


@elementwise("x")
def sinc(x: Operand) -> Sym:
    value = ufunc("multiply", x, math.pi)
    near = ufunc("absolute", value) < 1
    # Maclaurin's series, as the derivative of the quotient cancels near 0
    square = where(near, value * value, 0)
    series = full(SINC[-1], square)
    for coefficient in SINC[-2::-1]:
        series = series * square + coefficient
    far = where(near, 1, value)
    return where(near, series, ufunc("sin", far) / far)


@elementwise("x")
def conjugate(x: Operand, /) -> Sym:
    return as_sym(x).astype(loop("conjugate", (kindred(x),))[-1])


@elementwise("x")
def erf(x: Operand, /) -> Sym:
    """The error function."""
    return apply("erf", floating(x))


@elementwise("x")
def erfc(x: Operand, /) -> Sym:
    """One minus the error function."""
    return apply("erfc", floating(x))


@elementwise("x")
def sigmoid(x: Operand, /) -> Sym:
    """The logistic function 1 / (1 + exp(-x))."""
    x = floating(x)
    positive = x >= 0
    # exp of what is not positive: neither it nor its derivative overflows
    small = ufunc("exp", apply("where", positive, -x, x))
    return apply("where", positive, full(1.0, small), small) / (small + 1)


@elementwise("condition", "x", "y")
def where(condition: Operand, x: Operand | None = None, y: Operand | None = None, /) -> Sym:
    """``numpy.where`` with three arguments; with one, the shape would depend on values."""
    if x is None or y is None:
        raise InvalidParameter(
            op="np.where",
            name="y",
            found=None,
            expected="three arguments: the shape of np.where(mask) depends on values",
        )
    dtype = common_dtype((x, y))
    shape = shape_of((condition, x, y), "where")
    chosen = boolean(condition).broadcast(shape)
    return apply("where", chosen, operand(x, dtype, shape, "where"), operand(y, dtype, shape, "where"))


@elementwise("a", "a_min", "a_max", "min", "max")
def clip(
    a: Operand,
    a_min: Operand | None = None,
    a_max: Operand | None = None,
    *,
    min: Operand | None = None,
    max: Operand | None = None,
    dtype: Any = None,
) -> Sym:
    low, high = (a if a is not None else b for a, b in ((a_min, min), (a_max, max)))
    result = as_sym(a)
    if result.dtype.kind in "iu":  # NumPy looks at no bound beyond all that there is
        limits = np.iinfo(result.dtype)
        low = None if type(low) is int and low <= limits.min else low
        high = None if type(high) is int and high >= limits.max else high
    if low is not None:
        result = ufunc("maximum", result, low, dtype=dtype)
    return result if high is None else ufunc("minimum", result, high, dtype=dtype)


@elementwise("x", "nan", "posinf", "neginf")
def nan_to_num(
    x: Operand, copy: bool = True, nan: Operand = 0.0, posinf: Operand | None = None, neginf: Operand | None = None
) -> Sym:
    value = as_sym(x)
    if value.dtype.kind in "iub":
        return value
    limits = _finfo(value.dtype)
    high = float(limits.max) if posinf is None else posinf
    low = float(limits.min) if neginf is None else neginf
    value = where(ufunc("isnan", value), nan, value).astype(value.dtype)
    infinite = ufunc("isinf", value)
    return where(infinite, where(value > 0, high, low), value).astype(value.dtype)


def _finfo(dtype: np.dtype[Any]) -> Any:
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return finfo(dtype)


@elementwise("a", "b", "rtol", "atol")
def isclose(a: Operand, b: Operand, rtol: Operand = 1e-5, atol: Operand = 1e-8, equal_nan: bool = False) -> Sym:
    x, y = as_sym(a), as_sym(b)
    if y.dtype.kind in "iub":
        y = y.astype(np.float64)
    near = ufunc(
        "less_equal",
        ufunc("absolute", ufunc("subtract", x, y)),
        ufunc("add", atol, ufunc("multiply", rtol, ufunc("absolute", y))),
    )
    result = (near & ufunc("isfinite", y)) | ufunc("equal", x, y)
    return result | (ufunc("isnan", x) & ufunc("isnan", y)) if equal_nan else result


@elementwise("a")
def round(a: Operand, decimals: int = 0) -> Sym:
    x = as_sym(a)
    if x.dtype == BOOL and decimals:
        raise DtypeMismatch(op="np.round", found="bool", expected="numbers, or no decimals")
    if x.dtype == BOOL:
        return x.astype(np.float16)
    if x.dtype.kind in "iu" and decimals >= 0:
        return x
    if decimals == 0:
        return ufunc("rint", x)
    scale = 10.0 ** abs(decimals)
    first, second = ("multiply", "divide") if decimals > 0 else ("divide", "multiply")
    value = x if x.dtype.kind == "f" or x.dtype == BFLOAT16 else x.astype(np.float64)
    return ufunc(second, ufunc("rint", ufunc(first, value, scale)), scale).astype(x.dtype)


@elementwise("z")
def angle(z: Operand) -> Sym:
    """The angle of a real number: pi where its sign is negative."""
    value = as_sym(z).astype(np.float64) if kindred(z) == BOOL else floating(z)
    return where(ufunc("isnan", value), value, where(ufunc("signbit", value), math.pi, 0)).astype(value.dtype)


def result_type(*arrays_and_dtypes: Any) -> np.dtype[Any]:
    """``numpy.result_type``."""

    def stand_in(x: Any) -> Any:
        kind = kindred(x.sym) if isinstance(x, Tracer) else x if isinstance(x, type) else getattr(x, "dtype", x)
        return kind(0) if isinstance(x, Tracer) and isinstance(kind, type) else kind

    return np.result_type(*(stand_in(x) for x in arrays_and_dtypes))


FUNCTIONS["result_type"] = telling(result_type)

ALIASES = {
    "abs": "absolute", "true_divide": "divide", "mod": "remainder", "bitwise_not": "invert", "bitwise_invert": "invert",
    "acos": "arccos", "asin": "arcsin", "atan": "arctan", "acosh": "arccosh", "asinh": "arcsinh", "atanh": "arctanh",
    "atan2": "arctan2", "pow": "power", "conj": "conjugate", "radians": "deg2rad", "degrees": "rad2deg",
    "around": "round", "bitwise_left_shift": "left_shift", "bitwise_right_shift": "right_shift", "fix": "trunc",
}  # fmt: skip
