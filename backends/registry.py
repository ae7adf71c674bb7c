"""Devices by name: the built-in backends and those that installed packages bring.

An entry point in the group ``kernelforge.backends`` names a function without arguments that returns a dict of the
devices of one backend by their names, or raises ``DeviceUnavailable``. The built-in ones are found without it too, so a
plain checkout works, and so that asking for one of them does not read the metadata of every installed package.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import NamedTuple

from kernelforge.backends.base import Backend
from kernelforge.errors import DeviceClash, DeviceUnavailable, UnknownDevice
from kernelforge.forks import Lock

GROUP = "kernelforge.backends"
OWN = "kernelforge"
BUILT_IN = ("cpu", "opencl", "cuda", "reference")
EXTRAS = ("cuda",)
"""Backends whose packages are an extra of this package, of the same name."""

_LOCK = Lock()


class _Source(NamedTuple):
    """A backend by the name of its entry point, the package it is from, and what loads its factory."""

    package: str
    load: Callable[[], Callable[[], dict[str, Backend]]]


def backend(name: str) -> Backend:
    """Return the device ``name``; a backend's name alone stands for its first device (``opencl`` for ``opencl:0``).

    Raises:
        UnknownDevice: when no backend has a device of that name.
        DeviceUnavailable: when its backend cannot run here, with the reason.
        DeviceClash: when two packages claim the name.
    """
    if not isinstance(name, str):
        raise UnknownDevice(name=name, expected=", ".join(BUILT_IN), reason="")
    family = name.partition(":")[0]
    found = _open(family, _built_in(family) if family in BUILT_IN else _source(family, name))
    device = found.get(name) or (next(iter(found.values()), None) if name == family else None)
    if device is None:
        raise UnknownDevice(name=name, expected=", ".join(found) or "none", reason="")
    return device


def available() -> dict[str, Backend | str]:
    """Return every device by name, and for each backend that cannot run here the reason.

    Raises:
        DeviceClash: when two packages claim one name.
    """
    out: dict[str, Backend | str] = {}
    owners: dict[str, str] = {}
    for family, source in _sources().items():
        try:
            found: dict[str, Backend | str] = dict(_open(family, source))
        except DeviceUnavailable as error:
            found = {family: str(error)}
        for name, device in found.items():
            if name in out:
                raise DeviceClash(name=name, first=owners[name], second=source.package)
            out[name], owners[name] = device, source.package
    return out


def _built_in(family: str) -> _Source:
    return _Source(OWN, lambda: importlib.import_module(f"{GROUP}.{family}").devices)


def _source(family: str, name: str) -> _Source:
    sources = _sources()
    if family not in sources:
        near = difflib.get_close_matches(family, sources, 1)
        reason = f"; did you mean {near[0]!r}?" if near else "; a package that brings one has to be installed"
        raise UnknownDevice(name=name, expected=", ".join(sources), reason=reason)
    return sources[family]


def _sources() -> dict[str, _Source]:
    """Find all backends.

    Raises:
        DeviceClash: when two packages have an entry point of one name.
    """
    import importlib.metadata  # takes a tenth of this package's import, and only other packages' devices need it

    found = {family: _built_in(family) for family in BUILT_IN}
    for entry in importlib.metadata.entry_points(group=GROUP):
        package = entry.dist.name if entry.dist is not None else "an unnamed package"
        known = found.get(entry.name)
        if known is not None and package == OWN and known.package == OWN:
            continue
        if known is not None:
            raise DeviceClash(name=entry.name, first=known.package, second=package)
        found[entry.name] = _Source(package, entry.load)
    return found


_opened: dict[str, dict[str, Backend]] = {}
_failed: dict[str, str] = {}


def _open(family: str, source: _Source) -> dict[str, Backend]:
    """Make a backend's devices, once; a failure is remembered too."""
    with _LOCK:
        if family in _failed:
            raise DeviceUnavailable(reason=_failed[family])
        if family not in _opened:
            try:
                _opened[family] = source.load()()
            except DeviceUnavailable as error:
                _failed[family] = str(error)
                raise
            except (ImportError, OSError) as error:
                extra = f"\npip install '{OWN}[{family}]' brings it" if family in EXTRAS else ""
                _failed[family] = f"{family} needs a package that is not installed or does not load: {error}{extra}"
                raise DeviceUnavailable(reason=_failed[family]) from error
        return _opened[family]
