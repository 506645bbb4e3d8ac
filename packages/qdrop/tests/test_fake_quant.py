"""Rounding to a grid and its gradients, against closed forms, and the two ways of computing them against one another."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdrop import fake_quant
from qdrop.fake_quant import fake_quantize, lsq_fake_quantize, mix, qdrop_fake_quantize, random_mask


@pytest.fixture
def torch_only(monkeypatch):
    """Keeps the kernels away."""
    return lambda: monkeypatch.setattr(fake_quant, "_kernels_take", lambda _: False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def a_tensor(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def gradients(quantize, x, scale, upstream):
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    y = quantize(x, scale)
    return y.detach(), *torch.autograd.grad(y, (x, scale), upstream)


def test_values_that_can_be_checked_by_hand():
    x = torch.tensor([0, 0.15, -0.15, 0.45, 100])  # spec 10: .5 and -.5 steps go to 0, float32 .45/.3 is just below 1.5
    y = fake_quantize(x, torch.tensor(0.3), 1, 0, 3)
    torch.testing.assert_close(y, torch.tensor([0, 0, 0, 0.3, 0.6]))


@pytest.mark.parametrize("kernels", [True, False])
def test_lsq_agrees_with_the_reference_code(kernels, torch_only):
    """Spec 10: 2 bit, s = .5, z = 1, upstream 0..63."""
    if not kernels:
        torch_only()
    x, upstream = torch.linspace(-1, 2, 64), torch.arange(64.0)
    g = (64 * 3) ** -0.5
    y, of_x, of_scale = gradients(lambda x, s: lsq_fake_quantize(x, s, 1, 0, 3, g), x, torch.tensor(0.5), upstream)
    assert y.sum().item() == 24.0
    assert of_scale.item() == pytest.approx(124.44303, rel=1e-7)
    assert (of_x != 0).sum().item() == 42


def test_lsq_gradient_is_the_closed_form_below_within_and_above_the_range():
    x, upstream = torch.tensor([-9.0, -0.2, 0.3, 9.0]), torch.tensor([1.0, 10.0, 100.0, 1000.0])
    _, of_x, of_scale = gradients(lambda x, s: lsq_fake_quantize(x, s, 1, 0, 3, 0.5), x, torch.tensor(0.5), upstream)
    assert of_x.tolist() == [0, 10, 100, 0]
    expected = 0.5 * (1 * (0 - 1) + 10 * (0 + 0.4) + 100 * (1 - 0.6) + 1000 * (3 - 1))
    assert of_scale.item() == pytest.approx(expected, rel=1e-6)


def test_codes_at_both_ends_of_the_range_pass_the_gradient():
    x = torch.tensor(
        [-0.5, 1.0, -0.5 - 0.26, 1.0 + 0.26]
    )  # codes 0 and 3 exactly, then beyond by more than half a step
    _, of_x, _ = gradients(lambda x, s: lsq_fake_quantize(x, s, 1, 0, 3, 1.0), x, torch.tensor(0.5), torch.ones(4))
    assert of_x.tolist() == [1, 1, 0, 0]


def test_gradient_of_the_step_size_is_the_slope_of_the_output_where_no_code_changes():
    x = a_tensor(1000).clamp(-0.7, 0.7) / 2 + 1e-3  # where x / s is clipped or its code fixed, y is linear in s
    clipped = torch.cat([x[:0], torch.tensor([-3.0, 4.0])])
    scale, step = torch.tensor(0.25, dtype=torch.float64), 1e-5
    y = [lsq_fake_quantize(clipped.double(), scale + sign * step, 2, 0, 7, 1.0).sum() for sign in (1, -1)]
    _, _, of_scale = gradients(
        lambda x, s: lsq_fake_quantize(x, s, 2, 0, 7, 1.0), clipped, scale.float(), torch.ones(2)
    )
    assert of_scale.item() == pytest.approx(((y[0] - y[1]) / (2 * step)).item(), rel=1e-6)


def test_a_whole_keep_draws_nothing_and_is_lsq_bitwise():
    x, generator = a_tensor(3, 1000), seeded()
    before = generator.get_state()
    every = gradients(
        lambda x, s: qdrop_fake_quantize(x, s, 1, 0, 3, 1.0, generator), x, torch.tensor(0.3), a_tensor(3, 1000, seed=1)
    )
    assert torch.equal(generator.get_state(), before)
    g = (3000 * 3) ** -0.5
    lsq = gradients(lambda x, s: lsq_fake_quantize(x, s, 1, 0, 3, g), x, torch.tensor(0.3), a_tensor(3, 1000, seed=1))
    assert all(torch.equal(one, other) for one, other in zip(every, lsq, strict=True))


def test_keep_of_zero_is_the_identity():
    x, upstream = a_tensor(5000), a_tensor(5000, seed=1)
    y, of_x, of_scale = gradients(
        lambda x, s: qdrop_fake_quantize(x, s, 1, 0, 3, 0.0, seeded()), x, torch.tensor(0.3), upstream
    )
    assert torch.equal(y, x)
    assert torch.equal(of_x, upstream)
    assert of_scale.item() == 0


def test_only_rounded_elements_reach_the_step_size_and_left_ones_pass_the_gradient():
    x, upstream, mask = (
        torch.tensor([0.3, 9.0, 9.0]),
        torch.tensor([1.0, 10.0, 100.0]),
        torch.tensor([True, False, True]),
    )
    y, of_x, of_scale = gradients(
        lambda x, s: qdrop_fake_quantize(x, s, 1, 0, 3, 0.5, grad_scale=1.0, mask=mask), x, torch.tensor(0.5), upstream
    )
    assert y.tolist() == [0.5, 9.0, 1.0]
    assert of_x.tolist() == [1, 10, 0]
    assert of_scale.item() == pytest.approx(1 * 0.4 + 100 * 2, rel=1e-6)


def test_a_drawn_mask_is_that_of_random_mask():
    x, scale = a_tensor(7, 13, 101), torch.tensor(0.3)
    drawn = qdrop_fake_quantize(x, scale, 1, 0, 3, 0.5, seeded(3))
    mask = random_mask(x.shape, 0.5, seeded(3))
    assert torch.equal(drawn, mix(fake_quantize(x, scale, 1, 0, 3), x, mask))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(), (0,), (1,), (7, 3), (4096,), (4097,), (3, 5, 1000)]),
    bits=st.integers(2, 8),
    zero=st.floats(0, 1),
    keep=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    scale=st.floats(1e-8, 10),
    seed=st.integers(0, 9),
)
def test_kernels_and_torch_agree(shape, bits, zero, keep, magnitude, scale, seed):
    """Bitwise in y and in the gradient of x; to 1e-6 of the sum's magnitude in that of the step size."""
    qmax = 2**bits - 1
    zero_point = round(zero * qmax)
    x, upstream, scale = a_tensor(*shape, seed=seed) * magnitude, a_tensor(*shape, seed=seed + 1), torch.tensor(scale)

    def both(x, scale):
        return qdrop_fake_quantize(x, scale, zero_point, 0, qmax, keep, seeded(seed))

    by_kernel = gradients(both, x, scale, upstream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_quant, "_kernels_take", lambda _: False)
        by_torch = gradients(both, x, scale, upstream)
    assert torch.equal(by_kernel[0], by_torch[0])
    assert torch.equal(by_kernel[1], by_torch[1])
    bound = 1e-6 * upstream.abs().sum().item() * qmax * (max(x.numel(), 1) * qmax) ** -0.5
    assert by_kernel[2].item() == pytest.approx(by_torch[2].item(), rel=1e-6, abs=bound)


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(2, 8), scale=st.floats(1e-3, 10), symmetric=st.booleans(), seed=st.integers(0, 99))
def test_rounding_twice_is_rounding_once_and_errs_by_half_a_step_at_most(bits, scale, symmetric, seed):
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    zero_point = 0 if symmetric else qmax // 3
    scale = torch.tensor(scale)
    low, high = (qmin - zero_point) * scale, (qmax - zero_point) * scale
    x = low + (high - low) * torch.rand(500, generator=seeded(seed))
    y = fake_quantize(x, scale, zero_point, qmin, qmax)
    assert torch.equal(fake_quantize(y, scale, zero_point, qmin, qmax), y)
    assert (y - x).abs().max() <= scale / 2 * (1 + 1e-4)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_each_index_of_the_axis_has_its_own_grid(axis):
    x = a_tensor(3, 4, 5)
    channels = x.shape[axis]
    scale, zero_point = torch.rand(channels) + 0.1, torch.arange(channels, dtype=torch.int32)
    y = fake_quantize(x, scale, zero_point, 0, 7, axis=axis)
    for at in range(channels):
        expected = fake_quantize(x.select(axis, at), scale[at], zero_point[at], 0, 7)
        assert torch.equal(y.select(axis, at), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precision_is_kept_and_half_is_rounded_in_single(dtype):
    x = a_tensor(1000).to(dtype)
    y = fake_quantize(x, torch.tensor(0.3), 100, 0, 255)
    assert y.dtype == dtype
    expected = fake_quantize(x.float(), torch.tensor(0.3), 100, 0, 255)
    torch.testing.assert_close(y.float(), expected, rtol=1e-2 if dtype != torch.float64 else 1e-6, atol=0)


def test_layout_of_the_input_changes_no_value():
    x, scale = a_tensor(2, 8, 5, 5), torch.tensor(0.3)
    rows = gradients(lambda x, s: lsq_fake_quantize(x, s, 1, 0, 3, 1.0), x, scale, x)
    last = gradients(
        lambda x, s: lsq_fake_quantize(x.to(memory_format=torch.channels_last), s, 1, 0, 3, 1.0), x, scale, x
    )
    assert torch.equal(rows[0], last[0])
    assert torch.equal(rows[1], last[1])
    assert rows[2].item() == pytest.approx(last[2].item(), rel=1e-6)


def test_an_expanded_upstream_gradient_is_read_rightly():
    x, scale = a_tensor(4, 6), torch.tensor(0.3)
    dense = gradients(lambda x, s: lsq_fake_quantize(x, s, 1, 0, 3, 1.0), x, scale, torch.full((4, 6), 2.0))
    wide = gradients(lambda x, s: lsq_fake_quantize(x, s, 1, 0, 3, 1.0), x, scale, torch.tensor(2.0).expand(4, 6))
    assert all(torch.equal(one, other) for one, other in zip(dense, wide, strict=True))


def test_zero_point_may_be_a_tensor():
    x, scale = a_tensor(10), torch.tensor(0.3)
    as_tensor = qdrop_fake_quantize(x, scale, torch.tensor(2, dtype=torch.int32), 0, 3, 1.0)
    assert torch.equal(as_tensor, qdrop_fake_quantize(x, scale, 2, 0, 3, 1.0))


def test_nan_stays_visible():
    x = torch.tensor([float("nan"), 1.0])
    assert fake_quantize(x, torch.tensor(0.3), 1, 0, 3).isnan().tolist() == [True, False]


def test_results_do_not_depend_on_threads():
    x, scale, upstream = a_tensor(3 * 2**20 + 5), torch.tensor(0.3), a_tensor(3 * 2**20 + 5, seed=1)

    def run():
        return gradients(lambda x, s: qdrop_fake_quantize(x, s, 1, 0, 3, 0.5, seeded()), x, scale, upstream)

    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(run())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.9])
def test_each_byte_of_a_word_is_true_with_the_probability_asked_for(keep):
    """Within 5 standard deviations of round(256 keep) / 256, at each of the eight places in a hashed word."""
    mask = random_mask((8, 2**16), keep, seeded())
    p = round(256 * keep) / 256
    shares = mask.reshape(-1, 8).float().mean(0)
    assert ((shares - p).abs() < 5 * (p * (1 - p) / 2**16) ** 0.5).all(), shares


def test_neighbours_and_successive_masks_are_uncorrelated():
    """Correlations of 2^19 pairs stay within 5 / sqrt(2^19)."""
    generator = seeded()
    first, second = (random_mask((2**19,), 0.5, generator).double() * 2 - 1 for _ in range(2))
    for one, other in (
        (first, second),
        (first[:-1], first[1:]),
        (first[:-8], first[8:]),
        (first[:-4096], first[4096:]),
    ):
        assert abs((one * other).mean().item()) < 5 * 2**-9.5


def test_a_generator_in_the_same_state_draws_the_same_mask_and_moves_on():
    generator = seeded(5)
    first, second = random_mask((1000,), 0.5, generator), random_mask((1000,), 0.5, generator)
    assert torch.equal(first, random_mask((1000,), 0.5, seeded(5)))
    assert not torch.equal(first, second)


def test_numba_is_loaded_only_when_a_tensor_is_rounded():
    code = "import sys, qdrop, qdrop.fake_quant, qdrop.adaround, qdrop.ranges; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
