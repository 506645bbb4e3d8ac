"""Parts of convolutional spiking networks, for sequences [T, B, C, H, W].

Whatever has no memory runs once over all time steps; the neurons alone go through time. A network gives the value of
its last linear layer at every step, O[t]: `class_scores` makes one row of them.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from core_utils.errors import UserError
from core_utils.spiking.checkpointing import checkpointed
from core_utils.spiking.dynamics import Neuron, require_one_of
from core_utils.spiking.layout import over_time
from core_utils.spiking.neurons import lif
from core_utils.spiking.norm import TimeBatchNorm2d
from core_utils.spiking.pooling import AvgPool2d

Network = TypeVar("Network", bound=nn.Module)
Layout = Sequence[int | Literal["AP"]]
"""A stack of convolutions: the channels of each, and "AP" where the image is halved after it."""


class SpikingNetwork(nn.Module):
    """Blocks of layers, and a readout that neither spikes nor leaks.

    Args:
        blocks: from frames [T, B, C, H, W] to activity [T, B, C2, H2, W2].
        readout: from flattened activity [T, B, C2 * H2 * W2] to outputs [T, B, K].
        checkpoint_segments: cut the blocks into so many segments, whose activity is computed anew in the backward pass
            instead of being kept; 0 keeps all. Gradients and running averages are the same.

    Raises:
        UserError: more segments than blocks.
    """

    def __init__(self, blocks: nn.Sequential, readout: nn.Module, *, checkpoint_segments: int = 0) -> None:
        super().__init__()
        if not 0 <= checkpoint_segments <= len(blocks):
            raise UserError(f"checkpoint_segments must lie in 0..{len(blocks)}, got {checkpoint_segments}")
        self.blocks = blocks
        self.readout = readout
        self.checkpoint_segments = checkpoint_segments

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B K"]:
        """The readout's value at every step; class scores are its mean over the steps that were run."""
        if not self.checkpoint_segments or not torch.is_grad_enabled():
            return self.readout(self.blocks(x_seq).flatten(2))
        return self.readout(checkpointed(self.blocks, self.checkpoint_segments, x_seq).flatten(2))


def class_scores(
    outputs: Float[Tensor, "T B K"], readout: Literal["mean", "last", "rate"] = "mean", neuron: Neuron | None = None
) -> Float[Tensor, "B K"]:
    """One score a class from a network's outputs over time.

    Args:
        outputs: the readout's value at every step, shape [T, B, K].
        readout: "mean" over time, "last" step, or "rate" at which output neurons spike that take the values for input.
        neuron: of the output neurons, with "rate".

    Returns:
        Shape [B, K].

    Raises:
        UserError: an unknown readout, or "rate" without a neuron.
    """
    require_one_of("readout", readout, ("mean", "last", "rate"))
    if readout == "last":
        return outputs[-1]
    if readout == "mean":
        return outputs.mean(0)
    if neuron is None:
        raise UserError("readout 'rate' needs a neuron")
    return lif(outputs, **vars(neuron)).mean(0)


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons; keeps nothing between calls.

    Args:
        neuron: its dynamics.
        backend: as of `lif`.
    """

    def __init__(self, neuron: Neuron, *, backend: str = "auto") -> None:
        super().__init__()
        self.neuron = neuron
        self.backend = backend

    def forward(self, x_seq: Float[Tensor, "T B *shape"]) -> Float[Tensor, "T B *shape"]:
        """Spikes, 0 or 1."""
        return lif(x_seq, **vars(self.neuron), backend=self.backend)

    def extra_repr(self) -> str:
        """What `print(model)` says of the layer."""
        return repr(self.neuron)


class OverTime(nn.Module):
    """A layer without memory, such as a pool, for sequences.

    Args:
        layer: from [N, ...] to [N, ...].
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_seq: Float[Tensor, "T B *shape"]) -> Float[Tensor, "T B *out_shape"]:
        """What the layer gives for every step."""
        return over_time(self.layer, x_seq)


class ConvNorm(nn.Module):
    """Convolution that keeps the size of the image (but for its stride), and batch normalisation.

    Args:
        in_channels: C.
        out_channels: C2.
        kernel_size: odd, pixels.
        stride: pixels.
        bias: of the convolution.
        init_scale: initial weight of the normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        bias: bool = False,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias)
        self.norm: nn.Module = TimeBatchNorm2d(out_channels, init_scale=init_scale)

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C2 H2 W2"]:
        """Input currents."""
        return self.norm(over_time(self.conv, x_seq))


class ConvNormLIF(ConvNorm):
    """Convolution, batch normalisation, spikes; then average pooling, without spikes of its own.

    Args:
        in_channels: C.
        out_channels: C2.
        kernel_size: odd, pixels.
        neuron: its dynamics.
        stride: pixels.
        bias: of the convolution.
        init_scale: initial weight of the normalisation.
        pool: side of the pooled squares, pixels; 1 pools nothing.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        neuron: Neuron,
        stride: int = 1,
        bias: bool = False,
        init_scale: float = 1.0,
        pool: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, bias=bias, init_scale=init_scale)
        self.spike = LIF(neuron)
        self.pool = OverTime(AvgPool2d(pool)) if pool > 1 else nn.Identity()

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C2 H2 W2"]:
        """Spikes, 0 or 1; pooled they are multiples of 1 / pool^2."""
        return self.pool(self.spike(super().forward(x_seq)))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, and spikes after the addition.

    The shortcut is a convolution 1x1 with batch normalisation where shapes differ.

    Args:
        in_channels: C.
        out_channels: C2.
        stride: of the first convolution and of the shortcut, pixels.
        neuron: dynamics of both layers of neurons.
        init_scale: initial weight of every normalisation.

    Reference: the block of ResNet-19 (Zheng et al., arXiv 2011.05280), as in the released code of arXiv 2202.11946.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, neuron: Neuron, init_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.first = ConvNormLIF(in_channels, out_channels, stride=stride, neuron=neuron, init_scale=init_scale)
        self.second = ConvNorm(out_channels, out_channels, init_scale=init_scale)
        same = in_channels == out_channels and stride == 1
        self.shortcut = (
            nn.Identity() if same else ConvNorm(in_channels, out_channels, 1, stride=stride, init_scale=init_scale)
        )
        self.spike = LIF(neuron)

    def forward(self, x_seq: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C2 H2 W2"]:
        """Spikes, 0 or 1."""
        return self.spike(self.second(self.first(x_seq)) + self.shortcut(x_seq))


def vgg_blocks(
    in_channels: int,
    layout: Layout,
    neuron: Neuron,
    *,
    downsample: Literal["pool", "stride"] = "pool",
    bias: bool = True,
    init_scale: float = 1.0,
) -> list[nn.Module]:
    """A stack of convolutions 3x3, each with batch normalisation and spikes.

    Args:
        in_channels: of the frames.
        layout: channels, and "AP" after those where the image is halved.
        neuron: dynamics of every layer.
        downsample: halve by average pooling after the spikes, or by a stride of 2 of the convolution itself.
        bias: of the convolutions.
        init_scale: initial weight of the normalisations.

    Returns:
        A block for each convolution, its weights drawn from N(0, 2 / (9 * out_channels)) (Kaiming, fan out, ReLU).

    Raises:
        UserError: an unknown way to halve.
    """
    require_one_of("downsample", downsample, ("pool", "stride"))
    blocks: list[nn.Module] = []
    for place, channels in enumerate(layout):
        if channels == "AP":
            continue
        factor = 2 if "AP" in layout[place + 1 : place + 2] else 1
        block = ConvNormLIF(
            in_channels,
            channels,
            neuron=neuron,
            bias=bias,
            init_scale=init_scale,
            pool=factor if downsample == "pool" else 1,
            stride=factor if downsample == "stride" else 1,
        )
        nn.init.kaiming_normal_(block.conv.weight, mode="fan_out", nonlinearity="relu")
        blocks.append(block)
        in_channels = channels
    return blocks


def residual_blocks(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    widths: Sequence[int],
    depths: Sequence[int],
    strides: Sequence[int],
) -> list[nn.Module]:
    """The stages of a residual network.

    Args:
        block: makes a block from its input channels, output channels and stride.
        in_channels: of the first stage's input.
        widths: channels of each stage.
        depths: blocks of each stage.
        strides: of the first block of each stage; the others have 1.

    Returns:
        All blocks in order.
    """
    blocks = []
    for width, depth, stride in zip(widths, depths, strides, strict=True):
        for index in range(depth):
            blocks.append(block(in_channels, width, stride if index == 0 else 1))
            in_channels = width
    return blocks


def tiny_vgg(
    neuron: Neuron, in_channels: int, num_classes: int, widths: Sequence[int], size: int, *, init_scale: float = 1.0
) -> SpikingNetwork:
    """Convolutions without bias, each before an average pool that halves the image, and a linear layer.

    Args:
        neuron: dynamics of every layer.
        in_channels: of the frames.
        num_classes: K.
        widths: channels of each block.
        size: height and width of the frames, pixels.
        init_scale: initial weight of the normalisations.

    Raises:
        UserError: the image is too small for so many blocks.
    """
    layout: Layout = [entry for width in widths for entry in (width, "AP")]
    blocks = vgg_blocks(in_channels, layout, neuron, bias=False, init_scale=init_scale)
    readout = nn.Linear(widths[-1] * halved(size, len(widths)) ** 2, num_classes)
    return SpikingNetwork(nn.Sequential(*blocks), readout)


def resnet19(
    neuron: Neuron, in_channels: int, num_classes: int, *, init_scale: float = 1.0, checkpoint_segments: int = 0
) -> SpikingNetwork:
    """A stem, stages of 3, 3 and 2 residual blocks, two linear layers with spikes between; PyTorch's initial weights.

    Args:
        neuron: dynamics of every layer.
        in_channels: of the frames.
        num_classes: K.
        init_scale: initial weight of the normalisations.
        checkpoint_segments: trade time for memory in training, see `SpikingNetwork`.

    Reference: Zheng et al., arXiv 2011.05280.
    """
    block = partial(ResidualBlock, neuron=neuron, init_scale=init_scale)
    stages = residual_blocks(block, 64, widths=(128, 256, 512), depths=(3, 3, 2), strides=(1, 2, 2))
    stem = ConvNormLIF(in_channels, 64, neuron=neuron, init_scale=init_scale)
    readout = nn.Sequential(nn.Linear(512, 256), LIF(neuron), nn.Linear(256, num_classes))
    return SpikingNetwork(nn.Sequential(stem, *stages, global_pool()), readout, checkpoint_segments=checkpoint_segments)


def global_pool() -> OverTime:
    """The mean over each image, [T, B, C, 1, 1]."""
    return OverTime(nn.AdaptiveAvgPool2d(1))


def halved(size: int, times: int, *, up: bool = False) -> int:
    """What remains of a side, in pixels; odd sides are rounded down by a pool and up by a stride of 2.

    Raises:
        UserError: nothing remains.
    """
    remaining = -(-size // 2**times) if up else size // 2**times
    if remaining < 1:
        raise UserError(f"{times} blocks halve {size} pixels to nothing", "take fewer widths or larger frames")
    return remaining


def fuse_conv_bn(model: Network) -> Network:
    """The network as it runs after training: every batch normalisation is part of the convolution before it.

    Args:
        model: unchanged; each of its `ConvNorm` counts.

    Returns:
        A copy in evaluation mode, whose convolutions have a bias and whose `norm` does nothing.
    """
    fused = deepcopy(model).eval()
    for block in fused.modules():
        if isinstance(block, ConvNorm) and isinstance(block.norm, TimeBatchNorm2d):
            conv, norm = block.conv, block.norm.norm
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            block.norm = nn.Identity()
    return fused
