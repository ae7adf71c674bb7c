"""Each example runs, small, and checks its own result."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.demo import figures
from kernelforge.ir import cost

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


def test_figures_need_matplotlib(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    path = tmp_path / "made.png"
    panels = {"a_curve": figures.curve([3.0, 2.0, 1.0]), "an_image": figures.image(np.eye(3))}
    if importlib.util.find_spec("matplotlib"):
        figures.save(str(path), **panels)
        assert path.read_bytes().startswith(b"\x89PNG")
        path.unlink()
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    figures.save(str(path), **panels)
    assert "made.png is not drawn, as matplotlib is not installed: pip install matplotlib" in capsys.readouterr().out
    assert not path.exists()


def test_explanation_in_the_docs() -> None:
    """What docs/explain.md shows of why and what is kept is what the example gives."""
    text = (ROOT / "docs" / "explain.md").read_text()
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    spec = importlib.util.spec_from_file_location("digits_convnet", ROOT / "examples" / "digits_convnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    params = module.init(np.random.default_rng(0), 16)
    images, labels = np.ones((128, 1, 8, 8), np.float32), np.zeros(128, np.int64)
    found = kf.jit(kf.grad(module.loss)).explain(params, images, labels)
    lines = str(found).splitlines()
    said = [line for line in shown.splitlines() if line.startswith("  - ")]
    assert len(said) > 5
    assert [line for line in said if line not in lines] == []
    constants = (cost.OPERATIONS_PER_BYTE, cost.TRANSCENDENTAL, cost.POWER, cost.DIVISION, cost.LAUNCH_BYTES >> 10)
    sentence = "{} simple operations take as long as a byte, a transcendental function counts as {}, a power as {}, "
    sentence += "a division as {}, a launch as {} KiB"
    assert sentence.format(*constants) in " ".join(text.split())


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


def test_neural_networks_in_the_docs() -> None:
    """The code of docs/nn.md trains, and its table names what there is."""
    text = (ROOT / "docs" / "nn.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "nn.md", "exec"), names)
    assert float(names["value"]) < 2
    said = set(re.findall(r"\w+", text))
    known = {*kf.nn.__all__, *kf.optim.__all__, *kf.random.__all__}
    exempt = {"swish", "Optimizer", "global_norm", *(n for n in known if re.search(r"pool[123]d$|dropout[123]d$", n))}
    assert known - exempt - said == set()
