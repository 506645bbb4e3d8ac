"""Ranges of activations, from the tensors that pass their quantisers (Sec. 4.1: MSE-like search on 256 samples)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from qdrop.errors import CalibrationError

if TYPE_CHECKING:
    from qdrop.student import ActivationQuantizer

MEMORY = 2**30
"""Bytes of activations that are held at once; the samples are run again for the other quantisers."""


def find_ranges(
    quantizers: Mapping[str, ActivationQuantizer], sizes: Mapping[str, int], run: Callable[[], None], samples: int
) -> None:
    """Gives every quantiser its range.

    Args:
        quantizers: by name; they are switched off meanwhile.
        sizes: elements a sample of each one's tensor.
        run: passes all samples through the quantisers, without gradients.
        samples: how many these are.

    Raises:
        CalibrationError: a tensor never came by, or is not finite.
    """
    enabled = {name: quantizer.enabled for name, quantizer in quantizers.items()}
    for group in _groups(list(quantizers), sizes, samples):
        try:
            for name in quantizers:
                quantizers[name].enabled = False
            for name in group:
                quantizers[name].seen = []
            run()
            for name in group:
                _set_range(name, quantizers[name])
        finally:
            for name, quantizer in quantizers.items():
                quantizer.seen, quantizer.enabled = None, enabled[name]


def _groups(names: list[str], sizes: Mapping[str, int], samples: int) -> Iterator[list[str]]:
    """Names in order, in groups whose tensors fit into memory together; one that does not fit is alone."""
    group: list[str] = []
    held = 0
    for name in names:
        size = 4 * sizes[name] * samples
        if group and held + size > MEMORY:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _set_range(name: str, quantizer: ActivationQuantizer) -> None:
    chunks = [chunk for chunk in quantizer.seen or [] if math.prod(chunk.shape)]
    if not chunks:
        raise CalibrationError(f"no calibration sample reached {name}")
    try:
        quantizer.find_range(chunks)
    except CalibrationError as error:
        raise CalibrationError(f"{name}: {error}") from None
