"""Learned rounding, layer by layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import Linear, loader, net, shapes

from mqbench_lite.adaround import (
    AdaRound,
    AdaRoundSettings,
    RoundedWeight,
    learn_rounding,
    regulariser,
    share_added,
    variable_of,
)
from mqbench_lite.calibration import calibrate, quantizers_of
from mqbench_lite.errors import MQBenchError
from mqbench_lite.specs import QuantSpec


@given(st.floats(0, 0.999))
def test_the_start_is_the_fraction(fraction):
    x = torch.tensor(fraction, dtype=torch.float64)
    assert share_added(variable_of(x)).item() == pytest.approx(fraction, abs=1e-12)


def test_h_and_its_slope_are_the_closed_form():
    v = torch.tensor([-9.0, -2.0, 0.3, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    h = share_added(v)
    expected = (1.2 / (1 + (-v).exp()) - 0.1).clamp(0, 1)
    torch.testing.assert_close(h, expected)
    (slope,) = torch.autograd.grad(h.sum(), v)
    sigmoid = torch.sigmoid(v.detach())
    torch.testing.assert_close(slope, 1.2 * sigmoid * (1 - sigmoid) * torch.tensor([0, 1, 1, 1, 0.0]).double())


def test_the_regulariser_is_0_only_at_the_ends_and_exact_between():
    assert regulariser(torch.tensor([0.0, 1.0, 1.0]), 7.0).item() == 0
    assert regulariser(torch.tensor([0.5, 0.75]), 2.0).item() == pytest.approx(1 + 0.75)


def test_the_exponent_falls_from_20_to_2_after_the_warm_up():
    """Spec 2.6."""
    settings = AdaRoundSettings()
    assert [settings.beta(step, 101) for step in (0, 20)] == [None, None]
    assert settings.beta(21, 101) == pytest.approx(20 - 18 * 0.8 / 79.8)
    assert settings.beta(100, 101) == pytest.approx(2)
    assert (settings.strength, settings.warmup) == (0.01, 0.2)


def a_layer(bits=3):
    torch.manual_seed(0)
    quantizer = RoundedWeight(QuantSpec(bits=bits, per_channel=True), "weight")
    layer = Linear(16, 12, quantizer=quantizer).eval()
    calibrate(layer, [torch.randn(4, 16)])
    return layer, quantizer


def test_the_soft_weight_starts_as_the_weight_clipped_to_the_grid():
    layer, quantizer = a_layer()
    quantizer.begin()
    scale = quantizer.scale[:, None]
    clipped = torch.minimum(torch.maximum(layer.weight, quantizer.qmin * scale), quantizer.qmax * scale)
    torch.testing.assert_close(quantizer(layer.weight), clipped)


def test_rounding_is_learned_from_the_outputs_and_beats_the_nearest():
    """Inputs with few directions leave much to gain by rounding weights together."""
    layer, quantizer = a_layer()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(256, 4, generator=generator) @ torch.randn(4, 16, generator=generator)
    quantizer.enabled = False
    targets = layer(inputs).detach()
    quantizer.enabled = True
    nearest = (layer(inputs) - targets).square().mean().item()
    before = quantizer.codes(layer.weight)
    learn_rounding(layer, inputs, targets, seed=0, steps=400, settings=AdaRoundSettings())
    codes = quantizer.codes(layer.weight)
    assert (layer(inputs) - targets).square().mean().item() < 0.5 * nearest
    assert (codes - before).abs().max() == 1
    base = (layer.weight / quantizer.scale[:, None]).floor()
    assert ((codes - base).clamp(0, 1) == quantizer.up)[(base >= -4) & (base < 3)].all()
    assert quantizer.variable is None
    torch.testing.assert_close(quantizer(layer.weight), codes * quantizer.scale[:, None])


def test_most_roundings_are_decided_by_the_regulariser():
    layer, quantizer = a_layer()
    x = torch.randn(64, 16)
    held = {}
    decide = quantizer.decide
    quantizer.decide = lambda: (held.update(h=share_added(quantizer.variable.detach())), decide())
    learn_rounding(layer, x, layer(x).detach(), seed=0, steps=600, settings=AdaRoundSettings(strength=0.1))
    assert ((held["h"] < 0.05) | (held["h"] > 0.95)).float().mean() > 0.95


def test_a_model_is_quantised_layer_by_layer_and_frozen_and_better_than_by_the_nearest():
    """At 2 bit the mean squared error of the logits against the float model falls."""
    data, (images, _) = loader(128), shapes(200, seed=5)
    model = net("adaround", bits=2).eval()
    target = model(images).detach()
    nearest = calibrate(net("adaround", bits=2).eval(), data, observer=("mse", "ema_mse"))
    quantised = AdaRound().apply(model, data, seed=0, steps=150)
    assert quantised is model
    assert {quantizer.state for _, quantizer in quantizers_of(model)} == {"frozen"}
    ours, plain = ((m(images) - target).square().mean().item() for m in (model, nearest))
    assert ours < 0.9 * plain
    again = AdaRound().apply(net("adaround", bits=2).eval(), data, seed=0, steps=150)
    assert torch.equal(again(images), model(images))


def test_a_learned_rounding_is_saved():
    model = AdaRound().apply(net("adaround", bits=3), loader(64), seed=0, steps=20)
    new = net("adaround", bits=3, seed=9)
    new.load_state_dict(model.state_dict())
    x = shapes(8)[0]
    assert torch.equal(new.eval()(x), model.eval()(x))
    assert new.body.weight_quantizer.decided


def test_a_layer_that_is_called_twice_learns_from_both_calls():
    torch.manual_seed(0)
    layer = Linear(6, 6, quantizer=RoundedWeight(QuantSpec(bits=3), "weight"))
    twice = torch.nn.Sequential(layer, torch.nn.ReLU(), layer)
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    AdaRound().apply(twice, [torch.randn(10, 6)], seed=0, steps=2, batch_size=99)
    handle.remove()
    assert seen[-2:] == [20, 20]


def test_options_that_there_are_not_are_refused_by_name():
    with pytest.raises(MQBenchError, match="its options are batch_size, lr, strength"):
        AdaRound().apply(net("adaround"), loader(), seed=0, steps=3, temperature=2)
    with pytest.raises(MQBenchError, match="at least 1"):
        AdaRound().apply(net("adaround"), loader(), seed=0, steps=0)
