"""Optimisers: against formulas in float64 and PyTorch, the number of kernels, schedules, refusals."""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import ml_dtypes
import numpy as np
import optree
import pytest

import kernelforge as kf
from kernelforge import errors, optim

STEPS = 7
F32 = np.float32


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def tree(seed: int, dtype: Any = np.float64) -> dict[str, Any]:
    made = {"w": normal(6, 4, seed=seed), "b": normal(4, seed=seed), "c": [normal(3, 2, 2, seed=seed)]}
    return optree.tree_map(lambda x: x.astype(dtype), made)


def trained(optimizer: Any, params: Any, grads: list[Any]) -> Any:
    state = optimizer.init(params)
    for g in grads:
        params, state = optimizer.update(state, g, params)
    return params


def adam_moments(g, m, v, t, b1=0.9, b2=0.999, eps=1e-8):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return m, v, m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def by_hand(rule, p, grads):
    """Run a rule ``(g, p, state, t) -> (step, state)`` on one tensor."""
    state: Any = None
    for t, g in enumerate(grads, 1):
        step, state = rule(g, p, state, t)
        p = p - step
    return p


def _sgd(g, p, v, t):
    g = g + 0.01 * p
    v = g if v is None else 0.9 * v + g
    return 0.1 * (g + 0.9 * v), v


def _adam(g, p, s, t):
    m, v, d = adam_moments(g, *(s or (0, 0)), t)
    return 0.1 * d, (m, v)


def _adamw(g, p, s, t):
    m, v, d = adam_moments(g, *(s or (0, 0)), t)
    return 0.1 * (d + 0.05 * p), (m, v)


def _lamb(g, p, s, t):
    m, v, d = adam_moments(g, *(s or (0, 0)), t, eps=1e-6)
    d = d + 0.05 * p
    return 0.1 * np.linalg.norm(p) / np.linalg.norm(d) * d, (m, v)


def _rmsprop(g, p, s, t):
    v, mean, buf = s or (0, 0, 0)
    v, mean = 0.9 * v + 0.1 * g * g, 0.9 * mean + 0.1 * g
    buf = 0.8 * buf + g / (np.sqrt(v - mean**2) + 1e-8)
    return 0.1 * buf, (v, mean, buf)


def _adagrad(g, p, s, t):
    s = (0.1 if s is None else s) + g * g
    return 0.1 / (1 + (t - 1) * 0.2) * g / (np.sqrt(s) + 1e-10), s


def _lion(g, p, m, t):
    m = 0 * g if m is None else m
    return 0.1 * (np.sign(0.9 * m + 0.1 * g) + 0.05 * p), 0.99 * m + 0.01 * g


def _amsgrad(g, p, s, t):
    m, v, top = s or (0, 0, 0)
    g = 0.01 * p - g
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    top = np.maximum(top, v)
    return 0.1 * m / (1 - 0.9**t) / (np.sqrt(top / (1 - 0.99**t)) + 1e-8), (m, v, top)


def _adadelta(g, p, s, t):
    v, moved = s or (0, 0)
    v = 0.8 * v + 0.2 * g * g
    d = np.sqrt(moved + 1e-4) / np.sqrt(v + 1e-4) * g
    return 0.5 * d, (v, 0.8 * moved + 0.2 * d * d)


def _adamax(g, p, s, t):
    m, top = s or (0, 0)
    m, top = 0.9 * m + 0.1 * g, np.maximum(0.99 * top, np.abs(g) + 1e-8)
    return 0.1 / (1 - 0.9**t) * m / top, (m, top)


def _nadam(g, p, s, t):
    m, v, product = s or (0, 0, 1)
    now, after = (0.9 * (1 - 0.5 * 0.96 ** (k * 0.1)) for k in (t, t + 1))
    m, v, product = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g, product * now
    d = (1 - now) / (1 - product) * g + after / (1 - product * after) * m
    return 0.1 * (d / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.05 * p), (m, v, product)


def _radam(g, p, s, t):
    m, v = s or (0, 0)
    m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g * g
    longest = 2 / 0.1 - 1
    length = longest - 2 * t * 0.9**t / (1 - 0.9**t)
    d = m / (1 - 0.9**t)
    if length > 5:
        r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        d = d * np.sqrt(r) * np.sqrt(1 - 0.9**t) / (np.sqrt(v) + 1e-8)
    return 0.1 * d, (m, v)


def _rprop(g, p, s, t):
    before, size = s or (np.zeros_like(g), np.full_like(g, 0.1))
    size = np.clip(np.where(g * before > 0, 1.2 * size, np.where(g * before < 0, 0.5 * size, size)), 0.04, 0.15)
    g = np.where(g * before < 0, 0, g)
    return np.sign(g) * size, (g, size)


def _asgd(g, p, s, t):
    return 0.1 / (1 + 0.3 * 0.1 * (t - 1)) ** 0.5 * (g + 0.3 * p), None


def _adafactor(g, p, s, t):
    row, column = s or (0, 0)
    share = t**-0.5
    if g.ndim > 1:
        row = row + share * ((g * g).mean(-1, keepdims=True) - row)
        column = column + share * ((g * g).mean(-2, keepdims=True) - column)
        spread = row * column / row.mean(-2, keepdims=True)
    else:
        row = spread = row + share * (g * g - row)
    d = g / np.sqrt(spread)
    size = max(0.5, np.sqrt((p * p).mean())) / max(1.0, np.sqrt((d * d).mean()) / 1.5)
    return min(0.4, t**-0.5) * size * d + 0.4 * 0.1 * p, (row, column)


def _adabelief(g, p, s, t):
    m, v = s or (0, 0)
    m = 0.8 * m + 0.2 * g
    v = 0.9 * v + 0.1 * (g - m) ** 2 + 1e-6
    return 0.1 * m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6), (m, v)


def _oadam(g, p, s, t):
    m, v, before = s or (0, 0, 0)
    m, v, d = adam_moments(g, m, v, t, 0.5, 0.9)
    return 0.2 * d - before, (m, v, 0.1 * d)


RULES = {
    "sgd": (optim.sgd(0.1, momentum=0.9, weight_decay=0.01, nesterov=True), _sgd,
            lambda o, p: o.SGD(p, 0.1, 0.9, weight_decay=0.01, nesterov=True)),
    "adam": (optim.adam(0.1), _adam, lambda o, p: o.Adam(p, 0.1)),
    "adamw": (optim.adamw(0.1, weight_decay=0.05), _adamw, lambda o, p: o.AdamW(p, 0.1, weight_decay=0.05)),
    "lamb": (optim.lamb(0.1, weight_decay=0.05), _lamb, None),
    "rmsprop": (optim.rmsprop(0.1, alpha=0.9, momentum=0.8, centered=True), _rmsprop,
                lambda o, p: o.RMSprop(p, 0.1, 0.9, momentum=0.8, centered=True)),
    "adagrad": (optim.adagrad(0.1, lr_decay=0.2, initial_accumulator_value=0.1), _adagrad,
                lambda o, p: o.Adagrad(p, 0.1, lr_decay=0.2, initial_accumulator_value=0.1)),
    "lion": (optim.lion(0.1, weight_decay=0.05), _lion, None),
    "amsgrad": (optim.adam(0.1, (0.9, 0.99), weight_decay=0.01, amsgrad=True, maximize=True), _amsgrad,
                lambda o, p: o.Adam(p, 0.1, (0.9, 0.99), weight_decay=0.01, amsgrad=True, maximize=True)),
    "adadelta": (optim.adadelta(0.5, 0.8, 1e-4), _adadelta, lambda o, p: o.Adadelta(p, 0.5, 0.8, 1e-4)),
    "adamax": (optim.adamax(0.1, (0.9, 0.99)), _adamax, lambda o, p: o.Adamax(p, 0.1, (0.9, 0.99))),
    "nadam": (optim.nadam(0.1, (0.9, 0.99), 1e-8, 0.05, 0.1, True), _nadam,
              lambda o, p: o.NAdam(p, 0.1, (0.9, 0.99), 1e-8, 0.05, 0.1, True)),
    "radam": (optim.radam(0.1, (0.9, 0.9)), _radam, lambda o, p: o.RAdam(p, 0.1, (0.9, 0.9))),
    "rprop": (optim.rprop(0.1, step_sizes=(0.04, 0.15)), _rprop,
              lambda o, p: o.Rprop(p, 0.1, step_sizes=(0.04, 0.15))),
    "asgd": (optim.asgd(0.1, 0.3, 0.5), _asgd, lambda o, p: o.ASGD(p, 0.1, 0.3, 0.5)),
    "adabelief": (optim.adabelief(0.1, (0.8, 0.9), 1e-6), _adabelief, None),
    "oadam": (optim.oadam(0.1), _oadam, None),
    "adafactor": (optim.adafactor(0.4, -0.5, (None, 0.5), 1.5, 0.1), _adafactor,
                  lambda o, p: o.Adafactor(p, 0.4, -0.5, (None, 0.5), 1.5, 0.1)),
}  # fmt: skip
GRADS = [tree(10 + i) for i in range(STEPS)]


@pytest.mark.parametrize("name", RULES)
def test_formula(name: str) -> None:
    optimizer, rule, _ = RULES[name]
    found = optree.tree_leaves(trained(optimizer, tree(1), GRADS))
    rows = [optree.tree_leaves(g) for g in GRADS]
    for i, (mine, start) in enumerate(zip(found, optree.tree_leaves(tree(1)), strict=True)):
        np.testing.assert_allclose(mine, by_hand(rule, start, [row[i] for row in rows]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in RULES if RULES[n][2]])
def test_pytorch(name: str) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    torch = importlib.import_module("torch")
    params = [torch.tensor(x, requires_grad=True) for x in optree.tree_leaves(tree(1))]
    theirs: Any = RULES[name][2]
    optimizer = theirs(torch.optim, params)
    for g in GRADS:
        for p, leaf in zip(params, optree.tree_leaves(g), strict=True):
            p.grad = torch.tensor(leaf)
        optimizer.step()
    found = optree.tree_leaves(trained(RULES[name][0], tree(1), GRADS))
    for mine, other in zip(found, params, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_muon_makes_steps_orthogonal() -> None:
    params, grads = tree(1), [tree(9)]
    optimizer = optim.muon(0.1, weight_decay=0.0, others=optim.sgd(0.2))
    made = trained(optimizer, params, grads)
    step = (params["w"] - np.asarray(made["w"])) / 0.1 / math.sqrt(6 / 4)
    sizes = np.linalg.svd(step, compute_uv=False)
    assert sizes.min() > 0.5
    assert sizes.max() < 1.3
    # the singular vectors are the gradient's
    u, _, vt = np.linalg.svd(grads[0]["w"], full_matrices=False)
    around = u.T @ step @ vt.T
    np.testing.assert_allclose(around - np.diag(np.diag(around)), 0, atol=1e-6)
    np.testing.assert_allclose(made["b"], params["b"] - 0.2 * grads[0]["b"], rtol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (8, 32)])
def test_muon_is_pytorchs_but_for_bf16(shape: tuple[int, int]) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    torch = importlib.import_module("torch")
    start, grads = normal(*shape), [{"w": normal(*shape, seed=i)} for i in range(1, 5)]
    p = torch.tensor(start, requires_grad=True)
    theirs = torch.optim.Muon([p], lr=0.1)
    for g in grads:
        p.grad = torch.tensor(g["w"])
        theirs.step()
    np.testing.assert_allclose(trained(optim.muon(0.1), {"w": start}, grads)["w"], p.detach().numpy(), atol=1e-2)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adagrad", "lion"])
def test_one_kernel_for_each_dtype(name: str) -> None:
    optimizer = RULES[name][0]
    params, grads = tree(1, F32), tree(2, F32)
    assert len(kf.jit(optimizer.update).lower(optimizer.init(params), grads, params).kernels) == 1
    narrow, wide = ({"f32": t, "other": tree(i, np.float16)} for i, t in ((1, params), (2, grads)))
    assert len(kf.jit(optimizer.update).lower(optimizer.init(narrow), wide, narrow).kernels) == 1, "f16 goes with f32"
    params, grads = ({"f32": t, "other": tree(i)} for i, t in ((1, params), (2, grads)))
    assert len(kf.jit(optimizer.update).lower(optimizer.init(params), grads, params).kernels) <= 2


def test_dtypes_are_kept() -> None:
    params = {"f32": tree(1, F32), "f16": tree(1, np.float16)}
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(optim.cosine(1e-3, 10)))
    state = optimizer.init(params)
    made, after = optimizer.update(state, params, params)
    for old, new in zip(optree.tree_leaves((params, state)), optree.tree_leaves((made, after)), strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape)


@pytest.mark.parametrize("make", [optim.lamb, optim.muon])
def test_norms_of_narrow_floats_do_not_overflow(make: Any) -> None:
    p = np.full((64, 64), 8.0, np.float16)
    optimizer = make(0.5, eps=1e-3, weight_decay=0.0)
    moved, _ = optimizer.update(optimizer.init(p), np.full_like(p, 100), p)
    assert np.isfinite(np.asarray(moved)).all()
    assert np.asarray(moved).astype(float).mean() < 7.999


def test_schedules() -> None:
    counts = np.arange(25)
    cases = [
        (optim.constant(0.5), [0.5 for _ in counts]),
        (optim.step(0.5, 7, 0.1), [0.5 * 0.1 ** (t // 7) for t in counts]),
        (optim.piecewise(0.5, (3, 9), 0.2), [0.5 * 0.2 ** (int(t >= 3) + int(t >= 9)) for t in counts]),
        (optim.exponential(0.5, 0.9), [0.5 * 0.9**t for t in counts]),
        (optim.cosine(0.5, 20, 0.1), [0.1 + 0.2 * (1 + math.cos(math.pi * min(t / 20, 1))) for t in counts]),
        (optim.warmup(optim.cosine(0.5, 10), 5),
         [0.5 * 0.5 * (1 + math.cos(math.pi * min(max(t - 5, 0) / 10, 1))) * min(t / 5, 1) for t in counts]),
        (optim.constant(0.5, 0.2, 4), [0.1 if t < 4 else 0.5 for t in counts]),
        (optim.linear(0.5, 10, 0.2, 0.8), [0.1 + 0.3 * min(t / 10, 1) for t in counts]),
        (optim.polynomial(0.5, 10, 2), [0.5 * max(1 - t / 10, 0) ** 2 for t in counts]),
        (optim.cosine_restarts(0.5, 5, end=0.1), [0.1 + 0.2 * (1 + math.cos(math.pi * (t % 5) / 5)) for t in counts]),
        (optim.cosine_restarts(0.5, 1, 3), [0.25 * (1 + math.cos(math.pi * x)) for x in
                                            (0, *(k / 3 for k in range(3)), *(k / 9 for k in range(9)),
                                             *(k / 27 for k in range(12)))]),
        (optim.cyclic(0.1, 0.5, 3, 5, "triangular2"),
         [0.1 + 0.4 / 2 ** (t // 8) * (t % 8 / 3 if t % 8 <= 3 else (8 - t % 8) / 5) for t in counts]),
        (optim.cyclic(0.1, 0.5, 4, mode="exp_range", gamma=0.9),
         [0.1 + 0.4 * 0.9**t * (1 - abs(t % 8 - 4) / 4) for t in counts]),
        (optim.sequential((optim.linear(0.5, 5, 0.0), optim.exponential(0.5, 0.9)), (5,)),
         [0.1 * t if t < 5 else 0.5 * 0.9 ** (t - 5) for t in counts]),
    ]  # fmt: skip
    for schedule, expected in cases:
        found = [float(kf.jit(schedule)(np.int32(t))) for t in counts]
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


def test_what_an_optimiser_or_a_schedule_does_not_take() -> None:
    for make, name in (
        (lambda: optim.sgd(0.1, nesterov=True), "nesterov"),
        (lambda: optim.sgd(0.1, 0.9, 0.1, nesterov=True), "nesterov"),
        (lambda: optim.muon(adjust_lr_fn="mine"), "adjust_lr_fn"),
        (lambda: optim.cyclic(0.1, 0.5, mode="square"), "mode"),
        (lambda: optim.sequential((optim.constant(0.1),), (5,)), "boundaries"),
    ):
        with pytest.raises(errors.InvalidParameter, match=name):
            make()


def test_the_mean_of_where_parameters_were() -> None:
    optimizer = optim.asgd(0.1, t0=3)
    params, state, seen = {"w": np.ones(2)}, optimizer.init({"w": np.ones(2)}), []
    for k in range(7):
        params, state = optimizer.update(state, {"w": np.array([1.0, k])}, params)
        seen.append(np.asarray(params["w"]))
    np.testing.assert_allclose(state["average"]["w"], np.mean(seen[4:], axis=0), rtol=1e-12)


def test_rates_of_f64_are_f64() -> None:
    params, grads = {"w": normal(5)}, [{"w": normal(5, seed=i)} for i in range(STEPS)]
    found = trained(optim.adam(0.1), params, grads)["w"]
    np.testing.assert_allclose(found, by_hand(_adam, params["w"], [g["w"] for g in grads]), rtol=1e-13, atol=1e-14)


def test_one_cycle_is_pytorchs() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    torch = importlib.import_module("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=20)
    ours = kf.jit(optim.one_cycle(0.5, 20))
    for t in range(20):
        np.testing.assert_allclose(float(ours(np.int32(t))), optimizer.param_groups[0]["lr"], rtol=1e-4, atol=1e-7)
        optimizer.step()
        theirs.step()


def test_a_schedule_compiles_once() -> None:
    traces = []

    def rate(count):
        traces.append(count)
        return optim.cosine(0.1, 5)(count)

    trained(optim.adam(rate), tree(1), GRADS)
    assert len(traces) == 2  # once for NumPy's arrays, once for the results of the step before


def test_clipping() -> None:
    grads = tree(3)
    norm = math.sqrt(sum((g**2).sum() for g in optree.tree_leaves(grads)))
    np.testing.assert_allclose(float(kf.jit(optim.global_norm)(grads)), norm)
    plain = optim.sgd(1.0)
    for part, scaled in (
        (optim.clip_by_global_norm(0.5), lambda g: g * 0.5 / (norm + 1e-6)),
        (optim.clip_by_global_norm(2 * norm), lambda g: g),
        (optim.clip_by_value(0.3), lambda g: np.clip(g, -0.3, 0.3)),
    ):
        made = trained(optim.chain(part, plain), tree(1), [grads])
        for new, old, g in zip(*(optree.tree_leaves(t) for t in (made, tree(1), grads)), strict=True):
            np.testing.assert_allclose(new, old - scaled(g), rtol=1e-12, atol=1e-12)


def test_another_structure_is_refused() -> None:
    optimizer = optim.adam(0.1)
    params = tree(1)
    with pytest.raises(errors.TreeMismatch, match="update: grads has the structure"):
        optimizer.update(optimizer.init(params), {"w": params["w"]}, params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
def test_narrow_parameters_move_as_wide_ones(dtype: Any) -> None:
    """Squares of small gradients and eps have no room in f16: the state and the step are f32."""
    params = {"w": np.array([1.0, -0.5, 0.25, 1.0], dtype)}
    grads = {"w": np.array([0.0, 1e-6, -1e-3, 100.0], dtype)}
    rules = (optim.adam, optim.adamw, optim.lamb, optim.rmsprop, optim.adagrad, optim.lion, optim.sgd)
    for rule in rules:
        moved = {}
        for kind in (dtype, F32):
            cast = [optree.tree_map(lambda x, kind=kind: x.astype(kind), t) for t in (params, grads)]
            moved[kind] = np.asarray(trained(rule(1e-2), cast[0], cast[1:])["w"])
        assert moved[dtype].dtype == dtype
        np.testing.assert_array_equal(moved[dtype], moved[F32].astype(dtype), err_msg=rule.__name__)


def rosenbrock(params: Any) -> Any:
    x = params["x"]
    return ((1 - x[:-1]) ** 2).sum() + 100 * ((x[1:] - x[:-1] ** 2) ** 2).sum()


START = {"x": np.linspace(-1, 1.3, 6)}


def minimised(options: dict[str, Any], start: Any, updates: int) -> tuple[Any, Any, list[float]]:
    optimizer, params, values = optim.lbfgs(**options), start, []
    state = optimizer.init(params)
    step = kf.jit(lambda params, state: optimizer.update(state, rosenbrock, params))
    for _ in range(updates):
        params, state, value = step(params, state)
        values.append(float(value))
    return params, state, values


def test_lbfgs_finds_the_bottom_of_a_valley() -> None:
    params, state, values = minimised({"line_search_fn": "strong_wolfe"}, START, 4)
    np.testing.assert_allclose(params["x"], 1, atol=1e-4)
    assert values == sorted(values, reverse=True)
    assert state["evaluations"] < 70


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 1e-3}, {"lr": 0.3, "max_iter": 1}, {"lr": 0.05, "max_iter": 4, "history_size": 2},
        {"line_search_fn": "strong_wolfe"}, {"line_search_fn": "strong_wolfe", "history_size": 3, "max_iter": 7},
        {"line_search_fn": "strong_wolfe", "max_eval": 6}, {"line_search_fn": "strong_wolfe", "tolerance_grad": 30},
    ],
)  # fmt: skip
def test_lbfgs_is_pytorchs(options: dict[str, Any]) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    torch = importlib.import_module("torch")
    x = torch.tensor(START["x"], requires_grad=True)
    theirs = torch.optim.LBFGS([x], **options)

    def closure() -> Any:
        theirs.zero_grad()
        loss = rosenbrock({"x": x})
        loss.backward()
        return loss

    values = [theirs.step(closure).item() for _ in range(5)]
    params, state, found = minimised(options, START, 5)
    np.testing.assert_allclose(found, values, rtol=1e-8)
    np.testing.assert_allclose(params["x"], x.detach().numpy(), rtol=1e-8)
    assert state["evaluations"] == theirs.state[x]["func_evals"]


def test_lbfgs_of_a_tree_of_dtypes() -> None:
    a = normal(8, 3)
    start = {"w": np.zeros(3, np.float32), "b": [np.zeros((), np.float16)]}
    optimizer = optim.lbfgs(lr=optim.constant(1.0), line_search_fn="strong_wolfe")

    def loss(params: Any) -> Any:
        return ((a.astype(np.float32) @ params["w"] + params["b"][0] - np.float32(1)) ** 2).sum()

    params, _, first = optimizer.update(optimizer.init(start), loss, start)
    assert [x.dtype for x in optree.tree_leaves(params)] == [np.float16, np.float32]
    best = np.linalg.lstsq(np.c_[a, np.ones(8)], np.ones(8), rcond=None)[0]
    assert first == 8
    np.testing.assert_allclose(params["w"], best[:3], atol=1e-2)
    np.testing.assert_allclose(params["b"][0], best[3], atol=1e-2)


METRICS = [5.0, 4.0, 4.0, 3.9999, 4.5, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, -1.0, -1.0]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"patience": 1}, {"patience": 1, "cooldown": 2, "factor": 0.5}, {"patience": 0, "min_lr": 0.02},
        {"mode": "max", "patience": 1}, {"patience": 0, "threshold": 0.5, "threshold_mode": "abs", "eps": 0.02},
        {"mode": "max", "patience": 2, "threshold": 0.5, "threshold_mode": "abs"},
    ],
)  # fmt: skip
def test_a_plateau_lowers_the_rate_as_pytorchs(options: dict[str, Any]) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    torch = importlib.import_module("torch")
    owner = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(owner, **options)
    mine = optim.plateau(0.3, **options)
    state = mine.init()
    for metric in METRICS:
        theirs.step(metric)
        state = mine.update(state, np.float32(metric))
        np.testing.assert_allclose(state["rate"], owner.param_groups[0]["lr"], rtol=1e-6)


def test_a_rate_of_a_plateau_is_an_optimisers() -> None:
    falling = optim.plateau(0.5, patience=0)

    @kf.jit
    def step(params: Any, state: Any, rate: Any, grads: Any) -> Any:
        rate = falling.update(rate, np.float32(1))
        return *optim.sgd(rate["rate"]).update(state, grads, params), rate

    params, state, rate = np.ones(3), optim.sgd(0.5).init(np.ones(3)), falling.init()
    for expected in (0.5, 0.45, 0.445):
        params, state, rate = step(params, state, rate, np.ones(3))
        np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_what_lbfgs_and_a_plateau_do_not_take() -> None:
    for make, match in (
        (lambda: optim.lbfgs(line_search_fn="armijo"), "expected strong_wolfe or None"),
        (lambda: optim.lbfgs(history_size=0), "history_size=0"),
        (lambda: optim.lbfgs(max_iter=0), "max_iter=0"),
        (lambda: optim.plateau(0.1, "least"), "expected min or max"),
        (lambda: optim.plateau(0.1, threshold_mode="share"), "expected rel or abs"),
    ):
        with pytest.raises(errors.InvalidParameter, match=match):
            make()


def test_accumulated_gradients_are_one_of_their_mean() -> None:
    optimizer = optim.accumulate(optim.adam(0.1), 3)
    found = trained(optimizer, tree(1), GRADS)  # two steps, and one gradient that waits
    means = [optree.tree_map(lambda *g: sum(g) / 3, *GRADS[i : i + 3]) for i in (0, 3)]
    for f, w in zip(*map(optree.tree_leaves, (found, trained(optim.adam(0.1), tree(1), means))), strict=True):
        np.testing.assert_allclose(f, w, rtol=1e-12)
    narrow = tree(1, np.float16)
    waiting, state = optimizer.update(optimizer.init(narrow), tree(2, np.float16), narrow)
    assert all((f == w).all() for f, w in zip(*map(optree.tree_leaves, (waiting, narrow)), strict=True))
    assert state["seen"] == 1
    assert state["sum"]["w"].dtype == np.float32
    with pytest.raises(errors.InvalidParameter, match="count=0"):
        optim.accumulate(optim.adam(), 0)
