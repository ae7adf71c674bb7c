"""einsum of several operands: the order of pairs, what ``optimize`` means, values and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.errors import InvalidCall, InvalidParameter, ShapeMismatch
from kernelforge.numpy.pairs import path


def normal(*shape: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def order(formula: str, exhaustive: bool | None = None, **extents: int) -> Sequence[tuple[int, int]]:
    left, out = formula.split("->")
    return path([set(t) for t in left.split(",")], set(out), extents, exhaustive)


def test_the_order_takes_the_fewest_multiplications() -> None:
    assert order("bi,ijk,bj->bk", b=256, i=64, j=64, k=32) == [(0, 1), (1, 0)]
    assert order("bi,ijk,bj->bk", b=256, i=64, j=4, k=32) == [(0, 1), (1, 0)]
    assert order("ab,bc,cd->ad", a=2, b=100, c=100, d=100) == [(0, 1), (1, 0)]
    assert order("ab,bc,cd->ad", a=100, b=100, c=100, d=2) == [(1, 2), (0, 1)]
    # (a (b c)) ((d e) f), as in Cormen et al., Introduction to Algorithms, section 15.2
    chain = {"a": 30, "b": 35, "c": 15, "d": 5, "e": 10, "f": 20, "g": 25}
    assert order("ab,bc,cd,de,ef,fg->ag", **chain) == [(1, 2), (0, 4), (0, 1), (2, 0), (0, 1)]


@pytest.mark.parametrize("exhaustive", [True, False])
def test_what_shares_no_axis_is_multiplied_last(exhaustive: bool) -> None:
    *first, last = order("i,j,ij,k->k", exhaustive, i=30, j=40, k=5)
    assert [set(step) for step in first] in ([{0, 2}, {0, 2}], [{1, 2}, {0, 2}])
    assert set(last) == {0, 1}
    assert order("a,b,c->abc", exhaustive, a=50, b=2, c=3) == [(1, 2), (1, 0)]


CASES: dict[str, tuple[tuple[int, ...], ...]] = {
    "bi,ijk,bj->bk": ((5, 3), (3, 4, 2), (5, 4)),
    "...i,oij,...j->...o": ((2, 3, 4), (6, 4, 5), (2, 3, 5)),
    "i,j,k->": ((3,), (4,), (5,)),
    "ii,ij,jk->k": ((3, 3), (3, 4), (4, 5)),
    "iij,jk,l->ik": ((3, 3, 4), (4, 5), (2,)),
    "ab,ab,ab->b": ((3, 4), (3, 4), (1, 4)),
    "i,ij,j": ((3,), (3, 4), (4,)),
    "ab,bc,cd,de,ef,fg,gh->ha": ((2, 3), (3, 4), (4, 2), (2, 5), (5, 3), (3, 2), (2, 4)),
}


@pytest.mark.parametrize("formula", CASES)
def test_values_and_gradients_do_not_depend_on_the_order(formula: str) -> None:
    arrays = tuple(normal(*s, seed=k) for k, s in enumerate(CASES[formula]))
    expected = np.einsum(formula, *arrays)
    weight = normal(*expected.shape, seed=9)
    first: Any = None
    for optimize in (True, False, None, "greedy", "optimal", ("greedy", 10), ["einsum_path", (0, 1)]):

        def made(*xs: Any, how: Any = optimize) -> Any:
            return np.einsum(formula, *xs, optimize=how)

        np.testing.assert_allclose(kf.jit(made)(*arrays), expected, rtol=1e-12, atol=1e-12)
        if optimize in (True, "greedy"):
            slopes = kf.grad(lambda *xs: (made(*xs) * weight).sum(), tuple(range(len(arrays))))(*arrays)
            first = slopes if first is None else first
            for g, other, x in zip(slopes, first, arrays, strict=True):
                assert np.shape(g) == x.shape
                np.testing.assert_allclose(g, other, rtol=1e-12, atol=1e-12)
    # the derivative is linear in each operand: along the operand itself it is the value
    for g, x in zip(first, arrays, strict=True):
        np.testing.assert_allclose((np.asarray(g) * x).sum(), (expected * weight).sum(), rtol=1e-11)


def test_a_path_is_followed() -> None:
    arrays = normal(6, 5), normal(5, 4), normal(4, 3)

    def shapes(optimize: Any) -> set[tuple[int, ...]]:
        made = kf.jit(lambda *xs: np.einsum("ab,bc,cd->ad", *xs, optimize=optimize)).lower(*arrays)
        return {n.output.type.shape for n in made.graph.nodes if n.prim.name == "contract"}

    assert shapes(["einsum_path", (1, 2), (0, 1)]) == {(5, 3), (6, 3)}
    assert shapes(["einsum_path", (0, 1), (0, 1)]) == {(6, 4), (6, 3)}
    assert shapes(np.einsum_path("ab,bc,cd->ad", *arrays)[0]) in ({(5, 3), (6, 3)}, {(6, 4), (6, 3)})


@pytest.mark.parametrize("optimize", ["best", 3, ["einsum_path", (0, 2)], ["einsum_path", (1, 1)], [(0, 1)]])
def test_what_is_no_order(optimize: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"np.einsum: optimize=.*'greedy', 'optimal', or a path such as"):
        kf.jit(lambda x, y: np.einsum("ij,jk", x, y, optimize=optimize))(normal(2, 3), normal(3, 2))


@pytest.mark.parametrize(
    "shapes", [((3, 4), (4, 5), (5, 6)), ((4,), (4, 5), (5, 6)), ((3, 4), (4, 5), (5,)), ((4,), (4,)), ((9, 1), (1, 9))]
)
def test_multi_dot(shapes: tuple[tuple[int, ...], ...]) -> None:
    arrays = [normal(*s, seed=k) for k, s in enumerate(shapes)]
    expected = np.linalg.multi_dot(arrays)
    np.testing.assert_allclose(kf.jit(lambda *xs: np.linalg.multi_dot(xs))(*arrays), expected, rtol=1e-12)


def test_multi_dot_of_many_and_of_misfits() -> None:
    sizes = (30, 1, 40, 10, 25, 7, 3, 50, 2, 12, 8, 20, 4)
    arrays = [normal(m, n, seed=m) for m, n in itertools.pairwise(sizes)]
    np.testing.assert_allclose(kf.numpy.linalg.multi_dot(arrays), np.linalg.multi_dot(arrays), rtol=1e-10)
    with pytest.raises(ShapeMismatch, match=r"\(2, 3, 4\), \(4, 5\).*two or more matrices, the first and the last"):
        kf.numpy.linalg.multi_dot([normal(2, 3, 4), normal(4, 5)])


def test_rows_that_share_an_operand_lie_behind_each_other() -> None:
    """One kernel, in which blocks of rows ``b`` walk through the weights of one ``k`` each."""
    args = normal(64, 24, dtype="float32"), normal(24, 16, 8, dtype="float32"), normal(64, 16, dtype="float32")
    made = kf.jit(lambda x, w, y: np.einsum("bi,ijk,bj->bk", x, w, y))
    (kernel,) = made.lower(*args).kernels
    text = str(kernel.ir)
    assert "_columns" in text, "its product is a register tile"
    wide = [np.asarray(a, np.float64) for a in args]
    np.testing.assert_allclose(made(*args), np.einsum("bi,ijk,bj->bk", *wide), rtol=2e-4, atol=2e-4)


def test_arrays_of_any_shapes_outside_of_a_trace() -> None:
    arrays = normal(2, 3), normal(3, 4), normal(4, 5)
    made = kf.numpy.einsum("ab,bc,cd->ad", *arrays, optimize=["einsum_path", (1, 2), (0, 1)])
    np.testing.assert_allclose(made, np.einsum("ab,bc,cd->ad", *arrays), rtol=1e-12)
    np.testing.assert_array_equal(kf.numpy.einsum("ab->b", [[1, 2], [3, 4]]), [4, 6])


def test_subscripts_as_lists_of_numbers() -> None:
    def fn(x: Any, y: Any) -> Any:
        return (
            np.einsum(x, [0, 1], y, [1, 2], [2, 0]),
            np.einsum(x, [27, 3], y, [3, 1]),
            np.einsum(x, [..., 0], y[:, 0], [0], [...]),
            np.einsum(x, (0, 1), []),
            np.einsum("i,ij", [1.0, 2.0, 3.0], x),
            np.einsum(x[:, :3], [0, 0], [0]),
        )

    x, y = np.arange(12.0).reshape(3, 4), np.arange(20.0).reshape(4, 5)
    for found, expected in zip(kf.jit(fn)(x, y), fn(x, y), strict=True):
        np.testing.assert_array_equal(found, expected)
    for wrong in ([0, 52], [0, -1], [0, 0.5]):
        with pytest.raises(InvalidCall, match=r"np\.einsum"):
            kf.jit(lambda x, wrong=wrong: np.einsum(x, wrong))(x)
