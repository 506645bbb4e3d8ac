"""The paper's networks, all with its neuron: threshold 0.5, decay 0.25, rectangular surrogate, hard reset.

Every network takes frames [T, B, C, H, W] and gives outputs [T, B, K]; class scores are their mean over time. Every
batch normalisation starts at a weight of 0.5, the threshold ("tdBN").
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_utils.spiking import networks
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.networks import Layout, SpikingNetwork, global_pool, vgg_blocks
from core_utils.spiking.surrogates import rectangle

NEURON = Neuron(decay=0.25, threshold=0.5, compare=">=", reset="hard", surrogate=rectangle(1.0))
INIT_SCALE = 0.5
"""Initial weight of every batch normalisation."""
VGG11: Layout = (64, "AP", 128, "AP", 256, 256, "AP", 512, 512, 512, 512)
VGG13: Layout = (64, 64, "AP", 128, 128, "AP", 256, 256, "AP", 512, 512, 512, 512)
VGG16: Layout = (64, 64, "AP", 128, 128, "AP", 256, 256, 256, "AP", 512, 512, 512, 512, 512, 512)


def vgg11(in_channels: int = 2, num_classes: int = 10, *, checkpoint_segments: int = 0) -> SpikingNetwork:
    """The paper's first network: eight convolutions, three average pools, a global pool, one linear layer.

    Args:
        in_channels: of the frames; 2 polarities for events.
        num_classes: K.
        checkpoint_segments: trade time for memory in training, see `SpikingNetwork`.

    Reference: released code of arXiv 2203.06145.
    """
    return _vgg(VGG11, in_channels, num_classes, checkpoint_segments)


def vgg13(in_channels: int = 2, num_classes: int = 10, *, checkpoint_segments: int = 0) -> SpikingNetwork:
    """`vgg11` with ten convolutions; arguments as there."""
    return _vgg(VGG13, in_channels, num_classes, checkpoint_segments)


def vgg16(in_channels: int = 2, num_classes: int = 10, *, checkpoint_segments: int = 0) -> SpikingNetwork:
    """`vgg11` with thirteen convolutions; arguments as there."""
    return _vgg(VGG16, in_channels, num_classes, checkpoint_segments)


def resnet19(in_channels: int = 2, num_classes: int = 10, *, checkpoint_segments: int = 0) -> SpikingNetwork:
    """The paper's second network: a stem, stages of 3, 3 and 2 residual blocks, two linear layers with spikes between.

    It is in the paper but not in the released code; weights start as those of `vgg11`.

    Args:
        in_channels: of the frames; only the stem depends on it.
        num_classes: K.
        checkpoint_segments: trade time for memory in training, see `SpikingNetwork`.
    """
    net = networks.resnet19(
        NEURON, in_channels, num_classes, init_scale=INIT_SCALE, checkpoint_segments=checkpoint_segments
    )
    for module in net.blocks.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


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
    return networks.tiny_vgg(NEURON, in_channels, num_classes, widths, size, init_scale=INIT_SCALE)


def features(encoder: nn.Module, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "B D"]:
    """What an encoder has seen by the end: its activity, flattened, averaged over time.

    Args:
        encoder: from frames [T, B, C, H, W] to activity [T, B, ...], such as the `blocks` of a network here.
        x_seq: frames.
    """
    return encoder(x_seq).flatten(2).mean(0)


def feature_size(encoder: nn.Module, channels: int, size: int) -> int:
    """D of `features` for frames of so many channels, `size` pixels high and wide."""
    parameter = next(encoder.parameters(), torch.empty(0))
    training = encoder.training
    with torch.no_grad():
        encoder.eval()
        count = features(encoder, parameter.new_zeros(1, 1, channels, size, size)).shape[1]
    encoder.train(training)
    return count


def _vgg(layout: Layout, in_channels: int, num_classes: int, checkpoint_segments: int) -> SpikingNetwork:
    blocks = vgg_blocks(in_channels, layout, NEURON, bias=True, init_scale=INIT_SCALE)
    for block in blocks:
        nn.init.zeros_(block.conv.bias)  # type: ignore[union-attr,arg-type]
    return SpikingNetwork(
        nn.Sequential(*blocks, global_pool()), nn.Linear(512, num_classes), checkpoint_segments=checkpoint_segments
    )
