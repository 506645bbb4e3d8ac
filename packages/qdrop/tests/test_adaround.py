"""The learned rounding, against the reference code's numbers, closed forms and torch's own derivative."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdrop import adaround
from qdrop.adaround import AdaRound, beta_schedule
from qdrop.fake_quant import fake_quantize
from qdrop.ranges import search_range


def sines():
    """The weight of spec 10, whose are all figures below that are not said to come from elsewhere."""
    return torch.sin(torch.arange(24.0)).view(3, 8) * torch.tensor([[1.0], [0.5], [0.25]])


SCALE, ZERO_POINT = search_range(sines(), 3, symmetric=False, axis=0)


def rounding_of_sines():
    return AdaRound(sines(), SCALE, ZERO_POINT, 0, 7)


def one_step(fraction, base=0.0):
    """A weight that lies at `fraction` between two codes in the middle of the grid, with s = 1."""
    weight = torch.full((1, 1), base + fraction)
    return AdaRound(weight, torch.ones(1), torch.full((1,), 4, dtype=torch.int32), 0, 7)


def a_weight(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_alpha_starts_as_the_reference_code_starts_it():
    expected = torch.tensor([-2.3979, -0.75278, 0.16365, 0.16971, -1.97518, -0.85796, 1.66719, 0.21488])
    torch.testing.assert_close(rounding_of_sines().alpha[0].detach(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("beta", "expected"), [(20.0, 21.58584), (11.0, 20.62012), (2.0, 15.65758)])
def test_regulariser_agrees_with_the_reference_code(beta, expected):
    assert rounding_of_sines().regulariser(beta).item() == pytest.approx(expected, abs=1e-5)


def test_hard_weights_agree_with_the_reference_code():
    assert rounding_of_sines().hard().sum().item() == pytest.approx(1.182922, abs=1e-6)


def test_soft_weight_starts_as_the_clipped_weight():
    rounding, weight = rounding_of_sines(), sines()
    low, high = (-ZERO_POINT * SCALE)[:, None], ((7 - ZERO_POINT) * SCALE)[:, None]
    torch.testing.assert_close(rounding.soft().detach(), torch.clamp(weight, low, high), rtol=0, atol=1e-7)
    assert (rounding.soft() - weight).abs().max().item() == pytest.approx(0.1406576, abs=1e-7)


@pytest.mark.parametrize(("fraction", "alpha"), [(0.5, 0.0), (0.0, -2.3979), (0.9, 1.6094)])
def test_alpha_is_the_inverse_of_h(fraction, alpha):
    assert one_step(fraction).alpha.item() == pytest.approx(alpha, abs=5e-5)


@pytest.mark.parametrize(("beta", "expected"), [(2.0, 0.75), (20.0, 0.99999905)])
def test_regulariser_of_three_quarters(beta, expected):
    """To what float32 makes of h: two of its steps at 3/4, doubled and multiplied by the slope of at most 2."""
    assert one_step(0.75).regulariser(beta).item() == pytest.approx(expected, abs=2 * 2**-24 * 4)


@pytest.mark.parametrize("beyond", [math.log(11) + 1e-4, 5.0, 100.0])
def test_h_saturates_exactly_and_the_regulariser_vanishes(beyond):
    for sign, code in ((1, 5), (-1, 4)):
        rounding = one_step(0.5)
        with torch.no_grad():
            rounding.alpha.fill_(sign * beyond)
        assert rounding.soft().item() == code - 4
        assert rounding.regulariser(3.0).item() == 0
        assert rounding.share_unconverged() == 0


def test_half_counts_as_up_and_as_unconverged():
    rounding = one_step(0.5)
    assert rounding.alpha.item() == 0
    assert rounding.codes().item() == 5
    assert rounding.share_unconverged() == 1


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(3, 8), (4, 2, 3, 3), (5, 1), (2, 5000)]),
    bits=st.integers(2, 8),
    beta=st.sampled_from([None, 2.0, 3.7, 20.0]),
    per_channel=st.booleans(),
    seed=st.integers(0, 9),
)
def test_values_and_gradients_are_those_of_the_formula(shape, bits, beta, per_channel, seed):
    """Bitwise for the weight; torch differentiates the formula in double, whose ends no alpha here meets exactly."""
    qmax = 2**bits - 1
    channels = shape[0] if per_channel else 1
    scale = torch.rand(channels) * 4 / qmax + 0.1 / qmax
    zero_point = torch.full((channels,), qmax // 2, dtype=torch.int32)
    rounding = AdaRound(a_weight(*shape, seed=seed), scale, zero_point, 0, qmax)
    with torch.no_grad():
        rounding.alpha += a_weight(*shape, seed=seed + 1) * 0.3
    upstream, of_regulariser = a_weight(*shape, seed=seed + 2), torch.tensor(0.7)

    alpha = rounding.alpha.detach().double().requires_grad_()
    columns = scale.view(-1, *[1] * (len(shape) - 1)).double()
    h = (torch.sigmoid(alpha) * 1.2 - 0.1).clamp(0, 1)
    expected = ((rounding.base.double() + h).clamp(0, qmax) - qmax // 2) * columns
    penalty = (1 - (2 * h - 1).abs().pow(beta or 1.0)).sum()
    total = (expected * upstream).sum() + (0 if beta is None else of_regulariser * penalty)
    (gradient,) = torch.autograd.grad(total, alpha)

    soft, regulariser = rounding.soft_and_regulariser(beta)
    torch.testing.assert_close(soft.double(), expected, rtol=0, atol=1e-6 * scale.max().item() * qmax)
    ours = [soft] if beta is None else [soft, regulariser]
    if beta is not None:
        assert regulariser.item() == pytest.approx(penalty.item(), rel=1e-5)
    (found,) = torch.autograd.grad(ours, rounding.alpha, [upstream, of_regulariser][: len(ours)])
    torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(3, 8), (4, 2, 3, 3), (5, 1)]),
    beta=st.sampled_from([None, 2.0, 20.0]),
    seed=st.integers(0, 9),
)
def test_kernels_and_torch_agree(shape, beta, seed):
    """Bitwise in the weight and its gradient, to 1e-6 in the regulariser and its own."""
    scale, zero_point = torch.rand(shape[0]) + 0.1, torch.arange(shape[0], dtype=torch.int32)
    rounding = AdaRound(a_weight(*shape, seed=seed), scale, zero_point, 0, 7)
    upstream = [a_weight(*shape, seed=seed + 1), torch.tensor(0.5)]

    def run():
        outputs = [each for each in rounding.soft_and_regulariser(beta) if each is not None]
        of_weight = torch.autograd.grad(outputs[0], rounding.alpha, upstream[0], retain_graph=True)[0]
        return outputs[0], of_weight, torch.autograd.grad(outputs, rounding.alpha, upstream[: len(outputs)])[0], outputs

    by_kernel = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaround, "_kernels_take", lambda *_: False)
        by_torch = run()
    assert torch.equal(by_kernel[0], by_torch[0])
    assert torch.equal(by_kernel[1], by_torch[1])
    torch.testing.assert_close(by_kernel[2], by_torch[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_kernel[3][-1], by_torch[3][-1], rtol=1e-6, atol=0)


def test_clipped_weights_feel_the_regulariser_alone():
    rounding = AdaRound(torch.tensor([[9.3, -9.3, 0.3]]), torch.ones(1), torch.full((1,), 4, dtype=torch.int32), 0, 7)
    soft, regulariser = rounding.soft_and_regulariser(2.0)
    (of_soft,) = torch.autograd.grad(soft.sum(), rounding.alpha, retain_graph=True)
    (of_regulariser,) = torch.autograd.grad(regulariser, rounding.alpha)
    assert (of_soft != 0).tolist() == [[False, False, True]]
    assert (of_regulariser != 0).all()


def test_a_weight_on_the_grid_can_still_leave_it():
    """Its h is 0, the end of the range, which counts as inside; torch's own `clamp` would say 0 or a half here."""
    rounding = one_step(0.0, base=1.0)
    (gradient,) = torch.autograd.grad(rounding.soft().sum(), rounding.alpha)
    assert gradient.item() == pytest.approx(1.2 * (1 / 12) * (11 / 12), rel=1e-6)  # sigmoid(-log 11) = 1/12


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 9), moved=st.floats(0, 3))
def test_hard_weights_lie_on_the_grid_one_step_at_most_above_the_floor(bits, seed, moved):
    qmax = 2**bits - 1
    scale, zero_point = torch.rand(4) + 0.05, torch.full((4,), qmax // 2, dtype=torch.int32)
    weight = a_weight(4, 50, seed=seed)
    rounding = AdaRound(weight, scale, zero_point, 0, qmax)
    with torch.no_grad():
        rounding.alpha += moved * a_weight(4, 50, seed=seed + 1)
    codes, hard = rounding.codes(), rounding.hard()
    floor = ((weight / scale[:, None]).floor() + zero_point[:, None]).clamp(0, qmax)
    assert set((codes - floor).unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(hard, (codes - zero_point[:, None]) * scale[:, None])
    assert torch.equal(fake_quantize(hard, scale, zero_point, 0, qmax, axis=0), hard)


def test_zeros_of_a_dead_channel_stay_exact_zeros():
    weight = torch.stack([torch.zeros(9), a_weight(9)])
    rounding = AdaRound(weight, torch.tensor([1e-8, 0.3]), torch.tensor([0, 3], dtype=torch.int32), 0, 7)
    assert torch.equal(rounding.soft()[0], torch.zeros(9))
    assert torch.equal(rounding.hard()[0], torch.zeros(9))


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_may_lie_along_any_axis(axis):
    weight, scale = a_weight(4, 4, 3), torch.rand(4) + 0.1
    zero_point = torch.arange(4, dtype=torch.int32)
    turned = AdaRound(weight.transpose(0, axis).contiguous(), scale, zero_point, 0, 7, axis=axis)
    straight = AdaRound(weight, scale, zero_point, 0, 7)
    assert torch.equal(turned.soft().transpose(0, axis), straight.soft())
    assert torch.equal(turned.codes().transpose(0, axis), straight.codes())
    assert turned.regulariser(5.0).item() == pytest.approx(straight.regulariser(5.0).item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rounding_is_learned_in_single_precision(dtype):
    rounding = AdaRound(sines().to(dtype), SCALE, ZERO_POINT, 0, 7)
    assert rounding.alpha.dtype == torch.float32
    assert rounding.soft().dtype == torch.float32
    assert rounding.alpha.is_leaf


def test_beta_stays_during_the_warm_up_and_falls_linearly_to_its_end():
    assert [beta_schedule(t, 20_000) for t in (1, 3999, 4000, 12_000, 20_000)] == [20, 20, 20, 11, 2]
    assert beta_schedule(10, 10, warmup=0.0, start=8.0, end=4.0) == 4
    assert beta_schedule(5, 10, warmup=0.0, start=8.0, end=4.0) == 6
    assert beta_schedule(10, 10, warmup=1.0) == 20
