"""Which device work goes to."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator

from kernelforge.backends import registry
from kernelforge.backends.base import Backend

CHOSEN: contextvars.ContextVar[Backend | None] = contextvars.ContextVar("kernelforge_device", default=None)
_default: Backend | None = None


def current() -> Backend:
    """Return the device of calls whose arguments are on none: chosen, or from ``KERNELFORGE_DEVICE``, or ``cpu``."""
    global _default  # noqa: PLW0603 - the environment is read once
    chosen = CHOSEN.get()
    if chosen is not None:
        return chosen
    if _default is None:
        _default = registry.backend(os.environ.get("KERNELFORGE_DEVICE", "cpu"))
    return _default


@contextlib.contextmanager
def default_device(name: str) -> Iterator[str]:
    """Send the work of this thread to the device ``name`` in the body of a ``with`` statement.

    Raises:
        UnknownDevice, DeviceUnavailable: when there is no such device; the message says why.
    """
    device = registry.backend(name)
    token = CHOSEN.set(device)
    try:
        yield device.name
    finally:
        CHOSEN.reset(token)


def devices() -> list[str]:
    """Return the names of the devices that can be used."""
    return [name for name, found in registry.available().items() if not isinstance(found, str)]
