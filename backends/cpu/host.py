"""What the host is: architecture, SIMD features, caches, threads; found without importing a compiler."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import platform
import re
import sys

_ARCHS = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """The machine that kernels are printed for.

    Attributes:
        system: ``sys.platform``.
        arch: ``x86_64``, ``aarch64``, or whatever the system calls itself.
        features: the processor's flags, in the system's spelling.
        vector_bytes: width of the widest useful SIMD register.
        vector_registers: how many there are.
        fma: whether a fused multiply-add is one instruction.
        half: whether conversions between f16 and f32 are instructions.
        cache_bytes: sizes of the caches for data of levels 1, 2 and 3.
        threads: hardware threads this process may use.
    """

    system: str
    arch: str
    features: frozenset[str]
    vector_bytes: int
    vector_registers: int
    fma: bool
    half: bool
    cache_bytes: tuple[int, int, int]
    threads: int

    @property
    def native(self) -> frozenset[str]:
        """What ``Limits.native`` says; AVX-512 scales by powers of two, looks up in registers, has masks,
        and may have products of bf16 in pairs.
        """
        avx512 = self.arch == "x86_64" and self.vector_bytes == 64
        pairs = avx512 and not {"avx512_bf16", "avx512bf16"}.isdisjoint(self.features)
        found = {"f16": self.half, "fma": self.fma, "bf16dot": pairs}
        found |= dict.fromkeys(("scaleb", "tables", "masks"), avx512)
        return frozenset({"calls", "repeat", "stream", *(name for name, has in found.items() if has)})

    @property
    def side(self) -> int:
        """How many vectors maps with functions hold side by side; their operands have the rest of the registers."""
        return self.vector_registers // 8

    @property
    def digest(self) -> str:
        """A short name of everything here that machine code depends on."""
        text = " ".join((self.system, self.arch, *sorted(self.features)))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _linux_features() -> frozenset[str] | None:
    """Read the first processor's flags from /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo") as file:
            head = file.read(16384)
    except OSError:
        return None
    fields = dict(
        re.findall(
            r"^(flags|Features|model name|cpu family|model|CPU part)\s*:[ \t]*(.*)$",
            head.split("\n\n")[0],
            re.MULTILINE,
        )
    )
    flags = fields.pop("flags", "") or fields.pop("Features", "")
    return frozenset(flags.split()) | {f"{key}={value}".replace(" ", "_") for key, value in fields.items()}


def _compiler_features() -> frozenset[str]:
    """Ask LLVM, where the system has no file that tells."""
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_features()
    return frozenset(name for name, on in found.items() if on) | {llvm.get_host_cpu_name()}


def _cache(level: int, default: int) -> int:
    """Return the size in bytes of a data cache of the first processor, by Linux's account of it."""
    for index in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((index / "level").read_text()) == level and (index / "type").read_text().strip() != "Instruction":
                size = re.fullmatch(r"(\d+)([KM]?)", (index / "size").read_text().strip())
                if size:
                    return int(size[1]) << {"": 0, "K": 10, "M": 20}[size[2]]
        except OSError:
            continue
    return default


@functools.cache
def host() -> Host:
    """Describe this machine."""
    arch = _ARCHS.get(platform.machine().lower(), platform.machine().lower())
    features = (_linux_features() if sys.platform == "linux" else None) or _compiler_features()
    x86 = arch == "x86_64"
    wide = {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= features
    return Host(
        system=sys.platform,
        arch=arch,
        features=features,
        vector_bytes=(64 if wide else 32 if "avx2" in features else 16),
        vector_registers=32 if wide or not x86 else 16,
        fma="fma" in features if x86 else True,
        half="f16c" in features if x86 else True,
        cache_bytes=(_cache(1, 32 << 10), _cache(2, 1 << 20), _cache(3, 32 << 20)),
        threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
