"""Each operation against closed forms, torchvision's semantics and its own inverse."""

import pytest
import torch

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
