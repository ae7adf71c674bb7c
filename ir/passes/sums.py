"""Rules about sums, exact in real numbers and not to the bit: what each leaves out, and why nothing is lost.

A value is looked at through the broadcasts and reshapes by which means and maxima meet what they are taken of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernelforge.dtypes import FLOATS
from kernelforge.ir.axes import carried
from kernelforge.ir.build import Sym, apply, full
from kernelforge.ir.graph import Node, Value
from kernelforge.ir.passes.algebra import MANTISSA
from kernelforge.ir.passes.rewrite import Rewriter, Rule


def _origin(r: Rewriter, value: Value) -> tuple[Value, list[int | None]]:
    """Return what ``value`` repeats or reshapes, and along which axis of ``value`` each of its own lies."""
    along: list[int | None] = list(range(value.type.ndim))
    while (node := r.producer(value)) is not None and node.prim.name in ("broadcast", "reshape"):
        (given,) = node.inputs
        known = dict(carried(node, given))
        if any(n != 1 and a not in known for a, n in enumerate(given.type.shape) if node.prim.name == "reshape"):
            break
        along = [along[known[a]] if a in known else None for a in range(given.type.ndim)]
        value = given
    return value, along


def _repeated(r: Rewriter, value: Value, axes: tuple[int, ...]) -> Value | None:
    """Return what has the other axes of ``value``, in order, and is repeated along ``axes``."""
    made, along = _origin(r, value)
    return made if _is_left(made, along, value, axes) else None


def _is_left(made: Value, along: Sequence[int | None], value: Value, axes: tuple[int, ...]) -> bool:
    """Whether the axes of ``made``, which are ``along`` those of ``value``, are all of it but ``axes``, in order."""
    shape = value.type.shape
    left = [a for a in range(len(shape)) if a not in axes]
    same = made.type.shape == tuple(shape[a] for a in left)
    return same and all(a in (k, None) for a, k in zip(along, left, strict=True))


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
        zero = r.uniform(chosen.inputs[2]) if chosen is not None and node.output.type.name in FLOATS else None
        if chosen is None or zero != 0 or math.copysign(1.0, zero) < 0:
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
            return r.sym(x) + full(0.0, r.sym(x))
    return None


def _weighted(r: Rewriter, node: Node) -> Sym | None:
    """Divide what a softmax weighs by the sum of the weights, where it is smaller than the weights are.

    Not exact to the bit: each is rounded once, but not the same. The weights are at most one, so that no sum of what
    they weigh overflows unless it is within a factor of their number of the largest number, as in FlashAttention
    (T. Dao et al., 2022, algorithm 1).
    """
    if node.output.type.name not in ("f32", "f64"):
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


def _is_mean(r: Rewriter, value: Value, of: Value, axes: tuple[int, ...]) -> bool:
    """Whether ``value`` repeats the mean of ``of`` along ``axes``."""
    scaled, outer = _origin(r, value)
    node = r.producer(scaled)
    if node is None or node.prim.name not in ("divide", "multiply"):
        return False
    c = r.uniform(node.inputs[1])
    made, inner = _origin(r, node.inputs[0])
    total = r.producer(made, "sum")
    if c is None or total is None or total.inputs[0] is not of or total.params["axes"] != axes:
        return False
    along = [None if a is None else outer[a] for a in inner]
    count = math.prod(of.type.shape[a] for a in axes)
    if count == 0 or not _is_left(made, along, of, axes):
        return False
    times = c / count if node.prim.name == "divide" else c * count
    return math.isclose(times, 1, rel_tol=2.0 ** (1 - MANTISSA[of.type.name]))


def _deviations(r: Rewriter, value: Value, axes: tuple[int, ...]) -> list[tuple[str, Value]] | None:
    """Return what deviations from a mean along ``axes`` are multiplied and divided by, and the mean, if that is what
    ``value`` is and none of the factors changes along the axes.
    """
    factors: list[tuple[str, Value]] = []
    while (node := r.producer(value)) is not None:
        if node.prim.name == "subtract":
            x, mean = node.inputs
            return [*factors, ("multiply", mean)] if _is_mean(r, mean, x, axes) else None
        if node.prim.name == "negative":
            value = node.inputs[0]
            continue
        if node.prim.name not in ("multiply", "divide"):
            return None
        x, y = node.inputs
        if _level(r, y, axes):
            value, factor = x, y
        elif node.prim.name == "multiply" and _level(r, x, axes):
            value, factor = y, x
        else:
            return None
        factors.append((node.prim.name, factor))
    return None


def _level(r: Rewriter, value: Value, axes: tuple[int, ...]) -> bool:
    """Whether ``value`` does not change along ``axes``; of known numbers, only those that keep a zero a zero."""
    known = r.uniform(value)
    if known is not None:
        return known != 0 and math.isfinite(known)
    made, along = _origin(r, value)
    return all(n == 1 or a not in axes for a, n in zip(along, made.type.shape, strict=True))


def _without(r: Rewriter, value: Value, axes: tuple[int, ...]) -> Sym:
    """Return ``value`` less ``axes``, along which it does not change."""
    made, along = _origin(r, value)
    left = [a for a in range(value.type.ndim) if a not in axes]
    shape = tuple(value.type.shape[a] for a in left)
    held = {a for a, n in zip(along, made.type.shape, strict=True) if n != 1}
    ones = tuple(n if a in held else 1 for a, n in zip(left, shape, strict=True))
    return r.sym(made).reshape(ones).broadcast(shape)


def _balanced_term(r: Rewriter, node: Node) -> Sym | None:
    """Deviations from a mean sum to zero, so a sum of them and of others is the sum of the others.

    What is left out is the rounding error of a zero. The gradient of a normalisation by the mean is such a sum; without
    the deviations it needs no pass of its own. A mean or a factor that is infinite or NaN makes the sum NaN as before.
    """
    axes = node.params["axes"]
    if node.output.type.name not in FLOATS:
        return None
    total, sign = _positive(r, node.inputs[0])
    made = r.producer(total)
    if made is None or made.prim.name not in ("add", "subtract"):
        return None
    for k, term in enumerate(made.inputs):
        factors = _deviations(r, term, axes)
        if factors is None:
            continue
        rest = apply("sum", r.sym(made.inputs[1 - k]), axes=axes)
        if (sign < 0) != (made.prim.name == "subtract" and k == 0):
            rest = -rest
        for name, factor in factors:
            if r.uniform(factor) is None:
                level = _without(r, factor, axes)
                zero = full(0.0, level)
                rest = rest + (zero / level if name == "divide" else zero * level)
        return rest
    return None


RULES: dict[str, tuple[Rule, ...]] = {
    "add": (_shared_zero,),
    "contract": (_weighted,),
    "sum": (_balanced_term,),
}
