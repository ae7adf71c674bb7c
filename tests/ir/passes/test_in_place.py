"""What a pass over a row leaves stands in the output that it becomes, where nothing else is there meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import Alloc, Kernel, stmts
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.passes.in_place import in_place
from kernelforge.ir.verify import verify_kernel

LAST = """    for parallel i < 3 {
      for vector v < 4 {
        o[r * 12 + i * 4 + v] = t[i * 4 + v] / s[]
      }
    }"""


def rows(last: str = LAST, outputs: str = "out o: f32[60]", local: str = "f32[12]", more: str = "") -> Kernel:
    return parse_kernel(f"""kernel k(in x: f32[60], {outputs}) {{
  for grid r < 5 {{
    register s: f32[]
    s[] = 0.0f32
    local t: {local}
    for parallel i < 12 {{
      t[i] = x[r * 12 + i] * x[r * 12 + i]
    }}
    for serial i < 12 {{
      s[] += t[i]
    }}
{more}
{last}
  }}
}}""")


def run(kernel: Kernel) -> dict[str, np.ndarray]:
    arrays = {a.name: np.full(60, np.nan, a.dtype.replace("f", "float")) for a in kernel.args}
    arrays["x"] = np.linspace(-3, 4, 60, dtype=np.float32)
    arrays["x"][17:20] = np.nan, np.inf, -0.0
    with np.errstate(invalid="ignore"):
        run_kernel(kernel, arrays, {})
    return arrays


def kept(kernel: Kernel) -> list[str]:
    return [s.buffer for s in stmts(kernel.body) if isinstance(s, Alloc) and s.space == "local"]


@pytest.mark.parametrize(
    "last",
    [
        LAST,
        "for parallel i < 12 {\n o[r * 12 + i] = t[i] + t[i] * s[]\n}",
        "for parallel i < 12 {\n let a = t[i]\n o[r * 12 + i] = a * s[]\n}",
        "for parallel i < 8 {\n o[r * 12 + i] = t[i]\n}\nfor parallel i < 4 {\n o[r * 12 + i + 8] = t[i + 8] * s[]\n}",
    ],
)
def test_a_row_stands_where_it_goes(last: str) -> None:
    before = rows(last)
    after = in_place(before, ["o"])
    verify_kernel(after)
    assert not kept(after)
    np.testing.assert_array_equal(run(after)["o"], run(before)["o"])


TWO = "out o: f32[60], out p: f32[60]"


@pytest.mark.parametrize(
    ("last", "outputs", "local", "more"),
    [
        ("for parallel i < 12 {\n o[r * 12 + i] = t[11 - i]\n}", "out o: f32[60]", "f32[12]", ""),
        ("for parallel i < 11 {\n o[r * 12 + i] = t[i + 1]\n}", "out o: f32[60]", "f32[12]", ""),
        ("for parallel i < 12 {\n o[r + i * 5] = t[i]\n}", "out o: f32[60]", "f32[12]", ""),
        ("for parallel i < 12 {\n o[r * 12 + i] += t[i]\n}", "out o: f32[60]", "f32[12]", ""),
        ("for parallel i < 12 {\n o[r * 12 + i] = t[i] + t[0]\n}", "out o: f32[60]", "f32[12]", ""),
        ("for parallel i < 12 {\n o[r * 12 + i] = 2.0f32\n p[r * 12 + i] = t[i]\n}", TWO, "f32[12]", ""),
        ("for parallel i < 12 {\n o[r * 12 + i] = t[i]\n p[r * 12 + i] = o[r * 12 + i] + t[i]\n}", TWO, "f32[12]", ""),
        ("for parallel i < 12 {\n if (i < 6) {\n o[r * 12 + i] = t[i]\n }\n}", "out o: f32[60]", "f32[12]", ""),
        ("for parallel i < 12 {\n o[r * 12 + i] = t[i]\n}", "out o: f32[60]", "f32[13]", ""),
        ("for parallel i < 12 {\n o[r * 12 + i] = t[i]\n}\nt[0] = 1.0f32", "out o: f32[60]", "f32[12]", ""),
        ("for parallel i < 12 {\n o[r * 12 + i] = t[i]\n}\ns[] = t[3]", "out o: f32[60]", "f32[12]", ""),
        (LAST, "out o: f32[60]", "f32[12]", "for parallel i < 12 {\n o[r * 12 + i] = 0.0f32\n}"),
    ],
)  # fmt: skip
def test_what_is_needed_elsewhere_stays_where_it_is(last: str, outputs: str, local: str, more: str) -> None:
    before = rows(last, outputs, local, more)
    assert kept(in_place(before, ["o"])) == ["t"]


def test_one_of_two_outputs_holds_the_row() -> None:
    last = "for parallel i < 12 {\n o[r * 12 + i] = t[i]\n p[r * 12 + i] = t[i] * s[]\n}"
    before = rows(last, TWO)
    assert kept(in_place(before, ["o"])) == ["t"]  # p reads what o has stored over
    after = in_place(before, ["p"])
    assert not kept(after)
    for name in "op":
        np.testing.assert_array_equal(run(after)[name], run(before)[name])
    assert kept(in_place(before, [])) == ["t"]


@pytest.mark.parametrize("shape", [(4, 1000), (3, 70000), (1, 1), (0, 8), (5, 33)])
def test_a_softmax_keeps_nothing_beside_its_output(shape: tuple[int, int]) -> None:
    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if x.shape[0] > 1:
        x[1, 2] = np.nan
        x[2, 3] = np.inf
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(kf.jit(softmax)(x), softmax(x.astype(np.float64)), rtol=2e-5)
