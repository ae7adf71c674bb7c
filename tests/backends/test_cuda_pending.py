"""What a CUDA device may still use is kept until it has come by."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from kernelforge.backends.cuda.pending import Pending
from kernelforge.errors import DeviceFailed


class Stream:
    """A stream whose device is as far as ``done``."""

    def __init__(self) -> None:
        self.queued = self.done = 0

    def record(self) -> Place:
        self.queued += 1
        return Place(self, self.queued)


class Place:
    def __init__(self, stream: Stream, at: int) -> None:
        self.stream, self.at = stream, at

    @property
    def is_done(self) -> bool:
        return self.stream.done >= self.at


class Used:
    def __init__(self, gone: Callable[[], None]) -> None:
        self.gone = gone

    def __del__(self) -> None:
        self.gone()


def test_objects_are_kept_until_the_device_has_come_by() -> None:
    stream, gone = Stream(), list[int]()
    pending = Pending(stream.record)
    for k in range(3):
        pending.add(Used(lambda k=k: gone.append(k)))  # type: ignore[misc]
    assert len(pending) == 3
    stream.done = 2
    pending.drop()
    assert gone == [0, 1]
    stream.done = 4
    pending.add(Used(lambda: gone.append(3)))
    assert gone == [0, 1, 2, 3]
    assert not len(pending)


def test_what_is_dropped_may_add() -> None:
    stream = Stream()
    pending = Pending(stream.record)
    pending.add(Used(lambda: pending.add(None)))
    assert len(pending) == 1
    stream.done = 1
    pending.drop()
    assert len(pending) == 1
    stream.done = 2
    pending.drop()
    assert not len(pending)


def test_a_forked_child_asks_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    pending = Pending(stream.record)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    pending.add("code")
    pending.drop()
    assert not stream.queued
    assert len(pending) == 1


@pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="numba runs its simulator")
def test_a_device_that_failed_says_so_when_asked_how_far_it_is() -> None:
    backend = pytest.importorskip("kernelforge.backends.cuda.backend", reason="NVIDIA's wheels are missing")

    class Broken(Place):
        @property
        def is_done(self) -> bool:
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS.")

    stream = Stream()
    device = object.__new__(backend.Cuda)
    device.name, device._pending = "cuda:0", Pending(lambda: Broken(stream, 1))
    device._pending._held.append((Broken(stream, 1), None))
    with pytest.raises(DeviceFailed, match="cuda:0 failed at saying how far it is: CUDA_ERROR_ILLEGAL_ADDRESS; a"):
        device._drop()


def test_what_a_failure_says() -> None:
    assert str(DeviceFailed(device="cuda:0", what="waiting for its kernels", reason="[700] Call to x failed")) == (
        "cuda:0 failed at waiting for its kernels: [700] Call to x failed; a kernel that was queued before may be the "
        "cause. After an invalid access the device works again in a new process only"
    )
