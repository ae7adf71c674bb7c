"""Arguments in the memory of CUDA, by ``__cuda_array_interface__``; numba's simulator stands for the driver."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest

import kernelforge as kf

CHILD = """
import numpy as np
import pytest
from numba import cuda
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
import kernelforge as kf

class Foreign:
    def __init__(self, array, stream):
        self.kept = array
        self.__cuda_array_interface__ = {
            "shape": array.shape, "strides": array.strides, "typestr": array.dtype.str,
            "data": (array.ctypes.data, True), "version": 3, "stream": stream,
        }

seen = []

class Lent:
    def __init__(self, interface):
        self.__array_interface__ = interface

def as_cuda_array(x):  # numba's simulator has none
    interface = dict(x.__cuda_array_interface__)
    seen.append(interface.pop("stream"))
    return FakeCUDAArray(np.asarray(Lent(interface)))

cuda.as_cuda_array = as_cuda_array
base = np.arange(24, dtype=np.float32).reshape(4, 6)
arrays = [base, base[::2, ::-3], base.T, base[:0], np.float32(3)[None].reshape(())]
fn = kf.jit(lambda x: x * 2 + 1)
for device in ("cpu", "cuda:0"):
    with kf.default_device(device):
        for stream, x in enumerate(arrays, 1):
            got = fn(Foreign(x, stream))
            assert got.device == device, got
            np.testing.assert_array_equal(np.asarray(got), x * 2 + 1)
            assert np.array_equal(kf.asarray(Foreign(x, stream), np.float64), x)
        assert seen == [s for s in range(1, 6) for _ in range(2)], seen
        seen.clear()
print("done")
"""


class Foreign:
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (2,), "typestr": "<f4", "data": (4096, False), "version": 3}


def test_they_are_read() -> None:
    pytest.importorskip("numba.cuda")
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_numba_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(kf.errors.MissingExtra) as caught:
        kf.jit(np.negative)(Foreign())
    text = "Foreign in the memory of CUDA needs numba, which is not installed; pip install 'kernelforge[cuda]'"
    assert str(caught.value) == text


def test_a_driver_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = pytest.importorskip("numba.cuda")

    def refuse(x: Any) -> None:
        raise ImportError("no driver")

    monkeypatch.setattr(cuda, "as_cuda_array", refuse, raising=False)
    for call in (kf.jit(np.negative), kf.asarray):
        with pytest.raises(
            kf.errors.InvalidArgument, match=r"Foreign, whose memory numba\.cuda cannot reach: no driver"
        ):
            call(Foreign())


def test_arrays_of_cuda_lend_their_memory() -> None:
    """Without a driver: what an array says of a buffer that has an address."""
    from types import SimpleNamespace

    from kernelforge.array import Array
    from kernelforge.runtime.memory import Owned

    def array(device: str, handle: Any, *shape: int) -> Array:
        return Array(Owned(SimpleNamespace(name=device), handle, 12), shape, np.dtype(np.float16))  # type: ignore[arg-type]

    found = array("cuda:0", SimpleNamespace(address=4096), 2, 3).__cuda_array_interface__
    expected = {"shape": (2, 3), "strides": None, "typestr": "<f2", "data": (4096, False), "version": 3, "stream": 1}
    assert found == expected
    assert array("cuda:0", SimpleNamespace(address=4096), 0).__cuda_array_interface__["data"] == (0, False)
    for other in (array("cuda:0", object(), 2), array("opencl:0", SimpleNamespace(address=4096), 2), kf.asarray([1.0])):
        with pytest.raises(AttributeError, match="__cuda_array_interface__"):
            other.__cuda_array_interface__  # noqa: B018
    # who reads it has the array: its memory stays when that is donated, and is not written to
    lent = array("cuda:0", SimpleNamespace(address=4096), 2, 3)
    memory = weakref.ref(lent._buffer)
    assert lent.__cuda_array_interface__ == lent.__cuda_array_interface__ == expected
    assert not isinstance(lent.give(), Owned)
    gc.collect()
    assert memory() is not None
    with pytest.raises(kf.errors.DonatedArray):
        lent.__cuda_array_interface__  # noqa: B018
    assert isinstance(array("cuda:0", SimpleNamespace(address=4096), 2).give(), Owned)
