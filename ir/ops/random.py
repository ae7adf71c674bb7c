"""Random bits from a counter: Threefry-2x32.

J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A block is the two words of the cipher of a
64-bit counter, and serves ``share`` elements, each ``LANES`` after the one before. So an element depends on the key and
on its position alone: the same on every device, under any split or fusion, and free to be computed again; and vectors
of up to ``LANES`` lanes are made whole, 2 or 4 of them from one cipher.

Of 2 elements each is a word of the block. Of 4, which cost half as much, each is 32 bits made of the halves a, b, c, d
of both words, high to low: (a, b^c), (b, a^d), (c, b^d), (d, a^c). Any two of them are independent and evenly spread,
since together they determine all four halves; and the high halves of all four are independent. The low halves are not,
as the exclusive or of all four is 0: what needs more than the high bits takes 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES
from kernelforge.errors import DtypeMismatch, InvalidParameter
from kernelforge.ir.graph import At, Kind, Params, Primitive, Sample
from kernelforge.ir.index import flatten, normalize
from kernelforge.ir.kernel import Const, Expr, i64, select
from kernelforge.ir.memo import memo
from kernelforge.ir.ops.rules import Array, Arrays, ints, mapped, operands
from kernelforge.ir.types import Type, row_major

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
"""Both as in the authors' reference implementation, Random123, whose known answers the tests hold."""

ROUNDS = {2: 20, 4: 13}
"""How many rounds the cipher has, by how many elements share a block.

The authors take 20, and know of no statistical flaw from 13 on (the documentation of Random123 about Threefry2x32_R, as
of September 2011): keys and words that numbers are made of keep the margin, masks are quick. Of 13 rounds SmallCrush of
TestU01 1.2.3 finds nothing wrong with the words of blocks, with the high halves of elements and their highest bits, nor
with one element of successive keys; the first 59 of the 96 tests of Crush nothing with the high
halves (89 p-values from 0.003 to 0.990).
"""

LANES = 16
"""How far apart the elements of a block are."""

Pair = tuple[Any, Any]


def threefry(key: Pair, counter: Pair, rounds: int, constant: Callable[[int], Any]) -> Pair:
    """Encrypt a counter of two 32-bit words; works on u32 arrays and on u32 kernel expressions."""
    keys = (*key, key[0] ^ key[1] ^ constant(PARITY))
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(rounds):
        a = a + b
        left = ROTATIONS[i % 8]
        b = ((b << constant(left)) | (b >> constant(32 - left))) ^ a
        if i % 4 == 3:
            step = i // 4 + 1
            a, b = a + keys[step % 3], b + (keys[(step + 1) % 3] + constant(step))
    return a, b


def shared(words: Pair, share: int, constant: Callable[[int], Any]) -> tuple[Any, ...]:
    """Make of the two words of a block what each of its elements gets; works on what ``threefry`` works on."""
    if share == 2:
        return words
    first, second = words
    half, low = constant(16), constant(0xFFFF)

    def turned(word: Any) -> Any:
        return (word << half) | (word >> half)

    return (
        first ^ (second >> half),
        turned(first) ^ (second & low),
        second ^ (first & low),
        turned(second) ^ (first >> half),
    )


def _typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    operands("random_bits", types, 1)
    (key,) = types
    if key.shape[-1:] != (2,) or key.name != "u32":
        raise DtypeMismatch(op="random_bits", found=str(key), expected="a key of type u32[2]; make one with random.key")
    if params["share"] not in ROUNDS:
        raise InvalidParameter(op="random_bits", name="share", found=params["share"], expected="2 or 4")
    return (Type((*key.shape[:-1], *ints("random_bits", params, "shape")), DTYPES["u32"]),)


def _numpy(arrays: Arrays, params: Params) -> tuple[Array, ...]:
    (out,) = _typing([Type(a.shape, a.dtype) for a in arrays], params)
    (keys,), size, share = arrays, math.prod(params["shape"]), params["share"]
    rows = -(-size // (share * LANES))
    blocks = np.arange(rows * LANES, dtype=np.uint64)
    counter = (blocks & np.uint64(0xFFFFFFFF)).astype(np.uint32), (blocks >> np.uint64(32)).astype(np.uint32)
    key = keys[..., 0:1], keys[..., 1:2]

    def constant(value: int) -> Array:
        return np.full(1, value, np.uint32)

    with np.errstate(over="ignore"):
        words = threefry(key, counter, ROUNDS[share], constant)
    each = keys.shape[:-1]
    made = [w.reshape((*each, rows, LANES)) for w in shared(words, share, constant)]
    bits = np.stack(made, -2).reshape((*each, share * rows * LANES))
    return (bits[..., :size].reshape(out.shape),)


@memo
def _words(key: Pair, counter: Pair, rounds: int) -> Pair:
    return threefry(key, counter, rounds, lambda value: Const(value, "u32"))


def _lower(at: At, index: Sequence[Expr], types: Sequence[Type], out: Type, params: Params) -> Expr:
    def constant(value: int) -> Expr:
        return Const(value, "u32")

    shape, share, before = params["shape"], params["share"], len(types[0].shape) - 1
    mine, place = tuple(index[:before]), tuple(index[before:])
    i = flatten(place, row_major(shape))
    block = normalize((i // (share * LANES)) * LANES + i % LANES)
    high = (block >> 32).cast("u32") if math.prod(shape) > share << 32 else constant(0)
    key = at(0, (*mine, i64(0))), at(0, (*mine, i64(1)))
    words = _words(key, (block.cast("u32"), high), ROUNDS[share])
    # a number, not an index, keeps no Load in range: all words are made before one is chosen
    which = normalize(normalize((i // LANES) % share).cast("u32"))
    return _chosen(which, shared(words, share, constant))


def _chosen(which: Expr, words: Sequence[Expr]) -> Expr:
    if len(words) == 1:
        return words[0]
    return select(normalize(which.eq(Const(len(words) - 1, "u32"))), words[-1], _chosen(which, words[:-1]))


_REASON = "random bits are integers; make floats of them, as random.uniform and random.normal do"

PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(
        "random_bits",
        Kind.MAP,
        "32 random bits for each element of ``shape`` and each key, from the key and the element's position.",
        ("shape", "share"),
        _typing,
        _numpy,
        _REASON,
        _REASON,
        mapped("random_bits"),
        _lower,
        lambda: [
            *(
                Sample((np.array([7, 2**31 + 5], np.uint32),), {"shape": shape, "share": share})
                for shape, share in (((3, 5), 2), ((), 2), ((0, 2), 2), ((5, 17), 4), ((), 4))
            ),
            Sample((np.arange(12, dtype=np.uint32).reshape(3, 2, 2),), {"shape": (37,), "share": 2}),
        ],
        frozenset({"u32"}),
        0.0,
    ),
)
