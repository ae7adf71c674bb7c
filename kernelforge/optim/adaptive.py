"""Further optimisers of PyTorch's, whose steps adapt to what gradients were; parameters as in ``rules``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.optim.optimizer import Optimizer, global_norm, two
from kernelforge.optim.rules import Leaf, Rate, by_element, decayed, moments, unbiased


def adadelta(
    lr: Rate = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0, *, maximize: bool = False
) -> Optimizer:
    """Steps in the units of the parameters: gradients times a ratio of running means; Zeiler 2012, algorithm 1."""

    def rule(rate: Any, number: Any) -> Leaf:
        def leaf(g: Any, p: Any, square: Any, moved: Any) -> tuple[Any, ...]:
            g = decayed(g, p, weight_decay)
            square = rho * square + (1 - rho) * (g * g)
            d = knp.sqrt(moved + eps) / knp.sqrt(square + eps) * g
            return rate * d, square, rho * moved + (1 - rho) * (d * d)

        return leaf

    return by_element(("square", "moved"), rule, lr, maximize)


def adamax(
    lr: Rate = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Adam with a decaying maximum in the place of the root of the square; Kingma and Ba 2015, algorithm 2."""
    b1, b2 = two("adamax", "betas", betas)

    def rule(rate: Any, number: Any) -> Leaf:
        first = unbiased(b1, number)

        def leaf(g: Any, p: Any, m: Any, largest: Any) -> tuple[Any, ...]:
            g = decayed(g, p, weight_decay)
            m, largest = b1 * m + (1 - b1) * g, knp.maximum(b2 * largest, knp.abs(g) + eps)
            return rate / first * (m / largest), m, largest

        return leaf

    return by_element(("mean", "largest"), rule, lr, maximize)


def adabelief(
    lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16, *, maximize: bool = False
) -> Optimizer:
    """Adam that divides by how far gradients are from their mean; Zhuang et al. 2020, algorithm 2."""
    b1, b2 = two("adabelief", "betas", betas)

    def rule(rate: Any, number: Any) -> Leaf:
        first, second = unbiased(b1, number), unbiased(b2, number)

        def leaf(g: Any, p: Any, m: Any, spread: Any) -> tuple[Any, ...]:
            m = b1 * m + (1 - b1) * g
            spread = b2 * spread + (1 - b2) * (g - m) ** 2 + eps
            return rate * (m / first) / (knp.sqrt(spread / second) + eps), m, spread

        return leaf

    return by_element(("mean", "spread"), rule, lr, maximize)


def oadam(
    lr: Rate = 1e-3, betas: tuple[float, float] = (0.5, 0.9), eps: float = 1e-8, *, maximize: bool = False
) -> Optimizer:
    """Adam for games, which takes twice this step and the last one back; Daskalakis et al. 2018, algorithm 1."""
    b1, b2 = two("oadam", "betas", betas)

    def rule(rate: Any, number: Any) -> Leaf:
        first, second = unbiased(b1, number), unbiased(b2, number)

        def leaf(g: Any, p: Any, m: Any, v: Any, before: Any) -> tuple[Any, ...]:
            m, v = moments(b1, b2, g, m, v)
            step = rate * (m / first) / (knp.sqrt(v / second) + eps)
            return 2 * step - before, m, v, step

        return leaf

    return by_element(("mean", "square", "before"), rule, lr, maximize)


def nadam(
    lr: Rate = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    momentum_decay: float = 4e-3, decoupled_weight_decay: bool = False, *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Adam with Nesterov's momentum; Dozat 2016."""
    b1, b2 = two("nadam", "betas", betas)

    def momentum(number: Any) -> Any:
        return b1 * (1 - 0.5 * knp.exp(number * (momentum_decay * math.log(0.96))))

    def rule(rate: Any, number: Any) -> Leaf:
        now, after, second = momentum(number), momentum(number + 1), unbiased(b2, number)

        def leaf(g: Any, p: Any, m: Any, v: Any, product: Any) -> tuple[Any, ...]:
            d = g if decoupled_weight_decay else decayed(g, p, weight_decay)
            m, v = moments(b1, b2, d, m, v)
            product = product * now
            d = (1 - now) / (1 - product) * d + after / (1 - product * after) * m
            d = d / (knp.sqrt(v / second) + eps)
            return rate * (decayed(d, p, weight_decay) if decoupled_weight_decay else d), m, v, product

        return leaf

    names = ("mean", "square", "product")
    return by_element(names, rule, lr, maximize, product=lambda z: np.ones((), z.dtype))


def radam(
    lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False, *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Adam whose first steps are shorter by the variance of their rates; Liu et al. 2020, algorithm 2.

    That variance is a small difference of large numbers, and is computed in float64.
    """
    b1, b2 = two("radam", "betas", betas)
    longest = 2 / (1 - b2) - 1

    def rule(rate: Any, number: Any) -> Leaf:
        t = number.astype(np.float64)
        kept = b2**t
        length = longest - 2 * t * kept / (1 - kept)
        certain = length > 5
        of = knp.where(certain, length, 5.0)
        scale = (of - 4) * (of - 2) * longest / ((longest - 4) * (longest - 2) * of) * (1 - kept)
        first = unbiased(b1, number)

        def leaf(g: Any, p: Any, m: Any, v: Any) -> tuple[Any, ...]:
            d = g if decoupled_weight_decay else decayed(g, p, weight_decay)
            m, v = moments(b1, b2, d, m, v)
            d = m / first * knp.where(certain, knp.sqrt(scale).astype(v.dtype) / (knp.sqrt(v) + eps), 1)
            return rate * (decayed(d, p, weight_decay) if decoupled_weight_decay else d), m, v

        return leaf

    return by_element(("mean", "square"), rule, lr, maximize)


def rprop(
    lr: float = 1e-2, etas: tuple[float, float] = (0.5, 1.2), step_sizes: tuple[float, float] = (1e-6, 50.0),
    *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Steps of each element by the signs of its gradients alone; Riedmiller and Braun 1993.

    Args:
        lr: the size of the first steps.
        etas: by what a step shrinks where the sign turned, and grows where it stayed.
        step_sizes: the least and the greatest.
    """
    shrink, grow = two("rprop", "etas", etas)

    def rule(rate: Any, number: Any) -> Leaf:
        def leaf(g: Any, p: Any, before: Any, size: Any) -> tuple[Any, ...]:
            turned, stayed = g * before < 0, g * before > 0
            size = knp.clip(size * knp.where(stayed, grow, knp.where(turned, shrink, 1)), *step_sizes)
            g = knp.where(turned, 0, g)
            return knp.sign(g) * size, g, size

        return leaf

    return by_element(("before", "size"), rule, lr, maximize, size=lr)


def asgd(
    lr: Rate = 1e-2, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6, weight_decay: float = 0.0,
    *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Gradient descent, and the mean of where it was after more than ``t0`` updates; Polyak and Juditsky 1992.

    Args:
        lambd: decay of the parameters, and of the rate: ``lr / (1 + lambd * lr * count) ** alpha``.

    The mean is ``state["average"]``.
    """

    def rule(rate: Any, number: Any) -> Leaf:
        slower = rate / (1 + lambd * rate * (number - 1)) ** alpha
        share = 1 / knp.maximum(number - 1 - t0, 1)

        def leaf(g: Any, p: Any, average: Any) -> tuple[Any, ...]:
            step = slower * (decayed(g, p, weight_decay) + lambd * p)
            return step, average + (p - step - average) * share

        return leaf

    return by_element(("average",), rule, lr, maximize)


def adafactor(
    lr: Rate = 1e-2, beta2_decay: float = -0.8, eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0,
    weight_decay: float = 0.0, *, maximize: bool = False,
) -> Optimizer:  # fmt: skip
    """Adam without the mean, which keeps sums of squares of rows and columns alone; Shazeer and Stern 2018.

    Args:
        eps: the least root of a square, by default the spacing of numbers at 1; and the least norm of a parameter
            that its steps are relative to.
        d: the longest root mean square of a step, relative to that norm.
        weight_decay: as in ``adamw``.
    """

    def rule(rate: Any, number: Any) -> Leaf:
        share = number**beta2_decay
        longest = knp.minimum(rate, 1 / knp.sqrt(number))

        def leaf(g: Any, p: Any, row: Any, column: Any) -> tuple[Any, ...]:
            least = float(np.finfo(p.dtype).eps) if eps[0] is None else eps[0]
            squares = g * g
            row = row + share * ((squares.mean(axis=-1, keepdims=True) if g.ndim > 1 else squares) - row)
            spread = row
            if g.ndim > 1:
                column = column + share * (squares.mean(axis=-2, keepdims=True) - column)
                spread = row * column / knp.maximum(row.mean(axis=-2, keepdims=True), least)
            moved = g / knp.sqrt(knp.maximum(spread, least * least))
            size = p.size**0.5
            scale = knp.maximum(eps[1], global_norm(p) / size) / knp.maximum(1, global_norm(moved) / (size * d))
            return longest * scale * moved + rate * weight_decay * p, row, column

        return leaf

    return by_element(
        ("row", "column"), rule, lr, maximize,
        row=lambda z: z[..., :1] if z.ndim > 1 else z,
        column=lambda z: z[..., :1, :] if z.ndim > 1 else np.zeros((), z.dtype),
    )  # fmt: skip
