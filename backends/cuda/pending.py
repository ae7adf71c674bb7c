"""What the device may still use when Python is done with it."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from typing import Any, Protocol


class Event(Protocol):
    """A place in a stream."""

    @property
    def is_done(self) -> bool:
        """Whether the device has come by."""
        ...


class Pending:
    """Keeps objects until the device has done all that was queued when they were added.

    A library that is unloaded, or memory that its owner hands out anew, must not be what a queued kernel uses.

    Args:
        record: puts an event into the stream.
    """

    def __init__(self, record: Callable[[], Event]) -> None:
        self._record = record
        self._held: collections.deque[tuple[Event, Any]] = collections.deque()
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, used: Any) -> None:
        """Keep an object; drop those that the device is done with. May be called by a finalizer."""
        if os.getpid() != self._process:  # whose driver is not ours to ask; the parent drops its own
            self._held.append((_Never(), used))
            return
        self._held.append((self._record(), used))
        self.drop()

    def drop(self) -> None:
        """Drop what the device is done with."""
        # a finalizer may run this inside of itself, so that the first one is taken before it is looked at
        while self._held:
            try:
                event, used = self._held.popleft()
            except IndexError:
                return
            if not event.is_done:
                self._held.appendleft((event, used))
                return


class _Never:
    is_done = False
