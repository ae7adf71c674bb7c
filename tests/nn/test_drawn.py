"""Every function on shapes and options that are drawn: against loops of NumPy, and where it is installed PyTorch.

``pytest --hypothesis-profile=long tests/nn/test_drawn.py`` draws more, and on every OpenCL device too.
"""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import kernelforge as kf
from kernelforge import nn
from tests.nn import drawn_losses, drawn_windows
from tests.nn.case import TORCH, check_derivatives, check_value
from tests.nn.drawn import DRAWN, Draw

assert drawn_losses.__name__ < drawn_windows.__name__  # imported for what they enter
LONG = hypothesis.settings.get_current_profile_name() == "long"
OPENCL = [d for d in kf.devices() if LONG and d.startswith("opencl")]
PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate)
"""Without shrinking, as each smaller example is compiled anew."""

BY_LAW = {name for name in nn.__all__ if "dropout" in name} | {"gumbel_softmax"}
"""What tests/test_random.py compares with distributions."""


def test_every_function_is_drawn() -> None:
    assert set(nn.__all__) == {*DRAWN, *BY_LAW}


@pytest.mark.parametrize("name", DRAWN)
@hypothesis.settings(max_examples=20 if LONG else 2, deadline=None, phases=PHASES)
@hypothesis.given(data=st.data())
def test_values(name: str, data: st.DataObject) -> None:
    case = DRAWN[name](Draw(data))
    hypothesis.note(f"{case}: {[getattr(a, 'shape', a) for a in case.args]}")
    check_value(case, "cpu", np.float64)
    for device in OPENCL:
        check_value(case, device, np.float32)


@pytest.mark.skipif(not TORCH, reason="PyTorch is not installed")
@pytest.mark.parametrize("name", DRAWN)
@hypothesis.settings(max_examples=10 if LONG else 1, deadline=None, phases=PHASES)
@hypothesis.given(data=st.data())
def test_derivatives_are_pytorchs(name: str, data: st.DataObject) -> None:
    case = DRAWN[name](Draw(data))
    hypothesis.note(f"{case}: {[getattr(a, 'shape', a) for a in case.args]}")
    for device in ["cpu", *OPENCL] if case.wrt else []:
        check_derivatives(case, device)
