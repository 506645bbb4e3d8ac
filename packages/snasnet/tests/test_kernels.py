"""Kernels against closed forms, and against the plain definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snasnet.kernels import KernelAccumulator, hd_kernel, logdet_score, sahd_kernel

CODES = st.tuples(st.integers(2, 6), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
    lambda drawn: bernoulli(drawn[:2], drawn[3], drawn[2])
)


def bernoulli(shape, rate, seed=0):
    return (np.random.default_rng(seed).random(shape) < rate).astype(np.float32)


def by_definition(codes, alpha):
    samples, neurons = codes.shape
    kernel = np.empty((samples, samples))
    for i in range(samples):
        for j in range(samples):
            rates = codes[i].mean(dtype=np.float64), codes[j].mean(dtype=np.float64)
            expected = neurons * (rates[0] * (1 - rates[1]) + (1 - rates[0]) * rates[1])
            kernel[i, j] = neurons - alpha * (codes[i] != codes[j]).sum() / (expected + 1e-3)
    return kernel


@settings(deadline=None, max_examples=50)
@given(CODES)
def test_the_kernels_are_their_definitions(codes):
    np.testing.assert_allclose(sahd_kernel(codes), by_definition(codes, 0.5), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sahd_kernel(codes, "half-n"), by_definition(codes, 0.5 * codes.shape[1]), atol=1e-9)
    distances = (codes[:, None] != codes[None]).sum(-1)
    assert (hd_kernel(codes) == codes.shape[1] - distances).all()


def test_equal_rows_are_no_distance_apart_and_complementary_ones_two_alpha():
    row = np.array([0, 1] * 50, np.float32)
    np.testing.assert_allclose(sahd_kernel(np.array([row, row])), 100)
    apart = sahd_kernel(np.array([row, 1 - row]), eps=0)
    np.testing.assert_allclose(apart, 100 - np.array([[0, 1], [1, 0]]))  # HD = N, E = N / 2, alpha = 0.5
    assert hd_kernel(np.array([row, 1 - row])).tolist() == [[100, 0], [0, 100]]


@pytest.mark.parametrize(("first", "second"), [(0.02, 0.02), (0.02, 0.5), (0.1, 0.3), (0.5, 0.5)])
def test_independent_codes_are_alpha_apart_whatever_their_rates(first, second):
    neurons = 4000
    codes = np.concatenate([bernoulli((60, neurons), first, 1), bernoulli((60, neurons), second, 2)])
    apart = (neurons - sahd_kernel(codes))[:60, 60:]
    # HD of independent codes has variance N p (1 - p) at p = E / N; all 3600 pairs share 120 codes.
    p = first * (1 - second) + second * (1 - first)
    sigma = 0.5 * math.sqrt((1 - p) / (p * neurons)) / math.sqrt(60)
    assert apart.mean() == pytest.approx(0.5, abs=3 * sigma)


def test_the_plain_distance_of_independent_codes_is_a_rate_meter():
    rates, neurons = (0.02, 0.1, 0.5), 4000
    plain = [(neurons - hd_kernel(bernoulli((20, neurons), rate)))[~np.eye(20, dtype=bool)].mean() for rate in rates]
    corrected = [
        (neurons - sahd_kernel(bernoulli((20, neurons), rate)))[~np.eye(20, dtype=bool)].mean() for rate in rates
    ]
    assert max(plain) > 10 * min(plain)
    assert max(corrected) < 1.02 * min(corrected)


def test_the_score_of_independent_codes_is_the_closed_form():
    accumulator = KernelAccumulator()
    for layer in range(4):
        accumulator.update(torch.from_numpy(bernoulli((32, 20_000), 0.1, layer)))
    score, sign = accumulator.score()
    assert score == pytest.approx(31 * math.log(0.5) + math.log(32 * 20_000), abs=0.5)
    assert sign == 1


@pytest.mark.parametrize("order", [range(6), (5, 2, 0, 3, 1, 4), (4, 5, 3, 2, 1, 0)])
def test_two_halves_merge_to_the_bits_of_one_stream_in_any_order(order):
    parts = [torch.from_numpy(bernoulli((8, 300 + 37 * index), 0.05 + 0.1 * index, index)) for index in range(6)]
    for alpha, metric in (("code", "sahd"), ("half-n", "sahd"), (0.5, "hd")):
        whole, first, second = (KernelAccumulator(alpha, metric) for _ in range(3))
        for part in parts:
            whole.update(part)
        for index in order:
            (first if index % 2 else second).update(parts[index])
        merged = second.merge(first)
        assert (merged.kernel == whole.kernel).all()
        assert (merged.updates, merged.score()) == (6, whole.score())


def test_the_order_of_neurons_changes_nothing_and_that_of_samples_not_the_score():
    codes, rng = bernoulli((12, 500), 0.2), np.random.default_rng(0)
    kernel = sahd_kernel(codes)
    assert (kernel == kernel.T).all()
    assert (sahd_kernel(codes[:, rng.permutation(500)]) == kernel).all()
    shuffled = sahd_kernel(codes[rng.permutation(12)])
    assert logdet_score(shuffled) == pytest.approx(logdet_score(kernel), rel=1e-12)


def test_a_negative_determinant_keeps_its_sign():
    assert logdet_score(np.array([[0.0, 2.0], [2.0, 0.0]])) == (pytest.approx(math.log(4)), -1.0)


def test_a_sample_that_comes_twice_or_layers_without_spikes_are_singular():
    codes = bernoulli((6, 1000), 0.2)
    codes[3] = codes[0]
    assert logdet_score(sahd_kernel(codes)) == (-math.inf, 0.0)
    dead = KernelAccumulator()
    dead.update(torch.zeros(6, 1000))
    dead.update(torch.zeros(6, 500))
    assert dead.score() == (-math.inf, 0.0)
    assert dead.dead_fraction == 1.0
    assert logdet_score(np.array([[1.0, np.nan], [np.nan, 2.0]])) == (-math.inf, 0.0)


def test_a_dead_row_has_the_reference_s_entries():
    codes = np.zeros((3, 100), np.float32)
    codes[2, :10] = 1
    kernel = sahd_kernel(codes)
    assert kernel[0, 1] == 100  # E = 0
    assert kernel[0, 2] == pytest.approx(100 - 0.5 * 10 / 10.001)
    accumulator = KernelAccumulator()
    accumulator.update(torch.from_numpy(codes))
    assert accumulator.dead_fraction == pytest.approx(1 / 3)


def test_single_precision_would_not_do_for_wide_layers():
    neurons, samples = 131_072, 64
    shared = bernoulli((1, neurons), 0.15, 9)
    exact, single = KernelAccumulator(), np.zeros((samples, samples), np.float32)
    for layer in range(4):
        own = bernoulli((samples, neurons), 0.15, layer)
        codes = np.where(bernoulli((samples, neurons), 0.5, 100 + layer) > 0, shared, own)
        exact.update(torch.from_numpy(codes))
        distance = np.float32(neurons) - hd_kernel(codes).astype(np.float32)
        rate = codes.mean(1, keepdims=True)
        expected = neurons * (rate @ (1 - rate).T + (1 - rate) @ rate.T)
        single += np.float32(neurons) - np.float32(0.5) * distance / (expected + np.float32(1e-3))
    coarse = np.linalg.slogdet((single / np.float32(4)).astype(np.float64))[1]
    assert abs(coarse - exact.score()[0]) > 0.05


def test_a_metric_of_your_own_is_averaged():
    accumulator = KernelAccumulator(metric=lambda codes: codes @ codes.T)
    codes = [torch.from_numpy(bernoulli((3, 20), 0.5, seed)) for seed in (0, 1)]
    for each in codes:
        accumulator.update(each)
    np.testing.assert_allclose(accumulator.kernel, sum((each @ each.T).numpy() for each in codes) / 2)


@pytest.mark.parametrize(
    ("codes", "complaint"),
    [
        (np.zeros((1, 5), np.float32), "B >= 2"),
        (np.zeros((3, 0), np.float32), "N >= 1"),
        (np.full((3, 5), 0.5, np.float32), "codes are spikes, 0 or 1"),
        (np.full((3, 5), np.nan, np.float32), "codes are spikes, 0 or 1"),
    ],
)
def test_codes_that_are_none_are_refused(codes, complaint):
    with pytest.raises(ValueError, match=complaint):
        sahd_kernel(codes)


def test_parts_that_do_not_belong_together_are_refused():
    accumulator = KernelAccumulator()
    accumulator.update(torch.zeros(4, 10))
    with pytest.raises(ValueError, match="has 4 samples, the codes 5"):
        accumulator.update(torch.zeros(5, 10))
    other = KernelAccumulator()
    other.update(torch.zeros(3, 10))
    with pytest.raises(ValueError, match="have 4 and 3 samples"):
        accumulator.merge(other)
    with pytest.raises(ValueError, match="same alpha and metric"):
        accumulator.merge(KernelAccumulator("half-n"))
    with pytest.raises(ValueError, match="metric must be one of sahd, hd"):
        KernelAccumulator(metric="ntk")
    with pytest.raises(ValueError, match="alpha must be a number or one of code, half-n"):
        KernelAccumulator("half")
    with pytest.raises(ValueError, match="has seen no codes"):
        KernelAccumulator().score()
