"""``vmap``: against a loop over the examples, under and over all other transforms, and the text of each refusal."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape)


def looped(fn: Any, in_axes: tuple[int | None, ...], *args: Any) -> Any:
    size = next(x.shape[a] for x, a in zip(args, in_axes, strict=True) if a is not None)
    picked = ([x if a is None else np.take(x, k, a) for x, a in zip(args, in_axes, strict=True)] for k in range(size))
    return np.stack([np.asarray(fn(*p)) for p in picked])


def while_loop(x: Any) -> Any:
    return kf.while_loop(lambda c: c[0] < 100.0, lambda c: (c[0] * 2.0, c[1] + 1), (x, 0))[1]


def scanned(x: Any, w: Any) -> Any:
    def step(carry: Any, row: Any) -> Any:
        carry = (np.tanh(carry[0] * w + row), carry[1] + 1)
        return carry, carry[0].sum() * carry[1]

    (h, count), ys = kf.scan(step, (x[0], 0), x)
    return ys.sum() + h[0] * count


PROGRAMS: dict[str, tuple[Any, tuple[int | None, ...], tuple[Any, ...]]] = {
    "product": (lambda x, w: np.tanh(x @ w), (0, None), (normal(5, 4), normal(4, 3))),
    "product of both": (lambda x, w: x @ w, (1, 0), (normal(4, 5), normal(5, 4, 3))),
    "softmax": (lambda x: np.exp(x) / np.exp(x).sum(), (1,), (normal(6, 4),)),
    "sort": (lambda x: np.sort(x)[::-1].cumsum(), (0,), (normal(3, 9),)),
    "index": (lambda x, i: x[i, ::-1], (None, 0), (normal(6, 2), np.array([1, -1, 3]))),
    "indexed": (lambda x, i: x[i], (1, None), (normal(9, 2), np.array([1, 2, -1]))),
    "update": (lambda x, i: np.where(np.arange(4) == i, 2.0, x), (0, 0), (normal(3, 4), np.arange(3))),
    "pad": (lambda x, v: np.pad(x, 1, constant_values=0.0) + v, (0, 0), (normal(3, 4), normal(3))),
    "while": (while_loop, (0,), (np.array([1.0, 30.0, 200.0]),)),
    "scan": (scanned, (0, None), (normal(5, 6, 3), normal(3))),
    "scan, shared xs": (scanned, (None, 0), (normal(6, 3), normal(5, 3))),
    "cond": (
        lambda x: kf.cond(x.sum() > 0, np.sin, lambda x: x * 2.0, x), (0,), (normal(8, 3),)
    ),
    "cond of all": (
        lambda x, p: kf.cond(p > 0, np.sin, lambda x: x * 2.0, x), (0, None), (normal(8, 3), np.array(1.0))
    ),
    "solve": (lambda a, b: np.linalg.solve(a @ a.T + np.eye(3), b), (0, None), (normal(4, 3, 3), normal(3))),
    "gradient": (kf.grad(lambda w, x: (np.tanh(x @ w) ** 2).sum()), (None, 0), (normal(4, 3), normal(5, 4))),
    "nested": (kf.vmap(lambda x, y: x @ y, (None, 0)), (0, None), (normal(4, 3), normal(5, 3))),
    "compiled": (kf.jit(lambda x: x * x.sum()), (0,), (normal(4, 3),)),
    "checkpoint": (kf.checkpoint(lambda x: np.sin(x).sum()), (0,), (normal(4, 3),)),
}  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_against_a_loop(name: str, device: str) -> None:
    fn, in_axes, args = PROGRAMS[name]
    with kf.default_device(device):
        want = looped(fn, in_axes, *args)
        np.testing.assert_allclose(np.asarray(kf.vmap(fn, in_axes)(*args)), want, rtol=1e-9, atol=1e-12)
        last = kf.jit(kf.vmap(fn, in_axes, -1))
        np.testing.assert_allclose(np.asarray(last(*args)), np.moveaxis(want, 0, -1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["product", "softmax", "scan", "scan, shared xs", "cond", "solve", "checkpoint"])
def test_gradients_of_a_batch(name: str) -> None:
    fn, in_axes, args = PROGRAMS[name]

    def of_batch(*args: Any) -> Any:
        return (kf.vmap(fn, in_axes)(*args) ** 2).sum()

    def one_by_one(*args: Any) -> Any:
        size = next(x.shape[a] for x, a in zip(args, in_axes, strict=True) if a is not None)
        total = 0.0
        for k in range(size):
            index = [(slice(None),) * (a or 0) + (k,) for a in in_axes]
            total = (
                total
                + (fn(*[x if a is None else x[i] for x, a, i in zip(args, in_axes, index, strict=True)]) ** 2).sum()
            )
        return total

    argnums = tuple(range(len(args)))
    for got, want in zip(kf.grad(of_batch, argnums)(*args), kf.grad(one_by_one, argnums)(*args), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-8, atol=1e-10)


def test_a_derivative_of_ones_own() -> None:
    @kf.custom_vjp
    def doubled(x: Any, w: Any) -> Any:
        return x * w

    doubled.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, g: (g * kept[1] * 10.0, (g * kept[0]) * 100.0))
    x, w = normal(5, 3), normal(3)
    found = kf.grad(lambda x, w: kf.vmap(doubled, (0, None))(x, w).sum(), (0, 1))(x, w)
    np.testing.assert_allclose(np.asarray(found[0]), np.broadcast_to(10 * w, x.shape))
    np.testing.assert_allclose(np.asarray(found[1]), 100 * x.sum(0))
    inside = kf.vmap(kf.grad(lambda x, w: doubled(x, w).sum()), (0, None))(x, w)
    np.testing.assert_allclose(np.asarray(inside), np.broadcast_to(10 * w, x.shape))
    _, tangent = kf.jvp(lambda x: kf.vmap(doubled, (0, None))(x, w), (x,), (np.ones_like(x),))
    np.testing.assert_allclose(np.asarray(tangent), np.broadcast_to(10 * w, x.shape))


def test_a_branch_that_is_not_taken_has_no_gradient() -> None:
    def fn(x: Any) -> Any:
        return kf.cond(x > 0, np.sqrt, lambda x: x * x, x)

    x = np.array([4.0, 0.0, -1.0])
    for made in (kf.vmap(kf.grad(fn))(x), kf.grad(lambda x: kf.vmap(fn)(x).sum())(x)):
        np.testing.assert_array_equal(np.asarray(made), [0.25, 0.0, -2.0])
    _, tangent = kf.jvp(kf.vmap(fn), (x,), (np.ones(3),))
    np.testing.assert_array_equal(np.asarray(tangent), [0.25, 0.0, -2.0])
    second = kf.hessian(lambda x: kf.vmap(fn)(x).sum())(x)
    np.testing.assert_array_equal(np.asarray(second), np.diag([-1 / 32, 2.0, 2.0]))


def test_a_pullback_of_known_values() -> None:
    x, basis = normal(3), np.eye(3)
    _, pullback = kf.vjp(np.sin, x)
    for made in (kf.vmap(pullback), kf.jit(kf.vmap(pullback))):
        np.testing.assert_allclose(np.asarray(made(basis)[0]), np.diag(np.cos(x)))


def test_pickled() -> None:
    made = pickle.loads(pickle.dumps(kf.jit(kf.vmap(np.vdot, (0, None), 0))))
    np.testing.assert_allclose(np.asarray(made(np.eye(3), np.arange(3.0))), np.arange(3.0))


def test_random_numbers_are_those_of_each_key() -> None:
    keys = np.stack([np.asarray(kf.random.key(k)) for k in range(4)])
    found = kf.vmap(lambda key: kf.random.uniform(key, (5,)))(keys)
    want = np.stack([np.asarray(kf.random.uniform(k, (5,))) for k in keys])
    np.testing.assert_array_equal(np.asarray(found), want)
    made = kf.jit(kf.vmap(lambda key: kf.random.uniform(key, (5,)))).lower(keys)
    assert len(made.kernels) == 1
    with pytest.raises(errors.DtypeMismatch, match="take one for each example with vmap"):
        kf.random.uniform(keys, (5,))


def test_axes_of_pytrees() -> None:
    given = {"w": normal(2, 3), "b": normal(4, 2)}
    other = (normal(2), 3.0, None, "name")

    def fn(p: Any, rest: Any, scale: Any) -> Any:
        return {"y": p["w"] @ p["b"][:3] if p["b"].shape[0] > 2 else 0.0, "z": rest[0] * rest[1]}, scale

    p = {"w": given["w"], "b": normal(3, 2)}
    out, scale = kf.vmap(fn, ({"w": 0, "b": 1}, (0, None, None, None), None), ({"y": 0, "z": 0}, None))(p, other, 2.0)
    np.testing.assert_allclose(np.asarray(out["y"]), (p["w"] * p["b"].T).sum(1))
    np.testing.assert_allclose(np.asarray(out["z"]), other[0] * 3.0)
    assert float(scale) == 2.0
    named = kf.vmap(lambda x, k: x + k, (None,))(np.array(1.0), k=np.arange(3.0))
    np.testing.assert_allclose(np.asarray(named), [1.0, 2.0, 3.0])


def test_integers_that_all_share_are_what_they_are() -> None:
    x = normal(4, 6)
    shaped = kf.vmap(lambda x, n, flag: x.reshape(n, -1) if flag else x, (0, None, None))
    np.testing.assert_array_equal(np.asarray(shaped(x, 3, True)), x.reshape(4, 3, 2))
    np.testing.assert_array_equal(np.asarray(kf.jit(lambda x: shaped(x, 2, False))(x)), x)


@pytest.mark.parametrize("size", [0, 1])
def test_few_examples(size: int) -> None:
    found = kf.vmap(lambda x: np.tanh(x).sum())(np.ones((size, 3), np.float32))
    assert found.shape == (size,)
    assert found.dtype == np.float32


@pytest.mark.parametrize("size", [0, 1])
def test_loops_of_few_examples(size: int) -> None:
    x, n = np.ones((size, 3)), np.full(size, 2)
    found = kf.vmap(lambda x: kf.while_loop(lambda c: c.sum() < 10, lambda c: c * 2, x))(x)
    np.testing.assert_array_equal(np.asarray(found), x * 4)
    found = kf.vmap(lambda x, n: kf.fori_loop(0, n, lambda i, c: c + i, x))(x, n)
    np.testing.assert_array_equal(np.asarray(found), x + 1)


def test_it_is_one_product_for_all() -> None:
    x, w = np.ones((64, 32), np.float32), np.ones((32, 16), np.float32)
    found = kf.jit(kf.vmap(lambda x, w: np.maximum(x @ w, 0), (0, None))).lower(x, w)
    assert len(found.kernels) == 1
    (node,) = (n for n in found.graph.nodes if n.prim.name == "contract")
    assert [v.type.shape for v in node.inputs] == [(64, 32), (32, 16)]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: kf.vmap(np.sin)(1.0), "vmap: in_axes of args[0]=0 is not valid; expected an axis of"),
        (
            lambda: kf.vmap(np.sin, 2)(np.ones(3)),
            "in_axes of args[0]=2 is not valid; expected an axis of f64[3], or None",
        ),
        (
            lambda: kf.vmap(np.add)(np.ones(3), np.ones(4)),
            "args[1]='f64[4]' is not valid; expected 3 examples along axis 0, as in the arguments before",
        ),
        (
            lambda: kf.vmap(np.sin, None)(np.ones(3)),
            "in_axes=None is not valid; expected an axis of at least one array",
        ),
        (lambda: kf.vmap(np.sin, True)(np.ones(3)), "in_axes=True is not valid; expected ints and None"),
        (
            lambda: kf.vmap(np.sin, 0, None)(np.ones(3)),
            "out_axes=None is not valid; expected an axis of result, which differs between examples",
        ),
        (
            lambda: kf.vmap(np.sin, 0, 3)(np.ones(3)),
            "out_axes of result=3 is not valid; expected an axis of f64[3], or None",
        ),
    ],
)
def test_refusals(make: Any, text: str) -> None:
    with pytest.raises(errors.InvalidParameter, match=re.escape(text)):
        make()


def test_axes_that_fit_no_argument() -> None:
    with pytest.raises(errors.TreeMismatch, match=r"in_axes"):
        kf.vmap(lambda x, y: x, (0, 0, 0))(np.ones(3), np.ones(3))
