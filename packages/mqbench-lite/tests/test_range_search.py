"""The range of least error, against a search that quantises the tensor for every candidate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqbench_lite.fake_quant import fake_quantize
from mqbench_lite.range_search import BINS, FEW, Histogram, candidates, search_histogram, search_rows
from mqbench_lite.specs import QuantSpec


def naive(x, spec, qmin, qmax, p=2.0):
    """Errors of all candidates for one row, by quantising it with each."""
    scales, zeros = candidates(x.min()[None], x.max()[None], spec, qmin, qmax)
    errors = [
        (fake_quantize(x, s, z, qmin, qmax) - x).double().abs().pow(p).mean()
        for s, z in zip(scales[0], zeros[0], strict=True)
    ]
    return scales[0], torch.stack(errors)


def draw(kind, n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator)
    return {
        "normal": x,
        "relu": x.relu(),
        "laplace": x.sign() * torch.empty(n).exponential_(generator=generator),
        "skewed": x.exp() - 0.5,
        "uniform": torch.rand(n, generator=generator) - 0.3,
    }[kind]


def counted(x, parts=1):
    histogram = Histogram()
    for part in x.chunk(parts):
        histogram.add(part, part.abs().max().item())
    return histogram


KINDS = ["normal", "relu", "laplace", "skewed", "uniform"]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS), bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 99),
    parts=st.integers(1, 4), p=st.sampled_from([2.0, 2.4]),
)  # fmt: skip
def test_a_histogram_chooses_a_range_within_one_step_of_the_search_or_as_good(kind, bits, symmetric, seed, parts, p):
    """One step is a hundredth of the range (spec 8). Where the error is that flat, any will do."""
    x, spec = draw(kind, 20_000, seed), QuantSpec(bits=bits, symmetric=symmetric)
    qmin, qmax = spec.grid()
    scales, errors = naive(x, spec, qmin, qmax, p)
    scale, _ = search_histogram(counted(x, parts), x.min()[None], x.max()[None], spec, qmin, qmax, p=p)
    ours, best = int((scales - scale).abs().argmin()), int(errors.argmin())
    assert scales[ours] == scale
    assert abs(ours - best) <= 1 or errors[ours] <= 1.002 * errors[best]


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 99))
def test_short_rows_get_the_range_of_the_naive_search(kind, bits, symmetric, seed):
    spec = QuantSpec(bits=bits, symmetric=symmetric)
    qmin, qmax = spec.grid()
    rows = torch.stack([draw(kind, 300, seed + row) for row in range(3)])
    scale, _ = search_rows(rows, spec, qmin, qmax)
    for row, found in zip(rows, scale, strict=True):
        scales, errors = naive(row, spec, qmin, qmax)
        ours = int((scales - found).abs().argmin())
        assert errors[ours] <= errors.min() * (1 + 1e-5)


def test_a_long_row_is_searched_by_its_histogram():
    x, spec = draw("normal", 3 * FEW, 0), QuantSpec(bits=4)
    by_row = search_rows(x[None], spec, -8, 7)
    by_histogram = search_histogram(counted(x), x.min()[None], x.max()[None], spec, -8, 7)
    assert all(torch.equal(one, other) for one, other in zip(by_row, by_histogram, strict=True))


@settings(max_examples=40, deadline=None)
@given(magnitudes=st.lists(st.floats(1e-20, 1e20), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_a_histogram_that_grows_counts_as_one_that_knew_the_range(magnitudes, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(FEW, generator=generator) * magnitude for magnitude in magnitudes]
    whole = Histogram()
    whole.add(torch.cat(parts), max(part.abs().max().item() for part in parts))
    grown = Histogram()
    for part in parts:
        grown.add(part, part.abs().max().item())
    assert grown.exponent == whole.exponent
    assert np.array_equal(grown.counts, whole.counts)


def test_histograms_of_other_widths_merge_exactly():
    x, y = draw("normal", 9000, 0), draw("normal", 9000, 1) * 37
    both = counted(torch.cat([x, y]))
    one, other = counted(x), counted(y)
    one.merge(other.counts, other.exponent)
    assert np.array_equal(one.counts, both.counts)
    narrow = counted(y)
    narrow.merge(counted(x).counts, counted(x).exponent)
    assert np.array_equal(narrow.counts, both.counts)


def test_data_fills_at_least_half_of_the_bins_of_its_side():
    histogram = counted(torch.rand(100_000) * 1.01)
    held = np.flatnonzero(histogram.counts)
    assert held.min() == BINS
    assert len(held) >= BINS / 2


def test_few_values_are_kept_as_they_are():
    x = draw("normal", 100, 0)
    points, weights = counted(x, parts=3).points()
    assert np.array_equal(points, x.numpy())
    assert weights.size == 0


def test_zeros_alone_take_the_least_step_size():
    x = torch.zeros(10_000)
    scale, zero_point = search_histogram(counted(x), x[:1], x[:1], QuantSpec(bits=8, symmetric=False), -128, 127)
    assert scale.item() == pytest.approx(2**-23)
    assert zero_point.item() == -128


@pytest.mark.parametrize(
    "spec", [QuantSpec(bits=4, pot_scale=True), QuantSpec(bits=4, symmetric=False, pot_scale=True)]
)
def test_step_sizes_are_powers_of_two_where_the_grid_wants_them(spec):
    scale, _ = search_rows(draw("normal", 3000, 0)[None], spec, -8, 7)
    assert torch.frexp(scale).mantissa.item() == 0.5


def test_of_equally_good_ranges_the_widest_is_taken():
    x = torch.tensor([[0.0, 0.0, 7.0]])  # 7 s, for several s, is 7 exactly
    scale, _ = search_rows(x, QuantSpec(bits=8, signed=False), 0, 255)
    assert scale.item() == pytest.approx(7 / 255)
