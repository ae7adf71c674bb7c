"""Processors that are not there: any that LLVM generates code for, asked by its name there."""

from __future__ import annotations

import difflib
import functools
import re
import subprocess
import sys
from typing import Any

import llvmlite.binding as llvm

from kernelforge.backends.cpu.backend import limits_of
from kernelforge.backends.cpu.compiler import Compiler, passes_for
from kernelforge.backends.cpu.host import Host
from kernelforge.backends.cpu.printer import print_kernel
from kernelforge.backends.target import Assembled, Target, Usage
from kernelforge.errors import UnknownTarget
from kernelforge.forks import UNFORKED
from kernelforge.ir.kernel import Kernel

ARCHS = ("x86_64", "aarch64")
THREADS = 8
CACHES = (32 << 10, 1 << 20, 32 << 20)
"""What a processor that is not there is taken to have: LLVM does not know."""

_PROBE = """
define void @lanes(ptr %p, ptr %q) #0 {
  %a = load <64 x i8>, ptr %p
  %b = load <64 x i8>, ptr %q
  %c = add <64 x i8> %a, %b
  store <64 x i8> %c, ptr %p
  ret void
}
define float @fused(float %a, float %b, float %c) {
  %d = call float @llvm.fma.f32(float %a, float %b, float %c)
  ret float %d
}
define float @half(i16 %a) {
  %b = bitcast i16 %a to half
  %c = fpext half %b to float
  ret float %c
}
declare float @llvm.fma.f32(float, float, float)
attributes #0 = { "min-legal-vector-width"="512" "prefer-vector-width"="512" }
"""
"""What it becomes shows the widest registers with integer lanes, and which operations call the library."""


@functools.cache
def processors(arch: str) -> frozenset[str]:
    """Return the names of the processors that LLVM knows: it prints them, from a process of its own, on request."""
    script = (
        "import llvmlite.binding as llvm; llvm.initialize_all_targets(); "
        f"llvm.Target.from_triple('{_triple(arch)}').create_target_machine(cpu='help')"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr  # noqa: S603
    return frozenset(re.findall(r"^  (\S+) +- Select the \S+ processor", said, re.MULTILINE))


def _triple(arch: str) -> str:
    return f"{arch}-unknown-linux-gnu"


def _machine(arch: str, cpu: str) -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(_triple(arch)).create_target_machine(cpu=cpu, opt=3, reloc="pic")
    machine.set_asm_verbosity(True)  # spills are in its remarks
    return machine


def described(arch: str, cpu: str) -> Host:
    """Describe a processor by what LLVM makes of a probe for it."""
    with UNFORKED:
        shown = _machine(arch, cpu).emit_assembly(llvm.parse_assembly(_PROBE))
    x86 = arch == "x86_64"
    width = 64 if "zmm" in shown else 32 if "ymm" in shown else 16
    return Host(
        system="linux",
        arch=arch,
        features=frozenset({cpu}),
        vector_bytes=width,
        vector_registers=32 if width == 64 or not x86 else 16,
        fma="fmaf" not in shown,
        half="__extendhfsf2" not in shown,
        cache_bytes=CACHES,
        threads=THREADS,
    )


def target(cpu: str) -> Target:
    """Return a processor as a target; the name of an architecture stands for its least one.

    Raises:
        UnknownTarget: when LLVM knows no such processor.
    """
    name, known = f"cpu:{cpu}", {arch: processors(arch) for arch in ARCHS}
    arch = next((a for a in ARCHS if cpu in known[a] or cpu == a), None)
    if arch is None:
        names = [f"cpu:{c}" for c in sorted(frozenset().union(*known.values()))]
        near = difflib.get_close_matches(name, names, 3) or names[:3]
        expected = f"{len(names)} processors of {' and '.join(ARCHS)}, among them {', '.join(near)}"
        raise UnknownTarget(name=name, expected=expected, reason="")
    cpu = cpu if cpu in known[arch] else "generic" if arch == "aarch64" else "x86-64"
    host = described(arch, cpu)

    def assemble(kernel: Kernel) -> Assembled:
        with UNFORKED:
            machine = _machine(arch, cpu)
            text = print_kernel(kernel, host)
            module = Compiler(machine).optimized(text, kernel.name, name, passes_for(kernel))
            assembly = machine.emit_assembly(module)
        spills = re.findall(r"(\d+)-byte (?:Folded )?Spill", assembly)
        return assembly, (Usage(kernel.name, None, sum(map(int, spills)), None, None),)

    return Target(name, limits_of(host, name), lambda k: print_kernel(k, host), assemble)
