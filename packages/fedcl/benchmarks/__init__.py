"""Euler's method beside scipy's general solver, on the same decay rates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from core_utils.bench import Benchmark

RATE = -np.random.default_rng(0).uniform(0.1, 2.0, size=100_000)  # 1/s
START = np.ones_like(RATE)


def ours() -> Callable[[], object]:
    """A thousand steps over one second; its error on these rates is below 0.001."""
    from fedcl import integrate

    return lambda: integrate(RATE, START, step=0.001, duration=1.0)


def peer() -> Callable[[], object]:
    """The default solver of scipy at its default tolerance, 0.001."""
    from scipy.integrate import solve_ivp

    return lambda: solve_ivp(lambda _, state: RATE * state, (0.0, 1.0), START)


BENCHMARKS = (
    Benchmark(
        id="linear-decay",
        statement="A hundred thousand decays take less time than with scipy's solve_ivp at the same accuracy.",
        ours=ours,
        peer=peer,
        target=1.0,
    ),
)
