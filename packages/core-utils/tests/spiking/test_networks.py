import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.networks import (
    LIF,
    ConvNorm,
    ConvNormLIF,
    OverTime,
    ResidualBlock,
    SpikingNetwork,
    class_scores,
    fuse_conv_bn,
    residual_blocks,
    vgg_blocks,
)
from core_utils.spiking.neurons import lif
from core_utils.spiking.surrogates import rectangle

TET = Neuron(decay=0.5)
NDA = Neuron(decay=0.25, threshold=0.5, compare=">=", surrogate=rectangle())


def frames(T=4, B=3, C=2, size=8, seed=0):
    return torch.rand(T, B, C, size, size, generator=torch.Generator().manual_seed(seed))


def small(checkpoint_segments=0):
    torch.manual_seed(0)
    blocks = [
        *vgg_blocks(2, (6, "AP"), TET),
        *residual_blocks(lambda *shape: ResidualBlock(*shape, neuron=TET), 6, (8,), (2,), (2,)),
    ]
    readout = nn.Sequential(nn.Linear(8 * 2 * 2, 5), LIF(TET), nn.Linear(5, 4))
    nn.init.normal_(readout[0].weight)  # so that the hidden layer spikes
    return SpikingNetwork(nn.Sequential(*blocks), readout, checkpoint_segments=checkpoint_segments)


@pytest.mark.parametrize("neuron", [TET, NDA])
def test_a_layer_of_neurons_has_the_dynamics_it_was_given(neuron):
    x_seq = frames()
    assert torch.equal(LIF(neuron)(x_seq), lif(x_seq, **vars(neuron)))
    assert 0 < LIF(neuron)(x_seq).mean() < 1
    assert not torch.equal(LIF(TET)(x_seq), LIF(NDA)(x_seq))
    assert f"decay={neuron.decay}" in repr(LIF(neuron))


def test_a_block_convolves_normalises_spikes_and_pools():
    block = ConvNormLIF(2, 5, neuron=NDA, init_scale=0.5, pool=2)
    x_seq = frames()
    current = functional.conv2d(x_seq.flatten(0, 1), block.conv.weight, padding=1)
    current = functional.batch_norm(current, None, None, torch.full((5,), 0.5), torch.zeros(5), training=True)
    spikes = lif(current.unflatten(0, (4, 3)), **vars(NDA))
    expected = functional.avg_pool2d(spikes.flatten(0, 1), 2).unflatten(0, (4, 3))
    assert torch.equal(block(x_seq), expected)
    assert 0 < expected.mean() < 1


def test_a_residual_block_spikes_after_the_addition():
    block = ResidualBlock(2, 5, 2, neuron=TET)
    x_seq = frames()
    branch = block.second(block.first(x_seq))
    shortcut = block.shortcut.norm(
        torch.stack([functional.conv2d(x, block.shortcut.conv.weight, stride=2) for x in x_seq])
    )
    assert torch.equal(block(x_seq), lif(branch + shortcut, decay=0.5))
    same = ResidualBlock(2, 2, neuron=TET)
    assert isinstance(same.shortcut, nn.Identity)
    assert torch.equal(same(x_seq), lif(same.second(same.first(x_seq)) + x_seq, decay=0.5))


def test_a_stack_pools_or_strides_where_its_layout_says():
    layout = (3, "AP", 4, 5, "AP")
    pooled, strided = (nn.Sequential(*vgg_blocks(2, layout, TET, downsample=how)) for how in ("pool", "stride"))
    assert [block.conv.stride[0] for block in pooled] == [1, 1, 1]
    assert [block.conv.stride[0] for block in strided] == [2, 1, 2]
    assert pooled(frames()).shape == strided(frames()).shape == (4, 3, 5, 2, 2)
    assert set(strided(frames()).unique().tolist()) == {0, 1}
    assert not set(pooled(frames()).unique().tolist()) <= {0, 1}


def test_a_stack_starts_from_kaiming_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (block,) = vgg_blocks(64, (128,), TET)
    assert block.conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("classes", "count"), [(10, 9_230_538), (101, 9_277_221)])
def test_the_vgg11_of_neuromorphic_data_augmentation_has_its_parameters(classes, count):
    # Counts: shared spec of the spiking papers, section 5, of the released code of arXiv 2203.06145.
    layout = (64, "AP", 128, "AP", 256, 256, "AP", 512, 512, 512, 512)
    with torch.device("meta"):
        blocks = vgg_blocks(2, layout, NDA, init_scale=0.5)
        model = SpikingNetwork(nn.Sequential(*blocks, OverTime(nn.AdaptiveAvgPool2d(1))), nn.Linear(512, classes))
        assert model(torch.empty(2, 1, 2, 20, 20)).shape == (2, 1, classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_a_still_image_passes_the_first_convolution_once():
    image, T = frames(1)[0], 4
    model = small()
    plain = copy.deepcopy(model)
    convs, norms, neurons = [], [], []
    block = model.blocks[0]
    block.conv.register_forward_hook(lambda module, inputs, output: convs.append(len(inputs[0])))
    block.norm.norm.register_forward_hook(lambda module, inputs, output: norms.append(len(inputs[0])))
    block.spike.register_forward_hook(lambda module, inputs, output: neurons.append(output.shape[:2]))
    convs_of_plain = []
    plain.blocks[0].conv.register_forward_hook(lambda module, inputs, output: convs_of_plain.append(len(inputs[0])))
    still, repeated = image.expand(T, *image.shape), image.repeat(T, 1, 1, 1, 1)
    out, expected = model(still), plain(repeated)
    assert (convs, norms, neurons) == ([3], [3], [(T, 3)])
    assert convs_of_plain == [T * 3]
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    out.square().sum().backward(), expected.square().sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
    one, other = block.norm.norm, plain.blocks[0].norm.norm
    torch.testing.assert_close(one.running_mean, other.running_mean)
    assert not torch.equal(one.running_var, other.running_var)  # over 192 values a channel, or over 4 x 192
    torch.testing.assert_close(one.running_var, other.running_var, rtol=1 / 192, atol=0)


@pytest.mark.parametrize("segments", [1, 2, 3])
def test_checkpointing_changes_neither_gradients_nor_running_averages(segments):
    plain, saving = small(), small(segments)
    convs = []
    saving.blocks[0].conv.register_forward_hook(lambda *_: convs.append(1))
    for seed in (1, 2):
        for model in (plain, saving):
            model(frames(seed=seed)).square().sum().backward()
    assert len(convs) == 4  # twice a batch
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
        assert one.grad.abs().sum() > 0
    for name, value in plain.state_dict().items():
        assert torch.equal(value, saving.state_dict()[name]), name
    assert saving.blocks[0].norm.norm.num_batches_tracked == 2
    assert saving.blocks[0].norm.norm.momentum == 0.1


def test_checkpointing_keeps_nothing_of_the_inside_of_a_segment():
    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            model(frames())
        return sum(sizes)

    assert kept(small(3)) < kept(small()) / 3


@pytest.mark.usefixtures("as_users_run_it")
def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match=r"checkpoint_segments must lie in 0\.\.3, got 4"):
        small(4)
    with pytest.raises(UserError, match="downsample must be one of pool, stride, got 'max'"):
        vgg_blocks(2, (4,), TET, downsample="max")
    with pytest.raises(UserError, match="readout must be one of mean, last, rate, got 'max'"):
        class_scores(torch.zeros(2, 3, 4), "max")
    with pytest.raises(UserError, match="'rate' needs a neuron"):
        class_scores(torch.zeros(2, 3, 4), "rate")


def test_class_scores_are_a_mean_a_last_step_or_a_rate():
    outputs = torch.tensor([[[0.6, 3.0]], [[0.8, 0.0]], [[0.1, 2.0]]])
    torch.testing.assert_close(class_scores(outputs), torch.tensor([[0.5, 5 / 3]]))
    assert torch.equal(class_scores(outputs, "last"), outputs[-1])
    # decay 0.5: 0.6, 1.1 (spike), 0.1; and 3 (spike), 0, 2 (spike).
    torch.testing.assert_close(class_scores(outputs, "rate", TET), torch.tensor([[1 / 3, 2 / 3]]))


def test_fusing_changes_no_output():
    model = small()
    for seed in range(3):
        model(2 * frames(seed=seed) - 1)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2), nn.init.uniform_(norm.bias, -1, 1)
    fused = fuse_conv_bn(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 6
    x_seq = frames(seed=9)
    torch.testing.assert_close(fused(x_seq), model.eval()(x_seq), atol=1e-5, rtol=1e-5)
    block = ConvNorm(2, 5, stride=2, bias=True)
    block(x_seq)
    torch.testing.assert_close(fuse_conv_bn(block)(x_seq), block.eval()(x_seq), atol=1e-5, rtol=1e-5)
    assert torch.equal(fuse_conv_bn(fused)(x_seq), fused(x_seq))
