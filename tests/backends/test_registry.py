"""The registry of backends."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest

from kernelforge.backends import registry
from kernelforge.backends.base import Backend
from kernelforge.backends.registry import available, backend
from kernelforge.errors import DeviceClash, DeviceUnavailable, UnknownDevice


class _Dist:
    def __init__(self, name: str) -> None:
        self.name = name


class _Entry:
    """What importlib.metadata gives for an installed entry point."""

    def __init__(self, name: str, package: str, devices: Any) -> None:
        self.name = name
        self.dist = _Dist(package)
        self._devices = devices

    def load(self) -> Any:
        return self._devices


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[_Entry]:
    """A list to put entry points in; the registry starts with nothing opened."""
    entries: list[_Entry] = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries if group == registry.GROUP else [])
    monkeypatch.setattr(registry, "_opened", {})
    monkeypatch.setattr(registry, "_failed", {})
    monkeypatch.setattr(registry, "BUILT_IN", ("cpu", "reference"))
    return entries


def _reference() -> Backend:
    return backend("reference")


def test_devices_are_made_once() -> None:
    assert backend("cpu") is backend("cpu")
    assert backend("cpu").name == "cpu"
    assert backend("reference").name == "reference"


def test_available_lists_devices_and_reasons() -> None:
    found = available()
    assert found["cpu"] is backend("cpu")
    assert found["reference"] is backend("reference")
    for name, device in found.items():
        assert device.strip() if isinstance(device, str) else device.name == name, name
    assert {name.partition(":")[0] for name in found} >= {"cpu", "opencl", "cuda", "reference"}


def test_built_in_devices_need_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: str) -> None:
        raise AssertionError("metadata was read")

    monkeypatch.setattr(importlib.metadata, "entry_points", refuse)
    monkeypatch.setattr(registry, "_opened", {})
    assert backend("cpu").name == "cpu"


def test_a_package_adds_devices(installed: list[_Entry]) -> None:
    device = _reference()
    installed.append(_Entry("npu", "acme-npu", lambda: {"npu:0": device, "npu:1": device}))
    assert backend("npu") is backend("npu:1") is device
    assert available()["npu:0"] is device
    with pytest.raises(UnknownDevice, match="no device is named 'npu:7'; there are npu:0, npu:1"):
        backend("npu:7")


def test_the_own_entry_points_are_no_clash(installed: list[_Entry]) -> None:
    installed.append(_Entry("cpu", "kernelforge", None))
    assert available()["cpu"] is backend("cpu")


def test_a_clash_names_both_packages(installed: list[_Entry]) -> None:
    installed.append(_Entry("cpu", "acme-npu", dict))
    with pytest.raises(DeviceClash, match="'cpu' is claimed by both kernelforge and acme-npu; uninstall"):
        available()
    installed[:] = [_Entry("npu", "acme-npu", dict), _Entry("npu", "other-npu", dict)]
    with pytest.raises(DeviceClash, match="both acme-npu and other-npu"):
        backend("npu")
    device = _reference()
    installed[:] = [_Entry("a", "acme", lambda: {"npu:0": device}), _Entry("b", "other", lambda: {"npu:0": device})]
    with pytest.raises(DeviceClash, match="'npu:0' is claimed by both acme and other"):
        available()


def test_an_unavailable_device_says_why_each_time(installed: list[_Entry]) -> None:
    calls = []

    def devices() -> dict[str, Backend]:
        calls.append(1)
        raise DeviceUnavailable(reason="the driver is too old")

    installed.append(_Entry("npu", "acme-npu", devices))
    for _ in range(2):
        with pytest.raises(DeviceUnavailable, match="the driver is too old"):
            backend("npu:0")
    assert available()["npu"] == "the driver is too old"
    assert len(calls) == 1


def test_a_missing_package_is_a_reason(installed: list[_Entry]) -> None:
    def devices() -> dict[str, Backend]:
        raise ModuleNotFoundError("No module named 'npulib'")

    installed.append(_Entry("npu", "acme-npu", devices))
    assert available()["npu"] == "npu needs a package that is not installed or does not load: No module named 'npulib'"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownDevice, match=r"no device is named 'gpu'; there are .*cpu.*; did you mean 'cpu'\?"):
        backend("gpu")
    with pytest.raises(UnknownDevice, match="a package that brings one has to be installed"):
        backend("zzz")
    with pytest.raises(UnknownDevice, match="no device is named 'cpu:3'; there are cpu"):
        backend("cpu:3")


def test_a_device_imports_nothing_of_the_others() -> None:
    code = (
        "import sys; from kernelforge.backends.registry import backend; backend('cpu')\n"
        "assert not {'pyopencl', 'numba', 'llvmlite.binding'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
