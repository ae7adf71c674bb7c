"""The interpreter as a device: memory, launches with offsets and parameters."""

from __future__ import annotations

import numpy as np
import pytest

from kernelforge.backends.reference import devices
from kernelforge.dtypes import DTYPES
from kernelforge.errors import OutOfRange
from kernelforge.ir.parse import parse_kernel

SCALE = parse_kernel("""
kernel scale(in x: f32[n], out y: f32[n], scratch s: f32[n]) params (n) {
  for parallel i < n {
    s[i] = x[i] * 2.0f32
  }
  for parallel j < n {
    y[j] = s[j] + 1.0f32
  }
}
""")


@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_launch_on_offsets(size: int) -> None:
    (device,) = devices().values()
    x = np.arange(size + 3, dtype=np.float32)
    executable = device.compile(SCALE)
    out, scratch = device.allocate(4 * size + 64), device.allocate(4 * size + 1)
    device.launch(executable, [(device.upload(x), 12), (out, 64), (scratch, 0)], [size])
    device.synchronize()
    np.testing.assert_array_equal(device.download(out, 64, (size,), x.dtype), x[3:] * 2 + 1)
    device.free(out)
    assert executable.source.startswith("kernel scale(")
    assert executable.binary is None


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_upload_and_download_every_dtype(name: str) -> None:
    (device,) = devices().values()
    assert name in device.limits.dtypes
    array = np.arange(12).reshape(3, 4).astype(DTYPES[name])[::-1, ::2]
    again = device.download(device.upload(array), 0, array.shape, array.dtype)
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()
    assert device.download(device.upload(array[:0]), 0, (0, 2), array.dtype).shape == (0, 2)


def test_memory_is_aligned_and_starts_as_nan() -> None:
    (device,) = devices().values()
    handle = device.allocate(8)
    assert handle.ctypes.data % 64 == 0
    assert np.isnan(device.download(handle, 0, (2,), np.dtype(np.float32))).all()


def test_upload_copies() -> None:
    (device,) = devices().values()
    assert not device.limits.host
    x = np.zeros(3, np.float32)
    handle = device.upload(x)
    x += 1
    assert not device.download(handle, 0, (3,), x.dtype).any()


def test_reading_past_an_argument_is_refused() -> None:
    (device,) = devices().values()
    short = parse_kernel("""
kernel past(in x: f32[2], out y: f32[3]) {
  for parallel i < 3 {
    y[i] = x[i]
  }
}
""")
    x, y = device.upload(np.zeros(3, np.float32)), device.allocate(12)
    with pytest.raises(OutOfRange, match=r"kernel past: load of x\[2\]"):
        device.launch(device.compile(short), [(x, 0), (y, 0)], [])
