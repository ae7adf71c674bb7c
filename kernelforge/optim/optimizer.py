"""What an optimiser is, and what goes before one: clipping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import optree

import kernelforge.numpy as knp
from kernelforge.dtypes import as_dtype
from kernelforge.errors import InvalidParameter, TreeMismatch
from kernelforge.jit import jit

Tree = Any
Step = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


def tree_map(fn: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    return optree.tree_map(fn, tree, *others)


def split(fn: Callable[..., tuple[Any, ...]], count: int, tree: Tree, *others: Tree) -> tuple[Tree, ...]:
    """Map a function that returns ``count`` results over trees of one structure; return a tree of each."""
    structure = optree.tree_structure(tree)
    made = [fn(*row) for row in zip(*map(optree.tree_leaves, (tree, *others)), strict=True)]
    return tuple(structure.unflatten([row[i] for row in made]) for i in range(count))


def wide(x: Any) -> Any:
    """Return an array in what optimisers compute in, f32 at least: f16 has no room for squares, nor for eps."""
    x = knp.asarray(x)
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def zeros(params: Tree) -> Tree:
    """Make zeros like every parameter, of f32 at least."""

    def zero(p: Any) -> Any:
        dtype = as_dtype(p.dtype if hasattr(p, "dtype") else np.asarray(p).dtype)
        return np.zeros(np.shape(p), np.float32 if dtype.itemsize < 4 else dtype)

    return tree_map(zero, params)


def two(op: str, name: str, found: Any) -> tuple[Any, Any]:
    """Return the two numbers of a parameter such as ``betas``.

    Raises:
        InvalidParameter: when they are not two.
    """
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise InvalidParameter(op=op, name=name, found=found, expected="two numbers")
    return found[0], found[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
    """An optimiser, or a part of a chain.

    Attributes:
        init: makes the state from the parameters: pytrees of zeros and a count, which are NumPy arrays.
        steps: from (state, grads, params) to what is to be subtracted from the parameters, and the new state.
    """

    init: Callable[[Tree], Tree]
    steps: Step

    def update(self, state: Tree, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        """Return new parameters, of their dtypes, and the new state; compiled, also where it is called by itself.

        Raises:
            TreeMismatch: when ``grads``, ``params`` and what ``init`` got have not one structure.
        """
        return cast(tuple[Tree, Tree], self._compiled(state, grads, params))

    @property
    def _compiled(self) -> Any:
        made = self.__dict__.get("compiled")
        if made is None:
            made = self.__dict__["compiled"] = jit(self._updated)
        return made

    def _updated(self, state: Tree, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        for name, tree, like in (("grads", grads, params), ("state", state, self.init(params))):
            found, expected = optree.tree_structure(tree), optree.tree_structure(like)
            if found != expected:
                raise TreeMismatch(what="update", name=name, found=found, expected=expected)
        steps, new = self.steps(state, grads, params)
        (moved,) = split(lambda p, s: ((p - s).astype(p.dtype),), 1, params, steps)
        return moved, new


def chain(*parts: Optimizer) -> Optimizer:
    """Make one optimiser of several: each takes for gradients the steps of the one before."""

    def init(params: Tree) -> Tree:
        return tuple(part.init(params) for part in parts)

    def steps(state: Tree, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        made = []
        for part, own in zip(parts, state, strict=True):
            grads, new = part.steps(own, grads, params)
            made.append(new)
        return grads, tuple(made)

    return Optimizer(init, steps)


def accumulate(optimizer: Optimizer, count: int) -> Optimizer:
    """Take a step by the mean of ``count`` gradients after as many updates; the others change no parameter.

    Raises:
        InvalidParameter: for a count below 1.
    """
    if not isinstance(count, int) or count < 1:
        raise InvalidParameter(op="accumulate", name="count", found=count, expected="1 or more")

    def init(params: Tree) -> Tree:
        return {"seen": np.zeros((), np.int32), "sum": zeros(params), "inner": optimizer.init(params)}

    def steps(state: Tree, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        seen = knp.asarray(state["seen"]) + 1
        last = seen == count
        (total,) = split(lambda s, g: (s + wide(g),), 1, state["sum"], grads)
        mean = tree_map(lambda s, g: (s / count).astype(g.dtype), total, grads)
        made, inner = optimizer.steps(state["inner"], mean, params)
        return tree_map(lambda s: knp.where(last, s, 0), made), {
            "seen": knp.where(last, 0, seen).astype(np.int32),
            "sum": tree_map(lambda s: knp.where(last, 0, s), total),
            "inner": tree_map(lambda new, old: knp.where(last, new, old), inner, state["inner"]),
        }

    return Optimizer(init, steps)


def _stateless(fn: Callable[[Tree], Tree]) -> Optimizer:
    return Optimizer(lambda params: (), lambda state, grads, params: (fn(grads), state))


def clip_by_value(limit: Any) -> Optimizer:
    """Clip each element of the gradients to [-limit, limit]."""
    return _stateless(lambda grads: tree_map(lambda g: knp.clip(g, -limit, limit), grads))


def global_norm(tree: Tree) -> Any:
    """The root of the sum of squares of all elements, in f32 at least."""
    return knp.sqrt(sum((x * x).sum() for x in map(wide, optree.tree_leaves(tree))))


def clip_by_global_norm(limit: Any) -> Optimizer:
    """Scale all gradients together so that their norm is ``limit`` at most; smaller ones stay as they are.

    As in PyTorch 1e-6 is added to the norm that is divided by.
    """

    def clipped(grads: Tree) -> Tree:
        scale = knp.minimum(limit / (global_norm(grads) + 1e-6), 1)
        return tree_map(lambda g: (g * scale).astype(g.dtype), grads)

    return _stateless(clipped)
