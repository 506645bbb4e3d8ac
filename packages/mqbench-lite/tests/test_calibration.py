"""Ranges from data, and statistics of batch normalisation."""

import logging

import pytest
import torch
from small_nets import loader, net, shapes
from torch import nn

from mqbench_lite.calibration import calibrate, quantizers_of, reestimate_batch_norm
from mqbench_lite.errors import CalibrationError, MQBenchError, NotCalibratedError


def test_every_quantiser_gets_a_range_from_all_batches_and_the_model_keeps_its_mode():
    model = net("minmax").train()
    images, _ = shapes(96)
    calibrate(model, [images[:64] / 10, images[64:]])
    assert model.training
    assert {quantizer.state for _, quantizer in quantizers_of(model)} == {"ready"}
    assert model.first.scale.item() == pytest.approx(max(-images[64:].min(), images[64:].max()).item() / 7.5)
    weight = model.body.weight
    torch.testing.assert_close(model.body.weight_quantizer.scale, weight.detach().flatten(1).abs().amax(1) / 7.5)


def test_no_more_batches_are_read_than_asked_for():
    read = []

    def batches():
        for at in range(9):
            read.append(at)
            yield shapes(8)

    calibrate(net(), batches(), batches=3)
    assert read == [0, 1, 2]


def test_nothing_is_kept_of_what_passed():
    model = calibrate(net(), loader())
    assert all(quantizer.observer is None for _, quantizer in quantizers_of(model))


@pytest.mark.parametrize(
    ("observer", "weight", "act"), [("mean", "mean", "mean"), (("minmax", "mse"), "minmax", "mse")]
)
def test_an_observer_may_be_named_for_both_roles_or_each(observer, weight, act):
    by_one = calibrate(net(), loader(), observer=observer)
    of_weight, of_act = calibrate(net(), loader(), observer=weight), calibrate(net(), loader(), observer=act)
    assert torch.equal(by_one.body.weight_quantizer.scale, of_weight.body.weight_quantizer.scale)
    assert torch.equal(by_one.second.scale, of_act.second.scale)
    default = calibrate(net(), loader())
    assert not torch.equal(by_one.body.weight_quantizer.scale, default.body.weight_quantizer.scale)


def test_calibrating_again_starts_afresh_and_says_so(caplog):
    model = calibrate(net("minmax"), [shapes(64)[0] * 100])
    wide = model.first.scale.item()
    with caplog.at_level(logging.WARNING):
        calibrate(model, [shapes(64)[0]])
    assert model.first.scale.item() == pytest.approx(wide / 100)
    assert "6 quantisers were calibrated before; their ranges start afresh" in caplog.text


def test_a_bad_value_is_named_by_tensor_and_batch_and_leaves_the_model_idle():
    images, _ = shapes(96)
    spoiled = images.clone()
    spoiled[70] = torch.nan
    model = net().train()
    with pytest.raises(CalibrationError, match=r"calibration of first failed at batch 2: .*NaN"):
        calibrate(model, spoiled.split(32))
    assert model.training
    assert {quantizer.state for _, quantizer in quantizers_of(model)} == {"idle"}
    with torch.no_grad():
        model.stem.weight[3] = torch.inf
    with pytest.raises(CalibrationError, match=r"calibration of stem.weight_quantizer failed at batch 0"):
        calibrate(model, images.split(32))


def test_an_empty_loader_a_frozen_model_and_one_without_quantisers_are_refused():
    with pytest.raises(CalibrationError, match="empty"):
        calibrate(net(), [])
    model = calibrate(net(), loader())
    for _, quantizer in quantizers_of(model):
        quantizer.freeze()
    with pytest.raises(CalibrationError, match="frozen"):
        calibrate(model, loader())
    assert {quantizer.state for _, quantizer in quantizers_of(model)} == {"frozen"}
    with pytest.raises(MQBenchError, match="prepare it first"):
        calibrate(nn.Linear(3, 3), loader())


def test_a_quantiser_that_no_tensor_passes_is_named():
    model = net()
    model.unused = type(model.first)(model.first.spec, "act")
    with pytest.raises(CalibrationError, match="calibration of unused failed"):
        calibrate(model, loader())


def held_out_may_be_tensors_sequences_or_mappings():
    images, labels = shapes(64)
    scales = [
        calibrate(net("minmax"), [batch]).second.scale.item()
        for batch in (images, (images, labels), [images, labels], {"x": images}, ((images,), labels))
    ]
    assert len(set(scales)) == 1


def test_an_uncalibrated_model_does_not_train():
    with pytest.raises(NotCalibratedError):
        net().train()(shapes(4)[0])


def test_statistics_are_the_mean_of_the_batches_as_the_quantised_model_has_them():
    model = calibrate(net(), loader())
    model.norm.running_mean.fill_(7.0)
    batches = [shapes(32, seed=seed)[0] for seed in range(3)]
    seen = []
    handle = model.norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    momentum = model.norm.momentum
    reestimate_batch_norm(model, batches)
    handle.remove()
    torch.testing.assert_close(model.norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(
        model.norm.running_var, torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    )
    assert model.norm.momentum == momentum
    quantised = model.stem(model.first(batches[0]))
    torch.testing.assert_close(seen[0], quantised.detach())


def test_dropout_stays_off_while_statistics_are_estimated():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    x = torch.randn(64, 4)
    reestimate_batch_norm(model, [x])
    torch.testing.assert_close(model[1].running_mean, x.mean(0))
    assert model[0].training
