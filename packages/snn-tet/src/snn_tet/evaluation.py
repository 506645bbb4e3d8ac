"""Accuracy as a function of the number of time steps, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.spiking.layout import time_first


@torch.no_grad()
def accuracy_vs_steps(model: nn.Module, loader: Iterable[Any], max_steps: int | None = None) -> dict[str, list[float]]:
    """Accuracy when the network runs for 1, 2, ... steps, and of each step alone.

    The network runs once: what it has put out after t steps is the sum of its first t outputs.

    Args:
        model: from frames [T, B, ...] to outputs [T, B, K]; put into evaluation mode for the call.
        loader: batches (frames [B, T, ...], labels [B]).
        max_steps: run so many steps; None runs all that the frames have.

    Returns:
        `prefix`: accuracy of the mean output of the first t steps, t = 1..T, and `single`: of step t alone; fractions
        of all samples, whatever the sizes of the batches.

    Raises:
        UserError: no batch, or fewer frames than `max_steps`.

    Reference: arXiv 2202.11946, section 4.3 (time scalability robustness).
    """
    if max_steps is not None and max_steps < 1:
        raise UserError(f"the number of time steps must be at least 1, got {max_steps}")
    device = next(model.parameters()).device
    training, samples = model.training, 0
    correct: torch.Tensor | None = None
    model.eval()
    try:
        for frames, labels in loader:
            x_seq = time_first(frames).to(device)
            if max_steps is not None and max_steps > len(x_seq):
                raise UserError(f"{max_steps} time steps were asked for, the data has {len(x_seq)}")
            outputs = model(x_seq[:max_steps])
            right = torch.stack([outputs.cumsum(0), outputs]).argmax(-1) == labels.to(device)
            correct = right.sum(-1) if correct is None else correct + right.sum(-1)
            samples += len(labels)
    finally:
        model.train(training)
    if correct is None:
        raise UserError("there is nothing to evaluate on: the loader is empty")
    prefix, single = (correct.double() / samples).tolist()
    return {"prefix": prefix, "single": single}
