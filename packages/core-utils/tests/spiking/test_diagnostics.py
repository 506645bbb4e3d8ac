import weakref

import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.spiking.diagnostics import E_AC, E_MAC, firing_rates, silent_or_saturated, synaptic_ops
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.networks import LIF, ConvNormLIF, OverTime, SpikingNetwork, vgg_blocks

NEURON = Neuron(decay=0.5)
PASS = Neuron(decay=1.0, threshold=0.5)  # ones spike, zeros do not: spikes are the input


def spikes(*shape, rate=0.3, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def reached_by_each(layer, x):
    """Brute force: an impulse at every spike, and the outputs that notice it, weights being ones."""
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    count = 0
    for place in x.nonzero().tolist():
        impulse = torch.zeros_like(x)
        impulse[tuple(place)] = 1
        count += x[tuple(place)].item() * (layer(impulse) != 0).sum().item()
    return count


def after_neurons(*layers):
    return nn.Sequential(LIF(PASS), *layers)


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 2), "padding": (2, 0), "stride": (1, 2)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 3, "padding": "same"},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_spikes_are_counted_with_the_synapses_that_each_reaches(options):
    layer = nn.Conv2d(4, 6, **options)
    x_seq = spikes(2, 3, 4, 6, 7)
    operations = synaptic_ops(after_neurons(OverTime(layer)), [x_seq])
    expected = reached_by_each(layer, x_seq.flatten(0, 1)) / 3
    assert operations.layers["1.layer"].accumulates == pytest.approx(expected, rel=1e-12)
    assert operations.total.multiplies == 0
    dense = reached_by_each(layer, torch.ones(1, 4, 6, 7))
    assert operations.layers["1.layer"].dense == dense > expected / 2


def test_whole_numbers_count_as_so_many_spikes():
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    layer, x_seq = nn.Conv2d(1, 2, 3, padding=1), spikes(2, 3, 1, 5, 5)
    once, twice = (
        synaptic_ops(after_neurons(*between, OverTime(layer)), [x_seq]).total.accumulates
        for between in ((), (Twice(),))
    )
    assert twice == 2 * once > 0


FOLDING = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(3),
    nn.AvgPool2d((2, 4)),
    nn.AdaptiveAvgPool2d(3),
    nn.AdaptiveAvgPool2d((1, None)),
    nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2)),
]


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("pool", FOLDING)
def test_an_average_pool_is_folded_into_the_layer_behind_it(pool, rate):
    x_seq = spikes(2, 3, 4, 6, 6, rate=rate)
    layer = nn.Conv2d(4, 5, 3, padding=1)
    operations = synaptic_ops(after_neurons(OverTime(pool), OverTime(layer)), [x_seq])
    nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    folded = nn.Sequential(pool, layer)
    expected = 0
    for place in x_seq.flatten(0, 1).nonzero().tolist():
        impulse = torch.zeros(6, 4, 6, 6)
        impulse[tuple(place)] = 1
        expected += (folded(impulse) != 0).sum().item()
    assert operations.total.accumulates == pytest.approx(expected / 3, rel=1e-12)
    assert operations.total.multiplies == 0


def test_the_folded_convolution_is_the_pool_and_the_convolution():
    # What "folded" means: 5x5 -> 10x10 weights, a quarter each, at twice the stride and padding; and its spikes.
    x_seq = spikes(2, 3, 4, 8, 8)
    layer = nn.Conv2d(4, 5, 3, padding=1)
    folded = nn.Conv2d(4, 5, 6, stride=2, padding=2)
    weight = layer.weight.detach().repeat_interleave(2, -1).repeat_interleave(2, -2) / 4
    folded.load_state_dict({"weight": weight, "bias": layer.bias})
    pooled = nn.Sequential(nn.AvgPool2d(2), layer)
    torch.testing.assert_close(folded(x_seq[0]), pooled(x_seq[0]))
    one, other = (synaptic_ops(after_neurons(OverTime(each)), [x_seq]).total.accumulates for each in (folded, pooled))
    assert one == other > 0


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(3, 2), nn.AvgPool2d(2, padding=1), nn.AdaptiveAvgPool2d(4), nn.AvgPool2d(4, ceil_mode=True)]
)
def test_a_pool_that_does_not_fold_leaves_multiplications(pool):
    x_seq = spikes(2, 3, 4, 6, 6)
    operations = synaptic_ops(after_neurons(OverTime(pool), OverTime(nn.Conv2d(4, 5, 1))), [x_seq])
    assert operations.total.accumulates == 0
    assert operations.total.multiplies == 2 * operations.total.dense > 0


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_the_first_layer_multiplies_at_every_step_be_its_input_counts_or_analog(scale):
    model = nn.Sequential(ConvNormLIF(2, 4, neuron=NEURON), nn.Flatten(2), nn.Linear(4 * 6 * 6, 5))
    image = scale * torch.randint(4, (3, 2, 6, 6))
    operations = synaptic_ops(model, [image.expand(7, *image.shape)])
    # A pixel inside is seen by 9 places, at an edge by 6, in a corner by 4: (3 * 6 - 2)^2 = 256 for 6 x 6.
    assert operations.layers["0.conv"].dense == 2 * 4 * 256
    assert operations.layers["0.conv"].multiplies == 7 * 2 * 4 * 256
    assert operations.layers["0.conv"].accumulates == 0
    assert operations.layers["2"].multiplies == 0
    rate = firing_rates(model, image.expand(7, *image.shape))["0.spike"]
    assert operations.layers["2"].accumulates == pytest.approx(rate * 7 * 4 * 6 * 6 * 5)


def test_energy_is_theoretical_and_adds_up():
    model = nn.Sequential(ConvNormLIF(1, 2, neuron=NEURON), nn.Flatten(2), nn.Linear(2 * 9, 4))
    operations = synaptic_ops(model, [3 * torch.rand(5, 4, 1, 3, 3)])
    multiplies, accumulates = 5 * 2 * 49, operations.layers["2"].accumulates
    assert (E_MAC, E_AC) == (4.6e-12, 0.9e-12)  # 45 nm, as the field quotes Horowitz, ISSCC 2014
    assert operations.theoretical_energy() == pytest.approx(multiplies * 4.6e-12 + accumulates * 0.9e-12)
    assert operations.theoretical_energy(mac=2.0, ac=1.0) == pytest.approx(2 * multiplies + accumulates)
    assert operations.theoretical_energy_of_artificial_network(mac=1.0) == 2 * 49 + 2 * 9 * 4
    assert operations.samples == 4


def test_batches_are_averaged_by_their_sizes():
    torch.manual_seed(0)
    blocks = nn.Sequential(*vgg_blocks(2, (4, "AP", 6, "AP"), NEURON))
    model = SpikingNetwork(blocks, nn.Linear(6 * 4, 3))
    x_seq = 3 * torch.rand(4, 5, 2, 8, 8)
    whole, parts = synaptic_ops(model, [x_seq]), synaptic_ops(model, [x_seq[:, :3], x_seq[:, 3:]])
    assert list(whole.layers) == ["blocks.0.conv", "blocks.1.conv", "readout"]
    assert whole.samples == parts.samples == 5
    for name, layer in whole.layers.items():
        assert layer.accumulates == pytest.approx(parts.layers[name].accumulates)
        assert (layer.accumulates > 0) == (name != "blocks.0.conv")


def test_rates_are_those_of_the_spikes():
    model = nn.Sequential(LIF(NEURON), nn.Identity(), LIF(Neuron(decay=0.5, threshold=100.0)))
    x_seq = 3 * torch.rand(6, 2, 5)
    rates = firing_rates(model, x_seq)
    assert rates == {"0": pytest.approx(model[0](x_seq).mean().item()), "2": 0.0}
    assert 0.1 < rates["0"] < 0.9


def test_layers_that_fire_hardly_ever_or_nearly_always_are_named():
    rates = {"a": 0.0, "b": 9e-5, "c": 1e-4, "d": 0.5, "e": 0.9, "f": 0.91}
    assert silent_or_saturated(rates) == {"a": "dead", "b": "dead", "f": "saturated"}


def test_no_spikes_are_kept_while_rates_are_taken():
    model = nn.Sequential(*vgg_blocks(2, (4, 5, 6), NEURON))
    kept, alive = [], []
    model[0].spike.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    model[2].spike.register_forward_hook(lambda module, inputs, output: alive.append(kept[0]() is not None))
    firing_rates(model, torch.rand(3, 2, 2, 6, 6))
    assert alive == [False]


def test_the_model_is_afterwards_as_it_was():
    model = nn.Sequential(*vgg_blocks(2, (4, 5), NEURON))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    firing_rates(model, torch.rand(3, 2, 2, 6, 6))
    synaptic_ops(model, [torch.rand(3, 2, 2, 6, 6)])
    with pytest.raises(RuntimeError):
        firing_rates(model, torch.rand(3, 2, 7, 6, 6))
    assert (model[0].training, model[1].training, model[1].norm.norm.training) == (True, False, False)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(UserError, match="no batch holds a sample"):
        synaptic_ops(nn.Linear(2, 3), [])
    layer = after_neurons(OverTime(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")))
    with pytest.raises(UserError, match="pad with zeros, not 'circular'"):
        synaptic_ops(layer, [spikes(1, 1, 1, 4, 4)])
