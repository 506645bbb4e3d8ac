"""The network of the miniature."""

import pytest
import torch

from core_utils.errors import UserError
from snn_tet import tiny_vgg


def test_parameters_are_counted():
    # 3x3 convolutions 2-16-32-64 without bias, a weight and a bias for each normalised channel, 576 x 10 + 10.
    expected = 9 * (2 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 3 * 3 * 10 + 10
    assert sum(parameter.numel() for parameter in tiny_vgg().parameters()) == expected == 29_322


@pytest.mark.parametrize("steps", [1, 5])
def test_outputs_have_a_row_for_every_step_and_sample(steps):
    assert tiny_vgg(3, 7, widths=(4, 8), size=12)(torch.rand(steps, 2, 3, 12, 12)).shape == (steps, 2, 7)


def test_nothing_is_kept_between_calls_and_the_past_does_not_see_the_future():
    torch.manual_seed(0)
    model = tiny_vgg().eval()
    frames = torch.rand(5, 3, 2, 24, 24)
    outputs = model(frames)
    assert torch.equal(model(frames), outputs)
    assert torch.allclose(model(frames[:2]), outputs[:2], atol=1e-6)


def test_activity_between_blocks_is_made_of_quarters():
    model, seen = tiny_vgg(), []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.rand(3, 2, 2, 24, 24))
    assert torch.equal(4 * seen[0], (4 * seen[0]).round())
    assert 0 < seen[0].mean() < 1


def test_an_image_too_small_is_refused():
    with pytest.raises(UserError, match="3 blocks halve 7 pixels to nothing"):
        tiny_vgg(size=7)
