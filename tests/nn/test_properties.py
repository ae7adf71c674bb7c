"""Values at kinks and infinities, dtypes, numbers of kernels, large means."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors, nn
from tests.nn.case import normal

F32 = np.float32
INF = np.inf
ENDS = np.array([-INF, 0.0, INF])

LIMITS = {
    "relu": ((0, 0, INF), (0, 0, 1)),
    "relu6": ((0, 0, 6), (0, 0, 0)),
    "leaky_relu": ((-INF, 0, INF), (0.01, 0.01, 1)),
    "elu": ((-1, 0, INF), (0, 1, 1)),
    "celu": ((-1, 0, INF), (0, 1, 1)),
    "gelu": ((0, 0, INF), (0, 0.5, 1)),
    "quick_gelu": ((0, 0, INF), (0, 0.5, 1)),
    "silu": ((0, 0, INF), (0, 0.5, 1)),
    "mish": ((0, 0, INF), (0, 0.6, 1)),
    "sigmoid": ((0, 0.5, 1), (0, 0.25, 0)),
    "tanh": ((-1, 0, 1), (0, 1, 0)),
    "softplus": ((0, np.log(2), INF), (0, 0.5, 1)),
    "logsigmoid": ((-INF, -np.log(2), 0), (1, 0.5, 0)),
    "softsign": ((-1, 0, 1), (0, 1, 0)),
    "hardsigmoid": ((0, 0.5, 1), (0, 1 / 6, 0)),
    "hardswish": ((0, 0, INF), (0, 0.5, 1)),
    "hardtanh": ((-1, 0, 1), (0, 1, 0)),
    "hardshrink": ((-INF, 0, INF), (1, 0, 1)),
    "softshrink": ((-INF, 0, INF), (1, 0, 1)),
}
"""Values and derivatives at -inf, 0 and inf."""


def _all(x: Any) -> Any:
    fns = [getattr(nn, name) for name in LIMITS]
    slopes = [kf.grad(lambda x, fn=fn: fn(x).sum()) for fn in fns]
    bends = [kf.grad(lambda x, g=g: g(x).sum()) for g in slopes]
    return [(fn(x), g(x), h(x)) for fn, g, h in zip(fns, slopes, bends, strict=True)]


def test_kinks_and_infinities() -> None:
    compiled = kf.jit(_all)
    found, wrong = compiled(ENDS), compiled(np.full(3, np.nan))
    for (name, (values, slopes)), made, nan in zip(LIMITS.items(), found, wrong, strict=True):
        np.testing.assert_allclose(made[0], values, rtol=1e-12, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(made[1], slopes, rtol=1e-12, atol=1e-12, err_msg=name)
        assert np.isfinite(np.asarray(made[2])).all(), name
        assert np.isnan(np.asarray(nan[0])).all(), name


def test_large_arguments_have_finite_second_derivatives() -> None:
    x = np.array([-700, -90, -30, 30, 90, 700], F32)
    for fn in (nn.softplus, nn.logsigmoid, nn.mish, nn.logcosh, lambda x: np.logaddexp(x, 1)):
        bend = kf.grad(lambda x, fn=fn: kf.grad(lambda x: fn(x).sum())(x).sum())(x)
        np.testing.assert_allclose(bend, 0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
def test_narrow_floats_are_rounded_once(dtype: Any) -> None:
    x = (3 * normal(5, 8)).astype(dtype)
    wide = x.astype(np.float64)
    calls = [
        nn.gelu,
        nn.mish,
        nn.softmax,
        lambda x: nn.log_softmax(x, 0),
        lambda x: nn.layer_norm(x, 8),
        lambda x: nn.rms_norm(x, (8,), eps=1e-5),
        lambda x: nn.avg_pool1d(x, 3),
        nn.glu,
        nn.geglu,
        nn.swiglu,
        lambda x: nn.scaled_dot_product_attention(x, x, x),
    ]
    for call, mine, other in zip(calls, *(kf.jit(lambda x: [c(x) for c in calls])(v) for v in (x, wide)), strict=True):
        assert mine.dtype == dtype, call
        eps = float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(mine).astype(float), other, rtol=0.51 * eps, atol=eps * 1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms_far_from_zero(dtype: Any) -> None:
    x = (normal(4, 6, 50) + 1e4).astype(dtype)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    bound = 1e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(nn.layer_norm(x, 50), expected, atol=bound)
    made, _, var = nn.batch_norm(x, np.zeros(6, dtype), np.ones(6, dtype), training=True, momentum=1.0)
    np.testing.assert_allclose(var, wide.var((0, 2), ddof=1), rtol=bound)
    assert made.dtype == dtype


X, G, B = (normal(*s).astype(F32) for s in ((12, 20), (20,), (20,)))
ROWS, GAIN, SHIFT = (normal(*s).astype(F32) for s in ((70, 130), (130,), (130,)))
IMAGE, KERNEL = normal(2, 3, 8, 8).astype(F32), normal(4, 3, 3, 3).astype(F32)


def _block(x: Any, r: Any, g: Any, b: Any) -> Any:
    return nn.layer_norm(nn.dropout(x, 0.1, key=kf.random.key(1)) + r, 130, g, b)


COUNTS = [
    ("softmax", lambda x: nn.softmax(nn.gelu(x)), (X,), 1, 1),
    ("log_softmax", nn.log_softmax, (X,), 1, 1),
    ("cross_entropy", lambda x: nn.cross_entropy(x, np.arange(12) % 5, reduction="none"), (X,), 1, 1),
    ("layer_norm", lambda x, g, b: nn.silu(nn.layer_norm(x, 130, g, b)), (ROWS, GAIN, SHIFT), 1, 2),
    ("rms_norm", lambda x, g: nn.rms_norm(x, 130, g), (ROWS, GAIN), 1, 2),
    ("dropout, residual, norm", _block, (ROWS, ROWS, GAIN, SHIFT), 1, 2),
    ("linear", lambda x, w, b: nn.relu(nn.linear(x, w, b)), (X, normal(8, 20).astype(F32), B[:8]), 1, 4),
    ("conv2d", lambda x, w, b: nn.relu(nn.conv2d(x, w, b, padding=1)), (IMAGE, KERNEL, B[:4]), 1, 4),
    ("max_pool2d", lambda x: nn.max_pool2d(x, 2), (IMAGE,), 1, 2),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
def test_images_enlarged_by_whole_numbers_need_no_tables(mode: str) -> None:
    def enlarged(x: Any) -> Any:
        return nn.interpolate(x, scale_factor=(2, 3), mode=mode)

    def pulled(x: Any) -> Any:
        return kf.vjp(enlarged, x)[1](enlarged(x))

    text = str(kf.jit(pulled).lower(IMAGE).graph)
    assert "gather" not in text
    assert "scatter" not in text


@pytest.mark.parametrize(("name", "fn", "args", "forward", "backward"), COUNTS, ids=[c[0] for c in COUNTS])
def test_kernels(name: str, fn: Any, args: Any, forward: int, backward: int) -> None:
    lowered = kf.jit(fn).lower(*args)
    assert len(lowered.kernels) == forward
    ct = normal(*lowered.graph.outputs[0].type.shape).astype(F32)

    def pulled(ct: Any, *args: Any) -> Any:
        return kf.vjp(fn, *args)[1](ct)

    assert len(kf.jit(pulled).lower(ct, *args).kernels) <= backward


def test_batch_norm_keeps_what_it_is_given() -> None:
    mean, var = np.zeros(3, F32), np.ones(3, F32)
    _, new_mean, new_var = nn.batch_norm(IMAGE, mean, var, training=True)
    assert not mean.any()
    assert np.asarray(new_mean).any()
    same = nn.batch_norm(IMAGE, new_mean, new_var)
    np.testing.assert_array_equal(same[1], new_mean)
    assert nn.batch_norm(IMAGE, None, None, training=True)[1:] == (None, None)


def test_padding_rows_of_an_embedding_get_no_gradient() -> None:
    table, ids = normal(5, 3), np.array([1, 2, 2, 4])
    found = np.asarray(kf.grad(lambda t: nn.embedding(ids, t, padding_idx=-1).sum())(table))
    np.testing.assert_array_equal(found, np.array([0, 1, 2, 0, 0])[:, None] * np.ones(3))


def test_maxima_that_tie_share_the_gradient() -> None:
    found = kf.grad(lambda x: nn.max_pool1d(x, 2).sum())(np.ones((1, 1, 4)))
    np.testing.assert_array_equal(found, np.full((1, 1, 4), 0.5))


def test_empty_batches() -> None:
    none = np.zeros((0, 3, 8, 8), F32)
    assert nn.conv2d(none, KERNEL).shape == (0, 4, 6, 6)
    assert nn.max_pool2d(none, 2).shape == (0, 3, 4, 4)
    assert nn.layer_norm(none, 8).shape == none.shape
    assert nn.softmax(none).shape == none.shape
    assert nn.group_norm(none, 3).shape == none.shape
    assert nn.scaled_dot_product_attention(X[:0], X, X, is_causal=True).shape == (0, 20)


def test_infinite_elements_stay_in_their_bins() -> None:
    found = nn.adaptive_avg_pool1d(np.array([[[1, 2, INF, 4, 5]]]), 3)
    np.testing.assert_array_equal(found, [[[1.5, INF, 4.5]]])


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_places_outside_of_an_image_do_not_see_it(mode: str) -> None:
    image = normal(1, 1, 6, 7)
    image[0, 0, 0, 0] = np.nan
    places = np.array([[[[-3.0, -3.0], [INF, 0.0], [0.9, 0.9]]]])
    found = np.asarray(nn.grid_sample(image, places, mode=mode)).ravel()
    assert found[:2].tolist() == [0, 0]
    assert np.isfinite(found[2])


def test_ignored_targets_count_nothing() -> None:
    x, ids = np.array([[1, 2, -INF], [0, 1, 2]]), np.array([2, 1])
    for smoothing in (0.0, 0.1):
        rest = nn.cross_entropy(x[1:], ids[1:], label_smoothing=smoothing)
        found = nn.cross_entropy(x, ids, ignore_index=2, label_smoothing=smoothing)
        np.testing.assert_allclose(found, rest)


def test_texts_without_input() -> None:
    log_p = np.log(np.full((3, 2, 3), 1 / 3))
    found = nn.ctc_loss(log_p, np.ones((2, 1), int), np.zeros(2, int), np.array([0, 1]), reduction="none")
    np.testing.assert_array_equal(found, [0, INF])


def test_lists_are_sizes() -> None:
    np.testing.assert_array_equal(nn.max_pool2d(IMAGE, [2, 3], stride=[1, 2]), nn.max_pool2d(IMAGE, (2, 3), (1, 2)))
    np.testing.assert_array_equal(kf.jit(lambda x: nn.layer_norm(x, [20]))(X), nn.layer_norm(X, 20))


def test_labels_out_of_range_that_are_not_known_are_nan() -> None:
    ids = np.array([0, 7, -3, -100])
    found = kf.jit(lambda x, ids: nn.cross_entropy(x, ids, reduction="none"))(X[:4, :5], ids)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False])
    assert np.isnan(kf.jit(nn.multi_margin_loss)(X[:4, :5], ids))
    assert np.isnan(kf.jit(nn.multilabel_margin_loss)(X[0, :2], np.array([0, 2])))
    np.testing.assert_array_equal(kf.jit(lambda ids: nn.one_hot(ids, 3))(ids), [[1, 0, 0], *[[0, 0, 0]] * 3])


def test_rows_of_nothing_and_numbers_have_a_softmax() -> None:
    for fn in (nn.softmax, nn.log_softmax, nn.softmin):
        assert fn(np.zeros((3, 0))).shape == (3, 0)
        assert kf.grad(lambda x, fn=fn: fn(x).sum())(np.zeros((3, 0))).shape == (3, 0)
    assert [float(f(F32(2))) for f in (nn.softmax, nn.log_softmax, nn.softmin, nn.logsumexp)] == [1, 0, 1, 2]
    assert float(nn.logsumexp(F32(2), -1)) == 2


def test_integers_have_no_dropout() -> None:
    for drop in (nn.dropout, nn.feature_dropout, nn.alpha_dropout, nn.feature_alpha_dropout):
        with pytest.raises(errors.DtypeMismatch, match="dtypes int64 do not fit; expected floats"):
            drop(np.ones((2, 2), int))


def test_keys_are_drawn_from_the_default_stream() -> None:
    calls = (
        lambda x: nn.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
        lambda x: nn.rrelu(x, training=True),
        nn.gumbel_softmax,
    )
    for call in calls:
        made = []
        for seed in (3, 3, 4):
            kf.random.seed(seed)
            made.append(np.asarray(call(X)))
        np.testing.assert_array_equal(made[0], made[1])
        assert (made[0] != made[2]).any()
        with pytest.raises(errors.TracedStream, match="make the key an argument"):
            kf.jit(call)(X)


def test_randomised_slopes() -> None:
    x = -np.ones(20000, F32)
    found = -np.asarray(nn.rrelu(x, 0.2, 0.6, training=True, key=kf.random.key(1)))
    assert found.min() >= 0.2
    assert found.max() <= 0.6
    np.testing.assert_allclose([found.mean(), found.std()], [0.4, 0.4 / math.sqrt(12)], rtol=0.02)
    np.testing.assert_allclose(nn.rrelu(x[:2], 0.2, 0.6), -0.4, rtol=1e-6)


def test_instance_norm_runs_statistics_on() -> None:
    x, mean, var = normal(4, 3, 7), normal(3), 1 + normal(3) ** 2
    made, new_mean, new_var = nn.instance_norm(x, mean, var, momentum=0.3)
    np.testing.assert_allclose(made, nn.instance_norm(x), rtol=1e-12)
    np.testing.assert_allclose(new_mean, 0.7 * mean + 0.3 * x.mean(-1).mean(0), rtol=1e-12)
    np.testing.assert_allclose(new_var, 0.7 * var + 0.3 * x.var(-1, ddof=1).mean(0), rtol=1e-12)
    by_given = nn.instance_norm(x, mean, var, use_input_stats=False)[0]
    np.testing.assert_allclose(by_given, nn.batch_norm(x, mean, var)[0], rtol=1e-12)


def test_windows_further_apart_than_a_block() -> None:
    """Of one channel the neighbours are in the padding: the image's rows are windows of each other, a channel apart."""
    x = normal(4, 1, 5, 5).astype(F32)
    for size in (2, 5, 6):
        np.testing.assert_allclose(nn.local_response_norm(x, size), x / (1 + 1e-4 * x * x / size) ** 0.75, rtol=1e-6)


def test_a_variance_that_is_too_small_has_a_gradient() -> None:
    found = kf.grad(lambda v: nn.gaussian_nll_loss(np.ones(1), np.zeros(1), v, eps=0.5))(np.array([1e-3]))
    np.testing.assert_allclose(found, 0.5 * (1 / 0.5 - 1 / 0.25))


def test_one_slope_for_a_number() -> None:
    assert nn.prelu(np.float64(-2), np.array([0.5])).shape == ()


def test_slopes_of_no_channels() -> None:
    assert nn.prelu(np.ones((3, 0, 5)), np.ones(0)).shape == (3, 0, 5)


def test_a_target_of_zero_has_derivatives() -> None:
    """The slope by the input is minus the target everywhere; at log(0) and 0 the loss is 0."""
    slope = kf.grad(lambda x, t: nn.kl_div(x, t, reduction="sum"))
    mixed = kf.grad(lambda t: slope(np.array([-1.0, -2.0]), t).sum())
    np.testing.assert_array_equal(mixed(np.array([0.0, 0.5])), [-1, -1])
    assert nn.kl_div(np.array([-INF]), np.zeros(1), reduction="sum") == 0


def test_divergences_that_are_none_are_nan() -> None:
    x, t = np.array([0.5, np.nan, 0.5, np.nan]), np.array([np.nan, 0.0, -0.25, 0.5])
    assert np.isnan(nn.kl_div(x, t, reduction="none")).all()


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_places_that_are_nan_are_at_the_beginning(mode: str, padding: str) -> None:
    image = np.random.default_rng(0).normal(size=(1, 2, 3, 4))
    places = np.array([[[[np.nan, 0.5], [0.25, np.nan], [np.nan, np.nan]]]])
    sample = kf.jit(lambda p: nn.grid_sample(image, p, mode, padding, align_corners=True))
    np.testing.assert_array_equal(sample(places), sample(np.nan_to_num(places, nan=-1.0)))


def test_second_derivatives_at_kinks() -> None:
    """Those of a square at its least; what bends on one side of 0 alone is taken for straight at 0, as in PyTorch."""
    x = np.array([-0.5, 0.0, 0.5, 3.0])

    def bend(fn: Any) -> Any:
        return kf.grad(lambda x: kf.grad(lambda x: fn(x).sum())(x).sum())(x)

    for fn in (nn.huber_loss, nn.smooth_l1_loss):
        np.testing.assert_array_equal(bend(lambda x, fn=fn: fn(x, np.zeros(4), reduction="sum")), [1, 1, 1, 0])
    for fn in (nn.elu, nn.selu, nn.celu):
        np.testing.assert_array_equal(np.asarray(bend(fn))[1:], 0)


def test_softmax_of_another_dtype() -> None:
    x = np.array([[1, 2, 3]])
    for fn in (nn.softmax, nn.log_softmax, nn.softmin):
        found = fn(x, dim=1, dtype=np.float16)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, np.asarray(fn(x.astype(np.float64), dim=1)).astype(np.float16))


def test_what_is_scattered_of_nothing() -> None:
    for reduce, empty in (("sum", 0), ("mean", 0), ("prod", 1), ("max", -INF), ("min", INF)):
        found = nn.scatter(np.array([3.0, 5.0], F32), np.array([2, 2]), 3, reduce)
        np.testing.assert_array_equal(np.asarray(found)[:2], empty)
    with pytest.raises(errors.InvalidParameter, match="scatter: reduce='median' is not valid"):
        nn.scatter(np.ones(2), np.zeros(2, int), 3, "median")


def test_gradients_of_padded_maxima() -> None:
    """Lanes beyond the windows were 0/0 on the CPU."""
    x, c = np.array([[0.1, -0.2, 0.6, 0.3]]), np.array([[2.0, 3.0, 5.0]])
    slope = kf.grad(lambda x: (nn.max_pool1d(x, 4, 1, 1) * c).sum())
    np.testing.assert_array_equal(slope(x), [[0, 0, 10, 0]])


def test_losses_let_nan_through() -> None:
    x, one = np.array([np.nan, 0.5], np.float32), np.ones(2, np.float32)
    for made in (
        kf.nn.hinge_loss(x, one, reduction="none"), kf.nn.hinge_embedding_loss(x, -one, reduction="none"),
        kf.nn.margin_ranking_loss(x, one, -one, reduction="none"),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.isnan(made), [True, False])


def test_ctc_keeps_the_dtype() -> None:
    log_p = np.log(np.full((4, 1, 3), 1 / 3, np.float32))
    assert np.asarray(kf.nn.ctc_loss(log_p, np.array([[1, 2]]), np.array([4]), np.array([2]))).dtype == np.float32
    assert np.asarray(kf.nn.gaussian_nll_loss(log_p, log_p, 1.0)).dtype == np.float32


def test_integers_take_the_dtype_of_floats() -> None:
    ones = np.ones((2, 3), int)
    for made in (
        nn.mse_loss(X[:2, :3], ones), nn.binary_cross_entropy_with_logits(X[:2, :3], ones), nn.l1_loss(ones, X[:2, :3]),
        nn.multilabel_soft_margin_loss(X[:2, :3], ones, weight=ones[0]), nn.pairwise_distance(X[:2, :3], ones),
        nn.cross_entropy(X[:2, :3], ones[:, 0], weight=ones[0]), nn.smooth_l1_loss(X[:2, :3].astype(np.float16), ones),
    ):  # fmt: skip
        assert made.dtype == np.float32
    assert nn.mse_loss(ones, ones).dtype == np.float64


def test_recurrent_layers_promote() -> None:
    w, u = X[:6, :4], X[:6, :6]
    for dtype, expected in ((np.float16, np.float32), (np.float64, np.float64), (np.int64, np.float64)):
        states, last = nn.rnn(np.ones((3, 2, 4), dtype), np.ones((2, 6), dtype), w, u)
        assert states.dtype == last.dtype == expected


def test_dropout_of_heads() -> None:
    def call(*args: Any, **options: Any) -> Any:
        return nn.multi_head_attention_forward(
            *[X[:, None]] * 3, 20, 2, np.ones((60, 20), F32), None, None, None, False, 0.5, np.eye(20, dtype=F32), None,
            *args, **options,
        )  # fmt: skip

    key = kf.random.key(3)
    shares = np.asarray(call(dropout_key=key)[1])
    assert (shares != np.asarray(call(dropout_key=kf.random.key(4))[1])).any()
    assert call(need_weights=False, dropout_key=key)[1] is None
    np.testing.assert_array_equal(call(False)[0], call(False, dropout_key=key)[0])


def test_rows_are_scaled_to_the_last_bit() -> None:
    """Beside rows that are larger by far, and as they stand where their gradient alone is divided."""
    table = np.array([[3e4, -4e4], [1e15, 0], [-INF, 1], [0.1, 0.3]], F32)
    ids = np.array([0, 1, 3, 3])
    found = nn.embedding(ids, table, max_norm=1.0)
    np.testing.assert_allclose(found, [[0.6, -0.8], [1, 0], table[3], table[3]], rtol=1e-6)
    np.testing.assert_array_equal(nn.embedding(np.array([2, 3, 3]), table, scale_grad_by_freq=True), table[[2, 3, 3]])
    slopes = kf.grad(lambda t: nn.embedding(ids, t, scale_grad_by_freq=True).sum())(table)
    np.testing.assert_array_equal(slopes, [[1, 1], [1, 1], [0, 0], [1, 1]])
    chosen = np.asarray(nn.gumbel_softmax(X, hard=True, key=kf.random.key(1)))
    np.testing.assert_array_equal(np.unique(chosen), [0, 1])


def test_windows_at_random() -> None:
    found = [np.asarray(nn.fractional_max_pool2d(IMAGE, 3, output_ratio=0.5, key=kf.random.key(i))) for i in (0, 0, 1)]
    assert found[0].shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_bags_with_offsets_that_are_not_known() -> None:
    table, ids, starts = normal(5, 2), np.array([4, 1, 1, 0, 2]), np.array([0, 2, 2, 5])
    for mode in ("sum", "mean", "max"):
        known = nn.embedding_bag(ids, table, starts, mode=mode)
        found = kf.jit(lambda i, t, s, mode=mode: nn.embedding_bag(i, t, s, mode=mode))(ids, table, starts)
        np.testing.assert_array_equal(found, known)
    ended = nn.embedding_bag(ids, table, np.array([0, 2, 3]), include_last_offset=True, mode="sum")
    np.testing.assert_allclose(ended, [table[4] + table[1], table[1]])


def test_places_before_the_first_are_left_out() -> None:
    np.testing.assert_array_equal(kf.nn.max_unpool1d(np.ones((1, 1, 2)), np.array([[[0, -1]]]), 2), [[[1, 0, 0, 0]]])
    assert np.shape(kf.nn.max_unpool1d(np.zeros((0, 1, 2)), np.zeros((0, 1, 2), np.int64), 2)) == (0, 1, 4)


def test_known_lengths_and_offsets_are_checked() -> None:
    log_p, text = np.zeros((4, 1, 3)), np.array([[1]])
    with pytest.raises(ValueError, match=r"input_lengths=\[9\] is not valid; expected lengths from 0 to 4"):
        kf.nn.ctc_loss(log_p, text, np.array([9]), np.array([1]))
    with pytest.raises(ValueError, match=r"target_lengths=\[3\] is not valid; expected lengths from 0 to 1"):
        kf.nn.ctc_loss(log_p, text, np.array([4]), np.array([3]))
    for offsets in ([1], [0, 2, 1], [0, 5]):
        with pytest.raises(ValueError, match="expected increasing numbers from 0 to 3, the first 0"):
            kf.nn.embedding_bag(np.arange(3), np.ones((4, 2)), np.array(offsets))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_to_nothing_and_by_nothing(causal: bool) -> None:
    """As PyTorch 2.13 has it: zeros without keys, means of what a query sees without a width."""
    q, v = X[None, :4], X[None, 4:7]
    found = nn.scaled_dot_product_attention(q, v[:, :0], v[:, :0], is_causal=causal)
    np.testing.assert_array_equal(np.asarray(found), np.zeros((1, 4, v.shape[2])))
    found = nn.scaled_dot_product_attention(q[..., :0], v[..., :0], v, is_causal=causal)
    seen = [np.mean(v[:, : min(i + 1, 3) if causal else 3], axis=1) for i in range(4)]
    np.testing.assert_allclose(np.asarray(found), np.stack(seen, 1), rtol=1e-6)
    slopes = kf.jit(kf.grad(lambda v: nn.scaled_dot_product_attention(q[..., :0], v[..., :0], v).sum()))(v)
    np.testing.assert_allclose(np.asarray(slopes), 4 / 3, rtol=1e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, INF])
def test_pairs_that_are_not_asked_for_have_no_slope(p: float) -> None:
    """The distance of a row that holds an infinity to itself is nan."""
    x = normal(4, 3)
    x[2, 1] = INF
    found = np.asarray(kf.grad(lambda x: nn.pdist(x, p).sum())(x))
    assert np.isfinite(found[:, [0, 2]]).all()
