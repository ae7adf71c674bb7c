"""Test functions and devices against NumPy: ``check``, ``check_grads``, ``check_backend``.

Needs hypothesis, the extra ``testing`` of this package.
"""

from __future__ import annotations

import importlib.util

from kernelforge.errors import MissingExtra

if importlib.util.find_spec("hypothesis") is None:
    raise MissingExtra(what="kernelforge.testing", package="hypothesis", extra="testing")

from kernelforge.testing.check import check
from kernelforge.testing.conformance import check_backend
from kernelforge.testing.gradients import check_grads

__all__ = ["check", "check_backend", "check_grads"]
