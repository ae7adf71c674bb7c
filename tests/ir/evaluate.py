"""A tiny vectorised evaluator of kernel expressions, for tests: one rounding an operation, as the IR says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES
from kernelforge.ir.interpret import MEANING
from kernelforge.ir.kernel import Const, Expr, Op
from kernelforge.ir.tables import TABLES

Array = np.ndarray[Any, Any]

UNARY: dict[str, Any] = {
    "neg": np.negative, "abs": np.abs, "not": np.invert, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil,
    "trunc": np.trunc, "rint": np.rint, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log,
    "log2": np.log2, "log10": np.log10, "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh,
    "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "cbrt": np.cbrt,
    "erf": np.vectorize(math.erf, otypes=[float]), "erfc": np.vectorize(math.erfc, otypes=[float]),
}  # fmt: skip
BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "floordiv": np.floor_divide,
    "mod": np.remainder, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "atan2": np.arctan2,
    "pow": np.power, "fmod": np.fmod, "scaleb": MEANING["scaleb"], "unlikely": MEANING["unlikely"],
    "mul_error": MEANING["mul_error"], **{name: MEANING[name] for name in TABLES},
}  # fmt: skip


def evaluate(expr: Expr, env: dict[Expr, Array]) -> Array:
    """Evaluate for all elements at once; ``env`` gives the arrays of variables and loads."""
    memo: dict[Expr, Array] = dict(env)

    def visit(e: Expr) -> Array:
        if e not in memo:
            memo[e] = _one(e)
        return memo[e]

    def _one(e: Expr) -> Array:
        if isinstance(e, Const):
            return np.array(e.value, DTYPES[e.dtype])
        assert isinstance(e, Op), e
        args = [visit(a) for a in e.args]
        if e.op == "select":
            return np.where(args[0], args[1], args[2])
        if e.op == "cast":
            return args[0].astype(DTYPES[e.dtype])
        if e.op == "bitcast":
            return np.ascontiguousarray(args[0]).view(DTYPES[e.dtype]).reshape(args[0].shape)
        assert all(a.dtype == args[0].dtype for a in args), (e.op, [a.dtype for a in args])
        if e.op == "fma":
            return np.asarray(MEANING["fma"](*np.broadcast_arrays(*args))).astype(args[0].dtype)
        return np.asarray((UNARY.get(e.op) or BINARY[e.op])(*args)).astype(DTYPES[e.dtype])

    with np.errstate(all="ignore"):
        return visit(expr)
