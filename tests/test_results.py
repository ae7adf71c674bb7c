"""What is true of results and memory, on every device: how much, whose, and for how long."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.backends import registry

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)


def test_more_elements_than_32_bits_count() -> None:
    """Inputs of one element seen 2**31 + 8 times, and zeros that are not there until they are written."""
    n = 2**31 + 8
    ones = np.broadcast_to(np.int8(1), (n,))
    assert int(kf.jit(lambda x: x.sum())(ones)) == n
    assert bool(kf.jit(lambda x: (x == 1).all())(ones))
    np.testing.assert_array_equal(
        kf.jit(lambda x: x.sum(1, dtype=np.int32))(np.broadcast_to(np.int8(1), (3, 2**30))), [2**30] * 3
    )
    x = np.zeros(n, np.int8)
    x[-3] = 1
    assert int(kf.jit(np.argmax)(x)) == n - 3
    at = np.array([n - 3, -3, 2, n, 2**32 + 2])
    np.testing.assert_array_equal(kf.jit(lambda x, i: x[i])(x, at), [1, 1, 0, -128, -128])
    np.testing.assert_array_equal(kf.jit(lambda x: (x[::-1][:4] + 0, x[-4:] * 2))(x), [[0, 0, 1, 0], [0, 2, 0, 0]])
    assert int(kf.jit(lambda x: x.sum())(x[5 :: 2**20])) == 1
    assert [int(v) for v in kf.jit(lambda: kf.numpy.arange(n)[-2:])()] == [n - 2, n - 1]


def test_more_bytes_than_there_are(device: str) -> None:
    x = np.broadcast_to(np.float32(1), (1 << 33,))
    if device != "opencl:0":  # which first copies what it is given
        with pytest.raises(
            errors.ArrayTooLarge, match=r"f32\[8589934592,8589934592\] has more bytes than 64-bit indices reach"
        ):
            kf.jit(lambda x: (x[:, None] * x).sum())(x[: 1 << 33]) if device == "cpu" else kf.jit(
                lambda x: np.broadcast_to(x, (1 << 33, 1 << 33)).sum()
            )(x[:1])
    with pytest.raises(errors.DeviceOutOfMemory, match=f"{device} has no room for"):
        kf.jit(lambda x: np.broadcast_to(x, (1 << 22, 1 << 26)) + 1)(x[:1])
    np.testing.assert_array_equal(kf.jit(lambda x: x + 1)(x[:3]), [2, 2, 2])


def test_inputs_may_change_after_the_call(device: str) -> None:
    x = np.arange(1000, dtype=np.float32)
    results = [
        kf.jit(fn)(x)
        for fn in (lambda x: x, lambda x: x * 2, lambda x: x.reshape(10, 100).T, lambda x: x[3:], lambda x: x[::-1])
    ]
    expected = [x.copy(), x * 2, x.reshape(10, 100).T.copy(), x[3:].copy(), x[::-1].copy()]
    x[:] = -1
    for r, e in zip(results, expected, strict=True):
        np.testing.assert_array_equal(r, e)


def test_results_are_read_only(device: str) -> None:
    y = np.asarray(kf.jit(lambda x: x + 1)(np.ones(3)))
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 5


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ["cpu", "opencl"])
def test_results_stay_while_memory_is_recycled(name: str) -> None:
    """Views of results live on, the results themselves do not, in eight threads that share a pool."""
    try:
        registry.backend(name)
    except errors.DeviceUnavailable as error:
        pytest.skip(str(error))
    fn = kf.jit(lambda x, s: x * s + 1)
    inputs = [np.arange(n, dtype=np.float32) for n in (1, 7, 1000, 5000)]
    wrong: list[tuple[int, int]] = []

    def work(k: int) -> None:
        rng = np.random.default_rng(k)
        kept: list[tuple[Array, Array, float]] = []
        with kf.default_device(name):
            for n in range(300):
                x, s = inputs[int(rng.integers(4))], float(1000 * k + n)
                view = np.asarray(fn(x, s))[::2]
                kept.append((view, x, s))
                if len(kept) > 20:
                    del kept[int(rng.integers(20))]
                if n % 40 == 0:
                    gc.collect()
                for view, x, s in kept[::3]:
                    if not np.array_equal(view, (x * np.float32(s) + 1)[::2]):
                        wrong.append((k, n))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not any(t.is_alive() for t in threads)
    assert not wrong


def test_first_calls_from_many_threads(device: str) -> None:
    x = RNG.standard_normal((40, 30)).astype(np.float32)
    traced: list[int] = []
    fn = kf.jit(lambda x: traced.append(0) or softmax(np.tanh(x) @ x.T))
    start, found = threading.Barrier(8), []

    def work() -> None:
        with kf.default_device(device):
            start.wait()
            found.append(np.asarray(fn(x)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert len(found) == 8
    for y in found:
        np.testing.assert_array_equal(y, found[0])
    np.testing.assert_allclose(found[0], softmax(np.tanh(x) @ x.T), rtol=1e-4)


@pytest.mark.parametrize("target", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_negative_numbers_wrap_as_unsigned_integers(device: str, target: type) -> None:
    x = np.array([-2.75, -1.0, -0.5, 200.0, 255.9, -100.0, -1000.0, 300.0, -3e4, 6e4] * 5, np.float32)
    if target in (np.uint32, np.uint64):
        x = np.append(x, [-1e6, -2e9, 2e9, 2.0**31, 3e9, 4e9, np.nextafter(np.float32(2**32), 0)] * 5)
    if target is np.uint64:
        x = np.append(x, [-3e9, -9e18, 9e18, 2.0**63, 1.8e19] * 5)
    for dtype in (np.float32, np.float64):
        found = kf.jit(lambda x: x.astype(target))(x.astype(dtype))
        np.testing.assert_array_equal(found, x.astype(dtype).astype(target))
