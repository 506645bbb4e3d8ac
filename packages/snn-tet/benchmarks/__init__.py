"""A layer of LIF neurons beside the same layer in spikingjelly and snntorch, and a whole training step.

The layers get the same input, [10, 32, 64, 32, 32] in float32, the same gradient of the spikes, and one thread. Set-ups
call the neuron once beforehand, so that neither the time nor the memory of a compiler counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core_utils.bench import Benchmark

if TYPE_CHECKING:
    from torch import Tensor, nn

SHAPE = (10, 32, 64, 32, 32)  # T, B, C, H, W
TINY = (10, 1, 1, 2, 2)
DECAY = 0.5  # a step; tau = 2 of spikingjelly
ALPHA = 2.0  # of the arctan surrogate, which all three have


def ours() -> Callable[[], object]:
    """`lif` with the backend that it takes by itself."""
    from core_utils.spiking.neurons import lif
    from core_utils.spiking.surrogates import atan

    return timed(lambda x_seq: lif(x_seq, decay=DECAY, compare=">=", surrogate=atan(ALPHA)))


def spikingjelly_eager() -> Callable[[], object]:
    """The LIFNode of spikingjelly over all steps at once, in eager torch, as its users get it on a CPU."""
    return timed(_spikingjelly())


def spikingjelly_inductor() -> Callable[[], object]:
    """The same LIFNode under torch.compile, whose kernels are made for one shape."""
    import torch

    return timed(_spikingjelly(torch.compile), warm_up=SHAPE)


def snntorch_loop() -> Callable[[], object]:
    """Leaky of snntorch in a loop over the steps, its only way; it detaches its reset, which is less work."""
    import snntorch
    import torch
    from snntorch import surrogate

    node = snntorch.Leaky(DECAY, spike_grad=surrogate.atan(ALPHA), reset_mechanism="zero", reset_delay=False)

    def neuron(x_seq: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x_seq[0]), []
        for x in x_seq:
            s, v = node(x, v)
            spikes.append(s)
        return torch.stack(spikes)

    return timed(neuron)


def timed(neuron: Callable[[Tensor], Tensor], *, warm_up: tuple[int, ...] = TINY) -> Callable[[], object]:
    """Forward and backward of a neuron that was called once before, on an input of shape `warm_up`."""
    import torch

    def call(shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
        x_seq, gradient = inputs if shape == SHAPE else (part[tuple(map(slice, shape))] for part in inputs)
        spikes = neuron(x_seq)
        return spikes, torch.autograd.grad(spikes, x_seq, gradient)[0]

    generator = torch.Generator().manual_seed(0)
    x_seq = torch.rand(SHAPE, generator=generator).mul_(1.6).sub_(0.2).requires_grad_()  # a third of the steps spike
    inputs = x_seq, torch.rand(SHAPE, generator=generator)
    call(warm_up)
    return call


def _spikingjelly(compiler: Callable[[Callable], Callable] = lambda node: node) -> Callable[[Tensor], Tensor]:
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(
        tau=1 / (1 - DECAY), decay_input=False, surrogate_function=surrogate.ATan(ALPHA), step_mode="m"
    )
    run = compiler(node)

    def spikes(x_seq: Tensor) -> Tensor:
        functional.reset_net(node)
        return run(x_seq)

    return spikes


LAYOUT = (16, 32, "AP", 64, 64, "AP", 128, 128, "AP", 128, 128, "AP")  # VGGSNN with a quarter of its channels


def our_step() -> Callable[[], object]:
    """A training step of the narrow VGGSNN, 16 recordings of 10 frames of 24 x 24 pixels."""
    return training_step(our_network())


def spikingjelly_step() -> Callable[[], object]:
    """The same step of the same network in spikingjelly's multi-step mode."""
    return training_step(spikingjelly_network())


def our_network() -> nn.Module:
    """The narrow VGGSNN of core_utils' parts."""
    from torch import nn

    from core_utils.spiking.dynamics import Neuron
    from core_utils.spiking.networks import SpikingNetwork, vgg_blocks
    from core_utils.spiking.surrogates import atan

    blocks = vgg_blocks(2, LAYOUT, Neuron(decay=DECAY, compare=">=", surrogate=atan(ALPHA)))
    return SpikingNetwork(nn.Sequential(*blocks), nn.Linear(128, 10))


def spikingjelly_network() -> nn.Module:
    """The same network of spikingjelly's parts; resets itself before every batch."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
    from torch import nn

    modules: list[nn.Module] = []
    channels = 2
    for width in LAYOUT:
        if width == "AP":
            modules.append(layer.AvgPool2d(2))
            continue
        spike = neuron.LIFNode(tau=1 / (1 - DECAY), decay_input=False, surrogate_function=surrogate.ATan(ALPHA))
        modules += [layer.Conv2d(channels, width, 3, padding=1), layer.BatchNorm2d(width), spike]
        channels = width
    network = nn.Sequential(*modules, layer.Flatten(), layer.Linear(128, 10))
    functional.set_step_mode(network, "m")
    network.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
    return network


def training_step(network: nn.Module) -> Callable[[], object]:
    """Forward, TET loss, backward and Adam on a fixed batch; called once beforehand on a tiny one."""
    import torch

    from snn_tet import tet_loss

    generator = torch.Generator().manual_seed(0)
    x_seq, labels = torch.rand(10, 16, 2, 24, 24, generator=generator), torch.arange(16) % 10
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step(samples: int = 16) -> None:
        optimizer.zero_grad()
        tet_loss(network(x_seq[:, :samples]), labels[:samples]).backward()
        optimizer.step()

    step(2)
    return step


WHAT = "Forward and backward of a LIF layer, [10, 32, 64, 32, 32] in float32, hard reset, arctan surrogate, one thread"

LAYERS = tuple(
    Benchmark(
        id=f"lif-{name}",
        statement=f"{WHAT}: at least 1.4 times as fast as {peer_is}.",
        ours=ours,
        peer=peer,
        target=1.4,
    )
    for name, peer, peer_is in (
        ("spikingjelly-torch", spikingjelly_eager, "spikingjelly's LIFNode in eager torch"),
        ("spikingjelly-inductor", spikingjelly_inductor, "spikingjelly's LIFNode under torch.compile, warm"),
        ("snntorch", snntorch_loop, "snntorch's Leaky, which detaches its reset"),
    )
)
STEP = Benchmark(
    id="vggsnn-step",
    statement="A training step of VGGSNN (a quarter of the channels, B=16, T=10, 24 x 24) is at least 1.2 times as fast as "
    "in spikingjelly's multi-step mode.",
    ours=our_step,
    peer=spikingjelly_step,
    target=1.2,
)
BENCHMARKS = (*LAYERS, STEP)
