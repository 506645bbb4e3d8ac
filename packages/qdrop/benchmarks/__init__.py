"""A unit's reconstruction beside the reference code's loop, beside its bare convolutions, and beside AIMET's AdaRound.

The unit is a residual block of two 3 x 3 convolutions, 2-bit weights and activations, batch 32, p = 0.5, regulariser on
in every iteration, one thread. The reference's loop is written anew from what is known of it: the same Adam, unfused
operations, uniform random numbers for the masks, floor and sigmoid of the weights anew in every iteration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core_utils.bench import Benchmark

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH, SAMPLES = 32, 64
SMALL, LARGE = (16, 14, 100), (64, 28, 20)
"""Channels, pixels of a side, and iterations of one timed call; ours also measures the unit's error three times in each."""

SETTINGS = {"w_bits": 2, "a_bits": 2, "batch_size": BATCH, "warmup": 0.0}


def ours(channels: int, side: int, iters: int) -> Callable[[], object]:
    """`reconstruct_unit` of the block within a small net."""
    import torch

    import qdrop

    unit, teacher, cache, config = _unit(channels, side, iters)
    generator = torch.Generator()
    return lambda: qdrop.reconstruct_unit(unit, teacher, cache, config, generator.manual_seed(0))


def reference(channels: int, side: int, iters: int) -> Callable[[], object]:
    """The reference's loop on the same block, inputs and step sizes."""
    import torch

    unit, teacher, cache, config = _unit(channels, side, iters)
    quantised, full, target = (each.leaves[0] for each in (cache.quantised_inputs, cache.fp_inputs, cache.fp_outputs))
    convolutions = [
        _Convolution(teacher.layers[path], weight.scale, weight.zero_point, weight.qmax)
        for path, weight in unit.weights.items()
    ]
    activations = [_Activation(each.scale.clone(), int(each.zero_point), each.qmax) for each in unit.quantizers]

    def block(x: Tensor) -> Tensor:
        (first, second), (inner, outer) = convolutions, activations
        return outer(torch.relu(second(inner(torch.relu(first(x)))) + x))

    def call() -> None:
        by_rounding = torch.optim.Adam([each.alpha for each in convolutions], lr=config.rate_of_alpha)
        by_scale = torch.optim.Adam([each.scale for each in activations], lr=config.rate_of_scale)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(by_scale, T_max=iters, eta_min=0.0)
        for t in range(1, iters + 1):
            index = torch.randint(0, len(quantised), (BATCH,))
            x, other, y = quantised[index], full[index], target[index]
            x = torch.where(torch.rand_like(x) < config.keep_p, x, other)
            by_rounding.zero_grad()
            by_scale.zero_grad()
            beta = 2 + 18 * (1 - t / iters)
            loss = (block(x) - y).abs().pow(2).sum(1).mean()
            for each in convolutions:
                loss = loss + config.reg_weight * (1 - ((each.h() - 0.5).abs() * 2).pow(beta)).sum()
            loss.backward(retain_graph=True)
            by_rounding.step()
            by_scale.step()
            cosine.step()

    return call


def bare_convolutions(channels: int, side: int, iters: int) -> Callable[[], object]:
    """Forward and backward of the block's two convolutions, as many times, and nothing else."""
    import torch
    from torch.nn.functional import conv2d

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, channels, side, side, generator=generator)
    weights = [torch.randn(channels, channels, 3, 3, generator=generator).requires_grad_() for _ in range(2)]
    upstream = torch.randn(x.shape, generator=generator)

    def call() -> None:
        for _ in range(iters):
            y = conv2d(conv2d(x, weights[0], padding=1), weights[1], padding=1)
            torch.autograd.grad(y, weights, upstream)

    return call


def our_adaround(channels: int, side: int, iters: int) -> Callable[[], object]:
    """`quantize` of the block alone by AdaRound, layer by layer."""
    import qdrop

    def call(channels: int, side: int, iters: int) -> object:
        block, x = _block(channels, side)
        config = qdrop.QDropConfig(method="adaround", iters=iters, first_last_bits=None, **SETTINGS)
        return qdrop.quantize(block, x.split(BATCH), config, progress=False)

    call(2, 4, 1)  # loads the kernels
    return functools.partial(call, channels, side, iters)


def aimet_adaround(channels: int, side: int, iters: int) -> Callable[[], object]:
    """AIMET's AdaRound of the same block, data and iterations."""
    import logging
    import tempfile

    import torch
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters

    logging.disable(logging.INFO)

    def call(channels: int, side: int, iters: int) -> object:
        block, x = _block(channels, side)
        loader = torch.utils.data.DataLoader(x, batch_size=BATCH)
        settings = {"default_num_iterations": iters, "default_warm_start": 0.0, "forward_fn": lambda model, x: model(x)}
        parameters = AdaroundParameters(loader, num_batches=len(loader), **settings)
        with tempfile.TemporaryDirectory() as folder:
            return Adaround.apply_adaround(
                block, x[:1], parameters, folder, "block", default_param_bw=SETTINGS["w_bits"]
            )

    call(2, 4, 1)
    return functools.partial(call, channels, side, iters)


def _block(channels: int, side: int) -> tuple[nn.Module, Tensor]:
    """The block alone, and inputs as a ReLU would leave them."""
    import torch

    torch.manual_seed(0)
    return _net(channels).block, torch.randn(SAMPLES, channels, side, side).relu()


class _Convolution:
    """A convolution whose rounding is learned, by the reference's chain of operations."""

    def __init__(self, layer: nn.Conv2d, scale: Tensor, zero_point: Tensor, qmax: int) -> None:
        import torch

        self.weight, self.bias, self.qmax = layer.weight.detach(), layer.bias, qmax
        self.scale, self.zero_point = scale.view(-1, 1, 1, 1), zero_point.view(-1, 1, 1, 1).float()
        fraction = self.weight / self.scale - torch.floor(self.weight / self.scale)
        self.alpha = (-torch.log(1.2 / (fraction + 0.1) - 1)).requires_grad_()

    def h(self) -> Tensor:
        import torch

        return torch.clamp(torch.sigmoid(self.alpha) * 1.2 - 0.1, 0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        code = torch.floor(self.weight / self.scale) + self.h()
        code = torch.clamp(code + self.zero_point, 0, self.qmax)
        return torch.nn.functional.conv2d(x, (code - self.zero_point) * self.scale, self.bias, padding=1)


class _Activation:
    """LSQ with random drop, by the reference's chain of operations."""

    def __init__(self, scale: Tensor, zero_point: int, qmax: int) -> None:
        self.scale, self.zero_point, self.qmax = scale.requires_grad_(), zero_point, qmax

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        self.scale.data.abs_().clamp_(min=torch.finfo(torch.float32).eps)
        gain = 1.0 / (x.numel() * self.qmax) ** 0.5
        scale = (self.scale - self.scale * gain).detach() + self.scale * gain
        steps = x / scale
        code = (steps.round() - steps).detach() + steps + self.zero_point
        rounded = (torch.clamp(code, 0, self.qmax) - self.zero_point) * scale
        return torch.where(torch.rand_like(x) < 0.5, rounded, x)


def _unit(channels: int, side: int, iters: int) -> tuple[Any, ...]:
    """What `quantize` reconstructs the block of `_net` with: the unit of both networks, its cache, and the settings."""
    import torch

    from qdrop import QDropConfig, quantization

    torch.manual_seed(0)
    model, found = _net(channels), {}
    reconstruct = quantization.reconstruct_unit

    def look(unit: Any, teacher: Any, cache: Any, config: Any, *rest: Any) -> Any:
        result = reconstruct(unit, teacher, cache, config, *rest)
        if unit.name == "block":
            found["block"] = unit, teacher, cache
        return result

    batches = torch.randn(SAMPLES, 3, side, side).split(BATCH)
    quantization.reconstruct_unit = look
    try:
        quantization.quantize(model, batches, QDropConfig(iters=0, **SETTINGS), progress=False)
    finally:
        quantization.reconstruct_unit = reconstruct
    return *found["block"], QDropConfig(iters=iters, **SETTINGS)


def _net(channels: int) -> nn.Module:
    """A convolution, the block, and a linear layer."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu2(self.conv2(self.relu1(self.conv1(x))) + x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.relu = nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()
            self.block, self.fc = Block(), nn.Linear(channels, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.block(self.relu(self.stem(x))).mean((2, 3)))

    return Net().eval()


WHAT = "An iteration of a residual block, {0} channels of {1} x {1}, batch 32, W2A2, p = 0.5, one thread"


def _against_reference(size: tuple[int, int, int], target: float) -> Benchmark:
    return Benchmark(
        id=f"reference-{size[0]}x{size[1]}",
        statement=f"{WHAT.format(*size)}: at least {target} times as fast as by the reference's loop.",
        ours=functools.partial(ours, *size),
        peer=functools.partial(reference, *size),
        target=target,
    )


def _against_aimet(size: tuple[int, int, int]) -> Benchmark:
    return Benchmark(
        id=f"aimet-{size[0]}x{size[1]}",
        statement=f"AdaRound of that block, layer by layer, {size[2]} iterations each, with ranges of weights and "
        f"activations, {size[0]} channels of {size[1]} x {size[1]}: no slower than aimet-torch, which finds none of the latter.",
        ours=functools.partial(our_adaround, *size),
        peer=functools.partial(aimet_adaround, *size),
        target=1.0,
    )


BENCHMARKS = (
    _against_reference(SMALL, 3.0),
    _against_reference(LARGE, 1.7),
    Benchmark(
        id="bare-convolutions-64x28",
        statement=f"{WHAT.format(*LARGE)}: at most 2.2 times as long as forward and backward of its convolutions alone.",
        ours=functools.partial(ours, *LARGE),
        peer=functools.partial(bare_convolutions, *LARGE),
        target=1 / 2.2,
    ),
    _against_aimet(SMALL),
    _against_aimet(LARGE),
)
