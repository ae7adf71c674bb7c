"""A fused layer and its gradients: what becomes one kernel, and what its bytes are."""

from __future__ import annotations

import numpy as np

import kernelforge as kf


@kf.jit
def layer(x, w, b, residual):
    """Return a dense layer with GELU, a scale and a residual connection."""
    y = x @ w + b
    return residual + 0.5 * (y * (1 + np.tanh(0.7978845608 * (y + 0.044715 * y**3))))


def loss(w, b, x, residual):
    return (layer(x, w, b, residual) ** 2).mean()


gradient = kf.jit(kf.grad(loss, argnums=(0, 1)))


def main(small: bool = False) -> None:
    batch, width = (8, 16) if small else (256, 512)
    rng = np.random.default_rng(0)
    x, residual = (rng.standard_normal((batch, width), dtype=np.float32) for _ in range(2))
    w = rng.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width))
    b = np.zeros(width, np.float32)

    y = np.asarray(layer(x, w, b, residual))
    np.testing.assert_allclose(y, layer.__wrapped__(x, w, b, residual), rtol=1e-4, atol=1e-4)
    print(f"forward: {len(layer.lower(x, w, b, residual).kernels)} kernel")

    dw, db = gradient(w, b, x, residual)
    print(f"gradient of w {dw.shape} and b {db.shape}:")
    for kernel in gradient.lower(w, b, x, residual).kernels:
        print(f"  {kernel.name}: {kernel.bytes:,} bytes, {kernel.flops:,} operations")


if __name__ == "__main__":
    main()
