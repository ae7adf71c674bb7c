"""What is refused, and in which words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import kernelforge as kf
from kernelforge import errors, nn
from tests.nn.case import normal

F32 = np.float32
X, G, B = (normal(*s).astype(F32) for s in ((12, 20), (20,), (20,)))
IMAGE, KERNEL = normal(2, 3, 8, 8).astype(F32), normal(4, 3, 3, 3).astype(F32)

REFUSED = [
    (lambda: nn.conv2d(IMAGE, KERNEL[:, :2]), "conv2d: shapes (2, 3, 8, 8) and (4, 2, 3, 3) do not fit"),
    (lambda: nn.conv2d(IMAGE, KERNEL, stride=2, padding="same"), "conv2d: padding='same' is not valid"),
    (lambda: nn.conv2d(IMAGE[:, :, :2], KERNEL), "an input, padded, that the kernel fits in"),
    (lambda: nn.conv2d(IMAGE, KERNEL, groups=3), "conv2d: groups=3 is not valid; expected a divisor of the 4 outputs"),
    (lambda: nn.conv2d(IMAGE, KERNEL, stride=(1, 2, 3)), "conv2d: stride=(1, 2, 3) is not valid"),
    (lambda: nn.conv_transpose2d(IMAGE, KERNEL), "as many channels in both, axes 1 and 0"),
    (lambda: nn.max_pool2d(IMAGE, 2, padding=2), "max_pool2d: padding=2"),
    (lambda: nn.pad(IMAGE, (1, 1), mode="mirror"), "pad: mode='mirror' is not valid"),
    (lambda: nn.layer_norm(X, 7), "layer_norm: shapes (12, 20) do not fit"),
    (lambda: nn.group_norm(IMAGE, 2), "a number of channels, axis 1, that 2 divides"),
    (lambda: nn.mse_loss(X, G), "mse_loss: shapes (12, 20) and (20,) do not fit"),
    (lambda: nn.mse_loss(X, X, reduction="max"), "mse_loss: reduction='max' is not valid; expected mean, sum or none"),
    (lambda: nn.cross_entropy(X, np.zeros(5, int)), "cross_entropy: shapes (12, 20) and (5,) do not fit"),
    (lambda: nn.nll_loss(X[:5, :5], X[:5, :5]), "nll_loss: target='float32' is not valid; expected integers that name"),
    (lambda: nn.multi_margin_loss(X, X), "multi_margin_loss: target='float32' is not valid"),
    (lambda: nn.prelu(X, B[:3]), "prelu: shapes (3,) do not fit; expected (20,), as axis 1 has, or 1"),
    (lambda: nn.linear(X, KERNEL[0, 0]), "a weight of shape (outputs, inputs), as the last axis has"),
    (lambda: nn.gelu(X, approximate="sigmoid"), "gelu: approximate='sigmoid' is not valid; expected none or tanh"),
    (lambda: nn.glu(X[:, :3]), "glu: shapes (12, 3) do not fit; expected an even extent of axis -1"),
    (lambda: nn.interpolate(IMAGE, 3, mode="linear"), "interpolate: mode='linear' is not valid"),
    (lambda: nn.interpolate(IMAGE), "interpolate: size=None is not valid; expected it or scale_factor, and not both"),
    (lambda: nn.pixel_shuffle(IMAGE, 2), "pixel_shuffle: shapes (2, 3, 8, 8) do not fit"),
    (lambda: nn.scaled_dot_product_attention(X, X[:, :3], X), "scaled_dot_product_attention: shapes"),
    (lambda: nn.rotary_embedding(X[:, :3]), "(..., length, width), the width even"),
    (lambda: nn.layer_norm(X, 20, G[None]), "layer_norm: shapes (1, 20) do not fit; expected a weight of shape (20,)"),
    (lambda: nn.group_norm(IMAGE, 3, G), "group_norm: shapes (20,) do not fit; expected a weight of shape (3,)"),
    (lambda: nn.batch_norm(IMAGE, G, G), "batch_norm: shapes (20,) do not fit; expected running statistics of shape"),
    (lambda: nn.batch_norm(IMAGE, G[:3], None), "batch_norm: running_var=None is not valid; expected both running"),
    (lambda: nn.instance_norm(IMAGE, use_input_stats=False), "instance_norm: running_mean=None is not valid"),
    (lambda: nn.instance_norm(IMAGE[:, :, :1, :1]), "more than one value for each channel of a sample"),
    (lambda: nn.linear(X, X, G), "linear: shapes (20,) do not fit; expected a bias of shape (12,)"),
    (lambda: nn.bilinear(X, X[:3], KERNEL[0]), "a weight of shape (outputs, inputs1, inputs2), and inputs that"),
    (lambda: nn.cross_entropy(X, np.full(12, 20)),
     "cross_entropy: target=20 is not valid; expected integers from 0 to 19, or -100 to be ignored"),
    (lambda: nn.nll_loss(X, np.full(12, -1), ignore_index=3),
     "nll_loss: target=-1 is not valid; expected integers from 0 to 19, or 3 to be ignored"),
    (lambda: kf.jit(lambda x: nn.cross_entropy(x, np.full(12, -1)))(X), "cross_entropy: target=-1 is not valid"),
    (lambda: nn.multi_margin_loss(X, np.full(12, 20)), "multi_margin_loss: target=20 is not valid; expected integers"),
    (lambda: nn.multilabel_margin_loss(X, np.full((12, 20), 20)), "multilabel_margin_loss: target=20 is not valid"),
    (lambda: nn.embedding(np.array([12]), X), "embedding: input=12 is not valid; expected integers from 0 to 11"),
    (lambda: nn.embedding(X, X), "embedding: input='float32' is not valid; expected integers that name rows"),
    (lambda: nn.embedding(np.array([1]), X, padding_idx=12), "padding_idx=12 is not valid; expected one of 12 rows"),
    (lambda: nn.embedding_bag(np.array([1]), X), "embedding_bag: shapes (1,) do not fit; expected (bags, longest), or"),
    (lambda: nn.one_hot(np.array([3]), 3), "one_hot: tensor=3 is not valid; expected integers from 0 to 2"),
    (lambda: kf.jit(nn.one_hot)(np.array([3])),
     "one_hot: num_classes=-1 is not valid; expected the number of classes, which is not known while a function"),
    (lambda: nn.one_hot(np.zeros(0, int)),
     "num_classes=-1 is not valid; expected the number of classes, as no elements"),
    (lambda: nn.one_hot(np.array([3]), -2),
     "one_hot: num_classes=-2 is not valid; expected 1 or more, or -1 to find it"),
    (lambda: nn.max_pool1d(X[None], 0), "max_pool1d: kernel_size=0 is not valid; expected 1 or more"),
    (lambda: nn.huber_loss(X, X, delta=0), "huber_loss: delta=0 is not valid; expected above 0"),
    (lambda: nn.binary_cross_entropy(G * 0 + 2, G * 0),
     "binary_cross_entropy: input=2.0 is not valid; expected probabilities from 0 to 1"),
    (lambda: nn.binary_cross_entropy(G * 0, G * 0 - 1), "binary_cross_entropy: target=-1.0 is not valid"),
    (lambda: nn.gaussian_nll_loss(G, G, -1.0), "gaussian_nll_loss: var=-1.0 is not valid; expected 0 or more"),
    (lambda: nn.gaussian_nll_loss(X, X, np.ones((1, 1))),
     "gaussian_nll_loss: shapes (12, 20) and (1, 1) do not fit; expected variances of the input's shape, one axis 1"),
    (lambda: nn.mse_loss(X, X, weight=G), "mse_loss: shapes (12, 20) and (20,) do not fit; expected weights of the"),
    (lambda: nn.huber_loss(X, X, weight=G),
     "huber_loss: shapes (12, 20) and (20,) do not fit; expected weights of the"),
    (lambda: nn.margin_ranking_loss(X, X, X[:1]),
     "shapes (12, 20), (12, 20) and (1, 20) do not fit; expected one shape for input1, input2, target"),
    (lambda: nn.cosine_embedding_loss(X, X, G[:1]), "shapes (12, 20) and (1,) do not fit; expected a target of (12,)"),
    (lambda: nn.cosine_embedding_loss(X, X[:1], G[:12]), "shapes (12, 20) and (1, 20) do not fit; expected one shape"),
    (lambda: nn.triplet_margin_loss(X, X, X[:1]), "expected one shape for anchor, positive, negative"),
    (lambda: nn.triplet_margin_with_distance_loss(X, X, G), "expected one shape for anchor, positive, negative"),
    (lambda: nn.interpolate(IMAGE, 3, mode="lanczos"),
     "mode='lanczos' is not valid; expected another one, or antialias"),
    (lambda: nn.interpolate(IMAGE, 3, antialias=True),
     "antialias=True is not valid; expected False for mode='nearest'"),
    (lambda: nn.fractional_max_pool2d(IMAGE, 3, 7), "expected extents of at least output_size + kernel_size - 1"),
    (lambda: nn.fractional_max_pool2d(IMAGE, 3), "output_size=None is not valid; expected it or output_ratio"),
    (lambda: nn.gru(X[:, :, None], None, X[:6, :1], X[:6, :2], lengths=np.full(20, 13)),
     "expected integers from 0 to 12"),
    (lambda: nn.gru(X[:, :, None], None, X[:6, :1], X[:6, :2], lengths=np.ones(3, int)),
     "expected lengths of shape (20,)"),
    (lambda: nn.multi_head_attention_forward(*[X[:, None]] * 3, 20, 3, X, None, None, None, False, 0.0, X, None),
     "multi_head_attention_forward: num_heads=3 is not valid; expected a divisor of the width 20"),
    (lambda: nn.pdist(G), "pdist: shapes (20,) do not fit; expected (rows, width)"),
    (lambda: nn.feature_alpha_dropout(G, key=kf.random.key(0)), "axes for the batch and for channels, at least"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[text[:30] for _, text in REFUSED])
def test_refusals(call: Any, text: str) -> None:
    with pytest.raises((errors.ShapeMismatch, errors.InvalidParameter), match=re.escape(text)) as found:
        call()
    assert "test_refusals.py" in str(found.value)
