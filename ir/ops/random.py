"""Random bits from a counter: Threefry-2x32 with 20 rounds.

J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A block is the two words of the cipher of a
64-bit counter, and serves two elements: of each ``2 * HALF`` elements, i and i + ``HALF`` are the words of one block.
So an element depends on the key and on its position alone: the same on every device, under any split or fusion, and
free to be computed again; and vectors of up to ``HALF`` lanes take whole words, a pair of them from one cipher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernelforge.dtypes import DTYPES
from kernelforge.errors import DtypeMismatch
from kernelforge.ir.graph import At, Kind, Params, Primitive, Sample
from kernelforge.ir.index import flatten, normalize
from kernelforge.ir.kernel import Const, Expr, i64, select
from kernelforge.ir.ops.rules import Array, Arrays, ints, mapped, operands
from kernelforge.ir.types import Type, row_major

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
"""Both as in the authors' reference implementation, Random123, whose known answers the tests hold."""

HALF = 16
"""Elements that lie between the two of a block."""

Pair = tuple[Any, Any]


def threefry(key: Pair, counter: Pair, constant: Callable[[int], Any]) -> Pair:
    """Encrypt a counter of two 32-bit words with 20 rounds; works on u32 arrays and on u32 kernel expressions."""
    keys = (*key, key[0] ^ key[1] ^ constant(PARITY))
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(20):
        a = a + b
        left = ROTATIONS[i % 8]
        b = ((b << constant(left)) | (b >> constant(32 - left))) ^ a
        if i % 4 == 3:
            step = i // 4 + 1
            a, b = a + keys[step % 3], b + (keys[(step + 1) % 3] + constant(step))
    return a, b


def _typing(types: Sequence[Type], params: Params) -> tuple[Type, ...]:
    operands("random_bits", types, 1)
    (key,) = types
    if key.shape[-1:] != (2,) or key.name != "u32":
        raise DtypeMismatch(op="random_bits", found=str(key), expected="a key of type u32[2]; make one with random.key")
    return (Type((*key.shape[:-1], *ints("random_bits", params, "shape")), DTYPES["u32"]),)


def _numpy(arrays: Arrays, params: Params) -> tuple[Array, ...]:
    (out,) = _typing([Type(a.shape, a.dtype) for a in arrays], params)
    (keys,), size = arrays, math.prod(params["shape"])
    rows = -(-size // (2 * HALF))
    blocks = np.arange(rows * HALF, dtype=np.uint64)
    counter = (blocks & np.uint64(0xFFFFFFFF)).astype(np.uint32), (blocks >> np.uint64(32)).astype(np.uint32)
    key = keys[..., 0:1], keys[..., 1:2]
    with np.errstate(over="ignore"):
        words = threefry(key, counter, lambda value: np.full(1, value, np.uint32))
    each = keys.shape[:-1]
    bits = np.stack([w.reshape((*each, rows, HALF)) for w in words], -2).reshape((*each, 2 * rows * HALF))
    return (bits[..., :size].reshape(out.shape),)


def _lower(at: At, index: Sequence[Expr], types: Sequence[Type], out: Type, params: Params) -> Expr:
    def constant(value: int) -> Expr:
        return Const(value, "u32")

    shape, before = params["shape"], len(types[0].shape) - 1
    which, place = tuple(index[:before]), tuple(index[before:])
    i = flatten(place, row_major(shape))
    block = normalize((i // (2 * HALF)) * HALF + i % HALF)
    high = (block >> 32).cast("u32") if math.prod(shape) > 2**33 else constant(0)
    key = at(0, (*which, i64(0))), at(0, (*which, i64(1)))
    first, second = threefry(key, (block.cast("u32"), high), constant)
    return select(normalize(((i // HALF) % 2).eq(0)), first, second)


_REASON = "random bits are integers; make floats of them, as random.uniform and random.normal do"

PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(
        "random_bits",
        Kind.MAP,
        "32 random bits for each element of ``shape`` and each key, from the key and the element's position.",
        ("shape",),
        _typing,
        _numpy,
        _REASON,
        _REASON,
        mapped("random_bits"),
        _lower,
        lambda: [
            *(Sample((np.array([7, 2**31 + 5], np.uint32),), {"shape": shape}) for shape in ((3, 5), (), (0, 2))),
            Sample((np.arange(12, dtype=np.uint32).reshape(3, 2, 2),), {"shape": (37,)}),
        ],
        frozenset({"u32"}),
        0.0,
    ),
)
