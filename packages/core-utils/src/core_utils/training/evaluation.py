"""How good a classifier is on a loader's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_utils.errors import UserError


@torch.no_grad()
def evaluate_classifier(
    model: nn.Module, loader: Iterable[Any], scores: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Accuracy and mean cross-entropy of a network, which is put into evaluation mode for the call.

    Args:
        model: the network, on the device where it is to run.
        loader: batches (samples [B, ...], labels [B]).
        scores: class scores [B, K] of samples, by that network; by default what it returns for them.

    Returns:
        `accuracy`, a fraction of all samples, and `loss`, nats a sample, whatever the sizes of the batches.

    Raises:
        UserError: there is no batch.
    """
    device, training = next(model.parameters(), torch.empty(0)).device, model.training
    right, loss, count = 0, 0.0, 0
    model.eval()
    try:
        for samples, labels in loader:
            found, targets = (scores or model)(samples.to(device)), labels.to(device)
            right += int((found.argmax(-1) == targets).sum())
            loss += functional.cross_entropy(found.float(), targets, reduction="sum").item()
            count += len(labels)
    finally:
        model.train(training)
    if count == 0:
        raise UserError("there is nothing to evaluate on: the loader is empty")
    return {"accuracy": right / count, "loss": loss / count}
