"""Python functions over pytrees as graphs: what transforms and control flow share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import optree

from kernelforge.dtypes import as_dtype, is_float
from kernelforge.errors import ExpectedPair, InvalidParameter, LeafMismatch, TreeMismatch
from kernelforge.ir import autodiff
from kernelforge.ir.build import Sym, builder
from kernelforge.ir.graph import Graph
from kernelforge.ir.ops.control import embed, materialize
from kernelforge.ir.passes.windows import windows
from kernelforge.ir.types import Type
from kernelforge.jit import name_of
from kernelforge.jit import run as run_arrays
from kernelforge.leaves import NUMBERS
from kernelforge.methods import is_array
from kernelforge.trace import Tracer, to_sym, trace

Fn = Callable[..., Any]


def require_functions(what: str, **given: Any) -> None:
    """Raise InvalidParameter for what cannot be called."""
    for name, fn in given.items():
        if not callable(fn):
            raise InvalidParameter(op=what, name=name, found=fn, expected="a function")


class Flat(NamedTuple):
    """A pytree with its arrays and numbers as symbols.

    Attributes:
        syms: a symbol for each leaf that is an array or a number, in order.
        rest: for each leaf, the leaf itself where it is something else, None where a symbol stands for it.
        tree: the structure.
    """

    syms: list[Sym]
    rest: list[Any]
    tree: Any

    @property
    def types(self) -> str:
        """The types of the arrays, in words."""
        return ", ".join(str(s.type) for s in self.syms) or "no array"

    def names(self, root: str) -> list[str]:
        """Name the leaves of the symbols as Python would reach them from ``root``: ``root['w'][0]``."""
        paths = [accessor.codify(root) for accessor in self.tree.accessors()]
        return [path for path, other in zip(paths, self.rest, strict=True) if other is None]

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Rebuild the tree with ``leaves`` in place of the symbols."""
        left = iter(leaves)
        return self.tree.unflatten([next(left) if other is None else other for other in self.rest])

    def arguments(self, syms: Sequence[Sym]) -> Any:
        """Rebuild the tree with arrays of ``syms`` that cannot be written to."""
        return self.unflatten([Tracer(s) for s in syms])

    def results(self, syms: Sequence[Sym]) -> Any:
        """Rebuild the tree with arrays of ``syms`` that belong to the caller."""
        return self.unflatten([result(s) for s in syms])


def result(sym: Sym) -> Tracer:
    """Make an array that may be written to; a number is replaced instead."""
    return Tracer(sym, own=sym.ndim > 0)


def pair(what: str, fn: Fn, out: Any, expected: str) -> tuple[Any, Any]:
    """Return what ``fn`` returned.

    Raises:
        ExpectedPair: when it is no tuple of two.
    """
    if isinstance(out, tuple) and len(out) == 2:
        return out
    found = f"a tuple of {len(out)}" if isinstance(out, tuple) else "one array" if is_array(out) else repr(out)
    raise ExpectedPair(what=what, function=name_of(fn), found=found, expected=expected)


def flat(tree: Any) -> Flat:
    """Turn the arrays and numbers of a pytree into symbols of the active trace."""
    leaves, structure = optree.tree_flatten(tree)
    return Flat([to_sym(x) for x in leaves if is_array(x)], [None if is_array(x) else x for x in leaves], structure)


class Trace(NamedTuple):
    """A function traced at ``inputs``; its graph takes ``captured``, the symbols it closed over, then ``inputs``."""

    graph: Graph
    captured: list[Sym]
    inputs: list[Sym]
    out: Flat

    def vjp(self) -> tuple[list[Sym], Callable[[Sequence[Sym | None]], list[Sym]]]:
        """Run the graph; return its outputs and what pulls their cotangents back to ``inputs``."""
        given = [*self.captured, *self.inputs]
        outputs, pullback = autodiff.vjp(windows(self.graph), given, range(len(self.captured), len(given)))
        return list(outputs), pullback

    def jvp(self, tangents: Sequence[Sym | None]) -> tuple[list[Sym], list[Sym]]:
        """Run the graph; return its outputs and their tangents."""
        missing = [None] * len(self.captured)
        outputs, outputs_t = autodiff.jvp(self.graph, [*self.captured, *self.inputs], [*missing, *tangents])
        return list(outputs), materialize(outputs_t, outputs)


def trace_at(fn: Fn, args: Flat) -> Trace:
    """Trace ``fn``, of one argument for each entry of the tuple ``args`` was made from."""
    made: list[Flat] = []

    def body(*values: Sym) -> list[Sym]:
        made.append(flat(fn(*args.arguments(values))))
        return made[0].syms

    graph, captured = embed(body, [s.type for s in args.syms])
    return Trace(graph, captured, args.syms, made[0])


def matched(what: str, root: str, found: Any, like: Flat, optional: bool = False) -> list[Sym | None]:
    """Return a tangent or cotangent for each symbol of ``like`` from a tree of its structure, shapes and dtypes.

    Integers and bools have none, and what stands for them is not looked at; with ``optional`` a None is a zero.

    Raises:
        TreeMismatch, LeafMismatch: when it has not.
    """
    try:
        leaves = like.tree.flatten_up_to(found)
    except ValueError:
        structure = optree.tree_structure(found)
        raise TreeMismatch(what=what, name=root, found=structure, expected=like.tree) from None
    picked = [leaf for leaf, other in zip(leaves, like.rest, strict=True) if other is None]
    result: list[Sym | None] = []
    for leaf, sym, name in zip(picked, like.syms, like.names(root), strict=True):
        if not is_float(sym.dtype) or (leaf is None and optional):
            result.append(None)
            continue
        if not is_array(leaf):
            raise LeafMismatch(what=what, name=name, found=type(leaf).__name__, expected=sym.type)
        given = to_sym(leaf)
        if given.type.weak and given.shape == sym.shape:
            given = given.astype(sym.dtype)
        if (given.shape, given.dtype) != (sym.shape, sym.dtype):
            raise LeafMismatch(what=what, name=name, found=given.type, expected=Type(sym.shape, sym.dtype))
        result.append(given)
    return result


def _is_input(x: Any) -> bool:
    """Whether a concrete argument is traced; integers, bools and whatever else stay what they are."""
    return (is_array(x) and type(x) not in (bool, int)) or hasattr(x, "__dlpack__")


def run(fn: Fn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace ``fn``, compile and run it once. Arrays and Python floats are traced; all else is passed as it is."""
    leaves, tree = optree.tree_flatten(cast(Any, (args, kwargs)))
    made: list[Flat] = []

    def body(inputs: list[Any]) -> list[Tracer]:
        left = iter(inputs)
        a, k = tree.unflatten([next(left) if _is_input(x) else x for x in leaves])
        made.append(flat(fn(*a, **k)))
        return [Tracer(s) for s in made[0].syms]

    found = run_arrays(body, ([x for x in leaves if _is_input(x)],), {})
    return made[0].unflatten(found)


def freeze(fn: Fn, args: tuple[Any, ...]) -> Fn:
    """Trace ``fn`` at concrete arguments; return what repeats it in a trace, at arguments of the same types."""
    leaves, tree = optree.tree_flatten(cast(Any, args))
    types = [NUMBERS[float] if type(x) is float else Type(x.shape, as_dtype(x.dtype)) for x in leaves if _is_input(x)]
    made: list[Flat] = []

    def body(inputs: list[Tracer]) -> list[Tracer]:
        left = iter(inputs)
        made.append(flat(fn(*tree.unflatten([next(left) if _is_input(x) else x for x in leaves]))))
        return [Tracer(s) for s in made[0].syms]

    graph, _ = trace(body, types, name_of(fn))

    def frozen(*values: Any) -> Any:
        given = [to_sym(v) for v, x in zip(optree.tree_leaves(cast(Any, values)), leaves, strict=True) if _is_input(x)]
        return made[0].results(builder().inline(graph, given))

    return frozen
