"""One unit's reconstruction."""

import math

import pytest
import torch
from nets import images, net
from torch import nn

import qdrop
from qdrop import QDropConfig, UnitCache, quantize
from qdrop.errors import ReconstructionError

CALIB = images(32, seed=1)


def captured(config, monkeypatch, name="layer1", **options):
    """What `quantize` hands to `reconstruct_unit` for one unit: (unit, teacher, cache, config, generator)."""
    found = {}
    reconstruct = qdrop.quantization.reconstruct_unit

    class EnoughError(Exception):
        pass

    def keep(unit, *rest):
        if unit.name == name:
            found["arguments"] = (unit, *rest)
            raise EnoughError
        return reconstruct(unit, *rest)

    monkeypatch.setattr(qdrop.quantization, "reconstruct_unit", keep)
    with pytest.raises(EnoughError):
        quantize(net(), CALIB.split(16), config, progress=False, **options)
    monkeypatch.undo()
    return found["arguments"]


def config(**changes):
    return QDropConfig(**{"w_bits": 2, "a_bits": 2, "iters": 8, "batch_size": 16, **changes})


def test_inputs_and_targets_are_those_of_both_networks(monkeypatch):
    unit, _, cache, *_ = captured(config(), monkeypatch)
    folded, _ = qdrop.folding.prepare(net(), CALIB[:2])
    with torch.no_grad():
        stem = torch.relu(folded.conv1(CALIB))
        torch.testing.assert_close(torch.stack([cache.fp_inputs[i] for i in range(32)]), stem, rtol=1e-5, atol=1e-6)
        expected = folded.layer1(stem)
        targets = torch.stack([cache.fp_outputs[i] for i in range(32)])
        torch.testing.assert_close(targets, expected, rtol=1e-4, atol=1e-5)
        quantised = torch.stack([cache.quantised_inputs[i] for i in range(32)])
    quantizer = unit.student.activations["relu"]
    assert torch.equal(quantizer(quantised), quantised)
    assert len(quantised.unique()) <= 4
    assert not torch.equal(quantised, stem)


def test_dropping_everything_leaves_the_activations_in_floating_point(monkeypatch):
    unit, teacher, cache, _, generator = captured(config(drop_p=1.0), monkeypatch)
    with torch.no_grad():
        for path, layer in unit.layers.items():
            layer.weight = teacher.layers[path].weight
        drops = qdrop.drops.Drops(0.0, generator)
        for quantizer in unit.quantizers:
            quantizer.drops, quantizer.enabled = drops, True
            quantizer.scale.requires_grad_()
        inputs = qdrop.reconstruction._mixed_inputs(cache, torch.arange(32), drops)
        torch.testing.assert_close(unit(inputs), cache.fp_outputs.take(torch.arange(32)), rtol=0, atol=0)


def test_masks_are_not_rescaled(monkeypatch):
    _, _, cache, _, generator = captured(config(), monkeypatch)
    drops = qdrop.drops.Drops(0.5, generator)
    index = torch.arange(32)
    (mixed,), _ = qdrop.reconstruction._mixed_inputs(cache, index, drops)
    (full,), _ = cache.fp_inputs.take(index)
    (rounded,), _ = cache.quantised_inputs.take(index)
    assert ((mixed == full) | (mixed == rounded)).all()
    assert abs((mixed == full)[full != rounded].float().mean() - 0.5) < 0.02


def test_only_rounding_and_step_sizes_are_learned(monkeypatch):
    unit, teacher, cache, settings, generator = captured(config(), monkeypatch)
    biases = {path: layer.bias.clone() for path, layer in unit.layers.items()}
    weights = {path: layer.weight.clone() for path, layer in teacher.layers.items()}
    scales = [quantizer.scale.clone() for quantizer in unit.quantizers]
    zeros = [quantizer.zero_point.clone() for quantizer in unit.quantizers]
    qdrop.reconstruct_unit(unit, teacher, cache, settings, generator)
    assert all(torch.equal(layer.bias, biases[path]) and layer.bias.grad is None for path, layer in unit.layers.items())
    assert all(torch.equal(layer.weight, weights[path]) for path, layer in teacher.layers.items())
    assert all(not torch.equal(q.scale, s) for q, s in zip(unit.quantizers, scales, strict=True))
    assert all(torch.equal(q.zero_point, z) for q, z in zip(unit.quantizers, zeros, strict=True))
    assert not any(q.scale.requires_grad or q.drops is not None for q in unit.quantizers)


def test_losses_are_the_loops_written_out(monkeypatch):
    """An independent transcription: plain operations, torch's own Adam and schedule, the same draws."""
    unit, teacher, cache, settings, _ = captured(config(warmup=0.5), monkeypatch)
    generator = torch.Generator().manual_seed(3)
    indices = [torch.randint(32, (16,), generator=generator) for _ in range(8)]
    masks = [torch.rand(16, 8, 8, 8, generator=generator) < 0.5 for _ in range(24)]
    expected = transcription(unit, teacher, cache, settings, iter(indices), iter(masks))
    found = qdrop.reconstruct_unit(
        unit, teacher, cache, settings, generator, index_stream=iter(indices), mask_stream=iter(masks)
    )
    assert found.losses == pytest.approx(expected, rel=2e-5)


def transcription(unit, teacher, cache, settings, indices, masks):
    block = teacher.modules[0]
    alphas, grids = {}, {}
    for path, weight in unit.weights.items():
        s, z = weight.scale.view(-1, 1, 1, 1), weight.zero_point.view(-1, 1, 1, 1)
        steps = teacher.layers[path].weight.detach() / s
        rest = steps - steps.floor()
        alphas[path] = (-torch.log(1.2 / (rest + 0.1) - 1)).requires_grad_()
        grids[path] = (s, z, steps.floor())
    scales = [q.scale.detach().clone().requires_grad_() for q in unit.quantizers]
    zeros = [q.zero_point for q in unit.quantizers]
    rounding = torch.optim.Adam(alphas.values(), lr=settings.rate_of_alpha)
    stepping = torch.optim.Adam(scales, lr=settings.rate_of_scale)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stepping, T_max=settings.iters, eta_min=0.0)

    def h(alpha):
        return (1.2 * torch.sigmoid(alpha) - 0.1).clamp(0, 1)

    def weight_of(path):
        s, z, base = grids[path]
        return s * ((base + h(alphas[path]) + z).clamp(0, 3) - z)

    def lsq(x, s, z):
        gain = (x.numel() * 3) ** -0.5
        s = (s * gain) + (s - s * gain).detach()  # value s, gradient gain
        steps = x / s
        code = steps.detach().round() + z
        inside = (code >= 0) & (code <= 3)
        rounded = steps + (steps.round() - steps).detach()  # the identity, as far as gradients go
        return torch.where(inside, rounded, code.clamp(0, 3) - z) * s

    def dropped(x, s, z):
        return torch.where(next(masks), lsq(x, s, z), x)

    losses = []
    for t in range(1, settings.iters + 1):
        index = next(indices)
        (full,), _ = cache.fp_inputs.take(index)
        (rounded,), _ = cache.quantised_inputs.take(index)
        x = torch.where(next(masks), rounded, full)
        conv = torch.nn.functional.conv2d
        y = torch.relu(conv(x, weight_of("layer1.conv1"), block.conv1.bias, padding=1))
        y = dropped(y, scales[0], zeros[0])
        y = torch.relu(conv(y, weight_of("layer1.conv2"), block.conv2.bias, padding=1) + x)
        y = dropped(y, scales[1], zeros[1])
        loss = (y - cache.fp_outputs.take(index)).square().sum(1).mean()
        start = settings.warmup * settings.iters
        if t >= start:
            beta = 2 + 18 * max(0.0, 1 - (t - start) / (settings.iters - start))
            loss = loss + settings.reg_weight * sum((1 - (2 * h(a) - 1).abs().pow(beta)).sum() for a in alphas.values())
        rounding.zero_grad()
        stepping.zero_grad()
        loss.backward()
        rounding.step()
        stepping.step()
        cosine.step()
        losses.append(loss.item())
    return losses


def test_streams_that_do_not_fit_are_named(monkeypatch):
    arguments = captured(config(), monkeypatch)
    with pytest.raises(ReconstructionError, match="index stream ended"):
        qdrop.reconstruct_unit(*arguments, index_stream=iter([]))
    with pytest.raises(ReconstructionError, match="mask"):
        qdrop.reconstruct_unit(*arguments, mask_stream=iter([torch.ones(3, dtype=torch.bool)]))
    unit = arguments[0]
    assert not any(q.scale.requires_grad or q.drops is not None for q in unit.quantizers)
    assert all(not layer.weight.requires_grad for layer in unit.layers.values())


def test_inputs_that_are_not_finite_name_the_unit(monkeypatch):
    unit, teacher, cache, *rest = captured(config(), monkeypatch)
    bad = torch.stack([cache.fp_outputs[i] for i in range(32)])
    bad[3] = math.nan
    with pytest.raises(ReconstructionError, match="unit layer1: its fp outputs hold NaN"):
        qdrop.reconstruct_unit(unit, teacher, UnitCache(cache.fp_inputs, cache.quantised_inputs, bad), *rest)


def test_plain_tensors_will_do_as_a_cache(monkeypatch):
    unit, teacher, cache, settings, _ = captured(config(), monkeypatch)
    as_tensors = [torch.stack([each[i] for i in range(32)]) for each in vars(cache).values() if each is not None]
    scales = [quantizer.scale.clone() for quantizer in unit.quantizers]
    results = []
    for given in (cache, UnitCache(*as_tensors)):
        for quantizer, scale in zip(unit.quantizers, scales, strict=True):
            quantizer.scale = scale.clone()
        generator = torch.Generator().manual_seed(0)
        results.append(qdrop.reconstruct_unit(unit, teacher, given, settings, generator).losses)
    assert results[0] == results[1]


def test_padded_tokens_are_no_part_of_the_error():
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x, attention_mask):
            return self.second(torch.relu(self.first(x)))

    model = Tokens()
    mask = torch.ones(32, 5, dtype=torch.long)
    mask[:, 3:] = 0
    x = torch.randn(32, 5, 6)
    spoiled = x.clone()
    spoiled[:, 3:] = 1.0  # other values, within the range of the rest, where no token is
    settings = QDropConfig(w_bits=3, a_bits=8, iters=5, batch_size=32, method="case2")
    reports = [
        quantize(model, [{"x": each, "attention_mask": mask}], settings, progress=False).report for each in (x, spoiled)
    ]
    for a, b in zip(*reports, strict=True):
        assert a.loss_start == pytest.approx(b.loss_start, rel=0.05)
    plain = quantize(model, [{"x": spoiled, "attention_mask": torch.ones_like(mask)}], settings, progress=False).report
    assert abs(plain[0].loss_start / reports[1][0].loss_start - 1) > 0.05


def test_the_reference_sums_over_axis_1(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    losses = {
        reduction: quantize(
            model,
            [torch.randn(32, 5, 6, generator=torch.Generator().manual_seed(0))],
            QDropConfig(iters=1, reduction=reduction, reg_weight=0.0),
            progress=False,
        )
        .report[0]
        .losses[0]
        for reduction in ("channel", "dim1")
    }
    assert losses["dim1"] / losses["channel"] == pytest.approx(5 / 8, rel=1e-5)  # 5 tokens, 8 channels
