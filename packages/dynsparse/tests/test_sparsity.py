"""From a wish to a sparsity: the goal, the pressure, and the exact end."""

import math

import pytest
import torch

from dynsparse import (
    ConfigError,
    ConversionError,
    SparsityController,
    SparsityError,
    SparsityWarning,
    TemperatureSchedule,
    dynamic_layers,
    param_groups,
    sd_tiny,
)


def network(variant="sd", **settings):
    torch.manual_seed(0)
    return sd_tiny(variant, **settings)


def test_the_goal_falls_geometrically():
    controller = SparsityController(network(), 0.9, ramp_steps=100)
    assert [controller.goal(step) for step in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.1**0.5, 0.1, 0.1])
    assert SparsityController(network(), 0.9).goal(0) == pytest.approx(0.1)


def test_the_penalty_is_its_formula():
    model = network()
    controller = SparsityController(model, 0.5, lam=10.0, multiplier_rate=0.3)
    assert controller.loss().item() == pytest.approx(3 * 10 * 0.5**2)
    controller.step(0)  # multipliers become 0.3 * (1 - 0.5)
    assert controller.loss().item() == pytest.approx(3 * (0.15 * 0.5 + 10 * 0.25))
    whole = SparsityController(model, 0.5, "global", lam=10.0)
    assert whole.loss().item() == pytest.approx(10 * 0.25)
    alpha = SparsityController(model, 0.5, "alpha", alpha=0.01)
    assert alpha.loss().item() == pytest.approx(0.01 * 3 * 4)  # exp(0) for each of 4 kernels of 3 layers


def test_the_pressure_reaches_thresholds_and_weights():
    model = network()
    SparsityController(model, 0.9).loss().backward()
    for _, layer in dynamic_layers(model):
        assert (layer.threshold.tau.grad < 0).all()  # a descent raises them
        assert layer.weight.grad.abs().sum() > 0


def test_the_penalty_lands_near_the_target():
    torch.manual_seed(0)
    model = sd_tiny(width=24)  # 5,184 weights a kernel
    controller = SparsityController(model, 0.9, ramp_steps=100, multiplier_rate=0.0)
    optimizer = torch.optim.SGD(param_groups(model, 0.1, 0.0, threshold_lr=0.1), lr=0.1)
    for step in range(200):
        controller.step(step)
        optimizer.zero_grad()
        controller.loss().backward()
        optimizer.step()
    for row in controller.report().layers:
        assert row.density == pytest.approx(0.1, abs=0.01)


def test_quantile_mode_has_no_loss_and_is_exact_at_every_step():
    controller = SparsityController(network(), 0.9, "quantile", ramp_steps=10)
    for step in (0, 5, 10):
        controller.step(step)
        assert controller.loss().item() == 0
        for row in controller.report().layers:
            assert row.nonzero == pytest.approx(controller.density_goal * row.weights, abs=2)


@pytest.mark.parametrize("mode", ["global", "alpha"])
def test_layers_share_the_target_by_their_margins(mode):
    model = network()
    (_, first), *_ = dynamic_layers(model)
    with torch.no_grad():
        first.threshold.tau.fill_(1.5)  # prunes this layer more than the others
    report = SparsityController(model, 0.75, mode).finalize()
    assert report.sparsity == 0.75
    assert sum(row.nonzero for row in report.layers) == 3 * 4 * 576 // 4
    assert report.layers[0].density < 0.2 < report.layers[1].density


def test_momentum_of_masked_weights_is_forgotten():
    model = network()
    optimizer = torch.optim.SGD(param_groups(model, 0.1, 1e-4), lr=0.1, momentum=0.9)
    model(torch.randn(4, 1, 14, 14)).square().sum().backward()
    optimizer.step()
    SparsityController(model, 0.9).finalize(optimizer)
    for _, layer in dynamic_layers(model):
        buffer = optimizer.state[layer.weight]["momentum_buffer"]
        assert not buffer[~layer.masks()].any()
        assert buffer[layer.masks()].any()


def test_a_target_out_of_reach_is_named():
    model = network()
    with pytest.warns(SparsityWarning, match=r"features\.1\.0 keeps 24 of 2304 weights, not 2"):
        report = SparsityController(model, 0.999, min_density=0.01).finalize()
    assert report.layers[0].nonzero == 24
    with pytest.raises(SparsityError, match="out of reach"):
        SparsityController(network(), 0.999).finalize(strict=True)


def test_a_layer_below_the_floor_is_raised_and_named():
    model = network()
    (_, first), *_ = dynamic_layers(model)
    with torch.no_grad():
        first.threshold.tau.fill_(50.0)
    controller = SparsityController(model, 0.9, min_density=0.05)
    with pytest.warns(SparsityWarning, match=r"layer features\.1\.0 fell below the least density 0\.05"):
        controller.step(0)
    assert first.densities().mean >= 0.05


def test_the_controller_goes_on_from_its_state():
    one, other = (SparsityController(network(), 0.9, ramp_steps=10) for _ in range(2))
    for step in range(5):
        one.step(step)
    other.load_state_dict(one.state_dict())
    assert other.density_goal == one.density_goal
    assert other.loss().item() == one.loss().item()


@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5, 90, math.nan])
def test_targets_that_are_no_fraction_are_named(target):
    with pytest.raises(SparsityError, match=r"sparsity is a fraction in \[0, 1\)"):
        SparsityController(network(), target)


def test_models_without_masks_are_refused():
    with pytest.raises(ConfigError, match="no layer has a learnable threshold"):
        SparsityController(network("dy"), 0.5)
    with pytest.raises(ConversionError, match="no dynamic convolution"):
        SparsityController(network("static"), 0.5)
    with pytest.raises(ConfigError, match="lam must not be negative"):
        SparsityController(network(), 0.5, lam=-1.0)


# --- temperature


def test_the_temperature_of_the_spec():
    schedule = TemperatureSchedule(t0=30, steps=1000)
    assert [schedule(step) for step in (0, 500, 999, 1000, 5000)] == pytest.approx([30, 15.5, 1.029, 1, 1])
    steps = [schedule(step) for step in range(1200)]
    assert steps == sorted(steps, reverse=True)
    drops = TemperatureSchedule(t0=31, steps=100, kind="step")
    assert [drops(step) for step in (0, 9, 10, 99, 100)] == pytest.approx([31, 31, 28, 4, 1])


def test_the_temperature_reaches_every_router_through_wrappers():
    model = network()
    assert TemperatureSchedule(t0=30, steps=10).apply(torch.nn.DataParallel(model), 5) == pytest.approx(15.5)
    assert {layer.router.temperature.item() for _, layer in dynamic_layers(model)} == {15.5}
    with pytest.raises(ConversionError, match="no dynamic convolution"):
        TemperatureSchedule(steps=10).apply(network("static"), 0)
    for wrong, message in (({"t0": 0.5}, "t0"), ({"steps": -1}, "steps"), ({"kind": "cosine"}, "kind")):
        with pytest.raises(ConfigError, match=message):
            TemperatureSchedule(**{"steps": 10, **wrong})


# --- groups of parameters


def test_each_parameter_is_in_one_group_and_only_weights_decay():
    model = network()
    groups = {
        group["name"]: group for group in param_groups(model, 0.1, 1e-3, threshold_lr=0.5, kernel_lr_scale="auto")
    }
    ids = [id(each) for group in groups.values() for each in group["params"]]
    assert sorted(ids) == sorted(id(each) for each in model.parameters())
    assert groups["thresholds"]["lr"] == 0.5
    assert groups["thresholds"]["weight_decay"] == 0
    assert groups["decay_x4"]["lr"] == pytest.approx(0.4)
    assert groups["decay_x4"]["weight_decay"] == pytest.approx(2.5e-4)
    assert {each.dim() for each in groups["no_decay"]["params"]} == {1}
    router = model.features[1][0].router
    assert id(router.kernel_head.bias) in {id(each) for each in groups["no_decay"]["params"]}
    with pytest.raises(ConfigError, match="kernel_lr_scale"):
        param_groups(model, 0.1, 0.0, kernel_lr_scale=0.0)
