"""Representative kernels on Oclgrind's device, which reports data races and accesses out of range (OpenCL 1.2)."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("pyopencl", reason="pyopencl is not installed")


@pytest.mark.skipif(shutil.which("oclgrind") is None, reason="oclgrind is not installed: apt-get install oclgrind")
@pytest.mark.parametrize("form", ["vector", "group"])
def test_kernels_run_clean(form: str, tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    command = [
        "oclgrind",
        "--data-races",
        "--log",
        str(log),
        sys.executable,
        "-m",
        "tests.backends.under_oclgrind",
        form,
    ]
    env = os.environ | {"KERNELFORGE_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert not log.exists() or not log.read_text()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{form} ") == 36
