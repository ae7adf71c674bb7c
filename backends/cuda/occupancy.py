"""How many warps of a kernel a streaming multiprocessor holds.

From the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the allocation units of
NVIDIA's CUDA Occupancy Calculator: registers are given to a warp by 256, and to warps by four, one for each part of a
multiprocessor; shared memory is given by 128 bytes, with 1 KiB of the system's own from compute capability 8.0 on.
"""

from __future__ import annotations

from typing import NamedTuple

WARP = 32
REGISTERS = 1 << 16


class Multiprocessor(NamedTuple):
    """What a multiprocessor holds: warps, blocks, bytes of shared memory, and the system's part for each block."""

    warps: int
    blocks: int
    shared: int
    reserved: int


MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64 << 10, 0),
    "sm_80": Multiprocessor(64, 32, 164 << 10, 1 << 10),
    "sm_86": Multiprocessor(48, 16, 100 << 10, 1 << 10),
    "sm_89": Multiprocessor(48, 24, 100 << 10, 1 << 10),
    "sm_90": Multiprocessor(64, 32, 228 << 10, 1 << 10),
    "sm_100": Multiprocessor(64, 32, 228 << 10, 1 << 10),
    "sm_120": Multiprocessor(48, 24, 100 << 10, 1 << 10),
}


def occupancy(arch: str, threads: int, registers: int, shared: int) -> float:
    """Return the part of a multiprocessor's warps that can be resident, for blocks of ``threads`` threads."""
    has = MULTIPROCESSORS[arch]
    warps = -(-threads // WARP)
    each = max(-(-registers * WARP // 256) * 256, 256)
    by_registers = REGISTERS // 4 // each * 4 // warps
    by_shared = has.shared // max(-(-shared // 128) * 128 + has.reserved, 1)
    return min(has.blocks, has.warps // warps, by_registers, by_shared) * warps / has.warps
