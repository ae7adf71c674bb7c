"""Joins of long graphs look at few items more than once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.compile import forget
from kernelforge.ir import fuse, lower, residuals
from kernelforge.ir.groups import Group, Item, Order
from kernelforge.ir.schedule import merge


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The items of each group that is collected, as it happens."""
    sizes: list[int] = []
    part = fuse._Fuser.part

    def counted(self: Any, items: Any) -> Any:
        sizes.append(len(items))
        return part(self, items)

    monkeypatch.setattr(fuse._Fuser, "part", counted)
    return sizes


def test_chains_are_seldom_collected_anew(sizes: list[int]) -> None:
    def chain(x: Any) -> Any:
        for k in range(1000):
            x = x * np.float32(1 + k) + np.float32(k)
        return x

    assert len(kf.jit(chain).lower(np.ones(7, np.float32)).kernels) == 1
    assert sum(sizes) < 10 * 2000


def test_groups_that_would_take_too_many_buffers_are_not_collected(sizes: list[int]) -> None:
    """What a chain keeps for its gradient is more than a kernel takes, until those who read it have joined, too."""

    def chain(x: Any) -> Any:
        y = x
        for k in range(300):
            y = y + np.float32(0.1) * (x * y - np.float32(k) * y * y)
        return y.sum()

    x = np.ones(7, np.float32)
    found = kf.jit(kf.grad(chain)).lower(x)
    assert len(found.kernels) == 1
    assert sum(sizes) < 2 * len(found.graph.nodes)


def test_buffers_of_joined_groups_are_counted_as_groups_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, int]] = []
    join = fuse._Fuser.join

    def checked(self: Any, a: Any, b: Any) -> str:
        first = a.buffers_with(b), b.buffers_with(a), fuse._buffers(self.part([*a.items, *b.items]))
        refused = join(self, a, b)
        for group in {i.group for i in self.items}:
            buffers = len(group.given) + len(group.taken) + len(group.left)
            counts.append((buffers, fuse._buffers(self.part(group.items))))
        assert len(set(first)) == 1
        return refused

    def fn(x: Any, y: Any) -> Any:
        s = x.sum(-1)
        t = np.exp(x - s[:, None]) * y
        u = np.pad(t, ((1, 1), (0, 0)))
        v = np.where(u > 0, np.tanh(u), np.flip(u))
        return v, t * y[:1], v.max(0) + s.sum() * y[0], x @ y.T + s

    monkeypatch.setattr(fuse._Fuser, "join", checked)
    x = np.ones((12, 70), np.float32)
    kf.jit(fn).lower(x, x)
    assert len(counts) > 50
    assert all(a == b for a, b in counts)


def test_maps_that_follow_a_reduction_are_lowered_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would do, but a trial takes as long as all of the group before."""
    tried: list[int] = []
    sizes: list[int] = []
    buffers_of, part = fuse.buffers_of, fuse._Fuser.part

    def counted(found: Any) -> int:
        tried.append(len(found.nodes))
        return buffers_of(found)

    def collected(self: Any, items: Any) -> Any:
        sizes.append(len(items))
        return part(self, items)

    def chain(x: Any) -> Any:
        x = x.sum(-1)
        for k in range(40):
            x = np.float32(k) - x * np.float32(1 + k)
        return x

    monkeypatch.setattr(fuse, "buffers_of", counted)
    monkeypatch.setattr(fuse._Fuser, "part", collected)
    assert len(kf.jit(chain).lower(np.ones((20, 7), np.float32)).kernels) == 1
    assert sum(tried) < 100
    assert sum(sizes) < 10 * 80


@pytest.mark.parametrize("kept", [False, True])
def test_a_map_follows_one_result_that_nothing_else_needs(kept: bool) -> None:
    """``s[i]`` and ``s[j]`` are results of one reduction in two orders, which no nest makes for one element."""
    x = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)

    def both(x: Any) -> Any:
        s = x.sum(-1)
        rows, columns = s[:, None] * np.ones_like(x), s[None, :] * np.ones_like(x)
        made = np.exp(rows - columns * np.float32(0.5))
        return (made, rows, columns) if kept else made

    found = kf.jit(both)(x)
    for got, expected in zip(found if kept else [found], both(x) if kept else [both(x)], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_equal_layers_are_lowered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever depth adds to a network is found out about one layer."""
    built: list[object] = []
    build = lower._Builder.build

    def counted(self: Any) -> Any:
        built.append(self)
        return build(self)

    def network(weights: Any, x: Any) -> Any:
        for w in weights:
            x = x + np.cumsum(np.tanh(x @ w), axis=-1)
        return (x * x).sum()

    def lowered(depth: int) -> int:
        built.clear()
        forget()
        weights = [np.eye(96, dtype=np.float32)] * depth
        found = kf.jit(kf.grad(network)).lower(weights, np.ones((64, 96), np.float32))
        assert len(found.kernels) > depth
        return len(built)

    monkeypatch.setattr(lower._Builder, "build", counted)
    assert lowered(10) == lowered(5)


def test_work_grows_with_the_steps_of_an_unrolled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes the sums of all steps is tried whole for each, so it ends somewhere."""
    lowered: list[int] = []
    touched: list[object] = []
    build, touch = lower._Builder.build, merge._touched

    def counted(self: Any) -> Any:
        lowered.append(len(self.low.part.nodes))
        return build(self)

    def looked_at(stmt: Any) -> Any:
        touched.append(stmt)
        return touch(stmt)

    def work(steps: int) -> tuple[int, int]:
        def loss(rates: Any, prey: Any, hunters: Any) -> Any:
            for _ in range(steps):
                met = prey * hunters
                prey, hunters = prey + rates[0] * prey - rates[1] * met, hunters + rates[2] * met - rates[3] * hunters
            return (prey * hunters).sum()

        forget()
        lowered.clear()
        touched.clear()
        kf.jit(kf.grad(loss)).lower(np.full(4, 0.01), np.ones(100), np.ones(100))
        return sum(lowered), len(touched)

    monkeypatch.setattr(lower._Builder, "build", counted)
    monkeypatch.setattr(merge, "_touched", looked_at)
    monkeypatch.setattr(fuse, "MOST", 64)
    some, twice = work(10), work(20)
    assert all(b < 2.7 * a for a, b in zip(some, twice, strict=True)), (some, twice)


def test_readers_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a part reads is collected for those that change, not for every value that might be computed again."""
    collected: list[object] = []
    inputs = residuals.inputs

    def counted(part: Any) -> Any:
        collected.append(part)
        return inputs(part)

    def chain(x: Any) -> Any:
        for k in range(60):
            x = np.cumsum(x, axis=-1) * np.float32(k)
        return x

    monkeypatch.setattr(residuals, "inputs", counted)
    assert len(kf.jit(chain).lower(np.ones((20, 7), np.float32)).kernels) >= 60
    assert len(collected) < 10 * 60


def test_graphs_are_deeper_than_pythons_stack() -> None:
    def chain(x: Any) -> Any:
        for _ in range(1200):
            x = np.cumsum(x)
        return x

    assert len(kf.jit(chain).lower(np.zeros(3, np.float32)).regions) == 1200


def test_groups_of_one_launch_depend_on_each_others_producers() -> None:
    """Of a -> b and c -> d, b and c may share a launch; then a and d are in order."""
    a, b, c, d = items = [Item(None, (), k) for k in range(4)]
    b.reads[a] = d.reads[c] = None
    for item in items:
        item.group = Group(item, None)
    order = Order([i.group for i in items])
    assert order.independent(a.group, d.group)
    order.together(b.group, c.group)
    assert not order.independent(a.group, d.group)
    assert not order.independent(a.group, c.group)
    assert not order.independent(b.group, d.group)
