"""A small net with weights, so that tests need no training, and a grid of it."""

import functools

import safetensors.torch
import torch

from mqbench_lite.calibration import reestimate_batch_norm
from mqbench_lite.data import FASHION_MNIST, samples, some
from mqbench_lite.grids import GridConfig
from mqbench_lite.networks import ResidualNet


@functools.cache
def state():
    """Of a net that has seen some images, so that its normalisations fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = ResidualNet()
    reestimate_batch_norm(net, some(samples(None, "train", FASHION_MNIST), 128, 64, 0))
    return net.state_dict()


def weights(folder):
    """Its file."""
    file = folder / "net.safetensors"
    safetensors.torch.save_file(state(), file)
    return file


def config(folder, **options):
    """A grid of few images and steps."""
    few = {"calibration": 64, "batch_size": 32, "steps": 3, "seeds": 1, "ptq_steps": 5}
    return GridConfig(weights=weights(folder), **few | options)
