"""Distributions of random numbers: their laws, choices, and what makes none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.stats as st

import kernelforge as kf
from kernelforge import errors
from kernelforge.functions import result
from kernelforge.random.truncated import normal_quantile
from kernelforge.trace import to_sym

R = kf.random
N = 40_000
KEY = R.key(2024)

CONTINUOUS: list[tuple[str, Callable[..., Any], Any]] = [
    ("uniform", lambda k, t: R.uniform(k, (N,), t, -2.0, 3.0), st.uniform(-2, 5)),
    ("normal", lambda k, t: R.normal(k, (N,), t), st.norm()),
    ("exponential", lambda k, t: R.exponential(k, (N,), t), st.expon()),
    ("gumbel", lambda k, t: R.gumbel(k, (N,), t), st.gumbel_r()),
    ("truncated", lambda k, t: R.truncated_normal(k, -0.5, 2.0, (N,), t), st.truncnorm(-0.5, 2)),
    ("tail", lambda k, t: R.truncated_normal(k, 3.0, 5.0, (N,), t), st.truncnorm(3, 5)),
    ("gamma 0.3", lambda k, t: R.gamma(k, 0.3, (N,), t), st.gamma(0.3)),
    ("gamma 1", lambda k, t: R.gamma(k, 1.0, (N,), t), st.gamma(1)),
    ("gamma 4.5", lambda k, t: R.gamma(k, 4.5, (N,), t), st.gamma(4.5)),
    ("laplace", lambda k, t: R.laplace(k, (N,), t), st.laplace()),
    ("logistic", lambda k, t: R.logistic(k, (N,), t), st.logistic()),
    ("lognormal", lambda k, t: R.lognormal(k, 0.3, (N,), t), st.lognorm(0.3)),
    ("pareto", lambda k, t: R.pareto(k, 9.0, (N,), t), st.pareto(9)),
    ("rayleigh", lambda k, t: R.rayleigh(k, 2.0, (N,), t), st.rayleigh(scale=2)),
    ("weibull", lambda k, t: R.weibull_min(k, 2.0, 1.5, (N,), t), st.weibull_min(1.5, scale=2)),
    ("triangular", lambda k, t: R.triangular(k, -1.0, 0.0, 3.0, (N,), t), st.triang(0.25, -1, 4)),
    ("corner", lambda k, t: R.triangular(k, 0.0, 0.0, 1.0, (N,), t), st.triang(0)),
    ("loggamma", lambda k, t: R.loggamma(k, 1.7, (N,), t), st.loggamma(1.7)),
    ("beta", lambda k, t: R.beta(k, 0.5, 2.0, (N,), t), st.beta(0.5, 2)),
    ("chisquare", lambda k, t: R.chisquare(k, 3.0, (N,), t), st.chi2(3)),
    ("t", lambda k, t: R.t(k, 9.0, (N,), t), st.t(9)),
]

COUNTS: list[tuple[str, Callable[..., Any], Any]] = [
    ("poisson 0.2", lambda k, t: R.poisson(k, t(0.2), (N,)), st.poisson(np.float32(0.2))),
    ("poisson 9.9", lambda k, t: R.poisson(k, t(9.9), (N,)), st.poisson(9.9)),
    ("poisson 10", lambda k, t: R.poisson(k, t(10), (N,)), st.poisson(10)),
    ("poisson 300", lambda k, t: R.poisson(k, t(300), (N,)), st.poisson(300)),
    ("poisson 1e6", lambda k, t: R.poisson(k, t(1e6), (N,)), st.poisson(1e6)),
    ("binomial 10, 0.3", lambda k, t: R.binomial(k, t(10), t(0.3), (N,)), st.binom(10, 0.3)),
    ("binomial 40, 0.5", lambda k, t: R.binomial(k, t(40), t(0.5), (N,)), st.binom(40, 0.5)),
    ("binomial 1000, 0.97", lambda k, t: R.binomial(k, t(1000), t(0.97), (N,)), st.binom(1000, 0.97)),
    ("binomial 1e5, 0.2", lambda k, t: R.binomial(k, t(1e5), t(0.2), (N,)), st.binom(10**5, 0.2)),
    ("geometric 0.2", lambda k, t: R.geometric(k, t(0.2), (N,)), st.geom(0.2)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("name", "draw", "law"), CONTINUOUS, ids=[c[0] for c in CONTINUOUS])
def test_continuous(name: str, draw: Any, law: Any, dtype: Any) -> None:
    x = np.asarray(kf.jit(lambda k: draw(k, dtype))(KEY))
    assert x.dtype == dtype
    assert np.isfinite(x).all()
    assert st.kstest(x, law.cdf).pvalue > 1e-3
    spread = law.std() / np.sqrt(N)
    assert abs(x.mean(dtype=np.float64) - law.mean()) < 4 * spread
    assert abs(x.var(dtype=np.float64) / law.var() - 1) < 0.1


def _agree(counts: np.ndarray, law: Any) -> bool:
    """Compare counts with a law's, in about 20 bins."""
    edges = np.unique(law.ppf(np.linspace(0, 1, 22)[1:-1]))
    shares = np.diff([0, *law.cdf(edges), 1])
    found = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
    filled = shares > 1e-9
    assert not found[~filled].any()
    return filled.sum() == 1 or _even(found[filled], N * shares[filled])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("name", "draw", "law"), COUNTS, ids=[c[0] for c in COUNTS])
def test_counts(name: str, draw: Any, law: Any, dtype: Any) -> None:
    x = np.asarray(draw(KEY, dtype))
    assert x.dtype == np.int32
    assert _agree(x, law)
    assert abs(x.mean() - law.mean()) <= 4 * law.std() / np.sqrt(N)


def test_counts_of_all_sizes_at_once() -> None:
    means = np.array([0, 1e-3, 3, 9.99, 10, 77, 1e9, 1e12], np.float32)
    found = np.asarray(kf.jit(lambda k, m: R.poisson(k, m, (1000, 8)))(KEY, means))
    assert (found[:, 0] == 0).all()
    assert (found[:, -1] == np.int32(2147483520)).all()  # the largest that is a float
    np.testing.assert_allclose(found[:, 2:7].mean(0), means[2:7], rtol=0.05)
    chances = np.array([0, 1e-9, 0.3, 0.5, 0.99, 1], np.float32)
    found = np.asarray(kf.jit(lambda k, p: R.binomial(k, 50, p, (1000, 6)))(KEY, chances))
    assert (found[:, 0] == 0).all()
    assert (found[:, -1] == 50).all()
    np.testing.assert_allclose(found.mean(0), 50 * chances, rtol=0.05, atol=1e-6)
    wrong = np.array([-1, np.nan], np.float32)
    np.testing.assert_array_equal(kf.jit(R.poisson)(KEY, wrong), -1)
    np.testing.assert_array_equal(kf.jit(R.binomial)(KEY, 5, wrong), -1)
    np.testing.assert_array_equal(R.binomial(KEY, 0, 0.5, (3,)), 0)
    np.testing.assert_array_equal(R.geometric(KEY, 1.0, (3,)), 1)


def test_small_parameters_leave_no_nan() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        x = np.asarray(R.beta(KEY, 1e-3, 1e-3, (2000,), dtype), np.float64)
        assert ((x >= 0) & (x <= 1)).all()
        assert abs(x.mean() - 0.5) < 0.05
    shares = np.asarray(R.dirichlet(KEY, np.full(5, 1e-3), (500,)))
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    assert np.isfinite(np.asarray(R.loggamma(KEY, 1e-3, (1000,)))).all()
    x = np.asarray(R.cauchy(KEY, (N,)))
    assert st.kstest(x, "cauchy").pvalue > 1e-3
    assert st.kstest(np.asarray(R.t(KEY, 0.7, (N,), np.float64)), st.t(0.7).cdf).pvalue > 1e-3


def test_dirichlet() -> None:
    alpha = np.array([[0.5, 2.0, 3.5], [1.0, 1.0, 1.0]])
    x = np.asarray(R.dirichlet(KEY, alpha, (20_000, 2)))
    np.testing.assert_allclose(x.mean(0), alpha / alpha.sum(1, keepdims=True), atol=0.01)
    assert st.kstest(x[:, 0, 1], st.beta(2, 4).cdf).pvalue > 1e-3
    assert R.dirichlet(KEY, alpha).shape == (2, 3)


def test_vectors_and_rotations() -> None:
    cov = np.array([[2.0, -0.7], [-0.7, 0.5]])
    x = np.asarray(R.multivariate_normal(KEY, np.array([1.0, -3.0]), cov, (N,)))
    np.testing.assert_allclose(x.mean(0), [1, -3], atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.05)
    traced = kf.jit(lambda k: R.multivariate_normal(k, np.zeros((4, 2)), cov, dtype=np.float64))(KEY)
    assert (traced.shape, traced.dtype) == ((4, 2), np.float64)
    with pytest.raises(errors.ShapeMismatch, match=r"shapes \(3,\) and \(2, 2\) do not fit"):
        R.multivariate_normal(KEY, np.zeros(3), cov)
    q = np.asarray(R.orthogonal(KEY, 4, (500,), np.float64))
    np.testing.assert_allclose(q @ q.transpose(0, 2, 1), np.broadcast_to(np.eye(4), q.shape), atol=1e-12)
    assert abs(q[:, 0, 0].mean()) < 0.1  # without the signs these would all be negative
    assert abs((np.linalg.det(q) > 0).mean() - 0.5) < 0.1
    np.testing.assert_array_equal(np.abs(np.asarray(R.orthogonal(KEY, 1, (9,)))), 1)


def test_choices() -> None:
    names = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    even = np.asarray(R.choice(KEY, 5, (N,)))
    assert _even(np.bincount(even, minlength=5))
    p = np.array([0.0, 3.0, 1.0])
    found = np.asarray(R.choice(KEY, 3, (N,), p=p))
    assert _even(np.bincount(found, minlength=3)[1:], N * np.array([0.75, 0.25]))
    np.testing.assert_array_equal(R.choice(KEY, names, (2, 4), p=p), names[np.asarray(R.choice(KEY, 3, (2, 4), p=p))])
    assert R.choice(KEY, names, (5, 7), axis=1).shape == (3, 5, 7)
    assert np.asarray(R.choice(KEY, names)).tolist() in names.tolist()
    without = np.asarray(R.choice(KEY, 100, (10, 9), replace=False))
    assert len({*without.flat}) == 90
    assert {*np.asarray(R.choice(KEY, 3, (2,), False, p)).tolist()} == {1, 2}
    first = [int(np.asarray(R.choice(k, 3, (2,), False, p))[0]) for k in np.asarray(R.split(KEY, 1000))]
    assert _even(np.bincount(first, minlength=3)[1:], [750, 250])
    traced = kf.jit(lambda k, p: R.choice(k, 3, (8,), p=p))(KEY, p)
    np.testing.assert_array_equal(traced, R.choice(KEY, 3, (8,), p=p))
    assert R.choice(KEY, 0, (0,)).shape == (0,)


NOTHING_TO_CHOOSE: list[tuple[Callable[[], Any], str]] = [
    (lambda: R.choice(KEY, 0), "random.choice: a=0 is not valid; expected at least 1 to choose from"),
    (lambda: R.choice(KEY, -5), "random.choice: a=-5 is not valid; expected 0 or more, or an array"),
    (lambda: R.choice(KEY, 3, (4,), False), "a=3 is not valid; expected at least 4 to choose from"),
    (lambda: R.choice(KEY, 3, (2,), False, np.array([0, 0, 1.0])), "a=1 is not valid; expected at least 2"),
    (lambda: R.choice(KEY, 3, p=np.array([0.5, -0.5, 1])), "p=-0.5 is not valid; expected probabilities of 0 or more"),
    (lambda: R.choice(KEY, 3, p=np.ones(2)), r"shapes \(2,\) do not fit; expected one probability for each of 3"),
    (lambda: R.poisson(KEY, -1.0), "random.poisson: lam=-1.0 is not valid; expected 0 or more"),
    (lambda: R.poisson(KEY, np.inf), "random.poisson: lam=inf is not valid; expected 0 or more, and finite"),
    (lambda: R.binomial(KEY, np.nan, 0.5), "random.binomial: n=nan is not valid; expected 0 or more, and finite"),
    (lambda: R.choice(KEY, 2, p=np.array([np.nan, 1])), "p=nan is not valid; expected probabilities of 0 or more"),
    (lambda: R.gamma(KEY), r"random.gamma\(u32\[2\]\): missing a required argument: 'a'; its parameters are \(key, a,"),
    (lambda: R.binomial(KEY, 3, 1.5), "random.binomial: p=1.5 is not valid; expected a probability, from 0 to 1"),
    (lambda: R.geometric(KEY, 0.0), "random.geometric: p=0.0 is not valid; expected a probability above 0, at most 1"),
    (lambda: R.beta(KEY, 0.0, 1.0), "random.beta: a=0.0 is not valid; expected a positive number"),
    (lambda: R.key("a"), "random.key: seed='a' is not valid; expected an integer"),
    (lambda: R.seed(-1), "random.seed: number=-1 is not valid; expected 0 or more, or None"),
    (lambda: R.normal(KEY, (-1,)), r"random.normal: shape=\(-1,\) is not valid; expected extents of at least 0"),
    (lambda: R.split(KEY, -1), r"random.split: shape=\(-1,\) is not valid; expected extents of at least 0"),
    (lambda: R.randint(KEY, (3,), 0.5, 2), "random.randint: minval=0.5 is not valid; expected an integer"),
    (lambda: R.randint(KEY, (3,), 5, 5), "random.randint: maxval=5 is not valid; expected one above minval, 5"),
    (
        lambda: R.randint(KEY, (2,), np.arange(2), 5, np.float32),
        "random.randint: dtype='float32' is not valid; expected an",
    ),
    (
        lambda: kf.jit(lambda n: R.randint(KEY, (2,), 0, n, np.float32))(5),
        "dtype='float32' is not valid; expected an integer",
    ),
    (lambda: R.truncated_normal(KEY, -1, 1, 2.5), r"random.truncated_normal\(key=u32\[2\], lower="),
    (lambda: kf.jit(lambda x: np.broadcast_to(x, (-3,)))(1.0), "np.broadcast_to: shape="),
    (lambda: R.randint(KEY, (2,), np.zeros(2), 5), "random.randint: minval='a f64' is not valid; expected integers"),
    (lambda: R.normal(KEY, 2.5), r"random.normal\(key=u32\[2\], shape=2.5\): 'float' object cannot be interpreted"),
    (lambda: kf.jit(lambda x: np.linspace(x, 1, -4))(0.0), "np.linspace: num=-4 is not valid; expected 0 or more"),
]


@pytest.mark.parametrize(("call", "text"), NOTHING_TO_CHOOSE, ids=[str(i) for i in range(len(NOTHING_TO_CHOOSE))])
def test_what_makes_no_distribution_is_refused(call: Any, text: str) -> None:
    with pytest.raises(errors.KernelforgeError, match=text):
        call()


def test_integers_between_arrays() -> None:
    low, high = np.array([-5, 0, 7], np.int32), np.array([-4, 10, 3], np.int32)
    found = np.asarray(kf.jit(lambda k, a, b: R.randint(k, (4000, 3), a, b))(KEY, low, high))
    assert (found[:, 0] == -5).all()
    assert (found[:, 2] == 7).all()
    assert _even(np.bincount(found[:, 1], minlength=10))
    for span in (1 << 40, 1 << 63):
        wide = np.asarray(R.randint(KEY, (N,), -7, span - 7, np.int64))
        assert wide.min() >= -7
        assert st.kstest((wide + 7.0) / span, "uniform").pvalue > 1e-3
    whole = np.asarray(R.randint(KEY, (N,), -(1 << 63), 1 << 63, np.int64))
    assert st.kstest(whole / 2.0**63, st.uniform(-1, 2).cdf).pvalue > 1e-3
    big = np.asarray(R.randint(KEY, (9,), 0, 1 << 64, np.uint64))
    assert big.dtype == np.uint64
    assert {*np.asarray(R.rademacher(KEY, (99,))).tolist()} == {-1, 1}


def _even(counts: np.ndarray, expected: Any = None) -> bool:
    return st.chisquare(counts, expected).pvalue > 1e-3


def test_categorical() -> None:
    p = np.array([0.1, 0.0, 0.6, 0.3])
    with np.errstate(divide="ignore"):
        logits = np.log(p).astype(np.float32) + 2
    found = np.asarray(R.categorical(KEY, logits, shape=(N,)))
    counts = np.bincount(found, minlength=4)
    assert counts[1] == 0
    assert _even(counts[p > 0], N * p[p > 0])
    rows = R.categorical(KEY, np.zeros((3, 5), np.float32), axis=0, shape=(7, 5))
    assert rows.shape == (7, 5)
    assert int(np.asarray(rows).max()) <= 2
    with pytest.raises(errors.InvalidParameter, match="one that ends with"):
        R.categorical(KEY, np.zeros((3, 5), np.float32), shape=(7, 4))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
def test_narrow_logits_choose_as_wide_ones(dtype: Any) -> None:
    logits = np.linspace(-1, 1, 500).astype(dtype)
    narrow, wide = (R.categorical(KEY, x, shape=(200,)) for x in (logits, logits.astype(np.float32)))
    np.testing.assert_array_equal(narrow, wide)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: R.randint(KEY, (3,), 0, 257, np.uint8), "an integer dtype that holds 0 to 256"),
    (lambda: R.randint(KEY, (3,), -1, 2, np.uint32), "an integer dtype that holds -1 to 1"),
    (lambda: R.randint(KEY, (3,), 0, 2, np.float32), "an integer dtype that holds 0 to 1"),
    (lambda: R.normal(KEY, (3,), np.int32), "random.normal: dtype='int32' is not valid; expected a float dtype"),
    (lambda: R.gumbel(KEY, (3,), np.int32), "random.gumbel: dtype='int32' is not valid; expected a float dtype"),
    (lambda: R.uniform(KEY, (3,), np.int32), "random.uniform: dtype='int32' is not valid; expected a float dtype"),
    (lambda: R.orthogonal(KEY, 3, (), np.int32), "random.orthogonal: dtype='int32' is not valid; expected a float"),
    (lambda: R.categorical(KEY, np.zeros(3, np.int32)), "random.categorical: dtype='int32' is not valid; expected"),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_dtypes_that_do_not_fit_are_refused(call: Any, text: str) -> None:
    with pytest.raises(errors.InvalidParameter, match=text):
        call()


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_far_tails(dtype: Any) -> None:
    lows, highs = np.array([(11.9, 12.2), (13, np.inf), (20, 20.1), (300, np.inf), (-np.inf, -37)], dtype).T[..., None]
    made = np.asarray(R.truncated_normal(KEY, lows, highs, (5, N), dtype))
    assert ((lows <= made) & (made <= highs)).all()
    for x, low, high in zip(made.astype(np.float64), lows.astype(np.float64), highs.astype(np.float64), strict=True):
        x, a, b = (x, low, high) if low > 0 else (-x, -high, -low)
        # the integral of the density beyond x, as a share of the one beyond a
        left, end = (np.exp(st.norm.logsf(v) - st.norm.logsf(a)) for v in (x, b))
        assert st.kstest((1 - left) / (1 - end), "uniform").pvalue > 1e-3


def test_permutations_are_as_likely() -> None:
    draw = kf.jit(lambda k: R.permutation(k, 4))
    counts: dict[tuple[int, ...], int] = {}
    for k in np.asarray(R.split(KEY, 2400)):
        found = tuple(np.asarray(draw(k)).tolist())
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 24
    assert _even(np.array(list(counts.values())))


def test_permutation_of_an_array() -> None:
    x = np.arange(12.0).reshape(3, 4)
    order = np.asarray(R.permutation(KEY, 4))
    np.testing.assert_array_equal(R.permutation(KEY, x, axis=1), x[:, order])
    for n in (1, 2, 3, 64, 1000, 200_000):
        np.testing.assert_array_equal(np.sort(np.asarray(R.permutation(KEY, n))), np.arange(n))
    # of half of the places what lies there came from below the middle or above it, evenly
    lower = np.asarray(R.permutation(KEY, 200_000))[:100_000] < 100_000
    assert abs(lower.mean() - 0.5) < 0.005
    assert R.permutation(KEY, 0).shape == (0,)
    with pytest.raises(errors.InvalidParameter, match="0 or more"):
        R.permutation(KEY, -1)


def test_integers_and_bits_are_even() -> None:
    found = np.asarray(R.randint(KEY, (N,), -3, 8))
    assert _even(np.bincount(found + 3, minlength=11))
    words = np.asarray(R.bits(KEY, (N,), np.uint8))
    assert _even(np.bincount(words, minlength=256))
    both = np.asarray(R.bernoulli(KEY, 0.3, (N,)))
    assert _even(np.array([(~both).sum(), both.sum()]), [0.7 * N, 0.3 * N])


def test_keys_do_not_meet() -> None:
    one, two = (np.asarray(R.normal(k, (N,))) for k in np.asarray(R.split(KEY)))
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(N)
    folded = [np.asarray(R.fold_in(KEY, i)).tolist() for i in range(100)]
    assert len({tuple(k) for k in folded}) == 100


def test_quantile_of_the_normal_distribution() -> None:
    p = np.concatenate([np.logspace(-300, -1, 400), np.linspace(0.01, 0.99, 99), 1 - np.logspace(-15, -1, 50)])
    found = kf.jit(lambda p: result(normal_quantile(to_sym(p))))(p)
    np.testing.assert_allclose(found, st.norm.ppf(p), rtol=1e-13, atol=1e-15)


BATCH = R.split(KEY, 3)
MISUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    *(
        (
            call,
            errors.DtypeMismatch,
            rf"random.{name}: dtypes u32\[3,2\] do not fit; expected one key, of type u32\[2\]; take one for each",
        )
        for name, call in {
            "normal": lambda: R.normal(BATCH, (3,)),
            "gumbel": lambda: kf.jit(lambda k: R.gumbel(k, (3,)))(BATCH),
            "choice": lambda: R.choice(BATCH, 5),
            "permutation": lambda: kf.jit(lambda k: R.permutation(k, 5))(BATCH),
            "orthogonal": lambda: R.orthogonal(BATCH, 3),
        }.items()
    ),
    (
        lambda: R.normal((3,), key=KEY),
        errors.InvalidCall,
        r"random.normal\(\(3,\), key=u32\[2\]\): multiple values for argument 'key'; its parameters are \(key, shape",
    ),
    (
        lambda: R.choice(KEY, np.zeros((3, 4)), axis=2),
        errors.InvalidAxis,
        "random.choice: axis 2 is none of an array of 2 axes; expected integers from -2 to 1",
    ),
    (
        lambda: kf.jit(lambda x: R.permutation(KEY, x, -3))(np.zeros((3, 4))),
        errors.InvalidAxis,
        "random.permutation: axis -3 is none of an array of 2 axes; expected integers from -2 to 1",
    ),
    *(
        (
            call,
            errors.InvalidParameter,
            f"random.uniform: maxval={most} is not valid; expected minval, {least}, or more, .* that {dtype} holds",
        )
        for call, least, most, dtype in [
            (lambda: R.uniform(KEY, (3,), minval=5, maxval=2), 5.0, 2.0, "f32"),
            (lambda: R.uniform(KEY, (3,), minval=np.array([1, 5]), maxval=2), 5.0, 2.0, "f32"),
            (lambda: R.uniform(KEY, (3,), np.float16, -60000, 60000), -60000.0, 60000.0, "f16"),
            (lambda: R.uniform(KEY, (3,), maxval=np.inf), 0.0, "inf", "f32"),
            (lambda: R.uniform(KEY, (3,), np.float16, 100000, 100001), 100000.0, 100001.0, "f16"),
            (lambda: R.uniform(KEY, (3,), minval=1e39, maxval=1e39), r"1e\+39", r"1e\+39", "f32"),
        ]
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), MISUSED, ids=[str(i) for i in range(len(MISUSED))])
def test_calls_that_are_wrong_are_refused_by_the_functions_name(
    call: Callable[[], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_bounds_that_are_equal_or_of_a_run_make_numbers() -> None:
    np.testing.assert_array_equal(R.uniform(KEY, (3,), minval=2, maxval=2), np.full(3, 2, np.float32))
    drawn = np.asarray(kf.jit(lambda low: R.uniform(KEY, (9,), minval=low, maxval=3))(np.float32(1)))
    assert ((drawn >= 1) & (drawn < 3)).all()


def test_parameters_that_make_no_distribution() -> None:
    with pytest.raises(errors.InvalidParameter, match=r"random.gamma: a=-1.0 is not valid; expected 0 or more"):
        R.gamma(KEY, np.array([2.0, -1.0]))
    with pytest.raises(errors.InvalidParameter, match=r"lower=1.0 is not valid; expected at most upper, 0.0"):
        R.truncated_normal(KEY, 1.0, 0.0)
    a = np.array([2.0, -1.0, 0.0])
    np.testing.assert_array_equal(np.isnan(kf.jit(R.gamma)(KEY, a)), [False, True, False])
    np.testing.assert_array_equal(np.isnan(kf.jit(R.truncated_normal)(KEY, -a, a)), [False, True, False])


@pytest.mark.parametrize("low", [-7, np.int32(-7), np.full(3, -7)], ids=["number", "scalar", "array"])
def test_negative_bounds_beside_arrays(low: Any) -> None:
    high = np.array([-6, 0, 5])
    wanted = np.asarray(kf.jit(lambda k: R.randint(k, (500, 3), low, high))(KEY))
    assert [set(x) for x in wanted.T.tolist()] == [set(range(-7, h)) for h in high]
    np.testing.assert_array_equal(R.randint(KEY, (500, 3), low, high), wanted)
    # found while it runs: of a number that arguments are
    np.testing.assert_array_equal(kf.jit(lambda n: R.randint(KEY, (500, 3), n, high))(-7), wanted)


def test_parameters_that_only_a_run_shows_to_be_wrong_make_no_count() -> None:
    wrong = np.array([-1, np.inf, -np.inf, np.nan], np.float32)
    assert (np.asarray(kf.jit(lambda x: R.poisson(KEY, x))(wrong)) == -1).all()
    assert (np.asarray(kf.jit(lambda x: R.binomial(KEY, x, 0.5))(wrong)) == -1).all()
    assert (np.asarray(kf.jit(lambda x: R.binomial(KEY, 50, x))(wrong)) == -1).all()


def test_beta_keeps_what_f32_tells_apart() -> None:
    large = np.asarray(R.beta(KEY, 1e8, 1e8, (N,)))
    assert len(np.unique(large)) > 2000  # those that are likely
    assert st.kstest(large.astype(np.float64), st.norm(0.5, 8**-0.5 * 1e-4).cdf).pvalue > 1e-3
    small = np.asarray(R.beta(KEY, 1e-3, 2e-3, (N,)))
    assert np.isfinite(small).all()
    assert abs(small.mean() - 1 / 3) < 5 * 0.5 / np.sqrt(N)


def test_orthogonal_matrices_of_any_number_and_dtype() -> None:
    assert R.orthogonal(KEY, 3, (0,)).shape == (0, 3, 3)
    half = np.asarray(R.orthogonal(KEY, 3, dtype=np.float16))
    np.testing.assert_array_equal(half, np.asarray(R.orthogonal(KEY, 3)).astype(np.float16))
    cov, mean = np.array([[2, 0.5], [0.5, 1]], np.float16), np.zeros(2, np.float16)
    made = np.asarray(R.multivariate_normal(KEY, mean, cov, (5,), np.float16))
    np.testing.assert_array_equal(made, np.asarray(R.multivariate_normal(KEY, mean, cov, (5,))).astype(np.float16))


def test_choices_from_a_list() -> None:
    np.testing.assert_array_equal(R.choice(KEY, [5, 6, 7], (9,)), R.choice(KEY, np.array([5, 6, 7]), (9,)))


def test_no_derivative_by_parameters_of_gamma_variates() -> None:
    for fn in (lambda v: R.t(KEY, v, (20,)), lambda v: R.beta(KEY, v, 2 * v, (20,)), lambda v: R.gamma(KEY, v, (20,))):
        assert kf.grad(lambda v, fn=fn: fn(v).sum())(np.float32(2.5)) == 0


def test_gumbel_softmax() -> None:
    logits = np.log(np.array([[0.2, 0.5, 0.3]], np.float32)).repeat(N, axis=0)
    hard = np.asarray(kf.nn.gumbel_softmax(logits, hard=True, key=KEY))
    assert _even(hard.sum(0), N * np.array([0.2, 0.5, 0.3]))
    soft = kf.grad(lambda x: (kf.nn.gumbel_softmax(x, 0.5, key=KEY) ** 2).sum())(logits[:5])
    assert np.isfinite(np.asarray(soft)).all()
    straight = kf.grad(lambda x: (kf.nn.gumbel_softmax(x, hard=True, key=KEY)[:, 0]).sum())(logits[:5])
    np.testing.assert_allclose(
        straight, kf.grad(lambda x: kf.nn.gumbel_softmax(x, key=KEY)[:, 0].sum())(logits[:5]), rtol=1e-5, atol=1e-7
    )
