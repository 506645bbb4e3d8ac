"""Ways to compute a layer of neurons; they differ in speed and memory, never in spikes."""

from collections.abc import Callable

from torch import Tensor

from core_utils.spiking.backends.fused import fused
from core_utils.spiking.backends.reference import reference
from core_utils.spiking.dynamics import Neuron

Backend = Callable[[Tensor, Tensor | None, Neuron], tuple[Tensor, Tensor]]
"""From x_seq [T, B, ...], v0 [B, ...] or None for rest, and the neuron, to the spikes and the last membrane potential.

`v0` and the last potential have the precision `kept(x_seq.dtype)`; gradients flow to `x_seq` and `v0`.
"""

BACKENDS: dict[str, Backend] = {"reference": reference, "fused": fused}
