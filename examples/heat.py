"""The heat equation on a plate: a stencil written with slices, and which points the middle depends on."""

from __future__ import annotations

import numpy as np

import kernelforge as kf
from kernelforge.demo import figures


@kf.jit
def step(u):
    """Return the temperatures a moment later; the rim of the plate keeps its own."""
    new = np.copy(u)
    around = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:]
    new[1:-1, 1:-1] += 0.2 * (around - 4 * u[1:-1, 1:-1])
    return new


def centre_after(u, steps):
    """Return the temperature of the middle after some steps."""
    for _ in range(steps):
        u = step(u)
    return u[u.shape[0] // 2, u.shape[1] // 2]


def main(small: bool = False) -> None:
    size, steps = (17, 5) if small else (512, 200)
    u = np.zeros((size, size), np.float32)
    u[size // 2 - 2 : size // 2 + 3, size // 2] = 100

    mine, theirs = u, u
    for _ in range(steps):
        mine, theirs = step(mine), step.__wrapped__(theirs)
    difference = float(np.abs(np.asarray(mine) - theirs).max())
    warmest = float(np.asarray(mine).max())
    print(f"{size}x{size} plate after {steps} steps: {warmest:.2f} at most, {difference:.1e} from NumPy")
    assert difference < 1e-3

    influence = np.asarray(kf.grad(lambda u: centre_after(u, 5))(u))
    reached = np.argwhere(influence)
    print(f"the middle is reached from {len(reached)} points in 5 steps; their shares add up to {influence.sum():.3f}")
    if not small:
        near = (slice(size // 2 - 30, size // 2 + 31),) * 2
        plates = {"at_the_start": u[near], f"after_{steps}_steps": np.asarray(mine)[near]}
        figures.save("heat.png", **{name: figures.image(v, cmap="inferno") for name, v in plates.items()})


if __name__ == "__main__":
    main()
