"""Views, reductions, contractions, running reductions, indexing and random bits: the NumPy rules and the refusals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from kernelforge.dtypes import BFLOAT16, DTYPES, INTEGERS
from kernelforge.errors import DtypeMismatch, InvalidParameter, ShapeMismatch
from kernelforge.ir.build import apply, build
from kernelforge.ir.interpret import run_graph
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.ops.index import missing
from kernelforge.ir.ops.random import shared, threefry
from kernelforge.ir.types import Type

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4, 5))


def run(name: str, *arrays: Array, **params: Any) -> Array:
    graph = build(lambda *xs: (apply(name, *xs, **params),), [Type(a.shape, a.dtype) for a in arrays])
    (made,) = run_graph(graph, arrays)
    assert (made.shape, made.dtype) == (graph.outputs[0].type.shape, graph.outputs[0].type.dtype)
    return made


VIEWS = [
    ("broadcast", (X[:, :1],), {"shape": (2, 3, 4, 5)}, np.broadcast_to(X[:, :1], (2, 3, 4, 5))),
    ("reshape", (X,), {"shape": (6, 10)}, X.reshape(6, 10)),
    ("transpose", (X,), {"axes": (2, 0, 1)}, X.transpose(2, 0, 1)),
    ("slice", (X,), {"starts": (1, 0, 2), "stops": (3, 4, 5), "steps": (1, 3, 2)}, X[1:3, 0:4:3, 2:5:2]),
    ("flip", (X,), {"axes": (0, 2)}, X[::-1, :, ::-1]),
    (
        "window",
        (X,),
        {"axes": (2, 1), "sizes": (2, 3), "strides": (2, 1), "dilations": (2, 1)},
        np.lib.stride_tricks.sliding_window_view(X, (3, 3), (1, 2))[:, :, ::2, :, ::2].swapaxes(-1, -2),
    ),
    (
        "pad",
        (X[0], np.array(7.0)),
        {"low": (1, 0), "high": (0, 2), "interior": (0, 0)},
        np.pad(X[0], ((1, 0), (0, 2)), constant_values=7.0),
    ),
    ("concatenate", (X, X[:, :0], X[:, 1:2]), {"axis": 1}, np.concatenate([X, X[:, 1:2]], 1)),
]


@pytest.mark.parametrize(("name", "arrays", "params", "want"), VIEWS, ids=[v[0] for v in VIEWS])
def test_views_are_numpys(name: str, arrays: tuple[Array, ...], params: dict[str, Any], want: Array) -> None:
    np.testing.assert_array_equal(run(name, *arrays, **params), want)


def test_interior_padding_and_place() -> None:
    x = np.arange(1.0, 4.0)
    spread = run("pad", x, np.array(0.0), low=(1,), high=(2,), interior=(1,))
    np.testing.assert_array_equal(spread, [0, 1, 0, 2, 0, 3, 0, 0])
    np.testing.assert_array_equal(run("place", spread, -x, starts=(1,), steps=(3,)), [0, -1, 0, 2, -2, 3, 0, -3])
    np.testing.assert_array_equal(run("pad", x[:0], np.array(4.0), low=(1,), high=(1,), interior=(5,)), [4, 4])


REDUCTIONS = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}


@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_are_numpys(name: str, axes: tuple[int, ...]) -> None:
    np.testing.assert_allclose(run(name, X, axes=axes), REDUCTIONS[name](X, axis=axes))
    whole = (X * 1e6).astype(np.int32)
    kept = {"dtype": np.int32} if name in ("sum", "prod") else {}
    np.testing.assert_array_equal(run(name, whole, axes=axes), REDUCTIONS[name](whole, axis=axes, **kept))


def test_extrema_propagate_nan_and_take_bool() -> None:
    x = np.array([[1.0, np.nan, 3.0], [-np.inf, 0.0, np.inf]], np.float32)
    np.testing.assert_array_equal(run("max", x, axes=(1,)), [np.nan, np.inf])
    np.testing.assert_array_equal(run("min", x, axes=(1,)), [np.nan, -np.inf])
    np.testing.assert_array_equal(run("max", x > 1, axes=(1,)), [True, True])
    np.testing.assert_array_equal(run("min", x == x, axes=(0,)), [True, False, True])


def test_reductions_of_nothing() -> None:
    empty = np.zeros((3, 0), np.float32)
    np.testing.assert_array_equal(run("sum", empty, axes=(1,)), [0, 0, 0])
    np.testing.assert_array_equal(run("prod", empty, axes=(1,)), [1, 1, 1])
    assert run("max", empty, axes=(0,)).shape == (0,)
    with pytest.raises(ShapeMismatch, match="at least one element along axes"):
        run("max", empty, axes=(1,))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_floats_accumulate_in_float32(dtype: str) -> None:
    ones = np.ones(5000, DTYPES[dtype])
    want = np.float32(5000).astype(DTYPES[dtype])  # one rounding; step by step the sum would stop growing
    assert run("sum", ones, axes=(0,)) == want
    assert run("cumsum", ones, axis=0, reverse=False)[-1] == want
    assert run("contract", ones, ones, x_axes=(0,), y_axes=(0,), out_axes=()) == want
    assert run("recur", ones, ones, axis=0, reverse=True)[0] == want


CONTRACTIONS = ["ij,jk->ik", "bij,kjb->kbi", "ijk,kj->i", "i,j->ji", "i,i->i", "ij,ij->", "ij,->ji"]


@pytest.mark.parametrize("formula", CONTRACTIONS)
def test_contract_is_einsum(formula: str) -> None:
    extents = dict(zip("ijkb", (3, 4, 5, 2), strict=True))
    operands, out = formula.split("->")
    arrays = [RNG.standard_normal([extents[c] for c in o]) for o in operands.split(",")]
    x, y, z = (tuple(map(ord, o)) for o in (*operands.split(","), out))
    made = run("contract", *arrays, x_axes=x, y_axes=y, out_axes=z)
    np.testing.assert_allclose(made, np.einsum(formula, *arrays), rtol=1e-12)
    whole = [(a * 100).astype(np.int8) for a in arrays]
    np.testing.assert_array_equal(
        run("contract", *whole, x_axes=x, y_axes=y, out_axes=z), np.einsum(formula, *whole, dtype=np.int8)
    )


ACCUMULATE = {"cumsum": np.add, "cumprod": np.multiply, "cummax": np.maximum, "cummin": np.minimum}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ACCUMULATE)
def test_running_reductions_are_numpys(name: str, reverse: bool) -> None:
    x = X.copy()
    x[1, 2, 3] = np.nan
    for axis in range(3):
        turned = np.flip(x, axis) if reverse else x
        want = ACCUMULATE[name].accumulate(turned, axis)
        made = run(name, x, axis=axis, reverse=reverse)
        np.testing.assert_allclose(made, np.flip(want, axis) if reverse else want)


def test_recur_by_hand() -> None:
    decay, x = np.array([9.0, 2.0, -1.0]), np.array([1.0, 3.0, 5.0])
    np.testing.assert_array_equal(run("recur", decay, x, axis=0, reverse=False), [1, 5, 0])
    np.testing.assert_array_equal(run("recur", decay, x, axis=0, reverse=True), [118, 13, 5])
    assert run("recur", np.zeros((0, 2)), np.zeros((0, 2)), axis=0, reverse=False).shape == (0, 2)


@pytest.mark.parametrize("dtype", sorted(INTEGERS))
def test_gather_wraps_once_and_fills(dtype: str) -> None:
    x = np.array([10.0, 20.0, 30.0])
    info = np.iinfo(DTYPES[dtype])
    index = np.array([0, 2, 3, info.max, info.min], DTYPES[dtype])
    first = 10.0 if info.min == 0 else np.nan
    np.testing.assert_array_equal(run("gather", x, index, axes=(0,)), [10, 30, np.nan, np.nan, first])
    if info.min < 0:
        back = np.array([-1, -3, -4], DTYPES[dtype])
        np.testing.assert_array_equal(run("gather", x, back, axes=(0,)), [30, 10, np.nan])


def test_gather_several_axes() -> None:
    rows, columns = np.array([[0, 2], [1, -1]]), np.array([[4, -5], [0, 3]])
    np.testing.assert_array_equal(run("gather", X, columns, rows, axes=(2, 0)), X.transpose(2, 0, 1)[columns, rows])
    assert np.isnan(run("gather", X[:0], rows, axes=(0,))).all()
    assert run("gather", X, rows[:0], axes=(1,)).shape == (0, 2, 3, 5)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_gather_out_of_range(dtype: str) -> None:
    made = run("gather", np.zeros(2, DTYPES[dtype]), np.array(2), axes=(0,))
    want = np.asarray(missing(dtype)).astype(DTYPES[dtype])
    np.testing.assert_array_equal(made.astype(np.float64), want.astype(np.float64))


def test_scatter_modes_in_order() -> None:
    x, index = np.array([1.0, 2.0, 3.0]), np.array([0, 2, 0, -1, 5, -4])
    v = np.array([5.0, 0.5, -6.0, 4.0, 100.0, 100.0])
    want = {"set": [-6, 2, 4], "add": [0, 2, 7.5], "mul": [-30, 2, 6], "max": [5, 2, 4], "min": [-6, 2, 0.5]}
    for mode, result in want.items():
        np.testing.assert_array_equal(run("scatter", x, v, index, axes=(0,), mode=mode), result)
    assert x.tolist() == [1, 2, 3]


def test_scatter_rows_and_pairs() -> None:
    x, v = np.zeros((3, 4)), RNG.standard_normal((2, 3))
    want = x.copy()
    np.add.at(want, (slice(None), [1, 1]), v.T)
    np.testing.assert_array_equal(run("scatter", x, v, np.array([1, 1]), axes=(1,), mode="add"), want)
    pairs = run("scatter", x, np.array([1.0, 2.0]), np.array([3, 0]), np.array([1, 2]), axes=(1, 0), mode="set")
    assert pairs[1, 3] == 1
    assert pairs[2, 0] == 2
    assert pairs.sum() == 3


def test_iota() -> None:
    np.testing.assert_array_equal(run("iota", shape=(2, 3), axis=1, dtype="f32"), [[0, 1, 2]] * 2)
    assert run("iota", shape=(300,), axis=0, dtype="u8")[256] == 0
    assert run("iota", shape=(2, 2), axis=0, dtype="bf16").dtype == BFLOAT16


ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344)
KNOWN_ANSWERS = [
    (20, (0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    (20, (ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    (20, *PI, (0xC4923A9C, 0x483DF7A0)),
    (13, (0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
    (13, (ONES, ONES), (ONES, ONES), (0xFD36D048, 0x2D17272C)),
    (13, *PI, (0xBA3E4725, 0xF27D669E)),
]
"""rounds, counter, key, result: the vectors of ``threefry2x32`` in Random123's file of known answers."""


@pytest.mark.parametrize(("rounds", "counter", "key", "result"), KNOWN_ANSWERS)
def test_threefry(rounds: int, counter: tuple[int, int], key: tuple[int, int], result: tuple[int, int]) -> None:
    words = [np.array([w], np.uint32) for w in (*key, *counter)]
    made = threefry((words[0], words[1]), (words[2], words[3]), rounds, lambda c: np.array([c], np.uint32))
    assert tuple(int(w[0]) for w in made) == result


GOLDEN = [0x257EDF33, 0x87639233, 0x8BB042E4, 0x4836B2F1]
"""Elements 0, 1, 16 and 17 for the key (1, 2): they must not change from version to version."""


def test_random_bits_depend_on_key_and_position_alone() -> None:
    key = np.array([1, 2], np.uint32)
    flat = run("random_bits", key, shape=(60,), share=2)
    np.testing.assert_array_equal(run("random_bits", key, shape=(3, 4, 5), share=2).ravel(), flat)
    np.testing.assert_array_equal(run("random_bits", key, shape=(7,), share=2), flat[:7])
    assert (run("random_bits", key[::-1].copy(), shape=(60,), share=2) != flat).all()
    # elements 32*k + j and 32*k + 16 + j are the words of block 16*k + j
    words = [np.array([w], np.uint32) for w in key]
    first, second = threefry((words[0], words[1]), (np.arange(32, dtype=np.uint32), words[0] * 0), 20, np.uint32)
    np.testing.assert_array_equal(flat, np.concatenate([first[:16], second[:16], first[16:], second[16:28]]))
    assert flat[:2].tolist() == GOLDEN[:2]
    assert flat[16:18].tolist() == GOLDEN[2:]
    many = run("random_bits", key, shape=(1 << 14,), share=2).astype(np.float64) / 2**32
    assert abs(many.mean() - 0.5) < 0.01
    assert abs(many.var() - 1 / 12) < 0.002
    pairs = many.reshape(-1, 2, 16)
    assert abs(np.corrcoef(pairs[:, 0].ravel(), pairs[:, 1].ravel())[0, 1]) < 0.03


GOLDEN_OF_FOUR = [0xC101FCB9, 0x9539933D, 0x6980C705, 0x523CA881]
"""Elements 0, 16, 32 and 48 for the key (1, 2), where four share a block."""


def test_any_two_of_the_four_that_share_a_block_are_independent() -> None:
    # the map is linear over GF(2): two elements are independent and evenly spread where they determine the block
    units = [np.uint64(1) << np.uint64(k) for k in range(64)]
    words = [
        np.array([u >> s & np.uint64(0xFFFFFFFF) for u in units], np.uint32) for s in (np.uint64(32), np.uint64(0))
    ]
    columns = [[int(v) for v in made] for made in shared((words[0], words[1]), 4, np.uint32)]
    for a, b in itertools.combinations(columns, 2):
        assert _rank([x << 32 | y for x, y in zip(a, b, strict=True)]) == 64
    highs = [int("".join(f"{c[k] >> 16:016b}" for c in columns), 2) for k in range(64)]
    assert _rank(highs) == 64


def _rank(rows: list[int]) -> int:
    """The rank over GF(2) of rows of bits."""
    rank = 0
    while rows:
        pivot = rows.pop()
        if pivot:
            rank += 1
            low = pivot & -pivot
            rows = [r ^ pivot if r & low else r for r in rows]
    return rank


def test_four_elements_share_a_block() -> None:
    key = np.array([1, 2], np.uint32)
    flat = run("random_bits", key, shape=(150,), share=4)
    np.testing.assert_array_equal(run("random_bits", key, shape=(5, 30), share=4).ravel(), flat)
    words = [np.array([w], np.uint32) for w in key]
    block = threefry((words[0], words[1]), (np.arange(48, dtype=np.uint32), words[0] * 0), 13, np.uint32)
    made = np.stack([m.reshape(3, 16) for m in shared(block, 4, np.uint32)], 1)
    np.testing.assert_array_equal(flat, made.ravel()[:150])
    assert flat[:64:16].tolist() == GOLDEN_OF_FOUR


F32, I32 = np.dtype(np.float32), np.dtype(np.int32)


def t(*shape: int, dtype: np.dtype[Any] = F32) -> Type:
    return Type(shape, dtype)


BOOL, I64, U32 = (np.dtype(d) for d in ("bool", "i8", "u4"))
REFUSED: list[tuple[str, list[Type], dict[str, Any], type[Exception], str]] = [
    ("broadcast", [t(3)], {"shape": (4,)}, ShapeMismatch, "equal or 1"),
    ("broadcast", [t(3, 3)], {"shape": (3,)}, ShapeMismatch, "equal or 1"),
    ("reshape", [t(3, 2)], {"shape": (7,)}, ShapeMismatch, "same number of elements"),
    ("reshape", [t(3, 2)], {"shape": (-1,)}, InvalidParameter, "at least 0"),
    ("transpose", [t(3, 2)], {"axes": (0,)}, InvalidParameter, "each of 2 axes once"),
    ("transpose", [t(3, 2)], {"axes": (0, 0)}, InvalidParameter, "distinct axes"),
    ("slice", [t(3)], {"starts": (1,), "stops": (4,), "steps": (1,)}, InvalidParameter, "starts <= stops"),
    ("slice", [t(3)], {"starts": (1,), "stops": (2,), "steps": (0,)}, InvalidParameter, "at least 1"),
    ("flip", [t(3)], {"axes": (1,)}, InvalidParameter, "below 1"),
    (
        "window",
        [t(3)],
        {"axes": (0,), "sizes": (4,), "strides": (1,), "dilations": (1,)},
        InvalidParameter,
        "pad first",
    ),
    ("pad", [t(3), t(dtype=I32)], {"low": (0,), "high": (0,), "interior": (0,)}, DtypeMismatch, "cast first"),
    ("pad", [t(3), t(1)], {"low": (0,), "high": (0,), "interior": (0,)}, ShapeMismatch, "fill of shape"),
    ("pad", [t(3), t()], {"low": (-1,), "high": (0,), "interior": (0,)}, InvalidParameter, "at least 0"),
    ("concatenate", [t(3, 2), t(3, 3)], {"axis": 0}, ShapeMismatch, "agree but on axis 0"),
    ("concatenate", [], {"axis": 0}, ShapeMismatch, "at least one input"),
    ("concatenate", [t(3)], {"axis": 1}, InvalidParameter, "an axis of 1"),
    ("place", [t(4), t(3)], {"starts": (1,), "steps": (2,)}, InvalidParameter, "within"),
    ("place", [t(4), t(3, 1)], {"starts": (1,), "steps": (2,)}, ShapeMismatch, "as many axes"),
    ("sum", [t(3, dtype=BOOL)], {"axes": (0,)}, DtypeMismatch, "cast first"),
    ("sum", [t(3, 2)], {"axes": (1, 0)}, InvalidParameter, "rising"),
    ("sum", [t(3), t(3)], {"axes": (0,)}, ShapeMismatch, "1 inputs, not 2"),
    ("contract", [t(3), t(4)], {"x_axes": (0,), "y_axes": (0,), "out_axes": ()}, ShapeMismatch, "one extent"),
    (
        "contract",
        [t(3), t(3)],
        {"x_axes": (0,), "y_axes": (1,), "out_axes": (0,)},
        InvalidParameter,
        "only one of them",
    ),
    (
        "contract",
        [t(3, 3), t(3)],
        {"x_axes": (0, 0), "y_axes": (0,), "out_axes": ()},
        InvalidParameter,
        "no name twice",
    ),
    ("contract", [t(3), t(3)], {"x_axes": (0,), "y_axes": (0,), "out_axes": (7,)}, InvalidParameter, "names of"),
    ("contract", [t(3), t(3, dtype=I32)], {"x_axes": (0,), "y_axes": (0,), "out_axes": ()}, DtypeMismatch, "one dtype"),
    ("cumsum", [t(3)], {"axis": 1, "reverse": False}, InvalidParameter, "an axis of 1"),
    ("recur", [t(3), t(4)], {"axis": 0, "reverse": False}, ShapeMismatch, "one shape"),
    ("gather", [t(3), t(2)], {"axes": (0,)}, DtypeMismatch, "index arrays of integers"),
    ("gather", [t(3), t(2, dtype=I32)], {"axes": (0, 1)}, InvalidParameter, "axes below 1"),
    ("gather", [t(3, 3), t(2, dtype=I32)], {"axes": (0, 1)}, ShapeMismatch, "one for each axis"),
    ("scatter", [t(3), t(3), t(2, dtype=I32)], {"axes": (0,), "mode": "add"}, ShapeMismatch, r"expected \(2,\)"),
    ("scatter", [t(3), t(2), t(2, dtype=I32)], {"axes": (0,), "mode": "xor"}, InvalidParameter, "set, add"),
    ("iota", [], {"shape": (3,), "axis": 0, "dtype": "bool"}, InvalidParameter, "one of"),
    ("random_bits", [t(2, dtype=U32)], {"shape": (3,), "share": 3}, InvalidParameter, "2 or 4"),
    ("random_bits", [t(2, dtype=I32)], {"shape": (3,), "share": 2}, DtypeMismatch, "random.key"),
]


@pytest.mark.parametrize(("name", "types", "params", "error", "text"), REFUSED)
def test_refusals(name: str, types: list[Type], params: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        PRIMITIVES[name].typing(types, params)


def test_every_parameter_is_named() -> None:
    for prim in PRIMITIVES.values():
        for sample in prim.sample():
            assert set(sample.params) == set(prim.params), prim.name
    assert len(set(itertools.chain(PRIMITIVES))) == len(PRIMITIVES)
