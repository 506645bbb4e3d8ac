"""The paper's networks: their sizes, layouts and starting weights."""

import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.spiking.networks import LIF, ResidualBlock
from core_utils.spiking.surrogates import triangle
from snn_tet import resnet19, sew_resnet34, spiking_resnet34, tiny_vgg, vggsnn, vggsnn_woap
from snn_tet.networks import SEWBlock


def resnet34_parameters(classes):
    """Convolutions 7x7, 3x3 and 1x1 without bias, a weight and a bias a normalised channel, one linear layer."""
    count, inside = 49 * 3 * 64 + 2 * 64, 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        count += 9 * (inside * width + (2 * depth - 1) * width * width) + 2 * (2 * depth) * width
        count += inside * width + 2 * width if inside != width else 0
        inside = width
    return count + 512 * classes + classes


@pytest.mark.parametrize(
    ("network", "classes", "count"),
    [
        # The first four: shared spec of the spiking papers, section 5, of the paper's released code.
        (vggsnn, 10, 9_271_498),
        (vggsnn_woap, 10, 9_271_498),
        (resnet19, 10, 12_630_858),
        (resnet19, 100, 12_653_988),
        (sew_resnet34, 1000, resnet34_parameters(1000)),
        (spiking_resnet34, 1000, resnet34_parameters(1000)),
        # 3x3 convolutions 2-16-32-64 without bias, a weight and a bias a normalised channel, 576 x 10 + 10.
        (tiny_vgg, 10, 9 * (2 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 3 * 3 * 10 + 10),
    ],
)
def test_parameters_are_counted(network, classes, count):
    with torch.device("meta"):
        model = network(num_classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_formula_of_resnet34_is_that_of_the_published_one():
    assert resnet34_parameters(1000) == 21_797_672  # torchvision.models.resnet34


@pytest.mark.parametrize(
    ("network", "shape", "features"),
    [
        (vggsnn, (2, 48, 48), (512, 3, 3)),
        (vggsnn_woap, (2, 48, 48), (512, 3, 3)),
        (resnet19, (3, 32, 32), (512, 1, 1)),
        (sew_resnet34, (3, 224, 224), (512, 1, 1)),
        (spiking_resnet34, (3, 224, 224), (512, 1, 1)),
    ],
)
def test_frames_of_the_papers_size_fit(network, shape, features):
    with torch.device("meta"):
        model = network(num_classes=7)
        frames = torch.empty(2, 3, *shape)
        assert model.blocks(frames).shape == (2, 3, *features)
        assert model(frames).shape == (2, 3, 7)


@pytest.mark.parametrize(("network", "size", "features"), [(vggsnn, 20, 512), (vggsnn_woap, 20, 4 * 512)])
def test_frames_of_another_size_fit_when_it_is_said(network, size, features):
    with torch.device("meta"):
        model = network(size=size)
        assert model.readout.in_features == features
        assert model(torch.empty(1, 1, 2, size, size)).shape == (1, 1, 10)


@pytest.mark.parametrize("network", [tiny_vgg, vggsnn, resnet19, sew_resnet34])
def test_every_neuron_is_the_papers(network):
    with torch.device("meta"):
        neurons = {module.neuron for module in network().modules() if isinstance(module, LIF)}
    (neuron,) = neurons
    assert (neuron.decay, neuron.threshold, neuron.compare, neuron.reset) == (0.5, 1.0, ">", "hard")
    assert (neuron.input_scale, neuron.detach_reset, neuron.surrogate) == (1.0, False, triangle(1.0))


def test_layers_are_those_of_the_paper():
    with torch.device("meta"):
        convolutions = {
            network: [m for m in network().modules() if isinstance(m, nn.Conv2d)]
            for network in (vggsnn, vggsnn_woap, resnet19, sew_resnet34)
        }
        residual = [block for block in resnet19().blocks if isinstance(block, ResidualBlock)]
        sew = [block for block in sew_resnet34().blocks if isinstance(block, SEWBlock)]
    widths = [64, 128, 256, 256, 512, 512, 512, 512]
    assert [conv.out_channels for conv in convolutions[vggsnn]] == widths
    assert [conv.out_channels for conv in convolutions[vggsnn_woap]] == widths
    assert {conv.stride for conv in convolutions[vggsnn]} == {(1, 1)}
    assert [conv.stride[0] for conv in convolutions[vggsnn_woap]] == [1, 2] * 4
    assert all(conv.bias is not None for conv in convolutions[vggsnn])
    assert all(conv.bias is None for network in (resnet19, sew_resnet34) for conv in convolutions[network])
    assert [block.second.conv.out_channels for block in residual] == [128] * 3 + [256] * 3 + [512] * 2
    assert [block.first.conv.stride[0] for block in residual] == [1, 1, 1, 2, 1, 1, 2, 1]
    assert [block.second.conv.out_channels for block in sew] == [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3


def test_starting_weights_are_those_of_the_released_code():
    torch.manual_seed(0)
    deep, residual = vggsnn(), resnet19()
    conv = deep.blocks[3].conv
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)  # Kaiming, fan out
    conv = residual.blocks[2].first.conv
    assert conv.weight.abs().max().item() == pytest.approx((9 * 128) ** -0.5, rel=0.01)  # uniform, PyTorch's default
    norms = [module for module in residual.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


def test_a_block_of_sew_resnet_adds_spikes_to_spikes():
    torch.manual_seed(0)
    block, frames = SEWBlock(2, 6, 2), 3 * torch.rand(3, 2, 2, 8, 8)
    out = block(frames)
    assert torch.equal(out, block.second(block.first(frames)) + block.shortcut(frames))
    assert set(out.unique().tolist()) == {0, 1, 2}
    assert isinstance(SEWBlock(6, 6).shortcut, nn.Identity)


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


@pytest.mark.parametrize(("network", "blocks", "size"), [(tiny_vgg, 3, 7), (vggsnn, 4, 15), (vggsnn_woap, 4, 0)])
def test_an_image_too_small_is_refused(network, blocks, size):
    with pytest.raises(UserError, match=f"{blocks} blocks halve {size} pixels to nothing"):
        network(size=size)


def test_time_is_traded_for_memory_on_request():
    with torch.device("meta"):
        assert [network(checkpoint_segments=4).checkpoint_segments for network in (vggsnn, resnet19, sew_resnet34)] == [
            4
        ] * 3
