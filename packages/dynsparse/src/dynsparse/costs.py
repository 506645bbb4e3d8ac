"""What a model costs: parameters, bytes and multiply-adds, each by a stated rule.

A masked layer stores the nonzero weights of all kernels and walks over the union of their masks. With masks of their own
at sparsity s, K kernels have a union of density 1 - s^K: 0.344 for s = 0.9 and K = 4, not 0.1. Shared masks have 1 - s.

Multiply-adds of one sample: router, then aggregation (the nonzeros of all kernels), then the convolution (the union times
the output's positions). The router's additions for the global average are given apart, as `adds`.

Reference: spec section 2.6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dynsparse.converting import unwrapped
from dynsparse.errors import check_sparsity
from dynsparse.layers import SDConvNd
from dynsparse.routers import ODConvRouter

FLOAT_BYTES = 4
INDEX_BYTES = 4
MULTIPLY = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, SDConvNd)

Call: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Shapes of input and output, without the batch axis."""


@dataclass(frozen=True)
class LayerCost:
    """One layer; sizes in numbers, `stored_...` in bytes, multiply-adds for one sample.

    Attributes:
        name: of the layer.
        kind: its class.
        total: parameters, zeros included; thresholds, which end with the training, are not.
        nonzero: parameters without the masked ones.
        density: mean over the kernels; 1 without masks.
        union: density of the union of the kernels' masks.
        stored_bitmap: nonzero weights, a bit for each position of each mask, all else dense.
        stored_csr: nonzero weights, an index for each position of the union, a pointer for each filter, all else dense.
        madds_dense: with every weight.
        madds_union: with the union of the masks.
        madds_shared: the same if one mask of the same density were shared.
        adds: of the router's global average.
    """

    name: str
    kind: str
    total: int
    nonzero: int
    density: float
    union: float
    stored_bitmap: int
    stored_csr: int
    madds_dense: int
    madds_union: int
    madds_shared: int
    adds: int


@dataclass(frozen=True)
class CostReport:
    """Sums over all layers; the figures are those of `LayerCost`.

    Attributes:
        input_size: of one sample, without the batch axis.
        per_layer: every layer with parameters or buffers, in the model's order.
    """

    input_size: tuple[int, ...]
    total: int
    nonzero: int
    stored_bitmap: int
    stored_csr: int
    madds_dense: int
    madds_union: int
    madds_shared: int
    adds: int
    per_layer: tuple[LayerCost, ...]

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=2)

    def to_markdown(self) -> str:
        """A table of the layers that multiply, and the sums."""
        head = (
            "| layer | parameters | nonzero | density | union | MAdds dense | MAdds union | MAdds shared |\n"
            + "|---" * 8
            + "|"
        )
        rows = [
            f"| {row.name} | {row.total} | {row.nonzero} | {row.density:.3f} | {row.union:.3f} "
            f"| {row.madds_dense} | {row.madds_union} | {row.madds_shared} |"
            for row in self.per_layer
            if row.madds_dense
        ]
        sums = f"| all | {self.total} | {self.nonzero} | | | {self.madds_dense} | {self.madds_union} | {self.madds_shared} |"
        stored = f"Stored: {self.stored_bitmap} bytes as bitmaps, {self.stored_csr} as CSR, {FLOAT_BYTES * self.total} dense."
        return "\n".join([head, *rows, sums, "", stored])


@torch.no_grad()
def count(model: nn.Module, input_size: Sequence[int], *, sparsity: float | int | None = None) -> CostReport:
    """Counts a model's parameters, bytes and multiply-adds.

    The model runs once, without data and in evaluation mode, to learn the layers' output shapes; nothing of it changes.

    Args:
        model: any network; convolutions and linear layers multiply, all others only have parameters.
        input_size: of one sample, without the batch axis.
        sparsity: count as if every mask had this sparsity, with the union expected of masks that know nothing of each
            other; by default the masks as they are.

    Returns:
        The costs, in all and by layer.

    Raises:
        SparsityError: a sparsity that is not in [0, 1).
    """
    if sparsity is not None:
        check_sparsity(sparsity)
    model = unwrapped(model)
    calls = _calls(model, tuple(input_size))
    layers = []
    for name, module in _parts(model):
        of_calls = calls.get(name, [])
        if isinstance(module, SDConvNd):
            layers.append(_dynamic(name, module, of_calls, sparsity))
        else:
            layers.append(_static(name, module, of_calls))
    names = ("total", "nonzero", "stored_bitmap", "stored_csr", "madds_dense", "madds_union", "madds_shared", "adds")
    sums = {name: sum(getattr(layer, name) for layer in layers) for name in names}
    return CostReport(tuple(input_size), **sums, per_layer=tuple(layers))


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold parameters or buffers themselves; a dynamic layer with all that is in it."""
    within: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, SDConvNd):
            within.update(id(part) for part in module.modules())
            yield name, module
        elif id(module) not in within and (module._parameters or module._buffers):
            yield name, module


def _calls(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, list[Call]]:
    """Input and output shapes of every call of every layer that multiplies, from a run without data."""
    calls: dict[str, list[Call]] = {}
    hooks = [
        module.register_forward_hook(_recorder(calls.setdefault(name, [])))
        for name, module in model.named_modules()
        if isinstance(module, MULTIPLY)
    ]
    modes = {module: module.training for module in model.modules()}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    try:
        model.eval()
        functional_call(model, meta, (torch.empty(1, *input_size, device="meta"),))
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    return calls


def _recorder(calls: list[Call]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

    return record


def _static(name: str, module: nn.Module, calls: list[Call]) -> LayerCost:
    """A layer without kernels to mix: all of it is dense."""
    total = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    stored = FLOAT_BYTES * total + _bytes(module.buffers(recurse=False))
    madds = 0
    for _, out in calls:
        positions = prod(out[:-1]) if isinstance(module, nn.Linear) else prod(out[1:])
        madds += module.weight.numel() * positions  # type: ignore[operator, union-attr]
    return LayerCost(name, type(module).__name__, total, total, 1.0, 1.0, stored, stored, madds, madds, madds, 0)


def _dynamic(name: str, layer: SDConvNd, calls: list[Call], sparsity: float | int | None) -> LayerCost:
    kernels, weights = layer.num_kernels, layer.weight.numel()
    positions_of_kernel = weights // kernels
    nonzero, union = _kept(layer, sparsity)
    rest = sum(parameter.numel() for parameter in (layer.bias, *_parameters(layer.router)) if parameter is not None)
    buffers = _bytes(layer.router.buffers()) if layer.router is not None else 0
    dense = FLOAT_BYTES * rest + buffers
    bitmap = csr = dense + FLOAT_BYTES * weights
    if _masked(layer):
        bits = weights // kernels if layer.mask_sharing == "shared" else weights
        bitmap = dense + FLOAT_BYTES * nonzero + ceil(bits / 8)
        csr = dense + FLOAT_BYTES * nonzero + INDEX_BYTES * (union + layer.out_channels + 1)
    mixes = layer.router is not None
    fixed, adds, outputs = 0, 0, 0
    for into, out in calls:
        fixed += _router_madds(layer, into, out)
        adds += prod(into) if mixes else 0
        outputs += prod(out[1:])
    runs = len(calls) * mixes
    return LayerCost(
        name=name,
        kind=type(layer).__name__,
        total=weights + rest,
        nonzero=nonzero + rest,
        density=nonzero / weights,
        union=union / positions_of_kernel,
        stored_bitmap=bitmap,
        stored_csr=csr,
        madds_dense=fixed + runs * weights + positions_of_kernel * outputs,
        madds_union=fixed + runs * nonzero + union * outputs,
        madds_shared=fixed + runs * nonzero + round(nonzero / kernels) * outputs,
        adds=adds,
    )


def _kept(layer: SDConvNd, sparsity: float | int | None) -> tuple[int, int]:
    """Nonzero weights of all kernels, and positions of the union of their masks."""
    positions = layer.weight[0].numel()
    if not _masked(layer):
        return layer.weight.numel(), positions
    if sparsity is None:
        masks = layer.masks()
        return int(masks.sum()), int(masks.any(0).sum())
    shared = layer.mask_sharing == "shared"
    union = 1 - sparsity if shared else 1 - sparsity**layer.num_kernels
    return round((1 - sparsity) * layer.weight.numel()), round(union * positions)


def _masked(layer: SDConvNd) -> bool:
    return layer.threshold is not None or layer.mask is not None


def _router_madds(layer: SDConvNd, into: tuple[int, ...], out: tuple[int, ...]) -> int:
    """Of the router's linear layers; ODConv also multiplies channels, positions and filters."""
    if layer.router is None:
        return 0
    madds = sum(module.weight.numel() for module in layer.router.modules() if isinstance(module, nn.Linear))
    if isinstance(layer.router, ODConvRouter):
        madds += prod(into)
        madds += layer.weight[0].numel() if layer.router.spatial_head is not None else 0
        madds += prod(out) if layer.router.filter_head is not None else 0
    return madds


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())


def _bytes(buffers: Iterable[Tensor | None]) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers if buffer is not None)
