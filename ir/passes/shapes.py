"""Rules of views, reductions and contractions: views of views are one view, and contractions take views in by names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernelforge.dtypes import FLOATS, NARROW_FLOATS
from kernelforge.ir.build import Sym, apply, full
from kernelforge.ir.graph import Kind, Node
from kernelforge.ir.passes import windows
from kernelforge.ir.passes.rewrite import Rewriter, Rule

PART = 4
"""What is at most this part of an array is kept beside it."""


def _shape(node: Node) -> tuple[int, ...]:
    return node.output.type.shape


def _source(r: Rewriter, node: Node) -> tuple[Sym, Node | None]:
    """Return the first input, and the node that made it if that is of the same primitive."""
    return r.sym(node.inputs[0]), r.producer(node.inputs[0], node.prim.name)


def _full(r: Rewriter, node: Node, value: float) -> Sym:
    return apply("full", value=value, shape=_shape(node), dtype=node.output.type.name)


def _from_zero(x: Sym) -> Sym:
    """Add the 0.0 that sums start from, which turns -0.0 into it."""
    return apply("add", x, full(0.0, x)) if x.type.name in FLOATS else x


def _of_uniform(r: Rewriter, node: Node) -> Sym | None:
    c = r.uniform(node.inputs[0])
    return None if c is None else _full(r, node, c)


def _broadcast(r: Rewriter, node: Node) -> Sym | None:
    x, inner = _source(r, node)
    if x.shape == _shape(node):
        return x
    if inner is not None:
        return r.sym(inner.inputs[0]).broadcast(_shape(node))
    reshaped = r.producer(x.value, "reshape")
    if reshaped is not None:
        source = r.sym(reshaped.inputs[0])
        lead = x.ndim - source.ndim
        if lead > 0 and x.shape == (*(1,) * lead, *source.shape):
            return source.broadcast(_shape(node))
    return None


def _reshape(r: Rewriter, node: Node) -> Sym | None:
    x, inner = _source(r, node)
    if x.shape == _shape(node):
        return x
    return None if inner is None else r.sym(inner.inputs[0]).reshape(_shape(node))


def _transpose(r: Rewriter, node: Node) -> Sym | None:
    x, inner = _source(r, node)
    order = node.params["axes"]
    if order == tuple(range(len(order))):
        return x
    if inner is not None:
        return r.sym(inner.inputs[0]).transpose([inner.params["axes"][a] for a in order])
    moved = [a for a in order if x.shape[a] != 1]
    if moved == sorted(moved):
        return x.reshape(_shape(node))
    made = r.producer(x.value, "contract")
    if made is not None and r.once(x.value):
        names = made.params["out_axes"]
        return _contract(r, made, made.inputs, out_axes=tuple(names[a] for a in order))
    made = r.producer(x.value, "reshape")
    if made is None or not r.once(x.value) or r.producer(made.inputs[0], "contract") is None:
        return None
    # axes of one element, which come and go, hide the contraction's own
    source = r.sym(made.inputs[0])
    long = [a for a in range(source.ndim) if source.shape[a] != 1]
    if [source.shape[a] for a in long] != [n for n in x.shape if n != 1]:
        return None
    ones = [a for a in range(source.ndim) if source.shape[a] == 1]
    return source.transpose([*ones, *(long[sorted(moved).index(a)] for a in moved)]).reshape(_shape(node))


def _slice(r: Rewriter, node: Node) -> Sym | None:
    x, inner = _source(r, node)
    if x.shape == _shape(node):
        return x  # as long as the input, so from its start in steps of 1, or of one element or none
    if inner is None:
        return None
    source = r.sym(inner.inputs[0])
    starts, steps = [], []
    for a in range(x.ndim):
        outer_start, outer_step = node.params["starts"][a], node.params["steps"][a]
        starts.append(inner.params["starts"][a] + outer_start * inner.params["steps"][a])
        steps.append(outer_step * inner.params["steps"][a])
    counts = _shape(node)
    starts = [min(a, n) for a, n in zip(starts, source.shape, strict=True)]
    stops = tuple(a + (m - 1) * s + 1 if m else a for a, s, m in zip(starts, steps, counts, strict=True))
    return apply("slice", source, starts=tuple(starts), stops=stops, steps=tuple(steps))


def _ranges(node: Node) -> list[tuple[int, int, int]]:
    """Return where a slice starts, how many elements it takes and in which steps, for each axis."""
    return list(zip(node.params["starts"], _shape(node), node.params["steps"], strict=True))


def _part(x: Sym, ranges: Sequence[tuple[int, int, int]]) -> Sym:
    stops = tuple(start + (count - 1) * step + 1 for start, count, step in ranges)
    return apply("slice", x, starts=tuple(a for a, _, _ in ranges), stops=stops, steps=tuple(s for _, _, s in ranges))


def _slice_contract(r: Rewriter, node: Node) -> Sym | None:
    """Contract only what is taken of the result."""
    made = r.producer(node.inputs[0], "contract")
    if made is None or not r.once(node.inputs[0]) or not node.output.type.size:
        return None
    taken = dict(zip(made.params["out_axes"], _ranges(node), strict=True))
    operands = []
    for value, key in zip(made.inputs, ("x_axes", "y_axes"), strict=True):
        x = r.sym(value)
        operands.append(_part(x, [taken.get(a, (0, n, 1)) for a, n in zip(made.params[key], x.shape, strict=True)]))
    return _contract(r, made, operands)


def _slice_pad(r: Rewriter, node: Node) -> Sym | None:
    """Pad less, where padding is cut away."""
    made = r.producer(node.inputs[0], "pad")
    if made is None or not node.output.type.size:
        return None
    x, fill = (r.sym(v) for v in made.inputs)
    low: list[int] = []
    high: list[int] = []
    kept: list[tuple[int, int, int]] = []
    for (start, count, step), n, before, after, inside in zip(
        _ranges(node), x.shape, *(made.params[k] for k in ("low", "high", "interior")), strict=True
    ):
        whole = (start, count, step) == (0, made.output.type.shape[len(kept)], 1)
        first, last = max(start - before, 0), min(start + count - before, n)
        if not whole and (inside or step != 1 or first >= last):
            return None
        low.append(before if whole else max(before - start, 0))
        high.append(after if whole else max(start + count - before - n, 0))
        kept.append((0, n, 1) if whole else (first, last - first, 1))
    if kept == [(0, n, 1) for n in x.shape] and (tuple(low), tuple(high)) == (made.params["low"], made.params["high"]):
        return None
    params = {"low": tuple(low), "high": tuple(high), "interior": made.params["interior"]}
    return apply("pad", _part(x, kept) if x.size else x, fill, **params)


def _apart(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    """Whether two ranges of starts, counts and steps have no element in common; steps alone may say so."""
    (i, m, s), (j, n, t) = a, b
    return i + (m - 1) * s < j or j + (n - 1) * t < i or (i - j) % math.gcd(s, t) != 0


def _inside(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Return which elements of the range ``b`` those of ``a`` are; None where some are no element of it."""
    (i, m, s), (j, n, t) = a, b
    first = (i - j) // t
    step = s // t if m > 1 else 1
    within = (i - j) % t == 0 and (m == 1 or s % t == 0) and first >= 0 and first + (m - 1) * step < n
    return (first, m, step) if within else None


def _places(node: Node) -> list[tuple[int, int, int]]:
    """Return the range that a ``place`` writes along each axis."""
    return list(zip(node.params["starts"], node.inputs[1].type.shape, node.params["steps"], strict=True))


def _slice_placed(r: Rewriter, node: Node) -> Sym | None:
    """Take what was written there from where it came, if that is a small part of the array, or from what it was not
    written to, if that is in memory.

    So a program that fills an array step by step, and reads what it wrote, reads no array half full; and nothing is
    stored for the sake of a slice alone.
    """
    taken = _ranges(node)
    value = node.inputs[0]
    while node.output.type.size and (made := r.producer(value, "place")) is not None:
        both = list(zip(taken, _places(made), strict=True))
        if not any(_apart(a, b) for a, b in both):
            found = [i for i in (_inside(a, b) for a, b in both) if i is not None]
            small = PART * made.inputs[1].type.size <= value.type.size
            return _part(r.sym(made.inputs[1]), found) if small and len(found) == len(both) else None
        value = made.inputs[0]
    there = value not in r.producers or r.uniform(value) is not None
    return _part(r.sym(value), taken) if there and value is not node.inputs[0] else None


def _slice_of_reshape(r: Rewriter, node: Node) -> Sym | None:
    """Slice a contraction before its axes are split or joined, where those that are cut keep to themselves."""
    made = r.producer(node.inputs[0], "reshape")
    if made is None or r.producer(made.inputs[0], "contract") is None or not node.output.type.size:
        return None
    before, after, counts = made.inputs[0].type.shape, made.output.type.shape, _shape(node)
    starts, stops, steps = [0] * len(before), list(before), [1] * len(before)
    for a, n in enumerate(after):
        if counts[a] == n:
            continue
        place = math.prod(after[:a])
        found = [b for b, m in enumerate(before) if m == n and math.prod(before[:b]) == place]
        if not found:
            return None
        starts[found[0]], stops[found[0]], steps[found[0]] = (node.params[k][a] for k in ("starts", "stops", "steps"))
    part = apply("slice", r.sym(made.inputs[0]), starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
    return part.reshape(counts)


def _flip(r: Rewriter, node: Node) -> Sym | None:
    x, inner = _source(r, node)
    real = {a for a in node.params["axes"] if x.shape[a] > 1}
    if inner is not None:
        x, real = r.sym(inner.inputs[0]), real ^ {a for a in inner.params["axes"] if x.shape[a] > 1}
    if not real:
        return x
    known = len(node.params["axes"]) == len(real) and inner is None
    return None if known else apply("flip", x, axes=tuple(sorted(real)))


def _pad(r: Rewriter, node: Node) -> Sym | None:
    x, fill = (r.sym(v) for v in node.inputs)
    if x.shape == _shape(node):
        return x
    if x.size == 0:
        return fill.broadcast(_shape(node))
    a, b = r.uniform(x.value), r.uniform(fill.value)
    if a is not None and b is not None and a == b and math.copysign(1.0, a) == math.copysign(1.0, b):
        return _full(r, node, a)
    return None


def _concatenate(r: Rewriter, node: Node) -> Sym | None:
    axis = node.params["axis"]
    parts: list[Sym] = []
    for v in node.inputs:
        inner = r.producer(v, "concatenate")
        flat = inner.inputs if inner is not None and inner.params["axis"] == axis else (v,)
        parts += [r.sym(p) for p in flat if p.type.shape[axis]]
    if len(parts) == 1:
        return parts[0]
    if not parts or [p.value for p in parts] == list(node.inputs):
        return None
    return apply("concatenate", *parts, axis=axis)


def _place(r: Rewriter, node: Node) -> Sym | None:
    x, v = (r.sym(i) for i in node.inputs)
    if v.size == 0:
        return x
    if v.shape == x.shape:
        return v
    inner = r.producer(x.value, "place")
    if inner is None or not r.once(x.value) or None in map(_inside, _places(inner), _places(node)):
        return None
    return apply("place", r.sym(inner.inputs[0]), v, **node.params)  # what was written there first is written over


def _reduce(r: Rewriter, node: Node) -> Sym | None:
    x, inner = _source(r, node)
    drop = node.params["axes"]
    if x.size and math.prod(x.shape[a] for a in drop) == 1:
        alone = x.reshape(_shape(node))
        return _from_zero(alone) if node.prim.name == "sum" else alone
    if inner is not None and r.once(x.value) and x.type.name not in NARROW_FLOATS:
        # a sum of sums of narrow floats rounds between them
        source = r.sym(inner.inputs[0])
        kept = [a for a in range(source.ndim) if a not in inner.params["axes"]]
        axes = sorted((*inner.params["axes"], *(kept[a] for a in drop)))
        return apply(node.prim.name, source, axes=tuple(axes))
    c = r.uniform(x.value)
    if c is None or not x.size:
        return None
    if node.prim.name in ("max", "min") or (node.prim.name == "sum" and c == 0 and math.copysign(1.0, c) > 0):
        return _full(r, node, c)
    return None


def _reduce_repeated(r: Rewriter, node: Node) -> Sym | None:
    """Reduce what is repeated once: a sum of n times the same is n times it."""
    made, name, target = r.producer(node.inputs[0], "broadcast"), node.prim.name, node.inputs[0].type.shape
    if made is None or not node.inputs[0].type.size or (name == "sum" and node.output.type.name not in ("f32", "f64")):
        return None
    source = r.sym(made.inputs[0])
    shape = (*(1,) * (len(target) - source.ndim), *source.shape)
    again = {a for a in node.params["axes"] if shape[a] != target[a]}
    if not again:
        return None
    left = [a for a in range(len(shape)) if a not in again]
    rest = tuple(k for k, a in enumerate(left) if a in node.params["axes"])
    x = source.reshape(tuple(shape[a] for a in left))
    x = apply(name, x, axes=rest) if rest else x
    if name == "sum":
        x = apply("multiply", x, full(float(math.prod(target[a] for a in again)), x))
        x = x if rest else _from_zero(x)
    return x.broadcast(_shape(node))


def _contract(
    r: Rewriter,
    node: Node,
    inputs: Sequence[object],
    *,
    x_axes: tuple[int, ...] | None = None,
    y_axes: tuple[int, ...] | None = None,
    out_axes: tuple[int, ...] | None = None,
) -> Sym:
    """Repeat a contraction with other operands or names."""
    given = {"x_axes": x_axes, "y_axes": y_axes, "out_axes": out_axes}
    params = {k: node.params[k] if v is None else v for k, v in given.items()}
    x, y = (v if isinstance(v, Sym) else r.sym(v) for v in inputs)  # type: ignore[arg-type]
    return apply("contract", x, y, **params)


def _contract_transposed(r: Rewriter, node: Node) -> Sym | None:
    """Give the operand's axes their names in the order before the transpose."""
    for i, key in enumerate(("x_axes", "y_axes")):
        made = r.producer(node.inputs[i], "transpose")
        if made is None:
            continue
        names = [0] * len(node.params[key])
        for axis, name in zip(made.params["axes"], node.params[key], strict=True):
            names[axis] = name
        inputs = [made.inputs[0] if k == i else v for k, v in enumerate(node.inputs)]
        return _contract(r, node, inputs, **{key: tuple(names)})
    return None


def _contract_repeated(r: Rewriter, node: Node) -> Sym | None:
    """Drop from an operand the axes that are no sum's and along which it is only repeated.

    Batch axes become the other operand's own; along axes of its own, the result is repeated.
    """
    out = node.params["out_axes"]
    for i, (key, other) in enumerate((("x_axes", "y_axes"), ("y_axes", "x_axes"))):
        made = r.producer(node.inputs[i])
        if made is None or made.prim.name not in ("broadcast", "full"):
            continue
        target, names = _shape(made), node.params[key]
        source = r.sym(made.inputs[0]) if made.inputs else apply("full", **{**made.params, "shape": ()})
        lead = len(names) - source.ndim
        repeated = [a < lead or source.shape[a - lead] != target[a] for a in range(len(names))]
        gone = [again and name in out for again, name in zip(repeated, names, strict=True)]
        if not any(gone):
            continue
        left = [a for a in range(len(names)) if not gone[a]]
        if all(a >= lead for a in left):
            x = source.reshape(tuple(source.shape[a - lead] for a in left))
        else:
            x = source.reshape((*(1 for a in left if a < lead), *(source.shape[a - lead] for a in left if a >= lead)))
        x = x.broadcast(tuple(target[a] for a in left))
        inputs = [x if k == i else v for k, v in enumerate(node.inputs)]
        held = {*(names[a] for a in left), *node.params[other]}
        result = _contract(
            r,
            node,
            inputs,
            **{key: tuple(names[a] for a in left)},
            out_axes=tuple(n for n in out if n in held),
        )
        ones = tuple(m if n in held else 1 for n, m in zip(out, _shape(node), strict=True))
        return result.reshape(ones).broadcast(_shape(node))
    return None


def _contract_alone(r: Rewriter, node: Node) -> Sym | None:
    """Multiply what is summed over no axis: a map, which others join."""
    out, factors = node.params["out_axes"], []
    for v, key in zip(node.inputs, ("x_axes", "y_axes"), strict=True):
        names = node.params[key]
        if not {*names} <= {*out}:
            return None
        x = r.sym(v).transpose(tuple(sorted(range(len(names)), key=lambda a: out.index(names[a]))))
        shape = tuple(n if name in names else 1 for name, n in zip(out, _shape(node), strict=True))
        factors.append(x.reshape(shape).broadcast(_shape(node)))
    return _from_zero(apply("multiply", *factors))


def _lift_broadcast(r: Rewriter, node: Node) -> Sym | None:
    """Compute on what is repeated before it is repeated: f(broadcast(x), c) is broadcast(f(x, c))."""
    if node.prim.kind is not Kind.MAP or node.prim.name == "barrier" or not node.inputs:
        return None
    source: tuple[int, ...] | None = None
    for v in node.inputs:
        made = r.producers.get(v)
        if made is None or v.type.shape != _shape(node):
            return None
        if made.prim.name == "full":
            continue
        if made.prim.name != "broadcast" or (source is not None and made.inputs[0].type.shape != source):
            return None
        source = made.inputs[0].type.shape
    if source is None:
        return None
    inputs: list[Sym] = []
    for v in node.inputs:
        made = r.producers[v]
        same = made.prim.name == "broadcast"
        inputs.append(r.sym(made.inputs[0]) if same else apply("full", **{**made.params, "shape": source}))
    return apply(node.prim.name, *inputs, **node.params).broadcast(_shape(node))


RULES: dict[str, tuple[Rule, ...]] = {
    "broadcast": (_of_uniform, _broadcast),
    "reshape": (_of_uniform, _reshape, *windows.RULES["reshape"]),
    "transpose": (_of_uniform, _transpose),
    "slice": (
        _of_uniform,
        _slice,
        _slice_placed,
        _slice_contract,
        *windows.RULES["slice"],
        _slice_pad,
        _slice_of_reshape,
    ),
    "flip": (_of_uniform, _flip),
    "window": (_of_uniform, *windows.RULES["window"]),
    "pad": (_pad,),
    "concatenate": (_concatenate,),
    "place": (_place,),
    "prod": (_reduce,),
    **dict.fromkeys(("sum", "max", "min"), (_reduce, _reduce_repeated)),
    "contract": (_contract_alone, _contract_transposed, _contract_repeated),
    "": (_lift_broadcast,),
}
