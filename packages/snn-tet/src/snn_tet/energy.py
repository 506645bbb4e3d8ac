"""What a trained network costs on data, as counts and as theoretical energy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from core_utils.spiking.diagnostics import firing_rates, silent_or_saturated, synaptic_ops
from snn_tet.encoding import Encoding, sequence

NOTE = "45 nm CMOS: 4.6 pJ a multiply-accumulate, 0.9 pJ an accumulate; arithmetic only, no memory traffic"


def energy_report(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    encoding: Encoding = "frames",
    time_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Firing rates, synaptic operations and theoretical energy of one inference, on average over samples.

    Args:
        model: on `device`.
        loader: batches (frames [B, T, ...], labels [B]).
        encoding: "frames" or "direct".
        time_steps: run so many steps; None runs all frames.
        device: where the model is.

    Returns:
        `layers` (name, accumulates, multiplies), `firing_rates` by neuron layer with those that are dead or saturated
        under `unhealthy`, `theoretical_energy_uj`, `theoretical_energy_of_artificial_network_uj` and `note`.

    Reference: arXiv 2202.11946 counts additions likewise; see `core_utils.spiking.diagnostics` for what counts.
    """
    batches = [sequence(frames.to(device), encoding, time_steps) for frames, _ in loader]
    operations = synaptic_ops(model, batches)
    samples = sum(batch.shape[1] for batch in batches)
    rates: dict[str, float] = {}
    for batch in batches:
        for name, rate in firing_rates(model, batch).items():
            rates[name] = rates.get(name, 0.0) + rate * batch.shape[1] / samples
    return {
        "samples": operations.samples,
        "layers": [
            {"name": name, "accumulates": layer.accumulates, "multiplies": layer.multiplies}
            for name, layer in operations.layers.items()
        ],
        "firing_rates": rates,
        "unhealthy": silent_or_saturated(rates),
        "theoretical_energy_uj": 1e6 * operations.theoretical_energy(),
        "theoretical_energy_of_artificial_network_uj": 1e6 * operations.theoretical_energy_of_artificial_network(),
        "note": NOTE,
    }
