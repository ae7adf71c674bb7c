"""NumPy's functions on traced and device arrays."""

from __future__ import annotations

from kernelforge.methods import FUNCTIONS
from kernelforge.numpy import creation, reductions, ufuncs

for _alias, _name in (ufuncs.ALIASES | reductions.ALIASES).items():
    FUNCTIONS[_alias] = FUNCTIONS[_name]


def __getattr__(name: str) -> object:
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    raise AttributeError(name)
