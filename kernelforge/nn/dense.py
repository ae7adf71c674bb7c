"""Linear and bilinear maps, products of groups, embeddings.

An integer that names no row or class is refused where it is known: at calls by themselves, and where it is a constant
of a compiled function. What a compiled function only finds when it runs reads NaN, but counts from the end where it is
negative, as in NumPy; ``one_hot`` has no 1 for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.control import scan
from kernelforge.nn.calls import Given, function, known, names_classes, narrow, passing, require, valid, wide
from kernelforge.nn.probability import vector_norm
from kernelforge.transforms import stop_gradient


@function()
def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """``input @ weight.T + bias``, with ``weight`` of shape (outputs, inputs)."""
    x, w = knp.asarray(input), knp.asarray(weight)
    fits = x.ndim > 0 and w.ndim in (1, 2) and x.shape[-1] == w.shape[-1]
    require(fits, "linear", f"{x.shape} and {w.shape}", "a weight of shape (outputs, inputs), as the last axis has")
    made = x @ w.T
    if bias is None:
        return made
    shift = knp.asarray(bias)
    require(shift.shape == w.shape[:-1], "linear", shift.shape, f"a bias of shape {w.shape[:-1]}")
    return made + shift


@function()
def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    """``input1 @ weight[o] @ input2`` for each output o, with ``weight`` of shape (outputs, inputs1, inputs2)."""
    x, y, w = (knp.asarray(v) for v in (input1, input2, weight))
    fits = min(x.ndim, y.ndim) > 0 and w.shape[1:] == (x.shape[-1], y.shape[-1]) and x.shape[:-1] == y.shape[:-1]
    expected = "a weight of shape (outputs, inputs1, inputs2), and inputs that differ in the last axis only"
    require(fits, "bilinear", f"{x.shape}, {y.shape} and {w.shape}", expected)
    made = knp.einsum("...i,oij,...j->...o", x, w, y)
    return made if bias is None else made + bias


@function("out_dtype")
def grouped_mm(mat_a: Any, mat_b: Any, *, offs: Any = None, out_dtype: Any = None) -> Any:
    """Products of groups: those of a matrix end where ``offs`` says, as the rows of several experts do.

    Three axes name the groups by the first. Of ``mat_a`` with two axes groups are rows, of ``mat_b`` columns; of both
    they are parts of the axis that is summed, and the result has three axes. What lies behind the last group is 0.
    Each group is a product with the whole matrix, so time goes with the number of groups.
    """
    x, y = knp.asarray(mat_a), knp.asarray(mat_b)
    found = f"{x.shape} and {y.shape}"
    fits = {x.ndim, y.ndim} <= {2, 3} and x.shape[-1] == y.shape[-2] and (x.ndim, y.ndim, x.shape[0]) != (3, 3, 0)
    fits = fits and not (x.ndim == y.ndim == 3 and x.shape[0] != y.shape[0])
    require(fits, "grouped_mm", found, "matrices, or groups of them along a first axis, that can be multiplied")
    if x.ndim == y.ndim == 3:
        require(offs is None, "grouped_mm", "offs", "no offsets: the first axes name the groups")
        made = x @ y
    else:
        count = x.shape[0] if x.ndim == 3 else y.shape[0] if y.ndim == 3 else None
        ends = knp.asarray([] if offs is None else offs)
        given = (
            ends.ndim == 1 and ends.dtype.kind in "iu" and ends.shape[0] == (ends.shape[0] if count is None else count)
        )
        require(given, "grouped_mm", f"offs of {ends.dtype}{ends.shape}", "as many integers as groups, where these end")
        extent = x.shape[1] if x.ndim == y.ndim else x.shape[0] if x.ndim == 2 else y.shape[1]
        group = knp.searchsorted(ends, knp.arange(extent), "right")
        made = _grouped(x, y, group, ends.shape[0])
    return made if out_dtype is None else made.astype(out_dtype)


def _grouped(x: Any, y: Any, group: Any, count: int) -> Any:
    numbers = knp.arange(count)
    if x.ndim == y.ndim:

        def apart(carry: Any, number: Any) -> Any:
            own = group == number
            return carry, knp.where(own, x, 0) @ knp.where(own[:, None], y, 0)

        return scan(apart, (), numbers)[1]

    def together(made: Any, at: Any) -> Any:
        one, number = at
        own = group == number
        return knp.where(own[:, None], x @ one, made) if x.ndim == 2 else knp.where(own, one @ y, made), None

    start = knp.zeros((x.shape[-2], y.shape[-1]), np.result_type(x.dtype, y.dtype))
    return scan(together, start, (y if x.ndim == 2 else x, numbers))[0]


def _named(op: str) -> Callable[[Given], None]:
    def before(given: Given) -> None:
        if np.ndim(given["weight"]) == 2:
            names_classes(given, op, "input", np.shape(given["weight"])[0])

    return before


def _looked_up(op: str, ids: Any, weight: Any, padding_idx: int | None, max_norm: Any, norm_type: float,
               by_frequency: bool) -> tuple[Any, Any]:  # fmt: skip
    """Return the rows that integers name, and which of them are not padding."""
    table = knp.asarray(weight)
    valid(ids.dtype.kind in "iu", op, "input", str(ids.dtype), "integers that name rows")
    require(table.ndim == 2, op, table.shape, "a weight of shape (rows, width)")
    n = table.shape[0]
    valid(padding_idx is None or -n <= padding_idx < n, op, "padding_idx", padding_idx, f"one of {n} rows")
    if max_norm is not None:
        length = vector_norm(table, norm_type, -1)
        table = passing(table * knp.where(length > max_norm, max_norm / (length + 1e-7), 1), table)
    rows = knp.take(table, ids, axis=0)
    if by_frequency:
        often = knp.zeros(n, np.int64).at[ids.reshape((-1,))].add(1).astype(table.dtype)
        rows = passing(rows, rows / knp.take(often, ids, axis=0)[..., None])
    if padding_idx is None:
        return rows, knp.ones((*ids.shape, 1), np.bool_)
    kept = (ids != padding_idx % n)[..., None]
    return knp.where(kept, rows, stop_gradient(rows)), kept


@function("padding_idx", "norm_type", "scale_grad_by_freq", before=_named("embedding"))
def embedding(
    input: Any, weight: Any, padding_idx: int | None = None, max_norm: Any = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
) -> Any:  # fmt: skip
    """The rows of ``weight`` that the integers ``input`` name.

    Args:
        padding_idx: a row that gets no gradient.
        max_norm: rows whose p-norm, of p ``norm_type``, is larger are scaled to it; the gradient passes as if they were
            not. PyTorch writes the scaled rows to ``weight``.
        scale_grad_by_freq: divide a row's gradient by how often it is named.
    """
    return _looked_up("embedding", knp.asarray(input), weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)[0]


def _bags(given: Given) -> None:
    """Check known rows and where known bags begin."""
    _named("embedding_bag")(given)
    starts = known(given["offsets"]) if given.get("offsets") is not None else None
    if starts is not None:
        n = np.size(given["input"])
        rises = starts.ndim == 1 and not starts[:1].any() and not (np.diff([*starts, n]) < 0).any()
        valid(rises, "embedding_bag", "offsets", starts.tolist(), f"increasing numbers from 0 to {n}, the first 0")


SCATTERED: dict[str, tuple[str, float]] = {
    "sum": ("add", 0.0), "mean": ("add", 0.0), "prod": ("multiply", 1.0), "max": ("max", -math.inf),
    "min": ("min", math.inf),
}  # fmt: skip
"""How rows combine, and what there is of none."""


def _combined(rows: Any, ids: Any, count: int, how: str) -> Any:
    """Combine rows that have the same number below ``count``; others are left out."""
    way, neutral = SCATTERED[how]
    return getattr(knp.full((count, *rows.shape[1:]), neutral, rows.dtype).at[ids], way)(rows)


@function("norm_type", "scale_grad_by_freq", "mode", "include_last_offset", "padding_idx", before=_bags)
def embedding_bag(
    input: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """The mean, sum or largest of the rows of ``weight`` that each bag of integers names; zeros for an empty bag.

    Args:
        input: of shape (bags, longest); or of one axis, with all bags one after the other.
        offsets: where each bag begins in an input of one axis, in increasing order, the first 0.
        mode: ``mean``, ``sum`` or ``max``.
        per_sample_weights: of the input's shape, for ``mode="sum"``: factors of the rows.
        include_last_offset: whether the last of the offsets is the end of the last bag.
        padding_idx: a row that is left out of bags.

    Others are as in ``embedding``.
    """
    op = "embedding_bag"
    ids = knp.asarray(input)
    valid(mode in ("mean", "sum", "max"), op, "mode", mode, "mean, sum or max")
    valid(per_sample_weights is None or mode == "sum", op, "per_sample_weights", "an array", f"None for mode={mode!r}")
    fits = ids.ndim == (2 if offsets is None else 1)
    require(fits, op, ids.shape, "(bags, longest), or one axis with offsets")
    rows, kept = _looked_up(op, ids, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    if per_sample_weights is not None:
        factors = knp.asarray(per_sample_weights)
        require(factors.shape == ids.shape, op, f"{ids.shape} and {factors.shape}", "weights of the input's shape")
        rows = rows * factors[..., None]
    least = SCATTERED[mode][1]
    rows = knp.where(kept, rows, least)
    if offsets is None:
        count = kept.sum(axis=1)
        total = rows.max(axis=1, initial=least) if mode == "max" else rows.sum(axis=1)
    else:
        starts = knp.asarray(offsets)
        bags = max(starts.shape[0] - include_last_offset, 0)
        # as many bags have begun at a place as offsets are not above it
        begun = knp.zeros((ids.shape[0],), np.int64).at[starts].add(1).cumsum()
        own = knp.where(begun > 0, begun - 1, bags)
        count = knp.zeros((bags, 1), np.int64).at[own].add(kept)
        total = _combined(rows, own, bags, mode)
    if mode == "max":
        return knp.where(count > 0, total, 0)
    return total / knp.maximum(count, 1).astype(total.dtype) if mode == "mean" else total


def _counted(given: Given) -> None:
    ids = known(given["tensor"])
    count = given.get("num_classes", -1)
    if count != -1:
        valid(count > 0, "one_hot", "num_classes", count, "1 or more, or -1 to find it")
        names_classes(given, "one_hot", "tensor", count)
        return
    expected = "the number of classes, which is not known while a function is compiled"
    valid(ids is not None, "one_hot", "num_classes", count, expected)
    assert ids is not None
    valid(ids.size > 0, "one_hot", "num_classes", count, "the number of classes, as no elements do not show it")
    given["num_classes"] = int(ids.max()) + 1
    names_classes(given, "one_hot", "tensor", given["num_classes"])


@function("num_classes", before=_counted)
def one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """1 at the place that each integer names, 0 elsewhere, of its dtype, along a new last axis.

    Args:
        num_classes: by default one more than the largest of ``tensor``, where that is known.
    """
    ids = knp.asarray(tensor)
    valid(ids.dtype.kind in "iu", "one_hot", "tensor", str(ids.dtype), "integers that name classes")
    return (ids[..., None] == knp.arange(num_classes)).astype(ids.dtype)


@function("num_segments", "reduce")
def scatter(input: Any, index: Any, num_segments: int, reduce: str = "sum") -> Any:
    """Reduce the rows that one integer names, for each integer from 0 to below ``num_segments``.

    Args:
        input: of the shape of ``index``, and further axes of a row.
        index: integers; rows of others are left out.
        reduce: ``"sum"``, ``"mean"``, which is 0 of no rows, ``"max"``, ``"min"``; or ``"prod"``, which has no
            derivative.
    """
    like, ids = knp.asarray(input), knp.asarray(index)
    valid(reduce in SCATTERED, "scatter", "reduce", reduce, ", ".join(SCATTERED))
    valid(num_segments >= 0, "scatter", "num_segments", num_segments, "0 or more")
    fits = like.shape[: ids.ndim] == ids.shape
    require(fits, "scatter", f"{like.shape} and {ids.shape}", "an input whose shape begins with that of index")
    x = wide(like).reshape((ids.size, *like.shape[ids.ndim :]))
    ids = ids.reshape((ids.size,))
    ids = knp.where(ids < 0, num_segments, ids)
    made = _combined(x, ids, num_segments, reduce)
    if reduce == "mean":
        counts = knp.zeros(num_segments, x.dtype).at[ids].add(knp.ones(ids.shape, x.dtype))
        made = made / knp.maximum(counts, 1).reshape((num_segments, *(1,) * (x.ndim - 1)))
    return narrow(made, like)
