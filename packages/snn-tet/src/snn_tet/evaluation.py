"""Accuracy as a function of the number of time steps, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core_utils.errors import UserError
from snn_tet.encoding import Encoding, sequence


@torch.no_grad()
def accuracy_vs_steps(
    model: nn.Module, loader: Iterable[Any], max_steps: int | None = None, *, encoding: Encoding = "frames"
) -> dict[str, list[float]]:
    """Accuracy when the network runs for 1, 2, ... steps, and of each step alone.

    The network runs once: what it has put out after t steps is the sum of its first t outputs.

    Args:
        model: from frames [T, B, ...] to outputs [T, B, K]; put into evaluation mode for the call.
        loader: batches (frames [B, T, ...], labels [B]); with direct encoding, of still images [B, ...].
        max_steps: run so many steps; None runs all that the frames have.
        encoding: "frames" or "direct".

    Returns:
        `prefix`: accuracy of the mean output of the first t steps, t = 1..T, and `single`: of step t alone; fractions
        of all samples, whatever the sizes of the batches.

    Raises:
        UserError: no batch, or fewer frames than `max_steps`.

    Reference: arXiv 2202.11946, section 4.3 (time scalability robustness).
    """
    device = next(model.parameters()).device
    training, samples = model.training, 0
    correct: torch.Tensor | None = None
    model.eval()
    try:
        for frames, labels in loader:
            outputs = model(sequence(frames.to(device), encoding, max_steps))
            right = torch.stack([outputs.cumsum(0), outputs]).argmax(-1) == labels.to(device)
            correct = right.sum(-1) if correct is None else correct + right.sum(-1)
            samples += len(labels)
    finally:
        model.train(training)
    if correct is None:
        raise UserError("there is nothing to evaluate on: the loader is empty")
    prefix, single = (correct.double() / samples).tolist()
    return {"prefix": prefix, "single": single}


def early_exit(
    outputs: Float[Tensor, "T B K"], threshold: float, metric: Literal["maxprob", "entropy"] = "maxprob"
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Each sample stops at the first step at which the network is sure enough.

    Args:
        outputs: of all steps, shape [T, B, K].
        threshold: confidence that stops a sample; at 0 every one stops after 1 step, above 1 none before T.
        metric: "maxprob" is the largest class probability of the mean output so far; "entropy" is 1 - H / log K of
            these probabilities, from 0 for no idea to 1 for certainty.

    Returns:
        Predicted classes and numbers of steps, int64, both [B].

    Raises:
        UserError: no step, or an unknown metric.
    """
    if outputs.ndim != 3 or len(outputs) == 0:
        raise UserError(f"outputs must be [T, B, K] with T >= 1, got shape {list(outputs.shape)}")
    if metric not in ("maxprob", "entropy"):
        raise UserError(f"metric must be maxprob or entropy, got {metric!r}")
    steps, batch, classes = outputs.shape
    counts = torch.arange(1, steps + 1, device=outputs.device)
    mean = outputs.cumsum(0) / counts.view(-1, 1, 1)
    log_probabilities = mean.log_softmax(-1)
    if metric == "maxprob":
        confidence = log_probabilities.amax(-1).exp()
    else:
        confidence = 1 + (log_probabilities.exp() * log_probabilities).sum(-1) / torch.tensor(classes).log()
    sure = confidence >= threshold
    sure[-1] = True
    stop = sure.to(torch.uint8).argmax(0)
    return mean.argmax(-1)[stop, torch.arange(batch, device=outputs.device)], stop + 1


@torch.no_grad()
def early_exit_report(
    model: nn.Module,
    loader: Iterable[Any],
    threshold: float,
    max_steps: int | None = None,
    *,
    metric: Literal["maxprob", "entropy"] = "maxprob",
    encoding: Encoding = "frames",
) -> dict[str, float]:
    """Accuracy and mean number of steps when every sample stops as soon as the network is sure.

    Args:
        model: as for `accuracy_vs_steps`.
        loader: batches (frames [B, T, ...], labels [B]).
        threshold: confidence that stops a sample.
        max_steps: stop there at the latest.
        metric: see `early_exit`.
        encoding: "frames" or "direct".

    Returns:
        `threshold`, `accuracy` as a fraction of all samples, and `mean_steps`.

    Raises:
        UserError: no batch, or fewer frames than `max_steps`.
    """
    device, training = next(model.parameters()).device, model.training
    right, taken, samples = 0, 0, 0
    model.eval()
    try:
        for frames, labels in loader:
            outputs = model(sequence(frames.to(device), encoding, max_steps))
            classes, steps = early_exit(outputs, threshold, metric)
            right += int((classes == labels.to(device)).sum())
            taken += int(steps.sum())
            samples += len(labels)
    finally:
        model.train(training)
    if samples == 0:
        raise UserError("there is nothing to evaluate on: the loader is empty")
    return {"threshold": threshold, "accuracy": right / samples, "mean_steps": taken / samples}
