"""Pooling: a reduction of sliding windows, or of a fixed number of bins.

``stride`` is the kernel's size where it is not given. With ``ceil_mode`` windows may begin inside and end outside of
the input and its padding on the left. The derivative of a maximum is shared evenly by elements that tie; PyTorch gives
it to the first. Places of maxima are not returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.nn.calls import Function, Ints, each, narrow, require, valid, wide
from kernelforge.nn.probability import root
from kernelforge.nn.windows import Sliding, padded, unbatched

Fn = Callable[..., Any]


class _Pool:
    """The windows of a pooling over the last axes of ``shape``.

    Attributes:
        widths: of the padding, on the right as much as the last window reaches.
        counts: for each axis, how many elements of the input, padded as asked, the window at each place has.
        inside: the same without the padding.
    """

    def __init__(self, op: str, x: Any, sliding: Sliding, padding: Ints, ceil_mode: bool) -> None:
        extents = x.shape[2:]
        self.widths, self.counts, self.inside = [], [], []
        for n, r, s, size, d, (p, _) in zip(
            extents, sliding.reach, sliding.strides, sliding.sizes, sliding.dilations, sliding.widths(padding),
            strict=True,
        ):  # fmt: skip
            valid(2 * p <= size, op, "padding", padding, "at most half of kernel_size")
            places = (n + 2 * p - r + (s - 1 if ceil_mode else 0)) // s + 1
            if ceil_mode and (places - 1) * s >= n + p:
                places -= 1
            require(places > 0, op, x.shape, f"extents, padded, of at least {sliding.reach}")
            self.widths.append((p, (places - 1) * s + r - n - p))
            first = np.arange(places)[:, None] * s + np.arange(size) * d - p
            self.counts.append((first < n + p).sum(1))
            self.inside.append(((first >= 0) & (first < n)).sum(1))


def _outer(counts: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Multiply the counts of axes: an array of the shape of all places, or of 1s where they do not differ."""
    made = np.ones((1,) * len(counts))
    for axis, c in enumerate(counts):
        same = c[:1] if np.all(c == c[0]) else c
        made = made * same.reshape([-1 if a == axis else 1 for a in range(len(counts))])
    return made


def _pooled(op: str, count: int, input: Any, kernel: Ints, stride: Any, padding: Ints, dilation: Ints, ceil: bool,
            fill: float, reduce: Callable[[Any, _Pool, tuple[int, ...]], Any]) -> Any:  # fmt: skip
    like, single = unbatched(input, count, op)
    x = wide(like)
    sliding = Sliding(op, count, kernel, kernel if stride is None else stride, dilation)
    pool = _Pool(op, x, sliding, padding, ceil)
    seen = sliding.of(padded(x, pool.widths, fill))
    made = narrow(reduce(seen, pool, tuple(range(seen.ndim - count, seen.ndim))), like)
    return made[0] if single else made


def _named(fn: Fn, name: str, doc: str, *static: str) -> Fn:
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    return Function(fn, static, None)


def _max_pool(count: int) -> Fn:
    op = f"max_pool{count}d"

    def pool(
        input: Any, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
        ceil_mode: bool = False,
    ) -> Any:  # fmt: skip
        def largest(seen: Any, _: _Pool, axes: tuple[int, ...]) -> Any:
            return seen.max(axis=axes)

        return _pooled(op, count, input, kernel_size, stride, padding, dilation, ceil_mode, -math.inf, largest)

    doc = f"The largest element of each window over the last axes, {count} of them; padding is -inf."
    return _named(pool, op, doc, "kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _avg_pool(count: int) -> Fn:
    op = f"avg_pool{count}d"

    def pool(
        input: Any, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Any:  # fmt: skip
        def average(seen: Any, pool: _Pool, axes: tuple[int, ...]) -> Any:
            if divisor_override is not None:
                return seen.sum(axis=axes) / divisor_override
            counts = _outer(pool.counts if count_include_pad else pool.inside)
            return seen.sum(axis=axes) / (float(counts.item()) if counts.size == 1 else counts.astype(seen.dtype))

        return _pooled(op, count, input, kernel_size, stride, padding, 1, ceil_mode, 0, average)

    doc = f"""The mean of each window over the last axes, {count} of them.

    Args:
        count_include_pad: whether the padding counts among the elements.
        divisor_override: what to divide by in place of the number of elements.
    """
    static = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _named(pool, op, doc, *static)


def _lp_pool(count: int) -> Fn:
    op = f"lp_pool{count}d"

    def pool(
        input: Any, norm_type: float, kernel_size: Ints, stride: Ints | None = None, ceil_mode: bool = False
    ) -> Any:
        def norm(seen: Any, _: _Pool, axes: tuple[int, ...]) -> Any:
            total = (seen**norm_type).sum(axis=axes)
            return root(knp.where(total > 0, total, 0), norm_type)

        return _pooled(op, count, input, kernel_size, stride, 0, 1, ceil_mode, 0, norm)

    doc = f"""The root of the sum of powers of each window over the last axes, {count} of them; 0 for sums below 0.

    With ``ceil_mode`` a window that ends outside adds up what it has, where PyTorch scales that to a whole window.
    """
    return _named(pool, op, doc, "norm_type", "kernel_size", "stride", "ceil_mode")


max_pool1d, max_pool2d, max_pool3d = (_max_pool(count) for count in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (_avg_pool(count) for count in (1, 2, 3))
lp_pool1d, lp_pool2d, lp_pool3d = (_lp_pool(count) for count in (1, 2, 3))


def _bins(n: int, places: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the elements of each of ``places`` bins over ``n`` elements, and which of them count.

    Bins may overlap by one element and are of two lengths: the last element of a shorter one is there twice.
    """
    place = np.arange(places)
    first, last = place * n // places, -(-(place + 1) * n // places)
    at = first[:, None] + np.arange((last - first).max())
    return np.minimum(at, last[:, None] - 1), at < last[:, None]


def _averaged(x: Any, axis: int, places: int) -> Any:
    n = x.shape[axis]
    if n % places == 0:
        return x.reshape((*x.shape[:axis], places, n // places, *x.shape[axis + 1 :])).mean(axis=axis + 1)
    at, counted = _bins(n, places)
    shape = [1] * axis + [*at.shape] + [1] * (x.ndim - axis - 1)
    lengths = counted.sum(1).astype(x.dtype).reshape([*shape[: axis + 1], *shape[axis + 2 :]])
    return knp.where(counted.reshape(shape), knp.take(x, at, axis=axis), 0).sum(axis=axis + 1) / lengths


def _largest(x: Any, axis: int, places: int) -> Any:
    n = x.shape[axis]
    if n % places == 0:
        return x.reshape((*x.shape[:axis], places, n // places, *x.shape[axis + 1 :])).max(axis=axis + 1)
    at, _ = _bins(n, places)
    return knp.take(x, at, axis=axis).max(axis=axis + 1)


def _adaptive(kind: str, count: int, along: Callable[[Any, int, int], Any]) -> Fn:
    op = f"adaptive_{kind}_pool{count}d"

    def pool(input: Any, output_size: Any) -> Any:
        like, single = unbatched(input, count, op)
        x = wide(like)
        wanted = [output_size] * count if output_size is None or isinstance(output_size, int) else output_size
        sizes = each(
            [n if w is None else w for w, n in zip(wanted, x.shape[2:], strict=False)], count, op, "output_size"
        )
        for axis, places in enumerate(sizes, 2):
            x = along(x, axis, places)
        made = narrow(x, like)
        return made[0] if single else made

    what = "mean" if kind == "avg" else "largest element"
    doc = (
        f"The {what} of each of ``output_size`` bins over the last axes, {count} of them; None keeps an axis as it is."
    )
    return _named(pool, op, doc, "output_size")


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (_adaptive("avg", n, _averaged) for n in (1, 2, 3))
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (_adaptive("max", n, _largest) for n in (1, 2, 3))
