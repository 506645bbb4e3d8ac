"""Batch normalisation of a sequence."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_utils.errors import UserError
from core_utils.spiking.layout import over_time

Statistics = Literal["fused", "per_step"]


class TimeBatchNorm2d(nn.Module):
    """Batch normalisation over [T, B, C, H, W].

    Holds a `BatchNorm2d` rather than being one, so that `SyncBatchNorm.convert_sync_batchnorm` converts it.

    Args:
        channels: C.
        statistics: "fused" takes mean and variance over T, B, H and W together ("tdBN"); "per_step" takes them over B,
            H and W of each step, and updates the running averages T times a batch, as T calls of the layer do.
        init_scale: initial weight of every channel; "tdBN" of snn-nda starts at the neuron's threshold.
        eps: added to the variance.
        momentum: weight of a batch in the running averages.

    Attributes:
        norm: the layer's `BatchNorm2d`, with its weight, bias and running averages, each of shape [C].

    Raises:
        UserError: unknown statistics.

    Reference: "fused" with scaled weight: released code of arXiv 2203.06145; "per_step": of arXiv 2201.10355.
    """

    def __init__(
        self,
        channels: int,
        *,
        statistics: Statistics = "fused",
        init_scale: float = 1.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if statistics not in get_args(Statistics):
            raise UserError(f"statistics must be one of {', '.join(get_args(Statistics))}, got {statistics!r}")
        self.statistics = statistics
        self.norm = nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
        nn.init.constant_(self.norm.weight, init_scale)

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """The normalised sequence; with running averages in evaluation mode, where both statistics are one."""
        if self.statistics == "per_step" and self.training:
            return torch.stack([self.norm(x) for x in x_seq])
        return over_time(self.norm, x_seq)

    def extra_repr(self) -> str:
        """What `print(model)` says of the layer beside its parts."""
        return f"statistics={self.statistics!r}"
