"""What the tests of neural-network functions share: the record of one call, and how it is checked.

A call is checked against an independent function of NumPy or SciPy in float64, its gradients against differences of
that, and where PyTorch is installed values, gradients and second derivatives against PyTorch's function of that name.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

import kernelforge as kf
from kernelforge import nn

TORCH = importlib.util.find_spec("torch") is not None
STEP = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A call of ``kernelforge.nn``.

    Attributes:
        name: of the function, here and in ``torch.nn.functional``.
        args: float64 arrays, which are also cast to float32; anything else as it is.
        expected: the same in NumPy or SciPy, of ``args`` and ``options``.
        options: arguments that are static or have no derivative.
        wrt: arguments to differentiate by.
        torch: what stands for PyTorch's function where it differs, of its functions and tensors; None for nothing.
        orders: how many derivatives are compared with PyTorch's.
        loose: by how much the result may be further off than usual.
    """

    name: str
    args: tuple[Any, ...]
    expected: Callable[..., Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrt: tuple[int, ...] = (0,)
    torch: Callable[..., Any] | str | None = "same"
    orders: int = 2
    loose: float = 1.0

    def __str__(self) -> str:
        shown = ",".join(f"{k}={np.shape(v) if np.ndim(v) else v}" for k, v in self.options.items())
        return f"{self.name}({shown})"

    def call(self, *args: Any) -> Any:
        return getattr(nn, self.name)(*args, **self.options)

    def given(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the arguments with ``inputs`` for those that ``wrt`` names."""
        args = list(self.args)
        for i, x in zip(self.wrt, inputs, strict=True):
            args[i] = x
        return args

    def cast(self, dtype: Any) -> list[Any]:
        wide = [isinstance(a, np.ndarray) and a.dtype == np.float64 for a in optree.tree_leaves(list(self.args))]
        leaves, tree = optree.tree_flatten(list(self.args), none_is_leaf=False)
        return tree.unflatten([a.astype(dtype) if w else a for a, w in zip(leaves, wide, strict=True)])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def uniform(*shape: int, seed: int = 0, low: float = 0.1, high: float = 0.9) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).uniform(low, high, size=shape)


def integers(high: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, high, shape)


def close(found: Any, expected: Any, tolerance: float, what: str) -> None:
    ours, theirs = optree.tree_leaves(found), optree.tree_leaves(expected)
    assert len(ours) == len(theirs), what
    for mine, other in zip(ours, theirs, strict=True):
        assert np.shape(mine) == np.shape(other), (what, np.shape(mine), np.shape(other))
        scale = np.max(np.abs(other), initial=1e-3, where=np.isfinite(other))
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance * scale, err_msg=what)


def floats(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in optree.tree_leaves(tree) if np.asarray(x).dtype.kind == "f"]


def weights(out: Any) -> list[np.ndarray]:
    return [normal(*o.shape, seed=90 + i) for i, o in enumerate(floats(out))]


def _scalar(fn: Callable[..., Any], cts: list[np.ndarray]) -> Callable[..., Any]:
    def scalar(*args: Any) -> Any:
        outs = [o for o in optree.tree_leaves(fn(*args)) if o.dtype.kind == "f"]
        return sum((o * c).sum() for o, c in zip(outs, cts, strict=True))

    return scalar


def check_value(case: Case, device: str, dtype: Any) -> None:
    tolerance = case.loose * (1e-9 if dtype == np.float64 else 3e-5)
    with kf.default_device(device):
        close(case.call(*case.cast(dtype)), case.expected(*case.args, **case.options), tolerance, str(case))


def check_derivatives(case: Case, device: str) -> None:
    """Check gradients in float64 against the slope of ``expected`` in a random direction, and against PyTorch."""
    with kf.default_device(device):
        _check_derivatives(case)


def _check_derivatives(case: Case) -> None:
    out = case.expected(*case.args, **case.options)
    cts = weights(out)
    moves = [normal(*np.shape(case.args[i]), seed=70 + i) for i in case.wrt]
    by = tuple(range(len(case.wrt)))
    scalar = _scalar(case.call, cts)
    gradient = kf.grad(lambda *inputs: scalar(*case.given(inputs)), argnums=by)

    def along(*inputs: Any) -> Any:
        return sum((g * v).sum() for g, v in zip(gradient(*inputs), moves, strict=True))

    def everything(*inputs: Any) -> Any:
        return gradient(*inputs), kf.grad(along, argnums=by)(*inputs) if case.orders > 1 else ()

    compiled = kf.jit(everything)
    first, second = compiled(*(case.args[i] for i in case.wrt))

    def moved(step: float) -> list[np.ndarray]:
        return [case.args[i] + step * move for i, move in zip(case.wrt, moves, strict=True)]

    ahead, behind = (
        sum(
            (o * c).sum()
            for o, c in zip(floats(case.expected(*case.given(moved(step)), **case.options)), cts, strict=True)
        )
        for step in (STEP, -STEP)
    )
    slope = sum((np.asarray(g) * v).sum() for g, v in zip(first, moves, strict=True))
    close(slope, (ahead - behind) / (2 * STEP), case.loose * 1e-5, f"slope of {case}")
    if case.orders > 1:
        near, far = (compiled(*moved(step))[0] for step in (STEP, -STEP))
        bend = [(np.asarray(a) - np.asarray(b)) / (2 * STEP) for a, b in zip(near, far, strict=True)]
        close(second, bend, case.loose * 1e-5, f"second derivative of {case}")
    if TORCH and case.torch is not None:
        theirs = by_torch(case, cts, moves)
        close(case.call(*case.args), theirs[0], case.loose * 1e-9, f"PyTorch's {case}")
        close(first, theirs[1], case.loose * 1e-8, f"PyTorch's gradient of {case}")
        if case.orders > 1:
            close(second, theirs[2], case.loose * 1e-7, f"PyTorch's second derivative of {case}")


def by_torch(case: Case, cts: list[np.ndarray], moves: list[np.ndarray]) -> tuple[Any, Any, Any]:
    """Return PyTorch's value, gradients and derivatives of the gradients along ``moves``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _by_torch(importlib.import_module("torch"), case, cts, moves)


def _by_torch(torch: Any, case: Case, cts: list[np.ndarray], moves: list[np.ndarray]) -> tuple[Any, Any, Any]:
    functional = torch.nn.functional
    fn = case.torch if callable(case.torch) else getattr(functional, case.name)
    given = [optree.tree_map(lambda x: torch.tensor(x) if isinstance(x, np.ndarray) else x, a) for a in case.args]
    for i in case.wrt:
        given[i].requires_grad_()
    options = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in case.options.items()}
    out = fn(functional, *given, **options) if callable(case.torch) else fn(*given, **options)
    outs = [o for o in optree.tree_leaves(out) if o.is_floating_point()]
    leaves = [given[i] for i in case.wrt]
    total = sum((o * torch.tensor(c)).sum() for o, c in zip(outs, cts, strict=True))
    first = torch.autograd.grad(total, leaves, create_graph=case.orders > 1, allow_unused=True)
    first = [torch.zeros_like(x) if g is None else g for g, x in zip(first, leaves, strict=True)]
    second: list[Any] = []
    if case.orders > 1:
        along = sum((g * torch.tensor(v)).sum() for g, v in zip(first, moves, strict=True))
        found = torch.autograd.grad(along, leaves, allow_unused=True) if along.requires_grad else [None] * len(leaves)
        second = [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
    values = optree.tree_map(lambda t: t.detach().numpy(), out)
    return values, tuple(g.detach().numpy(force=True) for g in first), tuple(g.numpy(force=True) for g in second)
