"""Each operation against closed forms, torchvision's semantics and its own inverse."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snn_nda import functional
from snn_nda.errors import FramesError


@pytest.fixture
def probe():
    return (31 * torch.arange(4 * 2 * 12 * 10) % 7).reshape(4, 2, 12, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.float16])
@pytest.mark.parametrize(
    ("move", "total"),
    [
        (lambda x: x, 2877),
        (lambda x: functional.roll(x, 2, -3), 2877),
        (lambda x: functional.rotate(x, 30), 2408),
        (lambda x: functional.rotate(x, -15), 2646),
        (lambda x: functional.shear_x(x, 15), 2681),
        (lambda x: functional.shear_x(x, -30), 2401),
    ],
)
def test_sums_on_the_probe_are_those_of_the_spec(probe, dtype, move, total):
    # shared/specs/snn-nda.md, section 10: torchvision, nearest, zero fill.
    moved = move(probe.to(dtype))
    assert moved.dtype == dtype
    assert moved.double().sum() == total


def test_rotation_by_ninety_degrees_is_rot90():
    x = torch.randint(9, (2, 3, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    for quarter in range(-3, 4):
        assert torch.equal(functional.rotate(x, 90 * quarter), torch.rot90(x, quarter, (-2, -1)))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_nothing_moves_by_nothing(probe, interpolation):
    x = probe.float()
    assert torch.equal(functional.rotate(x, 0, interpolation), x)
    assert torch.equal(functional.shear_x(x, 0, interpolation), x)
    assert torch.equal(functional.roll(x, 0, 0), x)
    assert torch.equal(functional.roll(x, 0, 0, wrap=False), x)
    assert torch.equal(functional.cutout(x, 3, 3, 0), x)


def test_frames_without_samples_and_time_are_refused():
    with pytest.raises(FramesError, match=r"\[T, C, H, W\] or \[B, T, C, H, W\], got shape \[3, 4, 4\]"):
        functional.hflip(torch.zeros(3, 4, 4))


frames = st.builds(
    lambda shape, seed: torch.randint(4, shape, generator=torch.Generator().manual_seed(seed)),
    st.tuples(st.integers(1, 4), st.just(2), st.integers(1, 13), st.integers(1, 13)),
    st.integers(0, 99),
)
moves = st.sampled_from(
    [
        functional.hflip,
        lambda x: functional.roll(x, 3, -2),
        lambda x: functional.roll(x, -1, 4, wrap=False),
        lambda x: functional.rotate(x, 33),
        lambda x: functional.shear_x(x, -20),
        lambda x: functional.cutout(x, 2, 3, 3),
    ]
)


@given(frames)
def test_mirroring_twice_changes_nothing(x):
    assert torch.equal(functional.hflip(functional.hflip(x)), x)


@given(frames, st.integers(-20, 20), st.integers(-20, 20))
def test_rolling_back_changes_nothing_and_keeps_the_counts(x, dy, dx):
    rolled = functional.roll(x, dy, dx)
    assert torch.equal(functional.roll(rolled, -dy, -dx), x)
    assert rolled.sum() == x.sum()


@given(frames, st.integers(-20, 20), st.integers(-20, 20))
def test_rolling_without_wrapping_is_a_shift_of_a_padded_frame(x, dy, dx):
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (20, 20, 20, 20)).roll((dy, dx), (-2, -1))
    assert torch.equal(functional.roll(x, dy, dx, wrap=False), padded[..., 20 : 20 + height, 20 : 20 + width])


@given(frames, moves)
def test_time_steps_move_alike(x, move):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert torch.equal(move(x)[order], move(x[order]))
    still = x[:1].expand(3, -1, -1, -1)
    assert torch.equal(move(still), move(x[:1]).expand(3, -1, -1, -1))


@given(frames, moves)
def test_polarities_move_alike(x, move):
    assert torch.equal(move(x).flip(1), move(x.flip(1)))


@given(frames, moves)
def test_nearest_takes_values_that_were_there_and_keeps_emptiness(x, move):
    assert set(move(x).unique().tolist()) <= {0, *x.unique().tolist()}
    assert not move(torch.zeros_like(x)).any()


@given(frames, moves)
def test_batches_move_as_their_samples(x, move):
    batch = torch.stack([x, x.flip(0)])
    assert torch.equal(move(batch), torch.stack([move(sample) for sample in batch]))


@given(frames, st.integers(-3, 15), st.integers(-3, 15), st.integers(0, 9))
def test_cutout_empties_the_clipped_square_and_nothing_else(x, y, column, length):
    x = x + 1
    rows, columns = (torch.arange(size) for size in x.shape[-2:])
    first_row, first_column = y - length // 2, column - length // 2
    hole = ((rows >= first_row) & (rows < first_row + length))[:, None] & (
        (columns >= first_column) & (columns < first_column + length)
    )
    assert torch.equal(functional.cutout(x, y, column, length), x.masked_fill(hole, 0))


@pytest.mark.parametrize(("size", "length"), [(48, 16), (48, 24), (12, 5), (10, 10)])
def test_the_mean_area_of_cutout_is_that_of_the_formula(size, length):
    x = torch.ones(1, 1, size, size, dtype=torch.uint8)
    total = sum(
        size**2 - int(functional.cutout(x, y, column, length).sum()) for y in range(size) for column in range(size)
    )
    # What the border clips off a side, summed over its centres: 0 + ... + length//2 on one side and
    # 0 + ... + (length - 1)//2 on the other.
    low, high = length // 2, length - length // 2 - 1
    mean_side = length - (low * (low + 1) + high * (high + 1)) / (2 * size)
    assert total / size**2 == pytest.approx(mean_side**2)


@pytest.mark.parametrize(("size", "tolerance"), [((48, 48), 0.0), ((12, 10), 0.0), ((33, 47), 1e-3)])
@pytest.mark.parametrize("degrees", [-71.5, -30.0, 7.25, 15.0, 44.0])
def test_rotation_and_shear_are_torchvisions(size, tolerance, degrees):
    # Frames of odd size have pixels exactly between two others at some angles, where only rounding decides.
    transforms = pytest.importorskip("torchvision.transforms.functional")
    x = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(0))
    for ours, theirs in (
        (functional.rotate(x, degrees), transforms.rotate(x, degrees)),
        (functional.shear_x(x, degrees), transforms.affine(x, 0, [0, 0], 1, [degrees, 0])),
    ):
        assert (ours != theirs).double().mean() <= tolerance
    bilinear = transforms.InterpolationMode.BILINEAR
    torch.testing.assert_close(
        functional.rotate(x, degrees, "bilinear"), transforms.rotate(x, degrees, bilinear), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        functional.shear_x(x, degrees, "bilinear"),
        transforms.affine(x, 0, [0, 0], 1, [degrees, 0], bilinear),
        rtol=0,
        atol=1e-4,
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(6, 2, 2, 12, 10, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


def test_cutmix_weighs_labels_by_the_pixels_of_each(batch):
    x, y = batch
    sides = set()
    for seed in range(30):
        before = x.clone()
        mixed, soft = functional.cutmix(x, y, 1.0, torch.Generator().manual_seed(seed), num_classes=3)
        assert torch.equal(x, before)
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
        same = (mixed == x).all(1).all(1)  # pixels that kept their sample, in both polarities and at all times
        for sample in range(6):
            share = same[sample].double().mean().item()
            if share < 1:  # mixed with another sample
                others = [other for other in range(6) if (mixed[sample] == x[other]).all(0).all(0)[~same[sample]].all()]
                expected = share * torch.eye(3)[y[sample]] + (1 - share) * torch.eye(3)[y[others[0]]]
                torch.testing.assert_close(soft[sample], expected)
                sides.add(round(share * 120))
    assert len(sides) > 10


def test_cutmix_shares_are_those_of_beta(batch):
    x, y = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 1, 1, 64, 64), torch.eye(2)
    shares = []
    for seed in range(400):
        _, soft = functional.cutmix(x, y, 1.0, torch.Generator().manual_seed(seed))
        if soft[0, 0] < 1:
            shares.append(soft[0, 0].item())
    # A million lots in NumPy of the definition (lambda uniform, half a side int(64 sqrt(1 - lambda)) // 2, centres
    # uniform, clipped, boxes of no pixel left out): the box has a mean of 0.3103 of the pixels, deviation 0.186.
    assert 1 - np.mean(shares) == pytest.approx(0.3103, abs=4 * 0.186 / len(shares) ** 0.5)


def test_a_batch_of_one_is_not_mixed(batch):
    x, y = batch
    mixed, soft = functional.cutmix(x[:1], y[:1], num_classes=3)
    assert torch.equal(mixed, x[:1])
    assert soft.tolist() == [[1, 0, 0]]


def test_mixup_blends_frames_as_labels(batch):
    x, y = batch
    mixed, soft = functional.mixup(x, y, 1.0, torch.Generator().manual_seed(0), num_classes=6)
    one = torch.eye(6)
    _, shares = functional.mixup(x, torch.arange(6), 1.0, torch.Generator().manual_seed(0), num_classes=6)
    torch.testing.assert_close(mixed, torch.einsum("bk,k...->b...", shares, x))
    torch.testing.assert_close(soft, shares @ one[y])
    torch.testing.assert_close(soft.sum(1), torch.ones(6))


def test_negative_and_whole_counts_are_mixed_as_they_are():
    x = -torch.arange(6).view(6, 1, 1, 1, 1).expand(6, 2, 2, 8, 8)
    mixed, _ = functional.cutmix(
        x, torch.zeros(6, dtype=torch.int64), generator=torch.Generator().manual_seed(1), num_classes=1
    )
    assert mixed.dtype == torch.int64
    assert mixed.unique().tolist() == x.unique().tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: functional.cutmix(x, y), "need num_classes"),
        (lambda x, y: functional.cutmix(x, y, num_classes=2), "between 0 and 1"),
        (lambda x, y: functional.cutmix(x, y[:3], num_classes=3), "do not belong to frames"),
        (lambda x, y: functional.cutmix(x[0], y, num_classes=3), "give .B, T, C, H, W"),
        (lambda x, y: functional.cutmix(x, y.double(), num_classes=3), "shares of classes must be .B, K"),
        (lambda x, y: functional.cutmix(x, y, 0.0, num_classes=3), "alpha must be positive"),
        (lambda x, y: functional.mixup(x.int(), y, num_classes=3), "mixup makes fractions"),
        (lambda x, y: functional.rotate(x.int(), 3, "bilinear"), "bilinear interpolation makes fractions"),
    ],
)
def test_what_cannot_be_mixed_is_named(batch, call, message):
    with pytest.raises(FramesError, match=message):
        call(*batch)
