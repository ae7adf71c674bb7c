"""Bodies under gravity: all pairs in one kernel, forces as the gradient of the energy, time steps under ``scan``."""

from __future__ import annotations

import numpy as np

import kernelforge as kf

SOFTENING = 0.05


def potential(positions, masses):
    """Return the potential energy of bodies at ``positions`` (n, 3)."""
    apart = positions[:, None, :] - positions[None, :, :]
    distance = np.sqrt((apart * apart).sum(axis=-1) + SOFTENING**2)
    return -0.5 * (masses[:, None] * masses[None, :] / distance).sum()


def energy(positions, velocities, masses):
    """Return the energy of the system, which motion keeps."""
    return potential(positions, masses) + 0.5 * (masses[:, None] * velocities * velocities).sum()


@kf.jit(static_argnames="steps")
def simulate(positions, velocities, masses, steps, dt):
    """Move the bodies by the leapfrog method; return where they are and how fast."""
    force = kf.grad(potential)

    def advance(carry, _):
        x, v = carry
        v = v - 0.5 * dt * force(x, masses) / masses[:, None]
        x = x + dt * v
        v = v - 0.5 * dt * force(x, masses) / masses[:, None]
        return (x, v), None

    carry, _ = kf.scan(advance, (positions, velocities), None, length=steps)
    return carry


def main(small: bool = False) -> None:
    bodies, steps = (8, 10) if small else (256, 200)
    rng = np.random.default_rng(0)
    positions = rng.standard_normal((bodies, 3))
    velocities = 0.1 * rng.standard_normal((bodies, 3))
    masses = rng.uniform(0.5, 1.5, bodies) / bodies

    before = energy(positions, velocities, masses)
    x, v = simulate(positions, velocities, masses, steps=steps, dt=1e-3)
    drift = abs(energy(np.asarray(x), np.asarray(v), masses) / before - 1)
    print(f"{bodies} bodies, {steps} steps: the energy changed by {drift:.1e} of itself")
    assert drift < 1e-3


if __name__ == "__main__":
    main()
