"""The search for ranges, against the reference code's numbers and against the same search without its short cuts."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qdrop import ranges, scoring
from qdrop.errors import CalibrationError, ConfigError
from qdrop.fake_quant import fake_quantize
from qdrop.ranges import TIE, search_range


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def limits(bits, symmetric):
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def score(x, scale, zero_point, bits, symmetric, p=2.4):
    """Mean error of a range, in double from the float32 differences."""
    y = fake_quantize(x, scale, zero_point, *limits(bits, symmetric))
    return (y - x).abs().double().pow(p).mean().item()


def ranges_in_order(x, bits, symmetric, p, steps, every_zero_point):
    """All ranges of spec 2.2 for one row and the full one, as a plain loop: (step size, zero point) in order of trial."""
    qmin, qmax = limits(bits, symmetric)
    low, high = x.min(), x.max()

    def covering(low, high):
        low, high = low.clamp(max=0), high.clamp(min=0)
        if symmetric:
            return (torch.maximum(-low, high) / ((qmax - qmin) / 2)).clamp(min=1e-8), torch.tensor(0)
        scale = ((high - low) / (qmax - qmin)).clamp(min=1e-8)
        return scale, (qmin - torch.round(low / scale)).clamp(qmin, qmax).int()

    for i in range(1, steps + 1):
        if symmetric or low >= 0 or high <= 0:
            threshold = torch.maximum(low.abs(), high) / steps * i
            yield covering(
                -threshold if symmetric or low < 0 else 0 * threshold,
                threshold if symmetric or low >= 0 else 0 * threshold,
            )
        elif every_zero_point:
            width = (high - low) / steps * i
            for zero_point in range(qmin, qmax + 1):
                delta = width / (qmax - qmin)
                yield covering(-zero_point * delta, width - zero_point * delta)
        else:
            yield covering(low / steps * i, high / steps * i)[0], covering(low, high)[1]
    yield covering(low, high)


def plain_search(x, bits, symmetric, p=2.4, steps=100, exact=None):
    """The first range whose score is the least, up to TIE, with no bound and no histogram."""
    tried = list(ranges_in_order(x, bits, symmetric, p, steps, bits < 8 if exact is None else exact))
    scores = [score(x, *each, bits, symmetric, p) for each in tried]
    return next(each for each, found in zip(tried, scores, strict=True) if found <= min(scores) * (1 + TIE))


# Spec 10: numbers of the official code on inputs that a formula gives.


@pytest.mark.parametrize(("bits", "scale", "zero_point"), [(2, 0.79, 1), (3, 0.3728571, 2), (4, 0.194, 5)])
def test_two_sided_data_agree_with_the_reference_code(bits, scale, zero_point):
    found = search_range(torch.linspace(-1, 2, 64), bits, symmetric=False)
    assert found[0].item() == pytest.approx(scale, abs=1e-7)
    assert found[1].item() == zero_point


@pytest.mark.parametrize(("bits", "scale"), [(2, 2.58), (3, 1.1957142), (4, 0.588)])
def test_one_sided_data_agree_with_the_reference_code(bits, scale):
    found = search_range(torch.linspace(0, 3, 50) ** 2, bits, symmetric=False)
    assert found[0].item() == pytest.approx(scale, abs=2e-7)
    assert found[1].item() == 0


@pytest.mark.parametrize(
    ("symmetric", "scales", "zero_points"),
    [(False, [0.2562132, 0.1336544, 0.0662714], [4, 3, 4]), (True, [0.2547999, 0.1428557, 0.0659244], [0, 0, 0])],
)
def test_weights_by_channel_agree_with_the_reference_code(symmetric, scales, zero_points):
    weight = torch.sin(torch.arange(24.0)).view(3, 8) * torch.tensor([[1.0], [0.5], [0.25]])
    found = search_range(weight, 3, symmetric, axis=0)
    torch.testing.assert_close(found[0], torch.tensor(scales), rtol=0, atol=1e-7)
    assert found[1].tolist() == zero_points


SHAPES = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "heavy": lambda n, g: torch.randn(n, generator=g) ** 3,
    "relu": lambda n, g: torch.randn(n, generator=g).clamp(min=0),
    "negative": lambda n, g: -torch.rand(n, generator=g) - 0.5,
    "skewed": lambda n, g: torch.rand(n, generator=g) ** 4 - 0.1,
    "few values": lambda n, g: torch.randint(-2, 3, (n,), generator=g).float(),
    "one spike": lambda n, g: torch.zeros(n).index_fill(0, torch.tensor([0]), -1.5),
    "constant": lambda n, _: torch.full((n,), 0.7),
    "zero": lambda n, _: torch.zeros(n),
}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    n=st.sampled_from([1, 2, 50, 3000]),
    bits=st.integers(2, 4),
    symmetric=st.booleans(),
    magnitude=st.sampled_from([1e-30, 1e-9, 1.0, 1e4, 1e30]),
    p=st.sampled_from([1.0, 2.0, 2.4]),
    seed=st.integers(0, 9),
)
@example(name="normal", n=3000, bits=4, symmetric=False, magnitude=1.0, p=2.4, seed=0)
def test_short_cuts_change_no_range(name, n, bits, symmetric, magnitude, p, seed):
    x = SHAPES[name](n, seeded(seed)) * magnitude
    scale, zero_point = search_range(x, bits, symmetric, p=p, steps=20)
    expected = plain_search(x, bits, symmetric, p, steps=20)
    assert (scale.item(), zero_point.item()) == (expected[0].item(), expected[1].item())


@pytest.mark.parametrize(("bits", "exact"), [(8, None), (4, False), (6, True)])
def test_both_kinds_of_search_are_the_plain_ones(bits, exact):
    x = torch.randn(300, generator=seeded()) + 0.3
    scale, zero_point = search_range(x, bits, False, steps=20, exact=exact)
    expected = plain_search(x, bits, False, steps=20, exact=exact)
    assert (scale.item(), zero_point.item()) == (expected[0].item(), expected[1].item())


def test_eight_bits_take_the_simple_search_unless_asked():
    x = torch.randn(500, generator=seeded()) + 0.3
    simple, every = search_range(x, 8, False), search_range(x, 8, False, exact=True)
    assert simple == search_range(x, 8, False, exact=False)
    assert score(x, *every, 8, False) <= score(x, *simple, 8, False)


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), symmetric=st.booleans(), name=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 9))
def test_a_found_range_is_never_worse_than_the_full_one(bits, symmetric, name, seed):
    x = SHAPES[name](400, seeded(seed))
    qmin, qmax = limits(bits, symmetric)
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    full = torch.maximum(-low, high) / ((qmax - qmin) / 2) if symmetric else (high - low) / (qmax - qmin)
    full = full.clamp(min=1e-8)
    zero_point = 0 if symmetric else int((qmin - torch.round(low / full)).clamp(qmin, qmax))
    found = score(x, *search_range(x, bits, symmetric), bits, symmetric)
    assert found <= score(x, full, zero_point, bits, symmetric) * (1 + TIE)


def test_bounds_enclose_the_score_of_every_range():
    x = torch.randn(1, 5000, generator=seeded())
    low, high = x.amin(1), x.amax(1)
    scales, zero_points = ranges._candidates(low, high, 0, 15, 100, False, True)
    everything = torch.ones(scales.shape, dtype=torch.bool)
    grid = scales, zero_points, 0, 15, 2.4
    exact = scoring.errors(x, everything, *grid)
    for bins in (64, 1024):
        least, most = scoring.bounds(scoring.histogram(x, low, high, bins), low, high, everything, *grid)
        assert (least <= exact).all()
        assert (exact <= most).all()
    assert (least > exact * 0.5).float().mean() > 0.9  # and are of use


def test_few_ranges_are_scored_on_the_data(monkeypatch):
    scored = []
    errors = scoring.errors
    monkeypatch.setattr(
        scoring, "errors", lambda rows, alive, *grid: scored.append(alive) or errors(rows, alive, *grid)
    )
    search_range(torch.randn(200_000, generator=seeded()), 4, False)
    assert scored[0].shape == (1, 1601)
    assert scored[0].sum() <= 40


def test_rows_are_searched_each_for_itself_and_follow_their_order():
    weight = torch.randn(5, 4, 3, generator=seeded()) * torch.tensor([1, 9, 0.1, 3, 0])[:, None, None]
    scale, zero_point = search_range(weight, 3, False, axis=0)
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = search_range(weight[order], 3, False, axis=0)
    assert torch.equal(permuted[0], scale[order])
    assert torch.equal(permuted[1], zero_point[order])
    turned = search_range(weight.transpose(0, 2), 3, False, axis=-1)
    assert torch.equal(turned[0], scale)
    for row in range(4):  # the last is zero throughout, hence one-sided on its own
        assert search_range(weight[row], 3, False)[0] == scale[row]


def test_whether_data_are_one_sided_is_decided_for_all_channels_together():
    weight = torch.stack([torch.rand(50, generator=seeded()) + 1, -torch.ones(50)])
    together = search_range(weight, 2, False, axis=0)
    assert together[1].tolist() == [0, 3]
    positive = search_range(weight[:1], 2, False, axis=0)
    assert positive[1].tolist() == [0]


def test_dead_channels_get_the_least_step_size():
    weight = torch.stack([torch.zeros(9), torch.linspace(-1, 1, 9)])
    scale, zero_point = search_range(weight, 4, False, axis=0)
    assert scale[0].item() == pytest.approx(1e-8)
    assert zero_point[0].item() == 0
    assert torch.equal(fake_quantize(weight, scale, zero_point, 0, 15, axis=0)[0], torch.zeros(9))


@pytest.mark.parametrize("value", [0.7, -0.7, 3e37])
def test_a_constant_is_kept(value):
    x = torch.full((10,), value)
    scale, zero_point = search_range(x, 3, False)
    torch.testing.assert_close(fake_quantize(x, scale, zero_point, 0, 7), x)


def test_parts_of_a_tensor_have_the_range_of_the_whole():
    x = torch.randn(10, 7, 30, generator=seeded())
    parts = [x[:3], x[3:4], x[4:4], x[4:]]
    assert search_range(parts, 4, False) == search_range(x, 4, False)
    rows = search_range([part.movedim(1, 0) for part in parts], 4, False, axis=0)
    assert torch.equal(rows[0], search_range(x, 4, False, axis=1)[0])


def test_ranks_that_hold_parts_agree_on_the_range_of_the_whole():
    """Two ranks in turn: each reduction needs what the other has, so the second replays with the first's tensors."""
    x = torch.randn(1000, generator=seeded())
    shards = [x[:300], x[300:]]

    sent = [[], []]

    def run(rank):
        step = iter(range(10))

        def reduce(combine):
            def together(tensor):
                at = next(step)
                if at == len(sent[rank]):
                    sent[rank].append(tensor.clone())
                if at >= len(sent[1 - rank]):
                    raise LookupError
                return combine(tensor, sent[1 - rank][at])

            return together

        return search_range(shards[rank], 4, False, reduce_max=reduce(torch.maximum), reduce_sum=reduce(torch.add))

    found = [None, None]
    while None in found:
        for rank in (0, 1):
            try:
                found[rank] = run(rank)
            except LookupError:
                continue
    assert found[0] == found[1] == search_range(x, 4, False)
    assert [len(each) for each in sent] == [3, 3]


@pytest.mark.parametrize("x", [torch.tensor([]), []])
def test_a_rank_without_values_joins_in(x):
    counted = []
    other = torch.tensor([[1.0], [2.0]])

    def reduce_sum(tensor):
        counted.append(tensor.shape)
        return tensor

    scale, _ = search_range(x, 2, False, reduce_max=lambda t: torch.maximum(t, other), reduce_sum=reduce_sum)
    assert scale > 0
    assert len(counted) == 2


def test_torch_operations_score_as_the_kernels_do(monkeypatch):
    rows = torch.randn(3, 500, generator=seeded())
    low, high = rows.amin(1), rows.amax(1)
    scales, zero_points = ranges._candidates(low, high, 0, 7, 10, False, True)
    alive = torch.rand(scales.shape, generator=seeded(1)) < 0.5
    grid = scales, zero_points, 0, 7, 2.4
    counts, sums = scoring.histogram(rows, low, high, 64), scoring.errors(rows, alive, *grid)
    monkeypatch.setattr(scoring, "_kernels_take", lambda _: False)
    assert torch.equal(scoring.histogram(rows, low, high, 64), counts)
    torch.testing.assert_close(scoring.errors(rows, alive, *grid), sums, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(CalibrationError, match="finite"):
        search_range(torch.tensor([1.0, bad, 2.0]), 4, False)


def test_a_width_beyond_float32_is_refused():
    with pytest.raises(CalibrationError, match=r"3\.4e38"):
        search_range(torch.tensor([-3e38, 3e38]), 4, False)


@pytest.mark.parametrize("empty", [torch.empty(0), [], [torch.empty(0, 3)]])
def test_no_values_are_refused(empty):
    with pytest.raises(CalibrationError, match="no values"):
        search_range(empty, 4, False)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ConfigError, match="2 to 8"):
        search_range(torch.ones(3), bits, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_range_is_found_in_single_precision(dtype):
    x = torch.linspace(-1, 2, 64).to(dtype)
    scale, zero_point = search_range(x, 3, False)
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    assert (scale, zero_point) == search_range(x.float(), 3, False)
