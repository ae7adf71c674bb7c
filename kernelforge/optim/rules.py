"""Optimisers. Names and meanings of parameters are PyTorch's; ``weight_decay`` is added to gradients unless said."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optree

import kernelforge.numpy as knp
from kernelforge.optim.optimizer import Optimizer, Tree, global_norm, split, tree_map, wide, zeros
from kernelforge.optim.schedules import Schedule, rate_at

Rate = float | Schedule
Leaf = Callable[..., tuple[Any, ...]]


def _by_element(names: tuple[str, ...], leaf: Callable[[Any, Any], Leaf], rate: Rate, start: float = 0.0) -> Optimizer:
    """Make an optimiser that updates each parameter by itself.

    Args:
        names: of the trees in the state, beside ``count``, which is f32, so that one kernel updates it with the
            parameters: it stays at 2**24.
        leaf: from the rate and the number of this update, from 1, to a function of a gradient, a parameter and the
            state's leaves, which returns the step and the new leaves.
        start: what the trees are filled with at first.
    """

    def init(params: Tree) -> Tree:
        made = {name: zeros(params) for name in names}
        if start:
            made = {name: tree_map(lambda z: np.full_like(z, start), tree) for name, tree in made.items()}
        return {"count": np.zeros((), np.float32), **made}

    def steps(state: Tree, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        count = knp.asarray(state["count"])
        fn = leaf(rate_at(rate, count), count + 1)
        made, *trees = split(_widened(fn), 1 + len(names), grads, params, *(state[name] for name in names))
        return made, {"count": count + 1, **dict(zip(names, trees, strict=True))}

    return Optimizer(init, steps)


def _widened(leaf: Leaf) -> Leaf:
    return lambda g, p, *kept: leaf(wide(g), wide(p), *kept)


def _decayed(g: Any, p: Any, weight_decay: float) -> Any:
    return g + weight_decay * p if weight_decay else g


def _like(value: Any, p: Any) -> Any:
    """Cast a traced scalar to a parameter's dtype; numbers adapt by themselves."""
    return value.astype(p.dtype) if hasattr(value, "astype") else value


def sgd(
    lr: Rate, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
) -> Optimizer:
    """Gradient descent, with Polyak's or Nesterov's momentum as in Sutskever et al. 2013."""

    def plain(rate: Any, number: Any) -> Leaf:
        return lambda g, p: (_like(rate, p) * _decayed(g, p, weight_decay),)

    def moving(rate: Any, number: Any) -> Leaf:
        def leaf(g: Any, p: Any, v: Any) -> tuple[Any, ...]:
            g = _decayed(g, p, weight_decay)
            new = knp.where(number == 1, g, momentum * v + (1 - dampening) * g) if dampening else momentum * v + g
            return _like(rate, p) * (g + momentum * new if nesterov else new), new

        return leaf

    return _by_element(("velocity",), moving, lr) if momentum else _by_element((), plain, lr)


def _moments(b1: float, b2: float, eps: float, number: Any) -> Callable[[Any, Any, Any], tuple[Any, Any, Any]]:
    """Adam's direction and new moments; Kingma and Ba 2015, algorithm 1."""
    # 1 - b ** number, also where b is nearly 1
    first, second = (-knp.expm1(number * np.float32(math.log(b))) if b else 1.0 for b in (b1, b2))

    def direction(g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * (g * g)
        return (m / _like(first, m)) / (knp.sqrt(v / _like(second, v)) + eps), m, v

    return direction


def adam(
    lr: Rate, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """Adam; Kingma and Ba 2015."""

    def rule(rate: Any, number: Any) -> Leaf:
        direction = _moments(*betas, eps, number)

        def leaf(g: Any, p: Any, m: Any, v: Any) -> tuple[Any, ...]:
            d, m, v = direction(_decayed(g, p, weight_decay), m, v)
            return _like(rate, p) * d, m, v

        return leaf

    return _by_element(("mean", "square"), rule, lr)


def adamw(
    lr: Rate, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
) -> Optimizer:
    """Adam whose weight decay does not go through the moments; Loshchilov and Hutter 2019."""

    def rule(rate: Any, number: Any) -> Leaf:
        direction = _moments(*betas, eps, number)

        def leaf(g: Any, p: Any, m: Any, v: Any) -> tuple[Any, ...]:
            d, m, v = direction(g, m, v)
            return _like(rate, p) * (d + weight_decay * p), m, v

        return leaf

    return _by_element(("mean", "square"), rule, lr)


def lamb(
    lr: Rate, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 1e-2
) -> Optimizer:
    """AdamW whose step, for each tensor, is as long as the tensor; You et al. 2020, algorithm 2, with phi(x) = x."""

    def rule(rate: Any, number: Any) -> Leaf:
        direction = _moments(*betas, eps, number)

        def leaf(g: Any, p: Any, m: Any, v: Any) -> tuple[Any, ...]:
            d, m, v = direction(g, m, v)
            d = d + weight_decay * p
            own, other = global_norm(p), global_norm(d)
            fit = (own > 0) & (other > 0)
            return _like(rate, p) * knp.where(fit, own / knp.where(fit, other, 1), 1) * d, m, v

        return leaf

    return _by_element(("mean", "square"), rule, lr)


def rmsprop(
    lr: Rate,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> Optimizer:
    """Gradients divided by the root of a running mean of their squares; Hinton, Coursera lecture 6e, 2012.

    Args:
        centered: subtract the square of the running mean first; Graves 2013.
    """
    names = ("square", *(["mean"] if centered else []), *(["velocity"] if momentum else []))

    def rule(rate: Any, number: Any) -> Leaf:
        def leaf(g: Any, p: Any, *kept: Any) -> tuple[Any, ...]:
            old = dict(zip(names, kept, strict=True))
            g = _decayed(g, p, weight_decay)
            new = {"square": alpha * old["square"] + (1 - alpha) * (g * g)}
            spread = new["square"]
            if centered:
                new["mean"] = alpha * old["mean"] + (1 - alpha) * g
                # rounding may leave less than nothing of a difference of equals
                spread = knp.maximum(spread - new["mean"] * new["mean"], 0)
            d = g / (knp.sqrt(spread) + eps)
            if momentum:
                d = new["velocity"] = momentum * old["velocity"] + d
            return _like(rate, p) * d, *(new[name] for name in names)

        return leaf

    return _by_element(names, rule, lr)


def adagrad(
    lr: Rate, lr_decay: float = 0.0, weight_decay: float = 0.0, initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> Optimizer:  # fmt: skip
    """Gradients divided by the root of the sum of their squares so far; Duchi et al. 2011."""

    def rule(rate: Any, number: Any) -> Leaf:
        slower = rate / (1 + (number - 1) * np.float32(lr_decay)) if lr_decay else rate

        def leaf(g: Any, p: Any, total: Any) -> tuple[Any, ...]:
            g = _decayed(g, p, weight_decay)
            total = total + g * g
            return _like(slower, p) * (g / (knp.sqrt(total) + eps)), total

        return leaf

    return _by_element(("total",), rule, lr, initial_accumulator_value)


def lion(lr: Rate, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> Optimizer:
    """The sign of a mixture of the momentum and the gradient; Chen et al. 2023. Weight decay is as in ``adamw``."""
    b1, b2 = betas

    def rule(rate: Any, number: Any) -> Leaf:
        def leaf(g: Any, p: Any, m: Any) -> tuple[Any, ...]:
            d = knp.sign(b1 * m + (1 - b1) * g)
            return _like(rate, p) * (d + weight_decay * p if weight_decay else d), b2 * m + (1 - b2) * g

        return leaf

    return _by_element(("mean",), rule, lr)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration; Jordan et al. 2024, Muon."""


def orthogonalized(x: Any, steps: int = 5, eps: float = 1e-7) -> Any:
    """Bring the singular values of a matrix near 1, by Newton and Schulz's iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[0] > x.shape[1]
    y = x.T if tall else x
    y = y / knp.maximum(global_norm(y), eps)
    for _ in range(steps):
        square = y @ y.T
        y = a * y + (b * square + c * (square @ square)) @ y
    return y.T if tall else y


def muon(
    lr: Rate,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    eps: float = 1e-7,
    adjust_lr: Callable[[int, int], float] = lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    others: Optimizer | None = None,
) -> Optimizer:
    """Momentum made orthogonal, for parameters that are matrices; Jordan et al. 2024. Weight decay is as in ``adamw``.

    PyTorch's computes the iteration in bf16, and here it is in f32 at least.

    Args:
        adjust_lr: a factor of the rate, from the extents of a matrix.
        others: for parameters that are not matrices; by default ``adamw(lr)``.
    """
    rest = adamw(lr) if others is None else others

    def parted(tree: Tree) -> tuple[list[Any], list[Any]]:
        leaves: list[Any] = optree.tree_leaves(tree)
        return [x for x in leaves if np.ndim(x) == 2], [x for x in leaves if np.ndim(x) != 2]

    def init(params: Tree) -> Tree:
        matrices, remaining = parted(params)
        return {"count": np.zeros((), np.float32), "mean": zeros(matrices), "others": rest.init(remaining)}

    def steps(state: Tree, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        count = knp.asarray(state["count"])
        rate = rate_at(lr, count)
        (matrices, remaining), (g_matrices, g_remaining) = parted(params), parted(grads)

        def leaf(g: Any, p: Any, m: Any) -> tuple[Any, ...]:
            m = momentum * m + (1 - momentum) * g
            d = orthogonalized(momentum * m + (1 - momentum) * g if nesterov else m, ns_steps, eps)
            return _like(rate, p) * (adjust_lr(*p.shape) * d + weight_decay * p), m

        made, mean = split(_widened(leaf), 2, g_matrices, matrices, state["mean"])
        made_others, state_others = rest.steps(state["others"], g_remaining, remaining)
        first, second = iter(made), iter(made_others)
        whole = tree_map(lambda p: next(first) if np.ndim(p) == 2 else next(second), params)
        return whole, {"count": count + 1, "mean": mean, "others": state_others}

    return Optimizer(init, steps)
