"""OpenCL C for GPUs that are not there: clang for AMD's, ocloc for Intel's."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from kernelforge.backends.opencl.phases import Source
from kernelforge.backends.opencl.printer import print_opencl
from kernelforge.backends.target import Assembled, Target, Usage
from kernelforge.errors import CompilationFailed, CompilerMissing
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.schedule.limits import Limits

OLDEST, NEWEST = 14, 30
"""Versions of clang that are looked for: AMD's resource counts are in its assembly from the first one on."""

NO_AMD = ("No available targets", "unknown target CPU", "invalid target ID", "unknown target triple")
"""What a clang says that was built without AMD's GPUs, or before this one."""

_BUILT_INS = """\
#define get_local_id(axis) ((size_t)__builtin_amdgcn_workitem_id_x())
#define get_group_id(axis) ((size_t)__builtin_amdgcn_workgroup_id_x())
#define get_global_id(axis) (get_group_id(0) * __builtin_amdgcn_workgroup_size_x() + get_local_id(0))
#define barrier(flags) (__builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup"), __builtin_amdgcn_s_barrier(), \\
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup"))
#define sqrt(x) kf_sqrt(x)
#define KF_SQRT(type, body) static type __attribute__((overloadable)) kf_sqrt(type a) { return body; }
#define KF_HALVES(type) KF_SQRT(type, ((type)(kf_sqrt(a.lo), kf_sqrt(a.hi))))
KF_SQRT(float, __builtin_sqrtf(a)) KF_HALVES(float2) KF_HALVES(float4) KF_HALVES(float8) KF_HALVES(float16)
KF_SQRT(double, __builtin_sqrt(a)) KF_HALVES(double2) KF_HALVES(double4) KF_HALVES(double8) KF_HALVES(double16)
"""
"""What OpenCL C has by name and AMD's device libraries define: the few that sources use, by clang's own builtins."""

WAVES = {"gfx90a": 8, "gfx942": 8, "gfx1030": 16, "gfx1100": 16}
"""Waves that a SIMD unit holds (AMD's instruction set documents; LLVM's AMDGPU usage guide)."""

THREADS = {"pvc": (64, 128 << 10), "dg2": (128, 128 << 10), "tgllp": (112, 128 << 10)}
"""Hardware threads and bytes of local memory of an Xe core (Intel's oneAPI GPU Optimization Guide)."""

GRF = 128
"""Registers of a hardware thread in the usual mode; with twice as many, half the threads fit."""


def amd(name: str, arch: str, limits: Limits) -> Target:
    """Return an AMD GPU as a target."""

    def assemble(kernel: Kernel) -> Assembled:
        source = print_opencl(kernel, 0, limits.local_bytes)
        command = [_clang(), "-x", "cl", "-cl-std=CL1.2", "-target", "amdgcn-amd-amdhsa", f"-mcpu={arch}", "-O3"]
        command += ["-nogpulib", "-S", "-", "-o", "-"]
        text = _BUILT_INS + source.text
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)  # noqa: S603
        if any(text in done.stderr for text in NO_AMD):
            raise _no_clang(f"{command[0]} does not compile for {arch}")
        _check(done, kernel, name, source)
        called = {rest[: int(n)] for n, rest in re.findall(r"\b_Z(\d+)(\w+)@", done.stdout)}
        if called:
            problem = f"the kernel calls {', '.join(sorted(called))}, which these define"
            how = "compile on a machine with ROCm"
            raise CompilerMissing(compiler="a clang that links AMD's device libraries", problem=problem, how=how)
        return done.stdout, tuple(_amd_usage(done.stdout, arch, p.name) for p in source.phases)

    return Target(name, limits, lambda k: print_opencl(k, 0, limits.local_bytes).text, assemble)


def _clang() -> str:
    names = ["clang", *(f"clang-{version}" for version in range(NEWEST, OLDEST - 1, -1))]
    found = next((name for name in names[1:] if shutil.which(name)), None) or shutil.which(names[0])
    if found is None:
        raise _no_clang("it is not installed")
    return found


def _no_clang(problem: str) -> CompilerMissing:
    how = "apt-get install clang, dnf install clang, or brew install llvm"
    return CompilerMissing(compiler=f"clang {OLDEST} or later with AMD's GPUs", problem=problem, how=how)


def _check(done: subprocess.CompletedProcess[str], kernel: Kernel, name: str, source: Source) -> None:
    if done.returncode:
        log = done.stderr.strip() or done.stdout.strip()
        raise CompilationFailed(kernel=kernel.name, device=name, log=log, source=f"\n{source.text}")


def _amd_usage(assembly: str, arch: str, entry: str) -> Usage:
    """Read a kernel's metadata, and the occupancy that LLVM remarks below its code."""
    record = next(r for r in assembly.split("- .agpr_count:" if ".agpr_count:" in assembly else "- .args:")
                  if re.search(rf"\.name: +{entry}\n", r))  # fmt: skip

    def number(field: str) -> int:
        found = re.search(rf"\.{field}: +(\d+)", record)
        return int(found[1]) if found else 0

    code = assembly[assembly.index(f"\n{entry}:") :]
    waves = re.search(r"; Occupancy: (\d+)", code)
    return Usage(
        entry,
        number("vgpr_count"),
        number("private_segment_fixed_size"),
        number("group_segment_fixed_size"),
        int(waves[1]) / WAVES[arch] if waves else None,
    )


def intel(name: str, arch: str, limits: Limits) -> Target:
    """Return an Intel GPU as a target."""

    def assemble(kernel: Kernel) -> Assembled:
        if shutil.which("ocloc") is None:
            how = (
                "apt-get install intel-ocloc (Debian 12: intel-opencl-icd), from Intel's or the distribution's packages"
            )
            raise CompilerMissing(compiler="ocloc", problem="it is not installed", how=how)
        source = print_opencl(kernel, 0, limits.local_bytes)
        with tempfile.TemporaryDirectory() as folder:
            where = pathlib.Path(folder)
            (where / "kernel.cl").write_text(source.text)
            command = ["ocloc", "compile", "-file", "kernel.cl", "-device", arch, "-options", "-cl-std=CL1.2"]
            command += ["-internal_options", "-cl-intel-allow-zebin", "-output", "kernel", "-output_no_suffix", "-q"]
            dumps = os.environ | {"IGC_ShaderDumpEnable": "1", "IGC_DumpToCustomDir": str(where / "dump")}
            done = subprocess.run(  # noqa: S603
                command, cwd=where, env=dumps, capture_output=True, text=True, check=False
            )
            _check(done, kernel, name, source)
            binary = (where / "kernel").read_bytes()
            assembly = "\n".join(f.read_text() for f in sorted((where / "dump").glob("*.asm")))
        return assembly, tuple(_intel_usage(binary, arch, p.name, p.items) for p in source.phases)

    return Target(name, limits, lambda k: print_opencl(k, 0, limits.local_bytes).text, assemble)


def _intel_usage(binary: bytes, arch: str, entry: str, items: int) -> Usage:
    """Read what the binary says of a kernel in its ``.ze_info``, which is YAML."""
    start = binary.index(b"kernels:", binary.index(b"version:"))
    record = re.search(rb"- name: +%s\n.*?(?=\n  - name:|\0|\Z)" % entry.encode(), binary[start:], re.DOTALL)
    assert record is not None
    fields = {
        key.decode(): int(n) for key, n in re.findall(rb"\n +(\w+): +(\d+)(?=\n)", record[0].split(b"arguments:")[0])
    }
    scratch = re.findall(rb"usage: +spill_fill_space\n +size: +(\d+)", record[0])
    spills = fields.get("spill_size", sum(map(int, scratch)))
    return Usage(entry, fields["grf_count"], spills, fields.get("slm_size", 0), _intel_occupancy(arch, items, fields))


def _intel_occupancy(arch: str, items: int, fields: dict[str, int]) -> float:
    threads, local = THREADS[arch]
    threads = threads * GRF // max(fields["grf_count"], GRF)
    each = -(-items // fields["simd_size"])
    groups = min(threads // each, local // max(fields.get("slm_size", 0), 1))
    return groups * each / THREADS[arch][0]
