"""The neuron beside spikingjelly's, on the same input."""

from __future__ import annotations

from collections.abc import Callable

from core_utils.bench import Benchmark

SHAPE = (10, 32, 64, 16, 16)  # T, B, C, H, W


def ours() -> Callable[[], object]:
    """Forward and backward of the LIF neuron with core_utils' fastest backend on this machine."""
    import torch

    from core_utils.spiking.neurons import lif
    from core_utils.spiking.surrogates import atan

    surrogate = atan(2.0)
    x_seq = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return lambda: lif(x_seq, decay=0.5, compare=">=", surrogate=surrogate).sum().backward()


def peer() -> Callable[[], object]:
    """The same neuron in spikingjelly: multi-step, torch backend."""
    import torch
    from spikingjelly.activation_based import functional, neuron, surrogate

    x_seq = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    node = neuron.LIFNode(
        tau=2.0, decay_input=False, v_reset=0.0, surrogate_function=surrogate.ATan(2.0), step_mode="m", backend="torch"
    )

    def call() -> None:
        node(x_seq).sum().backward()
        functional.reset_net(node)

    return call


BENCHMARKS = (
    Benchmark(
        id="lif",
        statement="Forward and backward of a LIF layer take less time and memory than spikingjelly's torch backend.",
        ours=ours,
        peer=peer,
        target=1.4,
    ),
)
