"""Flows that are known exactly: of Gaussian data, of jumps made of Euler steps, of any 1-D mixture.

Data N(m, s^2) in every channel has sigma_t^2 = (1-t)^2 s^2 + t^2, and its standardised token
(z - (1-t) m) / sigma_t is constant along the flow. Works for NumPy and JAX, times as in
`fasttta_jax/flow/path.py`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np


def over(t, z):
    """Times, NumPy's scalars among them, with axes of length 1 for those that z has behind."""
    return t.reshape(t.shape + (1,) * (z.ndim - t.ndim))


@dataclasses.dataclass(frozen=True)
class GaussianFlow:
    """The flow of N(mean, std^2)."""

    mean: float = 0.3
    std: float = 0.5

    def sigma(self, t):
        return ((1 - t) ** 2 * self.std**2 + t**2) ** 0.5

    def __call__(self, z, r, t):
        """The average velocity, with no difference of nearly equal numbers."""
        slope = ((1 + self.std**2) * (t + r) - 2 * self.std**2) / (
            self.sigma(t) * (self.sigma(t) + self.sigma(r))
        )
        return -self.mean + over(slope, z) * (z - (1 - over(t, z)) * self.mean)

    def jump(self, z, r, t):
        """Where the flow leads from time t to r, by standardising."""
        ratio = over(self.sigma(r) / self.sigma(t), z)
        return (1 - over(r, z)) * self.mean + ratio * (z - (1 - over(t, z)) * self.mean)


def euler_tower(flow: GaussianFlow, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """a and b [K+1, K+1] of the jumps z -> a z + b from i / K to j / K by K Euler steps in all."""
    a, b = np.eye(num_steps + 1), np.zeros((num_steps + 1, num_steps + 1))
    for start in range(1, num_steps + 1):
        t, zero, one = np.float64(start / num_steps), np.zeros(()), np.ones(())
        constant = flow(zero, t, t)
        slope = flow(one, t, t) - constant
        factor, shift = 1 - slope / num_steps, -constant / num_steps
        a[start, :start] = a[start - 1, :start] * factor
        b[start, :start] = a[start - 1, :start] * shift + b[start - 1, :start]
    return a, b


@dataclasses.dataclass(frozen=True)
class MixtureFlow:
    """The flow of a mixture of Gaussians in one dimension, float64."""

    weights: tuple[float, ...] = (0.3, 0.7)
    means: tuple[float, ...] = (-1.0, 0.8)
    stds: tuple[float, ...] = (0.2, 0.35)

    def parts(self, t: float) -> list[tuple[float, float, float]]:
        """Weight, mean and std of the components of z at time t."""
        each = zip(self.weights, self.means, self.stds, strict=True)
        return [(w, (1 - t) * m, math.hypot((1 - t) * s, t)) for w, m, s in each]

    def cdf(self, z: float, t: float) -> float:
        return sum(w * 0.5 * math.erfc((m - z) / (s * 2**0.5)) for w, m, s in self.parts(t))

    def velocity(self, z: float, t: float) -> float:
        """E[e - x | z]: of each component by its posterior probability."""
        density = [w / s * math.exp(-0.5 * ((z - m) / s) ** 2) for w, m, s in self.parts(t)]
        each = [GaussianFlow(m, s) for m, s in zip(self.means, self.stds, strict=True)]
        time = np.float64(t)
        values = [float(flow(np.float64(z), time, time)) for flow in each]
        return sum(map(float.__mul__, density, values)) / sum(density)

    def jump(self, z: float, r: float, t: float) -> float:
        """F_r^-1(F_t(z)), by bisection."""
        wanted, low, high = self.cdf(z, t), -20.0, 20.0
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.cdf(middle, r) < wanted else (low, middle)
        return 0.5 * (low + high)
