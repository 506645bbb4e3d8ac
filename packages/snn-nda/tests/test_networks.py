"""The paper's networks: their sizes, neurons and starting weights."""

import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.spiking.networks import LIF
from core_utils.spiking.surrogates import rectangle
from snn_nda.networks import feature_size, features, resnet19, tiny_vgg, vgg11, vgg13, vgg16


def vgg_parameters(widths, classes):
    """Convolutions 3x3 with bias, a weight and a bias a normalised channel, one linear layer."""
    count, inside = 0, 2
    for width in widths:
        count += 9 * inside * width + 3 * width
        inside = width
    return count + inside * classes + classes


@pytest.mark.parametrize(
    ("network", "channels", "classes", "count"),
    [
        # The first four: shared spec of the spiking papers, section 5.
        (vgg11, 2, 10, 9_230_538),
        (vgg11, 2, 101, 9_277_221),
        (resnet19, 3, 10, 12_630_858),
        (resnet19, 3, 100, 12_653_988),
        (resnet19, 2, 10, 12_630_858 - 9 * 64),  # only the stem sees the channels
        (vgg13, 2, 10, vgg_parameters([64, 64, 128, 128, 256, 256, 512, 512, 512, 512], 10)),
        (vgg16, 2, 10, vgg_parameters([64, 64, 128, 128, 256, 256, 256, *6 * [512]], 10)),
        (tiny_vgg, 2, 10, 9 * (2 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 3 * 3 * 10 + 10),
    ],
)
def test_parameters_are_counted(network, channels, classes, count):
    with torch.device("meta"):
        model = network(channels, classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_formula_of_the_larger_ones_gives_vgg11():
    assert vgg_parameters([64, 128, 256, 256, 512, 512, 512, 512], 10) == 9_230_538


@pytest.mark.parametrize("network", [vgg11, vgg13, vgg16, resnet19])
@pytest.mark.parametrize("size", [48, 128])
def test_frames_of_both_of_the_papers_sizes_fit(network, size):
    with torch.device("meta"):
        model = network(num_classes=7)
        assert model.blocks(torch.empty(2, 3, 2, size, size)).shape == (2, 3, 512, 1, 1)
        assert model(torch.empty(2, 3, 2, size, size)).shape == (2, 3, 7)


@pytest.mark.parametrize("network", [tiny_vgg, vgg11, resnet19])
def test_every_neuron_is_the_papers_and_every_normalisation_starts_at_its_threshold(network):
    with torch.device("cpu"):
        model = network()
    (neuron,) = {module.neuron for module in model.modules() if isinstance(module, LIF)}
    assert (neuron.decay, neuron.threshold, neuron.compare, neuron.reset) == (0.25, 0.5, ">=", "hard")
    assert (neuron.input_scale, neuron.detach_reset, neuron.surrogate) == (1.0, False, rectangle(1.0))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) >= 3
    assert all((norm.weight == 0.5).all() and (norm.bias == 0).all() for norm in norms)


def test_starting_weights_are_those_of_the_released_code():
    torch.manual_seed(0)
    model = vgg11()
    conv = model.blocks[3].conv
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert (conv.bias == 0).all()
    assert tiny_vgg().blocks[0].conv.bias is None


def test_features_are_the_mean_activity_over_time():
    torch.manual_seed(0)
    model = tiny_vgg(widths=(4, 8), size=12).eval()
    frames = torch.rand(3, 2, 2, 12, 12)
    found = features(model.blocks, frames)
    assert found.shape == (2, 8 * 3 * 3)
    assert torch.allclose(found, sum(model.blocks(frames)).flatten(1) / 3)
    # The readout is linear: the mean of its outputs is what it makes of the features.
    assert torch.allclose(model.readout(found), model(frames).mean(0), atol=1e-6)


@pytest.mark.parametrize(("network", "size", "count"), [(tiny_vgg, 24, 576), (vgg11, 16, 512)])
def test_the_size_of_features_is_found_without_changing_the_encoder(network, size, count):
    encoder = network().blocks
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert feature_size(encoder, 2, size) == count
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_an_image_too_small_is_refused():
    with pytest.raises(UserError, match="3 blocks halve 7 pixels to nothing"):
        tiny_vgg(size=7)


def test_time_is_traded_for_memory_on_request():
    with torch.device("meta"):
        assert [network(checkpoint_segments=4).checkpoint_segments for network in (vgg11, vgg13, vgg16, resnet19)] == [
            4
        ] * 4
