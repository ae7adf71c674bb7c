"""Values, gradients and second derivatives of the functions of ``kernelforge.nn``."""

from __future__ import annotations

import numpy as np
import pytest

import kernelforge as kf
from tests import further
from tests.nn import elementwise, images, learning, resizing, sequences
from tests.nn.case import Case, check_derivatives, check_value

GROUPS = (
    elementwise.ACTIVATIONS, elementwise.ROWS, learning.DENSE, learning.LOSSES, images.CONVOLUTIONS, images.POOLING,
    images.PADDING, sequences.ATTENTION, sequences.RECURRENT, resizing.RESIZING,
)  # fmt: skip
CASES = [case for group in GROUPS for case in group]
OPENCL = [
    (case, d) for case in CASES for d in kf.devices()
    if d.startswith("opencl") and (not further.is_further(d) or case.name in further.LAYERS)
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case: Case) -> None:
    check_value(case, "cpu", np.float64)


@pytest.mark.parametrize(("case", "device"), OPENCL, ids=str)
def test_float32(case: Case, device: str) -> None:
    check_value(case, device, np.float32)


def test_what_a_further_runtime_runs_is_there() -> None:
    assert set(further.LAYERS) <= {c.name for c in CASES}


@pytest.mark.parametrize(
    ("case", "device"), [(c, d) for c, d in [*((c, "cpu") for c in CASES), *OPENCL] if c.wrt], ids=str
)
def test_derivatives(case: Case, device: str) -> None:
    check_derivatives(case, device)
