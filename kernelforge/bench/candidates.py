"""Who takes part, on which kinds of device, in which interpreter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from kernelforge.bench.schema import OURS
from kernelforge.errors import CommandFailed

MODULES = "kernelforge.bench.peers"
LIMITS = ("plain", "streaming", "arithmetic")
"""Variants of the limit: moving the bytes with ordinary stores, with non-temporal ones, and doing the flops."""
ARITHMETIC = f"limit:{LIMITS[-1]}"


@dataclasses.dataclass(frozen=True, slots=True)
class Entrant:
    """A candidate before it is started.

    Attributes:
        name: in tables.
        variant: what its module knows it as.
        module: where its ``start`` is.
        python: its interpreter; empty for this one.
        isolated: whether its interpreter must not see this one's PYTHONPATH.
    """

    name: str
    variant: str
    module: str
    python: str = ""
    isolated: bool = False

    @property
    def ours(self) -> bool:
        return self.variant in (OURS, "clblast", *LIMITS)


PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "numpy": ("numpy", ("cpu",)),
    "numexpr": ("numexpr", ("cpu",)),
    "numba": ("numba", ("cpu",)),
    "torch": ("torch", ("cpu", "cuda")),
    "torch-compile": ("torch", ("cpu", "cuda")),
    "jax": ("jax", ("cpu", "cuda")),
    "onnxruntime": ("onnxruntime", ("cpu",)),
    "tinygrad": ("tinygrad", ("cpu", "opencl", "cuda")),
    "clblast": ("clblast", ("opencl",)),
}
"""Module and kinds of device by name. On a GPU ``torch`` is cuBLAS and cuDNN, ``torch-compile`` is Triton."""


def entrants(device: str, peers: Sequence[str] | None, pythons: Mapping[str, str]) -> list[Entrant]:
    """Return kernelforge and the peers for a device.

    Args:
        device: as kernelforge names it.
        peers: those wanted; None for all.
        pythons: the interpreter of a peer; one for ``torch`` holds for ``torch-compile``.

    Raises:
        CommandFailed: for a peer that nobody wrote.
    """
    for name in (*(peers or ()), *pythons):
        if name not in PEERS and name != OURS:
            known = ", ".join(PEERS)
            raise CommandFailed(problem=f"there is no peer {name!r}", advice=f"choose from {known}")
    kind = device.partition(":")[0]
    chosen = [name for name, (_, kinds) in PEERS.items() if kind in kinds and (peers is None or name in peers)]
    return [entrant(OURS, pythons), *(entrant(name, pythons) for name in chosen)]


def entrant(name: str, pythons: Mapping[str, str]) -> Entrant:
    module = PEERS[name][0] if name in PEERS else name
    python = pythons.get(name, pythons.get(module, ""))
    return Entrant(name, name, f"{MODULES}.on_{module}", python)


def limits() -> list[Entrant]:
    return [Entrant(f"limit:{variant}", variant, f"{MODULES}.limit") for variant in LIMITS]
