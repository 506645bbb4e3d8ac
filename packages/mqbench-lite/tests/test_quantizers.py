"""The states of a quantiser, and what each kind computes and learns."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqbench_lite.algorithms import BUILT_IN, get
from mqbench_lite.errors import CalibrationError, ExportError, NotCalibratedError, ProfileError
from mqbench_lite.learned import BoundedWeight, LearnedClip, LearnedStep, UnitRange
from mqbench_lite.nonuniform import IntervalQuantizer, PowersOfTwo, additive_powers
from mqbench_lite.quantizers import Quantizer
from mqbench_lite.soft import SHARPNESS, SoftQuantizer, slope, staircase
from mqbench_lite.specs import QuantSpec

S4, U4 = QuantSpec(bits=4), QuantSpec(bits=4, signed=False)
A8 = QuantSpec(bits=8, symmetric=False, signed=False)
PER_CHANNEL = QuantSpec(bits=4, per_channel=True)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def calibrated(quantizer, x, observer=None):
    quantizer.eval()
    quantizer.observe(observer)
    quantizer(x)
    quantizer.ready()
    return quantizer.train()


def slopes(quantizer, x, upstream=None):
    """Output, and the gradients of x and of each parameter by name."""
    x = x.clone().requires_grad_()
    y = quantizer(x)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    return y.detach(), x.grad, {name: p.grad for name, p in quantizer.named_parameters()}


def test_idle_passes_tensors_unchanged_but_does_not_train():
    quantizer, x = Quantizer(S4, "act"), normal(5)
    assert quantizer.eval()(x) is x
    with torch.no_grad():
        assert quantizer.train()(x) is x
    with pytest.raises(NotCalibratedError, match="has no range yet"):
        quantizer(x)


def test_observing_passes_tensors_unchanged_but_does_not_train():
    quantizer, x = Quantizer(S4, "act"), normal(5)
    quantizer.observe()
    with pytest.raises(CalibrationError, match="cannot learn"):
        quantizer.train()(x)
    assert quantizer.eval()(x) is x
    assert quantizer.state == "observing"


def test_evaluating_changes_nothing():
    """Spec trap 13."""
    for algorithm in BUILT_IN:
        for role in ("weight", "act"):
            quantizer = calibrated(algorithm.make_quantizer(S4, role), normal(64)).eval()
            before = {name: value.clone() for name, value in quantizer.state_dict().items()}
            quantizer(normal(64))
            after = quantizer.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before), (algorithm, role)


def test_ready_and_freeze_ask_for_what_comes_before():
    quantizer = Quantizer(S4, "act")
    with pytest.raises(NotCalibratedError):
        quantizer.ready()
    with pytest.raises(NotCalibratedError):
        quantizer.freeze()
    quantizer.observe()
    with pytest.raises(NotCalibratedError):
        quantizer.freeze()
    with pytest.raises(CalibrationError, match="no tensor passed"):
        quantizer.ready()


def test_a_frozen_quantiser_neither_learns_nor_observes():
    quantizer = calibrated(LearnedStep(S4, "act"), normal(100))
    quantizer.freeze()
    quantizer.freeze()
    x = normal(10).requires_grad_()
    quantizer(x).sum().backward()
    assert quantizer.step.grad is None
    assert x.grad is not None
    with pytest.raises(CalibrationError, match="frozen"):
        quantizer.observe()


def test_observing_again_starts_afresh():
    quantizer = calibrated(Quantizer(U4, "act"), torch.tensor([0.0, 15.0]))
    assert quantizer.scale.item() == 1.0
    calibrated(quantizer, torch.tensor([0.0, 3.0]))
    assert quantizer.scale.item() == pytest.approx(0.2)


def test_a_disabled_quantiser_passes_tensors_unchanged():
    quantizer, x = calibrated(Quantizer(S4, "act"), normal(100)), normal(5)
    quantizer.enabled = False
    assert quantizer(x) is x


def test_a_weight_is_observed_once():
    quantizer = Quantizer(S4, "weight").eval()
    quantizer.observe("mse")
    quantizer(normal(50))
    quantizer(normal(50) * 1000)
    quantizer.ready()
    assert quantizer.scale.item() < 1


@pytest.mark.parametrize(("low", "ends"), [(0.0, (0, 15)), (-0.5, (-8, 7))])
def test_the_data_decides_the_sign_where_it_is_left_open(low, ends):
    quantizer = calibrated(Quantizer(QuantSpec(bits=4, signed="auto"), "act"), torch.tensor([low, 1.0]))
    assert (quantizer.qmin, quantizer.qmax) == ends
    assert quantizer.scale.item() == pytest.approx(1 / (15 if low == 0 else 7.5))


def test_dead_channels_and_values_that_a_grid_cannot_hold_are_named(caplog):
    weight = torch.stack([torch.zeros(5), torch.ones(5)])
    with caplog.at_level(logging.WARNING):
        quantizer = Quantizer(PER_CHANNEL, "weight")
        quantizer.attach(weight.shape)
        y = calibrated(quantizer, weight)(weight)
        calibrated(Quantizer(U4, "act"), torch.tensor([-1.0, 1.0]))
    assert "1 of 2 ranges hold only 0" in caplog.messages[0]
    assert "negative values become 0" in caplog.messages[1]
    assert quantizer.scale.tolist() == [2**-23, pytest.approx(1 / 7.5)]
    assert y[0].tolist() == [0] * 5


def test_activations_have_no_channels():
    with pytest.raises(ProfileError, match="per tensor"):
        Quantizer(PER_CHANNEL, "act")


@pytest.mark.parametrize("algorithm", BUILT_IN, ids=lambda each: each.name)
@pytest.mark.parametrize("role", ["weight", "act"])
def test_a_saved_state_is_taken_over_by_a_new_quantiser_of_the_same_shape(algorithm, role):
    """Spec trap 9: everything has its final shape before anything is loaded."""
    academic = algorithm.name in ("qil", "apot")
    spec = PER_CHANNEL if role == "weight" and not academic else QuantSpec(bits=4, signed="auto")
    weight = normal(6, 3, 3, 3).abs() + (0 if role == "act" else -0.5)
    old, new = (algorithm.make_quantizer(spec, role) for _ in range(2))
    for quantizer in (old, new):
        if role == "weight":
            quantizer.attach(weight.shape)
    calibrated(old, weight)
    state = {name: value.clone() for name, value in old.state_dict().items()}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    new.load_state_dict(state)
    assert new.state == "ready"
    assert (new.qmin, new.qmax) == (old.qmin, old.qmax)
    assert torch.equal(new(weight), old(weight))
    old.freeze()
    new.load_state_dict(old.state_dict())
    assert not any(parameter.requires_grad for parameter in new.parameters())


@pytest.mark.parametrize(
    "algorithm", [a for a in BUILT_IN if a.name not in ("qil", "apot")], ids=lambda each: each.name
)
@pytest.mark.parametrize("spec", [S4, A8, QuantSpec(bits=3, narrow_range=True), QuantSpec(bits=5, pot_scale=True)])
@pytest.mark.parametrize("role", ["weight", "act"])
def test_codes_are_those_of_what_is_computed(algorithm, spec, role):
    quantizer, x = algorithm.make_quantizer(spec, role), normal(40, 30)
    quantizer.attach(x.shape)
    calibrated(quantizer, x)
    y, codes = quantizer(x).detach(), quantizer.codes(x)
    assert codes.min() >= quantizer.qmin
    assert codes.max() <= quantizer.qmax
    assert quantizer.scale.dtype == torch.float32
    assert quantizer.zero_point.dtype == torch.int32
    assert torch.equal((codes - quantizer.zero_point) * quantizer.scale.detach(), y)
    if spec.pot_scale:
        assert torch.frexp(quantizer.scale.detach()).mantissa.item() == 0.5


def test_lsq_gain_counts_the_elements_that_share_a_step_size():
    """Spec trap 8: N leaves out the channels, and Qmax is that of the sign that was decided."""
    weight = normal(6, 4, 3, 3)
    quantizer = LearnedStep(PER_CHANNEL, "weight")
    quantizer.attach(weight.shape)
    assert calibrated(quantizer, weight).gain(weight) == pytest.approx((36 * 7) ** -0.5)
    act = calibrated(LearnedStep(QuantSpec(bits=4, signed="auto"), "act"), weight.abs())
    assert act.gain(weight) == pytest.approx((216 * 15) ** -0.5)


def test_lsq_learns_each_channels_step_size_by_the_closed_form():
    weight, upstream = normal(6, 4, 3, 3), normal(6, 4, 3, 3, seed=1)
    quantizer = LearnedStep(PER_CHANNEL, "weight", observer="mean")
    quantizer.attach(weight.shape)
    calibrated(quantizer, weight)
    _, of_x, learned = slopes(quantizer, weight, upstream)
    v = weight / quantizer.scale.detach().reshape(6, 1, 1, 1)
    inside = (v.round() >= -8) & (v.round() <= 7)
    by_element = torch.where(inside, v.round() - v, v.round().clamp(-8, 7)) * upstream
    torch.testing.assert_close(learned["step"], by_element.flatten(1).sum(1) * (36 * 7) ** -0.5)
    assert torch.equal(of_x, torch.where(inside, upstream, 0))


def test_lsq_asymmetric_learns_its_zero_point():
    quantizer = calibrated(LearnedStep(A8, "act"), normal(1000), "minmax")
    assert quantizer.zero_point.item() == quantizer.offset.item() > 0
    _, _, learned = slopes(quantizer, torch.tensor([100.0, 0.0]))
    assert learned["offset"].item() == pytest.approx(-quantizer.scale.item() * (2 * 255) ** -0.5)
    with torch.no_grad():
        quantizer.offset.fill_(-3.7)
    assert quantizer.zero_point.item() == 0


def test_lsq_step_sizes_that_cross_0_stay_positive_and_find_back():
    quantizer, x = calibrated(LearnedStep(S4, "act"), normal(100)), torch.tensor([9.0])
    for start in (-0.3, 0.0, 1e-12):
        with torch.no_grad():
            quantizer.step.fill_(start)
        assert quantizer.scale.item() == pytest.approx(max(abs(start), 2**-23))
        quantizer.zero_grad()
        _, _, learned = slopes(quantizer, x)
        assert learned["step"].item() == pytest.approx((-7 if start < 0 else 7) * 7**-0.5)


def test_lsq_learns_the_real_size_behind_a_power_of_two():
    quantizer = calibrated(LearnedStep(QuantSpec(bits=4, pot_scale=True), "act"), normal(100))
    with torch.no_grad():
        quantizer.step.fill_(0.3)
    assert quantizer.scale.item() == 0.25
    _, _, learned = slopes(quantizer, torch.tensor([9.0]))
    assert learned["step"].item() == pytest.approx(7 * 7**-0.5 * 0.25 / 0.3)


def test_pact_gives_alpha_the_gradient_of_all_that_lies_above_it():
    quantizer = calibrated(LearnedClip(U4, "act"), torch.rand(10))
    assert quantizer.scale.item() == pytest.approx(6 / 15)
    x, upstream = torch.tensor([-1.0, 0.0, 3.0, 6.0, 6.1, 50.0]), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    y, of_x, learned = slopes(quantizer, x, upstream)
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, 3.2, 6.0, 6.0, 6.0]))  # 3 / .4 = 7.5 -> 8
    assert of_x.tolist() == [0, 2, 4, 8, 0, 0]
    assert learned["alpha"].item() == 48


def test_pact_asymmetric_learns_both_ends():
    quantizer = calibrated(LearnedClip(A8, "act"), normal(10))
    assert quantizer.scale.item() == pytest.approx(12 / 255)
    assert quantizer.zero_point.item() == 128
    x, upstream = torch.tensor([-9.0, -7.0, 0.0, 7.0]), torch.tensor([1.0, 2.0, 4.0, 8.0])
    _, of_x, learned = slopes(quantizer, x, upstream)
    assert of_x.tolist() == [0, 0, 4, 0]
    assert (learned["alpha"].item(), learned["low_alpha"].item()) == (8, 3)


def test_pact_signed_learns_its_end_although_that_rounds_beyond_the_codes():
    """alpha / s = 7.5 rounds to 8: the mask of the grid alone would stop the gradient."""
    quantizer = calibrated(LearnedClip(S4, "act"), normal(10))
    y, of_x, learned = slopes(quantizer, torch.tensor([-99.0, -6.0, 8.0]))
    assert y.tolist() == [pytest.approx(-6.4), pytest.approx(-6.4), pytest.approx(5.6)]
    assert of_x.tolist() == [0, 1, 0]
    assert learned["alpha"].item() == 1


def test_pact_needs_no_clip_beside_its_grid():
    """Where the zero point's rounding leaves alpha below the last code, what lies above reaches that code, as in an engine."""
    quantizer = calibrated(LearnedClip(QuantSpec(bits=4, symmetric=False, signed=False), "act"), normal(10))
    with torch.no_grad():
        quantizer.alpha.fill_(5.0)
        quantizer.low_alpha.fill_(-2.9)
    x = torch.linspace(-9, 9, 1001)
    codes = ((x / quantizer.scale).round() + quantizer.zero_point).clamp(0, 15)
    assert torch.equal(quantizer(x).detach(), (codes - quantizer.zero_point) * quantizer.scale)
    assert torch.equal(quantizer.codes(x), codes.int())


def test_pact_may_start_from_the_calibrated_range():
    quantizer = calibrated(LearnedClip(U4, "act", start=None), torch.tensor([0.0, 2.5]))
    assert quantizer.alpha.item() == pytest.approx(2.5)
    quantizer = calibrated(LearnedClip(A8, "act", start=None), torch.tensor([-1.0, 3.0]))
    assert quantizer.alpha.item() == pytest.approx(3.0, abs=4 / 255)
    assert quantizer.low_alpha.item() == pytest.approx(-1.0, abs=4 / 255)


def test_dorefa_maps_a_weight_by_tanh_and_keeps_its_scale_unless_told_otherwise():
    weight = normal(4, 9)
    t = torch.tanh(weight)
    literal = t / (t.abs().max() + 1e-5)
    for keeps, factor in ((False, 1.0), (True, weight.abs().max())):
        quantizer = calibrated(BoundedWeight(S4, "weight", keeps_scale=keeps), weight)
        bounded = literal * factor
        scale = bounded.abs().max() / 7.5
        torch.testing.assert_close(quantizer(weight), (bounded / scale).round().clamp(-8, 7) * scale)
        assert quantizer.scale.item() == pytest.approx(scale.item())


def test_dorefa_learns_through_the_greatest_magnitude():
    """The map before rounding against finite differences; the kept scale counts as a constant."""
    weight = normal(6).double()
    quantizer, upstream, step = BoundedWeight(S4, "weight", keeps_scale=True), torch.arange(1.0, 7).double(), 1e-6
    (found,) = torch.autograd.grad(quantizer.bounded(leaf := weight.clone().requires_grad_()), leaf, upstream)
    scale = weight.abs().max()
    literal = BoundedWeight(S4, "weight", keeps_scale=False)
    for at in range(6):
        moved = torch.zeros(6, dtype=torch.float64)
        moved[at] = step
        ends = [(literal.bounded(weight + sign * moved) * upstream).sum() * scale for sign in (1, -1)]
        assert found[at].item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("symmetric", [True, False])
def test_dorefa_keeps_a_step_size_that_was_raised(symmetric):
    """Freezing raises those of channels whose bias would not fit in int32."""
    weight = normal(4, 9)
    quantizer = BoundedWeight(QuantSpec(bits=4, per_channel=True, symmetric=symmetric), "weight")
    quantizer.attach(weight.shape)
    calibrated(quantizer, weight)
    before = quantizer.scale.clone()
    raised = torch.where(torch.arange(4) == 2, 2 * before, before)
    quantizer.set_grid(raised, quantizer.zero_point.clone())
    codes, y = quantizer.codes(weight), quantizer(weight)
    assert torch.equal(quantizer.scale, raised)
    assert torch.equal((codes - quantizer.zero_point[:, None]) * raised[:, None], y)
    assert (y - quantizer.bounded(weight))[2].abs().max() <= raised[2] / 2 + 1e-6
    calibrated(quantizer, weight)
    assert torch.equal(quantizer.scale, before)


def test_dorefa_clips_activations_to_the_unit_range_and_takes_the_data_at_8_bit():
    x = torch.tensor([0.0, 0.5, 7.0])
    assert calibrated(UnitRange(U4, "act"), x).scale.item() == pytest.approx(1 / 15)
    assert calibrated(UnitRange(S4, "act"), -x).scale.item() == pytest.approx(1 / 7.5)
    assert calibrated(UnitRange(QuantSpec(bits=8, signed=False), "act"), x).scale.item() == pytest.approx(7 / 255)
    signed = calibrated(UnitRange(QuantSpec(bits=4, symmetric=False, signed=False), "act"), x - 1)
    assert (signed.scale.item(), signed.zero_point.item()) == (pytest.approx(2 / 15), 7)  # 1 / s is just below 7.5


@given(st.floats(-10, 10))
def test_rounding_the_soft_staircase_is_rounding(u):
    x = torch.tensor(u, dtype=torch.float64)
    if abs(u - round(u)) < 0.49999:  # at the middle both are ties
        assert staircase(x).round() == x.round()


def test_the_staircase_is_its_closed_form_and_meets_the_codes():
    u = torch.tensor([0.0, 0.25, 0.5, 0.999999, 3.75], dtype=torch.float64)
    k, a = torch.tensor(4.0).log().item(), 0.4
    assert pytest.approx(k) == SHARPNESS
    expected = [f + 0.5 + 0.5 * torch.tanh(torch.tensor(k * (v - f - 0.5))).item() / (1 - a) for v, f in
                zip(u.tolist(), [0, 0, 0, 0, 3], strict=True)]  # fmt: skip
    torch.testing.assert_close(staircase(u), torch.tensor(expected, dtype=torch.float64))
    assert staircase(u[0]).item() == pytest.approx(0, abs=1e-12)
    assert staircase(u[3]).item() == pytest.approx(1, abs=1e-5)


def test_dsq_gradient_is_the_slope_of_the_staircase_within_the_range():
    u = torch.linspace(-3.9, 3.9, 101, dtype=torch.float64)
    differences = (staircase(u + 1e-6) - staircase(u - 1e-6)) / 2e-6
    torch.testing.assert_close(slope(u), differences, rtol=1e-6, atol=0)
    quantizer = SoftQuantizer(S4, "act")
    calibrated(quantizer, torch.tensor([-3.0, 3.0]), "minmax")  # s = .4
    x = torch.tensor([-3.3, -1.23, 0.15, 0.2, 2.9, 3.1])
    y, of_x, _ = slopes(quantizer, x)
    assert torch.equal(y, calibrated(Quantizer(S4, "act"), torch.tensor([-3.0, 3.0]))(x))
    expected = torch.where(torch.tensor([True, True, True, True, True, False]), slope(x / quantizer.scale), 0)
    torch.testing.assert_close(of_x, expected)


def test_qil_maps_its_interval_and_rounds_there():
    """w: v = clamp(.5|x|/d - .5c/d + .5, 0, 1) sign x, round(v 7) / 7 at 4 bit; c = d = max|x| / 2."""
    x = torch.tensor([-4.0, -1.0, 0.3, 2.0, 5.0])
    quantizer = calibrated(IntervalQuantizer(S4, "weight"), x[:4])
    assert (quantizer.center.item(), quantizer.half_width.item()) == (2, 2)
    v = torch.tensor([-1.0, -0.25, 0.075, 0.5, 1.0])
    torch.testing.assert_close(quantizer(x).detach(), torch.tensor([-7.0, -2.0, 1.0, 4.0, 7.0]) / 7)
    assert (v * 7).round().tolist() == [-7, -2, 1, 4, 7]
    act = calibrated(IntervalQuantizer(QuantSpec(bits=4, signed="auto"), "act"), x.abs()[:4])
    torch.testing.assert_close(act(x).detach(), torch.tensor([0.0, 0.0, 1.0, 8.0, 15.0]) / 15)


def test_qil_prunes_below_its_interval_and_learns_it_as_the_map_does():
    quantizer = calibrated(IntervalQuantizer(S4, "weight"), normal(50)).double()
    with torch.no_grad():
        quantizer.center.fill_(1.0)
        quantizer.half_width.fill_(0.4)
    x, upstream = torch.tensor([0.5, -0.9, 1.1, 2.0]).double(), torch.tensor([1.0, 2.0, 4.0, 8.0]).double()

    def mapped(c, d):
        place = (0.5 * x.abs() / d - 0.5 * c / d + 0.5).clamp(0, 1) * x.sign()
        return (place * upstream).sum().item()

    y, of_x, learned = slopes(quantizer, x, upstream)
    assert y[0].item() == 0
    d, h, gain = quantizer.half_width.item(), 1e-6, (4 * 7) ** -0.5
    of_center, of_width = mapped(1 + h, d) - mapped(1 - h, d), mapped(1, d + h) - mapped(1, d - h)
    assert learned["center"].item() == pytest.approx(gain * of_center / (2 * h), rel=1e-6)
    assert learned["half_width"].item() == pytest.approx(gain * of_width / (2 * h), rel=1e-6)
    torch.testing.assert_close(of_x, torch.tensor([0.0, 2.0, 4.0, 0.0]).double() * 0.5 / d)


@pytest.mark.parametrize(
    ("bits", "levels"),
    [
        (1, [0, 1]),
        (2, [0, 1 / 4, 1 / 2, 1]),  # 2^-1, 2^-2, 2^-3 over their greatest
        (3, [0, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625]),  # {0, 1/2, 1/4, 1/16} + {0, 1/8}
        (4, [a + b for a in (0, 1 / 2, 1 / 8, 1 / 32) for b in (0, 1 / 4, 1 / 16, 1 / 64)]),
    ],
)
def test_apot_levels_are_those_of_the_paper(bits, levels):
    """APoT's released `build_power_value` for 2, 3 and 4 bit, normalised by the greatest."""
    expected = torch.tensor(sorted(levels)) / max(levels)
    torch.testing.assert_close(additive_powers(bits), expected)


@pytest.mark.parametrize("bits", range(1, 9))
def test_apot_levels_are_distinct_and_use_every_code(bits):
    levels = additive_powers(bits)
    assert len(levels) == 2**bits
    assert (levels[0], levels[-1]) == (0, 1)


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), signed=st.booleans(), seed=st.integers(0, 9))
def test_apot_rounds_to_the_nearest_level(bits, signed, seed):
    x = normal(200, seed=seed)
    x = x if signed else x.abs()
    quantizer = calibrated(PowersOfTwo(QuantSpec(bits=bits, signed="auto"), "act"), x * 0.8)
    levels = quantizer.levels * quantizer.alpha.detach()
    levels = torch.cat([-levels, levels]) if signed else levels
    nearest = (x[:, None] - levels).abs().min(1).values
    torch.testing.assert_close((quantizer(x) - x).abs().detach(), nearest, rtol=1e-4, atol=1e-6)


def test_apot_learns_its_clip_from_what_is_clipped_and_from_rounding():
    quantizer = calibrated(PowersOfTwo(S4, "weight"), torch.tensor([-2.0, 2.0]))
    x, upstream = torch.tensor([-3.0, 0.9, 5.0]), torch.tensor([1.0, 2.0, 4.0])
    y, of_x, learned = slopes(quantizer, x, upstream)
    level = y[1].item() / 2
    assert of_x.tolist() == [0, 2, 0]
    assert learned["alpha"].item() == pytest.approx(-1 + 2 * (level - 0.45) + 4, rel=1e-5)


@pytest.mark.parametrize("name", ["qil", "apot"])
def test_what_is_no_uniform_grid_is_for_the_academic_profile_and_has_no_codes(name):
    with pytest.raises(ProfileError, match="symmetric grid per tensor"):
        get(name).make_quantizer(PER_CHANNEL, "weight")
    with pytest.raises(ProfileError, match="symmetric grid per tensor"):
        get(name).make_quantizer(A8, "act")
    quantizer = calibrated(get(name).make_quantizer(S4, "weight"), normal(20))
    assert not quantizer.exportable
    with pytest.raises(ExportError, match=name):
        quantizer.codes(normal(20))
