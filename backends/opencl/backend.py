"""OpenCL devices: memory, programs and launches through pyopencl.

Division and square root of f32 are correctly rounded where the device offers that
(``-cl-fp32-correctly-rounded-divide-sqrt``); elsewhere OpenCL allows 2.5 and 3 units in the last place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyopencl as cl

from kernelforge.backends.base import Argument, Backend
from kernelforge.backends.cpu.host import host
from kernelforge.backends.opencl.declared import DECLARATIONS, POCL, READ, declared
from kernelforge.backends.opencl.icd import TARGET, discover, options
from kernelforge.backends.opencl.phases import Phase, Source, program
from kernelforge.backends.opencl.printer import print_opencl
from kernelforge.dtypes import DTYPES
from kernelforge.errors import (
    CompilationFailed,
    DamagedBinary,
    DeviceForked,
    DeviceOutOfMemory,
    DeviceUnavailable,
    UnsupportedOnDevice,
)
from kernelforge.ir.cost import NOTHING, streamed
from kernelforge.ir.interpret import evaluate
from kernelforge.ir.kernel import Alloc, Const, Expr, Kernel, exprs, stmts, walk
from kernelforge.ir.passes.in_place import in_place
from kernelforge.ir.schedule.limits import CORE_BANDWIDTH, LINE, Limits, core_rate

MAGIC = b"kernelforge-opencl\n"

CORRECTLY_ROUNDED = 1 << 7
"""CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT of CL_DEVICE_SINGLE_FP_CONFIG."""

PAGE = 4096
APART = 1408
"""Bytes behind the start of a page at which large memory for what is made begins; see ``cpu.backend.APART``. Drivers
ask for multiples of 128 to use it in place."""

LARGE = 1 << 22
"""Bytes from which on a CPU's buffer is NumPy's memory: from here NumPy asks for large pages."""

PARTS = 32
"""Parts a thread in which a CPU's iterations are shared out: few enough to cost nothing, enough to even out threads."""

PROBE = """
#if defined(__SSE2__) && (WIDTH > 8 && !defined(__AVX512F__) || WIDTH > 4 && !defined(__AVX__))
#define fits older
#endif
__kernel void fits(void) {}
"""
"""A program that a device must compile, with its preferred vector's floats as ``WIDTH``: whether vectors fit the
processor that the compiler takes this one for. The wheel of PoCL 3.0, whose LLVM takes Zen 4 for Zen 3, calls its
library of functions of 16 floats with their halves in two registers each: wrong values, or the process ends."""

OUT_OF_MEMORY = ("MEM_OBJECT_ALLOCATION_FAILURE", "OUT_OF_RESOURCES", "OUT_OF_HOST_MEMORY", "INVALID_BUFFER_SIZE")


def open_devices() -> dict[str, Backend]:
    """Make a backend of each device that compiles ``PROBE``.

    Raises:
        DeviceUnavailable: when there is none, with what each runtime says.
    """
    try:
        found = discover()
    except cl.Error as error:
        raise DeviceUnavailable(
            reason=f"no OpenCL runtime was found ({error}); install a driver, or pip install intel-opencl-rt"
        ) from error
    refused: list[str] = []
    out: dict[str, Backend] = {}
    for device in found:
        context = cl.Context([device])
        try:
            program = _build(cl.Program(context, PROBE), (f"-DWIDTH={device.preferred_vector_width_float}",))
            fits = program.get_info(cl.program_info.KERNEL_NAMES) == "fits"
            problem = "" if fits else "its compiler takes this processor for an older one, and passes vectors otherwise"
        except cl.Error as error:
            problem = _last_line(error)
        if problem:
            refused.append(f"{describe(device)} cannot be used: {problem}")
            continue
        name = f"opencl:{len(out)}"
        out[name] = OpenCL(name, device, context)
    if not out:
        raise DeviceUnavailable(reason="; ".join(refused) or "the OpenCL runtimes that were found have no device")
    return out


def describe(device: Any) -> str:
    return f"{device.name.strip()} ({device.platform.name.strip()} {device.driver_version})"


def _last_line(error: Exception) -> str:
    said = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
    return said[-1] if said else str(error).splitlines()[0]


def _build(program: Any, options: Sequence[str]) -> Any:
    with warnings.catch_warnings():
        # what a compiler remarks about sources that it accepts is of no use to those who did not write them, which is
        # why the options hold -w; some write to the log all the same
        warnings.simplefilter("ignore", cl.CompilerWarning)
        return program.build(list(options), cache_dir=False)


def _finish(queue: Any, pid: int) -> None:
    """Wait, as at the end of a process, too: PoCL compiles in threads, which fail where their libraries are gone."""
    if os.getpid() == pid:
        queue.finish()


def limits_of(device: Any) -> Limits:
    """Read a device's limits; cache sizes, which OpenCL does not tell of each level, are those of common processors."""
    cpu = bool(device.type & cl.device_type.CPU)
    dtypes = frozenset(DTYPES) if device.double_fp_config else frozenset(DTYPES) - {"f64"}
    width = 4 * max(device.native_vector_width_float, device.preferred_vector_width_float)
    told = f"{options()}|{os.environ.get(TARGET, '')}" if device.platform.name.startswith("Intel") else ""
    registers = 32 if width >= 64 else 16
    platform = device.platform
    version = f"{platform.name}|{platform.version}|{device.name}|{device.driver_version}|{told}|{cl.VERSION_TEXT}"
    return Limits(
        form="vector" if cpu else "group",
        vector_bytes=max(width, 16) if cpu else 16,
        vector_registers=registers,
        threads=device.max_compute_units if cpu else device.max_compute_units * 2048,
        group=device.max_work_group_size,
        local_bytes=1 << 15 if cpu else device.local_mem_size,
        cache_bytes=min(device.global_mem_cache_size or 1 << 19, 1 << 20) if cpu else device.global_mem_cache_size,
        dtypes=dtypes,
        host=False,
        # a pointer and an offset for each buffer, beside as many parameters as 128 bytes hold
        max_args=(device.max_parameter_size - 128) // 16,
        fingerprint=f"opencl|{version}",
        bandwidth=device.max_compute_units * CORE_BANDWIDTH if cpu else 0.0,
        native=frozenset({"mad", *_instructions(device)})
        | ({"calls", "repeat_alone", "stream"} if cpu else frozenset()),
        rate=device.max_compute_units * core_rate(max(width, 16)) if cpu else 0.0,
        # compilers take long for more, which run no faster
        side=registers // 16 if cpu else 1,
    )


def _instructions(device: Any) -> dict[str, str]:
    """Return what a runtime is known to compile by LLVM for this processor: names of ``Limits.native`` and the macros
    that let sources use it. Another processor or an older compiler would not refuse it, but end the process.
    """
    able = host()
    if not device.type & cl.device_type.CPU or able.arch != "x86_64" or able.vector_bytes < 64:
        return {}
    if device.platform.name.startswith("Intel") and TARGET not in os.environ:
        year = re.match(r"\d+", device.driver_version)
        if year and int(year[0]) >= 2026:
            dots = {"bf16dot": "KF_BF16DOT"} if "bf16dot" in able.native else {}
            return {"scaleb": "KF_AVX512", "tables": "KF_AVX512", **dots}
    if device.platform.name == POCL and "avx512" in device.name:
        return {"scaleb": "KF_AVX512", "tables": "KF_AVX512"}
    return {}


class OpenCLExecutable:
    """A compiled kernel: the functions of a program that are its own.

    Args:
        kernel: as it was printed.
        binary: of the program, which several kernels may share.

    Attributes:
        phases: each with its function, and the one that stores past the cache where there is one.
        streamed: positions of the arguments that are stored past the cache.
    """

    def __init__(self, kernel: Kernel, printed: Source, binary: bytes, program: Any) -> None:
        self.kernel = kernel
        self.printed = printed
        self.binary = binary
        self.program = program
        self.streamed = tuple(k for k, a in enumerate(kernel.args) if a.name in printed.streamed)

        def function(phase: Phase, name: str) -> Any:
            found = cl.Kernel(program, printed.named(name))
            found.set_scalar_arg_dtypes([None, np.int64] * len(phase.buffers) + [np.int64] * len(kernel.params))
            return found

        self.phases = [(p, function(p, p.name), function(p, p.stream) if p.stream else None) for p in printed.phases]

    @property
    def source(self) -> str:
        """What was printed of this kernel alone."""
        return self.printed.text


class _Large(cl.Buffer):  # type: ignore[misc]
    """A buffer of NumPy's memory, which outlives the commands that use it."""

    queue: Any = None

    def __del__(self) -> None:
        if self.queue is not None:
            self.queue.finish()


class OpenCL:
    """One OpenCL device, with one queue that runs in order."""

    def __init__(self, name: str, device: Any, context: Any) -> None:
        self._name = name
        self.device = device
        self._context = context
        self._queue = cl.CommandQueue(context, device)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        weakref.finalize(self, _finish, self._queue, self._pid)
        self._limits = limits_of(device)
        self._cpu = self._limits.form == "vector"
        self._workers = PARTS * self._limits.threads if self._cpu else 0
        self._aligned = device.mem_base_addr_align >= 8 * LINE
        self._scratch: list[Any] = []
        self._programs: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()
        self._options = ["-cl-std=CL1.2", "-w"]
        if device.single_fp_config & CORRECTLY_ROUNDED:
            self._options.append("-cl-fp32-correctly-rounded-divide-sqrt")
        # PoCL compiles kernels for groups of any size when it is asked for a binary, and for one size when that is
        # launched, which takes as long again; it keeps both in a folder of its own, and finds them there by the source,
        # which is what is kept for it here
        self._keeps = device.platform.name == POCL
        self._declarations = DECLARATIONS if declared(device) else ""
        self._options += [READ] * bool(self._declarations)
        self._options += (f"-D{macro}" for macro in dict.fromkeys(_instructions(device).values()))

    @property
    def name(self) -> str:
        return self._name

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def description(self) -> str:
        """The device and its driver, for people."""
        return describe(self.device)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.description}>"

    def _alive(self) -> None:
        if os.getpid() != self._pid:
            raise DeviceForked(device=self.name)

    def allocate(self, nbytes: int) -> Any:
        return self._buffer(nbytes)

    def _buffer(self, nbytes: int, content: Any = None) -> Any:
        self._alive()
        if self._cpu and nbytes >= LARGE:
            return self._large(nbytes, content)
        flags = cl.mem_flags.READ_WRITE | (cl.mem_flags.COPY_HOST_PTR if content is not None else 0)
        with self._room(nbytes):
            return cl.Buffer(self._context, flags, nbytes if content is None else 0, hostbuf=content)

    def _large(self, nbytes: int, content: Any) -> Any:
        """Make a buffer of NumPy's memory, which the system backs by large pages: drivers ask for none, and half of a
        row kernel's time went to faults and to looking pages up.
        """
        with self._room(nbytes):
            start = APART if content is None else 0
            memory = np.empty(nbytes + PAGE + start, np.uint8)
            memory = memory[-memory.ctypes.data % PAGE + start :][:nbytes]
            if content is not None:
                memory[:] = content
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
            made = _Large(self._context, flags, hostbuf=memory)
        made.queue = self._queue
        return made

    @contextlib.contextmanager
    def _room(self, nbytes: int) -> Iterator[None]:
        """Say so when the device has no room for ``nbytes``; drivers may find out as late as at a launch."""
        try:
            yield
        except (cl.Error, MemoryError) as error:
            if isinstance(error, cl.Error) and not any(text in str(error) for text in OUT_OF_MEMORY):
                raise
            raise DeviceOutOfMemory(device=self.name, nbytes=nbytes) from error

    def free(self, handle: Any) -> None:
        # the driver keeps the memory until the commands that use it have run
        handle.release()

    def upload(self, array: np.ndarray[Any, Any]) -> Any:
        if not array.size:
            return self.allocate(1)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return self._buffer(flat.nbytes, flat)

    def download(self, handle: Any, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        self._alive()
        out = np.empty(shape, dtype)
        if out.size:
            flat = out.reshape(-1).view(np.uint8)
            with self._room(out.nbytes):
                cl.enqueue_copy(self._queue, flat, handle, src_offset=offset, is_blocking=True)
        return out

    def compile(self, kernel: Kernel, binary: bytes | None = None) -> OpenCLExecutable:
        printed = self.printed(kernel)
        if binary is not None:
            return OpenCLExecutable(*printed, binary, self._load(kernel, binary))
        (made,) = self.build([kernel], [printed])
        return made

    def printed(self, kernel: Kernel) -> tuple[Kernel, Source]:
        """Return the kernel as it is printed, and what is printed of it.

        Raises:
            UnsupportedOnDevice: for a dtype that the device or the printer lacks.
        """
        self._alive()
        self._check(kernel)
        large = streamed(kernel, host().cache_bytes) if self._cpu and self._aligned else NOTHING
        if self._cpu:
            kernel = in_place(kernel, {a.name for a in kernel.args if a.mode == "out"} - large.keys())
        caches = host().cache_bytes if self._cpu else ()
        return kernel, print_opencl(
            kernel, self._workers, self.device.local_mem_size, large, caches, self._limits.native
        )

    def build(self, kernels: Sequence[Kernel], printed: Sequence[tuple[Kernel, Source]]) -> list[OpenCLExecutable]:
        """Compile one program: runtimes take a while for any, and little more for one of several kernels."""
        self._alive()
        text = self._declarations + program([source for _, source in printed])
        try:
            made = _build(cl.Program(self._context, text), self._options)
        except cl.Error as error:
            if len(kernels) > 1:  # whose fault it is
                return [e for k, p in zip(kernels, printed, strict=True) for e in self.build([k], [p])]
            raise CompilationFailed(
                kernel=kernels[0].name, device=self.name, log=str(error), source=f"\n{printed[0][1].text}"
            ) from error
        (body,) = [text.encode()] if self._keeps else made.get_info(cl.program_info.BINARIES)
        binary = MAGIC + self._digest(body) + bytes(body)
        self._programs[binary] = made
        return [OpenCLExecutable(*p, binary, made) for p in printed]

    def _check(self, kernel: Kernel) -> None:
        """Refuse a dtype that the device or the printer lacks."""
        able = self.limits.dtypes - {"f16", "bf16"}
        inside = list(stmts(kernel.body))
        found = {a.dtype for a in kernel.args} | {s.dtype for s in inside if isinstance(s, Alloc)}
        found |= {e.dtype for s in inside for r in exprs(s) for e in walk(r)}
        for dtype in sorted(found - able):
            raise UnsupportedOnDevice(device=self.name, dtype=dtype, supported=", ".join(sorted(able)))

    def _digest(self, body: bytes) -> bytes:
        return hashlib.sha256(self.limits.fingerprint.encode() + body).digest()

    def _load(self, kernel: Kernel, binary: bytes) -> Any:
        found = self._programs.get(binary)
        if found is not None:
            return found
        head = len(MAGIC) + hashlib.sha256().digest_size
        body = binary[head:]
        if not binary.startswith(MAGIC) or binary[len(MAGIC) : head] != self._digest(body):
            raise DamagedBinary(kernel=kernel.name, problem="its checksum does not match its content and this device")
        try:
            given = cl.Program(self._context, *([body.decode()] if self._keeps else [[self.device], [body]]))
            self._programs[binary] = made = _build(given, self._options)
            return made
        except cl.Error as error:
            raise DamagedBinary(
                kernel=kernel.name, problem=f"the driver does not load it ({_last_line(error)})"
            ) from error

    def launch(self, executable: OpenCLExecutable, arguments: Sequence[Argument], params: Sequence[int]) -> None:
        self._alive()
        kernel = executable.kernel
        values = dict(zip(kernel.params, params, strict=True))
        places: dict[str, tuple[Any, int]] = {}
        for arg, (handle, offset) in zip(kernel.args, arguments, strict=True):
            places[arg.name] = (handle, offset // DTYPES[arg.dtype].itemsize)
        stream = all(arguments[k][1] % LINE == 0 for k in executable.streamed)
        with self._lock:  # the arguments of a kernel object are set one by one
            for k, s in enumerate(executable.printed.scratch):
                count = int(np.prod([_number(n, values) for n in s.shape], dtype=np.int64))
                places[s.buffer] = (self._scratch_of(k, max(count, 1) * DTYPES[s.dtype].itemsize), 0)
            for phase, function, past_cache in executable.phases:
                count = _number(phase.count, values)
                if count > 0:
                    groups = count if phase.grouped else -(-count // phase.items)
                    if phase.shared:
                        groups = min(groups, self._workers)
                    given = [x for b in phase.buffers for x in places[b]]
                    run = past_cache if stream and past_cache else function
                    try:
                        run(self._queue, (groups * phase.items,), (phase.items,), *given, *params)
                    except cl.Error:
                        # to ask for the sizes takes longer than a launch
                        with self._room(sum(h.size for h, _ in places.values())):
                            raise
            self._queue.flush()

    def _scratch_of(self, k: int, nbytes: int) -> Any:
        """Return the ``k``-th scratch buffer, which all launches share: the queue runs them one after the other."""
        if k == len(self._scratch):
            self._scratch.append(self.allocate(nbytes))
        elif self._scratch[k].size < nbytes:
            self.free(self._scratch[k])
            self._scratch[k] = self.allocate(nbytes)
        return self._scratch[k]

    def synchronize(self) -> None:
        self._alive()
        self._queue.finish()


def _number(e: Expr, values: dict[str, int]) -> int:
    return int(e.value) if isinstance(e, Const) else evaluate(e, values)
