"""Control flow as one kernel: the meaning stays, whatever the state, and what is too much for one the plan runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.backends import registry
from kernelforge.compile import REPEATED
from kernelforge.dtypes import DTYPES
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import For, Kernel, stmts
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.repeat import repeats
from kernelforge.ir.text import print_kernel
from kernelforge.ir.verify import verify_kernel

F32 = np.float32
on_each = pytest.mark.parametrize("device", ["cpu", "reference", "opencl:0", "opencl:1"])
RNG = np.random.default_rng(0)


def on(device: str) -> Any:
    found = registry.available().get(device)
    if found is None or isinstance(found, str):
        pytest.skip(f"no {device} here: {found}")
    return kf.default_device(device)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F32)


def plain(step: Callable[..., Any], init: Any, xs: Any, length: int, reverse: bool) -> Any:
    """Scan in Python, on NumPy arrays."""
    carry, ys = init, []
    for t in reversed(range(length)) if reverse else range(length):
        carry, y = step(carry, None if xs is None else xs[t])
        ys.append(y)
    return carry, np.stack(ys[::-1] if reverse else ys)


def recurrence(w: Any) -> Callable[..., Any]:
    def step(c: Any, x: Any) -> Any:
        h, n = c
        h = np.tanh(h @ w + x)
        return (h, n + 1), h.sum(-1) * n

    return step


def exponential(c: Any, x: Any) -> Any:
    c = c * F32(0.9) + x
    return c, c


def rolled(c: Any, x: Any) -> Any:
    """Reads its state at other places than it writes it."""
    return np.roll(c, 1) + x, c[::-1].sum()


def nested(c: Any, x: Any) -> Any:
    inner, ys = kf.scan(lambda d, y: (d * F32(0.5) + y, d), c, x) if not isinstance(c, np.ndarray) else by_hand(c, x)
    return inner, ys.sum(0)


def by_hand(c: Any, x: Any) -> Any:
    return plain(lambda d, y: (d * F32(0.5) + y, d), c, x, len(x), False)


CASES = {
    "scalar": (exponential, F32(0.5), normal(9)),
    "rows": (exponential, normal(5, 3), normal(9, 5, 3)),
    "shared": (exponential, normal(1 << 16), normal(6, 1 << 16)),
    "rolled": (rolled, normal(37), normal(4, 37)),
    "rolled, shared": (rolled, normal(1 << 16), normal(4, 1 << 16)),
    "several": (recurrence(normal(16, 16) / 8), (normal(8, 16), np.int32(3)), normal(7, 8, 16)),
    "nested": (nested, normal(5), normal(4, 3, 5)),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CASES)
@on_each
def test_one_kernel_with_the_same_meaning(device: str, name: str, reverse: bool) -> None:
    step, init, xs = CASES[name]
    if device == "reference" and "shared" in name:
        pytest.skip("the interpreter runs no threads")
    with on(device):
        run = kf.jit(lambda init, xs: kf.scan(step, init, xs, reverse=reverse))
        alone = "shared" not in name or step is exponential  # a map, or not too much for one worker
        assert ([k.name for k in run.lower(init, xs).kernels] == ["scan"]) == (alone or device == "cpu")
        got = run(init, xs)
    carry, ys = plain(step, init, xs, len(xs), reverse)
    for a, b in zip((*np_leaves(got[0]), got[1]), (*np_leaves(carry), ys), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=2e-5, atol=2e-5)


def np_leaves(tree: Any) -> list[Any]:
    return list(tree) if isinstance(tree, tuple) else [tree]


def timed(c: Any, _: Any) -> Any:
    """An equation whose time all elements share."""
    t, y = c
    slope = t + F32(0.05) - (y + F32(0.05) * (t * t - y))
    return (t + F32(0.1), y + F32(0.1) * slope), (y, t)


def exchanged(c: Any, x: Any) -> Any:
    a, b = c
    return (b, a + b * x), None


def apart(c: Any, _: Any) -> Any:
    """Parts that have nothing to do with each other, one of them narrow, one that stays as it is."""
    a, b, n, still = c
    return (a * F32(0.5), b + b.dtype.type(1), n * 2, still), n


def outer(c: Any, x: Any) -> Any:
    return np.where(c > 4, x[None], c + x[:, None]), None


MAPS = {
    "time": (timed, (F32(0), normal(70)), None),
    "time, shared": (timed, (F32(0), normal(1 << 15)), None),
    "exchanged": (exchanged, (normal(11, 7), normal(11, 7)), normal(4, 11, 7)),
    "apart": (apart, (normal(67), normal(67).astype(np.float16), np.arange(67), normal(67)), None),
    "outer": (outer, normal(9, 9), normal(4, 9)),
    "one": (exponential, normal(1, 1), normal(4, 1, 1)),
    "time alone": (lambda c, _: (c * F32(0.5), c), F32(3), None),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", MAPS)
@on_each
def test_scans_of_maps_keep_their_state_in_registers(device: str, name: str, reverse: bool) -> None:
    step, init, xs = MAPS[name]
    if device == "reference" and "shared" in name:
        pytest.skip("too much for the interpreter")
    with on(device):
        run = kf.jit(lambda init, xs: kf.scan(step, init, xs, length=4, reverse=reverse))
        if device == "cpu":
            made = [k for k in run.lower(init, xs).kernels if k.name == "scan"]
            assert len(made) == 1
            assert not any(map(repeats, made[0].ir.body))
            keep_the_meaning(made[0].naive, made[0].ir, drawn(made[0].ir), 1e-4)
        got = run(init, xs)
    want = init if isinstance(init, tuple) else (init,)
    ys: list[Any] = []
    for t in reversed(range(4)) if reverse else range(4):
        carry, y = step(want if isinstance(init, tuple) else want[0], None if xs is None else xs[t])
        want = carry if isinstance(init, tuple) else (carry,)
        ys.append(y)
    stacked = [np.stack(y[::-1] if reverse else y) for y in zip(*map(np_leaves, ys), strict=True) if y[0] is not None]
    for a, b in zip((*np_leaves(got[0]), *np_leaves(got[1])), (*want, *stacked), strict=False):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["time", "exchanged", "outer"])
def test_gradients_of_scans_of_maps(name: str) -> None:
    step, init, xs = MAPS[name]

    def loss(init: Any, xs: Any) -> Any:
        carry, _ = kf.scan(step, init, xs, length=4)
        return sum((c * c).sum() for c in np_leaves(carry))

    ours = np_leaves(kf.jit(kf.grad(loss))(init, xs))
    with kf.config(fusion=False):
        want = np_leaves(kf.jit(kf.grad(loss))(init, xs))
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_state_read_at_other_places_stays_in_memory() -> None:
    c, xs = normal(35), normal(4, 35)
    for step in (rolled, lambda c, _: (c + c[0], None), lambda c, _: (c.reshape(5, 7).T.reshape(35), None)):
        made = kf.jit(lambda c, step=step: kf.scan(step, c, xs)).lower(c).kernels
        assert any(repeats(s) for k in made for s in k.ir.body)


def test_lanes_do_not_share_what_is_dear_or_lies_apart() -> None:
    """Each would make it anew or walk the whole of it, so steps go through all elements, or all of a slice."""
    c, xs, t = normal(24, 40), normal(4, 40, 24), F32(0.5)

    def forced(c: Any, _: Any) -> Any:
        return (c[0] + np.sin(c[1]), c[1] + F32(0.1)), None

    def gated(c: Any, x: Any) -> Any:
        return c * np.exp(x[0, :])[:, None], None

    cases: list[Any] = [
        (forced, (c, t), None),
        (gated, c, xs),
        (lambda c, x: (c + x.T, None), c, xs),
        (exponential, normal(7), normal(4, 7)),
    ]
    for step, init, rows in cases:
        made = kf.jit(lambda init, rows, step=step: kf.scan(step, init, rows, length=4)).lower(init, rows).kernels
        assert any(repeats(s) or (isinstance(s, For) and s.var.name == "slice") for k in made for s in k.ir.body)


def drawn(kernel: Kernel) -> dict[str, Any]:
    return {a.name: RNG.uniform(-1, 1, int(a.size.value)).astype(DTYPES[a.dtype]) for a in kernel.args}  # type: ignore[attr-defined]


def scan_kernel(name: str) -> tuple[Kernel, Kernel]:
    step, init, xs = CASES[name]
    (made,) = kf.jit(lambda init, xs: kf.scan(step, init, xs)).lower(init, xs).kernels
    return made.naive, made.ir


def keep_the_meaning(naive: Kernel, kernel: Kernel, given: dict[str, Any], atol: float) -> None:
    """Check the forms and the results of both, and of the second with its parallel loops in any order; what is not
    ``given`` is zero.
    """
    results = []
    for k, shuffle in ((naive, None), (kernel, None), (kernel, 1)):
        verify_kernel(k)
        assert parse_kernel(print_kernel(k)) == k
        arrays = {a.name: np.zeros(int(a.size.value), DTYPES[a.dtype]) for a in k.args}  # type: ignore[attr-defined]
        for a in k.args:
            if a.mode == "in" and a.name in given:
                arrays[a.name] = np.array(given[a.name], DTYPES[a.dtype]).reshape(-1)
        run_kernel(k, arrays, {}, shuffle=shuffle)
        results.append([arrays[a.name] for a in k.args if a.mode == "out"])
    for found in results[1:]:
        for a, b in zip(results[0], found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", ["scalar", "rows", "rolled", "several", "nested"])
def test_kernels_are_well_formed_and_keep_the_meaning(name: str) -> None:
    """The naive kernel, the scheduled one, and that one with iterations of its parallel loops in any order."""
    naive, kernel = scan_kernel(name)
    keep_the_meaning(naive, kernel, drawn(kernel), 1e-4)


def test_text() -> None:
    c, xs = normal(3), normal(9, 3)
    (mirrored,) = kf.jit(lambda c, xs: kf.scan(lambda c, x: (c[::-1] * F32(0.5) + x, c), c, xs)).lower(c, xs).kernels
    assert print_kernel(mirrored.naive) == IN_MEMORY
    naive, _ = scan_kernel("scalar")
    assert print_kernel(naive) == IN_REGISTERS


IN_MEMORY = """\
kernel scan(in first_0: f32[3], in row_1: f32[27], out last_2: f32[3], out made_3: f32[27], scratch kept_4: f32[32]) {
  for parallel i0 < 3 {
    kept_4[i0] = first_0[i0]
  }
  for serial turn0 < 9 {
    for parallel i0 < 3 {
      kept_4[i0 + (turn0 + 1) % 2 * 16] = kept_4[i0 * -1 + turn0 % 2 * 16 + 2] * 0.5f32 + row_1[i0 + turn0 * 3]
      made_3[i0 + turn0 * 3] = kept_4[i0 + turn0 % 2 * 16]
    }
  }
  for parallel i0 < 3 {
    last_2[i0] = kept_4[i0 + 16]
  }
}"""

IN_REGISTERS = """\
kernel scan(in first_0: f32[1], in row_1: f32[9], out last_2: f32[1], out made_3: f32[9]) {
  for parallel i < 1 {
    register state0: f32[]
    state0[] = first_0[0]
    for serial turn < 9 {
      let v4 = state0[] * 0.8999999761581421f32 + row_1[turn]
      let v5 = state0[] * 0.8999999761581421f32 + row_1[turn]
      made_3[turn] = v5
      state0[] = v4
    }
    last_2[0] = state0[]
  }
}"""


def test_repetitions_stand_in_each_other() -> None:
    def step(c: Any, x: Any) -> Any:
        return kf.scan(lambda d, y: (np.roll(d, 1) + y, None), c, x)[0], None

    c, xs = normal(5), normal(4, 3, 5)
    kernel = kf.jit(lambda c, xs: kf.scan(step, c, xs)).lower(c, xs).kernels[-1].ir
    loops = [s for s in stmts(kernel.body) if isinstance(s, For) and repeats(s)]
    assert [s.var.name for s in loops] == ["turn1", "turn0"]


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_lengths(length: int) -> None:
    xs = normal(length, 4)
    carry, ys = kf.jit(lambda init, xs: kf.scan(exponential, init, xs))(np.ones(4, F32), xs)
    expected = np.ones(4, F32)
    for x, y in zip(xs, np.asarray(ys), strict=True):
        expected = expected * F32(0.9) + x
        np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.asarray(carry), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@on_each
def test_narrow_floats(device: str, dtype: str) -> None:
    """Kernels may hold them as bits."""
    xs = normal(3, 33).astype(dtype)

    def run(xs: Any) -> Any:
        c, ys = kf.scan(lambda c, x: (np.tanh(c * x + c), c), xs[0], xs)
        c = kf.while_loop(lambda c: c.max() < 2, lambda c: c + 1, c)
        return kf.cond(c[0] > 0, lambda c: c, lambda c: -c, c), ys

    with on(device):
        whole = kf.jit(run)(xs)
        with kf.config(fusion=False):
            apart = kf.jit(run)(xs)
    for a, b in zip(whole, apart, strict=True):
        assert a.dtype == xs.dtype
        np.testing.assert_array_equal(np.asarray(a).astype(F32), np.asarray(b).astype(F32))


def test_fusion_off_leaves_loops_to_the_plan() -> None:
    step, init, xs = CASES["several"]
    run = kf.jit(lambda init, xs: kf.scan(step, init, xs))
    whole = run(init, xs)
    with kf.config(fusion=False):
        assert len(run.lower(init, xs).kernels) > 1
        apart = run(init, xs)
    np.testing.assert_array_equal(np.asarray(whole[1]), np.asarray(apart[1]))


def tripled(xs: Any) -> Any:
    """A while loop and a branch in each step of a scan."""

    def step(c: Any, x: Any) -> Any:
        c = kf.while_loop(lambda v: v < 100, lambda v: v * 3, c + x)
        c = kf.cond(c > 200, lambda c: c / 3, lambda c: c + 1, c)
        return c / 50, c

    return kf.scan(step, F32(1), xs)[1]


@on_each
def test_control_flow_in_control_flow(device: str) -> None:
    xs = np.arange(1, 9, dtype=F32)
    with on(device):
        run = kf.jit(tripled)
        assert [k.name for k in run.lower(xs).kernels][-1] == "scan"
        found = np.asarray(run(xs))
    expected, c = [], F32(1)
    for x in xs:
        c += x
        while c < 100:
            c *= 3
        c = c / 3 if c > 200 else c + 1
        expected.append(c)
        c /= 50
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def root(x: Any) -> Any:
    return kf.while_loop(lambda c: abs(c * c - x).max() > 1e-4, lambda c: (c + x / c) / 2, x)


def chosen(flag: Any, x: Any) -> Any:
    return kf.cond(flag, lambda x: (x * 2, x.sum()), lambda x: (x - x.mean(), x.max()), x)


@pytest.mark.parametrize("size", [1, 7, 1 << 17])
def test_while(size: int) -> None:
    x = 1 + normal(size) ** 2
    run = kf.jit(root)
    assert [k.name for k in run.lower(x).kernels] == ["while_loop"]
    expected = x
    while np.abs(expected * expected - x).max() > 1e-4:
        expected = (expected + x / expected) / 2
    np.testing.assert_allclose(np.asarray(run(x)), expected, rtol=1e-5)


@on_each
@pytest.mark.parametrize("steps", range(4))
def test_a_while_loop_of_few_steps(steps: int, device: str) -> None:
    """Its state ends in either half of the buffer, and none at all is what it began with."""
    run = kf.jit(lambda n, x: kf.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, x)))
    with on(device):
        n, x = run(steps, np.ones(5, F32))
    assert int(n) == steps
    np.testing.assert_array_equal(np.asarray(x), np.full(5, 2.0**steps, F32))


@on_each
@pytest.mark.parametrize("flag", [False, True])
def test_cond(flag: bool, device: str) -> None:
    x = normal(33)
    run = kf.jit(chosen)
    with on(device):
        assert [k.name for k in run.lower(flag, x).kernels] == ["cond"]
        a, b = run(flag, x)
    expected = (x * 2, x.sum()) if flag else (x - x.mean(), x.max())
    np.testing.assert_allclose(np.asarray(a), expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(b), expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fn", "args"),
    [(root, (1 + normal(9) ** 2,)), (chosen, (True, normal(9))), (tripled, (np.arange(1, 5, dtype=F32),))],
)
def test_loops_as_data_say_are_well_formed(fn: Any, args: tuple[Any, ...]) -> None:
    made = kf.jit(fn).lower(*args).kernels[-1]
    names = [a.name for a in made.ir.args if a.mode == "in"]
    keep_the_meaning(made.naive, made.ir, dict(zip(names, args[::-1] if fn is tripled else args, strict=False)), 1e-5)


def test_long_loops_let_other_threads_run() -> None:
    run = kf.jit(lambda n: kf.while_loop(lambda c: c < n, lambda c: c + 1, 0))
    for _ in range(3):
        run(5)  # from the third call on by the entry in machine code
    turns = 0
    done = threading.Event()

    def work() -> None:
        run(20_000_000)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        turns += 1
        done.wait(1e-3)
    thread.join()
    assert turns > 10


def test_bodies_of_many_kernels_are_run_by_the_plan() -> None:
    """They are compiled side by side there."""

    def step(c: Any, w: Any) -> Any:
        for _ in range(REPEATED):
            c = c / c.sum() + w
        return c, None

    run = kf.jit(lambda c, w: kf.scan(step, c, w)[0])
    c, w = normal(1 << 17), normal(2, 1 << 17)
    assert "scan" not in [k.name for k in run.lower(c, w).kernels]


def test_calls_at_once_count_their_own_turns() -> None:
    step, init, xs = CASES["several"]
    run = kf.jit(lambda init, xs: kf.scan(step, init, xs)[1])
    expected = np.asarray(run(init, xs))
    found: list[bool] = []

    def work() -> None:
        found.extend(np.array_equal(np.asarray(run(init, xs)), expected) for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 800
    assert all(found)


def test_gradients() -> None:
    step, init, xs = CASES["several"]

    def loss(h: Any, xs: Any) -> Any:
        return (kf.scan(step, (h, init[1]), xs)[1] ** 2).sum()

    h = init[0]
    got = np.asarray(kf.jit(kf.grad(loss))(h, xs))
    direction = normal(8, 16)
    tangent = kf.jvp(lambda h: loss(h, xs), (h,), (direction,))[1]
    np.testing.assert_allclose((got * direction).sum(), float(tangent), rtol=2e-4)


def test_inputs_between_lines_and_strided() -> None:
    step, init, xs = CASES["rows"]
    run = kf.jit(lambda init, xs: kf.scan(step, init, xs)[1])
    expected = np.asarray(run(init, xs))
    off = np.empty(xs.size + 1, F32)[1:].reshape(xs.shape)
    off[:] = xs
    turned = np.asfortranarray(xs)
    for given in (off, turned):
        np.testing.assert_array_equal(np.asarray(run(init, given)), expected)


def tracked(p: Any, zs: Any) -> Any:
    """A linear system in each step of a scan, whose constants no one sees while it is traced: Kalman's filter."""

    def step(carry: tuple[Any, Any], z: Any) -> tuple[tuple[Any, Any], Any]:
        x, p = carry
        gain = np.linalg.solve(p + 2 * np.eye(4, dtype=F32), p).mT
        x = x + gain @ (z - x)
        return (x, p - gain @ p + np.eye(4, dtype=F32)), x

    (_, p), xs = kf.scan(step, (zs[0], p), zs)
    return p, xs


@on_each
def test_constants_of_calls_leave_a_loop_whole(device: str) -> None:
    p, zs = np.eye(4, dtype=F32), normal(6, 4)
    with on(device):
        run = kf.jit(tracked)
        assert [k.name for k in run.lower(p, zs).kernels][-1] == "scan"
        for found, expected in zip(run(p, zs), tracked(p, zs), strict=True):
            np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-5, atol=2e-5)


def test_derivatives_of_systems_in_a_loop() -> None:
    p, zs, v = np.eye(4), RNG.standard_normal((6, 4)), RNG.standard_normal((6, 4))

    def energy(zs: Any) -> Any:
        return (tracked(p, zs)[1] ** 2).sum()

    slope = (energy(zs + 1e-6 * v) - energy(zs - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose(np.asarray(kf.grad(energy)(zs) * v).sum(), slope, rtol=1e-6)
