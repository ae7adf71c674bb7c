"""Loops and branches inside of compiled functions, with JAX's signatures.

On NumPy arrays and numbers alone, outside of a trace, each is the Python loop or branch it stands for; so a function
that uses them still runs under NumPy. Functions may close over anything, traced arrays included.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import optree

from kernelforge.dtypes import promote
from kernelforge.errors import (
    BranchMismatch,
    CarryMismatch,
    InvalidParameter,
    LengthMismatch,
    NotAPredicate,
    TracedNumber,
    TreeMismatch,
)
from kernelforge.functions import Flat, flat, pair, require_functions, run
from kernelforge.ir.build import Sym, apply, apply_many, tracing
from kernelforge.ir.graph import Graph
from kernelforge.ir.ops.control import close, close_pair
from kernelforge.ir.types import Type
from kernelforge.jit import name_of
from kernelforge.trace import Tracer

Fn = Callable[..., Any]


def _plain(*trees: Any) -> bool:
    """Whether nothing here asks for a device: no trace, and no arrays but NumPy's."""
    leaves: list[Any] = optree.tree_leaves(cast(Any, trees))
    return not tracing() and all(isinstance(x, np.ndarray | np.generic | bool | int | float) for x in leaves)


def _carry_types(what: str, found: Flat, init: Flat) -> list[Type]:
    """Compare what a body returns with what it was given; return the types the carry has to start with.

    These are those of ``init``, but for a weak one that meets a stronger one.
    """
    if found.tree != init.tree:
        raise TreeMismatch(what=what, name="carry", found=found.tree, expected=init.tree)
    types = []
    for f, i, name in zip(found.syms, init.syms, init.names("carry"), strict=True):
        dtype = f.dtype if i.type.weak and promote([f.dtype], [i.dtype]) == f.dtype else i.dtype
        fits = f.dtype == dtype or (f.type.weak and promote([dtype], [f.dtype]) == dtype)
        if f.shape != i.shape or not fits:
            raise CarryMismatch(what=what, name=name, found=f.type, expected=i.type)
        types.append(Type(i.shape, dtype, i.type.weak and f.type.weak))
    return types


class _Body(NamedTuple):
    """A step of a loop, traced.

    Attributes:
        graph, consts: the graph and what it captured, as ``close`` returns them.
        init: the carry to begin with, of strong types where the step asks for them.
        y: what the step returned beside the carry.
    """

    graph: Graph
    consts: list[Sym]
    init: Flat
    y: Flat


def _body(what: str, fn: Fn, init: Flat, x: Flat, x_types: Sequence[Type]) -> _Body:
    """Trace ``fn(carry, x) -> (carry, y)``."""
    types = [s.type for s in init.syms]
    made: list[Flat] = []
    wanted: list[Type] = []

    def step(*values: Sym) -> list[Sym]:
        carry, y = (flat(t) for t in fn(init.arguments(values[: len(types)]), x.arguments(values[len(types) :])))
        made.append(y)
        wanted.extend(_carry_types(what, carry, init))
        kept = [s if s.dtype == t.dtype else s.astype(t.dtype) for s, t in zip(carry.syms, types, strict=True)]
        return [*kept, *(s.astype(s.dtype) for s in y.syms)]

    graph, consts = close(step, [*types, *x_types])
    if wanted == types:
        return _Body(graph, consts, init, made[0])
    stronger = [s if s.type == t else s.astype(t.dtype) for s, t in zip(init.syms, wanted, strict=True)]
    return _body(what, fn, init._replace(syms=stronger), x, x_types)


def scan(f: Fn, init: Any, xs: Any = None, length: int | None = None, reverse: bool = False) -> Any:
    """Carry a state along the leading axis: ``carry, y = f(carry, x)`` for each ``x`` of ``xs``.

    Args:
        init: the first carry, a pytree; each step's carry must have its types.
        xs: a pytree of arrays of shape ``(length, ...)``, or None.
        length: the number of steps; needed without ``xs``.
        reverse: whether to start from the last ``x``; ``ys`` keep the order of ``xs``.

    Returns:
        The last carry and the ``y`` of all steps, stacked along axis 0.

    Raises:
        LengthMismatch: when leading extents differ, or none is known.
        CarryMismatch, TreeMismatch: when the carry that ``f`` returns is not like the one it was given.
    """
    require_functions("scan", f=f)
    if _plain(init, xs):
        names = [accessor.codify("xs") for accessor in optree.tree_structure(xs).accessors()]
        return _scan_plain(f, init, xs, _length(optree.tree_leaves(xs), names, length), reverse)
    if not tracing():
        return run(lambda init, xs: scan(f, init, xs, length, reverse), (init, xs), {})
    leading = flat(xs)
    steps = _length(leading.syms, leading.names("xs"), length)
    return _scan(f, flat(init), leading, [Type(s.shape[1:], s.dtype) for s in leading.syms], steps, reverse)


def _length(leaves: Sequence[Any], names: Sequence[str], length: int | None) -> int:
    try:
        length = None if length is None else operator.index(length)
    except TracedNumber:
        raise
    except TypeError:
        raise InvalidParameter(op="scan", name="length", found=length, expected="an integer") from None
    for leaf, name in zip(leaves, names, strict=True):
        if np.ndim(leaf) == 0:
            raise LengthMismatch(name=name, found="no extent", expected="an array of at least one axis")
        if length is None:
            length = leaf.shape[0]
        elif leaf.shape[0] != length:
            raise LengthMismatch(name=name, found=leaf.shape[0], expected=f"{length}, as length or another array says")
    if length is None or length < 0:
        found = "no extent" if length is None else f"length={length}"
        raise LengthMismatch(name="xs=None", found=found, expected="length=, the number of steps")
    return length


def _scan_plain(f: Fn, init: Any, xs: Any, length: int, reverse: bool) -> Any:
    carry, ys = init, []
    for t in range(length - 1, -1, -1) if reverse else range(length):
        carry, y = pair("scan", f, f(carry, optree.tree_map(lambda x: x[t], xs)), "(carry, y)")  # noqa: B023 - called at once
        ys.append(y)
    if not ys:
        return run(lambda init, xs: scan(f, init, xs, length, reverse), (init, xs), {})
    return carry, optree.tree_map(lambda *y: np.stack(y[::-1] if reverse else y), *ys)


def _scan(f: Fn, init: Flat, xs: Flat, x_types: Sequence[Type], length: int, reverse: bool) -> Any:
    body = _body("scan", lambda carry, x: pair("scan", f, f(carry, x), "(carry, y)"), init, xs, x_types)
    n = len(init.syms)
    params = {"body": body.graph, "consts": len(body.consts), "carry": n, "length": length, "reverse": reverse}
    outputs = apply_many("scan", *body.consts, *body.init.syms, *xs.syms, **params)
    return body.init.results(outputs[:n]), body.y.results(outputs[n:])


def cond(pred: Any, true_fun: Fn, false_fun: Fn, *operands: Any) -> Any:
    """Return ``true_fun(*operands)`` where ``pred`` holds and ``false_fun(*operands)`` where not; only that one runs.

    Args:
        pred: a bool of shape (); where its value is known while tracing, the other function is not looked at.

    Raises:
        NotAPredicate: when ``pred`` is something else.
        BranchMismatch, TreeMismatch: when the functions return different types.
    """
    require_functions("cond", true_fun=true_fun, false_fun=false_fun)
    if isinstance(pred, bool | np.bool_) or (
        isinstance(pred, np.ndarray) and pred.dtype == np.bool_ and not pred.shape
    ):
        return (true_fun if pred else false_fun)(*operands)
    if not tracing():
        return run(lambda pred, operands: cond(pred, true_fun, false_fun, *operands), (pred, operands), {})
    chosen = flat(pred)
    if len(chosen.syms) != 1 or chosen.syms[0].type != _BOOL:
        raise NotAPredicate(what="cond", name="pred", found=chosen.types)
    args = flat(operands)
    made: list[Flat] = []

    def branch(fn: Fn) -> Callable[..., list[Sym]]:
        def traced(*values: Sym) -> list[Sym]:
            made.append(flat(fn(*args.arguments(values))))
            return [
                s if s.dtype == t else s.astype(t) for s, t in zip(made[-1].syms, _branch_dtypes(made), strict=True)
            ]

        return traced

    # traced twice: the first time for the types, which a weak one takes from the other branch
    close_pair(branch(true_fun), branch(false_fun), [s.type for s in args.syms])
    true, false, consts = close_pair(branch(true_fun), branch(false_fun), [s.type for s in args.syms])
    return made[0].results(apply_many("cond", chosen.syms[0], *consts, *args.syms, true=true, false=false))


_BOOL = Type((), np.dtype(np.bool_))


def _branch_dtypes(made: list[Flat]) -> list[np.dtype[Any]]:
    """Return the dtypes of the results once both branches were traced; ``made`` holds true's, then false's."""
    if len(made) == 1:
        return [s.dtype for s in made[0].syms]
    true, false = made[:2]
    if true.tree != false.tree:
        raise TreeMismatch(
            what="cond", name="the result of false_fun", found=false.tree, expected=f"{true.tree}, as from true_fun"
        )
    dtypes = []
    for t, f, name in zip(true.syms, false.syms, true.names("result"), strict=True):
        dtype = promote([x.dtype for x in (t, f) if not x.type.weak], [x.dtype for x in (t, f) if x.type.weak])
        if t.shape != f.shape or any(x.dtype != dtype and not x.type.weak for x in (t, f)):
            raise BranchMismatch(name=name, found=f.type, expected=t.type)
        dtypes.append(dtype)
    return dtypes


def while_loop(cond_fun: Fn, body_fun: Fn, init: Any) -> Any:
    """Repeat ``carry = body_fun(carry)`` from ``init`` while ``cond_fun(carry)`` holds; return the carry.

    There is a forward derivative and no reverse one; ``fori_loop`` with integer bounds and ``scan`` have both. Under
    ``jit`` Python waits for the end, which must come: Ctrl-C does not stop a loop that a kernel runs.

    Raises:
        NotAPredicate: when ``cond_fun`` does not return one bool of shape ().
        CarryMismatch, TreeMismatch: when ``body_fun`` does not return what it was given.
    """
    require_functions("while_loop", cond_fun=cond_fun, body_fun=body_fun)
    if _plain(init):
        carry = init
        while cond_fun(carry):
            carry = body_fun(carry)
        return carry
    if not tracing():
        return run(lambda init: while_loop(cond_fun, body_fun, init), (init,), {})
    body = _body("while_loop", lambda carry, _: (body_fun(carry), None), flat(init), flat(None), ())

    def test(*values: Sym) -> list[Sym]:
        found = flat(cond_fun(body.init.arguments(values)))
        if len(found.syms) != 1 or found.syms[0].type != _BOOL:
            raise NotAPredicate(what="while_loop", name=f"what {name_of(cond_fun)} returned", found=found.types)
        return found.syms

    test_graph, test_consts = close(test, [s.type for s in body.init.syms])
    counts = {"cond_consts": len(test_consts), "body_consts": len(body.consts)}
    inputs = (*test_consts, *body.consts, *body.init.syms)
    return body.init.results(apply_many("while_loop", *inputs, cond=test_graph, body=body.graph, **counts))


def fori_loop(lower: Any, upper: Any, body_fun: Fn, init: Any) -> Any:
    """Repeat ``carry = body_fun(i, carry)`` for ``i`` from ``lower`` to ``upper - 1``.

    With Python integers as bounds it is a ``scan`` and has all derivatives; with traced bounds it is a ``while_loop``.
    The counter is weakly typed, as a Python integer is.
    """
    require_functions("fori_loop", body_fun=body_fun)
    bounds = isinstance(lower, int | np.integer) and isinstance(upper, int | np.integer)
    if bounds and _plain(init):
        carry = init
        for i in range(int(lower), int(upper)):
            carry = body_fun(i, carry)
        return carry
    if not tracing():
        if bounds:
            return run(lambda init: fori_loop(lower, upper, body_fun, init), (init,), {})
        return run(lambda lower, upper, init: fori_loop(lower, upper, body_fun, init), (lower, upper, init), {})
    if not bounds:

        def step(carry: Any) -> Any:
            return carry[0] + 1, body_fun(carry[0], carry[1])

        return while_loop(lambda carry: carry[0] < upper, step, (lower, init))[1]
    length = max(int(upper) - int(lower), 0)
    counts = apply("iota", shape=(length,), axis=0, dtype="i64") + int(lower)
    weak = Type((), np.dtype(np.int64), weak=True)

    def indexed(carry: Any, i: Any) -> Any:
        return body_fun(i, carry), None

    return _scan(indexed, flat(init), flat(Tracer(counts)), [weak], length, False)[0]
