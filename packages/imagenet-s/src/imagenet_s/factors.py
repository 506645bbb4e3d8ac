"""What deployment changes inside a classifier (SysNoise, arXiv 2307.00280): precision, pooling and upsampling.

Each factor is a context: inside, the model is the deployed one; when it ends, the model is bit for bit as it was. A factor
that a model has no place for raises `NotApplicable`, so that nobody reports it as an effect of 0.00.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imagenet_s.errors import ModelError

_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
CALIBRATION_IMAGES = 128
"""As many as the authors' post-training quantisation sees."""


class NotApplicable(ModelError):  # noqa: N818 -- not a mistake: the answer is that there is no such place
    """The model has no place for a factor."""


@contextlib.contextmanager
def deployed(model: Any, factor: str, calibration: Callable[[], Iterable[Tensor]]) -> Iterator[nn.Module]:
    """A copy of the model as a factor of `grids.FACTORS` deploys it.

    Args:
        model: a torch module; what else can be called has no inside that could be changed.
        factor: "float16", "bfloat16", "int8" or "ceil-mode".
        calibration: gives float batches on the model's device, for int8.

    Raises:
        NotApplicable: the model has no place for the factor.
    """
    if not isinstance(model, nn.Module):
        raise NotApplicable(f"{factor} is not applicable: {type(model).__name__} is no torch module")
    copied = copy.deepcopy(model).eval()
    with contextlib.ExitStack() as stack:
        if factor == "int8":
            yield stack.enter_context(int8(copied, calibration()))
        elif factor == "ceil-mode":
            yield stack.enter_context(ceil_mode(copied))
        else:
            yield stack.enter_context(half(copied, "float16" if factor == "float16" else "bfloat16"))


@contextlib.contextmanager
def half(model: nn.Module, dtype: Literal["float16", "bfloat16"] = "float16") -> Iterator[nn.Module]:
    """The model with weights and activations in half precision.

    Yields:
        A module that takes and gives float32 and computes in `dtype`.
    """
    number: torch.dtype = getattr(torch, dtype)
    kept = _state(model)
    try:
        yield _Cast(model.to(number), number)
    finally:
        for holder, name, value in kept:
            holder[name].data = value


@contextlib.contextmanager
def ceil_mode(model: nn.Module, *, to: bool = True) -> Iterator[nn.Module]:
    """The model with every pooling layer rounding its output size up, or with `to=False` down.

    A 3x3 pool of stride 2 and padding 1 makes 57 of 112 instead of 56, and all later stages follow.

    Raises:
        NotApplicable: there is no pooling layer that rounds the other way.
    """
    pools: list[Any] = [each for each in model.modules() if isinstance(each, _POOLS) and each.ceil_mode is not to]
    if not pools:
        raise NotApplicable(f"ceil mode is not applicable: {type(model).__name__} has no pooling layer to switch")
    try:
        for pool in pools:
            pool.ceil_mode = to
        yield model
    finally:
        for pool in pools:
            pool.ceil_mode = not to


@contextlib.contextmanager
def upsampling(
    model: nn.Module, mode: Literal["nearest", "bilinear"], *, align_corners: bool = False
) -> Iterator[nn.Module]:
    """The model with `mode` in every two-dimensional nn.Upsample and F.interpolate that it runs.

    Args:
        model: a torch module that calls `torch.nn.functional.interpolate`, as nn.Upsample does.
        mode: instead of the other one; calls with other modes stay.
        align_corners: of bilinear.

    Yields:
        A module that raises NotApplicable when a forward pass meets nothing to swap.
    """
    own: Callable[..., Tensor] = nn.functional.interpolate
    settings: dict[str, Any] = {"mode": mode} | ({"align_corners": align_corners} if mode == "bilinear" else {})
    swapped = 0

    def interpolate(input: Tensor, *places: Any, **options: Any) -> Tensor:  # noqa: A002 -- torch's own name
        nonlocal swapped
        names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
        given = dict(zip(names, places, strict=False)) | options
        before = given.get("mode", "nearest"), bool(given.get("align_corners"))
        if before[0] in ("nearest", "bilinear") and before != (mode, align_corners if mode == "bilinear" else False):
            swapped += 1
            given = {key: value for key, value in given.items() if key not in ("mode", "align_corners")} | settings
        return own(input, **given)

    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self.train(model.training)

        def forward(self, batch: Tensor) -> Any:
            nonlocal swapped
            swapped = 0
            nn.functional.interpolate = interpolate
            try:
                returned = self.inner(batch)
            finally:
                nn.functional.interpolate = own
            if not swapped:
                raise NotApplicable(f"upsampling is not applicable: {type(model).__name__} upsamples nothing otherwise")
            return returned

    yield Swapped()


@contextlib.contextmanager
def int8(model: nn.Module, calibration: Iterable[Tensor]) -> Iterator[nn.Module]:
    """The model with fake-quantised INT8 weights by channel and activations by tensor, by their smallest and largest value.

    Weights are symmetric in -127..127; inputs of each convolution and linear layer are affine in 256 steps that hold zero.

    Args:
        model: a torch module in evaluation mode.
        calibration: float batches; the first 128 images count.

    Raises:
        NotApplicable: there is no convolution or linear layer.
        ModelError: there are no calibration images.
    """
    layers: list[Any] = [each for each in model.modules() if isinstance(each, _WEIGHTED)]
    if not layers:
        raise NotApplicable(f"INT8 is not applicable: {type(model).__name__} has no convolution or linear layer")
    ranges = _ranges(model, layers, calibration)
    kept = [layer.weight.data for layer in layers]
    hooks = []
    try:
        for layer in layers:
            layer.weight.data = quantised_weight(layer.weight.data)
            if layer in ranges:  # a layer that calibration never reached keeps its float inputs
                low, high = ranges[layer]
                hooks.append(layer.register_forward_pre_hook(_quantiser(low, high)))
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.data = weight


def quantised_weight(weight: Tensor) -> Tensor:
    """The nearest values on a symmetric grid of 255 steps for each output channel."""
    largest = weight.abs().flatten(1).amax(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
    scale = (largest / 127).view(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round().clamp(-127, 127) * scale


def quantised_activation(values: Tensor, low: float, high: float) -> Tensor:
    """The nearest values on a grid of 256 steps from `low` to `high`, moved so that zero is among them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, torch.finfo(torch.float32).tiny)
    zero = round(-low / scale)
    return ((values / scale).round().add(zero).clamp(0, 255) - zero) * scale


class _Cast(nn.Module):
    """Runs a module in another type, float32 outside."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.dtype = dtype
        self.train(inner.training)

    def forward(self, batch: Tensor) -> Tensor:
        returned: Any = self.inner(batch.to(self.dtype))
        return getattr(returned, "logits", returned).float()


def _state(model: nn.Module) -> list[tuple[Any, str, Tensor]]:
    """Parameters and buffers with the tensors that they hold."""
    holders = [holder for module in model.modules() for holder in (module._parameters, module._buffers)]
    return [(holder, name, value.data) for holder in holders for name, value in holder.items() if value is not None]


def _ranges(model: nn.Module, layers: list[Any], calibration: Iterable[Tensor]) -> dict[nn.Module, tuple[float, float]]:
    """Smallest and largest input of each layer over the calibration images."""
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = ranges.get(layer, (float("inf"), float("-inf")))
        ranges[layer] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    seen = 0
    try:
        with torch.no_grad():
            for batch in calibration:
                batch = batch[: CALIBRATION_IMAGES - seen]
                model(batch)
                seen += len(batch)
                if seen >= CALIBRATION_IMAGES:
                    break
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ModelError("INT8 needs calibration images", "give float batches of the reference pipeline")
    return ranges


def _quantiser(low: float, high: float) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, inputs: (quantised_activation(inputs[0], low, high), *inputs[1:])
