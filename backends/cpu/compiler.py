"""LLVM IR to an object file, through llvmlite."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm
from llvmlite.binding import ffi

from kernelforge.backends.cpu.entry_code import entry_ir
from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.threads import pool_ir
from kernelforge.errors import CompilationFailed
from kernelforge.forks import UNFORKED
from kernelforge.ir.kernel import For, If, Kernel, Op, Stmt, Store

Passes = tuple[str, ...]
"""Names of LLVM's passes, in order."""

SHORT: Passes = ("sroa", "instruction_combine", "simplify_cfg", "loop_strength_reduce")
TILE: Passes = (
    "sroa", "instruction_combine", "simplify_cfg", "loop_rotate", "instruction_combine", "simplify_cfg",
    "loop_unroll", "instruction_combine", "dead_store_elimination", "simplify_cfg",
)  # fmt: skip
"""NewGVN is not among them: with it, stores to packed panels of rows were lost, and LLVM calls it experimental."""


def _unlocked(name: str) -> Any:
    """Return a function of llvmlite's library without the lock that lets one thread at a time into all of it.

    LLVM asks for none where threads have contexts of their own.
    """
    function = getattr(ffi.lib, name)
    return getattr(function, "_cfn", function)


class Compiler:
    """LLVM for one target machine, which no two threads may use at once.

    Each call of llvmlite's library gives up Python's lock and waits to have it back; what serves all modules is made
    once, and told in their text.
    """

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self._builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
        # in one line with what follows, whose lines LLVM counts in messages
        self._header = f'target triple = "{machine.triple}" target datalayout = "{machine.target_data}" '
        self._managers: dict[Passes, Any] = {}

    def optimized(self, text: str, name: str, device: str, passes: Passes) -> Any:
        """Return the module that llvmlite parses and ``passes`` improve; the caller is in ``forks.UNFORKED``.

        Raises:
            CompilationFailed: with LLVM's message and the module.
        """
        try:
            module = llvm.parse_assembly(self._header + text, llvm.create_context())
            module.verify()
        except RuntimeError as error:
            raise CompilationFailed(kernel=name, device=device, log=str(error).strip(), source="\n" + text) from error
        manager = self._managers.get(passes)
        if manager is None:
            manager = self._managers[passes] = llvm.create_new_module_pass_manager()
            for one in passes:
                getattr(manager, f"add_{one}_pass")()
        _unlocked("LLVMPY_RunNewModulePassManager")(manager, module, self._builder)
        return module


class _Compilers:
    """Those of this process by their level, of which each is lent to one thread at a time.

    None is freed: a thread that freed one at its end, outside of ``UNFORKED``, would hold a lock of llvmlite's, for
    which a child that was forked meanwhile waits as it frees what other threads had, before any of its hooks.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Compiler]] = {}

    @contextlib.contextmanager
    def lent(self, level: int) -> Iterator[Compiler]:
        free = self._free.setdefault(level, [])
        try:
            compiler = free.pop()
        except IndexError:
            compiler = _compiler(level)
        try:
            yield compiler
        finally:
            free.append(compiler)


def _compiler(level: int) -> Compiler:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=level,
        reloc="pic",
        codemodel="small",
    )
    return Compiler(machine)


_COMPILERS = _Compilers()


def _reopen() -> None:
    """Open llvmlite's lock in a child: a traceback may hold what LLVM made, and free it outside of ``UNFORKED``."""
    ffi.lib._lock._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reopen)


def passes_for(kernel: Kernel) -> Passes:
    """Choose by what pays: sums of products in an unrolled tile gain from more passes, the rest from nothing more.

    LLVM's whole O3 pipeline takes twice as long as all else and makes none of them faster.
    """
    return TILE if any(_multiplies(s, False) for s in kernel.body) else SHORT


def _multiplies(stmt: Stmt, unrolled: bool) -> bool:
    """Whether products are added up inside of unrolled loops."""
    if isinstance(stmt, For | If):
        inside = unrolled or (isinstance(stmt, For) and stmt.kind == "unroll")
        return any(_multiplies(s, inside) for s in stmt.body)
    adds = isinstance(stmt, Store) and stmt.op == "add" and isinstance(stmt.value, Op) and stmt.value.op == "mul"
    return adds and unrolled


@functools.cache
def compile_pool(host: Host) -> bytes:
    """Return the object file of the threads' and the entry's code, which every binary carries."""
    # code that is a few nanoseconds slower is there ten milliseconds earlier
    return compile_ir(pool_ir(host) + entry_ir(), "pool", ("sroa", "simplify_cfg"), level=0)


def compile_ir(text: str, name: str, passes: Passes, level: int = 3) -> bytes:
    """Return the object file of an LLVM module.

    Args:
        text: the module.
        name: the kernel's name, for errors.
        passes: what to run before generating code.
        level: how much is done for good code then, 0 to 3.

    Raises:
        CompilationFailed: with LLVM's message and the module.
    """
    with UNFORKED:  # what LLVM made is freed when the function inside returns
        return _compile(text, name, passes, level)


def _compile(text: str, name: str, passes: Passes, level: int) -> bytes:
    with _COMPILERS.lent(level) as compiler, ffi.OutputString() as error:
        module = compiler.optimized(text, name, "cpu", passes)
        held = _unlocked("LLVMPY_TargetMachineEmitToMemory")(compiler.machine, module, 1, error)
        if not held:
            raise CompilationFailed(kernel=name, device="cpu", log=str(error).strip(), source="\n" + text)
    try:
        return ctypes.string_at(ffi.lib.LLVMPY_GetBufferStart(held), ffi.lib.LLVMPY_GetBufferSize(held))
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(held)
