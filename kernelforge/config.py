"""The one settings record. The environment only locates things: device, cache folder, dump folder."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args

from kernelforge.errors import InvalidParameter

Rounding = Literal["strict", "fast"]
Precision = Literal["highest", "high"]


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """Settings that change what is compiled, those of ``config``; all are part of the cache key."""

    rounding: Rounding = "strict"
    precision: Precision = "highest"
    fusion: bool = True
    verify: bool = False

    def __post_init__(self) -> None:
        for name, of in (("rounding", Rounding), ("precision", Precision)):
            found, known = getattr(self, name), get_args(of)
            if found not in known:
                raise InvalidParameter(op="config", name=name, found=found, expected=" or ".join(known))


CURRENT: contextvars.ContextVar[Config] = contextvars.ContextVar("kernelforge_config", default=Config())  # noqa: B039 - it is frozen


def current() -> Config:
    """Return the settings in force in this thread."""
    return CURRENT.get()


@contextlib.contextmanager
def config(
    *,
    rounding: Rounding | None = None,
    precision: Precision | None = None,
    fusion: bool | None = None,
    verify: bool | None = None,
) -> Iterator[Config]:
    """Change settings for the body of a ``with`` statement, in this thread only; None keeps what is in force.

    Args:
        rounding: ``strict`` keeps every rounding and cast point of the unfused program and reassociates only
            reductions, in a fixed tree; ``fast`` also rounds a product and a sum that takes it together.
        precision: of products of f32 in contractions. ``highest`` is f32; ``high`` rounds their factors to tf32, 10
            bits of mantissa for 23, on devices whose tensor cores multiply those (CUDA from compute capability 8.0 on)
            and is f32 on all others. The names are those of ``torch.set_float32_matmul_precision`` and JAX.
        fusion: whether operations share kernels; off, every operation is a kernel (to find a fusion at fault).
        verify: whether both IRs are verified after each pass.

    Raises:
        InvalidParameter: for a value that a setting does not take.
    """
    given = {"rounding": rounding, "precision": precision, "fusion": fusion, "verify": verify}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    token = CURRENT.set(dataclasses.replace(CURRENT.get(), **changes))
    try:
        yield CURRENT.get()
    finally:
        CURRENT.reset(token)
