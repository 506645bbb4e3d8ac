"""Binning of events beside tonic, and augmentation of a batch beside torchvision's functions sample by sample.

tonic is under the GPL: it is timed where it is installed, and nothing depends on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from core_utils.bench import Benchmark

if TYPE_CHECKING:
    from torch import Tensor

    from snn_nda.policies import Policy

EVENTS, SENSOR, TIME_STEPS = 1_000_000, (128, 128), 10
BATCH = (32, 10, 2, 48, 48)  # B, T, C, H, W of CIFAR10-DVS
ROUNDS = 10  # a call of a millisecond is too short to time


def recording(events: int = EVENTS) -> np.ndarray:
    """Random events in order of time, a microsecond apart in the mean."""
    from core_utils.spiking.events import EVENT

    rng = np.random.default_rng(0)
    made = np.empty(events, EVENT)
    made["t"] = np.sort(rng.integers(events, size=events))
    for axis, size in zip("xy", SENSOR, strict=True):
        made[axis] = rng.integers(size, size=events)
    made["p"] = rng.integers(2, size=events)
    return made


def our_binning(events: int = EVENTS) -> Callable[[], object]:
    """`events_to_frames`, with all its checks."""
    from core_utils.spiking.events import events_to_frames

    made = recording(events)
    return lambda: events_to_frames(made, TIME_STEPS, SENSOR)


def tonics_binning(events: int = EVENTS) -> Callable[[], object]:
    """ToFrame of tonic, with as many bins of equal duration."""
    from tonic.transforms import ToFrame

    made = recording(events)
    to_frame = ToFrame(sensor_size=(*SENSOR, 2), n_time_bins=TIME_STEPS)
    return lambda: to_frame(made)


def frames() -> Tensor:
    """A batch of sparse counts."""
    import torch

    return torch.poisson(torch.full(BATCH, 0.1), generator=torch.Generator().manual_seed(0))


def our_rotation() -> Callable[[], object]:
    """NDA with rotation alone: lots, one grid, one grid_sample."""
    from snn_nda.policies import Policy

    return _ours(Policy(ops=("rotate",), flip=0.0))


def torchvisions_rotation() -> Callable[[], object]:
    """A rotation of each sample by a lot of its own, as the released code does."""
    from torchvision.transforms import functional

    return _one_by_one(lambda sample: functional.rotate(sample, random.uniform(-30, 30)))  # noqa: S311


def our_code_policy() -> Callable[[], object]:
    """NDA with the policy of the released code."""
    from snn_nda.policies import policy

    return _ours(policy("code", "cifar10-dvs"))


def torchvisions_code_policy() -> Callable[[], object]:
    """One of roll, rotation and shear for each sample, as the released code draws them."""
    import torch
    from torchvision.transforms import functional

    moves: tuple[Callable[[Tensor], Any], ...] = (
        lambda x: torch.roll(x, (random.randint(-5, 5), random.randint(-5, 5)), (-2, -1)),  # noqa: S311
        lambda x: functional.rotate(x, random.uniform(-30, 30)),  # noqa: S311
        lambda x: functional.affine(x, 0.0, [0, 0], 1.0, [random.uniform(-30, 30), 0.0]),  # noqa: S311
    )
    return _one_by_one(lambda sample: random.choice(moves)(sample))  # noqa: S311


def our_paper_policy() -> Callable[[], object]:
    """NDA as it is by default, on the batch of the training step; once."""
    from snn_nda.policies import PAPER

    return _ours(PAPER, rounds=1)


def training_step() -> Callable[[], object]:
    """Forward, backward and Adam of VGG-11 with a quarter of its channels, on the same batch."""
    import torch
    from torch import nn

    from core_utils.spiking.dynamics import Neuron
    from core_utils.spiking.layout import time_first
    from core_utils.spiking.networks import vgg_blocks
    from core_utils.spiking.surrogates import rectangle

    neuron = Neuron(decay=0.25, threshold=0.5, compare=">=", surrogate=rectangle(1.0))
    layout = (16, "AP", 32, "AP", 64, 64, "AP", 128, 128, 128, 128)
    network = nn.Sequential(*vgg_blocks(2, layout, neuron, init_scale=0.5))
    head = nn.Linear(128, 10)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=1e-3)
    x, labels = frames(), torch.arange(BATCH[0]) % 10

    def step() -> None:
        optimizer.zero_grad()
        scores = head(network(time_first(x)).mean((-2, -1))).mean(0)
        nn.functional.cross_entropy(scores, labels).backward()
        optimizer.step()

    return step


def _ours(policy: Policy, rounds: int = ROUNDS) -> Callable[[], object]:
    import torch

    from snn_nda.nda import NDA

    nda, x = NDA(policy, generator=torch.Generator().manual_seed(0)), frames()
    return repeated(lambda: nda(x), rounds)


def _one_by_one(move: Callable[[Tensor], Any]) -> Callable[[], object]:
    import torch

    x = frames()
    random.seed(0)
    return repeated(lambda: torch.stack([move(sample) for sample in x]))


def repeated(call: Callable[[], Tensor], rounds: int = ROUNDS) -> Callable[[], object]:
    """Several calls, of which only the last batch is kept, as in training."""

    def rounds_of_it() -> Tensor:
        for _ in range(rounds - 1):
            call()
        return call()

    return rounds_of_it


BENCHMARKS = (
    Benchmark(
        id="binning-tonic",
        statement="A million events of a 128 x 128 sensor are binned into 10 frames at least 3 times as fast as by tonic's "
        "ToFrame.",
        ours=our_binning,
        peer=tonics_binning,
        target=3.0,
    ),
    Benchmark(
        id="rotation-torchvision",
        statement="A batch (B=32, T=10, 48 x 48) is rotated at least twice as fast as by torchvision's rotate sample by "
        "sample.",
        ours=our_rotation,
        peer=torchvisions_rotation,
        target=2.0,
    ),
    Benchmark(
        id="policy-torchvision",
        statement="The released code's policy moves the same batch at least twice as fast as torchvision's functions sample "
        "by sample.",
        ours=our_code_policy,
        peer=torchvisions_code_policy,
        target=2.0,
    ),
    Benchmark(
        id="share-of-a-step",
        statement="NDA takes less than a twentieth of a training step of VGG-11 with a quarter of its channels on the same "
        "batch.",
        ours=our_paper_policy,
        peer=training_step,
        target=20.0,
    ),
)
