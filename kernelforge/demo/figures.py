"""Plots of the examples, where matplotlib is installed: it is needed for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Panel = Callable[[Any], object]


def save(path: str, **panels: Panel) -> None:
    """Save panels beside each other as a picture at ``path``; say so, or why there is none.

    Args:
        panels: titles, with underscores for blanks, and functions that draw on matplotlib's axes.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{path} is not drawn, as matplotlib is not installed: pip install matplotlib")
        return
    figure = Figure(figsize=(4.5 * len(panels), 4), layout="constrained")
    for axes, (title, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.set_title(title.replace("_", " "))
        draw(axes)
    figure.savefig(path, dpi=120)
    print(f"drawn: {path}")


def curve(values: Sequence[float], label: str = "loss") -> Panel:
    """Draw values of steps on a logarithmic axis, and their running mean over a fiftieth of them."""

    def draw(axes: Any) -> None:
        shown = np.asarray(values)
        width = max(len(shown) // 50, 1)
        axes.semilogy(shown, color="#9ab", linewidth=0.6)
        axes.semilogy(np.arange(width - 1, len(shown)), np.convolve(shown, np.ones(width) / width, "valid"))
        axes.set(xlabel="step", ylabel=label)

    return draw


def image(pixels: Any, **options: Any) -> Panel:
    """Draw an image, grey ones from black to white."""

    def draw(axes: Any) -> None:
        axes.imshow(np.asarray(pixels), **({"cmap": "gray"} | options))
        axes.axis("off")

    return draw
