"""Linear and bilinear maps, embeddings."""

from __future__ import annotations

from typing import Any

import kernelforge.numpy as knp
from kernelforge.jit import jit
from kernelforge.nn.calls import require
from kernelforge.transforms import stop_gradient


@jit
def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """``input @ weight.T + bias``, with ``weight`` of shape (outputs, inputs)."""
    x, w = knp.asarray(input), knp.asarray(weight)
    fits = x.ndim > 0 and w.ndim in (1, 2) and x.shape[-1] == w.shape[-1]
    require(fits, "linear", f"{x.shape} and {w.shape}", "a weight of shape (outputs, inputs), as the last axis has")
    made = x @ w.T
    return made if bias is None else made + bias


@jit
def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    """``input1 @ weight[o] @ input2`` for each output o, with ``weight`` of shape (outputs, inputs1, inputs2)."""
    made = knp.einsum("...i,oij,...j->...o", input1, weight, input2)
    return made if bias is None else made + bias


@jit(static_argnames="padding_idx")
def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Any:
    """The rows of ``weight`` that the integers ``input`` name.

    Args:
        padding_idx: a row that gets no gradient.
    """
    ids, table = knp.asarray(input), knp.asarray(weight)
    rows = knp.take(table, ids, axis=0)
    if padding_idx is None:
        return rows
    return knp.where((ids == padding_idx % table.shape[0])[..., None], stop_gradient(rows), rows)


@jit(static_argnames="num_classes")
def one_hot(tensor: Any, num_classes: int) -> Any:
    """1 at the place that each integer names, 0 elsewhere, of its dtype, along a new last axis.

    PyTorch finds ``num_classes`` from the values, which a compiled function cannot. Other integers give no 1.
    """
    ids = knp.asarray(tensor)
    return (ids[..., None] == knp.arange(num_classes)).astype(ids.dtype)
