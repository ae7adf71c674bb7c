"""The primitive records; ``PRIMITIVES`` is the table of all of them by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kernelforge.ir.build import REGISTRY
from kernelforge.ir.graph import Primitive
from kernelforge.ir.ops import (
    arithmetic,
    call,
    compare,
    cond,
    contract,
    control,
    cumulate,
    elementwise,
    index,
    random,
    reduce,
    transcendental,
    view,
    window,
)

_MODULES = (
    elementwise,
    arithmetic,
    compare,
    transcendental,
    view,
    window,
    reduce,
    contract,
    cumulate,
    index,
    random,
    control,
    call,
    cond,
)


def _fill() -> Mapping[str, Primitive]:
    for module in _MODULES:
        for record in module.PRIMITIVES:
            assert record.name not in REGISTRY, f"two primitives are named {record.name}"
            REGISTRY[record.name] = record
    return MappingProxyType(REGISTRY)


PRIMITIVES: Mapping[str, Primitive] = _fill()
