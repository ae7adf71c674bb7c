"""What tuning found: for each device a text file in the cache folder, from kernels to the parameters of their recipes.

The file is JSON of a few fields: ``device``, ``fingerprint`` (versions of compiler and driver, and the processor),
``recipes`` (the generation of theirs) and ``kernels``. A kernel goes by a digest of the naive nest that defines it, so
one entry serves every program that has it. The file's name carries fingerprint and generation: what was found for
another compiler, processor or generation is not read. Copied to another machine with the same fingerprint, it serves
there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from kernelforge.backends.base import Backend
from kernelforge.errors import DamagedTuning
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.text import print_kernel
from kernelforge.runtime import cache

Parameters = dict[str, int]
State = tuple[int, int]
"""Time and size of a file: it changes when the file does."""

SUFFIX = ".tuned.json"

RECIPES = 2
"""The generation of the recipes: raised when a parameter of theirs comes to mean something else."""


def name_of(kernel: Kernel) -> str:
    """Return the name under which the parameters of a naive kernel are kept."""
    return hashlib.sha256(print_kernel(kernel).encode()).hexdigest()[:32]


def path(backend: Backend) -> pathlib.Path:
    """Return where the parameters for a device are, or would be."""
    return cache.folder() / _file(backend.name, backend.limits.fingerprint)


@functools.cache
def _file(device: str, fingerprint: str) -> str:
    digest = hashlib.sha256(f"{fingerprint}\0{RECIPES}".encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9]', '', device)}-{digest}{SUFFIX}"


def state(backend: Backend) -> State | None:
    """Return what changes when the file of a device does; None where there is no file."""
    try:
        found = path(backend).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def load(backend: Backend) -> Mapping[str, Parameters]:
    """Return the parameters kept for a device, by the names of kernels.

    Raises:
        DamagedTuning: when the file is not what ``store`` wrote.
    """
    now = state(backend)
    return {} if now is None else _read(path(backend), now)


@functools.lru_cache(maxsize=16)
def _read(file: pathlib.Path, now: State) -> Mapping[str, Parameters]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedTuning(file=file, problem=str(error)) from error
    kernels = found.get("kernels") if isinstance(found, dict) else None
    if not isinstance(kernels, dict):
        raise DamagedTuning(file=file, problem="it has no table of kernels")
    for name, entry in kernels.items():
        parameters = entry.get("parameters") if isinstance(entry, dict) else None
        if not isinstance(parameters, dict) or not all(type(v) is int and v > 0 for v in parameters.values()):
            raise DamagedTuning(file=file, problem=f"the parameters of {name} are no positive integers")
    return {name: entry["parameters"] for name, entry in kernels.items()}


def store(backend: Backend, found: Mapping[str, Mapping[str, Any]]) -> pathlib.Path:
    """Add entries to the file of a device, each with ``parameters`` and whatever else people may want to read of it.

    An entry without parameters takes the kernel out.

    Raises:
        DamagedTuning: when the file is not what ``store`` wrote.
    """
    file = path(backend)
    load(backend)
    kept = json.loads(file.read_text(encoding="utf-8"))["kernels"] if file.exists() else {}
    kept.update(found)
    content = {
        "device": backend.name,
        "fingerprint": backend.limits.fingerprint,
        "recipes": RECIPES,
        "kernels": {name: entry for name, entry in sorted(kept.items()) if entry["parameters"]},
    }
    cache.write(file, (json.dumps(content, indent=1) + "\n").encode())
    return file


def parameters(kernel: Kernel, backend: Backend) -> Parameters:
    """Return what tuning found for a naive kernel; nothing where it found nothing."""
    kept = load(backend)
    return dict(kept.get(name_of(kernel), {})) if kept else {}
