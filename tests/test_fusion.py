"""How many kernels a function becomes, forward and with its gradients, and that they compute the right thing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import nn
from kernelforge.ir.kernel import For, If, Op, Stmt, exprs, stmts, walk

F32 = np.float32


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(F32)


def kernels(fn: Callable[..., Any], *args: Any) -> int:
    return len(kf.jit(fn).lower(*args).kernels)


def pulled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make the function of a cotangent and ``fn``'s arguments that gives all gradients."""

    def backward(ct: Any, *args: Any) -> Any:
        _, pull = kf.vjp(fn, *args)
        return pull(ct)

    return backward


def chain(x, a, b):
    y = np.tanh(a * x + b)
    return y * 2 + np.exp(-x * x), np.where(y > 0, y, np.sqrt(np.abs(x) + 1))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x):
    m = x.max(axis=-1, keepdims=True)
    return x - m - np.log(np.exp(x - m).sum(axis=-1, keepdims=True))


def layer_norm(x):
    mean = x.mean(axis=-1, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5)


def rms_norm(x):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)


def affine_norm(x, gamma, beta):
    return layer_norm(x) * gamma + beta


def around(x):
    return np.tanh(softmax(x * 2.0 + 1.0)) * 3.0


def layer(x, w, b):
    return np.tanh(x @ w + b)


def residual(x, w, b, r):
    return np.maximum(x @ w + b, 0) * 0.5 + r


X, W, B = normal(12, 20), normal(20, 36), normal(36)

FORWARD = [
    (chain, (X, normal(12, 20, seed=1), normal(20)), 1),
    (softmax, (X,), 1),
    (log_softmax, (X,), 1),
    (layer_norm, (X,), 1),
    (rms_norm, (X,), 1),
    (affine_norm, (X, normal(20), normal(20, seed=2)), 1),
    (around, (X,), 1),
    (lambda x: x.var(axis=-1), (X,), 1),
    (lambda x: np.sum(x, axis=0) * 2, (X,), 1),
    (lambda x: x.sum(), (X,), 1),
    (layer, (X, W, B), 1),
    (residual, (X, W, B, normal(12, 36)), 1),
    (lambda x: np.argmax(x, axis=-1), (X,), 1),
    (lambda x: (np.exp(x) + 1, (np.exp(x) + 1).sum(axis=-1)), (normal(12, 300),), 1),
    (lambda x: x[1:-1] * 2 - x[2:] - x[:-2], (X,), 1),
    (lambda x, y: np.concatenate([x * 2, y.T], axis=0) + 1, (X, normal(20, 3)), 1),
]


@pytest.mark.parametrize(("fn", "args", "expected"), FORWARD, ids=lambda v: getattr(v, "__name__", None))
def test_forward_counts(fn: Any, args: Any, expected: int) -> None:
    assert kernels(fn, *args) == expected
    for ours, theirs in zip(_flat(kf.jit(fn)(*args)), _flat(fn(*args)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


BACKWARD = [
    (chain, (X, normal(12, 20, seed=1), normal(12, 20, seed=3)), 1),
    (softmax, (X,), 1),
    (log_softmax, (X,), 1),
    (layer_norm, (X,), 1),
    (rms_norm, (X,), 1),
    (around, (X,), 1),
]


@pytest.mark.parametrize(("fn", "args", "expected"), BACKWARD, ids=lambda v: getattr(v, "__name__", None))
def test_backward_counts(fn: Any, args: Any, expected: int) -> None:
    out = fn(*args)
    ct = tuple(normal(*o.shape, seed=7) for o in out) if isinstance(out, tuple) else normal(*out.shape, seed=7)
    assert kernels(pulled(fn), ct, *args) <= expected


def test_affine_parameters_cost_one_more() -> None:
    args = (X, normal(20), normal(20, seed=2))
    assert kernels(pulled(affine_norm), normal(12, 20, seed=5), *args) <= 3


def gelu(x, b):
    y = x + b
    return 0.5 * y * (1 + np.tanh(0.7978845608 * (y + 0.044715 * y * y * y)))


@pytest.mark.parametrize(
    ("fn", "args"),
    [(gelu, (normal(70, 130), normal(130))), (affine_norm, (normal(70, 130), normal(130), normal(130, seed=2)))],
)
def test_gradients_of_columns_are_made_with_the_rows(fn: Any, args: Any) -> None:
    ct = normal(70, 130, seed=5)

    def both(ct: Any, *args: Any) -> Any:
        y, pull = kf.vjp(fn, *args)
        return y, *pull(ct)

    assert kernels(both, ct, *args) == 1
    ours, step = kf.jit(both)(ct, *args), 1e-6
    exact = [a.astype(np.float64) for a in args]
    np.testing.assert_allclose(ours[0], fn(*exact), rtol=1e-4, atol=1e-4)
    for k, gradient in enumerate(ours[1:]):
        moved = [a + step * gradient if i == k else a for i, a in enumerate(exact)]
        slope = ((fn(*moved) - fn(*exact)) * ct).sum() / step
        np.testing.assert_allclose(slope, (gradient.astype(np.float64) ** 2).sum(), rtol=1e-3)


def test_strided_rows_are_summed_as_columns() -> None:
    x = normal(6, 40, 2, 80)[::2, ::-1, 1, ::-1]
    ours = kf.jit(lambda x: (x * 2, x.sum(axis=(0, 1)), x[0].sum(axis=0)))(x)
    for got, want in zip(ours, (x * 2, x.sum(axis=(0, 1)), x[0].sum(axis=0)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fn", [layer, residual])
def test_matmul_backward_is_three(fn: Any) -> None:
    rest = () if fn is layer else (normal(12, 36),)

    def backward(ct: Any, x: Any, w: Any, b: Any) -> Any:
        _, pull = kf.vjp(lambda *args: fn(*args, *rest), x, w, b)
        return pull(ct)

    ct = normal(12, 36, seed=4)
    assert kernels(backward, ct, X, W, B) <= 1 + 3
    dx, dw, db = (np.asarray(g, np.float64) for g in kf.jit(backward)(ct, X, W, B))
    z = X.astype(np.float64) @ W + B
    dz = ct * (1 - np.tanh(z) ** 2 if fn is layer else 0.5 * (z > 0))
    for got, want in ((dx, dz @ W.T), (dw, X.T @ dz), (db, dz.sum(0))):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_adam_is_one_kernel() -> None:
    params = {"w": normal(30, 7), "b": normal(7), "c": {"k": normal(3, 3, 2, 4)}}
    zeros = {"w": np.zeros((30, 7), F32), "b": np.zeros(7, F32), "c": {"k": np.zeros((3, 3, 2, 4), F32)}}

    def adam(step, params, m, v, grads):
        import optree

        def one(p, m, v, g):
            m2, v2 = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            return p - 0.01 * (m2 / (1 - 0.9**step)) / (np.sqrt(v2 / (1 - 0.999**step)) + 1e-8), m2, v2

        return optree.tree_map(one, params, m, v, grads)

    args = (np.float32(3), params, zeros, zeros, params)
    assert kernels(adam, *args) == 1
    ours, theirs = _flat(kf.jit(adam)(*args)), _flat(adam(*args))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_adam_behind_a_common_norm_is_two_kernels() -> None:
    """All arrays are updated side by side, rather than one after the other by who added up their squares."""
    optimizer = kf.optim.chain(kf.optim.clip_by_global_norm(1.0), kf.optim.adam(1e-3))
    params = [normal(30, 7), normal(7), normal(3, 3, 2, 4), normal(40, 30), normal(1)]

    def update(state, grads, params):
        return optimizer.update(state, grads, params)

    assert kernels(update, optimizer.init(params), params, params) == 2


def _flat(tree: Any) -> list[np.ndarray]:
    import optree

    return [np.asarray(x) for x in optree.tree_leaves(tree)]


@pytest.mark.parametrize("n", [1 << 20, (1 << 20) + 1, (1 << 21) + 3])
def test_long_sums_are_accurate(n: int) -> None:
    x = np.full(n, 0.1, F32)
    np.testing.assert_allclose(kf.jit(np.sum)(x), x.astype(np.float64).sum(), rtol=2e-5)


def test_long_sums_against_memory_are_accurate() -> None:
    """Elements that do not follow each other are not summed in lanes, but in blocks as well."""
    x = np.full((8, 1 << 17), 0.1, F32)[:, ::-1]
    np.testing.assert_allclose(kf.jit(lambda x: np.sum(x, -1))(x), x.astype(np.float64).sum(-1), rtol=2e-5)


def test_nothing_is_joined_to_nothing() -> None:
    def fn(x, y):
        return (np.concatenate([x * 2, y * 3]) + 1) * np.concatenate([x, y])

    assert kf.jit(fn)(np.zeros((0, 3), F32), np.zeros((0, 3), F32)).shape == (0, 3)


def attention(q, k, v):
    return softmax(q @ np.swapaxes(k, -1, -2) * 0.25) @ v


def causal(q, k, v):
    s = q @ np.swapaxes(k, -1, -2) * 0.25
    rows = np.arange(s.shape[-1])
    return softmax(np.where(rows[:, None] >= rows, s, -np.inf)) @ v


def masked(q, k, v):
    return softmax(np.where(MASK, q @ np.swapaxes(k, -1, -2) * 0.25, -np.inf)) @ v


def biased(q, k, v):
    return softmax(q @ np.swapaxes(k, -1, -2) * 0.25 + BIAS) @ v


def grouped(q, k, v):
    b, h, n, d = q.shape
    s = np.einsum("bgrid,bgjd->bgrij", q.reshape(b, 2, h // 2, n, d), k[:, :2]) * 0.25
    return np.einsum("bgrij,bgjd->bgrid", softmax(s), v[:, :2]).reshape(b, h, n, -1)


MASK, BIAS = np.tri(40, dtype=bool)[::-1], normal(40, 40, seed=8)
HEADS = tuple(normal(1, 4, 40, 16, seed=k) for k in range(3))
GPUS = {"cuda": "cuda:sm_80", "opencl gpu": "opencl:gfx90a"}


def on(place: str, fn: Any, *args: Any) -> list[Any]:
    """Return the kernels for a device, or for a GPU that need not be there."""
    if place in GPUS:
        return list(kf.jit(fn).lower(*args, target=GPUS[place]).kernels)
    if place not in kf.devices():
        pytest.skip(f"no {place}")
    with kf.default_device(place):
        return list(kf.jit(fn).lower(*args).kernels)


@pytest.mark.parametrize("place", ["cpu", "reference", "opencl:0", *GPUS])
@pytest.mark.parametrize("fn", [attention, causal, masked, biased, grouped])
def test_attention_is_one_kernel_on_every_device(fn: Any, place: str) -> None:
    assert len(on(place, fn, *HEADS)) == 1
    assert len(on(place, pulled(fn), HEADS[0], *HEADS)) <= (3 if fn is not grouped else 4)


@pytest.mark.parametrize("place", ["cpu", "opencl:0", *GPUS])
@pytest.mark.parametrize("fn", [attention, causal])
def test_memory_of_attention_is_linear_in_its_length(fn: Any, place: str) -> None:
    """At 8192 the square is 256 MiB, and all that a kernel is given or makes is a hundredth of it a head."""
    args = tuple(normal(1, 1, 8192, 64, seed=k) for k in range(3))
    for kernel in [*on(place, fn, *args), *on(place, pulled(fn), args[0], *args)]:
        assert all(int(a.size.value) <= 40 * args[0].size for a in kernel.ir.args)
        if place in GPUS:
            assert all(int(a.size.value) <= args[0].size for a in kernel.ir.args)


def test_what_is_costly_is_not_made_inside_of_a_scatter() -> None:
    """A scatter goes one element after the other; a search before it goes by vectors, in a kernel of its own."""
    x, edges = np.linspace(0, 1, 4096), np.linspace(0, 1, 100)
    search, scatter = kf.jit(lambda x, e: np.histogram(x, e)[0]).lower(x, edges).kernels
    assert "vector" in str(search.ir)
    assert "f64" not in str(scatter.ir)
    (added,) = kf.jit(lambda x, i: kf.numpy.zeros(9).at[i].add(2 * x)).lower(x, np.arange(4096) % 9).kernels
    assert "2.0" in str(added.ir)


def test_much_work_goes_by_vectors_before_a_scatter() -> None:
    """Neither fused nor recomputed in it, although what it is made of is smaller."""

    def turned(image: Any, angles: Any) -> Any:
        c = np.arange(32, dtype=np.float32) - 15.5
        s, u = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
        y, x = s * c + u * c[:, None] + 15.5, u * c - s * c[:, None] + 15.5
        i, j = np.floor(y), np.floor(x)
        w = (1 - (y - i)) * (1 - (x - j))
        return (w * image[np.clip(i, 0, 31).astype(np.int32), np.clip(j, 0, 31).astype(np.int32)]).sum(1)

    rng = np.random.default_rng(0)
    image, angles = rng.random((32, 32), np.float32), np.linspace(0, 3, 45, dtype=np.float32)
    pulled = kf.jit(kf.grad(lambda image, angles: (turned(image, angles) ** 2).sum()))
    (last,) = (k for k in pulled.lower(image, angles).kernels if "scatter" in k.name)
    assert "floor" not in str(last.ir)
    assert "sin" not in last.name
    for device in kf.devices():
        with kf.default_device(device):
            found = np.asarray(pulled(image, angles))
        step = np.float64(1e-3) * rng.standard_normal(image.shape)
        wide = image.astype(np.float64)
        slope = ((turned(wide + step, angles) ** 2).sum() - (turned(wide - step, angles) ** 2).sum()) / 2
        np.testing.assert_allclose((found * step).sum(), slope, rtol=1e-3)


def test_what_gathers_read_often_is_made_once() -> None:
    a, order, v = np.linspace(0, 1, 100), np.arange(100)[::-1].copy(), np.linspace(0, 1, 4096)
    sort, _ = kf.jit(lambda a, v, order: np.searchsorted(a, v, sorter=order)).lower(a, v, order).kernels
    assert "f64[100]" in str(sort.ir)
    assert "4096" not in str(sort.ir)
    assert len(kf.jit(lambda a, i, j: np.exp(a[i])[j]).lower(a, order, order).kernels) == 1


@pytest.mark.parametrize(("repeat", "count"), [("rows", 2), ("columns", 1)])
def test_rows_that_repeat_are_copied(repeat: str, count: int) -> None:
    """A nest of the sums would write each of them to all rows, a row apart."""

    def fn(x: Any) -> Any:
        made = np.sum(x * x, axis=1)
        return np.broadcast_to(made if repeat == "rows" else made[:, None], (48, 40))

    x = normal(40 if repeat == "rows" else 48, 33)
    assert kernels(fn, x) == count
    np.testing.assert_allclose(np.asarray(kf.jit(fn)(x)), fn(x), rtol=1e-5)


def test_copies_of_a_contractions_results_are_a_map() -> None:
    """A tile of results would be stored once for each copy, one element after the other; few copies join."""

    def gated(s: Any, w: Any, x: Any) -> Any:
        return x * (s @ w)[:, :, None]

    for pixels, count in ((2, 1), (256, 2)):
        given = np.ones((8, 16), F32), np.ones((16, 24), F32), np.ones((8, 24, pixels), F32)
        assert len(kf.jit(gated).lower(*given).kernels) == count
        np.testing.assert_allclose(kf.jit(gated)(*given), gated(*given))


@pytest.mark.parametrize("axis", [0, 1])
def test_what_lies_behind_each_other_is_made_part_by_part(device: str, axis: int) -> None:
    """In one launch, where lanes choose among none of the parts, and only one of them takes exponentials."""

    def fn(x: Any) -> Any:
        return np.concatenate([x + 1, np.exp(x), x], axis)

    x = normal(30, 70)
    (made,) = kf.jit(fn).lower(x).kernels
    (small,) = kf.jit(fn).lower(x[:1, :9]).kernels
    assert "select(" in str(made.naive)
    if device != "reference":  # which runs naive kernels
        assert len(made.ir.body) == 1
        assert not re.search(r"select\([^()]*x0", str(made.ir))
        assert re.search(r"select\([^()]*x0", str(small.ir)), "too little to tell apart"
    np.testing.assert_allclose(np.asarray(kf.jit(fn)(x)), fn(x), rtol=1e-6)


@pytest.mark.parametrize(("move", "chosen"), [
    (lambda x: np.roll(x, 1), True), (lambda x: x - np.roll(x, -5), True),
    (lambda x: np.pad(x, 3, mode="reflect"), True), (lambda x: np.roll(x.reshape(-1, 200), 37, 1), False),
    (lambda x: np.roll(x.reshape(50, -1), (1, -1), (0, 1)), True),
    (lambda x: np.pad(x.reshape(50, -1), ((0, 0), (2, 2))), True),
])  # fmt: skip
def test_what_goes_in_a_circle_is_cut_where_it_turns(device: str, move: Callable[[Any], Any], chosen: bool) -> None:
    """Elements are chosen among in the lines alone where it turns, one at either end of a row at most: processors take
    long to read with no lane where no memory is, and to write parts of a line past the cache.
    """

    def choosing(body: Sequence[Stmt]) -> int:
        """Count the elements; of conditions, which tell parts of a grid apart, one holds."""
        asked = (any(isinstance(e, Op) and e.op == "select" for r in exprs(s) for e in walk(r)) for s in body)
        total = sum(asked) + sum(choosing(s.body) for s in body if isinstance(s, If))
        for loop in (s for s in body if isinstance(s, For)):
            times = 1 if any(isinstance(s, If) for s in loop.body) and loop.kind == "grid" else loop.static or 0
            total += times * choosing(loop.body)
        return total

    x = normal(5000)
    (made,) = kf.jit(move).lower(x).kernels
    if device != "reference":
        assert len(made.ir.body) == 1
        assert choosing(made.naive.body) == move(x).size
        rows = move(x).shape[0] if move(x).ndim > 1 else 1
        assert chosen <= choosing(made.ir.body) <= chosen * rows * 2 * 16
    np.testing.assert_array_equal(np.asarray(kf.jit(move)(x)), move(x))


@pytest.mark.parametrize(("shape", "kernels"), [
    ((6000, 24), 3), ((6000, 64), 1), ((600, 24), 1), ((500, 200), 1), ((140000, 64), 3), ((64, 600, 32), 1),
    ((2, 6000, 24), 3),
])  # fmt: skip
def test_long_columns_are_reduced_and_read_again_row_by_row(shape: tuple[int, ...], kernels: int) -> None:
    """Where their rows are no whole lines, or lie in more bytes than caches hold."""

    def standardized(x: Any) -> Any:
        return (x - x.mean(-2, keepdims=True)) / x.std(-2, keepdims=True)

    x = normal(*shape)
    fn = kf.jit(standardized)
    assert len(fn.lower(x).kernels) == kernels
    np.testing.assert_allclose(np.asarray(fn(x)), standardized(x.astype(np.float64)), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("fn", "kernels"), [
    (lambda x, g: x * np.power(g, 0.3), 2), (lambda x, g: (x - g) / np.sqrt(g + 1), 2), (lambda x, g: x * g + g, 1),
    (lambda x, g: x.T * np.power(g, 0.3)[:, None], 1), (lambda x, g: (x * np.exp(g)).sum(-1), 2),
    (lambda x, g: (x * np.exp(g)).sum(0), 2), (lambda x, g: x[:3] * np.exp(g), 1),
    (lambda x, g: x + np.sin(np.arange(1024, dtype=F32)), 2), (lambda x, g: x + np.arange(1024, dtype=F32), 1),
    (lambda x, g: x * np.exp(g[0]), 1), (lambda x, g: np.exp(g) * 2 + x[0], 1),
])  # fmt: skip
def test_what_each_row_repeats_is_computed_once(fn: Callable[[Any, Any], Any], kernels: int) -> None:
    """Where that takes longer than to store it, and no loop inside of the rows could leave it outside."""
    x, g = normal(512, 1024), np.abs(normal(1024))
    made = kf.jit(fn)
    assert len(made.lower(x, g).kernels) == kernels
    np.testing.assert_allclose(np.asarray(made(x, g)), fn(x, g), rtol=2e-5, atol=2e-5)


def test_gradients_of_transposed_convolutions_are_strided_ones() -> None:
    """Windows of blocks are walked as the windows of pixels that they are."""

    def loss(x: Any, w: Any) -> Any:
        return (nn.conv_transpose2d(x, w, stride=2, padding=1) ** 2).sum()

    x, w, image = np.ones((2, 8, 6, 6), F32), np.ones((8, 3, 4, 4), F32), np.ones((2, 3, 12, 12), F32)
    ours = kf.jit(kf.grad(loss)).lower(x, w).kernels[-1].naive
    plain = kf.jit(lambda x, w: nn.conv2d(x, w, stride=2, padding=1)).lower(image, w).kernels[-1].naive
    loops = [[int(s.extent.value) for s in stmts(k.body) if isinstance(s, For)] for k in (ours, plain)]  # type: ignore[attr-defined]
    assert loops[0] == loops[1] == [2, 8, 6, 6, 3, 4, 4]


def test_gradients_of_a_mean_behind_a_convolution_of_one_pixel_are_of_means() -> None:
    """Windows of one pixel do not hide that its gradient is repeated: no pixel is contracted anew."""

    def loss(x: Any, w: Any) -> Any:
        return (nn.conv2d(x, w).mean((2, 3)) ** 2).sum()

    x, w = np.ones((2, 8, 16, 16), F32), np.ones((16, 8, 1, 1), F32)
    made = kf.jit(kf.grad(loss)).lower(x, w).graph
    (last,) = [n for n in made.nodes if n.prim.name == "contract"][1:]
    assert last.output.type.size == 2 * 8


def test_gradients_of_a_plain_sum_of_products_contract_nothing() -> None:
    """Their cotangent is the same number everywhere, so they are sums of the operands, repeated."""
    x, w = normal(48, 33), normal(33, 40, seed=1)
    for scale in (1.0, 0.25):
        dx, dw = kf.grad(lambda x, w: scale * (x @ w).sum(), argnums=(0, 1))(x, w)  # noqa: B023 - called at once
        np.testing.assert_allclose(np.asarray(dx), np.broadcast_to(scale * w.sum(1), x.shape), rtol=1e-4, atol=1e-5)
        want = np.broadcast_to(scale * x.sum(0)[:, None], w.shape)
        np.testing.assert_allclose(np.asarray(dw), want, rtol=1e-4, atol=1e-5)
    found = kf.jit(kf.grad(lambda x, w: (x @ w).sum(), argnums=(0, 1))).lower(x, w)
    assert sum(k.flops for k in found.kernels) < 8 * (x.size + w.size)
