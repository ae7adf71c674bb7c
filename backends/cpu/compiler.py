"""LLVM IR to an object file, through llvmlite."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

import llvmlite.binding as llvm

from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.printer import print_kernel
from kernelforge.backends.cpu.threads import pool_ir
from kernelforge.errors import CompilationFailed
from kernelforge.ir.kernel import For, Kernel, Op, Store, stmts

_LOCK = threading.Lock()
"""LLVM objects of one target machine are not to be used by two threads at once, nor half used by a forked child."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


@functools.cache
def _target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )


def contraction(kernel: Kernel) -> bool:
    """Whether the kernel adds up products in an unrolled tile, which is worth LLVM's whole pipeline."""
    products = any(
        isinstance(s, Store) and s.op == "add" and isinstance(s.value, Op) and s.value.op == "mul"
        for s in stmts(kernel.body)
    )
    return products and any(isinstance(s, For) and s.kind == "unroll" for s in stmts(kernel.body))


def compile_kernel(kernel: Kernel, host: Host) -> bytes:
    """Return the object file of a kernel.

    Raises:
        CompilationFailed: for what the printer or LLVM refuses.
    """
    return compile_ir(print_kernel(kernel, host), kernel.name, contraction(kernel))


@functools.cache
def compile_pool(host: Host) -> bytes:
    """Return the object file of the threads' code, which every binary carries."""
    return compile_ir(pool_ir(host), "pool", thorough=False)


def compile_ir(text: str, name: str, thorough: bool) -> bytes:
    """Return the object file of an LLVM module.

    Args:
        text: the module.
        name: the kernel's name, for errors.
        thorough: whether to run LLVM's O3 pipeline (without its vectorisers) in place of four passes.

    Raises:
        CompilationFailed: with LLVM's message and the module.
    """
    with _LOCK:
        machine = _target()
        try:
            module = llvm.parse_assembly(text)
            module.verify()
        except RuntimeError as error:
            raise CompilationFailed(kernel=name, device="cpu", log=str(error).strip(), source="\n" + text) from error
        module.triple = machine.triple
        module.data_layout = str(machine.target_data)
        options = llvm.create_pipeline_tuning_options(3)
        options.loop_vectorization = options.slp_vectorization = False
        builder = llvm.create_pass_builder(machine, options)
        if thorough:
            builder.getModulePassManager().run(module, builder)
        else:
            passes = llvm.create_new_function_pass_manager()
            passes.add_sroa_pass()
            passes.add_instruction_combine_pass()
            passes.add_simplify_cfg_pass()
            passes.add_loop_strength_reduce_pass()
            for function in module.functions:
                if not function.is_declaration:
                    passes.run(function, builder)
        return bytes(machine.emit_object(module))
