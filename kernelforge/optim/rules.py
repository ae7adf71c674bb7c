"""Optimisers. Names and meanings of parameters are PyTorch's; ``weight_decay`` is added to gradients unless said."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optree

import kernelforge.numpy as knp
from kernelforge.errors import InvalidParameter
from kernelforge.optim.optimizer import Optimizer, Tree, global_norm, split, tree_map, two, wide, zeros
from kernelforge.optim.schedules import Schedule, rate_at

Rate = float | Schedule
Leaf = Callable[..., tuple[Any, ...]]
Start = float | Callable[[Any], Any]


def by_element(
    names: tuple[str, ...], rule: Callable[[Any, Any], Leaf], rate: Rate, maximize: bool, **starts: Start
) -> Optimizer:
    """Make an optimiser that updates each parameter by itself.

    Args:
        names: of the trees in the state, beside ``count``, which is f32, so that one kernel updates it with the
            parameters: it stays at 2**24.
        rule: from the rate and the number of this update, from 1, to a function of a gradient, a parameter and the
            state's leaves, which returns the step and the new leaves.
        maximize: go up: the gradients' signs are turned.
        starts: what trees are filled with at first, where that is not 0; or what makes a leaf from zeros.
    """

    def first(start: Start, params: Tree) -> Tree:
        return tree_map(start if callable(start) else lambda z: np.full_like(z, start), zeros(params))

    def init(params: Tree) -> Tree:
        made = {name: first(starts.get(name, 0.0), params) for name in names}
        return {"count": np.zeros((), np.float32), **made}

    def steps(state: Tree, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        count = knp.asarray(state["count"])
        fn = rule_at(rule, rate, count, maximize)
        made, *trees = split(fn, 1 + len(names), grads, params, *(state[name] for name in names))
        return made, {"count": count + 1, **dict(zip(names, trees, strict=True))}

    return Optimizer(init, steps)


def rule_at(rule: Callable[[Any, Any], Leaf], rate: Rate, count: Any, maximize: bool = False) -> Leaf:
    """Return what ``rule`` makes of the rate and the number of this update, in what each parameter is computed in."""
    now = rate_at(rate, count)

    def leaf(g: Any, p: Any, *kept: Any) -> tuple[Any, ...]:
        g, p = wide(g), wide(p)
        return rule(_like(now, p), _like(count + 1, p))(-g if maximize else g, p, *kept)

    return leaf


def decayed(g: Any, p: Any, weight_decay: float) -> Any:
    return g + weight_decay * p if weight_decay else g


def _like(value: Any, p: Any) -> Any:
    """Cast a traced scalar to a parameter's dtype; numbers adapt by themselves."""
    return value.astype(p.dtype) if hasattr(value, "astype") else value


def sgd(
    lr: Rate = 1e-3, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False,
    *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Gradient descent, with Polyak's or Nesterov's momentum as in Sutskever et al. 2013.

    Raises:
        InvalidParameter: for ``nesterov`` without momentum, or with dampening.
    """
    if nesterov and (not momentum or dampening):
        expected = "False, or momentum without dampening"
        raise InvalidParameter(op="sgd", name="nesterov", found=nesterov, expected=expected)

    def plain(rate: Any, number: Any) -> Leaf:
        return lambda g, p: (rate * decayed(g, p, weight_decay),)

    def moving(rate: Any, number: Any) -> Leaf:
        def leaf(g: Any, p: Any, v: Any) -> tuple[Any, ...]:
            g = decayed(g, p, weight_decay)
            new = knp.where(number == 1, g, momentum * v + (1 - dampening) * g) if dampening else momentum * v + g
            return rate * (g + momentum * new if nesterov else new), new

        return leaf

    return by_element(("velocity",), moving, lr, maximize) if momentum else by_element((), plain, lr, maximize)


def unbiased(b: float, number: Any) -> Any:
    """What a running mean of ``number`` ones is that began at 0: 1 - b ** number, also where b is nearly 1."""
    return -knp.expm1(number * math.log(b)) if b else 1.0


def moments(b1: float, b2: float, g: Any, m: Any, v: Any) -> tuple[Any, Any]:
    return b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * (g * g)


def _direction(betas: tuple[float, float], eps: float, number: Any) -> Callable[..., Any]:
    """Adam's direction and new moments; Kingma and Ba 2015, algorithm 1.

    With a largest square so far, that stands in the place of the square; Reddi et al. 2018.
    """
    first, second = (unbiased(b, number) for b in betas)

    def direction(g: Any, m: Any, v: Any, *largest: Any) -> tuple[Any, ...]:
        m, v = moments(*betas, g, m, v)
        largest = tuple(knp.maximum(one, v) for one in largest)
        square = largest[0] if largest else v
        return (m / first) / (knp.sqrt(square / second) + eps), m, v, *largest

    return direction


def adam(
    lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    amsgrad: bool = False, *, maximize: bool = False, decoupled_weight_decay: bool = False,
) -> Optimizer:  # fmt: skip
    """Adam; Kingma and Ba 2015.

    Args:
        amsgrad: divide by the root of the largest mean of squares so far; Reddi et al. 2018.
        decoupled_weight_decay: subtract decay from parameters; by default it goes through the moments.
    """
    betas = two("adam", "betas", betas)
    names = ("mean", "square", *(["largest"] if amsgrad else []))

    def rule(rate: Any, number: Any) -> Leaf:
        direction = _direction(betas, eps, number)

        def leaf(g: Any, p: Any, *kept: Any) -> tuple[Any, ...]:
            d, *new = direction(g if decoupled_weight_decay else decayed(g, p, weight_decay), *kept)
            return rate * (decayed(d, p, weight_decay) if decoupled_weight_decay else d), *new

        return leaf

    return by_element(names, rule, lr, maximize)


def adamw(
    lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2,
    amsgrad: bool = False, *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Adam whose weight decay does not go through the moments; Loshchilov and Hutter 2019."""
    return adam(lr, betas, eps, weight_decay, amsgrad, maximize=maximize, decoupled_weight_decay=True)


def lamb(
    lr: Rate, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 1e-2
) -> Optimizer:
    """AdamW whose step, for each tensor, is as long as the tensor; You et al. 2020, algorithm 2, with phi(x) = x."""
    betas = two("lamb", "betas", betas)

    def rule(rate: Any, number: Any) -> Leaf:
        direction = _direction(betas, eps, number)

        def leaf(g: Any, p: Any, m: Any, v: Any) -> tuple[Any, ...]:
            d, m, v = direction(g, m, v)
            d = d + weight_decay * p
            own, other = global_norm(p), global_norm(d)
            fit = (own > 0) & (other > 0)
            return rate * knp.where(fit, own / knp.where(fit, other, 1), 1) * d, m, v

        return leaf

    return by_element(("mean", "square"), rule, lr, maximize=False)


def rmsprop(
    lr: Rate = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0, momentum: float = 0.0,
    centered: bool = False, *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Gradients divided by the root of a running mean of their squares; Hinton, Coursera lecture 6e, 2012.

    Args:
        centered: subtract the square of the running mean first; Graves 2013.
    """
    names = ("square", *(["mean"] if centered else []), *(["velocity"] if momentum else []))

    def rule(rate: Any, number: Any) -> Leaf:
        def leaf(g: Any, p: Any, *kept: Any) -> tuple[Any, ...]:
            old = dict(zip(names, kept, strict=True))
            g = decayed(g, p, weight_decay)
            new = {"square": alpha * old["square"] + (1 - alpha) * (g * g)}
            spread = new["square"]
            if centered:
                new["mean"] = alpha * old["mean"] + (1 - alpha) * g
                # rounding may leave less than nothing of a difference of equals
                spread = knp.maximum(spread - new["mean"] * new["mean"], 0)
            d = g / (knp.sqrt(spread) + eps)
            if momentum:
                d = new["velocity"] = momentum * old["velocity"] + d
            return rate * d, *(new[name] for name in names)

        return leaf

    return by_element(names, rule, lr, maximize)


def adagrad(
    lr: Rate = 1e-2, lr_decay: float = 0.0, weight_decay: float = 0.0, initial_accumulator_value: float = 0.0,
    eps: float = 1e-10, *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Gradients divided by the root of the sum of their squares so far; Duchi et al. 2011."""

    def rule(rate: Any, number: Any) -> Leaf:
        slower = rate / (1 + (number - 1) * lr_decay) if lr_decay else rate

        def leaf(g: Any, p: Any, total: Any) -> tuple[Any, ...]:
            g = decayed(g, p, weight_decay)
            total = total + g * g
            return slower * (g / (knp.sqrt(total) + eps)), total

        return leaf

    return by_element(("total",), rule, lr, maximize, total=initial_accumulator_value)


def lion(lr: Rate, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> Optimizer:
    """The sign of a mixture of the momentum and the gradient; Chen et al. 2023. Weight decay is as in ``adamw``."""
    b1, b2 = two("lion", "betas", betas)

    def rule(rate: Any, number: Any) -> Leaf:
        def leaf(g: Any, p: Any, m: Any) -> tuple[Any, ...]:
            d = knp.sign(b1 * m + (1 - b1) * g)
            return rate * (d + weight_decay * p if weight_decay else d), b2 * m + (1 - b2) * g

        return leaf

    return by_element(("mean",), rule, lr, maximize=False)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration; Jordan et al. 2024, Muon."""


ADJUSTED: dict[str | None, Callable[[int, int], float]] = {
    None: lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
}
"""By what the rate of a matrix is multiplied; Jordan et al. 2024, Liu et al. 2025."""


def orthogonalized(
    x: Any, steps: int = 5, eps: float = 1e-7, coefficients: tuple[float, float, float] = NEWTON_SCHULZ
) -> Any:
    """Bring the singular values of a matrix near 1, by Newton and Schulz's iteration."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    y = x.T if tall else x
    y = y / knp.maximum(global_norm(y), eps)
    for _ in range(steps):
        square = y @ y.T
        y = a * y + (b * square + c * (square @ square)) @ y
    return y.T if tall else y


def muon(
    lr: Rate = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95, nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = NEWTON_SCHULZ, eps: float = 1e-7, ns_steps: int = 5,
    adjust_lr_fn: str | None = None, *, others: Optimizer | None = None,
) -> Optimizer:  # fmt: skip
    """Momentum made orthogonal, for parameters that are matrices; Jordan et al. 2024. Weight decay is as in ``adamw``.

    PyTorch's computes the iteration in bf16, and here it is in f32 at least.

    Args:
        adjust_lr_fn: how the rate goes by the extents of a matrix: ``"original"``, or ``"match_rms_adamw"``.
        others: for parameters that are not matrices; by default ``adamw(lr)``.

    Raises:
        InvalidParameter: for another ``adjust_lr_fn``.
    """
    if adjust_lr_fn not in ADJUSTED:
        expected = "original or match_rms_adamw"
        raise InvalidParameter(op="muon", name="adjust_lr_fn", found=adjust_lr_fn, expected=expected)
    adjusted = ADJUSTED[adjust_lr_fn]
    rest = adamw(lr) if others is None else others

    def parted(tree: Tree) -> tuple[list[Any], list[Any]]:
        leaves: list[Any] = optree.tree_leaves(tree)
        return [x for x in leaves if np.ndim(x) == 2], [x for x in leaves if np.ndim(x) != 2]

    def init(params: Tree) -> Tree:
        matrices, remaining = parted(params)
        return {"count": np.zeros((), np.float32), "mean": zeros(matrices), "others": rest.init(remaining)}

    def steps(state: Tree, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        count = knp.asarray(state["count"])
        (matrices, remaining), (g_matrices, g_remaining) = parted(params), parted(grads)

        def rule(rate: Any, number: Any) -> Leaf:
            def leaf(g: Any, p: Any, m: Any) -> tuple[Any, ...]:
                m = momentum * m + (1 - momentum) * g
                d = orthogonalized(momentum * m + (1 - momentum) * g if nesterov else m, ns_steps, eps, ns_coefficients)
                return rate * (adjusted(*p.shape) * d + weight_decay * p), m

            return leaf

        made, mean = split(rule_at(rule, lr, count), 2, g_matrices, matrices, state["mean"])
        made_others, state_others = rest.steps(state["others"], g_remaining, remaining)
        first, second = iter(made), iter(made_others)
        whole = tree_map(lambda p: next(first) if np.ndim(p) == 2 else next(second), params)
        return whole, {"count": count + 1, "mean": mean, "others": state_others}

    return Optimizer(init, steps)
