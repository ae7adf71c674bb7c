"""Rules of arithmetic, exact to the bit: for floats also with -0.0, NaN and infinities, so x + 0.0 and x * 0 stay.

x + 0.0 is not x where x is -0.0; automatic differentiation makes no zeros to be added, so nothing is lost. What is not
exact to the bit is in ``sums``.
"""

from __future__ import annotations

import math

from kernelforge.dtypes import FLOATS, INTEGERS, NARROW_FLOATS, SIGNED
from kernelforge.ir.build import Sym, apply, full
from kernelforge.ir.graph import Node
from kernelforge.ir.passes.rewrite import Rewriter, Rule

MANTISSA = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}
"""Bits of precision."""
EXPONENT = {"f16": 5, "bf16": 8, "f32": 8, "f64": 11}


def _is(c: float | None, value: float) -> bool:
    """Compare with the sign of zero."""
    return c is not None and c == value and math.copysign(1.0, c) == math.copysign(1.0, value)


def _dtype(node: Node) -> str:
    return node.output.type.name


def _zero(node: Node, sign: float) -> float:
    """Return the neutral zero of a sum (sign -1) or of what is subtracted (sign 1); integers have one zero."""
    return math.copysign(0.0, sign) if _dtype(node) in FLOATS else 0


def _like(r: Rewriter, node: Node, value: float) -> Sym:
    return apply("full", value=value, shape=node.output.type.shape, dtype=_dtype(node))


def _operands(r: Rewriter, node: Node) -> tuple[Sym, Sym]:
    return r.sym(node.inputs[0]), r.sym(node.inputs[1])


def _inner(r: Rewriter, node: Node, i: int, name: str) -> Sym | None:
    """Return the operand of input ``i`` if that was made by the unary primitive ``name``."""
    made = r.producer(node.inputs[i], name)
    return None if made is None else r.sym(made.inputs[0])


def _add(r: Rewriter, node: Node) -> Sym | None:
    for i, x in enumerate(node.inputs):
        other = node.inputs[1 - i]
        if _is(r.uniform(other), _zero(node, -1.0)):
            return r.sym(x)
        negated = _inner(r, node, 1 - i, "negative")
        if negated is not None:
            return apply("subtract", r.sym(x), negated)
    return None


def _subtract(r: Rewriter, node: Node) -> Sym | None:
    x, y = _operands(r, node)
    if _is(r.uniform(y.value), _zero(node, 1.0)):
        return x
    if _is(r.uniform(x.value), _zero(node, -1.0)):
        return apply("negative", y)
    negated = _inner(r, node, 1, "negative")
    return None if negated is None else apply("add", x, negated)


def _multiply(r: Rewriter, node: Node) -> Sym | None:
    for i, x in enumerate(node.inputs):
        c = r.uniform(node.inputs[1 - i])
        if c is None:
            continue
        if c == 1:
            return r.sym(x)
        if c == 0 and _dtype(node) not in FLOATS:
            return _like(r, node, 0)
        if c == -1:
            return apply("negative", r.sym(x))
        negated = _inner(r, node, i, "negative")
        if negated is not None and _dtype(node) in FLOATS:
            return apply("multiply", negated, _like(r, node, -c))
    return None


def _divide(r: Rewriter, node: Node) -> Sym | None:
    """Turn a division by a power of two into a product, which rounds the same exact value."""
    x, y = _operands(r, node)
    c = r.uniform(y.value)
    if c is None or c == 0 or not math.isfinite(c):
        return None
    if c == 1:
        return x
    mantissa, exponent = math.frexp(c)
    limit = 2 ** (EXPONENT[_dtype(node)] - 1) - 3
    if abs(mantissa) == 0.5 and abs(exponent) < limit:
        return apply("multiply", x, _like(r, node, 1.0 / c))
    return None


def _power(r: Rewriter, node: Node) -> Sym | None:
    """Turn small whole exponents into products; a cube rounds twice, within the bound of ``power``."""
    x, y = _operands(r, node)
    c = r.uniform(y.value)
    dtype = _dtype(node)
    if c == 0:
        return _like(r, node, 1)
    if c == 1:
        return x
    if c == 2:
        return x * x
    if c == 3 and dtype not in NARROW_FLOATS:
        return x * x * x
    if c == -1 and dtype in FLOATS:
        return apply("divide", full(1.0, x), x)
    return None


def _negative(r: Rewriter, node: Node) -> Sym | None:
    made = r.producer(node.inputs[0], "multiply")
    if made is not None and _dtype(node) in FLOATS:
        for i, x in enumerate(made.inputs):
            c = r.uniform(made.inputs[1 - i])
            if c is not None and r.once(node.inputs[0]):
                return apply("multiply", r.sym(x), _like(r, node, -c))
    return None


def _undone(name: str) -> Rule:
    """f(f(x)) is x."""
    return lambda r, node: _inner(r, node, 0, name)


def _absolute(r: Rewriter, node: Node) -> Sym | None:
    if r.producer(node.inputs[0], "absolute"):
        return r.sym(node.inputs[0])
    negated = _inner(r, node, 0, "negative")
    return None if negated is None or _dtype(node) not in FLOATS else apply("absolute", negated)


def _idempotent(r: Rewriter, node: Node) -> Sym | None:
    """f(x, x) is x; of bool operands one may be a constant."""
    x, y = _operands(r, node)
    return x if x.value is y.value else None


def _and_or(neutral: bool) -> Rule:
    def rule(r: Rewriter, node: Node) -> Sym | None:
        if _dtype(node) != "bool":
            return None
        for i, x in enumerate(node.inputs):
            c = r.uniform(node.inputs[1 - i])
            if c is not None:
                return r.sym(x) if bool(c) is neutral else _like(r, node, not neutral)
        return None

    return rule


def _where(r: Rewriter, node: Node) -> Sym | None:
    condition, x, y = (r.sym(v) for v in node.inputs)
    if x.value is y.value:
        return x
    c = r.uniform(condition.value)
    if c is not None:
        return x if c else y
    a, b = r.uniform(x.value), r.uniform(y.value)
    if a is not None and b is not None and _is(a, b):
        return x
    if _dtype(node) == "bool":
        if a is not None and a:
            return condition | y
        if b is not None and not b:
            return condition & x
    inverted = _inner(r, node, 0, "invert")
    return None if inverted is None else apply("where", inverted, y, x)


def exact(source: str, target: str) -> bool:
    """Whether a cast from one dtype to the other keeps every value."""
    if source == target or source == "bool":
        return True
    if source in INTEGERS:
        bits = int(source[1:]) - (source in SIGNED)
        if target in FLOATS:
            return bits <= MANTISSA[target] and bits < 2 ** (EXPONENT[target] - 1)
        if target in INTEGERS:
            return (source not in SIGNED or target in SIGNED) and bits <= int(target[1:]) - (target in SIGNED)
        return False
    return target in FLOATS and MANTISSA[source] <= MANTISSA[target] and EXPONENT[source] <= EXPONENT[target]


def _cast(r: Rewriter, node: Node) -> Sym | None:
    x = r.sym(node.inputs[0])
    if x.type.name == _dtype(node):
        return x
    before = _inner(r, node, 0, "cast")
    if before is not None and exact(before.type.name, x.type.name):
        return before.astype(node.output.type.dtype)
    chosen = r.producer(x.value, "where") if _dtype(node) == "bool" else None
    if chosen is not None and r.uniform(chosen.inputs[1]) and r.uniform(chosen.inputs[2]) == 0:
        return r.sym(chosen.inputs[0])
    return None


def _bitcast(r: Rewriter, node: Node) -> Sym | None:
    before = _inner(r, node, 0, "bitcast") or r.sym(node.inputs[0])
    if before.type.name == _dtype(node):
        return before
    return None if before.value is node.inputs[0] else apply("bitcast", before, dtype=_dtype(node))


RULES: dict[str, tuple[Rule, ...]] = {
    "add": (_add,),
    "subtract": (_subtract,),
    "multiply": (_multiply,),
    "divide": (_divide,),
    "power": (_power,),
    "negative": (_undone("negative"), _negative),
    "invert": (_undone("invert"),),
    "absolute": (_absolute,),
    "maximum": (_idempotent,),
    "minimum": (_idempotent,),
    "bitwise_and": (_idempotent, _and_or(neutral=True)),
    "bitwise_or": (_idempotent, _and_or(neutral=False)),
    "where": (_where,),
    "cast": (_cast,),
    "bitcast": (_bitcast,),
    "stop_gradient": (lambda r, node: r.sym(node.inputs[0]),),
}
