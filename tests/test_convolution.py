"""Convolutions as users write them with NumPy: any rank, stride, dilation, padding, groups and layout.

Values and derivatives are held against loops in float64, and kernels are counted.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kernelforge as kf
from tests import further


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution: extents of the image and the window, and its options."""

    batch: int
    channels: int
    filters: int
    image: tuple[int, ...]
    window: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    groups: int = 1
    interior: int = 0
    last: bool = False

    def operands(self, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.batch, self.channels, self.filters, *self.image, *self.window])
        x = rng.normal(size=(self.batch, self.channels, *self.image))
        w = rng.normal(size=(self.filters, self.channels // self.groups, *self.window))
        if self.last:
            x, w = np.moveaxis(x, 1, -1), np.moveaxis(w, (0, 1), (-1, -2))
        return np.ascontiguousarray(x, dtype), np.ascontiguousarray(w, dtype)

    def __call__(self, x: Any, w: Any) -> Any:
        """Convolve with windows and einsum."""
        rank, g = len(self.image), self.groups
        axes = tuple(range(1, 1 + rank)) if self.last else tuple(range(2, 2 + rank))
        if self.interior:
            shape = [n + (n - 1) * self.interior if a in axes else n for a, n in enumerate(x.shape)]
            wide = np.zeros(shape, x.dtype)
            steps = tuple(slice(None, None, self.interior + 1) if a in axes else slice(None) for a in range(rank + 2))
            wide[steps] = x
            x = wide
        x = np.pad(x, [(self.padding,) * 2 if a in axes else (0, 0) for a in range(rank + 2)])
        sizes = tuple((n - 1) * self.dilation + 1 for n in self.window)
        x = np.lib.stride_tricks.sliding_window_view(x, sizes, axes)
        place = tuple(slice(None, None, self.stride) if a in axes else slice(None) for a in range(rank + 2))
        x = x[(*place, *(slice(None, None, self.dilation) for _ in axes))]
        p, q = "xyz"[:rank], "uvw"[:rank]
        if self.last:
            x = x.reshape(*x.shape[: 1 + rank], g, -1, *x.shape[2 + rank :])
            w = w.reshape(*w.shape[: 1 + rank], g, -1)
            y = np.einsum(f"n{p}gc{q},{q}cgo->n{p}go", x, w)
            return y.reshape(*y.shape[: 1 + rank], -1)
        x = x.reshape(x.shape[0], g, self.channels // g, *x.shape[2:])
        w = w.reshape(g, self.filters // g, *w.shape[1:])
        y = np.einsum(f"ngc{p}{q},goc{q}->ngo{p}", x, w)
        return y.reshape(y.shape[0], self.filters, *y.shape[3:])

    def loops(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Convolve element by element of the window."""
        if self.last:
            x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
        step = self.interior + 1
        shape = [(n - 1) * step + 1 + 2 * self.padding for n in self.image]
        wide = np.zeros((*x.shape[:2], *shape))
        inside = tuple(slice(self.padding, n - self.padding, step) for n in shape)
        wide[(..., *inside)] = x
        out = [(n - (k - 1) * self.dilation - 1) // self.stride + 1 for n, k in zip(shape, self.window, strict=True)]
        y = np.zeros((self.batch, self.filters, *out))
        own, made = self.channels // self.groups, self.filters // self.groups
        for o in range(self.filters):
            for c in range(own):
                for at in itertools.product(*map(range, self.window)):
                    part = tuple(
                        slice(k * self.dilation, k * self.dilation + (n - 1) * self.stride + 1, self.stride)
                        for k, n in zip(at, out, strict=True)
                    )
                    y[:, o] += wide[(slice(None), o // made * own + c, *part)] * w[(o, c, *at)]
        return np.moveaxis(y, 1, -1) if self.last else y


CASES = [
    Case(2, 3, 8, (40,), (5,), padding=2),
    Case(1, 8, 5, (130,), (3,), stride=2, padding=1),
    Case(2, 4, 6, (33,), (4,), dilation=3),
    Case(2, 8, 16, (12, 20), (3, 3), padding=1),
    Case(1, 16, 13, (9, 33), (5, 3), padding=2),
    Case(2, 6, 70, (17, 40), (3, 3)),
    Case(1, 12, 8, (19, 23), (3, 3), stride=2, padding=1),
    Case(1, 8, 9, (20, 41), (3, 2), stride=3),
    Case(1, 8, 8, (16, 30), (3, 3), dilation=2, padding=2),
    Case(2, 12, 8, (10, 24), (3, 3), padding=1, groups=2),
    Case(2, 8, 8, (13, 21), (3, 3), padding=1, groups=8),
    Case(1, 8, 12, (7, 11), (3, 3), padding=2, interior=1),
    Case(2, 8, 16, (14, 18), (1, 1)),
    Case(1, 8, 8, (12, 40), (1, 3), padding=1),
    Case(1, 4, 8, (5, 9, 18), (3, 3, 3), padding=1),
    Case(1, 4, 6, (4, 7, 33), (2, 3, 2), stride=2),
    Case(2, 8, 32, (12, 20), (3, 3), padding=1, last=True),
    Case(1, 16, 32, (15, 18), (3, 3), stride=2, padding=1, last=True),
    Case(1, 8, 16, (60,), (5,), dilation=2, last=True),
    Case(1, 4, 16, (4, 6, 10), (3, 3, 3), padding=1, last=True),
    Case(2, 8, 16, (9, 12), (3, 3), padding=1, groups=2, last=True),
    Case(1, 600, 8, (5, 20), (3, 3), padding=1),
    Case(8, 6, 10, (30, 40), (3, 3), padding=1),
    Case(1, 8, 8, (5, 1200), (3, 3), padding=1),
    Case(2, 3, 16, (40, 46), (7, 7), stride=2, padding=3),
    Case(2, 3, 24, (16, 24), (4, 4), stride=4),
    Case(1, 5, 8, (9, 31), (2, 3), stride=4, padding=1),
    Case(1, 4, 6, (21, 25), (3, 3), stride=2, dilation=2),
    Case(1, 4, 6, (25, 31), (3, 2), stride=4, dilation=2),
    Case(1, 4, 6, (40,), (5,), stride=3, dilation=2),
    Case(2, 1, 8, (20, 24), (3, 3), padding=1),
    Case(2, 6, 8, (12, 18), (3, 3), stride=2, groups=2, last=True),
    Case(2, 6, 6, (15, 21), (3, 3), stride=2, padding=1, groups=6),
    Case(2, 4, 4, (20, 40), (7, 7), padding=3, groups=4),
    Case(1, 2, 2, (89, 130), (3, 3), padding=1, groups=2),
    Case(2, 4, 4, (70,), (5,), padding=2, groups=4),
    Case(8, 16, 16, (7, 7), (3, 3), padding=1),
    Case(3, 16, 32, (14, 14), (1, 1), stride=2),
    Case(1, 1, 1, (3, 3), (3, 3)),
    Case(0, 3, 4, (8, 8), (3, 3)),
    Case(1, 8, 4, (2, 2), (3, 3), padding=1),
    Case(1, 40, 6, (15, 18), (3, 3), stride=2, padding=1),
    Case(1, 32, 4, (13, 14), (3, 2), stride=2),
    Case(2, 64, 8, (11, 9), (5, 3), stride=2, groups=2, last=True),
    Case(1, 32, 4, (21,), (4,), stride=3),
    Case(1, 33, 4, (31,), (3,), stride=4, dilation=2),
]


def _id(case: Case) -> str:
    default = Case(0, 0, 0, (), ())
    named = [f.name for f in dataclasses.fields(case)[5:] if getattr(case, f.name) != getattr(default, f.name)]
    return "-".join([*map(str, (case.channels, case.filters, *case.image)), *named])


ONE_OF_A_KIND = [CASES[i] for i in (0, 3, 6, 9, 16, 23, 29)]
ON_DEVICES = [
    (c, d) for d in kf.devices() if d != "reference" for c in (ONE_OF_A_KIND if further.is_further(d) else CASES)
]


@pytest.mark.parametrize(("case", "device"), ON_DEVICES, ids=lambda x: x if isinstance(x, str) else _id(x))
def test_values(case: Case, device: str) -> None:
    x, w = case.operands()
    with kf.default_device(device):
        found = np.asarray(kf.jit(case.__call__)(x, w))
    wanted = case.loops(x.astype(np.float64), w.astype(np.float64))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(wanted).max(initial=0)))


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_derivatives(case: Case) -> None:
    x, w = case.operands()
    ct = np.random.default_rng(1).normal(size=case.loops(x, w).shape).astype(np.float32)
    dx, dw = np.random.default_rng(2).normal(size=x.shape), np.random.default_rng(3).normal(size=w.shape)
    gx, gw = kf.jit(lambda x, w, ct: kf.vjp(case.__call__, x, w)[1](ct))(x, w, ct)
    # <ct, J d> = <J^T ct, d>, the left side by loops: a convolution is linear in each operand
    scale = np.sqrt(ct.size * max(w.size, 1)) + 1
    assert abs((np.asarray(gx, np.float64) * dx).sum() - (case.loops(dx, w) * ct).sum()) < 1e-4 * scale
    assert abs((np.asarray(gw, np.float64) * dw).sum() - (case.loops(x, dw) * ct).sum()) < 1e-4 * scale * 4


@pytest.mark.parametrize("case", ONE_OF_A_KIND, ids=_id)
def test_second_derivatives(case: Case) -> None:
    x, w = case.operands()
    d = np.random.default_rng(4).normal(size=w.shape).astype(np.float32)

    def energy(x: Any, w: Any) -> Any:
        return (case(x, w) ** 2).sum() / 2

    along = kf.jit(lambda x, w, d: kf.grad(lambda w: (kf.grad(energy, 1)(x, w) * d).sum())(w))(x, w, d)
    # the energy is |A w|^2 / 2, its second derivative A^T A
    again = case.loops(x, d).astype(np.float32)
    wanted = kf.vjp(lambda w: case(x, w), w)[1](again)[0]
    np.testing.assert_allclose(along, wanted, rtol=1e-3, atol=1e-3 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("case", [CASES[i] for i in (3, 6, 16)], ids=_id)
def test_kernels(case: Case) -> None:
    """Bias and activation are in the convolution's kernel; the gradients take three more."""
    x, w = case.operands()
    b = np.linspace(-1, 1, case.filters, dtype=np.float32)

    def layer(x: Any, w: Any, b: Any) -> Any:
        bias = b if case.last else b[:, None, None]
        return np.maximum(case(x, w) + bias, 0)

    forward = kf.jit(layer)
    assert len(forward.lower(x, w, b).kernels) == 1
    np.testing.assert_allclose(forward(x, w, b), layer(x, w, b), rtol=1e-4, atol=1e-4)
    y = layer(x, w, b)
    backward = kf.jit(lambda ct, x, w, b: kf.vjp(layer, x, w, b)[1](ct))
    # with a stride, what no window reaches is cut off in one more
    assert len(backward.lower(y, x, w, b).kernels) <= 4 + (case.stride > 1)


def test_the_gradient_with_a_stride_multiplies_by_few_zeros() -> None:
    """With channels enough: offsets of a class that are fewer than another's are not filled up."""
    case = Case(2, 48, 16, (17, 17), (3, 3), stride=2)
    x, w = case.operands()
    ct = case(x, w)
    pulled = kf.jit(lambda ct, x, w: kf.vjp(lambda x: case(x, w), x)[1](ct)).lower(ct, x, w).kernels
    forward = kf.jit(case.__call__).lower(x, w).kernels
    assert sum(k.flops for k in pulled) < 1.35 * sum(k.flops for k in forward)


def test_the_gradient_of_channels_by_themselves_counts_positions_plainly() -> None:
    """A reshape beside a pad keeps the axes that it does not touch, so that windows are found in the gradient, too."""
    depthwise = Case(2, 6, 6, (9, 11), (3, 3), padding=1, groups=6)
    x, w = depthwise.operands()
    for kernel in kf.jit(kf.grad(lambda x, w: (depthwise(x, w) ** 2).sum(), (0, 1))).lower(x, w).kernels:
        assert " % " not in str(kernel.naive)


@pytest.mark.parametrize("size", [(5, 32), (3, 16), (4, 48)])
def test_rows_of_whole_vectors_are_stored_in_order(size: tuple[int, int]) -> None:
    """What is read beside a tile lies as the tile does; other rows are as long as the padded image has them."""
    case = Case(2, 8, 12, size, (3, 3), padding=1)
    x, w = case.operands()
    r = np.abs(case(x, w)).astype(np.float32)
    fn = kf.jit(lambda x, w, r: np.maximum(case(x, w) * r + r, 0))
    (kernel,) = fn.lower(x, w, r).kernels
    assert f"% {(size[1] + 2) // 2}" not in str(kernel.ir)
    np.testing.assert_allclose(fn(x, w, r), np.maximum(case(x, w) * r + r, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=str)
def test_the_last_vector_of_a_row_keeps_to_its_lanes(dtype: Any) -> None:
    draw = np.random.default_rng(0)
    x, w = (draw.normal(size=shape).astype(dtype) for shape in ((1, 16, 7, 9), (16, 16, 1, 3)))
    fn = kf.jit(lambda x, w: kf.nn.conv_transpose2d(x, w, stride=(1, 2), padding=(0, 2), dilation=2))
    with kf.default_device("cpu"):
        found, want = fn(x, w), fn(x.astype(np.float64), w.astype(np.float64))
    np.testing.assert_allclose(np.asarray(found).astype(np.float64), want, rtol=2e-2, atol=2e-1)
