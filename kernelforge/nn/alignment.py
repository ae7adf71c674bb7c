"""Connectionist temporal classification: the likelihood of a text over all ways to align it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.control import scan
from kernelforge.nn.calls import Given, function, known, names_classes, reduced, require, valid, wide


def _rows(given: Given) -> None:
    """Check known texts, and lay those that stand one after the other out as rows."""
    text, ends, shape = known(given["targets"]), known(given["target_lengths"]), np.shape(given["log_probs"])
    if text is None or ends is None or ends.ndim > 1 or text.ndim not in (1, 2) or not shape:
        return
    ends, steps = ends.reshape(-1), known(given["input_lengths"])
    if steps is not None:
        fits = not ((steps < 0) | (steps > shape[0])).any()
        valid(fits, "ctc_loss", "input_lengths", steps.tolist(), f"lengths from 0 to {shape[0]}")
    fits = text.ndim == 1 or not ((ends < 0) | (ends > text.shape[1])).any()
    valid(fits, "ctc_loss", "target_lengths", ends.tolist(), f"lengths from 0 to {text.shape[-1]}")
    if text.ndim == 1:
        valid(ends.sum() == len(text), "ctc_loss", "target_lengths", ends.tolist(), f"lengths of {len(text)} together")
        rows = np.zeros((len(ends), ends.max(initial=0)), text.dtype)
        rows[np.arange(rows.shape[1]) < ends[:, None]] = text
        given["targets"] = text = rows
    seen = np.where(np.arange(text.shape[1]) < ends[:, None], text, 0) if len(ends) == len(text) else text[:0]
    names_classes({"targets": seen}, "ctc_loss", "targets", shape[-1])


@function("blank", "reduction", "zero_infinity", before=_rows)
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
        log_probs: log-probabilities, of shape (time, batch, classes), or without the batch.
        targets: classes, of shape (batch, longest); what stands after a text's end is not looked at. Or of one axis,
            all texts one after the other; where their lengths are not known while a function is compiled, each is as
            much work as one of that length.
        input_lengths, target_lengths: of shape (batch,).
        reduction: with ``"mean"`` each loss is divided by its text's length, 1 at least, and the mean is of those.
        zero_infinity: 0, with no gradient, for a text too long for its input, in place of infinity.
    """
    x, text = wide(log_probs), knp.asarray(targets)
    single = x.ndim == 2
    if single:
        x = x[:, None]
    lengths, ends = (knp.asarray(v).reshape((-1,)) for v in (input_lengths, target_lengths))
    counts = x.ndim == 3 and lengths.shape == ends.shape == x.shape[1:2]
    fits = counts and (text.ndim == 1 or (text.ndim == 2 and text.shape[0] == x.shape[1]))
    expected = "(time, batch, classes), (batch, longest) or one axis, and lengths of shape (batch,)"
    require(fits, "ctc_loss", f"{x.shape}, {text.shape}, {lengths.shape} and {ends.shape}", expected)
    valid(0 <= blank < x.shape[2], "ctc_loss", "blank", blank, f"a class from 0 to {x.shape[2] - 1}")
    if text.ndim == 1:
        text = _apart(text, ends)
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
    nothing = knp.where(place == 0, 0, -math.inf).astype(x.dtype)
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
    wrong = ~inside & (place < 2 * ends[:, None])
    losses = knp.where(wrong.any(axis=1), math.nan, losses)
    if reduction == "mean":
        losses = losses / knp.maximum(ends, 1).astype(x.dtype)
    return reduced(losses[0] if single and reduction == "none" else losses, reduction, "ctc_loss")


def _apart(text: Any, ends: Any) -> Any:
    """Lay texts that stand one after the other out as rows; what fills a row up is another text's."""
    lengths = known(ends)
    width = text.shape[0] if lengths is None else int(lengths.max(initial=0))
    starts = ends.cumsum() - ends
    place = starts[:, None] + knp.arange(width)
    return knp.take(text, knp.minimum(place, text.shape[0] - 1)) if text.shape[0] else text.reshape((1, 0))
