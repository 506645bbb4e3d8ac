"""The paper's networks, all with its neuron: threshold 1, decay 0.5, triangular surrogate, hard reset.

Every network takes frames [T, B, C, H, W] and gives outputs [T, B, K]; class scores are their mean over time. A still
image is shown at every step as `image.expand(T, *image.shape)`, whose first layer is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from core_utils.spiking import networks
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.networks import (
    ConvNormLIF,
    Layout,
    OverTime,
    ResidualBlock,
    SpikingNetwork,
    global_pool,
    halved,
    residual_blocks,
    vgg_blocks,
)
from core_utils.spiking.surrogates import triangle

NEURON = Neuron(decay=0.5, threshold=1.0, compare=">", reset="hard", surrogate=triangle(1.0))
VGGSNN: Layout = (64, 128, "AP", 256, 256, "AP", 512, 512, "AP", 512, 512, "AP")
RESNET34 = {"widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "strides": (1, 2, 2, 2)}


def vggsnn(
    in_channels: int = 2, num_classes: int = 10, *, size: int = 48, checkpoint_segments: int = 0
) -> SpikingNetwork:
    """The network of DVS-CIFAR10: eight convolutions, four average pools, one linear layer.

    Args:
        in_channels: of the frames; 2 polarities for events.
        num_classes: K.
        size: height and width of the frames, pixels; at least 16.
        checkpoint_segments: trade time for memory in training, see `SpikingNetwork`.

    Raises:
        UserError: frames too small for four pools.
    """
    return _vggsnn("pool", in_channels, num_classes, size, checkpoint_segments)


def vggsnn_woap(
    in_channels: int = 2, num_classes: int = 10, *, size: int = 48, checkpoint_segments: int = 0
) -> SpikingNetwork:
    """`vggsnn` without average pools: every second convolution has a stride of 2 instead, so all activity is binary.

    Args:
        in_channels: of the frames.
        num_classes: K.
        size: height and width of the frames, pixels; a multiple of 16 gives as many parameters as `vggsnn`.
        checkpoint_segments: trade time for memory in training, see `SpikingNetwork`.

    Raises:
        UserError: frames too small.
    """
    return _vggsnn("stride", in_channels, num_classes, size, checkpoint_segments)


def tiny_vgg(
    in_channels: int = 2, num_classes: int = 10, *, widths: tuple[int, ...] = (16, 32, 64), size: int = 24
) -> SpikingNetwork:
    """The network of the miniature: 16-AP-32-AP-64-AP-linear, convolutions without bias.

    Args:
        in_channels: of the frames.
        num_classes: K.
        widths: channels of each block; every block halves the image.
        size: height and width of the frames, pixels.

    Raises:
        UserError: the image is too small for so many blocks.
    """
    return networks.tiny_vgg(NEURON, in_channels, num_classes, widths, size)


def resnet19(in_channels: int = 3, num_classes: int = 10, *, checkpoint_segments: int = 0) -> SpikingNetwork:
    """The network of CIFAR: a stem, stages of 3, 3 and 2 residual blocks, two linear layers with spikes between.

    Weights start from PyTorch's defaults, as in the released code, whose Kaiming initialisation never runs.

    Args:
        in_channels: of the frames.
        num_classes: K.
        checkpoint_segments: trade time for memory in training, see `SpikingNetwork`.
    """
    return networks.resnet19(NEURON, in_channels, num_classes, checkpoint_segments=checkpoint_segments)


def sew_resnet34(in_channels: int = 3, num_classes: int = 1000, *, checkpoint_segments: int = 0) -> SpikingNetwork:
    """The network of ImageNet: ResNet-34 whose blocks spike before the addition (see `SEWBlock`).

    Args:
        in_channels: of the frames.
        num_classes: K.
        checkpoint_segments: trade time for memory in training, see `SpikingNetwork`.

    Reference: Fang et al., "Deep Residual Learning in Spiking Neural Networks" (arXiv 2102.04159).
    """
    return _resnet34(SEWBlock, in_channels, num_classes, checkpoint_segments)


def spiking_resnet34(in_channels: int = 3, num_classes: int = 1000, *, checkpoint_segments: int = 0) -> SpikingNetwork:
    """The paper's second network of ImageNet: ResNet-34 whose blocks spike after the addition.

    Args:
        in_channels: of the frames.
        num_classes: K.
        checkpoint_segments: trade time for memory in training, see `SpikingNetwork`.
    """
    return _resnet34(partial(ResidualBlock, neuron=NEURON), in_channels, num_classes, checkpoint_segments)


class SEWBlock(nn.Module):
    """Two convolutions that spike, added to a shortcut that spikes: the spike-element-wise block with g = ADD.

    Args:
        in_channels: C.
        out_channels: C2.
        stride: of the first convolution and of the shortcut, pixels.

    Reference: Fang et al., arXiv 2102.04159, section 3.2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNormLIF(in_channels, out_channels, stride=stride, neuron=NEURON)
        self.second = ConvNormLIF(out_channels, out_channels, neuron=NEURON)
        same = in_channels == out_channels and stride == 1
        self.shortcut = (
            nn.Identity() if same else ConvNormLIF(in_channels, out_channels, 1, stride=stride, neuron=NEURON)
        )

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C2 H2 W2"]:
        """Whole numbers: how many paths spiked."""
        return self.second(self.first(x_seq)) + self.shortcut(x_seq)


def _vggsnn(
    downsample: Literal["pool", "stride"], in_channels: int, num_classes: int, size: int, checkpoint_segments: int
) -> SpikingNetwork:
    remaining = halved(size, VGGSNN.count("AP"), up=downsample == "stride")
    blocks = vgg_blocks(in_channels, VGGSNN, NEURON, downsample=downsample)
    readout = nn.Linear(512 * remaining**2, num_classes)
    return SpikingNetwork(nn.Sequential(*blocks), readout, checkpoint_segments=checkpoint_segments)


def _resnet34(
    block: Callable[[int, int, int], nn.Module], in_channels: int, num_classes: int, checkpoint_segments: int
) -> SpikingNetwork:
    """Convolutions start from N(0, 2 / fan out), as in the code of Fang et al."""
    stem = ConvNormLIF(in_channels, 64, 7, stride=2, neuron=NEURON), OverTime(nn.MaxPool2d(3, 2, 1))
    blocks = nn.Sequential(*stem, *residual_blocks(block, 64, **RESNET34), global_pool())
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return SpikingNetwork(blocks, nn.Linear(512, num_classes), checkpoint_segments=checkpoint_segments)
