"""Average pooling of spikes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class AvgPool2d(nn.AvgPool2d):
    """`nn.AvgPool2d`; squares of 2 x 2 pixels on a CPU, the pool of these networks, take half of PyTorch's time.

    Of spikes, and of whole numbers, the results are the same to the bit; of other values but for rounding.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- the name of the class above
        """As `nn.AvgPool2d`."""
        squares = (self.kernel_size, self.stride, self.padding, self.divisor_override) == (2, 2, 0, None)
        even = input.shape[-2] % 2 == input.shape[-1] % 2 == 0
        if squares and even and input.is_cpu and input.dtype in (torch.float32, torch.float64):
            return _Halved.apply(input)
        return super().forward(input)


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        rows = x[..., 0::2, :] + x[..., 1::2, :]
        return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    @once_differentiable
    def backward(_: Any, grad: Tensor) -> Tensor:
        *outer, height, width = grad.shape
        quarter = (grad * 0.25)[..., :, None, :, None]
        return quarter.expand(*outer, height, 2, width, 2).reshape(*outer, 2 * height, 2 * width)
