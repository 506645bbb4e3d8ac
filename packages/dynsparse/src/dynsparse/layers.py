"""Sparse dynamic convolution, a drop-in for torch's.

K static kernels, each behind a learnable threshold, are mixed for every sample by a router: y_b = conv(x_b, W~_b) + b~_b
with W~_b = sum_k pi_bk M_k W_k, b~_b = sum_k pi_bk b_k and pi = router(x).

Reference: He et al., SD-Conv, WACV 2023, arXiv:2204.02227; spec sections 2.1 to 2.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from dynsparse.aggregation import CHOICES, FORMS, choose, convolve
from dynsparse.errors import ConfigError, ConversionError, InputError, SparsityError, check_choice, check_sparsity
from dynsparse.geometry import PADDING_MODES, Geometry, padding_beforehand, per_axis
from dynsparse.initialisation import he_normal, spread
from dynsparse.odconv import odconv, scaled_channels
from dynsparse.quantiles import largest, split
from dynsparse.routers import ODConvRouter, hidden_width, make_router
from dynsparse.thresholds import THRESHOLDS, Threshold

SIZES = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"
)  # fmt: skip
MASKS = ("threshold", "none")


class LayerDensity(NamedTuple):
    """Fractions of weights that are kept.

    Attributes:
        per_kernel: of each kernel, K numbers.
        mean: over all kernels.
        union: positions that at least one kernel keeps; what an inference has to walk over.
    """

    per_kernel: tuple[float, ...]
    mean: float
    union: float


class SDConvNd(nn.Module):
    """Sparse dynamic convolution over any number of spatial axes; use `SDConv1d`, `SDConv2d` or `SDConv3d`.

    Attributes:
        weight: static kernels W [K, C_o, C_i/G, *k].
        bias: [K, C_o], or None.
        router: gives pi [B, K]; None for one kernel.
        threshold: makes the masks while they are learned; None with mask="none" and after `freeze`.
        mask: frozen masks, a buffer [K, C_o, C_i/G, *k], without K when shared; None before `freeze`.
        form: how samples' kernels are applied, one of `aggregation.CHOICES`.
        geometry: of the convolution of what `pad` gives.
    """

    dimensions: int
    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        num_kernels: int = 4,
        mask: str = "threshold",
        granularity: str = "kernel",
        mask_sharing: str = "independent",
        threshold_param: str = "scaled",
        threshold_init: float | int | None = None,
        surrogate: str = "long_tail",
        router: str = "softmax",
        router_norm: str = "batch",
        reduction: int = 16,
        min_hidden: int = 4,
        form: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Takes what torch's convolution takes, and the settings of the method.

        Args:
            in_channels: C_i.
            out_channels: C_o.
            kernel_size: k, for all axes or each.
            stride: likewise.
            padding: likewise, or "valid" or "same".
            dilation: likewise.
            groups: G, a divisor of C_i and C_o.
            bias: whether each kernel has a bias for each filter.
            padding_mode: "zeros", "reflect", "replicate" or "circular".
            num_kernels: K; one kernel has no router, unless that is "odconv".
            mask: "threshold" learns masks, "none" keeps all weights (dense dynamic convolution).
            granularity: one threshold a "layer", a "kernel" or a "filter".
            mask_sharing: "independent" masks for the kernels, or one "shared".
            threshold_param: a key of `thresholds.THRESHOLDS`.
            threshold_init: start value of the thresholds; by default such that nothing is pruned.
            surrogate: derivative of the step, a key of `surrogates.SURROGATES`.
            router: "softmax", "sigmoid" (CondConv) or "odconv".
            router_norm: of odconv's hidden layer, "batch" or "group".
            reduction: r; the router's hidden width is max(min_hidden, C_i // r).
            min_hidden: least hidden width.
            form: see `aggregation.choose`.
            device: of the parameters.
            dtype: of the parameters.

        Raises:
            ConfigError: an argument is out of range; the message names it.
        """
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        axes = self.dimensions
        self.kernel_size = per_axis("kernel_size", kernel_size, axes, least=1)
        self.stride = per_axis("stride", stride, axes, least=1)
        self.dilation = per_axis("dilation", dilation, axes, least=1)
        self.padding = padding if isinstance(padding, str) else per_axis("padding", padding, axes, least=0)
        self.padding_mode = check_choice("padding_mode", padding_mode, PADDING_MODES)
        self.num_kernels, self.mask_sharing = num_kernels, mask_sharing
        self.form = check_choice("form", form, CHOICES)
        self._check_sizes()
        weight = torch.empty(num_kernels, out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(num_kernels, out_channels)) if bias else None
        self.threshold: Threshold | None = None
        self.reset_parameters()
        make_threshold = THRESHOLDS[check_choice("threshold_param", threshold_param, THRESHOLDS)]
        settings = {"granularity": granularity, "sharing": mask_sharing, "surrogate": surrogate}
        threshold = make_threshold(weight, init=threshold_init, **settings)
        self.threshold = threshold if check_choice("mask", mask, MASKS) == "threshold" else None
        self.router = make_router(
            router,
            in_channels,
            num_kernels,
            hidden_width(in_channels, reduction, min_hidden),
            out_channels=out_channels,
            kernel_size=self.kernel_size,
            groups=groups,
            norm=router_norm,
        )
        self.register_buffer("mask", None)
        walk = self.kernel_size, self.stride, self.dilation
        inside, self._sides = padding_beforehand(self.padding, padding_mode, *walk)
        self.geometry = Geometry(self.stride, inside, self.dilation, groups)
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_conv(
        cls, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, num_kernels: int = 4, noise: float | int = 0.1, **settings: Any
    ) -> SDConvNd:
        """A dynamic layer that starts from a static one.

        Args:
            conv: torch's convolution of as many axes; sizes, device, dtype and mode are its own.
            num_kernels: K.
            noise: by which the K copies differ, in units of the static weight's standard deviation.
            **settings: as of the class.

        Raises:
            ConversionError: another kind of layer.
            ConfigError: a setting is out of range.
        """
        if type(conv) is not (nn.Conv1d, nn.Conv2d, nn.Conv3d)[cls.dimensions - 1]:
            raise ConversionError(f"{cls.__name__} starts from a Conv{cls.dimensions}d; got {type(conv).__name__}")
        sizes: dict[str, Any] = {name: getattr(conv, name) for name in SIZES}
        place: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        layer = cls(**sizes, bias=conv.bias is not None, num_kernels=num_kernels, **place, **settings)
        with torch.no_grad():
            layer.weight.copy_(spread(conv.weight, num_kernels, noise))
            if layer.bias is not None and conv.bias is not None:
                layer.bias.copy_(conv.bias.expand_as(layer.bias))
            if layer.threshold is not None:
                layer.threshold.rescale(layer.weight)
        return layer.train(conv.training)

    def reset_parameters(self) -> None:
        """He normal kernels; biases 0."""
        he_normal(self.weight, self.out_channels, self.groups)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.threshold is not None:
            self.threshold.rescale(self.weight)

    def forward(self, x: Shaped[Tensor, "*input"]) -> Shaped[Tensor, "*output"]:
        """[B, C_i, *space] to [B, C_o, *out]; one sample may come without its batch axis.

        Raises:
            InputError: another number of axes or channels; the message names both.
            TypeError: an integer or complex input.
            RuntimeError: the input is on another device than the weight.
        """
        self._check_input(x)
        if x.dim() == self.dimensions + 1:
            return self.forward(x[None])[0]
        kernels = self.effective_kernels()
        if isinstance(self.router, ODConvRouter):
            factors = self.router.factors(x)
            x = self.pad(scaled_channels(x, factors))
            return odconv(x, kernels, self.bias, factors, self.geometry, self.form)
        padded = self.pad(x)
        if self.router is None:
            return convolve(padded, kernels[0], None if self.bias is None else self.bias[0], self.geometry)
        pi = self.router(x)
        form = choose(padded, kernels, self.geometry, self.form)
        return FORMS[form](padded, kernels, self.bias, pi, self.geometry)

    def attention(self, x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b k"]:
        """The mixing weights pi; ones for a layer without a router."""
        self._check_input(x)
        return x.new_ones(x.shape[0], 1) if self.router is None else self.router(x)

    def effective_kernels(self) -> Float[Tensor, "k c_o c_g *kernel"]:
        """M_k W_k, differentiable also in the thresholds."""
        if self.threshold is not None:
            return self.threshold.gate(self.weight)
        return self.weight if self.mask is None else self.weight * self.mask

    @torch.no_grad()
    def masks(self) -> Bool[Tensor, "k c_o c_g *kernel"]:
        """Where weights are kept; True everywhere with mask="none"."""
        if self.threshold is not None:
            return (self.threshold(self.weight) > 0).expand_as(self.weight)
        if self.mask is not None:
            return self.mask.expand_as(self.weight)
        return torch.ones_like(self.weight, dtype=torch.bool)

    def densities(self) -> LayerDensity:
        """Fractions of weights kept now."""
        masks = self.masks().flatten(1)
        size = masks.shape[1]
        per_kernel = tuple(kept / size for kept in masks.sum(1).tolist())
        return LayerDensity(per_kernel, sum(per_kernel) / len(per_kernel), masks.any(0).sum().item() / size)

    @property
    def frozen(self) -> bool:
        """Whether the masks are fixed, or there are none."""
        return self.threshold is None

    @torch.no_grad()
    def freeze(self, mask: Bool[Tensor, " ..."] | None = None) -> None:
        """Fixes the mask, sets weights outside it to exactly 0 and removes the threshold.

        Args:
            mask: [K, C_o, C_i/G, *k], without K when shared; what the threshold gives now by default.
        """
        if self.threshold is None:
            return
        if mask is None:
            mask = self.threshold(self.weight) > 0
        self.weight.copy_(self.threshold.fold(self.weight, mask))
        self.mask = mask.clone()
        self.threshold = None

    @torch.no_grad()
    def finalize(self, sparsity: float | int) -> None:
        """Moves the thresholds to the sparsity, exactly to one weight, and freezes the mask.

        The layer's thresholds move by a common amount, so that what they learned of each other stays.

        Raises:
            SparsityError: the sparsity is not in [0, 1), or the masks are frozen.
        """
        check_sparsity(sparsity)
        if self.threshold is None:
            raise SparsityError("the layer has no threshold: its masks are frozen, or mask='none'")
        self.keep(round((1 - sparsity) * self.threshold(self.weight).numel()))

    @torch.no_grad()
    def keep(self, count: int) -> None:
        """As `finalize`, for a number of mask bits: of K |W|, or of |W| when shared."""
        if self.threshold is not None:
            margins = self.threshold(self.weight)
            self.threshold.shift(split(margins, count))
            self.freeze(largest(margins, count))

    def pad(self, x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b c_i *padded"]:
        """Pads what the convolution itself does not: other modes than zeros, and uneven sides."""
        if not self._sides:
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, self._sides, mode=mode)

    def extra_repr(self) -> str:
        """Sizes, as torch's convolutions have them, and K."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        rest = {"padding": self.padding, "dilation": self.dilation, "groups": self.groups, "form": self.form}
        return f"{text}, num_kernels={self.num_kernels}, " + ", ".join(f"{k}={v}" for k, v in rest.items())

    def _check_input(self, x: Tensor) -> None:
        batched = self.dimensions + 2
        if x.dim() not in (batched - 1, batched):
            space = ", ".join("DHW"[-self.dimensions :])
            raise InputError(f"expected [B, {self.in_channels}, {space}] or no B; got shape {list(x.shape)}")
        channels = x.shape[-self.dimensions - 1]
        if channels != self.in_channels:
            raise InputError(f"the layer takes {self.in_channels} channels; got {channels}")
        if not x.is_floating_point():
            raise TypeError(
                f"the layer takes floating-point inputs like its weight's {self.weight.dtype}; got {x.dtype}"
            )
        if x.device != self.weight.device:
            raise RuntimeError(f"the input is on {x.device}, the weight on {self.weight.device}")

    def _check_sizes(self) -> None:
        for name in ("in_channels", "out_channels", "groups", "num_kernels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ConfigError(f"{name} must be divisible by groups={self.groups}; got {getattr(self, name)}")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """A frozen layer's state freezes this one first, so that training resumes on either side of the freeze."""
        mask = state_dict.get(f"{prefix}mask")
        if mask is not None and self.threshold is not None:
            expected = self.weight.shape[1:] if self.mask_sharing == "shared" else self.weight.shape
            if mask.shape == expected:
                self.mask = mask.to(self.weight.device, torch.bool).clone()
                self.threshold = None
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SDConv1d(SDConvNd):
    """Sparse dynamic convolution of [B, C_i, L]; see `SDConvNd`."""

    dimensions = 1


class SDConv2d(SDConvNd):
    """Sparse dynamic convolution of [B, C_i, H, W]; see `SDConvNd`."""

    dimensions = 2


class SDConv3d(SDConvNd):
    """Sparse dynamic convolution of [B, C_i, D, H, W]; see `SDConvNd`."""

    dimensions = 3
