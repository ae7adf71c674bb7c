"""Calls of every function with shapes and options that are drawn: what each is compared with, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special as ss
from hypothesis import strategies as st

from tests.nn import elementwise
from tests.nn.case import Case

DRAWN: dict[str, Callable[[Draw], Case]] = {}


class Draw:
    """What hypothesis chooses, and arrays of it."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._rng = np.random.default_rng(data.draw(st.integers(0, 1 << 16), label="seed"))

    def whole(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def real(self, low: float, high: float) -> float:
        return round(float(self._rng.uniform(low, high)), 3)

    def one(self, *options: Any) -> Any:
        return self._data.draw(st.sampled_from(options))

    def flag(self) -> bool:
        return self.one(False, True)

    def shape(self, least: int, most: int, low: int = 1, high: int = 5) -> tuple[int, ...]:
        return tuple(self.whole(low, high) for _ in range(self.whole(least, most)))

    def axis(self, shape: tuple[int, ...]) -> int:
        return self.whole(-len(shape), len(shape) - 1)

    def each(self, count: int, low: int, high: int) -> int | tuple[int, ...]:
        """Draw a number for all axes, or one for each."""
        return tuple(self.whole(low, high) for _ in range(count)) if self.flag() else self.whole(low, high)

    def normal(self, *shape: int) -> np.ndarray:
        return np.asarray(self._rng.normal(size=shape))

    def uniform(self, *shape: int, low: float = 0.1, high: float = 0.9) -> np.ndarray:
        return self._rng.uniform(low, high, shape)

    def integers(self, high: int, *shape: int, low: int = 0) -> np.ndarray:
        return self._rng.integers(low, high, shape)

    def signs(self, *shape: int) -> np.ndarray:
        return np.sign(self._rng.normal(size=shape))

    def some(self, **options: Any) -> dict[str, Any]:
        """Leave out some of the options."""
        return {k: v for k, v in options.items() if self.flag()}


def drawn(*names: str) -> Callable[[Any], Any]:
    """Enter a function of a ``Draw`` and a name."""

    def enter(fn: Any) -> Any:
        DRAWN.update({name: lambda d, name=name: fn(d, name) for name in names})
        return fn

    return enter


def _where_positive(negative: Any) -> Any:
    return lambda x, *a: np.where(x > 0, x, negative(x, *a))


MAPS: dict[str, tuple[Any, dict[str, tuple[float, float]], Any]] = {
    "relu": (lambda x: np.maximum(x, 0), {}, "same"),
    "relu6": (lambda x: np.clip(x, 0, 6), {}, "same"),
    "hardtanh": (lambda x, min_val=-1.0, max_val=1.0: np.clip(x, min_val, max_val),
                 {"min_val": (-2, -0.1), "max_val": (0.1, 2)}, "same"),
    "leaky_relu": (lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x),
                   {"negative_slope": (-1, 1)}, "same"),
    "rrelu": (lambda x, lower=1 / 8, upper=1 / 3: np.where(x > 0, x, (lower + upper) / 2 * x),
              {"lower": (0, 0.3), "upper": (0.4, 1)}, "same"),
    "elu": (lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(x)), {"alpha": (0.1, 2)}, "same"),
    "selu": (lambda x: elementwise.LAMBDA * np.where(x > 0, x, elementwise.ALPHA * np.expm1(x)), {}, "same"),
    "celu": (lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(x / alpha)), {"alpha": (0.1, 2)}, "same"),
    "quick_gelu": (lambda x: x * ss.expit(1.702 * x), {}, lambda f, x: x * f.sigmoid(1.702 * x)),
    "sigmoid": (ss.expit, {}, "same"),
    "tanh": (np.tanh, {}, "same"),
    "silu": (lambda x: x * ss.expit(x), {}, "same"),
    "swish": (lambda x: x * ss.expit(x), {}, lambda f, x: f.silu(x)),
    "mish": (lambda x: x * np.tanh(np.logaddexp(x, 0)), {}, "same"),
    "lisht": (lambda x: x * np.tanh(x), {}, lambda f, x: x * x.tanh()),
    "trelu": (lambda x, theta=1.0: np.where(x > theta, x, 0), {"theta": (0, 2)},
              lambda f, x, theta=1.0: f.threshold(x, theta, 0)),
    "logcosh": (lambda x: np.log(np.cosh(x)), {}, lambda f, x: x.cosh().log()),
    "softplus": (lambda x, beta=1.0, threshold=20.0: np.where(
        beta * x > threshold, x, np.logaddexp(beta * x, 0) / beta),
                 {"beta": (0.2, 3), "threshold": (0.5, 30)}, "same"),
    "logsigmoid": (ss.log_expit, {}, "same"),
    "softsign": (lambda x: x / (1 + np.abs(x)), {}, "same"),
    "tanhshrink": (lambda x: x - np.tanh(x), {}, "same"),
    "hardshrink": (lambda x, lambd=0.5: np.where(np.abs(x) > lambd, x, 0), {"lambd": (0, 2)}, "same"),
    "softshrink": (lambda x, lambd=0.5: np.sign(x) * np.maximum(np.abs(x) - lambd, 0), {"lambd": (0, 2)}, "same"),
    "hardsigmoid": (lambda x: np.clip(x + 3, 0, 6) / 6, {}, "same"),
    "hardswish": (lambda x: x * np.clip(x + 3, 0, 6) / 6, {}, "same"),
}  # fmt: skip
"""Of each map its formula, the ranges of its options, and PyTorch's function."""


@drawn(*MAPS)
def _map(d: Draw, name: str) -> Case:
    expected, ranges, torch = MAPS[name]
    x = np.asarray(d.real(0.5, 4) * d.normal(*d.shape(0, 4)))
    options = d.some(**{k: d.real(*v) for k, v in ranges.items()})
    # PyTorch derives hardsigmoid once; others at a kink would be compared with a difference across it
    return Case(name, (x,), expected, options, torch=torch, orders=1 if name == "hardsigmoid" else 2, loose=20)


@drawn("threshold")
def _threshold(d: Draw, name: str) -> Case:
    low, value = d.real(-1, 1), d.real(-3, 3)
    return Case(name, (d.normal(*d.shape(0, 4)), low, value), lambda x, low, value: np.where(x > low, x, value))


@drawn("prelu")
def _prelu(d: Draw, name: str) -> Case:
    x = d.normal(*d.shape(1, 4))
    w = d.normal(x.shape[1] if x.ndim > 1 and d.flag() else 1)
    return Case(name, (x, w), lambda x, w: np.where(x > 0, x, (elementwise._column(w, x) if x.ndim > 1 else w) * x),
                wrt=(0, 1))  # fmt: skip


@drawn("gelu")
def _gelu(d: Draw, name: str) -> Case:
    def gelu(x, approximate="none"):
        tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return x * ss.ndtr(x) if approximate == "none" else tanh

    return Case(name, (np.asarray(2 * d.normal(*d.shape(0, 3))),), gelu, d.some(approximate=d.one("none", "tanh")))


GATES = {"glu": ss.expit, "reglu": lambda b: np.maximum(b, 0), "geglu": lambda b: b * ss.ndtr(b),
         "swiglu": lambda b: b * ss.expit(b)}  # fmt: skip


@drawn(*GATES)
def _gates(d: Draw, name: str) -> Case:
    shape = list(d.shape(1, 4))
    dim = d.axis(tuple(shape))
    shape[dim] = 2 * d.whole(1, 3)
    gate = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "swiglu": "silu"}[name]

    def theirs(f: Any, x: Any, dim: int) -> Any:
        a, b = x.chunk(2, dim)
        return a * getattr(f, gate)(b)

    return Case(name, (d.normal(*shape),), elementwise._gated(GATES[name]), {"dim": dim}, torch=theirs)


@drawn("softmax", "log_softmax", "softmin")
def _softmax(d: Draw, name: str) -> Case:
    shape = d.shape(0, 4)
    dim = d.axis(shape) if shape else d.one(0, -1)
    fn = {"softmax": ss.softmax, "log_softmax": ss.log_softmax, "softmin": lambda x, axis: ss.softmax(-x, axis)}[name]

    def expected(x: Any, dim: int) -> Any:
        return fn(x.reshape(x.shape or 1), axis=dim).reshape(x.shape)

    return Case(name, (np.asarray(5 * d.normal(*shape)),), expected, {"dim": dim}, loose=5)


@drawn("logsumexp")
def _logsumexp(d: Draw, name: str) -> Case:
    shape = d.shape(1, 4)
    dim = d.one(d.axis(shape), tuple(range(len(shape))))
    return Case(name, (5 * d.normal(*shape),), lambda x, dim, keepdim: ss.logsumexp(x, axis=dim, keepdims=keepdim),
                {"dim": dim, "keepdim": d.flag()},
                torch=lambda f, x, dim, keepdim: x.logsumexp(dim, keepdim))  # fmt: skip


@drawn("normalize")
def _normalize(d: Draw, name: str) -> Case:
    shape = d.shape(2, 4)
    options = d.some(p=d.one(1.0, 2.0, 3.0, 0.5, np.inf), dim=d.axis(shape))
    expected = lambda x, p=2.0, dim=1: x / (np.abs(x) ** p).sum(dim, keepdims=True) ** (1 / p)  # noqa: E731
    largest = lambda x, p, dim=1: x / np.abs(x).max(dim, keepdims=True)  # noqa: E731
    return Case(name, (d.normal(*shape),), largest if options.get("p") == np.inf else expected, options, loose=100)


def _affine(d: Draw, *shape: int) -> list[Any]:
    # PyTorch has no second derivatives with one of them alone
    return [d.uniform(*shape), d.normal(*shape)] if d.flag() else [None, None]


def _given(*args: Any) -> tuple[int, ...]:
    """Return the places of arrays of floats."""
    return tuple(i for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype == np.float64)


@drawn("layer_norm", "rms_norm")
def _last(d: Draw, name: str) -> Case:
    shape = (*d.shape(0, 2), *d.shape(1, 2, low=2))
    own = shape[-d.whole(1, min(2, len(shape))) :]
    w, b = _affine(d, *own)
    eps = d.one(1e-5, 1e-2)
    if name == "layer_norm":
        args: tuple[Any, ...] = (d.normal(*shape) + 1, own, w, b, eps)
        return Case(name, args, elementwise._layer_norm, wrt=_given(*args), loose=1000)
    args = (d.normal(*shape), own, w, eps)
    rms = lambda x, s, w, eps: elementwise._rms_norm(x, s, 1 if w is None else w, eps)  # noqa: E731
    return Case(name, args, rms, wrt=_given(*args), loose=100)


@drawn("batch_norm", "instance_norm", "group_norm")
def _by_channel(d: Draw, name: str) -> Case:
    c = d.whole(1, 4)
    shape = (d.whole(2, 3), c, *d.shape(1, 2, low=2, high=4))
    w, b = _affine(d, c)
    x, eps = d.normal(*shape), d.one(1e-5, 1e-2)

    def scaled(y: Any, w: Any, b: Any) -> Any:
        return y * (1 if w is None else elementwise._column(w, y)) + (0 if b is None else elementwise._column(b, y))

    if name == "group_norm":
        groups = d.one(*(g for g in range(1, c + 1) if c % g == 0))
        args: tuple[Any, ...] = (x, groups, w, b, eps)
        expected: Any = lambda x, g, w, b, e: scaled(  # noqa: E731
            elementwise._norm(x.reshape(len(x), g, -1), (2,), e).reshape(x.shape), w, b
        )
        return Case(name, args, expected, wrt=_given(*args), loose=1000)
    batch = name == "batch_norm"
    mean, var = (d.normal(c), d.uniform(c)) if d.flag() else (None, None)
    own = d.flag() or mean is None
    momentum = d.real(0.05, 1)
    axes = (0, *range(2, x.ndim)) if batch else tuple(range(2, x.ndim))

    def expected(x: Any, mean: Any, var: Any, w: Any, b: Any, own: bool, momentum: float, eps: float) -> Any:
        if own:
            y = elementwise._norm(x, axes, eps)
            news = [x.mean(axes), x.var(axes, ddof=1)]
            news = news if batch else [v.mean(0) for v in news]
            mean, var = (
                None if o is None else (1 - momentum) * o + momentum * n for o, n in zip((mean, var), news, strict=True)
            )
        else:
            y = (x - elementwise._column(mean, x)) / np.sqrt(elementwise._column(var, x) + eps)
        y = scaled(y, w, b)
        return y if mean is None and not batch else (y, mean, var)

    def theirs(f: Any, x: Any, mean: Any, var: Any, w: Any, b: Any, own: bool, momentum: float, eps: float) -> Any:
        mean, var = (None if v is None else v.detach().clone() for v in (mean, var))
        y = getattr(f, name)(x, mean, var, w, b, own, momentum, eps)
        # PyTorch's statistics carry no derivative
        return (y, mean, var) if mean is not None else (y, None, None) if batch else y

    args = (x, mean, var, w, b, own, momentum, eps)
    wrt = tuple(i for i in _given(*args) if i not in (1, 2))
    compared = theirs if mean is None or not own else None
    return Case(name, args, expected, wrt=wrt, torch=compared, loose=1000)


@drawn("local_response_norm")
def _response(d: Draw, name: str) -> Case:
    x = d.normal(*d.shape(3, 4))
    return Case(name, (x, d.whole(1, 6)), elementwise._response_norm,
                d.some(alpha=d.real(0.01, 1), beta=d.real(0.3, 1), k=d.real(0.5, 2)))  # fmt: skip


@drawn("linear")
def _linear(d: Draw, name: str) -> Case:
    lead, n, m = d.shape(0, 3), d.whole(1, 5), d.whole(1, 5)
    args = (d.normal(*lead, n), d.normal(m, n), *([d.normal(m)] if d.flag() else []))
    return Case(name, args, lambda x, w, b=0: x @ w.T + b, wrt=_given(*args))


@drawn("bilinear")
def _bilinear(d: Draw, name: str) -> Case:
    lead, n, k, m = d.shape(1, 2), d.whole(1, 4), d.whole(1, 4), d.whole(1, 4)
    args = (d.normal(*lead, n), d.normal(*lead, k), d.normal(m, n, k), *([d.normal(m)] if d.flag() else []))
    return Case(name, args, lambda x, y, w, b=0: np.einsum("...i,oij,...j->...o", x, w, y) + b, wrt=_given(*args))


@drawn("embedding")
def _embedding(d: Draw, name: str) -> Case:
    n = d.whole(1, 6)
    ids, table = d.integers(n, *d.shape(0, 3)), d.normal(n, d.whole(1, 5))
    options = d.some(padding_idx=d.whole(-n, n - 1), scale_grad_by_freq=True)
    # the slope of the values is not what these options make of the gradient
    return Case(name, (ids, table), lambda i, t, **_: t[i], options, wrt=() if options else (1,))


@drawn("embedding_bag")
def _bags(d: Draw, name: str) -> Case:
    n, width, mode = d.whole(2, 6), d.whole(1, 4), d.one("sum", "mean", "max")
    offsets = None
    options: dict[str, Any] = {"mode": mode}
    if d.flag():
        ids = d.integers(n, d.whole(1, 3), d.whole(1, 4))
    else:
        ids = d.integers(n, d.whole(1, 8))
        offsets = np.sort(np.array([0, *d.integers(len(ids) + 1, d.whole(0, 3))]))
        if d.flag():
            offsets, options["include_last_offset"] = np.append(offsets, len(ids)), True
    if d.flag():
        options["padding_idx"] = d.whole(-n, n - 1)
    factors = d.normal(*ids.shape) if mode == "sum" and d.flag() else None
    options["offsets"], options["per_sample_weights"] = offsets, factors

    def expected(ids, table, mode, offsets, per_sample_weights, include_last_offset=False, padding_idx=None):
        if offsets is not None:
            ends = offsets[1:] if include_last_offset else [*offsets[1:], len(ids)]
            places = [np.arange(a, b) for a, b in zip(offsets, ends, strict=False)]
        else:
            places = np.arange(ids.size).reshape(ids.shape)
        made = np.zeros((len(places), table.shape[1]))
        for bag, at in enumerate(places):
            own = [p for p in at if padding_idx is None or ids.flat[p] != padding_idx % len(table)]
            rows = table[ids.flat[own]] * (1 if factors is None else factors.flat[own][:, None])
            made[bag] = 0 if not own else {"sum": np.sum, "mean": np.mean, "max": np.max}[mode](rows, axis=0)
        return made

    return Case(name, (ids, d.normal(n, width)), expected, options, wrt=(1,), orders=1)


@drawn("one_hot")
def _one_hot(d: Draw, name: str) -> Case:
    n = d.whole(1, 6)
    ids = d.integers(n, *d.shape(0, 3))
    return Case(name, (ids,), lambda i, num_classes=0: np.eye(num_classes or i.max() + 1, dtype=int)[i],
                d.some(num_classes=n), wrt=())  # fmt: skip
