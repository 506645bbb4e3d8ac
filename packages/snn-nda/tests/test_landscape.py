"""The loss around a network."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from core_utils.spiking.landscape import random_directions
from snn_nda import loss_landscape, loss_rise, tiny_vgg
from snn_nda.training import evaluate


def batches(sizes=(3, 1)):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(n, 3, 2, 24, 24, generator=generator), torch.arange(n)) for n in sizes]


def test_the_middle_is_the_network_itself():
    torch.manual_seed(0)
    model = tiny_vgg()
    grid = loss_landscape(model, batches(), n=3)
    assert grid.shape == (3, 3)
    assert grid[1, 1] == pytest.approx(evaluate(model, batches())["loss"], rel=1e-6)


def test_the_rise_is_that_of_weights_displaced_by_hand():
    torch.manual_seed(0)
    model = tiny_vgg().eval()
    (direction,) = random_directions(model, 1, seed=5)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = []
    for length in (-0.5, 0.5, 0.0):
        moved = {name: value + length * direction.get(name, torch.zeros(())) for name, value in before.items()}
        outputs = [
            torch.func.functional_call(model, moved, frames.transpose(0, 1)).mean(0).detach() for frames, _ in batches()
        ]
        losses.append(functional.cross_entropy(torch.cat(outputs), torch.tensor([0, 1, 2, 0])).item())
    rise = loss_rise(model, batches(), directions=1, seed=5)
    assert rise == pytest.approx(np.mean(losses[:2]) - losses[2], rel=1e-4)
