"""CLBlast on an OpenCL device: matrix products, through its C library."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyopencl as cl

from kernelforge.backends import registry
from kernelforge.bench.peers.base import Peer, Setting, Unsupported
from kernelforge.bench.workloads.record import Array, Workload

REQUIRES = ("pyopencl", "numpy")
ROW_MAJOR, NO_TRANSPOSE = 101, 111
"""Of its header's enumerations CLBlastLayout and CLBlastTranspose."""


class Clblast(Peer):
    def __init__(self, setting: Setting, library: ctypes.CDLL) -> None:
        super().__init__(setting)
        self._library = library
        backend: Any = registry.backend(setting.device)
        self._context = cl.Context([backend.device])
        self._queue = cl.CommandQueue(self._context)

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        if not work.name.startswith(("sgemm", "gemv")):
            raise Unsupported(f"nobody wrote {work.name} for CLBlast")
        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
        a, b = (cl.Buffer(self._context, flags, hostbuf=x) for x in inputs)
        m, k = inputs[0].shape
        n = inputs[1].shape[1] if inputs[1].ndim == 2 else 1
        out = np.empty((m, n) if inputs[1].ndim == 2 else (m,), np.float32)
        c = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, out.nbytes)
        size, real, handle = ctypes.c_size_t, ctypes.c_float, ctypes.c_void_p
        queue = handle(self._queue.int_ptr)
        x, y, z = (handle(buffer.int_ptr) for buffer in (a, b, c))
        zero = size(0)
        given: tuple[Any, ...] = (real(1), x, zero, size(k), y, zero)
        if n > 1:
            fn, sizes = self._library.CLBlastSgemm, [NO_TRANSPOSE, NO_TRANSPOSE, size(m), size(n), size(k)]
            given = (ROW_MAJOR, *sizes, *given, size(n), real(0), z, zero, size(n), ctypes.byref(queue), None)
        else:
            fn, sizes = self._library.CLBlastSgemv, [NO_TRANSPOSE, size(m), size(k)]
            given = (ROW_MAJOR, *sizes, *given, size(1), real(0), z, zero, size(1), ctypes.byref(queue), None)

        def call() -> Any:
            status = fn(*given)
            if status:
                raise RuntimeError(f"CLBlast answered {status}")
            return c, out, (a, b)

        return call

    def wait(self, result: Any) -> None:
        self._queue.finish()

    def arrays(self, result: Any) -> list[Array]:
        buffer, out, _ = result
        cl.enqueue_copy(self._queue, out, buffer)
        return [out]


def start(setting: Setting) -> Peer:
    name = ctypes.util.find_library("clblast")
    if name is None:
        raise Unsupported("the system has no libclblast")
    return Clblast(setting, ctypes.CDLL(name))
