"""Loops: primitives that hold graphs, and the functions that build the graphs of these and of branches and calls.

A body may use symbols of the graph around it; ``close`` turns them, and the arrays it closed over, into inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.dtypes import is_float
from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch
from kernelforge.ir import autodiff
from kernelforge.ir.batch import batch, leading, marks
from kernelforge.ir.build import Builder, Sym, apply, apply_many, builder, full
from kernelforge.ir.graph import Graph, Kind, Params, Primitive, Sample, Value
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.types import Type

Arrays = Sequence[np.ndarray[Any, Any]]
Emit = Callable[..., Sequence[Sym]]
MaybeSyms = tuple[Sym | None, ...]


def _captured(b: Builder, outputs: Sequence[Sym]) -> tuple[tuple[Value, ...], list[tuple[Sym, Value]]]:
    outs = tuple(b.lift(s) for s in outputs)
    bound = [(builder().constant(array), value) for value, array in b.consts]
    return outs, [*b.captures.items(), *bound]


def _traced(fn: Emit, types: Sequence[Type]) -> tuple[Builder, Sequence[Sym]]:
    b = Builder(loc=builder().loc)
    with b.active():
        outputs = fn(*[b.input(t) for t in types])
    return b, outputs


def close(fn: Emit, types: Sequence[Type]) -> tuple[Graph, list[Sym]]:
    """Make a graph of ``fn``; return it with the outer symbols it uses, which are its first inputs."""
    b, outputs = _traced(fn, types)
    given = tuple(b.inputs)
    outs, captured = _captured(b, outputs)
    return Graph((*(v for _, v in captured), *given), tuple(b.nodes), outs), [s for s, _ in captured]


def embed(fn: Emit, types: Sequence[Type]) -> tuple[Graph, list[Sym]]:
    """``close``, but that constants stay in the graph: nothing around it takes them for inputs to differentiate by."""
    b, outputs = _traced(fn, types)
    given = tuple(b.inputs)
    outs = tuple(b.lift(s) for s in outputs)
    outer = {value: array for s in b.captures for value, array in s.builder.consts}
    consts = [(v, outer[s.value]) for s, v in b.captures.items() if s.value in outer]
    captured = [(s, v) for s, v in b.captures.items() if s.value not in outer]
    inputs = (*(v for _, v in captured), *given)
    return Graph(inputs, tuple(b.nodes), outs, (*b.consts, *consts)), [s for s, _ in captured]


def close_pair(first: Emit, second: Emit, types: Sequence[Type]) -> tuple[Graph, Graph, list[Sym]]:
    """``close`` for two functions that get one list of inputs: each graph ignores what only the other one uses."""
    traced = [_traced(fn, types) for fn in (first, second)]
    given = [tuple(b.inputs) for b, _ in traced]
    (outs1, captured1), (outs2, captured2) = (_captured(b, outputs) for b, outputs in traced)
    values1 = (*(v for _, v in captured1), *(traced[0][0].input(s.type).value for s, _ in captured2))
    values2 = (*(traced[1][0].input(s.type).value for s, _ in captured1), *(v for _, v in captured2))
    graph1 = Graph((*values1, *given[0]), tuple(traced[0][0].nodes), outs1)
    graph2 = Graph((*values2, *given[1]), tuple(traced[1][0].nodes), outs2)
    return graph1, graph2, [s for s, _ in (*captured1, *captured2)]


def emit_scan(step: Emit, init: Sequence[Sym], xs: Sequence[Sym], length: int, reverse: bool) -> tuple[Sym, ...]:
    """Append a scan of ``step(*carry, *x) -> (*carry, *y)``."""
    types = [*(s.type for s in init), *(Type(s.shape[1:], s.dtype) for s in xs)]
    body, consts = close(step, types)
    params = {"body": body, "consts": len(consts), "carry": len(init), "length": length, "reverse": reverse}
    return apply_many("scan", *consts, *init, *xs, **params)


def emit_while(test: Emit, step: Emit, init: Sequence[Sym]) -> tuple[Sym, ...]:
    """Append a loop of ``step(*carry) -> carry`` while ``test(*carry) -> (bool of shape (),)`` holds."""
    types = [s.type for s in init]
    cond, cond_consts = close(test, types)
    body, body_consts = close(step, types)
    params = {"cond": cond, "body": body, "cond_consts": len(cond_consts), "body_consts": len(body_consts)}
    return apply_many("while_loop", *cond_consts, *body_consts, *init, **params)


def types_of(values: Sequence[Value]) -> list[Type]:
    return [v.type for v in values]


def match(op: str, what: str, found: Sequence[Type], expected: Sequence[Type]) -> None:
    """Compare shapes and dtypes; weakness is a matter of the front end."""
    if len(found) != len(expected):
        raise InvalidParameter(op=op, name=what, found=len(found), expected=f"{len(expected)} arrays")
    for f, e in zip(found, expected, strict=True):
        if f.shape != e.shape:
            raise ShapeMismatch(op=f"{op} ({what})", found=f"{f}", expected=f"{e}")
        if f.dtype != e.dtype:
            raise DtypeMismatch(op=f"{op} ({what})", found=f"{f}", expected=f"{e}")


def joined(first: Sequence[Type], second: Sequence[Type]) -> tuple[Type, ...]:
    """Return the types of values that come from either of two: weak where both are."""
    return tuple(Type(a.shape, a.dtype, a.weak and b.weak) for a, b in zip(first, second, strict=True))


def holds_float(x: Value | Sym) -> bool:
    return is_float(x.type.dtype)


def _zeros(syms: Sequence[Sym]) -> list[Sym]:
    return [full(0.0 if holds_float(s) else 0, s) for s in syms]


def materialize(xs: Sequence[Sym | None], like: Sequence[Sym]) -> list[Sym]:
    """Put zeros where there is None."""
    return [_zeros([s])[0] if x is None else x for x, s in zip(xs, like, strict=True)]


def scatter(mask: Sequence[bool], xs: Sequence[Sym]) -> list[Sym | None]:
    """Put ``xs`` where ``mask`` holds, None elsewhere."""
    left = iter(xs)
    return [next(left) if m else None for m in mask]


def present(xs: Sequence[Sym | None]) -> tuple[list[bool], list[Sym]]:
    """Undo ``scatter``."""
    return [x is not None for x in xs], [x for x in xs if x is not None]


def float_tangents(tangents: Sequence[Sym | None], inputs: Sequence[Sym]) -> list[Sym | None]:
    return [t if holds_float(s) else None for t, s in zip(tangents, inputs, strict=True)]


# scan: inputs (consts, init, xs), outputs (final carry, ys)


def _scan_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    body, c, k, length = params["body"], params["consts"], params["carry"], params["length"]
    wanted = types_of(body.inputs)
    stacked = [Type((length, *t.shape), t.dtype) for t in wanted[c + k :]]
    match("scan", "inputs", types, [*wanted[: c + k], *stacked])
    outs = types_of(body.outputs)
    match("scan", "carry", outs[:k], wanted[c : c + k])
    return (*joined(outs[:k], types[c : c + k]), *(Type((length, *t.shape), t.dtype) for t in outs[k:]))


def _scan_numpy(arrays: Arrays, params: Params) -> tuple[np.ndarray[Any, Any], ...]:
    body, c, k, length = params["body"], params["consts"], params["carry"], params["length"]
    consts, carry, xs = arrays[:c], list(arrays[c : c + k]), arrays[c + k :]
    ys = [np.empty((length, *t.shape), t.dtype) for t in types_of(body.outputs[k:])]
    for t in range(length - 1, -1, -1) if params["reverse"] else range(length):
        outs = run_graph(body, [*consts, *carry, *(x[t] for x in xs)])
        carry = outs[:k]
        for y, out in zip(ys, outs[k:], strict=True):
            y[t] = out
    return (*carry, *ys)


def _scan_vjp(cts: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
    """Scan backwards over the saved carries, repeating each step's body and pulling back through it."""
    body, c, k, length, reverse = (params[p] for p in ("body", "consts", "carry", "length", "reverse"))
    consts, init, xs = inputs[:c], inputs[c : c + k], inputs[c + k :]

    # it shares its nodes with the forward scan, by which the pass prune knows that one can do for both
    saving = Graph(body.inputs, body.nodes, (*body.outputs[:k], *body.inputs[c : c + k]), body.consts)
    carries = apply_many("scan", *inputs, body=saving, consts=c, carry=k, length=length, reverse=reverse)[k:]
    floats = [holds_float(s) for s in inputs]
    wrt = [i for i, m in enumerate(floats) if m]
    carry_mask = floats[c : c + k]
    y_mask, y_cts = present(float_tangents(cts[k:], outputs[k:]))
    float_init = [s for s in init if holds_float(s)]
    float_consts = [s for s in consts if holds_float(s)]
    carry_cts = materialize([ct for ct, m in zip(cts[:k], carry_mask, strict=True) if m], float_init)
    n, m = len(float_init), len(float_consts)

    def back(*step: Sym) -> list[Sym]:
        later, sums, rest = step[:n], step[n : n + m], step[n + m :]
        at, y_ct = rest[: len(inputs) - c], rest[len(inputs) - c :]
        _, pullback = autodiff.vjp(body, [*consts, *at], wrt)
        got = pullback([*scatter(carry_mask, later), *scatter(y_mask, y_ct)])
        added = [a + b for a, b in zip(sums, got[:m], strict=True)]
        return [*got[m : m + n], *added, *got[m + n :]]

    outs = emit_scan(back, [*carry_cts, *_zeros(float_consts)], [*carries, *xs, *y_cts], length, not reverse)
    return tuple(scatter(floats, [*outs[n : n + m], *outs[:n], *outs[n + m :]]))


def _scan_jvp(tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
    """Scan over the carry and its tangent together."""
    body, c, k, length, reverse = (params[p] for p in ("body", "consts", "carry", "length", "reverse"))
    tangents = tuple(float_tangents(tangents, inputs))
    consts, init, xs = inputs[:c], inputs[c : c + k], inputs[c + k :]
    mask = [holds_float(s) for s in init]
    float_init = [s for s in init if holds_float(s)]
    init_t = materialize([t for t, m in zip(tangents[c : c + k], mask, strict=True) if m], float_init)
    x_mask, xs_t = present(tangents[c + k :])
    y_mask = [holds_float(v) for v in body.outputs[k:]]

    def step(*values: Sym) -> list[Sym]:
        carry, carry_t = values[:k], values[k : k + len(init_t)]
        x, x_t = values[k + len(init_t) :][: len(xs)], values[k + len(init_t) + len(xs) :]
        given = [*tangents[:c], *scatter(mask, carry_t), *scatter(x_mask, x_t)]
        outs, outs_t = autodiff.jvp(body, [*consts, *carry, *x], given)
        float_t = [t for t, v in zip(outs_t, body.outputs, strict=True) if holds_float(v)]
        return [*outs[:k], *float_t]

    outs = emit_scan(step, [*init, *init_t], [*xs, *xs_t], length, reverse)
    return tuple(scatter([*mask, *y_mask], outs[k:]))


def _settled(graph: Graph, consts: Sequence[bool], carry: Sequence[bool], rest: Sequence[bool]) -> list[bool]:
    """Say what of a carry has a batch in the end where a loop repeats ``graph``."""
    while True:
        found = marks(graph, [*consts, *carry, *rest])[: len(carry)]
        wider = [a or b for a, b in zip(carry, found, strict=True)]
        if wider == list(carry):
            return wider
        carry = wider


def _swapped(x: Sym) -> Sym:
    """Exchange the first two axes."""
    return x.transpose((1, 0, *range(2, x.ndim)))


def all_leading(size: int, wanted: Sequence[bool], xs: Sequence[Sym], has: Sequence[bool]) -> list[Sym]:
    """Give a batch to what is wanted with one."""
    return [leading(size, x, h) if w else x for w, x, h in zip(wanted, xs, has, strict=True)]


def _scan_batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Sequence[Sym]:
    body, c, k, length = params["body"], params["consts"], params["carry"], params["length"]
    consts, init, xs = inputs[:c], inputs[c : c + k], inputs[c + k :]
    carry = _settled(body, has[:c], has[c : c + k], has[c + k :])
    given = [*has[:c], *carry, *has[c + k :]]
    made = marks(body, given)

    def step(*values: Sym) -> list[Sym]:
        outs = batch(body, [*consts, *values], given, size)
        return [*all_leading(size, carry, outs[:k], made[:k]), *outs[k:]]

    start = all_leading(size, carry, init, has[c : c + k])
    swapped = [_swapped(x) if h else x for x, h in zip(xs, has[c + k :], strict=True)]
    outs = emit_scan(step, start, swapped, length, params["reverse"])
    ys = [_swapped(y) if m else leading(size, y, False) for y, m in zip(outs[k:], made[k:], strict=True)]
    return [*all_leading(size, [True] * k, outs[:k], carry), *ys]


def chosen(pred: Sym, x: Sym, y: Sym) -> Sym:
    """Choose among examples by a bool for each."""
    wide = pred.reshape((*pred.shape, *(1,) * (x.ndim - 1))).broadcast(x.shape)
    return apply("where", wide, x, y)


# while_loop: inputs (cond consts, body consts, init), outputs the final carry


def _split_while(xs: Sequence[Any], params: Params) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    n, m = params["cond_consts"], params["body_consts"]
    return xs[:n], xs[n : n + m], xs[n + m :]


def _while_typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    cond, body = params["cond"], params["body"]
    cond_consts, body_consts, init = _split_while(types, params)
    match("while_loop", "inputs of cond", [*cond_consts, *init], types_of(cond.inputs))
    match("while_loop", "inputs of body", [*body_consts, *init], types_of(body.inputs))
    match("while_loop", "output of cond", types_of(cond.outputs), [Type((), np.dtype(bool))])
    match("while_loop", "carry", types_of(body.outputs), init)
    return joined(init, types_of(body.outputs))


def _while_numpy(arrays: Arrays, params: Params) -> tuple[np.ndarray[Any, Any], ...]:
    cond_consts, body_consts, carry = _split_while(arrays, params)
    while run_graph(params["cond"], [*cond_consts, *carry])[0]:
        carry = run_graph(params["body"], [*body_consts, *carry])
    return tuple(carry)


def _while_jvp(tangents: MaybeSyms, inputs: tuple[Sym, ...], outputs: tuple[Sym, ...], params: Params) -> MaybeSyms:
    """Loop over the carry and its tangent together; the test sees the carry alone."""
    cond_consts, body_consts, init = _split_while(inputs, params)
    _, body_t, init_t = _split_while(float_tangents(tangents, inputs), params)
    mask = [holds_float(s) for s in init]
    float_t = materialize([t for t, m in zip(init_t, mask, strict=True) if m], [s for s in init if holds_float(s)])
    k = len(init)

    def test(*values: Sym) -> list[Sym]:
        return builder().inline(params["cond"], [*cond_consts, *values[:k]])

    def step(*values: Sym) -> list[Sym]:
        given = [*body_t, *scatter(mask, values[k:])]
        outs, outs_t = autodiff.jvp(params["body"], [*body_consts, *values[:k]], given)
        return [*outs, *(t for t, m in zip(outs_t, mask, strict=True) if m)]

    return tuple(scatter(mask, emit_while(test, step, [*init, *float_t])[k:]))


def _while_batch(size: int, inputs: Sequence[Sym], has: Sequence[bool], params: Params) -> Sequence[Sym]:
    """Repeat while any example goes on; those that are done keep their carry."""
    test, body = params["cond"], params["body"]
    (cond_consts, body_consts, init), (of_cond, of_body, first) = (_split_while(x, params) for x in (inputs, has))
    carry = _settled(body, of_body, first, ())
    (apart,) = marks(test, [*of_cond, *carry])
    if apart:
        carry = [True] * len(carry)
    made = marks(body, [*of_body, *carry])

    def goes_on(carried: Sequence[Sym]) -> Sym:
        (found,) = batch(test, [*cond_consts, *carried], [*of_cond, *carry], size)
        return found

    def step(*carried: Sym) -> list[Sym]:
        new = all_leading(size, carry, batch(body, [*body_consts, *carried], [*of_body, *carry], size), made)
        return [chosen(goes_on(carried), n, old) for n, old in zip(new, carried, strict=True)] if apart else new

    def any_goes_on(*carried: Sym) -> list[Sym]:
        found = goes_on(carried)
        return [found.astype(np.dtype(np.int64)).sum((0,)) > 0 if apart else found]  # of no examples, too

    outs = emit_while(any_goes_on, step, all_leading(size, carry, init, first))
    return all_leading(size, [True] * len(outs), outs, carry)


_F64 = np.dtype(np.float64)


def sample_graph(fn: Emit, *shapes: tuple[int, ...]) -> Graph:
    b = Builder()
    with b.active():
        return b.finish(fn(*[b.input(Type(s, _F64)) for s in shapes]))


def _sample_scan() -> list[Sample]:
    body = sample_graph(lambda w, h, x: [apply("tanh", h * w + x), h * x], (3,), (3,), (3,))
    inputs = (np.array([0.5, -1.0, 0.25]), np.array([1.0, 2.0, -0.5]), np.linspace(-1.0, 1.0, 12).reshape(4, 3))
    return [
        Sample(inputs, {"body": body, "consts": 1, "carry": 1, "length": 4, "reverse": reverse})
        for reverse in (False, True)
    ]


def _sample_while() -> list[Sample]:
    params = {
        "cond": sample_graph(lambda top, x: [x.sum((0,)) < top], (), (3,)),
        "body": sample_graph(lambda w, x: [x + w * w], (3,), (3,)),
        "cond_consts": 1,
        "body_consts": 1,
    }
    return [Sample((np.array(10.0), np.array([0.5, 1.0, 1.5]), np.array([0.0, 0.25, 0.5])), params)]


PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(
        "scan",
        Kind.OPAQUE,
        "Carry a state along axis 0 of xs: carry, ys[t] = body(consts, carry, xs[t]).",
        ("body", "consts", "carry", "length", "reverse"),
        _scan_typing,
        _scan_numpy,
        _scan_vjp,
        _scan_jvp,
        _scan_batch,
        None,
        _sample_scan,
        frozenset({"f64"}),
    ),
    Primitive(
        "while_loop",
        Kind.OPAQUE,
        "Repeat body on the carry while cond of it holds.",
        ("cond", "body", "cond_consts", "body_consts"),
        _while_typing,
        _while_numpy,
        "the number of iterations is not known before it runs, so nothing can keep what the backward pass needs; "
        "use fori_loop with Python integers as bounds, or scan",
        _while_jvp,
        _while_batch,
        None,
        _sample_while,
        frozenset({"f64"}),
    ),
)
