"""What all tests share: a cache folder of their own, programs of one module at a time, the same examples under CI.

Plans are kept on disk for the tests of that alone: others would get what was compiled before they changed the compiler.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import kernelforge as kf
from kernelforge import errors
from kernelforge.backends import registry
from kernelforge.compile import forget

compiling = sys.modules["kernelforge.compile"]

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_finish() -> None:
    """Keep thousands of tests, which live as long as the run, out of each collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep compiled kernels of the tests out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERNELFORGE_CACHE_DIR", str(folder))
        patch.setattr(compiling, "_found", lambda *_: None)
        patch.setattr(compiling, "_keep", lambda name, made, graph: made.plan())
        yield folder


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forget the programs of a module after it: a thousand of one OpenCL runtime take gigabytes."""
    yield
    forget()


@pytest.fixture(scope="module")
def reference() -> Iterator[None]:
    """Run a module's tests on the interpreter, whose compile time is nothing."""
    with kf.default_device("reference"):
        yield


@pytest.fixture(params=["cpu", "opencl", "reference"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        registry.backend(request.param)
    except errors.DeviceUnavailable as error:
        pytest.skip(str(error))
    with kf.default_device(request.param) as name:
        yield name
