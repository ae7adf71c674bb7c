"""The constructor of elementwise records, and the records that move or retype values without computing.

A new elementwise primitive is one call of ``elementwise``: the type rule, both derivative rules, the samples and the
treatment of narrow floats come from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.dtypes import BFLOAT16, DTYPES, FLOATS, INTEGERS, NARROW_FLOATS
from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch
from kernelforge.ir.build import Sym, apply, full
from kernelforge.ir.graph import At, Jvp, Kind, Params, Primitive, Sample, Vjp
from kernelforge.ir.kernel import Const, Expr, select
from kernelforge.ir.ops.rules import mapped
from kernelforge.ir.types import Type

Array = np.ndarray[Any, Any]
Partial = Callable[..., Sym] | None
"""``partial(t, y, *inputs)`` gives ``t * dy/dx_i``, linear in ``t``; None is zero.

The Jacobian of a map is diagonal, so the same function pushes tangents forward and pulls cotangents back.
"""

ALL = frozenset(DTYPES)
NUMBERS = ALL - {"bool"}
BITS = INTEGERS | {"bool"}

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, -2.5, 1e-5, 6e4])
WHOLE = np.array([0, 1, -1, 2, -3, 7, 100, -128, 127])


def elementwise(
    name: str,
    doc: str,
    *,
    numpy: Callable[..., Array],
    lower: Callable[..., Expr],
    partials: tuple[Partial, ...] | str | None,
    dtypes: frozenset[str] = FLOATS,
    arity: int = 1,
    result: str | None = None,
    domain: tuple[float, float] | None = None,
    bound: float = 0.5,
    narrow: bool = False,
) -> Primitive:
    """Make the record of an elementwise primitive.

    Args:
        name: unique; NumPy's where NumPy has the function.
        doc: one line: what it computes.
        numpy: the meaning, on arrays of one shape and dtype. bfloat16 arrives as float32 and is rounded after.
        lower: ``lower(*elements)``, written for any of ``dtypes``; float16 and bfloat16 arrive as f32, as in NumPy.
        partials: for each input ``t * dy/dx_i``; None where the derivative is zero wherever it exists, or a
            sentence saying why there is no derivative.
        dtypes: short names of the operands' dtypes.
        arity: number of operands.
        result: short name of the result's dtype where it is not the operands'.
        domain: the range of the first sample.
        bound: largest error in units in the last place.
        narrow: whether ``numpy`` and ``lower`` take float16 and bfloat16 as they are (operations on bits).
    """

    def typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
        same(name, types, arity, dtypes)
        dtype = DTYPES[result] if result else types[0].dtype
        return (Type(types[0].shape, dtype, weak=result is None and all(t.weak for t in types)),)

    def meaning(arrays: Sequence[Array], params: Params) -> tuple[Array, ...]:
        dtype = arrays[0].dtype
        if dtype == BFLOAT16 and not narrow:
            arrays = [a.astype(np.float32) for a in arrays]
        with np.errstate(all="ignore"):
            return (np.asarray(numpy(*arrays)).astype(DTYPES[result] if result else dtype),)

    def lowering(at: At, index: Sequence[Expr], types: Sequence[Type], out: Type, params: Params) -> Expr:
        elements = [at(i, index).cast(t.name) for i, t in enumerate(types)]
        if types[0].name in NARROW_FLOATS and not narrow:
            elements = [_to_f32(e) for e in elements]
        value = lower(*elements)
        return value if value.dtype == out.name else value.cast(out.name)

    def samples() -> list[Sample]:
        floats = dtypes <= FLOATS
        low, high = domain or ((-3.0, 3.0) if floats else (0.25, 4.0))
        rng = np.random.default_rng(len(name))
        first = tuple(rng.uniform(low, high, (3, 5)) for _ in range(arity))
        values = SPECIAL if floats else WHOLE
        second = tuple(x.ravel() for x in np.meshgrid(*[values] * arity))
        return [Sample(first, {}), Sample(second, {})]

    return Primitive(
        name,
        Kind.MAP,
        doc,
        (),
        typing,
        meaning,
        *rules(partials, arity),
        mapped(name),
        lowering,
        samples,
        dtypes,
        bound,
    )


def _to_f32(e: Expr) -> Expr:
    """Widen a narrow float; a constant stays one, rounded."""
    return Const(float(np.asarray(e.value, DTYPES[e.dtype])), "f32") if isinstance(e, Const) else e.cast("f32")


def rules(partials: tuple[Partial, ...] | str | None, arity: int) -> tuple[Vjp | str, Jvp | str]:
    """Make the vjp and jvp rules of a map from its partial derivatives."""
    if isinstance(partials, str):
        return partials, partials
    parts = partials or (None,) * arity

    def vjp(
        cotangents: tuple[Sym, ...], inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params
    ) -> tuple[Sym | None, ...]:
        return tuple(
            p(cotangents[0], outputs[0], *inputs) if p is not None and x.type.name in FLOATS else None
            for p, x in zip(parts, inputs, strict=True)
        )

    def jvp(
        tangents: tuple[Sym | None, ...], inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params
    ) -> tuple[Sym | None, ...]:
        total: Sym | None = None
        for p, t in zip(parts, tangents, strict=True):
            if p is not None and t is not None:
                term = p(t, outputs[0], *inputs)
                total = term if total is None else total + term
        return (total,)

    return vjp, jvp


def same(name: str, types: Sequence[Type], arity: int, dtypes: frozenset[str]) -> None:
    """Check that the operands number ``arity``, have one shape and one dtype, and that the dtype is allowed.

    Raises:
        ShapeMismatch: for a wrong number of operands or differing shapes.
        DtypeMismatch: for differing dtypes or one not in ``dtypes``.
    """
    if len(types) != arity or any(t.shape != types[0].shape for t in types):
        found = " and ".join(str(t.shape) for t in types) or "no operand"
        raise ShapeMismatch(op=name, found=found, expected=f"{arity} of one shape; broadcast first")
    if types and (any(t.dtype != types[0].dtype for t in types) or types[0].name not in dtypes):
        allowed = ", ".join(d for d in DTYPES if d in dtypes)
        expected = f"{allowed}; cast first" if arity == 1 else f"one dtype of {allowed}; cast first"
        raise DtypeMismatch(op=name, found=" and ".join(t.name for t in types), expected=expected)


def call(name: str, *inputs: Sym) -> Sym:
    """Apply a primitive that has no parameters, for derivative rules."""
    return apply(name, *inputs)


def where(condition: Sym, x: Sym | float, y: Sym | float) -> Sym:
    """Choose elements, for derivative rules; a number takes the type of the other arm."""
    like = x if isinstance(x, Sym) else y
    assert isinstance(like, Sym)
    x, y = (v if isinstance(v, Sym) else full(v, like) for v in (x, y))
    return call("where", condition, x, y)


def _dtype_param(name: str, params: Params) -> str:
    dtype = params["dtype"]
    if dtype not in DTYPES:
        raise InvalidParameter(op=name, name="dtype", found=dtype, expected=f"one of {', '.join(DTYPES)}")
    return str(dtype)


def _where_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    if len(types) != 3 or any(t.shape != types[0].shape for t in types):
        found = " and ".join(str(t.shape) for t in types)
        raise ShapeMismatch(op="where", found=found, expected="3 of one shape; broadcast first")
    if types[0].name != "bool" or types[1].dtype != types[2].dtype:
        found = " and ".join(t.name for t in types)
        raise DtypeMismatch(op="where", found=found, expected="bool, and one dtype for both choices; cast first")
    return (Type(types[0].shape, types[1].dtype, weak=types[1].weak and types[2].weak),)


def _where_jvp(
    tangents: tuple[Sym | None, ...], inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params
) -> tuple[Sym | None, ...]:
    _, tx, ty = tangents
    if tx is None and ty is None:
        return (None,)
    return (where(inputs[0], 0.0 if tx is None else tx, 0.0 if ty is None else ty),)


def _where_sample() -> list[Sample]:
    x, y = np.random.default_rng(5).uniform(0.25, 4.0, (2, 3, 5))
    condition = np.arange(15).reshape(3, 5) % 3
    return [Sample((condition, x, y), {}), Sample((np.array([1, 0]), SPECIAL[5:7], SPECIAL[:2]), {})]


WHERE = Primitive(
    "where",
    Kind.MAP,
    "The element of the second input where the first, bool, is true, else of the third.",
    (),
    _where_typing,
    lambda arrays, params: (np.where(arrays[0], arrays[1], arrays[2]),),
    rules((None, lambda t, y, c, a, b: where(c, t, 0.0), lambda t, y, c, a, b: where(c, 0.0, t)), 3)[0],
    _where_jvp,
    mapped("where"),
    lambda at, index, types, out, params: select(at(0, index), *(at(i, index).cast(out.name) for i in (1, 2))),
    _where_sample,
    frozenset({"bool"}),
)


def _cast_numpy(arrays: Sequence[Array], params: Params) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        return (arrays[0].astype(DTYPES[params["dtype"]]),)


def convert(x: Expr, dtype: str) -> Expr:
    """Cast one element as NumPy does; bool means "is not zero", and bfloat16 is rounded from float32.

    What is below zero wraps in wide unsigned integers, too: up to half their range goes by way of the signed ones.
    """
    if dtype == "bool" and x.dtype != "bool":
        return x.cast("f32").ne(0) if x.dtype in NARROW_FLOATS else x.ne(0)
    if dtype == "bf16":
        return x.cast("f32").cast("bf16")
    if dtype in ("u32", "u64") and x.dtype in FLOATS:
        x = x.cast("f32") if x.dtype in NARROW_FLOATS else x
        signed, half = f"i{dtype[1:]}", 2.0 ** (int(dtype[1:]) - 1)
        low, high = (y.cast(signed).cast(dtype) for y in (x, x - half))
        return select(x >= half, high ^ (1 << (int(dtype[1:]) - 1)), low)
    return x.cast(dtype)


def _cast_jvp(
    tangents: tuple[Sym | None, ...], inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params
) -> tuple[Sym | None, ...]:
    (t,) = tangents
    return (None if t is None or outputs[0].type.name not in FLOATS else t.astype(outputs[0].dtype),)


def _cast_vjp(
    cotangents: tuple[Sym, ...], inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params
) -> tuple[Sym | None, ...]:
    smooth = inputs[0].type.name in FLOATS and outputs[0].type.name in FLOATS
    return (cotangents[0].astype(inputs[0].dtype) if smooth else None,)


def _unary_typing(name: str, types: Sequence[Type]) -> Type:
    same(name, types, 1, ALL)
    return types[0]


def _cast_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    return (Type(_unary_typing("cast", types).shape, DTYPES[_dtype_param("cast", params)]),)


CAST = Primitive(
    "cast",
    Kind.MAP,
    "The value in another dtype, as NumPy's astype; a float outside of an integer's range gives any value.",
    ("dtype",),
    _cast_typing,
    _cast_numpy,
    _cast_vjp,
    _cast_jvp,
    mapped("cast"),
    lambda at, index, types, out, params: convert(at(0, index).cast(types[0].name), out.name),
    lambda: [Sample((np.linspace(0.0, 9.0, 15).reshape(3, 5),), {"dtype": d}) for d in DTYPES],
    ALL,
)


def _bitcast_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    t = _unary_typing("bitcast", types)
    dtype = DTYPES[_dtype_param("bitcast", params)]
    if t.name == "bool" or params["dtype"] == "bool" or dtype.itemsize != t.dtype.itemsize:
        found = f"{t.name} to {params['dtype']}"
        raise DtypeMismatch(op="bitcast", found=found, expected="two dtypes of one size, neither of them bool")
    return (Type(t.shape, dtype),)


_NO_BITS = (
    "reading the bits of a value as another dtype is not a smooth function of it; use astype to convert the value"
)

BITCAST = Primitive(
    "bitcast",
    Kind.MAP,
    "The same bits read as another dtype of the same size.",
    ("dtype",),
    _bitcast_typing,
    lambda arrays, params: (np.ascontiguousarray(arrays[0]).view(DTYPES[params["dtype"]]).reshape(arrays[0].shape),),
    _NO_BITS,
    _NO_BITS,
    mapped("bitcast"),
    lambda at, index, types, out, params: at(0, index).cast(types[0].name).bitcast(out.name),
    lambda: [Sample((WHOLE,), {"dtype": "u32"})],
    frozenset({"i32", "u32", "f32"}),  # those of the sample's parameter; other sizes go together alike
)


def _full_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    if types:
        raise ShapeMismatch(op="full", found=" and ".join(str(t.shape) for t in types), expected="no operand")
    value, shape, dtype = params["value"], params["shape"], DTYPES[_dtype_param("full", params)]
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise InvalidParameter(op="full", name="shape", found=shape, expected="a tuple of non-negative ints")
    if not isinstance(value, bool | int | float):
        raise InvalidParameter(op="full", name="value", found=value, expected="a Python bool, int or float")
    if params["dtype"] in INTEGERS:
        info = np.iinfo(dtype)
        if not math.isfinite(value) or not info.min <= value <= info.max or value != int(value):
            expected = f"a whole number in [{info.min}, {info.max}] for {params['dtype']}"
            raise InvalidParameter(op="full", name="value", found=value, expected=expected)
    return (Type(shape, dtype),)


def _full_numpy(arrays: Sequence[Array], params: Params) -> tuple[Array, ...]:
    with np.errstate(over="ignore"):
        return (np.full(params["shape"], params["value"], DTYPES[params["dtype"]]),)


FULL = Primitive(
    "full",
    Kind.MAP,
    "One value everywhere.",
    ("value", "shape", "dtype"),
    _full_typing,
    _full_numpy,
    lambda cotangents, inputs, outputs, params: (),
    lambda tangents, inputs, outputs, params: (None,),
    mapped("full"),
    lambda at, index, types, out, params: Const(params["value"], out.name),
    lambda: [Sample((), {"value": 1, "shape": (3, 5), "dtype": d}) for d in DTYPES],
    ALL,
)


def _identity(name: str, doc: str, vjp: Vjp, jvp: Jvp) -> Primitive:
    return Primitive(
        name,
        Kind.MAP,
        doc,
        (),
        lambda types, params: (_unary_typing(name, types),),
        lambda arrays, params: (arrays[0],),
        vjp,
        jvp,
        mapped(name),
        lambda at, index, types, out, params: at(0, index),
        lambda: [Sample((np.arange(15.0).reshape(3, 5),), {})],
        ALL,
    )


STOP_GRADIENT = _identity(
    "stop_gradient",
    "The value, with a derivative of zero.",
    lambda cotangents, inputs, outputs, params: (None,),
    lambda tangents, inputs, outputs, params: (None,),
)

BARRIER = _identity(
    "barrier",
    "The value; simplify and cse do not look through.",
    lambda cotangents, inputs, outputs, params: cotangents,
    lambda tangents, inputs, outputs, params: tangents,
)

PRIMITIVES: tuple[Primitive, ...] = (WHERE, CAST, BITCAST, FULL, STOP_GRADIENT, BARRIER)
