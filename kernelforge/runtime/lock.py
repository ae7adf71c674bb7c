"""A lock that a forked child finds open."""

from __future__ import annotations

import os
import threading


class Lock:
    """A re-entrant lock. In a child it is open: the thread that held it stayed with the parent."""

    def __init__(self) -> None:
        self._reopen()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reopen)

    def _reopen(self) -> None:
        self._held = threading.RLock()

    def __enter__(self) -> None:
        self._held.acquire()

    def __exit__(self, *error: object) -> None:
        self._held.release()
