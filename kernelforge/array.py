"""The array on a device: what compiled functions return."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree

from kernelforge.backends import registry
from kernelforge.backends.base import Backend
from kernelforge.devices import current as current_device
from kernelforge.dtypes import as_dtype
from kernelforge.errors import DonatedArray, ImmutableArray, InvalidArgument, MissingExtra
from kernelforge.forks import Lock
from kernelforge.ir.build import plain, tracing
from kernelforge.ir.types import row_major
from kernelforge.methods import FUNCTIONS, Methods
from kernelforge.runtime.memory import Buffer, Lent, Owned, allocate, download, upload

PASSIVE = frozenset({
    "save", "savez", "savez_compressed", "savetxt", "array2string", "array_repr", "array_str",
    "may_share_memory", "shares_memory",
})  # fmt: skip
"""Functions of NumPy's that compute nothing."""

WRITERS = frozenset({"copyto", "place", "put", "put_along_axis", "putmask"})
"""Functions of NumPy's that move elements into their first argument."""

LEGACY_STREAM = 1
"""How ``__cuda_array_interface__`` calls the legacy default stream, where CUDA devices run all kernels."""


class _Gone(Buffer):
    """Stands where the memory of a donated array was; keeps what others see of it."""

    __slots__ = ("kept",)

    def __init__(self, kept: Buffer | None = None) -> None:
        # machine code that looks for a device finds none
        self.kept = kept

    @property
    def backend(self) -> Backend:  # type: ignore[override]
        raise DonatedArray


GONE = _Gone()

_giving = Lock()
"""Two threads that donate one array do not both find its memory."""


class Array(Methods):
    """An immutable array of one device, in row-major order, with NumPy's operators, methods and functions.

    Attributes:
        shape: extents.
        dtype: a NumPy dtype.
    """

    __slots__ = ("__weakref__", "_buffer", "_host", "dtype", "shape")
    __hash__ = None

    def __init__(self, buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._buffer = buffer
        self.shape = shape
        self.dtype = dtype
        self._host: np.ndarray[Any, Any] | None = None

    @property
    def device(self) -> str:
        """The name of the device the elements are on."""
        return self._buffer.backend.name

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from an element to the next one along each axis."""
        return tuple(s * self.itemsize for s in row_major(self.shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        host = self._host
        if host is None:
            host = download(self._buffer, 0, self.shape, self.dtype)
            host.flags.writeable = False
            if self._buffer.backend.limits.host:
                self._host = host
        if dtype is not None and np.dtype(dtype) != host.dtype:
            if copy is False:
                raise ValueError(f"an array of {host.dtype} cannot become one of {dtype} without a copy")
            return host.astype(dtype)
        return host.copy() if copy else host

    def __dlpack__(self, **options: Any) -> Any:
        host = np.asarray(self)
        # NumPy exports no read-only memory; the consumer gets the one copy it may write to
        return host.copy().__dlpack__(**{k: v for k, v in options.items() if k != "copy"})

    def __dlpack_device__(self) -> tuple[int, int]:
        return np.asarray(self).__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The elements where CUDA has them, for PyTorch, CuPy and numba, in the order of the legacy default stream.

        Whoever reads them keeps the array. They must not be written to: the protocol can say so, but PyTorch then takes
        none.

        Raises:
            AttributeError: on other devices.
        """
        on_cuda = self.device.partition(":")[0] == "cuda"
        address = getattr(self._buffer.handle, "address", None)
        if address is None or not on_cuda:
            raise AttributeError(f"__cuda_array_interface__ of an array of {self.device}")
        if not isinstance(self._buffer, Lent):
            self._buffer = Lent(self._buffer)
        data = address if self.size else 0
        return {
            "shape": self.shape, "strides": None, "typestr": self.dtype.str, "data": (data, False), "version": 3,
            "stream": LEGACY_STREAM,
        }  # fmt: skip

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        import kernelforge.numpy

        return kernelforge.numpy

    def __reduce__(self) -> Any:
        return asarray, (np.array(self),)

    def __repr__(self) -> str:
        if isinstance(self._buffer, _Gone):
            return f"Array(<donated>, shape={self.shape}, dtype={self.dtype})"
        elements = np.array2string(np.asarray(self), separator=", ", prefix="Array(")
        return f"Array({elements}, dtype={self.dtype}, device={self.device!r})"

    def __str__(self) -> str:
        return str(np.asarray(self))

    def __format__(self, spec: str) -> str:
        return format(np.asarray(self)[()], spec)

    def __bool__(self) -> bool:
        return bool(np.asarray(self))

    def __int__(self) -> int:
        return int(np.asarray(self))

    def __float__(self) -> float:
        return float(np.asarray(self))

    def __complex__(self) -> complex:
        return complex(np.asarray(self))

    def __index__(self) -> int:
        return np.asarray(self).__index__()

    def item(self, *index: int) -> Any:
        return np.asarray(self).item(*index)

    def tolist(self) -> Any:
        return np.asarray(self).tolist()

    def __getitem__(self, key: Any) -> Any:
        return FUNCTIONS["getitem"](self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise ImmutableArray

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__
        if name in PASSIVE or (name in WRITERS and isinstance(args[0], np.ndarray) and not tracing()):
            both: Any = (args, kwargs)
            args, kwargs = optree.tree_map(lambda x: np.asarray(x) if isinstance(x, Array) else x, both)
            return func(*args, **kwargs)
        return super().__array_function__(func, types, args, kwargs)

    def give(self) -> Buffer:
        """Let go of the elements and return their memory: whoever uses the array later is told that it was donated.

        Raises:
            DonatedArray: when it was before, maybe by another thread.
        """
        with _giving:
            buffer = self._buffer
            if isinstance(buffer, _Gone):
                raise DonatedArray
            self._buffer = GONE if isinstance(buffer, Owned) else _Gone(buffer)
        self._host = None
        return buffer

    def to_device(self, device: str) -> Array:
        """Return the array on another device; itself where it is there already."""
        target = registry.backend(device)
        return self if target is self._buffer.backend else put(np.asarray(self), target)

    def block_until_ready(self) -> Array:
        """Wait until the elements are computed."""
        self._buffer.backend.synchronize()
        return self


def put(array: np.ndarray[Any, Any], backend: Backend) -> Array:
    """Bring an array to a device; a ``host`` device shares the memory of a row-major one."""
    array = ready(array)
    if not array.flags.c_contiguous:
        array = np.array(array, order="C", copy=True)
    buffer = upload(backend, array) if array.size else allocate(backend, 1)
    return Array(buffer, array.shape, as_dtype(array.dtype))


def ready(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array that kernels can read in place: a copy of one that is unaligned or byte-swapped.

    So is one whose strides are no multiples of an element.

    Raises:
        UnsupportedDtype: for a dtype kernels have not.
    """
    dtype = as_dtype(array.dtype)
    even = all(s % dtype.itemsize == 0 for s in array.strides)
    if array.flags.aligned and array.dtype.isnative and even:
        return array
    return np.array(array, dtype=dtype, order="C", copy=True)


def lent(x: Any) -> np.ndarray[Any, Any] | Array | None:
    """Return an array from anything that lends its memory; None where ``x`` does not.

    Raises:
        InvalidArgument: for memory of a device that nothing here can read, and for what ``plain`` refuses.
        MissingExtra: for memory of CUDA without numba.
    """
    if isinstance(x, type):
        return None  # has the attributes of its instances
    if isinstance(x, np.ndarray | np.generic):
        return plain(x)
    if hasattr(x, "__cuda_array_interface__"):
        return _from_cuda(x)
    if hasattr(x, "__dlpack__"):
        try:
            return np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InvalidArgument(
                name="an array", found=f"{type(x).__name__}, which NumPy cannot read: {error}"
            ) from error
    if hasattr(x, "__array_interface__"):
        return np.asarray(x)
    return None


def _from_cuda(x: Any) -> np.ndarray[Any, Any] | Array:
    """Share the memory of a row-major array with the default device where that is CUDA; copy it to the host elsewhere.

    Waits for the stream that the interface names. Kernels write to no memory of others, so that may be read-only.
    """
    try:
        from numba import cuda
    except ModuleNotFoundError:
        raise MissingExtra(what=f"{type(x).__name__} in the memory of CUDA", package="numba", extra="cuda") from None
    try:
        found = cuda.as_cuda_array(x)
    except (ImportError, AttributeError, NotImplementedError) as error:
        reason = f"{type(x).__name__}, whose memory numba.cuda cannot reach: {error}"
        raise InvalidArgument(name="an array", found=reason) from error
    backend = current_device()
    if backend.name.partition(":")[0] != "cuda" or not found.is_c_contiguous():
        host: np.ndarray[Any, Any] = found.copy_to_host()
        return host
    buffer = upload(backend, found) if found.size else allocate(backend, 1)
    return Array(buffer, found.shape, as_dtype(found.dtype))


def asarray(x: Any, dtype: Any = None, device: str | None = None) -> Any:
    """Make an array of a device from NumPy's, from numbers or nested lists of them.

    A ``host`` device (``cpu``) shares the memory of an array that is row-major, aligned, and has the dtype already:
    do not write to it while the result is in use. So does a CUDA device with an array that has
    ``__cuda_array_interface__``; other devices copy that by way of the host. Inside of a compiled function the
    result is a traced array.

    Args:
        dtype: cast to it.
        device: by default the one ``x`` is on, else that of ``default_device``.
    """
    if tracing():
        return FUNCTIONS["asarray"](x, dtype=dtype)
    if isinstance(x, Array):
        moved = x if device is None else x.to_device(device)
        return moved if dtype is None or as_dtype(dtype) == x.dtype else moved.astype(dtype)
    found = lent(x)
    if isinstance(found, Array):
        return asarray(found, dtype, device)
    array = np.asarray(x) if found is None else found
    array = array.astype(as_dtype(dtype), copy=False) if dtype is not None else array
    return put(array, current_device() if device is None else registry.backend(device))
