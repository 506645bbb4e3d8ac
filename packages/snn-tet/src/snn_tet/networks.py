"""Spiking networks with the neuron of the paper: threshold 1, decay 0.5, triangular surrogate, hard reset."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.spiking.layout import over_time
from core_utils.spiking.neurons import lif
from core_utils.spiking.norm import TimeBatchNorm2d

DECAY = 0.5
THRESHOLD = 1.0


class SpikingBlock(nn.Module):
    """Convolution 3x3, batch normalisation, spikes, average pool 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = TimeBatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C2 H2 W2"]:
        """Spike rates of pooled neighbourhoods, multiples of 1/4."""
        spikes = lif(self.norm(over_time(self.conv, x_seq)), decay=DECAY, threshold=THRESHOLD)
        return over_time(lambda x: functional.avg_pool2d(x, 2), spikes)


class TinyVGG(nn.Module):
    """A stack of spiking blocks and a linear readout without spikes or leak.

    Args:
        in_channels: of the frames; 2 polarities for events.
        num_classes: K.
        widths: channels of each block; every block halves the image.
        size: height and width of the frames, pixels.

    Raises:
        UserError: the image is too small for so many blocks.
    """

    def __init__(self, in_channels: int, num_classes: int, widths: tuple[int, ...], size: int) -> None:
        super().__init__()
        remaining = size // 2 ** len(widths)
        if remaining < 1:
            raise UserError(
                f"{len(widths)} blocks halve {size} pixels to nothing", "take fewer widths or larger frames"
            )
        self.blocks = nn.Sequential(*map(SpikingBlock, (in_channels, *widths), widths))
        self.readout = nn.Linear(widths[-1] * remaining**2, num_classes)

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B K"]:
        """The readout's value at every step; class scores are its mean over the steps that were run."""
        return over_time(self.readout, self.blocks(x_seq).flatten(2))


def tiny_vgg(
    in_channels: int = 2, num_classes: int = 10, *, widths: tuple[int, ...] = (16, 32, 64), size: int = 24
) -> TinyVGG:
    """The network of the miniature: 16-AP-32-AP-64-AP-linear.

    Args:
        in_channels: of the frames.
        num_classes: K.
        widths: channels of each block.
        size: height and width of the frames, pixels.
    """
    return TinyVGG(in_channels, num_classes, widths, size)
