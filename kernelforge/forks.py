"""Locks that outlive a fork. A child has one thread, and finds what the others held as they left it."""

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


class Gate:
    """Lets any number of threads in, and no fork while one is there.

    A fork that began before the gate was made runs only what comes after it, so each thread's fork opens only a gate
    that it shut.
    """

    def __init__(self) -> None:
        self._make()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._shut, after_in_parent=self._open, after_in_child=self._make)

    def _make(self) -> None:
        self._change = threading.Condition()
        self._inside = 0
        self._shut_by: int | None = None

    def _shut(self) -> None:
        self._change.acquire()
        try:
            self._change.wait_for(lambda: not self._inside)
        finally:  # an interrupt ends the wait, not the fork
            self._shut_by = threading.get_ident()

    def _open(self) -> None:
        if self._shut_by == threading.get_ident():
            self._shut_by = None
            self._change.release()

    def __enter__(self) -> None:
        with self._change:
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._change:
            self._inside -= 1
            self._change.notify_all()


UNFORKED = Gate()
"""Around what a child could not use half done: LLVM at work, the start of threads. Nothing inside may wait for locks of
other modules: theirs are shut for a fork before this gate is."""
