"""Results in the memory of donated arguments: the values are the same, and nothing else that anyone sees changes."""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge import donations, optim
from kernelforge.backends import registry
from kernelforge.bench.peers.on_kernelforge import OWN
from kernelforge.bench.workloads import TABLE
from kernelforge.bench.workloads.learning import TRAINING as TRAINING_STEPS
from kernelforge.compile import compile_graph, forget
from kernelforge.config import Config
from kernelforge.errors import CannotDonate, DonatedArray, InvalidParameter, UnknownParameter
from kernelforge.ir.graph import Graph
from kernelforge.ir.interpret import run_kernel
from kernelforge.ir.kernel import Kernel
from kernelforge.ir.ops import PRIMITIVES
from kernelforge.ir.parse import parse_kernel
from kernelforge.ir.passes.overwrite import Overwriting
from kernelforge.ir.text import print_kernel
from kernelforge.ir.verify import verify_kernel
from kernelforge.runtime.memory import download, upload
from kernelforge.runtime.plan import Detailed
from tests.ir.cases import dtypes, samples
from tests.ir.passes.random_graphs import random_graph
from tests.programs import PROGRAMS, TRAINING, Program
from tests.test_primitives import WITH_KERNEL


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def momentum(p: Any, m: Any, g: Any) -> Any:
    m = 0.9 * m + g
    return p - 0.1 * m, m, (m * m).sum()


def address(x: Any) -> int:
    return np.asarray(x).__array_interface__["data"][0]


def test_steps_stay_where_they_are(device: str) -> None:
    donating, plain = kf.jit(momentum, donate_argnames=("p", "m")), kf.jit(momentum)
    state = [kf.asarray(normal(33, 21, seed=k).copy()) for k in range(2)]
    want = [normal(33, 21, seed=k) for k in range(2)]
    for k in range(5):
        g = normal(33, 21, seed=10 + k)
        before = state
        *state, total = donating(*state, g)
        *want, whole = plain(*want, g)
        for got, w in zip([*state, total], [*want, whole], strict=True):
            np.testing.assert_array_equal(got, w)
        for gone in before:
            with pytest.raises(
                DonatedArray, match="this array was donated to a compiled function, which may write to "
            ):
                np.asarray(gone)
            with pytest.raises(DonatedArray):
                gone + 1
            with pytest.raises(DonatedArray):
                donating(gone, state[1], g)
            with pytest.raises(DonatedArray):
                plain(gone, state[1], g)
            assert gone.shape == (33, 21)


def test_rows_are_read_before_what_is_stored_in_their_place(device: str) -> None:
    """The first pass over a long row runs in the last one over the row before."""

    def norm(x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    x = np.random.default_rng(0).normal(size=(32, 16_400)).astype(np.float32)
    with kf.default_device(device):
        fn, given = kf.jit(norm, donate_argnums=0), kf.asarray(x.copy())
        assert device != "cpu" or "_early" in str(fn.lower(given).kernels[0].ir)
        np.testing.assert_allclose(fn(given), norm(x), rtol=1e-5, atol=1e-5)


def test_memory_is_the_argument_s() -> None:
    with kf.default_device("cpu"):
        step = kf.jit(momentum, donate_argnums=(0, 1))
        plan = step.lower(*(normal(200, 100),) * 3).plan
        assert plan.taken == (0, 1, None)
        assert [a.mode for a in plan.kernels[0].ir.args].count("inout") == 2
        p, m = normal(200, 100), normal(200, 100, seed=1)
        made = step(p, m, normal(200, 100))
        assert [address(made[0]), address(made[1])] == [address(p), address(m)]
        np.testing.assert_array_equal(made[0], p)
        for _ in range(4):  # by the entry, too
            made = step(made[0], made[1], normal(200, 100))
        where = {made[0]._buffer.handle.address, made[1]._buffer.handle.address}
        made = step(made[0], made[1], normal(200, 100))
        assert {made[0]._buffer.handle.address, made[1]._buffer.handle.address} == where


def test_explained() -> None:
    with kf.default_device("cpu"):
        found = kf.jit(momentum, donate_argnames=("p", "m")).explain(*(normal(20, 10),) * 3, measure=True)
    text = found.words()
    assert "in the memory of donated arguments: result 1 in p, result 2 in m\n" in text
    assert "  reads m (800 B), g (800 B), p (800 B); writes result 2 (800 B), result 1 (800 B)" in text
    assert "measured" in text


def test_what_numpy_sees_of_an_array_does_not_change(device: str) -> None:
    step = kf.jit(lambda x: x * 2 + 1, donate_argnums=0)
    mine = np.ones(5000, np.float32)
    x = kf.asarray(mine)
    seen = []
    for _ in range(6):
        x = step(x)
        view = np.asarray(x)
        seen.append((view, view.copy()))
    assert (mine == 1).all()
    for view, copy in seen:
        np.testing.assert_array_equal(view, copy)
    assert seen[-1][1][0] == 127


def test_what_cannot_be_donated(device: str) -> None:
    step = kf.jit(momentum, donate_argnames="m")
    p, m, g = (kf.asarray(normal(9, seed=k)) for k in range(3))
    for _ in range(3):
        with pytest.raises(CannotDonate) as refused:
            step(m, m, g)
        assert refused.value.text == (
            "m is donated and shares memory with another argument; "
            "pass a copy of it, or leave it out of donate_argnames"
        )
        _, m, _ = step(p, m, g)
    whole = normal(12)
    with pytest.raises(CannotDonate, match="shares memory"):
        step(whole[:9], whole[3:], g)
    both = kf.jit(momentum, donate_argnums=(0, 1))
    with pytest.raises(CannotDonate, match="m is donated and shares memory with p"):
        both(p, p, g)
    whole.flags.writeable = False
    with pytest.raises(CannotDonate, match="m is donated and is read-only; pass a copy of it"):
        step(p, whole[:9], g)
    assert p.sum().shape == m.sum().shape == ()
    with pytest.raises(UnknownParameter, match="donated argument 'q' is no parameter of momentum, which has p, m, g"):
        kf.jit(momentum, donate_argnames="q")


def test_names_that_cannot_be_donated() -> None:
    with pytest.raises(UnknownParameter, match=r"donated argument .xs. is no parameter of .*, which has no parameters"):
        kf.jit(lambda *xs: xs, donate_argnames="xs")
    with pytest.raises(InvalidParameter, match="jit: donate_argnames='x' is not valid; expected parameters that are n"):
        kf.jit(lambda x: x, static_argnames="x", donate_argnums=0)


def test_an_array_that_is_read_meanwhile_is_copied() -> None:
    """What a call without the GIL reads, a call of another thread does not overwrite."""
    with kf.default_device("cpu"):
        slow = kf.jit(lambda x: np.sin(np.exp(np.tanh(x))).sum())
        fill = kf.jit(lambda x: x * 0 - 5, donate_argnums=0)
        arrays = [fill(np.ones(1 << 20, np.float32)) for _ in range(14)]
        want = [float(slow(x)) for x in arrays[:3]]
        for x in arrays[3:]:
            started = threading.Event()
            made: list[float] = []

            def read(x: Any = x, started: threading.Event = started, made: list[float] = made) -> None:
                started.set()
                made.append(float(slow(x)))

            thread = threading.Thread(target=read)
            thread.start()
            started.wait()
            with contextlib.suppress(DonatedArray):
                fill(x)
            with contextlib.suppress(DonatedArray):
                thread.join()
            assert made in ([], [want[0]])


def test_small_results_stay_in_the_entry() -> None:
    with kf.default_device("cpu"):
        step = kf.jit(lambda x, y: (y + 1, x + 1), donate_argnums=(0, 1))
        x, y = step(normal(100), normal(100))
        for _ in range(4):
            x, y = step(x, y)
        depth = step._depth
        for _ in range(4):
            x, y = step(x, y)
        assert step._depth == depth
        seen = np.asarray(x)
        kept = seen.copy()
        step(x, y)
        np.testing.assert_array_equal(seen, kept)
        assert repr(x) == "Array(<donated>, shape=(100,), dtype=float32)"


def test_trees_numbers_and_names(device: str) -> None:
    def step(state: Any, rate: float, *, batch: Any) -> Any:
        return {"w": state["w"] - rate * batch, "n": state["n"] + 1}

    step = kf.jit(step, donate_argnames=("state", "rate"))
    state = {"w": kf.asarray(normal(7)), "n": kf.asarray(np.int64(0))}
    want = normal(7)
    for k in range(4):
        state = step(state, 0.5, batch=normal(7, seed=k))
        want = want - np.float32(0.5) * normal(7, seed=k)
    np.testing.assert_array_equal(state["w"], want)
    assert int(state["n"]) == 4
    old = state["w"]
    step(state, 0.5, batch=normal(7))
    with pytest.raises(DonatedArray):
        np.asarray(old)
    strided = normal(14)[::2]
    kept = strided.copy()
    made = step({"w": strided, "n": np.int64(3)}, 0.5, batch=normal(7))
    np.testing.assert_array_equal(strided, kept)
    np.testing.assert_array_equal(made["w"], kept - np.float32(0.5) * normal(7))


def test_inside_of_others_nothing_is_given() -> None:
    double = kf.jit(lambda x: 2 * x, donate_argnums=0)
    x = kf.asarray(normal(6))
    np.testing.assert_array_equal(kf.jit(lambda x: double(x) + x)(x), 3 * normal(6))
    np.testing.assert_array_equal(kf.grad(lambda x: double(x).sum())(x), np.full(6, 2, np.float32))
    np.testing.assert_array_equal(kf.vmap(double)(x), 2 * normal(6))
    np.testing.assert_array_equal(x, normal(6))


def test_pickled() -> None:
    step = pickle.loads(pickle.dumps(kf.jit(momentum, donate_argnames="m")))
    m = kf.asarray(normal(6))
    step(normal(6), m, normal(6))
    with pytest.raises(DonatedArray):
        np.asarray(m)


def test_memory_of_a_step() -> None:
    """A step of training makes nothing as large as its parameters beside them."""
    name = "mlp_step"
    with kf.default_device("cpu"):
        inputs = TABLE[name].inputs(0)
        state = range(3 * len(TRAINING_STEPS[name].shapes))
        plan = kf.jit(OWN[name], donate_argnums=state).lower(*inputs).plan
    assert plan.taken == (None, *state)
    assert plan.arena < sum(inputs[i].nbytes for i in state[: len(state) // 3]) * 1.1


def test_gradients_stand_where_values_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large value that a kernel reads last makes room for what it becomes."""

    def loss(x: Any, w: Any, v: Any) -> Any:
        return ((np.tanh(x @ w) @ v) ** 2).sum()

    args = normal(512, 512), normal(512, 2048), normal(2048, 512)
    arenas, found = [], []
    with kf.default_device("cpu"):
        for large in (1 << 62, donations.LARGE):
            monkeypatch.setattr(donations, "LARGE", large)
            forget()
            fn = kf.jit(kf.value_and_grad(loss, argnums=(0, 1)))
            plan = fn.lower(*args).plan
            arenas.append(plan.arena)
            found.append([np.asarray(x) for x in optree.tree_leaves(fn(*args))])
    assert sum(a.mode == "inout" for k in plan.kernels for a in k.ir.args) == 1
    assert arenas[1] < arenas[0] - 0.7 * 512 * 2048 * 4
    for got, want in zip(*found, strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_nothing_reads_is_written_all_the_same(device: str) -> None:
    """A loop's result that nobody wants is made where a value was, which the value made there since outlives."""

    def halvings(x: Any) -> Any:
        t = x @ x
        u = t @ x
        w = u[: x.shape[0] // 2] @ u
        _, n = kf.while_loop(lambda s: s[0].max() > 1, lambda s: (s[0] * np.float32(0.5), s[1] + 1), (u, 0))
        return w.T @ w * n

    n = 128 if device == "reference" else 512
    with kf.default_device(device):
        found = kf.jit(halvings)(2 * np.eye(n, dtype=np.float32))
    expected = np.zeros((n, n), np.float32)
    expected[range(n // 2), range(n // 2)] = 2.0**12 * 3
    np.testing.assert_array_equal(found, expected)


def test_one_of_two_threads_donates(device: str) -> None:
    with kf.default_device(device):
        fn = kf.jit(lambda x, y: (x + y, (x * y).sum()), donate_argnums=0)
        y = kf.asarray(np.ones(1 << 16, np.float32)) + 0
        for _ in range(4):  # by way of the entry from the third call on
            fn(y + 0, y)

        def called(x: Any, start: threading.Barrier) -> Any:
            with kf.default_device(device):
                start.wait()
                try:
                    return fn(x, y)[0]
                except DonatedArray:
                    return None

        with ThreadPoolExecutor(2) as pool:
            for k in range(40):
                x, start = y + np.float32(k), threading.Barrier(2)
                (made,) = (r for r in pool.map(called, (x, x), (start, start)) if r is not None)
                np.testing.assert_array_equal(made, np.full(1 << 16, k + 2, np.float32))


def test_equal_kernels_take_what_is_theirs(device: str) -> None:
    """Two kernels are one but for which of their outputs is made where which of their inputs was."""

    def both(p: Any, q: Any, z: Any) -> Any:
        return np.tanh(p) * q + z, p - q * z

    def fn(a: Any, b: Any, c: Any, d: Any, z: Any) -> Any:
        first = both(a, b, z)
        z = kf.cond(first[0][0, 0] > 0, lambda x: x.sum(), lambda x: -x.sum(), first[1])
        return *first, *both(d, c, z)

    args = [normal(9, 8, seed=k) for k in range(4)]
    with kf.default_device(device):
        expected = kf.jit(fn)(*args, np.float32(0.5))
        found = kf.jit(fn, donate_argnums=range(4))(*(kf.asarray(x) + 0 for x in args), np.float32(0.5))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_tree_is_updated_where_it_is() -> None:
    """Parts of a launch, each in its blocks of the grid, overwrite what they alone read, each found at once."""
    optimizer = optim.adam(1e-3)
    params = {f"w{k}": normal(8, 3 + k % 2, seed=k) for k in range(12)}
    state = optimizer.init(params)
    step = kf.jit(lambda p, s, g: optimizer.update(s, g, p), donate_argnums=(0, 1))
    with kf.default_device("cpu"):
        plan = step.lower(params, state, params).plan
        assert [a.mode for k in plan.kernels for a in k.ir.args].count("inout") == 36
        wanted = optree.tree_leaves(kf.jit(step.__wrapped__)(params, state, params))
        copies = optree.tree_map(np.array, (params, state))
        made = optree.tree_leaves(step(*copies, params))
    for got, want in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


HARD: list[tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = [
    (lambda c, a, b: c + a @ b, (normal(67, 129), normal(67, 33), normal(33, 129))),
    (lambda c, a, b: a @ b - c, (normal(130, 70), normal(130, 600), normal(600, 70))),
    (lambda a, b: a @ b, (normal(64, 64), normal(64, 64, seed=1))),
    (lambda a: a.T + a, (normal(40, 40),)),
    (lambda a: a[::-1] * 2, (normal(100),)),
    (lambda a: np.roll(a, 3) + a, (normal(1000),)),
    (lambda a: a - a.mean(1, keepdims=True), (normal(50, 300),)),
    (lambda a: a - a.mean(0), (normal(300, 50),)),
    (lambda a: a / a.sum(), (normal(9000),)),
    (lambda a: np.exp(a - a.max(-1, keepdims=True)) / np.exp(a - a.max(-1, keepdims=True)).sum(-1, keepdims=True),
     (normal(40, 1030),)),
    (lambda a: a.cumsum(1), (normal(20, 70),)),
    (lambda a: np.sort(a, 0), (normal(50, 7),)),
    (lambda a: (a, a + 1, a * 2), (normal(11),)),
    (lambda a, b: (b, a), (normal(11), normal(11, seed=1))),
    (lambda a, b: (a + b, a - b), (normal(5000), normal(5000, seed=1))),
    (lambda a, b: (b * 2, (a * b).sum(0)), (normal(64, 64), normal(64, 64, seed=1))),
    (lambda a: a.reshape(6, 50).T.reshape(300), (normal(300),)),
    (lambda a: np.concatenate([a[10:], a[:10]]), (normal(300),)),
    (lambda a: np.where(a > 0, a, a[::-1]), (normal(301),)),
    (lambda a, i: kf.numpy.asarray(a).at[i].add(1.0), (normal(40), np.array([3, 3, 0, 39]))),
    (lambda a, b: kf.scan(lambda c, x: (c * 0.5 + x, c + x), a, b)[0], (normal(8), normal(6, 8))),
    (lambda a: kf.while_loop(lambda c: (c < 100).all(), lambda c: c * 2 + 1, a), (np.ones(4, np.float32),)),
    (kf.nn.scaled_dot_product_attention, (normal(2, 40, 16),) * 3),
    (lambda x, w: kf.nn.conv2d(x, w, padding=1), (normal(2, 4, 9, 9), normal(4, 4, 3, 3))),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(HARD)))
def test_reads_elsewhere(case: int, device: str) -> None:
    fn, args = HARD[case]
    same(fn, [np.array(a) for a in args], ())


@pytest.mark.parametrize("program", [*PROGRAMS, *TRAINING], ids=lambda p: p.name)
def test_programs(program: Program) -> None:
    with kf.default_device("cpu"):
        same(program.fn, program.args, program.static)


def same(fn: Callable[..., Any], args: Any, static: tuple[str, ...]) -> None:
    """Check that a function gives the same bits with all its arguments donated."""
    arrays = [i for i, x in enumerate(args) if any(isinstance(leaf, np.ndarray) for leaf in optree.tree_leaves(x))]
    donating = kf.jit(fn, static_argnames=static, donate_argnums=arrays)
    copies = optree.tree_map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, args)
    wanted = optree.tree_leaves(kf.jit(fn, static_argnames=static)(*args))
    made = optree.tree_leaves(donating(*copies))
    for got, want in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("name", WITH_KERNEL)
def test_primitives(name: str) -> None:
    backend, prim = registry.backend("cpu"), PRIMITIVES[name]
    for graph, inputs in samples(prim, dtypes(prim)[-1]):
        wanted, _ = ran(graph, inputs, backend, frozenset())
        made, _ = ran(graph, inputs, backend, frozenset(range(len(inputs))))
        for got, want in zip(made, wanted, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_random_graphs(device: str) -> None:
    backend, taken, inside = registry.backend(device), 0, 0
    for seed in range(20, 50):
        graph, inputs = random_graph(seed)
        wanted, _ = ran(graph, inputs, backend, frozenset())
        made, plan = ran(graph, inputs, backend, frozenset(range(len(inputs))))
        taken += sum(t is not None for t in plan.taken)
        inside += sum(a.mode == "inout" for k in plan.kernels for a in k.ir.args)
        for got, want in zip(made, wanted, strict=True):
            np.testing.assert_array_equal(got, want)
    assert taken > inside > 15


def ran(graph: Graph, inputs: Sequence[Any], backend: Any, given: frozenset[int]) -> tuple[list[np.ndarray], Detailed]:
    plan = compile_graph(graph, backend, Config(), None, True, given)
    buffers = [upload(backend, np.array(a, order="C")) for a in inputs]
    assert isinstance(plan, Detailed)
    results = zip(plan.run(buffers), plan.graph.outputs, strict=True)
    return [np.array(download(b, 0, v.type.shape, v.type.dtype)) for b, v in results], plan


def overwrite(before: Kernel, output: str, given: str) -> Kernel | None:
    overwriting = Overwriting(before)
    return overwriting.made() if overwriting.tried(output, given) else None


def kernel(body: str, args: str = "in x: f32[12], out y: f32[12]") -> Kernel:
    return parse_kernel(f"kernel k({args}) {{\n{body}\n}}")


MAP = """  for grid i < 3 {
    for vector j < 4 {
      y[i * 4 + j] = x[i * 4 + j] * 2.0f32
    }
  }"""


@pytest.mark.parametrize(
    "body",
    [
        MAP,
        "for parallel i < 12 {\n let a = x[i]\n y[i] = a + a\n}",
        "for parallel i < 12 {\n let n = i + 0\n y[n] = x[i]\n}",
        "for parallel i < 12 {\n if lt(i, 9) {\n y[i] = x[i]\n}\n}\nfor parallel i < 3 {\n y[i + 9] = x[i + 9]\n}",
        """for parallel i < 3 {
             register s: f32[]
             s[] = 0.0f32
             for serial j < 4 {
               s[] += x[i * 4 + j]
             }
             for serial j < 4 {
               y[i * 4 + j] = x[i * 4 + j] / s[]
             }
           }""",
    ],
)
def test_overwritten(body: str) -> None:
    before = kernel(body)
    if (after := overwrite(before, "y", "x")) is None:
        assert "serial" in body  # each element is read in two loops
        return
    assert [(a.name, a.mode) for a in after.args] == [("x", "inout")]
    verify_kernel(after)
    assert parse_kernel(print_kernel(after)) == after
    x = np.linspace(-1, 2, 12, dtype=np.float32)
    one, two = {"x": x.copy(), "y": np.zeros_like(x)}, {"x": x.copy()}
    run_kernel(before, one, {})
    run_kernel(after, two, {})
    np.testing.assert_array_equal(one["y"], two["x"])


@pytest.mark.parametrize(
    "body",
    [
        "for parallel i < 12 {\n y[i] = x[11 - i]\n}",
        "for parallel i < 12 {\n y[i] = 1.0f32\n}\nfor parallel i < 12 {\n y[i] = x[i]\n}",
        "for parallel i < 12 {\n y[i] = 1.0f32\n z[i] = x[i]\n}",
        "for parallel i < 12 {\n y[i] = x[i]\n z[i] = x[i] + y[i]\n}",
        "for parallel i < 12 {\n y[i] = x[i]\n z[i] = 1.0f32\n}\nfor parallel i < 12 {\n z[i] = x[i]\n}",
        "for parallel i < 12 {\n z[i] = x[i]\n if lt(i, 9) {\n y[i] = 2.0f32\n}\n}",
        "for parallel i < 12 {\n y[i] += x[i]\n}",
        "for serial k < 2 {\n for parallel i < 12 {\n y[i] = x[i]\n}\n}",
    ],
)
def test_not_overwritten(body: str) -> None:
    assert overwrite(kernel(body, "in x: f32[12], out y: f32[12], out z: f32[12]"), "y", "x") is None


def test_places_that_data_finds_take_no_time() -> None:
    """A search in the places that another one found: what is named is looked at once, however often it is used."""
    lets = [f"let p{k} = p{k - 1} + t[p{k - 1}] * (t[p{k - 1} + 1] + p{k - 1})" for k in range(1, 200)]
    body = "\n".join(["for parallel i < 12 {", "let p0 = i + t[i]", *lets, "y[i] = x[i] + x[p199]", "}"])
    before = kernel(body, "in t: i64[64], in x: i64[12], out y: i64[12]")
    start = time.perf_counter()
    assert overwrite(before, "y", "x") is None
    assert time.perf_counter() - start < 2
    after = overwrite(kernel(body.replace(" + x[p199]", ""), "in t: i64[64], in x: i64[12], out y: i64[12]"), "y", "x")
    assert after is not None


def test_sizes_differ() -> None:
    assert overwrite(kernel(MAP, "in x: f32[13], out y: f32[12]"), "y", "x") is None


def test_text_after() -> None:
    after = overwrite(kernel(MAP), "y", "x")
    assert after is not None
    assert print_kernel(after) == "kernel k(inout x: f32[12]) {\n" + MAP.replace("y[", "x[") + "\n}"
