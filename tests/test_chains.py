"""Attention and small networks: one kernel, nothing of the size of rows times columns in memory, and NumPy's values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.compile import forget
from kernelforge.ir import chains


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def softmax(s: Any) -> Any:
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q: Any, k: Any, v: Any) -> Any:
    return softmax(q @ np.swapaxes(k, -1, -2) * 0.25) @ v


def causal(q: Any, k: Any, v: Any) -> Any:
    s = q @ np.swapaxes(k, -1, -2) * 0.25
    rows, columns = np.arange(s.shape[-2]), np.arange(s.shape[-1])
    return softmax(np.where(rows[:, None] >= columns, s, -np.inf)) @ v


def masked(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return softmax(np.where(mask, q @ np.swapaxes(k, -1, -2) * 0.25, -np.inf)) @ v


def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    return softmax(q @ np.swapaxes(k, -1, -2) * 0.25 + bias) @ v


def grouped(q: Any, k: Any, v: Any) -> Any:
    b, h, n, d = q.shape
    g = k.shape[1]
    s = np.einsum("bgrid,bgjd->bgrij", q.reshape(b, g, h // g, n, d), k) * 0.25
    return np.einsum("bgrij,bgjd->bgrid", softmax(s), v).reshape(b, h, n, -1)


def split_heads(x: Any, wq: Any, wk: Any, wv: Any, heads: int = 2) -> Any:
    b, n, c = x.shape

    def apart(y: Any) -> Any:
        return y.reshape(b, n, heads, c // heads).transpose(0, 2, 1, 3)

    return attention(apart(x @ wq), apart(x @ wk), apart(x @ wv)).transpose(0, 2, 1, 3).reshape(b, n, c)


def mlp(x: Any, w1: Any, b1: Any, w2: Any, b2: Any, w3: Any) -> Any:
    return np.tanh(np.maximum(x @ w1 + b1, 0) @ w2 + b2) @ w3


def counted(fn: Callable[..., Any], *args: Any) -> int:
    return len(kf.jit(fn).lower(*args).kernels)


def exact(fn: Callable[..., Any], *args: Any) -> Any:
    with np.errstate(all="ignore"):
        return fn(*(a.astype(np.float64) if a.dtype.kind == "f" else a for a in args))


def heads(queries: int, keys: int, d: int = 16, *lead: int, dtype: str = "float32") -> tuple[np.ndarray, ...]:
    return tuple(normal(*(lead or (2, 3)), n, d, seed=k, dtype=dtype) for k, n in enumerate((queries, keys, keys)))


SHAPES = [(40, 40, 16), (7, 7, 5), (64, 64, 64), (65, 129, 33), (13, 1, 8), (6, 70, 1), (100, 3, 80), (50, 1700, 4)]


@pytest.mark.parametrize(("queries", "keys", "d"), SHAPES)
@pytest.mark.parametrize("fn", [attention, causal])
def test_attention(fn: Any, queries: int, keys: int, d: int) -> None:
    args = heads(queries, keys, d)
    assert counted(fn, *args) == 1
    np.testing.assert_allclose(kf.jit(fn)(*args), exact(fn, *args), rtol=2e-4, atol=2e-5)


def test_a_few_queries() -> None:
    for queries in (1, 2, 3):
        args = heads(queries, 90)
        np.testing.assert_allclose(kf.jit(attention)(*args), exact(attention, *args), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float16", 4e-3)])
def test_dtypes(dtype: str, tolerance: float) -> None:
    args = heads(33, 47, 24, dtype=dtype)
    assert counted(attention, *args) == 1
    np.testing.assert_allclose(kf.jit(attention)(*args), exact(attention, *args), rtol=tolerance, atol=tolerance)


def test_rows_without_keys_are_nan_as_in_numpy() -> None:
    q, k, v = heads(20, 30)
    mask = normal(20, 30, seed=9) > 0
    mask[3] = mask[17] = False
    assert counted(masked, q, k, v, mask) == 1
    ours, want = kf.jit(masked)(q, k, v, mask), exact(masked, q, k, v, mask)
    np.testing.assert_allclose(ours, want, rtol=2e-4, atol=2e-5)
    assert np.isnan(np.asarray(ours)[:, :, 3]).all()


def test_rows_without_keys_of_a_triangle() -> None:
    def shifted(q: Any, k: Any, v: Any) -> Any:
        rows, columns = np.arange(q.shape[-2]), np.arange(k.shape[-2])
        s = np.where(rows[:, None] - 9 > columns, q @ np.swapaxes(k, -1, -2), -np.inf)
        return softmax(s) @ v

    args = heads(150, 140)
    np.testing.assert_allclose(kf.jit(shifted)(*args), exact(shifted, *args), rtol=2e-4, atol=2e-5)


def test_rows_without_keys_have_no_weights_without_a_maximum() -> None:
    """Weights of zero divided by their sum are NaN, also in blocks of rows that need no column."""

    def shifted(q: Any, k: Any, v: Any) -> Any:
        rows, columns = np.arange(q.shape[-2]), np.arange(k.shape[-2])
        e = np.exp(np.where(rows[:, None] - 64 >= columns, q @ np.swapaxes(k, -1, -2) * 0.25, -np.inf))
        return e / e.sum(axis=-1, keepdims=True) @ v

    args = heads(150, 140)
    ours = kf.jit(shifted)(*args)
    np.testing.assert_allclose(ours, exact(shifted, *args), rtol=2e-4, atol=2e-5)
    assert np.isnan(np.asarray(ours)[:, :, :64]).all()


def test_masked_blocks_are_skipped() -> None:
    def triangle(q: Any, k: Any, v: Any) -> Any:
        mask = np.tri(q.shape[-2], k.shape[-2], dtype=bool)
        return softmax(np.where(mask, q @ np.swapaxes(k, -1, -2) * 0.25, -np.inf)) @ v

    def lower(q: Any, k: Any, v: Any) -> Any:
        mask = np.tril(np.ones((q.shape[-2], k.shape[-2]), dtype=bool))
        return softmax(np.where(mask, q @ np.swapaxes(k, -1, -2) * 0.25, -np.inf)) @ v

    args = heads(150, 150)
    for fn in (causal, triangle, lower):
        (kernel,) = kf.jit(fn).lower(*args).kernels
        assert ("live" in str(kernel.ir)) == (kf.default_device() == "cpu")
        np.testing.assert_allclose(kf.jit(fn)(*args), exact(fn, *args), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("fill", [-1e9, -30.0, float(np.finfo(np.float32).min)])
def test_finite_fills(fill: float) -> None:
    def filled(q: Any, k: Any, v: Any) -> Any:
        rows, columns = np.arange(q.shape[-2]), np.arange(k.shape[-2])
        s = np.where(rows[:, None] - 2 >= columns, q @ np.swapaxes(k, -1, -2), np.float32(fill))
        return softmax(s) @ v

    args = heads(150, 150)
    np.testing.assert_allclose(kf.jit(filled)(*args), exact(filled, *args), rtol=2e-4, atol=2e-5)


def test_a_bias() -> None:
    q, k, v = heads(20, 30)
    bias = np.where(normal(3, 20, 30, seed=8) > 1, -np.inf, normal(3, 20, 30, seed=8)).astype(np.float32)
    assert counted(biased, q, k, v, bias) == 1
    np.testing.assert_allclose(kf.jit(biased)(q, k, v, bias), exact(biased, q, k, v, bias), rtol=2e-4, atol=2e-5)


def test_grouped_heads() -> None:
    q, k, v = normal(2, 6, 33, 16), normal(2, 2, 70, 16, seed=1), normal(2, 2, 70, 16, seed=2)
    assert counted(grouped, q, k, v) == 1
    np.testing.assert_allclose(kf.jit(grouped)(q, k, v), exact(grouped, q, k, v), rtol=2e-4, atol=2e-5)


def test_heads_that_are_split_and_merged() -> None:
    args = (normal(2, 30, 32), *(normal(32, 32, seed=k) * np.float32(0.2) for k in (1, 2, 3)))
    assert counted(split_heads, *args) <= 4
    np.testing.assert_allclose(kf.jit(split_heads)(*args), exact(split_heads, *args), rtol=1e-3, atol=1e-4)


def test_strided_operands() -> None:
    q, k, v = (a.transpose(2, 0, 1, 3) for a in (normal(4, 40, 2, 16, seed=s) for s in range(3)))
    flipped = q[:, :, ::-1], k, v[..., ::-1]
    assert counted(attention, *flipped) == 1
    np.testing.assert_allclose(kf.jit(attention)(*flipped), exact(attention, *flipped), rtol=2e-4, atol=2e-5)


def test_dropout_of_probabilities() -> None:
    def dropped(key: Any, q: Any, k: Any, v: Any) -> Any:
        p = softmax(q @ np.swapaxes(k, -1, -2) * 0.25)
        return np.where(kf.random.bernoulli(key, 0.8, p.shape), p / 0.8, 0) @ v

    q, k, v = heads(20, 30)
    key = kf.random.key(3)
    keep = np.asarray(kf.random.bernoulli(key, 0.8, (2, 3, 20, 30)))
    p = softmax(exact(lambda q, k: q @ np.swapaxes(k, -1, -2) * 0.25, q, k))
    assert counted(dropped, key, q, k, v) == 1
    np.testing.assert_allclose(kf.jit(dropped)(key, q, k, v), np.where(keep, p / 0.8, 0) @ v, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("queries", "keys", "width"), [(65, 65, 8), (320, 320, 8), (257, 500, 1)])
def test_causal_dropout_reads_nothing_that_is_left_out(
    queries: int, keys: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "STORED", 0)
    draw = np.random.default_rng(7)
    q, k = (draw.standard_normal((1, 4, n, 16)).astype(np.float32) for n in (queries, keys))
    v, ct = (draw.standard_normal((1, 4, n, width)).astype(np.float32) for n in (keys, queries))

    def both(key: Any, ct: Any, q: Any, k: Any, v: Any) -> Any:
        def dropped(q: Any, k: Any, v: Any) -> Any:
            return kf.nn.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.3, dropout_key=key)

        y, pull = kf.vjp(dropped, q, k, v)
        return y, *pull(ct)

    fn = kf.jit(both)
    first, nan = kf.random.key(7), np.float32(np.nan)
    fn(first, ct * nan, q * nan, k, v)  # what memory holds then
    found = [np.asarray(x) for x in fn(first, ct, q, k, v)]
    with kf.default_device("opencl:0"):
        for ours, others in zip(found, fn(first, ct, q, k, v), strict=True):
            np.testing.assert_allclose(ours, others, rtol=2e-4, atol=2e-5)


def test_memory_is_linear_in_the_length() -> None:
    q, k, v = heads(8192, 8192, 4, 1, 1)
    plan = kf.jit(attention).lower(q, k, v)
    scratch = [int(a.size.value) for x in plan.kernels for a in x.ir.args if a.mode == "scratch"]
    assert sum(scratch) <= 16 * k.size
    ours = np.asarray(kf.jit(attention)(q, k, v))
    want = exact(attention, q[:, :, 8000:8010], k, v)
    np.testing.assert_allclose(ours[:, :, 8000:8010], want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 64, 301])
def test_a_small_network_is_one_kernel(rows: int) -> None:
    args = (
        normal(rows, 20), normal(20, 70, seed=1), normal(70), normal(70, 33, seed=2) * np.float32(0.1), normal(33),
        normal(33, 10, seed=3),
    )  # fmt: skip
    assert counted(mlp, *args) == (1 if rows > 3 else 3)
    np.testing.assert_allclose(kf.jit(mlp)(*args), exact(mlp, *args), rtol=1e-3, atol=1e-4)


def test_products_whose_weights_no_cache_holds_together_have_kernels_of_their_own() -> None:
    """Each alone is read again for each block of rows from a core's cache, both are from the one behind it."""
    x, w, v = normal(64, 400), normal(400, 300) * np.float32(0.1), normal(300, 300) * np.float32(0.1)
    two = lambda x, w, v: np.maximum(x @ w, 0) @ v  # noqa: E731
    assert counted(two, x, w[:, :100], v[:100]) == 1
    assert counted(two, x, w, v) == 2
    assert "of all other operands" in str(kf.jit(two).explain(x, w, v))
    np.testing.assert_allclose(kf.jit(two)(x, w, v), exact(two, x, w, v), rtol=1e-3, atol=1e-4)


def test_gradients_of_wide_weights_have_kernels_of_their_own() -> None:
    """Partial sums of a whole matrix would be read and written for every few rows."""

    def loss(weights: Any, x: Any) -> Any:
        for w in weights:
            x = np.maximum(x @ w, 0)
        return (x * x).sum()

    x = np.ones((2048, 300), np.float32)
    wide, narrow = (
        [np.ones((300, 300), np.float32)] * 2,
        [np.ones((300, 40), np.float32), np.ones((40, 40), np.float32)],
    )
    said = str(kf.jit(kf.grad(loss)).explain(wide, x))
    assert "a contraction over rows" in said
    assert len(kf.jit(kf.grad(loss)).lower(wide, x).kernels) == 3
    assert len(kf.jit(kf.grad(loss)).lower(narrow, x).kernels) == 2


def test_gradients_of_a_small_batch_have_kernels_of_their_own() -> None:
    """Caches hold the rows that are summed over, and a product is faster alone."""

    def loss(weights: Any, x: Any) -> Any:
        for w in weights:
            x = np.tanh(x @ w)
        return (x * x).sum()

    weights = [np.ones((64, 100), np.float32), np.ones((100, 10), np.float32)]
    few, many = (len(kf.jit(kf.grad(loss)).lower(weights, np.ones((n, 64), np.float32)).kernels) for n in (128, 4096))
    assert few > many


def test_large_weights_keep_their_kernels() -> None:
    types = [(64, 1024), (1024, 1024), (1024,), (1024, 1024), (1024,), (1024, 10)]
    args = [np.zeros(t, np.float32) for t in types]
    assert counted(mlp, *args) > 1
    text = kf.jit(mlp).explain(*args).words()
    assert "each block of rows would walk through 4,194,304 bytes" in text


def test_large_weights_have_kernels_of_their_own_though_what_they_make_is_larger() -> None:
    """Packed once, they serve many rows; but not at the price of the memory that attention would take."""
    x, w, v = (np.zeros(s, np.float32) for s in ((2048, 1024), (1024, 1024), (1024, 1024)))
    assert counted(lambda x, w, v: np.tanh(x @ w) @ v, x, w, v) == 2
    assert counted(attention, *(np.zeros((1, 5000, 64), np.float32),) * 3) == 1


@pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1", "cuda:0"])
@pytest.mark.parametrize("fn", [attention, causal, grouped])
def test_every_device(fn: Any, device: str) -> None:
    if device not in kf.devices():
        pytest.skip(f"no {device}")
    args = (
        normal(1, 2, 9, 5),
        normal(1, 1 if fn is grouped else 2, 11, 5, seed=1),
        normal(1, 1 if fn is grouped else 2, 11, 5, seed=2),
    )
    with kf.default_device(device):
        assert counted(fn, *args) == 1
        np.testing.assert_allclose(kf.jit(fn)(*args), exact(fn, *args), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("device", ["cpu", "opencl:0", "opencl:1"])
def test_gradients_of_a_plain_sum(device: str) -> None:
    """The cotangent is ones, which no operand of a product is: what is added up over rows has no columns of its own."""
    if device not in kf.devices():
        pytest.skip(f"no {device}")
    q, k, v = heads(64, 64, 64, 4, 8)
    with kf.default_device(device):
        found = kf.grad(lambda q, k, v: attention(q, k, v).sum(), argnums=(0, 1, 2))(q, k, v)
    _, *exact = exact_gradients(np.ones_like(q), q, k, v, True)
    for mine, wanted in zip(found, exact, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1"])
@pytest.mark.parametrize("queries", [2, 7])
def test_gradients_of_heads_in_f16(queries: int, device: str) -> None:
    """Both operands of a product that is made again row by row differ between sentences."""
    if device not in kf.devices():
        pytest.skip(f"no {device}")
    args = (normal(queries, 3, 4), normal(5, 3, 4), normal(12, 4, seed=1), normal(4, 4, seed=2))

    def loss(q: Any, k: Any, w: Any, out: Any) -> Any:
        made = kf.nn.multi_head_attention_forward(q, k, k, 4, 1, w, None, None, None, False, 0.0, out, None)
        return sum((o * o).sum() for o in made)

    expected = kf.grad(loss, argnums=(0, 1, 2, 3))(*(a.astype(np.float64) for a in args))
    with kf.default_device(device):
        found = kf.grad(loss, argnums=(0, 1, 2, 3))(*(a.astype(np.float16) for a in args))
    for mine, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=2e-2, atol=2e-2 * np.abs(exact).max())


@pytest.mark.parametrize("device", ["opencl:0", "opencl:1"])
@pytest.mark.parametrize("fn", [attention, causal])
def test_rows_that_local_memory_does_not_hold(fn: Any, device: str) -> None:
    """Buffers of rows are each worker's own, and there are as many workers at any length."""
    if device not in kf.devices():
        pytest.skip(f"no {device}")
    with kf.default_device(device):
        args = heads(1500, 9000, 8, 1, 1)
        (kernel,) = kf.jit(fn).lower(*args).kernels
        held: Any = kernel.executable
        assert sum(4 * math.prod(int(n.value) for n in s.shape) for s in held.printed.scratch) < 4 * 1500 * 9000
        np.testing.assert_allclose(kf.jit(fn)(*args), exact(fn, *args), rtol=2e-4, atol=2e-5)


def pulled(fn: Any, ct: Any, *args: Any) -> Any:
    y, pull = kf.vjp(fn, *args)
    return y, *pull(ct)


def exact_gradients(ct: Any, q: Any, k: Any, v: Any, mask: Any) -> Any:
    q, k, v, ct = (a.astype(np.float64) for a in (q, k, v, ct))
    p = softmax(np.where(mask, q @ np.swapaxes(k, -1, -2) * 0.25, -np.inf))
    dp = ct @ np.swapaxes(v, -1, -2)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * 0.25
    return p @ v, ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ ct


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 40, 40, 16),
        (1, 1, 131, 131, 33),
        (1, 2, 300, 300, 64),
        (1, 2, 70, 30, 5),
        (1, 1, 513, 512, 8),
        (15, 1, 400, 65, 8),
    ],
)
@pytest.mark.parametrize("fn", [attention, causal])
def test_gradients_in_one_kernel_with_the_values(
    fn: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelforge.ir.chains.STORED", 0)  # as if these were too large to be stored
    forget()
    b, h, queries, keys, d = shape
    q, k, v = heads(queries, keys, d, b, h)
    ct = normal(b, h, queries, d, seed=7)
    both = kf.jit(lambda *args: pulled(fn, *args))
    plan = both.lower(ct, q, k, v)
    assert len(plan.kernels) == 1
    assert all(int(a.size.value) <= 32 * max(q.size, k.size) for x in plan.kernels for a in x.ir.args)
    mask = np.tri(queries, keys, dtype=bool) if fn is causal else np.ones((queries, keys), bool)
    for ours, want in zip(both(ct, q, k, v), exact_gradients(ct, q, k, v, mask), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-3, atol=2e-5)


BOUNDS: dict[str, Callable[[Any, Any], Any]] = {
    "two columns a row": lambda i, j: 2 * i + 5 >= j,
    "fewer in later rows": lambda i, j: 190 - i > j,
    "rows that need none": lambda i, j: i - 70 >= j,
    "as many in all rows": lambda i, j: j < 70 + 0 * i,
    "one in three rows": lambda i, j: 3 * j <= i,
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_gradients_where_rows_need_other_columns(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelforge.ir.chains.STORED", 0)
    forget()

    def bounded(q: Any, k: Any, v: Any) -> Any:
        i, j = np.arange(q.shape[-2])[:, None], np.arange(k.shape[-2])
        return softmax(np.where(BOUNDS[bound](i, j), q @ np.swapaxes(k, -1, -2) * 0.25, np.float32(-1e9))) @ v

    q, k, v = heads(180, 200, 24, 1, 2)
    ct = normal(1, 2, 180, 24, seed=7)
    mask = BOUNDS[bound](np.arange(180)[:, None], np.arange(200))
    want = exact_gradients(ct, q, k, v, np.where(mask.any(axis=1, keepdims=True), mask, True))
    ours = kf.jit(lambda *args: pulled(bounded, *args))(ct, q, k, v)
    rows = mask.any(axis=1)
    np.testing.assert_allclose(np.asarray(ours[0])[:, :, rows], want[0][:, :, rows], rtol=1e-3, atol=2e-5)
    if rows.all():
        for got, expected in zip(ours, want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-5)
    else:
        np.testing.assert_allclose(
            np.asarray(ours[0])[:, :, ~rows], np.broadcast_to(v.mean(2, keepdims=True), ours[0].shape)[:, :, ~rows],
            rtol=1e-3, atol=2e-5,
        )  # fmt: skip


@pytest.mark.parametrize("fn", [attention, causal])
def test_a_loss_behind_attention_stores_no_square(fn: Any) -> None:
    def loss(q: Any, k: Any, v: Any, w: Any) -> Any:
        return (np.tanh(fn(q, k, v) @ w) ** 2).sum()

    q, k, v = heads(300, 300, 8, 1, 1)
    w = normal(8, 8)
    gradient = kf.grad(loss, argnums=(0, 1, 2, 3))
    plan = kf.jit(gradient).lower(q, k, v, w)
    assert len(plan.kernels) <= 4
    assert all(int(a.size.value) <= 32 * q.size for x in plan.kernels for a in x.ir.args)
    ours = kf.jit(gradient)(q, k, v, w)
    with kf.default_device("reference"), kf.config(fusion=False):
        small = [a[:, :, :20] for a in (q, k, v)]
        want = [np.asarray(g) for g in kf.jit(gradient)(*small, w)]
    for got, expected in zip(kf.jit(gradient)(*small, w), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-5)
    assert all(np.isfinite(np.asarray(g)).all() for g in ours)


def test_what_is_made_of_a_sum_over_rows_is_no_part_of_its_chain() -> None:
    """An update of weights reads a gradient that ends a kernel."""
    rng = np.random.default_rng(0)
    x, w, v = (rng.standard_normal(s).astype(np.float32) / 8 for s in ((1024, 64), (64, 64), (64, 64)))

    def step(x: Any, w: Any, v: Any) -> Any:
        first, second = kf.grad(lambda w, v: ((np.tanh(x @ w.T) @ v.T) ** 2).sum(), argnums=(0, 1))(w, v)
        return np.sin(w - first), v - second

    h = np.tanh(x.astype(np.float64) @ w.T)
    made = 2 * (h @ v.T)
    expected = np.sin(w - ((made @ v) * (1 - h * h)).T @ x), v - made.T @ h
    for mine, other in zip(kf.jit(step)(x, w, v), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-4, atol=2e-4)
