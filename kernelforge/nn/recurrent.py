"""Recurrent layers over ``kf.scan``: one layer in one direction, of which others are made.

Weights have PyTorch's layouts: ``weight_ih`` (gates * hidden, inputs), ``weight_hh`` (gates * hidden, hidden), the
gates in PyTorch's order. Inputs are (length, batch, inputs), or (length, inputs). ``reverse=True`` runs from the end:
the other half of a bidirectional layer. PyTorch's modules stack such layers; of functions it has the cells only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kernelforge.numpy as knp
from kernelforge.control import scan
from kernelforge.nn.activations import relu
from kernelforge.nn.calls import function, require, valid

Fn = Callable[..., Any]


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


@function("nonlinearity", "reverse")
def rnn(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None,
    nonlinearity: str = "tanh", reverse: bool = False,
) -> Any:  # fmt: skip
    """Run ``rnn_cell`` along axis 0; return the states (length, ..., hidden) and the last one."""
    step = _rnn_step(nonlinearity)

    def body(h: Any, z: Any) -> Any:
        h = step(z, _project("rnn", h, weight_hh, bias_hh))
        return h, h

    last, states = scan(body, hx, _project("rnn", input, weight_ih, bias_ih), reverse=reverse)
    return states, last


@function("reverse")
def lstm(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None,
    reverse: bool = False,
) -> Any:  # fmt: skip
    """Run ``lstm_cell`` along axis 0 from ``hx``, (h, c); return all h and the last (h, c)."""

    def body(state: Any, z: Any) -> Any:
        h, c = _lstm_step(z, _project("lstm", state[0], weight_hh, bias_hh), state[1])
        return (h, c), h

    last, states = scan(body, tuple(hx), _project("lstm", input, weight_ih, bias_ih), reverse=reverse)
    return states, last


@function("reverse")
def gru(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None,
    reverse: bool = False,
) -> Any:  # fmt: skip
    """Run ``gru_cell`` along axis 0; return the states (length, ..., hidden) and the last one."""

    def body(h: Any, z: Any) -> Any:
        h = _gru_step(z, _project("gru", h, weight_hh, bias_hh), h)
        return h, h

    last, states = scan(body, hx, _project("gru", input, weight_ih, bias_ih), reverse=reverse)
    return states, last
