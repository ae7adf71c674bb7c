"""Each example runs, small, and checks its own result."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(small=True)
    assert capsys.readouterr().out.strip()


def test_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """The example that opens the README does what its comments say."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    x, w, b = names["x"], names["w"], names["b"]
    plain = names["layer"].__wrapped__(x, w, b)
    np.testing.assert_allclose(np.asarray(names["y"]), plain, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(names["dw"]), x.T @ (1 - plain**2), rtol=1e-4, atol=1e-5)
    assert len(names["layer"].lower(x, w, b).kernels) == 1
    assert "1 kernel on" in capsys.readouterr().out
