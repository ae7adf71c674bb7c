"""What a function became, in words and as a page, which a browser shows without complaint."""

from __future__ import annotations

import html
import html.parser
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.compile import forget
from kernelforge.explain import LONG, Explanation
from kernelforge.ir.kernel import Const, For, Stmt, Store, Var, i64
from kernelforge.picture import Dot, _Layout, draw
from kernelforge.words import schedule_words
from tests.browser import look, needs_chromium

F32 = np.float32


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(F32)


def layer(x, w, b):
    return np.tanh(x @ w + b)


def attention(q, k, v):
    scores = q @ k.transpose(0, 2, 1)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)) @ v


def loss(q, k, v):
    return (attention(q, k, v) ** 2).sum()


def spread(x):
    return x / x.sum()


def explained(**options: Any) -> Explanation:
    return kf.jit(kf.value_and_grad(loss)).explain(*(normal(2, 64, 32, seed=k) for k in range(3)), **options)


@pytest.mark.parametrize("lines", [LONG, LONG + 1])
def test_long_sources_are_shown_on_request(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kf.jit(lambda x: x + 1).explain(normal(3))
    monkeypatch.setattr(type(found.kernels[0].kernel), "source", "\n".join(["line"] * lines))
    assert ("\n    line" in str(found)) == (lines == LONG)
    assert (f"kernel 1, source: {lines} lines, with" in str(found)) == (lines > LONG)
    assert str(found.text(sources=True)).count("\n    line") == lines


def test_numbers_are_no_operations() -> None:
    """The picture has no dots for them either."""
    found = kf.jit(lambda x: np.tanh(x + 1.5) * 2).explain(normal(8))
    assert found.words().splitlines()[1].startswith("1 kernel on cpu for 3 operations and 0 views; ")


def test_one_kernel() -> None:
    found = kf.jit(layer).explain(normal(64, 32), normal(32, 16), normal(16))
    text = found.words()
    (kernel,) = (k.kernel for k in found.kernels)
    loops, source = (listing.replace("\n", "\n    ") for listing in (str(kernel.ir), kernel.source))
    listed = str(found)
    assert listed == found.text()
    assert listed.startswith(text + "\n\nGraph:\ngraph (")
    shown = f"\n\nkernel 1, source:\n    {source.rstrip()}"
    count = len(kernel.source.splitlines())
    left_out = f"\n\nkernel 1, source: {count} lines, with text(sources=True) or --sources"
    assert listed.endswith(f"\n\nkernel 1, loops:\n    {loops.strip()}{left_out if count > LONG else shown}")
    assert found.text(sources=True) == listed.removesuffix(left_out).removesuffix(shown) + shown
    lines = text.splitlines()
    assert lines[:4] == [
        "layer(x: f32[64,32], w: f32[32,16], b: f32[16]) on cpu",
        "1 kernel on cpu for 3 operations and 1 view; 1 launch a call, arena " + lines[1].rsplit("arena ")[1],
        lines[2],
        "67,584 floating-point operations",
    ]
    assert lines[2].endswith("inputs and outputs once are 14.1 KiB")
    place = re.compile(r"  .*tests/test_explain\.py:\d+  return np\.tanh\(x @ w \+ b\)")
    assert sum(bool(place.fullmatch(line)) for line in lines) == 1
    assert "      contract, add, tanh" in lines
    assert "  reads x (8.0 KiB), w (2.0 KiB), b (64 B); writes result 1 (4.0 KiB)" in lines
    assert "Why not fewer kernels:" not in text
    assert re.search(r"runs in \d+ workers?.*vectors of \d+ elements|  phase 2: \d+ worker", text)
    assert re.search(r"predicted [\d.]+ µs; bound by (memory|arithmetic)", text)
    assert "measured" not in text


def test_lines_are_of_the_function_itself() -> None:
    """Functions that compute the same share what was compiled, but not where it was written."""
    x = normal(5, 7)
    kf.jit(spread)(x)

    def same(x: Any) -> Any:
        return x / x.sum()

    assert "return x / x.sum()" in str(kf.jit(same).explain(x))
    assert all(n.loc and n.loc.function == "same" for n in kf.jit(same).lower(x).graph.nodes)


@pytest.fixture
def _kernels_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile as for a device whose contractions keep kernels of their own."""
    forget()
    monkeypatch.setattr("kernelforge.ir.chains.FEW_ROWS", 1 << 40)
    yield
    forget()


@pytest.mark.usefixtures("_kernels_apart")
def test_gradients_are_explained() -> None:
    found = explained()
    roles = [k.role for k in found.kernels]
    assert roles[0] == "forward"
    assert roles[-1] == "backward"
    assert {k.number for k in found.kernels} == set(range(1, len(found.kernels) + 1))
    text = found.words()
    assert "What the backward pass keeps and recomputes:" in text
    assert re.search(r"- recomputes exp .*: (no more|[\d.]+) operations.* against [\d.]+ bytes an element", text)
    assert re.search(r"; keeps max at test_explain.py:\d+ \(512 B\) for it", text)
    assert re.search(
        r"- keeps sum at test_explain.py:\d+ \(512 B\): it is made by sum, which reads many elements", text
    )
    assert re.search(r"- kernel 1 and kernel 2, sharing \w+ at test_explain.py:\d+ \(32.0 KiB\): ", text)
    assert "adjoint: contract" in text


def test_shared_pass_keeps_nothing() -> None:
    def both(x: Any, ct: Any) -> Any:
        out, pull = kf.vjp(lambda x: np.tanh(x) * x, x)
        return out, pull(ct)

    found = kf.jit(both).explain(normal(32, 64), normal(32, 64))
    assert [k.role for k in found.kernels] == ["forward and backward"]
    assert found.residuals() == [
        "keeps nothing: one kernel goes forward and backward, and what it needs never leaves it"
    ]


def test_checkpoint_is_named() -> None:
    def checked(w: Any, x: Any) -> Any:
        return kf.checkpoint(lambda w, x: np.tanh(np.sin(x @ w) @ w))(w, x).sum()

    found = kf.jit(kf.grad(checked)).explain(normal(16, 16), normal(32, 16))
    (line,) = [r for r in found.residuals() if "checkpoint" in r]
    assert line.startswith("recomputes contract, sin")
    assert line.endswith("it stands under checkpoint, which keeps inputs alone")


def test_refusal_is_named() -> None:
    found = kf.jit(spread).explain(normal(1 << 20))
    (line,) = found.refusals()
    assert re.match(r"kernel 1 and kernel 2, sharing sum at test_explain.py:\d+ \(4 B\): 1 rows of 1048576", line)
    assert found.heading == "What later kernels keep and recompute:"


def test_measured() -> None:
    found = explained(measure=True)
    assert all(k.measured and k.predicted for k in found.kernels)
    assert found.bandwidth > 1e8
    assert "as measured by a copy" in str(found)


def test_loops_are_explained() -> None:
    def states(w: Any, xs: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = np.tanh(h @ w + x)
            return h, h.sum()

        return kf.scan(step, np.zeros((8, 16), F32), xs)

    w, xs = normal(16, 16), normal(5, 8, 16)
    whole = kf.jit(states).explain(w, xs)
    scan = whole.kernels[-1]
    assert (scan.kernel.name, scan.runs, scan.within) == ("scan", 1, "")
    assert any("h = np.tanh(h @ w + x)" in line for line in scan.lines[0])
    assert "phase 2: 5 steps, one after the other, each through the phases below" in scan.schedule
    assert any(line.startswith("phase 2.1: ") for line in scan.schedule)
    assert "xs (2.5 KiB)" in str(whole)
    assert whole.flops > 5 * 8 * 16 * 16 * 2
    assert whole.html()

    with kf.config(fusion=False):
        found = kf.jit(states).explain(w, xs)
        roles = {k.role for k in kf.jit(kf.grad(lambda w: states(w, xs)[0].sum())).explain(w).kernels}
    inside = [k for k in found.kernels if k.within]
    assert {(k.runs, k.within) for k in inside} == {(5, "in each of 5 steps of a scan")}
    assert found.flops == sum(k.runs * k.kernel.flops for k in found.kernels) > 5 * 8 * 16 * 16 * 2
    assert "  runs in each of 5 steps of a scan" in str(found)
    assert any("h = np.tanh(h @ w + x)" in line for k in inside for line in k.lines[0])
    assert "an argument of the loop (512 B)" in str(found)
    assert {"forward", "backward"} & roles

    def root(x: Any) -> Any:
        return kf.while_loop(lambda c: (c * c - x).max() > 1e-3, lambda c: (c + x / c) / 2, x)

    one_turn = "figures count one turn of a while_loop: the data say how many there are"
    held = kf.jit(root).explain(normal(7) ** 2 + 1)
    assert "as many turns as data say, one after the other, each through the phases below" in str(held)
    assert str(held).count(one_turn) == 2  # of the whole, and of the kernel
    with kf.config(fusion=False):
        run = str(kf.jit(root).explain(normal(7) ** 2 + 1))
        assert "in each turn of a while_loop" in run
        assert run.count(one_turn) == 1
    assert one_turn in held.html()
    assert "figures count" not in str(whole)


def test_branches_and_conditions_are_explained() -> None:
    """What a kernel of control flow computes, in each of the graphs that it holds."""
    branch = kf.jit(lambda p, x: kf.cond(p, np.sin, np.cos, x)).explain(True, normal(5)).kernels[-1]
    loop = kf.jit(lambda x: kf.while_loop(lambda c: c.sum() < 9, np.exp, x)).explain(normal(5)).kernels[-1]
    for kernel, names in ((branch, ("sin", "cos")), (loop, ("sum", "less", "exp"))):
        made = ", ".join(what for *_, what in kernel.lines)
        assert all(name in made for name in names)
    both = "both branches of a condition: the data say which one runs"
    assert branch.assumed == (both,)
    assert branch.schedule[0] == "phase 1: the phases below, once or not at all, as data say"
    assert branch.schedule[2] == "phase 2: the phases below, once or not at all, as data say"


def test_copies_stand_on_lines() -> None:
    (kernel,) = kf.jit(lambda x: x[1:].reshape(3, 4)).explain(normal(13)).kernels
    assert [what for *_, what in kernel.lines] == ["slice, reshape"]


def test_names_of_leaves() -> None:
    def fn(params: Any, x: Any, *more: Any) -> Any:
        return params["w"] * x + params["b"][0] + sum(more)

    found = kf.jit(fn).explain({"w": F32(2), "b": [F32(1)]}, normal(3), normal(3), normal(3))
    assert found.names == ("params['b'][0]", "params['w']", "x", "argument 3", "argument 4")


def test_nothing_to_do() -> None:
    found = kf.jit(lambda x: x * 2).explain(np.zeros((0, 3), F32))
    assert "0 kernels on cpu" in str(found)
    assert found.html()


def test_page_is_whole_and_escaped() -> None:
    def nasty(x: Any) -> Any:
        return np.where(x < 1, x, x & 3)  # <script>alert("&")</script>

    with kf.default_device("reference"):
        other = kf.jit(nasty).explain(np.arange(5))
    found = kf.jit(nasty).explain(np.arange(5))
    page = found.html([other])
    assert "<script" not in page
    assert "src=" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert "&lt;script&gt;" in page
    assert html.escape(str(found.kernels[0].kernel.source).splitlines()[0]) in page
    for text in (">cpu</label>", ">reference</label>", ">scheduled IR</label>", "Before fusion", "Roofline"):
        assert text in page
    assert found._repr_html_().startswith("<iframe srcdoc=")

    class Balanced(html.parser.HTMLParser):
        CDATA_CONTENT_ELEMENTS = ("style",)

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, name: str, attrs: Any) -> None:
            if name not in ("meta", "link", "input"):
                self.open.append(name)

        def handle_endtag(self, name: str) -> None:
            assert self.open.pop() == name

    reader = Balanced()
    reader.feed(page)
    assert reader.open == []
    assert len(set(re.findall(r' id="([^"]*)"', page))) == len(re.findall(r' id="([^"]*)"', page))


def test_picture() -> None:
    dots = [Dot(name) for name in ("a", "b", "c", "d <", "alone")]
    edges = [(0, 1), (1, 2), (0, 2), (0, 3), (2, 3)]
    layout = _Layout(dots, edges)
    assert layout.layer[:5] == [0, 1, 2, 3, 0]
    assert [len(b) for b in layout.bends] == [0, 0, 1, 2, 0]
    for row in layout.rows:
        for m, n in itertools.pairwise(row):
            assert layout.x[n] - layout.x[m] >= (layout.widths[m] + layout.widths[n]) / 2
    assert min(layout.x[n] - layout.widths[n] / 2 for n in range(5)) > 0
    assert "d &lt;" in draw("a graph", dots, [(a, b, "") for a, b in edges])
    assert draw("nothing", [], [])


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_browser_shows_it(dark: bool, tmp_path: Path) -> None:
    """With all opened nothing sticks out, and tabs change."""
    probe = """(() => {
      const [, pane] = frame.contentDocument.querySelectorAll('.pane');
      const shown = () => frame.contentWindow.getComputedStyle(pane).display, before = shown();
      pane.previousElementSibling.click();
      return [before, shown()];
    })()"""
    page = explained().html().replace("<details>", "<details open>")
    assert look(page, dark, tmp_path, probe) == [["none", "block"]] * 2


def test_a_loop_of_one_iteration_is_not_called_unrolled() -> None:
    def unrolled(*extents: int) -> list[str]:
        body: Stmt = Store("o", (i64(0),), Const(1.0, "f32"))
        for n in extents:
            body = For(Var("i", "i64", n), i64(n), "unroll", (body,))
        return list(schedule_words([body]))

    assert unrolled(1) == ["one element at a time"]
    assert unrolled(4, 1, 8) == ["one element at a time, unrolled 8 and 4 times"]
