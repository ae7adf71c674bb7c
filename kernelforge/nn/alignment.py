"""Connectionist temporal classification: the likelihood of a text over all ways to align it."""

from __future__ import annotations

import math
from typing import Any

import kernelforge.numpy as knp
from kernelforge.control import scan
from kernelforge.nn.calls import function, reduced, require, wide


@function("blank", "reduction", "zero_infinity")
def ctc_loss(
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Any:
    """The negative logarithm of the likelihood of ``targets``; Graves et al. 2006, equations 6 to 8, with logarithms.

    Args:
        log_probs: log-probabilities, of shape (time, batch, classes).
        targets: classes, of shape (batch, longest); what stands after a text's end is not looked at. PyTorch's form of
            all texts one after the other is not taken.
        input_lengths, target_lengths: of shape (batch,).
        reduction: with ``"mean"`` each loss is divided by its text's length, 1 at least, and the mean is of those.
        zero_infinity: 0, with no gradient, for a text too long for its input, in place of infinity.
    """
    x, text = wide(log_probs), knp.asarray(targets)
    lengths, ends = knp.asarray(input_lengths), knp.asarray(target_lengths)
    fits = x.ndim == 3 and text.ndim == 2 and text.shape[0] == x.shape[1] == lengths.size == ends.size
    require(fits, "ctc_loss", f"{x.shape} and {text.shape}", "(time, batch, classes) and (batch, longest)")
    batch, longest = text.shape
    states = 2 * longest + 1
    # blanks stand between all letters and around them: states 1, 3, 5 are the letters
    letters = knp.stack([knp.full((batch, longest), blank, text.dtype), text], axis=-1).reshape((batch, 2 * longest))
    letters = knp.concatenate([letters, knp.full((batch, 1), blank, text.dtype)], axis=1)
    place = knp.arange(states)
    inside = (letters >= 0) & (letters < x.shape[2])
    index = knp.broadcast_to(knp.where(inside, letters, 0), (x.shape[0], batch, states))
    seen = knp.take_along_axis(x, index, axis=2)
    before = knp.concatenate([knp.full((batch, 2), -1, text.dtype), letters[:, :-2]], axis=1) if states > 1 else letters
    skips = (letters != blank) & (letters != before) & (place >= 2)
    never = knp.full((batch, 2), -math.inf, x.dtype)
    # before any input only the empty text is likely
    nothing = knp.where(place == 0, 0, -math.inf)
    start = knp.where((lengths > 0)[:, None], knp.where(place < 2, seen[0], -math.inf), nothing)

    def step(alpha: Any, at: Any) -> Any:
        emitted, t = at
        shifted = knp.concatenate([never, alpha], axis=1)
        one, two = shifted[:, 1:-1], knp.where(skips, shifted[:, :-2], -math.inf)
        new = knp.logaddexp(knp.logaddexp(alpha, one), two) + emitted
        return knp.where((t < lengths)[:, None], new, alpha), None

    alpha, _ = scan(step, start, (seen[1:], knp.arange(1, x.shape[0])))
    final = 2 * ends[:, None]
    last = knp.where((place == final) | (place == final - 1), alpha, -math.inf)
    if zero_infinity:
        # before the logarithm, whose derivative is NaN there
        never = last.max(axis=1) == -math.inf
        losses = knp.where(never, 0, -knp.logsumexp(knp.where(never[:, None], 0, last), axis=1))
    else:
        losses = -knp.logsumexp(last, axis=1)
    if reduction == "mean":
        losses = losses / knp.maximum(ends, 1).astype(x.dtype)
    return reduced(losses, reduction, "ctc_loss")
