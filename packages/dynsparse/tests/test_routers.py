"""Attention against its formula, and what a router needs."""

import pytest
import torch

from dynsparse import routers
from dynsparse.errors import ConfigError, InputError
from dynsparse.routers import ODConvRouter, Router, SigmoidRouter, hidden_width, make_router

X = torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(0))


def odconv(norm="batch", groups=1, out=8, kernel=(3, 3)):
    return ODConvRouter(6, 4, 5, out_channels=out, kernel_size=kernel, groups=groups, norm=norm)


def test_softmax_attention_follows_its_equation():
    router = Router(6, 4, 5)
    router.temperature.fill_(2.5)
    z = X.mean((2, 3))
    logits = (z @ router.squeeze.weight.T).relu() @ router.kernel_head.weight.T + router.kernel_head.bias
    torch.testing.assert_close(router(X), torch.softmax(logits / 2.5, 1))


def test_sigmoid_routing_follows_its_equation():
    router = SigmoidRouter(6, 4)
    torch.testing.assert_close(router(X), torch.sigmoid(router.kernel_head(X.mean((2, 3)))))


def test_start_values_are_he_normal_by_fan_out_with_biases_of_zero():
    router = Router(512, 64, 128)
    assert router.squeeze.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert router.kernel_head.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert router.kernel_head.bias.abs().max() == 0


def test_a_high_temperature_mixes_evenly_and_is_saved():
    router = Router(6, 4, 5)
    router.temperature.fill_(1e6)
    torch.testing.assert_close(router(X), torch.full((3, 4), 0.25), atol=1e-4, rtol=0)
    assert router.state_dict()["temperature"] == 1e6


@pytest.mark.parametrize(("channels", "reduction", "width"), [(512, 16, 32), (64, 4, 16), (8, 16, 4), (3, 16, 4)])
def test_the_hidden_layer_is_never_narrower_than_its_minimum(channels, reduction, width):
    assert hidden_width(channels, reduction, 4) == width


@pytest.mark.parametrize("argument", ["reduction", "min_hidden"])
def test_a_width_below_one_is_refused(argument):
    with pytest.raises(ConfigError, match=f"{argument} must be at least 1; got 0"):
        hidden_width(8, **{"reduction": 16, "min_hidden": 4, argument: 0})


def test_odconv_gives_a_factor_for_everything_it_scales():
    factors = odconv().eval().factors(X)
    assert [list(part.shape) for part in factors] == [[3, 4], [3, 3, 3], [3, 6], [3, 8]]
    torch.testing.assert_close(factors.kernel.sum(1), torch.ones(3))
    assert all(part.min() > 0 and part.max() < 1 for part in factors)


def test_odconv_leaves_out_heads_that_say_nothing():
    assert odconv(kernel=(1, 1)).eval().factors(X).spatial is None
    assert odconv(groups=6, out=6).eval().factors(X).filter is None


def test_odconv_trains_on_one_sample_with_group_norm_only():
    with pytest.raises(InputError, match="cannot train on a batch of 1"):
        odconv().train()(X[:1])
    assert odconv(norm="group").train()(X[:1]).shape == (1, 4)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_one_kernel_needs_no_router(kind):
    assert make_router(kind, 6, 1, 4, out_channels=8, kernel_size=(3, 3)) is None
    assert isinstance(make_router("odconv", 6, 1, 4, out_channels=8, kernel_size=(3, 3)), ODConvRouter)


def test_unknown_words_are_named():
    with pytest.raises(ConfigError, match="router is one of softmax, sigmoid, odconv; got 'x'"):
        make_router("x", 6, 4, 4, out_channels=8, kernel_size=(3, 3))
    with pytest.raises(ConfigError, match="router_norm is one of batch, group; got 'x'"):
        make_router("softmax", 6, 4, 4, out_channels=8, kernel_size=(3, 3), norm="x")
    assert routers.NORMS == ("batch", "group")
