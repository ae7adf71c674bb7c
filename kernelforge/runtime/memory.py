"""Device memory with an owner: buffers, and the pool that recycles them.

A fresh host allocation above the allocator's threshold is mapped and faulted page by page on each call, which takes
several times as long as the kernel that fills it; so memory goes back to a pool and not to the system.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from kernelforge.backends.base import Backend
from kernelforge.forks import Lock

KEPT_PER_CLASS = 4
KEPT_BYTES = 1 << 30
"""A pool keeps at most this many free handles of a size class, and this many bytes in all."""

_lock = Lock()
"""Guards the pools; re-entrant, as a garbage collection inside an allocation may run ``Pooled.__del__``."""


class Buffer:
    """Memory of one device.

    Attributes:
        backend: the device it is on.
        handle: what the device calls it.
        nbytes: at least what was asked for.
    """

    __slots__ = ("__weakref__", "backend", "handle", "nbytes")

    def __init__(self, backend: Backend, handle: Any, nbytes: int) -> None:
        self.backend = backend
        self.handle = handle
        self.nbytes = nbytes


class Owned(Buffer):
    """Memory that nothing sees but who has this."""

    __slots__ = ()


class Lent(Buffer):
    """Memory that others see, too, who have not this but the array."""

    __slots__ = ("of",)

    def __init__(self, of: Buffer) -> None:
        super().__init__(of.backend, of.handle, of.nbytes)
        self.of = of


class Pooled(Owned):
    """Memory that goes back to its pool when the last reference to it is gone."""

    __slots__ = ("_pool",)

    def __init__(self, backend: Backend, handle: Any, nbytes: int, pool: Pool) -> None:
        self.backend = backend
        self.handle = handle
        self.nbytes = nbytes
        self._pool = pool

    def __del__(self) -> None:
        self._pool.give_back(self.handle, self.nbytes)


class Pool:
    """Free memory of one device, by size class. Safe to use from several threads."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._free: dict[int, list[Any]] = {}
        self._bytes = 0

    def allocate(self, nbytes: int) -> Buffer:
        """Return memory of at least ``nbytes`` bytes, recycled where possible.

        Raises:
            DeviceOutOfMemory: when the device has no room, even after the pool gave up what it kept.
        """
        return self.take(size_class(nbytes))

    def take(self, size: int) -> Buffer:
        """Return memory of a size that ``size_class`` gave; see ``allocate``."""
        free = self._free.get(size)
        if free:
            with _lock:
                if free:
                    self._bytes -= size
                    return Pooled(self.backend, free.pop(), size, self)
        try:
            handle = self.backend.allocate(size)
        except MemoryError:
            self.trim()
            handle = self.backend.allocate(size)
        return Pooled(self.backend, handle, size, self)

    def give_back(self, handle: Any, size: int) -> None:
        with _lock:
            free = self._free.setdefault(size, [])
            if len(free) < KEPT_PER_CLASS and self._bytes + size <= KEPT_BYTES:
                free.append(handle)
                self._bytes += size
                return
        self.backend.free(handle)

    def trim(self) -> None:
        """Give everything that is free back to the device."""
        with _lock:
            handles = [h for free in self._free.values() for h in free]
            for free in self._free.values():
                free.clear()
            self._bytes = 0
        for handle in handles:
            self.backend.free(handle)


def size_class(nbytes: int) -> int:
    """Round up to a size with three significant bits, at least 64 bytes: at most an eighth is wasted."""
    if nbytes <= 64:
        return 64
    step = 1 << max(nbytes.bit_length() - 4, 6)
    return -(-nbytes // step) * step


_pools: weakref.WeakKeyDictionary[Backend, Pool] = weakref.WeakKeyDictionary()


def pool(backend: Backend) -> Pool:
    """Return the pool of a device."""
    found = _pools.get(backend)
    if found is None:
        with _lock:
            found = _pools.setdefault(backend, Pool(backend))
    return found


def allocate(backend: Backend, nbytes: int) -> Buffer:
    """Return uninitialised memory of a device; see ``Pool.allocate``."""
    return pool(backend).allocate(nbytes)


def upload(backend: Backend, array: np.ndarray[Any, Any]) -> Buffer:
    """Bring an array to a device; a host device shares the array's memory, at its strides, as a device that has the
    array already does.
    """
    handle = backend.upload(array)
    copied = isinstance(array, np.ndarray) and not backend.limits.host
    buffer = (Owned if copied else Buffer)(backend, handle, array.nbytes)
    if not backend.limits.host:
        weakref.finalize(buffer, backend.free, handle)
    return buffer


class _Owner:
    """Lends the memory of a buffer to NumPy and keeps the buffer out of its pool meanwhile."""

    __slots__ = ("__array_interface__", "buffer")

    def __init__(self, raw: np.ndarray[Any, Any], buffer: Buffer) -> None:
        self.__array_interface__ = raw.__array_interface__
        self.buffer = buffer


def download(buffer: Buffer, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Wait, and return the row-major elements from ``offset`` bytes on.

    On a host device the result is a view that keeps ``buffer`` alive; elsewhere it is a copy.
    """
    found = buffer.backend.download(buffer.handle, offset, shape, dtype)
    if not buffer.backend.limits.host or not found.size:
        return found
    raw = np.asarray(_Owner(found.reshape(-1).view(np.uint8), buffer))
    return raw.view(dtype).reshape(shape)
