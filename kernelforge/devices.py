"""Which device work goes to."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import overload

from kernelforge.backends import registry
from kernelforge.backends.base import Backend

CHOSEN: contextvars.ContextVar[Backend | None] = contextvars.ContextVar("kernelforge_device", default=None)
_default: Backend | None = None


def environment() -> str:
    """Return the device's name that ``KERNELFORGE_DEVICE`` gives: ``cpu`` where it is unset or empty."""
    return os.environ.get("KERNELFORGE_DEVICE") or "cpu"


def current() -> Backend:
    """Return the device of calls whose arguments are on none: chosen, or from ``KERNELFORGE_DEVICE``, or ``cpu``."""
    global _default  # noqa: PLW0603 - the environment is read once
    chosen = CHOSEN.get()
    if chosen is not None:
        return chosen
    if _default is None:
        _default = registry.backend(environment())
    return _default


@overload
def default_device() -> str: ...


@overload
def default_device(name: str) -> contextlib.AbstractContextManager[str]: ...


def default_device(name: str | None = None) -> str | contextlib.AbstractContextManager[str]:
    """Send the work of this thread to the device ``name`` in the body of a ``with`` statement.

    Without a name, return that of the device where work goes now.

    Raises:
        UnknownDevice, DeviceUnavailable: when there is no such device; the message says why.
    """
    return current().name if name is None else _sent_to(name)


@contextlib.contextmanager
def _sent_to(name: str) -> Iterator[str]:
    device = registry.backend(name)
    token = CHOSEN.set(device)
    try:
        yield device.name
    finally:
        CHOSEN.reset(token)


def devices() -> list[str]:
    """Return the names of the devices that can be used."""
    return [name for name, found in registry.available().items() if not isinstance(found, str)]
