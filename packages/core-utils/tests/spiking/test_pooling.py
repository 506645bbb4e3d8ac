import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core_utils.spiking.pooling import AvgPool2d


def both(x, **options):
    """Output and gradient of our pool and of PyTorch's."""
    results = []
    for pool in (AvgPool2d(**options), nn.AvgPool2d(**options)):
        leaf = x.detach().requires_grad_()
        output = pool(leaf)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        results.append((output, torch.autograd.grad((output * weights).sum(), leaf)[0]))
    return results


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_pooled_spikes_are_pytorchs_to_the_bit(batch, channels, height, width, seed):
    spikes = torch.rand(batch, channels, 2 * height, 2 * width, generator=torch.Generator().manual_seed(seed)) < 0.4
    (ours, our_gradient), (theirs, their_gradient) = both(spikes.float(), kernel_size=2)
    assert torch.equal(ours, theirs)
    assert torch.equal(our_gradient, their_gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_other_values_differ_by_rounding_alone(dtype):
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    for ours, theirs in zip(*both(x, kernel_size=2), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((1, 2, 7, 8), {"kernel_size": 2}), ((1, 2, 9, 9), {"kernel_size": 3}), ((1, 2, 8, 8), {"kernel_size": 2, "stride": 1}),
     ((1, 2, 8, 8), {"kernel_size": 2, "padding": 1}), ((2, 8, 8), {"kernel_size": 2})],
)  # fmt: skip
def test_every_other_pool_is_pytorchs(shape, options):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(*both(x, **options), strict=True):
        torch.testing.assert_close(ours, theirs)
