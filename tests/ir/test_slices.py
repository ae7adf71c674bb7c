"""Slices of a state that go through all steps by themselves: where they may, and that the meaning stays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.backends import registry
from kernelforge.ir.kernel import For, Kernel
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.repeat import repeats
from kernelforge.ir.schedule.slices import sliced
from kernelforge.ir.text import print_kernel
from tests.ir.test_repeat import F32, drawn, keep_the_meaning, normal, np_leaves, on, on_each, plain

CPU = registry.backend("cpu").limits
LIMITS = dataclasses.replace(CPU, threads=2, vector_bytes=64, cache_bytes=1 << 20, local_bytes=1 << 15)
WEIGHTS, LARGE = normal(24, 24) / 8, normal(128, 128) / 16


def mirrored(c: Any, x: Any) -> Any:
    return c[:, ::-1] * F32(0.5) + x, c.sum(1)


def normed(c: Any, x: Any) -> Any:
    centred = c - c.mean(1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(1, keepdims=True) + F32(1)) + x, None


def mixed(c: Any, x: Any) -> Any:
    a, b = c
    return (np.cumsum(a, 1) * F32(0.1) + b[:, ::-1], (a @ WEIGHTS) * F32(0.1) + x), b[:, 0]


def exchanged(c: Any, k: Any) -> Any:
    """Reads where data says, which is in the row whatever it says."""
    partner = (np.arange(32) ^ k) & 31
    return np.minimum(c, np.take(c, partner, 1)) + F32(1), None


def nested(c: Any, x: Any) -> Any:
    def inner(d: Any, y: Any) -> Any:
        return d[:, ::-1] * F32(0.5) + y, None

    if not isinstance(c, np.ndarray):
        return kf.scan(inner, c, x)
    for y in x:
        c, _ = inner(c, y)
    return c, None


CASES: dict[str, Any] = {
    "mirrored": (mirrored, normal(12, 33), normal(5, 12, 33)),
    "normed": (normed, normal(16, 40), normal(4, 16, 40)),
    "several": (mixed, (normal(9, 24), normal(9, 24)), normal(6, 9, 24)),
    "exchanged": (exchanged, normal(8, 32), np.array([1, 2, 4, 8, 16, 31])),
    "deep": (lambda c, x: (c[:, ::-1, :] + x, None), normal(10, 6, 20), normal(3, 10, 6, 20)),
    "nested": (nested, normal(8, 20), normal(4, 3, 20)),
    "once": (mirrored, normal(8, 16), normal(1, 8, 16)),
}
REFUSED: dict[str, Any] = {
    "reads others": (lambda c, x: (np.roll(c, 1, 0) + x, None), normal(16, 20), normal(4, 16, 20)),
    "sums others": (lambda c, x: (c - c.mean(0) + x, None), normal(16, 20), normal(4, 16, 20)),
    "few": (mirrored, normal(7, 33), normal(4, 7, 33)),
    "short": (lambda c, x: (c[:, ::-1] + x, None), normal(100, 6), normal(4, 100, 6)),
    "one matrix": (lambda c, x: (c @ LARGE + x, None), normal(64, 128), normal(4, 64, 128)),
    "large": (lambda c, x: (c[:, ::-1] + x, None), normal(8, 1 << 17), normal(2, 1)),
    "parts of lines": (lambda c, x: (c[:, ::-1] + x.T, None), normal(64, 300), normal(2, 300, 64)),
    "a time": (lambda c, x: ((c[0][:, ::-1] + c[1], c[1] + x), None), (normal(16, 20), F32(0)), normal(4)),
}


def naive(name: str, cases: dict[str, Any]) -> Kernel:
    step, init, xs = cases[name]
    with kf.default_device("cpu"):
        (made,) = kf.jit(lambda init, xs: kf.scan(step, init, xs)).lower(init, xs).kernels
    return made.naive  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_slices_keep_the_meaning(name: str) -> None:
    """In any order, too."""
    kernel = naive(name, CASES)
    made = sliced(kernel, LIMITS)
    assert made is not None
    (loop,) = made.body
    assert isinstance(loop, For)
    assert (loop.var.name, loop.kind) == ("slice", "grid")
    assert loop.static is not None
    assert loop.static >= 8
    assert len(np_leaves(CASES[name][1])[0]) % loop.static == 0
    given = drawn(kernel)
    if name == "exchanged":
        given["row_1"] = CASES[name][2]
    keep_the_meaning(kernel, made, given, 1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_slices_would_share(name: str) -> None:
    kernel = naive(name, REFUSED)
    assert any(map(repeats, kernel.body))
    assert sliced(kernel, LIMITS) is None


@pytest.mark.parametrize("name", CASES)
@on_each
def test_scans_of_rows(device: str, name: str) -> None:
    step, init, xs = CASES[name]
    with on(device):
        run = kf.jit(lambda init, xs: kf.scan(step, init, xs))
        (made,) = run.lower(init, xs).kernels
        found = [s.var.name for s in made.ir.body if isinstance(s, For)]
        assert (found == ["slice"]) == (device != "reference" and len(np_leaves(init)[0]) >= 4 * threads(device))
        carry, ys = run(init, xs)
        carry, ys = [np.asarray(c) for c in np_leaves(carry)], None if ys is None else np.asarray(ys)
    if ys is None:
        wanted, _ = plain(lambda c, x: (step(c, x)[0], F32(0)), init, xs, len(xs), False)
    else:
        wanted, want = plain(step, init, xs, len(xs), False)
        np.testing.assert_allclose(ys, want, rtol=2e-5, atol=2e-5)
    for a, b in zip(carry, np_leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def rolled_between(c: Any, _: Any) -> Any:
    """A loop over slices in one that has none."""

    def inner(a: Any, _: Any) -> Any:
        return a[:, ::-1] * F32(0.5) + a.mean(1, keepdims=True), None

    if not isinstance(c, np.ndarray):
        c, _ = kf.scan(inner, c, None, length=3)
    else:
        for _ in range(3):
            c, _ = inner(c, None)
    return np.roll(c, 1, 0) + F32(1), None


SMALL = normal(8, 8) / 4
FURTHER: dict[str, Any] = {
    "a loop in a loop": (rolled_between, normal(9, 32)),
    "a matrix times each": (lambda c, _: (SMALL @ c, None), normal(16, 8, 64)),
    "products of a state": (lambda c, _: ((c * c.sum(1, keepdims=True)) @ (c.T @ c) * F32(0.01), None), normal(8, 8)),
    "turned": (lambda c, _: (c.transpose(0, 2, 1) * F32(0.5) + c, None), normal(10, 32, 32)),
}


@pytest.mark.parametrize("name", FURTHER)
@on_each
def test_scans_of_products_and_loops(device: str, name: str) -> None:
    step, init = FURTHER[name]
    with on(device):
        got, _ = kf.jit(lambda c: kf.scan(step, c, None, length=3))(init)
        wanted, _ = plain(lambda c, x: (step(c, x)[0], F32(0)), init, None, 3, False)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_slices_fill_the_first_cache_and_are_enough() -> None:
    """A row of 64 by itself would wait for itself."""
    step = CASES["mirrored"][0]
    with kf.default_device("cpu"):
        many = kf.jit(lambda c, xs: kf.scan(step, c, xs)[0]).lower(normal(1024, 64), normal(3, 1024, 64)).kernels
    made = sliced(many[0].naive, LIMITS)
    assert made is not None
    assert isinstance(made.body[0], For)
    assert 8 <= (made.body[0].static or 0) <= 128


def threads(device: str) -> int:
    return registry.backend(device).limits.threads


def test_text() -> None:
    made = sliced(parse_kernel(BEFORE), LIMITS)
    assert made is not None
    assert print_kernel(made) == AFTER.rstrip()


BEFORE = """\
kernel scan(in first: f32[256], out last: f32[256], scratch k: f32[512]) {
  for parallel i < 256 {
    k[i] = first[i]
  }
  for serial turn0 < 5 {
    for parallel i < 8 {
      for parallel j < 32 {
        k[i * 32 + j + (turn0 + 1) % 2 * 256] = k[i * 32 - j + turn0 % 2 * 256 + 31]
      }
    }
  }
  for parallel i < 256 {
    last[i] = k[i + 256]
  }
}
"""
AFTER = """\
kernel scan(in first: f32[256], out last: f32[256], scratch k: f32[512]) {
  for grid slice < 8 {
    for serial i < 2 {
      for vector iv < 16 {
        k[i * 16 + iv + slice * 32] = first[i * 16 + iv + slice * 32]
      }
    }
    for serial turn0 < 5 {
      for serial j < 2 {
        for vector jv < 16 {
          k[j * 16 + jv + slice * 32 + (turn0 + 1) % 2 * 256] = k[j * -16 - jv + slice * 32 + turn0 % 2 * 256 + 31]
        }
      }
    }
    for serial i < 2 {
      for vector iv < 16 {
        last[i * 16 + iv + slice * 32] = k[i * 16 + iv + slice * 32 + 256]
      }
    }
  }
}
"""
