"""What functions of expressions remember: it serves one compilation, at the end of which ``forget`` lets go of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")

_MADE: list[functools._lru_cache_wrapper[Any]] = []


def memo(fn: Callable[..., R]) -> functools._lru_cache_wrapper[R]:
    """Remember what a function returned, of late."""
    made = functools.lru_cache(maxsize=1 << 14)(fn)
    _MADE.append(made)
    return made


def forget() -> None:
    """Let go of the expressions that ``memo`` holds: tens of megabytes of them."""
    for fn in _MADE:
        fn.cache_clear()
