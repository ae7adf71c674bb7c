"""Plans on disk: what another process needs to run a graph without fusing, lowering and scheduling it again.

They are files of the disk cache (``cache.py``): the scheduled kernels of a plan with the keys of their machine code,
and the plan itself, pickled. Whoever can write to the folder can run code here; the machine code in it runs anyway.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from kernelforge.backends.base import Backend, Executable
from kernelforge.ir.kernel import Kernel
from kernelforge.runtime import cache
from kernelforge.runtime.memory import Buffer, pool, upload
from kernelforge.runtime.plan import Code, Plan

Array = np.ndarray[Any, Any]

VERSIONS = sys.version, np.__version__, ml_dtypes.__version__
BYTES = np.dtype(np.uint8)
_UNREADABLE = pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, TypeError, ValueError
"""What reading may raise; ``cache.load`` has found it whole before."""


def key(what: object, backend: Backend) -> str:
    """Return the name under which a plan for a device is kept; what it is made of goes by its ``repr``."""
    limits = [getattr(backend.limits, f.name) for f in dataclasses.fields(backend.limits)]
    ordered = [sorted(v) if isinstance(v, frozenset) else v for v in limits]
    return cache.key(repr((what, backend.name, ordered, VERSIONS)), backend.limits.fingerprint)


class _Pickler(pickle.Pickler):
    """Writes a plan, without what a process has of its own: the device, its memory and loaded machine code."""

    def __init__(self, file: io.BytesIO, backend: Backend, consts: dict[int, int]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.consts = consts
        self.own: dict[int, str] = {id(backend): "backend", id(pool(backend)): "pool"}
        self.kernels: dict[str, Kernel] = {}

    def persistent_id(self, obj: Any) -> tuple[str, Any] | None:
        if isinstance(obj, Code):
            if obj.executable.binary is None:
                raise pickle.PicklingError(f"the device keeps no machine code of {obj.ir.name}")
            self.kernels[obj.key] = obj.ir
            return "code", obj.key
        if isinstance(obj, Buffer):
            place = self.consts.get(id(obj))
            if place is not None:
                return "given", place
            return "made", np.array(obj.backend.download(obj.handle, 0, (obj.nbytes,), BYTES))
        name = self.own.get(id(obj))
        return None if name is None else (name, None)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, backend: Backend, consts: Sequence[Array], codes: dict[str, Code]) -> None:
        super().__init__(file)
        self.found: dict[str, Callable[[Any], Any]] = {
            "backend": lambda _: backend,
            "pool": lambda _: pool(backend),
            "code": codes.__getitem__,
            "given": lambda k: upload(backend, consts[k]),
            "made": lambda array: upload(backend, array),
        }

    def persistent_load(self, pid: tuple[str, Any]) -> Any:
        name, what = pid
        return self.found[name](what)


def dumps(plan: Plan, arrays: Sequence[Array], consts: Sequence[Array]) -> bytes | None:
    """Write a plan down; None where that cannot be, as on a device that keeps no machine code.

    Args:
        arrays: what its ``consts`` hold.
        consts: of the graph as it was traced: whoever reads the plan has them.
    """
    places = {id(a): k for k, a in enumerate(consts)}
    given = {id(b): places[id(a)] for b, a in zip(plan.consts, arrays, strict=True) if id(a) in places}
    file = io.BytesIO()
    pickler = _Pickler(file, plan.backend, given)
    try:
        pickler.dump(plan)
        return pickle.dumps((pickler.kernels, file.getvalue()), pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, RecursionError):
        return None


def loads(
    content: bytes, backend: Backend, consts: Sequence[Array], executable: Callable[[Kernel, str], Executable]
) -> Plan | None:
    """Read what ``dumps`` wrote; None where it cannot be read.

    Args:
        consts: of the traced graph.
        executable: gets that of a kernel, by its key.
    """
    try:
        kernels, plan = pickle.loads(content)  # noqa: S301 - see above
        codes = {name: Code(name, kernel, executable(kernel, name)) for name, kernel in kernels.items()}
        found = _Unpickler(io.BytesIO(plan), backend, consts, codes).load()
    except _UNREADABLE:
        return None
    assert isinstance(found, Plan)
    return found
