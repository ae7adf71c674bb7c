"""Recurrent layers over ``kf.scan``: one layer, or several over each other, in one direction or in both.

Weights have PyTorch's layouts: ``weight_ih`` (gates * hidden, inputs), ``weight_hh`` (gates * hidden, hidden), the
gates in PyTorch's order. Inputs are (length, batch, inputs), or (length, inputs).

*One layer*: weights are arrays, and states have the shape (batch, hidden). ``reverse=True`` runs it from the end.
*Several*: weights are lists, an array for each layer, or with ``bidirectional`` two, forwards and backwards, in the
order of the parameters of PyTorch's modules. States are (layers * directions, batch, hidden). Each layer reads the
states of the one before, those of both directions side by side, after ``dropout``, with a key as there.

States begin as zeros where ``hx`` is None. All is computed in the dtype that inputs, states and weights promote to.

*Sequences of several lengths* are padded, and ``lengths`` (batch,) says where each ends: states stay as they are in the
padding, outputs are zeros there. That is what PyTorch does with packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

import kernelforge.numpy as knp
from kernelforge.control import scan
from kernelforge.dtypes import as_dtype, promote
from kernelforge.nn.activations import relu
from kernelforge.nn.calls import Fn, Given, draws_key, function, known, require, valid
from kernelforge.nn.masking import dropout as masked
from kernelforge.random import fold_in


def _project(op: str, x: Any, weight: Any, bias: Any) -> Any:
    x, w = knp.asarray(x), knp.asarray(weight)
    require(x.shape[-1] == w.shape[-1], op, f"{x.shape} and {w.shape}", "a weight of (gates * hidden, inputs)")
    made = x @ w.T
    return made if bias is None else made + bias


def _rnn_step(nonlinearity: str) -> Fn:
    valid(nonlinearity in ("tanh", "relu"), "rnn", "nonlinearity", nonlinearity, "tanh or relu")
    return lambda z, rest: (knp.tanh if nonlinearity == "tanh" else relu)(z + rest)


def _lstm_step(z: Any, rest: Any, c: Any) -> tuple[Any, Any]:
    i, f, g, o = knp.split(z + rest, 4, axis=-1)
    c = knp.sigmoid(f) * c + knp.sigmoid(i) * knp.tanh(g)
    return knp.sigmoid(o) * knp.tanh(c), c


def _gru_step(z: Any, rest: Any, h: Any) -> Any:
    (r, u, n), (hr, hu, hn) = knp.split(z, 3, axis=-1), knp.split(rest, 3, axis=-1)
    update = knp.sigmoid(u + hu)
    new = knp.tanh(n + knp.sigmoid(r + hr) * hn)
    return new + update * (h - new)


@function("nonlinearity")
def rnn_cell(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None,
    nonlinearity: str = "tanh",
) -> Any:  # fmt: skip
    """Return the next state of an Elman network: the non-linearity of both linear maps' sum."""
    z, rest = _project("rnn_cell", input, weight_ih, bias_ih), _project("rnn_cell", hx, weight_hh, bias_hh)
    return _rnn_step(nonlinearity)(z, rest)


@function()
def lstm_cell(input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None) -> Any:
    """Return the next (h, c) of a long short-term memory after ``hx``; Hochreiter and Schmidhuber 1997."""
    h, c = hx
    z, rest = _project("lstm_cell", input, weight_ih, bias_ih), _project("lstm_cell", h, weight_hh, bias_hh)
    return _lstm_step(z, rest, c)


@function()
def gru_cell(input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None) -> Any:
    """Return the next state of a gated recurrent unit; Cho et al. 2014, the reset gate after the product."""
    z, rest = _project("gru_cell", input, weight_ih, bias_ih), _project("gru_cell", hx, weight_hh, bias_hh)
    return _gru_step(z, rest, knp.asarray(hx))


Cell = Callable[..., tuple[Any, ...]]
"""From both projections and the state to the new state, of which the first part is the output."""


def _initial(op: str, x: Any, hx: Any, lead: tuple[int, ...], widths: Sequence[int]) -> tuple[Any, ...]:
    """Return the parts of the state to begin with, each of shape (*lead, batch, its width)."""
    shapes = [(*lead, *x.shape[1:-1], n) for n in widths]
    if hx is None:
        return tuple(knp.zeros(shape, x.dtype) for shape in shapes)
    states = tuple(knp.asarray(h).astype(x.dtype) for h in (hx if len(widths) > 1 else (hx,)))
    for h, shape in zip(states, shapes, strict=True):
        require(h.shape == shape, op, h.shape, f"states of shape {shape}")
    return states


def _layer(
    op: str, cell: Cell, x: Any, state: tuple[Any, ...], weights: Sequence[Any], inside: Any, reverse: bool
) -> Any:
    weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = weights

    def body(state: tuple[Any, ...], seen: Any) -> Any:
        z, here = seen
        out, *rest = cell(z, _project(op, state[0], weight_hh, bias_hh), *state)
        new = (out if weight_hr is None else _project(op, out, weight_hr, None), *rest)
        if here is None:
            return new, new[0]
        kept = tuple(knp.where(here, a, b) for a, b in zip(new, state, strict=True))
        return kept, knp.where(here, new[0], 0)

    last, states = scan(body, state, (_project(op, x, weight_ih, bias_ih), inside), reverse=reverse)
    return states, last


def _run(op: str, cell: Cell, parts: int, given: Given) -> tuple[Any, Any]:
    """Run the layers of a call, whose arguments are ``given``; return the outputs and the last states."""
    given = _common(given)
    x, bidirectional = given["input"], given["bidirectional"]
    require(x.ndim in (2, 3), op, x.shape, "(length, batch, inputs), or without the batch")
    swapped = given["batch_first"] and x.ndim == 3
    x = knp.swapaxes(x, 0, 1) if swapped else x
    several = isinstance(given["weight_ih"], list | tuple)
    valid(
        several or not bidirectional, op, "weight_ih", "an array", "a list of two for each layer, for both directions"
    )
    count = len(given["weight_ih"]) if several else 1
    columns = []
    for name in WEIGHTS:
        own = given.get(name)
        found = own if several and own is not None else [own] * count
        valid(len(found) == count, op, name, f"a list of {len(found)}", f"as many as weight_ih has, {count}")
        columns.append(found)
    rows = list(zip(*columns, strict=True))
    directions = 2 if bidirectional else 1
    valid(count > 0 and count % directions == 0, op, "weight_ih", f"a list of {count}", f"{directions} for each layer")
    width = knp.asarray(rows[0][1]).shape[-1]
    hidden = width if rows[0][-1] is None else knp.asarray(rows[0][-1]).shape[-1]
    state = _initial(op, x, given["hx"], (count,) if several else (), (width, hidden)[:parts])
    inside = _inside(op, x, given["lengths"])
    x = x if inside is None else knp.where(inside, x, 0)  # NaN in the padding must not reach gradients of weights
    lasts = []
    for i in range(0, count, directions):
        if i:
            x = masked(x, given["dropout"], key=_of_layer(given["dropout_key"], i // directions))
        made = []
        for j in range(i, i + directions):
            own = tuple(h[j] for h in state) if several else state
            states, last = _layer(op, cell, x, own, rows[j], inside, given["reverse"] != (j > i))
            made.append(states)
            lasts.append(last)
        x = knp.concatenate(made, axis=-1) if bidirectional else made[0]
    ends = tuple(knp.stack(h) for h in zip(*lasts, strict=True)) if several else lasts[0]
    return knp.swapaxes(x, 0, 1) if swapped else x, ends


def _common(given: Given) -> Given:
    """Return the arguments with all arrays in the dtype that they promote to."""
    arrays: Any = {"input": knp.asarray(given["input"])} | {name: given.get(name) for name in ("hx", *WEIGHTS)}
    dtype = promote([as_dtype(knp.asarray(v).dtype) for v in optree.tree_leaves(arrays)], [])
    dtype = np.dtype(np.float64) if dtype.kind in "biu" else dtype
    cast: Any = optree.tree_map(lambda v: knp.asarray(v).astype(dtype), arrays)
    made: Given = given | cast
    return made


def _inside(op: str, x: Any, lengths: Any) -> Any:
    """Return where sequences have not ended, of shape (length, batch, 1), or None where all are whole."""
    if lengths is None:
        return None
    ends = knp.asarray(lengths)
    require(ends.shape == x.shape[1:-1], op, ends.shape, f"lengths of shape {x.shape[1:-1]}")
    return (knp.arange(x.shape[0]).reshape((-1, *(1,) * ends.ndim)) < ends)[..., None]


def _of_layer(key: Any, layer: int) -> Any:
    return None if key is None else fold_in(key, layer)


def _checked(given: Given) -> None:
    """Check known lengths, and draw the key of dropout."""
    ends = known(given["lengths"]) if given.get("lengths") is not None else None
    if ends is not None:
        shape = np.shape(given["input"])
        length = shape[1 if given.get("batch_first") and len(shape) == 3 else 0]
        fits = ((ends >= 0) & (ends <= length)).all()
        valid(bool(fits), "lengths of sequences", "lengths", ends.tolist(), f"integers from 0 to {length}")
    p = given.get("dropout", 0.0)
    several = isinstance(given["weight_ih"], list | tuple) and len(given["weight_ih"]) > 1
    if several and not (isinstance(p, int | float) and p == 0):
        draws_key(given, "dropout_key")


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
STATIC = ("reverse", "bidirectional", "batch_first")


@function(*STATIC, "nonlinearity", before=_checked)
def rnn(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None,
    nonlinearity: str = "tanh", reverse: bool = False, bidirectional: bool = False, batch_first: bool = False,
    dropout: Any = 0.0, dropout_key: Any = None, lengths: Any = None,
) -> Any:  # fmt: skip
    """Run ``rnn_cell`` along axis 0; return the states (length, ..., hidden) and the last ones.

    Args:
        batch_first: the input and the states are (batch, length, ...).
        lengths: of each sequence, where they are padded.
    """
    given = locals()
    step = _rnn_step(nonlinearity)
    states, last = _run("rnn", lambda z, rest, h: (step(z, rest),), 1, given)
    return states, last[0]


@function(*STATIC, before=_checked)
def lstm(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None,
    reverse: bool = False, bidirectional: bool = False, batch_first: bool = False, dropout: Any = 0.0,
    dropout_key: Any = None, weight_hr: Any = None, lengths: Any = None,
) -> Any:  # fmt: skip
    """Run ``lstm_cell`` along axis 0 from ``hx``, (h, c); return all h and the last (h, c).

    Args:
        batch_first: the input and the states are (batch, length, ...).
        weight_hr: of shape (projected, hidden): h is its product with what the cell gives, PyTorch's ``proj_size``.
        lengths: of each sequence, where they are padded.
    """
    given = locals()
    return _run("lstm", lambda z, rest, h, c: _lstm_step(z, rest, c), 2, given)


@function(*STATIC, before=_checked)
def gru(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None,
    reverse: bool = False, bidirectional: bool = False, batch_first: bool = False, dropout: Any = 0.0,
    dropout_key: Any = None, lengths: Any = None,
) -> Any:  # fmt: skip
    """Run ``gru_cell`` along axis 0; return the states (length, ..., hidden) and the last ones.

    Args:
        batch_first: the input and the states are (batch, length, ...).
        lengths: of each sequence, where they are padded.
    """
    given = locals()
    states, last = _run("gru", lambda z, rest, h: (_gru_step(z, rest, h),), 1, given)
    return states, last[0]
