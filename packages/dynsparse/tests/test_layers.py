"""The layer: what it is equal to, what it refuses, and what it keeps."""

import subprocess
import sys

import pytest
import torch
from drawn_layers import layers, loop, made
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from dynsparse import ConfigError, InputError, SDConv1d, SDConv2d, SDConv3d, SparsityError


def layer_of(**settings):
    torch.manual_seed(0)
    return SDConv2d(4, 6, 3, padding=1, **settings)


def routed_to(layer, kernel):
    """Attention that chooses one kernel, by a large bias of the router."""
    with torch.no_grad():
        layer.router.kernel_head.bias.zero_()
        layer.router.kernel_head.bias[kernel] = 200.0
    return layer


def test_without_pruning_it_is_dense_dynamic_convolution():
    sparse, dense = layer_of(), layer_of(mask="none")
    x = torch.randn(3, 4, 7, 6)
    assert torch.equal(sparse(x), dense(x))


def test_one_kernel_is_torchs_convolution():
    torch.manual_seed(0)
    for axes, ours, theirs in ((1, SDConv1d, nn.Conv1d), (2, SDConv2d, nn.Conv2d), (3, SDConv3d, nn.Conv3d)):
        layer = ours(4, 6, 3, 2, 1, num_kernels=1)
        plain = theirs(4, 6, 3, 2, 1)
        plain.load_state_dict({"weight": layer.weight[0], "bias": layer.bias[0]})
        x = torch.randn(2, 4, *[7] * axes)
        torch.testing.assert_close(layer(x), plain(x))
        assert layer.router is None
        assert torch.equal(layer.attention(x), torch.ones(2, 1))


@pytest.mark.parametrize("kernel", [0, 3])
def test_attention_on_one_kernel_is_a_convolution_with_it(kernel):
    layer = routed_to(layer_of(), kernel)
    x = torch.randn(2, 4, 7, 6)
    expected = functional.conv2d(x, layer.weight[kernel], layer.bias[kernel], padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_a_high_temperature_mixes_evenly():
    layer = layer_of()
    layer.router.temperature.fill_(1e9)
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(layer(x), functional.conv2d(x, layer.weight.mean(0), layer.bias.mean(0), padding=1))


def test_equal_kernels_make_attention_idle():
    layer = layer_of()
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
        layer.bias.copy_(layer.bias[:1].expand_as(layer.bias))
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(layer(x), functional.conv2d(x, layer.weight[0], layer.bias[0], padding=1))


def test_all_masked_leaves_the_bias():
    layer = layer_of(threshold_init=100.0)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 7, 6)
    expected = (layer.attention(x) @ layer.bias)[:, :, None, None].expand(2, 6, 7, 6)
    torch.testing.assert_close(layer(x), expected)


@given(drawing=layers(num_kernels=3), order=st.permutations(range(3)))
def test_the_order_of_kernels_does_not_matter(drawing, order):
    layer, x = made(drawing)
    expected = layer(x)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[list(order)])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[list(order)])
        head = layer.router.kernel_head
        head.weight.copy_(head.weight[list(order)])
        head.bias.copy_(head.bias[list(order)])
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@given(drawing=layers())
def test_a_sample_does_not_depend_on_its_batch(drawing):
    layer, x = made(drawing)
    together = layer(x)
    for index in range(len(x)):
        torch.testing.assert_close(layer(x[index]), together[index], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, loop(layer, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sharing", ["independent", "shared"])
@pytest.mark.parametrize("granularity", ["layer", "kernel", "filter"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.987])
def test_a_finalised_layer_is_as_sparse_as_asked_to_one_weight(sharing, granularity, sparsity):
    layer = layer_of(mask_sharing=sharing, granularity=granularity)
    bits = layer.weight.numel() // (4 if sharing == "shared" else 1)
    layer.finalize(sparsity)
    kept = layer.mask.sum().item()
    assert kept == round((1 - sparsity) * bits)
    assert layer.frozen
    assert not layer.weight[~layer.masks()].any()
    densities = layer.densities()
    assert densities.mean == pytest.approx(kept / bits)
    if sharing == "shared":
        assert densities.union == pytest.approx(densities.mean)
    with pytest.raises(SparsityError, match="no threshold"):
        layer.finalize(0.5)


def test_the_union_of_independent_masks_is_that_of_chance():
    torch.manual_seed(0)
    layer = SDConv2d(64, 64, 3)
    layer.finalize(0.9)
    assert layer.densities().union == pytest.approx(1 - 0.9**4, abs=0.01)


def test_masked_weights_stay_zero_in_training():
    layer = layer_of()
    layer.finalize(0.8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(2, 4, 7, 6)).square().sum().backward()
        assert not layer.weight.grad[~layer.masks()].any()
        optimizer.step()
    assert not layer.weight[~layer.masks()].any()


def test_gradients_are_those_of_finite_differences():
    """With fixed masks, in weights, bias, router and input."""
    torch.manual_seed(1)
    layer = SDConv2d(2, 2, 3, num_kernels=2, min_hidden=2, stride=2, padding=1).double()
    layer.finalize(0.5)
    nn.init.normal_(layer.bias)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *(each.detach().requires_grad_() for each in layer.parameters())))


def test_evaluation_changes_no_buffer_and_the_state_has_the_temperature():
    layer = layer_of(threshold_init=0.5).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert "router.temperature" in before
    layer(torch.randn(2, 4, 7, 6))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_memory_formats_do_not_matter():
    layer, x = layer_of(), torch.randn(3, 4, 7, 6)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))
    torch.testing.assert_close(layer(x.transpose(2, 3).contiguous().transpose(2, 3)), layer(x))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_are_torchs(mode):
    torch.manual_seed(0)
    layer = SDConv2d(4, 6, 3, padding=(2, 1), padding_mode=mode, num_kernels=1)
    plain = nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode=mode)
    plain.load_state_dict({"weight": layer.weight[0], "bias": layer.bias[0]})
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(layer(x), plain(x))


def test_autocast_does_not_flip_masks():
    layer = layer_of(threshold_init=0.5)
    masks = layer.masks()
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 4, 7, 6))
        assert torch.equal((layer.threshold(layer.weight) > 0).expand_as(masks), masks)


def test_starting_from_a_static_layer_differs_by_the_noise():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    layer = SDConv2d.from_conv(conv, num_kernels=4, noise=0.1)
    difference = (layer.weight - conv.weight).std() / conv.weight.std()
    assert difference.item() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(layer.weight[0], layer.weight[1])
    exact = SDConv2d.from_conv(conv, noise=0.0)
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(exact(x), conv(x))


def test_an_empty_batch_gives_an_empty_one():
    assert layer_of()(torch.zeros(0, 4, 7, 6)).shape == (0, 6, 7, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 3}, "in_channels must be divisible by groups=3; got 4"),
        ({"num_kernels": 0}, "num_kernels must be at least 1; got 0"),
        ({"reduction": 0}, "reduction must be at least 1; got 0"),
        ({"mask": "random"}, "mask is one of threshold, none; got 'random'"),
        ({"router": "hard"}, "router is one of"),
        ({"granularity": "weight"}, "granularity is one of layer, kernel, filter"),
        ({"padding_mode": "wrap"}, "padding_mode is one of"),
        ({"form": "fft"}, "form is one of"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        SDConv2d(4, 6, 3, **settings)


def test_bad_inputs_are_named():
    layer = layer_of()
    with pytest.raises(InputError, match=r"expected \[B, 4, H, W\] or no B; got shape \[4, 4\]"):
        layer(torch.zeros(4, 4))
    with pytest.raises(InputError, match="the layer takes 4 channels; got 5"):
        layer(torch.zeros(1, 5, 7, 7))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        layer(torch.zeros(1, 4, 7, 7, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="the input is on meta, the weight on cpu"):
        layer(torch.zeros(1, 4, 7, 7, device="meta"))
    assert layer(torch.full((1, 4, 7, 7), torch.nan)).isnan().all()  # as torch's convolutions do


@pytest.mark.slow
def test_the_layer_compiles_to_one_graph():
    """In a process of its own: the tests' shape checks are more than torch.compile can follow."""
    code = """
import torch
from dynsparse import SDConv2d

torch.manual_seed(0)
layer, x = SDConv2d(4, 6, 3, padding=1).eval(), torch.randn(3, 4, 7, 6)
torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-4, atol=1e-5)
print("the same")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr
