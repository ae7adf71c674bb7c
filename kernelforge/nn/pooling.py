"""Pooling: a reduction of sliding windows, or of a fixed number of bins.

``stride`` is the kernel's size where it is not given. With ``ceil_mode`` windows may begin inside and end outside of
the input and its padding on the left. The derivative of a maximum is shared evenly by elements that tie; PyTorch gives
it to the first. A place is the number of an element in an image or volume, counted along the last axis first; of
elements that tie it is the first one's. All windows may be dilated; PyTorch dilates those of maxima only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import kernelforge.numpy as knp
from kernelforge.nn.calls import Function, Given, Ints, draws_key, each, narrow, require, valid, wide
from kernelforge.nn.probability import power, root
from kernelforge.nn.windows import Sliding, padded, unbatched
from kernelforge.random import uniform

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


Reduce = Callable[[Any, _Pool, tuple[int, ...]], Any]


def _pooled(op: str, count: int, input: Any, kernel: Ints, stride: Any, padding: Ints, dilation: Ints, ceil: bool,
            fill: float, reduce: Reduce, indices: bool = False) -> Any:  # fmt: skip
    like, single = unbatched(input, count, op)
    x = wide(like)
    sliding = Sliding(op, count, kernel, kernel if stride is None else stride, dilation)
    pool = _Pool(op, x, sliding, padding, ceil)
    seen = sliding.of(padded(x, pool.widths, fill))
    axes = tuple(range(seen.ndim - count, seen.ndim))
    top = reduce(seen, pool, axes)
    made = narrow(top, like)
    if not indices:
        return made[0] if single else made
    places = sliding.of(padded(_places(x.shape[2:]), pool.widths, math.prod(x.shape[2:])))
    first = _first(seen, knp.expand_dims(top, axes), places, axes)
    return (made[0], first[0]) if single else (made, first)


def _places(extents: tuple[int, ...]) -> Any:
    return knp.arange(math.prod(extents)).reshape(extents)


def _first(x: Any, top: Any, places: Any, axes: tuple[int, ...]) -> Any:
    """Return the least of the places along ``axes`` where ``x`` is ``top``, or where it is NaN."""
    return knp.where((x == top) | knp.isnan(x), places, np.iinfo(np.int64).max).min(axis=axes)


def _named(fn: Fn, name: str, doc: str, *static: str) -> Fn:
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    return Function(fn, static, None)


def _max_pool(count: int) -> Fn:
    op = f"max_pool{count}d"

    def pool(
        input: Any, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        def largest(seen: Any, _: _Pool, axes: tuple[int, ...]) -> Any:
            return seen.max(axis=axes)

        return _pooled(
            op, count, input, kernel_size, stride, padding, dilation, ceil_mode, -math.inf, largest, return_indices
        )

    doc = f"""The largest element of each window over the last axes, {count} of them; padding is -inf.

    Args:
        return_indices: return the places of these elements too, for ``max_unpool{count}d``.
    """
    return _named(pool, op, doc, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def _max_unpool(count: int) -> Fn:
    op = f"max_unpool{count}d"

    def unpool(
        input: Any, indices: Any, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0,
        output_size: Sequence[int] | None = None,
    ) -> Any:  # fmt: skip
        x, single = unbatched(input, count, op)
        places, _ = unbatched(indices, count, op)
        require(x.shape == places.shape, op, f"{x.shape} and {places.shape}", "one shape for input and indices")
        sliding = Sliding(op, count, kernel_size, kernel_size if stride is None else stride)
        numbers = zip(x.shape[2:], sliding.strides, sliding.sizes, sliding.widths(padding), strict=True)
        sizes = tuple((n - 1) * s + k - low - high for n, s, k, (low, high) in numbers)
        if output_size is not None:
            wanted = tuple(output_size)[-count:]
            near = len(wanted) == count and all(
                abs(a - b) < s for a, b, s in zip(wanted, sizes, sliding.strides, strict=True)
            )
            valid(near, op, "output_size", output_size, f"{sizes}, or less than a stride from it")
            sizes = wanted
        lead = x.shape[:2]
        flat = places.reshape((*lead, math.prod(x.shape[2:])))
        flat = knp.where(flat < 0, math.prod(sizes), flat)
        at = [knp.arange(n).reshape([-1 if a == b else 1 for b in range(3)]) for a, n in enumerate(lead)]
        zeros = knp.zeros((*lead, math.prod(sizes)), x.dtype)
        made = zeros.at[at[0], at[1], flat].set(x.reshape(flat.shape)).reshape((*lead, *sizes))
        return made[0] if single else made

    doc = f"""Put elements back where ``max_pool{count}d`` with ``return_indices`` found them, among zeros.

    Args:
        output_size: of the last axes, {count} of them, where several give what was pooled; by default the least.

    A place out of range is left out.
    """
    return _named(unpool, op, doc, "kernel_size", "stride", "padding", "output_size")


def _avg_pool(count: int) -> Fn:
    op = f"avg_pool{count}d"

    def pool(
        input: Any, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None, dilation: Ints = 1,
    ) -> Any:  # fmt: skip
        def average(seen: Any, pool: _Pool, axes: tuple[int, ...]) -> Any:
            if divisor_override is not None:
                return seen.sum(axis=axes) / divisor_override
            counts = _outer(pool.counts if count_include_pad else pool.inside)
            return seen.sum(axis=axes) / (float(counts.item()) if counts.size == 1 else counts.astype(seen.dtype))

        return _pooled(op, count, input, kernel_size, stride, padding, dilation, ceil_mode, 0, average)

    doc = f"""The mean of each window over the last axes, {count} of them.

    Args:
        count_include_pad: whether the padding counts among the elements.
        divisor_override: what to divide by in place of the number of elements.
    """
    static = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override", "dilation")
    return _named(pool, op, doc, *static)


def _lp_pool(count: int) -> Fn:
    op = f"lp_pool{count}d"

    def pool(
        input: Any, norm_type: float, kernel_size: Ints, stride: Ints | None = None, ceil_mode: bool = False,
        padding: Ints = 0, dilation: Ints = 1,
    ) -> Any:  # fmt: skip
        def norm(seen: Any, pool: _Pool, axes: tuple[int, ...]) -> Any:
            whole = math.prod(seen.shape[a] for a in axes)
            total = power(seen, norm_type).sum(axis=axes)
            return root(total * (whole / _outer(pool.counts)).astype(seen.dtype), norm_type)

        return _pooled(op, count, input, kernel_size, stride, padding, dilation, ceil_mode, 0, norm)

    doc = f"""The root of the sum of powers of each window over the last axes, {count} of them; NaN for sums below 0.

    With ``ceil_mode`` the sum of a window that ends outside is scaled to a whole window.
    """
    return _named(pool, op, doc, "norm_type", "kernel_size", "stride", "ceil_mode", "padding", "dilation")


max_pool1d, max_pool2d, max_pool3d = (_max_pool(count) for count in (1, 2, 3))
max_unpool1d, max_unpool2d, max_unpool3d = (_max_unpool(count) for count in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (_avg_pool(count) for count in (1, 2, 3))
lp_pool1d, lp_pool2d, lp_pool3d = (_lp_pool(count) for count in (1, 2, 3))


def _fractional_max(count: int) -> Fn:
    op = f"fractional_max_pool{count}d"

    def pool(
        input: Any, kernel_size: Ints, output_size: Any = None, output_ratio: Any = None, return_indices: bool = False,
        _random_samples: Any = None, *, key: Any = None,
    ) -> Any:  # fmt: skip
        like, single = unbatched(input, count, op)
        x = wide(like)
        extents = x.shape[2:]
        kernel = each(kernel_size, count, op, "kernel_size")
        valid((output_size is None) != (output_ratio is None), op, "output_size", output_size, "it or output_ratio")
        if output_size is None:
            ratios = [output_ratio] * count if np.ndim(output_ratio) == 0 else list(output_ratio)
            valid(len(ratios) == count, op, "output_ratio", output_ratio, f"a number, or {count} of them")
            output_size = tuple(int(n * r) for n, r in zip(extents, ratios, strict=True))
        sizes = each(output_size, count, op, "output_size")
        valid(min(sizes) > 0 and min(kernel) > 0, op, "output_size", sizes, "1 or more, as of kernel_size")
        fits = all(n + k - 1 <= m for n, k, m in zip(sizes, kernel, extents, strict=True))
        require(fits, op, x.shape, f"extents of at least output_size + kernel_size - 1, {sizes} and {kernel}")
        shape = (*x.shape[:2], count)
        drawn: Any = uniform(key, shape, x.dtype) if _random_samples is None else knp.asarray(_random_samples)
        require(drawn.shape == shape, op, drawn.shape, f"random samples of shape {shape}")
        # PyTorch's samples for images are of the width first
        order = range(count) if count == 3 else reversed(range(count))
        index = [knp.arange(n).reshape([-1 if a == b else 1 for b in range(2 + 2 * count)])
                 for a, n in enumerate(x.shape[:2])]  # fmt: skip
        for a, of in enumerate(order):
            starts = _spread(drawn[:, :, of].astype(x.dtype), extents[a], kernel[a], sizes[a])
            lead = [1] * (2 * count)
            lead[a], lead[count + a] = sizes[a], kernel[a]
            at = starts[:, :, :, None] + knp.arange(kernel[a])
            index.append(at.reshape((*x.shape[:2], *lead)))
        seen = x[tuple(index)]
        axes = tuple(range(2 + count, 2 + 2 * count))
        top = seen.max(axis=axes)
        made = narrow(top, like)
        if not return_indices:
            return made[0] if single else made
        places = _places(extents)[tuple(index[2:])]
        first = _first(seen, knp.expand_dims(top, axes), places, axes)
        return (made[0], first[0]) if single else (made, first)

    pool.__name__ = pool.__qualname__ = op
    pool.__doc__ = f"""The largest element of each of windows that lie at random, about evenly; Graham 2014.

    Args:
        output_size: how many windows there are along the last axes, {count} of them.
        output_ratio: the same as shares of the extents.
        return_indices: return the places of these elements too.
        _random_samples: in place of a key: numbers in [0, 1) of shape (batch, channels, {count}).
        key: as of ``dropout``.
    """
    return Function(pool, ("kernel_size", "output_size", "output_ratio", "return_indices"), _draws)


def _draws(given: Given) -> None:
    if given.get("_random_samples") is None:
        draws_key(given)


def _spread(u: Any, n: int, size: int, places: int) -> Any:
    """Return where windows over ``n`` elements begin, for each ``u`` a row of ``places``, the last one at the end."""
    if places == 1:
        return knp.full((*u.shape, 1), n - size)
    step = np.asarray(n - size, u.dtype) / np.asarray(places - 1, u.dtype)
    at = knp.arange(places).astype(u.dtype)
    begun = knp.floor((at + u[..., None]) * step) - knp.floor(u[..., None] * step)
    return knp.where(knp.arange(places) == places - 1, n - size, begun.astype(np.int64))


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


def _largest(x: Any, places: Any, axis: int, count: int) -> tuple[Any, Any]:
    """Return the largest element of each bin along an axis, and its place."""
    n = x.shape[axis]
    if n % count == 0:
        split = (*x.shape[:axis], count, n // count, *x.shape[axis + 1 :])
        seen, at = (knp.broadcast_to(v, x.shape).reshape(split) for v in (x, places))
    else:
        bins, _ = _bins(n, count)
        seen, at = knp.take(x, bins, axis=axis), knp.take(places, bins, axis=axis - x.ndim)
    top = seen.max(axis=axis + 1, keepdims=True)
    return top[(slice(None),) * (axis + 1) + (0,)], _first(seen, top, at, (axis + 1,))


def _adaptive_sizes(op: str, count: int, x: Any, output_size: Any) -> tuple[int, ...]:
    wanted: list[Any] = [output_size] * count if output_size is None or np.ndim(output_size) == 0 else list(output_size)
    valid(len(wanted) == count, op, "output_size", output_size, f"an integer or None, or {count} of them")
    sizes = each([n if w is None else w for w, n in zip(wanted, x.shape[2:], strict=True)], count, op, "output_size")
    valid(min(sizes) > 0, op, "output_size", output_size, "1 or more")
    require(0 not in x.shape[2:], op, x.shape, "at least one element along each axis that is pooled")
    return sizes


def _adaptive_avg(count: int) -> Fn:
    op = f"adaptive_avg_pool{count}d"

    def pool(input: Any, output_size: Any) -> Any:
        like, single = unbatched(input, count, op)
        x = wide(like)
        for axis, places in enumerate(_adaptive_sizes(op, count, x, output_size), 2):
            x = _averaged(x, axis, places)
        made = narrow(x, like)
        return made[0] if single else made

    doc = f"The mean of each of ``output_size`` bins over the last axes, {count} of them; None keeps an axis as it is."
    return _named(pool, op, doc, "output_size")


def _adaptive_max(count: int) -> Fn:
    op = f"adaptive_max_pool{count}d"

    def pool(input: Any, output_size: Any, return_indices: bool = False) -> Any:
        like, single = unbatched(input, count, op)
        x = wide(like)
        places = _places(x.shape[2:])
        for axis, bins in enumerate(_adaptive_sizes(op, count, x, output_size), 2):
            x, places = _largest(x, places, axis, bins)
        made = narrow(x, like)
        if not return_indices:
            return made[0] if single else made
        return (made[0], places[0]) if single else (made, places)

    doc = f"""The largest element of each of ``output_size`` bins over the last axes, {count} of them.

    Args:
        output_size: None keeps an axis as it is.
        return_indices: return the places of these elements too.
    """
    return _named(pool, op, doc, "output_size", "return_indices")


fractional_max_pool2d, fractional_max_pool3d = (_fractional_max(count) for count in (2, 3))
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (_adaptive_avg(count) for count in (1, 2, 3))
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (_adaptive_max(count) for count in (1, 2, 3))
