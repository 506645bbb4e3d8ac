"""Sparse dynamic convolution, a drop-in for torch's.

K static kernels, each behind a learnable threshold, are mixed for every sample by a router: y_b = conv(x_b, W~_b) + b~_b
with W~_b = sum_k pi_bk M_k W_k, b~_b = sum_k pi_bk b_k and pi = router(x).

Reference: He et al., SD-Conv, WACV 2023, arXiv:2204.02227; spec sections 2.1 to 2.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from dynsparse.aggregation import CHOICES, FORMS, Geometry, choose, convolve, mix_outputs, mixed, per_sample
from dynsparse.errors import ConfigError, InputError, SparsityError, check_choice, check_sparsity
from dynsparse.routers import Factors, ODConvRouter, hidden_width, make_router
from dynsparse.thresholds import THRESHOLDS, Threshold

MASKS = ("threshold", "none")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


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
        self.kernel_size = self._per_axis("kernel_size", kernel_size, least=1)
        self.stride = self._per_axis("stride", stride, least=1)
        self.dilation = self._per_axis("dilation", dilation, least=1)
        self.padding = padding if isinstance(padding, str) else self._per_axis("padding", padding, least=0)
        self.padding_mode = check_choice("padding_mode", padding_mode, PADDING_MODES)
        self.num_kernels, self.mask_sharing = num_kernels, mask_sharing
        self.form = check_choice("form", form, CHOICES)
        self._check_sizes()
        check_choice("mask", mask, MASKS)
        weight = torch.empty(num_kernels, out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(num_kernels, out_channels)) if bias else None
        self.threshold: Threshold | None = None
        self.reset_parameters()
        make_threshold = THRESHOLDS[check_choice("threshold_param", threshold_param, THRESHOLDS)]
        if mask == "threshold":
            settings = {"granularity": granularity, "sharing": mask_sharing, "surrogate": surrogate}
            self.threshold = make_threshold(weight, init=threshold_init, **settings)
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
        self._pads, self._geometry = self._walk()
        self.to(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Kernels from N(0, 2 / (prod(k) C_o / G)), He normal by fan-out for each kernel; biases 0."""
        fan_out = prod(self.kernel_size) * self.out_channels / self.groups
        nn.init.normal_(self.weight, std=(2 / fan_out) ** 0.5)
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
            return self._odconv(x, kernels, self.router.factors(x))
        padded = self.pad(x)
        if self.router is None:
            return convolve(padded, kernels[0], None if self.bias is None else self.bias[0], self._geometry)
        pi = self.router(x)
        form = choose(padded, kernels, self._geometry, self.form)
        return FORMS[form](padded, kernels, self.bias, pi, self._geometry)

    def attention(self, x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b k"]:
        """The mixing weights pi; ones for a layer without a router."""
        self._check_input(x)
        return x.new_ones(len(x), 1) if self.router is None else self.router(x)

    def effective_kernels(self) -> Float[Tensor, "k c_o c_g *kernel"]:
        """M_k W_k, differentiable also in the thresholds."""
        if self.threshold is not None:
            with torch.autocast(self.weight.device.type, enabled=False):
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
        margins = self.threshold(self.weight)
        keep = round((1 - sparsity) * margins.numel())
        self.threshold.shift(split(margins, keep))
        self.freeze(largest(margins, keep))

    def pad(self, x: Float[Tensor, "b c_i *space"]) -> Float[Tensor, "b c_i *padded"]:
        """Pads what the convolution itself does not: other modes than zeros, and uneven sides."""
        if self._pads is None:
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, self._pads, mode=mode)

    @property
    def geometry(self) -> Geometry:
        """Of the convolution of what `pad` gives."""
        return self._geometry

    def extra_repr(self) -> str:
        """Sizes, as torch's convolutions have them, and K."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        rest = {"padding": self.padding, "dilation": self.dilation, "groups": self.groups, "form": self.form}
        return f"{text}, num_kernels={self.num_kernels}, " + ", ".join(f"{k}={v}" for k, v in rest.items())

    def _odconv(self, x: Tensor, kernels: Tensor, factors: Factors) -> Tensor:
        """Input channels, positions and filters scaled for each sample."""
        x = self.pad(x * _over_space(factors.channel, x))
        pi = factors.kernel
        form = choose(x, kernels, self._geometry, self.form)
        if factors.spatial is None:
            y = FORMS[form](x, kernels, None, pi, self._geometry)
        elif form == "mix_outputs":
            y = mix_outputs(x, *_by_position(kernels, pi, factors.spatial), self._geometry)
        else:
            y = per_sample(x, mixed(kernels, pi) * factors.spatial[:, None, None], None, self._geometry)
        if factors.filter is not None:
            y = y * _over_space(factors.filter, y)
        return y if self.bias is None else y + _over_space(mixed(self.bias, pi), y)

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

    def _per_axis(self, name: str, value: int | tuple[int, ...], *, least: int) -> tuple[int, ...]:
        values = (value,) * self.dimensions if isinstance(value, int) else tuple(value)
        if len(values) != self.dimensions or min(values) < least:
            raise ConfigError(f"{name} takes {self.dimensions} numbers, each at least {least}; got {value}")
        return values

    def _walk(self) -> tuple[list[int] | None, Geometry]:
        """What to pad beforehand, last axis first as torch's `pad` has it, and the convolution that remains."""
        if isinstance(self.padding, str):
            check_choice("padding", self.padding, ("valid", "same"))
            if self.padding == "same" and max(self.stride) > 1:
                raise ConfigError("padding='same' takes a stride of 1")
            sizes = zip(self.dilation, self.kernel_size, strict=True)
            totals = [d * (k - 1) if self.padding == "same" else 0 for d, k in sizes]
        else:
            totals = [2 * side for side in self.padding]
        plain = self.padding_mode == "zeros" and not any(total % 2 for total in totals)
        inside = tuple(total // 2 if plain else 0 for total in totals)
        pads = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        outside = pads if not plain and any(totals) else None
        return outside, Geometry(self.stride, inside, self.dilation, self.groups)

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


def largest(margins: Float[Tensor, "*shape"], keep: int) -> Bool[Tensor, "*shape"]:
    """Where the `keep` largest margins are; of equal ones some."""
    mask = torch.zeros(margins.numel(), dtype=torch.bool, device=margins.device)
    mask[margins.flatten().topk(keep, sorted=False).indices] = True
    return mask.reshape(margins.shape)


def split(margins: Float[Tensor, "*shape"], keep: int) -> float:
    """A number that the `keep` largest margins exceed and the others do not, unless some are equal."""
    count, flat = margins.numel(), margins.flatten()
    if keep >= count:
        return flat.min().item() - 1.0
    above = flat.kthvalue(count - keep + 1).values.item() if keep else flat.max().item() + 1.0
    return (above + flat.kthvalue(count - keep).values.item()) / 2


def _over_space(values: Tensor, like: Tensor) -> Tensor:
    """[B, C] in a shape that meets [B, C, *space]."""
    return values.reshape(*values.shape, *[1] * (like.dim() - 2)).to(like.dtype)


def _by_position(kernels: Tensor, pi: Tensor, spatial: Tensor) -> tuple[Tensor, None, Tensor]:
    """Kernels of one position each, with their mixing weights: positions are scaled as kernels are."""
    size = kernels.shape[3:]
    ones = torch.eye(prod(size), dtype=kernels.dtype, device=kernels.device).reshape(1, prod(size), 1, 1, *size)
    weights = pi[:, :, None] * spatial.flatten(1)[:, None]
    return (kernels[:, None] * ones).flatten(0, 1), None, weights.flatten(1)
