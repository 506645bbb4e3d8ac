"""Rounding to a grid and its gradients: closed forms, finite differences, and kernels against torch's operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqbench_lite import fake_quant
from mqbench_lite.fake_quant import codes_of, fake_quantize, learned_fake_quantize


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def code(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.int32)


def gradients(function, upstream, *leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, upstream)


@pytest.fixture(params=["kernels", "torch"])
def path(request, monkeypatch):
    """Either way of computing."""
    if request.param == "torch":
        monkeypatch.setattr(fake_quant, "kernels_take", lambda *_: False)
    return request.param


X = torch.tensor([-9, -0.25, 0.25, 0.75, 1.25, 9])


def test_ties_go_to_the_even_code_and_the_rest_is_clamped(path):
    """Spec 10: s = .5, z = 0, signed 4 bit."""
    expected = [-8, 0, 0, 2, 2, 7]
    assert codes_of(X, torch.tensor(0.5), code(0), -8, 7).tolist() == expected
    assert fake_quantize(X, torch.tensor(0.5), code(0), -8, 7).tolist() == [0.5 * q for q in expected]


def test_the_zero_point_is_added_after_rounding(path):
    """Spec 2.7: at a tie, round(x/s + z) would give 1 + 1 = 2 for z = 1 (1.5 -> 2)."""
    x = torch.tensor([0.5, 1.5])
    assert codes_of(x, torch.tensor(1.0), code(1), 0, 15).tolist() == [1, 3]
    assert (x + 1).round().tolist() == [2, 2]


def test_the_division_is_by_the_step_size_and_not_a_product_with_its_inverse():
    """Ties of float32 division, some of which 1/s moves: ONNX divides."""
    moved = 0
    for scale in torch.linspace(0.01, 1, 50):
        halves = (torch.arange(1, 200) + 0.5) * scale
        exact = (halves / scale).round().clamp(0, 255).int()
        assert torch.equal(codes_of(halves, scale, code(0), 0, 255), exact)
        assert torch.equal(fake_quantize(halves, scale, code(0), 0, 255), exact * scale)
        moved += int((exact != (halves * (1 / scale)).round().int()).sum())
    assert moved > 0


def test_the_gradient_passes_within_the_range_with_both_ends_included(path):
    x = torch.tensor([-4.0, -4.25, -4.26, 3.5, 3.74, 3.76, 0.1])  # ends are codes -8 and 7; -8.5 ties to -8
    _, of_x = gradients(lambda x: fake_quantize(x, torch.tensor(0.5), code(0), -8, 7), torch.arange(1.0, 8.0), x)
    assert of_x.tolist() == [1, 2, 0, 4, 5, 0, 7]


def test_a_gradient_that_is_not_finite_does_not_pass_where_the_mask_is_false(path):
    x, upstream = torch.tensor([0.1, 99.0]), torch.tensor([1.0, torch.inf])
    _, of_x = gradients(lambda x: fake_quantize(x, torch.tensor(0.5), code(0), -8, 7), upstream, x)
    assert of_x.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("x", "slope"), [(0.7, 1 - 1.4), (-0.1, 0.2), (-9.0, -8.0), (9.0, 7.0), (3.5, 0.0), (-0.35, -1 + 0.7)]
)
def test_lsq_slope_of_one_element_is_its_closed_form_times_the_gain(path, x, slope):
    """Spec 10: round(v) - v inside, Qmin below, Qmax above, each times g."""
    g = (1 * 7) ** -0.5
    _, of_scale = gradients(
        lambda s: learned_fake_quantize(torch.tensor([x]), s, torch.tensor(0.0), -8, 7, gain=g),
        torch.ones(1),
        torch.tensor(0.5),
    )
    assert of_scale.item() == pytest.approx(slope * g, abs=1e-6)


def test_an_lsq_plus_zero_point_learns_from_what_is_clipped(path):
    """The slope in z is -s outside the range and 0 within; below the range, that in s is n - z."""
    x, upstream = torch.tensor([-9.0, 0.3, 9.0]), torch.tensor([1.0, 10.0, 100.0])
    _, of_x, of_scale, of_zero = gradients(
        lambda x, s, z: learned_fake_quantize(x, s, z, 0, 15, gain=0.5),
        upstream,
        x,
        torch.tensor(0.5),
        torch.tensor(3.4),  # z = 3
    )
    assert of_x.tolist() == [0, 10, 0]
    assert of_zero.item() == pytest.approx(0.5 * -0.5 * 101)
    assert of_scale.item() == pytest.approx(0.5 * (1 * (0 - 3) + 10 * (1 - 0.6) + 100 * (15 - 3)), rel=1e-6)


def test_slopes_are_those_of_finite_differences_where_the_output_is_smooth(path):
    """Of clipped values the output is (n - z) s or (m - z) s."""
    x, step = torch.tensor([-30.0, -20.0, 40.0], dtype=torch.float64), 1e-6

    def total(s, z):
        codes = (x / s).round() + z
        return ((codes.clamp(0, 15) - z) * s).sum().item()

    _, of_scale, of_zero = gradients(
        lambda s, z: learned_fake_quantize(x, s, z, 0, 15, gain=1.0),
        torch.ones(3, dtype=torch.float64),
        torch.tensor(0.5, dtype=torch.float64),
        torch.tensor(4.0, dtype=torch.float64),
    )
    assert of_scale.item() == pytest.approx((total(0.5 + step, 4.0) - total(0.5 - step, 4.0)) / (2 * step), rel=1e-6)
    assert of_zero.item() == pytest.approx((total(0.5, 4 + step) - total(0.5, 4 - step)) / (2 * step), rel=1e-6)


shapes = st.sampled_from([(), (0,), (1,), (7, 3), (4096,), (4097,), (3, 5, 1000), (2, 3, 3, 3)])


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes,
    bits=st.integers(2, 8),
    zero=st.floats(0, 1),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    scale=st.floats(1e-7, 10),
    per_channel=st.booleans(),
    axis=st.integers(-2, 3),
    seed=st.integers(0, 9),
)
def test_kernels_and_torch_give_the_same_bits(shape, bits, zero, magnitude, scale, per_channel, axis, seed):
    """Of x_hat and of the gradient of x; sums to 1e-6 of their terms' magnitude."""
    qmax = 2**bits - 1
    x, upstream = normal(*shape, seed=seed) * magnitude, normal(*shape, seed=seed + 1)
    scales, zeros = torch.tensor(scale), torch.tensor(float(round(zero * qmax)))
    if per_channel and x.dim():
        axis = axis % x.dim()
        scales = scales * (1 + torch.arange(x.shape[axis]))
        zeros = zeros.expand_as(scales) - torch.arange(x.shape[axis]) % 3
    else:
        axis = 0

    def both():
        plain = gradients(lambda x: fake_quantize(x, scales, zeros.int(), 0, qmax, axis), upstream, x)
        learned = gradients(
            lambda x, s, z: learned_fake_quantize(x, s, z, 0, qmax, axis, gain=0.1), upstream, x, scales, zeros
        )
        return (*plain, *learned)

    by_kernel = both()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_quant, "kernels_take", lambda *_: False)
        by_torch = both()
    for ours, theirs in zip(by_kernel[:4], by_torch[:4], strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs, unit in zip(by_kernel[4:], by_torch[4:], (qmax, scale * (1 + x.numel())), strict=True):
        bound = 1e-6 * unit * upstream.abs().sum().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=bound)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), scale=st.floats(1e-3, 10), signed=st.booleans(), seed=st.integers(0, 99))
def test_rounding_twice_is_rounding_once_keeps_order_and_errs_by_half_a_step(bits, scale, signed, seed):
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    z = 0 if signed else qmax // 3
    scale = torch.tensor(scale)
    x = (normal(500, seed=seed) * scale * qmax).sort().values
    y = fake_quantize(x, scale, code(z), qmin, qmax)
    assert torch.equal(fake_quantize(y, scale, code(z), qmin, qmax), y)
    assert (y.diff() >= 0).all()
    inside = (x >= (qmin - z) * scale) & (x <= (qmax - z) * scale)
    assert (y - x)[inside].abs().max() <= scale / 2 * (1 + 1e-4)


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_a_narrow_grid_is_odd(bits, seed):
    qmax = 2 ** (bits - 1) - 1
    x, scale = normal(300, seed=seed), torch.tensor(0.1)
    assert torch.equal(fake_quantize(-x, scale, code(0), -qmax, qmax), -fake_quantize(x, scale, code(0), -qmax, qmax))


@settings(max_examples=30, deadline=None)
@given(axis=st.integers(0, 3), bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_equal_step_sizes_per_channel_are_one_per_tensor(axis, bits, seed):
    x = normal(3, 4, 5, 2, seed=seed)
    scales, zeros = torch.full((x.shape[axis],), 0.2), torch.full((x.shape[axis],), 1, dtype=torch.int32)
    per_channel = fake_quantize(x, scales, zeros, 0, 2**bits - 1, axis)
    assert torch.equal(per_channel, fake_quantize(x, torch.tensor(0.2), code(1), 0, 2**bits - 1))


@settings(max_examples=30, deadline=None)
@given(z=st.integers(-128, 127), scale=st.floats(1e-3, 1), seed=st.integers(0, 99))
def test_codes_of_a_signed_grid_stored_without_a_sign_mean_the_same(z, scale, seed):
    x, scale = normal(500, seed=seed), torch.tensor(scale)
    signed, shifted = codes_of(x, scale, code(z), -128, 127), codes_of(x, scale, code(z + 128), 0, 255)
    assert torch.equal(signed + 128, shifted)
    unsigned = fake_quantize(x, scale, code(z + 128), 0, 255)
    assert torch.equal(fake_quantize(x, scale, code(z), -128, 127), unsigned)


def test_layout_and_precision_of_the_input_are_served():
    x, scale = normal(2, 8, 5, 5), torch.tensor(0.3)
    rows = gradients(lambda x: fake_quantize(x, scale, code(1), 0, 7), x, x)
    last = gradients(lambda x: fake_quantize(x.to(memory_format=torch.channels_last), scale, code(1), 0, 7), x, x)
    assert torch.equal(rows[0], last[0])
    assert torch.equal(rows[1], last[1])
    half = fake_quantize(x.half(), scale, code(100), 0, 255)
    assert half.dtype == torch.float16
    assert torch.equal(half, fake_quantize(x.half().float(), scale, code(100), 0, 255).half())


def test_large_tensors_are_shared_among_threads_without_a_difference():
    x, scale = normal(3, 512, 1024), torch.rand(512) + 0.1
    zeros, before = torch.zeros(512), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(
                gradients(lambda x, s, z: learned_fake_quantize(x, s, z, -8, 7, 1, gain=0.1), x, x, scale, zeros)
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_gradients_beyond_two_ends_are_summed_and_those_between_pass(path):
    x, upstream = normal(3, 5000), normal(3, 5000, seed=1)
    of_x, below, above = fake_quant.clip_gradients(x, upstream, torch.tensor(-0.5), torch.tensor(0.7))
    assert torch.equal(of_x, torch.where((x >= -0.5) & (x <= 0.7), upstream, 0))
    assert below.item() == pytest.approx(upstream[x < -0.5].double().sum().item(), rel=1e-4)
    assert above.item() == pytest.approx(upstream[x > 0.7].double().sum().item(), rel=1e-4)


def test_nan_stays_nan(path):
    x = torch.tensor([torch.nan, 1.0])
    y, of_x = gradients(lambda x: fake_quantize(x, torch.tensor(0.5), code(0), -8, 7), torch.ones(2), x)
    assert y.isnan().tolist() == [True, False]
    assert of_x.tolist() == [0, 1]
