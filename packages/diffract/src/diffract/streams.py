"""Streams of random numbers that never meet: training, new diffusers, initial phases, displacements."""

from __future__ import annotations

import enum

import jax

from diffract.geometries import Key


class Stream(enum.IntEnum):
    """What random numbers are for."""

    TRAINING = 0
    NEW = 1
    INIT = 2
    DISPLACEMENT = 3
    VALIDATION = 4


def stream(seed: int, which: Stream, *indices: int) -> Key:
    """The key of one stream, and of one epoch, step or draw within it."""
    key = jax.random.fold_in(jax.random.PRNGKey(seed), int(which))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key
