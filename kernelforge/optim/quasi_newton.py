"""L-BFGS, which chooses where a function is evaluated, and so takes the function where others take gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import optree

import kernelforge.numpy as knp
from kernelforge.control import cond, fori_loop, while_loop
from kernelforge.errors import InvalidParameter
from kernelforge.ir.build import tracing
from kernelforge.jit import jit
from kernelforge.optim.optimizer import Tree, tree_map, wide
from kernelforge.optim.rules import Rate
from kernelforge.optim.schedules import rate_at
from kernelforge.transforms import value_and_grad

Loss = Callable[[Tree], Any]
Point = dict[str, Any]
"""A place on a line: how far along it is (t), and there the loss (f), the gradient (g) and the slope along the line."""

SUFFICIENT, CURVATURE = 1e-4, 0.9
"""Constants of Wolfe's conditions; Nocedal and Wright 2006, section 3.1."""

LEAST_CURVATURE = 1e-10
"""Products of a step and the change of the gradient over it that are remembered are greater."""


def _vector(tree: Tree) -> Any:
    return knp.concatenate([wide(x).reshape(-1) for x in optree.tree_leaves(tree)])


def _shaped(vector: Any, like: Tree) -> Tree:
    """Undo ``_vector``."""
    made, start = [], 0
    leaves, structure = optree.tree_flatten(like)
    for leaf in leaves:
        made.append(vector[start : start + np.size(leaf)].reshape(np.shape(leaf)).astype(leaf.dtype))
        start += np.size(leaf)
    return structure.unflatten(made)


def _pick(condition: Any, x: Tree, y: Tree) -> Tree:
    return tree_map(lambda a, b: knp.where(condition, a, b), x, y)


def _largest(x: Any) -> Any:
    return knp.abs(x).max()


def _cubic(a: Point, b: Point, low: Any, high: Any) -> Any:
    """Where the cubic through two points has its minimum, from ``low`` to ``high``; Nocedal and Wright 2006, (3.59)."""
    a, b = _pick(a["t"] <= b["t"], (a, b), (b, a))
    d1 = a["slope"] + b["slope"] - 3 * (a["f"] - b["f"]) / (a["t"] - b["t"])
    square = d1 * d1 - a["slope"] * b["slope"]
    d2 = knp.sqrt(knp.maximum(square, 0))
    least = b["t"] - (b["t"] - a["t"]) * ((b["slope"] + d2 - d1) / (b["slope"] - a["slope"] + 2 * d2))
    return knp.where(square >= 0, knp.clip(least, low, high), (low + high) / 2)


def _strong_wolfe(
    at: Callable[[Any], Point], start: Point, t: Any, most: Any, length: Any, smallest: float
) -> tuple[Point, Any]:
    """Find a point that is low and flat enough; Nocedal and Wright 2006, algorithms 3.5 and 3.6.

    Args:
        at: evaluates at a distance along the line: at ``t`` first, then ``most`` times at most.
        length: the largest element of the direction.
        smallest: steps of elements that are not looked at.

    Returns:
        The point, and how often ``at`` was called.
    """

    def high_at(point: Point) -> Any:
        return point["f"] > start["f"] + SUFFICIENT * point["t"] * start["slope"]

    def flat_at(point: Point) -> Any:
        return knp.abs(point["slope"]) <= -CURVATURE * start["slope"]

    def encloses(k: Any, before: Point, new: Point) -> Any:
        return high_at(new) | ((k > 1) & (new["f"] >= before["f"]))

    def goes_on(carry: Any) -> Any:
        k, before, new = carry
        return (k < most) & ~(encloses(k, before, new) | flat_at(new) | (new["slope"] >= 0))

    def further(carry: Any) -> Any:
        k, before, new = carry
        t = new["t"]
        return k + 1, new, at(_cubic(before, new, t + 0.01 * (t - before["t"]), 10 * t))

    k, before, new = while_loop(goes_on, further, (knp.asarray(0), start, at(t)))
    before = _pick(k == most, start, before)
    found = (k < most) & ~encloses(k, before, new) & flat_at(new)
    low, high = _pick(found | (new["f"] < before["f"]), (new, before), (before, new))

    def narrows(carry: Any) -> Any:
        k, low, high, _, found = carry
        return (k < most) & ~found & (knp.abs(high["t"] - low["t"]) * length >= smallest)

    def narrower(carry: Any) -> Any:
        k, low, high, near, _ = carry
        left, right = knp.minimum(low["t"], high["t"]), knp.maximum(low["t"], high["t"])
        margin = 0.1 * (right - left)
        t = _cubic(low, high, left, right)
        close = knp.minimum(right - t, t - left) < margin
        moves = close & (near | (t >= right) | (t <= left))  # twice near an end, or at it: go away from it
        t = knp.where(moves, knp.where(right - t < t - left, right - margin, left + margin), t)
        new = at(t)
        worse = high_at(new) | (new["f"] >= low["f"])
        found = ~worse & flat_at(new)
        turns = ~found & (new["slope"] * (high["t"] - low["t"]) >= 0)
        lowest = _pick(worse & (new["f"] >= low["f"]), low, new)
        highest = _pick(worse, _pick(new["f"] >= low["f"], new, low), _pick(turns, low, high))
        return k + 1, lowest, highest, close & ~moves, found

    k, low, *_ = while_loop(narrows, narrower, (k, low, high, knp.asarray(False), found))
    return low, k + 1


@dataclasses.dataclass(frozen=True, eq=False)
class QuasiNewton:
    """An optimiser that evaluates the function itself; see ``lbfgs``, whose arguments these are."""

    lr: Rate
    max_iter: int
    max_eval: int
    tolerance_grad: float
    tolerance_change: float
    history_size: int
    strong_wolfe: bool

    def init(self, params: Tree) -> Tree:
        """Make the state: ``history_size`` steps, and the changes of the gradient over them."""
        dtypes = [np.dtype(np.float32), *(x.dtype for x in optree.tree_leaves(params))]
        kind = np.float64 if np.dtype(np.float64) in dtypes else np.float32
        n = sum(np.size(x) for x in optree.tree_leaves(params))
        past = {name: np.zeros((self.history_size, n), kind) for name in ("steps", "changes")}
        vectors = {name: np.zeros(n, kind) for name in ("direction", "gradient")}
        numbers = {name: np.zeros((), kind) for name in ("t", "scale")}
        counts = {name: np.zeros((), np.int64) for name in ("count", "iterations", "evaluations", "kept")}
        return past | vectors | numbers | counts

    def update(self, state: Tree, fn: Loss, params: Tree) -> tuple[Tree, Tree, Any]:
        """Minimise ``fn(params)``, a number; return new parameters, the new state and the value at ``params``."""
        made = self._step(state, fn, params) if tracing() else self._compiled(state, fn, params)
        return cast(tuple[Tree, Tree, Any], made)

    @functools.cached_property
    def _compiled(self) -> Any:
        return jit(self._step, static_argnums=1)

    def _direction(self, s: Tree, g: Any) -> Any:
        """Multiply the gradient by minus the inverse Hessian that the past suggests; Nocedal 1980, section 3."""
        past = knp.minimum(s["kept"], self.history_size)

        def newer(i: Any, carry: Any) -> Any:
            q, shares = carry
            slot = (s["kept"] - 1 - i) % self.history_size
            step, change = s["steps"][slot], s["changes"][slot]
            share = (step @ q) / (step @ change)
            return q - share * change, shares.at[slot].set(share)

        def older(i: Any, carry: Any) -> Any:
            d, shares = carry
            slot = (s["kept"] - past + i) % self.history_size
            step, change = s["steps"][slot], s["changes"][slot]
            return d + (shares[slot] - (change @ d) / (step @ change)) * step, shares

        q, shares = fori_loop(0, past, newer, (-g, knp.zeros(self.history_size, g.dtype)))
        return fori_loop(0, past, older, (q * s["scale"], shares))[0]

    def _remembered(self, s: Tree, g: Any) -> Tree:
        """Enter the last step into the past, if the gradient changed along it."""
        first = s["iterations"] == 0
        change, step = g - s["gradient"], s["direction"] * s["t"]
        curvature = change @ step
        keep = ~first & (curvature > LEAST_CURVATURE)
        slot = knp.where(keep, s["kept"] % self.history_size, self.history_size)  # beyond the end nothing is written
        scale = knp.where(first, 1, s["scale"]).astype(g.dtype)
        return {
            **s, "steps": s["steps"].at[slot].set(step), "changes": s["changes"].at[slot].set(change),
            "kept": s["kept"] + keep, "scale": knp.where(keep, curvature / knp.where(keep, change @ change, 1), scale),
        }  # fmt: skip

    def _step(self, state: Tree, fn: Loss, params: Tree) -> tuple[Tree, Tree, Any]:
        def evaluated(x: Any) -> tuple[Any, Any]:
            value, grads = value_and_grad(fn)(_shaped(x, params))
            return value.astype(x.dtype), _vector(grads).astype(x.dtype)

        kind = state["gradient"].dtype
        rate = knp.asarray(rate_at(self.lr, state["count"])).astype(kind)
        state = tree_map(knp.asarray, state)
        x = _vector(params).astype(kind)
        value, g = evaluated(x)

        def moved(n: Any, begin: Any, x: Any, f: Any, g: Any, s: Tree) -> tuple[Any, ...]:
            d, t, slope = s["direction"], s["t"], g @ s["direction"]

            def at(t: Any) -> Point:
                f, g = evaluated(x + t * d)
                return {"t": t, "f": f, "g": g, "slope": g @ d}

            def searched(f: Any, g: Any) -> tuple[Any, ...]:
                if self.strong_wolfe:
                    start = {"t": knp.zeros((), kind), "f": f, "g": g, "slope": slope}
                    left = self.max_eval - (s["evaluations"] - begin)
                    found, count = _strong_wolfe(at, start, t, left, _largest(d), self.tolerance_change)
                    return found["t"], found["f"], found["g"], count
                last = n == self.max_iter  # nothing asks for the loss there
                new, gradient = cond(last, lambda: (f, g), lambda: evaluated(x + t * d))
                return t, new, gradient, knp.where(last, 0, 1)

            descends = ~(slope > -self.tolerance_change)
            none = knp.zeros((), np.int64)
            t, new, gradient, count = cond(descends, searched, lambda f, g: (t, f, g, none), f, g)
            stops = (_largest(gradient) <= self.tolerance_grad) | (_largest(d * t) <= self.tolerance_change)
            stops = stops | (knp.abs(new - f) < self.tolerance_change) | ~descends
            s = {**s, "t": t, "evaluations": s["evaluations"] + count}
            return stops, knp.where(descends, x + t * d, x), new, gradient, s

        def iteration(carry: Any) -> Any:
            n, begin, _, x, f, g, s = carry
            s = self._remembered(s, g)
            d = self._direction(s, g)
            first = s["iterations"] == 0
            t = rate * knp.where(first, knp.minimum(1, 1 / knp.abs(g).sum()), 1)
            s = {**s, "direction": d, "t": t, "iterations": s["iterations"] + 1}
            stops, x, f, new, s = moved(n + 1, begin, x, f, g, s)
            stops = stops | (n + 1 == self.max_iter) | (s["evaluations"] - begin >= self.max_eval)
            return n + 1, begin, stops, x, f, new, {**s, "gradient": g}

        begin = state["evaluations"]
        state = {**state, "evaluations": begin + 1, "count": state["count"] + 1}
        stops = _largest(g) <= self.tolerance_grad
        carry = (knp.asarray(0), begin, stops, x, value, g, state)
        *_, x, _, _, state = while_loop(lambda carry: ~carry[2], iteration, carry)
        return _shaped(x, params), state, value


def lbfgs(
    lr: Rate = 1.0, max_iter: int = 20, max_eval: int | None = None, tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9, history_size: int = 100, line_search_fn: str | None = None,
) -> QuasiNewton:  # fmt: skip
    """L-BFGS; Nocedal 1980, Liu and Nocedal 1989.

    Args:
        lr: the length of a step, or where the line search begins.
        max_iter: iterations of an update at most.
        max_eval: evaluations after which an update ends; by default ``max_iter * 5 // 4``.
        tolerance_grad: an update ends where no element of the gradient is greater.
        tolerance_change: or where the loss, and each parameter, change less.
        history_size: the steps that are remembered.
        line_search_fn: ``"strong_wolfe"``, or None for steps as long as ``lr`` says.

    Raises:
        InvalidParameter: for another ``line_search_fn``, or less than one step or iteration.
    """
    if line_search_fn not in (None, "strong_wolfe"):
        raise InvalidParameter(op="lbfgs", name="line_search_fn", found=line_search_fn, expected="strong_wolfe or None")
    for name, given in (("max_iter", max_iter), ("history_size", history_size)):
        if given < 1:
            raise InvalidParameter(op="lbfgs", name=name, found=given, expected="1 or more")
    most = max_iter * 5 // 4 if max_eval is None else max_eval
    strong = line_search_fn is not None
    return QuasiNewton(lr, max_iter, most, tolerance_grad, tolerance_change, history_size, strong)
