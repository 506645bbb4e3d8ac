"""Margins, masks and gradients of the three parameterisations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynsparse.errors import ConfigError
from dynsparse.thresholds import THRESHOLDS, ScaledThreshold, SigmoidThreshold, Threshold


def weight(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_the_hand_case_of_the_spec():
    """Section 10: W = (0.5, -0.2), tau = (0.3, 0.3), dWm = (1.5, 0.5)."""
    w = torch.tensor([0.5, -0.2], dtype=torch.float64).reshape(2, 1, 1, 1).requires_grad_()
    threshold = Threshold(w.detach(), granularity="kernel", init=0.3)
    effective = threshold.gate(w)
    assert effective.flatten().tolist() == [0.5, 0.0]
    effective.backward(torch.tensor([1.5, 0.5], dtype=torch.float64).reshape(2, 1, 1, 1))
    assert threshold.tau.grad.tolist() == pytest.approx([-0.9, 0.16], abs=1e-12)
    assert w.grad.flatten().tolist() == pytest.approx([2.4, 0.16], abs=1e-12)


@pytest.mark.parametrize(
    ("granularity", "sharing", "shape"),
    [
        ("layer", "independent", [1]),
        ("kernel", "independent", [3]),
        ("filter", "independent", [3, 4]),
        ("layer", "shared", [1]),
        ("kernel", "shared", [1]),
        ("filter", "shared", [4]),
    ],
)
def test_there_is_a_threshold_for_each_group(granularity, sharing, shape):
    w = weight(3, 4, 2, 3, 3)
    threshold = Threshold(w, granularity=granularity, sharing=sharing, init=0.5)
    assert list(threshold.tau.shape) == shape
    with torch.no_grad():
        threshold.tau.flatten()[-1] = 1.5
    level = torch.full(w.shape[1 if sharing == "shared" else 0 :], 0.5)
    group = {1: slice(None), 3: -1, 4: -1, 12: (-1, -1)}[threshold.tau.numel()]
    level[group] = 1.5
    assert torch.equal(threshold(w), threshold.magnitude(w) - level)


def test_the_shared_magnitude_is_the_root_mean_square_over_kernels():
    w = torch.tensor([[[3.0]], [[4.0]]])
    assert Threshold(w, sharing="shared").magnitude(w).item() == pytest.approx(12.5**0.5)


@pytest.mark.parametrize("name", ["raw", "scaled"])
@pytest.mark.parametrize("sharing", ["independent", "shared"])
def test_a_threshold_of_zero_keeps_every_weight(name, sharing):
    w = weight(3, 4, 2, 3, 3)
    assert torch.equal(THRESHOLDS[name](w, sharing=sharing).gate(w), w)


@pytest.mark.parametrize("sharing", ["independent", "shared"])
def test_scaling_makes_masks_blind_to_the_scale_of_the_weight(sharing):
    w = weight(2, 4, 3, 3)
    masks = [ScaledThreshold(c * w, sharing=sharing, init=0.9)(c * w) > 0 for c in (1.0, 0.125)]
    assert torch.equal(*masks)
    assert 0 < masks[0].float().mean() < 1


def test_the_scale_is_the_root_mean_square_at_the_start_and_stays():
    w = weight(2, 4, 3, 3)
    threshold = ScaledThreshold(w)
    assert threshold.sigma.item() == pytest.approx(w.square().mean().sqrt().item())
    before = threshold(w)
    threshold(10 * w)
    assert torch.equal(threshold(w), before)
    assert ScaledThreshold(torch.zeros(1, 1, 1)).sigma.item() == 1


@pytest.mark.parametrize("sharing", ["independent", "shared"])
def test_soft_thresholding_shrinks_magnitudes_by_the_threshold(sharing):
    w = weight(3, 4, 2, 3)
    threshold = SigmoidThreshold(w, sharing=sharing, init=-0.4)
    level = torch.sigmoid(torch.tensor(-0.4))
    expected = (threshold.magnitude(w) - level).relu()
    torch.testing.assert_close(threshold.magnitude(threshold.gate(w)), expected)
    kept = threshold.gate(w) != 0
    assert torch.equal(kept, (threshold(w) > 0).expand_as(w))
    assert torch.equal(threshold.gate(w).sign()[kept], w.sign()[kept])


@pytest.mark.parametrize("sharing", ["independent", "shared"])
def test_soft_thresholding_has_the_gradients_of_its_formula(sharing):
    w = weight(2, 3, 2, dtype=torch.float64).requires_grad_()
    threshold = SigmoidThreshold(w.detach(), sharing=sharing, init=-1.0).double()
    assert torch.autograd.gradcheck(lambda w, tau: (threshold.gate(w) * tau.exp()).sum(), (w, threshold.tau))


def test_a_masked_weight_keeps_a_gradient_and_can_come_back():
    w = torch.full((1, 1, 1), 0.25, requires_grad=True)
    threshold = Threshold(w.detach(), init=0.3)
    threshold.gate(w).sum().backward()
    assert threshold.gate(w).item() == 0
    assert w.grad.item() == pytest.approx(0.25 * (2 - 4 * 0.05), rel=1e-5)


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("sharing", ["independent", "shared"])
@given(steps=st.lists(st.floats(0.01, 0.5), min_size=2, max_size=6))
def test_density_never_rises_with_the_threshold(name, sharing, steps):
    w = weight(2, 4, 3, 3) / 3
    threshold = THRESHOLDS[name](w, sharing=sharing)
    densities = []
    for rise in steps:
        threshold.shift(rise)
        densities.append((threshold(w) > 0).float().mean().item())
    assert densities == sorted(densities, reverse=True)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_set_and_shift_are_in_units_of_the_magnitudes(name):
    w = weight(2, 4, 3, 3)
    threshold = THRESHOLDS[name](w)
    threshold.set(0.25)
    threshold.shift(0.5)
    torch.testing.assert_close(threshold.value(), torch.full((2,), 0.75))


@pytest.mark.parametrize("name", ["raw", "scaled"])
def test_thresholds_are_kept_between_zero_and_the_greatest_magnitude(name):
    w = weight(2, 4, 3, 3)
    threshold = THRESHOLDS[name](w)
    highest = threshold.magnitude(w).max()
    with torch.no_grad():
        threshold.tau.copy_(torch.tensor([-1.0, 99.0]))
    threshold.clamp(highest)
    assert threshold.tau.tolist() == [0, highest.item()]


def test_masks_are_those_of_single_precision_whatever_the_autocast():
    w = weight(2, 64, 64)
    threshold = ScaledThreshold(w, sharing="shared", init=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = threshold.mask(w)
    assert lowered.dtype is torch.float32
    assert torch.equal(lowered, threshold.mask(w))


@pytest.mark.parametrize("argument", ["granularity", "sharing", "surrogate"])
def test_an_unknown_word_is_named(argument):
    with pytest.raises(ConfigError, match=f"{argument} is one of .*; got 'x'"):
        Threshold(weight(1, 1, 1), **{argument: "x"})
