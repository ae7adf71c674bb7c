"""What a workload is. Imported by the peers' interpreters too, so nothing here needs more than NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Outputs = tuple[Array, ...]

ITEMSIZE = {"f32": 4, "f64": 8, "bf16": 2}
TOLERANCE = {"f32": 1e-4, "f64": 1e-11, "bf16": 1e-2}
"""Norm-relative distances from float64 below which a result counts as right: far above what any order of summation
costs, far below what a wrong formula or a narrower type gives."""
PAGE = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """One thing to compute, the same for everyone.

    Attributes:
        name: what it is called on the command line; ``base`` is the name less ``.bwd``.
        group: its family.
        title: formula and sizes, for people.
        make: draws the inputs, the same for each candidate; values of bf16 come as f32.
        fn: the function in NumPy, of any dtype: what kernelforge compiles and NumPy runs.
        oracle: what is right, in NumPy for float64 inputs; of ``.bwd`` it is written by hand.
        dtype: of inputs and outputs.
        flops: of the products.
        wrt: which inputs a ``.bwd`` gives gradients for; its last input is the cotangent.
        check: for results that are not the oracle's: returns the error from inputs and outputs.
        moved: the bytes read and written, known once the oracle has run.
    """

    name: str
    group: str
    title: str
    make: Callable[[Draw], Sequence[Array]]
    fn: Callable[..., Any]
    oracle: Callable[..., Any]
    dtype: str = "f32"
    flops: float = 0.0
    wrt: tuple[int, ...] = ()
    check: Callable[[Sequence[Array], Sequence[Array]], float] | None = None
    moved: tuple[float, float] = (0.0, 0.0)

    @property
    def base(self) -> str:
        return self.name.removesuffix(".bwd")

    def inputs(self, seed: int) -> list[Array]:
        """Draw the inputs, in the dtype that NumPy has for them."""
        return list(self.make(Draw(seed, np.float64 if self.dtype == "f64" else np.float32)))

    def expected(self, inputs: Sequence[Array]) -> Outputs:
        """Return the outputs in float64."""
        return outputs(self.oracle(*(x.astype(np.float64) if x.dtype.kind == "f" else x for x in inputs)))

    def traffic(self, inputs: Sequence[Array], results: Sequence[Array]) -> tuple[float, float]:
        """Return the least bytes to read and to write."""
        size = ITEMSIZE[self.dtype]

        def total(arrays: Sequence[Array]) -> float:
            return float(sum(a.size * (size if a.dtype.kind == "f" else a.itemsize) for a in arrays))

        return total(inputs), total(results)


class Draw:
    """Draws aligned arrays from a seed."""

    def __init__(self, seed: int, dtype: Any) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._dtype = dtype

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return aligned(self._rng.standard_normal(shape, dtype=self._dtype) * self._dtype(scale))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        return aligned(self._rng.random(shape, dtype=self._dtype) * self._dtype(high - low) + self._dtype(low))

    def integers(self, high: int, *shape: int) -> Array:
        return aligned(self._rng.integers(high, size=shape))

    def rounded(self, *shape: int) -> Array:
        """Draw values that bf16 holds exactly, as f32."""
        bits = self.normal(*shape).view(np.uint32)
        bits &= np.uint32(0xFFFF0000)
        return bits.view(np.float32)


def aligned(array: Array) -> Array:
    """Copy to the start of a page, so that no candidate is slowed by loads across cache lines."""
    raw = np.empty(array.nbytes + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    out: Array = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def outputs(result: Any) -> Outputs:
    """Flatten what a function returned: arrays, and tuples and lists of them."""
    if isinstance(result, tuple | list):
        return tuple(x for part in result for x in outputs(part))
    return (np.asarray(result),)


def distance(got: Sequence[Array], want: Sequence[Array]) -> float:
    """Return the largest norm-relative distance of an output; inf for NaN, for another shape or another number."""
    if len(got) != len(want) or any(g.shape != w.shape for g, w in zip(got, want, strict=False)):
        return float("inf")
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        scale = float(np.linalg.norm(w)) or 1.0
        error = float(np.linalg.norm(g.astype(np.float64) - w)) / scale
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def with_backward(
    work: Workload, shape: tuple[int, ...], oracle: Callable[..., Any], wrt: tuple[int, ...], factor: float = 3.0
) -> tuple[Workload, Workload]:
    """Return a workload, and the one of its result and all gradients for a given cotangent.

    Args:
        work: the forward one.
        shape: of its result, and so of the cotangent.
        oracle: of the inputs and the cotangent: the result and the gradients.
        wrt: the inputs to differentiate by.
        factor: how many times the flops of the forward one it needs: each product has two more as its adjoints.
    """
    make = work.make
    title = f"{work.title}, and its gradients"
    backward = dataclasses.replace(
        work,
        name=f"{work.name}.bwd",
        title=title,
        make=lambda draw: (*make(draw), draw.normal(*shape)),
        oracle=oracle,
        flops=work.flops * factor,
        wrt=wrt,
    )
    return work, backward
