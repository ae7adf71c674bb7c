"""Activations: elementwise, and gates that multiply one half by a function of the other.

f16 and bf16 are computed in f32 and rounded once; NaN gives NaN. At infinities the value is the limit, and so is the
derivative: ``gelu(-inf)`` and ``silu(-inf)`` are 0 where PyTorch has NaN. At a kink the derivative is PyTorch's, which
is that of the side where the function is flat, 0 for ``relu``.
"""

from __future__ import annotations

import math
from typing import Any

import kernelforge.numpy as knp
from kernelforge.nn.calls import Given, draws_key, elementwise, function, require, valid
from kernelforge.random import uniform

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
"""Fixed points of mean 0 and variance 1; Klambauer et al. 2017, equation 14."""

RRELU_LOWER, RRELU_UPPER = 1 / 8, 1 / 3
FLAT = 1e4
"""Beyond it, on either side, the gates here are 0 or 1 in every dtype."""


def _gated(x: Any, gate: Any) -> Any:
    """``x * gate(x)`` for a gate that goes from 0 to 1 exponentially; at infinities it has the limits, not NaN."""
    return knp.where(x < -FLAT, -FLAT, x) * gate(_between(x, -FLAT, FLAT))


def _between(x: Any, low: Any, high: Any) -> Any:
    """Clip; the derivative at both ends is 0."""
    return knp.where(x <= low, low, knp.where(x >= high, high, x))


@elementwise()
def relu(input: Any) -> Any:
    """max(x, 0)."""
    return knp.where(input <= 0, 0, input)


@elementwise()
def relu6(input: Any) -> Any:
    """min(max(x, 0), 6)."""
    return _between(input, 0, 6)


@elementwise()
def hardtanh(input: Any, min_val: Any = -1.0, max_val: Any = 1.0) -> Any:
    """``x`` clipped to [min_val, max_val]."""
    return _between(input, min_val, max_val)


@elementwise()
def threshold(input: Any, threshold: Any, value: Any) -> Any:
    """``x`` where it is above ``threshold``, else ``value``."""
    return knp.where(input <= threshold, value, input)


@elementwise()
def trelu(input: Any, theta: Any = 1.0) -> Any:
    """``x`` where it is above ``theta``, else 0; Konda et al. 2015."""
    return knp.where(input > theta, input, 0)


@elementwise()
def leaky_relu(input: Any, negative_slope: Any = 0.01) -> Any:
    """``x`` where it is positive, else ``negative_slope * x``."""
    return knp.where(input > 0, input, input * negative_slope)


@function()
def prelu(input: Any, weight: Any) -> Any:
    """``leaky_relu`` with a slope for each channel (axis 1), or one for all."""
    x, slope = knp.asarray(input), knp.asarray(weight)
    each = x.ndim > 1 and slope.size != 1
    require(
        slope.size == 1 or slope.shape == x.shape[1:2], "prelu", slope.shape, f"{x.shape[1:2]}, as axis 1 has, or 1"
    )
    slope = slope.reshape((slope.size, *(1,) * (x.ndim - 2)) if each else ())
    return knp.where(x > 0, x, x * slope)


def _draws(given: Given) -> None:
    if given.get("training", False):
        draws_key(given)


@elementwise("training", before=_draws)
def rrelu(
    input: Any, lower: Any = RRELU_LOWER, upper: Any = RRELU_UPPER, training: bool = False, *, key: Any = None
) -> Any:
    """``leaky_relu`` whose slope is drawn for each element while ``training``, else the mean; Xu et al. 2015.

    Args:
        lower, upper: the slopes are even between these.
        key: as of ``dropout``.
    """
    slope = uniform(key, input.shape, input.dtype, lower, upper) if training else (lower + upper) / 2
    return knp.where(input > 0, input, input * slope)


def _expm1_below(x: Any, alpha: Any = 1.0) -> Any:
    """exp(x / alpha) - 1 below 0, where it bends; at 0 a line, whose second derivative is 0 as in PyTorch."""
    return knp.where(x < 0, knp.expm1(knp.where(x < 0, x, 0) / alpha), x / alpha)


@elementwise()
def elu(input: Any, alpha: Any = 1.0) -> Any:
    """``x`` where it is positive, else ``alpha * (exp(x) - 1)``; Clevert et al. 2016."""
    return knp.where(input > 0, input, alpha * _expm1_below(input))


@elementwise()
def selu(input: Any) -> Any:
    """``elu`` scaled to keep mean 0 and variance 1; Klambauer et al. 2017."""
    return SELU_SCALE * knp.where(input > 0, input, SELU_ALPHA * _expm1_below(input))


@elementwise()
def celu(input: Any, alpha: Any = 1.0) -> Any:
    """``x`` where it is positive, else ``alpha * (exp(x / alpha) - 1)``, which is smooth; Barron 2017."""
    return knp.where(input > 0, input, alpha * _expm1_below(input, alpha))


@elementwise("approximate")
def gelu(input: Any, approximate: str = "none") -> Any:
    """``x`` times the normal distribution's cumulated density at ``x``; Hendrycks and Gimpel 2016.

    Args:
        approximate: ``"tanh"`` for their approximation by a hyperbolic tangent.
    """
    valid(approximate in ("none", "tanh"), "gelu", "approximate", approximate, "none or tanh")
    return _gated(input, _normal_by_tanh if approximate == "tanh" else _normal)


def _normal(x: Any) -> Any:
    return 0.5 * knp.erfc(x * -math.sqrt(0.5))


def _normal_by_tanh(x: Any) -> Any:
    # tanh has reached 1 at 10; far beyond it the cube would overflow
    near = _between(x, -10, 10)
    return 0.5 + 0.5 * knp.tanh(math.sqrt(2 / math.pi) * (near + 0.044715 * (near * near * near)))


@elementwise()
def quick_gelu(input: Any) -> Any:
    """``x * sigmoid(1.702 * x)``; Hendrycks and Gimpel 2016."""
    return _gated(input, lambda x: knp.sigmoid(1.702 * x))


@elementwise()
def sigmoid(input: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return knp.sigmoid(input)


@elementwise()
def tanh(input: Any) -> Any:
    """``numpy.tanh``, in f32 for f16 and bf16."""
    return knp.tanh(input)


@elementwise()
def silu(input: Any) -> Any:
    """``x * sigmoid(x)``, also called swish."""
    return _gated(input, knp.sigmoid)


@elementwise()
def mish(input: Any) -> Any:
    """``x * tanh(softplus(x))``; Misra 2019."""
    return _gated(input, lambda x: knp.tanh(knp.logaddexp(x, 0)))


@elementwise()
def lisht(input: Any) -> Any:
    """``x * tanh(x)``; Roy et al. 2019."""
    return input * knp.tanh(input)


@elementwise()
def logcosh(input: Any) -> Any:
    """log(cosh(x)), without overflow."""
    return knp.logaddexp(input, -input) - math.log(2)


@elementwise()
def softplus(input: Any, beta: Any = 1.0, threshold: Any = 20.0) -> Any:
    """log(1 + exp(beta * x)) / beta; ``x`` itself where ``beta * x`` is above ``threshold``."""
    scaled = input * beta
    return knp.where(scaled > threshold, input, knp.logaddexp(scaled, 0) / beta)


@elementwise()
def logsigmoid(input: Any) -> Any:
    """log(sigmoid(x)), without overflow."""
    return -knp.logaddexp(-input, 0)


@elementwise()
def softsign(input: Any) -> Any:
    """X / (1 + abs(x)); 1 and -1 at infinities."""
    x = _between(input, -1e18, 1e18)
    return x / (1 + knp.abs(x))


@elementwise()
def tanhshrink(input: Any) -> Any:
    """X - tanh(x)."""
    return input - knp.tanh(input)


@elementwise()
def hardshrink(input: Any, lambd: Any = 0.5) -> Any:
    """0 within [-lambd, lambd], ``x`` elsewhere."""
    return knp.where((input >= -lambd) & (input <= lambd), 0, input)


@elementwise()
def softshrink(input: Any, lambd: Any = 0.5) -> Any:
    """``x`` moved towards 0 by ``lambd``, 0 where it would pass it."""
    return knp.where(input > lambd, input - lambd, knp.where(input < -lambd, input + lambd, input * 0))


@elementwise()
def hardsigmoid(input: Any) -> Any:
    """relu6(x + 3) / 6."""
    return (_between(input, -3, 3) + 3) / 6


@elementwise()
def hardswish(input: Any) -> Any:
    """``x * relu6(x + 3) / 6``; Howard et al. 2019. The derivative is 0 at -3 and 1 at 3."""
    x = _between(input, -3, 3)
    return knp.where(input >= 3, input, x * ((x + 3) / 6))


def _halves(x: Any, dim: int, op: str) -> tuple[Any, Any]:
    require(x.ndim > 0 and x.shape[dim] % 2 == 0, op, x.shape, f"an even extent of axis {dim}")
    first, second = knp.split(x, 2, axis=dim)
    return first, second


@elementwise("dim")
def glu(input: Any, dim: int = -1) -> Any:
    """The first half of an axis, times the sigmoid of the second; Dauphin et al. 2017."""
    value, gate = _halves(input, dim, "glu")
    return value * sigmoid(gate)


@elementwise("dim")
def reglu(input: Any, dim: int = -1) -> Any:
    """The first half of an axis, times ``relu`` of the second; Shazeer 2020, as are ``geglu`` and ``swiglu``."""
    value, gate = _halves(input, dim, "reglu")
    return value * relu(gate)


@elementwise("dim", "approximate")
def geglu(input: Any, dim: int = -1, approximate: str = "none") -> Any:
    """The first half of an axis, times ``gelu`` of the second."""
    value, gate = _halves(input, dim, "geglu")
    return value * gelu(gate, approximate=approximate)


@elementwise("dim")
def swiglu(input: Any, dim: int = -1) -> Any:
    """The first half of an axis, times ``silu`` of the second."""
    value, gate = _halves(input, dim, "swiglu")
    return value * silu(gate)


swish = silu
