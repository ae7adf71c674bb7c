"""Random vectors and matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelforge.errors import ShapeMismatch
from kernelforge.methods import FUNCTIONS
from kernelforge.numpy.creation import shape_of
from kernelforge.random.continuous import normal
from kernelforge.random.keys import checked, whole
from kernelforge.random.uniforms import Shape, floating, widened


@checked()
def multivariate_normal(key: Any, mean: Any, cov: Any, shape: Shape | None = None, dtype: Any = np.float32) -> Any:
    """Make vectors of normal numbers of the given means and covariances, by Cholesky's factor of these.

    Args:
        mean: of shape ``(..., n)``.
        cov: of shape ``(..., n, n)``, positive definite; elsewhere the vectors are NaN.
        shape: of the result without its last axis; by default what the leading axes of both broadcast to.
    """
    op = "random.multivariate_normal"
    kind, wide = widened(floating("multivariate_normal", dtype))
    mean, cov = (FUNCTIONS["asarray"](x, wide) for x in (mean, cov))
    if mean.ndim < 1 or cov.shape[-2:] != 2 * mean.shape[-1:]:
        found = f"{mean.shape} and {cov.shape}"
        raise ShapeMismatch(op=op, found=found, expected="means (..., n) and covariances (..., n, n)")
    lead = np.broadcast_shapes(mean.shape[:-1], cov.shape[:-2]) if shape is None else shape_of(shape, op)
    drawn = normal(key, (*lead, mean.shape[-1]), wide)
    return (mean + FUNCTIONS["matvec"](FUNCTIONS["linalg.cholesky"](cov), drawn)).astype(kind)


@checked()
def orthogonal(key: Any, n: int, shape: Shape = (), dtype: Any = np.float32) -> Any:
    """Make orthogonal matrices ``(*shape, n, n)``, evenly spread: Q of a matrix of normal numbers (Stewart 1980)."""
    side = whole("orthogonal", "n", n)
    kind, wide = widened(floating("orthogonal", dtype))
    drawn = normal(key, (*shape_of(shape, "random.orthogonal"), side, side), wide)
    q, r = FUNCTIONS["linalg.qr"](drawn)
    # the signs that make the factors unique, without which Q is not evenly spread
    signs = FUNCTIONS["copysign"](1.0, FUNCTIONS["diagonal"](r, 0, -2, -1)).astype(wide)
    return (q * signs[..., None, :]).astype(kind)
