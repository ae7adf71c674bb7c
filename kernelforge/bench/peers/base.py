"""What the bench asks of a candidate: its module has ``REQUIRES``, the distributions it stands on, and ``start``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from kernelforge.bench.workloads.record import Array, Workload, outputs


class Unsupported(Exception):
    """The candidate cannot do a workload; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What a worker is told about itself.

    Attributes:
        name: of the candidate, such as ``torch-compile``.
        device: as kernelforge names it.
        threads: how many it may use.
    """

    name: str
    device: str
    threads: int

    @property
    def kind(self) -> str:
        """The device's family: ``cpu``, ``opencl``, ``cuda``."""
        return self.device.partition(":")[0]


class Peer:
    """A candidate in its worker. This one holds what is common; it can do nothing yet.

    Attributes:
        queues: whether calls return before they are done, so that several are timed at once.
        share: how many times the workload a call does; 1 but for the limits.
    """

    queues = False
    share = 1.0

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def prepare(self, work: Workload, inputs: Sequence[Array]) -> Callable[[], Any]:
        """Return a function that does the workload once on those inputs, to be waited for by ``wait``.

        Raises:
            Unsupported: when the candidate cannot do it.
        """
        raise NotImplementedError

    def wait(self, result: Any) -> None:
        """Return when a result is there."""

    def arrays(self, result: Any) -> Sequence[Array]:
        """Return a result as flat NumPy arrays, bf16 as f32."""
        return outputs(result)

    def trim(self) -> None:
        """Give memory that is kept for later calls back to the system.

        Raises:
            Unsupported: when it stays with what was compiled, so that a call raises no peak.
        """


def pick(table: dict[str, Callable[..., Any]], work: Workload, who: str) -> Callable[..., Any]:
    """Look up how a candidate writes a workload.

    Raises:
        Unsupported: when it is not in the table.
    """
    if work.base not in table:
        raise Unsupported(f"nobody wrote {work.base} for {who}")
    return table[work.base]
