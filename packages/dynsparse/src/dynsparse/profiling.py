"""How much faster a network runs with its zeros left out: measured beside its best dense form, never guessed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_utils.bench import median_interval
from core_utils.errors import UserError
from dynsparse.converting import dynamic_layers
from dynsparse.layers import SDConvNd
from dynsparse.runtime.compiling import compile_sparse

FEWEST_REPEATS = 6
"""Fewer pairs give no 95 % interval."""


def profile(
    model: nn.Module,
    input_size: Sequence[int],
    batches: Sequence[int] = (1,),
    *,
    sparsity: float = 0.9,
    backend: str = "auto",
    repeats: int = 10,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Times a network compiled with its zeros left out beside the same one compiled dense, taking turns.

    Both have batch norms and activations folded into the layers; the dense one takes for each layer the fastest exact
    form there is. Masks that still learn are made exact first, in the model itself.

    Args:
        model: with dynamic layers, in evaluation mode.
        input_size: of one sample, without the batch axis.
        batches: batch sizes B.
        sparsity: fraction of zeros, for masks that still learn.
        backend: as of `compile_sparse`.
        repeats: pairs of calls for each B.

    Returns:
        For each B the medians in milliseconds and the ratio dense / sparse with its 95 % interval; and what each layer
        runs on, and why.

    Raises:
        UserError: fewer than 6 repeats, or no dynamic layer.
        RuntimeError: the back-end is not installed.
    """
    if repeats < FEWEST_REPEATS:
        raise UserError(f"repeats must be at least {FEWEST_REPEATS}, got {repeats}", "fewer give no 95 % interval")
    if not any(isinstance(module, SDConvNd) for module in model.modules()):
        raise UserError("the network has no dynamic layer: there is nothing to compile", "take another variant")
    for _, layer in dynamic_layers(model):
        if layer.threshold is not None:
            layer.finalize(sparsity)
    sparse, dense = compile_sparse(model, backend), compile_sparse(model, "dense")
    rows = []
    with torch.inference_mode():
        for size in batches:
            x = torch.randn(size, *input_size, generator=torch.Generator().manual_seed(0))
            seconds = _in_turn((dense, sparse), x, repeats)
            ratio = median_interval([slow / fast for slow, fast in zip(*seconds, strict=True)])
            times = {"dense_ms": 1e3 * median(seconds[0]), "sparse_ms": 1e3 * median(seconds[1])}
            rows.append({"batch": size, **times, "ratio": ratio.median, "low": ratio.low, "high": ratio.high})
    return rows, [str(report) for report in sparse.report()]


def _in_turn(
    models: tuple[nn.Module, nn.Module], x: Float[Tensor, "b c *space"], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, after a call that warms up; who goes first alternates."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, repeats):
        for place in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            models[place](x)
            if number >= 0:
                seconds[place].append(time.perf_counter() - started)
    return seconds
