"""Rules of arithmetic, exact to the bit: for floats also with -0.0, NaN and infinities, so x + 0.0 and x * 0 stay.

x + 0.0 is not x where x is -0.0; automatic differentiation makes no zeros to be added, so nothing is lost. Two rules
are not exact, and say so.
"""

from __future__ import annotations

import math

from kernelforge.dtypes import FLOATS, INTEGERS, NARROW_FLOATS, SIGNED
from kernelforge.ir.axes import carried
from kernelforge.ir.build import Sym, apply, full
from kernelforge.ir.graph import Node, Value
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
        return before.astype(_dtype(node))
    chosen = r.producer(x.value, "where") if _dtype(node) == "bool" else None
    if chosen is not None and r.uniform(chosen.inputs[1]) and r.uniform(chosen.inputs[2]) == 0:
        return r.sym(chosen.inputs[0])
    return None


def _bitcast(r: Rewriter, node: Node) -> Sym | None:
    before = _inner(r, node, 0, "bitcast") or r.sym(node.inputs[0])
    if before.type.name == _dtype(node):
        return before
    return None if before.value is node.inputs[0] else apply("bitcast", before, dtype=_dtype(node))


def _repeated(r: Rewriter, value: Value, axes: tuple[int, ...]) -> Value | None:
    """Return what has the other axes of ``value``, in order, and is repeated along ``axes``."""
    shape = value.type.shape
    along: list[int | None] = list(range(len(shape)))
    while (node := r.producer(value)) is not None and node.prim.name in ("broadcast", "reshape"):
        (given,) = node.inputs
        known = dict(carried(node, given))
        if any(n != 1 and a not in known for a, n in enumerate(given.type.shape) if node.prim.name == "reshape"):
            break
        along = [along[known[a]] if a in known else None for a in range(given.type.ndim)]
        value = given
    left = [a for a in range(len(shape)) if a not in axes]
    same = value.type.shape == tuple(shape[a] for a in left)
    return value if same and all(a in (k, None) for a, k in zip(along, left, strict=True)) else None


def _summed(r: Rewriter, value: Value, axes: tuple[int, ...], by: str = "sum") -> Value | None:
    """Return what was reduced ``by`` a sum over ``axes`` where ``value`` repeats the sums along them."""
    made = _repeated(r, value, axes)
    node = r.producer(made, by) if made is not None else None
    found = node is not None and node.params["axes"] == axes and node.inputs[0].type.shape == value.type.shape
    return node.inputs[0] if found and node is not None else None


def _positive(r: Rewriter, value: Value) -> tuple[Value, int]:
    made = r.producer(value, "negative")
    return (made.inputs[0], -1) if made is not None else (value, 1)


def _balanced(r: Rewriter, value: Value, axes: tuple[int, ...]) -> bool:
    """Whether ``value`` is deviations from a weighted mean, weighted: e * (a - sum(a * e / sum(e)))."""
    product = r.producer(value, "multiply")
    for difference, e in (product.inputs, product.inputs[::-1]) if product is not None else ():
        made = r.producer(difference)
        if made is None or made.prim.name not in ("add", "subtract"):
            continue
        a, mean = made.inputs
        weighted = _summed(r, mean, axes)
        if weighted is None:
            continue
        inner, sign = _positive(r, weighted)
        factors = r.producer(inner, "multiply")
        if factors is None or (sign < 0) != (made.prim.name == "add") or a not in factors.inputs:
            continue
        p = r.producer(factors.inputs[1 - factors.inputs.index(a)], "divide")
        if p is not None and p.inputs[0] is e and _summed(r, p.inputs[1], axes) is e:
            return True
    return False


def _shared_zero(r: Rewriter, node: Node) -> Sym | None:
    """Weighted deviations from their mean sum to zero, so a share of that sum, added to some of them, is zero, too.

    Not exact to the bit: what is left out is the rounding error of a zero. It is what the gradient of a softmax by the
    maximum subtracted in it comes to. A NaN in a share is in the deviations already, in all that have the mean.
    """
    for x, other in (node.inputs, node.inputs[::-1]):
        chosen = r.producer(other, "where")
        if chosen is None or _dtype(node) not in FLOATS or not _is(r.uniform(chosen.inputs[2]), 0.0):
            continue
        share = chosen.inputs[1]
        while (made := r.producer(share)) is not None and made.prim.name in ("broadcast", "reshape"):
            share = made.inputs[0]
        if made is None or made.prim.name != "divide":
            continue
        total, count = (r.producer(v, "sum") for v in made.inputs)
        if total is None or count is None or total.params["axes"] != count.params["axes"]:
            continue
        axes, among = total.params["axes"], r.producer(count.inputs[0], "cast")
        aligned = _repeated(r, chosen.inputs[1], axes) is share and _positive(r, total.inputs[0])[0] is x
        if among is not None and among.inputs[0] is chosen.inputs[0] and aligned and _balanced(r, x, axes):
            return apply("add", r.sym(x), _like(r, node, 0.0))
    return None


def _weighted(r: Rewriter, node: Node) -> Sym | None:
    """Divide what a softmax weighs by the sum of the weights, where it is smaller than the weights are.

    Not exact to the bit: each is rounded once, but not the same. The weights are at most one, so that no sum of what
    they weigh overflows unless it is within a factor of their number of the largest number, as in FlashAttention
    (T. Dao et al., 2022, algorithm 1).
    """
    if _dtype(node) not in ("f32", "f64"):
        return None
    out = node.params["out_axes"]
    for k, weights in enumerate(node.inputs):
        divided = r.producer(weights, "divide")
        names = node.params[("x_axes", "y_axes")[k]]
        axes = tuple(a for a, n in enumerate(names) if n not in out)
        if divided is None or not axes or not r.once(weights) or node.output.type.size >= weights.type.size:
            continue
        e, total = divided.inputs
        relative = r.producer(e, "exp") and r.producer(r.producers[e].inputs[0], "subtract")
        if relative is None or _summed(r, total, axes) is not e:
            continue
        if _summed(r, relative.inputs[1], axes, "max") is not relative.inputs[0]:
            continue
        given = [r.sym(v) for v in node.inputs]
        given[k] = r.sym(e)
        sums = _repeated(r, total, axes)
        assert sums is not None
        left = [n for n in names if n in out]
        order = sorted(range(len(left)), key=lambda a: out.index(left[a]))
        shape = tuple(m if n in left else 1 for n, m in zip(out, node.output.type.shape, strict=True))
        by = r.sym(sums).transpose(order).reshape(shape).broadcast(node.output.type.shape)
        return apply("divide", apply("contract", *given, **node.params), by)
    return None


RULES: dict[str, tuple[Rule, ...]] = {
    "contract": (_weighted,),
    "add": (_add, _shared_zero),
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
