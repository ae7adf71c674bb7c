"""Random numbers by key: equal bits everywhere, the default stream, masks."""

from __future__ import annotations

import math
import os
import re
import threading
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.ir.index import is_lazy
from kernelforge.ir.kernel import For, exprs, stmts, walk

R = kf.random
N = 40_000
KEY = R.key(2024)
OTHERS = [d for d in kf.devices() if d != "cpu"]


@pytest.mark.parametrize("device", OTHERS)
def test_bits_are_the_same_on_every_device(device: str) -> None:
    def draws(k: Any) -> Any:
        # beside other work, which makes another kernel of it
        return (
            R.bits(k, (33,), np.uint64),
            R.permutation(k, 50),
            R.randint(k, (20,), -5, 17),
            np.sqrt(R.uniform(k, (9,))),
        )

    ours = kf.jit(draws)(KEY)
    with kf.default_device(device):
        theirs = kf.jit(draws)(KEY)
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ours[0], R.bits(KEY, (33,), np.uint64))


def test_default_stream() -> None:
    R.seed(7)
    first = [R.next_key().tolist() for _ in range(3)]
    R.seed(7)
    assert [R.next_key().tolist() for _ in range(3)] == first
    assert len({tuple(k) for k in first}) == 3
    R.seed()
    assert R.next_key().tolist() != first[0]
    elsewhere: list[Any] = []
    R.seed(7)
    thread = threading.Thread(target=lambda: elsewhere.append(R.next_key().tolist()))
    thread.start()
    thread.join()
    assert elsewhere[0] != first[0]  # a thread has a stream of its own
    assert R.next_key().tolist() == first[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_starts_anew() -> None:
    R.seed(7)
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, R.next_key().tobytes())
        os._exit(0)
    os.wait()
    assert os.read(read, 8) != R.next_key().tobytes()


def test_the_default_stream_is_not_for_compiled_functions() -> None:
    with pytest.raises(errors.TracedStream, match=r"one key would serve all calls of it; make the key an argument"):
        kf.jit(lambda x: x + R.uniform(R.next_key(), x.shape))(np.ones(3))
    with pytest.raises(errors.TracedStream):
        kf.jit(kf.nn.dropout)(np.ones(3))


DROPOUTS = [kf.nn.dropout, kf.nn.feature_dropout, kf.nn.alpha_dropout]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("drop", DROPOUTS)
@pytest.mark.parametrize("traced", [False, True])
def test_dropout_at_the_ends(drop: Any, dtype: Any, traced: bool) -> None:
    x = np.random.default_rng(0).normal(size=(20, 30)).astype(dtype)
    x[0, 0] = np.inf

    def both(x: Any, p: Any) -> Any:
        return drop(x, p, key=KEY), kf.grad(lambda x: drop(x, p, key=KEY).sum())(x)

    for p in (0.0, 1.0):
        y, g = kf.jit(both)(x, p) if traced else kf.jit(lambda x, p=p: both(x, p))(x)
        assert y.dtype == g.dtype == dtype
        np.testing.assert_array_equal(y, x if p == 0 else 0)
        np.testing.assert_array_equal(g, 1 - p)
    assert drop(x, 0.7, training=False) is x


def test_dropout_masks() -> None:
    x = np.ones((400, 300), np.float32)
    y, g = kf.jit(
        lambda x: (kf.nn.dropout(x, 0.2, key=KEY), kf.grad(lambda x: kf.nn.dropout(x, 0.2, key=KEY).sum())(x))
    )(x)
    np.testing.assert_array_equal(y, g)
    assert sorted({*np.asarray(y).flat}) == [0, np.float32(1.25)]
    assert abs((np.asarray(y) == 0).mean() - 0.2) < 0.01
    whole = np.asarray(kf.nn.feature_dropout(np.ones((50, 40, 5), np.float32), 0.5, key=KEY))
    assert (whole == whole[:, :, :1]).all()
    z = np.asarray(kf.nn.alpha_dropout(np.random.default_rng(0).normal(size=(300, 300)), 0.3, key=KEY))
    assert abs(z.mean()) < 0.02
    assert abs(z.var() - 1) < 0.05
    with pytest.raises(errors.InvalidParameter, match="a probability"):
        kf.nn.dropout(x, 1.5)
    R.seed(1)
    first, second = (np.asarray(kf.nn.dropout(x)) for _ in range(2))  # keys of the default stream
    assert (first != second).any()
    R.seed(1)
    np.testing.assert_array_equal(kf.nn.dropout(x), first)


def test_all_bits_of_a_number_are_folded_in() -> None:
    numbers = [0, 1, 1 << 31, 1 << 32, (1 << 32) + 1, -1, -(1 << 32), (1 << 63) - 1]
    eager = np.array([R.fold_in(KEY, n) for n in numbers])
    assert len({tuple(k) for k in eager.tolist()}) == len(numbers)
    traced = kf.jit(lambda ns: [R.fold_in(KEY, n) for n in ns])([np.int64(n) for n in numbers])
    np.testing.assert_array_equal(np.array(traced), eager)
    np.testing.assert_array_equal(R.fold_in(KEY, np.int32(-1)), R.fold_in(KEY, -1))
    np.testing.assert_array_equal(R.fold_in(KEY, np.uint64(2**64 - 1)), R.fold_in(KEY, -1))
    for call in (R.fold_in, kf.jit(R.fold_in, static_argnames="data")):
        with pytest.raises(errors.NumberOutOfRange, match="the Python number 18446744073709551616 does not fit int64"):
            call(KEY, 1 << 64)


def test_only_integers_are_folded_in() -> None:
    with pytest.raises(ValueError, match="data='a f64' is not valid; expected an integer"):
        R.fold_in(KEY, 1.5)
    with pytest.raises(ValueError, match="data='a f32' is not valid; expected an integer"):
        kf.jit(R.fold_in)(KEY, np.float32(1))


def test_keys_are_derived_once_and_shapes_are_one_counter() -> None:
    """Every element derived the keys of its two words anew, and rows of 50 broke the vectors of 16."""
    key = kf.random.key(3)
    rows = kf.jit(lambda k: kf.random.normal(k, (20, 50))).lower(key).kernels
    flat = kf.jit(lambda k: kf.random.normal(k, (1000,))).lower(key).kernels
    assert [k.ir.body for k in rows] == [k.ir.body for k in flat]
    text = str(rows[0].ir)
    assert "x0[0]" in text
    assert not re.search(r"select\(\w+, x0\[", text)


def test_keys_of_keys_of_keys() -> None:
    """Each key was made again of the first one wherever it was used, in one expression as deep as Python's stack."""

    def walk(key: Any, steps: int = 12) -> Any:
        total = np.zeros(5, np.uint32)
        for _ in range(steps):
            key, own = kf.random.split(key)
            total = total * 3 + kf.random.bits(own, 5)
        return key, total

    for got, want in zip(kf.jit(walk)(kf.random.key(1)), walk(kf.random.key(1)), strict=True):
        np.testing.assert_array_equal(got, want)


def _loops(fn: Any, *args: Any) -> list[For]:
    """The loops of the only kernel of a function on the cpu device."""
    (kernel,) = kf.jit(fn).lower(*args).kernels
    return [s for s in stmts(kernel.ir.body) if isinstance(s, For)]


@pytest.mark.parametrize(("draw", "share"), [(kf.random.bits, 2), (lambda k, s: kf.random.bernoulli(k, 0.3, s), 4)])
def test_the_vectors_that_share_blocks_are_made_together(draw: Any, share: int) -> None:
    loops = _loops(lambda k: draw(k, (1 << 16,)), kf.random.key(0))
    lanes = math.prod(v.static or 0 for v in loops if v.kind in ("vector", "unroll"))
    width = next(v.static or 0 for v in loops if v.kind == "vector")
    assert lanes == width * share * max(1, 16 // width)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_of_long_work_share_no_blocks(dtype: Any) -> None:
    """Their values would not stay in registers: two of f32 took a fifth longer, four of f64 half as long again."""
    loops = _loops(lambda k: kf.random.normal(k, (1 << 16,), dtype), kf.random.key(0))
    assert "vector" in {s.kind for s in loops}
    assert "unroll" not in {s.kind for s in loops}


@pytest.mark.parametrize("n", [1000, 100, 1001])
def test_rows_that_begin_within_a_block_make_each_block_once_a_vector(n: int) -> None:
    def drop(x: Any, k: Any) -> Any:
        y = kf.nn.dropout(x, 0.1, key=k)
        return y - y.mean(1, keepdims=True)

    x = np.ones((8, n), np.float32)
    (kernel,) = kf.jit(drop).lower(x, kf.random.key(0)).kernels
    # a choice among words by an index that is read in each arm apart would make all words in each
    assert not any(is_lazy(e) for s in stmts(kernel.naive.body) for r in exprs(s) for e in walk(r))
