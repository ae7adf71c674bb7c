"""Padding, with PyTorch's order of widths and its names of modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import kernelforge.numpy as knp
from kernelforge.nn.calls import function, require, valid
from kernelforge.nn.windows import padded

MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""NumPy's names of the modes other than constant."""


@function("pad", "mode")
def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Any:
    """Put elements around an array.

    Args:
        pad: widths before and after the last axis, then the last but one, and so on. Negative widths take away: before
            circles are closed, and after reflections and edges are put around.
        mode: ``constant``, ``reflect`` (the edge once), ``replicate`` (the edge) or ``circular``. Unlike PyTorch's, any
            axes can be padded, and reflections and circles may go round more than once.
        value: of the constant; 0 where it is None.
    """
    x = knp.asarray(input)
    valid(mode == "constant" or mode in MODES, "pad", "mode", mode, "constant, reflect, replicate or circular")
    fits = len(pad) % 2 == 0 and len(pad) <= 2 * x.ndim
    require(fits, "pad", f"{x.shape} with widths {tuple(pad)}", "two widths for each of some of the last axes")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    if mode == "constant":
        return padded(x, pairs, 0 if value is None else value)
    fewer = [(min(low, 0), min(high, 0)) for low, high in pairs]
    more = [(max(low, 0), max(high, 0)) for low, high in pairs]
    x = padded(x, fewer, 0) if mode == "circular" else x
    widths = [(0, 0)] * (x.ndim - len(pairs)) + more
    for axis, (low, high) in enumerate(widths):
        once = mode != "reflect" or x.shape[axis] > 1 or low == high == 0
        require(once, "pad", x.shape, f"more than one element along axis {axis} to reflect")
    made = knp.pad(x, widths, mode=MODES[mode])
    return made if mode == "circular" else padded(made, fewer, 0)
